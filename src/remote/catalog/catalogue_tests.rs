//! What is known together, and the background loops under a clock that stands still.

use std::sync::Mutex;

use bytes::Bytes;
use serde_json::json;

use super::samples::{target, upstream};
use super::*;
use crate::remote::{
    Class, ControlPlane, Fault, Fetch, Fetched, Plane, ProviderChoice, Question, Secret,
};

type Asked = Arc<Mutex<Vec<(Instant, Question)>>>;

/// A way to ask that notes each question and answers by a script.
fn script(
    answer: impl Fn(&Question, usize) -> Result<Fetched, Fault> + Send + Sync + 'static,
) -> (Fetch, Asked) {
    let asked = Asked::default();
    let notes = Arc::clone(&asked);
    let fetch = Fetch::new(move |question: Question| {
        let mut notes = notes.lock().expect("notes");
        let answer = answer(&question, notes.len());
        notes.push((Instant::now(), question));
        async move { answer }
    });
    (fetch, asked)
}

fn ok(body: serde_json::Value) -> Result<Fetched, Fault> {
    Ok(Fetched {
        status: 200,
        etag: Some("\"v1\"".to_owned()),
        body: Bytes::from(body.to_string()),
    })
}

fn status(status: u16) -> Result<Fetched, Fault> {
    Ok(Fetched {
        status,
        ..Fetched::default()
    })
}

fn unreachable() -> Result<Fetched, Fault> {
    Err(Fault::new(Class::Transport, "connection refused"))
}

fn listing() -> serde_json::Value {
    json!({"data": [{"id": "meta/llama", "providers": [
        {"provider": "together", "status": "live", "context_length": 8192, "pricing": {"input": 0.5, "output": 1.5},
         "supports_tools": true, "is_model_author": false}]}]})
}

fn config(upstreams: Vec<UpstreamConfig>) -> Config {
    Config {
        upstreams,
        ..Config::default()
    }
}

fn router() -> UpstreamConfig {
    upstream("hf", UpstreamKind::HfRouter)
}

fn pinned() -> TargetConfig {
    let mut target = target("t", "hf", "meta/llama");
    target.provider = ProviderChoice::Pinned("together".into());
    target
}

fn facts(catalogue: &Catalogue, target: &TargetConfig) -> Facts {
    let facts = catalogue.facts(target, &Shape::default(), SystemTime::now());
    facts.expect("a known upstream")
}

/// Runs the background loops for so long.
async fn run_for(catalogue: &Catalogue, fetch: Fetch, time: Duration) {
    let _ = tokio::time::timeout(time, catalogue.clone().run(fetch)).await;
}

fn seconds(asked: &Asked, start: Instant) -> Vec<u64> {
    let asked = asked.lock().expect("notes");
    asked
        .iter()
        .map(|(at, _)| (*at - start).as_secs())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn nothing_configured_asks_nothing_and_ends() {
    let (fetch, asked) = script(|_, _| unreachable());
    Catalogue::open(&config(vec![])).run(fetch).await;
    assert!(asked.lock().expect("notes").is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_last_good_day_is_used_until_the_network_is_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = config(vec![router()]);
    config.state_dir = Some(folder.path().to_owned());

    let first = Catalogue::open(&config);
    assert_eq!(facts(&first, &pinned()).basis, Basis::Unknown);
    assert_eq!(first.day("hf"), None);
    let (fetch, _) = script(|_, _| ok(listing()));
    // The clock stands while the file is written.
    run_for(&first, fetch, Duration::from_secs(1)).await;

    let offline = Catalogue::open(&config);
    assert!(offline.day("hf").is_some());
    let (fetch, asked) = script(|_, n| if n < 5 { unreachable() } else { status(304) });
    let start = Instant::now();
    run_for(&offline, fetch, Duration::from_secs(3600)).await;
    let known = facts(&offline, &pinned());
    assert!(matches!(known.basis, Basis::Catalogue(_)), "{known:?}");
    assert_eq!(known.target.price.map(|p| p.output_pusd), Some(1_500_000));
    let at = seconds(&asked, start);
    // Each pause is twice the last, a fifth more or less, then the usual quarter of an hour.
    for (n, pair) in at.windows(2).enumerate() {
        let usual = if n < 5 { 15 << n } else { 900 };
        let pause = pair[1] - pair[0];
        assert!(
            (usual * 4 / 5 - 1..=usual * 6 / 5 + 1).contains(&pause),
            "{at:?}"
        );
    }
    let asked = asked.lock().expect("notes");
    assert_eq!(asked[0].1.etag.as_deref(), Some("\"v1\""));
    assert_eq!(
        (&*asked[0].1.path, asked[0].1.plane),
        ("/v1/models", Plane::Data)
    );
}

#[test]
fn a_broken_file_is_left_out() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("catalog-hf.json"), "{\"at\":").expect("it is written");
    let mut config = config(vec![router()]);
    config.state_dir = Some(folder.path().to_owned());
    let catalogue = Catalogue::open(&config);
    assert_eq!(facts(&catalogue, &pinned()).target.price, None);
}

#[test]
fn the_operators_word_comes_first_and_own_machines_cost_nothing() {
    let mut own = upstream("box", UpstreamKind::OpenAiCompat);
    own.billing = Billing::Own;
    own.engine = Some(EngineKind::Vllm);
    own.provider = Some("us".into());
    let catalogue = Catalogue::open(&config(vec![router(), own]));
    let answer = ok(listing()).expect("an answer");
    assert!(catalogue.take("hf", answer, SystemTime::now()).is_ok());

    let listed = facts(&catalogue, &pinned());
    assert!(listed.basis.to_string().starts_with("catalog@"));
    assert_eq!(listed.target.context_length, Some(8192));
    assert_eq!(listed.target.capabilities.tools, Some(true));
    assert_eq!(listed.target.capabilities.structured_output, None);
    assert_eq!(listed.live, Some(true));

    let mut said = pinned();
    said.price = Some(Price {
        input_pusd: 7,
        cached_pusd: Some(3),
        output_pusd: 9,
    });
    said.context_length = Some(4000);
    said.capabilities.tools = Some(false);
    let known = facts(&catalogue, &said);
    assert_eq!(
        (known.target.price, known.basis),
        (said.price, Basis::Override)
    );
    assert_eq!(known.target.context_length, Some(4000));
    assert_eq!(known.target.capabilities.tools, Some(false));
    let context = || facts(&catalogue, &said).target.context_length;
    catalogue.learn_context(&said, 5, SystemTime::now());
    assert_eq!(context(), Some(4000), "no model is that small");
    let ago = |seconds| SystemTime::now() - Duration::from_secs(seconds);
    catalogue.learn_context(&said, 2048, ago(3500));
    assert_eq!(context(), Some(2048));
    catalogue.learn_context(&said, 2048, ago(3601));
    assert_eq!(context(), Some(4000), "an hour later");
    said.capabilities.min_p = Some(true);
    let min_p = || facts(&catalogue, &said).target.capabilities.min_p;
    catalogue.learn_unknown(&said, "min_p", ago(3500));
    assert_eq!(min_p(), Some(false), "whatever the operator says");
    catalogue.learn_unknown(&said, "min_p", ago(3601));
    assert_eq!(min_p(), Some(true), "an hour later");

    let own = facts(&catalogue, &target("mine", "box", "m"));
    assert_eq!(
        (own.target.price, own.basis),
        (Some(Price::FREE), Basis::Own)
    );
    assert_eq!(own.target.capabilities.top_k, Some(true));
    assert_eq!(own.provider.as_deref(), Some("us"));
    let other = target("x", "nowhere", "m");
    assert_eq!(
        catalogue.facts(&other, &Shape::default(), SystemTime::now()),
        None
    );
}

#[test]
fn what_was_probed_stands_between_the_operator_and_the_catalogue() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut store = CapabilityStore::open(Some(folder.path()));
    let found = crate::remote::capability_store::Findings {
        tools: Some(false),
        logprobs: Some(true),
        ..Default::default()
    };
    store.put(&pinned(), found, "2026-11-21");
    store.save().expect("it is written");
    let mut config = config(vec![router()]);
    config.state_dir = Some(folder.path().to_owned());
    let catalogue = Catalogue::open(&config);
    let answer = ok(listing()).expect("an answer");
    assert!(catalogue.take("hf", answer, SystemTime::now()).is_ok());
    let mut said = pinned();
    said.capabilities.logprobs = Some(false);
    let capabilities = facts(&catalogue, &said).target.capabilities;
    assert_eq!(
        (capabilities.tools, capabilities.logprobs),
        (Some(false), Some(false))
    );
}

#[tokio::test(start_paused = true)]
async fn a_shrunken_catalogue_changes_nothing_that_is_known() {
    let catalogue = Catalogue::open(&config(vec![router()]));
    let bare = json!({"data": [{"id": "meta/llama", "providers": [{"provider": "together"}]}]});
    let (fetch, _) = script(move |_, n| ok(if n == 0 { listing() } else { bare.clone() }));
    run_for(&catalogue, fetch, Duration::from_secs(3000)).await;
    assert!(facts(&catalogue, &pinned()).target.price.is_some());
}

fn sleeper(with_control: bool) -> UpstreamConfig {
    let mut upstream = upstream("ie", UpstreamKind::InferenceEndpoint);
    upstream.billing = Billing::Own;
    upstream.scales_to_zero = true;
    upstream.control = with_control.then(|| ControlPlane {
        base_url: "https://control.test".to_owned(),
        token: Some(Secret::new("hf_x".to_owned())),
        namespace: "me".to_owned(),
        endpoint: "e".to_owned(),
        auto_resume: true,
    });
    upstream
}

fn state(word: &str) -> Result<Fetched, Fault> {
    ok(json!({"status": {"state": word}, "compute": {"scaling": {"minReplica": 0}}}))
}

fn info() -> Result<Fetched, Fault> {
    ok(json!({"model_id": "m", "max_total_tokens": 2048, "router": "r", "version": "3.3.6"}))
}

#[tokio::test(start_paused = true)]
async fn a_sleeping_endpoint_is_asked_through_its_control_plane_alone() {
    let catalogue = Catalogue::open(&config(vec![sleeper(true)]));
    let (fetch, asked) = script(|_, _| state("scaledToZero"));
    run_for(&catalogue, fetch, Duration::from_secs(24 * 3600 - 1)).await;
    let asked = asked.lock().expect("notes");
    assert!(
        asked
            .iter()
            .all(|(_, q)| q.plane == Plane::Control && !q.post)
    );
    assert_eq!(asked.len(), 24 * 60);
    assert_eq!(&*asked[0].1.path, "/v2/endpoint/me/e");
    assert_eq!(catalogue.detected("ie"), None);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_without_a_control_plane_is_asked_when_it_has_answered_a_request() {
    let catalogue = Catalogue::open(&config(vec![sleeper(false)]));
    let (fetch, asked) = script(|_, _| info());
    let background = tokio::spawn(catalogue.clone().run(fetch));
    tokio::time::sleep(Duration::from_secs(7200)).await;
    assert!(asked.lock().expect("notes").is_empty());
    catalogue.answered("ie");
    background.await.expect("it ends when the engine is known");
    let found = catalogue.detected("ie").expect("an engine");
    assert_eq!(found.engine, Some(EngineKind::Tgi));
    let known = facts(&catalogue, &target("t", "ie", "m"));
    assert_eq!(
        (known.target.engine, known.target.context_length),
        (EngineKind::Tgi, Some(2048))
    );
}

#[tokio::test(start_paused = true)]
async fn a_wanted_endpoint_is_followed_closely_resumed_once_and_then_asked_what_it_is() {
    let catalogue = Catalogue::open(&config(vec![sleeper(true)]));
    let begin = Instant::now();
    let (fetch, asked) = script(move |question, _| match (question.plane, question.post) {
        (Plane::Data, _) => info(),
        (Plane::Control, true) => status(202),
        (Plane::Control, false) => match begin.elapsed().as_secs() {
            0..130 => state("paused"),
            130..160 => state("initializing"),
            _ => state("running"),
        },
    });
    let background = tokio::spawn(catalogue.clone().run(fetch));
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(seconds(&asked, begin), [0, 60]);
    catalogue.want("ie", Instant::now());
    catalogue.want("ie", Instant::now());
    tokio::time::sleep(Duration::from_secs(100)).await;
    background.abort();
    let asked = asked.lock().expect("notes");
    let posts: Vec<_> = asked.iter().filter(|(_, q)| q.post).collect();
    assert_eq!(posts.len(), 1);
    assert_eq!(&*posts[0].1.path, "/v2/endpoint/me/e/resume");
    // At 100 at once, then each 5 s until it runs at 160, and once more when that was told.
    let polls = asked
        .iter()
        .filter(|(_, q)| q.plane == Plane::Control && !q.post);
    assert!((15..=17).contains(&polls.count()), "{asked:?}");
    assert!(catalogue.detected("ie").is_some());
    let (endpoint, since) = catalogue.endpoint("ie").expect("seen");
    assert!(endpoint.state.serves());
    assert_eq!((since - begin).as_secs(), 160);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_the_settings_disable_is_left_alone() {
    let mut off = router();
    off.disabled = Some("HF_TOKEN is not set".to_owned());
    let (fetch, asked) = script(|_, _| ok(listing()));
    Catalogue::open(&config(vec![off])).run(fetch).await;
    assert!(asked.lock().expect("notes").is_empty());
}
