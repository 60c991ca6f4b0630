//! Rows as values.

use rusqlite::{Row, Transaction, types::Type};
use uuid::Uuid;

use super::super::{DeadLetter, Lag, Names, unsigned};
use crate::{
    EventId,
    subscription::{Delivery, Held, from_millis},
};

/// An event, from the columns position, event, id, version, key, payload, published, attempt.
pub(super) fn delivery(row: &Row<'_>, held: Held, names: &mut Names) -> rusqlite::Result<Delivery> {
    Ok(Delivery {
        held,
        position: row.get(0)?,
        subscription: names.subscription().clone(),
        event: names.event(row.get_ref(1)?.as_str()?),
        event_id: event_id(row, 2)?,
        version: unsigned(row.get(3)?),
        key: row.get::<_, Option<String>>(4)?.map(String::into_boxed_str),
        payload: row.get(5)?,
        published_ms: row.get(6)?,
        attempt: unsigned(row.get(7)?),
    })
}

pub(super) fn dead_letter(row: &Row<'_>) -> rusqlite::Result<DeadLetter> {
    let errors: String = row.get(10)?;
    Ok(DeadLetter {
        id: row.get(0)?,
        subscription: row.get(1)?,
        event: row.get(2)?,
        event_id: event_id(row, 3)?,
        version: unsigned(row.get(4)?),
        payload: row.get(5)?,
        published_at: from_millis(row.get(6)?),
        attempts: unsigned(row.get(7)?),
        error: row.get(8)?,
        died_at: from_millis(row.get(9)?),
        errors: serde_json::from_str(&errors).map_err(|error| not_read(10, error))?,
    })
}

pub(super) fn lag(row: &Row<'_>) -> rusqlite::Result<Lag> {
    let number = |index| row.get::<_, i64>(index).map(|number| number.max(0).unsigned_abs());
    Ok(Lag {
        subscription: row.get(0)?,
        position: number(1)?,
        behind: number(2)?,
        ranges: number(3)?,
        retrying: number(4)?,
        dead: number(5)?,
    })
}

/// Makes a dead letter of a delivery that has had its attempts and has its error.
pub(super) fn bury(tx: &Transaction<'_>, id: i64) -> rusqlite::Result<()> {
    tx.prepare_cached(
        "INSERT INTO greenwave_event_dead (id, subscription, event, event_id, version, key, payload, published_at,
             position, attempt, error, errors)
         SELECT id, subscription, event, event_id, version, key, payload, published_at, position, attempt, error,
             errors
         FROM greenwave_event_delivery WHERE id = ?1",
    )?
    .execute([id])?;
    tx.prepare_cached("DELETE FROM greenwave_event_delivery WHERE id = ?1")?.execute([id])?;
    Ok(())
}

fn event_id(row: &Row<'_>, column: usize) -> rusqlite::Result<EventId> {
    let text = row.get_ref(column)?.as_str()?;
    Uuid::parse_str(text).map(EventId::from).map_err(|error| not_read(column, error))
}

fn not_read(column: usize, error: impl std::error::Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, Box::new(error))
}
