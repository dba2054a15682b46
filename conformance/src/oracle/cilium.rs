//! `cilium.io/v2` CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy.

use agent_core::labels::Labels;
use agent_core::model::cilium::{CiliumPeerSelector, CiliumRule, CiliumSpec, CiliumSubject, Inspect, ServiceRef};
use agent_core::model::object::{Meta, ServiceType};
use agent_core::model::{Entity, Name};
use agent_core::policy::Direction;

use super::{Oracle, Peer, Question, Said, Subject};

pub(super) fn add(
    oracle: &Oracle<'_>,
    question: &Question<'_>,
    peer: &Peer<'_>,
    counts: &dyn Fn(&Meta) -> bool,
    said: &mut Said,
) {
    let policies = oracle.model.cilium_policies().values().filter(|policy| counts(&policy.meta));
    for spec in policies.flat_map(|policy| &policy.specs) {
        if !is_about(oracle, spec, question.subject) {
            continue;
        }
        let (isolates, allows, denies) = match question.direction {
            Direction::Ingress => (spec.isolates_ingress, &spec.ingress, &spec.ingress_deny),
            Direction::Egress => (spec.isolates_egress, &spec.egress, &spec.egress_deny),
        };
        said.isolated |= isolates;
        for rule in denies {
            said.deny |= !matching(oracle, rule, question, peer).is_empty();
        }
        for rule in allows {
            for inspect in matching(oracle, rule, question, peer) {
                match inspect {
                    None => said.allow = true,
                    Some(Inspect::Dns(_)) => said.dns = true,
                    Some(Inspect::Http(_) | Inspect::Tls(_)) => said.inspect = true,
                }
            }
        }
    }
}

fn is_about(oracle: &Oracle<'_>, spec: &CiliumSpec, subject: Subject<'_>) -> bool {
    match (&spec.subject, subject) {
        (CiliumSubject::Pods(question), Subject::Pod(pod)) => oracle.holds(question, pod),
        (CiliumSubject::Nodes(selector), Subject::Node(node)) => selector.matches(&node.labels),
        (CiliumSubject::Pods(_), Subject::Node(_)) | (CiliumSubject::Nodes(_), Subject::Pod(_)) => false,
    }
}

/// For each part of a rule that matches, what a proxy has to look at.
fn matching<'r>(
    oracle: &Oracle<'_>,
    rule: &'r CiliumRule,
    question: &Question<'_>,
    peer: &Peer<'_>,
) -> Vec<Option<&'r Inspect>> {
    let is_peer = match &rule.peers {
        // A rule without peers is about everybody if it has ports, and about nobody if it has nothing.
        None => !rule.ports.is_empty(),
        Some(peers) => peers.iter().any(|item| selects(oracle, &item.selects, peer)),
    };
    if !is_peer {
        return Vec::new();
    }
    if rule.ports.is_empty() {
        return vec![None];
    }
    let ports = rule
        .ports
        .iter()
        .filter(|port| port.protocols.iter().any(|protocol| oracle.port(question, peer, *protocol, &port.ports)));
    ports.map(|port| port.inspect.as_ref()).collect()
}

fn selects(oracle: &Oracle<'_>, selector: &CiliumPeerSelector, peer: &Peer<'_>) -> bool {
    let by_address = |block: &agent_core::model::IpBlock| {
        (peer.outside() && block.contains(peer.address))
            || (oracle.settings.cidrs_match_pods && peer.pod.is_some() && block.contains(peer.address))
            || (oracle.settings.cidrs_match_nodes && peer.node_in(block))
    };
    match selector {
        CiliumPeerSelector::Pods(question) => peer.pod.is_some_and(|pod| oracle.holds(question, pod)),
        CiliumPeerSelector::Entity(entity) => is_entity(oracle, *entity, peer),
        CiliumPeerSelector::Cidr(block) => by_address(block),
        CiliumPeerSelector::Groups { groups, except } => oracle.model.cidr_groups().iter().any(|(name, group)| {
            groups.selects(name, &group.meta.labels)
                && group
                    .prefixes
                    .iter()
                    .any(|prefix| by_address(&agent_core::model::IpBlock { prefix: *prefix, except: except.clone() }))
        }),
        CiliumPeerSelector::Nodes(selector) => peer.node.is_some_and(|node| selector.matches(&node.labels)),
        CiliumPeerSelector::Services(asked) => is_behind(oracle, asked, peer),
        CiliumPeerSelector::Names(pattern) => {
            peer.outside()
                && oracle
                    .settings
                    .names
                    .iter()
                    .any(|(name, addresses)| pattern.matches(name) && addresses.contains(&peer.address))
        }
    }
}

fn is_behind(oracle: &Oracle<'_>, asked: &ServiceRef, peer: &Peer<'_>) -> bool {
    let meant = |name: &Name, labels: &Labels| match asked {
        ServiceRef::Name(own) => own == name,
        ServiceRef::Selector { labels: selector, namespace } => {
            selector.matches(labels) && namespace.as_ref().is_none_or(|own| *own == name.namespace)
        }
    };
    oracle.model.services().iter().any(|(name, service)| {
        if !meant(name, &service.meta.labels) || service.kind == ServiceType::ExternalName {
            return false;
        }
        if service.selector.is_empty() {
            return peer.outside() && addresses(oracle, name).contains(&peer.address);
        }
        peer.pod.is_some_and(|pod| {
            pod.name.namespace == name.namespace
                && service.selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
        })
    })
}

fn addresses(oracle: &Oracle<'_>, service: &Name) -> Vec<std::net::IpAddr> {
    let slices = oracle.model.endpoint_slices().values().filter(|slice| slice.service.as_ref() == Some(service));
    slices.flat_map(|slice| slice.endpoints.iter().map(|endpoint| endpoint.address)).collect()
}

fn is_entity(oracle: &Oracle<'_>, entity: Entity, peer: &Peer<'_>) -> bool {
    match entity {
        Entity::All => true,
        Entity::World => peer.outside(),
        Entity::WorldIpv4 => peer.outside() && peer.address.is_ipv4(),
        Entity::WorldIpv6 => peer.outside() && peer.address.is_ipv6(),
        Entity::Cluster => !peer.outside(),
        Entity::Host => peer.own_node,
        Entity::RemoteNode => peer.node.is_some() && !peer.own_node,
        Entity::KubeApiserver => {
            let all = addresses(oracle, &Name::new("default", "kubernetes"));
            // The own node is one peer, whatever its address.
            let own = peer.node.filter(|_| peer.own_node);
            peer.pod.is_none()
                && (all.contains(&peer.address)
                    || own.is_some_and(|node| node.addresses.iter().any(|address| all.contains(address))))
        }
        // Nobody in these clusters has such an identity.
        Entity::Init | Entity::Ingress | Entity::Unmanaged | Entity::Health | Entity::None => false,
    }
}
