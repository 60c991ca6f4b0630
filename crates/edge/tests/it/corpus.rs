//! Ambiguous, malformed and hostile bytes, from clients and from upstreams: what becomes of each stands in the two tables
//! beside this file. The bytes are those that fuzzing begins with, in `fuzz/corpus`.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;

use expect_test::expect_file;

use super::oracle::{Message, Read, answer};
use super::rig::{Rig, Then};

// Each case waits for silences; the machine can do something else meanwhile.
const AT_ONCE: usize = 32;
const AFTER: &[u8] = b"GET /after HTTP/1.1\r\nHost: after.test\r\n\r\n";

fn whole(message: &Message) -> (Vec<u8>, Then) {
    let body = message.line.split(' ').nth(1).unwrap_or_default();
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    (answer.into_bytes(), Then::Wait)
}

/// The table of what `outcome` says of each file of a folder.
fn table(folder: &str, outcome: impl Fn(&[u8]) -> String + Sync) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(folder);
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let (queue, lines) = (Mutex::new(files), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(file) = { queue.lock().unwrap().pop() } {
                    let name = file.file_name().unwrap().to_string_lossy().into_owned();
                    let line = format!("{name}: {}\n", outcome(&fs::read(&file).unwrap()));
                    lines.lock().unwrap().push(line);
                }
            });
        }
    });
    let mut lines = lines.into_inner().unwrap();
    lines.sort();
    lines.concat()
}

/// The answers in the bytes, in words.
fn answers(mut bytes: &[u8], ended: bool) -> String {
    let mut text = String::new();
    while !bytes.is_empty() {
        match answer(bytes, ended) {
            Read::Whole(message) => {
                let status = message.line.split(' ').nth(1).unwrap_or_default();
                let body = String::from_utf8_lossy(&message.body).into_owned();
                let body = if body.starts_with("{\"error\"") { String::new() } else { format!(" {body:?}") };
                write!(text, "{status}{body}, ").unwrap();
                bytes = &bytes[message.length..];
            }
            Read::Incomplete => {
                text.push_str("cut off, ");
                break;
            }
            Read::Violation(what) => panic!("a client was sent a {what}: {}", String::from_utf8_lossy(bytes)),
        }
    }
    text
}

fn seen(rig: &Rig) -> String {
    let mut text = String::new();
    for read in rig.seen.try_iter() {
        match read {
            Read::Whole(message) => {
                let line = message.line.trim_end_matches(" HTTP/1.1");
                let line = if line.len() > 60 { &line[..60] } else { line };
                write!(text, " | {line} {}", String::from_utf8_lossy(&message.body).escape_debug()).unwrap();
            }
            other => panic!("upstream was sent what can be read in two ways: {other:?}"),
        }
    }
    if text.is_empty() { " | nothing passed on".to_owned() } else { text }
}

#[test]
fn what_clients_send_reaches_upstreams_in_one_form_or_not_at_all() {
    let table = table("client_bytes", |bytes| {
        let rig = Rig::start(whole);
        let mut client = rig.connect();
        client.send(bytes);
        let mut text = answers(&client.bytes, client.ended);
        let seen_first = seen(&rig);
        if client.ended {
            text.push_str("closed");
        } else {
            // The next request on the connection is answered as itself, or as the rest of an unfinished one.
            let before = client.bytes.len();
            client.send(AFTER);
            write!(text, "then {}", answers(&client.bytes[before..], client.ended)).unwrap();
            text.push_str(if client.ended { "closed" } else { "open" });
            seen(&rig);
        }
        text + &seen_first
    });
    expect_file!["corpus/client_bytes.txt"].assert_eq(&table);
}

#[test]
fn what_upstreams_answer_reaches_clients_in_one_form_or_as_a_502() {
    let table = table("upstream_bytes", |bytes| {
        let bytes = bytes.to_vec();
        let rig = Rig::start(move |message| {
            if message.line.contains("/after") { whole(message) } else { (bytes.clone(), Then::Wait) }
        });
        let mut client = rig.connect();
        client.send(b"GET /case HTTP/1.1\r\nHost: a.test\r\n\r\n");
        let mut text = answers(&client.bytes, client.ended);
        text.push_str(if client.ended { "closed, " } else { "open, " });
        let mut after = if client.ended { rig.connect() } else { client };
        let before = after.bytes.len();
        after.send(AFTER);
        let last = answers(&after.bytes[before..], after.ended);
        assert_eq!(last, "200 \"/after\", ", "after {text}");
        text + "then well"
    });
    expect_file!["corpus/upstream_bytes.txt"].assert_eq(&table);
}

#[test]
fn a_connection_ends_with_what_its_client_sent_last_whatever_that_is() {
    table("client_bytes", |bytes| {
        let rig = Rig::start(whole);
        let mut client = rig.connect();
        client.send_all(bytes);
        answers(&client.bytes, client.ended)
    });
}
