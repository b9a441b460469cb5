//! The tables about upstreams: what they come to, what is refused, and that no secret is ever repeated.

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use toml::Value;

use crate::config::raw::RawConfig;
use crate::config::{ConfigError, Machine, ModelSource, Settings, describe, read_callers};
use crate::egress::Level;
use crate::generation::{Policy, Reason};
use crate::remote::{self, Billing, Class, Price, ProviderChoice};
use crate::route::{self, Then};

const MACHINE: Machine = Machine {
    cpus: NonZeroUsize::new(2).expect("not zero"),
    available_memory_bytes: 1 << 30,
};

/// Settings from a file's text, with these variables set.
fn with(text: &str, variables: &[(&str, &str)]) -> Result<Settings, ConfigError> {
    let raw = RawConfig::default().over(text, Path::new("s.toml"))?;
    let raw = RawConfig {
        keys_file: Some("s.toml".into()),
        ..raw
    };
    let raw = raw.with_variables(|name| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    });
    Settings::resolve(raw, &MACHINE)
}

const VARIABLES: [(&str, &str); 3] = [
    ("HF_TOKEN", "hf_aaaaaaaaaaaaaaaaaaaaaaaa"),
    ("HF_CONTROL_TOKEN", "control"),
    ("HOME", "/home/me"),
];

fn sound(text: &str) -> Settings {
    with(text, &VARIABLES).unwrap_or_else(|faults| panic!("{faults}\nin {text}"))
}

/// The one sentence that is said about a file.
#[track_caller]
fn fault(text: &str) -> String {
    let faults = with(text, &VARIABLES).expect_err(text);
    assert_eq!(faults.0.len(), 1, "{faults}");
    faults.to_string()
}

/// A file with an upstream and a target, in which one part is replaced.
fn file(from: &str, to: &str) -> String {
    let text = r#"
[[remote.upstream]]
name = "hf"
kind = "hf_router"
token_env = "HF_TOKEN"
max_usd_per_day = 1.5
[[remote.upstream]]
name = "near"
kind = "openai_compat"
base_url = "http://127.0.0.1:8000"
[[remote.target]]
name = "big"
upstream = "hf"
model = "org/model"
provider = "together"
price = { input = 0.1, output = 0.4 }
[[remote.target]]
name = "near"
upstream = "near"
model = "m"
[[route.model]]
name = "default"
targets = ["near", { target = "big", on = ["queue_overflow", "rate_limited"] }]
[[route.rule]]
name = "private"
when = { key = ["anonymous"] }
then = "target:near"
[egress]
anonymous = "any"
[[egress.rule]]
name = "word"
pattern = "secret"
action = "block"
"#;
    assert!(from.is_empty() || text.contains(from), "{from}");
    text.replacen(from, to, usize::from(!from.is_empty()))
}

fn remote(settings: &Settings) -> &remote::Config {
    settings.remote.as_ref().expect("an upstream")
}

#[test]
fn without_an_upstream_nothing_is_remote() {
    let settings = with("", &[]).expect("an empty file");
    assert!(settings.remote.is_none() && settings.audit.is_none());
    assert_eq!(settings.egress.anonymous.level, Level::Deny);
    assert!(settings.route.models[""].local && settings.route.models[""].hops.is_empty());
    assert!(settings.warnings.is_empty() && describe(&settings).is_empty());
}

#[test]
fn a_file_becomes_what_every_floor_needs() {
    let settings = sound(&file("", ""));
    assert_eq!(settings.warnings, Vec::<String>::new());
    let config = remote(&settings);
    let (hf, near) = (&config.upstreams[0], &config.upstreams[1]);
    assert_eq!(hf.base_url, "https://router.huggingface.co");
    assert_eq!((hf.billing, near.billing), (Billing::Tokens, Billing::Own));
    assert_eq!(hf.max_nusd_per_day, Some(1_500_000_000));
    assert_eq!(settings.egress.daily_nusd["hf"], Some(1_500_000_000));
    let token = hf.token.as_ref().expect("it is set");
    assert_eq!(token.expose(), VARIABLES[0].1);
    assert!(!format!("{settings:?}").contains(VARIABLES[0].1));
    let (big, near) = (&config.targets[0], &config.targets[1]);
    assert_eq!(big.provider, ProviderChoice::Pinned("together".into()));
    let price = big.price.expect("a price");
    assert_eq!((price.input_pusd, price.output_pusd), (100_000, 400_000));
    assert_eq!(near.price, Some(Price::FREE), "the machine is one's own");
    let default = &settings.route.models[""];
    assert!(default.local);
    let targets: Vec<&str> = default.hops.iter().map(|hop| &*hop.target).collect();
    assert_eq!(targets, ["near", "big"]);
    assert!(default.hops[1].on.contains("rate_limited"));
    assert_eq!(settings.route.rules[0].then, Then::Target("near".into()));
    assert_eq!(settings.egress.anonymous.level, Level::Any);
    let state = Path::new("/home/me/.local/state/sconce");
    assert_eq!(config.state_dir.as_deref(), Some(state));
    let audit = settings.audit.as_ref().expect("upstreams are audited");
    assert_eq!(audit.path, state.join("audit.jsonl"));
    assert_eq!((audit.max_bytes, audit.keep), (64 << 20, 10));
    assert!(audit.sync);
    let lines = describe(&settings);
    let line = |name: &str| &lines.iter().find(|(known, _)| known == name).expect(name).1;
    assert!(line("upstream hf").contains("at most 1.5 USD a day"));
    assert!(line("target big").contains("0.1 USD in and 0.4 USD out"));
    assert_eq!(
        line("model default"),
        "this machine, then near, then big (on queue_overflow, rate_limited)"
    );
    assert!(lines.iter().all(|(_, words)| !words.contains("aaaa")));
}

/// The blocks of TOML in the document of these settings.
fn documented() -> Vec<String> {
    let text = include_str!("../../../docs/hybrid-settings.md");
    let blocks = text.split("```toml\n").skip(1);
    let block = |rest: &str| rest.split("```").next().unwrap_or_default().to_owned();
    blocks.map(block).collect()
}

#[test]
fn the_documented_defaults_are_those_of_the_floors() {
    let [defaults, several] = &documented()[..] else {
        panic!("two blocks");
    };
    let upstream = "[[remote.upstream]]\nname = 'x'\nkind = 'tgi'\nbase_url = 'http://[::1]'\n";
    let settings = sound(&format!("{defaults}\n{upstream}"));
    let config = remote(&settings);
    let expected = remote::Config {
        upstreams: config.upstreams.clone(),
        state_dir: config.state_dir.clone(),
        ..remote::Config::default()
    };
    assert_eq!(*config, expected);
    let default = route::Config {
        models: settings.route.models.clone(),
        ..route::Config::default()
    };
    assert_eq!(format!("{:?}", settings.route), format!("{default:?}"));
    assert_eq!(sound(several).warnings, Vec::<String>::new());
}

/// Removes a field of the documented tables and puts a near name there: it must be known by its own.
#[test]
fn every_documented_field_is_read() {
    for text in documented() {
        for (index, line) in text.lines().enumerate() {
            let Some((field, rest)) = line.split_once(" = ") else {
                continue;
            };
            if line.starts_with('#') {
                continue;
            }
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines[index] = format!("{field}x = {rest}");
            let faults = with(&lines.join("\n"), &VARIABLES).expect_err(line);
            let expected = format!("unknown key `{field}x`; did you mean `{field}`?");
            assert!(faults.to_string().contains(&expected), "{faults}");
        }
    }
}

#[test]
fn every_file_in_the_folder_of_settings_is_sound() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut files = 0;
    for entry in std::fs::read_dir(folder).expect("the folder") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("a text");
        let settings = with(&text, &[("HOME", "/home/me")]);
        let settings = settings.unwrap_or_else(|faults| panic!("{}: {faults}", path.display()));
        assert_eq!(settings.address.port(), 3000, "{}", path.display());
        files += 1;
    }
    assert!(files >= 2);
}

#[test]
fn the_beginners_file_takes_a_token_and_some_money() {
    let text = include_str!("../../../config/hybrid.toml");
    assert_eq!(text.matches("EDIT ").count(), 2);
    let bare = with(text, &[("HOME", "/home/me")]).expect("sound");
    assert_eq!(bare.warnings.len(), 2, "{:?}", bare.warnings);
    assert!(bare.warnings[0].contains("HF_TOKEN is not set"));
    assert!(bare.warnings[1].contains("set `max_usd_per_day`"));
    let edited = sound(&text.replace("max_usd_per_day = 0.00", "max_usd_per_day = 0.50"));
    assert_eq!(edited.warnings, Vec::<String>::new());
    assert_eq!(
        remote(&edited).upstreams[0].max_nusd_per_day,
        Some(500_000_000)
    );
    assert_eq!(remote(&edited).upstreams[0].disabled, None);
}

#[test]
fn each_fault_names_its_place_and_what_mends_it() {
    let cases = [
        (
            "kind = \"hf_router\"",
            "kind = \"hf_ruter\"",
            "`kind` must be one of",
            "did you mean \"hf_router\"",
        ),
        (
            "kind = \"openai_compat\"\n",
            "",
            "upstream `near`: `kind` is missing",
            "\"tgi\"",
        ),
        (
            "base_url = \"http://127.0.0.1:8000\"",
            "",
            "upstream `near`: `base_url` is missing",
            "",
        ),
        (
            "http://127.0.0.1:8000",
            "http://example.org",
            "must begin with `https://`",
            "allow_plaintext",
        ),
        (
            "http://127.0.0.1:8000",
            "ftp://example.org",
            "must begin with `https://`",
            "",
        ),
        (
            "http://127.0.0.1:8000",
            "https://10.0.0.1",
            "private address",
            "allow_private",
        ),
        (
            "http://127.0.0.1:8000",
            "https://example.org/?x=1",
            "must not have a query",
            "",
        ),
        (
            "http://127.0.0.1:8000",
            "https://example.org/#x",
            "fragment",
            "",
        ),
        (
            "http://127.0.0.1:8000",
            "example.org",
            "is no address",
            "https://host",
        ),
        (
            "token_env = \"HF_TOKEN\"",
            "",
            "`token_env` is missing",
            "\"HF_TOKEN\"",
        ),
        (
            "\"HF_TOKEN\"",
            "\"hunter2\"",
            "must be the name of a variable",
            "capitals",
        ),
        (
            "token_env = \"HF_TOKEN\"",
            "token_env = \"HF_TOKEN\"\ntoken = \"hunter2\"",
            "`token`: a secret itself may not",
            "token_env",
        ),
        (
            "[[remote.target]]\nname = \"big\"",
            "[[remote.upstream]]\nname = \"hf\"\nkind = \"tgi\"\nbase_url = \"http://[::1]\"\n[[remote.target]]\nname = \"big\"",
            "upstream `hf` stands there twice",
            "another `name`",
        ),
        (
            "max_usd_per_day = 1.5",
            "max_usd_per_day = -1",
            "`max_usd_per_day` must be US dollars from 0",
            "",
        ),
        (
            "max_usd_per_day = 1.5",
            "max_usd_per_day = nan",
            "`max_usd_per_day` must be US dollars from 0",
            "",
        ),
        (
            "input = 0.1",
            "input = 10001",
            "target `big`: `price`: `input` must be US dollars from 0 to 10000",
            "",
        ),
        (
            "input = 0.1",
            "input = -0.1",
            "`input` must be US dollars from 0 to 10000",
            "",
        ),
        (
            "input = 0.1",
            "input = inf",
            "`input` must be US dollars from 0 to 10000",
            "",
        ),
        (
            "input = 0.1",
            "input = 0.0000001",
            "with 6 decimals at most",
            "",
        ),
        ("input = 0.1, ", "", "`input` is missing", "million tokens"),
        (
            "output = 0.4",
            "output = 0.4, cached = 0.2",
            "`cached` must be <= `input`",
            "",
        ),
        (
            "provider = \"together\"",
            "provider = \"auto:best\"",
            "auto:cheapest",
            "",
        ),
        (
            "model = \"m\"",
            "model = \"m\"\nprovider = \"x\"",
            "give it in the upstream",
            "",
        ),
        (
            "org/model",
            "org/model:together",
            "give it as `provider`",
            "",
        ),
        ("org/model", "https://example.org", "no address", ""),
        (
            "rate_limited",
            "rate_limit",
            "`targets` 2: `on`",
            "did you mean \"rate_limited\"",
        ),
        (
            "\"near\", {",
            "\"nea\", {",
            "`targets` names no target",
            "did you mean \"near\"",
        ),
        (
            "\"near\", {",
            "\"near\", \"near\", {",
            "names `near` twice",
            "",
        ),
        (
            "target:near",
            "target:bigg",
            "`then` names no target",
            "did you mean \"big\"",
        ),
        ("target:near", "remotely", "\"local\", \"remote\" or", ""),
        (
            "name = \"private\"",
            "",
            "`[[route.rule]]` table 1: `name` is missing",
            "",
        ),
        (
            "key = [",
            "kee = [",
            "unknown key `kee`",
            "did you mean `key`",
        ),
        (
            "key = [\"anonymous\"]",
            "pattern = \"(hunter2\"",
            "route rule `private`: `when`: `pattern` is not a regular",
            "unclosed group",
        ),
        (
            "key = [\"anonymous\"]",
            "headers = { x = 'hunter2[' }",
            "`x` is not a regular",
            "unclosed",
        ),
        (
            "key = [\"anonymous\"]",
            "route = [\"hunter2\"]",
            "`route` must list paths",
            "",
        ),
        (
            "pattern = \"secret\"",
            "pattern = \"(?:hunter2){999999}\"",
            "egress rule `word`: `pattern` takes more",
            "",
        ),
        (
            "pattern = \"secret\"",
            "pattern = \"\"",
            "`pattern` must be a text that is not empty",
            "",
        ),
        (
            "action = \"block\"",
            "action = \"blok\"",
            "did you mean \"block\"",
            "",
        ),
        (
            "anonymous = \"any\"",
            "anonymous = \"al\"",
            "`[egress]`: `anonymous` must be one of",
            "",
        ),
        (
            "anonymous = \"any\"",
            "anonymous = \"allowlist\"",
            "lists no providers",
            "providers = [",
        ),
        (
            "anonymous = \"any\"",
            "anonymous = { level = \"any\", providers = [\"x\"] }",
            "has no meaning without",
            "",
        ),
        (
            "anonymous = \"any\"",
            "anonymus = \"any\"",
            "unknown key `anonymus`",
            "did you mean `anonymous`",
        ),
        (
            "[egress]",
            "[remote.clocks]\nfirst_token_min_seconds = 61\n[egress]",
            "`first_token_min_seconds` must be <= `first_token_max_seconds`",
            "",
        ),
        (
            "[egress]",
            "[remote.retry]\nbackoff_base_ms = 0\n[egress]",
            "`[remote.retry]`: `backoff_base_ms` must be a number above 0",
            "",
        ),
        (
            "[egress]",
            "[providers.x]\nregoin = \"us\"\n[egress]",
            "`[providers.x]`: unknown key `regoin`",
            "`region`",
        ),
        (
            "[egress]",
            "[audit]\nkeep = 0\n[egress]",
            "`[audit]`: `keep` must be a whole number from 1",
            "",
        ),
        (
            "name = \"default\"",
            "name = \"tgi\"",
            "always means the default model",
            "\"default\"",
        ),
    ];
    for (from, to, expected, fix) in cases {
        let words = fault(&file(from, to));
        assert!(
            words.contains(expected) && words.contains(fix),
            "{to}: {words}"
        );
        assert!(
            words.starts_with("s.toml: ") && !words.contains("hunter2"),
            "{words}"
        );
    }
}

#[test]
fn an_unknown_upstream_is_refused_with_the_nearest() {
    let words = with(
        &file("upstream = \"near\"", "upstream = \"nea\""),
        &VARIABLES,
    );
    let words = words.expect_err("a typo").to_string();
    assert!(words.contains("target `near`: `upstream` names no upstream; did you mean \"near\"?"));
    assert!(
        fault("[[remote.target]]\nname = 't'\nupstream = 'x'\nmodel = 'm'")
            .contains("no sound `[[remote.upstream]]`")
    );
}

#[test]
fn all_faults_of_all_tables_are_reported_at_once() {
    let text = "remote = 3\nroute = 3\negress = 3\nproviders = 3\naudit = 3\nmax_best_of = 0";
    let faults = with(text, &[]).expect_err("six faults");
    assert_eq!(faults.0.len(), 6, "{faults}");
}

#[test]
fn a_token_that_is_missing_disables_its_upstream_and_one_that_is_none_is_refused() {
    let settings = with(&file("", ""), &[("HOME", "/home/me")]).expect("it starts");
    let hf = &remote(&settings).upstreams[0];
    assert_eq!(hf.disabled.as_deref(), Some("HF_TOKEN is not set"));
    assert_eq!(settings.warnings.len(), 1, "{:?}", settings.warnings);
    assert!(settings.warnings[0].contains("upstream `hf`: HF_TOKEN is not set"));
    let variables = [("HF_TOKEN", "two words\n"), ("HOME", "/home/me")];
    let words = with(&file("", ""), &variables).expect_err("no token");
    assert!(
        words
            .to_string()
            .contains("the token in HF_TOKEN cannot stand in a header")
    );
    assert!(!words.to_string().contains("two words"));
}

#[test]
fn what_can_never_be_used_is_said_with_the_setting_to_change() {
    for (from, to, expected) in [
        (
            "max_usd_per_day = 1.5",
            "",
            "target `big`: it costs money, and upstream `hf` may spend none",
        ),
        (
            "price = {",
            "max_usd_per_request = 0\nprice = {",
            "`max_usd_per_request` is 0",
        ),
        (
            "http://127.0.0.1:8000\"",
            "https://example.org\"",
            "target `near`: its price is not known",
        ),
        ("anonymous = \"any\"", "", "nobody's text may leave"),
        (
            "\"near\", { target = \"big\", on = [\"queue_overflow\", \"rate_limited\"] }",
            "\"near\"",
            "target `big` is never used",
        ),
        (
            "key = [\"anonymous\"]",
            "key = [\"alice\"]",
            "names a key under `when`",
        ),
    ] {
        let settings = sound(&file(from, to));
        assert_eq!(settings.warnings.len(), 1, "{:?}", settings.warnings);
        assert!(
            settings.warnings[0].contains(expected),
            "{:?}",
            settings.warnings
        );
    }
    let free = fault(&file("input = 0.1, output = 0.4", "input = 0, output = 0"));
    assert!(free.contains("target `big`: a `price` of 0"), "{free}");
}

#[test]
fn addresses_are_cut_to_what_paths_are_added_to() {
    for (written, expected) in [
        ("https://example.org/v1", "https://example.org"),
        ("https://example.org/v1/", "https://example.org"),
        (
            "https://example.org/prefix/v1/",
            "https://example.org/prefix",
        ),
        ("https://example.org:8443//", "https://example.org:8443"),
        ("http://localhost:8000/v1", "http://localhost:8000"),
    ] {
        let text = file(
            "http://127.0.0.1:8000\"",
            &format!("{written}\"\nbilling = \"own\""),
        );
        assert_eq!(remote(&sound(&text)).upstreams[1].base_url, expected);
    }
}

#[test]
fn names_and_providers_follow_from_the_target() {
    let unnamed = file("name = \"big\"\n", "")
        .replace("target = \"big\"", "target = \"hf/org/model:together\"");
    assert_eq!(
        &*remote(&sound(&unnamed)).targets[0].name,
        "hf/org/model:together"
    );
    for (written, expected) in [
        (
            "provider = \"fastest\"",
            ProviderChoice::Policy("fastest".into()),
        ),
        (
            "provider = \"auto:fastest\"",
            ProviderChoice::Auto("fastest".into()),
        ),
        (
            "provider = \"some-new-one\"",
            ProviderChoice::Pinned("some-new-one".into()),
        ),
        ("", ProviderChoice::Auto("cheapest".into())),
    ] {
        let settings = sound(&file("provider = \"together\"", written));
        assert_eq!(remote(&settings).targets[0].provider, expected);
        assert_eq!(
            remote(&settings).targets[1].provider,
            ProviderChoice::Whoever
        );
    }
}

#[test]
fn no_model_takes_an_upstream() {
    assert!(fault("model_id = 'none'").contains("configure an upstream"));
    let settings = sound(&format!("model_id = 'none'\n{}", file("", "")));
    assert_eq!(settings.model, ModelSource::None);
    assert!(!settings.route.models[""].local);
    let local = file("name = \"default\"", "name = \"default\"\nlocal = true");
    assert!(fault(&format!("model_id = 'none'\n{local}")).contains("`local` must be false"));
}

#[test]
fn offline_is_a_setting_and_a_variable_of_others() {
    let offline = |text: &str, value: &str| {
        let variables = [
            ("HF_HUB_OFFLINE", value),
            ("HOME", "/home/me"),
            ("HF_TOKEN", "t"),
        ];
        let settings = with(&format!("{text}\n{}", file("", "")), &variables).expect("sound");
        assert_eq!(settings.egress.offline, !settings.warnings.is_empty());
        settings.egress.offline
    };
    assert!(!offline("", "") && !offline("", "0") && !offline("offline = false", "no"));
    assert!(
        offline("offline = true", "") && offline("offline = false", "1") && offline("", "True")
    );
}

#[test]
fn state_needs_a_place() {
    let words = with(&file("", ""), &[("HF_TOKEN", "t")])
        .expect_err("no home")
        .to_string();
    assert!(words.contains("`[audit]`: `path` is missing") && words.contains("state_dir"));
    let variables = [
        ("HF_TOKEN", "t"),
        ("XDG_STATE_HOME", "/state"),
        ("HOME", "/home/me"),
    ];
    let settings = with(&file("", ""), &variables).expect("sound");
    assert_eq!(
        remote(&settings).state_dir.as_deref(),
        Some(Path::new("/state/sconce"))
    );
    let named = sound(&file(
        "[egress]",
        "[remote]\nstate_dir = 'here'\n[audit]\npath = 'there'\n[egress]",
    ));
    assert_eq!(remote(&named).state_dir.as_deref(), Some(Path::new("here")));
    assert_eq!(named.audit.expect("audit").path, Path::new("there"));
}

#[test]
fn keys_grant_and_are_read_again() {
    let (_, hash) = crate::api::KeyHash::generate().expect("random numbers");
    let key = format!("[[keys]]\nname = 'a'\nhash = '{}'\n", hash.to_text());
    let text = format!(
        "{key}egress = 'allowlist'\nproviders = ['together']\npolicy = 'cheapest'\nmay_widen_policy = true\n[egress]\ndefault = 'dedicated'\n"
    );
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("s.toml");
    std::fs::write(&path, &text).expect("a writable folder");
    let (keys, grants) = read_callers(&path).expect("sound");
    assert_eq!(keys.len(), 1);
    assert!(grants.known.contains("a"));
    assert_eq!(grants.keys["a"].level, Level::Allowlist);
    assert!(grants.keys["a"].providers.contains("together"));
    assert_eq!(grants.policies["a"], Policy::Cheapest);
    assert!(grants.may_widen.contains("a"));
    assert_eq!(
        (grants.default.level, grants.anonymous.level),
        (Level::Dedicated, Level::Deny)
    );
    let settings = sound(&text);
    assert_eq!(settings.egress.keys, grants.keys);
    assert_eq!(settings.egress.known, grants.known);
    let policies = &settings.route.policies;
    assert_eq!(policies.policy_of(Some("a")), Some(Policy::Cheapest));
    assert!(policies.may_widen(Some("a")));
    for (line, expected) in [
        ("egress = 'alowlist'", "key `a`: `egress` must be one of"),
        ("egress = 'allowlist'", "`providers` is missing or empty"),
        ("egress = 'any'\nproviders = ['x']", "has no meaning"),
        ("providers = ['x']", "has no meaning without `egress"),
        ("providers = 'x'", "`providers` must be a list of texts"),
        ("policy = 'cheap'", "did you mean \"cheapest\""),
        (
            "may_widen_policy = 1",
            "`may_widen_policy` must be true or false",
        ),
    ] {
        assert!(fault(&format!("{key}{line}")).contains(expected), "{line}");
        std::fs::write(&path, format!("{key}{line}")).expect("a writable folder");
        assert!(read_callers(&path).is_err(), "{line}");
    }
}

#[test]
fn every_reason_and_class_may_stand_in_a_chain() {
    let about = String::new;
    let all = [
        Reason::LocalOk,
        Reason::PolicyLocal,
        Reason::PolicyRemote,
        Reason::RuleLocal(about()),
        Reason::RuleRemote(about()),
        Reason::EgressDenied(about()),
        Reason::UnsupportedLocal(about()),
        Reason::ContextOverflow,
        Reason::QueueOverflow,
        Reason::KvOverflow,
        Reason::Deadline,
        Reason::HardPre,
        Reason::HardProbe,
        Reason::HardPost,
        Reason::BudgetExhausted,
        Reason::PriceUnknown,
        Reason::NotEligible(about()),
        Reason::Sticky,
        Reason::LocalFailure,
        Reason::RemoteUnavailable,
    ];
    let words = all
        .iter()
        .map(Reason::code)
        .chain(Class::ALL.map(Class::name));
    for word in words {
        let settings = sound(&file("queue_overflow", word));
        assert!(
            settings.route.models[""].hops[1].on.contains(word),
            "{word}"
        );
    }
    let group = sound(&file("queue_overflow", "overflow"));
    assert!(group.route.models[""].hops[1].on.contains("kv_overflow"));
}

#[test]
fn secrets_in_the_file_refuse_it_wherever_they_stand() {
    let secret = "hf_abcdefghijABCDEFGHIJ0123";
    for line in [
        format!("# {secret}"),
        format!("model_id = '{secret}'"),
        format!("'{secret}' = 1"),
        format!("[remote]\n'{secret}' = 1"),
        format!("[remote]\nfidelity = '{secret}'"),
        "[remote]\nx = 'https://me:hunter2@host'".to_owned(),
    ] {
        let words = with(&line, &[]).expect_err(&line).to_string();
        assert!(words.contains("may not stand in a file"), "{words}");
        assert!(
            !words.contains("abcdefghij") && !words.contains("hunter2"),
            "{words}"
        );
    }
}

#[test]
fn times_have_the_unit_of_their_name() {
    let text = "[remote.retry]\nbackoff_base_ms = 0.5\n[remote.clocks]\nconnect_seconds = 1.5\n[route]\nsticky_minutes = 0\nslo_ttft_ms = 1\n";
    let settings = sound(&file("[egress]", &format!("{text}[egress]")));
    let config = remote(&settings);
    assert_eq!(config.retry.backoff_base, Duration::from_micros(500));
    assert_eq!(config.clocks.connect, Duration::from_millis(1500));
    assert_eq!(settings.route.sticky, Duration::ZERO);
    assert_eq!(settings.route.slo_ttft, Duration::from_millis(1));
}

/// What no message may repeat: the shape of a token, and a word that has none.
const CANARIES: [&str; 2] = ["hf_canaryCANARYcanaryCANARY", "my canary phrase"];

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(Value::Integer),
        any::<f64>().prop_map(Value::Float),
        any::<bool>().prop_map(Value::Boolean),
        proptest::sample::select(&CANARIES[..]).prop_map(|text| Value::String(text.to_owned())),
        "[ -~]{0,12}".prop_map(Value::String),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        let field = prop_oneof![
            proptest::sample::select(&CANARIES[..]).prop_map(str::to_owned),
            proptest::sample::select(&["name", "level", "target", "on", "token_env", "model"][..])
                .prop_map(str::to_owned),
        ];
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
            proptest::collection::vec((field, inner), 0..3)
                .prop_map(|fields| Value::Table(fields.into_iter().collect())),
        ]
    })
}

/// Every place of a value, by the steps that lead there.
fn places(value: &Value, path: &mut Vec<usize>, all: &mut Vec<Vec<usize>>) {
    let within: Vec<&Value> = match value {
        Value::Table(table) => table.values().collect(),
        Value::Array(values) => values.iter().collect(),
        _ => Vec::new(),
    };
    for (index, value) in within.into_iter().enumerate() {
        path.push(index);
        all.push(path.clone());
        places(value, path, all);
        path.pop();
    }
}

fn put(value: &mut Value, path: &[usize], new: Value) {
    let Some((step, rest)) = path.split_first() else {
        *value = new;
        return;
    };
    let within = match value {
        Value::Table(table) => table.iter_mut().nth(*step).map(|(_, value)| value),
        Value::Array(values) => values.get_mut(*step),
        _ => None,
    };
    if let Some(value) = within {
        put(value, rest, new);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_value_panics_and_none_is_repeated(
        block in 0usize..2,
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any_value()), 1..4),
    ) {
        let mut file: Value = documented()[block].parse::<toml::Table>().map(Value::Table).expect("sound");
        let mut all = Vec::new();
        places(&file, &mut Vec::new(), &mut all);
        for (index, value) in changes {
            put(&mut file, &all[index.index(all.len())], value);
        }
        let text = toml::to_string(&file).expect("it was a file");
        let said = match with(&text, &VARIABLES) {
            Err(faults) => faults.to_string(),
            Ok(settings) => settings.warnings.join("\n"),
        };
        for canary in CANARIES {
            prop_assert!(!said.contains(canary), "{}", said);
        }
    }
}
