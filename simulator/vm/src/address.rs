//! Addresses of the checked engine: 11 bits region, 27 bits slot, 25 bits offset.
//!
//! A slot is one map value, one stack frame, one generation of the packet. Offsets are biased by half their range, so a
//! pointer that runs below its object stays in its slot and is reported as that object's. No host address is in there:
//! traces are the same on every machine.

const REGION_SHIFT: u32 = 52;
const SLOT_SHIFT: u32 = 25;
const SLOT_MASK: u64 = (1 << 27) - 1;
const OFFSET_MASK: u64 = (1 << SLOT_SHIFT) - 1;
/// Offset 0 of every object.
const BIAS: u32 = 1 << 24;

/// Objects are smaller than this.
pub(crate) const MAX_OFFSET: u32 = BIAS;

/// Maps have at most this many entries: with the spare slots of the map layer they fit the slot field.
pub(crate) const MAX_ENTRIES: u32 = 1 << 25;

/// Slots beyond have no address.
pub(crate) const MAX_SLOTS: u32 = 1 << 27;

/// Maps and read-only sections together: they fit the region field, below that of handles.
pub(crate) const MAX_OBJECTS: usize = 2000;

/// The context.
pub(crate) const CONTEXT: usize = 1;
/// The packet; the slot is the generation: helpers that may move the packet count it up.
pub(crate) const PACKET: usize = 2;
/// The stack; the slot is the depth of the frame.
pub(crate) const STACK: usize = 3;
/// The memory of a program without context (instruction-set tests).
pub(crate) const MEMORY: usize = 4;
/// The first of the regions for reserved ring-buffer records.
pub(crate) const RECORDS: usize = 5;
/// Records that may be reserved at once.
pub(crate) const MAX_RECORDS: usize = 8;
/// The first read-only section; maps come after the last.
const SECTIONS: usize = 16;
/// Map handles are in a region that does not exist.
const HANDLE: u64 = 0x7fe;

/// An address.
#[must_use]
pub(crate) const fn tag(region: usize, slot: u32, offset: u32) -> u64 {
    ((region as u64) << REGION_SHIFT)
        | ((slot as u64 & SLOT_MASK) << SLOT_SHIFT)
        | (BIAS.wrapping_add(offset) as u64 & OFFSET_MASK)
}

/// Region, slot and offset of an address. Offsets below 0 come out as huge numbers.
#[must_use]
#[inline]
pub(crate) const fn split(address: u64) -> (usize, u32, u32) {
    (
        (address >> REGION_SHIFT) as usize,
        ((address >> SLOT_SHIFT) & SLOT_MASK) as u32,
        ((address & OFFSET_MASK) as u32).wrapping_sub(BIAS),
    )
}

/// The region of a read-only section.
#[must_use]
pub(crate) const fn rodata_region(section: usize) -> usize {
    SECTIONS + section
}

/// The region of a map.
#[must_use]
pub(crate) const fn map_region(sections: usize, map: usize) -> usize {
    SECTIONS + sections + map
}

/// What programs hold as a map's address.
#[must_use]
pub(crate) const fn handle(map: usize) -> u64 {
    (HANDLE << REGION_SHIFT) | map as u64
}

/// The map of a handle.
#[must_use]
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the low half of a handle is the number")]
pub(crate) const fn map_of_handle(address: u64) -> Option<usize> {
    if address >> REGION_SHIFT == HANDLE { Some(address as u32 as usize) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_and_underflow_stays_in_the_slot() {
        let address = tag(7, 99, 12);
        assert_eq!(split(address), (7, 99, 12));
        assert_eq!(split(address - 13), (7, 99, u32::MAX));
        assert_eq!(map_of_handle(handle(3)), Some(3));
        assert_eq!(map_of_handle(address), None);
    }
}
