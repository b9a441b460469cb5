//! The `sconce` binary: provider of cryptography, parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use sconce::cli::Cli;
use tokio_rustls::rustls::crypto::aws_lc_rs;

fn main() -> ExitCode {
    // One provider for all of TLS; it can only be there already, which is as good.
    let _ = aws_lc_rs::default_provider().install_default();
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}
