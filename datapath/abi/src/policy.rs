//! The `policy` map: one longest-prefix trie for all endpoints of the node.
//!
//! A look-up asks twice: for the peer's identity, then for any peer (identity 0). The winner has the higher precedence;
//! if equal, the longer L4 prefix; if equal, the exact identity. An endpoint and direction without policy has one entry
//! that allows everything, so that "no entry" always means default deny.

use crate::{Be16, flags, shared};

/// Bits of the key that always count: endpoint, direction, padding, identity.
pub const FIXED_BITS: u32 = 64;
/// Bits of an entry that names a protocol and no port.
pub const PROTOCOL_BITS: u32 = FIXED_BITS + 8;
/// Bits of an entry that names one port.
pub const FULL_BITS: u32 = FIXED_BITS + 24;

/// `PolicyKey::direction`: packets towards the endpoint.
pub const INGRESS: u8 = 0;
/// `PolicyKey::direction`: packets of the endpoint.
pub const EGRESS: u8 = 1;

/// Precedence of a deny entry where there is one level: what scenarios write unless they say otherwise.
pub const PRECEDENCE_DENY: u32 = 255;
/// Precedence of a plain allow entry where there is one level.
pub const PRECEDENCE_ALLOW: u32 = 1;

shared! {
    /// Key of `policy`. The kernel's `bpf_lpm_trie_key`.
    pub struct PolicyKey (16) {
        /// [`FIXED_BITS`] (any protocol), [`PROTOCOL_BITS`], or up to 16 more for a block of ports; host order.
        pub prefix_len: u32,
        /// Local endpoint, host order.
        pub endpoint: u16,
        /// [`INGRESS`] or [`EGRESS`], seen from the endpoint.
        pub direction: u8,
        /// Zero.
        pub pad: u8,
        /// Peer, host order; 0 = any.
        pub identity: u32,
        /// IANA number; 0 (with a short prefix) = any.
        pub protocol: u8,
        /// Destination port, or ICMP type in the low byte; network order. Not aligned: the prefix runs through protocol and port.
        pub port: [u8; 2],
        /// Zero.
        pub pad2: u8,
    }
}

shared! {
    /// Value of `policy`.
    pub struct PolicyEntry (12) {
        /// The higher one wins: (2^24 - 1 - level) << 8, and a low byte that orders what one level says. Levels and low
        /// bytes are the policy compiler's; here only the order counts, and that nothing beats `u32::MAX`.
        pub precedence: u32,
        /// Number of the rule that made the entry, for events and explanations; 0 = none.
        pub rule: u32,
        /// Proxy that takes the packet; 0 = none.
        pub proxy_port: Be16,
        /// [`PolicyFlags`].
        pub flags: PolicyFlags,
        /// Bits of protocol and port that the entry names, 0 to 24.
        pub l4_prefix: u8,
    }
}

flags! {
    /// Bits of [`PolicyEntry::flags`].
    pub struct PolicyFlags(u8) {
        /// Matching packets are dropped.
        DENY = 1;
        /// Matching packets are for a proxy. Without one (`proxy_port` is 0, or nothing listens) they are dropped.
        REDIRECT = 2;
        /// Matching packets go on, and are reported as what a policy that only audits would have denied: `rule` is the rule
        /// that would have, 0 if none would have matched.
        AUDIT = 4;
    }
}
