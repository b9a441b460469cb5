//! What users of other gateways complain about, by the number of the list that this project keeps: each has a test
//! of its name. Those of lost spending after crashes are in `kills.rs`.

use serde_json::{Value as Json, json};

use super::{CHAT, READ, WRITTEN, away, chats, paid, paid_tables, paid_with, rows, settled, url};
use crate::hybrid::{Setup, chat};
use crate::support::upstream::{Chat, Reply, Request, Upstream, UsageAt};

const COSTS: &str = "SELECT outcome, basis, cost_nusd, usage_source FROM attempts ORDER BY id";

fn streamed(question: &str) -> Json {
    let mut body = chat(question);
    body["stream"] = true.into();
    body
}

/// A streamed chat is never free: not without usage, and not where the provider says zero beside tokens.
#[test]
fn complaint_1_spend_that_is_wrong_or_zero() {
    let upstream = Upstream::start(|request| {
        let answer = Chat::new(&["One", " two"]);
        if request.method == "GET" {
            return Reply::json(404, &json!({}));
        }
        let question = request.json()["messages"][0]["content"].clone();
        let answer = match question.as_str() {
            Some("silent") => answer.usage_at(UsageAt::Never),
            Some("every") => answer.usage_at(UsageAt::Every),
            _ => answer,
        };
        match request.streams() {
            true => answer.stream(),
            false => answer.object(),
        }
    });
    let setup = away(paid(&upstream, "1.0"));
    let server = setup.serve();
    for question in ["plain", "every", "silent"] {
        let body = server.post(CHAT, &streamed(question)).body;
        let line = body
            .lines()
            .find(|line| line.starts_with(": x-route-cost-usd="));
        let line = line.unwrap_or_else(|| panic!("no cost in {body}"));
        assert!(!line.contains("cost-usd=0 "), "{line}");
        server.post(CHAT, &chat(question)).ok();
    }
    settled(&url(&setup), 6);
    for cost in rows(&url(&setup), COSTS, 4) {
        let known = 7 * READ + 2 * WRITTEN;
        match cost[3].as_str() {
            Some("reported") => assert_eq!(cost[2], known, "{cost:?}"),
            _ => assert!(cost[2].as_u64() >= Some(2 * WRITTEN), "{cost:?}"),
        }
    }
    // A model whose price nobody knows costs nothing because it is not asked.
    let unpriced = Setup::new()
        .first("model_id = \"none\"\n")
        .add(&format!(
            "[[remote.upstream]]\nname = \"up\"\nkind = \"openai_compat\"\nbase_url = \"{}\"\nbilling = \"tokens\"\n\
             max_usd_per_day = 1.0\n\
             [[remote.target]]\nname = \"far\"\nupstream = \"up\"\nmodel = \"big\"\n\
             [[route.model]]\nname = \"default\"\nlocal = false\ntargets = [\"far\"]\n\
             [egress]\nanonymous = \"any\"\n",
            upstream.url()
        ));
    let asked = chats(&upstream);
    let refused = unpriced.serve().post(CHAT, &chat("plain"));
    assert!(refused.body.contains("price"), "{refused:?}");
    assert_eq!(chats(&upstream), asked);
    // And one of zero is a mistake.
    let zero = paid_with(&upstream, "", "").add(
        "[[remote.target]]\nname = \"zero\"\nupstream = \"up\"\nmodel = \"z\"\nprice = { input = 0, output = 0 }\n",
    );
    let told = zero.sconce().run("check");
    let words = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(words.contains("a `price` of 0"), "{words}");
}

/// Leaving in the middle costs what was seen, or what was held, and never nothing.
#[test]
fn complaint_3_an_aborted_stream_that_is_free_or_billed_in_full() {
    use std::time::Duration;
    let answer = |_: &Request| {
        Chat::new(&["a", "b", "c", "d", "e"])
            .stream()
            .delay_each(Duration::from_millis(200))
    };
    for (cancel, seen) in [("shown", true), ("reserved", false)] {
        let upstream = Upstream::start(answer);
        let of_target = format!("cancel_settle = \"{cancel}\"\n");
        let setup = away(paid_with(&upstream, "max_usd_per_day = 1.0\n", &of_target));
        let server = setup.serve();
        let mut reading = server.stream(CHAT, &streamed("How many?"));
        reading.next_event();
        reading.next_event();
        drop(reading);
        settled(&url(&setup), 1);
        let held = "SELECT cost_nusd, worst_nusd, basis FROM attempts";
        let row = &rows(&url(&setup), held, 3)[0];
        let (cost, worst) = (
            row[0].as_u64().expect("money"),
            row[1].as_u64().expect("money"),
        );
        if seen {
            assert_eq!(row[2], "estimate");
            assert!(cost > WRITTEN && cost < worst, "{cost} of {worst}");
        } else {
            assert_eq!((cost, row[2].as_str()), (worst, Some("upper_bound")));
        }
    }
    // A provider that says that it wrote nothing is believed, and is not paid for an estimate.
    let nothing = Upstream::start(|_| {
        let answer = Chat::new(&[""]).usage(7, 0);
        answer.stream()
    });
    let setup = away(paid(&nothing, "1.0"));
    let server = setup.serve();
    server.post(CHAT, &chat("Hello"));
    settled(&url(&setup), 1);
    assert_eq!(rows(&url(&setup), COSTS, 4)[0][2], 7 * READ);
}

/// Who answered, and what it cost, is told with every answer, a stream included.
#[test]
fn complaint_8_nobody_can_tell_who_answered() {
    let upstream = Upstream::start(|request| Reply::chat_for(request, &["Hi"]).provider("lab"));
    let setup = away(paid(&upstream, "1.0"));
    let server = setup.serve();
    for body in [chat("Hello"), streamed("Hello")] {
        let reply = server.post(CHAT, &body);
        for (name, value) in [
            ("x-route-target", "remote"),
            ("x-route-upstream", "up"),
            ("x-route-model", "big"),
            ("x-route-provider", "lab"),
            ("x-route-reason", "unsupported_local:model"),
            ("x-route-attempts", "1"),
        ] {
            assert_eq!(reply.header(name), Some(value), "{name}: {reply:?}");
        }
        let cost = "0.000009";
        match body["stream"] == true {
            true => assert!(
                reply.body.contains(&format!(": x-route-cost-usd={cost} ")),
                "{}",
                reply.body
            ),
            false => assert_eq!(reply.header("x-route-cost-usd"), Some(cost)),
        }
    }
    let spent = "sconce_spent_nusd{key=\"anonymous\",model=\"big\",provider=\"lab\"}";
    assert_eq!(server.metric(spent), 18_000.0);
}

/// What a target cannot have is said, or the request does not go there.
#[test]
fn complaint_11_parameters_that_are_silently_dropped() {
    let upstream = Upstream::start(|request| Reply::chat_for(request, &["Hi"]));
    let tables = paid_tables(&upstream, "max_usd_per_day = 1.0\n", "")
        .replace("seed = true", "seed = false");
    let mut body = chat("Hello");
    body["seed"] = 7.into();
    body["temperature"] = 0.7.into();
    let strict = away(Setup::new().add(&tables));
    let refused = strict.serve().post(CHAT, &body);
    assert_eq!(refused.status, 422, "{refused:?}");
    assert!(refused.body.contains("`seed`"), "{}", refused.body);
    assert_eq!(chats(&upstream), 0);
    let lenient = away(Setup::with_remote("fidelity = \"lenient\"\n").add(&tables));
    let degraded = lenient.serve().post(CHAT, &body);
    assert_eq!(
        degraded.header("x-route-degraded"),
        Some("seed"),
        "{degraded:?}"
    );
}

/// What this machine answers needs no money, and no budget is not a budget of nothing.
#[test]
fn complaint_15_local_models_blocked_by_money_and_budgets_that_nobody_set() {
    let upstream = Upstream::start(|request| Reply::chat_for(request, &["Elsewhere"]));
    let here = |setup: Setup| {
        setup.add("[[route.model]]\nname = \"default\"\nlocal = true\ntargets = [\"far\"]\n")
    };
    let spent = here(paid(&upstream, "0.0"))
        .add("[[budget]]\nname = \"none\"\nusd = 0\nperiod = \"month\"\non_exceed = \"refuse\"\n");
    let reply = spent.serve().post(CHAT, &chat("Hello"));
    assert_eq!(
        (reply.status, reply.header("x-route-target")),
        (200, Some("local"))
    );
    // A budget of one key bounds nobody else.
    let other = away(paid(&upstream, "1.0"))
        .add("[[budget]]\nname = \"other\"\nkey = \"bob\"\nusd = 0\nperiod = \"day\"\n");
    assert_eq!(other.serve().post(CHAT, &chat("Hello")).status, 200);
    // One over everything takes the place of an upstream's own.
    let over_all = away(paid_with(&upstream, "", ""))
        .add("[[budget]]\nname = \"all\"\nusd = 1\nperiod = \"day\"\n");
    assert_eq!(over_all.serve().post(CHAT, &chat("Hello")).status, 200);
    // Without either, nothing may be spent, and a warning says so.
    let none = away(paid_with(&upstream, "", ""));
    let server = none.serve();
    assert_eq!(server.post(CHAT, &chat("Hello")).status, 402);
    assert!(server.log().contains("may spend none"), "{}", server.log());
    let body = json!({"inputs": "x"});
    assert_ne!(server.post("/generate", &body).status, 200);
}
