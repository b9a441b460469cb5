//! What people see while files arrive: a bar for each, with speed and time left; lines in the log elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::error::size;

/// All bars of one download.
#[derive(Debug)]
pub(super) struct Progress {
    bars: MultiProgress,
    silent: bool,
}

/// The bar of one file.
#[derive(Debug)]
pub(super) struct Bar(ProgressBar);

impl Progress {
    /// Bars on standard error if that is a terminal, and lines in the log otherwise.
    pub(super) fn new() -> Self {
        let silent = !std::io::stderr().is_terminal();
        let target = if silent {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        Self {
            bars: MultiProgress::with_draw_target(target),
            silent,
        }
    }

    /// Begins with a file of `total` bytes.
    pub(super) fn file(&self, doing: &str, what: &str, total: u64) -> Bar {
        const TEMPLATE: &str = "{msg:32!} {wide_bar} {binary_bytes:>10}/{binary_total_bytes:<10} {binary_bytes_per_sec:>12} {eta:>4} left";
        if self.silent {
            tracing::info!(size = size(total), "{doing} {what}");
        }
        let bar = self.bars.add(ProgressBar::new(total));
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(250));
        Bar(bar)
    }

    /// Says something between the bars.
    pub(super) fn say(&self, line: &str) {
        if self.silent {
            tracing::info!("{line}");
        } else {
            // A terminal that is gone reads nothing.
            let _ = self.bars.println(line);
        }
    }
}

impl Bar {
    /// There are this many bytes now.
    pub(super) fn at(&self, bytes: u64) {
        self.0.set_position(bytes);
    }

    /// What was there before it began; no part of the speed.
    pub(super) fn begin_at(&self, bytes: u64) {
        self.0.set_position(bytes);
        self.0.reset_eta();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
