//! Answers as the families write them, and properties that hold for any answer.

use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

mod grammars;

const FORMATS: [ToolFormat; 7] = [
    ToolFormat::Hermes,
    ToolFormat::Llama3Json,
    ToolFormat::Pythonic,
    ToolFormat::Mistral,
    ToolFormat::Granite,
    ToolFormat::QwenXml,
    ToolFormat::Tgi,
];

fn tool(name: &str, parameters: Value) -> Tool {
    Tool {
        name: name.to_owned(),
        description: None,
        parameters,
        strict: true,
    }
}

fn tools() -> Vec<Tool> {
    let weather = json!({
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
            "unit": {"enum": ["C", "F"]},
            "now": {"type": "boolean"}
        },
        "required": ["city"]
    });
    let tree = json!({
        "type": "object",
        "properties": {"root": {"$ref": "#/$defs/node"}},
        "required": ["root"],
        "$defs": {"node": {
            "type": "object",
            "properties": {"v": {"type": "number"}, "next": {"$ref": "#/$defs/node"}},
            "required": ["v"],
            "additionalProperties": false
        }}
    });
    vec![
        tool("get_weather", weather),
        tool("tree", tree),
        tool("any", Value::Null),
        tool("now", json!({"type": "object", "properties": {}})),
    ]
}

/// All pieces with neighbours of one kind joined.
fn joined(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut all: Vec<Piece> = Vec::new();
    for piece in pieces {
        match (all.last_mut(), piece) {
            (Some(Piece::Text(text)), Piece::Text(more)) => text.push_str(&more),
            (
                Some(Piece::Arguments { index, text }),
                Piece::Arguments {
                    index: at,
                    text: more,
                },
            ) => {
                assert_eq!(*index, at);
                text.push_str(&more);
            }
            (_, piece) => all.push(piece),
        }
    }
    all
}

/// Reads tokens, those that begin with `!` as special ones.
fn read(format: ToolFormat, tokens: &[&str]) -> Vec<Piece> {
    let mut parser = ToolParser::new(format, &tools());
    let mut pieces = Vec::new();
    for token in tokens {
        match token.strip_prefix('!') {
            Some(special) => pieces.extend(parser.push(special, true)),
            None => pieces.extend(parser.push(token, false)),
        }
    }
    pieces.extend(parser.finish());
    joined(pieces)
}

/// What an answer comes to: its text, its calls, and how many of them are complete. A call that a marker cut off has
/// no end, and others may follow it.
fn summary(pieces: &[Piece]) -> (String, Vec<(String, String)>, usize) {
    let (mut text, mut calls, mut ends, mut open) = (String::new(), Vec::new(), 0, false);
    for piece in pieces {
        match piece {
            Piece::Text(more) => text.push_str(more),
            Piece::CallStart { index, name } => {
                assert_eq!(*index, calls.len());
                calls.push((name.clone(), String::new()));
                open = true;
            }
            Piece::Arguments { index, text } => {
                assert_eq!((index + 1, open), (calls.len(), true));
                calls[*index].1.push_str(text);
            }
            Piece::CallEnd { index } => {
                assert_eq!((index + 1, open), (calls.len(), true));
                ends += 1;
                open = false;
            }
        }
    }
    (text, calls, ends)
}

#[test]
fn a_call_that_a_marker_cuts_off_has_no_end_and_the_next_one_follows() {
    let cut = r#"{"name": "any", "arguments": {"name": "now""#;
    let tokens = [
        cut,
        "!<|python_tag|>",
        r#"{"name": "any", "arguments": {}}"#,
    ];
    let (text, calls, ends) = summary(&read(ToolFormat::Llama3Json, &tokens));
    let calls: Vec<(&str, &str)> = calls
        .iter()
        .map(|(name, arguments)| (&**name, &**arguments))
        .collect();
    assert_eq!(calls, [("any", r#"{"name": "now""#), ("any", "{}")]);
    assert_eq!((text.as_str(), ends), ("", 1));
}

/// Asserts that an answer holds this text and these complete calls.
fn assert_reads(format: ToolFormat, tokens: &[&str], text: &str, calls: &[(&str, Value)]) {
    let (read_text, read_calls, ends) = summary(&read(format, tokens));
    let read_calls: Vec<(&str, Value)> = read_calls
        .iter()
        .map(|(name, arguments)| {
            let arguments = serde_json::from_str(arguments).unwrap_or_else(|_| json!(arguments));
            (name.as_str(), arguments)
        })
        .collect();
    assert_eq!(read_calls, calls, "{format:?} {tokens:?}");
    assert_eq!(read_text, text, "{format:?} {tokens:?}");
    assert_eq!(ends, calls.len(), "{format:?} {tokens:?}");
}

#[test]
fn hermes_calls() {
    let read = |tokens: &[&str], text: &str, calls: &[(&str, Value)]| {
        assert_reads(ToolFormat::Hermes, tokens, text, calls);
    };
    let paris = ("get_weather", json!({"city": "Paris"}));
    let block = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>";
    let one = std::slice::from_ref(&paris);
    read(&[block], "", one);
    read(&["\n\n", block, "\n"], "", one);
    read(&["Let me see.\n", block], "Let me see.\n", one);
    read(&[block, "\nDone."], "\nDone.", one);
    read(&[block, "\n", block], "", &[paris.clone(), paris.clone()]);
    let body = &block[11..block.len() - 12];
    read(
        &["!<tool_call>", body, "!</tool_call>", "!<|im_end|>"],
        "",
        one,
    );
    read(
        &["!<tool_call>", body, "!<tool_call>", body],
        "",
        &[paris.clone(), paris.clone()],
    );
    // The outer brace or the closing marker left out, the block opened twice, two calls in a block.
    read(&[&block.replace("}}", "}")], "", one);
    read(&[&block[..block.len() - 12]], "", one);
    read(&["<tool_call>", block], "", one);
    read(
        &[&block.replace("</tool_call>", body)],
        "",
        &[paris.clone(), paris.clone()],
    );
    // Other orders, other keys, other shapes of arguments.
    for body in [
        "{\"arguments\": {\"city\": \"Paris\"}, \"name\": \"get_weather\"}",
        "{\"name\":\"get_weather\",\"parameters\":{\"city\":\"Paris\"}}",
        "{\"id\": 7, \"thought\": [\"}\"], \"name\": \"get_weather\", \"arguments\": \"{\\\"city\\\": \\\"Paris\\\"}\"}",
        "{\"arguments\": \"{\\\"city\\\": \\\"Paris\\\"}\", \"name\": \"get_weather\"}",
        "{\"type\": \"function\", \"function\": {\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}}",
    ] {
        read(&["<tool_call>", body, "</tool_call>"], "", one);
    }
    for none in [
        "{\"name\": \"now\"}",
        "{\"name\": \"now\", \"arguments\": null}",
        "{\"name\": \"now\", \"arguments\": \"\"}",
    ] {
        read(
            &["<tool_call>", none, "</tool_call>"],
            "",
            &[("now", json!({}))],
        );
    }
}

#[test]
fn what_is_no_call_is_text() {
    let unknown = "<tool_call>\n{\"name\": \"rm\", \"arguments\": {}}\n</tool_call>";
    for text in [
        unknown,
        "a <tool_call> b",
        "<tool_call></tool_call>",
        "<tool_call>\n{\"name\": \"now\", \"arguments\": [1]}\n</tool_call>",
        "<tool_call>{\"name\": \"now\", \"arg",
        "<tool_call>{]",
        "<tool_",
        " \n ",
    ] {
        assert_reads(ToolFormat::Hermes, &[text], text, &[]);
    }
    for text in [
        "{\"name\": \"rm\", \"parameters\": {}}",
        "{\"a\": 1}",
        "{\"name\": \"now\", \"age\": 3}",
        "{}",
        "{",
        "; {",
    ] {
        assert_reads(ToolFormat::Llama3Json, &[text], text, &[]);
        assert_reads(ToolFormat::Tgi, &[text], text, &[]);
    }
    for text in [
        "{\"function\": {\"_name\": \"no_tool\"}}",
        "{\"function\": {\"_name\": \"notify_error\", \"error\": \"x\"}}",
        "{\"function\": {\"city\": \"Paris\"}}",
    ] {
        assert_reads(ToolFormat::Tgi, &[text], text, &[]);
    }
    for text in [
        "[1, 2]",
        "[link](http://x)",
        "[rm(a=1)]",
        "[now",
        "see [now()]",
    ] {
        assert_reads(ToolFormat::Pythonic, &[text], text, &[]);
    }
    for text in [
        "[TOOL_CALLS]rm[ARGS]{}",
        "[TOOL_CALLS] none",
        "[TOOL_CALLS][]",
        "[1]",
    ] {
        assert_reads(ToolFormat::Mistral, &[text], text, &[]);
    }
    for text in [
        "<function=rm>",
        "<tool_call>\n<function",
        "<function=now",
        "<func>",
    ] {
        assert_reads(ToolFormat::QwenXml, &[text], text, &[]);
    }
    // Behind a list of calls and behind its tool's name and arguments a bare object is text.
    let bare = " {\"name\": \"now\"}";
    let now = [("now", json!({}))];
    assert_reads(
        ToolFormat::Granite,
        &["<|tool_call|>[{\"name\": \"now\"}]", bare],
        bare,
        &now,
    );
    assert_reads(
        ToolFormat::Mistral,
        &["[TOOL_CALLS]now[ARGS]{}", bare],
        bare,
        &now,
    );
    // After a failed call another may stand.
    assert_reads(
        ToolFormat::Hermes,
        &[unknown, "<tool_call>{\"name\": \"now\"}"],
        unknown,
        &[("now", json!({}))],
    );
    // Special tokens are no text, markers among them.
    assert_reads(ToolFormat::Hermes, &["!<s>", "!<tool_call>", "x"], "x", &[]);
}

#[test]
fn llama_calls() {
    let paris = ("get_weather", json!({"city": "Paris"}));
    let call = "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}";
    let one = std::slice::from_ref(&paris);
    for tokens in [
        &[call][..],
        &["\n", call],
        &["<|python_tag|>", call],
        &["!<|python_tag|>", call, "!<|eom_id|>"],
        &[
            "{\"type\": \"function\", \"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}",
        ],
    ] {
        assert_reads(ToolFormat::Llama3Json, tokens, "", one);
    }
    let two = [paris.clone(), paris.clone()];
    assert_reads(ToolFormat::Llama3Json, &[call, "; ", call], "", &two);
    assert_reads(ToolFormat::Llama3Json, &[call, "\n", call], "", &two);
    assert_reads(
        ToolFormat::Llama3Json,
        &["I see: ", call],
        &format!("I see: {call}"),
        &[],
    );
    assert_reads(
        ToolFormat::Llama3Json,
        &["Hm. ", "!<|python_tag|>", call],
        "Hm. ",
        one,
    );
}

#[test]
fn python_calls() {
    let read = |tokens: &[&str], text: &str, calls: &[(&str, Value)]| {
        assert_reads(ToolFormat::Pythonic, tokens, text, calls);
    };
    let full = (
        "get_weather",
        json!({"city": "Par)is, [", "days": 2, "now": true}),
    );
    let text = "[get_weather(city=\"Par)is, [\", days = 2, now=True)]";
    read(&[text], "", std::slice::from_ref(&full));
    read(
        &["<|python_start|>", text, "<|python_end|>"],
        "",
        std::slice::from_ref(&full),
    );
    read(
        &["!<|tool_call_start|>", text, "!<|tool_call_end|>", " Wait."],
        " Wait.",
        &[full],
    );
    read(
        &["[now(), any(a=[1, {'b': None}], c='é')]"],
        "",
        &[
            ("now", json!({})),
            ("any", json!({"a": [1, {"b": null}], "c": "é"})),
        ],
    );
    read(
        &["[get_weather('Paris', 3)]"],
        "",
        &[("get_weather", json!({"city": "Paris", "days": 3}))],
    );
    read(
        &["[any(a='b, c)', d='it\\'s')]"],
        "",
        &[("any", json!({"a": "b, c)", "d": "it's"}))],
    );
    read(
        &["[get_weather(city=Paris)]"],
        "",
        &[("get_weather", json!({"city": "Paris"}))],
    );
    read(&["[now(), rm()]"], ", rm()]", &[("now", json!({}))]);
}

#[test]
fn mistral_calls() {
    let read = |tokens: &[&str], text: &str, calls: &[(&str, Value)]| {
        assert_reads(ToolFormat::Mistral, tokens, text, calls);
    };
    let paris = ("get_weather", json!({"city": "Paris"}));
    let one = std::slice::from_ref(&paris);
    let two = [paris.clone(), paris.clone()];
    let call =
        "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}, \"id\": \"abcdefghi\"}";
    read(&["[TOOL_CALLS] [", call, "]"], "", one);
    read(
        &["!<s>", "!", "!", "!", "[TOOL_CALLS]"],
        "[TOOL_CALLS]",
        &[],
    );
    read(
        &["!", "![TOOL_CALLS]", "[", call, ", ", call, "]"],
        "",
        &two,
    );
    read(
        &[
            "Ok. ",
            "![TOOL_CALLS]",
            "get_weather",
            "![ARGS]",
            "{\"city\": \"Paris\"}",
        ],
        "Ok. ",
        one,
    );
    read(
        &[
            "[TOOL_CALLS]get_weather[CALL_ID]12ab[ARGS]{\"city\": \"Paris\"}[TOOL_CALLS]get_weather{\"city\":\"Paris\"}",
        ],
        "",
        &two,
    );
    read(
        &[
            "![TOOL_CALLS]",
            "get_weather",
            "![CALL_ID]",
            "abc",
            "![ARGS]",
            "{\"city\": \"Paris\"}",
            "![TOOL_CALLS]",
            "now",
            "![ARGS]",
            "{}",
        ],
        "",
        &[paris.clone(), ("now", json!({}))],
    );
}

#[test]
fn granite_xml_and_tgi_calls() {
    let paris = ("get_weather", json!({"city": "Paris"}));
    let one = std::slice::from_ref(&paris);
    let call = "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}";
    assert_reads(
        ToolFormat::Granite,
        &["<|tool_call|>[", call, "]<|/tool_call|>"],
        "",
        one,
    );
    assert_reads(ToolFormat::Granite, &["!<|tool_call|>", call], "", one);

    let xml = "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>";
    let days = ("get_weather", json!({"city": "Paris", "days": 3}));
    assert_reads(ToolFormat::QwenXml, &[xml], "", std::slice::from_ref(&days));
    assert_reads(
        ToolFormat::QwenXml,
        &["Yes.\n\n", &xml[12..]],
        "Yes.\n\n",
        std::slice::from_ref(&days),
    );
    assert_reads(
        ToolFormat::QwenXml,
        &[xml, "\n", xml],
        "",
        &[days.clone(), days],
    );
    assert_reads(
        ToolFormat::QwenXml,
        &["<function=any>  <parameter=x>5</parameter>\n</tool_call>"],
        "",
        &[("any", json!({"x": "5"}))],
    );

    for text in [
        "{\"function\": {\"_name\": \"get_weather\", \"city\": \"Paris\"}}",
        "{\"function\": {\"city\": \"Paris\", \"_name\": \"get_weather\"}}",
        "{ \"function\" : { \"_name\" : \"get_weather\" , \"city\" : \"Paris\" } }",
        "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}",
        "{\"_name\": \"get_weather\", \"city\": \"Paris\"}",
        "{\"function\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}",
    ] {
        assert_reads(ToolFormat::Tgi, &[text], "", one);
    }
    assert_reads(
        ToolFormat::Tgi,
        &["{\"function\": {\"_name\": \"now\"}}"],
        "",
        &[("now", json!({}))],
    );
    let named = ("any", json!({"name": "Bob", "arguments": [1]}));
    assert_reads(
        ToolFormat::Tgi,
        &["{\"function\": {\"_name\": \"any\", \"name\": \"Bob\", \"arguments\": [1]}}"],
        "",
        &[named],
    );
}

#[test]
fn text_and_arguments_stream_as_soon_as_they_are_certain() {
    let mut parser = ToolParser::new(ToolFormat::Hermes, &tools());
    let text = |text: &str| vec![Piece::Text(text.to_owned())];
    assert_eq!(parser.push("a <tool", false), text("a "));
    assert_eq!(parser.push("s> <", false), text("<tools> "));
    assert_eq!(
        parser.push("tool_call>\n{\"name\": \"any\", ", false),
        vec![]
    );
    assert!(parser.is_inside_call());
    let arguments = |text: &str| Piece::Arguments {
        index: 0,
        text: text.to_owned(),
    };
    let start = Piece::CallStart {
        index: 0,
        name: "any".to_owned(),
    };
    assert_eq!(
        parser.push("\"arguments\": {", false),
        vec![start, arguments("{")]
    );
    assert_eq!(
        parser.push("\"a\": \"<", false),
        vec![arguments("\"a\": \"<")]
    );
    assert_eq!(parser.push("\"}", false), vec![arguments("\"}")]);
    assert!(parser.is_inside_call());
    assert_eq!(parser.push("}", false), vec![Piece::CallEnd { index: 0 }]);
    assert!(!parser.is_inside_call());
    assert_eq!(parser.push("\n</tool_call>\nSo", false), text("\nSo"));
}

#[test]
fn a_call_cut_off_has_no_end() {
    for (format, text, arguments) in [
        (
            ToolFormat::Hermes,
            "<tool_call>{\"name\": \"any\", \"arguments\": {\"a\": \"b",
            "{\"a\": \"b",
        ),
        (
            ToolFormat::Pythonic,
            "[any(a=1, b=\"c",
            "{\"a\": 1, \"b\": \"c",
        ),
        (ToolFormat::Mistral, "[TOOL_CALLS]any[ARGS]{\"a", "{\"a"),
        (
            ToolFormat::QwenXml,
            "<function=any>\n<parameter=a>\nb",
            "{\"a\": \nb",
        ),
        (
            ToolFormat::Tgi,
            "{\"function\": {\"_name\": \"any\", \"a\": \"b",
            "{\"a\": \"b",
        ),
    ] {
        let (rest, calls, ends) = summary(&read(format, &[text]));
        assert_eq!((rest.as_str(), ends), ("", 0));
        assert_eq!(calls, [("any".to_owned(), arguments.to_owned())]);
    }
}

#[test]
fn a_special_marker_ends_a_call() {
    let now = [("now", json!({}))];
    let xml = ["!<tool_call>", "<function=now>\n", "!</tool_call>", "Hi"];
    assert_reads(ToolFormat::QwenXml, &xml, "Hi", &now);
    let json = [
        "!<tool_call>",
        "{\"name\": \"now\", \"arguments\": {}",
        "!</tool_call>",
    ];
    assert_reads(ToolFormat::Hermes, &json, "", &now);
    let early = ["!<tool_call>", "{\"name\": \"now\",", "!</tool_call>", "Hi"];
    assert_reads(ToolFormat::Hermes, &early, "{\"name\": \"now\",Hi", &[]);
    let cut = [
        "!<tool_call>",
        "{\"name\": \"any\", \"arguments\": {\"a",
        "!<tool_call>",
        "{\"name\": \"now\"}",
    ];
    let pieces = read(ToolFormat::Hermes, &cut);
    assert_eq!(
        pieces[1],
        Piece::Arguments {
            index: 0,
            text: "{\"a".to_owned()
        }
    );
    assert_eq!(pieces.last(), Some(&Piece::CallEnd { index: 1 }));
}

#[test]
fn formats_are_recognised() {
    let detect =
        |syntax: &str| ToolFormat::detect(Some(&format!("{{% if tools %}}{syntax}{{% endif %}}")));
    assert_eq!(detect("<tool_call></tool_call>"), ToolFormat::Hermes);
    assert_eq!(detect("<tool_call>\n<function=f>"), ToolFormat::QwenXml);
    assert_eq!(
        detect("[AVAILABLE_TOOLS] [TOOL_CALLS]"),
        ToolFormat::Mistral
    );
    assert_eq!(
        detect("{\"name\": function name, \"parameters\": dictionary of … <|python_tag|>"),
        ToolFormat::Llama3Json
    );
    assert_eq!(
        detect("[func_name1(params_name1=…)] <|python_tag|>"),
        ToolFormat::Pythonic
    );
    assert_eq!(detect("<|tool_list_start|>"), ToolFormat::Pythonic);
    assert_eq!(detect("<|tool_call|>"), ToolFormat::Granite);
    assert_eq!(detect("anything"), ToolFormat::Tgi);
    assert_eq!(
        ToolFormat::detect(Some("<tool_call> my_tools toolset")),
        ToolFormat::Tgi
    );
    assert_eq!(ToolFormat::detect(None), ToolFormat::Tgi);
}

/// One call as a family's template writes it, `after` others; arguments are an object.
fn write_call(format: ToolFormat, name: &str, arguments: &Value, after: usize) -> String {
    let members = arguments.as_object().unwrap();
    match format {
        ToolFormat::Hermes => format!(
            "<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>\n"
        ),
        ToolFormat::Llama3Json => {
            let separator = if after > 0 { "; " } else { "" };
            format!("{separator}{{\"name\": \"{name}\", \"parameters\": {arguments}}}")
        }
        ToolFormat::Pythonic => {
            let pairs: Vec<String> = members
                .iter()
                .map(|(key, value)| format!("{key}={}", python(value)))
                .collect();
            format!("[{name}({})]", pairs.join(", "))
        }
        ToolFormat::Mistral => {
            format!("[TOOL_CALLS][{{\"name\": \"{name}\", \"arguments\": {arguments}}}]")
        }
        ToolFormat::Granite => {
            format!("<|tool_call|>[{{\"name\": \"{name}\", \"arguments\": {arguments}}}]")
        }
        ToolFormat::QwenXml => {
            let pairs: String = members
                .iter()
                .map(|(key, value)| {
                    let value = value
                        .as_str()
                        .map_or_else(|| value.to_string(), str::to_owned);
                    format!("<parameter={key}>\n{value}\n</parameter>\n")
                })
                .collect();
            format!("<tool_call>\n<function={name}>\n{pairs}</function>\n</tool_call>")
        }
        ToolFormat::Tgi => {
            let mut object = serde_json::Map::from_iter([("_name".to_owned(), json!(name))]);
            object.extend(members.clone());
            json!({"function": object}).to_string()
        }
    }
}

fn python(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Array(items) => format!(
            "[{}]",
            items.iter().map(python).collect::<Vec<_>>().join(", ")
        ),
        Value::Object(members) => {
            let pairs: Vec<String> = members
                .iter()
                .map(|(key, value)| format!("{}: {}", json!(key), python(value)))
                .collect();
            format!("{{{}}}", pairs.join(", "))
        }
        Value::Number(_) | Value::String(_) => value.to_string(),
    }
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e9..1e9_f64).prop_map(Value::from),
        "\\PC{0,6}|[\"'\\\\{}\\[\\]<>/\n\t,:=()é🙂]{0,8}".prop_map(Value::from),
        Just(json!("</tool_call>")),
        Just(json!("[TOOL_CALLS]")),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z\"\\\\é]{0,3}", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn arguments() -> impl Strategy<Value = Value> {
    prop::collection::btree_map("[a-z][a-z0-9_]{0,4}", json_value(), 0..4)
        .prop_map(|members| Value::Object(members.into_iter().collect()))
}

fn format() -> impl Strategy<Value = ToolFormat> {
    prop::sample::select(FORMATS.to_vec())
}

/// Answers made of what parsers stumble over.
fn hostile() -> impl Strategy<Value = Vec<String>> {
    let fragment = prop::sample::select(vec![
        "<tool_call>",
        "</tool_call>",
        "<tool",
        "_call>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "<|python_tag|>",
        "<|tool_call|>",
        "<|/tool_call|>",
        "<|tool_call_start|>",
        "<function=",
        "</function>",
        "<parameter=",
        "</parameter>",
        "now",
        "any",
        ">",
        "\n",
        " ",
        "\u{a0}",
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        ",",
        ";",
        ":",
        "=",
        "\"",
        "'",
        "\\",
        "\"name\"",
        "\"arguments\": {",
        "\"_name\": \"any\"",
        "\"function\": ",
        "{\"name\": \"now\"",
        "{\"name\": \"any\", \"arguments\": ",
        "[now(",
        "any(a=",
        "1",
        "true",
        "é",
        "🙂",
        "x",
        "!<tool_call>",
        "!</tool_call>",
        "![TOOL_CALLS]",
        "![ARGS]",
        "!<|python_tag|>",
        "!<eos>",
    ]);
    prop::collection::vec(fragment.prop_map(str::to_owned), 0..24)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn where_text_is_cut_does_not_matter(format in format(), tokens in hostile(), seed in any::<u64>()) {
        let mut cut: Vec<String> = Vec::new();
        let mut random = seed;
        for token in &tokens {
            if token.starts_with('!') {
                cut.push(token.clone());
                continue;
            }
            let mut piece = String::new();
            for c in token.chars() {
                piece.push(c);
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                if random >> 62 == 0 {
                    cut.push(std::mem::take(&mut piece));
                }
            }
            cut.push(piece);
        }
        let mut whole: Vec<String> = Vec::new();
        for token in &tokens {
            match whole.last_mut() {
                Some(last) if !last.starts_with('!') && !token.starts_with('!') => last.push_str(token),
                _ => whole.push(token.clone()),
            }
        }
        let cut: Vec<&str> = cut.iter().map(String::as_str).collect();
        let whole: Vec<&str> = whole.iter().map(String::as_str).collect();
        prop_assert_eq!(read(format, &cut), read(format, &whole));
    }

    #[test]
    fn answers_without_calls_come_back_whole(format in format(), tokens in hostile()) {
        let words: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let pieces = read(format, &words);
        let (text, calls, _) = summary(&pieces);
        if calls.is_empty() {
            let all: String = words.iter().filter(|it| !it.starts_with('!')).copied().collect();
            prop_assert_eq!(text, all);
        }
    }

    #[test]
    fn any_text_is_survived(format in format(), text in "\\PC{0,60}") {
        let (rest, calls, _) = summary(&read(format, &[&text.replace('!', "")]));
        prop_assert!(!calls.is_empty() || rest == text.replace('!', ""));
    }

    #[test]
    fn calls_are_read_as_written(
        format in format(),
        calls in prop::collection::vec(arguments(), 1..3),
        size in 1_usize..9,
        lead in "([a-zé .]{0,8}\n)?",
    ) {
        let markerless = matches!(format, ToolFormat::Llama3Json | ToolFormat::Tgi | ToolFormat::Pythonic);
        let lead = if markerless || lead.trim().is_empty() { String::new() } else { lead };
        let mut text = lead.clone();
        let mut expected = Vec::new();
        for (at, arguments) in calls.iter().enumerate() {
            let mut arguments = arguments.clone();
            if format == ToolFormat::QwenXml {
                // Without a schema values are strings, and one that holds a tag cannot be written at all.
                for value in arguments.as_object_mut().unwrap().values_mut() {
                    *value = json!(value.to_string());
                }
            }
            text.push_str(&write_call(format, "any", &arguments, at));
            expected.push(("any", arguments));
        }
        let chars: Vec<char> = text.chars().collect();
        let tokens: Vec<String> = chars.chunks(size).map(|chunk| chunk.iter().collect()).collect();
        // A token of the test that begins with `!` would count as special.
        prop_assume!(tokens.iter().all(|token| !token.starts_with('!')));
        let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
        assert_reads(format, &tokens, &lead, &expected);
    }
}
