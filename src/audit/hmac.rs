//! HMAC-SHA256 (RFC 2104), the log's secret, and what is made with it: fingerprints of texts and seals of lines.
//!
//! A fingerprint says that a text was sent to whoever holds the secret and the text, and nothing to anybody
//! else. The plain HMAC of the text is kept, so that any other tool can make it too. The secret is never printed.

use std::fmt;

use rand_core::{OsRng, TryRngCore};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Bytes that SHA-256 takes at a time.
const BLOCK: usize = 64;

/// Texts of one request whose own fingerprints are kept, so that a line stays short: the last ones, because
/// a conversation's earlier texts stand in the lines of its earlier requests.
const MOST_TEXTS: usize = 64;

/// HMAC-SHA256 of several parts, one after the other.
pub(super) fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    let mut block = Zeroizing::new([0u8; BLOCK]);
    if key.len() > BLOCK {
        block[..32].copy_from_slice(&Sha256::digest(key));
    } else {
        block[..key.len()].copy_from_slice(key);
    }
    let pad = |byte: u8| Zeroizing::new(block.map(|b| b ^ byte));
    let mut inner = Sha256::new_with_prefix(*pad(0x36));
    for part in parts {
        inner.update(part);
    }
    let outer = Sha256::new_with_prefix(*pad(0x5c));
    outer.chain_update(inner.finalize()).finalize().into()
}

/// HMAC-SHA256 of several parts, one after the other, in hexadecimal.
pub fn sign(key: &[u8], parts: &[&[u8]]) -> String {
    hex(&hmac(key, parts))
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|b| [b >> 4, b & 15]);
    digits.map(|d| char::from(DIGITS[usize::from(d)])).collect()
}

/// SHA-256 of a line's bytes, as the next line names it.
pub(super) fn digest(line: &[u8]) -> String {
    hex(&Sha256::digest(line))
}

/// What the texts of one request leave in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// HMAC-SHA256 over the digests of all texts, in hexadecimal.
    pub whole: String,
    /// HMAC-SHA256 of each of the last 64 texts, in hexadecimal.
    pub texts: Vec<String>,
}

/// The log's secret. Never printed; overwritten when dropped.
#[derive(Clone)]
pub struct Key {
    secret: Zeroizing<[u8; 32]>,
    seal: Zeroizing<[u8; 32]>,
}

impl Key {
    fn new(secret: Zeroizing<[u8; 32]>) -> Self {
        // Lines are sealed with a secret of their own: no text that somebody sends has a seal for fingerprint.
        let seal = Zeroizing::new(hmac(&*secret, &[b"sconce audit line"]));
        Self { secret, seal }
    }

    /// Makes a key. Errors: the operating system gives no random numbers.
    pub(super) fn generate() -> std::io::Result<Self> {
        let mut secret = Zeroizing::new([0; 32]);
        OsRng
            .try_fill_bytes(&mut *secret)
            .map_err(|e| std::io::Error::other(format!("no random numbers: {e}")))?;
        Ok(Self::new(secret))
    }

    /// Reads a key: 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.trim().as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let mut secret = Zeroizing::new([0; 32]);
        for (byte, pair) in secret.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |b: u8| {
                char::from(b)
                    .to_digit(16)
                    .and_then(|d| u8::try_from(d).ok())
            };
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self::new(secret))
    }

    /// The key as it stands in its file.
    pub(super) fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(hex(&*self.secret))
    }

    /// HMAC-SHA256 of one text, in hexadecimal.
    pub fn of_text(&self, text: &str) -> String {
        hex(&hmac(&*self.secret, &[text.as_bytes()]))
    }

    /// The fingerprint of a request's texts.
    ///
    /// Cost: each text is hashed once.
    pub fn fingerprint(&self, texts: &[&str]) -> Fingerprint {
        let digests: Vec<[u8; 32]> = texts
            .iter()
            .map(|text| hmac(&*self.secret, &[text.as_bytes()]))
            .collect();
        let parts: Vec<&[u8]> = digests.iter().map(<[u8; 32]>::as_slice).collect();
        let last = digests.len().saturating_sub(MOST_TEXTS);
        Fingerprint {
            whole: hex(&hmac(&*self.secret, &parts)),
            texts: digests[last..].iter().map(|d| hex(d)).collect(),
        }
    }

    /// What the end of a line says of the bytes before it.
    pub(super) fn seal(&self, line: &[u8]) -> String {
        hex(&hmac(&*self.seal, &[line]))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4231, test cases 1 to 4, 6 and 7 (case 5 truncates, which nothing here does).
    #[test]
    fn the_vectors_of_rfc_4231() {
        let counting: Vec<u8> = (1..=25).collect();
        let cases: [(&[u8], &[u8], &str); 6] = [
            (
                &[0x0b; 20],
                b"Hi There",
                "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7",
            ),
            (
                b"Jefe",
                b"what do ya want for nothing?",
                "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
            ),
            (
                &[0xaa; 20],
                &[0xdd; 50],
                "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe",
            ),
            (
                &counting,
                &[0xcd; 50],
                "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
            ),
            (
                &[0xaa; 131],
                b"Test Using Larger Than Block-Size Key - Hash Key First",
                "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
            ),
            (
                &[0xaa; 131],
                b"This is a test using a larger than block-size key and a larger than block-size data. \
                  The key needs to be hashed before being used by the HMAC algorithm.",
                "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
            ),
        ];
        for (key, data, expected) in cases {
            assert_eq!(hex(&hmac(key, &[data])), expected);
            let (a, b) = data.split_at(data.len() / 2);
            assert_eq!(hex(&hmac(key, &[a, b])), expected);
        }
    }

    #[test]
    fn texts_are_told_apart_and_found_one_by_one() {
        let key = Key::generate().expect("random numbers");
        let ab = key.fingerprint(&["a", "b"]);
        assert_ne!(ab.whole, key.fingerprint(&["ab"]).whole);
        assert_ne!(ab.whole, key.fingerprint(&["b", "a"]).whole);
        assert_eq!(ab.texts, [key.of_text("a"), key.of_text("b")]);
        let many: Vec<String> = (0..100).map(|i| i.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        let print = key.fingerprint(&many);
        assert_eq!(print.texts.len(), MOST_TEXTS);
        assert_eq!(print.texts.last(), Some(&key.of_text("99")));
    }

    #[test]
    fn a_key_reads_as_it_was_written_and_is_not_shown() {
        let key = Key::generate().expect("random numbers");
        let text = key.to_text();
        let read = Key::parse(&format!("{}\n", *text)).expect("a key");
        assert_eq!(read.of_text("x"), key.of_text("x"));
        assert!(Key::parse(&text[1..]).is_none());
        assert!(Key::parse(&"g".repeat(64)).is_none());
        assert_eq!(format!("{key:?}"), "Key(…)");
    }
}
