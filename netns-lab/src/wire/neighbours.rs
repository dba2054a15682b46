//! What a pod hears of its neighbours, and what becomes of packets that have no hops left.
//!
//! Every address but the pod's own is behind the gateway: for each of them the gateway answers ARP (RFC 826) and neighbour
//! solicitations (RFC 4861), with its own Ethernet address, at the pod's device and nowhere else. Nobody answers for the
//! pod's own address, for one that it does not have, or for a question that did not come from the link.

use std::net::{IpAddr, Ipv6Addr};

use agent_api::{Counter, Request};
use anyhow::{Context as _, Result};
use simulator::packet::{self, Defaults};

use crate::capture::{Capture, Frame, Way};
use crate::report::Report;
use crate::wire::cluster::{self, BESIDE, FAR, NEAR, Pod};
use crate::wire::packet::{Mac, Packet, verify};
use crate::wire::sizes::headers;
use crate::wire::taps::{Found, Taps, family, note, select};
use crate::wire::traffic::{self, PATIENCE};
use crate::wire::tunnel::HOPS_TAKEN;
use crate::world::World;

const BROADCAST: Mac = [0xff; 6];
/// Addresses outside (RFC 5737, RFC 3849).
const OUTSIDE: [&str; 2] = ["203.0.113.7", "2001:db8::7"];
/// Where nobody listens.
const PORT: u16 = 33_434;
/// EtherTypes.
const ARP: [u8; 2] = [0x08, 0x06];
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// Questions about neighbours, and packets without hops.
///
/// # Errors
/// A lab that does not do what must go before.
pub fn look(world: &mut World, report: &mut Report) -> Result<()> {
    for ipv6 in [false, true] {
        questions(world, report, ipv6)?;
    }
    for address in OUTSIDE {
        let address: IpAddr = address.parse()?;
        world.outside_with(address)?;
        hops(world, report, address)?;
    }
    Ok(())
}

/// A question and, if it is to be answered, the answer.
struct Question {
    asked: Vec<u8>,
    answer: Option<Vec<u8>>,
}

fn questions(world: &World, report: &mut Report, ipv6: bool) -> Result<()> {
    let (near, beside) = (cluster::pod(world, NEAR, ipv6)?, cluster::pod(world, BESIDE, ipv6)?);
    let far = cluster::pod(world, FAR, ipv6)?;
    let mut capture = Capture::start(near.place, "eth0")?;
    let (client, server) = (traffic::udp(near.place, near.address, 0)?, traffic::udp(far.place, far.address, 0)?);
    traffic::warm_up(&client, &server)?;
    let sent = select(capture.frames()?, Way::Out, |ip| ip.source == near.address).into_iter().next().cloned();
    let sent = sent.context("the pod sent nothing")?;
    let (own, gateway) = Packet::read(&sent.bytes)?.macs().context("no Ethernet header")?;
    let node = world.model().nodes().iter().find(|node| node.name == near.node_name);
    let prefix = node.and_then(|node| node.pod_cidrs.iter().find(|prefix| prefix.is_ipv4() != ipv6));
    let [v4, v6] = OUTSIDE;
    let outside: IpAddr = if ipv6 { v6 } else { v4 }.parse()?;
    let first = gateway_address(prefix.context("the node has no pods of this family")?.to_string().as_str())?;
    let ask = |source: IpAddr, target: IpAddr, answered: bool| {
        if ipv6 {
            solicitation(own, gateway, source, target, 255, answered)
        } else {
            arp(own, gateway, source, target, answered)
        }
    };
    // Those without an answer first: answers come in the order of the questions, so when the last is there, none is late.
    let mut all = vec![ask(near.address, near.address, false)?, ask(beside.address, far.address, false)?];
    if ipv6 {
        all.push(ask(IpAddr::V6(Ipv6Addr::UNSPECIFIED), far.address, false)?);
        all.push(solicitation(own, gateway, near.address, far.address, 254, false)?);
    } else {
        all.push(ask("0.0.0.0".parse()?, far.address, false)?);
    }
    for target in [first, beside.address, far.address, outside] {
        all.push(ask(near.address, target, true)?);
    }
    let _ = capture.take()?;
    for question in &all {
        capture.send(&question.asked)?;
    }
    let wanted: Vec<&[u8]> = all.iter().filter_map(|question| question.answer.as_deref()).collect();
    let last = wanted.last().copied().unwrap_or_default();
    let waited = capture.wait(PATIENCE, "the last answer", |frame| frame.way == Way::In && frame.bytes == last);
    let recording = capture.stop()?;
    let found = answers(&recording.frames, &wanted).map_err(|wrong| match waited {
        Ok(_) => wrong,
        Err(error) => format!("{wrong}; {error:#}"),
    });
    let found = found.map(|answers| format!("{answers} answers to {} questions", all.len()));
    let what = if ipv6 { "neighbour discovery" } else { "ARP" };
    note(report, &format!("{what}: the gateway answers for all addresses but the pod's"), &[recording], found);
    Ok(())
}

/// The answers among frames are these.
fn answers(frames: &[Frame], wanted: &[&[u8]]) -> Result<usize, String> {
    let is_answer = |frame: &&Frame| {
        let advertisement = || Packet::read(&frame.bytes).ok()?.icmp().map(|icmp| icmp.0);
        frame.way == Way::In
            && (frame.bytes.get(12..14) == Some(&ARP) || advertisement() == Some(NEIGHBOUR_ADVERTISEMENT))
    };
    let got: Vec<&Frame> = frames.iter().filter(is_answer).collect();
    for frame in &got {
        verify(frame).map_err(|wrong| wrong.to_string())?;
    }
    let text =
        |frames: Vec<&[u8]>| frames.iter().map(|f| packet::describe(f, &Defaults::default())).collect::<Vec<_>>();
    let got: Vec<&[u8]> = got.iter().map(|frame| frame.bytes.as_slice()).collect();
    if got == wanted {
        Ok(got.len())
    } else {
        Err(format!("answers {:?} instead of {:?}", text(got), text(wanted.to_vec())))
    }
}

/// The first address of a prefix.
fn gateway_address(prefix: &str) -> Result<IpAddr> {
    let network: IpAddr = prefix.split('/').next().unwrap_or_default().parse()?;
    Ok(match network {
        IpAddr::V4(address) => IpAddr::V4((u32::from(address) + 1).into()),
        IpAddr::V6(address) => IpAddr::V6((u128::from(address) + 1).into()),
    })
}

fn line(text: &str, source: Mac, destination: Mac) -> Result<Vec<u8>> {
    packet::frame(text, &Defaults { source, destination }).with_context(|| text.to_owned())
}

fn arp(own: Mac, gateway: Mac, source: IpAddr, target: IpAddr, answered: bool) -> Result<Question> {
    let asked = line(&format!("arp request {source} > {target}"), own, BROADCAST)?;
    let answer = answered.then(|| line(&format!("arp reply {target} > {source}"), gateway, own)).transpose()?;
    Ok(Question { asked, answer })
}

fn solicitation(own: Mac, gateway: Mac, source: IpAddr, target: IpAddr, hops: u8, answered: bool) -> Result<Question> {
    let link = |mac: Mac| mac.map(|byte| format!("{byte:02x}")).join(":");
    let IpAddr::V6(asked_for) = target else { anyhow::bail!("{target} is no IPv6 address") };
    // The solicited-node address (RFC 4291, 2.7.1) and its Ethernet address (RFC 2464, 7).
    let [.., a, b, c] = asked_for.octets();
    let group =
        Ipv6Addr::from(0xff02_0000_0000_0000_0000_0001_ff00_0000 | u128::from(u32::from_be_bytes([0, a, b, c])));
    // Who has no address yet may not tell its Ethernet address (RFC 4861, 4.3).
    let option = if source.is_unspecified() { String::new() } else { format!(" link {}", link(own)) };
    let text = format!("ipv6 {source} > {group} hop {hops} / icmp6 ns {target}{option}");
    let asked = line(&text, own, [0x33, 0x33, 0xff, a, b, c])?;
    let text = format!(
        "ipv6 {target} > {source} hop 255 / icmp6 na {target} router solicited override link {}",
        link(gateway)
    );
    let answer = answered.then(|| line(&text, gateway, own)).transpose()?;
    Ok(Question { asked, answer })
}

/// Packets of a node that were dropped because no hops were left.
fn expired(world: &World, node: &str) -> Result<u64> {
    let counters: Vec<Counter> = world.agent(node)?.ask(&Request::Metrics {})?;
    Ok(counters.iter().filter(|counter| counter.reason == "TtlExceeded").map(|counter| counter.packets).sum())
}

/// Packets with few hops left: to a pod of this node, of another, and outside.
fn hops(world: &World, report: &mut Report, outside: IpAddr) -> Result<()> {
    let ipv6 = outside.is_ipv6();
    let near = cluster::pod(world, NEAR, ipv6)?;
    for name in [BESIDE, FAR] {
        let to = cluster::pod(world, name, ipv6)?;
        let (client, server) = (traffic::udp(near.place, near.address, 0)?, traffic::udp(to.place, to.address, 0)?);
        traffic::warm_up(&client, &server)?;
        let before = expired(world, to.node_name)?;
        let taps = Taps::start(&[(near.place, "eth0"), (to.place, "eth0")])?;
        let mut buffer = [0; 16];
        for hops in 1..=3u8 {
            traffic::set_hops(&client, ipv6, hops)?;
            client.send_to(&[hops], server.local_addr()?)?;
        }
        let arrived = [traffic::expect(&server, &[2], &mut buffer), traffic::expect(&server, &[3], &mut buffer)];
        let all = taps.stop::<2>()?;
        let after = expired(world, to.node_name)?;
        let found = few_hops(&all[1].frames, &near).and_then(|()| match (arrived, after - before) {
            ([Ok(_), Ok(_)], 1) => Ok(format!("{HOPS_TAKEN} is taken; the last one is a drop, TtlExceeded")),
            (_, dropped) => Err(format!("not just the first was dropped: {dropped} TtlExceeded")),
        });
        note(report, &format!("{}: hops from {} to {}", family(ipv6), near.name, to.name), &all, found);
    }
    let client = traffic::udp(near.place, near.address, 0)?;
    let server = traffic::udp(world.outside(), outside, 0)?;
    traffic::warm_up(&client, &server)?;
    let mut capture = Capture::start(near.place, "eth0")?;
    traffic::set_hops(&client, ipv6, 1)?;
    client.send_to(b"?", (outside, PORT))?;
    let node = cluster::underlay_of(world, near.node_name, ipv6)?;
    let said = capture.wait(PATIENCE, "`time exceeded`", |frame| frame.way == Way::In && exceeded(frame).is_some());
    let recording = capture.stop()?;
    let found =
        said.map_err(|error| format!("{error:#}")).and_then(|frame| time_exceeded(&frame, &near, node, outside));
    note(
        report,
        &format!("{}: the node says so to a pod whose packet runs out of hops", family(ipv6)),
        &[recording],
        found,
    );
    Ok(())
}

/// Datagrams that arrived say with how many hops they were sent.
fn few_hops(frames: &[Frame], from: &Pod<'_>) -> Result<(), String> {
    for frame in select(frames, Way::In, |ip| ip.source == from.address) {
        let packet = Packet::read(&frame.bytes).map_err(|wrong| wrong.to_string())?;
        let (Some(ip), Some((_, _, &[sent]))) = (packet.ip(), packet.udp()) else { continue };
        if ip.hops + HOPS_TAKEN != sent {
            return Err(format!("sent with {sent} hops, received with {}", ip.hops));
        }
    }
    Ok(())
}

/// Whether it is a time-exceeded message, and what it quotes.
fn exceeded(frame: &Frame) -> Option<&[u8]> {
    let (kind, code, _, quoted) = Packet::read(&frame.bytes).ok()?.icmp()?;
    (matches!(kind, 11 | 3) && code == 0 && is_exceeded(frame, kind)).then_some(quoted)
}

fn is_exceeded(frame: &Frame, kind: u8) -> bool {
    let ipv6 = frame.bytes.get(12..14) == Some(&[0x86, 0xdd]);
    kind == if ipv6 { 3 } else { 11 }
}

fn time_exceeded(frame: &Frame, pod: &Pod<'_>, node: IpAddr, outside: IpAddr) -> Found {
    let sums = verify(frame).map_err(|wrong| wrong.to_string())?;
    let packet = Packet::read(&frame.bytes).map_err(|wrong| wrong.to_string())?;
    let ip = packet.ip().ok_or("no IP header")?;
    let quoted = exceeded(frame).ok_or("no `time exceeded`")?;
    // IP header, ports.
    let at = headers(outside.is_ipv6()) - 8;
    let port = quoted.get(at + 2..at + 4).ok_or("nothing is quoted")?;
    if sums.transports != 1 || ip.destination != pod.address || port != PORT.to_be_bytes() {
        return Err(format!("{ip:?} quotes port {port:?}"));
    }
    if ip.source == node { Ok(format!("from {node}")) } else { Err(format!("from {} instead of {node}", ip.source)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::Checksum;

    fn frame(bytes: &[u8]) -> Frame {
        Frame { at_ns: 0, way: Way::In, checksum: Checksum::Written, segments: None, bytes: bytes.to_vec() }
    }

    #[test]
    fn answers_that_are_others_or_too_many_are_noticed() {
        let (own, gateway) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let arp = arp(own, gateway, "10.0.0.7".parse().unwrap(), "10.0.0.1".parse().unwrap(), true).unwrap();
        let source = "fd00::7".parse().unwrap();
        let ns = solicitation(own, gateway, source, "fd00::1".parse().unwrap(), 255, true).unwrap();
        for answer in [arp.answer.unwrap(), ns.answer.unwrap()] {
            let right = frame(&answer);
            assert_eq!(answers(std::slice::from_ref(&right), &[&answer]), Ok(1));
            assert!(answers(&[], &[&answer]).is_err());
            assert!(answers(std::slice::from_ref(&right), &[]).is_err());
            assert!(answers(&[right.clone(), right.clone()], &[&answer]).is_err());
            for at in 0..answer.len() {
                let mut other = right.clone();
                other.bytes[at] ^= 1;
                assert!(answers(&[other], &[&answer]).is_err(), "byte {at}");
            }
        }
    }

    #[test]
    fn the_first_address_of_a_prefix_is_the_gateways() {
        assert_eq!(gateway_address("10.62.1.0/24").unwrap().to_string(), "10.62.1.1");
        assert_eq!(gateway_address("fd62:0:0:1::/64").unwrap().to_string(), "fd62:0:0:1::1");
    }
}
