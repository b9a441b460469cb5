//! Overflow on the embedded model: a burst fills the line, and who would be too late goes elsewhere.
//!
//! One slow thread and few places, so that a burst takes seconds; the clock of the machine that runs this decides
//! who spills, so the tests look at what every decision was given, never at how many went where.
//! `benches/overflow.py` plays a whole step in the load.

use std::path::{Path, PathBuf};
use std::thread;

use serde_json::{Value as Json, json};

use super::Setup;
use crate::support::eventually;
use crate::support::server::{Sconce, Server};
use crate::support::wire::{self, Reply};

const PLACES: u64 = 2;
const SLO_MS: u64 = 300;

/// Settings of a slow server with few places in front of another one that takes so many at once.
fn setup(far: &Server, at_once: usize) -> Setup {
    let setup = Setup::new()
        .add(&format!(
            "[remote.adaptive]\nstart = {at_once}\nmax = {at_once}\n\
             [[remote.upstream]]\nname = \"up\"\nkind = \"tgi\"\nbase_url = \"http://{}\"\nbilling = \"own\"\n\
             [[remote.target]]\nname = \"far\"\nupstream = \"up\"\nmodel = \"sconce-demo\"\n\
             [[route.model]]\nname = \"default\"\nlocal = true\ntargets = [\"far\"]\n\
             [egress]\nanonymous = \"dedicated\"\n",
            far.address()
        ))
        .flag("--cpu-tier", "portable")
        .flag("--cpu-threads", "1")
        .flag("--max-batch-size", &PLACES.to_string());
    let path = decision_log(&setup).display().to_string();
    // Whether the other one is faster is not what this is about.
    setup.add(&format!(
        "[route]\nslo_ttft_ms = {SLO_MS}\nremote_gain = 10.0\ndecision_log = {path:?}\n"
    ))
}

fn decision_log(setup: &Setup) -> PathBuf {
    setup.audit_log().with_file_name("decisions.jsonl")
}

/// An answer of so many tokens: all are about equally likely, so it does not end by itself.
fn ask(tokens: u32) -> Json {
    json!({
        "inputs": "Once upon a time",
        "parameters": {"max_new_tokens": tokens, "temperature": 100.0, "seed": 1},
    })
}

/// The decisions on so many requests, once all are written, in the order of their clock.
fn records(path: &Path, many: usize) -> Vec<Json> {
    let mut records = eventually("every decision is written", || {
        let text = std::fs::read_to_string(path).ok()?;
        let lines = text.lines().map(serde_json::from_str);
        let records: Vec<Json> = lines.collect::<Result<_, _>>().ok()?;
        (records.len() >= many).then_some(records)
    });
    assert_eq!(records.len(), many, "one for each request");
    records.sort_by_key(|record| record["now_ms"].as_u64());
    records
}

/// As many requests at once.
fn burst(server: &Server, many: usize, tokens: u32) -> Vec<Reply> {
    let address = server.address();
    let request = wire::post("/generate", "", &ask(tokens).to_string());
    thread::scope(|scope| {
        let callers: Vec<_> = (0..many)
            .map(|_| scope.spawn(|| wire::receive(wire::send(address, &request))))
            .collect();
        callers
            .into_iter()
            .map(|caller| caller.join().expect("an answer"))
            .collect()
    })
}

fn number(value: &Json) -> u64 {
    value
        .as_u64()
        .unwrap_or_else(|| panic!("not a number: {value}"))
}

/// Lets the server see how long its steps and answers take.
fn warm(server: &Server) {
    for _ in 0..8 {
        server.post("/generate", &ask(100)).ok();
    }
}

#[test]
fn one_after_the_other_all_stay() {
    let far = Sconce::new().serve();
    let setup = setup(&far, 64);
    let near = setup.serve();
    warm(&near);
    for reply in (0..4).map(|_| near.post("/generate", &ask(100))) {
        assert_eq!(reply.status, 200, "{reply:?}");
        assert_eq!(reply.header("x-route-target"), Some("local"));
        assert_eq!(reply.header("x-route-reason"), Some("local_ok"));
    }
    for record in records(&decision_log(&setup), 12) {
        assert_eq!(record["decision"]["outcome"], "local", "{record}");
        assert_eq!(record["decision"]["diverting_after"]["diverting"], false);
    }
    far.await_metric("tgi_request_count", |count| count == 0.0);
}

#[test]
fn a_burst_spills_who_would_be_too_late_and_nobody_else() {
    let far = Sconce::new().serve();
    let setup = setup(&far, 64);
    let near = setup.serve();
    warm(&near);
    let replies = burst(&near, 36, 200);
    let (mut here, mut there) = (0, 0);
    for reply in &replies {
        assert_eq!(reply.status, 200, "{reply:?}");
        match (
            reply.header("x-route-target"),
            reply.header("x-route-reason"),
        ) {
            (Some("local"), Some("local_ok")) => here += 1,
            (Some("remote"), Some("queue_overflow")) => there += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(
        here >= PLACES as usize,
        "what has room stays: {here} and {there}"
    );
    assert!(
        there > 0,
        "36 answers at two places are more than {SLO_MS} ms of work"
    );
    let mut changes = Vec::new();
    for record in records(&decision_log(&setup), 44) {
        let (local, decision) = (&record["local"], &record["decision"]);
        let taken = number(&local["running"]) + number(&local["waiting"]);
        let moved = local["queue_full"] == true;
        let late = local["forecast"]["ttft_ms"].as_u64();
        let diverting = local["hysteresis"]["diverting"] == true;
        if decision["outcome"] == "remote" && !moved {
            assert!(taken >= PLACES, "spilled below capacity: {record}");
            let bar = if diverting { SLO_MS * 7 / 10 } else { SLO_MS };
            assert!(
                late.expect("a forecast") >= bar,
                "spilled in time: {record}"
            );
        }
        if let Some(at) = decision["diverting_after"]["changed_ms"].as_u64()
            && !changes.contains(&at)
        {
            changes.push(at);
        }
    }
    // The burst is over within a minute of its first spill, in which there is one change.
    changes.sort_unstable();
    for pair in changes.windows(2) {
        assert!(pair[1] - pair[0] >= 60_000, "{changes:?}");
    }
    assert!(
        !changes.is_empty(),
        "diverting begins with the first that goes"
    );
}

#[test]
fn who_waits_here_is_not_refused_because_nobody_there_has_room() {
    let far = Sconce::new()
        .flag("--cpu-tier", "portable")
        .flag("--cpu-threads", "1")
        .flag("--max-batch-size", "1")
        .serve();
    let setup = setup(&far, 1).add("[remote.parking]\nwait_max_seconds = 0\n");
    let near = setup.serve();
    warm(&near);
    for reply in burst(&near, 24, 200) {
        assert_eq!(reply.status, 200, "{reply:?}");
    }
}
