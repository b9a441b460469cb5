//! The page at `/ui/` and the events that it watches.

use std::fs;
use std::io::Read;

use serde_json::{Value as Json, json};

use crate::hybrid::far::willing;
use crate::hybrid::front::key;
use crate::hybrid::{Setup, chat};
use crate::support::eventually;
use crate::support::models::Copy;
use crate::support::server::{Sconce, Server};
use crate::support::wire::{self, Reply, Streaming};

const CHAT: &str = "/v1/chat/completions";

fn get(server: &Server, path: &str, extra: &str) -> Reply {
    server.send(&wire::get(path).replace("host: test\r\n", &format!("host: test\r\n{extra}")))
}

/// Watches a server.
fn watch(server: &Server, extra: &str) -> Streaming {
    let request =
        wire::get("/ui/events").replace("host: test\r\n", &format!("host: test\r\n{extra}"));
    wire::receive_stream(wire::send(server.address(), &request))
}

/// The next event with its name; none at the end.
fn next(stream: &mut Streaming) -> Option<(String, Json)> {
    let frame = stream.next_frame()?;
    let (name, data) = frame.split_once('\n').expect("two lines");
    let name = name.strip_prefix("event: ").expect("a named event");
    let data = data.strip_prefix("data: ").expect("data");
    Some((name.to_owned(), serde_json::from_str(data).expect("JSON")))
}

/// The first of the next events that has something.
fn until<T>(stream: &mut Streaming, find: impl Fn(&Json) -> Option<T>) -> T {
    eventually("an event", || {
        let (_, event) = next(stream).expect("a stream without an end");
        find(&event)
    })
}

/// The first request that is over and that this holds of.
fn decision(stream: &mut Streaming, holds: impl Fn(&Json) -> bool) -> Json {
    until(stream, |event| {
        let decisions = event["decisions"].as_array().expect("a list");
        decisions.iter().find(|past| holds(past)).cloned()
    })
}

#[test]
fn the_page_is_in_the_binary_and_may_talk_to_this_server_only() {
    let server = Sconce::new().serve();
    let page = server.get("/ui/");
    assert_eq!(page.status, 200);
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    let policy = page.header("content-security-policy").expect("a policy");
    for part in [
        "default-src 'none'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
    ] {
        assert!(policy.contains(part), "{policy}");
    }
    for (name, kind) in [
        ("app.js", "text/javascript; charset=utf-8"),
        ("app.css", "text/css; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
        ("licenses.txt", "text/plain; charset=utf-8"),
    ] {
        let path = format!("/ui/{name}");
        let file = server.get(&path);
        assert_eq!(
            (file.status, file.header("content-type")),
            (200, Some(kind)),
            "{name}"
        );
        assert!(!file.body.is_empty(), "{name}");
        assert!(
            !file.body.contains("//cdn"),
            "{name} is fetched from elsewhere"
        );
        let tag = file.header("etag").expect("a tag");
        let again = get(&server, &path, &format!("if-none-match: {tag}\r\n"));
        assert_eq!((again.status, again.body.as_str()), (304, ""), "{name}");
    }
    for path in ["/ui/app.ts", "/ui/../Cargo.toml", "/ui/%2e%2e/Cargo.toml"] {
        assert_eq!(server.get(path).status, 404, "{path}");
    }
    // Relative, so that it leads there behind a prefix, too.
    let redirect = server.get("/ui");
    assert_eq!(
        (redirect.status, redirect.header("location")),
        (303, Some("ui/"))
    );
}

#[test]
fn a_browser_gets_the_page_where_everybody_else_gets_the_health() {
    let server = Sconce::new().serve();
    let html = "accept: text/html,application/xhtml+xml,*/*;q=0.8\r\n";
    let browser = format!("{html}user-agent: Mozilla/5.0 (X11; Linux x86_64)\r\n");
    let page = get(&server, "/", &browser);
    assert_eq!((page.status, page.header("location")), (303, Some("ui/")));
    // Java's own client takes HTML before anything else.
    let java = "accept: text/html, image/gif, *; q=.2\r\nuser-agent: Java/21\r\n";
    for extra in [
        "",
        "accept: */*\r\n",
        "accept: application/json\r\n",
        html,
        java,
    ] {
        let health = get(&server, "/", extra);
        assert_eq!((health.status, health.body.as_str()), (200, ""), "{extra}");
        let vary = health.headers.iter().filter(|(name, _)| name == "vary");
        let vary: Vec<&str> = vary.map(|(_, value)| value.as_str()).collect();
        assert!(vary.contains(&"accept, user-agent"), "{vary:?}");
    }
}

#[test]
fn who_watches_is_told_of_requests_and_of_each_second() {
    let server = Sconce::new().serve();
    server
        .post(CHAT, &chat("What is the capital of France?"))
        .ok();
    let mut stream = watch(&server, "");
    let (name, history) = next(&mut stream).expect("history");
    assert_eq!(name, "history");
    assert_eq!(history["server"]["model"], "sconce-demo");
    assert_eq!(history["server"]["hybrid"], false);
    let past = &history["decisions"][0];
    assert_eq!(past["path"], CHAT);
    assert_eq!(
        (&past["side"], &past["reason"]),
        (&json!("local"), &json!("local_ok"))
    );
    assert_eq!((&past["ok"], &past["seq"]), (&json!(true), &json!(0)));
    assert!(
        past["ttft_ms"].as_f64() <= past["total_ms"].as_f64(),
        "{past}"
    );
    assert!(past["output_tokens"].as_u64() > Some(0), "{past}");
    assert!(
        !past.to_string().contains("France"),
        "a text is told: {past}"
    );
    server.post(CHAT, &chat("What is 2 + 3?")).ok();
    let second = decision(&mut stream, |_| true);
    assert_eq!(second["seq"], 1, "the first one is not told again");
    let (name, tick) = next(&mut stream).expect("a tick");
    assert_eq!(name, "tick");
    assert_eq!(tick["totals"]["local"], json!({"local_ok": 2}));
    assert_eq!(
        (&tick["targets"], &tick["budgets"]),
        (&json!([]), &json!([]))
    );
    let sample = &tick["sample"];
    assert!(sample["kv_total"].as_u64() > Some(0), "{sample}");
    assert!(sample["ttft_ms"]["p50"].as_f64() > Some(0.0), "{sample}");
    // Three answers are one call with the tokens of three.
    let before = tick["totals"]["output_tokens"].as_u64().expect("a count");
    let mut three = chat("Tell me a joke.");
    three["n"] = 3.into();
    three["max_tokens"] = 4.into();
    server.post(CHAT, &three).ok();
    let after = until(&mut stream, |tick| {
        (tick["totals"]["local"]["local_ok"] == 3).then(|| tick["totals"]["output_tokens"].as_u64())
    });
    assert_eq!(after, Some(before + 12));
    // What is refused counts, too.
    let wrong = json!({"messages": [{"role": "user", "content": "a"}], "temperature": -1});
    assert_eq!(server.post(CHAT, &wrong).status, 422);
    until(&mut stream, |tick| {
        (tick["totals"]["refused"] == json!({"invalid": 1})).then_some(())
    });
}

#[test]
fn what_a_caller_writes_for_a_name_is_not_kept() {
    let server = Sconce::new().serve();
    let mut question = chat("Hello");
    question["model"] = "the secret of my life ".repeat(1000).into();
    server.post(CHAT, &question).ok();
    let mut long = chat("long");
    long["messages"][0]["content"] = "word ".repeat(5000).into();
    assert_eq!(server.post(CHAT, &long).status, 422);
    let (_, history) = next(&mut watch(&server, "")).expect("history");
    let text = history.to_string();
    assert!(!text.contains("secret") && !text.contains("word"), "{text}");
    let refused = &history["decisions"][1];
    assert_eq!(
        (&refused["outcome"], &refused["reason"]),
        (&json!("too_long"), &Json::Null)
    );
    assert_eq!(refused["side"], Json::Null);
}

#[test]
fn what_runs_is_seen_while_it_runs() {
    let model = Copy::endless();
    let server = Sconce::new()
        .flag("--model-id", &model.path().display().to_string())
        .flag("--max-total-tokens", "131072")
        .flag("--max-batch-total-tokens", "131072")
        .serve();
    let mut stream = watch(&server, "");
    let body = json!({"inputs": "a", "parameters": {"max_new_tokens": 100_000}});
    let mut answer = server.stream("/generate_stream", &body);
    answer.next_event().expect("a token");
    until(&mut stream, |event| {
        let sample = &event["sample"];
        let busy = sample["running"] == 1 && sample["decode_tps"].as_f64() > Some(0.0);
        (busy && sample["kv_used"].as_u64() > Some(0)).then_some(())
    });
    drop(answer);
    let past = decision(&mut stream, |_| true);
    assert_eq!(
        (&past["outcome"], &past["ok"]),
        (&json!("dropped"), &json!(false))
    );
    until(&mut stream, |tick| {
        (tick["totals"]["unfinished"] == json!({"dropped": 1})).then_some(())
    });
}

#[test]
fn where_it_went_and_why_is_told_in_sentences() {
    let upstream = willing(&["Elsewhere"]);
    let setup = Setup::new()
        .add(&format!(
            "[[remote.upstream]]\nname = \"up\"\nkind = \"openai_compat\"\nengine = \"openai\"\nbase_url = \"{}\"\n\
             billing = \"own\"\n[[remote.target]]\nname = \"far\"\nupstream = \"up\"\nmodel = \"m\"\n\
             [[route.model]]\nname = \"default\"\ntargets = [\"far\"]\n[egress]\nanonymous = \"any\"\n",
            upstream.url()
        ))
        .policy("prefer-remote");
    let server = setup.serve();
    let mut stream = watch(&server, "");
    assert_eq!(
        server.post(CHAT, &chat("Hello")).header("x-route-target"),
        Some("remote")
    );
    let past = decision(&mut stream, |_| true);
    assert_eq!(
        (&past["side"], &past["upstream"]),
        (&json!("remote"), &json!("up"))
    );
    assert_eq!(past["attempts"][0]["target"], "far");
    let told = past["explanation"].to_string();
    assert!(
        told.contains("it goes to `far`: the policy wants an upstream"),
        "{told}"
    );
    let (_, tick) = next(&mut stream).expect("a tick");
    assert_eq!(tick["targets"][0]["target"], "far");
    assert_eq!(tick["totals"]["remote"], json!({"policy_remote": 1}));
    // Gone: this machine stands in, and the target's state says so.
    drop(upstream);
    assert_eq!(server.post(CHAT, &chat("Hello")).status, 200);
    let past = decision(&mut stream, |past| past["side"] == "local");
    assert_eq!(past["reason"], "remote_unavailable");
    assert_eq!(past["ok"], true);
    assert!(past["attempts"][0]["class"].is_string(), "{past}");
    let told = past["explanation"].to_string();
    assert!(
        told.contains("In the end this machine answered: no upstream can answer"),
        "{told}"
    );
}

#[test]
fn what_an_answer_made_here_saved_is_told_wherever_it_is_read() {
    let upstream = willing(&["Elsewhere"]);
    let setup = Setup::new().add(&format!(
        "[[remote.upstream]]\nname = \"up\"\nkind = \"openai_compat\"\nengine = \"openai\"\nprovider = \"lab\"\n\
         base_url = \"{}\"\nbilling = \"tokens\"\nmax_usd_per_day = 1\n[[remote.target]]\nname = \"far\"\n\
         upstream = \"up\"\nmodel = \"m\"\nprice = {{ input = 1.0, output = 2.0 }}\n\
         [[route.model]]\nname = \"default\"\ntargets = [\"far\"]\n[egress]\nanonymous = \"any\"\n",
        upstream.url()
    ));
    let server = setup.serve();
    let mut stream = watch(&server, "");
    let reply = server.post(&format!("{CHAT}?route_details=1"), &chat("What is 2 + 3?"));
    let answer = reply.ok();
    let usage = &answer["usage"];
    let tokens = |name: &str| usage[name].as_u64().expect("a count");
    let saved = (tokens("prompt_tokens") + 2 * tokens("completion_tokens")) as f64 / 1e6;
    assert_eq!(answer["route"]["saved_usd"], saved);
    let header = reply.header("x-route-saved-usd").expect("a saving");
    assert_eq!(header.parse(), Ok(saved));
    assert_eq!(decision(&mut stream, |_| true)["saved_usd"], saved);
    let mut streamed = chat("What is 2 + 3?");
    streamed["stream"] = true.into();
    let body = server.post(CHAT, &streamed).body;
    assert!(
        body.contains(&format!("x-route-saved-usd={header}")),
        "{body}"
    );
}

#[test]
fn another_sites_page_may_not_watch() {
    let server = Sconce::new().serve();
    let own = format!("origin: http://{}\r\n", server.address());
    for extra in [
        "sec-fetch-site: cross-site\r\n",
        "sec-fetch-site: same-site\r\n",
        "origin: https://elsewhere.test\r\n",
        "origin: null\r\n",
        // The host that is asked for in these tests is `test`.
        &own,
    ] {
        let reply = get(&server, "/ui/events", extra);
        assert_eq!(reply.status, 403, "{extra}");
        assert!(reply.body.contains("own page"), "{reply:?}");
    }
    for extra in [
        "",
        "sec-fetch-site: same-origin\r\n",
        "origin: http://test\r\n",
    ] {
        assert!(next(&mut watch(&server, extra)).is_some(), "{extra}");
    }
}

#[test]
fn the_one_key_of_a_server_is_its_owners() {
    let server = Sconce::new().env("API_KEY", "letmein").serve();
    assert_eq!(server.get("/ui/events").status, 401);
    let stream = &mut watch(&server, "authorization: Bearer letmein\r\n");
    assert!(next(stream).is_some());
}

#[test]
fn only_those_who_run_the_server_watch_and_no_longer_than_their_key_holds() {
    let (admin, may) = key("admin", "admin = true");
    let (user, may_not) = key("user", "");
    let setup = Setup::new().add(&may).add(&may_not);
    let before = setup.text.clone();
    let server = setup.serve();
    assert_eq!(
        server.get("/ui/").status,
        200,
        "the page itself holds nothing"
    );
    assert_eq!(server.get("/ui/events").status, 401);
    let shown = |key: &str| format!("authorization: Bearer {key}\r\n");
    assert_eq!(
        get(&server, "/ui/events", &shown("sk-sconce-wrong")).status,
        401
    );
    let refused = get(&server, "/ui/events", &shown(&user));
    assert_eq!(refused.status, 403);
    assert!(refused.body.contains("admin = true"), "{refused:?}");
    let mut stream = watch(&server, &shown(&admin));
    assert!(next(&mut stream).is_some());
    let path = setup.folder.path().join("sconce.toml");
    fs::write(path, before.replace(&may, "")).expect("ours");
    server.hang_up();
    eventually("the key is revoked", || {
        next(&mut stream).is_none().then_some(())
    });
}

#[test]
fn so_many_may_watch_and_a_server_ends_while_they_do() {
    let mut server = Sconce::new().serve();
    let watchers: Vec<Streaming> = (0..64).map(|_| watch(&server, "")).collect();
    let refused = server.get("/ui/events");
    assert_eq!(refused.status, 429, "{refused:?}");
    assert!(refused.header("retry-after").is_some());
    drop(watchers);
    // The head alone: the body has no end.
    eventually("there is room again", || {
        let mut stream = wire::send(server.address(), &wire::get("/ui/events"));
        let mut head = [0; 12];
        stream.read_exact(&mut head).expect("a head");
        (head == *b"HTTP/1.1 200").then_some(())
    });
    let mut stream = watch(&server, "");
    assert!(next(&mut stream).is_some());
    server.terminate();
    eventually("nothing more is told", || {
        next(&mut stream).is_none().then_some(())
    });
    assert!(server.wait().success());
}
