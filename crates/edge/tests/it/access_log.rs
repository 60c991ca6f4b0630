//! What is written of each request.

use std::path::Path;
use std::time::Duration;

use greenwave_edge::{AccessLogConfig, AccessLogFormat, Proxy, ProxyConfig, Upstreams};
use http::Request;
use http_body_util::Full;

use crate::clients::{LIMIT, RunningProxy, client, send};
use crate::upstreams::{OK, Scripted};

async fn lines(file: &Path, count: usize) -> Vec<String> {
    let written = async {
        loop {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            if text.lines().count() >= count {
                return text.lines().map(str::to_owned).collect();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, written).await.expect("lines are missing")
}

async fn logging(format: AccessLogFormat, file: &Path) -> (RunningProxy, Scripted) {
    let upstream = Scripted::start(OK).await;
    let access_log = AccessLogConfig { format, file: file.to_str().unwrap().to_owned(), query: false };
    let config = ProxyConfig { access_log, ..ProxyConfig::default() };
    let proxy = RunningProxy::start(config, Upstreams::fixed([upstream.address]).into_watch()).await;
    (proxy, upstream)
}

#[tokio::test]
async fn a_line_says_what_was_asked_and_answered_without_the_query() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("access.log");
    let (proxy, _upstream) = logging(AccessLogFormat::Common, &file).await;
    proxy.get("/a%20b?token=secret").await;
    let line = lines(&file, 1).await.remove(0);
    assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
    assert!(line.contains(r#" +0000] "GET /a%20b HTTP/1.1" 200 2 0."#), "{line}");
}

#[tokio::test]
async fn the_log_is_opened_anew_when_its_file_was_moved() {
    let folder = tempfile::tempdir().unwrap();
    let (file, moved) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
    let (proxy, _upstream) = logging(AccessLogFormat::Common, &file).await;
    proxy.get("/before").await;
    lines(&file, 1).await;
    std::fs::rename(&file, &moved).unwrap();
    let made = async {
        while !file.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, made).await.expect("the file is not made again");
    proxy.get("/after").await;
    assert!(lines(&file, 1).await[0].contains("/after"));
    assert_eq!(lines(&moved, 1).await.len(), 1);
}

#[tokio::test]
async fn the_trace_of_a_request_reaches_the_upstream_and_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("access.log");
    let (proxy, upstream) = logging(AccessLogFormat::Json, &file).await;
    let theirs = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
    let request = Request::get(format!("http://{}/", proxy.address)).header("traceparent", theirs);
    send(&client(), request.body(Full::default()).unwrap()).await.unwrap();
    proxy.get("/").await;
    let heads = upstream.heads().await;
    assert!(heads[0].contains(&format!("traceparent: {theirs}\r\n")), "{}", heads[0]);
    let begun = heads[1].split("traceparent: 00-").nth(1).unwrap()[..32].to_owned();
    let lines = lines(&file, 2).await;
    let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!(line["trace"], "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(line["upstream"], upstream.address.to_string());
    assert_eq!((line["status"].as_u64(), line["bytes"].as_u64()), (Some(200), Some(2)));
    let line: serde_json::Value = serde_json::from_str(&lines[1]).unwrap();
    assert_eq!(line["trace"], begun);
}

#[test]
fn a_log_that_cannot_be_written_is_refused() {
    let access_log = AccessLogConfig {
        format: AccessLogFormat::Json,
        file: "/nowhere/access.log".to_owned(),
        ..AccessLogConfig::default()
    };
    let config = ProxyConfig { access_log, ..ProxyConfig::default() };
    let error = Proxy::new(config, Upstreams::fixed([]).into_watch()).err().unwrap();
    assert!(error.to_string().starts_with("`access_log.file` cannot be written: "), "{error}");
}
