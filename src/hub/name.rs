//! The name of a model at the hub: `org/name`, `name`, or either with `:tag` for one GGUF file.

use std::fmt;
use std::str::FromStr;

use super::HubError;

/// A repository, and which of its GGUF files.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModelName {
    repo: String,
    tag: Option<String>,
}

/// The hub's own limit.
const MOST_CHARACTERS: usize = 96;

impl ModelName {
    /// `org/name` or `name`.
    pub fn repo(&self) -> &str {
        &self.repo
    }

    /// A quantisation such as `Q4_K_M`, or the name of a GGUF file.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The same repository without a tag.
    pub fn without_tag(&self) -> Self {
        self.with_tag(None)
    }

    pub(super) fn with_tag(&self, tag: Option<String>) -> Self {
        Self {
            repo: self.repo.clone(),
            tag,
        }
    }
}

impl FromStr for ModelName {
    type Err = HubError;

    /// Errors: a text that no repository can be called.
    fn from_str(text: &str) -> Result<Self, HubError> {
        let wrong = |problem| HubError::Name {
            text: text.to_owned(),
            problem,
        };
        if text.contains("://") {
            return Err(wrong(
                "an address is no name; give `org/name`, and another hub's address in HF_ENDPOINT",
            ));
        }
        let (repo, tag) = match text.split_once(':') {
            Some((repo, tag)) => (repo, Some(tag)),
            None => (text, None),
        };
        if repo.split('/').count() > 2 {
            return Err(wrong("a name has at most one `/`, as in `org/name`"));
        }
        if !repo.split('/').all(is_segment) || repo.len() > MOST_CHARACTERS {
            return Err(wrong(
                "a name is made of letters, digits, `-`, `_` and `.`, as in `org/name` or `org/name:Q4_K_M`",
            ));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(wrong(
                "after `:` stands a quantisation such as `Q4_K_M`, or the name of a GGUF file",
            ));
        }
        Ok(Self {
            repo: repo.to_owned(),
            tag: tag.map(str::to_owned),
        })
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
    }
}

/// What the hub allows between slashes. Two dashes separate owner and name in the cache's folders.
fn is_segment(segment: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    !segment.is_empty()
        && segment.bytes().all(plain)
        && !segment.starts_with(['-', '.'])
        && !segment.ends_with(['-', '.'])
        && !segment.contains("--")
        && !segment.contains("..")
}

fn is_tag(tag: &str) -> bool {
    is_relative(tag)
}

/// Whether a path stays below where it is put: plain names with single slashes between them.
pub(super) fn is_relative(path: &str) -> bool {
    !path.is_empty()
        && path.split('/').all(|part| {
            !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', '\0', ':'])
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_the_same() {
        for (text, repo, tag) in [
            ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B", None),
            ("gpt2", "gpt2", None),
            (
                "Qwen/Qwen3-0.6B-GGUF:Q4_K_M",
                "Qwen/Qwen3-0.6B-GGUF",
                Some("Q4_K_M"),
            ),
            (
                "a/b:sub/model-Q8_0.gguf",
                "a/b",
                Some("sub/model-Q8_0.gguf"),
            ),
        ] {
            let name: ModelName = text.parse().expect(text);
            assert_eq!((name.repo(), name.tag()), (repo, tag));
            assert_eq!(name.to_string(), text);
        }
    }

    #[test]
    fn what_no_repository_is_called_is_refused_with_a_reason() {
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "./a",
            "../a",
            "a/../b",
            "a/b/c",
            "a b/c",
            "a/b:",
            "a/b:../c",
            "a/b:/c",
            "https://host/a",
            "a--b/c",
            "-a/b",
            "a/b.",
            "a/..b",
            "a\\b",
        ] {
            let error = text.parse::<ModelName>().expect_err(text).to_string();
            assert!(
                error.starts_with(&format!("`{text}` is neither ")),
                "{error}"
            );
        }
        assert!("a".repeat(97).parse::<ModelName>().is_err());
    }
}
