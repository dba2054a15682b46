//! Which probes two versions of a cluster cannot answer differently, so that only the others are sent.
//!
//! A probe's fate depends on: the sender's entries for egress and the receiver's for ingress in the policy map, the
//! identities that both addresses have, where both are, and the nodes. Identities are numbers, and may be others in the
//! other version: they are compared by whom they stand for. Where all of this is the same in both versions, the programs
//! get the same input but for the names of numbers, and the verdict is the same. Whatever is not compared here (other
//! nodes, other families, another way between nodes, the host firewall switched) means that everything is asked. A property
//! test compares with asking everything.

use std::collections::BTreeMap;
use std::net::IpAddr;

use agent_core::model::{Model, Pod};
use agent_core::policy::{Action, L4, PolicyState};
use agent_core::{Compiled, Direction, IdentityAllocator, Owner};

use crate::cluster::scenario::Config;
use crate::cluster::{Party, WORLD4, WORLD6};

/// One version, compiled.
#[derive(Debug)]
pub struct Version {
    /// Objects.
    pub model: Model,
    /// Settings.
    pub config: Config,
    /// Policies.
    pub compiled: Compiled,
    /// Whom identities stand for.
    pub identities: IdentityAllocator,
}

impl Version {
    /// Compiles.
    ///
    /// # Errors
    /// When identities are used up.
    pub fn new(model: Model, config: Config) -> Result<Self, agent_core::IdentityError> {
        let mut identities = IdentityAllocator::default();
        let compiled = Compiled::with(&model, &mut identities, config.policy.clone())?;
        Ok(Self { model, config, compiled, identities })
    }

    /// Entries of every party in both directions, as nodes have them in their maps.
    pub fn states(&self, parties: &[Party]) -> Vec<States> {
        let of_node = |name: &str| {
            if self.config.policy.host_firewall && self.compiled.has_host_policy(name) {
                Direction::ALL.map(|direction| self.compiled.host_state(name, direction))
            } else {
                <[PolicyState; 2]>::default()
            }
        };
        let of = |party: &Party| match party {
            Party::Pod(name) => match self.model.pods().get(name) {
                Some(pod) if pod.host_network => of_node(&pod.node),
                Some(_) | None => Direction::ALL.map(|direction| self.compiled.state(name, direction)),
            },
            Party::Node(name) => of_node(name),
            Party::Address(_) | Party::World => <[PolicyState; 2]>::default(),
        };
        parties.iter().map(|party| States(of(party))).collect()
    }
}

/// The entries of one party.
#[derive(Debug)]
pub struct States([PolicyState; 2]);

impl States {
    /// In one direction.
    pub fn of(&self, direction: Direction) -> &PolicyState {
        let [first, second] = &self.0;
        if Direction::ALL.first() == Some(&direction) { first } else { second }
    }
}

/// A version with the entries of its parties.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// The version.
    pub version: &'a Version,
    /// [`Version::states`].
    pub states: &'a [States],
}

/// What is the same for each endpoint.
#[derive(Debug)]
pub struct Alike {
    /// Nothing was compared: everything may differ.
    unknown: bool,
    parties: Vec<Same>,
}

#[derive(Clone, Copy, Debug)]
struct Same {
    /// Its place, addresses and identities.
    place: bool,
    egress: bool,
    ingress: bool,
}

/// Node, whether in its network, and each address with whom nodes take it for.
type Place = (Option<(String, bool)>, Vec<(IpAddr, Vec<Who>)>);

/// Whom an identity stands for, as a number that both versions share.
type Who = u64;

/// Entries, with whom they are about.
type Entries = Vec<(Who, L4, u32, Action, bool)>;

impl Alike {
    /// Compares two versions for endpoints that both have.
    pub fn new(before: Side<'_>, after: Side<'_>, parties: &[Party]) -> Self {
        let nodes = |version: &Version| {
            let nodes = version.model.nodes().iter();
            let of = |node: &agent_core::model::Node| {
                let policed = version.compiled.has_host_policy(&node.name);
                (node.name.clone(), node.addresses.clone(), node.pod_cidrs.clone(), policed)
            };
            nodes.map(of).collect::<Vec<_>>()
        };
        let (old, new) = (before.version, after.version);
        let unknown = old.model.dual_stack() != new.model.dual_stack()
            || old.config.tunnel != new.config.tunnel
            || old.config.policy.host_firewall != new.config.policy.host_firewall
            || nodes(old) != nodes(new);
        if unknown {
            return Self { unknown, parties: Vec::new() };
        }
        let mut names = Names::default();
        let parties = parties.iter().zip(before.states.iter().zip(after.states)).map(|(party, states)| {
            let mut same =
                |direction| names.entries(old, states.0.of(direction)) == names.entries(new, states.1.of(direction));
            let (egress, ingress) = (same(Direction::Egress), same(Direction::Ingress));
            Same { place: names.place(old, party) == names.place(new, party), egress, ingress }
        });
        Self { unknown, parties: parties.collect() }
    }

    /// Whether a probe between two endpoints may end differently.
    pub fn may_differ(&self, from: usize, to: usize) -> bool {
        match (self.parties.get(from), self.parties.get(to)) {
            (Some(from), Some(to)) if !self.unknown => !(from.place && to.place && from.egress && to.ingress),
            _ => true,
        }
    }
}

/// Numbers for owners, the same in both versions.
#[derive(Default)]
struct Names(BTreeMap<Owner, Who>);

impl Names {
    fn who(&mut self, version: &Version, identity: u32) -> Who {
        match version.identities.owner(identity) {
            // Reserved identities are what they are.
            None => Who::from(identity),
            Some(owner) => {
                let next = (1 << 32) + Who::try_from(self.0.len()).unwrap_or(Who::MAX >> 1);
                *self.0.entry(owner.clone()).or_insert(next)
            }
        }
    }

    fn entries(&mut self, version: &Version, state: &PolicyState) -> Entries {
        let mut entries: Entries = state
            .iter()
            .map(|(identity, l4, verdict)| {
                (self.who(version, identity), l4, verdict.precedence, verdict.action, verdict.audit)
            })
            .collect();
        entries.sort_unstable();
        entries
    }

    /// Node and network of a party, and each address with whom the nodes take it for.
    fn place(&mut self, version: &Version, party: &Party) -> Place {
        let mut of = |addresses: &[IpAddr], nodes: &[&str]| {
            let seen = |address: &IpAddr| {
                let seen = nodes.iter().map(|node| version.compiled.identity(node, *address));
                (*address, seen.collect::<Vec<_>>())
            };
            let seen: Vec<_> = addresses.iter().map(seen).collect();
            let named = seen.into_iter().map(|(address, identities)| {
                (address, identities.into_iter().map(|identity| self.who(version, identity)).collect())
            });
            named.collect()
        };
        let all: Vec<&str> = version.model.nodes().iter().map(|node| node.name.as_str()).collect();
        match party {
            Party::Pod(name) => match version.model.pods().get(name) {
                Some(Pod { node, addresses, host_network: true, .. }) => {
                    (Some((node.clone(), true)), of(addresses, &all))
                }
                // Every node takes a pod with a network of its own for the same.
                Some(pod) => (Some((pod.node.clone(), false)), of(&pod.addresses, &[pod.node.as_str()])),
                None => (None, Vec::new()),
            },
            Party::Node(name) => {
                let addresses = version.model.node(name).map(|node| node.addresses.clone()).unwrap_or_default();
                (Some((name.clone(), true)), of(&addresses, &all))
            }
            Party::Address(address) => (None, of(&[*address], &all)),
            Party::World => {
                let addresses: Vec<IpAddr> = [WORLD4, WORLD6].iter().filter_map(|text| text.parse().ok()).collect();
                (None, of(&addresses, &all))
            }
        }
    }
}
