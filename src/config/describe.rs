//! Settings of upstreams in words, for the operator who asks what would be served.

use super::egress::LEVELS;
use super::resolve::Settings;
use crate::egress::Level;
use crate::ledger::{Budget, Limit, Place};
use crate::remote::{
    Billing, Config, EngineKind, Price, ProviderChoice, TargetConfig, UpstreamConfig, UpstreamKind,
};
use crate::route::{Hop, ModelRoute, Then};

/// What each upstream, target, model, rule and level comes to: a name and a sentence each, without secrets.
/// Nothing where no upstream is configured.
pub fn describe(settings: &Settings) -> Vec<(String, String)> {
    let Some(remote) = &settings.remote else {
        return Vec::new();
    };
    let Config {
        upstreams, targets, ..
    } = remote;
    let mut lines = Vec::new();
    let mut line = |name: String, words: String| lines.push((name, words));
    for one in upstreams {
        line(format!("upstream {}", one.name), upstream(one));
    }
    for one in targets {
        line(format!("target {}", one.name), target(one));
    }
    line(
        "route.policy".to_owned(),
        settings.route.policy.name().to_owned(),
    );
    for (name, one) in &settings.route.models {
        let name = match name.as_str() {
            "" => "default",
            name => name,
        };
        line(format!("model {name}"), model(one));
    }
    for rule in &settings.route.rules {
        let words = match &rule.then {
            Then::Local => "local".to_owned(),
            Then::Remote => "remote".to_owned(),
            Then::Target(name) => format!("target {name}"),
        };
        line(format!("route rule {}", rule.name), words);
    }
    line("egress".to_owned(), egress(settings));
    if let Some(audit) = &settings.audit {
        line("audit".to_owned(), audit.path.display().to_string());
    }
    if let Some(ledger) = &settings.ledger {
        let place = match &ledger.place {
            Place::File(path) => path.display().to_string(),
            Place::Postgres(_) => "a Postgres".to_owned(),
        };
        line("ledger".to_owned(), place);
        for budget in &ledger.budgets {
            line(format!("budget {}", budget.name), self::budget(budget));
        }
    }
    lines
}

fn budget(budget: &Budget) -> String {
    let amount = match budget.limit {
        Limit::Nusd(u64::MAX) => return "counted, and bounded by other budgets".to_owned(),
        Limit::Nusd(nusd) => format!("{} USD", decimal(nusd, 9)),
        Limit::Tokens(tokens) => format!("{tokens} tokens"),
    };
    let kind = if budget.soft { ", only told of" } else { "" };
    let each = budget.each.map(|each| format!(" for each {}", each.name()));
    let each = each.unwrap_or_default();
    format!("{amount} a {}{each}{kind}", budget.period.name())
}

fn upstream(upstream: &UpstreamConfig) -> String {
    let kind = match upstream.kind {
        UpstreamKind::HfRouter => "hf_router",
        UpstreamKind::InferenceEndpoint => "inference_endpoint",
        UpstreamKind::Tgi => "tgi",
        UpstreamKind::OpenAiCompat => "openai_compat",
        UpstreamKind::Replicate => "replicate",
    };
    let engine = match upstream.engine {
        None => "",
        Some(EngineKind::Tgi) => " (tgi)",
        Some(EngineKind::Vllm) => " (vllm)",
        Some(EngineKind::LlamaCpp) => " (llama_cpp)",
        Some(EngineKind::OpenAi) => " (openai)",
    };
    let token = match (&upstream.token_env, &upstream.disabled) {
        (_, Some(why)) => format!("not used: {why}"),
        (Some(variable), None) => format!("token in {variable}"),
        (None, None) => "no token".to_owned(),
    };
    let money = match upstream.billing {
        Billing::Own => "own machine".to_owned(),
        Billing::Tokens => format!(
            "at most {} USD a day",
            upstream
                .max_nusd_per_day
                .map_or_else(|| "no bound of its own".to_owned(), |nusd| decimal(nusd, 9))
        ),
    };
    format!("{kind}{engine} at {}, {token}, {money}", upstream.base_url)
}

fn target(target: &TargetConfig) -> String {
    let provider = match &target.provider {
        ProviderChoice::Whoever => String::new(),
        ProviderChoice::Pinned(name) => format!(", provider {name}"),
        ProviderChoice::Policy(name) => format!(", the router's {name} provider"),
        ProviderChoice::Auto(name) => format!(", the {name} provider, pinned"),
    };
    let price = match target.price {
        None => "price by the catalogue".to_owned(),
        Some(Price::FREE) => "free".to_owned(),
        Some(Price {
            input_pusd,
            output_pusd,
            ..
        }) => format!(
            "{} USD in and {} USD out a million tokens",
            decimal(input_pusd, 6),
            decimal(output_pusd, 6)
        ),
    };
    let most = target.max_cost_nusd.map_or(String::new(), |most| {
        format!(", at most {} USD a request", decimal(most, 9))
    });
    format!(
        "{} at {}{provider}, {price}{most}",
        target.model, target.upstream
    )
}

fn model(model: &ModelRoute) -> String {
    let hop = |hop: &Hop| match hop.on.is_empty() {
        true => hop.target.clone(),
        false => {
            let on: Vec<&str> = hop.on.iter().map(String::as_str).collect();
            format!("{} (on {})", hop.target, on.join(", "))
        }
    };
    let local = model.local.then(|| "this machine".to_owned());
    let chain: Vec<String> = local
        .into_iter()
        .chain(model.hops.iter().map(hop))
        .collect();
    match chain.is_empty() {
        true => "nobody".to_owned(),
        false => chain.join(", then "),
    }
}

fn egress(settings: &Settings) -> String {
    let egress = &settings.egress;
    if egress.offline {
        return "offline: nothing leaves this machine".to_owned();
    }
    let name = |level: Level| {
        let known = LEVELS.iter().find(|(_, known)| *known == level);
        known.map_or("", |(name, _)| *name)
    };
    let mut words = format!(
        "anonymous {}, keys {}",
        name(egress.anonymous.level),
        name(egress.default.level)
    );
    for (key, grant) in &egress.keys {
        words += &format!(", key {key} {}", name(grant.level));
    }
    words
}

/// A whole number of units of 10^-`decimals`, as people write it.
fn decimal(units: u64, decimals: u32) -> String {
    let one = 10u64.pow(decimals);
    let width = decimals as usize;
    let text = format!("{}.{:0width$}", units / one, units % one);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_shown_exactly() {
        for (units, decimals, expected) in [
            (0, 9, "0"),
            (1, 9, "0.000000001"),
            (1_500_000_000, 9, "1.5"),
            (100_000, 6, "0.1"),
            (10_000_000_000, 6, "10000"),
        ] {
            assert_eq!(decimal(units, decimals), expected);
        }
    }
}
