//! `sconce list`: which models are here, how large they are, what they need and when they were last used.

use std::error::Error;
use std::io::Write;
use std::time::SystemTime;

use clap::Args;
use serde::Serialize;

use super::HubArgs;
use crate::hub::catalogue::{self, CONTEXT};
use crate::hub::{Cache, CachedModel, Servable, size};
use crate::model::Checkpoint;

/// Flags of `sconce list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// The catalogue instead: small models that are known to be served well
    #[arg(long)]
    available: bool,

    /// One JSON object a line, for scripts
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    hub: HubArgs,
}

/// One line.
#[derive(Debug, Serialize)]
struct Row {
    model: String,
    revision: String,
    commit: String,
    /// `safetensors` or `gguf`; nothing while weights are missing.
    format: Option<&'static str>,
    /// The type of most weights.
    quantisation: Option<String>,
    size_bytes: u64,
    /// Weights, and a KV cache of 4,096 tokens or the model's context.
    memory_bytes: Option<u64>,
    /// Seconds since 1970.
    last_used: Option<u64>,
    /// Why it cannot be served, if it cannot.
    problem: Option<String>,
}

/// Prints a line for each model.
///
/// Errors: the cache cannot be read.
pub fn run(args: &ListArgs) -> Result<(), Box<dyn Error>> {
    if args.available {
        return available(args.json);
    }
    let cache = Cache::new(&args.hub.settings()?)?;
    let rows: Vec<Row> = cache.models()?.iter().flat_map(rows).collect();
    let mut out = std::io::stdout().lock();
    if args.json {
        for row in &rows {
            writeln!(out, "{}", serde_json::to_string(row)?)?;
        }
        return Ok(());
    }
    if rows.is_empty() {
        writeln!(
            out,
            "no models in {}; `sconce pull org/name` fetches one",
            cache.root().display()
        )?;
        return Ok(());
    }
    let head = [
        "MODEL",
        "REVISION",
        "FORMAT",
        "QUANTISATION",
        "SIZE",
        "MEMORY",
        "LAST USED",
    ];
    for (at, line) in table(head, rows.iter().map(cells)).iter().enumerate() {
        writeln!(out, "{line}")?;
        if let Some(problem) = at.checked_sub(1).and_then(|at| rows[at].problem.as_ref()) {
            writeln!(out, "  cannot be served: {problem}")?;
        }
    }
    Ok(())
}

/// What a card comes to in one variant.
#[derive(Debug, Serialize)]
struct Offer<'a> {
    name: &'a str,
    title: &'a str,
    quantisation: &'a str,
    model: &'a str,
    weight_bytes: u64,
    memory_bytes: u64,
    context: u64,
    license: &'a str,
    remote: Option<&'a str>,
    notes: &'a str,
}

/// Prints the catalogue. A card's name stands for its first variant.
fn available(json: bool) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    let variants = catalogue::cards()
        .iter()
        .flat_map(|card| card.variants.iter().map(move |variant| (card, variant)));
    let offers = variants.map(|(card, variant)| Offer {
        name: card.name,
        title: &card.title,
        quantisation: &variant.quantisation,
        model: &variant.model,
        weight_bytes: variant.weight_bytes,
        memory_bytes: card.memory_bytes(variant),
        context: card.context,
        license: &card.license,
        remote: card.remote.as_deref(),
        notes: &card.notes,
    });
    let offers: Vec<Offer<'_>> = offers.collect();
    if json {
        for offer in &offers {
            writeln!(out, "{}", serde_json::to_string(offer)?)?;
        }
        return Ok(());
    }
    let mut known = "";
    let lines = offers.iter().map(|offer| {
        let first = offer.name != known;
        known = offer.name;
        let once = |text: &str| {
            if first {
                text.to_owned()
            } else {
                String::new()
            }
        };
        [
            once(offer.name),
            offer.quantisation.to_owned(),
            size(offer.weight_bytes),
            size(offer.memory_bytes),
            once(&offer.context.to_string()),
            once(offer.license),
            offer.model.to_owned(),
        ]
    });
    for line in table(
        [
            "NAME",
            "QUANTISATION",
            "SIZE",
            "MEMORY",
            "CONTEXT",
            "LICENCE",
            "MODEL",
        ],
        lines,
    ) {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// Lines whose columns stand below each other.
fn table<const N: usize>(head: [&str; N], lines: impl Iterator<Item = [String; N]>) -> Vec<String> {
    let lines: Vec<[String; N]> = std::iter::once(head.map(str::to_owned))
        .chain(lines)
        .collect();
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let row = |line: &[String; N]| {
        let cells = line
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines.iter().map(row).collect()
}

fn rows(model: &CachedModel) -> Vec<Row> {
    let servable = model.servable();
    let row = |name: String, bytes: u64| Row {
        model: name,
        revision: if model.refs.is_empty() {
            short(&model.commit).to_owned()
        } else {
            model.refs.join(", ")
        },
        commit: model.commit.clone(),
        format: None,
        quantisation: None,
        size_bytes: bytes,
        memory_bytes: None,
        last_used: model
            .last_used()
            .and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok())
            .map(|since| since.as_secs()),
        problem: None,
    };
    if servable.is_empty() {
        let problem =
            "its files are not complete; `sconce pull` fetches what is missing".to_owned();
        return vec![Row {
            problem: Some(problem),
            ..row(model.repo.clone(), model.size())
        }];
    }
    let described = servable
        .iter()
        .map(|servable| describe(servable, row(servable.name.to_string(), servable.size)));
    let rows = described.collect();
    model.forget_looking();
    rows
}

/// Adds what the files' heads say; weights are not read.
fn describe(servable: &Servable, row: Row) -> Row {
    let format = Some(if servable.path.is_dir() {
        "safetensors"
    } else {
        "gguf"
    });
    match Checkpoint::open(&servable.path, None) {
        Ok(checkpoint) => {
            let spec = checkpoint.spec();
            let cache = spec.kv_bytes_per_token() * spec.max_positions.min(CONTEXT as usize);
            Row {
                format,
                quantisation: checkpoint.main_format().map(|format| format.to_string()),
                memory_bytes: Some((checkpoint.size_bytes() + cache) as u64),
                ..row
            }
        }
        Err(error) => Row {
            format,
            problem: Some(error.to_string()),
            ..row
        },
    }
}

fn cells(row: &Row) -> [String; 7] {
    let dash = || "-".to_owned();
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |now| now.as_secs());
    [
        row.model.clone(),
        row.revision.clone(),
        row.format.map_or_else(dash, str::to_owned),
        row.quantisation.clone().unwrap_or_else(dash),
        size(row.size_bytes),
        row.memory_bytes.map_or_else(dash, size),
        row.last_used
            .map_or_else(dash, |then| ago(now.saturating_sub(then))),
    ]
}

fn ago(seconds: u64) -> String {
    let units = [(86_400, "day"), (3600, "hour"), (60, "minute")];
    let unit = units.iter().find(|(length, _)| seconds >= *length);
    unit.map_or("just now".to_owned(), |(length, name)| {
        let count = seconds / length;
        format!("{count} {name}{} ago", if count == 1 { "" } else { "s" })
    })
}

fn short(commit: &str) -> &str {
    commit.get(..12).unwrap_or(commit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_said_in_their_largest_unit() {
        for (seconds, text) in [
            (0, "just now"),
            (59, "just now"),
            (60, "1 minute ago"),
            (7200, "2 hours ago"),
            (90_000, "1 day ago"),
        ] {
            assert_eq!(ago(seconds), text);
        }
    }
}
