//! Packets out of the tunnel device. The VNI is the sender's identity; the sender must be a node.

use datapath_abi::{CallSlot, DropReason, IpFlags, config, ids};

use super::{Outcome, dispatch, police, receive, side};
use crate::conntrack::{self, Side};
use crate::facts::Facts;
use crate::family::{Family, V4};
use crate::packet::Packet;
use crate::tables::Tables;
use crate::verdict::Verdict;

/// The entry program: IPv4 here, the rest by continuation.
#[inline(always)]
pub fn entry<P: Packet, T: Tables<V4>>(packet: &mut P, tables: &T, facts: &mut Facts<V4>) -> Outcome {
    dispatch(packet, tables, facts, run, CallSlot::FromOverlay6, |_| Err(DropReason::UnknownL3))
}

/// The whole path for one family.
#[inline(always)]
pub fn run<F: Family, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, facts: &mut Facts<F>) -> Outcome {
    let key = packet.tunnel_key().ok_or(DropReason::NoTunnelKey)?;
    if !tables.is_node(&key) {
        return Err(DropReason::UnknownSender);
    }
    F::addresses(packet, facts)?;
    facts.source_identity = identity(tables, facts, key.id)?;
    let destination = tables.owner(&facts.tuple.destination).ok_or(DropReason::Unroutable)?;
    facts.destination_identity = destination.identity;
    if destination.endpoint == 0 {
        // The node itself, where it has no policies.
        if destination.flags.has(IpFlags::LOCAL_HOST) {
            return Ok(Verdict::PASS);
        }
        return Err(DropReason::Unroutable);
    }
    let parsed = F::parse(packet, tables, facts)?;
    let found = conntrack::find(tables, facts, &parsed);
    facts.endpoint = destination.endpoint;
    let receiver = side(&destination, facts.source_identity);
    let report = police(packet, tables, facts, &parsed, found, &Side::default(), &receiver)?;
    receive(packet, tables, facts, &destination, report)
}

/// The identity that a VNI carries. `HOST` is valid on one node only, so no other node may claim it; the world of one
/// family travels as `WORLD`; nodes travel as `REMOTE_NODE`, and this node may know the one by an identity of its own.
#[inline(always)]
fn identity<F: Family, T: Tables<F>>(tables: &T, facts: &Facts<F>, vni: u32) -> Result<u32, DropReason> {
    if vni == ids::UNKNOWN {
        return Err(DropReason::InvalidVni);
    }
    if vni == ids::HOST {
        return Err(DropReason::InvalidIdentity);
    }
    if vni == ids::WORLD && tables.config().flags & config::DUAL_STACK != 0 {
        return Ok(F::world(tables.config()));
    }
    if vni == ids::REMOTE_NODE
        && let Some(source) = tables.owner(&facts.tuple.source)
        && source.flags.has(IpFlags::NODE)
    {
        return Ok(source.identity);
    }
    Ok(vni)
}
