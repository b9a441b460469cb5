//! The bodies of Anthropic's messages route.
//!
//! Source: Anthropic's API reference for messages.

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use utoipa::ToSchema;

/// Body of `POST /v1/messages`.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub struct MessagesRequest {
    /// The model; `tgi`, or nothing, means the one that is served.
    pub model: Option<String>,
    /// The conversation so far.
    pub messages: Vec<InputMessage>,
    /// What the model is told before everything else.
    pub system: Option<BlocksOrText>,
    /// Most tokens to generate; what the context holds without it.
    #[schema(minimum = 1)]
    pub max_tokens: Option<u32>,
    /// Texts that end the answer.
    pub stop_sequences: Option<Vec<String>>,
    /// Whether to answer as events.
    pub stream: Option<bool>,
    /// Divides the scores; 0 takes the best token always.
    #[schema(minimum = 0)]
    pub temperature: Option<f32>,
    /// Keeps the smallest set of tokens with this probability.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub top_p: Option<f32>,
    /// Keeps the so many best tokens.
    #[schema(minimum = -1)]
    pub top_k: Option<i32>,
    /// Functions the model may call.
    pub tools: Option<Vec<MessagesTool>>,
    /// Which function to call.
    pub tool_choice: Option<MessagesToolChoice>,
    /// Whether reasoning is shown.
    pub thinking: Option<Thinking>,
    /// The shape of the answer.
    pub output_config: Option<OutputConfig>,
}

/// Body of `POST /v1/messages/count_tokens`.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub struct CountTokensRequest {
    /// As in [`MessagesRequest`].
    pub model: Option<String>,
    /// As in [`MessagesRequest`].
    pub messages: Vec<InputMessage>,
    /// As in [`MessagesRequest`].
    pub system: Option<BlocksOrText>,
    /// As in [`MessagesRequest`].
    pub tools: Option<Vec<MessagesTool>>,
    /// As in [`MessagesRequest`].
    pub tool_choice: Option<MessagesToolChoice>,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub struct InputMessage {
    /// `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: BlocksOrText,
}

/// A text, or blocks.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum BlocksOrText {
    /// One text.
    Text(String),
    /// Blocks, in order.
    Blocks(Vec<InputBlock>),
}

/// One block of a message.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
#[schema(no_recursion)]
pub struct InputBlock {
    /// `text`, `tool_use`, `tool_result`, `thinking` or `redacted_thinking`.
    #[serde(rename = "type")]
    pub kind: String,
    /// A text.
    pub text: Option<String>,
    /// What the model thought.
    pub thinking: Option<String>,
    /// Names a call.
    pub id: Option<String>,
    /// The function of a call.
    pub name: Option<String>,
    /// A call's arguments.
    pub input: Option<Json>,
    /// The call a result answers.
    pub tool_use_id: Option<String>,
    /// What the function returned.
    pub content: Option<Box<BlocksOrText>>,
}

/// A function the model may call.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub struct MessagesTool {
    /// `custom`, or nothing.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Its name.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// JSON Schema of its arguments.
    #[serde(default)]
    pub input_schema: Json,
    /// Whether a call must match the schema even when the model chooses freely.
    pub strict: Option<bool>,
}

/// Which function to call.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
pub struct MessagesToolChoice {
    /// `auto`, `any`, `tool` or `none`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The function, with `tool`.
    pub name: Option<String>,
    /// Whether an answer may hold one call only.
    pub disable_parallel_tool_use: Option<bool>,
}

/// Whether reasoning is shown.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
pub struct Thinking {
    /// `disabled` hides it; any other value shows it.
    #[serde(rename = "type")]
    pub kind: String,
}

/// The shape of the answer.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub struct OutputConfig {
    /// A JSON Schema.
    pub format: Option<OutputFormat>,
}

/// A JSON Schema.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub struct OutputFormat {
    /// Always `json_schema`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The schema.
    pub schema: Option<Json>,
}

/// Answer of `POST /v1/messages`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct MessagesResponse {
    /// Names the answer.
    pub id: String,
    /// Always `message`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Always `assistant`.
    pub role: &'static str,
    /// The model.
    pub model: String,
    /// What the model said.
    pub content: Vec<OutputBlock>,
    /// `end_turn`, `max_tokens`, `stop_sequence` or `tool_use`.
    #[schema(required)]
    pub stop_reason: Option<&'static str>,
    /// The stop string that came.
    #[schema(required)]
    pub stop_sequence: Option<String>,
    /// Tokens used.
    pub usage: MessagesUsage,
}

/// One block of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputBlock {
    /// Text for the reader.
    Text {
        /// The text.
        text: String,
    },
    /// What the model thought.
    Thinking {
        /// The text.
        thinking: String,
        /// Always empty.
        signature: String,
    },
    /// A call of a function.
    ToolUse {
        /// Names the call.
        id: String,
        /// The function.
        name: String,
        /// Its arguments.
        input: Json,
    },
}

/// Tokens used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct MessagesUsage {
    /// Of the prompt.
    pub input_tokens: u32,
    /// Generated.
    pub output_tokens: u32,
}

/// Answer of `POST /v1/messages/count_tokens`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct CountTokensResponse {
    /// Tokens of the prompt.
    pub input_tokens: usize,
}

/// One event of a streamed message.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MessagesEvent {
    /// The answer begins.
    MessageStart {
        /// The answer so far.
        message: Box<MessagesResponse>,
    },
    /// A block begins.
    ContentBlockStart {
        /// The block's place.
        index: usize,
        /// The block, still empty.
        content_block: OutputBlock,
    },
    /// More of a block.
    ContentBlockDelta {
        /// The block's place.
        index: usize,
        /// What is new.
        delta: BlockDelta,
    },
    /// A block is whole.
    ContentBlockStop {
        /// The block's place.
        index: usize,
    },
    /// The answer is whole.
    MessageDelta {
        /// Why it ended.
        delta: MessageEnd,
        /// Tokens used.
        usage: MessagesUsage,
    },
    /// Nothing follows.
    MessageStop,
}

impl MessagesEvent {
    /// The event's name, which is also its `type`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::MessageStart { .. } => "message_start",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop => "message_stop",
        }
    }
}

/// What is new in a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum BlockDelta {
    /// More text.
    TextDelta {
        /// The text.
        text: String,
    },
    /// More reasoning.
    ThinkingDelta {
        /// The text.
        thinking: String,
    },
    /// More of a call's arguments.
    InputJsonDelta {
        /// JSON text.
        partial_json: String,
    },
}

/// Why an answer ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct MessageEnd {
    /// As in [`MessagesResponse`].
    #[schema(required)]
    pub stop_reason: Option<&'static str>,
    /// As in [`MessagesResponse`].
    #[schema(required)]
    pub stop_sequence: Option<String>,
}

/// Body of every error, and the event that ends a failed stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AnthropicError {
    /// Always `error`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The failure.
    pub error: AnthropicErrorDetail,
}

/// A failure as Anthropic writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct AnthropicErrorDetail {
    /// Its class.
    #[serde(rename = "type")]
    pub kind: String,
    /// In words.
    pub message: String,
}
