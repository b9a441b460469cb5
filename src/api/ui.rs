//! The page at `/ui/`, and the events it watches.
//!
//! The page's files lie in the binary and hold nothing of this server, so everybody may have them; what they show
//! comes over routes that ask for a key. The page may talk to this server and to nobody else.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::LazyLock;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, HOST, HeaderMap,
    IF_NONE_MATCH, ORIGIN, REFERRER_POLICY, USER_AGENT, VARY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Redirect, Response};
use futures::stream;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::error::{self, ApiError, forbidden};
use super::keys::Caller;
use super::{Api, auth, ops, sse, usage};
use crate::dispatch::{self, Beat, End, Pulse};
use crate::generation::{Error, Reason};
use crate::wire::pulse::{Attempt, History, Past, Percentiles, Sample, ServerFacts, Tick, Totals};

/// What the page may do: run its own script, ask this server, show pictures that it holds itself.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; \
     base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

/// Pages that watch at once, at most.
const MOST_WATCHERS: usize = 64;

/// One file of the page.
struct File {
    name: &'static str,
    content_type: &'static str,
    bytes: &'static [u8],
}

const FILES: [File; 5] = [
    File {
        name: "index.html",
        content_type: "text/html; charset=utf-8",
        bytes: include_bytes!("../ui/dist/index.html"),
    },
    File {
        name: "app.js",
        content_type: "text/javascript; charset=utf-8",
        bytes: include_bytes!("../ui/dist/app.js"),
    },
    File {
        name: "app.css",
        content_type: "text/css; charset=utf-8",
        bytes: include_bytes!("../ui/dist/app.css"),
    },
    File {
        name: "icon.svg",
        content_type: "image/svg+xml",
        bytes: include_bytes!("../ui/dist/icon.svg"),
    },
    File {
        name: "licenses.txt",
        content_type: "text/plain; charset=utf-8",
        bytes: include_bytes!("../ui/dist/licenses.txt"),
    },
];

/// `GET /` for a browser leads to the page, and is the health of this server for everybody else: other clients, too,
/// may take HTML where they only want to know whether a request would be answered.
pub(super) async fn root(state: State<Api>, headers: HeaderMap) -> Response {
    let holds = |name: HeaderName, part: &str| {
        let value = headers.get(name).and_then(|value| value.to_str().ok());
        value.is_some_and(|value| value.contains(part))
    };
    let mut response = if holds(ACCEPT, "text/html") && holds(USER_AGENT, "Mozilla/") {
        redirect().await.into_response()
    } else {
        ops::health(state).await.into_response()
    };
    let vary = HeaderValue::from_static("accept, user-agent");
    response.headers_mut().append(VARY, vary);
    response
}

/// `GET /ui`: to where the page's relative links lead somewhere, behind a prefix too.
pub(super) async fn redirect() -> Redirect {
    Redirect::to("ui/")
}

/// `GET /ui/`.
pub(super) async fn page(headers: HeaderMap) -> Response {
    file_named("index.html", &headers)
}

/// `GET /ui/{file}`.
pub(super) async fn file(Path(name): Path<String>, headers: HeaderMap) -> Response {
    file_named(&name, &headers)
}

fn file_named(name: &str, asked: &HeaderMap) -> Response {
    static TAGS: LazyLock<BTreeMap<&str, HeaderValue>> = LazyLock::new(|| {
        let tag = |file: &File| {
            let digest = Sha256::digest(file.bytes);
            let hex: String = digest[..8].iter().map(|b| format!("{b:02x}")).collect();
            HeaderValue::from_str(&format!("\"{hex}\""))
        };
        let tags = FILES.iter();
        tags.filter_map(|file| Some((file.name, tag(file).ok()?)))
            .collect()
    });
    let Some(file) = FILES.iter().find(|file| file.name == name) else {
        return error::unknown_path();
    };
    let tag = TAGS.get(file.name);
    let known = tag.is_some() && asked.get(IF_NONE_MATCH) == tag;
    let mut response = match known {
        true => error::not_modified(),
        false => file.bytes.into_response(),
    };
    let headers = response.headers_mut();
    let mut set = |name: HeaderName, value: HeaderValue| headers.insert(name, value);
    set(CONTENT_TYPE, HeaderValue::from_static(file.content_type));
    // Asked for again each time, so that a new server's page is a new one.
    set(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    set(CONTENT_SECURITY_POLICY, POLICY);
    set(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    set(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(tag) = tag {
        set(ETAG, tag.clone());
    }
    response
}

/// `GET /ui/events`: what happened, and then each second what happens; for those who run this server.
pub(super) async fn events(
    State(api): State<Api>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if is_foreign(&headers) {
        return Err(error::foreign_page());
    }
    if !caller.admin {
        return Err(forbidden());
    }
    let pulse = api.dispatcher.pulse();
    if pulse.watchers() >= MOST_WATCHERS {
        return Err(Error::overloaded(Duration::from_secs(10)).into());
    }
    let watch = Watch {
        beats: pulse.watch(),
        api,
        headers,
        told: None,
    };
    let frames = stream::unfold(watch, |mut watch| async move {
        let frame = watch.next().await?;
        Some((Ok::<Event, Infallible>(frame), watch))
    });
    let headers = [
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Sse::new(frames)).into_response())
}

/// Whether another site's page asks. Of what happens here it learns nothing, also where no key is asked for.
fn is_foreign(headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text(HeaderName::from_static("sec-fetch-site")) {
        return !matches!(site, "same-origin" | "none");
    }
    // Older browsers, and all of them over plain HTTP to another machine.
    text(ORIGIN).is_some_and(|origin| {
        let host = origin.split_once("://").map(|(_, host)| host);
        host.is_none() || host != text(HOST)
    })
}

/// One page that watches.
struct Watch {
    api: Api,
    beats: watch::Receiver<Beat>,
    /// What the page showed of itself: a key that is revoked sees no further second.
    headers: HeaderMap,
    /// The first request that it has not been told of; none before the first event.
    told: Option<u64>,
}

impl Watch {
    async fn next(&mut self) -> Option<Event> {
        let Some(told) = self.told else {
            let history = self.history();
            return Some(sse::named_frame("history", &history));
        };
        self.beats.changed().await.ok()?;
        if *self.beats.borrow_and_update() == Beat::End {
            return None;
        }
        let admin = auth::caller(&self.api.config.keys, &self.headers)?.admin;
        let sample = self.pulse().latest().filter(|_| admin)?;
        let dispatcher = &self.api.dispatcher;
        let tick = Tick {
            sample: sample_of(&sample),
            totals: totals_of(&self.pulse().totals()),
            targets: dispatcher
                .upstreams()
                .into_iter()
                .map(ops::health_of)
                .collect(),
            budgets: dispatcher.budgets().iter().map(usage::standing).collect(),
            decisions: self.decisions_from(told),
        };
        Some(sse::named_frame("tick", &tick))
    }

    fn history(&mut self) -> History {
        let Api {
            config,
            dispatcher,
            info,
        } = &self.api;
        let server = ServerFacts {
            version: info.version.clone(),
            model: info.model_id.clone(),
            started_ms: config.started_at_unix_s * 1000,
            hybrid: dispatcher.is_hybrid(),
        };
        let samples = self.pulse().samples();
        History {
            server,
            samples: samples.iter().map(sample_of).collect(),
            decisions: self.decisions_from(0),
        }
    }

    fn decisions_from(&mut self, seq: u64) -> Vec<Past> {
        let past = self.pulse().requests_from(seq);
        self.told = Some(past.last().map_or(seq, |last| last.seq + 1));
        past.iter().map(|past| past_of(past)).collect()
    }

    fn pulse(&self) -> &Pulse {
        self.api.dispatcher.pulse()
    }
}

fn usd(nusd: u64) -> f64 {
    nusd as f64 / 1e9
}

fn percentiles_of(percentiles: dispatch::Percentiles) -> Percentiles {
    let dispatch::Percentiles { p50, p95, p99 } = percentiles;
    Percentiles { p50, p95, p99 }
}

fn sample_of(sample: &dispatch::Sample) -> Sample {
    let dispatch::Sample {
        at_ms,
        running,
        waiting,
        max_running,
        kv_used,
        kv_total,
        prefill_tps,
        decode_tps,
        local,
        remote,
        failed,
        ttft_ms,
        itl_ms,
    } = *sample;
    Sample {
        t_ms: at_ms,
        running,
        waiting,
        max_running,
        kv_used,
        kv_total,
        prefill_tps,
        decode_tps,
        local,
        remote,
        failed,
        ttft_ms: ttft_ms.map(percentiles_of),
        itl_ms: itl_ms.map(percentiles_of),
    }
}

fn totals_of(totals: &dispatch::Totals) -> Totals {
    let of = |end: End| {
        let counted = totals.calls.iter().filter(|((of, _), _)| *of == end);
        counted
            .map(|((_, code), count)| (code.to_string(), *count))
            .collect()
    };
    Totals {
        local: of(End::Local),
        remote: of(End::Remote),
        refused: of(End::Refused),
        unfinished: of(End::Unfinished),
        cost_usd: usd(totals.cost_nusd),
        saved_usd: usd(totals.saved_nusd),
        prompt_tokens: totals.prompt_tokens,
        output_tokens: totals.output_tokens,
    }
}

fn past_of(past: &dispatch::Past) -> Past {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let reason = past.reason.as_ref().map(ToString::to_string);
    let detail = reason.as_deref().and_then(|reason| reason.split_once(':'));
    let attempts = past.attempts.iter().map(|attempt| Attempt {
        target: attempt.target.clone(),
        provider: attempt.provider.clone(),
        class: attempt.class.clone(),
        status: attempt.status,
        ttft_ms: attempt.ttft_ms,
        cost_usd: attempt.cost_nusd.map(usd),
    });
    Past {
        seq: past.seq,
        at_ms: past.at_ms,
        request_id: past.request_id.to_string(),
        key: past.key.as_deref().map(str::to_owned),
        path: past.path.to_string(),
        stream: past.stream,
        model: past.model.as_deref().map(str::to_owned),
        side: past.side.map(|side| side.to_string()),
        target: past.target.clone(),
        upstream: past.upstream.clone(),
        provider: past.provider.clone(),
        reason: past.reason.as_ref().map(Reason::code),
        reason_detail: detail.map(|(_, detail)| detail.to_owned()),
        outcome: past.outcome.clone(),
        ok: past.ok,
        ttft_ms: past.ttft.map(ms),
        total_ms: ms(past.total),
        prompt_tokens: past.prompt_tokens,
        output_tokens: past.output_tokens,
        cost_usd: past.cost_nusd.map(usd),
        saved_usd: past.saved_nusd.map(usd),
        attempts: attempts.collect(),
        degraded: past.degraded.clone(),
        explanation: past.explanation(),
    }
}
