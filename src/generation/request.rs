//! What one caller asks for, in values that cannot be wrong.
//!
//! A [`Sampling`] is built through checks only, so the engine never meets a negative temperature. Rules
//! that need the tokenizer or the server's limits are checked where those are known (`dispatch`).

use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Instant;

use super::{Conversation, Error, RouteAsk, RouteSlot, TokenId};

/// Whose request it is: separates prefix caches, and later budgets.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tenant(pub Arc<str>);

impl Tenant {
    /// The tenant of a caller without a key.
    pub fn anonymous() -> Self {
        Self(Arc::from("anonymous"))
    }
}

/// One request, validated as far as that is possible without a tokenizer.
#[derive(Debug, Clone)]
pub struct Request {
    /// Text to continue; for a chat, what the local model's template makes of it, empty where nothing can.
    pub prompt: String,
    /// The conversation that the prompt was made of.
    pub chat: Option<Arc<ChatAsk>>,
    /// Whether the tokenizer adds its own special tokens (BOS) around the prompt.
    pub add_special_tokens: bool,
    /// Keeps only the last so many tokens of the prompt.
    pub truncate: Option<NonZeroUsize>,
    /// Most tokens to generate; none means all that fits the context.
    pub max_new_tokens: Option<NonZeroU32>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Whether the stop string that ended the answer is part of it.
    pub stop_rule: StopRule,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Whether the seed in `sampling` is the caller's; else it was drawn here.
    pub seed_given: bool,
    /// What shape the answer must have.
    pub grammar: Option<Grammar>,
    /// What the caller gets to see of single tokens.
    pub detail: TokenDetail,
    /// How many of the most probable tokens to report at each place.
    pub top_n_tokens: usize,
    /// Whether to report the probabilities of the prompt's own tokens.
    pub prompt_logprobs: bool,
    /// Whether metrics count this sequence; of several for one call only the first stands for it.
    pub accounted: bool,
    /// Whose request it is.
    pub tenant: Tenant,
    /// When the server took the request.
    pub accepted_at: Instant,
    /// When the caller stops caring.
    pub deadline: Option<Instant>,
    /// What the caller allows and asks of routing.
    pub route: RouteAsk,
    /// Where it is noted what became of it.
    pub note: RouteSlot,
}

impl Request {
    /// A greedy continuation of a text by an anonymous caller, with nothing else asked for.
    pub fn of(prompt: impl Into<String>) -> Self {
        Self {
            prompt: prompt.into(),
            chat: None,
            add_special_tokens: true,
            truncate: None,
            max_new_tokens: None,
            stop: Vec::new(),
            stop_rule: StopRule::Keep,
            sampling: Sampling::GREEDY,
            seed_given: false,
            grammar: None,
            detail: TokenDetail::Unseen,
            top_n_tokens: 0,
            prompt_logprobs: false,
            accounted: false,
            tenant: Tenant::anonymous(),
            accepted_at: Instant::now(),
            deadline: None,
            route: RouteAsk::default(),
            note: RouteSlot::default(),
        }
    }
}

/// A conversation as the caller handed it over, for whoever renders it elsewhere.
#[derive(Debug, Clone)]
pub struct ChatAsk {
    /// Messages, tools, and what else a template sees.
    pub conversation: Conversation,
    /// The shape that the caller asked for; the request's own grammar also holds what tools ask for here.
    pub shape: Option<Grammar>,
    /// Why this machine cannot answer it, if it cannot.
    pub unsupported: Option<Error>,
}

/// What a caller gets to see of single tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TokenDetail {
    /// Nothing: the text alone counts.
    #[default]
    Unseen,
    /// The route's stream is made of tokens, whether the caller cares for them or not.
    Framed,
    /// Their log-probabilities were asked for.
    Logprobs,
    /// Their ids and log-probabilities were asked for.
    Full,
}

/// What becomes of the stop string that ended an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopRule {
    /// It stays at the end of the text (TGI).
    Keep,
    /// It is left out, and whatever may become one is held back until that is known (OpenAI).
    Drop,
}

/// A shape the answer must have, as the caller wrote it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Grammar {
    /// A JSON Schema, as JSON text.
    JsonSchema(String),
    /// The value of TGI's `json` grammar, as JSON text: a schema or a string that holds one, and the schema
    /// must list `properties`.
    TgiSchema(String),
    /// Any JSON object.
    JsonObject,
    /// A regular expression for the whole answer.
    Regex(String),
    /// A context-free grammar in llguidance's dialect of Lark.
    Lark(String),
}

/// What a frequency penalty is multiplied with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrequencyRule {
    /// A token's share of prompt and answer (TGI).
    Share,
    /// How often the answer holds it (OpenAI).
    Count,
}

/// How a token is chosen from the model's scores.
///
/// Invariants: `temperature` and `repetition_penalty` are positive and finite; `frequency_penalty` lies in
/// \[-2, 2\], as does `presence_penalty`; `top_p` and `typical_p`, when present, lie in (0, 1), `min_p` in
/// \[0, 1\]; every bias lies in \[-100, 100\].
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the scores; below 1 sharpens, above 1 flattens.
    pub temperature: f32,
    /// Scores of tokens seen in prompt or answer are divided by it (multiplied when negative).
    pub repetition_penalty: f32,
    /// Subtracted from the scores of seen tokens, multiplied as `frequency_rule` says.
    pub frequency_penalty: f32,
    /// What `frequency_penalty` is multiplied with.
    pub frequency_rule: FrequencyRule,
    /// Subtracted once from the scores of tokens the answer already holds.
    pub presence_penalty: f32,
    /// Added to the scores of single tokens, before anything else.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Keeps the so many best tokens.
    pub top_k: Option<NonZeroU32>,
    /// Keeps the smallest set of best tokens with this probability.
    pub top_p: Option<f32>,
    /// Keeps the tokens nearest to the expected information, with this probability in all.
    pub typical_p: Option<f32>,
    /// Keeps the tokens at least this many times as probable as the best one.
    pub min_p: Option<f32>,
    /// The seed that draws tokens; none means greedy decoding.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self::GREEDY
    }
}

impl Sampling {
    /// Always the most probable token, nothing changed before.
    pub const GREEDY: Self = Self {
        temperature: 1.0,
        repetition_penalty: 1.0,
        frequency_penalty: 0.0,
        frequency_rule: FrequencyRule::Share,
        presence_penalty: 0.0,
        logit_bias: Vec::new(),
        top_k: None,
        top_p: None,
        typical_p: None,
        min_p: None,
        seed: None,
    };

    /// Checks every bound and returns the value itself.
    ///
    /// Errors: the first bound broken, in TGI's order of checks.
    pub fn checked(self) -> Result<Self, InvalidSampling> {
        let positive = |x: f32| x > 0.0 && x.is_finite();
        let open_unit = |x: Option<f32>| x.is_none_or(|p| p > 0.0 && p < 1.0);
        if !positive(self.temperature) {
            Err(InvalidSampling::Temperature)
        } else if !positive(self.repetition_penalty) {
            Err(InvalidSampling::RepetitionPenalty)
        } else if !(-2.0..=2.0).contains(&self.frequency_penalty) {
            Err(InvalidSampling::FrequencyPenalty)
        } else if !open_unit(self.top_p) {
            Err(InvalidSampling::TopP)
        } else if !open_unit(self.typical_p) {
            Err(InvalidSampling::TypicalP)
        } else if !(-2.0..=2.0).contains(&self.presence_penalty) {
            Err(InvalidSampling::PresencePenalty)
        } else if self.min_p.is_some_and(|p| !(0.0..=1.0).contains(&p)) {
            Err(InvalidSampling::MinP)
        } else if self
            .logit_bias
            .iter()
            .any(|(_, bias)| !(-100.0..=100.0).contains(bias))
        {
            Err(InvalidSampling::LogitBias)
        } else {
            Ok(self)
        }
    }
}

/// The bound a sampling parameter breaks; its text is TGI's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvalidSampling {
    /// Not positive.
    Temperature,
    /// Not positive.
    RepetitionPenalty,
    /// Outside \[-2, 2\].
    FrequencyPenalty,
    /// Outside (0, 1).
    TopP,
    /// Outside (0, 1).
    TypicalP,
    /// Outside \[-2, 2\].
    PresencePenalty,
    /// Outside \[0, 1\].
    MinP,
    /// Outside \[-100, 100\].
    LogitBias,
}

impl fmt::Display for InvalidSampling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Temperature => "`temperature` must be strictly positive",
            Self::RepetitionPenalty => "`repetition_penalty` must be strictly positive",
            Self::FrequencyPenalty => "`frequency_penalty` must be >= -2.0 and <= 2.0",
            Self::TopP => "`top_p` must be > 0.0 and < 1.0",
            Self::TypicalP => "`typical_p` must be > 0.0 and < 1.0",
            Self::PresencePenalty => "`presence_penalty` must be >= -2.0 and <= 2.0",
            Self::MinP => "`min_p` must be >= 0.0 and <= 1.0",
            Self::LogitBias => "`logit_bias` values must be >= -100 and <= 100",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_checked_in_tgi_order() {
        let broken = Sampling {
            temperature: 0.0,
            top_p: Some(1.0),
            ..Sampling::GREEDY
        };
        assert_eq!(broken.checked(), Err(InvalidSampling::Temperature));
        let broken = Sampling {
            top_p: Some(1.0),
            typical_p: Some(0.0),
            ..Sampling::GREEDY
        };
        assert_eq!(broken.checked(), Err(InvalidSampling::TopP));
        let nan = Sampling {
            temperature: f32::NAN,
            ..Sampling::GREEDY
        };
        assert_eq!(nan.checked(), Err(InvalidSampling::Temperature));
        assert!(
            Sampling {
                top_p: Some(0.99),
                ..Sampling::GREEDY
            }
            .checked()
            .is_ok()
        );
    }
}
