//! `sconce key list`: who has a key, and what each may take; nothing that could be used or guessed from.

use std::error::Error;
use std::io::Write;
use std::path::PathBuf;

use chrono::Utc;
use clap::Args;

use crate::api::Key;
use crate::config::read_keys;

/// Flags of `sconce key list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Settings file that holds the keys
    #[arg(long, env = "SCONCE_CONFIG", value_name = "FILE")]
    config: PathBuf,
}

/// Prints one line for each key.
pub(super) fn run(args: &ListArgs) -> Result<(), Box<dyn Error>> {
    let keys = read_keys(&args.config)?;
    let mut out = std::io::stdout().lock();
    let head = [
        "NAME",
        "TENANT",
        "PER MINUTE",
        "BURST",
        "AT ONCE",
        "ADMIN",
        "EXPIRES",
    ]
    .map(str::to_owned);
    for row in std::iter::once(head).chain(keys.iter().map(row)) {
        let [name, tenant, rate, burst, places, admin, expires] = row;
        let line = format!(
            "{name:<24} {tenant:<24} {rate:>10} {burst:>7} {places:>7}  {admin:<5}  {expires}"
        );
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

fn row(key: &Key) -> [String; 7] {
    let Key {
        name,
        hash: _,
        tenant,
        limits,
        expires,
        admin,
    } = key;
    let number = |n: Option<std::num::NonZeroU32>| n.map_or("-".to_owned(), |n| n.to_string());
    let expires = expires.map_or("never".to_owned(), |end| {
        let gone = if end <= Utc::now() { " (expired)" } else { "" };
        format!("{}{gone}", end.to_rfc3339())
    });
    [
        name.clone(),
        tenant.0.to_string(),
        number(limits.requests_per_minute),
        number(limits.burst.or(limits.requests_per_minute)),
        number(limits.max_concurrent_requests),
        if *admin { "yes" } else { "-" }.to_owned(),
        expires,
    ]
}
