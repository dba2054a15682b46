//! Reads `networking.k8s.io/v1` NetworkPolicy, complete, with the API's own checks (its validation package).

use std::collections::BTreeSet;

use super::object::{IpBlock, Meta, NetworkPolicy, PeerSelector, PolicyPeer, PolicyPort, PolicyRule, PortSelector};
use super::read::{read_prefix, read_protocol};
use crate::input::{Field, Fields, Problem, Report};
use crate::labels::{Selector, is_port_name};

pub(super) fn network_policy(meta: Meta, fields: &mut Fields<'_>, report: &mut Report) -> Option<NetworkPolicy> {
    fields.accept(&["status"]);
    let mut policy = NetworkPolicy {
        meta,
        subject: Selector::default(),
        isolates_ingress: true,
        isolates_egress: false,
        ingress: Vec::new(),
        egress: Vec::new(),
    };
    let mut spec = fields.require("spec", report)?.object(report)?;
    if let Some(field) = spec.get("podSelector") {
        policy.subject = Selector::read(&field, report);
    }
    if let Some(field) = spec.get("ingress") {
        policy.ingress = rules(&field, "from", report);
    }
    if let Some(field) = spec.get("egress") {
        policy.egress = rules(&field, "to", report);
    }
    policy.isolates_egress = !policy.egress.is_empty();
    let types = spec.get("policyTypes");
    let types = types.map(|field| field.list(report)).unwrap_or_default();
    if !types.is_empty() {
        policy.isolates_ingress = false;
        policy.isolates_egress = false;
        for item in types {
            match item.string(report) {
                Some("Ingress") => policy.isolates_ingress = true,
                Some("Egress") => policy.isolates_egress = true,
                Some(_) => item.invalid(report, "must be Ingress or Egress"),
                None => {}
            }
        }
    }
    spec.finish(report);
    Some(policy)
}

fn rules(field: &Field<'_>, peers_name: &'static str, report: &mut Report) -> Vec<PolicyRule> {
    let items = field.list(report);
    let mut rules = Vec::with_capacity(items.len());
    for item in items {
        let Some(mut fields) = item.object(report) else {
            continue;
        };
        let ports = fields.get("ports");
        let peers = fields.get(peers_name);
        let ports = ports.map(|field| field.list(report)).unwrap_or_default();
        let peers = peers.map(|field| field.list(report)).unwrap_or_default();
        let rule = PolicyRule {
            position: item.position().clone(),
            peers: peers.iter().filter_map(|item| peer(item, report)).collect(),
            ports: ports.iter().filter_map(|item| port(item, report)).collect(),
        };
        fields.finish(report);
        rules.push(rule);
    }
    rules
}

fn peer(item: &Field<'_>, report: &mut Report) -> Option<PolicyPeer> {
    let mut fields = item.object(report)?;
    let pods = fields.get("podSelector");
    let namespaces = fields.get("namespaceSelector");
    let block = fields.get("ipBlock");
    let by_labels = pods.is_some() || namespaces.is_some();
    let selects = match &block {
        Some(field) => {
            if by_labels {
                let text = "a peer has either ipBlock or selectors, not both";
                field.wrong(report, Problem::Conflict(text.to_owned()));
            }
            ip_block(field, report).map(PeerSelector::Block)
        }
        None if by_labels => Some(PeerSelector::Pods {
            namespaces: namespaces.map(|field| Selector::read(&field, report)),
            pods: pods.map(|field| Selector::read(&field, report)),
        }),
        None => {
            let text = "a peer needs podSelector, namespaceSelector or ipBlock (to select everybody, leave out the whole list)";
            item.wrong(report, Problem::Conflict(text.to_owned()));
            None
        }
    };
    fields.finish(report);
    Some(PolicyPeer { position: item.position().clone(), selects: selects? })
}

fn ip_block(field: &Field<'_>, report: &mut Report) -> Option<IpBlock> {
    let mut fields = field.object(report)?;
    let prefix = fields.require("cidr", report).and_then(|field| read_prefix(&field, report));
    let mut except = BTreeSet::new();
    let list = fields.get("except");
    for item in list.map(|field| field.list(report)).unwrap_or_default() {
        let Some(hole) = read_prefix(&item, report) else {
            continue;
        };
        if let Some(prefix) = prefix
            && (!prefix.covers(hole) || prefix == hole)
        {
            item.invalid(report, format!("must be a smaller block inside {prefix}"));
        }
        except.insert(hole);
    }
    fields.finish(report);
    Some(IpBlock { prefix: prefix?, except })
}

fn port(item: &Field<'_>, report: &mut Report) -> Option<PolicyPort> {
    let mut fields = item.object(report)?;
    let protocol = read_protocol(&mut fields, report);
    let first = fields.get("port");
    let end = fields.get("endPort");
    let first = first.map(|field| port_ref(&field, report));
    let end_number = end.as_ref().and_then(|field| field.port(report));
    let ports = match (first, &end) {
        (None, None) => Some(PortSelector::All),
        (None, Some(end)) => {
            let text = "needs a numeric `port` beside it";
            end.wrong(report, Problem::Conflict(text.to_owned()));
            None
        }
        (Some(ports), None) => ports,
        (Some(Some(PortSelector::Range(first, _))), Some(end)) => end_number.map(|last| {
            if last < first {
                end.invalid(report, format!("must not be below `port` ({first})"));
            }
            PortSelector::Range(first, last.max(first))
        }),
        (Some(Some(PortSelector::Named(_) | PortSelector::All)), Some(end)) => {
            let text = "needs a numeric `port`; it has a name";
            end.wrong(report, Problem::Conflict(text.to_owned()));
            None
        }
        (Some(None), Some(_)) => None,
    };
    fields.finish(report);
    Some(PolicyPort { position: item.position().clone(), protocol: protocol?, ports: ports? })
}

/// A number, or a name in quotes or not.
fn port_ref(field: &Field<'_>, report: &mut Report) -> Option<PortSelector> {
    if field.is_plain_number() {
        let number = field.port(report)?;
        return Some(PortSelector::Range(number, number));
    }
    let name = field.string(report)?;
    if !is_port_name(name) {
        field.invalid(
            report,
            "must be a number (without quotes) or a port's name: at most 15 lower-case letters, digits and single `-`, at least one of them a letter",
        );
        return None;
    }
    Some(PortSelector::Named(name.to_owned()))
}
