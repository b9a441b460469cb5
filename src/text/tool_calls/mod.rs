//! Tool calls: how a model family writes them, read from its text and forced by a grammar.
//!
//! A model calls a tool by writing text of a fixed shape, and each family has its own. [`ToolFormat`] names
//! the shapes and recognises one from a chat template; [`ToolParser`] reads an answer token by token and
//! tells plain text from calls; [`ToolFormat::grammar`] and [`ToolFormat::strict_grammar`] write the
//! grammar that makes a model call, in the syntax it was trained on, with arguments that fit the schema.
//!
//! The folder is separate because everything a family is peculiar about lies here: outside of it a call
//! has an index, a name and a JSON object. It runs no tool, checks no schema while it parses, and
//! knows no API's wire form.

mod grammar;
mod json_call;
mod named_call;
mod parser;
mod pythonic;
mod scan;
mod xml;

use crate::generation::Tool;

pub use grammar::{Forced, GrammarOptions};
pub use parser::ToolParser;

#[cfg(test)]
mod tests;

/// How a model family writes tool calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ToolFormat {
    /// `<tool_call>{"name": …, "arguments": {…}}</tool_call>`: Hermes, Qwen 2.5 and 3, SmolLM3, Granite 4.
    Hermes,
    /// A bare `{"name": …, "parameters": {…}}`, `; ` between two, at times after `<|python_tag|>`: Llama 3.
    Llama3Json,
    /// `[get_weather(city="Paris"), now()]`: Llama 3.2 and 4; LFM2 between `<|tool_call_start|>` and `<|tool_call_end|>`.
    Pythonic,
    /// `[TOOL_CALLS][{"name": …, "arguments": {…}}]`, or the newer `[TOOL_CALLS]get_weather[ARGS]{…}`.
    Mistral,
    /// `<|tool_call|>[{"name": …, "arguments": {…}}]`: Granite 3, Phi-4-mini.
    Granite,
    /// `<tool_call><function=get_weather><parameter=city>Paris</parameter></function></tool_call>`: Qwen3-Coder, Qwen 3.5.
    QwenXml,
    /// `{"function": {"_name": "get_weather", "city": "Paris"}}`, TGI's own: for templates that know no tools.
    Tgi,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text of the answer that belongs to no call.
    Text(String),
    /// A call begins; what follows up to its [`Piece::CallEnd`] belongs to it.
    CallStart {
        /// Number of the call within the answer, from 0.
        index: usize,
        /// Name of the tool, always one that was offered.
        name: String,
    },
    /// A fragment of the arguments' JSON text.
    Arguments {
        /// Number of the call.
        index: usize,
        /// The fragment; all of a complete call's fragments together are one JSON object.
        text: String,
    },
    /// The call is complete. A call cut off by the end of the answer or by a marker never gets here.
    CallEnd {
        /// Number of the call.
        index: usize,
    },
}

impl ToolFormat {
    /// Recognises the format from the source of a chat template.
    ///
    /// A template must show past calls to the model in the syntax it was trained on, so the syntax's
    /// markers stand in the source. Without a template, with one that never mentions tools, and with
    /// one whose syntax is unknown, the answer is [`ToolFormat::Tgi`]: a grammar can force it on any model.
    pub fn detect(template_source: Option<&str>) -> Self {
        /// Marks in order of precedence: a template may quote a more general family's marker too.
        const MARKS: &[(&str, ToolFormat)] = &[
            ("<function=", ToolFormat::QwenXml),
            ("[TOOL_CALLS]", ToolFormat::Mistral),
            ("<|tool_call|>", ToolFormat::Granite),
            ("<|tool_call_start|>", ToolFormat::Pythonic),
            ("<|tool_list_start|>", ToolFormat::Pythonic),
            ("<tool_call>", ToolFormat::Hermes),
            ("<|python_start|>", ToolFormat::Pythonic),
            ("[func_name1(", ToolFormat::Pythonic),
            ("<|python_tag|>", ToolFormat::Llama3Json),
            ("\"parameters\": dictionary", ToolFormat::Llama3Json),
        ];
        let Some(source) = template_source.filter(|source| mentions_tools(source)) else {
            return Self::Tgi;
        };
        MARKS
            .iter()
            .find(|(mark, _)| source.contains(mark))
            .map_or(Self::Tgi, |(_, format)| *format)
    }
}

/// Whether a chat template reads the variable `tools`, and so shows the tools to the model itself.
fn mentions_tools(template_source: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    template_source.match_indices("tools").any(|(at, word)| {
        let before = template_source[..at].chars().next_back();
        let after = template_source[at + word.len()..].chars().next();
        !before.is_some_and(is_word) && !after.is_some_and(is_word)
    })
}
