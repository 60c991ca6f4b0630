use crate::model::{Item, Order};

/// Puts orders together whose rows come one an item, each order's rows next to each other.
#[derive(Default)]
pub(super) struct Orders(Vec<Order>);

impl Orders {
    /// Takes a row: `order` reads its order where it begins a new one, the item is always its own.
    pub(super) fn push<E>(
        &mut self,
        id: i64,
        order: impl FnOnce() -> Result<Order, E>,
        item: Option<Item>,
    ) -> Result<(), E> {
        if self.0.last().is_none_or(|last| last.id != id) {
            self.0.push(order()?);
        }
        if let (Some(order), Some(item)) = (self.0.last_mut(), item) {
            order.items.push(item);
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Vec<Order> {
        self.0
    }
}
