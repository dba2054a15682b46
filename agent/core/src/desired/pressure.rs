//! Room for policy entries, counted before anything is written: a policy that needs too much is refused by name, and what
//! was in force stays.

use std::collections::BTreeMap;

use datapath_abi::MapId;

use super::DesiredError;
use crate::policy::{Compiled, PolicyState, RuleId, RuleInfo};

/// Entries of a node, while they are made.
#[derive(Debug, Default)]
pub(super) struct Pressure {
    all: usize,
}

impl Pressure {
    /// Counts entries that are as they were.
    pub(super) fn count(&mut self, entries: usize) {
        self.all += entries;
    }

    /// Counts an endpoint's entries.
    pub(super) fn check(
        &mut self,
        compiled: &Compiled,
        endpoint: impl FnOnce() -> String,
        states: &[PolicyState; 2],
    ) -> Result<(), DesiredError> {
        let needed = states.iter().map(PolicyState::len).sum();
        let capacity = compiled.settings().endpoint_entries;
        if needed > capacity {
            let mut by_rule: BTreeMap<RuleId, usize> = BTreeMap::new();
            for (_, _, verdict) in states.iter().flat_map(PolicyState::iter) {
                *by_rule.entry(verdict.rule).or_default() += 1;
            }
            if let Some(error) = refuse(compiled, endpoint(), needed, capacity, &by_rule) {
                return Err(error);
            }
        }
        self.all += needed;
        Ok(())
    }

    /// Whether the node's map cannot hold everything.
    pub(super) fn is_too_much(&self, compiled: &Compiled) -> bool {
        self.all > capacity(compiled)
    }
}

fn capacity(compiled: &Compiled) -> usize {
    compiled.settings().node_entries.min(largest())
}

/// Names the policy with the most of all entries of a node, told how many each rule has.
pub(super) fn refuse_node(compiled: &Compiled, node: &str, by_rule: &BTreeMap<RuleId, usize>) -> Option<DesiredError> {
    refuse(compiled, format!("node `{node}`"), by_rule.values().sum(), capacity(compiled), by_rule)
}

fn largest() -> usize {
    usize::try_from(MapId::Policy.max_entries()).unwrap_or(usize::MAX)
}

/// Names the policy with the most entries. `None`: no policy made any.
fn refuse(
    compiled: &Compiled,
    endpoint: String,
    needed: usize,
    capacity: usize,
    by_rule: &BTreeMap<RuleId, usize>,
) -> Option<DesiredError> {
    let mut by_policy: BTreeMap<_, (usize, &RuleInfo)> = BTreeMap::new();
    for (rule, entries) in by_rule {
        let Some(info) = compiled.rules().get(*rule) else { continue };
        by_policy.entry((info.kind, &info.policy)).or_insert((0, info)).0 += entries;
    }
    let (share, info) = by_policy.into_values().max_by_key(|(share, _)| *share)?;
    Some(DesiredError::Pressure {
        endpoint,
        needed,
        capacity,
        kind: info.kind,
        policy: info.policy.clone(),
        position: info.position.clone(),
        share,
    })
}
