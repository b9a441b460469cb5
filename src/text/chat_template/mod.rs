//! Chat templates: a conversation in, the prompt text a model was trained on out.
//!
//! A model brings a Jinja program written against Hugging Face `transformers`, that is against Python. It is
//! rendered by minijinja, which is close to Jinja2; the rest of the way is made here: the source is brought into
//! a form minijinja reads ([`source`]), and the filters, tests and methods that show Python through Jinja
//! behave as Python's ([`environment`], [`python`]).
//!
//! A template is a program of the model's author and not of the operator: it sees the conversation and the time
//! it is told, reads nothing else, and may take a bounded number of steps. Memory is not bounded: a template that
//! doubles a text often enough takes what there is.
//!
//! Source: `transformers` 5.23, `utils/chat_template_utils.py` and `PreTrainedTokenizerBase.apply_chat_template`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use minijinja::value::Serde;
use minijinja::{Environment, Value};
use serde_json::{Map, Value as Json};

use super::TextError;

mod environment;
mod python;
mod source;

/// What the prompt's writer calls every template; TGI's error texts name it.
const NAME: &str = "<string>";

/// Marks the end of the message that is to be continued; `transformers` uses the same text, which a template may
/// trim on its right.
const CONTINUE_TAG: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// Names a message's reasoning is passed under, the one templates read first.
const REASONING_FIELDS: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Templates as a model's files hold them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TemplateSources {
    /// The one that renders every conversation no other is meant for.
    pub default: Option<String>,
    /// Further ones by name; `tool_use` renders conversations with tools.
    pub named: Vec<(String, String)>,
}

/// Why a conversation has no prompt text; the words are TGI's, to stand behind `Template error: `.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The model brings no template for such a conversation.
    #[error("template not found")]
    NotFound,
    /// The template refused the conversation or stumbled over it; says where.
    #[error("{0}")]
    Render(String),
}

/// A conversation and how to render it.
#[derive(Debug, Clone, Copy)]
pub struct Conversation<'a> {
    /// Messages, each a JSON object; keys whose value is null read as absent.
    pub messages: &'a [Json],
    /// Tools in OpenAI's shape; `None` is not the same as an empty list.
    pub tools: Option<&'a [Json]>,
    /// Documents to answer from, each a JSON object.
    pub documents: Option<&'a [Json]>,
    /// Whether the text ends with the opening of an assistant's message.
    pub add_generation_prompt: bool,
    /// Whether the text ends inside the last message, for the model to go on with it.
    pub continue_final_message: bool,
    /// Further variables of the template, such as `enable_thinking`; they override the special tokens only.
    pub kwargs: Option<&'a Map<String, Json>>,
    /// What `strftime_now` tells, in local time.
    pub now: chrono::NaiveDateTime,
}

/// A model's chat templates, compiled.
///
/// Cost: a clone is one reference count.
#[derive(Clone)]
pub struct ChatTemplate {
    inner: Arc<Inner>,
}

struct Inner {
    default: Option<Compiled>,
    tool_use: Option<Compiled>,
    special_tokens: BTreeMap<String, String>,
}

struct Compiled {
    environment: Environment<'static>,
    source: String,
    mentions_tools: bool,
}

impl ChatTemplate {
    /// Compiles a model's templates.
    ///
    /// `special_tokens` are variables of every template by their role, such as `bos_token` or `pad_token`; roles
    /// without a token stay undefined, as in `transformers`.
    ///
    /// Errors: [`TextError::Template`] with the line of a syntax error; the model's files are at fault.
    pub fn new(
        sources: TemplateSources,
        special_tokens: BTreeMap<String, String>,
    ) -> Result<Self, TextError> {
        let TemplateSources { default, named } = sources;
        let mut named_default = None;
        let mut tool_use = None;
        for (name, source) in named {
            let compiled = Compiled::new(&name, source)?;
            match name.as_str() {
                "default" => named_default = Some(compiled),
                "tool_use" => tool_use = Some(compiled),
                _ => {}
            }
        }
        let default = match default {
            Some(source) => Some(Compiled::new("default", source)?),
            None => named_default,
        };
        Ok(Self {
            inner: Arc::new(Inner {
                default,
                tool_use,
                special_tokens,
            }),
        })
    }

    /// Renders a conversation to the text that is encoded without special tokens.
    ///
    /// With `continue_final_message` the text ends where the last message's text ends; when that text is not in
    /// what the template writes, or the last message has none, the whole conversation stands as it is, as in TGI.
    ///
    /// Errors: [`TemplateError`]; the conversation does not fit the template, so the caller must act.
    /// Cost: grows with the conversation; a template that does not end is stopped after some seconds.
    pub fn render(&self, conversation: &Conversation<'_>) -> Result<String, TemplateError> {
        let compiled = self
            .compiled(conversation.tools.is_some())
            .ok_or(TemplateError::NotFound)?;
        let mut messages: Vec<Json> = conversation.messages.iter().map(normalized).collect();
        if conversation.continue_final_message
            && let Some(text) = continued_text(&mut messages)
        {
            let kept = text.clone();
            text.push_str(CONTINUE_TAG);
            let rendered = self.render_messages(compiled, conversation, &messages, false)?;
            if let Some(cut) = cut_at_tag(rendered, &kept) {
                return Ok(cut);
            }
            messages = conversation.messages.iter().map(normalized).collect();
        }
        let prompt = conversation.add_generation_prompt;
        self.render_messages(compiled, conversation, &messages, prompt)
    }

    /// Whether the template for conversations with tools reads the variable `tools`.
    pub fn mentions_tools(&self) -> bool {
        self.compiled(true)
            .is_some_and(|compiled| compiled.mentions_tools)
    }

    /// The template's text as the model's files have it, if there is one for such conversations.
    pub fn source(&self, with_tools: bool) -> Option<&str> {
        self.compiled(with_tools)
            .map(|compiled| compiled.source.as_str())
    }

    fn compiled(&self, with_tools: bool) -> Option<&Compiled> {
        let tool_use = self.inner.tool_use.as_ref().filter(|_| with_tools);
        tool_use.or(self.inner.default.as_ref())
    }

    fn render_messages(
        &self,
        compiled: &Compiled,
        conversation: &Conversation<'_>,
        messages: &[Json],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        let mut variables: BTreeMap<&str, Value> = BTreeMap::new();
        for (role, token) in &self.inner.special_tokens {
            variables.insert(role, Value::from(token.as_str()));
        }
        for (name, value) in conversation.kwargs.into_iter().flatten() {
            variables.insert(name, Value::from(Serde(value)));
        }
        let list =
            |items: Option<&[Json]>| items.map_or(Value::from(()), |items| Serde(items).into());
        variables.insert("messages", Serde(messages).into());
        variables.insert("tools", list(conversation.tools));
        variables.insert("documents", list(conversation.documents));
        variables.insert("add_generation_prompt", add_generation_prompt.into());
        let now = conversation.now;
        let strftime_now = move |format: &str| environment::strftime(now, format);
        variables.insert("strftime_now", Value::from_function(strftime_now));
        compiled
            .environment
            .get_template(NAME)
            .and_then(|template| template.render(Value::from_pairs(variables)))
            .map_err(|error| TemplateError::Render(error.to_string()))
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("default", &self.source(false))
            .field("tool_use", &self.source(true))
            .field("special_tokens", &self.inner.special_tokens)
            .finish()
    }
}

impl Compiled {
    fn new(name: &str, source: String) -> Result<Self, TextError> {
        let prepared = source::prepare(&source);
        let mentions_tools = source::reads_variable(&prepared, "tools");
        let mut environment = environment::environment();
        environment
            .add_template_owned(NAME, prepared)
            .map_err(|error| TextError::Template {
                name: name.to_owned(),
                reason: error.to_string(),
            })?;
        Ok(Self {
            environment,
            source,
            mentions_tools,
        })
    }
}

/// A message as templates of today read it: without keys whose value is null, and with its reasoning under the
/// names that templates know.
fn normalized(message: &Json) -> Json {
    let Some(fields) = message.as_object() else {
        return message.clone();
    };
    let reasoning = REASONING_FIELDS
        .iter()
        .filter_map(|name| fields.get(*name))
        .find(|value| !value.is_null());
    let mut normalized = Map::new();
    if let Some(reasoning) = reasoning {
        normalized.insert("thinking".to_owned(), reasoning.clone());
    }
    let given = fields.iter().filter(|(_, value)| !value.is_null());
    normalized.extend(given.map(|(name, value)| (name.clone(), value.clone())));
    if let Some(reasoning) = reasoning {
        normalized.insert("reasoning_content".to_owned(), reasoning.clone());
    }
    Json::Object(normalized)
}

/// The text of the last message: its content, or the last part of it that is text.
fn continued_text(messages: &mut [Json]) -> Option<&mut String> {
    match messages.last_mut()?.get_mut("content")? {
        Json::String(text) => Some(text),
        Json::Array(parts) => {
            let part = parts.iter_mut().rev().find_map(|part| part.get_mut("text"));
            match part {
                Some(Json::String(text)) => Some(text),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Cuts a rendered text at the tag, and what the template trims there too; `None` when the message is not in it.
fn cut_at_tag(mut rendered: String, text: &str) -> Option<String> {
    let tag = CONTINUE_TAG.trim_end();
    let at = rendered.rfind(tag)?;
    if !rendered.contains(python::strip(text)) {
        return None;
    }
    let spaced = rendered[at..].starts_with(CONTINUE_TAG);
    rendered.truncate(at);
    if !spaced {
        let kept = python::rstrip(&rendered).len();
        rendered.truncate(kept);
    }
    Some(rendered)
}

#[cfg(test)]
mod tests;
