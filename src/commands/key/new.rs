//! `sconce key new`: the key goes to standard output and nowhere else, so that it can be piped; words and
//! the table go to standard error.

use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::num::NonZeroU32;
use std::path::PathBuf;

use clap::Args;

use super::file;
use crate::api::KeyHash;
use crate::config::{self, parse_keys};

/// Flags of `sconce key new`.
#[derive(Debug, Args)]
pub struct NewArgs {
    /// Whom the key is for: letters, digits, `.`, `_`, `-`, `@`
    #[arg(long)]
    name: String,

    /// Whose prefix cache its requests share [default: the name]
    #[arg(long)]
    tenant: Option<String>,

    /// Requests a minute in the long run [default: no limit]
    #[arg(long)]
    requests_per_minute: Option<NonZeroU32>,

    /// Requests at once after a pause [default: requests_per_minute]
    #[arg(long, requires = "requests_per_minute")]
    burst: Option<NonZeroU32>,

    /// Requests that run at the same time [default: no limit]
    #[arg(long)]
    max_concurrent_requests: Option<NonZeroU32>,

    /// From when on the key is refused: a date or a time with its offset [default: never]
    #[arg(long, value_name = "DATE")]
    expires: Option<String>,

    /// The key's caller runs this server: GET /usage tells it what everybody uses
    #[arg(long)]
    admin: bool,

    /// Settings file to append the key's table to; created if there is none
    #[arg(long, env = "SCONCE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Makes a key. The file is written before the key is printed: what was shown can be used.
pub(super) fn run(args: NewArgs) -> Result<(), Box<dyn Error>> {
    let names = [Some(&args.name), args.tenant.as_ref()];
    if names
        .into_iter()
        .flatten()
        .any(|name| !config::is_name(name))
    {
        return Err(format!("names of keys and tenants must be {}", config::NAMES).into());
    }
    let (key, hash) = KeyHash::generate()?;
    let table = table(&args, &hash)?;
    match &args.config {
        Some(path) => {
            let _lock = file::lock(path)?;
            let old = file::read_or_empty(path)?;
            file::check_form(&old, path)?;
            let new = appended(&old, &table);
            parse_keys(&new, path)?;
            file::replace(path, &new)?;
            eprintln!(
                "The table of key `{}` stands in {} now.",
                args.name,
                path.display()
            );
            eprintln!("A running server takes it up when it gets SIGHUP, or is started anew.");
        }
        None => {
            parse_keys(&table, "the new table".as_ref())?;
            eprintln!("Append this to the server's settings file:\n\n{table}");
        }
    }
    eprintln!("The key is shown this once:");
    Ok(writeln!(std::io::stdout(), "{key}")?)
}

/// The `[[keys]]` table. Every text in it is free of characters that TOML would read.
fn table(args: &NewArgs, hash: &KeyHash) -> Result<String, std::fmt::Error> {
    let NewArgs {
        name,
        tenant,
        requests_per_minute,
        burst,
        max_concurrent_requests,
        expires,
        admin,
        config: _,
    } = args;
    let mut table = format!(
        "[[keys]]\nname = \"{name}\"\nhash = \"{}\"\n",
        hash.to_text()
    );
    if let Some(tenant) = tenant {
        writeln!(table, "tenant = \"{tenant}\"")?;
    }
    let numbers = [
        ("requests_per_minute", requests_per_minute),
        ("burst", burst),
        ("max_concurrent_requests", max_concurrent_requests),
    ];
    for (name, number) in numbers {
        if let Some(number) = number {
            writeln!(table, "{name} = {number}")?;
        }
    }
    if let Some(expires) = expires {
        writeln!(table, "expires = {}", toml::Value::from(expires.as_str()))?;
    }
    if *admin {
        writeln!(table, "admin = true")?;
    }
    Ok(table)
}

/// A file's text with a table at its end, a blank line before it.
fn appended(old: &str, table: &str) -> String {
    let gap = match old {
        "" => "",
        old if old.ends_with('\n') => "\n",
        _ => "\n\n",
    };
    format!("{old}{gap}{table}")
}
