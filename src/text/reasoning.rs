//! Taking a model's reasoning off its answer.
//!
//! Reasoning models write what they think between two markers before they answer, and many templates
//! write the opening one at the prompt's end already. [`ReasoningSplitter`] tells the two apart while the text
//! arrives; [`ReasoningFormat`] is the table of markers. A closing marker counts wherever it comes first and
//! an opening one only at the answer's beginning: an answer may speak of `<think>`, and one that does
//! must not vanish.
//!
//! White space next to the markers belongs to neither side: that around the reasoning as well as that
//! between it and the answer is dropped. llama.cpp strips reasoning and answer in the same way, and templates
//! write `<think>\n` and `\n</think>\n\n` themselves when they show the conversation to the model again, so
//! text that kept its line breaks would come back with twice as many.

/// The markers a model family puts around its reasoning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReasoningFormat {
    /// Marker before the reasoning.
    pub open: &'static str,
    /// Marker behind it.
    pub close: &'static str,
}

/// All formats known.
const FORMATS: &[ReasoningFormat] = &[
    ReasoningFormat {
        open: "<seed:think>",
        close: "</seed:think>",
    },
    ReasoningFormat {
        open: "[THINK]",
        close: "[/THINK]",
    },
    ReasoningFormat {
        open: "<thinking>",
        close: "</thinking>",
    },
    ReasoningFormat {
        open: "<reasoning>",
        close: "</reasoning>",
    },
    ReasoningFormat {
        open: "<think>",
        close: "</think>",
    },
];

impl ReasoningFormat {
    /// Recognises the format from the source of a chat template; `None` if it knows of no reasoning.
    ///
    /// The closing marker decides: templates that cut reasoning off past answers name only that one.
    pub fn detect(template_source: Option<&str>) -> Option<Self> {
        let source = template_source?;
        FORMATS
            .iter()
            .find(|format| source.contains(format.close))
            .copied()
    }

    /// Whether a token's text is one of the markers.
    pub fn marks(self, text: &str) -> bool {
        text == self.open || text == self.close
    }

    /// Whether a rendered prompt ends within reasoning, so that the answer starts there.
    pub fn prompt_opens(self, prompt: &str) -> bool {
        prompt.trim_end().ends_with(self.open)
    }
}

/// Text that has become certain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Split {
    /// Text of the reasoning.
    pub reasoning: String,
    /// Text of the answer.
    pub content: String,
}

/// Splits a growing text into reasoning and answer.
///
/// Invariants: without reasoning all text is answer, unchanged; reasoning that is never closed leaves no answer.
#[derive(Debug, Clone)]
pub struct ReasoningSplitter {
    format: ReasoningFormat,
    phase: Phase,
    /// Text that may belong to a marker, or be white space next to one.
    held: String,
    /// Bytes of white space at the start of `held`.
    blank: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing but white space so far, and perhaps a part of the opening marker.
    Start,
    /// Within reasoning of which nothing but white space came yet.
    Opened,
    Reasoning,
    /// Behind the closing marker, with nothing but white space since.
    Closed,
    Answer,
}

impl ReasoningSplitter {
    /// Starts at the beginning of an answer, which is within the reasoning if the prompt opened it.
    pub fn new(format: ReasoningFormat, starts_inside: bool) -> Self {
        Self {
            format,
            phase: if starts_inside {
                Phase::Opened
            } else {
                Phase::Start
            },
            held: String::new(),
            blank: 0,
        }
    }

    /// Whether the text so far ends within reasoning.
    pub fn is_inside(&self) -> bool {
        matches!(self.phase, Phase::Opened | Phase::Reasoning)
    }

    /// Appends `text` and returns what is certain by then.
    ///
    /// Held back is no more than white space and the beginning of a marker.
    /// Cost: amortised O(text × marker length).
    pub fn push(&mut self, text: &str) -> Split {
        let mut split = Split::default();
        if self.phase == Phase::Answer {
            split.content.push_str(text);
            return split;
        }
        for c in text.chars() {
            self.step(c, &mut split);
        }
        split
    }

    /// Ends the text, complete or cut off, and returns what was held back.
    pub fn finish(&mut self) -> Split {
        let held = std::mem::take(&mut self.held);
        let mut split = Split::default();
        match self.phase {
            Phase::Opened | Phase::Reasoning => split.reasoning.push_str(held.trim_end()),
            Phase::Start | Phase::Answer => split.content = held,
            Phase::Closed => {}
        }
        split
    }

    fn step(&mut self, c: char, split: &mut Split) {
        match self.phase {
            Phase::Opened if c.is_whitespace() && self.held.is_empty() => {}
            Phase::Start | Phase::Opened | Phase::Reasoning => {
                if c.is_whitespace() && self.blank == self.held.len() {
                    self.blank += c.len_utf8();
                }
                self.held.push(c);
                if self.phase == Phase::Start {
                    self.release_answer(split);
                } else {
                    self.release_reasoning(split);
                }
            }
            Phase::Closed if c.is_whitespace() => {}
            Phase::Closed | Phase::Answer => {
                self.phase = Phase::Answer;
                split.content.push(c);
            }
        }
    }

    /// Lets go of what is held at the start unless it may still open reasoning.
    fn release_answer(&mut self, split: &mut Split) {
        let candidate = &self.held[self.blank..];
        if candidate == self.format.open {
            self.enter(Phase::Opened);
        } else if !self.format.open.starts_with(candidate) {
            split.content.push_str(&self.held);
            self.enter(Phase::Answer);
        }
    }

    fn enter(&mut self, phase: Phase) {
        self.held.clear();
        self.blank = 0;
        self.phase = phase;
    }

    /// Lets go of the held reasoning but for white space at its end and the beginning of a marker behind.
    fn release_reasoning(&mut self, split: &mut Split) {
        loop {
            let candidate = &self.held[self.blank..];
            if candidate == self.format.close {
                return self.enter(Phase::Closed);
            }
            // A model whose prompt opened the reasoning may open it once more.
            if self.phase == Phase::Opened && candidate == self.format.open {
                return self.enter(Phase::Opened);
            }
            let opens = self.phase == Phase::Opened && self.format.open.starts_with(candidate);
            if opens || self.format.close.starts_with(candidate) {
                return;
            }
            let first = candidate.chars().next().map_or(0, char::len_utf8);
            split.reasoning.push_str(&self.held[..self.blank + first]);
            self.held.drain(..self.blank + first);
            self.blank = self.held.len() - self.held.trim_start().len();
            self.phase = Phase::Reasoning;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const THINK: ReasoningFormat = ReasoningFormat {
        open: "<think>",
        close: "</think>",
    };

    fn split(starts_inside: bool, pieces: &[&str]) -> (String, String) {
        let mut splitter = ReasoningSplitter::new(THINK, starts_inside);
        let mut all = Split::default();
        for piece in pieces {
            let split = splitter.push(piece);
            all.reasoning.push_str(&split.reasoning);
            all.content.push_str(&split.content);
        }
        let split = splitter.finish();
        (
            all.reasoning + &split.reasoning,
            all.content + &split.content,
        )
    }

    #[test]
    fn reasoning_and_answer_part_without_the_space_between() {
        let cases = [
            (
                false,
                "<think>\nWell, 2 < 3.\n</think>\n\nYes.\n",
                "Well, 2 < 3.",
                "Yes.\n",
            ),
            (true, "Hm.\n\nSo.\n</think>\nNo.", "Hm.\n\nSo.", "No."),
            (true, "<think>\nHm.</think>No.", "Hm.", "No."),
            (false, "<think>\n\n</think>\n\nYes.", "", "Yes."),
            (false, "\n<think>a</thin</think>b", "a</thin", "b"),
            (
                false,
                "Use <think> to think.</think>",
                "",
                "Use <think> to think.</think>",
            ),
            (false, "  plain", "", "  plain"),
            (false, "<think>never closed </thi", "never closed </thi", ""),
            (true, "a </ </think>b", "a </", "b"),
            (true, "a</think>b</think>c", "a", "b</think>c"),
            (false, "<thin", "", "<thin"),
            (true, "", "", ""),
        ];
        for (inside, text, reasoning, content) in cases {
            let want = (reasoning.to_owned(), content.to_owned());
            assert_eq!(split(inside, &[text]), want, "{text:?}");
        }
    }

    #[test]
    fn only_what_may_be_a_marker_waits() {
        let mut splitter = ReasoningSplitter::new(THINK, true);
        assert_eq!(splitter.push("one \n<").reasoning, "one");
        assert_eq!(splitter.push("b").reasoning, " \n<b");
        assert_eq!(splitter.push("</think").reasoning, "");
        assert!(splitter.is_inside());
        assert_eq!(splitter.push("> x").content, "x");
        assert!(!splitter.is_inside());
    }

    #[test]
    fn formats_are_recognised() {
        let detect = |source| ReasoningFormat::detect(Some(source)).map(|format| format.open);
        assert_eq!(
            detect("{{ content.split('</think>')[-1] }}"),
            Some("<think>")
        );
        assert_eq!(detect("[THINK]{{ t }}[/THINK]"), Some("[THINK]"));
        assert_eq!(
            detect("'<seed:think>' + t + '</seed:think>'"),
            Some("<seed:think>")
        );
        assert_eq!(detect("{{ messages }}"), None);
        assert_eq!(ReasoningFormat::detect(None), None);
    }

    #[test]
    fn prompts_that_open_reasoning_are_recognised() {
        assert!(THINK.prompt_opens("<|im_start|>assistant\n<think>\n"));
        assert!(!THINK.prompt_opens("<|im_start|>assistant\n<think>\n\n</think>\n\n"));
        assert!(!THINK.prompt_opens("<|im_start|>assistant\n"));
    }

    proptest! {
        #[test]
        fn where_text_is_cut_does_not_matter(
            pieces in prop::collection::vec("(<think>|</think>|<|thi|\n| |é|nk>|/){0,4}", 0..8),
            inside in any::<bool>(),
        ) {
            let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(split(inside, &pieces), split(inside, &[&pieces.concat()]));
        }

        #[test]
        fn text_without_reasoning_is_left_alone(text in "(<|th|ink>|[a-zé \n]){0,20}") {
            prop_assume!(!text.trim_start().starts_with("<think>"));
            prop_assert_eq!(split(false, &[&text]), (String::new(), text));
        }
    }
}
