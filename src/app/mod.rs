//! Builds every part from the cellar up, wires them, and runs until told to stop.

mod alerts;
mod hybrid;
mod load;
mod server;
mod stall;
mod tls;

use std::fmt::Write;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::api::KeyRing;
use crate::config::{Capacity, ConfigError, ModelSource, Settings, describe};
use crate::dispatch::{Dispatcher, Local};
use crate::hub::HubError;
use crate::ledger::{Ledger, Place, StoreError};
use crate::model::{BLOCK_TOKENS, Cpu, Decoder, ModelError};
use crate::telemetry::{HistogramRanges, Metrics, redact};
use crate::text::TextError;
use crate::wire::tgi::Info;
use crate::{api, dispatch, engine, hub};

use hybrid::Upkeep;
use load::Loaded;
use server::Doorkeeper;

/// Why the server could not start or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// Limits contradict each other or the model.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The model cannot be served.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model's tokenizer cannot be used.
    #[error("{model}: {source}")]
    Tokenizer {
        /// The model.
        model: String,
        /// What is wrong with it.
        source: TextError,
    },
    /// The tokenizer and the embedding do not belong together.
    #[error("{model}: the tokenizer has {tokens} tokens, the embedding only {rows} rows")]
    VocabularyMismatch {
        /// The model.
        model: String,
        /// Largest token id + 1.
        tokens: usize,
        /// Rows of the embedding.
        rows: usize,
    },
    /// There is no such file or folder.
    #[error(
        "model_id `{0}` is neither a folder nor a file on this machine; give the path of a folder with config.json and safetensors, the path of a GGUF file, or the name of a model of the hub such as `org/name`"
    )]
    NoSuchModel(String),
    /// The model's files are not here and cannot be had.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The address is taken or not allowed.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// Certificate or key cannot be used.
    #[error("{file}: {problem}")]
    Tls {
        /// The file at fault.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] StoreError),
    /// Upstreams or their logs cannot be used.
    #[error("{0}")]
    Hybrid(String),
    /// A thread or the runtime could not be started.
    #[error("cannot start: {0}")]
    Start(#[source] std::io::Error),
}

/// Serves until SIGTERM or SIGINT, then drains.
pub fn serve(settings: Settings) -> Result<(), AppError> {
    let tls = settings.tls.as_ref().map(tls::open).transpose()?;
    let Served {
        limits,
        info,
        local,
        metrics,
    } = match settings.model {
        ModelSource::None => without_model(&settings),
        ModelSource::Embedded | ModelSource::Path(_) | ModelSource::Hub(_) => {
            with_model(&settings)?
        }
    };
    let ledger = open_ledger(&settings)?;
    let opened = hybrid::open(
        &settings,
        &info.model_id,
        local.as_ref(),
        ledger.as_ref(),
        &metrics,
    )?;
    let (hybrid, mut upkeep) = opened.unzip();
    let records = upkeep.as_mut().and_then(Upkeep::last_records);
    let routed = hybrid.is_some() || ledger.is_some();
    let dispatcher = Dispatcher::new(limits, local, hybrid, ledger.clone(), metrics);
    let keys = KeyRing::new(settings.api_key.clone(), settings.keys.clone());
    let routes = api::routes(
        api_config(&settings, keys.clone(), routed),
        dispatcher.clone(),
        info,
    );
    let door = Doorkeeper {
        tls,
        keys,
        gate: upkeep.as_ref().map(Upkeep::gate),
    };
    let ended = server::run(routes, &settings, door, upkeep, &dispatcher);
    drop(dispatcher);
    if let Some(ledger) = ledger {
        ledger.close();
    }
    if let Some(records) = records {
        records.wait();
    }
    ended
}

/// Opens the ledger, where one is kept.
fn open_ledger(settings: &Settings) -> Result<Option<Ledger>, AppError> {
    let Some(config) = &settings.ledger else {
        return Ok(None);
    };
    if let Place::Postgres(address) = &config.place {
        redact::register(address.expose());
    }
    Ok(Some(Ledger::open(config.clone())?))
}

/// What the hall and the door need to know of the model.
struct Served {
    limits: dispatch::Config,
    info: Info,
    local: Option<Local>,
    metrics: Arc<Metrics>,
}

/// Loads the model and starts the engine.
fn with_model(settings: &Settings) -> Result<Served, AppError> {
    let loaded = Loaded::open(settings, hub::fetch)?;
    let capacity = settings.capacity(&loaded.facts())?;
    let cpu = Cpu::new(settings.threads, settings.tier).map_err(ModelError::from)?;
    let info = info(settings, &capacity, &loaded, &cpu);
    let metrics = metrics(&capacity.dispatch);
    let decoder = Decoder::new(&loaded.checkpoint, capacity.engine.num_blocks, cpu)?;
    tracing::info!(
        model = info.model_id,
        dtype = info.model_dtype,
        weights_mib = loaded.facts().weight_bytes >> 20,
        kv_cache_mib =
            (capacity.engine.num_blocks * BLOCK_TOKENS * loaded.facts().kv_bytes_per_token) >> 20,
        max_total_tokens = info.max_total_tokens,
        max_batch_total_tokens = info.max_batch_total_tokens,
        cpu_tier = info.cpu_tier,
        threads = settings.threads,
        "model loaded"
    );
    let engine = engine::start(Box::new(decoder), capacity.engine, Arc::clone(&metrics))
        .map_err(AppError::Start)?;
    let Loaded {
        checkpoint,
        tokenizer,
        chat_template,
        eos,
        commit: _,
    } = loaded;
    // The decoder holds the weights; the rest, tokenizer files above all, has been used up.
    drop(checkpoint);
    let local = Local::new(&capacity.dispatch, engine, tokenizer, chat_template, eos);
    Ok(Served {
        limits: capacity.dispatch,
        info,
        local: Some(local),
        metrics,
    })
}

/// A gateway: every answer is made elsewhere.
fn without_model(settings: &Settings) -> Served {
    let limits = settings.limits_without_model();
    let info = Info {
        model_device_type: "none".to_owned(),
        ..blank_info(settings, &limits)
    };
    let metrics = metrics(&limits);
    tracing::info!("no model is loaded: every answer is made by an upstream");
    Served {
        limits,
        info,
        local: None,
        metrics,
    }
}

fn metrics(limits: &dispatch::Config) -> Arc<Metrics> {
    Arc::new(Metrics::new(HistogramRanges {
        max_input_tokens: limits.max_input_tokens,
        max_total_tokens: limits.max_total_tokens,
    }))
}

/// Opens everything `serve` would, and says what it found.
pub fn check(settings: &Settings) -> Result<String, AppError> {
    settings.tls.as_ref().map(tls::open).transpose()?;
    hybrid::check(settings)?;
    let mut report = match settings.model {
        ModelSource::None => String::new(),
        ModelSource::Embedded | ModelSource::Path(_) | ModelSource::Hub(_) => {
            check_model(settings)?
        }
    };
    let rest = [
        ("address".to_owned(), settings.address.to_string()),
        ("keys".to_owned(), keys(settings)),
        (
            "tls".to_owned(),
            if settings.tls.is_some() { "yes" } else { "no" }.to_owned(),
        ),
    ];
    for (name, value) in rest.into_iter().chain(describe(settings)) {
        // Writing to a String cannot fail.
        let _ = writeln!(report, "{name:<24} {value}");
    }
    Ok(report)
}

/// Opens the model, and says what it found.
fn check_model(settings: &Settings) -> Result<String, AppError> {
    // Checking downloads nothing.
    let loaded = Loaded::open(settings, hub::find)?;
    let facts = loaded.facts();
    let capacity = settings.capacity(&facts)?;
    let cpu = Cpu::new(settings.threads, settings.tier).map_err(ModelError::from)?;
    let info = info(settings, &capacity, &loaded, &cpu);
    // Looks every tensor up; one block of KV memory is enough for that.
    let decoder = Decoder::new(&loaded.checkpoint, 1, cpu)?;
    let spec = decoder.spec();
    let mut report = String::new();
    let kv_bytes = capacity.engine.num_blocks * BLOCK_TOKENS * facts.kv_bytes_per_token;
    let lines = [
        ("model_id", info.model_id),
        (
            "architecture",
            format!(
                "{:?}, {} layers, hidden {}",
                spec.architecture, spec.layers, spec.hidden
            ),
        ),
        ("dtype", info.model_dtype.unwrap_or_default()),
        ("weights", format!("{} MiB", facts.weight_bytes >> 20)),
        (
            "kv cache",
            format!(
                "{} MiB for {} tokens",
                kv_bytes >> 20,
                info.max_batch_total_tokens
            ),
        ),
        ("max_input_tokens", info.max_input_tokens.to_string()),
        ("max_total_tokens", info.max_total_tokens.to_string()),
        (
            "max_concurrent_requests",
            info.max_concurrent_requests.to_string(),
        ),
        ("cpu_tier", info.cpu_tier),
        (
            "chat template",
            loaded
                .chat_template
                .as_ref()
                .and_then(|template| template.source(false))
                .map_or("none".to_owned(), |text| {
                    format!("{} characters", text.chars().count())
                }),
        ),
    ];
    for (name, value) in lines {
        // Writing to a String cannot fail.
        let _ = writeln!(report, "{name:<24} {value}");
    }
    Ok(report)
}

/// Who may call, in words.
fn keys(settings: &Settings) -> String {
    match (settings.keys.len(), settings.api_key.is_some()) {
        (0, false) => "none: everyone may call".to_owned(),
        (0, true) => "API_KEY".to_owned(),
        (named, false) => format!("{named} named"),
        (named, true) => format!("{named} named, and API_KEY"),
    }
}

fn info(settings: &Settings, capacity: &Capacity, loaded: &Loaded, cpu: &Cpu) -> Info {
    Info {
        model_sha: loaded.commit.clone(),
        model_dtype: loaded
            .checkpoint
            .main_format()
            .map(|format| format.to_string()),
        model_device_type: "cpu".to_owned(),
        cpu_tier: cpu.tier().to_string(),
        max_batch_total_tokens: capacity.engine.num_blocks * BLOCK_TOKENS,
        max_batch_prefill_tokens: capacity.engine.max_batched_tokens.get(),
        ..blank_info(settings, &capacity.dispatch)
    }
}

/// What is the same with and without a model.
fn blank_info(settings: &Settings, limits: &dispatch::Config) -> Info {
    Info {
        model_id: match &settings.model {
            ModelSource::Embedded => load::EMBEDDED_LABEL.to_owned(),
            ModelSource::Path(path) => path.display().to_string(),
            ModelSource::Hub(model) => model.name.to_string(),
            ModelSource::None => "none".to_owned(),
        },
        model_sha: None,
        model_pipeline_tag: None,
        max_concurrent_requests: limits.max_concurrent_requests,
        max_best_of: settings.max_best_of,
        max_stop_sequences: settings.max_stop_sequences,
        max_input_tokens: limits.max_input_tokens,
        max_total_tokens: limits.max_total_tokens,
        validation_workers: limits.validation_workers,
        max_client_batch_size: settings.max_client_batch_size,
        router: "text-generation-router".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        sha: None,
        docker_label: None,
        model_dtype: None,
        model_device_type: String::new(),
        cpu_tier: "none".to_owned(),
        max_batch_total_tokens: 0,
        max_batch_prefill_tokens: 0,
    }
}

fn api_config(settings: &Settings, keys: KeyRing, routed: bool) -> api::Config {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    api::Config {
        max_client_batch_size: settings.max_client_batch_size,
        max_best_of: settings.max_best_of,
        max_stop_sequences: settings.max_stop_sequences,
        max_top_n_tokens: settings.max_top_n_tokens,
        payload_limit_bytes: settings.payload_limit_bytes,
        body_read: settings.body_read,
        keys,
        guard_all: settings.guard_all,
        compat: settings.compat,
        reasoning_format: settings.reasoning_format,
        max_choices: settings.max_choices,
        aip_predict_route: settings.platform.predict_route.clone(),
        aip_health_route: settings.platform.health_route.clone(),
        cors_allow_origin: settings.cors_allow_origin.clone(),
        keep_alive: settings.keep_alive,
        compute_type: settings.compute_type.clone(),
        routed,
        rule_headers: settings
            .route
            .rules
            .iter()
            .flat_map(|rule| rule.when.headers.keys())
            .filter_map(|name| name.parse().ok())
            .collect(),
        started_at_unix_s: now.as_secs(),
    }
}
