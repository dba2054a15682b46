//! Reads objects of the Kubernetes API from YAML: kinds, metadata, nodes, and what other readers share.
//!
//! Field names follow the published API of Kubernetes 1.36. Fields that cannot matter to a network are known by name
//! and accepted unread; all others are read or refused.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::object::{Meta, NodeObject, Object, ObjectKey, Protocol, WorkloadKind};
use super::{read_cilium, read_pod, read_policy, read_service, read_tiers};
use crate::input::{Field, Fields, InputError, InputErrors, Problem, Report, nearest};
use crate::labels::{Labels, is_dns_label, is_dns_subdomain, read_labels};
use crate::prefix::Prefix;
use crate::yaml::{self, Node, Position};

/// Kinds that are read: apiVersion, kind, whether they live in a namespace.
const KINDS: &[(&str, &str, bool)] = &[
    ("v1", "Namespace", false),
    ("v1", "Node", false),
    ("v1", "Pod", true),
    ("v1", "Service", true),
    ("apps/v1", "Deployment", true),
    ("apps/v1", "StatefulSet", true),
    ("apps/v1", "DaemonSet", true),
    ("apps/v1", "ReplicaSet", true),
    ("batch/v1", "Job", true),
    ("discovery.k8s.io/v1", "EndpointSlice", true),
    ("networking.k8s.io/v1", "NetworkPolicy", true),
    ("cilium.io/v2", "CiliumNetworkPolicy", true),
    ("cilium.io/v2", "CiliumClusterwideNetworkPolicy", false),
    ("cilium.io/v2", "CiliumCIDRGroup", false),
    ("cilium.io/v2alpha1", "CiliumCIDRGroup", false),
    ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy", false),
];

/// Kinds that have no part in who reaches whom: accepted, only their metadata is read.
const INERT: &[(&str, &str, bool)] = &[
    ("v1", "ConfigMap", true),
    ("v1", "LimitRange", true),
    ("v1", "PersistentVolume", false),
    ("v1", "PersistentVolumeClaim", true),
    ("v1", "ResourceQuota", true),
    ("v1", "Secret", true),
    ("v1", "ServiceAccount", true),
    ("autoscaling/v1", "HorizontalPodAutoscaler", true),
    ("autoscaling/v2", "HorizontalPodAutoscaler", true),
    ("networking.k8s.io/v1", "Ingress", true),
    ("networking.k8s.io/v1", "IngressClass", false),
    ("policy/v1", "PodDisruptionBudget", true),
    ("rbac.authorization.k8s.io/v1", "ClusterRole", false),
    ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", false),
    ("rbac.authorization.k8s.io/v1", "Role", true),
    ("rbac.authorization.k8s.io/v1", "RoleBinding", true),
    ("scheduling.k8s.io/v1", "PriorityClass", false),
    ("storage.k8s.io/v1", "StorageClass", false),
];

/// Reads every object of files (name, text), in order; the items of a `List` stand for themselves.
///
/// # Errors
/// Everything that is wrong with them; an object that occurs twice.
pub fn read_objects(files: &[(String, String)]) -> Result<Vec<Object>, InputErrors> {
    let mut report = Report::default();
    let mut documents = Vec::new();
    for (name, text) in files {
        match yaml::parse(name, text) {
            Ok(nodes) => documents.extend(nodes),
            Err(error) => report.add(error),
        }
    }
    let objects = read_documents(&documents, &mut report);
    report.finish(objects)
}

/// Reads objects from documents that are parsed already.
pub fn read_documents(documents: &[Node], report: &mut Report) -> Vec<Object> {
    let mut objects = Vec::new();
    for document in documents {
        read_document(&Field::root(document), &mut objects, report);
    }
    let mut seen: BTreeMap<ObjectKey, &Position> = BTreeMap::new();
    for object in &objects {
        let position = &object.meta().position;
        if let Some(first) = seen.insert(object.key(), position) {
            report.add(InputError::new(
                position.clone(),
                "metadata.name",
                Problem::Taken { what: object.key().to_string(), first: first.clone() },
            ));
        }
    }
    objects
}

fn read_document(field: &Field<'_>, objects: &mut Vec<Object>, report: &mut Report) {
    let Some(mut fields) = field.object(report) else {
        return;
    };
    let api_version = fields.require("apiVersion", report);
    let kind = fields.require("kind", report);
    let (Some(api_version), Some(kind)) =
        (api_version.and_then(|field| field.string(report)), kind.as_ref().and_then(|field| field.string(report)))
    else {
        return;
    };
    if api_version == "v1" && kind == "List" {
        fields.accept(&["metadata"]);
        if let Some(items) = fields.get("items") {
            for item in items.list(report) {
                read_document(&item, objects, report);
            }
        }
        fields.finish(report);
        return;
    }
    let known = |kinds: &'static [(&'static str, &'static str, bool)]| {
        kinds.iter().find(|(version, name, _)| *version == api_version && *name == kind)
    };
    if let Some(&(_, kind, namespaced)) = known(INERT) {
        if let Some(meta) = read_meta(&mut fields, namespaced, report) {
            objects.push(Object::Inert { kind, meta });
        }
        return;
    }
    let Some(&(_, kind, namespaced)) = known(KINDS) else {
        fields.wrong(
            "kind",
            report,
            Problem::UnknownKind { kind: kind.to_owned(), api_version: api_version.to_owned(), near: near_kind(kind) },
        );
        return;
    };
    let meta = read_meta(&mut fields, namespaced, report);
    let meta = meta.unwrap_or_else(|| Meta {
        namespace: String::new(),
        name: String::new(),
        labels: Labels::new(),
        annotations: BTreeMap::new(),
        terminating: false,
        owners: Vec::new(),
        position: field.position().clone(),
    });
    objects.extend(read_kind(kind, meta, &mut fields, report));
    fields.finish(report);
}

fn near_kind(kind: &str) -> Option<String> {
    let all = || KINDS.iter().chain(INERT);
    let near = nearest(kind, all().map(|(_, name, _)| *name))?;
    let (version, name, _) = all().find(|(_, name, _)| *name == near)?;
    Some(format!("{name} of {version}"))
}

fn read_kind(kind: &str, meta: Meta, fields: &mut Fields<'_>, report: &mut Report) -> Option<Object> {
    match kind {
        "Namespace" => {
            fields.accept(&["spec", "status"]);
            Some(Object::Namespace(meta))
        }
        "Node" => Some(Object::Node(read_node(meta, fields, report))),
        "Pod" => read_pod::pod(meta, fields, report).map(Object::Pod),
        "Deployment" => read_pod::workload(WorkloadKind::Deployment, meta, fields, report),
        "StatefulSet" => read_pod::workload(WorkloadKind::StatefulSet, meta, fields, report),
        "DaemonSet" => read_pod::workload(WorkloadKind::DaemonSet, meta, fields, report),
        "ReplicaSet" => read_pod::workload(WorkloadKind::ReplicaSet, meta, fields, report),
        "Job" => read_pod::workload(WorkloadKind::Job, meta, fields, report),
        "Service" => read_service::service(meta, fields, report).map(Object::Service),
        "EndpointSlice" => read_service::endpoint_slice(meta, fields, report).map(Object::EndpointSlice),
        "NetworkPolicy" => read_policy::network_policy(meta, fields, report).map(Object::NetworkPolicy),
        "CiliumNetworkPolicy" | "CiliumClusterwideNetworkPolicy" => {
            Some(Object::CiliumPolicy(read_cilium::policy(meta, fields, report)))
        }
        "CiliumCIDRGroup" => read_cilium::cidr_group(meta, fields, report).map(Object::CidrGroup),
        "ClusterNetworkPolicy" => read_tiers::policy(meta, fields, report).map(Object::ClusterPolicy),
        _ => None,
    }
}

pub(super) const META_UNREAD: &[&str] = &[
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "finalizers",
    "generation",
    "managedFields",
    "resourceVersion",
    "selfLink",
    "uid",
];

fn read_meta(fields: &mut Fields<'_>, namespaced: bool, report: &mut Report) -> Option<Meta> {
    let position = fields.position().clone();
    let mut meta = fields.require("metadata", report)?.object(report)?;
    meta.accept(META_UNREAD);
    let name_field = meta.get("name");
    if name_field.is_none() {
        if meta.get("generateName").is_some() {
            let why = "an object from a file needs a `name` of its own";
            meta.wrong("generateName", report, Problem::Unsupported { why });
        } else {
            meta.wrong("name", report, Problem::Missing);
        }
    } else {
        meta.accept(&["generateName"]);
    }
    let name = name_field.and_then(|field| {
        let name = field.string(report)?;
        if !is_dns_subdomain(name) {
            field.invalid(
                report,
                "a name has lower-case letters, digits, `-` and `.`, and begins and ends with a letter or digit",
            );
        }
        Some(name.to_owned())
    });
    let namespace = match meta.get("namespace") {
        Some(field) if !namespaced => {
            let why = "objects of this kind belong to the whole cluster";
            field.wrong(report, Problem::Unsupported { why });
            None
        }
        Some(field) => field.string(report).map(|namespace| {
            if !is_dns_label(namespace) {
                field.invalid(report, "a namespace's name has at most 63 lower-case letters, digits and `-`, and begins and ends with a letter or digit");
            }
            namespace.to_owned()
        }),
        None if namespaced => Some("default".to_owned()),
        None => None,
    };
    let labels = meta.get("labels").map(|field| read_labels(&field, report)).unwrap_or_default();
    let mut annotations = BTreeMap::new();
    if let Some(field) = meta.get("annotations") {
        for (key, _, value) in field.entries(report) {
            if let Some(text) = value.string(report) {
                annotations.insert(key.to_owned(), text.to_owned());
            }
        }
    }
    let terminating = meta.get("deletionTimestamp").is_some();
    let mut owners = Vec::new();
    if let Some(list) = meta.get("ownerReferences") {
        for item in list.list(report) {
            owners.extend(read_owner(&item, report));
        }
    }
    meta.finish(report);
    Some(Meta {
        namespace: namespace.unwrap_or_default(),
        name: name?,
        labels,
        annotations,
        terminating,
        owners,
        position,
    })
}

fn read_owner(item: &Field<'_>, report: &mut Report) -> Option<(String, String)> {
    let mut fields = item.object(report)?;
    fields.accept(&["apiVersion", "blockOwnerDeletion", "controller", "uid"]);
    let kind = fields.require("kind", report).and_then(|field| field.string(report));
    let name = fields.require("name", report).and_then(|field| field.string(report));
    fields.finish(report);
    Some((kind?.to_owned(), name?.to_owned()))
}

const MAPPED: &str = "an IPv4 address is written as such, without ::ffff:";

fn is_mapped(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.to_ipv4_mapped().is_some())
}

/// Reads an address.
pub(super) fn read_address(field: &Field<'_>, report: &mut Report) -> Option<IpAddr> {
    let address: Option<IpAddr> = field.string(report)?.parse().ok();
    match address {
        None => field.invalid(report, "must be an address, as 10.9.8.7 or 2001:db8::7"),
        Some(address) if is_mapped(address) => field.invalid(report, MAPPED),
        Some(_) => {}
    }
    address
}

/// Reads a prefix.
pub(super) fn read_prefix(field: &Field<'_>, report: &mut Report) -> Option<Prefix> {
    match field.string(report)?.parse::<Prefix>() {
        Ok(prefix) => {
            if is_mapped(prefix.address()) {
                field.invalid(report, MAPPED);
            }
            Some(prefix)
        }
        Err(error) => {
            field.invalid(report, error.to_string());
            None
        }
    }
}

/// Reads a prefix; an address stands for itself alone.
pub(super) fn read_prefix_or_address(field: &Field<'_>, report: &mut Report) -> Option<Prefix> {
    if field.node.text().is_some_and(|text| text.parse::<IpAddr>().is_ok()) {
        return read_address(field, report).map(Prefix::host);
    }
    read_prefix(field, report)
}

/// Reads one of several words.
pub(super) fn word<T: Copy>(field: &Field<'_>, words: &[(&str, T)], report: &mut Report) -> Option<T> {
    let text = field.string(report)?;
    let found = words.iter().find(|(name, _)| *name == text);
    if found.is_none() {
        let names: Vec<&str> = words.iter().map(|(name, _)| *name).collect();
        field.invalid(report, format!("must be one of {}", names.join(", ")));
    }
    found.map(|(_, value)| *value)
}

/// Reads a protocol; TCP when the field is absent.
pub(super) fn read_protocol(fields: &mut Fields<'_>, report: &mut Report) -> Option<Protocol> {
    let Some(field) = fields.get("protocol") else {
        return Some(Protocol::Tcp);
    };
    let text = field.string(report)?;
    let protocol = Protocol::ALL.into_iter().find(|p| p.name() == text);
    if protocol.is_none() {
        field.invalid(report, "must be TCP, UDP or SCTP");
    }
    protocol
}

fn read_node(meta: Meta, fields: &mut Fields<'_>, report: &mut Report) -> NodeObject {
    let mut node = NodeObject { meta, internal: Vec::new(), external: Vec::new(), pod_cidrs: Vec::new() };
    if let Some(mut spec) = fields.get("spec").and_then(|field| field.object(report)) {
        spec.accept(&["configSource", "externalID", "providerID", "taints", "unschedulable"]);
        let one = spec.get("podCIDR");
        let list = spec.get("podCIDRs");
        let one = one.and_then(|field| read_prefix(&field, report));
        node.pod_cidrs = match list {
            Some(field) => field.list(report).iter().filter_map(|item| read_prefix(item, report)).collect(),
            None => one.into_iter().collect(),
        };
        for ipv4 in [true, false] {
            if node.pod_cidrs.iter().filter(|prefix| prefix.is_ipv4() == ipv4).count() > 1 {
                let text = "has at most one prefix of a family".to_owned();
                spec.wrong("podCIDRs", report, Problem::Conflict(text));
            }
        }
        if let (Some(one), Some(first)) = (one, node.pod_cidrs.first())
            && one != *first
        {
            let text = "must be the first of podCIDRs".to_owned();
            spec.wrong("podCIDR", report, Problem::Conflict(text));
        }
        spec.finish(report);
    }
    if let Some(mut status) = fields.get("status").and_then(|field| field.object(report)) {
        status.accept(&[
            "allocatable",
            "capacity",
            "conditions",
            "config",
            "daemonEndpoints",
            "declaredFeatures",
            "features",
            "images",
            "nodeInfo",
            "phase",
            "runtimeHandlers",
            "volumesAttached",
            "volumesInUse",
        ]);
        if let Some(field) = status.get("addresses") {
            for item in field.list(report) {
                read_node_address(&item, &mut node, report);
            }
        }
        status.finish(report);
    }
    node
}

fn read_node_address(item: &Field<'_>, node: &mut NodeObject, report: &mut Report) {
    let Some(mut fields) = item.object(report) else {
        return;
    };
    let kind = fields.require("type", report);
    let address = fields.require("address", report);
    if let (Some(kind), Some(address)) = (kind, address) {
        match kind.string(report) {
            Some("InternalIP") => node.internal.extend(read_address(&address, report)),
            Some("ExternalIP") => node.external.extend(read_address(&address, report)),
            Some("Hostname" | "InternalDNS" | "ExternalDNS") | None => {}
            Some(_) => kind.invalid(report, "must be InternalIP, ExternalIP, Hostname, InternalDNS or ExternalDNS"),
        }
    }
    fields.finish(report);
}
