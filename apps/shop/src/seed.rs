//! The data set: the same rows for the same size, on every database.

use crate::{
    Error,
    model::{Item, Product, Status, Timestamp, User},
};

/// How many rows the data set has.
///
/// ```
/// use greenwave_shop::seed::SeedSize;
///
/// let size = SeedSize { orders: 1_000_000, ..SeedSize::FULL };
/// assert_eq!(size.user(1).email, "user1@example.com");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeedSize {
    /// Users 1 to this.
    pub users: i64,
    /// Products 1 to this.
    pub products: i64,
    /// Orders 1 to this, of 1 to 5 items each.
    pub orders: i64,
}

/// Prime, so that consecutive orders go to customers far apart, and each customer has their turn.
const STRIDE: i64 = 7919;
/// Prime as well, for sizes that are multiples of the first.
const OTHER_STRIDE: i64 = 7927;

/// 2023-01-01T00:00:00.123Z.
const FIRST_USER: i64 = 1_672_531_200_123;
/// 2024-01-01T00:00:00.456Z.
const FIRST_ORDER: i64 = 1_704_067_200_456;
const MINUTE: i64 = 60_000;

/// Far beyond what is of use, and far below where the arithmetic ends.
const MAX_ROWS: i64 = 1_000_000_000;

impl SeedSize {
    /// The data set that measurements are made on.
    pub const FULL: SeedSize = SeedSize { users: 100_000, products: 10_000, orders: 500_000 };

    /// A set that is there in a moment.
    pub const SMALL: SeedSize = SeedSize { users: 1_000, products: 200, orders: 5_000 };

    pub(crate) fn check(self) -> Result<(), Error> {
        let sizes = [self.users, self.products, self.orders];
        if sizes.iter().any(|size| !(0..=MAX_ROWS).contains(size)) {
            return Err(Error::SeedSize(
                "give numbers of users, products and orders from 0 to 1,000,000,000",
            ));
        }
        if self.orders > 0 && (self.users == 0 || self.products == 0) {
            return Err(Error::SeedSize("orders need at least one user and one product"));
        }
        Ok(())
    }

    /// The user of this id.
    pub fn user(self, id: i64) -> User {
        User {
            id,
            name: format!("User {id}"),
            email: format!("user{id}@example.com"),
            created_at: Timestamp::from_millis(FIRST_USER + id * 5 * MINUTE),
        }
    }

    /// The product of this id.
    pub fn product(self, id: i64) -> Product {
        Product { id, name: format!("Product {id}"), price_cents: price(id), stock: 1_000_000 }
    }

    /// The order of this id.
    ///
    /// # Panics
    /// When there are no users or no products.
    pub fn order(self, id: i64) -> SeedOrder {
        let mut items: Vec<Item> = Vec::with_capacity(5);
        for k in 0..=(id * 31 % 5) {
            let product_id = (id * 13 + k * 1999) % self.products + 1;
            // Only among very few products does one come up twice.
            if !items.iter().any(|item| item.product_id == product_id) {
                let quantity = 1 + ((id + k) % 3) as i32;
                items.push(Item { product_id, quantity, price_cents: price(product_id) });
            }
        }
        items.sort_unstable_by_key(|item| item.product_id);
        let total = |item: &Item| i64::from(item.quantity) * i64::from(item.price_cents);
        SeedOrder {
            id,
            customer_id: self.customer(id),
            status: Status::ALL[(id / 7 % 3) as usize],
            total_cents: items.iter().map(total).sum(),
            created_at: Timestamp::from_millis(FIRST_ORDER + id * MINUTE),
            items,
        }
    }

    /// One order in ten goes to the first hundredth of the users, so that these have more orders than a list holds.
    fn customer(self, order: i64) -> i64 {
        if order % 10 == 0 {
            return order / 10 % (self.users / 100).max(1) + 1;
        }
        let stride = if self.users % STRIDE == 0 { OTHER_STRIDE } else { STRIDE };
        order * stride % self.users + 1
    }

    /// How many rows there will be, for a progress bar: of five orders in a row one has one item, one two, and so on.
    fn rows(self) -> u64 {
        let rest: i64 = (1..=self.orders % 5).map(|order| order * 31 % 5 + 1).sum();
        (self.users + self.products + self.orders + self.orders / 5 * 15 + rest).unsigned_abs()
    }
}

fn price(product: i64) -> i32 {
    100 + (product * 7919 % 20_000) as i32
}

/// An order of the data set, by the id of its customer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedOrder {
    /// Counts from 1.
    pub id: i64,
    /// Who bought.
    pub customer_id: i64,
    /// How far it has come.
    pub status: Status,
    /// The sum over its items.
    pub total_cents: i64,
    /// A minute after the order before.
    pub created_at: Timestamp,
    /// What was bought, sorted by product.
    pub items: Vec<Item>,
}

/// How far a fill has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Rows written.
    pub done: u64,
    /// Rows to be written in all.
    pub total: u64,
}

/// Counts rows and tells whoever wants to know.
pub(crate) struct Meter {
    progress: Progress,
    tell: Box<dyn Fn(Progress) + Send + Sync>,
}

impl Meter {
    pub(crate) fn new(size: SeedSize, tell: impl Fn(Progress) + Send + Sync + 'static) -> Meter {
        Meter { progress: Progress { done: 0, total: size.rows() }, tell: Box::new(tell) }
    }

    pub(crate) fn add(&mut self, rows: u64) {
        self.progress.done += rows;
        (self.tell)(self.progress);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_order_is_the_one_that_the_api_shows() {
        let order = SeedSize::FULL.order(1);
        assert_eq!((order.customer_id, order.status), (7920, Status::Pending));
        assert_eq!(order.total_cents, 25_073);
        assert_eq!(order.created_at.to_string(), "2024-01-01T00:01:00.456Z");
        assert_eq!(
            order.items,
            [
                Item { product_id: 14, quantity: 2, price_cents: 10_966 },
                Item { product_id: 2013, quantity: 3, price_cents: 1_047 }
            ]
        );
    }

    #[test]
    fn every_row_is_counted() {
        for orders in [0, 1, 4, 5, 17, 1_000] {
            let size = SeedSize { users: 100, products: 5_000, orders };
            let items: usize = (1..=orders).map(|id| size.order(id).items.len()).sum();
            assert_eq!(size.rows(), 5_100 + orders as u64 + items as u64, "{orders}");
        }
    }

    #[test]
    fn at_every_size_orders_keep_the_rules() {
        for (users, products) in [(1, 1), (99, 3), (7919, 1999), (1_000, 200)] {
            let size = SeedSize { users, products, orders: 1_000 };
            let mut customers = std::collections::HashSet::new();
            for id in 1..=size.orders {
                let order = size.order(id);
                customers.insert(order.customer_id);
                assert!((1..=users).contains(&order.customer_id));
                assert!(order.items.iter().all(|item| (1..=products).contains(&item.product_id)));
                assert!(order.items.windows(2).all(|pair| pair[0].product_id < pair[1].product_id));
            }
            assert!(customers.len() as i64 >= users.min(500), "{} of {users} customers", customers.len());
        }
    }

    #[test]
    fn the_first_customers_have_more_orders_than_a_list_holds() {
        for size in [SeedSize::FULL, SeedSize::SMALL] {
            let busy = size.users / 100;
            let mut counts = vec![0; size.users as usize + 1];
            for id in 1..=size.orders {
                counts[size.customer(id) as usize] += 1;
            }
            assert!(counts[1..=busy as usize].iter().all(|count| *count > 20));
        }
    }

    #[test]
    fn sizes_that_make_no_shop_are_refused() {
        for (users, products, orders) in [(-1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, i64::MAX)] {
            assert!(SeedSize { users, products, orders }.check().is_err());
        }
        assert!(SeedSize { users: 0, products: 0, orders: 0 }.check().is_ok());
    }
}
