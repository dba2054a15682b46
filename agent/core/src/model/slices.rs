//! Endpoint slices that the input leaves out, derived from services and pods as the cluster's controller does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::object::{EndpointSlice, Meta, Name, PortRef, Service, ServiceType, SliceEndpoint, SlicePort};
use super::read_service::SERVICE_NAME;
use super::{Node, Pod};
use crate::labels::Labels;

/// Label of a node that names its zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// Adds slices for every service that selects pods and has no slice.
///
/// Pods of one service may give a named port different numbers: then each set of numbers has a slice of its own.
pub(super) fn derive(
    services: &BTreeMap<Name, Service>,
    pods: &BTreeMap<Name, Pod>,
    nodes: &[Node],
    slices: &mut BTreeMap<Name, EndpointSlice>,
) {
    let have: BTreeSet<Name> = (slices.values()).filter_map(|slice| slice.service.clone()).collect();
    for (name, service) in services {
        if service.selector.is_empty() || service.kind == ServiceType::ExternalName || have.contains(name) {
            continue;
        }
        let mut groups: BTreeMap<(bool, Vec<SlicePort>), Vec<SliceEndpoint>> = BTreeMap::new();
        for pod in pods.values() {
            let selected = pod.name.namespace == name.namespace
                && (service.selector.iter()).all(|(key, value)| pod.labels.get(key) == Some(value));
            if !selected {
                continue;
            }
            let ports = ports_on(service, pod);
            if ports.is_empty() && !service.ports.is_empty() {
                continue;
            }
            for &address in &pod.addresses {
                groups
                    .entry((!address.is_ipv4(), ports.clone()))
                    .or_default()
                    .push(endpoint(service, pod, address, nodes));
            }
        }
        for (index, ((ipv6, ports), endpoints)) in groups.into_iter().enumerate() {
            let family = if ipv6 { "ipv6" } else { "ipv4" };
            let slice = format!("{}-{family}-{index}", name.name);
            slices.insert(
                Name::new(&name.namespace, &slice),
                EndpointSlice {
                    meta: Meta {
                        namespace: name.namespace.clone(),
                        name: slice,
                        labels: Labels::from([(SERVICE_NAME.to_owned(), name.name.clone())]),
                        annotations: BTreeMap::new(),
                        terminating: false,
                        owners: Vec::new(),
                        position: service.meta.position.clone(),
                    },
                    service: Some(name.clone()),
                    ports,
                    endpoints,
                },
            );
        }
    }
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
