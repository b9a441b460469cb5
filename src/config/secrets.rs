//! Secrets that stand where they must not: in the settings file or among the arguments.
//!
//! What is found is never repeated; only its place and what sort of thing it looks like are. A text that has
//! no such shape is not found, so nothing else here quotes values either.

use std::ffi::OsString;
use std::sync::LazyLock;

use regex::Regex;

use super::ConfigError;

/// Shapes, and what each is called.
static SHAPES: LazyLock<[(Regex, &str); 5]> = LazyLock::new(|| {
    let shape = |pattern: &str| Regex::new(pattern).expect("written here");
    [
        (
            shape(r"(?:^|[^A-Za-z0-9])hf_[A-Za-z0-9]{20}"),
            "a Hugging Face token",
        ),
        // A dash before it is part of a longer name, as in `bert-sk-cased`.
        (
            shape(r"(?:^|[^A-Za-z0-9_-])sk-[A-Za-z0-9_-]{20}"),
            "an API key",
        ),
        (
            shape(r"(?:^|[^A-Za-z0-9])r8_[A-Za-z0-9]{20}"),
            "a Replicate token",
        ),
        (
            shape(r#"://[^\s/?#"'@]+@"#),
            "an address with a name or password in it",
        ),
        (
            shape(
                r#"(?i)://[^\s"']*[?&][a-z0-9_.-]*(?:key|token|sig|secret|password)[a-z0-9_.-]*=[^\s&"']"#,
            ),
            "an address with a credential in its query",
        ),
    ]
});

/// What secret a text holds, by its shape.
pub(super) fn secret_in(text: &str) -> Option<&'static str> {
    let found = SHAPES.iter().find(|(shape, _)| shape.is_match(text));
    found.map(|(_, name)| *name)
}

/// Secrets in the text of a settings file, comments included, one sentence for each line.
pub(super) fn in_file(text: &str) -> Vec<String> {
    let lines = text.lines().enumerate();
    lines
        .filter_map(|(index, line)| {
            let what = secret_in(line)?;
            Some(format!(
                "line {}: {what} may not stand in a file; put it in an environment variable and name that in `token_env`",
                index + 1
            ))
        })
        .collect()
}

/// Refuses arguments that hold a secret: every user of the machine can read them.
///
/// The value of `--api-key` passes, because TGI takes the key there; the variable API_KEY is the better
/// place.
/// Errors: a sentence for each such argument, by its place in the order; none is quoted.
pub fn refuse_secrets_in_arguments(
    arguments: impl Iterator<Item = OsString>,
) -> Result<(), ConfigError> {
    let mut faults = Vec::new();
    let mut exempt = false;
    for (index, argument) in arguments.enumerate() {
        let text = argument.to_string_lossy();
        let is_value = std::mem::replace(&mut exempt, text == "--api-key");
        if is_value || text.starts_with("--api-key=") {
            continue;
        }
        if let Some(what) = secret_in(&text) {
            faults.push(format!(
                "argument {index} holds {what}; every user of this machine can read arguments: put it in an environment variable and name that in `token_env`"
            ));
        }
    }
    if faults.is_empty() {
        Ok(())
    } else {
        Err(ConfigError(faults))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRETS: [&str; 7] = [
        "hf_abcdefghijABCDEFGHIJ0",
        "Bearer hf_abcdefghijABCDEFGHIJ0",
        "x=sk-abcdefghij_KLMN-opqrst",
        "r8_abcdefghijABCDEFGHIJ0123456789abcdef",
        "https://alice:hunter2@host/v1",
        "http://hunter2@proxy:3128",
        "https://host/v1?x=1&api_key=hunter2",
    ];

    #[test]
    fn secrets_are_known_by_their_shape() {
        for secret in SECRETS {
            assert!(secret_in(secret).is_some(), "{secret}");
        }
        for sound in [
            "hf_short",
            "HF_TOKEN",
            "https://host:8080/prefix?x=1",
            "task-oriented-dialogue-model-large",
            "org/bert-sk-cased-something-very-long",
            "pattern = 'hf_[A-Za-z0-9]{20,}'",
            "https://host/?monkeys",
            "me@example.org",
        ] {
            assert_eq!(secret_in(sound), None, "{sound}");
        }
    }

    #[test]
    fn a_secret_in_a_file_is_placed_and_not_repeated() {
        for secret in SECRETS {
            let text = format!("port = 3000\n# {secret}\nname = \"{secret}\"\n");
            let faults = in_file(&text);
            assert_eq!(faults.len(), 2, "{secret}");
            assert!(faults[0].starts_with("line 2: ") && faults[1].starts_with("line 3: "));
            assert!(
                faults
                    .iter()
                    .all(|fault| !fault.contains("hunter2") && !fault.contains("abcdefghij"))
            );
        }
    }

    #[test]
    fn a_secret_among_the_arguments_is_refused_but_for_the_callers_key() {
        let check = |arguments: &[&str]| {
            refuse_secrets_in_arguments(arguments.iter().map(OsString::from))
                .map_err(|e| e.to_string())
        };
        let secret = SECRETS[0];
        let words = check(&["sconce", "serve", "--model-id", secret]).expect_err("a token");
        assert!(words.starts_with("argument 3 holds a Hugging Face token"));
        assert!(!words.contains("abcdefghij"), "{words}");
        assert!(check(&["sconce", &format!("--x={secret}")]).is_err());
        assert!(check(&["sconce", "--api-key", SECRETS[2], secret]).is_err());
        let key = &SECRETS[2][2..];
        assert_eq!(check(&["sconce", "serve", "--api-key", key]), Ok(()));
        assert_eq!(check(&["sconce", &format!("--api-key={key}")]), Ok(()));
    }
}
