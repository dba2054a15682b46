//! Changes to a packet on its way: hops, Ethernet addresses.

use datapath_abi::{DropReason, Mac};

use crate::packet::Packet;
use crate::wire::{ethernet, ipv4, ipv6};

/// Takes one hop off an IPv4 packet and corrects the header checksum (RFC 1624: the word that shrinks by 0x0100 lets
/// the complement grow by as much).
#[inline(always)]
pub(crate) fn decrement_ttl<P: Packet>(packet: &mut P) -> Result<(), DropReason> {
    let offset = ethernet::LEN + ipv4::TTL;
    let [ttl, protocol, high, low]: [u8; 4] = packet.load(offset).ok_or(DropReason::InvalidPacket)?;
    if ttl <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    let sum = u32::from(u16::from_be_bytes([high, low])) + 0x0100;
    let [.., high, low] = (sum + (sum >> 16)).to_be_bytes();
    packet.store(offset, [ttl - 1, protocol, high, low]).ok_or(DropReason::WriteError)
}

/// Takes one hop off an IPv6 packet.
#[inline(always)]
pub(crate) fn decrement_hop_limit<P: Packet>(packet: &mut P) -> Result<(), DropReason> {
    let offset = ethernet::LEN + ipv6::HOP_LIMIT;
    let hops: u8 = packet.load(offset).ok_or(DropReason::InvalidPacket)?;
    if hops <= 1 {
        return Err(DropReason::TtlExceeded);
    }
    packet.store(offset, hops - 1).ok_or(DropReason::WriteError)
}

/// Addresses the frame, and leaves its source.
#[inline(always)]
pub fn set_destination<P: Packet>(packet: &mut P, destination: Mac) -> Result<(), DropReason> {
    packet.store(0, destination).ok_or(DropReason::WriteError)
}

/// Addresses the frame to a pod, from its gateway.
#[inline(always)]
pub fn set_addresses<P: Packet>(packet: &mut P, destination: Mac, source: Mac) -> Result<(), DropReason> {
    packet.store(0, ethernet::Addresses { destination, source }).ok_or(DropReason::WriteError)
}
