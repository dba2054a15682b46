//! From rules of all tiers to entries: what a Pass skips is worked out here, because the datapath knows only verdicts.
//!
//! A rule that passes leaves its packets to the tiers below. Where rules of its own tier would still take some of these
//! packets, the compiler writes down what the tiers below say about them, on the level of the rule that passes: they are
//! ordinary entries then. Rules that lie wholly behind it are left out.

use std::collections::{BTreeMap, BTreeSet};

use datapath_abi::ids::{self, Identity};

use super::form::{Level, Stage};
use super::rules::RuleId;
use super::state::{Action, L4, PolicyState, Verdict};

/// Low bytes of entries that stand for what lower tiers say. The exact identity's knows more.
const PASSED_EXACT: u8 = 2;
const PASSED_ANY: u8 = 1;

/// What a rule says about its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Verdict(Action),
    Pass,
}

/// Rules of one endpoint and direction, while they come in.
#[derive(Clone, Debug, Default)]
pub(super) struct Draft {
    tiers: BTreeMap<Stage, Tier>,
}

#[derive(Clone, Debug, Default)]
struct Tier {
    state: PolicyState,
    /// The first one, of several on a block.
    passes: BTreeMap<(Identity, L4), (Level, RuleId)>,
}

impl Draft {
    pub(super) fn add(&mut self, stage: Stage, level: Level, identity: Identity, l4: L4, said: Said, rule: RuleId) {
        let tier = self.tiers.entry(stage).or_default();
        match said {
            Said::Verdict(action) => tier.state.insert(identity, l4, Verdict::new(level, action, rule)),
            Said::Pass => {
                let first = tier.passes.entry((identity, l4)).or_insert((level, rule));
                if level < first.0 {
                    *first = (level, rule);
                }
            }
        }
    }

    /// The entries. `isolated`: what no rule allows is dropped, and the Baseline tier is not asked.
    pub(super) fn finish(mut self, isolated: bool) -> PolicyState {
        let mut below = PolicyState::default();
        if !isolated {
            below.insert(ids::UNKNOWN, L4::ANY, Verdict::implicit(Action::Allow));
        }
        for stage in Stage::ALL.into_iter().rev() {
            let Some(mut tier) = self.tiers.remove(&stage) else { continue };
            if isolated && stage == Stage::Baseline {
                continue;
            }
            tier.resolve_passes(&below);
            for (identity, l4, verdict) in tier.state.iter() {
                below.insert(identity, l4, verdict);
            }
        }
        below.finish();
        below
    }
}

impl Tier {
    fn resolve_passes(&mut self, below: &PolicyState) {
        if self.passes.is_empty() {
            return;
        }
        let below = {
            let mut below = below.clone();
            below.finish();
            below
        };
        // Rules wholly behind a pass.
        let gone: Vec<(Identity, L4)> = (self.state.iter())
            .filter(|(identity, l4, verdict)| {
                l4.covering().any(|wider| {
                    [*identity, ids::UNKNOWN].into_iter().any(|peer| {
                        let pass = self.passes.get(&(peer, wider));
                        pass.is_some_and(|(level, _)| level.precedence(0) > verdict.precedence)
                    })
                })
            })
            .map(|(identity, l4, _)| (identity, l4))
            .collect();
        for (identity, l4) in gone {
            self.state.remove(identity, l4);
        }
        let mut written = Vec::new();
        for (&(identity, hole), &(level, rule)) in &self.passes {
            if !self.reaches_into(identity, hole, level) {
                continue;
            }
            let mut peers = BTreeSet::from([identity]);
            if identity == ids::UNKNOWN {
                let named = below.identities().filter(|peer| below.blocks(*peer).any(|(l4, _)| overlap(l4, hole)));
                peers.extend(named);
            }
            for peer in peers {
                let low = if peer == ids::UNKNOWN { PASSED_ANY } else { PASSED_EXACT };
                resolve(&below, peer, hole, level.precedence(low), rule, &mut written);
            }
        }
        for (identity, l4, verdict) in written {
            self.state.insert(identity, l4, verdict);
        }
    }

    /// Whether a later rule of the tier would take packets of the hole.
    fn reaches_into(&self, identity: Identity, hole: L4, level: Level) -> bool {
        let later = |(l4, verdict): (L4, Verdict)| overlap(l4, hole) && verdict.precedence < level.precedence(0);
        if identity == ids::UNKNOWN {
            return self.state.iter().any(|(_, l4, verdict)| later((l4, verdict)));
        }
        self.state.blocks(identity).any(later) || self.state.blocks(ids::UNKNOWN).any(later)
    }
}

fn overlap(a: L4, b: L4) -> bool {
    a.covers(b) || b.covers(a)
}

/// What the tiers below say about every block of a hole.
fn resolve(
    below: &PolicyState,
    peer: Identity,
    hole: L4,
    precedence: u32,
    pass: RuleId,
    written: &mut Vec<(Identity, L4, Verdict)>,
) {
    let mut blocks = BTreeSet::from([hole]);
    for from in [peer, ids::UNKNOWN] {
        blocks.extend(below.blocks(from).map(|(l4, _)| l4).filter(|l4| hole.covers(*l4)));
    }
    for block in blocks {
        let verdict = match below.decide(peer, block) {
            Some(found) => Verdict { precedence, ..found },
            None => Verdict { precedence, ..Verdict::implicit(Action::Deny) },
        };
        // Where nothing is said below, the rule that passed is all there is to name.
        let rule =
            if verdict.rule == super::rules::NO_RULE && verdict.action == Action::Allow { pass } else { verdict.rule };
        written.push((peer, block, Verdict { rule, ..verdict }));
    }
}
