//! Senders learn what their path takes: a router on the way takes less than the pod's MTU.
//!
//! - Outside the cluster: the router's `fragmentation needed` (RFC 1191) or `packet too big` (RFC 8201) reaches the pod's
//!   socket, also if policies let nothing into the pod: an error belongs to the flow that it quotes.
//! - Between nodes without tunnels it is the same.
//! - Between nodes with tunnels the pod's packet is inside another. Over IPv4 the outer one may be cut: the router cuts it, the other
//!   node puts it together, and the pods notice nothing.
//! - Over IPv6 routers do not cut, and neither does the kernel's tunnel (`ip6_fragment` refuses, `Ip6FragFails`): the
//!   router tells the node, which knows then, but a packet that came to the tunnel device by a redirect has no route to
//!   note it on, and its sender is not told. So the agents' setting `mtu` must be what the way takes, less 70; with it
//!   nothing is cut or lost. Both are checked: [`CLUSTER6`] with the setting and without.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use crate::capture::{Capture, Frame, Recording, Way};
use crate::place::Place;
use crate::report::Report;
use crate::wire::cluster::{self, FAR, NEAR, Pod};
use crate::wire::packet::{Packet, verify};
use crate::wire::sizes::{Cutting, headers, path_mtu, set_cutting};
use crate::wire::taps::{Found, Taps, family, note};
use crate::wire::traffic::{self, PATIENCE};
use crate::world::World;

/// Two nodes with a router between them, a pod on each; the first pod is isolated but for what it may send to the network
/// outside, and to the other pod.
pub const CLUSTER: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: left}
spec: {podCIDRs: [10.62.1.0/24, "fd62:0:0:1::/64"]}
status: {addresses: [{type: InternalIP, address: 172.30.1.11}, {type: InternalIP, address: "fd30:0:0:1::11"}]}
---
apiVersion: v1
kind: Node
metadata: {name: right}
spec: {podCIDRs: [10.62.2.0/24, "fd62:0:0:2::/64"]}
status: {addresses: [{type: InternalIP, address: 172.30.2.12}, {type: InternalIP, address: "fd30:0:0:2::12"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: near, labels: {app: near}}
spec: {nodeName: left, containers: [{name: c}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: far}}
spec: {nodeName: right, containers: [{name: c}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: isolated}
spec:
  podSelector: {matchLabels: {app: near}}
  policyTypes: [Ingress, Egress]
  egress:
    - to: [{ipBlock: {cidr: 198.51.100.0/24}}, {ipBlock: {cidr: "2001:db8:51::/64"}}]
    - to: [{podSelector: {matchLabels: {app: far}}}]
"#;

/// The same, with nodes that have only IPv6 addresses: tunnels are over IPv6.
pub const CLUSTER6: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: left}
spec: {podCIDRs: [10.62.1.0/24, "fd62:0:0:1::/64"]}
status: {addresses: [{type: InternalIP, address: "fd30:0:0:1::11"}]}
---
apiVersion: v1
kind: Node
metadata: {name: right}
spec: {podCIDRs: [10.62.2.0/24, "fd62:0:0:2::/64"]}
status: {addresses: [{type: InternalIP, address: "fd30:0:0:2::12"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: near, labels: {app: near}}
spec: {nodeName: left, containers: [{name: c}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: far}}
spec: {nodeName: right, containers: [{name: c}]}
"#;

/// What the router's way to its end takes: bytes of an IP packet.
const NARROW: usize = 1400;
/// The network outside: the router's address and those of a host for UDP and for TCP, of each family.
const NETWORK: [[&str; 3]; 2] =
    [["198.51.100.1", "198.51.100.2", "198.51.100.3"], ["2001:db8:51::1", "2001:db8:51::2", "2001:db8:51::3"]];
const PORT: u16 = 8080;
/// Bytes of TCP each way.
const BULK: usize = 1_000_000;

/// A narrow way outside, and one between nodes.
///
/// # Errors
/// A lab that does not do what must go before.
pub fn look(world: &mut World, report: &mut Report) -> Result<()> {
    let host = beyond(world)?;
    for ipv6 in [false, true] {
        outside(world, report, &host, ipv6)?;
    }
    between(world, report)
}

/// A narrow way between nodes whose tunnels are over IPv6. If agents were told what it takes, nothing is cut or lost;
/// otherwise full packets are lost and others are not.
///
/// # Errors
/// A lab that does not do what must go before.
pub fn look6(world: &mut World, report: &mut Report) -> Result<()> {
    between(world, report)
}

/// A host behind the router, to which the router sends no more than so much at a time.
fn beyond(world: &World) -> Result<Place> {
    let host = Place::new("beyond")?;
    world
        .outside()
        .ip_all(&format!("link add narrow type veth peer name eth0 netns {}\nlink set narrow up", host.path()))?;
    host.ip_all("link set eth0 up")?;
    for (network, length) in NETWORK.iter().zip([24, 64]) {
        let [router, one, other] = network;
        let extra = if length == 64 { "nodad" } else { "" };
        world.outside().ip_all(&format!("addr add {router}/{length} dev narrow {extra}"))?;
        for own in [one, other] {
            host.ip_all(&format!("addr add {own}/{length} dev eth0 {extra}"))?;
            world.outside().ip_all(&format!("route add {own} dev narrow mtu lock {NARROW}"))?;
        }
        let everything = if length == 64 { "::/0" } else { "0.0.0.0/0" };
        host.ip_all(&format!("route add {everything} via {router} dev eth0"))?;
    }
    Ok(host)
}

fn outside(world: &World, report: &mut Report, host: &Place, ipv6: bool) -> Result<()> {
    let near = cluster::pod(world, NEAR, ipv6)?;
    let [_, for_udp, for_tcp] = NETWORK[usize::from(ipv6)].map(str::parse::<IpAddr>);
    let way = Road { what: "outside", near, host, for_udp: for_udp?, for_tcp: for_tcp? };
    learns(report, &way, ipv6)
}

/// A narrow way between nodes that do not tunnel: it is the pods' own.
///
/// # Errors
/// A lab that does not do what must go before.
pub fn look_native(world: &mut World, report: &mut Report) -> Result<()> {
    for (prefix, via) in [("10.62.2.0/24", "172.30.2.12"), ("fd62:0:0:2::/64", "fd30:0:0:2::12")] {
        world.outside().ip_all(&format!("route change {prefix} via {via} dev seg1 onlink mtu lock {NARROW}"))?;
    }
    for ipv6 in [false, true] {
        let (near, far) = (cluster::pod(world, NEAR, ipv6)?, cluster::pod(world, FAR, ipv6)?);
        let way = Road { what: "to another node", near, host: far.place, for_udp: far.address, for_tcp: far.address };
        learns(report, &way, ipv6)?;
    }
    Ok(())
}

/// A way on which a router takes less than the pod sends.
struct Road<'a> {
    what: &'a str,
    near: Pod<'a>,
    host: &'a Place,
    for_udp: IpAddr,
    /// If it is another address, the pod's stack has to learn once more.
    for_tcp: IpAddr,
}

fn learns(report: &mut Report, way: &Road<'_>, ipv6: bool) -> Result<()> {
    let near = &way.near;
    let (client, server) = (traffic::udp(near.place, near.address, 0)?, traffic::udp(way.host, way.for_udp, PORT)?);
    traffic::warm_up(&client, &server)?;
    client.connect(server.local_addr()?)?;
    set_cutting(&client, ipv6, Cutting::Never)?;
    let before = path_mtu(&client, ipv6)?;
    let mut capture = Capture::start(near.place, "eth0")?;
    client.send(&traffic::bytes(before - headers(ipv6)))?;
    let told = capture.wait(PATIENCE, "the router's word", |frame| frame.way == Way::In && too_big(frame).is_some());
    let recording = capture.stop()?;
    let found = told.map_err(|error| format!("{error:#}")).and_then(|frame| router_said(&frame, near));
    let found = found.and_then(|said| learned(&client, &server, ipv6).map(|learned| format!("{said}; {learned}")));
    let name = format!("{}: a pod's socket learns what the way {} takes", family(ipv6), way.what);
    note(report, &name, &[recording], found);

    let taps = Taps::start(&[(near.place, "eth0"), (way.host, "eth0")])?;
    let went = traffic::bulk(near.place, way.host, SocketAddr::new(way.for_tcp, PORT), BULK);
    let all: [Recording; 2] = taps.stop()?;
    let found = went.map_err(|error| format!("{error:#}")).and_then(|()| {
        let told = all[0].frames.iter().filter(|frame| frame.way == Way::In && too_big(frame).is_some()).count();
        if told == 0 && way.for_tcp != way.for_udp {
            return Err("the router said nothing, so this shows nothing".to_owned());
        }
        small(&all[1].frames, near.address)
    });
    note(report, &format!("{}: TCP {} goes on with smaller segments", family(ipv6), way.what), &all, found);
    Ok(())
}

/// What a router says the next link takes, if the frame says that.
fn too_big(frame: &Frame) -> Option<usize> {
    let (kind, code, [a, b, c, d], _) = Packet::read(&frame.bytes).ok()?.icmp()?;
    match (frame.bytes.get(12..14)?, kind, code) {
        ([0x08, 0x00], 3, 4) => Some(u16::from_be_bytes([c, d]).into()),
        ([0x86, 0xdd], 2, 0) => usize::try_from(u32::from_be_bytes([a, b, c, d])).ok(),
        _ => None,
    }
}

fn router_said(frame: &Frame, pod: &Pod<'_>) -> Found {
    let sums = verify(frame).map_err(|wrong| wrong.to_string())?;
    let ip = Packet::read(&frame.bytes).map_err(|wrong| wrong.to_string())?.ip().ok_or("no IP header")?;
    match (too_big(frame), ip.destination == pod.address, sums.transports) {
        (Some(NARROW), true, 1) => Ok(format!("{} said {NARROW}", ip.source)),
        (said, _, _) => Err(format!("{} said {said:?} to {} instead of {NARROW}", ip.source, ip.destination)),
    }
}

/// What a socket does after the router's word.
fn learned(client: &std::net::UdpSocket, server: &std::net::UdpSocket, ipv6: bool) -> Found {
    let most = NARROW - headers(ipv6);
    let known = path_mtu(client, ipv6).map_err(|error| format!("{error:#}"))?;
    if known != NARROW {
        return Err(format!("the socket's path MTU is {known}"));
    }
    let word = client.take_error().map_err(|error| error.to_string())?.and_then(|error| error.raw_os_error());
    if word != Some(libc::EMSGSIZE) {
        return Err(format!("the socket's error is {word:?}"));
    }
    let refused = client.send(&traffic::bytes(most + 1)).err().and_then(|error| error.raw_os_error());
    if refused != Some(libc::EMSGSIZE) {
        return Err(format!("what is too long is refused with {refused:?}"));
    }
    let data = traffic::bytes(most);
    client.send(&data).map_err(|error| format!("sending what is not too long: {error}"))?;
    traffic::expect(server, &data, &mut vec![0; 65_536]).map_err(|error| format!("{error:#}"))?;
    Ok("then EMSGSIZE".to_owned())
}

/// Nothing that came through the narrow link is longer than it takes, and nothing is a fragment.
fn small(frames: &[Frame], from: IpAddr) -> Found {
    let mut seen = 0;
    for frame in frames.iter().filter(|frame| frame.way == Way::In) {
        let Some(ip) = Packet::read(&frame.bytes).ok().and_then(|packet| packet.ip()) else { continue };
        if ip.source != from {
            continue;
        }
        verify(frame).map_err(|wrong| wrong.to_string())?;
        // A frame of many segments is as long as they are together.
        let room = NARROW - (ip.len - payload(frame).map_or(0, |payload| payload.len()));
        let longest = match frame.segments {
            Some(segments) => usize::from(segments.size),
            None => payload(frame).map_or(0, |payload| payload.len()),
        };
        if ip.fragment || longest > room {
            return Err(format!("{longest} bytes of payload in one packet, fragment: {}", ip.fragment));
        }
        seen += 1;
    }
    if seen > 0 { Ok(format!("{seen} frames")) } else { Err("nothing came through".to_owned()) }
}

fn payload(frame: &Frame) -> Option<&[u8]> {
    let packet = Packet::read(&frame.bytes).ok()?;
    packet.tcp().or_else(|| packet.udp()).map(|(_, _, payload)| payload)
}

/// What must become of a full packet between nodes on a narrow way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It fits.
    Whole,
    /// The router cuts the outer packet.
    CutByRouter,
    /// The router tells the node, and nobody the sender.
    Lost,
}

impl Fate {
    fn of(mtu: usize, over_ipv6: bool) -> Self {
        match (over_ipv6, mtu + if over_ipv6 { 70 } else { 50 } > NARROW) {
            (_, false) => Self::Whole,
            (false, true) => Self::CutByRouter,
            (true, true) => Self::Lost,
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Whole => "a full packet crosses as it is",
            Self::CutByRouter => "a full packet is cut by the router, and arrives",
            Self::Lost => "a full packet is lost where agents do not know what the way takes",
        }
    }
}

/// A narrow way between nodes. Their devices know nothing of it.
fn between(world: &World, report: &mut Report) -> Result<()> {
    let [left, right] = ["left", "right"].map(|node| cluster::underlay(world, node));
    let (left, right) = (left?, right?);
    for (node, segment) in [(left, "seg0"), (right, "seg1")] {
        world.outside().ip_all(&format!("route change {node} dev {segment} mtu lock {NARROW}"))?;
    }
    let over = if left.is_ipv6() { "IPv6" } else { "IPv4" };
    for ipv6 in [false, true] {
        let (near, far) = (cluster::pod(world, NEAR, ipv6)?, cluster::pod(world, FAR, ipv6)?);
        let (client, server) =
            (traffic::udp(near.place, near.address, 0)?, traffic::udp(far.place, far.address, PORT)?);
        traffic::warm_up(&client, &server)?;
        client.connect(server.local_addr()?)?;
        let mtu = path_mtu(&client, ipv6)?;
        let fate = Fate::of(mtu, left.is_ipv6());
        let taps = Taps::start(&[(near.node, "eth0"), (far.node, "eth0")])?;
        let data = traffic::bytes(mtu - headers(ipv6));
        client.send(&data)?;
        let patience = if fate == Fate::Lost { traffic::SHORT } else { PATIENCE };
        let arrived = traffic::expect_within(&server, &data, patience);
        // What fits goes on to arrive.
        traffic::warm_up(&traffic::udp(near.place, near.address, 0)?, &server)?;
        let all: [Recording; 2] = taps.stop()?;
        let seen = Seen {
            arrived: arrived.is_ok(),
            cut_by_node: fragments(&all[0].frames, Way::Out),
            cut: fragments(&all[1].frames, Way::In),
            told: all[0].frames.iter().any(|frame| frame.way == Way::In && too_big(frame) == Some(NARROW)),
        };
        let name = format!("{} over {over}: {}", family(ipv6), fate.text());
        note(report, &name, &all, judge(fate, seen));
        if fate == Fate::Lost {
            continue;
        }
        let went = traffic::bulk(near.place, far.place, SocketAddr::new(far.address, PORT + 1), BULK);
        let found = went.map(|()| String::new()).map_err(|error| format!("{error:#}"));
        note(report, &format!("{} over {over}: TCP crosses a narrow way", family(ipv6)), &[], found);
    }
    Ok(())
}

/// What became of a full packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    arrived: bool,
    /// Outer fragments that left the sender's node.
    cut_by_node: usize,
    /// Outer fragments that came to the receiver's.
    cut: usize,
    /// Whether the router told the sender's node.
    told: bool,
}

fn judge(fate: Fate, seen: Seen) -> Found {
    let right = match fate {
        Fate::Whole => seen == Seen { arrived: true, cut_by_node: 0, cut: 0, told: false },
        Fate::CutByRouter => seen.arrived && seen.cut_by_node == 0 && seen.cut == 2 && !seen.told,
        // The second family's is lost at the node, which was told before.
        Fate::Lost => !seen.arrived && (seen.cut_by_node, seen.cut) == (0, 0),
    };
    if right { Ok(String::new()) } else { Err(format!("{seen:?}")) }
}

/// Fragments between nodes.
fn fragments(frames: &[Frame], way: Way) -> usize {
    let fragment = |frame: &&Frame| {
        let ip = Packet::read(&frame.bytes).ok().and_then(|packet| packet.ip());
        frame.way == way && ip.is_some_and(|ip| ip.fragment && cluster::is_node(ip.source))
    };
    frames.iter().filter(fragment).count()
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;
    use crate::capture::{Checksum, Segments};

    fn frame(bytes: Vec<u8>) -> Frame {
        Frame { at_ns: 0, way: Way::In, checksum: Checksum::Written, segments: None, bytes }
    }

    fn segment(len: usize) -> Frame {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 62, 1, 2], [198, 51, 100, 3], 64);
        builder.tcp(4000, 80, 7, 512).write(&mut bytes, &vec![7; len]).unwrap();
        frame(bytes)
    }

    #[test]
    fn what_routers_say_is_read() {
        for (line, wanted) in [
            (
                "ipv4 10.0.0.8 > 10.0.0.7 / icmp unreachable frag-needed mtu 1400 / ipv4 10.0.0.7 > 10.0.0.8 / udp 5 > 6",
                Some(NARROW),
            ),
            (
                "ipv6 fd00::2 > fd00::1 / icmp6 packet-too-big mtu 1400 / ipv6 fd00::1 > fd00::2 / udp 1 > 2",
                Some(NARROW),
            ),
            ("ipv4 10.0.0.7 > 10.0.0.8 / icmp echo id 7 seq 1", None),
        ] {
            let bytes = simulator::packet::frame(line, &simulator::packet::Defaults::default()).unwrap();
            assert_eq!(too_big(&frame(bytes)), wanted, "{line}");
        }
    }

    #[test]
    fn other_fates_are_noticed() {
        let whole = Seen { arrived: true, cut_by_node: 0, cut: 0, told: false };
        let cut = Seen { cut: 2, ..whole };
        let lost = Seen { arrived: false, told: true, ..whole };
        let all = [(Fate::Whole, whole), (Fate::CutByRouter, cut), (Fate::Lost, lost)];
        for (fate, _) in all {
            for (other, seen) in all {
                assert_eq!(judge(fate, seen).is_ok(), fate == other, "{fate:?} {seen:?}");
            }
        }
        assert!(judge(Fate::CutByRouter, Seen { cut_by_node: 2, ..cut }).is_err());
        assert_eq!(Fate::of(1330, true), Fate::Whole);
        assert_eq!(Fate::of(1331, true), Fate::Lost);
        assert_eq!(Fate::of(1350, false), Fate::Whole);
        assert_eq!(Fate::of(1351, false), Fate::CutByRouter);
    }

    #[test]
    fn segments_that_are_too_long_are_noticed() {
        let from: IpAddr = "10.62.1.2".parse().unwrap();
        assert!(small(&[segment(NARROW - 40)], from).is_ok());
        assert!(small(&[segment(NARROW - 39)], from).is_err());
        assert!(small(&[], from).is_err());
        let many = |size| Frame { segments: Some(Segments { kind: 1, size }), ..segment(5000) };
        assert!(small(&[many(1360)], from).is_ok());
        assert!(small(&[many(1361)], from).is_err());
    }
}
