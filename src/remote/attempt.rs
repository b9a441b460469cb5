//! One attempt: a passport is sent, and the answer becomes events under the clocks.
//!
//! The stream that comes out ends in one of three ways: with an event that carries the finish, with one
//! fault, or by being dropped. Whichever it is, the reporter hears of it exactly once, and the connection is
//! let go at that moment. Nothing is retried here, and nothing is known of other attempts.

use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{FutureExt, Stream, StreamExt};
use serde::de::IgnoredAny;
use serde_json::Value;
use tokio::time::{Instant as Tick, Sleep};

use super::client::{Call, Client, Head, Response};
use super::errors::{self, Origin};
use super::sse::{SseEvent, SseParser};
use super::{Class, Fault};
use crate::egress::Passport;
use crate::generation::{Event, Finish};

/// After the last event: how long, and for how many bytes, the rest of the body is read so that the
/// connection can be used again.
const DRAIN: (Duration, usize) = (Duration::from_secs(1), 64 << 10);

/// How long an upstream that has said how the answer ended may be silent: its usage may still come.
const AFTER_END: Duration = Duration::from_secs(5);

/// Turns an upstream's words into events.
pub trait Decoder: Send + 'static {
    /// One event's data. Errors: what the upstream says went wrong, or that it is no such event.
    fn event(&mut self, data: &str) -> Result<Vec<Event>, Fault>;
    /// A whole answer that was not streamed. Errors: as above.
    fn whole(&mut self, json: &[u8]) -> Result<Vec<Event>, Fault>;
    /// The stream has ended well. Errors: [`Class::ServerError`] when the answer has not.
    fn end(&mut self) -> Result<Vec<Event>, Fault>;
    /// Whether the terminator was seen.
    fn is_done(&self) -> bool;
    /// Whether the upstream has said how the answer ended, whatever else is missing.
    fn has_ended(&self) -> bool {
        self.is_done()
    }
    /// What turned out only while the answer came not to be done exactly.
    fn late_degraded(&self) -> &[&'static str] {
        &[]
    }
}

/// Holds a whole answer against what was asked for; the text says what is wrong with it.
pub type Check = Arc<dyn Fn(&Finish) -> Option<String> + Send + Sync>;

/// A decoder whose answers are held against what was asked for before anybody hears that they are whole.
pub struct Checked<D> {
    decoder: D,
    check: Option<Check>,
}

impl<D> Checked<D> {
    /// With a check, or none.
    pub fn new(decoder: D, check: Option<Check>) -> Self {
        Self { decoder, check }
    }

    /// Errors: [`Class::SchemaViolation`], with what the answer has used: it is billed.
    fn checked(&self, events: Vec<Event>) -> Result<Vec<Event>, Fault> {
        let Some(check) = &self.check else {
            return Ok(events);
        };
        for event in &events {
            if let Event::Token(token) = event
                && let Some(finish) = &token.finish
                && let Some(problem) = check(finish)
            {
                return Err(Fault {
                    usage: Some(Box::new(finish.usage)),
                    ..Fault::new(Class::SchemaViolation, problem)
                });
            }
        }
        Ok(events)
    }
}

impl<D: Decoder> Decoder for Checked<D> {
    fn event(&mut self, data: &str) -> Result<Vec<Event>, Fault> {
        let events = self.decoder.event(data)?;
        self.checked(events)
    }

    fn whole(&mut self, json: &[u8]) -> Result<Vec<Event>, Fault> {
        let events = self.decoder.whole(json)?;
        self.checked(events)
    }

    fn end(&mut self) -> Result<Vec<Event>, Fault> {
        let events = self.decoder.end()?;
        self.checked(events)
    }

    fn is_done(&self) -> bool {
        self.decoder.is_done()
    }

    fn has_ended(&self) -> bool {
        self.decoder.has_ended()
    }

    fn late_degraded(&self) -> &[&'static str] {
        self.decoder.late_degraded()
    }
}

/// What turned out only while an answer came not to be done exactly. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Late(Arc<Mutex<Vec<&'static str>>>);

impl Late {
    /// The names so far; complete once the event that carries the finish was given out.
    pub fn names(&self) -> Vec<&'static str> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn set(&self, names: &[&'static str]) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() != names.len() {
            *known = names.to_vec();
        }
    }
}

/// Hears how an attempt went.
pub trait Reporter: Send + 'static {
    /// The first piece of the answer that a caller can see has come. At most once, before the end.
    fn first_token(&mut self, now: Instant);
    /// The answer's head says that nothing is left of a limit for this long. At most once, before the first token.
    fn exhausted(&mut self, time: Duration, now: Instant);
    /// The attempt is over. A caller that left is a fault of [`Class::ClientGone`].
    fn finish(self, outcome: Result<&Finish, &Fault>, now: Instant);
}

/// The clocks of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// From sending to the first piece that a caller can see. Where the upstream was asked to hold the request
    /// until it is awake, from the response's head.
    pub first_token: Duration,
    /// Most time without a byte; comments count.
    pub byte_idle: Duration,
    /// Most time between pieces that a caller can see; comments do not count.
    pub progress_idle: Duration,
    /// When the caller no longer cares.
    pub deadline: Instant,
}

/// An answer that has begun.
pub struct Reply {
    /// Its events, until the finish or one fault. Dropping them ends the attempt.
    pub events: BoxStream<'static, Result<Event, Fault>>,
    /// Who ran the model, if the upstream says so.
    pub provider: Option<String>,
    /// The upstream's own name for the request.
    pub upstream_request_id: Option<String>,
    /// What else the head says.
    pub head: Head,
    /// What turns out only while the answer comes not to be done exactly.
    pub late: Late,
}

/// Sends what the passport holds and waits for the answer's head.
///
/// Errors: those of [`Client::send`], and any answer that is a failure by its status or by being something
/// else than an answer. The reporter has heard of it then.
/// Dropping the future ends the attempt as dropping the stream does.
pub async fn start<D: Decoder, R: Reporter>(
    client: &Client,
    passport: Passport,
    call: Call,
    origin: Origin,
    timing: Timing,
    decoder: D,
    reporter: R,
) -> Result<Reply, Fault> {
    let mut report = Report(Some(reporter));
    let held = call
        .headers
        .iter()
        .any(|(name, _)| *name == "x-scale-up-timeout");
    let (response, reading) = match open(client, passport, call, origin).await {
        Ok(opened) => opened,
        Err(fault) => {
            report.failed(&fault);
            return Err(fault);
        }
    };
    let Response {
        head, sent, body, ..
    } = response;
    let begun = if held {
        Tick::now()
    } else {
        Tick::from_std(sent)
    };
    if let Some(time) = head.exhausted {
        report.exhausted(time, Tick::now());
    }
    let late = Late::default();
    let events = Events::new(
        body,
        reading,
        decoder,
        report,
        Whence {
            origin,
            head: head.clone(),
            client: Some(client.clone()),
            late: late.clone(),
        },
        timing,
        begun,
    );
    Ok(Reply {
        events: events.boxed(),
        provider: head.provider.clone(),
        upstream_request_id: head.request_id.clone(),
        head,
        late,
    })
}

async fn open(
    client: &Client,
    passport: Passport,
    call: Call,
    origin: Origin,
) -> Result<(Response, Reading), Fault> {
    let response = client.send(passport, call).await?;
    let kind = response.head.content_type.as_deref().unwrap_or_default();
    let reading = match kind {
        _ if !(200..300).contains(&response.head.status) => None,
        "text/event-stream" => Some(Reading::Stream(SseParser::new(client.limits().event_bytes))),
        "application/json" => Some(Reading::Whole(BytesMut::new())),
        _ => None,
    };
    match reading {
        Some(reading) => Ok((response, reading)),
        None => Err(response.into_fault(origin).await),
    }
}

/// How the body is read.
enum Reading {
    Stream(SseParser),
    Whole(BytesMut),
}

/// Says to the reporter how it went, once; that the caller left, if nobody says anything.
struct Report<R: Reporter>(Option<R>);

impl<R: Reporter> Report<R> {
    fn first_token(&mut self, now: Tick) {
        if let Some(reporter) = &mut self.0 {
            reporter.first_token(now.into_std());
        }
    }

    fn exhausted(&mut self, time: Duration, now: Tick) {
        if let Some(reporter) = &mut self.0 {
            reporter.exhausted(time, now.into_std());
        }
    }

    fn finished(&mut self, finish: &Finish, now: Tick) {
        if let Some(reporter) = self.0.take() {
            reporter.finish(Ok(finish), now.into_std());
        }
    }

    fn failed(mut self, fault: &Fault) {
        self.fail(fault);
    }

    fn fail(&mut self, fault: &Fault) {
        if let Some(reporter) = self.0.take() {
            reporter.finish(Err(fault), Tick::now().into_std());
        }
    }
}

impl<R: Reporter> Drop for Report<R> {
    fn drop(&mut self) {
        if self.0.is_some() {
            self.fail(&Fault::new(Class::ClientGone, "the caller left"));
        }
    }
}

/// What a fault is completed with.
struct Whence {
    origin: Origin,
    head: Head,
    client: Option<Client>,
    late: Late,
}

/// What becomes of the upstream's events.
struct Intake<D, R: Reporter> {
    decoder: D,
    origin: Origin,
    report: Report<R>,
    ready: VecDeque<Event>,
    shown: bool,
    last_shown: Tick,
    finished: bool,
    failed: Option<Fault>,
}

impl<D: Decoder, R: Reporter> Intake<D, R> {
    fn is_over(&self) -> bool {
        self.finished || self.failed.is_some()
    }

    fn event(&mut self, event: &SseEvent<'_>, now: Tick) {
        if self.is_over() {
            return;
        }
        let taken = match in_band_error(event, self.origin) {
            Some(fault) => Err(fault),
            None => self.decoder.event(event.data),
        };
        self.accept(taken, now);
        if self.decoder.is_done() {
            self.end(now);
        }
    }

    fn end(&mut self, now: Tick) {
        if self.is_over() {
            return;
        }
        let taken = self.decoder.end();
        self.accept(taken, now);
        self.must_be_over();
    }

    fn whole(&mut self, body: &[u8], now: Tick) {
        let taken = match error_of_whole(body, self.origin) {
            Some(fault) => Err(fault),
            None => self.decoder.whole(body),
        };
        self.accept(taken, now);
        self.must_be_over();
    }

    fn must_be_over(&mut self) {
        if !self.is_over() {
            let message = "the answer ended without a finish reason";
            self.failed = Some(Fault::new(Class::ServerError, message));
        }
    }

    fn accept(&mut self, taken: Result<Vec<Event>, Fault>, now: Tick) {
        let events = match taken {
            Ok(events) => events,
            Err(fault) => {
                self.failed = Some(fault);
                return;
            }
        };
        for event in events {
            if shows(&event) {
                if !self.shown {
                    self.shown = true;
                    self.report.first_token(now);
                }
                self.last_shown = now;
            }
            if let Event::Token(token) = &event
                && let Some(finish) = &token.finish
            {
                self.report.finished(finish, now);
                self.finished = true;
            }
            self.ready.push_back(event);
        }
    }
}

/// Whether a caller can see something of it.
fn shows(event: &Event) -> bool {
    match event {
        Event::Started(_) => false,
        Event::Token(token) => {
            let pieces = token.pieces.as_ref().is_some_and(|p| !p.is_empty());
            pieces || !token.text.is_empty() || !token.token.text.is_empty()
        }
    }
}

/// An error that came as an event: one named so, or an object that opens with `error`. Others are the
/// decoder's to find, which reads every object anyway.
fn in_band_error(event: &SseEvent<'_>, origin: Origin) -> Option<Fault> {
    let named = event.name == Some("error");
    let opens = || {
        let rest = event.data.trim_start().strip_prefix('{')?;
        rest.trim_start().strip_prefix("\"error\"")
    };
    if !named && opens().is_none() {
        return None;
    }
    let value =
        serde_json::from_str(event.data).unwrap_or_else(|_| Value::String(event.data.to_owned()));
    match value {
        Value::String(text) if named => Some(errors::in_stream(
            &serde_json::json!({ "error": text }),
            origin,
        )),
        value if named || errors::is_error(&value) => Some(errors::in_stream(&value, origin)),
        _ => None,
    }
}

/// The same for a whole body of status 200; parsed twice only if it may be one.
fn error_of_whole(body: &[u8], origin: Origin) -> Option<Fault> {
    const KEY: &[u8] = b"\"error\"";
    body.windows(KEY.len()).any(|w| w == KEY).then_some(())?;
    let value: Value = serde_json::from_slice(body).ok()?;
    errors::is_error(&value).then(|| errors::in_stream(&value, origin))
}

/// The answer's events.
///
/// Invariants: events come in the upstream's order; after the finish or a fault there is nothing more; a fault
/// after something was shown is [`Class::MidStream`], unless it is about the caller's time or the content; an
/// upstream that has said how the answer ended and then falls silent or breaks off has answered.
/// Cost: nothing is spawned or boxed per event; time is read once per chunk.
struct Events<S: Send + 'static, D: Decoder, R: Reporter> {
    // The connection is let go before the reporter hears of it.
    source: Option<S>,
    reading: Reading,
    intake: Intake<D, R>,
    context: Whence,
    timing: Timing,
    begun: Tick,
    last_byte: Tick,
    sleep: Pin<Box<Sleep>>,
}

/// Only the source and the timer are ever polled, and both are behind their own pins.
impl<S: Send + 'static, D: Decoder, R: Reporter> Unpin for Events<S, D, R> {}

impl<S, D: Decoder, R: Reporter> Events<S, D, R>
where
    S: Stream<Item = Result<Bytes, Fault>> + Unpin + Send + 'static,
{
    fn new(
        source: S,
        reading: Reading,
        decoder: D,
        report: Report<R>,
        context: Whence,
        timing: Timing,
        begun: Tick,
    ) -> Self {
        let now = Tick::now();
        Self {
            source: Some(source),
            reading,
            intake: Intake {
                decoder,
                origin: context.origin,
                report,
                ready: VecDeque::new(),
                shown: false,
                last_shown: now,
                finished: false,
                failed: None,
            },
            context,
            timing,
            begun,
            last_byte: now,
            sleep: Box::pin(tokio::time::sleep_until(Tick::from_std(timing.deadline))),
        }
    }

    /// When the content's clock runs out: that of the first token, then that of progress. An answer that
    /// comes as a whole has neither.
    fn content_limit(&self) -> Option<Tick> {
        match self.reading {
            Reading::Whole(_) => None,
            Reading::Stream(_) if self.intake.shown => {
                Some(self.intake.last_shown + self.timing.progress_idle)
            }
            Reading::Stream(_) => Some(self.begun + self.timing.first_token),
        }
    }

    fn next_limit(&self) -> Tick {
        let limit = Tick::from_std(self.timing.deadline).min(self.last_byte + self.silence());
        self.content_limit()
            .map_or(limit, |content| limit.min(content))
    }

    fn expired(&self, now: Tick) -> Option<Fault> {
        let late = |within: Duration, what: &str| {
            let message = format!("{what} {} s", within.as_secs_f64());
            Some(Fault::new(Class::Timeout, message))
        };
        if now >= Tick::from_std(self.timing.deadline) {
            return Some(Fault::new(Class::Deadline, "the request's deadline passed"));
        }
        if self.content_limit().is_some_and(|limit| now >= limit) {
            return if self.intake.shown {
                late(self.timing.progress_idle, "no more of the answer for")
            } else {
                late(self.timing.first_token, "nothing of the answer within")
            };
        }
        if now >= self.last_byte + self.silence() {
            return late(self.silence(), "silence for");
        }
        None
    }

    /// Most time without a byte: shorter once the end was told, after which little more can come.
    fn silence(&self) -> Duration {
        match self.intake.decoder.has_ended() {
            true => self.timing.byte_idle.min(AFTER_END),
            false => self.timing.byte_idle,
        }
    }

    fn feed(&mut self, chunk: &[u8], now: Tick) {
        self.last_byte = now;
        match &mut self.reading {
            Reading::Whole(body) => body.extend_from_slice(chunk),
            Reading::Stream(parser) => {
                let pushed = parser.push(chunk, |event| self.intake.event(&event, now));
                if let (Err(too_long), false) = (pushed, self.intake.is_over()) {
                    self.intake.failed = Some(Fault::new(Class::ServerError, too_long.to_string()));
                }
            }
        }
        if !self.intake.is_over() {
            self.intake.failed = self.expired(now);
        }
    }

    fn end(&mut self, now: Tick) {
        match &mut self.reading {
            Reading::Whole(body) => {
                let body = std::mem::take(body);
                self.intake.whole(&body, now);
            }
            Reading::Stream(parser) => {
                parser.finish(|event| {
                    // What no blank line closed may be half an event: then the stream was cut, and whether
                    // that matters is for the decoder to say.
                    let whole = event.data.trim() == "[DONE]"
                        || serde_json::from_str::<IgnoredAny>(event.data).is_ok();
                    if event.closed || whole {
                        self.intake.event(&event, now);
                    }
                });
                self.intake.end(now);
            }
        }
    }

    /// An answer whose end was told is whole, however its connection ends: nothing is missing but good manners.
    fn forgive(&mut self) {
        let broke = self.intake.failed.take_if(|fault| {
            matches!(
                fault.class,
                Class::Timeout | Class::Transport | Class::Deadline
            ) && self.intake.decoder.has_ended()
        });
        if broke.is_some() {
            self.source = None;
            self.intake.end(Tick::now());
        }
    }

    /// Lets go of the connection once the answer is over, and completes and reports a fault.
    fn settle(&mut self) {
        self.forgive();
        self.context.late.set(self.intake.decoder.late_degraded());
        if self.intake.finished {
            if let Some(source) = self.source.take() {
                drain(source);
            }
        } else if let Some(fault) = self.intake.failed.take() {
            self.source = None;
            let fault = self.complete(fault);
            self.intake.report.fail(&fault);
            self.intake.failed = Some(fault);
        }
    }

    fn complete(&self, mut fault: Fault) -> Fault {
        // What a whole answer lacks is no breaking off: it says something else of its target.
        let as_it_is = matches!(
            fault.class,
            Class::Deadline | Class::ContentFilter | Class::SchemaViolation | Class::ToolCall
        );
        if self.intake.shown && !as_it_is {
            fault.message = format!(
                "the answer broke off ({}): {}",
                fault.class.name(),
                fault.message
            )
            .into();
            fault.class = Class::MidStream;
        }
        let head = &self.context.head;
        fault.status = fault.status.or(Some(head.status));
        fault.provider = fault.provider.or_else(|| head.provider.clone());
        fault.upstream_request_id = fault
            .upstream_request_id
            .or_else(|| head.request_id.clone());
        match &self.context.client {
            Some(client) => client.scrub(fault),
            None => fault,
        }
    }
}

impl<S, D: Decoder, R: Reporter> Stream for Events<S, D, R>
where
    S: Stream<Item = Result<Bytes, Fault>> + Unpin + Send + 'static,
{
    type Item = Result<Event, Fault>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(event) = this.intake.ready.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            let Some(source) = &mut this.source else {
                return Poll::Ready(this.intake.failed.take().map(Err));
            };
            match source.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(chunk))) => this.feed(&chunk, Tick::now()),
                Poll::Ready(Some(Err(fault))) => this.intake.failed = Some(fault),
                Poll::Ready(None) => this.end(Tick::now()),
                Poll::Pending => {
                    // Limits mostly move away, so the timer is set anew only when it is late or has run out.
                    let limit = this.next_limit();
                    if limit < this.sleep.deadline() || this.sleep.is_elapsed() {
                        this.sleep.as_mut().reset(limit);
                    }
                    std::task::ready!(this.sleep.as_mut().poll(cx));
                    this.intake.failed = this.expired(Tick::now());
                }
            }
            this.settle();
        }
    }
}

/// Reads what little may follow the last event, so that the connection can be used again.
fn drain<S>(mut source: S)
where
    S: Stream<Item = Result<Bytes, Fault>> + Unpin + Send + 'static,
{
    if let Some(None | Some(Err(_))) = source.next().now_or_never() {
        return;
    }
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        return;
    };
    runtime.spawn(tokio::time::timeout(DRAIN.0, async move {
        let mut left = DRAIN.1;
        while let Some(Ok(chunk)) = source.next().await {
            let Some(less) = left.checked_sub(chunk.len()) else {
                return;
            };
            left = less;
        }
    }));
}

#[cfg(test)]
pub(super) mod tests;
