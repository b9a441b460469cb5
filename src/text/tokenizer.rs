//! The tokenizer: text to ids with offsets, ids to text, and facts about single tokens.
//!
//! It wraps the `tokenizers` library so that the rest of the house sees [`TokenId`]s and byte offsets
//! and never the library's types. Two things are settled here that the library leaves open: which
//! tokens are special is the union of what `tokenizer.json` marks and what the configuration names, as
//! in transformers' `all_special_ids`, and BOS and EOS are put around a prompt when the configuration
//! asks for it even where `tokenizer.json` does not. Truncation and padding are always off: limits are
//! checked, and prompts cut, by those who know the model's window.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokenizers::AddedToken;

use super::pieces::Decoding;
use super::{SpecialTokens, TextError};
use crate::generation::TokenId;

/// A tokenizer that is ready to use; clones share one copy.
#[derive(Debug, Clone)]
pub struct Tokenizer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    library: tokenizers::Tokenizer,
    decoding: Decoding,
    special: BTreeSet<TokenId>,
    vocab_size: usize,
    roles: Roles,
    front: Edge,
    back: Edge,
}

/// BOS and EOS of a tokenizer, and whether they go around an encoded prompt.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Roles {
    pub(super) bos: Option<TokenId>,
    pub(super) eos: Option<TokenId>,
    /// `None` leaves the choice to the library's template; `Some(true)` needs `bos`.
    pub(super) add_bos: Option<bool>,
    /// `None` leaves the choice to the library's template; `Some(true)` needs `eos`.
    pub(super) add_eos: Option<bool>,
}

/// What to do at one end of an encoding beyond what the library's template does.
#[derive(Debug, Clone, Copy)]
enum Edge {
    Keep,
    Add(TokenId),
    Remove,
}

/// An encoded text.
///
/// Invariants: `ids` and `offsets` have the same length.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoding {
    /// The token ids.
    pub ids: Vec<TokenId>,
    /// For each id the bytes `start..end` of the text it stands for, on character boundaries.
    ///
    /// Tokens that share a character all have the whole character's range; tokens that stand for no
    /// text, such as an added BOS, have `(0, 0)`.
    pub offsets: Vec<(usize, usize)>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// Tokens that `settings` names are special even if the file does not say so. Of those only BOS and
    /// EOS must exist; another one that is not in the vocabulary can neither be read nor generated.
    ///
    /// Errors: [`TextError::InvalidFile`] when the file is not a tokenizer; [`TextError::SpecialToken`]
    /// when BOS or EOS is not in the vocabulary, or is to be added but not named.
    pub fn from_json(bytes: &[u8], settings: SpecialTokens) -> Result<Self, TextError> {
        let SpecialTokens {
            bos,
            eos,
            others,
            roles: _,
            add_bos,
            add_eos,
        } = settings;
        let invalid = |error: tokenizers::Error| TextError::InvalidFile {
            file: "tokenizer.json",
            reason: error.to_string(),
        };
        let mut library = tokenizers::Tokenizer::from_bytes(bytes).map_err(invalid)?;
        mark_special(&mut library, bos.iter().chain(&eos).chain(&others)).map_err(invalid)?;
        let roles = Roles {
            bos: named_id(&library, "bos_token", bos)?,
            eos: named_id(&library, "eos_token", eos)?,
            add_bos,
            add_eos,
        };
        for (field, add, id) in [
            ("add_bos_token", roles.add_bos, roles.bos),
            ("add_eos_token", roles.add_eos, roles.eos),
        ] {
            if add == Some(true) && id.is_none() {
                let reason = "is true but the token to add is not named".to_owned();
                return Err(TextError::SpecialToken { field, reason });
            }
        }
        let vocab = library.get_vocab(true);
        let vocab_size = vocab.values().max().map_or(0, |id| *id as usize + 1);
        Self::assemble(library, vocab_size, roles)
    }

    /// Wraps a library tokenizer whose special tokens are marked.
    ///
    /// Errors: [`TextError::Encode`] when the library cannot even encode an empty text.
    pub(super) fn assemble(
        mut library: tokenizers::Tokenizer,
        vocab_size: usize,
        roles: Roles,
    ) -> Result<Self, TextError> {
        library.with_padding(None);
        library
            .with_truncation(None)
            .map_err(|error| TextError::Encode(error.to_string()))?;
        let special = library
            .get_added_tokens_decoder()
            .into_iter()
            .filter(|(_, token)| token.special)
            .map(|(id, _)| TokenId(id))
            .collect();
        let bare = library
            .encode("", true)
            .map_err(|error| TextError::Encode(error.to_string()))?;
        let template = bare.get_ids();
        let has_bos = roles
            .bos
            .is_some_and(|bos| template.first() == Some(&bos.0));
        let rest = &template[usize::from(has_bos)..];
        let has_eos = roles.eos.is_some_and(|eos| rest.last() == Some(&eos.0));
        Ok(Self(Arc::new(Inner {
            decoding: Decoding::of(library.get_decoder()),
            special,
            vocab_size,
            roles,
            front: Edge::choose(roles.add_bos, roles.bos, has_bos),
            back: Edge::choose(roles.add_eos, roles.eos, has_eos),
            library,
        })))
    }

    /// Encodes `text`, with the model's own BOS and EOS around it if `add_special_tokens`.
    ///
    /// Special tokens spelled out in `text` become their ids in either case.
    ///
    /// Errors: [`TextError::Encode`] when the tokenizer's parts disagree.
    /// Cost: O(text) and some microseconds per kilobyte; CPU only, so long texts leave the async threads.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Encoding, TextError> {
        let encoding = self
            .0
            .library
            .encode(text, add_special_tokens)
            .map_err(|error| TextError::Encode(error.to_string()))?;
        let mut ids: Vec<TokenId> = encoding.get_ids().iter().copied().map(TokenId).collect();
        let mut offsets = encoding.get_offsets().to_vec();
        if add_special_tokens {
            match self.0.front {
                Edge::Keep => {}
                Edge::Add(id) => {
                    ids.insert(0, id);
                    offsets.insert(0, (0, 0));
                }
                Edge::Remove => {
                    ids.remove(0);
                    offsets.remove(0);
                }
            }
            match self.0.back {
                Edge::Keep => {}
                Edge::Add(id) => {
                    ids.push(id);
                    offsets.push((0, 0));
                }
                Edge::Remove => {
                    ids.pop();
                    offsets.pop();
                }
            }
        }
        Ok(Encoding { ids, offsets })
    }

    /// Decodes `ids` as one text; ids outside the vocabulary add nothing.
    ///
    /// Bytes that are no UTF-8 become U+FFFD. For text that is still growing see [`super::Detokenizer`].
    ///
    /// Errors: [`TextError::Decode`] when the tokenizer's parts disagree.
    pub fn decode(&self, ids: &[TokenId], skip_special: bool) -> Result<String, TextError> {
        let ids: Vec<u32> = ids.iter().map(|id| id.0).collect();
        self.0
            .library
            .decode(&ids, skip_special)
            .map_err(|error| TextError::Decode(error.to_string()))
    }

    /// Decodes one id by itself, special tokens included.
    ///
    /// A token that holds part of a character gives U+FFFD; one that begins with a space may lose it,
    /// as it would at the start of a text.
    ///
    /// Errors: as [`Tokenizer::decode`].
    pub fn token_text(&self, id: TokenId) -> Result<String, TextError> {
        self.decode(&[id], false)
    }

    /// The bytes a token adds to a text that has begun; empty for an id outside the vocabulary.
    ///
    /// Errors: as [`Tokenizer::decode`].
    pub fn token_bytes(&self, id: TokenId) -> Result<Vec<u8>, TextError> {
        match self.piece(id) {
            Some(Piece::Bytes(bytes)) => Ok(bytes),
            Some(Piece::Text) => Ok(self.text_after(id, id)?.into_bytes()),
            None => Ok(Vec::new()),
        }
    }

    /// Largest id plus one: the rows a logits vector needs, not the number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.0.vocab_size
    }

    /// Whether `id` is a special token, which generated text leaves out.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.0.special.contains(&id)
    }

    /// The id of the token spelled `token` in the vocabulary, spaces and bytes in its own notation.
    pub fn id_of(&self, token: &str) -> Option<TokenId> {
        self.0.library.token_to_id(token).map(TokenId)
    }

    /// Beginning of sequence, if the model has one.
    pub fn bos(&self) -> Option<TokenId> {
        self.0.roles.bos
    }

    /// End of sequence, if the model has one.
    pub fn eos(&self) -> Option<TokenId> {
        self.0.roles.eos
    }

    /// What `id` adds to a text; `None` outside the vocabulary.
    pub(super) fn piece(&self, id: TokenId) -> Option<Piece> {
        let token = self.0.library.id_to_token(id.0)?;
        Some(match self.0.decoding.bytes(&token) {
            Some(bytes) => Piece::Bytes(bytes),
            None => Piece::Text,
        })
    }

    /// The text `id` adds right behind `previous`.
    ///
    /// Decoders treat the first token of a text apart (they strip its space), so both are decoded and
    /// what `previous` gives alone is cut off, counted in characters.
    pub(super) fn text_after(&self, previous: TokenId, id: TokenId) -> Result<String, TextError> {
        let before = self.token_text(previous)?.chars().count();
        let both = self.decode(&[previous, id], false)?;
        Ok(both.chars().skip(before).collect())
    }
}

/// What one token adds to a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    /// These bytes, wherever it stands.
    Bytes(Vec<u8>),
    /// Whole characters that depend on whether a token precedes it.
    Text,
}

impl Edge {
    /// Compares what is wanted with what the template does.
    fn choose(wanted: Option<bool>, token: Option<TokenId>, present: bool) -> Self {
        match (wanted, token) {
            (Some(true), Some(token)) if !present => Self::Add(token),
            (Some(false), _) if present => Self::Remove,
            _ => Self::Keep,
        }
    }
}

/// Marks those of `tokens` that exist as special.
pub(super) fn mark_special<'a>(
    library: &mut tokenizers::Tokenizer,
    tokens: impl Iterator<Item = &'a String>,
) -> Result<(), tokenizers::Error> {
    let added = library.get_added_tokens_decoder();
    let tokens: Vec<AddedToken> = tokens
        .filter_map(|token| library.token_to_id(token).map(|id| (id, token)))
        .map(|(id, token)| match added.get(&id) {
            Some(known) => known.clone().special(true),
            None => AddedToken::from(token.clone(), true),
        })
        .collect();
    library.add_special_tokens(tokens).map(|_| ())
}

/// The id of a token that the configuration names for a role.
fn named_id(
    library: &tokenizers::Tokenizer,
    field: &'static str,
    token: Option<String>,
) -> Result<Option<TokenId>, TextError> {
    let Some(token) = token else { return Ok(None) };
    match library.token_to_id(&token) {
        Some(id) => Ok(Some(TokenId(id))),
        None => Err(TextError::SpecialToken {
            field,
            reason: format!("`{token}` is not in the vocabulary"),
        }),
    }
}
