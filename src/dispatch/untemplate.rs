//! A raw prompt that a chat template wrote becomes the conversation again.
//!
//! Chat-only upstreams take no raw prompts, yet most raw prompts are conversations that a client has rendered
//! itself. What the template puts around messages is learned by rendering marked ones; a prompt is then cut at
//! those pieces, and the result counts only if the template makes the very same prompt of it, byte for byte.

use chrono::NaiveDateTime;
use serde_json::{Value as Json, json};

use crate::generation::{Conversation, Message};
use crate::text::{self, ChatTemplate};

/// Texts that no template knows and none changes.
const MARKS: [&str; 4] = ["Qx7sysZk", "Qx7oneZk", "Qx7ansZk", "Qx7twoZk"];

/// Longest prompt that is looked at; longer ones would cost more time than the answer is worth waiting for.
const LONGEST_PROMPT: usize = 1 << 18;

/// The conversation that the template renders as `prompt`; none if there is none that it renders so exactly.
pub(super) fn untemplate(
    template: &ChatTemplate,
    prompt: &str,
    now: NaiveDateTime,
) -> Option<Conversation> {
    if prompt.len() > LONGEST_PROMPT {
        return None;
    }
    let frame = Frame::learn(template, now)?;
    let mut candidates = [frame.parse_with_system(prompt), frame.parse(prompt)];
    if frame.has_default_system() {
        // What the template adds by itself is no message of the caller's.
        candidates.reverse();
    }
    candidates
        .into_iter()
        .flatten()
        .find(|messages| render(template, messages, now).as_deref() == Some(prompt))
        .map(|messages| Conversation {
            messages: messages.into_iter().map(message).collect(),
            parallel_tool_calls: true,
            ..Conversation::default()
        })
}

/// Role and text.
type Said = (&'static str, String);

fn message((role, content): Said) -> Message {
    Message {
        role: role.to_owned(),
        content: Some(content),
        ..Message::default()
    }
}

fn render(template: &ChatTemplate, messages: &[Said], now: NaiveDateTime) -> Option<String> {
    let messages: Vec<Json> = messages
        .iter()
        .map(|(role, content)| json!({"role": role, "content": content}))
        .collect();
    let asked = text::Conversation {
        messages: &messages,
        tools: None,
        documents: None,
        add_generation_prompt: true,
        continue_final_message: false,
        kwargs: None,
        now,
    };
    template.render(&asked).ok()
}

/// What a template writes around messages.
#[derive(Debug, PartialEq, Eq)]
struct Frame {
    /// Before the first user's message.
    opening: String,
    /// Between a user's message and the answer to it.
    to_answer: String,
    /// Between an answer and the user's next message.
    to_user: String,
    /// After the last user's message.
    closing: String,
    /// Before a system message, and between it and the user's; none where the template takes none.
    system: Option<(String, String)>,
}

impl Frame {
    fn learn(template: &ChatTemplate, now: NaiveDateTime) -> Option<Self> {
        let [system, one, answer, two] = MARKS;
        let said = |role: &'static str, text: &str| (role, text.to_owned());
        let turns = [
            said("user", one),
            said("assistant", answer),
            said("user", two),
        ];
        let rendered = render(template, &turns, now)?;
        let [opening, to_answer, to_user, closing] = cut(&rendered, [one, answer, two])?;
        let with_system = [said("system", system), said("user", one)];
        let system = render(template, &with_system, now)
            .and_then(|rendered| cut(&rendered, [system, one]))
            .map(|[before, between, _]: [String; 3]| (before, between));
        Some(Self {
            opening,
            to_answer,
            to_user,
            closing,
            system,
        })
    }

    /// Whether the template writes a system text where there is none.
    fn has_default_system(&self) -> bool {
        let system = self.system.as_ref();
        system.is_some_and(|(before, _)| {
            self.opening.len() > before.len()
                && self.opening.starts_with(before.as_str())
                && !before.is_empty()
        })
    }

    fn parse_with_system(&self, prompt: &str) -> Option<Vec<Said>> {
        let (before, between) = self.system.as_ref()?;
        let rest = prompt.strip_prefix(before.as_str())?;
        if between.is_empty() {
            return None;
        }
        let (system, rest) = rest.split_once(between.as_str())?;
        let mut messages = vec![("system", system.to_owned())];
        messages.extend(self.turns(rest)?);
        Some(messages)
    }

    fn parse(&self, prompt: &str) -> Option<Vec<Said>> {
        self.turns(prompt.strip_prefix(self.opening.as_str())?)
    }

    /// Everything after the first user's opening.
    fn turns(&self, text: &str) -> Option<Vec<Said>> {
        if self.to_answer.is_empty() || self.to_user.is_empty() {
            return None;
        }
        let mut rest = text.strip_suffix(self.closing.as_str())?;
        let mut messages = Vec::new();
        while let Some((user, after)) = rest.split_once(self.to_answer.as_str()) {
            let (answer, after) = after.split_once(self.to_user.as_str())?;
            messages.push(("user", user.to_owned()));
            messages.push(("assistant", answer.to_owned()));
            rest = after;
        }
        messages.push(("user", rest.to_owned()));
        Some(messages)
    }
}

/// The pieces of a text around marks that stand in it once each, in this order.
fn cut<const N: usize, const M: usize>(text: &str, marks: [&str; N]) -> Option<[String; M]> {
    let mut pieces = Vec::with_capacity(M);
    let mut rest = text;
    for mark in marks {
        let (before, after) = rest.split_once(mark)?;
        pieces.push(before.to_owned());
        rest = after;
    }
    let repeated = marks.iter().any(|mark| text.matches(mark).count() != 1);
    pieces.push(rest.to_owned());
    pieces.try_into().ok().filter(|_| !repeated)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::TemplateSources;

    const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    /// Mistral's way: no system role, texts trimmed, an end after each answer.
    const INST: &str = "<s>{% for message in messages %}{% if message.role == 'user' %}[INST] {{ message.content | trim }} [/INST]{% elif message.role == 'assistant' %} {{ message.content | trim }}</s>{% else %}{{ raise_exception('no') }}{% endif %}{% endfor %}";
    /// A default system text where none is given, as Qwen2.5 has it.
    const DEFAULTED: &str = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

    fn template(source: &str) -> ChatTemplate {
        let sources = TemplateSources {
            default: Some(source.to_owned()),
            named: Vec::new(),
        };
        ChatTemplate::new(sources, Default::default()).expect("a sound template")
    }

    fn now() -> NaiveDateTime {
        let day = chrono::NaiveDate::from_ymd_opt(2031, 2, 3).expect("a day");
        day.and_hms_opt(4, 5, 6).expect("a time")
    }

    fn said(conversation: &Conversation) -> Vec<(&str, &str)> {
        let each = conversation.messages.iter();
        each.map(|m| (m.role.as_str(), m.content.as_deref().unwrap_or_default()))
            .collect()
    }

    #[test]
    fn what_a_template_wrote_is_read_back() {
        let turns: &[&[(&'static str, &str)]] = &[
            &[("user", "Hi")],
            &[("system", "Be brief."), ("user", "Hi\nthere")],
            &[("user", "a"), ("assistant", "b"), ("user", "c")],
            &[
                ("system", "s"),
                ("user", "a"),
                ("assistant", "b"),
                ("user", "c"),
                ("assistant", ""),
                ("user", "e é 🙂"),
            ],
        ];
        for source in [CHATML, INST, DEFAULTED] {
            let template = template(source);
            for turns in turns {
                let owned: Vec<Said> = turns.iter().map(|(r, t)| (*r, (*t).to_owned())).collect();
                let Some(prompt) = render(&template, &owned, now()) else {
                    assert_eq!(source, INST, "only it refuses a system message");
                    continue;
                };
                let found = untemplate(&template, &prompt, now()).expect("its own writing");
                assert_eq!(said(&found), *turns, "{prompt:?}");
            }
        }
    }

    #[test]
    fn what_no_template_wrote_stays_a_prompt() {
        let template = template(CHATML);
        for prompt in [
            "Once upon a time",
            "",
            "<|im_start|>user\nHi<|im_end|>\n",
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nSure, ",
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n ",
            " <|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
        ] {
            assert_eq!(untemplate(&template, prompt, now()), None, "{prompt:?}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_read_renders_to_the_same_bytes(
            prompt in "(<\\|im_start\\|>|user|assistant|system|\n|<\\|im_end\\|>|a| ){0,14}",
        ) {
            let template = template(CHATML);
            let tail = "<|im_end|>\n<|im_start|>assistant\n";
            let prompt = format!("<|im_start|>user\n{prompt}{tail}");
            if let Some(found) = untemplate(&template, &prompt, now()) {
                let again: Vec<Said> = found
                    .messages
                    .iter()
                    .map(|m| {
                        let roles = ["system", "user", "assistant"];
                        let role = roles.into_iter().find(|role| *role == m.role).expect("known");
                        (role, m.content.clone().unwrap_or_default())
                    })
                    .collect();
                prop_assert_eq!(render(&template, &again, now()), Some(prompt));
            }
        }
    }
}
