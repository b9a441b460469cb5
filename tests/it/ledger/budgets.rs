//! Budgets under a crowd, and what becomes of those for whom they do not suffice.

use serde_json::json;

use super::{CHAT, READ, WRITTEN, away, block_on, chats, paid, paid_with, rows, settled, url};
use crate::hybrid::chat;
use crate::support::crowd::Gate;
use crate::support::eventually;
use crate::support::upstream::{Reply, Request, Upstream};

/// Answers, whole or streamed.
pub fn answering(request: &Request) -> Reply {
    Reply::chat_for(request, &["One", " two"]).provider("lab")
}

/// What [`chat`] is counted at in the worst case, in nano-USD.
pub fn worst_case() -> u64 {
    let upstream = Upstream::start(|request| Reply::chat_for(request, &["One"]));
    let setup = away(paid(&upstream, "1.0"));
    let server = setup.serve();
    server.post(CHAT, &chat("How many?")).ok();
    settled(&url(&setup), 1);
    let worst = rows(&url(&setup), "SELECT worst_nusd FROM attempts", 1);
    worst[0][0].as_u64().expect("a number")
}

#[test]
fn a_crowd_never_spends_more_than_there_is() {
    const CROWD: usize = 256;
    let worst = worst_case();
    let gate = Gate::default();
    let upstream = Upstream::start(gate.before(answering));
    let day = format!("0.{:09}", 10 * worst + worst - 1);
    // As many at once as want to, so that nothing but money holds them back.
    let setup = away(paid_with(
        &upstream,
        &format!("max_usd_per_day = {day}\nmax_concurrency = {CROWD}\n"),
        "",
    ))
    .add("[remote.adaptive]\nstart = 256\nmax = 256\n");
    let server = setup.serve();
    let statuses = gate.crowd(CROWD, |_| server.post(CHAT, &chat("How many?")).status);
    let count = |status| statuses.iter().filter(|s| **s == status).count();
    assert_eq!((count(200), count(402)), (10, CROWD - 10), "{statuses:?}");
    assert_eq!(chats(&upstream), 10);
    eventually("everything is settled", || {
        let open = "SELECT COUNT(*) FROM attempts WHERE settled_ms IS NULL";
        (rows(&url(&setup), open, 1)[0][0] == 0).then_some(())
    });
    let spent = rows(
        &url(&setup),
        "SELECT CAST(SUM(cost_nusd) AS BIGINT) FROM attempts",
        1,
    );
    assert_eq!(spent[0][0], 10 * (7 * READ + 2 * WRITTEN));
}

#[test]
fn a_budget_says_what_becomes_of_those_it_does_not_cover() {
    let upstream = Upstream::start(|request| Reply::chat_for(request, &["Elsewhere"]));
    let with = |on_exceed: &str, local: bool| {
        paid(&upstream, "1.0")
            .policy("prefer-remote")
            .add(&format!(
                "[[route.model]]\nname = \"default\"\nlocal = {local}\ntargets = [\"far\"]\n\
                 [[budget]]\nname = \"team\"\nusd = 0\nperiod = \"day\"\non_exceed = \"{on_exceed}\"\n"
            ))
    };
    // This machine stands in, whether it was asked to or is the last that is left.
    for on_exceed in ["next", "local"] {
        let server = with(on_exceed, true).serve();
        let reply = server.post(CHAT, &chat("Hello"));
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(reply.header("x-route-target"), Some("local"));
        assert_eq!(reply.header("x-route-reason"), Some("budget_exhausted"));
    }
    let server = with("refuse", true).serve();
    let refused = server.post(CHAT, &chat("Hello"));
    assert_eq!(refused.status, 402, "{refused:?}");
    assert!(
        refused.body.contains("budget `team` of 0 USD a day"),
        "{}",
        refused.body
    );
    assert!(
        refused.body.contains("begins anew at 20"),
        "{}",
        refused.body
    );
    let wait: u64 = refused
        .header("retry-after")
        .expect("a time")
        .parse()
        .expect("seconds");
    assert!((1..=86_401).contains(&wait), "{wait}");
    let body = json!({"inputs": "Hello", "parameters": {"max_new_tokens": 4}});
    let native = server.post("/generate", &body);
    // TGI's routes have no status for money; a raw prompt that only this machine can have is answered here.
    assert!([200, 424].contains(&native.status), "{native:?}");
    if native.status == 424 {
        assert_eq!(native.json()["error_type"], "budget_exceeded");
    }
    assert_eq!(chats(&upstream), 0);
    // The next target costs nothing.
    let free = Upstream::start(|request| Reply::chat_for(request, &["Free"]));
    let setup = paid(&upstream, "0.0").first("model_id = \"none\"\n").add(&format!(
        "[[remote.upstream]]\nname = \"own\"\nkind = \"openai_compat\"\nbase_url = \"{}\"\nbilling = \"own\"\n\
         [[remote.target]]\nname = \"mine\"\nupstream = \"own\"\nmodel = \"big\"\n\
         [[route.model]]\nname = \"default\"\nlocal = false\ntargets = [\"far\", \"mine\"]\n",
        free.url()
    ));
    let server = setup.serve();
    let reply = server.post(CHAT, &chat("Hello"));
    assert_eq!(reply.header("x-route-upstream"), Some("own"), "{reply:?}");
}

#[test]
fn each_key_has_its_own_budget_and_tokens_are_one_too() {
    let upstream = Upstream::start(|request| Reply::chat_for(request, &["One", " two"]));
    let setup = away(paid(&upstream, "1.0"))
        .add("[[budget]]\nname = \"tokens\"\ntokens = 60\nperiod = \"hour\"\neach = \"key\"\n");
    let server = setup.serve();
    // 24 tokens may be written, so that two worst cases fit and a third does not, until they are settled.
    assert_eq!(server.post(CHAT, &chat("Hi")).status, 200);
    settled(&url(&setup), 1);
    let usage = super::usage(&server, "");
    let standings = usage["budgets"].as_array().expect("a list");
    let tokens = standings
        .iter()
        .find(|b| b["name"] == "tokens of anonymous");
    let tokens = tokens.unwrap_or_else(|| panic!("{usage}"));
    assert_eq!(
        (&tokens["used"], &tokens["limit"]),
        (&json!(9.0), &json!(60.0))
    );
    let mut long = chat("Hi");
    long["max_tokens"] = 60.into();
    let refused = server.post(CHAT, &long);
    assert_eq!(refused.status, 402);
    assert!(
        refused.body.contains("60 tokens a hour") || refused.body.contains("60 tokens an hour"),
        "{}",
        refused.body
    );
    assert_eq!(
        server.metric("sconce_budget_used{budget=\"tokens of anonymous\"}"),
        9.0
    );
}

#[test]
fn what_was_spent_is_remembered_and_the_day_is_not_begun_anew_by_a_restart() {
    let upstream = Upstream::start(|request| Reply::chat_for(request, &["One", " two"]));
    let worst = worst_case();
    let setup = away(paid(&upstream, &format!("0.{:09}", worst + 1)));
    let mut server = setup.serve();
    assert_eq!(server.post(CHAT, &chat("How many?")).status, 200);
    settled(&url(&setup), 1);
    server.terminate();
    assert!(server.wait().success(), "{}", server.log());
    let server = setup.serve();
    let refused = server.post(CHAT, &chat("How many?"));
    assert_eq!(refused.status, 402, "{refused:?}");
    let health = server.get("/health/upstreams").ok();
    assert_eq!(health["upstreams"][0]["spent_today_usd"], 0.000_011);
}

#[test]
fn a_ledger_that_cannot_be_written_keeps_money_here_and_this_machine_answers() {
    let upstream = Upstream::start(|request| Reply::chat_for(request, &["Elsewhere"]));
    let setup = paid(&upstream, "1.0")
        .add("[[route.model]]\nname = \"default\"\nlocal = true\ntargets = [\"far\"]\n")
        .policy("prefer-remote");
    let server = setup.serve();
    let ask = || {
        let reply = server.post(CHAT, &chat("Hello"));
        let target = reply.header("x-route-target").map(str::to_owned);
        (reply.status, target.unwrap_or_default())
    };
    assert_eq!(ask(), (200, "remote".to_owned()));
    settled(&url(&setup), 1);
    block_on(async {
        use sqlx::Connection;
        sqlx::any::install_default_drivers();
        let mut other = sqlx::AnyConnection::connect(&url(&setup))
            .await
            .expect("the file");
        sqlx::raw_sql("BEGIN EXCLUSIVE")
            .execute(&mut other)
            .await
            .expect("a lock");
        assert_eq!(ask(), (200, "local".to_owned()));
        sqlx::raw_sql("ROLLBACK")
            .execute(&mut other)
            .await
            .expect("given back");
    });
    assert!(server.log().contains("nothing that costs money may leave"));
    let asked = chats(&upstream);
    assert_eq!(asked, 1);
    eventually("the ledger is written again", || {
        (ask().1 == "remote").then_some(())
    });
}
