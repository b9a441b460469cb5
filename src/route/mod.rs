//! Here or elsewhere, and where: pure functions of what is asked, how busy this machine is, what is known of
//! upstreams, money and rules, and the time.
//!
//! Nothing here waits, reads a clock or looks anything up, so every decision can be replayed from its record.

mod config;

pub use config::{Config, Hop, ModelRoute, OverflowPick, Rule, Then, When};
