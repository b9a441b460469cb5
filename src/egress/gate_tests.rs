//! The gate against a reference that is too simple to be wrong, its money under a crowd, and its audit lines.

use std::path::Path;
use std::sync::LazyLock;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::audit::{self, Settings};
use crate::egress::ContentRule;
use crate::generation::Reason;
use crate::ledger::{self, Budget, Ledger, Place, Scope, Who};

static BASIS: LazyLock<Arc<str>> = LazyLock::new(|| "override".into());

/// A ledger with a day's money for one upstream, and none for any other.
fn ledger(folder: &Path, hf_nusd: u64) -> Ledger {
    let of = |upstream: &str, nusd| Budget {
        scope: Scope {
            upstream: Some(upstream.into()),
            ..Scope::default()
        },
        ..Budget::daily(upstream, nusd)
    };
    Ledger::open(ledger::Config {
        place: Place::File(folder.join("ledger.db")),
        budgets: vec![of("hf", hf_nusd), of("other", 0)],
        zone: chrono_tz::Tz::UTC,
        keep: Duration::from_secs(86_400),
        max_bytes: 1 << 30,
    })
    .expect("a ledger")
}

fn tab(ledger: &Ledger) -> Tab {
    ledger.admit(Who {
        request_id: "r1".into(),
        key: "anonymous".into(),
        tenant: "anonymous".into(),
        path: "/".into(),
        stream: false,
        model: "m".into(),
    })
}

/// Nano-USD spent or held of an upstream's day.
fn spent(ledger: &Ledger, upstream: &str) -> u64 {
    let standings = ledger.standings();
    let of = standings.iter().find(|standing| standing.name == upstream);
    of.map_or(0, |standing| standing.used)
}

/// The name of the budget that does not suffice.
fn exceeded<T: fmt::Debug>(outcome: Result<T, Denied>) -> String {
    match outcome {
        Err(Denied::Money(exceeded)) => exceeded.budget,
        other => panic!("no budget speaks against it: {other:?}"),
    }
}

fn log(folder: &Path) -> Log {
    let path = folder.join("audit.jsonl");
    Log::open(Settings {
        path,
        max_bytes: 1 << 30,
        keep: 3,
        sync: true,
    })
    .expect("a log")
}

fn destination() -> Destination {
    Destination {
        target: "target".into(),
        upstream: "hf".into(),
        host: "router.example:443".into(),
        loopback: false,
        dedicated: false,
        provider: Some("together".into()),
        model: "m".into(),
    }
}

fn departure<'a>(to: &'a Destination, texts: &'a [&'a str], worst: Option<u64>) -> Departure<'a> {
    Departure {
        request_id: "r1",
        key: None,
        destination: to,
        purpose: Purpose::Request,
        reason: &Reason::PolicyRemote,
        texts,
        body: Bytes::from_static(b"body"),
        worst: worst.map(|nusd| Amount { nusd, tokens: 0 }),
        basis: &BASIS,
        tab: None,
    }
}

fn open_config() -> Config {
    Config {
        anonymous: Grant {
            level: Level::Any,
            ..Grant::default()
        },
        ..Config::default()
    }
}

fn rule(name: &str, pattern: &str, action: Action) -> ContentRule {
    ContentRule {
        name: name.to_owned(),
        pattern: regex::Regex::new(pattern).expect("a pattern"),
        action,
    }
}

fn lines(folder: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(folder.join("audit.jsonl")).expect("a log");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

#[tokio::test]
async fn nothing_leaves_until_somebody_says_so_or_without_a_log() {
    let folder = tempfile::tempdir().expect("a folder");
    let to = destination();
    let closed = Gate::new(Config::default(), Some(log(folder.path())));
    let denied = closed.may_leave(departure(&to, &["x"], Some(0))).await;
    assert_eq!(denied.err(), Some(Denied::Level("target".to_owned())));
    assert_eq!(lines(folder.path()).len(), 0);
    let unlogged = Gate::new(open_config(), None);
    assert_eq!(unlogged.permits(None, &to, &["x"]), Err(Denied::Audit));
    let denied = unlogged.may_leave(departure(&to, &["x"], Some(0))).await;
    assert_eq!(denied.err(), Some(Denied::Audit));
    assert_eq!(unlogged.ask(&to).await.err(), Some(Denied::Audit));
}

#[tokio::test]
async fn the_line_stands_before_the_passport_and_holds_no_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let to = destination();
    let log = log(folder.path());
    let gate = Gate::new(open_config(), Some(log.clone()));
    let ledger = ledger(folder.path(), 10);
    let tab = tab(&ledger);
    let leaving = Departure {
        tab: Some(&tab),
        ..departure(&to, &["a private text", "hi"], Some(7))
    };
    let (passport, held) = gate.may_leave(leaving).await.expect("a passport");
    let line = &lines(folder.path())[0];
    assert_eq!(line["kind"], "send");
    assert_eq!(line["request"], "r1");
    assert_eq!(line["host"], "router.example:443");
    assert_eq!(line["level"], "any");
    assert_eq!(line["bytes"], 4);
    assert_eq!(line["worst_cost_nusd"], 7);
    let print = log.fingerprint(&["a private text", "hi"]);
    assert_eq!(line["hmac"], print.whole);
    assert_eq!(line["texts"][0], print.texts[0]);
    assert!(!line.to_string().contains("private"));
    assert_eq!(held.map(|held| held.worst().nusd), Some(7));
    assert_eq!(spent(&ledger, "hf"), 7);
    assert_eq!(passport.spend(), (to.clone(), Bytes::from_static(b"body")));
    gate.settled(
        "r1",
        &to,
        Settled {
            status: "200".to_owned(),
            bytes_in: 9,
            cost_nusd: Some(3),
        },
    );
    log.flush().await.expect("a log");
    let line = &lines(folder.path())[1];
    assert_eq!(
        (&line["kind"], &line["status"]),
        (&"done".into(), &"200".into())
    );
}

#[tokio::test]
async fn a_log_that_cannot_be_written_denies_and_gives_the_money_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let to = destination();
    let gate = Gate::new(open_config(), Some(log(folder.path())));
    let (path, away) = (
        folder.path().join("audit.jsonl"),
        folder.path().join("away"),
    );
    let ledger = ledger(folder.path(), 10);
    let tab = tab(&ledger);
    let leaving = || Departure {
        tab: Some(&tab),
        ..departure(&to, &["x"], Some(10))
    };
    std::fs::rename(&path, &away).expect("moved");
    let denied = gate.may_leave(leaving()).await;
    assert_eq!(denied.err(), Some(Denied::Audit));
    ledger.flush().await;
    assert_eq!(spent(&ledger, "hf"), 0);
    std::fs::rename(&away, &path).expect("moved back");
    assert!(gate.may_leave(leaving()).await.is_ok());
    assert_eq!(spent(&ledger, "hf"), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_at_once_get_what_there_is_money_for() {
    let folder = tempfile::tempdir().expect("a folder");
    let log = log(folder.path());
    let gate = Gate::new(open_config(), Some(log.clone()));
    let ledger = ledger(folder.path(), 10);
    let tasks: Vec<_> = (0..200)
        .map(|_| {
            let (gate, tab) = (gate.clone(), tab(&ledger));
            tokio::spawn(async move {
                let to = destination();
                let leaving = Departure {
                    tab: Some(&tab),
                    ..departure(&to, &["x"], Some(1))
                };
                gate.may_leave(leaving).await.map(|(_, held)| held)
            })
        })
        .collect();
    let mut passports = Vec::new();
    for task in tasks {
        match task.await.expect("a task") {
            Ok(held) => passports.push(held),
            Err(denied) => assert_eq!(exceeded(Err::<(), _>(denied)), "hf"),
        }
    }
    assert_eq!(passports.len(), 10);
    // Of those that were refused when the money was held, a second line says that nothing was sent.
    log.flush().await.expect("a log");
    let (mut sent, mut refused) = (0, 0);
    for line in lines(folder.path()) {
        sent += usize::from(line["kind"] == "send");
        refused += usize::from(line["status"] == "not_sent");
    }
    assert_eq!(sent - refused, 10);
    assert_eq!(spent(&ledger, "hf"), 10);
}

#[tokio::test]
async fn unknown_prices_are_refused_and_what_costs_nothing_needs_no_money() {
    let folder = tempfile::tempdir().expect("a folder");
    let to = destination();
    let gate = Gate::new(open_config(), Some(log(folder.path())));
    let ledger = ledger(folder.path(), 10);
    let tab = tab(&ledger);
    let leave = |to, worst| {
        gate.may_leave(Departure {
            tab: Some(&tab),
            ..departure(to, &["x"], worst)
        })
    };
    let held = leave(&to, Some(6)).await.expect("money");
    assert_eq!(exceeded(leave(&to, Some(5)).await), "hf");
    assert_eq!(exceeded(leave(&to, Some(u64::MAX)).await), "hf");
    assert!(leave(&to, Some(4)).await.is_ok());
    assert!(leave(&to, Some(0)).await.is_ok());
    let unknown = leave(&to, None).await.err();
    assert_eq!(unknown, Some(Denied::PriceUnknown("target".to_owned())));
    let other = Destination {
        upstream: "other".into(),
        ..to.clone()
    };
    assert_eq!(exceeded(leave(&other, Some(1)).await), "other");
    let without = gate.may_leave(departure(&to, &["x"], Some(1))).await;
    assert_eq!(without.err(), Some(Denied::Ledger));
    drop(held);
}

#[tokio::test]
async fn a_contained_server_says_why_and_until_when() {
    let folder = tempfile::tempdir().expect("a folder");
    let to = destination();
    let gate = Gate::new(open_config(), Some(log(folder.path())));
    gate.contain(Duration::from_secs(60), "spending rose");
    let denied = gate.permits(None, &to, &["x"]).expect_err("contained");
    assert_eq!(denied.code(), "spike");
    assert!(denied.to_string().ends_with("Z: spending rose"), "{denied}");
    assert!(
        gate.may_leave(departure(&to, &["x"], Some(0)))
            .await
            .is_err()
    );
    assert!(gate.ask(&to).await.is_ok(), "questions without text go on");
    gate.contain(Duration::ZERO, "shorter");
    assert!(gate.contained().is_some(), "the longer time stays");
}

#[tokio::test]
async fn what_carries_no_text_needs_no_grant_and_takes_no_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let to = destination();
    let gate = Gate::new(Config::default(), Some(log(folder.path())));
    for purpose in [
        Purpose::WarmUp,
        Purpose::Probe,
        Purpose::Metadata,
        Purpose::Alert,
    ] {
        let bare = Departure {
            purpose,
            ..departure(&to, &[], Some(0))
        };
        assert!(gate.may_leave(bare).await.is_ok());
        let texts = Departure {
            purpose,
            ..departure(&to, &["x"], Some(0))
        };
        let denied = gate.may_leave(texts).await.err();
        assert_eq!(denied, Some(Denied::Text(purpose.name())));
    }
    assert!(gate.ask(&to).await.is_ok());
    let offline = Config {
        offline: true,
        ..Config::default()
    };
    let second = tempfile::tempdir().expect("a folder");
    let gate = Gate::new(offline, Some(log(second.path())));
    assert_eq!(gate.ask(&to).await.err(), Some(Denied::Offline));
    let here = Destination {
        loopback: true,
        ..to
    };
    assert!(gate.ask(&here).await.is_ok());
}

#[tokio::test]
async fn rules_look_at_every_text_and_grants_can_be_replaced() {
    let folder = tempfile::tempdir().expect("a folder");
    let to = destination();
    let config = Config {
        rules: vec![
            rule("iban", "DE[0-9]{20}", Action::LocalOnly),
            rule("never", "forbidden", Action::Block),
        ],
        max_bytes: Some(3),
        ..open_config()
    };
    let gate = Gate::new(config, Some(log(folder.path())));
    let iban = format!("to DE{}", "1".repeat(20));
    let kept = Err(Denied::Rule("iban".to_owned()));
    assert_eq!(gate.permits(None, &to, &["a", &iban]), kept);
    let blocked = Err(Denied::Blocked("never".to_owned()));
    assert_eq!(gate.permits(None, &to, &[&iban, "is forbidden"]), blocked);
    assert_eq!(gate.permits(Some("k"), &to, &["is forbidden"]), blocked);
    assert_eq!(gate.screen(&[&iban]), Ok(()));
    let denied = gate.may_leave(departure(&to, &["x"], Some(0))).await.err();
    assert_eq!(denied, Some(Denied::Size { bytes: 4, most: 3 }));
    let level = Err(Denied::Level("target".to_owned()));
    assert_eq!(gate.permits(Some("k"), &to, &["x"]), level);
    let grant = Grant {
        level: Level::Any,
        ..Grant::default()
    };
    let known = BTreeSet::from(["k".to_owned(), "plain".to_owned()]);
    let keys = BTreeMap::from([("k".to_owned(), grant.clone())]);
    gate.replace_grants(grant.clone(), Grant::default(), keys.clone(), known.clone());
    assert_eq!(gate.permits(Some("k"), &to, &["x"]), Ok(()));
    assert_eq!(gate.permits(Some("plain"), &to, &["x"]), level);
    assert_eq!(gate.permits(None, &to, &["x"]), Ok(()));
    gate.replace_grants(Grant::default(), grant, keys, known);
    assert_eq!(gate.permits(Some("plain"), &to, &["x"]), Ok(()));
    assert_eq!(gate.permits(None, &to, &["x"]), level);
    // A key that there is no longer has no level, however far the others' goes.
    assert_eq!(gate.permits(Some("gone"), &to, &["x"]), level);
}

/// Written as the settings' documentation says it, one case after the other.
fn reference(config: &Config, daily: u64, key: Option<&str>, leaving: &Departure<'_>) -> bool {
    let to = leaving.destination;
    if config.offline && !to.loopback {
        return false;
    }
    let bare = ["warm_up", "probe", "metadata", "alert"].contains(&leaving.purpose.name());
    if bare {
        if !leaving.texts.is_empty() {
            return false;
        }
    } else {
        let nobody = Grant::default();
        let grant = match key.filter(|&name| name != "anonymous") {
            Some(name) if config.keys.contains_key(name) => &config.keys[name],
            Some(name) if config.known.contains(name) => &config.default,
            Some(_) => &nobody,
            None => &config.anonymous,
        };
        let listed = to
            .provider
            .as_ref()
            .is_some_and(|p| grant.providers.contains(p.as_ref()));
        let reached = match grant.level {
            Level::Deny => false,
            Level::Dedicated => to.dedicated,
            Level::Allowlist => to.dedicated || listed,
            Level::Any => true,
        };
        if !reached {
            return false;
        }
        if !to.dedicated {
            let facts = to
                .provider
                .as_ref()
                .and_then(|p| config.facts.get(p.as_ref()));
            let facts = facts.cloned().unwrap_or_default();
            if config.demand.zdr && facts.zdr != Some(true)
                || config.demand.no_training && facts.trains != Some(false)
            {
                return false;
            }
            if let Some(most) = config.demand.max_retention_days {
                match facts.retention_days {
                    Some(days) if days <= most => {}
                    _ => return false,
                }
            }
            if !config.demand.regions.is_empty() {
                match facts.region {
                    Some(region) if config.demand.regions.contains(&region) => {}
                    _ => return false,
                }
            }
        }
        for text in leaving.texts {
            if config.rules.iter().any(|rule| rule.pattern.is_match(text)) {
                return false;
            }
        }
    }
    if config
        .max_bytes
        .is_some_and(|most| leaving.body.len() > most)
    {
        return false;
    }
    leaving.worst.is_some_and(|worst| {
        let limit = if &*to.upstream == "hf" { daily } else { 0 };
        worst.nusd == 0 || worst.nusd <= limit
    })
}

fn grants() -> impl Strategy<Value = Grant> {
    let levels = [Level::Deny, Level::Dedicated, Level::Allowlist, Level::Any];
    let providers = prop::collection::btree_set(prop::sample::select(vec!["p", "q"]), 0..3);
    (prop::sample::select(levels.to_vec()), providers).prop_map(|(level, providers)| Grant {
        level,
        providers: providers.into_iter().map(str::to_owned).collect(),
    })
}

fn facts() -> impl Strategy<Value = Facts> {
    let region = prop::option::of(prop::sample::select(vec!["eu", "us"]));
    (
        prop::option::of(0..3u32),
        region,
        any::<Option<bool>>(),
        any::<Option<bool>>(),
    )
        .prop_map(|(retention_days, region, zdr, trains)| Facts {
            retention_days,
            region: region.map(str::to_owned),
            zdr,
            trains,
        })
}

fn demands() -> impl Strategy<Value = Demand> {
    let regions = prop::collection::btree_set(prop::sample::select(vec!["eu", "us"]), 0..2);
    let plain = any::<(bool, bool)>();
    let demand = (prop::option::of(0..3u32), regions, plain).prop_map(
        |(max_retention_days, regions, (zdr, no_training))| Demand {
            max_retention_days,
            regions: regions
                .into_iter()
                .map(str::to_owned)
                .collect::<BTreeSet<_>>(),
            zdr,
            no_training,
        },
    );
    prop_oneof![Just(Demand::default()), demand]
}

fn configs() -> impl Strategy<Value = Config> {
    let keys = prop::collection::btree_map(Just("k".to_owned()), grants(), 0..2);
    let known = prop::collection::btree_set(Just("k".to_owned()), 0..2);
    let all_facts = prop::collection::btree_map(
        prop::sample::select(vec!["p".to_owned(), "q".to_owned()]),
        facts(),
        0..3,
    );
    let rules = any::<(bool, bool)>().prop_map(|(kept, blocked)| {
        let kept = kept.then(|| rule("a", "aa", Action::LocalOnly));
        let blocked = blocked.then(|| rule("b", "bb", Action::Block));
        kept.into_iter().chain(blocked).collect()
    });
    let numbers = (prop::option::of(0..8usize), prop::bool::weighted(0.2));
    (
        grants(),
        grants(),
        (keys, known),
        rules,
        all_facts,
        demands(),
        numbers,
    )
        .prop_map(
            |(anonymous, default, (keys, known), rules, facts, demand, (max_bytes, offline))| {
                Config {
                    offline,
                    anonymous,
                    default,
                    keys,
                    known,
                    rules,
                    max_bytes,
                    facts,
                    demand,
                    daily_nusd: BTreeMap::new(),
                }
            },
        )
}

fn destinations() -> impl Strategy<Value = Destination> {
    let provider = prop::option::of(prop::sample::select(vec!["p", "q", "r"]));
    let upstream = prop::sample::select(vec!["hf", "other"]);
    (any::<(bool, bool)>(), provider, upstream).prop_map(
        |((loopback, dedicated), provider, upstream)| Destination {
            upstream: upstream.into(),
            loopback,
            dedicated,
            provider: provider.map(Into::into),
            ..destination()
        },
    )
}

fn purposes() -> impl Strategy<Value = Purpose> {
    prop::sample::select(vec![
        Purpose::Request,
        Purpose::Retry,
        Purpose::Hedge,
        Purpose::Continuation,
        Purpose::WarmUp,
        Purpose::Probe,
        Purpose::Metadata,
        Purpose::Alert,
    ])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_gate_agrees_with_the_reference(
        config in configs(),
        to in destinations(),
        purpose in purposes(),
        key in prop::sample::select(vec![None, Some("k"), Some("other"), Some("anonymous")]),
        texts in prop::collection::vec("[ab]{0,4}", 0..3),
        bytes in 0..8usize,
        worst in prop::option::of(0..4u64),
        daily in 0..4u64,
    ) {
        let folder = tempfile::tempdir().expect("a folder");
        let ledger = ledger(folder.path(), daily);
        let tab = tab(&ledger);
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let leaving = Departure {
            key,
            purpose,
            body: Bytes::from(vec![0; bytes]),
            tab: Some(&tab),
            ..departure(&to, &texts, worst)
        };
        let expected = reference(&config, daily, key, &leaving);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let gate = Gate::new(config, Some(log(folder.path())));
        let permitted = gate.permits(key, &to, &texts);
        let got = runtime.block_on(gate.may_leave(leaving));
        prop_assert_eq!(got.is_ok(), expected, "{:?}", got);
        if carries_text(purpose) && got.is_ok() {
            prop_assert_eq!(permitted, Ok(()));
        }
        let report = audit::verify(&[folder.path().join("audit.jsonl")], None, &BTreeSet::new());
        prop_assert_eq!(report.map(|r| r.lines), Ok(u64::from(got.is_ok())));
        let expected = if expected { worst.unwrap_or(0) } else { 0 };
        prop_assert_eq!(spent(&ledger, &to.upstream), expected);
    }
}
