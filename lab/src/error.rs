use std::path::PathBuf;

/// What a set-up or an operation of yours may fail with: any error at all, so that `?` works on every one.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why an experiment has no report.
///
/// Operations that fail are not here: they are counted, and the [verdict](crate::Verdict) answers for them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The settings cannot be run; the text says which one and why.
    #[error("{0}")]
    Settings(String),

    /// No experiment has this name.
    #[error("no experiment is called `{name}`; {}there are: {}",
        .nearest.as_ref().map(|nearest| format!("did you mean `{nearest}`? ")).unwrap_or_default(),
        .known.join(", "))]
    UnknownExperiment {
        /// The name that was asked for.
        name: String,
        /// The known name most like it, when one is.
        nearest: Option<String>,
        /// All known names.
        known: Vec<String>,
    },

    /// The experiment's set-up failed.
    #[error("could not set up the experiment")]
    SetUp(#[source] BoxError),

    /// What an arm does before each of its rounds failed.
    #[error("could not prepare a round of `{label}`")]
    Prepare {
        /// The arm.
        label: String,
        /// Why.
        source: BoxError,
    },

    /// Code of the experiment panicked.
    #[error("{0} panicked")]
    Panicked(String),

    /// The run was stopped before one pair of rounds was complete.
    #[error("stopped before the first two rounds were complete: nothing was measured")]
    Stopped,

    /// The plot could not be drawn.
    #[error("could not draw the plot")]
    Plot(#[source] BoxError),

    /// The report could not be written as JSON.
    #[error("could not write the report as JSON")]
    Json(#[source] serde_json::Error),

    /// A file of the report could not be written.
    #[error("could not write {}: is the folder there, and yours to write to?", .path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}
