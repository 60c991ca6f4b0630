//! `greenwave ps`, `logs`, `scale`, `stop`, `purge`, and what they say when they cannot.

use std::{fs, process::Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    any_command::{SERVER, up},
    client::{client, get},
    program::{Up, greenwave, until},
};

/// Runs a command of the program in the folder of the one that runs.
pub(crate) fn command(folder: &TempDir, arguments: &[&str]) -> Output {
    greenwave(arguments).current_dir(folder.path()).output().unwrap()
}

/// The same, which must go well; what it prints.
pub(crate) fn said(folder: &TempDir, arguments: &[&str]) -> String {
    let output = command(folder, arguments);
    let (said, error) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{arguments:?}: {said}{error}");
    said
}

/// The same, which must fail with exit status 1; what it says.
pub(crate) fn refused(folder: &TempDir, arguments: &[&str]) -> String {
    let output = command(folder, arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

pub(crate) fn ps(folder: &TempDir) -> Value {
    serde_json::from_str(&said(folder, &["ps", "--json"])).unwrap()
}

/// The pids of an app's instances.
pub(crate) fn pids(ps: &Value, app: &str) -> Vec<i32> {
    let app = ps["apps"].as_array().unwrap().iter().find(|row| row["name"] == app).unwrap();
    let pid = |row: &Value| i32::try_from(row["pid"].as_i64()?).ok();
    app["instances"].as_array().unwrap().iter().filter_map(pid).collect()
}

/// Starts `greenwave up` with this config.
pub(crate) fn up_by(folder: &TempDir, config: &str) -> Up {
    configure(folder, config);
    Up::start(folder, &[], &[])
}

/// Writes the config; `SERVER` in it is that of these tests.
pub(crate) fn configure(folder: &TempDir, config: &str) {
    fs::write(folder.path().join("server.pl"), SERVER).unwrap();
    fs::write(folder.path().join("greenwave.toml"), config.replace("SERVER", r#"["perl", "server.pl"]"#))
        .unwrap();
}

#[tokio::test]
async fn what_runs_is_shown_scaled_and_stopped() {
    let folder = TempDir::new().unwrap();
    let up = up(&folder, &["--instances", "1"]);
    let table = said(&folder, &["ps"]);
    let names: Vec<_> = table.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(names, ["NAME", "edge", "perl-0"], "{table}");

    assert_eq!(said(&folder, &["scale", "3"]), "scaled\n");
    assert_eq!(pids(&ps(&folder), "perl").len(), 3);
    said(&folder, &["scale", "perl", "1"]);
    assert_eq!(pids(&ps(&folder), "perl").len(), 1);
    assert!(refused(&folder, &["scale", "ruby", "1"]).contains("no app is called \"ruby\"; there is perl"));
    assert!(refused(&folder, &["scale", "none"]).contains("is not a number from 1 to 65535"));

    assert_eq!(said(&folder, &["stop"]), "stopped\n");
    assert!(up.wait(), "it did not stop in good order");
    assert!(refused(&folder, &["ps"]).contains("start it with `greenwave up`"));
}

#[tokio::test]
async fn the_lines_of_instances_are_kept_and_followed() {
    let folder = TempDir::new().unwrap();
    let _up = up_by(
        &folder,
        "[apps.talker]\ncommand = [\"sh\", \"-c\", \"echo one; echo two; while sleep 0.2; do echo more; done\"]\n\
         port = \"none\"\ninstances = 1\n[apps.quiet]\ncommand = SERVER\ninstances = 1\n[logs]\nformat = \"json\"",
    );
    let last = || said(&folder, &["logs", "talker", "-n", "100"]);
    until("it has said more", || last().contains("talker-0 | more")).await;
    assert!(last().starts_with("talker-0 | one\ntalker-0 | two\n"), "{}", last());
    assert_eq!(said(&folder, &["logs", "quiet-0"]), "");
    assert!(refused(&folder, &["logs", "loud"]).contains("no app and no instance is called \"loud\""));

    let mut follower = greenwave(&["logs", "talker-0", "-f", "-n", "0"])
        .current_dir(folder.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(follower.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "talker-0 | more");
    follower.kill().unwrap();
    follower.wait().unwrap();
    let log = fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(log.contains(r#""instance":"talker-0","stream":"stdout","message":"one"}"#), "{log}");
}

#[tokio::test]
async fn several_apps_are_told_apart_by_path() {
    let folder = TempDir::new().unwrap();
    let up = up_by(
        &folder,
        "[apps.a]\ncommand = SERVER\ninstances = 1\n[apps.b]\ncommand = SERVER\ninstances = 1\nport = \"env\"\n\
         [apps.w]\ncommand = [\"sleep\", \"1000\"]\nport = \"none\"\ninstances = 1\n\
         [[routes]]\nto = \"a\"\n[[routes]]\npath = \"/b\"\nto = \"b\"",
    );
    let shown = ps(&folder);
    for (path, app) in [("/", "a"), ("/b/x", "b"), ("/bc", "a")] {
        let (status, body) = get(&client(), &format!("{}{path}", up.service)).await.unwrap();
        assert_eq!(status, 200);
        let pid: i32 = body.split(' ').next().unwrap().parse().unwrap();
        assert_eq!(pids(&shown, app), [pid], "{path}");
    }
    assert_eq!(pids(&shown, "w").len(), 1);
}

#[test]
fn a_config_is_checked_without_starting_anything() {
    let folder = TempDir::new().unwrap();
    configure(&folder, "[apps.a]\ncommand = SERVER\n[apps.b]\ncommand = SERVER");
    assert!(refused(&folder, &["check"]).contains("say with [[routes]] which requests go to each of a, b"));
    configure(&folder, "[apps.a]\ncommand = SERVER\n[[routes]]\nto = \"c\"");
    assert!(
        refused(&folder, &["check"]).contains("routes[0].to: nothing that takes requests is called \"c\"")
    );
    configure(&folder, "[apps.a]\ncommand = SERVER\nport = \"socket\"");
    assert!(refused(&folder, &["check"]).contains("apps.a.health: an inherited socket accepts before"));
    configure(&folder, "[edge.proxy.tls]\ncertificate = \"missing.pem\"\nkey = \"missing.key\"");
    assert!(refused(&folder, &["check"]).contains("missing.pem"));
    configure(&folder, "[apps.a]\ncommand = SERVER");
    assert_eq!(said(&folder, &["check"]), "the settings are right\n");
}
