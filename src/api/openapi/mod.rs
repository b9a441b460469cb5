//! The description of every route in OpenAPI 3.1, generated from the types that travel.
//!
//! Operations stand here and not at the handlers, so that a handler stays readable and the whole of the
//! interface can be read in one place; `tests/it/openapi.rs` holds them against the routes and against
//! TGI's published document. Names of operations and schemas are TGI's where it has them. Routes that a
//! hosting platform names by a variable are not described, nor is the page that shows this document.

mod finish;
mod operation;

use serde_json::Value as Json;
use utoipa::openapi::schema::{AnyOf, Array};
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{
    Components, Info, InfoBuilder, License, OpenApi, OpenApiBuilder, PathItem, PathsBuilder, Tag,
};

use self::operation::{Answer, Family, Headers, Operation, reference};
use crate::wire::anthropic::{
    AnthropicError, CountTokensRequest, CountTokensResponse, MessagesEvent, MessagesRequest,
    MessagesResponse,
};
use crate::wire::openai::{
    ChatCompletion, ChatCompletionChunk, ChatRequest, Completion, CompletionChunk,
    CompletionRequest, StreamError,
};
use crate::wire::platforms::{
    InferRequest, InferResponse, KserveLive, KserveModel, KserveServer, VertexRequest,
    VertexResponse,
};
use crate::wire::responses::{ResponsesEvent, ResponsesRequest, ResponsesResponse};
use crate::wire::tgi::{
    self, ChatTokenizeResponse, CompatGenerateRequest, ErrorResponse, GenerateRequest,
    GenerateResponse, ModelInfo, ModelsInfo, SimpleToken, StreamResponse,
};
use crate::wire::upstreams::UpstreamsHealth;
use crate::wire::usage::UsageReport;

const TGI: &str = "Text Generation Inference";
const OPENAI: &str = "OpenAI";
const ANTHROPIC: &str = "Anthropic";
const PLATFORMS: &str = "Hosting platforms";

/// Statuses of a call that generates, beside success: what the body, the key, the load and the engine can do.
const GENERATING: &[&str] = &[
    "400", "401", "408", "413", "415", "422", "424", "429", "500", "504",
];
/// The same on routes that answer 404 for a model nobody serves, which `compat = "openai"` does.
const NAMING: &[&str] = &[
    "400", "401", "404", "408", "413", "415", "422", "424", "429", "500", "504",
];
/// The same in Anthropic's statuses.
const MESSAGING: &[&str] = &[
    "400", "401", "404", "408", "413", "415", "429", "500", "504",
];
/// Statuses of a call that only turns text into tokens.
const TOKENIZING: &[&str] = &["400", "401", "408", "413", "415", "422", "424", "429"];

/// The document.
pub fn document() -> Json {
    let mut document = serde_json::to_value(described()).unwrap_or_default();
    finish::finish(&mut document);
    document
}

fn described() -> OpenApi {
    let mut paths = PathsBuilder::new();
    let mut components = Components::new();
    let operations = [
        tgi_routes(),
        operator_routes(),
        v1_routes(),
        messages_routes(),
        platform_routes(),
    ];
    for operation in operations.into_iter().flatten() {
        let (path, method, built, schemas) = operation.build();
        components.schemas.extend(schemas);
        paths = paths.path(path, PathItem::new(method, built));
    }
    components.headers.extend(operation::headers());
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer()));
    let x_api_key = ApiKey::Header(ApiKeyValue::new("x-api-key"));
    components.add_security_scheme("x_api_key", SecurityScheme::ApiKey(x_api_key));
    OpenApiBuilder::new()
        .info(info())
        .paths(paths)
        .components(Some(components))
        .tags(Some([
            tag(TGI, "Routes of Hugging Face's Text Generation Inference"),
            tag(OPENAI, "More routes of OpenAI's"),
            tag(ANTHROPIC, "Anthropic's messages"),
            tag(PLATFORMS, "Vertex AI, and KServe's open inference protocol"),
        ]))
        .build()
}

fn info() -> Info {
    let mut license = License::new("Apache-2.0");
    license.identifier = Some("Apache-2.0".to_owned());
    InfoBuilder::new()
        .title("sconce, a server compatible with Text Generation Inference")
        .description(Some(
            "Bodies may hold fields that are not described here; they are ignored. A stream's schema is that of \
             one event's JSON. Keys are asked for where the operator has set any.",
        ))
        .license(Some(license))
        .version(env!("CARGO_PKG_VERSION"))
        .build()
}

fn tag(name: &str, description: &str) -> Tag {
    let mut tag = Tag::new(name);
    tag.description = Some(description.to_owned());
    tag
}

fn bearer() -> utoipa::openapi::security::Http {
    HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build()
}

fn tgi_routes() -> Vec<Operation> {
    let generated = "The generated text";
    vec![
        Operation::post("/", "compat_generate")
            .says(
                TGI,
                "Generate tokens if `stream == false` or a stream of token if `stream == true`",
            )
            .takes::<CompatGenerateRequest>()
            .gives(
                Answer::new(generated)
                    .list_of::<GenerateResponse>()
                    .events::<StreamResponse, ErrorResponse>()
                    .with(Headers::Full),
            )
            .fails(Family::Native, GENERATING)
            .keyed(),
        Operation::post("/generate", "generate")
            .says(TGI, "Generate tokens")
            .takes::<GenerateRequest>()
            .gives(
                Answer::new(generated)
                    .json::<GenerateResponse>()
                    .with(Headers::Full),
            )
            .fails(Family::Native, GENERATING)
            .keyed(),
        Operation::post("/generate_stream", "generate_stream")
            .says(TGI, "Generate a stream of token using Server-Sent Events")
            .takes::<GenerateRequest>()
            .gives(
                Answer::new("One event for each token; a failure is the last event")
                    .events::<StreamResponse, ErrorResponse>()
                    .with(Headers::Stream),
            )
            .fails(
                Family::Native,
                &["400", "401", "408", "413", "415", "422", "429"],
            )
            .keyed(),
        Operation::post("/tokenize", "tokenize")
            .says(TGI, "Tokenize inputs")
            .takes::<GenerateRequest>()
            .gives(
                Answer::new("Tokens, and the bytes they stand for")
                    .named("TokenizeResponse", Array::new(reference::<SimpleToken>()))
                    .and::<SimpleToken>(),
            )
            .fails(Family::Native, TOKENIZING)
            .keyed(),
        Operation::post("/chat_tokenize", "get_chat_tokenize")
            .says(TGI, "Template and tokenize ChatRequest")
            .takes::<ChatRequest>()
            .gives(Answer::new("The prompt and its tokens").json::<ChatTokenizeResponse>())
            .fails(Family::Native, TOKENIZING),
        Operation::post("/v1/chat/completions", "chat_completions")
            .says(TGI, "Generate tokens")
            .takes::<ChatRequest>()
            .gives(
                Answer::new("The assistant's message")
                    .json::<ChatCompletion>()
                    .events::<ChatCompletionChunk, StreamError>()
                    .with(Headers::Full),
            )
            .fails(Family::V1, NAMING)
            .keyed(),
        Operation::post("/v1/completions", "completions")
            .says(TGI, "Generate tokens")
            .takes::<CompletionRequest>()
            .gives(
                Answer::new(generated)
                    .json::<Completion>()
                    .events::<CompletionChunk, StreamError>()
                    .with(Headers::Sum),
            )
            .fails(Family::V1, NAMING)
            .keyed(),
        Operation::post("/invocations", "sagemaker_compatibility")
            .says(TGI, "Generate tokens from Sagemaker request")
            .takes_named(
                "SagemakerRequest",
                AnyOf::builder()
                    .item(reference::<CompatGenerateRequest>())
                    .item(reference::<ChatRequest>())
                    .item(reference::<CompletionRequest>()),
            )
            .gives(
                Answer::new("As the route the body belongs to")
                    .named(
                        "SagemakerResponse",
                        AnyOf::builder()
                            .item(Array::new(reference::<GenerateResponse>()))
                            .item(reference::<ChatCompletion>())
                            .item(reference::<Completion>()),
                    )
                    .named_events(
                        "SagemakerStreamResponse",
                        AnyOf::builder()
                            .item(reference::<StreamResponse>())
                            .item(reference::<ChatCompletionChunk>())
                            .item(reference::<CompletionChunk>())
                            .item(reference::<ErrorResponse>())
                            .item(reference::<StreamError>()),
                    )
                    .with(Headers::Sum),
            )
            .fails(Family::Native, NAMING)
            .keyed(),
    ]
}

fn operator_routes() -> Vec<Operation> {
    let health = |path: &'static str, id: &'static str, summary: &'static str| {
        Operation::get(path, id)
            .says(TGI, summary)
            .gives(Answer::new("Everything is working fine"))
    };
    vec![
        health("/", "root_health", "Health check method").fails(Family::Native, &["503"]),
        health("/health", "health", "Health check method").fails(Family::Native, &["503"]),
        health(
            "/health/ready",
            "ready",
            "Whether a request would be answered",
        )
        .fails(Family::Native, &["503"]),
        health("/health/live", "live", "Whether the process answers"),
        Operation::get("/health/upstreams", "upstreams_health")
            .says(TGI, "Where every upstream's targets stand")
            .gives(Answer::new("Every target").json::<UpstreamsHealth>())
            .fails(Family::Native, &["401"])
            .keyed(),
        Operation::get("/usage", "usage")
            .says(TGI, "Who used what, and what it cost")
            .query("from", "The first day, such as 2026-01-31; without it, 30 days")
            .query("to", "The last day; today without it")
            .query("by", "What there is a line for each of: any of day, key, model, provider, with commas between")
            .gives(Answer::new("What was used").json::<UsageReport>())
            .fails(Family::Native, &["401", "403", "422", "424"])
            .keyed(),
        health("/ping", "ping", "Health check method of SageMaker").fails(Family::Native, &["503"]),
        Operation::get("/info", "get_model_info")
            .says(TGI, "Text Generation Inference endpoint info")
            .gives(Answer::new("Served model info").json::<tgi::Info>())
            .fails(Family::Native, &["401"])
            .keyed(),
        Operation::get("/metrics", "metrics")
            .says(TGI, "Prometheus metrics scrape endpoint")
            .gives(Answer::new("Prometheus Metrics").text())
            .fails(Family::Native, &["401"])
            .keyed(),
    ]
}

fn v1_routes() -> Vec<Operation> {
    vec![
        Operation::get("/v1/models", "openai_get_model_info")
            .says(TGI, "Get model info")
            .gives(Answer::new("The served model").json::<ModelsInfo>())
            .fails(Family::V1, &["401"])
            .keyed(),
        Operation::get("/v1/models/{id}", "get_model")
            .says(OPENAI, "Get one model's info; an id may hold slashes")
            .path_text("id")
            .gives(Answer::new("The served model").json::<ModelInfo>())
            .fails(Family::V1, &["401", "404"])
            .keyed(),
        Operation::post("/v1/responses", "responses")
            .says(OPENAI, "Generate a response; nothing is kept")
            .takes::<ResponsesRequest>()
            .gives(
                Answer::new("The response")
                    .json::<ResponsesResponse>()
                    .all_events::<ResponsesEvent>()
                    .with(Headers::Full),
            )
            .fails(Family::V1, NAMING)
            .keyed(),
    ]
}

fn messages_routes() -> Vec<Operation> {
    vec![
        Operation::post("/v1/messages", "messages")
            .says(ANTHROPIC, "Generate a message")
            .takes::<MessagesRequest>()
            .gives(
                Answer::new("The assistant's message")
                    .json::<MessagesResponse>()
                    .events::<MessagesEvent, AnthropicError>()
                    .with(Headers::Full),
            )
            .fails(Family::Anthropic, MESSAGING)
            .keyed(),
        Operation::post("/v1/messages/count_tokens", "count_tokens")
            .says(ANTHROPIC, "Count the tokens of a prompt")
            .takes::<CountTokensRequest>()
            .gives(Answer::new("Their number").json::<CountTokensResponse>())
            .fails(
                Family::Anthropic,
                &["400", "401", "404", "408", "413", "415", "429", "500"],
            )
            .keyed(),
    ]
}

fn platform_routes() -> Vec<Operation> {
    let health = |path: &'static str, id: &'static str| {
        Operation::get(path, id)
            .says(PLATFORMS, "Health check method of KServe")
            .gives(Answer::new("Everything is working fine").json::<KserveLive>())
            .fails(Family::Native, &["503"])
    };
    let model = |operation: Operation| operation.path_text("model").path_text("version");
    vec![
        Operation::post("/vertex", "vertex_compatibility")
            .says(TGI, "Generate tokens from Vertex request")
            .takes::<VertexRequest>()
            .gives(Answer::new("The generated texts").json::<VertexResponse>())
            .fails(Family::Native, GENERATING)
            .keyed(),
        Operation::get("/v2", "kserve_server")
            .says(PLATFORMS, "What the server can do")
            .gives(Answer::new("The server").json::<KserveServer>())
            .fails(Family::Native, &["401"])
            .keyed(),
        health("/v2/health/live", "kserve_live"),
        health("/v2/health/ready", "kserve_ready"),
        model(Operation::get(
            "/v2/models/{model}/versions/{version}",
            "kserve_model",
        ))
        .says(
            PLATFORMS,
            "What a model can do; any name means the served one",
        )
        .gives(Answer::new("The model").json::<KserveModel>())
        .fails(Family::Native, &["401"])
        .keyed(),
        model(health(
            "/v2/models/{model}/versions/{version}/ready",
            "kserve_model_ready",
        )),
        model(Operation::post(
            "/v2/models/{model}/versions/{version}/infer",
            "kserve_infer",
        ))
        .says(PLATFORMS, "Generate tokens from KServe's inputs")
        .takes::<InferRequest>()
        .gives(Answer::new("The generated texts").json::<InferResponse>())
        .fails(Family::Native, GENERATING)
        .keyed(),
    ]
}
