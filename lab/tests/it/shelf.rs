use greenwave_lab::cli::{self, LabArgs};
use greenwave_lab::experiments::{self, Source};
use greenwave_lab::{Error, Lab};

use crate::synthetic::naps;

const ALL: &str = "index, pool, batch, group-commit, async-effects, cache-aside, cache-levels, stampede, stale, balance, scale-out, edge-cache";

#[derive(clap::Parser)]
struct Program {
    #[command(flatten)]
    lab: LabArgs,
}

fn parse(line: &str) -> Result<LabArgs, clap::Error> {
    use clap::Parser;
    Program::try_parse_from(line.split(' ')).map(|program| program.lab)
}

#[test]
fn the_list_has_each_experiment_with_its_question() {
    let list = cli::list(&experiments::all(&Source::default()).with(naps(2, 1)));
    assert_eq!(list.lines().count(), 13, "{list}");
    assert!(list.lines().any(|line| line.starts_with("index  ") && line.ends_with('?')), "{list}");
    let pool = list.lines().find(|line| line.starts_with("pool  ")).unwrap();
    assert!(pool.contains("PostgreSQL") && pool.contains("--database"), "{pool}");
}

#[tokio::test]
async fn an_unknown_name_is_answered_with_the_nearest_and_with_all() {
    let error = cli::run(parse("lab indx").unwrap()).await.unwrap_err().to_string();
    assert_eq!(error, format!("no experiment is called `indx`; did you mean `index`? there are: {ALL}"));
    let error = cli::run(parse("lab qqq").unwrap()).await.unwrap_err().to_string();
    assert_eq!(error, format!("no experiment is called `qqq`; there are: {ALL}"));
    let error = Lab::new().with(naps(2, 1)).get("nap").unwrap_err();
    assert!(matches!(error, Error::UnknownExperiment { nearest: Some(name), .. } if name == "naps"));
}

#[tokio::test]
async fn without_a_name_the_experiments_are_listed_and_none_is_run() {
    // A database that is not there would be an error if anything ran.
    cli::run(parse("lab --database postgres://127.0.0.1:1/none").unwrap()).await.unwrap();
    cli::run(parse("lab list --database postgres://127.0.0.1:1/none").unwrap()).await.unwrap();
}

#[test]
fn arguments_say_what_the_settings_say() {
    let args = parse("lab index").unwrap();
    assert_eq!(args.run.settings(), greenwave_lab::Settings::default());
    assert_eq!(args.orders, Source::default().orders);
    let args = parse("lab index --rounds 2 --duration 250ms --warm-up 1s --concurrency 3 --seed 9").unwrap();
    let settings = args.run.settings();
    assert_eq!((settings.rounds, settings.concurrency, settings.seed), (2, 3, Some(9)));
    assert_eq!(settings.duration.as_millis(), 250);
    assert!(parse("lab index --duration soon").is_err());
    assert!(parse("lab index --orders 1").is_err());
}

#[test]
fn the_readme_tables_every_setting_and_every_experiment() {
    let readme = include_str!("../../README.md");
    let settings = serde_json::to_value(greenwave_lab::Settings::default()).unwrap();
    for name in settings.as_object().unwrap().keys() {
        assert!(readme.contains(&format!("| `{name}` |")), "{name}");
    }
    for experiment in experiments::all(&Source::default()).experiments() {
        assert!(readme.contains(&format!("| `{}` |", experiment.name())), "{}", experiment.name());
    }
}
