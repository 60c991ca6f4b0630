//! Short runs of experiments, on small data sets.

use std::time::Duration;

use greenwave_lab::{Error, Experiment, Finding, Report, Runner, Settings, Step};
use sqlx::{Connection, PgConnection};

/// How a run ended, and what it told meanwhile.
pub(crate) struct Run {
    pub(crate) report: Result<Report, Error>,
    pub(crate) notes: Vec<String>,
}

pub(crate) async fn run(experiment: &Experiment) -> Run {
    run_for(Duration::from_millis(700), experiment).await
}

pub(crate) async fn run_for(duration: Duration, experiment: &Experiment) -> Run {
    let (tell, told) = std::sync::mpsc::channel();
    let settings = Settings {
        rounds: 1,
        warm_up: Duration::from_millis(100),
        duration,
        concurrency: 4,
        seed: Some(1),
        ..Settings::default()
    };
    let runner = Runner::new(settings).observe(move |step| {
        if let Step::Note(text) | Step::Warning(text) = step {
            let _ = tell.send(text.to_owned());
        }
    });
    let report = runner.run(experiment).await;
    drop(runner);
    Run { report, notes: told.iter().collect() }
}

impl Run {
    /// The report of a run in which both arms worked, and the after did at least so many times as much.
    pub(crate) fn good(&self, at_least: f64) -> &Report {
        let report = self.report.as_ref().unwrap();
        // One pair is no verdict.
        assert_eq!(report.verdict.finding, Finding::TooFew, "{}", report.verdict);
        assert!(report.ratios.per_second.unwrap().median > at_least, "{}", report.verdict);
        assert_eq!((report.before.errors, report.after.errors), (0, 0), "{report:?}");
        assert_eq!(report.warnings, [""; 0]);
        report
    }

    /// Why the set-up failed.
    pub(crate) fn refusal(&self) -> String {
        let error = self.report.as_ref().unwrap_err();
        assert!(matches!(error, Error::SetUp(_)), "{error:?}");
        std::error::Error::source(error).unwrap().to_string()
    }

    /// The names of what the run told of having made on servers.
    pub(crate) fn created(&self) -> Vec<&str> {
        let words = self.notes.iter().flat_map(|note| note.split([' ', ',', ':']));
        words.filter(|word| word.starts_with("greenwave_lab_")).collect()
    }

    /// Sees that the databases that the run told of are gone.
    pub(crate) async fn left_nothing_on(&self, server: &str, databases: usize) {
        let created = self.created();
        assert_eq!(created.len(), databases, "{:?}", self.notes);
        let mut db = PgConnection::connect(server).await.unwrap();
        let left: Vec<String> =
            sqlx::query_scalar("SELECT datname::text FROM pg_database WHERE datname = ANY($1)")
                .bind(&created)
                .fetch_all(&mut db)
                .await
                .unwrap();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// A fact of the report.
pub(crate) fn fact<'r>(report: &'r Report, name: &str) -> Option<&'r str> {
    report.facts.iter().find(|fact| fact.name == name).map(|fact| fact.value.as_str())
}
