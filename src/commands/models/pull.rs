//! `sconce pull`: brings models into the cache, or up to date.

use std::error::Error;
use std::io::Write;

use clap::Args;

use super::{HubArgs, named};
use crate::hub::catalogue::Named;
use crate::hub::{self, size};

/// Flags of `sconce pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// Names of the catalogue (`sconce list --available`) or of the hub: `org/name`, or `org/name:Q4_K_M` for one GGUF file
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,

    /// Branch, tag or commit
    #[arg(long, env = "REVISION")]
    revision: Option<String>,

    #[command(flatten)]
    hub: HubArgs,
}

/// Prints for each model where it is.
///
/// Errors: the first model that cannot be had; those before it are there.
pub fn run(args: &PullArgs) -> Result<(), Box<dyn Error>> {
    let settings = args.hub.settings()?;
    let names: Result<Vec<Named>, _> = args
        .models
        .iter()
        .map(|name| named(name, &settings))
        .collect();
    for Named {
        model: name,
        revision,
        why,
    } in names?
    {
        if let Some(why) = why {
            writeln!(std::io::stderr(), "{why}")?;
        }
        let revision = args.revision.clone().or(revision);
        let found = hub::update(&settings, &name, revision.as_deref())?;
        let what = match found.downloaded {
            0 if settings.offline => "is here".to_owned(),
            0 => "is up to date".to_owned(),
            bytes => format!("is here now, {} of it new", size(bytes)),
        };
        let commit = found.commit.get(..12).unwrap_or(&found.commit);
        writeln!(
            std::io::stdout(),
            "{name} {what}: commit {commit}, {}",
            found.path.display()
        )?;
    }
    Ok(())
}
