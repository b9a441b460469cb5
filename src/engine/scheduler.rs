//! Chooses what each step computes. Pure: no clock, no tensor, no channel.
//!
//! There is no prefill phase and no decode phase. A sequence owns tokens and has some of them computed;
//! each step spends a token budget on closing that gap. Chunked prefill, prefix hits and recomputation
//! after preemption are all the same thing: a gap of some length.

use std::collections::VecDeque;
use std::num::NonZeroUsize;

use crate::generation::TokenId;
use crate::model::{BLOCK_TOKENS, BlockId};

use super::block_pool::BlockPool;
use super::prefix_cache::PrefixCache;
use super::sequence::{Sequence, SequenceId};

/// The scheduler's bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most tokens one step computes.
    pub max_batched_tokens: NonZeroUsize,
    /// Most sequences that run at once.
    pub max_running: NonZeroUsize,
    /// Blocks of the KV cache.
    pub num_blocks: usize,
}

/// One sequence's share of a step: tokens `start .. start + count`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Whose tokens.
    pub sequence: SequenceId,
    /// First token computed in this step.
    pub start: usize,
    /// How many.
    pub count: usize,
    /// Whether the last of them is the sequence's last token, so that a new one can be chosen.
    pub samples: bool,
}

/// What one step computes, and what became of the waiting line on the way.
#[derive(Debug, Default)]
pub struct StepPlan {
    /// Shares in the order of the running line, oldest first.
    pub shares: Vec<Share>,
    /// Sequences that began or resumed to run.
    pub admitted: usize,
    /// Sequences put back to waiting.
    pub preempted: usize,
    /// Tokens that newly admitted sequences found in the prefix cache.
    pub cached_tokens: usize,
}

impl StepPlan {
    /// Tokens computed in all.
    pub fn num_tokens(&self) -> usize {
        self.shares.iter().map(|share| share.count).sum()
    }

    fn clear(&mut self) {
        self.shares.clear();
        self.admitted = 0;
        self.preempted = 0;
        self.cached_tokens = 0;
    }
}

/// The waiting line, the running line, and the blocks they hold.
///
/// Invariants: blocks are conserved (every block is free or held as often as it stands in tables); the
/// oldest running sequence always advances, so no sequence starves as long as each one alone fits the
/// pool, which [`Scheduler::fits`] tells beforehand.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    sequences: Vec<Option<Sequence>>,
    vacant: Vec<SequenceId>,
    waiting: VecDeque<SequenceId>,
    /// Oldest first.
    running: Vec<SequenceId>,
    pool: BlockPool,
    cache: PrefixCache,
    plan: StepPlan,
}

impl Scheduler {
    /// Builds an idle scheduler.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            sequences: Vec::new(),
            vacant: Vec::new(),
            waiting: VecDeque::new(),
            running: Vec::with_capacity(limits.max_running.get().min(1024)),
            pool: BlockPool::new(limits.num_blocks),
            cache: PrefixCache::new(limits.num_blocks),
            plan: StepPlan::default(),
        }
    }

    /// Whether a sequence of so many tokens can ever run to its end.
    pub fn fits(&self, num_tokens: usize) -> bool {
        num_tokens.div_ceil(BLOCK_TOKENS) <= self.pool.len()
    }

    /// Puts a sequence at the end of the waiting line.
    pub fn add(&mut self, sequence: Sequence) -> SequenceId {
        let id = self.vacant.pop().unwrap_or_else(|| {
            self.sequences.push(None);
            SequenceId((self.sequences.len() - 1) as u32)
        });
        self.sequences[id.0 as usize] = Some(sequence);
        self.waiting.push_back(id);
        id
    }

    /// Takes a sequence out, finished or not; its blocks are free at once.
    pub fn remove(&mut self, id: SequenceId) -> Option<Sequence> {
        self.release_blocks(id);
        let sequence = self.sequences.get_mut(id.0 as usize)?.take()?;
        self.running.retain(|&other| other != id);
        self.waiting.retain(|&other| other != id);
        self.vacant.push(id);
        Some(sequence)
    }

    /// The sequence at a place.
    ///
    /// Panics: when the place is vacant, which is a programming error.
    pub fn sequence(&self, id: SequenceId) -> &Sequence {
        self.sequences[id.0 as usize]
            .as_ref()
            .expect("a listed sequence exists")
    }

    fn sequence_mut(&mut self, id: SequenceId) -> &mut Sequence {
        self.sequences[id.0 as usize]
            .as_mut()
            .expect("a listed sequence exists")
    }

    /// Appends a chosen token; it is computed in a later step.
    pub fn append(&mut self, id: SequenceId, token: TokenId) {
        self.sequence_mut(id).append(token);
    }

    /// Sequences waiting.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Sequences waiting, in order.
    pub fn waiting(&self) -> impl Iterator<Item = SequenceId> {
        self.waiting.iter().copied()
    }

    /// Sequences running, oldest first.
    pub fn running(&self) -> &[SequenceId] {
        &self.running
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Blocks nobody holds.
    pub fn num_free_blocks(&self) -> usize {
        self.pool.num_free()
    }

    /// The plan of the last [`Scheduler::schedule`].
    pub fn plan(&self) -> &StepPlan {
        &self.plan
    }

    /// Chooses the next step's batch and reserves the blocks it needs.
    ///
    /// Running sequences come first, oldest first, then waiting ones in order of arrival; each gets
    /// `min(len - computed, budget left)` tokens, so prefill chunks and decodes share a step. When blocks
    /// run out the youngest running sequence goes back to the head of the waiting line. A waiting sequence
    /// whose next block is just being filled by a running one is passed over until it can share it.
    ///
    /// Invariants: the plan's tokens never exceed the budget; a block stands in a table once.
    /// Cost: O(running + looked at in the waiting line); a list of hits for each waiting one looked at.
    /// Source: iteration-level scheduling, Orca (Yu et al., OSDI 2022) §3; chunking, Sarathi-Serve (Agrawal
    /// et al., OSDI 2024) §4.
    pub fn schedule(&mut self) -> &StepPlan {
        self.plan.clear();
        let mut budget = self.limits.max_batched_tokens.get();
        self.extend_running(&mut budget);
        if self.plan.preempted == 0 {
            self.admit_waiting(&mut budget);
        }
        &self.plan
    }

    fn extend_running(&mut self, budget: &mut usize) {
        let mut i = 0;
        while i < self.running.len() && *budget > 0 {
            let id = self.running[i];
            let sequence = self.sequence(id);
            let count = (sequence.tokens.len() - sequence.computed).min(*budget);
            while !self.reserve(id, count) {
                let youngest = self.running.len() - 1;
                self.preempt(youngest);
                if youngest == i {
                    return;
                }
            }
            self.share(id, count);
            *budget -= count;
            i += 1;
        }
    }

    fn admit_waiting(&mut self, budget: &mut usize) {
        let mut i = 0;
        while i < self.waiting.len()
            && *budget > 0
            && self.running.len() < self.limits.max_running.get()
        {
            let id = self.waiting[i];
            let hits = self.cached_blocks(id);
            if self.is_being_filled(id, hits.len()) {
                i += 1;
                continue;
            }
            let sequence = self.sequence(id);
            let needed = sequence.tokens.len().div_ceil(BLOCK_TOKENS) - hits.len();
            let unheld_hits = hits
                .iter()
                .filter(|&&block| self.pool.holders(block) == 0)
                .count();
            if needed + unheld_hits > self.pool.num_free() {
                return;
            }
            for &block in &hits {
                self.pool.hold(block);
            }
            let cached = hits.len() * BLOCK_TOKENS;
            let sequence = self.sequence_mut(id);
            sequence.table.extend_from_slice(&hits);
            sequence.computed = cached;
            let count = (sequence.tokens.len() - cached).min(*budget);
            let reserved = self.reserve(id, count);
            debug_assert!(reserved, "the free blocks were counted before");
            self.waiting.remove(i);
            self.running.push(id);
            self.plan.admitted += 1;
            self.plan.cached_tokens += cached;
            self.share(id, count);
            *budget -= count;
        }
    }

    /// The blocks of a waiting sequence's beginning that the cache holds; the last token is never among
    /// them, since its scores are what the next step is for.
    fn cached_blocks(&self, id: SequenceId) -> Vec<BlockId> {
        let sequence = self.sequence(id);
        if sequence.scores_prompt {
            return Vec::new();
        }
        let usable = (sequence.tokens.len() - 1) / BLOCK_TOKENS;
        sequence.hashes[..usable]
            .iter()
            .map_while(|hash| self.cache.find(hash))
            .collect()
    }

    /// Whether a running sequence is about to fill the block after the first `cached` of a waiting one.
    fn is_being_filled(&self, id: SequenceId, cached: usize) -> bool {
        let sequence = self.sequence(id);
        let usable = (sequence.tokens.len() - 1) / BLOCK_TOKENS;
        if sequence.scores_prompt || cached >= usable {
            return false;
        }
        self.running.iter().any(|&other| {
            let other = self.sequence(other);
            other.hashes.get(cached) == Some(&sequence.hashes[cached])
                && other.computed < (cached + 1) * BLOCK_TOKENS
        })
    }

    /// Grows a table to hold `count` more computed tokens; changes nothing when blocks are short.
    fn reserve(&mut self, id: SequenceId, count: usize) -> bool {
        let sequence = self.sequence(id);
        let blocks = (sequence.computed + count).div_ceil(BLOCK_TOKENS);
        let missing = blocks.saturating_sub(sequence.table.len());
        if missing > self.pool.num_free() {
            return false;
        }
        for _ in 0..missing {
            let block = self
                .pool
                .take()
                .expect("the free blocks were counted before");
            self.cache.forget(block);
            self.sequence_mut(id).table.push(block);
        }
        true
    }

    fn share(&mut self, id: SequenceId, count: usize) {
        let sequence = self.sequence(id);
        let start = sequence.computed;
        let samples = start + count == sequence.tokens.len();
        self.plan.shares.push(Share {
            sequence: id,
            start,
            count,
            samples,
        });
    }

    fn preempt(&mut self, index: usize) {
        let id = self.running.remove(index);
        self.release_blocks(id);
        self.sequence_mut(id).computed = 0;
        self.waiting.push_front(id);
        self.plan.preempted += 1;
    }

    fn release_blocks(&mut self, id: SequenceId) {
        let Some(Some(sequence)) = self.sequences.get_mut(id.0 as usize) else {
            return;
        };
        let table = std::mem::take(&mut sequence.table);
        // The deepest block first, so that it is taken before the ones it builds on.
        for &block in table.iter().rev() {
            self.pool.release(block, self.cache.holds(block));
        }
    }

    /// Records that the plan was carried out: its tokens are computed, full blocks can be found.
    pub fn complete_step(&mut self) {
        for i in 0..self.plan.shares.len() {
            let Share {
                sequence: id,
                start,
                count,
                ..
            } = self.plan.shares[i];
            let Some(Some(sequence)) = self.sequences.get_mut(id.0 as usize) else {
                continue;
            };
            sequence.computed = start + count;
            for full in start / BLOCK_TOKENS..sequence.computed / BLOCK_TOKENS {
                self.cache
                    .insert(sequence.hashes[full], sequence.table[full]);
            }
        }
    }

    /// The block ids of a sequence, in order.
    pub fn table(&self, id: SequenceId) -> &[BlockId] {
        &self.sequence(id).table
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
