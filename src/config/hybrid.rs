//! The tables of the file that are about upstreams, taken together: what one says depends on another.

use std::path::Path;

use toml::Value;

use super::alerts::{self, AlertSettings};
use super::egress::{self, AuditSettings};
use super::keys::Grants;
use super::ledger;
use super::remote::{self, Variables};
use super::resolve::ModelSource;
use super::route;
use super::section::Notes;
use crate::api::Key;
use crate::egress::Level;
use crate::route::Policies;

/// The tables as they stand in the file.
pub(super) struct Sections {
    pub(super) remote: Option<Value>,
    pub(super) route: Option<Value>,
    pub(super) egress: Option<Value>,
    pub(super) providers: Option<Value>,
    pub(super) audit: Option<Value>,
    pub(super) ledger: Option<Value>,
    pub(super) budget: Option<Value>,
    pub(super) alerts: Option<Value>,
}

/// What each floor needs of them.
pub(super) struct Hybrid {
    pub(super) remote: Option<crate::remote::Config>,
    pub(super) route: crate::route::Config,
    pub(super) egress: crate::egress::Config,
    pub(super) audit: Option<AuditSettings>,
    pub(super) ledger: Option<crate::ledger::Config>,
    pub(super) alerts: AlertSettings,
    /// What there is to say about them.
    pub(super) notes: Notes,
}

impl Hybrid {
    /// Resolves the tables of a file; faults and warnings come with the result.
    pub(super) fn resolve(
        sections: &Sections,
        file: &Path,
        variables: &Variables,
        (keys, grants): (&[Key], Grants),
        model: &ModelSource,
        offline: bool,
    ) -> Self {
        let notes = Notes::about(file);
        let mut remote = remote::resolve(sections.remote.as_ref(), variables, &notes);
        let local = *model != ModelSource::None;
        let mut route = route::resolve(
            sections.route.as_ref(),
            remote.as_ref(),
            remote::declared(sections.remote.as_ref(), "target"),
            local,
            &notes,
        );
        let (tables, providers) = (sections.egress.as_ref(), sections.providers.as_ref());
        let mut egress = egress::resolve(tables, providers, &notes);
        let state_dir = remote
            .as_ref()
            .and_then(|remote| remote.state_dir.as_deref());
        let audit = egress::audit(sections.audit.as_ref(), remote.is_some(), state_dir, &notes);
        let ledger = ledger::resolve(
            (sections.ledger.as_ref(), sections.budget.as_ref()),
            remote.as_mut(),
            keys,
            variables,
            &notes,
        );
        route.policies = Policies::new(grants.policies, grants.may_widen);
        egress.keys = grants.keys;
        egress.known = grants.known;
        egress.offline = offline || is_offline(variables);
        match &remote {
            // A table with faults is no upstream, and has been spoken of already.
            None if !local && !notes.has_faults() => notes.fault(
                "`model_id` is none, and no upstream is configured; give a model as `model_id` or configure an upstream (`[[remote.upstream]]`)",
            ),
            None => {}
            Some(remote) => {
                let money = remote.upstreams.iter();
                egress.daily_nusd = money
                    .map(|upstream| (upstream.name.to_string(), upstream.max_nusd_per_day))
                    .collect();
                warn(&egress, &route, keys, &notes);
            }
        }
        Self {
            remote,
            route,
            egress,
            audit,
            ledger,
            alerts: alerts::resolve(sections.alerts.as_ref(), variables, &notes),
            notes,
        }
    }
}

/// Whether the variable that Hugging Face's own tools look at keeps everything here.
fn is_offline(variables: &Variables) -> bool {
    let value = variables.get("HF_HUB_OFFLINE");
    value.is_some_and(|value| {
        let value = value.expose();
        ["1", "on", "yes", "true"]
            .iter()
            .any(|yes| value.eq_ignore_ascii_case(yes))
    })
}

/// Says what keeps upstreams from ever being used.
fn warn(egress: &crate::egress::Config, route: &crate::route::Config, keys: &[Key], notes: &Notes) {
    if egress.offline {
        notes.warn("this server is offline (--offline, SCONCE_OFFLINE or HF_HUB_OFFLINE), so no upstream beyond this machine is used");
    }
    let level = |key: &Key| egress.keys.get(&key.name).unwrap_or(&egress.default).level;
    let denied = |level| level == Level::Deny;
    if denied(egress.anonymous.level) && keys.iter().map(level).all(denied) {
        notes.warn("nobody's text may leave this machine, so no upstream is used; set `anonymous` (callers without a key) or `default` of `[egress]`, or `egress` of a key, to \"dedicated\", \"allowlist\" or \"any\"");
    }
    let named = route.rules.iter().flat_map(|rule| &rule.when.key);
    for key in named {
        let known = key == "anonymous" || keys.iter().any(|known| known.name == *key);
        if !known {
            notes.warn("a `[[route.rule]]` names a key under `when` that the file does not hold; it never applies to anybody");
        }
    }
}

#[cfg(test)]
mod tests;
