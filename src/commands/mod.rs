//! Commands beside serving: each does one thing to files or prints one thing, and ends.
//!
//! One file for each; they may use every floor's public face and are used by `cli.rs` alone.

pub mod audit;
pub mod bundle;
pub mod key;
pub mod models;
pub mod print_schema;
pub mod probe_upstream;
pub mod reconcile;
pub mod usage;
