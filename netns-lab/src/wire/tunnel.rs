//! What a tunnel packet must look like, judged from captures of one direction of traffic at all four devices on its way:
//! the sender's, its node's, the other node's, the receiver's.
//!
//! - Every frame of the sender is in one tunnel packet, unchanged to the last bit; nothing else of these pods is.
//! - The VNI is the sender's identity; outer addresses are the nodes'; TTL 64, do-not-fragment off (the receiver's limit
//!   is not the sender's to know; as `net/ipv4/ip_tunnel.c` does unless asked); no UDP checksum over IPv4, a right one over IPv6.
//! - The outer source port is in the range that `udp_flow_src_port` uses, and depends on nothing but the flow.
//! - The tunnel packet arrives as it was sent.
//! - The receiver gets the frame with its own Ethernet addresses and one hop less, and is otherwise equal.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::ops::RangeInclusive;

use simulator::cluster::tunnel::Protocol;

use crate::capture::Frame;
use crate::wire::packet::{Mac, Packet, Sums, verify};
use crate::wire::taps::Found;

/// Outer TTL.
pub const OUTER_HOPS: u8 = 64;
/// Hops that weir takes off a packet on its way to a pod.
pub const HOPS_TAKEN: u8 = 1;

/// Outer source ports that the kernel uses, and the header around the VNI: of VXLAN flags (the VNI is valid) and reserved
/// bits; of Geneve version 0 without options and flags, Ethernet inside, and a reserved byte.
const fn rules(protocol: Protocol) -> (RangeInclusive<u16>, [u8; 5]) {
    match protocol {
        // The default `net.ipv4.ip_local_port_range`.
        Protocol::Vxlan => (32_768..=60_999, [8, 0, 0, 0, 0]),
        Protocol::Geneve => (1..=65_534, [0, 0, 0x65, 0x58, 0]),
    }
}

/// What must be on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// What tunnels speak.
    pub protocol: Protocol,
    /// The sender's identity.
    pub identity: u32,
    /// Addresses of the nodes, sender's first.
    pub nodes: (IpAddr, IpAddr),
    /// Ethernet addresses of frames to the receiver: gateway, pod.
    pub macs: (Mac, Mac),
}

/// One direction, where each frame was seen.
#[derive(Clone, Debug, Default)]
pub struct Journey<'a> {
    /// Out of the sender.
    pub sent: Vec<&'a Frame>,
    /// Out of its node's underlay device.
    pub left: Vec<&'a Frame>,
    /// Into the other node's.
    pub right: Vec<&'a Frame>,
    /// Into the receiver.
    pub received: Vec<&'a Frame>,
}

/// What of a packet says which flow it belongs to.
type Flow = (IpAddr, IpAddr, u8, Option<(u16, u16)>);

/// Judges one direction.
///
/// # Errors
/// The first thing that is wrong, in words.
pub fn judge(journey: &Journey<'_>, expected: &Expected) -> Found {
    let mut sent = queues(&journey.sent);
    let mut ports: BTreeMap<Flow, u16> = BTreeMap::new();
    let mut sums = Sums::default();
    for frame in &journey.left {
        let bytes = frame.completed();
        let packet = Packet::read(&bytes).map_err(|wrong| wrong.to_string())?;
        outer(&packet, expected)?;
        sums += packet.verify().map_err(|wrong| format!("on the wire: {wrong}"))?;
        let tunnelled = packet.tunnelled().ok_or("no tunnel header")?;
        if sent.get_mut(tunnelled.inner).and_then(VecDeque::pop_front).is_none() {
            return Err(format!("in the tunnel is what nobody sent: {:02x?}", tunnelled.inner));
        }
        let flow = flow(tunnelled.inner).ok_or("in the tunnel is no IP packet")?;
        let port = ports.entry(flow).or_insert(tunnelled.port);
        if *port != tunnelled.port {
            return Err(format!("outer source ports {port} and {} of one flow {flow:?}", tunnelled.port));
        }
    }
    let missing: usize = sent.values().map(VecDeque::len).sum();
    if missing > 0 {
        return Err(format!("{missing} frames of {} are not in the tunnel", journey.sent.len()));
    }
    let distinct: BTreeSet<u16> = ports.values().copied().collect();
    if ports.len() >= 8 && distinct.len() < 2 {
        return Err(format!("{} flows have one outer source port, {distinct:?}", ports.len()));
    }
    same(&journey.left, &journey.right)?;
    received(&journey.sent, &journey.received, expected.macs)?;
    Ok(format!(
        "{} packets of {} flows with VNI {}, {} outer ports, {} checksums",
        journey.left.len(),
        ports.len(),
        expected.identity,
        distinct.len(),
        sums.headers + sums.transports
    ))
}

/// The receiver's frames are the sender's, with other Ethernet addresses and one hop less.
///
/// # Errors
/// The first difference.
pub fn received(sent: &[&Frame], received: &[&Frame], macs: (Mac, Mac)) -> Result<(), String> {
    if sent.is_empty() {
        return Err("nothing was sent".to_owned());
    }
    let mut wanted: BTreeMap<Vec<u8>, usize> = BTreeMap::new();
    for frame in sent {
        *wanted.entry(delivered(&frame.completed(), macs)?).or_default() += 1;
    }
    for frame in received {
        verify(frame).map_err(|wrong| format!("the receiver got: {wrong}"))?;
        let bytes = frame.completed();
        match wanted.get_mut(&bytes) {
            Some(left) if *left > 0 => *left -= 1,
            _ => return Err(format!("the receiver got what should not have arrived so: {bytes:02x?}")),
        }
    }
    match wanted.values().sum() {
        0usize => Ok(()),
        missing => Err(format!("{missing} frames of {} did not reach the receiver", sent.len())),
    }
}

fn outer(packet: &Packet<'_>, expected: &Expected) -> Result<(), String> {
    let ip = packet.ip().ok_or("no outer IP header")?;
    let tunnelled = packet.tunnelled().ok_or("no tunnel header")?;
    let (from, to) = expected.nodes;
    if (ip.source, ip.destination) != (from, to) {
        return Err(format!("outer addresses {} > {} instead of {from} > {to}", ip.source, ip.destination));
    }
    if ip.hops != OUTER_HOPS {
        return Err(format!("outer TTL {} instead of {OUTER_HOPS}", ip.hops));
    }
    if ip.fragment {
        return Err("the outer packet is in fragments".to_owned());
    }
    if ip.source.is_ipv4() && ip.whole {
        return Err("do-not-fragment is set in the outer header".to_owned());
    }
    if tunnelled.protocol != expected.protocol {
        return Err(format!("{} instead of {}", tunnelled.protocol.name(), expected.protocol.name()));
    }
    let (ports, header) = rules(tunnelled.protocol);
    if !ports.contains(&tunnelled.port) {
        return Err(format!("outer source port {}", tunnelled.port));
    }
    let [a, b, c, d, _, _, _, last] = tunnelled.header;
    if [a, b, c, d, last] != header {
        return Err(format!("tunnel header {:02x?}", tunnelled.header));
    }
    if tunnelled.vni != expected.identity {
        return Err(format!("VNI {} instead of the sender's identity {}", tunnelled.vni, expected.identity));
    }
    let none = packet.verify().map_err(|wrong| format!("on the wire: {wrong}"))?.none;
    match (ip.source.is_ipv4(), none) {
        (true, 1) | (false, 0) => Ok(()),
        (true, _) => Err("an outer UDP checksum over IPv4".to_owned()),
        (false, _) => Err("no outer UDP checksum over IPv6".to_owned()),
    }
}

/// Frames as they are with their checksums, each with how often it was seen.
fn queues<'a>(frames: &[&'a Frame]) -> BTreeMap<Vec<u8>, VecDeque<&'a Frame>> {
    let mut all: BTreeMap<Vec<u8>, VecDeque<&Frame>> = BTreeMap::new();
    for frame in frames {
        all.entry(frame.completed()).or_default().push_back(frame);
    }
    all
}

fn same(left: &[&Frame], right: &[&Frame]) -> Result<(), String> {
    let (mut left, mut right): (Vec<_>, Vec<_>) =
        (left.iter().map(|f| f.completed()).collect(), right.iter().map(|f| f.completed()).collect());
    left.sort();
    right.sort();
    if left == right {
        return Ok(());
    }
    Err(format!("{} tunnel packets left, {} others arrived", left.len(), right.len()))
}

fn flow(frame: &[u8]) -> Option<Flow> {
    let packet = Packet::read(frame).ok()?;
    let ip = packet.ip()?;
    let ports = packet.udp().or_else(|| packet.tcp()).map(|(from, to, _)| (from, to));
    Some((ip.source, ip.destination, ip.protocol, ports))
}

/// A frame as a pod must get it: from its gateway, with one hop less.
pub(super) fn delivered(frame: &[u8], (gateway, pod): (Mac, Mac)) -> Result<Vec<u8>, String> {
    let mut bytes = frame.to_vec();
    simulator::cluster::frame::set_macs(&mut bytes, pod, gateway);
    for _ in 0..HOPS_TAKEN {
        simulator::cluster::frame::forward(&mut bytes).ok_or("it was sent with no hops left")?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;
    use crate::capture::{Checksum, Way};

    const POD: Mac = [2, 0x77, 1, 0, 0, 2];
    const GATEWAY: Mac = [2, 0x77, 0, 0, 0, 1];

    fn frame(way: Way, bytes: Vec<u8>) -> Frame {
        Frame { at_ns: 0, way, checksum: Checksum::Written, segments: None, bytes }
    }

    /// What a pod sends in one of its flows.
    fn sent(flow: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], GATEWAY).ipv4([10, 0, 1, 2], [10, 0, 2, 2], 64);
        builder.udp(40_000 + flow, 53).write(&mut bytes, b"question").unwrap();
        bytes
    }

    /// The tunnel packet of a frame.
    fn tunnel(inner: &[u8], port: u16) -> Vec<u8> {
        let mut payload = vec![8, 0, 0, 0, 0, 1, 0, 0];
        payload.extend_from_slice(inner);
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ethernet2([4; 6], [6; 6]).ipv4([192, 0, 2, 1], [192, 0, 2, 2], OUTER_HOPS);
        builder.udp(port, 8472).write(&mut bytes, &payload).unwrap();
        // No fragment flags, no UDP checksum.
        bytes[20..22].fill(0);
        bytes[40..42].fill(0);
        right_header(&mut bytes);
        bytes
    }

    fn right_header(bytes: &mut [u8]) {
        bytes[24..26].fill(0);
        let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&bytes[14..34]).ones_complement();
        bytes[24..26].copy_from_slice(&sum.to_ne_bytes());
    }

    const EXPECTED: Expected = Expected {
        protocol: Protocol::Vxlan,
        identity: 256,
        nodes: (IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2))),
        macs: (GATEWAY, POD),
    };

    /// Everything as it should be: eight flows of two packets.
    fn right() -> [Vec<Frame>; 4] {
        let mut all: [Vec<Frame>; 4] = Default::default();
        for number in 0..16u16 {
            let inner = sent(number % 8);
            let packet = tunnel(&inner, 40_000 + number % 8);
            let arrived = delivered(&inner, EXPECTED.macs).unwrap();
            all[0].push(frame(Way::Out, inner));
            all[1].push(frame(Way::Out, packet.clone()));
            all[2].push(frame(Way::In, packet));
            all[3].push(frame(Way::In, arrived));
        }
        all
    }

    fn judged(all: &[Vec<Frame>; 4]) -> Found {
        let [sent, left, right, received] = all.each_ref().map(|frames| frames.iter().collect());
        judge(&Journey { sent, left, right, received }, &EXPECTED)
    }

    fn wrong(change: impl Fn(&mut [Vec<Frame>; 4])) -> String {
        let mut all = right();
        change(&mut all);
        judged(&all).unwrap_err()
    }

    /// Changes a tunnel packet where it left and where it arrived.
    fn on_the_wire(change: impl Fn(&mut Vec<u8>)) -> String {
        wrong(|all| {
            for device in [1, 2] {
                change(&mut all[device][3].bytes);
            }
        })
    }

    #[test]
    fn what_is_as_it_should_be_is_so() {
        let summary = judged(&right()).unwrap();
        assert_eq!(summary, "16 packets of 8 flows with VNI 256, 8 outer ports, 48 checksums");
    }

    #[test]
    fn every_field_of_the_outer_headers_is_looked_at() {
        let said = |change: fn(&mut Vec<u8>)| on_the_wire(change);
        assert!(said(|bytes| bytes[48] = 1).contains("VNI 257 instead of the sender's identity 256"));
        assert!(said(|bytes| bytes[42] = 0x0c).contains("tunnel header [0c, 00"));
        assert!(said(|bytes| bytes[49] = 1).contains("01, 00, 01]"));
        assert!(said(|bytes| bytes[35] ^= 1).contains("of one flow"));
        assert!(said(|bytes| bytes[34] = 3).contains("outer source port 8"));
        assert!(said(|bytes| bytes[37] = 0).contains("no tunnel header"));
        for (change, message) in [
            ((22, 63), "outer TTL 63 instead of 64"),
            ((20, 0x40), "do-not-fragment is set"),
            ((20, 0x20), "in fragments"),
            ((29, 9), "outer addresses 192.0.2.9"),
            ((33, 9), "192.0.2.1 > 192.0.2.9 instead"),
        ] {
            let text = on_the_wire(|bytes| {
                bytes[change.0] = change.1;
                right_header(bytes);
            });
            assert!(text.contains(message) || text.contains("no tunnel header"), "{text}: {message}");
        }
        assert!(said(|bytes| bytes[22] = 63).contains("checksum") || said(|bytes| bytes[22] = 63).contains("TTL"));
        assert!(said(|bytes| bytes[41] = 1).contains("checksum"));
        assert!(said(|bytes| bytes[36..38].copy_from_slice(&[0x17, 0xc1])).contains("geneve instead of vxlan"));
    }

    #[test]
    fn every_bit_of_the_inner_packet_is_looked_at() {
        let len = right()[1][3].bytes.len();
        for at in 50..len {
            for bit in 0..8 {
                on_the_wire(|bytes| bytes[at] ^= 1 << bit);
                // At one end only.
                wrong(|all| all[2][3].bytes[at] ^= 1 << bit);
            }
        }
        let len = right()[3][3].bytes.len();
        for at in 0..len {
            wrong(|all| all[3][3].bytes[at] ^= 1);
        }
    }

    #[test]
    fn frames_that_are_missing_or_too_many_are_noticed() {
        for device in 0..4 {
            wrong(|all| drop(all[device].pop()));
            wrong(|all| {
                let again = all[device][0].clone();
                all[device].push(again);
            });
            wrong(|all| all[device].clear());
        }
    }

    #[test]
    fn flows_that_share_one_port_are_noticed() {
        let text = wrong(|all| {
            for device in [1, 2] {
                for frame in &mut all[device] {
                    frame.bytes[34..36].copy_from_slice(&40_000u16.to_be_bytes());
                }
            }
        });
        assert!(text.contains("8 flows have one outer source port"), "{text}");
    }

    #[test]
    fn a_hop_that_was_not_taken_is_noticed() {
        wrong(|all| {
            let inner = all[0][3].bytes.clone();
            all[3][3].bytes = inner;
            simulator::cluster::frame::set_macs(&mut all[3][3].bytes, POD, GATEWAY);
        });
    }
}
