//! What a hub may refuse, and that each message says what to do about it.

use serde_json::json;
use tempfile::TempDir;

use super::failed;
use crate::support::hub::{Files, Hub, TOKEN, refusal};
use crate::support::server::Sconce;
use crate::support::upstream::{Reply, nobody};

/// What `pull` says of a hub that answers so.
#[track_caller]
fn said(hub: &Hub, change: impl Fn(Sconce) -> Sconce) -> String {
    let home = TempDir::new().expect("a folder");
    let text = failed(&change(hub.sconce(home.path()).words(&["org/tiny"])).run("pull"));
    text.replace(&hub.hub.url(), "HUB")
}

#[test]
fn missing_private_and_gated_models_are_told_apart() {
    let hub = Hub::tiny();
    let plain = |sconce: Sconce| sconce;
    let token = |sconce: Sconce| sconce.env("HF_TOKEN", TOKEN);
    hub.fault(|_, _| refusal(401, "RepoNotFound", "Repository not found"));
    assert_eq!(
        said(&hub, plain),
        "error: HUB knows no model `org/tiny`: check the spelling; if it is private, set HF_TOKEN to a token of an account that may see it"
    );
    hub.fault(|_, _| refusal(404, "RepoNotFound", "Repository not found"));
    assert_eq!(
        said(&hub, token),
        "error: HUB knows no model `org/tiny`: check the spelling, and that the account of HF_TOKEN may see it"
    );
    // What a gated model is may be read by everybody; its files may not.
    hub.fault(|request, reply| {
        if request.path.contains("/resolve/") {
            refusal(403, "GatedRepo", "Access to model org/tiny is restricted")
        } else {
            reply
        }
    });
    assert_eq!(
        said(&hub, plain),
        "error: `org/tiny` is gated: ask for access at HUB/org/tiny, then set HF_TOKEN to a token of the account that has it"
    );
    let with_token = said(&hub, token);
    assert!(
        with_token.ends_with(
            "(the account of the present HF_TOKEN has none, or the token may not read gated models)"
        ),
        "{with_token}"
    );
    hub.fault(|_, _| Reply::json(401, &json!({"error": "Invalid username or password."})));
    assert_eq!(
        said(&hub, token),
        "error: HUB refuses the token in HF_TOKEN for `org/tiny` (status 401): make a new one at HUB/settings/tokens and set HF_TOKEN"
    );
    hub.fault(|_, _| refusal(404, "RevisionNotFound", "Invalid rev id"));
    assert_eq!(
        said(&hub, |sconce| sconce.flag("--revision", "v9")),
        "error: `org/tiny` has no revision `v9`, or is not there at all: give a branch, a tag or a commit that HUB/org/tiny lists, or leave --revision out"
    );
}

#[test]
fn limits_and_faults_say_how_long_and_who() {
    let hub = Hub::tiny();
    hub.fault(|_, _| {
        Reply::json(429, &json!({"error": "slow down"})).header("retry-after", "3600")
    });
    assert_eq!(
        said(&hub, |sconce| sconce),
        "error: HUB limits how often it may be asked and wants 3600 s of peace: try again then; with HF_TOKEN set the limit is higher"
    );
    assert_eq!(hub.hub.requests().len(), 1, "nobody waits for an hour");
    let asked = hub.hub.requests().len();
    hub.fault(|request, reply| {
        if request.path.contains("/resolve/") {
            Reply::json(503, &json!({"error": "maintenance"})).header("retry-after", "3600")
        } else {
            reply
        }
    });
    assert_eq!(
        said(&hub, |sconce| sconce),
        "error: 127.0.0.1 cannot answer at present (status 503): try again in 3600 s, or use a model that is cached (`sconce list`)"
    );
    assert!(
        hub.hub.requests().len() <= asked + 5,
        "nobody waits for an hour"
    );
    hub.fault(|_, _| Reply::body(200, "text/html", "<html>a portal</html>"));
    let text = said(&hub, |sconce| sconce);
    assert!(
        text.contains("answered what no hub answers: no JSON"),
        "{text}"
    );
    hub.fault(|_, _| {
        Reply::json(
            200,
            &json!({"id": "org/tiny", "sha": "main", "siblings": []}),
        )
    });
    let text = said(&hub, |sconce| sconce);
    assert!(text.contains("it names no commit"), "{text}");
    let evil =
        json!([{"rfilename": "config.json"}, {"rfilename": "../../../.ssh/authorized_keys"}]);
    hub.fault(move |_, _| {
        Reply::json(
            200,
            &json!({"id": "org/tiny", "sha": "0".repeat(40), "siblings": evil}),
        )
    });
    let text = said(&hub, |sconce| sconce);
    assert!(
        text.contains("a file would lie outside of the model"),
        "{text}"
    );
}

#[test]
fn a_hub_that_is_not_there_is_named() {
    let hub = Hub::tiny();
    let away = format!("http://{}", nobody());
    let text = said(&hub, |sconce| sconce.env("HF_ENDPOINT", &away));
    assert!(
        text.starts_with("error: cannot reach 127.0.0.1: ") && text.contains("`sconce list`"),
        "{text}"
    );
}

#[test]
fn repositories_without_anything_to_serve_say_what_they_hold() {
    let pickles: Files = [
        ("config.json".to_owned(), b"{}".to_vec()),
        ("pytorch_model.bin".to_owned(), vec![0; 10]),
    ]
    .into();
    let hub = Hub::start(&[("org/tiny", pickles)]);
    assert_eq!(
        said(&hub, |sconce| sconce),
        "error: `org/tiny` holds nothing that can be served: its weights are PyTorch pickles, which can run code and are not read; look for the same model as safetensors or GGUF"
    );
}

#[test]
fn names_and_addresses_are_checked_before_anybody_is_asked() {
    let hub = Hub::tiny();
    let home = TempDir::new().expect("a folder");
    for (model, reason) in [
        ("org/tiny/extra", "at most one `/`"),
        ("https://example.org/model", "an address is no name"),
        ("../tiny", "made of letters"),
        ("org/tiny:", "after `:` stands a quantisation"),
    ] {
        let text = failed(&hub.sconce(home.path()).words(&[model]).run("pull"));
        assert!(
            text.starts_with(&format!("error: `{model}` is neither ")) && text.contains(reason),
            "{text}"
        );
    }
    let clear = said(&hub, |sconce| {
        sconce
            .env("HF_TOKEN", TOKEN)
            .env("HF_ENDPOINT", "http://mirror.example")
    });
    assert_eq!(
        clear,
        "error: HF_ENDPOINT `http://mirror.example` cannot be used: over plain http everybody on the way could read the token; use https, or go without a token (HF_HUB_DISABLE_IMPLICIT_TOKEN=1)"
    );
    let homeless = failed(&Sconce::new().words(&["org/tiny"]).run("pull"));
    assert!(homeless.contains("set HF_HOME to a folder"), "{homeless}");
    assert_eq!(hub.hub.bytes_received(), 0);
}
