//! What the operator sees: metrics and logs.
//!
//! Every metric's name, unit and help text stands in `metrics.rs`, once; other floors hold a [`Metrics`]
//! and call its fields. Nothing here decides anything.

mod log;
mod metrics;
pub mod redact;
mod secret;

pub use log::{LogSettings, init_log};
pub use metrics::{Failure, HistogramRanges, Method, Metrics, Spent};
pub use secret::Secret;
