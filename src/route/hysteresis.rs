//! What keeps a model from being sent here and there by turns: one flag, and how long it has been calm.
//!
//! The flag does not send everything away. While it is up, the bar for this machine's time to the first token
//! is lower than the objective, so a queue that hovers at the objective does not flip the flag, and this
//! machine still gets what it has room for. And the flag changes at most once in a given time: arrivals come in
//! bursts, and a machine that is asked for a little more than it can do has calm seconds, too. A request that
//! would be too late goes elsewhere whether the flag may rise or not. Pure: time comes in, the next state goes
//! out.

use serde::{Deserialize, Serialize};

use super::decide::Terms;

/// Whether a model is spilling over, and since when it would no longer need to.
///
/// Units: milliseconds of whatever clock the caller keeps for all decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Hysteresis {
    /// Whether the lower bar holds.
    pub diverting: bool,
    /// Since when the expected time has been below the lower bar.
    pub calm_since_ms: Option<u64>,
    /// When the flag changed last; none when it never did.
    pub changed_ms: Option<u64>,
}

impl Hysteresis {
    /// The state once this expected time to the first token was seen; none says nothing about calm.
    pub fn seen(mut self, ttft_ms: Option<u64>, terms: &Terms, now_ms: u64) -> Self {
        if !self.diverting {
            return self;
        }
        match ttft_ms {
            Some(ttft) if (ttft as f64) < terms.resume_ms() => {
                let since = self.calm_since_ms.unwrap_or(now_ms).min(now_ms);
                if now_ms - since >= terms.calm_ms && self.may_change(terms, now_ms) {
                    return Self {
                        diverting: false,
                        calm_since_ms: None,
                        changed_ms: Some(now_ms),
                    };
                }
                self.calm_since_ms = Some(since);
            }
            _ => self.calm_since_ms = None,
        }
        self
    }

    /// The state after a request went elsewhere because this machine would have been too late.
    pub fn diverted(mut self, terms: &Terms, now_ms: u64) -> Self {
        if !self.diverting && self.may_change(terms, now_ms) {
            self.diverting = true;
            self.changed_ms = Some(now_ms);
        }
        self
    }

    fn may_change(&self, terms: &Terms, now_ms: u64) -> bool {
        self.changed_ms
            .is_none_or(|at| now_ms.saturating_sub(at) >= terms.dwell_ms)
    }

    /// The expected time to the first token, in milliseconds, above which this machine is too late.
    pub fn bar_ms(&self, terms: &Terms) -> f64 {
        if self.diverting {
            terms.resume_ms()
        } else {
            terms.slo_ttft_ms as f64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms() -> Terms {
        Terms::from(&super::super::Config::default())
    }

    #[test]
    fn diverting_ends_after_five_calm_seconds_in_a_row() {
        let terms = Terms {
            dwell_ms: 0,
            ..terms()
        };
        let up = Hysteresis::default().diverted(&terms, 0);
        let calm = up.seen(Some(6_999), &terms, 1_000);
        assert!(calm.seen(Some(6_999), &terms, 5_999).diverting);
        assert!(!calm.seen(Some(6_999), &terms, 6_000).diverting);
        let broken = calm.seen(Some(7_000), &terms, 5_000);
        assert_eq!(broken, up);
        assert!(broken.seen(Some(0), &terms, 9_000).diverting);
    }

    #[test]
    fn the_bar_is_lower_while_diverting() {
        let terms = terms();
        assert_eq!(Hysteresis::default().bar_ms(&terms), 10_000.0);
        assert_eq!(
            Hysteresis::default().diverted(&terms, 0).bar_ms(&terms),
            7_000.0
        );
    }

    #[test]
    fn the_flag_changes_once_a_minute_at_most() {
        let terms = terms();
        let up = Hysteresis::default().diverted(&terms, 0);
        let calm = up.seen(Some(0), &terms, 1_000);
        assert!(calm.seen(Some(0), &terms, 59_999).diverting);
        let down = calm.seen(Some(0), &terms, 60_000);
        assert!(!down.diverting);
        assert!(!down.diverted(&terms, 119_999).diverting);
        assert!(down.diverted(&terms, 120_000).diverting);
    }

    #[test]
    fn a_clock_that_steps_back_ends_nothing() {
        let terms = terms();
        let state = Hysteresis {
            diverting: true,
            calm_since_ms: Some(9_000),
            changed_ms: None,
        };
        assert!(state.seen(Some(0), &terms, 1_000).diverting);
    }
}
