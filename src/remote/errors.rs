//! What an upstream's refusal means: status, head and body in, one [`Fault`] out.
//!
//! Upstreams say the same thing in ten shapes and as many words; this file reads them all, so that nothing
//! above it ever looks at a status or a sentence. It is pure. An upstream's text reaches a fault redacted
//! and cut; a page of HTML and the text of a refused credential never do, since such pages carry other
//! people's markup and such texts may echo the credential.
//!
//! A refusal of a request mostly repeats a part of it, and the request is a stranger's text. What would shut a
//! target or a credential to everybody (no money, not served, paused, a limit) is therefore believed of a status,
//! of a code, or of a message that is such a sentence from its first word to its last; words somewhere in a
//! message decide only what becomes of that one request.

use std::fmt::Write as _;
use std::sync::LazyLock;
use std::time::Duration;

use regex::Regex;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::client::Head;
use super::{Billing, Class, EngineKind, Fault, UpstreamKind};
use crate::telemetry::redact;

/// Most bytes of a fault's message.
const LONGEST_MESSAGE: usize = 2048;

/// What is known of whoever answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// What answers at the address.
    pub kind: UpstreamKind,
    /// The engine behind it, if it is known.
    pub engine: Option<EngineKind>,
    /// Who pays: what is the operator's own is not shared with strangers.
    pub billing: Billing,
}

/// Somebody who speaks OpenAI's API, of whom nothing else is known.
impl Default for Origin {
    fn default() -> Self {
        Self {
            kind: UpstreamKind::OpenAiCompat,
            engine: None,
            billing: Billing::Tokens,
        }
    }
}

impl Origin {
    /// Whether the machines behind it serve this operator alone.
    fn dedicated(self) -> bool {
        match self.kind {
            UpstreamKind::InferenceEndpoint | UpstreamKind::Tgi => true,
            UpstreamKind::OpenAiCompat => self.billing == Billing::Own,
            UpstreamKind::HfRouter | UpstreamKind::Replicate => false,
        }
    }

    fn full(self) -> Class {
        if self.dedicated() {
            Class::Overloaded
        } else {
            Class::RateLimited
        }
    }
}

/// Classifies a whole answer that is a failure: any status but success, or success with an error in it.
///
/// `body` may be cut; what cannot be parsed counts as text.
pub fn classify(head: &Head, body: &[u8], origin: Origin) -> Fault {
    let told = Told::read(head, body);
    let class = if (200..300).contains(&head.status) {
        by_code(&told, origin)
    } else {
        by_status(head.status, &told, origin)
    };
    let mut fault = told.fault(class, Some(head.status));
    fault.retry_after = head.retry_after.or(fault.retry_after);
    fault.provider = head.provider.clone();
    fault.upstream_request_id = head.request_id.clone();
    fault
}

/// Classifies an error that arrived within a stream or within a body of status 200: the object that holds
/// `error`. No status in it is trusted but a bare `code`, and that only from engines that mean it.
pub fn in_stream(object: &Value, origin: Origin) -> Fault {
    let told = Told::of(object);
    let class = by_code(&told, origin);
    told.fault(class, None)
}

/// Whether a body is an error in spite of its status: an object whose `error` says something.
pub fn is_error(object: &Value) -> bool {
    object.get("error").is_some_and(|error| !error.is_null())
}

/// Cuts a text to so many bytes, at a character.
pub(super) fn cut(text: &mut String, most: usize) {
    if text.len() > most {
        let end = (0..=most.saturating_sub('…'.len_utf8()))
            .rev()
            .find(|&i| text.is_char_boundary(i))
            .unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
}

/// What a body says, whatever its shape.
#[derive(Debug, Default)]
struct Told {
    message: String,
    /// `type`, `error_type`.
    kind: String,
    code: String,
    /// `code`, where it is a number that can be a status.
    number: Option<u16>,
    param: Option<String>,
    n_ctx: Option<u32>,
    failed_generation: bool,
    estimated: Option<Duration>,
}

impl Told {
    fn read(head: &Head, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let text = text.trim_start_matches('\u{feff}').trim();
        let html = head.content_type.as_deref() == Some("text/html")
            || text
                .get(..9)
                .is_some_and(|t| t.eq_ignore_ascii_case("<!doctype"))
            || text
                .get(..5)
                .is_some_and(|t| t.eq_ignore_ascii_case("<html"));
        if html {
            let digest = Sha256::digest(&body[..body.len().min(512)]);
            let mut message = format!(
                "a page of HTML, {} bytes, that begins with sha256 ",
                body.len()
            );
            for byte in &digest[..8] {
                let _ = write!(message, "{byte:02x}");
            }
            return Self {
                message,
                ..Self::default()
            };
        }
        match serde_json::from_str::<Value>(text) {
            Ok(value) => Self::of(&value),
            Err(_) => Self {
                message: text.to_owned(),
                ..Self::default()
            },
        }
    }

    fn of(value: &Value) -> Self {
        let object = match value {
            Value::Array(items) => items.first().unwrap_or(&Value::Null),
            other => other,
        };
        let error = match object.get("error") {
            Some(error) if !error.is_null() => error,
            _ => object,
        };
        let field = |name: &str| error.get(name).or_else(|| object.get(name));
        let word = |name: &str| match field(name) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            _ => String::new(),
        };
        let mut told = Self {
            kind: word("type"),
            code: word("code"),
            param: Some(word("param")).filter(|p| !p.is_empty()),
            n_ctx: field("n_ctx")
                .and_then(Value::as_u64)
                .and_then(|n| n.try_into().ok()),
            failed_generation: field("failed_generation").is_some(),
            estimated: field("estimated_time")
                .and_then(Value::as_f64)
                .and_then(|s| Duration::try_from_secs_f64(s).ok()),
            ..Self::default()
        };
        if let Some(kind) = object.get("error_type").and_then(Value::as_str) {
            kind.clone_into(&mut told.kind);
        }
        told.number = told
            .code
            .parse()
            .ok()
            .filter(|code| (400..600).contains(code));
        told.message = match error {
            Value::String(text) => text.clone(),
            Value::Array(items) => {
                let texts: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
                texts.join("; ")
            }
            _ => ["message", "detail", "title", "error"]
                .iter()
                .find_map(|name| told.text_of(field(name)?))
                .unwrap_or_default(),
        };
        if told.message.is_empty() {
            told.message = word("message");
        }
        told
    }

    /// A text, or FastAPI's list of what is wrong where; that also names the field.
    fn text_of(&mut self, value: &Value) -> Option<String> {
        match value {
            Value::String(text) if !text.is_empty() => Some(text.clone()),
            Value::Array(items) => {
                let mut texts = Vec::new();
                for item in items {
                    let place = item.get("loc").and_then(Value::as_array);
                    let field = place.and_then(|place| {
                        let mut names = place.iter().filter_map(Value::as_str);
                        names.find(|name| *name != "body")
                    });
                    if self.param.is_none() {
                        self.param = field.map(str::to_owned);
                    }
                    if let Some(text) = item.get("msg").and_then(Value::as_str) {
                        texts.push(
                            field.map_or_else(|| text.to_owned(), |f| format!("{f}: {text}")),
                        );
                    } else if let Some(text) = item.as_str() {
                        texts.push(text.to_owned());
                    }
                }
                (!texts.is_empty()).then(|| texts.join("; "))
            }
            Value::Object(_) => ["message", "msg", "error"]
                .iter()
                .find_map(|name| Some(value.get(name)?.as_str()?.to_owned())),
            _ => None,
        }
    }

    /// Message, type and code in lower case, to look for words in. The message may repeat a caller's words.
    fn words(&self) -> String {
        format!("{} {} {}", self.message, self.kind, self.code).to_lowercase()
    }

    /// Whether type or code is one of these.
    fn is_coded(&self, of: &[&str]) -> bool {
        let is = |word: &str| of.iter().any(|code| word.eq_ignore_ascii_case(code));
        is(&self.kind) || is(&self.code)
    }

    /// Whether the whole message is this sentence.
    fn says(&self, sentence: &Sentence) -> bool {
        sentence
            .as_ref()
            .is_some_and(|sentence| sentence.is_match(self.message.trim()))
    }

    /// Says the failure in words that help: what it means and what mends it, then the upstream's own.
    fn fault(self, class: Class, status: Option<u16>) -> Fault {
        let said = redact::redact(self.message.trim());
        let status_text = status.map_or_else(
            || "an error within the answer".to_owned(),
            |s| format!("status {s}"),
        );
        let meaning = match class {
            Class::AuthFailed => Some(
                "the credential is refused; check the variable that holds the token and that it may make inference calls",
            ),
            Class::QuotaExhausted => Some(
                "the credential has no credits left or has reached a spending limit; this is no outage: buy credits or raise the limit",
            ),
            Class::Paused => Some(
                "the endpoint is paused and does not wake by itself; resume it, or set auto_resume",
            ),
            Class::ColdStart => {
                Some("the endpoint sleeps or is waking; it answers once a replica is ready")
            }
            Class::NotServed => Some(
                "the model is not served there; check the model's name and its suffix, and that the provider is enabled for this token",
            ),
            Class::Misconfigured if matches!(status, Some(300..=399)) => {
                Some("redirects are never followed; check base_url")
            }
            Class::Misconfigured => Some("the settings are wrong; check base_url and chat_path"),
            _ => None,
        };
        let mut message = match meaning {
            Some(meaning) => format!("{status_text}: {meaning}"),
            None if said.is_empty() => status_text,
            None => String::new(),
        };
        if class != Class::AuthFailed && !said.is_empty() {
            if message.is_empty() {
                message.push_str(&said);
            } else {
                let _ = write!(message, " (upstream: {said})");
            }
        }
        cut(&mut message, LONGEST_MESSAGE);
        let context_length = if class == Class::ContextOverflow {
            self.n_ctx
                .filter(|_| self.kind == "exceed_context_size_error")
                .or_else(|| named_context(&self.message))
        } else {
            None
        };
        let param_stated = self.param.is_some();
        let param = if class == Class::BadRequest {
            self.param.or_else(|| named_field(&self.message))
        } else {
            None
        };
        Fault {
            status,
            retry_after: self.estimated,
            param: param.map(|mut param| {
                cut(&mut param, 128);
                param.into()
            }),
            param_stated,
            context_length,
            ..Fault::new(class, message)
        }
    }
}

fn by_status(status: u16, told: &Told, origin: Origin) -> Class {
    let words = told.words();
    let endpoint = origin.kind == UpstreamKind::InferenceEndpoint;
    match status {
        300..=399 | 405 | 407 => Class::Misconfigured,
        400 if endpoint && told.says(&PAUSED) => Class::Paused,
        401 => Class::AuthFailed,
        402 => Class::QuotaExhausted,
        403 if moderated(&words) => Class::ContentFilter,
        403 if not_served(told) => Class::NotServed,
        403 if spent(told) || out_of_credit(&words) => Class::QuotaExhausted,
        403 => Class::AuthFailed,
        404 | 410 => Class::NotServed,
        408 | 504 | 522 | 524 => Class::Timeout,
        429 if spent(told) => Class::QuotaExhausted,
        429 => origin.full(),
        409 | 424 | 425 => Class::ServerError,
        413 if words.contains("tokens per minute") => Class::ContextOverflow,
        500 if told.kind == "exceed_context_size_error" => Class::ContextOverflow,
        502 | 503 if endpoint => Class::ColdStart,
        503 | 529 => Class::Overloaded,
        501 => Class::BadRequest,
        500..=599 => Class::ServerError,
        400..=499 => request_fault(told, &words),
        _ => Class::ServerError,
    }
}

/// The class of a request that the upstream would not take.
fn request_fault(told: &Told, words: &str) -> Class {
    if not_served(told) {
        Class::NotServed
    } else if spent(told) {
        Class::QuotaExhausted
    } else if overflows(told, words) {
        Class::ContextOverflow
    } else if failed_tool_call(told, words) {
        Class::ToolCall
    } else if moderated(words) {
        Class::ContentFilter
    } else {
        Class::BadRequest
    }
}

/// The class of an error that came with a success's status.
fn by_code(told: &Told, origin: Origin) -> Class {
    let words = told.words();
    match told.kind.as_str() {
        "overloaded" | "overloaded_error" => return origin.full(),
        "timeout" => return Class::Timeout,
        "generation" | "incomplete_generation" | "incomplete_generation_stream" => {
            return Class::ServerError;
        }
        "rate_limit_error" | "rate_limit_exceeded" => return origin.full(),
        "validation" if !overflows(told, &words) => return Class::BadRequest,
        _ => {}
    }
    match request_fault(told, &words) {
        Class::BadRequest => {}
        told => return told,
    }
    if told.says(&FULL) {
        return origin.full();
    }
    // Of TGI's numbers none says anything: its chat labels every failure 422.
    let tgi = origin.kind == UpstreamKind::Tgi || origin.engine == Some(EngineKind::Tgi);
    match told.number.filter(|_| !tgi) {
        Some(402) => Class::QuotaExhausted,
        Some(408 | 504) => Class::Timeout,
        Some(429) => origin.full(),
        Some(503 | 529) => Class::Overloaded,
        Some(400 | 413 | 422) => Class::BadRequest,
        _ if told.kind == "invalid_request_error" => Class::BadRequest,
        _ => Class::ServerError,
    }
}

fn any(words: &str, of: &[&str]) -> bool {
    of.iter().any(|word| words.contains(word))
}

/// A sentence, or none where its pattern is wrong, which a test rules out.
type Sentence = LazyLock<Option<Regex>>;

/// A sentence from the first word of a message to its last, in any case.
fn sentence(pattern: &str) -> Option<Regex> {
    Regex::new(&format!(r"(?i)\A(?:{pattern})[.!]?\z")).ok()
}

static UNSERVED: Sentence = LazyLock::new(|| {
    let name = r"[`'\x22]?[a-z0-9_.:@/-]{1,200}[`'\x22]?";
    sentence(&format!(
        "(?:(?:the )?(?:requested )?model {name} (?:is )?)?not supported by \
         (?:any provider(?: you have enabled)?|provider {name})\
         |(?:the )?model:? {name} (?:does not exist|(?:was |is )?not found)\
         (?:,? or you do not have access to it)?"
    ))
});

static SPENT: Sentence = LazyLock::new(|| {
    sentence(
        "you have (?:exceeded|depleted) your monthly included credits(?: for inference providers)?\
         (?:\\. (?:subscribe|purchase|upgrade|please)[a-z0-9 ,.-]{0,200})?\
         |(?:your )?credit balance is too low(?: to access the (?:[a-z]+ )?api)?\
         (?:\\. please go to [a-z &]{1,60} to upgrade or purchase credits)?\
         |you exceeded your current quota(?:, please check your plan and billing details)?\
         |insufficient (?:credits|balance|quota|funds)",
    )
});

static PAUSED: Sentence =
    LazyLock::new(|| sentence("(?:[0-9]{3} )?(?:bad request:? )?invalid state"));

static FULL: Sentence = LazyLock::new(|| {
    sentence(
        "(?:the )?model is (?:currently )?overloaded(?:[.,;] (?:please )?(?:try|retry)[a-z ]{0,60})?\
         |rate limit (?:is )?(?:exceeded|reached)(?:[.,;:] [a-z0-9 ,.-]{0,200})?",
    )
});

fn not_served(told: &Told) -> bool {
    told.is_coded(&[
        "model_not_supported",
        "model_not_found",
        "model_not_available",
    ]) || told.says(&UNSERVED)
}

/// Words of a 403 that speaks of money. Without them it would speak of the credential, which shuts as much.
fn out_of_credit(words: &str) -> bool {
    any(
        words,
        &[
            "credit",
            "spend",
            "billing",
            "balance",
            "payment",
            "budget",
            "quota",
            "monthly limit",
            "usage limit",
        ],
    )
}

/// Whether it speaks of money, whatever the status.
fn spent(told: &Told) -> bool {
    told.is_coded(&[
        "insufficient_quota",
        "insufficient_credits",
        "insufficient_balance",
        "billing_error",
        "billing_hard_limit_reached",
    ]) || told.says(&SPENT)
}

fn moderated(words: &str) -> bool {
    any(
        words,
        &[
            "moderation",
            "content_filter",
            "content_policy",
            "content management policy",
            "responsibleaipolicy",
            "flagged",
        ],
    )
}

fn failed_tool_call(told: &Told, words: &str) -> bool {
    told.failed_generation
        || any(
            words,
            &[
                "tool_use_failed",
                "failed_generation",
                "failed to call a function",
                "tool call validation failed",
            ],
        )
}

fn overflows(told: &Told, words: &str) -> bool {
    let tgi_tokens = told.kind == "validation"
        && words.contains("token")
        && any(words, &["`inputs`", "max_new_tokens"])
        && any(words, &["must be <=", "must have less than"]);
    tgi_tokens
        || any(
            words,
            &[
                "exceed_context_size_error",
                "context_length_exceeded",
                "maximum context length",
                "maximum model length",
                "max_model_len",
                "context length",
                "context window",
                "context size",
                "prompt is too long",
                "too many tokens",
                "`inputs` tokens + `max_new_tokens` must be",
            ],
        )
}

/// The context that a message names, in tokens: only of a message that begins with the sentence of an engine,
/// so that nobody's text stands before the number.
fn named_context(message: &str) -> Option<u32> {
    static NUMBERS: LazyLock<Vec<Regex>> = LazyLock::new(|| {
        [
            r"(?i)\A(?:this|the) model's maximum context (?:length|size) is ([0-9][0-9,_]*) tokens",
            r"(?i)\Athe (?:decoder prompt|input|prompt)(?: \((?:length )?[0-9]+(?: tokens)?\))? is longer than the (?:maximum model length of|model's context (?:length|size|window)) \(?([0-9][0-9,_]*)",
            r"\A(?:Input validation error: )?`inputs` tokens \+ `max_new_tokens` must be <= ([0-9]+)",
        ]
        .iter()
        .filter_map(|pattern| Regex::new(pattern).ok())
        .collect()
    });
    NUMBERS.iter().find_map(|pattern| {
        let number = pattern.captures(message.trim_start())?.get(1)?.as_str();
        let digits: String = number.chars().filter(char::is_ascii_digit).collect();
        digits.parse().ok().filter(|&tokens| tokens > 0)
    })
}

/// The request's field that a message names, if it is one that can be left out.
fn named_field(message: &str) -> Option<String> {
    /// Names that mean nothing else in a sentence.
    const TELLING: &[&str] = &[
        "stream_options",
        "top_logprobs",
        "logprobs",
        "logit_bias",
        "response_format",
        "parallel_tool_calls",
        "tool_choice",
        "reasoning_effort",
        "presence_penalty",
        "frequency_penalty",
        "repetition_penalty",
        "repeat_penalty",
        "max_completion_tokens",
        "max_tokens",
        "top_k",
        "top_p",
        "min_p",
        "structured_outputs",
        "guided_json",
        "guided_regex",
        "continue_final_message",
        "add_generation_prompt",
        "chat_template_kwargs",
    ];
    /// Words that a sentence may use; they count in quotes only.
    const QUOTED: &[&str] = &[
        "seed",
        "stop",
        "tools",
        "user",
        "n",
        "temperature",
        "grammar",
        "stream",
        "messages",
        "model",
    ];
    let inside = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut first: Option<(usize, &str)> = None;
    for (names, quoted) in [(TELLING, false), (QUOTED, true)] {
        for name in names {
            for (at, _) in message.match_indices(name) {
                let before = message[..at].chars().next_back();
                let after = message[at + name.len()..].chars().next();
                let is_quote = |c: Option<char>| matches!(c, Some('`' | '\'' | '"'));
                let fits = if quoted {
                    is_quote(before) && is_quote(after)
                } else {
                    !before.is_some_and(inside) && !after.is_some_and(inside)
                };
                if fits && first.is_none_or(|(place, _)| at < place) {
                    first = Some((at, name));
                }
            }
        }
    }
    first.map(|(_, name)| name.to_owned())
}

#[cfg(test)]
mod tests;
