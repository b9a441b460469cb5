//! What the operator wrote, as written: a TOML file, the environment, flags.
//!
//! One struct describes all three, so that a setting is named once: the flag `--max-total-tokens`, the
//! variable `MAX_TOTAL_TOKENS` and the key `max_total_tokens` are the same. Nothing has a default here.
//! Secrets cannot stand in the file.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::builder::BoolishValueParser;
use clap::{Args, CommandFactory, Parser};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::keys::{self, RawKey};
use super::platform::Platform;
use super::remote::{Variables, is_variable};
use super::{ConfigError, secrets, section};
use crate::hub::HubSettings;

/// Flags of `sconce serve`: a file, and every setting.
#[derive(Debug, Clone, Default, PartialEq, Args)]
pub struct ServeArgs {
    /// Settings as TOML; the environment and flags override it
    #[arg(long, env = "SCONCE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// All settings.
    #[command(flatten)]
    pub settings: RawConfig,
}

/// Every setting, none of them resolved. Names are TGI's where TGI has the setting.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default)]
pub struct RawConfig {
    /// Name of the catalogue (`sconce list --available`; `auto` takes what fits this machine) or of the hub (`org/name`, or `org/name:Q4_K_M` for one GGUF file), folder (config.json, safetensors, tokenizer.json) or GGUF file; the embedded demo model without it; `none` serves upstreams only
    #[arg(long, env = "MODEL_ID", value_name = "NAME|PATH")]
    pub model_id: Option<String>,

    /// Branch, tag or commit of a model of the hub [default: main]
    #[arg(long, env = "REVISION")]
    pub revision: Option<String>,

    /// Folder where models of the hub are kept [default: where huggingface_hub keeps them: HF_HUB_CACHE, HF_HOME/hub, ~/.cache/huggingface/hub]
    #[arg(long, value_name = "FOLDER")]
    pub huggingface_hub_cache: Option<PathBuf>,

    /// Float type to hold weights in: float32, float16, bfloat16 [default: as stored]
    #[arg(long, env = "DTYPE")]
    pub dtype: Option<String>,

    /// IP address to listen on [default: 127.0.0.1]
    #[arg(long, env = "HOSTNAME")]
    pub hostname: Option<String>,

    /// Port to listen on [default: 3000]
    #[arg(long, short, env = "PORT")]
    pub port: Option<u16>,

    /// Requests served at once; more are refused with 429 [default: 128]
    #[arg(long, env = "MAX_CONCURRENT_REQUESTS")]
    pub max_concurrent_requests: Option<usize>,

    /// Limit of `best_of` [default: 2]
    #[arg(long, env = "MAX_BEST_OF")]
    pub max_best_of: Option<usize>,

    /// Limit of `n` [default: 8]
    #[arg(long, env = "MAX_CHOICES")]
    pub max_choices: Option<usize>,

    /// Limit of `stop` [default: 4]
    #[arg(long, env = "MAX_STOP_SEQUENCES")]
    pub max_stop_sequences: Option<usize>,

    /// Limit of `top_n_tokens` [default: 5]
    #[arg(long, env = "MAX_TOP_N_TOKENS")]
    pub max_top_n_tokens: Option<u32>,

    /// Longest prompt in tokens [default: max_total_tokens - 1]
    #[arg(long, env = "MAX_INPUT_TOKENS")]
    pub max_input_tokens: Option<usize>,

    /// Older name of max_input_tokens
    #[arg(long, env = "MAX_INPUT_LENGTH")]
    pub max_input_length: Option<usize>,

    /// Longest prompt and answer together in tokens [default: the model's context, or what memory holds]
    #[arg(long, env = "MAX_TOTAL_TOKENS")]
    pub max_total_tokens: Option<usize>,

    /// Tokens one step computes at most [default: 128]
    #[arg(long, env = "MAX_BATCH_PREFILL_TOKENS")]
    pub max_batch_prefill_tokens: Option<usize>,

    /// Tokens the KV cache holds [default: what half of the free memory holds]
    #[arg(long, env = "MAX_BATCH_TOTAL_TOKENS")]
    pub max_batch_total_tokens: Option<usize>,

    /// Sequences that run at once [default: max_concurrent_requests]
    #[arg(long, env = "MAX_BATCH_SIZE")]
    pub max_batch_size: Option<usize>,

    /// Texts tokenized at once [default: 2]
    #[arg(long, env = "VALIDATION_WORKERS")]
    pub validation_workers: Option<usize>,

    /// Most prompts of one completions call [default: 4]
    #[arg(long, env = "MAX_CLIENT_BATCH_SIZE")]
    pub max_client_batch_size: Option<usize>,

    /// Most bytes of a request body [default: 2000000]
    #[arg(long, env = "PAYLOAD_LIMIT")]
    pub payload_limit: Option<usize>,

    /// Lets callers ask for the prompt's log-probabilities [default: false]
    #[arg(long, env = "ENABLE_PREFILL_LOGPROBS", num_args = 0..=1, default_missing_value = "true")]
    pub enable_prefill_logprobs: Option<bool>,

    /// Longest life of a request in seconds [default: 600]
    #[arg(long, env = "MAX_REQUEST_SECONDS")]
    pub max_request_seconds: Option<u64>,

    /// Seconds that running requests get to finish after SIGTERM [default: 90]
    #[arg(long, short, env = "GRACEFUL_TERMINATION_TIMEOUT")]
    pub graceful_termination_timeout: Option<u64>,

    /// Connections open at once; further ones wait until one of them ends [default: 512, or twice max_concurrent_requests]
    #[arg(long, env = "MAX_CONNECTIONS")]
    pub max_connections: Option<usize>,

    /// Seconds a client has to send a request's head, and an idle connection stays open [default: 30]
    #[arg(long, env = "HEADER_READ_SECONDS")]
    pub header_read_seconds: Option<u64>,

    /// Seconds a client has to send a request's body [default: 60]
    #[arg(long, env = "BODY_READ_SECONDS")]
    pub body_read_seconds: Option<u64>,

    /// Seconds a client may leave an answer unread before its connection is closed [default: 60]
    #[arg(long, env = "WRITE_STALL_SECONDS")]
    pub write_stall_seconds: Option<u64>,

    /// Seconds of silence after which a stream sends a comment [default: 15]
    #[arg(long, env = "KEEP_ALIVE_SECONDS")]
    pub keep_alive_seconds: Option<u64>,

    /// Which wire is spoken where TGI and OpenAI disagree: tgi, openai [default: tgi]
    #[arg(long, env = "COMPAT")]
    pub compat: Option<String>,

    /// Where a model's reasoning goes: none (it stays in the text), separate [default: none; separate with compat openai]
    #[arg(long, env = "REASONING_FORMAT")]
    pub reasoning_format: Option<String>,

    /// Certificate chain in PEM, to serve HTTPS; needs tls_key
    #[arg(long, env = "TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key in PEM
    #[arg(long, env = "TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Asks for a key on every route but health, also on those that TGI leaves open [default: false]
    #[arg(long, env = "GUARD_ALL", num_args = 0..=1, default_missing_value = "true")]
    pub guard_all: Option<bool>,

    /// Key that callers must show as `Authorization: Bearer`; not allowed in the file
    #[arg(long, env = "API_KEY", hide_env_values = true)]
    #[serde(skip)]
    pub api_key: Option<Secret>,

    /// Origins whose pages may call; repeatable, or a comma list in the environment [default: all]
    #[arg(long, env = "CORS_ALLOW_ORIGIN", value_delimiter = ',')]
    pub cors_allow_origin: Option<Vec<String>>,

    /// tokenizer_config.json to use instead of the model's own
    #[arg(long, env = "TOKENIZER_CONFIG_PATH")]
    pub tokenizer_config_path: Option<PathBuf>,

    /// Threads that compute [default: the CPUs this process may use]
    #[arg(long, env = "CPU_THREADS")]
    pub cpu_threads: Option<usize>,

    /// Instructions to compute with: avx512, avx2, portable [default: the best this machine has]
    #[arg(long, env = "CPU_TIER")]
    pub cpu_tier: Option<String>,

    /// `invariant`: the same request gives the same tokens in any company; the only mode so far
    #[arg(long, env = "NUMERICS")]
    pub numerics: Option<String>,

    /// Value of the x-compute-type header [default: cpu]
    #[arg(long, env = "COMPUTE_TYPE")]
    pub compute_type: Option<String>,

    /// error, warn, info, debug, trace, or a tracing filter [default: info]
    #[arg(long, env = "LOG_LEVEL")]
    pub log_level: Option<String>,

    /// Logs as JSON lines [default: false]
    #[arg(long, env = "JSON_OUTPUT", num_args = 0..=1, default_missing_value = "true")]
    pub json_output: Option<bool>,

    /// Lets nothing leave this machine, whatever the file allows, and downloads no model [default: false; true with HF_HUB_OFFLINE=1]
    #[arg(long, env = "SCONCE_OFFLINE", num_args = 0..=1, default_missing_value = "true", value_parser = BoolishValueParser::new())]
    pub offline: Option<bool>,

    /// Upstreams and their targets; this and the next four stand in the file only.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<Value>,

    /// Who answers which request.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<Value>,

    /// What may leave this machine.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Value>,

    /// What the operator knows of providers.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub providers: Option<Value>,

    /// Where it is written down what has left.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<Value>,

    /// Where money is written down.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ledger: Option<Value>,

    /// How much of it there is.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<Value>,

    /// Who is told about it, and when.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alerts: Option<Value>,

    /// Variables that those settings name or depend on, as far as they are set.
    #[arg(skip)]
    #[serde(skip)]
    pub variables: Variables,

    /// Secrets that stand in the file: a sentence for each.
    #[arg(skip)]
    #[serde(skip)]
    pub secrets: Vec<String>,

    /// Keys of several callers; they stand in the file only.
    #[arg(skip)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<RawKey>,

    /// The file that they stand in.
    #[arg(skip)]
    #[serde(skip)]
    pub keys_file: Option<PathBuf>,

    /// What a hosting platform asks for.
    #[arg(skip)]
    #[serde(skip)]
    pub platform: Platform,

    /// A host name given where an address belongs; noted so that a warning can say so.
    #[arg(skip)]
    #[serde(skip)]
    pub ignored_hostname: Option<String>,

    /// Settings of TGI that have no effect here.
    #[command(flatten)]
    #[serde(flatten)]
    pub tgi_only: TgiOnly,
}

/// Text that is never printed.
#[derive(Clone, PartialEq)]
pub struct Secret(pub String);

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// TGI's settings that this server takes so that existing commands keep working, and warns about.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[serde(default)]
pub struct TgiOnly {
    /// (TGI) must be absent or false: one device serves a model
    #[arg(long, env = "SHARDED", num_args = 0..=1, default_missing_value = "true", hide = true)]
    pub sharded: Option<bool>,

    /// (TGI) must be absent or 1: one device serves a model
    #[arg(long, env = "NUM_SHARD", hide = true)]
    pub num_shard: Option<usize>,

    /// (TGI) must be absent: weights are served as stored
    #[arg(long, env = "QUANTIZE", hide = true)]
    pub quantize: Option<String>,

    /// (TGI) must be absent: there are no adapters
    #[arg(long, env = "LORA_ADAPTERS", hide = true)]
    pub lora_adapters: Option<String>,

    /// (TGI) must be absent: frequencies are the model's own
    #[arg(long, env = "ROPE_SCALING", hide = true)]
    pub rope_scaling: Option<String>,

    /// (TGI) must be absent: frequencies are the model's own
    #[arg(long, env = "ROPE_FACTOR", hide = true)]
    pub rope_factor: Option<f32>,

    /// (TGI) no effect: the KV cache holds 32-bit floats
    #[arg(long, env = "KV_CACHE_DTYPE", hide = true)]
    pub kv_cache_dtype: Option<String>,

    /// (TGI) no effect: give the folder as model_id
    #[arg(long, env = "WEIGHTS_CACHE_OVERRIDE", hide = true)]
    pub weights_cache_override: Option<String>,

    /// (TGI) no effect: no traces are sent
    #[arg(long, env = "OTLP_ENDPOINT", hide = true)]
    pub otlp_endpoint: Option<String>,

    /// (TGI) no effect: no traces are sent
    #[arg(long, env = "OTLP_SERVICE_NAME", hide = true)]
    pub otlp_service_name: Option<String>,

    /// (TGI) no effect: watermarks are refused
    #[arg(long, env = "WATERMARK_GAMMA", hide = true)]
    pub watermark_gamma: Option<f32>,

    /// (TGI) no effect: watermarks are refused
    #[arg(long, env = "WATERMARK_DELTA", hide = true)]
    pub watermark_delta: Option<f32>,

    /// (TGI) no effect: no speculation yet
    #[arg(long, env = "SPECULATE", hide = true)]
    pub speculate: Option<usize>,

    /// (TGI) no effect: no Python runs here
    #[arg(long, env = "TRUST_REMOTE_CODE", num_args = 0..=1, default_missing_value = "true", hide = true)]
    pub trust_remote_code: Option<bool>,

    /// (TGI) no effect: prefill and decode share every step
    #[arg(long, env = "WAITING_SERVED_RATIO", hide = true)]
    pub waiting_served_ratio: Option<f32>,

    /// (TGI) no effect: prefill and decode share every step
    #[arg(long, env = "MAX_WAITING_TOKENS", hide = true)]
    pub max_waiting_tokens: Option<usize>,

    /// (TGI) no effect: metrics are served at /metrics
    #[arg(long, env = "PROMETHEUS_PORT", hide = true)]
    pub prometheus_port: Option<u16>,

    /// (TGI) refuse requests that ask for a shape of the answer
    #[arg(long, env = "DISABLE_GRAMMAR_SUPPORT", num_args = 0..=1, default_missing_value = "true", hide = true)]
    pub disable_grammar_support: Option<bool>,

    /// (TGI) no effect: nothing is ever reported
    #[arg(long, env = "USAGE_STATS", hide = true)]
    pub usage_stats: Option<String>,

    /// (TGI) no effect on a CPU
    #[arg(long, env = "CUDA_GRAPHS", hide = true)]
    pub cuda_graphs: Option<String>,

    /// (TGI) no effect on a CPU
    #[arg(long, env = "CUDA_MEMORY_FRACTION", hide = true)]
    pub cuda_memory_fraction: Option<f32>,

    /// (TGI) no effect
    #[arg(long, env = "DISABLE_CUSTOM_KERNELS", num_args = 0..=1, default_missing_value = "true", hide = true)]
    pub disable_custom_kernels: Option<bool>,
}

impl RawConfig {
    /// Lays flags and environment over the file, if there is one.
    ///
    /// Errors: the file cannot be read or parsed, a key is unknown (with the nearest known one), a value
    /// has another type.
    pub fn read(args: ServeArgs) -> Result<Self, ConfigError> {
        let ServeArgs {
            config,
            mut settings,
        } = args;
        // Container runtimes set HOSTNAME to a name: it must not hide the file's address.
        if settings
            .hostname
            .as_deref()
            .is_some_and(|name| name.parse::<IpAddr>().is_err())
        {
            settings.ignored_hostname = settings.hostname.take();
        }
        let settings = match config {
            None => settings,
            Some(path) => Self {
                keys_file: Some(path.clone()),
                ..settings.over(&read_file(&path)?, &path)?
            },
        };
        let variable = |name: &str| std::env::var(name).ok();
        settings.with_variables(variable).with_platform(variable)
    }

    /// Takes along the variables that the file names, and those that decide where state is kept and
    /// whether anything may leave. One that is empty counts as not set.
    pub(super) fn with_variables(mut self, variable: impl Fn(&str) -> Option<String>) -> Self {
        let fixed = FIXED_VARIABLES.iter().chain(&HubSettings::VARIABLES);
        let mut names: Vec<String> = fixed.map(|&name| name.to_owned()).collect();
        let sections = [&self.remote, &self.ledger, &self.alerts];
        for section in sections.into_iter().flatten() {
            token_variables(section, &mut names);
        }
        for name in names {
            if let Some(text) = variable(&name).filter(|text| !text.is_empty()) {
                self.variables
                    .insert(name, crate::telemetry::Secret::new(text));
            }
        }
        self
    }

    pub(super) fn over(self, file: &str, path: &Path) -> Result<Self, ConfigError> {
        let fault = |e: &dyn std::fmt::Display| {
            ConfigError(vec![format!(
                "{}: {}",
                path.display(),
                without_texts(e.to_string().trim_end())
            )])
        };
        // The place of a fault, not the line itself: somebody may have put a secret there.
        let mut table: Table = file.parse().map_err(|e: toml::de::Error| {
            let before = &file[..e.span().map_or(0, |span| span.start)];
            let line = before.matches('\n').count() + 1;
            fault(&format!("line {line}: {}", e.message()))
        })?;
        let known = known_keys();
        let unknown = table.keys().filter(|key| !known.contains(key));
        let unknown: Vec<String> = unknown
            .map(|key| unknown_key(key, &known))
            .chain(keys::check_fields(&table))
            .map(|fault| format!("{}: {fault}", path.display()))
            .collect();
        let secrets = secrets::in_file(file).into_iter();
        let secrets = secrets.map(|fault| format!("{}: {fault}", path.display()));
        if !unknown.is_empty() {
            return Err(ConfigError(unknown.into_iter().chain(secrets).collect()));
        }
        // Types are checked before anything is laid over them, so that a wrong value is never hidden.
        Self::deserialize(table.clone()).map_err(|e| fault(&e))?;
        table.extend(Table::try_from(&self).map_err(|e| fault(&e))?);
        let merged = Self::deserialize(table).map_err(|e| fault(&e))?;
        Ok(Self {
            api_key: self.api_key,
            ignored_hostname: self.ignored_hostname,
            secrets: secrets.collect(),
            ..merged
        })
    }
}

/// A parser's message without the texts it quotes from the file: somebody may have put a secret there.
fn without_texts(message: &str) -> String {
    match (message.find("string \""), message.rfind('"')) {
        (Some(start), Some(end)) if start + 8 <= end => {
            format!("{}a text{}", &message[..start], &message[end + 1..])
        }
        _ => message.to_owned(),
    }
}

/// Tables that stand in the file only.
const SECTIONS: [&str; 9] = [
    "keys",
    "remote",
    "route",
    "egress",
    "providers",
    "audit",
    "ledger",
    "budget",
    "alerts",
];
/// Variables that no setting names and that count all the same.
const FIXED_VARIABLES: [&str; 1] = ["XDG_STATE_HOME"];

/// Fields that name a variable which holds a secret.
const VARIABLE_FIELDS: [&str; 3] = ["token_env", "url_env", "secret_env"];

/// The variables that such fields name, however deep they stand.
fn token_variables(value: &Value, names: &mut Vec<String>) {
    match value {
        Value::Table(table) => {
            for (field, value) in table {
                match value.as_str() {
                    Some(name)
                        if VARIABLE_FIELDS.contains(&field.as_str()) && is_variable(name) =>
                    {
                        names.push(name.to_owned());
                    }
                    _ => token_variables(value, names),
                }
            }
        }
        Value::Array(values) => {
            for value in values {
                token_variables(value, names);
            }
        }
        _ => {}
    }
}

/// Every key the file may hold.
fn known_keys() -> Vec<String> {
    /// The flags alone, as a command of their own.
    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        settings: RawConfig,
    }
    let names = Flags::command()
        .get_arguments()
        .filter_map(|arg| arg.get_long())
        .map(str::to_owned)
        .collect::<Vec<_>>();
    names
        .into_iter()
        .filter(|name| name != "help" && name != "api-key")
        .map(|name| name.replace('-', "_"))
        .chain(SECTIONS.map(str::to_owned))
        .collect()
}

/// The text of a settings file. Errors: it cannot be read.
pub(super) fn read_file(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|e| ConfigError(vec![format!("{}: {e}", path.display())]))
}

fn unknown_key(key: &str, known: &[String]) -> String {
    if key == "api_key" {
        return "`api_key` may not stand in a file; set the environment variable API_KEY"
            .to_owned();
    }
    section::unknown_key(key, known.iter().map(String::as_str))
}

/// The most similar of some names.
pub(super) fn nearest<'a>(key: &str, known: impl IntoIterator<Item = &'a str>) -> &'a str {
    let distance = |name: &&str| strsim::jaro_winkler(key, name);
    let nearest = known
        .into_iter()
        .max_by(|a, b| distance(a).total_cmp(&distance(b)));
    nearest.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(flags: RawConfig, file: &str) -> Result<RawConfig, ConfigError> {
        flags.over(file, Path::new("s.toml"))
    }

    #[test]
    fn flags_go_over_the_file() {
        let flags = RawConfig {
            port: Some(8080),
            api_key: Some("k".into()),
            ..RawConfig::default()
        };
        let merged = over(flags, "port = 1\nmax_best_of = 3\nspeculate = 2").expect("a sound file");
        assert_eq!((merged.port, merged.max_best_of), (Some(8080), Some(3)));
        assert_eq!(merged.tgi_only.speculate, Some(2));
        assert_eq!(merged.api_key, Some(Secret("k".into())));
        assert!(!format!("{merged:?}").contains("\"k\""));
    }

    #[test]
    fn a_host_name_does_not_hide_the_address_of_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("s.toml");
        std::fs::write(&path, "hostname = '0.0.0.0'").expect("a file");
        let settings = RawConfig {
            hostname: Some("a1b2c3".into()),
            ..RawConfig::default()
        };
        let args = ServeArgs {
            config: Some(path),
            settings,
        };
        let read = RawConfig::read(args).expect("a sound file");
        assert_eq!(read.hostname.as_deref(), Some("0.0.0.0"));
        assert_eq!(read.ignored_hostname.as_deref(), Some("a1b2c3"));
    }

    #[test]
    fn unknown_keys_are_all_named_with_their_neighbours() {
        let error = over(
            RawConfig::default(),
            "max_total_token = 1\nprot = 2\nport = 3",
        )
        .expect_err("two typos");
        assert_eq!(
            error.to_string(),
            "s.toml: unknown key `max_total_token`; did you mean `max_total_tokens`?\n\
             s.toml: unknown key `prot`; did you mean `port`?"
        );
    }

    #[test]
    fn the_reference_file_names_every_setting_and_is_sound() {
        let reference = include_str!("../../config/default.toml");
        for key in known_keys() {
            assert!(
                reference.contains(&key),
                "{key} is missing in config/default.toml"
            );
        }
        let written = over(RawConfig::default(), reference).expect("a sound file");
        assert_eq!(written.port, Some(3000));
    }

    #[test]
    fn secrets_and_wrong_types_are_refused() {
        let secret = over(RawConfig::default(), "api_key = 'x'").expect_err("a secret in a file");
        assert!(secret.to_string().contains("API_KEY"), "{secret}");
        let flags = RawConfig {
            port: Some(1),
            ..RawConfig::default()
        };
        let wrong = over(flags, "port = 'high'").expect_err("a wrong type");
        assert!(wrong.to_string().contains("port"), "{wrong}");
        for broken in ["port = ", "api_key = hunter2x", "api_key = 'hunter2x"] {
            let error = over(RawConfig::default(), broken).expect_err(broken);
            assert!(!error.to_string().contains("hunter2x"), "{error}");
            assert!(error.to_string().starts_with("s.toml: line 1: "), "{error}");
        }
    }
}
