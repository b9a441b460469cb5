//! Tests of the floor on a small vocabulary: single bytes, a few longer tokens, three special ones.

use std::num::NonZeroUsize;
use std::sync::Arc;

use serde_json::{Map, Value as Json, json};

use super::*;
use crate::generation::{Grammar, TokenId};
use crate::text::{SpecialTokens, Tokenizer};

const END: TokenId = TokenId(0);
const TURN: TokenId = TokenId(1);
const CALL: TokenId = TokenId(2);

/// Printable ASCII (a space is `Ġ`), then some tokens that cross the borders of JSON's own.
fn tokenizer() -> Tokenizer {
    let special = ["<|end|>", "<|turn|>", "<|call|>"];
    let mut words: Vec<String> = special.map(str::to_owned).to_vec();
    words.extend((b'!'..=b'~').map(|byte| char::from(byte).to_string()));
    words.extend(["Ġ", "Ċ", "{\"", "\":", "true", "abc", "é"].map(str::to_owned));
    let vocab: Map<String, Json> = words
        .into_iter()
        .zip((0..).map(|i: u32| json!(i)))
        .collect();
    let added: Vec<Json> = special
        .iter()
        .zip(0..)
        .map(|(text, id): (_, u32)| {
            json!({"id": id, "content": text, "special": true, "single_word": false,
                   "lstrip": false, "rstrip": false, "normalized": false})
        })
        .collect();
    let file = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": added,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    Tokenizer::from_json(file.to_string().as_bytes(), SpecialTokens::default()).unwrap()
}

fn compiler() -> Compiler {
    let eos = Arc::from([END, TURN, TokenId(9999)]);
    Compiler::new(tokenizer(), eos, NonZeroUsize::new(2).unwrap())
}

fn schema(schema: &Json) -> Grammar {
    Grammar::JsonSchema(schema.to_string())
}

fn id(text: &str) -> TokenId {
    let name = text.replace(' ', "Ġ").replace('\n', "Ċ");
    tokenizer().id_of(&name).expect("a token of the vocabulary")
}

/// Whether the guide lets the text be written token by token, one character each, and where it stops.
fn follow(guide: &mut Guide, text: &str) -> Result<(), usize> {
    for (at, c) in text.char_indices() {
        let token = id(&c.to_string());
        guide.prepare().unwrap();
        if !guide.mask().unwrap().allows(token) {
            return Err(at);
        }
        guide.accept(token).unwrap();
    }
    Ok(())
}

fn allowed(guide: &mut Guide) -> Vec<TokenId> {
    guide.prepare().unwrap();
    let mask = guide.mask().unwrap();
    let ids = (0..200).map(TokenId);
    let allowed: Vec<TokenId> = ids.filter(|id| mask.allows(*id)).collect();
    assert_eq!(mask.num_allowed(), allowed.len());
    allowed
}

/// Whether a grammar takes a whole text: written to its end, and the end allowed there.
fn takes(grammar: &Grammar, text: &str) -> bool {
    let mut guide = compiler().compile(grammar).unwrap();
    follow(&mut guide, text).is_ok() && allowed(&mut guide).contains(&END)
}

fn refusal(grammar: &Grammar) -> String {
    compiler().compile(grammar).unwrap_err().to_string()
}

#[test]
fn a_regex_is_anchored_and_ends_in_any_end_token() {
    let mut guide = compiler()
        .compile(&Grammar::Regex("a[bc]{1,2}".into()))
        .unwrap();
    assert_eq!(allowed(&mut guide), [id("a"), id("abc")]);
    assert_eq!(guide.mask().unwrap().only(), None);
    follow(&mut guide, "ac").unwrap();
    assert_eq!(allowed(&mut guide), [END, TURN, id("b"), id("c")]);
    follow(&mut guide, "b").unwrap();
    assert_eq!(allowed(&mut guide), [END, TURN]);
    // Asking again changes nothing.
    assert_eq!(allowed(&mut guide), [END, TURN]);
}

#[test]
fn one_way_forward_is_known_as_such() {
    let mut guide = compiler().compile(&Grammar::Regex("x".into())).unwrap();
    guide.prepare().unwrap();
    assert_eq!(guide.mask().unwrap().only(), Some(id("x")));
}

#[test]
fn special_tokens_are_allowed_only_where_a_grammar_names_them() {
    let grammar = Grammar::Lark("start: \"a\" <|call|> /[<|>a-z]+/".into());
    let mut guide = compiler().compile(&grammar).unwrap();
    assert_eq!(allowed(&mut guide), [id("a")]);
    follow(&mut guide, "a").unwrap();
    assert_eq!(allowed(&mut guide), [CALL]);
    guide.accept(CALL).unwrap();
    let after = allowed(&mut guide);
    assert!(after.contains(&id("<")) && !after.contains(&CALL) && !after.contains(&END));
    let anything = Grammar::Regex("(?s:.)*".into());
    let free = allowed(&mut compiler().compile(&anything).unwrap());
    assert!(free.contains(&END) && free.contains(&TURN) && !free.contains(&CALL));
}

#[test]
fn white_space_in_json_is_one_space_at_most() {
    let grammar = schema(
        &json!({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "null"}}}}),
    );
    for text in [r#"{"a":[null,null]}"#, r#"{ "a" : [ null , null ] }"#] {
        assert!(takes(&grammar, text), "{text}");
    }
    for text in [r#"{  "a":[]}"#, "{\n\"a\":[]}", r#" {"a":[]}"#] {
        assert!(!takes(&grammar, text), "{text}");
    }
    let mut guide = compiler().compile(&grammar).unwrap();
    follow(&mut guide, r#"{"a":[]}"#).unwrap();
    // Once the object is closed nothing can follow but an end.
    assert_eq!(allowed(&mut guide), [END, TURN]);
}

#[test]
fn schemas_mean_what_they_say() {
    let takes_refuses: [(Json, &[&str], &[&str]); 14] = [
        (
            json!({"type": "integer", "minimum": 3, "maximum": 12}),
            &["3", "12"],
            &["2", "13", "3.5"],
        ),
        (
            json!({"type": "number", "exclusiveMinimum": 0, "maximum": 1}),
            &["0.5", "1"],
            &["0", "1.5", "-1"],
        ),
        (
            json!({"type": "string", "minLength": 2, "maxLength": 3}),
            &[r#""ab""#],
            &[r#""a""#, r#""abcd""#],
        ),
        (
            json!({"type": "string", "pattern": "^[a-c]+$"}),
            &[r#""abc""#],
            &[r#""abd""#, r#""""#],
        ),
        (
            json!({"type": "string", "format": "date"}),
            &[r#""2024-02-29""#],
            &[r#""2024-13-01""#, r#""x""#],
        ),
        (
            json!({"type": "string", "format": "uuid"}),
            &[r#""01234567-89ab-cdef-0123-456789abcdef""#],
            &[r#""0123""#],
        ),
        (
            json!({"enum": ["a", 1, null]}),
            &[r#""a""#, "1", "null"],
            &[r#""b""#, "2"],
        ),
        (
            json!({"const": {"k": [1]}}),
            &[r#"{"k":[1]}"#],
            &[r#"{"k":[2]}"#, "{}"],
        ),
        (
            json!({"anyOf": [{"type": "null"}, {"type": "boolean"}]}),
            &["null", "true"],
            &["1"],
        ),
        (
            json!({"oneOf": [
                {"type": "object", "properties": {"k": {"const": "a"}}, "required": ["k"], "additionalProperties": false},
                {"type": "object", "properties": {"k": {"const": "b"}}, "required": ["k"], "additionalProperties": false}]}),
            &[r#"{"k":"a"}"#, r#"{"k":"b"}"#],
            &[r#"{"k":"c"}"#],
        ),
        (
            json!({"allOf": [{"type": "integer", "minimum": 2}, {"maximum": 4}]}),
            &["2", "4"],
            &["1", "5"],
        ),
        (
            json!({"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2}),
            &["[true]", "[true,false]"],
            &["[]", "[true,true,true]", "[1]"],
        ),
        (
            json!({"$ref": "#/$defs/tree", "$defs": {"tree": {
                "type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "null"}]}},
                "required": ["next"], "additionalProperties": false}}}),
            &[r#"{"next":{"next":null}}"#],
            &["{}", r#"{"other":null}"#],
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"],
                   "additionalProperties": {"type": "integer"}}),
            &[r#"{"a":null}"#, r#"{"a":null,"b":1}"#],
            &["{}", r#"{"a":null,"b":true}"#],
        ),
    ];
    for (document, good, bad) in takes_refuses {
        let validator = jsonschema::validator_for(&document).unwrap();
        for text in good {
            assert!(
                takes(&schema(&document), text),
                "{document} must take {text}"
            );
            assert!(validator.is_valid(&serde_json::from_str(text).unwrap()));
        }
        for text in bad {
            assert!(
                !takes(&schema(&document), text),
                "{document} must not take {text}"
            );
        }
    }
}

#[test]
fn any_object_is_an_object() {
    for (text, taken) in [
        (r#"{"b":[1,{"c":"d"}]}"#, true),
        ("{}", true),
        ("[]", false),
        ("1", false),
    ] {
        assert_eq!(takes(&Grammar::JsonObject, text), taken, "{text}");
    }
}

#[test]
fn roots_that_only_tgi_refuses() {
    let array = json!({"type": "array", "items": {"type": "null"}});
    assert!(takes(&schema(&array), "[null]"));
    assert_eq!(
        refusal(&Grammar::TgiSchema(array.to_string())),
        "grammar is not valid: Grammar must have a 'properties' field"
    );
    // TGI takes what has `properties` for an object, whatever else its type could be.
    let object = json!({"properties": {"a": {"type": "null"}}}).to_string();
    assert!(!takes(&Grammar::TgiSchema(object.clone()), "true"));
    assert!(takes(
        &Grammar::TgiSchema(json!(object).to_string()),
        r#"{"a":null}"#
    ));
}

#[test]
fn refusals_name_what_is_wrong() {
    let tgi = |value: Json| Grammar::TgiSchema(value.to_string());
    let cases = [
        (tgi(json!(5)), "grammar is not supported"),
        (tgi(json!([])), "grammar is not supported"),
        (
            tgi(json!("{")),
            "grammar is not valid: EOF while parsing an object at line 1 column 1",
        ),
        (
            tgi(json!("5")),
            "grammar is not valid: 5 is not of types \"boolean\", \"object\"",
        ),
        (
            tgi(json!({"properties": 5})),
            "grammar is not valid: 5 is not of type \"object\"",
        ),
        (
            schema(&json!({"type": "array", "uniqueItems": true})),
            "grammar is not valid: Unimplemented keys: [\"uniqueItems\"]",
        ),
        (
            schema(&json!({"oneOf": [{"minimum": 1}, {"maximum": 3}]})),
            "grammar is not valid: oneOf is supported only where its options exclude each other",
        ),
        (
            Grammar::Regex("(".into()),
            "grammar is not valid: regex parse error: unclosed group",
        ),
        (
            Grammar::Regex("a)(b".into()),
            "grammar is not valid: regex parse error: unopened group",
        ),
    ];
    for (grammar, text) in cases {
        assert_eq!(refusal(&grammar), text);
    }
    assert!(
        refusal(&schema(&json!(false))).starts_with("grammar is not valid: Unsatisfiable schema")
    );
    let lark = refusal(&Grammar::Lark("start: nothing".into()));
    assert!(
        lark.starts_with("grammar is not valid: ") && lark.contains("nothing"),
        "{lark}"
    );
}

#[test]
fn schemas_that_become_huge_automata_are_refused_wherever_they_stand() {
    let heavy = [
        json!({"properties": {"a": {"type": "integer", "multipleOf": 999_983}}}),
        json!({"properties": {"a": {"type": "number", "multipleOf": 0.123_456_7}}}),
        json!({"anyOf": vec![json!({"type": "integer", "multipleOf": 9_999}); 6]}),
        json!({"type": "object", "patternProperties": (0..400).map(|i| (format!("^{i}$"), json!({}))).collect::<Map<_, _>>()}),
    ];
    for heavy in heavy {
        let lark = Grammar::Lark(format!("start: \"x\" %json {heavy} \"y\" %json {{}}\n"));
        for grammar in [schema(&heavy), lark] {
            let refused = compiler().compile(&grammar).err();
            let text = refused.map(|e| e.to_string()).unwrap_or_default();
            assert!(text.contains("of at most"), "{text}: {heavy}");
        }
    }
    let many: String = (0..40)
        .map(|i| {
            let tool = json!({"type": "object", "properties": {(format!("p{i}")): {"type": "string", "description": "x".repeat(900)}}});
            format!("t{i}: %json {tool}\n")
        })
        .collect();
    let all: Vec<String> = (0..40).map(|i| format!("t{i}")).collect();
    let tools = Grammar::Lark(format!("start: {}\n{many}", all.join(" | ")));
    assert!(
        compiler().compile(&tools).is_ok(),
        "schemas do not count as Lark"
    );
    for light in [json!(60), json!(1_000_000), json!(0.001), json!(3_600)] {
        let light = schema(&json!({"type": "number", "multipleOf": light}));
        assert!(compiler().compile(&light).is_ok(), "{light:?}");
    }
}

#[test]
fn what_costs_too_much_is_refused_in_bounded_time() {
    let wide: Map<String, Json> = (0..1000).map(|i| (format!("p{i}"), json!({}))).collect();
    let options = |i: usize| -> Vec<Json> {
        (0..6)
            .map(|j| json!({"type": "object", "properties": {(format!("p{i}_{j}")): {"type": "null"}}}))
            .collect()
    };
    let product: Vec<Json> = (0..12).map(|i| json!({"anyOf": options(i)})).collect();
    let chain = |rule: char, end: &str| -> Grammar {
        let rules: String = (0..2500)
            .map(|i| format!("{rule}{i}: {rule}{}\n", i + 1))
            .collect();
        Grammar::Lark(format!("start: {rule}0\n{rules}{rule}2500: {end}\n"))
    };
    let lists: String = (0..2000)
        .map(|i| format!("r{i}: \"a\" r{}\n", i + 1))
        .collect();
    let hostile = [
        schema(&json!({"type": "object", "properties": wide})),
        schema(&json!({"allOf": product})),
        schema(&json!({"type": "string", "pattern": "a?b".repeat(80_000)})),
        Grammar::Regex("a".repeat(300_000)),
        Grammar::Regex("a".repeat(8_000)),
        Grammar::Regex("a?".repeat(4_000)),
        Grammar::Regex("(a|b)*".repeat(1_300)),
        Grammar::Regex("(a|b?c)+?[^x]".repeat(600)),
        Grammar::Regex("(.{1,9}a|x)*".repeat(600)),
        schema(&json!({"enum": (0..8_000).map(|i| json!(format!("{i}word"))).collect::<Vec<_>>()})),
        schema(
            &json!({"anyOf": (0..2000).map(|i| json!({"type": "object", "properties": {(format!("p{i}")): {"type": "null"}}})).collect::<Vec<_>>()}),
        ),
        schema(
            &json!({"anyOf": (0..5000).map(|i| json!({"type": "string", "maxLength": i})).collect::<Vec<_>>()}),
        ),
        schema(
            &json!({"anyOf": (0..3000).map(|i| json!({"type": "number", "multipleOf": (0.001 * f64::from(i + 1))})).collect::<Vec<_>>()}),
        ),
        schema(
            &json!({"allOf": (0..3000).map(|i| json!({"type": "string", "format": (["email", "date", "hostname"][i % 3])})).collect::<Vec<_>>()}),
        ),
        schema(&json!({"type": "string", "pattern": "a?b".repeat(2_500)})),
        schema(
            &json!({"type": "object", "patternProperties": (0..700).map(|i| (format!("^{i}(a|b)*$"), json!({}))).collect::<Map<_, _>>()}),
        ),
        Grammar::Regex("(".repeat(100_000)),
        Grammar::Regex(format!("{}a{}", "(".repeat(240), ")+".repeat(240))),
        Grammar::Regex(format!("({}){{1000}}", "[a-z]{1,100}x?".repeat(2000))),
        Grammar::Lark(format!(
            "start: {}\"a\"{}",
            "(".repeat(30_000),
            ")".repeat(30_000)
        )),
        Grammar::Lark("start: start start | \"a\" | \"\"".into()),
        Grammar::Lark(format!("start: {}\"a\"", "\"a\" | ".repeat(5_000))),
        Grammar::Lark(format!("start: r0\n{lists}r2000: \"b\"\n")),
        chain('r', "\"a\""),
        chain('r', "r0 \"a\" | \"a\""),
        chain('R', "\"a\""),
        chain('r', "%json {\"type\": \"object\"}"),
    ];
    for grammar in hostile {
        let began = std::time::Instant::now();
        let text = format!("{grammar:?}");
        let outcome = compiler().compile(&grammar).map(|mut guide| {
            for _ in 0..50 {
                guide.prepare()?;
                let mask = guide.mask().unwrap();
                let next = (3..200).map(TokenId).find(|id| mask.allows(*id));
                let Some(next) = next else { break };
                guide.accept(next)?;
            }
            Ok::<(), GuideError>(())
        });
        let took = began.elapsed();
        let problem = match outcome {
            Err(e) => e.to_string(),
            Ok(Err(e)) => e.to_string(),
            Ok(Ok(())) => String::new(),
        };
        assert!(problem.len() < 400 && !problem.contains('\n'), "{problem}");
        assert!(took.as_secs() < 10, "{}", &text[..60.min(text.len())]);
    }
}

#[test]
fn a_grammar_is_compiled_once_and_the_least_used_is_forgotten() {
    let compiler = compiler();
    let [a, b, c] = ["a", "b", "c"].map(|text| Grammar::Regex(text.into()));
    assert!(compiler.remembered(&a).is_none());
    for grammar in [&a, &b] {
        compiler.compile(grammar).unwrap();
    }
    assert!(compiler.remembered(&a).is_some());
    compiler.compile(&c).unwrap();
    assert!(compiler.remembered(&a).is_some() && compiler.remembered(&c).is_some());
    assert!(compiler.remembered(&b).is_none());
    let bad = Grammar::Regex("(".into());
    compiler.compile(&bad).unwrap_err();
    assert!(compiler.remembered(&bad).unwrap().is_err());
}

#[test]
fn guides_of_one_grammar_do_not_disturb_each_other() {
    let compiler = compiler();
    let grammar = Grammar::Regex("a(b|c)".into());
    let mut first = compiler.compile(&grammar).unwrap();
    follow(&mut first, "ab").unwrap();
    let mut second = compiler.compile(&grammar).unwrap();
    assert_eq!(allowed(&mut second), [id("a")]);
    assert_eq!(allowed(&mut first), [END, TURN]);
}

#[test]
fn a_guide_that_fails_is_reported_and_its_grammar_made_anew() {
    let compiler = compiler();
    let grammar = Grammar::Regex("ab".into());
    let mut guide = compiler.compile(&grammar).unwrap();
    guide.accept(id("x")).unwrap_err();
    guide.prepare().unwrap_err();
    assert!(compiler.remembered(&grammar).is_none());
    assert_eq!(allowed(&mut compiler.compile(&grammar).unwrap()), [id("a")]);
}

#[test]
fn a_model_without_an_end_token_has_no_grammars() {
    let compiler = Compiler::new(tokenizer(), Arc::from([]), CACHED_GRAMMARS);
    let refused = compiler.compile(&Grammar::JsonObject).map(|_| ());
    assert_eq!(refused, Err(GrammarError::Unsupported));
}
