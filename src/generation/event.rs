//! What an answer is made of: a start, tokens, and a finish carried by the last token.
//!
//! One stream type serves every route: a streaming route forwards its events, any other collects them.
//! Dropping the stream is the only cancel signal there is.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;

use super::{Error, TokenId, Usage};

/// One generated token as a caller sees it. An answer made elsewhere comes in pieces that need not be tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenInfo {
    /// Index in the vocabulary; none where whoever made the answer did not say.
    pub id: Option<TokenId>,
    /// Text this token adds; empty while a character is still incomplete.
    pub text: String,
    /// Natural logarithm of the token's probability after all processing; none where it is not known.
    pub logprob: Option<f32>,
    /// Whether the tokenizer counts it among its special tokens.
    pub special: bool,
}

/// One token of the prompt with its probability given what stood before it.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptToken {
    /// Index in the vocabulary.
    pub id: TokenId,
    /// The token's own text.
    pub text: String,
    /// Natural logarithm of its probability; none for the first token, which nothing precedes.
    pub logprob: Option<f32>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The allowed number of tokens was reached.
    Length,
    /// The model ended its answer itself.
    EosToken,
    /// A stop string appeared.
    StopSequence,
}

/// Where a request's time went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// From acceptance to the engine's queue: validation and tokenization.
    pub validation: Duration,
    /// From the engine's queue to the first step.
    pub queue: Duration,
    /// From the first step to the last token.
    pub inference: Duration,
    /// From acceptance to the last token.
    pub total: Duration,
}

/// The end of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// Why it ended.
    pub reason: FinishReason,
    /// The stop string that ended it, if one did.
    pub stop_sequence: Option<String>,
    /// All generated text, special tokens left out.
    pub generated_text: String,
    /// What was read and written, a final EOS included.
    pub usage: Usage,
    /// The seed that drew the tokens; none when decoding was greedy, or when whoever drew them did not say.
    pub seed: Option<u64>,
    /// Where the time went.
    pub timings: Timings,
}

/// What is known once the prompt has been processed.
#[derive(Debug, Clone, PartialEq)]
pub struct Started {
    /// Tokens of the prompt after truncation; for an answer made elsewhere, as estimated here. The usage in the
    /// finish is what counts.
    pub input_tokens: u32,
    /// The prompt's tokens with their probabilities, when they were asked for.
    pub prompt: Vec<PromptToken>,
}

/// One more token of the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenEvent {
    /// The token chosen.
    pub token: TokenInfo,
    /// Text of the answer that is certain by now: this token's, less what may begin a stop string that is to be
    /// dropped, behind what earlier tokens held back. A special token has none of its own.
    pub text: String,
    /// The same, told apart by whoever made the answer; none where that is still to be done.
    pub pieces: Option<Vec<ChatPiece>>,
    /// The most probable tokens at this place, best first, as many as were asked for (more on ties).
    pub top_tokens: Vec<TokenInfo>,
    /// Present on the last token only.
    pub finish: Option<Finish>,
}

/// One piece of a chat's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChatPiece {
    /// Text for the reader.
    Content(String),
    /// What the model thinks before it answers.
    Reasoning(String),
    /// A call of a function begins.
    CallStart {
        /// The call's place among the answer's calls, in the order they begin.
        index: usize,
        /// What whoever made the answer calls it; none where the door is to find a name.
        id: Option<String>,
        /// The function.
        name: String,
    },
    /// More of a call's arguments.
    Arguments {
        /// The call's place.
        index: usize,
        /// JSON text; all pieces of a call together are one object.
        text: String,
    },
}

/// One event of an answer, in the order they come.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "all events but one are tokens")]
pub enum Event {
    /// First, once.
    Started(Started),
    /// At least once; the last one carries the finish.
    Token(TokenEvent),
}

/// An answer in the making: events until the finish, or an error that ends it.
///
/// Dropping it cancels the work behind it.
pub struct EventStream(Pin<Box<dyn Stream<Item = Result<Event, Error>> + Send>>);

impl EventStream {
    /// Wraps any stream of events.
    pub fn new(stream: impl Stream<Item = Result<Event, Error>> + Send + 'static) -> Self {
        Self(Box::pin(stream))
    }
}

impl Stream for EventStream {
    type Item = Result<Event, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for EventStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventStream")
    }
}
