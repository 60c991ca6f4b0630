//! Any bytes of an upstream reach clients as one answer, cut off where they are; the next answer is not touched.
#![no_main]

#[path = "../../tests/it/oracle.rs"]
#[allow(dead_code)]
mod oracle;
#[path = "../../tests/it/rig.rs"]
#[allow(dead_code)]
mod rig;

use std::sync::Mutex;

use libfuzzer_sys::fuzz_target;
use oracle::{Read, answer};
use rig::{Rig, Then};

static CASE: Mutex<Vec<u8>> = Mutex::new(Vec::new());
const AFTER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nafter";

thread_local! {
    static RIG: Rig = Rig::start(|request| match request.line.contains("/after") {
        true => (AFTER.to_vec(), Then::Wait),
        false => (CASE.lock().unwrap().clone(), Then::Close),
    });
}

fn ask(rig: &Rig, path: &str) -> Vec<u8> {
    let mut client = rig.connect();
    client.send_last(format!("GET {path} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").as_bytes());
    client.bytes
}

fuzz_target!(|bytes: &[u8]| RIG.with(|rig| {
    *CASE.lock().unwrap() = bytes.to_vec();
    let case = ask(rig, "/case");
    match answer(&case, true) {
        Read::Whole(message) => assert_eq!(message.length, case.len(), "{}", case.escape_ascii()),
        Read::Incomplete => {}
        Read::Violation(what) => panic!("answered with {what}: {}", case.escape_ascii()),
    }
    let after = ask(rig, "/after");
    assert!(after.ends_with(b"\r\n\r\nafter"), "{}", after.escape_ascii());
}));
