//! The one form into which every kind of policy is brought. What comes after (identities, entries, explanations) knows
//! nothing else.
//!
//! Order of evaluation, as numbers that grow with distance ([`Level`]): the Admin tier by priority and rule, then
//! NetworkPolicy and Cilium's policies (one level: deny beats allow), then, if none of them isolates the endpoint, the
//! Baseline tier, then everything is allowed.

use std::fmt;

use crate::labels::Selector;
use crate::model::cilium::Inspect;
use crate::model::{Entity, IpBlock, Name, NamePattern, PodQuestion, PortSelector};
use crate::yaml::Position;

use super::rules::{Direction, List};

/// Kinds of policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyKind {
    /// `networking.k8s.io/v1`.
    NetworkPolicy,
    /// `cilium.io/v2`, of a namespace.
    CiliumNetworkPolicy,
    /// `cilium.io/v2`, of the cluster.
    CiliumClusterwideNetworkPolicy,
    /// `policy.networking.k8s.io/v1alpha2`.
    ClusterNetworkPolicy,
}

impl PolicyKind {
    /// As the API writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NetworkPolicy => "NetworkPolicy",
            Self::CiliumNetworkPolicy => "CiliumNetworkPolicy",
            Self::CiliumClusterwideNetworkPolicy => "CiliumClusterwideNetworkPolicy",
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// When a rule is asked; the lower one goes first. At most 24 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Level(u32);

/// Which tier a level belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Before the policies of namespaces.
    Admin,
    /// NetworkPolicy and Cilium's.
    Normal,
    /// After them.
    Baseline,
}

impl Stage {
    /// All, in the order of evaluation.
    pub const ALL: [Self; 3] = [Self::Admin, Self::Normal, Self::Baseline];
}

impl Level {
    /// NetworkPolicy and Cilium's policies.
    pub const NORMAL: Self = Self(0x04_0000);
    /// What is allowed because nothing forbids it.
    pub const IMPLICIT: Self = Self(0xff_fffe);
    /// Levels of one priority.
    const RULES: u32 = 128;

    /// Rule `index` of a ClusterNetworkPolicy of a tier; `stage` is not [`Stage::Normal`].
    pub fn tier(stage: Stage, priority: u16, index: usize) -> Self {
        let index = u32::try_from(index).unwrap_or(u32::MAX).min(Self::RULES - 1);
        let base = match stage {
            Stage::Admin => 0,
            Stage::Normal => return Self::NORMAL,
            Stage::Baseline => 0x05_0000,
        };
        Self(base + u32::from(priority) * Self::RULES + index)
    }

    /// The level of a `PolicyEntry::precedence`.
    pub const fn of(precedence: u32) -> Self {
        Self(0x00ff_ffff - (precedence >> 8))
    }

    /// The value of `PolicyEntry::precedence` for a rule of this level; `low` orders what is said on one level.
    pub const fn precedence(self, low: u8) -> u32 {
        ((0x00ff_ffff - self.0) << 8) | low as u32
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tier = |f: &mut fmt::Formatter<'_>, name: &str, base: u32| {
            write!(f, "{name} {}[{}]", (self.0 - base) / Self::RULES, (self.0 - base) % Self::RULES)
        };
        match self.0 {
            0..=0x03_ffff => tier(f, "admin", 0),
            0x04_0000..=0x04_ffff => f.write_str("normal"),
            0x05_0000..=0x08_ffff => tier(f, "baseline", 0x05_0000),
            _ => f.write_str("default"),
        }
    }
}

/// What a rule does with what it matches. Where ports say what a proxy looks at, Allow means: if the proxy agrees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleAction {
    /// Lets it pass.
    Allow,
    /// Drops it.
    Deny,
    /// Ends the tier.
    Pass,
}

/// One policy (of a policy with `specs`: one of them).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) kind: PolicyKind,
    pub(crate) name: Name,
    /// Index in `specs`.
    pub(crate) spec: Option<usize>,
    pub(crate) position: Position,
    /// Only reported, not enforced.
    pub(crate) audit: bool,
    pub(crate) stage: Stage,
    pub(crate) subject: Subject,
    /// What no rule allows is dropped, for packets to the subject.
    pub(crate) isolates_ingress: bool,
    /// What no rule allows is dropped, for packets from the subject.
    pub(crate) isolates_egress: bool,
    pub(crate) rules: Vec<FormRule>,
}

/// Whom a policy is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Pods(PodQuestion),
    Nodes(Selector),
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FormRule {
    pub(crate) list: List,
    /// Index in its list.
    pub(crate) index: usize,
    pub(crate) position: Position,
    pub(crate) level: Level,
    pub(crate) action: RuleAction,
    /// `None`: everybody.
    pub(crate) peers: Option<Vec<FormPeer>>,
    /// None: every protocol and port.
    pub(crate) ports: Vec<FormPort>,
    /// Written with every verdict.
    pub(crate) log: Option<String>,
}

/// A peer; one item of a policy may become several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FormPeer {
    pub(crate) item: usize,
    pub(crate) position: Position,
    pub(crate) selects: Select,
}

/// Whom a peer selects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Select {
    /// Pods with a network of their own.
    Pods(PodQuestion),
    /// Addresses outside the cluster, and of it what `cluster` says.
    Block { block: IpBlock, cluster: InCluster },
    /// Somebody with a fixed name.
    Entity(Entity),
    /// Nodes by their labels.
    Nodes(Selector),
    /// Addresses that names had.
    Names(NamePattern),
}

/// Which addresses of the cluster itself a block selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InCluster {
    pub(crate) pods: bool,
    pub(crate) nodes: bool,
}

/// Ports of one protocol; a type of ICMP is its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FormPort {
    pub(crate) item: usize,
    pub(crate) position: Position,
    /// IANA number.
    pub(crate) protocol: u8,
    pub(crate) ports: PortSelector,
    pub(crate) inspect: Option<Inspect>,
}

impl Form {
    pub(crate) fn isolates(&self, direction: Direction) -> bool {
        match direction {
            Direction::Ingress => self.isolates_ingress,
            Direction::Egress => self.isolates_egress,
        }
    }

    /// Its rules for a direction, in order.
    pub(crate) fn rules(&self, direction: Direction) -> impl Iterator<Item = &FormRule> {
        self.rules.iter().filter(move |rule| rule.list.direction() == direction)
    }
}
