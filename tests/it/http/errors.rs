//! Every refusal, with its status, type and text as the contract has them.

use serde_json::{Value as Json, json};

use crate::support::models::Copy;
use crate::support::server::{Sconce, Server};
use crate::support::wire;

/// A server with a window small enough to overflow: 32 tokens in, 64 in all.
fn narrow() -> Server {
    Sconce::tiny("llama-tied")
        .flag("--max-total-tokens", "64")
        .flag("--max-input-tokens", "32")
        .serve()
}

fn error(text: &str, kind: &str) -> String {
    format!(r#"{{"error":{},"error_type":"{kind}"}}"#, json!(text))
}

fn invalid(detail: &str) -> String {
    error(&format!("Input validation error: {detail}"), "validation")
}

/// Asserts a refusal on all three routes: as a status, in a list's place, and inside a stream.
#[track_caller]
fn assert_invalid(server: &Server, inputs: &str, parameters: &Json, detail: &str) {
    let body = json!({"inputs": inputs, "parameters": parameters});
    for path in ["/generate", "/"] {
        let reply = server.post(path, &body);
        assert_eq!(
            (reply.status, reply.body),
            (422, invalid(detail)),
            "{path} {parameters}"
        );
    }
    let reply = server.post("/generate_stream", &body);
    let frame = format!("data: {}\n\n", invalid(detail));
    assert_eq!((reply.status, reply.body), (200, frame), "{parameters}");
}

#[test]
fn rules_1_to_13_have_their_texts() {
    let server = narrow();
    let cases = [
        (
            json!({"temperature": 0.0}),
            "`temperature` must be strictly positive",
        ),
        (
            json!({"temperature": -1.0}),
            "`temperature` must be strictly positive",
        ),
        (
            json!({"repetition_penalty": 0.0}),
            "`repetition_penalty` must be strictly positive",
        ),
        (
            json!({"frequency_penalty": 2.1}),
            "`frequency_penalty` must be >= -2.0 and <= 2.0",
        ),
        (
            json!({"frequency_penalty": -2.1}),
            "`frequency_penalty` must be >= -2.0 and <= 2.0",
        ),
        (json!({"top_p": 1.0}), "`top_p` must be > 0.0 and < 1.0"),
        (json!({"top_p": 0.0}), "`top_p` must be > 0.0 and < 1.0"),
        (
            json!({"typical_p": 1.0}),
            "`typical_p` must be > 0.0 and < 1.0",
        ),
        (
            json!({"typical_p": 0.0}),
            "`typical_p` must be > 0.0 and < 1.0",
        ),
        (json!({"top_k": 0}), "`top_k` must be strictly positive"),
        (json!({"top_k": -1}), "`top_k` must be strictly positive"),
        (
            json!({"max_new_tokens": 0}),
            "`max_new_tokens` must be strictly positive",
        ),
        (
            json!({"stop": ["a", "b", "c", "d", "e"]}),
            "`stop` supports up to 4 stop sequences. Given: 5",
        ),
        (
            json!({"top_n_tokens": 6}),
            "`top_n_tokens` must be >= 0 and <= 5. Given: 6",
        ),
        (
            json!({"truncate": 0}),
            "`truncate` must be strictly positive and less than 32. Given: 0",
        ),
        (
            json!({"truncate": 33}),
            "`truncate` must be strictly positive and less than 32. Given: 33",
        ),
    ];
    for (parameters, detail) in cases {
        assert_invalid(&server, "a", &parameters, detail);
    }
    assert_invalid(&server, "", &json!({}), "`inputs` cannot be empty");
}

#[test]
fn bounds_that_touch_a_rule_are_inside_it() {
    let server = narrow();
    let allowed = [
        json!({"frequency_penalty": 2.0}),
        json!({"frequency_penalty": -2.0}),
        json!({"top_n_tokens": 5}),
        json!({"truncate": 32}),
        json!({"stop": ["a", "b", "c", "d"]}),
        json!({"best_of": 0}),
        json!({"best_of": 1}),
        json!({"temperature": null, "stop": [], "seed": null, "adapter_id": null, "grammar": null}),
        json!({"no_such_field": 1}),
    ];
    for mut parameters in allowed {
        parameters["max_new_tokens"] = 1.into();
        let reply = server.post(
            "/generate",
            &json!({"inputs": "a", "parameters": parameters, "x": 1}),
        );
        assert_eq!(reply.status, 200, "{parameters}: {}", reply.body);
    }
}

#[test]
fn best_of_is_refused_by_its_own_rules() {
    let server = narrow();
    let refused = |server: &Server, parameters: Json| {
        let reply = server.post(
            "/generate",
            &json!({"inputs": "a", "parameters": parameters}),
        );
        (reply.status, reply.body)
    };
    let text = invalid("you must use sampling when `best_of` is > 1");
    assert_eq!(refused(&server, json!({"best_of": 2})), (422, text));
    let text = invalid("`best_of` must be > 0 and <= 2. Given: 3");
    assert_eq!(refused(&server, json!({"best_of": 3})), (422, text));
    let text = invalid("`seed` must not be set when `best_of` > 1");
    assert_eq!(
        refused(&server, json!({"best_of": 2, "do_sample": true, "seed": 1})),
        (422, text)
    );
    let single = Sconce::tiny("llama-tied")
        .flag("--max-best-of", "1")
        .serve();
    let text = invalid("`best_of` != 1 is not allowed for this endpoint");
    assert_eq!(refused(&single, json!({"best_of": 2})), (422, text));
}

#[test]
fn streams_refuse_what_they_cannot_carry() {
    let server = narrow();
    let several = "`best_of` != 1 is not supported when streaming tokens";
    let prefill = "`decoder_input_details` == true is not supported when streaming tokens";
    let cases = [
        (json!({"best_of": 2}), several),
        (json!({"best_of": 0}), several),
        (json!({"decoder_input_details": true}), prefill),
    ];
    for (parameters, detail) in cases {
        let body = json!({"inputs": "a", "parameters": parameters, "stream": true});
        for path in ["/generate_stream", "/"] {
            let reply = server.post(path, &body);
            let frame = format!("data: {}\n\n", invalid(detail));
            assert_eq!(
                (reply.status, reply.body),
                (200, frame),
                "{path} {parameters}"
            );
        }
    }
}

#[test]
fn the_first_rule_broken_is_the_one_reported() {
    let server = narrow();
    let everything = [
        (
            "temperature",
            json!(0.0),
            "`temperature` must be strictly positive",
        ),
        (
            "repetition_penalty",
            json!(0.0),
            "`repetition_penalty` must be strictly positive",
        ),
        (
            "frequency_penalty",
            json!(3.0),
            "`frequency_penalty` must be >= -2.0 and <= 2.0",
        ),
        ("top_p", json!(1.0), "`top_p` must be > 0.0 and < 1.0"),
        (
            "typical_p",
            json!(1.0),
            "`typical_p` must be > 0.0 and < 1.0",
        ),
        ("top_k", json!(0), "`top_k` must be strictly positive"),
        (
            "max_new_tokens",
            json!(0),
            "`max_new_tokens` must be strictly positive",
        ),
        (
            "stop",
            json!(["a", "b", "c", "d", "e"]),
            "`stop` supports up to 4 stop sequences. Given: 5",
        ),
        (
            "top_n_tokens",
            json!(9),
            "`top_n_tokens` must be >= 0 and <= 5. Given: 9",
        ),
    ];
    for first in 0..everything.len() {
        let broken = &everything[first..];
        let parameters: Json = broken
            .iter()
            .map(|(key, value, _)| (key.to_string(), value.clone()))
            .collect();
        assert_invalid(&server, "", &parameters, broken[0].2);
    }
    assert_invalid(
        &server,
        "",
        &json!({"truncate": 0}),
        "`inputs` cannot be empty",
    );
}

#[test]
fn lengths_are_checked_in_tokens() {
    let server = narrow();
    let tokens = |text: &str| {
        server
            .post("/tokenize", &json!({"inputs": text}))
            .ok()
            .as_array()
            .map_or(0, Vec::len)
    };
    let (short, middling, long) = ("a".to_owned(), "a1".repeat(20), "a1".repeat(40));
    let (n_short, n_middling, n_long) = (tokens(&short), tokens(&middling), tokens(&long));
    assert!(n_short < 32 && (33..64).contains(&n_middling) && n_long > 64);
    let total = |input: usize, new: usize| {
        format!(
            "`inputs` tokens + `max_new_tokens` must be <= 64. Given: {input} `inputs` tokens and {new} `max_new_tokens`"
        )
    };
    assert_invalid(
        &server,
        &short,
        &json!({"max_new_tokens": 64}),
        &total(n_short, 64),
    );
    assert_invalid(
        &server,
        &short,
        &json!({"max_new_tokens": 100_000}),
        &total(n_short, 1024),
    );
    assert_invalid(&server, &long, &json!({}), &total(n_long, 0));
    assert_invalid(
        &server,
        &middling,
        &json!({"max_new_tokens": 60}),
        &total(n_middling, 60),
    );
    let input = format!("`inputs` must have less than 32 tokens. Given: {n_middling}");
    assert_invalid(&server, &middling, &json!({}), &input);
    let fitting = server.generate(&short, json!({"max_new_tokens": 64 - n_short}));
    assert_eq!(fitting["details"]["generated_tokens"], 64 - n_short);
    let truncated = server.generate(&long, json!({"truncate": 32, "max_new_tokens": 32}));
    assert_eq!(truncated["details"]["generated_tokens"], 32);
}

#[test]
fn a_window_larger_than_1024_takes_any_max_new_tokens() {
    let model = Copy::endless();
    let server = Sconce::new()
        .flag("--model-id", &model.path().display().to_string())
        .flag("--max-total-tokens", "1200")
        .flag("--max-batch-total-tokens", "1200")
        .serve();
    let answer = server.generate("a", json!({"max_new_tokens": 100_000}));
    let input = server
        .post("/tokenize", &json!({"inputs": "a"}))
        .ok()
        .as_array()
        .map_or(0, Vec::len);
    assert_eq!(answer["details"]["generated_tokens"], 1200 - input);
    assert_eq!(answer["details"]["finish_reason"], "length");
}

#[test]
fn what_is_not_served_is_refused() {
    let server = narrow();
    for parameters in [json!({"watermark": true}), json!({"adapter_id": "x"})] {
        let reply = server.post(
            "/generate",
            &json!({"inputs": "a", "parameters": parameters}),
        );
        assert_eq!(
            (reply.status, &reply.json()["error_type"]),
            (422, &json!("validation"))
        );
    }
}

#[test]
fn bodies_of_the_wrong_shape_are_422_and_name_the_field() {
    let server = narrow();
    let target = "Failed to deserialize the JSON body into the target type: ";
    let cases = [
        (
            r#"{"inputs":"x","parameters":{"top_k":"a"}}"#,
            r#"parameters.top_k: invalid type: string "a", expected i32 at line 1 column 39"#,
        ),
        ("{}", "missing field `inputs` at line 1 column 2"),
        (
            r#"{"inputs":["a"]}"#,
            "inputs: invalid type: sequence, expected a string at line 1 column 10",
        ),
        (
            r#"{"inputs":"a","parameters":{"do_sample":null}}"#,
            "parameters.do_sample: invalid type: null, expected a boolean at line 1 column 44",
        ),
        (
            r#"{"inputs":"a","parameters":{"seed":-1}}"#,
            "parameters.seed: invalid value: integer `-1`, expected u64 at line 1 column 37",
        ),
    ];
    for (body, detail) in cases {
        for path in ["/generate", "/generate_stream", "/", "/tokenize"] {
            let reply = server.send(&wire::post(path, "", body));
            assert_eq!(reply.header("content-type"), Some("application/json"));
            let expected = error(&format!("{target}{detail}"), "validation");
            assert_eq!((reply.status, reply.body), (422, expected), "{path} {body}");
        }
    }
    let refused = [
        r#"{"inputs":"a","inputs":"b"}"#,
        r#"{"inputs":"a","parameters":null}"#,
        r#"{"inputs":"a","parameters":{"stop":null}}"#,
        r#"{"inputs":"a","parameters":{"details":null}}"#,
        r#"{"inputs":"a","parameters":{"watermark":null}}"#,
        r#"{"inputs":"a","parameters":{"decoder_input_details":null}}"#,
        r#"{"inputs":"a","parameters":{"max_new_tokens":-1}}"#,
        r#"{"inputs":"a","parameters":{"grammar":{"type":"json"}}}"#,
        r#"{"inputs":"a","parameters":{"grammar":{"type":"xml","value":""}}}"#,
    ];
    for body in refused {
        let reply = server.send(&wire::post("/generate", "", body));
        let text = reply.json()["error"]
            .as_str()
            .map(str::to_owned)
            .unwrap_or_default();
        assert!(
            reply.status == 422 && text.starts_with(target),
            "{body}: {reply:?}"
        );
    }
    let reply = server.send(&wire::post("/", "", r#"{"inputs":"a","stream":null}"#));
    assert_eq!(reply.status, 422);
}

#[test]
fn broken_json_is_400() {
    let reply = narrow().send(&wire::post("/generate", "", r#"{"inputs":"#));
    let text = "Failed to parse the request body as JSON: inputs: EOF while parsing a value at line 1 column 10";
    assert_eq!((reply.status, reply.body), (400, error(text, "validation")));
}

#[test]
fn other_content_types_are_415_and_json_ones_are_read() {
    let server = narrow();
    let body = r#"{"inputs":"a","parameters":{"max_new_tokens":1}}"#;
    let send = |kind: &str| {
        let head = format!(
            "POST /generate HTTP/1.1\r\nhost: test\r\nconnection: close\r\n{kind}content-length: {}\r\n\r\n",
            body.len()
        );
        server.send(&format!("{head}{body}"))
    };
    let text = "Expected request with `Content-Type: application/json`";
    for kind in [
        "",
        "content-type: text/plain\r\n",
        "content-type: application/jsonx\r\n",
    ] {
        let reply = send(kind);
        assert_eq!(
            (reply.status, reply.body),
            (415, error(text, "validation")),
            "{kind}"
        );
    }
    for kind in [
        "application/json; charset=utf-8",
        "application/vnd.x+json",
        "Application/JSON",
    ] {
        assert_eq!(
            send(&format!("content-type: {kind}\r\n")).status,
            200,
            "{kind}"
        );
    }
}

#[test]
fn bodies_over_the_limit_are_413() {
    let server = Sconce::tiny("llama-tied")
        .flag("--payload-limit", "1000")
        .serve();
    let reply = server.post("/generate", &json!({"inputs": "a".repeat(1000)}));
    let text = reply.json()["error"]
        .as_str()
        .map(str::to_owned)
        .unwrap_or_default();
    assert!(
        text.starts_with("Failed to buffer the request body"),
        "{text}"
    );
    assert_eq!(
        (reply.status, &reply.json()["error_type"]),
        (413, &json!("validation"))
    );
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn unknown_paths_are_404_and_wrong_methods_405() {
    let server = narrow();
    let reply = server.get("/no/such/path");
    assert_eq!((reply.status, reply.body.as_str()), (404, ""));
    let reply = server.get("/generate");
    assert_eq!(
        (reply.status, reply.header("allow"), reply.body.as_str()),
        (405, Some("POST"), "")
    );
    let reply = server.post("/info", &json!({}));
    assert_eq!((reply.status, reply.body.as_str()), (405, ""));
    assert!(
        reply
            .header("allow")
            .is_some_and(|methods| methods.contains("GET"))
    );
}

#[test]
fn refusals_carry_no_metering_headers_and_are_counted() {
    let server = narrow();
    let reply = server.post("/generate", &json!({"inputs": ""}));
    assert_eq!(reply.status, 422);
    assert!(
        !reply.headers.iter().any(|(name, _)| name.starts_with("x-")),
        "{:?}",
        reply.headers
    );
    assert_eq!(
        server.metric("tgi_request_failure{err=\"validation\"}"),
        1.0
    );
    server.post("/generate", &json!({"inputs": "a1".repeat(40)}));
    assert_eq!(
        server.metric("tgi_request_failure{err=\"validation\"}"),
        2.0
    );
    assert_eq!(server.metric("tgi_request_success"), 0.0);
}
