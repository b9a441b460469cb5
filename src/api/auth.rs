//! Who may call: one key, compared in constant time and never printed.

use std::fmt;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::middleware::Next;
use axum::response::Response;
use subtle::ConstantTimeEq;

use super::Api;
use super::error::unauthorized;

/// A secret that callers must show.
#[derive(Clone)]
pub struct ApiKey(String);

impl ApiKey {
    /// Takes a key. Errors: it is empty or cannot stand in a header.
    pub fn new(key: String) -> Result<Self, &'static str> {
        if key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic()) {
            return Err("api_key must be visible ASCII characters without spaces");
        }
        Ok(Self(key))
    }

    fn matches(&self, shown: &[u8]) -> bool {
        self.0.as_bytes().ct_eq(shown).into()
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// Lets a request pass when no key is configured or the right one is shown as `Bearer`.
pub(super) async fn require_key(State(api): State<Api>, request: Request, next: Next) -> Response {
    let Some(key) = &api.config.api_key else {
        return next.run(request).await;
    };
    let shown = request
        .headers()
        .get(AUTHORIZATION)
        .map(|value| value.as_bytes());
    match shown.and_then(bearer) {
        Some(shown) if key.matches(shown) => next.run(request).await,
        _ => unauthorized(),
    }
}

/// What follows the word `Bearer`, in any case.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| key.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_exact_key_matches_and_it_is_not_printed() {
        let key = ApiKey::new("s3cret".to_owned()).expect("a sound key");
        assert!(key.matches(b"s3cret"));
        assert!(!key.matches(b"S3CRET") && !key.matches(b"s3cre") && !key.matches(b""));
        assert!(!format!("{key:?}").contains("s3cret"));
        assert!(ApiKey::new(String::new()).is_err());
    }

    #[test]
    fn the_scheme_is_read_in_any_case() {
        assert_eq!(bearer(b"bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"Basic abc"), None);
        assert_eq!(bearer(b"Bearer"), None);
    }
}
