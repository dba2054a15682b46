//! Helpers that read and write packet bytes and fields (net/core/filter.c).

use datapath_maps::Errno;

use super::{append, context, errno, length, low32, write};
use crate::helper::Helper;
use crate::world::{Memory, Outcome, World};

const BPF_F_RECOMPUTE_CSUM: u64 = 1;
const BPF_F_INVALIDATE_HASH: u64 = 2;
/// Offsets above are refused (`INT_MAX`).
const MAX_OFFSET: u32 = i32::MAX.cast_unsigned();

impl World {
    /// The packet's bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        let start = self.space.at(self.packet.head);
        // SAFETY: head and len are kept within the packet's memory; the borrow of self keeps writers away.
        unsafe { std::slice::from_raw_parts(start, self.packet.len) }
    }

    /// The packet's bytes.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        let start = self.space.at(self.packet.head);
        // SAFETY: as above, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(start, self.packet.len) }
    }

    /// `bpf_try_make_writable`: the first `len` bytes become linear; false if there are not as many.
    pub(super) fn make_writable(&mut self, len: usize) -> bool {
        if len > self.packet.len || self.env.faults.packet_write {
            return false;
        }
        self.packet.linear = self.packet.linear.max(len);
        true
    }

    /// Tells program and context about new bounds.
    pub(super) fn packet_changed<M: Memory>(&mut self, memory: &mut M) {
        self.space.context().len = u32::try_from(self.packet.len).unwrap_or(u32::MAX);
        memory.packet_moved(&mut self.space, self.packet);
    }
}

/// `skb_store_bytes(skb, offset, from, len, flags)`.
pub(super) fn store_bytes<M: Memory>(world: &mut World, memory: &mut M, a: [u64; 5]) -> Outcome {
    let [skb, offset, from, len, flags] = a;
    let helper = Helper::StoreBytes;
    context(memory, helper, skb)?;
    let (offset, len) = (low32(offset), length(helper, len)?);
    world.value.clear();
    append(memory, helper, from, len, &mut world.value)?;
    let code = if flags & !(BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH) != 0 {
        errno(Errno::Inval)
    } else if offset > MAX_OFFSET || !world.make_writable(crate::world::size(offset).saturating_add(len)) {
        errno(Errno::Fault)
    } else {
        let bytes = std::mem::take(&mut world.value);
        let start = crate::world::size(offset);
        if let Some(to) = world.bytes_mut().get_mut(start..start + len) {
            to.copy_from_slice(&bytes);
        }
        world.value = bytes;
        if flags & BPF_F_INVALIDATE_HASH != 0 {
            world.space.context().hash = 0;
        }
        0
    };
    world.packet_changed(memory);
    Ok(code)
}

/// `skb_load_bytes(skb, offset, to, len)`.
pub(super) fn load_bytes<M: Memory>(world: &mut World, memory: &M, [skb, offset, to, len, _]: [u64; 5]) -> Outcome {
    let helper = Helper::LoadBytes;
    context(memory, helper, skb)?;
    let (offset, len) = (low32(offset), length(helper, len)?);
    let start = crate::world::size(offset);
    match world.bytes().get(start..start.saturating_add(len)) {
        Some(bytes) if offset <= MAX_OFFSET => {
            write(memory, helper, to, bytes)?;
            Ok(0)
        }
        _ => {
            // The kernel clears the buffer, so that nothing uninitialised is read.
            world.value.clear();
            world.value.resize(len, 0);
            write(memory, helper, to, &world.value)?;
            Ok(errno(Errno::Fault))
        }
    }
}

/// `skb_pull_data(skb, len)`: 0 stands for what is linear already.
pub(super) fn pull_data<M: Memory>(world: &mut World, memory: &mut M, [skb, len, ..]: [u64; 5]) -> Outcome {
    context(memory, Helper::PullData, skb)?;
    let len = match crate::world::size(low32(len)) {
        0 => world.packet.linear,
        len => len,
    };
    let code = if world.env.faults.packet_memory || len > world.packet.len {
        errno(Errno::Nomem)
    } else {
        world.packet.linear = world.packet.linear.max(len);
        0
    };
    world.packet_changed(memory);
    Ok(code)
}

/// `skb_change_type(skb, type)`: only among host, broadcast, multicast and other host.
pub(super) fn change_type<M: Memory>(world: &mut World, memory: &M, [skb, kind, ..]: [u64; 5]) -> Outcome {
    context(memory, Helper::ChangeType, skb)?;
    let field = &mut world.space.context().pkt_type;
    if *field > 3 || low32(kind) > 3 {
        return Ok(errno(Errno::Inval));
    }
    *field = low32(kind);
    Ok(0)
}

/// `get_hash_recalc`, `set_hash_invalid`, `set_hash`. An unset hash stays 0: the simulator gives every flow its hash.
pub(super) fn hash<M: Memory>(world: &mut World, memory: &M, helper: Helper, [skb, hash, ..]: [u64; 5]) -> Outcome {
    context(memory, helper, skb)?;
    let field = &mut world.space.context().hash;
    if helper == Helper::HashRecalc {
        return Ok(u64::from(*field));
    }
    *field = if helper == Helper::SetHash { low32(hash) } else { 0 };
    Ok(0)
}
