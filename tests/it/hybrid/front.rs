//! What the door says of routing, and what it reads again while it is open.

use std::fs;

use serde_json::{Value as Json, json};

use super::{Setup, chat};
use crate::support::eventually;
use crate::support::server::{Sconce, Server};
use crate::support::wire;

fn far() -> (Server, String) {
    let far = Sconce::new().serve();
    let url = format!("http://{}", far.address());
    (far, url)
}

#[test]
fn targets_and_names_are_told() {
    let (_far, url) = far();
    let setup = Setup::one("tgi", &url, "sconce-demo")
        .add("[[route.model]]\nname = \"big\"\nlocal = false\ntargets = [\"far\"]\n");
    let near = setup.serve();
    let health = near.get("/health/upstreams").ok();
    let targets = health["upstreams"].as_array().expect("a list");
    assert_eq!(targets.len(), 1, "{health}");
    assert_eq!(
        (&targets[0]["target"], &targets[0]["upstream"]),
        (&json!("far"), &json!("up"))
    );
    let sentence = targets[0]["sentence"].as_str().expect("a sentence");
    assert!(sentence.contains("far"), "{sentence}");
    let models = near.get("/v1/models").ok();
    let names = models["data"].as_array().expect("a list").iter();
    let names: Vec<&Json> = names.map(|model| &model["id"]).collect();
    assert_eq!(names.len(), 2, "{models}");
    assert!(names.contains(&&json!("big")), "{models}");
    assert_eq!(near.get("/v1/models/big").ok()["id"], "big");
    assert_eq!(near.get("/v1/models/bigger").status, 404);
}

#[test]
fn how_an_answer_came_about_is_in_the_body_for_those_who_ask() {
    let (_far, url) = far();
    let setup = Setup::with_engine("tgi", Some("tgi"), &url, "sconce-demo").policy("remote-only");
    let near = setup.serve();
    let plain = json!({"inputs": "Once", "parameters": {"max_new_tokens": 4}});
    let response = json!({"input": "Once", "max_output_tokens": 4});
    for (path, body, place) in [
        ("/generate", &plain, "/details/route"),
        ("/", &plain, "/0/details/route"),
        ("/v1/chat/completions", &chat("Once?"), "/route"),
        (
            "/v1/completions",
            &json!({"prompt": "Once", "max_tokens": 4}),
            "/route",
        ),
        ("/v1/responses", &response, "/route"),
    ] {
        assert_eq!(near.post(path, body).ok().pointer(place), None, "{path}");
        let told = near.post(&format!("{path}?route_details=1"), body).ok();
        let route = told.pointer(place).expect(path);
        assert_eq!(route["target"], "remote", "{path}: {route}");
        assert_eq!(route["upstream"], "up");
        assert_eq!(route["reason"], "policy_remote");
        assert_eq!(route["attempts"], 1);
    }
}

/// A key's text, and its table for the settings.
pub fn key(name: &str, more: &str) -> (String, String) {
    let (text, hash) = sconce::api::KeyHash::generate().expect("random numbers");
    let hash = hash.to_text();
    (
        text,
        format!("[[keys]]\nname = {name:?}\nhash = {hash:?}\n{more}\n"),
    )
}

/// The status of a call with a key, and who answered it.
fn ask(server: &Server, key: &str) -> (u16, Option<String>) {
    let body = json!({"inputs": "Once", "parameters": {"max_new_tokens": 2}}).to_string();
    let extra = format!("Authorization: Bearer {key}\r\n");
    let reply = server.send(&wire::post("/generate", &extra, &body));
    let target = reply.header("x-route-target").map(str::to_owned);
    (reply.status, target)
}

#[test]
fn keys_and_what_they_may_are_read_again_together_or_not_at_all() {
    let (_far, url) = far();
    let (alice, may) = key("alice", "egress = \"dedicated\"");
    let (bob, may_not) = key("bob", "egress = \"deny\"");
    let base = Setup::with_engine("tgi", Some("tgi"), &url, "sconce-demo").policy("prefer-remote");
    let before = base.text.clone();
    let setup = base.add(&may);
    let near = setup.serve();
    let remote = (200, Some("remote".to_owned()));
    let local = (200, Some("local".to_owned()));
    assert_eq!(ask(&near, &alice), remote);

    let path = setup.folder.path().join("sconce.toml");
    let write = |text: String| fs::write(&path, text).expect("ours");
    let broken = before.replace("[egress]", "[egress]\nmax_bites = 7");
    write(format!("{broken}{may_not}"));
    near.hang_up();
    let logged = |words: &str| near.log().contains(words).then_some(());
    eventually("the fault is logged", || {
        logged("the keys stay as they were")
    });
    assert_eq!(ask(&near, &alice), remote, "nothing was taken up");
    assert_eq!(ask(&near, &bob).0, 401);

    let closed = may.replace("dedicated", "deny");
    write(format!("{before}{closed}{may_not}"));
    near.hang_up();
    eventually("keys are read again", || logged("keys read again"));
    assert_eq!(
        [ask(&near, &alice), ask(&near, &bob)],
        [local.clone(), local]
    );
    let audit = fs::read_to_string(setup.audit_log()).expect("a log");
    let admin = audit
        .lines()
        .filter(|line| line.contains("\"kind\":\"admin\""));
    let admin: Vec<&str> = admin.collect();
    assert_eq!(admin.len(), 1, "{audit}");
    assert!(
        admin[0].contains("key alice deny, key bob deny"),
        "{admin:?}"
    );
}
