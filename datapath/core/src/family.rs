//! What differs between IPv4 and IPv6: addresses, keys, header layout. Everything else is written once.

use datapath_abi::{
    Addr4, Addr6, Be16, Config, CtKey4, CtKey6, DropReason, FragKey4, FragKey6, Identity, config,
    ids,
};

use crate::packet::Packet;
use crate::parse::{self, Parsed, Tuple};
use crate::pipeline::Outcome;
use crate::tables::{FragTable, Node, Tables};
use crate::wire::ethernet;
use crate::{edit, facts::Facts, reply};

/// IPv4 or IPv6.
pub trait Family: Copy + core::fmt::Debug + Default + PartialEq {
    /// Address.
    type Addr: Copy + PartialEq + Default + core::fmt::Debug;
    /// Key of the flow table.
    type CtKey: Copy;
    /// Key of the fragment table.
    type FragKey: Copy;
    /// EtherType.
    const ETHERTYPE: Be16;
    /// IPv6.
    const IS_V6: bool;
    /// IANA number of this family's ICMP.
    const ICMP: u8;

    /// The address in the 16 bytes of an event: an IPv4 address in the first four.
    fn widen(address: &Self::Addr) -> Addr6;
    /// Key of the flow, and whether the sender is its `lo` end.
    fn ct_key(tuple: &Tuple<Self>) -> (Self::CtKey, bool);
    /// Key of a fragmented datagram.
    fn frag_key(tuple: &Tuple<Self>, id: [u8; 4]) -> Self::FragKey;
    /// Identity of addresses that nobody in the cluster owns.
    fn world(config: &Config) -> Identity;
    /// Reads the addresses only.
    fn addresses<P: Packet>(packet: &mut P, facts: &mut Facts<Self>) -> Result<(), DropReason>;
    /// Neighbour discovery from a pod, which stays on the link; `None` for what is forwarded like any other packet.
    fn on_link<P: Packet, T: Tables<Self>>(
        packet: &mut P,
        tables: &T,
        facts: &mut Facts<Self>,
        l4: usize,
    ) -> Option<Outcome>;
    /// Reads the headers.
    fn parse<P: Packet, T: FragTable<Self> + Node>(
        packet: &mut P,
        tables: &mut T,
        facts: &mut Facts<Self>,
    ) -> Result<Parsed<Self>, DropReason>;
    /// Reads the datagram at `offset` that an ICMP error quotes; its flow, or `None` if too little is quoted.
    fn parse_quoted<P: Packet>(packet: &P, offset: usize) -> Option<Tuple<Self>>;
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
    fn widen(address: &Addr4) -> Addr6 {
        let a = address.0;
        Addr6([a[0], a[1], a[2], a[3], 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    }

    #[inline(always)]
    fn ct_key(tuple: &Tuple<Self>) -> (CtKey4, bool) {
        let (source, destination) = (tuple.source.word(), tuple.destination.word());
        let source_is_lo = if source == destination {
            tuple.sport.get() <= tuple.dport.get()
        } else {
            source < destination
        };
        let t = tuple;
        let (lo, hi, lo_port, hi_port) = if source_is_lo {
            (t.source, t.destination, t.sport, t.dport)
        } else {
            (t.destination, t.source, t.dport, t.sport)
        };
        let protocol = t.protocol;
        (
            CtKey4 {
                lo,
                hi,
                lo_port,
                hi_port,
                protocol,
                pad: [0; 3],
            },
            source_is_lo,
        )
    }

    #[inline(always)]
    fn frag_key(tuple: &Tuple<Self>, id: [u8; 4]) -> FragKey4 {
        FragKey4 {
            source: tuple.source,
            destination: tuple.destination,
            id,
            protocol: tuple.protocol,
            pad: [0; 3],
        }
    }

    #[inline(always)]
    fn world(config: &Config) -> Identity {
        if config.flags & config::DUAL_STACK == 0 {
            ids::WORLD
        } else {
            ids::WORLD_IPV4
        }
    }

    #[inline(always)]
    fn addresses<P: Packet>(packet: &mut P, facts: &mut Facts<Self>) -> Result<(), DropReason> {
        parse::addresses4(packet, facts)
    }

    #[inline(always)]
    fn on_link<P: Packet, T: Tables<Self>>(
        _: &mut P,
        _: &T,
        _: &mut Facts<Self>,
        _: usize,
    ) -> Option<Outcome> {
        None
    }

    #[inline(always)]
    fn parse<P: Packet, T: FragTable<Self> + Node>(
        packet: &mut P,
        tables: &mut T,
        facts: &mut Facts<Self>,
    ) -> Result<Parsed<Self>, DropReason> {
        parse::ipv4(packet, tables, facts)
    }

    #[inline(always)]
    fn parse_quoted<P: Packet>(packet: &P, offset: usize) -> Option<Tuple<Self>> {
        parse::quoted4(packet, offset)
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
    fn widen(address: &Addr6) -> Addr6 {
        *address
    }

    #[inline(always)]
    fn ct_key(tuple: &Tuple<Self>) -> (CtKey6, bool) {
        let source_is_lo = sorted(tuple);
        let t = tuple;
        let (lo, hi, lo_port, hi_port) = if source_is_lo {
            (t.source, t.destination, t.sport, t.dport)
        } else {
            (t.destination, t.source, t.dport, t.sport)
        };
        let protocol = t.protocol;
        (
            CtKey6 {
                lo,
                hi,
                lo_port,
                hi_port,
                protocol,
                pad: [0; 3],
            },
            source_is_lo,
        )
    }

    #[inline(always)]
    fn frag_key(tuple: &Tuple<Self>, id: [u8; 4]) -> FragKey6 {
        FragKey6 {
            source: tuple.source,
            destination: tuple.destination,
            id,
            protocol: tuple.protocol,
            pad: [0; 3],
        }
    }

    #[inline(always)]
    fn world(config: &Config) -> Identity {
        if config.flags & config::DUAL_STACK == 0 {
            ids::WORLD
        } else {
            ids::WORLD_IPV6
        }
    }

    #[inline(always)]
    fn addresses<P: Packet>(packet: &mut P, facts: &mut Facts<Self>) -> Result<(), DropReason> {
        parse::addresses6(packet, facts)
    }

    #[inline(always)]
    fn on_link<P: Packet, T: Tables<Self>>(
        packet: &mut P,
        tables: &T,
        facts: &mut Facts<Self>,
        l4: usize,
    ) -> Option<Outcome> {
        reply::neighbour_discovery(packet, tables, facts, l4)
    }

    #[inline(always)]
    fn parse<P: Packet, T: FragTable<Self> + Node>(
        packet: &mut P,
        tables: &mut T,
        facts: &mut Facts<Self>,
    ) -> Result<Parsed<Self>, DropReason> {
        parse::ipv6(packet, tables, facts)
    }

    #[inline(always)]
    fn parse_quoted<P: Packet>(packet: &P, offset: usize) -> Option<Tuple<Self>> {
        parse::quoted6(packet, offset)
    }

    #[inline(always)]
    fn decrement_hops<P: Packet>(packet: &mut P) -> Result<(), DropReason> {
        edit::decrement_hop_limit(packet)
    }
}

/// Whether the sender is the `lo` end.
#[inline(always)]
fn sorted(tuple: &Tuple<V6>) -> bool {
    let (a, b) = (tuple.source.words(), tuple.destination.words());
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
    tuple.sport.get() <= tuple.dport.get()
}
