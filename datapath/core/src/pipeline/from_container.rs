//! Packets leaving a pod, at the host side of its veth.
//!
//! parse → neighbour discovery → flow → source check → owner of the destination → policies (the sender's egress and, for
//! a pod of this node or the node itself, the receiver's ingress) → delivery, tunnel, or the node's stack.
//!
//! Look-ups of an established flow: flow, owner of the source, owner of the destination, counter.

use datapath_abi::metrics::FORWARDED;
use datapath_abi::{CallSlot, Config, Direction, DropReason, Identity, IpEntry, IpFlags, TracePoint, config};

use super::{Outcome, deliver, dispatch, police, side, trace, tunnel};
use crate::conntrack::{self, Side};
use crate::facts::Facts;
use crate::family::{Family, V4};
use crate::ipcache;
use crate::packet::Packet;
use crate::tables::Tables;
use crate::verdict::Verdict;
use crate::wire::ethernet;
use crate::wire::l4;

/// The entry program: IPv4 here, the rest by continuation.
#[inline(always)]
pub fn entry<P: Packet, T: Tables<V4>>(packet: &mut P, tables: &T, facts: &mut Facts<V4>) -> Outcome {
    dispatch(packet, tables, facts, run, CallSlot::FromContainer6, |ethertype| {
        if ethertype == ethernet::ARP { Ok(Verdict::call(CallSlot::Arp)) } else { Err(DropReason::UnknownL3) }
    })
}

/// The whole path for one family.
#[inline(always)]
pub fn run<F: Family, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, facts: &mut Facts<F>) -> Outcome {
    let parsed = F::parse(packet, tables, facts)?;
    if F::on_link(facts) {
        return Ok(Verdict::call(CallSlot::Neighbour));
    }
    let found = conntrack::find(tables, facts, &parsed);
    let source = tables.owner(&facts.tuple.source).ok_or(DropReason::InvalidSourceIp)?;
    if source.ifindex != facts.ifindex {
        return Err(DropReason::InvalidSourceIp);
    }
    facts.endpoint = source.endpoint;
    facts.source_identity = source.identity;
    let source_identity = source.identity;
    let owner = ipcache::resolve(tables, &facts.tuple.destination);
    facts.destination_identity = owner.identity();
    if owner.has_any(IpFlags::NODE | IpFlags::LOCAL_HOST) {
        prohibit_tunnels(tables.config(), facts)?;
    }
    let sender = side(&source, facts.destination_identity);
    let receiver = match owner.entry() {
        Some(entry) => side(entry, source_identity),
        None => Side::default(),
    };
    let report = police(packet, tables, facts, &parsed, found, &sender, &receiver)?;
    facts.direction = Direction::Egress;
    let (verdict, point) = match owner.entry() {
        Some(entry) => forward(packet, tables, facts, source_identity, entry)?,
        None => (Verdict::PASS, TracePoint::ToStack),
    };
    if report {
        trace(tables, facts, point);
    }
    Ok(verdict)
}

/// A pod that could send tunnel packets to nodes could claim any identity.
#[inline(always)]
fn prohibit_tunnels<F: Family>(config: &Config, facts: &Facts<F>) -> Result<(), DropReason> {
    let port = facts.tuple.dport;
    if facts.tuple.protocol == l4::UDP && (port == config.vxlan_port || port == config.geneve_port) {
        return Err(DropReason::EncapProhibited);
    }
    Ok(())
}

/// Towards an address that the cluster knows.
#[inline(always)]
fn forward<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    facts: &Facts<F>,
    source_identity: Identity,
    to: &IpEntry,
) -> Result<(Verdict, TracePoint), DropReason> {
    if to.flags.has(IpFlags::LOCAL_HOST) {
        return Ok((Verdict::PASS, TracePoint::ToHost));
    }
    if to.endpoint != 0 {
        let verdict = deliver::<F, P>(packet, tables.config(), to)?;
        tables.count(Direction::Ingress, FORWARDED, facts.len);
        return Ok((verdict, TracePoint::ToEndpoint));
    }
    if tables.config().flags & config::TUNNEL == 0 {
        return Ok((Verdict::PASS, TracePoint::ToStack));
    }
    if to.flags.has(IpFlags::POD) || !to.node.is_zero() {
        return Ok((tunnel(packet, source_identity, to)?, TracePoint::ToOverlay));
    }
    Ok((Verdict::PASS, TracePoint::ToStack))
}
