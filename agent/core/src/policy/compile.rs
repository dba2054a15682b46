//! One policy's rules as identities and blocks of ports.

use std::collections::BTreeSet;
use std::sync::Arc;

use datapath_abi::ids::{self, Identity};

use super::asked::protocol;
use super::form::{Form, FormPort, FormRule, RuleAction};
use super::groups::Group;
use super::peers::Peers;
use super::rules::{Direction, RuleId, RuleInfo, RuleTable};
use super::state::{Action, L4, Proxy};
use super::tiers::{Draft, Said};
use crate::model::cilium::Inspect;
use crate::model::{ContainerPort, PortSelector, Protocol};

/// A policy whose rules have numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CompiledPolicy {
    pub(super) form: Arc<Form>,
    rules: Vec<RuleId>,
}

/// Whose entries are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Endpoint<'a> {
    pub(super) node: &'a str,
    /// Ports that it declares.
    pub(super) ports: &'a [ContainerPort],
    /// Only entries of these identities are wanted, and those of any.
    pub(super) only: Option<&'a BTreeSet<Identity>>,
}

impl CompiledPolicy {
    pub(super) fn new(form: Arc<Form>, table: &mut RuleTable) -> Self {
        let rules = form.rules.iter().map(|rule| table.add(info(&form, rule))).collect();
        Self { form, rules }
    }

    /// Takes its rules out of the table.
    pub(super) fn forget(&self, table: &mut RuleTable) {
        for id in &self.rules {
            table.remove(*id);
        }
    }

    /// Its rules for a direction, with their numbers.
    pub(super) fn rules(&self, direction: Direction) -> impl Iterator<Item = (&FormRule, RuleId)> {
        let all = self.form.rules.iter().zip(self.rules.iter().copied());
        all.filter(move |(rule, _)| rule.list.direction() == direction)
    }

    /// Adds what the policy says to an endpoint that it selects.
    pub(super) fn entries(&self, direction: Direction, endpoint: Endpoint<'_>, peers: &Peers, draft: &mut Draft) {
        for (rule, id) in self.rules(direction) {
            Numbered { form: &self.form, rule, id }.entries(endpoint, peers, draft);
        }
    }
}

fn info(form: &Form, rule: &FormRule) -> RuleInfo {
    // One item of a policy may have become several; places are those of items.
    let places = |items: Vec<(usize, &crate::yaml::Position)>| {
        let mut places = Vec::new();
        for (item, position) in items {
            places.resize_with(places.len().max(item + 1), || position.clone());
        }
        places
    };
    RuleInfo {
        id: 0,
        kind: form.kind,
        policy: form.name.clone(),
        spec: form.spec,
        direction: rule.list.direction(),
        list: rule.list,
        index: rule.index,
        action: rule.action,
        log: rule.log.clone(),
        position: rule.position.clone(),
        peers: places(rule.peers.iter().flatten().map(|peer| (peer.item, &peer.position)).collect()),
        ports: places(rule.ports.iter().map(|port| (port.item, &port.position)).collect()),
    }
}

/// A rule, while its entries are made.
#[derive(Clone, Copy)]
struct Numbered<'a> {
    form: &'a Form,
    rule: &'a FormRule,
    id: RuleId,
}

impl Numbered<'_> {
    fn entries(self, endpoint: Endpoint<'_>, peers: &Peers, draft: &mut Draft) {
        let Self { form, rule, id } = self;
        let anybody = rule.peers.as_ref().is_none_or(|all| peers.is_everybody(all));
        let direction = rule.list.direction();
        let mut selected = BTreeSet::new();
        if anybody {
            selected.insert(ids::UNKNOWN);
        } else {
            for peer in rule.peers.iter().flatten() {
                peers.select(&peer.selects, endpoint.only, &mut selected);
                peers.select_nodes(endpoint.node, &peer.selects, direction, &mut selected);
            }
        }
        if let Some(only) = endpoint.only {
            selected.retain(|identity| *identity == ids::UNKNOWN || only.contains(identity));
        }
        let mut say = |identity: Identity, l4: L4, port: Option<&FormPort>| {
            draft.add(form.stage, rule.level, identity, l4, said(rule.action, port), id);
        };
        if rule.ports.is_empty() {
            for &identity in &selected {
                say(identity, L4::ANY, None);
            }
        }
        for port in &rule.ports {
            let blocks = match (&port.ports, direction) {
                (PortSelector::All, _) => vec![L4::protocol(port.protocol)],
                (PortSelector::Range(first, last), _) => L4::range(port.protocol, *first, *last),
                (PortSelector::Named(name), Direction::Ingress) => {
                    let own = endpoint.ports.iter().filter(|own| own.name.as_ref() == Some(name));
                    let own = own.filter(|own| own.protocol.number() == port.protocol);
                    own.map(|own| L4 { protocol: port.protocol, port: own.port, bits: 24 }).collect()
                }
                (PortSelector::Named(name), Direction::Egress) => {
                    for (identity, number) in
                        ports_of_peers(name, port.protocol, (anybody, &selected), peers, endpoint.only)
                    {
                        say(identity, L4 { protocol: port.protocol, port: number, bits: 24 }, Some(port));
                    }
                    Vec::new()
                }
            };
            for &identity in &selected {
                for block in &blocks {
                    say(identity, *block, Some(port));
                }
            }
        }
    }
}

/// What a name stands for on the peers that have it.
fn ports_of_peers(
    name: &str,
    number: u8,
    (anybody, selected): (bool, &BTreeSet<Identity>),
    peers: &Peers,
    only: Option<&BTreeSet<Identity>>,
) -> BTreeSet<(Identity, u16)> {
    let Some(protocol): Option<Protocol> = protocol(number) else {
        return BTreeSet::new();
    };
    let all: Vec<(Identity, &Group)> = match only {
        Some(only) => only.iter().filter_map(|identity| Some((*identity, peers.group(*identity)?))).collect(),
        None => peers.groups().collect(),
    };
    let meant = all.into_iter().filter(|(identity, _)| anybody || selected.contains(identity));
    meant.flat_map(|(identity, group)| group.ports(name, protocol).map(move |port| (identity, port))).collect()
}

fn said(action: RuleAction, port: Option<&FormPort>) -> Said {
    let proxy = port.and_then(|port| port.inspect.as_ref()).map(|inspect| match inspect {
        Inspect::Http(_) => Proxy::Http,
        Inspect::Dns(_) => Proxy::Dns,
        Inspect::Tls(_) => Proxy::Tls,
    });
    match action {
        RuleAction::Allow => Said::Verdict(proxy.map_or(Action::Allow, Action::Redirect)),
        RuleAction::Deny => Said::Verdict(Action::Deny),
        RuleAction::Pass => Said::Pass,
    }
}
