//! Ring buffer positions. Semantics: `kernel/bpf/ringbuf.c`: records of 8 bytes of header and the data, rounded up to
//! 8, in the order of reservation; the consumer stops at the first record that is not submitted yet.
//!
//! The kernel maps its pages twice so that a record that wraps is contiguous. Here the slab is twice the size: at
//! most one record of a lap crosses the end, so nothing overlaps.

use std::collections::VecDeque;

/// Bytes of a record's header.
const HEADER: u32 = 8;

/// Room for one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingSlot {
    /// Where its data is in the map's `values()`, in bytes.
    pub offset: usize,
    /// Bytes of data.
    pub len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RecordState {
    Reserved,
    Submitted,
    Discarded,
}

#[derive(Clone, Copy, Debug)]
struct Record {
    slot: RingSlot,
    /// Bytes with header and rounding.
    taken: u32,
    state: RecordState,
}

/// Positions of one ring buffer.
#[derive(Clone, Debug)]
pub(super) struct Ring {
    /// Bytes, a power of two.
    size: u32,
    /// Where the next record begins, below `size`.
    next: u32,
    used: u32,
    records: VecDeque<Record>,
    lost: u64,
}

impl Ring {
    pub(super) fn new(size: u32) -> Self {
        Self { size, next: 0, used: 0, records: VecDeque::new(), lost: 0 }
    }

    pub(super) fn reserve(&mut self, size: u32) -> Option<RingSlot> {
        let slot = self.fit(size);
        if slot.is_none() {
            self.lost += 1;
        }
        slot
    }

    fn fit(&mut self, size: u32) -> Option<RingSlot> {
        if size > u32::MAX / 4 {
            return None;
        }
        let taken = (size + HEADER).next_multiple_of(8);
        // One byte less than the size: full and empty must differ.
        if u64::from(self.used) + u64::from(taken) > u64::from(self.size - 1) {
            return None;
        }
        let slot = RingSlot { offset: (self.next + HEADER) as usize, len: size as usize };
        self.next = (self.next + taken) & (self.size - 1);
        self.used += taken;
        self.records.push_back(Record { slot, taken, state: RecordState::Reserved });
        Some(slot)
    }

    fn settle(&mut self, offset: usize, state: RecordState) {
        let reserved = self
            .records
            .iter_mut()
            .rev()
            .find(|record| record.slot.offset == offset && record.state == RecordState::Reserved);
        if let Some(record) = reserved {
            record.state = state;
        }
    }

    pub(super) fn submit(&mut self, offset: usize) {
        self.settle(offset, RecordState::Submitted);
    }

    pub(super) fn discard(&mut self, offset: usize) {
        self.settle(offset, RecordState::Discarded);
    }

    /// The reserved record at `offset`.
    pub(super) fn reserved_at(&self, offset: usize) -> Option<RingSlot> {
        self.records
            .iter()
            .rev()
            .find(|record| record.slot.offset == offset && record.state == RecordState::Reserved)
            .map(|record| record.slot)
    }

    /// Takes the records a consumer may read, in order.
    pub(super) fn drain(&mut self, mut each: impl FnMut(RingSlot)) {
        while let Some(record) = self.records.front() {
            match record.state {
                RecordState::Reserved => break,
                RecordState::Submitted => each(record.slot),
                RecordState::Discarded => {}
            }
            self.used -= record.taken;
            self.records.pop_front();
        }
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new(self.size);
    }
}
