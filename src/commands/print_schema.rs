//! `sconce print-schema`: the description of every route, as a running server gives it.

use std::error::Error;
use std::io::Write;

use crate::api;

/// Prints the OpenAPI document.
pub fn run() -> Result<(), Box<dyn Error>> {
    let text = serde_json::to_string_pretty(&api::document())?;
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}
