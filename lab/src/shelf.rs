use crate::{Error, Experiment};

/// Experiments under their names.
///
/// ```
/// use greenwave_lab::{Arm, Arms, Experiment, Lab, Workload};
///
/// let idle = || Workload::new(|_| async { Ok(()) });
/// let nothing = Experiment::new("nothing", "Nothing", "Is doing nothing as fast as doing nothing?", move |_| async move {
///     Ok(Arms { before: Arm::new("nothing", idle()), after: Arm::new("nothing", idle()) })
/// });
/// let lab = Lab::new().with(nothing);
/// assert_eq!(lab.get("nothing").unwrap().title(), "Nothing");
/// assert!(lab.get("nothign").unwrap_err().to_string().contains("did you mean `nothing`?"));
/// ```
#[derive(Debug, Default)]
pub struct Lab {
    experiments: Vec<Experiment>,
}

impl Lab {
    /// A lab without experiments.
    #[must_use]
    pub fn new() -> Self {
        Lab::default()
    }

    /// Adds an experiment. One that has the name already is replaced.
    #[must_use]
    pub fn with(mut self, experiment: Experiment) -> Self {
        self.experiments.retain(|known| known.name() != experiment.name());
        self.experiments.push(experiment);
        self
    }

    /// The experiments, in the order in which they were added.
    pub fn experiments(&self) -> impl Iterator<Item = &Experiment> {
        self.experiments.iter()
    }

    /// The experiment of this name.
    ///
    /// # Errors
    ///
    /// When there is none; the error gives the nearest name and all names.
    pub fn get(&self, name: &str) -> Result<&Experiment, Error> {
        if let Some(found) = self.experiments.iter().find(|known| known.name() == name) {
            return Ok(found);
        }
        let likeness = |known: &str| strsim::jaro_winkler(known, name);
        let nearest = self
            .experiments
            .iter()
            .map(|known| (known.name(), likeness(known.name())))
            .filter(|(_, likeness)| *likeness > 0.7)
            .max_by(|(_, one), (_, other)| one.total_cmp(other))
            .map(|(known, _)| known.to_owned());
        let known = self.experiments.iter().map(|known| known.name().to_owned()).collect();
        Err(Error::UnknownExperiment { name: name.to_owned(), nearest, known })
    }
}
