//! The door: HTTP in, HTTP out.
//!
//! A handler reads a body, asks the hall, and writes what comes back; it decides nothing. Requests pass
//! CORS, then the key, then content type and size, then shape, in TGI's order, so that a caller without a
//! key learns nothing about bodies. Status codes are chosen in `error.rs` and nowhere else.

mod auth;
mod body;
mod calls;
mod chat;
mod compat;
mod completions;
mod docs;
mod error;
mod from_messages;
mod from_openai;
mod from_responses;
mod from_tgi;
mod keys;
mod limits;
mod messages;
mod openapi;
mod ops;
mod platforms;
mod responses;
mod routing;
mod sse;
mod tgi;
mod turns;
mod ui;
mod usage;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use tower_http::cors::{AllowHeaders, Any, CorsLayer};

pub use compat::{Compat, ReasoningFormat};
pub use keys::{ApiKey, Key, KeyHash, KeyLimits, KeyRing};
pub use openapi::document;
pub use usage::{Span, dimensions, told};

use self::error::Dialect;
use crate::dispatch::Dispatcher;
use crate::generation::Error;
use crate::wire::tgi::Info;

/// The door's bounds and settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// Most prompts of one completions call.
    pub max_client_batch_size: usize,
    /// Limit of `best_of`.
    pub max_best_of: usize,
    /// Limit of `stop`.
    pub max_stop_sequences: usize,
    /// Limit of `top_n_tokens`.
    pub max_top_n_tokens: u32,
    /// Most bytes of a body.
    pub payload_limit_bytes: usize,
    /// Time a client has to send a body.
    pub body_read: Duration,
    /// The keys callers must show; an empty ring means that everyone may call.
    pub keys: KeyRing,
    /// Whether every route but health asks for a key.
    pub guard_all: bool,
    /// Which wire is spoken where TGI and OpenAI disagree.
    pub compat: Compat,
    /// Where a model's reasoning goes.
    pub reasoning_format: ReasoningFormat,
    /// Limit of `n`.
    pub max_choices: usize,
    /// Another path for predictions, chosen by the platform (Vertex AI).
    pub aip_predict_route: Option<String>,
    /// Another path for health, chosen by the platform (Vertex AI).
    pub aip_health_route: Option<String>,
    /// Origins whose pages may call; empty means all.
    pub cors_allow_origin: Vec<HeaderValue>,
    /// Silence after which a stream sends a comment.
    pub keep_alive: Duration,
    /// Value of the `x-compute-type` header.
    pub compute_type: HeaderValue,
    /// Whether there is anywhere else to go, so that callers are told where their answers come from.
    pub routed: bool,
    /// Headers that rules of routing look at.
    pub rule_headers: Vec<HeaderName>,
    /// When the model began to be served, Unix seconds.
    pub started_at_unix_s: u64,
}

/// What every handler shares.
#[derive(Debug, Clone)]
struct Api {
    config: Arc<Config>,
    dispatcher: Dispatcher,
    info: Arc<Info>,
}

impl Api {
    /// The name an answer carries for the model a caller asked for.
    ///
    /// Errors: a name that is an address; under OpenAI's rule, one that nothing here has.
    fn model_name(&self, asked: Option<&str>) -> Result<String, Error> {
        let served = &self.info.model_id;
        match asked {
            None | Some("" | "tgi" | "dummy") => Ok(served.clone()),
            Some(name) if name == served => Ok(served.clone()),
            Some(name) if self.dispatcher.serves(name) => Ok(name.to_owned()),
            Some(name) => match self.config.compat {
                // Hugging Face's JavaScript client names its endpoint's address as the model. No address is
                // ever read; under TGI's rule every unknown name means the served model.
                Compat::Tgi if name.contains("://") => Ok(served.clone()),
                Compat::Tgi => Ok(name.to_owned()),
                Compat::OpenAi if name.contains("://") => {
                    Err(Error::invalid("`model` must be a name, not an address"))
                }
                Compat::OpenAi => Err(Error::model_not_found(name)),
            },
        }
    }

    /// A new answer's id; TGI's answers have none.
    fn answer_id(&self, prefix: &str) -> String {
        match self.config.compat {
            Compat::Tgi => String::new(),
            Compat::OpenAi => chat::unique_id(prefix, 32),
        }
    }

    /// The server's version as answers carry it.
    fn fingerprint(&self) -> String {
        let label = self.info.docker_label.as_deref().unwrap_or("native");
        format!("{}-{label}", self.info.version)
    }
}

/// Builds the routes over a hall.
pub fn routes(config: Config, dispatcher: Dispatcher, info: Info) -> Router {
    let body_limit = DefaultBodyLimit::max(config.payload_limit_bytes);
    let cors = cors(&config.cors_allow_origin);
    let api = Api {
        config: Arc::new(config),
        dispatcher,
        info: Arc::new(info),
    };
    let key = || from_fn_with_state(api.clone(), auth::require_key);
    let limits = || from_fn(limits::keep_to_limits);
    let routing = || from_fn_with_state(api.clone(), routing::note_route);
    let spoken = |dialect: Dialect| from_fn_with_state(dialect, error::speak);
    let openai = Dialect::OpenAi(api.config.compat);
    let native = Router::new()
        .route("/", post(tgi::compat_generate))
        .route("/generate", post(tgi::generate))
        .route("/generate_stream", post(tgi::generate_stream))
        .route("/tokenize", post(tgi::tokenize))
        .route("/invocations", post(platforms::invocations))
        .route("/vertex", post(platforms::vertex))
        .route(
            "/v2/models/{model}/versions/{version}/infer",
            post(platforms::kserve_infer),
        );
    let v1 = Router::new()
        .route("/v1/chat/completions", post(chat::chat_completions))
        .route("/v1/completions", post(completions::completions))
        .route("/v1/responses", post(responses::responses))
        .route_layer(routing())
        .route_layer(limits())
        .route_layer(key())
        .route_layer(spoken(openai));
    let messages = Router::new()
        .route("/v1/messages", post(messages::messages))
        .route("/v1/messages/count_tokens", post(messages::count_tokens))
        .route_layer(routing())
        .route_layer(limits())
        .route_layer(key())
        .route_layer(spoken(Dialect::Anthropic));
    let mut open = Router::new()
        .route("/chat_tokenize", post(chat::chat_tokenize))
        .route("/info", get(ops::info))
        .route("/metrics", get(ops::metrics))
        .route("/api-doc/openapi.json", get(docs::document))
        .route("/docs", get(docs::redirect))
        .route("/docs/", get(docs::page))
        .route("/docs/{*file}", get(docs::file))
        .route("/v2", get(platforms::kserve_server))
        .route(
            "/v2/models/{model}/versions/{version}",
            get(platforms::kserve_model),
        );
    let mut models = Router::new()
        .route("/v1/models", get(ops::models))
        .route("/v1/models/{*id}", get(ops::model));
    if api.config.guard_all {
        open = open.route_layer(limits()).route_layer(key());
        models = models.route_layer(key());
    }
    // It says what is spent, and where: not for everybody.
    let upstreams = Router::new()
        .route("/health/upstreams", get(ops::upstreams))
        .route("/usage", get(usage::usage))
        .route("/ui/events", get(ui::events))
        .route_layer(key());
    let health = Router::new()
        .route("/", get(ui::root))
        .route("/health", get(ops::health))
        .route("/health/live", get(ops::live))
        .route("/health/ready", get(ops::health))
        .route("/ping", get(ops::health))
        .route("/v2/health/live", get(platforms::kserve_health))
        .route("/v2/health/ready", get(platforms::kserve_health))
        .route(
            "/v2/models/{model}/versions/{version}/ready",
            get(platforms::kserve_health),
        );
    let page = Router::new()
        .route("/ui", get(ui::redirect))
        .route("/ui/", get(ui::page))
        .route("/ui/{file}", get(ui::file));
    // A platform's own paths are looked at last: one that is served already stays what it is.
    let mut platform = Router::new();
    if let Some(path) = &api.config.aip_predict_route {
        let vertex = post(platforms::vertex)
            .layer(routing())
            .layer(limits())
            .layer(key());
        platform = platform.route(path, vertex);
    }
    if let Some(path) = &api.config.aip_health_route {
        platform = platform.route(path, get(ops::health));
    }
    health
        .merge(page)
        .merge(upstreams)
        .merge(open)
        .merge(
            native
                .route_layer(routing())
                .route_layer(limits())
                .route_layer(key()),
        )
        .merge(v1)
        .merge(models.route_layer(spoken(openai)))
        .merge(messages)
        .fallback_service(platform.with_state(api.clone()))
        .layer(body_limit)
        .layer(cors)
        .with_state(api)
}

/// Pages of the allowed origins may send any header: browsers' clients of OpenAI and Anthropic bring their
/// own, and nothing is granted by a header that the key does not grant. Cookies are never asked for.
fn cors(allowed: &[HeaderValue]) -> CorsLayer {
    let exposed = [
        "ratelimit",
        "ratelimit-policy",
        "retry-after",
        "x-compute-characters",
        "x-compute-time",
        "x-compute-type",
        "x-generated-tokens",
        "x-inference-time",
        "x-prompt-tokens",
        "x-queue-time",
        "x-route-attempts",
        "x-route-cost-usd",
        "x-route-degraded",
        "x-route-model",
        "x-route-provider",
        "x-route-reason",
        "x-route-request-id",
        "x-route-saved-usd",
        "x-route-target",
        "x-route-upstream",
        "x-should-retry",
        "x-time-per-token",
        "x-total-time",
        "x-validation-time",
    ];
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(exposed.map(HeaderName::from_static));
    if allowed.is_empty() {
        layer.allow_origin(Any)
    } else {
        layer.allow_origin(allowed.to_vec())
    }
}
