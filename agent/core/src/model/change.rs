//! A change of objects, worked out without a look at what it leaves alone.
//!
//! Invariant: the result is that of [`resolve`](super::resolve::resolve) with all objects and earlier placements. Where a
//! change reaches further than what is handled here (workloads, nodes that go, addresses that are taken, anything that is
//! wrong), [`apply`] says so and everything is resolved anew.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::expand::owners;
use super::object::{Name, Object, ObjectKey, PodObject};
use super::objects::{Changed, Objects};
use super::resolve::{FIRST_POD, Holder, Resolved, cluster_addresses, keeps, labels_of, next_free, own_addresses};
use super::slices::{self, ZONE};
use super::{Node, Pod, Settings, nodes};
use crate::input::Report;
use crate::labels::Labels;

const WORKLOADS: [&str; 5] = ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"];

/// What a change has touched.
#[derive(Default)]
struct Touched {
    namespaces: BTreeSet<String>,
    services: BTreeSet<Name>,
}

/// The cluster after a change; `None`: it has to be resolved anew. `objects` are those after the change.
pub(super) fn apply(before: &Resolved, objects: &Objects, changes: &[Changed], settings: Settings) -> Option<Resolved> {
    let mut resolved = before.clone();
    let mut touched = Touched::default();
    let (mut with_nodes, mut with_services) = (false, false);
    let mut pods: Vec<(Option<&PodObject>, Option<&PodObject>)> = Vec::new();
    for change in changes {
        count(change, &mut resolved, &mut touched);
        match change.new.as_deref().or(change.old.as_deref())? {
            Object::Workload(_) => return None,
            Object::Node(_) => with_nodes = true,
            Object::Pod(_) => pods.push((pod_of(change.old.as_deref()), pod_of(change.new.as_deref()))),
            Object::Service(_) => with_services = true,
            Object::EndpointSlice(_) => put_slice(change, &mut resolved, &mut touched),
            Object::NetworkPolicy(_) | Object::CiliumPolicy(_) | Object::ClusterPolicy(_) | Object::CidrGroup(_) => {
                match (&change.old, &change.new) {
                    (_, Some(new)) => resolved.put_policy(new),
                    (Some(old), None) => resolved.remove_policy(old),
                    (None, None) => {}
                }
            }
            Object::Namespace(_) | Object::Inert { .. } => {}
        }
    }
    put_namespaces(objects, &mut resolved, &touched.namespaces);
    if with_nodes {
        put_nodes(objects, settings, &mut resolved, &mut touched)?;
    }
    if !pods.is_empty() {
        owners_stay(objects, before, &resolved, &pods)?;
        put_pods(objects, &mut resolved, &pods, &mut touched)?;
    }
    let families = (resolved.ipv4, resolved.ipv6);
    resolved.find_families();
    if with_services || families != (resolved.ipv4, resolved.ipv6) {
        put_services(objects, &mut resolved, &mut touched)?;
    }
    for service in &touched.services {
        derive(service, objects, &mut resolved);
    }
    Some(resolved)
}

fn pod_of(object: Option<&Object>) -> Option<&PodObject> {
    if let Some(Object::Pod(pod)) = object { Some(pod) } else { None }
}

fn key(kind: &'static str, name: &Name) -> ObjectKey {
    ObjectKey { kind, name: name.clone() }
}

/// Objects of namespaces, and who has made pods.
fn count(change: &Changed, resolved: &mut Resolved, touched: &mut Touched) {
    let books = &mut resolved.books;
    for (object, more) in [(&change.old, false), (&change.new, true)] {
        let Some(object) = object else { continue };
        let meta = object.meta();
        if matches!(**object, Object::Namespace(_)) {
            touched.namespaces.insert(meta.name.clone());
        } else if !meta.namespace.is_empty() {
            touched.namespaces.insert(meta.namespace.clone());
            add(&mut books.in_namespace, &meta.namespace, more);
        }
        if matches!(**object, Object::Pod(_)) {
            for owner in owners(meta) {
                add(&mut books.made, &owner, more);
            }
        }
    }
}

fn add<K: Ord + Clone>(counts: &mut crate::map::Map<K, usize>, key: &K, more: bool) {
    if let Some(count) = counts.get_or_default(key) {
        *count = if more { *count + 1 } else { count.saturating_sub(1) };
    }
    if counts.get(key) == Some(&0) {
        counts.remove(key);
    }
}

/// Labels of namespaces; those that nothing names any longer go.
fn put_namespaces(objects: &Objects, resolved: &mut Resolved, touched: &BTreeSet<String>) {
    for namespace in touched {
        let written = objects.get(&key("Namespace", &Name::new("", namespace))).map(Object::meta);
        if written.is_none() && !resolved.books.in_namespace.contains_key(namespace) {
            resolved.namespaces.remove(namespace);
            continue;
        }
        let labels = labels_of(namespace, written.map(|meta| &meta.labels));
        if resolved.namespaces.get(namespace) != Some(&labels) {
            resolved.namespaces.insert(namespace.clone(), labels);
        }
    }
}

/// Workloads whose pods are among the objects make none themselves: that must be as it was.
fn owners_stay(
    objects: &Objects,
    before: &Resolved,
    after: &Resolved,
    pods: &[(Option<&PodObject>, Option<&PodObject>)],
) -> Option<()> {
    for pod in pods.iter().flat_map(|(old, new)| [*old, *new]).flatten() {
        for owner in owners(&pod.meta) {
            let made = |resolved: &Resolved| resolved.books.made.contains_key(&owner);
            let kind = WORKLOADS.into_iter().find(|kind| *kind == owner.1);
            let exists = kind.is_some_and(|kind| objects.contains(&key(kind, &Name::new(&owner.0, &owner.2))));
            if exists && made(before) != made(after) {
                return None;
            }
        }
    }
    Some(())
}

/// Nodes that are added or have other labels.
fn put_nodes(objects: &Objects, settings: Settings, resolved: &mut Resolved, touched: &mut Touched) -> Option<()> {
    let written = objects.of_kind("Node");
    if written.is_empty() {
        return None;
    }
    let mut report = Report::default();
    let found = nodes::nodes(&written, settings, &mut report);
    if !report.is_empty() {
        return None;
    }
    let (mut stay, mut zones) = (0, false);
    for node in &found {
        match resolved.node(&node.name) {
            Some(old) => {
                if (&old.addresses, &old.pod_cidrs) != (&node.addresses, &node.pod_cidrs) {
                    return None;
                }
                stay += 1;
                zones |= old.labels.get(ZONE) != node.labels.get(ZONE);
            }
            None => {
                let makes_pods = !objects.of_kind("DaemonSet").is_empty();
                if makes_pods || node.addresses.iter().any(|address| resolved.holders.contains_key(address)) {
                    return None;
                }
                let own = node.addresses.iter().map(|address| (*address, Holder::Node(node.name.clone())));
                resolved.holders.extend(own);
            }
        }
    }
    if stay < resolved.nodes.len() {
        return None;
    }
    if zones {
        touched.services.extend(resolved.services.keys().cloned());
    }
    resolved.nodes = Arc::new(found);
    Some(())
}

fn put_pods(
    objects: &Objects,
    resolved: &mut Resolved,
    pods: &[(Option<&PodObject>, Option<&PodObject>)],
    touched: &mut Touched,
) -> Option<()> {
    // Without objects for nodes, pods name the nodes.
    if objects.of_kind("Node").is_empty() {
        return None;
    }
    let nodes = Arc::clone(&resolved.nodes);
    let mut was: Vec<Pod> = Vec::new();
    let mut come: Vec<(&PodObject, &Node)> = Vec::new();
    for (old, new) in pods {
        let new = new.filter(|pod| !pod.finished);
        let name = old.or(new)?.meta.full_name();
        match (old, resolved.remove_pod(&name)) {
            (Some(_), gone) => was.extend(gone),
            // A workload has made a pod of this name.
            (None, Some(_)) => return None,
            (None, None) => {}
        }
        match new {
            Some(pod) => come.push((pod, home(pod, &name, &nodes, resolved)?)),
            None => {
                resolved.books.placements.remove(&name);
            }
        }
    }
    place(resolved, &come)?;
    for (pod, _) in &come {
        // Slices hold pods as they are now.
        if let Some(is) = resolved.pods.get(&pod.meta.full_name()) {
            touch_services(resolved, &is.name.namespace, &is.labels, touched);
        }
    }
    for pod in &was {
        touch_services(resolved, &pod.name.namespace, &pod.labels, touched);
    }
    Some(())
}

/// Where a pod is: its own node, or the one that it had. Others have to wait for their turn.
fn home<'a>(pod: &PodObject, name: &Name, nodes: &'a [Node], resolved: &Resolved) -> Option<&'a Node> {
    let node = match &pod.spec.node {
        Some((node, _)) => node,
        None => &resolved.books.placements.get(name)?.node,
    };
    nodes.iter().find(|own| own.name == *node)
}

/// Addresses, in the order in which they are given out: those that the input gives, those that pods have, new ones.
fn place(resolved: &mut Resolved, come: &[(&PodObject, &Node)]) -> Option<()> {
    let mut later = Vec::new();
    for &(pod, home) in come {
        let Some(addresses) = own_addresses(pod, home) else {
            later.push((pod, home));
            continue;
        };
        let different: BTreeSet<&IpAddr> = addresses.iter().collect();
        let is_taken = || addresses.iter().any(|address| resolved.holders.contains_key(address));
        if !pod.spec.host_network && (different.len() < addresses.len() || is_taken()) {
            return None;
        }
        resolved.add_pod(pod, home, addresses);
    }
    let mut new = Vec::new();
    for (pod, home) in later {
        let old = resolved.books.placements.get(&pod.meta.full_name()).filter(|old| keeps(pod, home, old));
        let old = old.filter(|old| !old.addresses.iter().any(|address| resolved.holders.contains_key(address)));
        match old.map(|old| old.addresses.clone()) {
            Some(addresses) => resolved.add_pod(pod, home, addresses),
            None => new.push((pod, home)),
        }
    }
    for (pod, home) in new {
        let free = |prefix| next_free(prefix, &mut { FIRST_POD }, |address| !resolved.holders.contains_key(&address));
        let addresses = home.pod_cidrs.iter().map(|prefix| free(*prefix)).collect::<Option<Vec<IpAddr>>>()?;
        resolved.add_pod(pod, home, addresses);
    }
    Some(())
}

/// Services of a namespace that select pods with these labels.
fn touch_services(resolved: &Resolved, namespace: &str, labels: &Labels, touched: &mut Touched) {
    let own = resolved.services.range_from(&Name::new(namespace, ""));
    let own = own.take_while(|(name, _)| name.namespace == namespace);
    touched.services.extend(own.filter(|(_, service)| slices::selects(service, labels)).map(|(name, _)| name.clone()));
}

fn put_services(objects: &Objects, resolved: &mut Resolved, touched: &mut Touched) -> Option<()> {
    let services = objects.of_kind("Service");
    let services: Vec<_> =
        services.iter().filter_map(|object| if let Object::Service(own) = object { Some(own) } else { None }).collect();
    let mut report = Report::default();
    let found = cluster_addresses(&services, (resolved.ipv4, resolved.ipv6), &mut report);
    if !report.is_empty() {
        return None;
    }
    let before = resolved.services.clone();
    for (name, _, new) in before.diff(&found) {
        touched.services.insert(name.clone());
        match new {
            Some(new) => resolved.services.insert(name.clone(), new.clone()),
            None => resolved.services.remove(name),
        };
    }
    Some(())
}

fn put_slice(change: &Changed, resolved: &mut Resolved, touched: &mut Touched) {
    for object in [&change.old, &change.new].into_iter().flatten() {
        let Object::EndpointSlice(slice) = &**object else { continue };
        let name = slice.meta.full_name();
        touched.services.extend(slice.service.clone());
        // A slice that was derived has, or wants, this name.
        let named = resolved.books.derived.iter().filter(|(_, derived)| derived.contains(&name));
        touched.services.extend(named.map(|(service, _)| service.clone()));
    }
    if let Some(Object::EndpointSlice(slice)) = change.new.as_deref() {
        resolved.slices.insert(slice.meta.full_name(), slice.clone());
    } else if let Some(old) = &change.old {
        resolved.slices.remove(&old.meta().full_name());
    }
}

/// Slices of a service anew.
fn derive(name: &Name, objects: &Objects, resolved: &mut Resolved) {
    let is_written = |slice: &Name| objects.contains(&key("EndpointSlice", slice));
    let old = resolved.books.derived.remove(name).unwrap_or_default();
    let own = resolved.slices.range_from(&Name::new(&name.namespace, ""));
    let mut own = own.take_while(|(slice, _)| slice.namespace == name.namespace);
    let written = own.any(|(own, slice)| slice.service.as_ref() == Some(name) && is_written(own));
    let service = resolved.services.get(name).filter(|_| !written);
    let new = service.map(|service| slices::derive(service, resolved));
    let names: Option<Vec<Name>> = new.as_ref().map(|new| new.iter().map(|slice| slice.meta.full_name()).collect());
    for gone in old.iter().filter(|gone| !is_written(gone) && !names.as_ref().is_some_and(|names| names.contains(gone)))
    {
        resolved.slices.remove(gone);
    }
    for slice in new.into_iter().flatten() {
        let own = slice.meta.full_name();
        if !is_written(&own) && resolved.slices.get(&own) != Some(&slice) {
            resolved.slices.insert(own, slice);
        }
    }
    if let Some(names) = names {
        resolved.books.derived.insert(name.clone(), names);
    }
}
