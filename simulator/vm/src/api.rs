//! What every engine takes and gives. Nothing here belongs to one engine: the native and the kernel engine use it too.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use datapath_maps::MapStore;

/// Return codes of tc programs (`TC_ACT_*` in linux/pkt_cls.h), as found in [`Run::code`].
pub mod action {
    /// Let the packet pass (terminates the filter chain).
    pub const OK: u32 = 0;
    /// Drop the packet.
    pub const SHOT: u32 = 2;
    /// Take the packet away without dropping it.
    pub const STOLEN: u32 = 4;
    /// Send the packet where the redirect helper said.
    pub const REDIRECT: u32 = 7;
    /// Continue with the next filter (`TC_ACT_UNSPEC`, -1).
    pub const UNSPEC: u32 = u32::MAX;
}

/// A packet and the `struct __sk_buff` fields that travel with it. An engine changes it in place.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Skb {
    /// The frame, from the Ethernet header on.
    pub data: Vec<u8>,
    /// Bytes of the frame that lie in the linear part; the rest is reached only after `skb_pull_data`. 0 = all of them.
    pub linear_len: u32,
    /// Device the program is attached to.
    pub ifindex: u32,
    /// Device the packet came in on; 0 if it was made on this node.
    pub ingress_ifindex: u32,
    /// The packet's mark.
    pub mark: u32,
    /// Free for programs, kept between programs of one hook.
    pub cb: [u32; 5],
    /// The flow hash, as the kernel would have computed it; 0 if it has none.
    pub hash: u32,
    /// Queueing priority.
    pub priority: u32,
    /// Transmit queue plus one, 0 = none.
    pub queue_mapping: u32,
    /// `tc_index`.
    pub tc_index: u32,
    /// `tc_classid`.
    pub tc_classid: u32,
    /// Packet type (`PACKET_HOST` 0, `PACKET_BROADCAST` 1, `PACKET_MULTICAST` 2, `PACKET_OTHERHOST` 3, `PACKET_OUTGOING` 4).
    pub pkt_type: u32,
    /// Time stamp or departure time, nanoseconds.
    pub tstamp: u64,
    /// Segments this packet stands for (GSO); 0 if it is one packet.
    pub gso_segs: u32,
    /// Payload bytes per segment (GSO).
    pub gso_size: u32,
    /// Tunnel metadata the packet arrived with (from a tunnel device in metadata mode).
    pub tunnel_key: Option<TunnelKey>,
}

impl Skb {
    /// A frame on a device, all other fields zero.
    #[must_use]
    pub fn new(data: Vec<u8>, ifindex: u32) -> Self {
        Self { data, ifindex, ..Self::default() }
    }
}

/// Tunnel metadata: `struct bpf_tunnel_key`. The addresses are values; bytes of the struct are host order for IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TunnelKey {
    /// Network identifier (VNI), host order.
    pub id: u32,
    /// On receive the outer source, on transmit the outer destination.
    pub remote: IpAddr,
    /// On receive the outer destination, on transmit the outer source; `None` = the kernel chooses.
    pub local: Option<IpAddr>,
    /// Outer traffic class.
    pub tos: u8,
    /// Outer time to live; 0 = the device's default.
    pub ttl: u8,
    /// IPv6 flow label.
    pub label: u32,
    /// The flags the program gave to `skb_set_tunnel_key` (`BPF_F_ZERO_CSUM_TX` 2, `BPF_F_DONT_FRAGMENT` 4, `BPF_F_SEQ_NUMBER` 8, ...).
    pub flags: u64,
}

impl Default for TunnelKey {
    fn default() -> Self {
        Self { id: 0, remote: IpAddr::V4(Ipv4Addr::UNSPECIFIED), local: None, tos: 0, ttl: 0, label: 0, flags: 0 }
    }
}

/// Where a redirect helper said the packet shall go. In force only if the program also returned [`action::REDIRECT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redirect {
    /// `bpf_redirect`: out of a device, or into its receive path with `BPF_F_INGRESS` (1).
    Device {
        /// Target device.
        ifindex: u32,
        /// As given.
        flags: u64,
    },
    /// `bpf_redirect_peer`: into the receive path of the device's peer in its own network namespace.
    Peer {
        /// Device on this side.
        ifindex: u32,
        /// As given.
        flags: u64,
    },
    /// `bpf_redirect_neigh`: out of a device, link-layer addresses filled in by the neighbour table.
    Neigh {
        /// Target device.
        ifindex: u32,
        /// Next hop given by the program; `None`: from the packet's destination and the routing table.
        next_hop: Option<IpAddr>,
        /// As given.
        flags: u64,
    },
}

/// What a run sees besides the packet and the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Env {
    /// Nanoseconds since the node booted: the answer of every clock helper.
    pub now_ns: u64,
    /// `HZ`: `jiffies64` is `now_ns` in these ticks.
    pub ticks_per_second: u32,
    /// The CPU the program runs on.
    pub cpu: u32,
    /// Seeds `get_prandom_u32` for this run and the pattern that lies in unwritten stack bytes.
    pub seed: u64,
    /// Helpers that shall fail.
    pub faults: Faults,
}

impl Default for Env {
    fn default() -> Self {
        Self { now_ns: 0, ticks_per_second: 250, cpu: 0, seed: 1, faults: Faults::default() }
    }
}

/// Helpers made to fail, to reach the paths that a healthy kernel never takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// `map_update_elem` returns -ENOMEM.
    pub map_update: bool,
    /// `skb_set_tunnel_key` returns -EINVAL.
    pub set_tunnel_key: bool,
    /// `skb_get_tunnel_key` returns -EINVAL even if the packet has tunnel metadata.
    pub get_tunnel_key: bool,
    /// `ringbuf_reserve` returns null, `ringbuf_output` -EAGAIN.
    pub ring_full: bool,
    /// `skb_pull_data`, `skb_change_tail`, `skb_change_head`, `skb_adjust_room` return -ENOMEM.
    pub packet_memory: bool,
    /// `skb_store_bytes`, `l3_csum_replace`, `l4_csum_replace` return -EFAULT.
    pub packet_write: bool,
    /// `tail_call` falls through as if the slot were empty.
    pub tail_call: bool,
}

/// What came out of a run. Changes of the packet and its fields are in the [`Skb`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Run {
    /// The program's return value; see [`action`].
    pub code: u32,
    /// The last successful redirect helper's target.
    pub redirect: Option<Redirect>,
    /// Tunnel metadata set by the program for transmission.
    pub tunnel_key: Option<TunnelKey>,
    /// Instructions executed (a 16-byte load counts as one); 0 in engines that do not count.
    pub instructions: u64,
    /// Map look-ups by the program.
    pub lookups: u32,
    /// All helper calls, look-ups included.
    pub helper_calls: u32,
}

/// A program of one engine's object: its place in the object's list of programs, which is sorted by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProgramId(pub u32);

/// One node's datapath: the object's programs over that node's maps.
pub trait Engine {
    /// Short name for reports: `checked`, `rbpf`, `rbpf-jit`, ...
    fn name(&self) -> &'static str;

    /// The program with this name. Its number is also what a program array holds.
    fn program(&self, name: &str) -> Option<ProgramId>;

    /// Runs one program on one packet.
    ///
    /// # Errors
    /// A fault of the program, or a packet this engine cannot carry. The maps and the packet are then as the program left them.
    fn run(&mut self, program: ProgramId, skb: &mut Skb, env: &Env) -> Result<Run, RunError>;

    /// The node's maps.
    fn maps(&self) -> &dyn MapStore;

    /// The node's maps, to be changed between runs.
    fn maps_mut(&mut self) -> &mut dyn MapStore;

    /// Takes the records that programs have put into ring buffers, in order of submission.
    fn events(&mut self) -> Vec<Vec<u8>>;

    /// [`Engine::run`] by name.
    ///
    /// # Errors
    /// [`RunError::NoProgram`], or as [`Engine::run`].
    fn run_named(&mut self, program: &str, skb: &mut Skb, env: &Env) -> Result<Run, RunError> {
        match self.program(program) {
            Some(id) => self.run(id, skb, env),
            None => Err(RunError::NoProgram { name: program.to_owned() }),
        }
    }
}

/// Why a run ended without a verdict.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// No program has this name or number.
    #[error("the object has no program `{name}`")]
    NoProgram {
        /// What was asked for.
        name: String,
    },
    /// The frame does not fit into the engine's packet memory, or is shorter than an Ethernet header.
    #[error("a frame of {len} bytes is outside {min}..={max}")]
    FrameSize {
        /// Its length.
        len: usize,
        /// Shortest accepted.
        min: usize,
        /// Longest accepted.
        max: usize,
    },
    /// The program did something the kernel would have refused.
    #[error(transparent)]
    Fault(#[from] Box<Fault>),
    /// An engine outside of this crate (the kernel's test-run, the native one) could not run the program.
    #[error("{engine}: {reason}")]
    Engine {
        /// [`Engine::name`].
        engine: &'static str,
        /// In its own words.
        reason: String,
    },
}

/// Where and how a program went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Program that was running (after tail calls: the last one).
    pub program: String,
    /// Instruction number in the linked program, counted in 8-byte slots; `None` in engines that do not know it.
    pub pc: Option<u32>,
    /// Source line of that instruction.
    pub line: Option<(String, u32)>,
    /// What happened.
    pub kind: FaultKind,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "program `{}`", self.program)?;
        if let Some(pc) = self.pc {
            write!(f, ", instruction {pc}")?;
        }
        if let Some((file, line)) = &self.line {
            write!(f, " ({file}:{line})")?;
        }
        write!(f, ": {}", self.kind)
    }
}

impl std::error::Error for Fault {}

/// The kinds of [`Fault`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultKind {
    /// A load, store or helper argument outside of every region, or across the end of one.
    #[error("{access} of {size} bytes at {address:#x}: {region}")]
    Memory {
        /// `load`, `store`, `atomic` or the helper's name.
        access: &'static str,
        /// Bytes.
        size: u64,
        /// The program's address: tagged in the checked engine, never a host address there.
        address: u64,
        /// The region and what is wrong, in words: `packet offset 54 beyond its 54 bytes`.
        region: String,
    },
    /// A context access the kernel does not allow.
    #[error("{access} of {size} bytes of the context at offset {offset} is not allowed")]
    Context {
        /// `load` or `store`.
        access: &'static str,
        /// Bytes.
        size: u64,
        /// In `struct __sk_buff`.
        offset: i64,
    },
    /// More instructions than the budget.
    #[error("budget of {0} instructions used up")]
    Budget(u64),
    /// More than eight frames.
    #[error("more than 8 nested calls")]
    CallDepth,
    /// A helper was called with arguments that the verifier would have refused or that are not modelled.
    #[error("helper `{helper}`: {reason}")]
    Helper {
        /// Name in linux/bpf.h, without prefix.
        helper: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
    /// The program ended with ring-buffer records neither submitted nor discarded.
    #[error("{0} ring-buffer records neither submitted nor discarded")]
    OpenRecords(u32),
}
