//! L2: Redis, shared by processes. It may fail at any time, and then costs little.

mod codec;
mod coherence;
#[cfg(test)]
mod coherence_tests;
mod compress;
mod connection;
mod envelope;
mod failure;
mod failures;
mod hearing;
mod keeper;
mod kept;
mod lease;
mod link;
#[cfg(feature = "postcard")]
mod postcard;
mod published;
mod recovery;
mod remote_tags;
mod script;
mod sentinel;
mod session;
mod target;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod tier;
mod waits;

use std::{fmt, sync::Arc};

use redis::{Cmd, FromRedisValue, Value};

pub use self::codec::{Codec, MessagePack};
#[cfg(feature = "postcard")]
pub use self::postcard::Postcard;
pub(crate) use self::{
    coherence::{Coherence, Seal, Standing},
    failure::Failure,
    hearing::OnChange,
    kept::{Filled, Kept, Outgoing, RemoteStats, Turn},
    lease::Lease,
    recovery::Repeat,
    tier::{MakeKey, Tier, display},
};
use self::{link::Link, session::Session, target::Target};
use crate::{Error, RemoteConfig, sync};

/// How many keys are deleted at a time.
const FORGOTTEN_AT_ONCE: usize = 512;

/// A Redis (or Valkey) that caches keep their values in.
///
/// It never fails a read. Every operation ends within [`RemoteConfig::timeout`], and one that does not answer is asked
/// nothing more until a task in the background finds it well again. Invalidations that it missed are repeated before
/// it is read again. All caches given a clone share one connection, which is opened by the first operation, on the
/// runtime of that one, and again whenever it is lost; it ends with the last clone.
///
/// ```no_run
/// use greenwave_cache::{Cache, Remote};
///
/// # fn main() -> Result<(), greenwave_cache::Error> {
/// let remote = Remote::connect("redis://127.0.0.1:6379")?;
/// let names = Cache::<u64, String>::builder("name").remote(remote.clone()).build();
/// let ages = Cache::<u64, u8>::builder("age").remote(remote).build();
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Remote {
    shared: Arc<Shared>,
}

/// Of all clones: when the last is gone, the connection ends.
struct Shared {
    link: Arc<Link>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.link.end();
    }
}

impl Remote {
    /// A remote at a URL, to which it connects when it is first needed: a Redis that is down fails no start.
    ///
    /// - `redis://user:password@host:6379/0`: one server; `rediss://…` with TLS; `unix:///path` on this machine;
    /// - `valkey://…`, `valkeys://…`: the same as `redis://…` and `rediss://…`;
    /// - `redis+sentinel://user:password@host1:26379,host2/name/0`: the primary that the sentinels know by this name,
    ///   which are told `?sentinel_user=…&sentinel_password=…` if that is there;
    /// - `redis+cluster://user:password@host1:6379,host2`: a cluster, of which some nodes are named;
    /// - `rediss+sentinel://…`, `rediss+cluster://…`: the same with TLS.
    ///
    /// For TLS it makes ring rustls's provider for the process, unless the process has chosen one.
    ///
    /// # Errors
    ///
    /// [`Error::RemoteUrl`] for a URL that is none of these. Nothing that a server does is an error here.
    pub fn connect(url: &str) -> Result<Remote, Error> {
        Remote::connect_with(url, RemoteConfig::default())
    }

    /// The same, with other settings than the default ones.
    ///
    /// # Errors
    ///
    /// [`Error::RemoteUrl`] for a URL that is not understood, [`Error::RemoteCertificate`] for a file that can't be
    /// read, and [`Error::RemoteTls`] for certificates and keys that can't be used.
    pub fn connect_with(url: &str, config: RemoteConfig) -> Result<Remote, Error> {
        let target = Target::parse(url, &config)?;
        if target.is_encrypted() {
            // Without a provider the first connection would panic. This fails only where there is one.
            let _ = rustls::crypto::ring::default_provider().install_default();
        }
        Ok(Remote { shared: Arc::new(Shared { link: Arc::new(Link::new(target, config)) }) })
    }

    /// Asks Redis, within the timeout; does not ask one that does not answer at present.
    ///
    /// Dropping the future asks nothing more; Redis may still do what it was asked.
    pub(crate) async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Failure> {
        let answer = self.link().exchange(async |mut session| session.connection.send(command).await).await?;
        redis::from_redis_value(answer).map_err(|error| Failure::Refused(error.into()))
    }

    /// The same for several commands, of any keys, in no certain order. An error of any is the error of all.
    pub(crate) async fn ask_all(&self, commands: &[Cmd]) -> Result<Vec<Value>, Failure> {
        self.link().exchange(async |mut session| session.connection.send_all(commands).await).await
    }

    /// Makes Redis forget keys, and tells those who have them. Waits for that as long as the timeout; what cannot be
    /// done now is done before the next read. Answers with what failed, if only to be counted.
    ///
    /// Returns a seal for each key that it has forgotten by now, as [`Remote::change`] does.
    ///
    /// Dropping the future leaves what is not done to be done later.
    pub(crate) async fn forget(&self, redis_keys: Vec<Vec<u8>>) -> (Vec<Seal>, Option<Failure>) {
        let (mut seals, mut failed) = (Vec::with_capacity(redis_keys.len()), None);
        for keys in redis_keys.chunks(FORGOTTEN_AT_ONCE) {
            let link = self.link();
            let noted: Vec<_> =
                keys.iter().map(|key| (link.note(key, Repeat::Delete), link.coherence.seal(key))).collect();
            let delete = async |mut session: Session| session.delete(keys).await;
            let failure = link.insist(delete).await.err();
            if failure.as_ref().is_none_or(Failure::is_lasting) {
                seals.extend(keys.iter().zip(noted).map(|(key, noted)| self.changed_here(key, noted)));
            }
            failed = failure.or(failed);
        }
        (seals, failed)
    }

    /// For Redis does not tell this process of what it changes itself. `noted` is from before the change.
    fn changed_here(&self, redis_key: &[u8], (number, before): (u64, Seal)) -> Seal {
        let link = self.link();
        link.confirmed(redis_key, number);
        let seal = link.coherence.changed_here(before);
        link.hearers.changed(Some(redis_key));
        seal
    }

    /// Has `repeat` done as soon as Redis answers, for what was asked of it and had no answer. `name` is for this alone:
    /// of two under one name, the later is done; and no key has it.
    pub(crate) fn later(&self, name: &[u8], repeat: Repeat) {
        self.link().note(name, repeat);
    }

    /// Makes a change of one key that others must hear of. Returns a seal that is good for what was written, if the
    /// command is a script that ends by reading it.
    ///
    /// When it fails, or the future is dropped, the change may have been made or not; `repeat` then brings Redis in
    /// order, before the next read. The seal of a failure is there when that is done already.
    pub(crate) async fn change(
        &self,
        redis_key: &[u8],
        command: &Cmd,
        repeat: Repeat,
    ) -> Result<Seal, (Failure, Option<Seal>)> {
        let link = self.link();
        let noted = (link.note(redis_key, repeat.clone()), link.coherence.seal(redis_key));
        let change = async |mut session: Session| session.change(redis_key, command).await;
        let Err(failure) = link.exchange(change).await else {
            return Ok(self.changed_here(redis_key, noted));
        };
        let mut seal = None;
        // An old value that could not be replaced would be read.
        if let Failure::Refused(_) = failure {
            let repeated = async |mut session: Session| session.repeat(&[(redis_key, &repeat)]).await;
            if link.insist(repeated).await.err().as_ref().is_none_or(Failure::is_lasting) {
                seal = Some(self.changed_here(redis_key, noted));
            }
        }
        Err((failure, seal))
    }

    /// How many changes the remote has not confirmed yet, by whatever cache.
    pub(crate) fn unconfirmed(&self) -> u64 {
        self.link().line().missed.len()
    }

    /// By what memory knows whether what it has is still what Redis has.
    pub(crate) fn coherence(&self) -> &Arc<Coherence> {
        &self.link().coherence
    }

    /// `hear` is called for each change of a key that is heard of, and for those made here: with the key, or with none
    /// for all of them. It is called in order, by who must not wait, after the key's stamp has moved.
    #[must_use = "it is called as long as this is kept"]
    pub(crate) fn on_change(&self, hear: Arc<OnChange>) -> Arc<OnChange> {
        self.link().hearers.on_change(Arc::downgrade(&hear));
        hear
    }

    /// When more changes were missed than could be remembered, `clearing` is done before the next read, and should clear
    /// a cache.
    pub(crate) fn is_cleared_by(&self, clearing: Cmd) {
        self.link().hearers.is_cleared_by(clearing);
    }

    /// What the names of all keys begin with: the namespace with its colon, or nothing.
    pub(crate) fn prefix(&self) -> &str {
        &self.link().prefix
    }

    pub(crate) fn config(&self) -> &RemoteConfig {
        &self.link().config
    }

    fn link(&self) -> &Arc<Link> {
        &self.shared.link
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.link().target.to_string();
        f.debug_struct("Remote").field("address", &address).finish_non_exhaustive()
    }
}
