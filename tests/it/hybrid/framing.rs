//! However an upstream puts its answer on the wire, a caller reads the same; and what is no answer is none.

use serde_json::{Value as Json, json};

use super::Setup;
use super::far::{
    ANYWHERE, BRISK, CHAT, always, asked, chats, content, model, own, sentence, streaming, target,
    to, upstream, willing,
};
use crate::support::chat::streamed;
use crate::support::server::Server;
use crate::support::upstream::{Chat, Reply, Upstream, UsageAt};

fn before(far: &Upstream, more: &str) -> (Setup, Server) {
    let setup = Setup::new()
        .add(ANYWHERE)
        .add(BRISK)
        .add(more)
        .add(&own("far", "openai_compat", &far.url()))
        .add(&model("default", false, "\"far\""))
        .policy("remote-only");
    let server = setup.serve();
    (setup, server)
}

/// The data of a stream's events, comments and the end left out.
#[track_caller]
fn events(body: &str) -> Vec<Json> {
    let frames = body.split_terminator("\n\n");
    let data = frames.filter_map(|frame| frame.strip_prefix("data:"));
    let data = data.map(str::trim_start).filter(|data| *data != "[DONE]");
    data.map(|data| serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data}")))
        .collect()
}

const WORDS: [&str; 3] = ["Grüße, ", "日本 🦀", " \"and\" end."];

fn framings() -> Vec<(&'static str, Reply)> {
    let plain = || Reply::chat(&WORDS);
    let events = |change: fn(String) -> String| {
        let chunk = |delta: Json, finish: Json| {
            let choice = json!({"index": 0, "delta": delta, "finish_reason": finish});
            json!({"id": "c", "choices": [choice]}).to_string()
        };
        let mut events: Vec<String> = WORDS
            .iter()
            .map(|word| chunk(json!({"content": word}), Json::Null))
            .collect();
        events.push(chunk(json!({}), "stop".into()));
        events.push("[DONE]".to_owned());
        let events: Vec<String> = events.into_iter().map(change).collect();
        Reply::events(&events)
    };
    vec![
        ("plain", plain()),
        ("by byte", plain().split_every(1)),
        ("by seven", plain().split_every(7)),
        ("at once", plain().split_every(1 << 20)),
        ("crlf", plain().crlf()),
        ("crlf by byte", plain().crlf().split_every(1)),
        ("cr", events(|data| format!("data: {data}\r\r"))),
        ("no space", events(|data| format!("data:{data}\n\n"))),
        ("named", events(|data| format!("event: message\nid: 7\nretry: 100\ndata: {data}\n\n"))),
        ("more lines", events(|data| match data.split_once(",\"") {
            Some((one, two)) => format!("data: {one},\ndata: \"{two}\n\n"),
            None => format!("data: {data}\n\n"),
        })),
        ("mark", plain().insert(0, "\u{feff}")),
        ("comments", plain().insert(2, ": still here\n\n").insert(0, ":\n\n")),
        ("last line", events(|data| match data.as_str() {
            "[DONE]" => "data: [DONE]".to_owned(),
            data => format!("data: {data}\n\n"),
        })),
        ("until close", plain().until_close()),
        ("then close", plain().then_close()),
        ("no done", Chat::new(&WORDS).without_done().stream()),
        ("charset", plain().header("content-type", "text/event-stream; charset=utf-8")),
        (
            "empty deltas",
            plain().insert(1, "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\"}}]}\n\ndata: {\"choices\":[{\"index\":0,\"delta\":{\"content\":null}}]}\n\n"),
        ),
    ]
}

#[test]
fn however_an_answer_is_framed_it_reads_the_same() {
    for (name, reply) in framings() {
        let far = always(reply);
        let (_setup, server) = before(&far, "");
        let answer = server.post(CHAT, &to("default", "Well?"));
        assert_eq!(content(&answer), WORDS.concat(), "{name}: {answer:?}");
        let told = server.post(CHAT, &streaming("default", "Well, well?"));
        let chunks = events(&told.body);
        assert_eq!(streamed(&chunks, 0), WORDS.concat(), "{name}: {told:?}");
        let finish = chunks
            .iter()
            .find_map(|chunk| chunk["choices"][0]["finish_reason"].as_str());
        assert_eq!(finish, Some("stop"), "{name}: {told:?}");
        assert_eq!(asked(&far), 2, "{name}");
    }
}

#[test]
fn usage_is_what_the_upstream_says_wherever_it_says_it() {
    let words = Chat::new(&["One ", "two"]);
    for (name, chat, expected) in [
        ("last", words.clone().usage(70, 30), (70, 30)),
        (
            "every",
            words.clone().usage(70, 30).usage_at(UsageAt::Every),
            (70, 30),
        ),
        ("zero", words.clone().usage(0, 0), (0, 0)),
    ] {
        let far = Upstream::start(chats(move |request| match request.streams() {
            true => chat.stream(),
            false => chat.object(),
        }));
        let (_setup, server) = before(&far, "");
        let usage = |usage: &Json| {
            (
                usage["prompt_tokens"].as_u64(),
                usage["completion_tokens"].as_u64(),
            )
        };
        let expected = (Some(expected.0), Some(expected.1));
        let answer = server.post(CHAT, &to("default", "Well?")).ok();
        assert_eq!(usage(&answer["usage"]), expected, "{name}: {answer}");
        let mut body = streaming("default", "Well, well?");
        body["stream_options"] = json!({"include_usage": true});
        let told = events(&server.post(CHAT, &body).body);
        let last = told.iter().rev().find(|event| event["usage"].is_object());
        assert_eq!(usage(&last.expect("usage")["usage"]), expected, "{name}");
    }
}

#[test]
fn an_upstream_that_does_not_stream_answers_whole_or_is_left_alone_with_the_reason() {
    let whole = || Upstream::start(chats(|_| Chat::new(&WORDS).usage(7, 3).object()));
    let far = whole();
    let setup = |url: &str, more: &str| {
        Setup::new()
            .add(ANYWHERE)
            .add(BRISK)
            .add(&upstream("far", "openai_compat", url, ""))
            .add("[[remote.target]]\nname = \"far\"\nupstream = \"far\"\nmodel = \"m\"\n")
            .add(more)
            .add(&model("default", false, "\"far\""))
            .policy("remote-only")
    };
    let can = "capabilities = { streaming = false }\n";
    let known = setup(&far.url(), can);
    let server = known.serve();
    let answer = server.post(CHAT, &to("default", "Well?"));
    assert_eq!(content(&answer), WORDS.concat());
    assert_eq!(answer.json()["usage"]["completion_tokens"], 3);
    let told = events(&server.post(CHAT, &streaming("default", "Well, well?")).body);
    assert_eq!(streamed(&told, 0), WORDS.concat());
    let bodies: Vec<Json> = far
        .requests()
        .iter()
        .filter(|request| request.method == "POST")
        .map(|request| request.json())
        .collect();
    assert_eq!(bodies.len(), 2);
    for body in bodies {
        assert_eq!(body["stream"], false, "{body}");
        assert_eq!(body.get("stream_options"), None, "{body}");
    }

    let far = whole();
    let unknown = setup(&far.url(), "");
    let server = unknown.serve();
    for question in ["Well?", "Well, well?"] {
        let refused = server.post(CHAT, &to("default", question));
        assert_eq!(refused.status, 424, "{refused:?}");
    }
    assert_eq!(asked(&far), 1, "nobody pays again for what is not read");
    let health = server.get("/health/upstreams").ok();
    let said = health["upstreams"][0]["sentence"].as_str();
    let said = said.expect("a sentence");
    assert!(said.contains("streaming = false"), "{said}");
}

#[test]
fn an_event_beyond_measure_ends_the_answer() {
    let long = "x".repeat(50_000);
    let far = Upstream::start(chats(move |_| Reply::chat(&["One ", &long, "end"])));
    let (_setup, server) = before(&far, "[remote.limits]\nevent_bytes = 20000\n");
    let told = server.post(CHAT, &streaming("default", "Well?"));
    let chunks = events(&told.body);
    let (error, shown) = chunks.split_last().expect("events");
    assert_eq!(streamed(shown, 0), "One ", "{told:?}");
    assert!(error["error"].is_object(), "{told:?}");
    assert_eq!(asked(&far), 1);
}

#[test]
fn an_answer_beyond_measure_ends_in_an_error() {
    let word = "x".repeat(1000);
    let far = Upstream::start(chats(move |_| Reply::chat(&vec![word.as_str(); 100])));
    let (_setup, server) = before(&far, "[remote.limits]\nresponse_bytes = 50000\n");
    let told = server.post(CHAT, &streaming("default", "Well?"));
    let chunks = events(&told.body);
    let (error, shown) = chunks.split_last().expect("events");
    let shown = streamed(shown, 0);
    assert!((1000..50_000).contains(&shown.len()), "{}", shown.len());
    assert!(error["error"].is_object(), "{error}");
    assert_eq!(asked(&far), 1);
}

#[test]
fn a_certificate_that_nobody_trusts_is_tried_once_and_told() {
    let far = Upstream::start_tls(chats(|request| Reply::chat_for(request, &["never"])));
    let (_setup, server) = before(&far, "");
    for question in ["One?", "Two?"] {
        let refused = server.post(CHAT, &to("default", question));
        assert_eq!(refused.status, 424, "{refused:?}");
        assert!(sentence(&refused).contains("far"), "{refused:?}");
    }
    assert_eq!(asked(&far), 0);
}

#[test]
fn a_sleeping_endpoint_hears_nothing_until_somebody_asks() {
    let far = willing(&["Awake."]);
    let setup = Setup::new()
        .add(ANYWHERE)
        .add(&upstream(
            "far",
            "inference_endpoint",
            &far.url(),
            "scales_to_zero = true\n",
        ))
        .add(&target("far", "far", ""))
        .add(&model("default", true, "\"far\""));
    let server = setup.serve();
    let here = server.post(CHAT, &to("default", "What is the capital of France?"));
    assert_eq!(here.header("x-route-target"), Some("local"));
    assert_eq!(server.get("/health/ready").status, 200);
    assert_eq!(server.get("/health").status, 200);
    assert_eq!((far.connections().len(), far.bytes_received()), (0, 0));
}

#[test]
fn a_filtered_answer_is_no_success() {
    let chat = Chat::new(&["One "]).finish(Some("content_filter"));
    let far = Upstream::start(chats(move |_| chat.stream()));
    let (_setup, server) = before(&far, "");
    let told = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
    let told = json!({"inputs": told, "parameters": {"max_new_tokens": 8}});
    let refused = server.post("/generate", &told);
    assert_eq!(refused.status, 424, "{refused:?}");
    assert!(sentence(&refused).contains("content filter"), "{refused:?}");
    let streamed = server.post("/generate_stream", &told);
    assert!(
        !streamed.body.contains("generated_text\":\""),
        "{streamed:?}"
    );
    assert!(streamed.body.contains("\"error\""), "{streamed:?}");
    assert_eq!(asked(&far), 2);
}

#[test]
fn a_connection_that_is_closed_behind_its_answer_costs_nobody_an_answer() {
    let far = Upstream::start(chats(|request| {
        Reply::chat_for(request, &["Here."]).then_close()
    }));
    let (_setup, server) = before(&far, "");
    for i in 0..100 {
        let answer = server.post(CHAT, &to("default", &format!("Number {i}?")));
        assert_eq!(content(&answer), "Here.", "{i}");
    }
    assert_eq!(asked(&far), 100);
}

#[test]
fn connections_are_used_again() {
    let far = willing(&["Here."]);
    let (_setup, server) = before(&far, "");
    for i in 0..20 {
        let answer = server.post(CHAT, &to("default", &format!("Number {i}?")));
        assert_eq!(content(&answer), "Here.", "{i}");
    }
    assert!(far.connections().len() < 10, "{}", far.connections().len());
}
