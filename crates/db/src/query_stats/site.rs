//! Where in the program a statement comes from.

use std::{
    backtrace::Backtrace,
    fmt,
    panic::Location,
    sync::{Arc, Mutex, PoisonError, TryLockError},
};

/// Crates that run a caller's code, or are run by it, on the way to a statement.
const NOT_A_CALLER: [&str; 14] = [
    "alloc",
    "async_stream",
    "core",
    "futures",
    "futures_core",
    "futures_util",
    "greenwave_db",
    "sqlx",
    "sqlx_core",
    "sqlx_postgres",
    "std",
    "tokio",
    "tokio_util",
    "tracing",
];
const UNKNOWN: &str = "unknown";

/// What is known of the caller when its statement ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Site {
    Code(&'static Location<'static>),
    Loader(&'static str),
    Unknown,
}

impl Site {
    /// Tells sites apart, cheaply: of one and the same there may be several.
    pub(super) fn place(self) -> (usize, usize) {
        match self {
            Self::Code(place) => (std::ptr::from_ref(place).addr(), 0),
            Self::Loader(name) => (name.as_ptr().addr(), name.len()),
            Self::Unknown => (0, 0),
        }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(place) => write!(f, "{place}"),
            Self::Loader(name) => write!(f, "BatchLoader `{name}`"),
            Self::Unknown => f.write_str(UNKNOWN),
        }
    }
}

/// The stack on which a statement ran, until somebody asks whose it was.
#[derive(Debug, Default)]
pub(super) struct Trace(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    #[default]
    Absent,
    Captured(Backtrace),
    Resolved(Arc<str>),
}

impl Trace {
    /// Takes some ten microseconds.
    pub(super) fn capture() -> Self {
        Self(Mutex::new(State::Captured(Backtrace::force_capture())))
    }

    /// The call site. The first time in a process this reads the debug information, which takes up to some hundred
    /// milliseconds.
    pub(super) fn site(&self) -> Arc<str> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let site = match &*state {
            State::Absent => return UNKNOWN.into(),
            State::Resolved(site) => return Arc::clone(site),
            State::Captured(backtrace) => caller(&backtrace.to_string()).unwrap_or(UNKNOWN.to_owned()),
        };
        let site: Arc<str> = site.into();
        *state = State::Resolved(Arc::clone(&site));
        site
    }

    /// Whether [`site`](Self::site) may take its time; this does not.
    pub(super) fn is_unresolved(&self) -> bool {
        match self.0.try_lock() {
            Ok(state) => matches!(*state, State::Captured(_)),
            Err(TryLockError::WouldBlock) => true, // Somebody is at it.
            Err(TryLockError::Poisoned(_)) => false,
        }
    }
}

/// Finds the caller in a printed backtrace, since std shows no frames: `12: name`, and on the next line
/// `at file:line:column` where debug information has that.
///
/// Files tell most: what is a dependency lies under cargo's home, and this file lies where this crate does. With line
/// tables alone, the name of a function that was inlined lacks its path.
fn caller(backtrace: &str) -> Option<String> {
    let mut lines = backtrace.lines().peekable();
    let mut own = None;
    while let Some(line) = lines.next() {
        let Some((number, name)) = line.trim_start().split_once(": ") else { continue };
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let place = lines.peek().and_then(|next| next.trim_start().strip_prefix("at "));
        let Some(place) = place else {
            if is_caller(name) && name.contains("::") {
                return Some(name.trim_end_matches("::{{closure}}").to_owned());
            }
            continue;
        };
        // The first frames are this file's.
        own = own.or_else(|| Some(place.split_once("query_stats/site.rs:")?.0));
        let foreign =
            ["/rustc/", "/registry/src/", "/git/checkouts/"].iter().any(|path| place.contains(path));
        if !foreign && own.is_none_or(|own| !place.starts_with(own)) && is_caller(name) {
            return Some(place.strip_prefix("./").unwrap_or(place).to_owned());
        }
    }
    None
}

/// Whether the function is of none of the crates that are never the caller.
fn is_caller(function: &str) -> bool {
    let path = function.trim_start_matches(['<', '&', '*', '(']);
    let path = path.trim_start_matches("mut ").trim_start_matches("dyn ");
    // `crate[hash]` in the newer mangling.
    let krate = path.split([':', '[']).next().unwrap_or(path);
    !NOT_A_CALLER.contains(&krate)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STACK: &str = "\
   0: std::backtrace_rs::backtrace::trace
             at /rustc/abc/library/std/src/backtrace.rs:331:13
   1: greenwave_db::query_stats::site::Trace::capture
             at ./crates/db/src/query_stats/site.rs:60:48
   2: <core::pin::Pin<P> as core::future::future::Future>::poll
   2: {async_fn#0}
             at ./crates/db/src/postgres/executor.rs:7:7
   3: <sqlx_core::query::Query<DB,A>>::fetch_one::{{closure}}
   4: shop::users::load::{{closure}}
             at ./apps/shop/src/users.rs:12:9
   5: poll<tokio::task>
             at /cargo/registry/src/index/tokio/src/task.rs:1:1
   6: main
";

    #[test]
    fn the_caller_is_the_first_frame_that_is_nobody_elses() {
        assert_eq!(caller(STACK).as_deref(), Some("apps/shop/src/users.rs:12:9"));
        let inlined =
            STACK.replace("shop::users::load::{{closure}}", "{async_fn#0}<&greenwave_db::postgres::Pool>");
        assert_eq!(caller(&inlined).as_deref(), Some("apps/shop/src/users.rs:12:9"));
    }

    #[test]
    fn without_debug_information_the_caller_is_its_function() {
        let stripped: String = STACK
            .lines()
            .filter(|line| !line.trim_start().starts_with("at "))
            .flat_map(|line| [line, "\n"])
            .collect();
        assert_eq!(caller(&stripped).as_deref(), Some("shop::users::load"));
    }

    #[test]
    fn this_crate_may_lack_what_the_caller_has() {
        let own = |line: &&str| !line.contains("crates/db") && !line.contains("{async_fn#0}");
        let stack: String = STACK.lines().filter(own).flat_map(|line| [line, "\n"]).collect();
        assert_eq!(caller(&stack).as_deref(), Some("apps/shop/src/users.rs:12:9"));
    }

    #[test]
    fn a_stack_of_runtimes_has_no_caller() {
        assert_eq!(
            caller(
                "   0: tokio::x\n   1: <&mut core::y as core::z>::f\n   2: main\n   3: __libc_start_main\n"
            ),
            None
        );
        assert_eq!(&*Trace::default().site(), UNKNOWN);
    }
}
