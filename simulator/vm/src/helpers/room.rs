//! Helpers that change the packet's length (net/core/filter.c: `bpf_skb_change_tail`, `bpf_skb_change_head`,
//! `bpf_skb_adjust_room`). New bytes are zero.

use datapath_maps::Errno;

use super::{context, errno, fault, low32, negative};
use crate::helper::Helper;
use crate::space::Packet;
use crate::world::{MIN_FRAME, Memory, Outcome, World};

/// `BPF_SKB_MAX_LEN`: four pages less `struct skb_shared_info`. No helper makes a packet longer, except GSO packets.
const MAX_LEN: usize = 16 * 1024 - 320;
/// Kernel-internal "not supported".
const ENOTSUPP: i64 = 524;

const ADJ_ROOM_NET: u32 = 0;
const ADJ_ROOM_MAC: u32 = 1;
const ADJ_ROOM_FIXED_GSO: u64 = 1;
const ADJ_ROOM_NO_CSUM_RESET: u64 = 1 << 5;

impl World {
    /// Opens `len` zero bytes in front of offset `at` by moving what is before it down. False: no headroom.
    fn push(&mut self, at: usize, len: usize) -> bool {
        if self.packet.head < Packet::FLOOR + len {
            return false;
        }
        self.packet.head -= len;
        self.packet.len += len;
        self.packet.linear += len;
        let bytes = self.bytes_mut();
        bytes.copy_within(len..len + at, 0);
        if let Some(gap) = bytes.get_mut(at..at + len) {
            gap.fill(0);
        }
        true
    }

    /// Removes `len` bytes at offset `at` by moving what is before it up.
    fn pop(&mut self, at: usize, len: usize) {
        self.bytes_mut().copy_within(0..at, len);
        self.packet.head += len;
        self.packet.len -= len;
        self.packet.linear = self.packet.linear.saturating_sub(len).max(MIN_FRAME.min(self.packet.len));
    }
}

/// `skb_change_tail(skb, len, flags)`.
pub(super) fn change_tail<M: Memory>(world: &mut World, memory: &mut M, [skb, len, flags, ..]: [u64; 5]) -> Outcome {
    context(memory, Helper::ChangeTail, skb)?;
    let len = crate::world::size(low32(len));
    let code = if flags != 0 || !(world.packet.network..=MAX_LEN).contains(&len) {
        errno(Errno::Inval)
    } else if world.env.faults.packet_memory || world.packet.head + len > Packet::CEILING {
        errno(Errno::Nomem)
    } else {
        let old = world.packet.len;
        world.packet.len = len;
        // The kernel makes the packet linear in both directions.
        world.packet.linear = len;
        if let Some(tail) = world.bytes_mut().get_mut(old..) {
            tail.fill(0);
        }
        0
    };
    world.packet_changed(memory);
    Ok(code)
}

/// `skb_change_head(skb, len, flags)`: room for a link-layer header.
pub(super) fn change_head<M: Memory>(world: &mut World, memory: &mut M, [skb, len, flags, ..]: [u64; 5]) -> Outcome {
    context(memory, Helper::ChangeHead, skb)?;
    let len = crate::world::size(low32(len));
    let gso = world.space.context().gso_size != 0;
    let code = if flags != 0 || (!gso && world.packet.len + len > MAX_LEN) {
        errno(Errno::Inval)
    } else if world.env.faults.packet_memory || !world.push(0, len) {
        errno(Errno::Nomem)
    } else {
        // The link-layer header now starts here, the network header stays where it was.
        world.packet.network += len;
        0
    };
    world.packet_changed(memory);
    Ok(code)
}

/// `skb_adjust_room(skb, len_diff, mode, flags)`, without the flags that prepare encapsulation.
pub(super) fn adjust_room<M: Memory>(world: &mut World, memory: &mut M, a: [u64; 5]) -> Outcome {
    let [skb, difference, mode, flags, _] = a;
    let helper = Helper::AdjustRoom;
    context(memory, helper, skb)?;
    if flags & !(ADJ_ROOM_FIXED_GSO | ADJ_ROOM_NO_CSUM_RESET) != 0 {
        return fault(helper, "flags for encapsulation are not modelled");
    }
    let difference = low32(difference).cast_signed();
    let amount = crate::world::size(difference.unsigned_abs());
    let [a, b, ..] = world.space.context().protocol.to_le_bytes();
    let header = match u16::from_be_bytes([a, b]) {
        0x0800 => 20,
        0x86dd => 40,
        _ => 0,
    };
    let code = if amount > 0xfff {
        errno(Errno::Fault)
    } else if header == 0 {
        negative(ENOTSUPP)
    } else {
        let at = match low32(mode) {
            ADJ_ROOM_NET => Some(world.packet.network + header),
            ADJ_ROOM_MAC => Some(world.packet.network),
            _ => None,
        };
        let network = world.packet.len.saturating_sub(world.packet.network);
        let gso = world.space.context().gso_size != 0;
        let shrink = difference < 0;
        match at {
            None => negative(ENOTSUPP),
            Some(_) if shrink && (amount >= network || network - amount < header) => negative(ENOTSUPP),
            Some(_) if !shrink && world.packet.len + amount > MAX_LEN && !gso => negative(ENOTSUPP),
            Some(_) if amount == 0 => 0,
            Some(_) if world.env.faults.packet_memory => errno(Errno::Nomem),
            Some(at) if at > world.packet.len => errno(Errno::Nomem),
            Some(at) if shrink && at + amount > world.packet.len => errno(Errno::Nomem),
            Some(at) if shrink => {
                world.pop(at, amount);
                0
            }
            Some(at) => {
                if world.push(at, amount) {
                    0
                } else {
                    errno(Errno::Nomem)
                }
            }
        }
    };
    world.packet_changed(memory);
    Ok(code)
}
