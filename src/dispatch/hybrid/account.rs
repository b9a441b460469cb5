//! What became of a request, told once: to the metrics, to what is learned of answers' lengths, to the audit
//! log, and to the operator's log.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::Hybrid;
use super::case::{Case, Way};
use crate::dispatch::pulse::{DROPPED, Past, Seen};
use crate::dispatch::{Inner, lifecycle};
use crate::egress::Settled;
use crate::generation::{
    Error, Finish, Reason, Request, RouteAsk, RouteNote, Side, Timings, Usage, UsageSource,
};
use crate::ledger::{ANONYMOUS, Amount, Closing, Tab};
use crate::remote::Fault;
use crate::remote::catalog::Shape;
use crate::route::{About, Aftermath, AttemptNote, Decision, Record};
use crate::telemetry::{Failure, Spent};

/// The attempts of one request that have ended; those still under way write themselves in when they do.
pub(super) type Attempts = Arc<Mutex<Vec<AttemptNote>>>;

/// How an attempt ended.
pub(super) struct Settlement<'a> {
    pub(super) inner: &'a Inner,
    pub(super) hybrid: &'a Hybrid,
    pub(super) attempts: &'a Attempts,
    pub(super) way: &'a Way,
    pub(super) request_id: &'a str,
    pub(super) key: Option<&'a Arc<str>>,
    pub(super) ttft: Option<Duration>,
    pub(super) provider: Option<String>,
    pub(super) request_id_upstream: Option<String>,
    pub(super) outcome: Result<&'a Finish, &'a Fault>,
    pub(super) usage: Usage,
    /// What it came to.
    pub(super) spent: Amount,
    pub(super) basis: String,
}

/// Tells the metrics, the record and the audit log how an attempt ended.
pub(super) fn settle(settlement: Settlement<'_>) {
    let Settlement {
        inner,
        hybrid,
        attempts,
        way,
        request_id,
        key,
        ttft,
        provider,
        request_id_upstream,
        outcome,
        usage,
        spent,
        basis,
    } = settlement;
    let fault = outcome.err();
    let cost_nusd = Some(spent.nusd);
    let ended = fault.map_or("ok", |fault| fault.class.name());
    inner
        .metrics
        .count_attempt(&way.destination.upstream, ended);
    let bytes_in = outcome.map_or(0, |finish| finish.generated_text.len() as u64);
    let settled = Settled {
        status: ended.to_owned(),
        bytes_in,
        cost_nusd,
    };
    hybrid.gate.settled(request_id, &way.destination, settled);
    let note = AttemptNote {
        target: way.facts.target.name.to_string(),
        provider: provider.or_else(|| fault.and_then(|fault| fault.provider.clone())),
        class: fault.map(|fault| fault.class.name().to_owned()),
        status: fault.and_then(|fault| fault.status),
        ttft_ms: ttft.map(ms),
        tokens_in: Some(usage.input_tokens),
        tokens_out: Some(usage.output_tokens),
        cached_in: Some(usage.cached_tokens),
        cost_nusd,
        cost_basis: Some(basis),
        request_id_upstream,
    };
    let key = key.map_or(ANONYMOUS, |key| &**key);
    let provider = note
        .provider
        .as_deref()
        .or(way.destination.provider.as_deref());
    let by = Spent {
        key,
        model: &way.destination.model,
        provider: provider.unwrap_or(&way.destination.upstream),
    };
    inner.metrics.count_spent(&by, spent.nusd, spent.tokens);
    let mut attempts = attempts.lock().unwrap_or_else(PoisonError::into_inner);
    attempts.push(note);
}

pub(super) fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A decision as it stands in the end.
pub(super) struct Decided<'a> {
    pub(super) decision: &'a Decision,
    /// Its reason before anybody was asked.
    pub(super) at_first: Reason,
}

/// What is noted while a request is carried out.
#[derive(Debug)]
pub(super) struct Tally {
    accounted: bool,
    queued_at: Instant,
    first_token: Option<(Instant, Side)>,
    tokens: u32,
    attempts: Attempts,
}

impl Tally {
    /// For a request that was looked at, and has waited since, at `queued_at`.
    pub(super) fn new(request: &Request, queued_at: Instant) -> Self {
        Self {
            accounted: request.accounted,
            queued_at,
            first_token: None,
            tokens: 0,
            attempts: Attempts::default(),
        }
    }

    /// A token went to the caller.
    pub(super) fn token(&mut self, side: Side) {
        self.first_token.get_or_insert((Instant::now(), side));
        self.tokens = self.tokens.saturating_add(1);
    }

    /// Where attempts write themselves in.
    pub(super) fn attempts(&self) -> Attempts {
        Arc::clone(&self.attempts)
    }

    /// Where the time went: an answer made elsewhere has its first token instead of its first step.
    pub(super) fn timings(&self, accepted_at: Instant) -> Timings {
        let now = Instant::now();
        let began = self.first_token.map_or(now, |(at, _)| at);
        Timings {
            validation: self.queued_at.saturating_duration_since(accepted_at),
            queue: began.saturating_duration_since(self.queued_at),
            inference: now.saturating_duration_since(began),
            total: now.saturating_duration_since(accepted_at),
        }
    }

    /// The request is over; none means that the caller left.
    pub(super) fn close(
        self,
        inner: &Inner,
        hybrid: &Hybrid,
        case: Case,
        tab: Tab,
        Decided { decision, at_first }: Decided<'_>,
        ended: Option<&Result<Finish, Error>>,
    ) {
        let request = &case.request;
        if self.accounted {
            match ended {
                Some(Ok(finish)) => lifecycle::observe_success(
                    &inner.metrics,
                    &finish.timings,
                    finish.usage.output_tokens,
                ),
                Some(Err(error)) => lifecycle::count_error(&inner.metrics, error),
                None => inner.metrics.count_failure(Failure::Dropped),
            }
        }
        if let Some(Ok(finish)) = ended {
            let key = request.route.key.as_deref().unwrap_or_default();
            hybrid.lock_outputs().note(
                key,
                &request.route.path,
                finish.usage.output_tokens,
                case.need.max_new_tokens,
            );
        }
        let attempts =
            std::mem::take(&mut *self.attempts.lock().unwrap_or_else(PoisonError::into_inner));
        let side = self.first_token.map(|(_, side)| side);
        let ttft = self.first_token.map(|(at, _)| at - request.accepted_at);
        if let (Some(ttft), Some(Side::Local), true) = (ttft, side, attempts.is_empty())
            && let Some(forecast) = &case.upon.0.forecast
        {
            hybrid.lock_lateness().note(forecast.ttft_ms, ms(ttft));
            let expected = forecast.ttft_ms.max(1) as f64 / 1e3;
            inner
                .metrics
                .observe_forecast(ttft.as_secs_f64() / expected);
        }
        let outcome = match ended {
            Some(Ok(finish)) => format!("{:?}", finish.reason).to_lowercase(),
            Some(Err(error)) => error.kind.name().to_owned(),
            None => DROPPED.to_owned(),
        };
        let finish = ended.and_then(|ended| ended.as_ref().ok());
        tracing::info!(
            request_id = %request.route.request_id,
            side = side.map(|side| side.to_string()),
            reason = %decision.reason,
            attempts = attempts.len(),
            outcome,
            total_ms = ms(request.accepted_at.elapsed()),
            "request routed"
        );
        let costs = attempts.iter().filter_map(|attempt| attempt.cost_nusd);
        let cost_nusd = costs.clone().next().map(|_| costs.sum());
        let mut route = RouteNote::local(Reason::LocalOk);
        request.note.update(|note| route.clone_from(note));
        let last = attempts.last().map(|attempt| attempt.target.clone());
        // What nobody answered in the end stands where it was tried last.
        let away = side != Some(Side::Local) && !attempts.is_empty();
        let usage = finish.map(|finish| finish.usage);
        // As the caller was told.
        let saved = usage
            .filter(|_| route.saved_nusd.is_some())
            .and_then(|usage| saved(hybrid, &case, &usage));
        let seen = side.map(|_| Usage {
            source: UsageSource::Estimated,
            ..Usage::counted(case.need.prompt_tokens, self.tokens)
        });
        let total = request.accepted_at.elapsed();
        let counted = usage.or(seen);
        let past = Past {
            side,
            target: last.clone(),
            upstream: route.upstream.clone().filter(|_| away),
            provider: route.provider.clone().filter(|_| away),
            reason: Some(decision.reason.clone()),
            ok: finish.is_some(),
            // Who is not told of each token gets the first one with the last.
            ttft: attempts
                .last()
                .filter(|_| away && !request.route.stream)
                .and_then(|attempt| attempt.ttft_ms.map(Duration::from_millis))
                .or(ttft),
            total,
            prompt_tokens: counted.map_or(case.need.prompt_tokens, |usage| usage.input_tokens),
            output_tokens: counted.map_or(0, |usage| usage.output_tokens),
            cost_nusd,
            saved_nusd: saved.as_ref().map(|(nusd, _)| *nusd),
            attempts: attempts.clone(),
            degraded: route.degraded.clone(),
            ..past(hybrid, &case, decision, at_first, outcome.clone())
        };
        inner.pulse.note(past, self.accounted, Instant::now());
        tab.close(Closing {
            side,
            target: last.filter(|_| away),
            upstream: route.upstream.filter(|_| away),
            model: route.model.filter(|_| away),
            provider: route.provider.filter(|_| away),
            reason: Some(decision.reason.to_string()),
            saved,
            usage: counted,
            ttft_ms: ttft.map(ms),
            total_ms: ms(total),
            outcome: outcome.clone(),
        });
        let degraded = route.degraded;
        let aftermath = Aftermath {
            side,
            outcome,
            degraded,
            ttft_ms: ttft.map(ms),
            e2e_ms: Some(ms(total)),
            tokens: finish.map(|finish| finish.usage.output_tokens),
            cost_nusd,
            attempts,
        };
        record(hybrid, case, aftermath);
    }
}

/// What an answer made here would have cost at the first target that it is mapped to and that costs anything.
pub(super) fn saved(hybrid: &Hybrid, case: &Case, usage: &Usage) -> Option<(u64, String)> {
    case.model.hops.iter().find_map(|hop| {
        let (facts, _) = hybrid.remote.look(&hop.target, &Shape::default())?;
        let [input, output] = [usage.input_tokens, usage.output_tokens].map(u64::from);
        let nusd = facts.target.price?.cost_nusd(input, 0, output);
        (nusd > 0).then(|| (nusd, hop.target.clone()))
    })
}

/// What whoever watches is told of a request, as far as it was decided upon.
fn past(
    hybrid: &Hybrid,
    case: &Case,
    decision: &Decision,
    at_first: Reason,
    outcome: String,
) -> Past {
    let seen = Seen {
        need: case.need.clone(),
        local: case.upon.0.clone(),
        targets: case.views.clone(),
        terms: hybrid.terms,
        decision: Decision {
            reason: at_first,
            ..decision.clone()
        },
    };
    let ask = &case.request.route;
    Past {
        reason: Some(decision.reason.clone()),
        seen: Some(Box::new(seen)),
        ..Past::of(ask, hybrid.known_model(ask), outcome)
    }
}

/// A request of which it was not decided where it goes: what was asked, when, and whether it stands for its call.
pub(super) fn not_opened(
    inner: &Inner,
    hybrid: &Hybrid,
    (ask, accepted_at, accounted): (RouteAsk, Instant, bool),
    error: &Error,
) {
    let past = Past {
        total: accepted_at.elapsed(),
        ..Past::of(&ask, hybrid.known_model(&ask), error.kind.name().to_owned())
    };
    if accounted {
        inner.pulse.note(past, true, Instant::now());
    }
}

/// A request that nobody answers.
pub(super) fn refused(
    inner: &Inner,
    hybrid: &Hybrid,
    case: Case,
    decision: &Decision,
    error: &Error,
) {
    tracing::info!(
        request_id = %case.request.route.request_id,
        reason = %decision.reason,
        %error,
        "request refused"
    );
    let outcome = error.kind.name().to_owned();
    let past = Past {
        total: case.request.accepted_at.elapsed(),
        prompt_tokens: case.need.prompt_tokens,
        ..past(
            hybrid,
            &case,
            decision,
            decision.reason.clone(),
            outcome.clone(),
        )
    };
    inner
        .pulse
        .note(past, case.request.accounted, Instant::now());
    let aftermath = Aftermath {
        outcome,
        ..Aftermath::default()
    };
    record(hybrid, case, aftermath);
}

fn record(hybrid: &Hybrid, case: Case, aftermath: Aftermath) {
    let Some(log) = &hybrid.log else {
        return;
    };
    let request = &case.request;
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    let (local, now_ms) = case.upon;
    let about = About {
        ts_ms: since_1970.map_or(0, ms),
        request_id: request.route.request_id.to_string(),
        key: request.route.key.as_deref().map(str::to_owned),
        route: request.route.path.to_string(),
        lane: "interactive".to_owned(),
        model: request
            .route
            .model
            .as_deref()
            .unwrap_or_default()
            .to_owned(),
        stream: request.route.stream,
        features: case.features,
        config_rev: hybrid.config_rev.clone(),
        calib_rev: hybrid.calibration.as_ref().map(|c| c.revision.clone()),
    };
    let mut record = Record::decide(about, case.need, local, case.views, hybrid.terms, now_ms);
    record.aftermath = aftermath;
    log.write(record);
}
