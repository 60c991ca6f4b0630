//! A service in another language: Perl, which every Debian has.

use std::{net::TcpStream, time::Duration};

use hyper::StatusCode;
use hyper_util::client::legacy::Error;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::{
    client::{client, get},
    program::{Up, is_gone, until},
};

/// Answers with its process and port; `/slow` after a second, `/stuck` after a minute.
pub(crate) const SERVER: &str = r#"
use IO::Socket::INET;
my $listener = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => $ENV{PORT}, Listen => 64) or die $!;
while (1) {
    my $client = $listener->accept or next;
    my $request = <$client> // "";
    while (my $header = <$client>) { last if $header =~ /^\r?\n$/; }
    sleep 1 if $request =~ m{ /slow };
    sleep 60 if $request =~ m{ /stuck };
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
        let slow = in_flight(&up, "/slow").await;
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

#[tokio::test]
async fn a_second_signal_stops_at_once() {
    let folder = TempDir::new().unwrap();
    let up = up(&folder, &[]);
    let stuck = in_flight(&up, "/stuck").await;
    up.signal(Signal::TERM);
    // Draining has begun once nobody is let in any more.
    let address = up.service.trim_start_matches("http://").to_owned();
    until("nobody is let in", || TcpStream::connect(&address).is_err()).await;
    up.signal(Signal::TERM);
    let stopped = tokio::task::spawn_blocking(move || up.wait());
    let well = tokio::time::timeout(Duration::from_secs(60), stopped).await.expect("it goes on").unwrap();
    assert!(!well, "requests were cut, and its exit status does not say so");
    assert!(!stuck.await.unwrap().is_ok_and(|(status, _)| status == 200));
}

#[tokio::test]
async fn a_viewer_that_hangs_does_not_hold_up_the_end() {
    let folder = TempDir::new().unwrap();
    let up = up(&folder, &[]);
    let mut viewer = TcpStream::connect(up.dashboard.trim_start_matches("http://")).unwrap();
    std::io::Write::write_all(&mut viewer, b"GET / HT").unwrap();
    up.signal(Signal::TERM);
    let stopped = tokio::task::spawn_blocking(move || up.wait());
    let stopped =
        tokio::time::timeout(Duration::from_secs(60), stopped).await.expect("it waits for the viewer");
    assert!(stopped.unwrap(), "it did not stop in good order");
}

/// Sends a request, and returns once the balancer counts it as under way.
async fn in_flight(up: &Up, path: &str) -> JoinHandle<Result<(StatusCode, String), Error>> {
    let url = format!("{}{path}", up.service);
    let request = tokio::spawn(async move { get(&client(), &url).await });
    while up.overview().await["edge"]["active"].as_f64() < Some(1.0) && !request.is_finished() {}
    request
}
