//! From what the operator wrote to what every floor needs.
//!
//! Two steps that never mix: reading (`raw.rs`: file, then environment, then flags, nothing decided) and
//! resolving (`resolve.rs`: every default, every check, all faults at once). Each floor owns its own
//! settings type; this one only composes them.

mod alerts;
mod describe;
mod egress;
mod hybrid;
mod keys;
mod ledger;
mod machine;
mod platform;
mod raw;
mod remote;
mod resolve;
mod route;
mod secrets;
mod section;

pub use alerts::{AlertSettings, Webhook};
pub use describe::describe;
pub use egress::AuditSettings;
pub use keys::{Grants, NAMES, RawKey, is_name, parse_keys, read_callers, read_keys};
pub use machine::Machine;
pub use platform::Platform;
pub use raw::{RawConfig, ServeArgs};
pub use resolve::{Capacity, HubModel, ModelFacts, ModelSource, Settings, TlsFiles};
pub use secrets::refuse_secrets_in_arguments;

/// Everything wrong with a configuration, one sentence each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError(pub Vec<String>);

impl std::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join("\n"))
    }
}

impl std::error::Error for ConfigError {}
