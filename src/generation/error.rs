//! The one error that crosses floors: what went wrong, in words for the caller.
//!
//! Each floor has its own error enum and maps it to this by hand at its border. The kind decides the
//! status (chosen in `api/error.rs` only); the message is already the text the caller reads.

use std::time::Duration;

/// Why a request failed, at the level a caller can act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request itself is wrong; repeating it cannot help.
    Invalid,
    /// Prompt and answer do not fit the context.
    TooLong,
    /// The chat template refuses the messages.
    Template,
    /// The tools or the choice among them are wrong.
    Tool,
    /// No model of that name is served.
    ModelNotFound,
    /// Every place that could serve is full; worth another try after the given time.
    Overloaded {
        /// How long the caller should wait before the next try.
        retry_after: Duration,
    },
    /// The engine failed while working on the request.
    Generation,
    /// No place can serve it, for another reason than load; an operator must act.
    NoTarget,
    /// The money set aside for it is spent.
    Budget {
        /// When the budget begins anew; none where one request costs too much.
        resets_after: Option<Duration>,
    },
    /// The request's deadline passed.
    DeadlineExceeded,
    /// The answer ended before its last token.
    Incomplete,
    /// The health probe failed.
    Unhealthy,
}

impl ErrorKind {
    /// Its name where numbers are kept of how requests end.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Invalid => "invalid",
            Self::TooLong => "too_long",
            Self::Template => "template",
            Self::Tool => "tool",
            Self::ModelNotFound => "model_not_found",
            Self::Overloaded { .. } => "overloaded",
            Self::Generation => "generation",
            Self::NoTarget => "no_target",
            Self::Budget { .. } => "budget",
            Self::DeadlineExceeded => "deadline",
            Self::Incomplete => "incomplete",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// A failed request: a kind for machines, a sentence for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What sort of failure this is.
    pub kind: ErrorKind,
    /// The failure in words, without the prefix a wire format adds.
    pub message: String,
}

impl Error {
    /// Builds a refusal of a wrong request; `message` says which field and which rule.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self {
            kind: ErrorKind::Invalid,
            message: message.into(),
        }
    }

    /// Builds a refusal of what does not fit the context; `message` gives limit and length.
    pub fn too_long(message: impl Into<String>) -> Self {
        Self {
            kind: ErrorKind::TooLong,
            message: message.into(),
        }
    }

    /// Builds a refusal by the chat template; `message` is the template's own.
    pub fn template(message: impl Into<String>) -> Self {
        Self {
            kind: ErrorKind::Template,
            message: message.into(),
        }
    }

    /// Builds a refusal of tools; `message` says which tool or rule.
    pub fn tool(message: impl Into<String>) -> Self {
        Self {
            kind: ErrorKind::Tool,
            message: message.into(),
        }
    }

    /// Builds the refusal of a name that no model here has.
    pub fn model_not_found(name: &str) -> Self {
        Self {
            kind: ErrorKind::ModelNotFound,
            message: format!(
                "The model `{name}` does not exist here; GET /v1/models lists what does"
            ),
        }
    }

    /// Builds a refusal for want of room.
    pub fn overloaded(retry_after: Duration) -> Self {
        Self {
            kind: ErrorKind::Overloaded { retry_after },
            message: "Model is overloaded".to_owned(),
        }
    }

    /// Builds a failure of the engine; `message` says what failed.
    pub fn generation(message: impl Into<String>) -> Self {
        Self {
            kind: ErrorKind::Generation,
            message: message.into(),
        }
    }

    /// Builds the failure of a request that no place can serve; `message` tells an operator what to do.
    pub fn no_target(message: impl Into<String>) -> Self {
        Self {
            kind: ErrorKind::NoTarget,
            message: message.into(),
        }
    }

    /// Builds the refusal of a request that no money is left for, or none before so long.
    pub fn budget(message: impl Into<String>, resets_after: Option<Duration>) -> Self {
        Self {
            kind: ErrorKind::Budget { resets_after },
            message: message.into(),
        }
    }

    /// Builds the failure of a request whose deadline passed.
    pub fn deadline_exceeded() -> Self {
        Self {
            kind: ErrorKind::DeadlineExceeded,
            message: "Request deadline exceeded".to_owned(),
        }
    }

    /// Builds the failure of an answer that ended before its last token.
    pub fn incomplete() -> Self {
        Self {
            kind: ErrorKind::Incomplete,
            message: "Incomplete generation".to_owned(),
        }
    }

    /// Builds the answer of a failed health probe.
    pub fn unhealthy() -> Self {
        Self {
            kind: ErrorKind::Unhealthy,
            message: "unhealthy".to_owned(),
        }
    }
}
