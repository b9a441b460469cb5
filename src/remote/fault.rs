//! How an attempt failed: one class decides about retries, breakers and what the caller is told.

use std::time::Duration;

use crate::generation::Usage;

/// What sort of failure it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// No connection, or it broke before the response's head.
    Transport,
    /// A clock ran out, or the upstream said so (408, 504).
    Timeout,
    /// A dedicated machine has too much to do (503, 529, TGI's 429).
    Overloaded,
    /// A shared upstream limits us (429).
    RateLimited,
    /// The upstream failed (500, 502, 424, an error within a 200, a page of HTML).
    ServerError,
    /// The endpoint sleeps or wakes.
    ColdStart,
    /// The endpoint is paused and will not wake by itself.
    Paused,
    /// Nobody there serves the model.
    NotServed,
    /// It gave an answer whole where events were asked for.
    Unstreamed,
    /// The credential is refused (401, 403).
    AuthFailed,
    /// The credential has no money left (402, 403 that speaks of a limit).
    QuotaExhausted,
    /// The request is wrong (400, 413, 422).
    BadRequest,
    /// The request is longer than the target's context.
    ContextOverflow,
    /// The target could not form a tool call.
    ToolCall,
    /// The answer does not match the schema that was asked for.
    SchemaViolation,
    /// The upstream will not say it.
    ContentFilter,
    /// The answer broke off after the caller had seen some of it.
    MidStream,
    /// Our own caller left.
    ClientGone,
    /// The request's own deadline passed.
    Deadline,
    /// Nothing here to send from; says nothing about the target.
    LocalPressure,
    /// A redirect or a certificate that is not trusted: the settings are wrong.
    Misconfigured,
}

impl Class {
    /// Every class.
    pub const ALL: [Self; 21] = [
        Self::Transport,
        Self::Timeout,
        Self::Overloaded,
        Self::RateLimited,
        Self::ServerError,
        Self::ColdStart,
        Self::Paused,
        Self::NotServed,
        Self::Unstreamed,
        Self::AuthFailed,
        Self::QuotaExhausted,
        Self::BadRequest,
        Self::ContextOverflow,
        Self::ToolCall,
        Self::SchemaViolation,
        Self::ContentFilter,
        Self::MidStream,
        Self::ClientGone,
        Self::Deadline,
        Self::LocalPressure,
        Self::Misconfigured,
    ];

    /// The name in settings (`on = [...]`), records and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Transport => "transport",
            Self::Timeout => "timeout",
            Self::Overloaded => "overloaded",
            Self::RateLimited => "rate_limited",
            Self::ServerError => "server_error",
            Self::ColdStart => "cold_start",
            Self::Paused => "paused",
            Self::NotServed => "not_served",
            Self::Unstreamed => "unstreamed",
            Self::AuthFailed => "auth_failed",
            Self::QuotaExhausted => "quota_exhausted",
            Self::BadRequest => "bad_request",
            Self::ContextOverflow => "context_overflow",
            Self::ToolCall => "tool_call",
            Self::SchemaViolation => "schema_violation",
            Self::ContentFilter => "content_filter",
            Self::MidStream => "mid_stream",
            Self::ClientGone => "client_gone",
            Self::Deadline => "deadline",
            Self::LocalPressure => "local_pressure",
            Self::Misconfigured => "misconfigured",
        }
    }
}

/// One attempt's failure.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// What sort.
    pub class: Class,
    /// The upstream's status, if it gave one.
    pub status: Option<u16>,
    /// In words, redacted and cut: for logs, and for callers where the class allows.
    pub message: Box<str>,
    /// When the upstream wants to be asked again.
    pub retry_after: Option<Duration>,
    /// The field that the upstream names as wrong.
    pub param: Option<Box<str>>,
    /// Whether it names that in a place of its own, rather than somewhere in a sentence, which may be the caller's.
    pub param_stated: bool,
    /// A limit that the upstream names: its context in tokens.
    pub context_length: Option<u32>,
    /// Who ran the model, if the upstream said so.
    pub provider: Option<String>,
    /// The upstream's own name for the request.
    pub upstream_request_id: Option<String>,
    /// Whether it is certain that no byte of the body was handed to a connection, so that it can have cost nothing.
    pub unsent: bool,
    /// What a whole answer has used that is a failure all the same: it is billed.
    pub usage: Option<Box<Usage>>,
}

impl Fault {
    /// A failure of this class and nothing else known.
    pub fn new(class: Class, message: impl Into<Box<str>>) -> Self {
        Self {
            class,
            status: None,
            message: message.into(),
            retry_after: None,
            param: None,
            param_stated: false,
            context_length: None,
            provider: None,
            upstream_request_id: None,
            unsent: false,
            usage: None,
        }
    }

    /// The field that the target does not know, where that is why it refused the request. A wrong value of a
    /// field that it knows is none.
    pub fn unknown_field(&self) -> Option<&str> {
        const WORDS: &[&str] = &[
            "support",
            "unknown",
            "unrecogni",
            "unexpected",
            "extra",
            "not permitted",
            "not allowed",
            "not available",
        ];
        let message = self.message.to_ascii_lowercase();
        let unknown = WORDS.iter().any(|word| message.contains(word)) && !message.contains("value");
        let refused = self.class == Class::BadRequest && unknown;
        self.param.as_deref().filter(|_| refused)
    }

    /// The same for a request that never left.
    pub fn unsent(class: Class, message: impl Into<Box<str>>) -> Self {
        Self {
            unsent: true,
            ..Self::new(class, message)
        }
    }
}
