//! One policy's rules as identities and blocks of ports.

use std::collections::BTreeSet;

use datapath_abi::ids::{self, Identity};

use super::peers::{Peers, cover_everything};
use super::rules::{Direction, RuleId, RuleInfo, RuleTable};
use super::state::{L4, PolicyState, Verdict};
use crate::labels::Selector;
use crate::model::{IpBlock, Name, NetworkPolicy, PeerSelector, Pod, PolicyPort, PolicyRule, PortSelector, Resolved};
use crate::yaml::Position;

/// A policy with its peers resolved.
#[derive(Clone, Debug)]
pub(super) struct CompiledPolicy {
    pub(super) name: Name,
    pub(super) position: Position,
    pub(super) subject: Selector,
    isolates_ingress: bool,
    isolates_egress: bool,
    ingress: Vec<CompiledRule>,
    egress: Vec<CompiledRule>,
}

#[derive(Clone, Debug)]
struct CompiledRule {
    id: RuleId,
    /// Everybody is a peer.
    anybody: bool,
    /// Peers but for nodes.
    identities: BTreeSet<Identity>,
    /// Blocks, for the nodes in them.
    blocks: Vec<IpBlock>,
    ports: Vec<PolicyPort>,
}

impl CompiledPolicy {
    pub(super) fn new(policy: &NetworkPolicy, cluster: &Resolved, peers: &Peers, table: &mut RuleTable) -> Self {
        let name = policy.meta.full_name();
        let mut compile = |rules: &[PolicyRule], direction: Direction| -> Vec<CompiledRule> {
            let rules = rules.iter().enumerate();
            rules
                .map(|(index, rule)| {
                    let id = table.add(RuleInfo {
                        id: 0,
                        policy: name.clone(),
                        direction,
                        index,
                        position: rule.position.clone(),
                        peers: rule.peers.iter().map(|peer| peer.position.clone()).collect(),
                        ports: rule.ports.iter().map(|port| port.position.clone()).collect(),
                    });
                    CompiledRule::new(id, rule, &name.namespace, cluster, peers)
                })
                .collect()
        };
        let (mut ingress, mut egress) = (Vec::new(), Vec::new());
        if policy.isolates_ingress {
            ingress = compile(&policy.ingress, Direction::Ingress);
        }
        if policy.isolates_egress {
            egress = compile(&policy.egress, Direction::Egress);
        }
        Self {
            name,
            position: policy.meta.position.clone(),
            subject: policy.subject.clone(),
            isolates_ingress: policy.isolates_ingress,
            isolates_egress: policy.isolates_egress,
            ingress,
            egress,
        }
    }

    pub(super) fn isolates(&self, direction: Direction) -> bool {
        match direction {
            Direction::Ingress => self.isolates_ingress,
            Direction::Egress => self.isolates_egress,
        }
    }

    /// Numbers of the rules of a direction, in order.
    pub(super) fn rule_ids(&self, direction: Direction) -> impl Iterator<Item = RuleId> + '_ {
        self.rules(direction).iter().map(|rule| rule.id)
    }

    fn rules(&self, direction: Direction) -> &[CompiledRule] {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    /// Adds what the policy allows a pod that it selects.
    pub(super) fn entries(&self, direction: Direction, subject: &Pod, peers: &Peers, state: &mut PolicyState) {
        for rule in self.rules(direction) {
            rule.entries(direction, subject, peers, state);
        }
    }
}

impl CompiledRule {
    fn new(id: RuleId, rule: &PolicyRule, home: &str, cluster: &Resolved, peers: &Peers) -> Self {
        let mut identities = BTreeSet::new();
        let mut blocks = Vec::new();
        for peer in &rule.peers {
            peers.select(cluster, home, &peer.selects, &mut identities);
            if let PeerSelector::Block(block) = &peer.selects {
                blocks.push(block.clone());
            }
        }
        let anybody = rule.peers.is_empty() || cover_everything(cluster, &blocks);
        Self { id, anybody, identities, blocks, ports: rule.ports.clone() }
    }

    fn entries(&self, direction: Direction, subject: &Pod, peers: &Peers, state: &mut PolicyState) {
        let verdict = Verdict::allow(self.id);
        let mut selected = BTreeSet::new();
        if self.anybody {
            selected.insert(ids::UNKNOWN);
        } else {
            selected.clone_from(&self.identities);
            for block in &self.blocks {
                peers.select_nodes(&subject.node, block, direction, &mut selected);
            }
        }
        let mut allow = |l4: L4| {
            for &identity in &selected {
                state.insert(identity, l4, verdict);
            }
        };
        if self.ports.is_empty() {
            allow(L4::ANY);
        }
        for port in &self.ports {
            let protocol = port.protocol.number();
            match (&port.ports, direction) {
                (PortSelector::All, _) => allow(L4::protocol(protocol)),
                (PortSelector::Range(first, last), _) => {
                    for block in L4::range(protocol, *first, *last) {
                        allow(block);
                    }
                }
                (PortSelector::Named(name), Direction::Ingress) => {
                    let named = subject.ports.iter().filter(|own| own.name.as_ref() == Some(name));
                    for own in named.filter(|own| own.protocol == port.protocol) {
                        allow(L4 { protocol, port: own.port, bits: 24 });
                    }
                }
                (PortSelector::Named(_), Direction::Egress) => {}
            }
        }
        if direction == Direction::Egress {
            self.named_ports_of_peers(peers, verdict, state);
        }
    }

    fn named_ports_of_peers(&self, peers: &Peers, verdict: Verdict, state: &mut PolicyState) {
        for port in &self.ports {
            let PortSelector::Named(name) = &port.ports else {
                continue;
            };
            let protocol = port.protocol.number();
            for group in peers.groups() {
                if self.anybody || self.identities.contains(&group.identity) {
                    for number in group.ports(name, port.protocol) {
                        state.insert(group.identity, L4 { protocol, port: number, bits: 24 }, verdict);
                    }
                }
            }
        }
    }
}
