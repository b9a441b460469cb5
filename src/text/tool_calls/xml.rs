//! Reading a call written as `<function=get_weather><parameter=city>Paris</parameter></function>`.
//!
//! Qwen3-Coder and Qwen 3.5 write so. Values stand there as plain text, so only the tool's schema says
//! whether `5` is a number or a string: [`is_text`] decides, for the reader and for the grammar alike.

use super::json_call::separate;
use super::parser::{Calls, Step};
use super::pythonic::{quote, to_json};
use serde_json::Value;

const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";
const FUNCTION_END: &str = "</function>";
const BLOCK_END: &str = "</tool_call>";

/// Reader of one call, from behind its [`XmlCall::OPENER`] on.
#[derive(Debug, Default)]
pub(super) struct XmlCall {
    phase: Phase,
    name: String,
    key: String,
    /// The value being read, or the tag that may stand between values.
    text: String,
    passed: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Name,
    /// Between parameters.
    Between,
    Key,
    Value,
}

impl XmlCall {
    /// The text in front of the tool's name.
    pub(super) const OPENER: &'static str = "<function=";

    /// Reads the next character.
    pub(super) fn step(&mut self, c: char, calls: &mut Calls) -> Step {
        match self.phase {
            Phase::Name if c == '>' => {
                if calls.tool(self.name.trim()).is_none() {
                    return Step::Fail;
                }
                self.name = self.name.trim().to_owned();
                calls.start(&self.name);
                calls.arguments("{");
                self.phase = Phase::Between;
            }
            Phase::Name if c == '<' || c == '\n' => return Step::Fail,
            Phase::Name => self.name.push(c),
            Phase::Between => return self.between(c, calls),
            Phase::Key if c == '>' => {
                self.key = std::mem::take(&mut self.text);
                self.phase = Phase::Value;
            }
            Phase::Key => self.text.push(c),
            Phase::Value => {
                self.text.push(c);
                if c == '>' && self.text.ends_with(PARAMETER_END) {
                    self.text.truncate(self.text.len() - PARAMETER_END.len());
                    self.pass(calls);
                    self.phase = Phase::Between;
                }
            }
        }
        Step::Continue
    }

    /// Passes on a value cut off by the end of the answer, as far as it was written.
    pub(super) fn finish(&mut self, calls: &mut Calls) {
        if self.phase == Phase::Value {
            separate(&mut self.passed, &quote(self.key.trim()), calls);
            calls.arguments(&self.text);
        }
    }

    /// Ends the call if no parameter is being read.
    pub(super) fn close_before_marker(&mut self, calls: &mut Calls) {
        if self.phase == Phase::Between {
            calls.arguments("}");
            calls.end();
        } else {
            self.finish(calls);
        }
    }

    fn between(&mut self, c: char, calls: &mut Calls) -> Step {
        self.text.push(c);
        let tag = self.text.trim_start();
        if tag.is_empty() {
            self.text.clear();
            return Step::Continue;
        }
        let tags = [PARAMETER, FUNCTION_END, BLOCK_END];
        if tag == PARAMETER {
            self.text.clear();
            self.phase = Phase::Key;
        } else if tag == FUNCTION_END || tag == BLOCK_END {
            calls.arguments("}");
            calls.end();
            return Step::Done;
        } else if !tags.iter().any(|it| it.starts_with(tag)) {
            // No tag of a call: models at times put stray text here, which belongs to no parameter.
            self.text.clear();
            if c == '<' {
                self.text.push(c);
            }
        }
        Step::Continue
    }

    fn pass(&mut self, calls: &mut Calls) {
        let text = std::mem::take(&mut self.text);
        let text = text.strip_prefix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\n').unwrap_or(text);
        let key = self.key.trim();
        let schema = calls
            .tool(&self.name)
            .and_then(|tool| tool.parameters.get("properties")?.get(key));
        let json = to_argument(text, schema);
        separate(&mut self.passed, &quote(key), calls);
        calls.arguments(&json);
    }
}

/// Whether values of a property may be strings, which stand without quotes; so do those of a property
/// the schema does not know.
pub(super) fn is_text(schema: Option<&Value>) -> bool {
    let Some(schema) = schema else {
        return true;
    };
    match (schema.get("type"), schema.get("enum"), schema.get("const")) {
        (Some(Value::String(kind)), _, _) => kind == "string",
        (Some(kinds), _, _) => names(kinds, "string"),
        (None, Some(Value::Array(values)), _) => values.iter().all(Value::is_string),
        (None, _, Some(value)) => value.is_string(),
        (None, _, None) => false,
    }
}

/// Whether a list of types names this one.
fn names(kinds: &Value, kind: &str) -> bool {
    kinds
        .as_array()
        .is_some_and(|kinds| kinds.iter().any(|it| it == kind))
}

/// The JSON text of a value written as `text`.
///
/// Where the schema leaves room for more than strings, text that is JSON or a Python literal of a type it
/// names stands for what it says, and any other text for itself.
fn to_argument(text: &str, schema: Option<&Value>) -> String {
    let trimmed = text.trim();
    let value = match serde_json::from_str(trimmed) {
        Ok(value) => Some((value, trimmed.to_owned())),
        Err(_) => to_json(trimmed).and_then(|it| Some((serde_json::from_str(&it).ok()?, it))),
    };
    let is_text = is_text(schema);
    let kinds = schema.and_then(|schema| schema.get("type"));
    value
        .filter(|(value, _)| !is_text || kinds.is_some_and(|kinds| fits(value, kinds)))
        .map_or_else(|| quote(text), |(_, json)| json)
}

/// Whether a list of types names the type of a value that is no string.
fn fits(value: &Value, kinds: &Value) -> bool {
    match value {
        Value::Null => names(kinds, "null"),
        Value::Bool(_) => names(kinds, "boolean"),
        Value::Number(number) => {
            names(kinds, "number") || names(kinds, "integer") && !number.is_f64()
        }
        Value::String(_) => false,
        Value::Array(_) => names(kinds, "array"),
        Value::Object(_) => names(kinds, "object"),
    }
}
