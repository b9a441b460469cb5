//! `[route]` of the settings file: who answers, the names callers use, the chains behind them, and rules.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use http::HeaderName;
use toml::Value;

use super::remote::unknown;
use super::secrets::secret_in;
use super::section::{Notes, Section, is_plain_name};
use crate::generation::Policy;
use crate::remote::{self, Class};
use crate::route::{Config, Hop, MidStream, ModelRoute, Rule, Then, When};

/// The codes of reasons, as they stand in `on`.
const REASONS: [&str; 20] = [
    "local_ok",
    "policy_local",
    "policy_remote",
    "rule_local",
    "rule_remote",
    "egress_denied",
    "unsupported_local",
    "context_overflow",
    "queue_overflow",
    "kv_overflow",
    "deadline",
    "hard_pre",
    "hard_probe",
    "hard_post",
    "budget_exhausted",
    "price_unknown",
    "not_eligible",
    "sticky",
    "local_failure",
    "remote_unavailable",
];
/// Words that stand for several of them.
const GROUPS: [(&str, &[&str]); 2] = [
    ("overflow", &["queue_overflow", "kv_overflow", "deadline"]),
    ("hard", &["hard_pre", "hard_probe", "hard_post"]),
];
/// What the file calls the local model.
const DEFAULT_MODEL: &str = "default";
/// Names that always mean the default model.
const ALWAYS_DEFAULT: [&str; 2] = ["tgi", "dummy"];
const MOST_MONEY: u64 = 1_000_000_000;

/// The targets that may be named.
struct Targets<'a> {
    sound: Vec<&'a str>,
    /// Those with faults, which have been spoken of, too.
    declared: Vec<&'a str>,
}

/// What `[route]` says; `declared` are the targets of the file, also those with faults, and `local` is
/// whether this machine serves a model.
pub(super) fn resolve(
    value: Option<&Value>,
    remote: Option<&remote::Config>,
    declared: Vec<&str>,
    local: bool,
    notes: &Notes,
) -> Config {
    let mut section = Section::new(notes, "`[route]`", value);
    let targets = remote.iter().flat_map(|remote| &remote.targets);
    let targets = Targets {
        sound: targets.map(|target| &*target.name).collect(),
        declared,
    };
    let mut config = Config::default();
    let Config {
        policy,
        policies: _,
        slo_ttft,
        deadline_share,
        remote_gain,
        resume_share,
        calm,
        stale_after,
        saturated_queue,
        saturated_kv,
        mid_stream,
        reconsider,
        sticky,
        models,
        rules,
        calibration,
        decision_log,
        decision_log_bytes,
    } = &mut config;
    *policy = section.choice("policy", &policies()).unwrap_or(*policy);
    section.set_time("slo_ttft_ms", slo_ttft);
    section.set_ratio("deadline_share", 0.01..=1.0, deadline_share);
    section.set_ratio("remote_gain", 0.01..=10.0, remote_gain);
    section.set_ratio("resume_share", 0.01..=1.0, resume_share);
    section.set_time_or_none("calm_seconds", calm);
    section.set_time("stale_after_ms", stale_after);
    section.set_whole("saturated_queue", 0..=1 << 16, saturated_queue);
    section.set_ratio("saturated_kv", 0.01..=1.0, saturated_kv);
    let ends = [
        ("error", MidStream::Error),
        ("continue", MidStream::Continue),
    ];
    *mid_stream = section.choice("mid_stream", &ends).unwrap_or(*mid_stream);
    section.set_time("reconsider_ms", reconsider);
    section.set_time_or_none("sticky_minutes", sticky);
    *calibration = section.text("calibration").map(PathBuf::from);
    *decision_log = section.text("decision_log").map(PathBuf::from);
    section.set_whole("decision_log_bytes", 1 << 16..=1 << 40, decision_log_bytes);
    *models = self::models(&mut section, &targets, local, notes);
    for table in section.tables("rule", "route.rule") {
        let Some(rule) = rule(table, &targets) else {
            continue;
        };
        if rules.iter().any(|other| other.name == rule.name) {
            notes.fault(format_args!(
                "route rule `{}` stands there twice; give one of them another `name`",
                rule.name
            ));
        }
        rules.push(rule);
    }
    section.end();
    for target in targets.sound {
        let in_chain = |model: &ModelRoute| model.hops.iter().any(|hop| hop.target == target);
        let in_rule = |rule: &Rule| matches!(&rule.then, Then::Target(name) if name == target);
        if !models.values().any(in_chain) && !rules.iter().any(in_rule) {
            notes.warn(format_args!(
                "target `{target}` is never used; name it in `targets` of a `[[route.model]]`"
            ));
        }
    }
    config
}

/// Policies by their names in settings.
pub(super) fn policies() -> [(&'static str, Policy); 6] {
    Policy::ALL.map(|policy| (policy.name(), policy))
}

/// `[[route.model]]`, and the default model in any case.
fn models(
    section: &mut Section<'_>,
    targets: &Targets<'_>,
    local: bool,
    notes: &Notes,
) -> BTreeMap<String, ModelRoute> {
    let default = ModelRoute {
        local,
        hops: Vec::new(),
        aliases: Vec::new(),
    };
    let mut models = BTreeMap::new();
    let mut names = BTreeSet::new();
    for table in section.tables("model", "route.model") {
        let Some((name, model)) = model(table, targets, local) else {
            continue;
        };
        for name in std::iter::once(&name).chain(&model.aliases) {
            if !names.insert(name.clone()) {
                notes.fault(format_args!(
                    "model `{name}` stands there twice; a name or alias means one model"
                ));
            }
        }
        let key = match name.as_str() {
            DEFAULT_MODEL => String::new(),
            _ => name,
        };
        models.insert(key, model);
    }
    models.entry(String::new()).or_insert(default);
    models
}

fn model(
    mut section: Section<'_>,
    targets: &Targets<'_>,
    has_local: bool,
) -> Option<(String, ModelRoute)> {
    let name = section.text("name").filter(|name| {
        let sound = is_model_name(name);
        if !sound {
            section.fault("`name` must be a model's name without spaces, no address and no token");
        }
        sound
    });
    match name {
        Some(name) => section.call(format!("model `{name}`")),
        None if !section.has("name") => section.fault(
            "`name` is missing; it is what callers name as `model`, or \"default\" for the local model",
        ),
        None => {}
    }
    let is_default = name == Some(DEFAULT_MODEL);
    if name.is_some_and(|name| ALWAYS_DEFAULT.contains(&name)) {
        section.fault("this name always means the default model; give its targets to \"default\"");
    }
    let local = section.flag("local");
    if local == Some(true) && !has_local {
        section.fault("`local` must be false: this machine serves no model (`model_id` is none)");
    }
    let aliases = section.texts("aliases").unwrap_or_default();
    if !aliases.iter().all(|alias| is_model_name(alias)) {
        section
            .fault("`aliases` must be names of models without spaces, no addresses and no tokens");
    }
    let aliases = aliases.into_iter().filter(|alias| is_model_name(alias));
    let aliases: Vec<String> = aliases.map(str::to_owned).collect();
    let hops = hops(&mut section, targets);
    let local = local.unwrap_or(is_default) && has_local;
    if name.is_some() && !local && hops.as_ref().is_some_and(Vec::is_empty) {
        section.fault("nobody serves it; name a target in `targets`, or set `local = true`");
    }
    section.end();
    Some((
        name?.to_owned(),
        ModelRoute {
            local,
            hops: hops?,
            aliases,
        },
    ))
}

fn is_model_name(text: &str) -> bool {
    (1..=200).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_graphic() && b != b'`')
        && !text.contains("://")
        && secret_in(text).is_none()
}

/// A chain: names of targets, or tables with conditions; none when it is not a list.
fn hops(section: &mut Section<'_>, targets: &Targets<'_>) -> Option<Vec<Hop>> {
    let Some(value) = section.value("targets") else {
        return Some(Vec::new());
    };
    let Some(list) = value.as_array() else {
        section
            .fault("`targets` must be a list of targets' names, or of { target = \"…\" } tables");
        return None;
    };
    let mut hops: Vec<Hop> = Vec::new();
    let mut sound = true;
    for (index, value) in list.iter().enumerate() {
        let hop = match value {
            Value::String(name) => {
                known_target(section, "targets", name, targets).map(|target| Hop {
                    target,
                    on: BTreeSet::new(),
                    max_cost_nusd: None,
                })
            }
            Value::Table(_) => {
                let place = format!("{}: `targets` {}", section.place(), index + 1);
                hop(section.within(place, value), targets)
            }
            _ => {
                section.fault(
                    "`targets` must be a list of targets' names, or of { target = \"…\" } tables",
                );
                None
            }
        };
        match hop {
            Some(hop) if hops.iter().any(|other| other.target == hop.target) => {
                section.fault(format_args!(
                    "`targets` names `{}` twice; a chain comes to a target once",
                    hop.target
                ));
            }
            Some(hop) => hops.push(hop),
            None => sound = false,
        }
    }
    sound.then_some(hops)
}

fn hop(mut section: Section<'_>, targets: &Targets<'_>) -> Option<Hop> {
    let target = section.text("target");
    if !section.has("target") {
        section.fault("`target` is missing");
    }
    let target = target.and_then(|name| known_target(&section, "target", name, targets));
    let words = section.texts("on").unwrap_or_default();
    let mut on = BTreeSet::new();
    for word in words {
        let class = Class::ALL.into_iter().map(Class::name);
        let known = REASONS.into_iter().chain(class);
        match GROUPS.iter().find(|(group, _)| *group == word) {
            Some((_, members)) => on.extend(members.iter().map(|name| (*name).to_owned())),
            None if known.clone().any(|name| name == word) => {
                on.insert(word.to_owned());
            }
            None => {
                let groups = GROUPS.iter().map(|(group, _)| *group);
                let nearest = super::raw::nearest(word, known.chain(groups));
                section.fault(format_args!(
                    "`on` holds a word that is neither a reason nor a class of failure; did you mean \"{nearest}\"?"
                ));
            }
        }
    }
    let max_cost_nusd = section.dollars("max_usd_per_request", 9, MOST_MONEY);
    section.end();
    Some(Hop {
        target: target?,
        on,
        max_cost_nusd,
    })
}

fn known_target(
    section: &Section<'_>,
    field: &str,
    name: &str,
    targets: &Targets<'_>,
) -> Option<String> {
    if targets.sound.contains(&name) {
        return Some(name.to_owned());
    }
    if targets.declared.contains(&name) {
        return None;
    }
    let known = targets.sound.iter().copied();
    section.fault(unknown(field, "target", "remote.target", name, known));
    None
}

fn rule(mut section: Section<'_>, targets: &Targets<'_>) -> Option<Rule> {
    let name = section.name("name");
    match name {
        Some(name) => section.call(format!("route rule `{name}`")),
        None if !section.has("name") => {
            section.fault("`name` is missing; headers and records name the rule by it");
        }
        None => {}
    }
    let place = format!("{}: `when`", section.place());
    let when = when(section.table("when", place));
    let then = section.text("then");
    if !section.has("then") {
        section.fault("`then` is missing; it is \"local\", \"remote\" or \"target:<name>\"");
    }
    let then = then.and_then(|then| match (then, then.strip_prefix("target:")) {
        ("local", _) => Some(Then::Local),
        ("remote", _) => Some(Then::Remote),
        (_, Some(name)) => known_target(&section, "then", name, targets).map(Then::Target),
        _ => {
            section.fault("`then` must be \"local\", \"remote\" or \"target:<name>\"");
            None
        }
    });
    section.end();
    Some(Rule {
        name: name?.to_owned(),
        when,
        then: then?,
    })
}

fn when(mut section: Section<'_>) -> When {
    fn set(section: &mut Section<'_>, field: &'static str) -> BTreeSet<String> {
        let texts = section.texts(field).unwrap_or_default();
        texts.into_iter().map(str::to_owned).collect()
    }
    let when = When {
        model: set(&mut section, "model"),
        key: set(&mut section, "key"),
        route: set(&mut section, "route"),
        min_prompt_tokens: section.whole("min_prompt_tokens", 0..=u64::from(u32::MAX)),
        max_prompt_tokens: section.whole("max_prompt_tokens", 0..=u64::from(u32::MAX)),
        pattern: section.pattern("pattern"),
        headers: headers(&mut section),
        tools: section.flag("tools"),
        stream: section.flag("stream"),
    };
    if when.route.iter().any(|route| !route.starts_with('/')) {
        section.fault("`route` must list paths, such as \"/v1/chat/completions\"");
    }
    if let (Some(least), Some(most)) = (when.min_prompt_tokens, when.max_prompt_tokens)
        && least > most
    {
        section.fault("`min_prompt_tokens` must be <= `max_prompt_tokens`");
    }
    section.end();
    when
}

fn headers(section: &mut Section<'_>) -> BTreeMap<String, regex::Regex> {
    let place = format!("{}: `headers`", section.place());
    let table = section.table("headers", place);
    let mut headers = BTreeMap::new();
    for (name, value) in table.entries() {
        let sound = HeaderName::try_from(name.as_str())
            .ok()
            .filter(|header| is_plain_name(header.as_str()));
        let (Some(header), Some(text)) = (sound, value.as_str()) else {
            table.fault("must hold names of headers and a regular expression for each");
            continue;
        };
        if let Some(pattern) = table.compile(header.as_str(), text) {
            headers.insert(header.as_str().to_owned(), pattern);
        }
    }
    headers
}
