//! Asking in the background: catalogues, engines, endpoints' states. Failing to is no trouble.
//!
//! Each upstream has its own loop, so that one that is down keeps nobody waiting. What fails is tried again later
//! and later, up to the usual interval; the log has one line when an address can no longer be reached and one when
//! it is reached again. An endpoint that may sleep is asked through its control plane alone until it is known to run.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::{BoxFuture, FutureExt, join_all};
use rand_core::{OsRng, TryRngCore};
use tokio::time::{Instant, sleep};

use super::{Catalogue, Refused, shelf_path};
use crate::remote::config::{ControlPlane, UpstreamConfig, UpstreamKind};
use crate::remote::control::{Endpoint, EndpointState, describe_path, resume_path};
use crate::remote::detect::{Detected, Detection, Step};
use crate::remote::disk;
use crate::remote::fault::{Class, Fault};
use crate::remote::fetch::{Fetch, Fetched, Question};

/// The first pause after a failure; doubled each time.
const RETRY_FIRST: Duration = Duration::from_secs(15);

/// The share by which a pause varies, so that many servers do not ask at once.
const JITTER: f64 = 0.2;

const MODELS: &str = "/v1/models";

impl Catalogue {
    /// Asks what there is to ask, for as long as it is polled. Without an upstream it ends at once.
    ///
    /// An upstream that the settings disable is not asked anything.
    pub async fn run(self, fetch: Fetch) {
        let config = &self.0.config;
        let mut loops: Vec<BoxFuture<'_, ()>> = Vec::new();
        for upstream in config.upstreams.iter().filter(|u| u.disabled.is_none()) {
            if upstream.kind == UpstreamKind::HfRouter {
                loops.push(self.refresh(upstream, &fetch).boxed());
            }
            if let Some(detection) = Detection::of(upstream) {
                loops.push(self.detect(upstream, detection, &fetch).boxed());
            }
            if let Some(control) = upstream.control.as_ref().filter(|c| c.token.is_some()) {
                loops.push(self.watch(upstream, control, &fetch).boxed());
            }
        }
        join_all(loops).await;
    }

    /// Asks one upstream once, for a command that ends: a router for its catalogue, others which engine answers
    /// unless that might wake them. What is not learned stays as it was.
    ///
    /// Errors: no answer came, or none that can be used.
    pub async fn learn(&self, upstream: &str, fetch: &Fetch) -> Result<(), Fault> {
        let Some(upstream) = self.0.upstream(upstream) else {
            return Ok(());
        };
        let name = &upstream.name;
        if upstream.kind == UpstreamKind::HfRouter {
            let mut question = Question::data(name, MODELS);
            question.etag = self.etag(name);
            let answer = fetch.ask(question).await.and_then(success)?;
            self.take(name, answer, SystemTime::now())
                .map_err(|refused| Fault::new(Class::ServerError, refused.to_string()))?;
            self.keep(name).await;
        }
        if let Some(begin) = Detection::of(upstream).filter(|_| self.may_ask(upstream))
            && let Some(found) = detect_once(name, begin, fetch).await?
        {
            self.write().detected.insert(Arc::clone(name), found);
        }
        Ok(())
    }

    /// Keeps one router's catalogue fresh.
    async fn refresh(&self, upstream: &UpstreamConfig, fetch: &Fetch) {
        let name = &upstream.name;
        let every = self.0.config.catalog_refresh;
        let mut reach = Reach::default();
        let mut refused = None;
        loop {
            let mut question = Question::data(name, MODELS);
            question.etag = self.etag(name);
            let answer = fetch.ask(question).await.and_then(success);
            let pause = match answer {
                Ok(answer) => {
                    if reach.answered() {
                        tracing::info!(upstream = %name, "the upstream is reached again");
                    }
                    let problem = self.take(name, answer, SystemTime::now()).err();
                    if let Some(problem) = problem.filter(|problem| refused != Some(*problem)) {
                        tracing::warn!(upstream = %name, %problem, "a new catalogue is not believed; the one before stays in use");
                    }
                    refused = problem;
                    if problem.is_none() {
                        self.keep(name).await;
                    }
                    every
                }
                Err(fault) => {
                    if reach.failed() {
                        self.say_unreachable(name, &fault);
                    }
                    reach.pause(every, fault.retry_after)
                }
            };
            sleep(jittered(pause, dice())).await;
        }
    }

    fn etag(&self, upstream: &str) -> Option<String> {
        let state = self.read();
        state.shelves.get(upstream)?.etag().map(str::to_owned)
    }

    /// Puts a router's answer in, a confirmation too.
    pub(super) fn take(
        &self,
        upstream: &str,
        answer: Fetched,
        now: SystemTime,
    ) -> Result<(), Refused> {
        let Fetched { status, etag, body } = answer;
        let before = self.read().shelves.get(upstream).cloned();
        let Some(mut shelf) = before else {
            return Ok(());
        };
        if status == 304 {
            shelf.confirm(now);
        } else {
            let applied = shelf.apply(&body, etag, now)?;
            if applied.changed {
                tracing::info!(
                    upstream,
                    models = applied.models,
                    priced = applied.priced,
                    skipped = applied.skipped,
                    "a new catalogue is in use"
                );
            }
        }
        // The lock is held for this alone: reading a catalogue of megabytes must stop no request.
        if let Some(place) = self.write().shelves.get_mut(upstream) {
            *place = shelf;
        }
        Ok(())
    }

    /// Puts the catalogue on disk, if there is a place for it.
    async fn keep(&self, upstream: &str) {
        let Some(path) = shelf_path(&self.0.config, upstream) else {
            return;
        };
        let shelf = self.read().shelves.get(upstream).cloned();
        let written = tokio::task::spawn_blocking(move || {
            let document = shelf.and_then(|shelf| shelf.to_document());
            document.map_or(Ok(()), |document| disk::replace(&path, &document))
        });
        let problem = match written.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(upstream, error = %problem, "the catalogue cannot be kept on disk");
    }

    fn say_unreachable(&self, upstream: &str, fault: &Fault) {
        let in_use = match self.day(upstream) {
            Some(day) => format!("the catalogue of {day} is in use"),
            None => "there is no catalogue, so that its prices are not known".to_owned(),
        };
        tracing::warn!(
            upstream,
            error = %fault.message,
            "the upstream cannot be reached; serving local; {in_use}"
        );
    }

    /// Finds out which engine answers, once.
    async fn detect(&self, upstream: &UpstreamConfig, begin: Detection, fetch: &Fetch) {
        let name = &upstream.name;
        let mut reach = Reach::default();
        let mut changed = self.0.changed.subscribe();
        loop {
            while !self.may_ask(upstream) {
                if changed.changed().await.is_err() {
                    return;
                }
            }
            match detect_once(name, begin.clone(), fetch).await {
                Ok(Some(found)) => {
                    if reach.answered() {
                        tracing::info!(upstream = %name, "the upstream is reached again");
                    }
                    tracing::info!(upstream = %name, engine = ?found.engine, version = found.version, "the upstream's engine is known");
                    let name = Arc::clone(name);
                    self.write().detected.insert(name, found);
                    return;
                }
                Ok(None) => {
                    if reach.failed() {
                        tracing::warn!(upstream = %name, "the upstream doesn't say which engine answers; it is asked again later");
                    }
                }
                Err(fault) => {
                    if reach.failed() {
                        tracing::warn!(upstream = %name, error = %fault.message, "the upstream cannot be reached; serving local");
                    }
                }
            }
            let pause = reach.pause(self.0.config.catalog_refresh, None);
            sleep(jittered(pause, dice())).await;
        }
    }

    /// Whether a question to the upstream wakes nothing and keeps nothing awake that would sleep.
    fn may_ask(&self, upstream: &UpstreamConfig) -> bool {
        let state = self.read();
        let watched = state.watches.get(&upstream.name).and_then(|w| w.seen());
        !upstream.scales_to_zero
            || state.answered.contains(&upstream.name)
            || watched.is_some_and(|(endpoint, _)| endpoint.state.serves())
    }

    /// Follows an endpoint's state through its control plane.
    async fn watch(&self, upstream: &UpstreamConfig, control: &ControlPlane, fetch: &Fetch) {
        let name = &upstream.name;
        let mut reach = Reach::default();
        let mut changed = self.0.changed.subscribe();
        let describe = describe_path(control);
        loop {
            let question = Question::control(name, describe.clone());
            let asked = Instant::now();
            let answer = fetch.ask(question).await.and_then(success);
            let read = answer.and_then(|answer| {
                Endpoint::read(&answer.body).ok_or_else(|| {
                    Fault::new(
                        Class::ServerError,
                        "the control plane's answer names no state",
                    )
                })
            });
            let pause = match read {
                Ok(endpoint) => {
                    if reach.answered() {
                        tracing::info!(upstream = %name, "the control plane is reached again");
                    }
                    self.saw(upstream, endpoint, asked);
                    if self.must_resume(name, Instant::now()) {
                        self.resume(upstream, control, fetch).await;
                    }
                    self.poll_pause(name, Instant::now())
                }
                Err(fault) => {
                    if reach.failed() {
                        tracing::warn!(upstream = %name, error = %fault.message, "the control plane doesn't tell the endpoint's state");
                    }
                    reach.pause(self.0.config.catalog_refresh, fault.retry_after)
                }
            };
            tokio::select! {
                () = sleep(pause) => {}
                told = changed.changed() => if told.is_err() { return },
            }
        }
    }

    fn saw(&self, upstream: &UpstreamConfig, endpoint: Endpoint, now: Instant) {
        let name = &upstream.name;
        let mut state = self.write();
        let watch = state.watches.get_mut(name);
        let Some(before) = watch.and_then(|watch| watch.saw(endpoint, now)) else {
            return;
        };
        drop(state);
        let is = endpoint.state;
        match is {
            EndpointState::Paused => {
                tracing::warn!(upstream = %name, "the endpoint is paused and does not wake by itself; resume it, or set auto_resume");
            }
            EndpointState::Failed => {
                tracing::warn!(upstream = %name, "the endpoint has failed to start; its log at Hugging Face says why");
            }
            _ => {
                tracing::info!(upstream = %name, state = is.name(), "the endpoint's state has changed")
            }
        }
        let alone = self.0.config.upstreams.len() == 1;
        if before.is_none() && alone && endpoint.min_replicas == Some(0) {
            tracing::info!(
                upstream = %name,
                "the only upstream may sleep and takes minutes to wake; two replicas at least keep it available"
            );
        }
        // One that serves now may be asked what it is.
        if is.serves() && !before.is_some_and(EndpointState::serves) {
            self.0.changed.send_replace(());
        }
    }

    fn must_resume(&self, upstream: &str, now: Instant) -> bool {
        let mut state = self.write();
        let watch = state.watches.get_mut(upstream);
        watch.is_some_and(|watch| watch.resume(now))
    }

    fn poll_pause(&self, upstream: &str, now: Instant) -> Duration {
        let state = self.read();
        let watch = state.watches.get(upstream);
        watch.map_or(self.0.config.catalog_refresh, |watch| watch.pause(now))
    }

    async fn resume(&self, upstream: &UpstreamConfig, control: &ControlPlane, fetch: &Fetch) {
        let mut question = Question::control(&upstream.name, resume_path(control));
        question.post = true;
        match fetch.ask(question).await.and_then(success) {
            Ok(_) => tracing::info!(upstream = %upstream.name, "the paused endpoint is resumed"),
            Err(fault) => {
                tracing::warn!(upstream = %upstream.name, error = %fault.message, "the paused endpoint cannot be resumed");
            }
        }
    }
}

/// One round of questions; none where the answers decide nothing yet.
async fn detect_once(
    name: &Arc<str>,
    mut detection: Detection,
    fetch: &Fetch,
) -> Result<Option<Detected>, Fault> {
    let mut step = detection.next();
    loop {
        match step {
            Step::Ask(path) => {
                let answer = fetch.ask(Question::data(name, path)).await?;
                step = detection.answer(answer.status, &answer.body);
            }
            Step::Done(found) => return Ok(Some(found)),
            Step::Later => return Ok(None),
        }
    }
}

/// An answer that is none of what was asked for is a fault like no answer.
fn success(answer: Fetched) -> Result<Fetched, Fault> {
    match answer.status {
        200..=299 | 304 => Ok(answer),
        status => {
            let mut fault = Fault::new(
                Class::ServerError,
                format!("it answers with status {status}"),
            );
            fault.status = Some(status);
            Err(fault)
        }
    }
}

/// Whether an address answers, so that the log says it once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Reach {
    failures: u32,
}

impl Reach {
    /// It has failed; whether that is news.
    fn failed(&mut self) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.failures == 1
    }

    /// It has answered; whether that is news.
    fn answered(&mut self) -> bool {
        std::mem::take(&mut self.failures) > 0
    }

    /// How long to wait after the failures so far: twice as long each time, up to `most`, and no shorter than
    /// the address asks for, an hour at most.
    fn pause(&self, most: Duration, asked: Option<Duration>) -> Duration {
        let doubled = 2_u32.saturating_pow(self.failures.saturating_sub(1));
        let asked = asked.unwrap_or_default().min(Duration::from_secs(3600));
        RETRY_FIRST.saturating_mul(doubled).min(most).max(asked)
    }
}

/// A pause of 80 to 120 %, for a throw of 0 to 1.
fn jittered(pause: Duration, throw: f64) -> Duration {
    pause.mul_f64(1.0 - JITTER + 2.0 * JITTER * throw)
}

/// A throw of 0 to 1. Without randomness from the system nothing is spread.
fn dice() -> f64 {
    OsRng
        .try_next_u32()
        .map_or(0.5, |n| f64::from(n) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_change_is_told_once_and_pauses_grow_to_the_usual_interval() {
        let most = Duration::from_secs(900);
        let mut reach = Reach::default();
        assert!(!reach.answered());
        let told: Vec<bool> = (0..4).map(|_| reach.failed()).collect();
        assert_eq!(told, [true, false, false, false]);
        assert_eq!(reach.pause(most, None), Duration::from_secs(120));
        assert_eq!(reach.pause(most, Some(most)), most);
        for _ in 0..100 {
            reach.failed();
        }
        assert_eq!(reach.pause(most, None), most);
        assert!(reach.answered() && !reach.answered());
        assert!(reach.failed());
        assert_eq!(reach.pause(most, None), RETRY_FIRST);
    }

    proptest! {
        #[test]
        fn a_pause_varies_by_a_fifth(seconds in 1_u64..100_000, throw in 0.0..=1.0) {
            let pause = Duration::from_secs(seconds);
            let got = jittered(pause, throw).as_secs_f64() / pause.as_secs_f64();
            prop_assert!((0.799..=1.201).contains(&got));
            prop_assert!((0.0..=1.0).contains(&dice()));
        }
    }
}
