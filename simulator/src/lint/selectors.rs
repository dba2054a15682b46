//! Selectors, namespaces and ports that meet nobody.

use std::collections::{BTreeMap, BTreeSet};

use agent_core::input::nearest;
use agent_core::labels::{Labels, Operator};
use agent_core::model::cilium::ServiceRef;
use agent_core::model::question::{Asked, DEFAULT_SERVICE_ACCOUNT};
use agent_core::model::{
    LabelOf, Model, NAMESPACE_NAME, Object, Pod, PodQuestion, PortSelector, Protocol, Requirement,
};
use agent_core::policy::PolicySettings;
use agent_core::{Direction, Position, Selector};

use super::view::{Peer, Policy, Port, Rule, Subject, Whom};
use super::{
    CONTRADICTION, EMPTY_RULE, Findings, HOST_PEER, HOST_POLICY, IGNORED, NEEDS_PROXY, NO_NAMESPACE, NO_PEER,
    NO_PORT_NAME, NO_SUBJECT, UNDECLARED,
};

pub(super) struct Pods<'a> {
    pub(super) model: &'a Model,
    cluster: &'a str,
    /// Namespaces that are declared, or that pods are in.
    namespaces: BTreeSet<&'a str>,
    none: Labels,
}

impl<'a> Pods<'a> {
    pub(super) fn new(model: &'a Model, settings: &'a PolicySettings) -> Self {
        let declared = model.objects().iter().filter_map(|object| match object {
            Object::Namespace(meta) => Some(meta.name.as_str()),
            Object::Node(_)
            | Object::Pod(_)
            | Object::Workload(_)
            | Object::Service(_)
            | Object::EndpointSlice(_)
            | Object::NetworkPolicy(_)
            | Object::CiliumPolicy(_)
            | Object::CidrGroup(_)
            | Object::ClusterPolicy(_)
            | Object::Inert { .. } => None,
        });
        let namespaces = declared.chain(model.pods().keys().map(|name| name.namespace.as_str())).collect();
        Self { model, cluster: &settings.cluster, namespaces, none: Labels::new() }
    }

    /// Whether a question holds for a pod, wherever the pod's network is.
    fn holds(&self, question: &PodQuestion, pod: &Pod) -> bool {
        let namespace = pod.name.namespace.as_str();
        question.matches(&Asked {
            namespace,
            labels: &pod.labels,
            namespace_labels: self.model.namespaces().get(namespace).unwrap_or(&self.none),
            service_account: pod.service_account.as_deref().unwrap_or(DEFAULT_SERVICE_ACCOUNT),
            cluster: self.cluster,
        })
    }

    /// Pods with a network of their own for which a question holds.
    pub(super) fn matching<'b>(&'b self, question: &'b PodQuestion) -> impl Iterator<Item = &'a Pod> + 'b {
        let own = self.model.pods().values().filter(|pod| !pod.host_network);
        own.filter(|pod| self.holds(question, pod))
    }

    /// Why no pod matches: the first condition that alone is too much.
    fn reason(&self, question: &PodQuestion) -> String {
        for requirement in &question.requirements {
            let alone = PodQuestion { requirements: BTreeSet::from([requirement.clone()]) };
            if self.matching(&alone).next().is_none() {
                return format!("no pod has {alone}{}", self.near(requirement));
            }
        }
        format!("no pod has all of {question}")
    }

    /// A value that there is and that is spelt much like one that is asked for.
    fn near(&self, requirement: &Requirement) -> String {
        let LabelOf::Pod(key) = &requirement.of else { return String::new() };
        if requirement.operator != Operator::In {
            return String::new();
        }
        let pods = || self.model.pods().values();
        let there: BTreeSet<&str> = pods().filter_map(|pod| pod.labels.get(key)).map(String::as_str).collect();
        if there.is_empty() {
            let keys: BTreeSet<&str> = pods().flat_map(|pod| pod.labels.keys()).map(String::as_str).collect();
            let near = nearest(key, keys.into_iter());
            return near.map_or(String::new(), |near| format!("; there is a label `{near}`"));
        }
        let near = requirement.values.iter().find_map(|value| nearest(value, there.iter().copied()));
        near.map_or(String::new(), |near| format!("; there is {key}={near}"))
    }
}

pub(super) fn check(model: &Model, policies: &[Policy], settings: &PolicySettings, findings: &mut Findings) {
    let pods = Pods::new(model, settings);
    for policy in policies {
        let text = policy.text();
        if !policy.name.namespace.is_empty() {
            namespace(&pods, &policy.name.namespace, &policy.position, &text, findings);
        }
        let subjects: Vec<&Pod> = match &policy.subject {
            Subject::Pods(question) => {
                let found: Vec<&Pod> = pods.matching(question).collect();
                let missing =
                    !policy.name.namespace.is_empty() && !pods.namespaces.contains(policy.name.namespace.as_str());
                if contradicts(question) {
                    findings.add(
                        CONTRADICTION,
                        &policy.position,
                        &text,
                        format!("is about pods with {question}: there can be none"),
                    );
                } else if found.is_empty() && !missing {
                    let host = model.pods().values().any(|pod| pods.holds(question, pod));
                    let why =
                        if host { "only pods in their node's network match".to_owned() } else { pods.reason(question) };
                    findings.add(NO_SUBJECT, &policy.position, &text, format!("is about no pod: {why}"));
                }
                found
            }
            Subject::Nodes(selector) => {
                nodes(model, selector, &policy.position, &text, findings);
                if !settings.host_firewall {
                    let message = "is about nodes: it is enforced only with the host firewall switched on";
                    findings.add(HOST_POLICY, &policy.position, &text, message);
                }
                Vec::new()
            }
        };
        for direction in Direction::ALL {
            let written = policy.rules(direction).count();
            if policy.kind == agent_core::policy::PolicyKind::NetworkPolicy
                && written > 0
                && !policy.isolates(direction)
            {
                let message = format!(
                    "has {written} {direction} rules, but policyTypes does not name {direction}: the API ignores them"
                );
                findings.add(IGNORED, &policy.position, &text, message);
            }
        }
        for one in &policy.rules {
            rule(&pods, policy, one, &subjects, findings);
        }
    }
}

fn namespace(pods: &Pods<'_>, name: &str, position: &Position, object: &str, findings: &mut Findings) {
    if !pods.namespaces.contains(name) {
        // A short name is near to every other.
        let near = nearest(name, pods.namespaces.iter().copied()).filter(|_| name.len() > 2);
        let near = near.map_or(String::new(), |near| format!("; there is `{near}`"));
        findings.add(NO_NAMESPACE, position, object, format!("there is no namespace `{name}`{near}"));
    }
}

fn nodes(model: &Model, selector: &Selector, position: &Position, object: &str, findings: &mut Findings) {
    if !model.nodes().iter().any(|node| selector.matches(&node.labels)) {
        findings.add(NO_PEER, position, object, format!("no node has {selector}"));
    }
}

/// Conditions on one label that no value meets.
fn contradicts(question: &PodQuestion) -> bool {
    let mut by_label: BTreeMap<&LabelOf, Vec<&Requirement>> = BTreeMap::new();
    for requirement in &question.requirements {
        by_label.entry(&requirement.of).or_default().push(requirement);
    }
    by_label.values().any(|all| {
        let met = |value: Option<&str>| all.iter().all(|one| one.operator.holds(&one.values, value));
        let values = all.iter().filter(|one| one.operator == Operator::In).flat_map(|one| &one.values);
        let listed = all.iter().any(|one| one.operator == Operator::In);
        // Any value that nobody names stands for all others.
        let other = all.iter().flat_map(|one| &one.values).fold(String::from("x"), |longer, value| longer + value);
        let none_listed = !values.into_iter().any(|value| met(Some(value)));
        none_listed && !met(None) && (listed || !met(Some(&other)))
    })
}

fn rule(pods: &Pods<'_>, policy: &Policy, rule: &Rule, subjects: &[&Pod], findings: &mut Findings) {
    let text = format!("{}, {}", policy.text(), rule.text());
    let cilium = policy.kind == agent_core::policy::PolicyKind::CiliumNetworkPolicy
        || policy.kind == agent_core::policy::PolicyKind::CiliumClusterwideNetworkPolicy;
    if cilium && rule.peers.is_none() && rule.ports.is_empty() {
        let message = "an empty rule of a Cilium policy matches nothing, it only closes its pods; `fromEntities: [all]` (or `toEntities`) matches everything";
        findings.add(EMPTY_RULE, &rule.position, &text, message);
    }
    let mut named: Vec<&Pod> = Vec::new();
    let mut only_pods = true;
    for one in rule.peers.iter().flatten() {
        only_pods &= matches!(one.whom, Whom::Pods(_));
        named.extend(peer(pods, one, &text, findings));
    }
    let everybody = rule.peers.is_none();
    for port in &rule.ports {
        if port.inspected {
            findings.add(
                NEEDS_PROXY,
                &port.position,
                &text,
                "needs a proxy to look at requests: until there is one, what it matches is dropped",
            );
        }
        match rule.list.direction() {
            Direction::Ingress if !subjects.is_empty() => {
                one_port(port, subjects, "the policy's pods", &text, findings)
            }
            Direction::Egress if only_pods && !everybody && !named.is_empty() => {
                one_port(port, &named, "the rule's peers", &text, findings);
            }
            Direction::Ingress | Direction::Egress => {}
        }
    }
}

/// Checks one peer; returns the pods that it selects.
fn peer<'a>(pods: &Pods<'a>, peer: &Peer, text: &str, findings: &mut Findings) -> Vec<&'a Pod> {
    match &peer.whom {
        Whom::Pods(question) => {
            let before = findings.0.len();
            for requirement in &question.requirements {
                let by_name = match &requirement.of {
                    LabelOf::Namespace => true,
                    LabelOf::NamespaceLabel(key) => key == NAMESPACE_NAME,
                    LabelOf::Pod(_) | LabelOf::ServiceAccount | LabelOf::Cluster => false,
                };
                if by_name && requirement.operator == Operator::In {
                    requirement.values.iter().for_each(|name| namespace(pods, name, &peer.position, text, findings));
                }
            }
            let found: Vec<&Pod> = pods.matching(question).collect();
            if contradicts(question) {
                findings.add(
                    CONTRADICTION,
                    &peer.position,
                    text,
                    format!("asks for pods with {question}: there can be none"),
                );
            } else if found.is_empty() && findings.0.len() == before {
                if pods.model.pods().values().any(|pod| pods.holds(question, pod)) {
                    let message =
                        format!("only pods in their node's network have {question}: to policies they are the node");
                    findings.add(HOST_PEER, &peer.position, text, message);
                } else {
                    findings.add(NO_PEER, &peer.position, text, pods.reason(question));
                }
            }
            found
        }
        Whom::Nodes(selector) => {
            nodes(pods.model, selector, &peer.position, text, findings);
            Vec::new()
        }
        Whom::Groups { groups, .. } => {
            let mut all = pods.model.cidr_groups().values();
            if !all.any(|group| groups.selects(&group.meta.name, &group.meta.labels)) {
                findings.add(NO_PEER, &peer.position, text, "there is no such CiliumCIDRGroup");
            }
            Vec::new()
        }
        Whom::Services(service) => {
            let mut all = pods.model.services().values();
            let found = match service {
                ServiceRef::Name(name) => pods.model.services().contains_key(name),
                ServiceRef::Selector { labels, namespace } => all.any(|one| {
                    namespace.as_ref().is_none_or(|own| *own == one.meta.namespace) && labels.matches(&one.meta.labels)
                }),
            };
            if !found {
                findings.add(NO_PEER, &peer.position, text, "there is no such service");
            }
            Vec::new()
        }
        Whom::Block { .. } | Whom::Other => Vec::new(),
    }
}

fn one_port(port: &Port, pods: &[&Pod], whose: &str, text: &str, findings: &mut Findings) {
    let of_protocol = |number: u8| Protocol::ALL.into_iter().find(|protocol| protocol.number() == number);
    let protocols: Vec<Protocol> = port.protocols.iter().copied().filter_map(of_protocol).collect();
    let declared = || pods.iter().flat_map(|pod| &pod.ports);
    match &port.ports {
        PortSelector::Named(name) => {
            let found = declared().any(|own| own.name.as_ref() == Some(name) && protocols.contains(&own.protocol));
            if !found {
                let names: BTreeSet<&str> = declared().filter_map(|own| own.name.as_deref()).collect();
                let near =
                    nearest(name, names.into_iter()).map_or(String::new(), |near| format!("; there is `{near}`"));
                let words: Vec<&str> = protocols.iter().map(|protocol| protocol.name()).collect();
                let message = format!("none of {whose} has a {} port named `{name}`{near}", words.join("/"));
                findings.add(NO_PORT_NAME, &port.position, text, message);
            }
        }
        PortSelector::Range(first, last) if !protocols.is_empty() => {
            let within = |number: u16| (*first..=*last).contains(&number);
            let found = declared().any(|own| within(own.port) && protocols.contains(&own.protocol));
            if !found && declared().next().is_some() {
                let numbers = if first == last { first.to_string() } else { format!("{first}-{last}") };
                let words: Vec<&str> = protocols.iter().map(|protocol| protocol.name()).collect();
                let message = format!("none of {whose} declares {numbers}/{}", words.join("/"));
                findings.add(UNDECLARED, &port.position, text, message);
            }
        }
        PortSelector::Range(..) | PortSelector::All => {}
    }
}
