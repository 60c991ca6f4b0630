//! What stands around a value in the remote.
//!
//! All numbers are little endian. First the head, of fixed length; then the names of the tags, each behind its length
//! in two bytes; then the body, what the codec wrote, perhaps compressed.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::compress::{compressed, decompressed};

/// Raised whenever what follows it changes. What has another version is not read.
const VERSION: u8 = 1;
const ABSENT: u8 = 1;
const COMPRESSED: u8 = 2;
/// As many as a Lua script can take.
const MAX_TAGS: usize = 1_000;
const HEAD: usize = 2 + 6 * 8 + 4 + 2;

/// Redis refuses an expiry that overflows its clock; a century is as good as for ever.
const MAX_LIFE: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// A value as the remote has it.
pub(super) struct Envelope<'a> {
    pub(super) absent: bool,
    pub(super) life: Lifetime,
    /// The number of the last invalidation by tag that the value has seen.
    pub(super) seq: u64,
    pub(super) tags: Vec<&'a str>,
    body: &'a [u8],
    compressed: bool,
}

/// In milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Lifetime {
    pub(super) fresh: u64,
    /// Beyond `fresh`.
    pub(super) stale: u64,
    /// How long it was fresh at its beginning.
    pub(super) whole: u64,
}

/// What an envelope is made of.
pub(super) struct Contents<'a> {
    /// Of the key, and of what else must be the same when it is read.
    pub(super) fingerprint: u64,
    /// `None`: the source has no such thing.
    pub(super) body: Option<&'a [u8]>,
    pub(super) life: Lifetime,
    pub(super) seq: u64,
    pub(super) tags: &'a [Arc<str>],
}

impl Lifetime {
    /// Of what is put into the remote now. A life under a millisecond is still one.
    pub(super) fn new(fresh: Duration, stale: Duration) -> Lifetime {
        let ms = |life: Duration| match life.is_zero() {
            true => 0,
            false => (life.min(MAX_LIFE).as_millis() as u64).max(1),
        };
        Lifetime { fresh: ms(fresh), stale: ms(stale), whole: ms(fresh) }
    }

    /// When the remote is to forget it; 0 at once.
    pub(super) fn end(self) -> u64 {
        self.fresh + self.stale
    }

    /// What is left at `now` of a life that began at `born`. A clock that jumps makes it stale, or new; not longer.
    fn left(born: u64, fresh_until: u64, stale_until: u64, now: u64) -> Lifetime {
        let whole = fresh_until.saturating_sub(born);
        let fresh = fresh_until.saturating_sub(now).min(whole);
        let stale =
            stale_until.saturating_sub(fresh_until.max(now)).min(stale_until.saturating_sub(fresh_until));
        Lifetime { fresh, stale, whole }
    }
}

impl Contents<'_> {
    /// `None` for more than a thousand tags, a name beyond 65535 bytes, or a body beyond 4 GiB.
    pub(super) fn seal(&self, now: u64, compress_above: usize) -> Option<Vec<u8>> {
        if self.tags.len() > MAX_TAGS {
            return None;
        }
        let packed = self.body.and_then(|body| compressed(body, compress_above));
        let flags =
            if self.body.is_none() { ABSENT } else { 0 } | if packed.is_some() { COMPRESSED } else { 0 };
        let body = packed.as_deref().or(self.body).unwrap_or_default();
        let names: usize = self.tags.iter().map(|tag| 2 + tag.len()).sum();
        let fresh_until = now.saturating_add(self.life.fresh);
        let mut bytes = Vec::with_capacity(HEAD + names + body.len());
        bytes.extend([VERSION, flags]);
        // The nonce comes first, for whoever compares only the beginning.
        let stale_until = fresh_until.saturating_add(self.life.stale);
        for number in [rand::random(), self.fingerprint, now, fresh_until, stale_until, self.seq] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(u32::try_from(body.len()).ok()?.to_le_bytes());
        bytes.extend(u16::try_from(self.tags.len()).ok()?.to_le_bytes());
        for tag in self.tags {
            bytes.extend(u16::try_from(tag.len()).ok()?.to_le_bytes());
            bytes.extend(tag.as_bytes());
        }
        bytes.extend(body);
        Some(bytes)
    }
}

impl<'a> Envelope<'a> {
    /// `None` for what is no envelope, or one of another version, or of something else than `fingerprint`.
    pub(super) fn open(bytes: &'a [u8], fingerprint: u64, now: u64) -> Option<Envelope<'a>> {
        let mut rest = bytes;
        let [version, flags] = take(&mut rest)?;
        if version != VERSION || flags & !(ABSENT | COMPRESSED) != 0 {
            return None;
        }
        let mut number = || take(&mut rest).map(u64::from_le_bytes);
        let (_nonce, of, born, fresh_until, stale_until, seq) =
            (number()?, number()?, number()?, number()?, number()?, number()?);
        if of != fingerprint {
            return None;
        }
        let length = u32::from_le_bytes(take(&mut rest)?) as usize;
        let names = u16::from_le_bytes(take(&mut rest)?);
        let mut tags = Vec::new();
        for _ in 0..names {
            let length = u16::from_le_bytes(take(&mut rest)?) as usize;
            let (name, others) = rest.split_at_checked(length)?;
            tags.push(std::str::from_utf8(name).ok()?);
            rest = others;
        }
        let absent = flags & ABSENT != 0;
        (rest.len() == length && (!absent || length == 0)).then_some(Envelope {
            absent,
            life: Lifetime::left(born, fresh_until, stale_until, now),
            seq,
            tags,
            body: rest,
            compressed: flags & COMPRESSED != 0,
        })
    }

    /// What the codec wrote.
    pub(super) fn body(&self) -> Option<Cow<'a, [u8]>> {
        match self.compressed {
            true => decompressed(self.body).map(Cow::Owned),
            false => Some(Cow::Borrowed(self.body)),
        }
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*first)
}

/// Milliseconds since 1970. Processes share the remote, so this is the one clock that they share.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// FNV-1a: the same in every process and version, unlike std's hashers. It guards against mistakes, not attackers.
#[derive(Clone, Copy)]
pub(super) struct Fingerprint(u64);

impl Default for Fingerprint {
    fn default() -> Fingerprint {
        Fingerprint(0xcbf2_9ce4_8422_2325)
    }
}

impl Fingerprint {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    pub(super) fn get(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Lifetime = Lifetime { fresh: 1_000, stale: 500, whole: 1_000 };

    fn sealed(body: Option<&[u8]>) -> Vec<u8> {
        let tags = ["list:winter".into(), "".into()];
        let contents = Contents { fingerprint: 7, body, life: LIFE, seq: 9, tags: &tags };
        contents.seal(10_000, 4096).unwrap()
    }

    #[test]
    fn what_is_sealed_is_found_again() {
        let long = b"all work and no play ".repeat(1_000);
        for body in [Some(&b"body"[..]), Some(b""), Some(&long), None] {
            let bytes = sealed(body);
            let envelope = Envelope::open(&bytes, 7, 10_000).unwrap();
            assert_eq!((envelope.absent, envelope.life, envelope.seq), (body.is_none(), LIFE, 9));
            assert_eq!(envelope.tags, ["list:winter", ""]);
            assert_eq!(envelope.body().unwrap(), body.unwrap_or_default());
            assert!(Envelope::open(&bytes, 8, 10_000).is_none(), "another key's");
        }
    }

    #[test]
    fn of_garbage_nothing_is_made() {
        let bytes = sealed(Some(&b"all work and no play ".repeat(1_000)));
        for end in 0..bytes.len() {
            assert!(Envelope::open(&bytes[..end], 7, 0).is_none());
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(Envelope::open(&longer, 7, 0).is_none());
        let mut newer = bytes.clone();
        newer[0] = VERSION + 1;
        assert!(Envelope::open(&newer, 7, 0).is_none());
        for _ in 0..100_000 {
            let mut other = bytes.clone();
            for _ in 0..3 {
                let place = rand::random_range(0..other.len());
                other[place] = rand::random();
            }
            let _ = Envelope::open(&other, 7, 0).map(|envelope| envelope.body());
        }
    }

    #[test]
    fn a_clock_that_jumps_makes_a_life_no_longer() {
        let left = |now| Lifetime::left(10_000, 11_000, 11_500, now);
        assert_eq!(left(10_400), Lifetime { fresh: 600, stale: 500, whole: 1_000 });
        assert_eq!(left(11_200), Lifetime { fresh: 0, stale: 300, whole: 1_000 });
        assert_eq!(left(0), LIFE);
        assert_eq!(left(u64::MAX), Lifetime { fresh: 0, stale: 0, whole: 1_000 });
        for (born, fresh_until, stale_until) in [(u64::MAX, 0, 0), (0, u64::MAX, 0), (5, 0, u64::MAX)] {
            let life = Lifetime::left(born, fresh_until, stale_until, 3);
            assert!(life.fresh <= life.whole);
        }
    }

    #[test]
    fn a_life_is_neither_too_short_nor_too_long_for_redis() {
        let life = |fresh, stale| Lifetime::new(fresh, stale).end();
        assert_eq!(life(Duration::ZERO, Duration::ZERO), 0);
        assert_eq!(life(Duration::from_nanos(1), Duration::ZERO), 1);
        assert!(life(Duration::MAX, Duration::MAX) < 1 << 53, "Lua's numbers are floats");
    }
}
