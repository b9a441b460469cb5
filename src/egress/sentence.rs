//! The gate's settings in one plain sentence, for the operator who starts the server: what may leave this
//! machine, to where, for whom. It is made by the same checks that the gate makes.

use std::collections::{BTreeMap, BTreeSet};

use super::gate::{fulfils, reaches};
use super::types::{Action, Config, Destination, Grant};

/// Says what may leave, to which hosts, for whose requests, given every configured destination.
pub fn egress_sentence(config: &Config, destinations: &[Destination]) -> String {
    if destinations.is_empty() {
        return "Nothing leaves this machine: no upstream is configured.".to_owned();
    }
    let allowed: Vec<&Destination> = destinations
        .iter()
        .filter(|to| to.loopback || !config.offline)
        .collect();
    if allowed.is_empty() {
        return "Nothing leaves this machine: it is offline.".to_owned();
    }
    let places = |grant: &Grant| {
        let open = |to: &&&Destination| reaches(grant, to).is_ok() && fulfils(config, to).is_ok();
        list(&described(config, allowed.iter().filter(open).copied()))
    };
    let mut sentences = Vec::new();
    let mut named: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, grant) in &config.keys {
        named.entry(places(grant)).or_default().push(name);
    }
    // Who may let nothing leave falls under "nobody else", unless everybody else may let more.
    let none = named.remove("").unwrap_or_default();
    for (to, names) in named {
        let names: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
        let keys = if names.len() == 1 { "key" } else { "keys" };
        sentences.push(format!(
            "of callers with {keys} {} may leave to {to}",
            list(&names)
        ));
    }
    let default = places(&config.default);
    if !default.is_empty() {
        let who = if config.keys.is_empty() {
            "a key"
        } else {
            "any other key"
        };
        sentences.push(format!("of callers with {who} may leave to {default}"));
    }
    let anonymous = places(&config.anonymous);
    if !anonymous.is_empty() {
        sentences.push(format!("of callers without a key may leave to {anonymous}"));
    }
    if sentences.is_empty() {
        return format!(
            "Nothing leaves this machine: {} configured, but no caller's text may go there.",
            match hosts(&allowed).as_slice() {
                [one] => format!("upstream {one} is"),
                many => format!("upstreams {} are", list(many)),
            }
        );
    }
    let mut text = format!("Text {}", sentences.join("; "));
    if !default.is_empty() && !none.is_empty() {
        let none: Vec<String> = none.iter().map(|name| format!("`{name}`")).collect();
        text.push_str(&format!("; text of {} stays here", list(&none)));
    }
    if default.is_empty() || anonymous.is_empty() {
        text.push_str("; nobody else's text leaves");
    }
    text.push('.');
    let rules = |action| {
        let rules = config
            .rules
            .iter()
            .filter(move |rule| rule.action == action);
        rules
            .map(|rule| format!("`{}`", rule.name))
            .collect::<Vec<_>>()
    };
    let (kept, blocked) = (rules(Action::LocalOnly), rules(Action::Block));
    if !kept.is_empty() {
        text.push_str(&format!(" What {} finds stays here.", list(&kept)));
    }
    if !blocked.is_empty() {
        text.push_str(&format!(
            " What {} finds is answered by nobody.",
            list(&blocked)
        ));
    }
    text
}

/// Each host once, with what kind of place it is and what may be spent there.
fn described<'a>(
    config: &Config,
    destinations: impl Iterator<Item = &'a Destination>,
) -> Vec<String> {
    let mut hosts: BTreeMap<(&str, &str), Place<'a>> = BTreeMap::new();
    for to in destinations {
        let place = hosts.entry((&to.host, &to.upstream)).or_default();
        place.dedicated |= to.dedicated;
        match &to.provider {
            Some(provider) => drop(place.providers.insert(provider)),
            None => place.whoever |= !to.dedicated,
        }
    }
    let describe = |((host, upstream), place): ((&str, &str), Place<'_>)| {
        let mut kind = Vec::new();
        if place.dedicated {
            kind.push("dedicated".to_owned());
        } else if place.whoever {
            kind.push("whichever provider it chooses".to_owned());
        } else {
            let names: Vec<String> = place.providers.iter().map(|p| (*p).to_owned()).collect();
            let word = if names.len() == 1 {
                "provider"
            } else {
                "providers"
            };
            kind.push(format!("{word} {}", list(&names)));
        }
        match config.daily_nusd.get(upstream).copied().unwrap_or(Some(0)) {
            Some(0) | None if place.dedicated => {}
            Some(0) => kind.push("nothing that costs money".to_owned()),
            Some(nusd) => kind.push(format!("at most {} USD a day", usd(nusd))),
            None => kind.push("within the budgets".to_owned()),
        }
        format!("{host} ({})", kind.join(", "))
    };
    hosts.into_iter().map(describe).collect()
}

#[derive(Default)]
struct Place<'a> {
    dedicated: bool,
    whoever: bool,
    providers: BTreeSet<&'a str>,
}

fn hosts(destinations: &[&Destination]) -> Vec<String> {
    let hosts: BTreeSet<&str> = destinations.iter().map(|to| to.host.as_ref()).collect();
    hosts.into_iter().map(str::to_owned).collect()
}

/// Nano-USD in USD, with at least two digits after the point and no more than are needed.
fn usd(nusd: u64) -> String {
    const NUSD: u64 = 1_000_000_000;
    let fraction = format!("{:09}", nusd % NUSD);
    let digits = fraction.trim_end_matches('0').len().max(2);
    format!("{}.{}", nusd / NUSD, &fraction[..digits])
}

/// `a`, `a and b`, `a, b and c`; empty for none.
fn list(items: &[String]) -> String {
    match items {
        [] => String::new(),
        [one] => one.clone(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::{ContentRule, Level};

    fn to(upstream: &str, host: &str, dedicated: bool, provider: Option<&str>) -> Destination {
        Destination {
            target: upstream.into(),
            upstream: upstream.into(),
            host: host.into(),
            loopback: host.starts_with("127."),
            dedicated,
            provider: provider.map(Into::into),
            model: "m".into(),
        }
    }

    fn grant(level: Level, providers: &[&str]) -> Grant {
        Grant {
            level,
            providers: providers.iter().map(|&p| p.to_owned()).collect(),
        }
    }

    #[test]
    fn the_sentence_says_what_leaves_to_where_for_whom() {
        let own = to("own", "ep.example:443", true, None);
        let together = to("hf", "router.example:443", false, Some("together"));
        let novita = to("hf", "router.example:443", false, Some("novita"));
        let any = to("hf", "router.example:443", false, None);
        let local = to("beside", "127.0.0.1:8080", true, None);
        let all = [own.clone(), together, novita, any, local];
        let mut config = Config::default();
        assert_eq!(
            egress_sentence(&config, &[]),
            "Nothing leaves this machine: no upstream is configured."
        );
        assert_eq!(
            egress_sentence(&config, &all[..2]),
            "Nothing leaves this machine: upstreams ep.example:443 and router.example:443 are configured, \
             but no caller's text may go there."
        );
        config
            .keys
            .insert("team-a".to_owned(), grant(Level::Dedicated, &[]));
        assert_eq!(
            egress_sentence(&config, &[own]),
            "Text of callers with key `team-a` may leave to ep.example:443 (dedicated); nobody else's text leaves."
        );
        let listed = grant(Level::Allowlist, &["novita"]);
        config.keys.insert("b".to_owned(), listed.clone());
        config.keys.insert("c".to_owned(), listed);
        config.keys.insert("shy".to_owned(), Grant::default());
        config.default = grant(Level::Any, &[]);
        config
            .daily_nusd
            .insert("hf".to_owned(), Some(2_500_000_000));
        config.rules.push(ContentRule {
            name: "iban".to_owned(),
            pattern: regex::Regex::new("DE[0-9]{20}").expect("a pattern"),
            action: Action::LocalOnly,
        });
        assert_eq!(
            egress_sentence(&config, &all),
            "Text of callers with key `team-a` may leave to 127.0.0.1:8080 (dedicated) and ep.example:443 (dedicated); \
             of callers with keys `b` and `c` may leave to 127.0.0.1:8080 (dedicated), ep.example:443 (dedicated) and \
             router.example:443 (provider novita, at most 2.50 USD a day); \
             of callers with any other key may leave to 127.0.0.1:8080 (dedicated), ep.example:443 (dedicated) and \
             router.example:443 (whichever provider it chooses, at most 2.50 USD a day); \
             text of `shy` stays here; nobody else's text leaves. What `iban` finds stays here."
        );
        config.offline = true;
        assert_eq!(
            egress_sentence(&config, &all[..4]),
            "Nothing leaves this machine: it is offline."
        );
        config.keys.clear();
        config.anonymous = grant(Level::Any, &[]);
        config.rules.clear();
        assert_eq!(
            egress_sentence(&config, &all),
            "Text of callers with a key may leave to 127.0.0.1:8080 (dedicated); \
             of callers without a key may leave to 127.0.0.1:8080 (dedicated)."
        );
    }

    #[test]
    fn a_provider_that_does_not_fulfil_the_demands_is_not_named() {
        let mut config = Config {
            anonymous: grant(Level::Any, &[]),
            ..Config::default()
        };
        config.demand.zdr = true;
        let hf = to("hf", "router.example:443", false, Some("together"));
        assert_eq!(
            egress_sentence(&config, &[hf]),
            "Nothing leaves this machine: upstream router.example:443 is configured, but no caller's text may go there."
        );
    }
}
