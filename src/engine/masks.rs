//! Masks are made beside the forward pass, on a thread of their own.
//!
//! What a guide allows next depends on tokens that are known before the forward pass begins, and the mask
//! is needed only when it has ended. So the worker lends its guides out when a step begins and takes them
//! back before it samples.

use std::sync::mpsc::{Receiver, Sender, channel};

use super::sequence::SequenceId;
use crate::guided::{Guide, GuideError};

/// A guide on loan, with how the last mask went.
pub(super) struct Loan {
    pub(super) sequence: SequenceId,
    pub(super) guide: Box<Guide>,
    pub(super) outcome: Result<(), GuideError>,
}

/// The thread that makes masks. It ends when this is dropped.
pub(super) struct Masks {
    lend: Sender<Loan>,
    take_back: Receiver<Loan>,
    lent: usize,
}

impl Masks {
    /// Starts the thread.
    ///
    /// Errors: the operating system has no thread to give.
    pub(super) fn start() -> std::io::Result<Self> {
        let (lend, loans) = channel::<Loan>();
        let (give_back, take_back) = channel();
        let make = move || {
            for mut loan in loans {
                loan.outcome = loan.guide.prepare();
                if give_back.send(loan).is_err() {
                    break;
                }
            }
        };
        std::thread::Builder::new()
            .name("masks".to_owned())
            .spawn(make)?;
        Ok(Self {
            lend,
            take_back,
            lent: 0,
        })
    }

    /// Asks for a guide's mask.
    pub(super) fn begin(&mut self, sequence: SequenceId, guide: Box<Guide>) {
        let outcome = Ok(());
        let loan = Loan {
            sequence,
            guide,
            outcome,
        };
        if self.lend.send(loan).is_ok() {
            self.lent += 1;
        }
    }

    /// Waits for the next mask asked for; none when all are back, or lost because the thread has died.
    pub(super) fn finish(&mut self) -> Option<Loan> {
        self.lent = self.lent.checked_sub(1)?;
        self.take_back.recv().ok()
    }
}
