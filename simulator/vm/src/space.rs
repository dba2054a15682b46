//! One engine's private memory: context, stack frames, packet. Allocated once; every run reuses it.
//!
//! The rbpf engine needs it below 4 GiB, because programs read `data` and `data_end` as 32-bit fields.

use std::io;
use std::ptr::NonNull;

/// `struct __sk_buff` of linux/bpf.h. Multi-byte values are host order unless said otherwise.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct SkBuff {
    pub len: u32,
    pub pkt_type: u32,
    pub mark: u32,
    pub queue_mapping: u32,
    /// Ethertype, network order in the first two bytes.
    pub protocol: u32,
    pub vlan_present: u32,
    pub vlan_tci: u32,
    pub vlan_proto: u32,
    pub priority: u32,
    pub ingress_ifindex: u32,
    pub ifindex: u32,
    pub tc_index: u32,
    pub cb: [u32; 5],
    pub hash: u32,
    pub tc_classid: u32,
    pub data: u32,
    pub data_end: u32,
    pub napi_id: u32,
    pub family: u32,
    pub remote_ip4: u32,
    pub local_ip4: u32,
    pub remote_ip6: [u32; 4],
    pub local_ip6: [u32; 4],
    pub remote_port: u32,
    pub local_port: u32,
    pub data_meta: u32,
    pub flow_keys: u64,
    pub tstamp: u64,
    pub wire_len: u32,
    pub gso_segs: u32,
    pub sk: u64,
    pub gso_size: u32,
    pub tstamp_type: u8,
    pub pad: [u8; 3],
    pub hwtstamp: u64,
}

/// Bytes of [`SkBuff`].
pub(crate) const CONTEXT_LEN: usize = size_of::<SkBuff>();
const _: () = assert!(CONTEXT_LEN == 192);

/// What a lowered program finds behind its context.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Anchor {
    /// End of the first frame.
    pub stack_top: u64,
    /// Addresses of the slabs of the node's maps, by number.
    pub slabs: u64,
}

const ANCHOR: usize = CONTEXT_LEN;
const SLABS: usize = ANCHOR + size_of::<Anchor>();
/// Maps whose slabs a lowered program can find.
pub(crate) const MAX_SLABS: usize = (STACK - SLABS) / 8;
/// Frames, growing down from here in rbpf's lane, up from [`STACK`] in the checked one.
pub(crate) const STACK: usize = 4096;
/// Enough for 33 tail calls out of subprograms.
pub(crate) const STACK_LEN: usize = 64 * 1024;
const AREA: usize = STACK + STACK_LEN;
/// Free bytes before a frame: no helper makes a packet longer than 16 KiB, except large ones of many segments.
pub(crate) const HEADROOM: usize = 20 * 1024;
/// Longest frame, with room for what helpers add: a GSO packet and its headers.
pub(crate) const MAX_FRAME: usize = 65_536 + 256;
const AREA_LEN: usize = HEADROOM + MAX_FRAME + 16 * 1024;
const TOTAL: usize = (AREA + AREA_LEN).next_multiple_of(4096);

enum Owner {
    Heap(#[expect(dead_code, reason = "keeps the memory alive")] Box<[u64]>),
    #[cfg(target_os = "linux")]
    Mapping,
}

/// See the module.
pub(crate) struct Space {
    base: NonNull<u8>,
    owner: Owner,
}

impl std::fmt::Debug for Space {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Space").finish_non_exhaustive()
    }
}

// SAFETY: a Space is memory that nothing else points to; whoever owns it may use it from any thread.
unsafe impl Send for Space {}

impl Space {
    /// Anywhere.
    pub(crate) fn heap() -> Self {
        let mut words = vec![0u64; TOTAL / 8].into_boxed_slice();
        let base = NonNull::from(&mut *words).cast();
        Self { base, owner: Owner::Heap(words) }
    }

    /// Below 4 GiB.
    #[cfg(target_os = "linux")]
    pub(crate) fn low() -> io::Result<Self> {
        let base = map_low(TOTAL)?;
        Ok(Self { base, owner: Owner::Mapping })
    }

    /// Below 4 GiB: only known how on Linux.
    #[cfg(not(target_os = "linux"))]
    pub(crate) fn low() -> io::Result<Self> {
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }

    /// A byte of it.
    #[inline]
    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        debug_assert!(offset <= TOTAL);
        self.base.as_ptr().wrapping_add(offset)
    }

    /// All of it.
    pub(crate) fn range(&self) -> (*mut u8, usize) {
        (self.base.as_ptr(), TOTAL)
    }

    /// The context.
    #[inline]
    pub(crate) fn context(&mut self) -> &mut SkBuff {
        // SAFETY: the first CONTEXT_LEN bytes are always initialised, aligned to 8, and borrowed through self.
        unsafe { &mut *self.base.as_ptr().cast::<SkBuff>() }
    }

    /// Writes the table of slabs. Those beyond [`MAX_SLABS`] are left out.
    pub(crate) fn set_slabs(&mut self, slabs: &[u64]) {
        let table = self.at(SLABS);
        for index in 0..MAX_SLABS {
            let word = table.wrapping_add(8 * index).cast::<u64>();
            let slab = slabs.get(index).copied().unwrap_or(0);
            // SAFETY: inside the first STACK bytes of the space, aligned to 8.
            unsafe { word.write(slab) };
        }
        self.anchor().slabs = table as u64;
    }

    /// The words behind the context.
    #[inline]
    pub(crate) fn anchor(&mut self) -> &mut Anchor {
        // SAFETY: as for the context; ANCHOR is a multiple of 8.
        unsafe { &mut *self.at(ANCHOR).cast::<Anchor>() }
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        match &self.owner {
            Owner::Heap(_) => {}
            #[cfg(target_os = "linux")]
            Owner::Mapping => {
                // SAFETY: exactly the mapping made in `low`; nothing points into it any more.
                unsafe { libc::munmap(self.base.as_ptr().cast(), TOTAL) };
            }
        }
    }
}

/// Maps zeroed pages below 4 GiB.
#[cfg(target_os = "linux")]
fn map_low(len: usize) -> io::Result<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: an anonymous mapping at a place the kernel chooses touches no existing memory.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags | libc::MAP_32BIT, -1, 0) };
        if at != libc::MAP_FAILED {
            return NonNull::new(at.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory));
        }
    }
    // MAP_32BIT has only the second GiB: look through the rest.
    let step = len.next_multiple_of(1 << 20);
    for hint in (0x1000_0000..0xf000_0000usize).step_by(step) {
        let hint = std::ptr::without_provenance_mut(hint);
        // SAFETY: MAP_FIXED_NOREPLACE never replaces an existing mapping.
        let at = unsafe { libc::mmap(hint, len, protection, flags | libc::MAP_FIXED_NOREPLACE, -1, 0) };
        if at == hint {
            return NonNull::new(at.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory));
        }
        if at != libc::MAP_FAILED {
            // SAFETY: the mapping just made, on a kernel that takes the hint as a hint.
            unsafe { libc::munmap(at, len) };
        }
    }
    Err(io::Error::last_os_error())
}

/// The packet in a [`Space`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet {
    /// Offset of its first byte in the space.
    pub head: usize,
    /// Bytes.
    pub len: usize,
    /// Bytes programs reach directly.
    pub linear: usize,
    /// Offset of the network header from the packet's first byte.
    pub network: usize,
}

impl Packet {
    /// Where packets are put.
    pub(crate) const START: usize = AREA + HEADROOM;
    /// Offset of the first byte of its memory.
    pub(crate) const FLOOR: usize = AREA;
    /// Offset of the end of its memory.
    pub(crate) const CEILING: usize = AREA + AREA_LEN;
}
