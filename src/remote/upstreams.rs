//! The floor's public face: every upstream with its client, its state and what is known of it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::Method;
use url::Url;

use super::attempt::{self, Check, Checked, Decoder, Reply, Reporter, Timing};
use super::board::{Board, Outcome, Saved, Ticket};
use super::catalog::{Catalogue, Facts, Shape};
use super::client::{Call, Client, ClientError};
use super::errors::Origin;
use super::fetch::{Fetched, Plane, Question};
use super::translate::{Incoming, Outgoing};
use super::{Billing, Class, Config, Fault, TargetConfig, UpstreamConfig, UpstreamKind, disk};
use crate::egress::{Destination, Passport};
use crate::generation::{Event, Finish, Usage, UsageSource};

/// The part by which a prompt's count is raised before its worst cost is promised: other tokenizers count more.
const INPUT_MARGIN_PERCENT: u64 = 110;

/// Most that one answer can cost whatever its provider says: a thousand US dollars.
const MOST_REPORTED_NUSD: u64 = 1_000_000_000_000;

/// How long a question without text may take.
const QUESTION_TIME: Duration = Duration::from_secs(15);

/// What an answer has cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Nano-USD.
    pub nusd: u64,
    /// Whether nobody but this server has counted the tokens.
    pub estimate: bool,
    /// Whether the provider itself named the amount.
    pub reported: bool,
}

/// Every upstream. Clones share it.
#[derive(Debug, Clone)]
pub struct Remote(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Config,
    clients: BTreeMap<Arc<str>, Client>,
    controls: BTreeMap<Arc<str>, Client>,
    places: BTreeMap<Arc<str>, Destination>,
    board: Board,
    catalogue: Catalogue,
}

impl Remote {
    /// Opens every upstream's client; nothing is sent. What an earlier run left in `state_dir` is taken up.
    ///
    /// `seed` feeds the jitter. Errors: a setting that no client can be made of, in words for the operator.
    pub fn new(config: Config, seed: u64) -> Result<Self, ClientError> {
        let mut clients = BTreeMap::new();
        let mut controls = BTreeMap::new();
        for upstream in &config.upstreams {
            let client = Client::new(upstream, &config.clocks, &config.limits)?;
            clients.insert(Arc::clone(&upstream.name), client);
            if let Some(control) = &upstream.control {
                let client = Client::control(upstream, control, &config.clocks, &config.limits)?;
                controls.insert(Arc::clone(&upstream.name), client);
            }
        }
        let now = Instant::now();
        let board = Board::new(&config, seed, now, SystemTime::now());
        if let Some(saved) = state_file(&config).and_then(|path| read_state(&path)) {
            board.restore(&saved, now);
        }
        let catalogue = Catalogue::open(&config);
        let places = config.upstreams.iter();
        let places = places.map(|upstream| (Arc::clone(&upstream.name), place(upstream)));
        Ok(Self(Arc::new(Inner {
            clients,
            controls,
            places: places.collect(),
            config,
            board,
            catalogue,
        })))
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// Every target's state.
    pub fn board(&self) -> &Board {
        &self.0.board
    }

    /// What is known of every target.
    pub fn catalogue(&self) -> &Catalogue {
        &self.0.catalogue
    }

    /// A target's settings.
    pub fn target(&self, name: &str) -> Option<&TargetConfig> {
        let mut targets = self.0.config.targets.iter();
        targets.find(|target| &*target.name == name)
    }

    /// An upstream's settings.
    pub fn upstream(&self, name: &str) -> Option<&UpstreamConfig> {
        let mut upstreams = self.0.config.upstreams.iter();
        upstreams.find(|upstream| &*upstream.name == name)
    }

    /// What is known of a target for a request of this shape, and where its text would go.
    pub fn look(&self, target: &str, shape: &Shape) -> Option<(Facts, Destination)> {
        let target = self.target(target)?;
        let place = self.0.places.get(&target.upstream)?;
        let facts = self.0.catalogue.facts(target, shape, SystemTime::now())?;
        let destination = Destination {
            target: Arc::clone(&target.name),
            provider: facts.provider.clone(),
            model: Arc::clone(&target.model),
            ..place.clone()
        };
        Some((facts, destination))
    }

    /// Where text may go, for each target.
    pub fn destinations(&self) -> Vec<Destination> {
        let targets = self.0.config.targets.iter();
        targets
            .filter_map(|target| self.look(&target.name, &Shape::default()))
            .map(|(_, destination)| destination)
            .collect()
    }

    /// Most tokens that a request can read and write.
    pub fn worst_tokens(outgoing: &Outgoing) -> (u64, u64) {
        let input = (u64::from(outgoing.prompt_tokens) * INPUT_MARGIN_PERCENT).div_ceil(100);
        (input, u64::from(outgoing.max_output_tokens))
    }

    /// What an answer has cost; none when nobody knows the price.
    ///
    /// What the provider says counts, but for a zero beside tokens that have a price. Where another provider
    /// answered than the one that was asked for, its price counts.
    pub fn cost_nusd(&self, facts: &Facts, provider: Option<&str>, usage: &Usage) -> Option<Cost> {
        let asked = facts.target.provider.as_deref();
        let elsewhere = provider.filter(|actual| asked.is_some_and(|asked| asked != *actual));
        let priced = elsewhere.and_then(|actual| {
            let target = self.target(&facts.target.name)?;
            self.0.catalogue.price_of(target, actual, SystemTime::now())
        });
        let price = priced.or(facts.target.price)?;
        let [input, cached, output] =
            [usage.input_tokens, usage.cached_tokens, usage.output_tokens].map(u64::from);
        let counted = price.cost_nusd(input, cached, output);
        let estimate = usage.source == UsageSource::Estimated;
        // A thousand times what the tokens cost is a mistake in somebody's units.
        let most = match counted {
            0 => MOST_REPORTED_NUSD,
            counted => counted.saturating_mul(1000).min(MOST_REPORTED_NUSD),
        };
        match usage.reported_cost_nusd {
            Some(nusd) if (nusd > 0 || counted == 0) && nusd <= most => Some(Cost {
                nusd,
                estimate: false,
                reported: true,
            }),
            _ => Some(Cost {
                nusd: counted,
                estimate,
                reported: false,
            }),
        }
    }

    /// Makes one attempt: sends what the passport holds, and reads the answer under the clocks. The ticket
    /// hears how it went, once; the whole answer is held against what was asked for before that. What `check`
    /// finds wrong is a fault of [`Class::SchemaViolation`] that holds what the answer has used.
    ///
    /// Errors: the attempt failed before its answer began.
    pub async fn start(
        &self,
        facts: &Facts,
        passport: Passport,
        outgoing: Outgoing,
        ticket: Ticket,
        deadline: Instant,
        check: Option<Check>,
    ) -> Result<Reply, Fault> {
        let inner = &*self.0;
        let missing = || Fault::unsent(Class::Misconfigured, "the upstream is not configured");
        let name = Arc::clone(&passport.destination().upstream);
        let client = inner.clients.get(&name).ok_or_else(missing)?;
        let upstream = self.upstream(&name).ok_or_else(missing)?;
        let clocks = &inner.config.clocks;
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        let mut headers = outgoing.headers;
        let mut headers_within = clocks.headers;
        if let Some(hold) = ticket.scale_up_timeout(left, now) {
            headers.push(("x-scale-up-timeout", hold.as_secs().to_string()));
            headers_within = hold + Duration::from_secs(10);
        }
        let first_token = inner.board.first_token_clock(
            &facts.target.name,
            outgoing.prompt_tokens,
            outgoing.may_reason,
        );
        if !outgoing.stream {
            // A whole answer has its head when it is made.
            headers_within = left;
        }
        let call = Call {
            method: Method::POST,
            path: outgoing.path,
            headers,
            stream: outgoing.stream,
            deadline,
            headers_within,
        };
        let timing = Timing {
            first_token: match outgoing.stream {
                true => first_token.unwrap_or(clocks.first_token_max),
                false => left,
            },
            byte_idle: clocks.byte_idle,
            progress_idle: match outgoing.may_reason {
                true => clocks.progress_idle_reasoning,
                false => clocks.progress_idle,
            },
            deadline,
        };
        let origin = Origin {
            kind: upstream.kind,
            engine: Some(facts.target.engine),
            billing: upstream.billing,
        };
        let reported = Reported {
            ticket,
            catalogue: inner.catalogue.clone(),
            target: self.target(&facts.target.name).cloned(),
            droppable: outgoing.droppable,
            needed: outgoing
                .prompt_tokens
                .saturating_add(outgoing.max_output_tokens),
        };
        attempt::start(
            client,
            passport,
            call,
            origin,
            timing,
            Checked::new(outgoing.incoming.from(origin), check),
            reported,
        )
        .await
    }

    /// Asks an upstream a question that carries nobody's text.
    ///
    /// Errors: no answer came.
    pub async fn ask(&self, passport: Passport, question: Question) -> Result<Fetched, Fault> {
        let clients = match question.plane {
            Plane::Data => &self.0.clients,
            Plane::Control => &self.0.controls,
        };
        let client = clients
            .get(&question.upstream)
            .ok_or_else(|| Fault::new(Class::Misconfigured, "the upstream is not configured"))?;
        let etag = question.etag.map(|etag| ("if-none-match", etag));
        let call = Call {
            method: if question.post {
                Method::POST
            } else {
                Method::GET
            },
            path: question.path,
            headers: Vec::from_iter(etag),
            stream: false,
            deadline: Instant::now() + QUESTION_TIME,
            headers_within: QUESTION_TIME,
        };
        let response = client.send(passport, call).await?;
        let (status, etag) = (response.head.status, response.head.etag.clone());
        Ok(Fetched {
            status,
            etag,
            body: response.whole().await?,
        })
    }

    /// Where a question goes.
    pub fn destination_of(&self, question: &Question) -> Option<Destination> {
        let upstream = self.upstream(&question.upstream)?;
        match (question.plane, &upstream.control) {
            (Plane::Data, _) => Some(place(upstream)),
            (Plane::Control, Some(control)) => {
                let (host, loopback) = host_of(&control.base_url);
                Some(Destination {
                    host,
                    loopback: loopback && upstream.proxy.is_none(),
                    ..place(upstream)
                })
            }
            (Plane::Control, None) => None,
        }
    }

    /// Writes down what should outlive a restart.
    ///
    /// Errors: the file cannot be written.
    pub fn save(&self) -> std::io::Result<()> {
        let Some(path) = state_file(&self.0.config) else {
            return Ok(());
        };
        let saved = serde_json::to_value(self.0.board.save(Instant::now()))?;
        disk::replace(&path, &saved)
    }
}

fn state_file(config: &Config) -> Option<PathBuf> {
    let folder = config.state_dir.as_ref()?;
    Some(folder.join("targets.json"))
}

fn read_state(path: &std::path::Path) -> Option<Saved> {
    match disk::read(path) {
        Ok(document) => serde_json::from_value(document?).ok(),
        Err(problem) => {
            tracing::warn!(file = %path.display(), problem, "what was known of upstreams cannot be read");
            None
        }
    }
}

/// An upstream as a place, whatever model is asked for: what the gate decides upon, for whoever sends there.
pub fn place(upstream: &UpstreamConfig) -> Destination {
    let (host, loopback) = host_of(&upstream.base_url);
    Destination {
        target: Arc::clone(&upstream.name),
        upstream: Arc::clone(&upstream.name),
        host,
        // Through a proxy, text leaves this machine wherever it goes in the end.
        loopback: loopback && upstream.proxy.is_none(),
        dedicated: upstream.billing == Billing::Own
            && !matches!(
                upstream.kind,
                UpstreamKind::HfRouter | UpstreamKind::Replicate
            ),
        provider: upstream.provider.clone(),
        model: "".into(),
    }
}

/// Host and port, and whether that is this machine itself.
fn host_of(base_url: &str) -> (Arc<str>, bool) {
    let Ok(url) = Url::parse(base_url) else {
        return (base_url.into(), false);
    };
    let loopback = match url.host() {
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    let host = url.host_str().unwrap_or_default();
    let host = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    (host.into(), loopback)
}

impl Decoder for Incoming {
    fn event(&mut self, data: &str) -> Result<Vec<Event>, Fault> {
        Self::event(self, data)
    }

    fn whole(&mut self, json: &[u8]) -> Result<Vec<Event>, Fault> {
        Self::whole(self, json)
    }

    fn end(&mut self) -> Result<Vec<Event>, Fault> {
        Self::end(self)
    }

    fn is_done(&self) -> bool {
        Self::is_done(self)
    }

    fn has_ended(&self) -> bool {
        Self::has_ended(self)
    }

    fn late_degraded(&self) -> &[&'static str] {
        Self::late_degraded(self)
    }
}

/// Tells the board and the catalogue how an attempt went.
struct Reported {
    ticket: Ticket,
    catalogue: Catalogue,
    target: Option<TargetConfig>,
    /// Tokens of prompt and answer, at most.
    needed: u32,
    /// Fields that were sent and that the target may turn out not to know.
    droppable: Vec<&'static str>,
}

impl Reporter for Reported {
    fn first_token(&mut self, now: Instant) {
        self.ticket.first_token(now);
        if let Some(target) = &self.target {
            self.catalogue.answered(&target.upstream);
        }
    }

    fn exhausted(&mut self, time: Duration, now: Instant) {
        self.ticket.exhausted(time, now);
    }

    fn finish(self, outcome: Result<&Finish, &Fault>, now: Instant) {
        let outcome = match outcome {
            Ok(finish) => {
                let usage = finish.usage;
                let counted = usage.source == UsageSource::Reported;
                Outcome::Answered {
                    output_tokens: usage.output_tokens,
                    used_tokens: counted
                        .then(|| usage.input_tokens.saturating_add(usage.output_tokens)),
                }
            }
            Err(fault) => {
                // A limit that the request keeps to is not why it was refused.
                let limit = fault.context_length.filter(|limit| *limit < self.needed);
                if let (Some(target), Some(limit)) = (&self.target, limit) {
                    self.catalogue
                        .learn_context(target, limit, SystemTime::now());
                }
                // What a sentence says may be the caller's own words.
                let stated = fault.unknown_field().filter(|_| fault.param_stated);
                let sent = self.droppable.iter();
                let field = sent.copied().find(|field| stated == Some(field));
                if let (Some(target), Some(field)) = (&self.target, field) {
                    self.catalogue
                        .learn_unknown(target, field, SystemTime::now());
                }
                Outcome::failed(fault)
            }
        };
        self.ticket.finish(outcome, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_told_from_loopback() {
        for (url, host, loopback) in [
            (
                "https://router.huggingface.co",
                "router.huggingface.co",
                false,
            ),
            ("http://127.0.0.1:3001", "127.0.0.1:3001", true),
            ("http://localhost:80", "localhost", true),
            ("http://[::1]:9", "[::1]:9", true),
            ("http://10.0.0.1", "10.0.0.1", false),
        ] {
            assert_eq!(host_of(url), (host.into(), loopback), "{url}");
        }
    }
}
