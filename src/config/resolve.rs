//! From what was written to what each floor needs: every default and every check, all faults at once.
//!
//! It happens in two halves, because limits depend on the model: [`Settings`] needs the machine only,
//! [`Settings::capacity`] needs the model's dimensions too.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use http::HeaderValue;

use super::alerts::AlertSettings;
use super::egress::AuditSettings;
use super::hybrid::{Hybrid, Sections};
use super::keys::Grants;
use super::platform::{Platform, is_route};
use super::raw::{RawConfig, TgiOnly};
use super::{ConfigError, Machine, keys};
use crate::api::{ApiKey, Compat, Key, ReasoningFormat};
use crate::hub::catalogue::{self, AUTO, Named};
use crate::hub::{HubSettings, ModelName};
use crate::model::{BLOCK_TOKENS, FloatType, Tier};
use crate::telemetry::LogSettings;
use crate::{dispatch, egress, engine, remote, route};

/// Where the model comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelSource {
    /// The demo model inside the binary.
    Embedded,
    /// A folder or a GGUF file.
    Path(PathBuf),
    /// A model at the hub, or in the cache of what has been downloaded from there.
    Hub(HubModel),
    /// There is none: upstreams answer everything.
    None,
}

/// A model by its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    /// The repository, and which of its GGUF files.
    pub name: ModelName,
    /// A branch, a tag or a commit, if not the main branch.
    pub revision: Option<String>,
    /// Where it is, and where it is kept.
    pub hub: HubSettings,
    /// How the `model_id` led to it, if that is not plain.
    pub why: Option<String>,
}

/// What HTTPS needs, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate chain, the server's own first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Everything that does not depend on the model.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where the model comes from.
    pub model: ModelSource,
    /// The float type to hold weights in, if not as stored.
    pub dtype: Option<FloatType>,
    /// tokenizer_config.json instead of the model's own.
    pub tokenizer_config_path: Option<PathBuf>,
    /// Where to listen.
    pub address: SocketAddr,
    /// Time to finish after SIGTERM.
    pub drain: Duration,
    /// Certificate and key, to serve HTTPS.
    pub tls: Option<TlsFiles>,
    /// Connections open at once.
    pub max_connections: usize,
    /// Time a client may leave an answer unread.
    pub write_stall: Duration,
    /// Time a client has to send a request's head.
    pub header_read: Duration,
    /// Time a client has to send a request's body.
    pub body_read: Duration,
    /// Threads that compute.
    pub threads: NonZeroUsize,
    /// Instructions to compute with, if not the best.
    pub tier: Option<Tier>,
    /// Logs.
    pub log: LogSettings,
    /// Limit of `best_of`.
    pub max_best_of: usize,
    /// Limit of `stop`.
    pub max_stop_sequences: usize,
    /// Limit of `top_n_tokens`.
    pub max_top_n_tokens: u32,
    /// Most prompts of one completions call.
    pub max_client_batch_size: usize,
    /// Most bytes of a body.
    pub payload_limit_bytes: usize,
    /// Limit of `n`.
    pub max_choices: usize,
    /// Which wire is spoken where TGI and OpenAI disagree.
    pub compat: Compat,
    /// Where a model's reasoning goes.
    pub reasoning_format: ReasoningFormat,
    /// Routes that a platform asks for.
    pub platform: Platform,
    /// The key that callers without a name must show.
    pub api_key: Option<ApiKey>,
    /// The keys of named callers.
    pub keys: Vec<Key>,
    /// The file that they stand in, to be read again on SIGHUP.
    pub keys_file: Option<PathBuf>,
    /// Whether every route but health asks for a key.
    pub guard_all: bool,
    /// Origins whose pages may call.
    pub cors_allow_origin: Vec<HeaderValue>,
    /// Silence after which a stream sends a comment.
    pub keep_alive: Duration,
    /// Value of the `x-compute-type` header.
    pub compute_type: HeaderValue,
    /// Upstreams and their targets; none without an upstream.
    pub remote: Option<remote::Config>,
    /// Who answers which request.
    pub route: route::Config,
    /// What may leave this machine, and for whom.
    pub egress: egress::Config,
    /// Where it is written down what has left; none without an upstream.
    pub audit: Option<AuditSettings>,
    /// Where money is written down, and how much there is; none where nothing is kept.
    pub ledger: Option<crate::ledger::Config>,
    /// Who is told about money and targets, and when.
    pub alerts: AlertSettings,
    /// What the operator should know, to be logged once logging runs.
    pub warnings: Vec<String>,
    max_concurrent_requests: NonZeroUsize,
    max_input_tokens: Option<usize>,
    max_total_tokens: Option<usize>,
    max_batch_prefill_tokens: NonZeroUsize,
    max_batch_total_tokens: Option<usize>,
    max_batch_size: Option<NonZeroUsize>,
    validation_workers: usize,
    prompt_logprobs: bool,
    max_request_duration: Duration,
    grammars: bool,
    memory_bytes: usize,
}

/// What limits depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelFacts {
    /// The model's context.
    pub max_positions: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Bytes of KV cache one token takes.
    pub kv_bytes_per_token: usize,
    /// Bytes of all weights.
    pub weight_bytes: usize,
}

/// Limits that depend on the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capacity {
    /// The engine's bounds.
    pub engine: engine::Config,
    /// The hall's bounds.
    pub dispatch: dispatch::Config,
}

/// No count of requests, tokens or bytes that an operator can mean is larger.
const MOST: usize = 1 << 40;
/// Every waiting request has a place of its own in the engine's queue.
const MOST_REQUESTS: usize = 1 << 16;
/// Jobs in that queue whose callers have left, and have given their places to others, until the engine's next step.
const ABANDONED_JOBS: usize = 1024;
const MOST_THREADS: usize = 1024;
/// Tokens of prompt and answer where only upstreams bound them.
const REMOTE_CONTEXT: usize = 1 << 20;
const DEFAULT_CONCURRENCY: usize = 128;
/// Half of the files that a process may usually open.
const DEFAULT_CONNECTIONS: usize = 512;
const MOST_CONNECTIONS: usize = 1 << 20;
/// A step's token budget: enough rows to work at the speed of arithmetic, few enough that running answers
/// do not stall for long behind a prompt.
const DEFAULT_STEP_TOKENS: usize = 128;
/// The `model_id` of a server that computes nothing itself.
const NO_MODEL: &str = "none";

impl Settings {
    /// Resolves what does not depend on the model.
    ///
    /// Errors: every fault found, one sentence each.
    pub fn resolve(raw: RawConfig, machine: &Machine) -> Result<Self, ConfigError> {
        let RawConfig {
            model_id,
            mut revision,
            huggingface_hub_cache,
            dtype,
            hostname,
            port,
            max_concurrent_requests,
            max_best_of,
            max_choices,
            max_stop_sequences,
            max_top_n_tokens,
            max_input_tokens,
            max_input_length,
            max_total_tokens,
            max_batch_prefill_tokens,
            max_batch_total_tokens,
            max_batch_size,
            validation_workers,
            max_client_batch_size,
            payload_limit,
            enable_prefill_logprobs,
            max_request_seconds,
            graceful_termination_timeout,
            max_connections,
            header_read_seconds,
            body_read_seconds,
            write_stall_seconds,
            keep_alive_seconds,
            compat,
            reasoning_format,
            tls_cert,
            tls_key,
            guard_all,
            api_key,
            keys,
            keys_file,
            platform,
            cors_allow_origin,
            tokenizer_config_path,
            cpu_threads,
            cpu_tier,
            numerics,
            compute_type,
            log_level,
            json_output,
            ignored_hostname,
            offline,
            remote,
            route,
            egress,
            providers,
            audit,
            ledger,
            budget,
            alerts,
            variables,
            secrets,
            tgi_only,
        } = raw;
        let mut faults = Faults(secrets);
        let mut warnings = tgi_only_faults(&tgi_only, &mut faults);

        let not_an_address =
            |name: &str| format!("hostname `{name}` is not an IP address and is ignored");
        warnings.extend(ignored_hostname.as_deref().map(not_an_address));
        let ip = match hostname.as_deref().map(str::parse::<IpAddr>) {
            Some(Ok(ip)) => ip,
            Some(Err(_)) => {
                warnings.extend(hostname.as_deref().map(not_an_address));
                IpAddr::V4(Ipv4Addr::LOCALHOST)
            }
            None => IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        if max_input_tokens.is_some() && max_input_length.is_some() {
            faults.add(
                "max_input_tokens and max_input_length are the same setting; give one of them",
            );
        }
        let max_concurrent_requests = faults.count(
            "max_concurrent_requests",
            max_concurrent_requests,
            DEFAULT_CONCURRENCY,
            MOST_REQUESTS,
        );
        let tls = match (tls_cert, tls_key) {
            (None, None) => None,
            (Some(cert), Some(key)) => Some(TlsFiles { cert, key }),
            _ => {
                faults.add("tls_cert and tls_key belong together; give both or neither");
                None
            }
        };
        let Platform {
            predict_route,
            health_route,
        } = &platform;
        for (name, route) in [
            ("AIP_PREDICT_ROUTE", predict_route),
            ("AIP_HEALTH_ROUTE", health_route),
        ] {
            if route.as_deref().is_some_and(|route| !is_route(route)) {
                faults.add(format!("{name} is not a plain path that begins with `/`"));
            }
        }
        let compat: Compat = faults.parsed(compat).unwrap_or_default();
        let max_request_duration = faults.seconds("max_request_seconds", max_request_seconds, 600);
        let model = match model_id {
            None => ModelSource::Embedded,
            Some(id) if id == NO_MODEL => ModelSource::None,
            Some(id) => {
                let variable =
                    |name: &str| variables.get(name).map(|value| value.expose().to_owned());
                let offline = offline.unwrap_or(false);
                let hub = HubSettings::from_variables(variable, huggingface_hub_cache, offline);
                let free = machine.available_memory_bytes as u64;
                model_source(&id, revision.take(), hub, free).unwrap_or_else(|fault| {
                    faults.add(fault);
                    ModelSource::None
                })
            }
        };
        if revision.is_some() {
            faults.add("`revision` has a meaning for a model of the hub only: leave it out, or give a model_id such as `org/name`");
        }
        let file = keys_file.as_deref().unwrap_or(Path::new(""));
        let mut grants = Grants::default();
        let keys = keys::resolve(keys, file, &mut grants, &mut faults.0);
        let sections = Sections {
            remote,
            route,
            egress,
            providers,
            audit,
            ledger,
            budget,
            alerts,
        };
        let hybrid = Hybrid::resolve(
            &sections,
            file,
            &variables,
            (&keys, grants),
            &model,
            offline.unwrap_or(false),
        );
        let Hybrid {
            remote,
            route,
            egress,
            audit,
            ledger,
            alerts,
            notes,
        } = hybrid;
        let (found, noted) = notes.into_parts();
        faults.0.extend(found);
        warnings.extend(noted);
        let settings = Self {
            model,
            dtype: dtype.and_then(|name| float_type(&name, &mut faults)),
            tokenizer_config_path,
            address: SocketAddr::new(ip, port.unwrap_or(3000)),
            drain: Duration::from_secs(graceful_termination_timeout.unwrap_or(90)),
            tls,
            max_connections: faults
                .count(
                    "max_connections",
                    max_connections,
                    DEFAULT_CONNECTIONS.max(2 * max_concurrent_requests.get()),
                    MOST_CONNECTIONS,
                )
                .get(),
            write_stall: faults.seconds("write_stall_seconds", write_stall_seconds, 60),
            header_read: faults.seconds("header_read_seconds", header_read_seconds, 30),
            body_read: faults
                .seconds("body_read_seconds", body_read_seconds, 60)
                .min(max_request_duration),
            threads: faults.count("cpu_threads", cpu_threads, machine.cpus.get(), MOST_THREADS),
            tier: cpu_tier.and_then(|name| tier(&name, &mut faults)),
            log: LogSettings {
                level: log_level.unwrap_or_else(|| "info".to_owned()),
                json: json_output.unwrap_or(false),
                color: std::io::IsTerminal::is_terminal(&std::io::stderr()),
            },
            max_best_of: faults.positive("max_best_of", max_best_of, 2).get(),
            max_stop_sequences: max_stop_sequences.unwrap_or(4),
            max_top_n_tokens: max_top_n_tokens.unwrap_or(5),
            max_client_batch_size: faults
                .positive("max_client_batch_size", max_client_batch_size, 4)
                .get(),
            payload_limit_bytes: faults
                .positive("payload_limit", payload_limit, 2_000_000)
                .get(),
            max_choices: faults.positive("max_choices", max_choices, 8).get(),
            compat,
            reasoning_format: faults
                .parsed(reasoning_format)
                .unwrap_or(compat.reasoning_format()),
            platform,
            api_key: api_key.and_then(|key| ApiKey::new(&key.0).map_err(|e| faults.add(e)).ok()),
            keys,
            keys_file,
            guard_all: guard_all.unwrap_or(false),
            cors_allow_origin: origins(cors_allow_origin.unwrap_or_default(), &mut faults),
            keep_alive: faults.seconds("keep_alive_seconds", keep_alive_seconds, 15),
            compute_type: header(compute_type, &mut faults),
            max_concurrent_requests,
            max_input_tokens: max_input_tokens.or(max_input_length),
            max_total_tokens: faults
                .optional("max_total_tokens", max_total_tokens)
                .map(NonZeroUsize::get),
            max_batch_prefill_tokens: faults.positive(
                "max_batch_prefill_tokens",
                max_batch_prefill_tokens,
                DEFAULT_STEP_TOKENS,
            ),
            max_batch_total_tokens: faults
                .optional("max_batch_total_tokens", max_batch_total_tokens)
                .map(NonZeroUsize::get),
            max_batch_size: faults.optional("max_batch_size", max_batch_size),
            validation_workers: faults
                .count("validation_workers", validation_workers, 2, MOST_THREADS)
                .get(),
            prompt_logprobs: enable_prefill_logprobs.unwrap_or(false),
            max_request_duration,
            grammars: tgi_only.disable_grammar_support != Some(true),
            memory_bytes: machine.available_memory_bytes,
            remote,
            route,
            egress,
            audit,
            ledger,
            alerts,
            warnings,
        };
        if let Some(mode) = numerics
            && mode != "invariant"
        {
            faults.add(format!("numerics `{mode}` is not served; invariant is"));
        }
        faults.or(settings)
    }

    /// Fits limits to a model and this machine's memory.
    ///
    /// Without `max_batch_total_tokens` the KV cache takes at most half of the memory that is left beside
    /// the weights, and no more than all permitted requests at full length could use.
    /// Errors: limits that contradict each other or do not fit.
    pub fn capacity(&self, model: &ModelFacts) -> Result<Capacity, ConfigError> {
        let mut faults = Faults(Vec::new());
        let context = model.max_positions;
        // Scores of every row of a step, when callers may ask for those of their prompts.
        let scored_rows = if self.prompt_logprobs {
            self.max_batch_prefill_tokens
        } else {
            NonZeroUsize::MIN
        };
        let scores = model
            .vocab
            .saturating_mul(4)
            .saturating_mul(scored_rows.get());
        let left = self
            .memory_bytes
            .saturating_sub(model.weight_bytes)
            .saturating_sub(scores);
        let per_token = model.kv_bytes_per_token.max(1);
        let usable = self
            .max_concurrent_requests
            .get()
            .saturating_mul(self.max_total_tokens.unwrap_or(context));
        let fitting = left / 2 / per_token;
        let cache_tokens = self
            .max_batch_total_tokens
            .unwrap_or(fitting.min(usable).max(BLOCK_TOKENS));
        let bytes = cache_tokens.saturating_mul(per_token);
        if bytes > left {
            faults.add(format!(
                "`max_batch_total_tokens` ({cache_tokens}) asks for {} MiB of KV cache, and {} MiB are left beside the weights; {} tokens fit",
                bytes >> 20,
                left >> 20,
                left / per_token
            ));
        }
        if cache_tokens < 2 * BLOCK_TOKENS && self.max_batch_total_tokens.is_some() {
            faults.add(format!(
                "`max_batch_total_tokens` ({cache_tokens}) must be >= {}",
                2 * BLOCK_TOKENS
            ));
        }
        let num_blocks = cache_tokens / BLOCK_TOKENS;
        let holds = num_blocks * BLOCK_TOKENS;
        let max_total_tokens = self.max_total_tokens.unwrap_or(context.min(holds));
        let max_input_tokens = self
            .max_input_tokens
            .unwrap_or(max_total_tokens.saturating_sub(1));
        if max_total_tokens > context {
            faults.add(format!(
                "`max_total_tokens` ({max_total_tokens}) must be <= the model's context ({context})"
            ));
        }
        if max_total_tokens > holds {
            faults.add(format!("`max_total_tokens` ({max_total_tokens}) must be <= `max_batch_total_tokens` ({holds}, whole blocks of {BLOCK_TOKENS})"));
        }
        if max_input_tokens == 0 || max_input_tokens >= max_total_tokens {
            faults.add(format!("`max_input_tokens` ({max_input_tokens}) must be > 0 and < `max_total_tokens` ({max_total_tokens})"));
        }
        if self
            .max_batch_size
            .is_some_and(|size| size > self.max_batch_prefill_tokens)
        {
            faults.add("`max_batch_size` must be <= `max_batch_prefill_tokens`: every running sequence takes a token of each step");
        }
        let max_running = self.max_batch_size.unwrap_or(self.max_concurrent_requests);
        faults.or(Capacity {
            engine: engine::Config {
                max_batched_tokens: self.max_batch_prefill_tokens,
                max_running: max_running.min(self.max_batch_prefill_tokens),
                max_queued: self.max_concurrent_requests.saturating_add(ABANDONED_JOBS),
                num_blocks,
            },
            dispatch: dispatch::Config {
                max_concurrent_requests: self.max_concurrent_requests.get(),
                max_input_tokens,
                max_total_tokens,
                validation_workers: self.validation_workers,
                prompt_logprobs: self.prompt_logprobs,
                max_request_duration: self.max_request_duration,
                grammars: self.grammars,
            },
        })
    }

    /// The hall's bounds where every answer is made elsewhere: the upstreams' own hold.
    pub fn limits_without_model(&self) -> dispatch::Config {
        let max_total_tokens = self.max_total_tokens.unwrap_or(REMOTE_CONTEXT);
        dispatch::Config {
            max_concurrent_requests: self.max_concurrent_requests.get(),
            max_input_tokens: self.max_input_tokens.unwrap_or(max_total_tokens - 1),
            max_total_tokens,
            validation_workers: self.validation_workers,
            prompt_logprobs: self.prompt_logprobs,
            max_request_duration: self.max_request_duration,
            grammars: self.grammars,
        }
    }
}

/// What is wrong so far.
struct Faults(Vec<String>);

impl Faults {
    fn add(&mut self, fault: impl Into<String>) {
        self.0.push(fault.into());
    }

    /// A count from 1 to `most`.
    fn count(
        &mut self,
        name: &str,
        value: Option<usize>,
        default: usize,
        most: usize,
    ) -> NonZeroUsize {
        let value = value.unwrap_or(default);
        if value == 0 {
            self.add(format!("`{name}` must be > 0"));
        } else if value > most {
            self.add(format!("`{name}` must be <= {most}. Given: {value}"));
        }
        NonZeroUsize::new(value.min(most)).unwrap_or(NonZeroUsize::MIN)
    }

    fn positive(&mut self, name: &str, value: Option<usize>, default: usize) -> NonZeroUsize {
        self.count(name, value, default, MOST)
    }

    fn optional(&mut self, name: &str, value: Option<usize>) -> Option<NonZeroUsize> {
        value.map(|value| self.positive(name, Some(value), value))
    }

    fn seconds(&mut self, name: &str, value: Option<u64>, default: u64) -> Duration {
        if value == Some(0) {
            self.add(format!("`{name}` must be > 0"));
        }
        // A year is as good as for ever, and keeps instants computable.
        Duration::from_secs(value.unwrap_or(default).min(366 * 24 * 3600))
    }

    /// A choice by name.
    fn parsed<T: FromStr<Err = String>>(&mut self, name: Option<String>) -> Option<T> {
        name?.parse().map_err(|fault: String| self.add(fault)).ok()
    }

    fn or<T>(self, value: T) -> Result<T, ConfigError> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(ConfigError(self.0))
        }
    }
}

/// Refuses settings of TGI that ask for what is not there, and returns warnings for those without effect.
fn tgi_only_faults(tgi_only: &TgiOnly, faults: &mut Faults) -> Vec<String> {
    let TgiOnly {
        sharded,
        num_shard,
        quantize,
        lora_adapters,
        speculate,
        trust_remote_code,
        waiting_served_ratio,
        max_waiting_tokens,
        prometheus_port,
        disable_grammar_support: _,
        usage_stats,
        cuda_graphs,
        cuda_memory_fraction,
        disable_custom_kernels,
        rope_scaling,
        rope_factor,
        kv_cache_dtype,
        weights_cache_override,
        otlp_endpoint,
        otlp_service_name,
        watermark_gamma,
        watermark_delta,
    } = tgi_only;
    if sharded == &Some(true) || num_shard.is_some_and(|n| n != 1) {
        faults.add("a model runs on one device here: leave `sharded` and `num_shard` out");
    }
    if let Some(scheme) = quantize {
        faults.add(format!("`quantize` asks for `{scheme}`; weights are served as stored: give a quantised GGUF file as model_id"));
    }
    if lora_adapters
        .as_deref()
        .is_some_and(|list| !list.is_empty())
    {
        faults.add("`lora_adapters` is not served: leave it out");
    }
    if rope_scaling.is_some() || rope_factor.is_some() {
        faults.add(
            "`rope_scaling` and `rope_factor` are not served: frequencies are the model's own",
        );
    }
    let without_effect = [
        ("kv_cache_dtype", kv_cache_dtype.is_some()),
        ("weights_cache_override", weights_cache_override.is_some()),
        ("otlp_endpoint", otlp_endpoint.is_some()),
        ("otlp_service_name", otlp_service_name.is_some()),
        ("watermark_gamma", watermark_gamma.is_some()),
        ("watermark_delta", watermark_delta.is_some()),
        ("speculate", speculate.is_some_and(|n| n > 0)),
        ("trust_remote_code", trust_remote_code == &Some(true)),
        ("waiting_served_ratio", waiting_served_ratio.is_some()),
        ("max_waiting_tokens", max_waiting_tokens.is_some()),
        ("prometheus_port", prometheus_port.is_some()),
        ("usage_stats", usage_stats.is_some()),
        ("cuda_graphs", cuda_graphs.is_some()),
        ("cuda_memory_fraction", cuda_memory_fraction.is_some()),
        ("disable_custom_kernels", disable_custom_kernels.is_some()),
    ];
    let given = without_effect.iter().filter(|(_, given)| *given);
    given
        .map(|(name, _)| format!("`{name}` has no effect on this server"))
        .collect()
}

/// What is on this machine under a name goes before what the hub calls so.
fn model_source(
    id: &str,
    revision: Option<String>,
    hub: HubSettings,
    free_bytes: u64,
) -> Result<ModelSource, String> {
    let path = PathBuf::from(id);
    let meant_as_path = path.is_absolute() || id.starts_with(['.', '~']);
    if meant_as_path || path.exists() {
        return match revision {
            None => Ok(ModelSource::Path(path)),
            Some(_) => {
                Err("`revision` has no meaning for files on this machine: leave it out".to_owned())
            }
        };
    }
    let named = if id == AUTO {
        catalogue::choose_for(&hub, free_bytes)
    } else {
        catalogue::named(id)
    };
    let Named {
        model: name,
        revision: own,
        why,
    } = named.map_err(|error| error.to_string())?;
    Ok(ModelSource::Hub(HubModel {
        name,
        revision: revision.or(own),
        hub,
        why,
    }))
}

fn float_type(name: &str, faults: &mut Faults) -> Option<FloatType> {
    match name {
        "float32" => Some(FloatType::Float32),
        "float16" => Some(FloatType::Float16),
        "bfloat16" => Some(FloatType::Bfloat16),
        other => {
            faults.add(format!(
                "dtype `{other}` is unknown; float32, float16 and bfloat16 are"
            ));
            None
        }
    }
}

fn tier(name: &str, faults: &mut Faults) -> Option<Tier> {
    name.parse()
        .map_err(|e: crate::model::KernelError| faults.add(e.to_string()))
        .ok()
}

fn origins(names: Vec<String>, faults: &mut Faults) -> Vec<HeaderValue> {
    let any = names.iter().any(|name| name == "*");
    let mut values = Vec::new();
    for name in names {
        match HeaderValue::from_str(&name) {
            Ok(value) => values.push(value),
            Err(_) => faults.add(format!("cors_allow_origin `{name}` is not an origin")),
        }
    }
    if any { Vec::new() } else { values }
}

fn header(value: Option<String>, faults: &mut Faults) -> HeaderValue {
    let value = value.unwrap_or_else(|| "cpu".to_owned());
    HeaderValue::from_str(&value).unwrap_or_else(|_| {
        faults.add(format!("compute_type `{value}` cannot stand in a header"));
        HeaderValue::from_static("cpu")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MACHINE: Machine = Machine {
        cpus: NonZeroUsize::new(4).expect("not zero"),
        available_memory_bytes: 1 << 30,
    };
    const MODEL: ModelFacts = ModelFacts {
        max_positions: 2048,
        vocab: 1000,
        kv_bytes_per_token: 1024,
        weight_bytes: 1 << 20,
    };

    fn settings(raw: RawConfig) -> Result<Settings, ConfigError> {
        Settings::resolve(raw, &MACHINE)
    }

    #[test]
    fn defaults_are_safe_and_fit_the_model() {
        let settings = settings(RawConfig::default()).expect("sound defaults");
        assert_eq!(settings.address.to_string(), "127.0.0.1:3000");
        let capacity = settings.capacity(&MODEL).expect("a small model fits");
        assert_eq!(capacity.dispatch.max_total_tokens, 2048);
        assert_eq!(capacity.dispatch.max_input_tokens, 2047);
        // 128 requests of 2048 tokens fit half of the memory left.
        assert_eq!(capacity.engine.num_blocks, 128 * 2048 / BLOCK_TOKENS);
    }

    #[test]
    fn memory_bounds_the_cache_and_with_it_the_context() {
        let settings = settings(RawConfig::default()).expect("sound defaults");
        let large = ModelFacts {
            kv_bytes_per_token: 1 << 20,
            ..MODEL
        };
        let capacity = settings.capacity(&large).expect("a shorter context fits");
        assert_eq!(
            capacity.dispatch.max_total_tokens,
            511 / BLOCK_TOKENS * BLOCK_TOKENS
        );
    }

    #[test]
    fn all_faults_are_reported_at_once() {
        let raw = RawConfig {
            max_best_of: Some(0),
            dtype: Some("int3".into()),
            cpu_tier: Some("mmx".into()),
            api_key: Some("a b".into()),
            compat: Some("both".into()),
            tls_cert: Some("cert.pem".into()),
            keys: vec![super::super::RawKey::default()],
            tgi_only: TgiOnly {
                num_shard: Some(2),
                ..TgiOnly::default()
            },
            ..RawConfig::default()
        };
        assert_eq!(settings(raw).expect_err("eight faults").0.len(), 8);
    }

    #[test]
    fn the_wire_decides_where_reasoning_goes_unless_told() {
        let format = |compat: &str, format: Option<&str>| {
            let raw = RawConfig {
                compat: Some(compat.to_owned()),
                reasoning_format: format.map(str::to_owned),
                ..RawConfig::default()
            };
            settings(raw).expect("sound names").reasoning_format
        };
        assert_eq!(format("tgi", None), ReasoningFormat::None);
        assert_eq!(format("openai", None), ReasoningFormat::Separate);
        assert_eq!(format("tgi", Some("separate")), ReasoningFormat::Separate);
        assert_eq!(format("openai", Some("none")), ReasoningFormat::None);
    }

    #[test]
    fn contradicting_limits_are_refused() {
        let raw = RawConfig {
            max_total_tokens: Some(100),
            max_input_tokens: Some(100),
            max_batch_total_tokens: Some(90),
            ..RawConfig::default()
        };
        let faults = settings(raw)
            .expect("sound alone")
            .capacity(&MODEL)
            .expect_err("two faults");
        assert_eq!(faults.0.len(), 2, "{faults}");
    }

    #[test]
    fn a_host_name_is_ignored_with_a_warning() {
        let raw = RawConfig {
            hostname: Some("a1b2c3".into()),
            ..RawConfig::default()
        };
        let settings = settings(raw).expect("a container's name");
        assert!(settings.address.ip().is_loopback() && settings.warnings.len() == 1);
    }
}
