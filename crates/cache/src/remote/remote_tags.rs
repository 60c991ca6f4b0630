//! Tags that all processes share.
//!
//! The remote has a counter of invalidations for each cache, and a number for each tag: the counter as it stood when the
//! tag was invalidated last, or when it was first used. An entry notes the counter from before its value was read, and
//! is good while all of its tags are there with a number that is not higher. To invalidate is to raise the counter and
//! give the tag its number. A tag that is missing, as after an eviction, begins with the counter's: whatever an eviction
//! or an outage does to tags, it only makes good entries misses. So a load that is the first to use a tag is not kept if
//! any tag of the cache was invalidated during it.
//!
//! Clearing a cache is invalidating a tag that all of its entries have.
//!
//! What a process has read of the numbers it knows until it hears of a change, so that a read of an entry reads no more
//! than the entry.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use redis::{Cmd, Value};
use tokio::time::Instant;

use super::{
    Coherence, Remote, Repeat, Seal, Standing,
    failures::Failures,
    script::{INVALIDATE, TAGS},
};
use crate::tags::Tags;

/// How many tags are known at most. Beyond it, all are read again.
const MAX_KNOWN: usize = 10_000;

pub(super) struct RemoteTags {
    remote: Remote,
    pub(super) failures: Failures,
    /// What the names of all that is kept here begin with. No value's key has this zero byte behind a cache's name. The
    /// braces make a cluster keep them in one place.
    prefix: Vec<u8>,
    local: Arc<Tags>,
    known: Mutex<Known>,
    on_clear: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Default)]
struct Known {
    count: Option<Number>,
    all: Option<Number>,
    tags: HashMap<Arc<str>, Number>,
}

#[derive(Clone, Copy)]
struct Number {
    number: u64,
    seal: Seal,
    /// Where changes go unheard.
    trusted_until: Option<Instant>,
    /// A tag that ends before its entries makes them misses.
    stays_until: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    Good,
    /// The whole cache, or one of its tags, was invalidated since.
    Outdated,
    Unknown,
}

impl RemoteTags {
    pub(super) fn new(remote: Remote, cache: &'static str, local: Arc<Tags>) -> RemoteTags {
        let prefix = format!("{{{}{cache}}}\0", remote.prefix()).into_bytes();
        let failures = Failures::new(cache, "tags");
        RemoteTags { remote, failures, prefix, local, known: Mutex::default(), on_clear: OnceLock::new() }
    }

    pub(super) fn on_clear(&self, call: Box<dyn Fn() + Send + Sync>) {
        // The cache that this belongs to sets it once.
        let _ = self.on_clear.set(call);
    }

    fn key(&self, name: &str) -> Vec<u8> {
        [&self.prefix, name.as_bytes()].concat()
    }

    fn count_key(&self) -> Vec<u8> {
        self.key("seq")
    }

    fn all_key(&self) -> Vec<u8> {
        self.key("all")
    }

    fn tag_key(&self, tag: &str) -> Vec<u8> {
        self.key(&format!("tag\0{tag}"))
    }

    /// The counter, to be taken before a value is read. An old one is no danger: it makes the value's entry a miss.
    pub(super) async fn count(&self) -> Option<u64> {
        let coherence = self.remote.coherence();
        let known = self.known().count.filter(|count| count.is_current(coherence));
        match known {
            Some(count) => Some(count.number),
            None => self.read(&[], 0).await,
        }
    }

    /// Whether an entry of the counter `seq` with these tags is good, as far as it is known.
    pub(super) fn verdict<'n>(&self, seq: u64, names: impl IntoIterator<Item = &'n str>) -> Verdict {
        let coherence = self.remote.coherence();
        let known = self.known();
        let tags = names.into_iter().map(|name| known.tags.get(name));
        let mut verdict = Verdict::Good;
        for number in std::iter::once(known.all.as_ref()).chain(tags) {
            match number.filter(|number| number.is_current(coherence)) {
                Some(number) if number.number > seq => return Verdict::Outdated,
                Some(_) => {}
                None => verdict = Verdict::Unknown,
            }
        }
        verdict
    }

    /// Learns the numbers of tags; those that are missing stay unknown.
    pub(super) async fn look(&self, names: &[&str]) {
        let mut keys = vec![self.count_key(), self.all_key()];
        keys.extend(names.iter().map(|name| self.tag_key(name)));
        let seals = self.seals(&keys);
        let mut command = redis::cmd("MGET");
        for key in &keys {
            command.arg(key);
        }
        match self.remote.ask::<Value>(&command).await {
            Ok(Value::Array(numbers)) => self.learn(names, &seals, &numbers, None),
            Ok(_) => {}
            Err(failure) => self.failures.note(&failure),
        }
    }

    /// Makes sure that the tags have numbers, which stay for as long as an entry of this life. Says the counter.
    pub(super) async fn secure(&self, names: &[&str], life: u64) -> Option<u64> {
        let (coherence, end) = (self.remote.coherence(), end(life));
        let secured = {
            let known = self.known();
            let current = |number: &&Number| number.is_current(coherence);
            let stays = |name| known.tags.get(name).filter(current).is_some_and(|tag| tag.stays_until >= end);
            let all = known.all.as_ref().filter(current).is_some() && names.iter().all(|name| stays(*name));
            known.count.filter(|count| all && count.is_current(coherence))
        };
        match secured {
            Some(count) => Some(count.number),
            None => self.read(names, life).await,
        }
    }

    /// The same, whatever is known.
    pub(super) async fn read(&self, names: &[&str], life: u64) -> Option<u64> {
        let mut keys = vec![self.count_key(), self.all_key()];
        keys.extend(names.iter().map(|name| self.tag_key(name)));
        let (seals, asked) = (self.seals(&keys), Instant::now());
        let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
        match self.remote.run(&TAGS, &keys, &[life.to_string().as_bytes()]).await {
            Ok(Value::Array(answers)) => {
                self.learn(names, &seals, &answers, Some(asked));
                answers.first().and_then(number)
            }
            Ok(_) => None,
            Err(failure) => {
                self.failures.note(&failure);
                None
            }
        }
    }

    fn seals(&self, keys: &[Vec<u8>]) -> Vec<Seal> {
        keys.iter().map(|key| self.remote.coherence().seal(key)).collect()
    }

    /// `answers` are the numbers of the counter, the cache's own tag and the tags, perhaps with the tags' lives.
    pub(super) fn learn(&self, names: &[&str], seals: &[Seal], answers: &[Value], asked: Option<Instant>) {
        let coherence = self.remote.coherence();
        let learnt = |place: usize| {
            let (seal, number) = (*seals.get(place)?, number(answers.get(place)?)?);
            let bound = coherence.bound(seal, Duration::MAX);
            let trusted_until = (bound < Duration::MAX).then(|| Instant::now() + bound);
            let life = answers.get(place + names.len()).filter(|_| place >= 2).and_then(number_of_ms);
            let stays_until = asked.zip(life).and_then(|(asked, life)| asked.checked_add(life));
            let learnt = Number { number, seal, trusted_until, stays_until };
            (coherence.standing(seal) == Standing::Current).then_some(learnt)
        };
        let changed = |old: Option<Number>, place: usize| {
            old.is_some_and(|old| answers.get(place).and_then(number) != Some(old.number))
        };
        let mut known = self.known();
        // Answers overtake each other, and a counter from before a tag's number would outdate all that is loaded.
        let counted = known.count.filter(|count| count.is_current(coherence));
        known.count = match (counted, learnt(0)) {
            (Some(old), Some(new)) if old.number > new.number => Some(old),
            (_, learnt) => learnt,
        };
        let cleared = changed(std::mem::replace(&mut known.all, learnt(1)), 1);
        let mut invalidated: Vec<Arc<str>> = Vec::new();
        for (place, name) in (2..).zip(names) {
            let name: Arc<str> = Arc::from(*name);
            let old = match learnt(place) {
                Some(tag) => known.tags.insert(Arc::clone(&name), tag),
                None => known.tags.remove(&name),
            };
            if changed(old, place) {
                invalidated.push(name);
            }
        }
        if known.tags.len() > MAX_KNOWN {
            known.tags.clear();
        }
        drop(known);
        invalidated.iter().for_each(|name| self.local.invalidate(name));
        if cleared {
            self.tell_cleared();
        }
    }

    fn tell_cleared(&self) {
        if let Some(call) = self.on_clear.get() {
            call();
        }
    }

    /// A key of the remote was changed; `None` for all.
    pub(super) fn changed(&self, redis_key: Option<&[u8]>) {
        let Some(redis_key) = redis_key else {
            *self.known() = Known::default();
            return;
        };
        let Some(name) = redis_key.strip_prefix(&self.prefix[..]) else { return };
        // Whatever was changed, the counter was raised before it: what is on its way may be from before that.
        self.remote.coherence().changed(&self.count_key());
        self.forget_count();
        if name == b"all" {
            // Where it was not known, its change is its beginning.
            let was_known = self.known().all.take().is_some();
            if was_known {
                self.tell_cleared();
            }
        } else if let Some(tag) = name.strip_prefix(b"tag\0").and_then(|tag| std::str::from_utf8(tag).ok()) {
            self.known().tags.remove(tag);
            // Even if it was not known: what memory has of it may have come before it was last forgotten.
            self.local.invalidate(&Arc::from(tag));
        }
    }

    /// `None` for the whole cache. What the remote can't be told now it is told later.
    pub(super) async fn invalidate(&self, tag: Option<&str>) {
        let keys = [self.count_key(), tag.map_or_else(|| self.all_key(), |tag| self.tag_key(tag))];
        let command = invalidation(&keys);
        self.forget(tag, &keys);
        let repeat = Repeat::Run(command.clone());
        if let Err((failure, _)) = self.remote.change(&keys[1], &command, repeat).await {
            self.failures.note(&failure);
        }
        // Redis does not tell us of this change, and what was asked before it may have been answered since.
        self.forget(tag, &keys);
    }

    /// What makes a miss of all that the cache has in the remote.
    pub(super) fn clearing(&self) -> Cmd {
        invalidation(&[self.count_key(), self.all_key()])
    }

    /// The counter is to be asked for again.
    pub(super) fn forget_count(&self) {
        self.known().count = None;
    }

    fn forget(&self, tag: Option<&str>, keys: &[Vec<u8>; 2]) {
        keys.iter().for_each(|key| self.remote.coherence().changed(key));
        let mut known = self.known();
        known.count = None;
        match tag {
            None => known.all = None,
            Some(tag) => drop(known.tags.remove(tag)),
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Number {
    fn is_current(&self, coherence: &Coherence) -> bool {
        coherence.standing(self.seal) == Standing::Current
            && self.trusted_until.is_none_or(|until| Instant::now() < until)
    }
}

fn invalidation([count, tag]: &[Vec<u8>; 2]) -> Cmd {
    INVALIDATE.by_code(&[count, tag], &[])
}

fn end(life: u64) -> Option<Instant> {
    Instant::now().checked_add(Duration::from_millis(life))
}

fn number(answer: &Value) -> Option<u64> {
    match answer {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok()?.parse().ok(),
        _ => None,
    }
}

fn number_of_ms(answer: &Value) -> Option<Duration> {
    match answer {
        Value::Int(ms) => u64::try_from(*ms).ok().map(Duration::from_millis),
        _ => None,
    }
}
