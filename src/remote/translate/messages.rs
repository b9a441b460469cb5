//! A conversation's messages and tools as OpenAI writes them.

use serde_json::{Map, Value as Json, json};

use crate::generation::{Message, Tool, ToolCall, ToolChoice};

/// One message; what the caller left out stays out.
pub(super) fn message(message: &Message) -> Json {
    let Message {
        role,
        content,
        name,
        tool_calls,
        tool_call_id,
        reasoning,
    } = message;
    let mut body = Map::new();
    body.insert("role".to_owned(), Json::from(role.as_str()));
    // Null is what OpenAI writes where an assistant only calls tools; elsewhere servers insist on text.
    let said = match content {
        Some(text) => Json::from(text.as_str()),
        None if tool_calls.is_empty() => Json::from(""),
        None => Json::Null,
    };
    body.insert("content".to_owned(), said);
    let optional = [
        ("name", name),
        ("reasoning_content", reasoning),
        ("tool_call_id", tool_call_id),
    ];
    for (key, value) in optional {
        if let Some(value) = value {
            body.insert(key.to_owned(), Json::from(value.as_str()));
        }
    }
    if !tool_calls.is_empty() {
        body.insert(
            "tool_calls".to_owned(),
            tool_calls.iter().map(call).collect(),
        );
    }
    Json::Object(body)
}

fn call(call: &ToolCall) -> Json {
    let ToolCall {
        id,
        name,
        arguments,
    } = call;
    let arguments = match arguments {
        Json::String(text) => text.clone(),
        other => other.to_string(),
    };
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

/// A function the model may call.
pub(super) fn tool(tool: &Tool) -> Json {
    let Tool {
        name,
        description,
        parameters,
        strict,
    } = tool;
    let mut function = json!({"name": name});
    if let Some(description) = description {
        function["description"] = Json::from(description.as_str());
    }
    function["parameters"] = parameters.clone();
    if *strict {
        function["strict"] = Json::Bool(true);
    }
    json!({"type": "function", "function": function})
}

/// Which of them should be called.
pub(super) fn tool_choice(choice: &ToolChoice) -> Json {
    match choice {
        ToolChoice::Auto => Json::from("auto"),
        ToolChoice::None => Json::from("none"),
        ToolChoice::Required => Json::from("required"),
        ToolChoice::Named(name) => json!({"type": "function", "function": {"name": name}}),
    }
}
