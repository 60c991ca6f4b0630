use std::{
    fmt,
    io::Write,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use metrics::{Counter, counter};
use redis::{Cmd, Value};
use tokio::time::Instant;

use super::{
    Codec, Coherence, Filled, Kept, Lease, OnChange, Outgoing, Remote, RemoteStats, Repeat, Seal,
    envelope::{Contents, Envelope, Fingerprint, Lifetime, now},
    failures::Failures,
    lease::{LEASED, behind},
    link,
    remote_tags::{RemoteTags, Verdict},
    script::{FILL, GIVE_BACK, SET, Script},
    waits::Waits,
};
use crate::{
    CacheConfig,
    tags::Tags,
    telemetry::{REMOTE_TARGET, REMOTE_TOO_LARGE, REMOTE_UNDECODABLE, Tally},
};

/// One cache's view of its remote: typed, and without failures.
pub(crate) struct Tier<K, V> {
    pub(super) remote: Remote,
    pub(super) config: CacheConfig,
    pub(super) listener: Arc<Listener>,
    _hear: Arc<OnChange>,
    /// Whether the first answer is there.
    met: AtomicBool,
    cache: &'static str,
    /// What the keys of this cache's values begin with.
    prefix: Vec<u8>,
    /// Of what all of them have in common.
    fingerprint: Fingerprint,
    make_key: MakeKey<K>,
    codec: Box<dyn Codec<V>>,
    local: Arc<Tags>,
    pub(super) gets: Failures,
    pub(super) sets: Failures,
    deletes: Failures,
    undecodable: Tally,
    too_large: Counter,
}

/// Appends the key's bytes.
pub(crate) type MakeKey<K> = Box<dyn Fn(&K, &mut Vec<u8>) + Send + Sync>;

pub(crate) fn display<K: fmt::Display>(key: &K, bytes: &mut Vec<u8>) {
    // Fails only where a `Display` says so, and what it has written is what `to_string` would panic with.
    let _ = write!(bytes, "{key}");
}

/// What changes in the remote are told to.
pub(super) struct Listener {
    pub(super) tags: RemoteTags,
    pub(super) waits: Waits,
}

/// What was found under a key.
pub(super) enum Found<V> {
    Good(Kept<V>),
    /// Nothing that may be served.
    Nothing,
    Undecodable,
}

/// What bytes in the remote are.
pub(super) enum Opened<'b> {
    Entry(Envelope<'b>),
    /// A lease that stands before nothing.
    Nothing,
    Garbage,
}

/// What a read needs to know from before it was sent.
#[derive(Clone, Copy)]
pub(super) struct Before {
    seal: Seal,
    tags: u64,
}

impl<K, V> Tier<K, V> {
    pub(crate) fn coherence(&self) -> &Arc<Coherence> {
        self.remote.coherence()
    }
}

impl<K, V: 'static> Tier<K, V> {
    pub(crate) fn new(
        remote: Remote,
        cache: &'static str,
        config: &CacheConfig,
        local: Arc<Tags>,
        make_key: MakeKey<K>,
        codec: Box<dyn Codec<V>>,
    ) -> Tier<K, V> {
        let tags = RemoteTags::new(remote.clone(), cache, Arc::clone(&local));
        let listener = Arc::new(Listener { tags, waits: Waits::default() });
        let hearer = Arc::clone(&listener);
        let hear: Arc<OnChange> = Arc::new(move |redis_key: Option<&[u8]>| {
            hearer.tags.changed(redis_key);
            hearer.waits.wake(redis_key);
        });
        let hear = remote.on_change(hear);
        remote.is_cleared_by(listener.tags.clearing());
        let prefix = format!("{}{cache}:", remote.prefix()).into_bytes();
        // With the lengths, "a:b" + "c" is not "a" + "b:c".
        let mut fingerprint = Fingerprint::default();
        fingerprint.add(&codec.version().to_le_bytes());
        fingerprint.add(&(remote.prefix().len() as u64).to_le_bytes());
        fingerprint.add(&prefix);
        Tier {
            remote,
            config: config.clone(),
            listener,
            _hear: hear,
            met: AtomicBool::new(false),
            cache,
            prefix,
            fingerprint,
            make_key,
            codec,
            local,
            gets: Failures::new(cache, "get"),
            sets: Failures::new(cache, "set"),
            deletes: Failures::new(cache, "delete"),
            undecodable: Tally::new(counter!(REMOTE_UNDECODABLE, "cache" => cache)),
            too_large: counter!(REMOTE_TOO_LARGE, "cache" => cache),
        }
    }

    pub(super) fn redis_key(&self, key: &K) -> Vec<u8> {
        let mut redis_key = Vec::with_capacity(self.prefix.len() + 24);
        redis_key.extend_from_slice(&self.prefix);
        (self.make_key)(key, &mut redis_key);
        redis_key
    }

    /// To be taken before the source is read.
    pub(crate) fn seal(&self, key: &K) -> Seal {
        self.coherence().seal(&self.redis_key(key))
    }

    pub(super) fn before(&self, redis_key: &[u8]) -> Before {
        Before { seal: self.coherence().seal(redis_key), tags: self.local.now() }
    }

    /// A seal from before there is a connection is good for nothing. So who comes first waits for one.
    async fn meet(&self) {
        if !self.met.load(Ordering::Relaxed) {
            // What is rare is in a box, here and below: else all who wait would carry room for it.
            let _ = Box::pin(self.remote.ask::<Value>(&redis::cmd("PING"))).await;
            self.met.store(true, Ordering::Relaxed);
        }
    }

    pub(crate) fn stats(&self) -> RemoteStats {
        let operations = [&self.gets, &self.sets, &self.deletes, &self.listener.tags.failures];
        RemoteStats {
            failures: operations.iter().map(|operation| operation.failed()).sum(),
            skipped: operations.iter().map(|operation| operation.skipped()).sum(),
            unconfirmed: self.remote.unconfirmed(),
            undecodable: self.undecodable.get(),
        }
    }

    /// When all is to be answered that a read asks which begins now.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        Instant::now().checked_add(self.remote.config().timeout)
    }

    /// Does `work` with this tier, which asks nothing after the deadline but what follows a wait for another process.
    pub(crate) async fn until<T>(&self, deadline: Option<Instant>, work: impl Future<Output = T>) -> T {
        link::until(deadline, work).await
    }

    /// What the remote has, be it stale. It costs one GET, and where the numbers of its tags are not known one MGET.
    pub(crate) async fn get(&self, key: &K) -> Option<Kept<V>> {
        self.meet().await;
        let redis_key = self.redis_key(key);
        let before = self.before(&redis_key);
        let mut command = Cmd::new();
        command.arg("GET").arg(&redis_key);
        let bytes = match self.remote.ask::<Option<Vec<u8>>>(&command).await {
            Ok(found) => found?,
            Err(failure) => {
                self.gets.note(&failure);
                return None;
            }
        };
        let opened = self.open(&redis_key, &bytes);
        self.learn_tags([&opened]).await;
        self.kept(opened, before)
    }

    /// The same for many keys, with one MGET.
    pub(crate) async fn get_many(&self, keys: &[K]) -> Vec<Option<Kept<V>>> {
        if keys.is_empty() {
            return Vec::new();
        }
        self.meet().await;
        let redis_keys: Vec<_> = keys.iter().map(|key| self.redis_key(key)).collect();
        let before: Vec<_> = redis_keys.iter().map(|redis_key| self.before(redis_key)).collect();
        let mut command = redis::cmd("MGET");
        command.arg(&redis_keys);
        let found = self.remote.ask::<Vec<Option<Vec<u8>>>>(&command).await;
        let found = found.inspect_err(|failure| self.gets.note(failure)).unwrap_or_default();
        let opened: Vec<_> = redis_keys
            .iter()
            .zip(&found)
            .map(|(redis_key, bytes)| Some(self.open(redis_key, bytes.as_deref()?)))
            .collect();
        self.learn_tags(opened.iter().flatten()).await;
        let mut kept: Vec<_> =
            opened.into_iter().zip(before).map(|(opened, before)| self.kept(opened?, before)).collect();
        kept.resize_with(keys.len(), || None);
        kept
    }

    fn kept(&self, opened: Opened<'_>, before: Before) -> Option<Kept<V>> {
        match self.judge(opened, before) {
            Found::Good(kept) => Some(kept),
            Found::Nothing => None,
            Found::Undecodable => {
                self.undecodable.increment(1);
                tracing::debug!(
                    target: REMOTE_TARGET, cache = self.cache, "a value in the remote does not decode",
                );
                None
            }
        }
    }

    /// Asks for the numbers of tags that entries have and this process does not know.
    pub(super) async fn learn_tags<'o, 'b: 'o>(&self, entries: impl IntoIterator<Item = &'o Opened<'b>>) {
        let tags = &self.listener.tags;
        let mut unknown: Option<Vec<&str>> = None;
        for entry in entries {
            if let Opened::Entry(envelope) = entry
                && tags.verdict(envelope.seq, envelope.tags.iter().copied()) == Verdict::Unknown
            {
                unknown.get_or_insert_default().extend(&envelope.tags);
            }
        }
        if let Some(mut names) = unknown {
            names.sort_unstable();
            names.dedup();
            Box::pin(tags.look(&names)).await;
        }
    }

    /// What is there, or behind the lease that is there.
    pub(super) fn open<'b>(&self, redis_key: &[u8], bytes: &'b [u8]) -> Opened<'b> {
        let entry = behind(bytes);
        if entry.is_empty() && bytes.first() == Some(&LEASED) {
            return Opened::Nothing;
        }
        Envelope::open(entry, self.fingerprint_of(redis_key), now()).map_or(Opened::Garbage, Opened::Entry)
    }

    fn fingerprint_of(&self, redis_key: &[u8]) -> u64 {
        let mut fingerprint = self.fingerprint;
        fingerprint.add(&redis_key[self.prefix.len()..]);
        fingerprint.get()
    }

    pub(super) fn judge(&self, opened: Opened<'_>, before: Before) -> Found<V> {
        let envelope = match opened {
            Opened::Entry(envelope) => envelope,
            Opened::Nothing => return Found::Nothing,
            Opened::Garbage => return Found::Undecodable,
        };
        let Lifetime { fresh, stale, whole } = envelope.life;
        // Tags that are still unknown are missing, or nobody could be asked.
        let good = self.listener.tags.verdict(envelope.seq, envelope.tags.iter().copied()) == Verdict::Good;
        if !good || fresh + stale == 0 {
            return Found::Nothing;
        }
        let value = match envelope.absent {
            true => None,
            false => match self.decode(&envelope) {
                Some(value) => Some(Arc::new(value)),
                None => return Found::Undecodable,
            },
        };
        let names: Vec<Arc<str>> = envelope.tags.iter().map(|name| Arc::from(*name)).collect();
        let refresh_after = self.config.refresh_after;
        let is_ripe = refresh_after > 0.0 && (whole - fresh) as f64 >= whole as f64 * refresh_after;
        Found::Good(Kept {
            value,
            fresh_for: Duration::from_millis(fresh),
            stale_for: Duration::from_millis(stale),
            due: fresh == 0 || is_ripe,
            seal: before.seal,
            tags: self.local.set(before.tags, &names),
        })
    }

    fn decode(&self, envelope: &Envelope<'_>) -> Option<V> {
        let body = envelope.body()?;
        // A hand-written Deserialize may panic on what it never expected; to the reader that is garbage too.
        let decoded = catch_unwind(AssertUnwindSafe(|| self.codec.decode(&body)));
        match decoded {
            Ok(Ok(value)) => Some(value),
            Ok(Err(error)) => {
                tracing::debug!(target: REMOTE_TARGET, cache = self.cache, error, "not a value");
                None
            }
            Err(_) => None,
        }
    }

    /// Keeps what the source had, unless the key was changed meanwhile.
    pub(crate) async fn fill(&self, key: &K, lease: Lease, out: Outgoing<'_, V>) -> Filled {
        let (redis_key, life) = (self.redis_key(key), Lifetime::new(out.fresh_for, out.stale_for));
        let names: Vec<&str> = out.tags.iter().map(|tag| &**tag).collect();
        let tags = &self.listener.tags;
        let envelope = match life.end() {
            0 => None,
            end => {
                tags.secure(&names, end).await;
                match tags.verdict(lease.seq, names.iter().copied()) {
                    Verdict::Good => self.envelope(&redis_key, lease.seq, life, &out),
                    Verdict::Unknown => None,
                    Verdict::Outdated => {
                        tags.forget_count();
                        self.put(&FILL, &redis_key, &lease, &[]).await;
                        return Filled::Outdated;
                    }
                }
            }
        };
        let seal = self.coherence().seal(&redis_key);
        let answer = match &envelope {
            Some(bytes) => {
                let life = life.end().to_string();
                self.put(&FILL, &redis_key, &lease, &[bytes, life.as_bytes()]).await
            }
            None => self.put(&FILL, &redis_key, &lease, &[]).await,
        };
        match answer {
            Some(true) if envelope.is_some() => Filled::Yes(seal),
            Some(false) => Filled::Outdated,
            _ => Filled::Unavailable(None),
        }
    }

    /// The source gave no answer that says anything of what the remote has, so that stays.
    pub(crate) async fn give_back(&self, key: &K, lease: Lease) {
        self.put(&GIVE_BACK, &self.redis_key(key), &lease, &[]).await;
    }

    /// Puts a value there, whatever was there before. If that can't be done, nothing is to be there.
    pub(crate) async fn set(&self, key: &K, out: Outgoing<'_, V>) -> Filled {
        self.meet().await;
        let (redis_key, life) = (self.redis_key(key), Lifetime::new(out.fresh_for, out.stale_for));
        if let Some(bytes) = self.insertion(&redis_key, life, &out).await {
            let life = life.end().to_string();
            let command = SET.by_code(&[&redis_key], &[&bytes, life.as_bytes()]);
            return match self.remote.change(&redis_key, &command, Repeat::Delete).await {
                Ok(seal) => Filled::Yes(seal),
                Err((failure, seal)) => {
                    self.sets.note(&failure);
                    Filled::Unavailable(seal)
                }
            };
        }
        Filled::Unavailable(self.forget(vec![redis_key]).await.pop())
    }

    async fn insertion(&self, redis_key: &[u8], life: Lifetime, out: &Outgoing<'_, V>) -> Option<Vec<u8>> {
        if life.end() == 0 || self.config.remote_ttl.is_zero() {
            return None;
        }
        let names: Vec<&str> = out.tags.iter().map(|tag| &**tag).collect();
        let tags = &self.listener.tags;
        let mut seq = tags.secure(&names, life.end()).await?;
        if tags.verdict(seq, names.iter().copied()) != Verdict::Good {
            // Where changes go unheard, what is known of the counter and of the tags may be of different times.
            seq = tags.read(&names, life.end()).await?;
        }
        self.envelope(redis_key, seq, life, out)
    }

    fn envelope(&self, redis_key: &[u8], seq: u64, life: Lifetime, out: &Outgoing<'_, V>) -> Option<Vec<u8>> {
        let body = match out.value {
            None => None,
            Some(value) => Some(self.encode(value)?),
        };
        let fingerprint = self.fingerprint_of(redis_key);
        let contents = Contents { fingerprint, body: body.as_deref(), life, seq, tags: out.tags };
        let sealed = contents.seal(now(), self.remote.config().compress_above);
        if sealed.is_none() {
            self.too_large.increment(1);
        }
        sealed
    }

    fn encode(&self, value: &V) -> Option<Vec<u8>> {
        let encoded = catch_unwind(AssertUnwindSafe(|| self.codec.encode(value)));
        let error = match encoded {
            Ok(Ok(bytes)) => {
                let limit = self.config.max_value_bytes;
                if limit == 0 || bytes.len() as u64 <= limit {
                    return Some(bytes);
                }
                self.too_large.increment(1);
                return None;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the codec panicked".to_owned(),
        };
        self.sets.count();
        tracing::warn!(target: REMOTE_TARGET, cache = self.cache, error, "a value does not encode");
        None
    }

    /// Whether it was done; `None` when Redis gave no answer.
    async fn put(&self, script: &Script, redis_key: &[u8], lease: &Lease, entry: &[&[u8]]) -> Option<bool> {
        let arguments = [&[&lease.id[..]], entry].concat();
        let answer = self.remote.run(script, &[redis_key], &arguments).await;
        // Redis tells other processes.
        self.listener.waits.wake(Some(redis_key));
        match answer {
            Ok(answer) => Some(answer == Value::Int(1)),
            Err(failure) => {
                self.sets.note(&failure);
                self.return_later(redis_key, &lease.id);
                None
            }
        }
    }

    /// Never lost: what Redis can't be told now it is told before it is read again.
    pub(crate) async fn delete(&self, keys: &[K]) {
        self.forget(keys.iter().map(|key| self.redis_key(key)).collect()).await;
    }

    async fn forget(&self, redis_keys: Vec<Vec<u8>>) -> Vec<Seal> {
        let (seals, failed) = self.remote.forget(redis_keys).await;
        if let Some(failure) = failed {
            self.deletes.note(&failure);
        }
        seals
    }

    pub(crate) async fn invalidate_tag(&self, tag: &Arc<str>) {
        self.listener.tags.invalidate(Some(tag)).await;
    }

    /// Makes a miss of all that this cache has in the remote.
    pub(crate) async fn clear(&self) {
        self.listener.tags.invalidate(None).await;
    }

    /// `call` is called when another process has cleared this cache.
    pub(crate) fn on_clear(&self, call: Box<dyn Fn() + Send + Sync>) {
        self.listener.tags.on_clear(call);
    }
}
