//! Routes that describe the others: the document, and Swagger UI to read it with.
//!
//! The page's files lie in the binary; nothing is fetched, neither at build time nor by the page.

use std::sync::{Arc, LazyLock};

use axum::extract::Path;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Redirect, Response};
use utoipa_swagger_ui::Config;

use super::{error, openapi};

/// `GET /api-doc/openapi.json`.
pub(super) async fn document() -> impl IntoResponse {
    static TEXT: LazyLock<String> = LazyLock::new(|| openapi::document().to_string());
    ([(CONTENT_TYPE, "application/json")], TEXT.as_str())
}

/// `GET /docs`: to where the page's relative links lead somewhere.
pub(super) async fn redirect() -> Redirect {
    Redirect::to("/docs/")
}

/// `GET /docs/`.
pub(super) async fn page() -> Response {
    file_named("index.html")
}

/// `GET /docs/{file}`.
pub(super) async fn file(Path(name): Path<String>) -> Response {
    file_named(&name)
}

fn file_named(name: &str) -> Response {
    static CONFIG: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| {
        // Relative, for servers behind a prefix; nobody else is asked whether the document is valid.
        let config = Config::new(["../api-doc/openapi.json"]).validator_url("none");
        Arc::new(config)
    });
    match utoipa_swagger_ui::serve(name, Arc::clone(&CONFIG)) {
        Ok(Some(file)) => {
            ([(CONTENT_TYPE, file.content_type)], file.bytes.into_owned()).into_response()
        }
        _ => error::unknown_path(),
    }
}
