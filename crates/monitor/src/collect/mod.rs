//! What happens in a process, turned into numbers.
//!
//! `recorder` stores what the `metrics` macros say, `http` times requests, `queries` counts each request's
//! statements. A [`Snapshot`] is all of it at one moment, ready to be sent, merged and compared.

pub(crate) mod histogram;
pub(crate) mod http;
pub(crate) mod queries;
pub(crate) mod recorder;
mod series;
mod snapshot;

pub use histogram::Histogram;
pub use http::{HttpLayer, HttpService, MeasuredBody, MeasuredFuture};
pub(crate) use series::of_name as series_of_name;
pub use series::{Metrics, Series};
pub use snapshot::{Description, Process, Snapshot};
