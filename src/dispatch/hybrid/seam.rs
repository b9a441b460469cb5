//! Where an answer that broke off goes on, when the operator allows it.
//!
//! The text that was shown becomes part of the prompt, to the letter, and the rest is asked for. That is exact
//! only for plain text, only where the same weights go on, and only where the prompt is text: the local engine,
//! or an upstream's raw route. What goes on must not say again what was said; an upstream that does so is cut, or
//! given up when it has begun anew.

use crate::generation::{ChatPiece, Request, Side, TokenDetail, TokenEvent, ToolChoice};
use crate::remote::Class;
use crate::route::MidStream;

use super::carrier::Carrier;

/// Tokens beyond which an answer is not continued.
const MOST_TOKENS: u32 = 4096;

/// Bytes of shown text that may be said again.
const TAIL: usize = 200;

/// Least bytes of an overlap that is no chance.
const LEAST_OVERLAP: usize = 12;

/// Whether a failure left an answer that somebody else could go on with.
pub(super) fn breaks_off(class: Class) -> bool {
    match class {
        Class::MidStream
        | Class::Transport
        | Class::Timeout
        | Class::ServerError
        | Class::Overloaded => true,
        Class::RateLimited
        | Class::ColdStart
        | Class::Paused
        | Class::NotServed
        | Class::Unstreamed
        | Class::AuthFailed
        | Class::QuotaExhausted
        | Class::BadRequest
        | Class::ContextOverflow
        | Class::ToolCall
        | Class::SchemaViolation
        | Class::ContentFilter
        | Class::ClientGone
        | Class::Deadline
        | Class::LocalPressure
        | Class::Misconfigured => false,
    }
}

/// Whether the request is one that can go on on this side.
pub(super) fn may_go_on(carrier: &Carrier, other: Side, same_model: bool) -> bool {
    let request = &carrier.case.request;
    let shown = &carrier.shown;
    let no_tools = request.chat.as_ref().is_none_or(|ask| {
        let conversation = &ask.conversation;
        conversation.tools.is_empty() || conversation.tool_choice == ToolChoice::None
    });
    let plain = !shown.more_than_text
        && no_tools
        && carrier.case.shape().is_none()
        && request.grammar.is_none()
        && request.stop.is_empty()
        && matches!(request.detail, TokenDetail::Unseen | TokenDetail::Framed);
    let rendered = match other {
        // The prompt is there as the local template wrote it.
        Side::Local => carrier.inner.local.is_some() && !request.prompt.is_empty(),
        Side::Remote => !request.prompt.is_empty(),
    };
    carrier.hybrid.route.mid_stream == MidStream::Continue
        && carrier.seam.is_none()
        && plain
        && rendered
        && same_model
        && (1..=MOST_TOKENS).contains(&shown.tokens)
        && !shown.text.is_empty()
}

/// The place where an answer broke off.
#[derive(Debug)]
pub(super) struct Seam {
    /// What was shown before.
    before: String,
    tokens: u32,
    /// What came behind.
    after: String,
    /// The beginning of what comes behind, until it is known whether it says again what was shown.
    head: Option<String>,
}

impl Seam {
    pub(super) fn behind(text: &str, tokens: u32) -> Self {
        Self {
            before: text.to_owned(),
            tokens,
            after: String::new(),
            head: Some(String::new()),
        }
    }

    /// The request for the rest: a raw prompt that ends with what was shown.
    pub(super) fn rest_of(&self, request: &Request) -> Request {
        let is_chat = request.chat.is_some();
        let left = request
            .max_new_tokens
            .map(|most| most.get().saturating_sub(self.tokens).max(1));
        Request {
            prompt: format!("{}{}", request.prompt, self.before),
            chat: None,
            add_special_tokens: request.add_special_tokens && !is_chat,
            max_new_tokens: left.and_then(std::num::NonZeroU32::new),
            ..request.clone()
        }
    }

    /// Makes an event of the rest one of the whole answer.
    pub(super) fn join(&mut self, event: &mut TokenEvent) {
        let is_last = event.finish.is_some();
        if let Some(mut head) = self.head.take() {
            head += &event.text;
            if head.len() < TAIL && !is_last && could_repeat(&self.before, &head) {
                event.text.clear();
                self.head = Some(head);
            } else {
                let again = overlap(&self.before, &head);
                event.text = head.split_off(again);
            }
            event.token.text.clone_from(&event.text);
        }
        self.after += &event.text;
        if let Some(pieces) = &mut event.pieces {
            *pieces = match event.text.is_empty() {
                true => Vec::new(),
                false => vec![ChatPiece::Content(event.text.clone())],
            };
        }
        if let Some(finish) = &mut event.finish {
            finish.usage.output_tokens = finish.usage.output_tokens.saturating_add(self.tokens);
            finish.generated_text = format!("{}{}", self.before, self.after);
            finish.seed = None;
        }
    }
}

/// Whether a beginning may still turn out to say again the end of what was shown.
fn could_repeat(before: &str, head: &str) -> bool {
    let tail = tail(before);
    (0..tail.len())
        .filter(|at| tail.is_char_boundary(*at))
        .any(|at| {
            tail[at..].starts_with(head)
                || (head.starts_with(&tail[at..]) && tail.len() - at >= LEAST_OVERLAP)
        })
}

/// Bytes at the beginning of `head` that are the end of `before`.
fn overlap(before: &str, head: &str) -> usize {
    let tail = tail(before);
    (0..tail.len())
        .filter(|at| tail.is_char_boundary(*at) && tail.len() - at >= LEAST_OVERLAP)
        .find(|at| head.starts_with(&tail[*at..]))
        .map_or(0, |at| tail.len() - at)
}

fn tail(text: &str) -> &str {
    let mut start = text.len().saturating_sub(TAIL);
    while !text.is_char_boundary(start) {
        start += 1;
    }
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::{Finish, FinishReason, Timings, TokenInfo, Usage};

    fn event(text: &str, last: bool, whole: &str) -> TokenEvent {
        TokenEvent {
            token: TokenInfo {
                id: None,
                text: text.to_owned(),
                logprob: None,
                special: false,
            },
            text: text.to_owned(),
            pieces: Some(vec![ChatPiece::Content(text.to_owned())]),
            top_tokens: Vec::new(),
            finish: last.then(|| Finish {
                reason: FinishReason::EosToken,
                stop_sequence: None,
                generated_text: whole.to_owned(),
                usage: Usage::counted(9, 4),
                seed: Some(1),
                timings: Timings::default(),
            }),
        }
    }

    /// What a caller reads of the rest, and the finish's text.
    fn rest(before: &str, pieces: &[&str]) -> (String, String) {
        let mut seam = Seam::behind(before, 3);
        let mut read = String::new();
        let mut whole = String::new();
        for (place, piece) in pieces.iter().enumerate() {
            let last = place + 1 == pieces.len();
            let mut event = event(piece, last, &pieces.concat());
            seam.join(&mut event);
            let told: String = event
                .pieces
                .iter()
                .flatten()
                .map(|piece| match piece {
                    ChatPiece::Content(text) => text.as_str(),
                    _ => "",
                })
                .collect();
            assert_eq!(told, event.text);
            read += &event.text;
            if let Some(finish) = event.finish {
                assert_eq!((finish.usage.output_tokens, finish.seed), (7, None));
                whole = finish.generated_text;
            }
        }
        (read, whole)
    }

    #[test]
    fn the_rest_follows_without_a_gap() {
        let (read, whole) = rest("The capital of France", &[" is", " Par", "is."]);
        assert_eq!(read, " is Paris.");
        assert_eq!(whole, "The capital of France is Paris.");
    }

    #[test]
    fn what_was_said_already_is_said_once() {
        let before = "It was a dark and stormy night";
        let (read, whole) = rest(
            before,
            &["dark and st", "ormy night", "; the rain", " fell"],
        );
        assert_eq!(read, "; the rain fell");
        assert_eq!(whole, format!("{before}; the rain fell"));
        // A few letters that happen to be the same are no repetition.
        let (read, _) = rest(before, &[" night", "fall"]);
        assert_eq!(read, " nightfall");
    }
}
