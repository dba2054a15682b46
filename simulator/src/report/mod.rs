//! What commands tell people and other programs about verdicts: which rule of which file decided, comparisons, pages.
//!
//! Invariant: nothing here decides anything. Verdicts and the numbers of their rules come from the bytecode
//! ([`crate::cluster::why`]); this turns them into names, files and lines.

pub mod alike;
pub mod allow;
pub mod class;
pub mod diff;
pub mod junit;
pub mod markdown;
pub mod names;
pub mod page;

use std::collections::BTreeMap;
use std::fmt;

use agent_core::policy::RuleOrigin;
use agent_core::{Compiled, Direction, PolicyRef};

use crate::cluster::explain::{By, kind_word};
use crate::cluster::why::Ended;
use crate::cluster::{Party, Said, Spoke, Why, proxy};
use alike::Version;

/// The policies of one version, with what isolates whom.
#[derive(Debug)]
pub struct Book<'a> {
    version: &'a Version,
    nodes: Vec<&'a str>,
    /// Sets of policies that isolate somebody.
    sets: Vec<Vec<PolicyRef>>,
    /// Per party: its sets for ingress and egress.
    isolating: Vec<[usize; 2]>,
    /// The same per node, for policies about nodes.
    isolating_nodes: Vec<[usize; 2]>,
}

/// One line of a reason; equal lines have equal text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Line {
    /// What a policy said in a direction; for default denies, which set of policies isolates.
    Said(Direction, Said, Option<usize>),
    /// The end, where no policy explains it.
    Ended(Ended),
}

impl<'a> Book<'a> {
    /// For these parties; lines name them by their index.
    pub fn of(version: &'a Version, parties: &[Party]) -> Self {
        let compiled = &version.compiled;
        let nodes: Vec<&str> = version.model.nodes().iter().map(|node| node.name.as_str()).collect();
        let mut sets: Vec<Vec<PolicyRef>> = Vec::new();
        let mut known: BTreeMap<Vec<PolicyRef>, usize> = BTreeMap::new();
        let mut number = |set: Vec<PolicyRef>| match known.get(&set) {
            Some(number) => *number,
            None => {
                sets.push(set.clone());
                known.insert(set, sets.len() - 1);
                sets.len() - 1
            }
        };
        let isolating = parties
            .iter()
            .map(|party| match party {
                Party::Pod(name) => {
                    [Direction::Ingress, Direction::Egress].map(|direction| number(compiled.isolating(name, direction)))
                }
                Party::Node(_) | Party::Address(_) | Party::World => [number(Vec::new()); 2],
            })
            .collect();
        let of_node = |node: &&str| {
            [Direction::Ingress, Direction::Egress].map(|direction| number(compiled.isolating_node(node, direction)))
        };
        let isolating_nodes = nodes.iter().map(of_node).collect();
        Self { version, nodes, sets, isolating, isolating_nodes }
    }

    /// The policies.
    pub fn compiled(&self) -> &'a Compiled {
        &self.version.compiled
    }

    /// Sets of policies that isolate somebody.
    pub fn sets(&self) -> &[Vec<PolicyRef>] {
        &self.sets
    }

    /// The set that isolates a party in a direction.
    pub fn isolating(&self, party: usize, direction: Direction) -> Option<usize> {
        Some(pick(*self.isolating.get(party)?, direction))
    }

    /// The set behind a verdict that no rule gave: of the node that spoke, or of the party. `None`: a rule gave it.
    pub fn set_of(&self, said: Said, direction: Direction, party: usize) -> Option<usize> {
        if said.rule != 0 || said.spoke == Spoke::Allow {
            return None;
        }
        match said.node {
            Some(node) => Some(pick(*self.isolating_nodes.get(node)?, direction)),
            None => self.isolating(party, direction),
        }
    }

    /// What was said in one direction of a probe between two parties.
    pub fn line(&self, why: &Why, direction: Direction, sender: usize, receiver: usize) -> Option<Line> {
        let said = why.said(direction)?;
        let subject = match direction {
            Direction::Ingress => receiver,
            Direction::Egress => sender,
        };
        Some(Line::Said(direction, said, self.set_of(said, direction, subject)))
    }

    /// What stopped a probe that did not get through, or would have, if it were not only audited.
    pub fn stopped(&self, why: &Why, sender: usize, receiver: usize) -> Line {
        let at = why.decided_at().and_then(|direction| self.line(why, direction, sender, receiver));
        at.unwrap_or(Line::Ended(why.ended))
    }

    /// What a verdict goes back to.
    pub fn by(&self, direction: Direction, said: Said, set: Option<usize>) -> By {
        match set.and_then(|set| self.sets.get(set)) {
            Some(set) => By::DefaultDeny(set.clone()),
            None => By::said(self.compiled(), said, None, direction),
        }
    }

    /// A line in words.
    pub fn text(&self, line: &Line) -> String {
        let (direction, said, set) = match *line {
            Line::Said(direction, said, set) => (direction, said, set),
            Line::Ended(ended) => return ended_text(ended).to_string(),
        };
        let whose = match said.node.and_then(|node| self.nodes.get(node)) {
            Some(node) => format!("{direction} of node {node}"),
            None => direction.to_string(),
        };
        let by = self.by(direction, said, set);
        let verb = match said.spoke {
            Spoke::Allow => "allowed".to_owned(),
            Spoke::Deny => "denied".to_owned(),
            Spoke::Redirect => format!("redirected to the {} (there is none here)", self.proxy_text(said)),
            Spoke::Audit => "allowed, but only audited: denied".to_owned(),
        };
        match &by {
            By::Rule(_) | By::LocalHost => format!("{whose} {verb} by {by}"),
            By::NotIsolated => format!("{whose} {verb}: no policy isolates"),
            By::DefaultDeny(policies) => {
                let names: Vec<String> = policies.iter().map(policy_text).collect();
                let names = if names.is_empty() { NO_POLICY.to_owned() } else { names.join(", ") };
                format!("{whose} {verb} by default, isolated by {names}")
            }
        }
    }

    /// The proxy that a rule asks for.
    fn proxy_text(&self, said: Said) -> String {
        let proxies = match self.compiled().rules().origin(said.rule) {
            RuleOrigin::Rule(rule) => proxy::of_rule(&self.version.model, rule, None),
            RuleOrigin::NotIsolated | RuleOrigin::LocalHost | RuleOrigin::Gone => Vec::new(),
        };
        if proxies.is_empty() { "proxy".to_owned() } else { format!("{} proxy", proxy::words(&proxies)) }
    }
}

/// What isolates where no policy does.
pub const NO_POLICY: &str = "the setting policy-enforcement = always";

fn pick([ingress, egress]: [usize; 2], direction: Direction) -> usize {
    match direction {
        Direction::Ingress => ingress,
        Direction::Egress => egress,
    }
}

/// A policy with its place.
pub fn policy_text(policy: &PolicyRef) -> String {
    format!("{} {} ({})", kind_word(policy.kind), policy.name, policy.position)
}

/// How a probe ended, in words.
pub fn ended_text(ended: Ended) -> impl fmt::Display {
    struct Text(Ended);
    impl fmt::Display for Text {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            match self.0 {
                Ended::Allowed => f.write_str("allowed"),
                Ended::Dropped(Some(reason)) => write!(f, "dropped: {} ({})", reason.name(), reason.text()),
                Ended::Dropped(None) => f.write_str("dropped"),
                Ended::Lost(lost) => write!(f, "lost: {lost}"),
                Ended::NoFamily => f.write_str("no address family in common"),
            }
        }
    }
    Text(ended)
}
