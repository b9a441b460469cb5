//! Who may call: shows of keys are looked up, and the caller goes along with the request.

use std::convert::Infallible;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::header::{AUTHORIZATION, HeaderMap};
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::Response;
use chrono::Utc;

use super::keys::{Caller, KeyRing};
use super::{Api, error};

/// Where clients of Anthropic put their key.
const X_API_KEY: &str = "x-api-key";

/// Lets a request pass when no key is asked for or a right one is shown, and notes whose it is.
pub(super) async fn require_key(
    State(api): State<Api>,
    mut request: Request,
    next: Next,
) -> Response {
    match caller(&api.config.keys, request.headers()) {
        Some(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        None => error::unauthorized(),
    }
}

/// Who shows a right key, as `Authorization: Bearer` or as `x-api-key`.
pub(super) fn caller(keys: &KeyRing, headers: &HeaderMap) -> Option<Caller> {
    if keys.is_open() {
        // Whoever reaches an open server may do everything there.
        return Some(Caller {
            admin: true,
            ..Caller::anonymous()
        });
    }
    let authorization = headers.get(AUTHORIZATION);
    let bearer = authorization.and_then(|value| bearer(value.as_bytes()));
    let x_api_key = headers.get(X_API_KEY).map(|value| value.as_bytes());
    let now = Utc::now();
    [bearer, x_api_key]
        .into_iter()
        .flatten()
        .find_map(|shown| keys.caller(shown, now))
}

/// What follows the word `Bearer`, in any case.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| key.trim_ascii())
}

/// On a route that asks for no key the caller is anonymous.
impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let noted = parts.extensions.get::<Self>().cloned();
        Ok(noted.unwrap_or_else(Self::anonymous))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_is_read_in_any_case() {
        assert_eq!(bearer(b"bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"Basic abc"), None);
        assert_eq!(bearer(b"Bearer"), None);
    }
}
