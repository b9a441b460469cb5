//! What may leave this machine, to where, for whom: the one gate that every byte of a prompt passes.
//!
//! [`Gate::may_leave`] is the only function that makes a [`Passport`], and whoever sends takes nothing else:
//! the passport holds the very bytes that it lets through, so a path that sends without asking cannot be
//! written. The gate decides by the operator's settings alone, fails closed, and writes the audit line
//! before it opens. It knows no wire format and opens no socket.

mod gate;
mod sentence;
mod types;

pub use gate::Gate;
pub use sentence::egress_sentence;
pub use types::{
    Action, Config, ContentRule, Demand, Denied, Departure, Destination, Facts, Grant, Level,
    Passport, Purpose, Settled,
};
