//! Grammars: what they let pass, and that the parser reads it back as calls that fit their schemas.

use super::*;
use crate::text::reasoning::ReasoningFormat;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::ApproximateTokEnv;
use llguidance::{Matcher, ParserFactory};

/// Specials the byte vocabulary of llguidance's tests has, by their id.
fn some_special(text: &str) -> Option<u32> {
    match text {
        "<|python_tag|>"
        | "<tool_call>"
        | "[TOOL_CALLS]"
        | "<|tool_call|>"
        | "<|tool_call_start|>" => Some(256),
        "</tool_call>" | "[ARGS]" | "<|/tool_call|>" | "<|tool_call_end|>" => Some(257),
        "<think>" => Some(258),
        "</think>" => Some(259),
        _ => None,
    }
}

fn options(special: &dyn Fn(&str) -> Option<u32>) -> GrammarOptions<'_> {
    GrammarOptions {
        parallel: true,
        special,
        reasoning: None,
        starts_reasoning: false,
    }
}

fn matcher(grammar: &str) -> Matcher {
    let mut factory = ParserFactory::new_simple(&ApproximateTokEnv::single_byte_env()).unwrap();
    factory.quiet();
    let parser = factory.create_parser(TopLevelGrammar::from_lark(grammar.to_owned()));
    let matcher = Matcher::new(parser);
    assert!(!matcher.is_error(), "{:?}\n{grammar}", matcher.get_error());
    matcher
}

/// Whether a grammar takes this for a whole answer; `«256»` stands for a token by its id.
fn accepts(grammar: &str, answer: &str) -> bool {
    let mut tokens = Vec::new();
    for (at, part) in answer.split('«').enumerate() {
        let (id, text) = if at == 0 {
            ("", part)
        } else {
            part.split_once('»').unwrap()
        };
        tokens.extend(id.parse::<u32>());
        tokens.extend(text.bytes().map(u32::from));
    }
    let mut matcher = matcher(grammar);
    let read = matcher.try_consume_tokens(&tokens).unwrap();
    let accepted = read == tokens.len() && matcher.is_accepting().unwrap();
    if !accepted {
        println!("read {read} of {} bytes of {answer:?}", tokens.len());
    }
    accepted
}

/// An answer with special tokens for the parser.
fn parse_with_specials(format: ToolFormat, answer: &str) -> Vec<Piece> {
    let mut answer = answer.to_owned();
    for marker in format.openers().iter().chain(&[
        "</tool_call>",
        "[ARGS]",
        "<|/tool_call|>",
        "<|tool_call_end|>",
    ]) {
        if let Some(id) = some_special(marker) {
            answer = answer.replace(&format!("«{id}»"), &format!("\u{1}!{marker}\u{1}"));
        }
    }
    read(format, &answer.split('\u{1}').collect::<Vec<_>>())
}

/// The answer of a model that calls a tool, as forced: name, arguments, and whether that may pass.
fn forced_calls() -> Vec<(&'static str, Value, bool)> {
    vec![
        ("get_weather", json!({"city": "Paris"}), true),
        (
            "get_weather",
            json!({"city": "P\"a)r]i}s\né", "days": 3, "unit": "F", "now": true}),
            true,
        ),
        ("get_weather", json!({"city": "Paris", "unit": "C"}), true),
        ("get_weather", json!({"days": 3}), false),
        ("get_weather", json!({"city": "Paris", "days": 10}), false),
        (
            "get_weather",
            json!({"city": "Paris", "days": "3 days"}),
            false,
        ),
        ("get_weather", json!({"city": "Paris", "unit": "K"}), false),
        ("get_weather", json!({"city": "Paris", "zip": 1}), false),
        ("tree", json!({"root": {"v": 1.5, "next": {"v": -2}}}), true),
        (
            "tree",
            json!({"root": {"v": 1.5, "next": {"w": -2}}}),
            false,
        ),
        ("any", json!({"x": "y", "z": [1, {"a": null}]}), true),
        ("any", json!({}), true),
        ("now", json!({}), true),
        ("now", json!({"x": 1}), false),
        ("rm", json!({}), false),
    ]
}

/// A call spelled exactly as the forced grammar spells it.
fn forced_text(format: ToolFormat, name: &str, arguments: &Value, specials: bool) -> String {
    let mut text = write_call(format, name, arguments, 0).trim_end().to_owned();
    if format == ToolFormat::Pythonic && name == "any" {
        // Behind a value of any kind the grammar is JSON's.
        text = text.replace("None", "null");
    }
    text = text.replace("{\"function\":{", "{\"function\": {");
    if format == ToolFormat::Mistral && specials {
        text = format!("[TOOL_CALLS]{name}[ARGS]{arguments}");
    }
    if specials {
        if format == ToolFormat::Granite {
            text.push_str("<|/tool_call|>");
        }
        if format == ToolFormat::Pythonic {
            text = format!("<|tool_call_start|>{text}<|tool_call_end|>");
        }
        for marker in [
            "<tool_call>",
            "</tool_call>",
            "[TOOL_CALLS]",
            "[ARGS]",
            "<|tool_call|>",
            "<|/tool_call|>",
            "<|tool_call_start|>",
            "<|tool_call_end|>",
        ] {
            let id = some_special(marker).unwrap();
            text = text.replace(marker, &format!("«{id}»"));
        }
    }
    text
}

#[test]
fn forced_grammars_take_valid_calls_only_and_the_parser_reads_them() {
    let none = |_: &str| None;
    for format in FORMATS {
        for specials in [false, true] {
            let special: &dyn Fn(&str) -> Option<u32> =
                if specials { &some_special } else { &none };
            let grammar = format.grammar(&tools(), Forced::Any, &options(special));
            for (name, arguments, valid) in forced_calls() {
                let text = forced_text(format, name, &arguments, specials);
                assert_eq!(
                    accepts(&grammar, &text),
                    valid,
                    "{format:?} {text}\n{grammar}"
                );
                if valid {
                    let (rest, calls, ends) = summary(&parse_with_specials(format, &text));
                    assert_eq!(
                        (rest.as_str(), calls.len(), ends),
                        ("", 1, 1),
                        "{format:?} {text}"
                    );
                    assert_eq!(calls[0].0, name);
                    let read: Value = serde_json::from_str(&calls[0].1).unwrap();
                    if format == ToolFormat::QwenXml && name == "any" {
                        continue;
                    }
                    assert_eq!(read, arguments, "{format:?} {text}");
                }
            }
            for text in ["", "Hello", "{}", "[", "{\"name\": \"now\"}"] {
                assert!(!accepts(&grammar, text), "{format:?} {text}");
            }
        }
    }
}

#[test]
fn a_named_choice_and_parallel_calls_are_held_to() {
    let none = |_: &str| None;
    for format in FORMATS {
        let now = forced_text(format, "now", &json!({}), false);
        let weather = forced_text(format, "get_weather", &json!({"city": "x"}), false);
        let named = format.grammar(&tools(), Forced::Named("now"), &options(&none));
        assert!(accepts(&named, &now), "{format:?}");
        assert!(!accepts(&named, &weather), "{format:?}");
        let two = match format {
            ToolFormat::Hermes | ToolFormat::QwenXml => format!("{now}\n{weather}"),
            ToolFormat::Llama3Json => format!("{now}; {weather}"),
            ToolFormat::Pythonic | ToolFormat::Mistral | ToolFormat::Granite => {
                let behind = weather.find('[').unwrap() + 1;
                let behind = if format == ToolFormat::Mistral {
                    weather.rfind('[').unwrap() + 1
                } else {
                    behind
                };
                format!("{}, {}", &now[..now.len() - 1], &weather[behind..])
            }
            ToolFormat::Tgi => continue,
        };
        let mut options = options(&none);
        assert!(
            accepts(&format.grammar(&tools(), Forced::Any, &options), &two),
            "{format:?} {two}"
        );
        options.parallel = false;
        assert!(
            !accepts(&format.grammar(&tools(), Forced::Any, &options), &two),
            "{format:?}"
        );
        let (rest, calls, ends) = summary(&read(format, &[&two]));
        assert_eq!((rest.as_str(), calls.len(), ends), ("", 2, 2));
    }
}

#[test]
fn strict_grammars_take_text_and_valid_calls() {
    let none = |_: &str| None;
    for format in FORMATS {
        let is_bare = matches!(
            format,
            ToolFormat::Llama3Json | ToolFormat::Tgi | ToolFormat::Pythonic
        );
        for specials in [false, true] {
            let special: &dyn Fn(&str) -> Option<u32> =
                if specials { &some_special } else { &none };
            let grammar = format.strict_grammar(&tools(), &options(special));
            for text in [
                "",
                "Hello.\n\n1 < 2 {}[]",
                " <tool",
                "\n\nA [TOOL",
                "<b>é</b>",
            ] {
                assert!(accepts(&grammar, text), "{format:?} {text:?}\n{grammar}");
            }
            for (name, arguments, valid) in forced_calls() {
                let text = forced_text(format, name, &arguments, specials);
                assert_eq!(
                    accepts(&grammar, &text),
                    valid,
                    "{format:?} {text}\n{grammar}"
                );
                let has_marker = !is_bare || specials && format == ToolFormat::Pythonic;
                if has_marker {
                    let text = format!("Let me see: {text}");
                    assert_eq!(
                        accepts(&grammar, &text),
                        valid,
                        "{format:?} {text}\n{grammar}"
                    );
                }
                if !is_bare {
                    let text = format!("{text}\nand {text} so");
                    assert_eq!(
                        accepts(&grammar, &text),
                        valid,
                        "{format:?} {text}\n{grammar}"
                    );
                }
            }
            let mut single = options(special);
            single.parallel = false;
            let single = format.strict_grammar(&tools(), &single);
            let now = forced_text(format, "now", &json!({}), specials);
            assert!(accepts(&single, &now), "{format:?}");
            assert!(accepts(&single, "Just text."), "{format:?}");
            assert!(!accepts(&single, &format!("{now}\n{now}")), "{format:?}");
        }
    }
    // A marker spelled out where the tokenizer has one, and space that is not ASCII, open nothing.
    for format in [ToolFormat::Hermes, ToolFormat::Mistral] {
        let spelled = format.strict_grammar(&tools(), &options(&some_special));
        assert!(
            !accepts(&spelled, &format!("a {}", format.openers()[0])),
            "{format:?}"
        );
    }
    let tgi = ToolFormat::Tgi.strict_grammar(&tools(), &options(&none));
    assert!(!accepts(&tgi, "\u{a0}{\"name\": \"now\"}"));
    // With a special marker a bare format may call behind text.
    let llama = ToolFormat::Llama3Json.strict_grammar(&tools(), &options(&some_special));
    assert!(accepts(
        &llama,
        "Hm. «256»{\"name\": \"now\", \"parameters\": {}}"
    ));
    assert!(!accepts(
        &llama,
        "Hm. «256»{\"name\": \"rm\", \"parameters\": {}}"
    ));
}

#[test]
fn grammars_leave_room_for_reasoning() {
    let none = |_: &str| None;
    let think = ReasoningFormat {
        open: "<think>",
        close: "</think>",
    };
    for format in FORMATS {
        for specials in [false, true] {
            let special: &dyn Fn(&str) -> Option<u32> =
                if specials { &some_special } else { &none };
            let (open, close) = if specials {
                ("«258»", "«259»")
            } else {
                ("<think>", "</think>")
            };
            let good = forced_text(format, "now", &json!({}), specials);
            let bad = forced_text(format, "rm", &json!({}), specials);
            for starts_reasoning in [false, true] {
                let options = GrammarOptions {
                    reasoning: Some(think),
                    starts_reasoning,
                    ..options(special)
                };
                let open = if starts_reasoning { "" } else { open };
                let forced = format.grammar(&tools(), Forced::Any, &options);
                let strict = format.strict_grammar(&tools(), &options);
                for grammar in [&forced, &strict] {
                    let is_told = specials || starts_reasoning || grammar == &forced;
                    let thought = if is_told { "<tool_call>" } else { "" };
                    let text = format!("{open}\nWell, {{[ {thought}.\n{close}\n\n{good}");
                    assert!(accepts(grammar, &text), "{format:?} {text}\n{grammar}");
                    let text = format!("{open}\nWell.\n{close}\n\n{bad}");
                    assert!(!accepts(grammar, &text), "{format:?} {text}\n{grammar}");
                    assert_eq!(
                        accepts(grammar, &good),
                        !starts_reasoning,
                        "{format:?}\n{grammar}"
                    );
                }
                assert!(
                    accepts(&strict, &format!("{open}Hm.{close}\n\nYes.")),
                    "{format:?}"
                );
            }
        }
    }
}

#[test]
fn schemas_of_all_kinds_compile() {
    let schemas = [
        json!({}),
        json!(true),
        json!({"type": "object"}),
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"x": {"type": "string"}}, "required": ["x"], "additionalProperties": false}}}),
        json!({"anyOf": [
            {"properties": {"x": {"type": "string"}}, "required": ["x"], "additionalProperties": false},
            {"properties": {"x": {"const": 3}, "y": {"type": "null"}}, "required": ["y"], "additionalProperties": false},
        ]}),
        json!({"type": ["object", "null"], "properties": {"x": {"type": ["string", "null"], "title": "X", "default": null, "examples": ["a"]}}, "$schema": "http://json-schema.org/draft-07/schema#"}),
        json!({"properties": {"x": {"type": "string"}}, "required": ["x", "y"]}),
    ];
    let none = |_: &str| None;
    for schema in schemas {
        for format in FORMATS {
            let tools = [
                tool("a \"b\\\u{7f}", schema.clone()),
                tool("t", schema.clone()),
            ];
            matcher(&format.grammar(&tools, Forced::Any, &options(&none)));
            matcher(&format.strict_grammar(&tools, &options(&none)));
            let call = forced_text(format, "t", &json!({"x": "q"}), false);
            let grammar = format.grammar(&tools, Forced::Any, &options(&none));
            let needs_y = schema.pointer("/required/1").is_some()
                && !matches!(format, ToolFormat::Pythonic | ToolFormat::QwenXml);
            assert_eq!(
                accepts(&grammar, &call),
                !needs_y,
                "{format:?} {call}\n{grammar}"
            );
        }
    }
    let lenient = Tool {
        strict: false,
        ..tool(
            "t",
            json!({"properties": {"x": {"type": "string", "format": "geo"}}}),
        )
    };
    matcher(&ToolFormat::Hermes.grammar(&[lenient], Forced::Any, &options(&none)));
}

/// Asserts that every complete call of an answer fits its tool's schema.
fn assert_calls_fit(pieces: &[Piece], answer: &str) -> usize {
    let (_, calls, ends) = summary(pieces);
    for (name, arguments) in &calls[..ends] {
        let tools = tools();
        let tool = tools.iter().find(|tool| tool.name == *name).unwrap();
        let arguments: Value = serde_json::from_str(arguments).unwrap();
        let schema = if tool.parameters.is_null() {
            json!({"type": "object"})
        } else {
            tool.parameters.clone()
        };
        assert!(
            jsonschema::is_valid(&schema, &arguments),
            "{name} {arguments} in {answer:?}"
        );
    }
    ends
}

/// The next of a sequence of numbers that look random.
fn next(random: &mut u64) -> u64 {
    *random = random
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *random >> 33
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(80))]

    #[test]
    fn what_a_forced_grammar_lets_pass_is_read_and_fits(format in format(), mut random in any::<u64>()) {
        let none = |_: &str| None;
        let mut matcher = matcher(&format.grammar(&tools(), Forced::Any, &options(&none)));
        let mut answer = Vec::new();
        while answer.len() < 400 && !matcher.is_stopped() {
            let mask = matcher.compute_mask().unwrap();
            // No exponents: a valid one may lie beyond every number the test could compare it to.
            let in_number = answer.last().is_some_and(u8::is_ascii_digit);
            let mut allowed: Vec<u32> = (9..127_u32)
                .filter(|byte| mask.is_allowed(*byte) && !(in_number && b"eE".contains(&(*byte as u8))))
                .collect();
            if matcher.is_accepting().unwrap() && next(&mut random).is_multiple_of(2) || allowed.is_empty() {
                break;
            }
            // Most steps close something, or answers would never end.
            if !next(&mut random).is_multiple_of(8) && allowed.iter().any(|byte| b"\"})]\n".contains(&(*byte as u8))) {
                allowed.retain(|byte| b"\"})]\n".contains(&(*byte as u8)));
            }
            let byte = allowed[next(&mut random) as usize % allowed.len()];
            matcher.consume_token(byte).unwrap();
            answer.push(byte as u8);
        }
        let whole = matcher.is_accepting().unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let mut parser = ToolParser::new(format, &tools());
        let mut pieces = parser.push(&answer, false);
        pieces.extend(parser.finish());
        let ends = assert_calls_fit(&pieces, &answer);
        let (text, calls, _) = summary(&pieces);
        if whole {
            prop_assert!(ends > 0 && ends == calls.len() && text.is_empty(), "{format:?} {answer:?} {pieces:?}");
        }
    }

    #[test]
    fn no_call_escapes_a_strict_grammar(
        format in format(),
        tokens in hostile(),
        arguments in prop::sample::select(forced_calls()),
        parallel in any::<bool>(),
        specials in any::<bool>(),
    ) {
        let none = |_: &str| None;
        let special: &dyn Fn(&str) -> Option<u32> = if specials { &some_special } else { &none };
        let options = GrammarOptions { parallel, ..options(special) };
        let mut matcher = matcher(&format.strict_grammar(&tools(), &options));
        let mut answer = Vec::new();
        let (name, arguments, _) = arguments;
        let call = write_call(format, name, &arguments, 0);
        let body = call.trim_start_matches(|c| c != '{').to_owned();
        for token in tokens.iter().flat_map(|token| [token, &call, token, &body]) {
            let ids: Vec<u32> = match token.strip_prefix('!') {
                None => token.bytes().map(u32::from).collect(),
                Some(marker) => special(marker)
                    .filter(|id| *id != 256 || format.openers().contains(&marker))
                    .into_iter()
                    .collect(),
            };
            if matcher.validate_tokens(&ids).unwrap() == ids.len() {
                matcher.consume_tokens(&ids).unwrap();
                if !ids.is_empty() {
                    answer.push(token.as_str());
                }
            }
        }
        assert_calls_fit(&read(format, &answer), &answer.concat());
    }
}
