//! A proxy between a client and an upstream of raw bytes. Everything it passes on is read by the oracle.

use std::io::{Read as _, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use greenwave_edge::{Proxy, ProxyConfig, Upstreams, listen};
use tokio_util::sync::CancellationToken;

use super::oracle::{Message, Read, request};

/// How long a client listens to a proxy that says nothing more, twice: longer than an upstream waits.
pub(crate) const QUIET: Duration = Duration::from_millis(250);

const HANG: Duration = Duration::from_secs(10);

/// Ends with its drop.
pub(crate) struct Rig {
    pub(crate) proxy: SocketAddr,
    /// What reached the upstream, in order: whole requests, and violations.
    pub(crate) seen: Receiver<Read>,
    cancel: CancellationToken,
}

impl Rig {
    /// A proxy over an upstream that answers a request with the bytes that `answer` makes of it, and then with
    /// [`Then`].
    pub(crate) fn start(answer: impl Fn(&Message) -> (Vec<u8>, Then) + Clone + Send + 'static) -> Self {
        let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
        let upstreams = Upstreams::fixed([upstream.local_addr().unwrap()]);
        let (seen, receiver) = channel();
        thread::spawn(move || {
            for stream in upstream.incoming() {
                let (answer, seen) = (answer.clone(), seen.clone());
                thread::spawn(move || serve(stream.unwrap(), answer, &seen));
            }
        });
        let cancel = CancellationToken::new();
        let listeners = listen("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let proxy = listeners[0].local_addr().unwrap();
        let stop = cancel.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let config = ProxyConfig { threads: 1, drain_idle_timeout: Duration::ZERO, ..Default::default() };
            let proxy = Proxy::new(config, upstreams.into_watch()).unwrap();
            runtime.block_on(proxy.serve(listeners, stop)).unwrap();
        });
        Self { proxy, seen: receiver, cancel }
    }

    pub(crate) fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.proxy).unwrap();
        stream.set_read_timeout(Some(QUIET)).unwrap();
        Client { stream, bytes: Vec::new(), ended: false }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// What an upstream does after an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// It waits a moment for the next request.
    Wait,
    Close,
}

fn serve(mut stream: TcpStream, answer: impl Fn(&Message) -> (Vec<u8>, Then), seen: &Sender<Read>) {
    let mut bytes = Vec::new();
    loop {
        match request(&bytes) {
            Read::Whole(message) => {
                bytes.drain(..message.length);
                let (answer, then) = answer(&message);
                let _ = (stream.write_all(&answer), seen.send(Read::Whole(message)));
                if then == Then::Close {
                    return;
                }
                // Whoever waits for more than the bytes of a corpus is to see an end of them.
                stream.set_read_timeout(Some(QUIET / 3)).unwrap();
            }
            Read::Incomplete => {}
            Read::Violation(what) => {
                let _ = seen.send(Read::Violation(what));
                return;
            }
        }
        let mut more = [0; 16 * 1024];
        match stream.read(&mut more) {
            Ok(0) | Err(_) => return,
            Ok(count) => bytes.extend_from_slice(&more[..count]),
        }
    }
}

/// A client that says what it likes.
pub(crate) struct Client {
    stream: TcpStream,
    pub(crate) bytes: Vec<u8>,
    pub(crate) ended: bool,
}

impl Client {
    /// Sends, says that this was all, and reads to the end: answers that are still to come then may be dropped.
    #[allow(dead_code)] // What is fuzzed uses it.
    pub(crate) fn send_all(&mut self, bytes: &[u8]) {
        let _ = (self.stream.write_all(bytes), self.stream.shutdown(Shutdown::Write));
        self.read_all();
    }

    /// Sends a request that asks for the connection's end, and reads to the end.
    #[allow(dead_code)] // What is fuzzed uses it.
    pub(crate) fn send_last(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
        self.read_all();
    }

    fn read_all(&mut self) {
        self.stream.set_read_timeout(Some(HANG)).unwrap();
        self.listen();
        assert!(self.ended, "the proxy keeps a connection whose client has left");
    }

    /// Sends as much as the proxy takes.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let mut writer = self.stream.try_clone().unwrap();
        let bytes = bytes.to_vec();
        // Who is refused early does not read the rest: this must not keep the answer from being read.
        let writing = thread::spawn(move || drop(writer.write_all(&bytes)));
        self.listen();
        if self.ended {
            let _ = self.stream.shutdown(Shutdown::Both);
        }
        writing.join().unwrap();
    }

    /// Reads until the proxy is quiet or has ended the connection. That it had the time to say something is sure once it
    /// has refused a request without a host, on another connection, in the middle of the silence.
    fn listen(&mut self) {
        let mut more = [0; 16 * 1024];
        let mut sure = false;
        loop {
            match self.stream.read(&mut more) {
                Ok(0) => return self.ended = true,
                Ok(count) => {
                    self.bytes.extend_from_slice(&more[..count]);
                    sure = false;
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && sure => return,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let mut other = TcpStream::connect(self.stream.peer_addr().unwrap()).unwrap();
                    other.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
                    other.read_exact(&mut more[..1]).unwrap();
                    sure = true;
                }
                Err(_) => return self.ended = true,
            }
        }
    }
}
