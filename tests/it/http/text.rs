//! What becomes of text: stop strings, cuts, lengths, and characters that are never halved.

use serde_json::{Value as Json, json};

use crate::support::models::{expected, model_id};
use crate::support::server::{Sconce, Server};

const CASE: &str = "llama-tied";
const PROMPT: &str = "children weighed 1250";

fn server() -> Server {
    Sconce::tiny(CASE)
        .flag("--enable-prefill-logprobs", "true")
        .serve()
}

fn text(value: &Json) -> &str {
    value.as_str().expect("text")
}

/// Texts of an answer's tokens.
fn pieces(answer: &Json) -> Vec<String> {
    let tokens = answer["details"]["tokens"].as_array().expect("tokens");
    tokens
        .iter()
        .filter(|token| token["special"] == false)
        .map(|token| text(&token["text"]).to_owned())
        .collect()
}

#[test]
fn a_stop_string_ends_the_text_wherever_it_falls() {
    let server = server();
    let free = server.generate(PROMPT, json!({"max_new_tokens": 64}));
    let whole = text(&free["generated_text"]);
    let pieces = pieces(&free);
    // Ends of the pieces, in bytes of the whole text.
    let ends: Vec<usize> = pieces
        .iter()
        .scan(0, |sum, piece| {
            *sum += piece.len();
            Some(*sum)
        })
        .collect();
    let last = ends[ends.len() - 2];
    let bounds: Vec<usize> = whole.char_indices().map(|(at, _)| at).collect();
    let (mut inside, mut across) = (0, 0);
    for width in [1, 2, 3, 5] {
        for window in bounds.windows(width + 1).step_by(3) {
            let stop = &whole[window[0]..window[width]];
            let start = whole.find(stop).expect("a part of the text");
            let end = start + stop.len();
            if end > last {
                continue;
            }
            let answer = server.generate(PROMPT, json!({"max_new_tokens": 64, "stop": [stop]}));
            let tokens = ends.iter().position(|&at| at >= end).expect("an end") + 1;
            assert_eq!(text(&answer["generated_text"]), &whole[..end], "{stop:?}");
            assert_eq!(
                answer["details"]["finish_reason"], "stop_sequence",
                "{stop:?}"
            );
            assert_eq!(answer["details"]["generated_tokens"], tokens, "{stop:?}");
            assert_eq!(self::pieces(&answer).concat(), whole[..end], "{stop:?}");
            inside += usize::from(ends[tokens - 1] > end);
            across += usize::from(tokens > 1 && ends[tokens - 2] > start);
        }
    }
    assert!(
        inside > 3 && across > 3,
        "{inside} ended inside a token, {across} spanned several"
    );
}

#[test]
fn a_streamed_answer_stops_where_a_collected_one_does() {
    let server = server();
    let free = server.generate(PROMPT, json!({"max_new_tokens": 40}));
    let whole = text(&free["generated_text"]);
    let at: Vec<usize> = whole.char_indices().map(|(at, _)| at).collect();
    let stop = &whole[at[9]..at[12]];
    let end = whole.find(stop).expect("a part of the text") + stop.len();
    let asked = json!({"inputs": PROMPT, "parameters": {"max_new_tokens": 40, "stop": [stop, "never seen"], "details": true}});
    let events = server.post("/generate_stream", &asked).events();
    let last = events.last().expect("events");
    assert_eq!(text(&last["generated_text"]), &whole[..end]);
    assert_eq!(last["details"]["finish_reason"], "stop_sequence");
    assert_eq!(last["details"]["generated_tokens"], events.len());
    let sum: String = events
        .iter()
        .map(|event| text(&event["token"]["text"]))
        .collect();
    assert_eq!(sum, whole[..end]);
    assert!(
        events[..events.len() - 1]
            .iter()
            .all(|event| event["generated_text"].is_null())
    );
}

#[test]
fn stopped_sequences_give_their_blocks_back() {
    let server = server();
    let free = server.generate(PROMPT, json!({"max_new_tokens": 8}));
    let stop: String = text(&free["generated_text"]).chars().take(1).collect();
    for _ in 0..8 {
        server.generate(PROMPT, json!({"stop": [stop]}));
    }
    let all = server.metric("sconce_kv_blocks");
    server.await_metric("sconce_kv_blocks_free", |free| free == all);
    assert_eq!(server.metric("tgi_request_failure{err=\"dropped\"}"), 0.0);
}

#[test]
fn truncation_keeps_the_last_tokens_of_the_prompt() {
    let server = server();
    let prompt = &expected(CASE)["prompts"][1];
    let ids = prompt["ids"].as_array().expect("ids");
    for keep in [1, 5, ids.len(), ids.len() + 9] {
        let parameters =
            json!({"truncate": keep, "max_new_tokens": 1, "decoder_input_details": true});
        let reply = server.post(
            "/generate",
            &json!({"inputs": prompt["text"], "parameters": parameters}),
        );
        let answer = reply.ok();
        let kept: Vec<&Json> = answer["details"]["prefill"]
            .as_array()
            .expect("prompt tokens")
            .iter()
            .map(|token| &token["id"])
            .collect();
        let wanted: Vec<&Json> = ids[ids.len().saturating_sub(keep)..].iter().collect();
        assert_eq!(kept, wanted, "the last {keep}");
        assert_eq!(
            reply.header("x-prompt-tokens"),
            Some(wanted.len().to_string().as_str())
        );
    }
    let full = json!({"inputs": prompt["text"], "parameters": {"truncate": 2, "max_new_tokens": 1, "return_full_text": true}});
    let full = server.post("/generate", &full).ok();
    assert!(
        text(&full["generated_text"]).starts_with(text(&prompt["text"])),
        "the prompt as it was given"
    );
}

#[test]
fn every_length_is_a_prefix_of_the_longest() {
    let server = server();
    let whole = server.generate(PROMPT, json!({"max_new_tokens": 64}));
    let whole = text(&whole["generated_text"]);
    for n in 1..64 {
        let answer = server.generate(PROMPT, json!({"max_new_tokens": n}));
        let part = text(&answer["generated_text"]);
        assert!(whole.starts_with(part), "{n}: {part:?} in {whole:?}");
        assert_eq!(pieces(&answer).concat(), part);
        assert_eq!(answer["details"]["generated_tokens"], n);
        assert_eq!(answer["details"]["finish_reason"], "length");
        assert_eq!(
            answer["details"]["tokens"].as_array().map(Vec::len),
            Some(n)
        );
    }
}

#[test]
fn pieces_add_up_to_the_text_whatever_is_drawn() {
    let server = server();
    for seed in 0..24 {
        let parameters = json!({"temperature": 3.0, "seed": seed, "max_new_tokens": 40});
        let answer = server.generate("🥐 é", parameters.clone());
        assert_eq!(
            pieces(&answer).concat(),
            text(&answer["generated_text"]),
            "seed {seed}"
        );
        let mut parameters = parameters;
        parameters["details"] = true.into();
        let streamed = server
            .post(
                "/generate_stream",
                &json!({"inputs": "🥐 é", "parameters": parameters}),
            )
            .events();
        let last = streamed.last().expect("events");
        assert_eq!(
            last["generated_text"], answer["generated_text"],
            "seed {seed}"
        );
        let tokens: Vec<&Json> = streamed.iter().map(|event| &event["token"]).collect();
        assert_eq!(json!(tokens), answer["details"]["tokens"], "seed {seed}");
    }
}

#[test]
fn texts_agree_with_transformers() {
    for case in [
        "llama-tied",
        "qwen3",
        "qwen2-untied",
        "llama-gguf-q8_0",
        "qwen3-gguf-q6_k",
    ] {
        let server = Sconce::new().flag("--model-id", &model_id(case)).serve();
        let expected = expected(case);
        let ends = expected["eos_token_ids"].as_array().expect("end tokens");
        for prompt in expected["prompts"].as_array().expect("prompts") {
            // Their text goes on after an end token, ours does not.
            if prompt["tokens"]
                .as_array()
                .expect("tokens")
                .iter()
                .any(|id| ends.contains(id))
            {
                continue;
            }
            let answer = server.generate(text(&prompt["text"]), json!({"max_new_tokens": 64}));
            // They show a character that was cut off as U+FFFD, we leave it out.
            let theirs = text(&prompt["generated_text"]);
            let ours = text(&answer["generated_text"]);
            let rest = theirs
                .strip_prefix(ours)
                .unwrap_or_else(|| panic!("{case}: {ours:?}, {theirs:?}"));
            assert!(
                rest.chars().all(|c| c == char::REPLACEMENT_CHARACTER) && rest.chars().count() < 2,
                "{case}: {rest:?}"
            );
        }
    }
}
