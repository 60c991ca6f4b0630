//! Lines that instances write, from their pipes to whoever wants them.

use std::borrow::Cow;
use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use humantime::format_rfc3339_millis;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};

const READ_BYTES: usize = 8 * 1024;

/// Which of its two outputs an instance wrote a line to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl fmt::Display for LogStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        })
    }
}

/// How lines of instances are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum LogFormat {
    /// `app-0 | what it wrote`, byte for byte.
    #[default]
    Text,
    /// The same after the time, in UTC.
    Timed,
    /// An object a line: `time`, `instance`, `stream`, `message`; what is not UTF-8 becomes U+FFFD.
    Json,
}

/// One line of an instance, or a piece of a line that is longer than
/// [`max_log_line`](crate::SupervisorConfig::max_log_line).
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct LogLine<'a> {
    /// Name of the instance.
    pub instance: &'a str,
    /// Where it wrote.
    pub stream: LogStream,
    /// When the line arrived.
    pub time: SystemTime,
    /// What it wrote, without the line's end. Any bytes, not always UTF-8.
    pub bytes: &'a [u8],
}

impl LogLine<'_> {
    /// The line as text; what is not UTF-8 becomes U+FFFD.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(self.bytes)
    }

    /// The line in that form, with its end.
    ///
    /// To be written at once, so that lines of two instances do not run into each other.
    pub fn format(&self, format: LogFormat) -> Vec<u8> {
        let mut text = Vec::with_capacity(self.instance.len() + self.bytes.len() + 32);
        if format == LogFormat::Json {
            let time = format_rfc3339_millis(self.time).to_string();
            let line = JsonLine { time, instance: self.instance, stream: self.stream, message: self.text() };
            // Strings alone: nothing in it can fail.
            let _ = serde_json::to_writer(&mut text, &line);
        } else {
            if format == LogFormat::Timed {
                let _ = write!(text, "{} ", format_rfc3339_millis(self.time));
            }
            text.extend_from_slice(self.instance.as_bytes());
            text.extend_from_slice(b" | ");
            text.extend_from_slice(self.bytes);
        }
        text.push(b'\n');
        text
    }
}

#[derive(Serialize)]
struct JsonLine<'a> {
    time: String,
    instance: &'a str,
    stream: LogStream,
    message: Cow<'a, str>,
}

/// A [`LogLine`] that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogRecord {
    /// Name of the instance.
    pub instance: Arc<str>,
    /// Where it wrote.
    pub stream: LogStream,
    /// When the line arrived.
    pub time: SystemTime,
    /// What it wrote, without the line's end.
    pub bytes: Bytes,
    /// In which order lines of one supervisor arrived.
    pub(super) number: u64,
}

impl LogRecord {
    /// The line.
    pub fn line(&self) -> LogLine<'_> {
        LogLine { instance: &self.instance, stream: self.stream, time: self.time, bytes: &self.bytes }
    }
}

pub(super) type Sink = Arc<dyn Fn(&LogLine<'_>) + Send + Sync>;

/// Writes `name | line` to standard error.
pub(super) fn to_stderr() -> Sink {
    Arc::new(|line| {
        // When nobody reads our standard error there is nobody to tell.
        let _ = std::io::stderr().lock().write_all(&line.format(LogFormat::Text));
    })
}

/// Reads until the end of the stream and passes on each line, long ones in pieces of at most `max_line` bytes.
pub(super) async fn read_lines(
    mut stream: impl AsyncRead + Unpin,
    max_line: usize,
    mut pass_on: impl FnMut(&[u8]),
) {
    let max_line = max_line.max(1);
    let mut buffer = BytesMut::with_capacity(READ_BYTES);
    // Whether the beginning of the present line was passed on already.
    let mut begun = false;
    loop {
        buffer.reserve(READ_BYTES);
        // A pipe that fails is as good as one that has ended.
        let ended = stream.read_buf(&mut buffer).await.unwrap_or(0) == 0;
        while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
            let line = buffer.split_to(end + 1);
            let line = &line[..end];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            if line.is_empty() && !begun {
                pass_on(line);
            }
            begun = false;
            line.chunks(max_line).for_each(&mut pass_on);
        }
        while buffer.len() >= max_line {
            pass_on(&buffer.split_to(max_line));
            begun = true;
        }
        if ended {
            if !buffer.is_empty() {
                pass_on(&buffer);
            }
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_written_in_each_form() {
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1_700_000_000_123);
        let line = LogLine { instance: "app-0", stream: LogStream::Stderr, time, bytes: b"say \"\xff\"" };
        assert_eq!(line.format(LogFormat::Text), b"app-0 | say \"\xff\"\n");
        assert_eq!(line.format(LogFormat::Timed), b"2023-11-14T22:13:20.123Z app-0 | say \"\xff\"\n");
        let json = String::from_utf8(line.format(LogFormat::Json)).unwrap();
        assert_eq!(
            json,
            "{\"time\":\"2023-11-14T22:13:20.123Z\",\"instance\":\"app-0\",\"stream\":\"stderr\",\"message\":\"say \\\"\u{fffd}\\\"\"}\n"
        );
    }

    async fn lines(input: &[u8], max_line: usize) -> Vec<String> {
        let mut lines = Vec::new();
        read_lines(input, max_line, |line| lines.push(String::from_utf8_lossy(line).into_owned())).await;
        lines
    }

    #[tokio::test]
    async fn lines_end_at_newlines_and_at_the_end() {
        assert_eq!(lines(b"one\r\n\ntwo\nrest", 100).await, ["one", "", "two", "rest"]);
    }

    #[tokio::test]
    async fn a_long_line_comes_in_pieces_and_loses_nothing() {
        assert_eq!(lines(b"abcdefgh\nxy", 3).await, ["abc", "def", "gh", "xy"]);
        let in_two_reads = (&b"abcdef"[..]).chain(&b"\nxy"[..]);
        let mut pieces = Vec::new();
        read_lines(in_two_reads, 3, |line| pieces.push(line.to_vec())).await;
        assert_eq!(pieces, [&b"abc"[..], b"def", b"xy"]);
        let endless = vec![b'z'; 100_000];
        let pieces = lines(&endless, 1000).await;
        assert_eq!((pieces.len(), pieces.concat().len()), (100, 100_000));
    }

    #[tokio::test]
    async fn bytes_that_are_no_text_are_passed_on_untouched() {
        let mut seen = Vec::new();
        read_lines(&b"\xff\x00\xfe\n"[..], 100, |line| seen.push(line.to_vec())).await;
        assert_eq!(seen, [b"\xff\x00\xfe"]);
    }
}
