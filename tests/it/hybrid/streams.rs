//! Streams tell the truth: what was shown stays a prefix of what was said, a broken answer ends in an error, and
//! nobody goes on writing for a reader who is gone.

use std::io::Read;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};

use super::Setup;
use super::far::{
    ANYWHERE, BRISK, CHAT, MS, PATIENT, asked, chats, content, model, own, post_with, sentence,
    streaming, to, willing,
};
use crate::support::server::Server;
use crate::support::upstream::{Chat, Reply, Request, Upstream};
use crate::support::{eventually, pause, wire};

const STREAM: &str = "/generate_stream";

/// A server that only forwards to this upstream, with more settings.
fn before(far: &Upstream, kind: &str, more: &str) -> (Setup, Server) {
    let setup = Setup::new()
        .add(ANYWHERE)
        .add(BRISK)
        .add(more)
        .add(&own("far", kind, &far.url()))
        .add(&model("default", false, "\"far\""))
        .policy("remote-only");
    let server = setup.serve();
    (setup, server)
}

/// What a caller has seen of a stream.
#[derive(Debug, Default)]
struct Seen {
    text: String,
    /// Why the answer ended, if it said so.
    finish: Option<String>,
    /// The sentence of the error that ended it.
    error: Option<String>,
    done: bool,
}

/// Reads a stream of OpenAI's or TGI's dialect; nothing may follow an error but `[DONE]`.
#[track_caller]
fn seen(body: &str) -> Seen {
    let mut seen = Seen::default();
    for frame in body.split_terminator("\n\n") {
        if frame.starts_with(':') {
            continue;
        }
        let data = frame.strip_prefix("data:");
        let data = data
            .unwrap_or_else(|| panic!("{frame:?} in {body:?}"))
            .trim_start();
        if data == "[DONE]" {
            seen.done = true;
            continue;
        }
        assert!(
            !seen.done && seen.error.is_none(),
            "more after the end: {body:?}"
        );
        let event: Json = serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data:?}"));
        let error = &event["error"];
        if let Some(text) = error.as_str().or_else(|| error["message"].as_str()) {
            seen.error = Some(text.to_owned());
            continue;
        }
        if let Some(token) = event.get("token") {
            seen.text += token["text"].as_str().expect("a token's text");
            if let Some(whole) = event["generated_text"].as_str() {
                assert_eq!(whole, seen.text, "the whole is what was shown");
                seen.finish = Some("generated_text".to_owned());
            }
            continue;
        }
        for choice in event["choices"].as_array().expect("choices") {
            seen.text += choice["delta"]["content"].as_str().unwrap_or_default();
            if let Some(finish) = choice["finish_reason"].as_str() {
                seen.finish = Some(finish.to_owned());
            }
        }
    }
    seen
}

/// Words with characters of one to four bytes.
const WORDS: [&str; 6] = ["Grün", "e Äpfel, ", "日本", " \"quoted\" ", "🦀", " end."];

/// The number that a request names.
fn number(request: &Request) -> usize {
    let text = String::from_utf8_lossy(&request.body);
    let digits = text.split("cut ").nth(1).expect("a number");
    let end = digits.find(|c: char| !c.is_ascii_digit());
    digits[..end.expect("more text")].parse().expect("a number")
}

/// How an upstream's body is cut.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Cut {
    /// Its end is told as if that were all.
    Well,
    /// The connection ends where there was no length.
    Closed,
    /// The connection ends within a chunked body.
    Within,
    /// The same by a reset.
    Reset,
}

impl Cut {
    const ALL: [Self; 4] = [Self::Well, Self::Closed, Self::Within, Self::Reset];

    fn of(self, whole: &Reply, byte: usize) -> Reply {
        let pieces = usize::from(byte > 0);
        let reply = whole.clone().split_at(byte);
        match self {
            Self::Well => reply.end_after(pieces),
            Self::Closed => reply.until_close().end_after(pieces),
            Self::Within => reply.close_after(pieces),
            Self::Reset => reply.reset_after(pieces),
        }
    }
}

/// Cuts an answer at every byte, in every way; with `finished` bytes of it, its finish is told.
fn cut_everywhere(
    kind: &str,
    path: &'static str,
    whole: Reply,
    body: impl Fn(usize) -> Json,
    finished: usize,
) {
    let bytes = whole.body_bytes();
    let truth: String = WORDS.concat();
    for cut in Cut::ALL {
        let reply = whole.clone();
        let sent = Arc::new(AtomicUsize::new(0));
        let far = Upstream::start(chats({
            let sent = sent.clone();
            move |request| {
                sent.fetch_add(1, Ordering::SeqCst);
                cut.of(&reply, number(request))
            }
        }));
        let more = format!("{PATIENT}[remote.adaptive]\nstart = 64\nmin = 64\n");
        let (_setup, server) = before(&far, kind, &more);
        // A reset is dear, and says no more than a close within.
        let step = if cut == Cut::Reset { 5 } else { 1 };
        for byte in (0..=bytes).step_by(step) {
            sent.store(0, Ordering::SeqCst);
            let answer = server.post(path, &body(byte));
            assert_eq!(answer.status, 200, "{cut:?} {byte}: {answer:?}");
            let seen = seen(&answer.body);
            let about = || format!("{cut:?} at {byte} of {bytes}: {seen:?}");
            assert!(truth.starts_with(&seen.text), "{}", about());
            assert!(seen.finish.is_some() != seen.error.is_some(), "{}", about());
            if path == CHAT {
                assert!(seen.done, "{}", about());
            }
            if seen.finish.is_some() {
                assert!(byte >= finished, "{}", about());
                assert_eq!(seen.text, truth, "{}", about());
            } else {
                assert!(
                    byte < finished || matches!(cut, Cut::Within | Cut::Reset),
                    "{}",
                    about()
                );
                assert!(
                    byte < bytes || cut == Cut::Within || cut == Cut::Reset,
                    "{}",
                    about()
                );
            }
            if !seen.text.is_empty() {
                assert_eq!(sent.load(Ordering::SeqCst), 1, "nothing again: {}", about());
            }
        }
    }
}

/// Bytes of a reply's events up to the end of the JSON that tells the finish.
fn finished_at(events: &[String], finish: &str) -> usize {
    let place = events.iter().position(|event| event.contains(finish));
    let place = place.expect("a finish");
    let before: usize = events[..place].iter().map(String::len).sum();
    before + events[place].trim_end().len()
}

#[test]
fn a_chat_that_is_cut_at_any_byte_is_a_prefix_and_an_error() {
    let chunk = |delta: Json, finish: Json| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": finish});
        format!("data: {}\n\n", json!({"id": "c", "choices": [choice]}))
    };
    let mut events: Vec<String> = WORDS
        .iter()
        .map(|word| chunk(json!({"content": word}), Json::Null))
        .collect();
    events.push(chunk(json!({}), "stop".into()));
    events.push("data: [DONE]\n\n".to_owned());
    let finished = finished_at(&events, "\"stop\"");
    let body = |byte| streaming("default", &format!("cut {byte} here"));
    cut_everywhere(
        "openai_compat",
        CHAT,
        Reply::events(&events),
        body,
        finished,
    );
}

#[test]
fn a_stream_of_tgi_that_is_cut_at_any_byte_is_a_prefix_and_an_error() {
    let whole = Reply::generate_stream(&WORDS);
    // The last event alone has a finish, and it needs no blank line behind it.
    let finished = whole.body_bytes() - 2;
    let body =
        |byte| json!({"inputs": format!("cut {byte} here"), "parameters": {"max_new_tokens": 32}});
    cut_everywhere("tgi", STREAM, whole, body, finished);
}

#[test]
fn a_finish_without_done_is_a_whole_answer() {
    let far = Upstream::start(chats(|request| {
        Chat::new(&["All ", "of it."])
            .without_done()
            .stream()
            .header("x-nth", &request.nth.to_string())
    }));
    let (_setup, server) = before(&far, "openai_compat", "");
    let answer = server.post(CHAT, &streaming("default", "Well?"));
    let told = seen(&answer.body);
    assert_eq!(
        (told.text.as_str(), told.finish.as_deref()),
        ("All of it.", Some("stop"))
    );
    assert_eq!(
        content(&server.post(CHAT, &to("default", "And?"))),
        "All of it."
    );
    assert_eq!(asked(&far), 2);
}

/// An upstream that breaks off after two words, and one that would answer.
fn torn() -> (Upstream, Upstream) {
    let torn = Upstream::start(chats(|_| {
        Reply::chat(&["Half ", "an ", "answer."]).reset_after(2)
    }));
    (torn, willing(&["A whole ", "answer."]))
}

#[test]
fn nothing_starts_anew_behind_what_was_shown() {
    for (path, body) in [
        (CHAT, streaming("default", "Well?")),
        (
            STREAM,
            json!({"inputs": "<|im_start|>user\nWell?<|im_end|>\n<|im_start|>assistant\n", "parameters": {"max_new_tokens": 8}}),
        ),
    ] {
        let (torn, spare) = torn();
        let setup = Setup::new()
            .add(ANYWHERE)
            .add(BRISK)
            .add(&own("torn", "openai_compat", &torn.url()))
            .add(&own("spare", "openai_compat", &spare.url()))
            .add(&model("default", true, "\"torn\", \"spare\""))
            .policy("prefer-remote");
        let server = setup.serve();
        let answer = server.post(path, &body);
        let seen = seen(&answer.body);
        assert_eq!(seen.text, "Half an ", "{path}: {answer:?}");
        assert_eq!(seen.finish, None);
        assert!(seen.error.is_some(), "{answer:?}");
        assert_eq!((asked(&torn), asked(&spare)), (1, 0));
        if path == STREAM {
            assert!(
                answer
                    .body
                    .contains("\"error_type\":\"incomplete_generation_stream\""),
                "{answer:?}"
            );
        } else {
            assert!(seen.done);
        }
    }
}

#[test]
fn a_caller_who_gets_its_answer_whole_gets_one_from_the_next_target() {
    for path in [CHAT, "/v1/messages", "/v1/responses"] {
        let (torn, spare) = torn();
        let setup = Setup::new()
            .add(ANYWHERE)
            .add(BRISK)
            .add(&own("torn", "openai_compat", &torn.url()))
            .add(&own("spare", "openai_compat", &spare.url()))
            .add(&model("default", false, "\"torn\", \"spare\""))
            .policy("remote-only");
        let server = setup.serve();
        let body = match path {
            "/v1/responses" => json!({"input": "Well?", "max_output_tokens": 16}),
            "/v1/messages" => {
                json!({"model": "default", "max_tokens": 16, "messages": [{"role": "user", "content": "Well?"}]})
            }
            _ => to("default", "Well?"),
        };
        let answer = server.post(path, &body);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        assert!(
            answer.body.contains("A whole answer."),
            "{path}: {answer:?}"
        );
        assert!(!answer.body.contains("Half"), "{path}: {answer:?}");
        assert_eq!(answer.header("x-route-upstream"), Some("spare"));
        assert_eq!(asked(&spare), 1);
    }
}

#[test]
fn a_caller_who_gets_its_answer_whole_gets_one_from_this_machine() {
    let (torn, _spare) = torn();
    let setup = Setup::new()
        .add(ANYWHERE)
        .add(BRISK)
        .add(&own("torn", "openai_compat", &torn.url()))
        .add(&model("default", true, "\"torn\""))
        .policy("prefer-remote");
    let server = setup.serve();
    let answer = server.post(CHAT, &to("default", "What is the capital of France?"));
    assert_eq!(content(&answer), "The capital of France is Paris.");
    assert_eq!(answer.header("x-route-target"), Some("local"));
    assert_eq!(answer.header("x-route-reason"), Some("remote_unavailable"));
}

#[test]
fn an_error_within_a_stream_is_an_error_here() {
    let error = json!({"error": {"message": "words-of-the-upstream", "http_status_code": 422}});
    let far = Upstream::start(chats(move |_| {
        Reply::chat(&["One ", "two ", "three"]).error_at(2, &error)
    }));
    let (_setup, server) = before(&far, "openai_compat", "");
    let answer = server.post(CHAT, &streaming("default", "Count."));
    let seen = seen(&answer.body);
    assert_eq!(seen.text, "One two ");
    assert!(
        seen.finish.is_none() && seen.error.is_some() && seen.done,
        "{answer:?}"
    );
    assert!(!answer.body.contains("words-of"), "{answer:?}");
    assert_eq!(asked(&far), 1);
}

#[test]
fn an_error_within_a_stream_of_tgi_is_an_error_here() {
    let error = json!({"error": "words-of-the-upstream", "error_type": "generation"});
    let far = Upstream::start(chats(move |_| {
        Reply::generate_stream(&["One ", "two ", "three"]).error_at(2, &error)
    }));
    let (_setup, server) = before(&far, "tgi", "");
    let inputs = json!({"inputs": "Count.", "parameters": {"max_new_tokens": 8}});
    let answer = server.post(STREAM, &inputs);
    let seen = seen(&answer.body);
    assert_eq!(seen.text, "One two ");
    assert!(seen.finish.is_none() && seen.error.is_some(), "{answer:?}");
    assert!(!answer.body.contains("words-of"), "{answer:?}");
    let sent = asked(&far);
    assert_eq!(sent, 1);
    let refused = server.post("/generate", &inputs);
    assert!(refused.status >= 400, "{refused:?}");
    assert!(!refused.body.contains("words-of"), "{refused:?}");
}

// ---- clocks ----

const QUICK: &str = "[remote.clocks]\nleast_left_seconds = 0\nheaders_seconds = 1\nfirst_token_min_seconds = 1\nfirst_token_max_seconds = 1\nbyte_idle_seconds = 1\nprogress_idle_seconds = 1\n";

#[test]
fn silence_before_the_first_token_is_somebody_elses_turn() {
    for slow in [Reply::hang(), Reply::chat(&["x"]).hang_after(0)] {
        let far = Upstream::start(chats(move |_| slow.clone()));
        let spare = willing(&["In time."]);
        let setup = Setup::new()
            .add(ANYWHERE)
            .add(QUICK)
            .add(&own("far", "openai_compat", &far.url()))
            .add(&own("spare", "openai_compat", &spare.url()))
            .add(&model("default", false, "\"far\", \"spare\""))
            .add(&model("alone", false, "\"far\""))
            .policy("remote-only");
        let server = setup.serve();
        let answer = server.post(CHAT, &streaming("default", "Well?"));
        assert_eq!(seen(&answer.body).text, "In time.", "{answer:?}");
        assert_eq!(answer.header("x-route-attempts"), Some("2"));
        far.await_closed(&far.await_request_for_chat());
        let refused = server.post(CHAT, &to("alone", "Well, well?"));
        assert_eq!(refused.status, 424, "{refused:?}");
        assert!(sentence(&refused).contains("`far`"), "{refused:?}");
        assert_eq!(
            asked(&far),
            2,
            "a target that was too slow is not asked twice"
        );
    }
}

/// The first request for an answer.
trait FirstChat {
    fn await_request_for_chat(&self) -> Request;
}

impl FirstChat for Upstream {
    #[track_caller]
    fn await_request_for_chat(&self) -> Request {
        eventually("the upstream is asked for an answer", || {
            self.requests()
                .into_iter()
                .find(|request| request.method == "POST")
        })
    }
}

#[test]
fn comments_do_not_make_up_for_a_first_token() {
    let comments = vec![": still here\n\n"; 300];
    let far = Upstream::start(chats(move |_| Reply::events(&comments).delay_each(MS(100))));
    let (_setup, server) = before(&far, "openai_compat", QUICK);
    let refused = server.post(CHAT, &to("default", "Well?"));
    assert_eq!(refused.status, 424, "{refused:?}");
    let request = far.await_request_for_chat();
    far.await_closed(&request);
    assert!(far.requests()[request.number].pieces_sent < 300);
}

#[test]
fn an_answer_that_falls_silent_ends_in_an_error() {
    let far = Upstream::start(chats(|_| {
        Reply::chat(&["One ", "two ", "three"]).hang_after(2)
    }));
    let (_setup, server) = before(&far, "openai_compat", QUICK);
    let answer = server.post(CHAT, &streaming("default", "Count."));
    let seen = seen(&answer.body);
    assert_eq!(seen.text, "One two ");
    assert!(
        seen.finish.is_none() && seen.error.is_some() && seen.done,
        "{answer:?}"
    );
    far.await_closed(&far.await_request_for_chat());
    assert_eq!(asked(&far), 1);
}

#[test]
fn comments_do_not_keep_an_answer_alive() {
    let mut events: Vec<String> = Vec::new();
    let choice = json!({"index": 0, "delta": {"content": "One "}, "finish_reason": null});
    events.push(format!(
        "data: {}\n\n",
        json!({"id": "c", "choices": [choice]})
    ));
    events.resize(300, ": still here\n\n".to_owned());
    let far = Upstream::start(chats(move |_| Reply::events(&events).delay_each(MS(100))));
    let (_setup, server) = before(&far, "openai_compat", QUICK);
    let answer = server.post(CHAT, &streaming("default", "Count."));
    let seen = seen(&answer.body);
    assert_eq!(seen.text, "One ");
    assert!(seen.finish.is_none() && seen.error.is_some(), "{answer:?}");
    let request = far.await_request_for_chat();
    far.await_closed(&request);
    assert!(far.requests()[request.number].pieces_sent < 300);
}

#[test]
fn a_slow_answer_that_goes_on_is_no_silent_one() {
    let far = Upstream::start(chats(|_| {
        Reply::chat(&["1 ", "2 ", "3 ", "4 ", "5 ", "6"]).delay_each(MS(400))
    }));
    // Shorter than the whole answer takes.
    let clocks = QUICK.replace("idle_seconds = 1", "idle_seconds = 2");
    let (_setup, server) = before(&far, "openai_compat", &clocks);
    let answer = server.post(CHAT, &streaming("default", "Count."));
    assert_eq!(seen(&answer.body).text, "1 2 3 4 5 6", "{answer:?}");
    let answer = content(&server.post(CHAT, &to("default", "Count on.")));
    assert_eq!(answer, "1 2 3 4 5 6");
}

#[test]
fn a_deadline_before_the_first_token_is_told_as_that() {
    let far = Upstream::start(chats(|_| Reply::chat(&["x"]).hang_after(0)));
    let (_setup, server) = before(
        &far,
        "openai_compat",
        "[remote.clocks]\nleast_left_seconds = 0\n",
    );
    // Long enough for what an upstream of which nothing is known is thought to take.
    let soon = "x-route-deadline-ms: 3000\r\n";
    let asks = [
        (CHAT, to("default", "Well?")),
        (
            "/v1/completions",
            json!({"prompt": "<|im_start|>user\nWell?<|im_end|>\n<|im_start|>assistant\n", "max_tokens": 8}),
        ),
        (
            "/generate",
            json!({"inputs": "<|im_start|>user\nWell?<|im_end|>\n<|im_start|>assistant\n"}),
        ),
        ("/v1/responses", json!({"input": "Well?"})),
        (
            "/v1/messages",
            json!({"model": "default", "max_tokens": 8, "messages": [{"role": "user", "content": "Well?"}]}),
        ),
    ];
    for (path, body) in asks {
        let sent = asked(&far);
        let late = post_with(&server, path, soon, &body);
        assert_eq!(late.status, 504, "{path}: {late:?}");
        assert!(
            late.body.contains("Request deadline exceeded"),
            "{path}: {late:?}"
        );
        assert_eq!(
            late.header("x-should-retry"),
            Some("false"),
            "{path}: {late:?}"
        );
        assert_eq!(asked(&far), sent + 1, "{path}");
        let requests = far.requests();
        let mut chats = requests.iter().filter(|request| request.method == "POST");
        far.await_closed(chats.nth(sent).expect("a request"));
    }
}

#[test]
fn a_deadline_within_a_stream_is_an_event() {
    let far = Upstream::start(chats(|_| {
        Reply::chat(&["One ", "two ", "three"]).hang_after(2)
    }));
    let (_setup, server) = before(
        &far,
        "openai_compat",
        "[remote.clocks]\nleast_left_seconds = 0\n",
    );
    let answer = post_with(
        &server,
        CHAT,
        "x-route-deadline-ms: 1500\r\n",
        &streaming("default", "Count."),
    );
    let seen = seen(&answer.body);
    assert_eq!(seen.text, "One two ");
    assert_eq!(
        seen.error.as_deref(),
        Some("Request deadline exceeded"),
        "{answer:?}"
    );
    assert!(
        answer.body.contains("\"http_status_code\":504"),
        "{answer:?}"
    );
    assert!(seen.finish.is_none() && seen.done);
    far.await_closed(&far.await_request_for_chat());
    assert_eq!(asked(&far), 1);
}

// ---- readers ----

/// What leaves with each route's caller.
fn routes() -> Vec<(&'static str, Json)> {
    let told = "<|im_start|>user\nWell?<|im_end|>\n<|im_start|>assistant\n";
    let mut response = json!({"input": "Well?"});
    let mut message = json!({"model": "default", "max_tokens": 8, "messages": [{"role": "user", "content": "Well?"}]});
    let mut completion = json!({"prompt": told, "max_tokens": 8});
    let mut routes = vec![
        (CHAT, to("default", "Well?")),
        (CHAT, streaming("default", "Well, well?")),
        ("/generate", json!({"inputs": told})),
        (STREAM, json!({"inputs": told})),
        ("/v1/responses", response.clone()),
        ("/v1/messages", message.clone()),
        ("/v1/completions", completion.clone()),
    ];
    for body in [&mut response, &mut message, &mut completion] {
        body["stream"] = true.into();
    }
    routes.push(("/v1/responses", response));
    routes.push(("/v1/messages", message));
    routes.push(("/v1/completions", completion));
    routes
}

#[test]
fn an_upstream_is_let_go_when_the_caller_is_gone() {
    let begun = || Reply::chat(&["One ", "two ", "three"]);
    for (reply, pieces) in [
        (Reply::hang(), 0),
        (begun().hang_after(0), 0),
        (begun().hang_after(2), 2),
    ] {
        let far = Upstream::start(chats(move |_| reply.clone()));
        let (_setup, server) = before(&far, "openai_compat", PATIENT);
        for (path, body) in routes() {
            let number = asked(&far);
            let stream = wire::send(server.address(), &wire::post(path, "", &body.to_string()));
            let request = eventually("the upstream is asked", || {
                let requests = far.requests().into_iter();
                let chats = requests.filter(|request| request.method == "POST");
                chats
                    .skip(number)
                    .find(|request| request.pieces_sent >= pieces)
            });
            let left = Instant::now();
            // Both directions, as a client's process does when it ends.
            stream.shutdown(Shutdown::Both).expect("a connection");
            drop(stream);
            let closed = far.await_closed(&request);
            let took = closed.saturating_duration_since(left);
            assert!(took < Duration::from_secs(5), "{path}: {took:?}");
            assert_eq!(asked(&far), number + 1, "{path}: nothing again");
        }
    }
}

#[test]
fn callers_that_leave_open_no_breaker() {
    let leave = Arc::new(AtomicUsize::new(1));
    let far = Upstream::start(chats({
        let leave = leave.clone();
        move |request| match leave.load(Ordering::SeqCst) {
            1 => Reply::chat(&["One "]).hang_after(0),
            _ => Reply::chat_for(request, &["Here."]),
        }
    }));
    let (_setup, server) = before(&far, "openai_compat", "");
    for i in 0..12 {
        let body = to("default", &format!("Well {i}?")).to_string();
        let stream = wire::send(server.address(), &wire::post(CHAT, "", &body));
        let request = eventually("the upstream is asked", || {
            let mut chats = far.requests().into_iter().filter(|r| r.method == "POST");
            chats.nth(i)
        });
        drop(stream);
        far.await_closed(&request);
    }
    leave.store(0, Ordering::SeqCst);
    assert_eq!(
        content(&server.post(CHAT, &to("default", "Well?"))),
        "Here."
    );
}

#[test]
fn a_slow_reader_holds_its_upstream_back() {
    const EVENTS: usize = 3000;
    let word = "x".repeat(16 << 10);
    let far = Upstream::start(chats(move |_| Reply::chat(&vec![word.as_str(); EVENTS])));
    let (_setup, server) = before(&far, "openai_compat", "");
    let body = streaming("default", "All of it.").to_string();
    let stream: TcpStream = wire::send(server.address(), &wire::post(CHAT, "", &body));
    let request = far.await_request_for_chat();
    let sent = || far.requests()[request.number].pieces_sent;
    // Nobody reads: what is under way comes to rest.
    let mut last = 0;
    eventually("the upstream comes to rest", || {
        pause(MS(500));
        let now = sent();
        (std::mem::replace(&mut last, now) == now && now > 0).then_some(())
    });
    assert!(last < EVENTS, "the upstream has to wait: {last}");
    let kib = server.resident_kib();
    let answer = wire::receive(stream);
    let seen = seen(&answer.body);
    assert_eq!(seen.text.len(), EVENTS * (16 << 10));
    assert!(seen.done && seen.error.is_none() && seen.finish.is_some());
    assert!(kib < 600 << 10, "{kib} KiB");
}

#[test]
fn a_slow_reader_who_gives_up_frees_its_upstream() {
    let word = "x".repeat(16 << 10);
    let far = Upstream::start(chats(move |_| Reply::chat(&vec![word.as_str(); 3000])));
    let (_setup, server) = before(&far, "openai_compat", "");
    let body = streaming("default", "All of it.").to_string();
    let mut stream = wire::send(server.address(), &wire::post(CHAT, "", &body));
    let request = far.await_request_for_chat();
    let mut some = [0; 4096];
    stream.read_exact(&mut some).expect("the beginning");
    drop(stream);
    far.await_closed(&request);
    assert!(far.requests()[request.number].pieces_sent < 3000);
}
