//! Where log lines go and how they look, and that no secret stands in them.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::redact::Redacting;

/// How log lines are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// `error`, `warn`, `info`, `debug`, `trace` for this program's own lines, or a whole tracing filter.
    pub level: String,
    /// One JSON object a line instead of text.
    pub json: bool,
    /// Colours in text lines.
    pub color: bool,
}

/// Starts logging to standard error for the whole process.
///
/// Errors: a filter that cannot be read, in one sentence. Called once; a second call has no effect.
pub fn init_log(settings: &LogSettings) -> Result<(), String> {
    let directives = directives(&settings.level)?;
    let filter = EnvFilter::try_new(&directives).map_err(|e| {
        format!(
            "log_level `{}` is not a level or a filter: {e}",
            settings.level
        )
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(Redacting(std::io::stderr));
    // A second subscriber is refused by tracing itself; the first one stays.
    let _ = if settings.json {
        registry.with(layer.json().flatten_event(true)).try_init()
    } else {
        registry.with(layer.with_ansi(settings.color)).try_init()
    };
    Ok(())
}

/// Warnings of others; but those of `hf-hub` are told in this program's words.
const OTHERS: &str = "warn,hf_hub=off";

/// A level for this program's own lines, with warnings of the rest, or a filter as it is.
///
/// Errors: a single word that is no level; as a filter it would silence everything.
fn directives(level: &str) -> Result<String, String> {
    let word = level.trim().to_ascii_lowercase();
    match word.as_str() {
        "error" | "warn" | "info" | "debug" | "trace" | "off" => {
            Ok(format!("{OTHERS},sconce={word}"))
        }
        "warning" => Ok(OTHERS.to_owned()),
        _ if level.contains(['=', ',']) => Ok(level.to_owned()),
        _ => Err(format!(
            "log_level `{level}` is neither error, warn, info, debug, trace or off nor a filter such as `info,sconce=debug`"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_refused_instead_of_silencing_the_log() {
        assert_eq!(
            directives("INFO").as_deref(),
            Ok("warn,hf_hub=off,sconce=info")
        );
        assert_eq!(directives("warning").as_deref(), Ok("warn,hf_hub=off"));
        assert_eq!(directives("hyper=trace").as_deref(), Ok("hyper=trace"));
        assert!(directives("loud").is_err());
    }
}
