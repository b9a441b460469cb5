//! Puts the pieces of an answer into an order in which nothing begins before the call ahead of it is whole.
//!
//! Upstreams may interleave calls, and some say last that a call of theirs has no arguments. Routes whose
//! streams write one block after the other take their pieces from here; pieces of another call, and what
//! follows a call that is not whole yet, wait. Nothing waits in an answer whose calls come whole and in order, and
//! nothing outlives the answer's end.

use std::collections::VecDeque;

use serde_json::Value as Json;

use crate::generation::ChatPiece;

/// The order of one answer.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The call that is being written, and its arguments so far.
    open: Option<(usize, String)>,
    /// What comes after it.
    waiting: VecDeque<ChatPiece>,
}

impl Turns {
    /// The pieces that can be written by now; with `last`, all that are left.
    pub(super) fn next(&mut self, pieces: Vec<ChatPiece>, last: bool) -> Vec<ChatPiece> {
        let mut ready = Vec::with_capacity(pieces.len());
        for piece in pieces {
            match (piece, &mut self.open) {
                (ChatPiece::Arguments { index, text }, Some((open, so_far))) if index == *open => {
                    so_far.push_str(&text);
                    ready.push(ChatPiece::Arguments { index, text });
                    if !self.waiting.is_empty() {
                        self.release(false, &mut ready);
                    }
                }
                (piece, _) => {
                    self.waiting.push_back(piece);
                    self.release(false, &mut ready);
                }
            }
        }
        if last {
            self.release(true, &mut ready);
        }
        ready
    }

    /// Writes what waits, as far as the open call lets it, or with `all` to the end.
    fn release(&mut self, all: bool, ready: &mut Vec<ChatPiece>) {
        while !self.waiting.is_empty() {
            let is_open = self.open.as_ref().is_some_and(|(_, so_far)| !whole(so_far));
            if is_open && !all {
                return;
            }
            let Some(piece) = self.waiting.pop_front() else {
                return;
            };
            match piece {
                ChatPiece::CallStart { index, id, name } => {
                    ready.push(ChatPiece::CallStart { index, id, name });
                    let mut arguments = String::new();
                    // What has come of it while it waited.
                    self.waiting.retain(|piece| match piece {
                        ChatPiece::Arguments { index: of, text } if *of == index => {
                            arguments.push_str(text);
                            false
                        }
                        _ => true,
                    });
                    if !arguments.is_empty() {
                        let text = arguments.clone();
                        ready.push(ChatPiece::Arguments { index, text });
                    }
                    self.open = Some((index, arguments));
                }
                // More of a call that was whole already: it has no place any more.
                ChatPiece::Arguments { .. } => {}
                text @ (ChatPiece::Content(_) | ChatPiece::Reasoning(_)) => {
                    self.open = None;
                    ready.push(text);
                }
            }
        }
    }
}

/// Whether arguments are a whole JSON object.
fn whole(arguments: &str) -> bool {
    let closed = arguments.trim_end().ends_with('}');
    closed && serde_json::from_str::<Json>(arguments).is_ok_and(|json| json.is_object())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(index: usize) -> ChatPiece {
        ChatPiece::CallStart {
            index,
            id: None,
            name: format!("f{index}"),
        }
    }

    fn more(index: usize, text: &str) -> ChatPiece {
        ChatPiece::Arguments {
            index,
            text: text.to_owned(),
        }
    }

    fn say(text: &str) -> ChatPiece {
        ChatPiece::Content(text.to_owned())
    }

    #[test]
    fn what_is_in_order_passes_at_once() {
        let mut turns = Turns::default();
        for pieces in [
            vec![say("a"), start(0)],
            vec![more(0, "{\"x\":")],
            vec![more(0, "1}"), start(1), more(1, "{}")],
            vec![say("b")],
        ] {
            assert_eq!(turns.next(pieces.clone(), false), pieces);
        }
        assert_eq!(turns.next(Vec::new(), true), []);
    }

    #[test]
    fn a_call_waits_for_the_one_ahead_of_it() {
        let mut turns = Turns::default();
        let told = vec![start(0), start(1), more(1, "{\"y\":"), more(0, "{\"x\":")];
        assert_eq!(turns.next(told, false), [start(0), more(0, "{\"x\":")]);
        let told = vec![more(1, "2"), more(0, "1}"), more(1, "}"), say("b")];
        let expected = [
            more(0, "1}"),
            start(1),
            more(1, "{\"y\":2"),
            more(1, "}"),
            say("b"),
        ];
        assert_eq!(turns.next(told, false), expected);
    }

    #[test]
    fn the_end_writes_all_that_waits() {
        let mut turns = Turns::default();
        let told = vec![start(0), start(1), more(1, "{}"), say("b")];
        assert_eq!(turns.next(told, false), [start(0)]);
        // An upstream says last that the first call has no arguments.
        assert_eq!(
            turns.next(vec![more(0, "{}")], true),
            [more(0, "{}"), start(1), more(1, "{}"), say("b")]
        );
        let mut cut = Turns::default();
        assert_eq!(
            cut.next(vec![start(0), more(0, "{\"x"), start(1), say("b")], true),
            [start(0), more(0, "{\"x"), start(1), say("b")]
        );
    }

    #[test]
    fn no_argument_gets_into_another_call_however_two_are_mixed() {
        let texts = ["{\"x\":", "[1,", "2]}"];
        // Every way to merge three pieces of one call with three of the other.
        for mask in 0_u32..64 {
            if mask.count_ones() != 3 {
                continue;
            }
            let mut turns = Turns::default();
            let mut written = turns.next(vec![start(0), start(1)], false);
            let mut at = [0, 0];
            for bit in 0..6 {
                let call = usize::from(mask >> bit & 1 == 1);
                written.extend(turns.next(vec![more(call, texts[at[call]])], bit == 5));
                at[call] += 1;
            }
            let mut calls: Vec<(usize, String)> = Vec::new();
            for piece in written {
                match piece {
                    ChatPiece::CallStart { index, .. } => calls.push((index, String::new())),
                    ChatPiece::Arguments { index, text } => {
                        let last = calls.last_mut().expect("a call");
                        assert_eq!(last.0, index, "{mask}");
                        last.1 += &text;
                    }
                    text => panic!("{text:?}"),
                }
            }
            let expected = [(0, texts.concat()), (1, texts.concat())];
            assert_eq!(calls, expected, "{mask}");
        }
    }
}
