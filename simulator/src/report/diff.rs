//! Two versions of a cluster compared: every verdict that changes, with the rule that changes it, in as few blocks as
//! people can read.
//!
//! Invariant: the blocks hold exactly the changed verdicts. A block means every sender to every receiver on every one of
//! its ports; an endpoint is never asked about itself, so one that is on both sides stands for the others only.

use std::collections::{BTreeMap, BTreeSet};

use agent_core::Direction;

use super::allow::Expected;
use super::{Book, Line};
use crate::cluster::matrix::Matrix;
use crate::cluster::why::Why;
use crate::cluster::{Party, Verdict};

/// One verdict that changes; numbers of sender, receiver and port in the matrices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// Index of the sender.
    pub from: usize,
    /// Index of the receiver.
    pub to: usize,
    /// Index of the port.
    pub port: usize,
    /// The verdict before.
    pub was: Verdict,
    /// The verdict afterwards.
    pub is: Verdict,
    /// Whether somebody has listed it.
    pub expected: bool,
    /// Index in [`Diff::groups`].
    pub group: usize,
}

/// Why verdicts change; equal for all in a group.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    expected: bool,
    was: Verdict,
    is: Verdict,
    before: Vec<Line>,
    after: Vec<Line>,
}

/// Verdicts that change for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The verdict before.
    pub was: Verdict,
    /// The verdict afterwards.
    pub is: Verdict,
    /// Whether somebody has listed them.
    pub expected: bool,
    /// What decided before.
    pub before: Vec<Line>,
    /// What decides afterwards.
    pub after: Vec<Line>,
    /// Who, whom and where.
    pub blocks: Vec<Block>,
    /// How many verdicts.
    pub verdicts: usize,
}

/// Every sender to every receiver on every port, but nobody to itself. Indices, in order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    /// Senders.
    pub from: Vec<usize>,
    /// Receivers.
    pub to: Vec<usize>,
    /// Ports.
    pub ports: Vec<usize>,
}

/// All that changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// By sender, receiver and port.
    pub changes: Vec<Change>,
    /// The most dangerous first: what nobody expects, then what no longer works, then the largest.
    pub groups: Vec<Group>,
    /// Indices of expectations that nothing fulfils.
    pub unused: Vec<usize>,
    /// Verdicts that were compared: all but those of an endpoint to itself.
    pub compared: usize,
}

impl Diff {
    /// How many verdicts change so.
    pub fn count(&self, was: Verdict, is: Verdict) -> usize {
        let of_kind = |group: &&Group| (group.was, group.is) == (was, is);
        self.groups.iter().filter(of_kind).map(|group| group.verdicts).sum()
    }

    /// How many verdicts nobody has listed.
    pub fn unexpected(&self) -> usize {
        self.changes.iter().filter(|change| !change.expected).count()
    }
}

/// A version: its answers, and what they go back to.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    /// Answers, with reasons.
    pub matrix: &'a Matrix,
    /// Policies.
    pub book: &'a Book<'a>,
}

/// Compares. Both matrices have the same endpoints and ports, in the same order.
pub fn compare(before: Side<'_>, after: Side<'_>, expected: &[Expected]) -> Diff {
    let names: Vec<String> = after.matrix.endpoints.iter().map(Party::to_string).collect();
    let mut diff = Diff::default();
    let mut used: BTreeSet<usize> = BTreeSet::new();
    let mut found: BTreeMap<Key, Vec<Change>> = BTreeMap::new();
    for (port, (old, new)) in before.matrix.tables.iter().zip(&after.matrix.tables).enumerate() {
        for (from, (old_row, new_row)) in old.rows.iter().zip(&new.rows).enumerate() {
            for (to, (was, is)) in old_row.iter().zip(new_row).enumerate() {
                diff.compared += usize::from(from != to);
                if was == is {
                    continue;
                }
                let (Some(before_verdict), Some(after_verdict)) = (was.verdict(), is.verdict()) else { continue };
                let mut listed = false;
                if let (Some(sender), Some(receiver)) = (names.get(from), names.get(to)) {
                    for (number, expected) in expected.iter().enumerate() {
                        if expected.lists(after_verdict, sender, receiver, new.port) {
                            listed = true;
                            used.insert(number);
                        }
                    }
                }
                let why = |side: &Side<'_>, table: &crate::cluster::matrix::Table| {
                    table.why(&side.matrix.reasons, from, to).unwrap_or(Why::NO_FAMILY)
                };
                let (lines_before, lines_after) =
                    lines((before.book, why(&before, old)), (after.book, why(&after, new)), from, to);
                let (was, is) = (before_verdict, after_verdict);
                let key = Key { expected: listed, was, is, before: lines_before, after: lines_after };
                let change = Change { from, to, port, was, is, expected: listed, group: 0 };
                found.entry(key).or_default().push(change);
            }
        }
    }
    let mut groups: Vec<(Key, Vec<Change>)> = found.into_iter().collect();
    groups.sort_by_key(|(key, changes)| (key.expected, key.is < key.was, key.was, key.is, usize::MAX - changes.len()));
    for (number, (key, changes)) in groups.into_iter().enumerate() {
        let blocks = blocks(&changes);
        diff.groups.push(Group {
            was: key.was,
            is: key.is,
            expected: key.expected,
            before: key.before,
            after: key.after,
            blocks,
            verdicts: changes.len(),
        });
        diff.changes.extend(changes.into_iter().map(|change| Change { group: number, ..change }));
    }
    diff.changes.sort_unstable();
    diff.unused = (0..expected.len()).filter(|number| !used.contains(number)).collect();
    diff
}

/// What to say of both sides: what stopped the one, and what is said there by the other. Where the sender's own policies
/// stopped it, the receiver's were not asked: then what they say on the other side belongs to the change.
fn lines(before: (&Book<'_>, Why), after: (&Book<'_>, Why), from: usize, to: usize) -> (Vec<Line>, Vec<Line>) {
    let open = |(book, why): (&Book<'_>, Why), stopped: &Why| {
        let at = stopped.decided_at();
        let said = |direction: Direction| book.line(&why, direction, from, to);
        let is_rule = |line: &Line| matches!(line, Line::Said(_, said, _) if said.rule != 0);
        match at {
            Some(Direction::Ingress) => said(Direction::Ingress).into_iter().collect(),
            Some(Direction::Egress) | None => {
                let own = said(Direction::Egress).into_iter();
                own.chain(said(Direction::Ingress).filter(is_rule)).collect::<Vec<_>>()
            }
        }
    };
    let or_end = |lines: Vec<Line>, why: &Why| if lines.is_empty() { vec![Line::Ended(why.ended)] } else { lines };
    let stopped = |(book, why): (&Book<'_>, Why)| vec![book.stopped(&why, from, to)];
    match (before.1.verdict(), after.1.verdict()) {
        (_, Verdict::Allow) => (stopped(before), or_end(open(after, &before.1), &after.1)),
        (Verdict::Allow, _) => (or_end(open(before, &after.1), &before.1), stopped(after)),
        // Each has something that is more than an allowance.
        (_, _) => (stopped(before), stopped(after)),
    }
}

/// The fewest blocks that a simple look finds: pairs with the same ports, then senders with the same receivers.
fn blocks(changes: &[Change]) -> Vec<Block> {
    let mut ports: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for change in changes {
        ports.entry((change.from, change.to)).or_default().push(change.port);
    }
    let mut receivers: BTreeMap<(Vec<usize>, usize), BTreeSet<usize>> = BTreeMap::new();
    for ((from, to), ports) in ports {
        receivers.entry((ports, from)).or_default().insert(to);
    }
    let mut by_receivers: BTreeMap<(Vec<usize>, BTreeSet<usize>), Vec<usize>> = BTreeMap::new();
    for ((ports, from), to) in receivers {
        by_receivers.entry((ports, to)).or_default().push(from);
    }
    // Whoever is alone with its receivers may be one of a circle in which each goes to all others.
    let mut circles: BTreeMap<(Vec<usize>, BTreeSet<usize>), Vec<usize>> = BTreeMap::new();
    let mut blocks = Vec::new();
    for ((ports, to), from) in by_receivers {
        match from[..] {
            [one] => {
                let with_self = to.into_iter().chain([one]).collect();
                circles.entry((ports, with_self)).or_default().push(one);
            }
            _ => blocks.push(Block { from, to: to.into_iter().collect(), ports }),
        }
    }
    for ((ports, mut to), from) in circles {
        if let [one] = from[..] {
            to.remove(&one);
        }
        blocks.push(Block { from, to: to.into_iter().collect(), ports });
    }
    blocks.sort();
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(from: usize, to: usize, port: usize) -> Change {
        Change { from, to, port, was: Verdict::Allow, is: Verdict::Deny, expected: false, group: 0 }
    }

    fn expand(blocks: &[Block]) -> Vec<(usize, usize, usize)> {
        let mut all = Vec::new();
        for block in blocks {
            for &from in &block.from {
                for &to in block.to.iter().filter(|to| **to != from) {
                    all.extend(block.ports.iter().map(|port| (from, to, *port)));
                }
            }
        }
        all.sort_unstable();
        all
    }

    #[test]
    fn a_circle_is_one_block_and_so_is_a_rectangle() {
        let circle: Vec<Change> =
            (0..5).flat_map(|from| (0..5).filter(move |to| *to != from).map(move |to| change(from, to, 0))).collect();
        assert_eq!(blocks(&circle).len(), 1);
        let rectangle: Vec<Change> =
            (0..3).flat_map(|from| (7..9).flat_map(move |to| [change(from, to, 0), change(from, to, 2)])).collect();
        assert_eq!(blocks(&rectangle), [Block { from: vec![0, 1, 2], to: vec![7, 8], ports: vec![0, 2] }]);
    }

    #[test]
    fn blocks_hold_exactly_the_changes() {
        // A small generator of its own: every seed is one picture.
        for seed in 1..200_u64 {
            let mut state = seed;
            let mut next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                state >> 33
            };
            let density = next() % 4;
            let mut changes = Vec::new();
            for from in 0..6 {
                for to in (0..6).filter(|to| *to != from) {
                    for port in 0..2 {
                        if next() % 4 <= density {
                            changes.push(change(from, to, port));
                        }
                    }
                }
            }
            let expected: Vec<_> = changes.iter().map(|change| (change.from, change.to, change.port)).collect();
            assert_eq!(expand(&blocks(&changes)), expected, "seed {seed}");
        }
    }
}
