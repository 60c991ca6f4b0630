//! Changes that the remote has not confirmed, and what is to be done about them when it answers again.
//!
//! A change is noted before it is sent and struck out when it is confirmed. So whatever happens to a connection, the
//! next one repeats what was under way on it, before anybody reads from it. A server that takes the place of another, or
//! has been restarted, may lack what that one confirmed last: to it the last changes are repeated, too. One
//! that came back with a snapshot may lack any change: there all caches are cleared.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use redis::{Arg, Cmd};

/// How many changes are remembered, and how many bytes of keys and commands, before all caches of the remote are cleared
/// instead.
const MAX_CHANGES: usize = 1 << 16;
const MAX_BYTES: usize = 16 << 20;

/// For how long a confirmed change may be lost with the server that confirmed it, and how many are remembered for that.
const UNCERTAIN: Duration = Duration::from_secs(5);
const MAX_UNCERTAIN: usize = 1 << 14;

/// What brings the remote in order when a change of a key may not have reached it.
#[derive(Clone, Debug)]
pub(crate) enum Repeat {
    /// The key goes: of no value is better than an old one.
    Delete,
    Run(Cmd),
    /// The same, and nobody need hear of it: no value is changed by it.
    RunQuietly(Cmd),
}

impl Repeat {
    pub(super) fn command(&self) -> Option<&Cmd> {
        match self {
            Repeat::Delete => None,
            Repeat::Run(command) | Repeat::RunQuietly(command) => Some(command),
        }
    }

    pub(super) fn is_quiet(&self) -> bool {
        matches!(self, Repeat::RunQuietly(_))
    }

    fn bytes(&self) -> usize {
        let length = |argument: Arg<&[u8]>| match argument {
            Arg::Simple(bytes) => bytes.len(),
            _ => 0,
        };
        self.command().map_or(0, |command| command.args_iter().map(length).sum())
    }
}

#[derive(Default)]
pub(super) struct Missed {
    changes: HashMap<Vec<u8>, Change>,
    bytes: usize,
    /// The number that the last change had when they were too many, or none was certain any more.
    overflowed: Option<u64>,
    last: u64,
    /// Those that were confirmed last, the oldest first.
    confirmed: VecDeque<(Instant, Vec<u8>, Repeat)>,
    confirmed_bytes: usize,
}

#[derive(Clone)]
struct Change {
    number: u64,
    since: Instant,
    repeat: Repeat,
}

/// Changes to repeat.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) changes: Vec<(Vec<u8>, Repeat, u64)>,
    /// There were more than could be remembered.
    pub(super) overflowed: Option<u64>,
}

impl Batch {
    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty() && self.overflowed.is_none()
    }
}

impl Missed {
    /// Notes a change that is about to be made; returns its number, by which it is struck out.
    pub(super) fn note(&mut self, key: &[u8], repeat: Repeat) -> u64 {
        self.last += 1;
        let number = self.last;
        let bytes = key.len() + repeat.bytes();
        let old = self.changes.get(key).map_or(0, |old| key.len() + old.repeat.bytes());
        if !self.has_room_for(bytes, old) {
            self.overflowed = Some(number);
            self.changes.clear();
            self.bytes = 0;
            return number;
        }
        let change = Change { number, since: Instant::now(), repeat };
        self.changes.insert(key.to_vec(), change);
        self.bytes = self.bytes + bytes - old;
        number
    }

    /// A change was confirmed. One of the same key that was noted later stays.
    pub(super) fn strike_out(&mut self, key: &[u8], number: u64) {
        if self.changes.get(key).is_none_or(|change| change.number != number) {
            return;
        }
        let Some((key, change)) = self.changes.remove_entry(key) else { return };
        let bytes = key.len() + change.repeat.bytes();
        self.bytes -= bytes;
        if change.repeat.is_quiet() {
            return;
        }
        self.confirmed_bytes += bytes;
        self.confirmed.push_back((Instant::now(), key, change.repeat));
        while let Some((since, oldest, repeat)) = self.confirmed.front()
            && (since.elapsed() > UNCERTAIN
                || self.confirmed.len() > MAX_UNCERTAIN
                || self.confirmed_bytes > MAX_BYTES)
        {
            self.confirmed_bytes -= oldest.len() + repeat.bytes();
            self.confirmed.pop_front();
        }
    }

    /// Another server is there now: what the one before confirmed last is to be repeated, as far as there is room. Of
    /// one key the last change counts, and more so one that was never confirmed.
    pub(super) fn doubt_the_last(&mut self) {
        self.confirmed_bytes = 0;
        for (_, key, repeat) in std::mem::take(&mut self.confirmed).into_iter().rev() {
            if self.has_room_for(key.len() + repeat.bytes(), 0) && !self.changes.contains_key(&key) {
                self.note(&key, repeat);
            }
        }
    }

    /// Whatever was confirmed may be lost.
    pub(super) fn doubt_all(&mut self) {
        self.last += 1;
        self.overflowed = Some(self.last);
        (self.confirmed, self.confirmed_bytes) = (VecDeque::new(), 0);
    }

    /// `old` are the bytes of what is replaced, if anything.
    fn has_room_for(&self, bytes: usize, old: usize) -> bool {
        (old > 0 || self.changes.len() < MAX_CHANGES) && self.bytes + bytes - old <= MAX_BYTES
    }

    /// How many are not confirmed. When they were too many it is one more than can be remembered, or more.
    pub(super) fn len(&self) -> u64 {
        let overflow = if self.overflowed.is_some() { MAX_CHANGES + 1 } else { 0 };
        (self.changes.len() + overflow) as u64
    }

    /// All caches were cleared, for the reason that had this number.
    pub(super) fn cleared(&mut self, number: u64) {
        if self.overflowed == Some(number) {
            self.overflowed = None;
        }
    }

    /// Those that have waited for so long.
    pub(super) fn waiting(&self, at_least: Duration) -> Batch {
        let changes = self
            .changes
            .iter()
            .filter(|(_, change)| change.since.elapsed() >= at_least)
            .map(|(key, change)| (key.clone(), change.repeat.clone(), change.number))
            .collect();
        Batch { changes, overflowed: self.overflowed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_stays_until_the_last_of_its_key_is_confirmed() {
        let mut missed = Missed::default();
        let (first, second) = (missed.note(b"a", Repeat::Delete), missed.note(b"a", Repeat::Delete));
        missed.strike_out(b"a", first);
        assert_eq!(missed.waiting(Duration::ZERO).changes.len(), 1, "the second is not confirmed");
        assert!(missed.waiting(Duration::from_secs(60)).is_empty());
        missed.strike_out(b"a", second);
        assert!(missed.waiting(Duration::ZERO).is_empty());
        assert_eq!(missed.bytes, 0);
    }

    #[test]
    fn what_a_server_confirmed_last_is_repeated_to_another() {
        let mut missed = Missed::default();
        let confirmed = missed.note(b"a", Repeat::Delete);
        missed.strike_out(b"a", confirmed);
        let confirmed = missed.note(b"b", Repeat::Delete);
        missed.strike_out(b"b", confirmed);
        missed.note(b"b", Repeat::Run(Cmd::new()));
        missed.doubt_the_last();
        let mut batch = missed.waiting(Duration::ZERO);
        batch.changes.sort_by_key(|(key, ..)| key.clone());
        let [(_, Repeat::Delete, a), (_, Repeat::Run(_), b)] = batch.changes.as_slice() else { panic!() };
        missed.strike_out(b"a", *a);
        missed.strike_out(b"b", *b);
        assert!(missed.waiting(Duration::ZERO).is_empty());
        for number in 0..2 * MAX_UNCERTAIN {
            let key = number.to_be_bytes();
            let number = missed.note(&key, Repeat::Delete);
            missed.strike_out(&key, number);
        }
        assert!(missed.confirmed.len() <= MAX_UNCERTAIN);
    }

    #[test]
    fn more_than_can_be_remembered_is_one_thing_to_remember() {
        let mut missed = Missed::default();
        for number in 0..=MAX_CHANGES {
            missed.note(&number.to_be_bytes(), Repeat::Delete);
        }
        let batch = missed.waiting(Duration::ZERO);
        assert!(batch.overflowed.is_some() && batch.changes.is_empty());

        // Meanwhile they are too many once more: the confirmation of the first clearing is none of the second.
        missed.note(&vec![0; MAX_BYTES], Repeat::Delete);
        missed.note(b"a", Repeat::Delete);
        missed.cleared(batch.overflowed.unwrap());
        let batch = missed.waiting(Duration::ZERO);
        assert!(batch.overflowed.is_some());
        // Commands take room as keys do.
        let long = redis::cmd("EVAL").arg(vec![0_u8; MAX_BYTES / 4]).take();
        for key in [b"a", b"a", b"b", b"c"] {
            missed.note(key, Repeat::Run(long.clone()));
        }
        assert_eq!(missed.waiting(Duration::ZERO).changes.len(), 3);
        missed.note(b"d", Repeat::Run(long));
        assert_eq!(missed.waiting(Duration::ZERO).changes.len(), 0);
        let batch = missed.waiting(Duration::ZERO);
        missed.cleared(batch.overflowed.unwrap());
        assert!(missed.waiting(Duration::ZERO).is_empty());
    }
}
