//! Which of those who wait goes elsewhere when this machine has too much to do.
//!
//! Looked at again every quarter of a second, as long as a prompt is not being computed: who has begun is
//! never moved. Pure: views in, a place in the line out.

use serde::{Deserialize, Serialize};

use super::config::OverflowPick;
use super::decide::{Expected, Terms};
use super::hysteresis::Hysteresis;

/// One request that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitingView {
    /// How long it has waited.
    pub waited_ms: u64,
    /// Until its first token here, from now.
    pub ttft_ms: u64,
    /// Until its last token here, from now.
    pub e2e_ms: u64,
    /// Whether its prompt is being computed.
    pub has_begun: bool,
    /// Whether it may go elsewhere at all, as last decided.
    pub may_go: bool,
    /// What the first target of its plan is expected to take; none when nothing is known.
    pub expected: Option<Expected>,
    /// Most nano-USD that it can cost there.
    pub worst_cost_nusd: u64,
}

impl WaitingView {
    fn should_go(&self, terms: &Terms, hysteresis: &Hysteresis) -> bool {
        let ttft = self.waited_ms.saturating_add(self.ttft_ms);
        let gains = self
            .expected
            .is_none_or(|there| (there.e2e_ms as f64) < terms.remote_gain * self.e2e_ms as f64);
        self.may_go && !self.has_begun && ttft as f64 > hysteresis.bar_ms(terms) && gains
    }
}

/// Chooses one waiting request to go elsewhere, by its place in `line`, which is in order of arrival.
///
/// None when everyone who may go would be in time here, or be no better off there. After one has gone the
/// line is shorter, so the caller asks again with fresh numbers rather than taking several at once.
pub fn reconsider(
    line: &[WaitingView],
    pick: OverflowPick,
    terms: &Terms,
    hysteresis: &Hysteresis,
) -> Option<usize> {
    let mut fit = (0..line.len()).filter(|&i| line[i].should_go(terms, hysteresis));
    match pick {
        OverflowPick::Newcomer => fit.next_back(),
        OverflowPick::CheapestRemote => fit.min_by_key(|&i| line[i].worst_cost_nusd),
        OverflowPick::LongestWait => fit.next(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(waited_ms: u64, worst_cost_nusd: u64) -> WaitingView {
        WaitingView {
            waited_ms,
            ttft_ms: 9_000,
            e2e_ms: 20_000,
            has_begun: false,
            may_go: true,
            expected: Some(Expected {
                ttft_ms: 500,
                e2e_ms: 5_000,
            }),
            worst_cost_nusd,
        }
    }

    #[test]
    fn the_operator_chooses_who_goes() {
        let terms = Terms::from(&super::super::Config::default());
        let calm = Hysteresis::default();
        let line = [waiting(4_000, 30), waiting(3_000, 10), waiting(2_000, 20)];
        let pick = |line: &[WaitingView], pick| reconsider(line, pick, &terms, &calm);
        assert_eq!(pick(&line, OverflowPick::Newcomer), Some(2));
        assert_eq!(pick(&line, OverflowPick::CheapestRemote), Some(1));
        assert_eq!(pick(&line, OverflowPick::LongestWait), Some(0));
        assert_eq!(pick(&[], OverflowPick::Newcomer), None);
    }

    #[test]
    fn who_is_in_time_has_begun_may_not_go_or_gains_nothing_stays() {
        let terms = Terms::from(&super::super::Config::default());
        let one = waiting(4_000, 1);
        let slow = Expected {
            ttft_ms: 500,
            e2e_ms: 16_000,
        };
        let stay = [
            WaitingView {
                waited_ms: 1_000,
                ..one
            },
            WaitingView {
                has_begun: true,
                ..one
            },
            WaitingView {
                may_go: false,
                ..one
            },
            WaitingView {
                expected: Some(slow),
                ..one
            },
        ];
        let calm = Hysteresis::default();
        assert_eq!(
            reconsider(&stay, OverflowPick::Newcomer, &terms, &calm),
            None
        );
        let up = calm.diverted(&terms, 0);
        assert_eq!(
            reconsider(&stay, OverflowPick::Newcomer, &terms, &up),
            Some(0)
        );
    }
}
