//! The command against a target made of a function.

use std::sync::Mutex;
use std::time::SystemTime;

use serde_json::json;

use super::*;
use crate::remote::catalog::{Catalogue, Shape, samples};
use crate::remote::{Billing, Class, Config, EngineKind, UpstreamConfig, UpstreamKind};

fn subject() -> Subject {
    let upstream = UpstreamConfig {
        base_url: "http://127.0.0.1:1".to_owned(),
        engine: Some(EngineKind::OpenAi),
        billing: Billing::Own,
        ..samples::upstream("box", UpstreamKind::OpenAiCompat)
    };
    let target = samples::target("t", "box", "m");
    let config = Config {
        upstreams: vec![upstream],
        targets: vec![target.clone()],
        ..Config::default()
    };
    let catalogue = Catalogue::open(&config);
    let facts = catalogue.facts(&target, &Shape::default(), SystemTime::now());
    Subject {
        target,
        facts: facts.expect("a known upstream"),
        host: "127.0.0.1:1".to_owned(),
    }
}

/// Refuses log-probabilities, and says the same to everything else.
fn answer(probe: &Probe) -> Answer {
    let refused = probe.body.get("logprobs").is_some();
    let body = json!({"choices": [{"message": {"content": "ok"}, "finish_reason": "stop"}]});
    Answer {
        status: if refused { 400 } else { 200 },
        body: body.to_string().into(),
        provider: Some("us".to_owned()),
    }
}

/// What the command wrote, what it sent, how it ended.
async fn run(
    line: Option<&str>,
    yes: bool,
    store: &mut CapabilityStore,
    answer: impl Fn(&Probe) -> Result<Answer, Fault>,
) -> (String, Vec<Ask>, Result<(), String>) {
    let sent = Mutex::new(Vec::new());
    let mut input = line.map(str::as_bytes);
    let mut output = Vec::new();
    let terminal = Terminal {
        input: input.as_mut().map(|input| input as &mut dyn BufRead),
        output: &mut output,
    };
    let ended = probe(
        &[subject()],
        yes,
        terminal,
        store,
        "2026-11-21",
        |_, probe| {
            sent.lock().expect("a list").push(probe.ask);
            let answer = answer(&probe);
            async move { answer }
        },
    )
    .await;
    let text = String::from_utf8(output).expect("UTF-8");
    let sent = sent.into_inner().expect("a list");
    (text, sent, ended.map_err(|e| e.to_string()))
}

#[tokio::test]
async fn nothing_is_sent_before_somebody_agrees() {
    for line in [None, Some("\n"), Some("n\n"), Some("")] {
        let mut store = CapabilityStore::default();
        let (text, sent, ended) = run(line, false, &mut store, |probe| Ok(answer(probe))).await;
        assert!(sent.is_empty());
        assert!(
            ended
                .expect_err("nothing is done")
                .starts_with("nothing was sent")
        );
        assert!(
            text.contains("16 requests") && text.contains("127.0.0.1:1"),
            "{text}"
        );
        assert!(text.contains("0.0000 USD"), "{text}");
    }
}

#[tokio::test]
async fn what_was_found_is_shown_and_kept() {
    for (line, yes) in [(Some("y\n"), false), (None, true)] {
        let folder = tempfile::tempdir().expect("a folder");
        let mut store = CapabilityStore::open(Some(folder.path()));
        let (text, sent, ended) = run(line, yes, &mut store, |probe| Ok(answer(probe))).await;
        assert_eq!(ended, Ok(()));
        assert_eq!(sent.len(), 16);
        for row in [
            "logprobs         no",
            "stream_options   yes",
            "top_k            open",
        ] {
            assert!(text.contains(row), "{text}");
        }
        let kept = CapabilityStore::open(Some(folder.path()));
        let (found, date) = kept.findings(&subject().target).expect("findings");
        assert_eq!((found.logprobs, date), (Some(false), "2026-11-21"));
    }
}

#[tokio::test]
async fn a_target_that_does_not_answer_is_asked_once_and_nothing_is_kept() {
    let mut store = CapabilityStore::default();
    let down = |_: &Probe| Err(Fault::new(Class::Transport, "connection refused"));
    let (_, sent, ended) = run(None, true, &mut store, down).await;
    assert_eq!(sent, [Ask::Plain]);
    assert!(ended.expect_err("a problem").contains("connection refused"));
    let closed = |_: &Probe| {
        Ok(Answer {
            status: 401,
            ..Answer::default()
        })
    };
    let (_, sent, ended) = run(None, true, &mut store, closed).await;
    assert_eq!(sent, [Ask::Plain]);
    assert!(ended.expect_err("a problem").contains("401"));
    assert_eq!(store, CapabilityStore::default());
}
