//! `greenwave ps`, `logs`, `reload`, `stop`, `scale` and `purge`: they talk with the `greenwave up` that runs.

mod command;
pub(crate) mod table;

use std::{
    io::{ErrorKind, IsTerminal, Write, stderr, stdout},
    path::Path,
};

use anyhow::{Context, Result, anyhow};
use tokio::net::{
    UnixStream,
    unix::{OwnedReadHalf, OwnedWriteHalf},
};

use crate::control::{Call, Place, Reader, Reply, Request, VERSION, connect, send};
pub(crate) use command::ClientCommand;

/// Runs one of these commands, at the socket given or that of this data directory.
pub(crate) async fn run(command: ClientCommand, socket: Option<&Path>, data_dir: &Path) -> Result<()> {
    let request = command.request()?;
    let place = Place::new(socket, data_dir)?;
    let mut talk = open(&place, request).await?;
    while let Some(reply) = talk.next().await? {
        command.show(reply)?;
    }
    command.end()
}

/// The first answer to a request.
pub(crate) async fn ask(place: &Place, request: Request) -> Result<Reply> {
    open(place, request).await?.next().await?.context("greenwave gave no answer")
}

struct Conversation {
    replies: Reader<OwnedReadHalf>,
    // Closing it would end the request.
    _calls: OwnedWriteHalf,
}

async fn open(place: &Place, request: Request) -> Result<Conversation> {
    let stream: UnixStream = connect(place).await?;
    let (read, mut write) = stream.into_split();
    send(&mut write, &Call { version: VERSION, request }).await.context("greenwave does not listen")?;
    Ok(Conversation { replies: Reader::new(read), _calls: write })
}

impl Conversation {
    /// The next answer; `None` when all went well.
    async fn next(&mut self) -> Result<Option<Reply>> {
        match self.replies.next().await.context("greenwave is not understood")? {
            Some(Reply::Done) => Ok(None),
            Some(Reply::Error(why)) => Err(anyhow!(why)),
            Some(reply) => Ok(Some(reply)),
            None => Err(anyhow!("greenwave ended before it answered")),
        }
    }
}

/// Writes to standard output; whoever reads it may leave, as `head` does.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        result => result.context("cannot write to standard output"),
    }
}

/// Says what is under way, where a person looks.
fn progress(text: &str) {
    if stderr().is_terminal() {
        eprintln!("{text}");
    }
}
