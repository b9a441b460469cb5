//! TGI's own routes: `/`, `/generate`, `/generate_stream`, `/tokenize`.

use std::convert::Infallible;
use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::Event as Frame;
use axum::response::{IntoResponse, Response};
use futures::future::try_join_all;
use futures::{Stream, StreamExt, stream};

use super::body::Body;
use super::calls::{self, Collected, Metering};
use super::error::ApiError;
use super::keys::Caller;
use super::{Api, from_tgi, sse};
use crate::dispatch::Permit;
use crate::generation::{
    self, Error, Event, EventStream, Request, RouteNotes, Started, TokenDetail, TokenEvent,
    TokenInfo,
};
use crate::wire::tgi::{
    BestOfSequence, CompatGenerateRequest, Details, FinishReason, GenerateParameters,
    GenerateRequest, GenerateResponse, PrefillToken, SimpleToken, StreamDetails, StreamResponse,
    Token,
};

/// `POST /generate`.
pub(super) async fn generate(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Body(body): Body<GenerateRequest>,
) -> Result<Response, ApiError> {
    let (headers, answer) = collect_answer(&api, caller, &headers, body).await?;
    Ok((headers, Json(answer)).into_response())
}

/// `POST /generate_stream`.
pub(super) async fn generate_stream(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Body(body): Body<GenerateRequest>,
) -> Response {
    stream_answer(api, caller, &headers, body).await
}

/// `POST /`: either of the two; full text unless told otherwise, and a list when not streamed.
pub(super) async fn compat_generate(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Body(body): Body<CompatGenerateRequest>,
) -> Result<Response, ApiError> {
    let CompatGenerateRequest {
        inputs,
        mut parameters,
        stream,
    } = body;
    parameters.return_full_text.get_or_insert(true);
    let body = GenerateRequest { inputs, parameters };
    if stream {
        return Ok(stream_answer(api, caller, &headers, body).await);
    }
    let (headers, answer) = collect_answer(&api, caller, &headers, body).await?;
    Ok((headers, Json([answer])).into_response())
}

/// `POST /tokenize`.
pub(super) async fn tokenize(
    State(api): State<Api>,
    Body(body): Body<GenerateRequest>,
) -> Result<Json<Vec<SimpleToken>>, ApiError> {
    Ok(Json(tokens_of(&api, &body.inputs, true).await?))
}

/// The tokens of a text, with the bytes they stand for.
pub(super) async fn tokens_of(
    api: &Api,
    text: &str,
    add_special: bool,
) -> Result<Vec<SimpleToken>, Error> {
    let encoding = api
        .dispatcher
        .tokenize(text.to_owned(), add_special)
        .await?;
    let bytes = text.as_bytes();
    let token = |(id, (start, stop)): (&generation::TokenId, &(usize, usize))| SimpleToken {
        id: id.0,
        text: String::from_utf8_lossy(bytes.get(*start..*stop).unwrap_or_default()).into_owned(),
        start: *start,
        stop: *stop,
    };
    Ok(encoding
        .ids
        .iter()
        .zip(&encoding.offsets)
        .map(token)
        .collect())
}

/// Takes permits, checks, and returns the requests of one call, one for each sequence.
fn accept(
    api: &Api,
    caller: Caller,
    headers: &HeaderMap,
    body: &GenerateRequest,
    streaming: bool,
) -> Result<(Vec<Request>, Permit), Error> {
    let accepted_at = Instant::now();
    api.dispatcher.count_request();
    let GenerateRequest { inputs, parameters } = body;
    if streaming {
        from_tgi::check_streaming(parameters)?;
    }
    let count = from_tgi::num_sequences(parameters, &api.config)?;
    let permit = api.dispatcher.admit(count)?;
    let asked = from_tgi::asked_deadline(headers)?;
    let frame = from_tgi::Frame {
        max_input_tokens: api.dispatcher.config().max_input_tokens,
        prompt_logprobs: api.dispatcher.config().prompt_logprobs,
        accepted_at,
        deadline: api.dispatcher.deadline(accepted_at, asked),
        tenant: caller.tenant,
        routed: caller.routed.of(None, streaming),
        chat: None,
        detail: match (
            parameters.details || parameters.decoder_input_details,
            streaming,
        ) {
            (true, _) => TokenDetail::Full,
            (false, true) => TokenDetail::Framed,
            (false, false) => TokenDetail::Unseen,
        },
    };
    let first = from_tgi::request(inputs.clone(), parameters, &api.config, &frame)?;
    let mut requests = vec![first];
    for _ in 1..count {
        let mut sibling = requests[0].clone();
        sibling.note = frame.routed.slot();
        sibling.sampling.seed = Some(from_tgi::random_seed()?);
        sibling.accounted = false;
        requests.push(sibling);
    }
    Ok((requests, permit))
}

/// One collected answer with its headers.
pub(super) async fn collect_answer(
    api: &Api,
    caller: Caller,
    headers: &HeaderMap,
    body: GenerateRequest,
) -> Result<(HeaderMap, GenerateResponse), ApiError> {
    let routed = caller.routed.clone();
    let (requests, mut permit) =
        accept(api, caller, headers, &body, false).map_err(|e| calls::refused(api, e))?;
    let GenerateRequest { inputs, parameters } = body;
    let answers = requests.into_iter().map(|request| {
        let permit = permit.split();
        async move { Collected::from(api.dispatcher.generate(request, permit).await?).await }
    });
    let mut answers = try_join_all(answers.collect::<Vec<_>>()).await?;
    let winner = (0..answers.len())
        .reduce(|a, b| {
            if answers[b].mean_logprob() > answers[a].mean_logprob() {
                b
            } else {
                a
            }
        })
        .unwrap_or_default();
    let winner = answers.swap_remove(winner);
    let metering = Metering::of(
        inputs.chars().count(),
        winner.finish.usage.input_tokens,
        &winner.finish,
    );
    let headers = metering.headers(api, true);
    let full_text = parameters
        .return_full_text
        .unwrap_or(false)
        .then_some(inputs.as_str());
    let wants_details = parameters.details || parameters.decoder_input_details;
    let losers = (parameters.best_of.unwrap_or(1) > 1).then(|| {
        answers
            .into_iter()
            .map(|loser| best_of_sequence(loser, full_text))
            .collect()
    });
    let generated_text = with_prompt(full_text, &winner.finish.generated_text);
    let route = routed.told();
    let mut winner = winner;
    if !wants_details {
        // Details for the sake of the route say nothing that was not asked for.
        winner.tokens.clear();
        winner.started.prompt.clear();
    }
    let details = (wants_details || route.is_some()).then(|| Details {
        route,
        ..details(winner, losers)
    });
    Ok((
        headers,
        GenerateResponse {
            generated_text,
            details,
        },
    ))
}

fn details(answer: Collected, best_of_sequences: Option<Vec<BestOfSequence>>) -> Details {
    let Collected {
        started,
        tokens,
        finish,
    } = answer;
    let (tokens, top_tokens) = split_tokens(tokens);
    Details {
        finish_reason: finish_reason(finish.reason),
        generated_tokens: finish.usage.output_tokens,
        seed: finish.seed,
        prefill: prefill(started),
        tokens,
        best_of_sequences,
        top_tokens,
        route: None,
    }
}

fn best_of_sequence(answer: Collected, full_text: Option<&str>) -> BestOfSequence {
    let generated_text = with_prompt(full_text, &answer.finish.generated_text);
    let Details {
        finish_reason,
        generated_tokens,
        seed,
        prefill,
        tokens,
        top_tokens,
        ..
    } = details(answer, None);
    BestOfSequence {
        generated_text,
        finish_reason,
        generated_tokens,
        seed,
        prefill,
        tokens,
        top_tokens,
    }
}

fn prefill(started: Started) -> Vec<PrefillToken> {
    let token = |token: generation::PromptToken| PrefillToken {
        id: token.id.0,
        text: token.text,
        logprob: token.logprob,
    };
    started.prompt.into_iter().map(token).collect()
}

/// Tokens, and the best ones at each place when they were asked for.
fn split_tokens(events: Vec<TokenEvent>) -> (Vec<Token>, Vec<Vec<Token>>) {
    // Pieces of an answer made elsewhere are no tokens unless it said so; none are made up.
    let events = events.into_iter().filter(|event| event.token.id.is_some());
    let events: Vec<_> = events.collect();
    let asked = events.iter().any(|event| !event.top_tokens.is_empty());
    let mut tokens = Vec::with_capacity(events.len());
    let mut top = Vec::new();
    for event in events {
        tokens.push(token(event.token));
        if asked {
            top.push(event.top_tokens.into_iter().map(token).collect());
        }
    }
    (tokens, top)
}

fn with_prompt(prompt: Option<&str>, generated: &str) -> String {
    format!("{}{generated}", prompt.unwrap_or_default())
}

async fn stream_answer(
    api: Api,
    caller: Caller,
    headers: &HeaderMap,
    body: GenerateRequest,
) -> Response {
    let keep_alive = api.config.keep_alive;
    let out = calls::stream_headers(&api, body.inputs.chars().count());
    let notes = caller.routed.notes.clone();
    let is_routed = notes.is_some();
    let accepted = accept(&api, caller, headers, &body, true)
        .map_err(|e| calls::refused(&api, e).into_stream());
    let GenerateRequest { inputs, parameters } = body;
    // The answer is awaited inside the stream: the status is 200 whatever comes of it, as in TGI.
    let frames = stream::once(async move {
        let started = match accepted {
            Ok((mut requests, permit)) => {
                let started = api.dispatcher.generate(requests.remove(0), permit).await;
                started.map_err(|e| ApiError::from(e).into_stream())
            }
            Err(error) => Err(error),
        };
        match started {
            Ok(events) => token_frames(events, inputs, parameters, notes).left_stream(),
            Err(error) => {
                let closing = notes.as_ref().map(sse::closing);
                let frames = closing.into_iter().chain([sse::frame(&error.native())]);
                stream::iter(frames.map(Ok::<_, Infallible>).collect::<Vec<_>>()).right_stream()
            }
        }
    })
    .flatten();
    if is_routed {
        // The headers say where the answer is made.
        let frames = sse::awaited(frames).await;
        return (out, sse::respond(frames, keep_alive)).into_response();
    }
    (out, sse::respond(frames, keep_alive)).into_response()
}

/// One frame for each token; an error's frame is the last.
fn token_frames(
    events: EventStream,
    inputs: String,
    parameters: GenerateParameters,
    notes: Option<RouteNotes>,
) -> impl Stream<Item = Result<Frame, Infallible>> {
    let full_text = parameters
        .return_full_text
        .unwrap_or(false)
        .then_some(inputs);
    let mut index = 0;
    events.flat_map(move |event| {
        let is_last = match &event {
            Ok(Event::Token(event)) => event.finish.is_some(),
            Ok(Event::Started(_)) => false,
            Err(_) => true,
        };
        let frame = match event {
            Ok(Event::Started(_)) => None,
            Ok(Event::Token(event)) => {
                index += 1;
                let TokenEvent {
                    token: chosen,
                    text: _,
                    pieces: _,
                    top_tokens,
                    finish,
                } = event;
                let generated_text = finish
                    .as_ref()
                    .map(|finish| with_prompt(full_text.as_deref(), &finish.generated_text));
                let details = finish
                    .filter(|_| parameters.details)
                    .map(|finish| StreamDetails {
                        finish_reason: finish_reason(finish.reason),
                        generated_tokens: finish.usage.output_tokens,
                        seed: finish.seed,
                        input_length: finish.usage.input_tokens,
                    });
                Some(sse::frame(&StreamResponse {
                    index,
                    token: token(chosen),
                    top_tokens: top_tokens.into_iter().map(token).collect(),
                    generated_text,
                    details,
                }))
            }
            Err(error) => Some(sse::frame(&ApiError::from(error).into_stream().native())),
        };
        let closing = notes.as_ref().filter(|_| is_last).map(sse::closing);
        stream::iter(closing.into_iter().chain(frame).map(Ok))
    })
}

fn token(info: TokenInfo) -> Token {
    let TokenInfo {
        id,
        text,
        logprob,
        special,
    } = info;
    Token {
        id: id.map_or(0, |id| id.0),
        text,
        logprob,
        special,
    }
}

fn finish_reason(reason: generation::FinishReason) -> FinishReason {
    match reason {
        generation::FinishReason::Length => FinishReason::Length,
        generation::FinishReason::EosToken => FinishReason::EosToken,
        generation::FinishReason::StopSequence => FinishReason::StopSequence,
    }
}
