//! Numbers of rules: what policy entries, flows and events carry, and what it means.
//!
//! A number is a hash of policy, direction and index of the rule, so that it survives restarts and the coming and going
//! of other policies; the rare collision moves to the next free number, in the order of the names.

use std::collections::BTreeMap;
use std::fmt;

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

/// One rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleInfo {
    /// Number.
    pub id: RuleId,
    /// Policy.
    pub policy: Name,
    /// Direction.
    pub direction: Direction,
    /// Index in `ingress` or `egress`, from 0.
    pub index: usize,
    /// Where the rule is written.
    pub position: Position,
    /// Where its peers are written, in order.
    pub peers: Vec<Position>,
    /// Where its ports are written, in order.
    pub ports: Vec<Position>,
}

impl fmt::Display for RuleInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}[{}] ({})", self.policy, self.direction, self.index, self.position)
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
    rules: BTreeMap<RuleId, RuleInfo>,
}

impl RuleTable {
    /// What a number means.
    pub fn origin(&self, id: RuleId) -> RuleOrigin<'_> {
        match id {
            NO_RULE => RuleOrigin::NotIsolated,
            LOCAL_HOST => RuleOrigin::LocalHost,
            _ => self.rules.get(&id).map_or(RuleOrigin::Gone, RuleOrigin::Rule),
        }
    }

    /// A policy's rule.
    pub fn get(&self, id: RuleId) -> Option<&RuleInfo> {
        self.rules.get(&id)
    }

    /// All rules, by number.
    pub fn iter(&self) -> impl Iterator<Item = &RuleInfo> {
        self.rules.values()
    }

    /// Adds a rule; its number is chosen here. Rules must come in a fixed order.
    pub(super) fn add(&mut self, mut rule: RuleInfo) -> RuleId {
        let mut id = hash(&rule).max(FIRST);
        while self.rules.contains_key(&id) {
            id = id.checked_add(1).unwrap_or(FIRST);
        }
        rule.id = id;
        self.rules.insert(id, rule);
        id
    }
}

fn hash(rule: &RuleInfo) -> u32 {
    let text = format!("{}\0{}\0{}\0{}", rule.policy.namespace, rule.policy.name, rule.direction, rule.index);
    super::fold(text.as_bytes())
}
