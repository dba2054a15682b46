//! `networking.k8s.io/v1` NetworkPolicy.

use agent_core::model::object::Meta;
use agent_core::model::{NetworkPolicy, PeerSelector, PolicyRule};
use agent_core::policy::Direction;

use super::{Oracle, Peer, Question, Said, Subject};

pub(super) fn add(
    oracle: &Oracle<'_>,
    question: &Question<'_>,
    peer: &Peer<'_>,
    counts: &dyn Fn(&Meta) -> bool,
    said: &mut Said,
) {
    let Subject::Pod(subject) = question.subject else { return };
    for policy in oracle.model.policies().values().filter(|policy| counts(&policy.meta)) {
        if policy.meta.namespace != subject.name.namespace || !policy.subject.matches(&subject.labels) {
            continue;
        }
        let (isolates, rules) = match question.direction {
            Direction::Ingress => (policy.isolates_ingress, &policy.ingress),
            Direction::Egress => (policy.isolates_egress, &policy.egress),
        };
        if isolates {
            said.isolated = true;
            said.allow |= rules.iter().any(|rule| allows(oracle, policy, rule, question, peer));
        }
    }
}

fn allows(
    oracle: &Oracle<'_>,
    policy: &NetworkPolicy,
    rule: &PolicyRule,
    question: &Question<'_>,
    peer: &Peer<'_>,
) -> bool {
    let from = rule.peers.is_empty() || rule.peers.iter().any(|item| is_peer(oracle, policy, &item.selects, peer));
    let to = rule.ports.is_empty()
        || rule.ports.iter().any(|item| oracle.port(question, peer, item.protocol.number(), &item.ports));
    from && to
}

fn is_peer(oracle: &Oracle<'_>, policy: &NetworkPolicy, selects: &PeerSelector, peer: &Peer<'_>) -> bool {
    match selects {
        PeerSelector::Block(block) if peer.node.is_some() => peer.node_in(block),
        PeerSelector::Block(block) => block.contains(peer.address),
        PeerSelector::Pods { namespaces, pods } => peer.pod.is_some_and(|pod| {
            let home = match namespaces {
                None => pod.name.namespace == policy.meta.namespace,
                Some(selector) => selector.matches(&oracle.model.namespaces()[&pod.name.namespace]),
            };
            home && pods.as_ref().is_none_or(|selector| selector.matches(&pod.labels))
        }),
    }
}
