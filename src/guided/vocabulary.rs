//! The model's tokens as llguidance sees them: a trie of bytes.

use std::sync::Arc;

use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

use super::GrammarError;
use crate::generation::TokenId;
use crate::text::Tokenizer;

/// Builds the trie of all tokens.
///
/// Special tokens lie behind a byte that no text holds, so that only a grammar that names one
/// (`<|name|>`) allows it. Tokens that stand for no bytes, and ids the tokenizer lacks, are never allowed.
/// No tokens are forced beyond what the mask says: which tokenization of a forced text is taken is left to
/// the model, as in TGI.
///
/// Errors: the model has no token to end an answer with, or its tokenizer's parts disagree.
/// Cost: decodes every token once; some 50 ms for 49k tokens.
pub(super) fn token_environment(
    tokenizer: &Tokenizer,
    eos: &[TokenId],
) -> Result<TokEnv, GrammarError> {
    let size = tokenizer.vocab_size();
    let eos: Vec<u32> = eos.iter().map(|id| id.0).collect();
    let eos: Vec<u32> = eos.into_iter().filter(|&id| (id as usize) < size).collect();
    let first = *eos.first().ok_or(GrammarError::Unsupported)?;
    let mut words = Vec::with_capacity(size);
    for id in (0..size as u32).map(TokenId) {
        let mut word = Vec::new();
        if tokenizer.is_special(id) || eos.contains(&id.0) {
            word.push(TokTrie::SPECIAL_TOKEN_MARKER);
        }
        let bytes = tokenizer.token_bytes(id);
        word.extend(bytes.map_err(|e| GrammarError::Invalid(e.to_string()))?);
        words.push(word);
    }
    let info = TokRxInfo::new(size as u32, first);
    let trie = TokTrie::from(&info, &words).with_eos_tokens(&eos);
    Ok(Arc::new(ApproximateTokEnv::new(trie)))
}
