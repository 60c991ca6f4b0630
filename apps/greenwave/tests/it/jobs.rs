//! `greenwave jobs`, on both databases.

use std::process::Output;

use greenwave_jobs::{Job, JobFilter, JobId, Queue, SqlBackend};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::TempDir;

use crate::program::{greenwave, run};

/// A job of which the program knows nothing.
#[derive(Serialize, Deserialize)]
pub(crate) struct Letter {
    to: String,
}

impl Job for Letter {
    const NAME: &'static str = "letter";
    const QUEUE: &'static str = "letters";
    const VERSION: u32 = 2;

    fn key(&self) -> Option<String> {
        Some(self.to.clone())
    }
}

/// Pushes a letter to each of these people.
pub(crate) async fn push<B: SqlBackend>(queue: &Queue<B>, people: &[&str]) -> Vec<JobId> {
    let letters: Vec<_> = people.iter().map(|to| Letter { to: (*to).to_owned() }).collect();
    queue.push_many(&letters).await.unwrap().into_iter().map(|pushed| pushed.id).collect()
}

/// What the command prints; it must end as said.
fn jobs(database: &str, arguments: &[&str], well: bool) -> String {
    let Output { status, stdout, stderr } = run(&[&["jobs", "--database", database][..], arguments].concat());
    let text = String::from_utf8(if well { stdout } else { stderr.clone() }).unwrap();
    assert_eq!(status.success(), well, "{arguments:?}: {text}{}", String::from_utf8_lossy(&stderr));
    text
}

fn json(database: &str, arguments: &[&str]) -> Value {
    serde_json::from_str(&jobs(database, &[arguments, &["--json"]].concat(), true)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_any_type_are_managed_in_sqlite() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("jobs.db");
    let queue = Queue::sqlite(&path).unwrap();
    manages(queue, path.to_str().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_any_type_are_managed_in_postgres() {
    let url = tokio::task::spawn_blocking(greenwave_test_servers::postgres_database).await.unwrap();
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(4).connect_lazy(&url).unwrap();
    manages(Queue::postgres(pool), &url).await;
}

async fn manages<B: SqlBackend>(queue: Queue<B>, database: &str) {
    let missing = jobs(database, &["list"], false);
    assert!(missing.contains("the tables are missing"), "{missing}");
    jobs(database, &["migrate"], true);
    let ids = push(&queue, &["ada", "bob", "eve\u{1b}[31m"]).await;
    let [ada, bob, eve] = [0, 1, 2].map(|at: usize| ids[at].to_string());

    let listed = jobs(database, &["list"], true);
    let lines: Vec<_> = listed.lines().collect();
    assert!(lines.len() == 4 && lines[0].starts_with("ID"), "{listed}");
    assert!(lines[1].starts_with(&eve) && lines[1].contains("letters"), "{listed}");
    assert!(!listed.contains('\u{1b}'), "a key speaks to the terminal");
    assert_eq!(json(database, &["list", "--key", "ada"])["jobs"][0]["id"].to_string(), ada);
    assert_eq!(json(database, &["list", "--limit", "2"])["next"].to_string(), bob);
    assert_eq!(json(database, &["list", "--state", "dead"])["jobs"], Value::Array(Vec::new()));

    assert_eq!(jobs(database, &["cancel", &ada, &bob], true), format!("cancelled {ada}\ncancelled {bob}\n"));
    let dead = jobs(database, &["list", "--state", "dead", "--queue", "letters"], true);
    assert!(dead.contains("dead (cancelled)") && dead.lines().count() == 3, "{dead}");
    let shown = json(database, &["show", &ada]);
    assert_eq!((&shown["payload"]["to"], &shown["version"]), (&"ada".into(), &2.into()));
    let shown = jobs(database, &["show", &ada], true);
    assert!(shown.contains("letter (version 2)") && shown.contains("\"to\": \"ada\""), "{shown}");

    assert_eq!(jobs(database, &["retry", &ada], true), format!("retried {ada}\n"));
    let not_dead = jobs(database, &["retry", &ada], false);
    assert!(not_dead.contains(&format!("no dead job has the id {ada}")), "{not_dead}");
    // Nobody is there to be asked.
    let unasked = jobs(database, &["retry", "--queue", "letters"], false);
    assert!(unasked.contains("retry 1 dead job") && unasked.contains("--yes"), "{unasked}");
    assert!(jobs(database, &["discard"], false).contains("which jobs?"));
    assert_eq!(jobs(database, &["cancel", "--all", "--yes"], true), "cancelled 2 jobs\n");
    assert_eq!(jobs(database, &["retry", "--key", "bob", "--yes"], true), "retried 1 job\n");
    assert_eq!(jobs(database, &["discard", "--name", "letter", "--yes"], true), "discarded 2 jobs\n");
    assert!(jobs(database, &["show", &ada], false).contains("there is no job"));
    assert_eq!(queue.list(&JobFilter::default()).await.unwrap().jobs.len(), 1);

    jobs(database, &["pause", "letters"], true);
    let stats = json(database, &["stats"]);
    assert_eq!((&stats[0]["paused"], &stats[0]["jobs"]["letter"]["ready"]), (&true.into(), &1.into()));
    assert!(jobs(database, &["stats"], true).contains("letters (paused)  letter"), "no table of queues");
    jobs(database, &["resume", "letters"], true);
    assert!(queue.paused().await.unwrap().is_empty());
}

#[test]
fn what_is_asked_wrongly_is_refused_before_the_database_is_opened() {
    for (arguments, expected) in [
        (&["list", "--state", "asleep"][..], "one of ready, scheduled, running, blocked, completed, dead"),
        (&["list", "--limit", "0"], "a number above zero"),
        (&["retry", "7", "--all"], "cannot be used with"),
        (&["pause"], "<QUEUE>"),
        (&["show", "seven"], "invalid"),
    ] {
        let Output { status, stderr, .. } = run(&[&["jobs"][..], arguments].concat());
        let said = String::from_utf8_lossy(&stderr);
        assert!(status.code() == Some(2) && said.contains(expected), "{arguments:?}: {status}: {said}");
    }
}

#[test]
fn what_is_wrong_with_the_database_is_said_without_its_password() {
    for (database, expected) in [
        ("postgres://ann:hunter2@127.0.0.1:1/shop", "cannot look into the database"),
        ("postgres://ann:hun/ter2@127.0.0.1:1/shop", "cannot be read"),
        ("mysql://ann:hunter2@db/shop", "write postgres://"),
        ("nowhere.db", "nowhere.db is no file"),
    ] {
        let said = jobs(database, &["stats"], false);
        assert!(said.contains(expected) && !said.contains("ter2"), "{database}: {said}");
    }
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("c.toml"), "[app]\ncommand = [\"sleep\", \"1\"]\n").unwrap();
    let mut command = greenwave(&["jobs", "stats", "--config", "c.toml"]);
    let output = command.current_dir(folder.path()).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("which database?"));
}
