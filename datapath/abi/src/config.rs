//! Settings of one node, in the object's read-only section (symbol `CONFIG`), written by the loader before loading.
//! An array map would read as zeros when nobody wrote it; `magic` tells the two apart.

use crate::{Addr4, Addr6, Be16, Mac, shared};

/// Value of [`Config::magic`] in written settings: "weir".
pub const MAGIC: u32 = 0x7765_6972;

/// Name of the settings' symbol in the object.
pub const SYMBOL: &str = "CONFIG";

/// `Config::flags`: pods of other nodes are reached through the tunnel device (else: routed by the node's stack).
pub const TUNNEL: u32 = 1;
/// `Config::flags`: deliver with `bpf_redirect_peer` (else `bpf_redirect` to the host side of the veth).
pub const REDIRECT_PEER: u32 = 2;
/// `Config::flags`: a policy verdict event for allowed new flows too (denied ones always have one).
pub const VERDICT_EVENTS: u32 = 4;
/// `Config::flags`: trace events for new flows, TCP flag changes and every `report_interval` of a flow.
pub const TRACE_EVENTS: u32 = 8;
/// `Config::flags`: both families are in use, so "world" is `WORLD_IPV4` or `WORLD_IPV6`.
pub const DUAL_STACK: u32 = 16;
/// `Config::flags`: the node itself has policies. Its addresses then have [`crate::ids::HOST_ENDPOINT`].
pub const HOST_POLICY: u32 = 32;
/// `Config::flags`: the tunnel is Geneve (else VXLAN).
pub const GENEVE: u32 = 64;

shared! {
    /// Settings of one node. Times are in ticks of the kernel's `jiffies64`.
    pub struct Config (96) {
        /// [`MAGIC`] once written.
        pub magic: u32,
        /// [`TUNNEL`] and the others.
        pub flags: u32,
        /// Interface index of the tunnel device.
        pub tunnel_ifindex: u32,
        /// Interface index of weir's host device.
        pub host_ifindex: u32,
        /// This node's IPv4 address on the underlay.
        pub node4: Addr4,
        /// This node's IPv6 address on the underlay.
        pub node6: Addr6,
        /// Ethernet address of the host side of every pod's veth: the pods' gateway.
        pub host_mac: Mac,
        /// UDP port of VXLAN.
        pub vxlan_port: Be16,
        /// UDP port of Geneve.
        pub geneve_port: Be16,
        /// Zero.
        pub pad: [u8; 2],
        /// Ticks per second (the kernel's `CONFIG_HZ`).
        pub ticks_per_second: u32,
        /// Lifetime of a TCP flow after its handshake.
        pub tcp_established: u32,
        /// Lifetime of a TCP flow that has only seen SYNs.
        pub tcp_syn: u32,
        /// Lifetime of a TCP flow that both sides have closed.
        pub tcp_closing: u32,
        /// Lifetime of a flow of any other protocol.
        pub other: u32,
        /// Lifetime of the ports of a first fragment.
        pub fragment: u32,
        /// At most this long without a trace event for a live flow, per direction.
        pub report_interval: u32,
        /// Zero.
        pub reserved: [u8; 20],
    }
}

impl Config {
    /// Written settings with the default timeouts (seconds: TCP 8000, SYN 60, closing 10, other 60, fragment 30, report 5).
    pub const fn with_defaults(ticks_per_second: u32) -> Self {
        Self {
            magic: MAGIC,
            flags: TUNNEL | REDIRECT_PEER | VERDICT_EVENTS | TRACE_EVENTS,
            tunnel_ifindex: 0,
            host_ifindex: 0,
            node4: Addr4::ZERO,
            node6: Addr6::ZERO,
            host_mac: Mac::from_octets([0; 6]),
            vxlan_port: Be16::new(8472),
            geneve_port: Be16::new(6081),
            pad: [0; 2],
            ticks_per_second,
            tcp_established: 8000 * ticks_per_second,
            tcp_syn: 60 * ticks_per_second,
            tcp_closing: 10 * ticks_per_second,
            other: 60 * ticks_per_second,
            fragment: 30 * ticks_per_second,
            report_interval: 5 * ticks_per_second,
            reserved: [0; 20],
        }
    }
}
