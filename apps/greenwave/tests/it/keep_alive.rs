//! Load over keep-alive connections, of which every failure is counted.

use std::{
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// Clients that send one GET after the other, each over one connection for as long as the server keeps it.
pub(crate) struct KeepAlive {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<()>>,
}

struct Shared {
    address: String,
    stop: AtomicBool,
    answered: AtomicU64,
    connections: AtomicU64,
    failures: Mutex<Vec<String>>,
    slowest: Mutex<Duration>,
}

impl KeepAlive {
    pub(crate) fn start(service: &str, clients: usize) -> KeepAlive {
        let shared = Arc::new(Shared {
            address: service.trim_start_matches("http://").to_owned(),
            stop: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            failures: Mutex::default(),
            slowest: Mutex::default(),
        });
        let client = |_| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.run())
        };
        let clients = (0..clients).map(client).collect();
        KeepAlive { shared, clients }
    }

    /// Waits until every client has been answered several times more.
    pub(crate) async fn more(&self) {
        let wanted = self.shared.answered.load(Ordering::Relaxed) + 5 * self.clients.len() as u64;
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.shared.answered.load(Ordering::Relaxed) < wanted {
            assert!(Instant::now() < deadline, "no answers: {:?}", self.shared.failures.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Ends the load; no request may have failed. The longest that one took.
    pub(crate) fn stop(self) -> Duration {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().unwrap();
        }
        let failures = self.shared.failures.lock().unwrap();
        let (answered, connections) =
            (self.shared.answered.load(Ordering::Relaxed), self.shared.connections.load(Ordering::Relaxed));
        let few: Vec<_> = failures.iter().take(5).collect();
        assert!(
            failures.is_empty(),
            "{} of {answered} failed over {connections} connections: {few:?}",
            failures.len()
        );
        assert!(connections < answered, "connections are not kept");
        *self.shared.slowest.lock().unwrap()
    }
}

impl Shared {
    fn run(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            self.connections.fetch_add(1, Ordering::Relaxed);
            if let Err(error) = self.connection() {
                self.failures.lock().unwrap().push(error.to_string());
            }
        }
    }

    /// Requests over one connection, until the server says that it ends.
    fn connection(&self) -> std::io::Result<()> {
        let stream = TcpStream::connect(&self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.set_nodelay(true)?;
        let mut answers = BufReader::new(&stream);
        while !self.stop.load(Ordering::Relaxed) {
            let sent = Instant::now();
            (&stream).write_all(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")?;
            let ends = read_answer(&mut answers)?;
            let mut slowest = self.slowest.lock().unwrap();
            *slowest = sent.elapsed().max(*slowest);
            self.answered.fetch_add(1, Ordering::Relaxed);
            if ends {
                break;
            }
        }
        Ok(())
    }
}

/// Whether the connection ends with it.
fn read_answer(answers: &mut impl BufRead) -> std::io::Result<bool> {
    let (mut length, mut ends, mut line) = (0, false, String::new());
    if answers.read_line(&mut line)? == 0 {
        return Err(std::io::Error::other("closed before an answer"));
    }
    let status = line.trim().to_owned();
    while line != "\r\n" {
        let header = line.to_ascii_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(std::io::Error::other)?;
        }
        ends |= header.trim() == "connection: close";
        line.clear();
        answers.read_line(&mut line)?;
    }
    let mut body = vec![0; length];
    answers.read_exact(&mut body)?;
    if !status.starts_with("HTTP/1.1 200 ") {
        return Err(std::io::Error::other(format!("{status}: {}", String::from_utf8_lossy(&body))));
    }
    Ok(ends)
}
