//! Grammars that make a model call tools, in the syntax its family was trained on.
//!
//! A forced grammar admits calls only. A strict one admits any text, but a call once opened must name an
//! offered tool and fit its schema. Both are llguidance's Lark: what stands around the arguments is literal
//! text, spaced as the families' templates space it, and the arguments are an inline JSON Schema, each
//! tool's on its own, so that references into `$defs` keep their meaning.
//!
//! Everything a grammar lets pass as a call, [`super::ToolParser`] reads as one, and everything the parser
//! takes for a call is held to the schema: the two are written against each other. The module compiles
//! nothing; a schema that cannot be enforced is found out where the grammar is compiled.

use super::xml::{XmlCall, is_text};
use super::{Tool, ToolFormat};
use crate::text::reasoning::ReasoningFormat;
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// Which tools a forced call may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forced<'a> {
    /// Any of those offered.
    Any,
    /// This one.
    Named(&'a str),
}

/// What a grammar must know beside the tools.
#[derive(Clone, Copy)]
pub struct GrammarOptions<'a> {
    /// Whether an answer may hold several calls. TGI's own format has no syntax for that.
    pub parallel: bool,
    /// The id of a token that the grammar's tokenizer knows as special, by its text. Markers without one
    /// are written as text.
    pub special: &'a dyn Fn(&str) -> Option<u32>,
    /// How the model reasons before it answers, if it does.
    pub reasoning: Option<ReasoningFormat>,
    /// Whether the prompt ends within the reasoning already.
    pub starts_reasoning: bool,
}

impl ToolFormat {
    /// Writes the grammar of an answer that is nothing but calls, reasoning before them aside.
    ///
    /// Arguments fit their tool's schema. Where it lists properties and says nothing of others, there are no
    /// others: a model made to go on writing would invent some. With no tool to call, any text passes.
    pub fn grammar(
        self,
        tools: &[Tool],
        choice: Forced<'_>,
        options: &GrammarOptions<'_>,
    ) -> String {
        let tools: Vec<&Tool> = tools
            .iter()
            .filter(|tool| match choice {
                Forced::Any => true,
                Forced::Named(name) => tool.name == name,
            })
            .collect();
        let mut writer = Writer::new(self, &tools, options);
        if tools.is_empty() {
            return writer.finish("TEXT");
        }
        let unit = writer.forced_calls();
        let reasoning = writer.reasoning();
        writer.finish(&format!("{reasoning} PAUSE {unit}"))
    }

    /// Writes the grammar of an answer that may call tools, and if so, correctly.
    ///
    /// An answer of a format whose calls have no marker is a call if it begins like one: with `{`, or with
    /// `[` where calls are Python.
    pub fn strict_grammar(self, tools: &[Tool], options: &GrammarOptions<'_>) -> String {
        let tools: Vec<&Tool> = tools.iter().collect();
        let mut writer = Writer::new(self, &tools, options);
        if tools.is_empty() {
            return writer.finish("TEXT");
        }
        let rest = writer.free_text_and_calls();
        let reasoning = writer.reasoning();
        writer.line("rest", &rest);
        writer.finish(&format!("{reasoning} rest"))
    }
}

/// A grammar being written.
struct Writer<'a> {
    format: ToolFormat,
    options: &'a GrammarOptions<'a>,
    tools: &'a [&'a Tool],
    rules: String,
}

impl<'a> Writer<'a> {
    fn new(format: ToolFormat, tools: &'a [&'a Tool], options: &'a GrammarOptions<'a>) -> Self {
        Self {
            format,
            options,
            tools,
            rules: "TEXT: /(?s:.*)/\nPAUSE: /[ \\n]{0,4}/\n".to_owned(),
        }
    }

    fn line(&mut self, name: &str, body: &str) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.rules, "{name}: {body}");
    }

    fn finish(mut self, start: &str) -> String {
        self.line("start", start);
        self.rules
    }

    /// A marker as the tokenizer has it.
    fn marker(&self, text: &str) -> String {
        match (self.options.special)(text) {
            Some(id) => format!("<[{id}]>"),
            None => literal(text),
        }
    }

    /// A marker the family may go without: nothing, unless the tokenizer has it.
    fn special_marker(&self, text: &str) -> String {
        (self.options.special)(text).map_or_else(String::new, |id| format!("<[{id}]>"))
    }

    fn is_special(&self, text: &str) -> bool {
        (self.options.special)(text).is_some()
    }

    /// The rule for reasoning before the answer, or nothing.
    fn reasoning(&mut self) -> String {
        let Some(format) = self.options.reasoning else {
            return String::new();
        };
        let (open, close) = (self.marker(format.open), self.marker(format.close));
        let is_open = self.options.starts_reasoning;
        let begin = if is_open { "" } else { &open };
        if self.is_special(format.close) {
            self.line("think", &format!("{begin} TEXT {close}"));
        } else if !is_open && self.is_special(format.open) {
            self.line("thought[lazy]", &format!("TEXT {close}"));
            self.line("think", &format!("{begin} thought"));
        } else {
            self.line("think[lazy]", &format!("{begin} TEXT {close}"));
        }
        if is_open { "think" } else { "think?" }.to_owned()
    }

    /// `item`, or several of it in a parallel answer.
    fn several(&self, item: &str, separator: &str) -> String {
        match (self.options.parallel, separator) {
            (false, _) => item.to_owned(),
            (true, "") => format!("{item}+"),
            (true, _) => format!("{item} ({} {item})*", literal(separator)),
        }
    }

    /// Writes the rules of calls and returns the name of the rule for all of them together.
    fn forced_calls(&mut self) -> &'static str {
        let calls = match self.format {
            ToolFormat::Hermes => {
                self.calls();
                let (open, close) = (self.marker("<tool_call>"), self.marker("</tool_call>"));
                self.line("block", &format!("{open} \"\\n\" call \"\\n\" {close}"));
                self.several("block", "\n")
            }
            ToolFormat::QwenXml => {
                self.calls();
                let (open, close) = (self.marker("<tool_call>"), self.marker("</tool_call>"));
                self.line(
                    "block",
                    &format!("{open} \"\\n<function=\" call \"\\n\" {close}"),
                );
                self.several("block", "\n")
            }
            ToolFormat::Pythonic => {
                let list = self.block_behind_marker();
                let open = self.special_marker("<|tool_call_start|>");
                let close = self.special_marker("<|tool_call_end|>");
                format!("{open} {list} {close}")
            }
            ToolFormat::Mistral => {
                let open = self.marker("[TOOL_CALLS]");
                let block = self.block_behind_marker();
                self.line("block", &format!("{open} {block}"));
                if self.has_named_calls() {
                    self.several("block", "")
                } else {
                    "block".to_owned()
                }
            }
            ToolFormat::Granite => {
                let open = self.marker("<|tool_call|>");
                let block = self.block_behind_marker();
                format!("{open} {block}")
            }
            ToolFormat::Llama3Json | ToolFormat::Tgi => self.block_behind_marker(),
        };
        self.line("calls", &calls);
        "calls"
    }

    /// Writes the rules of calls and returns what stands behind an opening marker, or bare.
    fn block_behind_marker(&mut self) -> String {
        self.calls();
        match self.format {
            ToolFormat::Hermes => {
                let close = self.marker("</tool_call>");
                format!("\"\\n\"? call \"\\n\"? {close}")
            }
            ToolFormat::QwenXml => {
                let close = self.marker("</tool_call>");
                format!("\"\\n\"? \"<function=\" call \"\\n\"? {close}")
            }
            ToolFormat::Llama3Json => self.several("call", "; "),
            ToolFormat::Tgi => "call".to_owned(),
            ToolFormat::Mistral if self.has_named_calls() => "call".to_owned(),
            ToolFormat::Mistral => format!("\" \"? \"[\" {} \"]\"", self.several("call", ", ")),
            ToolFormat::Pythonic => format!("\"[\" {} \"]\"", self.several("call", ", ")),
            ToolFormat::Granite => {
                let close = self.special_marker("<|/tool_call|>");
                format!("\"[\" {} \"]\" {close}", self.several("call", ", "))
            }
        }
    }

    /// Text with calls wherever the format allows them.
    fn free_text_and_calls(&mut self) -> String {
        let block = self.block_behind_marker();
        self.line("block", &block);
        let bare = match self.format {
            ToolFormat::Llama3Json | ToolFormat::Tgi => Some('{'),
            ToolFormat::Pythonic => Some('['),
            ToolFormat::Hermes
            | ToolFormat::Mistral
            | ToolFormat::Granite
            | ToolFormat::QwenXml => None,
        };
        self.free_text(bare);
        let mut leads = Vec::new();
        for (at, marker) in self.format.openers().iter().enumerate() {
            let is_function = *marker == XmlCall::OPENER;
            let behind = if is_function { "call" } else { "block" };
            let written = self.marker(marker);
            if self.is_special(marker) {
                let close = match *marker {
                    "<|tool_call_start|>" => self.special_marker("<|tool_call_end|>"),
                    "<|python_start|>" => self.special_marker("<|python_end|>"),
                    _ => String::new(),
                };
                leads.push(format!("FREE {written} {behind} {close}"));
            } else if bare.is_none() {
                self.line(&format!("lead{at}[lazy]"), &format!("FREE {written}"));
                leads.push(format!("lead{at} {behind}"));
            }
        }
        if bare.is_some() {
            leads.push("PAUSE block".to_owned());
            leads.push("FREE".to_owned());
            return leads.join(" | ");
        }
        self.line("led", &leads.join(" | "));
        if self.options.parallel {
            "led* FREE".to_owned()
        } else {
            "led PAUSE | FREE".to_owned()
        }
    }

    /// Writes the terminal of text in which no call begins unless a rule beside it says so: not with `first`,
    /// and not with a marker written as text that no rule looks out for.
    fn free_text(&mut self, first: Option<char>) {
        let mut free = first.map_or_else(
            || format!("/{ANY}/"),
            |first| format!("/\\s*([^\\{first}\\s]{ANY})?/"),
        );
        for marker in self.format.openers() {
            if first.is_some() || self.is_special(marker) {
                let pattern = marker
                    .replace('|', "\\|")
                    .replace('[', "\\[")
                    .replace(']', "\\]");
                let _ = write!(free, " & ~/{ANY}{pattern}{ANY}/");
            }
        }
        self.line("FREE", &free);
    }

    /// Writes the rule of one call, without what stands around it.
    fn calls(&mut self) {
        let mut names = Vec::new();
        for at in 0..self.tools.len() {
            let tool = self.tools[at];
            let call = match self.format {
                ToolFormat::Hermes | ToolFormat::Granite => self.json_call(at, tool, "arguments"),
                ToolFormat::Llama3Json => self.json_call(at, tool, "parameters"),
                ToolFormat::Mistral if self.has_named_calls() => {
                    self.json_rule(&format!("args{at}"), &arguments_schema(tool));
                    let arguments = self.marker("[ARGS]");
                    format!("{} {arguments} args{at}", literal(&tool.name))
                }
                ToolFormat::Mistral => self.json_call(at, tool, "arguments"),
                ToolFormat::Tgi => {
                    self.json_rule(&format!("args{at}"), &named_schema(tool));
                    format!("{} args{at} \"}}\"", literal("{\"function\": "))
                }
                ToolFormat::Pythonic => self.python_call(at, tool),
                ToolFormat::QwenXml => self.xml_call(at, tool),
            };
            self.line(&format!("call{at}"), &call);
            names.push(format!("call{at}"));
        }
        self.line("call", &names.join(" | "));
    }

    /// Whether calls are written the newer Mistral way, which the tokenizer tells.
    fn has_named_calls(&self) -> bool {
        self.is_special("[ARGS]")
    }

    fn json_rule(&mut self, name: &str, schema: &Value) {
        self.line(name, &format!("%json {schema}"));
    }

    fn json_call(&mut self, at: usize, tool: &Tool, key: &str) -> String {
        self.json_rule(&format!("args{at}"), &arguments_schema(tool));
        let name = Value::from(tool.name.as_str());
        let head = format!("{{\"name\": {name}, \"{key}\": ");
        format!("{} args{at} \"}}\"", literal(&head))
    }

    /// A Python call; arguments come in the schema's order, the optional ones or not.
    fn python_call(&mut self, at: usize, tool: &Tool) -> String {
        let (open, close) = (literal(&format!("{}(", tool.name)), literal(")"));
        let Some(properties) = properties(tool) else {
            self.line(&format!("key{at}"), "/[A-Za-z_][A-Za-z0-9_]*/");
            self.json_rule(&format!("value{at}"), &guided(json!({}), tool.strict));
            let pair = format!("key{at} \"=\" value{at}");
            return format!("{open} ({pair} (\", \" {pair})*)? {close}");
        };
        // Rule `first` covers the arguments from this place on if none has been written yet, `next` if one has.
        for (place, property) in properties.iter().enumerate() {
            let value = format!("value{at}_{place}");
            if property
                .schema
                .get("type")
                .is_some_and(|it| it == "boolean")
            {
                self.line(&value, "\"True\" | \"False\"");
            } else {
                self.json_rule(&value, &guided(property.schema.clone(), tool.strict));
            }
            let written = format!("{} {value}", literal(&format!("{}=", property.name)));
            let following = place + 1;
            let (mut first, mut next) = (
                format!("{written} next{at}_{following}"),
                format!("\", \" {written} next{at}_{following}"),
            );
            if !property.is_required {
                let _ = write!(first, " | first{at}_{following}");
                let _ = write!(next, " | next{at}_{following}");
            }
            self.line(&format!("first{at}_{place}"), &first);
            self.line(&format!("next{at}_{place}"), &next);
        }
        let end = properties.len();
        self.line(&format!("first{at}_{end}"), "\"\"");
        self.line(&format!("next{at}_{end}"), "\"\"");
        format!("{open} first{at}_0 {close}")
    }

    /// A call in Qwen's XML, from the tool's name on.
    ///
    /// Strings are plain text there, so of a string's schema only a choice of values can be enforced.
    fn xml_call(&mut self, at: usize, tool: &Tool) -> String {
        let name = literal(&format!("{}>\n", tool.name));
        let end = literal("</function>");
        let value_end = literal("\n</parameter>\n");
        self.line(&format!("text{at}[lazy]"), &format!("TEXT {value_end}"));
        let Some(properties) = properties(tool) else {
            let pair = format!("\"<parameter=\" /[A-Za-z0-9_.-]+/ \">\\n\" text{at}");
            return format!("{name} ({pair})* {end}");
        };
        let mut call = name;
        for (place, property) in properties.iter().enumerate() {
            let open = literal(&format!("<parameter={}>\n", property.name));
            let value = match choices(&property.schema) {
                Some(choices) => format!("({}) {value_end}", choices.join(" | ")),
                None if is_text(Some(&property.schema)) => format!("text{at}"),
                None => {
                    let value = format!("value{at}_{place}");
                    self.json_rule(&value, &guided(property.schema.clone(), tool.strict));
                    format!("{value} {value_end}")
                }
            };
            let many = if property.is_required { "" } else { "?" };
            let _ = write!(call, " ({open} {value}){many}");
        }
        format!("{call} {end}")
    }
}

/// Any text, as a piece of a regular expression.
const ANY: &str = "(?s:.*)";

/// Keywords beside `properties` that say which properties an object may have.
const OTHER_PROPERTIES: &[&str] = &[
    "additionalProperties",
    "patternProperties",
    "unevaluatedProperties",
    "$ref",
    "allOf",
    "anyOf",
    "oneOf",
    "minProperties",
    "maxProperties",
];

/// One property of a tool's arguments.
struct Property {
    name: String,
    schema: Value,
    is_required: bool,
}

/// The properties of a tool's arguments, or `None` if the schema does not list them.
fn properties(tool: &Tool) -> Option<Vec<Property>> {
    let root = tool.parameters.as_object()?;
    let properties = root.get("properties")?.as_object()?;
    let required = root.get("required").and_then(Value::as_array);
    let listed = properties.iter().map(|(name, schema)| {
        let mut schema = match schema {
            Value::Object(schema) => schema.clone(),
            _ => Map::new(),
        };
        for key in ["$defs", "definitions"] {
            if let (Some(shared), false) = (root.get(key), schema.contains_key(key)) {
                schema.insert(key.to_owned(), shared.clone());
            }
        }
        Property {
            name: name.clone(),
            schema: Value::Object(schema),
            is_required: required.is_some_and(|it| it.iter().any(|it| it == name.as_str())),
        }
    });
    Some(listed.collect())
}

/// The string values a schema leaves to choose from, as literals.
fn choices(schema: &Value) -> Option<Vec<String>> {
    let values = match (schema.get("enum"), schema.get("const")) {
        (Some(Value::Array(values)), _) => values.as_slice(),
        (_, Some(value)) => std::slice::from_ref(value),
        _ => return None,
    };
    let texts: Option<Vec<String>> = values
        .iter()
        .map(|value| value.as_str().map(literal))
        .collect();
    texts.filter(|it| !it.is_empty())
}

/// The schema of a tool's arguments as the grammar needs it: an object in any case, and closed where its
/// properties are listed.
fn arguments_schema(tool: &Tool) -> Value {
    let mut schema = match &tool.parameters {
        Value::Object(schema) => schema.clone(),
        _ => Map::new(),
    };
    close(&mut schema);
    guided(Value::Object(schema), tool.strict)
}

/// Makes a schema one of an object, without properties other than those listed, if it lists all.
fn close(schema: &mut Map<String, Value>) {
    schema.insert("type".to_owned(), json!("object"));
    let listed = schema.get("properties").and_then(Value::as_object);
    let is_open = OTHER_PROPERTIES.iter().any(|key| schema.contains_key(*key));
    let required = schema.get("required").and_then(Value::as_array);
    let lists_all = listed.is_some_and(|listed| {
        required
            .into_iter()
            .flatten()
            .all(|name| name.as_str().is_some_and(|name| listed.contains_key(name)))
    });
    if lists_all && !is_open {
        schema.insert("additionalProperties".to_owned(), json!(false));
    }
}

/// The schema of TGI's `function` object: the arguments with `_name` before them.
fn named_schema(tool: &Tool) -> Value {
    let root = match &tool.parameters {
        Value::Object(schema) => schema.clone(),
        _ => Map::new(),
    };
    let mut schema = root.clone();
    close(&mut schema);
    add_name(&mut schema, &root, &tool.name, 0);
    guided(Value::Object(schema), tool.strict)
}

/// Puts `_name` first among the properties of a schema and of all it is composed of.
fn add_name(schema: &mut Map<String, Value>, root: &Map<String, Value>, name: &str, depth: usize) {
    const MAX_DEPTH: usize = 16;
    if let Some(target) = schema.get("$ref").and_then(Value::as_str)
        && let Some(target) = target.strip_prefix('#')
        && let Some(Value::Object(target)) = Value::Object(root.clone()).pointer(target)
        && depth < MAX_DEPTH
    {
        schema.remove("$ref");
        for (key, value) in target {
            schema.entry(key.clone()).or_insert_with(|| value.clone());
        }
        return add_name(schema, root, name, depth + 1);
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        let parts = schema.get_mut(key).and_then(Value::as_array_mut);
        for part in parts.into_iter().flatten().filter_map(Value::as_object_mut) {
            if depth < MAX_DEPTH {
                add_name(part, root, name, depth + 1);
            }
        }
    }
    let mut properties = Map::new();
    properties.insert("_name".to_owned(), json!({"const": name}));
    let mut required = vec![json!("_name")];
    if let Some(Value::Object(listed)) = schema.remove("properties") {
        properties.extend(listed.into_iter().filter(|(key, _)| key != "_name"));
    }
    if let Some(Value::Array(listed)) = schema.remove("required") {
        required.extend(listed);
    }
    let rest = std::mem::take(schema);
    schema.insert("properties".to_owned(), Value::Object(properties));
    schema.insert("required".to_owned(), Value::Array(required));
    schema.extend(rest);
}

/// Adds how JSON is spaced: at most one space behind commas and colons, for a small model that may write
/// white space often writes nothing else. What a schema says that cannot be enforced is passed over
/// unless it must be.
fn guided(mut schema: Value, strict: bool) -> Value {
    if let Value::Object(schema) = &mut schema {
        schema.insert(
            "x-guidance".to_owned(),
            json!({
                "whitespace_flexible": false,
                "item_separator": ",[ ]?",
                "key_separator": ":[ ]?",
                "lenient": !strict,
            }),
        );
    }
    schema
}

/// `text` as a literal of the grammar's language.
fn literal(text: &str) -> String {
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}
