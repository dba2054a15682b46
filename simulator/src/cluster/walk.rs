//! One packet's way: hook after hook, device after device, until it ends somewhere.
//!
//! Follows the kernel: a redirect to a device runs that device's egress hook; `bpf_redirect_peer` works only at ingress
//! hooks (`skb_do_redirect`) and comes out in the pod without another hook; what a program lets pass goes on where it was
//! going (into the stack at ingress, out of the device at egress); metadata and mark do not survive a device.

use std::net::IpAddr;

use datapath_abi::Hook;
use simulator_vm::{Env, Redirect, RunError, Skb, TraceEvent, TunnelKey, action};

use super::frame::{self, Ip, Line};
use super::trail::{Drop, End, Hop, Lookup, Lost, read_event};
use super::tunnel::{self, Outer, Protocol};
use super::update::TICKS_PER_SECOND;
use super::why::Spoken;
use super::{Cluster, Owner, device};

/// More stops than this are a loop.
const MAX_STOPS: u32 = 64;
/// Virtual time of a hook, and of the underlay's wire.
const HOOK_NS: u64 = 500;
const WIRE_NS: u64 = 10_000;
/// `BPF_F_INGRESS`.
const INGRESS: u64 = 1;
/// Ethernet address of the router outside.
const ROUTER: frame::MacBytes = [0x02, 0x77, 0x02, 0, 0, 0];
/// Ethernet address of the host device and of what it is connected to.
const HOST_DEVICE: [frame::MacBytes; 2] = [[0x02, 0x77, 0x03, 0, 0, 1], [0x02, 0x77, 0x03, 0, 0, 2]];

/// Where the packet is.
#[derive(Clone, Copy, Debug)]
pub(super) enum At {
    /// Leaving a pod: host side of its veth, ingress.
    VethIn(usize),
    /// Host side of a veth, egress.
    VethOut { node: usize, ifindex: u32 },
    /// The node's stack; made here, or to be delivered or forwarded.
    Stack { node: usize, own: bool },
    /// Host device, egress.
    HostOut(usize),
    /// Tunnel device, egress.
    TunnelOut(usize, Option<TunnelKey>),
    /// Underlay device, egress.
    NetOut(usize),
    /// On the underlay; `None`: from outside.
    Wire(Option<usize>),
    /// Underlay device, ingress.
    NetIn(usize),
    /// Tunnel device, ingress.
    OverlayIn(usize, TunnelKey),
    /// In a pod.
    Pod(usize),
}

/// What a hook's program decided.
enum Action {
    Pass,
    Drop(Drop),
    Device { ifindex: u32, flags: u64, key: Option<TunnelKey> },
    Peer { ifindex: u32 },
}

impl Cluster {
    /// Sends the frame in `self.skb` on its way.
    pub(super) fn walk(&mut self, start: At) -> Result<End, RunError> {
        let mut at = start;
        for _ in 0..MAX_STOPS {
            match self.step(at)? {
                Ok(next) => at = next,
                Err(end) => {
                    self.note_end(&end);
                    return Ok(end);
                }
            }
        }
        Ok(End::Lost { node: None, lost: Lost::Loop })
    }

    fn step(&mut self, at: At) -> Result<Result<At, End>, RunError> {
        Ok(match at {
            At::VethIn(nic) => {
                let Some(nic) = self.nics.get(nic) else { return Ok(lost(None, Lost::Device)) };
                let (node, ifindex) = (nic.node, nic.ifindex);
                self.capture_pod(node, ifindex);
                let action = self.hook(node, Hook::FromContainer, ifindex, ifindex, None)?;
                self.act(node, action, true, |_| Ok(At::Stack { node, own: false }))
            }
            At::VethOut { node, ifindex } => {
                let action = self.hook(node, Hook::ToContainer, ifindex, 0, None)?;
                self.act(node, action, false, |cluster| cluster.enter_pod(node, ifindex))
            }
            At::HostOut(node) => {
                let action = self.hook(node, Hook::FromHost, device::HOST, 0, None)?;
                // Behind the device is nobody: it is there for its hook.
                self.act(node, action, false, |_| lost(Some(node), Lost::NoRoute))
            }
            At::NetOut(node) => {
                let action = self.hook(node, Hook::ToNetdev, device::ETH0, 0, None)?;
                self.act(node, action, false, |_| Ok(At::Wire(Some(node))))
            }
            At::NetIn(node) => {
                let action = self.hook(node, Hook::FromNetdev, device::ETH0, device::ETH0, None)?;
                self.act(node, action, true, |_| Ok(At::Stack { node, own: false }))
            }
            At::OverlayIn(node, key) => {
                let action = self.hook(node, Hook::FromOverlay, device::TUNNEL, device::TUNNEL, Some(key))?;
                self.act(node, action, true, |_| Ok(At::Stack { node, own: false }))
            }
            At::TunnelOut(node, key) => self.tunnel_out(node, key),
            At::Wire(from) => self.wire(from),
            At::Stack { node, own } => self.stack(node, own),
            At::Pod(nic) => self.pod(nic),
        })
    }

    /// Runs a hook's program and reads its verdict.
    fn hook(
        &mut self,
        node: usize,
        hook: Hook,
        ifindex: u32,
        ingress_ifindex: u32,
        key: Option<TunnelKey>,
    ) -> Result<Action, RunError> {
        self.now_ns += HOOK_NS;
        self.runs += 1;
        let env = Env {
            now_ns: self.now_ns,
            ticks_per_second: TICKS_PER_SECOND,
            seed: self.options.seed ^ self.runs,
            ..Env::default()
        };
        let place = if self.trail.is_some() { self.place(node, ifindex) } else { String::new() };
        let skb = &mut self.skb;
        skb.ifindex = ifindex;
        skb.ingress_ifindex = ingress_ifindex;
        skb.mark = 0;
        skb.cb = [0; 5];
        skb.tunnel_key = key;
        let Some(owner) = self.nodes.get_mut(node) else {
            return Ok(Action::Pass);
        };
        let (run, records) = if let Some(trail) = &mut self.trail {
            let before = Line(&skb.data).to_string();
            let (run, trace) = owner.datapath.run_traced(hook, skb, &env);
            let run = run?;
            let records = owner.datapath.engine().events();
            self.said.extend(records.iter().filter_map(|record| Spoken::of(node, &read_event(record)?)));
            let after = Line(&skb.data).to_string();
            let lookups = trace.into_iter().filter_map(lookup).collect();
            trail.push(Hop {
                leg: self.leg,
                node: Some(node),
                place,
                hook: Some(hook),
                now_ns: self.now_ns,
                after: (after != before).then_some(after),
                before,
                verdict: String::new(),
                lookups,
                events: records.iter().filter_map(|record| read_event(record)).collect(),
                instructions: run.instructions,
            });
            (run, records)
        } else {
            let run = owner.datapath.run(hook, skb, &env)?;
            let listens = self.options.verdicts || self.audits;
            let records = if run.code == action::SHOT || self.options.events || listens {
                owner.datapath.engine().events()
            } else {
                Vec::new()
            };
            if listens {
                self.said.extend(records.iter().filter_map(|record| Spoken::of(node, &read_event(record)?)));
            }
            (run, records)
        };
        let action = match (run.code, run.redirect) {
            (action::OK | action::UNSPEC, _) => Action::Pass,
            (action::REDIRECT, Some(Redirect::Device { ifindex, flags })) => {
                Action::Device { ifindex, flags, key: run.tunnel_key }
            }
            (action::REDIRECT, Some(Redirect::Peer { ifindex, .. })) => Action::Peer { ifindex },
            _ => Action::Drop(Drop::from_events(node, hook, &records)),
        };
        if self.trail.is_some() {
            let verdict = match &action {
                Action::Pass => "pass".to_owned(),
                Action::Drop(drop) => match drop.reason {
                    Some(reason) => format!("drop {}: {}", reason.name(), reason.text()),
                    None => "drop".to_owned(),
                },
                Action::Device { ifindex: device::TUNNEL, key: Some(key), .. } => {
                    format!("tunnel with identity {} to {}", key.id, key.remote)
                }
                Action::Device { ifindex, .. } => format!("redirect to {}", self.place(node, *ifindex)),
                Action::Peer { ifindex } => format!("deliver into the pod behind {}", self.place(node, *ifindex)),
            };
            if let Some(hop) = self.trail.as_mut().and_then(|trail| trail.last_mut()) {
                hop.verdict = verdict;
            }
        }
        Ok(action)
    }

    /// Goes on after a hook. `ingress`: the hook is on the receive side of its device.
    fn act(
        &mut self,
        node: usize,
        action: Action,
        ingress: bool,
        pass: impl FnOnce(&mut Self) -> Result<At, End>,
    ) -> Result<At, End> {
        match action {
            Action::Pass => pass(self),
            Action::Drop(drop) => Err(End::Dropped(drop)),
            Action::Peer { ifindex } if ingress => self.enter_pod(node, ifindex),
            Action::Peer { .. } => lost(Some(node), Lost::Device),
            Action::Device { flags, .. } if flags & INGRESS != 0 => lost(Some(node), Lost::Device),
            Action::Device { ifindex: device::TUNNEL, key, .. } => Ok(At::TunnelOut(node, key)),
            Action::Device { ifindex: device::ETH0, .. } => Ok(At::NetOut(node)),
            Action::Device { ifindex: device::HOST, .. } => Ok(At::HostOut(node)),
            Action::Device { ifindex, .. } => Ok(At::VethOut { node, ifindex }),
        }
    }

    fn veth(&self, node: usize, ifindex: u32) -> Option<usize> {
        let place = usize::try_from(ifindex.checked_sub(device::FIRST_VETH)?).ok()?;
        self.nodes.get(node)?.veths.get(place).copied().flatten()
    }

    /// What a device of a node is called.
    fn place(&self, node: usize, ifindex: u32) -> String {
        match ifindex {
            device::ETH0 => "eth0".to_owned(),
            device::TUNNEL => self.options.tunnel.map_or("tunnel", Protocol::name).to_owned(),
            device::HOST => "host".to_owned(),
            _ => match self.nics.iter().find(|nic| nic.node == node && nic.ifindex == ifindex) {
                Some(nic) => format!("veth of {}", nic.name),
                None => format!("device {ifindex}"),
            },
        }
    }

    fn enter_pod(&mut self, node: usize, ifindex: u32) -> Result<At, End> {
        match self.veth(node, ifindex) {
            Some(nic) => {
                self.capture_pod(node, ifindex);
                Ok(At::Pod(nic))
            }
            None => lost(Some(node), Lost::Device),
        }
    }

    /// The pod's own stack takes what is for it.
    fn pod(&mut self, index: usize) -> Result<At, End> {
        let Some(nic) = self.nics.get(index) else { return lost(None, Lost::Device) };
        let node = Some(nic.node);
        if self.skb.data.get(..6) != Some(&nic.mac[..]) {
            return lost(node, Lost::OtherHost);
        }
        match Ip::read(&self.skb.data) {
            Ok(ip) if nic.addresses.contains(&ip.destination) => Err(End::Pod(index)),
            Ok(_) => lost(node, Lost::Astray),
            Err(_) => lost(node, Lost::Malformed),
        }
    }

    fn tunnel_out(&mut self, node: usize, key: Option<TunnelKey>) -> Result<At, End> {
        let next = key.and_then(|key| self.next_hop(key.remote));
        let (Some(key), Some(to), Some(own)) = (key, next, self.nodes.get_mut(node)) else {
            return lost(Some(node), Lost::Metadata);
        };
        own.packets = own.packets.wrapping_add(1);
        let source = own.addresses.iter().copied().find(|address| address.is_ipv4() == key.remote.is_ipv4());
        let Some(source) = own.underlay.filter(|own| own.is_ipv4() == key.remote.is_ipv4()).or(source) else {
            return lost(Some(node), Lost::Metadata);
        };
        let outer = Outer { to, from: own.eth0, source, id: own.packets };
        let Some(protocol) = self.options.tunnel else {
            return lost(Some(node), Lost::Metadata);
        };
        if tunnel::encapsulate(protocol, &mut self.skb.data, &mut self.scratch, &key, &outer).is_none() {
            return lost(Some(node), Lost::Metadata);
        }
        self.note(Some(node), protocol.name(), "encapsulated");
        Ok(At::NetOut(node))
    }

    /// Ethernet address that the underlay's packets for an address go to.
    fn next_hop(&self, address: IpAddr) -> Option<frame::MacBytes> {
        match self.owner(address) {
            Some(Owner::Node(node)) => self.nodes.get(node).map(|node| node.eth0),
            // Nodes of one segment reach each other's pods directly.
            Some(Owner::Pod(nic)) => self.nics.get(nic).and_then(|nic| self.nodes.get(nic.node)).map(|node| node.eth0),
            None => Some(ROUTER),
        }
    }

    fn wire(&mut self, from: Option<usize>) -> Result<At, End> {
        let destination = match Ip::read(&self.skb.data) {
            Ok(ip) => ip.destination,
            Err(_) => return lost(from, Lost::Malformed),
        };
        let to = match self.owner(destination) {
            Some(Owner::Node(node)) => Some(node),
            Some(Owner::Pod(nic)) => self.nics.get(nic).map(|nic| nic.node),
            None => None,
        };
        if from.is_none() {
            let Some(next) = self.next_hop(destination) else { return lost(None, Lost::NoRoute) };
            frame::set_macs(&mut self.skb.data, next, ROUTER);
        }
        if let Some(captures) = &mut self.captures {
            captures.frame("underlay", self.now_ns, &self.skb.data);
        }
        self.now_ns += WIRE_NS;
        match to {
            Some(node) if Some(node) != from => Ok(At::NetIn(node)),
            Some(_) => lost(from, Lost::NoRoute),
            None => Err(End::World),
        }
    }

    fn stack(&mut self, node: usize, own: bool) -> Result<At, End> {
        let Some(place) = self.nodes.get(node) else { return lost(None, Lost::Device) };
        let (destination, for_tunnel) = match Ip::read(&self.skb.data) {
            Ok(ip) => (ip.destination, self.options.tunnel.filter(|protocol| tunnel::is_for_tunnel(*protocol, &ip))),
            Err(_) => return lost(Some(node), Lost::Malformed),
        };
        if place.addresses.contains(&destination) {
            if let Some(protocol) = for_tunnel
                && !own
            {
                return match tunnel::decapsulate(protocol, &mut self.skb.data, &mut self.scratch) {
                    Some(key) => {
                        self.note(Some(node), protocol.name(), "decapsulated");
                        Ok(At::OverlayIn(node, key))
                    }
                    None => lost(Some(node), Lost::Decapsulation),
                };
            }
            return Err(End::Host(node));
        }
        let eth0 = place.eth0;
        if !own && frame::forward(&mut self.skb.data).is_none() {
            return lost(Some(node), Lost::HopLimit);
        }
        let verdict = if own { "sent" } else { "forwarded" };
        match self.owner(destination) {
            Some(Owner::Pod(index)) => {
                let here = self.nics.get(index).is_some_and(|nic| nic.node == node);
                if here || self.options.tunnel.is_some() {
                    frame::set_macs(&mut self.skb.data, HOST_DEVICE[1], HOST_DEVICE[0]);
                    self.note(Some(node), "stack", verdict);
                    return Ok(At::HostOut(node));
                }
            }
            Some(Owner::Node(_)) | None => {}
        }
        let Some(next) = self.next_hop(destination) else { return lost(Some(node), Lost::NoRoute) };
        frame::set_macs(&mut self.skb.data, next, eth0);
        self.note(Some(node), "stack", verdict);
        Ok(At::NetOut(node))
    }

    /// Writes down a stop without a program.
    fn note(&mut self, node: Option<usize>, place: &str, verdict: &str) {
        if let Some(trail) = &mut self.trail {
            trail.push(Hop {
                leg: self.leg,
                node,
                place: place.to_owned(),
                hook: None,
                now_ns: self.now_ns,
                before: Line(&self.skb.data).to_string(),
                after: None,
                verdict: verdict.to_owned(),
                lookups: Vec::new(),
                events: Vec::new(),
                instructions: 0,
            });
        }
    }

    fn note_end(&mut self, end: &End) {
        if self.trail.is_none() {
            return;
        }
        match end {
            End::Pod(nic) => {
                let Some((node, name)) = self.nics.get(*nic).map(|nic| (nic.node, nic.name.to_string())) else {
                    return;
                };
                self.note(Some(node), &format!("pod {name}"), "received");
            }
            End::Host(node) => self.note(Some(*node), "stack", "received by the node"),
            End::World => self.note(None, "outside", "received outside"),
            End::Lost { node, lost } => self.note(*node, "stack", &format!("lost: {lost}")),
            End::Dropped(_) => {}
        }
    }

    fn capture_pod(&mut self, node: usize, ifindex: u32) {
        if self.captures.is_none() {
            return;
        }
        let Some(nic) = self.veth(node, ifindex).and_then(|nic| self.nics.get(nic)) else { return };
        let name = nic.name.to_string();
        if let Some(captures) = &mut self.captures {
            captures.frame(&name, self.now_ns, &self.skb.data);
        }
    }

    /// A packet made in a pod, a node or outside is on its way; the frame is in `skb` with addresses still to be set.
    pub(super) fn send(&mut self, skb: impl FnOnce(&mut Skb), from: super::probe::Place) -> Result<End, RunError> {
        use super::probe::Place;
        skb(&mut self.skb);
        match from {
            Place::Pod(index) => {
                let Some(nic) = self.nics.get(index) else {
                    return Ok(End::Lost { node: None, lost: Lost::Device });
                };
                let to_itself = Ip::read(&self.skb.data).is_ok_and(|ip| nic.addresses.contains(&ip.destination));
                if to_itself {
                    return Ok(End::Pod(index));
                }
                let gateway = self.nodes.get(nic.node).map(|node| node.gateway).unwrap_or_default();
                let (node, mac, name) = (nic.node, nic.mac, self.trail.as_ref().map(|_| nic.name.to_string()));
                frame::set_macs(&mut self.skb.data, gateway, mac);
                if let Some(name) = name {
                    self.note(Some(node), &format!("pod {name}"), "sent");
                }
                self.walk(At::VethIn(index))
            }
            Place::Node(node) => self.walk(At::Stack { node, own: true }),
            Place::World => {
                self.note(None, "outside", "sent");
                self.walk(At::Wire(None))
            }
        }
    }
}

const fn lost(node: Option<usize>, lost: Lost) -> Result<At, End> {
    Err(End::Lost { node, lost })
}

fn lookup(event: TraceEvent) -> Option<Lookup> {
    match event {
        TraceEvent::Lookup { map, key, value } => Some(Lookup { map, key, value }),
        TraceEvent::Step { .. } | TraceEvent::Helper { .. } | TraceEvent::TailCall { .. } => None,
    }
}
