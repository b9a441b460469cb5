//! Other people's hardware: upstreams, what is known of them, and one request to one of them.
//!
//! This floor sends what the gate lets through and turns what comes back into the same events that the
//! engine gives. It keeps each target's state (breaker, parking, latency) and reports every attempt to it
//! exactly once. It decides nothing: whether and where to is the hall's business.

mod config;
mod fault;

pub use config::{
    AdaptiveConfig, Billing, BreakerConfig, Capabilities, Clocks, ColdStartConfig, Config,
    ControlPlane, EngineKind, Fidelity, Limits, ParkingConfig, Price, ProviderChoice, RetryConfig,
    Secret, TargetConfig, UpstreamConfig, UpstreamKind,
};
pub use fault::{Class, Fault};
