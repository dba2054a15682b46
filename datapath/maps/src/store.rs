//! The seam between what decides about map contents and what holds them.

use datapath_abi::maps::MapId;

use crate::errno::Errno;
use crate::spec::{MapSpec, UpdateMode};

/// Key and value bytes of one entry.
pub type Entry = (Vec<u8>, Vec<u8>);

/// Why an operation on a map failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// No room for another entry; the entries that are there are untouched.
    #[error("map `{map}` is full at {max_entries} entries", map = map.name())]
    Full {
        /// Which map.
        map: MapId,
        /// Its capacity.
        max_entries: u32,
    },
    /// [`UpdateMode::NoExist`] met an entry.
    #[error("map `{map}` has this key already", map = map.name())]
    Exists {
        /// Which map.
        map: MapId,
    },
    /// [`UpdateMode::Exist`] met no entry.
    #[error("map `{map}` does not have this key", map = map.name())]
    Absent {
        /// Which map.
        map: MapId,
    },
    /// Key or value bytes do not fit the map's layout.
    #[error("map `{map}` has {part} size {found}, but {given} bytes were given", map = map.name())]
    Layout {
        /// Which map.
        map: MapId,
        /// "key" or "value".
        part: &'static str,
        /// Bytes the map has.
        found: usize,
        /// Bytes given.
        given: usize,
    },
    /// The store has no such map.
    #[error("there is no map `{map}` here", map = map.name())]
    Missing {
        /// Which map.
        map: MapId,
    },
    /// The store said no for another reason.
    #[error("map `{map}`: {step} failed with error number {errno}", map = map.name())]
    Refused {
        /// Which map.
        map: MapId,
        /// What was tried: "lookup", "update", "delete", "entries".
        step: &'static str,
        /// As in errno.h.
        errno: i32,
    },
    /// A definition that no kernel accepts.
    #[error("map `{map}` cannot exist: {rule}")]
    Spec {
        /// Name in the definition.
        map: String,
        /// The rule it breaks.
        rule: &'static str,
    },
}

impl MapError {
    /// The error for an update the kernel or [`crate::MemoryMap`] refused.
    #[must_use]
    pub fn of_update(map: MapId, max_entries: u32, errno: Errno) -> Self {
        match errno {
            Errno::E2big | Errno::Nospc => Self::Full { map, max_entries },
            Errno::Exist => Self::Exists { map },
            Errno::Noent => Self::Absent { map },
            Errno::Perm
            | Errno::Again
            | Errno::Nomem
            | Errno::Fault
            | Errno::Busy
            | Errno::Inval
            | Errno::Opnotsupp
            | Errno::Notsupp => Self::Refused { map, step: "update", errno: errno.number() },
        }
    }

    /// Checks the size of a key.
    ///
    /// # Errors
    /// [`MapError::Layout`].
    pub fn check_key(map: MapId, spec: &MapSpec, key: &[u8]) -> Result<(), Self> {
        check(map, "key", spec.key_size as usize, key.len())
    }

    /// Checks the size of a value as bpf(2) takes it.
    ///
    /// # Errors
    /// [`MapError::Layout`].
    pub fn check_value(map: MapId, spec: &MapSpec, cpus: u32, value: &[u8]) -> Result<(), Self> {
        check(map, "value", spec.user_value_size(cpus), value.len())
    }
}

fn check(map: MapId, part: &'static str, found: usize, given: usize) -> Result<(), MapError> {
    if found == given { Ok(()) } else { Err(MapError::Layout { map, part, found, given }) }
}

/// Whatever holds maps: [`crate::MemoryMaps`], or the kernel's. User space's view: values of per-CPU maps are all
/// CPUs' values, each rounded up to 8 bytes, one after the other.
pub trait MapStore {
    /// The value under a key (tries: of the longest prefix that matches).
    ///
    /// # Errors
    /// A missing map, a key of the wrong size, or what the kernel says.
    fn lookup(&self, map: MapId, key: &[u8]) -> Result<Option<Vec<u8>>, MapError>;

    /// Writes a value.
    ///
    /// # Errors
    /// [`MapError::Full`], [`MapError::Exists`], [`MapError::Absent`], and as [`Self::lookup`].
    fn update(&mut self, map: MapId, key: &[u8], value: &[u8], mode: UpdateMode) -> Result<(), MapError>;

    /// Deletes an entry; false: it was not there.
    ///
    /// # Errors
    /// As [`Self::lookup`]; arrays refuse deletion.
    fn delete(&mut self, map: MapId, key: &[u8]) -> Result<bool, MapError>;

    /// All entries, sorted by key bytes.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    fn entries(&self, map: MapId) -> Result<Vec<Entry>, MapError>;

    /// Writes many entries (create or replace), in this order. Stores with a batch call use it.
    /// Not atomic: entries before the first that fails are written.
    ///
    /// # Errors
    /// As [`Self::update`].
    fn update_many(&mut self, map: MapId, entries: &[Entry]) -> Result<(), MapError> {
        for (key, value) in entries {
            self.update(map, key, value, UpdateMode::Any)?;
        }
        Ok(())
    }
}
