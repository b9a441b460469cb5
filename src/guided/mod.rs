//! Guided decoding: which tokens a grammar allows next.
//!
//! A [`Compiler`] turns a grammar into an automaton over the model's own tokens, once, off the step path;
//! a [`Guide`] follows one sequence through it and says as a [`Mask`] what may come next. The work is
//! llguidance's: this floor gives it the vocabulary, bounds what a hostile grammar may cost, and keeps its
//! types to itself. A guide's state is a function of the tokens it has accepted, so it outlives a
//! preemption. It knows no model, no scores and no threads.

mod compiler;
mod guide;
mod vocabulary;

#[cfg(test)]
mod tests;

pub use compiler::{CACHED_GRAMMARS, Compiler};
pub use guide::{Guide, Mask};

/// Why a grammar is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// Its kind is none that this server knows, or the model has no token to end an answer with.
    #[error("grammar is not supported")]
    Unsupported,
    /// It is not well-formed, asks for what cannot be enforced, or is too large.
    #[error("grammar is not valid: {0}")]
    Invalid(String),
}

/// A guide that cannot go on: its grammar's state has outgrown the limits.
///
/// It ends the one sequence; the caller may try a simpler grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the grammar's guide failed: {0}")]
pub struct GuideError(pub String);
