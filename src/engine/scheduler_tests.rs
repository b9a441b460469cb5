//! Properties of the scheduler over random arrivals, cancellations and preemptions.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use proptest::prelude::*;

use super::*;
use crate::generation::Tenant;

fn limits(max_batched_tokens: usize, max_running: usize, num_blocks: usize) -> Limits {
    Limits {
        max_batched_tokens: NonZeroUsize::new(max_batched_tokens).expect("not zero"),
        max_running: NonZeroUsize::new(max_running).expect("not zero"),
        num_blocks,
    }
}

fn sequence(prompt: &[u32], max_new_tokens: usize) -> Sequence {
    let prompt = prompt.iter().copied().map(TokenId).collect();
    Sequence::new(prompt, max_new_tokens, &Tenant::anonymous(), false)
}

/// A scheduler with a stand-in for the model: it remembers what each block holds, so that a table that
/// points to another sequence's keys is noticed.
struct Harness {
    scheduler: Scheduler,
    limits: Limits,
    /// By id: tokens still to generate.
    left: HashMap<SequenceId, usize>,
    /// By slot: the tokens from the sequence's start up to this one, as a hash chain would see them.
    slots: Vec<Vec<TokenId>>,
}

impl Harness {
    fn new(limits: Limits) -> Self {
        Self {
            scheduler: Scheduler::new(limits),
            limits,
            left: HashMap::new(),
            slots: vec![Vec::new(); limits.num_blocks * BLOCK_TOKENS],
        }
    }

    fn add(&mut self, prompt: &[u32], max_new_tokens: usize) -> SequenceId {
        let id = self.scheduler.add(sequence(prompt, max_new_tokens));
        self.left.insert(id, max_new_tokens);
        id
    }

    fn slot(&self, id: SequenceId, position: usize) -> usize {
        let block = self.scheduler.table(id)[position / BLOCK_TOKENS] as usize;
        block * BLOCK_TOKENS + position % BLOCK_TOKENS
    }

    /// Runs one step and checks every invariant; returns the ids that finished.
    fn step(&mut self) -> Vec<SequenceId> {
        self.scheduler.schedule();
        let shares = self.scheduler.plan().shares.clone();
        let tokens: usize = shares.iter().map(|share| share.count).sum();
        assert!(
            tokens <= self.limits.max_batched_tokens.get(),
            "the budget is exceeded"
        );
        assert!(self.scheduler.running().len() <= self.limits.max_running.get());
        let oldest = self.scheduler.running().first();
        assert_eq!(
            shares.first().map(|share| share.sequence).as_ref(),
            oldest,
            "the oldest waits"
        );
        for share in &shares {
            for position in share.start..share.start + share.count {
                let slot = self.slot(share.sequence, position);
                let tokens = &self.scheduler.sequence(share.sequence).tokens()[..=position];
                self.slots[slot] = tokens.to_vec();
            }
        }
        // Every key a sequence would attend is its own, wherever it was computed.
        for share in &shares {
            for position in 0..share.start + share.count {
                let slot = self.slot(share.sequence, position);
                let tokens = &self.scheduler.sequence(share.sequence).tokens()[..=position];
                assert_eq!(
                    self.slots[slot], tokens,
                    "position {position} was overwritten"
                );
            }
        }
        self.scheduler.complete_step();
        let mut finished = Vec::new();
        for share in shares.iter().filter(|share| share.samples) {
            let left = self
                .left
                .get_mut(&share.sequence)
                .expect("a known sequence");
            *left -= 1;
            if *left == 0 {
                finished.push(share.sequence);
            } else {
                let len = self.scheduler.sequence(share.sequence).tokens().len();
                self.scheduler
                    .append(share.sequence, TokenId((len * 7 % 11) as u32));
            }
        }
        for &id in &finished {
            self.remove(id);
        }
        self.check_blocks();
        finished
    }

    fn remove(&mut self, id: SequenceId) {
        self.scheduler.remove(id).expect("a known sequence");
        self.left.remove(&id);
    }

    /// Every block is free, or held as often as it stands in tables.
    fn check_blocks(&self) {
        let mut holders = vec![0; self.limits.num_blocks];
        for &id in self.left.keys() {
            for &block in self.scheduler.table(id) {
                holders[block as usize] += 1;
            }
        }
        for (block, &count) in holders.iter().enumerate() {
            assert_eq!(
                self.scheduler.pool.holders(block as BlockId),
                count,
                "block {block}"
            );
        }
        let free = holders.iter().filter(|&&count| count == 0).count();
        assert_eq!(self.scheduler.num_free_blocks(), free);
    }

    fn run_to_end(&mut self, max_steps: usize) -> Vec<SequenceId> {
        let mut finished = Vec::new();
        for _ in 0..max_steps {
            if self.scheduler.is_idle() {
                return finished;
            }
            finished.extend(self.step());
        }
        panic!("{} sequences starve", self.left.len());
    }
}

#[test]
fn a_long_prompt_is_computed_in_chunks_beside_decodes() {
    let mut harness = Harness::new(limits(8, 4, 16));
    let short = harness.add(&[1, 2], 10);
    harness.step();
    let long = harness.add(&[5; 20], 1);
    let counts: Vec<Vec<(SequenceId, usize)>> = (0..3)
        .map(|_| {
            harness.step();
            harness
                .scheduler
                .plan()
                .shares
                .iter()
                .map(|s| (s.sequence, s.count))
                .collect()
        })
        .collect();
    assert_eq!(
        counts,
        [
            vec![(short, 1), (long, 7)],
            vec![(short, 1), (long, 7)],
            vec![(short, 1), (long, 6)],
        ]
    );
}

#[test]
fn a_sibling_waits_for_the_blocks_that_are_being_filled() {
    let mut harness = Harness::new(limits(16, 4, 64));
    let prompt: Vec<u32> = (0..48).collect();
    harness.add(&prompt, 4);
    let sibling = harness.add(&prompt, 4);
    let other = harness.add(&[9, 9, 9], 4);
    harness.step();
    assert_eq!(
        harness.scheduler.num_waiting(),
        2,
        "the budget went to the first prompt"
    );
    harness.step();
    harness.step();
    harness.step();
    let share = harness
        .scheduler
        .plan()
        .shares
        .iter()
        .find(|s| s.sequence == sibling);
    assert_eq!(
        share.map(|share| (share.start, share.count)),
        Some((32, 15))
    );
    assert!(harness.scheduler.running().contains(&sibling));
    assert!(
        !harness.scheduler.running().contains(&other),
        "the budget was spent"
    );
    harness.run_to_end(20);
}

#[test]
fn the_youngest_is_preempted_and_finishes_all_the_same() {
    let mut harness = Harness::new(limits(64, 4, 4));
    let old = harness.add(&[1; 16], 32);
    let young = harness.add(&[2; 16], 32);
    let mut preempted = 0;
    let mut order = Vec::new();
    while !harness.scheduler.is_idle() {
        order.extend(harness.step());
        preempted += harness.scheduler.plan().preempted;
    }
    assert!(preempted > 0);
    assert_eq!(order, [old, young]);
}

#[test]
fn removing_a_sequence_frees_its_blocks_at_once() {
    let mut harness = Harness::new(limits(64, 4, 8));
    let id = harness.add(&[1; 40], 8);
    harness.step();
    assert_eq!(harness.scheduler.num_free_blocks(), 5);
    harness.remove(id);
    assert_eq!(harness.scheduler.num_free_blocks(), 8);
    assert!(harness.scheduler.is_idle());
}

#[derive(Debug, Clone)]
enum Action {
    Add { family: u32, len: usize, new: usize },
    Step,
    Cancel(usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => (0..3_u32, 1..60_usize, 1..20_usize)
            .prop_map(|(family, len, new)| Action::Add { family, len, new }),
        6 => Just(Action::Step),
        1 => (0..8_usize).prop_map(Action::Cancel),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn blocks_are_conserved_and_nobody_starves(
        actions in proptest::collection::vec(action(), 1..80),
        budget in 1..40_usize,
        max_running in 1..9_usize,
        num_blocks in 5..24_usize,
    ) {
        let mut harness = Harness::new(limits(budget, max_running, num_blocks));
        let mut work = 0;
        for action in actions {
            match action {
                Action::Add { family, len, new } => {
                    // Prompts of a family share their beginning, so that prefixes are found.
                    let prompt: Vec<u32> = (0..len as u32).map(|i| family * 100 + i / 40).collect();
                    prop_assert!(harness.scheduler.fits(len + new));
                    harness.add(&prompt, new);
                    work += len + new;
                }
                Action::Step => {
                    if !harness.scheduler.is_idle() {
                        harness.step();
                    }
                }
                Action::Cancel(i) => {
                    let mut ids: Vec<SequenceId> = harness.left.keys().copied().collect();
                    ids.sort();
                    if let Some(&id) = ids.get(i) {
                        harness.remove(id);
                        harness.check_blocks();
                    }
                }
            }
        }
        // The oldest always advances by a token a step at least; preempted work is done again.
        let remaining = harness.left.len();
        let finished = harness.run_to_end(1000 + work * work);
        prop_assert_eq!(finished.len(), remaining);
        prop_assert_eq!(harness.scheduler.num_free_blocks(), num_blocks);
    }
}
