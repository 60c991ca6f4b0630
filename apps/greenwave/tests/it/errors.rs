//! What is wrong is said in a line that says what to do.

use std::{fs, net::TcpListener};

use expect_test::{Expect, expect};
use tempfile::TempDir;

use crate::program::greenwave;

fn check(arguments: &[&str], environment: &[(&str, &str)], file: &str, expected: Expect) {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("greenwave.toml"), file).unwrap();
    let output = greenwave(&["up"])
        .args(arguments)
        .envs([("GREENWAVE_EDGE__LISTEN", "127.0.0.1:0"), ("GREENWAVE_DASHBOARD__LISTEN", "127.0.0.1:0")])
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
    expect![[r#"
        greenwave: ADDRESS is in use: stop what listens there, or choose another address with --listen
    "#]]
    .assert_eq(&said(&address, "127.0.0.1:0"));
    expect![[r#"
        greenwave: ADDRESS is in use: stop what listens there, or choose another address with --dashboard
    "#]]
    .assert_eq(&said("127.0.0.1:0", &address));
}

#[test]
fn a_command_that_does_not_exist() {
    check(
        &["--", "no-such-command", "x"],
        &[],
        "",
        expect![[r#"
        greenwave: command not found: no-such-command; check the spelling, or give its full path
    "#]],
    );
    check(
        &["--", "./server"],
        &[],
        "",
        expect![[r#"
        greenwave: command not found: ./server; check the spelling, or give its full path
    "#]],
    );
}

#[test]
fn a_command_that_ends_at_once_is_shown_with_its_last_lines() {
    check(
        &["--instances", "1", "--", "sh", "-c", "echo no license >&2; exit 3"],
        &[],
        "",
        expect![[r#"
        sh-0 | no license
        sh-0 | no license
        sh-0 | no license
        sh-0 | no license
        sh-0 | no license
        greenwave: sh-0 keeps exiting (exit status: 3); its last lines:
            no license
            no license
            no license
            no license
            no license
    "#]],
    );
}

#[test]
fn a_bad_database_or_redis() {
    check(
        &[],
        &[("DATABASE_URL", "mysql://root:secret@db/shop")],
        "",
        expect![[r#"
            greenwave: DATABASE_URL: write postgres://USER:PASSWORD@HOST/DATABASE or sqlite:PATH
        "#]],
    );
    check(
        &[],
        &[("DATABASE_URL", "postgres://ann:secret@127.0.0.1:1/shop")],
        "",
        expect![[r#"
            greenwave: cannot reach PostgreSQL at 127.0.0.1:1/shop: check that it runs there, and that the URL is right: error communicating with database: Connection refused (os error 111)
        "#]],
    );
    check(
        &[],
        &[("REDIS_URL", "127.0.0.1")],
        "",
        expect![[r#"
            greenwave: REDIS_URL: write redis://HOST:PORT, or leave it out to cache in this process only: the cache's remote needs a URL like redis://host:6379/0: the URL is not understood - InvalidClientConfig: it must begin with one of redis:, rediss:, valkey:, valkeys:, unix:, redis+sentinel:, rediss+sentinel:, redis+cluster:, rediss+cluster:
        "#]],
    );
}

#[test]
fn a_bad_setting() {
    check(
        &[],
        &[],
        "[edge]\nlisen = \"x\"",
        expect![[r#"
        greenwave: greenwave.toml: unknown key `edge.lisen`; did you mean `edge.listen`? (all keys: greenwave config --reference)
    "#]],
    );
    check(
        &["--listen", "nowhere"],
        &[],
        "",
        expect![[r#"
            greenwave: nowhere is no address: write HOST:PORT, as in 127.0.0.1:8080, for --listen
        "#]],
    );
    check(
        &["--health", "health", "--", "sh"],
        &[],
        "",
        expect![[r#"
        greenwave: app.health (--health): no health check is called "health"; use tcp, none, or a path such as /health
    "#]],
    );
    check(
        &["--health", "none", "--", "sh"],
        &[],
        "",
        expect![[r#"
        greenwave: app.health (--health): what takes requests needs a check: tcp, or a path such as /health
    "#]],
    );
    check(
        &["--dashboard", "0.0.0.0:0", "--", "sh"],
        &[],
        "",
        expect![[r#"
            greenwave: the dashboard would be public on 0.0.0.0:0: set dashboard.token, or let it listen on 127.0.0.1
        "#]],
    );
    check(
        &["--config", "missing.toml"],
        &[],
        "",
        expect![[r#"
        greenwave: missing.toml: No such file or directory (os error 2); check the path given by --config or GREENWAVE_CONFIG
    "#]],
    );
    check(
        &["--data-dir", "/dev/null/x"],
        &[],
        "",
        expect![[r#"
        greenwave: cannot make /dev/null/x; choose another folder with --data-dir: Not a directory (os error 20)
    "#]],
    );
}
