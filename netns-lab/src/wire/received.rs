//! The check `wire-received`: tunnel packets as nobody should send them, put on the wire of a node. What its pod gets, to the
//! last bit, must be what the simulator's tunnel device makes of the same packet: odd headers, options (RFC 8926), reserved
//! bits, congestion marks outside and inside (RFC 6040). Geneve that an endpoint must not unwrap is dropped with its reason.
//!
//! All are sent one after the other, and a good one behind them: when that has arrived, what has not will not.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use datapath_abi::DropReason;
use etherparse::PacketBuilder;
use simulator::cluster::frame;
use simulator::cluster::tunnel::{Protocol, decapsulate};

use crate::capture::{Capture, Way};
use crate::probe::eventually;
use crate::report::Report;
use crate::wire::cluster::{self, FAR, NEAR, Pod};
use crate::wire::packet::{Ip, Mac, Packet};
use crate::wire::taps::{Found, family, note};
use crate::wire::traffic::{self, PATIENCE};
use crate::wire::tunnel;
use crate::world::World;

/// Inner UDP source port of the first packet; each has its own.
const FIRST_PORT: u16 = 41_000;

/// What is changed in a good tunnel packet.
#[derive(Clone, Debug)]
struct Case {
    name: String,
    /// The tunnel's own header, options included, with zeros for the VNI.
    header: Vec<u8>,
    /// Traffic classes outside and inside.
    classes: (u8, u8),
}

/// Sends every case over both families.
///
/// # Errors
/// A lab that does not do what must go before.
pub fn look(world: &mut World, report: &mut Report) -> Result<()> {
    let protocol = world.topology().config.tunnel.context("a lab without a tunnel")?;
    for ipv6 in [false, true] {
        let name = format!("{}: {} that is odd", family(ipv6), protocol.name());
        let found: Found = all(world, protocol, ipv6).map_err(|error| format!("{error:#}"));
        note(report, &name, &[], found);
    }
    Ok(())
}

fn cases(protocol: Protocol) -> Vec<Case> {
    let headers: &[(&str, &[u8])] = match protocol {
        Protocol::Vxlan => &[
            ("a reserved flag", &[0x0c, 0, 0, 0, 0, 0, 0, 0]),
            ("a reserved bit behind the flags", &[8, 0, 0, 1, 0, 0, 0, 0]),
            ("a reserved bit behind the VNI", &[8, 0, 0, 0, 0, 0, 0, 1]),
            ("no VNI", &[0, 0, 0, 0, 0, 0, 0, 0]),
        ],
        Protocol::Geneve => &[
            ("an option", &[2, 0, 0x65, 0x58, 0, 0, 0, 0, 1, 0x4b, 1, 1, 9, 9, 9, 9]),
            ("reserved bits", &[0, 0x3f, 0x65, 0x58, 0, 0, 0, 7]),
            ("a critical option", &[2, 0x40, 0x65, 0x58, 0, 0, 0, 0, 1, 0x4b, 0x81, 1, 9, 9, 9, 9]),
            ("a control message", &[0, 0x80, 0x65, 0x58, 0, 0, 0, 0]),
            ("another version", &[0x40, 0, 0x65, 0x58, 0, 0, 0, 0]),
            ("no Ethernet inside", &[0, 0, 0x08, 0x00, 0, 0, 0, 0]),
            ("options longer than the packet", &[0x3f, 0, 0x65, 0x58, 0, 0, 0, 0]),
        ],
    };
    let good = good(protocol);
    let odd = headers.iter().map(|(name, header)| Case {
        name: (*name).to_owned(),
        header: header.to_vec(),
        classes: (0, 0),
    });
    let marks = (0..4).flat_map(|outside| (0..4).map(move |inside| (outside, inside)));
    let marked = marks.map(|(outside, inside)| Case {
        name: format!("ECN {outside} outside, {inside} inside"),
        header: good.clone(),
        classes: (outside, 0xb8 | inside),
    });
    // The last one arrives.
    let last = Case { name: "a good one".to_owned(), header: good.clone(), classes: (0, 0) };
    odd.chain(marked).chain([last]).collect()
}

fn good(protocol: Protocol) -> Vec<u8> {
    match protocol {
        Protocol::Vxlan => vec![8, 0, 0, 0, 0, 0, 0, 0],
        Protocol::Geneve => vec![0, 0, 0x65, 0x58, 0, 0, 0, 0],
    }
}

/// What a case should come to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum End {
    Arrives(Vec<u8>),
    /// The datapath refuses it, with a report.
    Refused,
    /// The device does not take it.
    Lost,
}

fn all(world: &World, protocol: Protocol, ipv6: bool) -> Result<String> {
    let (near, far) = (cluster::pod(world, NEAR, ipv6)?, cluster::pod(world, FAR, ipv6)?);
    let (model, macs) = example(&near, &far)?;
    let mut at_far = Capture::start(far.place, "eth0")?;
    let wire = Capture::start(near.node, "eth0")?;
    let _ = world.watch().take();
    let cases = cases(protocol);
    let mut wanted: BTreeMap<u16, (&Case, End)> = BTreeMap::new();
    for (port, case) in (FIRST_PORT..).zip(&cases) {
        let bytes = packet(&model, case, port)?;
        wanted.insert(port, (case, expected(protocol, case, &bytes, macs)?));
        wire.send(&bytes)?;
    }
    let (&last, _) = wanted.last_key_value().context("no cases")?;
    at_far.wait(PATIENCE, "the last tunnel packet", |frame| port_of(&frame.bytes) == Some(last))?;
    let mut got: BTreeMap<u16, Vec<u8>> = BTreeMap::new();
    for frame in at_far.take()?.iter().filter(|frame| frame.way == Way::In) {
        got.extend(port_of(&frame.bytes).map(|port| (port, frame.completed())));
    }
    let reason = DropReason::UnsupportedGeneve.name();
    let refused = wanted.values().filter(|(_, end)| *end == End::Refused).count();
    let mut told = 0;
    eventually(|| {
        told += world.watch().take().iter().filter(|drop| drop.event.outcome == reason).count();
        Ok(told >= refused)
    })?;
    ensure!(told == refused, "{told} drops were reported as {reason}, of {refused}");
    for (port, (Case { name, .. }, end)) in &wanted {
        match (end, got.remove(port)) {
            (End::Arrives(wanted), Some(bytes)) => {
                ensure!(bytes == *wanted, "{name}: the pod gets {bytes:02x?} instead of {wanted:02x?}");
            }
            (End::Arrives(_), None) => anyhow::bail!("{name}: did not arrive"),
            (End::Refused | End::Lost, Some(_)) => anyhow::bail!("{name}: arrived"),
            (End::Refused | End::Lost, None) => {}
        }
    }
    let arrived = wanted.values().filter(|(_, end)| matches!(end, End::Arrives(_))).count();
    Ok(format!("{arrived} of {} packets arrive, {refused} are refused, as in the simulator", wanted.len()))
}

/// A good tunnel packet between the pods, and the Ethernet addresses of frames to the receiver: gateway, pod.
fn example(near: &Pod<'_>, far: &Pod<'_>) -> Result<(Vec<u8>, (Mac, Mac))> {
    let mut at_far = Capture::start(far.place, "eth0")?;
    let mut at_node = Capture::start(near.node, "eth0")?;
    let (client, server) = (traffic::udp(near.place, near.address, 0)?, traffic::udp(far.place, far.address, 0)?);
    traffic::warm_up(&client, &server)?;
    let (source, destination) = (near.address, far.address);
    let ours = |bytes: &[u8]| {
        let ip = Packet::read(bytes).ok().and_then(|packet| packet.ip());
        ip.is_some_and(|ip| (ip.source, ip.destination) == (source, destination))
    };
    let outside = at_node.wait(PATIENCE, "a tunnel packet", |frame| {
        let inside = Packet::read(&frame.bytes).ok().and_then(|packet| packet.tunnelled());
        frame.way == Way::Out && inside.is_some_and(|inside| ours(inside.inner))
    })?;
    let inside = at_far.wait(PATIENCE, "its frame", |frame| frame.way == Way::In && ours(&frame.bytes))?;
    let macs = Packet::read(&inside.bytes)?.macs().context("no Ethernet header")?;
    Ok((outside.completed(), macs))
}

/// The tunnel packet of a case.
fn packet(model: &[u8], case: &Case, port: u16) -> Result<Vec<u8>> {
    let outer = Packet::read(model)?;
    let (ip, inside) = (outer.ip().context("no IP packet")?, outer.tunnelled().context("not in the tunnel")?);
    let inner_ip = Packet::read(inside.inner)?.ip().context("no IP packet in the tunnel")?;
    let macs = Packet::read(inside.inner)?.macs().context("no Ethernet header")?;
    let mut inner = datagram(macs, &inner_ip, (port, 9), b"odd")?;
    frame::set_class(&mut inner, case.classes.1);
    let mut header = case.header.clone();
    let [_, vni @ ..] = inside.vni.to_be_bytes();
    header.get_mut(4..7).context("a header without a VNI")?.copy_from_slice(&vni);
    let payload = [header, inner].concat();
    let macs = outer.macs().context("no Ethernet header")?;
    let mut bytes = datagram(macs, &ip, (50_000, inside.protocol.port()), &payload)?;
    frame::set_class(&mut bytes, case.classes.0);
    Ok(bytes)
}

/// A datagram with right lengths and checksums.
fn datagram((from, to): (Mac, Mac), ip: &Ip, ports: (u16, u16), payload: &[u8]) -> Result<Vec<u8>> {
    let builder = PacketBuilder::ethernet2(from, to);
    let builder = match (ip.source, ip.destination) {
        (IpAddr::V4(from), IpAddr::V4(to)) => builder.ipv4(from.octets(), to.octets(), 64),
        (IpAddr::V6(from), IpAddr::V6(to)) => builder.ipv6(from.octets(), to.octets(), 64),
        _ => anyhow::bail!("two families in one packet"),
    };
    let mut bytes = Vec::new();
    builder.udp(ports.0, ports.1).write(&mut bytes, payload)?;
    Ok(bytes)
}

/// What the simulator's device makes of it.
fn expected(protocol: Protocol, case: &Case, bytes: &[u8], macs: (Mac, Mac)) -> Result<End> {
    if protocol == Protocol::Geneve && case.header.get(1).is_some_and(|flags| flags & 0xc0 != 0) {
        return Ok(End::Refused);
    }
    let (mut data, mut scratch) = (bytes.to_vec(), Vec::new());
    match decapsulate(protocol, &mut data, &mut scratch) {
        Some(_) => tunnel::delivered(&data, macs).map(End::Arrives).map_err(anyhow::Error::msg),
        None => Ok(End::Lost),
    }
}

/// The UDP source port of a frame of these.
fn port_of(frame: &[u8]) -> Option<u16> {
    Packet::read(frame).ok()?.udp().filter(|(_, to, _)| *to == 9).map(|(from, _, _)| from)
}
