//! Writes events as `data: {…}` frames, with `:` comments in long silences.

use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use futures::Stream;
use serde::Serialize;

/// How long a stream's headers wait for its first event, so that an early failure can still be a status.
pub(super) const FIRST_EVENT_WAIT: Duration = Duration::from_secs(10);

/// The frame that ends a stream of OpenAI's routes.
pub(super) fn done() -> Event {
    Event::default().data("[DONE]")
}

/// One frame of compact JSON.
pub(super) fn frame<T: Serialize>(body: &T) -> Event {
    Event::default().data(text(body))
}

/// One frame of compact JSON with a name.
pub(super) fn named_frame<T: Serialize>(name: &str, body: &T) -> Event {
    Event::default().event(name).data(text(body))
}

fn text<T: Serialize>(body: &T) -> String {
    let fallback =
        r#"{"error":"Stream event serialization error","error_type":"stream_serialization_error"}"#;
    serde_json::to_string(body).unwrap_or_else(|_| fallback.to_owned())
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
