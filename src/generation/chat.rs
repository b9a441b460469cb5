//! A conversation as a caller hands it over: messages, tools, and which of them to use.

use serde_json::Value as Json;

/// Messages and everything else a chat template sees.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// The messages, oldest first.
    pub messages: Vec<Message>,
    /// Functions the model may call.
    pub tools: Vec<Tool>,
    /// Which of them it should call.
    pub tool_choice: ToolChoice,
    /// Whether one answer may hold several calls.
    pub parallel_tool_calls: bool,
    /// What tells a model whose template knows no tools how to call one; none means TGI's text.
    pub tool_prompt: Option<String>,
    /// Texts to answer from, for templates that take them.
    pub documents: Option<Vec<Json>>,
    /// More variables for the template, such as `enable_thinking`.
    pub template_kwargs: serde_json::Map<String, Json>,
    /// Whether reasoning is separated from the answer.
    pub separate_reasoning: bool,
}

/// One message.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, `tool`, or what else a template knows.
    pub role: String,
    /// What is said; none for an assistant that only calls tools.
    pub content: Option<String>,
    /// The speaker's name.
    pub name: Option<String>,
    /// The calls an assistant made.
    pub tool_calls: Vec<ToolCall>,
    /// The call a tool answers.
    pub tool_call_id: Option<String>,
    /// What an assistant thought before it spoke.
    pub reasoning: Option<String>,
}

/// A call of a function.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// Names the call in the message that answers it.
    pub id: String,
    /// The function.
    pub name: String,
    /// Its arguments; an object, or text that could not be read as one.
    pub arguments: Json,
}

/// A function the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// JSON Schema of its arguments.
    pub parameters: Json,
    /// Whether a call must match the schema even when the model chooses freely.
    pub strict: bool,
}

/// Whether and which function must be called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// None; the model does not see them.
    None,
    /// At least one.
    Required,
    /// This one.
    Named(String),
}
