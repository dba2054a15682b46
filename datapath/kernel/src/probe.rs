//! The one-entry array an instrumented program reads its surroundings from and writes its effects to.
//!
//! Invariant: the offsets here are the only description of the layout; `instrument` generates code from them.

use std::os::fd::AsFd;

use datapath_maps::{MapKind, MapSpec, map_flags};

use crate::error::KernelError;
use crate::map::KernelMap;
use crate::mapping::Mapping;
use crate::sys;

/// Bytes of `struct bpf_tunnel_key`.
pub(crate) const TUNNEL_KEY: usize = 44;
/// Bytes of `struct bpf_redir_neigh`.
pub(crate) const NEIGH: usize = 20;
/// Random numbers in store; a program that asks for more gets them again.
pub(crate) const RANDOM: usize = 16;

/// Byte offsets in the value.
pub(crate) mod at {
    pub(crate) const CLOCK: i16 = 0; // u64
    pub(crate) const JIFFIES: i16 = 8; // u64
    pub(crate) const FAIL_UPDATE: i16 = 16; // u32
    pub(crate) const FAIL_SET_TUNNEL: i16 = 20; // u32
    pub(crate) const TUNNEL_IN_PRESENT: i16 = 24; // u32
    pub(crate) const TUNNEL_IN_IPV6: i16 = 28; // u32
    pub(crate) const TUNNEL_IN: i16 = 32; // 44 bytes
    pub(crate) const RANDOM_NEXT: i16 = 76; // u32
    pub(crate) const RANDOM: i16 = 80; // 16 × u32
    pub(crate) const OUT: i16 = 144; // from here on written by programs
    pub(crate) const REDIRECT_KIND: i16 = 144; // u32
    pub(crate) const REDIRECT_COUNT: i16 = 148; // u32
    pub(crate) const REDIRECT_FLAGS: i16 = 152; // u64
    pub(crate) const REDIRECT_IFINDEX: i16 = 160; // u32
    pub(crate) const NEIGH_LEN: i16 = 164; // u32
    pub(crate) const NEIGH: i16 = 168; // 20 bytes
    pub(crate) const TUNNEL_OUT_COUNT: i16 = 188; // u32
    pub(crate) const TUNNEL_OUT_FLAGS: i16 = 192; // u64
    pub(crate) const TUNNEL_OUT_SIZE: i16 = 200; // u32
    pub(crate) const TUNNEL_OUT: i16 = 204; // 44 bytes
    pub(crate) const UPDATES_FAILED: i16 = 248; // u32
    pub(crate) const CALLS: i16 = 252; // u32: replaced helpers called
    pub(crate) const SIZE: i16 = 256;
}

const OUT: usize = 144;
const SIZE: usize = 256;
const _: () = assert!(at::OUT == 144 && at::SIZE == 256);

/// Tunnel metadata a packet arrives with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelKeyIn {
    /// `struct bpf_tunnel_key` as the helper hands it out.
    pub bytes: [u8; TUNNEL_KEY],
    /// Whether the remote address is IPv6: asking with the wrong flag is -EPROTO.
    pub ipv6: bool,
}

/// What an instrumented program is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeInput {
    /// What ktime_get_ns, ktime_get_boot_ns and ktime_get_coarse_ns return, nanoseconds.
    pub clock_ns: u64,
    /// What jiffies64 returns, ticks.
    pub jiffies: u64,
    /// Tunnel metadata on arrival; `None`: skb_get_tunnel_key gives -EINVAL.
    pub tunnel_key: Option<TunnelKeyIn>,
    /// Every map_update_elem gives -ENOMEM and does nothing.
    pub fail_map_update: bool,
    /// Every skb_set_tunnel_key gives -EINVAL and does nothing.
    pub fail_set_tunnel_key: bool,
    /// What get_prandom_u32 returns, in this order, over and over.
    pub random: [u32; RANDOM],
}

/// Which helper redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectKind {
    /// bpf_redirect
    Device = 1,
    /// bpf_redirect_peer
    Peer = 2,
    /// bpf_redirect_neigh
    Neigh = 3,
}

/// The last redirect helper call of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedirectCall {
    /// Which helper.
    pub kind: RedirectKind,
    /// Device.
    pub ifindex: u32,
    /// Flags as given.
    pub flags: u64,
    /// `struct bpf_redir_neigh`, if given.
    pub neigh: Option<[u8; NEIGH]>,
}

/// The last skb_set_tunnel_key of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelKeyOut {
    /// `struct bpf_tunnel_key`; bytes from `size` on are zero.
    pub bytes: [u8; TUNNEL_KEY],
    /// Bytes given.
    pub size: u32,
    /// Flags as given.
    pub flags: u64,
}

/// What an instrumented program did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProbeOutput {
    /// The last redirect.
    pub redirect: Option<RedirectCall>,
    /// Redirect helper calls in the run.
    pub redirects: u32,
    /// The last tunnel key set.
    pub tunnel_key: Option<TunnelKeyOut>,
    /// Map updates refused because of [`ProbeInput::fail_map_update`].
    pub updates_failed: u32,
    /// Calls of any replaced helper.
    pub calls: u32,
}

/// Reading and writing the array, through shared memory: no system call per run.
#[derive(Debug)]
pub struct Probe {
    map: KernelMap,
    memory: Mapping,
}

fn offset(at: i16) -> usize {
    usize::from(at.unsigned_abs())
}

fn u32_at(bytes: &[u8], at: i16) -> u32 {
    let at = offset(at);
    bytes.get(at..at + 4).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: i16) -> u64 {
    let at = offset(at);
    bytes.get(at..at + 8).and_then(|bytes| bytes.first_chunk()).map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

fn put(bytes: &mut [u8], at: i16, value: &[u8]) {
    let at = offset(at);
    bytes[at..at + value.len()].copy_from_slice(value);
}

impl Probe {
    /// A new array.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn create() -> Result<Self, KernelError> {
        let map = KernelMap::create(MapSpec {
            name: "probe".to_owned(),
            kind: MapKind::Array,
            key_size: 4,
            value_size: u32::from(at::SIZE.unsigned_abs()),
            max_entries: 1,
            flags: map_flags::MMAPABLE,
        })?;
        let memory = Mapping::new(map.as_fd(), sys::page_size(), true, 0).map_err(|errno| KernelError::Map {
            map: "probe".to_owned(),
            step: "map into memory",
            errno,
        })?;
        Ok(Self { map, memory })
    }

    pub(crate) fn map(&self) -> &KernelMap {
        &self.map
    }

    /// Call before a run: sets what the program is told and forgets what the last one did.
    pub fn set(&self, input: &ProbeInput) {
        let mut bytes = [0; SIZE];
        put(&mut bytes, at::CLOCK, &input.clock_ns.to_ne_bytes());
        put(&mut bytes, at::JIFFIES, &input.jiffies.to_ne_bytes());
        let flag = |on: bool| u32::from(on).to_ne_bytes();
        put(&mut bytes, at::FAIL_UPDATE, &flag(input.fail_map_update));
        put(&mut bytes, at::FAIL_SET_TUNNEL, &flag(input.fail_set_tunnel_key));
        if let Some(key) = &input.tunnel_key {
            put(&mut bytes, at::TUNNEL_IN_PRESENT, &flag(true));
            put(&mut bytes, at::TUNNEL_IN_IPV6, &flag(key.ipv6));
            put(&mut bytes, at::TUNNEL_IN, &key.bytes);
        }
        for (number, to) in input.random.iter().zip(bytes[offset(at::RANDOM)..].chunks_exact_mut(4)) {
            to.copy_from_slice(&number.to_ne_bytes());
        }
        // The mapping is a whole page: this cannot be beyond its end.
        self.memory.write(0, &bytes);
    }

    /// Call after a run.
    #[must_use]
    pub fn output(&self) -> ProbeOutput {
        let mut bytes = [0; SIZE];
        self.memory.read(OUT, &mut bytes[OUT..]);
        let kind = match u32_at(&bytes, at::REDIRECT_KIND) {
            1 => Some(RedirectKind::Device),
            2 => Some(RedirectKind::Peer),
            3 => Some(RedirectKind::Neigh),
            _ => None,
        };
        let mut neigh = [0; NEIGH];
        neigh.copy_from_slice(&bytes[offset(at::NEIGH)..][..NEIGH]);
        let mut key = [0; TUNNEL_KEY];
        key.copy_from_slice(&bytes[offset(at::TUNNEL_OUT)..][..TUNNEL_KEY]);
        ProbeOutput {
            redirect: kind.map(|kind| RedirectCall {
                kind,
                ifindex: u32_at(&bytes, at::REDIRECT_IFINDEX),
                flags: u64_at(&bytes, at::REDIRECT_FLAGS),
                neigh: (u32_at(&bytes, at::NEIGH_LEN) != 0).then_some(neigh),
            }),
            redirects: u32_at(&bytes, at::REDIRECT_COUNT),
            tunnel_key: (u32_at(&bytes, at::TUNNEL_OUT_COUNT) != 0).then(|| TunnelKeyOut {
                bytes: key,
                size: u32_at(&bytes, at::TUNNEL_OUT_SIZE),
                flags: u64_at(&bytes, at::TUNNEL_OUT_FLAGS),
            }),
            updates_failed: u32_at(&bytes, at::UPDATES_FAILED),
            calls: u32_at(&bytes, at::CALLS),
        }
    }
}
