//! The edge's end of its talk with the supervisor.

use std::io;

use tokio::{
    net::{UnixStream, unix::OwnedReadHalf},
    sync::mpsc,
    task::JoinHandle,
};

use crate::control::{FromEdge, Reader, send};

/// Sends messages, in order, without making anybody wait.
pub(super) struct Link {
    queue: mpsc::UnboundedSender<FromEdge>,
    writer: JoinHandle<()>,
}

/// Hands messages to a [`Link`].
#[derive(Clone)]
pub(super) struct Sender(mpsc::UnboundedSender<FromEdge>);

pub(super) fn open(stream: UnixStream) -> (Reader<OwnedReadHalf>, Link) {
    let (read, mut write) = stream.into_split();
    // Each message answers one of the supervisor's, or says what is new of a bounded list.
    let (queue, mut messages) = mpsc::unbounded_channel::<FromEdge>();
    let writer = tokio::spawn(async move {
        while let Some(message) = messages.recv().await {
            let sent: io::Result<()> = send(&mut write, &message).await;
            if sent.is_err() {
                // The supervisor is gone; whoever reads notices it too.
                return;
            }
        }
    });
    (Reader::new(read), Link { queue, writer })
}

impl Link {
    pub(super) fn sender(&self) -> Sender {
        Sender(self.queue.clone())
    }

    /// Waits until everything is sent. All senders must be gone.
    pub(super) async fn finish(self) {
        drop(self.queue);
        // It only ends early with the supervisor.
        let _ = self.writer.await;
    }
}

impl Sender {
    pub(super) fn send(&self, message: FromEdge) {
        // Nobody listens once the supervisor is gone.
        let _ = self.0.send(message);
    }
}
