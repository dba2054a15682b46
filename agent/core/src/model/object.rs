//! Cluster objects as the API writes them: what was read, nothing filled in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use super::cilium::{CidrGroup, CiliumPolicy};
use super::tiers::ClusterPolicy;
use crate::labels::{Labels, Selector};
use crate::prefix::Prefix;
use crate::yaml::Position;

/// What every object has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Namespace; empty for objects of the whole cluster.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: Labels,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Whether it is being deleted (`deletionTimestamp`).
    pub terminating: bool,
    /// Kind and name of the objects that made it (`ownerReferences`).
    pub owners: Vec<(String, String)>,
    /// Where the object starts.
    pub position: Position,
}

/// Namespace and name of an object. Orders by namespace, then name; prints as `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// Namespace; empty for objects of the whole cluster.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Name {
    /// From its parts.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

impl Meta {
    /// Namespace and name.
    pub fn full_name(&self) -> Name {
        Name::new(&self.namespace, &self.name)
    }
}

/// A protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// IANA number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// As the API writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A port by number or name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PortRef {
    /// Number.
    Number(u16),
    /// Name of a container's port.
    Name(String),
}

/// `v1` Node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeObject {
    /// Metadata.
    pub meta: Meta,
    /// `status.addresses` of type InternalIP, in order.
    pub internal: Vec<IpAddr>,
    /// `status.addresses` of type ExternalIP, in order.
    pub external: Vec<IpAddr>,
    /// `spec.podCIDRs` (or `spec.podCIDR`).
    pub pod_cidrs: Vec<Prefix>,
}

/// A port that a container declares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerPort {
    /// Name, if it has one.
    pub name: Option<String>,
    /// Number in the pod.
    pub port: u16,
    /// Number on the node, if it is to be reached there.
    pub host_port: Option<u16>,
    /// Protocol.
    pub protocol: Protocol,
}

/// `v1` Pod, or one that a workload made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodObject {
    /// Metadata.
    pub meta: Meta,
    /// What matters of `spec`.
    pub spec: PodSpec,
    /// `status.podIPs`, in order, with their places.
    pub addresses: Vec<(IpAddr, Position)>,
    /// Condition `Ready`; pods without the condition are ready.
    pub ready: bool,
    /// Phase `Succeeded` or `Failed`: it no longer has an address.
    pub finished: bool,
}

/// What matters of a `PodSpec`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSpec {
    /// `nodeName` and its place.
    pub node: Option<(String, Position)>,
    /// `hostNetwork`.
    pub host_network: bool,
    /// `serviceAccountName`.
    pub service_account: Option<String>,
    /// `hostname`.
    pub hostname: Option<String>,
    /// Ports of all containers, in order.
    pub ports: Vec<ContainerPort>,
}

/// Kinds of workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WorkloadKind {
    /// `apps/v1` Deployment.
    Deployment,
    /// `apps/v1` StatefulSet.
    StatefulSet,
    /// `apps/v1` DaemonSet: one pod per node.
    DaemonSet,
    /// `apps/v1` ReplicaSet.
    ReplicaSet,
    /// `batch/v1` Job: `parallelism` pods.
    Job,
}

/// Something that makes pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Metadata.
    pub meta: Meta,
    /// Kind.
    pub kind: WorkloadKind,
    /// Pods wanted; not used by a DaemonSet.
    pub replicas: u32,
    /// First ordinal of a StatefulSet's pods.
    pub first_ordinal: u32,
    /// Labels of the pods.
    pub labels: Labels,
    /// `spec.template.spec`.
    pub template: PodSpec,
}

/// `v1` Service: `spec.type`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceType {
    /// An address inside the cluster.
    #[default]
    ClusterIp,
    /// And a port on every node.
    NodePort,
    /// And an address outside.
    LoadBalancer,
    /// A DNS alias; no addresses.
    ExternalName,
}

/// `internalTrafficPolicy`, `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Endpoints of all nodes.
    #[default]
    Cluster,
    /// Endpoints of the node only.
    Local,
}

/// `trafficDistribution`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficDistribution {
    /// Endpoints of the zone first (`PreferSameZone`, `PreferClose`).
    SameZone,
    /// Endpoints of the node first.
    SameNode,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name; empty when the service has one port only.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port of the service.
    pub port: u16,
    /// Port of the pods.
    pub target: PortRef,
    /// Port of the nodes, if given.
    pub node_port: Option<u16>,
    /// Where the port stands.
    pub position: Position,
}

/// `v1` Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Metadata.
    pub meta: Meta,
    /// Type.
    pub kind: ServiceType,
    /// Whether `clusterIP` is `None`.
    pub headless: bool,
    /// `clusterIPs`, in order; filled in by the model where the input has none.
    pub cluster_addresses: Vec<IpAddr>,
    /// `externalIPs`.
    pub external_addresses: Vec<IpAddr>,
    /// `status.loadBalancer.ingress` addresses.
    pub balancer_addresses: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`.
    pub source_ranges: Vec<Prefix>,
    /// `externalName`.
    pub external_name: Option<String>,
    /// Families asked for with `ipFamilies`, IPv4 is true; in order.
    pub families: Vec<bool>,
    /// Whether `ipFamilyPolicy` asks for both families.
    pub dual_stack: bool,
    /// Ports, in order.
    pub ports: Vec<ServicePort>,
    /// Labels of the pods behind it; empty: endpoints are written by someone else.
    pub selector: Labels,
    /// `sessionAffinity: ClientIP`: for so many seconds.
    pub affinity_seconds: Option<u32>,
    /// `internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `healthCheckNodePort`.
    pub health_check_port: Option<u16>,
    /// `publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `trafficDistribution`.
    pub distribution: Option<TrafficDistribution>,
}

/// One port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlicePort {
    /// Name; the service's port of the same name uses it.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Number.
    pub port: u16,
}

/// One endpoint of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Address (of a slice's several addresses, all are interchangeable: the first).
    pub address: IpAddr,
    /// Takes new connections.
    pub ready: bool,
    /// Could take connections, also while terminating.
    pub serving: bool,
    /// Is being deleted.
    pub terminating: bool,
    /// Node that holds it.
    pub node: Option<String>,
    /// Zone that holds it.
    pub zone: Option<String>,
    /// Pod behind it (`targetRef`).
    pub pod: Option<Name>,
}

/// `discovery.k8s.io/v1` EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Metadata.
    pub meta: Meta,
    /// The service it belongs to (label `kubernetes.io/service-name`).
    pub service: Option<Name>,
    /// Ports.
    pub ports: Vec<SlicePort>,
    /// Endpoints, in order.
    pub endpoints: Vec<SliceEndpoint>,
}

/// `networking.k8s.io/v1` NetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Metadata.
    pub meta: Meta,
    /// `podSelector`: the pods it is about, in its namespace.
    pub subject: Selector,
    /// Whether it isolates its pods for packets to them (`policyTypes`, defaulted as the API does).
    pub isolates_ingress: bool,
    /// Whether it isolates its pods for packets from them.
    pub isolates_egress: bool,
    /// `ingress`; used only when it isolates ingress.
    pub ingress: Vec<PolicyRule>,
    /// `egress`; used only when it isolates egress.
    pub egress: Vec<PolicyRule>,
}

/// One rule: a packet matches when a peer and a port match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRule {
    /// Where the rule starts.
    pub position: Position,
    /// `from` or `to`; none means everybody.
    pub peers: Vec<PolicyPeer>,
    /// `ports`; none means every protocol and port.
    pub ports: Vec<PolicyPort>,
}

/// One item of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyPeer {
    /// Where it starts.
    pub position: Position,
    /// Whom it selects.
    pub selects: PeerSelector,
}

/// Whom a peer selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerSelector {
    /// Pods by labels.
    Pods {
        /// Their namespaces; `None`: the policy's own.
        namespaces: Option<Selector>,
        /// Their labels; `None`: all.
        pods: Option<Selector>,
    },
    /// Whoever has an address in the block.
    Block(IpBlock),
}

/// A prefix without some prefixes in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IpBlock {
    /// `cidr`.
    pub prefix: Prefix,
    /// `except`.
    pub except: BTreeSet<Prefix>,
}

impl IpBlock {
    /// Whether an address lies in the block.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.prefix.contains(address) && !self.except.iter().any(|hole| hole.contains(address))
    }
}

impl fmt::Display for IpBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.prefix)?;
        for (index, hole) in self.except.iter().enumerate() {
            write!(f, "{}{hole}", if index == 0 { " except " } else { ", " })?;
        }
        Ok(())
    }
}

/// One item of `ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyPort {
    /// Where it starts.
    pub position: Position,
    /// Protocol.
    pub protocol: Protocol,
    /// Which ports of it.
    pub ports: PortSelector,
}

/// Which ports of a protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortSelector {
    /// All.
    All,
    /// From the first to the last, both included.
    Range(u16, u16),
    /// The containers' ports of this name.
    Named(String),
}

/// Any object that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// `v1` Namespace.
    Namespace(Meta),
    /// `v1` Node.
    Node(NodeObject),
    /// `v1` Pod.
    Pod(PodObject),
    /// Something that makes pods.
    Workload(Workload),
    /// `v1` Service.
    Service(Service),
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice(EndpointSlice),
    /// `networking.k8s.io/v1` NetworkPolicy.
    NetworkPolicy(NetworkPolicy),
    /// `cilium.io/v2` CiliumNetworkPolicy or CiliumClusterwideNetworkPolicy.
    CiliumPolicy(CiliumPolicy),
    /// `cilium.io/v2` CiliumCIDRGroup.
    CidrGroup(CidrGroup),
    /// `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.
    ClusterPolicy(ClusterPolicy),
    /// A known kind that has no part in networking.
    Inert {
        /// Its kind.
        kind: &'static str,
        /// Metadata.
        meta: Meta,
    },
}

/// What makes an object the same object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Kind.
    pub kind: &'static str,
    /// Namespace and name.
    pub name: Name,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`", self.kind, self.name)
    }
}

impl Object {
    /// Metadata.
    pub fn meta(&self) -> &Meta {
        match self {
            Self::Namespace(meta) | Self::Inert { meta, .. } => meta,
            Self::Node(object) => &object.meta,
            Self::Pod(object) => &object.meta,
            Self::Workload(object) => &object.meta,
            Self::Service(object) => &object.meta,
            Self::EndpointSlice(object) => &object.meta,
            Self::NetworkPolicy(object) => &object.meta,
            Self::CiliumPolicy(object) => &object.meta,
            Self::CidrGroup(object) => &object.meta,
            Self::ClusterPolicy(object) => &object.meta,
        }
    }

    /// Kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Namespace(_) => "Namespace",
            Self::Node(_) => "Node",
            Self::Pod(_) => "Pod",
            Self::Workload(workload) => match workload.kind {
                WorkloadKind::Deployment => "Deployment",
                WorkloadKind::StatefulSet => "StatefulSet",
                WorkloadKind::DaemonSet => "DaemonSet",
                WorkloadKind::ReplicaSet => "ReplicaSet",
                WorkloadKind::Job => "Job",
            },
            Self::Service(_) => "Service",
            Self::EndpointSlice(_) => "EndpointSlice",
            Self::NetworkPolicy(_) => "NetworkPolicy",
            Self::CiliumPolicy(policy) if policy.meta.namespace.is_empty() => "CiliumClusterwideNetworkPolicy",
            Self::CiliumPolicy(_) => "CiliumNetworkPolicy",
            Self::CidrGroup(_) => "CiliumCIDRGroup",
            Self::ClusterPolicy(_) => "ClusterNetworkPolicy",
            Self::Inert { kind, .. } => kind,
        }
    }

    /// Kind, namespace and name.
    pub fn key(&self) -> ObjectKey {
        ObjectKey { kind: self.kind(), name: self.meta().full_name() }
    }
}
