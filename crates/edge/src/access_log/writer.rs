//! The thread that writes the lines, so that no thread that serves waits for a disk.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use http::Version;

use super::{AccessLogConfig, AccessLogFormat, Entry};
use crate::Error;
use crate::telemetry::PROXY_TARGET;

/// Lines that wait for the disk; what exceeds them is lost, and counted.
const WAITING: usize = 16 * 1024;
/// How soon a file that was moved away is noticed, and lost lines are told of.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a proxy that ends waits for its last lines.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Writes a line for each request. Clones of a proxy share it; when the last is gone it writes what it has and ends.
pub(crate) struct AccessLog {
    entries: Option<SyncSender<Box<Entry>>>,
    lost: Arc<AtomicU64>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl AccessLog {
    /// None if the log is off.
    ///
    /// # Errors
    /// When the file cannot be opened, or the thread not be started.
    pub(crate) fn new(config: &AccessLogConfig) -> Result<Option<Self>, Error> {
        if config.format == AccessLogFormat::Off {
            return Ok(None);
        }
        let invalid = |error| Error::invalid_config("access_log.file", format!("cannot be written: {error}"));
        let output = Output::open(&config.file).map_err(invalid)?;
        let (entries, received) = sync_channel(WAITING);
        let lost = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            format: config.format,
            query: config.query,
            output,
            lost: Arc::clone(&lost),
            line: String::new(),
        };
        let thread = thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || writer.run(&received))
            .map_err(Error::Serve)?;
        Ok(Some(Self { entries: Some(entries), lost, thread: Mutex::new(Some(thread)) }))
    }

    /// Hands the entry over, or counts it as lost if too many wait.
    pub(crate) fn write(&self, entry: Box<Entry>) {
        if let Some(entries) = &self.entries
            && entries.try_send(entry).is_err()
        {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for AccessLog {
    fn drop(&mut self) {
        // Its end is the thread's.
        self.entries = None;
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let begun = std::time::Instant::now();
            // A disk that hangs is left alone.
            while !thread.is_finished() && begun.elapsed() < LAST_LINES {
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

enum Output {
    Stdout(io::Stdout),
    File { path: PathBuf, file: BufWriter<File> },
}

impl Output {
    fn open(file: &str) -> io::Result<Self> {
        if file.is_empty() {
            return Ok(Self::Stdout(io::stdout()));
        }
        let path = PathBuf::from(file);
        let file = BufWriter::new(OpenOptions::new().append(true).create(true).open(&path)?);
        Ok(Self::File { path, file })
    }

    /// Opens the file anew if another, or none, has its name now.
    fn follow(&mut self) -> io::Result<()> {
        let Self::File { path, file } = self else { return Ok(()) };
        let ours = file.get_ref().metadata()?;
        if std::fs::metadata(&*path).is_ok_and(|named| (named.dev(), named.ino()) == (ours.dev(), ours.ino()))
        {
            return Ok(());
        }
        file.flush()?;
        *file = BufWriter::new(OpenOptions::new().append(true).create(true).open(path)?);
        Ok(())
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        match self {
            Self::Stdout(stdout) => stdout.write_all(line.as_bytes()),
            Self::File { file, .. } => file.write_all(line.as_bytes()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Stdout(stdout) => stdout.flush(),
            Self::File { file, .. } => file.flush(),
        }
    }
}

struct Writer {
    format: AccessLogFormat,
    query: bool,
    output: Output,
    lost: Arc<AtomicU64>,
    line: String,
}

impl Writer {
    fn run(mut self, entries: &Receiver<Box<Entry>>) {
        let mut looked = std::time::Instant::now();
        loop {
            match entries.recv_timeout(LOOK_EVERY) {
                Ok(entry) => {
                    self.write(&entry);
                    for entry in entries.try_iter().take(WAITING) {
                        self.write(&entry);
                    }
                    if let Err(error) = self.output.flush() {
                        tracing::warn!(target: PROXY_TARGET, %error, "could not write the access log");
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if looked.elapsed() >= LOOK_EVERY {
                looked = std::time::Instant::now();
                self.look();
            }
        }
    }

    fn look(&mut self) {
        if let Err(error) = self.output.follow() {
            tracing::warn!(target: PROXY_TARGET, %error, "could not open the access log anew");
        }
        let lines = self.lost.swap(0, Ordering::Relaxed);
        if lines > 0 {
            tracing::warn!(target: PROXY_TARGET, lines, "lines of the access log were lost");
        }
    }

    fn write(&mut self, entry: &Entry) {
        self.line.clear();
        let target = match &entry.target {
            None => "*",
            Some(target) if self.query => target.as_str(),
            Some(target) => target.path(),
        };
        match self.format {
            AccessLogFormat::Json => json(&mut self.line, entry, target),
            _ => common(&mut self.line, entry, target),
        }
        if self.output.write(&self.line).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

/// `HOST - - [DATE] "REQUEST" STATUS BYTES SECONDS`
fn common(line: &mut String, entry: &Entry, target: &str) {
    // `Sun, 06 Nov 1994 08:49:37 GMT`
    let date = httpdate::fmt_http_date(entry.ended);
    let (day, month, year, time) = (&date[5..7], &date[8..11], &date[12..16], &date[17..25]);
    let (method, target) = (escaped(entry.method.as_str()), escaped(target));
    let (version, status) = (version(entry.version), entry.status.map_or(499, |status| status.as_u16()));
    let (client, bytes, seconds) = (entry.client, entry.bytes, entry.duration.as_secs_f64());
    // Writing to a string does not fail.
    let _ = writeln!(
        line,
        r#"{client} - - [{day}/{month}/{year}:{time} +0000] "{method} {target} {version}" {status} {bytes} {seconds:.6}"#
    );
}

fn json(line: &mut String, entry: &Entry, target: &str) {
    #[derive(serde::Serialize)]
    struct Line<'a> {
        time: f64,
        client: std::net::IpAddr,
        method: &'a str,
        host: Option<Cow<'a, str>>,
        path: &'a str,
        protocol: &'a str,
        status: u16,
        bytes: u64,
        duration: f64,
        upstream: Option<std::net::SocketAddr>,
        cache: Option<Cow<'a, str>>,
        trace: &'a str,
    }
    let seconds = entry.ended.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let object = Line {
        time: (seconds * 1e3).round() / 1e3,
        client: entry.client,
        method: entry.method.as_str(),
        host: entry.host.as_ref().map(|host| String::from_utf8_lossy(host.as_bytes())),
        path: target,
        protocol: version(entry.version),
        status: entry.status.map_or(499, |status| status.as_u16()),
        bytes: entry.bytes,
        duration: entry.duration.as_secs_f64(),
        upstream: entry.upstream,
        cache: entry.cache.as_ref().map(|cache| String::from_utf8_lossy(cache.as_bytes())),
        trace: entry.trace.as_str(),
    };
    if let Ok(object) = serde_json::to_string(&object) {
        line.push_str(&object);
        line.push('\n');
    }
}

/// As nginx writes it: nothing of a request can end a line or a field.
fn escaped(text: &str) -> Cow<'_, str> {
    let plain = |byte: u8| (b' '..=b'~').contains(&byte) && byte != b'"' && byte != b'\\';
    if text.bytes().all(plain) {
        return text.into();
    }
    let mut escaped = String::new();
    for byte in text.bytes() {
        if plain(byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(escaped, "\\x{byte:02X}");
        }
    }
    escaped.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_request_ends_a_line_or_a_field() {
        assert_eq!(escaped("/plain?a=b"), "/plain?a=b");
        assert_eq!(escaped("/\"quoted\"\\\r\n\u{1b}[31mä"), r"/\x22quoted\x22\x5C\x0D\x0A\x1B[31m\xC3\xA4");
    }
}
