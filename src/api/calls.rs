//! One call of any dialect: its frame, its permits and requests, its answers collected, its headers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use futures::StreamExt;
use futures::future::try_join_all;

use super::error::ApiError;
use super::from_openai::Ask;
use super::keys::Caller;
use super::routing::Routed;
use super::{Api, from_tgi};
use crate::dispatch::{Permit, PreparedChat};
use crate::generation::{
    Error, ErrorKind, Event, EventStream, Finish, Request, Started, StopRule, Tenant, Timings,
    TokenDetail, TokenEvent,
};

/// When and for whom a call came in, and when it is given up.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) tenant: Tenant,
    pub(super) accepted_at: Instant,
    pub(super) deadline: Instant,
    /// What the caller says about routing, and where it is noted what became of it.
    pub(super) routed: Routed,
}

/// What a call's answers are made of.
#[derive(Debug, Clone, Copy)]
pub(super) enum Made<'a> {
    /// Texts to continue, each by answers of its own.
    Of(&'a [&'a str]),
    /// A conversation.
    From(&'a PreparedChat),
}

impl Call {
    /// Counts a call and reads what its headers say about it.
    ///
    /// Errors: a header that cannot be understood.
    pub(super) fn open(
        api: &Api,
        caller: &Caller,
        headers: &HeaderMap,
        model: Option<&str>,
        stream: bool,
    ) -> Result<Self, Error> {
        let accepted_at = Instant::now();
        api.dispatcher.count_request();
        let asked = from_tgi::asked_deadline(headers)?;
        Ok(Self {
            tenant: caller.tenant.clone(),
            accepted_at,
            deadline: api.dispatcher.deadline(accepted_at, asked),
            routed: caller.routed.of(model, stream),
        })
    }

    /// Takes permits for every answer to every prompt, checks, and returns one request for each: all
    /// answers to the first prompt, then all to the second, and so on.
    ///
    /// Only the first is accounted: it stands for the call.
    /// Errors: overloaded, invalid.
    pub(super) fn requests(
        &self,
        api: &Api,
        made: Made<'_>,
        ask: &Ask,
    ) -> Result<(Vec<Request>, Permit), Error> {
        let one;
        let (prompts, chat) = match made {
            Made::Of(prompts) => (prompts, None),
            Made::From(chat) => {
                one = [chat.prompt.as_str()];
                (&one[..], Some(Arc::clone(&chat.ask)))
            }
        };
        let is_chat = chat.is_some();
        let answers = prompts.len() * ask.choices;
        let most = api.dispatcher.config().max_concurrent_requests;
        if answers > most {
            return Err(Error::invalid(format!(
                "`n` makes {answers} answers to {} prompts; this server gives {most} at once",
                prompts.len()
            )));
        }
        let permit = api.dispatcher.admit(answers)?;
        let frame = from_tgi::Frame {
            max_input_tokens: api.dispatcher.config().max_input_tokens,
            prompt_logprobs: false,
            tenant: self.tenant.clone(),
            accepted_at: self.accepted_at,
            deadline: self.deadline,
            routed: self.routed.clone(),
            chat,
            detail: if ask.logprobs {
                TokenDetail::Logprobs
            } else {
                TokenDetail::Unseen
            },
        };
        let mut requests = Vec::with_capacity(answers);
        for prompt in prompts {
            let mut request =
                from_tgi::request((*prompt).to_owned(), &ask.parameters, &api.config, &frame)?;
            // A template writes all special tokens itself.
            request.add_special_tokens = !is_chat;
            request.stop_rule = StopRule::Drop;
            request.grammar = ask.shape.clone();
            ask.complete(&mut request, api.config.compat)?;
            for choice in 0..ask.choices {
                let mut request = request.clone();
                request.accounted = requests.is_empty();
                if !request.accounted {
                    request.note = self.routed.slot();
                }
                if choice > 0 && request.sampling.seed.is_some() {
                    request.sampling.seed = Some(match ask.parameters.seed {
                        Some(seed) => seed.wrapping_add(choice as u64),
                        None => from_tgi::random_seed()?,
                    });
                }
                requests.push(request);
            }
        }
        Ok((requests, permit))
    }
}

/// Starts every request of a call; each holds a permit of its own.
///
/// Errors: the first one met; the others are given up with it.
pub(super) async fn start(
    api: &Api,
    requests: Vec<Request>,
    mut permit: Permit,
) -> Result<Vec<EventStream>, Error> {
    let starts = requests.into_iter().map(|request| {
        let permit = permit.split();
        api.dispatcher.generate(request, permit)
    });
    try_join_all(starts.collect::<Vec<_>>()).await
}

/// Counts a refusal that no later floor has counted.
pub(super) fn refused(api: &Api, error: Error) -> ApiError {
    // Whoever is refused for want of room has been counted where the room is.
    if !matches!(error.kind, ErrorKind::Overloaded { .. }) {
        api.dispatcher.count_refusal(&error);
    }
    error.into()
}

/// One whole answer, as the collected routes need it.
#[derive(Debug)]
pub(super) struct Collected {
    pub(super) started: Started,
    pub(super) tokens: Vec<TokenEvent>,
    pub(super) finish: Finish,
}

impl Collected {
    /// Reads an answer to its end.
    ///
    /// Errors: those of the answer; incomplete when it has no end.
    pub(super) async fn from(mut events: EventStream) -> Result<Self, Error> {
        let mut started = None;
        let mut tokens = Vec::new();
        while let Some(event) = events.next().await {
            match event? {
                Event::Started(start) => started = Some(start),
                Event::Token(mut token) => {
                    let finish = token.finish.take();
                    tokens.push(token);
                    if let Some(finish) = finish {
                        let started = started.ok_or_else(Error::incomplete)?;
                        return Ok(Self {
                            started,
                            tokens,
                            finish,
                        });
                    }
                }
            }
        }
        Err(Error::incomplete())
    }

    /// Mean log-probability of its tokens.
    pub(super) fn mean_logprob(&self) -> f32 {
        let known = self.tokens.iter().filter_map(|event| event.token.logprob);
        known.sum::<f32>() / self.tokens.len().max(1) as f32
    }
}

/// What TGI's metering headers say about a call.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Metering {
    timings: Timings,
    characters: usize,
    prompt_tokens: u32,
    generated_tokens: u32,
    time_per_token: Duration,
}

impl Metering {
    /// Of one answer to a prompt of `characters` characters.
    pub(super) fn of(characters: usize, input_tokens: u32, finish: &Finish) -> Self {
        Self {
            timings: finish.timings,
            characters,
            prompt_tokens: input_tokens,
            generated_tokens: finish.usage.output_tokens,
            time_per_token: finish.timings.inference / finish.usage.output_tokens.max(1),
        }
    }

    /// Of several answers together.
    pub(super) fn plus(self, other: Self) -> Self {
        let (a, b) = (self.timings, other.timings);
        Self {
            timings: Timings {
                validation: a.validation + b.validation,
                queue: a.queue + b.queue,
                inference: a.inference + b.inference,
                total: a.total + b.total,
            },
            characters: self.characters + other.characters,
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            generated_tokens: self.generated_tokens + other.generated_tokens,
            time_per_token: self.time_per_token + other.time_per_token,
        }
    }

    /// The headers of a collected answer, `x-compute-time` among them or not.
    pub(super) fn headers(&self, api: &Api, compute_time: bool) -> HeaderMap {
        let ms = |duration: Duration| HeaderValue::from(duration.as_millis() as u64);
        let mut headers = HeaderMap::new();
        let mut add = |name: &'static str, value: HeaderValue| {
            headers.insert(HeaderName::from_static(name), value);
        };
        add("x-compute-type", api.config.compute_type.clone());
        if compute_time {
            let seconds = self.timings.total.as_secs_f64().to_string();
            let value = HeaderValue::from_str(&seconds);
            add(
                "x-compute-time",
                value.unwrap_or(HeaderValue::from_static("0")),
            );
        }
        add("x-compute-characters", HeaderValue::from(self.characters));
        add("x-total-time", ms(self.timings.total));
        add("x-validation-time", ms(self.timings.validation));
        add("x-queue-time", ms(self.timings.queue));
        add("x-inference-time", ms(self.timings.inference));
        add("x-time-per-token", ms(self.time_per_token));
        add("x-prompt-tokens", HeaderValue::from(self.prompt_tokens));
        add(
            "x-generated-tokens",
            HeaderValue::from(self.generated_tokens),
        );
        headers
    }
}

/// The headers of a streamed answer.
pub(super) fn stream_headers(api: &Api, characters: usize) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let values = [
        ("x-compute-type", api.config.compute_type.clone()),
        ("x-compute-characters", HeaderValue::from(characters)),
        ("x-accel-buffering", HeaderValue::from_static("no")),
    ];
    headers.extend(values.map(|(name, value)| (HeaderName::from_static(name), value)));
    headers
}
