//! Identities and endpoint numbers (reserved numbers as Cilium's, so that its tools and dissectors read weir's wire).

/// Security identity, host order. The low 24 bits travel as the VNI; numbers from 2^24 up are valid on one node only.
pub type Identity = u32;

/// Number of an endpoint, valid on its node only; 0 is no endpoint.
pub type EndpointId = u16;

/// The node itself, as an endpoint with policies; no pod has this number.
pub const HOST_ENDPOINT: EndpointId = 0xffff;

/// Unknown peer; in a policy key: any peer.
pub const UNKNOWN: Identity = 0;
/// The node the packet is on, and its processes.
pub const HOST: Identity = 1;
/// Everything outside the cluster.
pub const WORLD: Identity = 2;
/// Endpoints that weir does not manage.
pub const UNMANAGED: Identity = 3;
/// Health probes of the cluster.
pub const HEALTH: Identity = 4;
/// An endpoint whose labels are not known yet.
pub const INIT: Identity = 5;
/// Any other node of the cluster.
pub const REMOTE_NODE: Identity = 6;
/// The Kubernetes API server.
pub const KUBE_APISERVER: Identity = 7;
/// The cluster's ingress proxies.
pub const INGRESS: Identity = 8;
/// Outside, over IPv4 (dual-stack clusters; `WORLD` on the wire).
pub const WORLD_IPV4: Identity = 9;
/// Outside, over IPv6 (dual-stack clusters; `WORLD` on the wire).
pub const WORLD_IPV6: Identity = 10;
/// First identity that is allocated from labels.
pub const FIRST_ALLOCATED: Identity = 256;
/// Last identity that is allocated from labels in one cluster.
pub const LAST_ALLOCATED: Identity = 65_535;
/// First identity of the node-local scope (CIDRs): never on the wire.
pub const FIRST_LOCAL: Identity = 0x0100_0000;
