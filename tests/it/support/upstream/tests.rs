//! That the scripted upstream does as it is told, and sees what is sent to it.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value as Json, json};

use super::*;
use crate::support::{PATIENCE, wire};

const MS: fn(u64) -> Duration = Duration::from_millis;

/// Sends a chat and gives the connection.
fn ask(upstream: &Upstream, extra: &str, body: &Json) -> TcpStream {
    let request = wire::post("/v1/chat/completions", extra, &body.to_string());
    wire::send(upstream.address(), &request)
}

/// All bytes until the end of the connection, and the error that ended it.
fn drain(mut stream: impl Read) -> (String, Option<ErrorKind>) {
    let (mut bytes, mut buffer) = (Vec::new(), [0; 4096]);
    let end = loop {
        match stream.read(&mut buffer) {
            Ok(0) => break None,
            Ok(n) => bytes.extend(&buffer[..n]),
            Err(e) => break Some(e.kind()),
        }
    };
    (String::from_utf8_lossy(&bytes).into_owned(), end)
}

/// The answer of an upstream that gives always this.
fn answer(reply: Reply) -> wire::Reply {
    let upstream = Upstream::start(move |_| reply.clone());
    wire::receive(ask(&upstream, "", &json!({"stream": true})))
}

/// The bytes of a reply after which the connection ends.
fn broken(reply: Reply) -> (String, Option<ErrorKind>) {
    let upstream = Upstream::start(move |_| reply.clone());
    drain(ask(&upstream, "", &json!({"stream": true})))
}

fn text_of(chunks: &[Json]) -> String {
    let deltas = chunks.iter().map(|c| &c["choices"][0]["delta"]["content"]);
    deltas.filter_map(Json::as_str).collect()
}

#[test]
fn a_chat_comes_as_a_stream_or_as_an_object() {
    let upstream = Upstream::start(|request| Reply::chat_for(request, &["Hel", "lo"]));
    let streamed = wire::receive(ask(&upstream, "", &json!({"stream": true}))).chunks();
    assert_eq!(text_of(&streamed), "Hello");
    assert_eq!(streamed[2]["choices"][0]["finish_reason"], "stop");
    assert_eq!(streamed[3]["choices"], json!([]));
    assert_eq!(streamed[3]["usage"]["total_tokens"], 9);
    let whole = wire::receive(ask(&upstream, "", &json!({}))).ok();
    assert_eq!(whole["choices"][0]["message"]["content"], "Hello");
    assert_eq!(whole["usage"]["completion_tokens"], 2);
}

#[test]
fn everything_that_comes_is_kept_byte_for_byte() {
    let upstream = Upstream::start(|_| Reply::json(200, &json!({})));
    assert_eq!(upstream.bytes_received(), 0);
    let mut stream = TcpStream::connect(upstream.address()).expect("it listens");
    let first = "POST /a?b=c HTTP/1.1\r\nHost: x\r\nX-Odd:  Value \r\nContent-Length: 2\r\n\r\n{}";
    let second = "POST /a?b=c HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3\r\n{\"a\r\n4\r\n\":1}\r\n0\r\n\r\n";
    // The second comes before the first is answered, and in two parts.
    let (early, late) = second.split_at(70);
    stream
        .write_all((first.to_owned() + early).as_bytes())
        .expect("it reads");
    upstream.await_request(0);
    stream.write_all(late.as_bytes()).expect("it reads");
    let request = upstream.await_request(1);
    assert_eq!((request.number, request.nth, request.connection), (1, 1, 0));
    assert_eq!(request.json(), json!({"a": 1}));
    let [first_seen, _] = &upstream.requests_for("/a?b=c")[..] else {
        panic!("{:?}", upstream.requests());
    };
    assert_eq!(
        (&*first_seen.method, &*first_seen.body),
        ("POST", &b"{}"[..])
    );
    let odd = ("X-Odd".to_owned(), "Value".to_owned());
    assert!(first_seen.headers.contains(&odd), "{first_seen:?}");
    let connections = upstream.connections();
    assert_eq!(connections.len(), 1);
    let both = first.to_owned() + second;
    assert_eq!(String::from_utf8_lossy(&connections[0].received), both);
    assert_eq!(upstream.bytes_received(), both.len());
    assert_eq!(connections[0].closed, None);
    assert!(connections[0].opened <= first_seen.at && first_seen.at <= request.at);
}

#[test]
fn a_peer_that_leaves_is_seen_while_the_reply_waits() {
    let slow = || Reply::chat(&["a", "b", "c"]).delay_each(PATIENCE);
    let upstream = Upstream::start(move |_| slow());
    let mut stream = ask(&upstream, "", &json!({"stream": true}));
    let request = upstream.await_request(0);
    eventually("the first piece", || {
        (upstream.requests()[0].pieces_sent == 1).then_some(())
    });
    stream.read_exact(&mut [0; 8]).expect("a head");
    let left = Instant::now();
    drop(stream);
    let closed = upstream.await_closed(&request);
    assert!(
        closed >= left && closed - left < MS(100),
        "{:?}",
        closed - left
    );
    assert_eq!(upstream.requests()[0].pieces_sent, 1);
}

#[test]
fn waits_come_before_the_head_the_first_piece_and_each_other() {
    let began = Instant::now();
    let reply = Reply::chat(&["a", "b"])
        .delay_head(MS(30))
        .delay_first(MS(30))
        .delay_each(MS(10));
    assert_eq!(text_of(&answer(reply.clone()).chunks()), "ab");
    // Two texts, a finish, a usage and the end: four waits of the last kind.
    assert!(began.elapsed() >= MS(100), "{:?}", began.elapsed());
    // Cutting moves no wait out of the body.
    let began = Instant::now();
    assert_eq!(text_of(&answer(reply.split_every(7)).chunks()), "ab");
    assert!(began.elapsed() >= MS(100), "{:?}", began.elapsed());
}

#[test]
fn bodies_are_cut_at_any_byte() {
    let whole = answer(Reply::chat(&["é", "→"])).body;
    let bytes = Reply::chat(&["é", "→"]).body_bytes();
    assert_eq!(bytes, whole.len());
    for at in 0..=bytes {
        let (raw, end) = broken(Reply::chat(&["é", "→"]).split_at(at).then_close());
        assert_eq!(end, None);
        let pieces = if at == 0 || at == bytes { 1 } else { 2 };
        // Each chunk has two line ends of its own; the last one's size is zero.
        let lines = raw.split("\r\n\r\n").nth(1).expect("a body");
        assert_eq!(lines.matches("\r\n").count(), pieces * 2, "{raw}");
    }
    let reply = answer(Reply::chat(&["a", "b"]).crlf());
    assert_eq!(reply.body.matches("\r\n\r\n").count(), 5);
    assert_eq!(reply.body.replace("\r\n", "\n").matches("\n\n").count(), 5);
}

#[test]
fn streams_end_in_every_wrong_way() {
    let chat = || Reply::chat(&["a", "b"]);
    let usage_less = Chat::new(&["a"]).usage_at(UsageAt::Never).finish(None);
    let reply = answer(usage_less.without_done().stream());
    assert_eq!(reply.body.matches("data: ").count(), 1);

    let reply = answer(chat().error_at(1, &json!({"error": {"message": "out"}})));
    assert!(
        reply
            .body
            .ends_with("data: {\"error\":{\"message\":\"out\"}}\n\n")
    );
    assert_eq!(reply.body.matches("data: ").count(), 2);

    let reply = answer(chat().end_after(1));
    assert_eq!(reply.body.matches("data: ").count(), 1);

    let (raw, end) = broken(chat().close_after(1));
    assert!(end.is_none() && !raw.contains("\r\n0\r\n"), "{end:?} {raw}");
    let (raw, end) = broken(chat().reset_after(1));
    assert_eq!(end, Some(ErrorKind::ConnectionReset), "{raw}");
    let (raw, end) = broken(chat().until_close());
    assert!(end.is_none() && raw.ends_with("data: [DONE]\n\n"), "{raw}");

    let reply = answer(Reply::events(&[": wait\n\n", ":\n\n"]).insert(1, "data: 1\n\n"));
    assert_eq!(reply.body, ": wait\n\ndata: 1\n\n:\n\n");
}

#[test]
fn a_silent_upstream_keeps_the_connection() {
    for reply in [Reply::hang(), Reply::chat(&["a"]).hang_after(1)] {
        let upstream = Upstream::start(move |_| reply.clone());
        let stream = ask(&upstream, "", &json!({"stream": true}));
        stream.set_read_timeout(Some(MS(50))).expect("above zero");
        let (_, end) = drain(&stream);
        assert_eq!(end, Some(ErrorKind::WouldBlock));
        let request = upstream.await_request(0);
        drop(stream);
        upstream.await_closed(&request);
    }
}

#[test]
fn heads_break_off_and_bodies_fall_short() {
    let (raw, end) = broken(Reply::json(200, &json!({})).close_mid_head(12));
    assert_eq!((&*raw, end), ("HTTP/1.1 200", None));
    assert_eq!(broken(Reply::close()), (String::new(), None));
    let reset = Some(ErrorKind::ConnectionReset);
    assert_eq!(broken(Reply::reset()), (String::new(), reset));
    let (raw, _) = broken(Reply::json(200, &json!([1])).close_after(0));
    assert!(raw.contains("content-length: 3\r\n") && raw.ends_with("\r\n\r\n"));
}

#[test]
fn refusals_carry_their_hints() {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
    let limited = Reply::json(429, &json!({"error": "slow down"}))
        .retry_at(now, Duration::from_secs(60))
        .rate_limit(1000, 0, 42)
        .provider("elsewhere");
    let reply = answer(limited);
    assert_eq!(reply.status, 429);
    assert_eq!(reply.header("date"), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
    let later = Some("Sun, 06 Nov 1994 08:50:37 GMT");
    assert_eq!(reply.header("retry-after"), later);
    assert_eq!(reply.header("ratelimit"), Some("\"api\";r=0;t=42"));
    assert_eq!(reply.header("x-inference-provider"), Some("elsewhere"));
    let reply = answer(Reply::asleep().header("retry-after", "7").status(529));
    assert_eq!(
        (reply.status, reply.header("retry-after")),
        (529, Some("7"))
    );
    let reply = answer(Reply::redirect("http://elsewhere/"));
    assert_eq!(
        (reply.status, reply.header("location")),
        (307, Some("http://elsewhere/"))
    );
    let reply = answer(Reply::bad_gateway());
    assert_eq!(
        (reply.status, reply.header("content-type")),
        (502, Some("text/html"))
    );
    assert_eq!(answer(Reply::paused()).status, 400);
    assert!(TcpStream::connect(nobody()).is_err());
}

#[test]
fn usage_is_told_where_and_as_the_script_says() {
    let every = Chat::new(&["a", "b"]).usage_at(UsageAt::Every).model("m");
    let chunks = answer(every.stream()).chunks();
    let told = chunks
        .iter()
        .map(|c| c["usage"]["completion_tokens"].as_u64());
    assert_eq!(told.collect::<Vec<_>>(), [Some(1), Some(2), Some(2)]);
    assert_eq!(chunks[0]["model"], "m");
    let zero = Chat::new(&["a"]).usage(0, 0).object();
    assert_eq!(answer(zero).ok()["usage"]["total_tokens"], 0);
    let call = json!({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{}"}}]});
    let called = Chat::new(&[])
        .delta(call.clone())
        .finish(Some("tool_calls"));
    let chunks = answer(called.stream()).chunks();
    assert_eq!(
        chunks[0]["choices"][0]["delta"]["tool_calls"],
        call["tool_calls"]
    );
    let message = &answer(called.object()).ok()["choices"][0]["message"];
    assert_eq!(message["tool_calls"], call["tool_calls"]);
}

#[test]
fn engines_and_catalogues_are_told_apart() {
    let info = answer(Reply::tgi_info("org/m", 4096)).ok();
    assert_eq!(
        (&info["model_id"], &info["max_total_tokens"]),
        (&json!("org/m"), &json!(4096))
    );
    let vllm = answer(Reply::models_vllm("m", 8192)).ok();
    assert_eq!(vllm["data"][0]["max_model_len"], 8192);
    let llamacpp = answer(Reply::models_llamacpp("m", 8192)).ok();
    assert_eq!(llamacpp["data"][0]["owned_by"], "llamacpp");
    let priced = catalogue_entry("org/m", "together", Some((0.1, 0.4)));
    let catalogue = answer(Reply::catalogue(&[
        priced,
        catalogue_entry("org/n", "groq", None),
    ]));
    let providers = |i: usize| catalogue.ok()["data"][i]["providers"][0].clone();
    assert_eq!(
        providers(0)["pricing"],
        json!({"input": 0.1, "output": 0.4})
    );
    assert_eq!(providers(1).get("pricing"), None);
    let tokens = answer(Reply::generate_stream(&["a", "b"])).events();
    assert_eq!(
        (&tokens[0]["generated_text"], &tokens[1]["generated_text"]),
        (&Json::Null, &json!("ab"))
    );
    assert_eq!(tokens[1]["details"]["generated_tokens"], 2);
}

#[test]
fn endpoints_wake_and_beginnings_are_continued() {
    let upstream = Upstream::start(waking(2, MS(40), |request| {
        Reply::chat_for(request, &["up"])
    }));
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(wire::receive(ask(&upstream, "", &json!({}))).status);
    }
    assert_eq!(statuses, [503, 503, 200]);
    let upstream = Upstream::start(waking(2, MS(40), |request| {
        Reply::chat_for(request, &["up"])
    }));
    let began = Instant::now();
    let held = ask(&upstream, "X-Scale-Up-Timeout: 1\r\n", &json!({}));
    assert_eq!(wire::receive(held).status, 200);
    assert!(began.elapsed() >= MS(40));
    let given_up = ask(&upstream, "x-scale-up-timeout: 0\r\n", &json!({}));
    assert_eq!(wire::receive(given_up).status, 503);

    let body = json!({"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Hel"}]});
    let continued = |prefill| {
        let upstream = Upstream::start(move |r| continuation(r, &["Hel", "lo", "!"], prefill));
        let whole = wire::receive(ask(&upstream, "", &body)).ok();
        whole["choices"][0]["message"]["content"].clone()
    };
    assert_eq!(continued(Prefill::Honoured), "lo!");
    assert_eq!(continued(Prefill::Restarted), "Hello!");
    assert_eq!(continued(Prefill::Ignored), "Something else");
}

#[test]
fn behind_tls_it_answers_those_who_trust_it() {
    let upstream = Upstream::start_tls(|request| Reply::chat_for(request, &["safe"]));
    let authority = reqwest::Certificate::from_pem(upstream.certificate_pem().as_bytes());
    let url = upstream.url() + "/v1/chat/completions";
    let client = |builder: reqwest::blocking::ClientBuilder| {
        builder
            .build()
            .expect("a client")
            .post(&url)
            .body("{}")
            .send()
    };
    // The crate's reqwest is told which provider of cryptography to use, once for the process.
    let _ = aws_lc_rs::default_provider().install_default();
    let trusting =
        reqwest::blocking::Client::builder().tls_certs_only([authority.expect("a certificate")]);
    let body: Json = client(trusting).and_then(|r| r.json()).expect("an answer");
    assert_eq!(body["choices"][0]["message"]["content"], "safe");
    let before = upstream.bytes_received();
    client(reqwest::blocking::Client::builder().tls_certs_only([])).expect_err("no trust");
    assert_eq!(upstream.bytes_received(), before);
    eventually("the broken handshake", || {
        let all = upstream.connections();
        (all.len() == 2 && all[1].closed.is_some()).then_some(())
    });
}
