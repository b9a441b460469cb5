//! Chat: a conversation becomes a prompt, and the answer's text becomes content, reasoning and calls.
//!
//! A model that must call a tool is held to its own family's notation by a grammar; one that may is left
//! free, and what it writes is read in that notation. The engine and the wire know nothing of this.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use serde_json::{Value as Json, json};

use super::Local;
use crate::generation::{
    ChatAsk, ChatPiece, Conversation, Error, Event, EventStream, Finish, FinishReason, Grammar,
    Message, Started, TokenEvent, TokenInfo, Tool, ToolChoice,
};
use crate::text::{
    self, ChatTemplate, Forced, GrammarOptions, Piece, ReasoningFormat, ReasoningSplitter, Split,
    ToolFormat, ToolParser,
};

/// A conversation that has become a prompt, and how its answer is to be read.
#[derive(Debug, Clone)]
pub struct PreparedChat {
    /// The text to continue.
    pub prompt: String,
    /// The shape the answer must have.
    pub grammar: Option<Grammar>,
    /// The conversation itself.
    pub ask: Arc<ChatAsk>,
    reading: Reading,
}

/// How an answer's text is taken apart.
#[derive(Debug, Clone, Default)]
struct Reading {
    /// The notation of calls, and the tools that may be called.
    tools: Option<(ToolFormat, Arc<[Tool]>)>,
    /// Whether only the first call counts.
    one_call: bool,
    /// The marks of reasoning, and whether the prompt has already opened it.
    reasoning: Option<(ReasoningFormat, bool)>,
    /// Whether reasoning is told apart; it is kept from being read as a call in any case.
    separate: bool,
}

impl PreparedChat {
    /// Reads an answer to this conversation.
    pub fn read(&self, events: EventStream) -> ChatStream {
        let Reading {
            tools,
            one_call,
            reasoning,
            separate,
        } = &self.reading;
        ChatStream {
            events,
            parser: Parser {
                reasoning: reasoning
                    .map(|(format, inside)| (format, ReasoningSplitter::new(format, inside))),
                tools: tools
                    .as_ref()
                    .map(|(format, tools)| ToolParser::new(*format, tools)),
                one_call: *one_call,
                separate: *separate,
                unsent: String::new(),
                calls: 0,
                open: false,
            },
            input_tokens: 0,
        }
    }

    /// Whether the answer may call a tool.
    pub fn may_call(&self) -> bool {
        self.reading.tools.is_some()
    }

    /// Whether ids of calls must be nine letters or digits, as some families' templates demand.
    pub fn wants_short_ids(&self) -> bool {
        let format = self.reading.tools.as_ref().map(|(format, _)| *format);
        format == Some(ToolFormat::Mistral)
    }
}

/// Renders a conversation; `shape` is what the answer must look like, if the caller said so.
///
/// Errors: no template or one that refuses the messages (template), wrong tools (tool).
pub(super) fn prepare(
    local: &Local,
    conversation: Conversation,
    shape: Option<Grammar>,
) -> Result<PreparedChat, Error> {
    let offered = checked(&conversation, shape.as_ref())?;
    let ask = ChatAsk {
        conversation,
        shape,
        unsupported: None,
    };
    rendered(local, &ask, offered).map(|rendered| rendered.of(ask))
}

/// As [`prepare`], for a server that may have the answer made elsewhere: what this machine cannot render is
/// noted, not refused. Without `local` nothing is rendered at all.
///
/// Errors: wrong tools (tool).
pub(super) fn prepare_for_anyone(
    local: Option<&Local>,
    conversation: Conversation,
    shape: Option<Grammar>,
) -> Result<PreparedChat, Error> {
    let offered = checked(&conversation, shape.as_ref())?;
    let mut ask = ChatAsk {
        conversation,
        shape,
        unsupported: None,
    };
    match local.map(|local| rendered(local, &ask, offered)) {
        Some(Ok(rendered)) => Ok(rendered.of(ask)),
        outcome => {
            ask.unsupported = outcome.and_then(Result::err);
            let reading = Reading {
                one_call: !ask.conversation.parallel_tool_calls,
                separate: ask.conversation.separate_reasoning,
                ..Reading::default()
            };
            let unrendered = Rendered {
                prompt: String::new(),
                grammar: None,
                reading,
            };
            Ok(unrendered.of(ask))
        }
    }
}

/// What the local model's template makes of a conversation.
struct Rendered {
    prompt: String,
    grammar: Option<Grammar>,
    reading: Reading,
}

impl Rendered {
    fn of(self, ask: ChatAsk) -> PreparedChat {
        PreparedChat {
            prompt: self.prompt,
            grammar: self.grammar,
            ask: Arc::new(ask),
            reading: self.reading,
        }
    }
}

fn rendered(local: &Local, ask: &ChatAsk, offered: Option<Vec<Tool>>) -> Result<Rendered, Error> {
    let ChatAsk {
        conversation,
        shape,
        unsupported: _,
    } = ask;
    let template = local
        .template
        .as_ref()
        .ok_or_else(|| Error::template("template not found"))?;
    let prompt = render(template, conversation, offered.as_deref())?;
    let source = template.source(offered.is_some());
    let thinks = ReasoningFormat::detect(source);
    let thinking = thinks.is_some_and(|format| format.prompt_opens(&prompt));
    let mut reading = Reading {
        tools: None,
        one_call: !conversation.parallel_tool_calls,
        reasoning: thinks
            .filter(|_| conversation.separate_reasoning || offered.is_some())
            .map(|format| (format, thinking)),
        separate: conversation.separate_reasoning,
    };
    let mut grammar = shape.clone();
    if let Some(tools) = offered {
        let format = ToolFormat::detect(source.filter(|_| template.mentions_tools()));
        let special = |text: &str| {
            let id = local.tokenizer.id_of(text)?;
            local.tokenizer.is_special(id).then_some(id.0)
        };
        let options = GrammarOptions {
            parallel: conversation.parallel_tool_calls,
            special: &special,
            reasoning: thinks,
            starts_reasoning: thinking,
        };
        grammar = match &conversation.tool_choice {
            ToolChoice::Required => Some(format.grammar(&tools, Forced::Any, &options)),
            ToolChoice::Named(name) => Some(format.grammar(&tools, Forced::Named(name), &options)),
            ToolChoice::Auto if tools.iter().any(|tool| tool.strict) => {
                Some(format.strict_grammar(&tools, &options))
            }
            ToolChoice::Auto | ToolChoice::None => None,
        }
        .map(Grammar::Lark);
        reading.tools = Some((format, tools.into()));
    }
    Ok(Rendered {
        prompt,
        grammar,
        reading,
    })
}

/// The tools the model gets to see, once they and the shape fit together.
fn checked(
    conversation: &Conversation,
    shape: Option<&Grammar>,
) -> Result<Option<Vec<Tool>>, Error> {
    let offered = offered(conversation)?;
    if offered.is_some() && shape.is_some() {
        return Err(Error::tool("Grammar and tools are mutually exclusive"));
    }
    Ok(offered)
}

/// The tools the model gets to see; none when there are none or none may be called.
fn offered(conversation: &Conversation) -> Result<Option<Vec<Tool>>, Error> {
    let tools = &conversation.tools;
    if tools.is_empty() {
        return Ok(None);
    }
    Ok(match &conversation.tool_choice {
        ToolChoice::None => None,
        ToolChoice::Auto | ToolChoice::Required => Some(tools.clone()),
        ToolChoice::Named(name) => {
            let named = tools.iter().find(|tool| tool.name == *name);
            let named =
                named.ok_or_else(|| Error::tool(format!("Tool with name {name} not found")))?;
            Some(vec![named.clone()])
        }
    })
}

fn render(
    template: &ChatTemplate,
    conversation: &Conversation,
    tools: Option<&[Tool]>,
) -> Result<String, Error> {
    let mut messages: Vec<Json> = conversation.messages.iter().map(message).collect();
    let last = conversation.messages.last();
    let continues = last.is_some_and(|last| last.role == "assistant" && last.tool_calls.is_empty());
    let mut seen = None;
    if let Some(tools) = tools {
        let told = conversation.tool_prompt.as_deref();
        if let Some(last) = messages.last_mut()
            && let Some(content) = last["content"].as_str()
            && last.get("tool_calls").is_none()
        {
            match (template.mentions_tools(), told) {
                (true, None) => {}
                (true, Some(told)) => {
                    last["content"] = Json::from(format!("{content}\n---\n{told}"));
                }
                (false, told) => {
                    last["content"] = Json::from(text::with_tools(content, tools, told));
                }
            }
        }
        if template.mentions_tools() {
            seen = Some(tools.iter().map(tool).collect::<Vec<_>>());
        }
    }
    template
        .render(&text::Conversation {
            messages: &messages,
            tools: seen.as_deref(),
            documents: conversation.documents.as_deref(),
            add_generation_prompt: !continues,
            continue_final_message: continues,
            kwargs: Some(&conversation.template_kwargs),
            now: chrono::Local::now().naive_local(),
        })
        .map_err(|e| Error::template(e.to_string()))
}

/// A message as templates know it.
fn message(message: &Message) -> Json {
    let Message {
        role,
        content,
        name,
        tool_calls,
        tool_call_id,
        reasoning,
    } = message;
    // Absent content is empty, not null: templates that print it would write the word None.
    let mut shown = json!({"role": role, "content": content.as_deref().unwrap_or_default()});
    let optional = [
        ("name", name),
        ("tool_call_id", tool_call_id),
        ("reasoning_content", reasoning),
    ];
    for (key, value) in optional {
        if let Some(value) = value {
            shown[key] = Json::from(value.as_str());
        }
    }
    if !tool_calls.is_empty() {
        let call = |call: &crate::generation::ToolCall| {
            json!({
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            })
        };
        shown["tool_calls"] = tool_calls.iter().map(call).collect();
    }
    shown
}

/// A tool as templates know it.
fn tool(tool: &Tool) -> Json {
    let mut function = json!({"name": tool.name});
    if let Some(description) = &tool.description {
        function["description"] = Json::from(description.as_str());
    }
    function["parameters"] = tool.parameters.clone();
    json!({"type": "function", "function": function})
}

/// What one more token adds to a chat's answer.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatEvent {
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// What it adds; often nothing, while it is not known what the text will be.
    pub pieces: Vec<ChatPiece>,
    /// The token.
    pub token: TokenInfo,
    /// The best tokens at this place.
    pub top_tokens: Vec<TokenInfo>,
    /// Present on the last one only.
    pub finish: Option<ChatFinish>,
}

/// The end of a chat's answer.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatFinish {
    /// Why it ended.
    pub reason: ChatFinishReason,
    /// Tokens of the prompt.
    pub input_tokens: u32,
    /// Whether a call was cut off.
    pub broken_call: bool,
    /// The rest.
    pub finish: Finish,
}

/// Why a chat's answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChatFinishReason {
    /// The model or a stop string ended it.
    Stop,
    /// The allowed number of tokens was reached.
    Length,
    /// The model waits for what the functions return.
    ToolCalls,
}

/// A chat's answer in the making. Dropping it cancels the work behind it.
#[derive(Debug)]
pub struct ChatStream {
    events: EventStream,
    parser: Parser,
    input_tokens: u32,
}

impl Stream for ChatStream {
    type Item = Result<ChatEvent, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let event = futures::ready!(Pin::new(&mut self.events).poll_next(cx));
            let event = match event {
                Some(Ok(Event::Started(Started { input_tokens, .. }))) => {
                    self.input_tokens = input_tokens;
                    continue;
                }
                Some(Ok(Event::Token(event))) => Ok(self.token(event)),
                Some(Err(error)) => Err(error),
                None => return Poll::Ready(None),
            };
            return Poll::Ready(Some(event));
        }
    }
}

impl ChatStream {
    fn token(&mut self, event: TokenEvent) -> ChatEvent {
        let TokenEvent {
            token,
            text,
            pieces: told,
            top_tokens,
            finish,
        } = event;
        let mut pieces = Vec::new();
        if let Some(told) = told {
            self.parser.take(told, &mut pieces);
        } else {
            self.parser.text(&text, &mut pieces);
            if token.special {
                self.parser.special(&token.text, &mut pieces);
            }
        }
        let finish = finish.map(|finish| {
            self.parser.finish(&mut pieces);
            self.end(finish)
        });
        ChatEvent {
            input_tokens: self.input_tokens,
            pieces,
            token,
            top_tokens,
            finish,
        }
    }

    fn end(&mut self, finish: Finish) -> ChatFinish {
        self.input_tokens = finish.usage.input_tokens;
        let broken_call = self.parser.open;
        let reason = match finish.reason {
            FinishReason::Length => ChatFinishReason::Length,
            _ if self.parser.calls > 0 && !broken_call => ChatFinishReason::ToolCalls,
            FinishReason::EosToken | FinishReason::StopSequence => ChatFinishReason::Stop,
        };
        ChatFinish {
            reason,
            input_tokens: self.input_tokens,
            broken_call,
            finish,
        }
    }
}

/// Takes an answer's text apart.
#[derive(Debug)]
struct Parser {
    reasoning: Option<(ReasoningFormat, ReasoningSplitter)>,
    tools: Option<ToolParser>,
    one_call: bool,
    separate: bool,
    /// Text that is not yet known to be reasoning or answer, while the two are not separated.
    unsent: String,
    /// Calls begun.
    calls: usize,
    /// Whether the last of them has not ended.
    open: bool,
}

impl Parser {
    /// Pieces that whoever made the answer has told apart.
    fn take(&mut self, told: Vec<ChatPiece>, pieces: &mut Vec<ChatPiece>) {
        for piece in told {
            match &piece {
                ChatPiece::CallStart { index, .. } | ChatPiece::Arguments { index, .. }
                    if self.one_call && *index > 0 =>
                {
                    continue;
                }
                ChatPiece::CallStart { .. } => self.calls += 1,
                _ => {}
            }
            pieces.push(piece);
        }
    }

    fn text(&mut self, text: &str, pieces: &mut Vec<ChatPiece>) {
        let Some((_, splitter)) = &mut self.reasoning else {
            return self.content(text, false, pieces);
        };
        let split = splitter.push(text);
        self.unsent += text;
        self.told_apart(split, pieces);
    }

    /// Special tokens are no text, but some mark reasoning or calls.
    fn special(&mut self, token: &str, pieces: &mut Vec<ChatPiece>) {
        match &mut self.reasoning {
            Some((format, splitter)) if format.marks(token) => {
                let split = splitter.push(token);
                self.told_apart(split, pieces);
            }
            Some((_, splitter)) if splitter.is_inside() => {}
            _ => self.content(token, true, pieces),
        }
    }

    fn finish(&mut self, pieces: &mut Vec<ChatPiece>) {
        if let Some((_, splitter)) = &mut self.reasoning {
            let split = splitter.finish();
            self.told_apart(split, pieces);
            let rest = std::mem::take(&mut self.unsent);
            if !self.separate && !rest.is_empty() {
                pieces.push(ChatPiece::Content(rest));
            }
        }
        if let Some(tools) = &mut self.tools {
            let last = tools.finish();
            self.call_pieces(last, pieces);
        }
    }

    /// Passes on what is certain. Reasoning that is not to be separated stays in the text as it was written,
    /// marks and white space included, but is never read as a call.
    fn told_apart(&mut self, split: Split, pieces: &mut Vec<ChatPiece>) {
        let Split {
            reasoning,
            content: answer,
        } = split;
        if self.separate {
            if !reasoning.is_empty() {
                pieces.push(ChatPiece::Reasoning(reasoning));
            }
        } else if !reasoning.is_empty() || !answer.is_empty() {
            let mut thought = std::mem::take(&mut self.unsent);
            thought.truncate(thought.len().saturating_sub(answer.len()));
            if !thought.is_empty() {
                pieces.push(ChatPiece::Content(thought));
            }
        }
        self.content(&answer, false, pieces);
    }

    fn content(&mut self, text: &str, special: bool, pieces: &mut Vec<ChatPiece>) {
        match &mut self.tools {
            Some(tools) => {
                let new = tools.push(text, special);
                self.call_pieces(new, pieces);
            }
            None if special || text.is_empty() => {}
            None => pieces.push(ChatPiece::Content(text.to_owned())),
        }
    }

    fn call_pieces(&mut self, new: Vec<Piece>, pieces: &mut Vec<ChatPiece>) {
        for piece in new {
            if let Piece::CallStart { index, .. }
            | Piece::Arguments { index, .. }
            | Piece::CallEnd { index } = &piece
                && self.one_call
                && *index > 0
            {
                continue;
            }
            match piece {
                Piece::Text(text) => pieces.push(ChatPiece::Content(text)),
                Piece::CallStart { index, name } => {
                    self.calls += 1;
                    self.open = true;
                    pieces.push(ChatPiece::CallStart {
                        index,
                        id: None,
                        name,
                    });
                }
                Piece::Arguments { index, text } => {
                    pieces.push(ChatPiece::Arguments { index, text });
                }
                Piece::CallEnd { .. } => self.open = false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THOUGHT: &str = "<think>\nShould I write {\"name\": \"now\"}? <tool_call>\n</think>\n\n";

    fn parser(format: ToolFormat, separate: bool, one_call: bool) -> Parser {
        let source = Some("{% if '</think>' in content %}");
        let thinks = ReasoningFormat::detect(source).expect("a known mark");
        let now = Tool {
            name: "now".to_owned(),
            description: None,
            parameters: json!({"type": "object"}),
            strict: false,
        };
        Parser {
            reasoning: Some((thinks, ReasoningSplitter::new(thinks, false))),
            tools: Some(ToolParser::new(format, &[now])),
            one_call,
            separate,
            unsent: String::new(),
            calls: 0,
            open: false,
        }
    }

    /// Content, reasoning, and names with arguments of the calls of an answer that comes `size` characters at
    /// a time.
    fn read(mut parser: Parser, answer: &str, size: usize) -> (String, String, Vec<String>) {
        let mut pieces = Vec::new();
        let letters: Vec<char> = answer.chars().collect();
        for part in letters.chunks(size) {
            parser.text(&part.iter().collect::<String>(), &mut pieces);
        }
        parser.finish(&mut pieces);
        let (mut content, mut thought, mut calls) = (String::new(), String::new(), Vec::new());
        for piece in pieces {
            match piece {
                ChatPiece::Content(text) => content += &text,
                ChatPiece::Reasoning(text) => thought += &text,
                ChatPiece::CallStart { name, .. } => calls.push(name),
                ChatPiece::Arguments { text, .. } => {
                    if let Some(last) = calls.last_mut() {
                        *last += &text;
                    }
                }
            }
        }
        (content, thought, calls)
    }

    #[test]
    fn what_is_thought_is_never_a_call_and_a_call_behind_it_is_one() {
        let call = r#"{"name": "now", "parameters": {}}"#;
        for size in [1, 3, 1000] {
            let answer = format!("{THOUGHT}{call}");
            let told = read(parser(ToolFormat::Llama3Json, false, false), &answer, size);
            let expected = (THOUGHT.to_owned(), String::new(), vec!["now{}".to_owned()]);
            assert_eq!(told, expected, "{size}");
            let (content, thought, calls) =
                read(parser(ToolFormat::Llama3Json, true, false), &answer, size);
            assert_eq!((content.as_str(), calls.len()), ("", 1));
            assert!(THOUGHT.contains(&thought) && !thought.is_empty());
        }
    }

    #[test]
    fn reasoning_that_stays_is_as_the_model_wrote_it() {
        for answer in [
            format!("{THOUGHT}It is noon."),
            "  no thought <think> at all".to_owned(),
            "<think>\nnever closed ".to_owned(),
            " <thi".to_owned(),
        ] {
            for size in [1, 4, 1000] {
                let told = read(parser(ToolFormat::Hermes, false, false), &answer, size);
                assert_eq!(told, (answer.clone(), String::new(), Vec::new()));
            }
        }
    }

    #[test]
    fn only_the_first_call_counts_where_one_was_asked_for() {
        let call = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
        let answer = format!("{call}\n{call}");
        let (_, _, calls) = read(parser(ToolFormat::Hermes, false, true), &answer, 5);
        assert_eq!(calls, ["now{}"]);
        let (_, _, calls) = read(parser(ToolFormat::Hermes, false, false), &answer, 5);
        assert_eq!(calls.len(), 2);
    }
}
