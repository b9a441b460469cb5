//! Nothing leaves by accident: what reaches an upstream's socket, and what never does.
//!
//! Every test counts bytes at a scripted upstream. Questions without text, such as a catalogue's, may come
//! where an upstream is configured; what a caller wrote may not.

mod audit;
mod canaries;
mod levels;
mod money;
mod offline;
mod pinned;
mod rules;
mod saturated;

use serde_json::{Value as Json, json};

use super::Setup;
use crate::support::server::{Sconce, Server};
use crate::support::upstream::{Reply, Request, Upstream, catalogue_entry};
use crate::support::wire::{self, Reply as Answer};

/// What only a caller writes: wherever it is found, a caller's text has come.
const MARKER: &str = "zebra-quartz-4711";

/// The model as upstreams know it.
const MODEL: &str = "org/far-model";

/// Answers any dialect's questions, and says that it was asked.
fn willing(request: &Request) -> Reply {
    if request.method == "GET" {
        return match request.path.as_str() {
            "/v1/models" => Reply::catalogue(&[
                catalogue_entry(MODEL, "together", Some((1.0, 1.0))),
                catalogue_entry(MODEL, "groq", Some((2.0, 2.0))),
            ]),
            _ => Reply::json(404, &json!({"error": "not here"})),
        };
    }
    match request.path.as_str() {
        "/generate_stream" => Reply::generate_stream(&["From", " afar"]),
        "/generate" => Reply::json(
            200,
            &json!({"generated_text": "From afar", "details": {
                "finish_reason": "eos_token", "generated_tokens": 2, "seed": null,
                "prefill": [], "tokens": []}}),
        ),
        _ => Reply::chat_for(request, &["From", " afar"]),
    }
}

/// Requests that carry somebody's text.
fn departures(upstream: &Upstream) -> Vec<Request> {
    let mut requests = upstream.requests();
    requests.retain(|request| request.method != "GET");
    requests
}

/// Whether any byte that ever came holds a text.
fn has_received(upstream: &Upstream, text: &str) -> bool {
    upstream
        .connections()
        .iter()
        .any(|connection| holds(&connection.received, text))
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|w| w == text.as_bytes())
}

#[track_caller]
fn assert_untouched(upstream: &Upstream) {
    let came = departures(upstream);
    assert!(came.is_empty(), "this has left: {came:?}");
    assert!(!has_received(upstream, MARKER));
}

/// A chat that holds the marker.
fn marked() -> Json {
    super::chat(&format!("What is {MARKER}?"))
}

/// One call of every route that makes text; each holds this text.
fn calls(text: &str, stream: bool) -> Vec<(&'static str, Json)> {
    let messages = json!([{"role": "user", "content": text}]);
    let tgi = json!({"inputs": text, "parameters": {"max_new_tokens": 4}});
    let mut calls = vec![
        (
            if stream {
                "/generate_stream"
            } else {
                "/generate"
            },
            tgi,
        ),
        (
            "/",
            json!({"inputs": text, "parameters": {"max_new_tokens": 4}, "stream": stream}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": messages, "max_tokens": 4, "stream": stream}),
        ),
        (
            "/v1/completions",
            json!({"prompt": text, "max_tokens": 4, "stream": stream}),
        ),
        (
            "/v1/messages",
            json!({"model": "tgi", "messages": messages, "max_tokens": 4, "stream": stream}),
        ),
        (
            "/v1/responses",
            json!({"input": text, "max_output_tokens": 4, "stream": stream}),
        ),
    ];
    if !stream {
        // Routes of hosting platforms only repack.
        let tgi = calls[0].1.clone();
        let data: Vec<u8> = text.bytes().collect();
        let input = json!({"name": "in", "shape": [1], "datatype": "BYTES", "data": data});
        calls.extend([
            ("/invocations", tgi.clone()),
            ("/vertex", json!({"instances": [tgi, {"messages": messages, "max_tokens": 4}]})),
            (
                "/v2/models/m/versions/1/infer",
                json!({"inputs": [input], "outputs": [{"name": "out"}], "parameters": {"max_new_tokens": 4}}),
            ),
        ]);
    }
    calls
}

/// `POST` of JSON with more header lines.
fn ask(server: &Server, path: &str, headers: &[(&str, &str)], body: &Json) -> Answer {
    let extra: String = headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    server.send(&wire::post(path, &extra, &body.to_string()))
}

/// An upstream of the operator's own, and settings without a word about who may use it.
fn silent(upstream: &Upstream) -> Setup {
    Setup::new().add(&format!(
        "[[remote.upstream]]\nname = \"up\"\nkind = \"openai_compat\"\nengine = \"openai\"\nbase_url = \"{}\"\n\
         [[remote.target]]\nname = \"far\"\nupstream = \"up\"\nmodel = \"{MODEL}\"\n\
         [[route.model]]\nname = \"default\"\nlocal = true\ntargets = [\"far\"]\n",
        upstream.url()
    ))
}

/// A key as its caller shows it, and its hash.
fn new_key(name: &str) -> (String, String) {
    let output = Sconce::new().words(&["new", "--name", name]).run("key");
    assert!(output.status.success(), "{output:?}");
    let shown = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let table = String::from_utf8_lossy(&output.stderr).into_owned();
    let hash = table
        .split("hash = \"")
        .nth(1)
        .and_then(|rest| rest.split('"').next());
    (shown, hash.expect("a hash").to_owned())
}

/// Changes the settings file, and has the server read it again.
fn edit(setup: &Setup, server: &Server, from: &str, to: &str) {
    let path = setup.folder.path().join("sconce.toml");
    let text = std::fs::read_to_string(&path).expect("settings");
    assert!(text.contains(from), "{text}");
    std::fs::write(&path, text.replace(from, to)).expect("room for settings");
    server.hang_up();
}

#[test]
fn without_settings_nothing_remote_exists() {
    let server = Sconce::new().serve();
    for (path, body) in calls(MARKER, false) {
        let headers = [("x-route-policy", "remote-only"), ("x-route-session", "s")];
        let reply = ask(&server, path, &headers, &body);
        reply.ok();
        let said = reply
            .headers
            .iter()
            .find(|(name, _)| name.starts_with("x-route"));
        assert_eq!(said, None, "{path}");
    }
    let metrics = server.get("/metrics").body;
    assert!(!metrics.contains("sconce_route"), "{metrics}");
    let upstreams = server.get("/health/upstreams");
    assert!(!upstreams.body.contains("target"), "{upstreams:?}");
}

#[test]
fn an_upstream_that_nobody_was_given_gets_nothing_under_any_policy() {
    let upstream = Upstream::start(willing);
    let setup = silent(&upstream).policy("remote-only");
    let server = setup.serve();
    let sentence = server.log();
    assert!(
        sentence.contains("Nothing leaves this machine: upstream 127.0.0.1:"),
        "{sentence}"
    );
    for policy in [
        "local-only",
        "prefer-local",
        "cheapest",
        "fastest",
        "prefer-remote",
    ] {
        for stream in [false, true] {
            for (path, body) in calls(MARKER, stream) {
                let reply = ask(&server, path, &[("x-route-policy", policy)], &body);
                assert_eq!(reply.status, 200, "{policy} {path} {reply:?}");
                assert_eq!(
                    reply.header("x-route-target"),
                    Some("local"),
                    "{policy} {path}"
                );
                assert_eq!(reply.header("x-route-attempts"), Some("0"));
            }
        }
    }
    for stream in [false, true] {
        for (path, body) in calls(MARKER, stream) {
            let reply = ask(&server, path, &[("x-route-policy", "remote-only")], &body);
            assert_ne!(reply.header("x-route-target"), Some("remote"), "{reply:?}");
            assert_eq!(
                reply.header("x-route-attempts"),
                Some("0"),
                "{path} {reply:?}"
            );
            let reason = reply.header("x-route-reason").expect("a reason");
            // A raw prompt is no conversation, and the first thing that speaks against it is told.
            assert_eq!(reason, "egress_denied:level", "{path}");
        }
    }
    assert_untouched(&upstream);
    assert_eq!(upstream.bytes_received(), 0, "not even a question");
}

#[test]
fn a_redirect_is_not_followed_and_its_end_hears_nothing() {
    let elsewhere = Upstream::start(willing);
    let to = format!("{}/v1/chat/completions", elsewhere.url());
    let upstream = Upstream::start(move |request| match request.method.as_str() {
        "GET" => willing(request),
        _ => Reply::redirect(&to),
    });
    let setup = silent(&upstream)
        .add("[egress]\nanonymous = \"any\"\n")
        .policy("remote-only");
    let server = setup.serve();
    let reply = server.post("/v1/chat/completions", &marked());
    assert_eq!(reply.status, 424, "{reply:?}");
    assert!(!reply.body.contains(&elsewhere.url()), "{reply:?}");
    assert_eq!(departures(&upstream).len(), 1, "asked once, and not again");
    assert_eq!(elsewhere.bytes_received(), 0);
}

#[test]
fn private_and_plain_addresses_are_refused_unless_allowed() {
    let check = |url: &str, more: &str| {
        let setup = Setup::new().add(&format!(
            "[[remote.upstream]]\nname = \"up\"\nkind = \"openai_compat\"\nbase_url = \"{url}\"\n{more}\
             [[remote.target]]\nname = \"far\"\nupstream = \"up\"\nmodel = \"m\"\n"
        ));
        let output = setup.sconce().run("check");
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    };
    let mut faults = Vec::new();
    let (plain, private) = ("allow_plaintext = true\n", "allow_private = true\n");
    for (url, more, word) in [
        ("http://10.1.2.3:8000", "", "allow_plaintext"),
        ("http://10.1.2.3:8000", plain, "allow_private"),
        ("http://10.1.2.3:8000", private, "allow_plaintext"),
        ("https://10.1.2.3", "", "allow_private"),
        ("https://192.168.0.1", "", "allow_private"),
        ("https://169.254.169.254", "", "allow_private"),
        ("https://[fd00::1]", "", "allow_private"),
        ("https://[::ffff:10.0.0.1]", "", "allow_private"),
        ("https://0x0a000001", "", "allow_private"),
        ("https://167772161", "", "allow_private"),
        ("https://100.100.100.200", "", "allow_private"),
        ("https://0.1.2.3", "", "allow_private"),
        ("https://198.18.0.1", "", "allow_private"),
        ("https://168.63.129.16", "", "allow_private"),
        ("https://[64:ff9b::a00:1]", "", "allow_private"),
        ("https://[2002:a00:1::]", "", "allow_private"),
        ("https://[::10.0.0.1]", "", "allow_private"),
        ("http://example.org", "", "allow_plaintext"),
    ] {
        let (sound, text) = check(url, more);
        if sound || !text.contains(word) {
            faults.push(format!("{url} {more}: {text}"));
        }
    }
    assert_eq!(faults, Vec::<String>::new());
    for (url, more) in [
        ("http://10.1.2.3:8000", format!("{plain}{private}")),
        ("https://10.1.2.3", private.to_owned()),
        ("http://127.0.0.1:8000", String::new()),
        ("https://example.org", String::new()),
    ] {
        let (sound, text) = check(url, &more);
        assert!(sound, "{url} {more}: {text}");
    }
}

#[test]
fn proxies_of_the_environment_are_not_asked() {
    let (upstream, proxy) = (Upstream::start(willing), Upstream::start(willing));
    let mut setup = silent(&upstream)
        .add("[egress]\nanonymous = \"dedicated\"\n")
        .policy("remote-only");
    for name in [
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
    ] {
        setup = setup.env(name, &proxy.url());
    }
    let server = setup.serve();
    server.post("/v1/chat/completions", &marked()).ok();
    assert_eq!(departures(&upstream).len(), 1);
    assert!(proxy.connections().is_empty());
}

#[test]
fn headers_cross_neither_way_unless_they_are_meant_to() {
    let upstream = Upstream::start(|request| {
        willing(request)
            .header("set-cookie", "a=b")
            .header("location", "http://elsewhere.example")
            .header("server", "scripted")
            .header("x-route-target", "local")
            .header("access-control-allow-origin", "http://elsewhere.example")
            .header("x-secret", "of the upstream")
    });
    let setup = silent(&upstream)
        .add("[egress]\nanonymous = \"dedicated\"\n")
        .policy("remote-only")
        .env("UNUSED_TOKEN", "somebodys-token-4711");
    let server = setup.serve();
    let foreign = [
        ("authorization", "Bearer of-the-caller"),
        ("cookie", "session=of-the-caller"),
        ("x-forwarded-for", "192.0.2.7"),
        ("x-hf-bill-to", "of-the-caller"),
        ("x-api-key", "of-the-caller"),
        ("user-agent", "of-the-caller"),
        (
            "traceparent",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ),
        ("x-request-id", "of-the-caller"),
        ("referer", "http://of-the-caller.example"),
        ("origin", "http://of-the-caller.example"),
    ];
    for stream in [false, true] {
        let mut body = marked();
        body["stream"] = stream.into();
        let reply = ask(&server, "/v1/chat/completions", &foreign, &body);
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(reply.header("x-route-target"), Some("remote"));
        for name in ["set-cookie", "location", "server", "x-secret"] {
            assert_eq!(reply.header(name), None, "{reply:?}");
        }
        let head = format!("{:?}", reply.headers);
        assert!(!head.contains("elsewhere.example"), "{head}");
    }
    for text in [
        "of-the-caller",
        "192.0.2.7",
        "0af7651916cd43dd",
        "somebodys-token",
    ] {
        assert!(!has_received(&upstream, text), "{text}");
    }
}

#[test]
fn an_answer_that_is_too_large_or_compressed_is_refused() {
    let plain = Upstream::start(|request| match request.method.as_str() {
        "GET" => willing(request),
        _ => Reply::chat(&["x".repeat(9_000).as_str(), "y"]),
    });
    let packed = Upstream::start(|request| willing(request).header("content-encoding", "gzip"));
    for upstream in [&plain, &packed] {
        let setup = silent(upstream)
            .add("[remote.limits]\nresponse_bytes = 4096\n[egress]\nanonymous = \"dedicated\"\n")
            .policy("remote-only");
        let server = setup.serve();
        let reply = server.post("/v1/chat/completions", &marked());
        assert_ne!(reply.status, 200, "{reply:?}");
        assert!(!reply.body.contains("xxxx"), "{reply:?}");
        assert!(!departures(upstream).is_empty());
    }
}
