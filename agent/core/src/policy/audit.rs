//! Policies that are reported and not enforced: two states, with and without them, become one.
//!
//! Every block on which the two might differ is asked in both; what is enforced stays, and what only the other state
//! drops is marked with the rule that would drop it. The entries are complete for every identity that either state
//! names, so the exact identity's always win here.

use std::collections::{BTreeMap, BTreeSet};

use datapath_abi::ids::{self, Identity};

use super::rules::{NO_RULE, RuleId};
use super::state::{Action, L4, PolicyState, Verdict};

const EXACT: u32 = u32::MAX - 1;
const ANY: u32 = u32::MAX - 2;

/// One state that enforces `enforced` and reports what `complete` would drop.
pub(super) fn merge(enforced: &PolicyState, complete: &PolicyState) -> PolicyState {
    let mut merged = PolicyState::default();
    let of_any = said(enforced, complete, ids::UNKNOWN);
    put(&mut merged, ids::UNKNOWN, &of_any, ANY);
    let named: BTreeSet<Identity> = enforced.identities().chain(complete.identities()).collect();
    for identity in named.into_iter().filter(|identity| *identity != ids::UNKNOWN) {
        let own = said(enforced, complete, identity);
        let differs = own.iter().any(|(block, said)| find(&of_any, *block) != Some(*said));
        if differs {
            put(&mut merged, identity, &own, EXACT);
        }
    }
    merged
}

type Both = (Action, RuleId, bool);

/// What both states say, by block; always with an answer for everything.
fn said(enforced: &PolicyState, complete: &PolicyState, identity: Identity) -> BTreeMap<L4, Both> {
    let mut blocks = BTreeSet::from([L4::ANY]);
    for state in [enforced, complete] {
        for peer in [identity, ids::UNKNOWN] {
            blocks.extend(state.blocks(peer).map(|(l4, _)| l4));
        }
    }
    let ask = |state: &PolicyState, block| {
        let found: Option<Verdict> = state.decide(identity, block);
        found.map_or((Action::Deny, NO_RULE), |verdict| (verdict.action, verdict.rule))
    };
    let both = |block: L4| {
        let (action, rule) = ask(enforced, block);
        match ask(complete, block) {
            (Action::Deny, denier) if action != Action::Deny => (action, denier, true),
            _ => (action, rule, false),
        }
    };
    blocks.into_iter().map(|block| (block, both(block))).collect()
}

fn find(all: &BTreeMap<L4, Both>, block: L4) -> Option<Both> {
    block.covering().find_map(|wider| all.get(&wider).copied())
}

/// Writes the blocks that say something else than the next wider one.
fn put(state: &mut PolicyState, identity: Identity, all: &BTreeMap<L4, Both>, precedence: u32) {
    for (&block, &said) in all {
        let wider = block.covering().skip(1).find_map(|wider| all.get(&wider).copied());
        let repeated = block != L4::ANY && wider == Some(said);
        let (action, rule, audit) = said;
        // No entry means default deny, but for the exact identity only where no other entry of its own is.
        let nothing =
            identity == ids::UNKNOWN && block == L4::ANY && (action, rule, audit) == (Action::Deny, NO_RULE, false);
        if !repeated && !nothing {
            state.insert(identity, block, Verdict { precedence, rule, action, audit });
        }
    }
}
