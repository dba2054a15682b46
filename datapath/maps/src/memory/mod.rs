//! Maps in plain memory with the kernel's semantics.
//!
//! Values of one map live in one slab that is allocated once (zero pages until touched) and never moves or grows, so
//! an engine may hand addresses into it to a program. Layout: CPU by CPU, slot by slot, `value_stride` bytes each.
//!
//! Invariant: updating an existing hash or LPM key moves it to a new slot, as the kernel does, and a slot that left
//! the map keeps its bytes until [`MemoryMap::end_run`]; a program that still holds a pointer reads stale but valid
//! memory, and [`MemoryMap::is_live`] tells so.

mod hash;
mod index;
mod lpm;
mod ring;
mod set;
mod slots;
mod words;

use hash::HashKeys;
use lpm::LpmKeys;
use ring::Ring;
use zerocopy::IntoBytes;

pub use ring::RingSlot;
pub use set::MemoryMaps;

use crate::errno::Errno;
use crate::spec::{MapKind, MapSpec, UpdateMode};
use crate::store::{Entry, MapError};

/// Largest slab of one map: a specification beyond it is refused, not attempted.
const MAX_SLAB: usize = 1 << 36;

/// How full a map is and what it turned away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapStats {
    /// Live entries (arrays: all indices; program arrays: filled ones; ring buffers: 0).
    pub entries: u64,
    /// Entries an LRU hash pushed out since the start.
    pub evicted: u64,
    /// Ring buffer reservations refused since the start.
    pub lost: u64,
}

#[derive(Clone, Debug)]
enum Body {
    Hash(HashKeys),
    Lpm(LpmKeys),
    Array,
    Programs(Vec<bool>),
    Ring(Ring),
}

/// One map.
#[derive(Clone, Debug)]
pub struct MemoryMap {
    spec: MapSpec,
    cpus: u32,
    /// Values a CPU has in the slab.
    slots: u32,
    stride: usize,
    values: Vec<u64>,
    body: Body,
}

/// What an update writes.
enum Source<'v> {
    /// One CPU's value; a new per-CPU element is zero on the others.
    Cpu(u32, &'v [u8]),
    /// As bpf(2) passes it: all CPUs' values, each rounded up to 8.
    All(&'v [u8]),
}

impl MemoryMap {
    /// An empty map; arrays are all zero. `cpus` matters to per-CPU kinds only, at least 1.
    ///
    /// # Errors
    /// [`MapError::Spec`] for what the kernel would refuse.
    pub fn new(spec: MapSpec, cpus: u32) -> Result<Self, MapError> {
        spec.check()?;
        let cpus = if spec.kind.is_per_cpu() { cpus.max(1) } else { 1 };
        let (key, max) = (spec.key_size, spec.max_entries);
        let body = match spec.kind {
            MapKind::Hash => Body::Hash(HashKeys::new(key, max, false, false)),
            MapKind::LruHash => Body::Hash(HashKeys::new(key, max, true, false)),
            MapKind::PerCpuHash => Body::Hash(HashKeys::new(key, max, false, true)),
            MapKind::LpmTrie => Body::Lpm(LpmKeys::new(key, max)),
            MapKind::Array | MapKind::PerCpuArray => Body::Array,
            MapKind::ProgArray => Body::Programs(vec![false; max as usize]),
            MapKind::RingBuf => Body::Ring(Ring::new(max)),
        };
        let stride = (spec.value_size as usize).next_multiple_of(8);
        let (slots, bytes) = match &body {
            Body::Hash(keys) => (keys.slots.capacity(), None),
            Body::Lpm(keys) => (keys.slots.capacity(), None),
            Body::Array | Body::Programs(_) => (max, None),
            // See `ring`: twice, so that no record wraps.
            Body::Ring(_) => (0, Some(max as usize * 2)),
        };
        let bytes = bytes
            .or_else(|| stride.checked_mul(slots as usize)?.checked_mul(cpus as usize))
            .filter(|bytes| *bytes <= MAX_SLAB)
            .ok_or_else(|| MapError::Spec { map: spec.name.clone(), rule: "the values must fit into 64 GiB" })?;
        Ok(Self { cpus, slots, stride, values: vec![0; bytes / 8], body, spec })
    }

    /// Its definition.
    #[must_use]
    pub fn spec(&self) -> &MapSpec {
        &self.spec
    }

    /// CPUs with a value of their own: 1 unless the kind is per-CPU.
    #[must_use]
    pub fn cpus(&self) -> u32 {
        self.cpus
    }

    /// Slots per CPU in the slab (more than `max_entries` for hashes and tries, 0 for ring buffers).
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// The slab. Its base is 8-byte aligned and stays where it is as long as the map exists.
    #[must_use]
    pub fn values(&self) -> &[u8] {
        self.values.as_bytes()
    }

    /// The slab.
    #[must_use]
    pub fn values_mut(&mut self) -> &mut [u8] {
        self.values.as_mut_bytes()
    }

    /// Bytes between the values of neighbouring slots: `value_size` rounded up to 8.
    #[must_use]
    pub fn value_stride(&self) -> usize {
        self.stride
    }

    /// Offset in the slab of a slot's value on one CPU (other than per-CPU kinds: the CPU is ignored).
    #[must_use]
    #[inline]
    pub fn value_offset(&self, slot: u32, cpu: u32) -> usize {
        let cpu = if self.cpus == 1 { 0 } else { cpu as usize };
        (cpu * self.slots as usize + slot as usize) * self.stride
    }

    /// Range in the slab of a slot's value on one CPU.
    #[must_use]
    #[inline]
    pub fn value_range(&self, slot: u32, cpu: u32) -> std::ops::Range<usize> {
        let at = self.value_offset(slot, cpu);
        at..at + self.spec.value_size as usize
    }

    /// The slot and CPU that own a byte of the slab; `None` for ring buffers and beyond the end.
    #[must_use]
    pub fn owner_of(&self, offset: usize) -> Option<(u32, u32)> {
        let number = u32::try_from(offset.checked_div(self.stride)?).ok()?;
        let cpu = number.checked_div(self.slots)?;
        (cpu < self.cpus).then(|| (number % self.slots, cpu))
    }

    /// Whether the slot holds an entry: false for never used, deleted, replaced (quarantined).
    #[must_use]
    #[inline]
    pub fn is_live(&self, slot: u32) -> bool {
        match &self.body {
            Body::Hash(keys) => keys.slots.is_live(slot),
            Body::Lpm(keys) => keys.slots.is_live(slot),
            Body::Array => slot < self.slots,
            Body::Programs(filled) => filled.get(slot as usize).copied().unwrap_or(false),
            Body::Ring(_) => false,
        }
    }

    /// Call between program runs: from here on slots that left the map may be used again.
    #[inline]
    pub fn end_run(&mut self) {
        match &mut self.body {
            Body::Hash(keys) => keys.slots.end_run(),
            Body::Lpm(keys) => keys.slots.end_run(),
            Body::Array | Body::Programs(_) | Body::Ring(_) => {}
        }
    }

    #[inline]
    fn array_index(&self, key: &[u8]) -> Option<u32> {
        let index = u32::from_ne_bytes(key.try_into().ok()?);
        (index < self.spec.max_entries).then_some(index)
    }

    /// The slot of the entry a program's lookup would return (longest match in a trie). An LRU hash notices the use.
    /// `None` for a key of the wrong size, and always for ring buffers.
    #[inline]
    pub fn find(&mut self, key: &[u8]) -> Option<u32> {
        if key.len() != self.spec.key_size as usize {
            return None;
        }
        match &mut self.body {
            Body::Hash(keys) => keys.find(key),
            Body::Lpm(keys) => keys.find(key),
            Body::Array => self.array_index(key),
            Body::Programs(_) => self.array_index(key).filter(|index| self.is_live(*index)),
            Body::Ring(_) => None,
        }
    }

    /// As bpf(2) looks: without touching the LRU.
    fn peek(&self, key: &[u8]) -> Option<u32> {
        if key.len() != self.spec.key_size as usize {
            return None;
        }
        match &self.body {
            Body::Hash(keys) => keys.peek(key),
            Body::Lpm(keys) => keys.find(key),
            Body::Array => self.array_index(key),
            Body::Programs(_) => self.array_index(key).filter(|index| self.is_live(*index)),
            Body::Ring(_) => None,
        }
    }

    /// A program's update on one CPU: the other CPUs' values of a per-CPU map stay, or are zero in a new entry.
    /// Returns the slot.
    ///
    /// # Errors
    /// What the helper returns: E2BIG (hash full, index beyond the array), ENOSPC (trie full), EEXIST, ENOENT by
    /// `mode`, EINVAL (sizes, prefix length). An LRU hash is never full. Programs cannot write program arrays or,
    /// through updates, ring buffers: EOPNOTSUPP.
    pub fn insert(&mut self, key: &[u8], value: &[u8], mode: UpdateMode, cpu: u32) -> Result<u32, Errno> {
        if matches!(self.spec.kind, MapKind::ProgArray) {
            return Err(Errno::Opnotsupp);
        }
        self.update(key, mode, &Source::Cpu(cpu, value))
    }

    fn update(&mut self, key: &[u8], mode: UpdateMode, source: &Source<'_>) -> Result<u32, Errno> {
        let right_size = match source {
            Source::Cpu(cpu, value) => {
                value.len() == self.spec.value_size as usize && (*cpu < self.cpus || self.cpus == 1)
            }
            Source::All(value) => value.len() == self.spec.user_value_size(self.cpus),
        };
        if matches!(self.body, Body::Ring(_)) {
            return Err(Errno::Opnotsupp);
        }
        if key.len() != self.spec.key_size as usize || !right_size {
            return Err(Errno::Inval);
        }
        let index = self.array_index(key);
        let (slot, created) = match &mut self.body {
            Body::Hash(keys) => {
                let placed = keys.insert(key, mode)?;
                (placed.slot, placed.created)
            }
            Body::Lpm(keys) => {
                let placed = keys.insert(key, mode)?;
                (placed.slot, placed.created)
            }
            Body::Array => {
                let slot = index.ok_or(Errno::E2big)?;
                if mode == UpdateMode::NoExist {
                    return Err(Errno::Exist);
                }
                (slot, false)
            }
            Body::Programs(filled) => {
                if mode != UpdateMode::Any {
                    return Err(Errno::Inval);
                }
                let slot = index.ok_or(Errno::E2big)?;
                filled[slot as usize] = true;
                (slot, false)
            }
            Body::Ring(_) => return Err(Errno::Opnotsupp),
        };
        self.write(slot, created, source);
        Ok(slot)
    }

    fn write(&mut self, slot: u32, created: bool, source: &Source<'_>) {
        match source {
            Source::Cpu(cpu, value) => {
                if created && self.cpus > 1 {
                    for other in (0..self.cpus).filter(|other| other != cpu) {
                        let range = self.value_range(slot, other);
                        self.values.as_mut_bytes()[range].fill(0);
                    }
                }
                let range = self.value_range(slot, *cpu);
                self.values.as_mut_bytes()[range].copy_from_slice(value);
            }
            Source::All(value) => {
                let step = if self.spec.kind.is_per_cpu() { self.stride } else { self.spec.value_size as usize };
                for (cpu, value) in (0..self.cpus).zip(value.chunks_exact(step)) {
                    let range = self.value_range(slot, cpu);
                    let value = &value[..range.len()];
                    self.values.as_mut_bytes()[range].copy_from_slice(value);
                }
            }
        }
    }

    /// A program's or user space's deletion.
    ///
    /// # Errors
    /// ENOENT when the key is not there; EINVAL for arrays, wrong sizes and prefix lengths; E2BIG beyond a program
    /// array; EOPNOTSUPP for ring buffers.
    pub fn remove(&mut self, key: &[u8]) -> Result<(), Errno> {
        let index = self.array_index(key);
        match &mut self.body {
            Body::Ring(_) => return Err(Errno::Opnotsupp),
            Body::Hash(_) | Body::Lpm(_) | Body::Array | Body::Programs(_)
                if key.len() != self.spec.key_size as usize =>
            {
                return Err(Errno::Inval);
            }
            Body::Hash(keys) => keys.remove(key)?,
            Body::Lpm(keys) => keys.remove(key)?,
            Body::Array => return Err(Errno::Inval),
            Body::Programs(filled) => {
                let slot = index.ok_or(Errno::E2big)?;
                let was = std::mem::replace(&mut filled[slot as usize], false);
                if !was {
                    return Err(Errno::Noent);
                }
            }
        }
        Ok(())
    }

    /// The value as bpf(2) returns it: per-CPU kinds give all CPUs' values, each rounded up to 8. Tries give the
    /// longest match.
    #[must_use]
    pub fn get_bytes(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.peek(key).map(|slot| self.read(slot))
    }

    fn read(&self, slot: u32) -> Vec<u8> {
        if self.spec.kind.is_per_cpu() {
            (0..self.cpus)
                .flat_map(|cpu| {
                    let at = self.value_offset(slot, cpu);
                    &self.values()[at..at + self.stride]
                })
                .copied()
                .collect()
        } else {
            self.values()[self.value_range(slot, 0)].to_vec()
        }
    }

    /// User space's update, value as [`Self::get_bytes`] gives it.
    ///
    /// # Errors
    /// As [`Self::insert`]; a program array takes only [`UpdateMode::Any`] (EINVAL).
    pub fn set_bytes(&mut self, key: &[u8], value: &[u8], mode: UpdateMode) -> Result<(), Errno> {
        self.update(key, mode, &Source::All(value)).map(|_| ())
    }

    /// All entries, sorted by key bytes (arrays: by index, all of them; ring buffers: none).
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = match &self.body {
            Body::Hash(keys) => keys.slots.iter().map(|slot| (keys.key(slot), self.read(slot))).collect(),
            Body::Lpm(keys) => keys.slots.iter().map(|slot| (keys.key(slot), self.read(slot))).collect(),
            Body::Array | Body::Programs(_) => {
                return (0..self.spec.max_entries)
                    .filter(|slot| self.is_live(*slot))
                    .map(|slot| (slot.to_ne_bytes().to_vec(), self.read(slot)))
                    .collect();
            }
            Body::Ring(_) => Vec::new(),
        };
        entries.sort_unstable();
        entries
    }

    /// How full it is.
    #[must_use]
    pub fn stats(&self) -> MapStats {
        match &self.body {
            Body::Hash(keys) => MapStats { entries: keys.slots.live().into(), evicted: keys.evicted(), lost: 0 },
            Body::Lpm(keys) => MapStats { entries: keys.slots.live().into(), ..MapStats::default() },
            Body::Array => MapStats { entries: self.slots.into(), ..MapStats::default() },
            Body::Programs(filled) => {
                MapStats { entries: filled.iter().map(|filled| u64::from(*filled)).sum(), ..MapStats::default() }
            }
            Body::Ring(ring) => MapStats { lost: ring.lost(), ..MapStats::default() },
        }
    }

    /// Empties it: arrays become zero, everything else has no entries. The slab stays where it is.
    pub fn clear(&mut self) {
        match &mut self.body {
            Body::Hash(keys) => keys.clear(),
            Body::Lpm(keys) => keys.clear(),
            Body::Array => self.values.fill(0),
            Body::Programs(filled) => filled.fill(false),
            Body::Ring(ring) => ring.clear(),
        }
    }

    /// Room for a record of `size` bytes; `None` when it does not fit, or for another kind.
    pub fn ring_reserve(&mut self, size: u32) -> Option<RingSlot> {
        match &mut self.body {
            Body::Ring(ring) => ring.reserve(size),
            Body::Hash(_) | Body::Lpm(_) | Body::Array | Body::Programs(_) => None,
        }
    }

    /// The record that is reserved at this offset and not yet submitted or discarded.
    #[must_use]
    pub fn ring_reserved_at(&self, offset: usize) -> Option<RingSlot> {
        match &self.body {
            Body::Ring(ring) => ring.reserved_at(offset),
            Body::Hash(_) | Body::Lpm(_) | Body::Array | Body::Programs(_) => None,
        }
    }

    /// The record reserved at `offset` is complete.
    pub fn ring_submit(&mut self, offset: usize) {
        if let Body::Ring(ring) = &mut self.body {
            ring.submit(offset);
        }
    }

    /// The record reserved at `offset` will not be delivered.
    pub fn ring_discard(&mut self, offset: usize) {
        if let Body::Ring(ring) = &mut self.body {
            ring.discard(offset);
        }
    }

    /// Submitted records in order of reservation, up to the first that is still reserved; frees their space.
    pub fn ring_drain(&mut self) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        if let Body::Ring(ring) = &mut self.body {
            let values = self.values.as_bytes();
            ring.drain(|slot| records.push(values[slot.offset..slot.offset + slot.len].to_vec()));
        }
        records
    }

    /// Reservations refused since the start.
    #[must_use]
    pub fn ring_lost(&self) -> u64 {
        self.stats().lost
    }
}
