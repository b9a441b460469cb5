//! Frozen bodies, compared byte for byte; `UPDATE_GOLDEN=1` writes them anew.
//!
//! Two things vary between machines and runs and are treated by rule, nothing else is:
//! numbers after `"logprob":` may differ by [`TOLERANCE`], because instruction sets round differently,
//! yet must be written as the shortest text of a 32-bit float; what a test masks by [`mask`] (seeds,
//! dates) is replaced by a word before it is written or compared.

use std::fs;
use std::path::Path;

const TOLERANCE: f32 = 1e-3;
const LOGPROB: &str = "\"logprob\":";

/// Compares a body with the frozen one of this name.
#[track_caller]
pub fn check(name: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/golden")
        .join(name);
    let (text, numbers) = split(actual);
    if std::env::var_os("UPDATE_GOLDEN").is_some_and(|value| value == "1") {
        fs::write(&path, actual).expect("a writable golden folder");
        return;
    }
    let frozen = fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{}: {e}; UPDATE_GOLDEN=1 writes it", path.display()));
    let (frozen_text, frozen_numbers) = split(&frozen);
    assert_eq!(text, frozen_text, "{name}");
    for (i, (a, b)) in numbers.iter().zip(&frozen_numbers).enumerate() {
        assert!(
            (a - b).abs() <= TOLERANCE,
            "{name}: log-probability {i} is {a}, frozen {b}"
        );
    }
}

/// Replaces what follows each `"key":` up to the next comma or brace by `*`; `null` stays.
pub fn mask(body: &str, key: &str) -> String {
    let mark = format!("\"{key}\":");
    let mut parts = body.split(&mark);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find([',', '}']).unwrap_or(part.len());
        let value = if &part[..end] == "null" { "null" } else { "*" };
        out += &mark;
        out += value;
        out += &part[end..];
    }
    out
}

/// The text with each log-probability replaced by `#`, and the numbers; null stays in the text.
#[track_caller]
fn split(body: &str) -> (String, Vec<f32>) {
    let mut parts = body.split(LOGPROB);
    let mut text = parts.next().unwrap_or_default().to_owned();
    let mut numbers = Vec::new();
    for part in parts {
        let end = part.find([',', '}']).unwrap_or(part.len());
        text += LOGPROB;
        if &part[..end] == "null" {
            text += part;
            continue;
        }
        let number: f32 = part[..end].parse().expect("a number");
        let shortest = serde_json::to_string(&number).expect("a finite number");
        assert_eq!(
            part[..end],
            shortest,
            "not the shortest text of a 32-bit float"
        );
        assert!(number <= 0.0, "{number} is no log-probability");
        numbers.push(number);
        text.push('#');
        text += &part[end..];
    }
    (text, numbers)
}

#[test]
fn masks_and_log_probabilities_are_found() {
    assert_eq!(
        mask(r#"{"seed":12,"a":{"seed":null}}"#, "seed"),
        r#"{"seed":*,"a":{"seed":null}}"#
    );
    let (text, numbers) = split(r#"[{"logprob":-0.5},{"logprob":null,"x":1}]"#);
    assert_eq!(text, r#"[{"logprob":#},{"logprob":null,"x":1}]"#);
    assert_eq!(numbers, [-0.5]);
}
