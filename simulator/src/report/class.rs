//! Pairs of pods whose probes must have the same verdict for the same reason, so that one of them answers for all.
//!
//! What the programs look at, of two pods with networks of their own: whether both are on one node, their identities in
//! the family of the probe, the sender's entries for egress and the receiver's for ingress. A policy look-up sees of a
//! pod's entries only those of the peer's identity and those of any identity. Two pairs whose look-ups see the same
//! entries (rules included), and whose ends lie alike, are one class. Whoever else is an end (nodes and pods in their
//! network, the world, addresses) is in none. A property test compares with asking everything.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use agent_core::Direction;
use agent_core::policy::{Action, L4, PolicyState};

use super::alike::Side;
use crate::cluster::{Family, Party};

/// Entries of one identity: block, precedence, rule, what happens, whether it is only audited.
type Entries = Vec<(L4, u32, u32, Action, bool)>;

/// What look-ups see, as numbers: equal numbers, equal entries.
#[derive(Debug, Default)]
struct Views {
    known: BTreeMap<Entries, u32>,
    pairs: HashMap<(u32, u32), u32>,
}

/// What look-ups in one endpoint's entries see, by the peer's identity.
#[derive(Debug)]
struct View {
    named: BTreeMap<u32, u32>,
    /// For an identity that has no entries of its own.
    other: u32,
}

impl View {
    fn of(&self, identity: u32) -> u32 {
        self.named.get(&identity).copied().unwrap_or(self.other)
    }
}

impl Views {
    fn number(&mut self, any: u32, own: Entries) -> u32 {
        let own = self.entries(own);
        let next = number(self.pairs.len());
        *self.pairs.entry((any, own)).or_insert(next)
    }

    fn entries(&mut self, entries: Entries) -> u32 {
        let next = number(self.known.len());
        *self.known.entry(entries).or_insert(next)
    }

    fn view(&mut self, state: &PolicyState) -> View {
        let mut by_identity: BTreeMap<u32, Entries> = BTreeMap::new();
        for (identity, l4, verdict) in state.iter() {
            let entry = (l4, verdict.precedence, verdict.rule, verdict.action, verdict.audit);
            by_identity.entry(identity).or_default().push(entry);
        }
        let any = by_identity.remove(&datapath_abi::ids::UNKNOWN).unwrap_or_default();
        let any = self.entries(any);
        let other = self.number(any, Entries::new());
        let named = by_identity.into_iter().map(|(identity, own)| (identity, self.number(any, own))).collect();
        View { named, other }
    }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// A pod with a network of its own.
#[derive(Debug)]
struct End {
    node: u32,
    /// What counts of its node: see [`Classes::new`].
    kind: u32,
    /// Identity over IPv4 and IPv6, where it has an address.
    identities: [Option<u32>; 2],
    egress: View,
    ingress: View,
}

/// The classes of one version.
#[derive(Debug)]
pub struct Classes {
    ends: Vec<Option<End>>,
    family: Option<Family>,
    /// Which numbers of a class take how much: sender's view, receiver's view, and the rest.
    views: u64,
    kinds: u64,
}

impl Classes {
    /// For probes between these parties over a family.
    pub fn new(side: Side<'_>, parties: &[Party], family: Option<Family>) -> Self {
        let model = &side.version.model;
        let mut views = Views::default();
        let mut kinds: BTreeMap<(bool, bool, Option<bool>, usize), u32> = BTreeMap::new();
        let policed = side.version.config.policy.host_firewall && !side.version.compiled.about_nodes().is_empty();
        let nodes: BTreeMap<&str, (u32, u32)> = (model.nodes().iter().enumerate())
            .map(|(index, node)| {
                let has = |ipv4: bool| node.addresses.iter().any(|address| address.is_ipv4() == ipv4);
                let underlay = node.underlay().map(|address| address.is_ipv4());
                // Where nodes have policies of their own, each is like no other.
                let own = if policed { index + 1 } else { 0 };
                let next = number(kinds.len());
                let kind = *kinds.entry((has(true), has(false), underlay, own)).or_insert(next);
                (node.name.as_str(), (number(index), kind))
            })
            .collect();
        let end = |(party, states): (&Party, &super::alike::States)| {
            let Party::Pod(name) = party else { return None };
            let pod = model.pods().get(name).filter(|pod| !pod.host_network)?;
            let (node, kind) = *nodes.get(pod.node.as_str())?;
            let identity = |ipv4: bool| {
                let address: Option<&IpAddr> = pod.addresses.iter().find(|address| address.is_ipv4() == ipv4);
                address.map(|address| side.version.compiled.identity(&pod.node, *address))
            };
            let egress = views.view(states.of(Direction::Egress));
            let ingress = views.view(states.of(Direction::Ingress));
            Some(End { node, kind, identities: [identity(true), identity(false)], egress, ingress })
        };
        let ends: Vec<Option<End>> = parties.iter().zip(side.states).map(end).collect();
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX).max(1);
        Self { ends, family, views: count(views.pairs.len()), kinds: count(kinds.len()) }
    }

    /// The class of a pair, if it is like others.
    pub fn of(&self, from: usize, to: usize) -> Option<u64> {
        let (from, to) = (self.ends.get(from)?.as_ref()?, self.ends.get(to)?.as_ref()?);
        let [from4, from6] = from.identities;
        let [to4, to6] = to.identities;
        let (ipv4, ipv6) = (from4.zip(to4), from6.zip(to6));
        let (over_ipv6, (from_identity, to_identity)) = match self.family {
            Some(Family::Ipv4) => (false, ipv4?),
            Some(Family::Ipv6) => (true, ipv6?),
            None => ipv4.map(|both| (false, both)).or(ipv6.map(|both| (true, both)))?,
        };
        let place = match from.node == to.node {
            true => u64::from(from.kind),
            false => self.kinds + u64::from(from.kind) * self.kinds + u64::from(to.kind),
        };
        let views = [from.egress.of(to_identity), to.ingress.of(from_identity)].map(u64::from);
        let [egress, ingress] = views;
        let rest = place.checked_mul(2)?.checked_add(u64::from(over_ipv6))?;
        rest.checked_mul(self.views)?.checked_add(egress)?.checked_mul(self.views)?.checked_add(ingress)
    }
}
