//! Where the operator allows it, an answer that breaks off goes on here: to the letter, once, and only where that
//! can be exact.

use serde_json::{Value as Json, json};

use super::Setup;
use super::far::{ANYWHERE, BRISK, CHAT, asked, chats, model, streaming, target, upstream};
use crate::support::chat::{merge, streamed};
use crate::support::server::Server;
use crate::support::upstream::{Chat, Reply, Upstream};
use crate::support::wire::Reply as Answer;

const QUESTION: &str = "What is the capital of France?";
const ANSWER: &str = "The capital of France is Paris.";

/// A server that prefers this upstream, runs the same model, and may go on with what breaks off there.
fn before(far: &Upstream, kind: &str, same: bool) -> (Setup, Server) {
    let setup = Setup::new()
        .add(ANYWHERE)
        .add(BRISK)
        .add(&upstream("far", kind, &far.url(), ""))
        .add(&target("far", "far", &format!("same_model = {same}\n")))
        .add(&model("default", true, "\"far\""))
        .add("[route]\npolicy = \"prefer-remote\"\nmid_stream = \"continue\"\n");
    let server = setup.serve();
    (setup, server)
}

/// An upstream that says so much and is gone.
fn torn(texts: &'static [&'static str]) -> Upstream {
    Upstream::start(chats(move |_| Reply::chat(texts).reset_after(texts.len())))
}

/// The data of a stream's events, comments and the end left out.
#[track_caller]
fn events(answer: &Answer) -> Vec<Json> {
    assert_eq!(answer.status, 200, "{answer:?}");
    let frames = answer.body.split_terminator("\n\n");
    let data = frames.filter_map(|frame| frame.strip_prefix("data:"));
    let data = data.map(str::trim_start).filter(|data| *data != "[DONE]");
    data.map(|data| serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data}")))
        .collect()
}

#[test]
fn a_chat_that_breaks_off_goes_on_here_to_the_letter() {
    for said in [
        &["The"] as &[&str],
        &["The ", "capital", " of"],
        &["The capital of France is"],
    ] {
        let far = torn(said);
        let (_setup, server) = before(&far, "openai_compat", true);
        let mut body = streaming("default", QUESTION);
        body["stream_options"] = json!({"include_usage": true});
        let answer = server.post(CHAT, &body);
        let chunks = events(&answer);
        let text = streamed(&chunks, 0);
        // A space that was shown last may stand twice before a tokenizer, and never before a reader.
        assert_eq!(text, ANSWER, "{said:?}: {answer:?}");
        assert!(!answer.body.contains("\"error\""), "{answer:?}");
        let finishes: Vec<&str> = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["finish_reason"].as_str())
            .collect();
        assert_eq!(finishes, ["stop"]);
        assert!(answer.body.ends_with("data: [DONE]\n\n"));
        assert!(
            answer.body.contains("x-route-continued=local"),
            "{answer:?}"
        );
        assert_eq!(asked(&far), 1, "once");
    }
}

#[test]
fn what_cannot_go_on_exactly_ends_in_an_error() {
    let tool = json!([{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]);
    let schema =
        json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}});
    for (about, same, more) in [
        ("another model", false, json!({})),
        ("tools", true, json!({"tools": tool})),
        ("a schema", true, json!({"response_format": schema})),
        ("stops", true, json!({"stop": ["Paris"]})),
    ] {
        let far = torn(&["The capital", " of"]);
        let (_setup, server) = before(&far, "openai_compat", same);
        let mut body = streaming("default", QUESTION);
        merge(&mut body, more);
        let answer = server.post(CHAT, &body);
        let chunks = events(&answer);
        let (error, shown) = chunks.split_last().expect("events");
        assert!(error["error"].is_object(), "{about}: {answer:?}");
        assert_eq!(streamed(shown, 0), "The capital of", "{about}: {answer:?}");
        assert_eq!(asked(&far), 1, "{about}");
    }
}

#[test]
fn reasoning_that_breaks_off_is_not_continued() {
    let far = Upstream::start(chats(|_| {
        Chat::new(&[])
            .delta(json!({"reasoning_content": "Let me see"}))
            .delta(json!({"reasoning_content": ", France"}))
            .stream()
            .reset_after(2)
    }));
    let (_setup, server) = before(&far, "openai_compat", true);
    let answer = server.post(CHAT, &streaming("default", QUESTION));
    assert!(answer.body.contains("\"error\""), "{answer:?}");
    assert!(!answer.body.contains("Paris"), "{answer:?}");
}

#[test]
fn without_leave_an_answer_that_breaks_off_ends_in_an_error() {
    let far = torn(&["The capital", " of"]);
    let setup = Setup::new()
        .add(ANYWHERE)
        .add(&upstream("far", "openai_compat", &far.url(), ""))
        .add(&target("far", "far", "same_model = true\n"))
        .add(&model("default", true, "\"far\""))
        .policy("prefer-remote");
    let server = setup.serve();
    let answer = server.post(CHAT, &streaming("default", QUESTION));
    let chunks = events(&answer);
    let (error, shown) = chunks.split_last().expect("events");
    assert!(error["error"].is_object(), "{answer:?}");
    assert_eq!(streamed(shown, 0), "The capital of");
}

#[test]
fn a_stream_of_tgi_that_breaks_off_goes_on_here() {
    let far = Upstream::start(chats(|_| {
        Reply::generate_stream(&["The", " capital", " of"]).reset_after(2)
    }));
    let (_setup, server) = before(&far, "tgi", true);
    let prompt = format!("<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n");
    let body = json!({"inputs": prompt, "parameters": {"max_new_tokens": 24}});
    let answer = server.post("/generate_stream", &body);
    let events = events(&answer);
    let texts = events
        .iter()
        .filter_map(|event| event["token"]["text"].as_str());
    // The last token ends the turn and is no text of the answer.
    let shown: String = texts.filter(|text| !text.starts_with("<|")).collect();
    assert_eq!(shown, ANSWER, "{answer:?}");
    let last = events.last().expect("events");
    assert_eq!(last["generated_text"], ANSWER, "{answer:?}");
    assert_eq!(asked(&far), 1);
}
