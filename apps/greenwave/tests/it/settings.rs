//! What a config may ask for: sockets, notices, files of variables, watched files, servers elsewhere, limits and logs.

use std::{
    fs,
    net::TcpListener,
    process::{Child, Command},
};

use http_body_util::BodyExt;
use hyper::{Request, Response, body::Incoming};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    client::{client, get},
    control::{pids, ps, said, up_by},
    program::{Up, until},
};

/// Listens on the port or the socket that it is given, says so where it is asked to, and answers with what it knows.
const SERVER: &str = r#"
use IO::Socket::INET;
use IO::Socket::UNIX;
my $inherits = ($ENV{LISTEN_PID} // 0) == $$;
my $listener = $inherits
    ? IO::Socket::INET->new_from_fd(3, "r+")
    : IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => $ENV{PORT}, Listen => 64);
die $! unless $listener;
if ($ENV{NOTIFY_SOCKET}) {
    sleep 1;
    open my $mark, ">", "said" or die $!;
    IO::Socket::UNIX->new(Type => SOCK_DGRAM, Peer => $ENV{NOTIFY_SOCKET})->send("READY=1") or die $!;
}
while (1) {
    my $client = $listener->accept or next;
    my $request = <$client> // "";
    while (my $header = <$client>) { last if $header =~ /^\r?\n$/; }
    my $body = join " ", $$, ($inherits ? "inherits" : "listens"), map { $ENV{$_} // "-" } "ONE", "TWO";
    $body .= " and more" x 1000 if $request =~ m{ /long\b};
    print $client "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: " . length($body)
        . "\r\nConnection: close\r\n\r\n$body";
    close $client;
}
"#;

/// Starts `greenwave up` with this config; `SERVER` in it is that of these tests.
fn up(folder: &TempDir, config: &str) -> Up {
    fs::write(folder.path().join("settings.pl"), SERVER).unwrap();
    up_by(folder, &config.replace("SERVER", r#"["perl", "settings.pl"]"#))
}

/// The pid of whoever answers, and what it says.
async fn answer(url: &str) -> (i32, String) {
    let (status, body) = get(&client(), url).await.unwrap();
    assert_eq!(status, 200, "{body}");
    let (pid, says) = body.split_once(' ').unwrap();
    (pid.parse().unwrap(), says.to_owned())
}

#[tokio::test]
async fn an_instance_inherits_its_socket() {
    let folder = TempDir::new().unwrap();
    let up = up(&folder, "[apps.a]\ncommand = SERVER\nport = \"socket\"\nhealth = \"/\"\ninstances = 1");
    let (pid, says) = answer(&up.service).await;
    assert_eq!((vec![pid], says.as_str()), (pids(&ps(&folder), "a"), "inherits - -"));
    // Its successor has a socket too.
    said(&folder, &["reload", "--app", "a"]);
    let (next, says) = answer(&up.service).await;
    assert_ne!(next, pid);
    assert_eq!(says, "inherits - -");
}

#[tokio::test]
async fn an_instance_is_ready_when_it_says_so() {
    let folder = TempDir::new().unwrap();
    let worker = r#"use IO::Socket::UNIX; sleep 1; open my $mark, '>', 'worker'; IO::Socket::UNIX->new(Type => SOCK_DGRAM, Peer => $ENV{NOTIFY_SOCKET})->send('READY=1'); sleep 1000"#;
    let up = up(
        &folder,
        &format!(
            "[apps.a]\ncommand = SERVER\nhealth = \"notify\"\ninstances = 1\n\
             [apps.w]\ncommand = [\"perl\", \"-e\", \"{worker}\"]\nport = \"none\"\nhealth = \"notify\"\ninstances = 1"
        ),
    );
    // It listened a second earlier.
    assert!(folder.path().join("said").exists() && folder.path().join("worker").exists());
    assert_eq!(answer(&up.service).await.1, "listens - -");
}

#[tokio::test]
async fn a_worker_that_dies_is_started_again() {
    let folder = TempDir::new().unwrap();
    let up = up(&folder, "[apps.w]\ncommand = [\"sleep\", \"1000\"]\nport = \"none\"\ninstances = 2");
    let before = pids(&ps(&folder), "w");
    up.kill_instance("w-0").await;
    until("there are two again", || {
        let now = pids(&ps(&folder), "w");
        now.len() == 2 && now != before
    })
    .await;
    up.signal(Signal::TERM);
    assert!(up.wait(), "it did not stop in good order");
}

#[tokio::test]
async fn variables_come_from_files_and_are_read_again() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("variables");
    fs::write(&file, "# two\nONE=file\nexport TWO=\"a file\"\n").unwrap();
    let up = up(
        &folder,
        "[apps.a]\ncommand = SERVER\ninstances = 1\nenv_files = [\"variables\"]\nenv.ONE = \"config\"",
    );
    assert_eq!(answer(&up.service).await.1, "listens config a file");
    fs::write(&file, "TWO=another\n").unwrap();
    said(&folder, &["reload", "--app", "a"]);
    assert_eq!(answer(&up.service).await.1, "listens config another");
}

#[tokio::test]
async fn what_is_watched_replaces_the_instances_and_keeps_them_when_it_is_broken() {
    let folder = TempDir::new().unwrap();
    let program = folder.path().join("server.pl");
    fs::write(&program, SERVER).unwrap();
    let up = Up::start(&folder, &[], &["--watch", "server.pl", "--", "perl", "server.pl"]);
    let old = pids(&ps(&folder), "perl");
    fs::write(&program, SERVER.replace("\"ONE\"", "\"NONE\", \"ONE\"")).unwrap();
    until("both are new", || {
        let now = pids(&ps(&folder), "perl");
        now.len() == 2 && now.iter().all(|pid| !old.contains(pid))
    })
    .await;
    let new = pids(&ps(&folder), "perl");
    assert_eq!(answer(&up.service).await.1, "listens - - -");

    fs::write(&program, "die 'no license'").unwrap();
    let log = || fs::read_to_string(folder.path().join("log")).unwrap();
    until("it is given up", || log().lines().any(|line| line.contains("ERROR") && line.contains("perl")))
        .await;
    assert_eq!(pids(&ps(&folder), "perl"), new, "{}", log());
    assert_eq!(answer(&up.service).await.1, "listens - - -");
}

/// A server that somebody else runs.
struct Elsewhere(Child, u16);

impl Elsewhere {
    fn start() -> Elsewhere {
        let port = free_port();
        let server = Command::new("perl").args(["-e", SERVER]).env("PORT", port.to_string()).spawn();
        Elsewhere(server.unwrap(), port)
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn an_app_and_servers_elsewhere_are_told_apart_by_host_and_path() {
    let folder = TempDir::new().unwrap();
    let (elsewhere, nobody) = (Elsewhere::start(), free_port());
    let up = up(
        &folder,
        &format!(
            "[apps.a]\ncommand = SERVER\ninstances = 1\n[upstreams.old]\n\
             addresses = [\"localhost:{} weight=3\", \"127.0.0.1:{nobody}\"]\nhealth = \"/\"\n\
             [[routes]]\nto = \"a\"\n[[routes]]\npath = \"/old\"\nto = \"old\"\n\
             [[routes]]\nhost = \"*.old.example\"\nto = \"old\"",
            elsewhere.1
        ),
    );
    let (app, old) = (pids(&ps(&folder), "a"), vec![elsewhere.0.id().try_into().unwrap()]);
    for (host, path, expected) in [
        ("new.example", "/", &app),
        ("new.example", "/older", &app),
        ("old.example", "/", &app),
        ("new.example", "/old", &old),
        ("new.example", "/old/er", &old),
        ("www.old.example", "/", &old),
    ] {
        // More often than there are servers, one of which is down.
        for _ in 0..4 {
            let answer = ask(&up, host, path, &[]).await;
            assert_eq!(answer.status(), 200, "{host}{path}");
            let body = answer.into_body().collect().await.unwrap().to_bytes();
            let pid = std::str::from_utf8(&body).unwrap().split(' ').next().unwrap();
            assert_eq!(&vec![pid.parse::<i32>().unwrap()], expected, "{host}{path}");
        }
    }
}

async fn ask(up: &Up, host: &str, path: &str, headers: &[(&str, &str)]) -> Response<Incoming> {
    let mut request = Request::get(format!("{}{path}", up.service)).header("host", host);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    client().request(request.body(Default::default()).unwrap()).await.unwrap()
}

#[tokio::test]
async fn answers_are_compressed_limited_and_logged() {
    let folder = TempDir::new().unwrap();
    let up = up(
        &folder,
        "[apps.a]\ncommand = SERVER\ninstances = 1\n[edge.proxy.compression]\nenabled = true\n\
         [edge.proxy.access_log]\nformat = \"json\"\nfile = \"access\"\n\
         [[edge.proxy.rate_limits]]\npath = \"/limited\"\nrequests = 2\nper = \"1h\"",
    );
    let accepts = [("accept-encoding", "gzip")];
    let long = ask(&up, "a.example", "/long?secret=1", &accepts).await;
    assert_eq!(
        (long.status().as_u16(), &long.headers()["content-encoding"]),
        (200, &"gzip".parse().unwrap())
    );
    let short = ask(&up, "a.example", "/", &accepts).await;
    assert!(!short.headers().contains_key("content-encoding"));

    let mut seen = Vec::new();
    for _ in 0..3 {
        let answer = ask(&up, "a.example", "/limited", &[]).await;
        assert!(answer.headers().contains_key("ratelimit"), "{answer:?}");
        seen.push(answer.status().as_u16());
    }
    assert_eq!(seen, [200, 200, 429]);

    up.signal(Signal::TERM);
    assert!(up.wait(), "it did not stop in good order");
    let log = fs::read_to_string(folder.path().join("access")).unwrap();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let of: Vec<_> = lines.iter().map(|line| line["status"].as_u64().unwrap()).collect();
    assert_eq!(of, [200, 200, 200, 200, 429], "{log}");
    assert!(log.contains("/long") && !log.contains("secret"), "{log}");
}
