//! Checksums are right with every offload on and off, at each device of the path; and data arrives as it was sent.
//!
//! A checksum that is still open must become right when it is written; one that is written must be right. Where writing
//! checksums or cutting segments is switched off for a device, nothing open and nothing uncut may leave through it.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};

use crate::capture::{Checksum, Frame, Recording, Way};
use crate::place::Place;
use crate::report::Report;
use crate::wire::cluster::{self, BESIDE, FAR, NEAR};
use crate::wire::ethtool::{self, Offload};
use crate::wire::packet::{Packet, Sums, verify};
use crate::wire::taps::{Found, Taps, family, note};
use crate::wire::traffic;
use crate::world::World;

/// Bytes of TCP each way.
const BULK: usize = 300_000;
/// Sizes of datagrams.
const DATAGRAMS: [usize; 5] = [0, 1, 99, 1000, 1400];
const PORT: u16 = 8080;

/// A change of a device's offloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    name: &'static str,
    settings: &'static [(Offload, bool)],
}

const CHANGES: [Change; 6] = [
    Change { name: "rx checksum off", settings: &[(Offload::RxChecksum, false)] },
    Change { name: "tx checksum off", settings: &[(Offload::TxChecksum, false)] },
    Change { name: "TSO off", settings: &[(Offload::Tso, false)] },
    Change { name: "GSO and TSO off", settings: &[(Offload::Tso, false), (Offload::Gso, false)] },
    Change { name: "GRO on", settings: &[(Offload::Gro, true)] },
    Change {
        name: "all off",
        settings: &[
            (Offload::RxChecksum, false),
            (Offload::TxChecksum, false),
            (Offload::Tso, false),
            (Offload::Gso, false),
            (Offload::Gro, false),
        ],
    },
];

/// A kind of device on the path: both ends of it are changed.
struct Kind<'a> {
    name: &'static str,
    devices: Vec<(&'a Place, String)>,
}

/// Data there and back for each change of each kind of device.
///
/// # Errors
/// A lab that does not do what must go before.
pub fn look(world: &mut World, report: &mut Report) -> Result<()> {
    let pods = [NEAR, FAR, BESIDE].map(|name| cluster::pod(world, name, false));
    let mut places = Vec::new();
    for pod in pods {
        let pod = pod?;
        places.push((pod.place, pod.node, cluster::endpoint(world, &pod)?.device));
    }
    let kinds = [
        Kind { name: "pods", devices: places.iter().map(|(pod, _, _)| (*pod, "eth0".to_owned())).collect() },
        Kind { name: "nodes' ends of pods", devices: places.iter().map(|(_, n, d)| (*n, d.clone())).collect() },
        Kind { name: "underlay", devices: places.iter().take(2).map(|(_, n, _)| (*n, "eth0".to_owned())).collect() },
    ];
    transfers(world, report, "as they are", &Kind { name: "all devices", devices: Vec::new() }, &[])?;
    for kind in &kinds {
        for change in CHANGES {
            let before = Before::remember(kind)?;
            for (place, device) in &kind.devices {
                for (offload, on) in change.settings {
                    ethtool::set(place, device, *offload, *on)?;
                }
            }
            transfers(world, report, change.name, kind, change.settings)?;
            before.restore()?;
        }
    }
    let everywhere = Kind { name: "all devices", devices: kinds.into_iter().flat_map(|kind| kind.devices).collect() };
    let before = Before::remember(&everywhere)?;
    for (place, device) in &everywhere.devices {
        for offload in Offload::ALL {
            ethtool::set(place, device, offload, false)?;
        }
    }
    transfers(world, report, "all off", &everywhere, &[(Offload::TxChecksum, false), (Offload::Tso, false)])?;
    before.restore()
}

/// Offloads as they were.
struct Before<'a>(Vec<(&'a Place, &'a str, Offload, bool)>);

impl<'a> Before<'a> {
    fn remember(kind: &'a Kind<'a>) -> Result<Self> {
        let mut all = Vec::new();
        for (place, device) in &kind.devices {
            for offload in Offload::ALL {
                all.push((*place, device.as_str(), offload, ethtool::get(place, device, offload)?));
            }
        }
        Ok(Self(all))
    }

    fn restore(&self) -> Result<()> {
        self.0.iter().try_for_each(|(place, device, offload, on)| ethtool::set(place, device, *offload, *on))
    }
}

/// TCP and UDP there and back over both families, to the other node and on this one, with captures everywhere.
fn transfers(
    world: &World,
    report: &mut Report,
    what: &str,
    kind: &Kind<'_>,
    settings: &[(Offload, bool)],
) -> Result<()> {
    let [near, far, beside] = [NEAR, FAR, BESIDE].map(|name| cluster::pod(world, name, false));
    let (near, far, beside) = (near?, far?, beside?);
    let devices: [(&Place, &str); 5] =
        [(near.place, "eth0"), (near.node, "eth0"), (far.node, "eth0"), (far.place, "eth0"), (beside.place, "eth0")];
    let taps = Taps::start(&devices)?;
    let mut arrived = Ok(());
    for (to, ipv6) in [(FAR, false), (FAR, true), (BESIDE, false), (BESIDE, true)] {
        let one = transfer(world, to, ipv6).with_context(|| format!("{} to {to}", family(ipv6)));
        arrived = arrived.and(one);
    }
    let all: [Recording; 5] = taps.stop()?;
    let is_off = |offload: Offload| settings.contains(&(offload, false));
    let found = arrived.map_err(|error| format!("{error:#}")).and_then(|()| {
        let mut sums = Sums::default();
        let mut frames = 0;
        for (recording, (place, device)) in all.iter().zip(devices) {
            let changed = kind.devices.iter().any(|(other, name)| std::ptr::eq(*other, place) && name == device);
            let rules = Rules { written: changed && is_off(Offload::TxChecksum), cut: changed && is_off(Offload::Tso) };
            sums += judge(&recording.frames, rules).map_err(|wrong| format!("at {}: {wrong}", recording.name))?;
            frames += recording.frames.len();
        }
        summary(frames, sums)
    });
    note(report, &format!("{}: {what}", kind.name), &all, found);
    Ok(())
}

fn summary(frames: usize, sums: Sums) -> Found {
    let right = sums.headers + sums.transports;
    if right < 100 {
        Err(format!("only {right} checksums were seen"))
    } else {
        Ok(format!("{frames} frames, {right} checksums"))
    }
}

fn transfer(world: &World, to: &'static str, ipv6: bool) -> Result<()> {
    let (from, to) = (cluster::pod(world, NEAR, ipv6)?, cluster::pod(world, to, ipv6)?);
    let address = SocketAddr::new(to.address, PORT);
    traffic::bulk(from.place, to.place, address, BULK)?;
    let (client, server) = (traffic::udp(from.place, from.address, 0)?, traffic::udp(to.place, to.address, 0)?);
    let mut buffer = vec![0; 65_536];
    for size in DATAGRAMS {
        let data = traffic::bytes(size);
        client.send_to(&data, server.local_addr()?)?;
        let sender = traffic::expect(&server, &data, &mut buffer)?;
        server.send_to(&data, sender)?;
        traffic::expect(&client, &data, &mut buffer)?;
    }
    Ok(())
}

/// What must be so of what leaves through a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rules {
    /// Checksums are written.
    written: bool,
    /// TCP is cut into segments.
    cut: bool,
}

fn judge(frames: &[Frame], rules: Rules) -> Result<Sums, String> {
    let mut sums = Sums::default();
    for frame in frames {
        sums += verify(frame).map_err(|wrong| format!("{wrong} in {:?} {}", frame.way, text(frame)))?;
        let out = frame.way == Way::Out;
        if out && rules.written && matches!(frame.checksum, Checksum::Open { .. }) {
            return Err(format!("a checksum is open although the device writes none: {}", text(frame)));
        }
        if out && rules.cut && frame.segments.is_some() {
            return Err(format!("it is still to be cut although the device cuts nothing: {}", text(frame)));
        }
    }
    Ok(sums)
}

/// A frame in a few words.
fn text(frame: &Frame) -> String {
    let ip = Packet::read(&frame.bytes).ok().and_then(|packet| packet.ip());
    format!("{} bytes {:?} {:?} {ip:?}", frame.bytes.len(), frame.checksum, frame.segments)
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;
    use crate::capture::Segments;

    fn frame() -> Frame {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64);
        builder.tcp(4000, 80, 7, 512).write(&mut bytes, b"some data").unwrap();
        Frame { at_ns: 0, way: Way::Out, checksum: Checksum::Written, segments: None, bytes }
    }

    const BOTH: Rules = Rules { written: true, cut: true };

    #[test]
    fn a_wrong_checksum_is_noticed() {
        assert_eq!(judge(&[frame()], BOTH).unwrap().transports, 1);
        let mut wrong = frame();
        wrong.bytes[60] ^= 1;
        assert!(judge(&[wrong], Rules::default()).is_err());
    }

    #[test]
    fn an_open_checksum_and_an_uncut_packet_are_noticed_where_they_must_not_be() {
        let uncut = Frame { segments: Some(Segments { kind: 1, size: 4 }), ..frame() };
        assert!(judge(std::slice::from_ref(&uncut), Rules::default()).is_ok());
        assert!(judge(std::slice::from_ref(&uncut), BOTH).unwrap_err().contains("cut"));
        assert!(judge(&[Frame { way: Way::In, ..uncut }], BOTH).is_ok());
        let mut open = frame();
        // The sum of the pseudo header, as a stack leaves it.
        let len = u16::try_from(open.bytes.len() - 34).unwrap();
        let sum = etherparse::checksum::Sum16BitWords::new()
            .add_slice(&open.bytes[26..34])
            .add_2bytes([0, 6])
            .add_2bytes(len.to_be_bytes())
            .ones_complement();
        open.bytes[50..52].copy_from_slice(&(!sum).to_ne_bytes());
        open.checksum = Checksum::Open { start: 34, offset: 16 };
        assert!(judge(std::slice::from_ref(&open), Rules::default()).is_ok());
        assert!(judge(std::slice::from_ref(&open), BOTH).unwrap_err().contains("open"));
        open.bytes[50] ^= 1;
        assert!(judge(&[open], Rules::default()).is_err());
    }
}
