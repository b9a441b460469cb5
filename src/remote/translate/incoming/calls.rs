//! Calls of functions as upstreams stream them: in pieces by index, whole, or with the name in every piece.

use serde_json::Value as Json;

use super::json::Joiner;
use crate::generation::ChatPiece;
use crate::remote::fault::{Class, Fault};

/// The most calls that one answer may hold; a well-meant one has a handful.
const MAX_CALLS: usize = 256;

/// One call; its place here is its index for the caller.
#[derive(Debug, Clone, Default)]
struct Slot {
    /// The upstream's index, where it gives one.
    index: Option<u64>,
    id: String,
    name: String,
    arguments: String,
    /// Whether the caller knows of it.
    begun: bool,
    joiner: Joiner,
}

/// The calls of one answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Calls {
    slots: Vec<Slot>,
    /// Whether there were more than there may be.
    too_many: bool,
}

impl Calls {
    /// Reads `tool_calls` of one event: a list, or a single call as old TGI writes it.
    pub(super) fn read(&mut self, told: &Json, marked: bool) -> Vec<ChatPiece> {
        let mut pieces = Vec::new();
        match told {
            Json::Array(calls) => {
                for call in calls {
                    self.call(call, marked, &mut pieces);
                }
            }
            Json::Object(_) => self.call(told, marked, &mut pieces),
            _ => {}
        }
        pieces
    }

    fn call(&mut self, call: &Json, marked: bool, pieces: &mut Vec<ChatPiece>) {
        let word = |value: &Json| value.as_str().unwrap_or_default().to_owned();
        let id = word(&call["id"]);
        let name = word(&call["function"]["name"]);
        let arguments = match &call["function"]["arguments"] {
            Json::String(text) => text.clone(),
            whole @ Json::Object(_) => whole.to_string(),
            _ => String::new(),
        };
        let Some(place) = self.place(call["index"].as_u64(), &id, &name) else {
            self.too_many = true;
            return;
        };
        let slot = &mut self.slots[place];
        if slot.id.is_empty() {
            slot.id = id;
        }
        let arguments = slot.joiner.push(&arguments, marked);
        slot.arguments += &arguments;
        if !slot.begun && !name.is_empty() {
            slot.begun = true;
            slot.name = name.clone();
            pieces.push(ChatPiece::CallStart { index: place, name });
            // What came before the name included.
            if !slot.arguments.is_empty() {
                pieces.push(ChatPiece::Arguments {
                    index: place,
                    text: slot.arguments.clone(),
                });
            }
        } else if slot.begun && !arguments.is_empty() {
            pieces.push(ChatPiece::Arguments {
                index: place,
                text: arguments,
            });
        }
    }

    /// The call that a piece belongs to; a new one where it begins one and there may be more.
    fn place(&mut self, index: Option<u64>, id: &str, name: &str) -> Option<usize> {
        let mut slots = self.slots.iter().enumerate();
        let known = match index {
            // Some servers number every call 0; another id with a name then begins another call.
            Some(_) => slots
                .rev()
                .find(|(_, slot)| slot.index == index)
                .filter(|(_, slot)| {
                    let other = !id.is_empty() && !slot.id.is_empty() && slot.id != id;
                    !other || name.is_empty()
                }),
            None if !id.is_empty() => slots.rev().find(|(_, slot)| slot.id == id),
            None => slots.next_back().filter(|(_, slot)| {
                let same = slot.name == name && !whole(&slot.arguments);
                name.is_empty() || !slot.begun || same
            }),
        };
        if let Some((place, _)) = known {
            return Some(place);
        }
        if self.slots.len() == MAX_CALLS {
            return None;
        }
        self.slots.push(Slot {
            index,
            ..Slot::default()
        });
        Some(self.slots.len() - 1)
    }

    /// Whether any call was begun.
    pub(super) fn any(&self) -> bool {
        self.slots.iter().any(|slot| slot.begun)
    }

    /// What is left to say: a call without arguments has an empty object.
    ///
    /// Errors: a call that never got a name, more calls than there may be.
    pub(super) fn finish(&mut self) -> Result<Vec<ChatPiece>, Fault> {
        if self.too_many {
            let said = format!("more than {MAX_CALLS} calls of functions");
            return Err(Fault::new(Class::ToolCall, said));
        }
        let mut pieces = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if !slot.begun {
                return Err(Fault::new(
                    Class::ToolCall,
                    "a call of a function without a name",
                ));
            }
            let mut text = slot.joiner.finish();
            match (slot.arguments.trim(), text.as_str()) {
                ("", "") => text = "{}".to_owned(),
                // What TGI streams of a call without arguments.
                ("{", "") => text = "}".to_owned(),
                _ => {}
            }
            if !text.is_empty() {
                pieces.push(ChatPiece::Arguments { index, text });
            }
        }
        Ok(pieces)
    }
}

/// Whether a text is a whole JSON object.
fn whole(text: &str) -> bool {
    let closed = text.trim_end().ends_with('}');
    closed && serde_json::from_str::<Json>(text).is_ok_and(|value| value.is_object())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn start(index: usize, name: &str) -> ChatPiece {
        ChatPiece::CallStart {
            index,
            name: name.to_owned(),
        }
    }

    fn more(index: usize, text: &str) -> ChatPiece {
        ChatPiece::Arguments {
            index,
            text: text.to_owned(),
        }
    }

    fn read(events: &[Json]) -> Vec<ChatPiece> {
        let mut calls = Calls::default();
        let read = events.iter().flat_map(|event| calls.read(event, false));
        let mut pieces: Vec<ChatPiece> = read.collect();
        pieces.extend(calls.finish().expect("calls with names"));
        pieces
    }

    #[test]
    fn a_name_in_every_piece_begins_one_call() {
        let piece = |text: &str| {
            json!([{"index": 0, "id": "0", "type": "function",
                "function": {"name": "f", "arguments": text}}])
        };
        assert_eq!(
            read(&[piece("{\"a\""), piece(": 1}")]),
            [start(0, "f"), more(0, "{\"a\""), more(0, ": 1}")]
        );
        let bare = |text: &str| json!({"function": {"name": "f", "arguments": text}});
        assert_eq!(
            read(&[bare("{\"a\""), bare(": 1}"), bare("{}")]),
            [
                start(0, "f"),
                more(0, "{\"a\""),
                more(0, ": 1}"),
                start(1, "f"),
                more(1, "{}")
            ]
        );
    }

    #[test]
    fn calls_keep_apart_by_index_and_by_id() {
        let events = [
            json!([{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}]),
            json!([{"index": 1, "id": "b", "function": {"name": "g", "arguments": "{\"x\":"}}]),
            json!([{"index": 1, "function": {"arguments": "2}"}}]),
        ];
        assert_eq!(
            read(&events),
            [
                start(0, "f"),
                start(1, "g"),
                more(1, "{\"x\":"),
                more(1, "2}"),
                more(0, "{}")
            ]
        );
        let all_zero = [
            json!([{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}]),
            json!([{"index": 0, "id": "b", "function": {"name": "f", "arguments": {"x": 1}}}]),
        ];
        assert_eq!(
            read(&all_zero),
            [
                start(0, "f"),
                more(0, "{}"),
                start(1, "f"),
                more(1, "{\"x\":1}")
            ]
        );
    }

    #[test]
    fn a_call_without_a_name_is_a_failure() {
        let mut calls = Calls::default();
        calls.read(
            &json!([{"index": 0, "function": {"arguments": "{}"}}]),
            false,
        );
        let fault = calls.finish().expect_err("no name");
        assert_eq!(fault.class, Class::ToolCall);
    }

    #[test]
    fn calls_without_number_are_a_failure() {
        let mut calls = Calls::default();
        let many = (0..=MAX_CALLS).map(|at| json!({"index": at, "function": {"name": "f"}}));
        calls.read(&many.collect(), false);
        let fault = calls.finish().expect_err("too many");
        assert_eq!(fault.class, Class::ToolCall);
    }
}
