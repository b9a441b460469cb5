//! `[alerts]` of the settings file: what is worth telling, to whom, and what is done about it.

use std::time::Duration;

use toml::Value;
use url::{Host, Url};

use super::remote::{Variables, is_variable};
use super::section::{Notes, Section};
use crate::ledger::WatchConfig;
use crate::telemetry::Secret;

/// The longest pause between two looks.
const MOST_LOOK: Duration = Duration::from_secs(900);
/// Most US dollars that are never a spike.
const MOST_FLOOR: u64 = 1_000_000;

/// Who is told about money and targets, and when.
#[derive(Debug, Clone, PartialEq)]
pub struct AlertSettings {
    /// When something is worth telling.
    pub watch: WatchConfig,
    /// How often it is looked.
    pub look: Duration,
    /// For how long everything stays here after a spike; none keeps nothing here.
    pub contain: Option<Duration>,
    /// Where alerts are sent, beside the log.
    pub webhook: Option<Webhook>,
}

/// An address that is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    /// The address, which may be a secret by itself.
    pub url: Secret,
    /// What its messages are signed with.
    pub secret: Option<Secret>,
    /// Whether the host may resolve to private addresses.
    pub allow_private: bool,
}

/// What `[alerts]` says.
pub(super) fn resolve(
    value: Option<&Value>,
    variables: &Variables,
    notes: &Notes,
) -> AlertSettings {
    let mut section = Section::new(notes, "`[alerts]`", value);
    let mut watch = WatchConfig::default();
    let spikes = &mut watch.spikes;
    if let Some(nusd) = section.dollars("spike_floor_usd", 9, MOST_FLOOR) {
        spikes.floor_nusd = nusd;
    }
    section.set_ratio("spike_factor", 1.0..=1e6, &mut spikes.factor);
    section.set_ratio("spike_mads", 0.0..=1e6, &mut spikes.mads);
    section.set_ratio("spike_peaks", 0.0..=1e6, &mut spikes.peaks);
    section.set_ratio("ramp_z", 0.1..=1e6, &mut spikes.z);
    section.set_whole("calm_minutes", 1..=10_080, &mut spikes.calm_minutes);
    watch.calm_minutes = u64::from(spikes.calm_minutes);
    if let Some(thresholds) = thresholds(&mut section) {
        watch.thresholds = thresholds;
    }
    let mut look = Duration::from_secs(60);
    section.set_time("look_seconds", &mut look);
    if look > MOST_LOOK {
        section.fault("`look_seconds` must be 900 at most: what is older is not looked at again");
    }
    let contain = section.has("contain_minutes").then(|| {
        let mut contain = Duration::ZERO;
        section.set_time("contain_minutes", &mut contain);
        contain
    });
    if contain.is_none() {
        // So that it is a known field.
        section.value("contain_minutes");
    }
    let url = secret(&mut section, "url_env", "SCONCE_ALERT_URL", variables);
    let key = secret(&mut section, "secret_env", "SCONCE_ALERT_SECRET", variables);
    let allow_private = section.flag("allow_private").unwrap_or(false);
    let url = url.filter(|url| is_address(&section, url.expose()));
    if url.is_none() && key.is_some() {
        section.warn("`secret_env` has no meaning without `url_env`");
    }
    if url.is_some() && key.is_none() {
        section.warn("alerts are sent without a signature, so that anybody can send their like; set `secret_env` to the name of a variable that holds a secret");
    }
    section.end();
    AlertSettings {
        watch,
        look,
        contain,
        webhook: url.map(|url| Webhook {
            url,
            secret: key,
            allow_private,
        }),
    }
}

/// Per cent of budgets, in a list.
fn thresholds(section: &mut Section<'_>) -> Option<Vec<u8>> {
    let list = section.value("budget_percent")?.as_array();
    let number = |value: &Value| {
        let number = u8::try_from(value.as_integer()?).ok()?;
        (1..=100).contains(&number).then_some(number)
    };
    let list: Option<Vec<u8>> = list.and_then(|list| list.iter().map(number).collect());
    if list.is_none() {
        section.fault("`budget_percent` must be a list of whole numbers from 1 to 100");
    }
    list
}

/// What stands in the variable that a field names; one that is not set is a fault: alerts would go unsigned, or nowhere.
fn secret(
    section: &mut Section<'_>,
    field: &'static str,
    example: &str,
    variables: &Variables,
) -> Option<Secret> {
    let name = section.text(field)?;
    if !is_variable(name) {
        section.fault(format_args!(
            "`{field}` must be the name of a variable in capitals, such as \"{example}\", and never what it holds"
        ));
        return None;
    }
    let value = variables.get(name).cloned();
    if value.is_none() {
        section.fault(format_args!(
            "{name} is not set; set it, or leave `{field}` out"
        ));
    }
    value
}

fn is_address(section: &Section<'_>, text: &str) -> bool {
    let Ok(url) = Url::parse(text) else {
        section.fault("what `url_env` names holds no address; write it as https://host/path");
        return false;
    };
    let loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    };
    let sound = url.scheme() == "https" || (url.scheme() == "http" && loopback);
    if !sound {
        section.fault("the address that `url_env` names must begin with `https://`");
    }
    sound
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(text: &str, variables: &[(&str, &str)]) -> (AlertSettings, Vec<String>, Vec<String>) {
        let value: Value = toml::from_str(text).expect("TOML");
        let notes = Notes::about(Path::new(""));
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), Secret::new((*value).to_owned())));
        let settings = resolve(Some(&value), &variables.collect(), &notes);
        let (faults, warnings) = notes.into_parts();
        (settings, faults, warnings)
    }

    #[test]
    fn what_is_not_said_is_as_documented() {
        let (settings, faults, warnings) = read("", &[]);
        assert!(faults.is_empty() && warnings.is_empty());
        assert_eq!(settings.watch, WatchConfig::default());
        assert_eq!((settings.contain, settings.webhook), (None, None));
        assert_eq!(settings.watch.thresholds, [50, 80, 100]);
    }

    #[test]
    fn addresses_come_from_variables_and_are_never_repeated() {
        let secret = "https://hooks.example.org/T0/hunter2";
        let text = "url_env = \"HOOK\"\nsecret_env = \"KEY\"\ncontain_minutes = 30";
        let (settings, faults, warnings) = read(text, &[("HOOK", secret), ("KEY", "s3cret")]);
        assert!(
            faults.is_empty() && warnings.is_empty(),
            "{faults:?} {warnings:?}"
        );
        assert_eq!(settings.contain, Some(Duration::from_secs(1800)));
        assert_eq!(settings.webhook.expect("one").url.expose(), secret);
        for (text, variables, expected) in [
            (
                format!("url_env = {secret:?}"),
                vec![],
                "must be the name of a variable",
            ),
            (
                "url_env = \"HOOK\"".to_owned(),
                vec![("HOOK", "http://hunter2.org")],
                "must begin with `https://`",
            ),
            (
                "url_env = \"HOOK\"".to_owned(),
                vec![("HOOK", "hunter2")],
                "holds no address",
            ),
            ("url_env = \"HOOK\"".to_owned(), vec![], "HOOK is not set"),
            (
                "url_env = \"HOOK\"".to_owned(),
                vec![("HOOK", secret)],
                "without a signature",
            ),
            (
                "budget_percent = [50, 120]".to_owned(),
                vec![],
                "from 1 to 100",
            ),
        ] {
            let (_, faults, warnings) = read(&text, &variables);
            let said = [faults, warnings].concat();
            assert!(said.len() == 1 && said[0].contains(expected), "{said:?}");
            assert!(!said[0].contains("hunter2"), "{said:?}");
        }
    }
}
