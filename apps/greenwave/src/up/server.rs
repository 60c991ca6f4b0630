//! The control socket's server.

use std::{sync::Arc, time::Duration};

use anyhow::{Result, bail};
use greenwave_edge::{LogEvent, LogRecord, Logs};
use tokio::{
    net::{UnixStream, unix::OwnedWriteHalf},
    sync::mpsc,
    task::JoinSet,
    time::{sleep, timeout},
};
use tracing::warn;

use super::Running;
use crate::control::{Call, Listener, Reader, Reply, Request, VERSION, send};

/// Clients served at once.
const MAX_CLIENTS: usize = 64;
/// How long a client may take to say what it wants, or to take an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the last answers may take.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves until everything has stopped, and those who asked for it are told.
pub(super) async fn serve(listener: &Listener, running: Arc<Running>) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            () = running.stopped.cancelled() => break,
            Some(_) = clients.join_next() => {}
            accepted = listener.listener.accept(), if clients.len() < MAX_CLIENTS => match accepted {
                Ok((stream, _)) => drop(clients.spawn(talk(stream, Arc::clone(&running)))),
                Err(error) => {
                    warn!("cannot accept at the control socket: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
    let told = async { while clients.join_next().await.is_some() {} };
    let _ = timeout(LAST_ANSWERS, told).await;
}

async fn talk(stream: UnixStream, running: Arc<Running>) {
    let (read, write) = stream.into_split();
    let mut calls = Reader::new(read);
    let Ok(Ok(Some(call))) = timeout(PATIENCE, calls.next::<serde_json::Value>()).await else { return };
    let mut client = Client(write);
    let end = async {
        match answer(call, &running, &mut client).await {
            Ok(()) => Reply::Done,
            Err(error) => Reply::Error(format!("{error:#}")),
        }
    };
    // A client that leaves wants nothing more; what it began, such as a reload, goes on.
    let reply = tokio::select! {
        reply = end => reply,
        _ = calls.next::<Call>() => return,
    };
    let _ = client.tell(&reply).await;
}

struct Client(OwnedWriteHalf);

impl Client {
    async fn tell(&mut self, reply: &Reply) -> Result<()> {
        match timeout(PATIENCE, send(&mut self.0, reply)).await {
            Ok(sent) => Ok(sent?),
            Err(_) => bail!("the client takes no answer"),
        }
    }
}

async fn answer(call: serde_json::Value, running: &Arc<Running>, client: &mut Client) -> Result<()> {
    // Before the request, which another version may word in another way.
    let version = call.get("version").and_then(serde_json::Value::as_u64);
    if version != Some(VERSION.into()) {
        bail!("this greenwave speaks version {VERSION} of the control protocol, and the client another");
    }
    let call: Call = serde_json::from_value(call)?;
    match call.request {
        Request::Ps => client.tell(&Reply::Status(Box::new(running.status()))).await,
        Request::Logs { app, lines, follow } => {
            let books = running.apps.logs(app.as_deref(), lines)?;
            tokio::select! {
                told = logs(books, lines, follow, client) => told,
                () = running.stopped.cancelled() => Ok(()),
            }
        }
        Request::Purge(purge) => {
            let answers = running.edges.purge(purge).await?;
            client.tell(&Reply::Purged(answers)).await
        }
        Request::Stop => {
            running.stop.cancel();
            running.stopped.cancelled().await;
            Ok(())
        }
        Request::Reload { edge, app } => {
            let running = Arc::clone(running);
            tokio::spawn(async move { running.reload(edge, app.as_deref()).await }).await?
        }
        Request::Scale { app, instances } => {
            let running = Arc::clone(running);
            tokio::spawn(async move { running.apps.scale(app.as_deref(), instances).await }).await?
        }
    }
}

async fn logs(mut books: Vec<Logs>, lines: usize, follow: bool, client: &mut Client) -> Result<()> {
    let mut last: Vec<LogRecord> = books.iter_mut().flat_map(|book| std::mem::take(&mut book.last)).collect();
    last.sort_by_key(|line| line.time);
    last.drain(..last.len().saturating_sub(lines));
    for line in last {
        client.tell(&log(&line)).await?;
    }
    if !follow {
        return Ok(());
    }
    let (sender, mut events) = mpsc::channel(64);
    let mut followers = JoinSet::new();
    for mut book in books {
        let sender = sender.clone();
        followers.spawn(async move {
            while let Some(event) = book.next().await
                && sender.send(event).await.is_ok()
            {}
        });
    }
    drop(sender);
    while let Some(event) = events.recv().await {
        let reply = match event {
            LogEvent::Line(line) => log(&line),
            LogEvent::Missed(lines) => {
                Reply::Progress(format!("({lines} lines came too fast and are left out)"))
            }
        };
        client.tell(&reply).await?;
    }
    Ok(())
}

fn log(line: &LogRecord) -> Reply {
    Reply::Log { instance: line.instance.to_string(), line: line.line().text().into_owned() }
}
