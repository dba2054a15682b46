//! The simulator puts the same bytes on the wire as the kernel: what it lets a pod send is sent by the real pod, and the
//! tunnel packets of both are compared bit by bit.
//!
//! Left aside is what must differ: Ethernet addresses, the outer source port (each has its own hash of the flow), the
//! outer identification (each counts for itself), and the outer checksums that follow from these, which are verified
//! instead.

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use pcap_file::pcapng::{Block, PcapNgReader};
use simulator::cluster::tunnel::{self, Outer, TunnelKey};
use simulator::cluster::{self as simulated, Cluster, Options, Party, Protocol, frame};

use crate::capture::{Capture, Way};
use crate::report::Report;
use crate::wire::cluster::{self, FAR, NEAR, Pod};
use crate::wire::packet::{Mac, Packet};
use crate::wire::taps::{family, note, select};
use crate::wire::traffic::{self, PATIENCE};
use crate::world::World;

const ETHERNET: usize = 14;
/// The outer UDP header and the tunnel's.
const TUNNEL: usize = 16;
/// `BPF_F_ZERO_CSUM_TX`: what weir asks for over IPv4.
const NO_CHECKSUM: u64 = 2;
/// Traffic classes that are sent besides: ECT(0), ECT(1), congestion experienced, expedited forwarding.
const CLASSES: [u8; 4] = [2, 1, 3, 0xb8];

/// Compares a request and an answer of every protocol.
///
/// # Errors
/// A lab that does not do what must go before.
pub fn look(world: &mut World, report: &mut Report) -> Result<()> {
    for ipv6 in [false, true] {
        let (near, far) = (cluster::pod(world, NEAR, ipv6)?, cluster::pod(world, FAR, ipv6)?);
        for protocol in [Protocol::Tcp(8080), Protocol::Udp(53), Protocol::Sctp(3868), Protocol::Icmp(None)] {
            let name = format!("{}: {} in the tunnel is the simulator's", family(ipv6), protocol.name());
            let frames = frames(world, protocol, ipv6)?;
            let found = compare(&near, &far, &frames).map_err(|error| format!("{error:#}"));
            note(report, &name, &[], found);
        }
    }
    Ok(())
}

/// Tunnel packets of a probe in the simulator.
fn frames(world: &World, protocol: Protocol, ipv6: bool) -> Result<Vec<Vec<u8>>> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("weir-lab-simulated-{}-{number}", std::process::id()));
    let _gone = Gone(folder.clone());
    let mut cluster = Cluster::new(
        world.model().clone(),
        Options { pcap: Some(folder.clone()), tunnel: world.topology().config.tunnel, ..Options::default() },
    )?;
    let wanted = if ipv6 { simulated::Family::Ipv6 } else { simulated::Family::Ipv4 };
    let party = |name: &str| {
        let pod = world.model().pods().values().find(|pod| pod.name.to_string() == name);
        pod.map(|pod| Party::Pod(pod.name.clone())).with_context(|| format!("no pod {name}"))
    };
    let probe = cluster.probe_between(&party(NEAR)?, &party(FAR)?, protocol, Some(wanted))?;
    let outcome = cluster.probe(&probe)?;
    ensure!(outcome.allowed(), "in the simulator the probe ends with {outcome:?}");
    cluster.finish_captures()?;
    read(&folder.join("underlay.pcapng"))
}

/// A folder that is there no longer than this.
struct Gone(PathBuf);

impl Drop for Gone {
    fn drop(&mut self) {
        // Nothing was written if making the cluster failed.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn read(path: &Path) -> Result<Vec<Vec<u8>>> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let mut reader = PcapNgReader::new(file)?;
    let mut frames = Vec::new();
    while let Some(block) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = block? {
            frames.push(packet.data.into_owned());
        }
    }
    Ok(frames)
}

/// Lets the real pods send what is in these tunnel packets, in turn.
fn compare(near: &Pod<'_>, far: &Pod<'_>, frames: &[Vec<u8>]) -> Result<String> {
    ensure!(frames.len() >= 2, "the simulator sent {} packets", frames.len());
    let mut looked = 0;
    let mut all = Vec::new();
    for frame in frames {
        all.push(frame.clone());
        for class in CLASSES {
            all.push(with_class(frame, class)?);
        }
    }
    for wanted in &all {
        let inner = Packet::read(wanted)?.tunnelled().context("not in the tunnel")?.inner;
        let source = Packet::read(inner)?.ip().context("no IP packet in the tunnel")?.source;
        let (from, to) = if source == near.address { (near, far) } else { (far, near) };
        let mut pod = Capture::start(from.place, "eth0")?;
        let mut node = Capture::start(from.node, "eth0")?;
        let macs = macs(&mut pod, from, to)?;
        let mut sent = inner.to_vec();
        frame::set_macs(&mut sent, macs.1, macs.0);
        pod.send(&sent)?;
        let got = node.wait(PATIENCE, "what the simulator sent", |frame| {
            let inside = Packet::read(&frame.bytes).ok().and_then(|packet| packet.tunnelled());
            frame.way == Way::Out && inside.is_some_and(|tunnelled| tunnelled.inner == sent)
        })?;
        let (got, wanted) = (comparable(&got.completed())?, comparable(wanted)?);
        ensure!(got == wanted, "the kernel sends {got:02x?}, the simulator {wanted:02x?}");
        looked += got.len();
    }
    Ok(format!("{} packets, {looked} bytes", all.len()))
}

/// What the simulator's device makes of the same packet with another traffic class inside.
fn with_class(frame: &[u8], class: u8) -> Result<Vec<u8>> {
    let outer = Packet::read(frame)?;
    let (ip, inside) = (outer.ip().context("no IP packet")?, outer.tunnelled().context("not in the tunnel")?);
    let (mut data, mut scratch) = (inside.inner.to_vec(), Vec::new());
    frame::set_class(&mut data, class);
    let flags = if ip.source.is_ipv4() { NO_CHECKSUM } else { 0 };
    let key = TunnelKey { id: inside.vni, remote: ip.destination, ttl: ip.hops, flags, ..TunnelKey::default() };
    let (from, to) = outer.macs().context("no Ethernet header")?;
    let outer = Outer { to, from, source: ip.source, id: 0 };
    tunnel::encapsulate(inside.protocol, &mut data, &mut scratch, &key, &outer).context("not encapsulated")?;
    Ok(data)
}

/// A pod's own Ethernet address and its gateway's, from what it sends.
fn macs(capture: &mut Capture, from: &Pod<'_>, to: &Pod<'_>) -> Result<(Mac, Mac)> {
    let (client, server) = (traffic::udp(from.place, from.address, 0)?, traffic::udp(to.place, to.address, 0)?);
    traffic::warm_up(&client, &server)?;
    let address: IpAddr = from.address;
    let frames = capture.frames()?;
    let sent = select(frames, Way::Out, |ip| ip.source == address);
    let first = sent.first().context("the pod sent nothing")?;
    Packet::read(&first.bytes)?.macs().context("no Ethernet header")
}

/// A tunnel packet without what must differ.
fn comparable(frame: &[u8]) -> Result<Vec<u8>> {
    Packet::read(frame)?.verify()?;
    let ip = Packet::read(frame)?.ip().context("no IP packet")?;
    let outer = if ip.source.is_ipv4() { 20 } else { 40 };
    let mut bytes = frame.to_vec();
    let mut blank = |at: usize, len: usize| {
        if let Some(part) = bytes.get_mut(at..at + len) {
            part.fill(0);
        }
    };
    blank(0, 12);
    if ip.source.is_ipv4() {
        // Identification and header checksum.
        blank(ETHERNET + 4, 2);
        blank(ETHERNET + 10, 2);
    }
    blank(ETHERNET + outer, 2);
    if ip.source.is_ipv6() {
        // The UDP checksum, which covers what was left aside.
        blank(ETHERNET + outer + 6, 2);
    }
    blank(ETHERNET + outer + TUNNEL, 12);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    #[test]
    fn nothing_else_is_left_aside() {
        let mut inner = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 1, 2], [10, 0, 2, 2], 64);
        builder.udp(40_000, 53).write(&mut inner, b"question").unwrap();
        let mut payload = vec![8, 0, 0, 0, 0, 1, 0, 0];
        payload.extend_from_slice(&inner);
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2([6; 6], [8; 6]).ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64);
        builder.udp(50_000, 8472).write(&mut frame, &payload).unwrap();
        frame[40..42].fill(0);
        let right = comparable(&frame).unwrap();
        let mut aside = Vec::new();
        for at in 0..frame.len() {
            let mut other = frame.clone();
            other[at] ^= 1;
            if at == 18 || at == 19 {
                // The identification, with the checksum that belongs to it.
                other[24..26].fill(0);
                let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&other[14..34]).ones_complement();
                other[24..26].copy_from_slice(&sum.to_ne_bytes());
            }
            if comparable(&other).is_ok_and(|other| other == right) {
                aside.push(at);
            }
        }
        let wanted: Vec<usize> = (0..12).chain(18..20).chain(34..36).chain(50..62).collect();
        assert_eq!(aside, wanted);
    }
}
