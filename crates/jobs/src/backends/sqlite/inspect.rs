//! Inspection and its actions.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, Row, params};

use super::owner::Durability::{Lazy, Synced};
use super::owner::Handle;
use super::settle::{bury_unfailed, delete_dead, revived};
use super::{Sqlite, draw, now, now_ms, workflow};
use crate::backends::inspect::{Cancelled, Counted, InspectStore, Looked, MAX_SCAN, Observed, Table};
use crate::dead::{DeadReason, read_errors, time};
use crate::inspect::{JobDetails, JobFilter, JobState, JobSummary, json};
use crate::job::millis;
use crate::{Error, JobId};

/// How long a connection beside the owner's waits for a lock, which readers seldom meet.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The columns of a summary.
macro_rules! summary {
    (live) => {
        "id, queue, name, state, priority, key, failures, max_attempts, created_at AS pushed_ms,
        coalesce(lease_until, run_at) AS at_ms, NULL AS reason, errors ->> '$[#-1].error' AS error"
    };
    (dead) => {
        "id, queue, name, 5 AS state, priority, key, attempts AS failures, max_attempts, created_at AS pushed_ms,
        died_at AS at_ms, reason, errors ->> '$[#-1].error' AS error"
    };
    (done) => {
        "id, queue, name, 4 AS state, NULL AS priority, key, attempts - 1 AS failures, NULL AS max_attempts,
        pushed_at AS pushed_ms, completed_at AS at_ms, NULL AS reason, NULL AS error"
    };
}

/// Looks at a bounded number of rows from the newest down, of which it answers with those that match.
macro_rules! look {
    ($columns:expr, $all:literal, $table:literal, $state:literal) => {
        concat!(
            "SELECT ",
            $columns,
            " FROM (SELECT ",
            $all,
            " FROM ",
            $table,
            " WHERE id < ?1 AND id >= ?2 ORDER BY id DESC LIMIT ?8)
            WHERE (?3 IS NULL OR queue = ?3) AND (?4 IS NULL OR name = ?4) AND (?5 IS NULL OR key = ?5)
                AND ",
            $state,
            " ORDER BY id DESC LIMIT ?7"
        )
    };
}

/// The last row that a look saw, if there may be more.
macro_rules! floor {
    ($table:literal) => {
        concat!("SELECT id FROM ", $table, " WHERE id < ?1 AND id >= ?2 ORDER BY id DESC LIMIT 1 OFFSET ?3")
    };
}

impl InspectStore for Sqlite {
    async fn look(&self, table: Table, filter: &JobFilter) -> Result<Looked, Error> {
        let filter = filter.clone();
        self.owner.read(move |conn| look(conn, table, &filter)).await
    }

    async fn job(&self, id: JobId) -> Result<Option<JobDetails>, Error> {
        self.owner.read(move |conn| job(conn, id)).await
    }

    async fn cancel(&self, ids: Vec<i64>) -> Result<Vec<Cancelled>, Error> {
        let (cancelled, freed) = self.owner.write(Synced, move |conn| cancel(conn, &ids)).await?;
        self.wakeups.waiters.ended(cancelled.iter().map(|cancelled| cancelled.id));
        self.tell(freed);
        Ok(cancelled)
    }

    async fn revive(&self, ids: Vec<i64>) -> Result<u64, Error> {
        self.owner.write(Synced, move |conn| revive(conn, &ids)).await
    }

    async fn discard(&self, ids: Vec<i64>) -> Result<u64, Error> {
        let discard = move |conn: &Connection| {
            const FORGET: &str =
                "DELETE FROM greenwave_jobs_dependency WHERE before_id = ?1 OR after_id = ?1";
            let mut delete = conn.prepare_cached("DELETE FROM greenwave_jobs_dead WHERE id = ?1")?;
            let mut forget = conn.prepare_cached(FORGET)?;
            let mut discarded = 0;
            for id in ids {
                if delete.execute([id])? == 1 {
                    discarded += 1;
                    forget.execute([id])?;
                }
            }
            Ok(discarded)
        };
        self.owner.write(Synced, discard).await
    }

    async fn count(&self) -> Result<Vec<Counted>, Error> {
        beside(&self.owner, count).await
    }
}

fn look(conn: &Connection, table: Table, filter: &JobFilter) -> rusqlite::Result<Looked> {
    const LIVE: [&str; 2] = [
        look!(summary!(live), "*", "greenwave_jobs", "(?6 IS NULL OR state = ?6)"),
        floor!("greenwave_jobs"),
    ];
    const DEAD: [&str; 2] = [
        look!(summary!(dead), "*", "greenwave_jobs_dead", "coalesce(?6, 5) = 5"),
        floor!("greenwave_jobs_dead"),
    ];
    const DONE: [&str; 2] = [
        look!(summary!(done), "*, NULL AS key", "greenwave_jobs_done", "coalesce(?6, 4) = 4"),
        floor!("greenwave_jobs_done"),
    ];
    let [look, floor] = match table {
        Table::Live => LIVE,
        Table::Dead => DEAD,
        Table::Done => DONE,
    };
    let from = filter.from.map_or(i64::MIN, JobId::get);
    let below = filter.below();
    let JobFilter { queue, name, key, .. } = filter;
    let limit = i64::try_from(filter.limit).unwrap_or(i64::MAX);
    let state = filter.state.map(JobState::code);
    let jobs: Vec<JobSummary> = conn
        .prepare_cached(look)?
        .query_map(params![below, from, queue, name, key, state, limit, MAX_SCAN], summary)?
        .collect::<rusqlite::Result<_>>()?;
    let floor = match jobs.last() {
        Some(last) if jobs.len() >= filter.limit => Some(last.id.get()),
        _ => {
            let mut floor = conn.prepare_cached(floor)?;
            floor.query_row([below, from, MAX_SCAN - 1], |row| row.get(0)).optional()?
        }
    };
    Ok(Looked { jobs, floor })
}

fn summary(row: &Row<'_>) -> rusqlite::Result<JobSummary> {
    let reason: Option<String> = row.get("reason")?;
    Ok(JobSummary {
        id: row.get::<_, i64>("id")?.into(),
        queue: row.get("queue")?,
        name: row.get("name")?,
        state: JobState::from_code(row.get("state")?),
        priority: row.get("priority")?,
        key: row.get("key")?,
        failures: row.get("failures")?,
        max_attempts: row.get("max_attempts")?,
        pushed_at: time(row.get("pushed_ms")?),
        at: time(row.get("at_ms")?),
        reason: reason.map(|reason| DeadReason::from_code(&reason)),
        error: row.get("error")?,
    })
}

fn details(row: &Row<'_>) -> rusqlite::Result<JobDetails> {
    let millis = |ms: i64| Duration::from_millis(ms.unsigned_abs());
    Ok(JobDetails {
        summary: summary(row)?,
        version: row.get("version")?,
        payload: json(row.get("payload")?),
        errors: read_errors(&row.get::<_, String>("errors")?),
        crashes: row.get("crashes")?,
        progress: row.get::<_, Option<String>>("progress")?.map(json),
        result: row.get::<_, Option<String>>("result")?.map(json),
        lease: row.get("lease_id")?,
        pending: row.get("pending")?,
        awaited: row.get("awaited")?,
        timeout: row.get::<_, Option<i64>>("timeout_ms")?.map(millis),
        keep: millis(row.get("keep_ms")?),
        trace: row.get("trace")?,
    })
}

fn job(conn: &Connection, id: JobId) -> rusqlite::Result<Option<JobDetails>> {
    const LIVE: &str = concat!(
        "SELECT ",
        summary!(live),
        ", version, payload, errors, crashes, progress, NULL AS result, lease_id, pending, awaited, timeout_ms, keep_ms,
        trace FROM greenwave_jobs WHERE id = ?1"
    );
    const DEAD: &str = concat!(
        "SELECT ",
        summary!(dead),
        ", version, payload, errors, 0 AS crashes, progress, NULL AS result, NULL AS lease_id, 0 AS pending, awaited,
        timeout_ms, keep_ms, trace FROM greenwave_jobs_dead WHERE id = ?1"
    );
    const DONE: &str = concat!(
        "SELECT ",
        summary!(done),
        ", version, payload, '[]' AS errors, 0 AS crashes, NULL AS progress, result, NULL AS lease_id, 0 AS pending,
        false AS awaited, NULL AS timeout_ms, expires_at - completed_at AS keep_ms, NULL AS trace
        FROM (SELECT *, NULL AS key FROM greenwave_jobs_done WHERE id = ?1)"
    );
    for sql in [LIVE, DEAD, DONE] {
        if let Some(job) = conn.prepare_cached(sql)?.query_row([id.get()], details).optional()? {
            return Ok(Some(job));
        }
    }
    Ok(None)
}

/// Answers too which queues have something new.
fn cancel(conn: &Connection, ids: &[i64]) -> rusqlite::Result<(Vec<Cancelled>, Vec<String>)> {
    let mut found = conn.prepare_cached("SELECT state = 2, awaited FROM greenwave_jobs WHERE id = ?1")?;
    let (mut cancelled, mut awaited) = (Vec::new(), Vec::new());
    for id in ids {
        let found = found.query_row([id], |row| Ok((row.get(0)?, row.get::<_, bool>(1)?))).optional()?;
        if let Some((ran, is_awaited)) = found {
            bury_unfailed(conn, *id, DeadReason::Cancelled)?;
            cancelled.push(Cancelled { id: (*id).into(), ran });
            awaited.extend(is_awaited.then_some(*id));
        }
    }
    Ok((cancelled, workflow::died(conn, &awaited)?))
}

/// Brings dead jobs back, and answers how many there were.
pub(super) fn revive(conn: &Connection, ids: &[i64]) -> rusqlite::Result<u64> {
    let mut revive = conn.prepare_cached(revived!("0", "0"))?;
    let (mut revived, mut awaited) = (0, Vec::new());
    let positions = draw(conn, ids.len())?;
    for (id, position) in ids.iter().zip(positions) {
        if revive.execute([*id, position])? == 1 {
            revived += 1;
            awaited.extend(delete_dead(conn, *id)?.then_some(*id));
        }
    }
    workflow::revived(conn, &awaited)?;
    Ok(revived)
}

/// By state: how many jobs, and since when the first of them is ready.
type States = BTreeMap<i16, (u64, i64)>;

/// Summed up here: SQLite would sort a row for each job.
fn count(conn: &Connection) -> rusqlite::Result<Vec<Counted>> {
    const ROWS: &str = "SELECT queue, name, state, run_at FROM greenwave_jobs
        UNION ALL SELECT queue, name, 5, 0 FROM greenwave_jobs_dead";
    let now: i64 = now_ms(conn)?;
    let mut queues: HashMap<String, HashMap<String, States>> = HashMap::new();
    let mut statement = conn.prepare_cached(ROWS)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (queue, name) = (row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str()?);
        let (state, run_at): (i16, i64) = (row.get(2)?, row.get(3)?);
        let states = match queues.get_mut(queue).and_then(|names| names.get_mut(name)) {
            Some(states) => states,
            None => queues.entry(queue.to_owned()).or_default().entry(name.to_owned()).or_default(),
        };
        let (jobs, oldest) = states.entry(state).or_insert((0, i64::MAX));
        *jobs += 1;
        *oldest = run_at.min(*oldest);
    }
    let mut counted = Vec::new();
    for (queue, names) in queues {
        for (name, states) in names {
            counted.extend(states.into_iter().map(|(state, (jobs, oldest))| Counted {
                queue: queue.clone(),
                name: name.clone(),
                state: JobState::from_code(state),
                jobs,
                oldest: (state == JobState::Ready.code()).then(|| age(now - oldest)),
            }));
        }
    }
    Ok(counted)
}

/// A clock that is set back makes no negative age.
fn age(ms: i64) -> Duration {
    Duration::from_millis(ms.try_into().unwrap_or(0))
}

/// Reads on a connection of its own, so that nobody waits while much is read; what has no file, where everybody does.
async fn beside<T: Send + 'static>(
    owner: &Handle,
    read: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let path = owner.read(|conn| Ok(conn.path().map(PathBuf::from))).await?;
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else { return owner.read(read).await };
    let read = move || {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut conn = Connection::open_with_flags(path, flags)?;
        conn.busy_timeout(BUSY_TIMEOUT)?;
        let tx = conn.transaction()?;
        read(&tx)
    };
    tokio::task::spawn_blocking(read).await.map_err(|_| Error::Closed)?.map_err(Error::Sqlite)
}

/// Claims the queues that nobody else observes, and measures them.
pub(super) async fn observe(
    owner: &Handle,
    holder: i64,
    queues: &[&str],
    hold: Duration,
) -> Result<Vec<Observed>, Error> {
    let queues: Vec<String> = queues.iter().map(|queue| (*queue).to_owned()).collect();
    let wanted = queues.clone();
    let look = move |conn: &Connection| Ok((!may_claim(conn, holder, &wanted)?).then(Vec::new));
    let claimed = owner.look_then_write(Lazy, look, move |conn| claim(conn, holder, &queues, hold)).await?;
    if claimed.is_empty() {
        return Ok(Vec::new());
    }
    beside(owner, move |conn| measure(conn, &claimed)).await
}

/// Claims those of the queues that nobody else observes.
fn claim(conn: &Connection, holder: i64, queues: &[String], hold: Duration) -> rusqlite::Result<Vec<String>> {
    const CLAIM: &str = concat!(
        "INSERT INTO greenwave_jobs_observers AS o (queue, holder, until) VALUES (?1, ?2, ",
        now!(),
        " + ?3) ON CONFLICT (queue) DO UPDATE SET holder = excluded.holder, until = excluded.until
            WHERE o.holder = excluded.holder OR o.until < ",
        now!()
    );
    let mut claim = conn.prepare_cached(CLAIM)?;
    let mut claimed = Vec::new();
    for queue in queues {
        if claim.execute(params![queue, holder, millis(hold)])? == 1 {
            claimed.push(queue.clone());
        }
    }
    Ok(claimed)
}

/// True unless others observe all of the queues.
fn may_claim(conn: &Connection, holder: i64, queues: &[String]) -> rusqlite::Result<bool> {
    const OTHERS: &str = concat!(
        "SELECT EXISTS (SELECT 1 FROM greenwave_jobs_observers WHERE queue = ?1 AND holder <> ?2 AND until >= ",
        now!(),
        ")"
    );
    let mut others = conn.prepare_cached(OTHERS)?;
    for queue in queues {
        if !others.query_row(params![queue, holder], |row| row.get::<_, bool>(0))? {
            return Ok(true);
        }
    }
    Ok(false)
}

fn measure(conn: &Connection, queues: &[String]) -> rusqlite::Result<Vec<Observed>> {
    // The head of each priority is the oldest of it; of jobs with keys, which have no such order, ten thousand are asked.
    const MEASURE: &str = concat!(
        "WITH RECURSIVE priorities (p) AS (SELECT 0 UNION ALL SELECT p + 1 FROM priorities WHERE p < 9)
        SELECT (SELECT count(*) FROM greenwave_jobs WHERE state = 0 AND key IS NULL AND queue = ?1)
                + (SELECT count(*) FROM greenwave_jobs WHERE state = 0 AND key IS NOT NULL AND queue = ?1),
            (SELECT count(*) FROM greenwave_jobs_dead WHERE queue = ?1), ",
        now!(),
        " - (SELECT min(run_at) FROM (
                SELECT (SELECT run_at FROM greenwave_jobs
                    WHERE state = 0 AND key IS NULL AND queue = ?1 AND priority = p
                    ORDER BY position LIMIT 1) AS run_at FROM priorities
                UNION ALL SELECT run_at FROM (SELECT run_at FROM greenwave_jobs
                    WHERE state = 0 AND key IS NOT NULL AND queue = ?1 LIMIT 10000)))"
    );
    let mut measure = conn.prepare_cached(MEASURE)?;
    let measure = |queue: &String| {
        measure.query_row([queue], |row| {
            Ok(Observed {
                queue: queue.clone(),
                ready: row.get::<_, i64>(0)?.unsigned_abs(),
                dead: row.get::<_, i64>(1)?.unsigned_abs(),
                oldest: row.get::<_, Option<i64>>(2)?.map(age),
            })
        })
    };
    queues.iter().map(measure).collect()
}
