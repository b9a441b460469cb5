//! Tool calls over the chat route: forced, chosen, streamed, cut, and told to the model.

use serde_json::{Value as Json, json};

use crate::support::chat::{
    CHATML, MIRROR, Templated, ask, flat, merge, nested, streamed, templated, text,
};
use crate::support::server::{Sconce, Server};

const CHAT: &str = "/v1/chat/completions";
const MODES: [&str; 2] = ["tgi", "openai"];

/// A template that shows calls as Hermes' family does, and shows the model no tools, so that it answers as
/// it was trained to.
fn hermes() -> String {
    format!("{CHATML}{{% if tools %}}{{# <tool_call> </tool_call> #}}{{% endif %}}")
}

/// As [`hermes`], of Mistral's family.
fn mistral() -> String {
    format!("{CHATML}{{% if tools %}}{{# [TOOL_CALLS] #}}{{% endif %}}")
}

fn weather() -> Json {
    json!({"type": "function", "function": {
        "name": "get_weather",
        "description": "Tells the weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Rome", "New \"York\""]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
        },
    }})
}

fn clock() -> Json {
    json!({"type": "function", "function": {"name": "now"}})
}

fn with_tools(more: Json) -> Json {
    let mut body = ask(
        "What is the weather in Paris?",
        json!({"tools": [weather(), clock()], "max_tokens": 120}),
    );
    merge(&mut body, more);
    body
}

/// Asserts that a call is one of those offered and fits its schema; returns its name.
#[track_caller]
fn assert_call(name: &Json, arguments: &Json) -> String {
    let arguments: Json =
        serde_json::from_str(text(arguments)).unwrap_or_else(|e| panic!("{e}: {arguments}"));
    match text(name) {
        "get_weather" => {
            let schema = &weather()["function"]["parameters"];
            let validator = jsonschema::validator_for(schema).expect("a sound schema");
            assert!(validator.is_valid(&arguments), "{arguments}");
        }
        "now" => assert!(arguments.is_object()),
        other => panic!("{other} was not offered"),
    }
    text(name).to_owned()
}

/// The calls of a collected answer.
fn calls(answer: &Json) -> Vec<Json> {
    let calls = &answer["choices"][0]["message"]["tool_calls"];
    calls.as_array().cloned().unwrap_or_default()
}

/// The calls of a stream put together as clients do: by place, the arguments one after the other.
fn streamed_calls(chunks: &[Json]) -> Vec<Json> {
    let mut calls: Vec<Json> = Vec::new();
    for chunk in chunks {
        let deltas = chunk["choices"][0]["delta"]["tool_calls"].as_array();
        for delta in deltas.into_iter().flatten() {
            let index = delta["index"].as_u64().expect("a place") as usize;
            if index == calls.len() {
                calls.push(
                    json!({"id": delta["id"], "name": delta["function"]["name"], "arguments": ""}),
                );
            }
            let call = &mut calls[index];
            let joined =
                text(&call["arguments"]).to_owned() + text(&delta["function"]["arguments"]);
            call["arguments"] = joined.into();
        }
    }
    calls
}

/// Servers of both modes whose templates know no tools, and ones that write calls as Hermes does.
fn servers(compat: &str) -> [Templated; 2] {
    [
        templated(None, CHATML, compat),
        templated(None, &hermes(), compat),
    ]
}

#[test]
fn a_required_call_fits_its_schema_in_every_notation() {
    for compat in MODES {
        for templated in servers(compat) {
            for (more, only) in [
                (json!({"tool_choice": "required"}), None),
                (json!({"tool_choice": "get_weather"}), Some("get_weather")),
                (
                    json!({"tool_choice": {"type": "function", "function": {"name": "get_weather"}}}),
                    Some("get_weather"),
                ),
                (
                    json!({"tool_choice": {"type": "function", "function": {"name": "now"}}}),
                    Some("now"),
                ),
                (
                    json!({"tool_choice": "required", "temperature": 1.3, "seed": 5}),
                    None,
                ),
                (
                    json!({"tool_choice": "required", "tools": [weather()]}),
                    Some("get_weather"),
                ),
            ] {
                let mut more = more;
                merge(&mut more, json!({"parallel_tool_calls": false}));
                let answer = templated.server.post(CHAT, &with_tools(more.clone())).ok();
                let choice = &answer["choices"][0];
                assert_eq!(choice["finish_reason"], "tool_calls", "{more}: {answer}");
                let calls = calls(&answer);
                assert_eq!(calls.len(), 1);
                let function = &calls[0]["function"];
                let name = assert_call(&function["name"], &function["arguments"]);
                assert!(only.is_none_or(|only| only == name));
                assert_eq!(calls[0]["type"], "function");
                if compat == "tgi" {
                    assert_eq!(calls[0]["id"], "0");
                    assert_eq!(function.get("description"), Some(&Json::Null));
                    assert_eq!(choice["message"].get("content"), None, "no key at all");
                } else {
                    let id = text(&calls[0]["id"])
                        .strip_prefix("call_")
                        .expect("a prefix");
                    assert_eq!(id.len(), 24);
                    assert_eq!(function.get("description"), None);
                    assert_eq!(choice["message"].get("content"), Some(&Json::Null));
                }
            }
        }
    }
}

#[test]
fn a_call_under_tgi_is_written_in_tgis_order() {
    let server = Sconce::new().serve();
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}}});
    let reply = server.post(
        CHAT,
        &with_tools(json!({"tools": [tool], "tool_choice": "required"})),
    );
    let message = concat!(
        r#""message":{"role":"assistant","tool_calls":[{"id":"0","type":"function","function":"#,
        r#"{"description":null,"name":"f","arguments":"{\"a\":"#
    );
    assert!(reply.body.contains(message), "{}", reply.body);
    let calls = calls(&reply.json());
    let arguments: Json =
        serde_json::from_str(text(&calls[0]["function"]["arguments"])).expect("JSON");
    assert_eq!(arguments, json!({"a": 1}));
}

#[test]
fn a_streamed_call_adds_up_and_its_last_chunk_says_why_it_ends() {
    for compat in MODES {
        for templated in servers(compat) {
            for tool in ["get_weather", "now"] {
                let more = json!({"tool_choice": tool, "stream": true, "stream_options": {"include_usage": true}, "parallel_tool_calls": false});
                let mut chunks = templated
                    .server
                    .post(CHAT, &with_tools(more.clone()))
                    .chunks();
                let usage = chunks.pop().expect("a chunk that counts");
                let calls = streamed_calls(&chunks);
                assert_eq!(calls.len(), 1, "{chunks:?}");
                assert_eq!(assert_call(&calls[0]["name"], &calls[0]["arguments"]), tool);
                let mut more = more;
                merge(&mut more, json!({"stream": false}));
                let whole = templated.server.post(CHAT, &with_tools(more)).ok();
                let function = &self::calls(&whole)[0]["function"];
                assert_eq!(function["arguments"], calls[0]["arguments"]);
                assert_eq!(usage["usage"], whole["usage"]);
                let (last, before) = chunks.split_last().expect("chunks");
                assert_eq!(last["choices"][0]["finish_reason"], "tool_calls");
                assert!(
                    before
                        .iter()
                        .all(|chunk| chunk["choices"][0]["finish_reason"].is_null())
                );
                assert_eq!(streamed(&chunks, 0), "", "no text beside the call");
                for (place, chunk) in chunks.iter().enumerate() {
                    let delta = &chunk["choices"][0]["delta"];
                    let call = &delta["tool_calls"][0];
                    let named = call["function"]["name"].is_string();
                    if compat == "tgi" && call.is_object() {
                        assert_eq!(delta["role"], "assistant");
                        assert_eq!(
                            (&call["index"], &call["id"], &call["type"]),
                            (&json!(0), &json!("0"), &json!("function"))
                        );
                        assert_eq!(delta.get("content"), None);
                    } else if call.is_object() {
                        assert_eq!(call.get("id").is_some(), named, "{chunk}");
                        assert_eq!(call.get("type").is_some(), named, "{chunk}");
                    }
                    if compat == "openai" {
                        assert_eq!(delta.get("role").is_some(), place == 0);
                    }
                }
                let names = chunks.iter().filter(|c| {
                    c["choices"][0]["delta"]["tool_calls"][0]["function"]["name"].is_string()
                });
                assert_eq!(names.count(), 1, "the name comes once");
                if compat == "tgi" {
                    assert!(
                        last["choices"][0]["delta"]["tool_calls"][0].is_object(),
                        "clients index it"
                    );
                }
            }
        }
    }
}

#[test]
fn several_calls_come_one_behind_the_other() {
    // The ends of an answer are banned, so that the grammar's only way on is another call.
    for compat in MODES {
        let templated = templated(None, &hermes(), compat);
        let more = json!({"tool_choice": "required", "max_tokens": 200, "logit_bias": {"0": -100, "2": -100}});
        let whole = templated.server.post(CHAT, &with_tools(more.clone())).ok();
        let calls = calls(&whole);
        assert!(calls.len() > 1, "{whole}");
        for (place, call) in calls.iter().enumerate() {
            assert_call(&call["function"]["name"], &call["function"]["arguments"]);
            if compat == "tgi" {
                assert_eq!(call["id"], place.to_string());
            }
        }
        assert_eq!(whole["choices"][0]["finish_reason"], "length");
        let mut more = more;
        merge(&mut more, json!({"stream": true}));
        let chunks = templated.server.post(CHAT, &with_tools(more)).chunks();
        let streamed = streamed_calls(&chunks);
        assert!(streamed.len() >= calls.len());
        for (one, other) in calls.iter().zip(&streamed) {
            assert_eq!(one["function"]["name"], other["name"]);
            assert_eq!(one["function"]["arguments"], other["arguments"]);
        }
        let ids: std::collections::BTreeSet<String> =
            streamed.iter().map(|call| call["id"].to_string()).collect();
        assert_eq!(ids.len(), streamed.len());
    }
}

#[test]
fn ids_go_on_from_the_history() {
    let tgi = templated(None, CHATML, "tgi");
    let openai = templated(None, CHATML, "openai");
    let id = |templated: &Templated, ids: &[&str]| {
        let call = |id: &&str| json!({"id": id, "type": "function", "function": {"name": "now", "arguments": "{}"}});
        let body = with_tools(json!({"tool_choice": "now", "messages": [
            {"role": "user", "content": "What time is it?"},
            {"role": "assistant", "content": null, "tool_calls": ids.iter().map(call).collect::<Vec<_>>()},
            {"role": "tool", "tool_call_id": ids[0], "content": "noon"},
            {"role": "user", "content": "And now?"},
        ]}));
        let answer = templated.server.post(CHAT, &body).ok();
        text(&calls(&answer)[0]["id"]).to_owned()
    };
    assert_eq!(id(&tgi, &["4"]), "5");
    assert_eq!(id(&tgi, &["11", "3"]), "12");
    assert!(id(&tgi, &["call_x"]).len() > 8, "no number, so no counting");
    let huge = u64::MAX.to_string();
    assert!(id(&tgi, &[&huge]).len() > 20, "too large to count on");
    assert!(id(&openai, &["4"]).starts_with("call_"));
}

#[test]
fn a_family_with_short_ids_gets_short_ids() {
    for compat in MODES {
        let templated = templated(None, &mistral(), compat);
        let answer = templated
            .server
            .post(CHAT, &with_tools(json!({"tool_choice": "get_weather"})))
            .ok();
        let calls = calls(&answer);
        assert_call(
            &calls[0]["function"]["name"],
            &calls[0]["function"]["arguments"],
        );
        let id = text(&calls[0]["id"]);
        assert!(
            id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric()),
            "{id}"
        );
    }
}

#[test]
fn a_model_that_may_call_and_does_not_answers_in_text() {
    for compat in MODES {
        let templated = templated(None, &hermes(), compat);
        let question = "What is the capital of France?";
        for more in [
            json!({}),
            json!({"tool_choice": "auto"}),
            json!({"tool_choice": null}),
            json!({"tool_choice": "none"}),
        ] {
            let mut body = ask(question, json!({"tools": [weather()]}));
            merge(&mut body, more);
            let answer = templated.server.post(CHAT, &body).ok();
            let choice = &answer["choices"][0];
            assert!(
                text(&choice["message"]["content"]).contains("Paris"),
                "{answer}"
            );
            assert_eq!(
                (&choice["finish_reason"], calls(&answer).len()),
                (&json!("stop"), 0)
            );
            let free = templated.server.post(CHAT, &ask(question, json!({}))).ok();
            assert_eq!(free["choices"], answer["choices"], "nothing is forced");
            assert_eq!(free["usage"], answer["usage"], "one pass");
            merge(&mut body, json!({"stream": true}));
            let chunks = templated.server.post(CHAT, &body).chunks();
            assert_eq!(json!(streamed(&chunks, 0)), choice["message"]["content"]);
            assert_eq!(
                chunks[chunks.len() - 1]["choices"][0]["finish_reason"],
                "stop"
            );
        }
    }
}

#[test]
fn no_tools_are_no_tools() {
    let templated = templated(None, CHATML, "tgi");
    let question = "What is the capital of France?";
    let free = templated.server.post(CHAT, &ask(question, json!({}))).ok();
    for more in [
        json!({"tools": []}),
        json!({"tools": [], "tool_choice": "required"}),
        json!({"tools": [], "tool_choice": "auto"}),
        json!({"tool_choice": "required"}),
        json!({"tool_choice": "get_weather"}),
        json!({"tools": [weather()], "tool_choice": "none"}),
    ] {
        let answer = templated
            .server
            .post(CHAT, &ask(question, more.clone()))
            .ok();
        assert_eq!(answer["choices"], free["choices"], "{more}");
    }
}

/// The id of the token `{`, which opens nothing but a call under a strict grammar.
fn brace(server: &Server) -> String {
    let tokens = server.post("/tokenize", &json!({"inputs": "{"})).ok();
    tokens[0]["id"].to_string()
}

#[test]
fn a_call_of_the_models_own_choice_is_read_and_a_strict_one_fits() {
    for compat in MODES {
        let templated = templated(None, CHATML, compat);
        let mut tool = weather();
        tool["function"]["strict"] = true.into();
        tool["function"]["parameters"]["additionalProperties"] = false.into();
        let more = json!({"tools": [tool], "logit_bias": {brace(&templated.server): 100}});
        let answer = templated.server.post(CHAT, &with_tools(more.clone())).ok();
        let calls = calls(&answer);
        assert_eq!(calls.len(), 1, "{answer}");
        assert_call(
            &calls[0]["function"]["name"],
            &calls[0]["function"]["arguments"],
        );
        assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
        let mut more = more;
        merge(&mut more, json!({"stream": true}));
        let chunks = templated.server.post(CHAT, &with_tools(more)).chunks();
        let streamed = streamed_calls(&chunks);
        assert_eq!(streamed[0]["arguments"], calls[0]["function"]["arguments"]);
    }
}

#[test]
fn wrong_tools_are_refused_in_each_familys_form() {
    let cases = [
        (
            json!({"tool_choice": "nope"}),
            "Tool error: Tool with name nope not found",
        ),
        (
            json!({"tool_choice": {"type": "function", "function": {"name": "nope"}}}),
            "Tool error: Tool with name nope not found",
        ),
        (
            json!({"response_format": {"type": "json_object", "value": {"properties": {}}}}),
            "Tool error: Grammar and tools are mutually exclusive",
        ),
    ];
    for compat in MODES {
        let templated = templated(None, CHATML, compat);
        for (more, message) in &cases {
            for stream in [false, true] {
                let mut body = with_tools(more.clone());
                merge(&mut body, json!({"stream": stream}));
                let reply = templated.server.post(CHAT, &body);
                let expected = if compat == "tgi" {
                    (422, flat(message, "tool_error", "invalid_value", None))
                } else {
                    (
                        400,
                        nested(message, "invalid_request_error", "invalid_value", None),
                    )
                };
                assert_eq!((reply.status, reply.body), expected, "{more}");
            }
            let native = templated
                .server
                .post("/chat_tokenize", &with_tools(more.clone()));
            let expected = json!({"error": message, "error_type": "tool_error"});
            assert_eq!((native.status, native.json()), (422, expected));
        }
    }
    let (tgi, openai) = (
        Sconce::new().serve(),
        Sconce::new().flag("--compat", "openai").serve(),
    );
    let format = json!({"type": "regex", "value": "yes"});
    for more in [
        json!({"tools": [], "response_format": format}),
        json!({"tools": [weather()], "tool_choice": "none", "response_format": format}),
    ] {
        let reply = tgi.post(CHAT, &ask("a", more.clone()));
        assert_eq!(
            (reply.status, &reply.json()["error_type"]),
            (422, &json!("tool_error")),
            "as in TGI"
        );
        let answer = openai.post(CHAT, &ask("a", more)).ok();
        assert_eq!(answer["choices"][0]["message"]["content"], "yes");
    }
    for choice in [json!(5), json!({"type": "function"}), json!([])] {
        let reply = tgi.post(CHAT, &with_tools(json!({"tool_choice": choice})));
        assert_eq!(reply.status, 422, "{choice}");
    }
}

#[test]
fn a_call_cut_by_its_length_is_content_and_no_error() {
    for compat in MODES {
        for templated in servers(compat) {
            let whole = templated
                .server
                .post(
                    CHAT,
                    &with_tools(
                        json!({"tool_choice": "get_weather", "parallel_tool_calls": false}),
                    ),
                )
                .ok();
            let tokens = whole["usage"]["completion_tokens"]
                .as_u64()
                .expect("a count");
            for cut in [1, 3, tokens / 2] {
                let more = json!({"tool_choice": "get_weather", "max_tokens": cut, "parallel_tool_calls": false});
                let answer = templated.server.post(CHAT, &with_tools(more.clone())).ok();
                let choice = &answer["choices"][0];
                assert_eq!(choice["finish_reason"], "length", "{cut}");
                assert!(choice["message"].get("tool_calls").is_none(), "{answer}");
                assert!(!text(&choice["message"]["content"]).is_empty(), "{answer}");
                let mut more = more;
                merge(&mut more, json!({"stream": true}));
                let chunks = templated.server.post(CHAT, &with_tools(more)).chunks();
                let last = &chunks[chunks.len() - 1]["choices"][0];
                assert_eq!(last["finish_reason"], "length", "{cut}");
                let said = !streamed(&chunks, 0).is_empty() || !streamed_calls(&chunks).is_empty();
                assert!(said, "what there is comes out: {chunks:?}");
            }
        }
    }
}

#[test]
fn a_call_that_is_whole_stays_one_when_the_mark_behind_it_is_cut() {
    let templated = templated(None, &hermes(), "tgi");
    let ask = |more: Json| {
        let mut fields = json!({"tool_choice": "get_weather", "parallel_tool_calls": false});
        merge(&mut fields, more);
        templated.server.post(CHAT, &with_tools(fields))
    };
    let whole = ask(json!({})).ok();
    let tokens = whole["usage"]["completion_tokens"]
        .as_u64()
        .expect("a count");
    let mut kept = 0;
    for cut in tokens - 6..tokens {
        let answer = ask(json!({"max_tokens": cut})).ok();
        let message = &answer["choices"][0]["message"];
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
        if calls(&answer).is_empty() {
            continue;
        }
        kept += 1;
        assert_eq!(message.get("content"), None, "{answer}");
        assert_eq!(message, &whole["choices"][0]["message"]);
        let chunks = ask(json!({"max_tokens": cut, "stream": true})).chunks();
        assert_eq!(streamed(&chunks, 0), "");
    }
    assert!(kept > 0);
}

#[test]
fn templates_see_tools_in_openais_shape() {
    let mirror = templated(Some("llama-tied"), MIRROR, "tgi");
    let seen = |body: Json| {
        let reply = mirror.server.post("/chat_tokenize", &body).ok();
        let prompt = text(&reply["templated_text"]).to_owned();
        let mut parts = prompt.split('|');
        let mut json = || serde_json::from_str::<Json>(parts.next().expect("parts")).expect("JSON");
        (json(), json())
    };
    let content = "What is the weather in Paris?";
    let (messages, tools) = seen(with_tools(json!({})));
    assert_eq!(
        messages[0]["content"], content,
        "the template tells the tools itself"
    );
    assert_eq!(tools[0], weather());
    assert_eq!(tools[1]["function"]["name"], "now");
    assert!(tools[1]["function"]["parameters"].is_object());
    let (_, tools) = seen(with_tools(json!({"tool_choice": "now"})));
    assert_eq!(tools.as_array().map(Vec::len), Some(1));
    let (_, tools) = seen(with_tools(json!({"tool_choice": "none"})));
    assert_eq!(tools, Json::Null);
    let (messages, _) = seen(with_tools(json!({"tool_prompt": "Do it."})));
    assert_eq!(messages[0]["content"], format!("{content}\n---\nDo it."));
    let (messages, _) = seen(with_tools(json!({"tool_prompt": ""})));
    assert_eq!(
        messages[0]["content"], content,
        "an empty one counts as none"
    );
    let arguments = json!({"type": "function", "function": {"name": "f", "arguments": {"type": "object", "properties": {"x": {}}}}});
    let (_, tools) = seen(with_tools(json!({"tools": [arguments]})));
    assert!(
        tools[0]["function"]["parameters"]["properties"]
            .get("x")
            .is_some()
    );
}

#[test]
fn a_template_that_knows_no_tools_gets_them_in_the_last_message() {
    let templated = templated(None, CHATML, "tgi");
    let prompt = |more: Json| {
        let reply = templated
            .server
            .post("/chat_tokenize", &with_tools(more))
            .ok();
        text(&reply["templated_text"]).to_owned()
    };
    let told = prompt(json!({}));
    assert!(
        told.contains("What is the weather in Paris?\n---\n[{\"type\":\"function\""),
        "{told}"
    );
    assert!(
        told.contains(
            "Given the functions available, please respond with a JSON for a function call"
        )
    );
    assert!(told.contains("Do not use variables.\n<|im_end|>"), "{told}");
    let own = prompt(json!({"tool_prompt": "Do it."}));
    assert!(own.contains("]\nDo it.<|im_end|>"), "{own}");
    let none = prompt(json!({"tool_choice": "none"}));
    assert!(none.contains("Paris?<|im_end|>"), "{none}");
}

#[test]
fn several_answers_have_calls_of_their_own() {
    let templated = templated(None, CHATML, "tgi");
    let body =
        with_tools(json!({"tool_choice": "required", "n": 3, "temperature": 1.0, "seed": 1}));
    let answer = templated.server.post(CHAT, &body).ok();
    let choices = answer["choices"].as_array().expect("choices");
    for (place, choice) in choices.iter().enumerate() {
        let call = &choice["message"]["tool_calls"][0];
        assert_call(&call["function"]["name"], &call["function"]["arguments"]);
        assert_eq!(call["id"], place.to_string());
    }
}

#[test]
fn an_operator_without_grammars_still_serves_tools_that_are_not_forced() {
    let server = Sconce::new().env("DISABLE_GRAMMAR_SUPPORT", "true").serve();
    let reply = server.post(CHAT, &with_tools(json!({"tool_choice": "required"})));
    assert_eq!(
        reply.json()["error"],
        "Input validation error: grammar is not supported"
    );
    assert_eq!(server.post(CHAT, &with_tools(json!({}))).status, 200);
}
