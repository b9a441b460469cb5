//! Who may call, from where, and that the key stays secret.

use serde_json::json;

use crate::support::server::{Sconce, Server};
use crate::support::wire;

const KEY: &str = "correct-horse-battery";
const GUARDED: [&str; 4] = ["/", "/generate", "/generate_stream", "/tokenize"];

fn status(server: &Server, path: &str, extra: &str) -> u16 {
    let body = json!({"inputs": "a", "parameters": {"max_new_tokens": 1}}).to_string();
    server.send(&wire::post(path, extra, &body)).status
}

#[test]
fn a_key_guards_what_costs_and_nothing_else() {
    let server = Sconce::tiny("llama-tied").env("API_KEY", KEY).serve();
    for path in GUARDED {
        let wrong = [
            String::new(),
            "authorization: Bearer wrong\r\n".to_owned(),
            format!("authorization: {KEY}\r\n"),
            format!("authorization: Basic {KEY}\r\n"),
            format!("authorization: Bearer {}\r\n", KEY.to_uppercase()),
            format!("authorization: Bearer {KEY}x\r\n"),
            "authorization: Bearer \r\n".to_owned(),
        ];
        for extra in wrong {
            let reply = server.send(&wire::post(path, &extra, r#"{"inputs":"a"}"#));
            assert_eq!(reply.status, 401, "{path} {extra}");
            let error = reply.json();
            assert!(
                error["error"].is_string() && error["error_type"].is_string(),
                "{error}"
            );
        }
        assert_eq!(
            status(&server, path, &format!("authorization: Bearer {KEY}\r\n")),
            200,
            "{path}"
        );
        assert_eq!(
            status(&server, path, &format!("authorization: bearer {KEY}\r\n")),
            200,
            "{path}"
        );
    }
    for path in ["/", "/health", "/info", "/metrics", "/v1/models"] {
        assert_eq!(server.get(path).status, 200, "{path} is open");
    }
    let broken = server.send(&wire::post("/generate", "", "{"));
    assert_eq!(broken.status, 401, "the key comes before the body");
    assert_eq!(
        server.metric("tgi_request_failure{err=\"validation\"}"),
        0.0
    );
}

#[test]
fn where_upstreams_stand_is_told_to_those_with_a_key() {
    let open = Sconce::tiny("llama-tied").serve();
    let none = serde_json::json!({"upstreams": []});
    assert_eq!(open.get("/health/upstreams").ok(), none);
    let server = Sconce::tiny("llama-tied").env("API_KEY", "k-1").serve();
    let ask = |extra: &str| {
        let request = format!(
            "GET /health/upstreams HTTP/1.1\r\nHost: a\r\n{extra}Connection: close\r\n\r\n"
        );
        server.send(&request)
    };
    assert_eq!(ask("").status, 401);
    assert_eq!(ask("Authorization: Bearer k-1\r\n").ok(), none);
}

#[test]
fn a_key_may_come_as_clients_of_anthropic_send_it() {
    let server = Sconce::tiny("llama-tied").env("API_KEY", KEY).serve();
    let dummy = "authorization: Bearer dummy\r\n";
    for (extra, expected) in [
        (format!("x-api-key: {KEY}\r\n"), 200),
        (format!("{dummy}x-api-key: {KEY}\r\n"), 200),
        (format!("x-api-key: Bearer {KEY}\r\n"), 401),
        (format!("x-api-key: {KEY}x\r\n"), 401),
    ] {
        assert_eq!(status(&server, "/generate", &extra), expected, "{extra}");
    }
}

#[test]
fn a_refusal_speaks_the_language_of_its_route() {
    let text = "The API key is missing or wrong; send it as `Authorization: Bearer <key>`";
    let native = format!(r#"{{"error":"{text}","error_type":"unauthorized"}}"#);
    let flat = format!(
        r#"{{"error":"{text}","error_type":"unauthorized","message":"{text}","code":"invalid_api_key","param":null}}"#
    );
    let nested = format!(
        r#"{{"error":{{"message":"{text}","type":"invalid_request_error","code":"invalid_api_key","param":null}}}}"#
    );
    for (compat, v1) in [("tgi", flat), ("openai", nested)] {
        let server = Sconce::tiny("llama-tied")
            .env("API_KEY", KEY)
            .flag("--compat", compat)
            .words(&["--guard-all"])
            .serve();
        for path in ["/info", "/metrics"] {
            let reply = server.get(path);
            assert_eq!(
                (reply.status, &reply.body),
                (401, &native),
                "{compat} {path}"
            );
            assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        }
        let reply = server.get("/v1/models");
        assert_eq!((reply.status, reply.body), (401, v1), "{compat}");
        assert_eq!(
            reply
                .headers
                .iter()
                .filter(|(name, _)| name == "www-authenticate")
                .count(),
            1
        );
        for path in ["/", "/health", "/health/live", "/health/ready"] {
            assert_eq!(server.get(path).status, 200, "{path} is open");
        }
        let ask = "GET /info HTTP/1.1\r\nhost: test\r\nconnection: close\r\n";
        let shown = server.send(&format!("{ask}authorization: Bearer {KEY}\r\n\r\n"));
        assert_eq!(shown.status, 200);
    }
}

#[test]
fn the_key_is_never_written() {
    let server = Sconce::tiny("llama-tied")
        .env("API_KEY", KEY)
        .env("LOG_LEVEL", "trace")
        .serve();
    assert_eq!(
        status(
            &server,
            "/generate",
            &format!("authorization: Bearer {KEY}\r\n")
        ),
        200
    );
    assert_eq!(
        status(
            &server,
            "/generate",
            &format!("authorization: Bearer {KEY}!\r\n")
        ),
        401
    );
    assert!(!server.get("/info").body.contains(KEY) && !server.get("/metrics").body.contains(KEY));
    server.terminate();
    assert!(!server.log().contains(KEY), "{}", server.log());
    let texts = [
        Sconce::new().env("API_KEY", KEY).run("check"),
        Sconce::new()
            .env("API_KEY", &format!("{KEY} "))
            .run("check"),
        Sconce::new()
            .env("API_KEY", KEY)
            .flag("--port", "x")
            .run("serve"),
        Sconce::new()
            .env("API_KEY", KEY)
            .flag("--help", "")
            .run("serve"),
    ];
    for output in texts {
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        assert!(!text.contains(KEY), "{text}");
    }
}

#[test]
fn without_a_key_any_authorization_passes() {
    let server = Sconce::tiny("llama-tied").serve();
    for extra in [
        "",
        "authorization: Bearer hf_dummy\r\n",
        "authorization: nonsense\r\n",
    ] {
        assert_eq!(status(&server, "/generate", extra), 200, "{extra}");
    }
}

#[test]
fn preflights_are_answered_before_the_key_is_asked_for() {
    let server = Sconce::tiny("llama-tied").env("API_KEY", KEY).serve();
    let preflight = concat!(
        "OPTIONS /generate HTTP/1.1\r\nhost: test\r\nconnection: close\r\norigin: https://a.example\r\n",
        "access-control-request-method: POST\r\n",
        "access-control-request-headers: content-type,authorization\r\n\r\n"
    );
    let reply = server.send(preflight);
    assert_eq!((reply.status, reply.body.as_str()), (200, ""));
    assert_eq!(reply.header("access-control-allow-origin"), Some("*"));
    assert_eq!(
        reply.header("access-control-allow-methods"),
        Some("GET,POST")
    );
    assert_eq!(
        reply.header("access-control-allow-headers"),
        Some("content-type,authorization")
    );
    assert_eq!(reply.header("access-control-allow-credentials"), None);
    let refused = server.send(&wire::post(
        "/generate",
        "origin: https://a.example\r\n",
        "{}",
    ));
    assert_eq!(
        refused.header("access-control-allow-origin"),
        Some("*"),
        "a page can read its 401"
    );
}

#[test]
fn pages_may_send_what_browsers_clients_send() {
    let server = Sconce::tiny("llama-tied").env("API_KEY", KEY).serve();
    let names = "anthropic-dangerous-direct-browser-access,anthropic-version,authorization,\
                 content-type,x-api-key,x-stainless-lang,x-stainless-os";
    for path in ["/generate", "/info", "/no/such/route"] {
        let reply = server.send(&format!(
            "OPTIONS {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\norigin: https://a.example\r\n\
             access-control-request-method: POST\r\naccess-control-request-headers: {names}\r\n\r\n"
        ));
        assert_eq!(reply.status, 200, "{path}");
        assert_eq!(reply.header("access-control-allow-headers"), Some(names));
        assert_eq!(reply.header("access-control-allow-credentials"), None);
    }
}

#[test]
fn named_origins_are_echoed_and_others_are_not() {
    let server = Sconce::tiny("llama-tied")
        .env("CORS_ALLOW_ORIGIN", "https://a.example,https://b.example")
        .serve();
    let from = |origin: &str| {
        let extra = format!("origin: {origin}\r\n");
        let reply = server.send(&wire::post("/tokenize", &extra, r#"{"inputs":"a"}"#));
        assert_eq!(reply.status, 200);
        reply
            .header("access-control-allow-origin")
            .map(str::to_owned)
    };
    assert_eq!(
        from("https://b.example").as_deref(),
        Some("https://b.example")
    );
    assert_eq!(from("https://c.example"), None);
}
