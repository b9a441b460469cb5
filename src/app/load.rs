//! A model, its tokenizer and its chat template, opened together and checked against each other.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value as Json;

use super::AppError;
use crate::config::{ModelFacts, ModelSource, Settings};
use crate::generation::TokenId;
use crate::hub::{Fetched, HubError, HubSettings, ModelName};
use crate::model::{ChatTemplates, Checkpoint, Metadata, ModelError, TokenizerSource};
use crate::text::{
    ChatTemplate, GgufVocabulary, SpecialTokens, TemplateSources, TextError, Tokenizer,
};

/// What the embedded model is called where a path would stand.
pub(super) const EMBEDDED_LABEL: &str = "sconce-demo";

static EMBEDDED: &[u8] = include_bytes!("../../models/demo/model.gguf");

/// A checkpoint with its tokenizer, its chat template and the tokens that end an answer.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) checkpoint: Checkpoint,
    pub(super) tokenizer: Tokenizer,
    /// What turns conversations into prompts; `None` when the model is no chat model.
    pub(super) chat_template: Option<ChatTemplate>,
    pub(super) eos: Arc<[TokenId]>,
    /// The commit of the hub that the files belong to.
    pub(super) commit: Option<String>,
}

/// How a model of the hub becomes files on this machine.
type Finder = fn(&HubSettings, &ModelName, Option<&str>) -> Result<Fetched, HubError>;

impl Loaded {
    /// Opens the model of the settings.
    ///
    /// Errors: one sentence naming the file and field that is wrong.
    pub(super) fn open(settings: &Settings, find: Finder) -> Result<Self, AppError> {
        let mut commit = None;
        let checkpoint = match &settings.model {
            ModelSource::Embedded => Checkpoint::embedded(EMBEDDED, EMBEDDED_LABEL)?,
            ModelSource::None => return Err(AppError::NoSuchModel("none".to_owned())),
            ModelSource::Path(path) if !path.exists() => {
                return Err(AppError::NoSuchModel(path.display().to_string()));
            }
            ModelSource::Path(path) => Checkpoint::open(path, settings.dtype)?,
            ModelSource::Hub(model) => {
                if let Some(why) = &model.why {
                    tracing::info!(model = %model.name, "{why}");
                }
                let found = find(&model.hub, &model.name, model.revision.as_deref())?;
                commit = Some(found.commit);
                Checkpoint::open(&found.path, settings.dtype)?
            }
        };
        let reads_config = matches!(checkpoint.tokenizer(), TokenizerSource::Json { .. });
        if settings.tokenizer_config_path.is_some() && !reads_config {
            tracing::warn!(
                "`tokenizer_config_path` has no effect: this model brings its tokenizer in GGUF metadata"
            );
        }
        if settings.dtype.is_some() && settings.model == ModelSource::Embedded {
            tracing::warn!("`dtype` has no effect on the embedded model");
        }
        let config = match &settings.tokenizer_config_path {
            Some(path) => Some(std::fs::read(path).map_err(|source| ModelError::Io {
                path: path.display().to_string(),
                source,
            })?),
            None => None,
        };
        let label = checkpoint.label().to_owned();
        let text_error = |source| AppError::Tokenizer {
            model: label.clone(),
            source,
        };
        let special =
            special_tokens(checkpoint.tokenizer(), config.as_deref()).map_err(text_error)?;
        let chat_template = chat_template(&checkpoint, config.as_deref(), special.roles.clone())
            .map_err(text_error)?;
        let tokenizer = tokenizer(checkpoint.tokenizer(), special).map_err(text_error)?;
        let rows = checkpoint.spec().vocab;
        if tokenizer.vocab_size() > rows {
            return Err(AppError::VocabularyMismatch {
                model: checkpoint.label().to_owned(),
                tokens: tokenizer.vocab_size(),
                rows,
            });
        }
        let mut eos = checkpoint.eos().to_vec();
        if eos.is_empty() {
            eos.extend(tokenizer.eos());
        }
        Ok(Self {
            checkpoint,
            tokenizer,
            chat_template,
            eos: eos.into(),
            commit,
        })
    }

    /// What limits depend on.
    pub(super) fn facts(&self) -> ModelFacts {
        ModelFacts {
            max_positions: self.checkpoint.spec().max_positions,
            vocab: self.checkpoint.spec().vocab,
            kv_bytes_per_token: self.checkpoint.spec().kv_bytes_per_token(),
            weight_bytes: self.checkpoint.size_bytes(),
        }
    }
}

/// The roles of special tokens; a given `tokenizer_config.json` stands in for the model's own.
fn special_tokens(
    source: &TokenizerSource,
    config: Option<&[u8]>,
) -> Result<SpecialTokens, TextError> {
    match source {
        TokenizerSource::Json {
            config: own,
            special_tokens,
            ..
        } => {
            let bytes = |json: &Json| (*json != Json::Null).then(|| json.to_string().into_bytes());
            let own = bytes(own);
            let map = bytes(special_tokens);
            SpecialTokens::from_json(config.or(own.as_deref()), map.as_deref())
        }
        TokenizerSource::Gguf(metadata) => Ok(SpecialTokens {
            roles: gguf_roles(metadata)?,
            ..SpecialTokens::default()
        }),
        TokenizerSource::None => Ok(SpecialTokens::default()),
    }
}

/// The special tokens that a GGUF file names by id.
fn gguf_roles(metadata: &Metadata) -> Result<BTreeMap<String, String>, TextError> {
    const IDS: [(&str, &str); 7] = [
        ("bos_token", "tokenizer.ggml.bos_token_id"),
        ("eos_token", "tokenizer.ggml.eos_token_id"),
        ("unk_token", "tokenizer.ggml.unknown_token_id"),
        // The key is misspelt in the format's definition.
        ("sep_token", "tokenizer.ggml.seperator_token_id"),
        ("pad_token", "tokenizer.ggml.padding_token_id"),
        ("cls_token", "tokenizer.ggml.cls_token_id"),
        ("mask_token", "tokenizer.ggml.mask_token_id"),
    ];
    const TOKENS: &str = "tokenizer.ggml.tokens";
    let wrong = |key: &'static str| move |reason: String| TextError::Gguf { key, reason };
    let tokens = metadata.strings(TOKENS).map_err(wrong(TOKENS))?;
    let tokens = tokens.unwrap_or_default();
    let mut roles = BTreeMap::new();
    for (role, key) in IDS {
        let id = metadata.u32(key).map_err(wrong(key))?;
        if let Some(token) = id.and_then(|id| tokens.get(id as usize)) {
            roles.insert(role.to_owned(), token.clone());
        }
    }
    Ok(roles)
}

/// The chat template of a given `tokenizer_config.json`, or else the model's own.
fn chat_template(
    checkpoint: &Checkpoint,
    config: Option<&[u8]>,
    special_tokens: BTreeMap<String, String>,
) -> Result<Option<ChatTemplate>, TextError> {
    let given = match config {
        Some(config) => {
            let config =
                serde_json::from_slice(config).map_err(|error| TextError::InvalidFile {
                    file: "tokenizer_config.json",
                    reason: error.to_string(),
                })?;
            ChatTemplates::from_json(&config)
        }
        None => ChatTemplates::default(),
    };
    let chosen = if given.is_empty() {
        checkpoint.chat_templates().clone()
    } else {
        given
    };
    if chosen.is_empty() {
        return Ok(None);
    }
    let ChatTemplates { default, named } = chosen;
    ChatTemplate::new(TemplateSources { default, named }, special_tokens).map(Some)
}

fn tokenizer(source: &TokenizerSource, special: SpecialTokens) -> Result<Tokenizer, TextError> {
    match source {
        TokenizerSource::Json { tokenizer, .. } => Tokenizer::from_json(tokenizer, special),
        TokenizerSource::Gguf(metadata) => Tokenizer::from_gguf(vocabulary(metadata)?),
        TokenizerSource::None => Err(TextError::InvalidFile {
            file: "tokenizer.json",
            reason: "a shape without text cannot be served".to_owned(),
        }),
    }
}

/// The tokenizer's part of a GGUF file's metadata.
fn vocabulary(metadata: &Metadata) -> Result<GgufVocabulary, TextError> {
    let missing = |key: &'static str| TextError::Gguf {
        key,
        reason: "is missing".to_owned(),
    };
    let wrong = |key: &'static str| move |reason: String| TextError::Gguf { key, reason };
    let string = |key: &'static str| metadata.string(key).map_err(wrong(key));
    let id = |key: &'static str| metadata.u32(key).map_err(wrong(key));
    let flag = |key: &'static str| metadata.bool(key).map_err(wrong(key));
    let texts = |key: &'static str| metadata.strings(key).map_err(wrong(key));
    Ok(GgufVocabulary {
        model: string("tokenizer.ggml.model")?
            .ok_or_else(|| missing("tokenizer.ggml.model"))?
            .to_owned(),
        pre: string("tokenizer.ggml.pre")?.map(str::to_owned),
        tokens: texts("tokenizer.ggml.tokens")?
            .ok_or_else(|| missing("tokenizer.ggml.tokens"))?
            .to_vec(),
        token_types: metadata
            .i32s("tokenizer.ggml.token_type")
            .map_err(wrong("tokenizer.ggml.token_type"))?
            .unwrap_or_default(),
        scores: metadata
            .f32s("tokenizer.ggml.scores")
            .map_err(wrong("tokenizer.ggml.scores"))?
            .unwrap_or_default()
            .to_vec(),
        merges: texts("tokenizer.ggml.merges")?.unwrap_or_default().to_vec(),
        bos: id("tokenizer.ggml.bos_token_id")?,
        eos: id("tokenizer.ggml.eos_token_id")?,
        unk: id("tokenizer.ggml.unknown_token_id")?,
        add_bos: flag("tokenizer.ggml.add_bos_token")?,
        add_eos: flag("tokenizer.ggml.add_eos_token")?,
        add_space_prefix: flag("tokenizer.ggml.add_space_prefix")?,
    })
}
