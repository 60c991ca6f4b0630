//! The log and the ranges that are taken of it.

use std::collections::HashSet;

use rusqlite::{Connection, OptionalExtension, Transaction, params};

use super::{
    super::{Aside, Ends, Fate, Names, Relayed, Take, Taken, WINDOW, millis},
    rows,
};
use crate::subscription::Held;

/// Copies events of the log (`l`) to the subscription `?1` as deliveries that are ready.
macro_rules! deliver {
    ($rest:literal) => {
        concat!(
            "INSERT INTO greenwave_event_delivery
                 (subscription, event, event_id, version, key, payload, published_at, position)
             SELECT ?1, l.event, l.id, l.version, l.key, l.payload, l.published_at, l.position
             FROM greenwave_event_log l ",
            $rest
        )
    };
}

/// The log's last position, also when it has been deleted since.
const LAST: &str = "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'greenwave_event_log'), 0)";

pub(super) fn last(connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached(LAST)?.query_row([], |row| row.get(0))
}

/// Moves what others wrote to the outbox; this crate publishes right into the log.
pub(super) fn relay(tx: &Transaction<'_>, limit: u32) -> rusqlite::Result<bool> {
    let to: Option<i64> = tx
        .prepare_cached(
            "SELECT max(position) FROM
                 (SELECT position FROM greenwave_event_outbox ORDER BY position LIMIT ?1)",
        )?
        .query_row([limit], |row| row.get(0))?;
    tx.prepare_cached(
        "INSERT INTO greenwave_event_log (id, event, version, key, payload, published_at)
         SELECT id, event, version, key, payload, created_at FROM greenwave_event_outbox
         WHERE position <= ?1 ORDER BY position",
    )?
    .execute([to])?;
    let moved =
        tx.prepare_cached("DELETE FROM greenwave_event_outbox WHERE position <= ?1")?.execute([to])?;
    Ok(moved >= limit as usize)
}

/// How many events are in the log that metrics have not counted.
pub(super) fn uncounted(connection: &Connection) -> rusqlite::Result<i64> {
    let counted: i64 = connection
        .prepare_cached("SELECT last FROM greenwave_event_counted")?
        .query_row([], |row| row.get(0))?;
    Ok(last(connection)? - counted)
}

/// Counts the events that no process has counted yet.
pub(super) fn count(tx: &Transaction<'_>, more: bool) -> rusqlite::Result<Relayed> {
    let last = last(tx)?;
    let events = tx
        .prepare_cached(
            "SELECT event, count(*) FROM greenwave_event_log
             WHERE position > (SELECT last FROM greenwave_event_counted) AND position <= ?1 GROUP BY event",
        )?
        .query_map([last], |row| Ok((row.get(0)?, row.get(1).map(i64::unsigned_abs)?)))?
        .collect::<rusqlite::Result<_>>()?;
    tx.prepare_cached("UPDATE greenwave_event_counted SET last = ?1")?.execute([last])?;
    Ok(Relayed { events, more })
}

pub(super) fn ends(connection: &Connection) -> rusqlite::Result<Ends> {
    let last = last(connection)?;
    let first: Option<i64> =
        connection.query_row("SELECT min(position) FROM greenwave_event_log", [], |row| row.get(0))?;
    Ok(Ends { last, first: first.unwrap_or(last + 1) })
}

pub(super) fn look(connection: &Connection, position: i64) -> rusqlite::Result<Option<(i64, i64)>> {
    connection
        .prepare_cached(
            "SELECT position, logged_at FROM greenwave_event_log
             WHERE position >= ?1 ORDER BY position LIMIT 1",
        )?
        .query_row([position], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()
}

/// Whether the first event of the log is older than this.
pub(super) fn has_expired(connection: &Connection, age: i64) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(concat!(
            "SELECT coalesce((SELECT logged_at FROM greenwave_event_log ORDER BY position LIMIT 1) < ",
            now!(),
            " - ?1, 0)"
        ))?
        .query_row([age], |row| row.get(0))
}

pub(super) fn expire(
    tx: &Transaction<'_>,
    age: i64,
    hard_age: Option<i64>,
    limit: u32,
) -> rusqlite::Result<u64> {
    // Positions follow time, so the old ones are the first.
    let deleted = tx
        .prepare_cached(concat!(
            "DELETE FROM greenwave_event_log WHERE position <= (
                 SELECT max(position) FROM (
                     SELECT position, logged_at FROM greenwave_event_log ORDER BY position LIMIT ?3)
                 WHERE logged_at < ",
            now!(),
            " - ?1 AND position <= (
                     SELECT coalesce(min(position), 9223372036854775807) FROM (
                         SELECT position FROM greenwave_event_cursor
                         UNION ALL SELECT first - 1 FROM greenwave_event_range))
                    OR logged_at < ",
            now!(),
            " - ?2 AND position <= (
                     SELECT coalesce(min(first) - 1, 9223372036854775807) FROM greenwave_event_range
                     WHERE lease_until > ",
            now!(),
            "))"
        ))?
        .execute(params![age, hard_age, limit])?;
    Ok(deleted as u64)
}

/// Whether there is anything to take, which costs no lock.
pub(super) fn is_behind(connection: &Connection, name: &str) -> rusqlite::Result<bool> {
    let position: Option<i64> = connection
        .prepare_cached("SELECT position FROM greenwave_event_cursor WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()?;
    Ok(match position {
        Some(position) => position < last(connection)?,
        None => false,
    })
}

pub(super) fn take(tx: &Transaction<'_>, want: &Take) -> rusqlite::Result<Taken> {
    let name = &*want.subscription;
    let position: Option<i64> = tx
        .prepare_cached("SELECT position FROM greenwave_event_cursor WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()?;
    let last = last(tx)?;
    let Some(position) = position.filter(|position| *position < last) else { return Ok(Taken::default()) };
    if want.ordered
        && tx
            .prepare_cached(
                "SELECT 1 FROM greenwave_event_range
                 WHERE name = ?1 AND lease_id NOT IN (SELECT value FROM json_each(?2)) LIMIT 1",
            )?
            .exists([name, &json(&want.known)])?
    {
        return Ok(Taken::default());
    }
    let first = look(tx, position + 1)?.map_or(last, |(first, _)| first);
    let upto = last.min(first.saturating_add(WINDOW));
    let lease = next_lease(tx)?;
    let mut names = Names::new(&want.subscription);
    let mut deliveries = tx
        .prepare_cached(
            "SELECT position, event, id, version, key, payload, published_at, 1 FROM greenwave_event_log
             WHERE position > ?2 AND position <= ?3
               AND event IN (SELECT event FROM greenwave_event_subscription WHERE name = ?1)
             ORDER BY position LIMIT ?4",
        )?
        .query_map(params![name, position, upto, want.count], |row| {
            rows::delivery(row, Held::Range(lease), &mut names)
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    let full = deliveries.len() >= want.count as usize;
    let stop = deliveries.last().and_then(|last| last.position).filter(|_| full).unwrap_or(upto);
    tx.prepare_cached("UPDATE greenwave_event_cursor SET position = ?2 WHERE name = ?1")?
        .execute(params![name, stop])?;
    let mut aside = Vec::new();
    if want.ordered {
        let mut look = tx.prepare_cached(
            "SELECT 1 FROM greenwave_event_delivery WHERE subscription = ?1 AND key = ?2 LIMIT 1",
        )?;
        for delivery in &deliveries {
            if let (Some(key), Some(position)) = (&delivery.key, delivery.position)
                && look.exists([name, key])?
            {
                tx.prepare_cached(deliver!("WHERE l.position = ?2"))?.execute(params![name, position])?;
                aside.push(position);
            }
        }
        deliveries.retain(|delivery| delivery.position.is_none_or(|position| !aside.contains(&position)));
    }
    if !deliveries.is_empty() {
        tx.prepare_cached(concat!(
            "INSERT INTO greenwave_event_range (lease_id, name, first, last, aside, owner, lease_until)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7 + ",
            now!(),
            ")"
        ))?
        .execute(params![
            lease,
            name,
            position + 1,
            stop,
            json(&aside),
            want.owner.to_string(),
            millis(want.lease)
        ])?;
    }
    Ok(Taken { lease, deliveries, lag: (last - stop).unsigned_abs() })
}

pub(super) fn next_lease(tx: &Transaction<'_>) -> rusqlite::Result<i64> {
    tx.prepare_cached("UPDATE greenwave_event_lease SET last = last + 1 RETURNING last")?
        .query_row([], |row| row.get(0))
}

pub(super) fn renew(tx: &Transaction<'_>, ranges: &[(i64, i64)], lease: i64) -> rusqlite::Result<Vec<i64>> {
    let mut renew = tx.prepare_cached(concat!(
        "UPDATE greenwave_event_range SET first = max(first, ?2), lease_until = ?3 + ",
        now!(),
        " WHERE lease_id = ?1"
    ))?;
    let mut held = Vec::new();
    for (lease_id, first) in ranges {
        if renew.execute([*lease_id, *first, lease])? > 0 {
            held.push(*lease_id);
        }
    }
    Ok(held)
}

/// Ends a range; answers with its subscription's name.
pub(super) fn end(connection: &Connection, lease: i64) -> rusqlite::Result<Option<String>> {
    connection
        .prepare_cached("DELETE FROM greenwave_event_range WHERE lease_id = ?1 RETURNING name")?
        .query_row([lease], |row| row.get(0))
        .optional()
}

pub(super) fn set_aside(tx: &Transaction<'_>, lease: i64, aside: &[Aside]) -> rusqlite::Result<bool> {
    let range: Option<(String, String)> = tx
        .prepare_cached("SELECT name, aside FROM greenwave_event_range WHERE lease_id = ?1")?
        .query_row([lease], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((name, before)) = range else { return Ok(false) };
    let mut positions: Vec<i64> = serde_json::from_str(&before).unwrap_or_default();
    let before: HashSet<i64> = positions.iter().copied().collect();
    for Aside { position, attempts, fate } in aside {
        if before.contains(position) {
            continue;
        }
        positions.push(*position);
        let delivered =
            tx.prepare_cached(deliver!("WHERE l.position = ?2"))?.execute(params![name, position])?;
        let id = tx.last_insert_rowid();
        let (delay, error) = match fate {
            _ if delivered == 0 => continue,
            Fate::Ready => continue,
            Fate::Retry(delay, error) => (Some(millis(*delay)), error),
            Fate::Dead(error) => (None, error),
        };
        tx.prepare_cached(concat!(
            "UPDATE greenwave_event_delivery SET attempt = ?2, error = ?3, due_at = ?4 + ",
            now!(),
            ", errors = ",
            added_error!("?2", "?3"),
            " WHERE id = ?1"
        ))?
        .execute(params![id, attempts, error, delay])?;
        if matches!(fate, Fate::Dead(_)) {
            rows::bury(tx, id)?;
        }
    }
    tx.prepare_cached("UPDATE greenwave_event_range SET aside = ?2 WHERE lease_id = ?1")?
        .execute(params![lease, json(&positions)])?;
    Ok(true)
}

pub(super) fn split(tx: &Transaction<'_>, lease: i64, positions: &[i64]) -> rusqlite::Result<bool> {
    let Some(name) = end(tx, lease)? else { return Ok(false) };
    tx.prepare_cached(deliver!("WHERE l.position IN (SELECT value FROM json_each(?2)) ORDER BY l.position"))?
        .execute(params![name, json(positions)])?;
    Ok(true)
}

pub(super) fn any_expired_range(connection: &Connection) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(concat!(
            "SELECT EXISTS (SELECT 1 FROM greenwave_event_range WHERE lease_until <= ",
            now!(),
            ")"
        ))?
        .query_row([], |row| row.get(0))
}

/// Makes deliveries of what is left of ranges whose processes did not renew them.
pub(super) fn split_expired(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    let expired: Vec<(i64, String, i64, i64, String)> = tx
        .prepare_cached(concat!(
            "SELECT lease_id, name, first, last, aside FROM greenwave_event_range WHERE lease_until <= ",
            now!(),
            " ORDER BY lease_id LIMIT 10"
        ))?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (lease, name, first, last, aside) in expired {
        end(tx, lease)?;
        tx.prepare_cached(deliver!(
            "WHERE l.position BETWEEN ?2 AND ?3 AND l.position NOT IN (SELECT value FROM json_each(?4))
               AND l.event IN (SELECT event FROM greenwave_event_subscription WHERE name = ?1)
             ORDER BY l.position"
        ))?
        .execute(params![name, first, last, aside])?;
    }
    Ok(())
}

/// A list of positions, as a column or a parameter.
fn json(positions: &[i64]) -> String {
    let positions: Vec<String> = positions.iter().map(i64::to_string).collect();
    format!("[{}]", positions.join(","))
}
