//! One probe of a scenario with real sockets: the same ends, addresses, protocol and port as in the simulator, and an
//! answer of the same kind.
//!
//! Allowed means that request and answer really arrived, each from the right address. A drop is known from the report of
//! the node's agent within milliseconds, with reason and hook; silence counts only after a while. A report of a drop does
//! not excuse an arrival: what arrived although a program says it dropped it is a difference.

mod packet;
mod raw;
mod tcp;
mod udp;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use agent_api::Event;
use anyhow::{Context as _, Result};
use datapath_abi::DropReason;
use rustix::event::{PollFd, PollFlags};
use simulator::cluster::{Drop, Outcome, Probe, Protocol};

use crate::place::Place;
use crate::poll;
use crate::watch::{Dropped, Watch};

/// How long an answer, or the report of a drop, may take: the first packets of a new device may be late.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long nothing has to come where the simulator says that a packet gets lost without a word.
const SILENCE: Duration = Duration::from_millis(700);
/// After so long without anything a request that its protocol does not repeat is sent again, once.
const AGAIN: Duration = Duration::from_millis(1200);
/// How long reports may be on their way.
const REPORTS: Duration = Duration::from_millis(25);
/// Source ports of probes that ask for none: below those that kernels choose.
const PORTS: std::ops::Range<u16> = 20_000..32_768;

/// What became of a probe on the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Request and answer arrived.
    Allowed,
    /// A program dropped a packet.
    Dropped {
        /// Which packet: 0 the request, 1 the answer, 2 what follows.
        leg: usize,
        /// Node.
        node: String,
        /// Name of the hook.
        hook: String,
        /// Name of the reason.
        reason: String,
        /// `ingress` or `egress`.
        at: String,
    },
    /// A program says that it dropped the packet, and it arrived.
    DroppedAndArrived,
    /// Nothing came back, and nobody said why.
    Silent {
        /// Whether the request had arrived.
        arrived: bool,
    },
    /// An error of the sockets.
    Refused(io::ErrorKind),
    /// Something arrived that was not what was sent.
    Wrong(String),
}

/// An outcome of the simulator with names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Simulated(pub Seen);

impl Simulated {
    /// Names for the numbers of an outcome.
    #[must_use]
    pub fn new(outcome: &Outcome, node_name: impl Fn(usize) -> String) -> Self {
        Self(match outcome {
            Outcome::Allowed => Seen::Allowed,
            Outcome::Dropped { leg, drop } => dropped(*leg, drop, node_name(drop.node)),
            Outcome::Lost { leg, .. } => Seen::Silent { arrived: *leg > 0 },
        })
    }

    /// Whether the kernel did the same.
    #[must_use]
    pub fn is(&self, seen: &Seen) -> bool {
        match (&self.0, seen) {
            // A stack that refuses says so to its own sockets.
            (Seen::Silent { .. }, Seen::Refused(_)) => true,
            (ours, theirs) => ours == theirs,
        }
    }
}

fn dropped(leg: usize, drop: &Drop, node: String) -> Seen {
    Seen::Dropped {
        leg,
        node,
        hook: drop.hook.name().to_owned(),
        reason: drop.reason.map_or("?", |reason| reason.name()).to_owned(),
        at: drop.at().to_owned(),
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allowed => f.write_str("allow"),
            Self::Dropped { leg, node, hook, reason, at } => {
                let which = ["", " of the answer", " of what follows"].get(*leg).copied().unwrap_or_default();
                // What is for a proxy is the proxy's to decide: it is dropped only because there is none.
                if reason == DropReason::ProxyLookupFailed.name() {
                    return write!(f, "redirect{which} at {at} ({node} {hook})");
                }
                write!(f, "drop{which} {reason} at {at} ({node} {hook})")
            }
            Self::DroppedAndArrived => f.write_str("a drop was reported, and it arrived"),
            Self::Silent { arrived: false } => f.write_str("silence"),
            Self::Silent { arrived: true } => f.write_str("no answer"),
            Self::Refused(kind) => write!(f, "refused ({kind})"),
            Self::Wrong(what) => f.write_str(what),
        }
    }
}

/// A probe with its places.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// What is asked.
    pub probe: &'a Probe,
    /// Where the sender is.
    pub from: &'a Place,
    /// Where the receiver is.
    pub to: &'a Place,
    /// Whether the simulator says that a packet is lost without a word.
    pub silence: bool,
}

/// Does probes, one after the other.
#[derive(Debug)]
pub struct Prober {
    next_port: u16,
    tag: u32,
    /// Flows that got through, and that nobody may say later to have dropped.
    allowed: Vec<Flow>,
    contradictions: Vec<String>,
}

impl Default for Prober {
    fn default() -> Self {
        Self { next_port: PORTS.start, tag: 0x5eed_0001, allowed: Vec::new(), contradictions: Vec::new() }
    }
}

/// The addresses and ports of one flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Flow {
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
    /// Differs from flow to flow; is in the packets.
    tag: u32,
}

/// One probe under way.
struct Attempt<'a> {
    ask: Ask<'a>,
    flow: Flow,
    watch: &'a Watch,
    began: Instant,
    repeated: bool,
    /// What programs said about this flow.
    drops: Vec<Dropped>,
}

/// What happened first.
enum Next {
    /// A socket is ready.
    Ready,
    /// A drop was reported.
    Drop,
    /// It is time to send again.
    Again,
    /// Nothing, for long enough.
    Nothing,
}

impl Prober {
    /// Does a probe.
    ///
    /// # Errors
    /// When sockets cannot be made.
    pub fn probe(&mut self, ask: Ask<'_>, watch: &Watch) -> Result<Seen> {
        self.next_port = if self.next_port + 1 == PORTS.end { PORTS.start } else { self.next_port + 1 };
        self.tag = self.tag.wrapping_mul(0x9e37_79b1).wrapping_add(0x7f4a_7c15);
        let probe = ask.probe;
        let port = probe.protocol.port().unwrap_or(0);
        let flow = Flow {
            protocol: probe.protocol,
            source: SocketAddr::new(probe.source, probe.source_port.unwrap_or(self.next_port)),
            destination: SocketAddr::new(probe.destination, port),
            tag: self.tag | 1,
        };
        // What was heard before is of other flows.
        self.hear(watch);
        // The same ports again: from here on reports are of this one.
        let same = |old: &Flow| {
            let ends = [old.source, old.destination];
            (ends == [flow.source, flow.destination] || ends == [flow.destination, flow.source])
                && old.protocol.name() == flow.protocol.name()
        };
        self.allowed.retain(|old| !same(old));
        let attempt = Attempt { ask, flow, watch, began: Instant::now(), repeated: false, drops: Vec::new() };
        let seen = match probe.protocol {
            Protocol::Tcp(_) => tcp::probe(attempt),
            Protocol::Udp(_) => udp::probe(attempt),
            Protocol::Sctp(_) | Protocol::Icmp(_) => raw::probe(attempt),
        }?;
        if seen == Seen::Allowed {
            self.allowed.push(flow);
        }
        Ok(seen)
    }

    fn hear(&mut self, watch: &Watch) {
        for drop in watch.take() {
            if let Some(flow) = self.allowed.iter().find(|flow| flow.find(&drop.event).is_some()) {
                self.contradictions.push(format!(
                    "{} to {} {} got through, and {} reported a drop: {} at {}",
                    flow.source, flow.destination, flow.protocol, drop.node, drop.event.outcome, drop.event.hook
                ));
            }
        }
    }

    /// Ends a sequence of probes. What got through although some node reported that it dropped a packet of it; reports on
    /// their way are waited for.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn finish(&mut self, watch: &Watch) -> Result<Vec<String>> {
        let end = Instant::now() + REPORTS;
        self.hear(watch);
        while Instant::now() < end && poll::readable(watch, end.saturating_duration_since(Instant::now()))? {
            self.hear(watch);
        }
        self.allowed.clear();
        Ok(std::mem::take(&mut self.contradictions))
    }
}

impl Flow {
    /// Whether an event is about a packet of this flow, and whether it is one of the answers.
    fn find(&self, event: &Event) -> Option<bool> {
        let is =
            |peer: &agent_api::Peer, end: &SocketAddr| peer.address.parse::<IpAddr>().is_ok_and(|ip| ip == end.ip());
        let name = match (self.protocol, self.source.is_ipv6()) {
            (Protocol::Icmp(_), true) => "ICMPv6",
            (protocol, _) => protocol.name(),
        };
        if event.protocol != name {
            return None;
        }
        let ported = !matches!(self.protocol, Protocol::Icmp(_));
        let ports = |source: u16, destination: u16| {
            !ported || (event.source.port == source && event.destination.port == destination)
        };
        let forward = is(&event.source, &self.source) && is(&event.destination, &self.destination);
        let back = is(&event.source, &self.destination) && is(&event.destination, &self.source);
        // Echo messages have an identifier, the same both ways; of others the datapath tells the type alone.
        let echo = packet::echo(self.source.is_ipv6()).0;
        let identified = match self.protocol {
            Protocol::Icmp(Some(kind)) if kind != echo => event.destination.port == u16::from(kind),
            Protocol::Icmp(_) => event.source.port == self.source.port(),
            Protocol::Tcp(_) | Protocol::Udp(_) | Protocol::Sctp(_) => true,
        };
        match () {
            () if forward && identified && ports(self.source.port(), self.destination.port()) => Some(false),
            () if back && identified && ports(self.destination.port(), self.source.port()) => Some(true),
            () => None,
        }
    }
}

impl Attempt<'_> {
    /// Waits for sockets, for a report, or long enough. `writable`: the first is waited for to become writable.
    fn wait(&mut self, sockets: &[BorrowedFd<'_>], writable: bool) -> Result<Next> {
        loop {
            if self.hear() {
                return Ok(Next::Drop);
            }
            let patience = if self.ask.silence { SILENCE } else { PATIENCE };
            let again = (!self.repeated && !self.ask.silence).then(|| AGAIN.saturating_sub(self.began.elapsed()));
            let left = patience.saturating_sub(self.began.elapsed());
            let mut all: Vec<PollFd<'_>> = Vec::new();
            for (index, socket) in sockets.iter().enumerate() {
                let flags = if writable && index == 0 { PollFlags::OUT } else { PollFlags::IN };
                all.push(PollFd::new(socket, flags));
            }
            let wake = self.watch.as_fd();
            all.push(PollFd::new(&wake, PollFlags::IN));
            if poll::any(&mut all, again.unwrap_or(left).min(left))? == 0 {
                if self.began.elapsed() >= patience {
                    return Ok(Next::Nothing);
                }
                if !self.repeated && self.began.elapsed() >= AGAIN {
                    self.repeated = true;
                    return Ok(Next::Again);
                }
                continue;
            }
            if all.iter().take(sockets.len()).any(|socket| !socket.revents().is_empty()) {
                return Ok(Next::Ready);
            }
        }
    }

    /// Takes reports; whether there was one about this flow.
    fn hear(&mut self) -> bool {
        let flow = self.flow;
        self.drops.extend(self.watch.take_of(|drop| flow.find(&drop.event).is_some()));
        !self.drops.is_empty()
    }

    /// What it comes to that a program dropped a packet. `arrived`: the request came through.
    fn dropped(&self, arrived: bool) -> Seen {
        let Some(drop) = self.drops.first() else { return Seen::Silent { arrived } };
        let back = self.flow.find(&drop.event).unwrap_or(false);
        let leg = match (back, arrived) {
            (true, _) => 1,
            (false, false) => 0,
            // The request came and a packet of its sender was dropped: a later one, or this one all the same.
            (false, true) if matches!(self.flow.protocol, Protocol::Tcp(_)) => 2,
            (false, true) => return Seen::DroppedAndArrived,
        };
        Seen::Dropped {
            leg,
            node: drop.node.clone(),
            hook: drop.event.hook.clone(),
            reason: drop.event.outcome.clone(),
            at: drop.event.direction.clone(),
        }
    }
}

/// Errors that say: there is no way. Others are the lab's own.
fn refusal(error: &io::Error) -> Option<Seen> {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, PermissionDenied,
        TimedOut,
    };
    let kind = error.kind();
    let no_way = [
        ConnectionAborted,
        ConnectionRefused,
        ConnectionReset,
        HostUnreachable,
        NetworkUnreachable,
        PermissionDenied,
        TimedOut,
    ];
    no_way.contains(&kind).then_some(Seen::Refused(kind))
}

/// A socket that is bound to an address, which may be in use by one that is gone.
fn bound(
    place: &Place,
    address: SocketAddr,
    kind: rustix::net::SocketType,
    protocol: Option<rustix::net::Protocol>,
) -> Result<std::os::fd::OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, socket_with, sockopt};
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = {
        let _inside = place.enter()?;
        socket_with(family, kind, flags, protocol).with_context(|| format!("{}: a socket", place.name()))?
    };
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address).with_context(|| format!("{}: a socket on {address}", place.name()))?;
    Ok(socket)
}

/// Whether a socket could not be had because a tunnel device has its port.
fn in_use(error: &anyhow::Error) -> bool {
    error.downcast_ref::<rustix::io::Errno>() == Some(&rustix::io::Errno::ADDRINUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drop_at(hook: &str, leg: usize) -> Seen {
        let text = |text: &str| text.to_owned();
        Seen::Dropped { leg, node: text("n"), hook: text(hook), reason: text("PolicyNoMatch"), at: text("ingress") }
    }

    #[test]
    fn only_the_same_is_the_same() {
        let all = [
            Seen::Allowed,
            drop_at("from_container", 0),
            drop_at("from_overlay", 0),
            drop_at("from_container", 1),
            Seen::DroppedAndArrived,
            Seen::Silent { arrived: false },
            Seen::Silent { arrived: true },
            Seen::Wrong("other bytes arrived".to_owned()),
        ];
        for (index, simulated) in all.iter().enumerate() {
            for (other, seen) in all.iter().enumerate() {
                assert_eq!(Simulated(simulated.clone()).is(seen), index == other, "{simulated} and {seen}");
            }
        }
        let refused = Seen::Refused(io::ErrorKind::HostUnreachable);
        assert!(Simulated(Seen::Silent { arrived: false }).is(&refused));
        assert!(!Simulated(Seen::Allowed).is(&refused) && !Simulated(drop_at("from_host", 0)).is(&refused));
    }

    fn event(protocol: &str, source: (&str, u16), destination: (&str, u16)) -> Event {
        let peer = |(address, port): (&str, u16)| agent_api::Peer {
            address: address.to_owned(),
            port,
            identity: 0,
            name: String::new(),
        };
        Event {
            time_ns: 0,
            kind: agent_api::EventKind::Drop,
            hook: String::new(),
            ifindex: 0,
            direction: String::new(),
            endpoint: 0,
            protocol: protocol.to_owned(),
            tcp_flags: String::new(),
            len: 0,
            source: peer(source),
            destination: peer(destination),
            state: String::new(),
            outcome: String::new(),
            text: String::new(),
            rule: None,
        }
    }

    #[test]
    fn a_report_is_of_the_flow_whose_addresses_and_ports_it_has() {
        let flow = Flow {
            protocol: Protocol::Tcp(80),
            source: "10.0.0.1:20000".parse().unwrap(),
            destination: "10.0.0.2:80".parse().unwrap(),
            tag: 1,
        };
        let (a, b) = ("10.0.0.1", "10.0.0.2");
        assert_eq!(flow.find(&event("TCP", (a, 20_000), (b, 80))), Some(false));
        assert_eq!(flow.find(&event("TCP", (b, 80), (a, 20_000))), Some(true));
        for other in [
            event("UDP", (a, 20_000), (b, 80)),
            event("TCP", (a, 20_001), (b, 80)),
            event("TCP", (a, 20_000), (b, 81)),
            event("TCP", (b, 20_000), (a, 80)),
            event("TCP", ("10.0.0.3", 20_000), (b, 80)),
        ] {
            assert_eq!(flow.find(&other), None, "{other:?}");
        }
        let echo = Flow { protocol: Protocol::Icmp(None), ..flow };
        assert_eq!(echo.find(&event("ICMP", (a, 20_000), (b, 8))), Some(false));
        assert_eq!(echo.find(&event("ICMP", (a, 20_001), (b, 8))), None);
        let timestamp = Flow { protocol: Protocol::Icmp(Some(13)), ..flow };
        assert_eq!(timestamp.find(&event("ICMP", (a, 0), (b, 13))), Some(false));
        assert_eq!(timestamp.find(&event("ICMP", (a, 20_000), (b, 8))), None);
    }
}
