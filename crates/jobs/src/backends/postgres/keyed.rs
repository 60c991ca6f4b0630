use std::time::Duration;

use sqlx::{PgConnection, Row};

use super::fetch::read;
use super::{Exchanged, Lease, Want};
use crate::job::millis;

/// Completes jobs, and leases ready ones of a queue as its limits allow, its keys by turns: one call of a function that
/// the migration made, which takes the queue's lock and then sees all that was leased before.
pub(super) async fn exchange(
    conn: &mut PgConnection,
    done: &[Lease],
    Want { queue, limit, lease }: Want<'_>,
) -> Result<Exchanged, sqlx::Error> {
    // The columns of the plain exchange, and two more.
    const FETCH: &str = "
        SELECT completed, clock_timestamp(), (job).id, (job).lease_id, (job).name, (job).version, (job).payload,
            (job).failures, (job).max_attempts, (job).timeout_ms, (job).run_at, (job).trace, (job).awaited,
            (job).keep_ms > 0, (job).priority, (job).position, (job).crashes, (job).scheduled_for,
            turn, again_ms
        FROM greenwave_jobs_fetch($1, $2, $3, $4, $5)";
    let (jobs, leases): (Vec<i64>, Vec<i64>) = done.iter().map(|lease| (lease.job.get(), lease.id)).unzip();
    let rows = sqlx::query(FETCH)
        .bind(queue)
        .bind(i32::try_from(limit).unwrap_or(i32::MAX))
        .bind(millis(lease))
        .bind(jobs)
        .bind(leases)
        .fetch_all(conn)
        .await?;
    let mut exchanged = Exchanged::default();
    let mut taken = Vec::with_capacity(rows.len());
    for row in &rows {
        match read(row)? {
            Some((_, job)) => taken.push((row.try_get::<i64, _>("turn")?, job)),
            None => {
                exchanged.completed = usize::try_from(row.try_get::<i64, _>("completed")?).unwrap_or(0);
                let again: Option<i64> = row.try_get("again_ms")?;
                exchanged.again = again.map(|ms| Duration::from_millis(ms.unsigned_abs()));
            }
        }
    }
    taken.sort_unstable_by_key(|(turn, _)| *turn);
    exchanged.jobs = taken.into_iter().map(|(_, job)| job).collect();
    Ok(exchanged)
}
