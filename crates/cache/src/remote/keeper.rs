//! The task that keeps the connection: it connects, and connects again, with pauses between; asks every now and then
//! whether the other end is still there; and repeats what that may have missed before anybody reads.

use std::{
    convert::Infallible,
    future::pending,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use super::{
    connection::{self, Connection},
    failure::Failure,
    link::{Line, Link, State},
    recovery::Batch,
    session::{Hearing, Opened, Session, closed},
};
use crate::telemetry::REMOTE_TARGET;

/// How many changes are repeated at a time.
const REPEATED_AT_ONCE: usize = 512;

/// How much longer than `retry_after` the pauses between attempts become.
const LONGEST_PAUSE: u32 = 3;
/// How soon a live server answers, on a busy machine.
const SOON: Duration = Duration::from_millis(500);

/// So that times can be reckoned with.
const LONGEST_RETRY: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) struct Keeper(pub(super) Arc<Link>);

impl Keeper {
    pub(super) async fn run(self) {
        let link = &self.0;
        let mut pause = Duration::ZERO;
        let mut may_hurry = true;
        loop {
            match timeout(link.patience(), link.open()).await {
                Ok(Ok(number)) => {
                    let begun = Instant::now();
                    let alive = link.keep(number).await;
                    // It is replaced at once, and the next one too if it lasts; or that would go on without end.
                    pause = Duration::ZERO;
                    let lasted = alive.duration_since(begun) >= link.config.retry_after;
                    if std::mem::replace(&mut may_hurry, lasted) || lasted {
                        continue;
                    }
                }
                Ok(Err(failure)) => link.attempt_failed(&failure),
                Err(_) => link.attempt_failed(&Failure::TimedOut(link.patience())),
            }
            let retry_after = link.config.retry_after.clamp(Duration::from_millis(1), LONGEST_RETRY);
            let longest = retry_after.saturating_mul(LONGEST_PAUSE);
            pause = pause.saturating_mul(2).clamp(retry_after, longest);
            // Many processes lose a server at the same time; they should not all come back at the same time.
            sleep(pause.mul_f64(rand::random_range(0.5..=1.0))).await;
        }
    }
}

// A session whose runtime ends would be one that nobody keeps.
impl Drop for Keeper {
    fn drop(&mut self) {
        let link = &self.0;
        let mut line = link.line();
        let old = std::mem::replace(&mut line.state, State::Idle);
        link.coherence.lose(Instant::now());
        drop(line);
        drop(old);
        link.settled.notify_waiters();
    }
}

impl Link {
    /// How long connecting may take. Longer than a reader's patience, for none waits; a server that comes back from a
    /// pause then answers what it was asked during the pause.
    pub(super) fn patience(&self) -> Duration {
        self.config.timeout.saturating_mul(4).max(Duration::from_millis(500))
    }

    /// Connects, repeats what was missed, and lets readers in.
    async fn open(self: &Arc<Link>) -> Result<u64, Failure> {
        let (number, before) = {
            let mut line = self.line();
            line.sessions += 1;
            (line.sessions, line.ends.clone())
        };
        let mut opened = self.connect(number).await?;
        {
            let mut line = self.line();
            if before.went_back(&opened.ends) {
                line.missed.doubt_all();
            } else if !before.same_server(&opened.ends) {
                line.missed.doubt_the_last();
            }
            // Once for each server: what is repeated to it is not to be doubted again when an attempt fails.
            line.ends.now_with(&opened.ends);
        }
        let mut before = Some(before);
        loop {
            let missed = {
                let mut line = self.line();
                let missed = line.missed.waiting(Duration::ZERO);
                if missed.is_empty() {
                    // The end of a connection is told to whoever has this lock next, or was noted before.
                    return match opened.is_gone.load(Ordering::SeqCst) {
                        true => Err(closed()),
                        false => Ok(self.let_in(&mut line, opened)),
                    };
                }
                missed
            };
            let session = &mut opened.session;
            if let (Some(before), Connection::Single(connection)) = (before.take(), &mut session.connection) {
                connection::end(connection, &before).await;
            }
            self.repeat(session, missed).await?;
        }
    }

    fn let_in(&self, line: &mut Line, opened: Opened) -> u64 {
        let number = opened.session.number;
        if !matches!(opened.session.hearing, Hearing::Not) {
            self.coherence.hear();
        }
        line.ends = opened.ends;
        line.state = State::Up(opened.session);
        self.settled.notify_waiters();
        if std::mem::replace(&mut line.is_away, false) {
            tracing::info!(target: REMOTE_TARGET, address = %self.target, "the cache's remote answers again");
        }
        number
    }

    /// Returns when the session has been given up: when it was alive last.
    async fn keep(&self, number: u64) -> Instant {
        // What a dead connection hides must not be hidden for longer than what a lost one does.
        let beat = (self.config.untracked_ttl / 2).clamp(Duration::from_millis(50), Duration::from_secs(1));
        let mut beat = interval(beat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut alive = Instant::now();
        loop {
            tokio::select! {
                () = self.wake.notified() => {}
                _ = beat.tick() => {}
            }
            let session = match &self.line().state {
                State::Up(session) | State::Doubted(session) if session.number == number => session.clone(),
                _ => return alive,
            };
            let asked = Instant::now();
            match self.probe(session, alive).await {
                Ok(()) => alive = asked,
                Err(failure) => self.give_up(number, alive, &failure),
            }
        }
    }

    /// Whether the session, which was alive then, is good: then it is no longer doubted, and heard again.
    async fn probe(&self, mut session: Session, alive: Instant) -> Result<(), Failure> {
        let (limit, number) = (self.config.timeout, session.number);
        let has_missed = tokio::select! {
            answer = self.ask_patiently(session.clone()) => answer?,
            never = self.stop_trusting(alive) => match never {},
        };
        if has_missed {
            self.missed(number);
        }
        loop {
            let missed = {
                let mut line = self.line();
                // Younger ones are on their way, unless nothing was sent because it was doubted.
                let is_doubted = matches!(line.state, State::Doubted(_));
                let missed = line.missed.waiting(if is_doubted { Duration::ZERO } else { limit });
                if missed.is_empty() {
                    self.is_good(&mut line, number);
                    return Ok(());
                }
                missed
            };
            let repeat = timeout(self.patience(), self.repeat(&mut session, missed));
            repeat.await.map_err(|_| Failure::TimedOut(self.patience()))??;
        }
    }

    async fn ask_patiently(&self, session: Session) -> Result<bool, Failure> {
        let (limit, number) = (self.config.timeout, session.number);
        let mut asking = Box::pin(session.probe());
        let answer = match timeout(limit, &mut asking).await {
            Ok(answer) => answer,
            Err(_) => {
                // Readers need not find out for themselves. What is merely slow is not given up for that.
                self.doubt(number);
                timeout(limit, asking).await.map_err(|_| Failure::TimedOut(limit))?
            }
        };
        Ok(answer?)
    }

    /// However patient one is with a session, what it may hide is not hidden for much longer than `untracked_ttl`.
    async fn stop_trusting(&self, alive: Instant) -> Infallible {
        let soon = Instant::now() + self.config.timeout.min(SOON);
        if let Some(end) = alive.checked_add(self.config.untracked_ttl) {
            sleep_until(end.max(soon)).await;
            self.coherence.lose(alive);
        }
        pending().await
    }

    fn is_good(&self, line: &mut Line, number: u64) {
        let (State::Up(session) | State::Doubted(session)) = &line.state else { return };
        if session.number != number {
            return;
        }
        if !matches!(session.hearing, Hearing::Not) {
            self.coherence.hear();
        }
        if let State::Doubted(session) = &line.state {
            line.state = State::Up(session.clone());
            self.settled.notify_waiters();
        }
    }

    async fn repeat(&self, session: &mut Session, missed: Batch) -> Result<(), Failure> {
        if let Some(number) = missed.overflowed {
            session.clear(&self.hearers.clearing()).await?;
            self.hearers.tell(&self.coherence, None);
            self.line().missed.cleared(number);
        }
        for changes in missed.changes.chunks(REPEATED_AT_ONCE) {
            let repeats: Vec<_> = changes.iter().map(|(key, repeat, _)| (key.as_slice(), repeat)).collect();
            match session.repeat(&repeats).await.map_err(Failure::of) {
                Err(failure) if failure.is_lasting() => self.refused(&failure, changes.len()),
                repeated => repeated?,
            }
            for (key, repeat, number) in changes {
                self.confirmed(key, *number);
                if !repeat.is_quiet() {
                    self.hearers.tell(&self.coherence, Some(key));
                }
            }
        }
        Ok(())
    }

    /// Some changes were not heard of, though others are: nothing from before is certain.
    pub(super) fn missed(&self, number: u64) {
        let line = self.line();
        if let State::Up(session) | State::Doubted(session) = &line.state
            && session.number == number
        {
            self.coherence.renew();
        }
    }
}
