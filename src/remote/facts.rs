//! What is known of one target: the operator's word where there is one, else the catalogue's.
//!
//! Plain values, put together by the catalogue and read by the translation and the decision. Nothing here
//! is learned from traffic.

use std::sync::Arc;

use super::config::{CancelSettle, Capabilities, EngineKind, Price, UpstreamKind};

/// One target as the translation sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetFacts {
    /// Its name in settings, records and metrics.
    pub name: Arc<str>,
    /// What sort of thing answers there.
    pub kind: UpstreamKind,
    /// Which engine answers; the generic one where nobody knows.
    pub engine: EngineKind,
    /// The model's name there, without a suffix.
    pub model: Arc<str>,
    /// Who runs it: at a router the pin or the policy that becomes the model's suffix, elsewhere the provider
    /// that the upstream is.
    pub provider: Option<Arc<str>>,
    /// The path of chat completions, where it is not the usual one. At a router a path that begins with the
    /// provider's name leads through the router to the provider's own API.
    pub chat_path: Option<String>,
    /// What it can do; none means not known.
    pub capabilities: Capabilities,
    /// Tokens of prompt and answer together.
    pub context_length: Option<u32>,
    /// Whether it has the same weights and tokenizer as the local model.
    pub same_model: bool,
    /// What it costs; none means not known, which is never free.
    pub price: Option<Price>,
    /// What an answer that broke off is counted at.
    pub cancel: CancelSettle,
}
