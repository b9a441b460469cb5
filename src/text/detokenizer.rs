//! Incremental detokenizing: one id in, the text it completes out.
//!
//! Decoding all ids anew at each step costs O(length), and decoding each id alone loses the space in
//! front of a word and breaks characters whose bytes are spread over tokens. So a token that stands for
//! bytes is collected until a character is whole, and a token that stands for text is decoded behind the
//! one before it. For well-formed output this gives the same pieces, token by token, as the prefix and
//! read offsets of TGI's `decode_token`: a token that ends inside a character emits nothing, and the one
//! that ends on a boundary emits all that was held. It differs where TGI holds back without end: bytes
//! that can no longer become a character turn into U+FFFD at once, and after [`MAX_HELD`] silent tokens
//! the finished characters leave although another has begun. The generated text is collected beside,
//! without special tokens, from the same pieces. Nothing here ever emits half a character.

use super::tokenizer::Piece;
use super::{TextError, Tokenizer};
use crate::generation::TokenId;

/// Tokens in a row that may emit nothing; one more than a character of four one-byte tokens needs.
const MAX_HELD: usize = 4;

/// What one token emits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Emission {
    /// The token's text; that of a special token is spelled out.
    pub text: String,
    /// Bytes at the start of `text` that belong to the generated text: all, except that of a special
    /// token only what was held back before it counts.
    pub generated_bytes: usize,
}

impl Emission {
    /// The part that belongs to the generated text.
    pub fn generated(&self) -> &str {
        &self.text[..self.generated_bytes]
    }
}

/// Turns the ids of one sequence into text as they are generated.
///
/// Invariants: every emitted text is whole characters; [`Detokenizer::generated_text`] is the
/// concatenation of all [`Emission::generated`] and of what [`Detokenizer::finish`] returned.
#[derive(Debug, Clone)]
pub struct Detokenizer {
    tokenizer: Tokenizer,
    /// The last token of the vocabulary seen, which says that the next one is not the first of a text.
    previous: Option<TokenId>,
    /// Whole characters that wait for the unfinished one behind them.
    ready: String,
    /// The first bytes of a character whose end is still to come, at most 3.
    unfinished: Vec<u8>,
    /// Tokens since the last that emitted something.
    held: usize,
    generated: String,
}

impl Detokenizer {
    /// Starts behind a prompt whose last ids are `prompt_tail`; one id is enough, none means no prompt.
    pub fn new(tokenizer: Tokenizer, prompt_tail: &[TokenId]) -> Self {
        let mut known = prompt_tail.iter().rev().copied();
        let previous = known.find(|id| tokenizer.piece(*id).is_some());
        Self {
            tokenizer,
            previous,
            ready: String::new(),
            unfinished: Vec::new(),
            held: 0,
            generated: String::new(),
        }
    }

    /// Takes the next generated id and returns the text it completes.
    ///
    /// The text is empty while a character is incomplete, and for an id outside the vocabulary. A special
    /// token ends the character before it, whose bytes are dropped as at the end of a sequence; any other
    /// token that cannot continue the character turns them into U+FFFD.
    ///
    /// Errors: [`TextError::Decode`] when the tokenizer's parts disagree.
    /// Cost: decodes at most three ids; independent of the sequence's length.
    /// Source: `Model.decode_token` of TGI's `server/text_generation_server/models/model.py`.
    pub fn push(&mut self, id: TokenId) -> Result<Emission, TextError> {
        let Some(piece) = self.tokenizer.piece(id) else {
            return Ok(Emission::default());
        };
        if self.tokenizer.is_special(id) {
            let mut text = self.finish();
            let generated_bytes = text.len();
            match piece {
                Piece::Bytes(bytes) => text += &String::from_utf8_lossy(&bytes),
                Piece::Text => text += &self.text_of(id)?,
            }
            self.previous = Some(id);
            return Ok(Emission {
                text,
                generated_bytes,
            });
        }
        match piece {
            Piece::Bytes(bytes) => {
                self.unfinished.extend(bytes);
                take_characters(&mut self.unfinished, &mut self.ready);
            }
            Piece::Text => {
                if !self.unfinished.is_empty() {
                    self.unfinished.clear();
                    self.ready.push(char::REPLACEMENT_CHARACTER);
                }
                self.ready += &self.text_of(id)?;
            }
        }
        self.previous = Some(id);
        self.held += 1;
        if !self.unfinished.is_empty() && self.held < MAX_HELD {
            return Ok(Emission::default());
        }
        let text = self.release();
        Ok(Emission {
            generated_bytes: text.len(),
            text,
        })
    }

    /// Ends the sequence: returns the whole characters still held back and drops an unfinished one.
    ///
    /// The text is empty unless the last token ended inside a character and had others before it.
    pub fn finish(&mut self) -> String {
        self.unfinished.clear();
        self.release()
    }

    /// The generated text emitted so far, without special tokens.
    pub fn generated_text(&self) -> &str {
        &self.generated
    }

    /// Takes the whole characters held back as emitted.
    fn release(&mut self) -> String {
        self.held = 0;
        let text = std::mem::take(&mut self.ready);
        self.generated += &text;
        text
    }

    /// The text of a token that stands for text, at the place reached.
    fn text_of(&self, id: TokenId) -> Result<String, TextError> {
        match self.previous {
            Some(previous) => self.tokenizer.text_after(previous, id),
            None => self.tokenizer.token_text(id),
        }
    }
}

/// Moves every finished character from `bytes` to `text`, each broken run as one U+FFFD.
///
/// What remains is a proper prefix of a well-formed character.
/// Source: substitution of maximal subparts, Unicode 16 §3.9 (U+FFFD).
fn take_characters(bytes: &mut Vec<u8>, text: &mut String) {
    let mut taken = 0;
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        taken += chunk.valid().len();
        let broken = chunk.invalid();
        if broken.is_empty() {
            continue;
        }
        let is_last = taken + broken.len() == bytes.len();
        if is_last && is_unfinished(broken) {
            break;
        }
        text.push(char::REPLACEMENT_CHARACTER);
        taken += broken.len();
    }
    bytes.drain(..taken);
}

/// Whether more bytes could make `bytes` one well-formed character.
fn is_unfinished(bytes: &[u8]) -> bool {
    matches!(std::str::from_utf8(bytes), Err(error) if error.valid_up_to() == 0 && error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `bytes` one by one and returns what each completes.
    fn feed(bytes: &[u8]) -> Vec<String> {
        let mut held = Vec::new();
        bytes
            .iter()
            .map(|byte| {
                let mut text = String::new();
                held.push(*byte);
                take_characters(&mut held, &mut text);
                assert!(held.len() <= 3);
                text
            })
            .collect()
    }

    #[test]
    fn a_character_leaves_with_its_last_byte() {
        assert_eq!(feed("🙂".as_bytes()), ["", "", "", "🙂"]);
        assert_eq!(feed("é€".as_bytes()), ["", "é", "", "", "€"]);
    }

    #[test]
    fn broken_bytes_do_not_wait() {
        assert_eq!(feed(b"\xFF\xFFa"), ["\u{FFFD}", "\u{FFFD}", "a"]);
        assert_eq!(feed(b"\xE2\x82a"), ["", "", "\u{FFFD}a"]);
        assert_eq!(feed(b"\xE2\xE2\x82\xAC"), ["", "\u{FFFD}", "", "€"]);
    }

    #[test]
    fn the_same_as_replacing_in_the_whole() {
        let mut state = 1_u32;
        for length in 0..2000 {
            let bytes: Vec<u8> = (0..length % 40)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    [
                        0x61, 0xC3, 0xA9, 0xE2, 0x82, 0xAC, 0xF0, 0x9F, 0xED, 0xA0, 0xFF,
                    ][(state >> 16) as usize % 11]
                })
                .collect();
            let mut text: String = feed(&bytes).concat();
            let whole = String::from_utf8_lossy(&bytes).into_owned();
            if text != whole {
                text.push(char::REPLACEMENT_CHARACTER);
            }
            assert_eq!(text, whole, "{bytes:x?}");
        }
    }
}
