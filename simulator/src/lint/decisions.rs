//! What the compiled policies really decide: rules that never do, denies that nobody intended, entries against room.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use agent_core::model::{Model, Name, Pod, PortSelector};
use agent_core::policy::{Action, L4, PolicyState, Proxy, RuleAction, RuleId, RuleInfo, RuleOrigin};
use agent_core::{Compiled, Direction, Flow, PolicyRef};
use datapath_abi::MapId;

use super::selectors::Pods;
use super::view::{Policy, Rule, Subject, Whom};
use super::{CLOSED, Findings, NEARLY_FULL, NO_DNS, OVERFULL, SHADOWED};
use crate::cluster::explain::kind_word;
use crate::cluster::{WORLD4, WORLD6};

/// UDP 53.
const DNS: L4 = L4 { protocol: 17, port: 53, bits: 24 };
/// How many subjects and peers are looked at to name the rules that decide in place of another.
const SAMPLES: usize = 5;
/// Pods that a message names.
const NAMED: usize = 4;

/// What is known of one direction of a pod.
#[derive(Clone, Copy, Default)]
struct Opens {
    /// Some rule lets something pass.
    anything: bool,
    /// UDP 53 may pass to somebody.
    dns: bool,
}

/// The pod that needs the most entries.
struct Fullest<'a> {
    entries: usize,
    pod: &'a Pod,
    by_rule: BTreeMap<RuleId, usize>,
}

pub(super) fn check(model: &Model, policies: &[Policy], compiled: &Compiled, findings: &mut Findings) {
    let mut used: BTreeSet<RuleId> = BTreeSet::new();
    let mut opens: BTreeMap<(&Name, Direction), Opens> = BTreeMap::new();
    let mut of_node: BTreeMap<&str, usize> = BTreeMap::new();
    let mut fullest: Option<Fullest<'_>> = None;
    for pod in model.pods().values().filter(|pod| !pod.host_network) {
        let mut entries = 0;
        let mut by_rule: BTreeMap<RuleId, usize> = BTreeMap::new();
        for direction in Direction::ALL {
            let state = compiled.state(&pod.name, direction);
            entries += state.len();
            for (_, _, verdict) in state.iter() {
                used.insert(verdict.rule);
                *by_rule.entry(verdict.rule).or_default() += 1;
            }
            opens.insert((&pod.name, direction), what_opens(&state, compiled));
        }
        *of_node.entry(pod.node.as_str()).or_default() += entries;
        if fullest.as_ref().is_none_or(|fullest| entries > fullest.entries) {
            fullest = Some(Fullest { entries, pod, by_rule });
        }
    }
    for node in model.nodes() {
        for direction in Direction::ALL {
            let state = compiled.host_state(&node.name, direction);
            used.extend(state.iter().map(|(_, _, verdict)| verdict.rule));
            if compiled.settings().host_firewall && compiled.has_host_policy(&node.name) {
                *of_node.entry(node.name.as_str()).or_default() += state.len();
            }
        }
    }
    room(compiled, &of_node, fullest, findings);
    shadowed(model, policies, compiled, &used, findings);
    closed(model, policies, compiled, &opens, findings);
    dns(model, policies, compiled, &opens, findings);
}

fn what_opens(state: &PolicyState, compiled: &Compiled) -> Opens {
    let mut opens = Opens::default();
    for (identity, _, verdict) in state.iter() {
        let passes =
            verdict.action == Action::Allow && matches!(compiled.rules().origin(verdict.rule), RuleOrigin::Rule(_));
        let redirects = matches!(verdict.action, Action::Redirect(_));
        opens.anything |= passes || redirects;
        if !opens.dns {
            let decided = state.decide(identity, DNS).map(|verdict| verdict.action);
            opens.dns = matches!(decided, Some(Action::Allow | Action::Redirect(Proxy::Dns)));
        }
    }
    opens
}

fn room(compiled: &Compiled, of_node: &BTreeMap<&str, usize>, fullest: Option<Fullest<'_>>, findings: &mut Findings) {
    let judge = |needed: usize, room: usize| match needed {
        _ if needed > room => Some(OVERFULL),
        _ if needed * 5 > room * 4 => Some(NEARLY_FULL),
        _ => None,
    };
    let most = compiled.settings().endpoint_entries;
    if let Some(Fullest { entries: needed, pod, by_rule }) = fullest
        && let Some(check) = judge(needed, most)
    {
        let largest = by_rule.iter().max_by_key(|(_, count)| *count);
        let largest = largest.and_then(|(rule, count)| Some((compiled.rules().get(*rule)?, count)));
        let by = largest.map_or(String::new(), |(rule, count)| format!("; {count} of them by {}", rule_text(rule)));
        let message = format!("pod {} needs {needed} policy entries of {most}{by}", pod.name);
        match largest {
            Some((rule, _)) => findings.add(check, &rule.position, policy_text(rule), message),
            None => findings.add(check, &pod.position, format!("Pod {}", pod.name), message),
        }
    }
    let room = usize::try_from(MapId::Policy.max_entries()).unwrap_or(usize::MAX);
    let room = room.min(compiled.settings().node_entries);
    for (node, needed) in of_node {
        if let Some(check) = judge(*needed, room) {
            findings.general(check, format!("node {node} needs {needed} policy entries of {room}"));
        }
    }
}

fn policy_text(rule: &RuleInfo) -> String {
    format!("{} {}", rule.kind, rule.policy)
}

fn rule_text(rule: &RuleInfo) -> String {
    format!("{} {}, {} ({})", kind_word(rule.kind), rule.policy, rule.place(), rule.position)
}

/// Rules that no entry of any endpoint goes back to, though there are packets that they match.
fn shadowed(model: &Model, policies: &[Policy], compiled: &Compiled, used: &BTreeSet<RuleId>, findings: &mut Findings) {
    let pods = Pods::new(model, compiled.settings());
    for info in compiled.rules().iter().filter(|rule| !used.contains(&rule.id) && rule.action != RuleAction::Pass) {
        let of_rule =
            |policy: &&Policy| policy.kind == info.kind && policy.name == info.policy && policy.spec == info.spec;
        let Some(policy) = policies.iter().find(of_rule).filter(|policy| !policy.audit) else { continue };
        let Some(rule) = policy.rules.iter().find(|rule| rule.list == info.list && rule.index == info.index) else {
            continue;
        };
        let Subject::Pods(question) = &policy.subject else { continue };
        let mut deciders: BTreeSet<String> = BTreeSet::new();
        for subject in pods.matching(question).take(SAMPLES) {
            let state = compiled.state(&subject.name, info.direction);
            for peer in peers(&pods, rule).into_iter().filter(|address| !subject.addresses.contains(address)) {
                for (protocol, port) in ports(model, rule, info.direction, subject, peer) {
                    let flow = Flow { peer, protocol, port };
                    let attempts = compiled.attempts(&subject.name, info.direction, flow);
                    if !attempts.iter().any(|attempt| attempt.rule.id == info.id && attempt.matches()) {
                        continue;
                    }
                    let bits = if rule.ports.is_empty() { 0 } else { 24 };
                    let l4 = if bits == 0 { L4::ANY } else { L4 { protocol, port, bits } };
                    let verdict = state.decide(compiled.identity(&subject.node, peer), l4);
                    deciders.extend(verdict.map(|verdict| match compiled.rules().origin(verdict.rule) {
                        RuleOrigin::Rule(rule) => rule_text(rule),
                        RuleOrigin::LocalHost => "the rule that a node reaches its own pods".to_owned(),
                        RuleOrigin::NotIsolated | RuleOrigin::Gone => "what is so by default".to_owned(),
                    }));
                }
            }
        }
        if !deciders.is_empty() {
            let deciders: Vec<String> = deciders.into_iter().collect();
            let message = format!("never decides a verdict; for what it matches, these do: {}", few(&deciders));
            findings.add(SHADOWED, &info.position, format!("{}, {}", policy.text(), rule.text()), message);
        }
    }
}

/// Some addresses that a rule may be about.
fn peers(pods: &Pods<'_>, rule: &Rule) -> Vec<IpAddr> {
    let mut found = Vec::new();
    match &rule.peers {
        None => found.extend(pods.model.pods().values().take(SAMPLES).flat_map(|pod| &pod.addresses)),
        Some(peers) => {
            for peer in peers {
                match &peer.whom {
                    Whom::Pods(question) => {
                        found.extend(pods.matching(question).take(SAMPLES).flat_map(|pod| &pod.addresses));
                    }
                    Whom::Block { block, .. } => {
                        found.push(block.prefix.address());
                        found.extend(block.prefix.nth(1));
                    }
                    Whom::Nodes(_) | Whom::Other => {
                        found.extend(pods.model.nodes().iter().take(SAMPLES).flat_map(|node| &node.addresses));
                    }
                    Whom::Groups { .. } | Whom::Services(_) => {}
                }
            }
        }
    }
    found.extend([WORLD4, WORLD6].iter().filter_map(|text| text.parse::<IpAddr>().ok()));
    found
}

/// A port of each item.
fn ports(model: &Model, rule: &Rule, direction: Direction, subject: &Pod, peer: IpAddr) -> Vec<(u8, u16)> {
    if rule.ports.is_empty() {
        return vec![(6, 1)];
    }
    let mut found = Vec::new();
    for port in &rule.ports {
        for &protocol in &port.protocols {
            match &port.ports {
                PortSelector::All => found.push((protocol, 1)),
                PortSelector::Range(first, _) => found.push((protocol, *first)),
                PortSelector::Named(name) => {
                    let owner = match direction {
                        Direction::Ingress => Some(subject),
                        Direction::Egress => model.pods().values().find(|pod| pod.addresses.contains(&peer)),
                    };
                    let own = owner.into_iter().flat_map(|pod| &pod.ports);
                    let named = own.filter(|own| own.name.as_ref() == Some(name) && own.protocol.number() == protocol);
                    found.extend(named.map(|own| (protocol, own.port)));
                }
            }
        }
    }
    found
}

/// Directions that a policy closes without a word, beside rules for the other one.
fn closed(
    model: &Model,
    policies: &[Policy],
    compiled: &Compiled,
    opens: &BTreeMap<(&Name, Direction), Opens>,
    findings: &mut Findings,
) {
    let pods = Pods::new(model, compiled.settings());
    for policy in policies {
        let Subject::Pods(question) = &policy.subject else { continue };
        for (direction, other) in [(Direction::Ingress, Direction::Egress), (Direction::Egress, Direction::Ingress)] {
            let beside = policy.rules(direction).next().is_none() && policy.rules(other).next().is_some();
            if !policy.isolates(direction) || !beside {
                continue;
            }
            let shut = |pod: &&Pod| !opens.get(&(&pod.name, direction)).is_some_and(|opens| opens.anything);
            let names: Vec<String> = pods.matching(question).filter(shut).map(|pod| pod.name.to_string()).collect();
            if !names.is_empty() {
                let message = format!(
                    "has rules for {other} only, and closes {direction} of {} too, which no policy opens; name {other} alone in policyTypes if that is not meant",
                    few(&names)
                );
                findings.add(CLOSED, &policy.position, policy.text(), message);
            }
        }
    }
}

/// Pods that may send something, but no question to a name server.
fn dns(
    model: &Model,
    policies: &[Policy],
    compiled: &Compiled,
    opens: &BTreeMap<(&Name, Direction), Opens>,
    findings: &mut Findings,
) {
    let mut found: BTreeMap<PolicyRef, Vec<String>> = BTreeMap::new();
    for pod in model.pods().values().filter(|pod| !pod.host_network) {
        let isolating = compiled.isolating(&pod.name, Direction::Egress);
        let own = opens.get(&(&pod.name, Direction::Egress)).copied().unwrap_or_default();
        if isolating.is_empty() || !own.anything || own.dns {
            continue;
        }
        let has_rules = |one: &&PolicyRef| {
            let mut written = policies.iter().filter(|policy| policy.kind == one.kind && policy.name == one.name);
            written.any(|policy| policy.rules(Direction::Egress).next().is_some())
        };
        let blamed = isolating.iter().find(has_rules).or(isolating.first());
        if let Some(blamed) = blamed {
            found.entry(blamed.clone()).or_default().push(pod.name.to_string());
        }
    }
    for (policy, pods) in found {
        let message = format!("{} may send something, but ask no name server: nobody is reached at 53/UDP", few(&pods));
        findings.add(NO_DNS, &policy.position, format!("{} {}", policy.kind, policy.name), message);
    }
}

fn few(names: &[String]) -> String {
    crate::report::names::few(names, NAMED)
}
