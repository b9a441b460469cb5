//! The bodies of OpenAI's responses route, as far as a server without memory can serve it.
//!
//! Source: OpenAI's API reference for responses.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use utoipa::ToSchema;

use super::openai::Content;
use super::upstreams::RouteDetails;

/// Body of `POST /v1/responses`.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub struct ResponsesRequest {
    /// The model; `tgi`, or nothing, means the one that is served.
    pub model: Option<String>,
    /// A text, or the conversation so far.
    pub input: ResponsesInput,
    /// What the model is told before everything else.
    pub instructions: Option<String>,
    /// Most tokens to generate; what the context holds without it.
    #[schema(minimum = 1)]
    pub max_output_tokens: Option<u32>,
    /// Divides the scores; 0 takes the best token always.
    #[schema(minimum = 0)]
    pub temperature: Option<f32>,
    /// Keeps the smallest set of tokens with this probability.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub top_p: Option<f32>,
    /// Returns the so many best tokens at each place; refused above 0.
    pub top_logprobs: Option<u32>,
    /// Whether to answer as events.
    pub stream: Option<bool>,
    /// Functions the model may call.
    pub tools: Option<Vec<ResponsesTool>>,
    /// Which function to call.
    pub tool_choice: Option<ResponsesToolChoice>,
    /// Whether one answer may hold several calls.
    pub parallel_tool_calls: Option<bool>,
    /// The shape of the answer.
    pub text: Option<ResponsesText>,
    /// Refused: nothing is kept between requests.
    pub previous_response_id: Option<String>,
    /// Refused: nothing is kept between requests.
    pub conversation: Option<Json>,
    /// Refused when true.
    pub background: Option<bool>,
    /// Returned as it came.
    pub metadata: Option<Map<String, Json>>,
    /// More variables for the chat template.
    pub chat_template_kwargs: Option<Map<String, Json>>,
}

/// What to answer.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum ResponsesInput {
    /// One text of the user.
    Text(String),
    /// The conversation so far.
    Items(Vec<ResponsesItem>),
}

/// One item of a conversation: a message, a call, or what a function returned.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, ToSchema)]
pub struct ResponsesItem {
    /// `message` (or nothing), `function_call`, `function_call_output` or `reasoning`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Who speaks, in a message.
    pub role: Option<String>,
    /// What is said.
    pub content: Option<Content>,
    /// Names a call.
    pub call_id: Option<String>,
    /// The function of a call.
    pub name: Option<String>,
    /// A call's arguments.
    pub arguments: Option<String>,
    /// What a function returned.
    pub output: Option<Content>,
}

/// A function the model may call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResponsesTool {
    /// Always `function`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// JSON Schema of its arguments.
    #[serde(default)]
    pub parameters: Json,
    /// Whether a call must match the schema even when the model chooses freely.
    pub strict: Option<bool>,
}

/// Which function to call: `auto`, `none`, `required`, or an object that names one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum ResponsesToolChoice {
    /// A word.
    Word(String),
    /// An object.
    Function(ResponsesNamedTool),
}

/// Names the function to call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResponsesNamedTool {
    /// Always `function`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The function.
    pub name: String,
}

/// How the answer's text looks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResponsesText {
    /// Its shape.
    pub format: Option<ResponsesFormat>,
}

/// The shape of the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResponsesFormat {
    /// `text`, `json_object` or `json_schema`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The schema's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The schema.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<Json>,
    /// Has no effect: the schema always holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

/// Answer of `POST /v1/responses`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ResponsesResponse {
    /// Names the answer.
    pub id: String,
    /// Always `response`.
    pub object: &'static str,
    /// Unix seconds.
    pub created_at: u64,
    /// `in_progress`, `completed`, `incomplete` or `failed`.
    pub status: &'static str,
    /// Always null: failures are error bodies or events.
    #[schema(required)]
    #[schema(value_type = Option<Object>)]
    pub error: Option<Json>,
    /// Why the answer is incomplete.
    #[schema(required)]
    pub incomplete_details: Option<IncompleteDetails>,
    /// As asked.
    #[schema(required)]
    pub instructions: Option<String>,
    /// As asked.
    #[schema(required)]
    pub max_output_tokens: Option<u32>,
    /// The model.
    pub model: String,
    /// What the model said.
    pub output: Vec<OutputItem>,
    /// As asked.
    pub parallel_tool_calls: bool,
    /// Always null.
    #[schema(required)]
    pub previous_response_id: Option<String>,
    /// Always false.
    pub store: bool,
    /// As asked.
    pub temperature: f32,
    /// As asked.
    pub text: ResponsesText,
    /// As asked.
    pub tool_choice: ResponsesToolChoice,
    /// As asked.
    pub tools: Vec<ResponsesTool>,
    /// As asked.
    pub top_p: f32,
    /// Always `disabled`.
    pub truncation: &'static str,
    /// Tokens used; null until the end.
    #[schema(required)]
    pub usage: Option<ResponsesUsage>,
    /// As asked.
    pub metadata: Map<String, Json>,
    /// How it came about, where the caller asked for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub route: Option<RouteDetails>,
}

/// Why an answer is incomplete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct IncompleteDetails {
    /// Always `max_output_tokens`.
    pub reason: &'static str,
}

/// One item of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputItem {
    /// Text for the reader.
    Message {
        /// Names the item.
        id: String,
        /// `in_progress`, `completed` or `incomplete`.
        status: &'static str,
        /// Always `assistant`.
        role: &'static str,
        /// One part.
        content: Vec<OutputPart>,
    },
    /// A call of a function.
    FunctionCall {
        /// Names the item.
        id: String,
        /// `in_progress`, `completed` or `incomplete`.
        status: &'static str,
        /// Names the call in the item that answers it.
        call_id: String,
        /// The function.
        name: String,
        /// JSON text.
        arguments: String,
    },
    /// What the model thought.
    Reasoning {
        /// Names the item.
        id: String,
        /// Always empty.
        summary: Vec<Json>,
        /// One part.
        content: Vec<OutputPart>,
    },
}

/// One part of an item.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputPart {
    /// Text for the reader.
    OutputText {
        /// The text.
        text: String,
        /// Always empty.
        annotations: Vec<Json>,
    },
    /// What the model thought.
    ReasoningText {
        /// The text.
        text: String,
    },
}

/// Tokens used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
pub struct ResponsesUsage {
    /// Of the prompt.
    pub input_tokens: u32,
    /// Of those, from a cache; not counted.
    pub input_tokens_details: InputTokensDetails,
    /// Generated.
    pub output_tokens: u32,
    /// Of those, reasoning; not counted.
    pub output_tokens_details: OutputTokensDetails,
    /// Both.
    pub total_tokens: u32,
}

/// Kinds of prompt tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct InputTokensDetails {
    /// Always 0.
    pub cached_tokens: u32,
    /// Always 0.
    pub cache_write_tokens: u32,
}

/// Kinds of generated tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct OutputTokensDetails {
    /// Always 0.
    pub reasoning_tokens: u32,
}

/// One event of a streamed response, with its number.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ResponsesEvent {
    /// What happened.
    #[serde(flatten)]
    pub body: ResponsesEventBody,
    /// Counts from 0.
    pub sequence_number: u32,
}

/// What happened in a streamed response.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "type")]
pub enum ResponsesEventBody {
    /// The request was taken.
    #[serde(rename = "response.created")]
    Created {
        /// The response so far.
        response: Box<ResponsesResponse>,
    },
    /// Work has begun.
    #[serde(rename = "response.in_progress")]
    InProgress {
        /// The response so far.
        response: Box<ResponsesResponse>,
    },
    /// An item begins.
    #[serde(rename = "response.output_item.added")]
    ItemAdded {
        /// The item's place.
        output_index: usize,
        /// The item, still empty.
        item: OutputItem,
    },
    /// A part of an item begins.
    #[serde(rename = "response.content_part.added")]
    PartAdded {
        /// The item.
        item_id: String,
        /// The item's place.
        output_index: usize,
        /// The part's place.
        content_index: usize,
        /// The part, still empty.
        part: OutputPart,
    },
    /// More text.
    #[serde(rename = "response.output_text.delta")]
    TextDelta {
        /// The item.
        item_id: String,
        /// The item's place.
        output_index: usize,
        /// The part's place.
        content_index: usize,
        /// The text.
        delta: String,
        /// Always empty.
        logprobs: Vec<Json>,
    },
    /// The text is whole.
    #[serde(rename = "response.output_text.done")]
    TextDone {
        /// The item.
        item_id: String,
        /// The item's place.
        output_index: usize,
        /// The part's place.
        content_index: usize,
        /// All text.
        text: String,
        /// Always empty.
        logprobs: Vec<Json>,
    },
    /// More reasoning.
    #[serde(rename = "response.reasoning_text.delta")]
    ReasoningDelta {
        /// The item.
        item_id: String,
        /// The item's place.
        output_index: usize,
        /// The part's place.
        content_index: usize,
        /// The text.
        delta: String,
    },
    /// The reasoning is whole.
    #[serde(rename = "response.reasoning_text.done")]
    ReasoningDone {
        /// The item.
        item_id: String,
        /// The item's place.
        output_index: usize,
        /// The part's place.
        content_index: usize,
        /// All text.
        text: String,
    },
    /// More of a call's arguments.
    #[serde(rename = "response.function_call_arguments.delta")]
    ArgumentsDelta {
        /// The item.
        item_id: String,
        /// The item's place.
        output_index: usize,
        /// JSON text.
        delta: String,
    },
    /// A call's arguments are whole.
    #[serde(rename = "response.function_call_arguments.done")]
    ArgumentsDone {
        /// The item.
        item_id: String,
        /// The item's place.
        output_index: usize,
        /// The function.
        name: String,
        /// JSON text.
        arguments: String,
    },
    /// A part is whole.
    #[serde(rename = "response.content_part.done")]
    PartDone {
        /// The item.
        item_id: String,
        /// The item's place.
        output_index: usize,
        /// The part's place.
        content_index: usize,
        /// The part.
        part: OutputPart,
    },
    /// An item is whole.
    #[serde(rename = "response.output_item.done")]
    ItemDone {
        /// The item's place.
        output_index: usize,
        /// The item.
        item: OutputItem,
    },
    /// The response is whole.
    #[serde(rename = "response.completed")]
    Completed {
        /// The response.
        response: Box<ResponsesResponse>,
    },
    /// The response was cut.
    #[serde(rename = "response.incomplete")]
    Incomplete {
        /// The response.
        response: Box<ResponsesResponse>,
    },
    /// The response failed.
    #[serde(rename = "error")]
    Error {
        /// In words.
        message: String,
        /// Its kind, in OpenAI's words.
        code: Option<String>,
        /// Always null.
        param: Option<String>,
        /// The failure as on the other routes of `/v1`.
        error: super::openai::StreamErrorDetail,
    },
}

impl ResponsesEventBody {
    /// The event's name, which is also its `type`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created { .. } => "response.created",
            Self::InProgress { .. } => "response.in_progress",
            Self::ItemAdded { .. } => "response.output_item.added",
            Self::PartAdded { .. } => "response.content_part.added",
            Self::TextDelta { .. } => "response.output_text.delta",
            Self::TextDone { .. } => "response.output_text.done",
            Self::ReasoningDelta { .. } => "response.reasoning_text.delta",
            Self::ReasoningDone { .. } => "response.reasoning_text.done",
            Self::ArgumentsDelta { .. } => "response.function_call_arguments.delta",
            Self::ArgumentsDone { .. } => "response.function_call_arguments.done",
            Self::PartDone { .. } => "response.content_part.done",
            Self::ItemDone { .. } => "response.output_item.done",
            Self::Completed { .. } => "response.completed",
            Self::Incomplete { .. } => "response.incomplete",
            Self::Error { .. } => "error",
        }
    }
}
