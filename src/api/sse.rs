//! Writes events as `data: {…}` frames, with `:` comments in long silences.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use futures::Stream;
use serde::Serialize;

/// One frame of compact JSON.
pub(super) fn frame<T: Serialize>(body: &T) -> Event {
    let fallback =
        r#"{"error":"Stream event serialization error","error_type":"stream_serialization_error"}"#;
    Event::default().data(serde_json::to_string(body).unwrap_or_else(|_| fallback.to_owned()))
}

/// A stream of frames; after `keep_alive` without one a comment is sent.
pub(super) fn respond<S>(
    frames: S,
    keep_alive: Duration,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>>
where
    S: Stream<Item = Result<Event, Infallible>> + Send + 'static,
{
    Sse::new(frames).keep_alive(KeepAlive::new().interval(keep_alive))
}
