//! Answers to a pod's questions about its neighbours: every address is behind the gateway, so the gateway answers for
//! all but the pod's own (RFC 826, RFC 4861).

use datapath_abi::{Addr4, Addr6, Be16, DropReason};

use crate::facts::Facts;
use crate::family::{V4, V6};
use crate::packet::Packet;
use crate::pipeline::Outcome;
use crate::tables::{IpTable, Node};
use crate::verdict::Verdict;
use crate::wire::arp::{self, Arp};
use crate::wire::ethernet::{self, Addresses, Ethernet};
use crate::wire::icmp::{self, LinkLayerOption, Neighbour};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::l4;

/// ARP from a pod.
#[inline(always)]
pub fn arp<P: Packet, T: IpTable<V4> + Node>(
    packet: &mut P,
    tables: &T,
    facts: &mut Facts<V4>,
) -> Outcome {
    packet.pull(42);
    let question: Arp = packet
        .load(ethernet::LEN)
        .ok_or(DropReason::InvalidPacket)?;
    if question.hardware != arp::ETHERNET
        || question.protocol != ethernet::IPV4
        || question.hardware_len != 6
        || question.protocol_len != 4
    {
        return Err(DropReason::InvalidPacket);
    }
    facts.tuple.source = Addr4(question.sender);
    facts.tuple.destination = Addr4(question.target);
    // A probe (RFC 5227) has no sender: nobody else here has the address, so nobody answers.
    if question.operation == arp::REQUEST && question.sender == [0; 4] {
        return Err(DropReason::UnknownTarget);
    }
    let sender = tables
        .owner(&Addr4(question.sender))
        .ok_or(DropReason::InvalidSourceIp)?;
    if sender.ifindex != facts.ifindex {
        return Err(DropReason::InvalidSourceIp);
    }
    facts.endpoint = sender.endpoint;
    facts.source_identity = sender.identity;
    if question.operation == arp::REPLY {
        // The node's stack had asked.
        return Ok(Verdict::Pass);
    }
    if question.operation != arp::REQUEST || question.target == question.sender {
        return Err(DropReason::UnknownTarget);
    }
    let gateway = tables.config().host_mac;
    let answer = Arp {
        operation: arp::REPLY,
        sender_mac: gateway,
        sender: question.target,
        target_mac: question.sender_mac,
        target: question.sender,
        ..question
    };
    let header = Ethernet {
        destination: question.sender_mac,
        source: gateway,
        ethertype: ethernet::ARP,
    };
    packet.store(0, header).ok_or(DropReason::WriteError)?;
    packet
        .store(ethernet::LEN, answer)
        .ok_or(DropReason::WriteError)?;
    Ok(Verdict::Reflect)
}

/// ICMPv6 that stays on the link; `None` for what is forwarded like any other packet.
#[inline(always)]
pub fn neighbour_discovery<P: Packet, T: IpTable<V6> + Node>(
    packet: &mut P,
    tables: &T,
    facts: &mut Facts<V6>,
    l4: usize,
) -> Option<Outcome> {
    if facts.tuple.protocol != l4::ICMP6 {
        return None;
    }
    match facts.port.0[1] {
        icmp::NEIGHBOUR_SOLICITATION => Some(solicitation(packet, tables, facts, l4)),
        icmp::NEIGHBOUR_ADVERTISEMENT => Some(advertisement(packet, tables, facts, l4)),
        // Multicast listeners, routers, redirects: nothing that a pod may tell the node or other pods.
        130..=134 | 137 | 143 => Some(Err(DropReason::ForbiddenIcmp6)),
        _ => None,
    }
}

#[inline(always)]
fn solicitation<P: Packet, T: IpTable<V6> + Node>(
    packet: &mut P,
    tables: &T,
    facts: &mut Facts<V6>,
    l4: usize,
) -> Outcome {
    let at = ethernet::LEN + ipv6::LEN;
    if l4 != at {
        return Err(DropReason::InvalidPacket);
    }
    let ip: Ipv6 = packet
        .load(ethernet::LEN)
        .ok_or(DropReason::InvalidPacket)?;
    let question: Neighbour = packet.load(at).ok_or(DropReason::InvalidPacket)?;
    // RFC 4861, 7.1.1: only from the link itself.
    if ip.hop_limit != 255 {
        return Err(DropReason::InvalidPacket);
    }
    // Duplicate address detection: nobody else here has the address.
    if ip.source.words() == [0; 4] {
        return Err(DropReason::UnknownTarget);
    }
    own_address(tables, facts, &ip.source)?;
    let target = Addr6(question.target);
    if let Some(owner) = tables.owner(&target)
        && owner.ifindex == facts.ifindex
    {
        return Err(DropReason::UnknownTarget);
    }
    let len = ip.payload_len.get();
    if len != 24 && len != 32 {
        return Err(DropReason::UnknownTarget);
    }
    let gateway = tables.config().host_mac;
    let asker: Ethernet = packet.load(0).ok_or(DropReason::InvalidPacket)?;
    let mut answer = Neighbour {
        kind: icmp::NEIGHBOUR_ADVERTISEMENT,
        code: 0,
        checksum: Be16::ZERO,
        flags: icmp::ADVERTISE,
        target: question.target,
    };
    let option = LinkLayerOption {
        kind: 2,
        len: 1,
        mac: gateway,
    };
    let mut sum = u32::from(len) + u32::from(ip.next_header);
    sum += words(&target) + words(&ip.source) + words(&target);
    sum += u32::from(u16::from_be_bytes([answer.kind, 0]))
        + u32::from(u16::from_be_bytes([answer.flags[0], 0]));
    if len == 32 {
        let m = gateway.0;
        sum += 0x0201 + pair(m[0], m[1]) + pair(m[2], m[3]) + pair(m[4], m[5]);
        packet
            .store(at + 24, option)
            .ok_or(DropReason::WriteError)?;
    }
    answer.checksum = folded(sum);
    let header = Ipv6 {
        source: target,
        destination: ip.source,
        ..ip
    };
    packet
        .store(
            0,
            Addresses {
                destination: asker.source,
                source: gateway,
            },
        )
        .ok_or(DropReason::WriteError)?;
    packet
        .store(ethernet::LEN, header)
        .ok_or(DropReason::WriteError)?;
    packet.store(at, answer).ok_or(DropReason::WriteError)?;
    Ok(Verdict::Reflect)
}

/// The node's stack had asked; the pod may answer for its own addresses.
#[inline(always)]
fn advertisement<P: Packet, T: IpTable<V6> + Node>(
    packet: &mut P,
    tables: &T,
    facts: &mut Facts<V6>,
    l4: usize,
) -> Outcome {
    let answer: Neighbour = packet.load(l4).ok_or(DropReason::InvalidPacket)?;
    own_address(tables, facts, &Addr6(answer.target))?;
    Ok(Verdict::Pass)
}

/// Whether the pod may speak for the address: its own, or a link-local one, which means nothing beyond its veth.
#[inline(always)]
fn own_address<T: IpTable<V6>>(
    tables: &T,
    facts: &mut Facts<V6>,
    address: &Addr6,
) -> Result<(), DropReason> {
    if ipv6::is_link_local(address) {
        return Ok(());
    }
    let owner = tables.owner(address).ok_or(DropReason::InvalidSourceIp)?;
    if owner.ifindex != facts.ifindex {
        return Err(DropReason::InvalidSourceIp);
    }
    facts.endpoint = owner.endpoint;
    facts.source_identity = owner.identity;
    Ok(())
}

/// Sum of an address's 16-bit words.
#[inline(always)]
fn words(address: &Addr6) -> u32 {
    let a = &address.0;
    pair(a[0], a[1])
        + pair(a[2], a[3])
        + pair(a[4], a[5])
        + pair(a[6], a[7])
        + pair(a[8], a[9])
        + pair(a[10], a[11])
        + pair(a[12], a[13])
        + pair(a[14], a[15])
}

#[inline(always)]
const fn pair(high: u8, low: u8) -> u32 {
    u16::from_be_bytes([high, low]) as u32
}

/// The Internet checksum of a sum of 16-bit words (RFC 1071).
#[inline(always)]
fn folded(sum: u32) -> Be16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let [.., high, low] = (!(sum + (sum >> 16))).to_be_bytes();
    Be16([high, low])
}
