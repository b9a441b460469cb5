//! The `sconce` binary: parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use sconce::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}
