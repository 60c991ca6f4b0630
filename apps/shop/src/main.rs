//! The program `shop`.

use std::process::ExitCode;

use clap::Parser;
use greenwave_shop::cli::{self, Command, Defaults, EXAMPLES};

/// Requests allocate much and briefly, on many threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A small shop that takes a lot of traffic: users, products and orders over HTTP
#[derive(Debug, Parser)]
#[command(name = "shop", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[tokio::main]
async fn main() -> ExitCode {
    match cli::run(Cli::parse().command, Defaults::default()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
