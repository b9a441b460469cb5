//! One answer's text: tokens in, text out, up to a stop string.
//!
//! What has been handed out is never taken back. Under the rule that drops the stop string, whatever may
//! become the beginning of one is therefore held back until that is known.

use crate::generation::{StopRule, TokenId};
use crate::text::{Detokenizer, StopMatcher, StopOutcome, TextError};

/// What one token adds to an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Piece {
    /// The token's own text; that of a special token is spelled out. It ends with a stop string that stays.
    pub(super) token_text: String,
    /// What is certain by now of the generated text: the token's, behind what earlier ones held back.
    pub(super) text: String,
    /// The stop string that has ended the answer with it.
    pub(super) stopped: Option<String>,
}

/// Collects an answer's text.
///
/// Invariants: the generated text is the concatenation of all pieces' `text`.
#[derive(Debug)]
pub(super) struct Transcript {
    detokenizer: Detokenizer,
    stop: StopMatcher,
    rule: StopRule,
    /// Text that may turn out to begin a stop string.
    held: String,
    generated: String,
}

impl Transcript {
    pub(super) fn new(detokenizer: Detokenizer, stops: &[String], rule: StopRule) -> Self {
        Self {
            detokenizer,
            stop: StopMatcher::new(stops),
            rule,
            held: String::new(),
            generated: String::new(),
        }
    }

    /// Takes a token; with the `last` one everything held back comes out.
    ///
    /// Errors: the tokenizer's parts disagree.
    pub(super) fn push(&mut self, id: TokenId, last: bool) -> Result<Piece, TextError> {
        let emission = self.detokenizer.push(id)?;
        let mut fresh = emission.text;
        let special = fresh.split_off(emission.generated_bytes);
        let mut outcome = self.stop.push(&fresh);
        if last {
            let before = fresh.len();
            let rest = self.detokenizer.finish();
            if let StopOutcome::None = outcome {
                outcome = match self.stop.push(&rest) {
                    StopOutcome::Matched {
                        keep_bytes,
                        stop_bytes,
                    } => StopOutcome::Matched {
                        keep_bytes: before + keep_bytes,
                        stop_bytes,
                    },
                    StopOutcome::None => StopOutcome::None,
                };
            }
            fresh += &rest;
        }
        let mut stopped = None;
        let (token_text, text) = match (self.rule, outcome) {
            // TGI looks at length and EOS first, and at stop strings only if neither ends the answer.
            (
                StopRule::Keep,
                StopOutcome::Matched {
                    keep_bytes,
                    stop_bytes,
                },
            ) if !last => {
                fresh.truncate(keep_bytes);
                let whole = format!("{}{fresh}", self.generated);
                stopped = Some(whole[whole.len() - stop_bytes..].to_owned());
                (fresh.clone(), fresh)
            }
            (StopRule::Keep, _) => (fresh.clone() + &special, fresh),
            (
                StopRule::Drop,
                StopOutcome::Matched {
                    keep_bytes,
                    stop_bytes,
                },
            ) => {
                let mut text = std::mem::take(&mut self.held);
                text += &fresh[..keep_bytes];
                stopped = Some(text.split_off(text.len() - stop_bytes));
                (fresh + &special, text)
            }
            (StopRule::Drop, StopOutcome::None) => {
                let mut text = std::mem::take(&mut self.held);
                text += &fresh;
                if !last {
                    self.held = text.split_off(text.len() - self.stop.held_back());
                }
                (fresh + &special, text)
            }
        };
        self.generated += &text;
        Ok(Piece {
            token_text,
            text,
            stopped,
        })
    }

    /// The text handed out so far, without special tokens.
    pub(super) fn generated_text(&self) -> &str {
        &self.generated
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value as Json, json};

    use super::*;
    use crate::text::{SpecialTokens, Tokenizer};

    /// Letters, a space, a pair, the bytes of `é` and of an emoji one by one, and a special token.
    const TOKENS: [&str; 11] = ["<|end|>", "a", "b", "Ġ", "ab", "Ã", "©", "ð", "Ł", "Ļ", "Ĥ"];

    fn tokenizer() -> Tokenizer {
        let vocab: Map<String, Json> = TOKENS
            .iter()
            .zip(0..)
            .map(|(token, id): (_, u32)| ((*token).to_owned(), json!(id)))
            .collect();
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
            "added_tokens": [{"id": 0, "content": "<|end|>", "special": true, "single_word": false,
                              "lstrip": false, "rstrip": false, "normalized": false}],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            "model": {"type": "BPE", "vocab": vocab, "merges": []},
        });
        Tokenizer::from_json(file.to_string().as_bytes(), SpecialTokens::default()).unwrap()
    }

    fn pieces(ids: &[u32], stops: &[&str], rule: StopRule) -> (Vec<String>, String, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut transcript = Transcript::new(Detokenizer::new(tokenizer(), &[]), &stops, rule);
        let mut texts = Vec::new();
        let mut joined = String::new();
        let mut stopped = false;
        for (i, id) in ids.iter().enumerate() {
            let piece = transcript.push(TokenId(*id), i + 1 == ids.len()).unwrap();
            joined += &piece.text;
            texts.push(piece.text);
            if let Some(stop) = piece.stopped {
                assert!(stops.contains(&stop), "{stop:?}");
                stopped = true;
                break;
            }
        }
        assert_eq!(joined, transcript.generated_text());
        (texts, joined, stopped)
    }

    #[test]
    fn a_stop_string_stays_or_goes() {
        let ids = [1, 2, 1, 1, 2, 2, 1];
        let (texts, text, stopped) = pieces(&ids, &["aab"], StopRule::Keep);
        assert_eq!(
            (texts.join("|").as_str(), text.as_str(), stopped),
            ("a|b|a|a|b", "abaab", true)
        );
        let (texts, text, stopped) = pieces(&ids, &["aab"], StopRule::Drop);
        assert_eq!(
            (texts.join("|").as_str(), text.as_str(), stopped),
            ("|ab|||", "ab", true)
        );
    }

    #[test]
    fn what_was_held_back_comes_out_with_the_last_token() {
        let (texts, text, stopped) = pieces(&[1, 3, 1], &[" ab"], StopRule::Drop);
        assert_eq!(
            (texts.join("|").as_str(), text.as_str(), stopped),
            ("a|| a", "a a", false)
        );
        // A special token ends the answer; its own text is none of the generated one.
        let (texts, text, _) = pieces(&[1, 3, 0], &[" ab"], StopRule::Drop);
        assert_eq!((texts.join("|").as_str(), text.as_str()), ("a|| ", "a "));
    }

    #[test]
    fn a_stop_string_at_the_last_token_goes_too() {
        let (_, text, stopped) = pieces(&[1, 2], &["b"], StopRule::Drop);
        assert_eq!((text.as_str(), stopped), ("a", true));
        let (_, text, stopped) = pieces(&[1, 2], &["b"], StopRule::Keep);
        assert_eq!((text.as_str(), stopped), ("ab", false));
    }

    proptest! {
        #[test]
        fn pieces_make_up_the_text_to_the_stop_string(
            ids in prop::collection::vec(0..TOKENS.len() as u32, 1..30),
            stops in prop::collection::vec("[abé🙂 ]{0,3}", 0..4),
            drops in any::<bool>(),
        ) {
            let rule = if drops { StopRule::Drop } else { StopRule::Keep };
            let stops: Vec<&str> = stops.iter().map(String::as_str).filter(|stop| !stop.is_empty()).collect();
            let (_, text, stopped) = pieces(&ids, &stops, rule);
            let (_, whole, _) = pieces(&ids, &[], rule);
            prop_assert!(whole.starts_with(&text));
            let ends = (1..=whole.len())
                .filter(|end| whole.is_char_boundary(*end))
                .find_map(|end| {
                    let at_end = stops.iter().filter(|stop| whole[..end].ends_with(**stop));
                    at_end.map(|stop| stop.len()).max().map(|len| (end - len, end))
                });
            match (rule, ends) {
                (_, None) => prop_assert_eq!((text, stopped), (whole, false)),
                (StopRule::Drop, Some((start, _))) => prop_assert_eq!((text.as_str(), stopped), (&whole[..start], true)),
                (StopRule::Keep, Some((_, end))) if stopped => prop_assert_eq!(text.as_str(), &whole[..end]),
                (StopRule::Keep, Some(_)) => prop_assert_eq!(text, whole),
            }
        }
    }
}
