//! Grammars → automata, each once, within bounds.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::derivre::RegexBuilder;
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use lru::LruCache;
use serde_json::{Value as Json, json};

use super::GrammarError;
use super::guide::{Guide, brief};
use super::vocabulary::token_environment;
use crate::generation::{Grammar, TokenId};
use crate::text::Tokenizer;

/// Compiled grammars kept by default, as many as TGI keeps.
pub const CACHED_GRAMMARS: NonZeroUsize = NonZeroUsize::MIN.saturating_add(31);

/// Longest schema, in bytes of its text.
const MAX_GRAMMAR_BYTES: usize = 128 << 10;

/// Longest Lark grammar: each rule may cost a level of recursion.
const MAX_LARK_BYTES: usize = 32 << 10;

/// Longest regular expression, and all patterns of a schema together: some take time as its square.
const MAX_REGEX_BYTES: usize = 8 << 10;

/// Most names given by patterns in a schema, each of which is compared with each other.
const MAX_PATTERN_NAMES: usize = 50;

/// Stack of the thread that compiles; llguidance recurses as deep as a grammar's rules refer to each other.
const STACK_BYTES: usize = 128 << 20;

/// Deepest nesting of brackets in a Lark grammar, whose parser recurses.
const MAX_NESTING: usize = 100;

/// Steps that are tried before a grammar is served.
const TRIED_STEPS: usize = 4;

/// Most properties of one object: compiling takes time as their square.
const MAX_PROPERTIES: usize = 1_000;
/// `multipleOf` becomes an automaton with a state for each remainder; those of a schema together may have so many.
const MAX_REMAINDERS: u64 = 50_000;

/// What one grammar may cost: to compile, at each step, and in memory (some 2 kB a lexer state).
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 2_000,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 100_000,
        step_max_items: 4_000,
        max_lexer_states: 10_000,
        max_grammar_size: 200_000,
        precompute_large_lexemes: true,
        verbose_errors: false,
    }
}

/// What became of a grammar, for good or bad; a bad one is not tried again either.
#[derive(Default)]
struct Entry {
    outcome: OnceLock<Result<Matcher, GrammarError>>,
    spoiled: Arc<AtomicBool>,
}

/// Compiles grammars and remembers the most recent ones.
pub struct Compiler {
    tokenizer: Tokenizer,
    eos: Arc<[TokenId]>,
    factory: OnceLock<Result<ParserFactory, GrammarError>>,
    recent: Mutex<LruCache<Grammar, Arc<Entry>>>,
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Compiler")
    }
}

impl Compiler {
    /// Builds a compiler for a model's tokens; the first grammar pays for reading them.
    pub fn new(tokenizer: Tokenizer, eos: Arc<[TokenId]>, cached: NonZeroUsize) -> Self {
        Self {
            tokenizer,
            eos,
            factory: OnceLock::new(),
            recent: Mutex::new(LruCache::new(cached)),
        }
    }

    /// A guide at the beginning of a grammar that is compiled already, or why there can be none.
    ///
    /// Cost: microseconds, so that it may be asked on any thread.
    pub fn remembered(&self, grammar: &Grammar) -> Option<Result<Guide, GrammarError>> {
        let entry = self.entry(grammar);
        entry.outcome.get().map(|outcome| guide(outcome, &entry))
    }

    /// A guide at the beginning of a grammar. Whoever asks for the same one meanwhile waits for it.
    ///
    /// Errors: as [`GrammarError`].
    /// Cost: milliseconds for a usual schema, up to about a second at the limits; CPU only.
    pub fn compile(&self, grammar: &Grammar) -> Result<Guide, GrammarError> {
        let entry = self.entry(grammar);
        let outcome = entry
            .outcome
            .get_or_init(|| on_a_deep_stack(|| self.matcher(grammar)));
        guide(outcome, &entry)
    }

    fn entry(&self, grammar: &Grammar) -> Arc<Entry> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = recent.get(grammar)
            && !entry.spoiled.load(Ordering::Relaxed)
        {
            return Arc::clone(entry);
        }
        let entry = Arc::new(Entry::default());
        recent.put(grammar.clone(), Arc::clone(&entry));
        entry
    }

    fn matcher(&self, grammar: &Grammar) -> Result<Matcher, GrammarError> {
        let grammar = parse(grammar)?;
        let factory = self.factory.get_or_init(|| {
            let tokens = token_environment(&self.tokenizer, &self.eos)?;
            let mut factory = ParserFactory::new_simple(&tokens).map_err(|e| invalid(&e))?;
            factory.quiet();
            *factory.limits_mut() = limits();
            Ok(factory)
        });
        let factory = factory.as_ref().map_err(GrammarError::clone)?;
        let parser = factory.create_parser(grammar).map_err(|e| invalid(&e))?;
        let matcher = Matcher::new(Ok(parser));
        try_out(matcher.deep_clone()).map_err(|e| invalid(&e))?;
        Ok(matcher)
    }
}

/// Runs `work` on a thread whose stack no grammar within the limits exhausts.
fn on_a_deep_stack<T: Send>(
    work: impl FnOnce() -> Result<T, GrammarError> + Send,
) -> Result<T, GrammarError> {
    let thread = std::thread::Builder::new()
        .name("grammar".to_owned())
        .stack_size(STACK_BYTES);
    std::thread::scope(|scope| {
        let running = thread.spawn_scoped(scope, work).map_err(|e| invalid(&e))?;
        let outcome = running.join();
        outcome.map_err(|_| GrammarError::Invalid("its compilation panicked".to_owned()))?
    })
}

/// Takes a few steps through a grammar, so that one that outgrows the limits at once is refused, not started.
fn try_out(mut matcher: Matcher) -> Result<(), impl std::fmt::Display> {
    for _ in 0..TRIED_STEPS {
        let allowed = matcher.compute_mask_or_eos()?;
        match allowed.first_bit_set() {
            Some(token) if !matcher.is_stopped() => matcher.consume_token(token as u32)?,
            _ => break,
        }
    }
    matcher.compute_mask_or_eos().map(|_| ())
}

fn guide(outcome: &Result<Matcher, GrammarError>, entry: &Entry) -> Result<Guide, GrammarError> {
    let matcher = outcome.as_ref().map_err(GrammarError::clone)?;
    // A guide's automaton is its own: states that one answer adds never count against another's limits.
    Ok(Guide::new(matcher.deep_clone(), Arc::clone(&entry.spoiled)))
}

fn invalid(error: &impl std::fmt::Display) -> GrammarError {
    GrammarError::Invalid(brief(error))
}

fn parse(grammar: &Grammar) -> Result<TopLevelGrammar, GrammarError> {
    let text = match grammar {
        Grammar::JsonObject => "",
        Grammar::JsonSchema(text)
        | Grammar::TgiSchema(text)
        | Grammar::Regex(text)
        | Grammar::Lark(text) => text,
    };
    let most = match grammar {
        Grammar::Regex(_) => MAX_REGEX_BYTES,
        Grammar::JsonObject | Grammar::JsonSchema(_) | Grammar::TgiSchema(_) | Grammar::Lark(_) => {
            MAX_GRAMMAR_BYTES
        }
    };
    check_length("the grammar", text.len(), most)?;
    match grammar {
        Grammar::JsonObject => schema(json!({"type": "object"})),
        Grammar::JsonSchema(text) => schema(from_text(text)?),
        Grammar::TgiSchema(text) => {
            let mut value = match from_text(text)? {
                Json::String(text) => from_text(&text)?,
                object @ Json::Object(_) => object,
                _ => return Err(GrammarError::Unsupported),
            };
            check_schema(&value)?;
            if value.get("properties").is_none() {
                let problem = "Grammar must have a 'properties' field".to_owned();
                return Err(GrammarError::Invalid(problem));
            }
            if let Some(object) = value.as_object_mut() {
                object.entry("type").or_insert_with(|| json!("object"));
            }
            schema(value)
        }
        Grammar::Regex(text) => {
            RegexBuilder::new()
                .mk_regex(text)
                .map_err(|e| invalid(&e))?;
            Ok(TopLevelGrammar::from_regex(&format!("(?:{text})")))
        }
        Grammar::Lark(text) => {
            check_nesting(text)?;
            check_embedded(text)?;
            Ok(TopLevelGrammar::from_lark(text.clone()))
        }
    }
}

fn from_text(text: &str) -> Result<Json, GrammarError> {
    serde_json::from_str(text).map_err(|e| invalid(&e))
}

fn check_length(what: &str, bytes: usize, most: usize) -> Result<(), GrammarError> {
    if bytes <= most {
        return Ok(());
    }
    let problem = format!("{what} has {bytes} bytes, of at most {most}");
    Err(GrammarError::Invalid(problem))
}

/// What makes a schema costly beyond its length.
#[derive(Default)]
struct Weight {
    /// Bytes of all regular expressions.
    pattern_bytes: usize,
    /// How many of them are for names.
    pattern_names: usize,
    /// Properties of the widest object.
    properties: usize,
    /// Remainders of all `multipleOf`.
    remainders: u64,
}

impl Weight {
    fn add(&mut self, schema: &Json) {
        match schema {
            Json::Array(items) => items.iter().for_each(|item| self.add(item)),
            Json::Object(object) => object.iter().for_each(|(key, value)| {
                match (key.as_str(), value) {
                    ("pattern", Json::String(text)) => self.pattern_bytes += text.len(),
                    ("patternProperties", Json::Object(names)) => {
                        self.pattern_names += names.len();
                        self.pattern_bytes += names.keys().map(String::len).sum::<usize>();
                    }
                    ("multipleOf", Json::Number(number)) => {
                        self.remainders = self.remainders.saturating_add(significant(number));
                    }
                    ("properties", Json::Object(names)) => {
                        self.properties = self.properties.max(names.len());
                    }
                    _ => {}
                }
                self.add(value);
            }),
            _ => {}
        }
    }
}

/// A number's digits without sign, point, exponent and zeros at the end.
fn significant(number: &serde_json::Number) -> u64 {
    let text = number.to_string();
    let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let digits = digits.trim_end_matches('0');
    digits
        .parse()
        .unwrap_or(if digits.is_empty() { 0 } else { u64::MAX })
}

fn check_weight(schema: &Json) -> Result<(), GrammarError> {
    let mut weight = Weight::default();
    weight.add(schema);
    check_length(
        "the text of all patterns",
        weight.pattern_bytes,
        MAX_REGEX_BYTES,
    )?;
    for (keyword, count, most) in [
        ("patternProperties", weight.pattern_names, MAX_PATTERN_NAMES),
        ("properties", weight.properties, MAX_PROPERTIES),
    ] {
        if count > most {
            let problem = format!("{keyword} has {count} entries, of at most {most}");
            return Err(GrammarError::Invalid(problem));
        }
    }
    if weight.remainders > MAX_REMAINDERS {
        let problem = format!(
            "the digits of all multipleOf make up {}, of at most {MAX_REMAINDERS}",
            weight.remainders
        );
        return Err(GrammarError::Invalid(problem));
    }
    Ok(())
}

/// Weighs the schemas that stand in the text of a Lark grammar, and measures the text around them.
fn check_embedded(lark: &str) -> Result<(), GrammarError> {
    const MARK: &str = "%json";
    let mut all = Vec::new();
    let mut around = lark.len();
    for (at, _) in lark.match_indices(MARK) {
        let rest = &lark.as_bytes()[at + MARK.len()..];
        let mut schemas = serde_json::Deserializer::from_slice(rest).into_iter::<Json>();
        // What is no JSON is refused where the grammar is read.
        if let Some(Ok(schema)) = schemas.next() {
            all.push(schema);
            around = around.saturating_sub(schemas.byte_offset());
        }
    }
    check_length("the grammar without its schemas", around, MAX_LARK_BYTES)?;
    check_weight(&Json::Array(all))
}

fn check_schema(schema: &Json) -> Result<(), GrammarError> {
    jsonschema::draft202012::meta::validate(schema).map_err(|e| invalid(&e))
}

/// A schema's grammar, with at most one space between two tokens of JSON, as TGI has it, so that a model
/// cannot lose itself in white space.
fn schema(mut schema: Json) -> Result<TopLevelGrammar, GrammarError> {
    check_schema(&schema)?;
    check_weight(&schema)?;
    if schema == Json::Bool(true) {
        schema = json!({});
    }
    let options = JsonCompileOptions {
        whitespace_pattern: Some(r"\x20".to_owned()),
        ..JsonCompileOptions::default()
    };
    if schema.is_object() {
        options.apply_to(&mut schema);
    }
    Ok(TopLevelGrammar::from_json_schema(schema))
}

/// Refuses brackets nested so deep that a recursive parser would exhaust its stack.
fn check_nesting(text: &str) -> Result<(), GrammarError> {
    let mut depth = 0_usize;
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_NESTING {
            let problem = format!("its brackets are nested deeper than {MAX_NESTING}");
            return Err(GrammarError::Invalid(problem));
        }
    }
    Ok(())
}
