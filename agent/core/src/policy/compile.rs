//! One policy's rules as identities and blocks of ports.

use std::collections::BTreeSet;
use std::sync::Arc;

use datapath_abi::ids::{self, Identity};

use super::asked::protocol;
use super::form::{Form, FormPort, FormRule, RuleAction};
use super::peers::Peers;
use super::rules::{Direction, RuleId, RuleInfo, RuleTable};
use super::state::{Action, L4, Proxy};
use super::tiers::{Draft, Said};
use crate::model::cilium::Inspect;
use crate::model::{ContainerPort, PortSelector, Protocol};

/// A policy with its peers resolved.
#[derive(Clone, Debug)]
pub(super) struct CompiledPolicy {
    pub(super) form: Arc<Form>,
    rules: Vec<CompiledRule>,
}

#[derive(Clone, Debug)]
pub(super) struct CompiledRule {
    pub(super) id: RuleId,
    /// Everybody is a peer.
    anybody: bool,
}

/// Whose entries are made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Endpoint<'a> {
    pub(super) node: &'a str,
    /// Ports that it declares.
    pub(super) ports: &'a [ContainerPort],
}

impl CompiledPolicy {
    pub(super) fn new(form: Arc<Form>, peers: &Peers, table: &mut RuleTable) -> Self {
        let rules = form.rules.iter().map(|rule| CompiledRule::new(&form, rule, peers, table)).collect();
        Self { form, rules }
    }

    /// Its rules for a direction, as written and as resolved.
    pub(super) fn rules(&self, direction: Direction) -> impl Iterator<Item = (&FormRule, &CompiledRule)> {
        self.form.rules.iter().zip(&self.rules).filter(move |(rule, _)| rule.list.direction() == direction)
    }

    /// Adds what the policy says to an endpoint that it selects.
    pub(super) fn entries(&self, direction: Direction, endpoint: Endpoint<'_>, peers: &Peers, draft: &mut Draft) {
        for (rule, compiled) in self.rules(direction) {
            compiled.entries(&self.form, rule, endpoint, peers, draft);
        }
    }
}

impl CompiledRule {
    fn new(form: &Form, rule: &FormRule, peers: &Peers, table: &mut RuleTable) -> Self {
        // One item of a policy may have become several; places are those of items.
        let places = |items: Vec<(usize, &crate::yaml::Position)>| {
            let mut places = Vec::new();
            for (item, position) in items {
                places.resize_with(places.len().max(item + 1), || position.clone());
            }
            places
        };
        let id = table.add(RuleInfo {
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
        });
        Self { id, anybody: rule.peers.as_ref().is_none_or(|all| peers.is_everybody(all)) }
    }

    fn entries(&self, form: &Form, rule: &FormRule, endpoint: Endpoint<'_>, peers: &Peers, draft: &mut Draft) {
        let direction = rule.list.direction();
        let mut selected = BTreeSet::new();
        if self.anybody {
            selected.insert(ids::UNKNOWN);
        } else {
            for peer in rule.peers.iter().flatten() {
                peers.select(&peer.selects, &mut selected);
                peers.select_nodes(endpoint.node, &peer.selects, direction, &mut selected);
            }
        }
        let mut say = |identity: Identity, l4: L4, port: Option<&FormPort>| {
            draft.add(form.stage, rule.level, identity, l4, said(rule.action, port), self.id);
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
                    for (identity, number) in self.ports_of_peers(name, port.protocol, &selected, peers) {
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

    /// What a name stands for on the peers that have it.
    fn ports_of_peers(
        &self,
        name: &str,
        number: u8,
        selected: &BTreeSet<Identity>,
        peers: &Peers,
    ) -> BTreeSet<(Identity, u16)> {
        let Some(protocol): Option<Protocol> = protocol(number) else {
            return BTreeSet::new();
        };
        let meant = peers.groups().filter(|(identity, _)| self.anybody || selected.contains(identity));
        meant.flat_map(|(identity, group)| group.ports(name, protocol).map(move |port| (identity, port))).collect()
    }
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
