//! `sconce bundle`: cached models as one file, to be carried to a machine without a network.

use std::error::Error;
use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::models::{HubArgs, named};
use crate::hub::catalogue::Named;
use crate::hub::{self, Cache, Contents, size};

/// What to do with bundles.
#[derive(Debug, Subcommand)]
pub enum BundleCommand {
    /// Pack cached models into one file, with a SHA-256 for each part
    Export(ExportArgs),
    /// Unpack a bundle into the cache; a damaged one is refused before anything is written
    Import(ImportArgs),
}

/// Flags of `sconce bundle export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Models of the cache: `org/name`, or `org/name:Q4_K_M`
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,

    /// The file to write, or `-` for standard output
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,

    /// Branch, tag or commit
    #[arg(long, env = "REVISION")]
    revision: Option<String>,

    #[command(flatten)]
    hub: HubArgs,
}

/// Flags of `sconce bundle import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The bundle
    #[arg(value_name = "FILE")]
    bundle: PathBuf,

    #[command(flatten)]
    hub: HubArgs,
}

impl BundleCommand {
    /// Runs the command to its end.
    ///
    /// Errors: one message for people.
    pub fn run(&self) -> Result<(), Box<dyn Error>> {
        match self {
            Self::Export(args) => export(args),
            Self::Import(args) => import(args),
        }
    }
}

fn export(args: &ExportArgs) -> Result<(), Box<dyn Error>> {
    let settings = args.hub.settings()?;
    let cache = Cache::new(&settings)?;
    let mut models = Vec::new();
    for name in &args.models {
        let Named {
            model, revision, ..
        } = named(name, &settings)?;
        models.push((model, args.revision.clone().or(revision)));
    }
    if args.output == Path::new("-") {
        let out = std::io::stdout().lock();
        if out.is_terminal() {
            return Err("a bundle is no text for a terminal: redirect it, or name a file".into());
        }
        let contents = hub::export(&cache, &models, out)?;
        return report(&contents, &mut std::io::stderr(), "packed");
    }
    // Under its own name only when it is whole.
    let output = &args.output;
    let name = output.file_name().ok_or("--output names no file")?;
    let beside = output.with_file_name(format!(
        ".{}.{}.tmp",
        name.to_string_lossy(),
        std::process::id()
    ));
    let in_file = |error: std::io::Error| format!("{}: {error}", output.display());
    let file = File::create(&beside).map_err(in_file)?;
    let packed = hub::export(&cache, &models, &file).map_err(Box::<dyn Error>::from);
    let packed = packed.and_then(|contents| {
        file.sync_all().map_err(in_file)?;
        fs::rename(&beside, output).map_err(in_file)?;
        Ok(contents)
    });
    if packed.is_err() {
        // Nobody looks for it under this name.
        let _ = fs::remove_file(&beside);
    }
    report(&packed?, &mut std::io::stdout(), "packed")
}

fn import(args: &ImportArgs) -> Result<(), Box<dyn Error>> {
    let cache = Cache::new(&args.hub.settings()?)?;
    let contents = hub::import(&cache, &args.bundle)?;
    report(&contents, &mut std::io::stdout(), "imported")
}

fn report(contents: &Contents, out: &mut dyn Write, done: &str) -> Result<(), Box<dyn Error>> {
    for model in &contents.models {
        let bytes = model
            .files
            .iter()
            .fold(0_u64, |bytes, file| bytes.saturating_add(file.size));
        let commit = model.commit.get(..12).unwrap_or(&model.commit);
        writeln!(
            out,
            "{} {done}: commit {commit}, {} files, {}",
            model.repo,
            model.files.len(),
            size(bytes)
        )?;
    }
    Ok(())
}
