//! The words of the gate: levels, grants, destinations, passports.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::generation::Reason;
use crate::ledger::{Amount, Exceeded, Tab};

/// How far a caller's text may go, from not at all to anywhere configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Level {
    /// It stays here.
    #[default]
    Deny,
    /// To machines that serve the operator alone.
    Dedicated,
    /// To the providers that are listed, too.
    Allowlist,
    /// To every configured upstream, whoever it hands the text to.
    Any,
}

impl Level {
    /// The name in settings and in the audit log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Deny => "deny",
            Self::Dedicated => "dedicated",
            Self::Allowlist => "allowlist",
            Self::Any => "any",
        }
    }
}

/// What one key's caller may let leave.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Grant {
    /// How far.
    pub level: Level,
    /// Providers that `allowlist` lets the text go to.
    pub providers: BTreeSet<String>,
}

/// What the operator knows about a provider; what is not known is none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    /// Days that it keeps what it is sent; 0 for not at all.
    pub retention_days: Option<u32>,
    /// Where its machines stand.
    pub region: Option<String>,
    /// Whether zero data retention is agreed upon.
    pub zdr: Option<bool>,
    /// Whether it trains on what it is sent.
    pub trains: Option<bool>,
}

/// What a provider must fulfil; a fact that is not known does not fulfil a demand.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Demand {
    /// Most days of retention.
    pub max_retention_days: Option<u32>,
    /// Regions of which it must be in one; empty demands none.
    pub regions: BTreeSet<String>,
    /// Zero data retention.
    pub zdr: bool,
    /// No training.
    pub no_training: bool,
}

/// What a content rule does with a text that it finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The text is answered here or not at all.
    LocalOnly,
    /// The text is not answered.
    Block,
}

/// A pattern that pins a text to this machine. A guard rail, not a proof that nothing private leaves.
#[derive(Debug, Clone)]
pub struct ContentRule {
    /// Its name in answers, logs and records.
    pub name: String,
    /// What it looks for, in every text of a request.
    pub pattern: regex::Regex,
    /// What then.
    pub action: Action,
}

/// The gate's settings.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Whether nothing may leave but to this machine's own loopback.
    pub offline: bool,
    /// What callers without a key may let leave.
    pub anonymous: Grant,
    /// What keys without a grant of their own may let leave.
    pub default: Grant,
    /// By the key's name.
    pub keys: BTreeMap<String, Grant>,
    /// Names of keys without a grant of their own; those of `keys` may stand among them. Any other name may
    /// let nothing leave.
    pub known: BTreeSet<String>,
    /// Patterns.
    pub rules: Vec<ContentRule>,
    /// Most bytes of one request that may leave; none means no bound beside the body's own.
    pub max_bytes: Option<usize>,
    /// By the provider's name.
    pub facts: BTreeMap<String, Facts>,
    /// What every provider must fulfil that is not the operator's own.
    pub demand: Demand,
    /// By the upstream's name: nano-USD that it may cost a day, none where budgets over all say so. The ledger
    /// counts them; here they are only spoken of.
    pub daily_nusd: BTreeMap<String, Option<u64>>,
}

/// One place to which text may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// The target's name.
    pub target: Arc<str>,
    /// The upstream's name.
    pub upstream: Arc<str>,
    /// Host and port as configured.
    pub host: Arc<str>,
    /// Whether the host is this machine's own loopback.
    pub loopback: bool,
    /// Whether the machine behind it serves the operator alone.
    pub dedicated: bool,
    /// Who runs the model; none where the upstream may choose anybody.
    pub provider: Option<Arc<str>>,
    /// The model's name there.
    pub model: Arc<str>,
}

/// Why bytes leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// A caller's request.
    Request,
    /// The same once more, after a failure.
    Retry,
    /// The same a second time, beside one that is slow.
    Hedge,
    /// The rest of an answer that broke off.
    Continuation,
    /// A word that wakes a sleeping endpoint; no caller's text.
    WarmUp,
    /// A question about capabilities, asked by the operator; no caller's text.
    Probe,
    /// Names, prices, states: no text at all.
    Metadata,
    /// A word to the operator about money or targets; no caller's text.
    Alert,
}

impl Purpose {
    /// The name in the audit log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Request => "request",
            Self::Retry => "retry",
            Self::Hedge => "hedge",
            Self::Continuation => "continuation",
            Self::WarmUp => "warm_up",
            Self::Probe => "probe",
            Self::Metadata => "metadata",
            Self::Alert => "alert",
        }
    }
}

/// Bytes that want to leave.
#[derive(Debug, Clone)]
pub struct Departure<'a> {
    /// The request's name.
    pub request_id: &'a str,
    /// The name of the caller's key; none without one.
    pub key: Option<&'a str>,
    /// Where to.
    pub destination: &'a Destination,
    /// What for.
    pub purpose: Purpose,
    /// Why it is wanted.
    pub reason: &'a Reason,
    /// Every text in it that somebody wrote, for the rules and for the audit log's fingerprint.
    pub texts: &'a [&'a str],
    /// The bytes.
    pub body: Bytes,
    /// Most they may come to; none where nobody knows, which is refused.
    pub worst: Option<Amount>,
    /// Where the price comes from.
    pub basis: &'a Arc<str>,
    /// The request's account; what leaves without one must cost nothing.
    pub tab: Option<&'a Tab>,
}

/// Why bytes may not leave.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The server is offline.
    #[error("this server is offline")]
    Offline,
    /// The caller's level does not reach that far.
    #[error("the caller's key may not let text leave to `{0}`")]
    Level(String),
    /// The provider is not on the caller's list.
    #[error("the caller's key does not list provider `{0}`")]
    Provider(String),
    /// A demand is not fulfilled, as far as is known.
    #[error("provider `{provider}` is not known to fulfil `{demand}`")]
    Demand {
        /// The provider.
        provider: String,
        /// The setting that demands it.
        demand: &'static str,
    },
    /// A content rule keeps the text here.
    #[error("rule `{0}` keeps this text on this machine")]
    Rule(String),
    /// A content rule wants the text answered by nobody.
    #[error("rule `{0}` blocks this text")]
    Blocked(String),
    /// Too many bytes.
    #[error("{bytes} bytes are more than egress.max_bytes = {most} lets leave")]
    Size {
        /// The request's.
        bytes: usize,
        /// The setting.
        most: usize,
    },
    /// Nobody knows the price.
    #[error("the price of `{0}` is not known; give it in the target's `price`")]
    PriceUnknown(String),
    /// A budget is spent or held.
    #[error("{0}")]
    Money(Box<Exceeded>),
    /// Money cannot be held.
    #[error("the ledger cannot be written, so nothing that costs money may leave")]
    Ledger,
    /// The server keeps everything here for a time, by itself.
    #[error("nothing leaves this machine until {until}: {why}")]
    Contained {
        /// When that ends, as a time in UTC.
        until: String,
        /// What brought it about.
        why: String,
    },
    /// Somebody's text in what must carry none.
    #[error("what leaves for `{0}` carries no text")]
    Text(&'static str),
    /// The audit line could not be written.
    #[error("the audit log cannot be written, so nothing may leave")]
    Audit,
}

impl Denied {
    /// A word for each kind, as it stands after `egress_denied:` in headers and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Offline => "offline",
            Self::Level(_) => "level",
            Self::Provider(_) => "provider",
            Self::Demand { demand, .. } => demand,
            Self::Rule(_) | Self::Blocked(_) => "rule",
            Self::Size { .. } => "size",
            Self::PriceUnknown(_) => "price_unknown",
            Self::Money(_) => "budget",
            Self::Ledger => "ledger",
            Self::Contained { .. } => "spike",
            Self::Text(_) => "text",
            Self::Audit => "audit",
        }
    }
}

/// What became of what left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The status, or the class of the failure.
    pub status: String,
    /// Bytes of the answer.
    pub bytes_in: u64,
    /// What it cost in nano-USD, if that is known.
    pub cost_nusd: Option<u64>,
}

/// Bytes that may leave, once, to one destination. Only the gate makes one; sending takes it.
pub struct Passport {
    pub(super) destination: Destination,
    pub(super) purpose: Purpose,
    pub(super) body: Bytes,
    pub(super) request_id: String,
}

impl Passport {
    /// Where to.
    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    /// What for.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// The request's name.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// Uses the passport up: what it lets through, and where to.
    pub fn spend(self) -> (Destination, Bytes) {
        (self.destination, self.body)
    }
}

impl fmt::Debug for Passport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passport")
            .field("target", &self.destination.target)
            .field("purpose", &self.purpose)
            .field("bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
impl Passport {
    /// A passport that no gate has seen, for tests of what comes behind it.
    pub(crate) fn forged(destination: Destination, body: Bytes) -> Self {
        Self {
            destination,
            purpose: Purpose::Request,
            body,
            request_id: "test".to_owned(),
        }
    }
}
