//! Pods of workloads, as their controllers would make them.
//!
//! A workload whose pods (or, of a Deployment, whose ReplicaSets) are in the input themselves, as in an export of a
//! cluster, makes no others: `ownerReferences` tell.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::Node;
use super::object::{Meta, Object, PodObject, Workload, WorkloadKind};
use crate::input::{InputError, Problem, Report};
use crate::map::Map;
use crate::yaml::Position;

/// Pods that were read and pods of workloads, in file order.
pub(super) fn wanted_pods<'a>(
    objects: &[&'a Object],
    nodes: &[Node],
    made: &mut Map<(String, String, String), usize>,
    report: &mut Report,
) -> Vec<Cow<'a, PodObject>> {
    for object in objects.iter().filter(|object| matches!(object, Object::Pod(_) | Object::Workload(_))) {
        for owner in owners(object.meta()) {
            if let Some(count) = made.get_or_default(&owner) {
                *count += 1;
            }
        }
    }
    let mut pods = Vec::new();
    for &object in objects {
        match object {
            Object::Pod(pod) => pods.push(Cow::Borrowed(pod)),
            Object::Workload(workload) => {
                let key = object.key();
                if !made.contains_key(&(key.name.namespace, key.kind.to_owned(), key.name.name)) {
                    expand(workload, nodes, &mut pods);
                }
            }
            Object::Namespace(_)
            | Object::Node(_)
            | Object::Service(_)
            | Object::EndpointSlice(_)
            | Object::NetworkPolicy(_)
            | Object::CiliumPolicy(_)
            | Object::CidrGroup(_)
            | Object::ClusterPolicy(_)
            | Object::Inert { .. } => {}
        }
    }
    let mut names: BTreeMap<(&str, &str), &Position> = BTreeMap::new();
    for pod in &pods {
        let position = &pod.meta.position;
        if let Some(first) = names.insert((&pod.meta.namespace, &pod.meta.name), position) {
            report.add(InputError::new(
                position.clone(),
                "metadata.name",
                Problem::Taken { what: format!("Pod `{}`", pod.meta.full_name()), first: first.clone() },
            ));
        }
    }
    pods.retain(|pod| !pod.finished);
    pods
}

/// Who has made an object: namespace, kind and name.
pub(super) fn owners(meta: &Meta) -> impl Iterator<Item = (String, String, String)> {
    meta.owners.iter().map(|(kind, name)| (meta.namespace.clone(), kind.clone(), name.clone()))
}

fn expand(workload: &Workload, nodes: &[Node], pods: &mut Vec<Cow<'_, PodObject>>) {
    let count = match workload.kind {
        WorkloadKind::DaemonSet => u32::try_from(nodes.len()).unwrap_or(u32::MAX),
        WorkloadKind::Deployment | WorkloadKind::StatefulSet | WorkloadKind::ReplicaSet | WorkloadKind::Job => {
            workload.replicas
        }
    };
    for index in 0..count {
        let ordinal = workload.first_ordinal.saturating_add(index);
        let mut meta = workload.meta.clone();
        meta.name = format!("{}-{ordinal}", workload.meta.name);
        meta.labels = workload.labels.clone();
        meta.annotations = BTreeMap::new();
        let mut spec = workload.template.clone();
        let mut add = |key: &str, value: &str| {
            meta.labels.insert(key.to_owned(), value.to_owned());
        };
        match workload.kind {
            WorkloadKind::StatefulSet => {
                add("statefulset.kubernetes.io/pod-name", &meta.name.clone());
                add("apps.kubernetes.io/pod-index", &ordinal.to_string());
            }
            WorkloadKind::Job => {
                add("batch.kubernetes.io/job-name", &workload.meta.name);
                add("job-name", &workload.meta.name);
            }
            WorkloadKind::DaemonSet => {
                let node = usize::try_from(index).ok().and_then(|i| nodes.get(i));
                spec.node = node.map(|node| (node.name.clone(), node.position.clone()));
            }
            WorkloadKind::Deployment | WorkloadKind::ReplicaSet => {}
        }
        pods.push(Cow::Owned(PodObject { meta, spec, addresses: Vec::new(), ready: true, finished: false }));
    }
}
