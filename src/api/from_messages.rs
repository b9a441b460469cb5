//! Bodies of Anthropic's messages route → conversations and settings.

use serde_json::Value as Json;

use super::from_openai::{Ask, Written, parameters, schema_or_any, unreadable};
use crate::generation::{Conversation, Error, Grammar, Message, Tool, ToolCall, ToolChoice};
use crate::wire::anthropic::{
    BlocksOrText, CountTokensRequest, InputBlock, InputMessage, MessagesRequest, MessagesTool,
    MessagesToolChoice,
};

/// The settings of a request.
///
/// Errors: an output format that is no schema.
pub(super) fn ask(body: &MessagesRequest) -> Result<Ask, Error> {
    let format = body.output_config.as_ref().and_then(|o| o.format.as_ref());
    let shape = format.map(|format| match (&*format.kind, &format.schema) {
        ("json_schema", Some(schema)) => Ok(Grammar::JsonSchema(schema.to_string())),
        ("json_schema", None) => Err(Error::invalid("`output_config.format.schema` is missing")),
        (other, _) => Err(Error::invalid(format!(
            "`output_config.format.type` is `{other}`; served is json_schema"
        ))),
    });
    Ok(Ask {
        logprobs: false,
        parameters: parameters(Written {
            temperature: body.temperature,
            top_p: body.top_p,
            top_k: body.top_k,
            max_tokens: body.max_tokens,
            stop: body.stop_sequences.clone().unwrap_or_default(),
            ..Written::default()
        }),
        shape: shape.transpose()?,
        choices: 1,
        ..Ask::default()
    })
}

/// The conversation of a request.
///
/// Errors: a block or a tool that cannot be understood.
pub(super) fn conversation(body: &MessagesRequest) -> Result<Conversation, Error> {
    let shown = body.thinking.as_ref().map(|t| t.kind != "disabled");
    Ok(Conversation {
        separate_reasoning: shown.unwrap_or(true),
        ..common(
            &body.messages,
            body.system.as_ref(),
            body.tools.as_deref(),
            body.tool_choice.as_ref(),
        )?
    })
}

/// The conversation whose tokens are to be counted.
///
/// Errors: as [`conversation`].
pub(super) fn counted(body: &CountTokensRequest) -> Result<Conversation, Error> {
    common(
        &body.messages,
        body.system.as_ref(),
        body.tools.as_deref(),
        body.tool_choice.as_ref(),
    )
}

fn common(
    input: &[InputMessage],
    system: Option<&BlocksOrText>,
    tools: Option<&[MessagesTool]>,
    choice: Option<&MessagesToolChoice>,
) -> Result<Conversation, Error> {
    let mut messages = Vec::new();
    if let Some(system) = system {
        messages.push(Message {
            role: "system".to_owned(),
            content: Some(text(system, "system")?),
            ..Message::default()
        });
    }
    for (place, message) in input.iter().enumerate() {
        add(&mut messages, message, place)?;
    }
    let tools = tools.unwrap_or_default().iter().enumerate();
    let tools = tools.map(|(place, tool)| self::tool(tool, place));
    Ok(Conversation {
        messages,
        tools: tools.collect::<Result<_, _>>()?,
        tool_choice: choice.map_or(Ok(ToolChoice::Auto), tool_choice)?,
        parallel_tool_calls: !choice
            .and_then(|choice| choice.disable_parallel_tool_use)
            .unwrap_or(false),
        ..Conversation::default()
    })
}

/// Adds one message: results of functions become messages of their own, before the text beside them.
fn add(messages: &mut Vec<Message>, message: &InputMessage, place: usize) -> Result<(), Error> {
    let field = format!("messages[{place}].content");
    let mut said = Message {
        role: message.role.clone(),
        ..Message::default()
    };
    let blocks = match &message.content {
        BlocksOrText::Text(text) => {
            said.content = Some(text.clone());
            messages.push(said);
            return Ok(());
        }
        BlocksOrText::Blocks(blocks) => blocks,
    };
    let mut results = false;
    for (part, block) in blocks.iter().enumerate() {
        let field = format!("{field}[{part}]");
        let missing = |name: &str| Error::invalid(format!("`{field}.{name}` is missing"));
        match block.kind.as_str() {
            "text" => {
                let text = block.text.as_ref().ok_or_else(|| missing("text"))?;
                said.content.get_or_insert_default().push_str(text);
            }
            "thinking" => {
                let thought = block.thinking.as_deref().unwrap_or_default();
                said.reasoning.get_or_insert_default().push_str(thought);
            }
            "redacted_thinking" => {}
            "tool_use" => said.tool_calls.push(ToolCall {
                id: block.id.clone().ok_or_else(|| missing("id"))?,
                name: block.name.clone().ok_or_else(|| missing("name"))?,
                arguments: block
                    .input
                    .clone()
                    .unwrap_or_else(|| Json::Object(Default::default())),
            }),
            "tool_result" => {
                let id = block.tool_use_id.as_ref();
                let content = block.content.as_deref();
                let field = format!("{field}.content");
                messages.push(Message {
                    role: "tool".to_owned(),
                    content: Some(content.map_or(Ok(String::new()), |c| text(c, &field))?),
                    tool_call_id: Some(id.ok_or_else(|| missing("tool_use_id"))?.clone()),
                    ..Message::default()
                });
                results = true;
            }
            other => return Err(unreadable(&field, other)),
        }
    }
    if said.content.is_some() || !said.tool_calls.is_empty() || !results {
        messages.push(said);
    }
    Ok(())
}

fn text(content: &BlocksOrText, field: &str) -> Result<String, Error> {
    match content {
        BlocksOrText::Text(text) => Ok(text.clone()),
        BlocksOrText::Blocks(blocks) => {
            let blocks = blocks.iter().enumerate();
            let texts = blocks.map(|(place, block)| match block {
                InputBlock {
                    kind,
                    text: Some(text),
                    ..
                } if kind == "text" => Ok(text.as_str()),
                block => Err(unreadable(&format!("{field}[{place}]"), &block.kind)),
            });
            texts.collect()
        }
    }
}

fn tool(tool: &MessagesTool, place: usize) -> Result<Tool, Error> {
    if let Some(kind) = tool.kind.as_deref().filter(|&kind| kind != "custom") {
        return Err(Error::invalid(format!(
            "`tools[{place}].type` is `{kind}`; only the caller's own functions can be called"
        )));
    }
    Ok(Tool {
        name: tool.name.clone(),
        description: tool.description.clone(),
        parameters: schema_or_any(&tool.input_schema),
        strict: tool.strict.unwrap_or(false),
    })
}

fn tool_choice(choice: &MessagesToolChoice) -> Result<ToolChoice, Error> {
    match (choice.kind.as_str(), &choice.name) {
        ("auto", _) => Ok(ToolChoice::Auto),
        ("none", _) => Ok(ToolChoice::None),
        ("any", _) => Ok(ToolChoice::Required),
        ("tool", Some(name)) => Ok(ToolChoice::Named(name.clone())),
        ("tool", None) => Err(Error::invalid("`tool_choice.name` is missing")),
        (other, _) => Err(Error::invalid(format!(
            "`tool_choice.type` is `{other}`; served are auto, any, tool and none"
        ))),
    }
}
