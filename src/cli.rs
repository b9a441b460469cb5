//! The command line: which command, with what.

use std::error::Error;
use std::io::Write;

use clap::{Args, Parser, Subcommand};

use crate::app;
use crate::commands::audit::AuditCommand;
use crate::commands::bundle::BundleCommand;
use crate::commands::key::KeyCommand;
use crate::commands::models::{ListArgs, PullArgs, RmArgs, list, pull, rm};
use crate::commands::print_schema;
use crate::commands::probe_upstream::{self, ProbeArgs};
use crate::commands::reconcile::{self, ReconcileArgs};
use crate::commands::usage::{self, UsageArgs};
use crate::config::{Machine, RawConfig, ServeArgs, Settings};
use crate::telemetry::init_log;

/// A self-hosted, TGI-compatible LLM server.
#[derive(Debug, Parser)]
#[command(name = "sconce", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve a model over HTTP
    #[command(args_override_self = true)]
    Serve(Box<ServeArgs>),
    /// Check a configuration and the model it names, print what would be served, and stop
    Check(Box<CheckArgs>),
    /// Download models into the cache, or bring them up to date
    Pull(PullArgs),
    /// List the models that are in the cache
    List(ListArgs),
    /// Remove models from the cache
    Rm(RmArgs),
    /// Carry models to a machine without a network, in one file
    #[command(subcommand)]
    Bundle(BundleCommand),
    /// Make, list and revoke the keys of callers
    #[command(subcommand)]
    Key(KeyCommand),
    /// Check the log of what has left this machine
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Print who used what, what it cost, and what answers made here have saved
    Usage(UsageArgs),
    /// Compare the ledger with a provider's own bill, and take over what the bill says
    Reconcile(ReconcileArgs),
    /// Print the OpenAPI description of every route, and stop
    PrintSchema,
    /// Ask an upstream's targets what they can do, by a few tiny requests; says first what they cost
    ProbeUpstream(ProbeArgs),
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    serve: ServeArgs,
}

impl Cli {
    /// Runs the command to its end.
    ///
    /// Errors: one message for people; the exit code is then 1.
    pub fn run(self) -> Result<(), Box<dyn Error>> {
        match self.command {
            Command::Serve(args) => {
                let settings = settings(*args)?;
                Ok(app::serve(settings)?)
            }
            Command::Check(args) => {
                let settings = settings(args.serve)?;
                let report = app::check(&settings)?;
                Ok(std::io::stdout().write_all(report.as_bytes())?)
            }
            Command::Pull(args) => pull::run(&args),
            Command::List(args) => list::run(&args),
            Command::Rm(args) => rm::run(&args),
            Command::Bundle(command) => command.run(),
            Command::Key(command) => command.run(),
            Command::Audit(command) => command.run(),
            Command::Usage(args) => usage::run(&args),
            Command::Reconcile(args) => reconcile::run(&args),
            Command::PrintSchema => print_schema::run(),
            Command::ProbeUpstream(args) => probe_upstream::run(&args),
        }
    }
}

fn settings(args: ServeArgs) -> Result<Settings, Box<dyn Error>> {
    let raw = RawConfig::read(args)?;
    let settings = Settings::resolve(raw, &Machine::detect())?;
    init_log(&settings.log)?;
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    Ok(settings)
}
