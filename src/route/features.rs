//! What a prompt looks like before anything is computed: a few numbers, in one pass over a bounded text.
//!
//! They feed the hardness score and the decision record, so they must say nothing that could be read back as
//! text: shares, counts, and a digest of the system prompt that tells applications apart.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Bytes of the last message that are looked at.
const LOOKED_AT: usize = 8 << 10;

/// What is known of a request when it arrives.
#[derive(Debug, Clone, Copy, Default)]
pub struct Arrival<'a> {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Most tokens of the answer.
    pub max_new_tokens: u32,
    /// Messages in the conversation; 1 for a bare prompt.
    pub turns: usize,
    /// Tools offered.
    pub tools: usize,
    /// Whether the answer must have a shape.
    pub shaped: bool,
    /// The system prompt.
    pub system: Option<&'a str>,
    /// The last thing the user said, or the bare prompt.
    pub last: &'a str,
}

/// The names of all features, in the order of [`Features::values`].
pub const FEATURE_NAMES: [&str; 17] = [
    "prompt_tokens_log2",
    "max_new_tokens_log2",
    "turns",
    "tools",
    "shaped",
    "code_share",
    "maths_share",
    "digit_share",
    "question_marks",
    "line_breaks",
    "latin_share",
    "cyrillic_share",
    "cjk_share",
    "arabic_share",
    "english_share",
    "reasoning_verbs",
    "rewriting_verbs",
];

/// The numbers of one request, and the name of its application.
///
/// Units: shares are of 1, of the characters looked at; the others are counts, or base-2 logarithms of one
/// more than a count.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Features {
    /// By [`FEATURE_NAMES`].
    pub values: [f64; FEATURE_NAMES.len()],
    /// The beginning of the SHA-256 of the system prompt, in hexadecimal; none without one.
    pub application: Option<String>,
}

/// Verbs, in lower case, that ask for thought.
const REASONING: [&str; 18] = [
    "analyse",
    "analyze",
    "calculate",
    "compare",
    "debug",
    "derive",
    "design",
    "estimate",
    "evaluate",
    "implement",
    "optimise",
    "optimize",
    "plan",
    "prove",
    "refactor",
    "simplify",
    "solve",
    "verify",
];

/// Verbs, in lower case, that ask for the same in other words.
const REWRITING: [&str; 12] = [
    "classify",
    "correct",
    "extract",
    "format",
    "label",
    "paraphrase",
    "rephrase",
    "rewrite",
    "shorten",
    "summarise",
    "summarize",
    "translate",
];

/// Triples of letters that are frequent in English and rarer in other languages of its alphabet.
const ENGLISH: [[u8; 3]; 12] = [
    *b"the", *b"ing", *b"and", *b" th", *b" of", *b"he ", *b" to", *b"ed ", *b"is ", *b" wh",
    *b"hat", *b"ly ",
];

impl Features {
    /// Looks at a request.
    ///
    /// Cost: linear in the last message, of which 8 KiB are looked at, and in the system prompt for its digest.
    pub fn of(arrival: &Arrival<'_>) -> Self {
        let Arrival {
            prompt_tokens,
            max_new_tokens,
            turns,
            tools,
            shaped,
            system,
            last,
        } = *arrival;
        let look = Look::at(cut(last));
        let share = |count: u32| f64::from(count) / f64::from(look.chars.max(1));
        let log2 = |count: u32| (f64::from(count) + 1.0).log2();
        Self {
            values: [
                log2(prompt_tokens),
                log2(max_new_tokens),
                turns as f64,
                tools as f64,
                f64::from(u8::from(shaped)),
                share(look.code),
                share(look.maths),
                share(look.digits),
                f64::from(look.questions),
                f64::from(look.lines),
                share(look.latin),
                share(look.cyrillic),
                share(look.cjk),
                share(look.arabic),
                share(look.english),
                f64::from(look.reasoning),
                f64::from(look.rewriting),
            ],
            application: system.map(application),
        }
    }

    /// The number of a name; none for a name that is no feature's.
    pub fn get(&self, name: &str) -> Option<f64> {
        let place = FEATURE_NAMES.iter().position(|known| *known == name)?;
        Some(self.values[place])
    }
}

/// The name of the application that has this system prompt.
pub fn application(system: &str) -> String {
    let digest = Sha256::digest(system.as_bytes());
    digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The beginning of a text, cut between two characters.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(LOOKED_AT)]
}

/// Counts of one text.
#[derive(Default)]
struct Look {
    chars: u32,
    code: u32,
    maths: u32,
    digits: u32,
    questions: u32,
    lines: u32,
    latin: u32,
    cyrillic: u32,
    cjk: u32,
    arabic: u32,
    english: u32,
    reasoning: u32,
    rewriting: u32,
}

impl Look {
    fn at(text: &str) -> Self {
        let mut look = Self::default();
        // The last three characters, in lower case and with every break between words as a space.
        let mut last = [b' '; 3];
        let mut word = String::new();
        for c in text.chars().chain([' ']) {
            look.chars += 1;
            look.count(c);
            let lower = c.to_ascii_lowercase();
            let letter = if lower.is_ascii_lowercase() {
                lower as u8
            } else {
                b' '
            };
            last = [last[1], last[2], letter];
            look.english += u32::from(ENGLISH.contains(&last));
            if lower.is_ascii_lowercase() {
                word.push(lower);
            } else if !word.is_empty() {
                look.reasoning += u32::from(REASONING.contains(&word.as_str()));
                look.rewriting += u32::from(REWRITING.contains(&word.as_str()));
                word.clear();
            }
        }
        // The space that ended the last word is none of the text's.
        look.chars -= 1;
        look
    }

    fn count(&mut self, c: char) {
        match c {
            '{' | '}' | ';' | '`' | '[' | ']' | '_' | '#' | '|' | '&' | '@' => self.code += 1,
            '=' | '+' | '<' | '>' | '^' | '*' | '/' | '\\' | '$' | '∑' | '∫' | '√' | '≤' | '≥'
            | '∞' => {
                self.maths += 1;
            }
            '0'..='9' => self.digits += 1,
            '?' | '？' => self.questions += 1,
            '\n' => self.lines += 1,
            'a'..='z' | 'A'..='Z' | '\u{c0}'..='\u{24f}' => self.latin += 1,
            '\u{400}'..='\u{52f}' => self.cyrillic += 1,
            '\u{600}'..='\u{6ff}' | '\u{750}'..='\u{77f}' => self.arabic += 1,
            '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{ac00}'..='\u{d7af}' => {
                self.cjk += 1
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(last: &str) -> Features {
        Features::of(&Arrival {
            last,
            ..Arrival::default()
        })
    }

    fn get(features: &Features, name: &str) -> f64 {
        features.get(name).expect("a feature")
    }

    #[test]
    fn code_maths_and_prose_look_different() {
        let code = of("fn main() { let x_1 = a[0]; println!(\"{}\", x_1); }");
        let maths = of("Prove that $x^2 + y^2 >= 2*x*y$ for x > 0.");
        let prose = of("Tell me what the weather is like in the mountains.");
        assert!(get(&code, "code_share") > 3.0 * get(&prose, "code_share") + 0.1);
        assert!(get(&maths, "maths_share") > get(&prose, "maths_share") + 0.1);
        assert_eq!(get(&maths, "reasoning_verbs"), 1.0);
        assert_eq!(get(&of("Translate: proven"), "rewriting_verbs"), 1.0);
    }

    #[test]
    fn languages_are_told_apart_roughly() {
        let english = of("What is the meaning of this thing that they were looking for?");
        let german = of("Worin liegt der Sinn von dem, wonach wir alle so lange gesucht haben?");
        assert!(get(&english, "english_share") > 2.0 * get(&german, "english_share"));
        assert!(get(&of("Привет, как дела"), "cyrillic_share") > 0.7);
        assert_eq!(get(&of("你好世界"), "cjk_share"), 1.0);
        assert!(get(&of("مرحبا"), "arabic_share") > 0.9);
    }

    #[test]
    fn applications_are_named_by_a_digest() {
        let with = |system| {
            let arrival = Arrival {
                system,
                ..Arrival::default()
            };
            Features::of(&arrival).application
        };
        assert_eq!(with(None), None);
        assert_eq!(with(Some("abc")).as_deref(), Some("ba7816bf8f01cfea"));
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let text = "é".repeat(LOOKED_AT);
        let odd = format!("a{text}");
        assert_eq!(get(&of(&odd), "latin_share"), 1.0);
        assert_eq!(cut(&odd).len(), LOOKED_AT - 1);
    }

    proptest! {
        #[test]
        fn every_number_is_finite_and_every_share_is_one(text in "\\PC{0,200}") {
            let features = of(&text);
            for (name, value) in FEATURE_NAMES.iter().zip(features.values) {
                prop_assert!(value.is_finite() && value >= 0.0, "{name} {value}");
                prop_assert!(!name.ends_with("_share") || value <= 1.0, "{name} {value}");
            }
        }
    }
}
