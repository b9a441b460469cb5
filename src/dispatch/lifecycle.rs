//! The life of one request, top to bottom: tokens in, the engine's answer, text out, one account of it.

use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use futures::Stream;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::AbortHandle;
use tracing::Instrument;

use super::Inner;
use super::admission::Permit;
use super::local::{Local, Ready};
use super::pulse::{DROPPED, Past};
use super::transcript::{Piece, Transcript};
use crate::engine::{Ended, Job, Output, SubmitError, sampler::Sampled};
use crate::generation::{
    Error, ErrorKind, Event, EventStream, Finish, FinishReason, PromptToken, Reason, Request,
    RequestId, RouteAsk, RouteNote, Side, Started, Timings, TokenEvent, TokenId, TokenInfo, Usage,
};
use crate::ledger::{Closing, Ledger, Tab};
use crate::telemetry::{Failure, Metrics};
use crate::text::Detokenizer;

/// Prompt tokens that give the first generated token its context when it becomes text.
const DETOKENIZER_CONTEXT: usize = 5;

/// Starts one sequence here: prompt to tokens, lengths checked, handed to the engine.
pub(super) async fn start(
    inner: &Arc<Inner>,
    request: Request,
    permit: Permit,
    ledger: Option<&Ledger>,
) -> Result<EventStream, Error> {
    let account = || {
        let tab = ledger.map(|ledger| super::admit(ledger, &request, ""));
        if let Some(tab) = &tab {
            tab.begin();
            let reason = Reason::LocalOk;
            request.note.update(|note| *note = RouteNote::local(reason));
        }
        let ask = request.route.clone();
        Some(Account { tab, ask })
    };
    let started = begin(inner, &request, permit, account).await;
    if let Err(error) = &started
        && request.accounted
    {
        let past = Past {
            total: request.accepted_at.elapsed(),
            ..Past::of(&request.route, None, error.kind.name().to_owned())
        };
        inner.pulse.note(past, true, Instant::now());
    }
    started
}

/// Starts the health probe's sequence, which is nobody's request.
pub(super) async fn probe(inner: &Arc<Inner>, request: &Request) -> Result<EventStream, Error> {
    begin(inner, request, Permit::none(), || None).await
}

/// The account is opened once the prompt is found to be sound.
async fn begin(
    inner: &Arc<Inner>,
    request: &Request,
    permit: Permit,
    account: impl FnOnce() -> Option<Account>,
) -> Result<EventStream, Error> {
    let local = inner.local()?;
    let id = inner.next_id();
    let span = tracing::debug_span!("request", %id);
    let prepared = local.prepare(&inner.config, request, &inner.metrics);
    let ready = in_time(request.deadline, prepared.instrument(span)).await??;
    let (begun, account) = (Arc::default(), account());
    submit(inner, local, id, request, ready, permit, begun, account)
}

/// What is told when an answer is over.
pub(super) struct Account {
    /// To the ledger, where there is one.
    tab: Option<Tab>,
    /// To whoever watches: who asked.
    ask: RouteAsk,
}

/// What comes of a future, unless the deadline passes before.
pub(super) async fn in_time<T>(
    deadline: Option<Instant>,
    work: impl Future<Output = T>,
) -> Result<T, Error> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline.into(), work)
            .await
            .map_err(|_| Error::deadline_exceeded()),
        None => Ok(work.await),
    }
}

/// Hands a prepared sequence to the engine, which sets `begun` with its first step. An `account` is closed with
/// the answer's end.
///
/// Errors: overloaded, generation (the engine has stopped).
#[allow(clippy::too_many_arguments)] // Each is a part of one job; a struct of them would be unpacked at once.
pub(super) fn submit(
    inner: &Arc<Inner>,
    local: &Arc<Local>,
    id: RequestId,
    request: &Request,
    ready: Ready,
    permit: Permit,
    begun: Arc<AtomicBool>,
    account: Option<Account>,
) -> Result<EventStream, Error> {
    let Ready {
        prompt,
        max_new_tokens,
        guide,
    } = ready;
    let queued_at = Instant::now();
    if request.accounted {
        inner
            .metrics
            .request_input_length
            .observe(prompt.len() as f64);
        inner
            .metrics
            .request_max_new_tokens
            .observe(max_new_tokens as f64);
    }
    let context = prompt.len().saturating_sub(DETOKENIZER_CONTEXT);
    let detokenizer = Detokenizer::new(local.tokenizer.clone(), &prompt[context..]);
    let prompt_tokens = if request.prompt_logprobs {
        prompt.clone()
    } else {
        Vec::new()
    };
    let input_tokens = prompt.len() as u32;
    let output = local.engine.submit(|output| Job {
        prompt,
        max_new_tokens,
        eos: Arc::clone(&local.eos),
        sampling: request.sampling.clone(),
        guide,
        top_n: request.top_n_tokens,
        prompt_logprobs: request.prompt_logprobs,
        tenant: request.tenant.clone(),
        begun,
        output,
    });
    let output = output.map_err(|e| match e {
        SubmitError::Full => Error::overloaded(inner.pace.expected_wait()),
        SubmitError::Stopped => Error::generation(format!("Server error: {e}")),
    })?;
    let answer = Answer {
        id,
        inner: Arc::clone(inner),
        local: Arc::clone(local),
        output,
        transcript: Transcript::new(detokenizer, &request.stop, request.stop_rule),
        prompt_tokens,
        input_tokens,
        generated_tokens: 0,
        seed: request.sampling.seed,
        accounted: request.accounted,
        accepted_at: request.accepted_at,
        queued_at,
        started_at: queued_at,
        first_token_at: None,
        ended: false,
        account,
        _permit: permit,
    };
    Ok(EventStream::new(Watched::new(answer, request.deadline)))
}

/// One answer in the making. Dropping it closes the engine's channel, which cancels the work.
struct Answer {
    id: RequestId,
    inner: Arc<Inner>,
    local: Arc<Local>,
    output: UnboundedReceiver<Output>,
    transcript: Transcript,
    prompt_tokens: Vec<TokenId>,
    input_tokens: u32,
    generated_tokens: u32,
    seed: Option<u64>,
    accounted: bool,
    accepted_at: Instant,
    queued_at: Instant,
    started_at: Instant,
    first_token_at: Option<Instant>,
    ended: bool,
    account: Option<Account>,
    _permit: Permit,
}

impl Answer {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Event, Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let output = ready!(self.output.poll_recv(cx));
        Poll::Ready(Some(match output {
            Some(Output::Started {
                at,
                prompt_logprobs,
            }) => {
                self.started_at = at;
                self.started(&prompt_logprobs)
                    .map(Event::Started)
                    .map_err(|e| self.fail(e))
            }
            Some(Output::Token { sampled, ended }) => self
                .token(sampled, ended)
                .map(Event::Token)
                .map_err(|e| self.fail(e)),
            Some(Output::Failed(problem)) => {
                Err(self.fail(Error::generation(format!("Server error: {problem}"))))
            }
            None => Err(self.fail(Error::incomplete())),
        }))
    }

    fn fail(&mut self, error: Error) -> Error {
        self.ended = true;
        self.output.close();
        if self.accounted {
            count_error(&self.inner.metrics, &error);
        }
        tracing::debug!(id = %self.id, %error, "request failed");
        self.close(error.kind.name().to_owned(), false);
        error
    }

    /// Closes the request's account, if it has one; `ok` says whether the answer is whole.
    fn close(&mut self, outcome: String, ok: bool) {
        let Some(Account { tab, ask }) = self.account.take() else {
            return;
        };
        let began = self.generated_tokens > 0;
        let side = began.then_some(Side::Local);
        let ttft = self.first_token_at.map(|at| at - self.accepted_at);
        let total = self.accepted_at.elapsed();
        if let Some(tab) = tab {
            let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            tab.close(Closing {
                side,
                reason: Some(Reason::LocalOk.to_string()),
                usage: Some(Usage::counted(self.input_tokens, self.generated_tokens)),
                ttft_ms: ttft.map(ms),
                total_ms: ms(total),
                outcome: outcome.clone(),
                ..Closing::default()
            });
        }
        let past = Past {
            side,
            reason: Some(Reason::LocalOk),
            ttft,
            total,
            prompt_tokens: self.input_tokens,
            output_tokens: self.generated_tokens,
            ok,
            ..Past::of(&ask, None, outcome)
        };
        self.inner.pulse.note(past, self.accounted, Instant::now());
    }

    fn started(&self, logprobs: &[f32]) -> Result<Started, Error> {
        let mut prompt = Vec::with_capacity(self.prompt_tokens.len());
        for (i, &id) in self.prompt_tokens.iter().enumerate() {
            let logprob = i.checked_sub(1).and_then(|i| logprobs.get(i)).copied();
            prompt.push(PromptToken {
                id,
                text: self.text_of(id)?,
                logprob,
            });
        }
        Ok(Started {
            input_tokens: self.input_tokens,
            prompt,
        })
    }

    fn token(&mut self, sampled: Sampled, ended: Option<Ended>) -> Result<TokenEvent, Error> {
        let Sampled {
            token: id,
            logprob,
            top,
        } = sampled;
        self.generated_tokens += 1;
        self.first_token_at.get_or_insert_with(Instant::now);
        let special = self.local.tokenizer.is_special(id);
        let piece = self.transcript.push(id, ended.is_some());
        let Piece {
            token_text,
            text,
            stopped,
        } = piece.map_err(decode_error)?;
        let reason = if stopped.is_some() {
            Some(FinishReason::StopSequence)
        } else {
            ended.map(|ended| match ended {
                Ended::Length => FinishReason::Length,
                Ended::Eos => FinishReason::EosToken,
            })
        };
        let mut top_tokens = Vec::with_capacity(top.len());
        for (id, logprob) in top {
            let special = self.local.tokenizer.is_special(id);
            top_tokens.push(TokenInfo {
                id: Some(id),
                text: self.text_of(id)?,
                logprob: Some(logprob),
                special,
            });
        }
        let token = TokenInfo {
            id: Some(id),
            text: token_text,
            logprob: Some(logprob),
            special,
        };
        let finish = reason.map(|reason| self.finish(reason, stopped));
        Ok(TokenEvent {
            token,
            text,
            pieces: None,
            top_tokens,
            finish,
        })
    }

    fn finish(&mut self, reason: FinishReason, stop_sequence: Option<String>) -> Finish {
        self.ended = true;
        self.output.close();
        let now = Instant::now();
        let timings = Timings {
            validation: self.queued_at - self.accepted_at,
            queue: self.started_at.saturating_duration_since(self.queued_at),
            inference: now.saturating_duration_since(self.started_at),
            total: now - self.accepted_at,
        };
        let generated_text = self.transcript.generated_text().to_owned();
        if self.accounted {
            observe_success(&self.inner.metrics, &timings, self.generated_tokens);
        }
        self.inner.pace.record(timings.total);
        self.close(format!("{reason:?}").to_lowercase(), true);
        tracing::info!(
            id = %self.id,
            input_tokens = self.input_tokens,
            generated_tokens = self.generated_tokens,
            finish_reason = ?reason,
            queue_ms = timings.queue.as_secs_f64() * 1e3,
            total_ms = timings.total.as_secs_f64() * 1e3,
            "request finished"
        );
        Finish {
            reason,
            stop_sequence,
            generated_text,
            usage: Usage::counted(self.input_tokens, self.generated_tokens),
            seed: self.seed,
            timings,
        }
    }

    fn text_of(&self, id: TokenId) -> Result<String, Error> {
        self.local.tokenizer.token_text(id).map_err(decode_error)
    }
}

/// An answer that ends at its deadline whether anybody reads it or not.
///
/// A reader that stalls is not polled any more, so the deadline cannot live in the stream alone: a task of
/// its own drops the answer then, and with it the permit and the engine's work.
struct Watched {
    shared: Arc<Mutex<Watch>>,
    watchdog: Option<AbortHandle>,
}

struct Watch {
    state: Watching,
    reader: Option<Waker>,
}

enum Watching {
    Live(Box<Answer>),
    Expired,
    Ended,
}

impl Watched {
    fn new(answer: Answer, deadline: Option<Instant>) -> Self {
        let state = Watching::Live(Box::new(answer));
        let shared = Arc::new(Mutex::new(Watch {
            state,
            reader: None,
        }));
        let watchdog = deadline.map(|deadline| {
            let shared = Arc::clone(&shared);
            let expire = async move {
                tokio::time::sleep_until(deadline.into()).await;
                let mut watch = lock(&shared);
                if let Watching::Live(answer) = &mut watch.state {
                    answer.fail(Error::deadline_exceeded());
                    watch.state = Watching::Expired;
                    if let Some(reader) = watch.reader.take() {
                        reader.wake();
                    }
                }
            };
            tokio::spawn(expire).abort_handle()
        });
        Self { shared, watchdog }
    }
}

impl Stream for Watched {
    type Item = Result<Event, Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut watch = lock(&self.shared);
        let event = match &mut watch.state {
            Watching::Live(answer) => answer.poll_next(cx),
            Watching::Expired => Poll::Ready(Some(Err(Error::deadline_exceeded()))),
            Watching::Ended => Poll::Ready(None),
        };
        let ended = match &watch.state {
            Watching::Live(answer) => answer.ended,
            Watching::Expired | Watching::Ended => true,
        };
        if ended {
            // The permit goes back with the last event, not when the reader has taken it.
            watch.state = Watching::Ended;
        } else if event.is_pending() {
            watch.reader = Some(cx.waker().clone());
        }
        event
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(watchdog) = &self.watchdog {
            watchdog.abort();
        }
    }
}

/// A panic while the lock was held has ended that request; the state is still whole.
fn lock(shared: &Mutex<Watch>) -> MutexGuard<'_, Watch> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Answer {
    fn drop(&mut self) {
        if !self.ended && self.accounted {
            self.inner.metrics.count_failure(Failure::Dropped);
            tracing::debug!(id = %self.id, "the caller left");
        }
        self.close(DROPPED.to_owned(), false);
    }
}

fn decode_error(error: crate::text::TextError) -> Error {
    Error::generation(format!("Server error: {error}"))
}

pub(super) fn observe_success(metrics: &Metrics, timings: &Timings, generated_tokens: u32) {
    let per_token = timings.inference / generated_tokens.max(1);
    metrics.request_success.inc();
    metrics.request_duration.observe(seconds(timings.total));
    metrics
        .request_validation_duration
        .observe(seconds(timings.validation));
    metrics
        .request_queue_duration
        .observe(seconds(timings.queue));
    metrics
        .request_inference_duration
        .observe(seconds(timings.inference));
    metrics
        .request_mean_time_per_token_duration
        .observe(seconds(per_token));
    metrics
        .request_generated_tokens
        .observe(f64::from(generated_tokens));
}

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

/// Counts a failure under its label.
pub(super) fn count_error(metrics: &Metrics, error: &Error) {
    metrics.count_failure(match error.kind {
        ErrorKind::Invalid | ErrorKind::TooLong | ErrorKind::Tool | ErrorKind::ModelNotFound => {
            Failure::Validation
        }
        ErrorKind::Template => Failure::Template,
        ErrorKind::Overloaded { .. } => Failure::Overloaded,
        ErrorKind::Generation
        | ErrorKind::NoTarget
        | ErrorKind::Budget { .. }
        | ErrorKind::Unhealthy => Failure::Generation,
        ErrorKind::Incomplete => Failure::Incomplete,
        ErrorKind::DeadlineExceeded => Failure::Timeout,
    });
}
