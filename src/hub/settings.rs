//! Where the hub is, where its files are kept, and who asks: read from the variables that Hugging Face's own tools read.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use url::{Host, Url};

use super::HubError;
use crate::telemetry::Secret;

/// How the hub is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubSettings {
    /// Its address, as it was given; a secret because people put passwords into addresses.
    pub endpoint: Secret,
    /// The folder that is shared with `huggingface_hub`; `None` when no variable says where.
    pub cache: Option<PathBuf>,
    /// What is shown to the hub, and to nobody else.
    pub token: Option<Secret>,
    /// Nothing may be downloaded.
    pub offline: bool,
    /// Files in Xet storage are fetched from there.
    pub xet_storage: bool,
    /// How long the hub may be silent before a request counts as lost.
    pub patience: Duration,
}

const ENDPOINT: &str = "https://huggingface.co";
const PATIENCE: Duration = Duration::from_secs(30);
const LONGEST_PATIENCE: Duration = Duration::from_secs(3600);

impl HubSettings {
    /// Every variable that is read.
    pub const VARIABLES: [&str; 13] = [
        "HF_ENDPOINT",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_HOME",
        "XDG_CACHE_HOME",
        "HOME",
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HF_TOKEN_PATH",
        "HF_HUB_DISABLE_IMPLICIT_TOKEN",
        "HF_HUB_DISABLE_XET",
        "HF_HUB_DOWNLOAD_TIMEOUT",
        "HF_HUB_OFFLINE",
    ];

    /// Reads what variables say; `cache` and `offline` are what flags say beside them.
    ///
    /// Cache: the flag, `HF_HUB_CACHE`, `HUGGINGFACE_HUB_CACHE`, `hub` in `HF_HOME`, `huggingface/hub` in
    /// `XDG_CACHE_HOME`, `.cache/huggingface/hub` in `HOME`. Token: `HF_TOKEN`, `HUGGING_FACE_HUB_TOKEN`, or the file
    /// that `hf auth login` writes (`HF_TOKEN_PATH`, or `token` in `HF_HOME`). Empty variables count as not set; `~/`
    /// before a folder stands for `HOME`.
    pub fn from_variables(
        variable: impl Fn(&str) -> Option<String>,
        cache: Option<PathBuf>,
        offline: bool,
    ) -> Self {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let folder = |name: &str| {
            let text = variable(name)?;
            match (text.strip_prefix("~/"), variable("HOME")) {
                (Some(rest), Some(home)) => Some(PathBuf::from(home).join(rest)),
                _ => Some(PathBuf::from(text)),
            }
        };
        let home = folder("HF_HOME")
            .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
            .or_else(|| folder("HOME").map(|home| home.join(".cache/huggingface")));
        let cache = cache
            .or_else(|| folder("HF_HUB_CACHE"))
            .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| home.as_ref().map(|home| home.join("hub")));
        let token = if is_yes(variable("HF_HUB_DISABLE_IMPLICIT_TOKEN")) {
            None
        } else {
            variable("HF_TOKEN")
                .or_else(|| variable("HUGGING_FACE_HUB_TOKEN"))
                .or_else(|| token_file(&folder("HF_TOKEN_PATH")?))
                .or_else(|| token_file(&home?.join("token")))
        };
        let token = token.map(|text| text.trim().to_owned());
        let timeout = variable("HF_HUB_DOWNLOAD_TIMEOUT").and_then(|text| text.parse().ok());
        Self {
            endpoint: Secret::new(variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned())),
            cache,
            token: token.map(Secret::new),
            offline: offline || is_yes(variable("HF_HUB_OFFLINE")),
            xet_storage: !is_yes(variable("HF_HUB_DISABLE_XET")),
            patience: timeout.map_or(PATIENCE, |seconds: u64| {
                Duration::from_secs(seconds.max(1)).min(LONGEST_PATIENCE)
            }),
        }
    }

    /// The hub's address as it is asked: without a slash at the end, and without what may not stand in it.
    ///
    /// Errors: an address that is none, or one to which a token would travel for all to read.
    pub(super) fn address(&self) -> Result<(Url, String), HubError> {
        address(self.endpoint.expose(), self.token.is_some())
    }
}

/// As Hugging Face's tools read a switch.
fn is_yes(value: Option<String>) -> bool {
    value.is_some_and(|value| {
        let yes = ["1", "on", "yes", "true"];
        yes.iter().any(|yes| value.eq_ignore_ascii_case(yes))
    })
}

fn token_file(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn address(text: &str, with_token: bool) -> Result<(Url, String), HubError> {
    let refuse = |endpoint: String, problem| Err(HubError::Endpoint { endpoint, problem });
    let Ok(mut url) = Url::parse(text) else {
        return refuse(
            "…".to_owned(),
            "it is no address such as https://huggingface.co",
        );
    };
    let given_away = !url.username().is_empty() || url.password().is_some();
    // Whatever stood there is not repeated.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    let plain = url.as_str().trim_end_matches('/').to_owned();
    if given_away {
        return refuse(
            plain,
            "a name or a password may not stand in it; set HF_TOKEN",
        );
    }
    let loopback = match url.host() {
        Some(Host::Ipv4(ip)) => IpAddr::from(ip).is_loopback(),
        Some(Host::Ipv6(ip)) => IpAddr::from(ip).is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => return refuse(plain, "it names no host"),
    };
    match url.scheme() {
        "https" => Ok((url, plain)),
        "http" if loopback || !with_token => Ok((url, plain)),
        "http" => refuse(
            plain,
            "over plain http everybody on the way could read the token; use https, or go without a token (HF_HUB_DISABLE_IMPLICIT_TOKEN=1)",
        ),
        _ => refuse(plain, "it begins with neither https:// nor http://"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> HubSettings {
        let find = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        HubSettings::from_variables(find, None, false)
    }

    #[test]
    fn the_cache_is_where_huggingface_hub_has_it() {
        let cache = |variables: &[(&str, &str)]| with(variables).cache;
        let all = [
            ("HF_HUB_CACHE", "/a"),
            ("HUGGINGFACE_HUB_CACHE", "/b"),
            ("HF_HOME", "/c"),
            ("XDG_CACHE_HOME", "/d"),
            ("HOME", "/e"),
        ];
        let expected = [
            "/a",
            "/b",
            "/c/hub",
            "/d/huggingface/hub",
            "/e/.cache/huggingface/hub",
        ];
        for (from, expected) in expected.iter().enumerate() {
            assert_eq!(cache(&all[from..]), Some(PathBuf::from(expected)));
        }
        assert_eq!(cache(&[("HOME", "")]), None);
        let tilde = [("HF_HOME", "~/models"), ("HOME", "/e")];
        assert_eq!(cache(&tilde), Some(PathBuf::from("/e/models/hub")));
    }

    #[test]
    fn the_token_comes_from_the_environment_or_the_file_of_a_login() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("token"), "hf_file\n").expect("a file");
        let home = folder.path().to_str().expect("a path");
        let token = |variables: &[(&str, &str)]| {
            let settings = with(variables);
            assert!(!format!("{settings:?}").contains("hf_"));
            settings.token.map(|token| token.expose().to_owned())
        };
        let file = ("HF_HOME", home);
        assert_eq!(token(&[file]).as_deref(), Some("hf_file"));
        assert_eq!(
            token(&[file, ("HF_TOKEN", "hf_one")]).as_deref(),
            Some("hf_one")
        );
        assert_eq!(token(&[file, ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        assert_eq!(
            token(&[("HUGGING_FACE_HUB_TOKEN", "hf_old")]).as_deref(),
            Some("hf_old")
        );
        assert_eq!(token(&[]), None);
    }

    #[test]
    fn a_token_never_travels_in_the_clear_and_addresses_hold_no_secrets() {
        let token = ("HF_TOKEN", "hf_secret");
        let endpoint = |text| with(&[("HF_ENDPOINT", text), token]).address();
        let sound = |text| endpoint(text).expect(text).1;
        assert_eq!(sound("http://127.0.0.1:1/"), "http://127.0.0.1:1");
        assert_eq!(sound("https://hub/mirror/"), "https://hub/mirror");
        assert!(with(&[("HF_ENDPOINT", "http://hub")]).address().is_ok());
        for wrong in [
            "http://hub",
            "ftp://hub",
            "hub",
            "https://me:hf_secret@hub",
            "file:///x",
        ] {
            let error = endpoint(wrong).expect_err(wrong).to_string();
            assert!(
                error.starts_with("HF_ENDPOINT `") && !error.contains("hf_secret"),
                "{error}"
            );
            let settings = with(&[("HF_ENDPOINT", wrong), token]);
            assert!(!format!("{settings:?}").contains("hf_secret"));
        }
    }
}
