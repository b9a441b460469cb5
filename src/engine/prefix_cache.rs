//! Finds blocks already filled with a given beginning.
//!
//! A full block is named by the hash of its tokens, of the block before it, and of the tenant at the root:
//! equal names mean equal keys and values, and no tenant can tell from timing what another has asked. The
//! hash is SHA-256, so a caller cannot make two beginnings collide and read another's text.

use std::collections::HashMap;

use sha2::{Digest, Sha256};

use crate::generation::{Tenant, TokenId};
use crate::model::BlockId;

/// The name of a full block and all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockHash([u8; 32]);

impl BlockHash {
    /// The name of the empty beginning of one tenant.
    pub fn root(tenant: &Tenant) -> Self {
        Self(Sha256::digest(tenant.0.as_bytes()).into())
    }

    /// The name of this beginning followed by one more full block.
    pub fn extend(&self, tokens: &[TokenId]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(self.0);
        for token in tokens {
            hasher.update(token.0.to_le_bytes());
        }
        Self(hasher.finalize().into())
    }
}

/// Names of the blocks whose content can be used again.
///
/// Invariants: at most one block bears a name, and a block bears at most one name.
#[derive(Debug)]
pub struct PrefixCache {
    by_hash: HashMap<BlockHash, BlockId>,
    by_block: Vec<Option<BlockHash>>,
}

impl PrefixCache {
    /// Builds an empty cache over `num_blocks` blocks.
    pub fn new(num_blocks: usize) -> Self {
        Self {
            by_hash: HashMap::with_capacity(num_blocks),
            by_block: vec![None; num_blocks],
        }
    }

    /// Finds the block of a name.
    pub fn find(&self, hash: &BlockHash) -> Option<BlockId> {
        self.by_hash.get(hash).copied()
    }

    /// Whether a block's content can be found.
    pub fn holds(&self, block: BlockId) -> bool {
        self.by_block[block as usize].is_some()
    }

    /// Names a freshly filled block, unless another block of the same content bears the name already.
    pub fn insert(&mut self, hash: BlockHash, block: BlockId) {
        if !self.by_hash.contains_key(&hash) && self.by_block[block as usize].is_none() {
            self.by_hash.insert(hash, block);
            self.by_block[block as usize] = Some(hash);
        }
    }

    /// Forgets a block whose content is about to be overwritten.
    pub fn forget(&mut self, block: BlockId) {
        if let Some(hash) = self.by_block[block as usize].take() {
            self.by_hash.remove(&hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(ids: [u32; 3]) -> Vec<TokenId> {
        ids.into_iter().map(TokenId).collect()
    }

    #[test]
    fn names_depend_on_tenant_parent_and_tokens() {
        let root = BlockHash::root(&Tenant::anonymous());
        let other = BlockHash::root(&Tenant("other".into()));
        let a = root.extend(&tokens([1, 2, 3]));
        assert_eq!(a, root.extend(&tokens([1, 2, 3])));
        assert_ne!(a, other.extend(&tokens([1, 2, 3])));
        assert_ne!(a, root.extend(&tokens([1, 2, 4])));
        assert_ne!(a.extend(&tokens([1, 2, 3])), a);
    }

    #[test]
    fn the_first_block_keeps_its_name_until_forgotten() {
        let mut cache = PrefixCache::new(2);
        let hash = BlockHash::root(&Tenant::anonymous());
        cache.insert(hash, 0);
        cache.insert(hash, 1);
        assert_eq!(cache.find(&hash), Some(0));
        assert!(cache.holds(0) && !cache.holds(1));
        cache.forget(0);
        assert_eq!(cache.find(&hash), None);
        cache.insert(hash, 1);
        assert_eq!(cache.find(&hash), Some(1));
    }
}
