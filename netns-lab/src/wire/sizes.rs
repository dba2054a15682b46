//! Packets of every size. Up to the pod's MTU none is cut into fragments anywhere, outside the tunnel or in it, and all
//! arrive; what is longer is refused at home or, if the sender allows that, cut at home and nowhere else.

use std::net::UdpSocket;

use anyhow::{Context as _, Result, ensure};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, ip_mtu, ipv6_mtu, set_ip_mtu_discover, set_ipv6_mtu_discover,
};

use crate::capture::{Frame, Recording, Way};
use crate::report::Report;
use crate::wire::cluster::{self, BESIDE, FAR, NEAR, Pod};
use crate::wire::packet::{Ip, Packet, verify};
use crate::wire::taps::{Taps, family, note, select, select_inside};
use crate::wire::traffic;
use crate::world::World;

/// Datagrams that wait in a receiver's queue at a time.
const BATCH: usize = 32;
/// Payload of a datagram that is cut.
const LONG: usize = 4000;
const ETHERNET: usize = 14;

/// What a socket does with what is longer than its path takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cutting {
    /// It is an error of the sender (do-not-fragment).
    Never,
    /// The sender's stack cuts it.
    Allowed,
}

/// Sets that.
///
/// # Errors
/// The socket's.
pub fn set_cutting(socket: &UdpSocket, ipv6: bool, cutting: Cutting) -> Result<()> {
    match (ipv6, cutting) {
        (false, Cutting::Never) => set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DO),
        (false, Cutting::Allowed) => set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DONT),
        (true, Cutting::Never) => set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::DO),
        (true, Cutting::Allowed) => set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::DONT),
    }
    .context("setting path MTU discovery")
}

/// What a connected socket's stack knows of the path: bytes of an IP packet.
///
/// # Errors
/// It is not connected.
pub fn path_mtu(socket: &UdpSocket, ipv6: bool) -> Result<usize> {
    let mtu = if ipv6 { ipv6_mtu(socket) } else { ip_mtu(socket) };
    Ok(usize::try_from(mtu.context("asking for the path MTU")?)?)
}

/// Bytes of IP and UDP headers.
#[must_use]
pub const fn headers(ipv6: bool) -> usize {
    if ipv6 { 48 } else { 28 }
}

/// Everything about sizes.
///
/// # Errors
/// A lab that does not do what must go before.
pub fn look(world: &mut World, report: &mut Report) -> Result<()> {
    for ipv6 in [false, true] {
        let [near, beside, far] = [NEAR, BESIDE, FAR].map(|name| cluster::pod(world, name, ipv6));
        let (near, beside, far) = (near?, beside?, far?);
        for (from, to) in [(near, far), (far, near), (near, beside)] {
            between(report, &from, &to, ipv6)?;
        }
    }
    Ok(())
}

fn between(report: &mut Report, from: &Pod<'_>, to: &Pod<'_>, ipv6: bool) -> Result<()> {
    let name = format!("{}: {} to {}", family(ipv6), from.name, to.name);
    let (client, server) = (traffic::udp(from.place, from.address, 0)?, traffic::udp(to.place, to.address, 0)?);
    traffic::warm_up(&client, &server)?;
    client.connect(server.local_addr()?)?;
    let mtu = path_mtu(&client, ipv6)?;
    let most = mtu - headers(ipv6);
    let devices = [(from.place, "eth0"), (to.place, "eth0"), (from.node, "eth0"), (to.node, "eth0")];
    let wanted = |ip: &Ip| (ip.source, ip.destination) == (from.address, to.address);

    set_cutting(&client, ipv6, Cutting::Never)?;
    let taps = Taps::start(&devices)?;
    let sent = every_size(&client, &server, most);
    let all: [Recording; 4] = taps.stop()?;
    let found = sent.map_err(|error| format!("{error:#}")).and_then(|()| {
        let arrived = select(&all[1].frames, Way::In, wanted);
        every_size_once(&arrived, most)?;
        all.iter().try_for_each(|one| uncut(&one.frames, mtu).map_err(|wrong| format!("at {}: {wrong}", one.name)))?;
        Ok(format!("{} sizes", most + 1))
    });
    note(report, &format!("{name}: no payload up to {most} bytes is cut"), &all, found);

    let taps = Taps::start(&devices)?;
    let errors: Vec<Option<i32>> =
        [most + 1, 65_000].map(|len| client.send(&traffic::bytes(len)).err().and_then(|e| e.raw_os_error())).to_vec();
    traffic::warm_up(&traffic::udp(from.place, from.address, 0)?, &server)?;
    let all: [Recording; 4] = taps.stop()?;
    let tried = select(&all[0].frames, Way::Out, |ip| wanted(ip) && ip.len > mtu);
    let found = match (errors.iter().all(|error| *error == Some(libc::EMSGSIZE)), tried.len()) {
        (true, 0) => Ok("EMSGSIZE".to_owned()),
        other => Err(format!("errors {errors:?}, {} packets", other.1)),
    };
    note(report, &format!("{name}: a byte more is refused at home"), &all, found);

    set_cutting(&client, ipv6, Cutting::Allowed)?;
    let taps = Taps::start(&devices)?;
    let data = traffic::bytes(LONG);
    client.send(&data)?;
    let arrived = traffic::expect(&server, &data, &mut vec![0; 65_536]);
    let all: [Recording; 4] = taps.stop()?;
    let found = arrived.map_err(|error| format!("{error:#}")).and_then(|_| {
        let pieces = LONG.div_ceil((mtu - headers(ipv6)) / 8 * 8);
        let sent = select(&all[0].frames, Way::Out, wanted);
        let received = select(&all[1].frames, Way::In, wanted);
        cut_at_home(&sent, &received, pieces)?;
        let inside = select_inside(&all[2].frames, Way::Out, |ip| wanted(ip) && ip.fragment);
        let tunnelled = if from.node_name == to.node_name { 0 } else { pieces };
        if inside.len() != tunnelled {
            return Err(format!("{} fragments in the tunnel instead of {tunnelled}", inside.len()));
        }
        all.iter().try_for_each(|one| outer_uncut(&one.frames).map_err(|wrong| format!("at {}: {wrong}", one.name)))?;
        Ok(format!("{pieces} fragments, cut by the sender"))
    });
    note(report, &format!("{name}: {LONG} bytes arrive whole"), &all, found);
    Ok(())
}

fn every_size(client: &UdpSocket, server: &UdpSocket, most: usize) -> Result<()> {
    let sizes: Vec<usize> = (0..=most).collect();
    let mut buffer = vec![0; 65_536];
    for batch in sizes.chunks(BATCH) {
        for size in batch {
            let sent = client.send(&traffic::bytes(*size)).with_context(|| format!("sending {size} bytes"))?;
            ensure!(sent == *size, "{sent} of {size} bytes were sent");
        }
        for size in batch {
            traffic::expect(server, &traffic::bytes(*size), &mut buffer)?;
        }
    }
    Ok(())
}

/// One datagram of each size, and every checksum right.
fn every_size_once(frames: &[&Frame], most: usize) -> Result<(), String> {
    let mut sizes = Vec::new();
    for frame in frames {
        verify(frame).map_err(|wrong| wrong.to_string())?;
        let packet = Packet::read(&frame.bytes).map_err(|wrong| wrong.to_string())?;
        let (_, _, payload) = packet.udp().ok_or("a packet that is not UDP, or not whole")?;
        sizes.push(payload.len());
    }
    if sizes.iter().copied().eq(0..=most) {
        Ok(())
    } else {
        Err(format!("{} datagrams instead of {}", sizes.len(), most + 1))
    }
}

/// No fragment outside a tunnel or in it, and no packet longer than it may be.
fn uncut(frames: &[Frame], mtu: usize) -> Result<(), String> {
    outer_uncut(frames)?;
    for frame in frames {
        let Ok(packet) = Packet::read(&frame.bytes) else { continue };
        let inner = match packet.tunnelled() {
            Some(tunnelled) => Packet::read(tunnelled.inner).map_err(|wrong| wrong.to_string())?,
            None => packet,
        };
        let Some(ip) = inner.ip() else { continue };
        if ip.fragment {
            return Err(format!("a fragment of {} bytes from {}", ip.len, ip.source));
        }
        if ip.len > mtu {
            return Err(format!("a packet of {} bytes from {} where {mtu} are allowed", ip.len, ip.source));
        }
    }
    Ok(())
}

/// No fragment between nodes.
fn outer_uncut(frames: &[Frame]) -> Result<(), String> {
    for frame in frames {
        // A fragment has no UDP header that could be read, unless it is the first; by addresses it is the nodes'.
        let Some(ip) = Packet::read(&frame.bytes).ok().and_then(|packet| packet.ip()) else { continue };
        let of_nodes = cluster::is_node(ip.source);
        if of_nodes && ip.fragment {
            return Err(format!("a fragment of {} bytes between nodes, from {}", ip.len, ip.source));
        }
    }
    Ok(())
}

/// The sender's fragments are the receiver's.
fn cut_at_home(sent: &[&Frame], received: &[&Frame], pieces: usize) -> Result<(), String> {
    let content = |frames: &[&Frame]| -> Vec<Vec<u8>> {
        // Behind the hop count, which has gone down by one, and the IPv4 checksum that follows it.
        frames.iter().map(|frame| frame.bytes.get(ETHERNET + 12..).unwrap_or_default().to_vec()).collect()
    };
    let cut = |frames: &[&Frame]| {
        let fragment = |frame: &&&Frame| {
            Packet::read(&frame.bytes).ok().and_then(|packet| packet.ip()).is_some_and(|ip| ip.fragment)
        };
        frames.iter().filter(fragment).count()
    };
    if (cut(sent), cut(received)) != (pieces, pieces) {
        return Err(format!("{} fragments sent, {} received, {pieces} wanted", cut(sent), cut(received)));
    }
    if content(sent) == content(received) { Ok(()) } else { Err("the fragments changed on their way".to_owned()) }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;
    use crate::capture::Checksum;

    fn frame(bytes: Vec<u8>) -> Frame {
        Frame { at_ns: 0, way: Way::In, checksum: Checksum::Written, segments: None, bytes }
    }

    fn datagram(from: [u8; 4], len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(from, [10, 62, 2, 2], 64).udp(4000, 5000);
        builder.write(&mut bytes, &vec![7; len]).unwrap();
        bytes
    }

    /// Says that more fragments follow.
    fn cut(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes[20] = 0x20;
        bytes
    }

    #[test]
    fn a_size_that_is_missing_or_seen_twice_is_noticed() {
        let all: Vec<Frame> = (0..=100).map(|len| frame(datagram([10, 62, 1, 2], len))).collect();
        let right: Vec<&Frame> = all.iter().collect();
        assert_eq!(every_size_once(&right, 100), Ok(()));
        assert!(every_size_once(&right, 101).is_err());
        assert!(every_size_once(&right[1..], 100).is_err());
        let mut twice = right.clone();
        twice[5] = right[4];
        assert!(every_size_once(&twice, 100).is_err());
        let mut damaged = all.clone();
        damaged[50].bytes[60] ^= 1;
        assert!(every_size_once(&damaged.iter().collect::<Vec<_>>(), 100).is_err());
    }

    #[test]
    fn fragments_and_packets_that_are_too_long_are_noticed() {
        let whole = datagram([10, 62, 1, 2], 1000);
        assert_eq!(uncut(&[frame(whole.clone())], 1028), Ok(()));
        assert!(uncut(&[frame(whole.clone())], 1027).is_err());
        assert!(uncut(&[frame(cut(whole.clone()))], 1028).is_err());
        assert_eq!(outer_uncut(&[frame(cut(whole))]), Ok(()), "a pod's own fragment");
        assert!(outer_uncut(&[frame(cut(datagram([172, 30, 0, 11], 1000)))]).is_err());
    }

    #[test]
    fn fragments_that_change_or_get_lost_are_noticed() {
        let pieces: Vec<Frame> = (0..3).map(|n| frame(cut(datagram([10, 62, 1, 2], 100 + n)))).collect();
        let right: Vec<&Frame> = pieces.iter().collect();
        assert_eq!(cut_at_home(&right, &right, 3), Ok(()));
        assert!(cut_at_home(&right, &right, 4).is_err());
        assert!(cut_at_home(&right, &right[..2], 3).is_err());
        let mut other = pieces.clone();
        other[1].bytes[50] ^= 1;
        assert!(cut_at_home(&right, &other.iter().collect::<Vec<_>>(), 3).is_err());
    }
}
