//! `sconce usage`: reads the ledger, beside a running server or without one, and prints who used what.

use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use chrono_tz::Tz;
use clap::{Args, ValueEnum};

use crate::api::{Span, dimensions, told};
use crate::config::{Machine, RawConfig, ServeArgs, Settings};
use crate::ledger::{Place, Reader};
use crate::wire::usage::{UsageLine, UsageReport};

/// What to print.
#[derive(Debug, Args)]
pub struct UsageArgs {
    /// The settings that say where the ledger is
    #[arg(long, value_name = "FILE", required_unless_present = "ledger")]
    config: Option<PathBuf>,
    /// A ledger's file, instead of the settings
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    ledger: Option<PathBuf>,
    /// The first day, such as 2026-01-31 [default: 30 days before the last]
    #[arg(long, value_name = "DAY")]
    from: Option<String>,
    /// The last day [default: today]
    #[arg(long, value_name = "DAY")]
    to: Option<String>,
    /// A line for each of these: day, key, model, provider
    #[arg(long, default_value = "day", value_name = "LIST")]
    by: String,
    /// How it is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Columns for people
    Table,
    /// Comma-separated values, with a header
    Csv,
    /// The same as GET /usage answers
    Json,
}

/// Prints what was used.
///
/// Errors: one message for people.
pub fn run(args: &UsageArgs) -> Result<(), Box<dyn Error>> {
    let (place, zone) = ledger(args)?;
    let days = Span::read(args.from.as_deref(), args.to.as_deref(), zone)?;
    let query = days.query(dimensions(&args.by)?);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = runtime.block_on(async {
        let mut reader = Reader::open(&place, zone).await?;
        reader.report(&query).await
    })?;
    let usage = told(&days, &report, &[]);
    let text = match args.format {
        Format::Table => table(&usage)?,
        Format::Csv => csv(&usage)?,
        Format::Json => serde_json::to_string_pretty(&usage)? + "\n",
    };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

/// Where the ledger is, and the calendar it is read by.
fn ledger(args: &UsageArgs) -> Result<(Place, Tz), Box<dyn Error>> {
    if let Some(path) = &args.ledger {
        return Ok((Place::File(path.clone()), Tz::UTC));
    }
    let settings = settings(args.config.as_deref())?;
    let config = settings.ledger.ok_or(
        "these settings keep no ledger: they name no upstream, and have no `[ledger]` table",
    )?;
    Ok((config.place, config.zone))
}

fn settings(path: Option<&Path>) -> Result<Settings, Box<dyn Error>> {
    let raw = RawConfig::read(ServeArgs {
        config: path.map(Path::to_owned),
        ..ServeArgs::default()
    })?;
    Ok(Settings::resolve(raw, &Machine::detect())?)
}

/// Columns by their names, and the values of a line.
type Cells = Vec<(&'static str, String)>;

/// Names of the columns that a usage has, and the values of a line.
fn cells(line: &UsageLine) -> (Cells, Cells) {
    let UsageLine {
        day,
        key,
        model,
        provider,
        local,
        remote,
        failed,
        attempts,
        prompt_tokens,
        cached_tokens,
        output_tokens,
        reasoning_tokens,
        cost_usd,
        bound_usd,
        held_usd,
        saved_usd,
    } = line;
    let labels = [
        ("day", day),
        ("key", key),
        ("model", model),
        ("provider", provider),
    ];
    let labels = labels
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.clone()?)));
    let counts = [
        ("local", local),
        ("remote", remote),
        ("failed", failed),
        ("attempts", attempts),
        ("prompt_tokens", prompt_tokens),
        ("cached_tokens", cached_tokens),
        ("output_tokens", output_tokens),
        ("reasoning_tokens", reasoning_tokens),
    ];
    let money = [
        ("cost_usd", cost_usd),
        ("bound_usd", bound_usd),
        ("held_usd", held_usd),
        ("saved_usd", saved_usd),
    ];
    let counts = counts.into_iter().map(|(name, n)| (name, n.to_string()));
    let money = money
        .into_iter()
        .map(|(name, usd)| (name, format!("{usd:.9}")));
    (labels.collect(), counts.chain(money).collect())
}

fn csv(usage: &UsageReport) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    // A header even where there is no line.
    let sample = usage.lines.first().unwrap_or(&usage.total);
    let (labels, values) = cells(sample);
    let names: Vec<&str> = labels
        .iter()
        .chain(&values)
        .map(|(name, _)| *name)
        .collect();
    writeln!(text, "{}", names.join(","))?;
    for line in &usage.lines {
        let (labels, values) = cells(line);
        let all: Vec<String> = labels
            .iter()
            .chain(&values)
            .map(|(_, v)| quoted(v))
            .collect();
        writeln!(text, "{}", all.join(","))?;
    }
    Ok(text)
}

/// A value as RFC 4180 has it. One that a spreadsheet would take for a formula is made a text.
fn quoted(value: &str) -> String {
    let value = match value.starts_with(['=', '+', '-', '@']) && value != "-" {
        true => format!("'{value}"),
        false => value.to_owned(),
    };
    match value.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", value.replace('"', "\"\"")),
        false => value,
    }
}

/// Columns; those that are zero everywhere are left out, but for the requests and the cost.
fn table(usage: &UsageReport) -> Result<String, std::fmt::Error> {
    const ALWAYS: [&str; 3] = ["local", "remote", "cost_usd"];
    let total = cells(&usage.total).1;
    let is_zero = |value: &str| value.bytes().all(|b| b == b'0' || b == b'.');
    let shown: Vec<&str> = total
        .iter()
        .filter(|(name, value)| ALWAYS.contains(name) || !is_zero(value))
        .map(|(name, _)| *name)
        .collect();
    let mut rows: Vec<Vec<String>> = Vec::new();
    let mut labelled = 0;
    for line in &usage.lines {
        let (labels, values) = cells(line);
        if rows.is_empty() {
            labelled = labels.len();
            let names = labels.iter().map(|(name, _)| (*name).to_owned());
            rows.push(
                names
                    .chain(shown.iter().map(|name| heading(name)))
                    .collect(),
            );
        }
        rows.push(row(labels, values, &shown));
    }
    let mut text = format!("{} to {} ({})\n", usage.from, usage.to, usage.time_zone);
    if let Some(known) = usage
        .known_since
        .as_ref()
        .filter(|known| **known > usage.from)
    {
        writeln!(text, "The ledger knows of nothing before {known}.")?;
    }
    if rows.is_empty() {
        writeln!(text, "Nothing was used.")?;
        return Ok(text);
    }
    if labelled > 0 {
        let mut labels = vec![("", "total".to_owned())];
        labels.resize(labelled, ("", String::new()));
        rows.push(row(labels, total, &shown));
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..rows[0].len()).map(|c| width(c).unwrap_or(0)).collect();
    for row in &rows {
        let mut line = String::new();
        for (column, value) in row.iter().enumerate() {
            let width = widths[column];
            match column < labelled {
                true => write!(line, "{value:<width$}  ")?,
                false => write!(line, "{value:>width$}  ")?,
            }
        }
        writeln!(text, "{}", line.trim_end())?;
    }
    Ok(text)
}

fn heading(name: &str) -> String {
    name.replace("_usd", " USD").replace('_', " ")
}

fn row(labels: Cells, values: Cells, shown: &[&str]) -> Vec<String> {
    let values = values.into_iter().filter(|(name, _)| shown.contains(name));
    let trimmed = values.map(|(name, value)| match name.ends_with("_usd") {
        // Cents at least, and no zeros beyond them.
        true => {
            let (whole, part) = value.split_once('.').unwrap_or((&value, ""));
            let part = part.trim_end_matches('0');
            format!("{whole}.{part:0<2}")
        }
        false => value,
    });
    labels
        .into_iter()
        .map(|(_, value)| value)
        .chain(trimmed)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage() -> UsageReport {
        let line = |key: &str, remote, cost_usd| UsageLine {
            key: Some(key.to_owned()),
            local: 3,
            remote,
            prompt_tokens: 40,
            cost_usd,
            saved_usd: 0.5,
            ..UsageLine::default()
        };
        UsageReport {
            from: "2026-01-01".to_owned(),
            to: "2026-01-31".to_owned(),
            time_zone: "UTC".to_owned(),
            known_since: Some("2026-01-20".to_owned()),
            lines: vec![line("alice", 12, 1.000_000_001), line("=bob,\"x\"", 0, 0.0)],
            total: UsageLine {
                key: None,
                local: 6,
                ..line("", 12, 1.000_000_001)
            },
            budgets: Vec::new(),
        }
    }

    #[test]
    fn a_table_shows_what_there_is_and_every_nano_dollar() {
        assert_eq!(
            table(&usage()).as_deref(),
            Ok("2026-01-01 to 2026-01-31 (UTC)\n\
                The ledger knows of nothing before 2026-01-20.\n\
                key       local  remote  prompt tokens     cost USD  saved USD\n\
                alice         3      12             40  1.000000001       0.50\n\
                =bob,\"x\"      3       0             40         0.00       0.50\n\
                total         6      12             40  1.000000001       0.50\n")
        );
        let nothing = UsageReport {
            lines: Vec::new(),
            total: UsageLine::default(),
            known_since: None,
            ..usage()
        };
        let text = table(&nothing).expect("words");
        assert!(text.ends_with("Nothing was used.\n"), "{text}");
    }

    #[test]
    fn values_are_quoted_for_spreadsheets_and_never_formulas() {
        let text = csv(&usage()).expect("words");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("key,local,remote,failed,attempts,prompt_tokens,"));
        assert!(lines[1].starts_with("alice,3,12,0,0,40,"), "{}", lines[1]);
        assert!(lines[1].ends_with(",1.000000001,0.000000000,0.000000000,0.500000000"));
        assert!(
            lines[2].starts_with("\"'=bob,\"\"x\"\"\",3,0,"),
            "{}",
            lines[2]
        );
    }
}
