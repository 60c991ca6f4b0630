//! Who holds a connection, and since when.

use std::{
    fmt,
    panic::Location,
    time::{Duration, Instant},
};

use sqlx::SqlStr;

use crate::{
    Holder,
    query_stats::{Dialect, Shape},
};

/// Longer statements are cut where they stand for their call site.
const MAX_TEXT: usize = 80;
/// What stands behind this of a statement is not looked at.
const MAX_READ: usize = 1024;
/// How many holders an error names.
const MAX_NAMED: usize = 3;

/// What a connection was taken for. sqlx calls an executor from its own code, so of a statement run on the bare pool
/// only its text is known.
#[derive(Clone)]
pub(super) enum Site {
    Code(&'static Location<'static>),
    Statement(SqlStr),
    Pool,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(place) => write!(f, "{place}"),
            Self::Statement(sql) => {
                let text = sql.as_str();
                let text = Shape::of(&text[..text.floor_char_boundary(MAX_READ)], Dialect::Postgres).text;
                let cut = text.floor_char_boundary(MAX_TEXT);
                write!(f, "`{}{}`", &text[..cut], if cut < text.len() { "…" } else { "" })
            }
            Self::Pool => f.write_str("the pool itself"),
        }
    }
}

/// A holder, to be named once the pool's lock is free: to shape its statement takes time.
pub(super) struct Held {
    site: Site,
    since: Instant,
}

impl Held {
    fn of(hold: &Hold) -> Self {
        Self { site: hold.site.clone(), since: hold.since }
    }
}

impl From<Held> for Holder {
    fn from(Held { site, since }: Held) -> Self {
        Self { site: site.to_string(), held: since.elapsed() }
    }
}

struct Hold {
    site: Site,
    since: Instant,
    warned: bool,
}

/// One slot for each connection that may be in use.
#[derive(Default)]
pub(super) struct Holds {
    slots: Vec<Option<Hold>>,
    free: Vec<usize>,
}

impl Holds {
    pub(super) fn begin(&mut self, site: Site, now: Instant) -> usize {
        let hold = Some(Hold { site, since: now, warned: false });
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = hold;
                slot
            }
            None => {
                self.slots.push(hold);
                self.slots.len() - 1
            }
        }
    }

    /// How long the hold was.
    pub(super) fn end(&mut self, slot: usize, now: Instant) -> Duration {
        let hold = self.slots[slot].take();
        self.free.push(slot);
        hold.map_or(Duration::ZERO, |hold| now.duration_since(hold.since))
    }

    /// How long the hold was that ends, for another to begin.
    pub(super) fn hand_on(&mut self, slot: usize, site: Site, now: Instant) -> Duration {
        let hold = self.slots[slot].replace(Hold { site, since: now, warned: false });
        hold.map_or(Duration::ZERO, |hold| now.duration_since(hold.since))
    }

    pub(super) fn count(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn longest(&self) -> Vec<Held> {
        let mut holds: Vec<&Hold> = self.slots.iter().flatten().collect();
        holds.sort_by_key(|hold| hold.since);
        holds.into_iter().take(MAX_NAMED).map(Held::of).collect()
    }

    /// Those who have held for longer than `limit`, each told once.
    pub(super) fn overdue(&mut self, limit: Duration) -> Vec<Held> {
        let overdue =
            self.slots.iter_mut().flatten().filter(|hold| !hold.warned && hold.since.elapsed() >= limit);
        overdue
            .map(|hold| {
                hold.warned = true;
                Held::of(hold)
            })
            .collect()
    }
}
