//! Packets from the underlay. Those for pods of this node, and for the node itself where it has policies, meet their
//! ingress policy; the rest is the stack's.

use datapath_abi::{CallSlot, DropReason, IpFlags, config};

use super::{Outcome, dispatch, is_infrastructure, police, receive, side};
use crate::conntrack::{self, Side};
use crate::facts::Facts;
use crate::family::{Family, V4};
use crate::ipcache;
use crate::packet::Packet;
use crate::tables::Tables;
use crate::verdict::Verdict;

/// The entry program: IPv4 here, the rest by continuation.
#[inline(always)]
pub fn entry<P: Packet, T: Tables<V4>>(packet: &mut P, tables: &T, facts: &mut Facts<V4>) -> Outcome {
    dispatch(packet, tables, facts, run, CallSlot::FromNetdev6, |_| Ok(Verdict::PASS))
}

/// The whole path for one family.
#[inline(always)]
pub fn run<F: Family, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, facts: &mut Facts<F>) -> Outcome {
    F::addresses(packet, facts)?;
    let destination = match tables.owner(&facts.tuple.destination) {
        Some(owner) if owner.endpoint != 0 => owner,
        Some(_) | None => return Ok(Verdict::PASS),
    };
    let parsed = F::parse(packet, tables, facts)?;
    let found = conntrack::find(tables, facts, &parsed);
    let for_host = destination.flags.has(IpFlags::LOCAL_HOST);
    facts.destination_identity = destination.identity;
    let source = ipcache::resolve(tables, &facts.tuple.source);
    if for_host && is_infrastructure(tables.config(), facts, source.has_any(IpFlags::NODE)) {
        return Ok(Verdict::PASS);
    }
    facts.endpoint = destination.endpoint;
    // In tunnel mode a pod's packets to pods come out of the tunnel, never bare.
    if !for_host && source.has_any(IpFlags::POD) && tables.config().flags & config::TUNNEL != 0 {
        return Err(DropReason::InvalidSourceIp);
    }
    if source.has_any(IpFlags::LOCAL_HOST) {
        return Err(DropReason::InvalidSourceIp);
    }
    facts.source_identity = source.identity();
    let receiver = side(&destination, facts.source_identity);
    let report = police(packet, tables, facts, &parsed, found, &Side::default(), &receiver)?;
    receive(packet, tables, facts, &destination, report)
}
