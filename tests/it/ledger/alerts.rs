//! What an operator is told without asking: signed, tried again, and never twice for one cause.

use serde_json::Value as Json;

use super::{CHAT, away, paid, settled, url};
use crate::hybrid::{Setup, chat};
use crate::support::upstream::{Reply, Upstream};
use crate::support::{eventually, pause};

const SECRET: &str = "whsec_0123456789abcdef";

/// A budget of which one answer takes more than half.
fn told(upstream: &Upstream, hook: &Upstream) -> Setup {
    away(paid(upstream, "1.0"))
        .add("[[budget]]\nname = \"team\"\nusd = 0.000016\nperiod = \"month\"\nkind = \"soft\"\n")
        .add("[alerts]\nlook_seconds = 0.1\nurl_env = \"HOOK\"\nsecret_env = \"HOOK_SECRET\"\n")
        .env("HOOK", &format!("{}/services/T0/hunter2", hook.url()))
        .env("HOOK_SECRET", SECRET)
}

fn alerts(hook: &Upstream) -> Vec<Json> {
    let requests = hook.requests();
    requests.iter().map(|request| request.json()).collect()
}

#[test]
fn a_budget_that_is_used_up_is_told_of_once_and_signed() {
    let upstream = Upstream::start(|request| Reply::chat_for(request, &["One", " two"]));
    // It is not there at first.
    let hook = Upstream::start(|request| match request.nth {
        0 => Reply::json(503, &Json::Null),
        _ => Reply::json(200, &Json::Null),
    });
    let setup = told(&upstream, &hook);
    let mut server = setup.serve();
    server.post(CHAT, &chat("Hello")).ok();
    settled(&url(&setup), 1);
    let second = hook.await_request(1);
    assert_eq!(second.path, "/services/T0/hunter2");
    let alert = second.json();
    assert_eq!(alert["kind"], "budget", "{alert}");
    assert!(
        alert["text"]
            .as_str()
            .expect("words")
            .starts_with("budget `team`: "),
        "{alert}"
    );
    assert_eq!(
        alerts(&hook)[0]["cause"],
        alert["cause"],
        "the same once more"
    );
    // The signature is that of the time and the body.
    let signature = second.header("x-sconce-signature").expect("a signature");
    let (time, signed) = signature.split_once(",v1=").expect("two parts");
    let time = time.strip_prefix("t=").expect("a time");
    let parts = [time.as_bytes(), b".", &second.body];
    assert_eq!(signed, sconce::audit::sign(SECRET.as_bytes(), &parts));
    assert!(server.metric("sconce_alerts{kind=\"budget\"}") >= 1.0);
    // Neither looking again nor a restart tells it again.
    let so_far = hook.requests().len();
    server.terminate();
    server.wait();
    let server = setup.serve();
    eventually("it has looked", || {
        server.post(CHAT, &chat("Hello")).ok();
        server.log().contains("\"kind\":\"budget\"").then_some(())
    });
    pause(std::time::Duration::from_millis(500));
    let causes: Vec<Json> = alerts(&hook)
        .into_iter()
        .map(|a| a["cause"].clone())
        .collect();
    let mut different = causes[so_far..].to_vec();
    different.dedup();
    assert_eq!(different.len(), causes.len() - so_far, "{causes:?}");
    assert!(!causes[so_far..].contains(&alert["cause"]), "{causes:?}");
    let log = server.log();
    assert!(
        !log.contains("hunter2") && !log.contains(SECRET),
        "a secret is in the log"
    );
    let audit = std::fs::read_to_string(setup.audit_log()).expect("an audit log");
    assert!(audit.contains("\"purpose\":\"alert\""), "{audit}");
}

#[test]
fn a_target_in_trouble_is_told_of() {
    let upstream = Upstream::start(|_| Reply::json(401, &Json::Null));
    let hook = Upstream::start(|_| Reply::json(200, &Json::Null));
    let setup = told(&upstream, &hook);
    let server = setup.serve();
    assert_ne!(server.post(CHAT, &chat("Hello")).status, 200);
    let alert = eventually("the target's trouble is told", || {
        let mut alerts = alerts(&hook).into_iter();
        alerts.find(|alert| alert["kind"] == "target")
    });
    assert_eq!(alert["cause"], "target:far:auth_failed", "{alert}");
    assert!(
        alert["text"].as_str().expect("words").contains("renew it"),
        "{alert}"
    );
}
