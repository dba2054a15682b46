//! What the maps of one node should hold, kept from one state of the cluster to the next: an update costs what has changed.
//!
//! Invariant: after an update it is what it would be if it were made anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use datapath_abi::{EndpointId, Identity, IpEntry, IpFlags, Mac, MapId, PolicyEntry, ids};
use zerocopy::IntoBytes;

use super::pressure::{self, Pressure};
use super::{Desired, DesiredError, LocalEndpoint, prefix_entry, underlay};
use crate::model::{Holder, Name, Node, Resolved};
use crate::policy::{Anew, Changes, Compiled, Direction, L4, PolicyState, Verdict, halves, hash, map_key};

/// See the module. A copy costs little.
#[derive(Clone, Debug)]
pub struct NodeMaps {
    node: String,
    /// What it was made of.
    compiled: Compiled,
    desired: Desired,
    locals: BTreeMap<Name, Arc<Own>>,
    /// The node's own policy, if there is any about it and it is in force.
    host: Option<Arc<Own>>,
}

/// An endpoint with policy entries.
#[derive(Clone, Debug)]
struct Own {
    local: LocalEndpoint,
    /// Its policy entries.
    states: [PolicyState; 2],
    /// The sum of their hashes, so that one entry more or less needs no look at the others.
    sum: u64,
}

impl Own {
    fn new(local: LocalEndpoint) -> Self {
        Self { local, states: Default::default(), sum: 0 }
    }

    /// A hash of its policy entries, never 0.
    fn revision(&self) -> u32 {
        halves(self.sum).max(1)
    }

    fn len(&self) -> usize {
        self.states.iter().map(PolicyState::len).sum()
    }
}

impl NodeMaps {
    /// From scratch.
    ///
    /// # Errors
    /// When the endpoints do not fit the cluster, or entries do not fit the maps.
    pub fn new(compiled: &Compiled, node: &str, locals: &[LocalEndpoint]) -> Result<Self, DesiredError> {
        let mut made = Self {
            node: node.to_owned(),
            compiled: compiled.clone(),
            desired: Desired::default(),
            locals: BTreeMap::new(),
            host: None,
        };
        made.change(compiled, None, locals)?;
        Ok(made)
    }

    /// Brings it up to date. `changes`: everything that [`Compiled::update`] has changed since the last time.
    ///
    /// # Errors
    /// As [`Self::new`]; then nothing has changed.
    pub fn update(
        &mut self,
        compiled: &Compiled,
        changes: &Changes,
        locals: &[LocalEndpoint],
    ) -> Result<(), DesiredError> {
        let mut next = self.clone();
        next.change(compiled, Some(changes), locals)?;
        *self = next;
        Ok(())
    }

    /// What the maps should hold.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// `changes`: none when everything is to be made.
    fn change(
        &mut self,
        compiled: &Compiled,
        changes: Option<&Changes>,
        locals: &[LocalEndpoint],
    ) -> Result<(), DesiredError> {
        if compiled.cluster().node(&self.node).is_none() {
            return Err(DesiredError::UnknownNode { node: self.node.clone() });
        }
        let locals = compiled.check_locals(&self.node, locals)?;
        let mut addresses: BTreeSet<IpAddr> = BTreeSet::new();
        self.change_policies(compiled, changes, &locals, &mut addresses)?;
        self.find_addresses(compiled, changes, &mut addresses);
        let view = View::new(compiled, self);
        let entries: Vec<_> = addresses.into_iter().map(|address| (address, view.entry(address))).collect();
        for (address, entry) in entries {
            self.desired.set_address(address, entry.as_ref());
        }
        let before = self.compiled.prefixes().clone();
        if changes.is_none() {
            for (prefix, identity) in compiled.prefixes() {
                self.desired.set_prefix(*prefix, Some(&prefix_entry(*identity)));
            }
        }
        for (prefix, _, identity) in before.diff(compiled.prefixes()) {
            self.desired.set_prefix(*prefix, identity.map(|identity| prefix_entry(*identity)).as_ref());
        }
        self.compiled = compiled.clone();
        Ok(())
    }

    /// Policy entries. Addresses of endpoints whose own entries change with them are added to `addresses`.
    fn change_policies(
        &mut self,
        compiled: &Compiled,
        changes: Option<&Changes>,
        locals: &BTreeMap<&Name, &LocalEndpoint>,
        addresses: &mut BTreeSet<IpAddr>,
    ) -> Result<(), DesiredError> {
        let mut pressure = Pressure::default();
        // First those that go: a number may be another pod's now.
        let stays = |own: &Own| locals.get(&own.local.pod).is_some_and(|local| local.id == own.local.id);
        let gone: Vec<Arc<Own>> = self.locals.values().filter(|own| !stays(own)).cloned().collect();
        for own in gone {
            addresses.extend(addresses_of(&self.compiled, &own.local.pod));
            self.desired.put_policy(&mut Own::clone(&own), Default::default());
            self.locals.remove(&own.local.pod);
        }
        for (&name, &local) in locals {
            let old = self.locals.get(name);
            let anew = match (old, changes) {
                (Some(_), Some(changes)) => compiled.anew(changes, name),
                (None, _) | (_, None) => Anew::Everything,
            };
            if let Some(old) = old.filter(|old| anew == Anew::Nothing && old.local == *local) {
                pressure.count(old.len());
                continue;
            }
            let mut own =
                old.map_or_else(|| Own::new(local.clone()), |old| Own { local: local.clone(), ..Own::clone(old) });
            match anew {
                Anew::Nothing => {}
                Anew::Identities(only) => {
                    let states = Direction::ALL.map(|direction| compiled.state_of(name, direction, Some(only)));
                    self.desired.put_some(&mut own, &states, only);
                }
                Anew::Everything => {
                    let states = Direction::ALL.map(|direction| compiled.state(name, direction));
                    self.desired.put_policy(&mut own, states);
                }
            }
            pressure.check(compiled, || name.to_string(), &own.states)?;
            let old = self.locals.get(name);
            if old.is_none_or(|old| (&old.local, old.revision()) != (&own.local, own.revision())) {
                addresses.extend(addresses_of(compiled, name));
            }
            self.locals.insert(name.clone(), Arc::new(own));
        }
        if changes.is_none_or(|changes| compiled.is_node_changed(changes)) {
            let old = self.host.take();
            let states = compiled.host_states(&self.node);
            let local = || LocalEndpoint {
                pod: Name::new("", &self.node),
                id: ids::HOST_ENDPOINT,
                ifindex: 0,
                mac: Mac::default(),
            };
            let mut own = old.as_ref().map_or_else(|| Own::new(local()), |old| Own::clone(old));
            let is_any = states.is_some();
            self.desired.put_policy(&mut own, states.unwrap_or_default());
            pressure.check(compiled, || format!("node/{}", self.node), &own.states)?;
            self.host = is_any.then(|| Arc::new(own));
            let revision = |own: &Option<Arc<Own>>| own.as_ref().map(|own| own.revision());
            if revision(&old) != revision(&self.host) {
                let own = compiled.cluster().node(&self.node);
                addresses.extend(own.into_iter().flat_map(|own| own.gateways().chain(own.addresses.iter().copied())));
            }
        } else if let Some(host) = &self.host {
            pressure.count(host.len());
        }
        if pressure.is_too_much(compiled) {
            let rules = self.desired.rules();
            return pressure::refuse_node(compiled, &self.node, &rules).map_or(Ok(()), Err);
        }
        Ok(())
    }

    /// Addresses whose owners have changed.
    fn find_addresses(&self, compiled: &Compiled, changes: Option<&Changes>, addresses: &mut BTreeSet<IpAddr>) {
        let (old, new) = (self.compiled.cluster(), compiled.cluster());
        if changes.is_none() || !Arc::ptr_eq(&old.nodes, &new.nodes) || changes.is_some_and(Changes::is_everything) {
            for cluster in [old, new] {
                let of_nodes = cluster.nodes.iter().flat_map(|node| node.gateways());
                addresses.extend(of_nodes.chain(cluster.holders.keys().copied()));
            }
            return;
        }
        addresses.extend(self.compiled.pod_addresses().diff(compiled.pod_addresses()).map(|(address, _, _)| *address));
        for (_, was, is) in old.pods.diff(&new.pods) {
            addresses.extend([was, is].into_iter().flatten().flat_map(|pod| pod.addresses.iter()));
        }
    }
}

fn addresses_of(compiled: &Compiled, pod: &Name) -> Vec<IpAddr> {
    compiled.cluster().pods.get(pod).map(|pod| pod.addresses.clone()).unwrap_or_default()
}

/// Who looks at the cluster.
struct View<'a> {
    compiled: &'a Compiled,
    cluster: &'a Resolved,
    maps: &'a NodeMaps,
    nodes: BTreeMap<&'a str, &'a Node>,
    gateways: BTreeMap<IpAddr, &'a Node>,
}

impl<'a> View<'a> {
    fn new(compiled: &'a Compiled, maps: &'a NodeMaps) -> Self {
        let cluster = compiled.cluster();
        let nodes = cluster.nodes.iter().map(|node| (node.name.as_str(), node)).collect();
        let gateways = cluster.nodes.iter().flat_map(|node| node.gateways().map(move |address| (address, node)));
        Self { compiled, cluster, maps, nodes, gateways: gateways.collect() }
    }

    /// What an address's entry should be.
    fn entry(&self, address: IpAddr) -> Option<IpEntry> {
        match self.cluster.holders.get(&address) {
            Some(Holder::Pod(pod)) => self.pod(address, pod),
            Some(Holder::Node(node)) => {
                let local = *node == self.maps.node;
                Some(self.node(local, self.compiled.identity(&self.maps.node, address), (Default::default(), 0)))
            }
            // Where an object has the same address, it is the object's.
            None => self.gateways.get(&address).map(|node| {
                let local = node.name == self.maps.node;
                let identity = if local { ids::HOST } else { ids::REMOTE_NODE };
                self.node(local, identity, underlay(node.underlay().filter(|_| !local)))
            }),
        }
    }

    fn node(&self, local: bool, identity: u32, (node, family): (datapath_abi::Addr6, u16)) -> IpEntry {
        let flags = if local { IpFlags::LOCAL_HOST | IpFlags::NODE } else { IpFlags::NODE };
        let mut entry = IpEntry { identity, node, flags: IpFlags(flags | family), ..IpEntry::default() };
        if let Some(host) = self.maps.host.as_ref().filter(|_| local) {
            // The node is the same by whichever of its addresses it is reached.
            (entry.endpoint, entry.policy_revision) = (ids::HOST_ENDPOINT, host.revision());
        }
        entry
    }

    fn pod(&self, address: IpAddr, name: &Name) -> Option<IpEntry> {
        let pod = self.cluster.pods.get(name)?;
        let own = self.maps.locals.get(name);
        // A pod of this node that has no endpoint (yet) cannot be reached at all, least of all through the tunnel.
        let reachable = own.is_some() || pod.node != self.maps.node;
        let holder = self.nodes.get(pod.node.as_str()).filter(|_| reachable);
        let (node, flags) = underlay(holder.and_then(|node| node.underlay()));
        Some(IpEntry {
            identity: self.compiled.identity(&self.maps.node, address),
            ifindex: own.map_or(0, |own| own.local.ifindex),
            policy_revision: own.map_or(0, |own| own.revision()),
            node,
            endpoint: own.map_or(0, |own| own.local.id),
            flags: IpFlags(flags | IpFlags::POD),
            mac: own.map_or(Mac::default(), |own| own.local.mac),
            pad: [0; 2],
        })
    }
}

impl Desired {
    /// Makes an endpoint's policy entries these.
    fn put_policy(&mut self, own: &mut Own, states: [PolicyState; 2]) {
        for ((old, new), direction) in own.states.iter().zip(&states).zip(Direction::ALL) {
            for (identity, l4, verdict) in old.diff(new) {
                self.put_entry(own.local.id, direction, (identity, l4), verdict, &mut own.sum);
            }
        }
        own.states = states;
    }

    /// Makes those of some identities these.
    fn put_some(&mut self, own: &mut Own, states: &[PolicyState; 2], only: &BTreeSet<Identity>) {
        for ((old, new), direction) in own.states.iter_mut().zip(states).zip(Direction::ALL) {
            for &identity in only {
                for (l4, verdict) in old.take(new, identity) {
                    self.put_entry(own.local.id, direction, (identity, l4), verdict, &mut own.sum);
                }
            }
        }
    }

    /// Writes or removes an entry, also in the sum of hashes.
    fn put_entry(
        &mut self,
        endpoint: EndpointId,
        direction: Direction,
        (identity, l4): (Identity, L4),
        verdict: Option<Verdict>,
        sum: &mut u64,
    ) {
        let key = map_key(endpoint, direction, identity, l4);
        let value = verdict.map(|verdict| verdict.map_value(l4));
        let hash_of = |value: &[u8]| hash(&[key.as_bytes(), value].concat());
        if let Some(old) = self.get(MapId::Policy, key.as_bytes()) {
            *sum = sum.wrapping_sub(hash_of(old));
        }
        if let Some(new) = &value {
            *sum = sum.wrapping_add(hash_of(new.as_bytes()));
        }
        self.set(MapId::Policy, key.as_bytes(), value.as_ref().map(PolicyEntry::as_bytes));
    }
}
