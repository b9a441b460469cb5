//! Random requests over every route, under random policies and faults: what is pinned to this machine
//! never reaches an upstream's socket.

use serde_json::{Value as Json, json};

use super::{MARKER, Setup, ask, departures, has_received, new_key, willing};
use crate::support::chat::merge;
use crate::support::server::Server;
use crate::support::upstream::{Reply, Request, Upstream};

/// Requests of one run.
const REQUESTS: usize = 240;

/// Random choices from a fixed seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as usize % sides
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.roll(of.len())]
    }

    fn coin(&mut self) -> bool {
        self.roll(2) == 0
    }
}

/// A fault, by the request's number, or an answer.
fn moody(request: &Request) -> Reply {
    if request.method == "GET" {
        return willing(request);
    }
    let answer = willing(request);
    match request.number % 9 {
        0 => Reply::json(500, &json!({"error": "no"})),
        1 => Reply::json(429, &json!({"error": "slow down"})).header("retry-after", "0"),
        2 => Reply::reset(),
        3 => answer.reset_after(1),
        4 => Reply::bad_gateway(),
        5 => answer.close_after(1),
        6 => Reply::json(200, &json!({"error": {"message": "in disguise"}})),
        _ => answer,
    }
}

/// Fields by which callers of other gateways have sent texts and credentials to places of their own.
fn hostile(dice: &mut Dice, evil: &str) -> Json {
    let url = format!("{evil}/v1");
    let all = [
        json!({"api_base": url}),
        json!({"base_url": url, "api_key": "sk-0"}),
        json!({"endpoint": url}),
        json!({"extra_body": {"api_base": url}, "extra_headers": {"host": evil}}),
        json!({"provider": "replicate", "custom_llm_provider": "openai"}),
        json!({"headers": {"x-route-policy": "remote-only"}}),
        json!({"metadata": {"route": "auto"}}),
        json!({"model": url}),
        json!({"model": "gpt-4o"}),
        json!({"model": "far"}),
        json!({"model": "hf/far:together"}),
        json!({"parameters": {"api_base": url, "max_new_tokens": 3}}),
        json!({"fallbacks": [{"model": url}], "route": "remote", "target": "far"}),
        json!({}),
    ];
    dice.pick(&all).clone()
}

fn request(dice: &mut Dice, text: &str, evil: &str) -> (&'static str, Json) {
    let stream = dice.coin();
    let calls = super::calls(text, stream);
    let (path, mut body) = dice.pick(&calls).clone();
    if path == "/v1/chat/completions" {
        let user = json!({"role": "user", "content": "Hi"});
        let function = |name: &str, description: &str| {
            json!([{"type": "function", "function": {
            "name": name, "description": description, "parameters": {"type": "object", "properties": {}}}}])
        };
        let call = json!([{"id": "c", "type": "function", "function": {
            "name": "f", "arguments": json!({"a": [1, {"b": text}]}).to_string()}}]);
        match dice.roll(7) {
            0 => body["messages"] = json!([{"role": "system", "content": text}, user]),
            1 => merge(
                &mut body,
                json!({"messages": [user], "tools": function("f", text)}),
            ),
            2 => merge(
                &mut body,
                json!({"messages": [user], "tools": function(text, "d")}),
            ),
            3 => {
                let said = json!({"role": "assistant", "content": null, "tool_calls": call});
                let told = json!({"role": "tool", "tool_call_id": "c", "content": "ok"});
                body["messages"] = json!([user, said, told]);
            }
            4 => merge(&mut body, json!({"messages": [user], "stop": [text]})),
            _ => {}
        }
    }
    merge(&mut body, hostile(dice, evil));
    (path, body)
}

fn headers(dice: &mut Dice) -> Vec<(&'static str, &'static str)> {
    let all = [
        ("x-route-policy", "remote-only"),
        ("x-route-policy", "prefer-remote"),
        ("x-route-policy", "fastest"),
        ("x-route-strict", "false"),
        ("x-route-session", "one-for-all"),
        ("x-route-max-cost-usd", "1000000"),
        ("x-route-model", "far"),
        ("x-route-target", "remote"),
        ("x-forwarded-host", "evil.example"),
        ("x-hf-bill-to", "somebody"),
        ("x-team", "legal"),
        ("cookie", "session=1"),
    ];
    let mut some = Vec::new();
    for _ in 0..dice.roll(4) {
        let (name, value) = *dice.pick(&all);
        if some.iter().all(|(known, _)| *known != name) {
            some.push((name, value));
        }
    }
    some
}

/// Two upstreams that everybody may use, the second in bad health, and one rule that keeps the marker here.
fn setup(good: &Upstream, bad: &Upstream, policy: &str, keys: &str) -> Setup {
    let upstream = |name: &str, kind: &str, url: String| {
        format!(
            "[[remote.upstream]]\nname = \"{name}\"\nkind = \"{kind}\"\nbase_url = \"{url}\"\n\
             [[remote.target]]\nname = \"{name}-far\"\nupstream = \"{name}\"\nmodel = \"m\"\n\
             capabilities = {{ tools = true, structured_output = true }}\n"
        )
    };
    Setup::new()
        .add("fidelity = \"lenient\"\n[remote.parking]\nwait_max_seconds = 0\nbase_seconds = 0.01\nmax_seconds = 0.02\n")
        .add("[remote.breaker]\nopen_base_seconds = 0.05\nopen_max_seconds = 0.1\n")
        .add("[remote.retry]\nbackoff_base_ms = 1\nbackoff_max_ms = 2\nbudget_floor_per_second = 1000\n")
        .add(&upstream("bad", "tgi", bad.url()))
        .add(&upstream("good", "openai_compat", good.url()))
        .add(
            "[[route.model]]\nname = \"default\"\nlocal = true\ntargets = [\"bad-far\", \"good-far\"]\n\
             [[route.model]]\nname = \"far\"\nlocal = false\ntargets = [\"good-far\", \"bad-far\"]\n\
             [[route.rule]]\nname = \"away\"\nwhen = { headers = { x-team = \"^legal$\" } }\nthen = \"remote\"\n",
        )
        .policy(policy)
        .add(&format!(
            "[egress]\nanonymous = \"any\"\ndefault = \"any\"\n\
             [[egress.rule]]\nname = \"pinned\"\npattern = '{MARKER}'\naction = \"local-only\"\n{keys}"
        ))
}

fn play(server: &Server, bearer: &str, seed: u64, evil: &str) -> (usize, usize) {
    let mut dice = Dice(seed);
    let (mut plain, mut pinned) = (0, 0);
    for i in 0..REQUESTS {
        let marked = dice.coin();
        let text = if marked { MARKER } else { "walnut" };
        let text = format!("{} {text} {i}", dice.pick(&["Say", "About", "\"", "…"]));
        let (path, body) = request(&mut dice, &text, evil);
        let mut extra = headers(&mut dice);
        extra.push(("authorization", bearer));
        let reply = ask(server, path, &extra, &body);
        let away = reply.header("x-route-target") == Some("remote");
        assert!(!(marked && away), "{path} {body} {extra:?}: {reply:?}");
        match marked {
            true => pinned += usize::from(reply.status == 200),
            false => plain += usize::from(away),
        }
    }
    (plain, pinned)
}

#[test]
fn what_is_pinned_reaches_nobody_whatever_else_a_request_says() {
    let (widening, hash) = new_key("wide");
    let keys = format!("[[keys]]\nname = \"wide\"\nhash = \"{hash}\"\nmay_widen_policy = true\n");
    for (seed, policy) in [(1, "prefer-remote"), (2, "prefer-local"), (3, "fastest")] {
        let evil = Upstream::start(willing);
        let (good, bad) = (Upstream::start(willing), Upstream::start(moody));
        let setup = setup(&good, &bad, policy, &keys);
        let server = setup.serve();
        let bearer = format!("Bearer {widening}");
        let seed = 0x9e37_79b9_7f4a_7c15_u64.wrapping_mul(seed);
        let (plain, pinned) = play(&server, &bearer, seed, &evil.url());
        assert!(
            plain > 10 && pinned > 10,
            "{policy}: {plain} left, {pinned} stayed"
        );
        for upstream in [&good, &bad] {
            assert!(!has_received(upstream, MARKER), "{policy}");
            for request in departures(upstream) {
                for name in [
                    "authorization",
                    "cookie",
                    "x-hf-bill-to",
                    "x-forwarded-host",
                    "x-team",
                ] {
                    assert_eq!(request.header(name), None, "{request:?}");
                }
                let host = request.header("host").map(str::to_owned);
                assert_eq!(host, Some(upstream.address().to_string()));
                assert!(
                    !request.json().to_string().contains(&evil.url()),
                    "{request:?}"
                );
            }
        }
        assert!(!departures(&bad).is_empty() && !departures(&good).is_empty());
        assert!(evil.connections().is_empty(), "{policy}");
    }
}

#[test]
fn a_model_that_is_an_address_leads_nowhere() {
    let (good, evil) = (Upstream::start(willing), Upstream::start(willing));
    let setup = setup(&good, &good, "prefer-remote", "");
    let server = setup.serve();
    for model in [
        evil.url(),
        format!("openai/{}", evil.url()),
        "file:///etc/passwd".to_owned(),
    ] {
        let mut body = super::marked();
        body["model"] = model.clone().into();
        // Under TGI's rule it means the model served here; no address is ever read.
        let reply = server.post("/v1/chat/completions", &body);
        assert_eq!(reply.status, 200, "{model}: {reply:?}");
    }
    assert!(evil.connections().is_empty());
}
