//! Any bytes of a client reach upstreams in one unambiguous form, or not at all; its answers can be read in one way.
#![no_main]

#[path = "../../tests/it/oracle.rs"]
#[allow(dead_code)]
mod oracle;
#[path = "../../tests/it/rig.rs"]
#[allow(dead_code)]
mod rig;

use libfuzzer_sys::fuzz_target;
use oracle::{Read, answer};
use rig::{Rig, Then};

thread_local! {
    static RIG: Rig = Rig::start(|_| (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_vec(), Then::Wait));
}

fuzz_target!(|bytes: &[u8]| RIG.with(|rig| {
    let mut client = rig.connect();
    client.send_all(bytes);
    let mut answers = &client.bytes[..];
    while !answers.is_empty() {
        match answer(answers, true) {
            Read::Whole(message) => answers = &answers[message.length..],
            Read::Incomplete => break,
            Read::Violation(what) => panic!("answered with {what}: {}", answers.escape_ascii()),
        }
    }
    for seen in rig.seen.try_iter() {
        assert!(matches!(seen, Read::Whole(_)), "passed on: {seen:?}");
    }
}));
