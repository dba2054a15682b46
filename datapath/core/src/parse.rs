//! From bytes to addresses and ports. Every length is checked against the header that states it and against the frame.

use datapath_abi::{Addr6, Be16, CtKey4, CtKey6, DropReason, FragEntry};

use crate::facts::Facts;
use crate::family::{Ends, Family, V4, V6};
use crate::packet::Packet;
use crate::tables::{FragTable, Node};
use crate::wire::ethernet;
use crate::wire::icmp::{self, Icmp};
use crate::wire::ipv4::{self, Ipv4};
use crate::wire::ipv6::{self, Extension, Ipv6Start};
use crate::wire::l4::{self, Ports};

/// Bytes that must be readable for every header that is looked at, but for quoted datagrams.
pub const HEADERS: u32 = 14 + 40 + 40 + 20;
/// Bytes of quoted headers behind an ICMP header.
const QUOTED: u32 = 40 + 24 + 8;
/// Extension headers that are followed.
const EXTENSIONS: usize = 4;
/// Where the L4 header of an IPv6 packet may start at the latest.
const LAST_L4: usize = 14 + 40 + 256;

/// The two ends of a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tuple<F: Family> {
    /// Source.
    pub source: F::Addr,
    /// Destination.
    pub destination: F::Addr,
    /// Source port. ICMP echo: the identifier in a request, 0 in a reply, so that a request of the other end is
    /// another flow.
    pub sport: Be16,
    /// Destination port. ICMP echo: the identifier in a reply, 0 in a request.
    pub dport: Be16,
    /// IANA number.
    pub protocol: u8,
}

/// What the L4 header is to connection tracking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// TCP: flags count.
    Tcp,
    /// UDP, SCTP, ICMP echo.
    Datagram,
    /// An ICMP error: belongs to the flow it quotes.
    Error,
    /// Other ICMP: each packet for itself.
    Single,
}

/// What the headers say.
#[derive(Clone, Copy, Debug)]
pub struct Parsed {
    /// Offset of the L4 header in the frame.
    pub l4: usize,
    /// How it is tracked.
    pub class: Class,
    /// What policy knows as the port: destination port, or ICMP type.
    pub port: Be16,
    /// ICMP fragmentation needed, or ICMPv6 packet too big.
    pub path_mtu: bool,
}

struct Fragment {
    id: [u8; 4],
    first: bool,
}

#[inline(always)]
pub(crate) fn addresses4<P: Packet>(packet: &mut P, facts: &mut Facts<V4>) -> Result<(), DropReason> {
    packet.pull(HEADERS);
    let header: Ipv4 = packet.load(ethernet::LEN).ok_or(DropReason::InvalidPacket)?;
    facts.tuple.source = header.source;
    facts.tuple.destination = header.destination;
    facts.tuple.protocol = header.protocol;
    Ok(())
}

#[inline(always)]
pub(crate) fn addresses6<P: Packet>(packet: &mut P, facts: &mut Facts<V6>) -> Result<(), DropReason> {
    packet.pull(HEADERS);
    let header: Ipv6Start = packet.load(ethernet::LEN).ok_or(DropReason::InvalidPacket)?;
    facts.tuple.source = packet.load(ethernet::LEN + ipv6::SOURCE).ok_or(DropReason::InvalidPacket)?;
    facts.tuple.destination = packet.load(ethernet::LEN + ipv6::DESTINATION).ok_or(DropReason::InvalidPacket)?;
    facts.tuple.protocol = header.next_header;
    Ok(())
}

#[inline(always)]
pub(crate) fn ipv4<P: Packet, T: FragTable<V4> + Node>(
    packet: &mut P,
    tables: &T,
    facts: &mut Facts<V4>,
) -> Result<Parsed, DropReason> {
    packet.pull(HEADERS);
    let header: Ipv4 = packet.load(ethernet::LEN).ok_or(DropReason::InvalidPacket)?;
    let header_len = usize::from(header.version_ihl & 0xf) * 4;
    let total_len = u32::from(header.total_len.get());
    facts.tuple.source = header.source;
    facts.tuple.destination = header.destination;
    facts.tuple.protocol = header.protocol;
    if header.version_ihl >> 4 != 4 || header_len < ipv4::LEN {
        return Err(DropReason::InvalidPacket);
    }
    let Some(payload) = total_len.checked_sub(length(header_len)) else {
        return Err(DropReason::InvalidPacket);
    };
    if total_len + length(ethernet::LEN) > facts.len {
        return Err(DropReason::InvalidPacket);
    }
    let l4 = ethernet::LEN + header_len;
    let fragment = header.fragment.get() & (ipv4::MORE_FRAGMENTS | ipv4::OFFSET_MASK);
    if fragment == 0 {
        return upper(packet, facts, l4, payload);
    }
    let id = header.id.octets();
    let part = Fragment { id: [0, 0, id[0], id[1]], first: fragment & ipv4::OFFSET_MASK == 0 };
    fragmented(packet, tables, facts, l4, payload, &part)
}

#[inline(always)]
pub(crate) fn ipv6<P: Packet, T: FragTable<V6> + Node>(
    packet: &mut P,
    tables: &T,
    facts: &mut Facts<V6>,
) -> Result<Parsed, DropReason> {
    addresses6(packet, facts)?;
    let header: Ipv6Start = packet.load(ethernet::LEN).ok_or(DropReason::InvalidPacket)?;
    if header.version_class_flow[0] >> 4 != 6 {
        return Err(DropReason::InvalidPacket);
    }
    let end = length(ethernet::LEN + ipv6::LEN) + u32::from(header.payload_len.get());
    if end > facts.len {
        return Err(DropReason::InvalidPacket);
    }
    let mut next = header.next_header;
    let mut l4 = ethernet::LEN + ipv6::LEN;
    let mut part: Option<Fragment> = None;
    for _ in 0..EXTENSIONS {
        let (fragment_header, words) = match next {
            ipv6::HOP_BY_HOP | ipv6::ROUTING | ipv6::DESTINATION_OPTIONS => (false, 8),
            ipv6::AUTHENTICATION => (false, 4),
            ipv6::FRAGMENT => (true, 0),
            _ => break,
        };
        packet.pull(length(l4) + HEADERS - 54);
        let extension: Extension = packet.load(l4).ok_or(DropReason::InvalidExtensionHeader)?;
        if fragment_header {
            let offset = extension.fragment.get();
            // An atomic fragment (RFC 6946) is a whole datagram.
            if offset & 0xfff9 != 0 {
                part = Some(Fragment { id: extension.id, first: offset & 0xfff8 == 0 });
            }
            l4 += 8;
        } else {
            let extra = if words == 8 { 1 } else { 2 };
            l4 += (usize::from(extension.len) + extra) * words;
        }
        next = extension.next_header;
        if l4 > LAST_L4 {
            return Err(DropReason::InvalidExtensionHeader);
        }
        if part.as_ref().is_some_and(|fragment| !fragment.first) {
            break;
        }
    }
    facts.tuple.protocol = next;
    let Some(payload) = end.checked_sub(length(l4)) else {
        return Err(DropReason::InvalidPacket);
    };
    match part {
        None => upper(packet, facts, l4, payload),
        Some(part) => fragmented(packet, tables, facts, l4, payload, &part),
    }
}

/// A first fragment leaves its ports behind; the others take them up.
#[inline(always)]
fn fragmented<F: Family, P: Packet, T: FragTable<F> + Node>(
    packet: &mut P,
    tables: &T,
    facts: &mut Facts<F>,
    l4: usize,
    payload: u32,
    part: &Fragment,
) -> Result<Parsed, DropReason> {
    let key = F::frag_key(&facts.tuple, part.id);
    let now = tables.now();
    if part.first {
        let parsed = upper(packet, facts, l4, payload)?;
        let entry = FragEntry {
            expires: now + u64::from(tables.config().fragment),
            sport: facts.tuple.sport,
            dport: facts.tuple.dport,
            icmp_type: parsed.port.octets()[1],
            pad: [0; 3],
        };
        tables.remember_fragment(&key, &entry);
        return Ok(parsed);
    }
    let entry = tables.fragment(&key).ok_or(DropReason::FragmentNotFound)?;
    if entry.expires <= now {
        return Err(DropReason::FragmentNotFound);
    }
    facts.tuple.sport = entry.sport;
    facts.tuple.dport = entry.dport;
    let icmp = facts.tuple.protocol == F::ICMP;
    let port = if icmp { Be16::new(u16::from(entry.icmp_type)) } else { entry.dport };
    facts.port = port;
    // Without flags of its own a later TCP fragment moves no state.
    Ok(Parsed { l4, class: Class::Datagram, port, path_mtu: false })
}

/// The L4 header at `l4`, of a payload of `payload` bytes.
#[inline(always)]
fn upper<F: Family, P: Packet>(
    packet: &mut P,
    facts: &mut Facts<F>,
    l4: usize,
    payload: u32,
) -> Result<Parsed, DropReason> {
    let protocol = facts.tuple.protocol;
    if protocol == F::ICMP {
        return control(packet, facts, l4, payload);
    }
    let (needed, class) = match protocol {
        l4::TCP => (l4::TCP_LEN, Class::Tcp),
        l4::UDP => (l4::UDP_LEN, Class::Datagram),
        l4::SCTP => (l4::SCTP_LEN, Class::Datagram),
        // More of them than are followed.
        ipv6::HOP_BY_HOP | ipv6::ROUTING | ipv6::FRAGMENT | ipv6::AUTHENTICATION | ipv6::DESTINATION_OPTIONS
            if F::IS_V6 =>
        {
            return Err(DropReason::InvalidExtensionHeader);
        }
        _ => return Err(DropReason::CtUnknownProtocol),
    };
    if payload < needed {
        return Err(DropReason::CtInvalidHeader);
    }
    let ports: Ports = packet.load(l4).ok_or(DropReason::CtInvalidHeader)?;
    facts.tuple.sport = ports.source;
    facts.tuple.dport = ports.destination;
    facts.port = ports.destination;
    if class == Class::Tcp {
        facts.tcp_flags = packet.load(l4 + l4::TCP_FLAGS).ok_or(DropReason::CtInvalidHeader)?;
    }
    Ok(Parsed { l4, class, port: ports.destination, path_mtu: false })
}

/// ICMP and ICMPv6.
#[inline(always)]
fn control<F: Family, P: Packet>(
    packet: &mut P,
    facts: &mut Facts<F>,
    l4: usize,
    payload: u32,
) -> Result<Parsed, DropReason> {
    if payload < length(icmp::LEN) {
        return Err(DropReason::CtInvalidHeader);
    }
    let header: Icmp = packet.load(l4).ok_or(DropReason::CtInvalidHeader)?;
    let port = Be16::new(u16::from(header.kind));
    facts.port = port;
    let mut parsed = Parsed { l4, class: Class::Single, port, path_mtu: false };
    if is_error::<F>(header.kind) {
        parsed.class = Class::Error;
        parsed.path_mtu = if F::IS_V6 {
            header.kind == icmp::PACKET_TOO_BIG6
        } else {
            header.kind == icmp::UNREACHABLE && header.code == icmp::FRAGMENTATION_NEEDED
        };
    } else if let Some((sport, dport)) = echo::<F>(&header) {
        parsed.class = Class::Datagram;
        facts.tuple.sport = sport;
        facts.tuple.dport = dport;
    }
    Ok(parsed)
}

/// Ports of an echo request or reply.
#[inline(always)]
fn echo<F: Family>(header: &Icmp) -> Option<(Be16, Be16)> {
    let (request, reply) = if F::IS_V6 { (icmp::ECHO6, icmp::ECHO_REPLY6) } else { (icmp::ECHO, icmp::ECHO_REPLY) };
    if header.kind == request {
        Some((header.id, Be16::ZERO))
    } else if header.kind == reply {
        Some((Be16::ZERO, header.id))
    } else {
        None
    }
}

#[inline(always)]
fn is_error<F: Family>(kind: u8) -> bool {
    if F::IS_V6 {
        kind != 0 && kind <= icmp::LAST_ERROR6
    } else {
        matches!(kind, icmp::UNREACHABLE | icmp::TIME_EXCEEDED | icmp::PARAMETER_PROBLEM)
    }
}

/// Key of the flow that an ICMP error quotes, seen in the direction of the error.
#[inline(always)]
pub(crate) fn quoted<F: Family, P: Packet>(
    packet: &mut P,
    parsed: &Parsed,
    error: &Tuple<F>,
    from_pod: bool,
    key: &mut F::CtKey,
) -> Option<bool> {
    let offset = parsed.l4 + icmp::LEN;
    packet.pull(length(offset) + QUOTED);
    F::quoted_key(packet, packet.bounded(offset), error, from_pod, key)
}

#[inline(always)]
pub(crate) fn quoted4<P: Packet>(
    packet: &P,
    offset: usize,
    error: &Tuple<V4>,
    from_pod: bool,
    key: &mut CtKey4,
) -> Option<bool> {
    let header: Ipv4 = packet.load(offset)?;
    let header_len = usize::from(header.version_ihl & 0xf) * 4;
    if header.version_ihl >> 4 != 4 || header_len < ipv4::LEN || header.fragment.get() & ipv4::OFFSET_MASK != 0 {
        return None;
    }
    let (sport, dport) = quoted_ports::<V4, P>(packet, header.protocol, offset + header_len)?;
    let (source, destination) = (&header.destination, &header.source);
    // A quote is easily made up: the error must go to who sent the quoted packet (as in Linux, nf_conntrack_inet_error).
    if destination.word() != error.destination.word() || (from_pod && source.word() != error.source.word()) {
        return None;
    }
    Some(V4::ct_key(key, &Ends { source, destination, sport: dport, dport: sport, protocol: header.protocol }))
}

#[inline(always)]
pub(crate) fn quoted6<P: Packet>(
    packet: &P,
    offset: usize,
    error: &Tuple<V6>,
    from_pod: bool,
    key: &mut CtKey6,
) -> Option<bool> {
    let header: Ipv6Start = packet.load(offset)?;
    if header.version_class_flow[0] >> 4 != 6 {
        return None;
    }
    let protocol = header.next_header;
    let (sport, dport) = quoted_ports::<V6, P>(packet, protocol, offset + ipv6::LEN)?;
    let source: &Addr6 = &packet.load(offset + ipv6::DESTINATION)?;
    let destination: &Addr6 = &packet.load(offset + ipv6::SOURCE)?;
    if !same(destination, &error.destination) || (from_pod && !same(source, &error.source)) {
        return None;
    }
    Some(V6::ct_key(key, &Ends { source, destination, sport: dport, dport: sport, protocol }))
}

/// Word by word: a comparison of whole arrays would become a call.
#[inline(always)]
fn same(a: &Addr6, b: &Addr6) -> bool {
    let (a, b) = (a.words(), b.words());
    a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3]
}

#[inline(always)]
fn quoted_ports<F: Family, P: Packet>(packet: &P, protocol: u8, offset: usize) -> Option<(Be16, Be16)> {
    if protocol == F::ICMP {
        return echo::<F>(&packet.load(offset)?);
    }
    match protocol {
        l4::TCP | l4::UDP | l4::SCTP => {
            let ports: Ports = packet.load(offset)?;
            Some((ports.source, ports.destination))
        }
        _ => None,
    }
}

/// A small length as the number that frames are measured in.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "offsets of headers are far below 2^32")]
pub(crate) const fn length(bytes: usize) -> u32 {
    bytes as u32
}
