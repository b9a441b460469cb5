//! What a model's files say, before any of it runs.
//!
//! A checkpoint is opened from a folder, a GGUF file, bytes in the binary, or a named shape; it holds the
//! spec, the weights where they lie, and the raw material of the tokenizer. It interprets no text.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::gguf::Metadata;
use super::names::{Part, TensorNames};
use super::spec::ModelSpec;
use super::weights::Weights;
use super::{Format, ModelError, shapes};
use crate::generation::TokenId;

/// The float type weights are held in, as `--dtype` asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FloatType {
    /// 32 bits.
    Float32,
    /// IEEE half precision.
    Float16,
    /// The upper half of a float32.
    Bfloat16,
}

/// Where a checkpoint's tokenizer comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum TokenizerSource {
    /// `tokenizer.json`, and what stands beside it.
    Json {
        /// The bytes of `tokenizer.json`.
        tokenizer: Vec<u8>,
        /// The parsed `tokenizer_config.json`, or null.
        config: Json,
        /// The parsed `special_tokens_map.json`, or null.
        special_tokens: Json,
    },
    /// The metadata of a GGUF file.
    Gguf(Metadata),
    /// A shape without text: no tokenizer at all.
    None,
}

/// The Jinja texts that turn conversations into prompts, as a model's files hold them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChatTemplates {
    /// The one for every conversation.
    pub default: Option<String>,
    /// Those for some conversations, by name.
    pub named: Vec<(String, String)>,
}

impl ChatTemplates {
    /// Reads the `chat_template` of a configuration file: a text, a list of objects with `name` and `template`, or
    /// an object of texts by name. Anything else is no template.
    pub fn from_json(config: &Json) -> Self {
        let mut found = Self::default();
        let text = |value: &Json| value.as_str().map(str::to_owned);
        match config.get("chat_template") {
            Some(Json::String(template)) => found.default = Some(template.clone()),
            Some(Json::Array(entries)) => {
                for entry in entries {
                    if let (Some(name), Some(template)) =
                        (entry["name"].as_str(), text(&entry["template"]))
                    {
                        found.add(name, template);
                    }
                }
            }
            Some(Json::Object(entries)) => {
                for (name, template) in entries {
                    if let Some(template) = text(template) {
                        found.add(name, template);
                    }
                }
            }
            _ => {}
        }
        found
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.default.is_none() && self.named.is_empty()
    }

    /// Adds a template, unless there is one of the name already.
    fn add(&mut self, name: &str, template: String) {
        if name == "default" {
            self.default.get_or_insert(template);
        } else if !self.named.iter().any(|(known, _)| known == name) {
            self.named.push((name.to_owned(), template));
        }
    }

    /// Adds what another source has and this one has not.
    fn fill(&mut self, other: Self) {
        let Self { default, named } = other;
        if let Some(template) = default {
            self.add("default", template);
        }
        for (name, template) in named {
            self.add(&name, template);
        }
    }
}

/// A model as its files describe it.
#[derive(Debug)]
pub struct Checkpoint {
    label: String,
    spec: ModelSpec,
    weights: Weights,
    names: TensorNames,
    tokenizer: TokenizerSource,
    chat_templates: ChatTemplates,
    eos: Vec<TokenId>,
}

impl Checkpoint {
    /// Opens a folder with `config.json` and safetensors, or a GGUF file.
    ///
    /// Errors: one sentence naming the file and what is missing or wrong in it.
    pub fn open(path: &Path, dtype: Option<FloatType>) -> Result<Self, ModelError> {
        let kind = std::fs::metadata(path).map_err(|source| ModelError::Io {
            path: path.display().to_string(),
            source,
        })?;
        let mut checkpoint = if kind.is_dir() {
            Self::open_folder(path)?
        } else {
            let (metadata, weights) = Weights::open_gguf(path)?;
            Self::from_gguf(metadata, weights, path.display().to_string())?
        };
        if let Some(dtype) = dtype {
            checkpoint.weights.convert_floats(match dtype {
                FloatType::Float32 => Format::F32,
                FloatType::Float16 => Format::F16,
                FloatType::Bfloat16 => Format::Bf16,
            });
        }
        Ok(checkpoint)
    }

    /// Opens a GGUF file that is part of the binary.
    ///
    /// Errors: as [`Checkpoint::open`].
    pub fn embedded(bytes: &'static [u8], label: &str) -> Result<Self, ModelError> {
        let (metadata, weights) = Weights::embedded_gguf(bytes, label)?;
        Self::from_gguf(metadata, weights, label.to_owned())
    }

    /// Makes a model of a named real shape with random weights, for benchmarks.
    ///
    /// Errors: an unknown name, with the known ones.
    pub fn random(shape: &str, format: Format) -> Result<Self, ModelError> {
        let spec = shapes::spec(shape)?;
        Ok(Self {
            label: format!("shape:{shape}"),
            weights: shapes::random_weights(&spec, format)?,
            spec,
            names: TensorNames::Hugging,
            tokenizer: TokenizerSource::None,
            chat_templates: ChatTemplates::default(),
            eos: Vec::new(),
        })
    }

    fn from_gguf(metadata: Metadata, weights: Weights, path: String) -> Result<Self, ModelError> {
        let names = TensorNames::Gguf;
        let malformed = |problem: String| ModelError::malformed(&path, problem);
        let vocab = weights
            .rows_of(&names.name(Part::Embedding))
            .ok_or_else(|| malformed("tensor `token_embd.weight` is missing".to_owned()))?;
        let tied = !weights.contains(&names.name(Part::Head));
        let mut spec = ModelSpec::from_gguf(&metadata, vocab, tied).map_err(malformed)?;
        spec.qkv_bias |= weights.contains(&names.name(Part::QueryBias(0)));
        spec.output_bias = weights.contains(&names.name(Part::OutputBias(0)));
        spec.mlp_bias = weights.contains(&names.name(Part::UpBias(0)));
        let eos = gguf_eos(&metadata).map_err(malformed)?;
        let chat_templates = gguf_chat_templates(&metadata).map_err(malformed)?;
        let tokenizer = TokenizerSource::Gguf(metadata);
        Ok(Self {
            label: path,
            spec,
            weights,
            names,
            tokenizer,
            chat_templates,
            eos,
        })
    }

    fn open_folder(folder: &Path) -> Result<Self, ModelError> {
        let config_path = folder.join("config.json");
        let config = read_json(&config_path)?;
        let spec = ModelSpec::from_config(&config)
            .map_err(|problem| ModelError::malformed(config_path.display().to_string(), problem))?;
        let weights = Weights::open_safetensors(folder, &weight_files(folder)?)?;
        let names = TensorNames::Hugging;
        let tokenizer_path = folder.join("tokenizer.json");
        let tokenizer = read(&tokenizer_path)?;
        let config_of = |name: &str| {
            let path = folder.join(name);
            if path.exists() {
                read_json(&path)
            } else {
                Ok(Json::Null)
            }
        };
        let tokenizer_config = config_of("tokenizer_config.json")?;
        let generation = config_of("generation_config.json")?;
        let eos = [&generation, &config]
            .into_iter()
            .map(|source| ids(source.get("eos_token_id")))
            .find(|ids| !ids.is_empty())
            .unwrap_or_default();
        let mut chat_templates = jinja_files(folder)?;
        chat_templates.fill(ChatTemplates::from_json(&tokenizer_config));
        for file in ["chat_template.json", "processor_config.json"] {
            chat_templates.fill(ChatTemplates::from_json(&config_of(file)?));
        }
        Ok(Self {
            label: folder.display().to_string(),
            spec,
            weights,
            names,
            chat_templates,
            tokenizer: TokenizerSource::Json {
                tokenizer,
                config: tokenizer_config,
                special_tokens: config_of("special_tokens_map.json")?,
            },
            eos,
        })
    }

    /// Where it came from, for messages.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// The model's dimensions.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Raw material of the tokenizer.
    pub fn tokenizer(&self) -> &TokenizerSource {
        &self.tokenizer
    }

    /// The Jinja texts that turn conversations into prompts, as far as the model brings any.
    ///
    /// In a folder `chat_template.jinja` and `additional_chat_templates/` come first, then `tokenizer_config.json`,
    /// `chat_template.json` and `processor_config.json`.
    pub fn chat_templates(&self) -> &ChatTemplates {
        &self.chat_templates
    }

    /// Tokens by which the model ends its answer, as its files name them; may be empty.
    pub fn eos(&self) -> &[TokenId] {
        &self.eos
    }

    /// Bytes of all weights.
    pub fn size_bytes(&self) -> usize {
        self.weights.size_bytes()
    }

    /// The format most of the weights are in.
    pub fn main_format(&self) -> Option<Format> {
        self.weights.main_format()
    }

    pub(super) fn weights(&self) -> &Weights {
        &self.weights
    }

    pub(super) fn names(&self) -> TensorNames {
        self.names
    }
}

/// Templates in files of their own: `chat_template.jinja`, and named ones in `additional_chat_templates/`.
fn jinja_files(folder: &Path) -> Result<ChatTemplates, ModelError> {
    let text = |path: &Path| -> Result<String, ModelError> {
        String::from_utf8(read(path)?)
            .map_err(|_| ModelError::malformed(path.display().to_string(), "is not UTF-8 text"))
    };
    let mut found = ChatTemplates::default();
    let default = folder.join("chat_template.jinja");
    if default.exists() {
        found.default = Some(text(&default)?);
    }
    let additional = folder.join("additional_chat_templates");
    if additional.is_dir() {
        let io = |source| ModelError::Io {
            path: additional.display().to_string(),
            source,
        };
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(&additional).map_err(io)? {
            paths.push(entry.map_err(io)?.path());
        }
        paths.sort();
        for path in paths {
            let name = path.file_stem().and_then(|name| name.to_str());
            if let (Some(name), Some("jinja")) =
                (name, path.extension().and_then(|ext| ext.to_str()))
            {
                found.add(name, text(&path)?);
            }
        }
    }
    Ok(found)
}

/// Templates of a GGUF file: `tokenizer.chat_template`, and named ones behind it.
fn gguf_chat_templates(metadata: &Metadata) -> Result<ChatTemplates, String> {
    const KEY: &str = "tokenizer.chat_template";
    let mut found = ChatTemplates {
        default: metadata.string(KEY)?.map(str::to_owned),
        named: Vec::new(),
    };
    for key in metadata.keys_under("tokenizer.chat_template.") {
        if let Some(template) = metadata.string(key)? {
            found.add(&key[KEY.len() + 1..], template.to_owned());
        }
    }
    Ok(found)
}

/// Tokens that end an answer: those the metadata names, and control tokens of the spellings that chat models
/// are known to end with, because files name one end only where the model has several.
///
/// Source: llama.cpp's `llama-vocab.cpp`, the set of end-of-generation tokens.
fn gguf_eos(metadata: &Metadata) -> Result<Vec<TokenId>, String> {
    const ENDS: [&str; 8] = [
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<EOT>",
    ];
    const CONTROL: i32 = 3;
    let mut eos = Vec::new();
    for key in ["eos", "eot", "eom"] {
        eos.extend(
            metadata
                .u32(&format!("tokenizer.ggml.{key}_token_id"))?
                .map(TokenId),
        );
    }
    let tokens = metadata
        .strings("tokenizer.ggml.tokens")?
        .unwrap_or_default();
    let types = metadata
        .i32s("tokenizer.ggml.token_type")?
        .unwrap_or_default();
    for (id, (token, kind)) in tokens.iter().zip(types).enumerate() {
        if kind == CONTROL && ENDS.contains(&token.as_str()) {
            eos.push(TokenId(id as u32));
        }
    }
    eos.sort_unstable();
    eos.dedup();
    Ok(eos)
}

/// The safetensors files of a folder: one, or those an index names.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let single = folder.join("model.safetensors");
    if single.exists() {
        return Ok(vec![single]);
    }
    let index_path = folder.join("model.safetensors.index.json");
    if !index_path.exists() {
        return Err(ModelError::malformed(
            folder.display().to_string(),
            "holds neither `model.safetensors` nor `model.safetensors.index.json`",
        ));
    }
    let index = read_json(&index_path)?;
    let malformed =
        |problem: String| ModelError::malformed(index_path.display().to_string(), problem);
    let map = index
        .get("weight_map")
        .and_then(Json::as_object)
        .ok_or_else(|| malformed("`weight_map` is missing".to_owned()))?;
    let mut names: Vec<&str> = Vec::new();
    for (tensor, file) in map {
        let name = file
            .as_str()
            .filter(|name| {
                Path::new(name)
                    .file_name()
                    .is_some_and(|base| base == *name)
            })
            .ok_or_else(|| {
                malformed(format!(
                    "`weight_map` names no file of this folder for `{tensor}`"
                ))
            })?;
        names.push(name);
    }
    names.sort_unstable();
    names.dedup();
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

fn read(path: &Path) -> Result<Vec<u8>, ModelError> {
    std::fs::read(path).map_err(|source| ModelError::Io {
        path: path.display().to_string(),
        source,
    })
}

fn read_json(path: &Path) -> Result<Json, ModelError> {
    serde_json::from_slice(&read(path)?)
        .map_err(|e| ModelError::malformed(path.display().to_string(), format!("is not JSON: {e}")))
}

/// A token id or a list of them.
fn ids(value: Option<&Json>) -> Vec<TokenId> {
    let id = |v: &Json| {
        v.as_u64()
            .and_then(|id| u32::try_from(id).ok())
            .map(TokenId)
    };
    match value {
        Some(Json::Array(items)) => items.iter().filter_map(id).collect(),
        Some(single) => id(single).into_iter().collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn templates(default: Option<&str>, named: &[(&str, &str)]) -> ChatTemplates {
        let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
        ChatTemplates {
            default: default.map(str::to_owned),
            named: named.iter().map(owned).collect(),
        }
    }

    #[test]
    fn a_configuration_holds_one_template_or_several() {
        for (written, expected) in [
            (json!("a"), templates(Some("a"), &[])),
            (
                json!([{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]),
                templates(Some("d"), &[("tool_use", "t")]),
            ),
            (
                json!({"default": "d", "rag": "r"}),
                templates(Some("d"), &[("rag", "r")]),
            ),
            (json!([{"name": "x"}, 1]), templates(None, &[])),
            (Json::Null, templates(None, &[])),
        ] {
            let found = ChatTemplates::from_json(&json!({"chat_template": written}));
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn files_of_their_own_come_before_configurations() {
        let folder = tempfile::tempdir().unwrap();
        let named = folder.path().join("additional_chat_templates");
        std::fs::create_dir(&named).unwrap();
        std::fs::write(folder.path().join("chat_template.jinja"), "file").unwrap();
        std::fs::write(named.join("tool_use.jinja"), "tools").unwrap();
        std::fs::write(named.join("notes.txt"), "no template").unwrap();
        let mut found = jinja_files(folder.path()).unwrap();
        found.fill(templates(Some("json"), &[("tool_use", "x"), ("rag", "r")]));
        let expected = templates(Some("file"), &[("tool_use", "tools"), ("rag", "r")]);
        assert_eq!(found, expected);
    }
}
