//! The cluster that most of these checks run on, and who is who in it.

use std::net::IpAddr;

use agent_api::{Endpoint, Identity, Request};
use anyhow::{Context as _, Result, ensure};

use crate::place::Place;
use crate::world::World;

/// Two nodes, two pods on the first and one on the second; no policies.
pub const CLUSTER: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: left}
spec: {podCIDRs: [10.62.1.0/24, "fd62:0:0:1::/64"]}
status: {addresses: [{type: InternalIP, address: 172.30.0.11}, {type: InternalIP, address: "fd30::11"}]}
---
apiVersion: v1
kind: Node
metadata: {name: right}
spec: {podCIDRs: [10.62.2.0/24, "fd62:0:0:2::/64"]}
status: {addresses: [{type: InternalIP, address: 172.30.0.12}, {type: InternalIP, address: "fd30::12"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: near, labels: {app: near}}
spec: {nodeName: left, containers: [{name: c}]}
---
apiVersion: v1
kind: Pod
metadata: {name: beside, labels: {app: beside}}
spec: {nodeName: left, containers: [{name: c}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: far}}
spec: {nodeName: right, containers: [{name: c}]}
"#;

/// The same, with nodes that have only IPv6 addresses: tunnels are over IPv6.
pub const CLUSTER6: &str = r#"
apiVersion: v1
kind: Node
metadata: {name: left}
spec: {podCIDRs: [10.62.1.0/24, "fd62:0:0:1::/64"]}
status: {addresses: [{type: InternalIP, address: "fd30::11"}]}
---
apiVersion: v1
kind: Node
metadata: {name: right}
spec: {podCIDRs: [10.62.2.0/24, "fd62:0:0:2::/64"]}
status: {addresses: [{type: InternalIP, address: "fd30::12"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: near, labels: {app: near}}
spec: {nodeName: left, containers: [{name: c}]}
---
apiVersion: v1
kind: Pod
metadata: {name: beside, labels: {app: beside}}
spec: {nodeName: left, containers: [{name: c}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, labels: {app: far}}
spec: {nodeName: right, containers: [{name: c}]}
"#;

/// On the first node.
pub const NEAR: &str = "default/near";
/// On the first node too.
pub const BESIDE: &str = "default/beside";
/// On the second.
pub const FAR: &str = "default/far";

/// A pod, with what its node knows of it.
#[derive(Clone, Copy, Debug)]
pub struct Pod<'a> {
    /// `NAMESPACE/NAME`.
    pub name: &'static str,
    /// Its namespace; its device there is `eth0`.
    pub place: &'a Place,
    /// Its node's namespace.
    pub node: &'a Place,
    /// Its node's name.
    pub node_name: &'a str,
    /// Its address of the family that was asked for.
    pub address: IpAddr,
}

/// A pod by name, with its address of one family.
///
/// # Errors
/// No such pod.
pub fn pod<'a>(world: &'a World, name: &'static str, ipv6: bool) -> Result<Pod<'a>> {
    let node = world.model().pods().values().find(|pod| pod.name.to_string() == name).map(|pod| pod.node.as_str());
    let node_name = node.with_context(|| format!("no pod {name}"))?;
    let address = world.address(name, ipv6, 0)?.ip();
    Ok(Pod { name, place: world.pod(name)?, node: world.node(node_name)?, node_name, address })
}

/// What a node's agent knows of a pod.
///
/// # Errors
/// What the agent says.
pub fn endpoint(world: &World, pod: &Pod<'_>) -> Result<Endpoint> {
    world.agent(pod.node_name)?.ask(&Request::EndpointGet { endpoint: pod.name.to_owned() })
}

/// A pod's identity, as its node's list of identities says; its endpoint must have the same.
///
/// # Errors
/// What the agent says, or a contradiction in it.
pub fn identity(world: &World, pod: &Pod<'_>) -> Result<u32> {
    let all: Vec<Identity> = world.agent(pod.node_name)?.ask(&Request::IdentityList {})?;
    let app = pod.name.rsplit('/').next().unwrap_or_default();
    let mine = all.iter().find(|one| one.labels.iter().any(|label| label.ends_with(&format!("app={app}"))));
    let id = mine.with_context(|| format!("no identity of app={app} among {all:?}"))?.id;
    let of_endpoint = endpoint(world, pod)?.identities;
    ensure!(of_endpoint.iter().all(|one| *one == id), "{}: identity {id}, endpoint {of_endpoint:?}", pod.name);
    Ok(id)
}

/// The address of a node that tunnels lead to.
///
/// # Errors
/// No such node.
pub fn underlay(world: &World, node: &str) -> Result<IpAddr> {
    let spec = world.model().nodes().iter().find(|spec| spec.name == node);
    spec.and_then(|spec| spec.underlay()).with_context(|| format!("node {node} has no address for tunnels"))
}

/// A node's address of one family.
///
/// # Errors
/// It has none.
pub fn underlay_of(world: &World, node: &str, ipv6: bool) -> Result<IpAddr> {
    let spec = world.model().nodes().iter().find(|spec| spec.name == node);
    let found = spec.and_then(|spec| spec.addresses.iter().copied().find(|address| address.is_ipv6() == ipv6));
    found.with_context(|| format!("node {node} has no address of that family"))
}

/// Whether an address is a node's, by the clusters of these checks.
#[must_use]
pub fn is_node(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets().starts_with(&[172, 30]),
        IpAddr::V6(address) => address.segments().starts_with(&[0xfd30]),
    }
}
