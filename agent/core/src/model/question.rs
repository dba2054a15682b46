//! Questions about pods in one form, whatever kind of policy asks them: labels of the pod, of its namespace, and what
//! Cilium makes into labels (namespace, service account, cluster).

use std::collections::BTreeSet;
use std::fmt;

use crate::input::{Field, InputError, Problem, Report};
use crate::labels::{Expression, Labels, NAMESPACE_LABELS, Operator, Selector};
use crate::yaml::Position;

/// Cilium's label for the namespace of a pod.
const NAMESPACE: &str = "io.kubernetes.pod.namespace";
/// Cilium's label for the service account of a pod.
pub const SERVICE_ACCOUNT: &str = "io.cilium.k8s.policy.serviceaccount";
/// Cilium's label for the cluster of a pod.
const CLUSTER: &str = "io.cilium.k8s.policy.cluster";
/// Service account of pods that name none.
pub const DEFAULT_SERVICE_ACCOUNT: &str = "default";

/// What a requirement is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LabelOf {
    /// A label of the pod.
    Pod(String),
    /// The name of its namespace.
    Namespace,
    /// A label of its namespace.
    NamespaceLabel(String),
    /// The name of its service account.
    ServiceAccount,
    /// The name of its cluster.
    Cluster,
}

/// One condition on a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Requirement {
    /// What it asks about.
    pub of: LabelOf,
    /// What it asks.
    pub operator: Operator,
    /// Values for `In` and `NotIn`; else empty.
    pub values: BTreeSet<String>,
}

/// A question about pods: every requirement must hold; without any, every pod is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodQuestion {
    /// The requirements, in order.
    pub requirements: BTreeSet<Requirement>,
}

/// What a question is asked of.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Namespace of the pod.
    pub namespace: &'a str,
    /// Its labels.
    pub labels: &'a Labels,
    /// Labels of its namespace.
    pub namespace_labels: &'a Labels,
    /// Its service account.
    pub service_account: &'a str,
    /// Its cluster.
    pub cluster: &'a str,
}

impl PodQuestion {
    /// Whether it holds for a pod.
    pub fn matches(&self, pod: &Asked<'_>) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(pod))
    }

    /// With a further requirement.
    #[must_use]
    pub fn and(mut self, of: LabelOf, operator: Operator, values: &[&str]) -> Self {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        self.requirements.insert(Requirement { of, operator, values });
        self
    }

    /// Pods of a namespace.
    pub fn in_namespace(namespace: &str) -> Self {
        Self::default().and(LabelOf::Namespace, Operator::In, &[namespace])
    }

    /// With what a selector asks, of labels that `of` makes of its keys.
    #[must_use]
    pub fn and_selector(mut self, selector: &Selector, of: fn(String) -> LabelOf) -> Self {
        for (key, value) in &selector.match_labels {
            self = self.and(of(key.clone()), Operator::In, &[value]);
        }
        for Expression { key, operator, values } in &selector.expressions {
            let requirement = Requirement { of: of(key.clone()), operator: *operator, values: values.clone() };
            self.requirements.insert(requirement);
        }
        self
    }

    /// Whether it says something about the namespace.
    pub fn names_namespace(&self) -> bool {
        self.requirements.iter().any(|r| matches!(r.of, LabelOf::Namespace | LabelOf::NamespaceLabel(_)))
    }
}

impl Requirement {
    fn matches(&self, pod: &Asked<'_>) -> bool {
        let value = match &self.of {
            LabelOf::Pod(key) => pod.labels.get(key).map(String::as_str),
            LabelOf::Namespace => Some(pod.namespace),
            LabelOf::NamespaceLabel(key) => pod.namespace_labels.get(key).map(String::as_str),
            LabelOf::ServiceAccount => Some(pod.service_account),
            LabelOf::Cluster => Some(pod.cluster),
        };
        self.operator.holds(&self.values, value)
    }
}

impl fmt::Display for PodQuestion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.requirements.is_empty() {
            return f.write_str("every pod");
        }
        for (index, requirement) in self.requirements.iter().enumerate() {
            let key = match &requirement.of {
                LabelOf::Pod(key) => key.clone(),
                LabelOf::Namespace => "namespace".to_owned(),
                LabelOf::NamespaceLabel(key) => format!("namespace label {key}"),
                LabelOf::ServiceAccount => "service account".to_owned(),
                LabelOf::Cluster => "cluster".to_owned(),
            };
            let (operator, values) = (requirement.operator, requirement.values.clone());
            write!(f, "{}{}", if index == 0 { "" } else { ", " }, Expression { key, operator, values })?;
        }
        Ok(())
    }
}

/// Names that traffic has without labels of its own (Cilium's entities and reserved labels).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entity {
    /// Everybody.
    All,
    /// Everybody outside the cluster.
    World,
    /// World, over IPv4.
    WorldIpv4,
    /// World, over IPv6.
    WorldIpv6,
    /// Everybody inside the cluster.
    Cluster,
    /// The node of the endpoint.
    Host,
    /// The other nodes.
    RemoteNode,
    /// Endpoints without labels yet.
    Init,
    /// Proxies at the cluster's edge.
    Ingress,
    /// Endpoints of others.
    Unmanaged,
    /// Health probes.
    Health,
    /// The Kubernetes API server.
    KubeApiserver,
    /// Nobody.
    None,
}

impl Entity {
    /// All of them with their names.
    pub const NAMES: [(&'static str, Self); 13] = [
        ("all", Self::All),
        ("world", Self::World),
        ("world-ipv4", Self::WorldIpv4),
        ("world-ipv6", Self::WorldIpv6),
        ("cluster", Self::Cluster),
        ("host", Self::Host),
        ("remote-node", Self::RemoteNode),
        ("init", Self::Init),
        ("ingress", Self::Ingress),
        ("unmanaged", Self::Unmanaged),
        ("health", Self::Health),
        ("kube-apiserver", Self::KubeApiserver),
        ("none", Self::None),
    ];

    /// By its name. `cluster-mesh`, every cluster that is connected, is the one cluster that there is.
    pub fn named(name: &str) -> Option<Self> {
        let name = if name == "cluster-mesh" { "cluster" } else { name };
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, entity)| *entity)
    }
}

impl fmt::Display for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES.iter().find(|(_, entity)| entity == self).map_or("", |(name, _)| name))
    }
}

/// Whom an endpoint selector of Cilium means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Endpoints {
    Pods(PodQuestion),
    Entity(Entity),
}

/// Reads Cilium's endpoint selector: keys with or without a source (`k8s:`, `any:`, `reserved:`).
pub(super) fn endpoint_selector(field: &Field<'_>, report: &mut Report) -> Option<Endpoints> {
    let mut question = PodQuestion::default();
    let mut entities: Vec<(Position, Entity)> = Vec::new();
    for (position, Expression { key, operator, values }) in Selector::read_sourced(field, report) {
        let (source, bare) = key.split_once(':').unwrap_or(("any", &key));
        let wrong = |report: &mut Report, problem: Problem| {
            report.add(InputError::new(position.clone(), &format!("{}[\"{key}\"]", field.path), problem));
        };
        match source {
            "k8s" | "any" => {}
            "reserved" => {
                let there = operator == Operator::Exists || (operator == Operator::In && values.contains(""));
                match Entity::named(bare).filter(|_| there) {
                    Some(entity) => entities.push((position.clone(), entity)),
                    None => {
                        let rule = "a reserved label is asked for as `reserved:host: \"\"`, with the name of an entity";
                        wrong(report, Problem::Value { value: key.clone(), rule: rule.to_owned() });
                    }
                }
                continue;
            }
            _ => {
                let rule = "the source of a label is `k8s`, `any` or `reserved`";
                wrong(report, Problem::Value { value: key.clone(), rule: rule.to_owned() });
                continue;
            }
        }
        let of = match bare {
            NAMESPACE => LabelOf::Namespace,
            SERVICE_ACCOUNT => LabelOf::ServiceAccount,
            CLUSTER => LabelOf::Cluster,
            _ => match bare.strip_prefix(NAMESPACE_LABELS) {
                Some(key) => LabelOf::NamespaceLabel(key.to_owned()),
                None if bare.starts_with("io.cilium.k8s.") => {
                    let why = "pods have no such label; there are io.cilium.k8s.policy.cluster, \
                               io.cilium.k8s.policy.serviceaccount and io.cilium.k8s.namespace.labels.KEY";
                    wrong(report, Problem::Unsupported { why });
                    continue;
                }
                None => LabelOf::Pod(bare.to_owned()),
            },
        };
        question.requirements.insert(Requirement { of, operator, values });
    }
    match entities.as_slice() {
        [] => Some(Endpoints::Pods(question)),
        [(_, entity)] if question.requirements.is_empty() => Some(Endpoints::Entity(*entity)),
        [(position, _), ..] => {
            let text = "a selector has one reserved label and nothing else: no endpoint has more".to_owned();
            report.add(InputError::new(position.clone(), &field.path, Problem::Conflict(text)));
            None
        }
    }
}
