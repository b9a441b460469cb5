//! OpenAI's responses route, without its memory: every request brings its whole conversation.

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::Event as Frame;
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};

use super::body::Body;
use super::calls::{self, Call, Metering};
use super::chat::{self, CallIds, Chat, unique_id, unix_seconds};
use super::compat::Compat;
use super::error::ApiError;
use super::keys::Caller;
use super::routing::ModelName;
use super::turns::Turns;
use super::{Api, from_responses, sse};
use crate::dispatch::{ChatEvent, ChatFinish, ChatFinishReason};
use crate::generation::ChatPiece;
use crate::wire::responses::{
    IncompleteDetails, InputTokensDetails, OutputItem, OutputPart, OutputTokensDetails,
    ResponsesEvent, ResponsesEventBody, ResponsesFormat, ResponsesRequest, ResponsesResponse,
    ResponsesText, ResponsesToolChoice, ResponsesUsage,
};

/// `POST /v1/responses`.
pub(super) async fn responses(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Body(body): Body<ResponsesRequest>,
) -> Result<Response, ApiError> {
    let refused = |e| calls::refused(&api, e);
    let streamed = body.stream.unwrap_or(false);
    let call =
        Call::open(&api, &caller, &headers, body.model.as_deref(), streamed).map_err(refused)?;
    let model = api.model_name(body.model.as_deref()).map_err(refused)?;
    let conversation = from_responses::conversation(&body).map_err(refused)?;
    let ask = from_responses::ask(&body).map_err(refused)?;
    let chat = Chat::of(
        &api,
        conversation,
        ask,
        call.deadline,
        Some(&call.routed.ask),
    )
    .await
    .map_err(refused)?;
    let characters = chat.prepared.prompt.chars().count();
    let answer = chat.answer(&api, &call).await?;
    let ids = CallIds::of(&api, &chat);
    let model = ModelName::new(model, &call.routed);
    let mut writer = Writer::new(shell(body, model.now()), ids);
    if streamed {
        let compat = api.config.compat;
        let early = match compat {
            Compat::OpenAi => sse::Early::All,
            // A conversation is refused by a status where there is no room for it here.
            Compat::Tgi => sse::Early::WantOfRoom,
        };
        let answer = sse::begun(answer, early).await?;
        writer.response.model = model.now();
        let out = calls::stream_headers(&api, characters);
        let opening = writer.opening().map(Ok);
        let frames = stream::iter(opening).chain(sse::frames(
            answer,
            StreamWriter(writer, compat),
            &call.routed,
        ));
        return Ok((out, sse::respond(frames, api.config.keep_alive)).into_response());
    }
    let finish = chat::read_to_end(answer, |event| _ = writer.push(event)).await?;
    writer.response.model = model.now();
    writer.response.route = call.routed.told();
    let metering = Metering::of(characters, finish.input_tokens, &finish.finish);
    Ok((metering.headers(&api, true), Json(writer.response)).into_response())
}

/// The response before anything has been said.
fn shell(body: ResponsesRequest, model: String) -> ResponsesResponse {
    let format = body.text.and_then(|text| text.format);
    ResponsesResponse {
        id: unique_id("resp_", 32),
        object: "response",
        created_at: unix_seconds(),
        status: "in_progress",
        error: None,
        incomplete_details: None,
        instructions: body.instructions,
        max_output_tokens: body.max_output_tokens,
        model,
        output: Vec::new(),
        parallel_tool_calls: body.parallel_tool_calls.unwrap_or(true),
        previous_response_id: None,
        store: false,
        temperature: body.temperature.unwrap_or(1.0),
        text: ResponsesText {
            format: Some(format.unwrap_or(ResponsesFormat {
                kind: "text".to_owned(),
                name: None,
                schema: None,
                strict: None,
            })),
        },
        tool_choice: body
            .tool_choice
            .unwrap_or_else(|| ResponsesToolChoice::Word("auto".to_owned())),
        tools: body.tools.unwrap_or_default(),
        top_p: body.top_p.unwrap_or(1.0),
        truncation: "disabled",
        usage: None,
        metadata: body.metadata.unwrap_or_default(),
        route: None,
    }
}

/// Builds the response piece by piece, and says what each piece did to it.
#[derive(Debug)]
struct Writer {
    response: ResponsesResponse,
    ids: CallIds,
    /// Whether the last item of the output is still being written.
    open: bool,
    sequence_number: u32,
    turns: Turns,
}

/// Writes the events of a streamed response.
#[derive(Debug)]
struct StreamWriter(Writer, Compat);

impl sse::Writer<ChatEvent> for StreamWriter {
    fn event(&mut self, event: ChatEvent) -> Vec<Frame> {
        let bodies = self.0.push(event);
        bodies.into_iter().map(|body| self.0.frame(body)).collect()
    }

    fn failure(&mut self, error: ApiError) -> Vec<Frame> {
        let error = error.event(self.1).error;
        let body = ResponsesEventBody::Error {
            message: error.message.clone(),
            code: error.code.clone(),
            param: None,
            error,
        };
        vec![self.0.frame(body), sse::done()]
    }

    fn end(&mut self) -> Vec<Frame> {
        vec![sse::done()]
    }
}

impl Writer {
    fn new(response: ResponsesResponse, ids: CallIds) -> Self {
        Self {
            response,
            ids,
            open: false,
            sequence_number: 0,
            turns: Turns::default(),
        }
    }

    fn frame(&mut self, body: ResponsesEventBody) -> Frame {
        let name = body.name();
        let event = ResponsesEvent {
            body,
            sequence_number: self.sequence_number,
        };
        self.sequence_number += 1;
        sse::named_frame(name, &event)
    }

    /// The frames before the first event.
    fn opening(&mut self) -> [Frame; 2] {
        let response = Box::new(self.response.clone());
        let opening = [
            ResponsesEventBody::Created {
                response: response.clone(),
            },
            ResponsesEventBody::InProgress { response },
        ];
        opening.map(|body| self.frame(body))
    }

    fn push(&mut self, event: ChatEvent) -> Vec<ResponsesEventBody> {
        let mut events = Vec::new();
        for piece in self.turns.next(event.pieces, event.finish.is_some()) {
            match piece {
                ChatPiece::Content(text) => self.text(text, &mut events),
                ChatPiece::Reasoning(text) => self.reasoning(text, &mut events),
                ChatPiece::CallStart { id, name, .. } => {
                    self.close("completed", &mut events);
                    let item = OutputItem::FunctionCall {
                        id: unique_id("fc_", 32),
                        status: "in_progress",
                        call_id: id.unwrap_or_else(|| self.ids.next()),
                        name,
                        arguments: String::new(),
                    };
                    self.begin(item, &mut events);
                }
                ChatPiece::Arguments { text, .. } => self.arguments(text, &mut events),
            }
        }
        if let Some(finish) = event.finish {
            self.end(&finish, &mut events);
        }
        events
    }

    fn begin(&mut self, item: OutputItem, events: &mut Vec<ResponsesEventBody>) {
        let output_index = self.response.output.len();
        events.push(ResponsesEventBody::ItemAdded {
            output_index,
            item: bare(&item),
        });
        if let OutputItem::Message { id, content, .. } | OutputItem::Reasoning { id, content, .. } =
            &item
        {
            events.extend(content.iter().map(|part| ResponsesEventBody::PartAdded {
                item_id: id.clone(),
                output_index,
                content_index: 0,
                part: part.clone(),
            }));
        }
        self.response.output.push(item);
        self.open = true;
    }

    fn text(&mut self, delta: String, events: &mut Vec<ResponsesEventBody>) {
        if !self.open
            || !matches!(
                self.response.output.last(),
                Some(OutputItem::Message { .. })
            )
        {
            self.close("completed", events);
            let item = OutputItem::Message {
                id: unique_id("msg_", 32),
                status: "in_progress",
                role: "assistant",
                content: vec![OutputPart::OutputText {
                    text: String::new(),
                    annotations: Vec::new(),
                }],
            };
            self.begin(item, events);
        }
        let output_index = self.response.output.len() - 1;
        if let Some(OutputItem::Message { id, content, .. }) = self.response.output.last_mut()
            && let Some(OutputPart::OutputText { text, .. }) = content.last_mut()
        {
            text.push_str(&delta);
            events.push(ResponsesEventBody::TextDelta {
                item_id: id.clone(),
                output_index,
                content_index: 0,
                delta,
                logprobs: Vec::new(),
            });
        }
    }

    fn reasoning(&mut self, delta: String, events: &mut Vec<ResponsesEventBody>) {
        let last = self.response.output.last();
        if !self.open || !matches!(last, Some(OutputItem::Reasoning { .. })) {
            self.close("completed", events);
            let item = OutputItem::Reasoning {
                id: unique_id("rs_", 32),
                summary: Vec::new(),
                content: vec![OutputPart::ReasoningText {
                    text: String::new(),
                }],
            };
            self.begin(item, events);
        }
        let output_index = self.response.output.len() - 1;
        if let Some(OutputItem::Reasoning { id, content, .. }) = self.response.output.last_mut()
            && let Some(OutputPart::ReasoningText { text }) = content.last_mut()
        {
            text.push_str(&delta);
            events.push(ResponsesEventBody::ReasoningDelta {
                item_id: id.clone(),
                output_index,
                content_index: 0,
                delta,
            });
        }
    }

    fn arguments(&mut self, delta: String, events: &mut Vec<ResponsesEventBody>) {
        let output_index = self.response.output.len().saturating_sub(1);
        if let Some(OutputItem::FunctionCall { id, arguments, .. }) =
            self.response.output.last_mut()
        {
            arguments.push_str(&delta);
            events.push(ResponsesEventBody::ArgumentsDelta {
                item_id: id.clone(),
                output_index,
                delta,
            });
        }
    }

    /// Ends the item that is being written, if there is one.
    fn close(&mut self, ending: &'static str, events: &mut Vec<ResponsesEventBody>) {
        if !std::mem::replace(&mut self.open, false) {
            return;
        }
        let output_index = self.response.output.len() - 1;
        let Some(item) = self.response.output.last_mut() else {
            return;
        };
        match item {
            OutputItem::Message {
                id,
                status,
                content,
                ..
            } => {
                *status = ending;
                if let Some(OutputPart::OutputText { text, .. }) = content.last() {
                    events.push(ResponsesEventBody::TextDone {
                        item_id: id.clone(),
                        output_index,
                        content_index: 0,
                        text: text.clone(),
                        logprobs: Vec::new(),
                    });
                }
                events.extend(part_done(id, output_index, content));
            }
            OutputItem::Reasoning { id, content, .. } => {
                if let Some(OutputPart::ReasoningText { text }) = content.last() {
                    events.push(ResponsesEventBody::ReasoningDone {
                        item_id: id.clone(),
                        output_index,
                        content_index: 0,
                        text: text.clone(),
                    });
                }
                events.extend(part_done(id, output_index, content));
            }
            OutputItem::FunctionCall {
                id,
                status,
                name,
                arguments,
                ..
            } => {
                *status = ending;
                events.push(ResponsesEventBody::ArgumentsDone {
                    item_id: id.clone(),
                    output_index,
                    name: name.clone(),
                    arguments: arguments.clone(),
                });
            }
        }
        events.push(ResponsesEventBody::ItemDone {
            output_index,
            item: item.clone(),
        });
    }

    fn end(&mut self, finish: &ChatFinish, events: &mut Vec<ResponsesEventBody>) {
        let cut = finish.reason == ChatFinishReason::Length;
        let status = if cut { "incomplete" } else { "completed" };
        if self.response.output.is_empty() {
            self.text(String::new(), events);
        }
        let last = if finish.broken_call {
            "incomplete"
        } else {
            status
        };
        self.close(last, events);
        let output_tokens = finish.finish.usage.output_tokens;
        self.response.status = status;
        self.response.incomplete_details = cut.then_some(IncompleteDetails {
            reason: "max_output_tokens",
        });
        self.response.usage = Some(ResponsesUsage {
            input_tokens: finish.input_tokens,
            input_tokens_details: InputTokensDetails::default(),
            output_tokens,
            output_tokens_details: OutputTokensDetails::default(),
            total_tokens: finish.input_tokens + output_tokens,
        });
        let response = Box::new(self.response.clone());
        events.push(if cut {
            ResponsesEventBody::Incomplete { response }
        } else {
            ResponsesEventBody::Completed { response }
        });
    }
}

fn part_done(id: &str, output_index: usize, content: &[OutputPart]) -> Option<ResponsesEventBody> {
    content.last().map(|part| ResponsesEventBody::PartDone {
        item_id: id.to_owned(),
        output_index,
        content_index: 0,
        part: part.clone(),
    })
}

/// An item as it is announced: without its parts, which are announced for themselves.
fn bare(item: &OutputItem) -> OutputItem {
    let mut item = item.clone();
    if let OutputItem::Message { content, .. } | OutputItem::Reasoning { content, .. } = &mut item {
        content.clear();
    }
    item
}
