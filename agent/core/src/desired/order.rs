//! The order in which policy entries are written, so that between any two steps a packet meets the old verdict or the new
//! one, and where that cannot be, is refused.
//!
//! The kernel's map changes one entry at a time, and a verdict is the better one of two longest matches (of the exact
//! identity and of any). First new entries are written, the exact and narrow ones before the wide ones, then addresses
//! move to other identities, then old entries go, in the reverse order. For nearly every change that does: until a wide
//! entry is there the old ones decide, and after that nothing is missing behind it. Not for all: the new match of one
//! identity and the old match of any may together say what neither the old entries nor the new ones say (a new deny of
//! one tier beside the old allow of a lower one, when the new allow above both is still to come). So each change is tried
//! out here, on every block of ports and for every identity that it is about.
//!
//! What fails is done behind a **gate**: first every entry of any identity is made a deny of the highest precedence, and a
//! widest one is added; behind it entries and addresses change in any order; then the entries of any identity are made
//! what they should be, narrow ones first. New flows of that endpoint and direction are refused for these microseconds.
//! Established ones do not notice: until its revision changes, an endpoint's flows do not ask.

use std::collections::{BTreeMap, BTreeSet};

use datapath_abi::ids::{self, Identity};
use datapath_abi::policy::{FIXED_BITS, PolicyEntry, PolicyFlags, PolicyKey};
use datapath_abi::{EndpointId, MapId};
use zerocopy::{FromBytes, IntoBytes};

use super::{Entries, Op};
use crate::policy::L4;

/// Endpoint and direction.
type Side = (EndpointId, u8);
type Slot = (Identity, L4);

/// An entry before and after; at least one of them is there.
#[derive(Clone, Copy, Debug, Default)]
struct Change {
    old: Option<PolicyEntry>,
    new: Option<PolicyEntry>,
}

/// Identities that addresses leave and come to. Equal ones: those of addresses that stay.
pub(super) type Moves = BTreeSet<(Identity, Identity)>;

/// Changes of policy entries, in the order of a plan.
#[derive(Debug, Default)]
pub(super) struct Ordered {
    /// Before addresses.
    pub(super) before: Vec<Op>,
    /// After them.
    pub(super) after: Vec<Op>,
    /// Entries that are there only meanwhile.
    pub(super) gates: usize,
    /// Sides with a gate.
    pub(super) gated: BTreeSet<Side>,
}

/// Bytes of a key up to the direction, and up to the identity.
const SIDE_BYTES: usize = 8;
const IDENTITY_BYTES: usize = 12;

/// What a packet meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Allow,
    Deny,
    Redirect,
}

fn read(key: &[u8]) -> Option<(Side, Slot)> {
    let key = PolicyKey::read_from_bytes(key).ok()?;
    let bits = u8::try_from(key.prefix_len.checked_sub(FIXED_BITS)?).ok()?;
    let l4 = L4 { protocol: key.protocol, port: u16::from_be_bytes(key.port), bits };
    Some(((key.endpoint, key.direction), (key.identity, l4)))
}

fn key((endpoint, direction): Side, (identity, l4): Slot) -> Vec<u8> {
    let port = l4.port.to_be_bytes();
    let prefix_len = FIXED_BITS + u32::from(l4.bits);
    let key = PolicyKey { prefix_len, endpoint, direction, pad: 0, identity, protocol: l4.protocol, port, pad2: 0 };
    key.as_bytes().to_vec()
}

/// The order of writing: exact and narrow ones first.
fn place((identity, l4): &Slot) -> (bool, std::cmp::Reverse<u8>, Slot) {
    (*identity == ids::UNKNOWN, std::cmp::Reverse(l4.bits), (*identity, *l4))
}

/// Orders the changes from `had` to `wanted`. `idle`: endpoints that no packet is asked about meanwhile, because their
/// addresses come last or go before.
pub(super) fn order(had: &Entries, wanted: &Entries, moves: &Moves, idle: &BTreeSet<EndpointId>) -> Ordered {
    let mut sides: BTreeMap<Side, BTreeMap<Slot, Change>> = BTreeMap::new();
    for (key, old, new) in had.diff(wanted) {
        let Some((side, slot)) = read(key) else { continue };
        let entry = |bytes: Option<&Vec<u8>>| bytes.and_then(|bytes| PolicyEntry::read_from_bytes(bytes).ok());
        sides.entry(side).or_default().insert(slot, Change { old: entry(old), new: entry(new) });
    }
    let lengths = lengths(wanted);
    let mut ordered = Ordered::default();
    let (mut puts, mut deletes) = (Vec::new(), Vec::new());
    for (side, changes) in &sides {
        if !idle.contains(&side.0) {
            let trial = Trial::new(*side, changes, moves, (wanted, &lengths));
            if !trial.is_safe() {
                trial.gate(*side, &mut ordered);
                ordered.gated.insert(*side);
                continue;
            }
        }
        for (slot, change) in changes {
            match change.new {
                Some(new) => puts.push((place(slot), put(*side, *slot, &new))),
                None => deletes.push((place(slot), delete(*side, *slot))),
            }
        }
    }
    puts.sort_by(|a, b| (a.0, a.1.key()).cmp(&(b.0, b.1.key())));
    deletes.sort_by(|a, b| (b.0, b.1.key()).cmp(&(a.0, a.1.key())));
    ordered.before.splice(0..0, puts.into_iter().map(|(_, op)| op));
    ordered.after.splice(0..0, deletes.into_iter().map(|(_, op)| op));
    ordered
}

fn put(side: Side, slot: Slot, entry: &PolicyEntry) -> Op {
    Op::Put { map: MapId::Policy, key: key(side, slot), value: entry.as_bytes().to_vec() }
}

fn delete(side: Side, slot: Slot) -> Op {
    Op::Delete { map: MapId::Policy, key: key(side, slot) }
}

/// Prefix lengths that a map's entries have.
fn lengths(entries: &Entries) -> Vec<u32> {
    let mut lengths = Vec::new();
    let length = |key: &[u8]| PolicyKey::read_from_bytes(key).ok().map(|key| key.prefix_len);
    let mut next = entries.first().and_then(|(key, _)| length(key));
    while let Some(found) = next {
        lengths.push(found);
        // Lengths are the first bytes of keys: the last key of one is before the first of the next.
        let behind = PolicyKey { prefix_len: found, endpoint: u16::MAX, direction: u8::MAX, ..last_key() };
        next =
            entries.range_from(behind.as_bytes()).next().and_then(|(key, _)| length(key)).filter(|next| *next != found);
    }
    lengths
}

fn last_key() -> PolicyKey {
    PolicyKey {
        prefix_len: 0,
        endpoint: 0,
        direction: 0,
        pad: u8::MAX,
        identity: u32::MAX,
        protocol: u8::MAX,
        port: [u8::MAX; 2],
        pad2: u8::MAX,
    }
}

/// The changes of one side, tried out.
struct Trial<'a> {
    changes: &'a BTreeMap<Slot, Change>,
    /// Entries that stay as they are and decide together with those that change.
    kept: BTreeMap<Slot, PolicyEntry>,
    /// Identities whose packets may meet something else, and those of addresses that move.
    stay: BTreeSet<Identity>,
    moving: Vec<(Identity, Identity)>,
}

/// An entry of a moving identity's (`true`: the one that it comes to), with precedence and flags before and after.
type Sketch = (bool, L4, [Option<(u32, u8)>; 2]);

/// What one look-up can find for a packet: entries that hold it, narrow ones first.
type Chain = Vec<(Slot, Change)>;

impl<'a> Trial<'a> {
    fn new(
        (endpoint, direction): Side,
        changes: &'a BTreeMap<Slot, Change>,
        moves: &Moves,
        (wanted, lengths): (&Entries, &[u32]),
    ) -> Self {
        let mut stay: BTreeSet<Identity> = changes.keys().map(|(identity, _)| *identity).collect();
        let any = stay.contains(&ids::UNKNOWN);
        let concerned = |identity: &Identity| stay.contains(identity);
        let moving: Vec<_> =
            moves.iter().filter(|(from, to)| any || concerned(from) || concerned(to)).copied().collect();
        stay.insert(ids::UNKNOWN);
        let mut kept = BTreeMap::new();
        let mut keep = |(bytes, value): (&Vec<u8>, &Vec<u8>)| {
            if let (Some((_, slot)), Ok(entry)) = (read(bytes), PolicyEntry::read_from_bytes(value))
                && !changes.contains_key(&slot)
            {
                kept.insert(slot, entry);
            }
        };
        let first = |prefix_len, identity| PolicyKey {
            prefix_len,
            endpoint,
            direction,
            pad: 0,
            identity,
            protocol: 0,
            port: [0; 2],
            pad2: 0,
        };
        let mut about: BTreeSet<Identity> = stay.clone();
        about.extend(moving.iter().flat_map(|(from, to)| [*from, *to]));
        for &prefix_len in lengths {
            if any {
                // What any identity meets together with its own entries.
                let key = first(prefix_len, 0);
                let side = key.as_bytes().get(..SIDE_BYTES).unwrap_or_default();
                wanted.range_from(key.as_bytes()).take_while(|(key, _)| key.starts_with(side)).for_each(&mut keep);
                continue;
            }
            for &identity in &about {
                let key = first(prefix_len, identity);
                let own = key.as_bytes().get(..IDENTITY_BYTES).unwrap_or_default();
                wanted.range_from(key.as_bytes()).take_while(|(key, _)| key.starts_with(own)).for_each(&mut keep);
            }
        }
        if any {
            stay.extend(kept.keys().map(|(identity, _)| *identity));
        }
        Self { changes, kept, stay, moving }
    }
    fn change(&self, slot: Slot) -> Option<Change> {
        let kept = || self.kept.get(&slot).map(|entry| Change { old: Some(*entry), new: Some(*entry) });
        self.changes.get(&slot).copied().or_else(kept)
    }

    /// Blocks of an identity's entries, before or after.
    fn blocks(&self, identity: Identity) -> impl Iterator<Item = L4> {
        let all = (identity, L4::ANY)..=(identity, L4 { protocol: u8::MAX, port: u16::MAX, bits: u8::MAX });
        let changed = self.changes.range(all.clone()).map(|((_, l4), _)| *l4);
        changed.chain(self.kept.range(all).map(|((_, l4), _)| *l4))
    }

    fn chain(&self, identity: Identity, block: L4) -> Chain {
        block.covering().filter_map(|l4| self.change((identity, l4)).map(|change| ((identity, l4), change))).collect()
    }

    /// Whether no packet meets a third verdict.
    fn is_safe(&self) -> bool {
        let stay = self.stay.iter().map(|identity| (*identity, *identity));
        // Many identities have the same entries: one of each kind is enough.
        let mut seen: BTreeSet<(bool, bool, Vec<Sketch>)> = BTreeSet::new();
        stay.chain(self.moving.iter().copied()).all(|(from, to)| {
            let sketch = |identity, moved| {
                self.blocks(identity).filter_map(move |l4| self.change((identity, l4)).map(|change| (l4, change))).map(
                    move |(l4, change)| {
                        (moved, l4, [change.old, change.new].map(|e| e.map(|e| (e.precedence, e.flags.0))))
                    },
                )
            };
            let both: Vec<_> =
                sketch(from, false).chain((from != to).then(|| sketch(to, true)).into_iter().flatten()).collect();
            !seen.insert((from == to, from == ids::UNKNOWN, both)) || self.is_safe_for(from, to)
        })
    }

    /// `from`, `to`: identity of a packet's other end, before and after addresses are written.
    fn is_safe_for(&self, from: Identity, to: Identity) -> bool {
        let mut blocks: BTreeSet<L4> = BTreeSet::from([L4::ANY]);
        for identity in [from, to, ids::UNKNOWN] {
            blocks.extend(self.blocks(identity));
        }
        blocks.into_iter().all(|block| {
            let any = self.chain(ids::UNKNOWN, block);
            let (exact, moved) = match from == to {
                true if from == ids::UNKNOWN => (Chain::new(), Chain::new()),
                same => (self.chain(from, block), if same { Chain::new() } else { self.chain(to, block) }),
            };
            let then = if from == to { &exact } else { &moved };
            is_safe_order(&exact, then, &any)
        })
    }

    /// Everything behind a gate.
    fn gate(&self, side: Side, ordered: &mut Ordered) {
        let widest = (ids::UNKNOWN, L4::ANY);
        let all = self.changes.iter().map(|(slot, change)| (*slot, *change));
        let kept = self.kept.iter().map(|(slot, entry)| (*slot, Change { old: Some(*entry), new: Some(*entry) }));
        let (of_any, exact): (BTreeMap<Slot, Change>, BTreeMap<Slot, Change>) =
            all.chain(kept).partition(|((identity, _), _)| *identity == ids::UNKNOWN);
        let closed = |slot: Slot| PolicyEntry {
            precedence: u32::MAX,
            flags: PolicyFlags(PolicyFlags::DENY),
            l4_prefix: slot.1.bits,
            ..PolicyEntry::default()
        };
        let mut gates: BTreeSet<Slot> =
            of_any.iter().filter(|(_, change)| change.old.is_some()).map(|(slot, _)| *slot).collect();
        ordered.gates += usize::from(!of_any.contains_key(&widest));
        gates.insert(widest);
        ordered.before.extend(gates.iter().map(|slot| put(side, *slot, &closed(*slot))));
        for (slot, change) in exact.iter().filter(|(slot, _)| self.changes.contains_key(*slot)) {
            match change.new {
                Some(new) => ordered.before.push(put(side, *slot, &new)),
                // Addresses may still be of this identity; behind the gate that does not matter.
                None => ordered.before.push(delete(side, *slot)),
            }
        }
        let mut of_any: Vec<(Slot, Change)> = of_any.into_iter().collect();
        of_any.sort_by_key(|(slot, _)| place(slot));
        for (slot, change) in &of_any {
            ordered.after.extend(change.new.map(|new| put(side, *slot, &new)));
            if change.new.is_some() {
                gates.remove(slot);
            }
        }
        let mut gates: Vec<Slot> = gates.into_iter().collect();
        gates.sort_by_key(place);
        ordered.after.extend(gates.into_iter().map(|slot| delete(side, slot)));
    }
}

/// Tries the steps that matter to one packet: `exact`, `then`: the chain of its identity before and after it moves.
fn is_safe_order(exact: &Chain, then: &Chain, any: &Chain) -> bool {
    let old = verdict(exact, any, &|_, change| change.old);
    let new = verdict(then, any, &|_, change| change.new);
    let fits = |found: Outcome| found == old || found == new;
    let mut slots: Vec<(Slot, Change)> = exact.iter().chain(then).chain(any).copied().collect();
    slots.sort_by_key(|(slot, _)| place(slot));
    slots.dedup_by_key(|(slot, _)| *slot);
    let mut written: BTreeSet<Slot> = BTreeSet::new();
    let now = |written: &BTreeSet<Slot>, slot: Slot, change: Change| {
        if written.contains(&slot) { change.new } else { change.old }
    };
    for (slot, _) in slots.iter().filter(|(_, change)| change.new.is_some()) {
        written.insert(*slot);
        if !fits(verdict(exact, any, &|slot, change| now(&written, slot, change))) {
            return false;
        }
    }
    if !fits(verdict(then, any, &|slot, change| now(&written, slot, change))) {
        return false;
    }
    slots.iter().rev().filter(|(_, change)| change.new.is_none()).all(|(slot, _)| {
        written.insert(*slot);
        fits(verdict(then, any, &|slot, change| now(&written, slot, change)))
    })
}

/// What two look-ups find, in a state in which `now` says what each entry is.
fn verdict(exact: &Chain, any: &Chain, now: &dyn Fn(Slot, Change) -> Option<PolicyEntry>) -> Outcome {
    let longest = |chain: &Chain| chain.iter().find_map(|(slot, change)| now(*slot, *change));
    let winner = match (longest(exact), longest(any)) {
        (Some(exact), Some(any)) => {
            let any_wins = (any.precedence, any.l4_prefix) > (exact.precedence, exact.l4_prefix);
            Some(if any_wins { any } else { exact })
        }
        (exact, any) => exact.or(any),
    };
    match winner {
        None => Outcome::Deny,
        Some(entry) if entry.flags.has(PolicyFlags::REDIRECT) => Outcome::Redirect,
        Some(entry) if entry.flags.has(PolicyFlags::DENY) => Outcome::Deny,
        Some(_) => Outcome::Allow,
    }
}
