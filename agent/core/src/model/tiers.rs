//! `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy as the API writes it.

use super::names::NamePattern;
use super::object::{Meta, PortSelector};
use super::question::PodQuestion;
use crate::labels::Selector;
use crate::prefix::Prefix;
use crate::yaml::Position;

/// A ClusterNetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterPolicy {
    /// Metadata.
    pub meta: Meta,
    /// Tier.
    pub tier: Tier,
    /// 0 to 1000; the lower one goes first.
    pub priority: u16,
    /// Pods that it is about (never those in their node's network).
    pub subject: PodQuestion,
    /// `ingress`, in order.
    pub ingress: Vec<TierRule>,
    /// `egress`, in order.
    pub egress: Vec<TierRule>,
}

/// When a policy is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Before NetworkPolicy.
    Admin,
    /// After NetworkPolicy, if none isolates the pod.
    Baseline,
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TierAction {
    /// Allows.
    Accept,
    /// Drops.
    Deny,
    /// Ends the tier.
    Pass,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierRule {
    /// Where it starts.
    pub position: Position,
    /// `name`; empty if it has none.
    pub name: String,
    /// What it does.
    pub action: TierAction,
    /// `from` or `to`.
    pub peers: Vec<TierPeer>,
    /// `protocols`; none: everything.
    pub ports: Vec<TierPort>,
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierPeer {
    /// Where it starts.
    pub position: Position,
    /// Whom it selects.
    pub selects: TierPeerSelector,
}

/// Whom a peer selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TierPeerSelector {
    /// Pods, never those in their node's network.
    Pods(PodQuestion),
    /// Nodes, by all their addresses.
    Nodes(Selector),
    /// Whoever has an address in one of the prefixes.
    Networks(Vec<Prefix>),
    /// Addresses that names had in answers of DNS.
    Names(Vec<NamePattern>),
}

/// Ports of one protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TierPort {
    /// Where it starts.
    pub position: Position,
    /// IANA numbers: several for a named port.
    pub protocols: Vec<u8>,
    /// Which ports.
    pub ports: PortSelector,
}
