//! Which slots of a map's slab are free, live or quarantined.
//!
//! Invariant: a slot that left the map in this run (deleted, evicted, replaced) is not handed out again before
//! `end_run`, as long as another slot is free: a program's pointer into it stays readable and is known to be stale.

use std::collections::VecDeque;

/// Slots beyond `max_entries`, so that updates and deletions of one run need not reuse what they freed.
pub(super) const SPARE: u32 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Live,
    Out,
}

/// Allocator of slots.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    /// Grown as slots are first used, so that a large map costs nothing before it is filled.
    states: Vec<State>,
    capacity: u32,
    live: u32,
    free: Vec<u32>,
    quarantine: VecDeque<u32>,
}

impl Slots {
    pub(super) fn new(max_entries: u32) -> Self {
        Self {
            states: Vec::new(),
            capacity: max_entries + SPARE,
            live: 0,
            free: Vec::new(),
            quarantine: VecDeque::new(),
        }
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    pub(super) fn live(&self) -> u32 {
        self.live
    }

    #[inline]
    pub(super) fn is_live(&self, slot: u32) -> bool {
        self.states.get(slot as usize) == Some(&State::Live)
    }

    /// A slot for a new entry: freed before, never used, or (with nothing else left) quarantined longest.
    /// `None` only when `capacity` entries are live, which an owner that keeps to `max_entries` never reaches.
    pub(super) fn take(&mut self) -> Option<u32> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => match u32::try_from(self.states.len()) {
                Ok(fresh) if fresh < self.capacity => {
                    self.states.push(State::Out);
                    fresh
                }
                _ => self.quarantine.pop_front()?,
            },
        };
        self.states[slot as usize] = State::Live;
        self.live += 1;
        Some(slot)
    }

    /// The entry has left the map; its bytes stay until the run ends.
    pub(super) fn quarantine(&mut self, slot: u32) {
        self.states[slot as usize] = State::Out;
        self.live -= 1;
        self.quarantine.push_back(slot);
    }

    /// Between runs nobody holds a pointer.
    #[inline]
    pub(super) fn end_run(&mut self) {
        if !self.quarantine.is_empty() {
            self.free.extend(self.quarantine.drain(..));
        }
    }

    /// Live slots in slot order.
    pub(super) fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..).zip(&self.states).filter(|(_, state)| **state == State::Live).map(|(slot, _)| slot)
    }

    pub(super) fn clear(&mut self) {
        self.states.clear();
        self.free.clear();
        self.quarantine.clear();
        self.live = 0;
    }
}
