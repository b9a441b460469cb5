//! Writes events as `data: {…}` frames, with `:` comments in long silences.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use futures::stream::{self, SelectAll};
use futures::{Stream, StreamExt};
use serde::Serialize;

use super::compat::Compat;
use super::error::ApiError;
use super::routing::{self, Routed};
use crate::generation::{Error, RouteNotes};

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

/// What a route makes of an answer's events.
pub(super) trait Writer<E> {
    /// Frames of one event.
    fn event(&mut self, event: E) -> Vec<Event>;
    /// Whether the event's frames are the stream's last ones, so that [`Writer::end`] has none.
    fn is_last(&self, _event: &E) -> bool {
        false
    }
    /// Frames of the failure that ends the answer.
    fn failure(&mut self, error: ApiError) -> Vec<Event>;
    /// Frames of an end without failure.
    fn end(&mut self) -> Vec<Event>;
}

/// An answer as a route writes it; nothing follows a failure. Where calls are routed, a comment before the last
/// event says where the answer was made and what it cost.
pub(super) fn frames<E, X, S, W>(
    events: S,
    writer: W,
    routed: &Routed,
) -> impl Stream<Item = Result<Event, Infallible>> + use<E, X, S, W>
where
    X: Into<ApiError>,
    S: Stream<Item = Result<E, X>> + Unpin,
    W: Writer<E>,
{
    let state = (Some(events), writer, VecDeque::new(), routed.notes.clone());
    stream::unfold(
        state,
        |(mut events, mut writer, mut ready, notes)| async move {
            while let Some(answer) = events.as_mut().filter(|_| ready.is_empty()) {
                let event = answer.next().await;
                let goes_on = match &event {
                    Some(Ok(event)) => !writer.is_last(event),
                    _ => false,
                };
                if !matches!(event, Some(Ok(_))) {
                    // What is left of the answer's work ends now, not when the reader has taken the last frame.
                    events = None;
                }
                let mut frames = match event {
                    Some(Ok(event)) => writer.event(event),
                    Some(Err(error)) => writer.failure(error.into().into_stream()),
                    None => writer.end(),
                };
                if let (false, Some(notes), false) = (goes_on, &notes, frames.is_empty()) {
                    frames.insert(frames.len() - 1, closing(notes));
                }
                ready.extend(frames);
            }
            let frame = ready.pop_front()?;
            Some((Ok(frame), (events, writer, ready, notes)))
        },
    )
}

/// Frames once the first of them has come or [`FIRST_EVENT_WAIT`] is over.
pub(super) async fn awaited<T>(frames: impl Stream<Item = T>) -> impl Stream<Item = T> + Unpin {
    let mut frames = Box::pin(frames.peekable());
    let _ = tokio::time::timeout(FIRST_EVENT_WAIT, frames.as_mut().peek()).await;
    frames
}

/// The comment before a stream's last event.
pub(super) fn closing(notes: &RouteNotes) -> Event {
    Event::default().comment(routing::closing_comment(notes))
}

/// Several answers as one stream, each event with its answer's place, once the first one or a failure has
/// come or [`FIRST_EVENT_WAIT`] is over.
///
/// Errors: under OpenAI's rule, a failure before the first event; under TGI's it is in the stream.
pub(super) async fn side_by_side<S, T>(
    answers: Result<Vec<S>, ApiError>,
    compat: Compat,
) -> Result<impl Stream<Item = Result<(usize, T), ApiError>> + Unpin, ApiError>
where
    S: Stream<Item = Result<T, Error>> + Send + 'static,
    T: Send + 'static,
{
    let events = match answers {
        Ok(answers) => {
            let answers = answers.into_iter().enumerate().map(|(place, events)| {
                let placed = move |event: Result<T, Error>| match event {
                    Ok(event) => Ok((place, event)),
                    Err(error) => Err(ApiError::from(error)),
                };
                events.map(placed).boxed()
            });
            answers.collect::<SelectAll<_>>().left_stream()
        }
        Err(error) if compat == Compat::OpenAi => return Err(error),
        Err(error) => stream::iter([Err(error)]).right_stream(),
    };
    begun(events, compat == Compat::OpenAi).await
}

/// An answer once its first event or a failure has come or [`FIRST_EVENT_WAIT`] is over.
///
/// Errors: with `early_status`, a failure before the first event; without, it stays in the stream.
pub(super) async fn begun<E, X: Into<ApiError> + Clone>(
    events: impl Stream<Item = Result<E, X>>,
    early_status: bool,
) -> Result<impl Stream<Item = Result<E, X>> + Unpin, ApiError> {
    let mut events = Box::pin(events.peekable());
    let first = tokio::time::timeout(FIRST_EVENT_WAIT, events.as_mut().peek()).await;
    match first {
        Ok(Some(Err(error))) if early_status => Err(error.clone().into()),
        _ => Ok(events),
    }
}
