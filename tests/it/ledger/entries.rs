//! Every admitted request leaves one entry, whatever route it came in by and however it ended.

use std::time::Duration;

use serde_json::{Value as Json, json};

use super::{CHAT, READ, WRITTEN, away, chats, paid, rows, settled, url};
use crate::hybrid::chat;
use crate::support::server::Sconce;
use crate::support::upstream::{Chat, Reply, Request, Upstream};
use crate::support::wire;

const ENTRIES: &str = "SELECT path, stream, side, outcome, attempts, prompt_tokens, output_tokens, cost_nusd, key_name \
     FROM requests ORDER BY id";

fn told(request: &Request) -> Reply {
    Reply::chat_for(request, &["One", " two"]).provider("lab")
}

/// Routes that generate, with a body for each.
fn bodies() -> Vec<(&'static str, Json)> {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let inputs = json!({"inputs": "Hi", "parameters": {"max_new_tokens": 8}});
    vec![
        (CHAT, json!({"messages": messages, "max_tokens": 8})),
        (
            CHAT,
            json!({"messages": messages, "max_tokens": 8, "stream": true}),
        ),
        (
            "/v1/responses",
            json!({"input": "Hi", "max_output_tokens": 16}),
        ),
        (
            "/v1/messages",
            json!({"model": "default", "messages": messages, "max_tokens": 8}),
        ),
        ("/generate", inputs.clone()),
        ("/generate_stream", inputs.clone()),
        ("/", inputs),
        ("/v1/completions", json!({"prompt": "Hi", "max_tokens": 8})),
        (
            "/invocations",
            json!({"messages": messages, "max_tokens": 8}),
        ),
    ]
}

#[test]
fn every_route_leaves_one_settled_entry() {
    let upstream = Upstream::start(told);
    // A raw prompt of a chat is told as one, so that every route can go there.
    let setup = paid(&upstream, "1.0")
        .add("[[route.model]]\nname = \"default\"\nlocal = true\ntargets = [\"far\"]\n")
        .policy("prefer-remote");
    let server = setup.serve();
    let mut expected = Vec::new();
    for (path, body) in bodies() {
        let reply = server.post(path, &body);
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
        let stream = body["stream"] == true || path == "/generate_stream";
        expected.push((path, i64::from(stream)));
    }
    settled(&url(&setup), expected.len());
    let entries = rows(&url(&setup), ENTRIES, 9);
    assert_eq!(entries.len(), expected.len());
    for (entry, (path, stream)) in entries.iter().zip(expected) {
        assert_eq!(
            (&entry[0], &entry[1]),
            (&path.into(), &stream.into()),
            "{entry:?}"
        );
        assert_eq!(entry[8], "anonymous");
        if entry[2] == "remote" {
            assert_eq!(
                entry[4..8],
                [json!(1), json!(7), json!(2), json!(7 * READ + 2 * WRITTEN)]
            );
        } else {
            assert_eq!(entry[2], "local", "{entry:?}");
            assert_eq!((&entry[4], &entry[7]), (&json!(0), &json!(0)), "{entry:?}");
        }
    }
    let remote = entries.iter().filter(|entry| entry[2] == "remote").count();
    assert_eq!(remote, chats(&upstream));
    assert!(remote >= 5, "{entries:?}");
}

#[test]
fn what_breaks_off_fails_or_is_left_leaves_one_entry_too() {
    let upstream = Upstream::start(|request| {
        if request.method == "GET" {
            return Reply::json(404, &json!({}));
        }
        match request.json()["messages"][0]["content"].as_str() {
            Some("break") => Chat::new(&["One", " two", " three"])
                .stream()
                .close_after(2),
            Some("refuse") => Reply::json(400, &json!({"error": {"message": "no"}})),
            Some("slow") => Chat::new(&["One", " two"])
                .stream()
                .delay_each(Duration::from_secs(60)),
            _ => told(request),
        }
    });
    let setup = away(paid(&upstream, "1.0"));
    let server = setup.serve();
    let mut streamed = chat("break");
    streamed["stream"] = true.into();
    assert_eq!(server.post(CHAT, &streamed).status, 200);
    assert_ne!(server.post(CHAT, &chat("refuse")).status, 200);
    let mut slow = chat("slow");
    slow["stream"] = true.into();
    let mut left = server.stream(CHAT, &slow);
    left.next_event();
    drop(left);
    settled(&url(&setup), 3);
    let entries = rows(&url(&setup), ENTRIES, 9);
    let seen: Vec<_> = entries
        .iter()
        .map(|e| (e[2].as_str(), e[3].as_str()))
        .collect();
    assert_eq!(
        seen,
        [
            (Some("remote"), Some("incomplete")),
            (None, Some("invalid")),
            (Some("remote"), Some("dropped")),
        ]
    );
    // The prompt and what was seen are owed; what was refused is not.
    let attempts = "SELECT outcome, basis, cost_nusd FROM attempts ORDER BY id";
    let attempts = rows(&url(&setup), attempts, 3);
    assert_eq!(
        (&attempts[0][0], &attempts[0][1]),
        (&"mid_stream".into(), &"estimate".into())
    );
    assert_eq!(
        (&attempts[1][0], &attempts[1][2]),
        (&"bad_request".into(), &0.into())
    );
    assert_eq!(
        (&attempts[2][0], &attempts[2][1]),
        (&"client_gone".into(), &"estimate".into())
    );
    for aborted in [&attempts[0], &attempts[2]] {
        assert!(aborted[2].as_u64() > Some(READ), "{aborted:?}");
    }
}

#[test]
fn a_server_without_upstreams_keeps_a_ledger_where_it_is_told_to() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("mine.db");
    let settings = folder.path().join("s.toml");
    std::fs::write(
        &settings,
        format!("[ledger]\npath = {:?}\n", path.display().to_string()),
    )
    .expect("settings");
    let server = Sconce::tiny("llama-tied")
        .flag("--config", &settings.display().to_string())
        .serve();
    server.generate("a b c", json!({"max_new_tokens": 4}));
    let body = json!({"inputs": "a b c", "parameters": {"max_new_tokens": 200}});
    let streaming = server.stream("/generate_stream", &body);
    drop(streaming);
    let url = format!("sqlite://{}", path.display());
    settled(&url, 2);
    let entries = rows(&url, ENTRIES, 9);
    assert_eq!(entries[0][0], "/generate");
    assert_eq!(
        (&entries[0][2], &entries[0][3]),
        (&"local".into(), &"length".into())
    );
    assert_eq!(entries[0][6], 4);
    let usage = super::usage(&server, "?by=provider");
    assert_eq!(usage["lines"][0]["provider"], "local", "{usage}");
    assert_eq!(usage["total"]["cost_usd"], 0.0);
    let bad = server.get("/usage?from=yesterday");
    assert_eq!(bad.status, 422, "{bad:?}");
    assert!(bad.body.contains("2026-01-31"), "{}", bad.body);
    // Without one, the answer says how to have one.
    let plain = Sconce::tiny("llama-tied").serve();
    let none = plain.get("/usage");
    assert_eq!(none.status, 422);
    assert!(none.body.contains("[ledger]"), "{}", none.body);
}

#[test]
fn only_keys_that_run_the_server_see_what_others_use() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s.toml").display().to_string();
    let key = |name: &str, admin: &[&str]| {
        let words = [&["new", "--name", name, "--config", &path], admin].concat();
        let made = Sconce::new().words(&words).run("key");
        String::from_utf8(made.stdout)
            .expect("a key")
            .trim()
            .to_owned()
    };
    std::fs::write(
        &path,
        format!("[ledger]\npath = {:?}\n", format!("{path}.db")),
    )
    .expect("settings");
    let (admin, plain) = (key("boss", &["--admin"]), key("team", &[]));
    let server = Sconce::tiny("llama-tied").flag("--config", &path).serve();
    let ask = |key: &str| {
        let request = wire::get("/usage").replacen(
            "\r\n",
            &format!("\r\nAuthorization: Bearer {key}\r\n"),
            1,
        );
        server.send(&request)
    };
    assert_eq!(ask(&admin).status, 200);
    let refused = ask(&plain);
    assert_eq!(refused.status, 403);
    assert!(refused.body.contains("admin = true"), "{}", refused.body);
    assert_eq!(server.get("/usage").status, 401);
}
