//! Routes for operators: health, what is served, metrics.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::Api;
use super::error::ApiError;
use crate::generation::Error;
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
    Json(ModelsInfo {
        object: "list".to_owned(),
        data: vec![served(&api)],
    })
}

/// `GET /v1/models/{id}`; an id may hold slashes.
pub(super) async fn model(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<ModelInfo>, ApiError> {
    let model = served(&api);
    if model.id.trim_start_matches('/') == id.trim_start_matches('/') {
        Ok(Json(model))
    } else {
        Err(Error::model_not_found(&id).into())
    }
}

fn served(api: &Api) -> ModelInfo {
    let id = api.info.model_id.clone();
    ModelInfo {
        id: id.clone(),
        object: "model".to_owned(),
        created: api.config.started_at_unix_s,
        owned_by: id,
    }
}
