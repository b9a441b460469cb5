//! Attempts at upstreams: one after the other as the retry loop says, each through the gate, each settled once.
//!
//! An attempt is settled by whoever ends it, a caller that leaves included: what was sent was sent, and is
//! written down with what it may have cost. Nothing is forwarded before its first token, so that a second
//! attempt beside a slow one, where the operator allows that, is a race that nobody sees.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::BoxStream;
use rand_core::{OsRng, TryRngCore};

use super::account::{Attempts, Settlement, ms, settle};
use super::carrier::{Carrier, Ended};
use super::case::{Way, worst_case};
use super::{Hybrid, room, shape, until_ms};
use crate::dispatch::Inner;
use crate::egress::{Denied, Departure, Purpose};
use crate::generation::{Error, Event, Finish, Reason, RouteNote, Side, Usage, UsageSource};
use crate::ledger::{Amount, Bill, Held, OnExceed};
use crate::remote::{
    Ask, CancelSettle, Capabilities, Check, Class, Cost, Expected, Fault, Late, Link, Loop, Step,
    Terms,
};

/// Events of an answer that is given whole which are held before it counts as endless.
const MOST_HELD: usize = 1 << 18;

/// Why an attempt came to nothing.
enum Missed {
    /// It failed; nothing was sent where `sent` says so.
    Failed { fault: Fault, sent: bool },
    /// The gate let nothing leave.
    Denied(Denied),
}

/// Tries the decision's targets in turn.
pub(super) async fn elsewhere(carrier: &mut Carrier) -> Ended {
    let hybrid = Arc::clone(&carrier.hybrid);
    let board = hybrid.remote.board();
    let config = hybrid.remote.config();
    let (retry, wait_max) = (config.retry, config.parking.wait_max);
    let mut ways: Vec<Way> = carrier.case.ways(&carrier.decision);
    if carrier.seam.is_some() {
        ways.retain(|way| way.facts.target.same_model);
    }
    let link = |way: &Way| board.link(&way.facts.target.name, way.on.clone());
    let links: Vec<Link> = ways.iter().filter_map(link).collect();
    let need = &carrier.case.need;
    let terms = Terms {
        tokens: need.prompt_tokens.saturating_add(need.max_new_tokens),
        may_drop: Capabilities::droppable(hybrid.fidelity(need.strict)),
    };
    if links.is_empty() || links.len() != ways.len() {
        let error = Error::no_target("no upstream is configured for this request");
        return failed(error, None, false);
    }
    let local_can = carrier.decision.fallback_local;
    let mut attempts = Loop::new(links, 0, retry, wait_max, terms).where_local_can(local_can);
    let mut denied = None;
    let deadline = carrier.case.deadline();
    if attempts.too_late(Instant::now(), deadline, random_unit()) == Some(Step::GiveUp) {
        return failed(attempts.error(), Some(Class::Deadline), false);
    }
    loop {
        let place = attempts.current();
        let way = &ways[place];
        let missed = match attempt(carrier, &ways, place, attempts.attempts()).await {
            Ok(finish) => return Ended::Answered(finish),
            Err(missed) => missed,
        };
        let (mut fault, sent) = match missed {
            Missed::Failed { fault, sent } => (fault, sent),
            Missed::Denied(why) => {
                if let Some(class) = settles(&why) {
                    let error = refused(carrier, &why);
                    return failed(error, class, false);
                }
                let fault = Fault::new(Class::LocalPressure, why.to_string());
                denied = Some(why);
                (fault, false)
            }
        };
        let target = &way.facts.target;
        // Not the upstream's own words, which may repeat the prompt's.
        tracing::info!(
            request_id = %carrier.case.request.route.request_id,
            target = %target.name,
            sent,
            class = fault.class.name(),
            status = fault.status,
            "an attempt failed"
        );

        let class = fault.class;
        if carrier.shown.anything() && carrier.seam.is_none() {
            let error = match class {
                Class::Deadline => Error::deadline_exceeded(),
                _ => Error::incomplete(),
            };
            return failed(error, Some(class), target.same_model);
        }
        if class == Class::MidStream {
            // Nothing of it was shown: it may be made anew.
            fault.class = Class::Transport;
        }
        if class == Class::ColdStart && fault.retry_after.is_none() {
            let status = board.view(&target.name, Instant::now());
            fault.retry_after = status.and_then(|status| status.retry_after());
        }
        let now = Instant::now();
        let mut spend = |upstream: &str| board.may_retry(upstream, Instant::now());
        let rand = random_unit();
        let step = if sent {
            attempts.next(fault, now, deadline, &mut spend, rand)
        } else {
            attempts.passed_over(fault, now, deadline, rand)
        };
        match step {
            Step::Again { after } => tokio::time::sleep(after).await,
            Step::Wait { time, then } => {
                let target = &ways[then].facts.target.name;
                room::wait_at(&hybrid, &mut carrier.case, target, time).await;
            }
            Step::Hop { .. } => {}
            Step::Without { param } => ways[place].facts.target.capabilities.deny(&param),
            Step::GiveUp => {
                let now = Instant::now();
                for (place, way) in ways.iter().enumerate() {
                    let status = board.view(&way.facts.target.name, now);
                    if let Some(wait) = status.and_then(|status| status.retry_after()) {
                        attempts.told(place, wait);
                    }
                }
                let verdict = attempts.verdict().map(|(_, fault)| fault.class);
                let error = match denied.filter(|_| attempts.attempts() == 0) {
                    Some(denied) => refused(carrier, &denied),
                    None => attempts.error(),
                };
                return failed(error, verdict, false);
            }
        }
    }
}

fn failed(error: Error, class: Option<Class>, same_model: bool) -> Ended {
    Ended::Failed {
        error,
        class,
        same_model,
    }
}

/// Whether a budget that does not suffice ends the search for a target: then with the class that says whether this
/// machine may answer instead.
fn settles(denied: &Denied) -> Option<Option<Class>> {
    let Denied::Money(exceeded) = denied else {
        return None;
    };
    match exceeded.on_exceed {
        OnExceed::Next => None,
        OnExceed::Local => Some(None),
        OnExceed::Refuse => Some(Some(Class::BadRequest)),
    }
}

/// What the caller is told when the gate let nothing leave after all.
fn refused(carrier: &mut Carrier, denied: &Denied) -> Error {
    let reason = match denied {
        Denied::Money(_) => Reason::BudgetExhausted,
        Denied::PriceUnknown(_) => Reason::PriceUnknown,
        denied => Reason::EgressDenied(denied.code().to_owned()),
    };
    carrier.decision.reason = reason.clone();
    carrier.note(|note| {
        *note = RouteNote::refused(reason);
    });
    match denied {
        Denied::Money(exceeded) => {
            let resets = Duration::from_millis(until_ms(exceeded));
            Error::budget(denied.to_string(), Some(resets))
        }
        Denied::PriceUnknown(_) => Error::budget(denied.to_string(), None),
        denied => Error::no_target(denied.to_string()),
    }
}

/// One attempt, or two where the first one is slow and the operator allows it.
async fn attempt(
    carrier: &mut Carrier,
    ways: &[Way],
    place: usize,
    sent_before: u32,
) -> Result<Box<Finish>, Missed> {
    let purpose = match (&carrier.seam, sent_before) {
        (Some(_), _) => Purpose::Continuation,
        (None, 0) => Purpose::Request,
        (None, _) => Purpose::Retry,
    };
    let way = &ways[place];
    let rival = ways.get(place + 1).filter(|_| purpose == Purpose::Request);
    let begun = {
        let this = &*carrier;
        let mut first = Box::pin(begin(this, way, purpose, ways));
        let patience = rival.and_then(|_| hedge_after(this, way));
        match patience {
            None => first.await,
            Some(patience) => {
                let early = tokio::time::timeout(patience, first.as_mut()).await;
                match early {
                    Ok(begun) => begun,
                    Err(_) => match rival.filter(|rival| may_hedge(this, way, rival)) {
                        None => first.await,
                        Some(rival) => {
                            race(first, Box::pin(begin(this, rival, Purpose::Hedge, ways))).await
                        }
                    },
                }
            }
        }
    }?;
    follow(carrier, begun).await
}

/// The first of two attempts to begin an answer; the other one ends there. If one fails, the other one goes on.
async fn race(
    mut first: impl Future<Output = Result<Begun, Missed>> + Unpin,
    mut second: impl Future<Output = Result<Begun, Missed>> + Unpin,
) -> Result<Begun, Missed> {
    tokio::select! {
        begun = &mut first => match begun {
            Ok(begun) => Ok(begun),
            Err(missed) => second.await.map_err(|_| missed),
        },
        begun = &mut second => match begun {
            Ok(begun) => Ok(begun),
            Err(_) => first.await,
        },
    }
}

/// How long a first token may take before a second attempt may begin; none where none may.
fn hedge_after(carrier: &Carrier, way: &Way) -> Option<Duration> {
    let remote = &carrier.hybrid.remote;
    if !remote.config().retry.hedge {
        return None;
    }
    let tokens = carrier.case.need.prompt_tokens;
    remote.board().hedge_after(&way.facts.target.name, tokens)
}

/// Whether a rival may start beside a slow attempt, out of the slow one's budgets.
fn may_hedge(carrier: &Carrier, slow: &Way, rival: &Way) -> bool {
    let hybrid = &carrier.hybrid;
    let outgoing = carrier.case.outgoing(hybrid, rival, carrier.seam.as_ref());
    let cost = outgoing
        .ok()
        .and_then(|outgoing| worst_case(&rival.facts, &outgoing));
    let most = hybrid.remote.config().retry.hedge_max_nusd;
    cost.is_some_and(|cost| cost.nusd <= most)
        && hybrid
            .remote
            .board()
            .may_hedge(&slow.destination.upstream, Instant::now())
}

/// An answer whose first token has come.
struct Begun {
    events: BoxStream<'static, Result<Event, Fault>>,
    /// What has come, up to the first token.
    early: Vec<Event>,
    /// What the answer turned out to lack, once its finish has come.
    late: Late,
    underway: Underway,
}

/// An attempt under way: settled when it ends, however that is.
struct Underway {
    inner: Arc<Inner>,
    hybrid: Arc<Hybrid>,
    attempts: Attempts,
    way: Way,
    request_id: Arc<str>,
    key: Option<Arc<str>>,
    began: Instant,
    first_token: Option<Instant>,
    provider: Option<String>,
    request_id_upstream: Option<String>,
    /// Tokens sent, at most, and pieces received.
    usage: Usage,
    /// The money that is held for it; none once it is settled.
    held: Option<Held>,
    settled: bool,
}

impl Underway {
    fn settle(&mut self, outcome: Result<&Finish, &Fault>) {
        self.settled = true;
        let usage = match outcome {
            Ok(finish) => finish.usage,
            Err(fault) => fault.usage.as_deref().copied().unwrap_or(self.usage),
        };
        let owed = match outcome {
            Ok(_) => Owed::Used,
            Err(fault) => owed(fault, self.first_token.is_some()),
        };
        let counted = || {
            let remote = &self.hybrid.remote;
            remote.cost_nusd(&self.way.facts, self.provider.as_deref(), &usage)
        };
        let worst = self.held.as_ref().map(Held::worst).unwrap_or_default();
        let used = Amount {
            nusd: 0,
            tokens: u64::from(usage.input_tokens) + u64::from(usage.output_tokens),
        };
        let reserved = self.way.facts.target.cancel == CancelSettle::Reserved;
        let (amount, basis) = match (owed, counted()) {
            (Owed::Nothing, _) => (Amount::default(), None),
            // Whoever was cut off says nothing any more about what it cost.
            (Owed::AtLeast, _) if reserved => (worst, Some("upper_bound")),
            (_, None) => (worst, Some("upper_bound")),
            (owed, Some(Cost { nusd, reported, .. })) => {
                let basis = match owed {
                    Owed::AtLeast => Some("estimate"),
                    _ => reported.then_some("provider_reported"),
                };
                (Amount { nusd, ..used }, basis)
            }
        };
        let basis = basis.map_or_else(|| self.way.facts.basis.to_string(), str::to_owned);
        let request_id_upstream = self.request_id_upstream.clone().or_else(|| {
            let fault = outcome.err()?;
            fault.upstream_request_id.clone()
        });
        let ttft = self.first_token.map(|at| at - self.began);
        if let Some(held) = self.held.take() {
            held.settle(Bill {
                provider: self.provider.as_deref().map(Into::into),
                amount,
                usage: (owed != Owed::Nothing).then_some(usage),
                basis: basis.as_str().into(),
                ttft_ms: ttft.map(ms),
                outcome: outcome
                    .err()
                    .map_or("ok", |fault| fault.class.name())
                    .to_owned(),
                request_id_upstream: request_id_upstream.clone(),
            });
        }
        settle(Settlement {
            inner: &self.inner,
            hybrid: &self.hybrid,
            attempts: &self.attempts,
            way: &self.way,
            request_id: &self.request_id,
            key: self.key.as_ref(),
            ttft,
            provider: self.provider.clone(),
            request_id_upstream,
            outcome,
            usage,
            spent: amount,
            basis,
        });
    }
}

/// What an attempt that came to nothing is owed for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owed {
    /// It was refused, or never sent.
    Nothing,
    /// What was counted, and nothing else.
    Used,
    /// What was seen of it; it may have cost more.
    AtLeast,
}

/// A status says that nothing was made, and so does a body that was never sent. Whatever broke off later was paid
/// for as far as it went, the prompt above all, whether somebody read it or not.
fn owed(fault: &Fault, begun: bool) -> Owed {
    if fault.usage.is_some() {
        Owed::Used
    } else if !begun && (fault.unsent || fault.status.is_some_and(|status| status >= 300)) {
        Owed::Nothing
    } else {
        Owed::AtLeast
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        if !self.settled {
            let gone = Fault::new(Class::ClientGone, "nobody waits for it any more");
            self.settle(Err(&gone));
        }
    }
}

/// Sends a request to a target and waits for its first token.
async fn begin(
    carrier: &Carrier,
    way: &Way,
    purpose: Purpose,
    ways: &[Way],
) -> Result<Begun, Missed> {
    let hybrid = &carrier.hybrid;
    let request = &carrier.case.request;
    let unsent = |fault| Missed::Failed { fault, sent: false };
    let outgoing = carrier
        .case
        .outgoing(hybrid, way, carrier.seam.as_ref())
        .map_err(|e| unsent(Fault::new(Class::NotServed, e.to_string())))?;
    let expected = Expected {
        prompt_tokens: outgoing.prompt_tokens,
        output_tokens: outgoing.max_output_tokens,
    };
    let board = hybrid.remote.board();
    let target = &way.facts.target.name;
    let stands_in = carrier.decision.fallback_local;
    let ask = Ask {
        provider: way.destination.provider.as_ref(),
        has_alternative: ways.len() > 1 || stands_in,
        expected,
        turn: carrier
            .case
            .turn
            .as_ref()
            .filter(|_| purpose != Purpose::Hedge),
    };
    let ticket = match board.begin(target, Instant::now(), ask) {
        Ok(ticket) => ticket,
        Err(not_now) if stands_in => return Err(unsent(not_now.fault())),
        // With nobody else left, one request in a while is let through to see.
        Err(not_now) => {
            let all: Vec<Arc<str>> = ways
                .iter()
                .map(|way| Arc::clone(&way.facts.target.name))
                .collect();
            let trial = board.trial(&all, Instant::now(), expected, ask.turn);
            trial.map_err(|_| unsent(not_now.fault()))?
        }
    };
    if purpose == Purpose::Request {
        board.first_attempt(&way.destination.upstream, Instant::now());
    }
    let texts: Vec<&str> = outgoing.texts.iter().map(String::as_str).collect();
    let departure = Departure {
        request_id: &request.route.request_id,
        key: request.route.key.as_deref(),
        destination: &way.destination,
        purpose,
        reason: &carrier.decision.reason,
        texts: &texts,
        body: outgoing.body.clone(),
        worst: worst_case(&way.facts, &outgoing),
        basis: &way.facts.basis.to_string().into(),
        tab: Some(&carrier.tab),
    };
    let (passport, held) = match hybrid.gate.may_leave(departure).await {
        Ok(let_through) => let_through,
        Err(denied) => {
            ticket.give_back();
            return Err(Missed::Denied(denied));
        }
    };
    tell(carrier, way, &outgoing.degraded);
    let mut underway = Underway {
        inner: Arc::clone(&carrier.inner),
        hybrid: Arc::clone(hybrid),
        attempts: carrier.tally.attempts(),
        way: way.clone(),
        request_id: Arc::clone(&request.route.request_id),
        key: request.route.key.clone(),
        began: Instant::now(),
        first_token: None,
        provider: None,
        request_id_upstream: None,
        usage: Usage {
            input_tokens: outgoing.prompt_tokens,
            source: UsageSource::Estimated,
            ..Usage::default()
        },
        held,
        settled: false,
    };
    let droppable = outgoing.droppable.clone();
    let failed = |mut fault: Fault| {
        // Only what was sent can be left out.
        let unsent = |param: &mut Box<str>| !droppable.contains(&&**param);
        fault.param.take_if(unsent);
        Missed::Failed { fault, sent: true }
    };
    let deadline = carrier.case.deadline();
    let check = carrier.case.shape().cloned().map(|asked| {
        let check = move |finish: &Finish| shape::violation(&asked, &finish.generated_text);
        Arc::new(check) as Check
    });
    let started = hybrid
        .remote
        .start(&way.facts, passport, outgoing, ticket, deadline, check)
        .await;
    let mut reply = match started {
        Ok(reply) => reply,
        Err(fault) => {
            underway.settle(Err(&fault));
            return Err(failed(fault));
        }
    };
    underway.provider.clone_from(&reply.provider);
    underway
        .request_id_upstream
        .clone_from(&reply.upstream_request_id);
    let mut early = Vec::new();
    while let Some(event) = reply.events.next().await {
        match event {
            Ok(event) => {
                let is_token = matches!(event, Event::Token(_));
                early.push(event);
                if is_token {
                    underway.first_token = Some(Instant::now());
                    return Ok(Begun {
                        events: reply.events,
                        early,
                        late: reply.late,
                        underway,
                    });
                }
            }
            Err(fault) => {
                underway.settle(Err(&fault));
                return Err(failed(fault));
            }
        }
    }
    let fault = Fault::new(Class::ServerError, "the answer ended before it began");
    underway.settle(Err(&fault));
    Err(Missed::Failed { fault, sent: true })
}

/// Notes where the answer is made now.
fn tell(carrier: &Carrier, way: &Way, degraded: &[&'static str]) {
    let reason = carrier.decision.reason.clone();
    let degraded: Vec<String> = degraded.iter().map(|&word| word.to_owned()).collect();
    carrier.note(|note| {
        if note.continued_by.is_none() {
            note.side = Some(Side::Remote);
            note.reason = reason;
            note.degraded = degraded;
        }
        note.kind = Some(way.facts.target.kind.name());
        note.upstream = Some(way.destination.upstream.to_string());
        note.model = Some(way.facts.target.model.to_string());
        note.provider = way.destination.provider.as_deref().map(str::to_owned);
        note.attempts += 1;
    });
}

/// Hands an answer that has begun on to its end.
async fn follow(carrier: &mut Carrier, begun: Begun) -> Result<Box<Finish>, Missed> {
    let Begun {
        mut events,
        early,
        late,
        mut underway,
    } = begun;
    let way = underway.way.clone();
    carrier.note(|note| {
        note.upstream = Some(way.destination.upstream.to_string());
        note.kind = Some(way.facts.target.kind.name());
        note.model = Some(way.facts.target.model.to_string());
        // Not that of a rival that was slower.
        let expected = way.destination.provider.as_deref().map(str::to_owned);
        note.provider = underway.provider.clone().or(expected);
    });
    // A caller who gets its answer whole sees none of it before its end, so that it may still be made anew.
    let whole = !carrier.case.request.route.stream;
    let mut early = early.into_iter();
    let mut held = Vec::new();
    let outcome = loop {
        let event = match early.next() {
            Some(event) => event,
            None => match events.next().await {
                Some(Ok(event)) => event,
                Some(Err(fault)) => break Err(fault),
                None => {
                    let text = "the answer ended before its finish";
                    break Err(Fault::new(Class::MidStream, text));
                }
            },
        };
        underway.usage.output_tokens = underway.usage.output_tokens.saturating_add(1);
        let last = matches!(&event, Event::Token(token) if token.finish.is_some());
        if last {
            let names = late.names();
            carrier.note(|note| {
                for name in names {
                    if !note.degraded.iter().any(|known| known == name) {
                        note.degraded.push(name.to_owned());
                    }
                }
            });
        }
        if whole && !last {
            if held.len() >= MOST_HELD {
                break Err(Fault::new(Class::ServerError, "the answer has no end"));
            }
            held.push(event);
            continue;
        }
        let mut finish = None;
        for event in held.drain(..).chain([event]) {
            finish = carrier.forward(event, Some(&way)).await;
        }
        if let Some(finish) = finish {
            break Ok(finish);
        }
    };
    underway.settle(outcome.as_ref().map(|finish| &**finish));
    if outcome.is_ok() {
        carrier.answered_by = Some(way.facts.target.name.to_string());
    }
    outcome.map_err(|fault| Missed::Failed { fault, sent: true })
}

/// What an answer has cost; none where nobody knows.
pub(super) fn cost(carrier: &Carrier, way: &Way, usage: &Usage) -> Option<Cost> {
    let mut provider = None;
    carrier.note(|note| provider.clone_from(&note.provider));
    carrier
        .hybrid
        .remote
        .cost_nusd(&way.facts, provider.as_deref(), usage)
}

/// A number in \[0, 1) for jitter; without random numbers there is none.
fn random_unit() -> f64 {
    let bits = OsRng.try_next_u64().unwrap_or(0);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}
