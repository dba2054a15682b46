//! Open-addressing index from a 32-bit hash to a slot. Keys live with the owner, who passes the comparison.
//!
//! Invariant: at most a quarter full, so probes are short and always end; removal shifts back, so there are no tombstones.
//! It starts small and doubles (the hashes are in it, so keys are not read again): a map for a million entries that
//! holds a hundred stays in the cache, and a thousand simulated nodes stay in memory.

use super::words::{high32, low32};

/// hash << 32 | slot + 1; 0 is empty (so a fresh table is untouched zero pages).
#[derive(Clone, Debug)]
pub(super) struct Index {
    entries: Vec<u64>,
    mask: usize,
    used: usize,
}

fn pack(hash: u32, slot: u32) -> u64 {
    u64::from(hash) << 32 | u64::from(slot + 1)
}

/// Entries of a fresh index.
const SMALLEST: usize = 64;

impl Index {
    pub(super) fn new() -> Self {
        Self { entries: vec![0; SMALLEST], mask: SMALLEST - 1, used: 0 }
    }

    /// The slot under `hash` for which `same` holds.
    #[inline]
    pub(super) fn find(&self, hash: u32, same: impl Fn(u32) -> bool) -> Option<u32> {
        let mut at = hash as usize & self.mask;
        loop {
            let entry = self.entries[at];
            if entry == 0 {
                return None;
            }
            if high32(entry) == hash {
                let slot = low32(entry) - 1;
                if same(slot) {
                    return Some(slot);
                }
            }
            at = (at + 1) & self.mask;
        }
    }

    /// Adds a slot whose key is not in the index.
    pub(super) fn insert(&mut self, hash: u32, slot: u32) {
        if (self.used + 1) * 4 > self.entries.len() {
            self.double();
        }
        self.used += 1;
        self.place(pack(hash, slot));
    }

    fn place(&mut self, entry: u64) {
        let mut at = high32(entry) as usize & self.mask;
        while self.entries[at] != 0 {
            at = (at + 1) & self.mask;
        }
        self.entries[at] = entry;
    }

    fn double(&mut self) {
        let size = self.entries.len() * 2;
        let old = std::mem::replace(&mut self.entries, vec![0; size]);
        self.mask = size - 1;
        for entry in old.into_iter().filter(|entry| *entry != 0) {
            self.place(entry);
        }
    }

    /// Where `slot` is.
    fn position(&self, hash: u32, slot: u32) -> Option<usize> {
        let wanted = pack(hash, slot);
        let mut at = hash as usize & self.mask;
        loop {
            match self.entries[at] {
                0 => return None,
                entry if entry == wanted => return Some(at),
                _ => at = (at + 1) & self.mask,
            }
        }
    }

    /// The same key is now in another slot.
    pub(super) fn replace(&mut self, hash: u32, old: u32, new: u32) {
        if let Some(at) = self.position(hash, old) {
            self.entries[at] = pack(hash, new);
        }
    }

    /// Takes a slot out.
    pub(super) fn remove(&mut self, hash: u32, slot: u32) {
        let Some(mut hole) = self.position(hash, slot) else {
            return;
        };
        let mut at = hole;
        loop {
            at = (at + 1) & self.mask;
            let entry = self.entries[at];
            if entry == 0 {
                break;
            }
            let home = high32(entry) as usize & self.mask;
            // The entry may move into the hole unless its home lies behind the hole (cyclically in (hole, at]).
            if at.wrapping_sub(home) & self.mask >= at.wrapping_sub(hole) & self.mask {
                self.entries[hole] = entry;
                hole = at;
            }
        }
        self.entries[hole] = 0;
        self.used -= 1;
    }

    /// Empties it.
    pub(super) fn clear(&mut self) {
        *self = Self::new();
    }
}
