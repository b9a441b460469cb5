//! `sconce audit`: looks at the log of what has left this machine, and changes nothing.

mod verify;

use std::error::Error;

use clap::Subcommand;

/// What to do with an audit log.
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Check that no line was changed, dropped or moved, and look whether a text was sent
    Verify(verify::VerifyArgs),
}

impl AuditCommand {
    /// Runs the command to its end.
    ///
    /// Errors: one message for people; a broken chain is one.
    pub fn run(self) -> Result<(), Box<dyn Error>> {
        match self {
            Self::Verify(args) => verify::run(&args),
        }
    }
}
