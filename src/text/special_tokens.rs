//! The special tokens a model's configuration names, read from `tokenizer_config.json`.
//!
//! `tokenizer.json` says which tokens exist, but not which of them is BOS or EOS, nor whether BOS goes
//! in front of a prompt: that is written beside it. Only those facts are kept; the chat template, which
//! stands in the same file, is none of this module's business.

use std::collections::BTreeMap;

use serde_json::Value;

use super::TextError;

/// Roles of special tokens, by their text.
///
/// The default names nothing and leaves BOS and EOS to the template inside `tokenizer.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Beginning of sequence.
    pub bos: Option<String>,
    /// End of sequence.
    pub eos: Option<String>,
    /// Every other special token: unknown, padding, separators and the additional ones.
    pub others: Vec<String>,
    /// The same by the names templates know them under, such as `bos_token`; the additional ones have none.
    pub roles: BTreeMap<String, String>,
    /// Whether BOS goes in front of an encoded prompt; `None` leaves it to `tokenizer.json`.
    pub add_bos: Option<bool>,
    /// Whether EOS goes behind an encoded prompt; `None` leaves it to `tokenizer.json`.
    pub add_eos: Option<bool>,
}

impl SpecialTokens {
    /// Reads the roles from `tokenizer_config.json`, and from `special_tokens_map.json` those the first leaves open.
    ///
    /// A token is written as a string or as an object with a `content` string; `null` means none.
    ///
    /// Errors: [`TextError::InvalidFile`] when a file is not a JSON object.
    pub fn from_json(
        tokenizer_config: Option<&[u8]>,
        special_tokens_map: Option<&[u8]>,
    ) -> Result<Self, TextError> {
        let config = parse("tokenizer_config.json", tokenizer_config)?;
        let map = parse("special_tokens_map.json", special_tokens_map)?;
        let role = |name: &str| content(&config[name]).or_else(|| content(&map[name]));
        let roles: BTreeMap<String, String> = ROLES
            .into_iter()
            .filter_map(|name| Some((name.to_owned(), role(name)?)))
            .collect();
        let mut others: Vec<String> = roles
            .iter()
            .filter(|(name, _)| !["bos_token", "eos_token"].contains(&name.as_str()))
            .map(|(_, token)| token.clone())
            .collect();
        for file in [&config, &map] {
            let listed = file["additional_special_tokens"].as_array();
            others.extend(listed.into_iter().flatten().filter_map(content));
        }
        others.sort();
        others.dedup();
        Ok(Self {
            bos: role("bos_token"),
            eos: role("eos_token"),
            others,
            roles,
            add_bos: config["add_bos_token"].as_bool(),
            add_eos: config["add_eos_token"].as_bool(),
        })
    }
}

/// The names of roles; `transformers` gives templates those that have a token.
const ROLES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// Parses one file; a missing one reads as an empty object.
fn parse(file: &'static str, bytes: Option<&[u8]>) -> Result<Value, TextError> {
    let invalid = |reason: String| TextError::InvalidFile { file, reason };
    let value = match bytes {
        None => Value::Object(serde_json::Map::new()),
        Some(bytes) => serde_json::from_slice(bytes).map_err(|error| invalid(error.to_string()))?,
    };
    if value.is_object() {
        Ok(value)
    } else {
        Err(invalid("not a JSON object".to_owned()))
    }
}

/// The text of a token written either way.
fn content(token: &Value) -> Option<String> {
    token
        .as_str()
        .or_else(|| token["content"].as_str())
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_spellings_and_fills_gaps_from_the_map() {
        let config = br#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": null,
            "pad_token": "<pad>", "add_bos_token": false, "additional_special_tokens": ["<a>", {"content": "<b>"}]}"#;
        let map = br#"{"eos_token": "</s>", "bos_token": "<ignored>", "additional_special_tokens": ["<a>"]}"#;
        let tokens = SpecialTokens::from_json(Some(config), Some(map)).unwrap();
        assert_eq!(
            tokens,
            SpecialTokens {
                bos: Some("<s>".into()),
                eos: Some("</s>".into()),
                others: vec!["<a>".into(), "<b>".into(), "<pad>".into()],
                roles: [
                    ("bos_token", "<s>"),
                    ("eos_token", "</s>"),
                    ("pad_token", "<pad>")
                ]
                .map(|(role, token)| (role.to_owned(), token.to_owned()))
                .into(),
                add_bos: Some(false),
                add_eos: None,
            }
        );
    }

    #[test]
    fn nothing_given_names_nothing() {
        assert_eq!(
            SpecialTokens::from_json(None, None).unwrap(),
            SpecialTokens::default()
        );
    }

    #[test]
    fn a_broken_file_is_named() {
        let error = SpecialTokens::from_json(None, Some(b"[]")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "invalid special_tokens_map.json: not a JSON object"
        );
        let error = SpecialTokens::from_json(Some(b"{"), None).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("invalid tokenizer_config.json: "),
            "{error}"
        );
    }
}
