//! The law of the house: who may import whom, read from the sources themselves.
//!
//! Each rule is an absence. A failure prints the file, the line's module and the reason of the rule.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Floor, and the floors it may use beside itself.
const MAY_USE: &[(&str, &[&str])] = &[
    ("generation", &[]),
    ("wire", &[]),
    ("telemetry", &[]),
    ("text", &["generation"]),
    ("guided", &["generation", "text"]),
    ("kernel", &["telemetry"]),
    ("model", &["kernel", "generation", "telemetry"]),
    ("engine", &["model", "guided", "generation", "telemetry"]),
    ("audit", &["telemetry"]),
    ("ledger", &["generation", "telemetry"]),
    ("egress", &["audit", "generation", "ledger", "telemetry"]),
    ("hub", &["telemetry"]),
    ("route", &["generation"]),
    ("remote", &["egress", "wire", "generation", "telemetry"]),
    (
        "dispatch",
        &[
            "egress",
            "engine",
            "generation",
            "guided",
            "ledger",
            "remote",
            "route",
            "telemetry",
            "text",
        ],
    ),
    (
        "api",
        &["dispatch", "ledger", "wire", "generation", "telemetry"],
    ),
    (
        "config",
        &[
            "api",
            "audit",
            "dispatch",
            "egress",
            "engine",
            "generation",
            "hub",
            "ledger",
            "model",
            "remote",
            "route",
            "telemetry",
        ],
    ),
    (
        "app",
        &[
            "api",
            "audit",
            "config",
            "dispatch",
            "egress",
            "engine",
            "generation",
            "hub",
            "ledger",
            "model",
            "remote",
            "route",
            "telemetry",
            "text",
            "wire",
        ],
    ),
    (
        "commands",
        &[
            "api",
            "audit",
            "config",
            "egress",
            "generation",
            "hub",
            "ledger",
            "model",
            "remote",
            "route",
            "telemetry",
            "wire",
        ],
    ),
    ("cli", &["app", "commands", "config", "telemetry"]),
];

/// Crate, the places that may name it, and why nobody else may.
const CRATES: &[(&str, &[&str], &str)] = &[
    (
        "candle_core",
        &["model/", "kernel/"],
        "tensors live in the cellar only",
    ),
    ("axum", &["api/", "app/"], "HTTP lives at the door only"),
    (
        "hyper",
        &["app/server.rs", "remote/client"],
        "connections are the roof's business, and that of whoever sends",
    ),
    (
        "llguidance",
        // Where grammars are written, tests compile them.
        &["guided/", "text/tool_calls/tests/"],
        "grammars become masks in one place",
    ),
    (
        "tokio_rustls",
        &["app/", "main.rs", "remote/client"],
        "encryption is the roof's business",
    ),
    (
        "toml_edit",
        &["commands/"],
        "settings are read by serde and edited by commands",
    ),
    ("tokenizers", &["text/"], "text becomes tokens in one place"),
    (
        "minijinja",
        &["text/"],
        "templates are rendered in one place",
    ),
    (
        "minijinja_contrib",
        &["text/"],
        "templates are rendered in one place",
    ),
    (
        "chrono",
        &[
            "text/",
            "dispatch/",
            "api/",
            "app/",
            "audit/",
            "commands/",
            "config/",
            "egress/",
            "ledger/",
            "remote/",
        ],
        "calendars are for templates, for keys that expire and for days that are counted",
    ),
    (
        "utoipa",
        &["wire/", "api/"],
        "bodies know their schemas, and the door describes its routes",
    ),
    (
        "utoipa_swagger_ui",
        &["api/docs.rs"],
        "the page is served in one place",
    ),
    ("xet", &["hub/client.rs"], "storages are read in one place"),
    (
        "hf_hub",
        &["hub/client.rs"],
        "the hub is asked in one place",
    ),
    (
        "prometheus",
        &["telemetry/"],
        "every metric stands in one file",
    ),
    (
        "sqlx",
        &["ledger/"],
        "what is kept of requests is kept in one place",
    ),
    (
        "reqwest",
        &["remote/client", "hub/client.rs", "commands/"],
        "what leaves this machine leaves through one file",
    ),
    (
        "tokio",
        &[
            "audit/",
            "egress/",
            "ledger/",
            "remote/",
            "hub/",
            "commands/",
            "api/",
            "app/",
            "dispatch/",
            "engine/handle.rs",
            "engine/mod.rs",
        ],
        "the engine's thread never meets async code",
    ),
];

fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a readable folder") {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                walk(&path, files);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                files.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    files.sort();
    let name = |path: &Path| {
        path.strip_prefix(&root)
            .expect("under src")
            .display()
            .to_string()
    };
    files
        .iter()
        .map(|path| (name(path), fs::read_to_string(path).expect("UTF-8 text")))
        .collect()
}

/// The code without comments, so that prose may name what it likes.
fn code(source: &str) -> String {
    source
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default())
        .collect::<Vec<_>>()
        .join("\n")
}

/// The floor a file belongs to.
fn floor(file: &str) -> &str {
    file.split('/')
        .next()
        .unwrap_or(file)
        .trim_end_matches(".rs")
}

/// Floors that a file names through `crate::`, alone or in braces.
fn uses(code: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        if let Some(inner) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut word = String::new();
            for c in inner.chars() {
                match c {
                    '}' if depth == 0 => break,
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    c if depth == 0 && is_word(c) => word.push(c),
                    ':' if !word.is_empty() => {
                        found.insert(std::mem::take(&mut word));
                    }
                    ',' => {
                        found.insert(std::mem::take(&mut word));
                    }
                    _ => {}
                }
            }
            found.insert(word);
        } else {
            found.insert(rest.chars().take_while(|&c| is_word(c)).collect());
        }
    }
    found.remove("");
    found
}

#[test]
fn imports_go_downward_only() {
    let floors: BTreeSet<&str> = MAY_USE.iter().map(|(name, _)| *name).collect();
    let mut broken = Vec::new();
    for (file, source) in sources() {
        let Some((name, allowed)) = MAY_USE.iter().find(|(name, _)| *name == floor(&file)) else {
            assert!(
                ["lib.rs", "main.rs"].contains(&file.as_str()),
                "{file} belongs to no floor"
            );
            continue;
        };
        for used in uses(&code(&source)) {
            let known = floors.contains(used.as_str());
            if known && used != *name && !allowed.contains(&used.as_str()) {
                broken.push(format!(
                    "{file} uses {used}: {name} may use {allowed:?} only"
                ));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn crates_are_named_where_they_belong_only() {
    let mut broken = Vec::new();
    for (file, source) in sources() {
        let code = code(&source);
        for (name, places, reason) in CRATES {
            let named = code.match_indices(name).any(|(at, _)| {
                let before = code[..at].chars().next_back();
                let after = code[at + name.len()..].chars().next();
                !before.is_some_and(|c| c.is_alphanumeric() || c == '_') && after == Some(':')
            });
            if named && !places.iter().any(|place| file.starts_with(place)) {
                broken.push(format!("{file} names {name}: {reason}"));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn unsafe_code_stands_in_kernels_and_the_weight_map_only() {
    for (file, source) in sources() {
        let allowed = file.starts_with("kernel/") || file == "model/weights.rs";
        let has = code(&source).contains("unsafe {") || code(&source).contains("unsafe fn");
        assert!(allowed || !has, "{file} holds unsafe code");
    }
}

#[test]
fn status_codes_are_chosen_in_one_file_and_read_where_upstreams_answer() {
    for (file, source) in sources() {
        let code = code(&source);
        let allowed =
            file == "api/error.rs" || file == "hub/client.rs" || file.starts_with("remote/");
        assert!(
            allowed || !code.contains("StatusCode"),
            "{file} names a status code"
        );
    }
}

#[test]
fn every_file_opens_with_what_it_is() {
    for (file, source) in sources() {
        assert!(source.starts_with("//! "), "{file} has no header");
    }
}

#[test]
fn the_reader_of_imports_sees_every_form() {
    let code = "use crate::a::B;\nuse crate::{c, d::{E, F}, g};\nfn x() { crate::h::y() }";
    let expected: BTreeSet<String> = ["a", "c", "d", "g", "h"].map(str::to_owned).into();
    assert_eq!(uses(code), expected);
}
