//! Calls of functions as upstreams stream them: in pieces by index, whole, or with the name in every piece.

use serde::de::IgnoredAny;
use serde_json::Value as Json;

use super::json::Joiner;
use crate::generation::ChatPiece;
use crate::remote::fault::{Class, Fault};

/// The most calls that one answer may hold; a well-meant one has a handful.
const MAX_CALLS: usize = 256;

/// The longest id that is passed on; well-meant ones have some thirty characters.
const LONGEST_ID: usize = 128;

/// One call.
#[derive(Debug, Clone, Default)]
struct Slot {
    /// The upstream's index, where it gives one.
    index: Option<u64>,
    id: String,
    name: String,
    arguments: String,
    /// Its index for the caller, once the caller knows of it.
    told: Option<usize>,
    joiner: Joiner,
}

/// The calls of one answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Calls {
    slots: Vec<Slot>,
    /// How many the caller knows of: they are numbered in the order they begin.
    begun: usize,
    /// Whether there were more than there may be.
    too_many: bool,
}

/// What a call without arguments still needs, so that they are an object.
fn closing(arguments: &str) -> Option<&'static str> {
    match arguments.trim() {
        "" => Some("{}"),
        // What TGI streams of a call without arguments.
        "{" => Some("}"),
        _ => None,
    }
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
        if self.slots[place].id.is_empty() {
            self.slots[place].id = id;
        }
        let fit = self.fit_id(place);
        let slot = &mut self.slots[place];
        let arguments = slot.joiner.push(&arguments, marked);
        slot.arguments += &arguments;
        match slot.told {
            Some(index) if !arguments.is_empty() => pieces.push(ChatPiece::Arguments {
                index,
                text: arguments,
            }),
            None if !name.is_empty() => {
                let index = self.begun;
                self.begun += 1;
                slot.told = Some(index);
                slot.name = name.clone();
                let id = fit;
                pieces.push(ChatPiece::CallStart { index, id, name });
                // What came before the name included.
                if !slot.arguments.is_empty() {
                    let text = slot.arguments.clone();
                    pieces.push(ChatPiece::Arguments { index, text });
                }
            }
            _ => {}
        }
    }

    /// A call's id where it can name the call: plain, and not that of another one, since some servers give
    /// every call the same.
    fn fit_id(&self, place: usize) -> Option<String> {
        let id = &self.slots[place].id;
        let plain =
            (1..=LONGEST_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
        let mut others = self.slots.iter().enumerate();
        let taken = others.any(|(other, slot)| other != place && slot.id == *id);
        (plain && !taken).then(|| id.clone())
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
                name.is_empty() || slot.told.is_none() || same
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
        self.begun > 0
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
        for slot in &mut self.slots {
            let Some(index) = slot.told else {
                return Err(Fault::new(
                    Class::ToolCall,
                    "a call of a function without a name",
                ));
            };
            let mut text = slot.joiner.finish();
            if let Some(closing) = closing(&slot.arguments).filter(|_| text.is_empty()) {
                closing.clone_into(&mut text);
            }
            slot.arguments += &text;
            if !text.is_empty() {
                pieces.push(ChatPiece::Arguments { index, text });
            }
        }
        Ok(pieces)
    }

    /// The name of a call whose arguments are no JSON; meant for calls that are finished.
    pub(super) fn garbled(&self) -> Option<&str> {
        let json = |slot: &&Slot| serde_json::from_str::<IgnoredAny>(&slot.arguments).is_err();
        self.slots.iter().find(json).map(|slot| slot.name.as_str())
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

    fn start(index: usize, id: &str, name: &str) -> ChatPiece {
        ChatPiece::CallStart {
            index,
            id: Some(id.to_owned()).filter(|id| !id.is_empty()),
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
            [start(0, "0", "f"), more(0, "{\"a\""), more(0, ": 1}")]
        );
        let bare = |text: &str| json!({"function": {"name": "f", "arguments": text}});
        assert_eq!(
            read(&[bare("{\"a\""), bare(": 1}"), bare("{}")]),
            [
                start(0, "", "f"),
                more(0, "{\"a\""),
                more(0, ": 1}"),
                start(1, "", "f"),
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
                start(0, "a", "f"),
                start(1, "b", "g"),
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
                start(0, "a", "f"),
                more(0, "{}"),
                start(1, "b", "f"),
                more(1, "{\"x\":1}")
            ]
        );
    }

    #[test]
    fn arguments_that_are_no_json_are_found() {
        for (arguments, garbled) in [
            ("", None),
            ("{", None),
            ("{\"a\": 1}", None),
            ("{\"a\": ", Some("f")),
            ("call me", Some("f")),
        ] {
            let mut calls = Calls::default();
            calls.read(
                &json!([{"index": 0, "function": {"name": "f", "arguments": arguments}}]),
                false,
            );
            calls.finish().expect("a call with a name");
            assert_eq!(calls.garbled(), garbled, "{arguments}");
        }
    }

    #[test]
    fn calls_are_numbered_as_they_begin() {
        let events = [
            json!([{"index": 0, "id": "a", "function": {"arguments": "{\"x\":"}}]),
            json!([{"index": 1, "id": "b", "function": {"name": "g", "arguments": "{}"}}]),
            json!([{"index": 0, "function": {"name": "f", "arguments": "1}"}}]),
        ];
        assert_eq!(
            read(&events),
            [
                start(0, "b", "g"),
                more(0, "{}"),
                start(1, "a", "f"),
                more(1, "{\"x\":1}")
            ]
        );
    }

    #[test]
    fn an_id_that_names_no_call_is_not_passed_on() {
        let call =
            |index: u64, id: &str| json!([{"index": index, "id": id, "function": {"name": "f"}}]);
        let long = "a".repeat(LONGEST_ID + 1);
        let events = [call(0, "0"), call(1, "0"), call(2, "a b"), call(3, &long)];
        let starts = read(&events);
        let starts = starts
            .into_iter()
            .filter(|p| matches!(p, ChatPiece::CallStart { .. }));
        let expected = [
            start(0, "0", "f"),
            start(1, "", "f"),
            start(2, "", "f"),
            start(3, "", "f"),
        ];
        assert_eq!(starts.collect::<Vec<_>>(), expected);
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
