//! What has left this machine, written down before it left: JSON lines, each chained to the one before.
//!
//! A line that is changed, dropped or put elsewhere breaks the chain, and `sconce audit verify` says where.
//! Texts never stand in it; a keyed fingerprint answers whether a given text was sent.
