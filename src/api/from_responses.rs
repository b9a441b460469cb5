//! Bodies of the responses route → conversations; what needs memory is refused by name.

use serde_json::Value as Json;

use super::from_openai::{Ask, Written, arguments, parameters, schema_or_any, shape, unreadable};
use crate::generation::{Conversation, Error, Message, Tool, ToolCall, ToolChoice};
use crate::wire::openai::{Content, ResponseFormat};
use crate::wire::responses::{
    ResponsesInput, ResponsesItem, ResponsesRequest, ResponsesTool, ResponsesToolChoice,
};

/// The settings of a request.
///
/// Errors: something is asked for that a server without memory cannot do.
pub(super) fn ask(body: &ResponsesRequest) -> Result<Ask, Error> {
    let stateful = [
        ("previous_response_id", body.previous_response_id.is_some()),
        ("conversation", body.conversation.is_some()),
        ("background", body.background == Some(true)),
    ];
    if let Some((field, _)) = stateful.iter().find(|(_, asked)| *asked) {
        return Err(Error::invalid(format!(
            "`{field}` is not supported: nothing is kept between requests; send the whole conversation as `input`"
        )));
    }
    if body.top_logprobs.is_some_and(|n| n > 0) {
        return Err(Error::invalid(
            "`top_logprobs` is not supported on this route; use /v1/chat/completions",
        ));
    }
    let format = body.text.as_ref().and_then(|text| text.format.as_ref());
    let format = format.map(|format| match (&*format.kind, &format.schema) {
        ("json_schema", None) => Err(Error::invalid("`text.format.schema` is missing")),
        ("text" | "json_object" | "json_schema", schema) => shape(&ResponseFormat {
            kind: format.kind.clone(),
            value: None,
            schema: None,
            json_schema: schema
                .as_ref()
                .map(|schema| serde_json::json!({"schema": schema})),
        }),
        (other, _) => Err(Error::invalid(format!(
            "`text.format.type` is `{other}`; served are text, json_object and json_schema"
        ))),
    });
    Ok(Ask {
        logprobs: false,
        parameters: parameters(Written {
            temperature: body.temperature,
            top_p: body.top_p,
            max_tokens: body.max_output_tokens,
            ..Written::default()
        }),
        shape: format.transpose()?.flatten(),
        choices: 1,
        ..Ask::default()
    })
}

/// The conversation of a request.
///
/// Errors: an item or a tool that cannot be understood.
pub(super) fn conversation(body: &ResponsesRequest) -> Result<Conversation, Error> {
    let mut messages = Vec::new();
    if let Some(instructions) = &body.instructions {
        messages.push(said("system", instructions.clone()));
    }
    match &body.input {
        ResponsesInput::Text(text) => messages.push(said("user", text.clone())),
        ResponsesInput::Items(items) => {
            for (place, item) in items.iter().enumerate() {
                add(&mut messages, item, place)?;
            }
        }
    }
    let tools = body.tools.iter().flatten().enumerate();
    let tools = tools.map(|(place, tool)| self::tool(tool, place));
    Ok(Conversation {
        messages,
        tools: tools.collect::<Result<_, _>>()?,
        tool_choice: body
            .tool_choice
            .as_ref()
            .map_or(Ok(ToolChoice::Auto), choice)?,
        parallel_tool_calls: body.parallel_tool_calls.unwrap_or(true),
        template_kwargs: body.chat_template_kwargs.clone().unwrap_or_default(),
        separate_reasoning: true,
        ..Conversation::default()
    })
}

fn said(role: &str, text: String) -> Message {
    Message {
        role: role.to_owned(),
        content: Some(text),
        ..Message::default()
    }
}

fn add(messages: &mut Vec<Message>, item: &ResponsesItem, place: usize) -> Result<(), Error> {
    let missing = |field: &str| Error::invalid(format!("`input[{place}].{field}` is missing"));
    match item.kind.as_deref() {
        None | Some("message") => {
            let role = item.role.as_deref().ok_or_else(|| missing("role"))?;
            let role = if role == "developer" { "system" } else { role };
            let content = item.content.as_ref().ok_or_else(|| missing("content"))?;
            messages.push(said(
                role,
                text(content, &format!("input[{place}].content"))?,
            ));
        }
        Some("function_call") => {
            let call = ToolCall {
                id: item.call_id.clone().ok_or_else(|| missing("call_id"))?,
                name: item.name.clone().ok_or_else(|| missing("name"))?,
                arguments: arguments(&Json::from(item.arguments.clone().unwrap_or_default())),
            };
            match messages.last_mut() {
                Some(last) if last.role == "assistant" => last.tool_calls.push(call),
                _ => messages.push(Message {
                    role: "assistant".to_owned(),
                    tool_calls: vec![call],
                    ..Message::default()
                }),
            }
        }
        Some("function_call_output") => {
            let output = item.output.as_ref().ok_or_else(|| missing("output"))?;
            messages.push(Message {
                tool_call_id: Some(item.call_id.clone().ok_or_else(|| missing("call_id"))?),
                ..said("tool", text(output, &format!("input[{place}].output"))?)
            });
        }
        // What was thought before is the model's own business; templates drop it.
        Some("reasoning") => {}
        Some(other) => {
            return Err(Error::invalid(format!(
                "`input[{place}].type` is `{other}`; served are message, function_call, function_call_output and reasoning"
            )));
        }
    }
    Ok(())
}

fn text(content: &Content, field: &str) -> Result<String, Error> {
    match content {
        Content::Text(text) => Ok(text.clone()),
        Content::Parts(parts) => {
            let parts = parts.iter().enumerate();
            let texts = parts.map(|(place, part)| match (part.kind.as_str(), &part.text) {
                ("input_text" | "output_text" | "text", Some(text)) => Ok(text.clone()),
                ("refusal", _) => Ok(part.refusal.clone().unwrap_or_default()),
                (kind, _) => Err(unreadable(&format!("{field}[{place}]"), kind)),
            });
            texts.collect()
        }
    }
}

fn tool(tool: &ResponsesTool, place: usize) -> Result<Tool, Error> {
    if tool.kind != "function" {
        return Err(Error::invalid(format!(
            "`tools[{place}].type` is `{}`; only functions can be called",
            tool.kind
        )));
    }
    Ok(Tool {
        name: tool.name.clone(),
        description: tool.description.clone(),
        parameters: schema_or_any(&tool.parameters),
        strict: tool.strict.unwrap_or(false),
    })
}

fn choice(choice: &ResponsesToolChoice) -> Result<ToolChoice, Error> {
    match choice {
        ResponsesToolChoice::Word(word) => match word.as_str() {
            "auto" => Ok(ToolChoice::Auto),
            "none" => Ok(ToolChoice::None),
            "required" => Ok(ToolChoice::Required),
            other => Err(Error::invalid(format!(
                "`tool_choice` is `{other}`; served are auto, none, required and an object that names a function"
            ))),
        },
        ResponsesToolChoice::Function(named) => Ok(ToolChoice::Named(named.name.clone())),
    }
}
