//! Hash and LRU hash: keys and their order. Semantics: `kernel/bpf/hashtab.c`.

use super::index::Index;
use super::slots::Slots;
use super::words::{hash, words_le};
use crate::errno::Errno;
use crate::spec::UpdateMode;

/// What an update did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    /// Where the value belongs.
    pub(super) slot: u32,
    /// Whether the key is new in the map.
    pub(super) created: bool,
}

/// Doubly linked list over slots, most recently used first. Numbers are slot + 1; 0 ends.
#[derive(Clone, Debug)]
struct Recency {
    newer: Vec<u32>,
    older: Vec<u32>,
    newest: u32,
    oldest: u32,
}

impl Recency {
    fn new(slots: u32) -> Self {
        Self { newer: vec![0; slots as usize + 1], older: vec![0; slots as usize + 1], newest: 0, oldest: 0 }
    }

    fn push(&mut self, slot: u32) {
        let node = slot + 1;
        self.older[node as usize] = self.newest;
        self.newer[node as usize] = 0;
        if self.newest == 0 {
            self.oldest = node;
        } else {
            self.newer[self.newest as usize] = node;
        }
        self.newest = node;
    }

    fn unlink(&mut self, slot: u32) {
        let node = slot as usize + 1;
        let (newer, older) = (self.newer[node], self.older[node]);
        if newer == 0 {
            self.newest = older;
        } else {
            self.older[newer as usize] = older;
        }
        if older == 0 {
            self.oldest = newer;
        } else {
            self.newer[older as usize] = newer;
        }
    }

    #[inline]
    fn touch(&mut self, slot: u32) {
        if self.newest != slot + 1 {
            self.unlink(slot);
            self.push(slot);
        }
    }

    fn oldest(&self) -> Option<u32> {
        self.oldest.checked_sub(1)
    }
}

/// Keys of a hash, an LRU hash or a per-CPU hash.
#[derive(Clone, Debug)]
pub(super) struct HashKeys {
    pub(super) slots: Slots,
    index: Index,
    /// `words` per slot, zero-padded.
    keys: Vec<u64>,
    words: usize,
    key_size: usize,
    max_entries: u32,
    recency: Option<Recency>,
    /// Per-CPU hashes write an existing element in place; the others take a new one.
    in_place: bool,
    evicted: u64,
}

impl HashKeys {
    pub(super) fn new(key_size: u32, max_entries: u32, lru: bool, in_place: bool) -> Self {
        let slots = Slots::new(max_entries);
        let capacity = slots.capacity();
        let words = (key_size as usize).div_ceil(8);
        Self {
            index: Index::new(),
            keys: vec![0; words * capacity as usize],
            words,
            key_size: key_size as usize,
            max_entries,
            recency: lru.then(|| Recency::new(capacity)),
            in_place,
            evicted: 0,
            slots,
        }
    }

    #[inline]
    fn same(&self, slot: u32, key: &[u8]) -> bool {
        let at = slot as usize * self.words;
        let stored = &self.keys[at..at + self.words];
        stored.iter().zip(words_le(key)).all(|(a, b)| *a == b)
    }

    #[inline]
    fn locate(&self, key: &[u8]) -> (u32, Option<u32>) {
        let hash = hash(key);
        (hash, self.index.find(hash, |slot| self.same(slot, key)))
    }

    /// As bpf(2) looks: the LRU does not notice.
    #[inline]
    pub(super) fn peek(&self, key: &[u8]) -> Option<u32> {
        self.locate(key).1
    }

    /// As a program looks.
    #[inline]
    pub(super) fn find(&mut self, key: &[u8]) -> Option<u32> {
        let slot = self.locate(key).1?;
        if let Some(recency) = &mut self.recency {
            recency.touch(slot);
        }
        Some(slot)
    }

    pub(super) fn insert(&mut self, key: &[u8], mode: UpdateMode) -> Result<Placed, Errno> {
        let (hash, found) = self.locate(key);
        match (found, mode) {
            (Some(_), UpdateMode::NoExist) => Err(Errno::Exist),
            (None, UpdateMode::Exist) => Err(Errno::Noent),
            (Some(slot), UpdateMode::Any | UpdateMode::Exist) => {
                let to = if self.in_place {
                    slot
                } else {
                    // Room first: the old one must not be what is handed out.
                    let to = self.slots.take().ok_or(Errno::Nomem)?;
                    self.slots.quarantine(slot);
                    self.index.replace(hash, slot, to);
                    self.write_key(to, key);
                    if let Some(recency) = &mut self.recency {
                        recency.unlink(slot);
                        recency.push(to);
                    }
                    to
                };
                Ok(Placed { slot: to, created: false })
            }
            (None, UpdateMode::Any | UpdateMode::NoExist) => {
                if self.slots.live() >= self.max_entries {
                    let oldest = self.recency.as_ref().and_then(Recency::oldest);
                    let victim = oldest.ok_or(Errno::E2big)?;
                    self.evicted += 1;
                    self.remove_slot(victim);
                }
                let slot = self.slots.take().ok_or(Errno::Nomem)?;
                self.write_key(slot, key);
                self.index.insert(hash, slot);
                if let Some(recency) = &mut self.recency {
                    recency.push(slot);
                }
                Ok(Placed { slot, created: true })
            }
        }
    }

    fn write_key(&mut self, slot: u32, key: &[u8]) {
        let at = slot as usize * self.words;
        for (word, value) in self.keys[at..at + self.words].iter_mut().zip(words_le(key)) {
            *word = value;
        }
    }

    fn remove_slot(&mut self, slot: u32) {
        let at = slot as usize * self.words;
        let state = self.keys[at..at + self.words].iter().copied().fold(super::words::start(0), super::words::absorb);
        self.index.remove(super::words::finish(state), slot);
        if let Some(recency) = &mut self.recency {
            recency.unlink(slot);
        }
        self.slots.quarantine(slot);
    }

    pub(super) fn remove(&mut self, key: &[u8]) -> Result<(), Errno> {
        let slot = self.peek(key).ok_or(Errno::Noent)?;
        self.remove_slot(slot);
        Ok(())
    }

    pub(super) fn key(&self, slot: u32) -> Vec<u8> {
        let at = slot as usize * self.words;
        let mut key: Vec<u8> = self.keys[at..at + self.words].iter().flat_map(|word| word.to_le_bytes()).collect();
        key.truncate(self.key_size);
        key
    }

    /// Entries the LRU pushed out since the start.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    pub(super) fn clear(&mut self) {
        self.index.clear();
        if self.recency.is_some() {
            self.recency = Some(Recency::new(self.slots.capacity()));
        }
        self.slots.clear();
    }
}
