//! The policy entries of one endpoint and direction, while they are made.
//!
//! The datapath asks for the longest match of the exact identity and for that of any identity (0), and lets the higher
//! precedence win. A longest match hides the shorter ones of its identity; so an entry must not survive beside one that
//! covers it with a higher precedence. Entries that could never change a verdict are left out as well.

use std::collections::BTreeMap;

use datapath_abi::ids::{self, Identity};
use datapath_abi::policy::{FIXED_BITS, PolicyEntry, PolicyFlags, PolicyKey};
use datapath_abi::{Be16, EndpointId};

use super::form::Level;
use super::rules::{Direction, NO_RULE, RuleId};
use crate::map::Map;

/// A protocol and a block of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct L4 {
    /// IANA number; 0 with `bits` 0.
    pub protocol: u8,
    /// First port of the block.
    pub port: u16,
    /// Bits that count: 0 anything, 8 the protocol, up to 24 one port.
    pub bits: u8,
}

impl L4 {
    /// Every protocol.
    pub const ANY: Self = Self { protocol: 0, port: 0, bits: 0 };

    /// Every port of a protocol.
    pub const fn protocol(protocol: u8) -> Self {
        Self { protocol, port: 0, bits: 8 }
    }

    /// The blocks that make up a range of ports (both ends included), lowest first.
    pub fn range(protocol: u8, first: u16, last: u16) -> Vec<Self> {
        let mut blocks = Vec::new();
        let mut from = u32::from(first);
        let end = u32::from(last) + 1;
        while from < end {
            let aligned = from.trailing_zeros().min(16);
            let fits = (end - from).ilog2();
            let free = aligned.min(fits);
            let (Ok(port), Ok(free_bits)) = (u16::try_from(from), u8::try_from(free)) else {
                break;
            };
            blocks.push(Self { protocol, port, bits: 24 - free_bits });
            from += 1 << free;
        }
        blocks
    }

    /// Whether everything that another one matches matches this one.
    pub fn covers(self, other: Self) -> bool {
        self.bits <= other.bits && other.shortened(self.bits) == self
    }

    /// The same with fewer bits.
    fn shortened(self, bits: u8) -> Self {
        match bits {
            0..8 => Self::ANY,
            8 => Self::protocol(self.protocol),
            _ => {
                let free = 24_u8.saturating_sub(bits);
                let mask = u16::MAX.checked_shl(u32::from(free)).unwrap_or(0);
                Self { protocol: self.protocol, port: self.port & mask, bits }
            }
        }
    }

    /// Everything that covers it, itself included.
    pub(crate) fn covering(self) -> impl Iterator<Item = Self> {
        (8..=self.bits).rev().map(move |bits| self.shortened(bits)).chain(std::iter::once(Self::ANY))
    }

    /// Whether a packet of this protocol to this port matches.
    pub fn matches(self, protocol: u8, port: u16) -> bool {
        let exact = Self { protocol, port, bits: 24 };
        exact.shortened(self.bits) == self
    }
}

/// What an entry does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Lets it pass.
    Allow,
    /// Drops it.
    Deny,
    /// Hands it to a proxy. There are none yet: until then nothing passes.
    Redirect(Proxy),
}

/// Kinds of proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proxy {
    /// Looks at DNS questions, and learns addresses from the answers.
    Dns,
    /// Looks at HTTP requests.
    Http,
    /// Looks at the server name of TLS handshakes.
    Tls,
}

impl Action {
    /// Orders what is said on one level. A plain allow makes looking at requests pointless; DNS is looked at all the
    /// same, because names must be learnt.
    const fn low(self) -> u8 {
        match self {
            Self::Deny => 255,
            Self::Redirect(Proxy::Dns) => 134,
            Self::Allow => 16,
            Self::Redirect(Proxy::Http | Proxy::Tls) => 8,
        }
    }
}

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The higher one wins.
    pub precedence: u32,
    /// Rule that says so.
    pub rule: RuleId,
    /// What happens.
    pub action: Action,
    /// It is let pass, but `rule` (0: default deny) would drop it if all policies were enforced.
    pub audit: bool,
}

impl Verdict {
    /// What a rule of a level says.
    pub const fn new(level: Level, action: Action, rule: RuleId) -> Self {
        Self { precedence: level.precedence(action.low()), rule, action, audit: false }
    }

    /// A plain allow of the normal tier.
    pub const fn allow(rule: RuleId) -> Self {
        Self::new(Level::NORMAL, Action::Allow, rule)
    }

    /// A deny of the normal tier.
    pub const fn deny(rule: RuleId) -> Self {
        Self::new(Level::NORMAL, Action::Deny, rule)
    }

    /// What is so because no rule says anything else.
    pub const fn implicit(action: Action) -> Self {
        Self::new(Level::IMPLICIT, action, NO_RULE)
    }

    /// Whether the other, which matches whenever this one does, leaves this one without effect.
    fn is_hidden_by(self, other: Self) -> bool {
        let same = other.action == self.action && other.audit == self.audit;
        let plain = !matches!(self.action, Action::Redirect(_)) && (!self.audit || other.rule == self.rule);
        other.precedence > self.precedence || (other.precedence == self.precedence && same && plain)
    }
}

/// Entries of one endpoint and direction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyState {
    entries: Map<(Identity, L4), Verdict>,
}

impl PolicyState {
    /// Adds an entry. Of two for the same packets the one of higher precedence stays; of equals the first.
    pub fn insert(&mut self, identity: Identity, l4: L4, verdict: Verdict) {
        if self.entries.get(&(identity, l4)).is_none_or(|old| verdict.precedence > old.precedence) {
            self.entries.insert((identity, l4), verdict);
        }
    }

    /// Drops the entries that others hide.
    pub fn finish(&mut self) {
        // Prefix lengths in use, as bits: most states have two or three, and asking for all 25 takes its time.
        let lengths = |any: bool| {
            let entries = self.entries.keys().filter(|(identity, _)| !any || *identity == ids::UNKNOWN);
            entries.fold(0_u32, |lengths, (_, l4)| lengths | 1 << l4.bits)
        };
        let (of_all, of_any) = (lengths(false), lengths(true));
        let hidden = |identity: Identity, l4: L4, verdict: &Verdict| {
            let hides = |key: (Identity, L4)| {
                key != (identity, l4) && self.entries.get(&key).is_some_and(|other| verdict.is_hidden_by(*other))
            };
            l4.covering().any(|wider| {
                (of_all & 1 << wider.bits != 0 && hides((identity, wider)))
                    || (of_any & 1 << wider.bits != 0 && hides((ids::UNKNOWN, wider)))
            })
        };
        let gone = self.entries.iter().filter(|&(&(identity, l4), verdict)| hidden(identity, l4, verdict));
        let gone: Vec<_> = gone.map(|(key, _)| *key).collect();
        for key in gone {
            self.entries.remove(&key);
        }
    }

    /// What two look-ups find for an identity and every packet of a block, if nothing narrower is asked.
    pub fn decide(&self, identity: Identity, l4: L4) -> Option<Verdict> {
        let longest = |peer: Identity| {
            l4.covering().find_map(|wider| self.entries.get(&(peer, wider)).map(|verdict| (*verdict, wider.bits)))
        };
        let winner = match (longest(identity), longest(ids::UNKNOWN)) {
            (Some(exact), Some(any)) => {
                Some(if (any.0.precedence, any.1) > (exact.0.precedence, exact.1) { any } else { exact })
            }
            (exact, any) => exact.or(any),
        };
        winner.map(|(verdict, _)| verdict)
    }

    /// Blocks of an identity's entries, in order.
    pub(crate) fn blocks(&self, identity: Identity) -> impl Iterator<Item = (L4, Verdict)> + '_ {
        let own = self.entries.range_from(&(identity, L4::ANY)).take_while(move |((own, _), _)| *own == identity);
        own.map(|((_, l4), verdict)| (*l4, *verdict))
    }

    /// Identities that have entries, in order.
    pub(super) fn identities(&self) -> impl Iterator<Item = Identity> + '_ {
        let mut last = None;
        self.entries.keys().filter_map(move |(identity, _)| {
            let new = last != Some(*identity);
            last = Some(*identity);
            new.then_some(*identity)
        })
    }

    /// Removes an entry.
    pub(super) fn remove(&mut self, identity: Identity, l4: L4) {
        self.entries.remove(&(identity, l4));
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// All entries, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Identity, L4, Verdict)> {
        self.entries.iter().map(|(&(identity, l4), &verdict)| (identity, l4, verdict))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Makes an identity's entries those of another state. Returns the blocks that differ, with the entry anew.
    pub(crate) fn take(&mut self, other: &Self, identity: Identity) -> Vec<(L4, Option<Verdict>)> {
        let old: BTreeMap<L4, Verdict> = self.blocks(identity).collect();
        let new: BTreeMap<L4, Verdict> = other.blocks(identity).collect();
        let gone = old.keys().filter(|l4| !new.contains_key(l4)).map(|l4| (*l4, None));
        let differ: Vec<(L4, Option<Verdict>)> = gone
            .chain(new.iter().filter(|(l4, verdict)| old.get(l4) != Some(verdict)).map(|(l4, own)| (*l4, Some(*own))))
            .collect();
        for (l4, verdict) in &differ {
            match verdict {
                Some(verdict) => self.entries.insert((identity, *l4), *verdict),
                None => self.entries.remove(&(identity, *l4)),
            };
        }
        differ
    }

    /// Entries that differ, with those of the other state.
    pub(crate) fn diff<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (Identity, L4, Option<Verdict>)> + 'a {
        self.entries.diff(&other.entries).map(|((identity, l4), _, new)| (*identity, *l4, new.copied()))
    }

    /// The entries as the map holds them.
    pub fn map_entries(
        &self,
        endpoint: EndpointId,
        direction: Direction,
    ) -> impl Iterator<Item = (PolicyKey, PolicyEntry)> {
        self.iter()
            .map(move |(identity, l4, verdict)| (map_key(endpoint, direction, identity, l4), verdict.map_value(l4)))
    }
}

/// The key of an entry.
pub(crate) fn map_key(endpoint: EndpointId, direction: Direction, identity: Identity, l4: L4) -> PolicyKey {
    PolicyKey {
        prefix_len: FIXED_BITS + u32::from(l4.bits),
        endpoint,
        direction: direction.number(),
        pad: 0,
        identity,
        protocol: l4.protocol,
        port: l4.port.to_be_bytes(),
        pad2: 0,
    }
}

impl Verdict {
    /// The value of an entry for a block.
    pub(crate) fn map_value(&self, l4: L4) -> PolicyEntry {
        PolicyEntry {
            precedence: self.precedence,
            rule: self.rule,
            proxy_port: Be16::new(0),
            flags: PolicyFlags(flags(self)),
            l4_prefix: l4.bits,
        }
    }
}

fn flags(verdict: &Verdict) -> u8 {
    let action = match verdict.action {
        Action::Allow => 0,
        Action::Deny => PolicyFlags::DENY,
        Action::Redirect(_) => PolicyFlags::REDIRECT,
    };
    action | if verdict.audit { PolicyFlags::AUDIT } else { 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::form::Stage;
    use super::*;

    fn l4(protocol: u8, port: u16, bits: u8) -> L4 {
        L4 { protocol, port, bits }
    }

    #[test]
    fn ranges_become_the_fewest_blocks() {
        assert_eq!(L4::range(6, 80, 80), [l4(6, 80, 24)]);
        assert_eq!(L4::range(6, 80, 83), [l4(6, 80, 22)]);
        assert_eq!(L4::range(6, 79, 82), [l4(6, 79, 24), l4(6, 80, 23), l4(6, 82, 24)]);
        assert_eq!(L4::range(6, 0, 65_535), [l4(6, 0, 8)]);
        assert_eq!(L4::range(6, 1, 65_535).len(), 16);
        assert_eq!(L4::range(6, 65_535, 65_535), [l4(6, 65_535, 24)]);
    }

    #[test]
    fn every_range_holds_its_ports_once_and_no_other() {
        for first in (0..=65_535).step_by(997) {
            for last in (first..=65_535).step_by(1499) {
                let blocks = L4::range(17, first, last);
                let mut next = u32::from(first);
                for block in &blocks {
                    assert_eq!(u32::from(block.port), next, "{first}-{last}");
                    next += 1 << (24 - block.bits);
                }
                assert_eq!(next, u32::from(last) + 1, "{first}-{last}");
            }
        }
    }

    #[test]
    fn a_higher_precedence_removes_what_it_covers() {
        let mut state = PolicyState::default();
        state.insert(300, l4(6, 80, 24), Verdict::allow(1));
        state.insert(300, L4::protocol(6), Verdict::deny(2));
        state.insert(300, l4(17, 53, 24), Verdict::allow(3));
        state.finish();
        let left: Vec<_> = state.iter().map(|(_, _, verdict)| verdict.rule).collect();
        assert_eq!(left, [2, 3]);
    }

    #[test]
    fn a_lower_precedence_does_not_hide_a_longer_prefix() {
        let mut state = PolicyState::default();
        state.insert(300, L4::ANY, Verdict::allow(1));
        state.insert(300, l4(6, 80, 24), Verdict::deny(2));
        state.finish();
        assert_eq!(state.iter().count(), 2);
    }

    /// The verdict by definition: of all entries that match, the highest precedence, then the longest prefix, then the
    /// exact identity.
    fn scan(state: &PolicyState, identity: Identity, protocol: u8, port: u16) -> Option<(u32, Action)> {
        let matching =
            state.iter().filter(|(peer, l4, _)| (*peer == identity || *peer == 0) && l4.matches(protocol, port));
        let best = matching.max_by_key(|(peer, l4, verdict)| (verdict.precedence, l4.bits, *peer != 0));
        best.map(|(_, _, verdict)| (verdict.precedence, verdict.action))
    }

    /// What two longest-prefix look-ups give.
    fn look_up(state: &PolicyState, identity: Identity, protocol: u8, port: u16) -> Option<(u32, Action)> {
        let longest = |peer: Identity| {
            let matching = state.iter().filter(|(found, l4, _)| *found == peer && l4.matches(protocol, port));
            matching.max_by_key(|(_, l4, _)| l4.bits).map(|(_, l4, verdict)| (verdict, l4.bits))
        };
        let winner = match (longest(identity), longest(0)) {
            (Some(exact), Some(any)) => {
                Some(if (any.0.precedence, any.1) > (exact.0.precedence, exact.1) { any } else { exact })
            }
            (exact, any) => exact.or(any),
        };
        winner.map(|(verdict, _)| (verdict.precedence, verdict.action))
    }

    fn entries() -> impl Strategy<Value = Vec<(Identity, L4, Verdict)>> {
        let block =
            (prop_oneof![Just(6_u8), Just(17)], 0_u16..8, 0_u8..=4).prop_map(|(protocol, port, kind)| match kind {
                0 => L4::ANY,
                1 => L4::protocol(protocol),
                2 => l4(protocol, port & !3, 22),
                3 => l4(protocol, port & !1, 23),
                _ => l4(protocol, port, 24),
            });
        // Three tiers with allow and deny each.
        let verdict = (0_u16..3, any::<bool>()).prop_map(|(tier, deny)| {
            let level = Level::tier(Stage::Admin, tier, 0);
            Verdict::new(level, if deny { Action::Deny } else { Action::Allow }, 1)
        });
        let identity = prop_oneof![Just(0), Just(300), Just(301)];
        proptest::collection::vec((identity, block, verdict), 0..12)
    }

    proptest! {
        #[test]
        fn two_look_ups_find_what_a_scan_of_all_entries_finds(entries in entries()) {
            let mut all = PolicyState::default();
            for (identity, l4, verdict) in entries {
                all.insert(identity, l4, verdict);
            }
            let mut state = all.clone();
            state.finish();
            for identity in [300, 301, 302] {
                for protocol in [6, 17, 132] {
                    for port in 0..8 {
                        let expected = scan(&all, identity, protocol, port);
                        prop_assert_eq!(look_up(&state, identity, protocol, port), expected);
                    }
                }
            }
        }
    }
}
