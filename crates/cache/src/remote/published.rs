//! Changes that processes tell each other of, over Redis' pub/sub, where Redis itself does not tell of them.
//!
//! A message comes once or not at all. So each carries who sent it and a number; whoever finds a number missing has
//! missed a change, and trusts nothing from before. Messages of one sender may overtake each other, so a number is
//! missing only when it has been for a while; and after the last message its number is told again, or nobody would know
//! that it is missing: ever more rarely, since that may be lost as well, and since all hear it.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use redis::{Pipeline, RedisResult, Value, aio::MultiplexedConnection};

/// How many senders are remembered. One more, and all are new.
const MAX_SENDERS: usize = 4096;

/// Each how many beats the last message's number is told at least.
const RAREST_BEAT: u64 = 32;

const VERSION: u8 = 1;
const BEAT: u8 = 0;
const KEY: u8 = 1;
const ALL: u8 = 2;

type Id = [u8; 16];

/// Tells others. A new one is a new sender.
pub(super) struct Publisher {
    id: Id,
    connection: MultiplexedConnection,
    channel: String,
    last: AtomicU64,
    /// How many beats there were since the last message.
    beats: AtomicU64,
}

impl Publisher {
    pub(super) fn new(id: Id, connection: MultiplexedConnection, channel: String) -> Publisher {
        Publisher { id, connection, channel, last: AtomicU64::new(0), beats: AtomicU64::new(0) }
    }

    /// Tells of changed keys, or with no key of a change of all.
    pub(super) async fn tell(&self, keys: impl Iterator<Item = Option<&[u8]>>) -> RedisResult<()> {
        self.beats.store(0, Ordering::SeqCst);
        let messages = keys.map(|key| {
            let number = self.last.fetch_add(1, Ordering::SeqCst) + 1;
            let (kind, key) = key.map_or((ALL, [].as_slice()), |key| (KEY, key));
            self.message(number, kind, key)
        });
        self.publish(messages.collect()).await
    }

    /// Makes sure that the connection is there, and that others know of the last message.
    pub(super) async fn beat(&self) -> RedisResult<()> {
        let last = self.last.load(Ordering::SeqCst);
        let beats = self.beats.fetch_add(1, Ordering::SeqCst) + 1;
        if last > 0 && is_told_again(beats) {
            return self.publish(vec![self.message(last, BEAT, &[])]).await;
        }
        let ping = redis::cmd("PING");
        self.connection.clone().send_packed_command(&ping).await?.extract_error().map(drop)
    }

    fn message(&self, number: u64, kind: u8, key: &[u8]) -> Vec<u8> {
        [&[VERSION], self.id.as_slice(), &number.to_be_bytes(), &[kind], key].concat()
    }

    async fn publish(&self, messages: Vec<Vec<u8>>) -> RedisResult<()> {
        if messages.is_empty() {
            return Ok(());
        }
        let mut pipeline = Pipeline::with_capacity(messages.len());
        for message in &messages {
            pipeline.cmd("PUBLISH").arg(&self.channel).arg(message);
        }
        let answers = self.connection.clone().send_packed_commands(&pipeline, 0, messages.len()).await?;
        answers.into_iter().try_for_each(|answer| answer.extract_error().map(drop))
    }
}

fn is_told_again(beats: u64) -> bool {
    beats.is_power_of_two() || beats.is_multiple_of(RAREST_BEAT)
}

/// What a message means.
#[derive(Debug, PartialEq)]
pub(super) enum News<'a> {
    Nothing,
    Changed(&'a [u8]),
    AllChanged,
    /// Something was missed.
    Missed,
}

/// Hears what others tell.
pub(super) struct Subscriber {
    own: Id,
    senders: Mutex<HashMap<Id, Heard>>,
}

#[derive(Default)]
struct Heard {
    /// All numbers up to this one are accounted for.
    base: u64,
    highest: u64,
    /// How many have come since `base`.
    count: u64,
    /// It lacked some already when it was looked at last.
    lacked: bool,
}

impl Subscriber {
    pub(super) fn new(own: Id) -> Subscriber {
        Subscriber { own, senders: Mutex::default() }
    }

    /// Of a push of the kind `message`: the channel and what was sent.
    pub(super) fn hear<'a>(&self, push: &'a [Value]) -> News<'a> {
        match push {
            [_, Value::BulkString(message)] => self.read(message),
            _ => News::Missed,
        }
    }

    fn read<'a>(&self, message: &'a [u8]) -> News<'a> {
        let Some((&VERSION, rest)) = message.split_first() else { return News::Missed };
        let Some((id, rest)) = rest.split_first_chunk::<16>() else { return News::Missed };
        let Some((number, rest)) = rest.split_first_chunk::<8>() else { return News::Missed };
        let Some((&kind, key)) = rest.split_first() else { return News::Missed };
        if *id == self.own {
            return News::Nothing;
        }
        if self.count(*id, u64::from_be_bytes(*number), kind != BEAT) {
            return News::Missed;
        }
        match kind {
            BEAT => News::Nothing,
            KEY => News::Changed(key),
            ALL => News::AllChanged,
            _ => News::Missed,
        }
    }

    /// True if something was missed for certain.
    fn count(&self, id: Id, number: u64, is_one: bool) -> bool {
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(heard) = senders.get_mut(&id) else {
            let forgets = senders.len() >= MAX_SENDERS;
            if forgets {
                senders.clear();
            }
            senders.insert(id, Heard { base: number, highest: number, count: 0, lacked: false });
            return forgets || number > u64::from(is_one);
        };
        heard.highest = heard.highest.max(number);
        heard.count += u64::from(is_one && number > heard.base);
        false
    }

    /// Whether messages have been missing since the last look.
    pub(super) fn lacks(&self) -> bool {
        let mut senders = self.senders.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lacks = false;
        for heard in senders.values_mut() {
            let complete = heard.highest - heard.base == heard.count;
            let missed = !complete && heard.lacked;
            lacks |= missed;
            if complete || missed {
                *heard = Heard { base: heard.highest, highest: heard.highest, count: 0, lacked: false };
            } else {
                heard.lacked = true;
            }
        }
        lacks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(number: u64, kind: u8, key: &[u8]) -> Vec<u8> {
        [&[VERSION], [7; 16].as_slice(), &number.to_be_bytes(), &[kind], key].concat()
    }

    #[test]
    fn messages_that_overtake_each_other_are_none_missed() {
        let subscriber = Subscriber::new([0; 16]);
        for number in [1, 3, 2, 5] {
            assert_eq!(subscriber.read(&message(number, KEY, b"k")), News::Changed(b"k"));
        }
        assert!(!subscriber.lacks(), "the fourth may be on its way");
        subscriber.read(&message(4, ALL, b""));
        assert!(!subscriber.lacks());
        assert!(!subscriber.lacks());
    }

    #[test]
    fn a_message_that_does_not_come_is_missed_even_if_it_was_the_last() {
        let subscriber = Subscriber::new([0; 16]);
        subscriber.read(&message(1, KEY, b"k"));
        assert_eq!(subscriber.read(&message(2, BEAT, b"")), News::Nothing);
        assert!(!subscriber.lacks());
        assert!(subscriber.lacks());
        assert!(!subscriber.lacks(), "once");
        assert_eq!(subscriber.read(&message(2, KEY, b"k")), News::Changed(b"k"), "late, but heard");
        assert!(!subscriber.lacks() && !subscriber.lacks());
    }

    #[test]
    fn a_last_number_is_told_again_without_end() {
        let told: Vec<u64> = (1..100).filter(|beats| is_told_again(*beats)).collect();
        assert_eq!(told, [1, 2, 4, 8, 16, 32, 64, 96]);
    }

    #[test]
    fn who_is_heard_for_the_first_time_may_have_spoken_before() {
        let first =
            |number, kind| Subscriber::new([0; 16]).read(&message(number, kind, b"k")) == News::Missed;
        assert!(first(2, KEY) && first(1, BEAT));
        assert!(!first(1, KEY) && !first(0, BEAT));
    }

    #[test]
    fn own_messages_are_no_news_and_garbage_is_bad_news() {
        let own = Subscriber::new([7; 16]);
        assert_eq!(own.read(&message(9, KEY, b"k")), News::Nothing);
        let subscriber = Subscriber::new([0; 16]);
        subscriber.read(&message(1, KEY, b"k"));
        for end in 0..26 {
            assert_eq!(subscriber.read(&message(2, KEY, b"k")[..end]), News::Missed);
        }
        assert_eq!(subscriber.read(&message(2, 9, b"k")), News::Missed);
        assert_eq!(subscriber.hear(&[]), News::Missed);
    }

    #[test]
    fn senders_without_end_take_bounded_memory() {
        let subscriber = Subscriber::new([0; 16]);
        for number in 0..2 * MAX_SENDERS as u128 {
            subscriber.count(number.to_be_bytes(), 1, true);
        }
        assert!(subscriber.senders.lock().unwrap().len() <= MAX_SENDERS);
    }
}
