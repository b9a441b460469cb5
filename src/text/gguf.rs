//! A tokenizer rebuilt from the vocabulary inside a GGUF file.
//!
//! GGUF keeps tokens, types and merges (or scores) but not how text is cut before merging: of that only a
//! name is left, `tokenizer.ggml.pre`. Each known name is turned back into the steps of the
//! `tokenizer.json` it stands for; an unknown one is an error, since a wrong cut gives a model text it was
//! never trained on and nobody notices. SentencePiece vocabularies (`llama`) have no merges; theirs follow
//! from the scores. This module takes values, not files: reading GGUF belongs to the model floor.
//!
//! Source: `src/llama-vocab.cpp` of llama.cpp for names and defaults; `convert_slow_tokenizer.py` of
//! transformers for merges and the SentencePiece steps.

use std::collections::{HashMap, HashSet};

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NFC, Prepend, Replace, Sequence as Normalizers};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence as PreTokenizers;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{
    AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior,
    decoders,
};

use super::tokenizer::Roles;
use super::{TextError, Tokenizer};
use crate::generation::TokenId;

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
const SCORES: &str = "tokenizer.ggml.scores";
const MERGES: &str = "tokenizer.ggml.merges";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const UNKNOWN: &str = "tokenizer.ggml.unknown_token_id";

/// Values of `tokenizer.ggml.token_type`; 5 (unused) needs no treatment of its own.
const TYPE_NORMAL: i32 = 1;
const TYPE_UNKNOWN: i32 = 2;
const TYPE_CONTROL: i32 = 3;
const TYPE_USER_DEFINED: i32 = 4;

/// The tokenizer metadata of a GGUF file, under `tokenizer.ggml.`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufVocabulary {
    /// `model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE).
    pub model: String,
    /// `pre`: the name of the pre-tokenizer; `gpt2` only.
    pub pre: Option<String>,
    /// `tokens`: the text of each id.
    pub tokens: Vec<String>,
    /// `token_type`: one a token, or none at all.
    pub token_types: Vec<i32>,
    /// `scores`: one a token; `llama` only.
    pub scores: Vec<f32>,
    /// `merges`: pairs separated by a space, most important first; `gpt2` only.
    pub merges: Vec<String>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `unknown_token_id`.
    pub unk: Option<u32>,
    /// `add_bos_token`; absent means yes for `llama` and what the pre-tokenizer implies for `gpt2`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`; absent means no.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`; absent means yes. `llama` only.
    pub add_space_prefix: Option<bool>,
}

/// How the texts of one family are cut before merging.
struct PreTokenizer {
    /// Every name `tokenizer.ggml.pre` may have for it.
    names: &'static [&'static str],
    /// Canonical composition comes first.
    normalizes: bool,
    /// Patterns whose matches stand alone, applied one after the other.
    splits: &'static [&'static str],
    /// Digits stand alone, before the patterns.
    isolates_digits: bool,
    /// A piece that is a token is not rebuilt by merging, and BOS is added unless the file says no.
    ignores_merges: bool,
}

/// GPT-2's pattern.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// Llama 3's pattern: digits in groups of up to three.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Qwen2's pattern: digits alone.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Mistral's Tekken pattern: words break at capitals.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Every pre-tokenizer that is known.
const PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer {
        names: &["default"],
        normalizes: false,
        splits: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        isolates_digits: false,
        ignores_merges: false,
    },
    PreTokenizer {
        names: &["gpt-2", "phi-2"],
        normalizes: false,
        splits: &[GPT2],
        isolates_digits: false,
        ignores_merges: false,
    },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact"],
        normalizes: false,
        splits: &[GPT2],
        isolates_digits: true,
        ignores_merges: false,
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3"],
        normalizes: false,
        splits: &[LLAMA3],
        isolates_digits: false,
        ignores_merges: true,
    },
    PreTokenizer {
        names: &["smaug-bpe"],
        normalizes: false,
        splits: &[LLAMA3],
        isolates_digits: false,
        ignores_merges: false,
    },
    PreTokenizer {
        names: &["qwen2"],
        normalizes: true,
        splits: &[QWEN2],
        isolates_digits: false,
        ignores_merges: false,
    },
    PreTokenizer {
        names: &["tekken"],
        normalizes: false,
        splits: &[TEKKEN],
        isolates_digits: false,
        ignores_merges: true,
    },
];

impl Tokenizer {
    /// Rebuilds the tokenizer a GGUF file was converted from.
    ///
    /// Control and unknown tokens are special, as are BOS, EOS and UNK; user-defined ones are found whole
    /// in text but belong to it. `add_space_prefix` has no meaning for `gpt2` and is not read there.
    ///
    /// Errors: [`TextError::Gguf`] with the metadata key: a `model` or `pre` that is not known, arrays
    /// whose lengths differ, a token listed twice, a merge of tokens that do not exist, an id out of
    /// range, or BOS or EOS to be added that are not named.
    pub fn from_gguf(vocabulary: GgufVocabulary) -> Result<Self, TextError> {
        let checked = Checked::new(&vocabulary)?;
        let (mut library, adds_bos) = match vocabulary.model.as_str() {
            "gpt2" => {
                let pre = find_pre_tokenizer(vocabulary.pre.as_deref())?;
                (byte_level(&checked, pre)?, pre.ignores_merges)
            }
            "llama" => (sentencepiece(&checked)?, true),
            other => {
                let reason = format!("`{other}` is not supported; known are `gpt2` and `llama`");
                return Err(TextError::Gguf { key: MODEL, reason });
            }
        };
        let added = |special: bool| {
            let tokens = checked.added(special).into_iter();
            tokens.map(move |token| AddedToken::from(token, special).normalized(false))
        };
        library
            .add_special_tokens(added(true))
            .map_err(broken(TOKENS))?;
        library.add_tokens(added(false)).map_err(broken(TOKENS))?;
        let roles = Roles {
            bos: vocabulary.bos.map(TokenId),
            eos: vocabulary.eos.map(TokenId),
            add_bos: Some(vocabulary.add_bos.unwrap_or(adds_bos)),
            add_eos: Some(vocabulary.add_eos.unwrap_or(false)),
        };
        for (key, add, id) in [
            (BOS, roles.add_bos, roles.bos),
            (EOS, roles.add_eos, roles.eos),
        ] {
            if add == Some(true) && id.is_none() {
                let reason = "absent, but the token is to be added to prompts".to_owned();
                return Err(TextError::Gguf { key, reason });
            }
        }
        Self::assemble(library, vocabulary.tokens.len(), roles)
    }
}

/// A vocabulary whose arrays agree and whose ids exist.
struct Checked<'a> {
    vocabulary: &'a GgufVocabulary,
    /// Token to id; tokens without text are left out.
    ids: HashMap<&'a str, u32>,
}

impl<'a> Checked<'a> {
    fn new(vocabulary: &'a GgufVocabulary) -> Result<Self, TextError> {
        let count = vocabulary.tokens.len();
        if count == 0 {
            return Err(gguf(TOKENS, "absent or empty"));
        }
        for (key, length) in [
            (TOKEN_TYPE, vocabulary.token_types.len()),
            (SCORES, vocabulary.scores.len()),
        ] {
            if length != 0 && length != count {
                let reason = format!("has {length} entries for {count} tokens");
                return Err(TextError::Gguf { key, reason });
            }
        }
        for (key, id) in [
            (BOS, vocabulary.bos),
            (EOS, vocabulary.eos),
            (UNKNOWN, vocabulary.unk),
        ] {
            if let Some(id) = id.filter(|id| *id as usize >= count) {
                let reason = format!("is {id}, but there are {count} tokens");
                return Err(TextError::Gguf { key, reason });
            }
        }
        let mut ids = HashMap::with_capacity(count);
        for (id, token) in (0..).zip(&vocabulary.tokens) {
            if token.is_empty() {
                continue;
            }
            if let Some(first) = ids.insert(token.as_str(), id) {
                let reason = format!("`{token}` has two ids, {first} and {id}");
                return Err(TextError::Gguf {
                    key: TOKENS,
                    reason,
                });
            }
        }
        Ok(Self { vocabulary, ids })
    }

    /// The type of a token; every token is normal where the file gives no types.
    fn type_of(&self, id: u32) -> i32 {
        let types = &self.vocabulary.token_types;
        types.get(id as usize).copied().unwrap_or(TYPE_NORMAL)
    }

    /// Tokens that are found whole in text, in order of id: the special ones or the others.
    fn added(&self, special: bool) -> Vec<String> {
        let GgufVocabulary { bos, eos, unk, .. } = self.vocabulary;
        let named = [*bos, *eos, *unk];
        (0..)
            .zip(&self.vocabulary.tokens)
            .filter(|(_, token)| !token.is_empty())
            .filter(|&(id, _)| {
                let is_special = matches!(self.type_of(id), TYPE_CONTROL | TYPE_UNKNOWN)
                    || named.contains(&Some(id));
                let is_added = is_special || self.type_of(id) == TYPE_USER_DEFINED;
                is_added && is_special == special
            })
            .map(|(_, token)| token.clone())
            .collect()
    }

    /// The vocabulary in the library's form.
    fn library_vocabulary(&self) -> Vocab {
        let ids = self.ids.iter();
        ids.map(|(token, id)| ((*token).to_owned(), *id)).collect()
    }
}

/// Looks a pre-tokenizer up by name.
fn find_pre_tokenizer(name: Option<&str>) -> Result<&'static PreTokenizer, TextError> {
    let known = || {
        let names: Vec<&str> = PRE_TOKENIZERS
            .iter()
            .flat_map(|pre| pre.names)
            .copied()
            .collect();
        names.join(", ")
    };
    let name = name.ok_or_else(|| gguf(PRE, &format!("absent; known are {}", known())))?;
    PRE_TOKENIZERS
        .iter()
        .find(|pre| pre.names.contains(&name))
        .ok_or_else(|| {
            gguf(
                PRE,
                &format!("`{name}` is not supported; known are {}", known()),
            )
        })
}

/// Builds a byte-level BPE tokenizer.
fn byte_level(
    checked: &Checked<'_>,
    pre: &PreTokenizer,
) -> Result<tokenizers::Tokenizer, TextError> {
    let merges = checked
        .vocabulary
        .merges
        .iter()
        .map(|merge| read_merge(checked, merge))
        .collect::<Result<Vec<_>, _>>()?;
    if merges.is_empty() {
        return Err(gguf(MERGES, "absent or empty"));
    }
    let model = BPE::builder()
        .vocab_and_merges(checked.library_vocabulary(), merges)
        .ignore_merges(pre.ignores_merges)
        .build()
        .map_err(broken(MERGES))?;
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    if pre.isolates_digits {
        steps.push(Digits::new(true).into());
    }
    for pattern in pre.splits {
        let pattern = SplitPattern::Regex((*pattern).to_owned());
        let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false);
        steps.push(split.map_err(broken(PRE))?.into());
    }
    steps.push(ByteLevel::new(false, false, false).into());
    let mut library = tokenizers::Tokenizer::new(model);
    if pre.normalizes {
        library.with_normalizer(Some(NFC)).map_err(broken(PRE))?;
    }
    library.with_pre_tokenizer(Some(PreTokenizers::new(steps)));
    library.with_decoder(Some(ByteLevel::new(false, false, false)));
    Ok(library)
}

/// Reads `left right`, whose parts and whose whole must be tokens.
fn read_merge(checked: &Checked<'_>, merge: &str) -> Result<(String, String), TextError> {
    let (left, right) = merge
        .split_once(' ')
        .ok_or_else(|| gguf(MERGES, &format!("`{merge}` is not a pair")))?;
    let whole = format!("{left}{right}");
    match [left, right, &whole]
        .into_iter()
        .find(|token| !checked.ids.contains_key(token))
    {
        None => Ok((left.to_owned(), right.to_owned())),
        Some(token) => Err(gguf(
            MERGES,
            &format!("`{merge}` needs the token `{token}`, which does not exist"),
        )),
    }
}

/// Builds a SentencePiece BPE tokenizer with byte fallback.
///
/// A space is `▁`, and unless `add_space_prefix` says no one stands before every stretch of text.
fn sentencepiece(checked: &Checked<'_>) -> Result<tokenizers::Tokenizer, TextError> {
    let vocabulary = checked.vocabulary;
    if vocabulary.scores.is_empty() {
        return Err(gguf(SCORES, "absent or empty"));
    }
    let unknown = vocabulary
        .unk
        .map(|id| vocabulary.tokens[id as usize].clone());
    let builder = BPE::builder()
        .vocab_and_merges(checked.library_vocabulary(), merges_by_score(checked))
        .byte_fallback(true)
        .fuse_unk(true);
    let model = match unknown {
        Some(token) => builder.unk_token(token),
        None => builder,
    };
    let model = model.build().map_err(broken(SCORES))?;
    let adds_space = vocabulary.add_space_prefix.unwrap_or(true);
    let escape = Replace::new(" ", "▁").map_err(broken(MODEL))?;
    let unescape = Replace::new("▁", " ").map_err(broken(MODEL))?;
    let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
    let mut decoders: Vec<DecoderWrapper> = vec![
        unescape.into(),
        decoders::byte_fallback::ByteFallback::new().into(),
        decoders::fuse::Fuse::new().into(),
    ];
    if adds_space {
        normalizers.push(Prepend::new("▁".to_owned()).into());
        decoders.push(decoders::strip::Strip::new(' ', 1, 0).into());
    }
    normalizers.push(escape.into());
    let mut library = tokenizers::Tokenizer::new(model);
    library
        .with_normalizer(Some(Normalizers::new(normalizers)))
        .map_err(broken(MODEL))?;
    library.with_decoder(Some(decoders::sequence::Sequence::new(decoders)));
    Ok(library)
}

/// Derives the merges of a SentencePiece vocabulary: every way to cut a token into two, best score first.
///
/// Ways to the same score are ordered by longer left part, longer right part, then by the parts' ids, as
/// `generate_merges` of transformers orders them. Only normal tokens are merged into: control, byte and
/// unused ones are never the result of a merge.
fn merges_by_score(checked: &Checked<'_>) -> Vec<(String, String)> {
    let normal: HashSet<u32> = checked
        .ids
        .values()
        .copied()
        .filter(|id| checked.type_of(*id) == TYPE_NORMAL)
        .collect();
    let mut found = Vec::new();
    for (id, token) in (0..).zip(&checked.vocabulary.tokens) {
        if !normal.contains(&id) {
            continue;
        }
        let length = token.chars().count();
        let score = checked.vocabulary.scores[id as usize];
        for (left_length, (cut, _)) in token.char_indices().enumerate().skip(1) {
            let (left, right) = token.split_at(cut);
            if let (Some(left_id), Some(right_id)) = (checked.ids.get(left), checked.ids.get(right))
                && normal.contains(left_id)
                && normal.contains(right_id)
            {
                let lengths = (left_length, length - left_length);
                found.push((score, lengths, id, (*left_id, *right_id), (left, right)));
            }
        }
    }
    found.sort_by(|a, b| {
        let by_score = b.0.total_cmp(&a.0);
        by_score
            .then(b.1.cmp(&a.1))
            .then(a.2.cmp(&b.2))
            .then(a.3.cmp(&b.3))
    });
    let merges = found.into_iter();
    merges
        .map(|(.., (left, right))| (left.to_owned(), right.to_owned()))
        .collect()
}

fn gguf(key: &'static str, reason: &str) -> TextError {
    let reason = reason.to_owned();
    TextError::Gguf { key, reason }
}

/// Blames the library's refusal on a metadata key.
fn broken(key: &'static str) -> impl Fn(tokenizers::Error) -> TextError {
    move |error| TextError::Gguf {
        key,
        reason: error.to_string(),
    }
}
