//! The small door to packet bytes.

use datapath_abi::{Addr6, IpEntry};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// What a tunnel device knows about a packet it received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TunnelKey {
    /// VNI, host order.
    pub id: u32,
    /// Address of the sender on the underlay; an IPv4 address is in the first four bytes.
    pub remote: Addr6,
    /// `remote` is an IPv6 address.
    pub underlay6: bool,
}

/// One packet at one hook: an skb in the kernel, a byte buffer elsewhere.
pub trait Packet {
    /// Length of the frame in bytes, including what is not directly readable.
    fn len(&self) -> u32;

    /// Whether the frame has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes the first `len` bytes (or all, if there are fewer) readable by [`Packet::load`].
    fn pull(&mut self, len: u32);

    /// The same offset, which must be less than 32768. Where a verifier reads the program, it knows that from here on: those
    /// before Linux 6.12 lose sight of offsets that were kept on the stack.
    fn bounded(&self, offset: usize) -> usize {
        offset
    }

    /// Copies a value out of the frame; `None` beyond its readable end.
    fn load<T: FromBytes + Copy>(&self, offset: usize) -> Option<T>;

    /// Copies a value into the frame; `None`, and nothing written, beyond its readable end.
    #[must_use]
    fn store<T: IntoBytes + Immutable>(&mut self, offset: usize, value: T) -> Option<()>;

    /// Interface that the hook belongs to.
    fn ifindex(&self) -> u32;

    /// The packet's mark.
    fn mark(&self) -> u32;

    /// Tunnel metadata, if the packet came out of a tunnel device.
    fn tunnel_key(&self) -> Option<TunnelKey>;

    /// Sets the metadata that a tunnel device makes the outer headers from: `identity` becomes the VNI, `to.node` the
    /// outer destination. `None` when it cannot be set.
    #[must_use]
    fn set_tunnel_key(&mut self, identity: u32, to: &IpEntry) -> Option<()>;
}
