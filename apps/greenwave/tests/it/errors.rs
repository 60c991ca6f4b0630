//! What is wrong is said in a line that says what to do.

use std::{fs, net::TcpListener};

use expect_test::{Expect, expect};
use tempfile::TempDir;

use crate::program::greenwave;

fn check(arguments: &[&str], environment: &[(&str, &str)], file: &str, expected: Expect) {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("greenwave.toml"), file).unwrap();
    let free = ["up", "--listen", "127.0.0.1:0", "--dashboard", "127.0.0.1:0"];
    let output = greenwave(&free)
        .args(arguments)
        .current_dir(folder.path())
        .envs(environment.iter().copied())
        .env("RUST_LOG", "off")
        .output()
        .unwrap();
    assert!(!output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    expected.assert_eq(&String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_port_in_use_is_named_with_the_flag_that_changes_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = |listen: &str, dashboard: &str| {
        let output = greenwave(&["up", "--listen", listen, "--dashboard", dashboard]).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).replace(&address, "ADDRESS")
    };
    expect![[""]].assert_eq(&said(&address, "127.0.0.1:0"));
    expect![[""]].assert_eq(&said("127.0.0.1:0", &address));
}

#[test]
fn a_command_that_does_not_exist() {
    check(&["--", "no-such-command", "x"], &[], "", expect![[""]]);
    check(&["--", "./server"], &[], "", expect![[""]]);
}

#[test]
fn a_command_that_ends_at_once_is_shown_with_its_last_lines() {
    check(&["--instances", "1", "--", "sh", "-c", "echo no license >&2; exit 3"], &[], "", expect![[""]]);
}

#[test]
fn a_bad_database_or_redis() {
    check(&[], &[("DATABASE_URL", "mysql://root:secret@db/shop")], "", expect![[""]]);
    check(&[], &[("DATABASE_URL", "postgres://ann:secret@127.0.0.1:1/shop")], "", expect![[""]]);
    check(&[], &[("REDIS_URL", "127.0.0.1")], "", expect![[""]]);
}

#[test]
fn a_bad_setting() {
    check(&[], &[], "[edge]\nlisen = \"x\"", expect![[""]]);
    check(&["--listen", "nowhere"], &[], "", expect![[""]]);
    check(&["--health", "health", "--", "sh"], &[], "", expect![[""]]);
    check(&["--dashboard", "0.0.0.0:0", "--", "sh"], &[], "", expect![[""]]);
    check(&["--config", "missing.toml"], &[], "", expect![[""]]);
    check(&["--data-dir", "/dev/null/x"], &[], "", expect![[""]]);
}
