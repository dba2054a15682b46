//! Packets from the underlay. Those for pods of this node meet their ingress policy; the rest is the stack's.

use datapath_abi::{DropReason, IpFlags, TracePoint, config};

use super::{Outcome, deliver, police, side, trace};
use crate::conntrack::Side;
use crate::facts::Facts;
use crate::family::Family;
use crate::ipcache;
use crate::packet::Packet;
use crate::tables::Tables;
use crate::verdict::Verdict;

/// The whole path for one family.
#[inline(always)]
pub fn run<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &mut T,
    facts: &mut Facts<F>,
) -> Outcome {
    F::addresses(packet, facts)?;
    let destination = match tables.owner(&facts.tuple.destination) {
        Some(owner) if owner.endpoint != 0 => owner,
        Some(_) | None => return Ok(Verdict::Pass),
    };
    let parsed = F::parse(packet, tables, facts)?;
    facts.endpoint = destination.endpoint;
    facts.destination_identity = destination.identity;
    let source = ipcache::resolve(tables, &facts.tuple.source);
    // In tunnel mode a pod's packets come out of the tunnel, never bare.
    if source.flags.has(IpFlags::POD) && tables.config().flags & config::TUNNEL != 0 {
        return Err(DropReason::InvalidSourceIp);
    }
    if source.flags.has(IpFlags::LOCAL_HOST) {
        return Err(DropReason::InvalidSourceIp);
    }
    facts.source_identity = source.identity;
    let receiver = side(&destination, source.identity);
    let report = police(tables, facts, &parsed, &Side::default(), &receiver)?;
    let outcome = deliver::<F, P>(packet, tables.config(), &destination);
    if report && outcome.is_ok() {
        trace(tables, facts, TracePoint::ToEndpoint);
    }
    outcome
}
