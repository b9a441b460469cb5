//! Text: everything between characters and token ids, and nothing else.
//!
//! A prompt enters through [`Tokenizer::encode`]. Each generated id leaves through
//! [`Detokenizer::push`], which emits whole characters and holds the bytes of a broken-off one until the
//! rest is known, and the emitted pieces pass a [`StopMatcher`], which finds a stop string wherever it lies,
//! inside a token or across several. A tokenizer is read from a `tokenizer.json` or rebuilt from the
//! vocabulary a GGUF file carries ([`GgufVocabulary`]); both give the same ids for the same text.
//!
//! A conversation becomes a prompt through the model's [`ChatTemplate`]. Of an answer's text a
//! [`ReasoningSplitter`] takes off what the model thought first, and a [`ToolParser`] tells the calls of tools
//! from the rest.
//!
//! The floor is separate because the engine must not know text: a stop string is found out here and
//! ends the sequence in there. It reads no file, starts no thread and awaits nothing: encoding is
//! plain CPU work of some microseconds per kilobyte, and long prompts belong on a blocking pool.

mod chat_template;
mod detokenizer;
mod gguf;
mod pieces;
mod reasoning;
mod special_tokens;
mod stop;
mod tokenizer;
mod tool_calls;
mod tool_prompt;

pub use chat_template::{ChatTemplate, Conversation, TemplateError, TemplateSources};
pub use detokenizer::{Detokenizer, Emission};
pub use gguf::GgufVocabulary;
pub use reasoning::{ReasoningFormat, ReasoningSplitter, Split};
pub use special_tokens::SpecialTokens;
pub use stop::{StopMatcher, StopOutcome};
pub use tokenizer::{Encoding, Tokenizer};
pub use tool_calls::{Forced, GrammarOptions, Piece, ToolFormat, ToolParser};
pub use tool_prompt::with_tools;

#[cfg(test)]
mod tests;

/// Everything that can go wrong on this floor.
///
/// The first four come from a model's files and stop a server at start; the operator must act. The
/// last two can only come from a tokenizer whose parts disagree with each other, while it runs.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// `tokenizer.json` or one of its companions cannot be read.
    #[error("invalid {file}: {reason}")]
    InvalidFile {
        /// Name of the file as the Hugging Face layout has it.
        file: &'static str,
        /// What the parser said.
        reason: String,
    },
    /// A token named in the configuration is missing or absent from the vocabulary.
    #[error("`{field}` of tokenizer_config.json: {reason}")]
    SpecialToken {
        /// Key in `tokenizer_config.json`.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A GGUF metadata value is missing, contradictory or not supported.
    #[error("GGUF metadata `{key}`: {reason}")]
    Gguf {
        /// Full metadata key, such as `tokenizer.ggml.pre`.
        key: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// A chat template is not one.
    #[error("chat template `{name}`: {reason}")]
    Template {
        /// Name of the template, `default` where the model's files give it none.
        name: String,
        /// What is wrong, and on which line.
        reason: String,
    },
    /// The text could not be encoded.
    #[error("cannot encode: {0}")]
    Encode(String),
    /// The ids could not be decoded.
    #[error("cannot decode: {0}")]
    Decode(String),
}
