//! What costs money leaves within the day's bound, at its worst case, and not at all where nobody knows the price.

use serde_json::{Value as Json, json};

use super::{MARKER, MODEL, Setup, assert_untouched, departures, willing};
use crate::support::crowd::Gate;
use crate::support::upstream::Upstream;

fn paid(upstream: &Upstream, day: &str, price: &str) -> Setup {
    Setup::new()
        .add(&format!(
            "[[remote.upstream]]\nname = \"up\"\nkind = \"openai_compat\"\nengine = \"openai\"\nprovider = \"together\"\n\
             base_url = \"{}\"\nbilling = \"tokens\"\n{day}\n\
             [[remote.target]]\nname = \"far\"\nupstream = \"up\"\nmodel = \"{MODEL}\"\n{price}\n\
             [[route.model]]\nname = \"default\"\ntargets = [\"far\"]\n[egress]\nanonymous = \"any\"\n",
            upstream.url()
        ))
        .policy("remote-only")
        .flag("--model-id", "none")
}

const PRICE: &str = "price = { input = 1.5, output = 2.5 }";

fn question() -> Json {
    json!({"messages": [{"role": "user", "content": MARKER}], "max_tokens": 16})
}

#[test]
fn without_a_bound_nothing_that_costs_money_leaves() {
    for day in ["", "max_usd_per_day = 0", "max_usd_per_day = 0.0"] {
        let upstream = Upstream::start(willing);
        let setup = paid(&upstream, day, PRICE);
        let server = setup.serve();
        let reply = server.post("/v1/chat/completions", &question());
        assert_eq!(reply.status, 402, "{day} {reply:?}");
        assert_eq!(reply.header("x-route-reason"), Some("budget_exhausted"));
        let raw = json!({"inputs": MARKER, "parameters": {"max_new_tokens": 4}});
        assert_ne!(server.post("/generate", &raw).status, 200);
        assert_untouched(&upstream);
    }
}

#[test]
fn a_price_that_nobody_knows_is_not_zero() {
    let upstream = Upstream::start(willing);
    let setup = paid(&upstream, "max_usd_per_day = 1000", "");
    let server = setup.serve();
    let reply = server.post("/v1/chat/completions", &question());
    assert_ne!(reply.status, 200, "{reply:?}");
    assert_eq!(reply.header("x-route-reason"), Some("price_unknown"));
    assert_untouched(&upstream);
}

#[test]
fn a_days_money_covers_so_many_worst_cases_and_none_more_however_many_come_at_once() {
    let upstream = Upstream::start(willing);
    let setup = paid(&upstream, "max_usd_per_day = 1", PRICE);
    let server = setup.serve();
    server.post("/v1/chat/completions", &question()).ok();
    let audit = std::fs::read_to_string(setup.audit_log()).expect("an audit log");
    let lines = audit
        .lines()
        .map(|line| serde_json::from_str::<Json>(line).expect("JSON"));
    let worst = lines
        .filter(|line| line["purpose"] == "request")
        .find_map(|line| line["worst_cost_nusd"].as_u64())
        .expect("a worst case");
    // 16 tokens of the answer, and a prompt that is not empty.
    assert!(worst > 16 * 2500, "{worst}");
    drop(server);
    for (money, covered) in [(worst - 1, 0), (worst, 1), (4 * worst - 1, 3)] {
        let gate = Gate::default();
        let upstream = Upstream::start(gate.before(willing));
        let day = format!("max_usd_per_day = 0.{money:09}");
        let setup = paid(&upstream, &day, PRICE);
        let server = setup.serve();
        let ask = |_| server.post("/v1/chat/completions", &question()).status;
        let statuses = gate.crowd(12, ask);
        let answered = statuses.iter().filter(|&&status| status == 200).count();
        assert_eq!(answered, covered, "{money} of {worst}: {statuses:?}");
        assert!(
            statuses.iter().all(|status| [200, 402].contains(status)),
            "{statuses:?}"
        );
        assert_eq!(departures(&upstream).len(), covered);
    }
}

#[test]
fn a_callers_own_bound_holds_too() {
    let upstream = Upstream::start(willing);
    let setup = paid(&upstream, "max_usd_per_day = 1", PRICE);
    let server = setup.serve();
    for (most, status) in [("0", 402), ("0.000000001", 402), ("1", 200)] {
        let headers = [("x-route-max-cost-usd", most)];
        let reply = super::ask(&server, "/v1/chat/completions", &headers, &question());
        assert_eq!(reply.status, status, "{most} {reply:?}");
    }
    assert_eq!(departures(&upstream).len(), 1);
}
