//! Takes secrets out of text: out of every log line after it is rendered, and out of what upstreams say.
//!
//! Redaction stands at the very end, where a line is only bytes any more, so that no field, no error and no
//! debug output can go around it. It knows the shapes of common tokens, and every secret that this process has
//! loaded, in each spelling that rendering may give it. It never prints what it knows, and never fails: a
//! text in which nothing is found comes back as it is.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::sync::{LazyLock, PoisonError, RwLock};

use regex::Regex;
use tracing_subscriber::fmt::MakeWriter;

/// Stands where a secret stood.
pub const REDACTED: &str = "[redacted]";

/// A secret shorter than this is not searched for: it would be found in ordinary words.
const SHORTEST: usize = 8;

/// How often a secret may have been quoted: a body inside an error inside a JSON line.
const QUOTINGS: usize = 3;

/// Shapes of tokens. Where a group `v` is named, only that part is the secret.
///
/// No shape asks for a word's border before it: in a quoted text, the `n` of a line break stands there. No
/// shape takes a quotation mark or a backslash, so that a JSON line stays one.
#[expect(
    clippy::expect_used,
    reason = "the pattern is a constant that a test compiles"
)]
static SHAPES: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r"hf_[A-Za-z0-9]{20,}",
        r"|sk-[A-Za-z0-9_-]{20,}",
        r"|(?:gsk|rk|pk)_[A-Za-z0-9_-]{16,}",
        r"|r8_[A-Za-z0-9]{20,}",
        r"|(?i:bearer)(?:\s|\\[tn]|%20)+(?P<bearer>[^\s\x22\\]+)",
        r"|(?:[?&]|\\u0026)(?i:[a-z_-]*(?:key|token|sig|signature|secret))=(?P<query>[^&\s\x22\\#]+)",
        r"|(?:AKIA|ASIA)[A-Z0-9]{16}",
        r"|(?i:aws_secret_access_key|secretaccesskey)[^A-Za-z0-9/+]{1,6}(?P<aws>[A-Za-z0-9/+]{40})",
    ))
    .expect("a constant pattern")
});

/// Every spelling of every secret that was registered.
static SECRETS: RwLock<BTreeSet<String>> = RwLock::new(BTreeSet::new());

/// Makes a secret known, so that [`redact`] finds it from now on, for as long as the process lives: a token
/// that was replaced is still a secret. One of fewer than 8 bytes is not taken.
pub fn register(secret: &str) {
    let secret = secret.trim();
    if secret.len() < SHORTEST {
        return;
    }
    let mut spellings = BTreeSet::from([secret.to_owned()]);
    let in_url: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    spellings.insert(in_url);
    for _ in 0..QUOTINGS {
        let quoted: Vec<_> = spellings
            .iter()
            .flat_map(|text| [quoted_json(text), quoted_debug(text)])
            .collect();
        spellings.extend(quoted);
    }
    let mut secrets = SECRETS.write().unwrap_or_else(PoisonError::into_inner);
    secrets.extend(spellings);
}

fn quoted_json(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

fn quoted_debug(text: &str) -> String {
    text.escape_debug().to_string()
}

/// The text without secrets, [`REDACTED`] in the place of each.
///
/// Cost: one pass for all shapes and one for each registered spelling; nothing is copied when none is found.
pub fn redact(text: &str) -> Cow<'_, str> {
    let mut found: Vec<(usize, usize)> = SHAPES
        .captures_iter(text)
        .filter_map(|shape| {
            let part = ["bearer", "query", "aws"]
                .into_iter()
                .find_map(|name| shape.name(name));
            part.or_else(|| shape.get(0))
        })
        .map(|part| (part.start(), part.end()))
        .collect();
    {
        let secrets = SECRETS.read().unwrap_or_else(PoisonError::into_inner);
        for secret in secrets.iter() {
            let places = text.match_indices(secret.as_str());
            found.extend(places.map(|(at, _)| (at, at + secret.len())));
        }
    }
    if found.is_empty() {
        return Cow::Borrowed(text);
    }
    found.sort_unstable();
    let mut clean = String::with_capacity(text.len());
    let mut done = 0;
    for (start, end) in found {
        // What overlaps the secret before it has its mark already.
        if start >= done {
            clean.push_str(&text[done..start]);
            clean.push_str(REDACTED);
        }
        done = done.max(end);
    }
    clean.push_str(&text[done..]);
    Cow::Owned(clean)
}

/// Makes writers whose lines are redacted before they go on.
#[derive(Debug, Clone)]
pub(super) struct Redacting<M>(pub(super) M);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Redacting<M> {
    type Writer = Line<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Line {
            to: self.0.make_writer(),
            text: Vec::new(),
        }
    }

    fn make_writer_for(&'a self, meta: &tracing::Metadata<'_>) -> Self::Writer {
        Line {
            to: self.0.make_writer_for(meta),
            text: Vec::new(),
        }
    }
}

/// One event's text, held until it is whole: a secret cut in two by two writes would not be seen.
///
/// Dropping it writes it.
#[derive(Debug)]
pub(super) struct Line<W: Write> {
    to: W,
    text: Vec<u8>,
}

impl<W: Write> Write for Line<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write> Drop for Line<W> {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.text);
        // Where log lines cannot be written, there is nowhere to say so.
        let _ = self.to.write_all(redact(&text).as_bytes());
        let _ = self.to.flush();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("unpoisoned").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What one event with a text as its message, a shown field and a debugged field looks like.
    fn logged(text: &str, json: bool) -> String {
        let lines = Shared::default();
        let to = lines.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(Redacting(move || to.clone()));
        let log = || tracing::warn!(shown = %text, debugged = ?text, "{text}");
        let registry = tracing_subscriber::registry();
        if json {
            let subscriber = registry.with(layer.json().flatten_event(true));
            tracing::subscriber::with_default(subscriber, log);
        } else {
            tracing::subscriber::with_default(registry.with(layer), log);
        }
        let bytes = lines.0.lock().expect("unpoisoned").clone();
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn shapes_go_and_the_rest_stays() {
        let hf = format!("hf_{}", "aB3".repeat(10));
        let cases = [
            (format!("token {hf}."), "token [redacted].".to_owned()),
            (format!("x\\n{hf}"), "x\\n[redacted]".to_owned()),
            (
                "sk-sconce-0123456789abcdef-0123456789abcdef".to_owned(),
                "[redacted]".to_owned(),
            ),
            (
                r#"{"a":"Bearer abc.def","b":1}"#.to_owned(),
                r#"{"a":"Bearer [redacted]","b":1}"#.to_owned(),
            ),
            (
                "https://h/p?key=abc&x=1&token=def#f".to_owned(),
                "https://h/p?key=[redacted]&x=1&token=[redacted]#f".to_owned(),
            ),
            ("AKIAABCDEFGHIJKLMNOP".to_owned(), "[redacted]".to_owned()),
            (
                format!("aws_secret_access_key = {}", "aB/4".repeat(10)),
                "aws_secret_access_key = [redacted]".to_owned(),
            ),
        ];
        for (text, clean) in cases {
            assert_eq!(redact(&text), clean);
        }
        let plain = "hf_hub took 3 tokens, key=value; a bearer\nmonkey?";
        assert!(matches!(redact("no secret here"), Cow::Borrowed(_)));
        assert_eq!(redact("hf_hub took 3 tokens, key=value"), &plain[..31]);
    }

    #[test]
    fn short_secrets_are_not_searched_for() {
        register("token");
        assert_eq!(redact("a token"), "a token");
    }

    #[test]
    fn secrets_that_overlap_leave_nothing() {
        register("overlap-one-two");
        register("two-three-overlap");
        assert_eq!(redact("<overlap-one-two-three-overlap>"), "<[redacted]>");
    }

    #[test]
    fn json_lines_stay_json() {
        let line = logged(
            &format!("\"Bearer {}\" & ?key=a\"b\\", "x".repeat(30)),
            true,
        );
        let value: serde_json::Value = serde_json::from_str(&line).expect("one JSON line");
        assert!(
            value["message"]
                .as_str()
                .is_some_and(|m| m.contains(REDACTED))
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_planted_secret_never_survives(
            // No letter of the mark itself, which would look like what was planted.
            secret in "[!-~]{4}[0-9A-Z\"\\\\'&=é]{8,40}[!-~]{4}",
            before in "\\PC{0,20}|[?&](key|token)=|Bearer |hf_|\n|\t|\"|\\\\",
            after in "\\PC{0,20}|&x=1|\n|\"|\\\\",
            json in any::<bool>(),
        ) {
            register(&secret);
            let text = format!("{before}{secret}{after}");
            prop_assert!(!redact(&text).contains(&secret));
            let line = logged(&text, json);
            let body = serde_json::json!({ "error": text }).to_string();
            let nested = logged(&body, json);
            for line in [line, nested] {
                prop_assert!(!line.contains(&secret));
                prop_assert!(!line.contains(&quoted_json(&secret)));
                prop_assert!(!line.contains(&quoted_debug(&secret)));
            }
        }

        #[test]
        fn a_token_of_a_known_shape_never_survives(
            token in "hf_[A-Za-z0-9]{20,40}|sk-[A-Za-z0-9_-]{20,60}|AKIA[A-Z0-9]{16}",
            before in "\\PC{0,20}|\n|\"|x",
            after in "[^A-Za-z0-9_-]?",
            json in any::<bool>(),
        ) {
            let text = format!("{before}{token}{after}");
            prop_assert!(!redact(&text).contains(&token));
            prop_assert!(!logged(&text, json).contains(&token));
        }
    }
}
