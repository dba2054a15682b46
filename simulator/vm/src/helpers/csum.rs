//! Checksums: `l3_csum_replace`, `l4_csum_replace`, `csum_diff` (net/core/filter.c, include/net/checksum.h, RFC 1624).
//!
//! Sums are of bytes in memory order, so values are kept as the machine (little endian) loads them.

use datapath_maps::Errno;

use super::{append, context, errno, length, low32};
use crate::api::FaultKind;
use crate::helper::Helper;
use crate::world::{Memory, Outcome, World};

const BPF_F_HDR_FIELD_MASK: u64 = 0xf;
const BPF_F_PSEUDO_HDR: u64 = 0x10;
const BPF_F_MARK_MANGLED_0: u64 = 0x20;
const BPF_F_MARK_ENFORCE: u64 = 0x40;
const BPF_F_IPV6: u64 = 0x80;
/// What a UDP checksum that comes out as 0 is sent as.
const CSUM_MANGLED_0: u16 = 0xffff;

/// Sum with end-around carry.
const fn add(a: u32, b: u32) -> u32 {
    let (sum, carry) = a.overflowing_add(b);
    sum.wrapping_add(carry as u32)
}

/// Folds to 16 bits and complements.
#[expect(clippy::cast_possible_truncation, reason = "folded to 16 bits before")]
const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    let twice = (once & 0xffff) + (once >> 16);
    !(twice as u16)
}

/// `csum_replace4`.
const fn replace4(sum: u16, from: u32, to: u32) -> u16 {
    fold(add(add(!(sum as u32), !from), to))
}

/// `csum_replace2`: 16-bit arithmetic.
#[expect(clippy::cast_possible_truncation, reason = "fields of 16 bits")]
const fn replace2(sum: u16, from: u32, to: u32) -> u16 {
    const fn add16(a: u16, b: u16) -> u16 {
        let (sum, carry) = a.overflowing_add(b);
        sum.wrapping_add(carry as u16)
    }
    !add16(add16(!sum, !(from as u16)), to as u16)
}

/// `csum_replace_by_diff`.
const fn replace_by_difference(sum: u16, difference: u32) -> u16 {
    fold(add(difference, !(sum as u32)))
}

/// `csum_partial`: 32-bit sum of 16-bit words.
#[expect(clippy::cast_possible_truncation, reason = "folded before")]
fn partial(bytes: &[u8], seed: u32) -> u32 {
    let mut sum = u64::from(seed);
    let (words, rest) = bytes.as_chunks::<4>();
    for &word in words {
        sum += u64::from(u32::from_le_bytes(word));
    }
    for (index, &byte) in rest.iter().enumerate() {
        sum += u64::from(byte) << (8 * (index & 1));
    }
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum = (sum & 0xffff_ffff) + (sum >> 32);
    sum as u32
}

/// `csum_from32to16`.
const fn from_32_to_16(sum: u32) -> u16 {
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

/// Where the checksum lies, if the program may change it there.
fn field<M: Memory>(
    world: &mut World,
    memory: &M,
    helper: Helper,
    skb: u64,
    offset: u64,
) -> Result<Option<usize>, Box<FaultKind>> {
    context(memory, helper, skb)?;
    let offset = low32(offset);
    let at = crate::world::size(offset);
    Ok((offset <= 0xffff && offset & 1 == 0 && world.make_writable(at + 2)).then_some(at))
}

fn get(world: &World, at: usize) -> u16 {
    match world.bytes().get(at..at + 2) {
        Some(&[a, b]) => u16::from_le_bytes([a, b]),
        _ => 0,
    }
}

fn put(world: &mut World, at: usize, sum: u16) {
    if let Some(bytes) = world.bytes_mut().get_mut(at..at + 2) {
        bytes.copy_from_slice(&sum.to_le_bytes());
    }
}

/// `l3_csum_replace(skb, offset, from, to, flags)`.
pub(super) fn replace_l3<M: Memory>(world: &mut World, memory: &mut M, a: [u64; 5]) -> Outcome {
    let [skb, offset, from, to, flags] = a;
    let code = if flags & !BPF_F_HDR_FIELD_MASK != 0 {
        context(memory, Helper::L3CsumReplace, skb)?;
        errno(Errno::Inval)
    } else if let Some(at) = field(world, memory, Helper::L3CsumReplace, skb, offset)? {
        let sum = get(world, at);
        let new = match flags & BPF_F_HDR_FIELD_MASK {
            0 if from == 0 => Some(replace_by_difference(sum, low32(to))),
            2 => Some(replace2(sum, low32(from), low32(to))),
            4 => Some(replace4(sum, low32(from), low32(to))),
            _ => None,
        };
        match new {
            Some(new) => {
                put(world, at, new);
                0
            }
            None => errno(Errno::Inval),
        }
    } else {
        errno(Errno::Fault)
    };
    world.packet_changed(memory);
    Ok(code)
}

/// `l4_csum_replace(skb, offset, from, to, flags)`. Packets are taken to carry complete checksums (`CHECKSUM_NONE`), so
/// the pseudo-header flag changes nothing in the packet.
pub(super) fn replace_l4<M: Memory>(world: &mut World, memory: &mut M, a: [u64; 5]) -> Outcome {
    let [skb, offset, from, to, flags] = a;
    let known = BPF_F_HDR_FIELD_MASK | BPF_F_PSEUDO_HDR | BPF_F_MARK_MANGLED_0 | BPF_F_MARK_ENFORCE | BPF_F_IPV6;
    let code = if flags & !known != 0 {
        context(memory, Helper::L4CsumReplace, skb)?;
        errno(Errno::Inval)
    } else if let Some(at) = field(world, memory, Helper::L4CsumReplace, skb, offset)? {
        let sum = get(world, at);
        let mangled = flags & BPF_F_MARK_MANGLED_0 != 0;
        if mangled && flags & BPF_F_MARK_ENFORCE == 0 && sum == 0 {
            0
        } else {
            let new = match flags & BPF_F_HDR_FIELD_MASK {
                0 if from == 0 => Some(replace_by_difference(sum, low32(to))),
                // The kernel widens both to 32 bits here.
                2 => Some(replace4(sum, low32(from) & 0xffff, low32(to) & 0xffff)),
                4 => Some(replace4(sum, low32(from), low32(to))),
                _ => None,
            };
            match new {
                Some(new) => {
                    put(world, at, if mangled && new == 0 { CSUM_MANGLED_0 } else { new });
                    0
                }
                None => errno(Errno::Inval),
            }
        }
    } else {
        errno(Errno::Fault)
    };
    world.packet_changed(memory);
    Ok(code)
}

/// `csum_diff(from, from_size, to, to_size, seed)`, as since Linux 6.13 on every architecture.
pub(super) fn diff<M: Memory>(memory: &M, [from, from_len, to, to_len, seed]: [u64; 5]) -> Outcome {
    let helper = Helper::CsumDiff;
    let (from_len, to_len, seed) = (length(helper, from_len)?, length(helper, to_len)?, low32(seed));
    if (from_len | to_len) & 3 != 0 {
        return Ok(errno(Errno::Inval));
    }
    let mut old = Vec::new();
    let mut new = Vec::new();
    append(memory, helper, from, from_len, &mut old)?;
    append(memory, helper, to, to_len, &mut new)?;
    let sum = match (from_len, to_len) {
        (0, 0) => seed,
        (0, _) => partial(&new, seed),
        (_, 0) => !partial(&old, !seed),
        _ => add(partial(&new, seed), !partial(&old, 0)),
    };
    Ok(u64::from(from_32_to_16(sum)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 1071 over bytes, checksum field included as it is.
    fn checksum(bytes: &[u8]) -> u16 {
        fold(partial(bytes, 0))
    }

    #[test]
    fn replacing_a_field_equals_computing_the_sum_anew() {
        let mut header = [0x45, 0, 0, 84, 0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 1, 2u8];
        let sum = checksum(&header);
        let from = u32::from_le_bytes([10, 0, 0, 1]);
        let to = u32::from_le_bytes([192, 168, 200, 77]);
        header[12..16].copy_from_slice(&to.to_le_bytes());
        assert_eq!(replace4(sum, from, to), checksum(&header));
        let difference = add(partial(&to.to_le_bytes(), 0), !partial(&from.to_le_bytes(), 0));
        assert_eq!(replace_by_difference(sum, difference), checksum(&header));
    }

    #[test]
    fn sixteen_bit_replacement_equals_computing_the_sum_anew() {
        let mut bytes = [1u8, 2, 3, 4, 5, 6];
        let sum = checksum(&bytes);
        bytes[2..4].copy_from_slice(&[0xfe, 0xdc]);
        assert_eq!(replace2(sum, 0x0403, 0xdcfe), checksum(&bytes));
    }

    #[test]
    fn folding_keeps_zero_apart_from_its_complement() {
        assert_eq!(from_32_to_16(0), 0);
        assert_eq!(from_32_to_16(0xffff_ffff), 0xffff);
        assert_eq!(from_32_to_16(0x0001_ffff), 1);
    }
}
