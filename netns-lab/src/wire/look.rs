//! The check `wire`: two pods of two nodes talk, and of one node; everything is captured and judged.

use anyhow::{Context as _, Result};

use crate::capture::{Recording, Way};
use crate::probe;
use crate::report::Report;
use crate::wire::cluster::{self, BESIDE, FAR, NEAR, Pod};
use crate::wire::packet::{Ip, Mac, Packet};
use crate::wire::taps::{Taps, family, note, select, select_inside};
use crate::wire::traffic;
use crate::wire::tunnel::{self, Expected, Journey};
use crate::world::World;

/// Sizes of payload that are sent in each flow.
const SIZES: [usize; 6] = [0, 1, 2, 63, 512, 1300];
/// Flows each way.
const FLOWS: usize = 8;

/// Everything about frames between pods.
///
/// # Errors
/// A lab that does not do what must go before.
pub fn look(world: &mut World, report: &mut Report) -> Result<()> {
    for ipv6 in [false, true] {
        overlay(world, report, ipv6)?;
        same_node(world, report, ipv6)?;
    }
    Ok(())
}

/// The same, and the sizes, where tunnels are over IPv6; and the simulator's bytes.
///
/// # Errors
/// A lab that does not do what must go before.
pub fn over_ipv6(world: &mut World, report: &mut Report) -> Result<()> {
    look(world, report)?;
    super::sizes::look(world, report)?;
    super::simulated::look(world, report)?;
    super::received::look(world, report)
}

/// Datagrams of several flows and sizes there and back, and a connection.
pub(super) fn talk(from: &Pod<'_>, to: &Pod<'_>) -> Result<()> {
    let server = traffic::udp(to.place, to.address, 0)?;
    let address = server.local_addr()?;
    let mut buffer = vec![0; 65_536];
    for _ in 0..FLOWS {
        let client = traffic::udp(from.place, from.address, 0)?;
        for size in SIZES {
            let data = traffic::bytes(size);
            client.send_to(&data, address)?;
            let sender = traffic::expect(&server, &data, &mut buffer)?;
            server.send_to(&data, sender)?;
            traffic::expect(&client, &data, &mut buffer)?;
        }
    }
    let address = std::net::SocketAddr::new(to.address, 8080);
    let connection = probe::connect(from.place, to.place, address, traffic::PATIENCE)?;
    let mut connection = connection.with_context(|| format!("no connection to {address}"))?;
    for size in [1, 100, 1000] {
        anyhow::ensure!(connection.echo(size, traffic::PATIENCE)?, "{size} bytes did not come back");
    }
    Ok(())
}

/// Ethernet addresses of frames to a pod, from those of its own frames: gateway, pod.
fn macs(recording: &Recording, pod: &Pod<'_>) -> Option<(Mac, Mac)> {
    let sent = select(&recording.frames, Way::Out, |ip| ip.source == pod.address);
    let (own, gateway) = Packet::read(&sent.first()?.bytes).ok()?.macs()?;
    Some((gateway, own))
}

fn between<'a>(from: &Pod<'a>, to: &Pod<'a>) -> impl Fn(&Ip) -> bool + Copy + use<> {
    let (source, destination) = (from.address, to.address);
    move |ip: &Ip| (ip.source, ip.destination) == (source, destination)
}

fn overlay(world: &World, report: &mut Report, ipv6: bool) -> Result<()> {
    let (near, far) = (cluster::pod(world, NEAR, ipv6)?, cluster::pod(world, FAR, ipv6)?);
    traffic::warm_up(&traffic::udp(near.place, near.address, 0)?, &traffic::udp(far.place, far.address, 0)?)?;
    let taps = Taps::start(&[(near.place, "eth0"), (near.node, "eth0"), (far.node, "eth0"), (far.place, "eth0")])?;
    talk(&near, &far)?;
    let all: [Recording; 4] = taps.stop()?;
    let [at_near, left, right, at_far] = &all;
    for (from, to, [a, b, c, d]) in
        [(near, far, [at_near, left, right, at_far]), (far, near, [at_far, right, left, at_near])]
    {
        let wanted = between(&from, &to);
        let journey = Journey {
            sent: select(&a.frames, Way::Out, wanted),
            left: select_inside(&b.frames, Way::Out, wanted),
            right: select_inside(&c.frames, Way::In, wanted),
            received: select(&d.frames, Way::In, wanted),
        };
        let nodes = (cluster::underlay(world, from.node_name)?, cluster::underlay(world, to.node_name)?);
        let macs = macs(d, &to).with_context(|| format!("{} sent nothing", to.name))?;
        let protocol = world.topology().config.tunnel.context("a lab without a tunnel")?;
        let expected = Expected { protocol, identity: cluster::identity(world, &from)?, nodes, macs };
        let name = format!("{}: {} to {} over {}", family(ipv6), from.name, to.name, protocol.name());
        note(report, &name, &all, tunnel::judge(&journey, &expected));
    }
    Ok(())
}

fn same_node(world: &World, report: &mut Report, ipv6: bool) -> Result<()> {
    let (near, beside) = (cluster::pod(world, NEAR, ipv6)?, cluster::pod(world, BESIDE, ipv6)?);
    traffic::warm_up(&traffic::udp(near.place, near.address, 0)?, &traffic::udp(beside.place, beside.address, 0)?)?;
    let taps = Taps::start(&[(near.place, "eth0"), (beside.place, "eth0"), (near.node, "eth0")])?;
    talk(&near, &beside)?;
    let all: [Recording; 3] = taps.stop()?;
    let [at_near, at_beside, outside] = &all;
    for (from, to, a, b) in [(near, beside, at_near, at_beside), (beside, near, at_beside, at_near)] {
        let wanted = between(&from, &to);
        let (sent, received) = (select(&a.frames, Way::Out, wanted), select(&b.frames, Way::In, wanted));
        let macs = macs(b, &to).with_context(|| format!("{} sent nothing", to.name))?;
        let found = tunnel::received(&sent, &received, macs).and_then(|()| {
            match select(&outside.frames, Way::Out, wanted).len()
                + select_inside(&outside.frames, Way::Out, wanted).len()
            {
                0 => Ok(format!("{} packets, none of them on the underlay", sent.len())),
                seen => Err(format!("{seen} of its packets are on the underlay")),
            }
        });
        note(report, &format!("{}: {} to {} on one node", family(ipv6), from.name, to.name), &all, found);
    }
    Ok(())
}
