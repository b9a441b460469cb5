//! One sequence's way through a grammar.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

use super::GuideError;
use crate::generation::TokenId;

/// The tokens allowed at one place, one bit each.
///
/// Ids beyond the tokenizer's vocabulary are never allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mask {
    bits: SimpleVob,
    allowed: usize,
}

impl Mask {
    fn new(bits: SimpleVob) -> Self {
        let allowed = bits.num_set();
        Self { bits, allowed }
    }

    /// A mask of some tokens, for tests of what masks do to scores.
    #[cfg(test)]
    pub(crate) fn of(allowed: &[u32], size: usize) -> Self {
        let mut bits = SimpleVob::alloc(size);
        allowed.iter().for_each(|&id| bits.allow_token(id));
        Self::new(bits)
    }

    /// How many tokens are allowed; at least one.
    pub fn num_allowed(&self) -> usize {
        self.allowed
    }

    /// Whether a token is allowed.
    pub fn allows(&self, token: TokenId) -> bool {
        let (word, bit) = (token.0 / 32, token.0 % 32);
        let word = self.words().get(word as usize);
        word.is_some_and(|word| word >> bit & 1 == 1)
    }

    /// The one token allowed, when there is no choice.
    pub fn only(&self) -> Option<TokenId> {
        if self.allowed != 1 {
            return None;
        }
        let word = self.words().iter().position(|&word| word != 0)?;
        let bit = self.words()[word].trailing_zeros();
        Some(TokenId(word as u32 * 32 + bit))
    }

    /// The bits: token `i` is bit `i % 32` of word `i / 32`; words may end early.
    pub fn words(&self) -> &[u32] {
        self.bits.as_slice()
    }
}

/// Follows one sequence's tokens through a grammar.
///
/// Invariants: the state depends on the accepted tokens only; a guide that has failed fails for ever.
pub struct Guide {
    matcher: Matcher,
    mask: Option<Mask>,
    /// Shared with the compiled grammar, which is not used again once one of its guides has failed.
    spoiled: Arc<AtomicBool>,
}

impl fmt::Debug for Guide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guide").field("mask", &self.mask).finish()
    }
}

impl Guide {
    pub(super) fn new(matcher: Matcher, spoiled: Arc<AtomicBool>) -> Self {
        Self {
            matcher,
            mask: None,
            spoiled,
        }
    }

    /// Computes what may come next, unless that is known already.
    ///
    /// A complete grammar allows only the tokens that end an answer.
    ///
    /// Errors: the state has outgrown the limits of [`super::Compiler`].
    /// Cost: a walk through the vocabulary's trie; mostly under 100 µs, never more than some ms.
    pub fn prepare(&mut self) -> Result<(), GuideError> {
        if self.mask.is_some() {
            return Ok(());
        }
        let bits = self.matcher.compute_mask_or_eos();
        self.mask = Some(Mask::new(bits.map_err(|e| self.failed(&e))?));
        Ok(())
    }

    /// What may come next, once [`Guide::prepare`] has found it.
    pub fn mask(&self) -> Option<&Mask> {
        self.mask.as_ref()
    }

    /// Follows a token that the mask allowed, other than one that ends the answer.
    ///
    /// Errors: the mask did not allow it, or the state has outgrown the limits.
    pub fn accept(&mut self, token: TokenId) -> Result<(), GuideError> {
        self.mask = None;
        let consumed = self.matcher.consume_token(token.0);
        consumed.map_err(|e| self.failed(&e))
    }

    fn failed(&self, error: &impl fmt::Display) -> GuideError {
        self.spoiled.store(true, Ordering::Relaxed);
        GuideError(brief(error))
    }
}

/// Longest error text; some of llguidance's quote the grammar.
const MAX_ERROR_CHARS: usize = 300;

/// An error in one line: llguidance's own state and drawings of the place are left out.
pub(super) fn brief(error: &impl fmt::Display) -> String {
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim);
    let first = lines.next().unwrap_or_default();
    if first.starts_with("oneOf constraints are not supported") {
        return "oneOf is supported only where its options exclude each other".to_owned();
    }
    let brief = match lines.find_map(|line| line.strip_prefix("error: ")) {
        Some(cause) => format!("{first} {cause}"),
        None => first.to_owned(),
    };
    brief.chars().take(MAX_ERROR_CHARS).collect()
}
