//! OpenAI's chat route, and what its template makes of a conversation.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::Event as Frame;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use futures::future::try_join_all;

use super::body::Body;
use super::calls::{self, Call, Made, Metering};
use super::compat::Compat;
use super::error::ApiError;
use super::keys::Caller;
use super::routing::ModelName;
use super::{Api, from_openai, sse, tgi};
use crate::dispatch::{
    ChatEvent, ChatFinish, ChatFinishReason, ChatStream, Dispatcher, Permit, PreparedChat,
};
use crate::generation::{ChatPiece, Conversation, Error, Request, RouteAsk, TokenInfo};
use crate::wire::openai::{
    CalledFunction, ChatChoice, ChatCompletion, ChatCompletionChunk, ChatLogprob, ChatLogprobs,
    ChatRequest, ChunkChoice, Delta, DeltaFunction, DeltaToolCall, OutputMessage, ToolCall,
    TopLogprob, Usage,
};
use crate::wire::tgi::ChatTokenizeResponse;
use crate::wire::upstreams::RouteDetails;

/// `POST /v1/chat/completions`.
pub(super) async fn chat_completions(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Body(body): Body<ChatRequest>,
) -> Result<Response, ApiError> {
    let refused = |e| calls::refused(&api, e);
    let streamed = body.stream.unwrap_or(false);
    let call =
        Call::open(&api, &caller, &headers, body.model.as_deref(), streamed).map_err(refused)?;
    let model = api.model_name(body.model.as_deref()).map_err(refused)?;
    let chat = Chat::prepare(&api, &body, call.deadline, Some(&call.routed.ask))
        .await
        .map_err(refused)?;
    let wants = Wants {
        model: ModelName::new(model, &call.routed),
        ids: CallIds::of(&api, &chat),
        logprobs: body.logprobs.unwrap_or(false),
        may_call: chat.prepared.may_call(),
        usage: body
            .stream_options
            .as_ref()
            .is_some_and(|options| options.include_usage.unwrap_or(false)),
    };
    let characters = chat.prepared.prompt.chars().count();
    if streamed {
        let accepted = call.requests(&api, Made::From(&chat.prepared), &chat.ask);
        let streams = match accepted {
            Ok((requests, permit)) => chat.start(&api, requests, permit).await,
            Err(error) => Err(calls::refused(&api, error)),
        };
        let out = calls::stream_headers(&api, characters);
        let events = sse::side_by_side(streams, api.config.compat).await?;
        let frames = sse::frames(events, ChunkWriter::new(&api, wants), &call.routed);
        return Ok((out, sse::respond(frames, api.config.keep_alive)).into_response());
    }
    let (requests, permit) = call
        .requests(&api, Made::From(&chat.prepared), &chat.ask)
        .map_err(refused)?;
    let streams = chat.start(&api, requests, permit).await?;
    let answers = try_join_all(streams.into_iter().map(Answer::from)).await?;
    let metering = answers.iter().enumerate().map(|(place, answer)| {
        let ChatFinish {
            input_tokens,
            finish,
            ..
        } = &answer.finish;
        // All answers share one prompt.
        let once = u32::from(place == 0);
        Metering::of(characters * once as usize, input_tokens * once, finish)
    });
    let metering = metering.reduce(Metering::plus).unwrap_or_default();
    let headers = metering.headers(&api, true);
    Ok((
        headers,
        Json(completion(&api, answers, wants, call.routed.told())),
    )
        .into_response())
}

/// The text of one answer, as it is, for routes that know nothing else.
pub(super) async fn plain_answer(
    api: &Api,
    caller: &Caller,
    headers: &HeaderMap,
    body: &ChatRequest,
) -> Result<String, ApiError> {
    let refused = |e| calls::refused(api, e);
    let call = Call::open(api, caller, headers, body.model.as_deref(), false).map_err(refused)?;
    let mut chat = Chat::prepare(api, body, call.deadline, Some(&call.routed.ask))
        .await
        .map_err(refused)?;
    chat.ask.choices = 1;
    let (requests, permit) = call
        .requests(api, Made::From(&chat.prepared), &chat.ask)
        .map_err(refused)?;
    let events = calls::start(api, requests, permit).await?.remove(0);
    Ok(calls::Collected::from(events).await?.finish.generated_text)
}

/// `POST /chat_tokenize`: the prompt a conversation becomes, and its tokens.
pub(super) async fn chat_tokenize(
    State(api): State<Api>,
    Body(body): Body<ChatRequest>,
) -> Result<Json<ChatTokenizeResponse>, ApiError> {
    let deadline = api.dispatcher.deadline(Instant::now(), None);
    let chat = Chat::prepare(&api, &body, deadline, None).await?;
    let templated_text = chat.prepared.prompt;
    Ok(Json(ChatTokenizeResponse {
        tokenize_response: tgi::tokens_of(&api, &templated_text, false).await?,
        templated_text,
    }))
}

/// A chat request that has been understood.
#[derive(Debug)]
pub(super) struct Chat {
    pub(super) prepared: PreparedChat,
    pub(super) ask: from_openai::Ask,
}

impl Chat {
    async fn prepare(
        api: &Api,
        body: &ChatRequest,
        deadline: Instant,
        route: Option<&RouteAsk>,
    ) -> Result<Self, Error> {
        let conversation = from_openai::conversation(body, &api.config)?;
        let ask = from_openai::chat_ask(body, &api.config, api.dispatcher.vocab_size())?;
        Self::of(api, conversation, ask, deadline, route).await
    }

    /// Renders a conversation; the shape of the answer, if one is asked for, may change with it. Without a
    /// `route` it is for this machine alone.
    ///
    /// Errors: the template's, or wrong tools; the deadline passes.
    pub(super) async fn of(
        api: &Api,
        conversation: Conversation,
        mut ask: from_openai::Ask,
        deadline: Instant,
        route: Option<&RouteAsk>,
    ) -> Result<Self, Error> {
        let shape = ask.shape.take();
        let preparing = api.dispatcher.prepare_chat(conversation, shape, route);
        let prepared = tokio::time::timeout_at(deadline.into(), preparing)
            .await
            .map_err(|_| Error::deadline_exceeded())??;
        ask.shape = prepared.grammar.clone();
        Ok(Self { prepared, ask })
    }

    /// The one answer of a route that gives no more.
    ///
    /// Errors: overloaded, invalid; counted.
    pub(super) async fn answer(&self, api: &Api, call: &Call) -> Result<ChatStream, ApiError> {
        let accepted = call.requests(api, Made::From(&self.prepared), &self.ask);
        let (requests, permit) = accepted.map_err(|e| calls::refused(api, e))?;
        Ok(self.start(api, requests, permit).await?.remove(0))
    }

    /// Starts every answer.
    ///
    /// Errors: the first one met.
    pub(super) async fn start(
        &self,
        api: &Api,
        requests: Vec<Request>,
        permit: Permit,
    ) -> Result<Vec<ChatStream>, ApiError> {
        let events = calls::start(api, requests, permit).await?;
        Ok(events
            .into_iter()
            .map(|events| self.prepared.read(events))
            .collect())
    }
}

/// Lets `take` have every event of an answer, to its end.
///
/// Errors: those of the answer; incomplete when it has no end.
pub(super) async fn read_to_end(
    mut events: ChatStream,
    mut take: impl FnMut(ChatEvent),
) -> Result<ChatFinish, Error> {
    while let Some(event) = events.next().await {
        let event = event?;
        let finish = event.finish.clone();
        take(event);
        if let Some(finish) = finish {
            return Ok(finish);
        }
    }
    Err(Error::incomplete())
}

/// How the calls of an answer are named.
#[derive(Debug, Clone)]
pub(super) enum CallIds {
    /// Counted on from this number (TGI).
    From(u64),
    /// Words that never come twice.
    Unique { prefix: &'static str, length: usize },
}

impl CallIds {
    /// TGI counts on from the largest id of the history; ids that are no numbers end the counting.
    pub(super) fn of(api: &Api, chat: &Chat) -> Self {
        if chat.prepared.wants_short_ids() {
            return Self::Unique {
                prefix: "",
                length: 9,
            };
        }
        let unique = Self::Unique {
            prefix: "call_",
            length: 24,
        };
        if api.config.compat == Compat::OpenAi {
            return unique;
        }
        let calls = chat
            .prepared
            .ask
            .conversation
            .messages
            .iter()
            .flat_map(|m| &m.tool_calls);
        let numbers = calls.map(|call| call.id.parse::<u32>().ok());
        match numbers.collect::<Option<Vec<_>>>() {
            Some(numbers) => Self::From(
                numbers
                    .into_iter()
                    .max()
                    .map_or(0, |max| u64::from(max) + 1),
            ),
            None => unique,
        }
    }

    /// The id of the next call.
    pub(super) fn next(&mut self) -> String {
        match self {
            Self::From(number) => {
                *number += 1;
                (*number - 1).to_string()
            }
            Self::Unique { prefix, length } => unique_id(prefix, *length),
        }
    }
}

/// `prefix` and `length` letters and digits, at most 32, that never come twice.
pub(super) fn unique_id(prefix: &str, length: usize) -> String {
    let random = uuid::Uuid::new_v4().simple().to_string();
    format!("{prefix}{}", &random[..length])
}

/// Whole seconds since 1970.
pub(super) fn unix_seconds() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}

/// What the answer should hold.
#[derive(Debug, Clone)]
struct Wants {
    model: ModelName,
    ids: CallIds,
    logprobs: bool,
    usage: bool,
    /// Whether text may turn out to be a call, so that silence says nothing yet.
    may_call: bool,
}

/// One call of an answer.
#[derive(Debug, Clone, Default, PartialEq)]
struct AnswerCall {
    index: usize,
    /// Given by whoever made the answer.
    id: Option<String>,
    name: String,
    arguments: String,
}

/// One whole answer of a chat.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) content: String,
    pub(super) reasoning: String,
    calls: Vec<AnswerCall>,
    tokens: Vec<(TokenInfo, Vec<TokenInfo>)>,
    pub(super) finish: ChatFinish,
}

impl Answer {
    /// Reads an answer to its end. What a cut has left of a call becomes content.
    ///
    /// Errors: those of the answer; incomplete when it has no end.
    pub(super) async fn from(mut events: ChatStream) -> Result<Self, Error> {
        let (mut content, mut reasoning) = (String::new(), String::new());
        let mut calls: Vec<AnswerCall> = Vec::new();
        let mut tokens = Vec::new();
        while let Some(event) = events.next().await {
            let ChatEvent {
                input_tokens: _,
                pieces,
                token,
                top_tokens,
                finish,
            } = event?;
            tokens.push((token, top_tokens));
            for piece in pieces {
                match piece {
                    ChatPiece::Content(text) => content += &text,
                    ChatPiece::Reasoning(text) => reasoning += &text,
                    piece => collect_call(&mut calls, piece),
                }
            }
            if let Some(finish) = finish {
                if finish.broken_call {
                    let cut = calls.pop();
                    if calls.is_empty() && reasoning.is_empty() {
                        content.clone_from(&finish.finish.generated_text);
                    } else if let Some(AnswerCall {
                        name, arguments, ..
                    }) = cut
                    {
                        content += &format!("{name} {arguments}");
                    }
                }
                return Ok(Self {
                    content,
                    reasoning,
                    calls,
                    tokens,
                    finish,
                });
            }
        }
        Err(Error::incomplete())
    }
}

/// Adds a piece of a call to those known so far.
fn collect_call(calls: &mut Vec<AnswerCall>, piece: ChatPiece) {
    match piece {
        ChatPiece::CallStart { index, id, name } => calls.push(AnswerCall {
            index,
            id,
            name,
            arguments: String::new(),
        }),
        ChatPiece::Arguments { index, text } => {
            if let Some(call) = calls.iter_mut().find(|call| call.index == index) {
                call.arguments += &text;
            }
        }
        ChatPiece::Content(_) | ChatPiece::Reasoning(_) => {}
    }
}

fn finish_reason(reason: ChatFinishReason) -> &'static str {
    match reason {
        ChatFinishReason::Stop => "stop",
        ChatFinishReason::Length => "length",
        ChatFinishReason::ToolCalls => "tool_calls",
    }
}

fn completion(
    api: &Api,
    answers: Vec<Answer>,
    wants: Wants,
    route: Option<RouteDetails>,
) -> ChatCompletion {
    let Wants {
        model,
        mut ids,
        logprobs,
        usage: _,
        may_call: _,
    } = wants;
    let compat = api.config.compat;
    let mut usage = Usage::default();
    let choice = |(index, answer): (usize, Answer)| {
        let finish = &answer.finish;
        usage = Usage::new(
            finish.input_tokens,
            usage.completion_tokens + finish.finish.usage.output_tokens,
        );
        ChatChoice {
            index,
            finish_reason: finish_reason(finish.reason),
            logprobs: logprobs.then(|| ChatLogprobs {
                content: answer
                    .tokens
                    .iter()
                    .filter_map(|(token, top)| logprob(token, top, vocabulary(api)))
                    .collect(),
            }),
            message: output_message(answer, &mut ids, compat),
        }
    };
    let choices = answers.into_iter().enumerate().map(choice).collect();
    ChatCompletion {
        object: "chat.completion",
        id: api.answer_id("chatcmpl-"),
        created: unix_seconds(),
        model: model.now(),
        system_fingerprint: api.fingerprint(),
        choices,
        usage,
        route,
    }
}

fn output_message(answer: Answer, ids: &mut CallIds, compat: Compat) -> OutputMessage {
    let Answer {
        content,
        reasoning,
        calls,
        ..
    } = answer;
    let tool_calls: Vec<ToolCall> = calls
        .into_iter()
        .map(|call| ToolCall {
            id: call.id.unwrap_or_else(|| ids.next()),
            kind: "function".to_owned(),
            function: CalledFunction {
                description: (compat == Compat::Tgi).then_some(serde_json::Value::Null),
                name: call.name,
                arguments: call.arguments.into(),
            },
        })
        .collect();
    let content = match (content.is_empty(), tool_calls.is_empty(), compat) {
        (true, false, Compat::Tgi) => None,
        (true, false, Compat::OpenAi) => Some(None),
        _ => Some(Some(content)),
    };
    OutputMessage {
        role: "assistant",
        content,
        reasoning_content: Some(reasoning).filter(|text| !text.is_empty()),
        tool_calls,
    }
}

/// A token with its rivals, and with their bytes where `vocabulary` is given to look them up.
///
/// None for a piece of an answer made elsewhere whose probability is not known.
fn logprob(
    token: &TokenInfo,
    top: &[TokenInfo],
    vocabulary: Option<&Dispatcher>,
) -> Option<ChatLogprob> {
    let bytes = |token: &TokenInfo| match (vocabulary?, token.id) {
        (hall, Some(id)) => Some(hall.token_bytes(id)),
        (_, None) => Some(token.text.clone().into_bytes()),
    };
    let top = top.iter().filter_map(|token| {
        Some(TopLogprob {
            token: token.text.clone(),
            logprob: token.logprob?,
            bytes: bytes(token),
        })
    });
    Some(ChatLogprob {
        token: token.text.clone(),
        logprob: token.logprob?,
        bytes: bytes(token),
        top_logprobs: top.collect(),
    })
}

/// Where the bytes of tokens are looked up; TGI's log-probabilities have none.
fn vocabulary(api: &Api) -> Option<&Dispatcher> {
    (api.config.compat == Compat::OpenAi).then_some(&api.dispatcher)
}

/// Writes the chunks of a streamed chat.
#[derive(Debug)]
struct ChunkWriter {
    compat: Compat,
    vocabulary: Option<Dispatcher>,
    id: String,
    fingerprint: String,
    wants: Wants,
    usage: Usage,
    /// By choice: whether its first chunk has gone out.
    begun: Vec<bool>,
    /// By choice: places and ids of its calls, in the order they began.
    calls: Vec<Vec<(usize, String)>>,
}

impl sse::Writer<(usize, ChatEvent)> for ChunkWriter {
    fn event(&mut self, (index, event): (usize, ChatEvent)) -> Vec<Frame> {
        self.chunks(index, event).iter().map(sse::frame).collect()
    }

    fn failure(&mut self, error: ApiError) -> Vec<Frame> {
        vec![sse::frame(&error.event(self.compat)), sse::done()]
    }

    fn end(&mut self) -> Vec<Frame> {
        let usage = self.usage_chunk();
        usage.iter().map(sse::frame).chain([sse::done()]).collect()
    }
}

impl ChunkWriter {
    fn new(api: &Api, wants: Wants) -> Self {
        Self {
            compat: api.config.compat,
            vocabulary: vocabulary(api).cloned(),
            id: api.answer_id("chatcmpl-"),
            fingerprint: api.fingerprint(),
            wants,
            usage: Usage::default(),
            begun: Vec::new(),
            calls: Vec::new(),
        }
    }

    fn chunk(&self, choices: Vec<ChunkChoice>, usage: Option<Usage>) -> ChatCompletionChunk {
        ChatCompletionChunk {
            object: "chat.completion.chunk",
            id: self.id.clone(),
            created: unix_seconds(),
            model: self.wants.model.now(),
            system_fingerprint: self.fingerprint.clone(),
            choices,
            usage,
        }
    }

    fn usage_chunk(&self) -> Option<ChatCompletionChunk> {
        self.wants
            .usage
            .then(|| self.chunk(Vec::new(), Some(self.usage)))
    }

    /// The chunks one event becomes: TGI's clients expect one for each token of text at least.
    fn chunks(&mut self, index: usize, event: ChatEvent) -> Vec<ChatCompletionChunk> {
        let ChatEvent {
            input_tokens: _,
            pieces,
            token,
            top_tokens,
            finish,
        } = event;
        if self.begun.len() <= index {
            self.begun.resize(index + 1, false);
            self.calls.resize(index + 1, Vec::new());
        }
        let mut deltas = self.deltas(index, pieces);
        let finish_reason = finish.as_ref().map(|finish| finish_reason(finish.reason));
        if let Some(finish) = finish {
            self.usage = Usage::new(
                finish.input_tokens,
                self.usage.completion_tokens + finish.finish.usage.output_tokens,
            );
        }
        let each_token = self.compat == Compat::Tgi && !self.wants.may_call;
        let must_speak = finish_reason.is_some() || self.wants.logprobs || each_token;
        if (deltas.is_empty() && must_speak) || finish_reason == Some("tool_calls") {
            deltas.push(self.silent_delta(index));
        }
        let last = deltas.len().saturating_sub(1);
        let mut chunks = Vec::with_capacity(deltas.len());
        for (place, mut delta) in deltas.into_iter().enumerate() {
            let begins = !std::mem::replace(&mut self.begun[index], true);
            delta.role = (begins || self.compat == Compat::Tgi).then_some("assistant");
            let choice = ChunkChoice {
                index,
                delta,
                logprobs: (self.wants.logprobs && place == 0).then(|| ChatLogprobs {
                    content: Vec::from_iter(logprob(&token, &top_tokens, self.vocabulary.as_ref())),
                }),
                finish_reason: finish_reason.filter(|_| place == last),
            };
            chunks.push(self.chunk(vec![choice], None));
        }
        chunks
    }

    /// Text first, then calls, each call's name with the beginning of its arguments.
    fn deltas(&mut self, index: usize, pieces: Vec<ChatPiece>) -> Vec<Delta> {
        let mut deltas: Vec<Delta> = Vec::new();
        for piece in pieces {
            match piece {
                ChatPiece::Content(text) => match deltas.last_mut() {
                    Some(last) if last.tool_calls.is_empty() => {
                        last.content.get_or_insert_default().push_str(&text);
                    }
                    _ => deltas.push(Delta {
                        content: Some(text),
                        ..Delta::default()
                    }),
                },
                ChatPiece::Reasoning(text) => deltas.push(Delta {
                    content: (self.compat == Compat::Tgi).then(String::new),
                    reasoning_content: Some(text),
                    ..Delta::default()
                }),
                ChatPiece::CallStart {
                    index: call,
                    id,
                    name,
                } => {
                    let id = id.unwrap_or_else(|| self.wants.ids.next());
                    self.calls[index].push((call, id));
                    deltas.push(self.call_delta(index, call, Some(name), String::new()));
                }
                ChatPiece::Arguments { index: call, text } => {
                    let open = deltas
                        .last_mut()
                        .and_then(|last| last.tool_calls.last_mut());
                    match open.filter(|open| open.index == call) {
                        Some(open) => open.function.arguments += &text,
                        None => deltas.push(self.call_delta(index, call, None, text)),
                    }
                }
            }
        }
        deltas
    }

    fn call_delta(
        &self,
        choice: usize,
        call: usize,
        name: Option<String>,
        arguments: String,
    ) -> Delta {
        // Under TGI every chunk names its call, under OpenAI the first one does.
        let names = name.is_some() || self.compat == Compat::Tgi;
        let mut known = self.calls[choice].iter().filter(|_| names);
        Delta {
            tool_calls: vec![DeltaToolCall {
                index: call,
                id: known
                    .find(|(place, _)| *place == call)
                    .map(|(_, id)| id.clone()),
                kind: names.then_some("function"),
                function: DeltaFunction { name, arguments },
            }],
            ..Delta::default()
        }
    }

    /// A delta that adds nothing. TGI's clients look for a call in every chunk of an answer that has one.
    fn silent_delta(&self, index: usize) -> Delta {
        match (self.compat, self.calls[index].last()) {
            (Compat::Tgi, Some((call, _))) => self.call_delta(index, *call, None, String::new()),
            (Compat::Tgi, None) => Delta {
                content: Some(String::new()),
                ..Delta::default()
            },
            (Compat::OpenAi, _) => Delta::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(index: usize, id: Option<&str>) -> ChatPiece {
        ChatPiece::CallStart {
            index,
            id: id.map(str::to_owned),
            name: format!("f{index}"),
        }
    }

    fn more(index: usize, text: &str) -> ChatPiece {
        ChatPiece::Arguments {
            index,
            text: text.to_owned(),
        }
    }

    fn mixed() -> Vec<ChatPiece> {
        vec![
            start(0, None),
            start(1, Some("theirs")),
            more(1, "{\"x\":"),
            more(0, "{\"y\":"),
            more(1, "2}"),
            more(0, "1}"),
        ]
    }

    fn writer(compat: Compat) -> ChunkWriter {
        ChunkWriter {
            compat,
            vocabulary: None,
            id: String::new(),
            fingerprint: String::new(),
            wants: Wants {
                model: ModelName::new("m".to_owned(), &Default::default()),
                ids: CallIds::From(7),
                logprobs: false,
                usage: false,
                may_call: true,
            },
            usage: Usage::default(),
            begun: vec![true],
            calls: vec![Vec::new()],
        }
    }

    #[test]
    fn calls_that_come_mixed_are_streamed_by_their_places() {
        for compat in [Compat::Tgi, Compat::OpenAi] {
            let mut joined = [String::new(), String::new()];
            let mut ids = [Vec::new(), Vec::new()];
            for delta in writer(compat).deltas(0, mixed()) {
                for call in delta.tool_calls {
                    joined[call.index] += &call.function.arguments;
                    ids[call.index].extend(call.id);
                }
            }
            assert_eq!(joined, ["{\"y\":1}", "{\"x\":2}"]);
            for (ids, expected) in ids.into_iter().zip(["7", "theirs"]) {
                assert!(!ids.is_empty() && ids.iter().all(|id| id == expected));
            }
        }
    }

    #[test]
    fn calls_that_come_mixed_are_collected_by_their_places() {
        let mut calls = Vec::new();
        for piece in mixed() {
            collect_call(&mut calls, piece);
        }
        let told = calls
            .iter()
            .map(|call| (call.id.as_deref(), call.arguments.as_str()));
        let expected = [(None, "{\"y\":1}"), (Some("theirs"), "{\"x\":2}")];
        assert_eq!(told.collect::<Vec<_>>(), expected);
    }
}
