//! The bodies that travel: plain serde data, no behaviour.
//!
//! Field order is the wire's order; a change here is a change for every client, and golden files notice.

pub mod anthropic;
pub mod openai;
pub mod platforms;
pub mod pulse;
pub mod responses;
pub mod tgi;
pub mod upstreams;
pub mod usage;
