//! Models by their name: downloads with every fault, the cache they end in, and bundles.

mod bundles;
mod cut_off;
mod downloads;
mod offline;
mod refusals;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::support::hub::{COMMIT, Files};

/// What a command printed, standard output first.
fn printed(output: &Output) -> String {
    let text = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8(text).expect("text")
}

/// What a command that went well printed.
#[track_caller]
fn done(output: &Output) -> String {
    let text = printed(output);
    assert!(output.status.success(), "{text}");
    text
}

/// What a command that failed said in its last line.
#[track_caller]
fn failed(output: &Output) -> String {
    let text = printed(output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    let error = text.lines().find(|line| line.starts_with("error: "));
    error
        .unwrap_or_else(|| panic!("no error in {text}"))
        .to_owned()
}

/// The folder of a repository's files.
fn snapshot(home: &Path, repo: &str) -> PathBuf {
    home.join("hub")
        .join(format!("models--{}", repo.replace('/', "--")))
        .join("snapshots")
        .join(COMMIT)
}

/// Asserts that what is visible of a repository is right, and returns its files' names.
#[track_caller]
fn assert_sound(home: &Path, repo: &str, files: &Files) -> Vec<String> {
    let root = snapshot(home, repo);
    let mut names = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path
                .strip_prefix(&root)
                .expect("below")
                .display()
                .to_string();
            assert!(
                fs::read(&path).expect("a readable file") == files[&name],
                "{name} is not what the hub has"
            );
            names.push(name);
        }
    }
    names.sort();
    names
}
