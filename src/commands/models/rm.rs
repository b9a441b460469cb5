//! `sconce rm`: removes models from the cache.

use std::error::Error;
use std::io::Write;

use clap::Args;

use super::{HubArgs, named};
use crate::hub::catalogue::Named;
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
    let settings = args.hub.settings()?;
    let cache = Cache::new(&settings)?;
    let names: Result<Vec<Named>, _> = args
        .models
        .iter()
        .map(|name| named(name, &settings))
        .collect();
    for Named { model: name, .. } in names? {
        let freed = cache.remove(&name)?;
        writeln!(std::io::stdout(), "{name} is gone: {} freed", size(freed))?;
    }
    Ok(())
}
