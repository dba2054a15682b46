//! The `policy` map: one longest-prefix trie for all endpoints of the node.
//!
//! A look-up asks twice: for the peer's identity, then for any peer (identity 0). The winner has the higher precedence;
//! if equal, the longer L4 prefix; if equal, the exact identity. An endpoint and direction without policy has one entry
//! that allows everything, so that "no entry" always means default deny.

use crate::{Be16, shared};

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

/// Precedence of a deny entry of the normal tier.
pub const PRECEDENCE_DENY: u32 = 255;
/// Precedence of a plain allow entry of the normal tier.
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
        /// The higher one wins: (2^24 - 1 - tier priority) << 8, then 255 deny, 129-254 redirect, 1 allow.
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

/// Bits of [`PolicyEntry::flags`].
#[repr(transparent)]
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    zerocopy::FromBytes,
    zerocopy::IntoBytes,
    zerocopy::Immutable,
    zerocopy::KnownLayout,
)]
pub struct PolicyFlags(pub u8);

impl PolicyFlags {
    /// Matching packets are dropped.
    pub const DENY: u8 = 1;

    /// Whether all bits of `mask` are set.
    #[inline(always)]
    pub const fn has(self, mask: u8) -> bool {
        self.0 & mask == mask
    }
}
