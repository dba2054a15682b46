//! Cilium's policies as the API writes them: `cilium.io/v2` CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy and
//! CiliumCIDRGroup.

use std::collections::BTreeSet;

use super::names::NamePattern;
use super::object::{IpBlock, Meta, Name, PortSelector};
use super::question::{Entity, PodQuestion};
use crate::labels::{Labels, Selector};
use crate::prefix::Prefix;
use crate::yaml::Position;

/// A CiliumNetworkPolicy, or a CiliumClusterwideNetworkPolicy (without a namespace).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CiliumPolicy {
    /// Metadata.
    pub meta: Meta,
    /// `spec`, then `specs`.
    pub specs: Vec<CiliumSpec>,
}

/// One `spec`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CiliumSpec {
    /// Index in `specs`; `None`: `spec`.
    pub index: Option<usize>,
    /// Where it starts.
    pub position: Position,
    /// Whom it is about.
    pub subject: CiliumSubject,
    /// Whether its subjects are closed for what no rule allows, for packets to them.
    pub isolates_ingress: bool,
    /// Whether its subjects are closed for what no rule allows, for packets from them.
    pub isolates_egress: bool,
    /// `ingress`.
    pub ingress: Vec<CiliumRule>,
    /// `ingressDeny`.
    pub ingress_deny: Vec<CiliumRule>,
    /// `egress`.
    pub egress: Vec<CiliumRule>,
    /// `egressDeny`.
    pub egress_deny: Vec<CiliumRule>,
    /// `log.value`.
    pub log: Option<String>,
}

/// Whom a policy is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CiliumSubject {
    /// `endpointSelector`.
    Pods(PodQuestion),
    /// `nodeSelector`: the nodes themselves.
    Nodes(Selector),
}

/// One rule: a packet matches when a peer and a port match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CiliumRule {
    /// Where it starts.
    pub position: Position,
    /// All items of `fromEndpoints`, `fromCIDR` and the like; `None`: no such list is there, and everybody is meant.
    pub peers: Option<Vec<CiliumPeer>>,
    /// All items of `toPorts` and `icmps`; none: every protocol.
    pub ports: Vec<CiliumPort>,
}

impl CiliumRule {
    /// A rule `{}` matches nothing; it only closes its subjects.
    pub fn is_empty(&self) -> bool {
        self.peers.is_none() && self.ports.is_empty()
    }
}

/// One item of a list of peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CiliumPeer {
    /// Where it starts.
    pub position: Position,
    /// Whom it selects.
    pub selects: CiliumPeerSelector,
}

/// Whom a peer selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CiliumPeerSelector {
    /// Pods.
    Pods(PodQuestion),
    /// Somebody with a fixed name.
    Entity(Entity),
    /// Addresses outside the cluster.
    Cidr(IpBlock),
    /// Addresses outside the cluster: those of groups.
    Groups {
        /// The groups.
        groups: GroupRef,
        /// But these.
        except: BTreeSet<Prefix>,
    },
    /// Nodes by their labels.
    Nodes(Selector),
    /// What is behind services.
    Services(ServiceRef),
    /// Addresses that names had in answers of DNS.
    Names(NamePattern),
}

/// CIDR groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GroupRef {
    /// `cidrGroupRef`.
    Name(String),
    /// `cidrGroupSelector`.
    Selector(Selector),
}

/// Services.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceRef {
    /// `k8sService`.
    Name(Name),
    /// `k8sServiceSelector`.
    Selector {
        /// Their labels.
        labels: Selector,
        /// Their namespace; `None`: all.
        namespace: Option<String>,
    },
}

/// Ports of one protocol, or a type of ICMP (as its port).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CiliumPort {
    /// Where it is written.
    pub position: Position,
    /// Index of the `toPorts` item (or `icmps` field) that it belongs to.
    pub item: usize,
    /// IANA numbers: several for `ANY`.
    pub protocols: Vec<u8>,
    /// Which ports.
    pub ports: PortSelector,
    /// What a proxy has to look at.
    pub inspect: Option<Inspect>,
}

/// What a proxy looks at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inspect {
    /// HTTP requests: one of them must match.
    Http(Vec<HttpRule>),
    /// DNS questions: one of the patterns must match.
    Dns(Vec<NamePattern>),
    /// The server name of a TLS handshake: one of the patterns must match.
    Tls(Vec<NamePattern>),
}

/// One HTTP rule: every part must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpRule {
    /// Regular expression for the whole path.
    pub path: Option<String>,
    /// Regular expression for the whole method.
    pub method: Option<String>,
    /// Regular expression for the whole host, in lower case.
    pub host: Option<String>,
    /// Headers that must be there: name and, if it matters, value.
    pub headers: Vec<(String, Option<String>)>,
}

/// A CiliumCIDRGroup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CidrGroup {
    /// Metadata.
    pub meta: Meta,
    /// `externalCIDRs`.
    pub prefixes: Vec<Prefix>,
}

impl GroupRef {
    /// Whether it means a group.
    pub fn selects(&self, name: &str, labels: &Labels) -> bool {
        match self {
            Self::Name(own) => own == name,
            Self::Selector(selector) => selector.matches(labels),
        }
    }
}
