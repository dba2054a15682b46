//! Peers of Cilium's rules: `fromEndpoints`, `toCIDRSet` and the like.

use std::collections::BTreeSet;

use super::cilium::{CiliumPeer, CiliumPeerSelector, GroupRef, ServiceRef};
use super::names::name_selector;
use super::object::{IpBlock, Name};
use super::question::{Endpoints, Entity, endpoint_selector};
use super::read::{read_prefix, read_prefix_or_address};
use super::read_cilium::{List, at_home};
use crate::input::{Field, Fields, Problem, Report};
use crate::labels::Selector;

/// Lists of peers: name for packets to the subject, name for packets from it, reader of an item.
type Lists = [(&'static str, &'static str, fn(&Field<'_>, &str, &mut Report) -> Option<CiliumPeerSelector>); 7];

const LISTS: Lists = [
    ("fromEndpoints", "toEndpoints", endpoints),
    ("fromCIDR", "toCIDR", cidr),
    ("fromCIDRSet", "toCIDRSet", cidr_set),
    ("fromEntities", "toEntities", entity),
    ("fromNodes", "toNodes", nodes),
    ("", "toServices", service),
    ("", "toFQDNs", names),
];

/// Everybody that a rule's lists name; `None` when it has no list.
pub(super) fn peers(
    fields: &mut Fields<'_>,
    list: List,
    namespace: &str,
    report: &mut Report,
) -> Option<Vec<CiliumPeer>> {
    for (from, to) in [("fromRequires", "toRequires"), ("fromGroups", "toGroups")] {
        let (name, why) = if from == "fromRequires" {
            (if list.ingress { from } else { to }, "Cilium removed it; use matchExpressions, or a deny rule")
        } else {
            (if list.ingress { from } else { to }, "groups of a cloud are not there; use CIDRs or a CiliumCIDRGroup")
        };
        fields.refuse(name, why, report);
    }
    if list.deny && !list.ingress {
        fields.refuse("toFQDNs", "a deny rule knows no names: an address that was not learnt yet would pass", report);
    }
    let mut found: Option<Vec<CiliumPeer>> = None;
    let mut first: Option<&'static str> = None;
    for (from, to, read) in LISTS {
        let name = if list.ingress { from } else { to };
        if name.is_empty() || (list.deny && name == "toFQDNs") {
            continue;
        }
        let Some(field) = fields.get(name) else { continue };
        let items = field.list(report);
        let all = found.get_or_insert_default();
        match first {
            Some(other) if !items.is_empty() => {
                let text = format!("cannot stand beside {other} in one rule; write two rules");
                field.wrong(report, Problem::Conflict(text));
            }
            Some(_) | None if items.is_empty() => {}
            Some(_) | None => first = Some(name),
        }
        for item in items {
            let selects = read(&item, namespace, report);
            all.extend(selects.map(|selects| CiliumPeer { position: item.position().clone(), selects }));
        }
    }
    found
}

fn endpoints(item: &Field<'_>, namespace: &str, report: &mut Report) -> Option<CiliumPeerSelector> {
    Some(match endpoint_selector(item, report)? {
        Endpoints::Pods(question) => CiliumPeerSelector::Pods(at_home(question, namespace)),
        Endpoints::Entity(entity) => CiliumPeerSelector::Entity(entity),
    })
}

fn cidr(item: &Field<'_>, _: &str, report: &mut Report) -> Option<CiliumPeerSelector> {
    let prefix = read_prefix_or_address(item, report)?;
    Some(CiliumPeerSelector::Cidr(IpBlock { prefix, except: BTreeSet::new() }))
}

fn cidr_set(item: &Field<'_>, _: &str, report: &mut Report) -> Option<CiliumPeerSelector> {
    let mut fields = item.object(report)?;
    let (cidr, name, selector) = (fields.get("cidr"), fields.get("cidrGroupRef"), fields.get("cidrGroupSelector"));
    let except = fields.get("except");
    let mut holes = BTreeSet::new();
    let list = except.map(|field| field.list(report)).unwrap_or_default();
    let prefix = cidr.as_ref().and_then(|field| read_prefix(field, report));
    for item in &list {
        let Some(hole) = read_prefix(item, report) else { continue };
        if let Some(prefix) = prefix
            && !prefix.covers(hole)
        {
            item.invalid(report, format!("must be a block inside {prefix}"));
        }
        holes.insert(hole);
    }
    fields.finish(report);
    match (cidr, name, selector) {
        (Some(_), None, None) => Some(CiliumPeerSelector::Cidr(IpBlock { prefix: prefix?, except: holes })),
        (None, Some(name), None) => {
            let groups = GroupRef::Name(name.string(report)?.to_owned());
            Some(CiliumPeerSelector::Groups { groups, except: holes })
        }
        (None, None, Some(selector)) => {
            let groups = GroupRef::Selector(Selector::read(&selector, report));
            Some(CiliumPeerSelector::Groups { groups, except: holes })
        }
        _ => {
            let text = "needs one of cidr, cidrGroupRef and cidrGroupSelector".to_owned();
            item.wrong(report, Problem::Conflict(text));
            None
        }
    }
}

fn entity(item: &Field<'_>, _: &str, report: &mut Report) -> Option<CiliumPeerSelector> {
    let found = Entity::named(item.string(report)?);
    if found.is_none() {
        let names = Entity::NAMES.map(|(name, _)| name).join(", ");
        item.invalid(report, format!("must be one of {names}"));
    }
    found.map(CiliumPeerSelector::Entity)
}

fn nodes(item: &Field<'_>, _: &str, report: &mut Report) -> Option<CiliumPeerSelector> {
    Some(CiliumPeerSelector::Nodes(Selector::read(item, report)))
}

fn service(item: &Field<'_>, namespace: &str, report: &mut Report) -> Option<CiliumPeerSelector> {
    let mut fields = item.object(report)?;
    let named = fields.get("k8sService");
    let selected = fields.get("k8sServiceSelector");
    fields.finish(report);
    let place = |field: Option<Field<'_>>, report: &mut Report| {
        let given = field.and_then(|field| field.string(report).map(str::to_owned));
        given.or_else(|| (!namespace.is_empty()).then(|| namespace.to_owned()))
    };
    let found = match (named, selected) {
        (Some(field), None) => {
            let mut fields = field.object(report)?;
            let name = fields.require("serviceName", report).and_then(|field| field.string(report));
            let place = place(fields.get("namespace"), report);
            if place.is_none() {
                fields.wrong("namespace", report, Problem::Missing);
            }
            fields.finish(report);
            ServiceRef::Name(Name::new(&place?, name?))
        }
        (None, Some(field)) => {
            let mut fields = field.object(report)?;
            let labels = fields.require("selector", report).map(|field| Selector::read(&field, report));
            let namespace = place(fields.get("namespace"), report);
            fields.finish(report);
            ServiceRef::Selector { labels: labels?, namespace }
        }
        (Some(_), Some(_)) | (None, None) => {
            let text = "needs either k8sService or k8sServiceSelector".to_owned();
            item.wrong(report, Problem::Conflict(text));
            return None;
        }
    };
    Some(CiliumPeerSelector::Services(found))
}

fn names(item: &Field<'_>, _: &str, report: &mut Report) -> Option<CiliumPeerSelector> {
    name_selector(item, report).map(CiliumPeerSelector::Names)
}
