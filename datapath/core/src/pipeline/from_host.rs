//! Packets of the node's own stack towards pods, at weir's host device.
//!
//! A pod of this node sees identity `HOST` and its ingress policy is asked; to another node the packet travels with
//! `REMOTE_NODE`, because `HOST` means the receiving node itself there.

use datapath_abi::{Direction, DropReason, IpFlags, TracePoint, config, ids};

use super::{Outcome, deliver, has_tunnel, police, side, trace};
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
    facts.source_identity = ids::HOST;
    let destination = ipcache::resolve(tables, &facts.tuple.destination);
    facts.destination_identity = destination.identity;
    if destination.endpoint != 0 {
        let parsed = F::parse(packet, tables, facts)?;
        facts.endpoint = destination.endpoint;
        facts.direction = Direction::Ingress;
        let receiver = side(&destination, ids::HOST);
        let report = police(tables, facts, &parsed, &Side::default(), &receiver)?;
        let outcome = deliver::<F, P>(packet, tables.config(), &destination);
        if report && outcome.is_ok() {
            trace(tables, facts, TracePoint::ToEndpoint);
        }
        return outcome;
    }
    if tables.config().flags & config::TUNNEL == 0 || !destination.flags.has(IpFlags::POD) {
        return Ok(Verdict::Pass);
    }
    if !has_tunnel(&destination) {
        return Err(DropReason::NoTunnelEndpoint);
    }
    Ok(Verdict::Tunnel {
        identity: ids::REMOTE_NODE,
        node: destination.node,
        underlay6: destination.flags.has(IpFlags::UNDERLAY6),
    })
}
