//! Where a request is admitted, checked against the model, and carried out.
//!
//! The door calls this floor and nothing below it. A request takes a permit first, so that a full server
//! refuses before it does any work; then its text becomes tokens; then the engine answers, and the tokens
//! become text again on their way out. Every answer leaves as one [`EventStream`].

mod admission;
mod chat;
mod hybrid;
mod lifecycle;
mod local;
mod pulse;
mod transcript;
mod untemplate;

pub use admission::Permit;
pub use chat::{ChatEvent, ChatFinish, ChatFinishReason, ChatStream, PreparedChat};
pub use hybrid::{Hybrid, Kept, UpstreamHealth, daily_budget};
pub use local::Local;
pub use pulse::{Beat, End, Past, Percentiles, Pulse, Sample, Totals};

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::Semaphore;
use tokio::time::MissedTickBehavior;

use crate::generation::{
    Conversation, Error, Event, EventStream, Grammar, Message, Request, RequestId, RouteAsk, Side,
    TokenId,
};
use crate::ledger::{ANONYMOUS, Ledger, Standing, Tab, Who};
use crate::telemetry::{Failure, Metrics};
use crate::text::Encoding;
use futures::StreamExt;
use pulse::{EVERY, Reading};

/// The hall's bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Sequences served at once; one permit each.
    pub max_concurrent_requests: usize,
    /// Longest prompt in tokens.
    pub max_input_tokens: usize,
    /// Longest prompt and answer together in tokens.
    pub max_total_tokens: usize,
    /// Texts tokenized at once.
    pub validation_workers: usize,
    /// Whether callers may ask for the prompt's log-probabilities.
    pub prompt_logprobs: bool,
    /// Longest life of a request.
    pub max_request_duration: Duration,
    /// Whether callers may ask for a shape of the answer.
    pub grammars: bool,
}

/// Admits requests and carries them out. Clones share everything.
#[derive(Debug, Clone)]
pub struct Dispatcher {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    /// None when every answer is made elsewhere.
    local: Option<Arc<Local>>,
    /// None when there is nowhere else to go.
    hybrid: Option<Arc<Hybrid>>,
    /// None where nothing is kept of requests.
    ledger: Option<Ledger>,
    metrics: Arc<Metrics>,
    permits: Arc<Semaphore>,
    pace: admission::Pace,
    pulse: Pulse,
    next_id: std::sync::atomic::AtomicU64,
}

impl Dispatcher {
    /// Builds the hall over a local model, upstreams, or both.
    pub fn new(
        config: Config,
        local: Option<Local>,
        hybrid: Option<Hybrid>,
        ledger: Option<Ledger>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let permits = Arc::new(Semaphore::new(config.max_concurrent_requests));
        Self {
            inner: Arc::new(Inner {
                config,
                local: local.map(Arc::new),
                hybrid: hybrid.map(Arc::new),
                ledger,
                metrics,
                permits,
                pace: admission::Pace::default(),
                pulse: Pulse::default(),
                next_id: std::sync::atomic::AtomicU64::new(0),
            }),
        }
    }

    /// What happens now.
    pub fn pulse(&self) -> &Pulse {
        &self.inner.pulse
    }

    /// Takes a reading of this machine each second, for as long as it is polled.
    pub async fn keep_pulse(self) {
        let mut clock = tokio::time::interval(EVERY);
        clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            clock.tick().await;
            let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
            let at_ms = since_1970.map_or(0, |time| time.as_millis() as u64);
            self.inner
                .pulse
                .beat(self.inner.reading(), Instant::now(), at_ms);
        }
    }

    /// Whether there is anywhere else to go.
    pub fn is_hybrid(&self) -> bool {
        self.inner.hybrid.is_some()
    }

    /// Whether callers may name this model, beside the one served here.
    pub fn serves(&self, name: &str) -> bool {
        self.names().any(|known| known == name)
    }

    /// Names that callers may use beside that of the model served here.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.inner.hybrid.iter().flat_map(|hybrid| hybrid.names())
    }

    /// The ledger, where one is kept.
    pub fn ledger(&self) -> Option<&Ledger> {
        self.inner.ledger.as_ref()
    }

    /// How every budget stands.
    pub fn budgets(&self) -> Vec<Standing> {
        let ledger = self.inner.ledger.as_ref();
        ledger.map(Ledger::standings).unwrap_or_default()
    }

    /// Every target's state, for operators; none where there is nowhere else to go.
    pub fn upstreams(&self) -> Vec<UpstreamHealth> {
        let hybrid = self.inner.hybrid.as_ref();
        hybrid.map(|hybrid| hybrid.statuses()).unwrap_or_default()
    }

    /// Largest token id the local tokenizer knows, plus one; any id where there is none.
    pub fn vocab_size(&self) -> usize {
        let local = self.inner.local.as_ref();
        local.map_or(u32::MAX as usize, |local| local.tokenizer.vocab_size())
    }

    /// The bytes a token stands for, which may be a part of a character; none outside the vocabulary.
    pub fn token_bytes(&self, id: TokenId) -> Vec<u8> {
        let local = self.inner.local.as_ref();
        local
            .and_then(|local| local.tokenizer.token_bytes(id).ok())
            .unwrap_or_default()
    }

    /// The bounds in force.
    pub fn config(&self) -> &Config {
        &self.inner.config
    }

    /// All metrics, written out.
    pub fn metrics(&self) -> String {
        for standing in self.budgets() {
            let unit = standing.limit.unit();
            let limit = standing.limit.amount();
            let limit = (limit < u64::MAX).then_some(limit as f64 / unit);
            let used = standing.used as f64 / unit;
            self.inner.metrics.show_budget(&standing.name, used, limit);
        }
        self.inner.metrics.render()
    }

    /// Takes permits for `count` sequences at once, without waiting.
    ///
    /// Errors: overloaded, with the time after which a permit is likely free.
    pub fn admit(&self, count: usize) -> Result<Permit, Error> {
        let here = admission::admit(&self.inner.permits, count, Side::Local);
        let room = here.or_else(|| {
            let hybrid = self.inner.hybrid.as_ref()?;
            admission::admit(hybrid.permits(), count, Side::Remote)
        });
        room.ok_or_else(|| {
            self.inner.metrics.count_failure(Failure::Overloaded);
            let error = Error::overloaded(self.inner.pace.expected_wait());
            self.inner.pulse.refused(error.kind.name());
            error
        })
    }

    /// Counts a request, whatever becomes of it.
    pub fn count_request(&self) {
        self.inner.metrics.request_count.inc();
    }

    /// Whether no request holds a permit.
    pub fn is_idle(&self) -> bool {
        let none_here =
            self.inner.permits.available_permits() == self.inner.config.max_concurrent_requests;
        let elsewhere = self.inner.hybrid.as_ref();
        none_here && elsewhere.is_none_or(|hybrid| hybrid.is_idle())
    }

    /// Counts a request that was refused for what it asked.
    pub fn count_refusal(&self, error: &Error) {
        lifecycle::count_error(&self.inner.metrics, error);
        self.inner.pulse.refused(error.kind.name());
    }

    /// The instant after which a request taken now is given up; `asked` may only shorten it.
    pub fn deadline(&self, accepted_at: Instant, asked: Option<Duration>) -> Instant {
        let longest = self.inner.config.max_request_duration;
        accepted_at + asked.map_or(longest, |asked| asked.min(longest))
    }

    /// Starts one sequence for a request.
    ///
    /// Returns when its prompt is tokenized and the engine has it; events follow in the stream, which holds
    /// the permit until it is dropped.
    /// Errors: invalid (too long, not served), overloaded, deadline exceeded.
    pub async fn generate(&self, request: Request, permit: Permit) -> Result<EventStream, Error> {
        let accounted = request.accounted;
        let result = match &self.inner.hybrid {
            Some(hybrid) => hybrid::answer(&self.inner, hybrid, request, permit).await,
            None => {
                lifecycle::start(&self.inner, request, permit, self.inner.ledger.as_ref()).await
            }
        };
        if let Err(error) = &result
            && accounted
        {
            lifecycle::count_error(&self.inner.metrics, error);
        }
        result
    }

    /// Renders a conversation, off the async threads when it is long; takes no permit.
    ///
    /// `shape` is what the answer must look like, if the caller said so. Where `route` may lead
    /// elsewhere, what this machine cannot render is noted and not refused; without one it is for this machine.
    /// Errors: no template or one that refuses the messages (template), wrong tools (tool).
    pub async fn prepare_chat(
        &self,
        conversation: Conversation,
        shape: Option<Grammar>,
        route: Option<&RouteAsk>,
    ) -> Result<PreparedChat, Error> {
        let anyone = self.inner.hybrid.as_ref().zip(route);
        let mut local = self.inner.local.as_ref();
        if anyone.is_some_and(|(hybrid, route)| hybrid.is_for_others(route)) {
            local = None;
        }
        let Some(local) = local else {
            if anyone.is_none() {
                self.inner.local()?;
            }
            return chat::prepare_for_anyone(None, conversation, shape);
        };
        let anyone = anyone.is_some();
        let is_short = is_short(&conversation);
        let prepare = move |local: &Local| match anyone {
            true => chat::prepare_for_anyone(Some(local), conversation, shape),
            false => chat::prepare(local, conversation, shape),
        };
        if is_short {
            return prepare(local);
        }
        let turn = Arc::clone(&local.tokenizing).acquire_owned().await;
        let local = Arc::clone(local);
        // As with tokenizing, the turn ends with the work, not when the caller has given up.
        let task = tokio::task::spawn_blocking(move || {
            let prepared = prepare(&local);
            drop(turn);
            prepared
        });
        task.await
            .map_err(|_| Error::template("the template panicked"))?
    }

    /// Turns text into tokens with their byte ranges; takes no permit.
    pub async fn tokenize(&self, text: String, add_special: bool) -> Result<Encoding, Error> {
        let local = self.inner.local()?;
        local.encode(text, add_special, &self.inner.metrics).await
    }

    /// Whether the server can answer: a look at the engine's thread, and after a failed step a real token.
    ///
    /// Errors: unhealthy.
    pub async fn health(&self) -> Result<(), Error> {
        let Some(local) = &self.inner.local else {
            return Ok(());
        };
        let load = local.engine.load();
        if load.stopped {
            return Err(Error::unhealthy());
        }
        if !load.last_step_failed {
            return Ok(());
        }
        let now = Instant::now();
        let probe = Request {
            max_new_tokens: std::num::NonZeroU32::new(1),
            deadline: Some(now + HEALTH_PROBE_TIME),
            ..Request::of("liveness")
        };
        let stream = lifecycle::probe(&self.inner, &probe).await;
        let mut stream = stream.map_err(|_| Error::unhealthy())?;
        while let Some(event) = stream.next().await {
            match event {
                Ok(Event::Token(_)) => return Ok(()),
                Ok(Event::Started(_)) => {}
                Err(_) => break,
            }
        }
        Err(Error::unhealthy())
    }
}

/// Conversations up to this many bytes and messages are rendered where they are: that takes less than 100 µs.
const INLINE_CONVERSATION_BYTES: usize = 4096;
const INLINE_MESSAGES: usize = 32;

/// Whether a conversation is rendered in no time; one with anything beside texts never counts as such.
fn is_short(conversation: &Conversation) -> bool {
    let Conversation {
        messages,
        tools,
        tool_choice: _,
        parallel_tool_calls: _,
        tool_prompt,
        documents,
        template_kwargs,
        separate_reasoning: _,
    } = conversation;
    let plain = |message: &Message| message.tool_calls.is_empty() && message.reasoning.is_none();
    let texts = messages
        .iter()
        .filter_map(|message| message.content.as_ref());
    tools.is_empty()
        && tool_prompt.is_none()
        && documents.is_none()
        && template_kwargs.is_empty()
        && messages.len() <= INLINE_MESSAGES
        && messages.iter().all(plain)
        && texts.map(String::len).sum::<usize>() <= INLINE_CONVERSATION_BYTES
}

/// Opens a request's account.
fn admit(ledger: &Ledger, request: &Request, model: &str) -> Tab {
    let route = &request.route;
    ledger.admit(Who {
        request_id: Arc::clone(&route.request_id),
        key: route.key.clone().unwrap_or_else(|| ANONYMOUS.into()),
        tenant: Arc::clone(&request.tenant.0),
        path: Arc::clone(&route.path),
        stream: route.stream,
        model: match model {
            "" => DEFAULT_MODEL.into(),
            name => name.into(),
        },
    })
}

/// The default model's name in the ledger.
const DEFAULT_MODEL: &str = "default";

/// How long the health probe's token may take.
const HEALTH_PROBE_TIME: Duration = Duration::from_secs(10);

impl Inner {
    fn reading(&self) -> Reading {
        let metrics = &self.metrics;
        let reading = Reading {
            computed_tokens: metrics.computed_tokens.get(),
            generated_tokens: metrics.generated_tokens.get(),
            failures: metrics.failures(),
            ..Reading::default()
        };
        let Some(local) = &self.local else {
            return reading;
        };
        let load = local.engine.snapshot();
        Reading {
            running: load.running.len(),
            waiting: load.waiting.len() + load.unseen.jobs,
            max_running: load.max_running,
            kv_used: (load.kv_total - load.kv_free) * load.block_tokens,
            kv_total: load.kv_total * load.block_tokens,
            ..reading
        }
    }

    /// Errors: every answer is made elsewhere.
    fn local(&self) -> Result<&Arc<Local>, Error> {
        self.local.as_ref().ok_or_else(|| {
            Error::invalid("this server has no model of its own, so it cannot do that")
        })
    }

    fn next_id(&self) -> RequestId {
        RequestId(
            self.next_id
                .fetch_add(1, std::sync::atomic::Ordering::Relaxed),
        )
    }
}
