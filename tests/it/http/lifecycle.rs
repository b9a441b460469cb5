//! Requests that do not end as planned: full servers, callers that leave, deadlines, and the server's own end.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;

use serde_json::{Value as Json, json};

use crate::support::models::Copy;
use crate::support::server::{Sconce, Server};
use crate::support::{eventually, wire};

/// A server whose answers go on until someone ends them.
struct Endless {
    server: Server,
    _model: Copy,
}

impl Endless {
    fn start(setup: impl FnOnce(Sconce) -> Sconce) -> Self {
        let model = Copy::endless();
        let sconce = Sconce::new()
            .flag("--model-id", &model.path().display().to_string())
            .flag("--max-total-tokens", "131072")
            .flag("--max-batch-total-tokens", "262144");
        Self {
            server: setup(sconce).serve(),
            _model: model,
        }
    }

    fn assert_idle(&self) {
        let all = self.server.metric("sconce_kv_blocks");
        self.server
            .await_metric("sconce_kv_blocks_free", |free| free == all);
        self.server
            .await_metric("tgi_batch_current_size", |size| size == 0.0);
        self.server
            .await_metric("tgi_queue_size", |size| size == 0.0);
    }
}

fn long() -> Json {
    json!({"inputs": "a", "parameters": {}})
}

const OVERLOADED: &str = r#"{"error":"Model is overloaded","error_type":"overloaded"}"#;
const TIMEOUT: &str = r#"{"error":"Request deadline exceeded","error_type":"timeout"}"#;
const DROPPED: &str = "tgi_request_failure{err=\"dropped\"}";

#[test]
fn a_full_server_refuses_at_once_and_recovers() {
    let endless = Endless::start(|sconce| sconce.env("MAX_CONCURRENT_REQUESTS", "1"));
    let server = &endless.server;
    let mut running = server.stream("/generate_stream", &long());
    assert!(running.next_event().is_some());
    for path in ["/generate", "/"] {
        let refused = server.post(path, &long());
        assert_eq!((refused.status, refused.body.as_str()), (429, OVERLOADED));
        let wait: u64 = refused
            .header("retry-after")
            .expect("present")
            .parse()
            .expect("whole seconds");
        assert!((1..=60).contains(&wait), "{wait}");
    }
    let refused = server.post("/generate_stream", &long());
    assert_eq!(
        (refused.status, refused.body),
        (200, format!("data: {OVERLOADED}\n\n"))
    );
    let invalid = server.post("/generate", &json!({"inputs": ""}));
    assert_eq!(invalid.status, 429, "a full server checks nothing");
    for path in ["/health", "/info", "/metrics"] {
        assert_eq!(server.get(path).status, 200, "{path} takes no permit");
    }
    assert_eq!(
        server.post("/tokenize", &long()).status,
        200,
        "tokenize takes no permit"
    );
    assert_eq!(
        server.metric("tgi_request_failure{err=\"overloaded\"}"),
        4.0
    );
    drop(running);
    let short = json!({"inputs": "a", "parameters": {"max_new_tokens": 1}});
    eventually("the permit is free again", || {
        (server.post("/generate", &short).status == 200).then_some(())
    });
}

#[test]
fn best_of_takes_a_permit_for_each_answer() {
    let server = Sconce::tiny("llama-tied")
        .flag("--max-concurrent-requests", "1")
        .serve();
    let body = json!({"inputs": "a", "parameters": {"best_of": 2, "do_sample": true, "max_new_tokens": 2}});
    let reply = server.post("/generate", &body);
    assert_eq!((reply.status, reply.body.as_str()), (429, OVERLOADED));
}

#[test]
fn a_caller_that_leaves_a_stream_frees_its_blocks() {
    let endless = Endless::start(|sconce| sconce);
    let server = &endless.server;
    let mut stream = server.stream("/generate_stream", &long());
    for _ in 0..20 {
        assert!(stream.next_event().is_some());
    }
    assert!(server.metric("sconce_kv_blocks_free") < server.metric("sconce_kv_blocks"));
    assert_eq!(server.metric(DROPPED), 0.0);
    drop(stream);
    endless.assert_idle();
    server.await_metric(DROPPED, |dropped| dropped == 1.0);
    assert_eq!(server.metric("tgi_request_success"), 0.0);
}

#[test]
fn a_caller_that_leaves_a_collected_answer_frees_its_blocks() {
    let endless = Endless::start(|sconce| sconce);
    let server = &endless.server;
    let connection = wire::send(
        server.address(),
        &wire::post("/generate", "", &long().to_string()),
    );
    let all = server.metric("sconce_kv_blocks");
    server.await_metric("sconce_kv_blocks_free", |free| free < all);
    drop(connection);
    endless.assert_idle();
    server.await_metric(DROPPED, |dropped| dropped == 1.0);
}

#[test]
fn a_caller_that_leaves_the_waiting_line_is_forgotten() {
    let endless = Endless::start(|sconce| sconce.flag("--max-batch-size", "1"));
    let server = &endless.server;
    let mut running = server.stream("/generate_stream", &long());
    assert!(running.next_event().is_some());
    let waiting = wire::send(
        server.address(),
        &wire::post("/generate", "", &long().to_string()),
    );
    server.await_metric("tgi_queue_size", |size| size == 1.0);
    drop(waiting);
    server.await_metric("tgi_queue_size", |size| size == 0.0);
    server.await_metric(DROPPED, |dropped| dropped == 1.0);
    assert_eq!(
        server.metric("tgi_batch_next_size_sum"),
        1.0,
        "it never ran"
    );
    assert!(running.next_event().is_some(), "the other goes on");
    drop(running);
    endless.assert_idle();
}

#[test]
fn a_deadline_ends_a_collected_answer_with_504() {
    let endless = Endless::start(|sconce| sconce);
    let server = &endless.server;
    let reply = server.send(&wire::post(
        "/generate",
        "x-route-deadline-ms: 1\r\n",
        &long().to_string(),
    ));
    assert_eq!((reply.status, reply.body.as_str()), (504, TIMEOUT));
    assert_eq!(reply.header("x-should-retry"), Some("false"));
    endless.assert_idle();
    assert_eq!(server.metric("tgi_request_failure{err=\"timeout\"}"), 1.0);
    assert_eq!(server.metric(DROPPED), 0.0);
    let unread = server.send(&wire::post(
        "/generate",
        "x-route-deadline-ms: soon\r\n",
        &long().to_string(),
    ));
    assert_eq!(unread.status, 422);
}

#[test]
fn a_deadline_ends_a_stream_with_an_error_event() {
    let endless = Endless::start(|sconce| sconce);
    let ask = wire::post(
        "/generate_stream",
        "x-route-deadline-ms: 300\r\n",
        &long().to_string(),
    );
    let reply = endless.server.send(&ask);
    assert_eq!(reply.status, 200);
    assert!(
        reply.body.ends_with(&format!("data: {TIMEOUT}\n\n")),
        "{:?}",
        reply.body
    );
    let events = reply.events();
    assert!(events.iter().all(|event| event["generated_text"].is_null()));
    endless.assert_idle();
}

#[test]
fn the_operators_deadline_holds_without_a_header() {
    let endless = Endless::start(|sconce| sconce.flag("--max-request-seconds", "1"));
    let ask = |extra: &str| wire::post("/generate", extra, &long().to_string());
    let reply = endless.server.send(&ask(""));
    assert_eq!((reply.status, reply.body.as_str()), (504, TIMEOUT));
    let longer = endless
        .server
        .send(&ask("x-route-deadline-ms: 86400000\r\n"));
    assert_eq!(longer.status, 504, "a caller can only shorten it");
}

#[test]
fn a_reader_that_stalls_loses_its_place_at_the_deadline() {
    let endless = Endless::start(|sconce| {
        sconce
            .flag("--max-request-seconds", "3")
            .flag("--max-concurrent-requests", "1")
            .flag("--max-top-n-tokens", "300")
    });
    let server = &endless.server;
    // Events of 20 KB, so that soon the sockets hold all they can for a reader that never comes.
    let parameters = json!({"max_new_tokens": 8192, "top_n_tokens": 300});
    let wide = json!({"inputs": "a", "parameters": parameters}).to_string();
    let _stalled = wire::send(server.address(), &wire::post("/generate_stream", "", &wide));
    server.await_metric("tgi_batch_current_size", |size| size == 1.0);
    let short = json!({"inputs": "a", "parameters": {"max_new_tokens": 1}});
    eventually("the permit is free again", || {
        (server.post("/generate", &short).status == 200).then_some(())
    });
    endless.assert_idle();
}

#[test]
fn on_sigterm_running_answers_finish_and_no_new_ones_begin() {
    const TOKENS: usize = 3000;
    // Heads and bodies may take their time, so only a drain that looks at what runs ends before the test
    // does.
    let mut endless = Endless::start(|sconce| {
        sconce
            .flag("--header-read-seconds", "600")
            .flag("--body-read-seconds", "600")
    });
    let server = &mut endless.server;
    let parameters = json!({"max_new_tokens": TOKENS, "details": true});
    let streams: Vec<_> = (0..4)
        .map(|i| {
            server.stream(
                "/generate_stream",
                &json!({"inputs": format!("{i}"), "parameters": parameters}),
            )
        })
        .collect();
    let collected = wire::send(
        server.address(),
        &wire::post(
            "/generate",
            "",
            &json!({"inputs": "c", "parameters": parameters}).to_string(),
        ),
    );
    let started: Vec<_> = streams
        .into_iter()
        .map(|mut stream| (stream.next_event().expect("a first event"), stream))
        .collect();
    server.await_metric("tgi_request_count", |count| count == 5.0);
    let _idle = TcpStream::connect(server.address()).expect("the server listens");
    let whole = wire::post("/generate", "", &long().to_string());
    let _half_a_head = wire::send(server.address(), &whole[..20]);
    let _half_a_body = wire::send(server.address(), &whole[..whole.len() - 5]);
    server.terminate();
    let address = server.address();
    eventually("new connections are refused", || {
        TcpStream::connect(address).is_err().then_some(())
    });
    for (_, stream) in started {
        let events = stream.events();
        let last = events.last().expect("events");
        assert!(last["generated_text"].is_string(), "{last}");
        assert_eq!(last["index"], TOKENS);
        assert_eq!(last["details"]["generated_tokens"], TOKENS);
    }
    assert_eq!(
        wire::receive(collected).ok()["details"]["generated_tokens"],
        TOKENS
    );
    assert_eq!(server.wait().code(), Some(0));
    assert!(!server.log().contains("ERROR"), "{}", server.log());
}

#[test]
fn the_drain_ends_when_its_time_is_up() {
    let mut endless = Endless::start(|sconce| sconce.flag("--graceful-termination-timeout", "1"));
    let server = &mut endless.server;
    let mut stream = server.stream("/generate_stream", &long());
    assert!(stream.next_event().is_some());
    server.terminate();
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn a_second_signal_ends_the_drain() {
    let mut endless = Endless::start(|sconce| sconce);
    let server = &mut endless.server;
    let mut stream = server.stream("/generate_stream", &long());
    assert!(stream.next_event().is_some());
    server.terminate();
    let address = server.address();
    eventually("new connections are refused", || {
        TcpStream::connect(address).is_err().then_some(())
    });
    server.terminate();
    assert_eq!(server.wait().code(), Some(0));
}

/// Sends the beginning of a request and asserts that the server closes the connection without an answer
/// of success.
fn assert_not_waited_for(server: &Server, beginning: &str) {
    let mut connection = wire::send(server.address(), beginning);
    let mut rest = Vec::new();
    if let Err(error) = connection.read_to_end(&mut rest) {
        assert_eq!(
            error.kind(),
            ErrorKind::ConnectionReset,
            "still open: {error}"
        );
    }
    assert!(!String::from_utf8_lossy(&rest).contains("200 OK"));
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_head_that_never_ends_is_not_waited_for() {
    let server = Sconce::new().flag("--header-read-seconds", "1").serve();
    assert_not_waited_for(&server, "GET /info HTTP/1.1\r\nhost: t");
}

#[test]
fn a_body_that_never_ends_is_not_waited_for() {
    let server = Sconce::new()
        .flag("--header-read-seconds", "1")
        .flag("--max-request-seconds", "1")
        .serve();
    let whole = wire::post("/generate", "", &long().to_string());
    assert_not_waited_for(&server, &whole[..whole.len() - 5]);
}

#[test]
fn a_connection_serves_one_request_after_another() {
    let server = Sconce::tiny("llama-tied").serve();
    let body = json!({"inputs": "a", "parameters": {"max_new_tokens": 2}}).to_string();
    let twice = format!(
        "POST /generate HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}{}",
        body.len(),
        wire::get("/health"),
    );
    let mut connection = wire::send(server.address(), &twice);
    let mut answers = String::new();
    connection
        .read_to_string(&mut answers)
        .expect("both answers");
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
}
