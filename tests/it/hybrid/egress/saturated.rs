//! A full machine refuses rather than forwards what may not leave.

use std::sync::mpsc;
use std::time::Duration;

use serde_json::json;

use super::{
    MARKER, Setup, Upstream, ask, assert_untouched, calls, departures, edit, new_key, willing,
};
use crate::support::chat::CHATML;
use crate::support::eventually;
use crate::support::models::Copy;
use crate::support::server::{Sconce, Server};
use crate::support::wire::{self, Streaming};

/// A model whose answers do not end by themselves, for chats too.
fn endless() -> Copy {
    let model = Copy::endless();
    model.edit_json("tokenizer_config.json", |json| {
        json["chat_template"] = CHATML.into()
    });
    model
}

fn on(setup: &Setup, model: &Copy) -> Sconce {
    setup
        .sconce()
        .flag("--model-id", &model.path().display().to_string())
        .flag("--max-total-tokens", "100000")
        .flag("--max-batch-total-tokens", "200000")
}

/// Takes the machine for as long as what is returned lives; `header` lines say who asks.
fn occupy(server: &Server, header: &str) -> Streaming {
    let body = json!({"inputs": "x", "parameters": {"max_new_tokens": 90_000}});
    let header = format!("x-route-policy: local-only\r\n{header}");
    let request = wire::post("/generate_stream", &header, &body.to_string());
    let mut stream = wire::receive_stream(wire::send(server.address(), &request));
    assert!(stream.next_event().is_some());
    stream
}

fn setup(upstream: &Upstream, egress: &str) -> Setup {
    Setup::new()
        .add(&format!(
            "[[remote.upstream]]\nname = \"up\"\nkind = \"tgi\"\nbase_url = \"{}\"\n\
             [[remote.target]]\nname = \"far\"\nupstream = \"up\"\nmodel = \"m\"\n\
             [[route.model]]\nname = \"default\"\nlocal = true\ntargets = [\"far\"]\n",
            upstream.url()
        ))
        .add(egress)
        .policy("remote-only")
}

#[test]
fn denied_and_saturated_is_429_and_never_a_forward() {
    let upstream = Upstream::start(willing);
    let model = endless();
    let rule = format!(
        "[egress]\nanonymous = \"any\"\n[[egress.rule]]\nname = \"pinned\"\npattern = \"{MARKER}\"\naction = \"local-only\"\n"
    );
    let policies = [
        "local-only",
        "prefer-local",
        "cheapest",
        "fastest",
        "prefer-remote",
    ];
    let denied = "[egress]\nanonymous = \"deny\"\ndefault = \"any\"\n";
    for (egress, compat) in [("", "tgi"), (denied, "openai"), (&rule, "tgi")] {
        let setup = setup(&upstream, egress);
        let server = on(&setup, &model)
            .flag("--max-concurrent-requests", "1")
            .flag("--compat", compat)
            .serve();
        let _busy = occupy(&server, "");
        for (policy, stream) in policies.into_iter().flat_map(|p| [(p, false), (p, true)]) {
            for (path, body) in calls(MARKER, stream) {
                let reply = ask(&server, path, &[("x-route-policy", policy)], &body);
                let what = format!("{egress:?} {policy} {path}: {reply:?}");
                if stream && reply.status == 200 {
                    // As TGI has it, a stream's early failure is its only event.
                    assert!(compat == "tgi" || !path.starts_with("/v1"), "{what}");
                    assert!(reply.body.contains("overloaded"), "{what}");
                } else {
                    assert_eq!(reply.status, 429, "{what}");
                    let wait = reply.header("retry-after").expect("a hint");
                    assert!(wait.parse::<u32>().is_ok_and(|s| s >= 1), "{what}");
                }
                assert_ne!(reply.header("x-route-target"), Some("remote"), "{what}");
            }
        }
        for (path, body) in calls(MARKER, false) {
            let reply = ask(&server, path, &[], &body);
            assert!(![200, 503].contains(&reply.status), "{path} {reply:?}");
        }
    }
    assert_untouched(&upstream);
}

#[test]
fn what_may_leave_does_when_the_machine_is_full() {
    let upstream = Upstream::start(willing);
    let model = endless();
    let setup = setup(&upstream, "[egress]\nanonymous = \"dedicated\"\n");
    let server = on(&setup, &model)
        .flag("--max-concurrent-requests", "1")
        .serve();
    let _busy = occupy(&server, "");
    let body = json!({"inputs": MARKER, "parameters": {"max_new_tokens": 4}});
    let reply = ask(
        &server,
        "/generate",
        &[("x-route-policy", "prefer-local")],
        &body,
    );
    assert_eq!(
        reply.header("x-route-reason"),
        Some("queue_overflow"),
        "{reply:?}"
    );
    assert_eq!(reply.ok()["generated_text"], "From afar");
    let reply = ask(
        &server,
        "/generate",
        &[("x-route-policy", "local-only")],
        &body,
    );
    assert_eq!(reply.status, 429, "{reply:?}");
    assert_eq!(departures(&upstream).len(), 1);
}

/// Settings by which every key's text may go everywhere, but for that of keys that say otherwise.
fn open_but(upstream: &Upstream, keys: &str) -> Setup {
    let (_, hash) = new_key("other");
    Setup::new()
        .add(&format!(
            "[[remote.upstream]]\nname = \"up\"\nkind = \"tgi\"\nbase_url = \"{}\"\n\
             [[remote.target]]\nname = \"far\"\nupstream = \"up\"\nmodel = \"m\"\n\
             [[route.model]]\nname = \"default\"\nlocal = true\ntargets = [\"far\"]\n\
             [egress]\nanonymous = \"deny\"\ndefault = \"any\"\n\
             [[keys]]\nname = \"other\"\nhash = \"{hash}\"\n",
            upstream.url()
        ))
        .add(keys)
}

fn table(hash: &str) -> String {
    format!("[[keys]]\nname = \"careful\"\nhash = \"{hash}\"\negress = \"deny\"\n")
}

#[test]
fn a_key_that_is_revoked_while_its_request_waits_gains_nothing() {
    let upstream = Upstream::start(willing);
    let model = endless();
    let (shown, hash) = new_key("careful");
    let setup = open_but(&upstream, &table(&hash))
        .add("[route]\npolicy = \"prefer-local\"\nslo_ttft_ms = 1000\n");
    let server = on(&setup, &model)
        .flag("--max-batch-size", "1")
        .flag("--api-key", "everyone-4711")
        .serve();
    let _busy = occupy(&server, "authorization: Bearer everyone-4711\r\n");
    let body = json!({"inputs": MARKER, "parameters": {"max_new_tokens": 4}}).to_string();
    let header = format!("authorization: Bearer {shown}\r\n");
    let waiting = wire::send(
        server.address(),
        &wire::post("/generate_stream", &header, &body),
    );
    server.await_metric("tgi_queue_size", |n| n >= 1.0);
    edit(&setup, &server, &table(&hash), "");
    // Past the objective, and the patience beyond it, somebody else could have the request.
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(wire::receive(waiting)));
    if let Ok(answer) = told.recv_timeout(Duration::from_secs(4)) {
        assert_ne!(
            answer.header("x-route-target"),
            Some("remote"),
            "{answer:?}"
        );
    }
    assert_untouched(&upstream);
}

#[test]
fn a_new_key_is_not_taken_up_without_its_level() {
    let upstream = Upstream::start(willing);
    let (shown, hash) = new_key("careful");
    let setup = open_but(&upstream, "").policy("prefer-remote");
    let server = setup.serve();
    // The new table is sound, and something else in the file is not.
    edit(
        &setup,
        &server,
        "[egress]\n",
        &format!("{}[egress]\nmax_bites = 7\n", table(&hash)),
    );
    let header = format!("authorization: Bearer {shown}\r\n");
    let body = json!({"inputs": MARKER, "parameters": {"max_new_tokens": 4}}).to_string();
    eventually("the file is read again", || {
        let log = server.log();
        (log.contains("stay as they were") || log.contains("stays as it was")).then_some(())
    });
    let reply = server.send(&wire::post("/generate", &header, &body));
    // Either nobody knows the key yet, or its level holds.
    assert!([200, 401].contains(&reply.status), "{reply:?}");
    assert_ne!(reply.header("x-route-target"), Some("remote"), "{reply:?}");
    assert_untouched(&upstream);
}
