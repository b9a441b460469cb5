//! The bodies of text-generation-inference's own routes.
//!
//! Source: TGI router 3.3.6; unknown fields are ignored, absent optional ones are null, as there.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::upstreams::RouteDetails;

/// Body of `POST /generate` and `POST /generate_stream`.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub struct GenerateRequest {
    /// Text to continue.
    #[schema(min_length = 1)]
    pub inputs: String,
    /// Settings; left out means sampling, present (even empty) means greedy decoding by default.
    #[serde(default = "default_parameters")]
    pub parameters: GenerateParameters,
}

/// Body of `POST /`.
#[derive(Debug, Clone, PartialEq, Deserialize, ToSchema)]
pub struct CompatGenerateRequest {
    /// Text to continue.
    #[schema(min_length = 1)]
    pub inputs: String,
    /// As in [`GenerateRequest`].
    #[serde(default = "default_parameters")]
    pub parameters: GenerateParameters,
    /// Whether to answer as events.
    #[serde(default)]
    #[schema(default = false)]
    pub stream: bool,
}

/// Settings of one generation.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct GenerateParameters {
    /// Generates so many answers and returns the most probable.
    pub best_of: Option<usize>,
    /// Divides the scores.
    #[schema(exclusive_minimum = 0)]
    pub temperature: Option<f32>,
    /// Divides the scores of tokens seen before.
    #[schema(exclusive_minimum = 0)]
    pub repetition_penalty: Option<f32>,
    /// Lowers the scores of tokens by their share of the text so far.
    #[schema(minimum = -2, maximum = 2)]
    pub frequency_penalty: Option<f32>,
    /// Keeps the so many best tokens.
    #[schema(exclusive_minimum = 0)]
    pub top_k: Option<i32>,
    /// Keeps the smallest set of tokens with this probability.
    #[schema(exclusive_minimum = 0, exclusive_maximum = 1)]
    pub top_p: Option<f32>,
    /// Keeps the tokens of typical information with this probability.
    #[schema(exclusive_minimum = 0, exclusive_maximum = 1)]
    pub typical_p: Option<f32>,
    /// Samples instead of taking the best token.
    #[schema(default = false)]
    pub do_sample: bool,
    /// Most tokens to generate.
    #[schema(minimum = 1)]
    pub max_new_tokens: Option<u32>,
    /// Puts the prompt before the generated text.
    pub return_full_text: Option<bool>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// Keeps the last so many tokens of the prompt.
    #[schema(minimum = 1)]
    pub truncate: Option<usize>,
    /// Asks for a watermark.
    #[schema(default = false)]
    pub watermark: bool,
    /// Returns details.
    #[schema(default = false)]
    pub details: bool,
    /// Returns the prompt's tokens with their probabilities.
    #[schema(default = false)]
    pub decoder_input_details: bool,
    /// Seeds the sampling.
    pub seed: Option<u64>,
    /// Returns the so many best tokens at each place.
    pub top_n_tokens: Option<u32>,
    /// Constrains the answer.
    pub grammar: Option<Grammar>,
    /// Names an adapter.
    pub adapter_id: Option<String>,
}

pub(super) fn default_parameters() -> GenerateParameters {
    GenerateParameters {
        do_sample: true,
        ..GenerateParameters::default()
    }
}

/// A constraint on the answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", content = "value")]
#[schema(as = GrammarType)]
pub enum Grammar {
    /// A JSON Schema, as an object or as text that holds one.
    #[serde(rename = "json", alias = "json_object")]
    Json(serde_json::Value),
    /// A regular expression.
    #[serde(rename = "regex")]
    Regex(String),
    /// A named JSON Schema.
    #[serde(rename = "json_schema")]
    JsonSchema(NamedSchema),
    /// A context-free grammar in llguidance's dialect of Lark; not TGI's.
    #[serde(rename = "lark")]
    Lark(String),
}

/// A JSON Schema with its name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = JsonSchemaConfig)]
pub struct NamedSchema {
    /// The name; has no effect.
    pub name: Option<String>,
    /// The schema.
    pub schema: serde_json::Value,
}

/// A generated token.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Token {
    /// Index in the vocabulary; 0 where whoever made the answer did not say.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Log-probability; null where whoever made the answer did not say.
    #[schema(required)]
    pub logprob: Option<f32>,
    /// Whether it is a special token.
    pub special: bool,
}

/// A token of the prompt.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct PrefillToken {
    /// Index in the vocabulary.
    pub id: u32,
    /// Its text.
    pub text: String,
    /// Log-probability; null for the first.
    #[schema(required)]
    pub logprob: Option<f32>,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The allowed number of tokens.
    Length,
    /// The model's own end.
    EosToken,
    /// A stop string.
    StopSequence,
}

/// Answer of `POST /generate`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct GenerateResponse {
    /// The text.
    pub generated_text: String,
    /// Details, when asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub details: Option<Details>,
}

/// Details of a generation.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Details {
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens generated, EOS included.
    pub generated_tokens: u32,
    /// The seed; null when greedy.
    #[schema(required)]
    pub seed: Option<u64>,
    /// The prompt's tokens.
    pub prefill: Vec<PrefillToken>,
    /// The generated tokens.
    pub tokens: Vec<Token>,
    /// The answers that lost, with `best_of` above 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub best_of_sequences: Option<Vec<BestOfSequence>>,
    /// The best tokens at each place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top_tokens: Vec<Vec<Token>>,
    /// How it came about, where the caller asked for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub route: Option<RouteDetails>,
}

/// An answer that lost.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct BestOfSequence {
    /// The text.
    pub generated_text: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens generated.
    pub generated_tokens: u32,
    /// Its seed.
    #[schema(required)]
    pub seed: Option<u64>,
    /// The prompt's tokens.
    pub prefill: Vec<PrefillToken>,
    /// Its tokens.
    pub tokens: Vec<Token>,
    /// The best tokens at each place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top_tokens: Vec<Vec<Token>>,
}

/// One event of `POST /generate_stream`.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct StreamResponse {
    /// Counts from 1.
    pub index: u32,
    /// The token.
    pub token: Token,
    /// The best tokens at this place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub top_tokens: Vec<Token>,
    /// All text, on the last event only.
    #[schema(required)]
    pub generated_text: Option<String>,
    /// Details, on the last event only.
    #[schema(required)]
    pub details: Option<StreamDetails>,
}

/// Details of a streamed generation.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct StreamDetails {
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens generated.
    pub generated_tokens: u32,
    /// The seed.
    #[schema(required)]
    pub seed: Option<u64>,
    /// Tokens of the prompt.
    pub input_length: u32,
}

/// One token of `POST /tokenize`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct SimpleToken {
    /// Index in the vocabulary.
    pub id: u32,
    /// The bytes of the text it stands for.
    pub text: String,
    /// First byte.
    pub start: usize,
    /// Byte after the last.
    pub stop: usize,
}

/// Answer of `POST /chat_tokenize`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ChatTokenizeResponse {
    /// Its tokens.
    pub tokenize_response: Vec<SimpleToken>,
    /// The text the template made.
    pub templated_text: String,
}

/// Answer of `GET /info`. The first fourteen fields are TGI's, in its order; the rest are ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct Info {
    /// Hub id or path.
    pub model_id: String,
    /// Revision.
    #[schema(required)]
    pub model_sha: Option<String>,
    /// Task.
    #[schema(required)]
    pub model_pipeline_tag: Option<String>,
    /// Permits.
    pub max_concurrent_requests: usize,
    /// Limit of `best_of`.
    pub max_best_of: usize,
    /// Limit of `stop`.
    pub max_stop_sequences: usize,
    /// Longest prompt in tokens.
    pub max_input_tokens: usize,
    /// Longest prompt and answer in tokens.
    pub max_total_tokens: usize,
    /// Tokenizer threads.
    pub validation_workers: usize,
    /// Most prompts of one completions call.
    pub max_client_batch_size: usize,
    /// Name of the router.
    pub router: String,
    /// Version of the server.
    pub version: String,
    /// Commit.
    #[schema(required)]
    pub sha: Option<String>,
    /// Image.
    #[schema(required)]
    pub docker_label: Option<String>,
    /// Element type of most weights.
    #[schema(required)]
    pub model_dtype: Option<String>,
    /// Where the model runs.
    pub model_device_type: String,
    /// Instructions in use.
    pub cpu_tier: String,
    /// Tokens the KV cache holds.
    pub max_batch_total_tokens: usize,
    /// Tokens one step computes.
    pub max_batch_prefill_tokens: usize,
}

/// Answer of `GET /v1/models`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ModelsInfo {
    /// Always `list`.
    pub object: String,
    /// The models.
    pub data: Vec<ModelInfo>,
}

/// One served model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ModelInfo {
    /// Its id.
    pub id: String,
    /// Always `model`.
    pub object: String,
    /// When it began to be served, Unix seconds.
    pub created: u64,
    /// Its owner.
    pub owned_by: String,
}

/// Body of every error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct ErrorResponse {
    /// The failure in words.
    pub error: String,
    /// Its kind.
    pub error_type: String,
}
