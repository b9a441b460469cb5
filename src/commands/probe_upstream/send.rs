//! The way out for a probing: settings, gate, audit log, client.
//!
//! What leaves is written to an audit log of its own beside the server's, `audit-probe.jsonl` beside
//! `audit.jsonl`, because a running server holds the other. Money is counted in the server's own ledger, so that no
//! budget is spent twice: a SQLite file that a running server holds lets nothing be probed that costs money.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use http::Method;
use uuid::Uuid;

use super::plan::{Ask, Probe};
use super::read::Answer;
use crate::audit;
use crate::config::Settings;
use crate::egress::{Denied, Departure, Destination, Gate, Passport, Purpose, Settled};
use crate::generation::{Reason, Side};
use crate::ledger::{self, Amount, Bill, Closing, Ledger, Who};
use crate::remote::catalog::Facts;
use crate::remote::{
    Call, Class, Client, Config, Fault, Fetch, Fetched, Question, UpstreamConfig, place,
};

/// Who spends what probing costs.
const OPERATOR: &str = "operator";
/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// One upstream, and the gate before it.
#[derive(Clone)]
pub(super) struct Way {
    gate: Gate,
    client: Client,
    place: Destination,
    ledger: Option<ledger::Config>,
    /// Opened for the first request that costs money.
    opened: Arc<OnceLock<Ledger>>,
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
            ledger: settings.ledger.clone(),
            opened: Arc::default(),
        })
    }

    /// Writes the end of what was counted.
    pub(super) fn close(&mut self) {
        if let Some(ledger) = Arc::get_mut(&mut self.opened).and_then(OnceLock::take) {
            ledger.close();
        }
    }

    fn ledger(&self) -> Result<&Ledger, Fault> {
        if let Some(ledger) = self.opened.get() {
            return Ok(ledger);
        }
        let wrong = |text: String| Fault::unsent(Class::Misconfigured, text);
        let config = self.ledger.clone();
        let config = config.ok_or_else(|| wrong("no ledger is configured".to_owned()))?;
        let ledger = Ledger::open(config).map_err(|e| wrong(e.to_string()))?;
        Ok(self.opened.get_or_init(|| ledger))
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
        let worst = Amount {
            nusd: probe.worst_cost_nusd,
            tokens: u64::from(probe.input_tokens) + u64::from(probe.output_tokens),
        };
        let tab = match worst.nusd {
            0 => None,
            _ => Some(self.ledger()?.admit(Who {
                request_id: name.as_str().into(),
                key: OPERATOR.into(),
                tenant: OPERATOR.into(),
                path: "probe-upstream".into(),
                stream: probe.ask == Ask::Stream,
                model: Arc::clone(&facts.target.model),
            })),
        };
        let departure = Departure {
            request_id: &name,
            key: None,
            destination: &destination,
            purpose: Purpose::Probe,
            reason: &Reason::PolicyRemote,
            texts: &[],
            body: probe.body.to_string().into(),
            worst: Some(worst),
            basis: &facts.basis.to_string().into(),
            tab: tab.as_ref(),
        };
        let (passport, held) = self.gate.may_leave(departure).await.map_err(denied)?;
        let answer = self.answer(passport, probe).await;
        let (status, bytes_in) = match &answer {
            Ok(answer) => (answer.status.to_string(), answer.body.len() as u64),
            Err(fault) => (fault.class.name().to_owned(), 0),
        };
        if let Some(held) = held {
            // What exactly it came to is nobody's concern: it is a few tokens.
            held.settle(Bill {
                amount: worst,
                basis: "upper_bound".into(),
                ..Bill::void(&status)
            });
        }
        if let Some(tab) = tab {
            tab.close(Closing {
                side: answer.is_ok().then_some(Side::Remote),
                target: Some(destination.target.to_string()),
                upstream: Some(destination.upstream.to_string()),
                provider: destination.provider.as_deref().map(str::to_owned),
                outcome: status.clone(),
                ..Closing::default()
            });
        }
        self.gate.settled(
            &name,
            &destination,
            Settled {
                status,
                bytes_in,
                cost_nusd: (worst.nusd > 0).then_some(worst.nusd),
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
