//! THE PACKET PATH: one file per hook, each a short list of stages in order. Stages that several hooks share are here.

pub mod from_container;
pub mod from_host;
pub mod from_netdev;
pub mod from_overlay;
pub mod to_container;
pub mod to_netdev;

use datapath_abi::events::{EventKind, FlowState};
use datapath_abi::metrics::{EVENT_LOST, FORWARDED};
use datapath_abi::{
    Be16, CallSlot, Config, Direction, DropReason, IpEntry, IpFlags, TracePoint, config, policy as codes,
};

use crate::conntrack::{self, Flow, Found, Side};
use crate::edit;
use crate::facts::Facts;
use crate::family::{Family, V4};
use crate::packet::Packet;
use crate::parse::{Class, Parsed};
use crate::policy::{self, Question};
use crate::tables::{Node, Tables};
use crate::verdict::Verdict;
use crate::wire::ethernet::{self, Ethernet};
use crate::wire::l4;

/// What a stage says.
pub type Outcome = Result<Verdict, DropReason>;

/// EtherType of the frame; settings must be there.
#[inline(always)]
fn enter<P: Packet, T: Node>(packet: &mut P, tables: &T) -> Result<Be16, DropReason> {
    if tables.config().magic != config::MAGIC {
        return Err(DropReason::NoConfig);
    }
    let header: Ethernet = packet.load(0).ok_or(DropReason::InvalidPacket)?;
    Ok(header.ethertype)
}

/// What every entry program does: IPv4 in `four`, IPv6 by the continuation in `six`, the rest in `other`.
#[inline(always)]
pub fn dispatch<P: Packet, T: Node>(
    packet: &mut P,
    tables: &T,
    facts: &mut Facts<V4>,
    four: impl FnOnce(&mut P, &T, &mut Facts<V4>) -> Outcome,
    six: CallSlot,
    other: impl FnOnce(Be16) -> Outcome,
) -> Outcome {
    let ethertype = enter(packet, tables)?;
    if ethertype == ethernet::IPV4 {
        four(packet, tables, facts)
    } else if ethertype == ethernet::IPV6 {
        Ok(Verdict::call(six))
    } else {
        other(ethertype)
    }
}

/// The one end of every packet, after its verdict was acted on: counts it, and reports a drop.
#[inline(always)]
pub fn finish<F: Family, T: Node, R>(
    tables: &T,
    facts: &Facts<F>,
    outcome: Result<R, DropReason>,
) -> Result<R, DropReason> {
    match outcome {
        Ok(code) => {
            tables.count(facts.direction, FORWARDED, facts.len);
            Ok(code)
        }
        Err(reason) => {
            tables.count(facts.direction, reason as u8, facts.len);
            report(tables, facts, EventKind::Drop, reason as u8, 0);
            Err(reason)
        }
    }
}

/// Reports an event; one that finds no room is counted.
#[inline(always)]
fn report<F: Family, T: Node>(tables: &T, facts: &Facts<F>, kind: EventKind, code: u8, verdict: i32) {
    if !tables.emit(facts, kind, code, verdict) {
        tables.count(facts.direction, EVENT_LOST, facts.len);
    }
}

/// Asks conntrack and, where needed, the policies of the asked sides. `Ok(true)`: worth a trace event.
#[inline(always)]
pub fn police<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    facts: &mut Facts<F>,
    parsed: &Parsed,
    found: Option<Found<F, T::Flow<'_>>>,
    source: &Side,
    destination: &Side,
) -> Result<bool, DropReason> {
    match found {
        Some(found) => police_flow(tables, facts, parsed, found, source, destination),
        None => police_single(packet, tables, facts, parsed, source, destination),
    }
}

/// A packet that opens or continues a flow of its own.
#[inline(always)]
fn police_flow<F: Family, T: Tables<F>>(
    tables: &T,
    facts: &mut Facts<F>,
    parsed: &Parsed,
    found: Found<F, T::Flow<'_>>,
    source: &Side,
    destination: &Side,
) -> Result<bool, DropReason> {
    let Found { flow, mut entry } = found;
    let (class, tcp_flags) = (parsed.class, facts.tcp_flags);
    let known = entry.as_deref_mut();
    let track = conntrack::track(tables, known, flow.source_is_lo, class, tcp_flags, source, destination);
    facts.state = track.state;
    if track.source_done && track.destination_done {
        return Ok(track.report);
    }
    let renewed = |side: &Side, done: bool| if done { Side::default() } else { *side };
    let (source, destination) = (renewed(source, track.source_done), renewed(destination, track.destination_done));
    let (egress_rule, ingress_rule) = ask_both(tables, facts, parsed, &source, &destination)?;
    let sides = ((&source, egress_rule), (&destination, ingress_rule));
    let opens = match entry.as_deref() {
        Some(entry) => track.state == FlowState::New && !conntrack::joins(tables, entry, flow.source_is_lo, tcp_flags),
        None => true,
    };
    if opens {
        drop(entry);
        if conntrack::create(tables, &flow, class, tcp_flags, sides.0, sides.1).is_err() {
            return Err(DropReason::CtCreateFailed);
        }
    } else if let Some(entry) = entry.as_deref_mut() {
        conntrack::renew(entry, sides.0, sides.1);
    }
    Ok(track.report)
}

/// ICMP that is no echo: an error about a known flow goes with the flow, everything else is asked each time.
#[inline(always)]
fn police_single<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    facts: &mut Facts<F>,
    parsed: &Parsed,
    source: &Side,
    destination: &Side,
) -> Result<bool, DropReason> {
    if parsed.class == Class::Error
        && let Some(flow) = Flow::quoted(packet, parsed, &facts.tuple, source.endpoint != 0)
        && conntrack::related(tables, &flow, source, destination)
    {
        facts.state = FlowState::Related;
        return Ok(false);
    }
    // Without them path MTU discovery fails in ways nobody finds; they carry nothing but a size.
    if parsed.path_mtu {
        return Ok(false);
    }
    facts.state = FlowState::New;
    ask_both(tables, facts, parsed, source, destination)?;
    Ok(true)
}

/// Asks the policies of the sides that are asked here; the rules that allowed it.
#[inline(always)]
fn ask_both<F: Family, T: Tables<F>>(
    tables: &T,
    facts: &mut Facts<F>,
    parsed: &Parsed,
    source: &Side,
    destination: &Side,
) -> Result<(u32, u32), DropReason> {
    let mut rules = (0, 0);
    if source.endpoint != 0 {
        facts.direction = Direction::Egress;
        rules.0 = ask(tables, facts, parsed, source, codes::EGRESS)?;
    }
    if destination.endpoint != 0 {
        facts.direction = Direction::Ingress;
        rules.1 = ask(tables, facts, parsed, destination, codes::INGRESS)?;
    }
    Ok(rules)
}

/// Asks one side's policy; the rule that allowed it.
#[inline(always)]
fn ask<F: Family, T: Tables<F>>(
    tables: &T,
    facts: &mut Facts<F>,
    parsed: &Parsed,
    side: &Side,
    direction: u8,
) -> Result<u32, DropReason> {
    let question = Question {
        endpoint: side.endpoint,
        direction,
        identity: side.peer,
        protocol: facts.tuple.protocol,
        port: parsed.port.octets(),
    };
    let answer = policy::decide(tables, &question);
    facts.endpoint = side.endpoint;
    facts.rule = answer.rule;
    let wanted = tables.config().flags & config::VERDICT_EVENTS != 0 && facts.state == FlowState::New;
    let refused = match answer.drop {
        Some(_) => answer.drop,
        None => answer.audited,
    };
    if refused.is_some() || wanted {
        let verdict = match refused {
            Some(DropReason::ProxyLookupFailed) if answer.proxy_port == Be16::ZERO => 1,
            Some(DropReason::ProxyLookupFailed) => i32::from(answer.proxy_port.get()),
            Some(reason) => -i32::from(reason as u8),
            None => 0,
        };
        facts.audited = answer.audited.is_some();
        report(tables, facts, EventKind::PolicyVerdict, answer.matched as u8, verdict);
        facts.audited = false;
    }
    match answer.drop {
        Some(reason) => Err(reason),
        None => Ok(answer.rule),
    }
}

/// Reports where the packet goes, if tracing is on.
#[inline(always)]
pub fn trace<F: Family, T: Node>(tables: &T, facts: &Facts<F>, point: TracePoint) {
    if tables.config().flags & config::TRACE_EVENTS != 0 {
        report(tables, facts, EventKind::Trace, point as u8, 0);
    }
}

/// The side of a local endpoint; absent for any other address.
#[inline(always)]
pub fn side(owner: &IpEntry, peer: u32) -> Side {
    Side { endpoint: owner.endpoint, revision: owner.policy_revision, peer }
}

/// Whether a packet between this node and `port` of a peer never meets the node's policy: what its links and its tunnels
/// need. Tunnels only with other nodes.
#[inline(always)]
pub fn is_infrastructure<F: Family>(config: &Config, facts: &Facts<F>, peer_is_node: bool) -> bool {
    let port = facts.tuple.dport;
    let tunnel = facts.tuple.protocol == l4::UDP && (port == config.vxlan_port || port == config.geneve_port);
    F::on_link(facts) || (tunnel && peer_is_node && config.flags & config::TUNNEL != 0)
}

/// Hands the packet to a pod of this node.
#[inline(always)]
pub fn deliver<F: Family, P: Packet>(packet: &mut P, config: &Config, to: &IpEntry) -> Outcome {
    F::decrement_hops(packet)?;
    edit::set_addresses(packet, to.mac, config.host_mac)?;
    Ok(Verdict::deliver(to.ifindex))
}

/// Hands a packet from another node to what it is for: a pod of this node, or the node itself.
#[inline(always)]
pub fn receive<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    facts: &Facts<F>,
    to: &IpEntry,
    report: bool,
) -> Outcome {
    let (verdict, point) = if to.flags.has(IpFlags::LOCAL_HOST) {
        (Verdict::PASS, TracePoint::ToHost)
    } else {
        (deliver::<F, P>(packet, tables.config(), to)?, TracePoint::ToEndpoint)
    };
    if report {
        trace(tables, facts, point);
    }
    Ok(verdict)
}

/// Sends the packet through the tunnel to the node of a pod.
#[inline(always)]
pub fn tunnel<P: Packet>(packet: &mut P, identity: u32, to: &IpEntry) -> Outcome {
    if to.node.is_zero() {
        return Err(DropReason::NoTunnelEndpoint);
    }
    packet.set_tunnel_key(identity, to).ok_or(DropReason::WriteError)?;
    Ok(Verdict::OVERLAY)
}
