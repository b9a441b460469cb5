//! The door: HTTP in, HTTP out.
//!
//! A handler reads a body, asks the hall, and writes what comes back; it decides nothing. Requests pass
//! CORS, then the key, then content type and size, then shape, in TGI's order, so that a caller without a
//! key learns nothing about bodies. Status codes are chosen in `error.rs` and nowhere else.

mod auth;
mod body;
mod compat;
mod error;
mod from_tgi;
mod keys;
mod limits;
mod ops;
mod sse;
mod tgi;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tower_http::cors::{AllowHeaders, Any, CorsLayer};

pub use compat::{Compat, ReasoningFormat};
pub use keys::{ApiKey, Key, KeyHash, KeyLimits, KeyRing};

use crate::dispatch::Dispatcher;
use crate::wire::tgi::Info;

/// The door's bounds and settings.
#[derive(Debug, Clone)]
pub struct Config {
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

/// Builds the routes over a hall.
pub fn routes(config: Config, dispatcher: Dispatcher, info: Info) -> Router {
    let body_limit = DefaultBodyLimit::max(config.payload_limit_bytes);
    let cors = cors(&config.cors_allow_origin);
    let api = Api {
        config: Arc::new(config),
        dispatcher,
        info: Arc::new(info),
    };
    let guarded = Router::new()
        .route("/", post(tgi::compat_generate))
        .route("/generate", post(tgi::generate))
        .route("/generate_stream", post(tgi::generate_stream))
        .route("/tokenize", post(tgi::tokenize))
        .layer(body_limit)
        .route_layer(from_fn_with_state(api.clone(), limits::keep_to_limits))
        .route_layer(from_fn_with_state(api.clone(), auth::require_key));
    let mut open = Router::new()
        .route("/info", get(ops::info))
        .route("/metrics", get(ops::metrics))
        .route("/v1/models", get(ops::models));
    if api.config.guard_all {
        open = open.route_layer(from_fn_with_state(api.clone(), auth::require_key));
    }
    let health = Router::new()
        .route("/", get(ops::health))
        .route("/health", get(ops::health))
        .route("/health/live", get(ops::live))
        .route("/health/ready", get(ops::health));
    health
        .merge(open)
        .merge(guarded)
        .layer(cors)
        .with_state(api)
}

/// Pages of the allowed origins may send any header: browsers' clients of OpenAI and Anthropic bring their
/// own, and nothing is granted by a header that the key does not grant. Cookies are never asked for.
fn cors(allowed: &[HeaderValue]) -> CorsLayer {
    let exposed = [
        "retry-after",
        "x-compute-characters",
        "x-compute-time",
        "x-compute-type",
        "x-generated-tokens",
        "x-inference-time",
        "x-prompt-tokens",
        "x-queue-time",
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
