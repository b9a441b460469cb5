//! Connections that want to be a burden: half-open, idle, too many, with endless heads, or never read.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use serde_json::json;

use crate::support::models::Copy;
use crate::support::server::{Sconce, Server};
use crate::support::{PATIENCE, eventually, wire};

/// A connection that has sent some bytes; later ones may find it closed.
fn open(server: &Server, bytes: &str) -> TcpStream {
    wire::send(server.address(), bytes)
}

/// Waits until the server closes; what it sent before.
#[track_caller]
fn closed(mut connection: TcpStream) -> String {
    let mut rest = Vec::new();
    if let Err(error) = connection.read_to_end(&mut rest) {
        assert_eq!(
            error.kind(),
            ErrorKind::ConnectionReset,
            "still open: {error}"
        );
    }
    String::from_utf8_lossy(&rest).into_owned()
}

#[test]
fn two_hundred_half_open_connections_are_no_burden() {
    const MANY: usize = 200;
    let server = Sconce::tiny("llama-tied")
        .flag("--header-read-seconds", "600")
        .serve();
    let short = json!({"inputs": "a", "parameters": {"max_new_tokens": 2}});
    server.post("/generate", &short).ok();
    let before = server.resident_kib();
    let beginnings = [
        "",
        "POST /generate HTTP/1.1\r\nhost: t",
        "GET /info HTTP/1.1\r\nhost: t\r\nx: ",
    ];
    let mut held: Vec<TcpStream> = (0..MANY)
        .map(|i| open(&server, beginnings[i % 3]))
        .collect();
    // Heads that grow, as a slow client's do.
    for _ in 0..20 {
        for connection in held.iter_mut().skip(2).step_by(3) {
            connection
                .write_all(&[b'a'; 100])
                .expect("the server still reads");
        }
    }
    for _ in 0..10 {
        server.post("/generate", &short).ok();
        assert_eq!(server.get("/health").status, 200);
    }
    let grown = server.resident_kib().saturating_sub(before);
    assert!(grown < 64 << 10, "{grown} KiB for {MANY} connections");
    drop(held);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn beyond_the_most_connections_clients_wait_for_a_place() {
    let server = Sconce::tiny("llama-tied")
        .flag("--max-connections", "3")
        .serve();
    let mut held: Vec<TcpStream> = (0..3)
        .map(|_| open(&server, "GET /health HTTP/1.1\r\n"))
        .collect();
    // One that is answered shows that the three are in.
    let waiting = open(&server, &wire::get("/health"));
    waiting
        .set_read_timeout(Some(std::time::Duration::from_millis(300)))
        .expect("above zero");
    let nothing = (&waiting).read(&mut [0; 1]).expect_err("no answer yet");
    assert!(
        matches!(nothing.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "{nothing}"
    );
    held.pop();
    waiting
        .set_read_timeout(Some(PATIENCE))
        .expect("above zero");
    assert_eq!(wire::receive(waiting).status, 200);
}

#[test]
fn an_idle_connection_is_closed() {
    let server = Sconce::tiny("llama-tied")
        .flag("--header-read-seconds", "1")
        .serve();
    let answered = closed(open(&server, "GET /health HTTP/1.1\r\nhost: t\r\n\r\n"));
    assert!(answered.starts_with("HTTP/1.1 200 OK"), "{answered}");
    assert_eq!(closed(open(&server, "")), "");
}

#[test]
fn heads_have_an_end() {
    let server = Sconce::tiny("llama-tied")
        .flag("--header-read-seconds", "600")
        .serve();
    let get = "GET /health HTTP/1.1\r\nhost: t\r\nconnection: close\r\n";
    let ask = |lines: &str| closed(open(&server, &format!("{get}{lines}\r\n")));
    let many = |n: usize| (0..n).map(|i| format!("x-{i}: 1\r\n")).collect::<String>();
    let long = |n: usize| format!("x: {}\r\n", "a".repeat(n));
    for (lines, expected) in [
        (many(90), "HTTP/1.1 200 "),
        (many(200), "HTTP/1.1 431 "),
        (long(30_000), "HTTP/1.1 200 "),
        (long(33_000), "HTTP/1.1 431 "),
    ] {
        let answer = ask(&lines);
        assert!(
            answer.starts_with(expected),
            "{} bytes: {answer}",
            lines.len()
        );
    }
    let mut endless = open(&server, get);
    // Its end may come in the middle of this, or while the rest still lies in the sockets.
    let _ = endless.write_all(long(1_000).repeat(1_000).as_bytes());
    assert!(
        !closed(endless).contains("200 OK"),
        "a head of a megabyte was taken"
    );
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_reader_that_stalls_is_not_waited_for() {
    let model = Copy::endless();
    let server = Sconce::new()
        .flag("--model-id", &model.path().display().to_string())
        .flag("--max-total-tokens", "131072")
        .flag("--max-batch-total-tokens", "262144")
        .flag("--max-top-n-tokens", "300")
        .flag("--max-concurrent-requests", "1")
        .flag("--write-stall-seconds", "1")
        .serve();
    // Events of 20 KB, so that soon the sockets hold all they can.
    let wide = json!({"inputs": "a", "parameters": {"top_n_tokens": 300}}).to_string();
    let _stalled = open(&server, &wire::post("/generate_stream", "", &wide));
    server.await_metric("tgi_batch_current_size", |size| size == 1.0);
    let short = json!({"inputs": "a", "parameters": {"max_new_tokens": 1}});
    // Long before the deadline of ten minutes.
    eventually("the place is free again", || {
        (server.post("/generate", &short).status == 200).then_some(())
    });
}
