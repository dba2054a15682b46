//! What policies mean, read from the API texts object by object: small, slow, and knowing nothing of identities, prefixes
//! of ports, precedence or maps. The compiler is compared with it.
//!
//! It uses the readers of `agent-core` (syntax) and none of its compiler. Sources: the descriptions of the fields of
//! `networking.k8s.io/v1`, `policy.networking.k8s.io/v1alpha2` and `cilium.io/v2`, and Cilium's documentation of rules.
//!
//! Two readings are weir's own and stated in `agent-core`: a node's own addresses are one peer to its pods (a block holds
//! it when it holds any of them), and of two ClusterNetworkPolicies with one priority in one tier the rules are taken
//! index by index, Deny before Accept before Pass.

mod cilium;
pub mod flow;
pub mod found;
pub mod generate;
mod kubernetes;
mod tiers;

use std::net::IpAddr;

use agent_core::model::object::Meta;
use agent_core::model::{IpBlock, Model, Node, Pod, PodQuestion, PortSelector, Requirement};
use agent_core::policy::{Direction, Enforcement, PolicySettings};

/// Whether a new flow passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// It does.
    Allow,
    /// It does not.
    Deny,
    /// A proxy decides.
    Redirect,
}

/// The whole answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What happens.
    pub outcome: Outcome,
    /// It passes only because a policy is not enforced but reported.
    pub audit: bool,
}

/// Whose policy is asked.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    /// A pod's.
    Pod(&'a Pod),
    /// A node's own.
    Node(&'a Node),
}

/// A new flow, seen from its subject.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Whose policy.
    pub subject: Subject<'a>,
    /// Direction, seen from the subject.
    pub direction: Direction,
    /// The other end.
    pub peer: IpAddr,
    /// IANA number.
    pub protocol: u8,
    /// Destination port, or the type of ICMP.
    pub port: u16,
}

/// Who has an address.
#[derive(Clone, Copy, Debug)]
struct Peer<'a> {
    address: IpAddr,
    pod: Option<&'a Pod>,
    node: Option<&'a Node>,
    /// The node that the subject is on, or is.
    own_node: bool,
}

impl Peer<'_> {
    fn outside(&self) -> bool {
        self.pod.is_none() && self.node.is_none()
    }

    /// Whether a block that selects nodes by address holds it.
    fn node_in(&self, block: &IpBlock) -> bool {
        self.node.is_some_and(|node| {
            if self.own_node {
                node.addresses.iter().any(|address| block.contains(*address))
            } else {
                block.contains(self.address)
            }
        })
    }
}

/// A cluster and how its policies are to be read.
#[derive(Clone, Copy, Debug)]
pub struct Oracle<'a> {
    /// The objects.
    pub model: &'a Model,
    /// The settings.
    pub settings: &'a PolicySettings,
}

/// What one kind of policies says together.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    isolated: bool,
    deny: bool,
    /// A plain rule allows it.
    allow: bool,
    /// A rule with questions of DNS allows it.
    dns: bool,
    /// A rule with HTTP requests or names of servers allows it.
    inspect: bool,
}

impl<'a> Oracle<'a> {
    /// What happens to a flow.
    pub fn ask(&self, question: &Question<'a>) -> Answer {
        let enforced = self.evaluate(question, &|meta| !audited(meta));
        let complete = self.evaluate(question, &|_| true);
        Answer { outcome: enforced, audit: enforced != Outcome::Deny && complete == Outcome::Deny }
    }

    fn evaluate(&self, question: &Question<'a>, counts: &dyn Fn(&Meta) -> bool) -> Outcome {
        if self.settings.enforcement == Enforcement::Never {
            return Outcome::Allow;
        }
        let peer = self.peer(question);
        if let Some(decided) = tiers::decide(self, agent_core::model::tiers::Tier::Admin, question, &peer, counts) {
            return decided;
        }
        let mut said = Said { isolated: self.settings.enforcement == Enforcement::Always, ..Said::default() };
        kubernetes::add(self, question, &peer, counts, &mut said);
        cilium::add(self, question, &peer, counts, &mut said);
        // A node reaches its own pods.
        let own =
            peer.own_node && question.direction == Direction::Ingress && matches!(question.subject, Subject::Pod(_));
        said.allow |= own && said.isolated;
        if said.deny {
            return Outcome::Deny;
        }
        if said.dns {
            return Outcome::Redirect;
        }
        if said.allow {
            return Outcome::Allow;
        }
        if said.inspect {
            return Outcome::Redirect;
        }
        if said.isolated {
            return Outcome::Deny;
        }
        let baseline = tiers::decide(self, agent_core::model::tiers::Tier::Baseline, question, &peer, counts);
        baseline.unwrap_or(Outcome::Allow)
    }

    fn peer(&self, question: &Question<'a>) -> Peer<'a> {
        let pods = self.model.pods().values().filter(|pod| !pod.host_network);
        let pod = pods.into_iter().find(|pod| pod.addresses.contains(&question.peer));
        let node = self.model.nodes().iter().find(|node| node.addresses.contains(&question.peer));
        let own = match question.subject {
            Subject::Pod(pod) => pod.node.as_str(),
            Subject::Node(node) => node.name.as_str(),
        };
        Peer { address: question.peer, pod, node, own_node: node.is_some_and(|node| node.name == own) }
    }

    /// Whether a question about pods holds for one.
    fn holds(&self, question: &PodQuestion, pod: &Pod) -> bool {
        question.requirements.iter().all(|requirement| self.requirement(requirement, pod))
    }

    fn requirement(&self, requirement: &Requirement, pod: &Pod) -> bool {
        use agent_core::labels::Operator;
        use agent_core::model::LabelOf;
        let namespace_labels = &self.model.namespaces()[&pod.name.namespace];
        let value: Option<&str> = match &requirement.of {
            LabelOf::Pod(key) => pod.labels.get(key).map(String::as_str),
            LabelOf::Namespace => Some(&pod.name.namespace),
            LabelOf::NamespaceLabel(key) => namespace_labels.get(key).map(String::as_str),
            LabelOf::ServiceAccount => Some(pod.service_account.as_deref().unwrap_or("default")),
            LabelOf::Cluster => Some(&self.settings.cluster),
        };
        match (requirement.operator, value) {
            (Operator::In, Some(value)) => requirement.values.contains(value),
            (Operator::NotIn, Some(value)) => !requirement.values.contains(value),
            (Operator::Exists, found) => found.is_some(),
            (Operator::DoesNotExist, found) => found.is_none(),
            (Operator::In, None) => false,
            (Operator::NotIn, None) => true,
        }
    }

    /// Whether the flow's port is one of a protocol's. Names are those of the pod that receives.
    fn port(&self, question: &Question<'_>, peer: &Peer<'_>, protocol: u8, ports: &PortSelector) -> bool {
        if protocol != question.protocol {
            return false;
        }
        let receiver = match (question.direction, question.subject) {
            (Direction::Ingress, Subject::Pod(pod)) => Some(pod),
            (Direction::Ingress, Subject::Node(_)) => None,
            (Direction::Egress, _) => peer.pod,
        };
        match ports {
            PortSelector::All => true,
            PortSelector::Range(first, last) => *first <= question.port && question.port <= *last,
            PortSelector::Named(name) => receiver.is_some_and(|pod| {
                pod.ports.iter().any(|own| {
                    own.name.as_ref() == Some(name) && own.protocol.number() == protocol && own.port == question.port
                })
            }),
        }
    }
}

fn audited(meta: &Meta) -> bool {
    meta.annotations.get("policy.weir.dev/audit").map(String::as_str) == Some("true")
}
