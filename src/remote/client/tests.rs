//! One request over real sockets against a server that says exactly what it is told to, down to the byte.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::egress::Destination;
use crate::generation::Event;
use crate::remote::attempt::tests::{Heard, Script};
use crate::remote::catalog::samples;
use crate::remote::{Billing, EngineKind, Reply, Timing, UpstreamKind, start};

const TOKEN: &str = "canary-token-of-no-known-shape";

/// What the server does with a connection, step by step.
#[derive(Clone)]
enum Do {
    /// Reads a request: its head, and as much body as it announces.
    Read,
    Say(Vec<u8>),
    Wait(u64),
    /// Says bytes one by one, each after so many milliseconds.
    Drip(u64, Vec<u8>),
    /// Closes with a reset.
    Reset,
    /// Neither reads nor closes.
    Hang,
    /// Writes down when the other side closes.
    Watch,
}

fn say(text: &str) -> Do {
    Do::Say(text.replace('\n', "\r\n").into_bytes())
}

/// What the server saw.
#[derive(Clone, Default)]
struct Seen {
    requests: Arc<Mutex<Vec<String>>>,
    connections: Arc<AtomicUsize>,
    closed: Arc<tokio::sync::Notify>,
}

struct Server {
    port: u16,
    seen: Seen,
}

async fn serve(script: Vec<Do>) -> Server {
    serve_with(script, None).await
}

async fn serve_with(script: Vec<Do>, tls: Option<TlsAcceptor>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Seen::default();
    let server = Server {
        port,
        seen: seen.clone(),
    };
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            socket.set_nodelay(true).unwrap();
            seen.connections.fetch_add(1, Ordering::SeqCst);
            let (script, seen, tls) = (script.clone(), seen.clone(), tls.clone());
            tokio::spawn(async move {
                if script.iter().any(|step| matches!(step, Do::Reset)) {
                    socket.set_zero_linger().unwrap();
                }
                match tls {
                    Some(tls) => {
                        if let Ok(socket) = tls.accept(socket).await {
                            play(socket, script, seen).await;
                        }
                    }
                    None => play(socket, script, seen).await,
                }
            });
        }
    });
    server
}

async fn play(mut socket: impl AsyncRead + AsyncWrite + Unpin, script: Vec<Do>, seen: Seen) {
    for step in script {
        match step {
            Do::Read => {
                let Some(request) = read(&mut socket).await else {
                    return;
                };
                seen.requests.lock().unwrap().push(request);
            }
            Do::Say(bytes) => {
                if socket.write_all(&bytes).await.is_err() {
                    return;
                }
                let _ = socket.flush().await;
            }
            Do::Wait(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            Do::Drip(ms, bytes) => {
                for byte in bytes {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    if socket.write_all(&[byte]).await.is_err() {
                        return;
                    }
                }
            }
            Do::Reset => return,
            Do::Hang => std::future::pending().await,
            Do::Watch => {
                let mut sink = [0; 64];
                while matches!(socket.read(&mut sink).await, Ok(n) if n > 0) {}
                seen.closed.notify_one();
                return;
            }
        }
    }
    let _ = socket.shutdown().await;
}

async fn read(socket: &mut (impl AsyncRead + Unpin)) -> Option<String> {
    let mut text = Vec::new();
    let mut buffer = vec![0; 65536];
    loop {
        let n = socket.read(&mut buffer).await.ok().filter(|n| *n > 0)?;
        text.extend_from_slice(&buffer[..n]);
        let request = String::from_utf8_lossy(&text);
        let Some((head, body)) = request.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .to_lowercase()
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            return Some(request.into_owned());
        }
    }
}

fn provider() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

fn config(base_url: String) -> UpstreamConfig {
    provider();
    UpstreamConfig {
        base_url,
        engine: Some(EngineKind::OpenAi),
        token_env: Some("TOKEN".into()),
        token: Some(Secret::new(TOKEN.into())),
        ..samples::upstream("up", UpstreamKind::OpenAiCompat)
    }
}

/// Small enough that no test waits long.
fn clocks() -> Clocks {
    let ms = Duration::from_millis;
    Clocks {
        pool: ms(100),
        connect: ms(500),
        send: ms(300),
        send_per_mib: ms(0),
        byte_idle: ms(400),
        ..Clocks::default()
    }
}

fn limits() -> Limits {
    Limits {
        response_bytes: 4096,
        event_bytes: 512,
        head_bytes: 2048,
        error_bytes: 1024,
    }
}

fn client_of(config: &UpstreamConfig) -> Client {
    Client::new(config, &clocks(), &limits()).unwrap()
}

fn client(server: &Server) -> Client {
    client_of(&config(format!("http://127.0.0.1:{}", server.port)))
}

fn passport(host: &str, body: &[u8]) -> Passport {
    let destination = Destination {
        target: "t".into(),
        upstream: "up".into(),
        host: host.into(),
        loopback: true,
        dedicated: false,
        provider: None,
        model: "m".into(),
    };
    Passport::forged(destination, Bytes::copy_from_slice(body))
}

fn call() -> Call {
    Call {
        method: Method::POST,
        path: "/v1/chat/completions".into(),
        headers: Vec::new(),
        stream: true,
        deadline: Instant::now() + Duration::from_secs(20),
        headers_within: Duration::from_millis(400),
    }
}

fn origin() -> Origin {
    Origin {
        kind: UpstreamKind::OpenAiCompat,
        engine: None,
        billing: Billing::Tokens,
    }
}

async fn send(server: &Server) -> Result<Response, Fault> {
    let host = format!("127.0.0.1:{}", server.port);
    client(server)
        .send(passport(&host, b"{\"model\":\"m\"}"), call())
        .await
}

async fn begin(server: &Server, heard: &Heard) -> Result<Reply, Fault> {
    let host = format!("127.0.0.1:{}", server.port);
    let timing = Timing {
        first_token: Duration::from_millis(600),
        byte_idle: Duration::from_millis(400),
        progress_idle: Duration::from_millis(700),
        deadline: call().deadline,
    };
    let passport = passport(&host, b"{\"model\":\"m\"}");
    start(
        &client(server),
        passport,
        call(),
        origin(),
        timing,
        Script::default(),
        heard.clone(),
    )
    .await
}

/// The text shown, the fault if there was one, and what the reporter heard.
async fn attempt(server: &Server) -> (String, Option<Fault>, Vec<String>) {
    let heard = Heard::default();
    let mut reply = match begin(server, &heard).await {
        Ok(reply) => reply,
        Err(fault) => return (String::new(), Some(fault), heard.all()),
    };
    let (mut text, mut end) = (String::new(), None);
    while let Some(event) = reply.events.next().await {
        match event {
            Ok(Event::Token(token)) => text.push_str(&token.text),
            Ok(Event::Started(_)) => {}
            Err(fault) => end = Some(fault),
        }
    }
    (text, end, heard.all())
}

const HEAD: &str = "HTTP/1.1 200 OK\ncontent-type: text/event-stream\nx-inference-provider: p\nx-request-id: r1\nconnection: close\n\n";
const ANSWER: &str = ": hi\n\ndata: {\"t\":\"one \"}\n\ndata: {\"t\":\"two\"}\n\ndata: {\"f\":1}\n\ndata: [DONE]\n\n";

#[tokio::test]
async fn a_request_says_what_it_must_and_nothing_else() {
    let server = serve(vec![Do::Read, say(HEAD), say(ANSWER)]).await;
    let mut config = config(format!("http://127.0.0.1:{}/base/", server.port));
    config.bill_to = Some("org".into());
    let client = client_of(&config);
    let mut call = call();
    call.headers = vec![("x-scale-up-timeout", "600".into())];
    let body = b"{\"model\":\"m\"}";
    let host = format!("127.0.0.1:{}", server.port);
    let response = client
        .send(passport(&host, body), call.clone())
        .await
        .unwrap();
    assert_eq!(response.head.provider.as_deref(), Some("p"));
    assert_eq!(response.head.request_id.as_deref(), Some("r1"));
    let whole = response.whole().await.unwrap();
    assert_eq!(whole, ANSWER.replace('\n', "\r\n"));

    let request = server.seen.requests.lock().unwrap()[0].clone();
    let (head, sent) = request.split_once("\r\n\r\n").unwrap();
    assert_eq!(sent.as_bytes(), body);
    let mut lines = head.lines();
    assert_eq!(
        lines.next(),
        Some("POST /base/v1/chat/completions HTTP/1.1")
    );
    let names: BTreeSet<String> = lines.map(str::to_lowercase).collect();
    let want = [
        "accept-encoding: identity".to_owned(),
        "accept: text/event-stream, application/json".to_owned(),
        format!("authorization: bearer {TOKEN}"),
        "content-length: 13".to_owned(),
        "content-type: application/json".to_owned(),
        format!("host: {host}"),
        format!("user-agent: sconce/{}", env!("CARGO_PKG_VERSION")),
        "x-hf-bill-to: org".to_owned(),
        "x-scale-up-timeout: 600".to_owned(),
    ];
    assert_eq!(names, BTreeSet::from(want));

    // Nothing of a caller's, no other place, no other path.
    let refused = |host: &str, call: Call| {
        let (client, passport) = (client.clone(), passport(host, body));
        async move { client.send(passport, call).await.unwrap_err().class }
    };
    for header in [
        "authorization",
        "cookie",
        "host",
        "x-hf-bill-to",
        "content-length",
    ] {
        let mut call = call.clone();
        call.headers = vec![(header, "x".into())];
        assert_eq!(refused(&host, call).await, Class::Misconfigured, "{header}");
    }
    assert_eq!(
        refused("127.0.0.1:1", call.clone()).await,
        Class::Misconfigured
    );
    for path in ["@evil.example/", ".evil.example", "v1"] {
        let path = path.to_owned();
        assert_eq!(
            refused(
                &host,
                Call {
                    path,
                    ..call.clone()
                }
            )
            .await,
            Class::Misconfigured
        );
    }
    assert_eq!(server.seen.connections.load(Ordering::SeqCst), 1);
    assert!(!format!("{client:?}{config:?}").contains(TOKEN));
}

#[tokio::test]
async fn an_answer_comes_through_and_its_connection_is_used_again() {
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len()).into_bytes();
    let head = "HTTP/1.1 200 OK\ncontent-type: text/event-stream\ntransfer-encoding: chunked\n\n";
    let round = vec![
        Do::Read,
        say(head),
        Do::Say(chunk(ANSWER)),
        Do::Wait(30),
        say("0\n\n"),
    ];
    let server = serve([round.clone(), round].concat()).await;
    let client = client(&server);
    for _ in 0..2 {
        let heard = Heard::default();
        let timing = Timing {
            first_token: Duration::from_secs(1),
            byte_idle: Duration::from_secs(1),
            progress_idle: Duration::from_secs(1),
            deadline: call().deadline,
        };
        let host = format!("127.0.0.1:{}", server.port);
        let passport = passport(&host, b"{}");
        let reply = start(
            &client,
            passport,
            call(),
            origin(),
            timing,
            Script::default(),
            heard.clone(),
        )
        .await
        .unwrap();
        let events: Vec<_> = reply.events.collect().await;
        assert!(events.iter().all(Result::is_ok) && events.len() == 3);
        assert_eq!(heard.all(), ["first", "done"]);
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(server.seen.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_stream_cut_at_every_byte_shows_a_prefix_and_fails() {
    let answer = ANSWER.replace('\n', "\r\n").into_bytes();
    let finish = answer.windows(7).position(|w| w == b"{\"f\":1}").unwrap() + 7;
    for cut in 0..=answer.len() {
        let server = serve(vec![Do::Read, say(HEAD), Do::Say(answer[..cut].to_vec())]).await;
        let (text, fault, heard) = attempt(&server).await;
        assert!("one two".starts_with(&text), "{cut}");
        assert_eq!(fault.is_none(), cut >= finish, "{cut}: {fault:?}");
        if let Some(fault) = &fault {
            let want = if text.is_empty() {
                Class::ServerError
            } else {
                Class::MidStream
            };
            assert_eq!(fault.class, want, "{cut}");
            assert_eq!(
                (
                    fault.provider.as_deref(),
                    fault.upstream_request_id.as_deref()
                ),
                (Some("p"), Some("r1"))
            );
        }
        let last = fault.map_or("done", |f| f.class.name());
        assert_eq!(heard.last().map(String::as_str), Some(last));
        assert_eq!(heard.iter().filter(|word| *word != "first").count(), 1);
    }
}

#[tokio::test]
async fn every_broken_answer_has_its_class() {
    let ok = |kind: &str, body: &str| {
        format!(
            "HTTP/1.1 200 OK\ncontent-type: {kind}\ncontent-length: {}\n\n{body}",
            body.len()
        )
    };
    let status = |line: &str, body: &str| {
        format!(
            "HTTP/1.1 {line}\ncontent-length: {}\ncontent-type: application/json\n\n{body}",
            body.len()
        )
    };
    let long = "x".repeat(5000);
    let many = format!("HTTP/1.1 200 OK\ncontent-type: text/event-stream\nx-long: {long}\n\n");
    let rows: Vec<(&str, Vec<Do>, Class)> = vec![
        ("closed at once", vec![], Class::Transport),
        (
            "reset before the head",
            vec![Do::Read, Do::Reset],
            Class::Transport,
        ),
        (
            "reset within the head",
            vec![
                Do::Read,
                say("HTTP/1.1 200 OK\ncontent-ty"),
                Do::Wait(20),
                Do::Reset,
            ],
            Class::Transport,
        ),
        ("closed before the head", vec![Do::Read], Class::Transport),
        (
            "no HTTP",
            vec![Do::Read, say("SSH-2.0-OpenSSH_9.6\n\n")],
            Class::ServerError,
        ),
        ("no head in time", vec![Do::Read, Do::Hang], Class::Timeout),
        (
            "a slow head",
            vec![Do::Read, Do::Drip(30, HEAD.into())],
            Class::Timeout,
        ),
        (
            "no token in time",
            vec![Do::Read, say(HEAD), Do::Drip(100, ":".repeat(40).into())],
            Class::Timeout,
        ),
        (
            "silence",
            vec![Do::Read, say(HEAD), Do::Hang],
            Class::Timeout,
        ),
        (
            "HTML 502",
            vec![
                Do::Read,
                say("HTTP/1.1 502 Bad Gateway\ncontent-type: text/html\n\n<html>oops</html>"),
            ],
            Class::ServerError,
        ),
        (
            "200 with HTML",
            vec![Do::Read, say(&ok("text/html", "<html>hi</html>"))],
            Class::ServerError,
        ),
        (
            "200 with an error",
            vec![
                Do::Read,
                say(&ok(
                    "application/json",
                    "{\"error\":{\"message\":\"x\",\"code\":429}}",
                )),
            ],
            Class::RateLimited,
        ),
        (
            "200 with other JSON",
            vec![Do::Read, say(&ok("application/json", "{\"choices\":[]}"))],
            Class::ServerError,
        ),
        (
            "200 of no type",
            vec![Do::Read, say("HTTP/1.1 200 OK\n\ndata: [DONE]\n\n")],
            Class::ServerError,
        ),
        (
            "429",
            vec![
                Do::Read,
                say("HTTP/1.1 429 Too Many\nretry-after: 7\ncontent-length: 0\n\n"),
            ],
            Class::RateLimited,
        ),
        (
            "401",
            vec![
                Do::Read,
                say(&status(
                    "401 No",
                    &format!("{{\"error\":\"bad key {TOKEN}\"}}"),
                )),
            ],
            Class::AuthFailed,
        ),
        (
            "500 whose text never comes",
            vec![
                Do::Read,
                say("HTTP/1.1 500 Oh\ncontent-length: 90\n\n{\"err"),
                Do::Reset,
            ],
            Class::ServerError,
        ),
        (
            "an announced flood",
            vec![
                Do::Read,
                say(
                    "HTTP/1.1 200 OK\ncontent-type: text/event-stream\ncontent-length: 9999999\n\n",
                ),
                Do::Hang,
            ],
            Class::ServerError,
        ),
        (
            "a flood",
            vec![
                Do::Read,
                say(HEAD),
                Do::Say(b": x\n\n".repeat(2000)),
                Do::Hang,
            ],
            Class::ServerError,
        ),
        (
            "an event without end",
            vec![Do::Read, say(HEAD), say(&long[..700]), Do::Hang],
            Class::ServerError,
        ),
        (
            "a long head",
            vec![Do::Read, say(&many), Do::Hang],
            Class::ServerError,
        ),
        (
            "gzip",
            vec![
                Do::Read,
                say("HTTP/1.1 200 OK\ncontent-type: text/event-stream\ncontent-encoding: gzip\n\n"),
                Do::Hang,
            ],
            Class::ServerError,
        ),
        (
            "a reset stream",
            vec![
                Do::Read,
                say(HEAD),
                say("data: {\"t\":\"a\"}\n\n"),
                Do::Wait(50),
                Do::Reset,
            ],
            Class::MidStream,
        ),
        (
            "a stalled stream",
            vec![
                Do::Read,
                say(HEAD),
                say("data: {\"t\":\"a\"}\n\n"),
                Do::Hang,
            ],
            Class::MidStream,
        ),
    ];
    let attempts = rows.into_iter().map(|(name, script, class)| async move {
        let server = serve(script).await;
        let begun = Instant::now();
        let (_, fault, heard) = attempt(&server).await;
        let fault = fault.unwrap_or_else(|| panic!("{name}: no fault"));
        assert_eq!(fault.class, class, "{name}: {fault:?}");
        assert_eq!(
            heard.last().map(String::as_str),
            Some(class.name()),
            "{name}"
        );
        assert!(!fault.message.contains(TOKEN), "{name}: {fault:?}");
        // Whoever has read the request may have worked on it.
        assert!(!fault.unsent || name == "closed at once", "{name}");
        assert!(
            !fault.message.contains("oops") && !fault.message.is_empty(),
            "{name}: {fault:?}"
        );
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "{name} took {:?}",
            begun.elapsed()
        );
        if class == Class::RateLimited && fault.status == Some(429) {
            assert_eq!(fault.retry_after, Some(Duration::from_secs(7)));
        }
        // Whatever went wrong, it was asked once.
        assert_eq!(server.seen.connections.load(Ordering::SeqCst), 1, "{name}");
    });
    futures::future::join_all(attempts).await;
}

#[tokio::test]
async fn whatever_an_upstream_echoes_the_token_stays_here() {
    let body = format!("{{\"error\":\"key {TOKEN} is bad\"}}");
    for line in [
        "400 Bad", "402 Pay", "403 No", "404 No", "429 Wait", "500 Oh", "503 Full",
    ] {
        let text = format!(
            "HTTP/1.1 {line}\nx-request-id: {TOKEN}\ncontent-length: {}\n\n{body}",
            body.len()
        );
        let (_, fault, _) = attempt(&serve(vec![Do::Read, say(&text)]).await).await;
        assert!(!format!("{fault:?}").contains(TOKEN), "{fault:?}");
    }
    let text = format!("HTTP/1.1 307 On\nx-request-id: {TOKEN}\ninference-id: {TOKEN}\n\n");
    let fault = send(&serve(vec![Do::Read, say(&text)]).await)
        .await
        .unwrap_err();
    assert!(!format!("{fault:?}").contains(TOKEN), "{fault:?}");
    let text = format!("HTTP/1.1 200 OK\netag: {TOKEN}\nx-inference-provider: x{TOKEN}\n\n");
    let response = send(&serve(vec![Do::Read, say(&text)]).await)
        .await
        .unwrap();
    assert!(!format!("{:?}", response.head).contains(TOKEN));
    let text = format!("{HEAD}data: {{\"error\":\"{TOKEN}\"}}\n\n");
    let (_, fault, _) = attempt(&serve(vec![Do::Read, say(&text)]).await).await;
    let fault = format!("{:?}", fault.unwrap());
    assert!(
        fault.contains("[redacted]") && !fault.contains(TOKEN),
        "{fault}"
    );
}

#[tokio::test]
async fn redirects_lead_nowhere() {
    let other = serve(vec![Do::Read]).await;
    for status in [301, 302, 303, 307, 308] {
        let text = format!(
            "HTTP/1.1 {status} Elsewhere\nlocation: http://127.0.0.1:{}/x\ncontent-length: 0\n\n",
            other.port
        );
        let server = serve(vec![Do::Read, say(&text)]).await;
        let fault = send(&server).await.unwrap_err();
        assert_eq!(
            (fault.class, fault.status),
            (Class::Misconfigured, Some(status))
        );
        assert_eq!(
            &*fault.message,
            format!("status {status}: redirects are never followed; check base_url")
        );
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(other.seen.connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_unchanged_answer_is_one_if_it_was_asked_for() {
    let text = "HTTP/1.1 304 Not Modified\netag: \"a\"\n\n";
    let server = serve(vec![Do::Read, say(text)]).await;
    assert_eq!(send(&server).await.unwrap_err().class, Class::Misconfigured);
    let host = format!("127.0.0.1:{}", server.port);
    let call = Call {
        method: Method::GET,
        headers: vec![("if-none-match", "\"a\"".into())],
        stream: false,
        ..call()
    };
    let response = client(&server)
        .send(passport(&host, b""), call)
        .await
        .unwrap();
    assert_eq!(
        (response.head.status, response.head.etag.as_deref()),
        (304, Some("\"a\""))
    );
    assert!(response.whole().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_caller_that_leaves_closes_the_connection_at_once() {
    let script = vec![
        Do::Read,
        say(HEAD),
        say("data: {\"t\":\"a\"}\n\n"),
        Do::Watch,
    ];
    let server = serve(script).await;
    let heard = Heard::default();
    let mut reply = begin(&server, &heard).await.unwrap();
    reply.events.next().await.unwrap().unwrap();
    drop(reply);
    assert_eq!(heard.all(), ["first", "client_gone"]);
    let closed = tokio::time::timeout(Duration::from_millis(100), server.seen.closed.notified());
    closed
        .await
        .expect("the connection is closed within 100 ms");

    // The same before the head has come.
    let server = serve(vec![Do::Read, Do::Watch]).await;
    let heard = Heard::default();
    let waiting = tokio::time::timeout(Duration::from_millis(50), begin(&server, &heard));
    assert!(waiting.await.is_err());
    assert_eq!(heard.all(), ["client_gone"]);
    let closed = tokio::time::timeout(Duration::from_millis(100), server.seen.closed.notified());
    closed
        .await
        .expect("the connection is closed within 100 ms");
}

#[tokio::test]
async fn a_body_that_is_not_taken_and_a_deadline_are_told_apart() {
    let server = serve(vec![Do::Hang]).await;
    let host = format!("127.0.0.1:{}", server.port);
    let client = client(&server);
    let large = vec![b' '; 32 << 20];
    let fault = client
        .send(passport(&host, &large), call())
        .await
        .unwrap_err();
    assert_eq!(fault.class, Class::Transport, "{fault:?}");
    assert!(fault.message.contains("was not taken"), "{fault:?}");

    for body in [&large[..], b"{}", b""] {
        let call = Call {
            deadline: Instant::now() + Duration::from_millis(100),
            ..call()
        };
        let fault = client.send(passport(&host, body), call).await.unwrap_err();
        assert_eq!(fault.class, Class::Deadline, "{fault:?}");
    }

    // Nobody listens there.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = gone.local_addr().unwrap().port();
    drop(gone);
    let fault = send(&Server {
        port,
        seen: Seen::default(),
    })
    .await
    .unwrap_err();
    assert_eq!(fault.class, Class::Transport, "{fault:?}");
    assert!(
        fault.unsent && fault.message.to_lowercase().contains("refused"),
        "{fault:?}"
    );
}

#[tokio::test]
async fn private_names_are_refused_at_every_connection() {
    let server = serve(vec![Do::Read, say(HEAD), say(ANSWER)]).await;
    let base = format!("http://public.example:{}", server.port);
    let host = format!("public.example:{}", server.port);
    let here: Lookup = Arc::new(|_| Box::pin(async { Ok(vec!["127.0.0.1".parse().unwrap()]) }));
    let mut config = config(base);
    config.allow_plaintext = true;
    let client = Client::build(&config, &clocks(), &limits(), here.clone()).unwrap();
    let fault = client
        .send(passport(&host, b"{}"), call())
        .await
        .unwrap_err();
    assert_eq!(fault.class, Class::Misconfigured);
    assert_eq!(
        &*fault.message,
        "`public.example` resolves to private addresses only; set allow_private if that is meant"
    );
    assert_eq!(server.seen.connections.load(Ordering::SeqCst), 0);

    config.allow_private = true;
    let client = Client::build(&config, &clocks(), &limits(), here).unwrap();
    let response = client.send(passport(&host, b"{}"), call()).await.unwrap();
    assert_eq!(response.head.status, 200);
}

#[test]
fn addresses_are_checked_at_the_start() {
    let build = |url: &str, allow: bool| {
        let mut config = config(url.to_owned());
        config.allow_private = allow;
        Client::new(&config, &clocks(), &limits()).map_err(|e| e.to_string())
    };
    for (url, words) in [
        ("https://10.0.0.1", "private"),
        ("https://169.254.169.254", "private"),
        ("https://[fd00::1]", "private"),
        ("https://[::ffff:192.168.0.1]", "private"),
        ("http://10.0.0.1", "plain HTTP"),
        ("http://example.org", "plain HTTP"),
        ("ftp://example.org", "neither"),
        ("https://user:pass@example.org", "credential"),
        ("https://example.org/?key=1", "query"),
        ("example.org", "not a URL"),
    ] {
        let error = build(url, false).unwrap_err();
        assert!(
            error.contains(words) && error.starts_with("upstream `up`: base_url"),
            "{error}"
        );
        assert!(!error.contains("pass"));
    }
    for url in ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"] {
        assert!(build(url, false).is_ok(), "{url}");
    }
    assert!(build("http://10.0.0.1", true).is_err());
    let hosts = |url: &str| address(&config(url.into()), url).unwrap().1;
    assert_eq!(
        hosts("https://example.org"),
        ["example.org:443", "example.org"]
    );
    assert_eq!(hosts("https://example.org:8443"), ["example.org:8443"]);

    let mut broken = config("https://example.org".into());
    broken.token = Some(Secret::new("line\nbreak".into()));
    let error = Client::new(&broken, &clocks(), &limits())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("token_env") && !error.contains("line"),
        "{error}"
    );
}

/// A server's certificate, signed by an authority of its own, and that authority's PEM.
fn certificate() -> (TlsAcceptor, String) {
    certificate_for(b"http/1.1")
}

/// The same for a server that speaks this protocol.
fn certificate_for(protocol: &[u8]) -> (TlsAcceptor, String) {
    provider();
    let authority = {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        rcgen::CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap()
    };
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    let mut config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![protocol.to_vec()];
    (TlsAcceptor::from(Arc::new(config)), authority.pem())
}

#[tokio::test]
async fn certificates_must_be_trusted() {
    let (acceptor, pem) = certificate();
    let (_, stranger) = certificate();
    let server = serve_with(vec![Do::Read, say(HEAD), say(ANSWER)], Some(acceptor)).await;
    let host = format!("localhost:{}", server.port);
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(format!("https://{host}"));
    let try_with = |authority: Option<&str>| {
        config.ca_file = authority.map(|pem| {
            let path = folder.path().join("ca.pem");
            std::fs::write(&path, pem).unwrap();
            path
        });
        let client = client_of(&config);
        let passport = passport(&host, b"{}");
        async move { client.send(passport, call()).await }
    };
    let mut try_with = try_with;
    let fault = try_with(Some(&stranger)).await.unwrap_err();
    assert_eq!(fault.class, Class::Misconfigured, "{fault:?}");
    assert!(
        fault.message.starts_with("the certificate is not trusted"),
        "{fault:?}"
    );
    assert!(server.seen.requests.lock().unwrap().is_empty());
    let response = try_with(Some(&pem)).await.unwrap();
    assert_eq!(response.head.status, 200);

    // The name counts, too.
    let base = format!("https://127.0.0.1:{}", server.port);
    config.base_url = base;
    let host = format!("127.0.0.1:{}", server.port);
    let fault = client_of(&config)
        .send(passport(&host, b"{}"), call())
        .await
        .unwrap_err();
    assert_eq!(fault.class, Class::Misconfigured, "{fault:?}");

    let path = folder.path().join("empty.pem");
    std::fs::write(&path, "nothing").unwrap();
    config.ca_file = Some(path);
    let error = Client::new(&config, &clocks(), &limits())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("empty.pem") && error.contains("no certificate"),
        "{error}"
    );
}

#[tokio::test]
async fn an_unknown_authority_is_not_trusted_by_default() {
    let (acceptor, _) = certificate();
    let server = serve_with(vec![Do::Read, say(HEAD)], Some(acceptor)).await;
    let host = format!("localhost:{}", server.port);
    let config = config(format!("https://{host}"));
    // A machine without any authority makes no client at all, which is as good.
    let Ok(client) = Client::new(&config, &clocks(), &limits()) else {
        return;
    };
    let fault = client
        .send(passport(&host, b"{}"), call())
        .await
        .unwrap_err();
    assert_eq!(fault.class, Class::Misconfigured, "{fault:?}");
    assert!(server.seen.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_handshake_that_never_ends_is_no_connection() {
    let server = serve(vec![Do::Hang]).await;
    let host = format!("localhost:{}", server.port);
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(format!("https://{host}"));
    let path = folder.path().join("ca.pem");
    std::fs::write(&path, certificate().1).unwrap();
    config.ca_file = Some(path);
    let fault = client_of(&config)
        .send(passport(&host, b"{}"), call())
        .await
        .unwrap_err();
    assert_eq!(fault.class, Class::Transport);
    assert_eq!(&*fault.message, "no connection within 0.5 s");
    assert!(fault.unsent);
}

#[tokio::test]
async fn only_the_configured_proxy_is_gone_through() {
    let proxy = serve(vec![Do::Read, say(HEAD), say(ANSWER)]).await;
    let mut config = config("http://public.example".into());
    config.allow_plaintext = true;
    config.proxy = Some(format!("http://127.0.0.1:{}", proxy.port));
    let sent = client_of(&config)
        .send(passport("public.example", b"{}"), call())
        .await;
    assert_eq!(sent.unwrap().head.status, 200);
    let request = proxy.seen.requests.lock().unwrap()[0].clone();
    assert!(
        request.starts_with("POST http://public.example/v1/chat/completions "),
        "{request}"
    );

    config.proxy = Some("user:secret".into());
    let error = Client::new(&config, &clocks(), &limits()).unwrap_err();
    assert!(!error.to_string().contains("secret"), "{error}");
}

/// Speaks HTTP/2 behind TLS, one stream at a time: says a head and a token, and then no more.
async fn serve_http2(acceptor: TlsAcceptor, closed: Arc<tokio::sync::Notify>) -> Server {
    use http_body_util::StreamBody;
    use hyper_util::rt::{TokioExecutor, TokioIo};

    struct Gone(Arc<tokio::sync::Notify>);
    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.notify_one();
        }
    }

    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Seen::default();
    let connections = seen.connections.clone();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            connections.fetch_add(1, Ordering::SeqCst);
            let (acceptor, closed) = (acceptor.clone(), closed.clone());
            tokio::spawn(async move {
                let Ok(socket) = acceptor.accept(socket).await else {
                    return;
                };
                let service = hyper::service::service_fn(move |_| {
                    let gone = Gone(closed.clone());
                    async move {
                        let first = Bytes::from_static(b"data: {\"t\":\"a\"}\n\n");
                        let first = futures::stream::iter([Ok::<_, Infallible>(
                            http_body::Frame::data(first),
                        )]);
                        let never = futures::stream::poll_fn(move |_| {
                            let _ = &gone;
                            Poll::Pending
                        });
                        http::Response::builder()
                            .header(CONTENT_TYPE, "text/event-stream")
                            .body(StreamBody::new(first.chain(never)))
                    }
                });
                let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                builder.max_concurrent_streams(1);
                let _ = builder
                    .serve_connection(TokioIo::new(socket), service)
                    .await;
            });
        }
    });
    Server { port, seen }
}

#[tokio::test]
async fn http2_is_spoken_and_a_caller_that_leaves_resets_its_stream_only() {
    let (acceptor, pem) = certificate_for(b"h2");
    let closed = Arc::new(tokio::sync::Notify::new());
    let server = serve_http2(acceptor, closed.clone()).await;
    let host = format!("localhost:{}", server.port);
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(format!("https://{host}"));
    let path = folder.path().join("ca.pem");
    std::fs::write(&path, pem).unwrap();
    config.ca_file = Some(path);
    let client = client_of(&config);
    for _ in 0..2 {
        let heard = Heard::default();
        let timing = Timing {
            first_token: Duration::from_secs(5),
            byte_idle: Duration::from_secs(5),
            progress_idle: Duration::from_secs(5),
            deadline: call().deadline,
        };
        let reply = start(
            &client,
            passport(&host, b"{}"),
            call(),
            origin(),
            timing,
            Script::default(),
            heard.clone(),
        );
        let mut reply = reply.await.unwrap();
        reply.events.next().await.unwrap().unwrap();

        // The connection has no room for a second stream, which says nothing about the upstream.
        let fault = client
            .send(passport(&host, b"{}"), call())
            .await
            .unwrap_err();
        assert_eq!(fault.class, Class::LocalPressure, "{fault:?}");
        assert!(fault.unsent);

        drop(reply);
        assert_eq!(heard.all(), ["first", "client_gone"]);
        let reset = tokio::time::timeout(Duration::from_millis(100), closed.notified());
        reset.await.expect("the stream is reset within 100 ms");
    }
    assert_eq!(server.seen.connections.load(Ordering::SeqCst), 1);
}
