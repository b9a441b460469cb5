//! Bundles: a model carried from one cache to another in one file, or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{assert_sound, done, failed};
use crate::support::hub::{Hub, model_files, noise};
use crate::support::server::Sconce;

/// A bundle of `org/tiny`, with the cache it was made from.
fn bundled() -> (Hub, TempDir, PathBuf) {
    let (hub, home) = (Hub::tiny(), TempDir::new().expect("a folder"));
    done(&hub.sconce(home.path()).words(&["org/tiny"]).run("pull"));
    let file = home.path().join("tiny.bundle");
    let text = done(
        &offline(home.path())
            .words(&[
                "export",
                "org/tiny",
                "--output",
                &file.display().to_string(),
            ])
            .run("bundle"),
    );
    assert!(
        text.contains("org/tiny packed: commit 0123456789ab, 6 files, "),
        "{text}"
    );
    (hub, home, file)
}

fn offline(home: &Path) -> Sconce {
    Sconce::new()
        .env("HF_HOME", &home.display().to_string())
        .env("HF_HUB_OFFLINE", "1")
}

fn import(home: &Path, file: &Path) -> Sconce {
    offline(home).words(&["import", &file.display().to_string()])
}

#[test]
fn a_bundle_carries_a_model_to_a_machine_without_a_network() {
    let (_hub, _home, file) = bundled();
    let other = TempDir::new().expect("a folder");
    let text = done(&import(other.path(), &file).run("bundle"));
    assert!(text.contains("org/tiny imported: "), "{text}");
    assert_eq!(
        assert_sound(other.path(), "org/tiny", &model_files("llama-tied")).len(),
        6
    );
    offline(other.path())
        .flag("--model-id", "org/tiny")
        .serve()
        .generate("hello", serde_json::json!({"max_new_tokens": 2}));
    // Again, over what is there.
    done(&import(other.path(), &file).run("bundle"));
    assert_eq!(
        assert_sound(other.path(), "org/tiny", &model_files("llama-tied")).len(),
        6
    );
    // Any tool for archives reads it.
    let listing = std::process::Command::new("tar")
        .arg("tf")
        .arg(&file)
        .output()
        .expect("tar is there");
    let listing = String::from_utf8(listing.stdout).expect("text");
    assert!(
        listing.starts_with("sconce-bundle.json\nsconce-bundle.sha256\nblobs/"),
        "{listing}"
    );
}

#[test]
fn a_damaged_bundle_is_refused_before_anything_is_written() {
    let (_hub, home, file) = bundled();
    let sound = fs::read(&file).expect("the bundle");
    let broken = home.path().join("broken.bundle");
    let mut tries: Vec<Vec<u8>> = (0..48)
        .map(|seed| {
            let mut bytes = sound.clone();
            let at = u64::from_le_bytes(noise(seed + 1, 8).try_into().expect("eight bytes"))
                as usize
                % bytes.len();
            bytes[at] ^= 0x40;
            bytes
        })
        .collect();
    tries.extend([0, 1, 511, 512, 2000, sound.len() / 2].map(|length| sound[..length].to_vec()));
    let mut refused = 0;
    for bytes in &tries {
        fs::write(&broken, bytes).expect("a file");
        let other = TempDir::new().expect("a folder");
        let output = import(other.path(), &broken).run("bundle");
        if output.status.success() {
            // A change in the padding between parts, or in a date, damages nothing.
            assert_eq!(
                assert_sound(other.path(), "org/tiny", &model_files("llama-tied")).len(),
                6
            );
            continue;
        }
        refused += 1;
        let text = failed(&output);
        assert!(
            text.contains("broken.bundle: ") && text.ends_with("; nothing was imported"),
            "{text}"
        );
        assert!(
            !other.path().join("hub").exists(),
            "something was written: {text}"
        );
    }
    assert!(
        refused > 40,
        "only {refused} of {} were refused",
        tries.len()
    );
}

#[test]
fn a_damaged_cache_is_not_bundled_and_no_half_bundle_is_left() {
    let (_hub, home, file) = bundled();
    let weights =
        fs::canonicalize(super::snapshot(home.path(), "org/tiny").join("model.safetensors"))
            .expect("a blob");
    let mut bytes = fs::read(&weights).expect("weights");
    bytes[1000] ^= 1;
    fs::write(&weights, bytes).expect("a blob");
    fs::remove_file(&file).expect("removed");
    let export = |model: &str| {
        offline(home.path())
            .words(&["export", model, "--output", &file.display().to_string()])
            .run("bundle")
    };
    let text = failed(&export("org/tiny"));
    assert!(
        text.contains("model.safetensors is damaged (its SHA-256 is ")
            && text.contains("`sconce rm org/tiny`"),
        "{text}"
    );
    let text = failed(&export("org/other"));
    assert!(
        text.contains("`sconce pull org/other` fetches it"),
        "{text}"
    );
    let left: Vec<_> = fs::read_dir(home.path())
        .expect("a folder")
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(left, ["hub"]);
}

#[test]
fn what_a_bundle_says_cannot_lead_out_of_the_cache() {
    use sha2::{Digest, Sha256};

    let (_hub, home, file) = bundled();
    let sound = fs::read(&file).expect("the bundle");
    let text = String::from_utf8_lossy(&sound[512..]).into_owned();
    let text = &text[..text.find("\0").expect("padding")];
    let evil = home.path().join("evil.bundle");
    for (from, to) in [
        ("\"path\": \"config.json\"", "\"path\": \"../config.jso\""),
        ("\"repo\": \"org/tiny\"", "\"repo\": \"../.tiny\""),
        (
            "\"refs\": [\n        \"main\"",
            "\"refs\": [\n        \"../m\"",
        ),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        let mut archive = tar::Builder::new(Vec::new());
        let digest: String = Sha256::digest(&changed)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        for (name, body) in [
            ("sconce-bundle.json", changed.as_bytes()),
            ("sconce-bundle.sha256", format!("{digest}\n").as_bytes()),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(body.len() as u64);
            archive
                .append_data(&mut header, name, body)
                .expect("written");
        }
        fs::write(&evil, archive.into_inner().expect("an archive")).expect("a file");
        let text = failed(&import(home.path(), &evil).run("bundle"));
        assert!(text.contains("cannot be followed"), "{text}");
    }
}
