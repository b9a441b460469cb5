//! The ledger on a real file: what is held, settled and closed is there, once, whatever happens.

use std::task::Poll;
use std::time::Duration;

use chrono_tz::Tz;
use sqlx::Connection;

use super::*;
use crate::generation::{Side, Usage};

fn config(folder: &std::path::Path, nusd: u64) -> Config {
    Config {
        place: Place::File(folder.join("ledger.db")),
        budgets: vec![Budget::daily("all", nusd)],
        zone: Tz::UTC,
        keep: Duration::from_secs(86_400 * 400),
        max_bytes: 1 << 30,
    }
}

fn who(id: &str) -> Who {
    Who {
        request_id: id.into(),
        key: "alice".into(),
        tenant: "alice".into(),
        path: "/v1/chat/completions".into(),
        stream: false,
        model: "m".into(),
    }
}

fn attempt(nusd: u64) -> Attempt {
    Attempt {
        purpose: "request",
        reason: "policy_remote".to_owned(),
        target: "far".into(),
        spender: Spender {
            key: "alice".into(),
            tenant: "alice".into(),
            model: "m".into(),
            provider: None,
            upstream: "hf".into(),
        },
        worst: Amount { nusd, tokens: 10 },
        basis: "override".into(),
    }
}

fn bill(nusd: u64) -> Bill {
    Bill {
        provider: Some("together".into()),
        amount: Amount { nusd, tokens: 7 },
        usage: Some(Usage::counted(3, 4)),
        basis: "override".into(),
        ttft_ms: Some(5),
        outcome: "ok".to_owned(),
        request_id_upstream: Some("up-1".to_owned()),
    }
}

fn closing(outcome: &str) -> Closing {
    Closing {
        side: Some(Side::Remote),
        provider: Some("together".to_owned()),
        usage: Some(Usage::counted(3, 4)),
        outcome: outcome.to_owned(),
        ..Closing::default()
    }
}

async fn report(config: &Config) -> Report {
    let mut reader = Reader::open(&config.place, Tz::UTC)
        .await
        .expect("a ledger");
    let query = Query {
        from_ms: 0,
        to_ms: i64::MAX,
        by: Dimension::ALL[1..].to_vec(),
    };
    reader.report(&query).await.expect("a report")
}

#[tokio::test]
async fn a_request_leaves_one_entry_and_its_cost() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path(), 100);
    let ledger = Ledger::open(config.clone()).expect("a ledger");
    let tab = ledger.admit(who("r1"));
    let mut held = tab.reserve(attempt(60)).await.expect("money");
    held.sent();
    let refused = tab.reserve(attempt(41)).await.expect_err("no money");
    assert!(refused.to_string().contains("budget `all`"), "{refused}");
    assert_eq!(report(&config).await.total.held_nusd, 60);
    held.settle(bill(7));
    tab.close(closing("stop"));
    ledger.flush().await;
    let report = report(&config).await;
    assert_eq!(report.lines.len(), 1, "{report:?}");
    assert_eq!(report.lines[0].labels, ["alice", "m", "together"]);
    let total = &report.total;
    assert_eq!(
        (
            total.remote,
            total.attempts,
            total.cost_nusd,
            total.held_nusd
        ),
        (1, 1, 7, 0)
    );
    assert_eq!((total.prompt_tokens, total.output_tokens), (3, 4));
    assert_eq!(ledger.left(&attempt(0).spender).nusd, Some(93));
}

#[tokio::test]
async fn what_is_dropped_before_it_was_sent_owes_nothing_and_after_it_the_worst() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path(), 100);
    let ledger = Ledger::open(config.clone()).expect("a ledger");
    let tab = ledger.admit(who("r1"));
    drop(tab.reserve(attempt(60)).await.expect("money"));
    let mut held = tab.reserve(attempt(50)).await.expect("money");
    held.sent();
    drop(held);
    drop(tab);
    ledger.flush().await;
    let total = report(&config).await.total;
    assert_eq!(
        (total.cost_nusd, total.bound_nusd, total.held_nusd),
        (50, 50, 0)
    );
    assert_eq!((total.attempts, total.failed), (1, 1));
}

#[tokio::test]
async fn a_ledger_is_taken_up_where_it_ended_and_belongs_to_one_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path(), 100);
    {
        let ledger = Ledger::open(config.clone()).expect("a ledger");
        let second = Ledger::open(config.clone()).expect_err("taken");
        assert!(second.to_string().contains("another process"), "{second}");
        let tab = ledger.admit(who("r1"));
        tab.reserve(attempt(60))
            .await
            .expect("money")
            .settle(bill(30));
        tab.close(closing("stop"));
        ledger.flush().await;
    }
    // The thread ends by itself once nobody can ask it for anything.
    let mut again = Ledger::open(config.clone());
    while again.is_err() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        again = Ledger::open(config.clone());
    }
    let again = again.expect("the lock is given back");
    assert_eq!(again.left(&attempt(0).spender).nusd, Some(70));
    let tab = again.admit(who("r2"));
    assert!(tab.reserve(attempt(71)).await.is_err());
}

#[tokio::test]
async fn whoever_leaves_while_money_is_held_holds_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path(), 1_000);
    let ledger = Ledger::open(config.clone()).expect("a ledger");
    let tab = ledger.admit(who("r1"));
    for answered in [true, false] {
        let mut reserving = Box::pin(tab.reserve(attempt(5)));
        // Asked for, and then left: after the ledger has answered, and while it may still write.
        let once = std::future::poll_fn(|context| Poll::Ready(reserving.as_mut().poll(context)));
        assert!(once.await.is_pending(), "it waits for the disk");
        if answered {
            ledger.flush().await;
        }
        drop(reserving);
    }
    // What is given back by the ledger itself is written with its next try.
    let mut left = None;
    for _ in 0..400 {
        ledger.flush().await;
        left = ledger.left(&attempt(0).spender).nusd;
        if left == Some(1_000) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(left, Some(1_000));
    tab.close(closing("stop"));
    ledger.flush().await;
    let total = report(&config).await.total;
    assert_eq!((total.held_nusd, total.cost_nusd), (0, 0));
}

#[tokio::test]
async fn a_ledger_that_ends_leaves_nothing_open() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path(), 100);
    let ledger = Ledger::open(config.clone()).expect("a ledger");
    let tab = ledger.admit(who("r1"));
    tab.begin();
    let mut held = tab.reserve(attempt(60)).await.expect("money");
    held.sent();
    tokio::task::spawn_blocking({
        let ledger = ledger.clone();
        move || ledger.close()
    })
    .await
    .expect("an end");
    let total = report(&config).await.total;
    assert_eq!((total.held_nusd, total.cost_nusd, total.failed), (0, 60, 1));
}

#[tokio::test]
async fn rows_that_are_too_old_are_dropped_but_not_what_stands_open() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(folder.path(), 100);
    Ledger::open(config.clone()).expect("a ledger").close();
    let path = folder.path().join("ledger.db");
    let url = format!("sqlite://{}", path.display());
    let mut connection = sqlx::AnyConnection::connect(&url).await.expect("a file");
    for (id, closed) in [(1, "1"), (2, "NULL")] {
        let row = format!(
            "INSERT INTO entries (id, opened_ms, closed_ms, request_id, key_name, tenant, path, stream, model, attempts) \
             VALUES ({id}, 1, {closed}, 'r', 'k', 'k', '/', 0, 'm', 0)"
        );
        let written = sqlx::raw_sql(sqlx::AssertSqlSafe(row));
        written.execute(&mut connection).await.expect("a row");
    }
    let ledger = Ledger::open(config).expect("a ledger");
    let mut ids = vec![1, 2];
    for _ in 0..500 {
        ids = sqlx::query_scalar::<_, i64>("SELECT id FROM entries ORDER BY id")
            .fetch_all(&mut connection)
            .await
            .expect("rows");
        if ids.len() == 1 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(ids, [2]);
    drop(ledger);
}
