//! `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy.

use std::collections::BTreeMap;

use agent_core::model::object::Meta;
use agent_core::model::tiers::{Tier, TierAction, TierPeerSelector, TierRule};
use agent_core::policy::Direction;

use super::{Oracle, Outcome, Peer, Question, Subject};

/// What a tier decides; `None`: nothing, or that the next one is to be asked.
pub(super) fn decide(
    oracle: &Oracle<'_>,
    tier: Tier,
    question: &Question<'_>,
    peer: &Peer<'_>,
    counts: &dyn Fn(&Meta) -> bool,
) -> Option<Outcome> {
    let Subject::Pod(subject) = question.subject else { return None };
    let mut rules: BTreeMap<(u16, usize), Vec<&TierRule>> = BTreeMap::new();
    for policy in oracle.model.cluster_policies().values() {
        if policy.tier != tier || !counts(&policy.meta) || !oracle.holds(&policy.subject, subject) {
            continue;
        }
        let list = match question.direction {
            Direction::Ingress => &policy.ingress,
            Direction::Egress => &policy.egress,
        };
        for (index, rule) in list.iter().enumerate() {
            rules.entry((policy.priority, index)).or_default().push(rule);
        }
    }
    for rules in rules.values() {
        let matching: Vec<_> = rules.iter().filter(|rule| matches(oracle, rule, question, peer)).collect();
        for (action, outcome) in [
            (TierAction::Deny, Some(Outcome::Deny)),
            (TierAction::Accept, Some(Outcome::Allow)),
            (TierAction::Pass, None),
        ] {
            if matching.iter().any(|rule| rule.action == action) {
                return outcome;
            }
        }
    }
    None
}

fn matches(oracle: &Oracle<'_>, rule: &TierRule, question: &Question<'_>, peer: &Peer<'_>) -> bool {
    let is_peer = |selects: &TierPeerSelector| match selects {
        TierPeerSelector::Pods(asked) => peer.pod.is_some_and(|pod| oracle.holds(asked, pod)),
        TierPeerSelector::Nodes(selector) => peer.node.is_some_and(|node| selector.matches(&node.labels)),
        TierPeerSelector::Networks(prefixes) => prefixes.iter().any(|prefix| {
            let block = agent_core::model::IpBlock { prefix: *prefix, except: [].into() };
            if peer.node.is_some() { peer.node_in(&block) } else { prefix.contains(peer.address) }
        }),
        TierPeerSelector::Names(patterns) => {
            peer.outside()
                && oracle.settings.names.iter().any(|(name, addresses)| {
                    addresses.contains(&peer.address) && patterns.iter().any(|pattern| pattern.matches(name))
                })
        }
    };
    let ports = rule.ports.is_empty()
        || rule
            .ports
            .iter()
            .any(|port| port.protocols.iter().any(|protocol| oracle.port(question, peer, *protocol, &port.ports)));
    ports && rule.peers.iter().any(|item| is_peer(&item.selects))
}
