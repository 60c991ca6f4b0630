//! What the shop deals in, in the shapes that its API shows.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

pub use crate::timestamp::Timestamp;

/// A customer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct User {
    /// Counts from 1.
    #[schema(example = 1)]
    pub id: i64,
    /// 1 to 100 characters.
    #[schema(example = "User 1")]
    pub name: String,
    /// Unique, as it is written.
    #[schema(example = "user1@example.com")]
    pub email: String,
    /// When the user was made.
    #[schema(value_type = String, format = DateTime, example = "2023-01-01T00:05:00.123Z")]
    pub created_at: Timestamp,
}

/// Something to sell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Product {
    /// Counts from 1.
    #[schema(example = 1)]
    pub id: i64,
    /// What it is called.
    #[schema(example = "Product 1")]
    pub name: String,
    /// What one of it costs now.
    #[schema(example = 8019)]
    pub price_cents: i32,
    /// How many are left; up to five minutes old.
    #[schema(example = 1_000_000)]
    pub stock: i32,
}

/// How far an order has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Made, not yet looked at.
    Pending,
    /// Accepted.
    Confirmed,
    /// On its way.
    Shipped,
}

impl Status {
    /// All of them.
    pub const ALL: [Status; 3] = [Status::Pending, Status::Confirmed, Status::Shipped];

    /// As it stands in the API and in the database.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Confirmed => "confirmed",
            Status::Shipped => "shipped",
        }
    }
}

impl FromStr for Status {
    type Err = UnknownStatus;

    fn from_str(text: &str) -> Result<Status, UnknownStatus> {
        Status::ALL.into_iter().find(|status| status.as_str() == text).ok_or(UnknownStatus)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text that is the name of no [`Status`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such status: it is pending, confirmed or shipped")]
pub struct UnknownStatus;

/// What one customer bought at one time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Order {
    /// Counts from 1.
    #[schema(example = 1)]
    pub id: i64,
    /// How far it has come.
    pub status: Status,
    /// The sum of `quantity * price_cents` of its items.
    #[schema(example = 25073)]
    pub total_cents: i64,
    /// When the order was made.
    #[schema(value_type = String, format = DateTime, example = "2024-01-01T00:01:00.456Z")]
    pub created_at: Timestamp,
    /// Who bought.
    pub customer: Customer,
    /// What was bought, sorted by `product_id`.
    pub items: Vec<Item>,
}

/// The user of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Customer {
    /// The user's id.
    #[schema(example = 7920)]
    pub id: i64,
    /// The user's name.
    #[schema(example = "User 7920")]
    pub name: String,
    /// The user's email.
    #[schema(example = "user7920@example.com")]
    pub email: String,
}

/// A line of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Item {
    /// What was bought.
    #[schema(example = 14)]
    pub product_id: i64,
    /// How many of it.
    #[schema(example = 2)]
    pub quantity: i32,
    /// What one cost when the order was made.
    #[schema(example = 10966)]
    pub price_cents: i32,
}
