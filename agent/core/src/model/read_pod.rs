//! Reads pods, and the workloads that make them.

use super::object::{ContainerPort, Meta, Object, PodObject, PodSpec, Workload, WorkloadKind};
use super::read::{META_UNREAD, read_address, read_protocol};
use crate::input::{Field, Fields, Problem, Report};
use crate::labels::{Labels, Selector, is_port_name, read_labels};

pub(super) fn pod(meta: Meta, fields: &mut Fields<'_>, report: &mut Report) -> Option<PodObject> {
    let spec = fields.require("spec", report)?;
    let spec = read_pod_spec(&spec, report);
    let mut pod = PodObject { meta, spec, addresses: Vec::new(), ready: true, finished: false };
    if let Some(field) = fields.get("status") {
        read_pod_status(&field, &mut pod, report);
    }
    Some(pod)
}

const POD_STATUS_UNREAD: &[&str] = &[
    "allocatedResources",
    "containerStatuses",
    "ephemeralContainerStatuses",
    "extendedResourceClaimStatus",
    "hostIP",
    "hostIPs",
    "initContainerStatuses",
    "message",
    "nodeAllocatableResourceClaimStatuses",
    "nominatedNodeName",
    "observedGeneration",
    "qosClass",
    "reason",
    "resize",
    "resourceClaimStatuses",
    "resources",
    "startTime",
];

fn read_pod_status(field: &Field<'_>, pod: &mut PodObject, report: &mut Report) {
    let Some(mut status) = field.object(report) else {
        return;
    };
    status.accept(POD_STATUS_UNREAD);
    if let Some(field) = status.get("phase") {
        match field.string(report) {
            Some("Pending" | "Running" | "Unknown") | None => {}
            Some("Succeeded" | "Failed") => pod.finished = true,
            Some(_) => field.invalid(report, "must be Pending, Running, Succeeded, Failed or Unknown"),
        }
    }
    let one = status.get("podIP");
    let one_address = one.as_ref().and_then(|field| read_address(field, report));
    match status.get("podIPs") {
        Some(list) => {
            for item in list.list(report) {
                let Some(mut fields) = item.object(report) else {
                    continue;
                };
                if let Some(field) = fields.require("ip", report)
                    && let Some(address) = read_address(&field, report)
                {
                    if (pod.addresses.iter()).any(|(old, _)| old.is_ipv4() == address.is_ipv4()) {
                        field.invalid(report, "a pod has at most one address of a family");
                    }
                    pod.addresses.push((address, field.position().clone()));
                }
                fields.finish(report);
            }
        }
        None => {
            if let (Some(address), Some(field)) = (one_address, &one) {
                pod.addresses.push((address, field.position().clone()));
            }
        }
    }
    if let (Some(address), Some(field), Some((first, _))) = (one_address, &one, pod.addresses.first())
        && address != *first
    {
        field.invalid(report, "must be the first of podIPs");
    }
    if let Some(list) = status.get("conditions") {
        for item in list.list(report) {
            let Some(mut fields) = item.object(report) else {
                continue;
            };
            fields.accept(&["lastProbeTime", "lastTransitionTime", "message", "observedGeneration", "reason"]);
            let kind = fields.get("type").and_then(|field| field.string(report));
            let status = fields.get("status").and_then(|field| field.string(report));
            if kind == Some("Ready") {
                pod.ready = status == Some("True");
            }
            fields.finish(report);
        }
    }
    status.finish(report);
}

const POD_SPEC_UNREAD: &[&str] = &[
    "activeDeadlineSeconds",
    "affinity",
    "automountServiceAccountToken",
    "dnsConfig",
    "dnsPolicy",
    "enableServiceLinks",
    "ephemeralContainers",
    "hostAliases",
    "hostIPC",
    "hostPID",
    "hostUsers",
    "hostnameOverride",
    "imagePullSecrets",
    "nodeSelector",
    "os",
    "overhead",
    "preemptionPolicy",
    "priority",
    "priorityClassName",
    "readinessGates",
    "resourceClaims",
    "resources",
    "restartPolicy",
    "runtimeClassName",
    "schedulerName",
    "schedulingGates",
    "schedulingGroup",
    "securityContext",
    "serviceAccount",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "subdomain",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
    "volumes",
    "workloadRef",
];

fn read_pod_spec(field: &Field<'_>, report: &mut Report) -> PodSpec {
    let mut spec = PodSpec::default();
    let Some(mut fields) = field.object(report) else {
        return spec;
    };
    fields.accept(POD_SPEC_UNREAD);
    if let Some(field) = fields.get("nodeName")
        && let Some(name) = field.string(report)
        && !name.is_empty()
    {
        spec.node = Some((name.to_owned(), field.position().clone()));
    }
    spec.host_network = fields.get("hostNetwork").and_then(|field| field.boolean(report)).unwrap_or(false);
    spec.service_account = fields.get("serviceAccountName").and_then(|field| field.string(report)).map(str::to_owned);
    spec.hostname = fields.get("hostname").and_then(|field| field.string(report)).map(str::to_owned);
    if let Some(list) = fields.get("initContainers") {
        for item in list.list(report) {
            read_container(&item, true, &mut spec.ports, report);
        }
    }
    if let Some(list) = fields.require("containers", report) {
        for item in list.list(report) {
            read_container(&item, false, &mut spec.ports, report);
        }
    }
    fields.finish(report);
    spec
}

const CONTAINER_UNREAD: &[&str] = &[
    "args",
    "command",
    "env",
    "envFrom",
    "image",
    "imagePullPolicy",
    "lifecycle",
    "livenessProbe",
    "readinessProbe",
    "resizePolicy",
    "resources",
    "restartPolicyRules",
    "securityContext",
    "startupProbe",
    "stdin",
    "stdinOnce",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "tty",
    "volumeDevices",
    "volumeMounts",
    "workingDir",
];

/// Reads a container's ports. An init container's count only when it keeps running beside the others.
fn read_container(item: &Field<'_>, init: bool, ports: &mut Vec<ContainerPort>, report: &mut Report) {
    let Some(mut fields) = item.object(report) else {
        return;
    };
    fields.accept(CONTAINER_UNREAD);
    if let Some(name) = fields.require("name", report) {
        name.string(report);
    }
    let restart = fields.get("restartPolicy").and_then(|field| field.string(report));
    let stays = !init || restart == Some("Always");
    if let Some(list) = fields.get("ports") {
        for item in list.list(report) {
            let port = read_container_port(&item, report);
            ports.extend(port.filter(|_| stays));
        }
    }
    fields.finish(report);
}

fn read_container_port(item: &Field<'_>, report: &mut Report) -> Option<ContainerPort> {
    let mut fields = item.object(report)?;
    fields.accept(&["hostIP"]);
    let name = fields.get("name").and_then(|field| {
        let name = field.string(report)?;
        if !is_port_name(name) {
            field.invalid(
                report,
                "a port's name has at most 15 lower-case letters, digits and single `-`, at least one of them a letter",
            );
        }
        Some(name.to_owned())
    });
    let protocol = read_protocol(&mut fields, report);
    let host_port = fields.get("hostPort").and_then(|field| field.port(report));
    let port = fields.require("containerPort", report).and_then(|field| field.port(report));
    fields.finish(report);
    Some(ContainerPort { name, port: port?, host_port, protocol: protocol? })
}

/// Fields of a workload's `spec` that do not matter here.
const fn unread(kind: WorkloadKind) -> &'static [&'static str] {
    match kind {
        WorkloadKind::Deployment => {
            &["minReadySeconds", "paused", "progressDeadlineSeconds", "revisionHistoryLimit", "strategy"]
        }
        WorkloadKind::StatefulSet => &[
            "minReadySeconds",
            "persistentVolumeClaimRetentionPolicy",
            "podManagementPolicy",
            "revisionHistoryLimit",
            "serviceName",
            "updateStrategy",
            "volumeClaimTemplates",
        ],
        WorkloadKind::DaemonSet => &["minReadySeconds", "revisionHistoryLimit", "updateStrategy"],
        WorkloadKind::ReplicaSet => &["minReadySeconds"],
        WorkloadKind::Job => &[
            "activeDeadlineSeconds",
            "backoffLimit",
            "backoffLimitPerIndex",
            "completionMode",
            "completions",
            "managedBy",
            "manualSelector",
            "maxFailedIndexes",
            "podFailurePolicy",
            "podReplacementPolicy",
            "successPolicy",
            "ttlSecondsAfterFinished",
        ],
    }
}

pub(super) fn workload(kind: WorkloadKind, meta: Meta, fields: &mut Fields<'_>, report: &mut Report) -> Option<Object> {
    fields.accept(&["status"]);
    let mut spec = fields.require("spec", report)?.object(report)?;
    spec.accept(unread(kind));
    let replicas = |field: Field<'_>, report: &mut Report| {
        field.integer(report, 0..=100_000).and_then(|number| u32::try_from(number).ok())
    };
    let mut first_ordinal = 0;
    let wanted = match kind {
        WorkloadKind::Job => {
            let suspended = spec.get("suspend").and_then(|field| field.boolean(report));
            let wanted = spec.get("parallelism").and_then(|f| replicas(f, report));
            if suspended == Some(true) { Some(0) } else { wanted }
        }
        WorkloadKind::DaemonSet => None,
        WorkloadKind::Deployment | WorkloadKind::StatefulSet | WorkloadKind::ReplicaSet => {
            spec.get("replicas").and_then(|f| replicas(f, report))
        }
    };
    if kind == WorkloadKind::StatefulSet
        && let Some(mut ordinals) = spec.get("ordinals").and_then(|field| field.object(report))
    {
        let start = ordinals.get("start").and_then(|f| replicas(f, report));
        first_ordinal = start.unwrap_or(0);
        ordinals.finish(report);
    }
    let selector_field = match kind {
        WorkloadKind::Job => spec.get("selector"),
        WorkloadKind::Deployment | WorkloadKind::StatefulSet | WorkloadKind::DaemonSet | WorkloadKind::ReplicaSet => {
            spec.require("selector", report)
        }
    };
    let selector = selector_field.as_ref().map(|field| Selector::read(field, report));
    let template = spec.require("template", report);
    let mut labels = Labels::new();
    let mut pod_spec = PodSpec::default();
    if let Some(mut template) = template.and_then(|field| field.object(report)) {
        if let Some(mut meta) = template.get("metadata").and_then(|field| field.object(report)) {
            meta.accept(META_UNREAD);
            meta.accept(&["annotations", "deletionTimestamp", "generateName", "name", "namespace", "ownerReferences"]);
            if let Some(field) = meta.get("labels") {
                labels = read_labels(&field, report);
            }
            meta.finish(report);
        }
        if let Some(field) = template.require("spec", report) {
            pod_spec = read_pod_spec(&field, report);
        }
        template.finish(report);
    }
    if let Some(selector) = selector
        && kind != WorkloadKind::Job
        && (selector.is_empty() || !selector.matches(&labels))
    {
        let text = "must match the labels of the template".to_owned();
        spec.wrong("selector", report, Problem::Conflict(text));
    }
    spec.finish(report);
    Some(Object::Workload(Workload {
        meta,
        kind,
        replicas: wanted.unwrap_or(1),
        first_ordinal,
        labels,
        template: pod_spec,
    }))
}
