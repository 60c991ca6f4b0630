//! A file that takes the lines of instances, and makes way for the next when it is full.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvError, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use super::logs::{LogFormat, LogLine};
use crate::telemetry::SUPERVISOR_TARGET;

// Lines that wait for the disk; further ones are lost, since an instance must not wait for it.
const QUEUE: usize = 4096;
// Written at once, at most about that many bytes.
const BATCH: usize = 64 * 1024;

/// Where lines go, and when one file ends and the next begins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schemars", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct LogFileConfig {
    /// The file that is written now; those before it get `.1`, `.2` and so on after its name; must be given.
    pub path: PathBuf,
    /// Size that a file does not exceed, in bytes, unless by a line that is longer alone; 0 for no limit; 10 MiB by
    /// default.
    pub max_size: u64,
    /// How many full files are kept beside it; 5 by default.
    pub max_files: usize,
    /// How a line is written; `text` by default.
    pub format: LogFormat,
}

impl Default for LogFileConfig {
    fn default() -> Self {
        Self { path: PathBuf::new(), max_size: 10 * 1024 * 1024, max_files: 5, format: LogFormat::Text }
    }
}

/// Writes lines to a file, by a thread of its own.
///
/// Neither instances nor the runtime wait for the disk: when it is too slow, or full, lines are lost, and a warning
/// says how many. Dropping it writes what is still queued.
///
/// ```no_run
/// use greenwave_edge::{LogFile, LogFileConfig, Supervisor, SupervisorConfig};
///
/// # fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let log = LogFile::open(LogFileConfig { path: "/var/log/app.log".into(), ..Default::default() })?;
/// let supervisor = Supervisor::new(SupervisorConfig::default()).logs(log.sink()).start()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LogFile {
    queue: SyncSender<Message>,
    lost: Arc<AtomicU64>,
    format: LogFormat,
    thread: Option<JoinHandle<()>>,
}

enum Message {
    Line(Vec<u8>),
    End,
}

impl LogFile {
    /// Opens the file, which is made for this user only if it is not there, to write after what it holds.
    pub fn open(config: LogFileConfig) -> io::Result<Self> {
        let format = config.format;
        let mut rotating = Rotating::open(config)?;
        let (queue, lines) = sync_channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&lost);
        let write = move || write_all(&mut rotating, &lines, &counted);
        let thread = std::thread::Builder::new().name("greenwave-log".into()).spawn(write)?;
        Ok(Self { queue, lost, format, thread: Some(thread) })
    }

    /// What takes the lines, for [`SupervisorBuilder::logs`](crate::SupervisorBuilder::logs).
    pub fn sink(&self) -> impl Fn(&LogLine<'_>) + Send + Sync + 'static {
        let (queue, lost, format) = (self.queue.clone(), Arc::clone(&self.lost), self.format);
        move |line| {
            if queue.try_send(Message::Line(line.format(format))).is_err() {
                lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

impl Drop for LogFile {
    fn drop(&mut self) {
        // Fails when the thread has ended, and then there is nothing to wait for.
        let _ = self.queue.send(Message::End);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn write_all(file: &mut Rotating, lines: &Receiver<Message>, lost: &AtomicU64) {
    let mut batch = Vec::new();
    let mut count = 0;
    loop {
        // What is written waits only for more that is there already.
        let next = match lines.try_recv() {
            Err(TryRecvError::Empty) => {
                file.write(&mut batch, &mut count, lost);
                report(file, lost);
                lines.recv().map_err(|RecvError| ())
            }
            other => other.map_err(|_| ()),
        };
        let Ok(Message::Line(line)) = next else { break };
        if !file.has_room(batch.len(), line.len()) {
            file.write(&mut batch, &mut count, lost);
            file.rotate();
        }
        batch.extend_from_slice(&line);
        count += 1;
        if batch.len() >= BATCH {
            file.write(&mut batch, &mut count, lost);
        }
    }
    file.write(&mut batch, &mut count, lost);
    report(file, lost);
}

fn report(file: &Rotating, lost: &AtomicU64) {
    let lines = lost.swap(0, Ordering::Relaxed);
    if lines > 0 {
        let path = file.config.path.display();
        tracing::warn!(target: SUPERVISOR_TARGET, %path, lines, "lines of instances are lost: their file is full or too slow");
    }
}

struct Rotating {
    config: LogFileConfig,
    file: File,
    size: u64,
}

impl Rotating {
    fn open(config: LogFileConfig) -> io::Result<Self> {
        let file = append(&config.path)?;
        let size = file.metadata()?.len();
        Ok(Self { config, file, size })
    }

    /// Whether a line fits after what is written and what is about to be.
    fn has_room(&self, batch: usize, line: usize) -> bool {
        let (max, before) = (self.config.max_size, self.size + batch as u64);
        max == 0 || before == 0 || before + line as u64 <= max
    }

    /// Writes these lines and empties the batch; counts them as lost where that fails.
    fn write(&mut self, batch: &mut Vec<u8>, count: &mut u64, lost: &AtomicU64) {
        if self.file.write_all(batch).is_err() {
            lost.fetch_add(*count, Ordering::Relaxed);
        }
        self.size += batch.len() as u64;
        batch.clear();
        *count = 0;
    }

    /// Begins the next file. Where that fails, the present one grows on: better too long than lost.
    fn rotate(&mut self) {
        let numbered = |number: usize| {
            let mut name = self.config.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        let kept = self.config.max_files;
        for number in (1..kept).rev() {
            // One of that number may not be there yet.
            let _ = std::fs::rename(numbered(number), numbered(number + 1));
        }
        let aside = match kept {
            0 => std::fs::remove_file(&self.config.path),
            _ => std::fs::rename(&self.config.path, numbered(1)),
        };
        match aside.and_then(|()| append(&self.config.path)) {
            Ok(file) => self.file = file,
            Err(error) => {
                let path = self.config.path.display();
                tracing::warn!(target: SUPERVISOR_TARGET, %path, %error, "could not begin the next file of lines");
            }
        }
        // Also after a failure, so that it is tried again only once as much has been written again.
        self.size = 0;
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::LogStream;

    fn write(config: &LogFileConfig, lines: impl Iterator<Item = String>) {
        let log = LogFile::open(config.clone()).unwrap();
        let sink = log.sink();
        let (stream, time) = (LogStream::Stdout, SystemTime::UNIX_EPOCH);
        lines.for_each(|text| sink(&LogLine { instance: "app-0", stream, time, bytes: text.as_bytes() }));
    }

    #[test]
    fn full_files_are_numbered_and_the_oldest_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.log");
        let config = LogFileConfig { path: path.clone(), max_size: 40, max_files: 2, ..Default::default() };
        // Of 16 bytes each, so that two fit.
        write(&config, (0..5).map(|number| format!("line {number:02}")));
        // A second run writes on where the first ended.
        write(&config, (5..9).map(|number| format!("line {number:02}")));
        let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
        assert_eq!(read("app.log"), "app-0 | line 08\n");
        assert_eq!(read("app.log.1"), "app-0 | line 06\napp-0 | line 07\n");
        assert_eq!(read("app.log.2"), "app-0 | line 04\napp-0 | line 05\n");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_line_longer_than_a_file_has_one_alone_and_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("app.log");
        let config = LogFileConfig { path, max_size: 40, max_files: 2, ..Default::default() };
        write(&config, ["a".into(), "x".repeat(100), "b".into()].into_iter());
        let length = |name: &str| std::fs::metadata(folder.path().join(name)).unwrap().len();
        assert_eq!((length("app.log.2"), length("app.log.1"), length("app.log")), (10, 109, 10));
    }

    #[test]
    fn a_file_that_takes_nothing_holds_nobody_up() {
        // Takes no byte, as a full disk does.
        let config = LogFileConfig { path: "/dev/full".into(), max_size: 0, ..Default::default() };
        write(&config, (0..3 * QUEUE).map(|number| number.to_string()));
    }
}
