//! L2: Redis, shared by processes. It may fail at any time, and then costs little.

mod codec;
mod coherence;
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
    kept::{Filled, Kept, Outgoing, Turn},
    lease::Lease,
    recovery::Repeat,
    tier::{MakeKey, Tier, display},
};
use self::{link::Link, session::Session, target::Target};
use crate::{Error, RemoteConfig};

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
    /// A remote at a URL:
    ///
    /// - `redis://user:password@host:6379/0`: one server; `rediss://…` with TLS; `unix:///path` on this machine;
    /// - `redis+sentinel://user:password@host1:26379,host2/name/0`: the primary that the sentinels know by this name,
    ///   which are told `?sentinel_user=…&sentinel_password=…` if that is there;
    /// - `redis+cluster://user:password@host1:6379,host2`: a cluster, of which some nodes are named;
    /// - `rediss+sentinel://…`, `rediss+cluster://…`: the same with TLS.
    ///
    /// It connects when it is first needed: a Redis that is down fails no start. For TLS it makes ring rustls's
    /// provider for the process, unless the process has chosen one.
    pub fn connect(url: &str) -> Result<Remote, Error> {
        Remote::connect_with(url, RemoteConfig::default())
    }

    /// The same, with other limits than the default ones.
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
    /// done now is done before the next read. So it never fails.
    ///
    /// Dropping the future leaves what is not done to be done later.
    pub(crate) async fn forget(&self, redis_keys: Vec<Vec<u8>>) {
        for keys in redis_keys.chunks(FORGOTTEN_AT_ONCE) {
            let link = self.link();
            let numbers: Vec<u64> = keys.iter().map(|key| link.note(key, Repeat::Delete)).collect();
            let delete = async |mut session: Session| session.delete(keys).await;
            if link.insist(delete).await {
                for (key, number) in keys.iter().zip(numbers) {
                    link.confirmed(key, number);
                    // Redis does not tell this process of what it changes itself.
                    link.hearers.tell(&link.coherence, Some(key));
                }
            }
        }
    }

    /// Has `repeat` done as soon as Redis answers, for what was asked of it and had no answer. `name` is for this alone:
    /// of two under one name, the later is done; and no key has it.
    pub(crate) fn later(&self, name: &[u8], repeat: Repeat) {
        self.link().note(name, repeat);
    }

    /// Makes a change of one key that others must hear of: commands one after the other. Returns a seal, too, that is
    /// good for what the last of them saw or wrote, if the last is a read.
    ///
    /// When it fails, or the future is dropped, the change may have been made or not; `repeat` then brings Redis in
    /// order, before the next read.
    pub(crate) async fn change(
        &self,
        redis_key: &[u8],
        commands: &[Cmd],
        repeat: Repeat,
    ) -> Result<(Vec<Value>, Seal), Failure> {
        let link = self.link();
        let number = link.note(redis_key, repeat.clone());
        let before = link.coherence.seal(redis_key);
        let change = async |mut session: Session| session.change(redis_key, commands).await;
        let answers = match link.exchange(change).await {
            Ok(answers) => answers,
            Err(failure) => {
                // An old value that could not be replaced would be read.
                if let Failure::Refused(_) = failure
                    && link.insist(async |mut session| session.repeat(&[(redis_key, &repeat)]).await).await
                {
                    link.confirmed(redis_key, number);
                    link.hearers.tell(&link.coherence, Some(redis_key));
                }
                return Err(failure);
            }
        };
        link.confirmed(redis_key, number);
        let seal = link.coherence.changed_here(before);
        link.hearers.changed(Some(redis_key));
        Ok((answers, seal))
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
