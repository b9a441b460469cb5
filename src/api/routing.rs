//! What a caller says about routing comes in by headers, and what became of it goes out by headers.
//!
//! One layer reads the first and writes the second, for every route and for failures too, so that no handler
//! knows of it. Without upstreams and a ledger there is nothing to say, and not a byte of an answer changes.

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Api;
use super::error::ApiError;
use super::keys::Caller;
use crate::generation::{Error, Policy, RouteAsk, RouteNote, RouteNotes, RouteSlot, Side};
use crate::ledger::{nano_usd, usd};
use crate::wire::upstreams::RouteDetails;

/// A call's wishes about routing, and where it is noted what became of them.
#[derive(Debug, Clone, Default)]
pub(super) struct Routed {
    pub(super) ask: RouteAsk,
    pub(super) notes: Option<RouteNotes>,
    /// Whether the answer's body should say how it came about.
    pub(super) details: bool,
}

impl Routed {
    /// Of a call for this model.
    pub(super) fn of(&self, model: Option<&str>, stream: bool) -> Self {
        let mut routed = self.clone();
        // Hugging Face's JavaScript client names its endpoint's address, which means the model served there; no
        // address is ever read.
        let named = model.filter(|name| !name.contains("://"));
        routed.ask.model = named.map(Into::into);
        routed.ask.stream = stream;
        routed
    }

    /// How the call's answers came about, if the caller wants the body to say so.
    pub(super) fn told(&self) -> Option<RouteDetails> {
        let notes = self.notes.as_ref().filter(|_| self.details)?;
        Some(details(&notes.read()))
    }

    /// A place for one request's note.
    pub(super) fn slot(&self) -> RouteSlot {
        self.notes
            .as_ref()
            .map_or_else(RouteSlot::default, RouteNotes::open)
    }
}

/// The name an answer carries: that of the model which made it, once it is known to be another than the one
/// that was asked for.
#[derive(Debug, Clone)]
pub(super) struct ModelName {
    asked: String,
    notes: Option<RouteNotes>,
}

impl ModelName {
    pub(super) fn new(asked: String, routed: &Routed) -> Self {
        Self {
            asked,
            notes: routed.notes.clone(),
        }
    }

    /// As it is known by now.
    pub(super) fn now(&self) -> String {
        let made_elsewhere = self.notes.as_ref().and_then(|notes| {
            let first = notes.read().into_iter().next()?;
            first.model.filter(|_| first.side == Some(Side::Remote))
        });
        made_elsewhere.unwrap_or_else(|| self.asked.clone())
    }
}

/// Longest value of a header that names something: a request, a session.
const LONGEST_NAME: usize = 200;
/// Says what an answer was computed on.
const COMPUTE_TYPE: &str = "x-compute-type";

/// Reads a call's wishes, and adds to its answer what became of them.
pub(super) async fn note_route(
    State(api): State<Api>,
    mut caller: Caller,
    mut request: Request,
    next: Next,
) -> Response {
    let path = request.extensions().get::<MatchedPath>();
    let path = path.map_or("", MatchedPath::as_str).to_owned();
    if !api.config.routed {
        // Whoever watches is told who asked.
        caller.routed.ask = RouteAsk {
            request_id: request_id(request.headers()).into(),
            path: path.into(),
            key: caller.name.clone(),
            ..RouteAsk::default()
        };
        request.extensions_mut().insert(caller);
        return next.run(request).await;
    }
    let mut ask = match ask(&api, request.headers()) {
        Ok(ask) => ask,
        Err(error) => {
            api.dispatcher.count_refusal(&error);
            return ApiError::from(error).into_response();
        }
    };
    ask.path = path.into();
    ask.key.clone_from(&caller.name);
    let request_id = HeaderValue::from_str(&ask.request_id);
    let notes = RouteNotes::default();
    caller.routed = Routed {
        ask,
        notes: Some(notes.clone()),
        details: wants_details(request.uri().query()),
    };
    request.extensions_mut().insert(caller);
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    if let Ok(value) = request_id {
        headers.insert(HeaderName::from_static("x-route-request-id"), value);
    }
    let notes = notes.read();
    headers.extend(headers_of(&notes));
    let own = headers.get(COMPUTE_TYPE).cloned();
    if let Some(made) = own.and_then(|own| compute_type(&notes, &own)) {
        headers.insert(HeaderName::from_static(COMPUTE_TYPE), made);
    }
    response
}

/// What a call was computed on, where any of it was elsewhere; `own` is what this machine computes on.
fn compute_type(notes: &[RouteNote], own: &HeaderValue) -> Option<HeaderValue> {
    let kind = |note: &RouteNote| note.kind.filter(|_| note.side == Some(Side::Remote));
    notes.iter().find_map(kind)?;
    let own = own.to_str().unwrap_or_default();
    let each = notes.iter().map(|note| match kind(note) {
        Some(kind) => format!("remote+{kind}"),
        None => own.to_owned(),
    });
    HeaderValue::from_str(&distinct(each).join(",")).ok()
}

/// Whether a query holds `route_details=1`.
fn wants_details(query: Option<&str>) -> bool {
    let pairs = query.unwrap_or_default().split('&');
    pairs.into_iter().any(|pair| pair == "route_details=1")
}

/// The first of each value that says anything, in their order.
fn distinct(values: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut distinct: Vec<String> = Vec::new();
    for value in values {
        if !value.is_empty() && !distinct.contains(&value) {
            distinct.push(value);
        }
    }
    distinct
}

fn details(notes: &[RouteNote]) -> RouteDetails {
    let joined = |part: fn(&RouteNote) -> Option<String>| {
        let words = distinct(notes.iter().filter_map(part));
        (!words.is_empty()).then(|| words.join(","))
    };
    let known = notes.iter().filter_map(|note| note.cost_nusd);
    RouteDetails {
        target: joined(|note| Some(target(note))).unwrap_or_default(),
        upstream: joined(|note| note.upstream.clone()),
        model: joined(|note| note.model.clone()),
        provider: joined(|note| note.provider.clone()),
        reason: joined(|note| Some(note.reason.to_string())).unwrap_or_default(),
        attempts: notes.iter().map(|note| note.attempts).sum(),
        degraded: distinct(notes.iter().flat_map(|note| note.degraded.iter().cloned())),
        cost_usd: known
            .clone()
            .next()
            .map(|_| known.sum::<u64>() as f64 / 1e9),
        saved_usd: saved(notes).map(|nusd| nusd as f64 / 1e9),
    }
}

/// Errors: a header that cannot be understood.
fn ask(api: &Api, headers: &HeaderMap) -> Result<RouteAsk, Error> {
    let policy = text(headers, "x-route-policy")?.map(|text| {
        text.parse::<Policy>()
            .map_err(|e| Error::invalid(format!("`x-route-policy` {e}")))
    });
    let cost = text(headers, "x-route-max-cost-usd")?.map(|text| match nano_usd(text) {
        Some((nano, false)) => Ok(nano),
        _ => Err(Error::invalid(
            "`x-route-max-cost-usd` must be an amount of USD such as 0.02",
        )),
    });
    let strict = text(headers, "x-route-strict")?.map(|text| match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(Error::invalid("`x-route-strict` must be true or false")),
    });
    let session = text(headers, "x-route-session")?;
    if session.is_some_and(|session| session.is_empty() || session.len() > LONGEST_NAME) {
        return Err(Error::invalid(format!(
            "`x-route-session` must have 1 to {LONGEST_NAME} characters"
        )));
    }
    let looked_at = api.config.rule_headers.iter().filter_map(|name| {
        let value = headers.get(name)?.to_str().ok()?;
        Some((name.as_str().to_owned(), value.to_owned()))
    });
    Ok(RouteAsk {
        request_id: request_id(headers).into(),
        policy: policy.transpose()?,
        max_cost_nusd: cost.transpose()?,
        strict: strict.transpose()?.unwrap_or(false),
        session: session.map(Into::into),
        headers: looked_at.collect(),
        ..RouteAsk::default()
    })
}

/// The caller's own name for the request if it is one, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let own = headers.get("x-request-id").and_then(|v| v.to_str().ok());
    let sound = |id: &&str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
        (1..=LONGEST_NAME).contains(&id.len()) && id.bytes().all(plain)
    };
    match own.filter(sound) {
        Some(id) => id.to_owned(),
        None => uuid::Uuid::new_v4().to_string(),
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Error> {
    let Some(value) = headers.get(name) else {
        return Ok(None);
    };
    let text = value
        .to_str()
        .map_err(|_| Error::invalid(format!("`{name}` must be plain ASCII text")))?;
    Ok(Some(text.trim()))
}

/// What became of a call; requests of one call that went different ways are listed in their order.
fn headers_of(notes: &[RouteNote]) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = Vec::new();
    let mut add = |name: &'static str, values: Vec<String>| {
        let distinct = distinct(values);
        // A model's name may hold what a header may not.
        if let (false, Ok(value)) = (
            distinct.is_empty(),
            HeaderValue::from_str(&distinct.join(",")),
        ) {
            headers.push((HeaderName::from_static(name), value));
        }
    };
    let each = |part: fn(&RouteNote) -> Option<String>| -> Vec<String> {
        notes.iter().filter_map(part).collect()
    };
    add("x-route-target", each(|note| Some(target(note))));
    add("x-route-upstream", each(|note| note.upstream.clone()));
    add("x-route-model", each(|note| note.model.clone()));
    add("x-route-provider", each(|note| note.provider.clone()));
    add("x-route-reason", each(|note| Some(note.reason.to_string())));
    let attempts: u32 = notes.iter().map(|note| note.attempts).sum();
    add("x-route-attempts", vec![attempts.to_string()]);
    let degraded = notes.iter().flat_map(|note| note.degraded.iter());
    add("x-route-degraded", degraded.cloned().collect());
    add("x-route-cost-usd", Vec::from_iter(cost(notes)));
    add(
        "x-route-saved-usd",
        saved(notes).map(usd).into_iter().collect(),
    );
    headers
}

fn target(note: &RouteNote) -> String {
    note.side
        .map_or_else(|| "none".to_owned(), |side| side.to_string())
}

/// What the whole call costs so far, an estimate marked by `~`; none where no upstream answered.
fn cost(notes: &[RouteNote]) -> Option<String> {
    let known = notes.iter().filter_map(|note| note.cost_nusd);
    known.clone().next()?;
    let estimate = notes.iter().any(|note| {
        note.cost_is_estimate || (note.side == Some(Side::Remote) && note.cost_nusd.is_none())
    });
    let mark = if estimate { "~" } else { "" };
    Some(format!("{mark}{}", usd(known.sum())))
}

/// What the call's answers made here would have cost elsewhere, where that is known.
fn saved(notes: &[RouteNote]) -> Option<u64> {
    let known = notes.iter().filter_map(|note| note.saved_nusd);
    known.reduce(u64::saturating_add)
}

/// What the comment before a stream's last event says; none where nothing is routed.
pub(super) fn closing_comment(notes: &RouteNotes) -> String {
    let notes = notes.read();
    let joined = |part: fn(&RouteNote) -> String| {
        let mut words: Vec<String> = notes.iter().map(part).collect();
        words.dedup();
        words.join(",")
    };
    let cost = cost(&notes).unwrap_or_else(|| "0".to_owned());
    let target = joined(target);
    let reason = joined(|note| note.reason.to_string());
    let mut comment =
        format!("x-route-cost-usd={cost} x-route-target={target} x-route-reason={reason}");
    if let Some(saved) = saved(&notes) {
        comment += &format!(" x-route-saved-usd={}", usd(saved));
    }
    if let Some(side) = notes.iter().find_map(|note| note.continued_by) {
        comment += &format!(" x-route-continued={side}");
    }
    comment
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::Reason;

    #[test]
    fn requests_that_went_different_ways_are_told_apart() {
        let mut away = RouteNote::local(Reason::QueueOverflow);
        away.side = Some(Side::Remote);
        away.upstream = Some("mine".to_owned());
        away.attempts = 2;
        away.cost_nusd = Some(1_500_000);
        away.degraded = vec!["seed".to_owned()];
        let headers = headers_of(&[RouteNote::local(Reason::LocalOk), away]);
        let find = |name: &str| {
            let found = headers.iter().find(|(known, _)| known == name);
            found.and_then(|(_, value)| value.to_str().ok())
        };
        assert_eq!(find("x-route-target"), Some("local,remote"));
        assert_eq!(find("x-route-reason"), Some("local_ok,queue_overflow"));
        assert_eq!(find("x-route-upstream"), Some("mine"));
        assert_eq!(find("x-route-attempts"), Some("2"));
        assert_eq!(find("x-route-degraded"), Some("seed"));
        assert_eq!(find("x-route-cost-usd"), Some("0.0015"));
        assert_eq!(find("x-route-provider"), None);
    }

    #[test]
    fn what_was_made_elsewhere_says_on_whose_kind_of_machine() {
        let own = HeaderValue::from_static("cpu");
        let here = RouteNote::local(Reason::LocalOk);
        assert_eq!(compute_type(std::slice::from_ref(&here), &own), None);
        let mut away = RouteNote::local(Reason::PolicyRemote);
        away.side = Some(Side::Remote);
        assert_eq!(compute_type(std::slice::from_ref(&away), &own), None);
        away.kind = Some("hf_router");
        let made = |notes: &[RouteNote]| {
            let made = compute_type(notes, &own).expect("made elsewhere");
            made.to_str().expect("plain").to_owned()
        };
        assert_eq!(made(std::slice::from_ref(&away)), "remote+hf_router");
        assert_eq!(made(&[here, away.clone(), away]), "cpu,remote+hf_router");
    }

    #[test]
    fn details_are_for_those_who_ask_and_say_what_the_headers_say() {
        for (query, wants) in [
            (None, false),
            (Some("a=b"), false),
            (Some("route_details=0"), false),
            (Some("route_details=1"), true),
            (Some("a=b&route_details=1"), true),
        ] {
            assert_eq!(wants_details(query), wants, "{query:?}");
        }
        let mut away = RouteNote::local(Reason::QueueOverflow);
        away.side = Some(Side::Remote);
        away.model = Some("m".to_owned());
        away.attempts = 2;
        away.cost_nusd = Some(1_500_000);
        let mut here = RouteNote::local(Reason::LocalOk);
        here.saved_nusd = Some(2_000_000);
        let told = serde_json::to_value(details(&[here, away]));
        let expected = serde_json::json!({
            "target": "local,remote", "upstream": null, "model": "m", "provider": null,
            "reason": "local_ok,queue_overflow", "attempts": 2, "degraded": [], "cost_usd": 0.0015,
            "saved_usd": 0.002,
        });
        assert_eq!(told.expect("JSON"), expected);
    }

    #[test]
    fn only_plain_names_of_requests_are_taken_over() {
        let of = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("x-request-id", HeaderValue::from_static(value));
            request_id(&headers)
        };
        assert_eq!(of("abc-123"), "abc-123");
        assert_ne!(of("a b"), "a b");
        assert_eq!(of("a\tb").len(), 36);
    }
}
