//! A table of the settings file, read field by field: each has a type and bounds, all faults are collected,
//! and what is left over is unknown.
//!
//! Faults name the place and the field, never the value: somebody may have put a secret there. Nothing here
//! knows what a field is for.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::Duration;

use regex::{Regex, RegexBuilder};
use toml::{Table, Value};

use super::keys::is_name;
use super::raw::nearest;
use super::secrets::secret_in;

/// What there is to say about a file so far.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// The file's name and a colon.
    prefix: String,
    faults: RefCell<Vec<String>>,
    warnings: RefCell<Vec<String>>,
}

impl Notes {
    /// Nothing yet, about this file.
    pub(super) fn about(file: &Path) -> Self {
        let prefix = match file.as_os_str().is_empty() {
            true => String::new(),
            false => format!("{}: ", file.display()),
        };
        Self {
            prefix,
            ..Self::default()
        }
    }

    pub(super) fn fault(&self, sentence: impl Display) {
        let sentence = format!("{}{sentence}", self.prefix);
        self.faults.borrow_mut().push(sentence);
    }

    pub(super) fn warn(&self, sentence: impl Display) {
        let sentence = format!("{}{sentence}", self.prefix);
        self.warnings.borrow_mut().push(sentence);
    }

    pub(super) fn has_faults(&self) -> bool {
        !self.faults.borrow().is_empty()
    }

    /// Faults, and warnings.
    pub(super) fn into_parts(self) -> (Vec<String>, Vec<String>) {
        (self.faults.into_inner(), self.warnings.into_inner())
    }
}

/// Names of fields under which somebody may put a token itself.
const SECRETS: [&str; 7] = [
    "token",
    "api_key",
    "api_token",
    "key",
    "secret",
    "password",
    "authorization",
];
/// Longest time that can be asked for: a year is as good as for ever, and keeps instants computable.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);
/// Bytes that a compiled pattern may take.
const PATTERN_BYTES: usize = 1 << 20;

/// One table, and where it stands.
pub(super) struct Section<'a> {
    notes: &'a Notes,
    place: String,
    table: Option<&'a Table>,
    /// The fields that were asked for.
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    /// A table of this place; one that is not there has no fields.
    pub(super) fn new(
        notes: &'a Notes,
        place: impl Into<String>,
        value: Option<&'a Value>,
    ) -> Self {
        let place = place.into();
        let table = value.and_then(Value::as_table);
        if value.is_some() && table.is_none() {
            notes.fault(format!("{place} must be a table"));
        }
        Self {
            notes,
            place,
            table,
            known: Vec::new(),
        }
    }

    /// What is said about this table from now on calls it by this name.
    pub(super) fn call(&mut self, place: String) {
        self.place = place;
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    pub(super) fn fault(&self, sentence: impl Display) {
        self.notes.fault(format!("{}: {sentence}", self.place));
    }

    pub(super) fn warn(&self, sentence: impl Display) {
        self.notes.warn(format!("{}: {sentence}", self.place));
    }

    fn must(&self, field: &str, what: impl Display) {
        self.fault(format_args!("`{field}` must be {what}"));
    }

    /// Whether the field is given, whatever its type.
    pub(super) fn has(&self, field: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(field))
    }

    /// Whatever stands there.
    pub(super) fn value(&mut self, field: &'static str) -> Option<&'a Value> {
        self.known.push(field);
        self.table?.get(field)
    }

    /// A text with something in it.
    pub(super) fn text(&mut self, field: &'static str) -> Option<&'a str> {
        match self.value(field)? {
            Value::String(text) if !text.trim().is_empty() => Some(text),
            Value::String(_) => {
                self.must(field, "a text that is not empty; leave it out instead");
                None
            }
            _ => {
                self.must(field, "a text");
                None
            }
        }
    }

    /// A name: it stands in logs, headers and messages as it is.
    pub(super) fn name(&mut self, field: &'static str) -> Option<&'a str> {
        let name = self.text(field)?;
        if is_plain_name(name) {
            return Some(name);
        }
        self.must(
            field,
            "1 to 64 letters, digits, `.`, `_`, `-` or `@`, and no token",
        );
        None
    }

    /// A list of texts.
    pub(super) fn texts(&mut self, field: &'static str) -> Option<Vec<&'a str>> {
        let texts = self.value(field)?.as_array().and_then(|list| {
            let texts = list.iter().map(Value::as_str);
            texts.collect::<Option<Vec<_>>>()
        });
        let texts = texts.filter(|texts| texts.iter().all(|text| !text.trim().is_empty()));
        if texts.is_none() {
            self.must(field, "a list of texts, none of them empty");
        }
        texts
    }

    /// True or false.
    pub(super) fn flag(&mut self, field: &'static str) -> Option<bool> {
        let flag = self.value(field)?.as_bool();
        if flag.is_none() {
            self.must(field, "true or false");
        }
        flag
    }

    /// Sets a flag.
    pub(super) fn set_flag(&mut self, field: &'static str, into: &mut bool) {
        *into = self.flag(field).unwrap_or(*into);
    }

    /// A whole number within bounds.
    pub(super) fn whole<T: TryFrom<u64>>(
        &mut self,
        field: &'static str,
        bounds: RangeInclusive<u64>,
    ) -> Option<T> {
        let number = self.value(field)?.as_integer();
        let number = number.and_then(|number| u64::try_from(number).ok());
        let number = number.filter(|number| bounds.contains(number));
        let number = number.and_then(|number| T::try_from(number).ok());
        if number.is_none() {
            let (least, most) = bounds.into_inner();
            self.must(field, format_args!("a whole number from {least} to {most}"));
        }
        number
    }

    /// Sets a whole number.
    pub(super) fn set_whole<T: TryFrom<u64> + Copy>(
        &mut self,
        field: &'static str,
        bounds: RangeInclusive<u64>,
        into: &mut T,
    ) {
        *into = self.whole(field, bounds).unwrap_or(*into);
    }

    /// Sets a number between two others.
    pub(super) fn set_ratio(
        &mut self,
        field: &'static str,
        bounds: RangeInclusive<f64>,
        into: &mut f64,
    ) {
        let number = match self.value(field) {
            None => return,
            Some(Value::Float(number)) => Some(*number),
            // Whole numbers above 2^53 lie beyond all bounds.
            Some(Value::Integer(number)) => Some(*number as f64),
            Some(_) => None,
        };
        match number.filter(|number| bounds.contains(number)) {
            Some(number) => *into = number,
            None => {
                let (least, most) = bounds.into_inner();
                self.must(field, format_args!("a number from {least} to {most}"));
            }
        }
    }

    /// Sets a time above nothing. The field's last word is its unit.
    pub(super) fn set_time(&mut self, field: &'static str, into: &mut Duration) {
        self.set_time_from(Duration::from_nanos(1), field, into);
    }

    /// Sets a time that may be nothing. The field's last word is its unit.
    pub(super) fn set_time_or_none(&mut self, field: &'static str, into: &mut Duration) {
        self.set_time_from(Duration::ZERO, field, into);
    }

    fn set_time_from(&mut self, least: Duration, field: &'static str, into: &mut Duration) {
        let Some(value) = self.value(field) else {
            return;
        };
        let unit = match field.rsplit('_').next() {
            Some("ms") => 1_000_000,
            Some("minutes") => 60_000_000_000,
            _ => 1_000_000_000,
        };
        let nanos = scaled(value, 9).ok().map(|billionths| {
            let nanos = billionths.saturating_mul(unit) / 1_000_000_000;
            Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
        });
        match nanos.filter(|time| (least..=LONGEST).contains(time)) {
            Some(time) => *into = time,
            None if least.is_zero() => self.must(field, "a number from 0 to a year"),
            None => self.must(field, "a number above 0 and up to a year"),
        }
    }

    /// Money, exactly: US dollars in units of 10^-`decimals`, up to `most` dollars.
    pub(super) fn dollars(&mut self, field: &'static str, decimals: u32, most: u64) -> Option<u64> {
        let amount = scaled(self.value(field)?, decimals);
        let bound = u128::from(most) * 10u128.pow(decimals);
        match amount {
            Ok(amount) if amount <= bound => u64::try_from(amount).ok(),
            Err(NotScaled::TooFine) => {
                self.must(
                    field,
                    format_args!("US dollars with {decimals} decimals at most"),
                );
                None
            }
            _ => {
                self.must(field, format_args!("US dollars from 0 to {most}"));
                None
            }
        }
    }

    /// One of some names, and what it stands for.
    pub(super) fn choice<T: Copy>(
        &mut self,
        field: &'static str,
        choices: &[(&'static str, T)],
    ) -> Option<T> {
        match choose(self.value(field)?.as_str(), choices) {
            Ok(choice) => Some(choice),
            Err(what) => {
                self.must(field, what);
                None
            }
        }
    }

    /// A regular expression of bounded size that does not match every text.
    pub(super) fn pattern(&mut self, field: &'static str) -> Option<Regex> {
        let text = self.text(field)?;
        self.compile(field, text)
    }

    /// As [`Self::pattern`], of a text that stands deeper.
    pub(super) fn compile(&self, field: &str, text: &str) -> Option<Regex> {
        match compile(text) {
            Ok(pattern) => Some(pattern),
            Err(fault) => {
                self.fault(format_args!("`{field}` {fault}"));
                None
            }
        }
    }

    /// A table within, which faults call by this place.
    pub(super) fn table(&mut self, field: &'static str, place: impl Into<String>) -> Section<'a> {
        let value = self.value(field);
        Section::new(self.notes, place, value)
    }

    /// A table that stands in a list of this one.
    pub(super) fn within(&self, place: String, value: &'a Value) -> Section<'a> {
        Section::new(self.notes, place, Some(value))
    }

    /// Tables written as `[[…]]`; `title` is what the file calls them.
    pub(super) fn tables(&mut self, field: &'static str, title: &str) -> Vec<Section<'a>> {
        let Some(value) = self.value(field) else {
            return Vec::new();
        };
        let tables = value
            .as_array()
            .filter(|list| list.iter().all(Value::is_table));
        let Some(tables) = tables else {
            self.fault(format_args!(
                "`{field}` must be written as `[[{title}]]` tables"
            ));
            return Vec::new();
        };
        let places = tables.iter().enumerate();
        places
            .map(|(index, table)| {
                let place = format!("`[[{title}]]` table {}", index + 1);
                Section::new(self.notes, place, Some(table))
            })
            .collect()
    }

    /// Every field with its value, for tables whose fields the operator names.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
        self.table.into_iter().flatten()
    }

    /// Says which fields nobody asked for.
    pub(super) fn end(self) {
        for (field, _) in self.entries() {
            if self.known.contains(&field.as_str()) {
                continue;
            }
            if SECRETS.contains(&field.as_str()) {
                self.fault(format_args!(
                    "`{field}`: a secret itself may not stand in a file; put it in an environment variable and name that in `token_env`"
                ));
                continue;
            }
            self.fault(unknown_key(field, self.known.iter().copied()));
        }
    }
}

/// One of some names, and what it stands for. Errors: which there are, and the nearest.
pub(super) fn choose<T: Copy>(
    name: Option<&str>,
    choices: &[(&'static str, T)],
) -> Result<T, String> {
    let found = choices.iter().find(|(known, _)| Some(*known) == name);
    found.map(|(_, choice)| *choice).ok_or_else(|| {
        let names = choices.iter().map(|(name, _)| *name);
        let list: Vec<String> = names.clone().map(|name| format!("\"{name}\"")).collect();
        let meant = name.map(|name| nearest(name, names));
        let meant = meant.map_or(String::new(), |name| format!("; did you mean \"{name}\"?"));
        format!("one of {}{meant}", list.join(", "))
    })
}

/// What is said of a field that does not exist.
pub(super) fn unknown_key<'n>(field: &str, known: impl IntoIterator<Item = &'n str>) -> String {
    let nearest = nearest(field, known);
    match is_plain_name(field) {
        true => format!("unknown key `{field}`; did you mean `{nearest}`?"),
        false => "a key that is unknown, and no plain name".to_owned(),
    }
}

/// Whether a name may be repeated in messages, headers and logs.
pub(super) fn is_plain_name(text: &str) -> bool {
    is_name(text) && secret_in(text).is_none()
}

/// Why a number cannot be scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NotScaled {
    /// It is none, negative, or far too large.
    NoNumber,
    /// It has more decimals than there is room for.
    TooFine,
}

/// A number times 10^`decimals`, exactly: by its decimal digits as written, not by multiplying.
fn scaled(value: &Value, decimals: u32) -> Result<u128, NotScaled> {
    let text = match value {
        Value::Integer(number) => number.to_string(),
        // The shortest digits that mean this number, without an exponent.
        Value::Float(number) if number.is_finite() => number.to_string(),
        _ => return Err(NotScaled::NoNumber),
    };
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let room = usize::try_from(decimals).map_err(|_| NotScaled::NoNumber)?;
    if fraction.len() > room {
        return Err(if text.starts_with('-') {
            NotScaled::NoNumber
        } else {
            NotScaled::TooFine
        });
    }
    let digits = format!("{whole}{fraction:0<room$}");
    digits.parse().map_err(|_| NotScaled::NoNumber)
}

/// Compiles an operator's pattern. Errors: what is wrong with it, without the pattern.
fn compile(text: &str) -> Result<Regex, String> {
    let pattern = RegexBuilder::new(text)
        .size_limit(PATTERN_BYTES)
        .dfa_size_limit(PATTERN_BYTES)
        .build();
    match pattern {
        Ok(pattern) if pattern.is_match("") => {
            Err("matches every text; name what it looks for".to_owned())
        }
        Ok(pattern) => Ok(pattern),
        Err(regex::Error::CompiledTooBig(most)) => Err(format!(
            "takes more than {most} bytes when compiled; make its repetitions smaller"
        )),
        // The last line says what; those before quote the pattern.
        Err(error) => {
            let words = error.to_string();
            let last = words.lines().last().unwrap_or_default();
            let what = last.strip_prefix("error: ");
            Err(format!(
                "is not a regular expression: {}",
                what.unwrap_or("it cannot be read")
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number(text: &str) -> Value {
        let table: Table = format!("x = {text}").parse().expect("sound");
        table["x"].clone()
    }

    #[test]
    fn money_is_taken_by_its_digits() {
        for (text, decimals, expected) in [
            ("0.1", 6, Ok(100_000)),
            ("0.3", 6, Ok(300_000)),
            ("1", 9, Ok(1_000_000_000)),
            ("1e-6", 6, Ok(1)),
            ("10000.000001", 6, Ok(10_000_000_001)),
            ("0.0000001", 6, Err(NotScaled::TooFine)),
            ("-1", 6, Err(NotScaled::NoNumber)),
            ("-0.0000001", 6, Err(NotScaled::NoNumber)),
            ("nan", 6, Err(NotScaled::NoNumber)),
            ("inf", 6, Err(NotScaled::NoNumber)),
            ("1e300", 6, Err(NotScaled::NoNumber)),
        ] {
            assert_eq!(scaled(&number(text), decimals), expected, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_pattern_is_said_without_it() {
        for (pattern, expected) in [
            ("hunter(", "unclosed group"),
            ("(?:hunter){1000000}", "bytes when compiled"),
            ("(?:hunter)*", "matches every text"),
            (r"hunter\", "is not a regular expression: "),
        ] {
            let words = compile(pattern).expect_err(pattern);
            assert!(words.contains(expected), "{words}");
            assert!(!words.contains("hunter"), "{words}");
        }
    }

    proptest! {
        #[test]
        fn every_price_with_six_decimals_is_exact(micro in 0u64..=10_000_000_000) {
            let text = format!("{}.{:06}", micro / 1_000_000, micro % 1_000_000);
            prop_assert_eq!(scaled(&number(&text), 6), Ok(u128::from(micro)));
        }
    }
}
