//! Endpoint slices that the input leaves out, derived from services and pods as the cluster's controller does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::object::{EndpointSlice, Meta, Name, PortRef, Service, ServiceType, SliceEndpoint, SlicePort};
use super::read_service::SERVICE_NAME;
use super::resolve::Resolved;
use super::{Node, Pod};
use crate::labels::Labels;

/// Label of a node that names its zone.
pub(super) const ZONE: &str = "topology.kubernetes.io/zone";

/// Adds slices for every service that selects pods and has no slice. A slice that was read stays, whatever its name.
pub(super) fn derive_all(resolved: &mut Resolved) {
    let written = resolved.slices.clone();
    let have: BTreeSet<Name> = resolved.slices.values().filter_map(|slice| slice.service.clone()).collect();
    let all = resolved.services.clone();
    for (name, service) in all.iter().filter(|(name, _)| !have.contains(name)) {
        let slices = derive(service, resolved);
        let names = slices.iter().map(|slice| slice.meta.full_name()).collect();
        let slices = slices.into_iter().map(|slice| (slice.meta.full_name(), slice));
        resolved.slices.extend(slices.filter(|(name, _)| !written.contains_key(name)));
        resolved.books.derived.insert(name.clone(), names);
    }
}

/// Whether a service selects pods with these labels.
pub(super) fn selects(service: &Service, labels: &Labels) -> bool {
    !service.selector.is_empty() && service.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Slices of a service that selects pods.
///
/// Pods of one service may give a named port different numbers: then each set of numbers has a slice of its own.
pub(super) fn derive(service: &Service, resolved: &Resolved) -> Vec<EndpointSlice> {
    let name = service.meta.full_name();
    if service.kind == ServiceType::ExternalName || service.selector.is_empty() {
        return Vec::new();
    }
    let mut groups: BTreeMap<(bool, Vec<SlicePort>), Vec<SliceEndpoint>> = BTreeMap::new();
    for pod in resolved.pods_in(&name.namespace).filter(|pod| selects(service, &pod.labels)) {
        let ports = ports_on(service, pod);
        if ports.is_empty() && !service.ports.is_empty() {
            continue;
        }
        for &address in &pod.addresses {
            let group = groups.entry((!address.is_ipv4(), ports.clone())).or_default();
            group.push(endpoint(service, pod, address, &resolved.nodes));
        }
    }
    let slice = |(index, ((ipv6, ports), endpoints))| {
        let family = if ipv6 { "ipv6" } else { "ipv4" };
        EndpointSlice {
            meta: Meta {
                namespace: name.namespace.clone(),
                name: format!("{}-{family}-{index}", name.name),
                labels: Labels::from([(SERVICE_NAME.to_owned(), name.name.clone())]),
                annotations: BTreeMap::new(),
                terminating: false,
                owners: Vec::new(),
                position: service.meta.position.clone(),
            },
            service: Some(name.clone()),
            ports,
            endpoints,
        }
    };
    groups.into_iter().enumerate().map(slice).collect()
}

fn ports_on(service: &Service, pod: &Pod) -> Vec<SlicePort> {
    let mut ports = Vec::new();
    for port in &service.ports {
        let number = match &port.target {
            PortRef::Number(number) => Some(*number),
            PortRef::Name(name) => {
                pod.ports.iter().find(|p| p.protocol == port.protocol && p.name.as_ref() == Some(name)).map(|p| p.port)
            }
        };
        ports.extend(number.map(|number| SlicePort { name: port.name.clone(), protocol: port.protocol, port: number }));
    }
    ports
}

fn endpoint(service: &Service, pod: &Pod, address: IpAddr, nodes: &[Node]) -> SliceEndpoint {
    let node = nodes.iter().find(|node| node.name == pod.node);
    SliceEndpoint {
        address,
        ready: service.publish_not_ready || (pod.ready && !pod.terminating),
        serving: pod.ready,
        terminating: pod.terminating,
        node: Some(pod.node.clone()),
        zone: node.and_then(|node| node.labels.get(ZONE).cloned()),
        pod: Some(pod.name.clone()),
    }
}
