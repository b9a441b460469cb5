//! The control plane of an Inference Endpoint: what state it is in, asked where asking wakes nothing.
//!
//! Reading an answer is pure; [`Watch`] says when to ask next and when to resume. A paused endpoint is resumed
//! only where the settings allow it and a request wants it: it was paused by somebody, and running costs money.

use std::fmt;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::config::{ColdStartConfig, ControlPlane};

/// How often the control plane is asked while nothing is on the way.
const CALM_POLL: Duration = Duration::from_secs(60);

/// What an endpoint does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EndpointState {
    /// It serves.
    Running,
    /// It serves, and a new version is on its way.
    Updating,
    /// It waits for a machine.
    Pending,
    /// It starts.
    Initializing,
    /// It sleeps and wakes by a request.
    ScaledToZero,
    /// Somebody paused it; it does not wake by itself.
    Paused,
    /// It did not start.
    Failed,
    /// A word that is not known here.
    Unknown,
}

impl EndpointState {
    /// Reads the control plane's word.
    pub fn from_word(word: &str) -> Self {
        match word {
            "running" => Self::Running,
            "updating" => Self::Updating,
            "pending" => Self::Pending,
            "initializing" => Self::Initializing,
            "scaledToZero" => Self::ScaledToZero,
            "paused" => Self::Paused,
            "failed" | "updateFailed" => Self::Failed,
            _ => Self::Unknown,
        }
    }

    /// Whether a request is answered now, and asking wakes nothing.
    pub fn serves(self) -> bool {
        matches!(self, Self::Running | Self::Updating)
    }

    /// Whether it will serve without anybody's help.
    pub fn is_waking(self) -> bool {
        matches!(self, Self::Pending | Self::Initializing)
    }

    /// The name in logs and answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Updating => "updating",
            Self::Pending => "pending",
            Self::Initializing => "initializing",
            Self::ScaledToZero => "scaled_to_zero",
            Self::Paused => "paused",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for EndpointState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the control plane says of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// What it does.
    pub state: EndpointState,
    /// Replicas it never goes below; 0 lets it sleep.
    pub min_replicas: Option<u32>,
    /// Whether a route is named by which the plane knows that a replica is ready; without one, the first
    /// requests to a running endpoint may fail.
    pub has_health_route: bool,
}

impl Endpoint {
    /// Reads `GET /v2/endpoint/{namespace}/{name}`. None if no state stands in it.
    pub fn read(body: &[u8]) -> Option<Self> {
        let document: Value = serde_json::from_slice(body).ok()?;
        let state = document.get("status")?.get("state")?.as_str()?;
        let least = document.pointer("/compute/scaling/minReplica");
        let route = ["/healthRoute", "/model/healthRoute", "/status/healthRoute"]
            .iter()
            .find_map(|at| document.pointer(at)?.as_str());
        Some(Self {
            state: EndpointState::from_word(state),
            min_replicas: least
                .and_then(Value::as_u64)
                .and_then(|n| u32::try_from(n).ok()),
            has_health_route: route.is_some_and(|route| !route.is_empty()),
        })
    }
}

/// The path at which an endpoint is described.
pub fn describe_path(control: &ControlPlane) -> String {
    let escape = |part: &str| url::form_urlencoded::byte_serialize(part.as_bytes()).collect();
    let (namespace, name): (String, String) =
        (escape(&control.namespace), escape(&control.endpoint));
    format!("/v2/endpoint/{namespace}/{name}")
}

/// The path at which it is resumed.
pub fn resume_path(control: &ControlPlane) -> String {
    format!("{}/resume", describe_path(control))
}

/// One endpoint as it was last seen, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    poll: Duration,
    give_up: Duration,
    auto_resume: bool,
    seen: Option<(Endpoint, Instant)>,
    /// When the answer was asked for that was taken last.
    asked: Option<Instant>,
    /// Since when a request waits for it.
    wanted: Option<Instant>,
    resumed: Option<Instant>,
}

impl Watch {
    /// Of an endpoint not yet seen.
    pub fn new(config: &ColdStartConfig, auto_resume: bool) -> Self {
        Self {
            poll: config.poll,
            give_up: config.give_up,
            auto_resume,
            seen: None,
            asked: None,
            wanted: None,
            resumed: None,
        }
    }

    /// What was last seen, and since when the endpoint is in that state.
    pub fn seen(&self) -> Option<(Endpoint, Instant)> {
        self.seen
    }

    /// What was last seen, and when it was asked for.
    pub fn latest(&self) -> Option<(Endpoint, Instant)> {
        Some((self.seen?.0, self.asked?))
    }

    /// A request wants the endpoint and found it not serving, whatever was seen last; whether that is news.
    pub fn want(&mut self, now: Instant) -> bool {
        let news = !self.is_wanted(now);
        if news {
            self.wanted = Some(now);
        }
        news
    }

    /// Takes an answer that was asked for at that moment; the state before, if this is another.
    pub fn saw(&mut self, endpoint: Endpoint, now: Instant) -> Option<Option<EndpointState>> {
        let before = self.seen.map(|(before, _)| before.state);
        let changed = before != Some(endpoint.state);
        let since = match self.seen {
            Some((_, since)) if !changed => since,
            _ => now,
        };
        self.seen = Some((endpoint, since));
        self.asked = Some(now);
        if endpoint.state.serves() {
            self.wanted = None;
        }
        changed.then_some(before)
    }

    /// Whether to resume the endpoint now; at most once in the time after which waking is given up.
    pub fn resume(&mut self, now: Instant) -> bool {
        let paused = self
            .seen
            .is_some_and(|(endpoint, _)| endpoint.state == EndpointState::Paused);
        let again = self
            .resumed
            .is_none_or(|at| now.duration_since(at) >= self.give_up);
        let resume = self.auto_resume && paused && self.is_wanted(now) && again;
        if resume {
            self.resumed = Some(now);
        }
        resume
    }

    /// Time until the plane is asked again: shorter while something is on its way.
    pub fn pause(&self, now: Instant) -> Duration {
        let waking = self
            .seen
            .is_some_and(|(endpoint, _)| endpoint.state.is_waking());
        match waking || self.is_wanted(now) {
            true => self.poll,
            false => CALM_POLL,
        }
    }

    /// A wish is given up when waking is.
    fn is_wanted(&self, now: Instant) -> bool {
        self.wanted
            .is_some_and(|since| now.duration_since(since) < self.give_up)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn endpoint(word: &str) -> Endpoint {
        let body = json!({"name": "e", "compute": {"scaling": {"minReplica": 0, "maxReplica": 1}},
            "model": {"repository": "meta/llama"}, "status": {"state": word, "url": "https://x", "message": ""}});
        Endpoint::read(body.to_string().as_bytes()).expect("an endpoint")
    }

    #[test]
    fn every_word_of_the_plane_is_read() {
        let table = [
            ("running", EndpointState::Running),
            ("updating", EndpointState::Updating),
            ("pending", EndpointState::Pending),
            ("initializing", EndpointState::Initializing),
            ("scaledToZero", EndpointState::ScaledToZero),
            ("paused", EndpointState::Paused),
            ("failed", EndpointState::Failed),
            ("updateFailed", EndpointState::Failed),
            ("dreaming", EndpointState::Unknown),
        ];
        for (word, state) in table {
            let read = endpoint(word);
            assert_eq!(read.state, state);
            assert_eq!((read.min_replicas, read.has_health_route), (Some(0), false));
        }
        let with_route = json!({"healthRoute": "/health", "status": {"state": "running"}});
        let read = Endpoint::read(with_route.to_string().as_bytes()).expect("an endpoint");
        assert!(read.has_health_route && read.min_replicas.is_none());
        assert_eq!(Endpoint::read(b"{\"error\":\"Not found\"}"), None);
    }

    #[test]
    fn names_cannot_reach_other_paths() {
        let control = ControlPlane {
            base_url: String::new(),
            token: None,
            namespace: "me".to_owned(),
            endpoint: "a/../b?c".to_owned(),
            auto_resume: false,
        };
        assert_eq!(describe_path(&control), "/v2/endpoint/me/a%2F..%2Fb%3Fc");
    }

    #[test]
    fn it_asks_often_while_waking_and_seldom_else() {
        let start = Instant::now();
        let config = ColdStartConfig::default();
        let mut watch = Watch::new(&config, false);
        assert_eq!(watch.pause(start), CALM_POLL);
        watch.saw(endpoint("scaledToZero"), start);
        assert_eq!(watch.pause(start), CALM_POLL);
        assert!(watch.want(start) && !watch.want(start));
        assert_eq!(watch.pause(start), config.poll);
        let later = start + Duration::from_secs(20);
        assert_eq!(
            watch.saw(endpoint("initializing"), later),
            Some(Some(EndpointState::ScaledToZero))
        );
        assert_eq!(
            watch.saw(endpoint("initializing"), later + config.poll),
            None
        );
        assert_eq!(watch.seen().map(|(_, since)| since), Some(later));
        watch.saw(endpoint("running"), later + config.poll * 2);
        assert_eq!(watch.pause(later + config.poll * 2), CALM_POLL);
        // Who wants what never comes stops asking often.
        watch.saw(endpoint("paused"), later);
        watch.want(later);
        assert_eq!(watch.pause(later + config.give_up), CALM_POLL);
    }

    #[test]
    fn a_paused_endpoint_is_resumed_when_it_is_allowed_and_wanted_and_once() {
        let start = Instant::now();
        let config = ColdStartConfig::default();
        let mut never = Watch::new(&config, false);
        let mut watch = Watch::new(&config, true);
        for watch in [&mut never, &mut watch] {
            watch.saw(endpoint("paused"), start);
            assert!(!watch.resume(start));
            watch.want(start);
        }
        assert!(!never.resume(start));
        assert!(watch.resume(start));
        assert!(!watch.resume(start + config.poll));
    }

    proptest! {
        #[test]
        fn no_body_makes_it_panic(body in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Endpoint::read(&body);
        }
    }
}
