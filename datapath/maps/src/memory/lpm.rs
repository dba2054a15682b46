//! Longest-prefix match: one index for all prefixes, probed once per prefix length in use, longest first.
//! Semantics: `kernel/bpf/lpm_trie.c` (RFC 4632 section 5.1 for what a match is).
//!
//! Cost: one probe per distinct length that is not longer than the query, whatever the number of entries.

use super::index::Index;
use super::slots::Slots;
use super::words::{absorb, finish, load_be, start};
use crate::errno::Errno;
use crate::spec::UpdateMode;

use super::hash::Placed;

/// Words of the longest data the kernel takes (256 bytes).
const MAX_WORDS: usize = 32;

/// Keys of an LPM trie.
#[derive(Clone, Debug)]
pub(super) struct LpmKeys {
    pub(super) slots: Slots,
    index: Index,
    /// Data in network order, bits beyond the prefix cleared; `words` per slot.
    data: Vec<u64>,
    /// Data as it was given: the kernel hands that back.
    given: Vec<u8>,
    lengths: Vec<u32>,
    words: usize,
    data_size: usize,
    max_bits: u32,
    max_entries: u32,
    /// Lengths in use, longest first, with the number of entries of each.
    in_use: Vec<(u32, u32)>,
}

/// The mask that keeps the first `bits` (1 to 63) bits.
#[inline]
fn mask(bits: u32) -> u64 {
    !(u64::MAX >> bits)
}

/// Hash of the first `bits` bits of `data`.
#[inline]
fn hash_prefix(data: &[u64], bits: u32) -> u32 {
    let full = (bits / 64) as usize;
    let mut state = start(bits);
    for word in data.iter().take(full) {
        state = absorb(state, *word);
    }
    if !bits.is_multiple_of(64)
        && let Some(word) = data.get(full)
    {
        state = absorb(state, word & mask(bits % 64));
    }
    finish(state)
}

/// Whether `stored` (cleared beyond `bits`) is the first `bits` bits of `data`.
#[inline]
fn same_prefix(stored: &[u64], data: &[u64], bits: u32) -> bool {
    let full = (bits / 64) as usize;
    let whole = stored.iter().zip(data).take(full).all(|(stored, data)| stored == data);
    whole
        && (bits.is_multiple_of(64)
            || stored.get(full).zip(data.get(full)).is_some_and(|(stored, data)| *stored == data & mask(bits % 64)))
}

impl LpmKeys {
    pub(super) fn new(key_size: u32, max_entries: u32) -> Self {
        let slots = Slots::new(max_entries);
        let capacity = slots.capacity() as usize;
        let data_size = key_size as usize - 4;
        let words = data_size.div_ceil(8);
        Self {
            index: Index::new(),
            data: vec![0; words * capacity],
            given: vec![0; data_size * capacity],
            lengths: vec![0; capacity],
            words,
            data_size,
            max_bits: (key_size - 4) * 8,
            max_entries,
            in_use: Vec::new(),
            slots,
        }
    }

    /// Prefix length and data of a key of the right size.
    #[inline]
    fn split<'k>(&self, key: &'k [u8]) -> Option<(u32, &'k [u8])> {
        let (bits, data) = key.split_first_chunk::<4>()?;
        let bits = u32::from_ne_bytes(*bits);
        (bits <= self.max_bits).then_some((bits, data))
    }

    #[inline]
    fn stored(&self, slot: u32) -> &[u64] {
        let at = slot as usize * self.words;
        &self.data[at..at + self.words]
    }

    #[inline]
    fn exact(&self, data: &[u64], bits: u32) -> (u32, Option<u32>) {
        let hash = hash_prefix(data, bits);
        let slot = self
            .index
            .find(hash, |slot| self.lengths[slot as usize] == bits && same_prefix(self.stored(slot), data, bits));
        (hash, slot)
    }

    #[inline]
    fn longest<const WORDS: usize>(&self, bits: u32, data: &[u8]) -> Option<u32> {
        let mut words = [0; WORDS];
        load_be(data, &mut words);
        self.in_use.iter().filter(|(length, _)| *length <= bits).find_map(|(length, _)| self.exact(&words, *length).1)
    }

    /// The longest prefix that matches the query and is not longer than it.
    #[inline]
    pub(super) fn find(&self, key: &[u8]) -> Option<u32> {
        let (bits, data) = self.split(key)?;
        match self.words {
            1 => self.longest::<1>(bits, data),
            2 => self.longest::<2>(bits, data),
            3 => self.longest::<3>(bits, data),
            _ => self.longest::<MAX_WORDS>(bits, data),
        }
    }

    pub(super) fn insert(&mut self, key: &[u8], mode: UpdateMode) -> Result<Placed, Errno> {
        let (bits, bytes) = self.split(key).ok_or(Errno::Inval)?;
        let mut words = [0; MAX_WORDS];
        load_be(bytes, &mut words);
        let (hash, found) = self.exact(&words, bits);
        let (slot, created) = match (found, mode) {
            (Some(_), UpdateMode::NoExist) => return Err(Errno::Exist),
            (None, UpdateMode::Exist) => return Err(Errno::Noent),
            (Some(old), UpdateMode::Any | UpdateMode::Exist) => {
                let slot = self.slots.take().ok_or(Errno::Nomem)?;
                self.slots.quarantine(old);
                self.index.replace(hash, old, slot);
                (slot, false)
            }
            (None, UpdateMode::Any | UpdateMode::NoExist) => {
                if self.slots.live() >= self.max_entries {
                    return Err(Errno::Nospc);
                }
                let slot = self.slots.take().ok_or(Errno::Nomem)?;
                self.index.insert(hash, slot);
                self.count_up(bits);
                (slot, true)
            }
        };
        let full = (bits / 64) as usize;
        for word in words.iter_mut().skip(full + usize::from(!bits.is_multiple_of(64))) {
            *word = 0;
        }
        if !bits.is_multiple_of(64) {
            words[full] &= mask(bits % 64);
        }
        let at = slot as usize * self.words;
        self.data[at..at + self.words].copy_from_slice(&words[..self.words]);
        let at = slot as usize * self.data_size;
        self.given[at..at + self.data_size].copy_from_slice(bytes);
        self.lengths[slot as usize] = bits;
        Ok(Placed { slot, created })
    }

    fn count_up(&mut self, bits: u32) {
        match self.in_use.binary_search_by(|(length, _)| bits.cmp(length)) {
            Ok(at) => self.in_use[at].1 += 1,
            Err(at) => self.in_use.insert(at, (bits, 1)),
        }
    }

    fn count_down(&mut self, bits: u32) {
        if let Ok(at) = self.in_use.binary_search_by(|(length, _)| bits.cmp(length)) {
            self.in_use[at].1 -= 1;
            if self.in_use[at].1 == 0 {
                self.in_use.remove(at);
            }
        }
    }

    /// The entry with exactly this prefix.
    fn entry(&self, key: &[u8]) -> Result<(u32, u32, u32), Errno> {
        let (bits, bytes) = self.split(key).ok_or(Errno::Inval)?;
        let mut words = [0; MAX_WORDS];
        load_be(bytes, &mut words);
        let (hash, found) = self.exact(&words, bits);
        Ok((bits, hash, found.ok_or(Errno::Noent)?))
    }

    pub(super) fn remove(&mut self, key: &[u8]) -> Result<(), Errno> {
        let (bits, hash, slot) = self.entry(key)?;
        self.index.remove(hash, slot);
        self.count_down(bits);
        self.slots.quarantine(slot);
        Ok(())
    }

    pub(super) fn key(&self, slot: u32) -> Vec<u8> {
        let at = slot as usize * self.data_size;
        let mut key = self.lengths[slot as usize].to_ne_bytes().to_vec();
        key.extend_from_slice(&self.given[at..at + self.data_size]);
        key
    }

    pub(super) fn clear(&mut self) {
        self.index.clear();
        self.slots.clear();
        self.in_use.clear();
    }
}
