//! What these commands take, ask and show.

use anyhow::{Result, anyhow};
use clap::{Args, Subcommand};

use super::{print, progress, table::table};
use crate::{
    config::Instances,
    control::{Purge, Reply, Request},
};

/// Commands to the `greenwave up` that runs.
#[derive(Subcommand)]
pub(crate) enum ClientCommand {
    /// Show every process, and how it is.
    #[command(after_help = "\
Examples:
  greenwave ps
  greenwave ps --json | jq '.apps[].instances[].pid'")]
    Ps {
        /// As JSON, for a program.
        #[arg(long)]
        json: bool,
    },
    /// Show the last lines that instances wrote.
    #[command(after_help = "\
Examples:
  greenwave logs               the last lines of all
  greenwave logs api -f        those of one app, and those to come
  greenwave logs api-1 -n 100  those of one instance")]
    Logs {
        /// An app or an instance [default: all].
        app: Option<String>,
        /// Go on with the lines to come.
        #[arg(short, long)]
        follow: bool,
        /// How many lines.
        #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
        lines: usize,
    },
    /// Read the config again, and replace the edge and every instance without losing a request.
    ///
    /// The edge is started anew from the program on disk, so this also upgrades Greenwave itself. What does not become
    /// ready is given up, and what ran before goes on; then the exit status is 1.
    #[command(after_help = "\
Examples:
  greenwave reload            everything
  greenwave reload --app api  one app's instances, one after the other
  greenwave reload --edge     the proxy, with the config as it is now")]
    Reload {
        /// Only the edge.
        #[arg(long, conflicts_with = "app")]
        edge: bool,
        /// Only this app's instances.
        #[arg(long, value_name = "NAME")]
        app: Option<String>,
    },
    /// Finish all requests, then end everything.
    Stop,
    /// Run another number of instances; it holds until the next reload, which goes by the config.
    #[command(after_help = "\
Examples:
  greenwave scale 4        of the only app that takes requests
  greenwave scale api max  of one of several: an instance a core")]
    Scale {
        /// The app, where there are several, and how many instances: a number, or `max` for one a core.
        #[arg(value_name = "[APP] N", num_args = 1..=2, required = true)]
        words: Vec<String>,
    },
    /// Drop answers from the response cache.
    #[command(after_help = "\
Examples:
  greenwave purge https://example.com/products/1
  greenwave purge --prefix https://example.com/products/
  greenwave purge --tag product-1
  greenwave purge --all")]
    Purge(What),
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub(crate) struct What {
    /// The answer of one URL, in all its variants.
    url: Option<String>,
    /// Those of all URLs that begin so.
    #[arg(long, value_name = "URL")]
    prefix: Option<String>,
    /// Those that carry this tag.
    #[arg(long)]
    tag: Option<String>,
    /// All.
    #[arg(long)]
    all: bool,
}

impl ClientCommand {
    pub(super) fn request(&self) -> Result<Request> {
        Ok(match self {
            ClientCommand::Ps { .. } => Request::Ps,
            ClientCommand::Logs { app, follow, lines } => {
                Request::Logs { app: app.clone(), lines: *lines, follow: *follow }
            }
            ClientCommand::Reload { edge, app } => Request::Reload { edge: *edge, app: app.clone() },
            ClientCommand::Stop => Request::Stop,
            ClientCommand::Scale { words } => {
                let (instances, app) = match &words[..] {
                    [app, instances] => (instances.as_str(), Some(app.clone())),
                    words => (words.first().map_or("", String::as_str), None),
                };
                let instances: Instances =
                    instances.parse().map_err(|expected| anyhow!("{instances:?} is not {expected}"))?;
                Request::Scale { app, instances: instances.count() }
            }
            ClientCommand::Purge(What { url, prefix, tag, .. }) => {
                let url = url.clone().map(Purge::Url);
                let several = || prefix.clone().map(Purge::Prefix).or_else(|| tag.clone().map(Purge::Tag));
                Request::Purge(url.or_else(several).unwrap_or(Purge::All))
            }
        })
    }

    pub(super) fn show(&self, reply: Reply) -> Result<()> {
        match reply {
            Reply::Status(status) => match self {
                ClientCommand::Ps { json: true } => {
                    print(&format!("{}\n", serde_json::to_string_pretty(&status)?))
                }
                _ => print(&table(&status)),
            },
            Reply::Log { instance, line } => print(&format!("{instance} | {line}\n")),
            Reply::Purged(1) => print("1 answer was dropped\n"),
            Reply::Purged(answers) => print(&format!("{answers} answers were dropped\n")),
            Reply::Progress(text) => {
                progress(&text);
                Ok(())
            }
            Reply::Done | Reply::Error(_) => Ok(()),
        }
    }

    pub(super) fn end(&self) -> Result<()> {
        match self {
            ClientCommand::Reload { .. } => print("reloaded\n"),
            ClientCommand::Stop => print("stopped\n"),
            ClientCommand::Scale { .. } => print("scaled\n"),
            ClientCommand::Ps { .. } | ClientCommand::Logs { .. } | ClientCommand::Purge(_) => Ok(()),
        }
    }
}
