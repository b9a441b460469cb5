//! Python's texts of values, its `json.dumps`, and the methods of its `str`.

use std::fmt::Write;

use minijinja::value::{Kwargs, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, Value};

/// How `json.dumps` writes.
#[derive(Debug)]
pub(super) struct JsonStyle {
    /// Whether characters outside ASCII are escaped.
    pub(super) ensure_ascii: bool,
    /// What each level is indented by; `None` writes one line.
    pub(super) indent: Option<String>,
    /// What stands between items.
    pub(super) item: String,
    /// What stands between a key and its value.
    pub(super) key: String,
    /// Whether keys are sorted.
    pub(super) sort_keys: bool,
}

/// `str(value)`; undefined values are empty.
pub(super) fn text(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None if value.is_undefined() => String::new(),
        None => {
            let mut text = String::new();
            repr(value, &mut text);
            text
        }
    }
}

/// `repr(value)` of JSON's types; others print as minijinja prints them.
fn repr(value: &Value, out: &mut String) {
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::String => quote(value.as_str().unwrap_or_default(), out),
        ValueKind::Number if !value.is_integer() => {
            out.push_str(&f64::try_from(value.clone()).map_or_else(|_| value.to_string(), float));
        }
        ValueKind::Seq => {
            let tuple = value.downcast_object_ref::<Tuple>().is_some();
            let items: Vec<Value> = value.try_iter().into_iter().flatten().collect();
            out.push(if tuple { '(' } else { '[' });
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                repr(item, out);
            }
            out.push_str(match (tuple, items.len()) {
                (true, 1) => ",)",
                (true, _) => ")",
                (false, _) => "]",
            });
        }
        ValueKind::Map => {
            out.push('{');
            for (i, key) in value.try_iter().into_iter().flatten().enumerate() {
                if i > 0 {
                    out.push_str(", ");
                }
                repr(&key, out);
                out.push_str(": ");
                repr(&value.get_item(&key).unwrap_or_default(), out);
            }
            out.push('}');
        }
        _ => out.push_str(&value.to_string()),
    }
}

/// `repr` of a text: in single quotes unless only those occur in it, what does not print escaped.
fn quote(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if prints(c) => out.push(c),
            c => {
                let code = u32::from(c);
                // Writing into a String cannot fail.
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// Python's `str.isprintable` for one character, but for code points no Unicode version assigns.
fn prints(c: char) -> bool {
    !(c.is_control()
        || (c.is_whitespace() && c != ' ')
        || matches!(c,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{180e}'
            | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{e000}'..='\u{f8ff}' | '\u{feff}' | '\u{fff0}'..='\u{fffb}' | '\u{fffe}'..='\u{ffff}'
            | '\u{e0000}'..='\u{e00ff}' | '\u{f0000}'..))
}

/// `repr` of a float: the shortest digits that read back as the same number.
fn float(number: f64) -> String {
    if number.is_nan() {
        return "nan".to_owned();
    }
    // Rust switches to exponents where Python does.
    let shortest = format!("{number:?}");
    match shortest.split_once('e') {
        None => shortest,
        Some((digits, exponent)) => {
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            format!("{digits}e{sign}{exponent:0>2}")
        }
    }
}

/// `json.dumps(value)`.
///
/// Errors: a value JSON does not know, such as an undefined one.
pub(super) fn dumps(value: &Value, style: &JsonStyle) -> Result<String, Error> {
    let mut out = String::new();
    dump(value, style, 0, &mut out)?;
    Ok(out)
}

fn dump(value: &Value, style: &JsonStyle, level: usize, out: &mut String) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => dump_text(value.as_str().unwrap_or_default(), style, out),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            dump_items(items.len(), ('[', ']'), style, level, out, |i, out| {
                dump(&items[i], style, level + 1, out)
            })?;
        }
        ValueKind::Map => {
            let mut pairs: Vec<(String, Value)> = Vec::new();
            for key in value.try_iter()? {
                let name = match key.kind() {
                    ValueKind::String => key.to_string(),
                    ValueKind::None => "null".to_owned(),
                    ValueKind::Bool => key.is_true().to_string(),
                    ValueKind::Number => number(&key),
                    kind => {
                        return Err(unknown(&format!(
                            "keys must be texts or numbers, not {kind}"
                        )));
                    }
                };
                pairs.push((name, value.get_item(&key)?));
            }
            if style.sort_keys {
                pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
            }
            dump_items(pairs.len(), ('{', '}'), style, level, out, |i, out| {
                let (name, value) = &pairs[i];
                dump_text(name, style, out);
                out.push_str(&style.key);
                dump(value, style, level + 1, out)
            })?;
        }
        kind => {
            return Err(unknown(&format!(
                "a value of type {kind} is not JSON serializable"
            )));
        }
    }
    Ok(())
}

fn unknown(reason: &str) -> Error {
    Error::new(ErrorKind::BadSerialization, reason.to_owned())
}

fn dump_items(
    count: usize,
    (open, close): (char, char),
    style: &JsonStyle,
    level: usize,
    out: &mut String,
    mut write: impl FnMut(usize, &mut String) -> Result<(), Error>,
) -> Result<(), Error> {
    let line = |level: usize, out: &mut String| {
        if let Some(indent) = &style.indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(indent.as_str(), level));
        }
    };
    out.push(open);
    for i in 0..count {
        if i > 0 {
            out.push_str(&style.item);
        }
        line(level + 1, out);
        write(i, out)?;
    }
    if count > 0 {
        line(level, out);
    }
    out.push(close);
    Ok(())
}

/// A number as `json.dumps` writes it, which names what JSON has no number for.
fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(number) if number.is_nan() => "NaN".to_owned(),
        Ok(f64::INFINITY) => "Infinity".to_owned(),
        Ok(f64::NEG_INFINITY) => "-Infinity".to_owned(),
        Ok(number) => float(number),
        Err(_) => value.to_string(),
    }
}

fn dump_text(text: &str, style: &JsonStyle, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (style.ensure_ascii && !(' '..='~').contains(&c)) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing into a String cannot fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// `value[start:stop:step]`; undefined for values that have no order, as Jinja2 has it.
///
/// Errors: an undefined value, bounds that are no whole numbers, a step of zero.
pub(super) fn slice(value: &Value, bounds: &[Value]) -> Result<Value, Error> {
    let (start, stop, step): (Option<i64>, Option<i64>, Option<i64>) = from_args(bounds)?;
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            "slice step cannot be zero",
        ));
    }
    match value.kind() {
        ValueKind::Undefined => Err(Error::from(ErrorKind::UndefinedError)),
        ValueKind::String => {
            let characters: Vec<char> = value.as_str().unwrap_or_default().chars().collect();
            let places = slice_places(characters.len(), start, stop, step);
            Ok(places
                .map(|place| characters[place])
                .collect::<String>()
                .into())
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            let places = slice_places(items.len(), start, stop, step);
            let chosen: Vec<Value> = places.map(|place| items[place].clone()).collect();
            Ok(match value.downcast_object_ref::<Tuple>() {
                Some(_) => Value::from(Tuple::from(chosen)),
                None => Value::from(chosen),
            })
        }
        _ => Ok(Value::UNDEFINED),
    }
}

/// The places a slice of `length` items visits, all below `length`.
///
/// Source: Python's language reference, "Common sequence operations", notes 3 to 5.
fn slice_places(
    length: usize,
    start: Option<i64>,
    stop: Option<i64>,
    step: i64,
) -> impl Iterator<Item = usize> {
    let length = i64::try_from(length).unwrap_or(i64::MAX);
    let (low, high) = if step > 0 {
        (0, length)
    } else {
        (-1, length - 1)
    };
    let bound = |bound: i64| {
        let from_end = if bound < 0 {
            bound.saturating_add(length)
        } else {
            bound
        };
        from_end.clamp(low, high)
    };
    let mut place = start.map_or(if step > 0 { low } else { high }, bound);
    let stop = stop.map_or(if step > 0 { high } else { low }, bound);
    std::iter::from_fn(move || {
        let inside = if step > 0 { place < stop } else { place > stop };
        let current = usize::try_from(place).ok().filter(|_| inside)?;
        place = place.saturating_add(step);
        Some(current)
    })
}

/// What `str.isspace` holds for, a little more than Unicode's white space.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `text.strip()`.
pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `text.rstrip()`.
pub(super) fn rstrip(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// `text.strip(characters)`.
pub(super) fn strip_of<'a>(text: &'a str, characters: Option<&str>) -> &'a str {
    match characters {
        None => strip(text),
        Some(characters) => text.trim_matches(|c| characters.contains(c)),
    }
}

/// Calls a method of `str`; `None` when minijinja's own has the same result.
pub(super) fn text_method(
    text: &str,
    name: &str,
    arguments: &[Value],
) -> Option<Result<Value, Error>> {
    let result = match name {
        "strip" | "lstrip" | "rstrip" => from_args(arguments).map(|(characters,)| {
            let characters: Option<&str> = characters;
            let stripped = |c: char| characters.map_or(is_space(c), |set| set.contains(c));
            match name {
                "strip" => text.trim_matches(stripped),
                "lstrip" => text.trim_start_matches(stripped),
                _ => text.trim_end_matches(stripped),
            }
            .into()
        }),
        "split" => split(text, arguments, false),
        "rsplit" => split(text, arguments, true),
        "splitlines" => from_args(arguments).map(|(keep,): (Option<bool>,)| {
            let lines = lines(text).map(|(line, end)| match keep {
                Some(true) => [line, end].concat(),
                _ => line.to_owned(),
            });
            lines.map(Value::from).collect()
        }),
        "partition" | "rpartition" => from_args(arguments).map(|(separator,): (&str,)| {
            let parts = if name == "partition" {
                let found = text.split_once(separator);
                found.map_or((text, "", ""), |(a, b)| (a, separator, b))
            } else {
                let found = text.rsplit_once(separator);
                found.map_or(("", "", text), |(a, b)| (a, separator, b))
            };
            Value::from(Tuple::from([
                parts.0.into(),
                parts.1.into(),
                parts.2.into(),
            ]))
        }),
        "removeprefix" => from_args(arguments)
            .map(|(prefix,): (&str,)| text.strip_prefix(prefix).unwrap_or(text).into()),
        "removesuffix" => from_args(arguments)
            .map(|(suffix,): (&str,)| text.strip_suffix(suffix).unwrap_or(text).into()),
        "title" => from_args(arguments).map(|()| title(text).into()),
        "capitalize" => from_args(arguments).map(|()| {
            let mut characters = text.chars();
            let first = characters.next().into_iter().flat_map(char::to_uppercase);
            let capitalized: String =
                first.collect::<String>() + &characters.as_str().to_lowercase();
            capitalized.into()
        }),
        "isspace" => {
            from_args(arguments).map(|()| (!text.is_empty() && text.chars().all(is_space)).into())
        }
        "swapcase" => from_args(arguments).map(|()| {
            let mut swapped = String::with_capacity(text.len());
            for c in text.chars() {
                if c.is_uppercase() {
                    swapped.extend(c.to_lowercase());
                } else {
                    swapped.extend(c.to_uppercase());
                }
            }
            swapped.into()
        }),
        "index" => from_args(arguments).and_then(|(wanted,): (&str,)| match text.find(wanted) {
            Some(at) => Ok(text[..at].chars().count().into()),
            None => Err(Error::new(
                ErrorKind::InvalidOperation,
                "substring not found",
            )),
        }),
        "zfill" => from_args(arguments).map(|(width,): (usize,)| {
            let (sign, digits) = match text.strip_prefix(['-', '+']) {
                Some(digits) => text.split_at(text.len() - digits.len()),
                None => ("", text),
            };
            let zeros = width.min(1 << 16).saturating_sub(text.chars().count());
            Value::from(format!("{sign}{}{digits}", "0".repeat(zeros)))
        }),
        "join" => from_args(arguments).and_then(|(items,): (&Value,)| {
            let mut texts = Vec::new();
            for item in items.try_iter()? {
                let item = item.as_str().map(str::to_owned);
                texts.push(item.ok_or_else(|| {
                    Error::new(ErrorKind::InvalidOperation, "join takes texts only")
                })?);
            }
            Ok(texts.join(text).into())
        }),
        "ljust" | "rjust" => from_args(arguments).map(|(width, fill): (usize, Option<char>)| {
            let missing = width.min(1 << 16).saturating_sub(text.chars().count());
            let fill: String = std::iter::repeat_n(fill.unwrap_or(' '), missing).collect();
            Value::from(if name == "ljust" {
                [text, &fill].concat()
            } else {
                [&fill, text].concat()
            })
        }),
        _ => return None,
    };
    Some(result)
}

/// `str.split` and `str.rsplit`.
fn split(text: &str, arguments: &[Value], from_right: bool) -> Result<Value, Error> {
    let (separator, most, named): (Option<Value>, Option<i64>, Kwargs) = from_args(arguments)?;
    let separator = separator
        .or(named.get("sep")?)
        .filter(|value| !value.is_none());
    let most = most.or(named.get("maxsplit")?).unwrap_or(-1);
    named.assert_all_used()?;
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let mut parts: Vec<&str> = match separator {
        None => split_spaces(text, most, from_right),
        Some(separator) => {
            let separator = separator
                .as_str()
                .filter(|text| !text.is_empty())
                .ok_or_else(|| {
                    Error::new(
                        ErrorKind::InvalidOperation,
                        "split needs a text that is not empty",
                    )
                })?;
            let count = most.saturating_add(1);
            if from_right {
                text.rsplitn(count, separator).collect()
            } else {
                text.splitn(count, separator).collect()
            }
        }
    };
    if from_right {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Words between white space, at most `most` split off; from the right in reverse order.
fn split_spaces(text: &str, most: usize, from_right: bool) -> Vec<&str> {
    fn cut(text: &str, from_right: bool) -> &str {
        if from_right {
            rstrip(text)
        } else {
            text.trim_start_matches(is_space)
        }
    }
    let mut words = Vec::new();
    let mut rest = cut(text, from_right);
    while !rest.is_empty() && words.len() < most {
        let (word, behind) = if from_right {
            let at = rest.trim_end_matches(|c| !is_space(c)).len();
            (&rest[at..], &rest[..at])
        } else {
            rest.split_at(rest.find(is_space).unwrap_or(rest.len()))
        };
        words.push(word);
        rest = cut(behind, from_right);
    }
    // What is left when no more may be split off keeps the white space on its far side.
    if !rest.is_empty() {
        words.push(rest);
    }
    words
}

/// `text.splitlines()`: each line and what ends it.
fn lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let ends = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let at = rest.find(ends).unwrap_or(rest.len());
        let width = match &rest[at..] {
            end if end.starts_with("\r\n") => 2,
            end => end.chars().next().map_or(0, char::len_utf8),
        };
        let (line, end) = (&rest[..at], &rest[at..at + width]);
        rest = &rest[at + width..];
        Some((line, end))
    })
}

/// `text.title()`: a capital behind everything that is no letter.
fn title(text: &str) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase());
        } else {
            out.extend(c.to_uppercase());
        }
        inside = c.is_alphabetic();
    }
    out
}
