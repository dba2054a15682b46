//! Policies of every kind in one shape, as they are written: nothing resolved, nothing left out.

use std::collections::BTreeSet;

use agent_core::model::cilium::{CiliumPeerSelector, CiliumRule, CiliumSubject, GroupRef, ServiceRef};
use agent_core::model::tiers::{TierPeerSelector, TierRule};
use agent_core::model::{IpBlock, LabelOf, Model, Name, PeerSelector, PodQuestion, PolicyRule, PortSelector};
use agent_core::policy::{AUDIT, List, PolicyKind};
use agent_core::{Direction, Position, Prefix, Selector};

/// A policy; of one with `specs`, one of them.
#[derive(Debug)]
pub struct Policy {
    pub kind: PolicyKind,
    pub name: Name,
    pub spec: Option<usize>,
    pub position: Position,
    pub audit: bool,
    pub subject: Subject,
    /// Ingress, egress.
    pub isolates: [bool; 2],
    pub rules: Vec<Rule>,
}

/// Whom a policy is about.
#[derive(Debug)]
pub enum Subject {
    Pods(PodQuestion),
    Nodes(Selector),
}

/// One rule.
#[derive(Debug)]
pub struct Rule {
    pub list: List,
    pub index: usize,
    pub position: Position,
    /// `None`: everybody.
    pub peers: Option<Vec<Peer>>,
    pub ports: Vec<Port>,
}

/// One peer.
#[derive(Debug)]
pub struct Peer {
    pub position: Position,
    pub whom: Whom,
}

/// Whom a peer selects.
#[derive(Debug)]
pub enum Whom {
    Pods(PodQuestion),
    /// Addresses; `inside`: of pods and nodes too.
    Block {
        block: IpBlock,
        inside: bool,
    },
    Groups {
        groups: GroupRef,
        except: BTreeSet<Prefix>,
    },
    Services(ServiceRef),
    Nodes(Selector),
    /// Entities and names: nothing to check against objects.
    Other,
}

/// One port.
#[derive(Debug)]
pub struct Port {
    pub position: Position,
    pub protocols: Vec<u8>,
    pub ports: PortSelector,
    pub inspected: bool,
}

impl Policy {
    pub fn isolates(&self, direction: Direction) -> bool {
        let [ingress, egress] = self.isolates;
        match direction {
            Direction::Ingress => ingress,
            Direction::Egress => egress,
        }
    }

    pub fn rules(&self, direction: Direction) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter(move |rule| rule.list.direction() == direction)
    }

    /// As findings name it.
    pub fn text(&self) -> String {
        let spec = self.spec.map(|spec| format!(" specs[{spec}]")).unwrap_or_default();
        format!("{} {}{spec}", self.kind, self.name)
    }
}

impl Rule {
    /// Its place in its policy.
    pub fn text(&self) -> String {
        format!("{}[{}]", self.list.name(), self.index)
    }
}

/// Every policy of a model.
pub fn policies(model: &Model) -> Vec<Policy> {
    let audits = |annotations: &std::collections::BTreeMap<String, String>| {
        annotations.get(AUDIT).is_some_and(|value| value == "true")
    };
    let mut all = Vec::new();
    for (name, policy) in model.policies() {
        let rules = |list, rules: &[PolicyRule]| {
            let rules = rules.iter().enumerate();
            rules.map(move |(index, rule)| kubernetes_rule(list, index, rule, &name.namespace)).collect::<Vec<_>>()
        };
        all.push(Policy {
            kind: PolicyKind::NetworkPolicy,
            name: name.clone(),
            spec: None,
            position: policy.meta.position.clone(),
            audit: audits(&policy.meta.annotations),
            subject: Subject::Pods(
                PodQuestion::in_namespace(&name.namespace).and_selector(&policy.subject, LabelOf::Pod),
            ),
            isolates: [policy.isolates_ingress, policy.isolates_egress],
            rules: [rules(List::Ingress, &policy.ingress), rules(List::Egress, &policy.egress)]
                .into_iter()
                .flatten()
                .collect(),
        });
    }
    for (name, policy) in model.cilium_policies() {
        let clusterwide = name.namespace.is_empty();
        let kind =
            if clusterwide { PolicyKind::CiliumClusterwideNetworkPolicy } else { PolicyKind::CiliumNetworkPolicy };
        for spec in &policy.specs {
            let rules = |list, rules: &[CiliumRule]| {
                let rules = rules.iter().enumerate();
                rules.map(move |(index, rule)| cilium_rule(list, index, rule)).collect::<Vec<_>>()
            };
            all.push(Policy {
                kind,
                name: name.clone(),
                spec: spec.index,
                position: spec.position.clone(),
                audit: audits(&policy.meta.annotations),
                subject: match &spec.subject {
                    CiliumSubject::Pods(question) => Subject::Pods(question.clone()),
                    CiliumSubject::Nodes(selector) => Subject::Nodes(selector.clone()),
                },
                isolates: [spec.isolates_ingress, spec.isolates_egress],
                rules: [
                    rules(List::Ingress, &spec.ingress),
                    rules(List::IngressDeny, &spec.ingress_deny),
                    rules(List::Egress, &spec.egress),
                    rules(List::EgressDeny, &spec.egress_deny),
                ]
                .into_iter()
                .flatten()
                .collect(),
            });
        }
    }
    for (name, policy) in model.cluster_policies() {
        let rules = |list, rules: &[TierRule]| {
            let rules = rules.iter().enumerate();
            rules.map(move |(index, rule)| tier_rule(list, index, rule)).collect::<Vec<_>>()
        };
        all.push(Policy {
            kind: PolicyKind::ClusterNetworkPolicy,
            name: Name::new("", name),
            spec: None,
            position: policy.meta.position.clone(),
            audit: audits(&policy.meta.annotations),
            subject: Subject::Pods(policy.subject.clone()),
            isolates: [false; 2],
            rules: [rules(List::Ingress, &policy.ingress), rules(List::Egress, &policy.egress)]
                .into_iter()
                .flatten()
                .collect(),
        });
    }
    all
}

fn kubernetes_rule(list: List, index: usize, rule: &PolicyRule, namespace: &str) -> Rule {
    let peers = rule.peers.iter().map(|peer| Peer {
        position: peer.position.clone(),
        whom: match &peer.selects {
            PeerSelector::Block(block) => Whom::Block { block: block.clone(), inside: true },
            PeerSelector::Pods { namespaces, pods } => {
                let own = match namespaces {
                    None => PodQuestion::in_namespace(namespace),
                    Some(selector) => PodQuestion::default().and_selector(selector, LabelOf::NamespaceLabel),
                };
                Whom::Pods(pods.iter().fold(own, |own, selector| own.and_selector(selector, LabelOf::Pod)))
            }
        },
    });
    let peers: Vec<Peer> = peers.collect();
    let ports = rule.ports.iter().map(|port| Port {
        position: port.position.clone(),
        protocols: vec![port.protocol.number()],
        ports: port.ports.clone(),
        inspected: false,
    });
    Rule {
        list,
        index,
        position: rule.position.clone(),
        peers: (!peers.is_empty()).then_some(peers),
        ports: ports.collect(),
    }
}

fn cilium_rule(list: List, index: usize, rule: &CiliumRule) -> Rule {
    let peers = rule.peers.as_ref().map(|peers| {
        let peers = peers.iter().map(|peer| Peer {
            position: peer.position.clone(),
            whom: match &peer.selects {
                CiliumPeerSelector::Pods(question) => Whom::Pods(question.clone()),
                CiliumPeerSelector::Cidr(block) => Whom::Block { block: block.clone(), inside: false },
                CiliumPeerSelector::Groups { groups, except } => {
                    Whom::Groups { groups: groups.clone(), except: except.clone() }
                }
                CiliumPeerSelector::Nodes(selector) => Whom::Nodes(selector.clone()),
                CiliumPeerSelector::Services(service) => Whom::Services(service.clone()),
                CiliumPeerSelector::Entity(_) | CiliumPeerSelector::Names(_) => Whom::Other,
            },
        });
        peers.collect()
    });
    let ports = rule.ports.iter().map(|port| Port {
        position: port.position.clone(),
        protocols: port.protocols.clone(),
        ports: port.ports.clone(),
        inspected: port.inspect.is_some(),
    });
    Rule { list, index, position: rule.position.clone(), peers, ports: ports.collect() }
}

fn tier_rule(list: List, index: usize, rule: &TierRule) -> Rule {
    let mut peers = Vec::new();
    for peer in &rule.peers {
        let mut add = |whom| peers.push(Peer { position: peer.position.clone(), whom });
        match &peer.selects {
            TierPeerSelector::Pods(question) => add(Whom::Pods(question.clone())),
            TierPeerSelector::Nodes(selector) => add(Whom::Nodes(selector.clone())),
            TierPeerSelector::Networks(prefixes) => {
                for prefix in prefixes {
                    let block = IpBlock { prefix: *prefix, except: BTreeSet::new() };
                    add(Whom::Block { block, inside: true });
                }
            }
            TierPeerSelector::Names(_) => add(Whom::Other),
        }
    }
    let ports = rule.ports.iter().map(|port| Port {
        position: port.position.clone(),
        protocols: port.protocols.clone(),
        ports: port.ports.clone(),
        inspected: false,
    });
    Rule { list, index, position: rule.position.clone(), peers: Some(peers), ports: ports.collect() }
}
