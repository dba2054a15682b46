//! Packets to the underlay. What the node itself sends meets its egress policy, where it has one; all are counted.

use datapath_abi::{CallSlot, DropReason, IpEntry, IpFlags, TracePoint, config};

use super::{Outcome, dispatch, is_infrastructure, police, side, trace};
use crate::conntrack::{self, Side};
use crate::facts::Facts;
use crate::family::{Family, V4};
use crate::ipcache::{self, Owner};
use crate::packet::Packet;
use crate::tables::Tables;
use crate::verdict::Verdict;

/// The entry program: IPv4 here, the rest by continuation. Nothing is looked up where the node has no policies.
#[inline(always)]
pub fn entry<P: Packet, T: Tables<V4>>(packet: &mut P, tables: &T, facts: &mut Facts<V4>) -> Outcome {
    if tables.config().flags & config::HOST_POLICY == 0 {
        return Ok(Verdict::PASS);
    }
    dispatch(packet, tables, facts, run, CallSlot::ToNetdev6, |_| Ok(Verdict::PASS))
}

/// The whole path for one family.
#[inline(always)]
pub fn run<F: Family, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, facts: &mut Facts<F>) -> Outcome {
    F::addresses(packet, facts)?;
    let Some(source) = policed_host(tables, facts) else {
        return Ok(Verdict::PASS);
    };
    let destination = ipcache::resolve(tables, &facts.tuple.destination);
    if police_host(packet, tables, facts, &source, &destination)? {
        trace(tables, facts, TracePoint::ToNetwork);
    }
    Ok(Verdict::PASS)
}

/// The node itself, if it sends the packet and has policies.
#[inline(always)]
pub(super) fn policed_host<'a, F: Family, T: Tables<F>>(tables: &'a T, facts: &Facts<F>) -> Option<T::Entry<'a>> {
    match tables.owner(&facts.tuple.source) {
        Some(source) if source.endpoint != 0 && source.flags.has(IpFlags::LOCAL_HOST) => Some(source),
        Some(_) | None => None,
    }
}

/// Asks the node's egress policy about a packet that the node sends. `Ok(true)`: worth a trace event.
#[inline(always)]
pub(super) fn police_host<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &T,
    facts: &mut Facts<F>,
    source: &IpEntry,
    destination: &Owner<T::Entry<'_>>,
) -> Result<bool, DropReason> {
    let parsed = F::parse(packet, tables, facts)?;
    let found = conntrack::find(tables, facts, &parsed);
    if is_infrastructure(tables.config(), facts, destination.has_any(IpFlags::NODE)) {
        return Ok(false);
    }
    facts.endpoint = source.endpoint;
    facts.source_identity = source.identity;
    facts.destination_identity = destination.identity();
    let sender = side(source, facts.destination_identity);
    police(packet, tables, facts, &parsed, found, &sender, &Side::default())
}
