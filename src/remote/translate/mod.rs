//! One request → the body that one target understands, and what comes back → the engine's own events.
//!
//! Nothing is lost in silence: a field is passed on exactly, or it is named among what is degraded, or the
//! request does not go to that target. What only this server means by a field stays out of the upstream's
//! body. Everything here is pure: no clock, no socket, no tokenizer.

mod chat;
mod details;
mod estimate;
mod fit;
mod incoming;
mod messages;
mod providers;
mod raw;
mod replicate;
mod sampling;
mod schema;
mod texts;

#[cfg(test)]
mod tests;
mod tgi;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value as Json};

use super::config::{Capabilities, EngineKind, Fidelity, UpstreamKind};
use super::facts::TargetFacts;
use crate::generation::Request;
use fit::Fit;

pub use estimate::estimate_tokens;
pub use incoming::Incoming;
pub use providers::proxy_path;

/// The settings that translation needs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TranslateSettings {
    /// What becomes of what cannot be done exactly.
    pub fidelity: Fidelity,
    /// Tokens to ask for when the caller names no number.
    pub default_max_tokens: u32,
    /// Hosts whose images a provider may fetch.
    pub image_hosts: BTreeSet<String>,
    /// The text of the token that begins every prompt, where the local tokenizer adds one: a raw prompt that
    /// begins with it loses it, because the raw routes add their own.
    pub bos: Option<Arc<str>>,
}

/// What is known of a request beyond its own fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Known {
    /// Tokens of the prompt, counted here.
    pub input_tokens: Option<u32>,
    /// Whether the raw prompt holds a text that the local tokenizer counts as special; none means not known,
    /// which counts as yes.
    pub special_text: Option<bool>,
    /// Whether the conversation was read back out of a raw prompt, so that the caller gets plain text.
    pub untemplated: bool,
}

/// Why a target cannot have a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ineligible {
    /// The field that stands in the way, as TGI or OpenAI names it.
    pub field: &'static str,
    /// Why, in words for the operator.
    pub why: String,
}

impl Ineligible {
    fn new(field: &'static str, why: impl Into<String>) -> Self {
        Self {
            field,
            why: why.into(),
        }
    }
}

impl fmt::Display for Ineligible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.field, self.why)
    }
}

/// A request ready to be sent, and the reader of its answer.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The path behind the upstream's base URL.
    pub path: String,
    /// Headers that the dialect asks for; authorisation is the client's business.
    pub headers: Vec<(&'static str, String)>,
    /// The JSON body, `model` first.
    pub body: Bytes,
    /// Whether the answer is a stream of events, else one JSON value.
    pub stream: bool,
    /// What is not done exactly, for the header that says so.
    pub degraded: Vec<&'static str>,
    /// Fields of the body that some targets turn out not to know, and that may be left out then.
    pub droppable: Vec<&'static str>,
    /// Reads the answer.
    pub incoming: Incoming,
    /// Every text in the body that somebody wrote, for the rules that look at texts.
    pub texts: Vec<String>,
    /// Tokens of the prompt: the count given, else an estimate that is rather too high.
    pub prompt_tokens: u32,
    /// Tokens that the answer may have.
    pub max_output_tokens: u32,
    /// Whether the model may think before it answers, which takes patience.
    pub may_reason: bool,
}

/// A body under construction and where it goes.
struct Draft {
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Map<String, Json>,
    stream: bool,
    reader: incoming::Reader,
}

/// The grammar of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dialect {
    /// What OpenAI's documents name and nothing else.
    OpenAi,
    Vllm,
    LlamaCpp,
    Tgi,
}

impl Dialect {
    fn of(target: &TargetFacts) -> Self {
        match (target.kind, target.engine) {
            (UpstreamKind::HfRouter | UpstreamKind::Replicate, _) => Self::OpenAi,
            (UpstreamKind::Tgi, _) | (_, EngineKind::Tgi) => Self::Tgi,
            (_, EngineKind::Vllm) => Self::Vllm,
            (_, EngineKind::LlamaCpp) => Self::LlamaCpp,
            (_, EngineKind::OpenAi) => Self::OpenAi,
        }
    }
}

/// What every part of the translation looks at.
struct Job<'a> {
    target: &'a TargetFacts,
    request: &'a Request,
    settings: &'a TranslateSettings,
    known: &'a Known,
    dialect: Dialect,
    prompt_tokens: u32,
    max_tokens: u32,
}

/// Translates a request of which nothing is known beyond its fields.
///
/// Errors: as [`outgoing_known`].
pub fn outgoing(
    target: &TargetFacts,
    request: &Request,
    settings: &TranslateSettings,
) -> Result<Outgoing, Ineligible> {
    outgoing_known(target, request, settings, &Known::default())
}

/// Translates a request for one target.
///
/// Errors: the first field that the target cannot have, under the fidelity in force.
pub fn outgoing_known(
    target: &TargetFacts,
    request: &Request,
    settings: &TranslateSettings,
    known: &Known,
) -> Result<Outgoing, Ineligible> {
    let prompt_tokens = known
        .input_tokens
        .unwrap_or_else(|| estimate_tokens(request));
    let job = Job {
        target,
        request,
        settings,
        known,
        dialect: Dialect::of(target),
        prompt_tokens,
        max_tokens: estimate::max_tokens(target, request, settings, prompt_tokens),
    };
    let mut fit = Fit::new(settings.fidelity);
    let draft = match (&request.chat, target.kind) {
        (_, UpstreamKind::Replicate) => replicate::draft(&job, &mut fit)?,
        (Some(ask), _) => chat::draft(&job, ask, &mut fit)?,
        (None, _) => raw::draft(&job, &mut fit)?,
    };
    let Draft {
        path,
        headers,
        body,
        stream,
        reader,
    } = draft;
    let texts = texts::written(&body, request.chat.as_deref());
    let mut droppable = Capabilities::droppable(settings.fidelity);
    droppable.retain(|field| body.contains_key(*field));
    Ok(Outgoing {
        path,
        headers,
        body: Bytes::from(Json::Object(body).to_string()),
        stream,
        degraded: fit.into_names(),
        droppable: droppable.into_iter().collect(),
        incoming: Incoming::new(reader),
        texts,
        prompt_tokens,
        max_output_tokens: job.max_tokens,
        may_reason: estimate::may_reason(target, request),
    })
}
