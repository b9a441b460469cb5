//! Turns failures into statuses and bodies; the only place where status codes are chosen.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::compat::Compat;
use super::limits::Refused;
use crate::generation::{Error, ErrorKind};
use crate::wire::tgi::ErrorResponse;

/// A failure ready to be written: as a response, or as an event of a stream.
#[derive(Debug)]
pub(super) struct ApiError {
    status: StatusCode,
    body: ErrorResponse,
    /// Seconds after which another try may help.
    retry_after_s: Option<u64>,
    /// Whether automatic retries are pointless although the status suggests them.
    no_retry: bool,
}

impl ApiError {
    /// A body that could not be read.
    pub(super) fn body(status: StatusCode, text: String) -> Self {
        Self::new(status, "validation", text)
    }

    /// A body that did not come to its end in time.
    pub(super) fn body_too_slow() -> Self {
        let text = "The request body did not arrive in time";
        Self::new(StatusCode::REQUEST_TIMEOUT, "timeout", text.to_owned())
    }

    fn new(status: StatusCode, error_type: &str, error: String) -> Self {
        let body = ErrorResponse {
            error,
            error_type: error_type.to_owned(),
        };
        Self {
            status,
            body,
            retry_after_s: None,
            no_retry: false,
        }
    }

    /// The same failure as it reads inside a stream.
    pub(super) fn in_stream(error: Error) -> ErrorResponse {
        let incomplete = error.kind == ErrorKind::Incomplete;
        let mut body = Self::from(error).body;
        if incomplete {
            body.error = "Incomplete generation stream".to_owned();
            body.error_type = "incomplete_generation_stream".to_owned();
        }
        body
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let Error { kind, message } = error;
        match kind {
            ErrorKind::Invalid => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "validation",
                format!("Input validation error: {message}"),
            ),
            ErrorKind::Template => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "template_error",
                format!("Template error: {message}"),
            ),
            ErrorKind::Tool => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "tool_error",
                format!("Tool error: {message}"),
            ),
            ErrorKind::Overloaded { retry_after } => Self {
                retry_after_s: Some(retry_after.as_secs().max(1)),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", message)
            },
            ErrorKind::Generation => Self::new(
                StatusCode::FAILED_DEPENDENCY,
                "generation",
                format!("Request failed during generation: {message}"),
            ),
            ErrorKind::DeadlineExceeded => Self {
                no_retry: true,
                ..Self::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message)
            },
            ErrorKind::Incomplete => Self::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "incomplete_generation",
                message,
            ),
            ErrorKind::Unhealthy => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "healthcheck", message)
            }
        }
    }
}

impl ApiError {
    /// Gives a body the status and the headers of this failure.
    fn respond(&self, body: impl IntoResponse) -> Response {
        let mut response = (self.status, body).into_response();
        if let Some(seconds) = self.retry_after_s {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.no_retry {
            let name = header::HeaderName::from_static("x-should-retry");
            response
                .headers_mut()
                .insert(name, HeaderValue::from_static("false"));
        }
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.respond(Json(&self.body))
    }
}

/// The answer to a request without the right key.
pub(super) fn unauthorized(path: &str, compat: Compat) -> Response {
    let text = "The API key is missing or wrong; send it as `Authorization: Bearer <key>`";
    let error = ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", text.to_owned());
    let mut response = error.at_the_door(path, compat, "invalid_request_error", "invalid_api_key");
    let scheme = HeaderValue::from_static("Bearer");
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, scheme);
    response
}

/// The answer to a request beyond a limit of its key.
pub(super) fn beyond_limit(refused: Refused, path: &str, compat: Compat) -> Response {
    let error = ApiError {
        retry_after_s: Some(refused.retry_after_s),
        ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", refused.message)
    };
    error.at_the_door(path, compat, "requests", "rate_limit_exceeded")
}

/// Body of an error on `/v1` under `compat = "tgi"`: TGI's fields, and those that clients of OpenAI read.
#[derive(Serialize)]
struct FlatError<'a> {
    error: &'a str,
    error_type: &'a str,
    message: &'a str,
    code: &'a str,
    param: Option<&'a str>,
}

/// Body of an error on `/v1` under `compat = "openai"`.
#[derive(Serialize)]
struct NestedError<'a> {
    error: OpenAiError<'a>,
}

#[derive(Serialize)]
struct OpenAiError<'a> {
    message: &'a str,
    r#type: &'a str,
    code: &'a str,
    param: Option<&'a str>,
}

impl ApiError {
    /// A refusal before any handler ran, in the words of the routes that the path belongs to.
    fn at_the_door(self, path: &str, compat: Compat, openai_type: &str, code: &str) -> Response {
        if !path.starts_with("/v1/") {
            return self.into_response();
        }
        let ErrorResponse { error, error_type } = &self.body;
        match compat {
            Compat::Tgi => self.respond(Json(FlatError {
                error,
                error_type,
                message: error,
                code,
                param: None,
            })),
            Compat::OpenAi => self.respond(Json(NestedError {
                error: OpenAiError {
                    message: error,
                    r#type: openai_type,
                    code,
                    param: None,
                },
            })),
        }
    }
}
