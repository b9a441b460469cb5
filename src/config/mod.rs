//! From what the operator wrote to what every floor needs.
//!
//! Two steps that never mix: reading (`raw.rs`: file, then environment, then flags, nothing decided) and
//! resolving (`resolve.rs`: every default, every check, all faults at once). Each floor owns its own
//! settings type; this one only composes them.

mod keys;
mod machine;
mod platform;
mod raw;
mod resolve;

pub use keys::{NAMES, RawKey, is_name, parse_keys, read_keys};
pub use machine::Machine;
pub use platform::Platform;
pub use raw::{RawConfig, ServeArgs};
pub use resolve::{Capacity, ModelFacts, ModelSource, Settings, TlsFiles};

/// Everything wrong with a configuration, one sentence each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(pub Vec<String>);

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigError {}
