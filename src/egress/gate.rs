//! The gate itself: every check in one place, the day's money, the audit line, and then the passport.
//!
//! It fails closed: whatever it cannot decide, count or write down does not leave. The checks are pure and
//! made anew for each departure, whatever was looked up before; money is promised before the audit line is
//! written and given back when it cannot be, so that no moment exists in which two departures hold the same money.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use super::types::{
    Action, Config, Demand, Denied, Departure, Destination, Facts, Grant, Level, Passport, Purpose,
    Settled,
};
use crate::audit::{Done, Log, Record, Sent};

/// Why metadata are asked for, in the audit log.
const METADATA: &str = "metadata";

/// The only way out. Clones are the same gate.
#[derive(Clone)]
pub struct Gate(Arc<Inner>);

struct Inner {
    config: Config,
    grants: RwLock<Grants>,
    audit: Option<Log>,
    spent: Mutex<HashMap<Arc<str>, Day>>,
    now: fn() -> SystemTime,
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

/// What is spent or promised on one day (UTC).
#[derive(Clone, Copy, Default)]
struct Day {
    /// Days since 1970.
    number: u64,
    nusd: u64,
}

impl Gate {
    /// A gate for these settings. Without an audit log nothing passes.
    pub fn new(config: Config, audit: Option<Log>) -> Self {
        Self::with_clock(config, audit, SystemTime::now)
    }

    fn with_clock(mut config: Config, audit: Option<Log>, now: fn() -> SystemTime) -> Self {
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
            spent: Mutex::default(),
            now,
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

    /// Lets bytes leave, once, to one destination.
    ///
    /// Every check of [`Gate::permits`] is made anew; then come size, price and the day's money, and the
    /// audit line, which is durable when this returns. What carries no caller's text (waking, probing,
    /// metadata) needs no key's permission and must name no texts. Dropping the future gives the money back.
    ///
    /// Errors: the first thing that speaks against it. Nothing was sent, and no money is promised, then.
    pub async fn may_leave(&self, departure: Departure<'_>) -> Result<Passport, Denied> {
        let Departure {
            request_id,
            key,
            destination,
            purpose,
            reason,
            texts,
            body,
            worst_cost_nusd,
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
        let worst = worst_cost_nusd
            .ok_or_else(|| Denied::PriceUnknown(destination.target.as_ref().to_owned()))?;
        let audit = self.0.audit.as_ref().ok_or(Denied::Audit)?;
        let promise = self.promise(&destination.upstream, worst)?;
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
                Purpose::Metadata => METADATA.to_owned(),
                _ => reason.to_string(),
            },
            worst_cost_nusd: worst,
        };
        if let Err(problem) = audit.write(Record::Send(Box::new(sent))).await {
            tracing::error!(%problem, request_id, "nothing may leave");
            return Err(Denied::Audit);
        }
        promise.keep();
        Ok(Passport {
            destination: destination.clone(),
            purpose,
            body,
            request_id: request_id.to_owned(),
        })
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
            worst_cost_nusd: Some(0),
        })
        .await
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

    /// Nano-USD spent or promised at an upstream since midnight (UTC), each request at its worst case.
    pub fn spent_today(&self, upstream: &str) -> u64 {
        let today = day_of((self.0.now)());
        let spent = self.0.spent.lock().unwrap_or_else(PoisonError::into_inner);
        let day = spent.get(upstream).filter(|day| day.number >= today);
        day.map_or(0, |day| day.nusd)
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

    /// Takes the worst case out of the day's money: compared and added under one lock, so that many at
    /// once cannot take more than there is.
    fn promise(&self, upstream: &Arc<str>, nusd: u64) -> Result<Promise<'_>, Denied> {
        let limit = self.0.config.daily_nusd.get(upstream.as_ref());
        let limit = limit.copied().unwrap_or(0);
        let today = day_of((self.0.now)());
        let mut spent = self.0.spent.lock().unwrap_or_else(PoisonError::into_inner);
        let day = spent.entry(Arc::clone(upstream)).or_default();
        // A clock that is set back begins no new day.
        if day.number < today {
            *day = Day {
                number: today,
                nusd: 0,
            };
        }
        if nusd > 0 {
            let after = day.nusd.checked_add(nusd).filter(|&after| after <= limit);
            day.nusd = after.ok_or_else(|| Denied::Money(upstream.as_ref().to_owned()))?;
        }
        Ok(Promise {
            gate: &self.0,
            upstream: Arc::clone(upstream),
            day: Day {
                number: day.number,
                nusd,
            },
        })
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

/// Money that is held for one departure. Dropping it gives the money back, unless it was kept.
struct Promise<'a> {
    gate: &'a Inner,
    upstream: Arc<str>,
    day: Day,
}

impl Promise<'_> {
    fn keep(mut self) {
        self.day.nusd = 0;
    }
}

impl Drop for Promise<'_> {
    fn drop(&mut self) {
        let mut spent = self
            .gate
            .spent
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // What was held on a day that is over is owed to nobody.
        if let Some(day) = spent.get_mut(&self.upstream)
            && day.number == self.day.number
        {
            day.nusd = day.nusd.saturating_sub(self.day.nusd);
        }
    }
}

/// Whether bytes for this purpose hold what a caller wrote.
fn carries_text(purpose: Purpose) -> bool {
    match purpose {
        Purpose::Request | Purpose::Retry | Purpose::Hedge | Purpose::Continuation => true,
        Purpose::WarmUp | Purpose::Probe | Purpose::Metadata => false,
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

/// Days since 1970, UTC.
fn day_of(now: SystemTime) -> u64 {
    const DAY: u64 = 24 * 60 * 60;
    let since = now.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or(Duration::ZERO).as_secs() / DAY
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
