//! Real processes that share one Redis and want the same cold key. Each is this test binary again, told by its
//! environment to run one test: [`member`].

use std::{
    env,
    io::{self, BufRead, BufReader, Write},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use futures_util::future::join;
use greenwave_cache::{Cache, LoadError, Remote, RemoteConfig};
use greenwave_test_servers::Server;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    sync::Semaphore,
    task::{JoinSet, spawn_blocking},
};

use crate::support::Failed;

const PROCESSES: usize = 3;
const CALLERS: usize = 1_000;
/// How long a process that died can keep others from loading.
const LEASE: Duration = Duration::from_secs(3);
/// More than a busy machine needs, and less than it takes for the leases of two processes to run out.
const PROMPT: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(60);
const MARK: &str = "member ";
/// The callers of this process that have called, and wait.
static CALLED: Semaphore = Semaphore::const_new(0);

async fn all_called(callers: u32) {
    CALLED.acquire_many(callers).await.unwrap().forget();
    CALLED.add_permits(callers as usize);
}

/// A process of the fleet, when it is started as one: all its callers want one key, and its loads are done by whoever
/// started it. Started in any other way it has nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn member() {
    let (Ok(url), Ok(callers)) = (env::var("FLEET_REDIS"), env::var("FLEET_CALLERS")) else { return };
    let cache = cache(&url);
    assert_eq!(cache.get(&0).await, None, "that connects");
    println!("{MARK}ready");
    assert_eq!(order().await, "go");

    let mut all = JoinSet::new();
    let callers = callers.parse().unwrap();
    for _ in 0..callers {
        let cache = cache.clone();
        all.spawn(async move {
            // The second is polled when the first waits.
            join(cache.get_or_load(&1, move || load(callers)), async { CALLED.add_permits(1) }).await.0
        });
    }
    all_called(callers).await;
    println!("{MARK}here");
    let (mut answers, mut failures) = (0, 0);
    while let Some(answer) = all.join_next().await {
        match answer.unwrap() {
            Ok(Some(_)) => answers += 1,
            Err(LoadError::Source(_)) => failures += 1,
            other => panic!("{other:?}"),
        }
    }
    println!("{MARK}done {answers} {failures}");
    let _ = order().await;
}

fn cache(url: &str) -> Cache<u64, u64> {
    let config = RemoteConfig { timeout: Duration::from_secs(10), ..Default::default() };
    Cache::builder("fleet").remote(Remote::connect_with(url, config).unwrap()).build()
}

async fn order() -> String {
    let line = || io::stdin().lines().next().and_then(Result::ok);
    spawn_blocking(line).await.unwrap().unwrap_or_default()
}

/// Begins when all callers wait for it, however busy the machine.
async fn load(callers: u32) -> Result<Option<u64>, Failed> {
    all_called(callers).await;
    println!("{MARK}load");
    order().await.parse().map(Some).map_err(|_| Failed)
}

/// What a process says.
#[derive(Debug, PartialEq)]
enum Said {
    Ready,
    /// All its callers wait.
    Here,
    Load,
    Done {
        answers: usize,
        failures: usize,
    },
}

/// The processes, seen from the one that started them.
struct Fleet {
    redis: Server,
    processes: Vec<(Child, ChildStdin)>,
    said: Receiver<(usize, Said)>,
    loads: Vec<usize>,
    answers: usize,
    failures: usize,
}

impl Fleet {
    fn start() -> Fleet {
        // Redis tells of changes in one database those who read the same names in another, and all of a FLUSHDB: one
        // that is shared with other tests has too much to tell.
        let redis = Server::redis();
        let (say, said) = channel();
        let processes = (0..PROCESSES).map(|number| {
            let callers = CALLERS / PROCESSES + usize::from(number < CALLERS % PROCESSES);
            let mut child = Command::new(env::current_exe().unwrap())
                .args(["--exact", "fleet::member", "--nocapture"])
                .env("FLEET_REDIS", redis.url())
                .env("FLEET_CALLERS", callers.to_string())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let (orders, says) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
            let say = say.clone();
            thread::spawn(move || listen(number, BufReader::new(says), &say));
            (child, orders)
        });
        let processes = processes.collect();
        let mut fleet = Fleet { redis, processes, said, loads: vec![0; PROCESSES], answers: 0, failures: 0 };
        for _ in 0..PROCESSES {
            assert_eq!(fleet.next().1, Said::Ready);
        }
        fleet
    }

    /// Lets all callers loose on the cold key at once; says which process loads.
    fn race() -> (Fleet, usize) {
        let mut fleet = Fleet::start();
        for process in 0..PROCESSES {
            fleet.tell(process, "go");
        }
        let leader = fleet.gathered(PROCESSES);
        (fleet, leader)
    }

    /// Has one process load before the callers of the others come, so that each of those has one load to wait for: in
    /// a race, its lease is a change, and who comes after that does not join who came before.
    fn led() -> (Fleet, usize) {
        let mut fleet = Fleet::start();
        fleet.tell(0, "go");
        let leader = fleet.gathered(1);
        for process in 1..PROCESSES {
            fleet.tell(process, "go");
        }
        for _ in 1..PROCESSES {
            assert_eq!(fleet.next().1, Said::Here);
        }
        (fleet, leader)
    }

    /// Waits until all callers of so many processes wait, and one process has to load; says which.
    fn gathered(&mut self, processes: usize) -> usize {
        let (mut here, mut leader) = (0, None);
        while here < processes || leader.is_none() {
            match self.next() {
                (_, Said::Here) => here += 1,
                (process, Said::Load) => assert_eq!(leader.replace(process), None, "two load"),
                (_, said) => panic!("{said:?}"),
            }
        }
        leader.unwrap()
    }

    fn next(&mut self) -> (usize, Said) {
        let (process, said) = self.said.recv_timeout(PATIENCE).expect("the fleet says something");
        match said {
            Said::Load => self.loads[process] += 1,
            Said::Done { answers, failures } => {
                self.answers += answers;
                self.failures += failures;
            }
            Said::Ready | Said::Here => {}
        }
        (process, said)
    }

    fn tell(&mut self, process: usize, order: &str) {
        writeln!(self.processes[process].1, "{order}").unwrap();
    }

    /// Has `order` be the outcome of each load, until `processes` have all their answers.
    fn serve(&mut self, order: &str, processes: usize) {
        let mut done = 0;
        while done < processes {
            match self.next() {
                (process, Said::Load) => self.tell(process, order),
                (_, Said::Done { .. }) => done += 1,
                (_, Said::Ready | Said::Here) => unreachable!("they were before"),
            }
        }
    }

    fn signal(&self, process: usize, signal: Signal) {
        kill_process(Pid::from_child(&self.processes[process].0), signal).unwrap();
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for (child, _) in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn listen(number: usize, says: impl BufRead, say: &Sender<(usize, Said)>) {
    for line in says.lines().map_while(Result::ok) {
        // The harness may have begun the line.
        let Some((_, line)) = line.split_once(MARK) else { continue };
        let words: Vec<_> = line.split(' ').collect();
        let said = match words[..] {
            ["ready"] => Said::Ready,
            ["here"] => Said::Here,
            ["load"] => Said::Load,
            ["done", answers, failures] => {
                Said::Done { answers: answers.parse().unwrap(), failures: failures.parse().unwrap() }
            }
            _ => panic!("{line}"),
        };
        let _ = say.send((number, said));
    }
}

#[test]
fn a_thousand_callers_in_three_processes_make_one_load() {
    let (mut fleet, leader) = Fleet::race();
    let answered = Instant::now();
    fleet.tell(leader, "7");
    fleet.serve("7", PROCESSES);
    let took = answered.elapsed();
    assert_eq!((fleet.answers, fleet.failures), (CALLERS, 0));
    assert_eq!(fleet.loads.iter().sum::<usize>(), 1);
    assert!(took < PROMPT, "the last caller had its answer {took:?} after the load's end");
    println!("the last of {CALLERS} callers had its answer {took:?} after the load's end");
}

#[test]
fn a_process_that_dies_in_its_load_delays_the_others_by_its_lease() {
    let (mut fleet, leader) = Fleet::led();
    let killed = Instant::now();
    fleet.signal(leader, Signal::KILL);
    fleet.serve("7", PROCESSES - 1);
    let took = killed.elapsed();
    assert!(fleet.answers >= CALLERS / PROCESSES * 2, "all who live are answered: {}", fleet.answers);
    assert_eq!(fleet.failures, 0);
    assert_eq!(
        fleet.loads.iter().sum::<usize>(),
        2,
        "one by the dead, and one for all others: {:?}",
        fleet.loads
    );
    assert!(took < LEASE + PROMPT, "{took:?}");
    println!("the last caller had its answer {took:?} after the loading process was killed");
}

// It believes that it still has the lease: nothing told it how long it was away.
#[test]
fn a_process_that_was_frozen_in_its_load_does_not_replace_what_others_loaded_since() {
    let (mut fleet, leader) = Fleet::led();
    fleet.signal(leader, Signal::STOP);
    fleet.serve("8", PROCESSES - 1);
    fleet.signal(leader, Signal::CONT);
    fleet.tell(leader, "7");
    fleet.serve("8", 1);
    assert_eq!((fleet.answers, fleet.failures), (CALLERS, 0));
    assert_eq!(fleet.loads.iter().sum::<usize>(), 2, "{:?}", fleet.loads);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let kept = runtime.block_on(async { cache(&fleet.redis.url()).get(&1).await });
    assert_eq!(kept.as_deref(), Some(&8));
}

#[test]
fn a_load_that_takes_longer_than_a_lease_is_not_repeated() {
    let (mut fleet, leader) = Fleet::race();
    thread::sleep(LEASE + Duration::from_millis(500));
    fleet.tell(leader, "7");
    fleet.serve("7", PROCESSES);
    assert_eq!((fleet.answers, fleet.failures), (CALLERS, 0));
    assert_eq!(fleet.loads.iter().sum::<usize>(), 1);
}

#[test]
fn a_failing_source_is_asked_by_each_process_in_turn_and_fails_all_callers_in_time() {
    let (mut fleet, leader) = Fleet::led();
    let failed = Instant::now();
    fleet.tell(leader, "fail");
    fleet.serve("fail", PROCESSES);
    let took = failed.elapsed();
    assert_eq!((fleet.answers, fleet.failures), (0, CALLERS));
    assert_eq!(fleet.loads, [1; PROCESSES]);
    assert!(took < PROMPT, "{took:?}: a lease had to run out");
}
