//! The last lines of all instances, and those that follow.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::broadcast;

use super::logs::{LogLine, LogRecord};

// How many lines somebody who follows may be behind before some are lost to them.
const BEHIND: usize = 1024;
// What a kept line costs beside its bytes.
const OVERHEAD: usize = size_of::<LogRecord>();

/// Bounded by bytes for each instance, so that one that writes much displaces nobody else's lines.
#[derive(Debug)]
pub(super) struct LogBook {
    pages: Mutex<Pages>,
    followers: broadcast::Sender<LogRecord>,
}

#[derive(Debug, Default)]
struct Pages {
    next: u64,
    of: BTreeMap<Arc<str>, Page>,
}

#[derive(Debug, Default)]
struct Page {
    lines: VecDeque<LogRecord>,
    bytes: usize,
}

impl LogBook {
    pub(super) fn new() -> Self {
        Self { pages: Mutex::default(), followers: broadcast::Sender::new(BEHIND) }
    }

    pub(super) fn push(&self, instance: &Arc<str>, line: &LogLine<'_>, max_bytes: usize) {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let record = LogRecord {
            instance: Arc::clone(instance),
            stream: line.stream,
            time: line.time,
            bytes: Bytes::copy_from_slice(line.bytes),
            number: pages.next,
        };
        pages.next += 1;
        let page = pages.of.entry(Arc::clone(instance)).or_default();
        page.bytes += record.bytes.len() + OVERHEAD;
        page.lines.push_back(record.clone());
        while page.bytes > max_bytes
            && let Some(oldest) = page.lines.pop_front()
        {
            page.bytes -= oldest.bytes.len() + OVERHEAD;
        }
        // Under the lock, so that whoever begins to follow misses and repeats nothing. Nobody may be following.
        let _ = self.followers.send(record);
    }

    pub(super) fn read(&self, instance: Option<&str>, last: usize) -> Logs {
        let pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let of_interest = |name: &str| instance.is_none_or(|wanted| wanted == name);
        let wanted = pages.of.iter().filter(|(name, _)| of_interest(name));
        let mut lines: Vec<LogRecord> =
            wanted.flat_map(|(_, page)| page.lines.iter().rev().take(last)).cloned().collect();
        lines.sort_unstable_by_key(|line| line.number);
        lines.drain(..lines.len().saturating_sub(last));
        Logs { last: lines, instance: instance.map(str::to_owned), following: self.followers.subscribe() }
    }
}

/// The last lines of instances, and those that they write from then on.
#[derive(Debug)]
#[non_exhaustive]
pub struct Logs {
    /// The last lines, in the order in which they arrived.
    pub last: Vec<LogRecord>,
    instance: Option<String>,
    following: broadcast::Receiver<LogRecord>,
}

/// What [`Logs::next`] gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogEvent {
    /// A line.
    Line(LogRecord),
    /// So many lines, of whichever instances, came faster than they were asked for, and are lost here.
    Missed(u64),
}

impl Logs {
    /// The next line, after those in [`last`](Self::last) without a gap; `None` when the supervisor is gone.
    ///
    /// Whoever asks too slowly holds nobody up: it is told how much it missed.
    ///
    /// Cancel safe: a line is lost to no dropped future.
    pub async fn next(&mut self) -> Option<LogEvent> {
        loop {
            match self.following.recv().await {
                Ok(line) if self.instance.as_deref().is_none_or(|wanted| *wanted == *line.instance) => {
                    return Some(LogEvent::Line(line));
                }
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(missed)) => return Some(LogEvent::Missed(missed)),
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::LogStream;

    fn push(book: &LogBook, instance: &str, text: &str, max_bytes: usize) {
        let (stream, time) = (LogStream::Stdout, SystemTime::UNIX_EPOCH);
        book.push(&instance.into(), &LogLine { instance, stream, time, bytes: text.as_bytes() }, max_bytes);
    }

    fn texts(lines: &[LogRecord]) -> Vec<String> {
        lines.iter().map(|line| line.line().text().into_owned()).collect()
    }

    #[tokio::test]
    async fn the_last_lines_come_in_order_and_the_next_follow_without_a_gap() {
        let book = LogBook::new();
        for (instance, text) in [("a-0", "1"), ("a-1", "2"), ("a-0", "3"), ("a-1", "4")] {
            push(&book, instance, text, 10_000);
        }
        let (mut all, mut one) = (book.read(None, 3), book.read(Some("a-0"), 10));
        assert_eq!(
            (texts(&all.last), texts(&one.last)),
            (vec!["2".into(), "3".into(), "4".into()], vec!["1".into(), "3".into()])
        );
        push(&book, "a-1", "5", 10_000);
        push(&book, "a-0", "6", 10_000);
        let text = |event| match event {
            Some(LogEvent::Line(line)) => texts(&[line]).remove(0),
            other => format!("{other:?}"),
        };
        assert_eq!((text(all.next().await), text(one.next().await)), ("5".into(), "6".into()));
        drop(book);
        text(all.next().await);
        assert_eq!(all.next().await, None);
    }

    #[tokio::test]
    async fn who_reads_too_slowly_is_told_what_was_missed() {
        let book = LogBook::new();
        let mut logs = book.read(None, 0);
        for number in 0..BEHIND + 7 {
            push(&book, "a-0", &number.to_string(), 10_000);
        }
        assert_eq!(logs.next().await, Some(LogEvent::Missed(7)));
        assert!(matches!(logs.next().await, Some(LogEvent::Line(line)) if *line.bytes == *b"7"));
    }

    #[test]
    fn an_instance_that_writes_much_displaces_its_own_lines_alone() {
        let book = LogBook::new();
        push(&book, "quiet-0", "here", 1000);
        for number in 0..1000 {
            push(&book, "loud-0", &number.to_string(), 1000);
        }
        let kept = book.read(None, usize::MAX).last;
        assert_eq!(kept.iter().filter(|line| *line.instance == *"quiet-0").count(), 1);
        assert!((2..20).contains(&kept.len()), "{}", kept.len());
        assert_eq!(texts(&kept).last().unwrap(), "999");
    }
}
