//! Asks the hub: which files a revision has, what each is called by its content, and for the bytes themselves.
//!
//! `hf-hub` asks what there is. Files are fetched here, over plain HTTP or by `hf-xet`, because `hf-hub` neither resumes
//! nor checks them, and writes where the hub's answers say. The token is shown to the hub's own address only: redirects
//! are followed by hand, and beyond it they go without.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use hf_hub::{HFClient, HFError, split_id};
use reqwest::header::{
    AUTHORIZATION, CONTENT_RANGE, ETAG, HeaderMap, IF_RANGE, LOCATION, RANGE, RETRY_AFTER,
};
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;
use url::Url;
use xet::xet_session::{XetFileInfo, XetSessionBuilder};

use super::cache::{MAIN, is_commit};
use super::error::HubError;
use super::name::is_relative;
use super::settings::HubSettings;
use crate::telemetry::{Secret, redact};

/// A repository as a revision of it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listing {
    /// What it is called now; another name than the one asked for if it was renamed.
    pub(super) id: String,
    pub(super) commit: String,
    pub(super) files: Vec<String>,
}

/// What the hub says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileFacts {
    /// Names the content: its SHA-256 for large files, git's hash for small ones.
    pub(super) etag: String,
    pub(super) size: u64,
    /// What Xet storage calls it, if it lies there.
    pub(super) xet_hash: Option<String>,
}

/// Bytes of a file on their way.
pub(super) struct Arriving {
    /// Where in the file they begin.
    pub(super) from: u64,
    pub(super) bytes: BoxStream<'static, Result<bytes::Bytes, String>>,
}

/// Why a request came to nothing.
#[derive(Debug)]
pub(super) enum Refusal {
    /// It may go better in a while; what to say if it does not.
    Later(HubError, Option<Duration>),
    /// It will not.
    Never(HubError),
}

/// The hub, as one repository's files are fetched from it.
pub(super) struct Client {
    hub: HFClient,
    /// Follows no redirects by itself.
    http: reqwest::Client,
    home: Url,
    endpoint: String,
    patience: Duration,
    token: Option<Secret>,
    repo: String,
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const MOST_REDIRECTS: usize = 10;
const LONGEST_ETAG: usize = 128;
/// Longer than any answer about access.
const LONGEST_ACCESS: usize = 64 << 10;
const SILENT: &str = "it has been silent for too long";
/// A larger answer to a question about one model comes from no hub.
const MOST_FILES: usize = 100_000;

impl Client {
    /// Errors: the address or the system's certificates cannot be used.
    pub(super) fn new(settings: &HubSettings, repo: &str) -> Result<Self, HubError> {
        let (home, endpoint) = settings.address()?;
        let host = host(&endpoint);
        let strange = |problem: String| HubError::Strange {
            host: host.clone(),
            problem,
        };
        let http = || {
            let http = reqwest::Client::builder()
                .user_agent(concat!("sconce/", env!("CARGO_PKG_VERSION")))
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(settings.patience);
            // A proxy would read along.
            if home.scheme() == "http" {
                http.no_proxy()
            } else {
                http
            }
        };
        let build = |builder: reqwest::ClientBuilder| {
            builder
                .build()
                .map_err(|error| strange(error.without_url().to_string()))
        };
        if let Some(token) = &settings.token {
            redact::register(token.expose());
        }
        // How often and how long something is tried is decided by whoever asks. Redirects keep the token only on the
        // way to the same host; `reqwest` sees to that.
        let hub = HFClient::builder()
            .endpoint(&endpoint)
            .client(build(http())?)
            .cache_enabled(false)
            .retry_max_attempts(0);
        let hub = match &settings.token {
            Some(token) => hub.token(token.expose()),
            None => hub,
        };
        Ok(Self {
            hub: hub
                .build()
                .map_err(|error| strange(without_address(&error)))?,
            http: build(http().redirect(reqwest::redirect::Policy::none()))?,
            home,
            patience: settings.patience,
            endpoint,
            token: settings.token.clone(),
            repo: repo.to_owned(),
        })
    }

    /// What a revision holds.
    pub(super) async fn list(&self, revision: &str) -> Result<Listing, Refusal> {
        let (owner, name) = split_id(&self.repo);
        let model = self.hub.model(owner, name);
        let info = model.info().revision(revision).send().await;
        let info = info.map_err(|error| self.explain_error(error, revision))?;
        let commit = info.sha.filter(|sha| is_commit(sha));
        let commit = commit.ok_or_else(|| self.strange("it names no commit"))?;
        let siblings = info.siblings.unwrap_or_default();
        if siblings.len() > MOST_FILES {
            return Err(self.strange("it lists more files than a model has"));
        }
        let files: Vec<String> = siblings.into_iter().map(|file| file.rfilename).collect();
        if let Some(file) = files.iter().find(|file| !is_relative(file)) {
            return Err(self.strange(&format!("a file would lie outside of the model: {file:?}")));
        }
        Ok(Listing {
            id: info.id,
            commit,
            files,
        })
    }

    /// What a commit's file is.
    pub(super) async fn facts(&self, commit: &str, file: &str) -> Result<FileFacts, Refusal> {
        let answer = self.send(Method::HEAD, commit, file, None, true).await?;
        let headers = answer.headers();
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        // A large file's content lies elsewhere; what links to it says what it is.
        let etag = text("x-linked-etag")
            .or_else(|| text(ETAG.as_str()))
            .map(plain_etag);
        let size = text("x-linked-size").or_else(|| text("content-length"));
        let etag = etag.filter(|etag| is_file_name(etag));
        let size = size.and_then(|size| size.parse().ok());
        match (etag, size) {
            (Some(etag), Some(size)) => Ok(FileFacts {
                etag: etag.to_owned(),
                size,
                xet_hash: text("x-xet-hash").map(str::to_owned),
            }),
            (None, _) => Err(self.strange(&format!("{file} comes without a usable ETag"))),
            (_, None) => Err(self.strange(&format!("{file} comes without its size"))),
        }
    }

    /// A commit's file from a place in it on, as plain HTTP; `None` when the server does not go on from there.
    pub(super) async fn bytes(
        &self,
        commit: &str,
        file: &str,
        facts: &FileFacts,
        from: u64,
    ) -> Result<Option<Arriving>, Refusal> {
        let range = (from > 0).then_some((from, facts.etag.as_str()));
        let answer = self.send(Method::GET, commit, file, range, false).await?;
        let from = match answer.status() {
            StatusCode::PARTIAL_CONTENT if from > 0 => {
                let range = answer
                    .headers()
                    .get(CONTENT_RANGE)
                    .and_then(|range| range.to_str().ok());
                if range
                    != Some(&format!(
                        "bytes {from}-{}/{}",
                        facts.size.saturating_sub(1),
                        facts.size
                    ))
                {
                    return Ok(None);
                }
                from
            }
            StatusCode::RANGE_NOT_SATISFIABLE => return Ok(None),
            StatusCode::OK => 0,
            status => return Err(self.strange(&format!("status {} for a file", status.as_u16()))),
        };
        let bytes = answer.bytes_stream();
        let bytes = bytes.map(|part| part.map_err(|error| reason(&error)));
        Ok(Some(Arriving {
            from,
            bytes: bytes.boxed(),
        }))
    }

    /// A commit's file from a place in it on, out of Xet storage.
    ///
    /// `hf-hub` would do this with names and places that it takes from the hub unchecked, so it is asked for nothing but
    /// the listing; `hf-xet`, which it uses too, gives the bytes, and they are checked like all others.
    /// Errors: in words, whatever went wrong; the plain way is still open then.
    pub(super) async fn xet_bytes(
        &self,
        commit: &str,
        facts: &FileFacts,
        from: u64,
    ) -> Result<Arriving, String> {
        let hash = facts.xet_hash.clone().ok_or("it is in no such storage")?;
        let access = self.xet_access(commit).await?;
        let words = |error: &dyn std::error::Error| error.to_string();
        let session = XetSessionBuilder::new().with_tokio_handle(tokio::runtime::Handle::current());
        let session = session.build().map_err(|error| words(&error))?;
        let group = session
            .new_download_stream_group()
            .map_err(|error| words(&error))?;
        let group = group
            .with_endpoint(access.cas_url)
            .with_token_info(access.access_token, access.exp)
            .build()
            .await
            .map_err(|error| words(&error))?;
        let range = (from > 0).then_some(from..facts.size);
        let stream = group.download_stream(XetFileInfo::new(hash, facts.size), range);
        let stream = stream.await.map_err(|error| words(&error))?;
        let patience = self.patience;
        // The group lives as long as its stream.
        let bytes =
            futures::stream::unfold((stream, group), move |(mut stream, group)| async move {
                let part = match tokio::time::timeout(patience, stream.next()).await {
                    Ok(Ok(None)) => return None,
                    Ok(Ok(Some(part))) => Ok(part),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err(SILENT.to_owned()),
                };
                Some((part, (stream, group)))
            });
        Ok(Arriving {
            from,
            bytes: bytes.boxed(),
        })
    }

    /// Where a commit's Xet storage is, and the right to read it.
    async fn xet_access(&self, commit: &str) -> Result<XetAccess, String> {
        let mut url = self.home.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty();
            path.extend(["api", "models"])
                .extend(self.repo.split('/'))
                .extend(["xet-read-token", commit]);
        }
        let mut request = self.http.get(url);
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        let answer = request.send().await.map_err(|error| reason(&error))?;
        if !answer.status().is_success() {
            return Err(format!(
                "the hub gives no right to read it (status {})",
                answer.status().as_u16()
            ));
        }
        let mut text = Vec::new();
        let mut parts = answer.bytes_stream();
        while let Some(part) = parts.next().await {
            text.extend_from_slice(&part.map_err(|error| reason(&error))?);
            if text.len() > LONGEST_ACCESS {
                return Err("the hub's answer is too long".to_owned());
            }
        }
        let access: XetAccess = serde_json::from_slice(&text)
            .map_err(|error| format!("the hub's answer cannot be read: {error}"))?;
        redact::register(&access.access_token);
        let sound = Url::parse(&access.cas_url)
            .is_ok_and(|url| url.scheme() == "https" || self.home.scheme() == "http");
        if sound {
            Ok(access)
        } else {
            Err("its storage has no safe address".to_owned())
        }
    }

    /// Asks for a file and follows redirects: on the hub for what a file is, anywhere for its bytes.
    async fn send(
        &self,
        method: Method,
        commit: &str,
        file: &str,
        range: Option<(u64, &str)>,
        stay: bool,
    ) -> Result<Response, Refusal> {
        let home = &self.home;
        let mut url = home.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty();
            path.extend(self.repo.split('/'))
                .extend(["resolve", commit])
                .extend(file.split('/'));
        }
        for _ in 0..=MOST_REDIRECTS {
            let at_home = url.origin() == home.origin();
            let mut request = self.http.request(method.clone(), url.clone());
            // Compressed on the way, a file would have another size and other ranges.
            request = request.header(http::header::ACCEPT_ENCODING, "identity");
            if let Some(token) = self.token.as_ref().filter(|_| at_home) {
                request = request.header(AUTHORIZATION, format!("Bearer {}", token.expose()));
            }
            if let Some((from, etag)) = range {
                request = request.header(RANGE, format!("bytes={from}-"));
                // Elsewhere the same bytes go by another name; what is put together is checked in the end.
                if at_home {
                    request = request.header(IF_RANGE, format!("\"{etag}\""));
                }
            }
            let answer = request
                .send()
                .await
                .map_err(|error| self.unreachable(&url, &error))?;
            let status = answer.status();
            if status.is_redirection() {
                let next = answer
                    .headers()
                    .get(LOCATION)
                    .and_then(|location| location.to_str().ok());
                let Some(next) = next.and_then(|next| url.join(next).ok()) else {
                    return Err(self.strange("a redirect that leads nowhere"));
                };
                if !matches!(next.scheme(), "https" | "http")
                    || (url.scheme() == "https" && next.scheme() == "http")
                {
                    return Err(self.strange("a redirect from https to something less safe"));
                }
                // The hub says what the file is along with where its bytes are.
                if stay && answer.headers().contains_key("x-linked-etag") {
                    return Ok(answer);
                }
                url = next;
                continue;
            }
            let no_such_range = range.is_some() && status == StatusCode::RANGE_NOT_SATISFIABLE;
            if status.is_success() || no_such_range {
                return Ok(answer);
            }
            return Err(self.refusal(status, answer.headers(), file, at_home, commit));
        }
        Err(self.strange("redirects without an end"))
    }

    fn refusal(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        file: &str,
        at_home: bool,
        revision: &str,
    ) -> Refusal {
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if !at_home && !is_passing(status) {
            // Addresses elsewhere are signed for a while; the hub gives new ones at once.
            return Refusal::Later(self.answered(status, file), Some(Duration::ZERO));
        }
        self.explain(
            status,
            header("x-error-code"),
            wait(header(RETRY_AFTER.as_str())),
            file,
            revision,
        )
    }

    fn explain(
        &self,
        status: StatusCode,
        code: Option<&str>,
        wait: Option<Duration>,
        what: &str,
        revision: &str,
    ) -> Refusal {
        let (repo, endpoint) = (self.repo.clone(), self.endpoint.clone());
        let with_token = self.token.is_some();
        match (status.as_u16(), code) {
            (_, Some("GatedRepo")) => Refusal::Never(HubError::Gated {
                repo,
                endpoint,
                with_token,
            }),
            (_, Some("RepoNotFound")) => Refusal::Never(HubError::NoSuchModel {
                repo,
                endpoint,
                with_token,
            }),
            // Mirrors may not say what it is that they miss.
            (404, None) if revision != MAIN => Refusal::Never(HubError::NoSuchRevision {
                repo,
                revision: revision.to_owned(),
                endpoint,
            }),
            (404, Some("RevisionNotFound")) => Refusal::Never(HubError::NoSuchRevision {
                repo,
                revision: revision.to_owned(),
                endpoint,
            }),
            (404, Some("EntryNotFound")) => Refusal::Never(HubError::NothingToServe {
                repo,
                problem: format!("the hub lists {what} and does not have it"),
            }),
            (404, _) => Refusal::Never(HubError::NoSuchModel {
                repo,
                endpoint,
                with_token,
            }),
            (status @ (401 | 403), _) => Refusal::Never(HubError::Token {
                repo,
                endpoint,
                status,
                with_token,
            }),
            (429, _) => Refusal::Later(
                HubError::RateLimited {
                    endpoint,
                    wait: wait.unwrap_or(Duration::from_secs(60)),
                    with_token,
                },
                wait,
            ),
            (status @ (408 | 500..), _) => Refusal::Later(
                HubError::Busy {
                    host: host(&self.endpoint),
                    status,
                    wait: wait.unwrap_or_default(),
                },
                wait,
            ),
            _ => Refusal::Never(self.answered(status, what)),
        }
    }

    fn explain_error(&self, error: HFError, revision: &str) -> Refusal {
        let wait = match &error {
            HFError::RateLimited { retry_after, .. } => *retry_after,
            _ => None,
        };
        match error {
            HFError::Http { context }
            | HFError::AuthRequired { context }
            | HFError::Forbidden { context }
            | HFError::Conflict { context }
            | HFError::RateLimited { context, .. }
            | HFError::RepoNotFound {
                context: Some(context),
                ..
            }
            | HFError::RevisionNotFound {
                context: Some(context),
                ..
            }
            | HFError::EntryNotFound {
                context: Some(context),
                ..
            } => self.explain(
                context.status,
                context.error_code.as_deref(),
                wait,
                "the model",
                revision,
            ),
            HFError::Request { source, .. } if source.is_decode() => {
                self.strange("no JSON where a model should be described")
            }
            HFError::Request { source, .. } => self.unreachable(&self.home, &source),
            other => self.strange(&without_address(&other)),
        }
    }

    fn answered(&self, status: StatusCode, what: &str) -> HubError {
        HubError::Strange {
            host: host(&self.endpoint),
            problem: format!("status {} when asked for {what}", status.as_u16()),
        }
    }

    fn strange(&self, problem: &str) -> Refusal {
        Refusal::Never(HubError::Strange {
            host: host(&self.endpoint),
            problem: problem.to_owned(),
        })
    }

    fn unreachable(&self, url: &Url, error: &reqwest::Error) -> Refusal {
        let host = url.host_str().unwrap_or("the hub").to_owned();
        Refusal::Later(
            HubError::Unreachable {
                host,
                problem: reason(error),
            },
            None,
        )
    }
}

/// The answer of `xet-read-token`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct XetAccess {
    access_token: String,
    /// Seconds since 1970.
    exp: u64,
    cas_url: String,
}

/// Statuses that say nothing about the file.
fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// The innermost cause, without the address, which may be signed.
fn reason(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return SILENT.to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    if std::ptr::addr_eq(cause, error) {
        "the request failed".to_owned()
    } else {
        cause.to_string()
    }
}

/// What `hf-hub` says, without the addresses it quotes.
fn without_address(error: &HFError) -> String {
    let text = error.to_string();
    text.split(" (url=")
        .next()
        .and_then(|text| text.split(" (http").next())
        .unwrap_or_default()
        .to_owned()
}

fn host(endpoint: &str) -> String {
    let url = Url::parse(endpoint).ok();
    url.and_then(|url| url.host_str().map(str::to_owned))
        .unwrap_or_else(|| endpoint.to_owned())
}

fn wait(header: Option<&str>) -> Option<Duration> {
    header?.trim().parse().ok().map(Duration::from_secs)
}

fn plain_etag(text: &str) -> &str {
    text.trim_start_matches("W/").trim_matches('"')
}

/// Whether a content's name can be a file's.
fn is_file_name(etag: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    (1..=LONGEST_ETAG).contains(&etag.len())
        && etag.bytes().all(plain)
        && !etag.starts_with('.')
        && !etag.ends_with(".incomplete")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_contents_stay_file_names() {
        for (header, name) in [
            ("\"abc\"", Some("abc")),
            ("W/\"a-1\"", Some("a-1")),
            ("\"../x\"", None),
            ("\"\"", None),
            ("\".x\"", None),
            ("a.incomplete", None),
        ] {
            let etag = plain_etag(header);
            assert_eq!(Some(etag).filter(|etag| is_file_name(etag)), name);
        }
        assert!(!is_file_name(&"a".repeat(129)));
    }

    #[test]
    fn waits_are_whole_seconds() {
        assert_eq!(wait(Some(" 7 ")), Some(Duration::from_secs(7)));
        assert_eq!(wait(Some("Wed, 21 Oct 2026 07:28:00 GMT")), None);
    }
}
