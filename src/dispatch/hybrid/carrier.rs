//! Carries one request to its answer: here, elsewhere, or first one and then the other.
//!
//! Until the caller has seen something, a failure is nobody's business but the record's: the next target is
//! tried, or this machine. Afterwards the caller is told the truth: nothing starts anew behind shown text. Only
//! where the operator allows it does an answer that broke off go on elsewhere (`seam.rs`), and only if that can
//! be exact. A caller who gets its answer whole has seen nothing before its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use futures::StreamExt;
use tokio::sync::mpsc;

use super::account::{self, Decided, Tally};
use super::case::{Case, Way};
use super::seam::{self, Seam};
use super::{Hybrid, attempt};
use crate::dispatch::admission::Permit;
use crate::dispatch::local::Ready;
use crate::dispatch::{Inner, admit, lifecycle};
use crate::generation::{
    ChatPiece, Error, ErrorKind, Event, EventStream, Finish, Reason, Request, RouteNote, Side,
};
use crate::ledger::Tab;
use crate::remote::Class;
use crate::route::{Decision, Outcome, Place};

/// Events that wait for a slow reader before the upstream has to wait, too.
const EVENTS_AHEAD: usize = 64;

/// Begins to carry a request out as decided.
pub(super) fn begin(
    inner: &Arc<Inner>,
    hybrid: &Arc<Hybrid>,
    case: Case,
    decision: Decision,
    permit: Permit,
) -> EventStream {
    let (out, events) = mpsc::channel(EVENTS_AHEAD);
    let tab = admit(&hybrid.ledger, &case.request, &case.name);
    let carrier = Carrier {
        tab,
        inner: Arc::clone(inner),
        hybrid: Arc::clone(hybrid),
        tally: Tally::new(&case.request, case.opened),
        case,
        at_first: decision.reason.clone(),
        decision,
        permit: Some(permit),
        out,
        shown: Shown::default(),
        seam: None,
        answered_by: None,
    };
    tokio::spawn(carrier.run());
    EventStream::new(tokio_stream::wrappers::ReceiverStream::new(events))
}

/// How one leg of the way ended.
pub(super) enum Ended {
    /// With the answer.
    Answered(Box<Finish>),
    /// Without.
    Failed {
        /// What the caller is told if nobody goes on.
        error: Error,
        /// How the last attempt failed, on the far side.
        class: Option<Class>,
        /// Whether what failed has the local model's own weights.
        same_model: bool,
    },
    /// It would have waited too long here, and somebody else can have it.
    Moved(Box<Decision>),
}

impl Ended {
    fn failed_here(error: Error) -> Self {
        Self::Failed {
            error,
            class: None,
            same_model: true,
        }
    }
}

/// What the caller has been given so far.
#[derive(Debug, Default)]
pub(super) struct Shown {
    started: bool,
    /// The text, as long as it may have to be continued.
    pub(super) text: String,
    pub(super) tokens: u32,
    /// Whether anything but text was shown: calls, reasoning.
    pub(super) more_than_text: bool,
}

impl Shown {
    pub(super) fn anything(&self) -> bool {
        self.tokens > 0
    }
}

pub(super) struct Carrier {
    /// The request's account.
    pub(super) tab: Tab,
    pub(super) inner: Arc<Inner>,
    pub(super) hybrid: Arc<Hybrid>,
    pub(super) case: Case,
    pub(super) decision: Decision,
    /// Why it was decided so, before anybody was asked.
    at_first: Reason,
    permit: Option<Permit>,
    out: mpsc::Sender<Result<Event, Error>>,
    pub(super) shown: Shown,
    /// Where an answer that broke off goes on.
    pub(super) seam: Option<Seam>,
    /// The target that gave the answer.
    pub(super) answered_by: Option<String>,
    pub(super) tally: Tally,
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
        // So does the answer, before it is written down.
        tokio::task::yield_now().await;
        self.tally.close(
            &self.inner,
            &self.hybrid,
            self.case,
            self.tab,
            Decided {
                decision: &self.decision,
                at_first: self.at_first,
            },
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
        let mut failed = Vec::new();
        loop {
            let ended = match side {
                Side::Local => self.here().await,
                Side::Remote => Box::pin(attempt::elsewhere(self)).await,
            };
            self.case.turn = None;
            match ended {
                Ended::Answered(finish) => {
                    self.remember(side);
                    return Ok(*finish);
                }
                Ended::Moved(decision) => {
                    self.follow(*decision);
                    side = Side::Remote;
                }
                Ended::Failed {
                    error,
                    class,
                    same_model,
                } => {
                    failed.push(side);
                    let other = match side {
                        Side::Local => Side::Remote,
                        Side::Remote => Side::Local,
                    };
                    let turns = !failed.contains(&other)
                        && self.may_turn_to(other, &error, class, same_model);
                    if !turns {
                        return Err(error);
                    }
                    side = other;
                }
            }
        }
    }

    /// Whether the other side takes over; it is prepared for that then.
    fn may_turn_to(
        &mut self,
        other: Side,
        error: &Error,
        class: Option<Class>,
        same_model: bool,
    ) -> bool {
        if self.shown.anything() {
            let broke_off = match class {
                None => matches!(error.kind, ErrorKind::Generation | ErrorKind::Incomplete),
                Some(class) => seam::breaks_off(class),
            };
            if !broke_off || !seam::may_go_on(self, other, same_model) {
                return false;
            }
            if other == Side::Remote && !self.redecide_without_here() {
                return false;
            }
            if other == Side::Local && !self.take_room(Side::Local) {
                return false;
            }
            self.seam = Some(Seam::behind(&self.shown.text, self.shown.tokens));
            self.note(|note| note.continued_by = Some(other));
            return true;
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
                ours && self.redecide_without_here()
            }
        }
    }

    /// Decides once more, now that this machine has failed; true if an upstream takes the request.
    fn redecide_without_here(&mut self) -> bool {
        let mut local = self.case.local.clone();
        local.stopped = true;
        match self.hybrid.decide_again(&self.inner, &mut self.case, local) {
            Some(decision) if self.take_room(Side::Remote) => {
                self.follow(decision);
                true
            }
            _ => false,
        }
    }

    /// Takes another decision up.
    fn follow(&mut self, decision: Decision) {
        self.at_first = decision.reason.clone();
        self.decision = decision;
    }

    /// Changes the room that the request holds for room on this side.
    fn take_room(&mut self, side: Side) -> bool {
        if self.permit.as_ref().map(Permit::side) == Some(side) {
            return true;
        }
        let room = self.hybrid.room(&self.inner, side);
        let taken = room.is_some();
        if taken {
            self.permit = room;
        }
        taken
    }

    pub(super) fn note(&self, change: impl FnOnce(&mut RouteNote)) {
        self.case.request.note.update(change);
    }

    // ---- on this machine ----

    async fn here(&mut self) -> Ended {
        let reason = self.decision.reason.clone();
        if self.seam.is_none() {
            self.note(|note| {
                *note = RouteNote {
                    attempts: note.attempts,
                    ..RouteNote::local(reason)
                };
            });
        }
        self.tab.begin();
        match self.submit().await {
            Ok((events, begun)) => self.follow_local(events, &begun).await,
            Err(error) => Ended::failed_here(error),
        }
    }

    /// Hands the request to the engine; the flag is set when its first step begins.
    async fn submit(&mut self) -> Result<(EventStream, Arc<AtomicBool>), Error> {
        let inner = Arc::clone(&self.inner);
        let local = inner.local()?;
        let mut request = match &self.seam {
            Some(seam) => seam.rest_of(&self.case.request),
            None => Request::clone(&self.case.request),
        };
        // The whole way is accounted for, not each leg of it.
        request.accounted = false;
        let prepared = self.case.ready.take().filter(|_| self.seam.is_none());
        let ready: Ready = match prepared {
            Some(ready) => ready,
            // The policy wanted somebody else, so that nothing was prepared here.
            None => {
                local
                    .prepare(&inner.config, &request, &inner.metrics)
                    .await?
            }
        };
        let permit = self.permit.take().unwrap_or_else(Permit::none);
        let begun = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&begun);
        let id = inner.next_id();
        let events = lifecycle::submit(&inner, local, id, &request, ready, permit, flag, None)?;
        Ok((events, begun))
    }

    async fn follow_local(&mut self, mut events: EventStream, begun: &AtomicBool) -> Ended {
        let mut waits = self.seam.is_none();
        loop {
            let event = if waits {
                let pause = self.hybrid.route.reconsider;
                tokio::select! {
                    event = events.next() => event,
                    () = tokio::time::sleep(pause) => {
                        // What has begun is never moved: its prompt is being computed.
                        waits = !begun.load(Ordering::Relaxed);
                        if waits && let Some(decision) = self.reconsidered() {
                            return Ended::Moved(Box::new(decision));
                        }
                        continue;
                    }
                }
            } else {
                events.next().await
            };
            waits = false;
            match event {
                Some(Ok(event)) => {
                    if let Some(finish) = self.forward(event, None).await {
                        return Ended::Answered(finish);
                    }
                }
                Some(Err(error)) => return Ended::failed_here(error),
                None => return Ended::failed_here(Error::incomplete()),
            }
        }
    }

    /// A request whose turn has not come although it should have: who else can have it? Nothing of it has run
    /// here, so nothing is lost.
    fn reconsidered(&mut self) -> Option<Decision> {
        let waited = self.case.request.accepted_at.elapsed();
        if waited < self.hybrid.route.slo_ttft {
            return None;
        }
        let decision = self
            .hybrid
            .reconsider(&self.inner, &mut self.case, waited)?;
        self.take_room(Side::Remote).then_some(decision)
    }

    // ---- to the caller ----

    /// Hands an event on; returns the finish once it has gone out. `way` is where it comes from, if not from here.
    pub(super) async fn forward(&mut self, event: Event, way: Option<&Way>) -> Option<Box<Finish>> {
        match event {
            Event::Started(started) => {
                if !std::mem::replace(&mut self.shown.started, true) {
                    let _ = self.out.send(Ok(Event::Started(started))).await;
                }
                None
            }
            Event::Token(mut event) => {
                if let Some(seam) = &mut self.seam {
                    seam.join(&mut event);
                }
                self.tally.token(way.map_or(Side::Local, |_| Side::Remote));
                self.shown.tokens += 1;
                if self.hybrid.keeps_text() {
                    self.shown.text += &event.text;
                }
                let pieces = event.pieces.as_deref().unwrap_or_default();
                self.shown.more_than_text |= pieces
                    .iter()
                    .any(|piece| !matches!(piece, ChatPiece::Content(_)));
                // Whoever reads the end reads its cost, too.
                match (&mut event.finish, way) {
                    (Some(finish), Some(way)) => {
                        finish.timings = self.tally.timings(self.case.request.accepted_at);
                        let cost = attempt::cost(self, way, &finish.usage);
                        let cost = cost.map(|cost| (cost.nusd, cost.estimate));
                        self.note(|note| note.add_cost(cost));
                    }
                    // What somebody else has begun is saved by nobody.
                    (Some(finish), None) if self.seam.is_none() => {
                        let saved = account::saved(&self.hybrid, &self.case, &finish.usage);
                        self.note(|note| note.saved_nusd = saved.map(|(nusd, _)| nusd));
                    }
                    (_, _) => {}
                }
                let finish = event.finish.clone().map(Box::new);
                let _ = self.out.send(Ok(Event::Token(event))).await;
                finish
            }
        }
    }

    /// Where the conversation was answered, so that it stays there. Where somebody had to stand in, it doesn't.
    fn remember(&self, side: Side) {
        let stood_in = self.decision.side() != Some(side)
            || self.seam.is_some()
            || self.decision.reason == Reason::RemoteUnavailable;
        let Some(session) = self.case.session.filter(|_| !stood_in) else {
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
