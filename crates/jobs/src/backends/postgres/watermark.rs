//! Below which position, and before which time, a queue has nothing any more, and never will.
//!
//! Rows that are done stay in the indexes until no snapshot anywhere can see them, and so each look at the front of an
//! index wades through all of them. A look that begins where the last one found something does not. But transactions
//! commit out of order: what was drawn early may appear late. So nothing is skipped that a transaction may still hold:
//! whoever draws a position holds the table's row lock from before the draw to the end of its transaction, and
//! `pg_locks` shows all of those. One that was not there when the sequence stood at `p` has drawn only what comes
//! after `p`. In the same way times are never set into the past, so it has set only later ones.
//!
//! A snapshot that only reads holds no such lock, and delays nothing. A transaction that has pushed, and stays open,
//! holds the marks where it began.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};

/// The ten priorities.
pub(super) const PRIORITIES: usize = 10;

/// A queue is swept after so many jobs, for so many dead entries are then at its front.
const SWEEP_AFTER: usize = 2000;

/// Of the time between two sweeps, one may take this part.
const SWEEP_SHARE: u32 = 20;

/// So often nothing is skipped, in case somebody has set a position, a time or the sequence by hand.
const FULL_LOOK: Duration = Duration::from_secs(60);

/// Reads how far the queue is, and then (hence LATERAL) who may have drawn and not ended. `now` keeps PostgreSQL from
/// merging the inner queries: it is volatile.
macro_rules! look {
    ($columns:literal) => {
        concat!(
            "SELECT at.position, at.now, held.holders, ",
            $columns,
            " FROM (SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS position, clock_timestamp() AS now
                  FROM greenwave_jobs_position) AS at
            CROSS JOIN LATERAL (
                SELECT coalesce(array_agg(virtualtransaction), '{}') AS holders FROM pg_locks
                WHERE locktype = 'relation' AND relation = 'greenwave_jobs'::regclass
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND mode = 'RowExclusiveLock' AND granted AND at.now IS NOT NULL) AS held"
        )
    };
}
pub(super) use look;

/// How far the position sequence and the database's clock are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) position: i64,
    pub(super) time: DateTime<Utc>,
}

impl Mark {
    const START: Mark = Mark { position: 0, time: DateTime::UNIX_EPOCH };

    fn min(self, other: Mark) -> Mark {
        Mark { position: self.position.min(other.position), time: self.time.min(other.time) }
    }

    fn is_before(self, other: Mark) -> bool {
        self.position < other.position || self.time < other.time
    }
}

/// What one session knows.
#[derive(Debug)]
pub(super) struct Watermark {
    last: Option<Mark>,
    /// Who held the lock at the last look, and the mark after which all of its doings are.
    holders: HashMap<String, Mark>,
    settled: Mark,
    queues: HashMap<String, Floors>,
    /// Nothing scheduled is due before it.
    pub(super) due_from: DateTime<Utc>,
    /// No lease ends before it.
    pub(super) leased_from: DateTime<Utc>,
    full_look: Instant,
}

/// Where a queue's ready jobs begin.
#[derive(Debug)]
struct Floors {
    positions: [i64; PRIORITIES],
    fetched: usize,
    next_sweep: Instant,
    full_look: Instant,
}

impl Default for Floors {
    fn default() -> Self {
        let now = Instant::now();
        Floors { positions: [0; PRIORITIES], fetched: 0, next_sweep: now, full_look: now + FULL_LOOK }
    }
}

impl Default for Watermark {
    fn default() -> Self {
        Watermark {
            last: None,
            holders: HashMap::new(),
            settled: Mark::START,
            queues: HashMap::new(),
            due_from: DateTime::UNIX_EPOCH,
            leased_from: DateTime::UNIX_EPOCH,
            full_look: Instant::now() + FULL_LOOK,
        }
    }
}

impl Watermark {
    /// Everything up to it has ended, and every snapshot taken from now on shows it.
    pub(super) fn settled(&self) -> Mark {
        self.settled
    }

    /// Takes in a look.
    pub(super) fn looked(&mut self, now: Mark, holders: Vec<String>) {
        let Some(before) = self.last.replace(now) else {
            // Who holds the lock already may have done anything.
            self.holders = holders.into_iter().map(|holder| (holder, Mark::START)).collect();
            self.settled = if self.holders.is_empty() { now } else { Mark::START };
            return;
        };
        if now.is_before(before) {
            // Somebody has set back the sequence or the clock.
            *self = Watermark::default();
            return;
        }
        let bound = |holder: String| {
            let mark = match self.holders.get(&holder) {
                Some(mark) => *mark,
                // A prepared transaction has left its session, and its name.
                None if holder.starts_with('-') => self.settled,
                None => before,
            };
            (holder, mark)
        };
        self.holders = holders.into_iter().map(bound).collect();
        self.settled = self.holders.values().copied().fold(now, Mark::min);
    }

    /// True when a sweep of this queue pays.
    pub(super) fn is_sweep_due(&self, queue: &str) -> bool {
        self.queues
            .get(queue)
            .is_some_and(|floors| floors.fetched >= SWEEP_AFTER && floors.next_sweep <= Instant::now())
    }

    /// The lowest position of each priority that may be ready.
    pub(super) fn floors(&self, queue: &str) -> [i64; PRIORITIES] {
        self.queues.get(queue).map_or([0; PRIORITIES], |floors| floors.positions)
    }

    /// As [`floors`](Self::floors), but now and then from the very beginning.
    pub(super) fn floors_to_fetch(&mut self, queue: &str) -> [i64; PRIORITIES] {
        let Some(floors) = self.queues.get_mut(queue) else { return [0; PRIORITIES] };
        if floors.full_look <= Instant::now() {
            floors.full_look = Instant::now() + FULL_LOOK;
            return [0; PRIORITIES];
        }
        floors.positions
    }

    /// Takes in what was fetched: priorities and positions.
    pub(super) fn fetched(&mut self, queue: &str, jobs: impl Iterator<Item = (usize, i64)>) {
        if !self.queues.contains_key(queue) {
            self.queues.insert(queue.to_owned(), Floors::default());
        }
        let Some(floors) = self.queues.get_mut(queue) else { return };
        for (priority, position) in jobs {
            floors.fetched += 1;
            if floors.positions.get(priority).is_some_and(|floor| position < *floor) {
                tracing::debug!(
                    queue,
                    position,
                    "a job was below its queue's watermark; looking at all again"
                );
                floors.positions = [0; PRIORITIES];
            }
        }
    }

    /// Raises the floors of a queue: to what a statement has found to be its first ready positions, but not above what
    /// was settled before that statement.
    pub(super) fn swept(&mut self, queue: &str, settled: Mark, first: &[Option<i64>], took: Duration) {
        let Some(floors) = self.queues.get_mut(queue) else { return };
        floors.fetched = 0;
        floors.next_sweep = Instant::now() + took * SWEEP_SHARE;
        for (floor, first) in floors.positions.iter_mut().zip(first) {
            *floor = (*floor).max(first.unwrap_or(i64::MAX).min(settled.position + 1));
        }
    }

    /// From when on to look for what is due and for leases that end; now and then from the very beginning.
    pub(super) fn times(&mut self) -> (DateTime<Utc>, DateTime<Utc>) {
        if self.full_look <= Instant::now() {
            self.full_look = Instant::now() + FULL_LOOK;
            (self.due_from, self.leased_from) = (DateTime::UNIX_EPOCH, DateTime::UNIX_EPOCH);
        }
        (self.due_from, self.leased_from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(at: i64) -> Mark {
        Mark { position: at, time: DateTime::from_timestamp(at, 0).unwrap() }
    }

    fn look(marks: &mut Watermark, at: i64, holders: &[&str]) -> i64 {
        marks.looked(mark(at), holders.iter().map(ToString::to_string).collect());
        assert_eq!(marks.settled(), mark(marks.settled().position), "position and time go together");
        marks.settled().position
    }

    #[test]
    fn nothing_is_settled_that_an_open_transaction_may_have_drawn() {
        let mut marks = Watermark::default();
        assert_eq!(look(&mut marks, 10, &["old"]), 0, "it may have drawn anything");
        assert_eq!(look(&mut marks, 20, &["old", "new"]), 0);
        assert_eq!(look(&mut marks, 30, &["new", "newer"]), 10, "`new` began after 10");
        assert_eq!(look(&mut marks, 40, &["newer"]), 20);
        assert_eq!(look(&mut marks, 50, &[]), 50);
        assert_eq!(look(&mut marks, 60, &["newest"]), 50);
    }

    #[test]
    fn a_transaction_that_is_prepared_is_the_same_under_another_name() {
        let mut marks = Watermark::default();
        look(&mut marks, 10, &[]);
        assert_eq!(look(&mut marks, 20, &["3/7"]), 10);
        assert_eq!(look(&mut marks, 30, &["3/7"]), 10);
        assert_eq!(look(&mut marks, 40, &["-1/99"]), 10);
        assert_eq!(look(&mut marks, 50, &["-1/99"]), 10);
    }

    #[test]
    fn a_sequence_or_a_clock_that_was_set_back_forgets_all() {
        let mut marks = Watermark::default();
        look(&mut marks, 100, &[]);
        marks.fetched("default", [(5, 1)].into_iter());
        marks.swept("default", marks.settled(), &[None; PRIORITIES], Duration::ZERO);
        assert_eq!(marks.floors("default"), [101; PRIORITIES]);
        assert_eq!(look(&mut marks, 50, &[]), 0);
        assert_eq!(marks.floors("default"), [0; PRIORITIES]);
    }

    #[test]
    fn a_job_below_its_floor_brings_all_floors_down() {
        let mut marks = Watermark::default();
        marks.fetched("default", [(5, 1)].into_iter());
        marks.swept("default", mark(100), &[Some(7), None], Duration::ZERO);
        assert_eq!(marks.floors("default")[..3], [7, 101, 0]);
        marks.fetched("default", [(0, 8)].into_iter());
        assert_eq!(marks.floors("default")[0], 7);
        marks.fetched("default", [(0, 6)].into_iter());
        assert_eq!(marks.floors("default"), [0; PRIORITIES]);
    }
}
