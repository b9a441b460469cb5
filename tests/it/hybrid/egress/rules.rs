//! Content rules: what they find stays here, or is answered by nobody, wherever in a request it stands.

use serde_json::{Value as Json, json};

use super::{MARKER, Setup, assert_untouched, departures, has_received, silent, willing};
use crate::support::chat::merge;
use crate::support::upstream::Upstream;

/// What a rule that blocks looks for.
const FORBIDDEN: &str = "falcon-onyx-0815";

/// Two rules, and a policy by which whatever may leave does.
fn ruled(upstream: &Upstream, policy: &str) -> Setup {
    silent(upstream)
        .add(&format!(
            "[egress]\nanonymous = \"any\"\n\
             [[egress.rule]]\nname = \"pinned\"\npattern = '(?i){MARKER}'\naction = \"local-only\"\n\
             [[egress.rule]]\nname = \"forbidden\"\npattern = '{FORBIDDEN}'\naction = \"block\"\n"
        ))
        .policy(policy)
}

/// Every place of a chat in which somebody's text may stand, holding this one.
fn places(text: &str) -> Vec<(&'static str, Json)> {
    let user = json!({"role": "user", "content": "Hi"});
    let tool = |name: &str, description: &str, parameters: Json| {
        json!({"tools": [{"type": "function", "function": {
            "name": name, "description": description, "parameters": parameters}}]})
    };
    let plain = json!({"type": "object", "properties": {"a": {"type": "string"}}});
    let called = |arguments: &str| {
        json!({"messages": [user, {"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "done"}, user]})
    };
    let schema = |schema: Json| {
        json!({"response_format": {"type": "json_schema", "json_schema": {
            "name": "s", "schema": schema}}})
    };
    let escaped: String = text
        .chars()
        .map(|c| format!("\\u{:04x}", c as u32))
        .collect();
    vec![
        (
            "user",
            json!({"messages": [{"role": "user", "content": text}]}),
        ),
        (
            "upper case",
            json!({"messages": [{"role": "user", "content": text.to_uppercase()}]}),
        ),
        (
            "part",
            json!({"messages": [{"role": "user", "content": [
            {"type": "text", "text": "see "}, {"type": "text", "text": text}]}]}),
        ),
        (
            "system",
            json!({"messages": [{"role": "system", "content": text}, user]}),
        ),
        (
            "assistant",
            json!({"messages": [user, {"role": "assistant", "content": text}, user]}),
        ),
        (
            "tool's answer",
            json!({"messages": [user, {"role": "assistant", "content": null, "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": text}]}),
        ),
        (
            "name",
            json!({"messages": [{"role": "user", "name": text, "content": "Hi"}]}),
        ),
        ("argument", called(&json!({"a": text}).to_string())),
        ("argument's key", called(&json!({text: 1}).to_string())),
        (
            "escaped argument",
            called(&format!("{{\"a\":\"{escaped}\"}}")),
        ),
        ("tool's name", tool(text, "d", plain.clone())),
        ("tool's description", tool("f", text, plain.clone())),
        (
            "parameter",
            tool(
                "f",
                "d",
                json!({"type": "object", "properties": {text: {"type": "string"}}}),
            ),
        ),
        (
            "parameter's words",
            tool(
                "f",
                "d",
                json!({"type": "object", "properties": {
            "a": {"type": "string", "description": text}}}),
            ),
        ),
        (
            "schema's key",
            schema(json!({"type": "object", "properties": {text: {"type": "string"}}})),
        ),
        (
            "schema's choice",
            schema(json!({"type": "object", "properties": {"a": {"enum": [text]}}})),
        ),
        ("stop", json!({"stop": [text]})),
    ]
}

fn chat(more: Json) -> Json {
    let mut body =
        json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "temperature": 0});
    merge(&mut body, more);
    body
}

/// Whether the text, in any case, is among what came.
fn came(upstream: &Upstream, text: &str) -> bool {
    has_received(upstream, text) || has_received(upstream, &text.to_uppercase())
}

#[test]
fn what_a_rule_finds_stays_here_wherever_it_stands() {
    let upstream = Upstream::start(willing);
    let setup = ruled(&upstream, "prefer-remote");
    let server = setup.serve();
    let mut faults = Vec::new();
    for (place, more) in places(MARKER) {
        for stream in [false, true] {
            let mut body = chat(more.clone());
            body["stream"] = stream.into();
            let reply = server.post("/v1/chat/completions", &body);
            let target = reply.header("x-route-target");
            if target == Some("remote") || !departures(&upstream).is_empty() {
                faults.push(format!("{place}: {reply:?}"));
            }
        }
    }
    assert_eq!(faults, Vec::<String>::new());
    assert!(!came(&upstream, MARKER));
    assert_untouched(&upstream);
}

#[test]
fn what_a_rule_blocks_is_answered_by_nobody_wherever_it_stands() {
    let upstream = Upstream::start(willing);
    let setup = ruled(&upstream, "prefer-local");
    let server = setup.serve();
    let mut faults = Vec::new();
    for (place, more) in places(FORBIDDEN) {
        if place == "upper case" {
            continue;
        }
        let reply = server.post("/v1/chat/completions", &chat(more));
        if reply.status != 422 || !reply.body.contains("rule `forbidden` blocks this text") {
            faults.push(format!("{place}: {} {}", reply.status, reply.body));
        }
    }
    assert_eq!(faults, Vec::<String>::new());
    assert_untouched(&upstream);
}

#[test]
fn the_same_places_do_leave_with_other_words_in_them() {
    let upstream = Upstream::start(willing);
    let setup = ruled(&upstream, "remote-only");
    let text = std::fs::read_to_string(write(&setup)).expect("settings");
    let open =
        "model = \"org/far-model\"\ncapabilities = { tools = true, structured_output = true }";
    let setup = Setup::new().add(
        &text[text.find("[[remote.upstream]]").expect("an upstream")..]
            .replace("model = \"org/far-model\"", open),
    );
    let server = setup.serve();
    for (place, more) in places("walnut") {
        let before = departures(&upstream).len();
        let reply = server.post("/v1/chat/completions", &chat(more));
        if place == "name" || reply.status == 422 {
            // What has no equal there goes nowhere, which is not this test's business.
            continue;
        }
        assert_eq!(
            departures(&upstream).len(),
            before + 1,
            "{place}: {reply:?}"
        );
    }
    assert!(departures(&upstream).len() > 10);
}

/// Writes the settings, and says where.
fn write(setup: &Setup) -> std::path::PathBuf {
    drop(setup.sconce());
    setup.folder.path().join("sconce.toml")
}

#[test]
fn raw_prompts_are_looked_at_too() {
    let upstream = Upstream::start(willing);
    let text = format!(
        "[[remote.upstream]]\nname = \"up\"\nkind = \"tgi\"\nbase_url = \"{}\"\n\
         [[remote.target]]\nname = \"far\"\nupstream = \"up\"\nmodel = \"m\"\n\
         [[route.model]]\nname = \"default\"\nlocal = true\ntargets = [\"far\"]\n\
         [egress]\nanonymous = \"dedicated\"\n\
         [[egress.rule]]\nname = \"pinned\"\npattern = '{MARKER}'\naction = \"local-only\"\n",
        upstream.url()
    );
    let setup = Setup::new().add(&text).policy("prefer-remote");
    let server = setup.serve();
    let turns = format!("<|im_start|>user\n{MARKER}<|im_end|>\n<|im_start|>assistant\n");
    for stream in [false, true] {
        for inputs in [MARKER, turns.as_str()] {
            for (path, body) in super::calls(inputs, stream) {
                let reply = server.post(path, &body);
                assert_eq!(reply.status, 200, "{path} {reply:?}");
                assert_eq!(
                    reply.header("x-route-target"),
                    Some("local"),
                    "{path} {reply:?}"
                );
            }
        }
    }
    // Of several prompts the one that is found stays, and only that.
    let body = json!({"prompt": ["walnut", MARKER], "max_tokens": 4});
    let reply = server.post("/v1/completions", &body);
    assert!([200, 422].contains(&reply.status), "{reply:?}");
    assert!(!has_received(&upstream, MARKER));
    // The rule alone keeps them: without the word they leave.
    let plain = json!({"inputs": "walnut", "parameters": {"max_new_tokens": 4}});
    let reply = server.post("/generate", &plain);
    assert_eq!(reply.header("x-route-target"), Some("remote"), "{reply:?}");
}

#[test]
fn a_request_of_too_many_bytes_stays() {
    let upstream = Upstream::start(willing);
    let setup = silent(&upstream)
        .add("[egress]\nanonymous = \"any\"\nmax_bytes = 600\n")
        .policy("prefer-remote");
    let server = setup.serve();
    let long = super::super::chat(&format!("{MARKER} {}", "x".repeat(500)));
    let reply = server.post("/v1/chat/completions", &long);
    assert_eq!(reply.header("x-route-target"), Some("local"), "{reply:?}");
    let headers = [("x-route-policy", "local-only")];
    assert_eq!(
        super::ask(&server, "/v1/chat/completions", &headers, &long).status,
        200
    );
    assert_untouched(&upstream);
    let short = super::super::chat("Hi");
    let reply = server.post("/v1/chat/completions", &short);
    assert_eq!(reply.header("x-route-target"), Some("remote"), "{reply:?}");
}

#[test]
fn a_request_of_too_many_bytes_is_refused_where_nobody_else_answers() {
    let upstream = Upstream::start(willing);
    let setup = silent(&upstream)
        .add("[egress]\nanonymous = \"any\"\nmax_bytes = 600\n")
        .policy("remote-only");
    let server = setup.serve();
    let long = super::super::chat(&format!("{MARKER} {}", "x".repeat(500)));
    let reply = server.post("/v1/chat/completions", &long);
    assert_ne!(reply.status, 200);
    assert_untouched(&upstream);
    assert_eq!(
        reply.header("x-route-reason"),
        Some("egress_denied:size"),
        "{reply:?}"
    );
    assert!(
        !reply.body.contains("does not serve the model"),
        "{reply:?}"
    );
}
