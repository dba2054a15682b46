//! Packets of the node's own stack towards pods, at weir's host device.
//!
//! A pod of this node sees identity `HOST` and its ingress policy is asked; to another node the packet travels with
//! `REMOTE_NODE`, because `HOST` means the receiving node itself there.

use datapath_abi::{CallSlot, Direction, IpFlags, TracePoint, config, ids};

use super::{Outcome, deliver, enter, police, side, trace, tunnel};
use crate::conntrack::Side;
use crate::facts::Facts;
use crate::family::{Family, V4};
use crate::ipcache;
use crate::packet::Packet;
use crate::tables::Tables;
use crate::verdict::Verdict;
use crate::wire::ethernet;

/// The entry program: IPv4 here, the rest by continuation.
#[inline(always)]
pub fn entry<P: Packet, T: Tables<V4>>(packet: &mut P, tables: &T, facts: &mut Facts<V4>) -> Outcome {
    let ethertype = enter(packet, tables)?;
    if ethertype == ethernet::IPV4 {
        run(packet, tables, facts)
    } else if ethertype == ethernet::IPV6 {
        Ok(Verdict::call(CallSlot::FromHost6))
    } else {
        Ok(Verdict::PASS)
    }
}

/// The whole path for one family.
#[inline(always)]
pub fn run<F: Family, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, facts: &mut Facts<F>) -> Outcome {
    F::addresses(packet, facts)?;
    facts.source_identity = ids::HOST;
    let owner = ipcache::resolve(tables, &facts.tuple.destination);
    facts.destination_identity = owner.identity();
    let Some(destination) = owner.entry() else {
        return Ok(Verdict::PASS);
    };
    if destination.endpoint != 0 {
        let parsed = F::parse(packet, tables, facts)?;
        facts.endpoint = destination.endpoint;
        facts.direction = Direction::Ingress;
        let receiver = side(destination, ids::HOST);
        let report = police(packet, tables, facts, &parsed, &Side::default(), &receiver)?;
        let outcome = deliver::<F, P>(packet, tables.config(), destination);
        if report && outcome.is_ok() {
            trace(tables, facts, TracePoint::ToEndpoint);
        }
        return outcome;
    }
    if tables.config().flags & config::TUNNEL == 0 || !destination.flags.has(IpFlags::POD) {
        return Ok(Verdict::PASS);
    }
    tunnel(packet, ids::REMOTE_NODE, destination)
}
