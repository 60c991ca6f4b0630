//! The stamps and the epoch by which memory knows whether it still has what the remote has, under loom. The file is the
//! library's own; only its locks and atomics are loom's. There is one key.

use std::{sync::Arc, time::Duration};

use loom::thread;
use tokio::time::Instant;

use self::{
    coherence::{Coherence, Seal, Standing},
    sync::Mutex,
};

#[allow(dead_code, unreachable_pub)]
#[path = "../../src/remote/coherence.rs"]
mod coherence;

mod sync {
    use std::hash::{BuildHasherDefault, DefaultHasher};

    pub(crate) use loom::sync::{Mutex, atomic::AtomicU32};

    pub(crate) type Hashing = BuildHasherDefault<DefaultHasher>;
    pub(crate) const STAMPS: usize = 2;
}

const KEY: &[u8] = b"key";

/// What a process has of a key.
type Kept = Option<(u64, Seal)>;

struct World {
    coherence: Coherence,
    remote: Mutex<Remote>,
    kept: [Mutex<Kept>; 2],
}

struct Remote {
    value: u64,
    /// It tells of changes.
    connected: bool,
}

impl World {
    fn new() -> Arc<World> {
        let coherence = Coherence::new(Duration::ZERO);
        coherence.hear();
        let remote = Mutex::new(Remote { value: 0, connected: true });
        Arc::new(World { coherence, remote, kept: [Mutex::new(None), Mutex::new(None)] })
    }

    fn keep(&self, place: usize, value: u64, seal: Seal) {
        *self.kept[place].lock().unwrap() = Some((value, seal));
    }

    fn read(&self) {
        let seal = self.coherence.seal(KEY);
        let value = self.remote.lock().unwrap().value;
        self.keep(0, value, seal);
    }

    fn read_and_seal_too_late(&self) {
        let value = self.remote.lock().unwrap().value;
        self.keep(0, value, self.coherence.seal(KEY));
    }

    /// As another process writes: the news of it come later, if at all.
    fn foreign_write(&self) {
        let heard = {
            let mut remote = self.remote.lock().unwrap();
            remote.value = 1;
            remote.connected
        };
        if heard {
            self.coherence.changed(KEY);
        }
    }

    /// As this process writes, whom the remote tells nothing of it.
    fn write(&self) {
        let before = self.coherence.seal(KEY);
        self.remote.lock().unwrap().value = 2;
        self.keep(1, 2, self.coherence.changed_here(before));
    }

    fn reconnect(&self) {
        self.remote.lock().unwrap().connected = false;
        self.coherence.lose(Instant::now());
        self.remote.lock().unwrap().connected = true;
        self.coherence.hear();
    }

    fn ends_coherent(&self) {
        let current = self.remote.lock().unwrap().value;
        for kept in &self.kept {
            if let Some((value, seal)) = *kept.lock().unwrap()
                && self.coherence.standing(seal) == Standing::Current
            {
                assert_eq!(value, current, "stale at rest");
            }
        }
    }
}

/// Runs these at once, in one order after the other, and looks at what they leave.
fn explore(threads: &'static [fn(&World)]) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let world = World::new();
        let running: Vec<_> = threads
            .iter()
            .map(|run| {
                let world = Arc::clone(&world);
                thread::spawn(move || run(&world))
            })
            .collect();
        running.into_iter().for_each(|thread| thread.join().unwrap());
        world.ends_coherent();
    });
}

#[test]
fn what_was_read_before_a_change_is_not_current_after_it() {
    explore(&[World::read, World::foreign_write]);
}

#[test]
#[should_panic(expected = "stale at rest")]
fn a_seal_that_is_taken_after_the_read_would_be_too_late() {
    explore(&[World::read_and_seal_too_late, World::foreign_write]);
}

#[test]
fn of_a_process_that_writes_and_another_only_the_last_one_keeps_what_it_wrote() {
    explore(&[World::write, World::foreign_write]);
}

#[test]
fn readers_writers_and_strangers_leave_nothing_stale() {
    explore(&[World::read, World::write, World::foreign_write]);
}

#[test]
fn what_goes_unheard_between_two_connections_is_not_trusted() {
    explore(&[World::read, World::foreign_write, World::reconnect]);
}

#[test]
fn a_write_beside_a_lost_connection_is_trusted_only_if_it_was_the_last() {
    explore(&[World::write, World::foreign_write, World::reconnect]);
}
