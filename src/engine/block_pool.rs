//! Which KV blocks are held, by how many sequences, and which may be taken next.
//!
//! Ids and counts only; the model owns the memory behind them. A block whose last holder leaves keeps its
//! content until it is taken again, so a later request may find it through the prefix cache: free blocks
//! form a queue in order of usefulness, those without cached content first, then the longest unused.

use crate::model::BlockId;

const NONE: BlockId = BlockId::MAX;

#[derive(Debug, Clone, Copy)]
struct Entry {
    holders: u32,
    previous: BlockId,
    next: BlockId,
}

/// Reference counts and the queue of free blocks.
///
/// Invariants: a block is in the queue exactly when nobody holds it; `num_free` is the queue's length.
/// Cost: every call is O(1).
#[derive(Debug)]
pub struct BlockPool {
    entries: Vec<Entry>,
    head: BlockId,
    tail: BlockId,
    num_free: usize,
}

impl BlockPool {
    /// Builds a pool of `num_blocks` free blocks.
    pub fn new(num_blocks: usize) -> Self {
        let mut pool = Self {
            entries: vec![
                Entry {
                    holders: 0,
                    previous: NONE,
                    next: NONE
                };
                num_blocks
            ],
            head: NONE,
            tail: NONE,
            num_free: 0,
        };
        for block in 0..num_blocks {
            pool.push_back(block as BlockId);
        }
        pool
    }

    /// Blocks in all.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the pool has no blocks at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Blocks nobody holds.
    pub fn num_free(&self) -> usize {
        self.num_free
    }

    /// How many sequences hold a block.
    pub fn holders(&self, block: BlockId) -> u32 {
        self.entries[block as usize].holders
    }

    /// Takes the least useful free block, held once; none when all are held.
    pub fn take(&mut self) -> Option<BlockId> {
        let block = self.head;
        if block == NONE {
            return None;
        }
        self.unlink(block);
        self.entries[block as usize].holders = 1;
        Some(block)
    }

    /// Adds a holder to a block found in the prefix cache, free or not.
    pub fn hold(&mut self, block: BlockId) {
        if self.entries[block as usize].holders == 0 {
            self.unlink(block);
        }
        self.entries[block as usize].holders += 1;
    }

    /// Takes one holder away; the last one frees the block.
    ///
    /// `keep_content` says that the block's content may be found again: it then waits at the far end of the
    /// queue, else at the near one.
    ///
    /// Panics: when nobody holds the block.
    pub fn release(&mut self, block: BlockId, keep_content: bool) {
        let entry = &mut self.entries[block as usize];
        assert!(entry.holders > 0, "block {block} is released but not held");
        entry.holders -= 1;
        if entry.holders == 0 {
            if keep_content {
                self.push_back(block);
            } else {
                self.push_front(block);
            }
        }
    }

    fn push_back(&mut self, block: BlockId) {
        self.entries[block as usize].previous = self.tail;
        self.entries[block as usize].next = NONE;
        match self.tail {
            NONE => self.head = block,
            tail => self.entries[tail as usize].next = block,
        }
        self.tail = block;
        self.num_free += 1;
    }

    fn push_front(&mut self, block: BlockId) {
        self.entries[block as usize].previous = NONE;
        self.entries[block as usize].next = self.head;
        match self.head {
            NONE => self.tail = block,
            head => self.entries[head as usize].previous = block,
        }
        self.head = block;
        self.num_free += 1;
    }

    fn unlink(&mut self, block: BlockId) {
        let Entry { previous, next, .. } = self.entries[block as usize];
        match previous {
            NONE => self.head = next,
            previous => self.entries[previous as usize].next = next,
        }
        match next {
            NONE => self.tail = previous,
            next => self.entries[next as usize].previous = previous,
        }
        self.num_free -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_without_content_are_taken_first_then_the_longest_unused() {
        let mut pool = BlockPool::new(3);
        let taken: Vec<_> = (0..3).map(|_| pool.take().expect("a free block")).collect();
        assert_eq!(taken, [0, 1, 2]);
        assert_eq!(pool.take(), None);
        pool.release(1, true);
        pool.release(0, true);
        pool.release(2, false);
        assert_eq!(pool.num_free(), 3);
        assert_eq!(
            [pool.take(), pool.take(), pool.take()],
            [Some(2), Some(1), Some(0)]
        );
    }

    #[test]
    fn a_free_block_can_be_held_again_from_the_middle_of_the_queue() {
        let mut pool = BlockPool::new(3);
        pool.hold(1);
        pool.hold(1);
        assert_eq!((pool.holders(1), pool.num_free()), (2, 2));
        assert_eq!(
            [pool.take(), pool.take(), pool.take()],
            [Some(0), Some(2), None]
        );
        pool.release(1, true);
        assert_eq!(pool.num_free(), 0);
        pool.release(1, true);
        assert_eq!(pool.take(), Some(1));
    }
}
