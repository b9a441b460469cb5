//! Telling calls from text in an answer that arrives token by token.
//!
//! The machine goes character by character, so where one token ends and the next begins cannot matter.
//! Outside of a call it knows only where a call may begin: behind one of the format's markers, or, for
//! formats without any, where nothing but white space came before. What may turn out to begin a call is
//! held back; when it turns out not to, it leaves as text, letter for letter. What a call looks like
//! inside is the business of the reader that takes over there.
//!
//! A call is announced only when it is certain: the tool is one of those offered, and its arguments have
//! begun. A call to a tool that was not offered is therefore text, and so is a JSON answer that merely looks
//! like a call at first.

use super::json_call::JsonCall;
use super::named_call::NamedCall;
use super::pythonic::PythonCall;
use super::xml::XmlCall;
use super::{Piece, Tool, ToolFormat};

/// Splits an answer into text and tool calls.
///
/// White space before a call at the start of an answer, and between and behind calls, belongs to nothing:
/// it is held back, and leaves only if text follows it or no call was made at all.
/// Invariants: without a call all pieces are text and together equal the input's ordinary text; indices
/// count up from 0; a call's pieces come together, start first; one that a marker cut off has no end.
#[derive(Debug)]
pub struct ToolParser {
    format: ToolFormat,
    calls: Calls,
    zone: Zone,
    /// The reader of the call being read, or of what may be one.
    body: Option<Body>,
    /// Input that is neither text nor part of a call yet.
    held: String,
    /// Where in `held` the candidate for a marker begins, separators before it.
    candidate: usize,
    /// Whether a marker opened a block that no closing marker has ended.
    in_block: bool,
    /// Whether a list of calls was opened and not closed.
    in_list: bool,
}

/// What has been seen just before the next character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zone {
    /// Nothing but white space.
    Start,
    /// Text.
    Text,
    /// An opening marker, with no call behind it yet.
    Opened,
    /// A call.
    After,
}

/// The reader of one call.
#[derive(Debug)]
enum Body {
    Json(JsonCall),
    Named(NamedCall),
    Python(PythonCall),
    Xml(XmlCall),
}

/// What one character did to a call's reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The character was read and the call goes on.
    Continue,
    /// The character was read and the call is over.
    Done,
    /// The call is over and the character stands behind it.
    Leave,
    /// This is no call; the character was not read.
    Fail,
}

/// Where readers look up tools and leave what they read.
#[derive(Debug)]
pub(super) struct Calls {
    tools: Vec<Tool>,
    /// Calls announced so far.
    started: usize,
    is_open: bool,
    pieces: Vec<Piece>,
}

impl Calls {
    /// The tool of this name, if it was offered.
    pub(super) fn tool(&self, name: &str) -> Option<&Tool> {
        self.tools.iter().find(|tool| tool.name == name)
    }

    /// Announces the next call.
    pub(super) fn start(&mut self, name: &str) {
        self.pieces.push(Piece::CallStart {
            index: self.started,
            name: name.to_owned(),
        });
        self.started += 1;
        self.is_open = true;
    }

    /// Passes on a fragment of the announced call's arguments.
    pub(super) fn arguments(&mut self, fragment: &str) {
        if fragment.is_empty() {
            return;
        }
        if let Some(Piece::Arguments { text, .. }) = self.pieces.last_mut() {
            text.push_str(fragment);
        } else {
            self.pieces.push(Piece::Arguments {
                index: self.started.saturating_sub(1),
                text: fragment.to_owned(),
            });
        }
    }

    /// Ends the announced call.
    pub(super) fn end(&mut self) {
        self.pieces.push(Piece::CallEnd {
            index: self.started.saturating_sub(1),
        });
        self.is_open = false;
    }

    fn text(&mut self, piece: &str) {
        if piece.is_empty() {
            return;
        }
        if let Some(Piece::Text(text)) = self.pieces.last_mut() {
            text.push_str(piece);
        } else {
            self.pieces.push(Piece::Text(piece.to_owned()));
        }
    }
}

impl ToolFormat {
    /// Markers behind which calls stand.
    pub(super) fn openers(self) -> &'static [&'static str] {
        match self {
            Self::Hermes => &["<tool_call>"],
            Self::Llama3Json => &["<|python_tag|>"],
            Self::Pythonic => &["<|tool_call_start|>", "<|python_start|>", "<|python_tag|>"],
            Self::Mistral => &["[TOOL_CALLS]"],
            Self::Granite => &["<|tool_call|>"],
            Self::QwenXml => &["<tool_call>", XmlCall::OPENER],
            Self::Tgi => &[],
        }
    }

    /// Markers that may stand behind calls.
    fn closers(self) -> &'static [&'static str] {
        match self {
            Self::Hermes | Self::QwenXml => &["</tool_call>"],
            Self::Pythonic => &["<|tool_call_end|>", "<|python_end|>"],
            Self::Granite => &["<|/tool_call|>", "</tool_call>"],
            Self::Llama3Json | Self::Mistral | Self::Tgi => &[],
        }
    }

    /// Whether a call needs no marker when it opens the answer or follows another.
    fn has_bare_calls(self) -> bool {
        matches!(self, Self::Llama3Json | Self::Tgi)
    }
}

impl ToolParser {
    /// Starts at the beginning of an answer that may call `tools`.
    ///
    /// Reasoning must have been taken off before, or a call behind it does not open the answer.
    pub fn new(format: ToolFormat, tools: &[Tool]) -> Self {
        Self {
            format,
            calls: Calls {
                tools: tools.to_vec(),
                started: 0,
                is_open: false,
                pieces: Vec::new(),
            },
            zone: Zone::Start,
            body: None,
            held: String::new(),
            candidate: 0,
            in_block: false,
            in_list: false,
        }
    }

    /// Reads the text of one token and returns what is certain by then.
    ///
    /// `special` says that the tokenizer counts the token as special. Such a token is no text: if it is one
    /// of the format's markers it acts as the marker does, else it is passed over. Markers written as text
    /// act all the same, and come back as text if no call follows them.
    ///
    /// Cost: amortised O(text) in time; memory is bounded by what is held back.
    pub fn push(&mut self, text: &str, special: bool) -> Vec<Piece> {
        if special {
            self.special(text.trim());
        } else {
            for c in text.chars() {
                self.step(c);
            }
        }
        std::mem::take(&mut self.calls.pieces)
    }

    /// Ends the answer, complete or cut off, and returns all that was held back.
    ///
    /// A call that was announced stays one, without its end if its arguments are incomplete; anything
    /// less leaves as text.
    pub fn finish(&mut self) -> Vec<Piece> {
        if let Some(mut body) = self.body.take() {
            body.finish(&mut self.calls);
        }
        let rest = self.held.get(self.candidate..).unwrap_or_default();
        let closers = self.format.closers();
        let closes = self.in_block && closers.iter().any(|closer| closer.starts_with(rest));
        if self.zone != Zone::After || !(rest.is_empty() || closes) {
            self.calls.text(&self.held);
        }
        self.held.clear();
        self.candidate = 0;
        std::mem::take(&mut self.calls.pieces)
    }

    /// Whether the text so far ends inside a call, or in what may become one behind a marker.
    pub fn is_inside_call(&self) -> bool {
        self.calls.is_open || self.body.is_some() || self.zone == Zone::Opened
    }

    fn step(&mut self, c: char) {
        let Some(body) = &mut self.body else {
            return self.outside(c);
        };
        let (was_open, started) = (self.calls.is_open, self.calls.started);
        let step = body.step(c, &mut self.calls);
        match step {
            Step::Continue if was_open || self.calls.started > started => self.held.clear(),
            Step::Continue => self.held.push(c),
            Step::Done => self.leave_body(Zone::After),
            Step::Leave => {
                self.leave_body(Zone::After);
                self.outside(c);
            }
            Step::Fail => {
                self.calls.text(&self.held);
                self.leave_body(Zone::Text);
                self.outside(c);
            }
        }
    }

    fn special(&mut self, token: &str) {
        if let Some(body) = &mut self.body {
            if body.special(token) {
                return;
            }
            if !self.is_marker(token) {
                return;
            }
            // A marker inside of a call: the call is over, complete or not.
            let was_open = self.calls.is_open;
            if let Some(mut body) = self.body.take() {
                body.close(&mut self.calls);
            }
            self.calls.is_open = false;
            if !was_open {
                self.calls.text(&self.held);
            }
            self.leave_body(if was_open { Zone::After } else { Zone::Text });
        }
        if self.format.openers().contains(&token) {
            if self.candidate < self.held.len() {
                self.release();
            }
            self.open(token);
        } else if self.zone == Zone::After && self.format.closers().contains(&token) {
            if self.candidate < self.held.len() {
                self.release();
            } else {
                self.close();
            }
        }
    }

    fn is_marker(&self, token: &str) -> bool {
        self.format.openers().contains(&token) || self.format.closers().contains(&token)
    }

    /// Reads a character that stands in no call.
    fn outside(&mut self, c: char) {
        self.held.push(c);
        loop {
            let candidate = &self.held[self.candidate..];
            let Some(first) = candidate.chars().next() else {
                return;
            };
            if self.separates(first) {
                self.candidate += first.len_utf8();
                self.note_separator(first);
                continue;
            }
            if let Some(marker) = self.format.openers().iter().find(|it| **it == candidate) {
                return self.open(marker);
            }
            let closers = match self.zone {
                Zone::After => self.format.closers(),
                Zone::Start | Zone::Text | Zone::Opened => &[],
            };
            if closers.contains(&candidate) {
                return self.close();
            }
            let mut markers = self.format.openers().iter().chain(closers);
            if markers.any(|marker| marker.starts_with(candidate)) {
                return;
            }
            if let Some(body) = self.body_at(first) {
                self.body = Some(body);
                self.held.pop();
                return self.step(c);
            }
            let text = self.candidate + first.len_utf8();
            self.calls.text(&self.held[..text]);
            self.held.drain(..text);
            self.become_text();
        }
    }

    /// Whether a character may stand between a marker and a call, or between two calls, and means nothing.
    fn separates(&self, c: char) -> bool {
        let is_list = !matches!(self.format, ToolFormat::Tgi | ToolFormat::QwenXml);
        match self.zone {
            Zone::Text => false,
            _ if c.is_whitespace() => true,
            Zone::Start => c == '[' && self.format == ToolFormat::Pythonic,
            Zone::Opened => c == '[' && is_list && !self.in_list,
            Zone::After if self.in_list => matches!(c, ',' | ']'),
            Zone::After if c == ';' => self.format.has_bare_calls(),
            Zone::After => c == '[' && self.format == ToolFormat::Pythonic,
        }
    }

    fn note_separator(&mut self, c: char) {
        match c {
            '[' => {
                self.in_list = true;
                self.zone = Zone::Opened;
            }
            ']' => {
                self.in_list = false;
                self.in_block = false;
                self.held.clear();
                self.candidate = 0;
            }
            _ => {}
        }
    }

    /// The reader of a call whose first character this is, if a call may begin here.
    fn body_at(&self, c: char) -> Option<Body> {
        let in_block = self.in_block && self.format != ToolFormat::Mistral;
        let goes_on =
            self.zone == Zone::Opened || self.zone == Zone::After && (in_block || self.in_list);
        let is_identifier = c.is_alphabetic() || c == '_';
        match self.format {
            _ if c == '{' && goes_on && self.format != ToolFormat::Pythonic => {
                Some(Body::Json(JsonCall::new(false)))
            }
            ToolFormat::Llama3Json | ToolFormat::Tgi if c == '{' && self.zone != Zone::Text => {
                Some(Body::Json(JsonCall::new(true)))
            }
            ToolFormat::Mistral if is_identifier && self.zone == Zone::Opened && !self.in_list => {
                Some(Body::Named(NamedCall::default()))
            }
            ToolFormat::Pythonic if is_identifier && goes_on && self.in_list => {
                Some(Body::Python(PythonCall::default()))
            }
            _ => None,
        }
    }

    fn open(&mut self, marker: &str) {
        self.in_list = false;
        if marker == XmlCall::OPENER {
            self.body = Some(Body::Xml(XmlCall::default()));
            return;
        }
        self.zone = Zone::Opened;
        self.in_block = true;
        self.candidate = self.held.len();
    }

    fn close(&mut self) {
        self.in_block = false;
        self.in_list = false;
        self.held.clear();
        self.candidate = 0;
    }

    fn leave_body(&mut self, zone: Zone) {
        self.body = None;
        self.held.clear();
        self.candidate = 0;
        if zone == Zone::Text {
            self.become_text();
        } else {
            self.zone = zone;
        }
    }

    /// Lets everything held back go as text.
    fn release(&mut self) {
        self.calls.text(&self.held);
        self.held.clear();
        self.become_text();
    }

    fn become_text(&mut self) {
        self.zone = Zone::Text;
        self.candidate = 0;
        self.in_block = false;
        self.in_list = false;
    }
}

impl Body {
    fn step(&mut self, c: char, calls: &mut Calls) -> Step {
        match self {
            Self::Json(call) => call.step(c, calls),
            Self::Named(call) => call.step(c, calls),
            Self::Python(call) => call.step(c, calls),
            Self::Xml(call) => call.step(c, calls),
        }
    }

    /// Offers a special token; whether it means something here.
    fn special(&mut self, token: &str) -> bool {
        match self {
            Self::Named(call) => call.special(token),
            Self::Json(_) | Self::Python(_) | Self::Xml(_) => false,
        }
    }

    /// Ends the call before a marker, unless it lacks a part of its arguments.
    fn close(&mut self, calls: &mut Calls) {
        match self {
            Self::Json(call) => call.close_before_marker(calls),
            Self::Xml(call) => call.close_before_marker(calls),
            Self::Named(_) | Self::Python(_) => self.finish(calls),
        }
    }

    /// Passes on what can still be said of an announced call when the answer ends.
    fn finish(&mut self, calls: &mut Calls) {
        match self {
            Self::Json(call) => call.finish(calls),
            Self::Python(call) => call.finish(calls),
            Self::Xml(call) => call.finish(calls),
            Self::Named(_) => {}
        }
    }
}
