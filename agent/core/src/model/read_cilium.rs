//! Reads `cilium.io/v2` CiliumNetworkPolicy and CiliumClusterwideNetworkPolicy, and CiliumCIDRGroup, with the checks that
//! Cilium's own validation makes. Peers and ports have files of their own.

use super::cilium::{CidrGroup, CiliumPolicy, CiliumRule, CiliumSpec, CiliumSubject};
use super::object::Meta;
use super::question::{Endpoints, PodQuestion, endpoint_selector};
use super::read::read_prefix_or_address;
use super::read_cilium_peer::peers;
use super::read_cilium_port::ports;
use crate::input::{Field, Fields, Problem, Report};
use crate::labels::{Operator, Selector};
use crate::model::LabelOf;

/// A list of rules: what it is about decides which fields it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct List {
    pub(super) ingress: bool,
    pub(super) deny: bool,
    /// The policy is about nodes.
    pub(super) host: bool,
}

pub(super) fn policy(meta: Meta, fields: &mut Fields<'_>, report: &mut Report) -> CiliumPolicy {
    fields.accept(&["status"]);
    let mut specs = Vec::new();
    let one = fields.get("spec");
    let many = fields.get("specs");
    if one.is_none() && many.as_ref().is_none_or(|field| field.list(report).is_empty()) {
        let text = "needs `spec` or `specs`: without them it says nothing".to_owned();
        fields.wrong("spec", report, Problem::Conflict(text));
    }
    specs.extend(one.and_then(|field| spec(&field, None, &meta, report)));
    for (index, item) in many.map(|field| field.list(report)).unwrap_or_default().iter().enumerate() {
        specs.extend(spec(item, Some(index), &meta, report));
    }
    CiliumPolicy { meta, specs }
}

fn spec(field: &Field<'_>, index: Option<usize>, meta: &Meta, report: &mut Report) -> Option<CiliumSpec> {
    let mut fields = field.object(report)?;
    fields.accept(&["description", "labels"]);
    let pods = fields.get("endpointSelector");
    let nodes = fields.get("nodeSelector");
    let subject = match (&pods, &nodes) {
        (Some(field), None) => pod_subject(field, &meta.namespace, report),
        (None, Some(field)) if meta.namespace.is_empty() => Some(CiliumSubject::Nodes(Selector::read(field, report))),
        (None, Some(field)) => {
            let why = "policies about nodes are CiliumClusterwideNetworkPolicies";
            field.wrong(report, Problem::Unsupported { why });
            None
        }
        (Some(_), Some(field)) => {
            let text = "a policy has either endpointSelector or nodeSelector".to_owned();
            field.wrong(report, Problem::Conflict(text));
            None
        }
        (None, None) => {
            let text = "needs endpointSelector (`{}` selects every pod)".to_owned();
            fields.wrong("endpointSelector", report, Problem::Conflict(text));
            None
        }
    };
    let host = nodes.is_some();
    let mut list = |name: &'static str, ingress: bool, deny: bool, report: &mut Report| {
        let list = List { ingress, deny, host };
        fields.get(name).map(|field| rules(&field, list, &meta.namespace, report)).unwrap_or_default()
    };
    let ingress = list("ingress", true, false, report);
    let ingress_deny = list("ingressDeny", true, true, report);
    let egress = list("egress", false, false, report);
    let egress_deny = list("egressDeny", false, true, report);
    let (has_ingress, has_egress) =
        (!(ingress.is_empty() && ingress_deny.is_empty()), !(egress.is_empty() && egress_deny.is_empty()));
    if !has_ingress && !has_egress {
        let text = "needs a rule in ingress, ingressDeny, egress or egressDeny (a rule `{}` closes its direction)";
        field.wrong(report, Problem::Conflict(text.to_owned()));
    }
    let (mut isolates_ingress, mut isolates_egress) = (has_ingress, has_egress);
    if let Some(mut fields) = fields.get("enableDefaultDeny").and_then(|field| field.object(report)) {
        let given = |field: Option<Field<'_>>, report: &mut Report| field.and_then(|field| field.boolean(report));
        isolates_ingress = given(fields.get("ingress"), report).unwrap_or(has_ingress);
        isolates_egress = given(fields.get("egress"), report).unwrap_or(has_egress);
        fields.finish(report);
    }
    let log = fields.get("log").and_then(|field| {
        let mut fields = field.object(report)?;
        let value = fields.get("value").and_then(|field| {
            let text = field.string(report)?;
            if text.len() > 32 || !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
                field.invalid(report, "must be at most 32 printable characters of ASCII");
            }
            Some(text.to_owned())
        });
        fields.finish(report);
        value
    });
    fields.finish(report);
    Some(CiliumSpec {
        index,
        position: field.position().clone(),
        subject: subject?,
        isolates_ingress,
        isolates_egress,
        ingress,
        ingress_deny,
        egress,
        egress_deny,
        log,
    })
}

/// A policy of a namespace is about that namespace, whatever else its selector asks.
fn pod_subject(field: &Field<'_>, namespace: &str, report: &mut Report) -> Option<CiliumSubject> {
    match endpoint_selector(field, report)? {
        Endpoints::Pods(question) => {
            if namespace.is_empty() {
                return Some(CiliumSubject::Pods(question));
            }
            let elsewhere = question
                .requirements
                .iter()
                .any(|asked| asked.of == LabelOf::Namespace && !asked.operator.holds(&asked.values, Some(namespace)));
            if elsewhere {
                let text = format!("a policy of namespace `{namespace}` is about no other namespace");
                field.wrong(report, Problem::Conflict(text));
            }
            Some(CiliumSubject::Pods(question.and(LabelOf::Namespace, Operator::In, &[namespace])))
        }
        Endpoints::Entity(_) => {
            let why = "policies are about pods, or about nodes with nodeSelector";
            field.wrong(report, Problem::Unsupported { why });
            None
        }
    }
}

fn rules(field: &Field<'_>, list: List, namespace: &str, report: &mut Report) -> Vec<CiliumRule> {
    let items = field.list(report);
    items.iter().filter_map(|item| rule(item, list, namespace, report)).collect()
}

fn rule(item: &Field<'_>, list: List, namespace: &str, report: &mut Report) -> Option<CiliumRule> {
    let mut fields = item.object(report)?;
    fields.refuse("authentication", "mutual authentication is not there", report);
    let peers = peers(&mut fields, list, namespace, report);
    let ports = ports(&mut fields, list, report);
    fields.finish(report);
    Some(CiliumRule { position: item.position().clone(), peers, ports })
}

/// The question that a peer's selector asks: of the policy's own namespace unless it names another.
pub(super) fn at_home(question: PodQuestion, namespace: &str) -> PodQuestion {
    if namespace.is_empty() || question.names_namespace() {
        question
    } else {
        question.and(LabelOf::Namespace, Operator::In, &[namespace])
    }
}

pub(super) fn cidr_group(meta: Meta, fields: &mut Fields<'_>, report: &mut Report) -> Option<CidrGroup> {
    fields.accept(&["status"]);
    let mut spec = fields.require("spec", report)?.object(report)?;
    let list = spec.require("externalCIDRs", report);
    let list = list.map(|field| field.list(report)).unwrap_or_default();
    let prefixes = list.iter().filter_map(|item| read_prefix_or_address(item, report)).collect();
    spec.finish(report);
    Some(CidrGroup { meta, prefixes })
}
