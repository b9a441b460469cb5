//! The chat route: shapes byte for byte in both modes, streams, refusals, and every setting it takes.

use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value as Json, json};

use crate::support::chat::{
    CHATML, FULL_SET, MIRROR, STREAM_SET, ask, failed_stream, flat, merge, nested, streamed,
    templated, text,
};
use crate::support::eventually;
use crate::support::golden::{check, mask};
use crate::support::models::{Copy, model_id};
use crate::support::server::{Sconce, Server};
use crate::support::wire;

const CHAT: &str = "/v1/chat/completions";
const CASE: &str = "llama-tied";
const QUESTION: &str = "children weighed 1250";
const MODES: [&str; 2] = ["tgi", "openai"];

fn tiny(compat: &str) -> Server {
    Sconce::tiny(CASE).flag("--compat", compat).serve()
}

fn content(answer: &Json) -> &str {
    text(&answer["choices"][0]["message"]["content"])
}

/// What a golden file holds: without what differs between runs and places.
fn masked(body: &str) -> String {
    ["created", "model", "system_fingerprint"]
        .into_iter()
        .fold(body.to_owned(), |body, key| mask(&body, key))
}

fn fingerprint() -> String {
    format!("{}-native", env!("CARGO_PKG_VERSION"))
}

#[test]
fn a_collected_answer_has_tgis_fields_in_tgis_order() {
    let reply = tiny("tgi").post(CHAT, &ask(QUESTION, json!({"max_tokens": 6})));
    let json = reply.ok();
    let usage = &json["usage"];
    let by_hand = format!(
        concat!(
            r#"{{"object":"chat.completion","id":"","created":{},"model":{},"system_fingerprint":"{}","#,
            r#""choices":[{{"index":0,"message":{{"role":"assistant","content":{}}},"logprobs":null,"finish_reason":"length"}}],"#,
            r#""usage":{{"prompt_tokens":{},"completion_tokens":6,"total_tokens":{}}}}}"#
        ),
        json["created"],
        json!(model_id(CASE)),
        fingerprint(),
        json["choices"][0]["message"]["content"],
        usage["prompt_tokens"],
        usage["total_tokens"],
    );
    assert_eq!(reply.body, by_hand);
    assert!(json["created"].as_u64() > Some(1_700_000_000));
    check("chat.json", &masked(&reply.body));
}

#[test]
fn under_openai_answers_have_ids_and_log_probabilities_have_bytes() {
    let server = tiny("openai");
    let more = json!({"max_tokens": 3, "logprobs": true, "top_logprobs": 2});
    let reply = server.post(CHAT, &ask(QUESTION, more));
    let json = reply.ok();
    let id = text(&json["id"])
        .strip_prefix("chatcmpl-")
        .expect("a prefix");
    assert_eq!(id.len(), 32);
    let mut bytes = Vec::new();
    for entry in json["choices"][0]["logprobs"]["content"]
        .as_array()
        .expect("entries")
    {
        assert_eq!(entry["top_logprobs"].as_array().map(Vec::len), Some(2));
        assert_eq!(
            entry["bytes"], entry["top_logprobs"][0]["bytes"],
            "greedy takes the best"
        );
        let own = entry["bytes"].as_array().expect("bytes");
        bytes.extend(own.iter().map(|byte| byte.as_u64().expect("a byte") as u8));
    }
    assert_eq!(
        String::from_utf8_lossy(&bytes),
        content(&json),
        "tokens may hold parts of characters"
    );
    check("chat_openai.json", &mask(&masked(&reply.body), "id"));
    let other = server
        .post(CHAT, &ask(QUESTION, json!({"max_tokens": 3})))
        .ok();
    assert_ne!(other["id"], json["id"]);
}

#[test]
fn log_probabilities_stand_beside_each_token_and_have_no_bytes_under_tgi() {
    let server = tiny("tgi");
    let more = json!({"max_tokens": 3, "logprobs": true, "top_logprobs": 2});
    let reply = server.post(CHAT, &ask(QUESTION, more));
    let json = reply.ok();
    let entries = json["choices"][0]["logprobs"]["content"]
        .as_array()
        .expect("entries");
    assert_eq!(entries.len(), 3);
    let joined: String = entries.iter().map(|entry| text(&entry["token"])).collect();
    assert_eq!(joined, content(&json));
    assert!(!reply.body.contains("bytes"));
    check("chat_logprobs.json", &masked(&reply.body));
    for more in [
        json!({}),
        json!({"logprobs": false}),
        json!({"top_logprobs": 2}),
    ] {
        let json = server.post(CHAT, &ask(QUESTION, more)).ok();
        assert_eq!(json["choices"][0]["logprobs"], Json::Null);
    }
    let streamed = ask(
        QUESTION,
        json!({"max_tokens": 3, "logprobs": true, "top_logprobs": 1, "stream": true}),
    );
    for chunk in server.post(CHAT, &streamed).chunks() {
        let entries = chunk["choices"][0]["logprobs"]["content"]
            .as_array()
            .expect("entries");
        assert_eq!(entries.len(), 1);
    }
}

#[test]
fn a_stream_under_tgi_has_one_chunk_for_each_token_each_with_its_role() {
    let server = tiny("tgi");
    let reply = server.post(
        CHAT,
        &ask(QUESTION, json!({"max_tokens": 6, "stream": true})),
    );
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    assert_eq!(reply.header("cache-control"), Some("no-cache"));
    let chunks = reply.chunks();
    let frame = |chunk: &Json, finish: &str| {
        format!(
            concat!(
                r#"data: {{"object":"chat.completion.chunk","id":"","created":{},"model":{},"system_fingerprint":"{}","#,
                r#""choices":[{{"index":0,"delta":{{"role":"assistant","content":{}}},"logprobs":null,"finish_reason":{}}}],"usage":null}}"#,
                "\n\n"
            ),
            chunk["created"],
            json!(model_id(CASE)),
            fingerprint(),
            chunk["choices"][0]["delta"]["content"],
            finish,
        )
    };
    assert_eq!(chunks.len(), 6);
    let mut by_hand: String = chunks[..5]
        .iter()
        .map(|chunk| frame(chunk, "null"))
        .collect();
    by_hand += &frame(&chunks[5], "\"length\"");
    by_hand += "data: [DONE]\n\n";
    assert_eq!(reply.body, by_hand);
    check("chat_stream.txt", &masked(&reply.body));
    let whole = server
        .post(CHAT, &ask(QUESTION, json!({"max_tokens": 6})))
        .ok();
    assert_eq!(streamed(&chunks, 0), content(&whole));
}

#[test]
fn a_stream_under_openai_names_the_role_once_and_keeps_one_id() {
    let server = tiny("openai");
    let reply = server.post(
        CHAT,
        &ask(QUESTION, json!({"max_tokens": 6, "stream": true})),
    );
    let chunks = reply.chunks();
    for (place, chunk) in chunks.iter().enumerate() {
        let role = chunk["choices"][0]["delta"].get("role");
        assert_eq!(role, (place == 0).then_some(&json!("assistant")), "{chunk}");
        assert_eq!(chunk["id"], chunks[0]["id"]);
        assert!(text(&chunk["id"]).starts_with("chatcmpl-"));
    }
    let whole = server
        .post(CHAT, &ask(QUESTION, json!({"max_tokens": 6})))
        .ok();
    assert_eq!(streamed(&chunks, 0), content(&whole));
    check("chat_stream_openai.txt", &mask(&masked(&reply.body), "id"));
}

#[test]
fn an_answer_that_ends_by_itself_counts_its_end_token_and_shows_none() {
    for compat in MODES {
        let server = tiny(compat);
        let shape = json!({"response_format": {"type": "regex", "value": "yes"}});
        let whole = server.post(CHAT, &ask(QUESTION, shape.clone())).ok();
        assert_eq!(content(&whole), "yes");
        assert_eq!(whole["choices"][0]["finish_reason"], "stop");
        let mut body = ask(QUESTION, shape);
        merge(
            &mut body,
            json!({"stream": true, "stream_options": {"include_usage": true}}),
        );
        let mut chunks = server.post(CHAT, &body).chunks();
        let usage = chunks.pop().expect("a chunk that counts");
        assert_eq!(usage["usage"], whole["usage"]);
        assert_eq!(usage["choices"], json!([]));
        assert_eq!(streamed(&chunks, 0), "yes");
        let last = &chunks[chunks.len() - 1]["choices"][0];
        assert_eq!(last["finish_reason"], "stop");
        if compat == "tgi" {
            let tokens = whole["usage"]["completion_tokens"].as_u64();
            assert_eq!(tokens, Some(chunks.len() as u64));
            assert_eq!(last["delta"], json!({"role": "assistant", "content": ""}));
        }
    }
}

#[test]
fn usage_comes_last_and_only_when_asked_for() {
    for compat in MODES {
        let server = tiny(compat);
        let stream = |options: Json| {
            let more = json!({"max_tokens": 4, "stream": true, "stream_options": options});
            server.post(CHAT, &ask(QUESTION, more)).chunks()
        };
        for options in [json!(null), json!({}), json!({"include_usage": false})] {
            let chunks = stream(options);
            for chunk in &chunks {
                assert_eq!(chunk["choices"].as_array().map(Vec::len), Some(1));
                assert_eq!(chunk.get("usage"), Some(&Json::Null), "the key is there");
            }
        }
        let chunks = stream(json!({"include_usage": true}));
        let (usage, before) = chunks.split_last().expect("chunks");
        assert_eq!(usage["choices"], json!([]));
        assert_eq!(usage["usage"]["completion_tokens"], 4);
        let counts = &usage["usage"];
        let sum = counts["prompt_tokens"]
            .as_u64()
            .zip(counts["completion_tokens"].as_u64());
        assert_eq!(counts["total_tokens"].as_u64(), sum.map(|(a, b)| a + b));
        assert!(before.iter().all(|chunk| chunk["usage"].is_null()));
        let whole = ask(QUESTION, json!({"stream_options": {"include_usage": true}}));
        assert_eq!(
            server.post(CHAT, &whole).status,
            200,
            "ignored when collected"
        );
    }
}

#[test]
fn headers_meter_answers_streams_and_no_errors() {
    for compat in MODES {
        let server = tiny(compat);
        let whole = server.post(CHAT, &ask(QUESTION, json!({})));
        assert_eq!(whole.metering(), FULL_SET);
        let usage = &whole.json()["usage"];
        let header = |name: &str| whole.header(name).map(str::to_owned);
        assert_eq!(
            header("x-prompt-tokens"),
            Some(usage["prompt_tokens"].to_string())
        );
        assert_eq!(
            header("x-generated-tokens"),
            Some(usage["completion_tokens"].to_string())
        );
        let prompt = server
            .post("/chat_tokenize", &ask(QUESTION, json!({})))
            .ok();
        let characters = text(&prompt["templated_text"]).chars().count();
        assert_eq!(header("x-compute-characters"), Some(characters.to_string()));
        let stream = server.post(CHAT, &ask(QUESTION, json!({"stream": true})));
        assert_eq!(stream.metering(), STREAM_SET);
        let refused = server.post(CHAT, &ask(QUESTION, json!({"top_p": 7})));
        assert!(refused.metering().is_empty(), "{:?}", refused.headers);
    }
}

#[test]
fn headers_of_a_stream_wait_for_a_token_but_not_for_ever() {
    let model = Copy::endless();
    let server = Sconce::new()
        .flag("--model-id", &model.path().display().to_string())
        .flag("--max-total-tokens", "131072")
        .flag("--max-batch-total-tokens", "131072")
        .flag("--max-batch-size", "1")
        .flag("--keep-alive-seconds", "1")
        .serve();
    let body = json!({"messages": [{"role": "user", "content": "a"}], "stream": true});
    let mut first = server.stream(CHAT, &body);
    assert!(first.next_event().is_some());
    let asked = Instant::now();
    let mut second = server.stream(CHAT, &body);
    let waited = asked.elapsed().as_secs();
    assert!((9..20).contains(&waited), "{waited} s");
    assert_eq!(second.next_frame().as_deref(), Some(":"));
    assert_eq!(second.next_frame().as_deref(), Some(":"));
}

#[test]
fn a_validation_error_reads_as_each_family_has_it() {
    let cases = [
        (
            json!({"temperature": -1}),
            "`temperature` must be strictly positive",
            Some("temperature"),
        ),
        (
            json!({"top_p": 0}),
            "`top_p` must be > 0.0 and < 1.0",
            Some("top_p"),
        ),
        (
            json!({"top_p": 1.5}),
            "`top_p` must be > 0.0 and < 1.0",
            Some("top_p"),
        ),
        (
            json!({"frequency_penalty": 3}),
            "`frequency_penalty` must be >= -2.0 and <= 2.0",
            Some("frequency_penalty"),
        ),
        (
            json!({"presence_penalty": -2.5}),
            "`presence_penalty` must be >= -2.0 and <= 2.0",
            Some("presence_penalty"),
        ),
        (
            json!({"repetition_penalty": 0}),
            "`repetition_penalty` must be strictly positive",
            Some("repetition_penalty"),
        ),
        (
            json!({"max_tokens": 0}),
            "`max_new_tokens` must be strictly positive",
            Some("max_tokens"),
        ),
        (
            json!({"stop": ["a", "b", "c", "d", "e"]}),
            "`stop` supports up to 4 stop sequences. Given: 5",
            Some("stop"),
        ),
        (
            json!({"top_logprobs": 6}),
            "`top_n_tokens` must be >= 0 and <= 5. Given: 6",
            Some("top_logprobs"),
        ),
        (
            json!({"min_p": 1.5}),
            "`min_p` must be >= 0.0 and <= 1.0",
            Some("min_p"),
        ),
        (
            json!({"logit_bias": {"1": 101}}),
            "`logit_bias` values must be >= -100 and <= 100",
            Some("logit_bias"),
        ),
        (
            json!({"response_format": {"type": "json_object", "value": {"type": "thing", "properties": {}}}}),
            "grammar is not valid: \"thing\" is not valid under any of the schemas listed in the 'anyOf' keyword",
            None,
        ),
        (
            json!({"response_format": {"type": "regex", "value": "("}}),
            "grammar is not valid: regex parse error: unclosed group",
            None,
        ),
    ];
    let (tgi, openai) = (tiny("tgi"), tiny("openai"));
    for (fields, detail, param) in cases {
        let message = format!("Input validation error: {detail}");
        let (code, openai_type) = ("invalid_value", "invalid_request_error");
        let collected = ask(QUESTION, fields.clone());
        let mut streamed = collected.clone();
        merge(&mut streamed, json!({"stream": true}));
        let reply = tgi.post(CHAT, &collected);
        let expected = flat(&message, "validation", code, param);
        assert_eq!((reply.status, reply.body), (422, expected), "{fields}");
        let reply = tgi.post(CHAT, &streamed);
        let expected = failed_stream(&message, 422, "validation", code);
        assert_eq!((reply.status, reply.body), (200, expected), "{fields}");
        for body in [&collected, &streamed] {
            let reply = openai.post(CHAT, body);
            let expected = nested(&message, openai_type, code, param);
            assert_eq!((reply.status, reply.body), (400, expected), "{fields}");
        }
    }
}

#[test]
fn a_prompt_too_long_is_an_event_under_tgi_and_a_status_under_openai() {
    for compat in MODES {
        let server = Sconce::tiny(CASE)
            .flag("--compat", compat)
            .flag("--max-total-tokens", "64")
            .flag("--max-input-tokens", "32")
            .serve();
        let body = ask("a", json!({"max_tokens": 64, "stream": true}));
        let prompt = server.post("/chat_tokenize", &body).ok();
        let input = prompt["tokenize_response"].as_array().map_or(0, Vec::len);
        let message = format!(
            "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 64. Given: {input} `inputs` tokens and 64 `max_new_tokens`"
        );
        let reply = server.post(CHAT, &body);
        if compat == "tgi" {
            let expected = failed_stream(&message, 422, "validation", "context_length_exceeded");
            assert_eq!((reply.status, reply.body), (200, expected));
        } else {
            let expected = nested(
                &message,
                "invalid_request_error",
                "context_length_exceeded",
                Some("inputs"),
            );
            assert_eq!((reply.status, reply.body), (400, expected));
        }
    }
}

#[test]
fn overload_reads_as_each_family_has_it() {
    let message = "Model is overloaded";
    for compat in MODES {
        let model = Copy::endless();
        let server = Sconce::new()
            .flag("--model-id", &model.path().display().to_string())
            .flag("--max-total-tokens", "131072")
            .flag("--max-batch-total-tokens", "131072")
            .flag("--max-concurrent-requests", "1")
            .flag("--compat", compat)
            .serve();
        let mut holder =
            server.stream(CHAT, &ask("a", json!({"stream": true, "max_tokens": null})));
        assert!(holder.next_event().is_some());
        // No room wins over what is wrong with the request.
        let collected = server.post(CHAT, &ask("a", json!({"top_p": 9})));
        let streamed = server.post(CHAT, &ask("a", json!({"stream": true})));
        let wait: u64 = collected
            .header("retry-after")
            .expect("a wait")
            .parse()
            .expect("seconds");
        assert!((1..=60).contains(&wait));
        let code = "rate_limit_exceeded";
        if compat == "tgi" {
            let expected = flat(message, "overloaded", code, None);
            assert_eq!((collected.status, collected.body), (429, expected));
            let expected = failed_stream(message, 429, "overloaded", code);
            assert_eq!((streamed.status, streamed.body), (200, expected));
        } else {
            for reply in [collected, streamed] {
                assert!(reply.header("retry-after").is_some());
                let expected = nested(message, "rate_limit_error", code, None);
                assert_eq!((reply.status, reply.body), (429, expected));
            }
        }
        let messages = server.post(
            "/v1/messages",
            &json!({"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}),
        );
        let expected =
            json!({"type": "error", "error": {"type": "rate_limit_error", "message": message}});
        assert_eq!((messages.status, messages.json()), (429, expected));
    }
}

/// A server of a model that has gone bad: in every answer, or where it reads one token again.
fn broken(compat: &str, tensor: &str, row: usize) -> (Copy, Server) {
    let model = Copy::of("qwen2-untied");
    model.poison(tensor, row);
    let server = Sconce::new()
        .flag("--model-id", &model.path().display().to_string())
        .flag("--compat", compat)
        .serve();
    (model, server)
}

#[test]
fn a_failure_of_the_engine_reads_as_each_family_has_it() {
    let code = "server_error";
    for compat in MODES {
        let (_model, server) = broken(compat, "model.norm.weight", 0);
        let native = server.post("/generate", &json!({"inputs": "a", "parameters": {}}));
        assert_eq!(
            (native.status, &native.json()["error_type"]),
            (424, &json!("generation"))
        );
        let message = text(&native.json()["error"]).to_owned();
        assert!(
            message.starts_with("Request failed during generation: Server error: "),
            "{message}"
        );
        let collected = server.post(CHAT, &ask("a", json!({})));
        let streamed = server.post(CHAT, &ask("a", json!({"stream": true})));
        let completion = server.post("/v1/completions", &json!({"prompt": ["a", "b"]}));
        let events = server.post(
            "/v1/completions",
            &json!({"prompt": ["a", "b"], "stream": true}),
        );
        if compat == "tgi" {
            let expected = (424, flat(&message, "generation", code, None));
            assert_eq!((collected.status, collected.body), expected);
            assert_eq!((completion.status, completion.body), expected);
            let expected = (200, failed_stream(&message, 424, "generation", code));
            assert_eq!((streamed.status, streamed.body), expected);
            assert_eq!((events.status, events.body), expected);
        } else {
            for reply in [collected, streamed, completion, events] {
                let expected = nested(&message, code, code, None);
                assert_eq!((reply.status, reply.body), (500, expected));
            }
        }
        for stream in [false, true] {
            let body = json!({"messages": [{"role": "user", "content": "a"}], "stream": stream});
            let reply = server.post("/v1/messages", &body);
            let expected =
                json!({"type": "error", "error": {"type": "api_error", "message": message}});
            assert_eq!((reply.status, reply.json()), (500, expected));
        }
        assert_eq!(
            server.get("/health").status,
            200,
            "other requests may go well"
        );
    }
}

#[test]
fn a_failure_in_the_middle_of_a_stream_is_an_event_before_done() {
    let plain = Sconce::tiny("qwen2-untied").serve();
    let listed = plain.post("/tokenize", &json!({"inputs": "Q"})).ok();
    let id = listed[0]["id"].as_u64().expect("an id");
    for compat in MODES {
        let (_model, server) = broken(compat, "model.embed_tokens.weight", id as usize);
        assert_eq!(server.post(CHAT, &ask("a", json!({}))).status, 200);
        let more = json!({"stream": true, "logit_bias": {id.to_string(): 100}});
        let reply = server.post(CHAT, &ask("a", more.clone()));
        let chunks = reply.chunks();
        assert_eq!(chunks.len(), 2, "{chunks:?}");
        assert_eq!(chunks[0]["choices"][0]["delta"]["content"], "Q");
        let error = &chunks[1]["error"];
        let (status, kind) = if compat == "tgi" {
            (424, "generation")
        } else {
            (500, "server_error")
        };
        assert_eq!(
            (&error["http_status_code"], &error["type"]),
            (&json!(status), &json!(kind))
        );
        assert!(
            text(&error["message"]).starts_with("Request failed during generation: Server error: ")
        );
        assert!(
            reply.body.matches("\"finish_reason\":null").count() == 1,
            "an error is no finish"
        );
        let mut body = json!({"prompt": "a", "max_tokens": 5});
        merge(&mut body, more);
        let chunks = server.post("/v1/completions", &body).chunks();
        assert_eq!(
            chunks[chunks.len() - 1]["error"]["http_status_code"],
            status
        );
    }
}

#[test]
fn a_refusal_of_the_template_is_a_status_in_streams_too() {
    let template = "{{ raise_exception('roles must alternate') }}";
    let message = "Template error: syntax error: roles must alternate (in <string>:1)";
    for compat in MODES {
        let templated = templated(Some(CASE), template, compat);
        for stream in [false, true] {
            let reply = templated
                .server
                .post(CHAT, &ask("a", json!({"stream": stream})));
            let (status, expected) = if compat == "tgi" {
                (422, flat(message, "template_error", "invalid_value", None))
            } else {
                (
                    400,
                    nested(message, "invalid_request_error", "invalid_value", None),
                )
            };
            assert_eq!((reply.status, reply.body), (status, expected));
        }
        let anthropic = templated.server.post(
            "/v1/messages",
            &json!({"messages": [{"role": "user", "content": "a"}]}),
        );
        let expected = json!({"type": "error", "error": {"type": "invalid_request_error", "message": message}});
        assert_eq!((anthropic.status, anthropic.json()), (400, expected));
        let native = templated
            .server
            .post("/chat_tokenize", &ask("a", json!({})));
        let expected = json!({"error": message, "error_type": "template_error"});
        assert_eq!((native.status, native.json()), (422, expected));
        assert!(
            templated
                .server
                .metric("tgi_request_failure{err=\"template\"}")
                >= 3.0
        );
    }
}

#[test]
fn without_a_template_there_is_no_chat() {
    let message = "Template error: template not found";
    let model = Copy::of(CASE);
    fs::remove_file(model.file("chat_template.jinja")).expect("a template");
    let server = Sconce::new()
        .flag("--model-id", &model.path().display().to_string())
        .serve();
    for stream in [false, true] {
        let reply = server.post(CHAT, &ask("a", json!({"stream": stream})));
        let expected = flat(message, "template_error", "invalid_value", None);
        assert_eq!((reply.status, reply.body), (422, expected));
    }
    let reply = server.post("/chat_tokenize", &ask("a", json!({})));
    assert_eq!(
        (reply.status, &reply.json()["error"]),
        (422, &json!(message))
    );
    let completion = json!({"prompt": "a", "max_tokens": 1});
    assert_eq!(server.post("/v1/completions", &completion).status, 200);
}

#[test]
fn bodies_of_the_wrong_shape_are_told_in_each_familys_form() {
    let target = "Failed to deserialize the JSON body into the target type: ";
    let cases = [
        ("{}", "missing field `messages` at line 1 column 2"),
        (
            r#"{"messages":[],"max_tokens":1,"max_completion_tokens":1}"#,
            "duplicate field `max_tokens` at line 1 column 53",
        ),
        (
            r#"{"messages":[],"top_k":"a"}"#,
            r#"top_k: invalid type: string "a", expected i32 at line 1 column 26"#,
        ),
    ];
    let (tgi, openai) = (tiny("tgi"), tiny("openai"));
    for (body, detail) in cases {
        let message = format!("{target}{detail}");
        let reply = tgi.send(&wire::post(CHAT, "", body));
        let expected = flat(&message, "validation", "invalid_value", None);
        assert_eq!((reply.status, reply.body), (422, expected), "{body}");
        let reply = openai.send(&wire::post(CHAT, "", body));
        let expected = nested(&message, "invalid_request_error", "invalid_value", None);
        assert_eq!((reply.status, reply.body), (400, expected), "{body}");
    }
    let broken = tgi.send(&wire::post(CHAT, "", "{"));
    assert_eq!(
        (broken.status, &broken.json()["error_type"]),
        (400, &json!("validation"))
    );
}

#[test]
fn a_wrong_key_is_told_in_each_familys_form() {
    let tgi = Sconce::tiny(CASE).env("API_KEY", "k").serve();
    let openai = Sconce::tiny(CASE)
        .env("API_KEY", "k")
        .flag("--compat", "openai")
        .serve();
    let paths = [CHAT, "/v1/completions", "/v1/responses"];
    for path in paths {
        let reply = tgi.post(path, &json!({}));
        let body = reply.json();
        assert_eq!(reply.status, 401, "{path}");
        assert_eq!(
            (&body["error"], &body["code"]),
            (&body["message"], &json!("invalid_api_key"))
        );
        let reply = openai.post(path, &json!({}));
        assert_eq!(reply.status, 401, "{path}");
        assert_eq!(reply.json()["error"]["code"], "invalid_api_key");
    }
    for path in ["/v1/messages", "/v1/messages/count_tokens"] {
        let reply = tgi.post(path, &json!({}));
        assert_eq!(
            (reply.status, &reply.json()["error"]["type"]),
            (401, &json!("authentication_error"))
        );
    }
    for path in ["/invocations", "/vertex", "/v2/models/m/versions/1/infer"] {
        assert_eq!(tgi.post(path, &json!({})).status, 401, "{path}");
    }
    assert_eq!(
        tgi.post("/chat_tokenize", &ask("a", json!({}))).status,
        200,
        "open, as in TGI"
    );
}

#[test]
fn the_embedded_model_answers_a_question() {
    for compat in MODES {
        let server = Sconce::new().flag("--compat", compat).serve();
        let body = ask("What is the capital of France?", json!({}));
        let answer = server.post(CHAT, &body).ok();
        assert!(content(&answer).contains("Paris"), "{answer}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        assert!(!content(&answer).contains("<|"), "no special tokens");
    }
}

#[test]
fn a_stop_string_is_left_out_and_held_back_wherever_it_falls() {
    for compat in MODES {
        let server = tiny(compat);
        let whole = server
            .post(CHAT, &ask(QUESTION, json!({"max_tokens": 24})))
            .ok();
        let whole = content(&whole).to_owned();
        let bounds: Vec<usize> = whole.char_indices().map(|(at, _)| at).collect();
        for width in [1, 2, 5] {
            for window in bounds.windows(width + 1).step_by(4) {
                let stop = &whole[window[0]..window[width]];
                let end = whole.find(stop).expect("a part of the text");
                let with = |more: Json| {
                    let mut body = ask(QUESTION, json!({"max_tokens": 64, "stop": stop}));
                    merge(&mut body, more);
                    body
                };
                let answer = server.post(CHAT, &with(json!({}))).ok();
                assert_eq!(content(&answer), &whole[..end], "{stop:?}");
                assert_eq!(answer["choices"][0]["finish_reason"], "stop");
                let several = server
                    .post(CHAT, &with(json!({"stop": ["never seen", stop]})))
                    .ok();
                assert_eq!(content(&several), &whole[..end], "{stop:?}");
                let chunks = server.post(CHAT, &with(json!({"stream": true}))).chunks();
                assert_eq!(streamed(&chunks, 0), whole[..end], "{stop:?}");
                if compat == "tgi" {
                    let tokens = answer["usage"]["completion_tokens"].as_u64();
                    assert_eq!(
                        tokens,
                        Some(chunks.len() as u64),
                        "one chunk for each token"
                    );
                }
            }
        }
    }
}

#[test]
fn every_token_of_a_stream_has_its_log_probability_although_its_text_waits() {
    for compat in MODES {
        let server = Sconce::new().flag("--compat", compat).serve();
        let more = json!({
            "response_format": {"type": "regex", "value": "one two three stopping"},
            "stop": ["stopped", "three stones"],
            "logprobs": true,
            "max_tokens": 60,
        });
        let mut body = ask("a", more);
        let whole = server.post(CHAT, &body).ok();
        merge(&mut body, json!({"stream": true}));
        let chunks = server.post(CHAT, &body).chunks();
        let entries: Vec<Json> = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array())
            .flatten()
            .cloned()
            .collect();
        assert_eq!(json!(entries), whole["choices"][0]["logprobs"]["content"]);
        let tokens: String = entries.iter().map(|entry| text(&entry["token"])).collect();
        assert!(tokens.starts_with("one two three stopping"), "{tokens}");
    }
}

#[test]
fn what_only_looks_like_a_stop_string_comes_out_in_the_end() {
    let server = Sconce::new().serve();
    let shape = json!({"type": "regex", "value": "one two three stopping"});
    let more =
        json!({"response_format": shape, "stop": ["stopped", "three stones"], "max_tokens": 60});
    let mut body = ask("a", more);
    let answer = server.post(CHAT, &body).ok();
    assert_eq!(content(&answer), "one two three stopping");
    merge(&mut body, json!({"stream": true}));
    let chunks = server.post(CHAT, &body).chunks();
    assert_eq!(streamed(&chunks, 0), "one two three stopping");
    merge(
        &mut body,
        json!({"max_tokens": answer["usage"]["completion_tokens"].as_u64().map(|n| n - 2)}),
    );
    let cut = streamed(&server.post(CHAT, &body).chunks(), 0);
    assert!(
        cut.len() > 14 && "one two three stopping".starts_with(&cut),
        "{cut:?}"
    );
}

#[test]
fn settings_clients_send_by_default_change_nothing() {
    let server = tiny("tgi");
    let seeded = |more: Json| {
        let mut body = ask(
            QUESTION,
            json!({"temperature": 0.8, "seed": 7, "max_tokens": 12}),
        );
        merge(&mut body, more);
        server.post(CHAT, &body).ok()["choices"].clone()
    };
    let plain = seeded(json!({}));
    let defaults = [
        json!({"top_p": 1}),
        json!({"presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1}),
        json!({"logit_bias": {}}),
        json!({"logit_bias": [0.5, 1.0]}),
        json!({"logit_bias": null, "stop": null, "stream": null, "n": null, "tools": null,
            "tool_choice": null, "response_format": null, "stream_options": null, "logprobs": null}),
        json!({"stop": []}),
        json!({"stop": ""}),
        json!({"n": 1, "top_k": 0, "min_p": 0}),
        json!({"top_k": -1}),
        json!({"user": "u", "metadata": {}, "store": true, "service_tier": "auto", "parallel_tool_calls": true}),
        json!({"response_format": {"type": "text"}}),
        json!({"tool_choice": "auto"}),
        json!({"api_base": "http://evil", "api_key": "x"}),
    ];
    for more in defaults {
        assert_eq!(seeded(more.clone()), plain, "{more}");
    }
}

#[test]
fn settings_that_shape_the_draw_do() {
    let server = tiny("tgi");
    let choices = |more: Json| {
        let mut body = ask(QUESTION, json!({"max_tokens": 40}));
        merge(&mut body, more);
        server.post(CHAT, &body).ok()["choices"].clone()
    };
    let greedy = choices(json!({}));
    assert_eq!(
        choices(json!({"temperature": 0, "top_p": 0.3, "top_k": 4, "seed": 3})),
        greedy
    );
    assert_eq!(choices(json!({"temperature": 1, "top_k": 1})), greedy);
    assert_eq!(choices(json!({"temperature": 1, "min_p": 1})), greedy);
    for more in [
        json!({"presence_penalty": 2}),
        json!({"presence_penalty": -2}),
        json!({"frequency_penalty": -2}),
        json!({"repetition_penalty": 1.8}),
        json!({"temperature": null, "seed": 1}),
    ] {
        assert_ne!(choices(more.clone()), greedy, "{more}");
    }
    let drawn = |seed: i64| choices(json!({"temperature": null, "seed": seed}));
    assert_eq!(drawn(5), drawn(5));
    assert_ne!(drawn(5), drawn(6));
    assert_eq!(drawn(-5), drawn(-5), "a negative seed is a seed");
    assert_ne!(drawn(-5), drawn(5));
    let unseeded: BTreeSet<String> = (0..4)
        .map(|_| choices(json!({"temperature": null})).to_string())
        .collect();
    assert!(unseeded.len() > 1, "sampled at 1 when nothing is said");
}

#[test]
fn biases_force_and_ban_tokens() {
    let server = tiny("tgi");
    let tokens = |more: Json| -> Vec<String> {
        let mut body = ask(QUESTION, json!({"max_tokens": 6, "logprobs": true}));
        merge(&mut body, more);
        let answer = server.post(CHAT, &body).ok();
        let entries = answer["choices"][0]["logprobs"]["content"]
            .as_array()
            .cloned();
        entries
            .unwrap_or_default()
            .iter()
            .map(|entry| text(&entry["token"]).to_owned())
            .collect()
    };
    let listed = server.post("/tokenize", &json!({"inputs": "a"})).ok();
    let id = listed[1]["id"].to_string();
    assert_eq!(tokens(json!({"logit_bias": {&id: 100}})), ["a"; 6]);
    let forced = json!({"logit_bias": {&id: 100}, "temperature": 1.0, "seed": 2});
    assert_eq!(tokens(forced), ["a"; 6]);
    let native = server.post("/generate", &json!({"inputs": "x", "parameters": {}}));
    assert_eq!(native.status, 200);
    let body = ask(QUESTION, json!({"max_tokens": 1}));
    let prompt = server.post("/chat_tokenize", &body).ok();
    let prompt = text(&prompt["templated_text"]).to_owned();
    let prompt = prompt
        .strip_prefix("<|begin_of_text|>")
        .expect("the template writes it");
    let first = server.generate(prompt, json!({"max_new_tokens": 1}));
    let first = &first["details"]["tokens"][0];
    assert_eq!(tokens(json!({}))[0], text(&first["text"]));
    let banned = json!({"logit_bias": {first["id"].to_string(): -100}});
    assert!(!tokens(banned).contains(&text(&first["text"]).to_owned()));
    for unknown in ["99999999", "-1", "x", "320"] {
        let reply = server.post(CHAT, &ask("a", json!({"logit_bias": {unknown: 1}})));
        let body = reply.json();
        assert_eq!(
            (reply.status, &body["param"]),
            (422, &json!("logit_bias")),
            "{body}"
        );
    }
}

#[test]
fn max_completion_tokens_is_max_tokens_by_another_name() {
    let server = tiny("tgi");
    let body = json!({"messages": [{"role": "user", "content": "a"}], "max_completion_tokens": 3, "temperature": 0});
    let answer = server.post(CHAT, &body).ok();
    assert_eq!(answer["usage"]["completion_tokens"], 3);
    let open = json!({"messages": [{"role": "user", "content": "a"}], "temperature": 0});
    let answer = server.post(CHAT, &open).ok();
    assert!(
        answer["usage"]["completion_tokens"].as_u64() > Some(100),
        "the rest of the window"
    );
}

#[test]
fn several_answers_share_one_prompt() {
    for compat in MODES {
        let server = tiny(compat);
        let body = ask(
            QUESTION,
            json!({"temperature": 1.0, "seed": 11, "n": 3, "max_tokens": 8}),
        );
        let answer = server.post(CHAT, &body).ok();
        let choices = answer["choices"].as_array().expect("choices");
        let texts: BTreeSet<&str> = choices
            .iter()
            .map(|c| text(&c["message"]["content"]))
            .collect();
        assert_eq!((choices.len(), texts.len()), (3, 3), "seeds differ");
        for (place, choice) in choices.iter().enumerate() {
            assert_eq!(choice["index"], place);
        }
        let one = server
            .post(
                CHAT,
                &ask(
                    QUESTION,
                    json!({"temperature": 1.0, "seed": 11, "max_tokens": 8}),
                ),
            )
            .ok();
        assert_eq!(
            one["choices"][0], choices[0],
            "the first is that of a single answer"
        );
        assert_eq!(
            answer["usage"]["prompt_tokens"],
            one["usage"]["prompt_tokens"]
        );
        assert_eq!(answer["usage"]["completion_tokens"], 24);
        let headers = server.post(CHAT, &body);
        let header = |name: &str| headers.header(name).map(str::to_owned);
        let prompt = answer["usage"]["prompt_tokens"].to_string();
        assert_eq!(header("x-prompt-tokens"), Some(prompt), "counted once");
        assert_eq!(header("x-generated-tokens").as_deref(), Some("24"));
        let mut streaming = body.clone();
        merge(
            &mut streaming,
            json!({"stream": true, "stream_options": {"include_usage": true}}),
        );
        let chunks = server.post(CHAT, &streaming).chunks();
        for (place, choice) in choices.iter().enumerate() {
            assert_eq!(
                streamed(&chunks, place),
                text(&choice["message"]["content"])
            );
            let own: Vec<&Json> = chunks
                .iter()
                .filter(|c| c["choices"][0]["index"] == place)
                .collect();
            assert_eq!(own[0]["choices"][0]["delta"]["role"], "assistant");
            assert_eq!(own[own.len() - 1]["choices"][0]["finish_reason"], "length");
        }
        assert_eq!(chunks[chunks.len() - 1]["usage"], answer["usage"]);
        assert_eq!(server.metric("tgi_request_count"), 4.0, "one for each call");
        for n in [0, 9] {
            let reply = server.post(CHAT, &ask("a", json!({"n": n})));
            let said = reply
                .body
                .contains(&format!("`n` must be > 0 and <= 8. Given: {n}"));
            assert!(said && [400, 422].contains(&reply.status), "{reply:?}");
        }
    }
}

#[test]
fn unseeded_answers_differ_from_each_other() {
    let server = tiny("tgi");
    let body = ask(
        QUESTION,
        json!({"temperature": 1.0, "n": 4, "max_tokens": 8}),
    );
    let answer = server.post(CHAT, &body).ok();
    let texts: BTreeSet<String> = answer["choices"]
        .as_array()
        .expect("choices")
        .iter()
        .map(|choice| choice["message"].to_string())
        .collect();
    assert!(texts.len() > 1);
}

#[test]
fn several_answers_take_a_permit_each_and_more_than_there_are_is_no_overload() {
    let model = Copy::endless();
    let server = Sconce::new()
        .flag("--model-id", &model.path().display().to_string())
        .flag("--max-total-tokens", "131072")
        .flag("--max-batch-total-tokens", "131072")
        .flag("--max-concurrent-requests", "2")
        .serve();
    let status = |n: u32| {
        server
            .post(CHAT, &ask("a", json!({"n": n, "max_tokens": 2})))
            .status
    };
    assert_eq!((status(2), status(3)), (200, 422));
    let mut holder = server.stream(CHAT, &ask("a", json!({"stream": true, "max_tokens": null})));
    assert!(holder.next_event().is_some());
    assert_eq!((status(1), status(2), status(3)), (200, 429, 422));
}

#[test]
fn every_spelling_of_a_response_format_is_followed() {
    let server = Sconce::new().serve();
    let schema = json!({"type": "object", "properties": {"a": {"enum": ["x", "y"]}, "b": {"type": "boolean"}},
        "required": ["a", "b"], "additionalProperties": false});
    let validator = jsonschema::validator_for(&schema).expect("a sound schema");
    let shaped = |format: &Json| {
        let more = json!({"response_format": format, "max_tokens": 80});
        let answer = server.post(CHAT, &ask("Give me JSON", more)).ok();
        let value: Json = serde_json::from_str(content(&answer)).expect("JSON");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
        value
    };
    for format in [
        json!({"type": "json_object", "value": schema}),
        json!({"type": "json", "value": schema}),
        json!({"type": "json", "value": schema.to_string()}),
        json!({"type": "json_schema", "value": {"name": "n", "schema": schema}}),
        json!({"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": schema}}),
        json!({"type": "json_object", "schema": schema}),
    ] {
        assert!(validator.is_valid(&shaped(&format)), "{format}");
    }
    let more = json!({"response_format": {"type": "json_object"}, "max_tokens": 2, "temperature": 1.0, "seed": 1});
    let free = server.post(CHAT, &ask("JSON", more)).ok();
    assert!(content(&free).trim_start().starts_with('{'), "{free}");
    let more = json!({"response_format": {"type": "regex", "value": "[0-9]{4}"}});
    let digits = server.post(CHAT, &ask("JSON", more)).ok();
    assert!(content(&digits).len() == 4 && content(&digits).bytes().all(|b| b.is_ascii_digit()));
}

#[test]
fn response_formats_that_mean_nothing_are_refused_by_name() {
    let server = Sconce::new().serve();
    let cases = [
        (json!({"type": "xml"}), "`response_format.type` is `xml`"),
        (
            json!({"type": "json_schema"}),
            "`response_format.json_schema` is missing",
        ),
        (
            json!({"type": "json_schema", "json_schema": {"name": "n"}}),
            "`response_format.json_schema.schema` is missing",
        ),
        (
            json!({"type": "json"}),
            "`response_format.value` is missing",
        ),
        (
            json!({"type": "regex", "value": 1}),
            "`response_format.value` must be a string",
        ),
        (
            json!({"type": "json", "value": 5}),
            "grammar is not supported",
        ),
        (
            json!({"type": "json", "value": "{]"}),
            "grammar is not valid: ",
        ),
        (
            json!({"type": "json", "value": {}, "schema": {}}),
            "`response_format.value` and `response_format.schema` are the same",
        ),
    ];
    for (format, start) in cases {
        let reply = server.post(CHAT, &ask("a", json!({"response_format": format})));
        let error = reply.json();
        let start = format!("Input validation error: {start}");
        assert_eq!(
            (reply.status, &error["error_type"]),
            (422, &json!("validation")),
            "{error}"
        );
        assert!(text(&error["error"]).starts_with(&start), "{error}");
    }
    let untyped = server.post(CHAT, &ask("a", json!({"response_format": {}})));
    assert_eq!(untyped.status, 422);
    let off = Sconce::new().env("DISABLE_GRAMMAR_SUPPORT", "true").serve();
    let reply = off.post(
        CHAT,
        &ask("a", json!({"response_format": {"type": "json_object"}})),
    );
    assert_eq!(
        reply.json()["error"],
        "Input validation error: grammar is not supported"
    );
}

/// What the template gets to see of a conversation.
fn seen(server: &Server, body: &Json) -> (Json, Json, String) {
    let reply = server.post("/chat_tokenize", body).ok();
    let mut parts = text(&reply["templated_text"]).split('|');
    let mut part = || parts.next().expect("four parts").to_owned();
    let (messages, tools) = (part(), part());
    let json = |part: &str| serde_json::from_str(part).unwrap_or_else(|e| panic!("{e}: {part}"));
    (json(&messages), json(&tools), part() + "|" + &part())
}

#[test]
fn templates_see_messages_as_transformers_shows_them() {
    let mirror = templated(Some(CASE), MIRROR, "tgi");
    let call = json!({"id": "7", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}});
    let body = json!({"messages": [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "name": "Ann", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "7", "content": "42"},
        {"role": "user", "content": null},
    ], "chat_template_kwargs": {"flavour": "mint"}});
    let (messages, tools, rest) = seen(&mirror.server, &body);
    let expected = json!([
        {"role": "system", "content": "Be brief."},
        {"role": "user", "name": "Ann", "content": "one two"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "7", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "tool_call_id": "7", "content": "42"},
        {"role": "user", "content": ""},
    ]);
    assert_eq!((messages, tools), (expected, Json::Null));
    assert_eq!(rest.to_lowercase(), "true|mint");
    let (messages, ..) = seen(&mirror.server, &json!({"messages": []}));
    assert_eq!(
        messages,
        json!([]),
        "an empty conversation reaches the template"
    );
    let content = json!({"messages": [{"role": "user", "content": "<b> & 'c' é"}]});
    let reply = mirror.server.post("/chat_tokenize", &content).ok();
    assert!(
        text(&reply["templated_text"]).contains("<b> & 'c' é"),
        "nothing is escaped: {reply}"
    );
}

#[test]
fn parts_that_are_no_text_are_refused_by_place() {
    let server = tiny("tgi");
    for (kind, modality) in [
        ("image_url", "image"),
        ("input_audio", "audio"),
        ("video_url", "video"),
    ] {
        let body = json!({"messages": [
            {"role": "user", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "what?"}, {"type": kind, "image_url": {"url": "http://x/y.png"}}]},
        ]});
        let reply = server.post(CHAT, &body);
        let message = format!(
            "Input validation error: `messages[1].content[1]` is of type `{kind}`: {modality} modality is not supported"
        );
        let expected = flat(
            &message,
            "validation",
            "invalid_value",
            Some("messages[1].content[1]"),
        );
        assert_eq!((reply.status, reply.body), (422, expected));
    }
}

#[test]
fn a_last_message_of_the_assistant_is_continued() {
    let templated = templated(None, CHATML, "tgi");
    let server = &templated.server;
    let body = json!({"messages": [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is"},
    ], "temperature": 0, "max_tokens": 16});
    let prompt = server.post("/chat_tokenize", &body).ok();
    assert_eq!(
        text(&prompt["templated_text"]),
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\nThe capital of France is"
    );
    let answer = server.post(CHAT, &body).ok();
    assert!(content(&answer).starts_with(" Paris"), "{answer}");
    let embedded = Sconce::new().serve();
    assert_eq!(
        embedded.post(CHAT, &body).ok()["choices"],
        answer["choices"]
    );
}

#[test]
fn chat_tokenize_shows_the_prompt_and_its_tokens_without_added_ones() {
    let server = tiny("tgi");
    let body = ask("é 🥐", json!({}));
    let reply = server.post("/chat_tokenize", &body);
    assert!(reply.metering().is_empty());
    let json = reply.ok();
    let prompt = text(&json["templated_text"]);
    assert!(
        prompt.starts_with("<|begin_of_text|><|start_header_id|>user"),
        "{prompt}"
    );
    let tokens = json["tokenize_response"].as_array().expect("tokens");
    let joined: String = tokens
        .iter()
        .map(|token| {
            let place = |key: &str| token[key].as_u64().expect("a byte") as usize;
            &prompt.as_bytes()[place("start")..place("stop")]
        })
        .map(String::from_utf8_lossy)
        .collect();
    assert!(
        joined.starts_with("<|begin_of_text|>"),
        "one BOS, the template's: {joined}"
    );
    assert_eq!(joined.matches("<|begin_of_text|>").count(), 1);
    let answer = server.post(CHAT, &body).ok();
    assert_eq!(answer["usage"]["prompt_tokens"], tokens.len());
    check("chat_tokenize.json", &reply.body);
}

#[test]
fn the_model_that_was_asked_for_is_named() {
    let (tgi, openai) = (tiny("tgi"), tiny("openai"));
    let served = model_id(CASE);
    let named = |server: &Server, model: Json| {
        server.post(CHAT, &ask("a", json!({"model": model, "max_tokens": 1})))
    };
    for model in [
        json!(null),
        json!(""),
        json!("tgi"),
        json!("dummy"),
        json!(served),
    ] {
        for server in [&tgi, &openai] {
            assert_eq!(named(server, model.clone()).ok()["model"], json!(served));
        }
    }
    assert_eq!(named(&tgi, json!("gpt-4o")).ok()["model"], "gpt-4o");
    let reply = named(&openai, json!("gpt-4o"));
    let message = "The model `gpt-4o` does not exist here; GET /v1/models lists what does";
    let expected = nested(message, "invalid_request_error", "model_not_found", None);
    assert_eq!((reply.status, reply.body), (404, expected));
    let address = "http://127.0.0.1:1/v1";
    assert_eq!(
        named(&tgi, json!(address)).ok()["model"],
        json!(served),
        "never read"
    );
    let reply = named(&openai, json!(address));
    let message = "Input validation error: `model` must be a name, not an address";
    let expected = nested(
        message,
        "invalid_request_error",
        "invalid_value",
        Some("model"),
    );
    assert_eq!((reply.status, reply.body), (400, expected));
}

#[test]
fn a_deadline_is_a_504_or_an_event() {
    for compat in MODES {
        let model = Copy::endless();
        let server = Sconce::new()
            .flag("--model-id", &model.path().display().to_string())
            .flag("--max-total-tokens", "131072")
            .flag("--max-batch-total-tokens", "131072")
            .flag("--compat", compat)
            .serve();
        let send = |stream: bool| {
            let body = ask("a", json!({"max_tokens": null, "stream": stream})).to_string();
            server.send(&wire::post(CHAT, "x-route-deadline-ms: 300\r\n", &body))
        };
        let collected = send(false);
        let message = "Request deadline exceeded";
        assert_eq!(
            (collected.status, collected.header("x-should-retry")),
            (504, Some("false"))
        );
        let expected = if compat == "tgi" {
            flat(message, "timeout", "timeout", None)
        } else {
            nested(message, "server_error", "timeout", None)
        };
        assert_eq!(collected.body, expected);
        let kind = if compat == "tgi" {
            "timeout"
        } else {
            "server_error"
        };
        let streamed = send(true);
        assert_eq!(streamed.status, 200);
        let end = failed_stream(message, 504, kind, "timeout");
        assert!(streamed.body.ends_with(&end), "an event, then [DONE]");
        assert!(
            !streamed.body.contains("\"finish_reason\":\""),
            "an error is no finish"
        );
    }
}

#[test]
fn a_deadline_before_the_first_token_is_a_status_under_openai() {
    let message = "Request deadline exceeded";
    for compat in MODES {
        let model = Copy::endless();
        let server = Sconce::new()
            .flag("--model-id", &model.path().display().to_string())
            .flag("--max-total-tokens", "131072")
            .flag("--max-batch-total-tokens", "131072")
            .flag("--max-batch-size", "1")
            .flag("--compat", compat)
            .serve();
        let open = ask("a", json!({"max_tokens": null, "stream": true}));
        let mut holder = server.stream(CHAT, &open);
        assert!(holder.next_event().is_some());
        let late = wire::post(CHAT, "x-route-deadline-ms: 300\r\n", &open.to_string());
        let reply = server.send(&late);
        if compat == "tgi" {
            let expected = failed_stream(message, 504, "timeout", "timeout");
            assert_eq!((reply.status, reply.body), (200, expected));
        } else {
            let expected = nested(message, "server_error", "timeout", None);
            assert_eq!((reply.status, &reply.body), (504, &expected));
            assert_eq!(reply.header("x-should-retry"), Some("false"));
        }
        let path = "/v1/messages";
        let messages = json!({"messages": [{"role": "user", "content": "a"}], "stream": true});
        let late = wire::post(path, "x-route-deadline-ms: 300\r\n", &messages.to_string());
        let reply = server.send(&late);
        let expected =
            json!({"type": "error", "error": {"type": "timeout_error", "message": message}});
        assert_eq!((reply.status, reply.json()), (504, expected));
    }
}

#[test]
fn a_caller_that_leaves_a_stream_frees_its_place() {
    let model = Copy::endless();
    let server = Sconce::new()
        .flag("--model-id", &model.path().display().to_string())
        .flag("--max-total-tokens", "131072")
        .flag("--max-batch-total-tokens", "131072")
        .flag("--max-concurrent-requests", "2")
        .serve();
    let body = ask("a", json!({"max_tokens": null, "stream": true, "n": 2}));
    let mut stream = server.stream(CHAT, &body);
    assert!(stream.next_event().is_some());
    assert_eq!(server.post(CHAT, &ask("a", json!({}))).status, 429);
    drop(stream);
    eventually("both places are free", || {
        let reply = server.post(CHAT, &ask("a", json!({"n": 2, "max_tokens": 1})));
        (reply.status == 200).then_some(())
    });
    eventually("the caller's leaving is counted", || {
        (server.metric("tgi_request_failure{err=\"dropped\"}") == 1.0).then_some(())
    });
}

#[test]
fn reasoning_is_told_apart_where_it_is_asked_for() {
    let closing = format!("{CHATML}{{# </think> #}}");
    let shape = json!({"response_format": {"type": "regex", "value": "<think>\nabc def\n</think>\n\nhello"}, "max_tokens": 60});
    for (compat, more, apart) in [
        ("openai", json!({}), true),
        ("tgi", json!({}), false),
        ("tgi", json!({"separate_reasoning": true}), true),
        ("tgi", json!({"reasoning_format": "deepseek"}), true),
        ("openai", json!({"reasoning_format": "none"}), false),
        ("openai", json!({"separate_reasoning": false}), false),
    ] {
        let templated = templated(None, &closing, compat);
        let mut body = ask("a", shape.clone());
        merge(&mut body, more);
        let answer = templated.server.post(CHAT, &body).ok();
        let message = &answer["choices"][0]["message"];
        merge(&mut body, json!({"stream": true}));
        let chunks = templated.server.post(CHAT, &body).chunks();
        let reasoning: String = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["delta"]["reasoning_content"].as_str())
            .collect();
        if apart {
            let expected =
                json!({"role": "assistant", "content": "hello", "reasoning_content": "abc def"});
            assert_eq!(*message, expected);
            assert_eq!(
                (reasoning.as_str(), streamed(&chunks, 0).as_str()),
                ("abc def", "hello")
            );
        } else {
            let whole = "<think>\nabc def\n</think>\n\nhello";
            assert_eq!(*message, json!({"role": "assistant", "content": whole}));
            assert_eq!(
                (reasoning.as_str(), streamed(&chunks, 0).as_str()),
                ("", whole)
            );
        }
    }
}

#[test]
fn reasoning_that_the_prompt_opens_is_reasoning() {
    let opening = CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}");
    let opening = format!("{opening}{{# </think> #}}");
    let templated = templated(None, &opening, "openai");
    let shape = json!({"type": "regex", "value": "abc</think>hello"});
    let answer = templated
        .server
        .post(CHAT, &ask("a", json!({"response_format": shape})))
        .ok();
    let expected = json!({"role": "assistant", "content": "hello", "reasoning_content": "abc"});
    assert_eq!(answer["choices"][0]["message"], expected);
    let open = templated
        .server
        .post(
            CHAT,
            &ask("What is the capital of France?", json!({"max_tokens": 3})),
        )
        .ok();
    let message = &open["choices"][0]["message"];
    assert_eq!(message["content"], "", "never closed: {message}");
    assert!(!text(&message["reasoning_content"]).is_empty());
}

#[test]
fn calls_are_counted_once() {
    let server = tiny("tgi");
    server.post(CHAT, &ask("a", json!({}))).ok();
    server
        .post(CHAT, &ask("a", json!({"stream": true})))
        .chunks();
    assert_eq!(server.metric("tgi_request_count"), 2.0);
    assert_eq!(server.metric("tgi_request_success"), 2.0);
    server.post(CHAT, &ask("a", json!({"top_p": 9})));
    server.post(CHAT, &ask("a", json!({"response_format": {"type": "xml"}})));
    assert_eq!(
        server.metric("tgi_request_failure{err=\"validation\"}"),
        2.0
    );
}

/// Settings of a draw, each within its bounds or left out.
fn any_settings() -> impl Strategy<Value = Json> {
    let some = |strategy: BoxedStrategy<Json>| proptest::option::of(strategy);
    (
        some((0.0..3.0_f64).prop_map(|t| json!(t)).boxed()),
        some((0.05..1.0_f64).prop_map(|p| json!(p)).boxed()),
        some((-1..50_i32).prop_map(|k| json!(k)).boxed()),
        some((0.0..1.0_f64).prop_map(|p| json!(p)).boxed()),
        some((-2.0..2.0_f64).prop_map(|p| json!(p)).boxed()),
        some((-2.0..2.0_f64).prop_map(|p| json!(p)).boxed()),
        some(
            prop::collection::vec("[a-e ]{1,2}", 0..4)
                .prop_map(|s| json!(s))
                .boxed(),
        ),
        (1..40_u32, any::<i64>(), 1..3_usize),
    )
        .prop_map(
            |(t, top_p, top_k, min_p, frequency, presence, stop, (max, seed, n))| {
                let mut body = json!({"max_tokens": max, "seed": seed, "n": n});
                let fields = [
                    ("temperature", t),
                    ("top_p", top_p),
                    ("top_k", top_k),
                    ("min_p", min_p),
                    ("frequency_penalty", frequency),
                    ("presence_penalty", presence),
                    ("stop", stop),
                ];
                for (key, value) in fields {
                    if let Some(value) = value {
                        body[key] = value;
                    }
                }
                body
            },
        )
}

#[test]
fn a_streamed_answer_is_the_collected_one_whatever_the_settings() {
    let servers = [tiny("tgi"), tiny("openai")];
    let mut runner = TestRunner::new(Config {
        cases: 96,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = runner.run(&(any_settings(), 0..2_usize), |(settings, which)| {
        let server = &servers[which];
        let mut body = json!({"messages": [{"role": "user", "content": QUESTION}]});
        merge(&mut body, settings);
        let whole = server.post(CHAT, &body).ok();
        merge(
            &mut body,
            json!({"stream": true, "stream_options": {"include_usage": true}}),
        );
        let chunks = server.post(CHAT, &body).chunks();
        for choice in whole["choices"].as_array().expect("choices") {
            let index = choice["index"].as_u64().expect("a place") as usize;
            let said = text(&choice["message"]["content"]);
            prop_assert_eq!(streamed(&chunks, index), said, "{}", body);
            let stops = body["stop"].as_array().cloned().unwrap_or_default();
            prop_assert!(
                !stops.iter().any(|stop| said.contains(text(stop))),
                "{}",
                said
            );
            let finish = chunks.iter().find_map(|chunk| {
                let own = &chunk["choices"][0];
                (own["index"] == index)
                    .then(|| own["finish_reason"].as_str())
                    .flatten()
            });
            prop_assert_eq!(finish, choice["finish_reason"].as_str());
        }
        prop_assert_eq!(&chunks[chunks.len() - 1]["usage"], &whole["usage"]);
        Ok(())
    });
    outcome.unwrap_or_else(|e| panic!("{e}"));
}
