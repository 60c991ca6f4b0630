//! What callers may send.

use std::{collections::HashSet, fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeOwned, IgnoredAny, value::MapAccessDeserializer},
};
use utoipa::ToSchema;

use crate::model::Status;

/// A user to be made.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, ToSchema)]
pub struct NewUser {
    /// 1 to 100 characters.
    #[schema(min_length = 1, max_length = 100, example = "Ada Lovelace")]
    pub name: String,
    /// At most 254 characters; no other user may have it.
    #[schema(max_length = 254, pattern = r"^[^\s@]+@[^\s@]+\.[^\s@]+$", example = "ada@example.org")]
    pub email: String,
}

/// An order to be made.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, ToSchema)]
pub struct NewOrder {
    /// Who buys.
    #[schema(minimum = 1, example = 7920)]
    pub customer_id: i64,
    /// What is bought: 1 to 50 items, no product twice.
    #[schema(min_items = 1, max_items = 50)]
    #[serde(deserialize_with = "objects")]
    pub items: Vec<NewItem>,
}

/// A line of an order to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ToSchema)]
pub struct NewItem {
    /// What is bought.
    #[schema(minimum = 1, example = 14)]
    pub product_id: i64,
    /// How many of it.
    #[schema(minimum = 1, maximum = 1000, example = 2)]
    pub quantity: i32,
}

/// Why a body or a query string was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// It is no JSON at all.
    #[error("the body is not JSON: {0}")]
    Syntax(String),
    /// It is JSON, but not what the endpoint takes.
    #[error("{0}")]
    Invalid(String),
}

/// What is wrong with a value that has the right shape.
pub(crate) trait Validate {
    /// Says the first thing that is wrong.
    fn validate(&self) -> Result<(), &'static str>;
}

impl Validate for NewUser {
    fn validate(&self) -> Result<(), &'static str> {
        if !(1..=100).contains(&self.name.chars().count()) {
            return Err("name: give 1 to 100 characters");
        }
        if self.email.chars().count() > 254 {
            return Err("email: give at most 254 characters");
        }
        if !is_email(&self.email) {
            return Err("email: give an address like ada@example.org");
        }
        // PostgreSQL's text cannot hold it.
        if self.name.contains('\0') || self.email.contains('\0') {
            return Err("name, email: leave out the NUL character");
        }
        Ok(())
    }
}

impl Validate for NewOrder {
    fn validate(&self) -> Result<(), &'static str> {
        if self.customer_id < 1 {
            return Err("customer_id: give a positive integer");
        }
        if !(1..=50).contains(&self.items.len()) {
            return Err("items: give 1 to 50");
        }
        if self.items.iter().any(|item| item.product_id < 1) {
            return Err("items: give positive integers as product_id");
        }
        if self.items.iter().any(|item| !(1..=1000).contains(&item.quantity)) {
            return Err("items: give quantities from 1 to 1000");
        }
        let mut seen = HashSet::with_capacity(self.items.len());
        if !self.items.iter().all(|item| seen.insert(item.product_id)) {
            return Err("items: name each product once");
        }
        Ok(())
    }
}

/// `^[^\s@]+@[^\s@]+\.[^\s@]+$`, by hand.
fn is_email(text: &str) -> bool {
    let Some((local, domain)) = text.split_once('@') else { return false };
    let plain = |part: &str| !part.contains(|c: char| c == '@' || c.is_whitespace());
    // Some dot of the domain has something on both of its sides.
    let dotted = domain.char_indices().any(|(at, c)| c == '.' && at > 0 && at + 1 < domain.len());
    !local.is_empty() && plain(local) && plain(domain) && dotted
}

/// Reads a request's body.
pub(crate) fn body<T: DeserializeOwned + Validate>(bytes: &[u8]) -> Result<T, Refusal> {
    let text = str::from_utf8(bytes).map_err(|error| Refusal::Syntax(error.to_string()))?;
    let Object(value) = serde_json::from_str::<Object<T>>(text).map_err(|error| {
        // A field of the wrong type is reported before a syntax error behind it, and what no Rust value can hold (1e400,
        // half a surrogate pair) as a syntax error: the grammar alone decides whether it is JSON.
        match serde_json::from_str::<IgnoredAny>(text) {
            Err(syntax) => Refusal::Syntax(syntax.to_string()),
            Ok(_) => Refusal::Invalid(shorten(&error.to_string())),
        }
    })?;
    value.validate().map_err(|text| Refusal::Invalid(text.to_owned()))?;
    Ok(value)
}

/// Begin and end of a text: serde quotes what it was given, up to a whole body, and then says what it wanted.
fn shorten(text: &str) -> String {
    const BEGIN: usize = 80;
    const END: usize = 80;
    match text.chars().count().checked_sub(BEGIN + END) {
        None | Some(0) => text.to_owned(),
        Some(left_out) => {
            let begin = text.chars().take(BEGIN);
            begin.chain(['…']).chain(text.chars().skip(BEGIN + left_out)).collect()
        }
    }
}

/// The query string of an order list.
#[derive(Debug, Deserialize)]
pub(crate) struct ListQuery {
    customer_id: Option<String>,
    status: Option<String>,
}

impl ListQuery {
    /// Reads it: whose orders, and of which status if of one.
    pub(crate) fn parse(&self) -> Result<(i64, Option<Status>), Refusal> {
        let customer = self.customer_id.as_deref().and_then(id).ok_or_else(|| {
            Refusal::Invalid("customer_id: give a positive integer, as in /orders?customer_id=1".to_owned())
        })?;
        let status = self.status.as_deref().map(str::parse).transpose();
        let status =
            status.map_err(|_| Refusal::Invalid("status: give pending, confirmed or shipped".to_owned()))?;
        Ok((customer, status))
    }
}

/// A positive integer in a path or a query string: digits, nothing else.
pub(crate) fn id(text: &str) -> Option<i64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits {
        return None;
    }
    text.parse().ok().filter(|&id| id > 0)
}

/// A `T` that stands as a JSON object; derived impls alone would also take an array of the fields.
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Object<T>, D::Error> {
        struct Visitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Visitor(PhantomData))
    }
}

fn objects<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let items = Vec::<Object<T>>::deserialize(deserializer)?;
    Ok(items.into_iter().map(|Object(item)| item).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(text: &str) -> Result<NewOrder, Refusal> {
        body(text.as_bytes())
    }

    #[test]
    fn an_order_is_read_and_unknown_fields_are_ignored() {
        let text =
            r#"{"x": {"y": [1]}, "customer_id": 3, "items": [{"quantity": 2, "product_id": 9, "z": null}]}"#;
        assert_eq!(
            order(text),
            Ok(NewOrder { customer_id: 3, items: vec![NewItem { product_id: 9, quantity: 2 }] })
        );
    }

    #[test]
    fn broken_json_is_a_syntax_error_also_behind_a_field_of_the_wrong_type() {
        for text in
            ["", "{", "hello", r#"{"customer_id": "1", "items": ["#, r#"{"customer_id": "1"} x"#, "\u{0}"]
        {
            assert!(matches!(order(text), Err(Refusal::Syntax(_))), "{text}: {:?}", order(text));
        }
        assert!(matches!(body::<NewUser>(b"{\"name\": \"\xff\"}"), Err(Refusal::Syntax(_))));
    }

    #[test]
    fn json_that_no_field_can_hold_is_json() {
        for text in [
            r#"{"customer_id": 1e400, "items": [{"product_id": 5, "quantity": 1}]}"#,
            r#"{"customer_id": "\ud800", "items": []}"#,
            r#"{"\ud800": 1}"#,
        ] {
            assert!(matches!(order(text), Err(Refusal::Invalid(_))), "{text}: {:?}", order(text));
        }
        let user = body::<NewUser>(br#"{"name": "\ud800", "email": "a@b.c"}"#);
        assert!(matches!(user, Err(Refusal::Invalid(_))), "{user:?}");
        // What nobody reads must be JSON too.
        let user = body::<NewUser>(b"{\"name\": \"A\", \"email\": \"a@b.c\", \"x\": \"\xff\"}");
        assert!(matches!(user, Err(Refusal::Syntax(_))), "{user:?}");
    }

    #[test]
    fn a_refusal_quotes_the_begin_of_what_it_was_given_and_says_what_it_wanted() {
        let long = "ł".repeat(100_000);
        let Err(Refusal::Invalid(message)) = order(&format!(r#"{{"customer_id": "{long}"}}"#)) else {
            panic!()
        };
        assert!(message.chars().count() < 200, "{message}");
        assert!(
            message.starts_with("invalid type: string \"łł") && message.contains("expected i64"),
            "{message}"
        );
    }

    #[test]
    fn arrays_are_not_taken_for_objects() {
        for text in [r#"[1, [{"product_id": 5, "quantity": 1}]]"#, r#"{"customer_id": 1, "items": [[5, 1]]}"#]
        {
            assert!(matches!(order(text), Err(Refusal::Invalid(_))), "{text}: {:?}", order(text));
        }
    }

    #[test]
    fn numbers_must_be_integers_in_range() {
        for (customer, product, quantity) in [
            ("0", "1", "1"),
            ("-1", "1", "1"),
            ("1.0", "1", "1"),
            ("\"1\"", "1", "1"),
            ("99999999999999999999", "1", "1"),
            ("1", "0", "1"),
            ("1", "1e2", "1"),
            ("1", "1", "0"),
            ("1", "1", "1001"),
            ("1", "1", "3000000000"),
            ("1", "1", "true"),
        ] {
            let text = format!(
                r#"{{"customer_id": {customer}, "items": [{{"product_id": {product}, "quantity": {quantity}}}]}}"#
            );
            assert!(matches!(order(&text), Err(Refusal::Invalid(_))), "{text}: {:?}", order(&text));
        }
    }

    #[test]
    fn emails_are_as_the_pattern_says() {
        for good in ["a@b.c", "a.b@c.d.e", "ł✓@x..y", "a@.b.c", "a@b.c."] {
            assert!(is_email(good), "{good}");
        }
        for bad in
            ["", "a", "a@b", "@b.c", "a@.c", "a@b.", "a@b@c.d", "a b@c.d", "a@b.c\n", "a@b\u{a0}.c", "a@."]
        {
            assert!(!is_email(bad), "{bad}");
        }
    }

    #[test]
    fn names_are_counted_in_characters() {
        let user = |name: &str| NewUser { name: name.to_owned(), email: "a@b.c".to_owned() }.validate();
        assert_eq!(user(&"✓".repeat(100)), Ok(()));
        assert!(user(&"✓".repeat(101)).is_err());
        assert!(user("").is_err());
        assert!(user("a\0b").is_err());
    }

    #[test]
    fn ids_are_digits_and_nothing_else() {
        assert_eq!(id("42"), Some(42));
        assert_eq!(id("9223372036854775807"), Some(i64::MAX));
        for bad in ["", "0", "-1", "+1", " 1", "1x", "9223372036854775808", "١"] {
            assert_eq!(id(bad), None, "{bad}");
        }
    }
}
