//! Routes for operators: health, what is served, metrics.

use axum::Json;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::Api;
use super::error::ApiError;
use crate::wire::tgi::{Info, ModelInfo, ModelsInfo};

/// `GET /health`, `GET /`, `GET /health/ready`: whether a request would be answered.
pub(super) async fn health(State(api): State<Api>) -> Result<(), ApiError> {
    Ok(api.dispatcher.health().await?)
}

/// `GET /health/live`: whether the process answers at all.
pub(super) async fn live() {}

/// `GET /info`.
pub(super) async fn info(State(api): State<Api>) -> Json<Info> {
    Json(Info::clone(&api.info))
}

/// `GET /metrics`, in Prometheus' text format.
pub(super) async fn metrics(State(api): State<Api>) -> impl IntoResponse {
    (
        [(CONTENT_TYPE, "text/plain; charset=utf-8")],
        api.dispatcher.metrics(),
    )
}

/// `GET /v1/models`.
pub(super) async fn models(State(api): State<Api>) -> Json<ModelsInfo> {
    let id = api.info.model_id.clone();
    let model = ModelInfo {
        id: id.clone(),
        object: "model".to_owned(),
        created: api.config.started_at_unix_s,
        owned_by: id,
    };
    Json(ModelsInfo {
        object: "list".to_owned(),
        data: vec![model],
    })
}
