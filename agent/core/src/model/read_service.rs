//! Reads `v1` Service and `discovery.k8s.io/v1` EndpointSlice.

use super::object::{
    EndpointSlice, Meta, Name, PortRef, Service, ServicePort, ServiceType, SliceEndpoint, SlicePort,
    TrafficDistribution, TrafficPolicy,
};
use super::read::{read_address, read_prefix, read_protocol, word};
use crate::input::{Field, Fields, Problem, Report};
use crate::labels::{is_port_name, read_labels};

/// Label of a slice that names its service.
pub(super) const SERVICE_NAME: &str = "kubernetes.io/service-name";

const TRAFFIC_POLICIES: &[(&str, TrafficPolicy)] =
    &[("Cluster", TrafficPolicy::Cluster), ("Local", TrafficPolicy::Local)];

pub(super) fn service(meta: Meta, fields: &mut Fields<'_>, report: &mut Report) -> Option<Service> {
    let mut service = Service {
        meta,
        kind: ServiceType::default(),
        headless: false,
        cluster_addresses: Vec::new(),
        external_addresses: Vec::new(),
        balancer_addresses: Vec::new(),
        source_ranges: Vec::new(),
        external_name: None,
        families: Vec::new(),
        dual_stack: false,
        ports: Vec::new(),
        selector: crate::labels::Labels::new(),
        affinity_seconds: None,
        internal_policy: TrafficPolicy::default(),
        external_policy: TrafficPolicy::default(),
        health_check_port: None,
        publish_not_ready: false,
        distribution: None,
    };
    if let Some(field) = fields.get("status") {
        status(&field, &mut service, report);
    }
    let mut spec = fields.require("spec", report)?.object(report)?;
    spec.accept(&["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    if let Some(field) = spec.get("type") {
        let words = [
            ("ClusterIP", ServiceType::ClusterIp),
            ("NodePort", ServiceType::NodePort),
            ("LoadBalancer", ServiceType::LoadBalancer),
            ("ExternalName", ServiceType::ExternalName),
        ];
        service.kind = word(&field, &words, report).unwrap_or_default();
    }
    addresses(&mut spec, &mut service, report);
    policies(&mut spec, &mut service, report);
    if let Some(field) = spec.get("selector") {
        service.selector = read_labels(&field, report);
    }
    if let Some(list) = spec.get("ports") {
        let items = list.list(report);
        for item in &items {
            let port = port(item, items.len() > 1, report);
            service.ports.extend(port);
        }
        for (index, port) in service.ports.iter().enumerate() {
            let same = |other: &&ServicePort| {
                other.name == port.name || (other.port, other.protocol) == (port.port, port.protocol)
            };
            if let Some(first) = service.ports.iter().take(index).find(same) {
                let what = format!("port `{}` ({}/{})", port.name, port.port, port.protocol);
                let path = format!("spec.ports[{index}]");
                report.add(crate::input::InputError::new(
                    port.position.clone(),
                    &path,
                    Problem::Taken { what, first: first.position.clone() },
                ));
            }
        }
    }
    if service.ports.is_empty() && !service.headless && service.kind != ServiceType::ExternalName {
        spec.wrong("ports", report, Problem::Missing);
    }
    spec.finish(report);
    Some(service)
}

fn addresses(spec: &mut Fields<'_>, service: &mut Service, report: &mut Report) {
    let one = spec.get("clusterIP");
    let list = spec.get("clusterIPs");
    let mut items: Vec<Field<'_>> = list.map(|list| list.list(report)).unwrap_or_default();
    if items.is_empty() {
        items.extend(one);
    }
    for item in items {
        match item.string(report) {
            Some("None") => service.headless = true,
            Some("") | None => {}
            Some(_) => service.cluster_addresses.extend(read_address(&item, report)),
        }
    }
    if let Some(list) = spec.get("externalIPs") {
        for item in list.list(report) {
            service.external_addresses.extend(read_address(&item, report));
        }
    }
    if let Some(field) = spec.get("loadBalancerIP")
        && let Some(address) = read_address(&field, report)
        && !service.balancer_addresses.contains(&address)
    {
        service.balancer_addresses.push(address);
    }
    if let Some(list) = spec.get("loadBalancerSourceRanges") {
        for item in list.list(report) {
            service.source_ranges.extend(read_prefix(&item, report));
        }
    }
    service.external_name = spec.get("externalName").and_then(|field| field.string(report)).map(str::to_owned);
    if service.kind == ServiceType::ExternalName && service.external_name.is_none() {
        spec.wrong("externalName", report, Problem::Missing);
    }
    if let Some(list) = spec.get("ipFamilies") {
        for item in list.list(report) {
            let family = word(&item, &[("IPv4", true), ("IPv6", false)], report);
            service.families.extend(family);
        }
    }
    if let Some(field) = spec.get("ipFamilyPolicy") {
        let words = [("SingleStack", false), ("PreferDualStack", true), ("RequireDualStack", true)];
        service.dual_stack = word(&field, &words, report).unwrap_or_default();
    }
}

fn policies(spec: &mut Fields<'_>, service: &mut Service, report: &mut Report) {
    let seconds = spec.get("sessionAffinityConfig").and_then(|field| {
        let mut config = field.object(report)?;
        let client = config.get("clientIP").and_then(|field| field.object(report));
        let seconds = client.and_then(|mut client| {
            let field = client.get("timeoutSeconds");
            client.finish(report);
            field?.integer(report, 1..=86_400)
        });
        config.finish(report);
        u32::try_from(seconds?).ok()
    });
    if let Some(field) = spec.get("sessionAffinity")
        && word(&field, &[("None", false), ("ClientIP", true)], report) == Some(true)
    {
        service.affinity_seconds = Some(seconds.unwrap_or(10_800));
    }
    if let Some(field) = spec.get("internalTrafficPolicy") {
        service.internal_policy = word(&field, TRAFFIC_POLICIES, report).unwrap_or_default();
    }
    if let Some(field) = spec.get("externalTrafficPolicy") {
        service.external_policy = word(&field, TRAFFIC_POLICIES, report).unwrap_or_default();
    }
    service.health_check_port = spec.get("healthCheckNodePort").and_then(|field| field.port(report));
    service.publish_not_ready =
        spec.get("publishNotReadyAddresses").and_then(|field| field.boolean(report)).unwrap_or(false);
    if let Some(field) = spec.get("trafficDistribution") {
        let words = [
            ("PreferClose", TrafficDistribution::SameZone),
            ("PreferSameZone", TrafficDistribution::SameZone),
            ("PreferSameNode", TrafficDistribution::SameNode),
        ];
        service.distribution = word(&field, &words, report);
    }
}

fn port(item: &Field<'_>, needs_name: bool, report: &mut Report) -> Option<ServicePort> {
    let mut fields = item.object(report)?;
    fields.accept(&["appProtocol"]);
    let name = fields.get("name");
    if needs_name && name.is_none() {
        fields.wrong("name", report, Problem::Missing);
    }
    let name = name.and_then(|field| field.string(report)).unwrap_or("");
    let protocol = read_protocol(&mut fields, report);
    let number = fields.require("port", report).and_then(|field| field.port(report));
    let target = match fields.get("targetPort") {
        None => number.map(PortRef::Number),
        Some(field) if field.is_plain_number() => field.port(report).map(PortRef::Number),
        Some(field) => field.string(report).and_then(|text| {
            if !is_port_name(text) {
                field.invalid(report, "must be a number (without quotes) or a port's name");
                return None;
            }
            Some(PortRef::Name(text.to_owned()))
        }),
    };
    let node_port = fields.get("nodePort").and_then(|field| field.port(report));
    fields.finish(report);
    Some(ServicePort {
        name: name.to_owned(),
        protocol: protocol?,
        port: number?,
        target: target?,
        node_port,
        position: item.position().clone(),
    })
}

fn status(field: &Field<'_>, service: &mut Service, report: &mut Report) {
    let Some(mut status) = field.object(report) else {
        return;
    };
    status.accept(&["conditions"]);
    if let Some(mut balancer) = status.get("loadBalancer").and_then(|field| field.object(report)) {
        if let Some(list) = balancer.get("ingress") {
            for item in list.list(report) {
                let Some(mut fields) = item.object(report) else {
                    continue;
                };
                fields.accept(&["hostname", "ipMode", "ports"]);
                if let Some(field) = fields.get("ip") {
                    service.balancer_addresses.extend(read_address(&field, report));
                }
                fields.finish(report);
            }
        }
        balancer.finish(report);
    }
    status.finish(report);
}

pub(super) fn endpoint_slice(meta: Meta, fields: &mut Fields<'_>, report: &mut Report) -> Option<EndpointSlice> {
    let service = meta.labels.get(SERVICE_NAME).map(|name| Name::new(&meta.namespace, name));
    let mut slice = EndpointSlice { meta, service, ports: Vec::new(), endpoints: Vec::new() };
    let family = fields.require("addressType", report).and_then(|field| {
        let words = [("IPv4", Some(true)), ("IPv6", Some(false)), ("FQDN", None)];
        word(&field, &words, report)
    });
    if let Some(list) = fields.get("ports") {
        for item in list.list(report) {
            slice.ports.extend(slice_port(&item, report));
        }
    }
    let endpoints = fields.get("endpoints");
    for item in endpoints.map(|list| list.list(report)).unwrap_or_default() {
        let namespace = slice.meta.namespace.clone();
        let endpoint = slice_endpoint(&item, family, &namespace, report);
        slice.endpoints.extend(endpoint);
    }
    Some(slice)
}

fn slice_port(item: &Field<'_>, report: &mut Report) -> Option<SlicePort> {
    let mut fields = item.object(report)?;
    fields.accept(&["appProtocol"]);
    let name = fields.get("name").and_then(|field| field.string(report));
    let protocol = read_protocol(&mut fields, report);
    let port = fields.get("port").and_then(|field| field.port(report));
    fields.finish(report);
    Some(SlicePort { name: name.unwrap_or("").to_owned(), protocol: protocol?, port: port? })
}

/// `family`: IPv4 is `Some(Some(true))`, a slice of names `Some(None)`, unknown `None`.
fn slice_endpoint(
    item: &Field<'_>,
    family: Option<Option<bool>>,
    namespace: &str,
    report: &mut Report,
) -> Option<SliceEndpoint> {
    let mut fields = item.object(report)?;
    fields.accept(&["deprecatedTopology", "hints", "hostname"]);
    let mut address = None;
    if let Some(list) = fields.require("addresses", report)
        && let Some(first) = list.list(report).first()
        && let Some(Some(ipv4)) = family
    {
        address = read_address(first, report);
        if address.is_some_and(|address| address.is_ipv4() != ipv4) {
            first.invalid(report, "must be of the slice's addressType");
        }
    }
    let mut ready = None;
    let mut serving = None;
    let mut terminating = None;
    if let Some(mut conditions) = fields.get("conditions").and_then(|field| field.object(report)) {
        let mut read = |name| conditions.get(name).and_then(|field| field.boolean(report));
        ready = read("ready");
        serving = read("serving");
        terminating = read("terminating");
        conditions.finish(report);
    }
    let node = fields.get("nodeName").and_then(|field| field.string(report));
    let zone = fields.get("zone").and_then(|field| field.string(report));
    let pod = fields.get("targetRef").and_then(|field| {
        let mut target = field.object(report)?;
        target.accept(&["apiVersion", "fieldPath", "resourceVersion", "uid"]);
        let kind = target.get("kind").and_then(|field| field.string(report));
        let name = target.get("name").and_then(|field| field.string(report));
        let within = target.get("namespace").and_then(|field| field.string(report));
        target.finish(report);
        (kind == Some("Pod")).then(|| Name::new(within.unwrap_or(namespace), name.unwrap_or("")))
    });
    fields.finish(report);
    let ready = ready.unwrap_or(true);
    Some(SliceEndpoint {
        address: address?,
        ready,
        serving: serving.unwrap_or(ready),
        terminating: terminating.unwrap_or(false),
        node: node.map(str::to_owned),
        zone: zone.map(str::to_owned),
        pod,
    })
}
