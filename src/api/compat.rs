//! Which of two wires is spoken where TGI and OpenAI disagree.
//!
//! One setting decides all of them, so that a client meets one server and not a mixture. Under
//! [`Compat::Tgi`], the default, clients written for TGI see what they are used to; under
//! [`Compat::OpenAi`] those written for OpenAI do. `docs/compat.md` has the table of what it decides. TGI's own
//! routes (`/`, `/generate`, …) never look at it.

use std::str::FromStr;

/// The wire spoken where TGI and OpenAI disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compat {
    /// As TGI does.
    #[default]
    Tgi,
    /// As OpenAI does.
    OpenAi,
}

impl Compat {
    /// Where reasoning goes unless the operator says otherwise: TGI leaves it in the text.
    pub fn reasoning_format(self) -> ReasoningFormat {
        match self {
            Self::Tgi => ReasoningFormat::None,
            Self::OpenAi => ReasoningFormat::Separate,
        }
    }
}

impl FromStr for Compat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "tgi" => Ok(Self::Tgi),
            "openai" => Ok(Self::OpenAi),
            other => Err(format!("compat `{other}` is unknown; tgi and openai are")),
        }
    }
}

/// Where a model's reasoning goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReasoningFormat {
    /// It stays in the text, as the model wrote it.
    None,
    /// Into a field of its own, `reasoning_content`.
    Separate,
}

impl FromStr for ReasoningFormat {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "none" => Ok(Self::None),
            "separate" => Ok(Self::Separate),
            other => Err(format!(
                "reasoning_format `{other}` is unknown; none and separate are"
            )),
        }
    }
}
