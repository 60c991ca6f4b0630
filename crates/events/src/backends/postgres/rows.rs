//! Rows as values.

use std::sync::Arc;

use sqlx::{Row, postgres::PgRow, types::Json};
use uuid::Uuid;

use super::super::{Attempt, DeadLetter, Lag, Names, unsigned};
use crate::subscription::{Delivery, Held, from_millis};

/// An event of a range.
pub(super) fn ranged(row: &PgRow, lease: i64, names: &mut Names) -> sqlx::Result<Delivery> {
    read(row, Held::Range(lease), Arc::clone(names.subscription()), names, 1)
}

/// A delivery of its own.
pub(super) fn single(row: &PgRow) -> sqlx::Result<Delivery> {
    let held = Held::Row { id: row.try_get("id")?, lease: row.try_get("lease_id")? };
    let subscription: Arc<str> = row.try_get::<&str, _>("subscription")?.into();
    let attempt = unsigned(row.try_get("attempt")?);
    read(row, held, Arc::clone(&subscription), &mut Names::new(&subscription), attempt)
}

fn read(
    row: &PgRow,
    held: Held,
    subscription: Arc<str>,
    names: &mut Names,
    attempt: u32,
) -> sqlx::Result<Delivery> {
    Ok(Delivery {
        held,
        position: row.try_get("position")?,
        subscription,
        event: names.event(row.try_get("event")?),
        event_id: row.try_get::<Uuid, _>("event_id")?.into(),
        version: unsigned(row.try_get("version")?),
        key: row.try_get::<Option<&str>, _>("key")?.map(Box::from),
        payload: row.try_get("payload")?,
        published_ms: row.try_get("published")?,
        attempt,
    })
}

pub(super) fn dead_letter(row: &PgRow) -> sqlx::Result<DeadLetter> {
    Ok(DeadLetter {
        id: row.try_get("id")?,
        subscription: row.try_get("subscription")?,
        event: row.try_get("event")?,
        event_id: row.try_get::<Uuid, _>("event_id")?.into(),
        version: unsigned(row.try_get("version")?),
        payload: row.try_get("payload")?,
        attempts: unsigned(row.try_get("attempt")?),
        error: row.try_get("error")?,
        errors: row.try_get::<Json<Vec<Attempt>>, _>("errors")?.0,
        published_at: from_millis(row.try_get("published")?),
        died_at: from_millis(row.try_get("died")?),
    })
}

pub(super) fn lag(row: &PgRow) -> sqlx::Result<Lag> {
    let number = |column: &str| row.try_get::<i64, _>(column).map(|number| number.max(0).unsigned_abs());
    Ok(Lag {
        subscription: row.try_get("name")?,
        position: number("position")?,
        behind: number("behind")?,
        ranges: number("ranges")?,
        retrying: number("retrying")?,
        dead: number("dead")?,
    })
}
