//! JSON as upstreams really send it: characters beyond the basic plane may be cut into halves.
//!
//! A server that cuts its text between two UTF-16 units sends one half (`\ud83d`) in one event and the other
//! in the next. Neither is a character, so a strict reader refuses both; here they are joined.

use serde_json::Value as Json;

/// Where the halves stand in a text that was mended: private code points of plane 15.
const HIGH: u32 = 0xF_0000;
const LOW: u32 = HIGH + 0x400;
const END: u32 = LOW + 0x400;

/// Reads one JSON value; also says whether its texts hold halves of characters, to be joined by a [`Joiner`].
pub(super) fn parse(data: &str) -> Option<(Json, bool)> {
    match serde_json::from_str(data) {
        Ok(value) => Some((value, false)),
        Err(_) => {
            let mended = mend(data)?;
            Some((serde_json::from_str(&mended).ok()?, true))
        }
    }
}

/// The same JSON with private characters for lone halves; none when there are none.
fn mend(data: &str) -> Option<String> {
    let mut mended = String::with_capacity(data.len());
    let mut rest = data;
    let mut found = false;
    while let Some(at) = rest.find('\\') {
        mended += &rest[..at];
        rest = &rest[at..];
        let width = match half(rest) {
            Some(high @ 0xD800..0xDC00) => match rest.get(6..).and_then(half) {
                Some(0xDC00..0xE000) => 12,
                _ => {
                    found = true;
                    mended.extend(char::from_u32(HIGH + high - 0xD800));
                    rest = &rest[6..];
                    continue;
                }
            },
            Some(low @ 0xDC00..0xE000) => {
                found = true;
                mended.extend(char::from_u32(LOW + low - 0xDC00));
                rest = &rest[6..];
                continue;
            }
            Some(_) => 6,
            // The backslash and the character it escapes, however wide.
            None => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
        };
        mended += &rest[..width];
        rest = &rest[width..];
    }
    mended += rest;
    found.then_some(mended)
}

/// The UTF-16 unit that an escape at the beginning of a text stands for.
fn half(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    let hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
    u32::from_str_radix(digits, 16).ok().filter(|_| hex)
}

/// Joins the halves of characters along one text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Joiner {
    high: Option<u32>,
}

impl Joiner {
    /// The text with what can be joined joined; a half that stays alone becomes U+FFFD.
    pub(super) fn push(&mut self, text: &str, marked: bool) -> String {
        if (!marked && self.high.is_none()) || text.is_empty() {
            return text.to_owned();
        }
        let mut joined = String::with_capacity(text.len());
        for c in text.chars() {
            match u32::from(c) {
                unit @ HIGH..LOW if marked => {
                    joined += &self.finish();
                    self.high = Some(unit - HIGH);
                }
                unit @ LOW..END if marked => {
                    let whole = self.high.take().map(|high| {
                        let low = unit - LOW;
                        char::from_u32(0x1_0000 + (high << 10) + low)
                    });
                    joined.push(whole.flatten().unwrap_or(char::REPLACEMENT_CHARACTER));
                }
                _ => {
                    joined += &self.finish();
                    joined.push(c);
                }
            }
        }
        joined
    }

    /// What is left of a character whose other half never came.
    pub(super) fn finish(&mut self) -> String {
        match self.high.take() {
            Some(_) => char::REPLACEMENT_CHARACTER.to_string(),
            None => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(events: &[&str]) -> String {
        let mut joiner = Joiner::default();
        let mut text = String::new();
        for event in events {
            let (value, marked) = parse(event).expect("JSON, as upstreams write it");
            text += &joiner.push(value.as_str().expect("a string"), marked);
        }
        text + &joiner.finish()
    }

    #[test]
    fn halves_of_characters_find_each_other_across_events() {
        assert_eq!(joined(&[r#""a\ud83d""#, r#""\ude00b""#]), "a😀b");
        assert_eq!(joined(&[r#""\ud83d""#, r#""""#, r#""\ude00""#]), "😀");
        assert_eq!(joined(&[r#""\ud83d\ude00\ud83d""#, r#""\uDE01""#]), "😀😁");
        assert_eq!(joined(&[r#""\ud83d\ude00""#]), "😀");
    }

    #[test]
    fn a_half_that_stays_alone_is_replaced_and_takes_nothing_with_it() {
        assert_eq!(joined(&[r#""a\ud83d""#, r#""b""#]), "a\u{FFFD}b");
        assert_eq!(joined(&[r#""\ude00x\n\"\\""#]), "\u{FFFD}x\n\"\\");
        assert_eq!(joined(&[r#""\ud83d""#]), "\u{FFFD}");
        assert_eq!(joined(&[r#""\ud83d\ud83d\ude00""#]), "\u{FFFD}😀");
    }

    #[test]
    fn what_is_broken_otherwise_is_no_json() {
        for data in ["{", r#"{"a": "\ud83d""#, "\\", r"\u", "", "\"\\ud8", "\\é"] {
            assert_eq!(parse(data), None);
        }
    }
}
