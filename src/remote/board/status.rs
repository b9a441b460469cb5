//! Where a target stands, in the words of the retry loop and of an operator.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::RETRIAL;
use crate::remote::breaker::Refused;
use crate::remote::latency::Latency;
use crate::remote::{Class, Fault};

/// How long a target with as many requests as it may have is expected to be so.
pub(super) const SATURATED: Duration = Duration::from_secs(1);

/// Why no attempt may begin at a target now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotNow {
    /// There is no such target.
    Unknown,
    /// The upstream cannot be used as configured; the text says why.
    Disabled(String),
    /// What it says does not fit the settings; the text says how.
    Misconfigured(String),
    /// Its credential is refused.
    AuthFailed,
    /// Its credential has no money left.
    Quota,
    /// The endpoint is paused.
    Paused,
    /// It asked to be left alone for so long, or its rate allows nothing before.
    Parked(Duration),
    /// It wakes, in about so long.
    Waking(Duration),
    /// It has as many requests as it may have.
    Saturated,
    /// Its breaker is open for so long.
    Open(Duration),
    /// Its breaker lets single trials through, and not this request.
    HalfOpen,
}

impl NotNow {
    /// The same as a fault, for the retry loop; nothing was sent.
    pub fn fault(&self) -> Fault {
        let (class, wait) = match self {
            Self::Unknown => (Class::NotServed, None),
            Self::Disabled(_) | Self::Misconfigured(_) => (Class::Misconfigured, None),
            Self::AuthFailed => (Class::AuthFailed, None),
            Self::Quota => (Class::QuotaExhausted, None),
            Self::Paused => (Class::Paused, None),
            Self::Parked(wait) => (Class::RateLimited, Some(*wait)),
            Self::Waking(eta) => (Class::ColdStart, Some(*eta)),
            Self::Saturated => (Class::Overloaded, Some(SATURATED)),
            Self::Open(wait) => (Class::Overloaded, Some(*wait)),
            Self::HalfOpen => (Class::Overloaded, Some(SATURATED)),
        };
        Fault {
            retry_after: wait,
            ..Fault::unsent(class, self.to_string())
        }
    }
}

impl fmt::Display for NotNow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("there is no such target"),
            Self::Disabled(why) | Self::Misconfigured(why) => f.write_str(why),
            Self::AuthFailed => f.write_str("its credential is refused"),
            Self::Quota => f.write_str("its credential has no money left"),
            Self::Paused => f.write_str("it is paused"),
            Self::Parked(wait) => write!(f, "it wants to be left alone for {} s", up(*wait)),
            Self::Waking(eta) => write!(f, "it is awake in about {} s", up(*eta)),
            Self::Saturated => f.write_str("it has as many requests as it may have"),
            Self::Open(wait) => write!(f, "it failed lately; next trial in {} s", up(*wait)),
            Self::HalfOpen => f.write_str("it failed lately and is on trial"),
        }
    }
}

/// Where a target stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetState {
    /// In use.
    Closed,
    /// On trial after failures.
    HalfOpen,
    /// Left out after failures.
    Open {
        /// Until the next trial.
        until: Instant,
    },
    /// Left alone, as it asked for.
    Parked {
        /// Until then.
        until: Instant,
    },
    /// The endpoint wakes.
    Waking {
        /// In about so long.
        eta: Duration,
    },
    /// Its credential is refused.
    AuthFailed,
    /// Its credential has no money left.
    Quota,
    /// The endpoint is paused.
    Paused,
    /// What it says does not fit the settings; the text says how.
    Misconfigured(String),
    /// The upstream cannot be used as configured; the text says why.
    Disabled(String),
    /// It has as many requests as it may have.
    Saturated,
}

impl TargetState {
    /// The name in answers and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open { .. } => "open",
            Self::Parked { .. } => "parked",
            Self::Waking { .. } => "waking",
            Self::AuthFailed => "auth_failed",
            Self::Quota => "quota",
            Self::Paused => "paused",
            Self::Misconfigured(_) => "misconfigured",
            Self::Disabled(_) => "disabled",
            Self::Saturated => "saturated",
        }
    }
}

/// One target as it stands now.
#[derive(Debug, Clone)]
pub struct TargetStatus {
    /// The target.
    pub target: Arc<str>,
    /// Its upstream.
    pub upstream: Arc<str>,
    /// Who runs the model, as far as is known beforehand.
    pub provider: Option<Arc<str>>,
    /// Where it stands.
    pub state: TargetState,
    /// Whether a request that could be answered elsewhere, too, would be let through now, perhaps as a trial.
    pub admits: bool,
    /// Requests under way.
    pub inflight: u32,
    /// Requests it may have at once.
    pub limit: u32,
    /// Half of all first tokens come within this time.
    pub ttft_p50: Duration,
    /// 95 of a hundred do.
    pub ttft_p95: Duration,
    /// Answers that did not match their schema, since the start.
    pub schema_violations: u64,
    pub(super) latency: Latency,
    pub(super) token_env: Option<String>,
    pub(super) now: Instant,
}

impl TargetStatus {
    /// What to expect of a request begun now: the time to its first token, and to its last.
    pub fn expected(&self, prompt_tokens: u32, output_tokens: u32) -> (Duration, Duration) {
        self.latency.expected(prompt_tokens, output_tokens)
    }

    /// When a request may be worth sending here: none for now or never by itself.
    pub fn retry_after(&self) -> Option<Duration> {
        match self.state {
            TargetState::Open { until } | TargetState::Parked { until } => {
                Some(until.saturating_duration_since(self.now))
            }
            TargetState::Waking { eta } => Some(eta),
            TargetState::Saturated | TargetState::HalfOpen => Some(SATURATED),
            _ => None,
        }
    }

    /// What an operator reads of it, with the remedy where there is one.
    pub fn sentence(&self) -> String {
        let (target, upstream) = (&self.target, &self.upstream);
        let seconds = self.retry_after().map_or(0, up);
        let token = match &self.token_env {
            Some(name) => format!("the token in `{name}`"),
            None => "its missing token (`token_env`)".to_owned(),
        };
        match &self.state {
            TargetState::Closed => format!("target `{target}` is in use"),
            TargetState::HalfOpen => format!(
                "target `{target}` failed lately and is on trial; it is used again once trials are answered"
            ),
            TargetState::Open { .. } => format!(
                "target `{target}` failed repeatedly and is left out; next trial in {seconds} s. If this stays, look at upstream `{upstream}` and at the network between"
            ),
            TargetState::Parked { .. } => format!(
                "target `{target}` asked for fewer requests and is left alone for {seconds} s. If this is frequent, ask upstream `{upstream}` for a higher limit or add another target"
            ),
            TargetState::Waking { .. } => format!(
                "the endpoint of target `{target}` is waking, in about {seconds} s. Keep one replica running where the wait matters"
            ),
            TargetState::AuthFailed => format!(
                "upstream `{upstream}` refuses {token}; renew it and its permissions. It is tried once in {} min, and when the token changes",
                RETRIAL.as_secs() / 60
            ),
            TargetState::Quota => format!(
                "upstream `{upstream}` says that the credit behind {token} is used up; buy credit or raise the spending limit. This is no outage; it is looked at again by itself"
            ),
            TargetState::Paused => format!(
                "the endpoint of upstream `{upstream}` is paused and does not wake by itself; resume it"
            ),
            TargetState::Misconfigured(why) => {
                format!("target `{target}` cannot be used as configured: {why}")
            }
            TargetState::Disabled(why) => format!("upstream `{upstream}` is disabled: {why}"),
            TargetState::Saturated => format!(
                "target `{target}` has {} requests under way, as many as it may have",
                self.inflight
            ),
        }
    }
}

pub(super) fn not_now(refused: Refused, now: Instant) -> NotNow {
    match refused {
        Refused::Open { until } => NotNow::Open(until.saturating_duration_since(now)),
        Refused::HalfOpen => NotNow::HalfOpen,
    }
}

pub(super) fn state_of(not_now: NotNow, now: Instant) -> TargetState {
    match not_now {
        NotNow::Unknown => TargetState::Disabled("there is no such target".to_owned()),
        NotNow::Disabled(why) => TargetState::Disabled(why),
        NotNow::Misconfigured(why) => TargetState::Misconfigured(why),
        NotNow::AuthFailed => TargetState::AuthFailed,
        NotNow::Quota => TargetState::Quota,
        NotNow::Paused => TargetState::Paused,
        NotNow::Parked(wait) => TargetState::Parked { until: now + wait },
        NotNow::Waking(eta) => TargetState::Waking { eta },
        NotNow::Saturated => TargetState::Saturated,
        NotNow::Open(wait) => TargetState::Open { until: now + wait },
        NotNow::HalfOpen => TargetState::HalfOpen,
    }
}

/// Whole seconds, rounded up.
fn up(time: Duration) -> u64 {
    crate::remote::whole_seconds(time).as_secs()
}
