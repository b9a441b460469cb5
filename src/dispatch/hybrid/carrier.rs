//! Carries one request to its answer: here, elsewhere, or first one and then the other.
//!
//! Until the caller has seen something, a failure is nobody's business but the record's: the next target is
//! tried, or this machine. Afterwards the caller is told the truth: nothing starts anew behind shown text, and
//! only a continuation that the operator allows, and that can be exact, goes on where it broke off. A caller
//! who gets its answer whole has seen nothing before its end.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use futures::StreamExt;
use rand_core::{OsRng, TryRngCore};
use tokio::sync::mpsc;

use super::account::{self, Tally};
use super::case::{Case, Way};
use super::{Hybrid, shape};
use crate::dispatch::admission::{self, Permit};
use crate::dispatch::local::Ready;
use crate::dispatch::{Inner, lifecycle};
use crate::egress::{Departure, Purpose};
use crate::generation::{
    ChatPiece, Error, ErrorKind, Event, EventStream, Finish, Reason, Request, RouteNote, Side,
    TokenEvent, Usage,
};
use crate::remote::{Class, Expected, Fault, Link, Loop, Remote, Step, Terms};
use crate::route::{Decision, LocalView, Outcome, Place};

/// Events that wait for a slow reader before the upstream has to wait, too.
const EVENTS_AHEAD: usize = 64;

/// How much longer than it should a request waits here before somebody else may have it.
const PATIENCE: f64 = 1.2;

/// Begins to carry a request out as decided.
pub(super) fn begin(
    inner: &Arc<Inner>,
    hybrid: &Arc<Hybrid>,
    case: Case,
    decision: Decision,
    permit: Permit,
) -> EventStream {
    let (out, events) = mpsc::channel(EVENTS_AHEAD);
    let carrier = Carrier {
        inner: Arc::clone(inner),
        hybrid: Arc::clone(hybrid),
        tally: Tally::new(&case.request),
        case,
        decision,
        permit: Some(permit),
        out,
        shown: Shown::default(),
        answered_by: None,
    };
    tokio::spawn(carrier.run());
    EventStream::new(tokio_stream::wrappers::ReceiverStream::new(events))
}

/// How one leg of the way ended.
enum Ended {
    /// With the answer.
    Answered(Box<Finish>),
    /// Without.
    Failed {
        /// What the caller is told if nobody goes on.
        error: Error,
        /// How the last attempt failed, on the far side.
        class: Option<Class>,
    },
    /// It would have waited too long here, and somebody else can have it.
    Moved(Box<Decision>),
}

/// What the caller has been given so far.
#[derive(Debug, Default)]
struct Shown {
    started: bool,
    text: String,
    tokens: u32,
    /// Whether anything but text was shown: calls, reasoning.
    more_than_text: bool,
}

impl Shown {
    fn anything(&self) -> bool {
        self.tokens > 0
    }
}

struct Carrier {
    inner: Arc<Inner>,
    hybrid: Arc<Hybrid>,
    case: Case,
    decision: Decision,
    permit: Option<Permit>,
    out: mpsc::Sender<Result<Event, Error>>,
    shown: Shown,
    /// The target that gave the answer.
    answered_by: Option<String>,
    tally: Tally,
}

impl Carrier {
    async fn run(mut self) {
        let out = self.out.clone();
        let deadline = self.case.request.deadline;
        let ended = tokio::select! {
            biased;
            () = out.closed() => None,
            ended = lifecycle::in_time(deadline, self.answer()) => {
                Some(ended.and_then(|ended| ended))
            }
        };
        // Room goes back before a slow reader takes the last event.
        self.permit = None;
        self.tally.close(
            &self.inner,
            &self.hybrid,
            &self.case,
            &self.decision,
            ended.as_ref(),
        );
        if let Some(Err(error)) = ended {
            let _ = out.send(Err(error)).await;
        }
    }

    async fn answer(&mut self) -> Result<Finish, Error> {
        let mut side = match self.decision.outcome {
            Outcome::Remote => Side::Remote,
            Outcome::Local | Outcome::Refuse(_) => Side::Local,
        };
        let mut been = BTreeSet::new();
        loop {
            been.insert(side);
            let ended = match side {
                Side::Local => self.here().await,
                Side::Remote => self.elsewhere().await,
            };
            match ended {
                Ended::Answered(finish) => {
                    self.remember(side);
                    return Ok(*finish);
                }
                Ended::Moved(decision) => {
                    self.decision = *decision;
                    side = Side::Remote;
                }
                Ended::Failed { error, class } => {
                    let other = match side {
                        Side::Local => Side::Remote,
                        Side::Remote => Side::Local,
                    };
                    if been.contains(&other) || !self.may_turn_to(other, &error, class) {
                        return Err(error);
                    }
                    side = other;
                }
            }
        }
    }

    /// Whether the other side takes over, which is then prepared for it.
    fn may_turn_to(&mut self, other: Side, error: &Error, class: Option<Class>) -> bool {
        if self.shown.anything() {
            return false;
        }
        match other {
            Side::Local => {
                let refused = matches!(
                    class,
                    Some(Class::BadRequest | Class::ContentFilter | Class::Deadline)
                );
                if refused || !self.decision.fallback_local || !self.take_room(Side::Local) {
                    return false;
                }
                self.decision.reason = Reason::RemoteUnavailable;
                true
            }
            Side::Remote => {
                let ours = matches!(
                    error.kind,
                    ErrorKind::Generation | ErrorKind::Incomplete | ErrorKind::Overloaded { .. }
                );
                if !ours {
                    return false;
                }
                let mut case = self.case.local.clone();
                case.stopped = true;
                self.redecide(case)
            }
        }
    }

    /// Decides once more with this machine as it is now; true if an upstream takes the request.
    fn redecide(&mut self, local: LocalView) -> bool {
        let again = self.hybrid.decide_with(&self.inner, &mut self.case, local);
        if again.outcome != Outcome::Remote || !self.take_room(Side::Remote) {
            return false;
        }
        self.decision = again;
        true
    }

    /// Changes the room that the request holds for room on this side.
    fn take_room(&mut self, side: Side) -> bool {
        let held = self.permit.as_ref().map(Permit::side);
        if held == Some(side) {
            return true;
        }
        let room = match side {
            Side::Local => admission::admit(&self.inner.permits, 1, side),
            Side::Remote => admission::admit(&self.hybrid.permits, 1, side),
        };
        let taken = room.is_some();
        if taken {
            self.permit = room;
        }
        taken
    }

    fn note(&self, change: impl FnOnce(&mut RouteNote)) {
        self.case.request.note.update(change);
    }

    // ---- on this machine ----

    async fn here(&mut self) -> Ended {
        let reason = self.decision.reason.clone();
        self.note(|note| {
            *note = RouteNote {
                attempts: note.attempts,
                ..RouteNote::local(reason)
            };
        });
        let events = match self.submit().await {
            Ok(events) => events,
            Err(error) => return Ended::Failed { error, class: None },
        };
        self.follow_local(events).await
    }

    async fn submit(&mut self) -> Result<EventStream, Error> {
        let inner = Arc::clone(&self.inner);
        let local = inner.local()?;
        let mut request = Request::clone(&self.case.request);
        // The whole way is accounted for, not each leg of it.
        request.accounted = false;
        let ready: Ready = match self.case.ready.take() {
            Some(ready) => ready,
            // The policy wanted somebody else, so that nothing was prepared here.
            None => {
                local
                    .prepare(&inner.config, &request, &inner.metrics)
                    .await?
            }
        };
        let permit = self.permit.take().unwrap_or_else(Permit::none);
        lifecycle::submit(&inner, local, inner.next_id(), &request, ready, permit)
    }

    async fn follow_local(&mut self, mut events: EventStream) -> Ended {
        let mut begun = false;
        loop {
            let pause = self.hybrid.route.reconsider;
            let event = if begun {
                events.next().await
            } else {
                tokio::select! {
                    event = events.next() => event,
                    () = tokio::time::sleep(pause) => {
                        if let Some(decision) = self.reconsidered() {
                            return Ended::Moved(Box::new(decision));
                        }
                        continue;
                    }
                }
            };
            begun = true;
            match event {
                Some(Ok(event)) => {
                    if let Some(finish) = self.forward(event, None).await {
                        return Ended::Answered(finish);
                    }
                }
                Some(Err(error)) => return Ended::Failed { error, class: None },
                None => {
                    let error = Error::incomplete();
                    return Ended::Failed { error, class: None };
                }
            }
        }
    }

    /// A request whose turn has not come although it should have: who else can have it? Nothing of it has run
    /// here, so nothing is lost.
    fn reconsidered(&mut self) -> Option<Decision> {
        let slo = self.hybrid.route.slo_ttft;
        let waited = self.case.request.accepted_at.elapsed();
        if self.shown.anything() || waited.as_secs_f64() < slo.as_secs_f64() * PATIENCE {
            return None;
        }
        let mut local = self.case.local.clone();
        local.queue_full = true;
        let before = self.decision.clone();
        if self.redecide(local) {
            return Some(std::mem::replace(&mut self.decision, before));
        }
        None
    }

    // ---- elsewhere ----

    async fn elsewhere(&mut self) -> Ended {
        let board = self.hybrid.remote.board().clone();
        let config = self.hybrid.remote.config();
        let (retry, wait_max) = (config.retry, config.parking.wait_max);
        let ways: Vec<Way> = self.case.ways(&self.decision);
        let link = |way: &Way| board.link(&way.facts.target.name, way.on.clone());
        let links: Vec<Link> = ways.iter().filter_map(link).collect();
        let terms = Terms {
            tokens: self.case.need.prompt_tokens + self.case.need.max_new_tokens,
            may_drop: BTreeSet::new(),
        };
        if links.is_empty() || links.len() != ways.len() {
            let error = Error::no_target("no upstream is configured for this request");
            return Ended::Failed { error, class: None };
        }
        let mut attempts = Loop::new(links, 0, retry, wait_max, terms);
        let deadline = self.case.deadline();
        loop {
            let place = attempts.current();
            let way = &ways[place];
            let tried = self.attempt(way, attempts.attempts(), ways.len() > 1).await;
            let (fault, sent) = match tried {
                Ok(finish) => return Ended::Answered(finish),
                Err(failed) => failed,
            };
            tracing::info!(
                request_id = %self.case.request.route.request_id,
                target = %way.facts.target.name,
                sent,
                class = fault.class.name(),
                status = fault.status,
                message = %fault.message,
                "an attempt failed"
            );
            let class = fault.class;
            let mut fault = fault;
            if class == Class::ColdStart && fault.retry_after.is_none() {
                let status = board.view(&way.facts.target.name, Instant::now());
                fault.retry_after = status.and_then(|status| status.retry_after());
            }
            if self.shown.anything() {
                return Ended::Failed {
                    error: Error::incomplete(),
                    class: Some(class),
                };
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
                Step::Wait { time, .. } => tokio::time::sleep(time).await,
                Step::Hop { .. } => {}
                Step::Without { .. } | Step::GiveUp => {
                    return Ended::Failed {
                        error: attempts.error(),
                        class: attempts.verdict().map(|(_, fault)| fault.class),
                    };
                }
            }
        }
    }

    /// One attempt. Errors: how it failed, and whether anything was sent.
    async fn attempt(
        &mut self,
        way: &Way,
        sent_before: u32,
        has_other: bool,
    ) -> Result<Box<Finish>, (Fault, bool)> {
        let hybrid = Arc::clone(&self.hybrid);
        let outgoing = self
            .case
            .outgoing(&hybrid, way)
            .map_err(|e| (Fault::new(Class::NotServed, e.to_string()), false))?;
        let expected = Expected {
            prompt_tokens: outgoing.prompt_tokens,
            output_tokens: outgoing.max_output_tokens,
        };
        let board = hybrid.remote.board();
        let target = &way.facts.target.name;
        let other = has_other || self.decision.fallback_local;
        let ticket = match board.begin(target, Instant::now(), other, expected) {
            Ok(ticket) => ticket,
            Err(not_now) if other => return Err((not_now.fault(), false)),
            // With nobody else left, one request in a while is let through to see.
            Err(not_now) => board
                .trial(&[Arc::clone(target)], Instant::now(), expected)
                .map_err(|_| (not_now.fault(), false))?,
        };
        if sent_before == 0 {
            board.first_attempt(&way.destination.upstream, Instant::now());
        }
        let texts: Vec<&str> = outgoing.texts.iter().map(String::as_str).collect();
        let purpose = match (sent_before, self.shown.anything()) {
            (_, true) => Purpose::Continuation,
            (0, false) => Purpose::Request,
            (_, false) => Purpose::Retry,
        };
        let departure = Departure {
            request_id: &self.case.request.route.request_id,
            key: self.case.request.route.key.as_deref(),
            destination: &way.destination,
            purpose,
            reason: &self.decision.reason,
            texts: &texts,
            body: outgoing.body.clone(),
            worst_cost_nusd: Remote::worst_cost_nusd(&way.facts, &outgoing),
        };
        let passport = match hybrid.gate.may_leave(departure).await {
            Ok(passport) => passport,
            Err(denied) => {
                drop(ticket);
                return Err((Fault::new(Class::NotServed, denied.to_string()), false));
            }
        };
        let reason = self.decision.reason.clone();
        let degraded: Vec<String> = outgoing.degraded.iter().map(|&d| d.to_owned()).collect();
        self.note(|note| {
            note.side = Some(Side::Remote);
            note.reason = reason;
            note.upstream = Some(way.destination.upstream.to_string());
            note.model = Some(way.facts.target.model.to_string());
            note.provider = way.destination.provider.as_deref().map(str::to_owned);
            note.attempts += 1;
            note.degraded = degraded;
        });
        let began = Instant::now();
        let reply = hybrid
            .remote
            .start(&way.facts, passport, outgoing, ticket, self.case.deadline())
            .await;
        let mut who = (None, None);
        let outcome = match reply {
            Ok(mut reply) => {
                who = (reply.provider.clone(), reply.upstream_request_id.clone());
                if let Some(provider) = &reply.provider {
                    self.note(|note| note.provider = Some(provider.clone()));
                }
                let outcome = self.follow_remote(way, &mut reply.events).await;
                outcome.map_err(|mut fault| {
                    fault.provider = fault.provider.or_else(|| reply.provider.clone());
                    fault
                })
            }
            Err(fault) => Err(fault),
        };
        let cost = match &outcome {
            Ok(finish) => self.cost(way, &finish.usage),
            Err(_) => None,
        };
        let nusd = cost.map(|(nusd, _)| nusd);
        let first = self.tally.first_token().filter(|at| *at >= began);
        let attempt = account::attempted(
            way,
            began.elapsed(),
            first.map(|at| at - began),
            &outcome,
            who,
            nusd,
        );
        self.tally.attempted(attempt);
        let ended = outcome.as_ref().err();
        self.inner.metrics.count_attempt(
            &way.destination.upstream,
            ended.map_or("ok", |fault| fault.class.name()),
        );
        account::settle(&hybrid, way, &self.case, &outcome, nusd);
        if outcome.is_ok() {
            self.answered_by = Some(target.to_string());
        }
        outcome.map_err(|fault| (fault, true))
    }

    /// Nano-USD that an answer has cost, and whether that is an estimate.
    fn cost(&self, way: &Way, usage: &Usage) -> Option<(u64, bool)> {
        let mut provider = None;
        self.note(|note| provider.clone_from(&note.provider));
        self.hybrid
            .remote
            .cost_nusd(&way.facts, provider.as_deref(), usage)
    }

    async fn follow_remote<S>(&mut self, way: &Way, events: &mut S) -> Result<Box<Finish>, Fault>
    where
        S: futures::Stream<Item = Result<Event, Fault>> + Unpin,
    {
        // A caller who gets its answer whole sees none of it before its end, so that it may still be made anew.
        let whole = !self.case.request.route.stream;
        let mut held = Vec::new();
        while let Some(event) = events.next().await {
            let event = event?;
            if let Event::Token(TokenEvent {
                finish: Some(finish),
                ..
            }) = &event
                && let Some(asked) = self.case.shape()
                && let Some(problem) = shape::violation(asked, &finish.generated_text)
            {
                return Err(Fault::new(Class::SchemaViolation, problem));
            }
            if whole {
                let last = matches!(&event, Event::Token(token) if token.finish.is_some());
                held.push(event);
                if !last {
                    continue;
                }
                for event in held.drain(..) {
                    if let Some(finish) = self.forward(event, Some(way)).await {
                        return Ok(finish);
                    }
                }
            } else if let Some(finish) = self.forward(event, Some(way)).await {
                return Ok(finish);
            }
        }
        Err(Fault::new(
            Class::MidStream,
            "the answer ended before its finish",
        ))
    }

    // ---- to the caller ----

    /// Hands an event on; returns the finish once it has gone out.
    async fn forward(&mut self, event: Event, way: Option<&Way>) -> Option<Box<Finish>> {
        match event {
            Event::Started(started) => {
                if !std::mem::replace(&mut self.shown.started, true) {
                    let _ = self.out.send(Ok(Event::Started(started))).await;
                }
                None
            }
            Event::Token(mut event) => {
                self.tally.token(way.map_or(Side::Local, |_| Side::Remote));
                self.shown.tokens += 1;
                self.shown.text += &event.text;
                let pieces = event.pieces.as_deref().unwrap_or_default();
                self.shown.more_than_text |= pieces
                    .iter()
                    .any(|piece| !matches!(piece, ChatPiece::Content(_)));
                if let (Some(finish), Some(way)) = (&mut event.finish, way) {
                    finish.timings = self.tally.timings(self.case.request.accepted_at);
                    // Whoever reads the end reads its cost, too.
                    let cost = self.cost(way, &finish.usage);
                    self.note(|note| {
                        note.cost_nusd = cost.map(|(nusd, _)| nusd);
                        note.cost_is_estimate = cost.is_some_and(|(_, estimate)| estimate);
                    });
                }
                let finish = event.finish.clone().map(Box::new);
                let _ = self.out.send(Ok(Event::Token(event))).await;
                finish
            }
        }
    }

    /// Where the conversation was answered, so that it stays there.
    fn remember(&self, side: Side) {
        let Some(session) = self.case.session else {
            return;
        };
        let target = match side {
            Side::Remote => self.answered_by.clone(),
            Side::Local => None,
        };
        let place = Place { side, target };
        self.hybrid
            .lock_sessions()
            .note(session, place, Instant::now());
    }
}

/// A number in \[0, 1) for jitter; without random numbers there is none.
fn random_unit() -> f64 {
    let bits = OsRng.try_next_u64().unwrap_or(0);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}
