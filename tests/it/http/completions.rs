//! The completion route: one prompt or several, no template.

use std::collections::BTreeSet;

use serde_json::{Value as Json, json};

use crate::support::chat::{FULL_SET, STREAM_SET, failed_stream, flat, merge, nested, text};
use crate::support::golden::{check, mask};
use crate::support::models::model_id;
use crate::support::server::{Sconce, Server};
use crate::support::wire;

const PATH: &str = "/v1/completions";
const CASE: &str = "llama-tied";
const PROMPT: &str = "children weighed 1250";
const MODES: [&str; 2] = ["tgi", "openai"];

fn tiny(compat: &str) -> Server {
    Sconce::tiny(CASE).flag("--compat", compat).serve()
}

fn ask(more: Json) -> Json {
    let mut body = json!({"prompt": PROMPT, "temperature": 0, "max_tokens": 6});
    merge(&mut body, more);
    body
}

fn masked(body: &str) -> String {
    ["created", "model", "system_fingerprint"]
        .into_iter()
        .fold(body.to_owned(), |body, key| mask(&body, key))
}

/// The text of one choice.
fn said(answer: &Json, index: usize) -> &str {
    text(&answer["choices"][index]["text"])
}

/// The text of one choice of a stream.
fn streamed(chunks: &[Json], index: usize) -> String {
    let choices = chunks.iter().map(|chunk| &chunk["choices"][0]);
    choices
        .filter(|choice| choice["index"] == index)
        .map(|choice| text(&choice["text"]))
        .collect()
}

#[test]
fn a_collected_answer_has_tgis_fields_in_tgis_order() {
    let reply = tiny("tgi").post(PATH, &ask(json!({})));
    let json = reply.ok();
    let by_hand = format!(
        concat!(
            r#"{{"object":"text_completion","id":"","created":{},"model":{},"system_fingerprint":"{}-native","#,
            r#""choices":[{{"index":0,"text":{},"logprobs":null,"finish_reason":"length"}}],"#,
            r#""usage":{{"prompt_tokens":16,"completion_tokens":6,"total_tokens":22}}}}"#
        ),
        json["created"],
        json!(model_id(CASE)),
        env!("CARGO_PKG_VERSION"),
        json["choices"][0]["text"],
    );
    assert_eq!(reply.body, by_hand);
    check("completion.json", &masked(&reply.body));
}

#[test]
fn special_tokens_are_added_and_no_template_is_used() {
    let server = tiny("tgi");
    let answer = server.post(PATH, &ask(json!({}))).ok();
    let native = server.generate(PROMPT, json!({"max_new_tokens": 6}));
    assert_eq!(answer["choices"][0]["text"], native["generated_text"]);
}

#[test]
fn a_stream_under_tgi_marks_the_middle_with_an_empty_finish_and_counts_at_the_end() {
    let server = tiny("tgi");
    let reply = server.post(PATH, &ask(json!({"stream": true, "max_tokens": 3})));
    let chunks = reply.chunks();
    let frame = |place: usize, finish: &str, usage: &str| {
        format!(
            concat!(
                r#"data: {{"object":"text_completion","id":"","created":{},"choices":[{{"index":0,"text":{},"logprobs":null,"finish_reason":"{}"}}],"#,
                r#""model":{},"system_fingerprint":"{}-native"{}}}"#,
                "\n\n"
            ),
            chunks[place]["created"],
            chunks[place]["choices"][0]["text"],
            finish,
            json!(model_id(CASE)),
            env!("CARGO_PKG_VERSION"),
            usage,
        )
    };
    let usage = r#","usage":{"prompt_tokens":16,"completion_tokens":3,"total_tokens":19}"#;
    let by_hand = [
        frame(0, "", ""),
        frame(1, "", ""),
        frame(2, "length", usage),
    ]
    .concat();
    assert_eq!(reply.body, by_hand + "data: [DONE]\n\n");
    check("completion_stream.txt", &masked(&reply.body));
}

#[test]
fn a_stream_under_openai_has_null_before_the_end_and_usage_when_asked() {
    let server = tiny("openai");
    let reply = server.post(PATH, &ask(json!({"stream": true, "max_tokens": 3})));
    let chunks = reply.chunks();
    assert_eq!(chunks.len(), 3);
    for chunk in &chunks {
        assert!(text(&chunk["id"]).starts_with("cmpl-") && chunk["id"] == chunks[0]["id"]);
        assert!(chunk["usage"].is_null());
    }
    assert_eq!(
        chunks[0]["choices"][0].get("finish_reason"),
        Some(&Json::Null)
    );
    assert_eq!(chunks[2]["choices"][0]["finish_reason"], "length");
    check(
        "completion_stream_openai.txt",
        &mask(&masked(&reply.body), "id"),
    );
    let more = json!({"stream": true, "max_tokens": 3, "stream_options": {"include_usage": true}, "prompt": ["a", "b"], "n": 2});
    let chunks = server.post(PATH, &ask(more.clone())).chunks();
    let last = &chunks[chunks.len() - 1];
    assert_eq!(last["choices"], json!([]));
    let mut collected = ask(more);
    merge(&mut collected, json!({"stream": false}));
    let whole = server.post(PATH, &collected).ok();
    assert_eq!(last["usage"], whole["usage"]);
    assert_eq!(last["usage"]["completion_tokens"], 12);
}

#[test]
fn the_end_of_a_text_is_called_stop_and_its_token_is_not_shown() {
    for compat in MODES {
        let server = Sconce::tiny("qwen2-untied")
            .flag("--compat", compat)
            .serve();
        let body = json!({"prompt": "e", "temperature": 0});
        let whole = server.post(PATH, &body).ok();
        assert_eq!(whole["choices"][0]["finish_reason"], "stop");
        assert_eq!(
            whole["usage"]["completion_tokens"], 40,
            "the end token is counted"
        );
        let native = server.generate("e", json!({}));
        assert_eq!(whole["choices"][0]["text"], native["generated_text"]);
        let mut stream = body;
        merge(&mut stream, json!({"stream": true}));
        let chunks = server.post(PATH, &stream).chunks();
        assert_eq!(streamed(&chunks, 0), said(&whole, 0));
        let last = &chunks[chunks.len() - 1]["choices"][0];
        assert_eq!(
            (&last["finish_reason"], &last["text"]),
            (&json!("stop"), &json!(""))
        );
    }
}

#[test]
fn several_prompts_are_answered_in_their_order() {
    for compat in MODES {
        let server = tiny(compat);
        let prompts = ["a1 b", "children weighed", "warm", "🥐 é"];
        let more = json!({"prompt": prompts});
        let whole = server.post(PATH, &ask(more)).ok();
        let (mut input, mut output) = (0, 0);
        for (place, prompt) in prompts.iter().enumerate() {
            assert_eq!(whole["choices"][place]["index"], place);
            let alone = server.post(PATH, &ask(json!({"prompt": prompt}))).ok();
            assert_eq!(said(&whole, place), said(&alone, 0), "{prompt}");
            input += alone["usage"]["prompt_tokens"].as_u64().expect("a count");
            output += alone["usage"]["completion_tokens"]
                .as_u64()
                .expect("a count");
        }
        let usage = json!({"prompt_tokens": input, "completion_tokens": output, "total_tokens": input + output});
        assert_eq!(whole["usage"], usage);
        let chunks = server
            .post(PATH, &ask(json!({"prompt": prompts, "stream": true})))
            .chunks();
        for place in 0..prompts.len() {
            assert_eq!(streamed(&chunks, place), said(&whole, place));
            let own: Vec<&Json> = chunks
                .iter()
                .filter(|c| c["choices"][0]["index"] == place)
                .collect();
            assert_eq!(own[own.len() - 1]["choices"][0]["finish_reason"], "length");
            assert_eq!(own[own.len() - 1]["usage"].is_object(), compat == "tgi");
        }
    }
}

#[test]
fn headers_sum_over_the_prompts_and_have_no_compute_time() {
    let server = tiny("tgi");
    let reply = server.post(PATH, &ask(json!({"prompt": ["é🥐x", "ab"]})));
    let names: Vec<&str> = FULL_SET
        .into_iter()
        .filter(|name| *name != "x-compute-time")
        .collect();
    assert_eq!(reply.metering(), names);
    assert_eq!(reply.header("x-compute-characters"), Some("5"));
    assert_eq!(reply.header("x-generated-tokens"), Some("12"));
    let prompt = reply.json()["usage"]["prompt_tokens"].to_string();
    assert_eq!(reply.header("x-prompt-tokens"), Some(prompt.as_str()));
    let stream = server.post(
        PATH,
        &ask(json!({"prompt": ["é🥐x", "ab"], "stream": true})),
    );
    assert_eq!(stream.metering(), STREAM_SET);
    assert_eq!(stream.header("x-compute-characters"), Some("5"));
    assert!(
        server
            .post(PATH, &ask(json!({"suffix": "x"})))
            .metering()
            .is_empty()
    );
}

#[test]
fn several_answers_to_several_prompts_are_ordered_by_prompt() {
    let server = tiny("tgi");
    let more = json!({"prompt": ["a", "b"], "n": 2, "temperature": 1.0, "seed": 4});
    let whole = server.post(PATH, &ask(more.clone())).ok();
    let choices = whole["choices"].as_array().expect("choices");
    let texts: BTreeSet<String> = choices
        .iter()
        .map(|choice| choice["text"].to_string())
        .collect();
    assert_eq!((choices.len(), texts.len()), (4, 4));
    for (prompt, place) in [("a", 0), ("b", 2)] {
        let alone = server
            .post(
                PATH,
                &ask(json!({"prompt": prompt, "temperature": 1.0, "seed": 4})),
            )
            .ok();
        assert_eq!(said(&alone, 0), said(&whole, place));
    }
    let prompt_tokens: u64 = ["a", "b"]
        .iter()
        .map(|prompt| {
            server
                .post("/tokenize", &json!({"inputs": prompt}))
                .ok()
                .as_array()
                .map_or(0, Vec::len) as u64
        })
        .sum();
    assert_eq!(whole["usage"]["prompt_tokens"], prompt_tokens);
    assert_eq!(whole["usage"]["completion_tokens"], 24);
    let headers = server.post(PATH, &ask(more.clone()));
    assert_eq!(
        headers.header("x-compute-characters"),
        Some("2"),
        "each prompt once"
    );
    assert_eq!(
        headers.header("x-prompt-tokens"),
        Some(prompt_tokens.to_string().as_str())
    );
    let mut stream = ask(more);
    merge(&mut stream, json!({"stream": true}));
    let chunks = server.post(PATH, &stream).chunks();
    for place in 0..4 {
        assert_eq!(streamed(&chunks, place), said(&whole, place));
    }
}

#[test]
fn echo_puts_the_prompt_before_the_answer() {
    for compat in MODES {
        let server = tiny(compat);
        let plain = server.post(PATH, &ask(json!({}))).ok();
        let echoed = server
            .post(PATH, &ask(json!({"echo": true, "logprobs": 0})))
            .ok();
        assert_eq!(said(&echoed, 0), format!("{PROMPT}{}", said(&plain, 0)));
        let offsets = &echoed["choices"][0]["logprobs"]["text_offset"];
        assert_eq!(offsets[0], PROMPT.chars().count());
        let chunks = server
            .post(PATH, &ask(json!({"echo": true, "stream": true})))
            .chunks();
        assert_eq!(streamed(&chunks, 0), said(&echoed, 0));
        assert_eq!(chunks.len(), 6);
    }
}

#[test]
fn log_probabilities_come_as_lists() {
    let server = tiny("tgi");
    let reply = server.post(PATH, &ask(json!({"logprobs": 2, "max_tokens": 3})));
    let json = reply.ok();
    let logprobs = &json["choices"][0]["logprobs"];
    let native = server.generate(PROMPT, json!({"max_new_tokens": 3, "top_n_tokens": 2}));
    let mut offset = 0;
    for (place, token) in native["details"]["tokens"]
        .as_array()
        .expect("tokens")
        .iter()
        .enumerate()
    {
        assert_eq!(logprobs["tokens"][place], token["text"]);
        assert_eq!(logprobs["token_logprobs"][place], token["logprob"]);
        assert_eq!(logprobs["text_offset"][place], offset);
        offset += text(&token["text"]).chars().count();
        let top = logprobs["top_logprobs"][place]
            .as_object()
            .expect("an object");
        assert_eq!(
            top[text(&token["text"])],
            token["logprob"],
            "greedy takes the best"
        );
        assert!((1..=2).contains(&top.len()), "texts may be the same");
    }
    assert_eq!(
        server.post(PATH, &ask(json!({"logprobs": null}))).ok()["choices"][0]["logprobs"],
        Json::Null
    );
    let chunks = server
        .post(
            PATH,
            &ask(json!({"logprobs": 1, "max_tokens": 3, "stream": true})),
        )
        .chunks();
    for (place, chunk) in chunks.iter().enumerate() {
        let own = &chunk["choices"][0]["logprobs"];
        assert_eq!(own["tokens"], json!([logprobs["tokens"][place]]));
        assert_eq!(own["text_offset"], json!([logprobs["text_offset"][place]]));
    }
}

#[test]
fn stop_strings_are_left_out() {
    for compat in MODES {
        let server = tiny(compat);
        let whole = server.post(PATH, &ask(json!({"max_tokens": 24}))).ok();
        let whole = said(&whole, 0).to_owned();
        let bounds: Vec<usize> = whole.char_indices().map(|(at, _)| at).collect();
        for window in bounds.windows(4).step_by(5) {
            let stop = &whole[window[0]..window[3]];
            let end = whole.find(stop).expect("a part of the text");
            for stop in [json!(stop), json!([stop])] {
                let answer = server
                    .post(PATH, &ask(json!({"max_tokens": 64, "stop": stop})))
                    .ok();
                assert_eq!(
                    (said(&answer, 0), &answer["choices"][0]["finish_reason"]),
                    (&whole[..end], &json!("stop"))
                );
                let chunks = server
                    .post(
                        PATH,
                        &ask(json!({"max_tokens": 64, "stop": stop, "stream": true})),
                    )
                    .chunks();
                assert_eq!(streamed(&chunks, 0), whole[..end]);
            }
        }
    }
}

#[test]
fn the_same_settings_work_as_on_the_chat_route() {
    let server = tiny("tgi");
    let choices = |more: Json| server.post(PATH, &ask(more)).ok()["choices"].clone();
    let seeded = choices(json!({"temperature": 0.8, "seed": -3}));
    for more in [
        json!({"top_p": 1}),
        json!({"presence_penalty": 0, "frequency_penalty": 0}),
        json!({"logit_bias": {}}),
        json!({"stream_options": null, "n": null, "best_of": 3, "user": "u"}),
        json!({"stop": null, "suffix": null, "response_format": {"type": "text"}}),
    ] {
        let mut body = json!({"temperature": 0.8, "seed": -3});
        merge(&mut body, more.clone());
        assert_eq!(choices(body), seeded, "{more}");
    }
    let greedy = choices(json!({"max_tokens": 40}));
    for more in [
        json!({"presence_penalty": 2}),
        json!({"repetition_penalty": 1.8}),
        json!({"temperature": null, "seed": 1}),
    ] {
        let mut body = json!({"max_tokens": 40});
        merge(&mut body, more.clone());
        assert_ne!(choices(body), greedy, "{more}");
    }
    let digits = choices(
        json!({"response_format": {"type": "regex", "value": "[0-9]{3}"}, "max_tokens": 20}),
    );
    assert!(text(&digits[0]["text"]).bytes().all(|b| b.is_ascii_digit()));
    let open = server
        .post(PATH, &json!({"prompt": "a", "temperature": 0}))
        .ok();
    assert!(
        open["usage"]["completion_tokens"].as_u64() > Some(100),
        "the rest of the window, not 16"
    );
}

#[test]
fn what_tgi_refuses_is_refused_in_its_words() {
    let suffix = "Suffix is not supported and can be achieved by preprocessing the prompt.";
    let batch = "Number of prompts exceeds the maximum allowed batch size of 4";
    let cases = [
        (json!({"suffix": ""}), "suffix not supported", suffix),
        (
            json!({"prompt": ["a", "b", "c", "d", "e"]}),
            "batch size exceeded",
            batch,
        ),
    ];
    let (tgi, openai) = (tiny("tgi"), tiny("openai"));
    for (more, kind, message) in cases {
        for stream in [false, true] {
            let mut body = ask(more.clone());
            merge(&mut body, json!({"stream": stream}));
            let reply = tgi.post(PATH, &body);
            assert_eq!(
                (reply.status, reply.body),
                (422, flat(message, kind, "invalid_value", None))
            );
            let reply = openai.post(PATH, &body);
            let expected = nested(message, "invalid_request_error", "invalid_value", None);
            assert_eq!((reply.status, reply.body), (400, expected));
        }
    }
    let wide = Sconce::tiny(CASE)
        .flag("--max-client-batch-size", "5")
        .serve();
    assert_eq!(
        wide.post(PATH, &ask(json!({"prompt": ["a", "b", "c", "d", "e"]})))
            .status,
        200
    );
}

#[test]
fn prompts_that_are_none_are_refused() {
    let server = tiny("tgi");
    let cases = [
        (
            r#"{"prompt":[]}"#,
            "Empty array detected. Do not use an empty array for the prompt.",
        ),
        (r#"{"prompt":[1,2]}"#, "token ids are not accepted"),
        (r#"{"prompt":[[1,2]]}"#, "token ids are not accepted"),
        (r#"{"prompt":5}"#, "prompt"),
        ("{}", "missing field `prompt`"),
    ];
    for (body, part) in cases {
        let reply = server.send(&wire::post(PATH, "", body));
        let error = reply.json();
        assert_eq!(
            (reply.status, &error["error_type"]),
            (422, &json!("validation")),
            "{body}"
        );
        assert!(text(&error["error"]).contains(part), "{body}: {error}");
    }
    let message = "Input validation error: `inputs` cannot be empty";
    for prompt in [json!(""), json!(["a", ""])] {
        let reply = server.post(PATH, &ask(json!({"prompt": prompt})));
        let expected = flat(message, "validation", "invalid_value", Some("inputs"));
        assert_eq!((reply.status, reply.body), (422, expected));
        let reply = server.post(PATH, &ask(json!({"prompt": prompt, "stream": true})));
        let expected = failed_stream(message, 422, "validation", "invalid_value");
        assert_eq!((reply.status, reply.body), (200, expected));
    }
}

#[test]
fn more_answers_than_can_be_given_at_once_are_refused_for_good() {
    let server = Sconce::tiny(CASE)
        .flag("--max-concurrent-requests", "2")
        .serve();
    let post = |fields: Json| server.post(PATH, &ask(fields));
    assert_eq!(post(json!({"prompt": ["a", "b"]})).status, 200);
    for fields in [
        json!({"prompt": ["a", "b", "c"]}),
        json!({"prompt": ["a", "b"], "n": 2}),
    ] {
        let reply = post(fields);
        assert_eq!((reply.status, reply.header("retry-after")), (422, None));
        assert!(reply.body.contains("`n` makes"), "{}", reply.body);
    }
    let refused = "tgi_request_failure{err=\"validation\"}";
    assert_eq!(server.metric(refused), 2.0);
    assert_eq!(server.metric("tgi_request_count"), 3.0);
}

#[test]
fn the_served_model_is_named_whatever_was_asked_for() {
    let (tgi, openai) = (tiny("tgi"), tiny("openai"));
    for model in ["gpt-4o", "tgi", "", "dummy"] {
        let answer = tgi.post(PATH, &ask(json!({"model": model}))).ok();
        assert_eq!(answer["model"], json!(model_id(CASE)));
    }
    assert_eq!(
        openai.post(PATH, &ask(json!({"model": "gpt-4o"}))).status,
        404
    );
    assert_eq!(
        openai.post(PATH, &ask(json!({"model": "tgi"}))).ok()["model"],
        json!(model_id(CASE))
    );
}

#[test]
fn a_model_is_found_by_its_name() {
    let server = Sconce::new().serve();
    let listed = server.get("/v1/models").ok()["data"][0].clone();
    let id = text(&listed["id"]);
    assert_eq!(server.get(&format!("/v1/models/{id}")).ok(), listed);
    let message = "The model `gpt-4o` does not exist here; GET /v1/models lists what does";
    let reply = server.get("/v1/models/gpt-4o");
    assert_eq!(
        (reply.status, reply.body),
        (
            404,
            flat(message, "model_not_found", "model_not_found", None)
        )
    );
    let openai = Sconce::new().flag("--compat", "openai").serve();
    let reply = openai.get("/v1/models/gpt-4o");
    let expected = nested(message, "invalid_request_error", "model_not_found", None);
    assert_eq!((reply.status, reply.body), (404, expected));
    let by_path = tiny("tgi");
    let path = model_id(CASE);
    assert_eq!(
        by_path.get(&format!("/v1/models/{path}")).ok()["id"],
        json!(path)
    );
}
