//! Numbers that must exist before anybody has counted: tokens of a prompt, a cap for the answer, patience.
//!
//! They bound money and time, so they rather err upwards; the usage that comes back replaces them.

use serde_json::Value as Json;

use super::TranslateSettings;
use crate::generation::{ChatAsk, Message, Request};
use crate::remote::facts::TargetFacts;

/// Bytes of text that count as one token; common tokenizers need three to four a token of prose.
const BYTES_PER_TOKEN: usize = 3;

/// Tokens that a chat template adds to a message: its role and its marks.
const PER_MESSAGE: usize = 8;

/// Tokens for so many bytes of text, rounded up.
pub(super) fn of_bytes(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(BYTES_PER_TOKEN)).unwrap_or(u32::MAX)
}

/// Estimates the tokens of a request's prompt without a tokenizer, rather too high than too low.
///
/// A third of the bytes, eight more for each message, and a third of the bytes of the tools' JSON. Text in
/// which a token is shorter than three bytes, such as long rows of digits, can exceed it.
pub fn estimate_tokens(request: &Request) -> u32 {
    let tokens = match &request.chat {
        Some(ask) => of_chat(ask),
        None => of_bytes(request.prompt.len()).saturating_add(1),
    };
    match request.truncate {
        Some(kept) => tokens.min(u32::try_from(kept.get()).unwrap_or(u32::MAX)),
        None => tokens,
    }
}

fn of_chat(ask: &ChatAsk) -> u32 {
    let conversation = &ask.conversation;
    let length = |text: &Option<String>| text.as_deref().map_or(0, str::len);
    let of_message = |message: &Message| {
        let calls = message.tool_calls.iter();
        let calls: usize = calls
            .map(|call| call.id.len() + call.name.len() + call.arguments.to_string().len())
            .sum();
        calls
            + length(&message.content)
            + length(&message.name)
            + length(&message.reasoning)
            + length(&message.tool_call_id)
    };
    let tools: usize = conversation
        .tools
        .iter()
        .map(|tool| tool.name.len() + length(&tool.description) + tool.parameters.to_string().len())
        .sum();
    let documents = conversation.documents.iter().flatten();
    let documents: usize = documents.map(|document| document.to_string().len()).sum();
    let text: usize = conversation.messages.iter().map(of_message).sum();
    let marks = PER_MESSAGE * (conversation.messages.len() + conversation.tools.len() + 1);
    of_bytes(text + tools + documents + length(&conversation.tool_prompt))
        .saturating_add(u32::try_from(marks).unwrap_or(u32::MAX))
}

/// The most tokens to ask for: the caller's number, else the default as far as the context has room.
pub(super) fn max_tokens(
    target: &TargetFacts,
    request: &Request,
    settings: &TranslateSettings,
    prompt_tokens: u32,
) -> u32 {
    match (request.max_new_tokens, target.context_length) {
        (Some(asked), _) => asked.get(),
        (None, None) => settings.default_max_tokens.max(1),
        (None, Some(context)) => settings
            .default_max_tokens
            .min(context.saturating_sub(prompt_tokens))
            .max(1),
    }
}

/// Parts of names that families of thinking models carry.
const THINKERS: [&str; 9] = [
    "thinking",
    "reason",
    "-r1",
    "qwq",
    "qwen3",
    "gpt-oss",
    "magistral",
    "glm-4",
    "glm-5",
];

/// Whether a model may think before it answers, as far as its name and the caller's words tell.
///
/// A wrong guess changes only how long the first token is waited for.
pub(super) fn may_reason(target: &TargetFacts, request: &Request) -> bool {
    let Some(ask) = &request.chat else {
        return false;
    };
    let told = &ask.conversation.template_kwargs;
    let off = ["enable_thinking", "thinking"]
        .into_iter()
        .any(|key| told.get(key) == Some(&Json::Bool(false)));
    let none = told.get("reasoning_effort").and_then(Json::as_str) == Some("none");
    let thought = ask
        .conversation
        .messages
        .iter()
        .any(|m| m.reasoning.is_some());
    let name = target.model.to_ascii_lowercase();
    !off && !none && (thought || THINKERS.into_iter().any(|part| name.contains(part)))
}
