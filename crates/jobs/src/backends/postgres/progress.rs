use sqlx::PgConnection;

use crate::backends::Lease;

/// Stores how far jobs have come, and answers how many it still found under their lease.
pub(super) async fn report(
    conn: &mut PgConnection,
    mut progress: Vec<(Lease, String)>,
) -> Result<usize, sqlx::Error> {
    const REPORT: &str = "
        UPDATE greenwave_jobs j SET progress = report.progress::json
        FROM unnest($1::bigint[], $2::bigint[], $3::text[]) AS report (id, lease_id, progress)
        WHERE j.id = ANY($1) AND j.id = report.id AND j.lease_id = report.lease_id AND j.state = 2";
    // In one order, so that statements which run at once do not wait for each other in a ring.
    progress.sort_unstable_by_key(|(lease, _)| *lease);
    let done = sqlx::query(REPORT)
        .bind(progress.iter().map(|(lease, _)| lease.job.get()).collect::<Vec<_>>())
        .bind(progress.iter().map(|(lease, _)| lease.id).collect::<Vec<_>>())
        .bind(progress.iter().map(|(_, progress)| progress.as_str()).collect::<Vec<_>>())
        .execute(conn)
        .await?;
    Ok(usize::try_from(done.rows_affected()).unwrap_or(usize::MAX))
}
