//! Looks after money and targets once in a while, and tells the operator: in the log, in the metrics, and at an
//! address, signed and tried a few times. One cause is told once, by whichever server sharing the ledger sees it first.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, SecondsFormat, Utc};
use http::Method;
use serde_json::json;
use tokio::sync::mpsc;
use url::Url;

use super::AppError;
use crate::audit;
use crate::config::{AlertSettings, Webhook};
use crate::egress::{Destination, Gate};
use crate::ledger::{Alert, AlertKind, Ledger, Reader, StoreError, Watch, now_ms};
use crate::remote::{Billing, Call, Client, Remote, UpstreamConfig, UpstreamKind, place};
use crate::telemetry::{Metrics, Secret, redact};

/// The name under which the address stands in the audit log.
const WEBHOOK: &str = "alerts";
/// Alerts that wait to be sent; more than so many at once are in the log alone.
const WAITING: usize = 64;
/// How often one is tried, and how long after a failure, doubled each time.
const TRIES: u32 = 5;
const BACKOFF: Duration = Duration::from_secs(1);
/// How long one try may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// A minute in milliseconds.
const MINUTE_MS: i64 = 60_000;

/// What looks and tells.
pub(super) struct Alerts {
    settings: AlertSettings,
    ledger: Ledger,
    remote: Remote,
    gate: Gate,
    metrics: Arc<Metrics>,
    hook: Option<Hook>,
}

impl Alerts {
    /// Errors: no client can be made of the address, in words for the operator.
    pub(super) fn new(
        settings: AlertSettings,
        ledger: Ledger,
        remote: Remote,
        gate: Gate,
        metrics: Arc<Metrics>,
    ) -> Result<Self, AppError> {
        let hook = settings.webhook.as_ref();
        let hook = hook
            .map(|hook| Hook::new(hook, &remote, &gate))
            .transpose()?;
        Ok(Self {
            settings,
            ledger,
            remote,
            gate,
            metrics,
            hook,
        })
    }

    /// Looks and tells for as long as the server runs.
    pub(super) async fn run(mut self) {
        let mut watch = Watch::new(self.settings.watch.clone());
        let sender = self.hook.take().map(|hook| {
            let (sender, alerts) = mpsc::channel(WAITING);
            tokio::spawn(hook.run(alerts));
            sender
        });
        let mut reader = None;
        let mut pause = tokio::time::interval(self.settings.look);
        pause.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            pause.tick().await;
            let found = self.look(&mut watch, &mut reader).await;
            for alert in found {
                self.tell(alert, sender.as_ref()).await;
            }
        }
    }

    async fn look(&self, watch: &mut Watch, reader: &mut Option<Reader>) -> Vec<Alert> {
        let minute = u64::try_from(now_ms() / MINUTE_MS).unwrap_or(0);
        let mut alerts: Vec<Alert> = Vec::new();
        for status in self.remote.board().views(Instant::now()) {
            let (target, state) = (status.target.to_string(), status.state.name());
            alerts.extend(watch.target(minute, &target, state, &status.sentence()));
        }
        if reader.is_none() {
            let opened = Reader::open(self.ledger.place(), self.ledger.zone()).await;
            match opened {
                Ok(opened) => *reader = Some(opened),
                Err(problem) => tracing::warn!(%problem, "what was spent is not looked at"),
            }
        }
        alerts.extend(watch.budgets(minute, &self.ledger.standings()));
        let Some(open) = reader else {
            return alerts;
        };
        let read = async {
            let minutes = open.minutes(watch.since(minute)).await?;
            self.stay_contained(open).await?;
            Ok::<_, StoreError>(minutes)
        };
        match read.await {
            Ok(minutes) => alerts.extend(watch.spending(minute, &minutes)),
            Err(problem) => {
                tracing::warn!(%problem, "what was spent is not looked at");
                // It is opened anew the next time.
                *reader = None;
            }
        }
        alerts
    }

    /// Keeps everything here for as long as a spike wants that another server has told of, or this one before it was
    /// started anew.
    async fn stay_contained(&self, reader: &mut Reader) -> Result<(), StoreError> {
        let Some(time) = self.settings.contain else {
            return Ok(());
        };
        let time_ms = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        for (at_ms, text) in reader
            .spikes_since(now_ms().saturating_sub(time_ms))
            .await?
        {
            let left = at_ms.saturating_add(time_ms).saturating_sub(now_ms());
            let left = Duration::from_millis(u64::try_from(left).unwrap_or(0));
            if self.gate.contained().is_none() && !left.is_zero() {
                self.gate.contain(left, &text);
            }
        }
        Ok(())
    }

    async fn tell(&self, alert: Alert, sender: Option<&mpsc::Sender<Alert>>) {
        if let (AlertKind::Spike, Some(time)) = (alert.kind, self.settings.contain) {
            // Whoever tells it, every server does this.
            self.gate.contain(time, &alert.text);
        }
        match self.ledger.claim(alert.clone()).await {
            Ok(true) => {}
            Ok(false) => return,
            // Told twice is better than never: the log must say it.
            Err(problem) => tracing::warn!(%problem, "what was told is not written down"),
        }
        self.metrics.count_alert(alert.kind.name());
        tracing::warn!(
            kind = alert.kind.name(),
            cause = alert.cause,
            "{}",
            alert.text
        );
        let contained = match (alert.kind, self.settings.contain) {
            (AlertKind::Spike, Some(time)) => Some(self.contained(time, &alert)),
            _ => None,
        };
        for alert in [Some(alert), contained].into_iter().flatten() {
            if let Some(sender) = sender
                && sender.try_send(alert).is_err()
            {
                tracing::warn!("an alert is in the log alone: too many wait to be sent");
            }
        }
    }

    /// Says that everything is kept here for a time.
    fn contained(&self, time: Duration, spike: &Alert) -> Alert {
        let minutes = time.as_secs() / 60;
        let text = format!(
            "nothing leaves this machine for {minutes} minutes: {}",
            spike.text
        );
        self.gate.note_admin(text.clone());
        self.metrics.count_alert(AlertKind::Contained.name());
        tracing::warn!(kind = AlertKind::Contained.name(), "{text}");
        Alert {
            kind: AlertKind::Contained,
            cause: format!("contained:{}", spike.cause),
            quiet_ms: None,
            text,
        }
    }
}

/// The address that is told.
struct Hook {
    client: Client,
    gate: Gate,
    to: Destination,
    path: String,
    secret: Option<Secret>,
}

impl Hook {
    fn new(hook: &Webhook, remote: &Remote, gate: &Gate) -> Result<Self, AppError> {
        redact::register(hook.url.expose());
        if let Some(secret) = &hook.secret {
            redact::register(secret.expose());
        }
        let failed = |what: &dyn std::fmt::Display| AppError::Hybrid(format!("alerts: {what}"));
        let url = Url::parse(hook.url.expose()).map_err(|e| failed(&e))?;
        let mut path = url.path().to_owned();
        // The path alone is the secret of common chat services.
        redact::register(&path);
        if let Some(query) = url.query() {
            path = format!("{path}?{query}");
        }
        let upstream = UpstreamConfig {
            billing: Billing::Own,
            allow_plaintext: url.scheme() == "http",
            allow_private: hook.allow_private,
            ..UpstreamConfig::new(
                WEBHOOK,
                UpstreamKind::OpenAiCompat,
                url.origin().ascii_serialization(),
            )
        };
        let config = remote.config();
        let client = Client::new(&upstream, &config.clocks, &config.limits);
        Ok(Self {
            client: client.map_err(|e| failed(&e))?,
            gate: gate.clone(),
            to: place(&upstream),
            path,
            secret: hook.secret.clone(),
        })
    }

    /// Sends what it is given, one after the other.
    async fn run(self, mut alerts: mpsc::Receiver<Alert>) {
        while let Some(alert) = alerts.recv().await {
            let mut wait = BACKOFF;
            for attempt in 1..=TRIES {
                match self.send(&alert).await {
                    Ok(()) => break,
                    Err(Unsent::ForGood(why)) => {
                        tracing::warn!(cause = alert.cause, why, "an alert was not taken");
                        break;
                    }
                    Err(Unsent::ForNow(why)) if attempt == TRIES => {
                        tracing::warn!(cause = alert.cause, why, "an alert could not be sent");
                    }
                    Err(Unsent::ForNow(_)) => {
                        tokio::time::sleep(wait).await;
                        wait *= 2;
                    }
                }
            }
        }
    }

    async fn send(&self, alert: &Alert) -> Result<(), Unsent> {
        let now = DateTime::<Utc>::from_timestamp_millis(now_ms()).unwrap_or_default();
        let body = json!({
            "kind": alert.kind.name(),
            "cause": alert.cause,
            "text": alert.text,
            "at": now.to_rfc3339_opts(SecondsFormat::Secs, true),
        });
        let body = body.to_string();
        let time = now.timestamp().to_string();
        let signature = self.secret.as_ref().map(|secret| {
            let parts = [time.as_bytes(), b".", body.as_bytes()];
            let signed = audit::sign(secret.expose().as_bytes(), &parts);
            ("x-sconce-signature", format!("t={time},v1={signed}"))
        });
        let passport = self.gate.tell(&self.to, &alert.cause, body.into()).await;
        let passport = passport.map_err(|denied| Unsent::ForGood(denied.to_string()))?;
        let call = Call {
            method: Method::POST,
            path: self.path.clone(),
            headers: Vec::from_iter(signature),
            stream: false,
            deadline: Instant::now() + PATIENCE,
            headers_within: PATIENCE,
        };
        let response = self.client.send(passport, call).await;
        let response = response.map_err(|fault| Unsent::ForNow(fault.message.into()))?;
        match response.head.status {
            200..300 => Ok(()),
            status @ (408 | 425 | 429 | 500..) => Err(Unsent::ForNow(format!("status {status}"))),
            status => Err(Unsent::ForGood(format!("status {status}"))),
        }
    }
}

/// Why an alert was not sent.
enum Unsent {
    /// Another try may help.
    ForNow(String),
    /// None will.
    ForGood(String),
}
