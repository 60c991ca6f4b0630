//! Holds every backend to the model of a job in `docs/concepts/jobs.md`: random operations, and after each of them the
//! backend's rows, counts and answers must be those of a plain Rust struct.

mod drivers;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

use super::{Burial, Completion, Lease, LeasedJob, Retry, Store, Upkeep, Want};
use crate::backoff::Backoff;
use crate::dead::DeadReason;
use crate::job::{NewJob, Start};
use crate::queue::QueueStats;
use drivers::Driver;

const QUEUES: [&str; 2] = ["a", "b"];
const MAX_CRASHES: u32 = 2;
const HOUR: i64 = 3_600_000;

/// Delays and leases are whole hours, and the clock moves by hours and a second: so nothing is ever due to the
/// millisecond, and a backend whose clock also runs by itself agrees.
const STEP: i64 = 1000;

#[derive(Debug, Clone)]
struct Spec {
    queue: usize,
    delay: i64,
    priority: i16,
    keep: i64,
}

/// A lease by its place among all that were ever given, so that most are stale.
type Pick = prop::sample::Index;

#[derive(Debug, Clone)]
enum Op {
    Push(Vec<Spec>),
    Exchange { done: Vec<Pick>, want: Option<(usize, usize, i64)> },
    Extend(Vec<Pick>, i64),
    Release(Vec<Pick>),
    Retry(Vec<(Pick, i64, bool)>),
    Bury(Vec<Pick>),
    RetryDead(Pick),
    Upkeep,
    Advance(i64),
}

fn operations() -> impl Strategy<Value = Vec<Op>> {
    let spec =
        (0..QUEUES.len(), prop_oneof![2 => Just(0), 1 => 1..4_i64], 4..7_i16, prop_oneof![Just(0), 1..4_i64])
            .prop_map(|(queue, delay, priority, keep)| Spec { queue, delay, priority, keep });
    let picks = || vec(any::<Pick>(), 0..4);
    let want = prop::option::weighted(0.8, (0..QUEUES.len(), 1..4_usize, 1..4_i64));
    let op = prop_oneof![
        4 => vec(spec, 1..4).prop_map(Op::Push),
        5 => (picks(), want).prop_map(|(done, want)| Op::Exchange { done, want }),
        1 => (picks(), 1..4_i64).prop_map(|(leases, hours)| Op::Extend(leases, hours)),
        1 => picks().prop_map(Op::Release),
        2 => vec((any::<Pick>(), 0..3_i64, any::<bool>()), 0..4).prop_map(Op::Retry),
        1 => picks().prop_map(Op::Bury),
        1 => any::<Pick>().prop_map(Op::RetryDead),
        3 => Just(Op::Upkeep),
        3 => (0..4_i64).prop_map(Op::Advance),
    ];
    vec(op, 1..60)
}

/// As stored: 0 ready, 1 scheduled, 2 leased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Ready = 0,
    Scheduled = 1,
    Leased = 2,
}

#[derive(Debug, Clone)]
struct Job {
    queue: usize,
    priority: i16,
    keep: i64,
    state: State,
    /// When it became ready: the step, and its place within it where that is defined.
    position: (usize, usize),
    run_at: i64,
    failures: u32,
    crashes: u32,
    /// Who may settle it: whoever leased it last, until it is settled or leased anew.
    lease: Option<i64>,
    lease_until: i64,
}

#[derive(Debug, Default)]
struct Model {
    now: i64,
    step: usize,
    jobs: BTreeMap<i64, Job>,
    dead: BTreeMap<i64, (Job, DeadReason)>,
    /// Those kept, by when that ends.
    done: BTreeMap<i64, i64>,
    /// All that were ever given.
    leases: Vec<Lease>,
}

type Verdict = Result<(), TestCaseError>;

impl Model {
    fn pick(&self, picks: &[Pick]) -> BTreeSet<Lease> {
        picks.iter().filter(|_| !self.leases.is_empty()).map(|pick| *pick.get(&self.leases)).collect()
    }

    /// The job, if this lease may still settle it.
    fn held(&mut self, lease: Lease) -> Option<&mut Job> {
        self.jobs.get_mut(&lease.job.get()).filter(|job| job.lease == Some(lease.id))
    }

    /// Applies an operation to the backend and to itself, and compares the answers.
    async fn apply<D: Driver>(&mut self, driver: &D, op: &Op) -> Verdict {
        let store = &driver.store();
        self.step += 1;
        match op {
            Op::Push(specs) => self.push(store, specs).await,
            Op::Exchange { done, want } => self.exchange(store, self.pick(done), *want).await,
            Op::Extend(picks, hours) => {
                let until = self.now + hours * HOUR;
                let mut kept = Vec::new();
                for lease in self.pick(picks) {
                    if let Some(job) = self.held(lease).filter(|job| job.state == State::Leased) {
                        job.lease_until = until;
                        kept.push(lease);
                    }
                }
                let asked = self.pick(picks).into_iter().collect();
                let mut extended = store.extend(asked, hours_(*hours)).await.unwrap();
                extended.sort_unstable();
                prop_assert_eq!(extended, kept);
                Ok(())
            }
            Op::Release(picks) => {
                let (now, position) = (self.now, (self.step, 0));
                let leases = self.pick(picks);
                let released = leases.iter().filter(|lease| {
                    let Some(job) = self.held(**lease) else { return false };
                    job.crashes -= u32::from(job.state != State::Leased);
                    *job = Job {
                        state: State::Ready,
                        position,
                        lease: None,
                        run_at: job.run_at.min(now),
                        ..job.clone()
                    };
                    true
                });
                let released = released.count();
                prop_assert_eq!(store.release(leases.into_iter().collect()).await.unwrap(), released);
                Ok(())
            }
            Op::Retry(retries) => self.retry(store, retries).await,
            Op::Bury(picks) => {
                let leases = self.pick(picks);
                let reason = DeadReason::Discarded;
                let burial =
                    |lease: &Lease| Burial { lease: *lease, awaited: false, reason, error: "no".to_owned() };
                let buried = store.bury(leases.iter().map(burial).collect()).await.unwrap();
                let held: Vec<i64> = leases
                    .iter()
                    .filter(|lease| self.held(**lease).is_some())
                    .map(|lease| lease.job.get())
                    .collect();
                prop_assert_eq!(buried, held.len());
                for id in held {
                    self.die(id, 1, reason);
                }
                Ok(())
            }
            Op::RetryDead(pick) => self.retry_dead(store, *pick).await,
            Op::Upkeep => self.upkeep(store).await,
            Op::Advance(hours) => {
                let by = hours * HOUR + STEP;
                self.now += by;
                driver.advance(Duration::from_millis(by.unsigned_abs())).await;
                Ok(())
            }
        }
    }

    async fn push<S: Store>(&mut self, store: &S, specs: &[Spec]) -> Verdict {
        let pushed = store.push(specs.iter().map(new_job).collect()).await.unwrap();
        prop_assert_eq!(pushed.len(), specs.len());
        for (place, (pushed, spec)) in pushed.iter().zip(specs).enumerate() {
            let job = Job {
                queue: spec.queue,
                priority: spec.priority,
                keep: spec.keep * HOUR,
                state: if spec.delay == 0 { State::Ready } else { State::Scheduled },
                position: (self.step, place),
                run_at: self.now + spec.delay * HOUR,
                failures: 0,
                crashes: 0,
                lease: None,
                lease_until: 0,
            };
            let before = self.jobs.insert(pushed.id.get(), job);
            let new = before.is_none() && !self.dead.contains_key(&pushed.id.get()) && !pushed.existed;
            prop_assert!(new && !self.done.contains_key(&pushed.id.get()), "id {} is given twice", pushed.id);
        }
        Ok(())
    }

    async fn exchange<S: Store>(
        &mut self,
        store: &S,
        done: BTreeSet<Lease>,
        want: Option<(usize, usize, i64)>,
    ) -> Verdict {
        let mut completed = 0;
        let mut completions = Vec::new();
        for lease in done {
            let mut kept = false;
            if let Some(job) = self.held(lease).cloned() {
                completed += 1;
                kept = job.keep > 0;
                self.jobs.remove(&lease.job.get());
                if kept {
                    self.done.insert(lease.job.get(), self.now + job.keep);
                }
            }
            completions.push(Completion { lease, result: None, awaited: false, kept });
        }
        let wanted =
            want.map(|(queue, limit, hours)| Want { queue: QUEUES[queue], limit, lease: hours_(hours) });
        let exchanged = store.exchange(completions, wanted).await.unwrap();
        prop_assert_eq!(exchanged.completed, completed);
        match want {
            Some(want) => self.lease(&exchanged.jobs, want),
            None => Ok(prop_assert!(exchanged.jobs.is_empty())),
        }
    }

    /// What was leased must be the most urgent that were ready, and as they are.
    fn lease(&mut self, leased: &[LeasedJob], (queue, limit, hours): (usize, usize, i64)) -> Verdict {
        let is_ready = |job: &&Job| job.queue == queue && job.state == State::Ready;
        let ready = self.jobs.values().filter(is_ready).count();
        prop_assert_eq!(leased.len(), limit.min(ready));
        if let [first, ..] = leased {
            let fresh = leased.iter().all(|job| job.lease.id == first.lease.id);
            prop_assert!(
                fresh && self.leases.iter().all(|lease| lease.id != first.lease.id),
                "a lease id is given twice"
            );
        }
        let mut last = None;
        for LeasedJob { lease, failures, crashes, kept, payload, .. } in leased {
            let until = self.now + hours * HOUR;
            let Some(job) = self.jobs.get_mut(&lease.job.get()).filter(|job| is_ready(&&**job)) else {
                return Err(TestCaseError::fail(format!("{lease:?} is of a job that is not ready")));
            };
            prop_assert_eq!((*failures, *crashes, *kept), (job.failures, job.crashes, job.keep > 0));
            prop_assert_eq!(payload, &job.priority.to_string());
            *job = Job { state: State::Leased, lease: Some(lease.id), lease_until: until, ..job.clone() };
            self.leases.push(*lease);
            last = last.max(Some((job.priority, job.position)));
        }
        let passed_over = self.jobs.values().filter(is_ready).map(|job| (job.priority, job.position)).min();
        prop_assert!(
            passed_over.is_none_or(|next| last.is_none_or(|last| last <= next)),
            "{passed_over:?} < {last:?}"
        );
        Ok(())
    }

    async fn retry<S: Store>(&mut self, store: &S, retries: &[(Pick, i64, bool)]) -> Verdict {
        let mut by_lease = BTreeMap::new();
        for (pick, delay, failed) in retries {
            by_lease.extend(self.pick(&[*pick]).into_iter().map(|lease| (lease, (*delay, *failed))));
        }
        let mut retried = 0;
        for (lease, (delay, failed)) in &by_lease {
            let run_at = self.now + delay * HOUR;
            if let Some(job) = self.held(*lease) {
                let failures = job.failures + u32::from(*failed);
                *job =
                    Job { state: State::Scheduled, run_at, failures, crashes: 0, lease: None, ..job.clone() };
                retried += 1;
            }
        }
        let retries = by_lease.into_iter().map(|(lease, (delay, failed))| Retry {
            lease,
            delay: hours_(delay),
            error: failed.then(|| "no luck".to_owned()),
        });
        prop_assert_eq!(store.retry(retries.collect()).await.unwrap(), retried);
        Ok(())
    }

    async fn retry_dead<S: Store>(&mut self, store: &S, pick: Pick) -> Verdict {
        let ids: Vec<i64> = self.dead.keys().copied().collect();
        let id = if ids.is_empty() { i64::MAX } else { *pick.get(&ids) };
        let revived = self.dead.remove(&id);
        prop_assert_eq!(store.retry_dead(id.into()).await.unwrap(), revived.is_some());
        if let Some((job, _)) = revived {
            let position = (self.step, 0);
            let job = Job {
                state: State::Ready,
                position,
                run_at: self.now,
                failures: 0,
                crashes: 0,
                lease: None,
                ..job
            };
            self.jobs.insert(id, job);
        }
        Ok(())
    }

    async fn upkeep<S: Store>(&mut self, store: &S) -> Verdict {
        // Half an hour to an hour, and the clock stops nowhere between the two.
        let backoff = Backoff { base: hours_(1), max: hours_(1) };
        let kept = store.upkeep(Upkeep { max_crashes: MAX_CRASHES, backoff }).await.unwrap();
        let (now, position) = (self.now, (self.step, 0));
        let due = |job: &Job| job.state == State::Scheduled && job.run_at <= now;
        let crashed: Vec<i64> = self
            .jobs
            .iter()
            .filter(|(_, job)| due(job) && job.crashes >= MAX_CRASHES)
            .map(|(id, _)| *id)
            .collect();
        for id in &crashed {
            self.die(*id, 0, DeadReason::Crashed);
        }
        let (mut promoted, mut rescued) = (0, 0);
        for job in self.jobs.values_mut() {
            if due(job) {
                *job = Job { state: State::Ready, position, ..job.clone() };
                promoted += 1;
            } else if job.state == State::Leased && job.lease_until < now {
                *job = Job {
                    state: State::Scheduled,
                    crashes: job.crashes + 1,
                    run_at: now + HOUR,
                    ..job.clone()
                };
                rescued += 1;
            }
        }
        prop_assert_eq!((kept.buried, kept.promoted, kept.rescued), (crashed.len(), promoted, rescued));
        let next =
            self.jobs.values().filter(|job| job.state == State::Scheduled).map(|job| job.run_at - now).min();
        if let Some(due) = kept.next_due {
            let due = i64::try_from(due.as_millis()).unwrap();
            prop_assert!(
                next.is_some_and(|next| (next.max(0) - due).abs() <= HOUR / 2 + 60 * STEP),
                "{due} for {next:?}"
            );
        }
        Ok(())
    }

    fn die(&mut self, id: i64, failed: u32, reason: DeadReason) {
        if let Some(mut job) = self.jobs.remove(&id) {
            job.failures += failed;
            self.dead.insert(id, (job, reason));
        }
    }

    /// All that the backend stores must be what the model says.
    async fn compare<D: Driver>(&self, driver: &D) -> Verdict {
        let rows = driver.rows().await;
        let row = |(id, job): (&i64, &Job)| {
            (*id, job.state as i64, job.lease, job.failures.into(), job.crashes.into())
        };
        prop_assert_eq!(rows, self.jobs.iter().map(row).collect::<Vec<_>>());
        let dead = driver.store().dead(usize::MAX).await.unwrap();
        let dead: BTreeMap<i64, _> =
            dead.iter().map(|dead| (dead.id.get(), (dead.attempts, dead.reason))).collect();
        let expected = self.dead.iter().map(|(id, (job, reason))| (*id, (job.failures, *reason)));
        prop_assert_eq!(dead, expected.collect::<BTreeMap<_, _>>());
        let count = |state| self.jobs.values().filter(|job| job.state == state).count() as u64;
        let stats = QueueStats {
            ready: count(State::Ready),
            scheduled: count(State::Scheduled),
            running: count(State::Leased),
            dead: self.dead.len() as u64,
            ..QueueStats::default()
        };
        prop_assert_eq!(driver.store().stats().await.unwrap(), stats);
        // Those whose time is over may stay a while.
        let kept: BTreeSet<i64> = driver.kept().await.into_iter().collect();
        prop_assert!(kept.iter().all(|id| self.done.contains_key(id)), "{kept:?} of {:?}", self.done);
        let must = self.done.iter().filter(|(_, until)| **until > self.now).map(|(id, _)| *id);
        prop_assert!(must.collect::<BTreeSet<_>>().is_subset(&kept), "{kept:?} of {:?}", self.done);
        Ok(())
    }
}

fn hours_(hours: i64) -> Duration {
    Duration::from_millis((hours * HOUR).unsigned_abs())
}

fn new_job(spec: &Spec) -> NewJob {
    NewJob {
        queue: QUEUES[spec.queue],
        name: "job",
        version: 1,
        payload: spec.priority.to_string(),
        priority: spec.priority,
        max_attempts: 20,
        start: Start::In(spec.delay * HOUR),
        timeout_ms: None,
        keep_ms: spec.keep * HOUR,
        key: None,
        unique: None,
        trace: None,
        awaited: false,
    }
}

/// Runs random operations against a backend. `SEED` repeats a run, `PROPTEST_CASES` makes it longer.
fn check<D: Driver>(cases: u32, driver: impl AsyncFnOnce() -> D) {
    let seed =
        std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(rand::random::<u64>);
    println!("SEED={seed}");
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let asked = std::env::var_os("PROPTEST_CASES").map(|_| Config::default().cases);
    let config = Config { cases: asked.unwrap_or(cases), failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let driver = runtime.block_on(driver());
    let run = |ops: Vec<Op>| {
        runtime.block_on(async {
            driver.clear().await;
            let mut model = Model::default();
            for op in &ops {
                model.apply(&driver, op).await?;
                model.compare(&driver).await?;
            }
            Ok(())
        })
    };
    if let Err(error) = runner.run(&operations(), run) {
        panic!("SEED={seed}: {error}");
    }
}

#[cfg(feature = "testing")]
#[test]
fn sqlite_keeps_to_the_model() {
    check(256, drivers::Lite::start);
}

#[cfg(feature = "postgres")]
#[test]
fn postgres_keeps_to_the_model() {
    check(12, drivers::Server::start);
}
