//! Helper functions with the kernel's semantics, for both engines.
//!
//! Source: include/uapi/linux/bpf.h for contracts; kernel/bpf/helpers.c, kernel/bpf/ringbuf.c, net/core/filter.c for
//! what is checked and what is returned. A helper returns what the kernel's returns; a call the verifier would not have
//! let through is a [`FaultKind`].

mod csum;
pub(crate) use map::find;

mod map;
mod ring;
mod room;
mod skb;
mod tunnel;

use datapath_maps::Errno;

use crate::api::{FaultKind, Redirect};
use crate::helper::Helper;
use crate::world::{Memory, Outcome, World};

/// Flags of `redirect`: the packet goes to the device's receive path.
const BPF_F_INGRESS: u64 = 1;

const TC_ACT_SHOT: u64 = 2;
const TC_ACT_REDIRECT: u64 = 7;

/// Calls a helper, all but `tail_call`, which belongs to the engine.
pub(crate) fn call<M: Memory>(world: &mut World, memory: &mut M, helper: Helper, a: [u64; 5]) -> Outcome {
    world.run.helper_calls += 1;
    match helper {
        Helper::MapLookup => map::lookup(world, memory, a),
        Helper::MapUpdate => map::update(world, memory, a),
        Helper::MapDelete => map::delete(world, memory, a),
        Helper::KtimeGetNs | Helper::KtimeBootNs | Helper::KtimeCoarseNs => Ok(world.env.now_ns),
        Helper::Jiffies64 => Ok(ticks(world.env.now_ns, world.env.ticks_per_second)),
        Helper::Prandom => Ok(u64::from(world.next_random())),
        Helper::ProcessorId => Ok(u64::from(world.env.cpu)),
        Helper::TailCall => fault(helper, "reached the helper layer"),
        Helper::StoreBytes => skb::store_bytes(world, memory, a),
        Helper::LoadBytes => skb::load_bytes(world, memory, a),
        Helper::PullData => skb::pull_data(world, memory, a),
        Helper::ChangeType => skb::change_type(world, memory, a),
        Helper::HashRecalc | Helper::HashInvalid | Helper::SetHash => skb::hash(world, memory, helper, a),
        Helper::ChangeTail => room::change_tail(world, memory, a),
        Helper::ChangeHead => room::change_head(world, memory, a),
        Helper::AdjustRoom => room::adjust_room(world, memory, a),
        Helper::L3CsumReplace => csum::replace_l3(world, memory, a),
        Helper::L4CsumReplace => csum::replace_l4(world, memory, a),
        Helper::CsumDiff => csum::diff(memory, a),
        Helper::GetTunnelKey => tunnel::get(world, memory, a),
        Helper::SetTunnelKey => tunnel::set(world, memory, a),
        Helper::Redirect | Helper::RedirectPeer => Ok(redirect(world, helper, a)),
        Helper::RedirectNeigh => redirect_neigh(world, memory, a),
        Helper::RingOutput => ring::output(world, memory, a),
        Helper::RingReserve => ring::reserve(world, memory, a),
        Helper::RingSubmit | Helper::RingDiscard => ring::close(world, memory, helper, a),
    }
}

fn ticks(now_ns: u64, ticks_per_second: u32) -> u64 {
    let ticks = u128::from(now_ns) * u128::from(ticks_per_second) / 1_000_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

/// `bpf_redirect`, `bpf_redirect_peer`.
fn redirect(world: &mut World, helper: Helper, [ifindex, flags, ..]: [u64; 5]) -> u64 {
    let ifindex = low32(ifindex);
    let target = if helper == Helper::Redirect {
        if flags & !BPF_F_INGRESS != 0 {
            return TC_ACT_SHOT;
        }
        Redirect::Device { ifindex, flags }
    } else {
        if flags != 0 {
            return TC_ACT_SHOT;
        }
        Redirect::Peer { ifindex, flags }
    };
    world.run.redirect = Some(target);
    TC_ACT_REDIRECT
}

/// `bpf_redirect_neigh(ifindex, params, plen, flags)`; `struct bpf_redir_neigh` is a family and 16 address bytes.
fn redirect_neigh<M: Memory>(world: &mut World, memory: &M, [ifindex, params, len, flags, _]: [u64; 5]) -> Outcome {
    const PARAMS: usize = 20;
    const AF_INET: u32 = 2;
    const AF_INET6: u32 = 10;
    let len = length(Helper::RedirectNeigh, len)?;
    if (len != 0 && len < PARAMS) || flags != 0 {
        return Ok(TC_ACT_SHOT);
    }
    let next_hop = if len == 0 {
        None
    } else {
        let bytes: [u8; PARAMS] = read(memory, Helper::RedirectNeigh, params)?;
        let [a, b, c, d, address @ ..] = bytes;
        match u32::from_ne_bytes([a, b, c, d]) {
            AF_INET => {
                let [a, b, c, d, ..] = address;
                Some(std::net::IpAddr::from([a, b, c, d]))
            }
            AF_INET6 => Some(std::net::IpAddr::from(address)),
            // The kernel takes the parameters and drops the packet later.
            _ => return fault(Helper::RedirectNeigh, "params name no address family"),
        }
    };
    world.run.redirect = Some(Redirect::Neigh { ifindex: low32(ifindex), next_hop, flags });
    Ok(TC_ACT_REDIRECT)
}

fn fault<T>(helper: Helper, reason: &'static str) -> Result<T, Box<FaultKind>> {
    Err(Box::new(FaultKind::Helper { helper: helper.name(), reason }))
}

/// A u32 argument.
#[expect(clippy::cast_possible_truncation, reason = "u32 arguments are the low halves of registers")]
fn low32(value: u64) -> u32 {
    value as u32
}

/// A length argument. The verifier bounds these; what is above 2^29 it would not have let through.
fn length(helper: Helper, value: u64) -> Result<usize, Box<FaultKind>> {
    match usize::try_from(value) {
        Ok(len) if len < 1 << 29 => Ok(len),
        _ => fault(helper, "negative or huge length"),
    }
}

/// A negative error number as r0.
fn errno(errno: Errno) -> u64 {
    errno.negated().cast_unsigned()
}

/// A negative error number that maps do not know.
fn negative(number: i64) -> u64 {
    (-number).cast_unsigned()
}

/// Copies a fixed number of bytes out of the program's memory.
fn read<M: Memory, const N: usize>(memory: &M, helper: Helper, address: u64) -> Result<[u8; N], Box<FaultKind>> {
    let from = memory.readable(helper.name(), address, N)?;
    // SAFETY: `readable` vouches for N bytes, and [u8; N] needs no alignment.
    Ok(unsafe { from.cast::<[u8; N]>().read() })
}

/// Appends bytes of the program's memory.
fn append<M: Memory>(
    memory: &M,
    helper: Helper,
    address: u64,
    len: usize,
    to: &mut Vec<u8>,
) -> Result<(), Box<FaultKind>> {
    if len == 0 {
        return Ok(());
    }
    let from = memory.readable(helper.name(), address, len)?;
    // SAFETY: `readable` vouches for len bytes; the slice ends before anything else runs.
    to.extend_from_slice(unsafe { std::slice::from_raw_parts(from, len) });
    Ok(())
}

/// Writes bytes into the program's memory.
fn write<M: Memory>(memory: &M, helper: Helper, address: u64, bytes: &[u8]) -> Result<(), Box<FaultKind>> {
    if bytes.is_empty() {
        return Ok(());
    }
    let to = memory.writable(helper.name(), address, bytes.len())?;
    // SAFETY: `writable` vouches for the bytes. `copy` allows the two to overlap.
    unsafe { std::ptr::copy(bytes.as_ptr(), to, bytes.len()) };
    Ok(())
}

/// Faults unless r1 is the context.
fn context<M: Memory>(memory: &M, helper: Helper, address: u64) -> Result<(), Box<FaultKind>> {
    if memory.is_context(address) { Ok(()) } else { fault(helper, "r1 is not the context") }
}
