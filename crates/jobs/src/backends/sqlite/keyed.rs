//! Fetching by turns and within limits. SQLite's writer lock makes the counts exact.

use std::collections::HashMap;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, params};

use super::fetch::{self, leased, take};
use super::limits::{Rule, rule};
use super::{draw, now_ms};
use crate::backends::LeasedJob;
use crate::job::millis;
use crate::limits::{QueueLimits, Rate};

/// Jobs, and in how long to ask again if a limit holds back what is ready.
pub(super) type Fetched = (Vec<LeasedJob>, Option<Duration>);

/// Leases ready jobs of a queue as it has to be done there.
pub(super) fn fetch(
    conn: &Connection,
    queue: &str,
    limit: usize,
    lease: Duration,
) -> rusqlite::Result<Fetched> {
    let Rule { paused, limits } = rule(conn, queue)?;
    if paused {
        return Ok((Vec::new(), None));
    }
    if !limits.hold_back() && next_key(conn, queue, "")?.is_none() {
        return Ok((fetch::fetch(conn, queue, limit, lease)?, None));
    }
    Fair::begin(conn, queue, limits, lease)?.fetch(limit)
}

/// The first key of a ready job after this one: one step in the index, whatever stands between them.
fn next_key(conn: &Connection, queue: &str, after: &str) -> rusqlite::Result<Option<String>> {
    const NEXT: &str = "
        SELECT key FROM greenwave_jobs INDEXED BY greenwave_jobs_keyed
        WHERE state = 0 AND key IS NOT NULL AND queue = ?1 AND key > ?2 ORDER BY key LIMIT 1";
    conn.prepare_cached(NEXT)?.query_row([queue, after], |row| row.get(0)).optional()
}

/// One fetch.
struct Fair<'a> {
    conn: &'a Connection,
    queue: &'a str,
    limits: QueueLimits,
    now: i64,
    until: i64,
    running: u32,
    running_keys: HashMap<String, u32>,
    /// How many more may run of the names that have a limit.
    name_room: HashMap<String, u32>,
    /// Empty if none was ever served.
    last_key: String,
    tokens: Option<f64>,
}

/// The jobs of a key, or those without one.
type Lane = Option<String>;

/// How far a fetch has come with the keys.
#[derive(Default)]
struct Cycle {
    start: String,
    after: String,
    wrapped: bool,
    over: bool,
}

impl<'a> Fair<'a> {
    fn begin(
        conn: &'a Connection,
        queue: &'a str,
        limits: QueueLimits,
        lease: Duration,
    ) -> rusqlite::Result<Self> {
        const TURN: &str = "SELECT last_key, tokens, refilled_at FROM greenwave_jobs_turns WHERE queue = ?1";
        let now = now_ms(conn)?;
        let turn: Option<(String, Option<f64>, Option<i64>)> = conn
            .prepare_cached(TURN)?
            .query_row([queue], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        let (last_key, tokens, refilled) = turn.unwrap_or_default();
        let tokens = limits.rate.map(|rate| {
            let full = f64::from(rate.jobs);
            let elapsed = refilled.map_or(0, |refilled| now.saturating_sub(refilled).max(0)) as f64;
            tokens.map_or(full, |tokens| full.min(tokens + elapsed * per_ms(rate)))
        });
        let until = now.saturating_add(millis(lease));
        let (running, running_keys, name_room) = Default::default();
        let mut fair =
            Fair { conn, queue, limits, now, until, running, running_keys, name_room, last_key, tokens };
        fair.count_running()?;
        Ok(fair)
    }

    fn count_running(&mut self) -> rusqlite::Result<()> {
        // A lease that has ended is no longer run: its worker has dropped the job, or is gone.
        const RUNNING: &str = "
            SELECT key, name, count(*) FROM greenwave_jobs INDEXED BY greenwave_jobs_leased
            WHERE state = 2 AND lease_until > ?2 AND queue = ?1 GROUP BY key, name";
        let QueueLimits { max_running, max_running_per_key, max_running_per_job, .. } = &self.limits;
        if max_running.is_none() && max_running_per_key.is_none() && max_running_per_job.is_empty() {
            return Ok(());
        }
        self.name_room = max_running_per_job.iter().map(|(name, max)| (name.clone(), *max)).collect();
        let mut running = self.conn.prepare_cached(RUNNING)?;
        let mut rows = running.query(params![self.queue, self.now])?;
        while let Some(row) = rows.next()? {
            let (key, name, jobs): (Option<String>, String, u32) = (row.get(0)?, row.get(1)?, row.get(2)?);
            self.running = self.running.saturating_add(jobs);
            if let Some(room) = self.name_room.get_mut(&name) {
                *room = room.saturating_sub(jobs);
            }
            if let Some(key) = key {
                *self.running_keys.entry(key).or_default() += jobs;
            }
        }
        Ok(())
    }

    fn fetch(mut self, limit: usize) -> rusqlite::Result<Fetched> {
        let room =
            self.limits.max_running.map_or(limit, |max| limit.min(size(max.saturating_sub(self.running))));
        let room = self.tokens.map_or(room, |tokens| room.min(tokens as usize));
        let jobs = if room > 0 { self.lease(room)? } else { Vec::new() };
        let filled = jobs.len() == room;
        if let Some(tokens) = &mut self.tokens {
            *tokens -= jobs.len() as f64;
        }
        // When no job is left it does not matter whose turn it is.
        if !jobs.is_empty() && (filled || self.tokens.is_some()) {
            const SET: &str = "
                INSERT INTO greenwave_jobs_turns (queue, last_key, tokens, refilled_at) VALUES (?1, ?2, ?3, ?4)
                ON CONFLICT (queue) DO UPDATE SET last_key = excluded.last_key, tokens = excluded.tokens,
                    refilled_at = excluded.refilled_at";
            let refilled = self.tokens.map(|_| self.now);
            let turn = params![self.queue, self.last_key, self.tokens, refilled];
            self.conn.prepare_cached(SET)?.execute(turn)?;
        }
        let empty = self.tokens.zip(self.limits.rate).filter(|(tokens, _)| *tokens < 1.0);
        // Not for each token of a fast bucket: a fetch shall be worth its while.
        let again = empty.map(|(tokens, rate)| ((1.0 - tokens) / per_ms(rate)).ceil().max(10.0));
        Ok((jobs, again.map(|ms| Duration::from_millis(ms as u64))))
    }

    fn lease(&mut self, mut room: usize) -> rusqlite::Result<Vec<LeasedJob>> {
        let lease = draw(self.conn, 1)?.start;
        let mut cycle =
            Cycle { start: self.last_key.clone(), after: self.last_key.clone(), ..Cycle::default() };
        let mut jobs = Vec::new();
        while room > 0 && !cycle.over {
            let lanes = self.lanes(&mut cycle, room)?;
            let taken = self.lease_of(lanes, room, lease)?;
            room -= taken.len();
            jobs.extend(taken);
        }
        Ok(jobs)
    }

    /// Rounds in which every lane has the same share; what some leave over is for the others.
    fn lease_of(
        &mut self,
        mut lanes: Vec<Lane>,
        mut room: usize,
        lease: i64,
    ) -> rusqlite::Result<Vec<LeasedJob>> {
        let mut jobs = Vec::new();
        while room > 0 && !lanes.is_empty() {
            let share = room.div_ceil(lanes.len());
            let blocked: Vec<&str> = self
                .name_room
                .iter()
                .filter(|(_, room)| **room == 0)
                .map(|(name, _)| name.as_str())
                .collect();
            let blocked = serde_json::to_string(&blocked)
                .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
            let mut offered = Vec::with_capacity(lanes.len());
            let mut more = Vec::new();
            for lane in lanes {
                let ready = self.ready(&lane, share, &blocked, lease)?;
                if ready.len() == share {
                    more.push(lane.clone());
                }
                offered.push((lane, ready.into_iter()));
            }
            let taken = self.take_turns(&mut offered, share, room);
            if taken.is_empty() {
                break;
            }
            take(self.conn, &taken, self.until)?;
            room -= taken.len();
            jobs.extend(taken);
            lanes = more;
        }
        Ok(jobs)
    }

    /// The next lanes: the keys after the one that was served last, then the jobs without a key, then the other keys;
    /// as many as there is room, for more are only asked for if these do not fill it.
    fn lanes(&self, cycle: &mut Cycle, room: usize) -> rusqlite::Result<Vec<Lane>> {
        let mut lanes = Vec::new();
        while !cycle.over && lanes.len() < room {
            match next_key(self.conn, self.queue, &cycle.after)? {
                Some(key) if !cycle.wrapped || key <= cycle.start => {
                    if self.key_room(&key) > 0 {
                        lanes.push(Some(key.clone()));
                    }
                    cycle.after = key;
                }
                _ if cycle.wrapped => cycle.over = true,
                _ => {
                    lanes.push(None);
                    cycle.wrapped = true;
                    cycle.over = cycle.start.is_empty();
                    cycle.after.clear();
                }
            }
        }
        Ok(lanes)
    }

    /// How many more of a key may run.
    fn key_room(&self, key: &str) -> usize {
        let running = self.running_keys.get(key).copied().unwrap_or(0);
        self.limits.max_running_per_key.map_or(usize::MAX, |max| size(max.saturating_sub(running)))
    }

    /// The next jobs of a lane, at most its share.
    fn ready(
        &self,
        lane: &Lane,
        share: usize,
        blocked: &str,
        lease: i64,
    ) -> rusqlite::Result<Vec<LeasedJob>> {
        macro_rules! ready {
            ($index:literal, $key:literal) => {
                concat!(
                    "SELECT ",
                    fetch::columns!(),
                    " FROM greenwave_jobs INDEXED BY ",
                    $index,
                    " WHERE state = 0 AND queue = ?1 AND ",
                    $key,
                    " AND name NOT IN (SELECT value FROM json_each(?3)) ORDER BY priority, position LIMIT ?2"
                )
            };
        }
        const KEYLESS: &str = ready!("greenwave_jobs_ready", "key IS NULL");
        const KEYED: &str = ready!("greenwave_jobs_keyed", "key IS NOT NULL AND key = ?4");
        let read = |row: &rusqlite::Row<'_>| leased(row, lease, self.now);
        match lane {
            None => {
                let limit = i64::try_from(share).unwrap_or(i64::MAX);
                let mut ready = self.conn.prepare_cached(KEYLESS)?;
                ready.query_map(params![self.queue, limit, blocked], read)?.collect()
            }
            Some(key) => {
                let limit = i64::try_from(share.min(self.key_room(key))).unwrap_or(i64::MAX);
                let mut ready = self.conn.prepare_cached(KEYED)?;
                ready.query_map(params![self.queue, limit, blocked, key], read)?.collect()
            }
        }
    }

    /// One job of each lane, then the second of each, and so on.
    fn take_turns(
        &mut self,
        offered: &mut [(Lane, std::vec::IntoIter<LeasedJob>)],
        share: usize,
        room: usize,
    ) -> Vec<LeasedJob> {
        let mut taken = Vec::new();
        for _ in 0..share {
            for (lane, ready) in offered.iter_mut() {
                if taken.len() == room {
                    return taken;
                }
                let Some(job) = ready.next() else { continue };
                match self.name_room.get_mut(&job.name) {
                    Some(0) => continue,
                    Some(room) => *room -= 1,
                    None => {}
                }
                self.last_key = lane.clone().unwrap_or_default();
                if let Some(key) = lane {
                    *self.running_keys.entry(key.clone()).or_default() += 1;
                }
                taken.push(job);
            }
        }
        taken
    }
}

fn per_ms(rate: Rate) -> f64 {
    f64::from(rate.jobs) / millis(rate.per) as f64
}

fn size(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
