//! Packets of the node's own stack towards pods, at weir's host device.
//!
//! What a process of the node sends meets the node's egress policy, where it has one. To a pod of this node: on to its
//! veth, where `to_container` asks its policy. (The hook is an egress hook, where the kernel has no `bpf_redirect_peer`.)
//! To another node: through the tunnel, with the identity that holds there.

use datapath_abi::{CallSlot, Identity, IpFlags, config, ids};

use super::{Outcome, dispatch, to_netdev, tunnel};
use crate::edit;
use crate::facts::Facts;
use crate::family::{Family, V4};
use crate::ipcache;
use crate::packet::Packet;
use crate::tables::Tables;
use crate::verdict::Verdict;

/// The entry program: IPv4 here, the rest by continuation.
#[inline(always)]
pub fn entry<P: Packet, T: Tables<V4>>(packet: &mut P, tables: &T, facts: &mut Facts<V4>) -> Outcome {
    dispatch(packet, tables, facts, run, CallSlot::FromHost6, |_| Ok(Verdict::PASS))
}

/// The whole path for one family.
#[inline(always)]
pub fn run<F: Family, P: Packet, T: Tables<F>>(packet: &mut P, tables: &T, facts: &mut Facts<F>) -> Outcome {
    F::addresses(packet, facts)?;
    let owner = ipcache::resolve(tables, &facts.tuple.destination);
    if tables.config().flags & config::HOST_POLICY != 0
        && let Some(source) = to_netdev::policed_host(tables, facts)
    {
        to_netdev::police_host(packet, tables, facts, &source, &owner)?;
        facts.source_identity = 0;
    }
    facts.destination_identity = owner.identity();
    let Some(destination) = owner.entry() else {
        return Ok(Verdict::PASS);
    };
    if destination.endpoint != 0 {
        edit::set_addresses(packet, destination.mac, tables.config().host_mac)?;
        return Ok(Verdict::forward(destination.ifindex));
    }
    if tables.config().flags & config::TUNNEL == 0 || !destination.flags.has(IpFlags::POD) {
        return Ok(Verdict::PASS);
    }
    let source = ipcache::resolve(tables, &facts.tuple.source);
    let local_host = source.has_any(IpFlags::LOCAL_HOST);
    facts.source_identity = if local_host { ids::HOST } else { source.identity() };
    // To the gateway, as pods' packets: else the other node's stack, and before Linux 6.1 its pod's, takes it for another's.
    edit::set_destination(packet, tables.config().host_mac)?;
    tunnel(packet, on_the_wire(facts.source_identity), destination)
}

/// What an identity is called on other nodes: `HOST` would be the receiving node itself there, the worlds of one family
/// travel as `WORLD`, and numbers of the node-local scope mean nothing elsewhere.
#[inline(always)]
const fn on_the_wire(identity: Identity) -> Identity {
    match identity {
        ids::HOST => ids::REMOTE_NODE,
        ids::WORLD_IPV4 | ids::WORLD_IPV6 | ids::FIRST_LOCAL.. => ids::WORLD,
        other => other,
    }
}
