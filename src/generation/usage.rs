//! What an answer has read and written, in tokens.

use serde::{Deserialize, Serialize};

/// Tokens of one answer, as they are billed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt, cached ones among them.
    pub input_tokens: u32,
    /// Tokens of the prompt that somebody's prompt cache already held.
    pub cached_tokens: u32,
    /// Tokens written, reasoning and a final EOS among them.
    pub output_tokens: u32,
    /// Tokens written that were reasoning.
    pub reasoning_tokens: u32,
    /// Who counted.
    pub source: UsageSource,
    /// What whoever made the answer says it cost, in nano-USD.
    pub reported_cost_nusd: Option<u64>,
}

impl Usage {
    /// Of an answer made here.
    pub fn counted(input_tokens: u32, output_tokens: u32) -> Self {
        Self {
            input_tokens,
            output_tokens,
            ..Self::default()
        }
    }
}

/// Who counted the tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageSource {
    /// Whoever made the answer.
    #[default]
    Reported,
    /// This server, from the text, because nobody said.
    Estimated,
}
