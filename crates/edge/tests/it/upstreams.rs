//! Servers by hand, for what no well-behaved server does.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

use crate::clients::read_head;

/// Answers every request of every connection with the same bytes, and remembers the heads.
pub(crate) struct Scripted {
    pub(crate) address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Scripted {
    /// An empty answer ends the connection without one.
    pub(crate) async fn start(answer: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(converse(stream, answer, Arc::clone(&seen)));
            }
        });
        Self { address, heads }
    }

    pub(crate) async fn heads(&self) -> Vec<String> {
        self.heads.lock().await.clone()
    }

    /// All heads as tables show them.
    pub(crate) async fn shown(&self) -> String {
        shown(&self.heads().await.concat())
    }
}

async fn converse(mut stream: TcpStream, answer: &'static str, seen: Arc<Mutex<Vec<String>>>) {
    loop {
        let head = read_head(&mut stream).await;
        if head.is_empty() {
            return;
        }
        seen.lock().await.push(head);
        if answer.is_empty() || stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// A head without carriage returns, and with one word for the trace that was begun for it.
pub(crate) fn shown(head: &str) -> String {
    let line = |line: &str| match line.strip_prefix("traceparent: ") {
        Some(_) => "traceparent: BEGUN\n".to_owned(),
        None => format!("{line}\n"),
    };
    head.lines().map(line).collect()
}

/// An address where nobody listens.
pub(crate) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
