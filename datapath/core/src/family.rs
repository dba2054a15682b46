//! What differs between IPv4 and IPv6: addresses, keys, header layout. Everything else is written once.

use datapath_abi::{Addr4, Addr6, Be16, Config, CtKey4, CtKey6, DropReason, FragKey4, FragKey6, Identity, config, ids};

use crate::packet::Packet;
use crate::parse::{self, Parsed, Tuple};
use crate::tables::{FragTable, Node};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::{ethernet, ipv6};
use crate::{edit, facts::Facts, reply};

/// The two ends of a flow, by reference: copies of IPv6 addresses would not fit on the stack.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a, F: Family> {
    /// First end: address.
    pub source: &'a F::Addr,
    /// Second end: address.
    pub destination: &'a F::Addr,
    /// First end: port, as in [`Tuple`].
    pub sport: Be16,
    /// Second end: port.
    pub dport: Be16,
    /// IANA number.
    pub protocol: u8,
}

/// IPv4 or IPv6.
pub trait Family: Copy + core::fmt::Debug + Default + PartialEq {
    /// Address.
    type Addr: Copy + PartialEq + Default + core::fmt::Debug;
    /// Key of the flow table.
    type CtKey: Copy + Default;
    /// Key of the fragment table.
    type FragKey: Copy;
    /// EtherType.
    const ETHERTYPE: Be16;
    /// IPv6.
    const IS_V6: bool;
    /// IANA number of this family's ICMP.
    const ICMP: u8;

    /// Writes the address into the 16 bytes of an event: an IPv4 address into the first four.
    fn widen(address: &Self::Addr, bytes: &mut Addr6);
    /// Writes the key of the flow between the two ends; whether the first is its `lo` end.
    fn ct_key(key: &mut Self::CtKey, ends: &Ends<'_, Self>) -> bool;
    /// Key of a fragmented datagram.
    fn frag_key(tuple: &Tuple<Self>, id: [u8; 4]) -> Self::FragKey;
    /// Identity of addresses that nobody in the cluster owns.
    fn world(config: &Config) -> Identity;
    /// Reads the addresses only.
    fn addresses<P: Packet>(packet: &mut P, facts: &mut Facts<Self>) -> Result<(), DropReason>;
    /// Where the L4 header begins, in a packet without fragmentation and IPv6 extension headers; its addresses are read.
    fn plain_l4<P: Packet>(packet: &P) -> Option<usize>;
    /// Whether it is ICMPv6 that stays on the link: another program's business.
    fn on_link(facts: &Facts<Self>) -> bool;
    /// Reads the headers.
    fn parse<P: Packet, T: FragTable<Self> + Node>(
        packet: &mut P,
        tables: &T,
        facts: &mut Facts<Self>,
    ) -> Result<Parsed, DropReason>;
    /// Writes the key of the flow of the datagram at `offset`, which an ICMP error quotes, seen in the direction of the
    /// error; `None` if too little is quoted.
    /// `None` as well unless the quoted packet came from `error`'s destination and, if the error comes from a pod, went
    /// to that pod.
    fn quoted_key<P: Packet>(
        packet: &P,
        offset: usize,
        error: &Tuple<Self>,
        from_pod: bool,
        key: &mut Self::CtKey,
    ) -> Option<bool>;
    /// Takes one hop off.
    fn decrement_hops<P: Packet>(packet: &mut P) -> Result<(), DropReason>;
}

/// IPv4.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct V6;

impl Family for V4 {
    type Addr = Addr4;
    type CtKey = CtKey4;
    type FragKey = FragKey4;
    const ETHERTYPE: Be16 = ethernet::IPV4;
    const IS_V6: bool = false;
    const ICMP: u8 = crate::wire::l4::ICMP;

    #[inline(always)]
    fn widen(address: &Addr4, bytes: &mut Addr6) {
        *bytes = Addr6::from_v4(*address);
    }

    #[inline(always)]
    fn ct_key(key: &mut CtKey4, ends: &Ends<'_, Self>) -> bool {
        let first_is_lo = sorted4(ends);
        if first_is_lo {
            (key.lo, key.hi, key.lo_port, key.hi_port) = (*ends.source, *ends.destination, ends.sport, ends.dport);
        } else {
            (key.lo, key.hi, key.lo_port, key.hi_port) = (*ends.destination, *ends.source, ends.dport, ends.sport);
        }
        key.protocol = ends.protocol;
        key.pad = [0; 3];
        first_is_lo
    }

    #[inline(always)]
    fn frag_key(tuple: &Tuple<Self>, id: [u8; 4]) -> FragKey4 {
        FragKey4 { source: tuple.source, destination: tuple.destination, id, protocol: tuple.protocol, pad: [0; 3] }
    }

    #[inline(always)]
    fn world(config: &Config) -> Identity {
        if config.flags & config::DUAL_STACK == 0 { ids::WORLD } else { ids::WORLD_IPV4 }
    }

    #[inline(always)]
    fn addresses<P: Packet>(packet: &mut P, facts: &mut Facts<Self>) -> Result<(), DropReason> {
        parse::addresses4(packet, facts)
    }

    #[inline(always)]
    fn plain_l4<P: Packet>(packet: &P) -> Option<usize> {
        let header: Ipv4 = packet.load(ethernet::LEN)?;
        let fragment = header.fragment.get() & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK) != 0;
        if fragment { None } else { Some(ethernet::LEN + usize::from(header.version_ihl & 0xf) * 4) }
    }

    #[inline(always)]
    fn on_link(_: &Facts<Self>) -> bool {
        false
    }

    #[inline(always)]
    fn parse<P: Packet, T: FragTable<Self> + Node>(
        packet: &mut P,
        tables: &T,
        facts: &mut Facts<Self>,
    ) -> Result<Parsed, DropReason> {
        parse::ipv4(packet, tables, facts)
    }

    #[inline(always)]
    fn quoted_key<P: Packet>(
        packet: &P,
        offset: usize,
        error: &Tuple<Self>,
        from_pod: bool,
        key: &mut CtKey4,
    ) -> Option<bool> {
        parse::quoted4(packet, offset, error, from_pod, key)
    }

    #[inline(always)]
    fn decrement_hops<P: Packet>(packet: &mut P) -> Result<(), DropReason> {
        edit::decrement_ttl(packet)
    }
}

impl Family for V6 {
    type Addr = Addr6;
    type CtKey = CtKey6;
    type FragKey = FragKey6;
    const ETHERTYPE: Be16 = ethernet::IPV6;
    const IS_V6: bool = true;
    const ICMP: u8 = crate::wire::l4::ICMP6;

    #[inline(always)]
    fn widen(address: &Addr6, bytes: &mut Addr6) {
        *bytes = *address;
    }

    #[inline(always)]
    fn ct_key(key: &mut CtKey6, ends: &Ends<'_, Self>) -> bool {
        let first_is_lo = sorted6(ends);
        if first_is_lo {
            (key.lo, key.hi, key.lo_port, key.hi_port) = (*ends.source, *ends.destination, ends.sport, ends.dport);
        } else {
            (key.lo, key.hi, key.lo_port, key.hi_port) = (*ends.destination, *ends.source, ends.dport, ends.sport);
        }
        key.protocol = ends.protocol;
        key.pad = [0; 3];
        first_is_lo
    }

    #[inline(always)]
    fn frag_key(tuple: &Tuple<Self>, id: [u8; 4]) -> FragKey6 {
        FragKey6 { source: tuple.source, destination: tuple.destination, id, protocol: tuple.protocol, pad: [0; 3] }
    }

    #[inline(always)]
    fn world(config: &Config) -> Identity {
        if config.flags & config::DUAL_STACK == 0 { ids::WORLD } else { ids::WORLD_IPV6 }
    }

    #[inline(always)]
    fn addresses<P: Packet>(packet: &mut P, facts: &mut Facts<Self>) -> Result<(), DropReason> {
        parse::addresses6(packet, facts)
    }

    #[inline(always)]
    fn plain_l4<P: Packet>(_: &P) -> Option<usize> {
        Some(ethernet::LEN + ipv6::LEN)
    }

    #[inline(always)]
    fn on_link(facts: &Facts<Self>) -> bool {
        reply::is_on_link(facts)
    }

    #[inline(always)]
    fn parse<P: Packet, T: FragTable<Self> + Node>(
        packet: &mut P,
        tables: &T,
        facts: &mut Facts<Self>,
    ) -> Result<Parsed, DropReason> {
        parse::ipv6(packet, tables, facts)
    }

    #[inline(always)]
    fn quoted_key<P: Packet>(
        packet: &P,
        offset: usize,
        error: &Tuple<Self>,
        from_pod: bool,
        key: &mut CtKey6,
    ) -> Option<bool> {
        parse::quoted6(packet, offset, error, from_pod, key)
    }

    #[inline(always)]
    fn decrement_hops<P: Packet>(packet: &mut P) -> Result<(), DropReason> {
        edit::decrement_hop_limit(packet)
    }
}

/// Whether the first end is the `lo` end.
#[inline(always)]
fn sorted4(ends: &Ends<'_, V4>) -> bool {
    let (a, b) = (ends.source.word(), ends.destination.word());
    if a == b { ends.sport.get() <= ends.dport.get() } else { a < b }
}

/// Whether the first end is the `lo` end.
#[inline(always)]
fn sorted6(ends: &Ends<'_, V6>) -> bool {
    let (a, b) = (ends.source.words(), ends.destination.words());
    if a[0] != b[0] {
        return a[0] < b[0];
    }
    if a[1] != b[1] {
        return a[1] < b[1];
    }
    if a[2] != b[2] {
        return a[2] < b[2];
    }
    if a[3] != b[3] {
        return a[3] < b[3];
    }
    ends.sport.get() <= ends.dport.get()
}
