//! From every kind of policy to the one form.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::form::{
    Form, FormPeer, FormPort, FormRule, InCluster, Level, PolicyKind, RuleAction, Select, Stage, Subject,
};
use super::rules::List;
use super::settings::PolicySettings;
use crate::labels::Selector;
use crate::map::Map;
use crate::model::cilium::{
    CiliumPeerSelector, CiliumPort, CiliumRule, CiliumSpec, CiliumSubject, GroupRef, ServiceRef,
};
use crate::model::object::{Meta, Service, ServiceType};
use crate::model::tiers::{Tier, TierAction, TierPeerSelector, TierRule};
use crate::model::{
    CiliumPolicy, ClusterPolicy, EndpointSlice, IpBlock, LabelOf, Name, NetworkPolicy, PeerSelector, PodQuestion,
    PolicyRule, Resolved,
};
use crate::prefix::Prefix;
use crate::yaml::Position;

/// Annotation of a policy that is to be reported and not enforced.
pub const AUDIT: &str = "policy.weir.dev/audit";

const EVERYWHERE: InCluster = InCluster { pods: true, nodes: true };

/// What a policy is found by.
pub(super) type PolicyKey = (PolicyKind, Name);

/// Forms by the policy that they are of, in a fixed order.
pub(super) type Lowered = Map<PolicyKey, Vec<Arc<Form>>>;

/// Every policy of a cluster, from those of the cluster before it.
pub(super) fn lower(old: (&Resolved, &Lowered), cluster: &Resolved, settings: &PolicySettings) -> Lowered {
    let mut forms = old.1.clone();
    let mut put = |key: PolicyKey, made: Option<Vec<Form>>| match made {
        Some(made) => {
            let made: Vec<Arc<Form>> = made.into_iter().map(Arc::new).collect();
            if forms.get(&key) != Some(&made) {
                forms.insert(key, made);
            }
        }
        None => {
            forms.remove(&key);
        }
    };
    for (name, _, policy) in old.0.policies.diff(&cluster.policies) {
        put((PolicyKind::NetworkPolicy, name.clone()), policy.map(|policy| vec![network_policy(policy)]));
    }
    let specs =
        |policy: &CiliumPolicy| policy.specs.iter().map(|spec| cilium(policy, spec, cluster, settings)).collect();
    for (name, _, policy) in old.0.cilium_policies.diff(&cluster.cilium_policies) {
        put((cilium_kind(name), name.clone()), policy.map(specs));
    }
    if is_other_around(old.0, cluster) {
        for (name, policy) in cluster.cilium_policies.iter().filter(|(_, policy)| looks_around(policy)) {
            put((cilium_kind(name), name.clone()), Some(specs(policy)));
        }
    }
    for (name, _, policy) in old.0.cluster_policies.diff(&cluster.cluster_policies) {
        let key = (PolicyKind::ClusterNetworkPolicy, Name::new("", name));
        put(key, policy.map(|policy| vec![cluster_policy(policy)]));
    }
    forms
}

/// Whether what policies refer to by name has changed: CIDR groups, services, and slices that no pods are behind.
fn is_other_around(old: &Resolved, new: &Resolved) -> bool {
    let written = |cluster: &Resolved, slice: Option<&EndpointSlice>| {
        let service = slice.and_then(|slice| cluster.services.get(slice.service.as_ref()?));
        service.is_some_and(|service| service.selector.is_empty())
    };
    old.cidr_groups.diff(&new.cidr_groups).next().is_some()
        || old.services.diff(&new.services).next().is_some()
        || old.slices.diff(&new.slices).any(|(_, was, is)| written(old, was) || written(new, is))
}

/// Whether a policy refers to such things.
fn looks_around(policy: &CiliumPolicy) -> bool {
    let lists =
        policy.specs.iter().flat_map(|spec| [&spec.ingress, &spec.ingress_deny, &spec.egress, &spec.egress_deny]);
    lists.flatten().flat_map(|rule| rule.peers.iter().flatten()).any(|peer| match &peer.selects {
        CiliumPeerSelector::Groups { .. } | CiliumPeerSelector::Services(_) => true,
        CiliumPeerSelector::Pods(_)
        | CiliumPeerSelector::Entity(_)
        | CiliumPeerSelector::Cidr(_)
        | CiliumPeerSelector::Nodes(_)
        | CiliumPeerSelector::Names(_) => false,
    })
}

fn cilium_kind(name: &Name) -> PolicyKind {
    match name.namespace.as_str() {
        "" => PolicyKind::CiliumClusterwideNetworkPolicy,
        _ => PolicyKind::CiliumNetworkPolicy,
    }
}

fn audited(meta: &Meta) -> bool {
    meta.annotations.get(AUDIT).is_some_and(|value| value == "true")
}

fn network_policy(policy: &NetworkPolicy) -> Form {
    let home = &policy.meta.namespace;
    let mut rules = Vec::new();
    // The API ignores rules of a direction that a policy does not name.
    for (list, isolates, written) in [
        (List::Ingress, policy.isolates_ingress, &policy.ingress),
        (List::Egress, policy.isolates_egress, &policy.egress),
    ] {
        if isolates {
            rules.extend(written.iter().enumerate().map(|(index, rule)| network_policy_rule(list, index, rule, home)));
        }
    }
    Form {
        kind: PolicyKind::NetworkPolicy,
        name: policy.meta.full_name(),
        spec: None,
        position: policy.meta.position.clone(),
        audit: audited(&policy.meta),
        stage: Stage::Normal,
        subject: Subject::Pods(PodQuestion::in_namespace(home).and_selector(&policy.subject, LabelOf::Pod)),
        isolates_ingress: policy.isolates_ingress,
        isolates_egress: policy.isolates_egress,
        rules,
    }
}

fn network_policy_rule(list: List, index: usize, rule: &PolicyRule, home: &str) -> FormRule {
    let peer = |selects: &PeerSelector| match selects {
        PeerSelector::Pods { namespaces, pods } => {
            let question = match namespaces {
                None => PodQuestion::in_namespace(home),
                Some(selector) => PodQuestion::default().and_selector(selector, LabelOf::NamespaceLabel),
            };
            Select::Pods(pods.iter().fold(question, |question, pods| question.and_selector(pods, LabelOf::Pod)))
        }
        PeerSelector::Block(block) => Select::Block { block: block.clone(), cluster: EVERYWHERE },
    };
    let peers = rule.peers.iter().enumerate().map(|(item, found)| FormPeer {
        item,
        position: found.position.clone(),
        selects: peer(&found.selects),
    });
    let ports = rule.ports.iter().enumerate().map(|(item, port)| FormPort {
        item,
        position: port.position.clone(),
        protocol: port.protocol.number(),
        ports: port.ports.clone(),
        inspect: None,
    });
    FormRule {
        list,
        index,
        position: rule.position.clone(),
        level: Level::NORMAL,
        action: RuleAction::Allow,
        peers: (!rule.peers.is_empty()).then(|| peers.collect()),
        ports: ports.collect(),
        log: None,
    }
}

fn cilium(policy: &CiliumPolicy, spec: &CiliumSpec, cluster: &Resolved, settings: &PolicySettings) -> Form {
    let lists = [
        (List::Ingress, &spec.ingress),
        (List::IngressDeny, &spec.ingress_deny),
        (List::Egress, &spec.egress),
        (List::EgressDeny, &spec.egress_deny),
    ];
    let mut rules = Vec::new();
    for (list, written) in lists {
        for (index, rule) in written.iter().enumerate() {
            rules.push(cilium_rule(list, index, rule, spec.log.as_ref(), cluster, settings));
        }
    }
    Form {
        kind: cilium_kind(&policy.meta.full_name()),
        name: policy.meta.full_name(),
        spec: spec.index,
        position: if spec.index.is_some() { spec.position.clone() } else { policy.meta.position.clone() },
        audit: audited(&policy.meta),
        stage: Stage::Normal,
        subject: match &spec.subject {
            CiliumSubject::Pods(question) => Subject::Pods(question.clone()),
            CiliumSubject::Nodes(selector) => Subject::Nodes(selector.clone()),
        },
        isolates_ingress: spec.isolates_ingress,
        isolates_egress: spec.isolates_egress,
        rules,
    }
}

fn cilium_rule(
    list: List,
    index: usize,
    rule: &CiliumRule,
    log: Option<&String>,
    cluster: &Resolved,
    settings: &PolicySettings,
) -> FormRule {
    let mut peers = Vec::new();
    for (item, peer) in rule.peers.iter().flatten().enumerate() {
        let mut add = |selects| peers.push(FormPeer { item, position: peer.position.clone(), selects });
        let in_cluster = InCluster { pods: settings.cidrs_match_pods, nodes: settings.cidrs_match_nodes };
        let block = |block: IpBlock| Select::Block { block, cluster: in_cluster };
        match &peer.selects {
            CiliumPeerSelector::Pods(question) => add(Select::Pods(question.clone())),
            CiliumPeerSelector::Entity(entity) => add(Select::Entity(*entity)),
            CiliumPeerSelector::Cidr(found) => add(block(found.clone())),
            CiliumPeerSelector::Nodes(selector) => add(Select::Nodes(selector.clone())),
            CiliumPeerSelector::Names(pattern) => add(Select::Names(pattern.clone())),
            CiliumPeerSelector::Groups { groups, except } => {
                for prefix in group_prefixes(groups, cluster) {
                    let except = except.iter().copied().filter(|hole| prefix.covers(*hole) || hole.covers(prefix));
                    add(block(IpBlock { prefix, except: except.collect() }));
                }
            }
            CiliumPeerSelector::Services(found) => {
                for service in services(found, cluster) {
                    service_peers(service, cluster, &mut add);
                }
            }
        }
    }
    // A rule `{}` is about nobody: it only isolates.
    let anybody = rule.peers.is_none() && !rule.ports.is_empty();
    FormRule {
        list,
        index,
        position: rule.position.clone(),
        level: Level::NORMAL,
        action: if list.denies() { RuleAction::Deny } else { RuleAction::Allow },
        peers: (!anybody).then_some(peers),
        ports: rule.ports.iter().flat_map(cilium_port).collect(),
        log: log.cloned(),
    }
}

fn cilium_port(port: &CiliumPort) -> impl Iterator<Item = FormPort> + '_ {
    port.protocols.iter().map(|&protocol| FormPort {
        item: port.item,
        position: port.position.clone(),
        protocol,
        ports: port.ports.clone(),
        inspect: port.inspect.clone(),
    })
}

/// Prefixes of the groups that a reference means.
fn group_prefixes(groups: &GroupRef, cluster: &Resolved) -> BTreeSet<Prefix> {
    let meant = cluster.cidr_groups.iter().filter(|(name, group)| groups.selects(name, &group.meta.labels));
    meant.flat_map(|(_, group)| group.prefixes.iter().copied()).collect()
}

fn services<'a>(asked: &'a ServiceRef, cluster: &'a Resolved) -> impl Iterator<Item = &'a Service> {
    cluster
        .services
        .iter()
        .filter(move |(name, service)| match asked {
            ServiceRef::Name(own) => own == *name,
            ServiceRef::Selector { labels, namespace } => {
                labels.matches(&service.meta.labels) && namespace.as_ref().is_none_or(|own| *own == name.namespace)
            }
        })
        .map(|(_, service)| service)
}

/// The pods that a service selects; of one that selects none, the addresses that its slices name.
fn service_peers(service: &Service, cluster: &Resolved, add: &mut impl FnMut(Select)) {
    let name = service.meta.full_name();
    if service.kind == ServiceType::ExternalName {
        return;
    }
    if !service.selector.is_empty() {
        let pods = Selector { match_labels: service.selector.clone(), expressions: Vec::new() };
        return add(Select::Pods(PodQuestion::in_namespace(&name.namespace).and_selector(&pods, LabelOf::Pod)));
    }
    for slice in cluster.slices.values().filter(|slice| slice.service.as_ref() == Some(&name)) {
        for endpoint in &slice.endpoints {
            let block = IpBlock { prefix: Prefix::host(endpoint.address), except: BTreeSet::new() };
            add(Select::Block { block, cluster: InCluster { pods: false, nodes: false } });
        }
    }
}

fn cluster_policy(policy: &ClusterPolicy) -> Form {
    let stage = match policy.tier {
        Tier::Admin => Stage::Admin,
        Tier::Baseline => Stage::Baseline,
    };
    let mut rules = Vec::new();
    for (list, written) in [(List::Ingress, &policy.ingress), (List::Egress, &policy.egress)] {
        for (index, rule) in written.iter().enumerate() {
            rules.push(tier_rule(list, index, rule, Level::tier(stage, policy.priority, index)));
        }
    }
    Form {
        kind: PolicyKind::ClusterNetworkPolicy,
        name: Name::new("", &policy.meta.name),
        spec: None,
        position: policy.meta.position.clone(),
        audit: audited(&policy.meta),
        stage,
        subject: Subject::Pods(policy.subject.clone()),
        isolates_ingress: false,
        isolates_egress: false,
        rules,
    }
}

fn tier_rule(list: List, index: usize, rule: &TierRule, level: Level) -> FormRule {
    let mut peers = Vec::new();
    for (item, peer) in rule.peers.iter().enumerate() {
        let mut add = |selects| peers.push(FormPeer { item, position: peer.position.clone(), selects });
        match &peer.selects {
            TierPeerSelector::Pods(question) => add(Select::Pods(question.clone())),
            TierPeerSelector::Nodes(selector) => add(Select::Nodes(selector.clone())),
            TierPeerSelector::Networks(prefixes) => {
                for &prefix in prefixes {
                    let block = IpBlock { prefix, except: BTreeSet::new() };
                    add(Select::Block { block, cluster: EVERYWHERE });
                }
            }
            TierPeerSelector::Names(patterns) => patterns.iter().cloned().map(Select::Names).for_each(add),
        }
    }
    let mut ports = Vec::new();
    for (item, port) in rule.ports.iter().enumerate() {
        for &protocol in &port.protocols {
            let position: Position = port.position.clone();
            ports.push(FormPort { item, position, protocol, ports: port.ports.clone(), inspect: None });
        }
    }
    FormRule {
        list,
        index,
        position: rule.position.clone(),
        level,
        action: match rule.action {
            TierAction::Accept => RuleAction::Allow,
            TierAction::Deny => RuleAction::Deny,
            TierAction::Pass => RuleAction::Pass,
        },
        peers: Some(peers),
        ports,
        log: None,
    }
}
