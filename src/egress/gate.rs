//! The gate itself: every check in one place, money held in the ledger, the audit line, and then the passport.
//!
//! It fails closed: whatever it cannot decide, hold or write down does not leave. The checks are pure and made
//! anew for each departure, whatever was looked up before. Money is held and the line written at the same time;
//! if either fails, the money is given back, and a second line says that nothing was sent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use chrono::{DateTime, SecondsFormat, Utc};

use super::types::{
    Action, Config, Demand, Denied, Departure, Destination, Facts, Grant, Level, Passport, Purpose,
    Settled,
};
use crate::audit::{Done, Log, Record, Sent};
use crate::ledger::{Amount, Attempt, Held, Refused, Tab};

/// Why metadata are asked for, in the audit log.
const METADATA: &str = "metadata";

/// The only way out. Clones are the same gate.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    config: Config,
    grants: RwLock<Grants>,
    audit: Option<Log>,
    /// Until when nothing leaves, and why.
    contained: RwLock<Option<(SystemTime, String)>>,
}

/// Who may let what leave, as last read from the settings.
struct Grants {
    anonymous: Grant,
    default: Grant,
    keys: BTreeMap<String, Grant>,
    known: BTreeSet<String>,
    /// Of a name that no key has, or no longer.
    nobody: Grant,
}

impl Gate {
    /// A gate for these settings. Without an audit log nothing passes.
    pub fn new(mut config: Config, audit: Option<Log>) -> Self {
        let grants = Grants {
            anonymous: std::mem::take(&mut config.anonymous),
            default: std::mem::take(&mut config.default),
            keys: std::mem::take(&mut config.keys),
            known: std::mem::take(&mut config.known),
            nobody: Grant::default(),
        };
        Self(Arc::new(Inner {
            config,
            grants: RwLock::new(grants),
            audit,
            contained: RwLock::default(),
        }))
    }

    /// Replaces what callers may let leave, from the next check on: without a key, with one that has no grant
    /// of its own, and by the key's name. `known` names the keys that there are; others may let nothing leave.
    pub fn replace_grants(
        &self,
        anonymous: Grant,
        default: Grant,
        keys: BTreeMap<String, Grant>,
        known: BTreeSet<String>,
    ) {
        let mut grants = self
            .0
            .grants
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *grants = Grants {
            anonymous,
            default,
            keys,
            known,
            nobody: Grant::default(),
        };
    }

    /// Writes down what an operator, or this server by itself, changed of what may leave. Nothing waits for
    /// it; a line that cannot be written is reported in the process's log.
    pub fn note_admin(&self, text: impl Into<String>) {
        if let Some(audit) = &self.0.audit {
            audit.note(Record::Admin { text: text.into() });
        }
    }

    /// Looks whether a text may be answered at all, here or elsewhere.
    ///
    /// Errors: [`Denied::Blocked`] with the rule that wants it answered by nobody.
    pub fn screen(&self, texts: &[&str]) -> Result<(), Denied> {
        match self.rule(texts, Action::Block) {
            Some(name) => Err(Denied::Blocked(name)),
            None => Ok(()),
        }
    }

    /// Looks whether a caller's texts could go somewhere, without money, without an audit line, and without
    /// a promise: whoever sends asks [`Gate::may_leave`].
    ///
    /// Errors: the first check that speaks against it; [`Denied::Blocked`] before all others, because it
    /// holds for every destination.
    pub fn permits(
        &self,
        key: Option<&str>,
        destination: &Destination,
        texts: &[&str],
    ) -> Result<(), Denied> {
        self.check(key, destination, texts)?;
        self.0.audit.as_ref().map(|_| ()).ok_or(Denied::Audit)
    }

    /// Keeps every caller's text here for a time; a longer time that was set before stays.
    pub fn contain(&self, time: Duration, why: &str) {
        let until = SystemTime::now() + time;
        let mut contained = self
            .0
            .contained
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if contained.as_ref().is_none_or(|(before, _)| *before < until) {
            *contained = Some((until, why.to_owned()));
        }
    }

    /// Until when every caller's text is kept here, and why.
    pub fn contained(&self) -> Option<(SystemTime, String)> {
        let contained = self
            .0
            .contained
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let now = SystemTime::now();
        contained
            .as_ref()
            .filter(|(until, _)| now < *until)
            .cloned()
    }

    /// Lets bytes leave, once, to one destination.
    ///
    /// Every check of [`Gate::permits`] is made anew; then come size and price, the money and the audit line, both
    /// durable when this returns. What carries no caller's text (waking, probing, metadata) needs no key's
    /// permission and must name no texts. Dropping the future gives the money back. The money is what whoever
    /// sends has to settle; where there is no account there is none.
    ///
    /// Errors: the first thing that speaks against it. Nothing was sent, and no money is held, then.
    pub async fn may_leave(
        &self,
        departure: Departure<'_>,
    ) -> Result<(Passport, Option<Held>), Denied> {
        let Departure {
            request_id,
            key,
            destination,
            purpose,
            reason,
            texts,
            body,
            worst,
            basis,
            tab,
        } = departure;
        let level = if carries_text(purpose) {
            Some(self.check(key, destination, texts)?)
        } else {
            self.online(destination)?;
            if !texts.is_empty() {
                return Err(Denied::Text(purpose.name()));
            }
            None
        };
        if let Some(most) = self.0.config.max_bytes
            && body.len() > most
        {
            let bytes = body.len();
            return Err(Denied::Size { bytes, most });
        }
        let worst =
            worst.ok_or_else(|| Denied::PriceUnknown(destination.target.as_ref().to_owned()))?;
        let audit = self.0.audit.as_ref().ok_or(Denied::Audit)?;
        if tab.is_none() && worst.nusd > 0 {
            return Err(Denied::Ledger);
        }
        let attempt = |tab: &Tab| Attempt {
            purpose: purpose.name(),
            reason: reason.to_string(),
            target: Arc::clone(&destination.target),
            spender: tab.spender(
                &destination.model,
                destination.provider.as_ref(),
                &destination.upstream,
            ),
            worst,
            basis: Arc::clone(basis),
        };
        let attempt = tab.map(|tab| (tab, attempt(tab)));
        // No line is written about what there is plainly no money for.
        if let Some((tab, attempt)) = &attempt
            && let Some(exceeded) = tab.look(attempt)
        {
            return Err(Denied::Money(Box::new(exceeded)));
        }
        let prints = audit.fingerprint(texts);
        let sent = Sent {
            request: request_id.to_owned(),
            key: key.map(str::to_owned),
            level: level.map(|level| level.name().to_owned()),
            host: destination.host.as_ref().to_owned(),
            upstream: destination.upstream.as_ref().to_owned(),
            target: destination.target.as_ref().to_owned(),
            provider: destination.provider.as_deref().map(str::to_owned),
            model: destination.model.as_ref().to_owned(),
            purpose: purpose.name().to_owned(),
            bytes: body.len() as u64,
            hmac: prints.whole,
            texts: prints.texts,
            reason: match purpose {
                Purpose::Metadata | Purpose::Alert => purpose.name().to_owned(),
                _ => reason.to_string(),
            },
            worst_cost_nusd: worst.nusd,
        };
        let hold = async {
            match attempt {
                Some((tab, attempt)) => tab.reserve(attempt).await.map(Some),
                None => Ok(None),
            }
        };
        let line = audit.write(Record::Send(Box::new(sent)));
        let (held, written) = tokio::join!(hold, line);
        if let Err(problem) = written {
            tracing::error!(%problem, request_id, "nothing may leave");
            return Err(Denied::Audit);
        }
        let mut held = match held {
            Ok(held) => held,
            Err(refused) => {
                let settled = Settled {
                    status: "not_sent".to_owned(),
                    bytes_in: 0,
                    cost_nusd: Some(0),
                };
                self.settled(request_id, destination, settled);
                return Err(match refused {
                    Refused::Exceeded(exceeded) => Denied::Money(exceeded),
                    Refused::Store(_) | Refused::Behind | Refused::Closed => Denied::Ledger,
                });
            }
        };
        if let Some(held) = &mut held {
            held.sent();
        }
        let passport = Passport {
            destination: destination.clone(),
            purpose,
            body,
            request_id: request_id.to_owned(),
        };
        Ok((passport, held))
    }

    /// Lets a question about names, prices or states leave: no body, no caller's text, no money.
    ///
    /// Errors: the server is offline, or the audit log cannot be written.
    pub async fn ask(&self, destination: &Destination) -> Result<Passport, Denied> {
        self.may_leave(Departure {
            request_id: METADATA,
            key: None,
            destination,
            purpose: Purpose::Metadata,
            reason: &crate::generation::Reason::PolicyRemote,
            texts: &[],
            body: bytes::Bytes::new(),
            worst: Some(Amount::default()),
            basis: &"free".into(),
            tab: None,
        })
        .await
        .map(|(passport, _)| passport)
    }

    /// Lets a word to the operator leave: no caller's text, no money.
    ///
    /// Errors: the server is offline, or the audit log cannot be written.
    pub async fn tell(
        &self,
        destination: &Destination,
        cause: &str,
        body: bytes::Bytes,
    ) -> Result<Passport, Denied> {
        self.may_leave(Departure {
            request_id: cause,
            key: None,
            destination,
            purpose: Purpose::Alert,
            reason: &crate::generation::Reason::PolicyRemote,
            texts: &[],
            body,
            worst: Some(Amount::default()),
            basis: &"free".into(),
            tab: None,
        })
        .await
        .map(|(passport, _)| passport)
    }

    /// Writes down what became of something that left. Nothing waits for it; a line that cannot be written
    /// is reported in the process's log.
    pub fn settled(&self, request_id: &str, destination: &Destination, settled: Settled) {
        let Settled {
            status,
            bytes_in,
            cost_nusd,
        } = settled;
        if let Some(audit) = &self.0.audit {
            audit.note(Record::Done(Done {
                request: request_id.to_owned(),
                target: destination.target.as_ref().to_owned(),
                status,
                bytes_in,
                cost_nusd,
            }));
        }
    }

    /// The checks that a caller's texts must pass, and the level by which they did.
    fn check(
        &self,
        key: Option<&str>,
        destination: &Destination,
        texts: &[&str],
    ) -> Result<Level, Denied> {
        self.screen(texts)?;
        self.online(destination)?;
        if let Some((until, why)) = self.contained() {
            let until = DateTime::<Utc>::from(until).to_rfc3339_opts(SecondsFormat::Secs, true);
            return Err(Denied::Contained { until, why });
        }
        let level = {
            let grants = self.0.grants.read().unwrap_or_else(PoisonError::into_inner);
            let grant = grants.of(key);
            reaches(grant, destination)?;
            grant.level
        };
        fulfils(&self.0.config, destination)?;
        match self.rule(texts, Action::LocalOnly) {
            Some(name) => Err(Denied::Rule(name)),
            None => Ok(level),
        }
    }

    fn online(&self, destination: &Destination) -> Result<(), Denied> {
        if self.0.config.offline && !destination.loopback {
            return Err(Denied::Offline);
        }
        Ok(())
    }

    /// The first rule with this action that finds something in any text.
    fn rule(&self, texts: &[&str], action: Action) -> Option<String> {
        let mut rules = self.0.config.rules.iter().filter(|r| r.action == action);
        let found = rules.find(|rule| texts.iter().any(|text| rule.pattern.is_match(text)));
        found.map(|rule| rule.name.clone())
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate(…)")
    }
}

impl Grants {
    fn of(&self, key: Option<&str>) -> &Grant {
        match key {
            // No key can have this name: it is what a caller without one is called.
            None | Some("anonymous") => &self.anonymous,
            Some(name) => match self.keys.get(name) {
                Some(own) => own,
                None if self.known.contains(name) => &self.default,
                // A key that was taken away while its request waited.
                None => &self.nobody,
            },
        }
    }
}

/// Whether bytes for this purpose hold what a caller wrote.
fn carries_text(purpose: Purpose) -> bool {
    match purpose {
        Purpose::Request | Purpose::Retry | Purpose::Hedge | Purpose::Continuation => true,
        Purpose::WarmUp | Purpose::Probe | Purpose::Metadata | Purpose::Alert => false,
    }
}

/// Whether a grant goes as far as a destination.
pub(super) fn reaches(grant: &Grant, destination: &Destination) -> Result<(), Denied> {
    let least = match destination {
        Destination {
            dedicated: true, ..
        } => Level::Dedicated,
        Destination {
            provider: Some(_), ..
        } => Level::Allowlist,
        // Whoever the upstream hands it to.
        Destination { provider: None, .. } => Level::Any,
    };
    if grant.level < least {
        return Err(Denied::Level(destination.target.as_ref().to_owned()));
    }
    match &destination.provider {
        Some(provider)
            if least == Level::Allowlist
                && grant.level == Level::Allowlist
                && !grant.providers.contains(provider.as_ref()) =>
        {
            Err(Denied::Provider(provider.as_ref().to_owned()))
        }
        _ => Ok(()),
    }
}

/// Whether what is known of a destination's provider fulfils what is demanded of all of them.
pub(super) fn fulfils(config: &Config, destination: &Destination) -> Result<(), Denied> {
    if destination.dedicated {
        return Ok(());
    }
    let unknown = Facts::default();
    let provider = destination.provider.as_deref();
    let facts = provider.and_then(|name| config.facts.get(name));
    match unmet(&config.demand, facts.unwrap_or(&unknown)) {
        Some(demand) => Err(Denied::Demand {
            provider: provider.unwrap_or(&destination.upstream).to_owned(),
            demand,
        }),
        None => Ok(()),
    }
}

/// The first demand that the facts do not fulfil, by its setting's name.
fn unmet(demand: &Demand, facts: &Facts) -> Option<&'static str> {
    let Demand {
        max_retention_days,
        regions,
        zdr,
        no_training,
    } = demand;
    let kept_short =
        max_retention_days.is_none_or(|most| facts.retention_days.is_some_and(|days| days <= most));
    let near = regions.is_empty() || facts.region.as_ref().is_some_and(|r| regions.contains(r));
    let checks = [
        (kept_short, "max_retention_days"),
        (near, "regions"),
        (!zdr || facts.zdr == Some(true), "zdr"),
        (!no_training || facts.trains == Some(false), "no_training"),
    ];
    checks
        .into_iter()
        .find(|(met, _)| !met)
        .map(|(_, name)| name)
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
