//! Anthropic's messages route.

use std::time::Instant;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::sse::Event as Frame;
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::body::Body;
use super::calls::{self, Call, Metering};
use super::chat::{self, Chat, unique_id};
use super::error::ApiError;
use super::keys::Caller;
use super::routing::ModelName;
use super::turns::Turns;
use super::{Api, from_messages, from_openai, sse, tgi};
use crate::dispatch::{ChatEvent, ChatFinish, ChatFinishReason};
use crate::generation::{ChatPiece, FinishReason};
use crate::wire::anthropic::{
    BlockDelta, CountTokensRequest, CountTokensResponse, MessageEnd, MessagesEvent,
    MessagesRequest, MessagesResponse, MessagesUsage, OutputBlock,
};

/// `POST /v1/messages`.
pub(super) async fn messages(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
    Body(body): Body<MessagesRequest>,
) -> Result<Response, ApiError> {
    let refused = |e| calls::refused(&api, e);
    let streamed = body.stream.unwrap_or(false);
    let call =
        Call::open(&api, &caller, &headers, body.model.as_deref(), streamed).map_err(refused)?;
    let model = api.model_name(body.model.as_deref()).map_err(refused)?;
    let conversation = from_messages::conversation(&body).map_err(refused)?;
    let ask = from_messages::ask(&body).map_err(refused)?;
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
    let model = ModelName::new(model, &call.routed);
    let mut writer = Writer::new(model.now(), chat.prepared.wants_short_ids());
    if streamed {
        let answer = sse::begun(answer, sse::Early::All).await?;
        writer.message.model = model.now();
        let out = calls::stream_headers(&api, characters);
        let frames = sse::frames(answer, writer, &call.routed);
        return Ok((out, sse::respond(frames, api.config.keep_alive)).into_response());
    }
    let finish = chat::read_to_end(answer, |event| _ = writer.push(event)).await?;
    writer.message.model = model.now();
    let metering = Metering::of(characters, finish.input_tokens, &finish.finish);
    Ok((metering.headers(&api, true), Json(writer.message)).into_response())
}

/// `POST /v1/messages/count_tokens`.
pub(super) async fn count_tokens(
    State(api): State<Api>,
    Body(body): Body<CountTokensRequest>,
) -> Result<Json<CountTokensResponse>, ApiError> {
    api.model_name(body.model.as_deref())?;
    let conversation = from_messages::counted(&body)?;
    let deadline = api.dispatcher.deadline(Instant::now(), None);
    let chat = Chat::of(
        &api,
        conversation,
        from_openai::Ask::default(),
        deadline,
        None,
    )
    .await?;
    let tokens = tgi::tokens_of(&api, &chat.prepared.prompt, false).await?;
    Ok(Json(CountTokensResponse {
        input_tokens: tokens.len(),
    }))
}

/// Builds the message piece by piece, and says what each piece did to it.
#[derive(Debug)]
struct Writer {
    message: MessagesResponse,
    begun: bool,
    short_ids: bool,
    /// Whether the last block is still being written.
    open: bool,
    /// The last call's arguments so far.
    arguments: String,
    turns: Turns,
}

impl sse::Writer<ChatEvent> for Writer {
    fn event(&mut self, event: ChatEvent) -> Vec<Frame> {
        let events = self.push(event);
        let frame = |event: &MessagesEvent| sse::named_frame(event.name(), event);
        events.iter().map(frame).collect()
    }

    fn is_last(&self, event: &ChatEvent) -> bool {
        event.finish.is_some()
    }

    fn failure(&mut self, error: ApiError) -> Vec<Frame> {
        vec![sse::named_frame("error", &error.anthropic())]
    }

    fn end(&mut self) -> Vec<Frame> {
        Vec::new()
    }
}

impl Writer {
    fn new(model: String, short_ids: bool) -> Self {
        Self {
            message: MessagesResponse {
                id: unique_id("msg_", 32),
                kind: "message",
                role: "assistant",
                model,
                content: Vec::new(),
                stop_reason: None,
                stop_sequence: None,
                usage: MessagesUsage::default(),
            },
            begun: false,
            short_ids,
            open: false,
            arguments: String::new(),
            turns: Turns::default(),
        }
    }

    fn push(&mut self, event: ChatEvent) -> Vec<MessagesEvent> {
        let mut events = Vec::new();
        if !std::mem::replace(&mut self.begun, true) {
            self.message.usage.input_tokens = event.input_tokens;
            events.push(MessagesEvent::MessageStart {
                message: Box::new(self.message.clone()),
            });
        }
        for piece in self.turns.next(event.pieces, event.finish.is_some()) {
            self.piece(piece, &mut events);
        }
        if let Some(finish) = event.finish {
            self.end(&finish, &mut events);
        }
        events
    }

    fn piece(&mut self, piece: ChatPiece, events: &mut Vec<MessagesEvent>) {
        let last = self.message.content.last().filter(|_| self.open);
        let delta = match piece {
            ChatPiece::Content(text) => {
                if !matches!(last, Some(OutputBlock::Text { .. })) {
                    let text = String::new();
                    self.begin(OutputBlock::Text { text }, events);
                }
                BlockDelta::TextDelta { text }
            }
            ChatPiece::Reasoning(thinking) => {
                if !matches!(last, Some(OutputBlock::Thinking { .. })) {
                    let block = OutputBlock::Thinking {
                        thinking: String::new(),
                        signature: String::new(),
                    };
                    self.begin(block, events);
                }
                BlockDelta::ThinkingDelta { thinking }
            }
            ChatPiece::CallStart { id, name, .. } => {
                let id = id.unwrap_or_else(|| match self.short_ids {
                    true => unique_id("", 9),
                    false => unique_id("toolu_", 24),
                });
                let input = Value::Object(Default::default());
                self.begin(OutputBlock::ToolUse { id, name, input }, events);
                return;
            }
            ChatPiece::Arguments { text, .. } => BlockDelta::InputJsonDelta { partial_json: text },
        };
        match (self.message.content.last_mut(), &delta) {
            (Some(OutputBlock::Text { text }), BlockDelta::TextDelta { text: more })
            | (
                Some(OutputBlock::Thinking { thinking: text, .. }),
                BlockDelta::ThinkingDelta { thinking: more },
            ) => text.push_str(more),
            (_, BlockDelta::InputJsonDelta { partial_json }) => self.arguments += partial_json,
            _ => {}
        }
        events.push(MessagesEvent::ContentBlockDelta {
            index: self.message.content.len().saturating_sub(1),
            delta,
        });
    }

    fn begin(&mut self, block: OutputBlock, events: &mut Vec<MessagesEvent>) {
        self.close(events);
        events.push(MessagesEvent::ContentBlockStart {
            index: self.message.content.len(),
            content_block: block.clone(),
        });
        self.message.content.push(block);
        self.open = true;
    }

    /// Ends the block that is being written, if there is one.
    fn close(&mut self, events: &mut Vec<MessagesEvent>) {
        if !std::mem::replace(&mut self.open, false) {
            return;
        }
        let arguments = std::mem::take(&mut self.arguments);
        if let Some(OutputBlock::ToolUse { input, .. }) = self.message.content.last_mut()
            && let Ok(object @ Value::Object(_)) = serde_json::from_str(&arguments)
        {
            *input = object;
        }
        let index = self.message.content.len().saturating_sub(1);
        events.push(MessagesEvent::ContentBlockStop { index });
    }

    fn end(&mut self, finish: &ChatFinish, events: &mut Vec<MessagesEvent>) {
        if self.message.content.is_empty() {
            let text = String::new();
            self.begin(OutputBlock::Text { text }, events);
        }
        self.close(events);
        let stopped = finish.finish.reason == FinishReason::StopSequence;
        let stop_reason = match finish.reason {
            ChatFinishReason::Length => "max_tokens",
            ChatFinishReason::ToolCalls => "tool_use",
            ChatFinishReason::Stop if stopped => "stop_sequence",
            ChatFinishReason::Stop => "end_turn",
        };
        self.message.stop_reason = Some(stop_reason);
        self.message
            .stop_sequence
            .clone_from(&finish.finish.stop_sequence);
        self.message.usage = MessagesUsage {
            input_tokens: finish.input_tokens,
            output_tokens: finish.finish.usage.output_tokens,
        };
        events.push(MessagesEvent::MessageDelta {
            delta: MessageEnd {
                stop_reason: Some(stop_reason),
                stop_sequence: self.message.stop_sequence.clone(),
            },
            usage: self.message.usage,
        });
        events.push(MessagesEvent::MessageStop);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::TokenInfo;

    fn event(pieces: Vec<ChatPiece>) -> ChatEvent {
        ChatEvent {
            input_tokens: 1,
            pieces,
            token: TokenInfo {
                id: None,
                text: String::new(),
                logprob: None,
                special: false,
            },
            top_tokens: Vec::new(),
            finish: None,
        }
    }

    #[test]
    fn calls_that_come_mixed_are_blocks_of_their_own() {
        let start = |index: usize, id: Option<&str>| ChatPiece::CallStart {
            index,
            id: id.map(str::to_owned),
            name: format!("f{index}"),
        };
        let more = |index: usize, text: &str| ChatPiece::Arguments {
            index,
            text: text.to_owned(),
        };
        let mut writer = Writer::new("m".to_owned(), false);
        writer.push(event(vec![start(0, Some("theirs")), start(1, None)]));
        writer.push(event(vec![more(1, "{\"x\":"), more(0, "{\"y\":1}")]));
        writer.push(event(vec![more(1, "2}")]));
        writer.close(&mut Vec::new());
        let told: Vec<(String, String)> = writer
            .message
            .content
            .into_iter()
            .map(|block| match block {
                OutputBlock::ToolUse { id, input, .. } => (id, input.to_string()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(told[0], ("theirs".to_owned(), "{\"y\":1}".to_owned()));
        assert!(told[1].0.starts_with("toolu_"));
        assert_eq!((told[1].1.as_str(), told.len()), ("{\"x\":2}", 2));
    }
}
