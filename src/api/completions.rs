//! OpenAI's completion route: one prompt or several, no template.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::Event as Frame;
use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;

use super::body::Body;
use super::calls::{self, Call, Collected, Made, Metering};
use super::chat::unix_seconds;
use super::compat::Compat;
use super::error::ApiError;
use super::keys::Caller;
use super::routing::ModelName;
use super::{Api, from_openai, sse};
use crate::generation::{Error, Event, FinishReason, TokenEvent, TokenInfo};
use crate::wire::openai::{
    Completion, CompletionChoice, CompletionChunk, CompletionLogprobs, CompletionRequest, Usage,
};
use crate::wire::upstreams::RouteDetails;

/// `POST /v1/completions`.
pub(super) async fn completions(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Body(body): Body<CompletionRequest>,
) -> Result<Response, ApiError> {
    let refused = |e| calls::refused(&api, e);
    let streamed = body.stream.unwrap_or(false);
    let call =
        Call::open(&api, &caller, &headers, body.model.as_deref(), streamed).map_err(refused)?;
    let model = api.model_name(body.model.as_deref()).map_err(refused)?;
    let counted = |error: ApiError| {
        api.dispatcher.count_refusal(&Error::invalid(String::new()));
        error
    };
    if body.suffix.is_some() {
        return Err(counted(ApiError::suffix()));
    }
    let prompts: Vec<&str> = body.prompt.0.iter().map(String::as_str).collect();
    if prompts.len() > api.config.max_client_batch_size {
        return Err(counted(ApiError::batch_size(
            api.config.max_client_batch_size,
        )));
    }
    let ask = from_openai::completion_ask(&body, &api.config, api.dispatcher.vocab_size())
        .map_err(refused)?;
    let accepted = call.requests(&api, Made::Of(&prompts), &ask);
    let characters = |place: usize| prompts[place / ask.choices].chars().count();
    let writer = Writer {
        compat: api.config.compat,
        id: api.answer_id("cmpl-"),
        // TGI names the served model whatever was asked for.
        model: match api.config.compat {
            Compat::Tgi => ModelName::new(api.info.model_id.clone(), &call.routed),
            Compat::OpenAi => ModelName::new(model, &call.routed),
        },
        fingerprint: api.fingerprint(),
        echo: body.echo.unwrap_or(false),
        logprobs: body.logprobs.is_some(),
        total_usage: body
            .stream_options
            .as_ref()
            .is_some_and(|options| options.include_usage.unwrap_or(false)),
        prompts: body.prompt.0.clone(),
        choices: ask.choices,
    };
    if streamed {
        let streams = match accepted {
            Ok((requests, permit)) => calls::start(&api, requests, permit)
                .await
                .map_err(ApiError::from),
            Err(error) => Err(calls::refused(&api, error)),
        };
        let all = prompts.iter().map(|prompt| prompt.chars().count()).sum();
        let out = calls::stream_headers(&api, all);
        let events = sse::side_by_side(streams, api.config.compat).await?;
        let frames = sse::frames(events, StreamWriter::new(writer), &call.routed);
        return Ok((out, sse::respond(frames, api.config.keep_alive)).into_response());
    }
    let (requests, permit) = accepted.map_err(refused)?;
    let streams = calls::start(&api, requests, permit).await?;
    let answers = try_join_all(streams.into_iter().map(Collected::from)).await?;
    let metering = answers.iter().enumerate().map(|(place, answer)| {
        // The answers to a prompt share it.
        let once = u32::from(place.is_multiple_of(ask.choices));
        let input_tokens = answer.finish.usage.input_tokens * once;
        Metering::of(
            characters(place) * once as usize,
            input_tokens,
            &answer.finish,
        )
    });
    let headers = metering
        .reduce(Metering::plus)
        .unwrap_or_default()
        .headers(&api, false);
    Ok((
        headers,
        Json(writer.completion(answers, call.routed.told())),
    )
        .into_response())
}

/// Writes answers in the mode in force.
#[derive(Debug)]
struct Writer {
    compat: Compat,
    id: String,
    model: ModelName,
    fingerprint: String,
    echo: bool,
    logprobs: bool,
    total_usage: bool,
    prompts: Vec<String>,
    /// Answers to each prompt.
    choices: usize,
}

impl Writer {
    fn echoed(&self, index: usize) -> &str {
        if self.echo {
            &self.prompts[index / self.choices]
        } else {
            ""
        }
    }

    fn completion(self, answers: Vec<Collected>, route: Option<RouteDetails>) -> Completion {
        let mut usage = Usage::default();
        let choice = |(index, answer): (usize, Collected)| {
            let prompt = match index % self.choices {
                0 => answer.finish.usage.input_tokens,
                _ => 0,
            };
            usage = Usage::new(
                usage.prompt_tokens + prompt,
                usage.completion_tokens + answer.finish.usage.output_tokens,
            );
            let echoed = self.echoed(index);
            let logprobs = self.logprobs.then(|| {
                let mut offset = echoed.chars().count();
                let mut all = CompletionLogprobs::default();
                for event in &answer.tokens {
                    add_logprobs(&mut all, event, &mut offset);
                }
                all
            });
            CompletionChoice {
                index,
                text: format!("{echoed}{}", answer.finish.generated_text),
                logprobs,
                finish_reason: Some(finish_reason(answer.finish.reason)),
            }
        };
        let choices = answers.into_iter().enumerate().map(choice).collect();
        Completion {
            object: "text_completion",
            id: self.id,
            created: unix_seconds(),
            model: self.model.now(),
            system_fingerprint: self.fingerprint,
            choices,
            usage,
            route,
        }
    }

    fn chunk(&self, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> CompletionChunk {
        CompletionChunk {
            object: "text_completion",
            id: self.id.clone(),
            created: unix_seconds(),
            choices,
            model: self.model.now(),
            system_fingerprint: self.fingerprint.clone(),
            usage,
        }
    }
}

fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Length => "length",
        FinishReason::EosToken | FinishReason::StopSequence => "stop",
    }
}

/// Adds one token; `offset` counts the characters before it.
fn add_logprobs(all: &mut CompletionLogprobs, event: &TokenEvent, offset: &mut usize) {
    let TokenEvent {
        token, top_tokens, ..
    } = event;
    let Some(logprob) = token.logprob else {
        return;
    };
    let top = |token: &TokenInfo| Some((token.text.clone(), token.logprob?));
    all.tokens.push(token.text.clone());
    all.token_logprobs.push(logprob);
    all.top_logprobs
        .push(top_tokens.iter().filter_map(top).collect());
    all.text_offset.push(*offset);
    *offset += shown(token).chars().count();
}

/// A token's share of the text: special tokens have none.
fn shown(token: &TokenInfo) -> &str {
    if token.special { "" } else { &token.text }
}

/// What is known of one answer while it streams.
#[derive(Debug, Clone, Default)]
struct Progress {
    begun: bool,
    input_tokens: u32,
    offset: usize,
}

/// Writes the chunks of a streamed completion.
#[derive(Debug)]
struct StreamWriter {
    writer: Writer,
    progress: Vec<Progress>,
    usage: Usage,
}

impl sse::Writer<(usize, Event)> for StreamWriter {
    fn event(&mut self, (index, event): (usize, Event)) -> Vec<Frame> {
        self.chunk(index, event).iter().map(sse::frame).collect()
    }

    fn failure(&mut self, error: ApiError) -> Vec<Frame> {
        vec![sse::frame(&error.event(self.writer.compat)), sse::done()]
    }

    fn end(&mut self) -> Vec<Frame> {
        let last = self.last_chunk();
        last.iter().map(sse::frame).chain([sse::done()]).collect()
    }
}

impl StreamWriter {
    fn new(writer: Writer) -> Self {
        let answers = writer.prompts.len() * writer.choices;
        Self {
            writer,
            progress: vec![Progress::default(); answers],
            usage: Usage::default(),
        }
    }

    fn chunk(&mut self, index: usize, event: Event) -> Option<CompletionChunk> {
        let progress = &mut self.progress[index];
        let event = match event {
            Event::Started(started) => {
                progress.input_tokens = started.input_tokens;
                return None;
            }
            Event::Token(event) => event,
        };
        let mut text = event.text.clone();
        if !std::mem::replace(&mut progress.begun, true) {
            let echoed = self.writer.echoed(index);
            progress.offset = echoed.chars().count();
            text = format!("{echoed}{text}");
        }
        let logprobs = self.writer.logprobs.then(|| {
            let mut one = CompletionLogprobs::default();
            add_logprobs(&mut one, &event, &mut progress.offset);
            one
        });
        let finish = event.finish;
        if let Some(finish) = &finish {
            progress.input_tokens = finish.usage.input_tokens;
        }
        let before_the_end = match self.writer.compat {
            Compat::Tgi => Some(""),
            Compat::OpenAi => None,
        };
        let usage = finish.as_ref().map(|finish| {
            let prompt = if index.is_multiple_of(self.writer.choices) {
                progress.input_tokens
            } else {
                0
            };
            self.usage = Usage::new(
                self.usage.prompt_tokens + prompt,
                self.usage.completion_tokens + finish.usage.output_tokens,
            );
            Usage::new(progress.input_tokens, finish.usage.output_tokens)
        });
        let choice = CompletionChoice {
            index,
            text,
            logprobs,
            finish_reason: finish.map_or(before_the_end, |f| Some(finish_reason(f.reason))),
        };
        // TGI counts each answer in its last chunk, OpenAI all of them at the end when asked.
        let usage = usage.filter(|_| self.writer.compat == Compat::Tgi);
        Some(self.writer.chunk(vec![choice], usage))
    }

    fn last_chunk(&self) -> Option<CompletionChunk> {
        self.writer
            .total_usage
            .then(|| self.writer.chunk(Vec::new(), Some(self.usage)))
    }
}
