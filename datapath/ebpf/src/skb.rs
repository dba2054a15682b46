//! The packet of a tc hook.

use core::arch::asm;
use core::ffi::c_void;
use core::mem::offset_of;

use aya_ebpf::bindings::{__sk_buff, BPF_F_TUNINFO_IPV6, BPF_F_ZERO_CSUM_TX};
use aya_ebpf::helpers::generated as helpers;
use datapath_abi::{Addr6, DropReason, IpEntry, IpFlags, config};
use datapath_core::tables::Node;
use datapath_core::{Action, Packet, TunnelKey, Verdict};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::maps;
use crate::tables::Maps;

/// `TC_ACT_OK`.
const OK: i32 = 0;
/// `TC_ACT_SHOT`.
pub const SHOT: i32 = 2;

/// The kernel's `struct bpf_tunnel_key`, as far as every kernel since 4.15 takes it.
#[repr(C)]
struct KernelTunnelKey {
    id: u32,
    /// An IPv4 address is one word in host order, an IPv6 address is in network order.
    remote: [u32; 4],
    tos: u8,
    ttl: u8,
    ext: u16,
    label: u32,
}

const TUNNEL_KEY_SIZE: u32 = size_of::<KernelTunnelKey>() as u32;
const _: () = assert!(TUNNEL_KEY_SIZE == 28);

/// The packet of a tc hook.
pub struct Skb {
    skb: *mut __sk_buff,
}

impl Skb {
    #[inline(always)]
    pub fn new(skb: *mut __sk_buff) -> Self {
        Self { skb }
    }

    /// Start and end of what is directly readable.
    ///
    /// In assembly, because the compiler would keep the 32-bit fields for later, and what it spills and widens again
    /// is no packet pointer to the verifier.
    #[inline(always)]
    fn bounds(&self) -> (usize, usize) {
        let (data, end): (usize, usize);
        // SAFETY: loads two fields of the context, which outlives the program.
        unsafe {
            asm!(
                "{data} = *(u32 *)({skb} + {data_offset})",
                "{end} = *(u32 *)({skb} + {end_offset})",
                skb = in(reg) self.skb,
                data = out(reg) data,
                end = lateout(reg) end,
                data_offset = const offset_of!(__sk_buff, data),
                end_offset = const offset_of!(__sk_buff, data_end),
                options(readonly, nostack, preserves_flags),
            );
        }
        (data, end)
    }

    /// Does what the verdict says; the program's code.
    #[inline(always)]
    pub fn act(&mut self, tables: &Maps, verdict: Verdict) -> Result<i32, DropReason> {
        match verdict.action {
            Action::Pass => Ok(OK),
            Action::Deliver => {
                let code = if tables.config().flags & config::REDIRECT_PEER == 0 {
                    // SAFETY: a helper without pointers.
                    unsafe { helpers::bpf_redirect(verdict.target, 0) }
                } else {
                    // SAFETY: as above.
                    unsafe { helpers::bpf_redirect_peer(verdict.target, 0) }
                };
                Ok(code as i32)
            }
            Action::Forward => {
                // SAFETY: as above.
                Ok(unsafe { helpers::bpf_redirect(verdict.target, 0) } as i32)
            }
            Action::Reflect => {
                // SAFETY: as above.
                Ok(unsafe { helpers::bpf_redirect(self.ifindex(), 0) } as i32)
            }
            Action::Overlay => {
                // SAFETY: as above.
                Ok(unsafe { helpers::bpf_redirect(tables.config().tunnel_ifindex, 0) } as i32)
            }
            Action::Call => {
                // SAFETY: the context is this program's own; the map is a program array.
                unsafe { helpers::bpf_tail_call(self.skb.cast::<c_void>(), maps::CALLS.raw(), verdict.target) };
                Err(DropReason::MissedTailCall)
            }
        }
    }

    #[inline(always)]
    fn key(&self, flags: u32) -> Option<TunnelKey> {
        let mut key = KernelTunnelKey { id: 0, remote: [0; 4], tos: 0, ttl: 0, ext: 0, label: 0 };
        let pointer = core::ptr::from_mut(&mut key).cast();
        // SAFETY: the key lives on the stack and has the size that is passed.
        let code = unsafe { helpers::bpf_skb_get_tunnel_key(self.skb, pointer, TUNNEL_KEY_SIZE, u64::from(flags)) };
        if code != 0 {
            return None;
        }
        let underlay6 = flags != 0;
        let mut words = key.remote;
        if !underlay6 {
            words = [key.remote[0].to_be(), 0, 0, 0];
        }
        Some(TunnelKey { id: key.id, remote: Addr6::from_words(words), underlay6 })
    }
}

impl Packet for Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context outlives the program.
        unsafe { (*self.skb).len }
    }

    #[inline(always)]
    fn pull(&mut self, len: u32) {
        let (data, end) = self.bounds();
        let all = self.len();
        let wanted = if len < all { len } else { all };
        if data + wanted as usize > end {
            // SAFETY: the context is this program's own. A failure leaves less readable, which every load checks.
            unsafe { helpers::bpf_skb_pull_data(self.skb, wanted) };
        }
    }

    #[inline(always)]
    fn bounded(&self, mut offset: usize) -> usize {
        // SAFETY: changes nothing but its operand; in assembly, because the compiler knows that it changes not even that.
        unsafe { asm!("{offset} &= 0x7fff", offset = inout(reg) offset, options(pure, nomem, nostack)) };
        offset
    }

    #[inline(always)]
    fn load<T: FromBytes + Copy>(&self, offset: usize) -> Option<T> {
        let (data, end) = self.bounds();
        let start = data + offset;
        if start + size_of::<T>() > end {
            return None;
        }
        // SAFETY: the value lies between the bounds, any bytes are a `T`, and the machine loads at any alignment.
        Some(unsafe { *(start as *const T) })
    }

    #[inline(always)]
    fn store<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Option<()> {
        let (data, end) = self.bounds();
        let start = data + offset;
        if start + size_of::<T>() > end {
            return None;
        }
        // SAFETY: the place lies between the bounds, and the machine stores at any alignment.
        unsafe { *(start as *mut T) = value };
        Some(())
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: the context outlives the program.
        unsafe { (*self.skb).ifindex }
    }

    #[inline(always)]
    fn mark(&self) -> u32 {
        // SAFETY: the context outlives the program.
        unsafe { (*self.skb).mark }
    }

    #[inline(always)]
    fn set_tunnel_key(&mut self, identity: u32, to: &IpEntry) -> Option<()> {
        let words = to.node.words();
        let (remote, flags) = if to.flags.has(IpFlags::UNDERLAY6) {
            (words, BPF_F_TUNINFO_IPV6)
        } else {
            ([u32::from_be(words[0]), 0, 0, 0], BPF_F_ZERO_CSUM_TX)
        };
        let mut key = KernelTunnelKey { id: identity, remote, tos: 0, ttl: 64, ext: 0, label: 0 };
        let pointer = core::ptr::from_mut(&mut key).cast();
        // SAFETY: the key lives on the stack and has the size that is passed.
        let code = unsafe { helpers::bpf_skb_set_tunnel_key(self.skb, pointer, TUNNEL_KEY_SIZE, u64::from(flags)) };
        if code == 0 { Some(()) } else { None }
    }

    #[inline(always)]
    fn tunnel_key(&self) -> Option<TunnelKey> {
        match self.key(0) {
            Some(key) => Some(key),
            None => self.key(BPF_F_TUNINFO_IPV6),
        }
    }
}
