//! Who owns an address. Two tables per family: `ipcache4`/`ipcache6` know single addresses (pods, nodes) by hash, because
//! that look-up does not grow with the number of entries; `cidr4`/`cidr6` know prefixes by longest match and are asked
//! only when the first has no answer. An address that neither knows belongs to the world.

use crate::{Addr4, Addr6, Mac, flags, shared};

shared! {
    /// Key of `cidr4`: a prefix. The kernel's `bpf_lpm_trie_key`.
    pub struct CidrKey4 (8) {
        /// Bits of `addr` that count, 0 to 32, host order.
        pub prefix_len: u32,
        /// The prefix, network order.
        pub addr: Addr4,
    }
}

shared! {
    /// Key of `cidr6`: a prefix. The kernel's `bpf_lpm_trie_key`.
    pub struct CidrKey6 (20) {
        /// Bits of `addr` that count, 0 to 128, host order.
        pub prefix_len: u32,
        /// The prefix, network order.
        pub addr: Addr6,
    }
}

shared! {
    /// Value of `ipcache4`, `ipcache6`, `cidr4`, `cidr6`: who owns the address, and how to reach it.
    pub struct IpEntry (40) {
        /// Security identity, host order.
        pub identity: u32,
        /// Host side of the pod's veth when the pod is on this node, else 0.
        pub ifindex: u32,
        /// Changes whenever the policy of this local endpoint changes: verdicts remembered in flows under another
        /// revision are asked again.
        pub policy_revision: u32,
        /// Underlay address of the node that holds the pod (an IPv4 address is in the first four bytes); zeros: none.
        pub node: Addr6,
        /// Local endpoint number: of a pod of this node, or [`crate::ids::HOST_ENDPOINT`] for this node's own address where
        /// the node has policies; else 0.
        pub endpoint: u16,
        /// [`IpFlags`].
        pub flags: IpFlags,
        /// The pod's own Ethernet address (local endpoints).
        pub mac: Mac,
        /// Zero.
        pub pad: [u8; 2],
    }
}

flags! {
    /// Bits of [`IpEntry::flags`].
    pub struct IpFlags(u16) {
        /// The address is this node's own: packets to it go to the stack.
        LOCAL_HOST = 1;
        /// The address is a node's underlay address (this one's or another's): tunnel traffic may come from it.
        NODE = 2;
        /// `node` is an IPv6 address.
        UNDERLAY6 = 4;
        /// The address is a pod's, here or on another node.
        POD = 8;
    }
}
