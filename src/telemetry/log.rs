//! Where log lines go and how they look.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

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
    let plain = ["error", "warn", "info", "debug", "trace", "off"];
    let directives = if plain.contains(&settings.level.as_str()) {
        format!("warn,sconce={}", settings.level)
    } else {
        settings.level.clone()
    };
    let filter = EnvFilter::try_new(&directives).map_err(|e| {
        format!(
            "log_level `{}` is not a level or a filter: {e}",
            settings.level
        )
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    let layer = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    // A second subscriber is refused by tracing itself; the first one stays.
    let _ = if settings.json {
        registry.with(layer.json().flatten_event(true)).try_init()
    } else {
        registry.with(layer.with_ansi(settings.color)).try_init()
    };
    Ok(())
}
