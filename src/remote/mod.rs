//! Other people's hardware: upstreams, what is known of them, and one request to one of them.
//!
//! This floor sends what the gate lets through and turns what comes back into the same events that the
//! engine gives. It keeps each target's state (breaker, parking, latency) and reports every attempt to it
//! exactly once. It decides nothing: whether and where to is the hall's business.

mod adaptive;
mod attempt;
mod board;
mod breaker;
mod budget;
pub mod capability_store;
pub mod catalog;
mod client;
mod cold_start;
mod config;
pub mod control;
pub mod detect;
mod disk;
mod errors;
mod facts;
mod fault;
mod fetch;
mod latency;
mod parking;
mod retry;
mod sse;
mod translate;
mod upstreams;

pub use adaptive::Adaptive;
pub use attempt::{Check, Checked, Decoder, Late, Reply, Reporter, Timing, start};
pub use board::{
    Ask, Board, EndpointState, Expected, NotNow, Outcome, Saved, TargetState, TargetStatus, Ticket,
    Turn, Waiter,
};
pub use breaker::{Breaker, BreakerState, Permit, Refused, Verdict};
pub use budget::{HedgeBudget, Rate, RetryBudget};
pub use client::{Body, Call, Client, ClientError, Head, Response};
pub use cold_start::ColdStart;
pub use config::{
    AdaptiveConfig, Billing, BreakerConfig, CancelSettle, Capabilities, Clocks, ColdStartConfig,
    Config, ControlPlane, EngineKind, Fidelity, Limits, ParkingConfig, Price, ProviderChoice,
    RetryConfig, TargetConfig, UpstreamConfig, UpstreamKind,
};
pub use errors::{Origin, classify, in_stream, is_error};
pub use facts::TargetFacts;
pub use fault::{Class, Fault};
pub use fetch::{Fetch, Fetched, Plane, Question};
pub use latency::Latency;
pub use parking::Parking;
pub use retry::{Link, Loop, Step, Terms, Tried, caller_error, whole_seconds};
pub use sse::{SseEvent, SseParser, TooLong};
pub use translate::{
    Incoming, Ineligible, Known, Outgoing, TranslateSettings, estimate_tokens, outgoing,
    outgoing_known, proxy_path,
};
pub use upstreams::{Cost, Remote, place};

pub use crate::telemetry::Secret;
