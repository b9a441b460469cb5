//! OpenAI's responses route: shapes, events, items, and what a server without memory refuses.

use serde_json::{Value as Json, json};

use crate::support::chat::{CHATML, FULL_SET, MIRROR, STREAM_SET, merge, nested, templated, text};
use crate::support::models::{Copy, model_id};
use crate::support::server::{Sconce, Server};
use crate::support::wire;

const PATH: &str = "/v1/responses";
const CASE: &str = "llama-tied";
const QUESTION: &str = "What is the capital of France?";
const MODES: [&str; 2] = ["tgi", "openai"];

fn ask(more: Json) -> Json {
    let mut body = json!({"input": QUESTION, "max_output_tokens": 32, "temperature": 0});
    merge(&mut body, more);
    body
}

fn weather() -> Json {
    json!({
        "type": "function",
        "name": "get_weather",
        "description": "Tells the weather",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]},
    })
}

/// Names of events, runs of the same one written once.
fn order(events: &[(String, Json)]) -> Vec<&str> {
    let mut names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    names.dedup();
    names
}

fn deltas(events: &[(String, Json)], name: &str) -> String {
    let own = events.iter().filter(|(own, _)| own == name);
    own.map(|(_, event)| text(&event["delta"])).collect()
}

#[test]
fn an_answer_has_openais_fields_in_order() {
    let server = Sconce::tiny(CASE).serve();
    let reply = server.post(
        PATH,
        &ask(json!({"max_output_tokens": 5, "metadata": {"k": "v"}})),
    );
    assert_eq!(reply.metering(), FULL_SET);
    let json = reply.ok();
    let item = &json["output"][0];
    let usage = &json["usage"];
    let by_hand = format!(
        concat!(
            r#"{{"id":{},"object":"response","created_at":{},"status":"incomplete","error":null,"#,
            r#""incomplete_details":{{"reason":"max_output_tokens"}},"instructions":null,"max_output_tokens":5,"model":{},"#,
            r#""output":[{{"type":"message","id":{},"status":"incomplete","role":"assistant","#,
            r#""content":[{{"type":"output_text","text":{},"annotations":[]}}]}}],"#,
            r#""parallel_tool_calls":true,"previous_response_id":null,"store":false,"temperature":0.0,"#,
            r#""text":{{"format":{{"type":"text"}}}},"tool_choice":"auto","tools":[],"top_p":1.0,"truncation":"disabled","#,
            r#""usage":{{"input_tokens":{},"input_tokens_details":{{"cached_tokens":0,"cache_write_tokens":0}},"output_tokens":5,"#,
            r#""output_tokens_details":{{"reasoning_tokens":0}},"total_tokens":{}}},"metadata":{{"k":"v"}}}}"#
        ),
        json["id"],
        json["created_at"],
        json!(model_id(CASE)),
        item["id"],
        item["content"][0]["text"],
        usage["input_tokens"],
        usage["total_tokens"],
    );
    assert_eq!(reply.body, by_hand);
    assert!(text(&json["id"]).starts_with("resp_") && text(&item["id"]).starts_with("msg_"));
    let sum = usage["input_tokens"].as_u64().map(|n| n + 5);
    assert_eq!(usage["total_tokens"].as_u64(), sum);
}

#[test]
fn a_question_is_answered_in_either_form_of_input() {
    for compat in MODES {
        let server = Sconce::new().flag("--compat", compat).serve();
        let whole = server.post(PATH, &ask(json!({}))).ok();
        assert!(
            text(&whole["output"][0]["content"][0]["text"]).contains("Paris"),
            "{whole}"
        );
        assert_eq!(
            (&whole["status"], &whole["incomplete_details"]),
            (&json!("completed"), &Json::Null)
        );
        for input in [
            json!([{"role": "user", "content": QUESTION}]),
            json!([{"type": "message", "role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]),
        ] {
            let same = server.post(PATH, &ask(json!({"input": input}))).ok();
            assert_eq!(same["output"][0]["content"], whole["output"][0]["content"]);
            assert_eq!(same["usage"], whole["usage"]);
        }
    }
}

#[test]
fn events_come_in_order_and_are_numbered() {
    for compat in MODES {
        let server = Sconce::tiny(CASE).flag("--compat", compat).serve();
        let reply = server.post(PATH, &ask(json!({"max_output_tokens": 6, "stream": true})));
        assert_eq!(reply.metering(), STREAM_SET);
        let events = reply.named_events();
        let expected = [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete",
        ];
        assert_eq!(order(&events), expected);
        for (place, (name, event)) in events.iter().enumerate() {
            assert_eq!(event["type"], json!(name));
            assert_eq!(event["sequence_number"], place);
        }
        let whole = server
            .post(PATH, &ask(json!({"max_output_tokens": 6})))
            .ok();
        let said = &whole["output"][0]["content"][0]["text"];
        assert_eq!(*said, deltas(&events, "response.output_text.delta"));
        let at = |name: &str| {
            &events
                .iter()
                .find(|(own, _)| own == name)
                .expect("an event")
                .1
        };
        assert_eq!(&at("response.output_text.done")["text"], said);
        assert_eq!(at("response.created")["response"]["output"], json!([]));
        assert_eq!(at("response.created")["response"]["usage"], Json::Null);
        assert_eq!(
            at("response.output_item.added")["item"]["content"],
            json!([])
        );
        let last = &at("response.incomplete")["response"];
        assert_eq!(last["id"], at("response.created")["response"]["id"]);
        assert_eq!(last["usage"], whole["usage"]);
        let item = &last["output"][0];
        assert_eq!(at("response.output_item.done")["item"], *item);
        for (_, event) in events
            .iter()
            .filter(|(_, event)| event.get("item_id").is_some())
        {
            assert_eq!(event["item_id"], item["id"]);
            assert_eq!(
                (&event["output_index"], &event["content_index"]),
                (&json!(0), &json!(0))
            );
        }
        assert!(reply.body.ends_with("data: [DONE]\n\n"));
    }
}

#[test]
fn a_call_is_an_item_of_its_own() {
    for compat in MODES {
        let server = Sconce::new().flag("--compat", compat).serve();
        for choice in [
            json!("required"),
            json!({"type": "function", "name": "get_weather"}),
        ] {
            let more =
                json!({"tools": [weather()], "tool_choice": choice, "max_output_tokens": 100});
            let whole = server.post(PATH, &ask(more.clone())).ok();
            let item = &whole["output"][0];
            assert_eq!(
                (&item["type"], &item["name"], &item["status"]),
                (
                    &json!("function_call"),
                    &json!("get_weather"),
                    &json!("completed")
                )
            );
            let arguments: Json = serde_json::from_str(text(&item["arguments"])).expect("JSON");
            assert!(["Paris", "Rome"].contains(&text(&arguments["city"])));
            assert!(text(&item["id"]).starts_with("fc_"));
            assert!(!text(&item["call_id"]).is_empty());
            assert_eq!(whole["status"], "completed");
            assert_eq!(whole["tools"][0]["name"], "get_weather");
            assert_eq!(whole["tool_choice"], choice);
            let mut more = more;
            merge(&mut more, json!({"stream": true}));
            let events = server.post(PATH, &ask(more)).named_events();
            let expected = [
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.function_call_arguments.delta",
                "response.function_call_arguments.done",
                "response.output_item.done",
                "response.completed",
            ];
            assert_eq!(order(&events), expected);
            assert_eq!(
                item["arguments"],
                deltas(&events, "response.function_call_arguments.delta")
            );
        }
    }
}

#[test]
fn a_conversation_with_calls_goes_round() {
    let mirror = templated(Some(CASE), MIRROR, "tgi");
    let tokens = |body: &Json| mirror.server.post(PATH, body).ok()["usage"]["input_tokens"].clone();
    let body = json!({
        "instructions": "Be brief.",
        "input": [
            {"role": "developer", "content": "In English."},
            {"role": "user", "content": "Weather?"},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "function_call", "call_id": "call_1", "name": "get_weather", "arguments": "{\"city\": \"Rome\"}"},
            {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
        ],
        "max_output_tokens": 1,
    });
    let chat = json!({"messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "In English."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": null, "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\": \"Rome\"}"}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]});
    let shown = mirror.server.post("/chat_tokenize", &chat).ok();
    assert_eq!(
        tokens(&body),
        shown["tokenize_response"].as_array().map_or(0, Vec::len)
    );
}

#[test]
fn a_schema_gives_the_answer_its_shape() {
    let server = Sconce::new().serve();
    let schema = json!({"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "name": "n", "schema": schema, "strict": true});
    let answer = server
        .post(PATH, &ask(json!({"text": {"format": format}})))
        .ok();
    let value: Json =
        serde_json::from_str(text(&answer["output"][0]["content"][0]["text"])).expect("JSON");
    assert!(["x", "y"].contains(&text(&value["a"])));
    assert_eq!(answer["text"]["format"], format);
}

#[test]
fn reasoning_is_an_item_of_its_own() {
    let opening = CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}");
    let templated = templated(None, &format!("{opening}{{# </think> #}}"), "openai");
    let whole = templated.server.post(PATH, &ask(json!({}))).ok();
    let item = &whole["output"][0];
    assert_eq!(
        (&item["type"], &item["summary"]),
        (&json!("reasoning"), &json!([]))
    );
    assert!(text(&item["id"]).starts_with("rs_"));
    let events = templated
        .server
        .post(PATH, &ask(json!({"stream": true})))
        .named_events();
    assert_eq!(
        item["content"][0]["text"],
        deltas(&events, "response.reasoning_text.delta")
    );
}

#[test]
fn what_needs_memory_is_refused_by_name() {
    let (tgi, openai) = (
        Sconce::tiny(CASE).serve(),
        Sconce::tiny(CASE).flag("--compat", "openai").serve(),
    );
    let memory = |field: &str| {
        format!(
            "Input validation error: `{field}` is not supported: nothing is kept between requests; send the whole conversation as `input`"
        )
    };
    let cases = [
        (json!({"previous_response_id": "resp_1"}), memory("previous_response_id"), "previous_response_id"),
        (json!({"conversation": {"id": "c"}}), memory("conversation"), "conversation"),
        (json!({"background": true}), memory("background"), "background"),
        (json!({"input": [{"type": "item_reference", "id": "x"}]}), "Input validation error: `input[0].type` is `item_reference`; served are message, function_call, function_call_output and reasoning".to_owned(), "input[0].type"),
        (json!({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}), "Input validation error: `input[0].content[0]` is of type `input_image`: image modality is not supported".to_owned(), "input[0].content[0]"),
        (json!({"input": [{"role": "user"}]}), "Input validation error: `input[0].content` is missing".to_owned(), "input[0].content"),
        (json!({"tools": [{"type": "web_search"}]}), "Input validation error: `tools[0].type` is `web_search`; only functions can be called".to_owned(), "tools[0].type"),
        (json!({"text": {"format": {"type": "regex"}}}), "Input validation error: `text.format.type` is `regex`; served are text, json_object and json_schema".to_owned(), "text.format.type"),
        (json!({"text": {"format": {"type": "json_schema", "name": "n"}}}), "Input validation error: `text.format.schema` is missing".to_owned(), "text.format.schema"),
        (json!({"top_logprobs": 1}), "Input validation error: `top_logprobs` is not supported on this route; use /v1/chat/completions".to_owned(), "top_logprobs"),
        (json!({"temperature": -1}), "Input validation error: `temperature` must be strictly positive".to_owned(), "temperature"),
    ];
    for (more, message, param) in &cases {
        let reply = openai.post(PATH, &ask(more.clone()));
        let expected = nested(
            message,
            "invalid_request_error",
            "invalid_value",
            Some(param),
        );
        assert_eq!((reply.status, reply.body), (400, expected));
        let reply = tgi.post(PATH, &ask(more.clone()));
        assert_eq!(
            (reply.status, &reply.json()["error"], &reply.json()["param"]),
            (422, &json!(message), &json!(param))
        );
        assert!(reply.metering().is_empty());
    }
    for harmless in [
        json!({"background": false}),
        json!({"store": true}),
        json!({"previous_response_id": null}),
        json!({"truncation": "auto"}),
    ] {
        assert_eq!(tgi.post(PATH, &ask(harmless)).status, 200);
    }
    let unknown =
        json!({"tools": [weather()], "tool_choice": {"type": "function", "name": "nope"}});
    let reply = tgi.post(PATH, &ask(unknown));
    assert_eq!(
        (reply.status, &reply.json()["error"]),
        (422, &json!("Tool error: Tool with name nope not found"))
    );
    assert_eq!(
        openai.post(PATH, &ask(json!({"model": "gpt-4o"}))).status,
        404
    );
    assert_eq!(
        tgi.post(PATH, &ask(json!({"model": "gpt-4o"}))).ok()["model"],
        "gpt-4o"
    );
}

fn endless(compat: &str) -> (Copy, Server) {
    let model = Copy::endless();
    let server = Sconce::new()
        .flag("--model-id", &model.path().display().to_string())
        .flag("--max-total-tokens", "131072")
        .flag("--max-batch-total-tokens", "131072")
        .flag("--compat", compat)
        .serve();
    (model, server)
}

#[test]
fn a_failure_in_the_middle_is_an_error_event_before_done() {
    for compat in MODES {
        let (_model, server) = endless(compat);
        let body = json!({"input": "a", "stream": true}).to_string();
        let reply = server.send(&wire::post(PATH, "x-route-deadline-ms: 300\r\n", &body));
        assert!(reply.body.ends_with("data: [DONE]\n\n"));
        let events = reply.named_events();
        let (name, error) = &events[events.len() - 1];
        assert_eq!(
            (name.as_str(), &error["message"]),
            ("error", &json!("Request deadline exceeded"))
        );
        assert_eq!(
            (&error["code"], &error["error"]["http_status_code"]),
            (&json!("timeout"), &json!(504))
        );
    }
}
