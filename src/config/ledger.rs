//! `[ledger]` and `[[budget]]` of the settings file: where money is written down, and how much of it there is.
//!
//! Without a word about money, none may be spent: an upstream's `max_usd_per_day` is 0 unless it is given, or a
//! hard budget of money stands over all that the upstream could cost.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono_tz::Tz;
use toml::Value;

use super::remote::{Variables, default_state_dir, is_variable};
use super::section::{Notes, Section};
use crate::api::Key;
use crate::dispatch::daily_budget;
use crate::ledger::{Budget, Config, Each, Limit, OnExceed, Period, Place, Scope};
use crate::remote::UpstreamKind;

const LEDGER_FILE: &str = "ledger.db";
/// Most US dollars and tokens of one budget.
const MOST_MONEY: u64 = 1_000_000_000;
const MOST_TOKENS: u64 = 1 << 53;
const DAY: Duration = Duration::from_secs(86_400);
const PERIODS: [(&str, Period); 3] = [
    ("hour", Period::Hour),
    ("day", Period::Day),
    ("month", Period::Month),
];
const ON_EXCEED: [(&str, OnExceed); 3] = [
    ("next", OnExceed::Next),
    ("local", OnExceed::Local),
    ("refuse", OnExceed::Refuse),
];
const EACH: [(&str, Each); 5] = [
    ("key", Each::Key),
    ("tenant", Each::Tenant),
    ("model", Each::Model),
    ("provider", Each::Provider),
    ("upstream", Each::Upstream),
];

/// What `[ledger]` and the `[[budget]]` tables say; none where nothing is kept: without upstreams, unless
/// `[ledger]` is there. Each upstream's own `max_usd_per_day` becomes a budget beside the others.
pub(super) fn resolve(
    (ledger, budgets): (Option<&Value>, Option<&Value>),
    mut remote: Option<&mut crate::remote::Config>,
    keys: &[Key],
    variables: &Variables,
    notes: &Notes,
) -> Option<Config> {
    let mut section = Section::new(notes, "`[ledger]`", ledger);
    let state_dir = match &remote {
        Some(remote) => remote.state_dir.clone(),
        None => default_state_dir(variables),
    };
    let wanted = remote.is_some() || ledger.is_some();
    let place = place(&mut section, state_dir.as_deref(), variables, wanted);
    let zone = zone(&mut section);
    let mut keep_days = 400;
    section.set_whole("keep_days", 32..=36_500, &mut keep_days);
    let mut max_bytes = 4 << 30;
    section.set_whole("max_bytes", 1 << 20..=1 << 50, &mut max_bytes);
    section.end();
    let mut list = named_budgets(budgets, notes);
    for budget in &list {
        if let Some(key) = &budget.scope.key {
            let known = &**key == "anonymous" || keys.iter().any(|known| *known.name == **key);
            if !known {
                notes.warn(format_args!(
                    "budget `{}` names a key that the file does not hold; nobody spends from it",
                    budget.name
                ));
            }
        }
    }
    if let Some(remote) = &remote {
        check_names(remote, &list, notes);
    }
    if remote.is_none() && !list.is_empty() {
        notes.warn(
            "`[[budget]]` has no meaning without an upstream: answers made here cost nothing",
        );
    }
    if let Some(remote) = &mut remote {
        bound_upstreams(remote, &mut list, notes);
    }
    Some(Config {
        place: place.filter(|_| wanted)?,
        budgets: list,
        zone,
        keep: DAY * keep_days,
        max_bytes,
    })
}

/// Says which budgets bound nothing, because what they name is not there.
fn check_names(remote: &crate::remote::Config, list: &[Budget], notes: &Notes) {
    for budget in list {
        let Scope {
            upstream, model, ..
        } = &budget.scope;
        if let Some(upstream) = upstream
            && !remote.upstreams.iter().any(|known| known.name == *upstream)
        {
            notes.fault(format_args!(
                "budget `{}`: `upstream` names none of the file's; it would bound nothing",
                budget.name
            ));
        }
        if let Some(model) = model
            && !remote.targets.iter().any(|target| target.model == *model)
        {
            notes.fault(format_args!(
                "budget `{}`: `model` is that of no target, by its name at the upstream; it would bound nothing",
                budget.name
            ));
        }
    }
}

/// Where the ledger is.
fn place(
    section: &mut Section<'_>,
    state_dir: Option<&Path>,
    variables: &Variables,
    wanted: bool,
) -> Option<Place> {
    let path = section.text("path").map(PathBuf::from);
    let variable = section.text("url_env");
    if let Some(variable) = variable {
        if path.is_some() {
            section.fault("`path` and `url_env` are two ledgers; give one of them");
            return None;
        }
        if !is_variable(variable) {
            section.fault("`url_env` must be the name of a variable in capitals, such as \"SCONCE_LEDGER_URL\", and never the address itself, which holds a password");
            return None;
        }
        let Some(url) = variables.get(variable) else {
            section.fault(format_args!(
                "{variable} is not set; it holds the address of the Postgres, such as postgres://user:password@host/database"
            ));
            return None;
        };
        let is_postgres = ["postgres://", "postgresql://"]
            .iter()
            .any(|scheme| url.expose().starts_with(scheme));
        if !is_postgres {
            section.fault(format_args!(
                "the address in {variable} must begin with `postgres://`; a SQLite file is given as `path`"
            ));
            return None;
        }
        return Some(Place::Postgres(url.clone()));
    }
    if section.has("url_env") {
        return None;
    }
    let path = path.or_else(|| Some(state_dir?.join(LEDGER_FILE)));
    if wanted && path.is_none() && !section.has("path") {
        section.fault("`path` is missing, and neither `state_dir` of `[remote]` nor HOME says where it could stand; give one of them");
    }
    path.map(Place::File)
}

fn zone(section: &mut Section<'_>) -> Tz {
    let Some(name) = section.text("time_zone") else {
        return Tz::UTC;
    };
    name.parse().unwrap_or_else(|_| {
        section.fault("`time_zone` must be a name such as \"Europe/Berlin\" or \"UTC\"");
        Tz::UTC
    })
}

fn named_budgets(value: Option<&Value>, notes: &Notes) -> Vec<Budget> {
    let Some(tables) = value else {
        return Vec::new();
    };
    let Some(tables) = tables.as_array() else {
        notes.fault("`budget` must be written as `[[budget]]` tables");
        return Vec::new();
    };
    let mut all: Vec<Budget> = Vec::new();
    for (index, table) in tables.iter().enumerate() {
        let place = format!("`[[budget]]` table {}", index + 1);
        let Some(budget) = budget(Section::new(notes, place, Some(table))) else {
            continue;
        };
        if all.iter().any(|other| other.name == budget.name) {
            notes.fault(format_args!(
                "budget `{}` stands there twice; give one of them another `name`",
                budget.name
            ));
        }
        all.push(budget);
    }
    all
}

fn budget(mut section: Section<'_>) -> Option<Budget> {
    let name = section.name("name");
    match name {
        Some(name) => section.call(format!("budget `{name}`")),
        None if !section.has("name") => {
            section.fault("`name` is missing; messages and alerts name the budget by it");
        }
        None => {}
    }
    let money = section.dollars("usd", 9, MOST_MONEY);
    let tokens = section.whole("tokens", 0..=MOST_TOKENS);
    let limit = match (section.has("usd"), section.has("tokens")) {
        (true, false) => money.map(Limit::Nusd),
        (false, true) => tokens.map(Limit::Tokens),
        (true, true) => {
            section.fault("`usd` and `tokens` are two budgets; give each a table of its own");
            None
        }
        (false, false) => {
            section.fault(
                "`usd` is missing: how many US dollars it holds (or `tokens`); 0 means none",
            );
            None
        }
    };
    let period = section.choice("period", &PERIODS);
    if !section.has("period") {
        section.fault("`period` is missing; it is \"hour\", \"day\" or \"month\"");
    }
    let soft = section
        .choice("kind", &[("hard", false), ("soft", true)])
        .unwrap_or(false);
    let on_exceed = section.choice("on_exceed", &ON_EXCEED);
    if soft && on_exceed.is_some() {
        section.fault("`on_exceed` has no meaning for kind \"soft\", which denies nothing");
    }
    let each = section.choice("each", &EACH);
    let mut part = |field| section.text(field).map(Into::into);
    let scope = Scope {
        key: part("key"),
        tenant: part("tenant"),
        model: part("model"),
        provider: part("provider"),
        upstream: part("upstream"),
    };
    section.end();
    Some(Budget {
        name: name?.into(),
        scope,
        each,
        period: period?,
        limit: limit?,
        soft,
        on_exceed: on_exceed.unwrap_or_default(),
    })
}

/// Adds a budget for each upstream's day, and says which targets no money is left for.
fn bound_upstreams(remote: &mut crate::remote::Config, list: &mut Vec<Budget>, notes: &Notes) {
    let covers = |upstream: &str, budget: &Budget| {
        let Scope {
            key,
            tenant,
            model,
            provider,
            upstream: only,
        } = &budget.scope;
        let whole = key.is_none() && tenant.is_none() && model.is_none() && provider.is_none();
        let here = only.as_ref().is_none_or(|only| **only == *upstream);
        // One for each key bounds no sum.
        let sums = matches!(budget.each, None | Some(Each::Upstream));
        whole && here && sums && !budget.soft && matches!(budget.limit, Limit::Nusd(_))
    };
    let mut daily = Vec::new();
    for upstream in &mut remote.upstreams {
        let covered = list.iter().any(|budget| covers(&upstream.name, budget));
        if upstream.max_nusd_per_day.is_none() && !covered {
            upstream.max_nusd_per_day = Some(0);
        }
        let name = daily_budget(&upstream.name);
        daily.push(Budget {
            scope: Scope {
                upstream: Some(upstream.name.clone()),
                ..Scope::default()
            },
            // Without a bound of its own it is counted all the same, for those who look at it.
            soft: upstream.max_nusd_per_day.is_none(),
            ..Budget::daily(&name, upstream.max_nusd_per_day.unwrap_or(u64::MAX))
        });
    }
    list.extend(daily);
    for target in &remote.targets {
        let mut upstreams = remote.upstreams.iter();
        let Some(upstream) = upstreams.find(|upstream| upstream.name == target.upstream) else {
            continue;
        };
        let own = upstream.billing == crate::remote::Billing::Own;
        let priced = target.price.is_some() || upstream.kind == UpstreamKind::HfRouter;
        if upstream.max_nusd_per_day == Some(0) && !own && priced {
            notes.warn(format_args!(
                "target `{}`: it costs money, and upstream `{}` may spend none, so it is never used; set `max_usd_per_day` of that upstream, or a `[[budget]]` over it",
                target.name, upstream.name
            ));
        }
    }
}
