//! `/metrics`: the names dashboards know, and what the engine says about itself.

use std::collections::BTreeSet;

use serde_json::json;

use crate::support::server::Sconce;

/// Families of TGI that this server has, with their types; none may be renamed.
const TGI: [(&str, &str); 23] = [
    ("tgi_request_count", "counter"),
    ("tgi_request_success", "counter"),
    ("tgi_request_failure", "counter"),
    ("tgi_request_duration", "histogram"),
    ("tgi_request_validation_duration", "histogram"),
    ("tgi_request_queue_duration", "histogram"),
    ("tgi_request_inference_duration", "histogram"),
    ("tgi_request_mean_time_per_token_duration", "histogram"),
    ("tgi_request_generated_tokens", "histogram"),
    ("tgi_request_max_new_tokens", "histogram"),
    ("tgi_request_input_length", "histogram"),
    ("tgi_queue_size", "gauge"),
    ("tgi_batch_current_size", "gauge"),
    ("tgi_batch_current_max_tokens", "gauge"),
    ("tgi_batch_next_size", "histogram"),
    ("tgi_batch_inference_count", "counter"),
    ("tgi_batch_inference_success", "counter"),
    ("tgi_batch_inference_duration", "histogram"),
    ("tgi_batch_forward_duration", "histogram"),
    ("tgi_batch_decode_duration", "histogram"),
    ("tgi_batch_max_total_tokens", "gauge"),
    ("sconce_forward_count", "counter"),
    ("sconce_tokenizing", "gauge"),
];

#[test]
fn names_are_those_of_tgi() {
    let server = Sconce::tiny("llama-tied").serve();
    server.generate("warm", json!({"max_new_tokens": 4}));
    let reply = server.get("/metrics");
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (200, Some("text/plain; charset=utf-8"))
    );
    let types: BTreeSet<(&str, &str)> = reply
        .body
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '))
        .collect();
    for family in TGI {
        assert!(types.contains(&family), "{family:?} is missing");
    }
    for (name, _) in &types {
        assert!(!name.ends_with("_total"), "{name}");
        assert!(
            name.starts_with("tgi_") || name.starts_with("sconce_"),
            "{name}"
        );
    }
}

#[test]
fn requests_are_counted_where_they_end() {
    let server = Sconce::tiny("llama-tied")
        .flag("--max-total-tokens", "100")
        .serve();
    server.generate("warm", json!({"max_new_tokens": 5}));
    server.generate("warm", json!({"max_new_tokens": 3, "do_sample": true}));
    assert_eq!(server.metric("tgi_request_count"), 2.0);
    assert_eq!(server.metric("tgi_request_success"), 2.0);
    assert_eq!(server.metric("tgi_request_generated_tokens_sum"), 8.0);
    assert_eq!(server.metric("tgi_request_max_new_tokens_sum"), 8.0);
    assert_eq!(server.metric("tgi_request_duration_count"), 2.0);
    // Buckets are hundredths of the window.
    assert_eq!(
        server.metric("tgi_request_generated_tokens_bucket{le=\"3\"}"),
        1.0
    );
    assert_eq!(
        server.metric("tgi_request_generated_tokens_bucket{le=\"5\"}"),
        2.0
    );
    for name in [
        "tgi_queue_size",
        "tgi_batch_current_size",
        "tgi_batch_current_max_tokens",
    ] {
        server.await_metric(name, |value| value == 0.0);
    }
    for path in ["/health", "/info"] {
        server.get(path);
    }
    server.post("/tokenize", &json!({"inputs": "warm"}));
    assert_eq!(
        server.metric("tgi_request_count"),
        2.0,
        "only generation counts"
    );
}

#[test]
fn several_sequences_of_one_call_count_once() {
    let server = Sconce::tiny("llama-tied").serve();
    let several = json!({"best_of": 2, "do_sample": true, "max_new_tokens": 3});
    server.generate("warm", several);
    let refused = json!({"inputs": "warm", "parameters": {"best_of": 2, "do_sample": true}});
    server.post("/generate_stream", &refused);
    assert_eq!(server.metric("tgi_request_count"), 2.0);
    assert_eq!(server.metric("tgi_request_success"), 1.0);
    assert_eq!(server.metric("tgi_request_duration_count"), 1.0);
    assert_eq!(
        server.metric("tgi_request_failure{err=\"validation\"}"),
        1.0
    );
}

#[test]
fn a_repeated_prompt_is_found_in_the_prefix_cache() {
    const GENERATED: f64 = 4.0;
    let server = Sconce::tiny("llama-tied").serve();
    let prompt = "1250 coins and warm bread. ".repeat(8);
    let tokens = server
        .post("/tokenize", &json!({"inputs": prompt}))
        .ok()
        .as_array()
        .map_or(0, Vec::len) as f64;
    assert!(tokens > 64.0);
    let first = server.generate(&prompt, json!({"max_new_tokens": GENERATED as u32}));
    let computed = server.metric("sconce_computed_tokens");
    assert!(computed >= tokens, "{computed} computed");
    assert_eq!(server.metric("sconce_prefix_cache_hit_tokens"), 0.0);
    let second = server.generate(&prompt, json!({"max_new_tokens": GENERATED as u32}));
    assert_eq!(first, second);
    let again = server.metric("sconce_computed_tokens") - computed;
    assert!(again <= 16.0 + 1.0 + GENERATED, "{again} computed again");
    assert!(server.metric("sconce_prefix_cache_hit_tokens") >= tokens - 17.0);
}
