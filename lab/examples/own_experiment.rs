//! An experiment of your own, with the lab's command line:
//! `cargo run --release -p greenwave-lab --example own_experiment`

use std::{collections::HashMap, hint::black_box, sync::Arc, time::Duration};

use clap::Parser;
use greenwave_lab::{Arm, Arms, Experiment, Lab, Workload, cli};

const WORDS: usize = 5_000;

fn lookup() -> Experiment {
    let question = "How much faster does a hash map find a word than a search through a list?";
    Experiment::new("lookup", "Finding one of many", question, |setup| async move {
        setup.fact("words", WORDS.to_string());
        let list: Arc<Vec<(String, usize)>> =
            Arc::new((0..WORDS).map(|n| (format!("word {n}"), n)).collect());
        let map: Arc<HashMap<String, usize>> = Arc::new(list.iter().cloned().collect());
        Ok(Arms {
            before: Arm::new(
                "a list",
                Workload::over(list, |list, mut call| async move {
                    let word = format!("word {}", call.pick(0..WORDS));
                    black_box(list.iter().find(|(known, _)| *known == word).ok_or("the word is missing")?);
                    Ok(())
                }),
            ),
            after: Arm::new(
                "a hash map",
                Workload::over(map, |map, mut call| async move {
                    let word = format!("word {}", call.pick(0..WORDS));
                    black_box(map.get(&word).ok_or("the word is missing")?);
                    Ok(())
                }),
            ),
        })
    })
    .unit("lookups")
}

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    run: cli::RunArgs,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut run = Args::parse().run;
    if run.name.is_none() {
        // Without arguments: a quick run, under 5 seconds.
        (run.name, run.warm_up, run.duration) =
            (Some("lookup".into()), Duration::from_millis(100), Duration::from_millis(250));
    }
    cli::run_in(&Lab::new().with(lookup()), run).await
}
