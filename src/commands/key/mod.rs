//! `sconce key`: makes, lists and revokes the keys of named callers in a settings file.

mod file;
mod list;
mod new;
mod revoke;

use std::error::Error;

use clap::Subcommand;

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key and print it once; with --config also append its `[[keys]]` table to the file
    New(new::NewArgs),
    /// List the keys of a settings file; neither keys nor hashes are printed
    List(list::ListArgs),
    /// Remove a key's `[[keys]]` table from a settings file and leave the rest as it is
    Revoke(revoke::RevokeArgs),
}

impl KeyCommand {
    /// Runs the command to its end.
    ///
    /// Errors: one message for people.
    pub fn run(self) -> Result<(), Box<dyn Error>> {
        match self {
            Self::New(args) => new::run(args),
            Self::List(args) => list::run(&args),
            Self::Revoke(args) => revoke::run(&args),
        }
    }
}
