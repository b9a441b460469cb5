//! The one place that sends: a client for each upstream, and one request through it.
//!
//! [`Client::send`] takes a passport, so nothing leaves that the gate has not seen, and sends it to the
//! configured address only: no redirects, no proxies of the environment, no retries, no name that leads into
//! this network. What comes back is bounded in every direction and stripped to a list of headers. It knows no
//! JSON and keeps no state of the upstream's health.

mod dns;
mod head;
mod sending;

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE,
    IF_NONE_MATCH,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body::Body as _;
use tokio::time::Instant as Tick;
use tokio_rustls::rustls;
use url::{Host, Url};

use self::dns::{Lookup, Reach, Refused, Resolver};
use self::sending::{Phase, Progress, Sending};
use super::errors::{self, Origin};
use super::{Class, Clocks, ControlPlane, Fault, Limits, Secret, UpstreamConfig};
use crate::egress::Passport;
use crate::telemetry::redact;

pub use self::head::Head;

/// How long an unused connection is kept; shorter than the minute after which common load balancers close it.
const POOL_IDLE: Duration = Duration::from_secs(50);

/// How often a busy HTTP/2 connection is asked whether it still lives, and how long for an answer.
const PING: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(10));

/// How long the text of an error is waited for.
const ERROR_BODY: Duration = Duration::from_secs(3);

/// Headers that a call may add to the client's own.
const CALL_HEADERS: &[&str] = &[
    "accept-language",
    "cancel-after",
    "if-none-match",
    "prefer",
    "x-scale-up-timeout",
    "x-sconce-signature",
    "x-source-channel",
];

/// Why an upstream's settings do not make a client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address.
    #[error("upstream `{upstream}`: base_url {why}")]
    Address {
        /// The upstream.
        upstream: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The file of authorities.
    #[error("upstream `{upstream}`: ca_file {path}: {why}")]
    CaFile {
        /// The upstream.
        upstream: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Another setting.
    #[error("upstream `{upstream}`: {setting} {why}")]
    Setting {
        /// The upstream.
        upstream: String,
        /// The setting.
        setting: &'static str,
        /// What is wrong with it; never its value.
        why: String,
    },
}

/// One request, but for the bytes, which the passport holds.
#[derive(Debug, Clone)]
pub struct Call {
    /// `POST`, or `GET` for metadata.
    pub method: Method,
    /// From the first slash, behind the upstream's address.
    pub path: String,
    /// Headers beside the client's own, of a short list of names.
    pub headers: Vec<(&'static str, String)>,
    /// Whether a stream of events is wanted.
    pub stream: bool,
    /// When the caller no longer cares.
    pub deadline: Instant,
    /// How long the response's head may take once the body is sent.
    pub headers_within: Duration,
}

/// Sends to one upstream. Cheap to clone; all clones share connections.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    http: reqwest::Client,
    upstream: Arc<str>,
    base: String,
    /// The address's host and port in every form in which settings may write them.
    hosts: Vec<String>,
    clocks: Clocks,
    limits: Limits,
    secret: Option<Secret>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("upstream", &self.0.upstream)
            .field("base", &self.0.base)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// A client for an upstream.
    ///
    /// Errors: [`ClientError`], for the operator; a setting's value never stands in it.
    pub fn new(
        config: &UpstreamConfig,
        clocks: &Clocks,
        limits: &Limits,
    ) -> Result<Self, ClientError> {
        Self::build(config, clocks, limits, dns::system())
    }

    /// A client for an endpoint's control plane: another address and credential, the same rules.
    ///
    /// Errors: as [`Client::new`].
    pub fn control(
        config: &UpstreamConfig,
        control: &ControlPlane,
        clocks: &Clocks,
        limits: &Limits,
    ) -> Result<Self, ClientError> {
        let config = UpstreamConfig {
            base_url: control.base_url.clone(),
            token: control.token.clone(),
            bill_to: None,
            ..config.clone()
        };
        Self::new(&config, clocks, limits)
    }

    fn build(
        config: &UpstreamConfig,
        clocks: &Clocks,
        limits: &Limits,
        lookup: Lookup,
    ) -> Result<Self, ClientError> {
        let base = config.base_url.trim_end_matches('/');
        let (reach, hosts) = address(config, base)?;
        let setting = |setting: &'static str, why: &str| ClientError::Setting {
            upstream: config.name.to_string(),
            setting,
            why: why.to_owned(),
        };

        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(token) = &config.token {
            let value = zeroize::Zeroizing::new(format!("Bearer {}", token.expose()));
            let mut value = HeaderValue::from_str(&value).map_err(|_| {
                setting(
                    "token_env",
                    "names a token with characters that no header may hold",
                )
            })?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        if let Some(payer) = &config.bill_to {
            let value = HeaderValue::from_str(payer)
                .map_err(|_| setting("bill_to", "has characters that no header may hold"))?;
            headers.insert("x-hf-bill-to", value);
        }

        // The crate below panics without a provider, and no setting should be able to do that.
        if rustls::crypto::CryptoProvider::get_default().is_none() {
            return Err(setting(
                "base_url",
                "cannot be used: no provider of cryptography is installed",
            ));
        }
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("sconce/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .no_proxy()
            .connect_timeout(clocks.connect)
            .pool_idle_timeout(POOL_IDLE)
            .tcp_nodelay(true)
            .http2_max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
            .http2_keep_alive_interval(PING.0)
            .http2_keep_alive_timeout(PING.1)
            .tls_backend_rustls()
            .tls_version_min(reqwest::tls::Version::TLS_1_2);
        let mut proxy_host = None;
        if let Some(proxy) = &config.proxy {
            let unusable = || setting("proxy", "is not a URL that can be used");
            let url = Url::parse(proxy).map_err(|_| unusable())?;
            proxy_host = url.host_str().map(str::to_owned);
            builder = builder.proxy(reqwest::Proxy::all(url).map_err(|_| unusable())?);
        }
        if let Some(path) = &config.ca_file {
            builder =
                builder.tls_certs_only(authorities(path).map_err(|why| ClientError::CaFile {
                    upstream: config.name.to_string(),
                    path: path.clone(),
                    why,
                })?);
        } else if base.starts_with("http:") {
            // Plaintext needs no authorities, so a machine without any can still use it.
            builder = builder.tls_certs_only([]);
        }
        let http = builder
            .dns_resolver(Resolver {
                lookup,
                reach,
                proxy: proxy_host,
            })
            .build()
            .map_err(|e| setting("base_url", &format!("cannot be used: {}", chain(&e))))?;
        Ok(Self(Arc::new(Inner {
            http,
            upstream: config.name.clone(),
            base: base.to_owned(),
            hosts,
            clocks: *clocks,
            limits: *limits,
            secret: config.token.clone(),
        })))
    }

    /// Sends what the passport holds, and waits for the response's head. The only function that sends.
    ///
    /// Whatever its status, an answer is a [`Response`], except one that nobody should read: a redirect, a
    /// compressed one, one that is announced larger than allowed.
    ///
    /// Errors: [`Class::LocalPressure`] when no connection was to be had, [`Class::Transport`] when it could
    /// not be made or broke, or did not take the body in time, [`Class::Timeout`] when the head did not come,
    /// [`Class::Deadline`] when the caller's time ended first, [`Class::Misconfigured`] for what only the
    /// operator can mend, [`Class::ServerError`] for what is no HTTP or too much of it.
    /// Dropping the future closes the connection, or resets the HTTP/2 stream.
    pub async fn send(&self, passport: Passport, call: Call) -> Result<Response, Fault> {
        let sent = Tick::now();
        let deadline = Tick::from_std(call.deadline);
        let inner = &*self.0;
        let clocks = inner.clocks;
        let (request, length, progress) = self.request(passport, &call, sent)?;
        let conditional = call
            .headers
            .iter()
            .any(|(name, _)| *name == IF_NONE_MATCH.as_str());

        let pieces = u32::try_from(length >> 20).unwrap_or(u32::MAX);
        let send_within = clocks.send + clocks.send_per_mib.saturating_mul(pieces);
        let mut answer = std::pin::pin!(inner.http.execute(request));
        let response = loop {
            let (phase, since) = progress.get();
            let within = match phase {
                Phase::Waiting => clocks.pool + clocks.connect,
                Phase::Sending => send_within,
                // A body of none is never asked for: its connection's time is part of the head's.
                Phase::Sent if length == 0 => clocks.pool + clocks.connect + call.headers_within,
                Phase::Sent => call.headers_within,
            };
            let limit = since + within;
            tokio::select! {
                biased;
                answer = &mut answer => break answer.map_err(|e| Fault {
                    // A body that nobody asked for was not begun; that of nothing is never asked for.
                    unsent: e.is_connect() || progress.get().0 == Phase::Waiting,
                    ..self.broken(&e)
                })?,
                () = progress.changed.notified() => {}
                () = tokio::time::sleep_until(limit.min(deadline)) => {
                    if progress.get().0 != phase {
                        continue;
                    }
                    if deadline <= limit {
                        return Err(Fault {
                            unsent: phase == Phase::Waiting,
                            ..Fault::new(Class::Deadline, "the request's deadline passed")
                        });
                    }
                    let within = within.as_secs_f64();
                    return Err(match phase {
                        Phase::Waiting => Fault::unsent(
                            Class::LocalPressure,
                            format!("no connection was free within {within} s"),
                        ),
                        Phase::Sending => Fault::new(
                            Class::Transport,
                            format!("the request was not taken within {within} s"),
                        ),
                        Phase::Sent => Fault::new(
                            Class::Timeout,
                            format!("no response within {within} s"),
                        ),
                    });
                }
            }
        };

        let status = response.status();
        let headers = response.headers();
        let mut head = Head::read(status.as_u16(), headers, chrono::Utc::now());
        if let Some(secret) = &inner.secret {
            head.forget(secret.expose());
        }
        let fault = |class, message: String| Fault {
            status: Some(head.status),
            provider: head.provider.clone(),
            upstream_request_id: head.request_id.clone(),
            ..Fault::new(class, message)
        };
        if status.is_redirection() && !(status == StatusCode::NOT_MODIFIED && conditional) {
            let message = format!(
                "status {}: redirects are never followed; check base_url",
                head.status
            );
            return Err(fault(Class::Misconfigured, message));
        }
        let size: usize = headers
            .iter()
            .map(|(k, v)| k.as_str().len() + v.len() + 4)
            .sum();
        if size > inner.limits.head_bytes {
            let message = format!("the response's head has {size} bytes, more than allowed");
            return Err(fault(Class::ServerError, message));
        }
        let encoded = headers
            .get_all(CONTENT_ENCODING)
            .iter()
            .any(|v| v != "identity");
        if encoded {
            let message = "the response is compressed although that was not asked for";
            return Err(fault(Class::ServerError, message.to_owned()));
        }
        let announced = headers
            .get(CONTENT_LENGTH)
            .and_then(|v| v.to_str().ok()?.parse().ok());
        if status.is_success() && announced.is_some_and(|n: usize| n > inner.limits.response_bytes)
        {
            return Err(fault(
                Class::ServerError,
                too_large(inner.limits.response_bytes),
            ));
        }
        Ok(Response {
            head,
            sent: sent.into_std(),
            body: Body {
                inner: http::Response::from(response).into_body(),
                left: inner.limits.response_bytes,
                client: self.clone(),
            },
            deadline,
        })
    }

    /// The name of the upstream it sends to.
    pub fn upstream(&self) -> &Arc<str> {
        &self.0.upstream
    }

    /// Bounds on what is read.
    pub(super) fn limits(&self) -> Limits {
        self.0.limits
    }

    /// Takes this upstream's own credential out of a fault's words, whatever it looks like.
    pub(super) fn scrub(&self, mut fault: Fault) -> Fault {
        if let Some(secret) = &self.0.secret {
            let secret = secret.expose();
            fault
                .param
                .take_if(|param| !secret.is_empty() && param.contains(secret));
            let parts = [&mut fault.provider, &mut fault.upstream_request_id];
            let texts = parts.into_iter().filter_map(Option::as_mut);
            for text in texts {
                if !secret.is_empty() && text.contains(secret) {
                    *text = text.replace(secret, "[redacted]");
                }
            }
            if !secret.is_empty() && fault.message.contains(secret) {
                fault.message = fault.message.replace(secret, "[redacted]").into();
            }
        }
        fault
    }

    fn request(
        &self,
        passport: Passport,
        call: &Call,
        now: Tick,
    ) -> Result<(reqwest::Request, usize, Arc<Progress>), Fault> {
        let inner = &*self.0;
        let wrong = |message: String| Fault::unsent(Class::Misconfigured, message);
        let (destination, body) = passport.spend();
        if destination.upstream != inner.upstream
            || !inner.hosts.iter().any(|host| **host == *destination.host)
        {
            return Err(wrong(format!(
                "the passport is for `{}` at {}, not for `{}`",
                destination.upstream, destination.host, inner.upstream
            )));
        }
        let url = format!("{}{}", inner.base, call.path);
        let url = Some(url)
            .filter(|_| call.path.starts_with('/'))
            .and_then(|url| Url::parse(&url).ok())
            .ok_or_else(|| wrong(format!("`{}` is not a path", call.path)))?;

        let mut request = reqwest::Request::new(call.method.clone(), url);
        let headers = request.headers_mut();
        for (name, value) in &call.headers {
            if !CALL_HEADERS.contains(name) {
                return Err(wrong(format!("header `{name}` is not sent to upstreams")));
            }
            let value = HeaderValue::from_str(value)
                .map_err(|_| wrong(format!("header `{name}` has characters that none may hold")))?;
            headers.insert(HeaderName::from_static(name), value);
        }
        headers.insert(
            ACCEPT,
            HeaderValue::from_static(if call.stream {
                "text/event-stream, application/json"
            } else {
                "application/json"
            }),
        );
        let length = body.len();
        let progress = Progress::new(
            if length == 0 {
                Phase::Sent
            } else {
                Phase::Waiting
            },
            now,
        );
        if length > 0 {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            *request.body_mut() = Some(reqwest::Body::wrap(Sending {
                rest: body,
                progress: progress.clone(),
            }));
        }
        Ok((request, length, progress))
    }

    /// What an error of the crate below means.
    fn broken(&self, error: &reqwest::Error) -> Fault {
        let mut class = Class::Transport;
        for cause in causes(error) {
            if cause.is::<Refused>() {
                return Fault::new(Class::Misconfigured, cause.to_string());
            }
            if let Some(error) = cause.downcast_ref::<rustls::Error>() {
                let mistrusted = matches!(
                    error,
                    rustls::Error::InvalidCertificate(_)
                        | rustls::Error::NoCertificatesPresented
                        | rustls::Error::UnsupportedNameType
                );
                if mistrusted {
                    let message = format!("the certificate is not trusted: {error}");
                    return Fault::new(Class::Misconfigured, message);
                }
            }
            if cause
                .downcast_ref::<hyper::Error>()
                .is_some_and(hyper::Error::is_parse)
            {
                class = Class::ServerError;
            }
        }
        let message = if error.is_connect() && error.is_timeout() {
            let within = self.0.clocks.connect.as_secs_f64();
            format!("no connection within {within} s")
        } else {
            chain(error)
        };
        self.scrub(Fault::new(class, message))
    }
}

/// Where the address lies, and how its host may be written.
fn address(config: &UpstreamConfig, base: &str) -> Result<(Reach, Vec<String>), ClientError> {
    let wrong = |why| ClientError::Address {
        upstream: config.name.to_string(),
        why,
    };
    let url = Url::parse(base).map_err(|_| wrong("is not a URL"))?;
    let host = url.host().ok_or_else(|| wrong("names no host"))?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(wrong("has a query or a fragment"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(wrong("holds a credential; use token_env"));
    }
    let literal = match &host {
        Host::Ipv4(v4) => Some(IpAddr::V4(*v4)),
        Host::Ipv6(v6) => Some(IpAddr::V6(*v6)),
        Host::Domain(_) => None,
    };
    let loopback = match (&host, literal) {
        (_, Some(ip)) => Reach::Loopback.allows(ip),
        (Host::Domain(name), _) => {
            let name = name.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
        _ => false,
    };
    match url.scheme() {
        "https" => {}
        "http" if loopback || config.allow_plaintext => {}
        "http" => {
            return Err(wrong(
                "is plain HTTP to another machine; set allow_plaintext if that is meant",
            ));
        }
        _ => return Err(wrong("is neither https nor http")),
    }
    let reach = match (loopback, config.allow_private) {
        (true, _) => Reach::Loopback,
        (false, true) => Reach::Any,
        (false, false) => Reach::Public,
    };
    if literal.is_some_and(|ip| !reach.allows(ip)) {
        return Err(wrong(
            "is a private address; set allow_private if that is meant",
        ));
    }
    let host = host.to_string();
    let port = url.port_or_known_default().unwrap_or_default();
    let mut hosts = vec![format!("{host}:{port}")];
    if url.port().is_none() {
        hosts.push(host);
    }
    Ok((reach, hosts))
}

fn authorities(path: &std::path::Path) -> Result<Vec<reqwest::Certificate>, String> {
    let pem = std::fs::read(path).map_err(|e| e.to_string())?;
    let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|e| chain(&e))?;
    if certificates.is_empty() {
        return Err("holds no certificate".to_owned());
    }
    Ok(certificates)
}

fn too_large(most: usize) -> String {
    format!("the response is larger than {most} bytes")
}

/// An error and what caused it, from the outside in. What an I/O error wraps counts, too, which its own
/// `source` would pass over.
fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(
        Some(error),
        |&error: &&'a (dyn StdError + 'static)| match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => error.source(),
        },
    )
}

/// The same in words, without addresses and paths, each said once.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut message = String::new();
    for cause in causes(error) {
        // The outermost text holds the URL, and says nothing beyond what it wraps.
        let words = match cause.downcast_ref::<reqwest::Error>() {
            Some(_) if cause.source().is_some() => continue,
            _ => cause.to_string(),
        };
        if !message.ends_with(&words) {
            if !message.is_empty() {
                message.push_str(": ");
            }
            message.push_str(&words);
        }
    }
    let mut message = redact::redact(&message).into_owned();
    errors::cut(&mut message, 512);
    message
}

/// A response whose head has come.
#[derive(Debug)]
pub struct Response {
    /// What is kept of its head.
    pub head: Head,
    /// When the request was begun to be sent.
    pub sent: Instant,
    /// The rest.
    pub body: Body,
    deadline: Tick,
}

impl Response {
    /// Reads the whole body.
    ///
    /// Errors: [`Class::Timeout`] when nothing comes for the time of silence, [`Class::Deadline`],
    /// [`Class::Transport`] when it breaks off, [`Class::ServerError`] when it is too large.
    pub async fn whole(mut self) -> Result<Bytes, Fault> {
        let idle = self.body.client.0.clocks.byte_idle;
        let mut whole = BytesMut::new();
        loop {
            let limit = Tick::now() + idle;
            match tokio::time::timeout_at(limit.min(self.deadline), self.body.chunk()).await {
                Ok(Some(chunk)) => whole.extend_from_slice(&chunk?),
                Ok(None) => return Ok(whole.freeze()),
                Err(_) if self.deadline <= limit => {
                    return Err(Fault::new(Class::Deadline, "the request's deadline passed"));
                }
                Err(_) => {
                    let message = format!("silence for {} s", idle.as_secs_f64());
                    return Err(Fault::new(Class::Timeout, message));
                }
            }
        }
    }

    /// Reads as much of the body as an error needs, and says what the failure was.
    pub async fn into_fault(mut self, origin: Origin) -> Fault {
        let client = self.body.client.clone();
        let most = client.0.limits.error_bytes;
        let limit = (Tick::now() + ERROR_BODY).min(self.deadline);
        let mut text = BytesMut::new();
        while text.len() < most {
            match tokio::time::timeout_at(limit, self.body.chunk()).await {
                Ok(Some(Ok(chunk))) => {
                    text.extend_from_slice(&chunk[..chunk.len().min(most - text.len())])
                }
                // What has come is enough to say what the status means.
                Ok(Some(Err(_)) | None) | Err(_) => break,
            }
        }
        client.scrub(errors::classify(&self.head, &text, origin))
    }
}

/// A response's bytes as they come, bounded in all. Dropping it closes the connection or resets the stream.
pub struct Body {
    inner: reqwest::Body,
    left: usize,
    client: Client,
}

impl Body {
    /// The next piece.
    async fn chunk(&mut self) -> Option<Result<Bytes, Fault>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Stream for Body {
    type Item = Result<Bytes, Fault>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let frame = std::task::ready!(Pin::new(&mut self.inner).poll_frame(cx));
            return Poll::Ready(match frame {
                None => None,
                Some(Err(error)) => Some(Err(self.client.broken(&error))),
                Some(Ok(frame)) => {
                    // Trailers say nothing that is kept.
                    let Ok(bytes) = frame.into_data() else {
                        continue;
                    };
                    match self.left.checked_sub(bytes.len()) {
                        Some(left) => {
                            self.left = left;
                            Some(Ok(bytes))
                        }
                        None => {
                            let most = self.client.0.limits.response_bytes;
                            Some(Err(Fault::new(Class::ServerError, too_large(most))))
                        }
                    }
                }
            });
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
