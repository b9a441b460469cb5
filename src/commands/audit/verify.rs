//! `sconce audit verify`: reads a log from end to end, says what it holds, or where it is broken.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;

use crate::audit::{Key, Report, verify};

/// Flags of `sconce audit verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// The log, or files of one log, oldest first; full files that one carries on from are found beside it
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,

    /// A file with a text: was it sent?
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,

    /// The log's key [default: the log's name with `.key` after it]
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

/// Checks the chain, and prints what it holds.
pub(super) fn run(args: &VerifyArgs) -> Result<(), Box<dyn Error>> {
    let VerifyArgs { files, text, key } = args;
    let log = files.last().ok_or("name a file")?;
    let key = match key {
        Some(path) => Some(Key::read(path)?),
        None => Key::beside(log)?,
    };
    let mut wanted = BTreeSet::new();
    if let Some(path) = text {
        let Some(key) = &key else {
            return Err(
                "fingerprints can be compared only with the log's key; name it with --key".into(),
            );
        };
        let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        // Editors end a file with a line break that was not in the text.
        wanted.extend([&text, text.trim_end_matches(['\r', '\n'])].map(|text| key.of_text(text)));
    }
    let report = verify(files, key.as_ref(), &wanted)?;
    let said = said(&report, text.is_some())?;
    Ok(std::io::stdout().write_all(said.as_bytes())?)
}

/// The report in words.
fn said(report: &Report, asked: bool) -> Result<String, std::fmt::Error> {
    let Report {
        files,
        lines,
        first,
        last,
        end,
        begins_after,
        sealed,
        found,
    } = report;
    let mut text = String::new();
    for file in files {
        writeln!(text, "{}", file.display())?;
    }
    let word = if *lines == 1 { "line" } else { "lines" };
    write!(text, "{lines} {word}")?;
    if let (Some(first), Some(last)) = (first, last) {
        write!(text, " from {first} to {last}")?;
    }
    writeln!(text, "; the chain is whole.")?;
    if let Some(before) = begins_after {
        writeln!(text, "It begins after {before}, which is no longer there.")?;
    }
    if !sealed {
        writeln!(
            text,
            "The log's key is not there: whoever can write the file could have made the whole chain anew."
        )?;
    }
    if let Some((seq, hash)) = end {
        writeln!(
            text,
            "It ends with line {seq} of the chain, SHA-256 {hash}."
        )?;
    }
    if asked && found.is_empty() {
        writeln!(text, "No line says that the text was sent.")?;
    }
    for sent in found {
        let (ts, request, host, model) = (&sent.ts, &sent.request, &sent.host, &sent.model);
        writeln!(
            text,
            "The text was let out at {ts}: request {request}, to {host}, model {model}."
        )?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::Found;

    #[test]
    fn the_report_says_what_was_found_and_what_was_not_looked_at() {
        let mut report = Report {
            files: vec!["audit.jsonl".into()],
            lines: 2,
            first: Some("2026-01-01T00:00:00.000Z".to_owned()),
            last: Some("2026-01-02T00:00:00.000Z".to_owned()),
            end: Some((7, "ab".to_owned())),
            begins_after: Some("audit.jsonl.5".to_owned()),
            sealed: false,
            found: Vec::new(),
        };
        assert_eq!(
            said(&report, true).as_deref(),
            Ok("audit.jsonl\n\
                2 lines from 2026-01-01T00:00:00.000Z to 2026-01-02T00:00:00.000Z; the chain is whole.\n\
                It begins after audit.jsonl.5, which is no longer there.\n\
                The log's key is not there: whoever can write the file could have made the whole chain anew.\n\
                It ends with line 7 of the chain, SHA-256 ab.\n\
                No line says that the text was sent.\n")
        );
        report.begins_after = None;
        report.sealed = true;
        report.found.push(Found {
            ts: "2026-01-01T00:00:00.000Z".to_owned(),
            request: "r1".to_owned(),
            host: "h:443".to_owned(),
            model: "m".to_owned(),
        });
        let text = said(&report, true).expect("words");
        assert!(text.ends_with(
            "The text was let out at 2026-01-01T00:00:00.000Z: request r1, to h:443, model m.\n"
        ));
    }
}
