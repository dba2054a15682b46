//! Policies → what each endpoint's policy entries are.
//!
//! **Who is a peer.** Every address belongs to an identity, and a rule allows identities:
//! - pods: one identity for the pods of a namespace with the same labels. Where policies' blocks (`ipBlock`) hold some of
//!   their addresses and not others, those are told apart by the blocks that make the difference, so that a block selects
//!   exactly the pods in it. This goes by address: in a dual-stack cluster a pod may have an identity per family. Pods in
//!   their node's network are part of the node: no policy is about them and no label selects them.
//! - addresses outside: a node-local identity for each prefix that a policy names (as `cidr` or `except`); the longest
//!   one that holds an address is its owner. A block allows the prefixes inside it that are in none of its exceptions.
//!   The prefix of length 0 is the world.
//! - nodes: `HOST` (own) and `REMOTE_NODE`; where blocks tell nodes' addresses apart, each set of blocks has a
//!   node-local identity. Two approximations: packets of a remote node that come through the tunnel carry `REMOTE_NODE`
//!   whatever their source, so an ingress rule allows that identity when its blocks hold any remote node's address; and
//!   `HOST` is one identity for all addresses of the own node, allowed when the blocks hold any of them.
//!
//! **Named ports.** Ingress: the subject's container ports of that name and protocol. Egress: those of the peer pods, per
//! identity; pods of the same labels that give a name different numbers are told apart, if an egress rule uses the name.
//! Peers that are no pods have no names.

pub mod rules;
pub mod state;

mod compile;
mod explain;
mod peers;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use datapath_abi::Identity;

pub use explain::{Attempt, Flow, Part};
pub use rules::{Direction, LOCAL_HOST, NO_RULE, RuleId, RuleInfo, RuleOrigin, RuleTable};
pub use state::{L4, PolicyState, Verdict};

use crate::identity::{IdentityAllocator, IdentityError};
use crate::model::{Model, Name, NetworkPolicy, Resolved};
use crate::yaml::Position;
use compile::CompiledPolicy;
use peers::Peers;

/// A policy that isolates a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyRef {
    /// Its name.
    pub name: Name,
    /// Where it is written.
    pub position: Position,
}

/// The cluster's policies, ready to be asked for any endpoint; the same on every node.
#[derive(Clone, Debug)]
pub struct Compiled {
    cluster: Arc<Resolved>,
    peers: Peers,
    policies: Vec<CompiledPolicy>,
    rules: RuleTable,
}

impl Compiled {
    /// Compiles a cluster. Identities that are still in use keep their numbers.
    ///
    /// # Errors
    /// When identities are used up.
    pub fn new(model: &Model, identities: &mut IdentityAllocator) -> Result<Self, IdentityError> {
        let cluster = model.resolved();
        let peers = Peers::new(&cluster, identities)?;
        let mut rules = RuleTable::default();
        let policies = (cluster.policies.values())
            .map(|policy| CompiledPolicy::new(policy, &cluster, &peers, &mut rules))
            .collect();
        Ok(Self { cluster, peers, policies, rules })
    }

    /// Rules by number.
    pub fn rules(&self) -> &RuleTable {
        &self.rules
    }

    /// Identity that a node gives an address: of a pod, of a node, of a prefix that policies name, or the world.
    pub fn identity(&self, node: &str, address: IpAddr) -> Identity {
        self.peers.identity(&self.cluster, node, address)
    }

    /// Every pod's and node's address with its identity as a node sees it, in order.
    pub fn addresses<'a>(&'a self, node: &'a str) -> impl Iterator<Item = (IpAddr, Identity)> + 'a {
        self.peers.addresses(node)
    }

    /// Prefixes outside the cluster that have an identity of their own.
    pub fn prefixes(&self) -> &BTreeMap<crate::Prefix, Identity> {
        self.peers.prefixes()
    }

    /// Policies that isolate a pod in a direction, by name; none: everything is allowed.
    pub fn isolating(&self, pod: &Name, direction: Direction) -> Vec<PolicyRef> {
        let found = self.selecting(pod, direction);
        found.map(|policy| PolicyRef { name: policy.name.clone(), position: policy.position.clone() }).collect()
    }

    fn selecting(&self, pod: &Name, direction: Direction) -> impl Iterator<Item = &CompiledPolicy> {
        let subject = self.cluster.pods.get(pod).filter(|pod| !pod.host_network);
        self.policies.iter().filter(move |policy| {
            policy.isolates(direction)
                && subject.is_some_and(|pod| {
                    pod.name.namespace == policy.name.namespace && policy.subject.matches(&pod.labels)
                })
        })
    }

    /// What a pod's policy entries are in one direction. A pod that does not exist, or is in its node's network, has none.
    pub fn state(&self, pod: &Name, direction: Direction) -> PolicyState {
        let mut state = PolicyState::default();
        let Some(subject) = self.cluster.pods.get(pod).filter(|pod| !pod.host_network) else {
            return state;
        };
        let mut isolated = false;
        for policy in self.selecting(pod, direction) {
            isolated = true;
            policy.entries(direction, subject, &self.peers, &mut state);
        }
        if !isolated {
            state.insert(datapath_abi::ids::UNKNOWN, L4::ANY, Verdict::allow(NO_RULE));
        } else if direction == Direction::Ingress {
            state.insert(datapath_abi::ids::HOST, L4::ANY, Verdict::allow(LOCAL_HOST));
        }
        state.finish();
        state
    }

    pub(crate) fn cluster(&self) -> &Resolved {
        &self.cluster
    }
}

/// The rules of the directions that a policy isolates; the API ignores the others.
fn used_rules(policy: &NetworkPolicy) -> impl Iterator<Item = &crate::model::PolicyRule> {
    let ingress = policy.isolates_ingress.then_some(&policy.ingress);
    let egress = policy.isolates_egress.then_some(&policy.egress);
    ingress.into_iter().chain(egress).flatten()
}

/// FNV-1a of 64 bits, folded to 32.
pub(crate) fn fold(bytes: &[u8]) -> u32 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for &byte in bytes {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    let [a, b, c, d, e, f, g, h] = hash.to_le_bytes();
    u32::from_le_bytes([a, b, c, d]) ^ u32::from_le_bytes([e, f, g, h])
}
