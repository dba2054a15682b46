//! The check `wire-decoded`: a program that is not ours reads what is on the wire as we do. tshark is given the frames of
//! both nodes; tunnel, VNI, addresses and ports outside and inside, and every checksum, are compared frame by frame.
//! Without tshark it is a declared skip.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use simulator::cluster::tunnel::Protocol;

use crate::capture::{self, Checksum, Frame, Recording};
use crate::clients::missing;
use crate::report::Report;
use crate::wire::cluster::{self, FAR, NEAR};
use crate::wire::look::talk;
use crate::wire::packet::Packet;
use crate::wire::taps::{Taps, family, note};
use crate::world::World;

/// Fields of tshark, in the order that [`Seen`] reads them.
const FIELDS: [&str; 11] = [
    "vxlan.vni",
    "geneve.vni",
    "ip.src",
    "ip.dst",
    "ipv6.src",
    "ipv6.dst",
    "udp.dstport",
    "tcp.dstport",
    "ip.checksum.status",
    "udp.checksum.status",
    "tcp.checksum.status",
];

/// One tunnel packet as somebody reads it. Addresses and ports are sets: tshark lists them by family and protocol, not by layer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    protocol: Protocol,
    vni: u32,
    sources: BTreeSet<IpAddr>,
    destinations: BTreeSet<IpAddr>,
    udp_ports: BTreeSet<u16>,
    tcp_ports: BTreeSet<u16>,
}

/// Compares both readings.
///
/// # Errors
/// A lab that does not do what must go before; a tshark that does not run.
pub fn look(world: &mut World, report: &mut Report) -> Result<()> {
    if let Some(line) = missing("tshark") {
        report.skip(line);
        return Ok(());
    }
    let protocol = world.topology().config.tunnel.context("a lab without a tunnel")?;
    for ipv6 in [false, true] {
        let (near, far) = (cluster::pod(world, NEAR, ipv6)?, cluster::pod(world, FAR, ipv6)?);
        let taps = Taps::start(&[(near.node, "eth0"), (far.node, "eth0")])?;
        talk(&near, &far)?;
        let all: [Recording; 2] = taps.stop()?;
        let found = compare(&all, protocol).map_err(|error| format!("{error:#}"));
        note(report, &format!("{}: tshark reads {} as we do", family(ipv6), protocol.name()), &all, found);
    }
    Ok(())
}

fn compare(recordings: &[Recording], protocol: Protocol) -> Result<String> {
    let path = std::env::temp_dir().join(format!("weir-lab-decoded-{}.pcapng", std::process::id()));
    // With the checksums that their devices would have written.
    let mut whole = recordings.to_vec();
    for frame in whole.iter_mut().flat_map(|one| &mut one.frames) {
        (frame.bytes, frame.checksum) = (frame.completed(), Checksum::Written);
    }
    capture::save(&path, &whole)?;
    let theirs = tshark(&path);
    std::fs::remove_file(&path).with_context(|| path.display().to_string())?;
    let theirs = theirs?;
    let mut frames: Vec<&Frame> = recordings.iter().flat_map(|one| &one.frames).collect();
    // As the file has them.
    frames.sort_by_key(|frame| frame.at_ns);
    let ours: Vec<Seen> = frames.iter().filter_map(|frame| ours(&frame.completed())).collect();
    ensure!(!ours.is_empty(), "there are no tunnel packets");
    ensure!(ours.iter().all(|seen| seen.protocol == protocol), "packets of another tunnel");
    ensure!(ours.len() == theirs.len(), "{} tunnel packets, and {} for tshark", ours.len(), theirs.len());
    for (number, (ours, theirs)) in ours.iter().zip(&theirs).enumerate() {
        ensure!(ours == theirs, "tunnel packet {number}: {ours:?}, and for tshark {theirs:?}");
    }
    Ok(format!("{} packets", ours.len()))
}

/// Our reading of a tunnel packet.
fn ours(frame: &[u8]) -> Option<Seen> {
    let outer = Packet::read(frame).ok()?;
    let tunnelled = outer.tunnelled()?;
    let inner = Packet::read(tunnelled.inner).ok()?;
    let ips: Vec<_> = outer.ip().into_iter().chain(inner.ip()).collect();
    Some(Seen {
        protocol: tunnelled.protocol,
        vni: tunnelled.vni,
        sources: ips.iter().map(|ip| ip.source).collect(),
        destinations: ips.iter().map(|ip| ip.destination).collect(),
        udp_ports: outer.udp().into_iter().chain(inner.udp()).map(|(_, to, _)| to).collect(),
        tcp_ports: inner.tcp().into_iter().map(|(_, to, _)| to).collect(),
    })
}

/// Its reading of every tunnel packet of a file.
fn tshark(file: &Path) -> Result<Vec<Seen>> {
    let mut command = Command::new("tshark");
    command.args(["-n", "-r"]).arg(file).args(["-d", "udp.port==8472,vxlan", "-Y", "vxlan || geneve", "-T", "fields"]);
    command.args(["-E", "separator=/t", "-E", "occurrence=a", "-E", "aggregator=,"]);
    for layer in ["ip", "udp", "tcp"] {
        command.args(["-o", &format!("{layer}.check_checksum:TRUE")]);
    }
    for field in FIELDS {
        command.args(["-e", field]);
    }
    let output = command.output().context("starting tshark")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "tshark: {said}");
    let text = String::from_utf8(output.stdout).context("tshark's output")?;
    text.lines().map(read).collect()
}

/// A line of tshark's.
fn read(line: &str) -> Result<Seen> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [vxlan, geneve, from4, to4, from6, to6, udp, tcp, sums @ ..] = fields.as_slice() else {
        anyhow::bail!("tshark's line has {} fields: {line}", fields.len());
    };
    ensure!(sums.len() == 3, "tshark's line has {} fields: {line}", fields.len());
    // 0 is "bad".
    ensure!(
        sums.iter().flat_map(|sums| sums.split(',')).all(|sum| sum != "0"),
        "tshark finds a checksum wrong: {line}"
    );
    let (protocol, vni) = if vxlan.is_empty() { (Protocol::Geneve, geneve) } else { (Protocol::Vxlan, vxlan) };
    let vni = match vni.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => vni.parse(),
    };
    Ok(Seen {
        protocol,
        vni: vni.with_context(|| format!("VNI in {line}"))?,
        sources: all(&[from4, from6])?,
        destinations: all(&[to4, to6])?,
        udp_ports: all(&[udp])?,
        tcp_ports: all(&[tcp])?,
    })
}

fn all<T: std::str::FromStr + Ord>(fields: &[&str]) -> Result<BTreeSet<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let values = fields.iter().flat_map(|field| field.split(',')).filter(|value| !value.is_empty());
    values.map(|value| value.parse().with_context(|| format!("`{value}`"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_tshark_is_read() {
        let seen = read("\t0x000100\t192.0.2.1,10.0.0.1\t192.0.2.2,10.0.0.2\t\t\t6081\t80\t1,1\t3\t1").unwrap();
        assert_eq!((seen.protocol, seen.vni), (Protocol::Geneve, 256));
        assert_eq!(seen.sources, ["192.0.2.1", "10.0.0.1"].map(|address| address.parse().unwrap()).into());
        assert_eq!((seen.udp_ports, seen.tcp_ports), ([6081].into(), [80].into()));
    }

    #[test]
    fn a_wrong_checksum_and_a_line_of_something_else_are_errors() {
        assert!(
            read("256\t\t192.0.2.1\t192.0.2.2\t\t\t8472\t80\t1\t1\t0").unwrap_err().to_string().contains("checksum")
        );
        assert!(read("256\t\t192.0.2.1").is_err());
        assert!(read("x\t\t192.0.2.1\t192.0.2.2\t\t\t8472\t80\t1\t1\t1").is_err());
    }
}
