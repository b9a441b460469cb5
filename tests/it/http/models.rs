//! Models with something wrong in them: one sentence that names the file and the field, and exit code 1.

use std::fs;

use serde_json::json;

use crate::support::models::{Copy, model_id};
use crate::support::server::Sconce;

/// Asserts that `check` and `serve` refuse a model in one line that holds all of `words`.
#[track_caller]
fn assert_refused(model_id: &str, words: &[&str]) {
    for command in ["check", "serve"] {
        let output = Sconce::new()
            .flag("--model-id", model_id)
            .flag("--port", "0")
            .run(command);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{command}: {said}");
        assert!(
            said.starts_with("error: ") && said.trim_end().lines().count() == 1,
            "{command}: {said}"
        );
        for word in words {
            assert!(said.contains(word), "{command}: no {word:?} in {said}");
        }
    }
}

#[track_caller]
fn assert_copy_refused(copy: &Copy, words: &[&str]) {
    assert_refused(&copy.path().display().to_string(), words);
}

#[test]
fn sound_models_pass() {
    for case in [
        "llama-tied",
        "llama-bias",
        "qwen2",
        "qwen3",
        "llama-gguf-q4_0",
    ] {
        let output = Sconce::tiny(case).run("check");
        assert!(
            output.status.success(),
            "{case}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(String::from_utf8_lossy(&output.stdout).contains(&model_id(case)));
    }
    assert!(
        Sconce::new().run("check").status.success(),
        "the embedded model"
    );
}

#[test]
fn absent_and_empty_folders_are_named() {
    assert_refused("/no/such/model", &["/no/such/model"]);
    assert_refused("org/name-on-a-hub", &["no place to keep models", "HF_HOME"]);
    assert_copy_refused(&Copy::of(""), &["config.json"]);
}

#[test]
fn absent_files_are_named() {
    for name in ["config.json", "tokenizer.json"] {
        let copy = Copy::of("llama-tied");
        fs::remove_file(copy.file(name)).expect("a file of the model");
        assert_copy_refused(&copy, &[name]);
    }
    let copy = Copy::of("llama-tied");
    fs::remove_file(copy.file("model.safetensors")).expect("a file of the model");
    assert_copy_refused(&copy, &["model.safetensors"]);
}

#[test]
fn files_that_are_not_json_are_named() {
    for name in [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ] {
        let copy = Copy::of("llama-tied");
        fs::write(copy.file(name), "{ not json").expect("a writable copy");
        assert_copy_refused(&copy, &[name]);
    }
}

#[test]
fn truncated_safetensors_are_refused_at_any_length() {
    let whole = fs::metadata(Copy::of("llama-tied").file("model.safetensors"))
        .expect("a file")
        .len() as usize;
    for length in [0, 1, 7, 8, 9, 100, whole / 2, whole - 1] {
        let copy = Copy::of("llama-tied");
        copy.truncate("model.safetensors", length);
        assert_copy_refused(&copy, &["model.safetensors"]);
    }
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let copy = Copy::of("llama-bias");
    copy.edit_json("model.safetensors.index.json", |index| {
        let map = index["weight_map"].as_object_mut().expect("a map");
        map.retain(|_, file| file != "model-00003-of-00004.safetensors");
    });
    assert_copy_refused(&copy, &["tensor `model.layers.", "is missing"]);
    let name = "model.layers.1.mlp.up_proj.weight";
    let copy = Copy::of("llama-tied");
    copy.edit_tensors("model.safetensors", |header| {
        let tensor = header
            .as_object_mut()
            .and_then(|all| all.remove(name))
            .expect("a tensor");
        header["model.layers.1.mlp.side_proj.weight"] = tensor;
    });
    assert_copy_refused(&copy, &["model.layers.1.mlp."]);
    let copy = Copy::of("llama-tied");
    copy.edit_tensors("model.safetensors", |header| {
        header[name]["shape"]
            .as_array_mut()
            .expect("a shape")
            .reverse();
    });
    assert_copy_refused(&copy, &[name, "shape"]);
    let copy = Copy::of("llama-tied");
    copy.edit_tensors("model.safetensors", |header| {
        header[name]["dtype"] = "I32".into()
    });
    assert_copy_refused(&copy, &[name, "I32"]);
}

#[test]
fn configurations_that_ask_for_something_else_are_refused() {
    let cases = [
        ("model_type", json!("mamba"), "model_type"),
        ("model_type", json!(null), "model_type"),
        ("hidden_size", json!(null), "hidden_size"),
        ("hidden_size", json!("many"), "hidden_size"),
        ("hidden_size", json!(-1), "hidden_size"),
        ("num_attention_heads", json!(0), "head"),
        ("num_key_value_heads", json!(3), "head"),
        ("num_hidden_layers", json!(4), "model.layers.3."),
        ("num_hidden_layers", json!(1_000_000_000_000_u64), "layer"),
        ("vocab_size", json!(321), "embed_tokens"),
        (
            "max_position_embeddings",
            json!(0),
            "max_position_embeddings",
        ),
        ("hidden_act", json!("gelu"), "hidden_act"),
        (
            "rope_parameters",
            json!({"rope_type": "yarn", "rope_theta": 1.0}),
            "yarn",
        ),
    ];
    for (key, value, word) in cases {
        let copy = Copy::of("llama-tied");
        copy.edit_json("config.json", |config| config[key] = value.clone());
        assert_copy_refused(&copy, &[word]);
    }
}

#[test]
fn a_tokenizer_larger_than_the_embedding_is_refused() {
    let copy = Copy::of("llama-tied");
    copy.edit_json("tokenizer.json", |tokenizer| {
        let added = json!({"id": 320, "content": "<one more>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
        tokenizer["added_tokens"].as_array_mut().expect("added tokens").push(added);
    });
    assert_copy_refused(&copy, &["tokenizer", "321", "320"]);
}

#[test]
fn shards_that_an_index_names_must_be_there() {
    let copy = Copy::of("llama-bias");
    fs::remove_file(copy.file("model-00003-of-00004.safetensors")).expect("a shard");
    assert_copy_refused(&copy, &["model-00003-of-00004.safetensors"]);
    let copy = Copy::of("llama-bias");
    copy.edit_json("model.safetensors.index.json", |index| {
        index["weight_map"]["model.norm.weight"] = "../../etc/passwd".into();
    });
    assert_copy_refused(
        &copy,
        &["model.safetensors.index.json", "model.norm.weight"],
    );
    let copy = Copy::of("llama-bias");
    copy.edit_json("model.safetensors.index.json", |index| *index = json!({}));
    assert_copy_refused(&copy, &["model.safetensors.index.json", "weight_map"]);
}

#[test]
fn truncated_gguf_files_are_refused_at_any_length() {
    let copy = Copy::of("llama-gguf-q8_0");
    let whole = fs::read(copy.file("model.gguf")).expect("a file");
    let path = copy.file("model.gguf").display().to_string();
    let steps = (0..64)
        .map(|i| i * 3)
        .chain((0..40).map(|i| i * whole.len() / 40))
        .chain([whole.len() - 1]);
    for length in steps {
        fs::write(&path, &whole[..length]).expect("a writable copy");
        let output = Sconce::new().flag("--model-id", &path).run("check");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{length} bytes: {said}");
        assert!(
            said.starts_with("error: ") && said.contains("model.gguf"),
            "{length} bytes: {said}"
        );
        assert_eq!(said.trim_end().lines().count(), 1, "{length} bytes: {said}");
    }
}

#[test]
fn gguf_files_with_flipped_bytes_never_panic() {
    let copy = Copy::of("llama-gguf-q8_0");
    let whole = fs::read(copy.file("model.gguf")).expect("a file");
    let path = copy.file("model.gguf").display().to_string();
    for i in 0..96 {
        let mut broken = whole.clone();
        // The header holds every count and length; data may hold anything.
        let at = (i * 131) % 12_000;
        broken[at] ^= 0xff;
        fs::write(&path, &broken).expect("a writable copy");
        let output = Sconce::new().flag("--model-id", &path).run("check");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            matches!(output.status.code(), Some(0 | 1)),
            "byte {at}: {:?} {said}",
            output.status
        );
        assert!(!said.contains("panicked"), "byte {at}: {said}");
    }
}

#[test]
fn files_that_are_no_models_are_refused() {
    let copy = Copy::of("");
    for (name, bytes) in [
        ("garbage.gguf", &b"nothing like a model"[..]),
        ("empty.gguf", b""),
        ("model.bin", &[0xff; 4096]),
    ] {
        fs::write(copy.file(name), bytes).expect("a writable folder");
        assert_refused(&copy.file(name).display().to_string(), &[name]);
    }
}
