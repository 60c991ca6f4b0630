//! This library beside others, on the same PostgreSQL (fsync on) and Redis (append-only file, fsync every second), in
//! turns: bulk inserts, drains of no-op jobs, single pushes from 256 tasks, and the time from a push to the start on an
//! idle queue. Each action is a process of its own, whose processor time is counted with the database's.
//!
//! `cargo bench -p greenwave-jobs --bench peers [-- ROUNDS [WORD…]]` builds the others (`peers/`), with cargo and npm. Words
//! choose among actions and systems: `-- 5 drain greenwave riverqueue`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use greenwave_test_servers::Server;

#[path = "peers/ours.rs"]
mod ours;

/// Where the other queues are.
const PEERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/peers");

/// How many jobs an action is measured with.
const JOBS: usize = 50_000;
/// Single pushes are dear where each is its own commit.
const PUSHES: usize = 10_000;
const OUR_PUSHES: usize = 100_000;
const LATENCIES: usize = 200;

#[derive(Clone, Copy, PartialEq)]
enum Store {
    Postgres,
    Redis,
    Sqlite,
}

struct System {
    name: &'static str,
    store: Store,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Ours,
    Rust,
    Node,
}

const SYSTEMS: &[System] = &[
    System { name: "greenwave", store: Store::Postgres, kind: Kind::Ours },
    System { name: "graphile_worker_rs", store: Store::Postgres, kind: Kind::Rust },
    System { name: "apalis-postgres", store: Store::Postgres, kind: Kind::Rust },
    System { name: "riverqueue", store: Store::Postgres, kind: Kind::Rust },
    System { name: "graphile-worker", store: Store::Postgres, kind: Kind::Node },
    System { name: "pg-boss", store: Store::Postgres, kind: Kind::Node },
    System { name: "bullmq", store: Store::Redis, kind: Kind::Node },
    System { name: "greenwave-sqlite", store: Store::Sqlite, kind: Kind::Ours },
    System { name: "riverqueue-sqlite", store: Store::Sqlite, kind: Kind::Rust },
];

const ACTIONS: &[&str] = &["insert", "drain", "push", "latency"];

/// What one action of one system took.
#[derive(Clone, Copy, Default)]
struct Measured {
    /// Jobs a second.
    rate: f64,
    /// Microseconds of processor time a job: the system's own, and its database's.
    own: f64,
    database: f64,
    /// Of [`Measured::latency`], in microseconds.
    p50: f64,
    p99: f64,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [ours, action, url, count] = arguments.as_slice()
        && ours == "ours"
    {
        return ours::act(action, url, count.parse().unwrap());
    }
    // `cargo test --benches` runs it too, only to see that it builds.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let rounds = arguments.first().and_then(|rounds| rounds.parse().ok()).unwrap_or(3);
    let words: Vec<&String> = arguments.iter().filter(|word| word.parse::<usize>().is_err()).collect();
    let chosen = |name: &str, all: &[&str]| {
        !words.iter().any(|word| all.contains(&word.as_str())) || words.iter().any(|word| *word == name)
    };
    let names: Vec<&str> = SYSTEMS.iter().map(|system| system.name).collect();
    let systems: Vec<&System> = SYSTEMS.iter().filter(|system| chosen(system.name, &names)).collect();
    let actions: Vec<&str> = ACTIONS.iter().copied().filter(|action| chosen(action, ACTIONS)).collect();
    build(&systems);

    let rig = Rig::start();
    let mut results: BTreeMap<(&str, &str), Vec<Measured>> = BTreeMap::new();
    for round in 1..=rounds {
        for action in &actions {
            for system in &systems {
                eprintln!("round {round} of {rounds}: {action} {}", system.name);
                if let Some(measured) = rig.measure(system, action) {
                    results.entry((action, system.name)).or_default().push(measured);
                }
            }
        }
    }
    report(&results);
}

/// Builds the others, once.
fn build(systems: &[&System]) {
    if systems.iter().any(|system| matches!(system.kind, Kind::Rust)) {
        run(Command::new("cargo").args(["build", "--release"]).current_dir(format!("{PEERS}/rust")));
    }
    if systems.iter().any(|system| matches!(system.kind, Kind::Node)) {
        run(Command::new("npm").args(["ci", "--no-audit", "--no-fund"]).current_dir(format!("{PEERS}/node")));
    }
}

fn run(command: &mut Command) {
    let status = command.stdin(Stdio::null()).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "{command:?} failed; cargo and npm (apt-get install -y npm) are needed"
    );
}

struct Rig {
    postgres: Server,
    redis: Server,
    folder: tempfile::TempDir,
}

impl Rig {
    fn start() -> Rig {
        let settings = ["fsync=on", "shared_buffers=512MB", "max_wal_size=4GB"];
        Rig {
            postgres: Server::postgres_with(&settings),
            redis: Server::redis(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn measure(&self, system: &System, action: &str) -> Option<Measured> {
        let url = self.empty(system.store);
        finish(self.spawn(system, "setup", &url, 0));
        let count = match action {
            "push" if matches!(system.kind, Kind::Ours) => OUR_PUSHES,
            "push" => PUSHES,
            "latency" => LATENCIES,
            _ => JOBS,
        };
        if action == "drain" {
            finish(self.spawn(system, "fill", &url, count));
            if system.store == Store::Postgres {
                self.psql(&url, "VACUUM ANALYZE");
                self.psql(&url, "CHECKPOINT");
            }
        }
        self.watch(self.spawn(system, action, &url, count), system.store, count)
    }

    /// Follows a process to its end.
    fn watch(&self, mut child: Child, store: Store, count: usize) -> Option<Measured> {
        let now = |child: &Child| (Instant::now(), own_cpu(child.id()), self.database_cpu(store));
        let (mut began, mut measured) = (None, None);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for line in lines.map_while(Result::ok) {
            if line == "begin" {
                began = Some(now(&child));
            } else if line == "end" {
                let (began, own, database) = began?;
                let (ended, own_then, database_then) = now(&child);
                let each = |cpu: Duration| cpu.as_secs_f64() * 1e6 / count as f64;
                let rate = count as f64 / (ended - began).as_secs_f64();
                let (own, database) = (each(own_then - own), each(database_then - database));
                measured = Some(Measured { rate, own, database, ..Measured::default() });
            } else if let Some(list) = line.strip_prefix("latency ") {
                let mut taken: Vec<f64> = list.split(' ').map(|one| one.parse().unwrap()).collect();
                taken.sort_by(f64::total_cmp);
                let at = |part: f64| taken[((taken.len() - 1) as f64 * part) as usize];
                measured = Some(Measured { p50: at(0.5), p99: at(0.99), ..Measured::default() });
            }
        }
        let _ = child.wait();
        measured
    }

    fn database_cpu(&self, store: Store) -> Duration {
        match store {
            Store::Postgres => self.postgres.cpu(),
            Store::Redis => self.redis.cpu(),
            Store::Sqlite => Duration::ZERO,
        }
    }

    /// A database with nothing in it.
    fn empty(&self, store: Store) -> String {
        match store {
            Store::Postgres => {
                let url = self.postgres.url();
                self.psql(&url, "DROP DATABASE IF EXISTS peers WITH (FORCE)");
                self.psql(&url, "CREATE DATABASE peers");
                url.rsplit_once('/').map(|(server, _)| format!("{server}/peers")).unwrap()
            }
            Store::Redis => {
                let url = self.redis.url();
                run(Command::new("redis-cli").args(["-u", &url, "FLUSHALL"]).stdout(Stdio::null()));
                url
            }
            Store::Sqlite => {
                for file in std::fs::read_dir(self.folder.path()).unwrap().flatten() {
                    std::fs::remove_file(file.path()).unwrap();
                }
                format!("sqlite://{}", self.folder.path().join("peers.db").display())
            }
        }
    }

    fn psql(&self, url: &str, sql: &str) {
        run(Command::new("psql").args([url, "-q", "-c", sql]).stderr(Stdio::null()));
    }

    fn spawn(&self, system: &System, action: &str, url: &str, count: usize) -> Child {
        let (program, first): (PathBuf, Vec<String>) = match system.kind {
            Kind::Ours => (std::env::current_exe().unwrap(), vec!["ours".to_owned()]),
            Kind::Rust => (Path::new(PEERS).join("rust/target/release/peers"), vec![system.name.to_owned()]),
            Kind::Node => ("node".into(), vec![format!("{PEERS}/node/peer.mjs"), system.name.to_owned()]),
        };
        let mut command = Command::new(program);
        command.args(first).args([action, url, &count.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap()
    }
}

fn finish(mut child: Child) {
    assert!(child.wait().unwrap().success(), "a peer failed");
}

fn own_cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11);
    Duration::from_millis(10 * fields.take(2).filter_map(|field| field.parse::<u64>().ok()).sum::<u64>())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Everything as a part of ours in the same rounds.
fn report(results: &BTreeMap<(&str, &str), Vec<Measured>>) {
    for action in ACTIONS {
        let of = |name: &str, value: fn(&Measured) -> f64| {
            let measured = results.get(&(action, name)).map_or(&[][..], Vec::as_slice);
            median(measured.iter().map(value))
        };
        let present: Vec<&str> = SYSTEMS
            .iter()
            .map(|system| system.name)
            .filter(|name| results.contains_key(&(*action, *name)))
            .collect();
        if present.is_empty() {
            continue;
        }
        println!("\n{action}");
        for name in present {
            let base = if name.ends_with("sqlite") { "greenwave-sqlite" } else { "greenwave" };
            if *action == "latency" {
                let (p50, p99) = (of(name, |m| m.p50), of(name, |m| m.p99));
                let (our50, our99) = (of(base, |m| m.p50) / p50, of(base, |m| m.p99) / p99);
                println!("  {name:20} p50 {p50:8.0} µs, p99 {p99:8.0} µs; ours ÷ it {our50:.2}, {our99:.2}");
            } else {
                let cpu = |m: &Measured| m.own + m.database;
                let (faster, cheaper) =
                    (of(base, |m| m.rate) / of(name, |m| m.rate), of(base, cpu) / of(name, cpu));
                println!(
                    "  {name:20} {:9.0}/s, CPU {:6.1} + {:6.1} µs; ours ÷ it {faster:6.2}, CPU {cheaper:.3}",
                    of(name, |m| m.rate),
                    of(name, |m| m.own),
                    of(name, |m| m.database)
                );
            }
        }
    }
}
