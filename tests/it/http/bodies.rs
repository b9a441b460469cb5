//! Bodies and headers of answers that succeed, byte for byte.

use serde_json::{Value as Json, json};

use crate::support::golden::{check, mask};
use crate::support::models::{Copy, expected, model_id};
use crate::support::server::{Sconce, Server};

/// The frozen case most bodies come from; it adds BOS and has a float32 head.
const CASE: &str = "llama-tied";

/// The second prompt of the case, 16 tokens with BOS, and eight of its answer's tokens.
fn prompt() -> String {
    text(&expected(CASE)["prompts"][1]["text"])
}

fn text(value: &Json) -> String {
    value.as_str().expect("text").to_owned()
}

fn body(parameters: Json) -> Json {
    json!({"inputs": prompt(), "parameters": parameters})
}

fn server() -> Server {
    Sconce::tiny(CASE).serve()
}

/// A token in the field order of the contract.
fn token(json: &Json) -> String {
    let (id, special) = (&json["id"], &json["special"]);
    format!(
        r#"{{"id":{id},"text":{},"logprob":{},"special":{special}}}"#,
        json["text"], json["logprob"]
    )
}

fn tokens(json: &Json) -> String {
    json.as_array()
        .expect("tokens")
        .iter()
        .map(token)
        .collect::<Vec<_>>()
        .join(",")
}

#[test]
fn generate_returns_the_text_alone_unless_details_are_asked_for() {
    let reply = server().post("/generate", &body(json!({"max_new_tokens": 8})));
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (200, Some("application/json"))
    );
    assert_eq!(
        reply.body,
        format!(r#"{{"generated_text":{}}}"#, reply.json()["generated_text"])
    );
    check("generate.json", &reply.body);
}

#[test]
fn details_are_complete_ordered_and_agree_with_transformers() {
    let reply = server().post(
        "/generate",
        &body(json!({"max_new_tokens": 64, "details": true})),
    );
    let json = reply.ok();
    let details = &json["details"];
    let by_hand = format!(
        r#"{{"generated_text":{},"details":{{"finish_reason":"length","generated_tokens":64,"seed":null,"prefill":[],"tokens":[{}]}}}}"#,
        json["generated_text"],
        tokens(&details["tokens"]),
    );
    assert_eq!(reply.body, by_hand);
    check("generate_details.json", &reply.body);
    let expected = &expected(CASE)["prompts"][1];
    for (i, token) in details["tokens"]
        .as_array()
        .expect("tokens")
        .iter()
        .enumerate()
    {
        assert_eq!(token["id"], expected["tokens"][i]);
        let (ours, theirs) = (token["logprob"].as_f64(), expected["logprobs"][i].as_f64());
        let difference = ours.expect("a number") - theirs.expect("a number");
        assert!(difference.abs() < 1e-2, "place {i}: {token}");
    }
}

#[test]
fn an_answer_that_the_model_ends_counts_its_end_token() {
    let reply = Sconce::tiny("qwen2-untied").serve().post(
        "/generate",
        &json!({"inputs": "e", "parameters": {"details": true}}),
    );
    let details = &reply.ok()["details"];
    assert_eq!(details["finish_reason"], "eos_token");
    // The frozen answer has its end token at place 39.
    assert_eq!(details["generated_tokens"], 40);
    assert_eq!(details["tokens"][39]["special"], true);
    assert!(
        !text(&details["tokens"][39]["text"]).is_empty(),
        "shown among the tokens"
    );
    assert!(!text(&reply.json()["generated_text"]).contains(&text(&details["tokens"][39]["text"])));
    check("generate_eos.json", &reply.body);
}

#[test]
fn top_tokens_stand_beside_each_token_best_first() {
    let reply = server().post(
        "/generate",
        &body(json!({"max_new_tokens": 3, "details": true, "top_n_tokens": 2})),
    );
    let json = reply.ok();
    let top = json["details"]["top_tokens"]
        .as_array()
        .expect("top tokens");
    assert_eq!(top.len(), 3);
    for (chosen, top) in json["details"]["tokens"]
        .as_array()
        .expect("tokens")
        .iter()
        .zip(top)
    {
        assert_eq!(&top[0], chosen, "greedy takes the best");
        assert!(top[0]["logprob"].as_f64() >= top[1]["logprob"].as_f64());
    }
    check("generate_top_tokens.json", &reply.body);
}

#[test]
fn the_losers_of_best_of_are_reported_with_seeds_of_their_own() {
    // With one token to choose from all answers are the same, whatever their seeds.
    let parameters = json!({"best_of": 2, "top_k": 1, "max_new_tokens": 4, "details": true});
    let reply = server().post("/generate", &body(parameters));
    let details = &reply.ok()["details"];
    let losers = details["best_of_sequences"].as_array().expect("losers");
    assert_eq!(losers.len(), 1);
    assert!(details["seed"].is_u64() && losers[0]["seed"].is_u64());
    assert_ne!(details["seed"], losers[0]["seed"]);
    check("generate_best_of.json", &mask(&reply.body, "seed"));
}

#[test]
fn the_winner_of_best_of_is_the_more_probable_answer() {
    let server = server();
    let parameters =
        json!({"best_of": 2, "do_sample": true, "max_new_tokens": 12, "details": true});
    let mean = |tokens: &Json| {
        let tokens = tokens.as_array().expect("tokens");
        tokens
            .iter()
            .filter_map(|token| token["logprob"].as_f64())
            .sum::<f64>()
            / tokens.len() as f64
    };
    // A server that always takes the first answer is right half of the time.
    for _ in 0..12 {
        let details = &server.post("/generate", &body(parameters.clone())).ok()["details"];
        let loser = &details["best_of_sequences"][0];
        assert!(
            mean(&details["tokens"]) >= mean(&loser["tokens"]),
            "{details}"
        );
    }
}

#[test]
fn the_prompt_is_reported_only_where_the_operator_allows_it() {
    let asked = body(json!({"max_new_tokens": 1, "decoder_input_details": true}));
    assert_eq!(
        server().post("/generate", &asked).ok()["details"]["prefill"],
        json!([])
    );
    let allowed = Sconce::tiny(CASE)
        .flag("--enable-prefill-logprobs", "true")
        .serve();
    let reply = allowed.post("/generate", &asked);
    let json = reply.ok();
    let prefill = json["details"]["prefill"]
        .as_array()
        .expect("prompt tokens");
    let expected = &expected(CASE)["prompts"][1];
    assert_eq!(
        prefill.len(),
        expected["ids"].as_array().expect("ids").len()
    );
    assert_eq!(prefill[0]["logprob"], Json::Null);
    for (i, token) in prefill.iter().enumerate() {
        assert_eq!(token["id"], expected["ids"][i]);
        if i > 0 {
            let theirs = expected["prompt_logprobs"][i].as_f64().expect("a number");
            let ours = token["logprob"].as_f64().expect("a number");
            assert!(
                (ours - theirs).abs() < 1e-2,
                "place {i}: {ours} here, {theirs} there"
            );
        }
    }
    check("generate_prefill.json", &reply.body);
}

#[test]
fn the_root_route_returns_a_list_with_the_full_text() {
    let server = server();
    let reply = server.post("/", &body(json!({"max_new_tokens": 4})));
    check("root.json", &reply.body);
    let alone = text(&server.generate(&prompt(), json!({"max_new_tokens": 4}))["generated_text"]);
    let json = reply.ok();
    assert_eq!(json.as_array().expect("a list").len(), 1);
    assert_eq!(
        text(&json[0]["generated_text"]),
        format!("{}{alone}", prompt())
    );
    let short = server.post(
        "/",
        &body(json!({"max_new_tokens": 4, "return_full_text": false})),
    );
    assert_eq!(text(&short.ok()[0]["generated_text"]), alone);
    let full = server.generate(
        &prompt(),
        json!({"max_new_tokens": 4, "return_full_text": true}),
    );
    assert_eq!(
        text(&full["generated_text"]),
        format!("{}{alone}", prompt())
    );
    let error = server.post("/", &json!({"inputs": ""}));
    assert_eq!(
        error.body,
        r#"{"error":"Input validation error: `inputs` cannot be empty","error_type":"validation"}"#
    );
}

#[test]
fn collected_answers_carry_the_metering_headers() {
    let reply = server().post("/generate", &body(json!({"max_new_tokens": 4})));
    assert_eq!(reply.header("x-compute-type"), Some("cpu"));
    assert_eq!(reply.header("x-prompt-tokens"), Some("16"));
    assert_eq!(reply.header("x-generated-tokens"), Some("4"));
    let characters = prompt().chars().count().to_string();
    assert_eq!(
        reply.header("x-compute-characters"),
        Some(characters.as_str())
    );
    let seconds: f64 = reply
        .header("x-compute-time")
        .expect("present")
        .parse()
        .expect("seconds");
    assert!(seconds > 0.0);
    let names = [
        "x-total-time",
        "x-validation-time",
        "x-queue-time",
        "x-inference-time",
        "x-time-per-token",
    ];
    for name in names {
        let value = reply.header(name).expect(name);
        assert!(value.parse::<u64>().is_ok(), "{name}: {value}");
    }
    assert_eq!(reply.header("x-accel-buffering"), None);
}

#[test]
fn characters_are_counted_not_bytes() {
    let reply = server().post(
        "/generate",
        &json!({"inputs": "é🥐x", "parameters": {"max_new_tokens": 1}}),
    );
    assert_eq!(reply.header("x-compute-characters"), Some("3"));
}

#[test]
fn the_compute_type_is_the_operators() {
    let reply = Sconce::tiny(CASE)
        .env("COMPUTE_TYPE", "1-toaster")
        .serve()
        .post("/generate", &body(json!({"max_new_tokens": 1})));
    assert_eq!(reply.header("x-compute-type"), Some("1-toaster"));
}

#[test]
fn a_stream_is_data_frames_and_nothing_else() {
    let server = server();
    let asked = body(json!({"max_new_tokens": 3, "details": true, "top_n_tokens": 1}));
    let reply = server.post("/generate_stream", &asked);
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    assert_eq!(reply.header("cache-control"), Some("no-cache"));
    assert_eq!(reply.header("x-accel-buffering"), Some("no"));
    assert_eq!(reply.header("x-compute-type"), Some("cpu"));
    let characters = prompt().chars().count().to_string();
    assert_eq!(
        reply.header("x-compute-characters"),
        Some(characters.as_str())
    );
    for name in [
        "x-compute-time",
        "x-total-time",
        "x-prompt-tokens",
        "x-generated-tokens",
    ] {
        assert_eq!(reply.header(name), None, "known only at the end");
    }
    let events = reply.events();
    let frame = |index: usize, last: &str| {
        let event = &events[index - 1];
        let top = tokens(&event["top_tokens"]);
        format!(
            "data: {{\"index\":{index},\"token\":{},\"top_tokens\":[{top}],{last}}}\n\n",
            token(&event["token"])
        )
    };
    let open = r#""generated_text":null,"details":null"#;
    let end = format!(
        r#""generated_text":{},"details":{{"finish_reason":"length","generated_tokens":3,"seed":null,"input_length":16}}"#,
        events[2]["generated_text"]
    );
    assert_eq!(
        reply.body,
        [frame(1, open), frame(2, open), frame(3, &end)].concat()
    );
    check("generate_stream.txt", &reply.body);

    let root = server.post(
        "/",
        &json!({"inputs": prompt(), "parameters": asked["parameters"], "stream": true}),
    );
    let full = events[2]["generated_text"].as_str().expect("text");
    let last = &root.events()[2]["generated_text"];
    assert_eq!(
        last,
        &json!(format!("{}{full}", prompt())),
        "the root route returns the full text"
    );
}

#[test]
fn a_stream_without_details_still_ends_with_the_text() {
    let reply = server().post("/generate_stream", &body(json!({"max_new_tokens": 2})));
    check("generate_stream_plain.txt", &reply.body);
    let events = reply.events();
    assert_eq!(events[1]["details"], Json::Null);
    assert!(events[1]["generated_text"].is_string() && events[0].get("top_tokens").is_none());
}

#[test]
fn a_stream_shows_the_end_token_and_keeps_it_out_of_the_text() {
    let asked = json!({"inputs": "e", "parameters": {"details": true}});
    let events = Sconce::tiny("qwen2-untied")
        .serve()
        .post("/generate_stream", &asked)
        .events();
    let last = events.last().expect("events");
    assert_eq!((last["index"].as_u64(), events.len()), (Some(40), 40));
    assert_eq!(last["token"]["special"], true);
    assert_eq!(last["details"]["finish_reason"], "eos_token");
    let visible: String = events
        .iter()
        .filter(|e| e["token"]["special"] == false)
        .map(|e| text(&e["token"]["text"]))
        .collect();
    assert_eq!(visible, text(&last["generated_text"]));
}

#[test]
fn a_silent_stream_is_kept_alive_by_comments() {
    // One sequence runs at a time, so the second stream has nothing to say while the first one does.
    let model = Copy::endless();
    let server = Sconce::new()
        .flag("--model-id", &model.path().display().to_string())
        .flag("--max-total-tokens", "131072")
        .flag("--max-batch-total-tokens", "131072")
        .flag("--max-batch-size", "1")
        .flag("--keep-alive-seconds", "1")
        .serve();
    let mut first = server.stream(
        "/generate_stream",
        &json!({"inputs": "a", "parameters": {}}),
    );
    assert!(first.next_event().is_some());
    let mut second = server.stream(
        "/generate_stream",
        &json!({"inputs": "b", "parameters": {}}),
    );
    assert_eq!(second.next_frame().as_deref(), Some(":"));
}

#[test]
fn info_names_the_limits_in_order() {
    let server = Sconce::tiny(CASE)
        .flag("--max-total-tokens", "64")
        .flag("--max-input-tokens", "32")
        .flag("--max-batch-total-tokens", "320")
        .flag("--cpu-tier", "portable")
        .serve();
    let by_hand = format!(
        concat!(
            r#"{{"model_id":{},"model_sha":null,"model_pipeline_tag":null,"max_concurrent_requests":128,"#,
            r#""max_best_of":2,"max_stop_sequences":4,"max_input_tokens":32,"max_total_tokens":64,"#,
            r#""validation_workers":2,"max_client_batch_size":4,"router":"text-generation-router","#,
            r#""version":"{}","sha":null,"docker_label":null,"model_dtype":"F32","#,
            r#""model_device_type":"cpu","cpu_tier":"portable","max_batch_total_tokens":320,"#,
            r#""max_batch_prefill_tokens":128}}"#
        ),
        json!(model_id(CASE)),
        env!("CARGO_PKG_VERSION"),
    );
    let reply = server.get("/info");
    assert_eq!(
        (reply.header("content-type"), reply.body.as_str()),
        (Some("application/json"), by_hand.as_str())
    );
}

#[test]
fn models_lists_the_one_served() {
    let reply = server().get("/v1/models");
    let id = json!(model_id(CASE));
    let created = reply.ok()["data"][0]["created"]
        .as_u64()
        .expect("whole seconds");
    assert!(created > 1_700_000_000, "{created}");
    let by_hand = format!(
        r#"{{"object":"list","data":[{{"id":{id},"object":"model","created":{created},"owned_by":{id}}}]}}"#
    );
    assert_eq!(reply.body, by_hand);
}

#[test]
fn health_is_an_empty_success() {
    let server = Sconce::new().serve();
    for path in ["/health", "/", "/health/live", "/health/ready"] {
        let reply = server.get(path);
        assert_eq!((reply.status, reply.body.as_str()), (200, ""), "{path}");
    }
}

#[test]
fn tokenize_gives_byte_ranges_of_the_text() {
    let server = server();
    let inputs = "é 🥐, warm";
    let reply = server.post(
        "/tokenize",
        &json!({"inputs": inputs, "parameters": {"truncate": 1}}),
    );
    let json = reply.ok();
    let tokens = json.as_array().expect("a bare list");
    assert_eq!(
        tokens[0],
        json!({"id": 315, "text": "", "start": 0, "stop": 0}),
        "BOS is added"
    );
    let mut reached = 0;
    for token in &tokens[1..] {
        let place = |key: &str| token[key].as_u64().expect("a byte") as usize;
        let (start, stop) = (place("start"), place("stop"));
        assert!(start <= reached && start < stop, "no gap before {token}");
        let slice = String::from_utf8_lossy(&inputs.as_bytes()[start..stop]).into_owned();
        assert_eq!(text(&token["text"]), slice);
        reached = stop;
    }
    assert_eq!(reached, inputs.len());
    check("tokenize.json", &reply.body);
    let whole = server.post("/tokenize", &json!({"inputs": inputs}));
    assert_eq!(whole.body, reply.body, "parameters have no effect");
}

#[test]
fn tokenize_agrees_with_transformers() {
    let server = server();
    for prompt in expected(CASE)["prompts"].as_array().expect("prompts") {
        let tokens = server
            .post("/tokenize", &json!({"inputs": prompt["text"]}))
            .ok();
        let ids: Vec<&Json> = tokens
            .as_array()
            .expect("tokens")
            .iter()
            .map(|token| &token["id"])
            .collect();
        assert_eq!(json!(ids), prompt["ids"]);
    }
}
