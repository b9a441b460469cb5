//! Single tokens as upstreams tell them beside their text.

use serde_json::Value as Json;

use crate::generation::{TokenId, TokenInfo};

/// One token as told.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    id: Option<TokenId>,
    text: String,
    /// Its own bytes, which need not be whole characters.
    bytes: Option<Vec<u8>>,
    logprob: Option<f32>,
    top: Vec<TokenInfo>,
}

/// One token with what it adds to the text.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) id: Option<TokenId>,
    /// Empty while a character is incomplete.
    pub(super) adds: String,
    pub(super) logprob: Option<f32>,
    pub(super) top: Vec<TokenInfo>,
}

/// Reads `logprobs` and `token_ids` of a choice, in either of OpenAI's two forms.
pub(super) fn read(choice: &Json) -> Vec<Entry> {
    let logprobs = &choice["logprobs"];
    let mut entries: Vec<Entry> = match (&logprobs["content"], &logprobs["tokens"]) {
        (Json::Array(tokens), _) => tokens.iter().map(entry).collect(),
        (_, Json::Array(tokens)) => tokens
            .iter()
            .enumerate()
            .map(|(at, token)| legacy(token, at, logprobs))
            .collect(),
        _ => Vec::new(),
    };
    let ids: Vec<Option<TokenId>> = choice["token_ids"]
        .as_array()
        .into_iter()
        .flatten()
        .map(id)
        .collect();
    if entries.is_empty() && ids.len() == 1 {
        entries.push(Entry {
            id: None,
            text: String::new(),
            bytes: None,
            logprob: None,
            top: Vec::new(),
        });
    }
    if entries.len() == ids.len() {
        for (entry, id) in entries.iter_mut().zip(ids) {
            entry.id = id.or(entry.id);
        }
    }
    entries
}

fn id(value: &Json) -> Option<TokenId> {
    u32::try_from(value.as_u64()?).ok().map(TokenId)
}

/// vLLM writes `token_id:17` for a token's text when asked to.
fn id_in(text: &str) -> Option<TokenId> {
    text.strip_prefix("token_id:")?.parse().ok().map(TokenId)
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "probabilities have no 53 bits"
)]
pub(super) fn logprob(value: &Json) -> Option<f32> {
    value.as_f64().map(|x| x as f32).filter(|x| x.is_finite())
}

fn info(told: &Json) -> TokenInfo {
    let text = told["token"].as_str().unwrap_or_default();
    let named = id_in(text);
    TokenInfo {
        id: id(&told["id"]).or(named),
        // An id in its place is no text.
        text: named.map_or(text, |_| "").to_owned(),
        logprob: logprob(&told["logprob"]),
        special: false,
    }
}

fn entry(told: &Json) -> Entry {
    let TokenInfo {
        id, text, logprob, ..
    } = info(told);
    let bytes = told["bytes"].as_array().map(|bytes| {
        let byte = |b: &Json| b.as_u64().and_then(|b| u8::try_from(b).ok());
        bytes.iter().map(byte).collect::<Option<Vec<u8>>>()
    });
    Entry {
        id,
        text,
        bytes: bytes.flatten(),
        logprob,
        top: told["top_logprobs"]
            .as_array()
            .into_iter()
            .flatten()
            .map(info)
            .collect(),
    }
}

/// The form of the old completions: lists side by side.
fn legacy(token: &Json, at: usize, logprobs: &Json) -> Entry {
    let text = token.as_str().unwrap_or_default().to_owned();
    let top = logprobs["top_logprobs"][at].as_object();
    let mut top: Vec<TokenInfo> = top
        .into_iter()
        .flatten()
        .map(|(text, value)| TokenInfo {
            id: id_in(text),
            text: text.clone(),
            logprob: logprob(value),
            special: false,
        })
        .collect();
    top.sort_by(|a, b| {
        f32::total_cmp(
            &b.logprob.unwrap_or(f32::MIN),
            &a.logprob.unwrap_or(f32::MIN),
        )
    });
    Entry {
        id: id_in(&text),
        text,
        bytes: None,
        logprob: logprob(&logprobs["token_logprobs"][at]),
        top,
    }
}

/// Divides a text among the tokens it is made of; none when they do not make it up.
///
/// `partial` holds the beginning of a character from the tokens before.
pub(super) fn split(entries: Vec<Entry>, text: &str, partial: &mut Vec<u8>) -> Option<Vec<Token>> {
    if entries.is_empty() {
        return None;
    }
    let mut adds = made_of(&entries, text, partial);
    // A single token has the whole text, however its own is written.
    if adds.is_none() && entries.len() == 1 {
        partial.clear();
        adds = Some(vec![text.to_owned()]);
    }
    let adds = adds?;
    let token = |(entry, adds): (Entry, String)| Token {
        id: entry.id,
        adds,
        logprob: entry.logprob,
        top: entry.top,
    };
    Some(entries.into_iter().zip(adds).map(token).collect())
}

fn made_of(entries: &[Entry], text: &str, partial: &mut Vec<u8>) -> Option<Vec<String>> {
    let plain: Vec<String> = entries.iter().map(|entry| entry.text.clone()).collect();
    if partial.is_empty() && plain.concat() == text {
        return Some(plain);
    }
    let mut open = std::mem::take(partial);
    let mut adds = Vec::with_capacity(entries.len());
    for entry in entries {
        match &entry.bytes {
            Some(bytes) => open.extend(bytes),
            None => open.extend(entry.text.bytes()),
        }
        let whole = match std::str::from_utf8(&open) {
            Ok(_) => open.len(),
            Err(error) => error.valid_up_to(),
        };
        let rest = open.split_off(whole);
        adds.push(String::from_utf8(std::mem::replace(&mut open, rest)).ok()?);
    }
    let fits = adds.concat() == text && open.len() < 4;
    fits.then(|| {
        *partial = open;
        adds
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn texts(choice: Json, text: &str, partial: &mut Vec<u8>) -> Option<Vec<String>> {
        let split = split(read(&choice), text, partial)?;
        Some(split.into_iter().map(|token| token.adds).collect())
    }

    #[test]
    fn a_character_of_two_tokens_belongs_to_the_second() {
        let mut partial = Vec::new();
        let first = json!({"logprobs": {"content": [
            {"token": "a", "logprob": -0.5, "bytes": [97]},
            {"token": "\u{FFFD}", "logprob": -0.5, "bytes": [0xC3]},
        ]}});
        let expected = Some(vec!["a".to_owned(), String::new()]);
        assert_eq!(texts(first, "a", &mut partial), expected);
        let second = json!({"logprobs": {"content": [
            {"token": "\u{FFFD}", "logprob": -0.5, "bytes": [0xA9]},
        ]}});
        assert_eq!(texts(second, "é", &mut partial), Some(vec!["é".to_owned()]));
        assert!(partial.is_empty());
    }

    #[test]
    fn tokens_that_do_not_make_up_the_text_are_not_told() {
        let choice = json!({"logprobs": {"content": [
            {"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -0.5},
        ]}});
        assert_eq!(texts(choice, "abc", &mut Vec::new()), None);
    }

    #[test]
    fn ids_are_found_in_all_three_places() {
        let ids = |choice: Json| -> Vec<Option<u32>> {
            read(&choice)
                .into_iter()
                .map(|e| e.id.map(|id| id.0))
                .collect()
        };
        assert_eq!(
            ids(json!({"logprobs": {"tokens": ["token_id:7"]}})),
            [Some(7)]
        );
        assert_eq!(
            ids(json!({"logprobs": {"content": [{"token": "x", "id": 8}]}})),
            [Some(8)]
        );
        assert_eq!(
            ids(json!({"token_ids": [1, 2], "logprobs": {"tokens": ["a", "b"]}})),
            [Some(1), Some(2)]
        );
        assert_eq!(ids(json!({"token_ids": [3]})), [Some(3)]);
        assert_eq!(ids(json!({"token_ids": [3, 4]})), []);
    }
}
