//! `[remote]` of the settings file: upstreams, targets, and the constants of getting along with them.
//!
//! Tokens come from the variables that the file names. One that is not set disables its upstream and no
//! more, so that the machine's own model is served all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use toml::Value;
use url::{Host, Url};

use super::raw::nearest;
use super::secrets::secret_in;
use super::section::{Notes, Section, is_plain_name};
use crate::remote::{
    AdaptiveConfig, Billing, BreakerConfig, CancelSettle, Capabilities, Clocks, ColdStartConfig,
    Config, ControlPlane, EngineKind, Fidelity, Limits, ParkingConfig, Price, ProviderChoice,
    RetryConfig, Secret, TargetConfig, UpstreamConfig, UpstreamKind,
};

/// Variables of the environment that settings name, and their values.
pub(super) type Variables = BTreeMap<String, Secret>;

/// Most US dollars that a million tokens, a request or a day may cost.
const MOST_PRICE: u64 = 10_000;
const MOST_MONEY: u64 = 1_000_000_000;
/// A count that nobody means is larger.
const MANY: u64 = 1 << 32;
const MOST_BYTES: u64 = 1 << 40;
const CONTROL_PLANE: &str = "https://api.endpoints.huggingface.cloud";
/// Where the state is kept, below the folder of a user's state.
const STATE_FOLDER: &str = "sconce";

/// What `[remote]` says; none without an upstream.
pub(super) fn resolve(
    value: Option<&Value>,
    variables: &Variables,
    notes: &Notes,
) -> Option<Config> {
    let mut section = Section::new(notes, "`[remote]`", value);
    let mut config = Config::default();
    let Config {
        upstreams,
        targets,
        fidelity,
        default_max_tokens,
        max_concurrent_requests,
        image_hosts,
        clocks,
        retry,
        breaker,
        parking,
        adaptive,
        cold_start,
        limits,
        catalog_refresh,
        state_dir,
    } = &mut config;
    let fidelities = [("strict", Fidelity::Strict), ("lenient", Fidelity::Lenient)];
    *fidelity = section.choice("fidelity", &fidelities).unwrap_or_default();
    section.set_whole("default_max_tokens", 1..=MANY, default_max_tokens);
    section.set_whole(
        "max_concurrent_requests",
        1..=1 << 20,
        max_concurrent_requests,
    );
    *image_hosts = hosts(&mut section);
    set_clocks(section.table("clocks", "`[remote.clocks]`"), clocks);
    set_retry(section.table("retry", "`[remote.retry]`"), retry);
    set_breaker(section.table("breaker", "`[remote.breaker]`"), breaker);
    set_parking(section.table("parking", "`[remote.parking]`"), parking);
    set_adaptive(section.table("adaptive", "`[remote.adaptive]`"), adaptive);
    let place = "`[remote.cold_start]`";
    set_cold_start(section.table("cold_start", place), cold_start);
    set_limits(section.table("limits", "`[remote.limits]`"), limits);
    section.set_time("catalog_refresh_seconds", catalog_refresh);
    let folder = section.text("state_dir").map(PathBuf::from);
    *upstreams = named_once(
        section.tables("upstream", "remote.upstream"),
        |table| upstream(table, variables),
        |upstream| &upstream.name,
        notes,
        "upstream",
    );
    let known: &[UpstreamConfig] = upstreams;
    let declared = declared(value, "upstream");
    *targets = named_once(
        section.tables("target", "remote.target"),
        |table| target(table, known, &declared),
        |target| &target.name,
        notes,
        "target",
    );
    *state_dir = folder.or_else(|| default_state_dir(variables));
    section.end();
    (!config.upstreams.is_empty()).then_some(config)
}

/// The names that the tables `[[remote.<field>]]` have, also those of tables with faults.
pub(super) fn declared<'a>(remote: Option<&'a Value>, field: &str) -> Vec<&'a str> {
    let tables = remote.and_then(|remote| remote.get(field)?.as_array());
    let tables = tables.into_iter().flatten();
    let names = tables.filter_map(|table| table.get("name")?.as_str());
    names.collect()
}

/// Reads tables that have names; a second one of a name is a fault.
fn named_once<'a, T>(
    tables: Vec<Section<'a>>,
    read: impl FnMut(Section<'a>) -> Option<T>,
    name: impl Fn(&T) -> &str,
    notes: &Notes,
    what: &str,
) -> Vec<T> {
    let mut all: Vec<T> = Vec::new();
    for one in tables.into_iter().filter_map(read) {
        if all.iter().any(|other| name(other) == name(&one)) {
            notes.fault(format_args!(
                "{what} `{}` stands there twice; give one of them another `name`",
                name(&one)
            ));
        } else {
            all.push(one);
        }
    }
    all
}

/// The folder for state where none is named: that of the user.
pub(super) fn default_state_dir(variables: &Variables) -> Option<PathBuf> {
    let folder = |name| {
        let path = PathBuf::from(variables.get(name)?.expose());
        path.is_absolute().then_some(path)
    };
    let state = folder("XDG_STATE_HOME").or_else(|| Some(folder("HOME")?.join(".local/state")));
    Some(state?.join(STATE_FOLDER))
}

fn hosts(section: &mut Section<'_>) -> BTreeSet<String> {
    let hosts = section.texts("image_hosts").unwrap_or_default();
    if hosts.iter().any(|host| Host::parse(host).is_err()) {
        section.fault("`image_hosts` must be names of hosts, such as \"images.example.org\"");
        return BTreeSet::new();
    }
    hosts.iter().map(|host| host.to_ascii_lowercase()).collect()
}

fn set_clocks(mut section: Section<'_>, clocks: &mut Clocks) {
    let Clocks {
        pool,
        connect,
        send,
        send_per_mib,
        headers,
        first_token_min,
        first_token_max,
        first_token_reasoning,
        first_token_factor,
        prompt_tokens_per_second,
        byte_idle,
        progress_idle,
        progress_idle_reasoning,
        least_left,
    } = clocks;
    section.set_time("pool_seconds", pool);
    section.set_time("connect_seconds", connect);
    section.set_time("send_seconds", send);
    section.set_time_or_none("send_per_mib_seconds", send_per_mib);
    section.set_time("headers_seconds", headers);
    section.set_time("first_token_min_seconds", first_token_min);
    section.set_time("first_token_max_seconds", first_token_max);
    section.set_time("first_token_reasoning_seconds", first_token_reasoning);
    section.set_ratio("first_token_factor", 1.0..=1000.0, first_token_factor);
    section.set_ratio(
        "prompt_tokens_per_second",
        1.0..=1e9,
        prompt_tokens_per_second,
    );
    section.set_time("byte_idle_seconds", byte_idle);
    section.set_time("progress_idle_seconds", progress_idle);
    section.set_time("progress_idle_reasoning_seconds", progress_idle_reasoning);
    section.set_time_or_none("least_left_seconds", least_left);
    in_order(
        &section,
        ("first_token_min_seconds", *first_token_min),
        ("first_token_max_seconds", *first_token_max),
    );
    section.end();
}

fn set_retry(mut section: Section<'_>, retry: &mut RetryConfig) {
    let RetryConfig {
        max_attempts,
        max_per_target,
        max_hops,
        backoff_base,
        backoff_max,
        budget_ratio,
        budget_ttl,
        budget_floor_per_second,
        hedge,
        hedge_after_min,
        hedge_ratio,
        hedge_max_nusd,
    } = retry;
    section.set_whole("max_attempts", 1..=100, max_attempts);
    section.set_whole("max_per_target", 1..=100, max_per_target);
    section.set_whole("max_hops", 1..=100, max_hops);
    section.set_time("backoff_base_ms", backoff_base);
    section.set_time("backoff_max_ms", backoff_max);
    section.set_ratio("budget_ratio", 0.0..=1.0, budget_ratio);
    section.set_time("budget_ttl_seconds", budget_ttl);
    section.set_ratio(
        "budget_floor_per_second",
        0.0..=1e6,
        budget_floor_per_second,
    );
    section.set_flag("hedge", hedge);
    section.set_time("hedge_after_min_ms", hedge_after_min);
    section.set_ratio("hedge_ratio", 0.0..=1.0, hedge_ratio);
    *hedge_max_nusd = section
        .dollars("hedge_max_usd", 9, MOST_MONEY)
        .unwrap_or(*hedge_max_nusd);
    in_order(
        &section,
        ("backoff_base_ms", *backoff_base),
        ("backoff_max_ms", *backoff_max),
    );
    section.end();
}

fn set_breaker(mut section: Section<'_>, breaker: &mut BreakerConfig) {
    let BreakerConfig {
        consecutive_failures,
        window,
        min_attempts,
        failure_rate,
        slow_rate,
        slow_factor,
        open_base,
        open_max,
        open_jitter,
        calm,
        probes,
        successes_to_close,
        panic_interval,
    } = breaker;
    section.set_whole("consecutive_failures", 1..=MANY, consecutive_failures);
    section.set_time("window_seconds", window);
    section.set_whole("min_attempts", 1..=MANY, min_attempts);
    section.set_ratio("failure_rate", 0.001..=1.0, failure_rate);
    section.set_ratio("slow_rate", 0.001..=1.0, slow_rate);
    section.set_ratio("slow_factor", 1.0..=1000.0, slow_factor);
    section.set_time("open_base_seconds", open_base);
    section.set_time("open_max_seconds", open_max);
    section.set_ratio("open_jitter", 0.0..=1.0, open_jitter);
    section.set_time("calm_seconds", calm);
    section.set_whole("probes", 1..=1000, probes);
    section.set_whole("successes_to_close", 1..=1000, successes_to_close);
    section.set_time("panic_interval_seconds", panic_interval);
    in_order(
        &section,
        ("open_base_seconds", *open_base),
        ("open_max_seconds", *open_max),
    );
    if successes_to_close > probes {
        section.fault("`successes_to_close` must be <= `probes`: no more trials are made");
    }
    section.end();
}

fn set_parking(mut section: Section<'_>, parking: &mut ParkingConfig) {
    let ParkingConfig {
        base,
        max,
        hint_max,
        wait_max,
        max_waiting,
        quota_recheck,
    } = parking;
    section.set_time("base_seconds", base);
    section.set_time("max_seconds", max);
    section.set_time("hint_max_seconds", hint_max);
    section.set_time_or_none("wait_max_seconds", wait_max);
    section.set_whole("max_waiting", 0..=1 << 16, max_waiting);
    section.set_time("quota_recheck_seconds", quota_recheck);
    in_order(&section, ("base_seconds", *base), ("max_seconds", *max));
    section.end();
}

fn set_adaptive(mut section: Section<'_>, adaptive: &mut AdaptiveConfig) {
    let AdaptiveConfig {
        start,
        min,
        max,
        decrease,
        hold_factor,
    } = adaptive;
    section.set_whole("start", 1..=1 << 16, start);
    section.set_whole("min", 1..=1 << 16, min);
    section.set_whole("max", 1..=1 << 16, max);
    section.set_ratio("decrease", 0.01..=0.99, decrease);
    section.set_ratio("hold_factor", 1.0..=1000.0, hold_factor);
    if min > start || start > max {
        section.fault("`min` <= `start` <= `max` must hold");
    }
    section.end();
}

fn set_cold_start(mut section: Section<'_>, cold_start: &mut ColdStartConfig) {
    let ColdStartConfig {
        prior,
        hold_max,
        poll,
        give_up,
    } = cold_start;
    section.set_time("prior_seconds", prior);
    section.set_time_or_none("hold_max_seconds", hold_max);
    section.set_time("poll_seconds", poll);
    section.set_time("give_up_seconds", give_up);
    section.end();
}

fn set_limits(mut section: Section<'_>, limits: &mut Limits) {
    let Limits {
        response_bytes,
        event_bytes,
        head_bytes,
        error_bytes,
    } = limits;
    section.set_whole("response_bytes", 1024..=MOST_BYTES, response_bytes);
    section.set_whole("event_bytes", 1024..=MOST_BYTES, event_bytes);
    section.set_whole("head_bytes", 1024..=1 << 24, head_bytes);
    section.set_whole("error_bytes", 256..=1 << 24, error_bytes);
    section.end();
}

fn in_order(section: &Section<'_>, least: (&str, Duration), most: (&str, Duration)) {
    if least.1 > most.1 {
        section.fault(format_args!("`{}` must be <= `{}`", least.0, most.0));
    }
}

fn upstream(mut section: Section<'_>, variables: &Variables) -> Option<UpstreamConfig> {
    let kinds = [
        ("hf_router", UpstreamKind::HfRouter),
        ("inference_endpoint", UpstreamKind::InferenceEndpoint),
        ("tgi", UpstreamKind::Tgi),
        ("openai_compat", UpstreamKind::OpenAiCompat),
        ("replicate", UpstreamKind::Replicate),
    ];
    let engines = [
        ("tgi", EngineKind::Tgi),
        ("vllm", EngineKind::Vllm),
        ("llama_cpp", EngineKind::LlamaCpp),
        ("openai", EngineKind::OpenAi),
    ];
    let billings = [("tokens", Billing::Tokens), ("own", Billing::Own)];
    let name = section.name("name");
    match name {
        Some(name) => section.call(format!("upstream `{name}`")),
        None if !section.has("name") => section.fault("`name` is missing; call it what you like"),
        None => {}
    }
    let kind = section.choice("kind", &kinds);
    if !section.has("kind") {
        let names = kinds.map(|(name, _)| format!("\"{name}\""));
        section.fault(format_args!(
            "`kind` is missing; it is one of {}",
            names.join(", ")
        ));
    }
    let allow_plaintext = section.flag("allow_plaintext").unwrap_or(false);
    let allow_private = section.flag("allow_private").unwrap_or(false);
    let default_url = match kind {
        Some(UpstreamKind::HfRouter) => Some("https://router.huggingface.co"),
        Some(UpstreamKind::Replicate) => Some("https://api.replicate.com"),
        _ => None,
    };
    let base_url = section.text("base_url");
    if base_url.or(default_url).is_none() && kind.is_some() && !section.has("base_url") {
        section.fault("`base_url` is missing; it is the address without `/v1`");
    }
    let address = base_url
        .or(default_url)
        .and_then(|text| address(&section, "base_url", text, allow_plaintext, allow_private));
    let loopback = address.as_ref().is_some_and(|address| address.loopback);

    let token_env = variable_name(&mut section, "token_env");
    let needs_token = matches!(kind, Some(UpstreamKind::HfRouter | UpstreamKind::Replicate));
    if needs_token && !section.has("token_env") && !loopback {
        let example = match kind {
            Some(UpstreamKind::Replicate) => "REPLICATE_API_TOKEN",
            _ => "HF_TOKEN",
        };
        section.fault(format_args!(
            "`token_env` is missing; set it to the name of the variable that holds the token, such as \"{example}\""
        ));
    }
    let (token, disabled) = match token_env {
        None => (None, None),
        Some(variable) => match token(&section, variable, variables) {
            Some(token) => (token, None),
            None => {
                let why = format!("{variable} is not set");
                section.warn(format_args!("{why}, so this upstream is not used"));
                (None, Some(why))
            }
        },
    };
    let billing = section.choice("billing", &billings);
    let billing = billing.unwrap_or(match kind {
        Some(UpstreamKind::InferenceEndpoint | UpstreamKind::Tgi) => Billing::Own,
        Some(UpstreamKind::OpenAiCompat) if loopback => Billing::Own,
        _ => Billing::Tokens,
    });
    let engine = section.choice("engine", &engines);
    let bill_to = section.text("bill_to").filter(|text| {
        let sound = text.bytes().all(|b| b.is_ascii_graphic());
        if !sound {
            section.fault("`bill_to` cannot stand in a header");
        }
        sound
    });
    if bill_to.is_some() && kind.is_some() && kind != Some(UpstreamKind::HfRouter) {
        section.fault("`bill_to` has a meaning for kind \"hf_router\" only");
    }
    let provider = section.name("provider");
    let chat_path = section.text("chat_path").filter(|path| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"/-._~:".contains(&b);
        let sound = path.starts_with('/')
            && path.bytes().all(plain)
            && !path.split('/').any(|part| part == "..");
        if !sound {
            section.fault("`chat_path` must be a plain path that begins with `/`");
        }
        sound
    });
    let control = control(&mut section, variables);
    let scales_to_zero = section.flag("scales_to_zero").unwrap_or(false);
    let max_nusd_per_day = section.dollars("max_usd_per_day", 9, MOST_MONEY);
    let max_concurrency = section.whole("max_concurrency", 1..=1 << 16);
    let rpm = section.whole("rpm", 1..=MANY - 1);
    let tpm = section.whole("tpm", 1..=MANY - 1);
    let ca_file = section.text("ca_file").map(PathBuf::from);
    let proxy = section.text("proxy").and_then(|text| {
        // A proxy is the operator's own; its address may be plain and private.
        Some(self::address(&section, "proxy", text, true, true)?.text)
    });
    section.end();
    Some(UpstreamConfig {
        name: name?.into(),
        kind: kind?,
        base_url: address?.text,
        engine,
        token_env: token_env.map(str::to_owned),
        token,
        disabled,
        bill_to: bill_to.map(str::to_owned),
        billing,
        provider: provider.map(Arc::from),
        chat_path: chat_path.map(str::to_owned),
        control,
        scales_to_zero,
        max_nusd_per_day,
        max_concurrency,
        rpm,
        tpm,
        allow_plaintext,
        allow_private,
        ca_file,
        proxy,
    })
}

fn control(section: &mut Section<'_>, variables: &Variables) -> Option<ControlPlane> {
    if !section.has("control") {
        // So that it is a known field.
        section.value("control");
        return None;
    }
    let place = format!("{}: `control`", section.place());
    let mut control = section.table("control", place);
    let mut required = |field| {
        let name = control.name(field);
        if !control.has(field) {
            control.fault(format_args!("`{field}` is missing"));
        }
        name.map(str::to_owned)
    };
    let (namespace, endpoint) = (required("namespace"), required("endpoint"));
    let variable = variable_name(&mut control, "token_env");
    let base_url = control.text("base_url").unwrap_or(CONTROL_PLANE);
    let address = address(&control, "base_url", base_url, false, false);
    let auto_resume = control.flag("auto_resume").unwrap_or(false);
    let token = variable.and_then(|variable| {
        token(&control, variable, variables).unwrap_or_else(|| {
            control.warn(format_args!(
                "{variable} is not set, so the endpoint's state is not asked for"
            ));
            None
        })
    });
    control.end();
    Some(ControlPlane {
        base_url: address?.text,
        token,
        namespace: namespace?,
        endpoint: endpoint?,
        auto_resume,
    })
}

/// A field that names a variable. Capitals only: a token put there by mistake must not be repeated.
fn variable_name<'a>(section: &mut Section<'a>, field: &'static str) -> Option<&'a str> {
    let name = section.text(field)?;
    if is_variable(name) {
        return Some(name);
    }
    section.fault(format_args!(
        "`{field}` must be the name of a variable in capitals, such as \"HF_TOKEN\", and never the token itself"
    ));
    None
}

/// Whether a text can be a variable's name: capitals, digits and `_`.
pub(super) fn is_variable(text: &str) -> bool {
    let sound = |b: u8| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_';
    (1..=64).contains(&text.len())
        && text.bytes().all(sound)
        && !text.starts_with(|c: char| c.is_ascii_digit())
}

/// The token in a variable; none when it is not set, and an inner none when it is no token.
fn token(section: &Section<'_>, variable: &str, variables: &Variables) -> Option<Option<Secret>> {
    let token = variables.get(variable)?;
    if token.expose().bytes().all(|b| b.is_ascii_graphic()) {
        return Some(Some(token.clone()));
    }
    section.fault(format_args!(
        "the token in {variable} cannot stand in a header; it holds a space, a line's end or a letter beyond ASCII"
    ));
    Some(None)
}

/// An address that is fit to be asked.
struct Address {
    /// Without a slash at the end and without `/v1`.
    text: String,
    loopback: bool,
}

fn address(
    section: &Section<'_>,
    field: &str,
    text: &str,
    allow_plaintext: bool,
    allow_private: bool,
) -> Option<Address> {
    let refuse = |why: &str| {
        section.fault(format_args!("`{field}` {why}"));
        None
    };
    let Ok(url) = Url::parse(text) else {
        return refuse("is no address; write it as \"https://host\"");
    };
    let (loopback, private) = match url.host() {
        Some(Host::Domain(name)) => (name == "localhost" || name.ends_with(".localhost"), false),
        Some(Host::Ipv4(ip)) => (ip.is_loopback(), is_private(ip.into())),
        Some(Host::Ipv6(ip)) => (ip.is_loopback(), is_private(ip.into())),
        None => return refuse("is no address; write it as \"https://host\""),
    };
    match url.scheme() {
        "https" => {}
        "http" if loopback || allow_plaintext => {}
        "http" => {
            return refuse(
                "must begin with `https://`, since everybody on the way can read plain HTTP; set `allow_plaintext = true` if that is meant",
            );
        }
        _ => return refuse("must begin with `https://`"),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return refuse("must not hold a name or password; credentials go into variables");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return refuse("must not have a query or a fragment; give the address alone");
    }
    if private && !allow_private {
        return refuse("is a private address; set `allow_private = true` if that is meant");
    }
    let whole = url.as_str().trim_end_matches('/');
    let whole = whole.strip_suffix("/v1").unwrap_or(whole);
    Some(Address {
        text: whole.trim_end_matches('/').to_owned(),
        loopback,
    })
}

/// Whether an address belongs to a private network, and to nobody in the open one.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_private() || ip.is_link_local() || ip.is_unspecified(),
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(ip) => is_private(ip.into()) || ip.is_loopback(),
            None => ip.is_unique_local() || ip.is_unicast_link_local() || ip.is_unspecified(),
        },
    }
}

fn target(
    mut section: Section<'_>,
    upstreams: &[UpstreamConfig],
    declared: &[&str],
) -> Option<TargetConfig> {
    let given = section.text("name");
    if let Some(name) = given {
        if is_target_name(name) {
            section.call(format!("target `{name}`"));
        } else {
            section.fault("`name` must be 1 to 200 letters, digits, `.`, `_`, `-`, `@`, `:` or `/`, and no token");
        }
    }
    let upstream = section.text("upstream");
    if !section.has("upstream") {
        section.fault("`upstream` is missing; it is the `name` of an upstream");
    }
    let upstream = upstream.and_then(|name| {
        let names = upstreams.iter().map(|upstream| &*upstream.name);
        let found = upstreams.iter().find(|upstream| *upstream.name == *name);
        // One with faults has been spoken of.
        if found.is_none() && !declared.contains(&name) {
            section.fault(unknown(
                "upstream",
                "upstream",
                "remote.upstream",
                name,
                names,
            ));
        }
        found
    });
    let model = section.text("model");
    if !section.has("model") {
        section.fault("`model` is missing; it is the model's name at the upstream");
    }
    let at_router = upstream.map(|upstream| upstream.kind == UpstreamKind::HfRouter);
    let model = model.filter(|model| {
        let sound = model.len() <= 256
            && model.bytes().all(|b| b.is_ascii_graphic())
            && !model.contains("://");
        if !sound {
            section.fault("`model` must be a model's name without spaces, and no address");
        } else if at_router == Some(true) && model.contains(':') {
            section.fault("`model` must not name a provider; give it as `provider`");
            return false;
        }
        sound
    });
    let provider = provider(&mut section, at_router);
    let price = price(&mut section);
    let context_length = section.whole("context_length", 1..=MANY - 1);
    let capabilities = capabilities(&mut section);
    let same_model = section.flag("same_model").unwrap_or(false);
    let max_cost_nusd = section.dollars("max_usd_per_request", 9, MOST_MONEY);
    let cancels = [
        ("shown", CancelSettle::Shown),
        ("reserved", CancelSettle::Reserved),
    ];
    let cancel = section
        .choice("cancel_settle", &cancels)
        .unwrap_or_default();
    let (upstream, model, provider) = match (upstream, model, provider) {
        (Some(upstream), Some(model), Some(provider)) => (upstream, model, provider),
        _ => {
            section.end();
            return None;
        }
    };
    let name = match given {
        Some(name) => name.to_owned(),
        None => default_name(upstream, model, &provider),
    };
    if !is_target_name(&name) {
        if given.is_none() {
            section.fault("`name` is missing; none can be made of this `model`");
        }
        section.end();
        return None;
    }
    section.call(format!("target `{name}`"));
    let own = upstream.billing == Billing::Own;
    if !own && price.is_some_and(|price| price.input_pusd == 0 && price.output_pusd == 0) {
        section.fault("a `price` of 0 would let budgets count nothing; where tokens cost nothing, say `billing = \"own\"` of the upstream");
    }
    let price = price.or(own.then_some(Price::FREE));
    let free = price.is_some_and(|p| {
        p.input_pusd == 0 && p.output_pusd == 0 && p.cached_pusd.unwrap_or(0) == 0
    });
    if price.is_none() && upstream.kind != UpstreamKind::HfRouter {
        section.warn("its price is not known, so it is never used; give `price = { input = …, output = … }` in US dollars a million tokens");
    } else if !free && max_cost_nusd == Some(0) {
        section.warn("it costs money, and `max_usd_per_request` is 0, so it is never used; raise it or leave it out");
    }
    section.end();
    Some(TargetConfig {
        name: name.into(),
        upstream: upstream.name.clone(),
        model: model.into(),
        provider,
        price,
        context_length,
        capabilities,
        same_model,
        max_cost_nusd,
        cancel,
    })
}

fn default_name(upstream: &UpstreamConfig, model: &str, provider: &ProviderChoice) -> String {
    match provider {
        ProviderChoice::Pinned(slug) => format!("{}/{model}:{slug}", upstream.name),
        _ => format!("{}/{model}", upstream.name),
    }
}

/// Who runs a model; at a router somebody that we choose, unless told otherwise.
fn provider(section: &mut Section<'_>, at_router: Option<bool>) -> Option<ProviderChoice> {
    let Some(text) = section.text("provider") else {
        if section.has("provider") {
            return None;
        }
        return Some(match at_router {
            Some(true) => ProviderChoice::Auto("cheapest".into()),
            _ => ProviderChoice::Whoever,
        });
    };
    if at_router == Some(false) {
        section.fault("`provider` chooses among those of an \"hf_router\"; give it in the upstream instead, where it names who runs that");
        return None;
    }
    if let Some(policy) = text.strip_prefix("auto:") {
        if ["cheapest", "fastest"].contains(&policy) {
            return Some(ProviderChoice::Auto(policy.into()));
        }
        section.fault(
            "`provider` must be \"auto:cheapest\" or \"auto:fastest\" when it begins with `auto:`",
        );
        return None;
    }
    if !is_plain_name(text) {
        section.fault("`provider` must be the provider's short name, such as \"together\"");
        return None;
    }
    Some(match text {
        "fastest" | "cheapest" | "preferred" => ProviderChoice::Policy(text.into()),
        slug => ProviderChoice::Pinned(slug.into()),
    })
}

fn price(section: &mut Section<'_>) -> Option<Price> {
    if !section.has("price") {
        section.value("price");
        return None;
    }
    let place = format!("{}: `price`", section.place());
    let mut table = section.table("price", place);
    let mut amount = |field| {
        let amount = table.dollars(field, 6, MOST_PRICE);
        if field != "cached" && !table.has(field) {
            table.fault(format_args!(
                "`{field}` is missing: US dollars a million tokens"
            ));
        }
        amount
    };
    let (input, output, cached) = (amount("input"), amount("output"), amount("cached"));
    if let (Some(input), Some(cached)) = (input, cached)
        && cached > input
    {
        table.fault("`cached` must be <= `input`");
    }
    table.end();
    Some(Price {
        input_pusd: input?,
        cached_pusd: cached,
        output_pusd: output?,
    })
}

fn capabilities(section: &mut Section<'_>) -> Capabilities {
    let place = format!("{}: `capabilities`", section.place());
    let mut table = section.table("capabilities", place);
    let capabilities = Capabilities {
        tools: table.flag("tools"),
        structured_output: table.flag("structured_output"),
        logprobs: table.flag("logprobs"),
        top_k: table.flag("top_k"),
        min_p: table.flag("min_p"),
        repetition_penalty: table.flag("repetition_penalty"),
        logit_bias: table.flag("logit_bias"),
        seed: table.flag("seed"),
        regex: table.flag("regex"),
        prefill: table.flag("prefill"),
        streaming: table.flag("streaming"),
        stream_options: table.flag("stream_options"),
        raw_prompt: table.flag("raw_prompt"),
    };
    table.end();
    capabilities
}

/// Whether a target's name may be repeated in messages, headers and logs.
pub(super) fn is_target_name(text: &str) -> bool {
    let sound = |b: u8| b.is_ascii_alphanumeric() || b"._-@:/".contains(&b);
    (1..=200).contains(&text.len()) && text.bytes().all(sound) && secret_in(text).is_none()
}

/// What is said of a name that is none of those in the file.
pub(super) fn unknown<'n>(
    field: &str,
    what: &str,
    title: &str,
    name: &str,
    known: impl Iterator<Item = &'n str>,
) -> String {
    match nearest(name, known) {
        "" => format!("`{field}` names no {what}; the file has no sound `[[{title}]]`"),
        nearest => format!("`{field}` names no {what}; did you mean \"{nearest}\"?"),
    }
}
