//! Whether an answer made elsewhere has the shape that was asked for.
//!
//! The local engine cannot write anything else; an upstream's word for it is not enough, so its answers are
//! checked here.

use serde_json::Value as Json;

use crate::generation::Grammar;

/// What is wrong with an answer's text; none when it has the shape, or when the shape cannot be checked by
/// reading the text alone.
pub(super) fn violation(shape: &Grammar, text: &str) -> Option<String> {
    let schema = match shape {
        Grammar::JsonSchema(schema) => serde_json::from_str(schema).ok(),
        Grammar::TgiSchema(schema) => match serde_json::from_str(schema).ok() {
            Some(Json::String(inner)) => serde_json::from_str(&inner).ok(),
            other => other,
        },
        Grammar::JsonObject => None,
        Grammar::Regex(pattern) => {
            let whole = regex::Regex::new(&format!("^(?:{pattern})$")).ok()?;
            return (!whole.is_match(text))
                .then(|| "the answer does not match the pattern".to_owned());
        }
        Grammar::Lark(_) => return None,
    };
    let answer: Json = match serde_json::from_str(text.trim()) {
        Ok(answer) => answer,
        Err(_) => return Some("the answer is not JSON".to_owned()),
    };
    let Some(schema) = schema else {
        return (!answer.is_object()).then(|| "the answer is not a JSON object".to_owned());
    };
    let validator = jsonschema::validator_for(&schema).ok()?;
    let place = validator
        .iter_errors(&answer)
        .next()?
        .instance_path()
        .to_string();
    let place = if place.is_empty() { "/" } else { &place };
    Some(format!("the answer breaks the schema at `{place}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_held_against_the_shape() {
        let schema =
            r#"{"type":"object","properties":{"age":{"type":"integer"}},"required":["age"]}"#;
        let object = Grammar::JsonSchema(schema.to_owned());
        assert_eq!(violation(&object, r#" {"age": 3} "#), None);
        for (answer, about) in [
            ("{\"age\": \"3\"}", "`/age`"),
            ("{}", "`/`"),
            ("{\"age\": 3", "not JSON"),
            ("", "not JSON"),
        ] {
            let problem = violation(&object, answer).expect("a violation");
            assert!(problem.contains(about), "{answer}: {problem}");
        }
        let quoted = serde_json::to_string(schema).expect("a string");
        let quoted = Grammar::TgiSchema(quoted);
        assert_eq!(violation(&quoted, r#"{"age": 3}"#), None);
        assert!(violation(&quoted, "{}").is_some());
        assert_eq!(violation(&Grammar::JsonObject, "{}"), None);
        assert!(violation(&Grammar::JsonObject, "[]").is_some());
        let digits = Grammar::Regex("[0-9]+|none".to_owned());
        assert_eq!(violation(&digits, "12"), None);
        assert_eq!(violation(&digits, "none"), None);
        assert!(violation(&digits, "12a").is_some());
    }
}
