//! `sconce pull`, `list`, `rm`: what is in the cache of models, and what comes and goes.

pub mod list;
pub mod pull;
pub mod rm;

use std::error::Error;
use std::path::PathBuf;

use clap::Args;
use clap::builder::BoolishValueParser;

pub use list::ListArgs;
pub use pull::PullArgs;
pub use rm::RmArgs;

use crate::config::Machine;
use crate::hub::catalogue::{self, AUTO, Named};
use crate::hub::{HubError, HubSettings};
use crate::telemetry::{LogSettings, init_log};

/// Flags of every command that looks into the cache.
#[derive(Debug, Args)]
pub struct HubArgs {
    /// Folder where models are kept [default: where huggingface_hub keeps them: HF_HUB_CACHE, HF_HOME/hub, ~/.cache/huggingface/hub]
    #[arg(long, value_name = "FOLDER")]
    huggingface_hub_cache: Option<PathBuf>,

    /// Opens no connection; the same as HF_HUB_OFFLINE=1 in the environment
    #[arg(long, env = "SCONCE_OFFLINE", value_parser = BoolishValueParser::new())]
    offline: bool,
}

/// What a name leads to: `auto` to whatever fits this machine, as for `sconce serve`.
///
/// Errors: a text that names no model, or nothing fits.
pub fn named(text: &str, settings: &HubSettings) -> Result<Named, HubError> {
    if text == AUTO {
        let free = Machine::detect().available_memory_bytes as u64;
        catalogue::choose_for(settings, free)
    } else {
        catalogue::named(text)
    }
}

impl HubArgs {
    /// What flags and variables say together. Warnings and steps go to standard error from here on.
    ///
    /// Errors: one message for people.
    pub fn settings(&self) -> Result<HubSettings, Box<dyn Error>> {
        init_log(&LogSettings {
            level: std::env::var("LOG_LEVEL").unwrap_or_else(|_| "info".to_owned()),
            json: false,
            color: std::io::IsTerminal::is_terminal(&std::io::stderr()),
        })?;
        let variable = |name: &str| std::env::var(name).ok();
        let cache = self.huggingface_hub_cache.clone();
        Ok(HubSettings::from_variables(variable, cache, self.offline))
    }
}
