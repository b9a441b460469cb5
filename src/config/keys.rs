//! `[[keys]]` of the settings file: what the operator wrote, and the keys it stands for.
//!
//! Names and values of fields are repeated in faults only where they cannot be a secret that somebody put
//! in the wrong place.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::num::NonZeroU32;
use std::path::Path;

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use super::ConfigError;
use super::egress::{self, LEVELS, checked_grant};
use super::raw::{RawConfig, read_file};
use super::route::policies;
use super::section::{Notes, choose, unknown_key};
use crate::api::{Key, KeyLimits};
use crate::egress::Grant;
use crate::generation::{Policy, Tenant};

/// One `[[keys]]` table.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RawKey {
    /// Whom the key was given to.
    pub name: Option<String>,
    /// `sha256:<id>:<digest>`, made by `sconce key new`.
    pub hash: Option<String>,
    /// Whose prefix cache its requests share; the name without it.
    pub tenant: Option<String>,
    /// Requests a minute in the long run.
    pub requests_per_minute: Option<u32>,
    /// Requests at once after a pause; as many as a minute's without it.
    pub burst: Option<u32>,
    /// Requests that run at the same time.
    pub max_concurrent_requests: Option<u32>,
    /// From when on it is refused: a date or a time, in quotes or not.
    pub expires: Option<Value>,
    /// How far its callers' text may go; as `[egress]` says without it.
    pub egress: Option<String>,
    /// Providers that the level `allowlist` lets it go to.
    pub providers: Option<Vec<String>>,
    /// Who should answer its requests; as `[route]` says without it.
    pub policy: Option<String>,
    /// Whether its callers may ask for a policy that goes further.
    pub may_widen_policy: Option<bool>,
    /// Whether its caller runs this server, and may see what others use.
    pub admin: Option<bool>,
}

/// What keys let their callers' text do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants {
    /// The names of all keys.
    pub known: BTreeSet<String>,
    /// What callers without a key may let leave.
    pub anonymous: Grant,
    /// What keys without a grant of their own may let leave.
    pub default: Grant,
    /// By the key's name: what its callers may let leave.
    pub keys: BTreeMap<String, Grant>,
    /// By the key's name: who should answer its requests.
    pub policies: BTreeMap<String, Policy>,
    /// Keys whose callers may ask for a policy that goes further.
    pub may_widen: BTreeSet<String>,
}

const FIELDS: [&str; 12] = [
    "name",
    "hash",
    "tenant",
    "requests_per_minute",
    "burst",
    "max_concurrent_requests",
    "expires",
    "egress",
    "providers",
    "policy",
    "may_widen_policy",
    "admin",
];

/// Names under which somebody may put the key itself.
const SECRETS: [&str; 6] = ["key", "api_key", "secret", "token", "password", "value"];

/// The keys that a settings file holds.
///
/// Errors: the file cannot be read, or anything in it is wrong.
pub fn read_keys(path: &Path) -> Result<Vec<Key>, ConfigError> {
    parse_keys(&read_file(path)?, path)
}

/// The keys in the text of a settings file; the path is for messages.
///
/// Errors: anything in it is wrong.
pub fn parse_keys(text: &str, path: &Path) -> Result<Vec<Key>, ConfigError> {
    let raw = RawConfig::default().over(text, path)?;
    let mut faults = raw.secrets;
    let mut grants = Grants::default();
    let keys = resolve(raw.keys, path, &mut grants, &mut faults);
    if faults.is_empty() {
        Ok(keys)
    } else {
        Err(ConfigError(faults))
    }
}

/// The keys that a settings file holds, what it lets leave for whom, and who should answer: what is read again
/// while serving. The file is read once, so that all of it is of one moment.
///
/// Errors: the file cannot be read, or anything in its keys, `[egress]` or `[providers]` is wrong.
pub fn read_callers(path: &Path) -> Result<(Vec<Key>, Grants), ConfigError> {
    let raw = RawConfig::default().over(&read_file(path)?, path)?;
    let notes = Notes::about(path);
    let egress = egress::resolve(raw.egress.as_ref(), raw.providers.as_ref(), &notes);
    let mut grants = Grants {
        anonymous: egress.anonymous,
        default: egress.default,
        ..Grants::default()
    };
    let mut faults = raw.secrets;
    let keys = resolve(raw.keys, path, &mut grants, &mut faults);
    faults.extend(notes.into_parts().0);
    if faults.is_empty() {
        Ok((keys, grants))
    } else {
        Err(ConfigError(faults))
    }
}

/// Finds fields of `[[keys]]` that do not exist, or have another type; values are never repeated.
pub(super) fn check_fields(file: &Table) -> Vec<String> {
    let Some(keys) = file.get("keys") else {
        return Vec::new();
    };
    let tables = keys.as_array().map(|keys| keys.iter().map(Value::as_table));
    let Some(tables) = tables.and_then(|tables| tables.collect::<Option<Vec<_>>>()) else {
        return vec!["`keys` must be written as `[[keys]]` tables".to_owned()];
    };
    let fields = tables.into_iter().enumerate().flat_map(|(index, table)| {
        let place = format!("`[[keys]]` table {}", index + 1);
        let fault = move |(field, value): (&String, &Value)| {
            let wanted = match field.as_str() {
                "name" | "hash" | "tenant" | "egress" | "policy" if value.is_str() => {
                    return None;
                }
                "name" | "hash" | "tenant" | "egress" | "policy" => "a text",
                "providers" if is_list_of_texts(value) => return None,
                "providers" => "a list of texts",
                "may_widen_policy" | "admin" if value.is_bool() => return None,
                "may_widen_policy" | "admin" => "true or false",
                "expires" if value.is_str() || value.is_datetime() => return None,
                "expires" => "a date or a time",
                field if FIELDS.contains(&field) => match value.as_integer() {
                    Some(1..=0xffff_ffff) => return None,
                    _ => "a whole number above 0",
                },
                field if SECRETS.contains(&field) => {
                    return Some(format!(
                        "{place}: `{field}`: a key itself may not stand in a file; only its `hash` may (`sconce key new` makes both)"
                    ));
                }
                field => {
                    return Some(format!("{place}: {}", unknown_key(field, FIELDS)));
                }
            };
            Some(format!("{place}: `{field}` must be {wanted}"))
        };
        table.iter().filter_map(fault).collect::<Vec<_>>()
    });
    fields.collect()
}

fn is_list_of_texts(value: &Value) -> bool {
    let texts = value.as_array();
    texts.is_some_and(|texts| texts.iter().all(Value::is_str))
}

/// The keys that these tables of a file stand for, and what they grant; those with faults are left out.
pub(super) fn resolve(
    raw: Vec<RawKey>,
    file: &Path,
    grants: &mut Grants,
    faults: &mut Vec<String>,
) -> Vec<Key> {
    let mut names = HashSet::new();
    let mut hashes = HashSet::new();
    let mut keys = Vec::new();
    for (index, raw) in raw.into_iter().enumerate() {
        let place = match &raw.name {
            Some(name) if is_name(name) => format!("key `{name}`"),
            _ => format!("`[[keys]]` table {}", index + 1),
        };
        let granted = granted(&raw, grants);
        let place = format!("{}: {place}", file.display());
        faults.extend(granted.into_iter().map(|fault| format!("{place}: {fault}")));
        if raw
            .name
            .as_ref()
            .is_some_and(|name| is_name(name) && !names.insert(name.clone()))
        {
            faults.push(format!("{place} stands there twice"));
        }
        // The part that finds the entry; two with the same one could not both be found.
        let id = raw.hash.as_deref().and_then(|hash| hash.get(..23));
        if id.is_some_and(|id| !hashes.insert(id.to_owned())) {
            faults.push(format!("{place} has the `hash` of another"));
        }
        match key(raw) {
            Ok(key) => keys.push(key),
            Err(fault) => faults.push(format!("{place}: {fault}")),
        }
    }
    keys
}

/// Adds what one key grants. Returns what is wrong with it.
fn granted(raw: &RawKey, grants: &mut Grants) -> Vec<String> {
    let mut faults = Vec::new();
    let mut sound = |result: Result<Grant, String>| result.map_err(|f| faults.push(f)).ok();
    let providers = raw.providers.as_ref();
    let providers = providers.map(|list| list.iter().map(String::as_str));
    let grant = match raw.egress.as_deref() {
        Some(name) => sound(
            choose(Some(name), &LEVELS)
                .map_err(|what| format!("`egress` must be {what}"))
                .and_then(|level| checked_grant(level, providers).map_err(str::to_owned)),
        ),
        None if providers.is_some() => sound(Err(
            "`providers` has no meaning without `egress = \"allowlist\"`".to_owned(),
        )),
        None => None,
    };
    let policy = raw
        .policy
        .as_deref()
        .map(|name| choose(Some(name), &policies()));
    let policy = policy.and_then(|policy| {
        let policy = policy.map_err(|what| faults.push(format!("`policy` must be {what}")));
        policy.ok()
    });
    if let Some(name) = &raw.name {
        grants.known.insert(name.clone());
        grants.keys.extend(grant.map(|grant| (name.clone(), grant)));
        grants
            .policies
            .extend(policy.map(|policy| (name.clone(), policy)));
        if raw.may_widen_policy == Some(true) {
            grants.may_widen.insert(name.clone());
        }
    }
    faults
}

fn key(raw: RawKey) -> Result<Key, String> {
    let RawKey {
        name,
        hash,
        tenant,
        requests_per_minute,
        burst,
        max_concurrent_requests,
        expires,
        egress: _,
        providers: _,
        policy: _,
        may_widen_policy: _,
        admin,
    } = raw;
    let name = name.ok_or("`name` is missing")?;
    let tenant = tenant.unwrap_or_else(|| name.clone());
    for (field, text) in [("name", &name), ("tenant", &tenant)] {
        if !is_name(text) {
            return Err(format!("`{field}` must be {NAMES}"));
        }
        // Whoever calls without a name of their own is that one.
        if *text == "anonymous" {
            return Err(format!("`{field}` must not be `anonymous`"));
        }
    }
    let hash = hash.ok_or("`hash` is missing; `sconce key new` makes keys and their hashes")?;
    let hash = hash.parse().map_err(|e| format!("`hash` {e}"))?;
    if burst.is_some() && requests_per_minute.is_none() {
        return Err("`burst` has no meaning without `requests_per_minute`".to_owned());
    }
    Ok(Key {
        name,
        hash,
        tenant: Tenant(tenant.into()),
        limits: KeyLimits {
            requests_per_minute: requests_per_minute.and_then(NonZeroU32::new),
            burst: burst.and_then(NonZeroU32::new),
            max_concurrent_requests: max_concurrent_requests.and_then(NonZeroU32::new),
        },
        expires: expires.as_ref().map(expiry).transpose()?,
        admin: admin.unwrap_or(false),
    })
}

/// What names of keys and tenants look like, for messages.
pub const NAMES: &str = "1 to 64 letters, digits, `.`, `_`, `-` or `@`, and no key";

/// Whether a text may name a key or a tenant: it stands in logs, files and messages as it is.
pub fn is_name(text: &str) -> bool {
    let sound = |b: u8| b.is_ascii_alphanumeric() || b"._-@".contains(&b);
    (1..=64).contains(&text.len()) && text.bytes().all(sound) && !text.starts_with("sk-")
}

/// A time with its offset, or a date, which means its first moment in UTC.
fn expiry(value: &Value) -> Result<DateTime<Utc>, String> {
    let text = match value {
        Value::Datetime(time) => time.to_string(),
        Value::String(text) => text.clone(),
        _ => String::new(),
    };
    let time = DateTime::parse_from_rfc3339(&text).map(|time| time.to_utc());
    let date = || {
        text.parse::<NaiveDate>()
            .map(|date| date.and_time(NaiveTime::MIN).and_utc())
    };
    time.or_else(|_| date()).map_err(|_| {
        "`expires` must be a date (2027-01-31) or a time with its offset (2027-01-31T12:00:00Z)"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::KeyHash;

    fn parse(text: &str) -> Result<Vec<Key>, String> {
        parse_keys(text, Path::new("s.toml")).map_err(|e| e.to_string())
    }

    fn hash() -> String {
        KeyHash::generate().expect("random numbers").1.to_text()
    }

    #[test]
    fn a_key_has_its_name_as_tenant_and_no_limits_unless_told() {
        let text = format!(
            "port = 1\n[[keys]]\nname = 'a'\nhash = '{}'\n[[keys]]\nname = 'b@x.org'\nhash = '{}'\n\
             tenant = 't'\nrequests_per_minute = 60\nburst = 5\nmax_concurrent_requests = 2\nexpires = 2027-01-31\n",
            hash(),
            hash()
        );
        let keys = parse(&text).expect("two sound keys");
        assert_eq!((keys[0].name.as_str(), &*keys[0].tenant.0), ("a", "a"));
        assert_eq!(
            (keys[0].limits, keys[0].expires),
            (KeyLimits::default(), None)
        );
        assert_eq!(&*keys[1].tenant.0, "t");
        assert_eq!(keys[1].limits.burst, NonZeroU32::new(5));
        let end = keys[1].expires.expect("an end").to_rfc3339();
        assert_eq!(end, "2027-01-31T00:00:00+00:00");
    }

    #[test]
    fn an_end_is_a_date_or_a_time() {
        for sound in [
            "2027-01-31T01:00:00+01:00",
            "'2027-01-31T00:00:00Z'",
            "'2027-01-31'",
        ] {
            let text = format!(
                "[[keys]]\nname = 'a'\nhash = '{}'\nexpires = {sound}\n",
                hash()
            );
            let end = parse(&text).expect(sound)[0].expires.expect("an end");
            assert_eq!(end.to_rfc3339(), "2027-01-31T00:00:00+00:00", "{sound}");
        }
        for wrong in ["2027-01-31T01:00:00", "'soon'", "01:00:00"] {
            let text = format!(
                "[[keys]]\nname = 'a'\nhash = '{}'\nexpires = {wrong}\n",
                hash()
            );
            assert!(
                parse(&text).expect_err(wrong).contains("expires"),
                "{wrong}"
            );
        }
    }

    #[test]
    fn faults_say_where_they_are_and_repeat_no_secret() {
        let (secret, hash) = KeyHash::generate().expect("random numbers");
        let hash = hash.to_text();
        let sound = format!("[[keys]]\nname = 'a'\nhash = '{hash}'\n");
        let cases = [
            (format!("{sound}{sound}"), "key `a` stands there twice"),
            (
                sound.replace("'a'", "'b'") + &sound,
                "has the `hash` of another",
            ),
            (
                sound.replace(&hash, &secret),
                "key `a`: `hash` is not `sha256:",
            ),
            (
                sound.replace("'a'", &format!("'{secret}'")),
                "table 1: `name` must be",
            ),
            (sound.replace("'a'", "'a b'"), "table 1: `name` must be"),
            (
                sound.replace("name", "nam"),
                "unknown key `nam`; did you mean `name`?",
            ),
            (
                format!("{sound}key = '{secret}'"),
                "may not stand in a file",
            ),
            (
                format!("{sound}burst = '{secret}'"),
                "`burst` must be a whole number above 0",
            ),
            (
                format!("{sound}burst = 0"),
                "`burst` must be a whole number above 0",
            ),
            (format!("{sound}burst = 1"), "`burst` has no meaning"),
            (
                "[[keys]]\nname = 'a'".to_owned(),
                "key `a`: `hash` is missing",
            ),
            (
                format!("[[keys]]\nhash = '{hash}'"),
                "table 1: `name` is missing",
            ),
            (
                format!("keys = ['{secret}']"),
                "must be written as `[[keys]]` tables",
            ),
            (
                format!("[keys]\nname = '{secret}'"),
                "must be written as `[[keys]]` tables",
            ),
        ];
        for (text, expected) in cases {
            let words = parse(&text).expect_err(&text);
            assert!(
                words.starts_with("s.toml: ") && words.contains(expected),
                "{words}"
            );
            assert!(
                !words.contains(&secret[27..]) && !words.contains(&hash[24..]),
                "{words}"
            );
        }
    }

    #[test]
    fn every_field_is_known_to_the_check() {
        let all = RawKey {
            name: Some(String::new()),
            hash: Some(String::new()),
            tenant: Some(String::new()),
            requests_per_minute: Some(1),
            burst: Some(1),
            max_concurrent_requests: Some(1),
            expires: Some(Value::String(String::new())),
            egress: Some(String::new()),
            providers: Some(Vec::new()),
            policy: Some(String::new()),
            may_widen_policy: Some(true),
            admin: Some(true),
        };
        let table = Table::try_from(all).expect("a table");
        assert_eq!(table.keys().len(), FIELDS.len());
        assert!(table.keys().all(|name| FIELDS.contains(&name.as_str())));
    }
}
