//! Numbers of rules: what policy entries, flows and events carry, and what it means.
//!
//! A number is a hash of policy, direction and index of the rule, so that it survives restarts and the coming and going
//! of other policies; the rare collision moves to the next free number, in the order of the names.

use std::fmt;
use std::sync::Arc;

use super::form::{PolicyKind, RuleAction};
use crate::map::Map;
use crate::model::Name;
use crate::yaml::Position;

/// Number of a rule, as in `PolicyEntry::rule`.
pub type RuleId = u32;

/// The endpoint is not isolated in this direction: everything is allowed.
pub const NO_RULE: RuleId = 0;
/// The node itself may always reach its pods.
pub const LOCAL_HOST: RuleId = 1;
/// First number of policies' rules.
const FIRST: RuleId = 256;

/// Direction of packets, seen from the endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// To the endpoint.
    Ingress,
    /// From the endpoint.
    Egress,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];

    /// As in `PolicyKey::direction`.
    pub const fn number(self) -> u8 {
        match self {
            Self::Ingress => datapath_abi::policy::INGRESS,
            Self::Egress => datapath_abi::policy::EGRESS,
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// The list of a policy that a rule stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum List {
    /// `ingress`.
    Ingress,
    /// `egress`.
    Egress,
    /// `ingressDeny`.
    IngressDeny,
    /// `egressDeny`.
    EgressDeny,
}

impl List {
    /// Direction of its rules.
    pub const fn direction(self) -> Direction {
        match self {
            Self::Ingress | Self::IngressDeny => Direction::Ingress,
            Self::Egress | Self::EgressDeny => Direction::Egress,
        }
    }

    /// Whether it is a list of what is denied.
    pub const fn denies(self) -> bool {
        match self {
            Self::Ingress | Self::Egress => false,
            Self::IngressDeny | Self::EgressDeny => true,
        }
    }

    /// As the API writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
            Self::IngressDeny => "ingressDeny",
            Self::EgressDeny => "egressDeny",
        }
    }
}

/// One rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleInfo {
    /// Number.
    pub id: RuleId,
    /// Kind of the policy.
    pub kind: PolicyKind,
    /// Policy.
    pub policy: Name,
    /// Index in `specs`, if the policy has some.
    pub spec: Option<usize>,
    /// Direction.
    pub direction: Direction,
    /// List of the policy.
    pub list: List,
    /// Index in the list, from 0.
    pub index: usize,
    /// What it does.
    pub action: RuleAction,
    /// Text that its policy wants with every verdict (`log.value`).
    pub log: Option<String>,
    /// Where the rule is written.
    pub position: Position,
    /// Where its peers are written, in order.
    pub peers: Vec<Position>,
    /// Where its ports are written, in order.
    pub ports: Vec<Position>,
}

impl RuleInfo {
    /// The rule inside its policy, as `ingress[0]` or `specs[1].egressDeny[0]`.
    pub fn place(&self) -> String {
        let spec = self.spec.map(|spec| format!("specs[{spec}].")).unwrap_or_default();
        format!("{spec}{}[{}]", self.list.name(), self.index)
    }
}

impl fmt::Display for RuleInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind != PolicyKind::NetworkPolicy {
            write!(f, "{} ", self.kind)?;
        }
        write!(f, "{} {} ({})", self.policy, self.place(), self.position)
    }
}

/// What a rule number means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleOrigin<'a> {
    /// No policy isolates the endpoint in this direction.
    NotIsolated,
    /// The node itself may always reach its pods.
    LocalHost,
    /// A rule of a policy.
    Rule(&'a RuleInfo),
    /// A number of an earlier state.
    Gone,
}

impl fmt::Display for RuleOrigin<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotIsolated => f.write_str("no policy"),
            Self::LocalHost => f.write_str("the node may reach its pods"),
            Self::Rule(rule) => rule.fmt(f),
            Self::Gone => f.write_str("a rule that no longer exists"),
        }
    }
}

/// All rules by number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleTable {
    rules: Map<RuleId, Arc<RuleInfo>>,
    /// Rules whose number is not their hash, because another rule has it.
    displaced: usize,
}

impl RuleTable {
    /// What a number means.
    pub fn origin(&self, id: RuleId) -> RuleOrigin<'_> {
        match id {
            NO_RULE => RuleOrigin::NotIsolated,
            LOCAL_HOST => RuleOrigin::LocalHost,
            _ => self.get(id).map_or(RuleOrigin::Gone, RuleOrigin::Rule),
        }
    }

    /// A policy's rule.
    pub fn get(&self, id: RuleId) -> Option<&RuleInfo> {
        self.rules.get(&id).map(Arc::as_ref)
    }

    /// All rules, by number.
    pub fn iter(&self) -> impl Iterator<Item = &RuleInfo> {
        self.rules.values().map(Arc::as_ref)
    }

    /// Adds a rule; its number is chosen here. While some are displaced, rules must come in a fixed order.
    pub(super) fn add(&mut self, mut rule: RuleInfo) -> RuleId {
        let wanted = hash(&rule).max(FIRST);
        let mut id = wanted;
        while self.rules.contains_key(&id) {
            id = id.checked_add(1).unwrap_or(FIRST);
        }
        self.displaced += usize::from(id != wanted);
        rule.id = id;
        self.rules.insert(id, Arc::new(rule));
        id
    }

    /// Removes a rule. While some are displaced, all have to come again.
    pub(super) fn remove(&mut self, id: RuleId) {
        self.rules.remove(&id);
    }

    /// Whether two rules want one number: then numbers depend on the order in which rules have come.
    pub(super) fn is_displaced(&self) -> bool {
        self.displaced > 0
    }
}

fn hash(rule: &RuleInfo) -> u32 {
    let mut text = format!("{}\0{}\0{}\0{}", rule.policy.namespace, rule.policy.name, rule.list.name(), rule.index);
    if rule.kind != PolicyKind::NetworkPolicy {
        text.push_str(&format!("\0{}\0{:?}", rule.kind, rule.spec));
    }
    super::fold(text.as_bytes())
}
