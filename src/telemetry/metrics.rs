//! Every metric there is: name, unit, help text, buckets.
//!
//! Names beginning with `tgi_` are TGI's, kept letter for letter (counters without `_total`) because
//! dashboards match them; ours begin with `sconce_`. Labels are bounded sets, never caller input. TGI
//! metrics of mechanisms that do not exist here (batch concatenation and filtering) are absent, as they
//! are in TGI before their first use.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus::{
    Encoder, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    Opts, Registry, TextEncoder,
};

/// Why a request failed, as the `err` label of `tgi_request_failure`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No room.
    Overloaded,
    /// A parameter was wrong.
    Validation,
    /// The chat template refused the messages.
    Template,
    /// The engine failed.
    Generation,
    /// The answer ended early.
    Incomplete,
    /// The caller left.
    Dropped,
    /// The deadline passed.
    Timeout,
}

impl Failure {
    const ALL: [Self; 7] = [
        Self::Overloaded,
        Self::Validation,
        Self::Template,
        Self::Generation,
        Self::Incomplete,
        Self::Dropped,
        Self::Timeout,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Overloaded => "overloaded",
            Self::Validation => "validation",
            Self::Template => "template",
            Self::Generation => "generation",
            Self::Incomplete => "incomplete",
            Self::Dropped => "dropped",
            Self::Timeout => "timeout",
        }
    }
}

/// What a step did, as TGI's `method` label: a step with any prompt tokens counts as prefill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// The step computed prompt tokens.
    Prefill,
    /// The step only extended answers.
    Decode,
}

impl Method {
    fn label(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
        }
    }
}

/// Who spends, on what, and with whom.
#[derive(Debug, Clone, Copy)]
pub struct Spent<'a> {
    /// The key's name.
    pub key: &'a str,
    /// The model's name at the upstream.
    pub model: &'a str,
    /// Who ran it.
    pub provider: &'a str,
}

/// Names that others give themselves, up to a bound: a label of its own for each would let them fill memory.
#[derive(Debug, Default)]
struct Names(Mutex<BTreeSet<Box<str>>>);

impl Names {
    const MOST: usize = 64;
    const REST: &str = "other";

    fn label<'a>(&self, name: &'a str) -> &'a str {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(name) {
            return name;
        }
        if known.len() >= Self::MOST {
            return Self::REST;
        }
        known.insert(name.into());
        name
    }
}

/// Upper ends of the histograms whose buckets follow the server's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistogramRanges {
    /// Most tokens of a prompt.
    pub max_input_tokens: usize,
    /// Most tokens of prompt and answer together.
    pub max_total_tokens: usize,
}

/// All metrics of one server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    request_failure: IntCounterVec,
    batch_inference_count: IntCounterVec,
    batch_inference_success: IntCounterVec,
    batch_inference_failure: IntCounterVec,
    batch_inference_duration: HistogramVec,
    batch_forward_duration: HistogramVec,
    batch_decode_duration: HistogramVec,
    /// Requests taken.
    pub request_count: IntCounter,
    /// Requests answered in full.
    pub request_success: IntCounter,
    /// Seconds from acceptance to the end.
    pub request_duration: Histogram,
    /// Seconds of validation and tokenization.
    pub request_validation_duration: Histogram,
    /// Seconds in the engine's queue.
    pub request_queue_duration: Histogram,
    /// Seconds from the first step to the end.
    pub request_inference_duration: Histogram,
    /// Seconds a generated token.
    pub request_mean_time_per_token_duration: Histogram,
    /// Tokens generated.
    pub request_generated_tokens: Histogram,
    /// Tokens allowed.
    pub request_max_new_tokens: Histogram,
    /// Tokens of the prompt.
    pub request_input_length: Histogram,
    /// Sequences waiting in the engine.
    pub queue_size: IntGauge,
    /// Sequences running.
    pub batch_current_size: IntGauge,
    /// Tokens the running sequences may grow to.
    pub batch_current_max_tokens: IntGauge,
    /// Sequences that join the batch together.
    pub batch_next_size: Histogram,
    /// Tokens the KV cache can hold.
    pub batch_max_total_tokens: IntGauge,
    /// Texts being tokenized at this moment, apart from short ones.
    pub tokenizing: IntGauge,
    /// Calls of the model, one a step.
    pub forward_count: IntCounter,
    /// Tokens whose keys and values were computed.
    pub computed_tokens: IntCounter,
    /// Tokens of answers.
    pub generated_tokens: IntCounter,
    /// Prompt tokens found in the prefix cache instead.
    pub prefix_cache_hit_tokens: IntCounter,
    /// Sequences put back to waiting for want of blocks.
    pub preemptions: IntCounter,
    /// Blocks of the KV cache.
    pub kv_blocks: IntGauge,
    /// Blocks held by no sequence.
    pub kv_blocks_free: IntGauge,
    route_decisions: IntCounterVec,
    upstream_attempts: IntCounterVec,
    spent: IntCounterVec,
    spent_tokens: IntCounterVec,
    providers: Names,
    alerts: IntCounterVec,
    budget_used: GaugeVec,
    budget_limit: GaugeVec,
    route_forecast_ratio: HistogramVec,
}

impl Metrics {
    /// Registers every metric.
    ///
    /// Panics: never in practice; two metrics of one name would be a programming error.
    pub fn new(ranges: HistogramRanges) -> Self {
        let r = Registry::new();
        let seconds: Vec<f64> = (1..=35).map(|k| 0.0001 * 1.5_f64.powi(k)).collect();
        let hundredths = |top: usize| -> Vec<f64> {
            (1..=100)
                .map(|k| top.max(1) as f64 / 100.0 * f64::from(k))
                .collect()
        };
        let total = hundredths(ranges.max_total_tokens);
        let sizes: Vec<f64> = (1..=1024).map(f64::from).collect();
        let metrics = Self {
            request_failure: counter_vec(
                &r,
                "tgi_request_failure",
                "Number of failed requests",
                "err",
            ),
            batch_inference_count: counter_vec(
                &r,
                "tgi_batch_inference_count",
                "Inference calls per method (prefill or decode)",
                "method",
            ),
            batch_inference_success: counter_vec(
                &r,
                "tgi_batch_inference_success",
                "Number of successful inference calls per method (prefill or decode)",
                "method",
            ),
            batch_inference_failure: counter_vec(
                &r,
                "tgi_batch_inference_failure",
                "Number of failed inference calls per method (prefill or decode)",
                "method",
            ),
            batch_inference_duration: histogram_vec(
                &r,
                "tgi_batch_inference_duration",
                "Batch inference duration in seconds",
                "method",
                &seconds,
            ),
            batch_forward_duration: histogram_vec(
                &r,
                "tgi_batch_forward_duration",
                "Batch forward duration per method (prefill or decode) in seconds",
                "method",
                &seconds,
            ),
            batch_decode_duration: histogram_vec(
                &r,
                "tgi_batch_decode_duration",
                "Time spent choosing tokens per method (prefill or decode) in seconds",
                "method",
                &seconds,
            ),
            request_count: counter(&r, "tgi_request_count", "Total number of requests"),
            request_success: counter(&r, "tgi_request_success", "Number of successful requests"),
            request_duration: histogram(
                &r,
                "tgi_request_duration",
                "End-to-end generation duration in seconds",
                &seconds,
            ),
            request_validation_duration: histogram(
                &r,
                "tgi_request_validation_duration",
                "Request validation duration in seconds",
                &seconds,
            ),
            request_queue_duration: histogram(
                &r,
                "tgi_request_queue_duration",
                "Request queue duration in seconds",
                &seconds,
            ),
            request_inference_duration: histogram(
                &r,
                "tgi_request_inference_duration",
                "Request inference duration in seconds",
                &seconds,
            ),
            request_mean_time_per_token_duration: histogram(
                &r,
                "tgi_request_mean_time_per_token_duration",
                "Mean time per token per request in seconds",
                &seconds,
            ),
            request_generated_tokens: histogram(
                &r,
                "tgi_request_generated_tokens",
                "Generated tokens per request",
                &total,
            ),
            request_max_new_tokens: histogram(
                &r,
                "tgi_request_max_new_tokens",
                "Maximum new tokens per request",
                &total,
            ),
            request_input_length: histogram(
                &r,
                "tgi_request_input_length",
                "Input token length per request",
                &hundredths(ranges.max_input_tokens),
            ),
            queue_size: gauge(&r, "tgi_queue_size", "Current queue size"),
            batch_current_size: gauge(&r, "tgi_batch_current_size", "Current batch size"),
            batch_current_max_tokens: gauge(
                &r,
                "tgi_batch_current_max_tokens",
                "Maximum tokens for the current batch",
            ),
            batch_next_size: histogram(
                &r,
                "tgi_batch_next_size",
                "Batch size of the next batch",
                &sizes,
            ),
            batch_max_total_tokens: gauge(
                &r,
                "tgi_batch_max_total_tokens",
                "Maximum tokens for the whole batch",
            ),
            tokenizing: gauge(
                &r,
                "sconce_tokenizing",
                "Texts being tokenized, apart from short ones",
            ),
            forward_count: counter(&r, "sconce_forward_count", "Calls of the model, one a step"),
            computed_tokens: counter(
                &r,
                "sconce_computed_tokens",
                "Tokens whose keys and values were computed",
            ),
            generated_tokens: counter(&r, "sconce_generated_tokens", "Tokens of answers made here"),
            prefix_cache_hit_tokens: counter(
                &r,
                "sconce_prefix_cache_hit_tokens",
                "Prompt tokens found in the prefix cache",
            ),
            preemptions: counter(
                &r,
                "sconce_preemptions",
                "Sequences put back to waiting for want of KV blocks",
            ),
            kv_blocks: gauge(&r, "sconce_kv_blocks", "Blocks of the KV cache"),
            kv_blocks_free: gauge(&r, "sconce_kv_blocks_free", "KV blocks held by no sequence"),
            route_decisions: counter_vec(
                &r,
                "sconce_route_decisions",
                "Requests by the reason for which they were answered where they were, or refused",
                "reason",
            ),
            upstream_attempts: counter_vec2(
                &r,
                "sconce_upstream_attempts",
                "Requests sent to an upstream, by how they ended",
                ["upstream", "ended"],
            ),
            providers: Names::default(),
            alerts: counter_vec(
                &r,
                "sconce_alerts",
                "What was told about money and targets",
                "kind",
            ),
            budget_used: gauge_vec(
                &r,
                "sconce_budget_used",
                "What is spent or held of a budget in its window of now, in US dollars or tokens",
                "budget",
            ),
            budget_limit: gauge_vec(
                &r,
                "sconce_budget_limit",
                "What a budget holds, in US dollars or tokens",
                "budget",
            ),
            spent: counter_vec3(
                &r,
                "sconce_spent_nusd",
                "Nano-USD spent at upstreams",
                ["key", "model", "provider"],
            ),
            spent_tokens: counter_vec3(
                &r,
                "sconce_spent_tokens",
                "Tokens read and written at upstreams",
                ["key", "model", "provider"],
            ),
            route_forecast_ratio: histogram_vec(
                &r,
                "sconce_route_forecast_ratio",
                "Time to the first token here, as a multiple of the forecast",
                "of",
                &[0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4, 2.0, 4.0],
            ),
            registry: r,
        };
        for failure in Failure::ALL {
            metrics
                .request_failure
                .with_label_values(&[failure.label()]);
        }
        metrics
    }

    /// Counts a decision about where a request goes, by its reason's code.
    pub fn count_decision(&self, reason: &'static str) {
        self.route_decisions.with_label_values(&[reason]).inc();
    }

    /// Counts a request sent to a configured upstream, by how it ended: `ok` or a class of failures.
    pub fn count_attempt(&self, upstream: &str, ended: &'static str) {
        self.upstream_attempts
            .with_label_values(&[upstream, ended])
            .inc();
    }

    /// Counts what an attempt at an upstream came to. Keys and models are configured; providers, which upstreams
    /// name, count by their names up to a bound.
    pub fn count_spent(&self, by: &Spent<'_>, nusd: u64, tokens: u64) {
        let labels = [by.key, by.model, self.providers.label(by.provider)];
        self.spent.with_label_values(&labels).inc_by(nusd);
        self.spent_tokens.with_label_values(&labels).inc_by(tokens);
    }

    /// Counts something that was told.
    pub fn count_alert(&self, kind: &'static str) {
        self.alerts.with_label_values(&[kind]).inc();
    }

    /// Shows how a budget stands: dollars or tokens; without a limit, it is only counted.
    pub fn show_budget(&self, name: &str, used: f64, limit: Option<f64>) {
        self.budget_used.with_label_values(&[name]).set(used);
        if let Some(limit) = limit {
            self.budget_limit.with_label_values(&[name]).set(limit);
        }
    }

    /// Records how long a first token took here, as a multiple of what was forecast.
    pub fn observe_forecast(&self, ratio: f64) {
        self.route_forecast_ratio
            .with_label_values(&["ttft"])
            .observe(ratio);
    }

    /// Counts a failed request.
    pub fn count_failure(&self, failure: Failure) {
        self.request_failure
            .with_label_values(&[failure.label()])
            .inc();
    }

    /// Calls that failed, for whatever reason.
    pub fn failures(&self) -> u64 {
        let of = |failure: Failure| {
            let label = [failure.label()];
            self.request_failure.with_label_values(&label).get()
        };
        Failure::ALL.into_iter().map(of).sum()
    }

    /// Records one successful step: the model's share of it, the choice of tokens, and the whole.
    pub fn observe_step(&self, method: Method, forward: Duration, choice: Duration) {
        let label = [method.label()];
        self.batch_inference_count.with_label_values(&label).inc();
        self.batch_inference_success.with_label_values(&label).inc();
        self.batch_forward_duration
            .with_label_values(&label)
            .observe(forward.as_secs_f64());
        self.batch_decode_duration
            .with_label_values(&label)
            .observe(choice.as_secs_f64());
        self.batch_inference_duration
            .with_label_values(&label)
            .observe((forward + choice).as_secs_f64());
    }

    /// Records a failed step.
    pub fn observe_failed_step(&self, method: Method) {
        self.batch_inference_count
            .with_label_values(&[method.label()])
            .inc();
        self.batch_inference_failure
            .with_label_values(&[method.label()])
            .inc();
    }

    /// Writes all metrics in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut out = Vec::new();
        // Writing to memory cannot fail, and every family here is well formed.
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut out);
        String::from_utf8_lossy(&out).into_owned()
    }
}

const VALID: &str = "metric names are distinct and well formed";

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    let metric = IntCounter::new(name, help).expect(VALID);
    registry.register(Box::new(metric.clone())).expect(VALID);
    metric
}

fn counter_vec(registry: &Registry, name: &str, help: &str, label: &str) -> IntCounterVec {
    let metric = IntCounterVec::new(Opts::new(name, help), &[label]).expect(VALID);
    registry.register(Box::new(metric.clone())).expect(VALID);
    metric
}

fn counter_vec2(registry: &Registry, name: &str, help: &str, labels: [&str; 2]) -> IntCounterVec {
    let metric = IntCounterVec::new(Opts::new(name, help), &labels).expect(VALID);
    registry.register(Box::new(metric.clone())).expect(VALID);
    metric
}

fn counter_vec3(registry: &Registry, name: &str, help: &str, labels: [&str; 3]) -> IntCounterVec {
    let metric = IntCounterVec::new(Opts::new(name, help), &labels).expect(VALID);
    registry.register(Box::new(metric.clone())).expect(VALID);
    metric
}

fn gauge_vec(registry: &Registry, name: &str, help: &str, label: &str) -> GaugeVec {
    let metric = GaugeVec::new(Opts::new(name, help), &[label]).expect(VALID);
    registry.register(Box::new(metric.clone())).expect(VALID);
    metric
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    let metric = IntGauge::new(name, help).expect(VALID);
    registry.register(Box::new(metric.clone())).expect(VALID);
    metric
}

fn histogram(registry: &Registry, name: &str, help: &str, buckets: &[f64]) -> Histogram {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    let metric = Histogram::with_opts(options).expect(VALID);
    registry.register(Box::new(metric.clone())).expect(VALID);
    metric
}

fn histogram_vec(
    registry: &Registry,
    name: &str,
    help: &str,
    label: &str,
    buckets: &[f64],
) -> HistogramVec {
    let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
    let metric = HistogramVec::new(options, &[label]).expect(VALID);
    registry.register(Box::new(metric.clone())).expect(VALID);
    metric
}
