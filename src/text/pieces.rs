//! What one token adds to a text: raw bytes, or text that depends on its neighbours.
//!
//! A decoder turns ids into a `String`, and that hides which bytes were incomplete and which were
//! wrong. Two kinds of token carry bytes: all tokens of a byte-level vocabulary (GPT-2 and its
//! descendants) and the `<0x..>` tokens of a SentencePiece vocabulary with byte fallback. Their bytes
//! are read here, from the token's own spelling, so that an unfinished character can be told from a
//! broken one. Every other token is text already and cannot end inside a character.

use tokenizers::DecoderWrapper;

/// How a tokenizer's decoder turns a token into text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decoding {
    /// Each character of a token stands for one byte.
    ByteLevel,
    /// Tokens spelled `<0xHH>` stand for one byte; the others are text.
    ByteFallback,
    /// Tokens are text.
    Text,
}

impl Decoding {
    /// Reads the kind off a decoder; one byte-level or fallback step inside a sequence decides it.
    pub(super) fn of(decoder: Option<&DecoderWrapper>) -> Self {
        match decoder {
            Some(DecoderWrapper::ByteLevel(_)) => Self::ByteLevel,
            Some(DecoderWrapper::ByteFallback(_)) => Self::ByteFallback,
            Some(DecoderWrapper::Sequence(sequence)) => sequence
                .get_decoders()
                .iter()
                .map(|decoder| Self::of(Some(decoder)))
                .find(|kind| *kind != Self::Text)
                .unwrap_or(Self::Text),
            _ => Self::Text,
        }
    }

    /// The bytes `token` stands for, or `None` when it is text.
    ///
    /// Under [`Decoding::ByteLevel`] a token with a character outside the byte alphabet, which only an
    /// added token can have, stands for its own UTF-8 bytes, as in the reference decoder.
    pub(super) fn bytes(self, token: &str) -> Option<Vec<u8>> {
        match self {
            Self::ByteLevel => {
                let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
                Some(bytes.unwrap_or_else(|| token.as_bytes().to_vec()))
            }
            Self::ByteFallback => fallback_byte(token).map(|byte| vec![byte]),
            Self::Text => None,
        }
    }
}

/// The byte of a `<0xHH>` token.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_pair = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_pair.then(|| u8::from_str_radix(digits, 16).ok())?
}

/// Characters of the byte alphabet that stand for bytes without a printable Latin-1 form, in byte order.
const SHIFTED_BYTES: [u8; 68] = shifted_bytes();

/// The byte a character of the byte-level alphabet stands for.
///
/// Printable Latin-1 characters stand for themselves; the 68 other bytes, in order, are U+0100 upwards.
/// Source: `bytes_to_unicode` of GPT-2's `encoder.py`.
fn byte_of(character: char) -> Option<u8> {
    let code = character as u32;
    match u8::try_from(code) {
        Ok(byte) => is_printable(byte).then_some(byte),
        Err(_) => SHIFTED_BYTES
            .get(usize::try_from(code - 0x100).ok()?)
            .copied(),
    }
}

/// Whether a byte stands for itself in the byte-level alphabet.
const fn is_printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF)
}

/// Lists the bytes that do not stand for themselves.
const fn shifted_bytes() -> [u8; 68] {
    let mut table = [0; 68];
    let mut next = 0;
    let mut byte = 0_u8;
    loop {
        if !is_printable(byte) {
            table[next] = byte;
            next += 1;
        }
        if byte == u8::MAX {
            return table;
        }
        byte += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::decoders::byte_fallback::ByteFallback;
    use tokenizers::decoders::fuse::Fuse;
    use tokenizers::decoders::sequence::Sequence;
    use tokenizers::pre_tokenizers::byte_level::ByteLevel;

    #[test]
    fn the_byte_alphabet_is_the_one_of_the_library() {
        let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
        assert_eq!(alphabet.len(), 256);
        let mut bytes: Vec<u8> = alphabet.drain(..).filter_map(byte_of).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, (0..=255).collect::<Vec<u8>>());
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(byte_of('Ń'), Some(0xAD));
        assert_eq!(byte_of(' '), None);
        assert_eq!(byte_of('\u{144}'), None);
    }

    #[test]
    fn only_well_formed_fallback_tokens_are_bytes() {
        assert_eq!(Decoding::ByteFallback.bytes("<0xE2>"), Some(vec![0xE2]));
        assert_eq!(Decoding::ByteFallback.bytes("<0x0a>"), Some(vec![0x0A]));
        for text in ["<0xE>", "<0x+2>", "<0xGG>", "0xE2", "<0xE2", "▁a"] {
            assert_eq!(Decoding::ByteFallback.bytes(text), None, "{text}");
        }
    }

    #[test]
    fn the_kind_is_found_inside_a_sequence() {
        let sequence = Sequence::new(vec![
            DecoderWrapper::Fuse(Fuse::new()),
            DecoderWrapper::ByteFallback(ByteFallback::new()),
        ]);
        assert_eq!(
            Decoding::of(Some(&DecoderWrapper::Sequence(sequence))),
            Decoding::ByteFallback
        );
        assert_eq!(Decoding::of(None), Decoding::Text);
    }
}
