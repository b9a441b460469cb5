//! A second sconce as the upstream: every route gives the same bytes whoever has answered.

use serde_json::{Value as Json, json};

use super::{Setup, chat};
use crate::support::chat::text;
use crate::support::server::{Sconce, Server};
use crate::support::wire::Reply;

/// A server that has every answer made by a second one, and that one.
fn pair(kind: &str, engine: &str) -> (Setup, Server, Server) {
    let far = Sconce::new().serve();
    let url = format!("http://{}", far.address());
    let setup = Setup::with_engine(kind, Some(engine), &url, "sconce-demo").policy("remote-only");
    let near = setup.serve();
    (setup, near, far)
}

/// Where an answer says that it was made.
#[track_caller]
fn assert_remote(reply: &Reply) {
    assert_eq!(reply.header("x-route-target"), Some("remote"), "{reply:?}");
    assert_eq!(reply.header("x-route-upstream"), Some("up"));
    assert_eq!(reply.header("x-route-model"), Some("sconce-demo"));
    assert_eq!(reply.header("x-route-reason"), Some("policy_remote"));
    assert_eq!(reply.header("x-route-attempts"), Some("1"));
    assert!(reply.header("x-route-request-id").is_some());
}

/// A body without what no two answers share.
fn shared(mut body: Json) -> Json {
    for field in ["id", "created", "created_at"] {
        if let Some(value) = body.get_mut(field) {
            *value = Json::Null;
        }
    }
    if let Some(outputs) = body.get_mut("output").and_then(Json::as_array_mut) {
        for output in outputs {
            output["id"] = Json::Null;
        }
    }
    body
}

/// Frames without the comment that says where the answer was made.
fn frames(body: &str) -> Vec<&str> {
    let frames = body.split_terminator("\n\n");
    frames.filter(|frame| !frame.starts_with(':')).collect()
}

#[test]
fn every_collected_route_answers_as_the_one_behind_it() {
    let (_setup, near, far) = pair("tgi", "tgi");
    let question = "What is the capital of France?";
    let plain = json!({"inputs": question, "parameters": {"max_new_tokens": 24}});
    let detailed =
        json!({"inputs": question, "parameters": {"max_new_tokens": 24, "details": true}});
    let stopped =
        json!({"inputs": question, "parameters": {"max_new_tokens": 24, "stop": ["France"]}});
    let completion = json!({"prompt": question, "max_tokens": 24, "temperature": 0});
    let message = json!({
        "max_tokens": 24, "temperature": 0,
        "messages": [{"role": "user", "content": question}],
    });
    let response = json!({"input": question, "max_output_tokens": 24, "temperature": 0});
    for (path, body) in [
        ("/generate", &plain),
        ("/generate", &detailed),
        ("/generate", &stopped),
        ("/v1/chat/completions", &chat(question)),
        ("/v1/completions", &completion),
        ("/v1/messages", &message),
        ("/v1/responses", &response),
    ] {
        let (here, there) = (near.post(path, body), far.post(path, body));
        assert_eq!(shared(here.ok()), shared(there.ok()), "{path} {body}");
        assert_remote(&here);
        assert_eq!(
            there.header("x-route-target"),
            None,
            "nothing is routed there"
        );
        assert_eq!(here.header("x-route-cost-usd"), Some("0"));
    }
}

#[test]
fn every_streamed_route_answers_as_the_one_behind_it() {
    let (_setup, near, far) = pair("tgi", "tgi");
    let question = "What is the capital of Italy?";
    let mut streamed = chat(question);
    streamed["stream"] = true.into();
    streamed["stream_options"] = json!({"include_usage": true});
    let tgi = json!({"inputs": question, "parameters": {"max_new_tokens": 24, "details": true}});
    for (path, body) in [
        ("/generate_stream", &tgi),
        ("/v1/chat/completions", &streamed),
    ] {
        let (here, there) = (near.post(path, body), far.post(path, body));
        assert_remote(&here);
        let comment = ": x-route-cost-usd=0 x-route-target=remote x-route-reason=policy_remote";
        let all: Vec<&str> = here.body.split_terminator("\n\n").collect();
        assert_eq!(all[all.len() - 2], comment, "right before the last event");
        let strip = |frame: &str| {
            let Some(data) = frame.strip_prefix("data: {") else {
                return frame.to_owned();
            };
            let json: Json = serde_json::from_str(&format!("{{{data}")).expect("an event");
            shared(json).to_string()
        };
        let (mine, theirs) = (frames(&here.body), frames(&there.body));
        let mine: Vec<String> = mine.into_iter().map(strip).collect();
        let theirs: Vec<String> = theirs.into_iter().map(strip).collect();
        assert_eq!(mine, theirs, "{path}");
    }
}

#[test]
fn an_openai_upstream_gives_text_without_token_ids_and_says_so() {
    let (_setup, near, _far) = pair("openai_compat", "openai");
    let reply = near.post(
        "/v1/chat/completions",
        &chat("What is the capital of France?"),
    );
    let body = reply.ok();
    assert_eq!(
        text(&body["choices"][0]["message"]["content"]),
        "The capital of France is Paris."
    );
    assert_remote(&reply);
    // A raw prompt goes nowhere that takes chats only, unless it was one.
    let raw = json!({"inputs": "Once upon a time", "parameters": {"max_new_tokens": 8}});
    let refused = near.post("/generate", &raw);
    assert_eq!(refused.status, 422, "{refused:?}");
    assert_eq!(
        refused.header("x-route-reason"),
        Some("not_eligible:inputs")
    );
    let told =
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n";
    let told = json!({"inputs": told, "parameters": {"max_new_tokens": 24}});
    let reply = near.post("/generate_stream", &told);
    let events = reply
        .body
        .split_terminator("\n\n")
        .filter_map(|frame| frame.strip_prefix("data:"))
        .map(|data| serde_json::from_str::<Json>(data).expect("an event"))
        .collect::<Vec<_>>();
    let last = events.last().expect("events");
    assert_eq!(
        text(&last["generated_text"]),
        "The capital of France is Paris."
    );
    assert!(
        events
            .iter()
            .all(|event| event["token"]["logprob"].is_null())
    );
    let degraded = reply.header("x-route-degraded").expect("what is missing");
    for word in ["token_ids", "logprobs"] {
        assert!(degraded.split(',').any(|part| part == word), "{degraded}");
    }
}
