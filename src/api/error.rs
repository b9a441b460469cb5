//! Turns failures into statuses and bodies; the only place where status codes are chosen.
//!
//! A failure is first built as TGI would answer it. Routes of another dialect pass their responses through
//! [`speak`], which writes the same failure again in that dialect's words, so that every layer below, the
//! key check and the body reader included, needs to know one form only.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::compat::Compat;
use super::limits::Refused;
use crate::generation::{Error, ErrorKind};
use crate::wire::anthropic::{self, AnthropicError};
use crate::wire::openai::{
    NestedError, NestedErrorDetail, StreamError, StreamErrorDetail, V1Error,
};
use crate::wire::tgi::ErrorResponse;

/// Whose words a failure is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// OpenAI's routes, in the mode in force.
    OpenAi(Compat),
    /// Anthropic's routes.
    Anthropic,
}

/// A failure ready to be written: as a response, or as an event of a stream.
#[derive(Debug, Clone)]
pub(super) struct ApiError {
    status: StatusCode,
    /// TGI's word for the kind.
    error_type: &'static str,
    text: String,
    /// Seconds after which another try may help.
    retry_after_s: Option<u64>,
    /// Whether automatic retries are pointless although the status suggests them.
    no_retry: bool,
    /// Whether a shorter request might pass.
    too_long: bool,
    /// Whether money is what is lacking, for which TGI's routes have no status of their own.
    is_budget: bool,
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

    /// A completion with a suffix.
    pub(super) fn suffix() -> Self {
        let text =
            "Suffix is not supported and can be achieved by preprocessing the prompt.".to_owned();
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "suffix not supported",
            text,
        )
    }

    /// More prompts in one call than `most`.
    pub(super) fn batch_size(most: usize) -> Self {
        let text = format!("Number of prompts exceeds the maximum allowed batch size of {most}");
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "batch size exceeded",
            text,
        )
    }

    /// A refusal with a word of its own for its kind.
    pub(super) fn unprocessable(error_type: &'static str, text: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, error_type, text.into())
    }

    fn new(status: StatusCode, error_type: &'static str, text: String) -> Self {
        Self {
            status,
            error_type,
            text,
            retry_after_s: None,
            no_retry: false,
            too_long: false,
            is_budget: false,
        }
    }

    /// Whether there was no room, so that another try may help.
    pub(super) fn is_want_of_room(&self) -> bool {
        self.status == StatusCode::TOO_MANY_REQUESTS
    }

    /// The same failure as it reads inside a stream.
    pub(super) fn into_stream(mut self) -> Self {
        if self.error_type == "incomplete_generation" {
            self.text = "Incomplete generation stream".to_owned();
            self.error_type = "incomplete_generation_stream";
        }
        self
    }

    /// The body of TGI's own routes.
    pub(super) fn native(&self) -> ErrorResponse {
        ErrorResponse {
            error: self.text.clone(),
            error_type: self.error_type.to_owned(),
        }
    }

    /// The event that ends a stream of OpenAI's routes.
    pub(super) fn event(&self, compat: Compat) -> StreamError {
        let http_status_code = match compat {
            Compat::Tgi => self.v1_status(),
            Compat::OpenAi => self.openai_status(),
        }
        .as_u16();
        StreamError {
            error: StreamErrorDetail {
                message: self.text.clone(),
                http_status_code,
                kind: match compat {
                    Compat::Tgi => self.error_type.to_owned(),
                    Compat::OpenAi => self.openai_type().to_owned(),
                },
                code: Some(self.code().to_owned()),
            },
        }
    }

    /// The body of Anthropic's routes, which is also their error event.
    pub(super) fn anthropic(&self) -> AnthropicError {
        let kind = match self.anthropic_status().as_u16() {
            401 => "authentication_error",
            402 => "billing_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            504 => "timeout_error",
            500.. => "api_error",
            _ => "invalid_request_error",
        };
        AnthropicError {
            kind: "error",
            error: anthropic::AnthropicErrorDetail {
                kind: kind.to_owned(),
                message: self.text.clone(),
            },
        }
    }

    /// TGI's status on OpenAI's routes.
    fn v1_status(&self) -> StatusCode {
        if self.is_budget {
            StatusCode::PAYMENT_REQUIRED
        } else {
            self.status
        }
    }

    fn anthropic_status(&self) -> StatusCode {
        self.openai_status()
    }

    /// OpenAI answers 400 to whatever is wrong with a request, and 500 when its engine fails.
    fn openai_status(&self) -> StatusCode {
        match self.status {
            _ if self.is_budget => StatusCode::PAYMENT_REQUIRED,
            StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
            StatusCode::FAILED_DEPENDENCY => StatusCode::INTERNAL_SERVER_ERROR,
            other => other,
        }
    }

    fn openai_type(&self) -> &'static str {
        match self.openai_status().as_u16() {
            402 => "insufficient_quota",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The kind in OpenAI's words.
    fn code(&self) -> &'static str {
        match (self.status.as_u16(), self.error_type) {
            (401, _) => "invalid_api_key",
            // Frameworks look for this word to shorten a conversation and try again.
            _ if self.too_long => "context_length_exceeded",
            (_, "model_not_found") => "model_not_found",
            (429, _) => "rate_limit_exceeded",
            _ if self.is_budget => "budget_exceeded",
            (_, "timeout") => "timeout",
            (500.. | 424, _) => "server_error",
            _ => "invalid_value",
        }
    }

    /// The field at fault: refusals of a field begin with its name in backquotes.
    fn param(&self) -> Option<String> {
        let text = self
            .text
            .strip_prefix("Input validation error: ")
            .unwrap_or(&self.text);
        let (name, _) = text.strip_prefix('`')?.split_once('`')?;
        // TGI's own checks speak of TGI's parameters.
        Some(match name {
            "max_new_tokens" => "max_tokens".to_owned(),
            "top_n_tokens" => "top_logprobs".to_owned(),
            other => other.to_owned(),
        })
    }

    fn body_in(&self, dialect: Dialect) -> Response {
        match dialect {
            Dialect::OpenAi(Compat::Tgi) => {
                let body = V1Error {
                    error: self.text.clone(),
                    error_type: self.error_type.to_owned(),
                    message: self.text.clone(),
                    code: Some(self.code().to_owned()),
                    param: self.param(),
                };
                (self.v1_status(), Json(body)).into_response()
            }
            Dialect::OpenAi(Compat::OpenAi) => {
                let error = NestedErrorDetail {
                    message: self.text.clone(),
                    kind: self.openai_type().to_owned(),
                    code: Some(self.code().to_owned()),
                    param: self.param(),
                };
                (self.openai_status(), Json(NestedError { error })).into_response()
            }
            Dialect::Anthropic => (self.anthropic_status(), Json(self.anthropic())).into_response(),
        }
    }

    fn with_headers(self, mut response: Response) -> Response {
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.no_retry {
            let name = header::HeaderName::from_static("x-should-retry");
            headers.insert(name, HeaderValue::from_static("false"));
        }
        response.extensions_mut().insert(self);
        response
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
            ErrorKind::TooLong => Self {
                too_long: true,
                ..Self::from(Error::invalid(message))
            },
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
            ErrorKind::ModelNotFound => {
                Self::new(StatusCode::NOT_FOUND, "model_not_found", message)
            }
            ErrorKind::Overloaded { retry_after } => Self {
                retry_after_s: Some(retry_after.as_secs().max(1)),
                ..Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", message)
            },
            ErrorKind::Generation => Self::new(
                StatusCode::FAILED_DEPENDENCY,
                "generation",
                format!("Request failed during generation: {message}"),
            ),
            ErrorKind::NoTarget => Self::new(StatusCode::FAILED_DEPENDENCY, "generation", message),
            ErrorKind::Budget { resets_after } => Self {
                is_budget: true,
                // A second too early is another refusal.
                retry_after_s: resets_after.map(|wait| wait.as_secs() + 1),
                no_retry: true,
                ..Self::new(StatusCode::FAILED_DEPENDENCY, "budget_exceeded", message)
            },
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

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let response = (self.status, Json(self.native())).into_response();
        self.with_headers(response)
    }
}

/// Writes a route's failures in its dialect.
pub(super) async fn speak(
    State(dialect): State<Dialect>,
    request: Request,
    next: Next,
) -> Response {
    respoken(next.run(request).await, dialect)
}

fn respoken(mut response: Response, dialect: Dialect) -> Response {
    let Some(error) = response.extensions_mut().remove::<ApiError>() else {
        return response;
    };
    let mut spoken = error.body_in(dialect);
    // What other layers have added stays; what describes the old body goes.
    for (name, value) in response.headers() {
        if ![header::CONTENT_TYPE, header::CONTENT_LENGTH].contains(name) {
            spoken.headers_mut().insert(name.clone(), value.clone());
        }
    }
    spoken
}

/// The answer to a request without the right key.
pub(super) fn unauthorized() -> Response {
    let text = "The API key is missing or wrong; send it as `Authorization: Bearer <key>`";
    let error = ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", text.to_owned());
    let mut response = error.into_response();
    let scheme = HeaderValue::from_static("Bearer");
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, scheme);
    response
}

/// The refusal of what is for those who run this server.
pub(super) fn forbidden() -> ApiError {
    let text = "This is for keys with `admin = true` in the settings file";
    ApiError::new(StatusCode::FORBIDDEN, "forbidden", text.to_owned())
}

/// The refusal of what only this server's own page is told.
pub(super) fn foreign_page() -> ApiError {
    let text = "This is for this server's own page at /ui/, and not for another site's";
    ApiError::new(StatusCode::FORBIDDEN, "forbidden", text.to_owned())
}

/// The answer to who has what they ask for.
pub(super) fn not_modified() -> Response {
    StatusCode::NOT_MODIFIED.into_response()
}

/// The answer to a path that leads nowhere.
pub(super) fn unknown_path() -> Response {
    StatusCode::NOT_FOUND.into_response()
}

/// The answer to a request beyond a limit of its key.
pub(super) fn beyond_limit(refused: Refused) -> Response {
    let Refused {
        message,
        retry_after_s,
        per_minute,
    } = refused;
    let error = ApiError {
        retry_after_s: Some(retry_after_s),
        ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, "overloaded", message)
    };
    let mut response = error.into_response();
    // As draft 9 of the IETF's header fields has it; clients of the Hub read no other form.
    if let Some(per_minute) = per_minute {
        let policy = format!(r#""requests";q={per_minute};w=60"#);
        let left = format!(r#""requests";r=0;t={retry_after_s}"#);
        for (name, value) in [("ratelimit-policy", policy), ("ratelimit", left)] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                let name = header::HeaderName::from_static(name);
                response.headers_mut().insert(name, value);
            }
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;

    use super::*;

    async fn written(response: Response) -> (u16, Option<String>, String) {
        let retry_after = response.headers().get("retry-after");
        let retry_after = retry_after.map(|value| value.to_str().expect("ASCII").to_owned());
        let status = response.status().as_u16();
        let body = to_bytes(response.into_body(), 1 << 10)
            .await
            .expect("a body");
        (
            status,
            retry_after,
            String::from_utf8(body.to_vec()).expect("UTF-8"),
        )
    }

    #[tokio::test]
    async fn a_limit_is_refused_in_the_language_of_its_route() {
        let text = "Rate limit of key `a` exceeded";
        let refused = || {
            beyond_limit(Refused {
                message: text.to_owned(),
                retry_after_s: 7,
                per_minute: std::num::NonZeroU32::new(60),
            })
        };
        let native = format!(r#"{{"error":"{text}","error_type":"overloaded"}}"#);
        let flat = format!(
            r#"{{"error":"{text}","error_type":"overloaded","message":"{text}","code":"rate_limit_exceeded","param":null}}"#
        );
        let nested = format!(
            r#"{{"error":{{"message":"{text}","type":"rate_limit_error","code":"rate_limit_exceeded","param":null}}}}"#
        );
        let anthropic = format!(
            r#"{{"type":"error","error":{{"type":"rate_limit_error","message":"{text}"}}}}"#
        );
        let expected = |body| (429, Some("7".to_owned()), body);
        assert_eq!(written(refused()).await, expected(native));
        for (dialect, body) in [
            (Dialect::OpenAi(Compat::Tgi), flat),
            (Dialect::OpenAi(Compat::OpenAi), nested),
            (Dialect::Anthropic, anthropic),
        ] {
            let response = respoken(refused(), dialect);
            let header = |name: &str| response.headers().get(name).cloned();
            assert_eq!(header("ratelimit").expect("one"), r#""requests";r=0;t=7"#);
            let policy = header("ratelimit-policy").expect("one");
            assert_eq!(policy, r#""requests";q=60;w=60"#);
            assert_eq!(written(response).await, expected(body), "{dialect:?}");
        }
    }
}
