//! Deliveries: what is handled alone.

use rusqlite::{Transaction, params};

use super::{
    super::{Names, Want},
    log, rows,
};
use crate::subscription::{Delivery, Held};

/// Makes dead letters deliveries again: one, or all of a subscription.
pub(super) fn redeliver(
    tx: &Transaction<'_>,
    id: Option<i64>,
    subscription: Option<&str>,
) -> rusqlite::Result<u64> {
    let inserted = tx.execute(
        "INSERT INTO greenwave_event_delivery
             (subscription, event, event_id, version, key, payload, published_at, position)
         SELECT subscription, event, event_id, version, key, payload, published_at, position
         FROM greenwave_event_dead WHERE id = ?1 OR subscription = ?2 ORDER BY position, id",
        params![id, subscription],
    )?;
    tx.execute(
        "DELETE FROM greenwave_event_dead WHERE id = ?1 OR subscription = ?2",
        params![id, subscription],
    )?;
    Ok(inserted as u64)
}

/// Leases deliveries that are ready.
pub(super) fn claim(tx: &Transaction<'_>, wants: &[Want], lease: i64) -> rusqlite::Result<Vec<Delivery>> {
    let lease_id = log::next_lease(tx)?;
    // Of one key only the first: what comes after it waits until it is gone.
    let mut claim = tx.prepare_cached(concat!(
        "UPDATE greenwave_event_delivery SET lease_id = ?4, due_at = ?5 + ",
        now!(),
        " WHERE id IN (
             SELECT d.id FROM greenwave_event_delivery d
             WHERE d.subscription = ?1 AND d.event = ?2 AND d.due_at IS NULL
               AND NOT (?6 AND d.key IS NOT NULL AND EXISTS (
                   SELECT 1 FROM greenwave_event_delivery e
                   WHERE e.subscription = d.subscription AND e.key = d.key
                     AND (coalesce(e.position, 0), e.id) < (coalesce(d.position, 0), d.id)))
             ORDER BY d.published_at, d.id LIMIT ?3)
         RETURNING position, event, event_id, version, key, payload, published_at, attempt + 1, id"
    ))?;
    let mut deliveries = Vec::new();
    for Want { subscription, event, count, ordered } in wants {
        let mut names = Names::new(subscription);
        let parameters = params![&**subscription, event, count, lease_id, lease, ordered];
        let claimed = claim.query_map(parameters, |row| {
            rows::delivery(row, Held::Row { id: row.get(8)?, lease: lease_id }, &mut names)
        })?;
        for delivery in claimed {
            deliveries.push(delivery?);
        }
    }
    deliveries.sort_unstable_by_key(|delivery| (delivery.published_ms, delivery.position));
    Ok(deliveries)
}
