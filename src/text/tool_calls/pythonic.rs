//! Reading a call written in Python: `get_weather(city="Paris", days=[1, 2])`.
//!
//! Arguments are literals; each is turned into JSON when it is complete. What is no literal, an
//! unquoted word for instance, becomes a string, so nothing a model wrote is lost. An argument without
//! a key takes the name that stands in its place in the tool's schema.

use super::json_call::separate;
use super::parser::{Calls, Step};

/// Lists within lists a literal may have; deeper ones are taken for strings.
const MAX_DEPTH: usize = 64;

/// Reader of one call, from the first letter of its name on.
#[derive(Debug, Default)]
pub(super) struct PythonCall {
    name: String,
    is_announced: bool,
    /// The argument being read.
    argument: String,
    depth: usize,
    quote: Option<char>,
    escaped: bool,
    /// Arguments passed on.
    passed: usize,
}

impl PythonCall {
    /// Reads the next character.
    pub(super) fn step(&mut self, c: char, calls: &mut Calls) -> Step {
        if !self.is_announced {
            if c == '(' && calls.tool(&self.name).is_some() {
                calls.start(&self.name);
                calls.arguments("{");
                self.is_announced = true;
            } else if c.is_alphanumeric() || matches!(c, '_' | '.' | '-') {
                self.name.push(c);
            } else {
                return Step::Fail;
            }
            return Step::Continue;
        }
        if let Some(quote) = self.quote {
            if self.escaped {
                self.escaped = false;
            } else if c == '\\' {
                self.escaped = true;
            } else if c == quote {
                self.quote = None;
            }
        } else {
            match c {
                ',' | ')' if self.depth == 0 => {
                    self.pass(calls);
                    if c == ')' {
                        calls.arguments("}");
                        calls.end();
                        return Step::Done;
                    }
                    return Step::Continue;
                }
                '"' | '\'' => self.quote = Some(c),
                '(' | '[' | '{' => self.depth += 1,
                ')' | ']' | '}' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
        self.argument.push(c);
        Step::Continue
    }

    /// Passes on an argument cut off by the end of the answer, as far as it was written.
    pub(super) fn finish(&mut self, calls: &mut Calls) {
        if self.is_announced && !self.argument.trim().is_empty() {
            let (key, value) = self.take_argument(calls);
            separate(&mut self.passed, &key, calls);
            calls.arguments(&value);
        }
    }

    fn pass(&mut self, calls: &mut Calls) {
        if self.argument.trim().is_empty() {
            self.argument.clear();
            return;
        }
        let (key, value) = self.take_argument(calls);
        separate(&mut self.passed, &key, calls);
        calls.arguments(&to_json(&value).unwrap_or_else(|| quote(&value)));
    }

    /// Splits the argument read into its key, as a JSON string, and the text of its value.
    fn take_argument(&mut self, calls: &Calls) -> (String, String) {
        let argument = std::mem::take(&mut self.argument);
        let argument = argument.trim();
        if let Some((key, value)) = argument.split_once('=')
            && is_identifier(key.trim_end())
            && !value.starts_with('=')
        {
            return (quote(key.trim_end()), value.trim().to_owned());
        }
        let properties = calls
            .tool(&self.name)
            .and_then(|tool| tool.parameters.get("properties")?.as_object());
        let key = properties.and_then(|it| it.keys().nth(self.passed).cloned());
        let key = key.unwrap_or_else(|| format!("arg{}", self.passed));
        (quote(&key), argument.to_owned())
    }
}

fn is_identifier(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text
            .chars()
            .all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '$'))
}

/// `text` as a JSON string.
pub(super) fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The JSON text of a Python literal; `None` if it is not one.
///
/// JSON's own words are understood too, as is Python's rule that adjacent strings are one.
pub(super) fn to_json(literal: &str) -> Option<String> {
    let mut reader = Literal {
        rest: literal.trim(),
        json: String::new(),
    };
    reader.value(0)?;
    reader.blanks();
    reader.rest.is_empty().then_some(reader.json)
}

/// Recursive descent over a Python literal.
struct Literal<'a> {
    rest: &'a str,
    json: String,
}

impl Literal<'_> {
    fn blanks(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn eat(&mut self, c: char) -> bool {
        self.blanks();
        match self.rest.strip_prefix(c) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn value(&mut self, depth: usize) -> Option<()> {
        self.blanks();
        match self.rest.chars().next()? {
            '"' | '\'' => {
                let text = self.strings()?;
                self.json.push_str(&quote(&text));
                Some(())
            }
            '[' if depth < MAX_DEPTH => self.list('[', ']', depth),
            '(' if depth < MAX_DEPTH => self.list('(', ')', depth),
            '{' if depth < MAX_DEPTH => self.dictionary(depth),
            _ => self.word(),
        }
    }

    fn list(&mut self, open: char, close: char, depth: usize) -> Option<()> {
        self.eat(open);
        self.json.push('[');
        let mut is_first = true;
        while !self.eat(close) {
            if !is_first {
                self.json.push_str(", ");
            }
            is_first = false;
            self.value(depth + 1)?;
            if !self.eat(',') {
                self.eat(close).then_some(())?;
                break;
            }
        }
        self.json.push(']');
        Some(())
    }

    fn dictionary(&mut self, depth: usize) -> Option<()> {
        self.eat('{');
        self.json.push('{');
        let mut is_first = true;
        while !self.eat('}') {
            if !is_first {
                self.json.push_str(", ");
            }
            is_first = false;
            self.blanks();
            self.rest.starts_with(['"', '\'']).then_some(())?;
            self.value(depth + 1)?;
            self.eat(':').then_some(())?;
            self.json.push_str(": ");
            self.value(depth + 1)?;
            if !self.eat(',') {
                self.eat('}').then_some(())?;
                break;
            }
        }
        self.json.push('}');
        Some(())
    }

    /// A number or one of the words for true, false and nothing.
    fn word(&mut self) -> Option<()> {
        let end = self
            .rest
            .find(|c: char| c.is_whitespace() || matches!(c, ',' | ':' | ']' | ')' | '}'))
            .unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        match word {
            "True" | "true" => self.json.push_str("true"),
            "False" | "false" => self.json.push_str("false"),
            "None" | "null" => self.json.push_str("null"),
            _ if serde_json::from_str::<serde_json::Number>(word).is_ok() => {
                self.json.push_str(word);
            }
            _ => {
                let plain = word.replace('_', "");
                let is_number = plain.chars().any(|c| c.is_ascii_digit())
                    && plain
                        .chars()
                        .all(|c| c.is_ascii_digit() || matches!(c, '+' | '-' | '.' | 'e' | 'E'));
                let number = is_number.then(|| plain.parse::<f64>().ok()).flatten()?;
                let number = serde_json::Number::from_f64(number)?;
                self.json.push_str(&number.to_string());
            }
        }
        Some(())
    }

    /// One string literal or several side by side.
    fn strings(&mut self) -> Option<String> {
        let mut text = String::new();
        loop {
            self.blanks();
            let Some(quote) = self.rest.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
                return Some(text);
            };
            let mut chars = self.rest.chars();
            chars.next();
            loop {
                match chars.next()? {
                    '\\' => escape(&mut chars, &mut text)?,
                    c if c == quote => break,
                    c => text.push(c),
                }
            }
            self.rest = chars.as_str();
        }
    }
}

/// Reads what follows a backslash; an escape Python does not know stays as it is.
fn escape(chars: &mut std::str::Chars<'_>, text: &mut String) -> Option<()> {
    let c = chars.next()?;
    let digits = match c {
        'n' => '\n'.into(),
        't' => '\t'.into(),
        'r' => '\r'.into(),
        'b' => '\u{8}'.into(),
        'f' => '\u{c}'.into(),
        'a' => '\u{7}'.into(),
        'v' => '\u{b}'.into(),
        '0' => '\0'.into(),
        '\\' | '\'' | '"' | '/' => c.into(),
        '\n' => None,
        'x' => return code(chars, 2, text),
        'u' => return code(chars, 4, text),
        'U' => return code(chars, 8, text),
        _ => {
            text.push('\\');
            c.into()
        }
    };
    text.extend(digits);
    Some(())
}

/// Reads the character with the hexadecimal number of `digits` digits, or two halves of a JSON pair.
fn code(chars: &mut std::str::Chars<'_>, digits: usize, text: &mut String) -> Option<()> {
    let high = hexadecimal(chars, digits)?;
    let number = if (0xd800..0xdc00).contains(&high) {
        let mut behind = chars.clone();
        (behind.next()? == '\\' && behind.next()? == 'u').then_some(())?;
        let low = hexadecimal(&mut behind, 4)?;
        *chars = behind;
        0x10000 + ((high - 0xd800) << 10) + low.checked_sub(0xdc00).filter(|it| *it < 0x400)?
    } else {
        high
    };
    text.push(char::from_u32(number)?);
    Some(())
}

fn hexadecimal(chars: &mut std::str::Chars<'_>, digits: usize) -> Option<u32> {
    (0..digits).try_fold(0_u32, |number, _| {
        Some((number << 4) | chars.next()?.to_digit(16)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn literals_become_json() {
        for (literal, json) in [
            ("'it\\'s'", "\"it's\""),
            ("\"\\u00e9\\ud83d\\ude42\\x41\\U0001F600\"", "\"é🙂A😀\""),
            ("'a' \"b\"", "\"ab\""),
            ("\"\"\"long\"\"\"", "\"long\""),
            (
                "[1, -2.5, True, None, 'x',]",
                "[1, -2.5, true, null, \"x\"]",
            ),
            ("(1, 2)", "[1, 2]"),
            (
                "{'a': {\"b\": []}, 'c': {}}",
                "{\"a\": {\"b\": []}, \"c\": {}}",
            ),
            ("1_000", "1000.0"),
            (".5", "0.5"),
            ("'\\d'", "\"\\\\d\""),
        ] {
            assert_eq!(to_json(literal).as_deref(), Some(json), "{literal}");
        }
        for broken in [
            "Paris",
            "[1, 2",
            "{1: 2}",
            "'open",
            "",
            "1 2",
            "nan",
            "{'a'}",
            "'\\ud800'",
        ] {
            assert_eq!(to_json(broken), None, "{broken}");
        }
        assert_eq!(to_json(&"[".repeat(100_000)), None);
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_json(literal in r#"[\[\]{}(),:'"\\a-fTrueN0-9._ \n-]{0,40}"#) {
            if let Some(json) = to_json(&literal) {
                prop_assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{json}");
            }
        }
    }
}
