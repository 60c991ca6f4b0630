//! The servers themselves.
#![allow(clippy::unwrap_used)]

use std::{process::Command, thread};

use greenwave_test_servers::{
    Program, RedisCluster, RedisSentinel, Server, nats_url, postgres_database, redis_url,
};

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

#[test]
fn a_sentinel_names_the_new_primary_after_a_failover() {
    let mut group = RedisSentinel::start();
    let first = group.primary().url();
    redis(&first, &["SET", "k", "7"]);
    // Replication is asynchronous: what no replica has is lost by a failover.
    assert_eq!(redis(&first, &["WAIT", "1", "30000"]), "1");
    group.failover();
    let second = group.primary().url();
    assert_ne!(first, second);
    assert_eq!(redis(&second, &["GET", "k"]), "7");
    redis(&second, &["SET", "k", "8"]);
    assert_eq!(redis(&second, &["WAIT", "1", "30000"]), "1");

    group.primary().kill();
    group.failed_over();
    assert_eq!(group.primary().url(), first);
    assert_eq!(redis(&first, &["GET", "k"]), "8");
}

#[test]
fn a_cluster_is_well_and_again_after_one_of_it_was_killed() {
    let mut cluster = RedisCluster::start();
    let url = cluster.nodes()[0].url();
    for key in ["a", "b", "c", "d"] {
        assert_eq!(redis(&url, &["-c", "SET", key, key]), "OK");
    }
    cluster.nodes()[1].kill();
    cluster.nodes()[1].start();
    cluster.well();
    for key in ["a", "b", "c", "d"] {
        assert_eq!(redis(&url, &["-c", "GET", key]), key);
    }
}

#[test]
fn redis_speaks_tls_and_takes_lines_of_configuration() {
    let server = Server::redis_tls();
    let authority = server.certificate_authority();
    assert_eq!(redis(&server.url(), &["--cacert", authority.to_str().unwrap(), "PING"]), "PONG");

    let server = Server::redis_with(&["requirepass secret", "maxmemory 2mb"]);
    assert!(redis(&server.url(), &["GET", "k"]).starts_with("NOAUTH"));
    let allowed = server.url().replace("//", "//default:secret@");
    assert_eq!(redis(&allowed, &["CONFIG", "GET", "maxmemory"]), "maxmemory\n2097152");
}
