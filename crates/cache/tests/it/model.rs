//! The table of claims under loom, which tries the orders in which threads can get at it: all in which no more than
//! three of them are interrupted where they need not wait. The file is the library's own; only its locks are loom's.

use std::sync::Arc;

use loom::{
    sync::{
        Condvar,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use self::{
    invalidate::{Entrance, Table},
    sync::Mutex,
};

#[allow(dead_code, unreachable_pub)]
#[path = "../../src/invalidate.rs"]
mod invalidate;

mod sync {
    use std::hash::{BuildHasherDefault, DefaultHasher};

    pub(crate) use loom::{
        model as check,
        sync::{Mutex, MutexGuard},
    };

    /// The same in every run, or loom could not repeat one.
    pub(crate) type Hashing = BuildHasherDefault<DefaultHasher>;
    pub(crate) const SHARDS: usize = 2;
}

const KEY: u8 = 1;

/// A cache with all that is not the table cut down to the least.
struct World {
    table: Arc<Table<u8, Flight>>,
    memory: Mutex<Option<u64>>,
    remote: Mutex<Option<u64>>,
    source: AtomicU64,
    loads: AtomicU64,
}

struct Flight {
    outcome: Mutex<Option<Result<u64, u64>>>,
    landed: Condvar,
}

impl Flight {
    fn new() -> Flight {
        Flight { outcome: Mutex::new(None), landed: Condvar::new() }
    }

    fn land(&self, outcome: Result<u64, u64>) {
        *self.outcome.lock().unwrap() = Some(outcome);
        self.landed.notify_all();
    }

    /// Loom finds those who wait for ever.
    fn wait(&self) -> Result<u64, u64> {
        let mut outcome = self.outcome.lock().unwrap();
        loop {
            match *outcome {
                Some(outcome) => return outcome,
                None => outcome = self.landed.wait(outcome).unwrap(),
            }
        }
    }
}

impl World {
    fn new() -> Arc<World> {
        Arc::new(World {
            table: Arc::new(Table::new()),
            memory: Mutex::new(None),
            remote: Mutex::new(None),
            source: AtomicU64::new(0),
            loads: AtomicU64::new(0),
        })
    }

    fn look(&self) -> Option<u64> {
        *self.memory.lock().unwrap()
    }

    fn keep(&self, value: Option<u64>) {
        *self.memory.lock().unwrap() = value;
    }

    /// As `get_or_load`. A failure says what it would have brought.
    fn get(&self, fails: bool) -> Result<u64, u64> {
        if let Some(value) = self.look() {
            return Ok(value);
        }
        match self.table.join_or_lead(&KEY, |_| true, || (self.look(), ()), Flight::new) {
            Entrance::Present(value) => Ok(value),
            Entrance::Join(flight) => flight.wait(),
            Entrance::Lead(claim, flight) => {
                self.loads.fetch_add(1, Ordering::SeqCst);
                let value = self.source.load(Ordering::SeqCst);
                if fails {
                    flight.land(Err(value));
                    // It stays for a while, and leaves.
                    thread::yield_now();
                    claim.land(&flight, || ());
                    return Err(value);
                }
                claim.land(&flight, || self.keep(Some(value)));
                flight.land(Ok(value));
                Ok(value)
            }
        }
    }

    /// As `get` where there is a remote.
    fn get_from_remote(&self) -> Option<u64> {
        self.look().or_else(|| {
            let claim = self.table.claim(&KEY);
            let value = (*self.remote.lock().unwrap())?;
            claim.store(|| self.keep(Some(value)));
            Some(value)
        })
    }

    /// A change at the source, and then as `invalidate`.
    fn change(&self) {
        self.source.store(1, Ordering::SeqCst);
        self.table.outdate(&KEY, || self.keep(None));
    }

    fn ends_clean(&self) {
        assert_eq!(self.table.keys_in_work(), 0);
        let current = self.source.load(Ordering::SeqCst);
        assert!(self.look().is_none_or(|kept| kept == current), "stale at rest");
    }
}

/// Runs these at once, in one order after the other, and looks at what they leave.
fn explore(threads: &'static [fn(&World)], at_rest: fn(&World)) {
    let mut model = loom::model::Builder::new();
    // More changes of thread than this at a bad moment find nothing new, and take minutes.
    model.preemption_bound = Some(3);
    model.check(move || {
        let world = World::new();
        let (first, others) = threads.split_first().unwrap();
        let spawn = |run: &'static fn(&World)| {
            let world = Arc::clone(&world);
            thread::spawn(move || run(&world))
        };
        let others: Vec<_> = others.iter().map(spawn).collect();
        first(&world);
        others.into_iter().for_each(|thread| thread.join().unwrap());
        world.ends_clean();
        at_rest(&world);
    });
}

#[test]
fn callers_at_the_same_time_make_one_load() {
    fn get(world: &World) {
        assert_eq!(world.get(false), Ok(0));
    }
    explore(&[get, get, get], |world| {
        assert_eq!(world.loads.load(Ordering::SeqCst), 1);
        assert_eq!(world.look(), Some(0));
    });
}

#[test]
fn nothing_read_before_an_invalidation_is_kept_or_given_after_it() {
    explore(
        &[
            |world| _ = world.get(false),
            |world| {
                world.change();
                assert_eq!(world.get(false), Ok(1), "a value from before");
            },
        ],
        |world| assert_eq!(world.look(), Some(1)),
    );
}

#[test]
fn an_insertion_during_a_load_wins() {
    fn insert(world: &World) {
        world.source.store(1, Ordering::SeqCst);
        world.table.outdate(&KEY, || world.keep(Some(1)));
    }
    explore(&[|world| _ = world.get(false), insert], |world| assert_eq!(world.look(), Some(1)));
}

#[test]
fn nothing_read_before_a_clearing_is_kept_or_given_after_it() {
    fn clear(world: &World) {
        world.source.store(1, Ordering::SeqCst);
        world.table.outdate_all();
        world.keep(None);
        assert_eq!(world.get(false), Ok(1));
    }
    explore(&[|world| _ = world.get(false), clear], |_| ());
}

#[test]
fn a_failed_load_lets_nobody_wait_and_leaves() {
    explore(&[|world| _ = world.get(true), |world| _ = world.get(false)], |_| ());
    explore(
        &[
            |world| _ = world.get(true),
            |world| {
                world.change();
                assert!(matches!(world.get(false), Ok(1) | Err(1)), "a failure from before");
            },
        ],
        |_| (),
    );
}

// Memory is changed twice, before and after the remote: the second time is for those who looked in between.
#[test]
fn what_the_remote_had_before_an_invalidation_is_not_kept() {
    let invalidate = |world: &World| {
        world.change();
        *world.remote.lock().unwrap() = None;
        world.table.outdate(&KEY, || world.keep(None));
        assert_eq!(world.get_from_remote(), None);
    };
    loom::model(move || {
        let world = World::new();
        *world.remote.lock().unwrap() = Some(0);
        let reader = thread::spawn({
            let world = Arc::clone(&world);
            move || _ = world.get_from_remote()
        });
        invalidate(&world);
        reader.join().unwrap();
        world.ends_clean();
    });
}
