//! The weak cache's table, of loom's parts, in the orders in which its locks can be taken: all in which no more than
//! three threads are interrupted where they need not wait.
//!
//! How many hold a value is counted by std's `Arc`, which loom doesn't take apart: a count changes in the moment of the
//! step before it. What comes after the last one (the destructor, the seat) has steps of its own.

#![allow(dead_code, reason = "the model doesn't need all of the table")]

#[path = "../../src/weak/seats.rs"]
mod seats;

mod sync {
    pub(super) use loom::sync::{Mutex, MutexGuard};

    pub(super) struct SetOnce<T> {
        value: Mutex<Option<std::sync::Arc<T>>>,
        told: loom::sync::Condvar,
    }

    impl<T> SetOnce<T> {
        pub(super) fn new() -> SetOnce<T> {
            SetOnce { value: Mutex::new(None), told: loom::sync::Condvar::new() }
        }

        pub(super) fn set(&self, value: T) -> Result<(), T> {
            let mut slot = self.value.lock().unwrap();
            if slot.is_some() {
                return Err(value);
            }
            *slot = Some(std::sync::Arc::new(value));
            drop(slot);
            self.told.notify_all();
            Ok(())
        }

        pub(super) fn wait(&self) -> std::sync::Arc<T> {
            let mut slot = self.value.lock().unwrap();
            loop {
                match &*slot {
                    Some(value) => return value.clone(),
                    None => slot = self.told.wait(slot).unwrap(),
                }
            }
        }
    }
}

use std::sync::Arc;

use loom::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use self::seats::{Entrance, Guest, Outcome, Seats};

/// A value that knows how many of its kind there are.
struct Life(Arc<AtomicUsize>);

impl Life {
    fn begin(alive: &Arc<AtomicUsize>) -> Life {
        assert_eq!(alive.fetch_add(1, Ordering::SeqCst), 0, "two values of one key");
        Life(alive.clone())
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        // Room for another thread, between the last holder's leave and the end of the value.
        assert_eq!(self.0.load(Ordering::SeqCst), 1);
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

type Table = Arc<Seats<u8, Life, &'static str>>;

fn hold(table: &Table, alive: &Arc<AtomicUsize>) -> Arc<Guest<u8, Life, &'static str>> {
    loop {
        match table.enter(&1) {
            Entrance::Found(guest) => return guest,
            Entrance::Wait(turn) => {
                if let Outcome::Made(guest) = &*turn.wait() {
                    return guest.clone();
                }
            }
            Entrance::Make(seat) => return seat.fill(Life::begin(alive)),
        }
    }
}

fn check(threads: Vec<fn(&Table, &Arc<AtomicUsize>)>) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let (table, alive) = (Table::clone(&Seats::new(1)), Arc::new(AtomicUsize::new(0)));
        let threads: Vec<_> = threads
            .iter()
            .map(|&work| {
                let (table, alive) = (table.clone(), alive.clone());
                thread::spawn(move || work(&table, &alive))
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(alive.load(Ordering::SeqCst), 0, "a value is left");
        assert!(matches!(table.enter(&1), Entrance::Make(_)), "a dead key is left");
    });
}

fn hold_and_let_go(table: &Table, alive: &Arc<AtomicUsize>) {
    let held = hold(table, alive);
    assert_eq!(alive.load(Ordering::SeqCst), 1, "what is held is alive");
    drop(held);
}

#[test]
fn in_no_order_does_a_key_have_two_values_or_a_dead_one() {
    check(vec![hold_and_let_go, hold_and_let_go, |table, _| {
        if let Some(held) = table.find(&1) {
            assert_eq!(held.value.0.load(Ordering::SeqCst), 1, "what is found is alive");
        }
    }]);
}

#[test]
fn in_no_order_does_a_maker_that_fails_wedge_the_key() {
    check(vec![hold_and_let_go, hold_and_let_go, |table, _| match table.enter(&1) {
        Entrance::Make(seat) => seat.fail("no"),
        Entrance::Wait(turn) => drop(turn.wait()),
        Entrance::Found(guest) => drop(guest),
    }]);
}
