//! One request as routing sees it: what it needs, what this machine could do for it, who else could.
//!
//! Looking is free of consequences: nothing is promised, sent or written down here. Targets are looked at only
//! when this machine is not the plain answer, because making a body for each of them costs more than deciding.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value as Json;

use super::Hybrid;
use super::seam::Seam;
use crate::dispatch::Inner;
use crate::dispatch::local::{Local, Ready};
use crate::dispatch::untemplate::untemplate;
use crate::egress::Destination;
use crate::engine::{LoadSnapshot, SequenceLoad};
use crate::generation::{ChatAsk, Error, ErrorKind, Grammar, Policy, Request, Side};
use crate::ledger::Amount;
use crate::remote::catalog::{Facts, Shape};
use crate::remote::{self, Known, Outgoing, Remote, TargetStatus, Turn};
use crate::route::{
    self, Arrival, BlockedBy, Decision, EngineView, Features, LocalView, ModelRoute, Need,
    Newcomer, SessionKey, Sight, StepTimes, TargetState, TargetView, Work,
};

/// How long a request without a deadline of its own may take.
const NO_DEADLINE: Duration = Duration::from_secs(24 * 3600);

/// One request, looked at.
pub(super) struct Case {
    pub(super) request: Arc<Request>,
    /// The same as a conversation, where its raw prompt was one.
    told: Option<Arc<Request>>,
    /// What the engine needs, if this machine can answer.
    pub(super) ready: Option<Ready>,
    /// What the caller is told if only this machine may answer and cannot.
    pub(super) refusal: Option<Error>,
    pub(super) need: Need,
    pub(super) local: LocalView,
    pub(super) model: Arc<ModelRoute>,
    /// The name under which the model's state is kept.
    pub(super) name: String,
    pub(super) session: Option<SessionKey>,
    pub(super) texts: Vec<String>,
    /// Tokens that the answer is expected to have, here and elsewhere.
    pub(super) expected_tokens: u32,
    /// When it had been looked at.
    pub(super) opened: Instant,
    /// Its place among those who wait for room at upstreams.
    pub(super) turn: Option<Turn>,
    known: Known,
    looked: Vec<Way>,
    /// What was known of the targets, where they were looked at.
    pub(super) views: Vec<TargetView>,
    /// What was decided upon last, for the record: this machine as it was, and when.
    pub(super) upon: (LocalView, u64),
    /// What the prompt looks like, where somebody wants to know.
    pub(super) features: Features,
}

/// Most that a request can come to at a target; none when nobody knows its price.
pub(super) fn worst_case(facts: &Facts, outgoing: &Outgoing) -> Option<Amount> {
    let (input, output) = Remote::worst_tokens(outgoing);
    Some(Amount {
        nusd: facts.target.price?.cost_nusd(input, 0, output),
        tokens: input.saturating_add(output),
    })
}

/// One target, as far as a request goes there.
#[derive(Debug, Clone)]
pub(super) struct Way {
    pub(super) facts: Facts,
    pub(super) destination: Destination,
    pub(super) on: BTreeSet<String>,
    /// Whether it gets the conversation that the raw prompt was.
    told: bool,
}

impl Case {
    /// Looks at a request; `held` says for which side its room was given.
    ///
    /// Errors: what is wrong with it whoever would answer.
    pub(super) async fn open(
        inner: &Arc<Inner>,
        hybrid: &Hybrid,
        request: Request,
        held: Side,
    ) -> Result<Self, Error> {
        let (name, model) = hybrid.model_of(request.route.model.as_deref());
        let texts = texts_of(&request);
        let borrowed: Vec<&str> = texts.iter().map(String::as_str).collect();
        if let Err(denied) = hybrid.gate.screen(&borrowed) {
            return Err(Error::invalid(denied.to_string()));
        }
        let policy = hybrid.policy_of(request.route.key.as_deref());
        let mut need = Need {
            policy,
            asked: request.route.policy,
            may_widen: hybrid.may_widen(request.route.key.as_deref()),
            max_cost_nusd: request.route.max_cost_nusd,
            strict: request.route.strict,
            ..Need::default()
        };
        let mut local = LocalView {
            served: model.local && inner.local.is_some(),
            queue_full: held == Side::Remote,
            ..LocalView::default()
        };
        let mut ready = None;
        let mut refusal = None;
        let unsupported = request
            .chat
            .as_ref()
            .and_then(|ask| ask.unsupported.clone());
        let wanted = need.effective_policy() != Policy::RemoteOnly;
        if let (Some(here), true, true) = (&inner.local, local.served, wanted) {
            let outcome = match unsupported {
                Some(error) => Err(error),
                None => here.prepare(&inner.config, &request, &inner.metrics).await,
            };
            match outcome {
                Ok(prepared) => ready = Some(prepared),
                Err(error) => match obstacle(&request, &error) {
                    Obstacle::TooLong => local.too_long = true,
                    Obstacle::Cannot(what) => local.unsupported = Some(what.to_owned()),
                    Obstacle::Wrong => return Err(error),
                },
            }
            if let Some(error) = local_error(&local, &request, inner) {
                refusal = Some(error);
            }
        }
        let counted = ready.as_ref().map(|ready| ready.prompt.len() as u32);
        need.prompt_tokens = counted.unwrap_or_else(|| remote::estimate_tokens(&request));
        need.max_new_tokens = match (&ready, request.max_new_tokens) {
            (Some(ready), _) => ready.max_new_tokens as u32,
            (None, Some(most)) => most.get(),
            (None, None) => hybrid.remote.config().default_max_tokens,
        };
        need.remaining_ms = left_ms(&request);
        need.rule = route::first_hit(
            &hybrid.route.rules,
            &Sight {
                model: &name,
                key: request.route.key.as_deref(),
                route: &request.route.path,
                prompt_tokens: need.prompt_tokens,
                texts: &borrowed,
                headers: &request.route.headers,
                tools: offers_tools(&request),
                stream: request.route.stream,
            },
        );
        let features = if hybrid.wants_features() {
            features_of(&request, &need)
        } else {
            Features::default()
        };
        need.hardness = hybrid.hardness(&features);
        let session = session_of(&request, &name);
        need.sticky = session
            .as_ref()
            .filter(|_| goes_on(&request))
            .and_then(|session| hybrid.lock_sessions().find(session, Instant::now()));
        let expected_tokens = hybrid.expected_tokens(&need, &request);
        if let Some(here) = &inner.local {
            hybrid.look_here(here, &need, expected_tokens, &mut local);
        }
        let special_text = ready.as_ref().zip(inner.local.as_ref());
        let special_text = special_text.map(|(ready, here)| {
            // The first token may be the tokenizer's own.
            let own = usize::from(request.add_special_tokens && here.bos.is_some());
            let mut written = ready.prompt.iter().skip(own);
            written.any(|id| here.tokenizer.is_special(*id))
        });
        let known = Known {
            input_tokens: counted,
            special_text,
            untemplated: false,
        };
        Ok(Self {
            request: Arc::new(request),
            told: None,
            ready,
            refusal,
            need,
            local,
            model,
            name,
            session,
            texts,
            expected_tokens,
            opened: Instant::now(),
            turn: None,
            known,
            looked: Vec::new(),
            views: Vec::new(),
            upon: (LocalView::default(), 0),
            features,
        })
    }

    /// When the caller stops caring.
    pub(super) fn deadline(&self) -> Instant {
        let request = &self.request;
        request
            .deadline
            .unwrap_or_else(|| request.accepted_at + NO_DEADLINE)
    }

    /// Looks at the caller's clock again, because time has passed.
    pub(super) fn look_at_clock(&mut self) {
        self.need.remaining_ms = left_ms(&self.request);
    }

    /// The shape that the answer must have, as the caller asked for it.
    pub(super) fn shape(&self) -> Option<&Grammar> {
        match &self.request.chat {
            Some(ask) => ask.shape.as_ref(),
            None => self.request.grammar.as_ref(),
        }
    }

    /// The targets of a plan, in its order.
    pub(super) fn ways(&self, decision: &Decision) -> Vec<Way> {
        let way = |name: &str| {
            let mut looked = self.looked.iter();
            looked.find(|way| &*way.facts.target.name == name).cloned()
        };
        decision
            .plan
            .iter()
            .filter_map(|hop| {
                let mut way = way(&hop.target)?;
                way.on.clone_from(&hop.on);
                Some(way)
            })
            .collect()
    }

    /// A request's body for a target.
    ///
    /// Errors: the field that the target cannot have.
    pub(super) fn outgoing(
        &self,
        hybrid: &Hybrid,
        way: &Way,
        seam: Option<&Seam>,
    ) -> Result<Outgoing, remote::Ineligible> {
        if let Some(seam) = seam {
            let rest = seam.rest_of(&self.request);
            let known = Known {
                input_tokens: None,
                ..self.known
            };
            return hybrid.translate(&way.facts, &rest, &known, self.need.strict);
        }
        let (request, known) = self.variant(way.told);
        hybrid.translate(&way.facts, request, &known, self.need.strict)
    }

    fn variant(&self, told: bool) -> (&Request, Known) {
        match &self.told {
            Some(request) if told => (
                request,
                Known {
                    untemplated: true,
                    ..self.known
                },
            ),
            _ => (&self.request, self.known),
        }
    }

    /// Forgets what was seen of the targets, because time has passed.
    pub(super) fn look_away(&mut self) {
        self.views.clear();
        self.looked.clear();
    }

    /// Looks at every target of the model's chain.
    pub(super) fn look_elsewhere(&mut self, inner: &Inner, hybrid: &Hybrid) {
        if !self.views.is_empty() {
            return;
        }
        let shape = Shape {
            input_tokens: self.need.prompt_tokens,
            output_tokens: self.need.max_new_tokens,
            tools: offers_tools(&self.request),
            structured_output: self.shape().is_some(),
        };
        let board = hybrid.remote.board();
        let statuses = board.views_for(Instant::now(), self.turn.as_ref());
        let model = Arc::clone(&self.model);
        for hop in &model.hops {
            let Some((facts, destination)) = hybrid.remote.look(&hop.target, &shape) else {
                continue;
            };
            let status = statuses.iter().find(|status| *status.target == *hop.target);
            let Some(status) = status else { continue };
            if matches!(
                status.state,
                remote::TargetState::Paused | remote::TargetState::Waking { .. }
            ) {
                hybrid.remote.board().want(&hop.target);
            }
            let (told, outgoing) = self.translated(inner, hybrid, &facts);
            let outgoing = self.within_context(&facts, outgoing);
            let texts: Vec<&str> = self.texts.iter().map(String::as_str).collect();
            let key = self.request.route.key.as_deref();
            let egress = hybrid.gate.permits(key, &destination, &texts);
            let worst = outgoing.as_ref().ok();
            let worst = worst.and_then(|outgoing| worst_case(&facts, outgoing));
            let (money_left_nusd, over_budget) = hybrid.money(&self.request, &destination, worst);
            self.views.push(TargetView {
                target: hop.target.clone(),
                upstream: destination.upstream.to_string(),
                model: destination.model.to_string(),
                provider: destination.provider.as_deref().map(str::to_owned),
                state: state(status, &facts, self.need.remaining_ms),
                expected: Some(self.expected(status)),
                worst_cost_nusd: worst.map(|worst| worst.nusd),
                money_left_nusd,
                over_budget,
                eligible: match outgoing {
                    Ok(outgoing) => Ok(outgoing.degraded.iter().map(|&d| d.to_owned()).collect()),
                    Err(ineligible) => Err(ineligible.field.to_owned()),
                },
                egress: egress.map_err(|denied| denied.code().to_owned()),
                on: hop.on.clone(),
                max_cost_nusd: hop.max_cost_nusd,
            });
            self.looked.push(Way {
                facts,
                destination,
                on: hop.on.clone(),
                told,
            });
        }
        self.offer_a_trial();
    }

    /// A target whose context is known to be too short is not sent what it must refuse.
    fn within_context(
        &self,
        facts: &Facts,
        outgoing: Result<Outgoing, remote::Ineligible>,
    ) -> Result<Outgoing, remote::Ineligible> {
        let most = facts.target.context_length;
        let too_long = |most: u32| self.need.prompt_tokens >= most;
        match (outgoing, most) {
            (Ok(_), Some(most)) if too_long(most) => Err(remote::Ineligible {
                field: "inputs",
                why: format!("the prompt is longer than the target's context of {most} tokens"),
            }),
            (outgoing, _) => outgoing,
        }
    }

    /// Where every target is left out after failures and this machine cannot stand in, one request in a while
    /// is let through to see: the board says which.
    fn offer_a_trial(&mut self) {
        let usable = |view: &TargetView| !matches!(view.state, TargetState::Blocked { .. });
        let local_can =
            self.local.served && !self.local.too_long && self.local.unsupported.is_none();
        let for_others = self.need.effective_policy() == Policy::RemoteOnly;
        if self.views.iter().any(usable) || (local_can && !for_others) {
            return;
        }
        for view in &mut self.views {
            if let TargetState::Blocked {
                by: BlockedBy::Breaker,
                ..
            } = view.state
            {
                view.state = TargetState::HalfOpen;
            }
        }
    }

    /// The body for a target; a raw prompt that a chat-only target cannot have goes as the conversation it was.
    fn translated(
        &mut self,
        inner: &Inner,
        hybrid: &Hybrid,
        facts: &Facts,
    ) -> (bool, Result<Outgoing, remote::Ineligible>) {
        let strict = self.need.strict;
        let plain = hybrid.translate(facts, &self.request, &self.known, strict);
        let refused = matches!(&plain, Err(ineligible) if ineligible.field == "inputs");
        if !refused || self.request.chat.is_some() {
            return (false, plain);
        }
        if self.told.is_none() {
            self.told = inner
                .local
                .as_ref()
                .and_then(|local| told(local, &self.request));
        }
        match &self.told {
            Some(_) => {
                let (request, known) = self.variant(true);
                (true, hybrid.translate(facts, request, &known, strict))
            }
            None => (false, plain),
        }
    }

    fn expected(&self, status: &TargetStatus) -> route::Expected {
        let (ttft, e2e) = status.expected(self.need.prompt_tokens, self.expected_tokens);
        let wait = status.retry_after().unwrap_or_default();
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        route::Expected {
            ttft_ms: ms(ttft + wait),
            e2e_ms: ms(e2e + wait),
        }
    }
}

/// What keeps this machine from answering.
enum Obstacle {
    TooLong,
    Cannot(&'static str),
    /// The request is wrong whoever would answer.
    Wrong,
}

fn obstacle(request: &Request, error: &Error) -> Obstacle {
    match error.kind {
        ErrorKind::TooLong => Obstacle::TooLong,
        ErrorKind::Template => Obstacle::Cannot("template"),
        ErrorKind::Tool => Obstacle::Cannot("tools"),
        ErrorKind::Invalid if request.grammar.is_some() => Obstacle::Cannot("grammar"),
        _ => Obstacle::Wrong,
    }
}

/// What the caller is told where only this machine may answer.
fn local_error(local: &LocalView, request: &Request, inner: &Inner) -> Option<Error> {
    if local.too_long {
        let most = inner.config.max_total_tokens;
        return Some(Error::too_long(format!(
            "`inputs` tokens + `max_new_tokens` must be <= {most}"
        )));
    }
    local.unsupported.as_ref()?;
    request
        .chat
        .as_ref()
        .and_then(|ask| ask.unsupported.clone())
}

/// A raw prompt as the conversation that the local template makes it of.
fn told(local: &Local, request: &Request) -> Option<Arc<Request>> {
    let template = local.template.as_ref()?;
    let now = chrono::Local::now().naive_local();
    let conversation = untemplate(template, &request.prompt, now)?;
    Some(Arc::new(Request {
        chat: Some(Arc::new(ChatAsk {
            conversation,
            shape: request.grammar.clone(),
            unsupported: None,
        })),
        ..request.clone()
    }))
}

/// Every text of a request that somebody wrote, wherever it stands.
fn texts_of(request: &Request) -> Vec<String> {
    let mut texts: Vec<String> = request.stop.clone();
    texts.extend(request.grammar.as_ref().map(shape_text));
    let Some(ask) = &request.chat else {
        texts.push(request.prompt.clone());
        return texts;
    };
    texts.extend(ask.shape.as_ref().map(shape_text));
    let conversation = &ask.conversation;
    for message in &conversation.messages {
        texts.push(message.role.clone());
        let written = [&message.content, &message.reasoning, &message.name];
        texts.extend(written.into_iter().flatten().cloned());
        texts.extend(message.tool_call_id.clone());
        for call in &message.tool_calls {
            texts.extend([call.id.clone(), call.name.clone()]);
            written_in(&call.arguments, &mut texts);
        }
    }
    for tool in &conversation.tools {
        texts.push(tool.name.clone());
        texts.extend(tool.description.clone());
        written_in(&tool.parameters, &mut texts);
    }
    texts.extend(conversation.tool_prompt.clone());
    for document in conversation.documents.iter().flatten() {
        written_in(document, &mut texts);
    }
    for (name, value) in &conversation.template_kwargs {
        texts.push(name.clone());
        written_in(value, &mut texts);
    }
    texts
}

fn shape_text(shape: &Grammar) -> String {
    match shape {
        Grammar::JsonSchema(text)
        | Grammar::TgiSchema(text)
        | Grammar::Regex(text)
        | Grammar::Lark(text) => text.clone(),
        Grammar::JsonObject => String::new(),
    }
}

/// The texts in a JSON value, names among them, as they were written; and the value's own text, for patterns
/// that span several.
fn written_in(value: &Json, texts: &mut Vec<String>) {
    fn each(value: &Json, texts: &mut Vec<String>) {
        match value {
            Json::String(text) => texts.push(text.clone()),
            Json::Array(values) => values.iter().for_each(|value| each(value, texts)),
            Json::Object(fields) => {
                for (name, value) in fields {
                    texts.push(name.clone());
                    each(value, texts);
                }
            }
            Json::Null | Json::Bool(_) | Json::Number(_) => {}
        }
    }
    each(value, texts);
    texts.push(value.to_string());
}

/// Milliseconds until the caller stops caring, if it said when.
fn left_ms(request: &Request) -> Option<u64> {
    let left = request.deadline?.saturating_duration_since(Instant::now());
    Some(left.as_millis() as u64)
}

fn offers_tools(request: &Request) -> bool {
    let chat = request.chat.as_ref();
    chat.is_some_and(|ask| !ask.conversation.tools.is_empty())
}

/// Whether a request belongs to a conversation that has begun: its caller says so, or it holds an answer. The
/// same first question of somebody else is another conversation.
fn goes_on(request: &Request) -> bool {
    let answered = |ask: &Arc<ChatAsk>| {
        let mut messages = ask.conversation.messages.iter();
        messages.any(|message| message.role == "assistant")
    };
    request.route.session.is_some() || request.chat.as_ref().is_some_and(answered)
}

/// What the prompt looks like.
fn features_of(request: &Request, need: &Need) -> Features {
    let conversation = request.chat.as_ref().map(|ask| &ask.conversation);
    let messages = conversation.map_or(&[][..], |conversation| &conversation.messages);
    let said = |role: &str| {
        let mut of = messages.iter().filter(move |message| message.role == role);
        of.next_back()
            .and_then(|message| message.content.as_deref())
    };
    Features::of(&Arrival {
        prompt_tokens: need.prompt_tokens,
        max_new_tokens: need.max_new_tokens,
        turns: messages.len(),
        tools: conversation.map_or(0, |conversation| conversation.tools.len()),
        shaped: request.grammar.is_some()
            || request.chat.as_ref().is_some_and(|ask| ask.shape.is_some()),
        system: said("system"),
        last: said("user").unwrap_or(&request.prompt),
    })
}

/// The conversation's name; the same words to two models are two conversations.
fn session_of(request: &Request, model: &str) -> Option<SessionKey> {
    let key = request.route.key.as_deref();
    if let Some(session) = &request.route.session {
        return Some(SessionKey::named(key, &format!("{model}\n{session}")));
    }
    let messages = &request.chat.as_ref()?.conversation.messages;
    let text = |role: &str| {
        let first = messages.iter().find(|message| message.role == role);
        first.and_then(|message| message.content.as_deref())
    };
    let system = format!("{model}\n{}", text("system").unwrap_or_default());
    Some(SessionKey::opening(key, &system, text("user")?))
}

/// Time beyond an endpoint's waking that a request must have left to wait for it.
const WAKING_MARGIN_MS: u64 = 5000;

fn state(status: &TargetStatus, facts: &Facts, remaining_ms: Option<u64>) -> TargetState {
    use remote::TargetState as At;
    let retry_after_ms = status.retry_after().map(|wait| wait.as_millis() as u64);
    let has_time = |eta_ms: u64| {
        remaining_ms.is_none_or(|left| left > eta_ms.saturating_add(WAKING_MARGIN_MS))
    };
    let by = match &status.state {
        At::Closed if facts.live == Some(false) => BlockedBy::NotServed,
        At::Closed => return TargetState::Usable,
        At::Saturated => BlockedBy::Full,
        At::Parked { .. } => BlockedBy::Parked,
        // Whom an operator must mend, and who sleeps, is tried once in a while: somebody has to.
        _ if status.admits => return TargetState::HalfOpen,
        At::HalfOpen | At::Open { .. } => BlockedBy::Breaker,
        At::Waking { eta } if has_time(eta.as_millis() as u64) => return TargetState::Usable,
        At::Waking { .. } => BlockedBy::Waking,
        At::AuthFailed => BlockedBy::Credentials,
        At::Quota => BlockedBy::Quota,
        At::Paused => BlockedBy::Paused,
        At::Misconfigured(_) | At::Disabled(_) => BlockedBy::Misconfigured,
    };
    TargetState::Blocked { by, retry_after_ms }
}

/// The engine as the forecast sees it.
pub(super) fn engine_view(snapshot: &LoadSnapshot) -> EngineView {
    let work = |load: &SequenceLoad| Work {
        prompt: load.prompt,
        left: load.left,
        generated: load.generated,
        max_new: load.max_new,
    };
    EngineView {
        running: snapshot.running.iter().map(work).collect(),
        waiting: snapshot.line().iter().map(work).collect(),
        max_running: snapshot.max_running,
        step_tokens: snapshot.step_tokens,
        block_tokens: snapshot.block_tokens,
        kv_total: snapshot.kv_total,
        kv_free: snapshot.kv_free,
        times: snapshot.times.map(|times| StepTimes {
            step: times.step,
            prompt_token: times.prompt_token,
            row: times.row,
            decode: times.decode,
        }),
    }
}

/// The request that would join the line.
pub(super) fn newcomer(need: &Need, expected: u32) -> Newcomer {
    Newcomer {
        prompt: need.prompt_tokens,
        uncached: need.prompt_tokens,
        max_new: need.max_new_tokens,
        expected,
    }
}
