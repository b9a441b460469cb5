//! Opens what hybrid serving needs, says in plain words what may leave, and keeps what is known fresh.

use std::time::{Duration, Instant};

use rand_core::{OsRng, TryRngCore};

use super::AppError;
use crate::audit;
use crate::config::Settings;
use crate::dispatch::Hybrid;
use crate::egress::Gate;
use crate::remote::control::EndpointState as Endpoint;
use crate::remote::{Class, EndpointState, Fault, Fetch, Fetched, Question, Remote, catalog};
use crate::route::{Calibration, DecisionLog, LogThread};
use crate::telemetry::redact;

/// How often what is known of upstreams is handed to those who decide, and written down.
const TICK: Duration = Duration::from_secs(2);

/// What runs beside serving, and what is closed after it.
pub(super) struct Upkeep {
    remote: Remote,
    gate: Gate,
    audit: audit::Log,
    decisions: Option<LogThread>,
}

/// Opens upstreams, gate and logs; none without an upstream.
///
/// Errors: in words for the operator.
pub(super) fn open(
    settings: &Settings,
    served: &str,
) -> Result<Option<(Hybrid, Upkeep)>, AppError> {
    let (Some(config), Some(log)) = (&settings.remote, &settings.audit) else {
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
        settings.route.clone(),
        served,
        calibration,
        decisions,
    );
    tracing::info!("{}", hybrid.sentence(&settings.egress));
    let upkeep = Upkeep {
        remote,
        gate,
        audit,
        decisions: thread,
    };
    Ok(Some((hybrid, upkeep)))
}

impl Upkeep {
    /// The gate, for whoever reads grants again.
    pub(super) fn gate(&self) -> Gate {
        self.gate.clone()
    }

    /// What runs for as long as the server does.
    pub(super) fn run(&self) -> impl Future<Output = ()> + Send + 'static {
        let (remote, gate) = (self.remote.clone(), self.gate.clone());
        let asked = remote.clone();
        let fetch = Fetch::new(move |question| ask(asked.clone(), gate.clone(), question));
        async move {
            let known = remote.catalogue().clone().run(fetch);
            let told = tell(remote);
            futures::future::join(known, told).await;
        }
    }

    /// Writes down what should outlive the server.
    pub(super) async fn close(self) {
        if let Err(problem) = self.remote.save() {
            tracing::warn!(%problem, "what is known of upstreams cannot be written");
        }
        if let Err(problem) = self.audit.flush().await {
            tracing::error!(%problem, "the end of the audit log");
        }
        // The hall that writes records is gone by now, so that the thread comes to its end.
        drop(self.decisions);
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
            if let Some((endpoint, _)) = remote.catalogue().endpoint(&upstream.name) {
                let state = match endpoint.state {
                    Endpoint::Running => EndpointState::Running,
                    Endpoint::ScaledToZero => EndpointState::ScaledToZero,
                    Endpoint::Paused => EndpointState::Paused,
                    state if state.is_waking() => EndpointState::Waking,
                    state if state.serves() => EndpointState::Running,
                    _ => EndpointState::Failed,
                };
                remote.board().endpoint(&upstream.name, state, now);
            }
            if remote.board().is_waking(&upstream.name, now) {
                remote.catalogue().want(&upstream.name, now.into());
            }
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
        if states != seen
            && let Err(problem) = remote.save()
        {
            tracing::warn!(%problem, "what is known of upstreams cannot be written");
        }
        states = seen;
        tokio::time::sleep(TICK).await;
    }
}
