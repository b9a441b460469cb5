//! An OpenAPI document reduced to facts that two versions of the format and two authors can be compared by.
//!
//! References, wrappers and the two spellings of null are gone; what is left says, for each operation, its
//! name, bodies and answers, and for each object that is taken or given, its fields. One line is one fact:
//!
//! ```text
//! operation POST /generate generate
//! response POST /generate 200 application/json GenerateResponse
//! takes GenerateParameters.top_p null|number (0,1] optional
//! gives Details.finish_reason "eos_token"|"length"|"stop_sequence" - required
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value as Json;

/// Whether an object stands in requests or in answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Direction {
    Takes,
    Gives,
}

/// Numbers between two ends, each open or closed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    pub low: f64,
    pub low_open: bool,
    pub high: f64,
    pub high_open: bool,
}

impl Interval {
    const ALL: Self = Self {
        low: f64::NEG_INFINITY,
        low_open: true,
        high: f64::INFINITY,
        high_open: true,
    };

    /// Whether every number of this one is in the other.
    pub fn within(&self, other: &Self) -> bool {
        let low =
            self.low > other.low || (self.low == other.low && (self.low_open || !other.low_open));
        let high = self.high < other.high
            || (self.high == other.high && (self.high_open || !other.high_open));
        low && high
    }

    fn or(self, other: Self) -> Self {
        let wider_low = if self.low < other.low || (self.low == other.low && !self.low_open) {
            self
        } else {
            other
        };
        let wider_high = if self.high > other.high || (self.high == other.high && !self.high_open) {
            self
        } else {
            other
        };
        Self {
            low: wider_low.low,
            low_open: wider_low.low_open,
            high: wider_high.high,
            high_open: wider_high.high_open,
        }
    }
}

/// What is known of one field.
#[derive(Debug, Clone, PartialEq)]
pub struct Field {
    /// Names of JSON types and of objects, literals in quotes, lists in brackets.
    pub types: BTreeSet<String>,
    /// For numbers.
    pub bounds: Option<Interval>,
    pub required: bool,
    pub default: Option<String>,
}

/// A document's facts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts {
    /// Facts of operations, as they are written.
    pub operations: BTreeSet<String>,
    /// Fields, by object and name.
    pub fields: BTreeMap<(Direction, String), Field>,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Takes => "takes",
            Self::Gives => "gives",
        })
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let open = if self.low_open { '(' } else { '[' };
        let close = if self.high_open { ')' } else { ']' };
        write!(f, "{open}{},{}{close}", self.low, self.high)
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fact in &self.operations {
            writeln!(f, "{fact}")?;
        }
        for ((direction, path), field) in &self.fields {
            let types = joined(&field.types);
            let bounds = field.bounds.map_or("-".to_owned(), |b| b.to_string());
            let need = if field.required {
                "required"
            } else {
                "optional"
            };
            write!(f, "{direction} {path} {types} {bounds} {need}")?;
            if let Some(default) = &field.default {
                write!(f, " default {default}")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

impl Facts {
    /// Reads what [`Display`](fmt::Display) wrote.
    #[track_caller]
    pub fn parse(text: &str) -> Self {
        let mut facts = Self::default();
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let direction = match words[0] {
                "takes" => Direction::Takes,
                "gives" => Direction::Gives,
                _ => {
                    facts.operations.insert(line.to_owned());
                    continue;
                }
            };
            let field = Field {
                types: alternatives(words[2]),
                bounds: (words[3] != "-").then(|| interval(words[3])),
                required: words[4] == "required",
                default: words.get(6).map(|&default| default.to_owned()),
            };
            facts.fields.insert((direction, words[1].to_owned()), field);
        }
        facts
    }

    /// Reduces a document.
    #[track_caller]
    pub fn of(document: &Json) -> Self {
        let reader = Reader { document };
        let mut facts = Self::default();
        let mut seen = BTreeSet::new();
        for (path, item) in entries(&document["paths"]) {
            for (method, operation) in entries(item) {
                let at = format!("{} {path}", method.to_uppercase());
                let id = operation["operationId"].as_str().unwrap_or("-");
                facts.operations.insert(format!("operation {at} {id}"));
                for tag in operation["tags"].as_array().into_iter().flatten() {
                    let tag = tag.as_str().expect("a tag's name");
                    facts.operations.insert(format!("tag {at} {tag}"));
                }
                for (kind, content) in entries(&operation["requestBody"]["content"]) {
                    for schema in reader.bodies(&content["schema"]) {
                        let types = joined(&reader.types(schema));
                        facts
                            .operations
                            .insert(format!("request {at} {kind} {types}"));
                        reader.fields_of(schema, Direction::Takes, &mut facts, &mut seen);
                    }
                }
                for (status, response) in entries(&operation["responses"]) {
                    if entries(&response["content"]).next().is_none() {
                        facts.operations.insert(format!("response {at} {status}"));
                    }
                    for (kind, content) in entries(&response["content"]) {
                        for schema in reader.bodies(&content["schema"]) {
                            let types = joined(&reader.types(schema));
                            let fact = format!("response {at} {status} {kind} {types}");
                            facts.operations.insert(fact);
                            reader.fields_of(schema, Direction::Gives, &mut facts, &mut seen);
                        }
                    }
                }
            }
        }
        facts
    }
}

struct Reader<'a> {
    document: &'a Json,
}

impl<'a> Reader<'a> {
    /// The schema a reference leads to, with its name; any other schema as it is.
    fn follow(&self, schema: &'a Json) -> (Option<&'a str>, &'a Json) {
        let Some(name) = schema["$ref"].as_str() else {
            return (None, schema);
        };
        let name = name.rsplit('/').next().expect("a name");
        let target = &self.document["components"]["schemas"][name];
        assert!(!target.is_null(), "nothing is named {name}");
        let (_, target) = self.follow(target);
        (Some(name), target)
    }

    /// The alternatives of a body, each for itself.
    fn bodies(&self, schema: &'a Json) -> Vec<&'a Json> {
        let (_, target) = self.follow(schema);
        let parts = any_of(target);
        if parts.is_empty()
            || parts
                .iter()
                .any(|part| any_of(part).is_empty() && part["properties"].is_object())
        {
            return vec![schema];
        }
        parts
            .into_iter()
            .flat_map(|part| self.bodies(part))
            .collect()
    }

    /// Whether a schema is an object with known fields, alone or in all its alternatives.
    fn is_object(&self, schema: &'a Json) -> bool {
        let (_, schema) = self.follow(schema);
        let parts: Vec<_> = any_of(schema).into_iter().chain(all_of(schema)).collect();
        schema["properties"].is_object()
            || (!parts.is_empty() && parts.into_iter().all(|part| self.is_object(part)))
    }

    fn types(&self, schema: &'a Json) -> BTreeSet<String> {
        let (name, target) = self.follow(schema);
        let mut types = BTreeSet::new();
        if schema["nullable"] == true || target["nullable"] == true {
            types.insert("null".to_owned());
        }
        let parts: Vec<_> = any_of(target).into_iter().chain(all_of(target)).collect();
        if let Some(name) = name
            && self.is_object(target)
        {
            types.insert(name.to_owned());
        } else if !parts.is_empty() {
            types.extend(parts.into_iter().flat_map(|part| self.types(part)));
        } else if let Some(values) = target["enum"].as_array() {
            types.extend(values.iter().map(Json::to_string));
        } else {
            let kinds = match &target["type"] {
                Json::Array(kinds) => kinds.iter().filter_map(Json::as_str).collect(),
                kind => kind.as_str().into_iter().collect::<Vec<_>>(),
            };
            if kinds.is_empty() {
                types.insert("any".to_owned());
            }
            for kind in kinds {
                types.insert(match kind {
                    "array" => format!("[{}]", joined(&self.types(&target["items"]))),
                    kind => kind.to_owned(),
                });
            }
        }
        if types.contains("any") {
            types = ["any".to_owned()].into();
        }
        types
    }

    fn bounds(&self, schema: &'a Json) -> Option<Interval> {
        let (_, schema) = self.follow(schema);
        let parts = any_of(schema).into_iter().chain(all_of(schema));
        let parts = parts.filter_map(|part| self.bounds(part));
        if let Some(bounds) = parts.reduce(Interval::or) {
            return Some(bounds);
        }
        let is = |kind: &str| match &schema["type"] {
            Json::Array(kinds) => kinds.iter().any(|k| k == kind),
            one => one == kind,
        };
        if !is("integer") && !is("number") {
            return None;
        }
        let mut bounds = Interval::ALL;
        if is("integer") {
            let unsigned = schema["minimum"].as_f64().is_some_and(|low| low >= 0.0);
            let (low, high) = match (schema["format"] == "int32", unsigned) {
                (true, true) => (0.0, f64::from(u32::MAX)),
                (true, false) => (f64::from(i32::MIN), f64::from(i32::MAX)),
                (false, true) => (0.0, u64::MAX as f64),
                (false, false) => (i64::MIN as f64, u64::MAX as f64),
            };
            bounds = Interval {
                low,
                low_open: false,
                high,
                high_open: false,
            };
        }
        if let Some(low) = schema["minimum"].as_f64() {
            (bounds.low, bounds.low_open) = (low, false);
        }
        if let Some(low) = schema["exclusiveMinimum"].as_f64() {
            (bounds.low, bounds.low_open) = (low, true);
        }
        if let Some(high) = schema["maximum"].as_f64() {
            (bounds.high, bounds.high_open) = (high, false);
        }
        if let Some(high) = schema["exclusiveMaximum"].as_f64() {
            (bounds.high, bounds.high_open) = (high, true);
        }
        Some(bounds)
    }

    /// The fields of an object, those of its alternatives and parts among them.
    fn merged(&self, schema: &'a Json) -> BTreeMap<&'a str, (Vec<&'a Json>, bool)> {
        let (_, schema) = self.follow(schema);
        let mut fields = BTreeMap::new();
        for (name, field) in entries(&schema["properties"]) {
            let required = schema["required"].as_array();
            let required = required.is_some_and(|names| names.iter().any(|n| n == name));
            fields.insert(name, (vec![field], required));
        }
        for part in all_of(schema) {
            fields.extend(self.merged(part));
        }
        let parts: Vec<_> = any_of(schema)
            .into_iter()
            .map(|part| self.merged(part))
            .collect();
        for part in &parts {
            for (name, (schemas, _)) in part {
                let everywhere = parts
                    .iter()
                    .all(|p| p.get(name).is_some_and(|(_, need)| *need));
                let field = fields
                    .entry(*name)
                    .or_insert_with(|| (Vec::new(), everywhere));
                field.0.extend(schemas);
            }
        }
        fields
    }

    /// Notes the fields of every object that a schema leads to.
    fn fields_of(
        &self,
        schema: &'a Json,
        direction: Direction,
        facts: &mut Facts,
        seen: &mut BTreeSet<(Direction, &'a str)>,
    ) {
        let (name, target) = self.follow(schema);
        if let Some(name) = name
            && self.is_object(target)
        {
            if !seen.insert((direction, name)) {
                return;
            }
            for (field, (schemas, required)) in self.merged(target) {
                let types = schemas
                    .iter()
                    .flat_map(|schema| self.types(schema))
                    .collect();
                let bounds = schemas.iter().filter_map(|schema| self.bounds(schema));
                let default = schemas
                    .iter()
                    .find_map(|schema| default(&schema["default"]));
                let noted = Field {
                    types,
                    bounds: bounds.reduce(Interval::or),
                    required,
                    default,
                };
                facts
                    .fields
                    .insert((direction, format!("{name}.{field}")), noted);
                for schema in schemas {
                    self.fields_of(schema, direction, facts, seen);
                }
            }
            return;
        }
        let parts = any_of(target).into_iter().chain(all_of(target));
        for part in parts.chain(entries(&target["properties"]).map(|(_, field)| field)) {
            self.fields_of(part, direction, facts, seen);
        }
        if target["items"].is_object() {
            self.fields_of(&target["items"], direction, facts, seen);
        }
    }
}

fn entries(json: &Json) -> impl Iterator<Item = (&str, &Json)> {
    let entries = json.as_object().into_iter().flatten();
    entries.map(|(name, value)| (name.as_str(), value))
}

fn any_of(schema: &Json) -> Vec<&Json> {
    let lists = [&schema["oneOf"], &schema["anyOf"]];
    let parts = lists.into_iter().filter_map(Json::as_array).flatten();
    parts.collect()
}

fn all_of(schema: &Json) -> Vec<&Json> {
    schema["allOf"].as_array().into_iter().flatten().collect()
}

/// A default as a word; TGI writes its own as strings.
fn default(written: &Json) -> Option<String> {
    let word = written.as_str().map_or(written.to_string(), str::to_owned);
    (word != "null" && word != "[]").then_some(word)
}

fn joined(types: &BTreeSet<String>) -> String {
    types
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join("|")
}

/// Splits at bars outside brackets.
pub fn alternatives(types: &str) -> BTreeSet<String> {
    let mut depth = 0;
    let split = types.split(|c| {
        match c {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => {}
        }
        c == '|' && depth == 0
    });
    split.map(str::to_owned).collect()
}

#[track_caller]
fn interval(written: &str) -> Interval {
    let (low, high) = written[1..written.len() - 1]
        .split_once(',')
        .expect("two ends");
    Interval {
        low: low.parse().expect("a number"),
        low_open: written.starts_with('('),
        high: high.parse().expect("a number"),
        high_open: written.ends_with(')'),
    }
}
