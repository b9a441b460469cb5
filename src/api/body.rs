//! Reads JSON bodies; every refusal is TGI's text in a JSON body with TGI's status.

use axum::Json;
use axum::extract::{FromRequest, Request};
use serde::de::DeserializeOwned;

use super::Api;
use super::error::ApiError;

/// A JSON body of the wanted shape, arrived in time.
pub(super) struct Body<T>(pub(super) T);

impl<T: DeserializeOwned> FromRequest<Api> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, api: &Api) -> Result<Self, ApiError> {
        let reading = Json::<T>::from_request(request, api);
        match tokio::time::timeout(api.config.body_read, reading).await {
            Ok(Ok(Json(body))) => Ok(Self(body)),
            Ok(Err(rejection)) => Err(ApiError::body(rejection.status(), rejection.body_text())),
            Err(_) => Err(ApiError::body_too_slow()),
        }
    }
}
