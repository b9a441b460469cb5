//! One token list being extended: what it owns, what of it is computed, and where that lies.

use crate::generation::{Tenant, TokenId};
use crate::model::{BLOCK_TOKENS, BlockId};

use super::prefix_cache::BlockHash;

/// A sequence's place in the scheduler's table; used again after the sequence is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u32);

/// Tokens, how many of them are computed, and the blocks that hold their keys and values.
///
/// Invariants: `computed <= tokens.len()`; `table` covers at least `computed` tokens; `hashes` names
/// the full blocks of `tokens` from the first on, as many as have been hashed.
#[derive(Debug)]
pub struct Sequence {
    pub(super) tokens: Vec<TokenId>,
    pub(super) prompt_len: usize,
    max_new_tokens: usize,
    pub(super) computed: usize,
    pub(super) table: Vec<BlockId>,
    pub(super) hashes: Vec<BlockHash>,
    root: BlockHash,
    /// Whether scores are wanted for every prompt token; such a sequence cannot skip a cached beginning.
    pub(super) scores_prompt: bool,
}

impl Sequence {
    /// Builds a sequence of which nothing is computed.
    ///
    /// Panics: when `prompt` is empty; callers refuse that before.
    pub fn new(
        prompt: Vec<TokenId>,
        max_new_tokens: usize,
        tenant: &Tenant,
        scores_prompt: bool,
    ) -> Self {
        assert!(
            !prompt.is_empty(),
            "a sequence starts with at least one token"
        );
        let prompt_len = prompt.len();
        let mut tokens = prompt;
        tokens.reserve_exact(max_new_tokens);
        let root = BlockHash::root(tenant);
        let mut sequence = Self {
            tokens,
            prompt_len,
            max_new_tokens,
            computed: 0,
            table: Vec::with_capacity((prompt_len + max_new_tokens).div_ceil(BLOCK_TOKENS)),
            hashes: Vec::new(),
            root,
            scores_prompt,
        };
        sequence.hash_full_blocks();
        sequence
    }

    /// All tokens, prompt first.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Tokens generated so far.
    pub fn generated(&self) -> &[TokenId] {
        &self.tokens[self.prompt_len..]
    }

    /// Length of the prompt in tokens.
    pub fn prompt_len(&self) -> usize {
        self.prompt_len
    }

    /// Most tokens to generate.
    pub fn max_new_tokens(&self) -> usize {
        self.max_new_tokens
    }

    /// Tokens whose keys and values are stored.
    pub fn computed(&self) -> usize {
        self.computed
    }

    pub(super) fn append(&mut self, token: TokenId) {
        self.tokens.push(token);
        self.hash_full_blocks();
    }

    fn hash_full_blocks(&mut self) {
        while (self.hashes.len() + 1) * BLOCK_TOKENS <= self.tokens.len() {
            let start = self.hashes.len() * BLOCK_TOKENS;
            let parent = self.hashes.last().unwrap_or(&self.root);
            let hash = parent.extend(&self.tokens[start..start + BLOCK_TOKENS]);
            self.hashes.push(hash);
        }
    }
}
