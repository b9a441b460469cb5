//! Opens what hybrid serving needs, says in plain words what may leave, and keeps what is known fresh.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use rand_core::{OsRng, TryRngCore};

use super::AppError;
use super::alerts::Alerts;
use crate::audit;
use crate::config::Settings;
use crate::dispatch::{Hybrid, Kept, Local};
use crate::egress::Gate;
use crate::ledger::Ledger;
use crate::remote::control::EndpointState as Endpoint;
use crate::remote::{Class, EndpointState, Fault, Fetch, Fetched, Question, Remote, catalog};
use crate::route::{Calibration, DecisionLog, LogThread};
use crate::telemetry::{Metrics, redact};

/// How often what is known of upstreams is handed to those who decide, and written down.
const TICK: Duration = Duration::from_secs(2);

/// How long the last records of decisions are waited for when the server ends.
const LAST_RECORDS: Duration = Duration::from_secs(2);

/// What runs beside serving, and what is closed after it.
pub(super) struct Upkeep {
    remote: Remote,
    gate: Gate,
    /// None once they run.
    alerts: Option<Alerts>,
    audit: audit::Log,
    decisions: Option<LogThread>,
}

/// The thread that writes records of decisions, for as long as requests are decided.
pub(super) struct LastRecords(LogThread);

impl LastRecords {
    /// Waits until the last record is written, once the hall is gone that hands them over; not for longer than
    /// [`LAST_RECORDS`], since a request that outlives the drain may hold the hall.
    pub(super) fn wait(self) {
        let (done, written) = mpsc::channel();
        std::thread::spawn(move || {
            self.0.join();
            let _ = done.send(());
        });
        if written.recv_timeout(LAST_RECORDS).is_err() {
            tracing::warn!("the last records of decisions may be lost");
        }
    }
}

/// Opens upstreams, gate and logs; none without an upstream.
///
/// Errors: in words for the operator.
pub(super) fn open(
    settings: &Settings,
    served: &str,
    local: Option<&Local>,
    ledger: Option<&Ledger>,
    metrics: &Arc<Metrics>,
) -> Result<Option<(Hybrid, Upkeep)>, AppError> {
    let (Some(config), Some(log), Some(ledger)) = (&settings.remote, &settings.audit, ledger)
    else {
        return Ok(None);
    };
    for upstream in &config.upstreams {
        let control = upstream.control.as_ref();
        let tokens = [
            &upstream.token,
            &control.and_then(|control| control.token.clone()),
        ];
        for token in tokens.into_iter().flatten() {
            redact::register(token.expose());
        }
    }
    let failed = |problem: String| AppError::Hybrid(problem);
    let seed = OsRng
        .try_next_u64()
        .map_err(|e| failed(format!("no random numbers: {e}")))?;
    let remote = Remote::new(config.clone(), seed).map_err(|e| failed(e.to_string()))?;
    if let Some(folder) = log.path.parent() {
        std::fs::create_dir_all(folder)
            .map_err(|e| failed(format!("audit log {}: {e}", log.path.display())))?;
    }
    let audit = audit::Log::open(audit::Settings {
        path: log.path.clone(),
        max_bytes: log.max_bytes,
        keep: log.keep as usize,
        sync: log.sync,
    })
    .map_err(|e| failed(e.to_string()))?;
    let gate = Gate::new(settings.egress.clone(), Some(audit.clone()));
    let (decisions, thread) = match &settings.route.decision_log {
        Some(path) => {
            let started = DecisionLog::start(path, settings.route.decision_log_bytes);
            let (log, thread) =
                started.map_err(|e| failed(format!("decision log {}: {e}", path.display())))?;
            (Some(log), Some(thread))
        }
        None => (None, None),
    };
    let calibration = match &settings.route.calibration {
        Some(path) => {
            let problem =
                |e: &dyn std::fmt::Display| failed(format!("calibration {}: {e}", path.display()));
            let json = std::fs::read(path).map_err(|e| problem(&e))?;
            Some(Calibration::parse(&json, served).map_err(|e| problem(&e))?)
        }
        None => None,
    };
    let hybrid = Hybrid::new(
        remote.clone(),
        gate.clone(),
        Kept {
            ledger: ledger.clone(),
            log: decisions,
        },
        settings.route.clone(),
        served,
        local,
        calibration,
    );
    tracing::info!("{}", hybrid.sentence(&settings.egress));
    let alerts = Alerts::new(
        settings.alerts.clone(),
        ledger.clone(),
        remote.clone(),
        gate.clone(),
        Arc::clone(metrics),
    )?;
    let upkeep = Upkeep {
        remote,
        gate,
        alerts: Some(alerts),
        audit,
        decisions: thread,
    };
    Ok(Some((hybrid, upkeep)))
}

/// Makes every upstream's client, and sends nothing.
///
/// Errors: an address or a file that no client can be made of.
pub(super) fn check(settings: &Settings) -> Result<(), AppError> {
    let Some(config) = &settings.remote else {
        return Ok(());
    };
    let remote = Remote::new(config.clone(), 0);
    remote
        .map(drop)
        .map_err(|e| AppError::Hybrid(e.to_string()))
}

impl Upkeep {
    /// The gate, for whoever reads grants again.
    pub(super) fn gate(&self) -> Gate {
        self.gate.clone()
    }

    /// What runs for as long as the server does.
    pub(super) fn run(&mut self) -> impl Future<Output = ()> + Send + 'static {
        let alerts = self.alerts.take();
        let (remote, gate) = (self.remote.clone(), self.gate.clone());
        let asked = remote.clone();
        let fetch = Fetch::new(move |question| ask(asked.clone(), gate.clone(), question));
        async move {
            let known = remote.catalogue().clone().run(fetch);
            let told = tell(remote);
            let alerts = async {
                if let Some(alerts) = alerts {
                    alerts.run().await;
                }
            };
            futures::future::join3(known, told, alerts).await;
        }
    }

    /// The records of decisions, for whoever ends the hall.
    pub(super) fn last_records(&mut self) -> Option<LastRecords> {
        self.decisions.take().map(LastRecords)
    }

    /// Writes down what should outlive the server. Records of decisions are [`LastRecords`]' business: the hall
    /// that writes them outlives this.
    pub(super) async fn close(self) {
        if let Err(problem) = self.remote.save() {
            tracing::warn!(%problem, "what is known of upstreams cannot be written");
        }
        if let Err(problem) = self.audit.flush().await {
            tracing::error!(%problem, "the end of the audit log");
        }
    }
}

async fn ask(remote: Remote, gate: Gate, question: Question) -> Result<Fetched, Fault> {
    let wrong = |text: String| Fault::new(Class::Misconfigured, text);
    let destination = remote
        .destination_of(&question)
        .ok_or_else(|| wrong("the upstream has no such address".to_owned()))?;
    let passport = gate
        .ask(&destination)
        .await
        .map_err(|denied| wrong(denied.to_string()))?;
    remote.ask(passport, question).await
}

/// Hands what the catalogue has learned to the board, and tells the operator of every change of state.
async fn tell(remote: Remote) {
    let mut states: Vec<(String, &'static str)> = Vec::new();
    let mut saved = remote.board().save(Instant::now());
    let mut known = Known::default();
    loop {
        let now = Instant::now();
        for target in &remote.config().targets {
            let looked = remote.look(&target.name, &catalog::Shape::default());
            if let Some((facts, _)) = looked {
                remote.board().set_catalogued(
                    &target.name,
                    facts.provider,
                    facts.target.context_length,
                    facts.first_token,
                    None,
                    now,
                );
            }
        }
        for upstream in &remote.config().upstreams {
            known.pass_on(&remote, &upstream.name, now);
        }
        let mut seen = Vec::new();
        for status in remote.board().views(now) {
            let (name, state) = (status.target.to_string(), status.state.name());
            let before = states.iter().find(|(known, _)| *known == name);
            // How full a target is changes all the time and is nobody's trouble.
            if before.is_some_and(|(_, before)| *before != state) && state != "saturated" {
                match state {
                    "closed" => tracing::info!("{}", status.sentence()),
                    _ => tracing::warn!("{}", status.sentence()),
                }
            }
            seen.push((name, state));
        }
        states = seen;
        let worth_saving = remote.board().save(now);
        if saved != worth_saving {
            saved = worth_saving;
            save(remote.clone()).await;
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Writes down what should outlive a restart, away from the threads that answer requests.
async fn save(remote: Remote) {
    let problem = match tokio::task::spawn_blocking(move || remote.save()).await {
        Ok(Ok(())) => return,
        Ok(Err(problem)) => problem.to_string(),
        Err(problem) => problem.to_string(),
    };
    tracing::warn!(problem, "what is known of upstreams cannot be written");
}

/// What the board was told of upstreams: each word once.
#[derive(Debug, Default)]
struct Known {
    /// When an upstream's catalogue was last confirmed.
    catalogues: BTreeMap<Arc<str>, SystemTime>,
    /// When its control plane was last asked.
    planes: BTreeMap<Arc<str>, tokio::time::Instant>,
}

impl Known {
    fn pass_on(&mut self, remote: &Remote, upstream: &Arc<str>, now: Instant) {
        let (board, catalogue) = (remote.board(), remote.catalogue());
        let wanted = board.take_wanted(upstream);
        if wanted || board.is_waking(upstream, now) {
            catalogue.want(upstream, now.into());
        }
        if let Some(confirmed) = catalogue.confirmed(upstream)
            && self.catalogues.insert(Arc::clone(upstream), confirmed) != Some(confirmed)
        {
            // Asked for before the board is locked.
            let served: BTreeMap<&str, bool> = remote
                .config()
                .targets
                .iter()
                .filter_map(|target| {
                    let (facts, _) = remote.look(&target.name, &catalog::Shape::default())?;
                    Some((&*target.name, facts.live != Some(false)))
                })
                .collect();
            let is_served = |target: &str| served.get(target).copied().unwrap_or(true);
            board.catalogue_read(upstream, is_served, now);
        }
        if let Some((endpoint, asked)) = catalogue.endpoint(upstream)
            && self.planes.insert(Arc::clone(upstream), asked) != Some(asked)
            && let Some(state) = meaning(endpoint.state)
        {
            board.endpoint(upstream, state, asked.into_std());
        }
    }
}

/// What a control plane's word means for requests; none for a word that is not known here.
fn meaning(word: Endpoint) -> Option<EndpointState> {
    Some(match word {
        Endpoint::Running | Endpoint::Updating => EndpointState::Running,
        Endpoint::Pending | Endpoint::Initializing => EndpointState::Waking,
        Endpoint::ScaledToZero => EndpointState::ScaledToZero,
        Endpoint::Paused => EndpointState::Paused,
        Endpoint::Failed => EndpointState::Failed,
        Endpoint::Unknown => return None,
    })
}
