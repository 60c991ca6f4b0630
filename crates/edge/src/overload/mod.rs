//! What is done when more comes in than can be answered: limits, queues, refusals.

mod config;
mod limit;
mod queue;
#[cfg(test)]
mod simulation;

pub use config::{OverloadConfig, RateLimit};
pub(crate) use limit::GradientLimit;
pub(crate) use queue::{Load, Queue};

/// Who goes first when not all can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Waits for its turn.
    #[default]
    Normal,
    /// Waits for nobody: health checks and administration.
    High,
}
