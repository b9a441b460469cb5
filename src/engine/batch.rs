//! Lays a plan out as the rows a model takes.

use super::scheduler::{Scheduler, Share};
use crate::generation::TokenId;

/// Buffers of one step's input, kept between steps.
///
/// Invariants: as [`crate::model::StepInput`]; `outputs` holds, share by share, the rows whose scores are
/// wanted, so that logits come back in the plan's order.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) tokens: Vec<TokenId>,
    pub(super) rows: Vec<(u32, u32)>,
    pub(super) outputs: Vec<u32>,
}

impl Batch {
    /// Fills the buffers from the scheduler's current plan.
    pub(super) fn lay_out(&mut self, scheduler: &Scheduler) {
        self.tokens.clear();
        self.rows.clear();
        self.outputs.clear();
        for (table, share) in scheduler.plan().shares.iter().enumerate() {
            let sequence = scheduler.sequence(share.sequence);
            let first_row = self.rows.len();
            let end = share.start + share.count;
            self.tokens
                .extend_from_slice(&sequence.tokens()[share.start..end]);
            self.rows
                .extend((share.start..end).map(|position| (table as u32, position as u32)));
            let wanted = wanted_rows(share, sequence.scores_prompt, sequence.prompt_len());
            self.outputs
                .extend(wanted.map(|offset| (first_row + offset) as u32));
        }
    }
}

/// The offsets within a share whose scores are wanted: the last token's if it is the sequence's last, and
/// all of the prompt's when its log-probabilities are.
pub(super) fn wanted_rows(
    share: &Share,
    scores_prompt: bool,
    prompt_len: usize,
) -> std::ops::Range<usize> {
    let end = if share.samples {
        share.count
    } else {
        share.count - 1
    };
    if scores_prompt && share.start < prompt_len {
        0..share.count
    } else {
        share.count - 1..end.max(share.count - 1)
    }
}
