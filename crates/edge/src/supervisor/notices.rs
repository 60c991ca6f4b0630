//! What a process says of itself, by systemd's protocol: datagrams to the socket that `NOTIFY_SOCKET` names.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::net::UnixDatagram;
use tokio::sync::watch;
use tokio::task::JoinSet;

// More than anybody says at once; what is longer is cut.
const MAX_DATAGRAM: usize = 4096;

/// What a process has said so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) ready: bool,
    pub(super) stopping: bool,
    /// How often it said that it is alive.
    pub(super) alive: u64,
}

impl Heard {
    fn hear(&mut self, datagram: &[u8]) {
        for line in datagram.split(|byte| *byte == b'\n') {
            match line {
                b"READY=1" => self.ready = true,
                b"STOPPING=1" => self.stopping = true,
                b"WATCHDOG=1" => self.alive += 1,
                // Such as STATUS, which nobody here shows.
                _ => {}
            }
        }
    }
}

/// A folder for sockets that nobody but this user may write to: anything that could might call a process ready.
///
/// It is made when it is first needed, and removed by the drop.
#[derive(Debug, Default)]
pub(super) struct Folder(OnceLock<PathBuf>);

impl Folder {
    fn path(&self) -> io::Result<&Path> {
        if let Some(path) = self.0.get() {
            return Ok(path);
        }
        let path = std::env::temp_dir().join(format!("greenwave-notify-{:016x}", rand::random::<u64>()));
        // Fails when it exists, whoever made it.
        DirBuilder::new().mode(0o700).create(&path)?;
        if let Err(late) = self.0.set(path) {
            let _ = std::fs::remove_dir(late);
        }
        self.0.get().map(PathBuf::as_path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Some(path) = self.0.get() {
            // What is left is empty and does no harm.
            let _ = std::fs::remove_dir_all(path);
        }
    }
}

/// One process's socket; its drop removes it.
#[derive(Debug)]
pub(super) struct Notices {
    path: PathBuf,
    heard: watch::Receiver<Heard>,
    // Held for its drop, which ends the listening.
    _listening: JoinSet<()>,
}

impl Notices {
    pub(super) fn open(folder: &Folder) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let path = folder.path()?.join(NUMBER.fetch_add(1, Ordering::Relaxed).to_string());
        let socket = UnixDatagram::bind(&path)?;
        let (sender, heard) = watch::channel(Heard::default());
        let mut listening = JoinSet::new();
        listening.spawn(async move {
            let mut datagram = [0; MAX_DATAGRAM];
            while let Ok(length) = socket.recv(&mut datagram).await {
                sender.send_modify(|heard| heard.hear(&datagram[..length]));
            }
        });
        Ok(Self { path, heard, _listening: listening })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn heard(&self) -> watch::Receiver<Heard> {
        self.heard.clone()
    }
}

impl Drop for Notices {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_said_is_heard_and_the_socket_goes_with_its_owner() {
        let folder = Folder::default();
        let notices = Notices::open(&folder).unwrap();
        let path = notices.path().to_owned();
        let process = std::os::unix::net::UnixDatagram::unbound().unwrap();
        process.send_to(b"STATUS=warm\nREADY=1", &path).unwrap();
        process.send_to(b"READY=0\nWATCHDOG=1\nSTOPPING=1\n", &path).unwrap();
        let mut heard = notices.heard();
        let all = heard.wait_for(|heard| heard.stopping).await.unwrap();
        assert_eq!(*all, Heard { ready: true, stopping: true, alive: 1 });
        drop(all);
        drop(notices);
        assert!(!path.exists());
        drop(folder);
        assert!(!path.parent().unwrap().exists());
    }
}
