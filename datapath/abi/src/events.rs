//! Records of the `events` ring buffer: drop, trace and policy verdict, one layout for all three.

use crate::{Addr6, Be16, shared};

/// What an event tells.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventKind {
    /// A packet was dropped; `code` is the drop reason.
    Drop = 1,
    /// A packet went on; `code` is the trace point.
    Trace = 4,
    /// A policy decided about a flow; `code` is the match type, `verdict` the outcome.
    PolicyVerdict = 5,
}

/// Where a traced packet went.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TracePoint {
    /// To a pod of this node.
    ToEndpoint = 0,
    /// To the node itself.
    ToHost = 2,
    /// To the node's stack, to be routed.
    ToStack = 3,
    /// Into the tunnel.
    ToOverlay = 4,
    /// To the underlay device.
    ToNetwork = 11,
}

/// What kind of policy entry decided.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MatchType {
    /// No entry.
    None = 0,
    /// The peer, any protocol.
    L3Only = 1,
    /// The peer and the port.
    L3L4 = 2,
    /// The port, any peer.
    L4Only = 3,
    /// Everything is allowed.
    All = 4,
    /// The peer and the protocol.
    L3Protocol = 5,
    /// The protocol, any peer.
    ProtocolOnly = 6,
}

/// `Event::flags`: the packet is IPv6 (else IPv4, in the first four bytes of the addresses; or neither, all zeros).
pub const IPV6: u8 = 1;
/// `Event::flags`: towards the endpoint (else from it).
pub const INGRESS: u8 = 2;

/// `Event::flags`: the policy would have denied it, and only audits.
pub const AUDITED: u8 = 4;

/// `Event::state`: what connection tracking said.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FlowState {
    /// First packet, or the side had not accepted the flow yet.
    New = 0,
    /// Packet of the client of a known flow.
    Established = 1,
    /// Packet of the server of a known flow.
    Reply = 2,
    /// ICMP error about a known flow.
    Related = 3,
    /// Not asked.
    Unknown = 5,
}

impl EventKind {
    /// From the number in a record.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Drop),
            4 => Some(Self::Trace),
            5 => Some(Self::PolicyVerdict),
            _ => None,
        }
    }
}

impl TracePoint {
    /// From the number in a record.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::ToEndpoint),
            2 => Some(Self::ToHost),
            3 => Some(Self::ToStack),
            4 => Some(Self::ToOverlay),
            11 => Some(Self::ToNetwork),
            _ => None,
        }
    }
}

impl FlowState {
    /// From the number in a record.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::New),
            1 => Some(Self::Established),
            2 => Some(Self::Reply),
            3 => Some(Self::Related),
            5 => Some(Self::Unknown),
            _ => None,
        }
    }
}

shared! {
    /// One record. Unused fields are zero.
    pub struct Event (72) {
        /// [`EventKind`].
        pub kind: u8,
        /// Drop reason, [`TracePoint`] or [`MatchType`], by kind.
        pub code: u8,
        /// [`crate::Hook`].
        pub hook: u8,
        /// [`IPV6`], [`INGRESS`], [`AUDITED`].
        pub flags: u8,
        /// Local endpoint the event is about; 0 = none.
        pub endpoint: u16,
        /// [`FlowState`].
        pub state: u8,
        /// IANA number.
        pub protocol: u8,
        /// Identity of the sender, host order.
        pub source_identity: u32,
        /// Identity of the receiver, host order.
        pub destination_identity: u32,
        /// Interface the packet was on.
        pub ifindex: u32,
        /// Length of the frame in bytes.
        pub len: u32,
        /// Source address.
        pub source: Addr6,
        /// Destination address.
        pub destination: Addr6,
        /// Source port (or ICMP identifier).
        pub sport: Be16,
        /// Destination port (or ICMP type in the low byte).
        pub dport: Be16,
        /// Rule that decided; 0 = none.
        pub rule: u32,
        /// Policy verdict: 0 allowed, negative the drop reason (with [`AUDITED`] the packet went on all the same), positive
        /// the proxy's port (1 where there is no proxy).
        pub verdict: i32,
        /// TCP flags of the packet.
        pub tcp_flags: u8,
        /// Zero.
        pub pad: [u8; 3],
    }
}
