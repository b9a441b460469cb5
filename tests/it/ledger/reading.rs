//! What operators read: who used what, what it cost, and what was saved.

use serde_json::json;

use super::{CHAT, READ, WRITTEN, paid, settled, url, usage};
use crate::hybrid::{Setup, chat};
use crate::support::upstream::{Reply, Upstream};

fn both(upstream: &Upstream) -> Setup {
    paid(upstream, "1.0").add(
        "[[route.model]]\nname = \"default\"\nlocal = true\ntargets = [\"far\"]\n\
         [[route.model]]\nname = \"big\"\nlocal = false\ntargets = [\"far\"]\n",
    )
}

#[test]
fn what_was_used_and_saved_is_told_in_three_forms() {
    let upstream = Upstream::start(|request| {
        let reply = Reply::chat_for(request, &["One", " two"]);
        reply.provider("lab")
    });
    let setup = both(&upstream);
    let server = setup.serve();
    let here = server.post(CHAT, &chat("Hello")).ok();
    let mut away = chat("Hello");
    away["model"] = "big".into();
    server.post(CHAT, &away).ok();
    settled(&url(&setup), 2);
    let told = usage(&server, "?by=model,provider");
    let [ref local, ref remote] = told["lines"].as_array().expect("lines")[..] else {
        panic!("two lines: {told}");
    };
    let (remote, local) = match local["provider"] == "local" {
        true => (remote, local),
        false => (local, remote),
    };
    let tokens = |name: &str| here["usage"][name].as_u64().expect("a number");
    let saved = tokens("prompt_tokens") * READ + tokens("completion_tokens") * WRITTEN;
    assert_eq!(local["saved_usd"], saved as f64 / 1e9, "{told}");
    assert_eq!(
        (&local["local"], &local["cost_usd"]),
        (&json!(1), &json!(0.0))
    );
    assert_eq!(
        (&remote["model"], &remote["provider"]),
        (&json!("big"), &json!("lab"))
    );
    assert_eq!(
        (&remote["remote"], &remote["attempts"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(remote["cost_usd"], 0.000_011);
    assert_eq!(told["total"]["cost_usd"], 0.000_011);
    // The command reads beside the running server, and says the same.
    let run = |words: &[&str]| {
        let done = setup.sconce().words(words).run("usage");
        assert!(done.status.success(), "{done:?}");
        String::from_utf8(done.stdout).expect("text")
    };
    let by = ["--by", "model,provider", "--format"];
    let json: serde_json::Value =
        serde_json::from_str(&run(&[&by[..], &["json"]].concat())).expect("JSON");
    assert_eq!(json["lines"], told["lines"]);
    let csv = run(&[&by[..], &["csv"]].concat());
    assert!(
        csv.starts_with("model,provider,local,remote,failed,"),
        "{csv}"
    );
    assert!(
        csv.contains("big,lab,0,1,0,1,7,0,2,0,0.000011000,"),
        "{csv}"
    );
    let table = run(&["--by", "provider"]);
    assert!(table.contains("total"), "{table}");
    assert!(table.contains("0.000011"), "{table}");
    // A bill without a doubt changes nothing, and one of nobody says so.
    let bill = setup.audit_log().with_file_name("bill.csv");
    std::fs::write(&bill, "id,cost_usd\n,0.5\n").expect("a bill");
    let path = bill.display().to_string();
    let told = setup
        .sconce()
        .words(&["--upstream", "up", &path])
        .run("reconcile");
    let words = String::from_utf8_lossy(&told.stdout).into_owned();
    assert!(
        words.contains("0.499989 USD of the bill belong to nothing in the ledger"),
        "{told:?}"
    );
    let busy = setup
        .sconce()
        .words(&["--upstream", "up", "--apply", &path])
        .run("reconcile");
    let words = String::from_utf8_lossy(&busy.stderr).into_owned();
    assert!(words.contains("another process writes it"), "{busy:?}");
}
