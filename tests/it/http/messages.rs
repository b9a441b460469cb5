//! Anthropic's messages route: shapes, events, tools, refusals, and the tokens it counts.

use serde_json::{Value as Json, json};

use crate::support::chat::{CHATML, FULL_SET, MIRROR, STREAM_SET, merge, templated, text};
use crate::support::models::{Copy, model_id};
use crate::support::server::{Sconce, Server};
use crate::support::wire;

const PATH: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";
const CASE: &str = "llama-tied";
const QUESTION: &str = "What is the capital of France?";
const MODES: [&str; 2] = ["tgi", "openai"];

fn ask(more: Json) -> Json {
    let mut body = json!({
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 32,
        "temperature": 0,
    });
    merge(&mut body, more);
    body
}

fn weather() -> Json {
    json!({
        "name": "get_weather",
        "description": "Tells the weather",
        "input_schema": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
    })
}

#[track_caller]
fn assert_error(server: &Server, path: &str, body: &Json, status: u16, kind: &str, message: &str) {
    let reply = server.post(path, body);
    let expected = format!(
        r#"{{"type":"error","error":{{"type":"{kind}","message":{}}}}}"#,
        json!(message)
    );
    assert_eq!((reply.status, reply.body), (status, expected), "{body}");
}

/// Names of events, runs of the same one written once.
fn order(events: &[(String, Json)]) -> Vec<&str> {
    let mut names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    names.dedup();
    names
}

#[test]
fn an_answer_has_anthropics_fields_in_order() {
    let server = Sconce::tiny(CASE).serve();
    let reply = server.post(PATH, &ask(json!({"max_tokens": 5})));
    assert_eq!(reply.metering(), FULL_SET);
    let json = reply.ok();
    let by_hand = format!(
        concat!(
            r#"{{"id":{},"type":"message","role":"assistant","model":{},"content":[{{"type":"text","text":{}}}],"#,
            r#""stop_reason":"max_tokens","stop_sequence":null,"usage":{{"input_tokens":{},"output_tokens":5}}}}"#
        ),
        json["id"],
        json!(model_id(CASE)),
        json["content"][0]["text"],
        json["usage"]["input_tokens"],
    );
    assert_eq!(reply.body, by_hand);
    let id = text(&json["id"]).strip_prefix("msg_").expect("a prefix");
    assert_eq!(id.len(), 32);
    let chat = json!({"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 5, "temperature": 0});
    let chat = server.post("/v1/chat/completions", &chat).ok();
    assert_eq!(
        chat["choices"][0]["message"]["content"],
        json["content"][0]["text"]
    );
}

#[test]
fn a_question_is_answered_and_why_it_ended_is_said() {
    for compat in MODES {
        let server = Sconce::new().flag("--compat", compat).serve();
        let whole = server.post(PATH, &ask(json!({}))).ok();
        let said = text(&whole["content"][0]["text"]);
        assert!(said.contains("Paris"), "{whole}");
        assert_eq!(whole["stop_reason"], "end_turn");
        assert_eq!(whole["stop_sequence"], Json::Null);
        let stopped = server
            .post(PATH, &ask(json!({"stop_sequences": ["never", "ari"]})))
            .ok();
        let before = said.split("ari").next().expect("a beginning");
        assert_eq!(stopped["content"][0]["text"], before, "left out");
        assert_eq!(stopped["stop_reason"], "stop_sequence");
        assert_eq!(stopped["stop_sequence"], "ari");
        let events = server
            .post(
                PATH,
                &ask(json!({"stop_sequences": ["ari"], "stream": true})),
            )
            .named_events();
        let streamed: String = events
            .iter()
            .filter_map(|(_, e)| e["delta"]["text"].as_str())
            .collect();
        assert_eq!(streamed, before);
        let end = &events[events.len() - 2].1;
        assert_eq!(
            end["delta"],
            json!({"stop_reason": "stop_sequence", "stop_sequence": "ari"})
        );
        let cut = server.post(PATH, &ask(json!({"max_tokens": 1}))).ok();
        assert_eq!(cut["stop_reason"], "max_tokens");
    }
}

#[test]
fn a_stream_is_a_message_of_blocks() {
    for compat in MODES {
        let server = Sconce::tiny(CASE).flag("--compat", compat).serve();
        let reply = server.post(PATH, &ask(json!({"max_tokens": 6, "stream": true})));
        assert_eq!(reply.metering(), STREAM_SET);
        assert_eq!(reply.header("content-type"), Some("text/event-stream"));
        assert!(!reply.body.contains("[DONE]"));
        let events = reply.named_events();
        let expected = [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ];
        assert_eq!(order(&events), expected);
        for (name, event) in &events {
            assert_eq!(event["type"], json!(name));
        }
        let whole = server.post(PATH, &ask(json!({"max_tokens": 6}))).ok();
        let start = &events[0].1["message"];
        assert_eq!(
            (&start["content"], &start["stop_reason"]),
            (&json!([]), &Json::Null)
        );
        assert_eq!(
            start["usage"]["input_tokens"],
            whole["usage"]["input_tokens"]
        );
        assert_eq!(
            events[1].1["content_block"],
            json!({"type": "text", "text": ""})
        );
        let joined: String = events
            .iter()
            .filter(|(name, _)| name == "content_block_delta")
            .map(|(_, event)| {
                assert_eq!(
                    (&event["index"], &event["delta"]["type"]),
                    (&json!(0), &json!("text_delta"))
                );
                text(&event["delta"]["text"])
            })
            .collect();
        assert_eq!(whole["content"][0]["text"], joined);
        let end = &events[events.len() - 2].1;
        assert_eq!(end["usage"], whole["usage"]);
        assert_eq!(end["delta"]["stop_reason"], "max_tokens");
    }
}

#[test]
fn a_forced_call_is_a_block_with_its_input() {
    let server = Sconce::new().serve();
    for choice in [
        json!({"type": "any"}),
        json!({"type": "tool", "name": "get_weather"}),
    ] {
        let more = json!({"tools": [weather()], "tool_choice": choice, "max_tokens": 100});
        let whole = server.post(PATH, &ask(more.clone())).ok();
        let block = &whole["content"][0];
        assert_eq!(
            (&block["type"], &block["name"]),
            (&json!("tool_use"), &json!("get_weather"))
        );
        assert!(
            ["Paris", "Rome"].contains(&text(&block["input"]["city"])),
            "{whole}"
        );
        assert!(text(&block["id"]).starts_with("toolu_"));
        assert_eq!(whole["stop_reason"], "tool_use");
        let mut more = more;
        merge(&mut more, json!({"stream": true}));
        let events = server.post(PATH, &ask(more)).named_events();
        let start = events
            .iter()
            .find(|(name, _)| name == "content_block_start")
            .expect("a block");
        let block = &start.1["content_block"];
        assert_eq!(
            (&block["type"], &block["input"]),
            (&json!("tool_use"), &json!({}))
        );
        let joined: String = events
            .iter()
            .filter(|(name, _)| name == "content_block_delta")
            .map(|(_, event)| {
                assert_eq!(event["delta"]["type"], "input_json_delta");
                text(&event["delta"]["partial_json"])
            })
            .collect();
        let input: Json = serde_json::from_str(&joined).expect("JSON");
        assert_eq!(input, whole["content"][0]["input"]);
        assert_eq!(
            events[events.len() - 2].1["delta"]["stop_reason"],
            "tool_use"
        );
    }
    for choice in [json!({"type": "auto"}), json!({"type": "none"})] {
        let templated = templated(
            None,
            &format!("{CHATML}{{% if tools %}}{{# <tool_call> #}}{{% endif %}}"),
            "tgi",
        );
        let more = json!({"tools": [weather()], "tool_choice": choice});
        let answer = templated.server.post(PATH, &ask(more)).ok();
        assert!(
            text(&answer["content"][0]["text"]).contains("Paris"),
            "{answer}"
        );
    }
}

#[test]
fn a_call_cut_short_is_no_error() {
    let server = Sconce::new().serve();
    for max_tokens in [2, 12] {
        let more =
            json!({"tools": [weather()], "tool_choice": {"type": "any"}, "max_tokens": max_tokens});
        let answer = server.post(PATH, &ask(more)).ok();
        assert_eq!(answer["stop_reason"], "max_tokens");
        assert_eq!(answer["content"].as_array().map(Vec::len), Some(1));
    }
}

#[test]
fn templates_see_blocks_as_messages() {
    let mirror = templated(None, MIRROR, "tgi");
    // The prompt is not shown by this route; the chat route shows what the same conversation becomes.
    let count = |body: &Json| mirror.server.post(COUNT, body).ok()["input_tokens"].clone();
    let blocks = json!({
        "system": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Rome"}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "sunny"}]},
                {"type": "text", "text": "So?"}]},
        ],
        "tools": [weather()],
    });
    let tool = json!({"type": "function", "function": {"name": "get_weather", "description": "Tells the weather", "parameters": weather()["input_schema"]}});
    let chat = json!({"tools": [tool], "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": [
            {"id": "toolu_1", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Rome\"}"}}]},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "sunny"},
        {"role": "user", "content": "So?"},
    ]});
    let shown = mirror.server.post("/chat_tokenize", &chat).ok();
    let prompt = text(&shown["templated_text"]);
    assert!(
        prompt.contains("toolu_1") && prompt.contains("sunny"),
        "{prompt}"
    );
    assert_eq!(
        count(&blocks),
        shown["tokenize_response"].as_array().map_or(0, Vec::len)
    );
    let mut asked = blocks;
    merge(&mut asked, json!({"max_tokens": 1}));
    let answer = mirror.server.post(PATH, &asked).ok();
    assert_eq!(answer["usage"]["input_tokens"], count(&asked));
}

#[test]
fn counted_tokens_are_those_that_are_billed() {
    let server = Sconce::new().serve();
    for more in [
        json!({}),
        json!({"system": "Be brief."}),
        json!({"tools": [weather()]}),
        json!({"tools": [weather()], "tool_choice": {"type": "none"}}),
        json!({"messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "The capital"}]}),
        json!({"model": "claude"}),
    ] {
        let body = ask(more);
        let counted = server.post(COUNT, &body);
        let tokens = counted.ok()["input_tokens"].clone();
        assert_eq!(counted.body, format!(r#"{{"input_tokens":{tokens}}}"#));
        assert_eq!(
            server.post(PATH, &body).ok()["usage"]["input_tokens"],
            tokens,
            "{body}"
        );
    }
}

#[test]
fn a_last_message_of_the_assistant_is_continued() {
    let server = Sconce::new().serve();
    let messages = json!([{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "The capital of France is"}]);
    let answer = server.post(PATH, &ask(json!({"messages": messages}))).ok();
    assert!(
        text(&answer["content"][0]["text"]).starts_with(" Paris"),
        "{answer}"
    );
}

#[test]
fn a_schema_gives_the_answer_its_shape() {
    let server = Sconce::new().serve();
    let schema = json!({"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": false});
    let more = json!({"output_config": {"format": {"type": "json_schema", "schema": schema}}});
    let answer = server.post(PATH, &ask(more)).ok();
    let value: Json = serde_json::from_str(text(&answer["content"][0]["text"])).expect("JSON");
    assert!(["x", "y"].contains(&text(&value["a"])));
}

#[test]
fn reasoning_is_a_block_of_its_own() {
    let opening = CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}");
    let templated = templated(None, &format!("{opening}{{# </think> #}}"), "tgi");
    let whole = templated.server.post(PATH, &ask(json!({}))).ok();
    let block = &whole["content"][0];
    assert_eq!(
        (&block["type"], &block["signature"]),
        (&json!("thinking"), &json!(""))
    );
    assert!(!text(&block["thinking"]).is_empty());
    let events = templated
        .server
        .post(PATH, &ask(json!({"stream": true})))
        .named_events();
    let joined: String = events
        .iter()
        .filter_map(|(_, e)| e["delta"]["thinking"].as_str())
        .collect();
    assert_eq!(block["thinking"], joined);
    let hidden = templated
        .server
        .post(PATH, &ask(json!({"thinking": {"type": "disabled"}})))
        .ok();
    assert_eq!(hidden["content"][0]["type"], "text");
}

#[test]
fn refusals_read_as_anthropics() {
    let image = json!([{"role": "user", "content": [{"type": "image", "source": {}}]}]);
    let orphan = json!([{"role": "user", "content": [{"type": "tool_result", "content": "x"}]}]);
    let cases = [
        (
            json!({"temperature": -1}),
            "Input validation error: `temperature` must be strictly positive",
        ),
        (
            json!({"max_tokens": 0}),
            "Input validation error: `max_new_tokens` must be strictly positive",
        ),
        (
            json!({"messages": image}),
            "Input validation error: `messages[0].content[0]` is of type `image`: image modality is not supported",
        ),
        (
            json!({"messages": orphan}),
            "Input validation error: `messages[0].content[0].tool_use_id` is missing",
        ),
        (
            json!({"tools": [{"name": "x", "type": "web_search_20250305"}]}),
            "Input validation error: `tools[0].type` is `web_search_20250305`; only the caller's own functions can be called",
        ),
        (
            json!({"tools": [weather()], "tool_choice": {"type": "tool", "name": "nope"}}),
            "Tool error: Tool with name nope not found",
        ),
        (
            json!({"tools": [weather()], "tool_choice": {"type": "tool"}}),
            "Input validation error: `tool_choice.name` is missing",
        ),
        (
            json!({"tools": [weather()], "tool_choice": {"type": "some"}}),
            "Input validation error: `tool_choice.type` is `some`; served are auto, any, tool and none",
        ),
        (
            json!({"output_config": {"format": {"type": "xml"}}}),
            "Input validation error: `output_config.format.type` is `xml`; served is json_schema",
        ),
    ];
    for compat in MODES {
        let server = Sconce::tiny(CASE).flag("--compat", compat).serve();
        for (more, message) in &cases {
            for stream in [false, true] {
                let mut body = ask(more.clone());
                merge(&mut body, json!({"stream": stream}));
                assert_error(&server, PATH, &body, 400, "invalid_request_error", message);
            }
        }
        let refused = server.post(PATH, &ask(json!({"temperature": -1})));
        assert!(refused.metering().is_empty());
        let shape = server.send(&wire::post(PATH, "", "{}"));
        let message = "Failed to deserialize the JSON body into the target type: missing field `messages` at line 1 column 2";
        assert_eq!(
            (shape.status, &shape.json()["error"]["message"]),
            (400, &json!(message))
        );
        if compat == "openai" {
            let message = "The model `claude` does not exist here; GET /v1/models lists what does";
            for path in [PATH, COUNT] {
                assert_error(
                    &server,
                    path,
                    &ask(json!({"model": "claude"})),
                    404,
                    "not_found_error",
                    message,
                );
            }
        } else {
            assert_eq!(
                server.post(PATH, &ask(json!({"model": "claude"}))).ok()["model"],
                "claude"
            );
        }
    }
}

#[test]
fn a_failure_in_the_middle_is_an_error_event() {
    let model = Copy::endless();
    let server = Sconce::new()
        .flag("--model-id", &model.path().display().to_string())
        .flag("--max-total-tokens", "131072")
        .flag("--max-batch-total-tokens", "131072")
        .serve();
    let body = json!({"messages": [{"role": "user", "content": "a"}], "stream": true});
    let reply = server.send(&wire::post(
        PATH,
        "x-route-deadline-ms: 300\r\n",
        &body.to_string(),
    ));
    let events = reply.named_events();
    let (name, error) = &events[events.len() - 1];
    assert_eq!(name, "error");
    let expected = json!({"type": "error", "error": {"type": "timeout_error", "message": "Request deadline exceeded"}});
    assert_eq!(*error, expected);
    let collected = json!({"messages": [{"role": "user", "content": "a"}]});
    let reply = server.send(&wire::post(
        PATH,
        "x-route-deadline-ms: 300\r\n",
        &collected.to_string(),
    ));
    assert_eq!((reply.status, reply.json()), (504, expected));
}
