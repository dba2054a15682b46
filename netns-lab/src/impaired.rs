//! A bad way between the nodes: packets that come late, twice, in another order, or not at all (netem), with each family
//! and both ways at once. What TCP carries still arrives as it was sent; no node drops a packet of a flow that it lets
//! through; and each node knows the flow once, however often its packets came.
//!
//! Kernels without netem (`CONFIG_NET_SCH_NETEM`) are a declared skip.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Duration;

use agent_api::{Flow, Request};
use anyhow::{Context as _, Result, ensure};

use crate::place::Place;
use crate::report::Report;
use crate::watch::Dropped;
use crate::wire::cluster::{self, FAR, NEAR, Pod};
use crate::wire::taps::{family, note};
use crate::wire::traffic;
use crate::world::World;

/// Bytes of TCP each way.
const BULK: usize = 400_000;
/// Datagrams each way: sent at once, so that a socket's buffer must hold them and their copies.
const DATAGRAMS: u16 = 60;
/// A first port: every transfer has one of its own.
const PORT: u16 = 8100;
/// How long after the last datagram another may come.
const SILENCE: Duration = Duration::from_millis(300);

/// What the way does to packets, in each direction.
struct Way {
    name: &'static str,
    /// As `tc` wants it.
    netem: &'static [&'static str],
    /// Datagrams of a hundred that arrive at least.
    arrives: usize,
    /// Whether each arrives once at most.
    once: bool,
}

const WAYS: [Way; 5] = [
    Way { name: "delay", netem: &["delay", "10ms", "4ms", "distribution", "normal"], arrives: 100, once: true },
    Way { name: "loss", netem: &["delay", "1ms", "loss", "2%"], arrives: 80, once: true },
    Way { name: "duplication", netem: &["delay", "1ms", "duplicate", "30%"], arrives: 100, once: false },
    Way { name: "reordering", netem: &["delay", "5ms", "reorder", "40%", "50%", "gap", "3"], arrives: 100, once: true },
    Way {
        name: "all of them",
        netem: &["delay", "3ms", "2ms", "loss", "1%", "duplicate", "30%", "reorder", "20%"],
        arrives: 80,
        once: false,
    },
];

/// Every kind of bad way, one after the other.
///
/// # Errors
/// A lab that does not do what must go before.
pub fn look(world: &mut World, report: &mut Report) -> Result<()> {
    if let Some(line) = missing()? {
        report.skip(line);
        return Ok(());
    }
    let mut port = PORT;
    for ipv6 in [false, true] {
        let (near, far) = (cluster::pod(world, NEAR, ipv6)?, cluster::pod(world, FAR, ipv6)?);
        let sockets = (traffic::udp(near.place, near.address, 0)?, traffic::udp(far.place, far.address, 0)?);
        traffic::warm_up(&sockets.0, &sockets.1)?;
        for way in &WAYS {
            let _ = world.watch().take();
            let nodes = [near.node, far.node];
            nodes.iter().try_for_each(|node| tc(node, "replace", way.netem))?;
            let tcp = bulk(world, &near, &far, port).map_err(|error| format!("{error:#}"));
            let udp = datagrams(&near, &far, way, port).map_err(|error| format!("{error:#}"));
            nodes.iter().try_for_each(|node| tc(node, "del", &[]))?;
            note(report, &format!("{}: {}: TCP", family(ipv6), way.name), &[], tcp);
            note(report, &format!("{}: {}: UDP", family(ipv6), way.name), &[], udp);
            // Between these two: what pods tell their neighbours of themselves is none of them.
            let pods = [near.address, far.address].map(|address| address.to_string());
            let ours = |drop: &&Dropped| {
                [&drop.event.source, &drop.event.destination].iter().all(|end| pods.contains(&end.address))
            };
            let heard = world.watch().take();
            let told = heard.iter().filter(ours).map(|drop| format!("{}: {}", drop.node, drop.event.outcome));
            let dropped: BTreeSet<String> = told.collect();
            let wrong = (!dropped.is_empty()).then(|| format!("{dropped:?}"));
            report.check(format!("{}: {}: no node drops a packet", family(ipv6), way.name), wrong);
            port += 1;
        }
    }
    Ok(())
}

/// A declared skip, if this kernel has no netem: tried.
fn missing() -> Result<Option<String>> {
    let place = Place::new("netem")?;
    let said = run(&place, &["qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"])?;
    Ok((!said.is_empty()).then(|| "skip: netem: not in this kernel".to_owned()))
}

/// Changes what the node's device to the other nodes does to packets that leave.
fn tc(node: &Place, change: &str, netem: &[&str]) -> Result<()> {
    let mut words = vec!["qdisc", change, "dev", "eth0", "root"];
    if !netem.is_empty() {
        words.push("netem");
        words.extend(netem);
    }
    let said = run(node, &words)?;
    ensure!(said.is_empty(), "{}: tc {}: {said}", node.name(), words.join(" "));
    Ok(())
}

/// Runs `tc` in a place; why it failed, or nothing.
fn run(place: &Place, words: &[&str]) -> Result<String> {
    let child = {
        // A child starts in the namespace of the thread that makes it.
        let _inside = place.enter()?;
        let mut command = Command::new("tc");
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.spawn().context("starting `tc` (iproute2)")?
    };
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Ok(if output.status.success() { String::new() } else { format!("{}: {said}", output.status) })
}

/// Bytes there and back at the same time; then both nodes know one flow to that port.
fn bulk(world: &World, near: &Pod<'_>, far: &Pod<'_>, port: u16) -> Result<String> {
    traffic::bulk(near.place, far.place, (far.address, port).into(), BULK)?;
    let server = std::net::SocketAddr::from((far.address, port)).to_string();
    for pod in [near, far] {
        let flows: Vec<Flow> = world.agent(pod.node_name)?.ask(&Request::CtList {})?;
        let found: Vec<&Flow> = flows.iter().filter(|flow| flow.protocol == "TCP" && flow.server == server).collect();
        ensure!(found.len() == 1, "{} knows {} flows to {server}: {found:?}", pod.node_name, found.len());
    }
    Ok(format!("{BULK} bytes each way, one flow at each node"))
}

/// Numbered datagrams both ways: as many as this way lets through, each as it was sent.
fn datagrams(near: &Pod<'_>, far: &Pod<'_>, way: &Way, port: u16) -> Result<String> {
    let client = traffic::udp(near.place, near.address, 0)?;
    let server = traffic::udp(far.place, far.address, port)?;
    let to_server = send_and_count(&client, &server, way).context("to the server")?;
    let to_client = send_and_count(&server, &client, way).context("to the client")?;
    Ok(format!("{to_server} and {to_client} of {DATAGRAMS} datagrams"))
}

fn send_and_count(from: &std::net::UdpSocket, to: &std::net::UdpSocket, way: &Way) -> Result<usize> {
    let payload = |number: u16| [number.to_be_bytes().as_slice(), &traffic::bytes(usize::from(number) + 1)].concat();
    let address = to.local_addr()?;
    for number in 0..DATAGRAMS {
        from.send_to(&payload(number), address)?;
    }
    to.set_read_timeout(Some(SILENCE))?;
    let (mut buffer, mut seen, mut copies) = (vec![0; 2048], BTreeSet::new(), 0);
    while let Ok((len, _)) = to.recv_from(&mut buffer) {
        let got = buffer.get(..len).unwrap_or_default();
        let number =
            got.first_chunk().map(|bytes| u16::from_be_bytes(*bytes)).context("a datagram without a number")?;
        ensure!(got == payload(number), "datagram {number} arrived as another");
        copies += usize::from(!seen.insert(number));
    }
    let least = usize::from(DATAGRAMS) * way.arrives / 100;
    ensure!(seen.len() >= least, "{} of {DATAGRAMS} datagrams arrived, {least} at least must", seen.len());
    ensure!(!way.once || copies == 0, "{copies} datagrams arrived twice");
    ensure!(way.once || copies > 0, "no datagram arrived twice: the way does not do what it should");
    Ok(seen.len())
}

/// What is found of a way with these limits.
#[cfg(test)]
fn judged(way: &Way, sent_twice: bool) -> crate::wire::taps::Found {
    let [from, to] = [0, 1].map(|_| std::net::UdpSocket::bind("127.0.0.1:0"));
    let (from, to) = (from.map_err(|error| error.to_string())?, to.map_err(|error| error.to_string())?);
    if sent_twice {
        let address = to.local_addr().map_err(|error| error.to_string())?;
        let again = [0u16.to_be_bytes().as_slice(), &traffic::bytes(1)].concat();
        from.send_to(&again, address).map_err(|error| error.to_string())?;
    }
    send_and_count(&from, &to, way).map(|count| count.to_string()).map_err(|error| format!("{error:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_that_comes_twice_is_seen() {
        let once = Way { name: "", netem: &[], arrives: 100, once: true };
        assert_eq!(judged(&once, false), Ok(DATAGRAMS.to_string()));
        assert!(judged(&once, true).unwrap_err().contains("arrived twice"));
        let twice = Way { once: false, ..once };
        assert!(judged(&twice, false).unwrap_err().contains("no datagram arrived twice"));
        assert_eq!(judged(&twice, true), Ok(DATAGRAMS.to_string()));
    }
}
