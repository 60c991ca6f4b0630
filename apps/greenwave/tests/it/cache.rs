//! The response cache of the edge: kept through a reload, purged by command and over HTTP.

use hyper::{Request, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    client::{client, get, post},
    control::{refused, said, up_by},
    program::Up,
};

/// Counts its answers, which may be kept; each is tagged by its path.
const SERVER: &str = r#"
use IO::Socket::INET;
my $listener = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => $ENV{PORT}, Listen => 64) or die $!;
my $count = 0;
while (1) {
    my $client = $listener->accept or next;
    my $request = <$client> // "";
    while (my $header = <$client>) { last if $header =~ /^\r?\n$/; }
    my ($tag) = $request =~ m{ /(\w*)};
    my $body = "answer " . ++$count;
    print $client "HTTP/1.1 200 OK\r\nContent-Length: " . length($body)
        . "\r\nCache-Control: max-age=600\r\nSurrogate-Key: $tag\r\nConnection: close\r\n\r\n$body";
    close $client;
}
"#;

fn up(folder: &TempDir) -> Up {
    std::fs::write(folder.path().join("cached.pl"), SERVER).unwrap();
    up_by(folder, "[app]\ncommand = [\"perl\", \"cached.pl\"]\ninstances = 1\nhealth = \"tcp\"")
}

async fn body(url: &str) -> String {
    let (status, body) = get(&client(), url).await.unwrap();
    assert_eq!(status, 200);
    body
}

#[tokio::test]
async fn a_reload_keeps_the_cache_and_a_purge_drops_what_it_names() {
    let folder = TempDir::new().unwrap();
    let up = up(&folder);
    let (a, b) = (format!("{}/a", up.service), format!("{}/b", up.service));
    let (first_a, first_b) = (body(&a).await, body(&b).await);
    assert_eq!(body(&a).await, first_a, "it is not kept");

    said(&folder, &["reload", "--edge"]);
    assert_eq!((body(&a).await, body(&b).await), (first_a.clone(), first_b.clone()), "it is not taken over");

    assert_eq!(said(&folder, &["purge", &a]), "1 answer was dropped\n");
    let second_a = body(&a).await;
    assert_ne!(second_a, first_a);
    assert_eq!(body(&b).await, first_b);
    assert_eq!(said(&folder, &["purge", "--tag", "b"]), "1 answer was dropped\n");
    assert_ne!(body(&b).await, first_b);
    assert_eq!(said(&folder, &["purge", "--prefix", &up.service]), "2 answers were dropped\n");
    assert_eq!(said(&folder, &["purge", "--all"]), "0 answers were dropped\n");
    assert!(refused(&folder, &["purge", "/a"]).contains("/a is no absolute URL"));
}

#[tokio::test]
async fn the_admin_api_purges_and_refuses_pages_of_other_sites() {
    let folder = TempDir::new().unwrap();
    let up = up(&folder);
    let (url, admin) = (format!("{}/a", up.service), format!("{}/admin", up.dashboard));
    let first = body(&url).await;
    let (status, answer) = post(&client(), &format!("{admin}/purge"), &json!({ "url": url })).await.unwrap();
    assert_eq!((status, answer.as_str()), (StatusCode::OK, r#"{"purged":1}"#));
    assert_ne!(body(&url).await, first);
    let stats: Value = serde_json::from_str(&body(&format!("{admin}/cache")).await).unwrap();
    assert_eq!(stats["stored"], 2);
    let instances: Value = serde_json::from_str(&body(&format!("{admin}/instances")).await).unwrap();
    assert_eq!(instances[0]["name"], "perl-0");

    let foreign = Request::post(format!("{admin}/purge"))
        .header("content-type", "application/json")
        .header("origin", "http://evil.example");
    let answer = client().request(foreign.body("\"all\"".into()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 403);
    let rebound = Request::get(format!("{admin}/cache")).header("host", "evil.example");
    let answer = client().request(rebound.body(Default::default()).unwrap()).await.unwrap();
    assert_eq!(answer.status(), 403);
}
