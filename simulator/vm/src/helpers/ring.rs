//! `ringbuf_output`, `ringbuf_reserve`, `ringbuf_submit`, `ringbuf_discard` (kernel/bpf/ringbuf.c).

use datapath_maps::{Errno, MapKind};

use super::{append, errno, fault, length};
use crate::api::FaultKind;
use crate::helper::Helper;
use crate::world::{Memory, Outcome, Record, World};

/// `BPF_RB_NO_WAKEUP` and `BPF_RB_FORCE_WAKEUP`: they change who is woken, not what is delivered.
const WAKEUP_FLAGS: u64 = 3;

fn ring<M: Memory>(world: &World, memory: &M, helper: Helper, handle: u64) -> Result<usize, Box<FaultKind>> {
    match memory.map(handle) {
        Some(map) if world.infos.get(map).is_some_and(|info| info.kind == MapKind::RingBuf) => Ok(map),
        _ => fault(helper, "r1 is no ring buffer"),
    }
}

pub(super) fn output<M: Memory>(world: &mut World, memory: &M, [handle, data, len, flags, _]: [u64; 5]) -> Outcome {
    let map = ring(world, memory, Helper::RingOutput, handle)?;
    let len = length(Helper::RingOutput, len)?;
    world.value.clear();
    append(memory, Helper::RingOutput, data, len, &mut world.value)?;
    if flags & !WAKEUP_FLAGS != 0 {
        return Ok(errno(Errno::Inval));
    }
    let Some(found) = world.maps.get_mut(map) else { return fault(Helper::RingOutput, "no such map") };
    let wanted = if world.env.faults.ring_full { None } else { u32::try_from(len).ok() };
    let Some(slot) = wanted.and_then(|len| found.ring_reserve(len)) else {
        return Ok(errno(Errno::Again));
    };
    if let Some(to) = found.values_mut().get_mut(slot.offset..slot.offset + world.value.len()) {
        to.copy_from_slice(&world.value);
    }
    found.ring_submit(slot.offset);
    Ok(0)
}

pub(super) fn reserve<M: Memory>(world: &mut World, memory: &mut M, [handle, len, flags, ..]: [u64; 5]) -> Outcome {
    let map = ring(world, memory, Helper::RingReserve, handle)?;
    let len = length(Helper::RingReserve, len)?;
    if flags != 0 || world.env.faults.ring_full {
        return Ok(0);
    }
    let Some(found) = world.maps.get_mut(map) else { return fault(Helper::RingReserve, "no such map") };
    let Some(slot) = u32::try_from(len).ok().and_then(|len| found.ring_reserve(len)) else { return Ok(0) };
    let Some(bytes) = found.values_mut().get_mut(slot.offset..slot.offset + len) else {
        return fault(Helper::RingReserve, "record outside of the buffer");
    };
    let Some(address) = memory.record(bytes.as_mut_ptr(), len) else {
        found.ring_discard(slot.offset);
        return fault(Helper::RingReserve, "more than 8 records reserved at once");
    };
    world.records.push(Record { address, map, offset: slot.offset });
    Ok(address)
}

/// Submit or discard.
pub(super) fn close<M: Memory>(world: &mut World, memory: &mut M, helper: Helper, [address, ..]: [u64; 5]) -> Outcome {
    let Some(at) = world.records.iter().position(|record| record.address == address) else {
        return fault(helper, "r1 is no reserved record");
    };
    let record = world.records.swap_remove(at);
    memory.record_closed(address);
    if let Some(map) = world.maps.get_mut(record.map) {
        if helper == Helper::RingSubmit {
            map.ring_submit(record.offset);
        } else {
            map.ring_discard(record.offset);
        }
    }
    Ok(0)
}
