//! `[egress]`, `[providers]` and `[audit]` of the settings file: what may leave, for whom, and where that is
//! written down.
//!
//! Whatever is not said is denied.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use toml::Value;

use super::section::{Notes, Section, is_plain_name};
use crate::egress::{Action, Config, ContentRule, Demand, Facts, Grant, Level};

/// Levels by their names in settings.
pub(super) const LEVELS: [(&str, Level); 4] = [
    ("deny", Level::Deny),
    ("dedicated", Level::Dedicated),
    ("allowlist", Level::Allowlist),
    ("any", Level::Any),
];
const MOST_BYTES: u64 = 1 << 40;
const AUDIT_FILE: &str = "audit.jsonl";

/// Where what leaves is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditSettings {
    /// The file.
    pub path: PathBuf,
    /// Bytes after which a new one is begun.
    pub max_bytes: u64,
    /// Old ones that are kept.
    pub keep: u32,
    /// Whether a line is on the disk before what it tells of leaves.
    pub sync: bool,
}

/// What `[egress]` and `[providers]` say; grants of keys and money are added by the caller.
pub(super) fn resolve(egress: Option<&Value>, providers: Option<&Value>, notes: &Notes) -> Config {
    let mut section = Section::new(notes, "`[egress]`", egress);
    let anonymous = grant(&mut section, "anonymous");
    let default = grant(&mut section, "default");
    let max_bytes = section.whole("max_bytes", 1..=MOST_BYTES);
    let mut require = section.table("require", "`[egress]`: `require`");
    let demand = Demand {
        max_retention_days: require.whole("max_retention_days", 0..=36_500),
        regions: list(&mut require, "regions"),
        zdr: require.flag("zdr").unwrap_or(false),
        no_training: require.flag("no_training").unwrap_or(false),
    };
    require.end();
    let mut rules: Vec<ContentRule> = Vec::new();
    for table in section.tables("rule", "egress.rule") {
        let Some(rule) = rule(table) else { continue };
        if rules.iter().any(|other| other.name == rule.name) {
            notes.fault(format_args!(
                "egress rule `{}` stands there twice; give one of them another `name`",
                rule.name
            ));
        }
        rules.push(rule);
    }
    section.end();
    Config {
        offline: false,
        anonymous,
        default,
        keys: BTreeMap::new(),
        known: BTreeSet::new(),
        rules,
        max_bytes,
        facts: facts(providers, notes),
        demand,
        daily_nusd: BTreeMap::new(),
    }
}

/// A grant: a level alone, or a table of a level and providers.
fn grant(section: &mut Section<'_>, field: &'static str) -> Grant {
    if !section.has(field) {
        section.value(field);
        return Grant::default();
    }
    let choice = match section.value(field) {
        Some(Value::Table(_)) => {
            let place = format!("{}: `{field}`", section.place());
            let mut table = section.table(field, place);
            let level = table.choice("level", &LEVELS);
            if !table.has("level") {
                table.fault("`level` is missing");
            }
            let providers = table.texts("providers");
            let grant = level.and_then(|level| {
                let grant = checked_grant(level, providers);
                grant.map_err(|fault| table.fault(fault)).ok()
            });
            table.end();
            grant
        }
        _ => {
            let level = section.choice(field, &LEVELS);
            if level == Some(Level::Allowlist) {
                section.fault(format_args!(
                    "`{field}` lists no providers; write {{ level = \"allowlist\", providers = [\"together\"] }}"
                ));
            }
            level.map(|level| Grant {
                level,
                providers: BTreeSet::new(),
            })
        }
    };
    choice.unwrap_or_default()
}

/// A grant whose level and providers agree. Errors: what is wrong with `providers`.
pub(super) fn checked_grant<'p>(
    level: Level,
    providers: Option<impl IntoIterator<Item = &'p str>>,
) -> Result<Grant, &'static str> {
    let listed = providers.is_some();
    let providers: BTreeSet<String> = providers.into_iter().flatten().map(str::to_owned).collect();
    if !providers.iter().all(|name| is_plain_name(name)) {
        Err("`providers` must be short names of providers, such as \"together\"")
    } else if level == Level::Allowlist && providers.is_empty() {
        Err(
            "`providers` is missing or empty; the level \"allowlist\" lets text go to those listed there",
        )
    } else if level != Level::Allowlist && listed {
        Err("`providers` has no meaning without the level \"allowlist\"")
    } else {
        Ok(Grant { level, providers })
    }
}

fn list(section: &mut Section<'_>, field: &'static str) -> BTreeSet<String> {
    let texts = section.texts(field).unwrap_or_default();
    texts.into_iter().map(str::to_owned).collect()
}

fn rule(mut section: Section<'_>) -> Option<ContentRule> {
    let name = section.name("name");
    match name {
        Some(name) => section.call(format!("egress rule `{name}`")),
        None if !section.has("name") => {
            section.fault("`name` is missing; records name the rule by it")
        }
        None => {}
    }
    let pattern = section.pattern("pattern");
    let actions = [("local-only", Action::LocalOnly), ("block", Action::Block)];
    let action = section.choice("action", &actions);
    for field in ["pattern", "action"] {
        if !section.has(field) {
            section.fault(format_args!("`{field}` is missing"));
        }
    }
    section.end();
    Some(ContentRule {
        name: name?.to_owned(),
        pattern: pattern?,
        action: action?,
    })
}

/// `[providers.<name>]`: what the operator knows of each.
fn facts(value: Option<&Value>, notes: &Notes) -> BTreeMap<String, Facts> {
    let providers = Section::new(notes, "`[providers]`", value);
    let mut facts = BTreeMap::new();
    for (index, (name, value)) in providers.entries().enumerate() {
        let sound = is_plain_name(name);
        let place = match sound {
            true => format!("`[providers.{name}]`"),
            false => format!("`[providers]` table {}", index + 1),
        };
        let mut section = Section::new(notes, place, Some(value));
        if !sound {
            section.fault("its name must be the provider's short one, such as `together`");
        }
        let known = Facts {
            retention_days: section.whole("retention_days", 0..=36_500),
            region: section.text("region").map(str::to_owned),
            zdr: section.flag("zdr"),
            trains: section.flag("trains"),
        };
        section.end();
        facts.insert(name.clone(), known);
    }
    facts
}

/// What `[audit]` says, with its default place in the folder for state; none where nothing can leave.
pub(super) fn audit(
    value: Option<&Value>,
    has_upstream: bool,
    state_dir: Option<&Path>,
    notes: &Notes,
) -> Option<AuditSettings> {
    let mut section = Section::new(notes, "`[audit]`", value);
    let path = section.text("path").map(PathBuf::from);
    let mut max_bytes = 64 << 20;
    let mut keep = 10;
    section.set_whole("max_bytes", 1 << 16..=MOST_BYTES, &mut max_bytes);
    section.set_whole("keep", 1..=100_000, &mut keep);
    let sync = section.flag("sync").unwrap_or(true);
    let path = path.or_else(|| Some(state_dir?.join(AUDIT_FILE)));
    if has_upstream && path.is_none() && !section.has("path") {
        section.fault("`path` is missing, and neither `state_dir` of `[remote]` nor HOME says where it could stand; give one of them");
    }
    section.end();
    path.filter(|_| has_upstream).map(|path| AuditSettings {
        path,
        max_bytes,
        keep,
        sync,
    })
}
