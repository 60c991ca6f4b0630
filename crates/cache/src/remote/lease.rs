//! One load per key in all processes.
//!
//! Who finds nothing in the remote asks for a lease, which one of all gets; the others wait for what it brings. The
//! lease stands in the key itself: whoever invalidates or inserts the key, in whatever process or program, takes it
//! away, and a value that was read before then fills nothing. It is taken before the source is read for that reason.
//!
//! A lease is short, and renewed while its holder lives.

use std::time::Duration;

use redis::Value;
use tokio::{
    task::AbortHandle,
    time::{Instant, sleep, timeout},
};

use super::{
    Failure, Remote, Repeat, Turn, link,
    script::{Call, GIVE_BACK, LEASE, RENEW},
    tier::{Found, Tier},
    waits::Wait,
};

/// How a lease begins, and nothing else does: no envelope has this version, and MessagePack has no use for it.
pub(super) const LEASED: u8 = 0xc1;
const ID: usize = 17;
/// An id, and when it ends.
const LEASE_BYTES: usize = ID + 16;
/// How much of a value tells it from another one; beyond an envelope's nonce.
const BEGINNING: usize = 32;

/// How long others wait for a process that has died.
const LENGTH: Duration = Duration::from_secs(3);

/// The right to fill a key.
pub(crate) struct Lease {
    pub(super) id: [u8; ID],
    /// The counter of invalidations by tag, from before the source is read.
    pub(super) seq: u64,
    pub(super) renewal: AbortHandle,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

/// What a lease stands before, or the whole where there is none.
pub(super) fn behind(bytes: &[u8]) -> &[u8] {
    match bytes.first() {
        Some(&LEASED) => bytes.get(LEASE_BYTES..).unwrap_or_default(),
        _ => bytes,
    }
}

/// One who wants a lease.
struct Try {
    place: usize,
    redis_key: Vec<u8>,
    id: [u8; ID],
    /// The value that was there and is not wanted.
    seen: Option<Seen>,
}

struct Seen {
    length: usize,
    beginning: Vec<u8>,
    /// It may be served to those who can't wait.
    useful: bool,
}

enum Attempt<V> {
    Leased,
    /// Somebody else has the lease.
    Elsewhere,
    Over(Turn<V>),
    /// There is a value that is not wanted.
    Unwanted(Option<Seen>),
}

impl<K, V: 'static> Tier<K, V> {
    /// Whether the caller is to ask the source: with a lease, or without one where there is no remote to speak of.
    /// Waits while another process asks it, for no longer than a load may take.
    pub(crate) async fn turn(&self, key: &K) -> Turn<V> {
        let turns = self.take_turns(vec![self.wanted(0, key)]).await;
        turns.into_iter().next().flatten().unwrap_or(Turn::Lead(None))
    }

    /// The same for many keys.
    pub(crate) async fn turns(&self, keys: &[K]) -> Vec<Turn<V>> {
        let wanted = keys.iter().enumerate().map(|(place, key)| self.wanted(place, key)).collect();
        let turns = self.take_turns(wanted).await;
        turns.into_iter().map(|turn| turn.unwrap_or(Turn::Lead(None))).collect()
    }

    fn wanted(&self, place: usize, key: &K) -> Try {
        Try { place, redis_key: self.redis_key(key), id: new_id(), seen: None }
    }

    /// Takes them in the order of their keys: nobody waits for a key while holding the lease of a higher one, so that
    /// no two wait for each other.
    async fn take_turns(&self, mut wanted: Vec<Try>) -> Vec<Option<Turn<V>>> {
        let mut turns: Vec<Option<Turn<V>>> = wanted.iter().map(|_| None).collect();
        if self.config.remote_ttl.is_zero() {
            return turns;
        }
        wanted.sort_unstable_by(|one, other| one.redis_key.cmp(&other.redis_key));
        let end = Instant::now().checked_add(self.config.load_timeout);
        let mut wait: Option<Wait<'_>> = None;
        while !wanted.is_empty() && end.is_none_or(|end| Instant::now() < end) {
            let changed = wait.as_ref().map(Wait::changed);
            let Some(seq) = self.listener.tags.count().await else { break };
            let Ok(attempts) = self.attempt(&mut wanted).await else { break };
            let (mut blocked, mut in_the_way) = (None, Vec::new());
            let mut rest = Vec::new();
            for (mut one, attempt) in wanted.into_iter().zip(attempts) {
                match attempt {
                    Attempt::Over(turn) => turns[one.place] = Some(turn),
                    Attempt::Leased if blocked.is_none() => {
                        turns[one.place] = Some(Turn::Lead(Some(self.leased(&one, seq))));
                    }
                    Attempt::Leased => {
                        in_the_way.push((one.redis_key.clone(), vec![one.id.to_vec()]));
                        one.id = new_id();
                        rest.push(one);
                    }
                    Attempt::Elsewhere | Attempt::Unwanted(_) => {
                        blocked.get_or_insert_with(|| one.redis_key.clone());
                        rest.push(one);
                    }
                }
            }
            wanted = rest;
            if !in_the_way.is_empty() {
                // A lease that stays runs out.
                let _ = self.remote.run_all(&GIVE_BACK, &in_the_way).await;
                in_the_way.iter().for_each(|(redis_key, _)| self.listener.waits.wake(Some(redis_key)));
            }
            let Some(blocked) = blocked else { break };
            match wait.as_ref().filter(|wait| wait.key() == blocked) {
                // It is looked at once more, now that a change of it will be heard.
                None => {
                    drop(changed);
                    wait = Some(self.listener.waits.enter(&blocked));
                }
                Some(_) => {
                    if let Some(changed) = changed {
                        let _ = timeout(net(), changed).await;
                        link::set_deadline(self.deadline());
                    }
                }
            }
        }
        turns
    }

    fn leased(&self, one: &Try, seq: u64) -> Lease {
        let renewal = tokio::spawn(renew(self.remote.clone(), one.redis_key.clone(), one.id));
        Lease { id: one.id, seq, renewal: renewal.abort_handle() }
    }

    /// For a lease that Redis may have, or may yet give: when it answers again, nobody is to wait for that one's end.
    pub(super) fn return_later(&self, redis_key: &[u8], id: &[u8]) {
        self.remote.later(id, Repeat::RunQuietly(GIVE_BACK.by_code(&[redis_key], &[id])));
    }

    /// Tries for all at once. Where there is a value that is not wanted, it is to give way.
    async fn attempt(&self, wanted: &mut [Try]) -> Result<Vec<Attempt<V>>, Failure> {
        let mut attempts = self.attempt_once(&wanted.iter().collect::<Vec<_>>()).await?;
        let mut again = Vec::new();
        for (place, (one, attempt)) in wanted.iter_mut().zip(&mut attempts).enumerate() {
            if let Attempt::Unwanted(seen) = attempt {
                one.seen = seen.take();
                again.push(place);
            }
        }
        if !again.is_empty() {
            let tries: Vec<&Try> = again.iter().map(|place| &wanted[*place]).collect();
            for (place, attempt) in again.iter().zip(self.attempt_once(&tries).await?) {
                attempts[*place] = attempt;
            }
        }
        Ok(attempts)
    }

    async fn attempt_once(&self, wanted: &[&Try]) -> Result<Vec<Attempt<V>>, Failure> {
        let before: Vec<_> = wanted.iter().map(|one| self.before(&one.redis_key)).collect();
        let calls: Vec<_> = wanted.iter().map(|one| one.call()).collect();
        let answers = self.remote.run_all(&LEASE, &calls).await.inspect_err(|failure| {
            self.sets.note(failure);
            if !matches!(failure, Failure::Skipped) {
                wanted.iter().for_each(|one| self.return_later(&one.redis_key, &one.id));
            }
        })?;
        let opened: Vec<_> = wanted
            .iter()
            .zip(&answers)
            .map(|(one, answer)| match answer {
                Value::BulkString(bytes) => Some(self.open(&one.redis_key, bytes)),
                _ => None,
            })
            .collect();
        self.learn_tags(opened.iter().flatten()).await;
        let attempt = |((answer, opened), before): ((&Value, _), _)| match (answer, opened) {
            (Value::BulkString(bytes), Some(opened)) => match self.judge(opened, before) {
                Found::Good(kept) if !kept.due => Attempt::Over(Turn::Found(kept)),
                found => Attempt::Unwanted(Some(Seen {
                    length: bytes.len(),
                    beginning: bytes[..bytes.len().min(BEGINNING)].to_vec(),
                    useful: matches!(found, Found::Good(_)),
                })),
            },
            (Value::Int(1), _) => Attempt::Leased,
            (Value::Int(_), _) => Attempt::Elsewhere,
            _ => Attempt::Over(Turn::Lead(None)),
        };
        Ok(answers.iter().zip(opened).zip(before).map(attempt).collect())
    }
}

impl Try {
    fn call(&self) -> Call {
        let (length, beginning, useful) = match &self.seen {
            Some(seen) => (seen.length.to_string(), seen.beginning.clone(), seen.useful),
            None => ("-1".to_owned(), Vec::new(), false),
        };
        let useful = if useful { "1" } else { "0" };
        let lease_length = LENGTH.as_millis().to_string();
        let arguments = vec![self.id.to_vec(), lease_length.into(), length.into(), beginning, useful.into()];
        (self.redis_key.clone(), arguments)
    }
}

/// How long to wait for news before looking. It adds to what an outage costs, whose first sign may be that no news come.
fn net() -> Duration {
    Duration::from_millis(rand::random_range(20..80))
}

fn new_id() -> [u8; ID] {
    let mut id = [LEASED; ID];
    id[1..].copy_from_slice(&rand::random::<[u8; ID - 1]>());
    id
}

async fn renew(remote: Remote, redis_key: Vec<u8>, id: [u8; ID]) {
    let length = LENGTH.as_millis().to_string();
    loop {
        sleep(LENGTH / 3).await;
        // While Redis gives no answer it may still have the lease.
        if matches!(remote.run(&RENEW, &[&redis_key], &[&id, length.as_bytes()]).await, Ok(Value::Int(0))) {
            return;
        }
    }
}
