//! The way out for a probing: settings, gate, audit log, client.
//!
//! What leaves is written to an audit log of its own beside the server's, `audit-probe.jsonl` beside
//! `audit.jsonl`, because a running server holds the other.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Method;
use uuid::Uuid;

use super::plan::{Ask, Probe};
use super::read::Answer;
use crate::audit;
use crate::config::Settings;
use crate::egress::{Denied, Departure, Destination, Gate, Passport, Purpose, Settled};
use crate::generation::Reason;
use crate::remote::catalog::Facts;
use crate::remote::{
    Call, Class, Client, Config, Fault, Fetch, Fetched, Question, UpstreamConfig, place,
};

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// One upstream, and the gate before it.
#[derive(Clone)]
pub(super) struct Way {
    gate: Gate,
    client: Client,
    place: Destination,
}

impl Way {
    /// Opens the way to an upstream; nothing is sent.
    ///
    /// Errors: the settings make no client of it, or the audit log cannot be written.
    pub(super) fn open(
        settings: &Settings,
        remote: &Config,
        upstream: &UpstreamConfig,
    ) -> Result<Self, Box<dyn Error>> {
        let log = settings.audit.as_ref().map(|written| {
            audit::Log::open(audit::Settings {
                path: beside(&written.path),
                max_bytes: written.max_bytes,
                keep: usize::try_from(written.keep).unwrap_or(usize::MAX),
                sync: written.sync,
            })
        });
        Ok(Self {
            gate: Gate::new(settings.egress.clone(), log.transpose()?),
            client: Client::new(upstream, &remote.clocks, &remote.limits)?,
            place: place(upstream),
        })
    }

    /// Host and port that the requests go to.
    pub(super) fn host(&self) -> &str {
        &self.place.host
    }

    /// The way to ask the upstream's own address for what carries no text.
    pub(super) fn fetch(&self) -> Fetch {
        let way = self.clone();
        Fetch::new(move |question: Question| {
            let way = way.clone();
            async move {
                let passport = way.gate.ask(&way.place).await.map_err(denied)?;
                let etag = question.etag.map(|etag| ("if-none-match", etag));
                let call = call(Method::GET, question.path, Vec::from_iter(etag), false);
                let response = way.client.send(passport, call).await?;
                Ok(Fetched {
                    status: response.head.status,
                    etag: response.head.etag.clone(),
                    body: response.whole().await?,
                })
            }
        })
    }

    /// Makes one request of a probing.
    ///
    /// Errors: the gate keeps it here, or no whole answer came.
    pub(super) async fn send(&self, facts: &Facts, probe: Probe) -> Result<Answer, Fault> {
        let name = Uuid::new_v4().to_string();
        let destination = Destination {
            target: Arc::clone(&facts.target.name),
            provider: facts.provider.clone(),
            model: Arc::clone(&facts.target.model),
            ..self.place.clone()
        };
        let departure = Departure {
            request_id: &name,
            key: None,
            destination: &destination,
            purpose: Purpose::Probe,
            reason: &Reason::PolicyRemote,
            texts: &[],
            body: probe.body.to_string().into(),
            worst_cost_nusd: Some(probe.worst_cost_nusd),
        };
        let passport = self.gate.may_leave(departure).await.map_err(denied)?;
        let answer = self.answer(passport, probe).await;
        let (status, bytes_in) = match &answer {
            Ok(answer) => (answer.status.to_string(), answer.body.len() as u64),
            Err(fault) => (fault.class.name().to_owned(), 0),
        };
        self.gate.settled(
            &name,
            &destination,
            Settled {
                status,
                bytes_in,
                cost_nusd: None,
            },
        );
        answer
    }

    async fn answer(&self, passport: Passport, probe: Probe) -> Result<Answer, Fault> {
        let call = call(
            Method::POST,
            probe.path,
            Vec::new(),
            probe.ask == Ask::Stream,
        );
        let response = self.client.send(passport, call).await?;
        Ok(Answer {
            status: response.head.status,
            provider: response.head.provider.clone(),
            body: response.whole().await?,
        })
    }
}

fn call(method: Method, path: String, headers: Vec<(&'static str, String)>, stream: bool) -> Call {
    Call {
        method,
        path,
        headers,
        stream,
        deadline: Instant::now() + PATIENCE,
        headers_within: PATIENCE,
    }
}

fn denied(why: Denied) -> Fault {
    Fault::new(Class::Misconfigured, why.to_string())
}

fn beside(log: &Path) -> PathBuf {
    let mut name = log.file_stem().unwrap_or_default().to_owned();
    name.push("-probe");
    if let Some(extension) = log.extension() {
        name.push(".");
        name.push(extension);
    }
    log.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_of_a_probing_stands_beside_the_servers() {
        let log = beside(Path::new("/state/audit.jsonl"));
        assert_eq!(log, Path::new("/state/audit-probe.jsonl"));
        assert_eq!(beside(Path::new("audit")), Path::new("audit-probe"));
    }
}
