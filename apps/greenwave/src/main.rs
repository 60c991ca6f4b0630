//! `greenwave`: runs a service in any language behind a load balancer, with a live dashboard.

mod advise;
mod child;
mod client;
mod config;
mod control;
mod edge;
mod jobs;
mod log;
mod up;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs a service in any language behind a load balancer, with a live dashboard.
///
/// Without a command it does `greenwave up`: the shop, the reference service, on embedded defaults.
#[derive(Parser)]
#[command(version, after_help = EXAMPLES)]
struct Arguments {
    /// The file with the settings [default: greenwave.toml, if there is one].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The control socket, as `greenwave up` prints it; GREENWAVE_SOCKET sets it too [default: by the data directory].
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  greenwave                                       the shop, with its dashboard
  greenwave up --instances max -- node server.js  your own service, an instance a core
  greenwave ps                                    what runs, and how it is
  greenwave reload                                the config and the program anew, without losing a request
  greenwave lab                                   techniques to measure on this machine
  greenwave lab index                             what an index is worth on it
  greenwave advise --database postgres://…/shop   which indexes a database's statements want
  greenwave jobs stats                            what waits in the queues, runs, and is dead
  greenwave shop seed --help                      fill a database for the shop
  greenwave config --reference > greenwave.toml   every setting, with its default";

#[derive(Subcommand)]
enum Command {
    /// Run instances of a command behind a load balancer, with a live dashboard.
    Up(up::UpArguments),
    #[command(flatten)]
    Client(client::ClientCommand),
    /// Say whether `greenwave up` would start with these settings, without starting anything.
    Check(up::UpArguments),
    /// The reference service, alone.
    #[command(subcommand)]
    Shop(greenwave_shop::cli::Command),
    /// Measure a technique on this machine, before and after.
    Lab(greenwave_lab::cli::LabArgs),
    /// Say which indexes a database's statements want, and which of its own it could do without.
    Advise(advise::AdviseArguments),
    /// Look into the queues of jobs, and act on what is there.
    Jobs(jobs::JobsArguments),
    /// Show the settings in force.
    Config {
        /// Show every setting there is, with its default and what it means.
        #[arg(long)]
        reference: bool,
    },
    /// Serves requests, on sockets that it is given.
    #[command(hide = true)]
    Edge,
    /// Becomes COMMAND, which then ends with the process that started it.
    #[command(hide = true)]
    Child(child::ChildArguments),
}

fn main() -> ExitCode {
    // While the file is still this program's.
    let _ = child::this_program();
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("greenwave: {}", greenwave_shop::error_chain(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let config = arguments.config.as_deref();
    match arguments.command.unwrap_or_else(|| Command::Up(up::UpArguments::default())) {
        Command::Up(options) => {
            block_on(up::run(up::Settings::new(options, arguments.config, arguments.socket)))
        }
        Command::Client(command) => {
            let data_dir = config::data_dir(config);
            block_on(client::run(command, arguments.socket.as_deref(), &data_dir))
        }
        Command::Check(options) => {
            let settings = up::Settings::new(options, arguments.config, None);
            up::check(&settings.load()?)?;
            println!("the settings are right");
            Ok(())
        }
        Command::Edge => {
            tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(edge::run())
        }
        Command::Shop(command) => {
            block_on(greenwave_shop::cli::run(command, config::load(config)?.shop_defaults()))
        }
        Command::Lab(arguments) => block_on(greenwave_lab::cli::run(arguments)),
        Command::Advise(arguments) => block_on(advise::run(arguments)),
        Command::Jobs(arguments) => {
            let configured = config::load(config)?.jobs_database();
            block_on(jobs::run(arguments, configured))
        }
        Command::Config { reference: true } => {
            print!("{}", config::reference()?);
            Ok(())
        }
        Command::Config { reference: false } => {
            print!("{}", toml::to_string(&config::load(config)?.redacted())?);
            Ok(())
        }
        Command::Child(arguments) => child::become_command(&arguments),
    }
}

fn block_on(future: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(future)
}
