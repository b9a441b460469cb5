//! The bodies of OpenAI's chat and completion routes, as TGI and OpenAI have them.
//!
//! Requests take both spellings where the two differ; answers have the fields of both, in TGI's order, and
//! leave out what the mode in force does not send.
//!
//! Source: TGI router 3.3.6; OpenAI's API reference for chat completions and completions.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{Array, Object, OneOf, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::upstreams::RouteDetails;

/// Body of `POST /v1/chat/completions`.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub struct ChatRequest {
    /// The model; `tgi`, or nothing, means the one that is served.
    pub model: Option<String>,
    /// The conversation so far.
    pub messages: Vec<Message>,
    /// Lowers the scores of tokens by how often they have come.
    #[schema(minimum = -2, maximum = 2)]
    pub frequency_penalty: Option<f32>,
    /// Lowers the scores of tokens that have come at all.
    #[schema(minimum = -2, maximum = 2)]
    pub presence_penalty: Option<f32>,
    /// Added to the scores of single tokens: an object from token id to a number from -100 to 100.
    pub logit_bias: Option<LogitBias>,
    /// Returns the log-probability of each token.
    pub logprobs: Option<bool>,
    /// Returns the so many best tokens at each place.
    pub top_logprobs: Option<u32>,
    /// Most tokens to generate, under this name or `max_completion_tokens`; what the context holds without it.
    #[serde(alias = "max_completion_tokens")]
    #[schema(minimum = 1)]
    pub max_tokens: Option<u32>,
    /// How many answers to give.
    #[schema(minimum = 1)]
    pub n: Option<usize>,
    /// Texts that end the answer.
    pub stop: Option<Stop>,
    /// Whether to answer as events.
    pub stream: Option<bool>,
    /// Seeds the sampling.
    pub seed: Option<Seed>,
    /// Divides the scores; 0 takes the best token always.
    #[schema(minimum = 0)]
    pub temperature: Option<f32>,
    /// Keeps the smallest set of tokens with this probability.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub top_p: Option<f32>,
    /// Keeps the so many best tokens.
    #[schema(minimum = -1)]
    pub top_k: Option<i32>,
    /// Keeps the tokens at least this many times as probable as the best one.
    #[schema(minimum = 0, maximum = 1)]
    pub min_p: Option<f32>,
    /// Divides the scores of tokens seen before.
    #[schema(exclusive_minimum = 0)]
    pub repetition_penalty: Option<f32>,
    /// Functions the model may call.
    pub tools: Option<Vec<Tool>>,
    /// What tells a model whose template knows no tools how to call one.
    pub tool_prompt: Option<String>,
    /// Which function to call.
    pub tool_choice: Option<ToolChoice>,
    /// Whether one answer may hold several calls.
    pub parallel_tool_calls: Option<bool>,
    /// The shape of the answer.
    pub response_format: Option<ResponseFormat>,
    /// Settings of a stream.
    pub stream_options: Option<StreamOptions>,
    /// Texts to answer from, for templates that take them.
    pub documents: Option<Vec<Json>>,
    /// More variables for the chat template.
    pub chat_template_kwargs: Option<Map<String, Json>>,
    /// Whether to return reasoning as `reasoning_content`, apart from the answer.
    pub separate_reasoning: Option<bool>,
    /// `none` leaves reasoning in the answer; any other value separates it.
    pub reasoning_format: Option<String>,
}

/// One message of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Message {
    /// Who speaks.
    pub role: String,
    /// What is said.
    pub content: Option<Content>,
    /// The speaker's name.
    pub name: Option<String>,
    /// The calls an assistant made.
    pub tool_calls: Option<Vec<ToolCall>>,
    /// The call a tool answers.
    pub tool_call_id: Option<String>,
    /// What an assistant thought before it spoke.
    #[serde(alias = "reasoning")]
    pub reasoning_content: Option<String>,
}

/// What is said: a text, or parts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
#[schema(as = MessageContent)]
pub enum Content {
    /// One text.
    Text(String),
    /// Parts, joined without anything between them.
    Parts(Vec<ContentPart>),
}

/// One part of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = MessageChunk)]
pub struct ContentPart {
    /// `text`; no other kind can be read by a text model.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text.
    pub text: Option<String>,
    /// An image.
    pub image_url: Option<Json>,
    /// A refusal of an earlier answer.
    pub refusal: Option<String>,
}

/// A call of a function within a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ToolCall {
    /// Names the call in the message that answers it.
    #[serde(default)]
    #[schema(required)]
    pub id: String,
    /// Always `function`.
    #[serde(rename = "type", default = "function")]
    #[schema(required)]
    pub kind: String,
    /// What is called.
    pub function: CalledFunction,
}

fn function() -> String {
    "function".to_owned()
}

/// What is called, with what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = FunctionDefinition)]
pub struct CalledFunction {
    /// Always null under `compat = "tgi"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub description: Option<Json>,
    /// The function.
    pub name: String,
    /// Its arguments: JSON text; an object is taken too.
    #[serde(default)]
    #[schema(required)]
    pub arguments: Json,
}

/// A function the model may call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Tool {
    /// Always `function`.
    #[serde(rename = "type", default = "function")]
    pub kind: String,
    /// The function.
    pub function: FunctionDefinition,
}

/// A function's description.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = ToolDefinition)]
pub struct FunctionDefinition {
    /// What it does.
    pub description: Option<String>,
    /// Its name.
    pub name: String,
    /// JSON Schema of its arguments, under this name or `parameters`; nothing means any object.
    #[serde(default, alias = "parameters")]
    pub arguments: Json,
    /// Whether a call must match the schema even when the model chooses freely.
    pub strict: Option<bool>,
}

/// Which function to call: `auto`, `none`, `required`, a name, or an object that names one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum ToolChoice {
    /// A word or a name.
    Word(String),
    /// An object.
    Function(NamedToolChoice),
}

/// Names the function to call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NamedToolChoice {
    /// Always `function`.
    #[serde(rename = "type", default = "function")]
    pub kind: String,
    /// The function.
    pub function: FunctionName,
}

/// A function's name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct FunctionName {
    /// The name.
    pub name: String,
}

/// The shape of the answer, in TGI's spelling (`value`) or OpenAI's (`json_schema`).
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub struct ResponseFormat {
    /// `text`, `json_object`, `json_schema`, `json`, `regex` or `lark`.
    #[serde(rename = "type")]
    pub kind: String,
    /// A JSON Schema, a schema with a name, or the expression.
    pub value: Option<Json>,
    /// A schema with a name.
    pub json_schema: Option<Json>,
    /// A JSON Schema, as llama.cpp and LangChain spell it.
    pub schema: Option<Json>,
}

/// Settings of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, ToSchema)]
pub struct StreamOptions {
    /// Sends a last chunk that counts the tokens.
    #[serde(default)]
    pub include_usage: Option<bool>,
}

/// Texts that end an answer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Stop {
    /// One text.
    One(String),
    /// Several.
    Many(Vec<String>),
}

impl Stop {
    /// The texts.
    pub fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// Biases of single tokens.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum LogitBias {
    /// From token id to bias, as OpenAI has it.
    ById(BTreeMap<String, f32>),
    /// TGI's spelling; has no effect, as there.
    List(Vec<f32>),
}

/// A seed; a negative one is read as its two's complement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Seed {
    /// Zero or more.
    Unsigned(u64),
    /// Below zero.
    Signed(i64),
}

impl PartialSchema for Seed {
    fn schema() -> RefOr<Schema> {
        Object::builder()
            .schema_type(Type::Integer)
            .minimum(Some(i64::MIN as isize))
            .maximum(Some(u64::MAX as usize))
            .description(Some(
                "A seed; a negative one is read as its two's complement.",
            ))
            .into()
    }
}

impl ToSchema for Seed {}

impl Seed {
    /// The number that seeds.
    pub fn value(self) -> u64 {
        match self {
            Self::Unsigned(seed) => seed,
            Self::Signed(seed) => seed.cast_unsigned(),
        }
    }
}

/// Answer of `POST /v1/chat/completions`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatCompletion {
    /// Always `chat.completion`.
    pub object: &'static str,
    /// Names the answer; empty under `compat = "tgi"`.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// The model.
    pub model: String,
    /// The server's version.
    pub system_fingerprint: String,
    /// The answers.
    pub choices: Vec<ChatChoice>,
    /// Tokens used.
    pub usage: Usage,
    /// How it came about, where the caller asked for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub route: Option<RouteDetails>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = ChatCompletionComplete)]
pub struct ChatChoice {
    /// Its place.
    pub index: usize,
    /// What the model said.
    pub message: OutputMessage,
    /// Log-probabilities, when asked for.
    #[schema(required)]
    pub logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`.
    pub finish_reason: &'static str,
}

/// What the model said.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct OutputMessage {
    /// Always `assistant`.
    pub role: &'static str,
    /// The text; the key is absent beside tool calls under `compat = "tgi"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub content: Option<Option<String>>,
    /// What the model thought, when it is separated.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub reasoning_content: Option<String>,
    /// Calls the model made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
}

/// Log-probabilities of an answer or a chunk of it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = ChatCompletionLogprobs)]
pub struct ChatLogprobs {
    /// One entry for each token.
    pub content: Vec<ChatLogprob>,
}

/// A token with its rivals.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = ChatCompletionLogprob)]
pub struct ChatLogprob {
    /// Its text.
    pub token: String,
    /// Its log-probability.
    pub logprob: f32,
    /// Its bytes, under `compat = "openai"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub bytes: Option<Vec<u8>>,
    /// The best tokens at this place.
    pub top_logprobs: Vec<TopLogprob>,
}

/// One of the best tokens at a place.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = ChatCompletionTopLogprob)]
pub struct TopLogprob {
    /// Its text.
    pub token: String,
    /// Its log-probability.
    pub logprob: f32,
    /// Its bytes, under `compat = "openai"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub bytes: Option<Vec<u8>>,
}

/// Tokens used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Usage {
    /// Of the prompt.
    pub prompt_tokens: u32,
    /// Generated, the end token included.
    pub completion_tokens: u32,
    /// Both.
    pub total_tokens: u32,
}

impl Usage {
    /// Counts with their sum.
    pub fn new(prompt_tokens: u32, completion_tokens: u32) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
        }
    }
}

/// One chunk of a streamed chat completion.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct ChatCompletionChunk {
    /// Always `chat.completion.chunk`.
    pub object: &'static str,
    /// Names the answer; empty under `compat = "tgi"`.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// The model.
    pub model: String,
    /// The server's version.
    pub system_fingerprint: String,
    /// One choice; none in the chunk that counts tokens.
    pub choices: Vec<ChunkChoice>,
    /// Tokens used, in the last chunk when asked for.
    #[schema(required)]
    pub usage: Option<Usage>,
}

/// What a chunk adds to one answer.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = ChatCompletionChoice)]
pub struct ChunkChoice {
    /// The answer's place.
    pub index: usize,
    /// What is new.
    pub delta: Delta,
    /// Log-probabilities, when asked for.
    #[schema(required)]
    pub logprobs: Option<ChatLogprobs>,
    /// Set on the last chunk.
    #[schema(required)]
    pub finish_reason: Option<&'static str>,
}

/// What is new in a chunk.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
#[schema(as = ChatCompletionDelta)]
pub struct Delta {
    /// Always `assistant`; only in the first chunk under `compat = "openai"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub role: Option<&'static str>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub content: Option<String>,
    /// More reasoning.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub reasoning_content: Option<String>,
    /// More of tool calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<DeltaToolCall>,
}

/// What is new in a tool call.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct DeltaToolCall {
    /// The call's place.
    pub index: usize,
    /// Its id; only in its first chunk under `compat = "openai"`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub id: Option<String>,
    /// Always `function`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub kind: Option<&'static str>,
    /// What is called.
    pub function: DeltaFunction,
}

/// What is new in a called function.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = Function)]
pub struct DeltaFunction {
    /// Its name, in the call's first chunk.
    #[schema(required)]
    pub name: Option<String>,
    /// More text of its arguments.
    pub arguments: String,
}

/// Body of `POST /v1/completions`.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub struct CompletionRequest {
    /// The model; `tgi`, or nothing, means the one that is served.
    pub model: Option<String>,
    /// Text to continue, or several.
    pub prompt: Prompt,
    /// Most tokens to generate; what the context holds without it.
    #[schema(minimum = 1)]
    pub max_tokens: Option<u32>,
    /// Divides the scores; 0 takes the best token always.
    #[schema(minimum = 0)]
    pub temperature: Option<f32>,
    /// Keeps the smallest set of tokens with this probability.
    #[schema(exclusive_minimum = 0, maximum = 1)]
    pub top_p: Option<f32>,
    /// Keeps the so many best tokens.
    #[schema(minimum = -1)]
    pub top_k: Option<i32>,
    /// Keeps the tokens at least this many times as probable as the best one.
    #[schema(minimum = 0, maximum = 1)]
    pub min_p: Option<f32>,
    /// Seeds the sampling.
    pub seed: Option<Seed>,
    /// Lowers the scores of tokens by how often they have come.
    #[schema(minimum = -2, maximum = 2)]
    pub frequency_penalty: Option<f32>,
    /// Lowers the scores of tokens that have come at all.
    #[schema(minimum = -2, maximum = 2)]
    pub presence_penalty: Option<f32>,
    /// Divides the scores of tokens seen before.
    #[schema(exclusive_minimum = 0)]
    pub repetition_penalty: Option<f32>,
    /// Added to the scores of single tokens.
    pub logit_bias: Option<LogitBias>,
    /// Texts that end the answer.
    pub stop: Option<Stop>,
    /// Whether to answer as events.
    pub stream: Option<bool>,
    /// Settings of a stream.
    pub stream_options: Option<StreamOptions>,
    /// Text behind the answer; refused.
    pub suffix: Option<String>,
    /// How many answers to give to each prompt.
    #[schema(minimum = 1)]
    pub n: Option<usize>,
    /// Puts the prompt before the answer.
    pub echo: Option<bool>,
    /// Returns log-probabilities with the so many best tokens at each place.
    pub logprobs: Option<u32>,
    /// The shape of the answer.
    pub response_format: Option<ResponseFormat>,
}

/// One prompt or several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt(pub Vec<String>);

impl PartialSchema for Prompt {
    fn schema() -> RefOr<Schema> {
        let text = || Object::with_type(Type::String);
        OneOf::builder()
            .item(text())
            .item(Array::builder().items(text()).min_items(Some(1)))
            .description(Some("A text, or a list of texts that is not empty."))
            .into()
    }
}

impl ToSchema for Prompt {}

impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            One(String),
            Many(Vec<String>),
            Tokens(#[allow(dead_code)] Vec<Json>),
        }
        use serde::de::Error;
        match Written::deserialize(deserializer)? {
            Written::One(text) => Ok(Self(vec![text])),
            Written::Many(texts) if texts.is_empty() => Err(D::Error::custom(
                "Empty array detected. Do not use an empty array for the prompt.",
            )),
            Written::Many(texts) => Ok(Self(texts)),
            Written::Tokens(_) => Err(D::Error::custom(
                "`prompt` must be a text or a list of texts; token ids are not accepted",
            )),
        }
    }
}

/// Answer of `POST /v1/completions`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = CompletionFinal)]
pub struct Completion {
    /// Always `text_completion`.
    pub object: &'static str,
    /// Names the answer; empty under `compat = "tgi"`.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// The model.
    pub model: String,
    /// The server's version.
    pub system_fingerprint: String,
    /// The answers, by prompt.
    pub choices: Vec<CompletionChoice>,
    /// Tokens used, in all.
    pub usage: Usage,
    /// How it came about, where the caller asked for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub route: Option<RouteDetails>,
}

/// One answer, or what a chunk adds to it.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = CompletionComplete)]
pub struct CompletionChoice {
    /// Its place.
    pub index: usize,
    /// The text.
    pub text: String,
    /// Log-probabilities, when asked for.
    #[schema(required)]
    pub logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`; before the end empty under `compat = "tgi"`, else null.
    #[schema(required)]
    pub finish_reason: Option<&'static str>,
}

/// Log-probabilities of an answer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    /// The tokens' texts.
    pub tokens: Vec<String>,
    /// Their log-probabilities.
    pub token_logprobs: Vec<f32>,
    /// The best tokens at each place.
    pub top_logprobs: Vec<BTreeMap<String, f32>>,
    /// Where each token begins in the text, in characters.
    pub text_offset: Vec<usize>,
}

/// One chunk of a streamed completion.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[schema(as = Chunk)]
pub struct CompletionChunk {
    /// Always `text_completion`.
    pub object: &'static str,
    /// Names the answer; empty under `compat = "tgi"`.
    pub id: String,
    /// Unix seconds.
    pub created: u64,
    /// What is new.
    pub choices: Vec<CompletionChoice>,
    /// The model.
    pub model: String,
    /// The server's version.
    pub system_fingerprint: String,
    /// Tokens used, in the last chunk of each prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub usage: Option<Usage>,
}

/// Body of an error under `/v1` with `compat = "tgi"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct V1Error {
    /// The failure in words.
    pub error: String,
    /// Its kind, in TGI's words.
    pub error_type: String,
    /// The failure in words, where OpenAI has it.
    pub message: String,
    /// Its kind, in OpenAI's words.
    #[schema(required)]
    pub code: Option<String>,
    /// The field that is wrong, if it is one.
    #[schema(required)]
    pub param: Option<String>,
}

/// Body of an error under `/v1` with `compat = "openai"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct NestedError {
    /// The failure.
    pub error: NestedErrorDetail,
}

/// A failure as OpenAI writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct NestedErrorDetail {
    /// In words.
    pub message: String,
    /// Its class.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its kind.
    #[schema(required)]
    pub code: Option<String>,
    /// The field that is wrong, if it is one.
    #[schema(required)]
    pub param: Option<String>,
}

/// Error event of a stream under `/v1`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct StreamError {
    /// The failure.
    pub error: StreamErrorDetail,
}

/// A failure within a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct StreamErrorDetail {
    /// In words.
    pub message: String,
    /// The status it would have had before the stream began.
    pub http_status_code: u16,
    /// Its kind, in TGI's words.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its kind, in OpenAI's words.
    #[schema(required)]
    pub code: Option<String>,
}
