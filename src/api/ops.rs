//! Routes for operators: health, what is served, metrics.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::Api;
use super::error::ApiError;
use crate::dispatch::UpstreamHealth;
use crate::generation::Error;
use crate::wire::tgi::{Info, ModelInfo, ModelsInfo};
use crate::wire::upstreams::{Quantiles, TargetHealth, UpstreamsHealth};

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
        data: all(&api).collect(),
    })
}

/// `GET /v1/models/{id}`; an id may hold slashes.
pub(super) async fn model(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<ModelInfo>, ApiError> {
    let asked = id.trim_start_matches('/');
    let found = all(&api).find(|model| model.id.trim_start_matches('/') == asked);
    Ok(Json(found.ok_or_else(|| Error::model_not_found(&id))?))
}

/// The served model, then every other name that callers may use.
fn all(api: &Api) -> impl Iterator<Item = ModelInfo> {
    let served = api.info.model_id.as_str();
    let others = api.dispatcher.names().filter(move |name| *name != served);
    [served].into_iter().chain(others).map(|id| ModelInfo {
        id: id.to_owned(),
        object: "model".to_owned(),
        created: api.config.started_at_unix_s,
        owned_by: id.to_owned(),
    })
}

/// `GET /health/upstreams`: where every target stands.
pub(super) async fn upstreams(State(api): State<Api>) -> Json<UpstreamsHealth> {
    let upstreams = api.dispatcher.upstreams().into_iter().map(health_of);
    Json(UpstreamsHealth {
        upstreams: upstreams.collect(),
    })
}

pub(super) fn health_of(target: UpstreamHealth) -> TargetHealth {
    let UpstreamHealth {
        target,
        upstream,
        provider,
        state,
        sentence,
        retry_after,
        inflight,
        limit,
        ttft_p50,
        ttft_p95,
        spent_today_nusd,
        max_nusd_per_day,
        catalog_day,
    } = target;
    TargetHealth {
        target,
        upstream,
        provider,
        state: state.to_owned(),
        sentence,
        // Rounded up: a second too early is a refusal.
        retry_after_s: retry_after.map(|wait| wait.as_secs_f64().ceil() as u64),
        inflight,
        limit,
        ttft_ms: Quantiles {
            p50: ttft_p50.as_millis() as u64,
            p95: ttft_p95.as_millis() as u64,
        },
        spent_today_usd: spent_today_nusd as f64 / 1e9,
        max_usd_per_day: max_nusd_per_day.map(|nusd| nusd as f64 / 1e9),
        catalog_day,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_target_is_told_in_whole_seconds_and_dollars() {
        let told = health_of(UpstreamHealth {
            target: "far".to_owned(),
            upstream: "up".to_owned(),
            provider: None,
            state: "open",
            sentence: "target `far` rests".to_owned(),
            retry_after: Some(Duration::from_millis(1200)),
            inflight: 1,
            limit: 8,
            ttft_p50: Duration::from_millis(250),
            ttft_p95: Duration::from_secs(2),
            spent_today_nusd: 1_500_000_000,
            max_nusd_per_day: Some(2_000_000_000),
            catalog_day: Some("2026-01-31".to_owned()),
        });
        let expected = serde_json::json!({
            "target": "far", "upstream": "up", "provider": null, "state": "open",
            "sentence": "target `far` rests", "retry_after_s": 2, "inflight": 1, "limit": 8,
            "ttft_ms": {"p50": 250, "p95": 2000}, "spent_today_usd": 1.5, "max_usd_per_day": 2.0,
            "catalog_day": "2026-01-31",
        });
        assert_eq!(serde_json::to_value(told).expect("JSON"), expected);
    }
}
