#![doc = include_str!("../README.md")]

mod cpu;
mod environment;
mod error;
mod experiment;
mod ratio;
mod report;
mod round;
mod runner;
mod settings;
mod setup;
mod shelf;
mod verdict;
mod workload;

pub mod cli;
pub mod experiments;

pub use environment::Environment;
pub use error::{BoxError, Error};
pub use experiment::{Arm, Arms, Experiment};
pub use ratio::Ratio;
pub use report::{Fact, Measured, Ratios, Report};
pub use round::Round;
pub use runner::{Runner, Side, Step};
pub use settings::Settings;
pub use setup::Setup;
pub use shelf::Lab;
pub use verdict::{Finding, Verdict};
pub use workload::{Call, Workload};
