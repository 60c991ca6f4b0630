//! What Redis does for us in one step.
//!
//! Redis tells a process of changes to what it has read, but forgets who has read a key when it is written, and tells
//! the writer nothing of its own writes. So each of these ends by reading what it wrote: there is no moment in which a
//! change by somebody else would go unheard.

use std::sync::LazyLock;

use redis::{Cmd, ErrorKind, ServerErrorKind, Value};

use super::{Failure, Remote};

pub(super) struct Script {
    code: &'static str,
    hash: String,
}

impl Script {
    fn new(code: &'static str) -> Script {
        Script { code, hash: redis::Script::new(code).get_hash().to_owned() }
    }

    /// By its hash, which Redis may not know.
    pub(super) fn by_hash(&self, keys: &[&[u8]], arguments: &[&[u8]]) -> Cmd {
        called("EVALSHA", &self.hash, keys, arguments)
    }

    /// By its text.
    pub(super) fn by_code(&self, keys: &[&[u8]], arguments: &[&[u8]]) -> Cmd {
        called("EVAL", self.code, keys, arguments)
    }
}

fn called(command: &str, script: &str, keys: &[&[u8]], arguments: &[&[u8]]) -> Cmd {
    let mut called = Cmd::new();
    called.arg(command).arg(script).arg(keys.len()).arg(keys).arg(arguments);
    called
}

impl Remote {
    pub(super) async fn run(
        &self,
        script: &Script,
        keys: &[&[u8]],
        arguments: &[&[u8]],
    ) -> Result<Value, Failure> {
        match self.ask(&script.by_hash(keys, arguments)).await {
            Err(failure) if is_unknown(&failure) => self.ask(&script.by_code(keys, arguments)).await,
            answer => answer,
        }
    }
}

/// A key, and arguments.
pub(super) type Call = (Vec<u8>, Vec<Vec<u8>>);

impl Remote {
    /// The same script for many keys.
    pub(super) async fn run_all(&self, script: &Script, calls: &[Call]) -> Result<Vec<Value>, Failure> {
        let command = |(key, arguments): &Call, by_code| {
            let arguments: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
            match by_code {
                false => script.by_hash(&[key], &arguments),
                true => script.by_code(&[key], &arguments),
            }
        };
        let commands = |by_code| calls.iter().map(|call| command(call, by_code)).collect::<Vec<Cmd>>();
        match self.ask_all(&commands(false)).await {
            // In a cluster some know it and some not: it must do no harm twice.
            Err(failure) if is_unknown(&failure) => self.ask_all(&commands(true)).await,
            answers => answers,
        }
    }
}

/// Redis was restarted, or has never run the script.
fn is_unknown(failure: &Failure) -> bool {
    matches!(failure, Failure::Refused(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript))
}

/// Puts a lease into a key. Answers 1, also when repeated; or 0 where another one stands; or with the value that is
/// there, unless it is the one that the caller has seen and found wanting. What has the wrong type is replaced.
///
/// A lease is the byte 0xc1, 16 random ones, and when it ends, by Redis' clock, in 16 digits. Behind it stays the
/// value that it stands before, if that may still be served.
///
/// Arguments: the lease's 17 bytes; its length in ms; the length of the seen value, or -1; how that begins; whether it
/// stays readable.
pub(super) static LEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local value = redis.pcall('GET', KEYS[1]) \
         if type(value) == 'table' then value = false end \
         local time = redis.call('TIME') \
         local now, length = time[1] * 1000 + math.floor(time[2] / 1000), tonumber(ARGV[2]) \
         local behind = '' \
         if value and string.sub(value, 1, 17) == ARGV[1] then return 1 end \
         if value and string.byte(value) == 193 then \
           local ends = tonumber(string.sub(value, 18, 33)) or 0 \
           if ends > now and ends <= now + length then return 0 end \
           behind = string.sub(value, 34) \
         elseif value and #value == tonumber(ARGV[3]) and string.sub(value, 1, #ARGV[4]) == ARGV[4] then \
           if ARGV[5] == '1' then behind = value end \
         elseif value then return value end \
         local life = length \
         if behind ~= '' then life = math.max(life, redis.call('PTTL', KEYS[1])) end \
         redis.call('SET', KEYS[1], ARGV[1] .. string.format('%016.0f', now + length) .. behind, 'PX', life) \
         redis.call('STRLEN', KEYS[1]) \
         return 1",
    )
});

/// Puts the end of a lease off; answers 0 when the lease is gone. Arguments: the lease's 17 bytes; its length in ms.
pub(super) static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.pcall('GETRANGE', KEYS[1], 0, 16) ~= ARGV[1] then return 0 end \
         local time, length = redis.call('TIME'), tonumber(ARGV[2]) \
         local ends = time[1] * 1000 + math.floor(time[2] / 1000) + length \
         redis.call('SETRANGE', KEYS[1], 17, string.format('%016.0f', ends)) \
         if redis.call('PTTL', KEYS[1]) < length then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end \
         redis.call('STRLEN', KEYS[1]) \
         return 1",
    )
});

/// Puts a value, or nothing, in the place of a lease; answers 0 when the lease is gone.
/// Arguments: the lease's 17 bytes; the value and its life in ms, or neither.
pub(super) static FILL: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.pcall('GETRANGE', KEYS[1], 0, 16) ~= ARGV[1] then return 0 end \
         if ARGV[2] then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) \
         else redis.call('DEL', KEYS[1]) end \
         redis.call('STRLEN', KEYS[1]) \
         return 1",
    )
});

/// Takes a lease away and leaves what it stood before. Argument: the lease's 17 bytes.
pub(super) static GIVE_BACK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.pcall('GETRANGE', KEYS[1], 0, 16) ~= ARGV[1] then return 0 end \
         local value = redis.call('GETRANGE', KEYS[1], 33, -1) \
         if value == '' then redis.call('DEL', KEYS[1]) \
         else redis.call('SET', KEYS[1], value, 'KEEPTTL') end \
         redis.call('STRLEN', KEYS[1]) \
         return 1",
    )
});

/// Arguments: the value; its life in ms.
pub(super) static SET: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) \
         redis.call('STRLEN', KEYS[1]) \
         return 1",
    )
});

/// The counter of invalidations, and the numbers of tags, all of which are there afterwards and stay for as long as an
/// entry; then for how many ms each tag stays. Keys: the counter, the cache's own tag, tags. Argument: the life of an
/// entry in ms.
///
/// A tag that is missing, be it new or evicted, which nobody can tell apart, gets the number of the last invalidation of
/// any: entries from before that do not come back. The counter and the cache's own tag never end by themselves.
pub(super) static TAGS: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local function missing(key) \
           local value = redis.pcall('GET', key) \
           return type(value) ~= 'string' or #value > 16 or not string.match(value, '^%d+$') \
         end \
         if missing(KEYS[1]) then \
           local time = redis.call('TIME') \
           redis.call('SET', KEYS[1], string.format('%.0f', time[1] * 1000000 + time[2])) \
         end \
         local count = redis.call('GET', KEYS[1]) \
         for place = 2, #KEYS do \
           if missing(KEYS[place]) then redis.call('SET', KEYS[place], count) end \
           if place > 2 and redis.call('PTTL', KEYS[place]) < tonumber(ARGV[1]) then \
             redis.call('PEXPIRE', KEYS[place], string.format('%.0f', 2 * ARGV[1])) \
           end \
         end \
         local answer = redis.call('MGET', unpack(KEYS)) \
         for place = 3, #KEYS do table.insert(answer, redis.call('PTTL', KEYS[place])) end \
         return answer",
    )
});

/// Invalidates tags: they get the counter's next number, for as long as they had to stay. Keys: the counter, tags.
///
/// One that is missing stays so, and so does what a Redis that is full has no room for: it begins with a higher number,
/// the counter with Redis' time. Redis lets a script go on with what takes room once it has deleted something.
///
/// The counter takes Redis' time where that is ahead of it, so that it does not repeat itself when a failover loses its
/// last steps.
pub(super) static INVALIDATE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local value, time = redis.pcall('GET', KEYS[1]), redis.call('TIME') \
         local count = type(value) == 'string' and #value <= 16 and tonumber(value) or 0 \
         count = math.max(count + 1, time[1] * 1000000 + time[2]) \
         local number, lives = string.format('%.0f', count), {} \
         for place = 2, #KEYS do lives[place] = redis.call('PTTL', KEYS[place]) end \
         redis.call('DEL', unpack(KEYS)) \
         local full = redis.pcall('SET', KEYS[1], number).err \
         for place = 2, full and 0 or #KEYS do \
           if lives[place] == -1 then redis.pcall('SET', KEYS[place], number) \
           elseif lives[place] > 0 then redis.pcall('SET', KEYS[place], number, 'PX', lives[place]) end \
         end \
         return 1",
    )
});
