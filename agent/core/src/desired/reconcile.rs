//! Makes the maps what they should be: reads, plans, checks the room, applies; takes everything back when a step fails.

use std::collections::BTreeMap;

use datapath_abi::MapId;
use datapath_maps::{MapError, MapStore, UpdateMode};

use super::{Desired, Op, Plan, Snapshot};

/// Capacities of maps that differ from the catalogue's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    entries: BTreeMap<MapId, u32>,
}

impl Limits {
    /// Sets a map's capacity.
    #[must_use]
    pub fn with(mut self, map: MapId, entries: u32) -> Self {
        self.entries.insert(map, entries);
        self
    }

    /// A map's capacity.
    pub fn of(&self, map: MapId) -> u32 {
        self.entries.get(&map).copied().unwrap_or(map.max_entries())
    }
}

/// Why the maps are not as wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReconcileError {
    /// A map has too little room; nothing was changed.
    #[error("map `{}` holds {capacity} entries and the change needs room for {needed}", map.name())]
    Full {
        /// Map.
        map: MapId,
        /// Its capacity.
        capacity: u32,
        /// Entries while the change is made: the old ones and the new ones together.
        needed: usize,
    },
    /// A step failed; the steps before it were taken back.
    #[error("{source}; the maps are as before")]
    Step {
        /// What failed.
        source: MapError,
    },
    /// A step failed, and so did taking back an earlier one: the maps are between old and new.
    #[error("{source}; taking back the change failed too: {undo}")]
    Undo {
        /// What failed.
        source: MapError,
        /// What failed then.
        undo: MapError,
    },
    /// The maps could not be read; nothing was changed.
    #[error(transparent)]
    Read(MapError),
}

/// One pass. Safe to repeat: with the same input, a second pass changes nothing. Returns what was done.
///
/// # Errors
/// See [`ReconcileError`].
pub fn reconcile(want: &Desired, limits: &Limits, store: &mut dyn MapStore) -> Result<Plan, ReconcileError> {
    reconcile_known(&mut None, want, limits, store)
}

/// As [`reconcile`], where it is known what the maps hold: only differences are looked at, and nothing is read. What is
/// not known (`None`) is read; afterwards it is known, unless something failed.
///
/// # Errors
/// See [`ReconcileError`].
pub fn reconcile_known(
    known: &mut Option<Snapshot>,
    want: &Desired,
    limits: &Limits,
    store: &mut dyn MapStore,
) -> Result<Plan, ReconcileError> {
    let have = match known.take() {
        Some(have) => have,
        None => Snapshot::read(store).map_err(ReconcileError::Read)?,
    };
    let plan = Plan::between(&have, want);
    for map in super::OWNED {
        let (capacity, needed) = (limits.of(map), plan.peak(map));
        if needed > usize::try_from(capacity).unwrap_or(usize::MAX) && !plan.is_empty() {
            *known = Some(have);
            return Err(ReconcileError::Full { map, capacity, needed });
        }
    }
    for (done, op) in plan.ops().iter().enumerate() {
        if let Err(source) = apply(op, store) {
            let before = plan.ops().get(..done).unwrap_or_default();
            return match undo(before, &have, store) {
                Ok(()) => Err(ReconcileError::Step { source }),
                Err(undo) => Err(ReconcileError::Undo { source, undo }),
            };
        }
    }
    *known = Some(Snapshot::from(want));
    Ok(plan)
}

fn apply(op: &Op, store: &mut dyn MapStore) -> Result<(), MapError> {
    match op {
        Op::Put { map, key, value } => store.update(*map, key, value, UpdateMode::Any),
        Op::Delete { map, key } => store.delete(*map, key).map(|_was_there| ()),
    }
}

fn undo(done: &[Op], have: &Snapshot, store: &mut dyn MapStore) -> Result<(), MapError> {
    for op in done.iter().rev() {
        let (map, key) = (op.map(), op.key());
        match have.get(map, key) {
            Some(value) => store.update(map, key, value, UpdateMode::Any)?,
            None => {
                store.delete(map, key)?;
            }
        }
    }
    Ok(())
}
