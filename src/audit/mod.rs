//! What has left this machine, written down before it left: JSON lines, each chained to the one before.
//!
//! A line that is changed, dropped or put elsewhere breaks the chain, and `sconce audit verify` says where.
//! Texts never stand in it; a keyed fingerprint answers whether a given text was sent. Each line names the
//! SHA-256 of the line before it and ends with a seal that only the holder of the key beside the log can make.
//! What the chain alone cannot show is that the newest lines were cut off at the end of one of them: whoever
//! wants to know keeps the last number that `sconce audit verify` prints.

mod chain;
mod hmac;
mod log;
mod record;
mod verify;

pub use hmac::{Fingerprint, Key, sign};
pub use log::{Log, OpenError, Settings, WriteError};
pub use record::{Done, Record, Sent};
pub use verify::{Broken, Found, Report, verify};

#[cfg(test)]
mod tests;
