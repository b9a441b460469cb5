//! The settings of this floor, resolved. The defaults are those of every constant an operator may leave out.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::telemetry::Secret;

/// What sort of thing answers at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum UpstreamKind {
    /// Hugging Face Inference Providers.
    HfRouter,
    /// A dedicated Hugging Face Inference Endpoint.
    InferenceEndpoint,
    /// A text-generation-inference server, or another sconce.
    Tgi,
    /// Anything that speaks OpenAI's chat API.
    OpenAiCompat,
    /// Replicate's own prediction API.
    Replicate,
}

impl UpstreamKind {
    /// The name in settings and headers.
    pub fn name(self) -> &'static str {
        match self {
            Self::HfRouter => "hf_router",
            Self::InferenceEndpoint => "inference_endpoint",
            Self::Tgi => "tgi",
            Self::OpenAiCompat => "openai_compat",
            Self::Replicate => "replicate",
        }
    }
}

/// Which engine answers behind an address, where it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EngineKind {
    /// text-generation-inference, or another sconce.
    Tgi,
    /// vLLM.
    Vllm,
    /// llama.cpp's server.
    LlamaCpp,
    /// Nothing known beyond OpenAI's chat API.
    OpenAi,
}

/// Who pays for the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Billing {
    /// Each token is paid for.
    Tokens,
    /// The machine is the operator's or rented by the hour; tokens are free.
    Own,
}

/// The control plane of an Inference Endpoint: asking there wakes nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlPlane {
    /// `https://api.endpoints.huggingface.cloud` unless told otherwise.
    pub base_url: String,
    /// A token with rights to the endpoint.
    pub token: Option<Secret>,
    /// Whose endpoint it is.
    pub namespace: String,
    /// Its name.
    pub endpoint: String,
    /// Whether a paused endpoint may be resumed.
    pub auto_resume: bool,
}

/// One address and the credential for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamConfig {
    /// Its name in settings, headers, logs and metrics.
    pub name: Arc<str>,
    /// What answers there.
    pub kind: UpstreamKind,
    /// Where, without a slash at the end and without `/v1`.
    pub base_url: String,
    /// What engine answers; none means that it is found out.
    pub engine: Option<EngineKind>,
    /// The variable that holds the token.
    pub token_env: Option<String>,
    /// The token, if the variable is set.
    pub token: Option<Secret>,
    /// Why the upstream cannot be used as configured, such as a variable that is not set.
    pub disabled: Option<String>,
    /// The organisation that Hugging Face bills.
    pub bill_to: Option<String>,
    /// Who pays.
    pub billing: Billing,
    /// The provider's name where the upstream is one, for data rules: `together`.
    pub provider: Option<Arc<str>>,
    /// The path of chat completions, where it is not `/v1/chat/completions`.
    pub chat_path: Option<String>,
    /// The control plane.
    pub control: Option<ControlPlane>,
    /// Whether the endpoint may sleep, so that it must not be asked for its health.
    pub scales_to_zero: bool,
    /// Most nano-USD a day; none where budgets over all upstreams say so.
    pub max_nusd_per_day: Option<u64>,
    /// Most requests at once; none means what is learned.
    pub max_concurrency: Option<usize>,
    /// Requests a minute.
    pub rpm: Option<u32>,
    /// Tokens a minute.
    pub tpm: Option<u32>,
    /// Whether plain HTTP is allowed although the host is not loopback.
    pub allow_plaintext: bool,
    /// Whether the host may resolve to private addresses.
    pub allow_private: bool,
    /// A PEM file with the authorities to trust instead of the public ones.
    pub ca_file: Option<PathBuf>,
    /// A proxy to go through.
    pub proxy: Option<String>,
}

impl UpstreamConfig {
    /// One that needs no token, at which nothing may be spent, and of which nothing else is said.
    pub fn new(name: &str, kind: UpstreamKind, base_url: String) -> Self {
        Self {
            name: name.into(),
            kind,
            base_url,
            engine: None,
            token_env: None,
            token: None,
            disabled: None,
            bill_to: None,
            billing: Billing::Tokens,
            provider: None,
            chat_path: None,
            control: None,
            scales_to_zero: false,
            max_nusd_per_day: Some(0),
            max_concurrency: None,
            rpm: None,
            tpm: None,
            allow_plaintext: false,
            allow_private: false,
            ca_file: None,
            proxy: None,
        }
    }
}

/// Who runs a model at a router.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ProviderChoice {
    /// The upstream has one only.
    Whoever,
    /// This one: `model:provider`.
    Pinned(Arc<str>),
    /// The router chooses by this policy: `fastest`, `cheapest`, `preferred`.
    Policy(Arc<str>),
    /// We choose by the router's catalogue and this policy, and pin what we chose.
    Auto(Arc<str>),
}

/// Prices in pico-USD a token: USD per million tokens × 10^6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Price {
    /// A token read.
    pub input_pusd: u64,
    /// A token read that was cached; none means that of any other.
    pub cached_pusd: Option<u64>,
    /// A token written.
    pub output_pusd: u64,
}

impl Price {
    /// Nothing.
    pub const FREE: Self = Self {
        input_pusd: 0,
        cached_pusd: None,
        output_pusd: 0,
    };

    /// Nano-USD for so many tokens, rounded up.
    pub fn cost_nusd(&self, input: u64, cached: u64, output: u64) -> u64 {
        let cached = cached.min(input);
        let pico = u128::from(input - cached) * u128::from(self.input_pusd)
            + u128::from(cached) * u128::from(self.cached_pusd.unwrap_or(self.input_pusd))
            + u128::from(output) * u128::from(self.output_pusd);
        u64::try_from(pico.div_ceil(1000)).unwrap_or(u64::MAX)
    }
}

/// What an answer that broke off is counted at, where nobody says what it cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CancelSettle {
    /// The whole prompt, and what was seen of the answer.
    #[default]
    Shown,
    /// The worst case that was held for it.
    Reserved,
}

/// What a target can do; none means not known, which counts as no where nothing may be degraded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// Functions may be called.
    pub tools: Option<bool>,
    /// JSON Schemas are kept to.
    pub structured_output: Option<bool>,
    /// Log-probabilities are returned.
    pub logprobs: Option<bool>,
    /// `top_k` is honoured.
    pub top_k: Option<bool>,
    /// `min_p` is honoured.
    pub min_p: Option<bool>,
    /// `repetition_penalty` is honoured.
    pub repetition_penalty: Option<bool>,
    /// `logit_bias` is honoured; token ids only mean the same for the same tokenizer.
    pub logit_bias: Option<bool>,
    /// Seeds are honoured.
    pub seed: Option<bool>,
    /// Regular expressions are kept to.
    pub regex: Option<bool>,
    /// An assistant's last message is continued.
    pub prefill: Option<bool>,
    /// Answers come as events where they are asked for so.
    pub streaming: Option<bool>,
    /// `stream_options` is understood.
    pub stream_options: Option<bool>,
    /// A route that takes a raw prompt.
    pub raw_prompt: Option<bool>,
}

impl Capabilities {
    /// Fields of a request that a target may turn out not to know, under every fidelity and under the lenient one:
    /// without the first nothing of the answer changes but who counts its tokens.
    pub fn droppable(fidelity: Fidelity) -> BTreeSet<&'static str> {
        let lossy: &[&str] = match fidelity {
            Fidelity::Strict => &[],
            Fidelity::Lenient => &[
                "top_k",
                "min_p",
                "repetition_penalty",
                "repeat_penalty",
                "seed",
            ],
        };
        lossy.iter().copied().chain(["stream_options"]).collect()
    }

    /// The target has refused a request because of this field. Fields that are no ability change nothing.
    pub fn deny(&mut self, field: &str) {
        let ability = match field {
            "stream_options" => &mut self.stream_options,
            "top_k" => &mut self.top_k,
            "min_p" => &mut self.min_p,
            "repetition_penalty" | "repeat_penalty" => &mut self.repetition_penalty,
            "seed" => &mut self.seed,
            _ => return,
        };
        *ability = Some(false);
    }
}

/// One model at one upstream, run by one provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetConfig {
    /// Its name in settings, records and metrics.
    pub name: Arc<str>,
    /// The upstream's name.
    pub upstream: Arc<str>,
    /// The model's name there.
    pub model: Arc<str>,
    /// Who runs it.
    pub provider: ProviderChoice,
    /// What it costs, if the operator says so; it wins over any catalogue.
    pub price: Option<Price>,
    /// Tokens of prompt and answer together, if the operator says so.
    pub context_length: Option<u32>,
    /// What the operator says it can do; it wins over any catalogue.
    pub capabilities: Capabilities,
    /// Whether it has the same weights and tokenizer as the local model, so that it may continue its answers.
    pub same_model: bool,
    /// Most nano-USD one request may cost at worst.
    pub max_cost_nusd: Option<u64>,
    /// What an answer that broke off is counted at.
    pub cancel: CancelSettle,
}

/// What becomes of what a target cannot do exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Fidelity {
    /// The request does not go there.
    #[default]
    Strict,
    /// It goes, and the answer's headers name what is missing.
    Lenient,
}

/// The time each part of an attempt may take; all are cut by the request's deadline.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Clocks {
    /// A place to send from.
    pub pool: Duration,
    /// TCP and TLS.
    pub connect: Duration,
    /// Sending the body, and more for each MiB of it.
    pub send: Duration,
    /// The part of `send` for each MiB.
    pub send_per_mib: Duration,
    /// Response headers.
    pub headers: Duration,
    /// First token: at least this.
    pub first_token_min: Duration,
    /// First token: at most this.
    pub first_token_max: Duration,
    /// First token, where the model may reason first.
    pub first_token_reasoning: Duration,
    /// First token: times the target's usual (95th percentile).
    pub first_token_factor: f64,
    /// Prompt tokens a second that the first token's clock allows for.
    pub prompt_tokens_per_second: f64,
    /// Silence, not even a comment.
    pub byte_idle: Duration,
    /// No text, whatever else comes.
    pub progress_idle: Duration,
    /// The same while the model may reason.
    pub progress_idle_reasoning: Duration,
    /// Time that must be left for an attempt to begin.
    pub least_left: Duration,
}

impl Default for Clocks {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            pool: s(1),
            connect: s(3),
            send: s(10),
            send_per_mib: s(1),
            headers: s(15),
            first_token_min: s(5),
            first_token_max: s(60),
            first_token_reasoning: s(120),
            first_token_factor: 4.0,
            prompt_tokens_per_second: 500.0,
            byte_idle: s(30),
            progress_idle: s(60),
            progress_idle_reasoning: s(300),
            least_left: s(2),
        }
    }
}

/// Retries and backoff.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryConfig {
    /// Attempts for one request in all.
    pub max_attempts: u32,
    /// Attempts at one target.
    pub max_per_target: u32,
    /// Targets of a chain that are tried.
    pub max_hops: u32,
    /// The first backoff's upper end; doubled each time.
    pub backoff_base: Duration,
    /// The longest backoff.
    pub backoff_max: Duration,
    /// What each first attempt adds to its upstream's retry budget.
    pub budget_ratio: f64,
    /// How long that lasts.
    pub budget_ttl: Duration,
    /// Retries a second that are always allowed.
    pub budget_floor_per_second: f64,
    /// Whether a second attempt may start beside one that is slow.
    pub hedge: bool,
    /// The least time before that.
    pub hedge_after_min: Duration,
    /// Share of requests that may be hedged.
    pub hedge_ratio: f64,
    /// Most nano-USD a hedge may cost at worst.
    pub hedge_max_nusd: u64,
}

impl Default for RetryConfig {
    fn default() -> Self {
        Self {
            max_attempts: 3,
            max_per_target: 2,
            max_hops: 3,
            backoff_base: Duration::from_millis(250),
            backoff_max: Duration::from_secs(8),
            budget_ratio: 0.2,
            budget_ttl: Duration::from_secs(10),
            budget_floor_per_second: 1.0,
            hedge: false,
            hedge_after_min: Duration::from_secs(2),
            hedge_ratio: 0.02,
            hedge_max_nusd: 0,
        }
    }
}

/// When a target counts as broken, and for how long.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerConfig {
    /// Failures in a row that open it.
    pub consecutive_failures: u32,
    /// The window over which a rate is looked at.
    pub window: Duration,
    /// Attempts that the window must hold for a rate to count.
    pub min_attempts: u32,
    /// Share of failures that opens it.
    pub failure_rate: f64,
    /// Share of slow attempts that opens it.
    pub slow_rate: f64,
    /// An attempt is slow when its first token takes so many times the usual.
    pub slow_factor: f64,
    /// How long it stays open the first time; doubled each time.
    pub open_base: Duration,
    /// How long at most.
    pub open_max: Duration,
    /// Random share by which that varies.
    pub open_jitter: f64,
    /// Time without trouble after which the doubling begins anew.
    pub calm: Duration,
    /// Trial requests while half open.
    pub probes: u32,
    /// Successes that close it.
    pub successes_to_close: u32,
    /// One request in this time is let through when nothing else is left.
    pub panic_interval: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            consecutive_failures: 5,
            window: s(30),
            min_attempts: 10,
            failure_rate: 0.5,
            slow_rate: 0.8,
            slow_factor: 3.0,
            open_base: s(5),
            open_max: s(300),
            open_jitter: 0.2,
            calm: s(600),
            probes: 3,
            successes_to_close: 2,
            panic_interval: s(5),
        }
    }
}

/// How long a target that says "not now" is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParkingConfig {
    /// Without a hint, the first time; doubled each time.
    pub base: Duration,
    /// Without a hint, at most.
    pub max: Duration,
    /// A hint counts up to this.
    pub hint_max: Duration,
    /// A hint up to this is waited for when there is nowhere else to go.
    pub wait_max: Duration,
    /// Requests that wait for room at one target, at most.
    pub max_waiting: usize,
    /// How often an exhausted quota is looked at again.
    pub quota_recheck: Duration,
}

impl Default for ParkingConfig {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            base: s(5),
            max: s(60),
            hint_max: s(3600),
            wait_max: s(5),
            max_waiting: 64,
            quota_recheck: s(900),
        }
    }
}

/// How many requests a target gets at once, learned from how it copes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdaptiveConfig {
    /// At first.
    pub start: u32,
    /// At least.
    pub min: u32,
    /// At most.
    pub max: u32,
    /// What a sign of overload multiplies it with.
    pub decrease: f64,
    /// It does not grow while first tokens take so many times the usual.
    pub hold_factor: f64,
}

impl Default for AdaptiveConfig {
    fn default() -> Self {
        Self {
            start: 8,
            min: 1,
            max: 64,
            decrease: 0.7,
            hold_factor: 2.0,
        }
    }
}

/// How a sleeping endpoint is woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ColdStartConfig {
    /// How long waking takes before it was ever seen.
    pub prior: Duration,
    /// The longest that the endpoint's proxy is asked to hold a request.
    pub hold_max: Duration,
    /// How often the control plane is asked.
    pub poll: Duration,
    /// When waking is given up.
    pub give_up: Duration,
}

impl Default for ColdStartConfig {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            prior: s(180),
            hold_max: s(600),
            poll: s(5),
            give_up: s(900),
        }
    }
}

/// What an upstream may make this server hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one response.
    pub response_bytes: usize,
    /// Bytes of one event.
    pub event_bytes: usize,
    /// Bytes of a response's head.
    pub head_bytes: usize,
    /// Bytes of an error that are read.
    pub error_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            response_bytes: 64 << 20,
            event_bytes: 1 << 20,
            head_bytes: 64 << 10,
            error_bytes: 16 << 10,
        }
    }
}

/// Everything that upstreams need.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The upstreams, by the order they were written in.
    pub upstreams: Vec<UpstreamConfig>,
    /// The targets, by the order they were written in.
    pub targets: Vec<TargetConfig>,
    /// What becomes of what cannot be done exactly.
    pub fidelity: Fidelity,
    /// Tokens to ask for when the caller names no number.
    pub default_max_tokens: u32,
    /// Answers in the making at once.
    pub max_concurrent_requests: usize,
    /// Hosts whose images a provider may fetch; data in the request itself is always allowed.
    pub image_hosts: BTreeSet<String>,
    /// Time limits.
    pub clocks: Clocks,
    /// Retries.
    pub retry: RetryConfig,
    /// Breakers.
    pub breaker: BreakerConfig,
    /// Parking.
    pub parking: ParkingConfig,
    /// Concurrency.
    pub adaptive: AdaptiveConfig,
    /// Cold starts.
    pub cold_start: ColdStartConfig,
    /// Bounds.
    pub limits: Limits,
    /// How often catalogues are refreshed.
    pub catalog_refresh: Duration,
    /// Where the catalogue, capabilities and states outlive a restart; none keeps them in memory.
    pub state_dir: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            upstreams: Vec::new(),
            targets: Vec::new(),
            fidelity: Fidelity::Strict,
            default_max_tokens: 1024,
            max_concurrent_requests: 512,
            image_hosts: BTreeSet::new(),
            clocks: Clocks::default(),
            retry: RetryConfig::default(),
            breaker: BreakerConfig::default(),
            parking: ParkingConfig::default(),
            adaptive: AdaptiveConfig::default(),
            cold_start: ColdStartConfig::default(),
            limits: Limits::default(),
            catalog_refresh: Duration::from_secs(900),
            state_dir: None,
        }
    }
}
