//! Every text of a body that somebody wrote, for the rules that look for what must not leave.
//!
//! Keys count where the caller chose them (schemas, template variables), and not where the dialect did.

use serde_json::{Map, Value as Json};

use crate::generation::ChatAsk;

/// Fields that hold what the dialect chose, not what anybody wrote.
const OURS: [&str; 2] = ["model", "stream"];

/// Fields in which the keys are the caller's too.
const WITH_KEYS: [&str; 9] = [
    "parameters",
    "schema",
    "json_schema",
    "value",
    "grammar",
    "structured_outputs",
    "documents",
    "chat_template_kwargs",
    "arguments",
];

/// Words of the dialect where they stand; a role or a choice of another name is somebody's own.
const WORDS: [(&str, &[&str]); 3] = [
    ("role", &["system", "user", "assistant", "tool"]),
    ("tool_choice", &["auto", "none", "required"]),
    ("type", &["function", "json_schema", "json_object", "regex"]),
];

fn is_word(key: &str, value: &Json) -> bool {
    let words = WORDS.iter().find(|(field, _)| *field == key);
    let value = value.as_str();
    words.is_some_and(|(_, words)| value.is_some_and(|value| words.contains(&value)))
}

/// Collects them, in the order of the body; arguments of calls also as the values they hold.
pub(super) fn written(body: &Map<String, Json>, ask: Option<&ChatAsk>) -> Vec<String> {
    let mut texts = Vec::new();
    for (key, value) in body {
        if !OURS.contains(&key.as_str()) && !is_word(key, value) {
            // TGI's parameters are a dialect's fields; a schema within them has keys of its own again.
            let keys = key != "parameters" && WITH_KEYS.contains(&key.as_str());
            walk(value, keys, &mut texts);
        }
    }
    // In the body they are JSON within a string, where escapes may hide what a rule looks for.
    let messages = ask.into_iter().flat_map(|ask| &ask.conversation.messages);
    for call in messages.flat_map(|message| &message.tool_calls) {
        walk(&call.arguments, true, &mut texts);
    }
    texts
}

fn walk(value: &Json, keys: bool, texts: &mut Vec<String>) {
    match value {
        Json::String(text) => texts.push(text.clone()),
        Json::Array(items) => items.iter().for_each(|item| walk(item, keys, texts)),
        Json::Object(fields) => {
            for (key, value) in fields {
                if keys {
                    texts.push(key.clone());
                } else if is_word(key, value) {
                    continue;
                }
                walk(value, keys || WITH_KEYS.contains(&key.as_str()), texts);
            }
        }
        // A number can be somebody's too: of an account, of a card.
        Json::Number(number) if keys => texts.push(number.to_string()),
        Json::Number(_) | Json::Null | Json::Bool(_) => {}
    }
}
