//! Paged KV blocks: who holds which block, and which prefixes are already computed.
//!
//! A block is *free* (count 0) or *held* (count > 0). A free block keeps its place in the index
//! until it is handed out again, so freeing a sequence is also how its prefix outlives it.
//!
//! Invariants, checked by `check_integrity`:
//! - free + held = all blocks, and a block's count is the number of tables it stands in;
//! - the index maps a key to one full block; a duplicate is simply not indexed.
//!
//! Free blocks are handed out least recently used first, those without a key before all others.
//!
//! This module knows token ids and block ids. It does not know sequences, steps or devices.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use sha2::{Digest, Sha256};

/// One KV block on the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockId(pub(super) u32);

/// Names what a block holds: its tokens and everything before them.
///
/// Half of a SHA-256, because a collision would hand one tenant's cache to another; tenants choose
/// their own tokens, so anything less would be theirs to break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct BlockKey(u128);

impl BlockKey {
    /// The key before the first block: sequences with different roots share nothing.
    ///
    /// `adapter` and `media` are empty until the wire carries them.
    pub(super) fn root(cache_salt: Option<&str>, adapter: &str, media: &[u8]) -> Self {
        let mut hasher = Sha256::new();
        for field in [cache_salt.unwrap_or("").as_bytes(), adapter.as_bytes(), media] {
            hasher.update((field.len() as u64).to_le_bytes());
            hasher.update(field);
        }
        hasher.update([u8::from(cache_salt.is_some())]);
        Self::from_hash(hasher)
    }

    /// The key of the block that holds `tokens` after the block of this key.
    pub(super) fn child(self, tokens: &[u32]) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(self.0.to_le_bytes());
        for token in tokens {
            hasher.update(token.to_le_bytes());
        }
        Self::from_hash(hasher)
    }

    fn from_hash(hasher: Sha256) -> Self {
        let digest = hasher.finalize();
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        Self(u128::from_le_bytes(half))
    }
}

/// A key is a digest already: its low half is as good a hash as any.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("block keys hash as one u128");
    }

    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}

/// Neighbours of a block in the list of free blocks.
#[derive(Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
}

struct Block {
    /// Tables this block stands in.
    count: u32,
    /// Present exactly when the index maps this key to this block.
    key: Option<BlockKey>,
}

/// All blocks of one cache group.
pub(super) struct BlockManager {
    block_size: usize,
    blocks: Vec<Block>,
    /// Tokens of the indexed blocks, `block_size` per block; a hit compares them.
    tokens: Vec<u32>,
    index: HashMap<BlockKey, BlockId, BuildHasherDefault<KeyHasher>>,
    /// The free blocks as a ring, next to be handed out first. The last link is its anchor.
    links: Vec<Link>,
    num_free: usize,
    num_evictions: u64,
}

impl BlockManager {
    /// `num_blocks` free blocks of `block_size` tokens.
    pub(super) fn new(num_blocks: u32, block_size: u32) -> Self {
        let links = (0..=num_blocks)
            .map(|i| Link {
                previous: if i == 0 { num_blocks } else { i - 1 },
                next: if i == num_blocks { 0 } else { i + 1 },
            })
            .collect();
        Self {
            block_size: block_size as usize,
            blocks: (0..num_blocks).map(|_| Block { count: 0, key: None }).collect(),
            tokens: vec![0; num_blocks as usize * block_size as usize],
            index: HashMap::default(),
            links,
            num_free: num_blocks as usize,
            num_evictions: 0,
        }
    }

    pub(super) fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    pub(super) fn num_free(&self) -> usize {
        self.num_free
    }

    /// Blocks that lost what they held to make room, ever.
    pub(super) fn num_evictions(&self) -> u64 {
        self.num_evictions
    }

    pub(super) fn is_free(&self, block: BlockId) -> bool {
        self.blocks[block.0 as usize].count == 0
    }

    /// Hands out the free block that was used least recently, and forgets what it held.
    pub(super) fn allocate(&mut self) -> Option<BlockId> {
        let first = self.links[self.anchor()].next;
        if first as usize == self.anchor() {
            return None;
        }
        let block = BlockId(first);
        if self.unindex(block) {
            self.num_evictions += 1;
        }
        self.hold(block);
        Some(block)
    }

    /// Adds a holder to a block: a hit.
    pub(super) fn hold(&mut self, block: BlockId) {
        let entry = &mut self.blocks[block.0 as usize];
        entry.count += 1;
        if entry.count == 1 {
            let Link { previous, next } = self.links[block.0 as usize];
            self.links[previous as usize].next = next;
            self.links[next as usize].previous = previous;
            self.num_free -= 1;
        }
    }

    /// Takes one holder from each block of a table. The tail is freed first, so that it is handed
    /// out first: the beginnings of texts are what other texts share.
    pub(super) fn free(&mut self, table: &[BlockId]) {
        for &block in table.iter().rev() {
            let entry = &mut self.blocks[block.0 as usize];
            entry.count = entry.count.checked_sub(1).expect("a freed block has a holder");
            if entry.count == 0 {
                let keeps_tokens = entry.key.is_some();
                self.link_free(block, keeps_tokens);
            }
        }
    }

    /// The block that holds exactly `tokens` under `key`, free or held.
    pub(super) fn find(&self, key: BlockKey, tokens: &[u32]) -> Option<BlockId> {
        let block = *self.index.get(&key)?;
        (self.tokens_of(block) == tokens).then_some(block)
    }

    /// Lets later sequences find `block`, unless another block holds the same already.
    pub(super) fn index(&mut self, block: BlockId, key: BlockKey, tokens: &[u32]) {
        if self.index.contains_key(&key) || self.blocks[block.0 as usize].key.is_some() {
            return;
        }
        let start = block.0 as usize * self.block_size;
        self.tokens[start..start + self.block_size].copy_from_slice(tokens);
        self.blocks[block.0 as usize].key = Some(key);
        self.index.insert(key, block);
    }

    /// Nobody finds `block` any more. Returns whether anybody could.
    pub(super) fn unindex(&mut self, block: BlockId) -> bool {
        let Some(key) = self.blocks[block.0 as usize].key.take() else { return false };
        self.index.remove(&key);
        true
    }

    /// Checks everything this module promises, given the tables that hold blocks.
    pub(super) fn check_integrity<'a>(
        &self,
        tables: impl Iterator<Item = &'a [BlockId]>,
    ) -> Result<(), String> {
        let mut counts = vec![0; self.blocks.len()];
        for &block in tables.flatten() {
            counts[block.0 as usize] += 1;
        }
        for (id, (block, count)) in self.blocks.iter().zip(&counts).enumerate() {
            if block.count != *count {
                return Err(format!("block {id} counts {} holders, has {count}", block.count));
            }
            let indexed = block.key.map(|key| self.index.get(&key));
            if indexed.is_some_and(|found| found != Some(&BlockId(id as u32))) {
                return Err(format!("block {id} has a key that leads elsewhere"));
            }
        }
        let num_keys = self.blocks.iter().filter(|block| block.key.is_some()).count();
        if num_keys != self.index.len() {
            return Err(format!("{num_keys} blocks have keys, {} are indexed", self.index.len()));
        }
        self.check_free_list()
    }

    /// The key and tokens of a block that is indexed.
    pub(super) fn indexed_content(&self, block: BlockId) -> Option<(BlockKey, &[u32])> {
        self.blocks[block.0 as usize].key.map(|key| (key, self.tokens_of(block)))
    }

    fn check_free_list(&self) -> Result<(), String> {
        let (mut at, mut seen) = (self.links[self.anchor()].next as usize, 0);
        while at != self.anchor() {
            if self.blocks[at].count > 0 || seen > self.blocks.len() {
                return Err(format!("block {at} is held and free at once"));
            }
            (at, seen) = (self.links[at].next as usize, seen + 1);
        }
        let held = self.blocks.iter().filter(|block| block.count > 0).count();
        if seen != self.num_free || held + seen != self.blocks.len() {
            let (all, counted) = (self.blocks.len(), self.num_free);
            return Err(format!("{held} held, {seen} free (counted {counted}), {all} blocks"));
        }
        Ok(())
    }

    fn tokens_of(&self, block: BlockId) -> &[u32] {
        let start = block.0 as usize * self.block_size;
        &self.tokens[start..start + self.block_size]
    }

    fn anchor(&self) -> usize {
        self.links.len() - 1
    }

    fn link_free(&mut self, block: BlockId, last: bool) {
        let anchor = self.anchor() as u32;
        let Link { previous, next } = self.links[anchor as usize];
        let link =
            if last { Link { previous, next: anchor } } else { Link { previous: anchor, next } };
        self.links[block.0 as usize] = link;
        self.links[link.previous as usize].next = block.0;
        self.links[link.next as usize].previous = block.0;
        self.num_free += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: [u32; 4] = [1, 2, 3, 4];

    fn filled(blocks: &mut BlockManager, parent: BlockKey, tokens: &[u32]) -> (BlockId, BlockKey) {
        let block = blocks.allocate().unwrap();
        let key = parent.child(tokens);
        blocks.index(block, key, tokens);
        (block, key)
    }

    #[test]
    fn keys_depend_on_salt_parent_and_tokens() {
        let root = BlockKey::root(None, "", b"");
        let keys = [
            root,
            BlockKey::root(Some(""), "", b""),
            BlockKey::root(Some("a"), "", b""),
            BlockKey::root(None, "a", b""),
            BlockKey::root(None, "", b"a"),
            root.child(&TOKENS),
            root.child(&[4, 3, 2, 1]),
            root.child(&TOKENS).child(&TOKENS),
        ];
        for (i, a) in keys.iter().enumerate() {
            assert!(keys.iter().skip(i + 1).all(|b| a != b), "key {i} is not unique");
        }
        assert_eq!(root.child(&TOKENS), BlockKey::root(None, "", b"").child(&TOKENS));
    }

    #[test]
    fn a_freed_block_is_found_until_it_is_handed_out() {
        let mut blocks = BlockManager::new(2, 4);
        let (block, key) = filled(&mut blocks, BlockKey::root(None, "", b""), &TOKENS);
        blocks.free(&[block]);
        assert_eq!(blocks.find(key, &TOKENS), Some(block));
        assert_eq!(blocks.find(key, &[1, 2, 3, 5]), None, "a hit compares the tokens");

        assert_ne!(blocks.allocate(), Some(block), "blocks without content go first");
        assert_eq!(blocks.num_evictions(), 0);
        assert_eq!(blocks.allocate(), Some(block));
        assert_eq!((blocks.find(key, &TOKENS), blocks.num_evictions()), (None, 1));
        assert_eq!(blocks.allocate(), None);
    }

    #[test]
    fn the_least_recently_used_goes_first_and_tails_before_heads() {
        let mut blocks = BlockManager::new(4, 4);
        let root = BlockKey::root(None, "", b"");
        let (a0, key) = filled(&mut blocks, root, &TOKENS);
        let (a1, _) = filled(&mut blocks, key, &TOKENS);
        let (b0, key) = filled(&mut blocks, root, &[5, 6, 7, 8]);
        let (b1, _) = filled(&mut blocks, key, &[5, 6, 7, 8]);
        blocks.free(&[b0, b1]);
        blocks.free(&[a0, a1]);
        blocks.hold(b0);
        blocks.free(&[b0]);
        let order: Vec<_> = std::iter::from_fn(|| blocks.allocate()).collect();
        assert_eq!(order, [b1, a1, a0, b0]);
    }

    #[test]
    fn a_duplicate_is_not_indexed_and_leaves_the_first_findable() {
        let mut blocks = BlockManager::new(2, 4);
        let root = BlockKey::root(None, "", b"");
        let (first, key) = filled(&mut blocks, root, &TOKENS);
        let (second, _) = filled(&mut blocks, root, &TOKENS);
        assert!(!blocks.unindex(second));
        assert_eq!(blocks.find(key, &TOKENS), Some(first));
        blocks.check_integrity([&[first, second][..]].into_iter()).unwrap();
    }

    #[test]
    fn integrity_notices_a_holder_that_is_not_counted() {
        let mut blocks = BlockManager::new(2, 4);
        let block = blocks.allocate().unwrap();
        assert!(blocks.check_integrity(std::iter::empty()).is_err());
        assert!(blocks.check_integrity([&[block, block][..]].into_iter()).is_err());
        assert_eq!(blocks.check_integrity([&[block][..]].into_iter()), Ok(()));
    }
}
