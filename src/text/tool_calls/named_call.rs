//! Reading a call written as a name followed by its arguments: `get_weather[ARGS]{…}`.
//!
//! Newer Mistral models write so. The tags in brackets come as special tokens or as text, and the id they
//! may name is dropped: ids are the API's to give.

use super::parser::{Calls, Step};
use super::scan::{Scan, ValueScan};

/// Reader of one call, from the first letter of its name on.
#[derive(Debug, Default)]
pub(super) struct NamedCall {
    name: String,
    phase: Phase,
    scan: ValueScan,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Name,
    /// Within `[…]`.
    Tag,
    /// Behind a tag: an id, which another tag follows, or the arguments.
    Behind,
    Arguments,
}

impl NamedCall {
    /// Reads the next character.
    pub(super) fn step(&mut self, c: char, calls: &mut Calls) -> Step {
        let is_identifier = c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | ':');
        match (self.phase, c) {
            (Phase::Name, _) if is_identifier => self.name.push(c),
            (Phase::Name | Phase::Behind, '[' | '{') if calls.tool(&self.name).is_none() => {
                return Step::Fail;
            }
            (Phase::Name | Phase::Behind, '[') => self.phase = Phase::Tag,
            (Phase::Name | Phase::Behind, '{') => {
                calls.start(&self.name);
                self.phase = Phase::Arguments;
                return self.step(c, calls);
            }
            (Phase::Name, _) => return Step::Fail,
            (Phase::Tag, ']') => self.phase = Phase::Behind,
            (Phase::Tag, _) if c.is_ascii_uppercase() || c == '_' => {}
            (Phase::Tag, _) => return Step::Fail,
            (Phase::Behind, _) if is_identifier || c.is_whitespace() => {}
            (Phase::Behind, _) => return Step::Fail,
            (Phase::Arguments, _) => {
                calls.arguments(c.encode_utf8(&mut [0; 4]));
                if self.scan.step(c) == Scan::Last {
                    calls.end();
                    return Step::Done;
                }
            }
        }
        Step::Continue
    }

    /// Takes a tag that came as a special token.
    pub(super) fn special(&mut self, token: &str) -> bool {
        let is_tag = matches!(token, "[ARGS]" | "[CALL_ID]") && self.phase != Phase::Arguments;
        if is_tag {
            self.phase = Phase::Behind;
        }
        is_tag
    }
}
