//! What an upstream answers → the events that the engine gives.
//!
//! One reader an attempt, fed with whole events in the order they come; it knows nothing of bytes, clocks or
//! connections. It adds nothing: a token's id or probability is there when the upstream told it. An answer
//! that does not say how it ended has failed.

mod calls;
mod chunk;
mod cutter;
mod generate;
mod json;
mod prediction;
mod tokens;
mod usage;

#[cfg(test)]
mod tests;

use crate::generation::{
    ChatPiece, Event, Finish, FinishReason, PromptToken, Started, Timings, TokenEvent, TokenInfo,
};
use crate::remote::errors::{self, Origin};
use crate::remote::fault::{Class, Fault};
use calls::Calls;
use cutter::Cutter;
use json::Joiner;

use super::estimate;

/// The grammar of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// OpenAI's chat completions.
    Chat,
    /// OpenAI's completions.
    Completions,
    /// TGI's own.
    Generate,
    /// Replicate's predictions.
    Prediction,
}

/// What a reader needs to know of the request.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    pub(super) format: Format,
    /// Whether the answer was asked for as events.
    pub(super) stream: bool,
    /// The stop strings asked for.
    pub(super) stops: Vec<String>,
    /// Whether the caller wants to see the one that ended the answer.
    pub(super) keeps_stop: bool,
    /// Whether the upstream shows it.
    pub(super) shows_stop: bool,
    /// Whether the caller gets plain text, in which reasoning has no place.
    pub(super) plain: bool,
    /// Whether the upstream was asked for single tokens.
    pub(super) tokens: bool,
    /// Tokens of the prompt as estimated.
    pub(super) prompt_tokens: u32,
    /// Tokens that the answer may have.
    pub(super) max_tokens: u32,
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
struct End {
    reason: FinishReason,
    /// The stop string, where the upstream named it.
    stop: Option<String>,
}

/// What one event adds.
#[derive(Debug, Default)]
struct Delta {
    reasoning: String,
    content: String,
    calls: Vec<ChatPiece>,
    entries: Vec<tokens::Entry>,
}

/// Reads one answer.
#[derive(Debug, Clone)]
pub struct Incoming {
    reader: Reader,
    origin: Origin,
    started: bool,
    done: bool,
    /// The prompt's tokens, where the upstream told them.
    prompt: Vec<PromptToken>,
    /// All visible text so far.
    text: String,
    /// Bytes that nobody sees as text: reasoning and arguments.
    unseen: usize,
    calls: Calls,
    cutter: Option<Cutter>,
    end: Option<End>,
    usage: usage::Seen,
    seed: Option<u64>,
    /// The last token, held back until it is known whether it carries the finish.
    held: Option<TokenEvent>,
    late: Vec<&'static str>,
    content: Joiner,
    reasoning: Joiner,
    /// The first bytes of a character whose rest the next token brings.
    partial: Vec<u8>,
}

impl Incoming {
    pub(super) fn new(reader: Reader) -> Self {
        let cuts = reader.shows_stop && !reader.keeps_stop && !reader.stops.is_empty();
        let cutter = cuts.then(|| Cutter::new(&reader.stops));
        Self {
            reader,
            origin: Origin::default(),
            started: false,
            done: false,
            prompt: Vec::new(),
            text: String::new(),
            unseen: 0,
            calls: Calls::default(),
            cutter,
            end: None,
            usage: usage::Seen::default(),
            seed: None,
            held: None,
            late: Vec::new(),
            content: Joiner::default(),
            reasoning: Joiner::default(),
            partial: Vec::new(),
        }
    }

    /// Says who answers, which decides what an error within the answer means.
    pub fn from(mut self, origin: Origin) -> Self {
        self.origin = origin;
        self
    }

    /// Errors: the failure that an upstream reports within an answer that began well.
    fn check(&self, event: &serde_json::Value) -> Result<(), Fault> {
        let old_vllm = event["object"] == "error";
        if errors::is_error(event) || old_vllm {
            return Err(errors::in_stream(event, self.origin));
        }
        Ok(())
    }

    /// Reads the data of one event.
    ///
    /// Errors: a failure that the upstream reports, data that cannot be read, an end without its reason.
    pub fn event(&mut self, data: &str) -> Result<Vec<Event>, Fault> {
        let data = data.trim();
        if self.done || data.is_empty() {
            return Ok(Vec::new());
        }
        if data == "[DONE]" {
            // TGI says nothing more once a call is complete.
            if self.end.is_none() && self.reader.shows_stop && self.calls.any() {
                self.end = Some(End {
                    reason: FinishReason::EosToken,
                    stop: None,
                });
            }
            return self.finish(Vec::new());
        }
        let (value, marked) = json::parse(data)
            .ok_or_else(|| Fault::new(Class::ServerError, "an event that is no JSON"))?;
        self.check(&value)?;
        let mut out = Vec::new();
        match self.reader.format {
            Format::Chat | Format::Completions => self.chunk(&value, marked, &mut out)?,
            Format::Generate => return self.frame(&value, out),
            Format::Prediction => return self.prediction(&value, out),
        }
        Ok(out)
    }

    /// Reads an answer that came as one JSON value.
    ///
    /// Errors: as [`Self::event`]; also one value where events were asked for, which is [`Class::Unstreamed`]
    /// when it is an answer.
    pub fn whole(&mut self, json: &[u8]) -> Result<Vec<Event>, Fault> {
        let text = String::from_utf8_lossy(json);
        let (value, marked) = json::parse(text.trim())
            .ok_or_else(|| Fault::new(Class::ServerError, "an answer that is no JSON"))?;
        self.check(&value)?;
        if self.reader.stream {
            let is_answer = value.get("choices").or(value.get("generated_text"));
            let class = match is_answer {
                Some(_) => Class::Unstreamed,
                None => Class::ServerError,
            };
            let said = "one JSON value where events were asked for";
            return Err(Fault::new(class, said));
        }
        let mut out = Vec::new();
        match self.reader.format {
            Format::Chat | Format::Completions => {
                self.chunk(&value, marked, &mut out)?;
                self.finish(out)
            }
            Format::Generate => self.generated(&value, out),
            Format::Prediction => self.prediction(&value, out),
        }
    }

    /// Ends the answer where the upstream closed it in good order.
    ///
    /// Errors: nobody has said how the answer ended.
    pub fn end(&mut self) -> Result<Vec<Event>, Fault> {
        if self.done {
            return Ok(Vec::new());
        }
        self.finish(Vec::new())
    }

    /// Whether the answer is complete, whatever may follow.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Whether the upstream has said how the answer ended.
    pub fn has_ended(&self) -> bool {
        self.done || self.end.is_some()
    }

    /// What turned out to be degraded only while the answer came.
    pub fn late_degraded(&self) -> &[&'static str] {
        &self.late
    }

    fn note(&mut self, name: &'static str) {
        if !self.late.contains(&name) {
            self.late.push(name);
        }
    }

    fn start(&mut self, out: &mut Vec<Event>) {
        if !self.started {
            self.started = true;
            out.push(Event::Started(Started {
                input_tokens: self.reader.prompt_tokens,
                prompt: std::mem::take(&mut self.prompt),
            }));
        }
    }

    /// The part of a text that is certain to be shown.
    fn visible(&mut self, text: &str) -> String {
        let shown = match &mut self.cutter {
            Some(cutter) => cutter.push(text),
            None => text.to_owned(),
        };
        self.text += &shown;
        shown
    }

    fn delta(&mut self, delta: Delta, out: &mut Vec<Event>) {
        let Delta {
            mut reasoning,
            content,
            calls,
            mut entries,
        } = delta;
        let arguments = calls.iter().map(|piece| match piece {
            ChatPiece::Arguments { text, .. } => text.len(),
            ChatPiece::CallStart { name, .. } => name.len(),
            ChatPiece::Content(_) | ChatPiece::Reasoning(_) => 0,
        });
        self.unseen += reasoning.len() + arguments.sum::<usize>();
        if self.reader.plain && !reasoning.is_empty() {
            self.note("reasoning_dropped");
            reasoning.clear();
            if content.is_empty() {
                entries.clear();
            }
        }
        if !self.reader.tokens {
            entries.clear();
        }
        let told = !entries.is_empty();
        let thinks = content.is_empty() && !reasoning.is_empty();
        let split = match (reasoning.is_empty(), content.is_empty()) {
            (false, false) => None,
            (false, true) => tokens::split(entries, &reasoning, &mut self.partial),
            (true, _) => tokens::split(entries, &content, &mut self.partial),
        };
        let mut events: Vec<TokenEvent> = Vec::new();
        match split {
            Some(split) => {
                for token in split {
                    let (text, piece) = if thinks {
                        (String::new(), ChatPiece::Reasoning(token.adds.clone()))
                    } else {
                        let shown = self.visible(&token.adds);
                        (shown.clone(), ChatPiece::Content(shown))
                    };
                    events.push(TokenEvent {
                        token: TokenInfo {
                            id: token.id,
                            text: token.adds,
                            logprob: token.logprob,
                            special: false,
                        },
                        text,
                        pieces: Some(present(piece)),
                        top_tokens: token.top,
                        finish: None,
                    });
                }
            }
            None => {
                let text = content.len() + reasoning.len();
                if self.reader.tokens && (told || text > 0) {
                    self.note("logprobs");
                }
                let shown = self.visible(&content);
                let mut pieces = present(ChatPiece::Reasoning(reasoning));
                pieces.extend(present(ChatPiece::Content(shown.clone())));
                if !pieces.is_empty() {
                    events.push(TokenEvent {
                        token: unknown(content),
                        text: shown,
                        pieces: Some(pieces),
                        top_tokens: Vec::new(),
                        finish: None,
                    });
                }
            }
        }
        if !calls.is_empty() {
            match events.last_mut() {
                Some(event) => event.pieces.get_or_insert_default().extend(calls),
                None => events.push(TokenEvent {
                    token: unknown(String::new()),
                    text: String::new(),
                    pieces: Some(calls),
                    top_tokens: Vec::new(),
                    finish: None,
                }),
            }
        }
        for event in events {
            self.emit(event, out);
        }
    }

    /// Passes an event on; where the answer is made of tokens, the last one is held back for the finish.
    fn emit(&mut self, event: TokenEvent, out: &mut Vec<Event>) {
        if self.reader.tokens {
            out.extend(self.held.replace(event).map(Event::Token));
        } else {
            out.push(Event::Token(event));
        }
    }

    /// Ends the answer.
    fn finish(&mut self, mut out: Vec<Event>) -> Result<Vec<Event>, Fault> {
        let Some(End { mut reason, stop }) = self.end.take() else {
            let said = "the answer ended before its finish";
            return Err(Fault::new(Class::ServerError, said));
        };
        self.start(&mut out);
        let thought = self.reasoning.finish();
        let mut delta = Delta {
            content: self.content.finish(),
            ..Delta::default()
        };
        if !self.reader.plain {
            delta.reasoning = thought;
            delta.calls = self.calls.finish()?;
        }
        let mut pieces = present(ChatPiece::Reasoning(delta.reasoning));
        let mut tail = self.visible(&delta.content);
        let mut stop_sequence = stop;
        if let Some(cutter) = &mut self.cutter {
            let rest = cutter.finish();
            self.text += &rest;
            tail += &rest;
            if let Some(cut) = cutter.cut() {
                reason = FinishReason::StopSequence;
                stop_sequence = Some(cut.to_owned());
            }
        }
        if reason != FinishReason::StopSequence {
            stop_sequence = None;
        }
        let named = stop_sequence.as_deref().filter(|_| self.reader.keeps_stop);
        if let Some(stop) = named.filter(|stop| !self.text.ends_with(stop)) {
            tail += stop;
            self.text += stop;
        }
        pieces.extend(present(ChatPiece::Content(tail.clone())));
        pieces.extend(delta.calls);
        let mut last = self.held.take().unwrap_or_else(|| TokenEvent {
            token: unknown(String::new()),
            text: String::new(),
            pieces: Some(Vec::new()),
            top_tokens: Vec::new(),
            finish: None,
        });
        last.text += &tail;
        last.pieces.get_or_insert_default().extend(pieces);
        let written = estimate::of_bytes(self.text.len() + self.unseen);
        let (usage, counted) = self.usage.usage(self.reader.prompt_tokens, written);
        if !counted {
            self.note("prompt_tokens");
        }
        // An answer that was cut short may be cut within a call.
        let garbled = match reason {
            FinishReason::Length => None,
            _ => self.calls.garbled().filter(|_| !self.reader.plain),
        };
        if let Some(name) = garbled {
            let said = format!("the arguments of the call of `{name}` are no JSON");
            return Err(Fault {
                usage: Some(Box::new(usage)),
                ..Fault::new(Class::SchemaViolation, said)
            });
        }
        last.finish = Some(Finish {
            reason,
            stop_sequence,
            generated_text: self.text.clone(),
            usage,
            seed: self.seed,
            timings: Timings::default(),
        });
        out.push(Event::Token(last));
        self.done = true;
        Ok(out)
    }

    /// What an upstream's word for the end means; `named` is the stop string it names beside it.
    ///
    /// Errors: ends that are failures.
    fn ended(&mut self, word: &str, named: Option<&str>) -> Result<End, Fault> {
        let reason = match word {
            "length" | "max_tokens" | "model_length" => FinishReason::Length,
            "stop" | "eos" | "eos_token" | "end_turn" | "tool_calls" | "function_call" => {
                match named {
                    Some(_) => FinishReason::StopSequence,
                    None => FinishReason::EosToken,
                }
            }
            "stop_sequence" => FinishReason::StopSequence,
            "content_filter" => {
                return Err(Fault::new(Class::ContentFilter, "upstream content filter"));
            }
            "error" | "abort" | "cancelled" => {
                let said = "the upstream gave the answer up";
                return Err(Fault::new(Class::ServerError, said));
            }
            _ => {
                self.note("finish_reason");
                FinishReason::EosToken
            }
        };
        let stops = &self.reader.stops;
        let stop = match (named, stops.as_slice()) {
            _ if reason != FinishReason::StopSequence => None,
            (Some(stop), _) => Some(stop.to_owned()),
            (None, [only]) => Some(only.clone()),
            (None, several) => several.iter().find(|s| self.text.ends_with(*s)).cloned(),
        };
        Ok(End { reason, stop })
    }
}

/// A piece that says something.
fn present(piece: ChatPiece) -> Vec<ChatPiece> {
    match &piece {
        ChatPiece::Content(text) | ChatPiece::Reasoning(text) if text.is_empty() => Vec::new(),
        _ => vec![piece],
    }
}

/// A text of which nobody said which tokens it is made of.
fn unknown(text: String) -> TokenInfo {
    TokenInfo {
        id: None,
        text,
        logprob: None,
        special: false,
    }
}
