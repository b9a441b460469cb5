//! Models for servers under test: the frozen tiny ones, and copies of them with something changed.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use tempfile::TempDir;

use super::engine::{case, golden};

/// A model in a folder of its own, gone when dropped.
pub struct Copy {
    folder: TempDir,
}

impl Copy {
    /// Copies a frozen case, or nothing for an empty name.
    pub fn of(name: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        if !name.is_empty() {
            for entry in fs::read_dir(golden().join(name)).expect("a frozen case") {
                let from = entry.expect("a readable entry").path();
                let to = folder.path().join(from.file_name().expect("a file's name"));
                fs::copy(&from, to).expect("a copy");
            }
        }
        Self { folder }
    }

    /// A folder model that never ends by itself and has room for long answers.
    pub fn endless() -> Self {
        let copy = Self::of("llama-tied");
        // An id outside the vocabulary is never chosen.
        for name in ["config.json", "generation_config.json"] {
            copy.edit_json(name, |json| json["eos_token_id"] = 999_999.into());
        }
        copy.edit_json("config.json", |json| {
            json["max_position_embeddings"] = 131_072.into()
        });
        copy
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Changes a JSON file of the folder.
    pub fn edit_json(&self, name: &str, edit: impl FnOnce(&mut Json)) {
        let path = self.file(name);
        let text = fs::read_to_string(&path).expect("a file of the model");
        let mut json: Json = serde_json::from_str(&text).expect("sound JSON");
        edit(&mut json);
        fs::write(path, json.to_string()).expect("a writable copy");
    }

    /// Changes the header of a safetensors file of the folder; its data stays.
    pub fn edit_tensors(&self, name: &str, edit: impl FnOnce(&mut Json)) {
        let path = self.file(name);
        let bytes = fs::read(&path).expect("a file of the model");
        let (length, rest) = bytes.split_at(8);
        let length = u64::from_le_bytes(length.try_into().expect("eight bytes")) as usize;
        let mut header: Json = serde_json::from_slice(&rest[..length]).expect("a sound header");
        edit(&mut header);
        let mut text = header.to_string();
        while !text.len().is_multiple_of(8) {
            text.push(' ');
        }
        let mut out = (text.len() as u64).to_le_bytes().to_vec();
        out.extend(text.as_bytes());
        out.extend(&rest[length..]);
        fs::write(path, out).expect("a writable copy");
    }

    /// Makes every number of one row of a tensor of `model.safetensors` none.
    pub fn poison(&self, tensor: &str, row: usize) {
        let path = self.file("model.safetensors");
        let mut bytes = fs::read(&path).expect("a file of the model");
        let length = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
        let header: Json = serde_json::from_slice(&bytes[8..8 + length]).expect("a sound header");
        let place =
            |key: &str, i: usize| header[tensor][key][i].as_u64().expect("a number") as usize;
        let (begin, end) = (place("data_offsets", 0), place("data_offsets", 1));
        let width = (end - begin) / place("shape", 0);
        let at = 8 + length + begin + row * width;
        // All bits set is no number in any type of floats.
        bytes[at..at + width].fill(0xFF);
        fs::write(path, bytes).expect("a writable copy");
    }

    /// Cuts a file of the folder.
    pub fn truncate(&self, name: &str, length: usize) {
        let path = self.file(name);
        let bytes = fs::read(&path).expect("a file of the model");
        fs::write(path, &bytes[..length]).expect("a writable copy");
    }
}

/// A frozen case as `--model-id` takes it.
pub fn model_id(name: &str) -> String {
    case(name).display().to_string()
}

/// The expectations of a frozen case.
pub fn expected(name: &str) -> Json {
    let text =
        fs::read_to_string(golden().join(name).join("expected.json")).expect("a frozen case");
    serde_json::from_str(&text).expect("sound JSON")
}
