//! `sconce rm`: removes models from the cache.

use std::error::Error;
use std::io::Write;

use clap::Args;

use super::HubArgs;
use crate::hub::catalogue::{self, Named};
use crate::hub::{Cache, size};

/// Flags of `sconce rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Models as `sconce list` names them: `org/name` with all its files, or `org/name:Q4_K_M` alone
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,

    #[command(flatten)]
    hub: HubArgs,
}

/// Prints for each model what that freed.
///
/// Errors: the first model that is not there; those before it are gone.
pub fn run(args: &RmArgs) -> Result<(), Box<dyn Error>> {
    let names: Result<Vec<Named>, _> = args
        .models
        .iter()
        .map(|name| catalogue::named(name))
        .collect();
    let cache = Cache::new(&args.hub.settings()?)?;
    for Named { model: name, .. } in names? {
        let freed = cache.remove(&name)?;
        writeln!(std::io::stdout(), "{name} is gone: {} freed", size(freed))?;
    }
    Ok(())
}
