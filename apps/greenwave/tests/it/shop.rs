//! The first screen of the README.

use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    client::{client, get},
    program::Up,
};

#[test]
fn the_printed_curl_lines_answer_on_embedded_defaults() {
    let folder = TempDir::new().unwrap();
    let up = Up::start(&folder, &[], &[]);
    let lines: Vec<_> = up.printed.lines().filter(|line| line.trim().starts_with("curl ")).collect();
    assert_eq!(lines.len(), 3, "{}", up.printed);
    for line in lines {
        let output = Command::new("sh")
            .args(["-c", &format!("{line} --silent --show-error --fail")])
            .output()
            .unwrap();
        let answer = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{line}: {answer} {}", String::from_utf8_lossy(&output.stderr));
        assert!(serde_json::from_str::<serde_json::Value>(&answer).is_ok(), "{line}: {answer}");
    }
    // A debug build on a busy machine; a release build takes a fraction of it.
    assert!(up.took.as_secs() < 30, "{:?} to start", up.took);
}

#[tokio::test]
async fn data_stays_when_it_is_started_again() {
    let folder = TempDir::new().unwrap();
    for _ in 0..2 {
        let up = Up::start(&folder, &[], &["--instances", "1"]);
        let (status, user) = get(&client(), &format!("{}/users/1", up.service)).await.unwrap();
        assert_eq!(status, 200, "{user}");
        up.signal(Signal::INT);
        assert!(up.wait(), "it did not stop in good order");
    }
}

#[tokio::test]
async fn naive_answers_the_same() {
    let (folder, naive_folder) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let up = Up::start(&folder, &[], &["--instances", "1"]);
    let naive = Up::start(&naive_folder, &[], &["--instances", "1", "--naive"]);
    for path in ["/users/7", "/products/3", "/orders/11", "/orders?customer_id=5", "/nothing"] {
        let answer = get(&client(), &format!("{}{path}", up.service)).await.unwrap();
        assert_eq!(get(&client(), &format!("{}{path}", naive.service)).await.unwrap(), answer, "{path}");
    }
}
