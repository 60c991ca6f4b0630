//! The days of `greenwave_jobs_done`: made ahead, and dropped whole when they are over.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{Days, NaiveDate};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// So many days have a partition. What is kept for longer goes to the default one.
const AHEAD: u64 = 35;

/// How often a process looks.
const INTERVAL: Duration = Duration::from_secs(600);

/// How many rows of the default partition one look deletes; the next one follows soon if there may be more.
const BATCH: i64 = 10_000;
const SOON: Duration = Duration::from_secs(1);

/// "greendon" in ASCII; whoever changes partitions holds this advisory lock.
const LOCK: i64 = 0x6772_6565_6e64_6f6e;

/// Before the partition's name stands this, and then its day as 20261231.
const PREFIX: &str = "greenwave_jobs_done_";

/// When this process looks next.
#[derive(Debug, Default)]
pub(super) struct Cleaning(Mutex<Option<Instant>>);

impl Cleaning {
    /// True once an interval.
    pub(super) fn is_due(&self) -> bool {
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let due = next.is_none_or(|next| next <= now);
        if due {
            *next = Some(now + INTERVAL);
        }
        due
    }

    fn again_soon(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + SOON);
    }

    /// Makes the days ahead, drops those that are over, and deletes what has expired of the default partition. Only
    /// one process does so at a time.
    pub(super) async fn clean(&self, conn: &mut PgConnection) -> Result<(), sqlx::Error> {
        const DELETE: &str = "
            DELETE FROM greenwave_jobs_done_later WHERE ctid = ANY(ARRAY(
                SELECT ctid FROM greenwave_jobs_done_later WHERE expires_at < now() ORDER BY expires_at LIMIT $1))";
        let deleted = sqlx::query(DELETE).bind(BATCH).execute(&mut *conn).await?.rows_affected();
        if deleted == BATCH.unsigned_abs() {
            self.again_soon();
        }
        let mut tx = conn.begin().await?;
        if !sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)").bind(LOCK).fetch_one(&mut *tx).await? {
            return tx.rollback().await;
        }
        // Whoever waits for this lock has all who come after it wait too, so better try again later.
        sqlx::query("SET LOCAL lock_timeout = '200ms'").execute(&mut *tx).await?;
        let changed = partition(&mut tx).await;
        match changed {
            Ok(()) => tx.commit().await,
            Err(error) => {
                tx.rollback().await?;
                if is_busy(&error) {
                    tracing::debug!("the kept jobs are in use; their partitions wait");
                    self.again_soon();
                    return Ok(());
                }
                Err(error)
            }
        }
    }
}

async fn partition(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    const DAYS: &str = "
        SELECT (now() AT TIME ZONE 'UTC')::date,
            ARRAY(SELECT relname::text FROM pg_inherits JOIN pg_class ON oid = inhrelid
                WHERE inhparent = 'greenwave_jobs_done'::regclass),
            ARRAY(SELECT DISTINCT (expires_at AT TIME ZONE 'UTC')::date FROM greenwave_jobs_done_later
                WHERE expires_at < now() + ($1 + 1) * interval '1 day')";
    let (today, names, taken): (NaiveDate, Vec<String>, Vec<NaiveDate>) =
        sqlx::query_as(DAYS).bind(i32::try_from(AHEAD).unwrap_or(i32::MAX)).fetch_one(&mut *conn).await?;
    let days: Vec<NaiveDate> = names.iter().filter_map(|name| day(name)).collect();
    for over in days.iter().filter(|day| **day < today) {
        let drop = format!("DROP TABLE {}", name(*over));
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut *conn).await?;
    }
    // A day of which the default partition has rows already stays there.
    for ahead in (0..=AHEAD).filter_map(|ahead| today.checked_add_days(Days::new(ahead))) {
        let Some(end) = ahead.succ_opt() else { continue };
        if !days.contains(&ahead) && !taken.contains(&ahead) {
            let create = format!(
                "CREATE TABLE IF NOT EXISTS {} PARTITION OF greenwave_jobs_done
                 FOR VALUES FROM ('{ahead} 00:00:00+00') TO ('{end} 00:00:00+00')",
                name(ahead)
            );
            sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut *conn).await?;
        }
    }
    Ok(())
}

fn name(day: NaiveDate) -> String {
    format!("{PREFIX}{}", day.format("%Y%m%d"))
}

fn day(name: &str) -> Option<NaiveDate> {
    NaiveDate::parse_from_str(name.strip_prefix(PREFIX)?, "%Y%m%d").ok()
}

/// Somebody holds a lock, or has been quicker.
pub(super) fn is_busy(error: &sqlx::Error) -> bool {
    const LOCK_NOT_AVAILABLE: &str = "55P03";
    const DEADLOCK: &str = "40P01";
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| [LOCK_NOT_AVAILABLE, DEADLOCK].contains(&code.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_named_after_its_day() {
        let date = NaiveDate::from_ymd_opt(2026, 3, 9).unwrap();
        assert_eq!(name(date), "greenwave_jobs_done_20260309");
        assert_eq!(day(&name(date)), Some(date));
        assert_eq!(day("greenwave_jobs_done_later"), None);
    }
}
