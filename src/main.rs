//! The `sconce` binary: allocator, provider of cryptography, no secrets in arguments, parse, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use sconce::cli::Cli;
use sconce::config::refuse_secrets_in_arguments;
use tokio_rustls::rustls::crypto::aws_lc_rs;

/// A request is made of many small pieces that one thread makes and another one frees, where the system's
/// allocator has its threads wait for each other.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // One provider for all of TLS; it can only be there already, which is as good.
    let _ = aws_lc_rs::default_provider().install_default();
    let arguments = std::env::args_os().skip(1);
    if let Err(problem) = refuse_secrets_in_arguments(arguments) {
        eprintln!("error: {problem}");
        return ExitCode::FAILURE;
    }
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::FAILURE
        }
    }
}
