//! The servers themselves.
#![allow(clippy::unwrap_used)]

use std::{process::Command, thread};

use greenwave_test_servers::{Program, Server, nats_url, postgres_database, redis_url};

fn psql(url: &str, sql: &str) -> String {
    let output = Command::new(Program::Psql.path()).args([url, "-XAtqc", sql]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn redis(url: &str, arguments: &[&str]) -> String {
    let output = Command::new(Program::RedisCli.path()).args(["-u", url]).args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn each_test_has_a_database_of_its_own() {
    // The first is asked for in a thread that ends: the server must not end with it.
    let first = thread::spawn(postgres_database).join().unwrap();
    let second = postgres_database();
    psql(&first, "CREATE TABLE t (x int)");
    psql(&second, "CREATE TABLE t (x int)");
    let (first, second) = (redis_url(), redis_url());
    redis(&first, &["SET", "k", "1"]);
    assert_eq!(redis(&second, &["EXISTS", "k"]), "0");
    assert!(nats_url().starts_with("nats://127.0.0.1:"));
}

#[test]
fn a_killed_server_comes_back_with_what_it_acknowledged() {
    let mut postgres = Server::postgres();
    psql(&postgres.url(), "CREATE TABLE t (x int); INSERT INTO t VALUES (7)");
    postgres.kill();
    postgres.start();
    assert_eq!(psql(&postgres.url(), "SELECT x FROM t"), "7");

    let mut server = Server::redis();
    redis(&server.url(), &["SET", "k", "7"]);
    server.kill();
    server.start();
    assert_eq!(redis(&server.url(), &["GET", "k"]), "7");
}
