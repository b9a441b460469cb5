//! The environment templates run in: Jinja2 as `transformers` sets it up.
//!
//! Blocks are trimmed, nothing is escaped for HTML, values print as Python prints them. What minijinja has under
//! the same name with the same result is used as it is.

use std::fmt::Write;

use chrono::format::{Fixed, Item, Numeric, StrftimeItems};
use chrono::{NaiveDateTime, Timelike};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, from_args};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use super::{python, source};

/// Steps one rendering may take: some hundred times what a full context window of messages needs.
const FUEL: u64 = 20_000_000;

/// Makes the environment, without templates.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.trim_blocks(true).lstrip_blocks(true);
    if let Ok(syntax) = syntax.build() {
        environment.set_syntax(syntax);
    }
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    // Debug information would reach the texts of errors, which are the same in every build.
    environment.set_debug(false);
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|output, _, value| {
        output
            .write_str(&python::text(value))
            .map_err(|_| Error::from(ErrorKind::WriteFailure))
    });
    minijinja_contrib::add_to_environment(&mut environment);
    environment.remove_global("debug");
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("cycler", |values: Rest<Value>| {
        minijinja_contrib::globals::cycler(values.0)
    });
    environment.add_filter("tojson", tojson);
    environment.add_filter("string", |value: &Value| python::text(value));
    environment.add_filter("trim", |value: &Value, characters: Option<&str>| {
        python::strip_of(&python::text(value), characters).to_owned()
    });
    environment.add_filter("upper", |value: &Value| python::text(value).to_uppercase());
    environment.add_filter("lower", |value: &Value| python::text(value).to_lowercase());
    environment.add_filter("join", join);
    environment.add_filter("replace", replace);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    environment.add_filter("wordcount", |value: &Value| {
        let text = python::text(value);
        let inside = |c: char| c.is_alphanumeric() || c == '_';
        text.split(|c| !inside(c))
            .filter(|word| !word.is_empty())
            .count()
    });
    environment.add_filter("items", items);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_filter(source::ITERATED, iterated);
    environment.add_test("iterable", |value: &Value| {
        !value.is_none() && value.try_iter().is_ok()
    });
    environment.add_test("sequence", is_sequence);
    environment
}

/// Refuses the conversation, in the words of the template.
fn raise_exception(message: &Value) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::SyntaxError, python::text(message)))
}

/// The time as Python's `datetime.now().strftime` writes it: a time without a zone, whose zone is empty text.
///
/// Errors: a format that is not one.
pub(super) fn strftime(now: NaiveDateTime, format: &str) -> Result<String, Error> {
    let items = StrftimeItems::new(format).filter_map(|item| match item {
        Item::Fixed(Fixed::TimezoneName | Fixed::TimezoneOffset) => None,
        Item::Numeric(Numeric::Nanosecond, _) => {
            let microseconds = format!("{:06}", now.nanosecond() / 1000);
            Some(Item::OwnedLiteral(microseconds.into()))
        }
        item => Some(item),
    });
    let mut text = String::new();
    write!(text, "{}", now.format_with_items(items)).map_err(|_| {
        Error::new(
            ErrorKind::InvalidOperation,
            format!("strftime_now cannot write `{format}`"),
        )
    })?;
    Ok(text)
}

/// `json.dumps` with the parameters `transformers` opens to templates.
fn tojson(value: &Value, placed: Rest<Value>, named: Kwargs) -> Result<String, Error> {
    let argument = |place: usize, name: &str| -> Result<Option<Value>, Error> {
        let placed = placed.get(place).cloned();
        let value = placed.or(named.get::<Option<Value>>(name)?);
        Ok(value.filter(|value| !value.is_none()))
    };
    let ensure_ascii = argument(0, "ensure_ascii")?.is_some_and(|value| value.is_true());
    let indent = argument(1, "indent")?;
    let separators = argument(2, "separators")?;
    let sort_keys = argument(3, "sort_keys")?.is_some_and(|value| value.is_true());
    named.assert_all_used()?;
    let indent = match indent {
        None => None,
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(i64::try_from(indent)?).unwrap_or(0)),
        }),
    };
    let (item, key) = match separators {
        Some(pair) => {
            let pair: Vec<String> = pair.try_iter()?.map(|part| part.to_string()).collect();
            <[String; 2]>::try_from(pair)
                .map(|[item, key]| (item, key))
                .map_err(|_| Error::new(ErrorKind::InvalidOperation, "separators are two texts"))?
        }
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let style = python::JsonStyle {
        ensure_ascii,
        indent,
        item,
        key,
        sort_keys,
    };
    python::dumps(value, &style)
}

/// Python's `separator.join`, over the texts of the values or of one attribute of them.
fn join(value: &Value, separator: Option<&Value>, named: Kwargs) -> Result<String, Error> {
    let separator = match separator {
        Some(separator) => python::text(separator),
        None => named.get::<Option<String>>("d")?.unwrap_or_default(),
    };
    let attribute: Option<String> = named.get("attribute")?;
    named.assert_all_used()?;
    let mut texts = Vec::new();
    for item in value.try_iter()? {
        texts.push(match &attribute {
            None => python::text(&item),
            Some(attribute) => python::text(&item.get_attr(attribute)?),
        });
    }
    Ok(texts.join(&separator))
}

/// Replaces a text within a text, everywhere or some times.
fn replace(value: &Value, old: &Value, new: &Value, count: Option<usize>) -> String {
    let (text, old, new) = (python::text(value), python::text(old), python::text(new));
    text.replacen(&old, &new, count.unwrap_or(usize::MAX))
}

/// A whole number, or the default where the value holds none.
fn int(value: &Value, default: Option<Value>, named: Kwargs) -> Result<Value, Error> {
    let default = default.or(named.get("default")?);
    let base: u32 = named.get::<Option<u32>>("base")?.unwrap_or(10);
    named.assert_all_used()?;
    let text = python::text(value);
    let text = python::strip(&text);
    let whole = match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number | ValueKind::String => (2..=36)
            .contains(&base)
            .then(|| i128::from_str_radix(text, base).ok())
            .flatten()
            .or_else(|| {
                let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
                number.map(|number| number as i128)
            }),
        _ => None,
    };
    Ok(match whole {
        Some(whole) => i64::try_from(whole).map_or_else(|_| Value::from(whole), Value::from),
        None => default.unwrap_or_else(|| Value::from(0)),
    })
}

/// A number with a fraction, or the default where the value holds none.
fn float(value: &Value, default: Option<f64>) -> f64 {
    let number = match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number | ValueKind::String => python::strip(&python::text(value)).parse().ok(),
        _ => None,
    };
    number.or(default).unwrap_or(0.0)
}

/// The value, or another where it is undefined, or on request where it is not true.
fn default(
    value: Value,
    other: Option<Value>,
    boolean: Option<bool>,
    named: Kwargs,
) -> Result<Value, Error> {
    let other = other.or(named.get("default_value")?);
    let boolean = boolean.or(named.get("boolean")?).unwrap_or(false);
    named.assert_all_used()?;
    if value.is_undefined() || (boolean && !value.is_true()) {
        return Ok(other.unwrap_or_else(|| Value::from("")));
    }
    Ok(value)
}

/// A text with HTML's signs escaped as markupsafe escapes them.
fn escape(value: &Value) -> Value {
    if value.is_safe() {
        return value.clone();
    }
    let mut escaped = String::new();
    for c in python::text(value).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '\'' => escaped.push_str("&#39;"),
            '"' => escaped.push_str("&#34;"),
            c => escaped.push(c),
        }
    }
    Value::from_safe_string(escaped)
}

/// A mapping's pairs; an undefined one has none.
fn items(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(Value::from(Vec::<Value>::new())),
        ValueKind::Map => value
            .try_iter()?
            .map(|key| {
                let item = value.get_item(&key)?;
                Ok(Value::from(Tuple::from([key, item])))
            })
            .collect(),
        kind => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("items of a {kind}: not a mapping"),
        )),
    }
}

/// Python's `len`.
fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    value.len().ok_or_else(|| {
        let reason = format!("a value of type {} has no length", value.kind());
        Error::new(ErrorKind::InvalidOperation, reason)
    })
}

/// A value a loop may go over.
fn iterated(value: Value) -> Result<Value, Error> {
    if value.is_none() {
        let reason = "none is not iterable";
        return Err(Error::new(ErrorKind::InvalidOperation, reason));
    }
    Ok(value)
}

/// Whether Python can take a value's length and index it, which holds for text and mappings too.
fn is_sequence(value: &Value) -> bool {
    matches!(
        value.kind(),
        ValueKind::Undefined
            | ValueKind::Seq
            | ValueKind::String
            | ValueKind::Map
            | ValueKind::Bytes
    )
}

/// Methods of Python's types that minijinja has not itself.
fn method(
    state: &mut State<'_, '_>,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    if name == source::SLICE {
        return python::slice(value, arguments);
    }
    if let Some(text) = value.as_str()
        && let Some(result) = python::text_method(text, name, arguments)
    {
        return result;
    }
    match (value.kind(), name) {
        (ValueKind::Map, "copy") => {
            let () = from_args(arguments)?;
            Ok(value.clone())
        }
        (ValueKind::Seq, "index") => {
            let (wanted,): (&Value,) = from_args(arguments)?;
            let place = value.try_iter()?.position(|item| item == *wanted);
            place.map(Value::from).ok_or_else(|| {
                Error::new(ErrorKind::InvalidOperation, "the value is not in the list")
            })
        }
        _ => pycompat::unknown_method_callback(state, value, name, arguments),
    }
}
