//! Many callers at once: everyone gets what it would have got alone.

use std::sync::Barrier;
use std::thread;

use serde_json::{Value as Json, json};

use crate::support::models::Copy;
use crate::support::server::{Sconce, Server};

const CLIENTS: usize = 64;
const OPENINGS: [&str; 4] = [
    "Once upon a time",
    "Lily went to the park and",
    "A small green frog",
    "The old baker said that",
];
const WORDS: [&str; 8] = [
    "sun", "tree", "river", "happy", "bread", "moon", "little", "garden",
];

/// Bodies with prompts of unequal length and, for every other client, a draw of its own.
fn bodies() -> Vec<Json> {
    let body = |i: usize| {
        let words: Vec<&str> = (0..i % 23)
            .map(|k| WORDS[(i * 7 + k * k) % WORDS.len()])
            .collect();
        let inputs = format!("{} {i}, {}", OPENINGS[i % OPENINGS.len()], words.join(" "));
        let parameters = match i % 4 {
            0 => {
                json!({"max_new_tokens": 40 + i % 9, "do_sample": true, "seed": i, "details": true})
            }
            _ => json!({"max_new_tokens": 40 + i % 9, "details": true}),
        };
        json!({"inputs": inputs, "parameters": parameters})
    };
    (0..CLIENTS).map(body).collect()
}

fn alone(server: &Server, bodies: &[Json]) -> Vec<Json> {
    bodies
        .iter()
        .map(|body| server.post("/generate", body).ok())
        .collect()
}

/// All bodies at the same time, half of them streamed; the generated texts.
fn together(server: &Server, bodies: &[Json]) -> Vec<Json> {
    let start = Barrier::new(bodies.len());
    let ask = |i: usize, body: &Json| {
        start.wait();
        if i.is_multiple_of(2) {
            return server.post("/generate", body).ok()["generated_text"].clone();
        }
        let last = server
            .stream("/generate_stream", body)
            .events()
            .pop()
            .expect("events");
        last["generated_text"].clone()
    };
    let ask = &ask;
    thread::scope(|scope| {
        let clients: Vec<_> = bodies
            .iter()
            .enumerate()
            .map(|(i, body)| scope.spawn(move || ask(i, body)))
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("an answer"))
            .collect()
    })
}

fn texts(answers: &[Json]) -> Vec<Json> {
    answers
        .iter()
        .map(|answer| answer["generated_text"].clone())
        .collect()
}

#[test]
fn company_changes_no_answer() {
    let server = Sconce::new().serve();
    let bodies = bodies();
    let alone = texts(&alone(&server, &bodies));
    assert_eq!(
        together(&server, &bodies),
        alone,
        "over a warm prefix cache"
    );
    let fresh = Sconce::new().serve();
    assert_eq!(together(&fresh, &bodies), alone, "from cold");
    assert_eq!(fresh.metric("tgi_request_success"), CLIENTS as f64);
    let all = fresh.metric("sconce_kv_blocks");
    fresh.await_metric("sconce_kv_blocks_free", |free| free == all);
}

#[test]
fn preemption_changes_no_answer() {
    let bodies = bodies();
    let alone = texts(&alone(&Sconce::new().serve(), &bodies));
    let server = Sconce::new()
        .flag("--max-total-tokens", "256")
        .flag("--max-batch-total-tokens", "384")
        .serve();
    assert_eq!(together(&server, &bodies), alone);
    assert!(
        server.metric("sconce_preemptions") > 0.0,
        "24 blocks are too few for 64 sequences"
    );
    let all = server.metric("sconce_kv_blocks");
    assert_eq!(all, 24.0);
    server.await_metric("sconce_kv_blocks_free", |free| free == all);
}

#[test]
fn small_steps_and_few_places_change_no_answer() {
    let bodies = bodies();
    let alone = texts(&alone(&Sconce::new().serve(), &bodies));
    let server = Sconce::new()
        .flag("--max-batch-prefill-tokens", "7")
        .flag("--max-batch-size", "5")
        .flag("--cpu-threads", "1")
        .serve();
    assert_eq!(together(&server, &bodies), alone);
}

#[test]
fn the_same_prompt_at_once_is_computed_once() {
    let server = Sconce::new().serve();
    let prompt = "The baker bakes bread, and the bread is warm. ".repeat(8);
    let body = json!({"inputs": prompt, "parameters": {"max_new_tokens": 8}});
    let tokens = server
        .post("/tokenize", &body)
        .ok()
        .as_array()
        .map_or(0, Vec::len);
    assert!(tokens > 64);
    let bodies = vec![body; 16];
    let answers = together(&server, &bodies);
    assert!(answers.iter().all(|answer| answer == &answers[0]));
    let computed = server.metric("sconce_computed_tokens");
    // One whole prompt, then for each of the others its last block at most, and all answers.
    assert!(
        computed <= (tokens + 15 * 17 + 16 * 8) as f64,
        "{computed} computed, {tokens} in the prompt"
    );
}

#[test]
fn one_forward_serves_all_running_sequences() {
    const EACH: usize = 2000;
    let model = Copy::endless();
    let server = Sconce::new()
        .flag("--model-id", &model.path().display().to_string())
        .flag("--max-total-tokens", "4096")
        .flag("--max-batch-total-tokens", "65536")
        .serve();
    let body = |i: usize| json!({"inputs": format!("{i}"), "parameters": {"max_new_tokens": EACH}});
    let bodies: Vec<Json> = (0..16).map(body).collect();
    together(&server, &bodies);
    let forwards = server.metric("sconce_forward_count");
    assert!(forwards >= EACH as f64);
    assert!(
        forwards < (16 * EACH / 4) as f64,
        "{forwards} forwards for {} tokens",
        16 * EACH
    );
}
