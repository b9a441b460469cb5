//! Here or elsewhere, and where: pure functions of what is asked, how busy this machine is, what is known of
//! upstreams, money and rules, and the time.
//!
//! Nothing here waits, reads a clock or looks anything up, so every decision can be replayed from its record.
//! The one exception is the log that records are written to: it has a thread of its own, and no request
//! waits for it.

mod config;
mod decide;
mod explain;
mod features;
mod forecast;
mod hardness;
mod hysteresis;
mod lateness;
mod policies;
mod record;
mod rules;
mod sticky;

pub use config::{Config, Hop, MidStream, ModelRoute, Rule, Then, When};
pub use decide::{
    BlockedBy, Decision, Excluded, Expected, Forecast, Hardness, LocalView, Need, OnExceed,
    Outcome, OverBudget, PlannedHop, Refusal, RefusalKind, TargetState, TargetView, Terms, Why,
    decide, stays,
};
pub use explain::{Told, explain};
pub use features::{Arrival, FEATURE_NAMES, Features, application};
pub use forecast::{
    BUCKETS, EngineView, Lengths, Newcomer, OutputHistory, StepTimes, Work, expected_tokens,
    forecast,
};
pub use hardness::{Calibration, CalibrationError, Fit};
pub use hysteresis::Hysteresis;
pub use lateness::Lateness;
pub use policies::Policies;
pub use record::{About, Aftermath, AttemptNote, DecisionLog, LogThread, Record, replay};
pub use rules::{RuleHit, Sight, first_hit};
pub use sticky::{Place, SessionKey, Sessions};

#[cfg(test)]
mod load_step_tests;
