//! Answers of a given shape, over the socket: whatever the model would rather say.

use std::cell::Cell;
use std::sync::Barrier;
use std::thread;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Map, Value as Json, json};

use crate::support::server::{Sconce, Server};

/// An object with one of each kind of value.
fn person() -> Json {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 12},
            "age": {"type": "integer", "minimum": 18, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
            "born": {"type": "string", "format": "date"},
        },
        "required": ["name", "age", "tags", "born"],
        "additionalProperties": false,
    })
}

fn is_valid(schema: &Json, text: &str) -> bool {
    let validator = jsonschema::draft202012::options()
        .should_validate_formats(true)
        .build(schema)
        .expect("a sound schema");
    serde_json::from_str(text).is_ok_and(|value| validator.is_valid(&value))
}

#[track_caller]
fn guided(server: &Server, grammar: &Json, seed: Option<u64>) -> Json {
    let mut parameters = json!({"grammar": grammar, "max_new_tokens": 200});
    if let Some(seed) = seed {
        parameters["do_sample"] = true.into();
        parameters["seed"] = seed.into();
    }
    server.generate("Tell me about a fox.", parameters)
}

#[test]
fn every_spelling_of_a_schema_is_followed() {
    let server = Sconce::new().serve();
    let schema = person();
    let spellings = [
        json!({"type": "json", "value": schema}),
        json!({"type": "json_object", "value": schema}),
        json!({"type": "json", "value": schema.to_string()}),
        json!({"type": "json_schema", "value": {"name": "person", "schema": schema, "strict": true}}),
    ];
    let mut texts = Vec::new();
    for grammar in &spellings {
        let answer = guided(&server, grammar, None);
        let text = answer["generated_text"].as_str().expect("text");
        assert!(is_valid(&schema, text), "{grammar}: {text}");
        assert_eq!(answer["details"]["finish_reason"], "eos_token");
        let tokens = answer["details"]["tokens"].as_array().expect("tokens");
        assert_eq!(tokens[tokens.len() - 1]["special"], true);
        texts.push(text.to_owned());
    }
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    for seed in 0..20 {
        let answer = guided(&server, &spellings[0], Some(seed));
        let text = answer["generated_text"].as_str().expect("text");
        assert!(is_valid(&schema, text), "seed {seed}: {text}");
    }
}

#[test]
fn a_stream_follows_a_grammar_token_by_token() {
    let server = Sconce::new().serve();
    let body = json!({"inputs": "Call me at", "parameters": {
        "grammar": {"type": "regex", "value": "[0-9]{3}-[0-9]{4}"}, "details": true}});
    let events: Vec<Json> = server.stream("/generate_stream", &body).events();
    let last = &events[events.len() - 1];
    let text = last["generated_text"].as_str().expect("a text");
    let digits = |part: &str, n: usize| part.len() == n && part.bytes().all(|b| b.is_ascii_digit());
    assert!(
        digits(&text[..3], 3) && &text[3..4] == "-" && digits(&text[4..], 4),
        "{text}"
    );
    assert_eq!(last["details"]["finish_reason"], "eos_token");
    assert_eq!(last["token"]["special"], true);
    let pieces = events
        .iter()
        .filter(|event| event["token"]["special"] == false);
    let joined: String = pieces
        .map(|event| event["token"]["text"].as_str().expect("text"))
        .collect();
    assert_eq!(joined, text);
}

#[test]
fn a_lark_grammar_may_name_special_tokens() {
    let server = Sconce::new().serve();
    let grammar = json!({"type": "lark", "value": "start: sum \"=\"\nsum: NUM (\"+\" NUM)~1..3\nNUM: /[0-9]{1,3}/"});
    let answer = guided(&server, &grammar, Some(1));
    let text = answer["generated_text"].as_str().expect("text");
    let sum = text.strip_suffix('=').expect("a sum");
    let numbers: Vec<&str> = sum.split('+').collect();
    assert!((2..=4).contains(&numbers.len()), "{text}");
    assert!(numbers.iter().all(|n| n.parse::<u16>().is_ok()), "{text}");
}

#[test]
fn max_new_tokens_cuts_a_shape_and_says_so() {
    let server = Sconce::new().serve();
    let grammar = json!({"type": "json", "value": person()});
    let answer = server.generate("a", json!({"grammar": grammar, "max_new_tokens": 5}));
    assert_eq!(answer["details"]["finish_reason"], "length");
    assert_eq!(answer["details"]["generated_tokens"], 5);
    // Together with what came before, a prefix of the whole answer.
    let whole = server.generate("a", json!({"grammar": grammar, "max_new_tokens": 200}));
    let cut = answer["generated_text"].as_str().expect("text");
    assert!(
        whole["generated_text"]
            .as_str()
            .expect("text")
            .starts_with(cut)
    );
}

#[test]
fn sampling_settings_apply_to_what_the_grammar_leaves() {
    let server = Sconce::new().serve();
    let grammar = json!({"type": "regex", "value": "(yes|no|maybe)( (yes|no|maybe)){0,4}"});
    for parameters in [
        json!({"top_k": 1}),
        json!({"top_p": 0.05, "temperature": 0.1}),
        json!({"typical_p": 0.999, "temperature": 9.0}),
        json!({"top_p": 0.999999, "temperature": 50.0}),
        json!({"top_k": 100_000, "repetition_penalty": 3.0, "frequency_penalty": 2.0}),
        json!({"top_n_tokens": 5}),
    ] {
        let mut parameters = parameters;
        parameters["grammar"] = grammar.clone();
        parameters["seed"] = 3.into();
        parameters["max_new_tokens"] = 60.into();
        let answer = server.generate("Is it?", parameters.clone());
        let text = answer["generated_text"].as_str().expect("text");
        let words = ["yes", "no", "maybe"];
        assert!(
            text.split(' ').all(|word| words.contains(&word)),
            "{parameters}: {text}"
        );
    }
}

#[track_caller]
fn assert_refused(server: &Server, grammar: &Json, text: &str) {
    let body = json!({"inputs": "a", "parameters": {"grammar": grammar}});
    let expected =
        json!({"error": format!("Input validation error: {text}"), "error_type": "validation"});
    let reply = server.post("/generate", &body);
    assert_eq!(
        (reply.status, reply.json()),
        (422, expected.clone()),
        "{grammar}"
    );
    let events = server.post("/generate_stream", &body).events();
    assert_eq!(events, [expected], "{grammar}");
}

#[test]
fn grammars_that_cannot_be_followed_are_refused_in_words() {
    let server = Sconce::new().serve();
    let json = |value: Json| json!({"type": "json", "value": value});
    let cases = [
        (json(json!(5)), "grammar is not supported"),
        (json(json!(true)), "grammar is not supported"),
        (json(json!(null)), "grammar is not supported"),
        (json(json!(["a"])), "grammar is not supported"),
        (
            json!({"type": "json_schema", "value": {"name": "n", "schema": 5}}),
            "grammar is not supported",
        ),
        (
            json(json!("{]")),
            "grammar is not valid: key must be a string at line 1 column 2",
        ),
        (
            json(json!({"type": "thing", "properties": {}})),
            "grammar is not valid: \"thing\" is not valid under any of the schemas listed in the 'anyOf' keyword",
        ),
        (
            json(json!({"properties": 5})),
            "grammar is not valid: 5 is not of type \"object\"",
        ),
        (
            json(json!({})),
            "grammar is not valid: Grammar must have a 'properties' field",
        ),
        (
            json(json!({"type": "array", "items": {}})),
            "grammar is not valid: Grammar must have a 'properties' field",
        ),
        (
            json(json!({"properties": {"a": {"type": "array", "uniqueItems": true}}})),
            "grammar is not valid: Unimplemented keys: [\"uniqueItems\"]",
        ),
        (
            json!({"type": "regex", "value": "("}),
            "grammar is not valid: regex parse error: unclosed group",
        ),
    ];
    for (grammar, text) in &cases {
        assert_refused(&server, grammar, text);
    }
    // Rules that come first win.
    let body =
        json!({"inputs": "a", "parameters": {"grammar": json(json!(5)), "temperature": 0.0}});
    let reply = server.post("/generate", &body);
    assert_eq!(
        reply.json()["error"],
        "Input validation error: `temperature` must be strictly positive"
    );
    assert_eq!(server.metric("tgi_batch_current_size"), 0.0);
}

#[test]
fn an_operator_can_switch_grammars_off() {
    let server = Sconce::new().env("DISABLE_GRAMMAR_SUPPORT", "true").serve();
    for grammar in [
        json!({"type": "json", "value": person()}),
        json!({"type": "json", "value": 5}),
        json!({"type": "regex", "value": "("}),
        json!({"type": "lark", "value": "start: \"a\""}),
    ] {
        assert_refused(&server, &grammar, "grammar is not supported");
    }
    server.generate("a", json!({"grammar": null, "max_new_tokens": 2}));
}

/// Eight requests with a shape, each its own, and eight without.
fn mixed() -> Vec<Json> {
    (0..16)
        .map(|i| {
            let mut parameters = json!({"max_new_tokens": 90, "details": true});
            if i % 2 == 0 {
                let mut schema = person();
                schema["properties"]["name"]["maxLength"] = (8 + i).into();
                parameters["grammar"] = json!({"type": "json", "value": schema});
            }
            if i % 3 == 0 {
                parameters["do_sample"] = true.into();
                parameters["seed"] = i.into();
            }
            json!({"inputs": format!("Story number {i}: once upon a time"), "parameters": parameters})
        })
        .collect()
}

fn together(server: &Server, bodies: &[Json]) -> Vec<Json> {
    let start = Barrier::new(bodies.len());
    let ask = |body: &Json| {
        start.wait();
        server.post("/generate", body).ok()
    };
    thread::scope(|scope| {
        let asks: Vec<_> = bodies
            .iter()
            .map(|body| scope.spawn(|| ask(body)))
            .collect();
        asks.into_iter()
            .map(|ask| ask.join().expect("an answer"))
            .collect()
    })
}

/// Tokens with their probabilities.
fn tokens(answers: &[Json]) -> Vec<&Json> {
    answers
        .iter()
        .map(|answer| &answer["details"]["tokens"])
        .collect()
}

#[test]
fn shaped_and_free_answers_do_not_disturb_each_other() {
    let server = Sconce::new().serve();
    let bodies = mixed();
    let alone: Vec<Json> = bodies
        .iter()
        .map(|body| server.post("/generate", body).ok())
        .collect();
    assert_eq!(tokens(&together(&server, &bodies)), tokens(&alone));
    let fresh = Sconce::new().serve();
    assert_eq!(tokens(&together(&fresh, &bodies)), tokens(&alone));
}

#[test]
fn a_preempted_answer_keeps_its_shape() {
    let roomy = Sconce::new().serve();
    let tight = Sconce::new()
        .flag("--max-input-tokens", "60")
        .flag("--max-total-tokens", "160")
        .flag("--max-batch-total-tokens", "320")
        .serve();
    let bodies = mixed();
    let expected: Vec<Json> = bodies
        .iter()
        .map(|body| roomy.post("/generate", body).ok())
        .collect();
    assert_eq!(tokens(&together(&tight, &bodies)), tokens(&expected));
    assert!(tight.metric("sconce_preemptions") > 0.0);
    for (body, answer) in bodies.iter().zip(&expected) {
        let schema = &body["parameters"]["grammar"]["value"];
        if answer["details"]["finish_reason"] == "eos_token" && !schema.is_null() {
            assert!(is_valid(
                schema,
                answer["generated_text"].as_str().expect("text")
            ));
        }
    }
}

/// Schemas of all kinds whose values are short.
fn any_schema() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        (0..4_u32, 0..9_u32).prop_map(
            |(least, more)| json!({"type": "string", "minLength": least, "maxLength": least + more})
        ),
        (-50..50_i32, 0..500_i32).prop_map(
            |(low, span)| json!({"type": "integer", "minimum": low, "maximum": low + span})
        ),
        (0..9_i32).prop_map(
            |low| json!({"type": "number", "minimum": low, "multipleOf": 0.25, "maximum": low + 1})
        ),
        Just(json!({"type": "boolean"})),
        Just(json!({"type": ["null", "boolean"]})),
        Just(json!({"enum": ["red", "a \"quoted\" word", 7, null, [1]]})),
        Just(json!({"const": {"é": "\u{1F642}\n"}})),
        Just(json!({"type": "string", "pattern": "^[a-f]{2,4}(-[0-9]{1,3})?$"})),
        prop::sample::select(vec!["date", "uuid", "ipv4"])
            .prop_map(|format| json!({"type": "string", "format": format})),
        Just(json!({"$ref": "#/$defs/pair"})),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        let object = prop::collection::vec((inner.clone(), any::<bool>()), 0..4).prop_map(|list| {
            let name = |i: usize| ["id", "a name", "Größe", "x\"y"][i].to_owned();
            let required: Vec<String> = (0..list.len()).filter(|&i| list[i].1).map(name).collect();
            let properties: Map<String, Json> = list
                .into_iter()
                .enumerate()
                .map(|(i, (schema, _))| (name(i), schema))
                .collect();
            json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
        });
        prop_oneof![
            2 => object,
            1 => (inner.clone(), 0..2_u32, 0..3_u32).prop_map(|(items, least, more)| {
                json!({"type": "array", "items": items, "minItems": least, "maxItems": least + more})
            }),
            1 => prop::collection::vec(inner, 1..3).prop_map(|options| json!({"anyOf": options})),
        ]
    })
}

#[test]
fn whatever_the_schema_what_ends_is_valid() {
    let server = Sconce::new().serve();
    let ended = Cell::new(0);
    let mut runner = TestRunner::new(Config {
        cases: 120,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = runner.run(&(any_schema(), any::<u32>()), |(value, seed)| {
        let schema = json!({
            "type": "object",
            "properties": {"value": value},
            "required": ["value"],
            "additionalProperties": false,
            "$defs": {"pair": {"type": "array", "prefixItems": [{"type": "null"}, {"type": "boolean"}], "items": false, "minItems": 2}},
        });
        let parameters = json!({"grammar": {"type": "json", "value": schema}, "max_new_tokens": 400,
            "temperature": 1.5, "seed": seed});
        let answer = server.generate("Values:", parameters);
        let text = answer["generated_text"].as_str().expect("text");
        if answer["details"]["finish_reason"] == "eos_token" {
            ended.set(ended.get() + 1);
            prop_assert!(is_valid(&schema, text), "{schema}\n{text}");
        }
        Ok(())
    });
    outcome.unwrap_or_else(|e| panic!("{e}"));
    assert!(ended.get() > 60, "only {ended:?} of 120 answers ended");
}
