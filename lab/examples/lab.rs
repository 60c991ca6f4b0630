//! The experiments of this crate, as `greenwave lab` runs them:
//! `cargo run --release -p greenwave-lab --example lab -- index`

use clap::Parser;
use greenwave_lab::cli;

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    lab: cli::LabArgs,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    cli::run(Args::parse().lab).await
}
