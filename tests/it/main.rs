//! Black-box and whole-house tests: one crate, a file per subject.

#![allow(unreachable_pub, missing_docs, reason = "a test crate has no callers")]

mod architecture;
mod faults;
mod http;
mod hub;
mod hybrid;
mod invariance;
mod ledger;
mod openapi;
mod parity;
mod support;
mod templates;
mod ui;
