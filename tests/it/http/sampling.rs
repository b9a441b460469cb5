//! How tokens are chosen as the caller sees it: greedy or drawn, seeds, and the trap of absent parameters.

use std::collections::BTreeSet;

use serde_json::{Value as Json, json};

use crate::support::server::{Sconce, Server};

fn server() -> Server {
    Sconce::tiny("qwen3-tied")
        .flag("--max-total-tokens", "64")
        .serve()
}

fn seed(server: &Server, parameters: Json) -> Json {
    server.generate("warm", parameters)["details"]["seed"].clone()
}

fn text(server: &Server, parameters: Json) -> String {
    let answer = server.generate("warm", parameters);
    answer["generated_text"].as_str().expect("text").to_owned()
}

#[test]
fn absent_parameters_sample_and_empty_ones_are_greedy() {
    let server = server();
    let answers = |body: Json| -> BTreeSet<String> {
        (0..8)
            .map(|_| server.post("/generate", &body).body)
            .collect()
    };
    assert!(
        answers(json!({"inputs": "warm"})).len() > 1,
        "drawn with eight seeds"
    );
    let greedy = answers(json!({"inputs": "warm", "parameters": {}}));
    assert_eq!(greedy.len(), 1);
    assert_eq!(seed(&server, json!({})), Json::Null);
    let streamed = server
        .post("/generate_stream", &json!({"inputs": "warm"}))
        .events();
    let details = server.post(
        "/generate_stream",
        &json!({"inputs": "warm", "parameters": {"details": true}}),
    );
    let last = details.events().pop().expect("events");
    assert_eq!(last["details"]["seed"], Json::Null);
    assert!(
        streamed
            .last()
            .is_some_and(|event| event["generated_text"].is_string())
    );
}

#[test]
fn anything_that_shapes_the_draw_turns_sampling_on() {
    let server = server();
    let sampled = [
        json!({"do_sample": true}),
        json!({"temperature": 0.7}),
        json!({"top_k": 5}),
        json!({"top_p": 0.9}),
        json!({"typical_p": 0.9}),
    ];
    for parameters in sampled {
        assert!(seed(&server, parameters.clone()).is_u64(), "{parameters}");
    }
    for parameters in [
        json!({"temperature": 1.0}),
        json!({"seed": 5}),
        json!({"repetition_penalty": 1.2}),
    ] {
        assert_eq!(
            seed(&server, parameters.clone()),
            Json::Null,
            "{parameters}"
        );
    }
}

#[test]
fn a_seed_is_returned_and_repeats_the_answer() {
    let server = server();
    let drawn = |seed: u64| json!({"do_sample": true, "seed": seed, "max_new_tokens": 32});
    for given in [0, 42, u64::MAX] {
        assert_eq!(seed(&server, drawn(given)), json!(given));
        assert_eq!(text(&server, drawn(given)), text(&server, drawn(given)));
    }
    let texts: BTreeSet<String> = (0..6).map(|seed| text(&server, drawn(seed))).collect();
    assert!(texts.len() > 4, "six seeds gave {texts:?}");
    let random: BTreeSet<String> = (0..4)
        .map(|_| seed(&server, json!({"do_sample": true})).to_string())
        .collect();
    assert_eq!(random.len(), 4, "each request draws a seed of its own");
}

#[test]
fn a_reported_random_seed_repeats_its_answer() {
    let server = server();
    let first = server.generate("warm", json!({"temperature": 1.5, "max_new_tokens": 24}));
    let seed = &first["details"]["seed"];
    let again = server.generate(
        "warm",
        json!({"temperature": 1.5, "max_new_tokens": 24, "seed": seed}),
    );
    assert_eq!(first, again);
}

#[test]
fn narrow_draws_are_greedy() {
    let server = server();
    let greedy = text(&server, json!({"max_new_tokens": 24}));
    for narrow in [
        json!({"top_k": 1}),
        json!({"top_p": 1e-6}),
        json!({"temperature": 1e-4}),
    ] {
        let mut parameters = narrow.clone();
        parameters["max_new_tokens"] = 24.into();
        assert_eq!(text(&server, parameters), greedy, "{narrow}");
    }
}

#[test]
fn penalties_change_greedy_answers() {
    let server = server();
    let greedy = text(&server, json!({"max_new_tokens": 32}));
    // This model repeats itself, so a penalty on what was said must show.
    assert_ne!(
        text(
            &server,
            json!({"max_new_tokens": 32, "repetition_penalty": 5.0})
        ),
        greedy
    );
    assert_ne!(
        text(
            &server,
            json!({"max_new_tokens": 32, "frequency_penalty": 2.0})
        ),
        greedy
    );
    assert_eq!(
        text(
            &server,
            json!({"max_new_tokens": 32, "repetition_penalty": 1.0})
        ),
        greedy
    );
}
