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
    let early = match compat {
        Compat::OpenAi => Early::All,
        Compat::Tgi => Early::None,
    };
    begun(events, early).await
}

/// Which failures before the first event are statuses; the others stay in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Early {
    /// All of them.
    All,
    /// Refusals for want of room: whoever asked should come again, wherever room was looked for.
    WantOfRoom,
    /// None.
    None,
}

/// An answer once its first event or a failure has come or [`FIRST_EVENT_WAIT`] is over.
///
/// Errors: a failure before the first event, if it is one of `early`.
pub(super) async fn begun<E, X: Into<ApiError> + Clone>(
    events: impl Stream<Item = Result<E, X>>,
    early: Early,
) -> Result<impl Stream<Item = Result<E, X>> + Unpin, ApiError> {
    let mut events = Box::pin(events.peekable());
    let first = tokio::time::timeout(FIRST_EVENT_WAIT, events.as_mut().peek()).await;
    let Ok(Some(Err(error))) = first else {
        return Ok(events);
    };
    let error: ApiError = error.clone().into();
    match early {
        Early::All => Err(error),
        Early::WantOfRoom if error.is_want_of_room() => Err(error),
        Early::WantOfRoom | Early::None => Ok(events),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failure_that_comes_first_is_a_status_where_it_should_be() {
        let full = Error::overloaded(Duration::from_secs(1));
        let broken = Error::generation("broken");
        for (early, error, is_status) in [
            (Early::All, &full, true),
            (Early::All, &broken, true),
            (Early::WantOfRoom, &full, true),
            (Early::WantOfRoom, &broken, false),
            (Early::None, &full, false),
        ] {
            let first = stream::iter([Err::<(), _>(error.clone())]);
            let begun = begun(first, early).await;
            assert_eq!(begun.is_err(), is_status, "{early:?} {error}");
            let late = stream::iter([Ok(()), Err(error.clone())]);
            assert!(super::begun(late, early).await.is_ok());
        }
    }
}
