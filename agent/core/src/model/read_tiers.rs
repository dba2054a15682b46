//! Reads `policy.networking.k8s.io/v1alpha2` ClusterNetworkPolicy with the checks of its definition.

use super::names::NamePattern;
use super::object::{Meta, PortSelector, Protocol};
use super::question::{LabelOf, PodQuestion};
use super::read::{read_prefix, word};
use super::tiers::{ClusterPolicy, Tier, TierAction, TierPeer, TierPeerSelector, TierPort, TierRule};
use crate::input::{Field, Fields, Problem, Report};
use crate::labels::{Selector, is_port_name};

/// Most items of every list.
const MOST: usize = 25;

pub(super) fn policy(meta: Meta, fields: &mut Fields<'_>, report: &mut Report) -> Option<ClusterPolicy> {
    fields.accept(&["status"]);
    let mut spec = fields.require("spec", report)?.object(report)?;
    let tier = spec.require("tier", report);
    let tier = tier.and_then(|field| word(&field, &[("Admin", Tier::Admin), ("Baseline", Tier::Baseline)], report));
    let priority = spec.require("priority", report).and_then(|field| field.integer(report, 0..=1000));
    let subject = spec.require("subject", report);
    let subject = subject.and_then(|field| subject_of(&field, report));
    let mut rules = |name: &'static str, ingress: bool, report: &mut Report| -> Vec<TierRule> {
        let items = spec.get(name).map(|field| few(&field, 0, report)).unwrap_or_default();
        items.iter().filter_map(|item| rule(item, ingress, report)).collect()
    };
    let ingress = rules("ingress", true, report);
    let egress = rules("egress", false, report);
    spec.finish(report);
    let priority = priority.and_then(|priority| u16::try_from(priority).ok())?;
    Some(ClusterPolicy { meta, tier: tier?, priority, subject: subject?, ingress, egress })
}

/// A list of at least so many items.
fn few<'a>(field: &Field<'a>, least: usize, report: &mut Report) -> Vec<Field<'a>> {
    let items = field.list(report);
    if items.len() < least || items.len() > MOST {
        let text = format!("has {} items; it takes from {least} to {MOST}", items.len());
        field.wrong(report, Problem::Conflict(text));
    }
    items
}

/// The one field of several that is set.
fn only<'a>(
    item: &Field<'a>,
    fields: &mut Fields<'a>,
    names: &[&'static str],
    report: &mut Report,
) -> Option<(&'static str, Field<'a>)> {
    let set: Vec<_> = names.iter().filter_map(|name| fields.get(name).map(|field| (*name, field))).collect();
    if set.len() != 1 {
        item.wrong(report, Problem::Conflict(format!("needs exactly one of {}", names.join(", "))));
        return None;
    }
    set.into_iter().next()
}

fn subject_of(field: &Field<'_>, report: &mut Report) -> Option<PodQuestion> {
    let mut fields = field.object(report)?;
    let found = only(field, &mut fields, &["namespaces", "pods"], report);
    fields.finish(report);
    let (name, field) = found?;
    pods(name, &field, report)
}

/// `namespaces: SELECTOR` or `pods: {namespaceSelector, podSelector}`.
fn pods(name: &str, field: &Field<'_>, report: &mut Report) -> Option<PodQuestion> {
    let question = PodQuestion::default();
    if name == "namespaces" {
        return Some(question.and_selector(&Selector::read(field, report), LabelOf::NamespaceLabel));
    }
    let mut fields = field.object(report)?;
    let namespaces = fields.get("namespaceSelector").map(|field| Selector::read(&field, report)).unwrap_or_default();
    let pods = fields.require("podSelector", report).map(|field| Selector::read(&field, report));
    fields.finish(report);
    Some(question.and_selector(&namespaces, LabelOf::NamespaceLabel).and_selector(&pods?, LabelOf::Pod))
}

fn rule(item: &Field<'_>, ingress: bool, report: &mut Report) -> Option<TierRule> {
    let mut fields = item.object(report)?;
    let name = fields.get("name").and_then(|field| {
        let text = field.string(report)?;
        if text.chars().count() > 100 {
            field.invalid(report, "must have at most 100 characters");
        }
        Some(text.to_owned())
    });
    let actions = [("Accept", TierAction::Accept), ("Deny", TierAction::Deny), ("Pass", TierAction::Pass)];
    let action = fields.require("action", report).and_then(|field| word(&field, &actions, report));
    let list = fields.require(if ingress { "from" } else { "to" }, report);
    let list = list.map(|field| few(&field, 1, report)).unwrap_or_default();
    let peers: Vec<TierPeer> = list.iter().filter_map(|item| peer(item, ingress, action, report)).collect();
    let protocols = fields.get("protocols");
    let mut ports = Vec::new();
    for item in protocols.map(|field| few(&field, 1, report)).unwrap_or_default() {
        let found = port(&item, report);
        if let Some(TierPort { ports: PortSelector::Named(_), .. }) = &found
            && peers.iter().any(|peer| !matches!(peer.selects, TierPeerSelector::Pods(_)))
        {
            let text = "nodes, networks and domain names have no named ports".to_owned();
            item.wrong(report, Problem::Conflict(text));
        }
        ports.extend(found);
    }
    fields.finish(report);
    Some(TierRule { position: item.position().clone(), name: name.unwrap_or_default(), action: action?, peers, ports })
}

fn peer(item: &Field<'_>, ingress: bool, action: Option<TierAction>, report: &mut Report) -> Option<TierPeer> {
    let mut fields = item.object(report)?;
    let names: &[&'static str] =
        if ingress { &["namespaces", "pods"] } else { &["namespaces", "pods", "nodes", "networks", "domainNames"] };
    let found = only(item, &mut fields, names, report);
    fields.finish(report);
    let (name, field) = found?;
    let selects = match name {
        "nodes" => TierPeerSelector::Nodes(Selector::read(&field, report)),
        "networks" => {
            let items = few(&field, 1, report);
            TierPeerSelector::Networks(items.iter().filter_map(|item| read_prefix(item, report)).collect())
        }
        "domainNames" => {
            if action.is_some_and(|action| action != TierAction::Accept) {
                let why = "only Accept rules know names: an address that was not learnt yet would pass a Deny";
                field.wrong(report, Problem::Unsupported { why });
            }
            let items = few(&field, 1, report);
            TierPeerSelector::Names(items.iter().filter_map(|item| domain(item, report)).collect())
        }
        _ => TierPeerSelector::Pods(pods(name, &field, report)?),
    };
    Some(TierPeer { position: item.position().clone(), selects })
}

/// A name, or `*.` and a name for all names below it.
fn domain(item: &Field<'_>, report: &mut Report) -> Option<NamePattern> {
    let text = item.string(report)?;
    let (below, name) = text.strip_prefix("*.").map_or((false, text), |name| (true, name));
    let whole = name.strip_suffix('.').unwrap_or(name).contains('.') && !name.contains('*');
    let pattern = if below { NamePattern::parse(&format!("**.{name}")) } else { NamePattern::parse(name) };
    let pattern = pattern.filter(|_| whole);
    if pattern.is_none() {
        item.invalid(
            report,
            "must be a DNS name of two labels or more, with `*.` before it if all names below are meant",
        );
    }
    pattern
}

fn port(item: &Field<'_>, report: &mut Report) -> Option<TierPort> {
    let mut fields = item.object(report)?;
    let found = only(item, &mut fields, &["tcp", "udp", "sctp", "destinationNamedPort"], report);
    fields.finish(report);
    let (name, field) = found?;
    let position = item.position().clone();
    let protocol = match name {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => {
            let text = field.string(report)?;
            if !is_port_name(text) {
                field.invalid(report, "must be the name of a container's port");
            }
            let protocols = Protocol::ALL.map(Protocol::number).to_vec();
            return Some(TierPort { position, protocols, ports: PortSelector::Named(text.to_owned()) });
        }
    };
    let mut fields = field.object(report)?;
    let ports = fields.require("destinationPort", report);
    fields.finish(report);
    let ports = number_or_range(&ports?, report)?;
    Some(TierPort { position, protocols: vec![protocol.number()], ports })
}

fn number_or_range(field: &Field<'_>, report: &mut Report) -> Option<PortSelector> {
    let mut fields = field.object(report)?;
    let found = only(field, &mut fields, &["number", "range"], report);
    fields.finish(report);
    let (name, field) = found?;
    if name == "number" {
        return field.port(report).map(|port| PortSelector::Range(port, port));
    }
    let mut fields = field.object(report)?;
    let start = fields.require("start", report).and_then(|field| field.port(report));
    let end = fields.require("end", report);
    let last = end.as_ref().and_then(|field| field.port(report));
    fields.finish(report);
    let (start, last) = (start?, last?);
    if start >= last {
        end?.invalid(report, format!("must be above `start` ({start})"));
        return None;
    }
    Some(PortSelector::Range(start, last))
}
