//! The program as a person or a supervisor runs it.

use std::{
    io::{BufRead, BufReader, Read},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::client::Client;

fn shop(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shop"));
    command.current_dir(folder).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for name in
        ["PORT", "DATABASE_URL", "REDIS_URL", "RUST_LOG", "GREENWAVE_MONITOR_SOCKET", "SHOP_QUERY_STATS"]
    {
        command.env_remove(name);
    }
    command
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// It fails, and says why in one line.
fn fails(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(stdout.is_empty());
    let lines: Vec<&str> =
        text.lines().filter(|line| !line.contains(" INFO ") && !line.contains(" WARN ")).collect();
    assert_eq!(lines.len(), 1, "{text}");
    lines[0].to_owned()
}

struct Serving {
    child: Child,
    port: u16,
}

impl Serving {
    async fn start(command: &mut Command, port: u16) -> Serving {
        let child = command.env("PORT", port.to_string()).spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(30);
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            assert!(Instant::now() < end, "it does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Serving { child, port }
    }

    fn client(&self) -> Client {
        Client::new(([127, 0, 0, 1], self.port).into())
    }

    /// Ends it as a supervisor does; answers with its log.
    fn terminate(mut self) -> String {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        assert_eq!(status.code(), Some(0), "{log}");
        log
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn help_shows_examples() {
    let folder = TempDir::new().unwrap();
    for arguments in [vec!["--help"], vec!["serve", "--help"]] {
        let output = shop(folder.path()).args(&arguments).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && text.contains("DATABASE_URL"), "{text}");
    }
    let output = shop(folder.path()).args(["worker", "--help"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains(&format!("[default: {}]", greenwave_shop::DEFAULT_DATABASE_URL)), "{text}");
}

/// A start that waits for another process ends at once when it is told to.
fn a_start_that_waits_ends_on_sigterm(command: &mut Command) {
    for signal in [Signal::TERM, Signal::INT] {
        let mut child = command.env("PORT", "0").spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.contains("another process prepares") {
            assert!(log.read_line(&mut said).unwrap() > 0, "{said}");
        }
        let told = Instant::now();
        kill_process(Pid::from_child(&child), signal).unwrap();
        let status = child.wait().unwrap();
        log.read_to_string(&mut said).unwrap();
        assert_eq!(status.code(), Some(0), "{said}");
        assert!(told.elapsed() < Duration::from_secs(20), "{:?}: {said}", told.elapsed());
        assert!(said.contains("stopped"), "{said}");
    }
}

#[test]
fn on_sqlite_a_start_that_waits_ends_on_sigterm() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("shop.db");
    let db = rusqlite::Connection::open(&path).unwrap();
    db.pragma_update(None, "journal_mode", "wal").unwrap();
    db.execute_batch("BEGIN IMMEDIATE").unwrap();
    let url = format!("sqlite:{}", path.display());
    a_start_that_waits_ends_on_sigterm(shop(folder.path()).arg("serve").env("DATABASE_URL", url));
}

#[tokio::test]
async fn on_postgres_a_start_that_waits_ends_on_sigterm() {
    let folder = TempDir::new().unwrap();
    let url = tokio::task::spawn_blocking(greenwave_test_servers::postgres_database).await.unwrap();
    let mut other = crate::fixture::pool(&url).begin().await.unwrap();
    // Whoever migrates or seeds holds it.
    sqlx::query("SELECT pg_advisory_xact_lock(1936224112)").execute(&mut *other).await.unwrap();
    tokio::task::spawn_blocking(move || {
        a_start_that_waits_ends_on_sigterm(shop(folder.path()).arg("serve").env("DATABASE_URL", url));
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_setting_it_serves_a_small_set_within_seconds_and_ends_on_sigterm() {
    let folder = TempDir::new().unwrap();
    let started = Instant::now();
    let serving = Serving::start(shop(folder.path()).arg("serve"), free_port()).await;
    let client = serving.client();
    assert_eq!(client.get("/orders/1").await["id"], 1);
    // Three seconds is what is promised of a quiet machine.
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
    assert!(folder.path().join("greenwave-data/shop.db").exists());
    assert_eq!(client.get("/orders?customer_id=1").await["orders"].as_array().unwrap().len(), 20);
    let log = serving.terminate();
    assert!(log.contains("the shop serves on http://127.0.0.1:"), "{log}");
    assert!(!log.contains('\u{1b}'), "no colours where there is no terminal: {log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn api_and_worker_may_be_processes_of_their_own() {
    let folder = TempDir::new().unwrap();
    let serving = Serving::start(shop(folder.path()).args(["serve", "--no-worker"]), free_port()).await;
    let worker = shop(folder.path()).arg("worker").spawn().unwrap();
    let worker = Serving { child: worker, port: 0 };
    let order = serde_json::json!({"customer_id": 1, "items": [{"product_id": 5, "quantity": 1}]});
    let id = serving.client().post("/orders", &order).await["id"].clone();
    let db = crate::database::Database::Sqlite(folder.path().join("greenwave-data/shop.db"));
    let notified = format!("SELECT count(*) FROM notifications WHERE order_id = {id}");
    crate::fixture::eventually("the notification", 1, || db.int(&notified)).await;
    assert!(worker.terminate().contains("the worker handles events and jobs"));
    serving.terminate();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_statements_cost_is_kept_in_a_file_of_the_process() {
    let folder = TempDir::new().unwrap();
    let mut command = shop(folder.path());
    command.arg("serve").env("SHOP_QUERY_STATS", "stats");
    let serving = Serving::start(&mut command, free_port()).await;
    let file = folder.path().join(format!("stats/{}.json", serving.child.id()));
    for id in 1..=3 {
        serving.client().get(&format!("/orders/{id}")).await;
    }
    serving.terminate();
    let kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let orders = kept["statements"].as_array().unwrap().iter().find(|statement| {
        statement["text"].as_str().unwrap().contains("FROM orders") && statement["calls"] == 3
    });
    assert!(orders.is_some_and(|orders| orders["total_ms"].as_f64() > Some(0.0)), "{kept}");
    assert_eq!(std::fs::read_dir(folder.path().join("stats")).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn measurements_are_served_where_the_supervisor_says() {
    let folder = TempDir::new().unwrap();
    let socket = folder.path().join("monitor.sock");
    let mut command = shop(folder.path());
    command.arg("serve").env("GREENWAVE_MONITOR_SOCKET", &socket);
    let serving = Serving::start(&mut command, free_port()).await;
    serving.client().get("/orders/1").await;
    let snapshot = greenwave_monitor::Snapshot::fetch_unix(&socket).await.unwrap();
    let text = greenwave_monitor::export::prometheus(&snapshot);
    let route =
        text.lines().find(|line| line.contains("greenwave_request_queries") && line.contains("/orders/{id}"));
    assert!(route.is_some(), "{text}");
    serving.terminate();
    assert!(!socket.exists());
}

#[test]
fn a_port_in_use_is_said_in_one_line_and_the_database_stays_as_it_is() {
    let folder = TempDir::new().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let line = fails(shop(folder.path()).arg("serve").env("PORT", &port));
    assert!(line.contains(&port) && line.contains("another port"), "{line}");
    let file = folder.path().join("greenwave-data/shop.db");
    assert!(!file.exists());

    let seed = ["seed", "--users", "20", "--products", "10", "--orders", "50"];
    assert!(shop(folder.path()).args(seed).status().unwrap().success());
    fails(shop(folder.path()).args(["serve", "--naive"]).env("PORT", &port));
    let index = "SELECT count(*) FROM sqlite_schema WHERE name = 'orders_customer_status_created'";
    let db = rusqlite::Connection::open(file).unwrap();
    assert_eq!(
        db.query_one(index, (), |row| row.get::<_, i64>(0)).unwrap(),
        1,
        "the live shop has its index"
    );
}

#[test]
fn a_bad_url_is_said_in_one_line_without_its_password() {
    let folder = TempDir::new().unwrap();
    for (name, url, what) in [
        ("DATABASE_URL", "mysql://ada:s3cret@localhost/shop", "postgres://"),
        ("DATABASE_URL", "postgres://ada:s3cret@127.0.0.1:1/shop", "127.0.0.1:1"),
        ("DATABASE_URL", "postgres://ada:s3cret@[/shop", "postgres://"),
        ("DATABASE_URL", "sqlite:/proc/shop/shop.db", "/proc/shop"),
        ("DATABASE_URL", "sqlite:.", "SQLite"),
        ("REDIS_URL", "http://ada:s3cret@localhost", "redis://"),
    ] {
        let line = fails(shop(folder.path()).arg("serve").env("PORT", "0").env(name, url));
        assert!(line.contains(what) && !line.contains("s3cret"), "{url}: {line}");
    }
}

#[test]
fn seeding_fills_an_empty_database_and_no_other() {
    let folder = TempDir::new().unwrap();
    let seed = ["seed", "--users", "200", "--products", "30", "--orders", "500"];
    let output = shop(folder.path()).args(seed).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("200 users, 30 products and 500 orders"), "{text}");
    let line = fails(shop(folder.path()).args(seed));
    assert!(line.contains("empty database"), "{line}");
    let line =
        fails(shop(folder.path()).args(["seed", "--users", "0"]).env("DATABASE_URL", "sqlite:other.db"));
    assert!(line.contains("at least one user"), "{line}");
}

#[test]
fn the_document_is_printed() {
    let folder = TempDir::new().unwrap();
    let output = shop(folder.path()).arg("openapi").output().unwrap();
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(document, serde_json::to_value(greenwave_shop::http::openapi()).unwrap());
}
