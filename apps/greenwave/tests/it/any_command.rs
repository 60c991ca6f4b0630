//! A service in another language: Perl, which every Debian has.

use std::time::Duration;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    client::{client, get},
    program::{Up, is_gone, until},
};

/// Answers with its process and port, `/slow` after a second.
const SERVER: &str = r#"
use IO::Socket::INET;
my $listener = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => $ENV{PORT}, Listen => 64) or die $!;
while (1) {
    my $client = $listener->accept or next;
    my $request = <$client> // "";
    while (my $header = <$client>) { last if $header =~ /^\r?\n$/; }
    sleep 1 if $request =~ m{ /slow };
    my $body = "$$ $ENV{PORT}";
    print $client "HTTP/1.1 200 OK\r\nContent-Length: " . length($body) . "\r\nConnection: close\r\n\r\n$body";
    close $client;
}
"#;

/// Starts `greenwave up` over it.
pub(crate) fn up(folder: &TempDir, arguments: &[&str]) -> Up {
    up_with(folder, &[], arguments)
}

/// The same, with further environment.
pub(crate) fn up_with(folder: &TempDir, environment: &[(&str, &str)], arguments: &[&str]) -> Up {
    Up::start(folder, environment, &[arguments, &["--", "perl", "-e", SERVER]].concat())
}

#[tokio::test]
async fn requests_go_round_all_instances() {
    let folder = TempDir::new().unwrap();
    let up = up(&folder, &["--instances", "3"]);
    let mut answers = std::collections::BTreeSet::new();
    for _ in 0..6 {
        answers.insert(get(&client(), &up.service).await.unwrap());
    }
    assert_eq!(answers.len(), 3, "{answers:?}");
}

#[tokio::test]
async fn an_instance_that_was_killed_is_started_again() {
    let folder = TempDir::new().unwrap();
    let up = up(&folder, &["--instances", "1", "--health", "/"]);
    let before = get(&client(), &up.service).await.unwrap();
    up.kill_instance("perl-0").await;
    // The balancer holds the request until there is an instance again.
    let after = get(&client(), &up.service).await.unwrap();
    assert_eq!(after.0, 200);
    assert_ne!(after, before);
}

#[tokio::test]
async fn a_request_in_flight_is_finished_when_it_is_told_to_stop() {
    for signal in [Signal::TERM, Signal::INT] {
        let folder = TempDir::new().unwrap();
        let up = up(&folder, &[]);
        let url = format!("{}/slow", up.service);
        let slow = tokio::spawn(async move { get(&client(), &url).await });
        // The balancer counts the request while it is under way.
        loop {
            let overview = up.overview().await;
            if overview["edge"]["active"].as_f64() >= Some(1.0) || slow.is_finished() {
                break;
            }
        }
        up.signal(signal);
        let (status, body) = slow.await.unwrap().unwrap();
        assert_eq!(status, 200, "{body}");
        assert!(up.wait(), "it did not stop in good order");
    }
}

#[tokio::test]
async fn when_it_is_killed_its_children_end_too() {
    let folder = TempDir::new().unwrap();
    let up = up(&folder, &["--instances", "2"]);
    // Longer than a runtime keeps an idle thread: a child must not end because the thread that started it did.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let children = up.instances().await;
    assert_eq!(children.len(), 2);
    up.signal(Signal::KILL);
    for (_, pid) in children {
        until("the child is gone", || is_gone(pid)).await;
    }
}
