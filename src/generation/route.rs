//! How a request may be routed, and how it was: what the caller allows goes in, what became of it comes out.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// Where an answer was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// On this machine.
    Local,
    /// By an upstream.
    Remote,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Remote => "remote",
        })
    }
}

/// Who should answer, from never leaving this machine to always leaving it.
///
/// The order is that of the name: a caller may move left only.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// This machine, whatever happens.
    LocalOnly,
    /// This machine, unless it cannot or would be too late.
    #[default]
    PreferLocal,
    /// Whoever costs least and is in time; this machine costs nothing.
    Cheapest,
    /// Whoever is expected to be done first.
    Fastest,
    /// An upstream, this machine when none can.
    PreferRemote,
    /// An upstream, whatever happens.
    RemoteOnly,
}

impl Policy {
    /// Every policy, from left to right.
    pub const ALL: [Self; 6] = [
        Self::LocalOnly,
        Self::PreferLocal,
        Self::Cheapest,
        Self::Fastest,
        Self::PreferRemote,
        Self::RemoteOnly,
    ];

    /// The policy's name on the wire and in settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::LocalOnly => "local-only",
            Self::PreferLocal => "prefer-local",
            Self::Cheapest => "cheapest",
            Self::Fastest => "fastest",
            Self::PreferRemote => "prefer-remote",
            Self::RemoteOnly => "remote-only",
        }
    }
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|policy| policy.name() == text);
        known.ok_or_else(|| {
            let names = Self::ALL.map(|policy| format!("`{}`", policy.name()));
            format!("must be one of {}", names.join(", "))
        })
    }
}

/// Why a request was answered where it was, or refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Nothing spoke against this machine.
    LocalOk,
    /// The policy wants this machine.
    PolicyLocal,
    /// The policy wants an upstream.
    PolicyRemote,
    /// An operator's rule of this name wants this machine.
    RuleLocal(String),
    /// An operator's rule of this name wants an upstream.
    RuleRemote(String),
    /// Nothing of the request may leave this machine; the text says by which rule.
    EgressDenied(String),
    /// This machine cannot do what is asked; the text says what.
    UnsupportedLocal(String),
    /// Prompt and answer do not fit this machine's context.
    ContextOverflow,
    /// This machine would begin too late.
    QueueOverflow,
    /// This machine has no memory left for it in time.
    KvOverflow,
    /// This machine would not be done before the deadline.
    Deadline,
    /// The prompt looks too hard for the local model.
    HardPre,
    /// The first tokens looked too hard for the local model.
    HardProbe,
    /// The whole answer looked wrong.
    HardPost,
    /// No money is left for an upstream.
    BudgetExhausted,
    /// Nobody knows what an upstream would cost.
    PriceUnknown,
    /// No upstream can do what this field asks for.
    NotEligible(String),
    /// The conversation stays where it was.
    Sticky,
    /// This machine failed before the first token.
    LocalFailure,
    /// An upstream was wanted, and none could answer.
    RemoteUnavailable,
}

impl Reason {
    /// The code alone: a bounded set, fit for metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::LocalOk => "local_ok",
            Self::PolicyLocal => "policy_local",
            Self::PolicyRemote => "policy_remote",
            Self::RuleLocal(_) => "rule_local",
            Self::RuleRemote(_) => "rule_remote",
            Self::EgressDenied(_) => "egress_denied",
            Self::UnsupportedLocal(_) => "unsupported_local",
            Self::ContextOverflow => "context_overflow",
            Self::QueueOverflow => "queue_overflow",
            Self::KvOverflow => "kv_overflow",
            Self::Deadline => "deadline",
            Self::HardPre => "hard_pre",
            Self::HardProbe => "hard_probe",
            Self::HardPost => "hard_post",
            Self::BudgetExhausted => "budget_exhausted",
            Self::PriceUnknown => "price_unknown",
            Self::NotEligible(_) => "not_eligible",
            Self::Sticky => "sticky",
            Self::LocalFailure => "local_failure",
            Self::RemoteUnavailable => "remote_unavailable",
        }
    }
}

/// The code, and after a colon what it is about: `not_eligible:typical_p`.
impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())?;
        match self {
            Self::RuleLocal(about)
            | Self::RuleRemote(about)
            | Self::EgressDenied(about)
            | Self::UnsupportedLocal(about)
            | Self::NotEligible(about) => write!(f, ":{about}"),
            _ => Ok(()),
        }
    }
}

/// What a caller says about where its answer may be made. It can only tighten what the operator allows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RouteAsk {
    /// The name of the caller's key; `anonymous` without one.
    pub key: Option<Arc<str>>,
    /// This request's name in headers, logs and records.
    pub request_id: Arc<str>,
    /// The route it came in by, as the router knows it: `/v1/chat/completions`.
    pub path: Arc<str>,
    /// The model as the caller named it; none means the default.
    pub model: Option<Arc<str>>,
    /// Who should answer.
    pub policy: Option<Policy>,
    /// Most this answer may cost, in nano-USD.
    pub max_cost_nusd: Option<u64>,
    /// Whether nothing may be degraded.
    pub strict: bool,
    /// What names the conversation, so that it can stay where its caches are.
    pub session: Option<Arc<str>>,
    /// Headers that rules look at, by lower-case name.
    pub headers: Vec<(String, String)>,
    /// Whether the answer is streamed.
    pub stream: bool,
}

/// What became of one request: for headers, and for the comment at the end of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteNote {
    /// Where the answer is made; none where nobody makes one.
    pub side: Option<Side>,
    /// Why there.
    pub reason: Reason,
    /// The upstream's name.
    pub upstream: Option<String>,
    /// Its kind, as settings name it.
    pub kind: Option<&'static str>,
    /// The model's name there.
    pub model: Option<String>,
    /// Whose machine it is.
    pub provider: Option<String>,
    /// Requests sent to upstreams so far.
    pub attempts: u32,
    /// What the answer lacks of what was asked for.
    pub degraded: Vec<String>,
    /// What it costs in nano-USD.
    pub cost_nusd: Option<u64>,
    /// Whether the cost is an estimate.
    pub cost_is_estimate: bool,
    /// What an answer made here would have cost elsewhere, in nano-USD.
    pub saved_nusd: Option<u64>,
    /// Who went on when the answer broke off.
    pub continued_by: Option<Side>,
}

impl RouteNote {
    /// Adds what one attempt has cost, and whether that is an estimate; none for what nobody knows.
    pub fn add_cost(&mut self, cost: Option<(u64, bool)>) {
        match cost {
            Some((nusd, estimate)) => {
                self.cost_nusd = Some(self.cost_nusd.unwrap_or(0).saturating_add(nusd));
                self.cost_is_estimate |= estimate;
            }
            None => self.cost_is_estimate = true,
        }
    }

    /// Of a request that nobody answers.
    pub fn refused(reason: Reason) -> Self {
        Self {
            side: None,
            ..Self::local(reason)
        }
    }

    /// Of an answer made here.
    pub fn local(reason: Reason) -> Self {
        Self {
            side: Some(Side::Local),
            reason,
            upstream: None,
            kind: None,
            model: None,
            provider: None,
            attempts: 0,
            degraded: Vec::new(),
            cost_nusd: None,
            cost_is_estimate: false,
            saved_nusd: None,
            continued_by: None,
        }
    }
}

/// Where the hall writes what became of a call's requests, and the door reads it. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct RouteNotes(Arc<Mutex<Vec<RouteNote>>>);

impl RouteNotes {
    /// Reserves a place for one request's note.
    pub fn open(&self) -> RouteSlot {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        notes.push(RouteNote::refused(Reason::LocalOk));
        RouteSlot {
            notes: self.clone(),
            place: notes.len() - 1,
        }
    }

    /// Every note so far, one for each request of the call.
    pub fn read(&self) -> Vec<RouteNote> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// The place of one request's note.
#[derive(Debug, Clone)]
pub struct RouteSlot {
    notes: RouteNotes,
    place: usize,
}

/// A place that nobody reads.
impl Default for RouteSlot {
    fn default() -> Self {
        RouteNotes::default().open()
    }
}

impl RouteSlot {
    /// Changes the note.
    pub fn update(&self, change: impl FnOnce(&mut RouteNote)) {
        let mut notes = self.notes.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(note) = notes.get_mut(self.place) {
            change(note);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_known_by_their_names_and_ordered_by_how_far_they_go() {
        for policy in Policy::ALL {
            assert_eq!(policy.name().parse(), Ok(policy));
            let json = serde_json::to_string(&policy).expect("a plain name");
            assert_eq!(json, format!("\"{}\"", policy.name()));
        }
        assert!(Policy::ALL.is_sorted());
        assert!("auto".parse::<Policy>().is_err());
    }

    #[test]
    fn each_request_of_a_call_has_a_note_of_its_own() {
        let notes = RouteNotes::default();
        let (first, second) = (notes.open(), notes.open());
        second.update(|note| note.reason = Reason::NotEligible("typical_p".to_owned()));
        first.update(|note| note.attempts = 2);
        let read = notes.read();
        assert_eq!(read[0].attempts, 2);
        assert_eq!(read[1].reason.to_string(), "not_eligible:typical_p");
    }
}
