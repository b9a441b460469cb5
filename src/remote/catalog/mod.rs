//! What is known of upstreams and targets without sending anybody's text: the router's catalogue, the engine that
//! answers, the endpoint's state, what probing found.
//!
//! Reading ([`Edition`]), keeping ([`Shelf`]) and choosing are pure; [`Catalogue`] is the shared place where the
//! answers stand, and [`Catalogue::run`] asks for them in the background. Serving never waits for it: what is not
//! known is not known, and what was known on the last good day is used meanwhile.

mod edition;
mod run;
#[cfg(test)]
pub(crate) mod samples;
mod shelf;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;

use super::capability_store::{CapabilityStore, first_known};
use super::config::{
    Billing, Capabilities, Config, EngineKind, Price, TargetConfig, UpstreamConfig, UpstreamKind,
};
use super::control::{Endpoint, Watch};
use super::detect::{self, Detected};
use super::disk;
use super::facts::TargetFacts;

pub use edition::{Edition, Offer, pusd};
pub use shelf::{Applied, Known, Refused, STALE_AFTER, Shape, Shelf};

/// How long it is believed what a target said of its limits and of what it knows when it refused a request.
const LEARNED_FOR: Duration = Duration::from_secs(3600);

/// The smallest context that is learned from a refusal.
const LEAST_CONTEXT: u32 = 256;

/// Where a price comes from, as it stands beside a cost in ledgers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Basis {
    /// The machine is the operator's: tokens are free.
    Own,
    /// The operator says so.
    Override,
    /// This edition of the catalogue.
    Catalogue(Arc<str>),
    /// A promotion that this edition names.
    Promotion(Arc<str>),
    /// Nowhere: the price is not known.
    Unknown,
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own | Self::Promotion(_) => f.write_str("free"),
            Self::Override => f.write_str("override"),
            Self::Catalogue(revision) => write!(f, "catalog@{revision}"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// One target as it is known now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// What the translation needs.
    pub target: TargetFacts,
    /// Who will run the model; none where the upstream may choose anybody.
    pub provider: Option<Arc<str>>,
    /// Whether somebody serves the model now, as far as a catalogue knows.
    pub live: Option<bool>,
    /// Where the price comes from.
    pub basis: Basis,
    /// Whether the catalogue that was used is a day old; its prices then hold a margin.
    pub stale: bool,
    /// Time to the first token as the router measured it once: a first guess.
    pub first_token: Option<Duration>,
}

/// What is known, shared by clones.
#[derive(Debug, Clone)]
pub struct Catalogue(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: Config,
    capabilities: CapabilityStore,
    state: RwLock<State>,
    /// Told when a driver may have something to do before its time.
    changed: watch::Sender<()>,
}

/// By the upstream's name, but for `contexts` and `unknown`, which are by the target's.
#[derive(Debug, Default)]
struct State {
    shelves: BTreeMap<Arc<str>, Shelf>,
    detected: BTreeMap<Arc<str>, Detected>,
    watches: BTreeMap<Arc<str>, Watch>,
    contexts: BTreeMap<Arc<str>, (u32, SystemTime)>,
    unknown: BTreeMap<Arc<str>, BTreeMap<&'static str, SystemTime>>,
    answered: BTreeSet<Arc<str>>,
}

impl Catalogue {
    /// What is known before anybody was asked: the settings, and what an earlier run left in `state_dir`. A file
    /// there that cannot be read is left out with a warning.
    pub fn open(config: &Config) -> Self {
        let mut state = State::default();
        for upstream in &config.upstreams {
            let name = &upstream.name;
            if upstream.kind == UpstreamKind::HfRouter {
                let shelf = shelf_path(config, name).and_then(|path| read_shelf(name, &path));
                state
                    .shelves
                    .insert(Arc::clone(name), shelf.unwrap_or_default());
            }
            if let Some(control) = &upstream.control {
                let watch = Watch::new(&config.cold_start, control.auto_resume);
                state.watches.insert(Arc::clone(name), watch);
            }
        }
        Self(Arc::new(Shared {
            config: config.clone(),
            capabilities: CapabilityStore::open(config.state_dir.as_deref()),
            state: RwLock::new(state),
            changed: watch::Sender::new(()),
        }))
    }

    /// What is known of a target, for a request of this shape. None where its upstream is not configured.
    ///
    /// The operator's word comes first, then what probing found, then the catalogue, then what the engine usually
    /// can. Own machines cost nothing; a price nobody knows is none.
    pub fn facts(&self, target: &TargetConfig, shape: &Shape, now: SystemTime) -> Option<Facts> {
        let shared = &*self.0;
        let upstream = shared.upstream(&target.upstream)?;
        let state = self.read();
        let known = match state.shelves.get(&upstream.name) {
            Some(shelf) => shelf.look(&target.model, &target.provider, shape, now),
            None => Known {
                provider: upstream.provider.clone(),
                suffix: upstream.provider.clone(),
                ..Known::default()
            },
        };
        let detected = state.detected.get(&upstream.name);
        let engine = engine(upstream, detected);
        let found = shared.capabilities.findings(target);
        let probed = found.map(|(found, _)| found.capabilities());
        let listed = Capabilities {
            tools: known.tools,
            structured_output: known.structured_output,
            ..Capabilities::default()
        };
        let mut capabilities = [
            probed.unwrap_or_default(),
            listed,
            usual(upstream.kind, engine),
        ]
        .into_iter()
        .fold(target.capabilities, first_known);
        let learned = |at: &SystemTime| now.duration_since(*at).unwrap_or_default() < LEARNED_FOR;
        let unknown = state.unknown.get(&target.name).into_iter().flatten();
        for (field, _) in unknown.filter(|(_, at)| learned(at)) {
            capabilities.deny(field);
        }
        let said = target.context_length.or(known.context_length);
        let said = said.or_else(|| detected?.context_length(&target.model));
        // A limit that the target itself named when it refused a request is the truth, whoever said more.
        let refused_at = state.contexts.get(&target.name);
        let refused_at = refused_at.and_then(|(tokens, at)| learned(at).then_some(*tokens));
        let context_length = said.into_iter().chain(refused_at).min();
        let revision = || known.revision.clone().unwrap_or_default();
        let (price, basis) = match (upstream.billing, target.price, known.price) {
            (Billing::Own, _, _) => (Some(Price::FREE), Basis::Own),
            (Billing::Tokens, Some(price), _) => (Some(price), Basis::Override),
            (Billing::Tokens, None, Some(price)) if known.is_free => {
                (Some(price), Basis::Promotion(revision()))
            }
            (Billing::Tokens, None, Some(price)) => (Some(price), Basis::Catalogue(revision())),
            (Billing::Tokens, None, None) => (None, Basis::Unknown),
        };
        Some(Facts {
            target: TargetFacts {
                name: Arc::clone(&target.name),
                kind: upstream.kind,
                engine,
                model: Arc::clone(&target.model),
                provider: known.suffix,
                chat_path: upstream.chat_path.clone(),
                capabilities,
                context_length,
                same_model: target.same_model,
                price,
                cancel: target.cancel,
            },
            provider: known.provider,
            live: known.live,
            basis,
            stale: known.stale,
            first_token: known.first_token,
        })
    }

    /// What a provider's tokens cost where another than the pinned one has answered; none where nobody knows.
    pub fn price_of(
        &self,
        target: &TargetConfig,
        provider: &str,
        now: SystemTime,
    ) -> Option<Price> {
        let state = self.read();
        let shelf = state.shelves.get(&target.upstream)?;
        shelf.price_of(&target.model, provider, now)
    }

    /// What was found out of the machine behind an upstream.
    pub fn detected(&self, upstream: &str) -> Option<Detected> {
        self.read().detected.get(upstream).cloned()
    }

    /// What the control plane last said of an endpoint, and when it was asked.
    pub fn endpoint(&self, upstream: &str) -> Option<(Endpoint, Instant)> {
        self.read().watches.get(upstream)?.latest()
    }

    /// When a router last told or confirmed its catalogue; none where there is none.
    pub fn confirmed(&self, upstream: &str) -> Option<SystemTime> {
        self.read().shelves.get(upstream)?.confirmed()
    }

    /// A request wants an endpoint that doesn't serve: its state is asked for more often, and it is resumed if
    /// it is paused and may be.
    pub fn want(&self, upstream: &str, now: Instant) {
        if let Some(watch) = self.write().watches.get_mut(upstream)
            && watch.want(now)
        {
            self.0.changed.send_replace(());
        }
    }

    /// An upstream has answered a request, so that it runs: it may be asked what it is without waking it.
    pub fn answered(&self, upstream: &str) {
        if self.read().answered.contains(upstream) {
            return;
        }
        if let Some(upstream) = self.0.upstream(upstream) {
            self.write().answered.insert(Arc::clone(&upstream.name));
            self.0.changed.send_replace(());
        }
    }

    /// A target has refused a request as longer than so many tokens. That holds for an hour; a number that no
    /// model's context is as small as is left out.
    pub fn learn_context(&self, target: &TargetConfig, tokens: u32, now: SystemTime) {
        if tokens >= LEAST_CONTEXT {
            let name = Arc::clone(&target.name);
            self.write().contexts.insert(name, (tokens, now));
        }
    }

    /// A target has refused a request because it does not know this field, of those that may be left out. That
    /// holds for an hour, whatever the operator or a probing says.
    pub fn learn_unknown(&self, target: &TargetConfig, field: &'static str, now: SystemTime) {
        let name = Arc::clone(&target.name);
        let mut state = self.write();
        state.unknown.entry(name).or_default().insert(field, now);
    }

    /// The day (UTC) of the catalogue in use; none where there is none.
    pub fn day(&self, upstream: &str) -> Option<String> {
        let at = self.read().shelves.get(upstream)?.confirmed()?;
        let at = chrono::DateTime::<chrono::Utc>::from(at);
        Some(at.format("%Y-%m-%d").to_string())
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        // Every change is one assignment: what a panic left behind is whole.
        self.0.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.0.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn upstream(&self, name: &str) -> Option<&UpstreamConfig> {
        self.config.upstreams.iter().find(|u| &*u.name == name)
    }
}

fn engine(upstream: &UpstreamConfig, detected: Option<&Detected>) -> EngineKind {
    let named = match upstream.kind {
        UpstreamKind::Tgi => Some(EngineKind::Tgi),
        _ => upstream.engine,
    };
    named
        .or_else(|| detected?.engine)
        .unwrap_or(EngineKind::OpenAi)
}

/// What is usual for what answers there. The router documents `stream_options` and no route for raw prompts.
fn usual(kind: UpstreamKind, engine: EngineKind) -> Capabilities {
    match kind {
        UpstreamKind::HfRouter => Capabilities {
            streaming: Some(true),
            stream_options: Some(true),
            raw_prompt: Some(false),
            ..Capabilities::default()
        },
        _ => detect::usual(engine),
    }
}

fn shelf_path(config: &Config, upstream: &str) -> Option<PathBuf> {
    let file = format!("catalog-{}.json", disk::file_name(upstream));
    Some(config.state_dir.as_ref()?.join(file))
}

fn read_shelf(upstream: &str, path: &std::path::Path) -> Option<Shelf> {
    let problem = match disk::read(path) {
        Ok(None) => return None,
        Ok(Some(document)) => match Shelf::from_document(&document) {
            Some(shelf) => return Some(shelf),
            None => "it is no catalogue".to_owned(),
        },
        Err(error) => error,
    };
    tracing::warn!(upstream, error = %problem, "the catalogue kept on disk cannot be read and is left out");
    None
}

#[cfg(test)]
#[path = "catalogue_tests.rs"]
mod tests;
