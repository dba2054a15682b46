//! What becomes of a packet.

use datapath_abi::{Addr6, CallSlot};

/// What becomes of a packet that is not dropped.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// On to where it was going: the node's stack, or the device.
    Pass,
    /// Into the pod behind this host-side interface.
    Deliver {
        /// Host side of the pod's veth.
        ifindex: u32,
    },
    /// Into the tunnel.
    Tunnel {
        /// Becomes the VNI.
        identity: u32,
        /// Underlay address of the other node; an IPv4 address is in the first four bytes.
        node: Addr6,
        /// `node` is an IPv6 address.
        underlay6: bool,
    },
    /// Back out of the interface it came from.
    Reflect,
    /// Another program goes on.
    Call(CallSlot),
}
