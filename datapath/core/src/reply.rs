//! Answers to a pod's questions about its neighbours: every address is behind the gateway, so the gateway answers for
//! all but the pod's own (RFC 826, RFC 4861).

use datapath_abi::{Addr4, Addr6, Be16, DropReason};

use crate::facts::Facts;
use crate::family::{Family, V4, V6};
use crate::packet::Packet;
use crate::pipeline::Outcome;
use crate::tables::{IpTable, Node, Tables};
use crate::verdict::Verdict;
use crate::wire::arp::{self, Arp};
use crate::wire::ethernet::{self, Addresses, Ethernet};
use crate::wire::icmp::{self, LinkLayerOption, Neighbour};
use crate::wire::ipv6::{self, Ipv6};
use crate::wire::l4;

/// ARP from a pod.
#[inline(always)]
pub fn arp<P: Packet, T: IpTable<V4> + Node>(packet: &mut P, tables: &T, facts: &mut Facts<V4>) -> Outcome {
    packet.pull(42);
    let question: Arp = packet.load(ethernet::LEN).ok_or(DropReason::InvalidPacket)?;
    if question.hardware != arp::ETHERNET
        || question.protocol != ethernet::IPV4
        || question.hardware_len != 6
        || question.protocol_len != 4
    {
        return Err(DropReason::InvalidPacket);
    }
    facts.tuple.source = Addr4::from_octets(question.sender);
    facts.tuple.destination = Addr4::from_octets(question.target);
    // A probe (RFC 5227) has no sender: nobody else here has the address, so nobody answers.
    if question.operation == arp::REQUEST && question.sender == [0; 4] {
        return Err(DropReason::UnknownTarget);
    }
    let sender = tables.owner(&Addr4::from_octets(question.sender)).ok_or(DropReason::InvalidSourceIp)?;
    if sender.ifindex != facts.ifindex {
        return Err(DropReason::InvalidSourceIp);
    }
    facts.endpoint = sender.endpoint;
    facts.source_identity = sender.identity;
    if question.operation == arp::REPLY {
        // The node's stack had asked.
        return Ok(Verdict::PASS);
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
    let header = Ethernet { destination: question.sender_mac, source: gateway, ethertype: ethernet::ARP };
    packet.store(0, header).ok_or(DropReason::WriteError)?;
    packet.store(ethernet::LEN, answer).ok_or(DropReason::WriteError)?;
    Ok(Verdict::REFLECT)
}

/// Whether it is ICMPv6 that stays on the link: neighbour discovery, multicast listeners, routers, redirects.
#[inline(always)]
pub fn is_on_link(facts: &Facts<V6>) -> bool {
    facts.tuple.protocol == l4::ICMP6 && matches!(facts.port.octets()[1], 130..=137 | 143)
}

/// ICMPv6 from a pod that stays on the link.
#[inline(always)]
pub fn on_link<P: Packet, T: Tables<V6>>(packet: &mut P, tables: &T, facts: &mut Facts<V6>) -> Outcome {
    V6::addresses(packet, facts)?;
    facts.tuple.protocol = l4::ICMP6;
    let at = ethernet::LEN + ipv6::LEN;
    let ip: Ipv6 = packet.load(ethernet::LEN).ok_or(DropReason::InvalidPacket)?;
    // Behind extension headers it is nothing that a neighbour sends.
    if ip.next_header != l4::ICMP6 {
        return Err(DropReason::ForbiddenIcmp6);
    }
    let kind: u8 = packet.load(at).ok_or(DropReason::InvalidPacket)?;
    facts.port = Be16::new(u16::from(kind));
    if kind != icmp::NEIGHBOUR_SOLICITATION && kind != icmp::NEIGHBOUR_ADVERTISEMENT {
        // Nothing that a pod may tell the node or other pods. Some are shorter than what is read below.
        return Err(DropReason::ForbiddenIcmp6);
    }
    let message: Neighbour = packet.load(at).ok_or(DropReason::InvalidPacket)?;
    if kind == icmp::NEIGHBOUR_SOLICITATION {
        return solicitation(packet, tables, facts, &ip, &message);
    }
    // The node's stack had asked; the pod may answer for its own addresses.
    own_address(tables, facts, &Addr6::from_octets(message.target))?;
    Ok(Verdict::PASS)
}

#[inline(always)]
fn solicitation<P: Packet, T: Tables<V6>>(
    packet: &mut P,
    tables: &T,
    facts: &mut Facts<V6>,
    ip: &Ipv6,
    question: &Neighbour,
) -> Outcome {
    let at = ethernet::LEN + ipv6::LEN;
    // RFC 4861, 7.1.1: only from the link itself.
    if ip.hop_limit != 255 {
        return Err(DropReason::InvalidPacket);
    }
    // Duplicate address detection: nobody else here has the address.
    if ip.source.is_zero() {
        return Err(DropReason::UnknownTarget);
    }
    own_address(tables, facts, &ip.source)?;
    let target = Addr6::from_octets(question.target);
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
    let option = LinkLayerOption { kind: 2, len: 1, mac: gateway };
    let mut sum = u32::from(len) + u32::from(ip.next_header);
    sum += words(&target) + words(&ip.source) + words(&target);
    sum += u32::from(u16::from_be_bytes([answer.kind, 0])) + u32::from(u16::from_be_bytes([answer.flags[0], 0]));
    if len == 32 {
        let [a, b, c] = gateway.words();
        sum += 0x0201 + u32::from(a) + u32::from(b) + u32::from(c);
        packet.store(at + 24, option).ok_or(DropReason::WriteError)?;
    }
    answer.checksum = folded(sum);
    let header = Ipv6 { source: target, destination: ip.source, ..*ip };
    packet.store(0, Addresses { destination: asker.source, source: gateway }).ok_or(DropReason::WriteError)?;
    packet.store(ethernet::LEN, header).ok_or(DropReason::WriteError)?;
    packet.store(at, answer).ok_or(DropReason::WriteError)?;
    Ok(Verdict::REFLECT)
}

/// Whether the pod may speak for the address: its own, or a link-local one, which means nothing beyond its veth.
#[inline(always)]
fn own_address<T: IpTable<V6>>(tables: &T, facts: &mut Facts<V6>, address: &Addr6) -> Result<(), DropReason> {
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
    let [a, b, c, d] = address.words().map(u32::from_be);
    halves(a) + halves(b) + halves(c) + halves(d)
}

#[inline(always)]
const fn halves(word: u32) -> u32 {
    (word >> 16) + (word & 0xffff)
}

/// The Internet checksum of a sum of 16-bit words (RFC 1071).
#[inline(always)]
fn folded(sum: u32) -> Be16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let [.., high, low] = (!(sum + (sum >> 16))).to_be_bytes();
    Be16::from_octets([high, low])
}
