//! Typed tables over a [`MapStore`].
//!
//! Invariant: the types' sizes are checked against the bytes on every call, so a wrong pair of types is an error, not
//! garbage. Keys and values are plain data without padding (zerocopy's derives check that).

use std::marker::PhantomData;

use datapath_abi::maps::MapId;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::spec::UpdateMode;
use crate::store::{MapError, MapStore};

/// What a key type must be.
pub trait Plain: FromBytes + IntoBytes + Immutable {}
impl<T: FromBytes + IntoBytes + Immutable> Plain for T {}

fn parse<T: FromBytes>(map: MapId, part: &'static str, bytes: &[u8]) -> Result<T, MapError> {
    T::read_from_bytes(bytes).map_err(|_| MapError::Layout { map, part, found: bytes.len(), given: size_of::<T>() })
}

fn get<K: Plain, V: Plain>(store: &dyn MapStore, map: MapId, key: &K) -> Result<Option<V>, MapError> {
    store.lookup(map, key.as_bytes())?.map(|bytes| parse(map, "value", &bytes)).transpose()
}

fn entries<K: Plain, V: Plain>(store: &dyn MapStore, map: MapId) -> Result<Vec<(K, V)>, MapError> {
    store.entries(map)?.iter().map(|(key, value)| Ok((parse(map, "key", key)?, parse(map, "value", value)?))).collect()
}

fn per_cpu<K: Plain, V: Plain>(store: &dyn MapStore, map: MapId, key: &K) -> Result<Option<Vec<V>>, MapError> {
    let Some(bytes) = store.lookup(map, key.as_bytes())? else {
        return Ok(None);
    };
    let stride = size_of::<V>().next_multiple_of(8).max(8);
    if !bytes.len().is_multiple_of(stride) {
        return Err(MapError::Layout { map, part: "value", found: bytes.len(), given: size_of::<V>() });
    }
    bytes
        .chunks_exact(stride)
        .map(|value| parse(map, "value", &value[..size_of::<V>()]))
        .collect::<Result<Vec<V>, MapError>>()
        .map(Some)
}

/// Reads one map by type.
pub struct TableView<'a, K, V> {
    store: &'a dyn MapStore,
    map: MapId,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K, V> std::fmt::Debug for TableView<'_, K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TableView").field(&self.map.name()).finish()
    }
}

impl<'a, K: Plain, V: Plain> TableView<'a, K, V> {
    /// Over one map of a store.
    #[must_use]
    pub fn new(store: &'a dyn MapStore, map: MapId) -> Self {
        Self { store, map, types: PhantomData }
    }

    /// The value under a key.
    ///
    /// # Errors
    /// As [`MapStore::lookup`]; [`MapError::Layout`] when the types do not fit.
    pub fn get(&self, key: &K) -> Result<Option<V>, MapError> {
        get(self.store, self.map, key)
    }

    /// Every CPU's value under a key of a per-CPU map.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn get_per_cpu(&self, key: &K) -> Result<Option<Vec<V>>, MapError> {
        per_cpu(self.store, self.map, key)
    }

    /// All entries, sorted by key bytes.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn entries(&self) -> Result<Vec<(K, V)>, MapError> {
        entries(self.store, self.map)
    }
}

/// Reads and writes one map by type.
pub struct Table<'a, K, V> {
    store: &'a mut dyn MapStore,
    map: MapId,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K, V> std::fmt::Debug for Table<'_, K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Table").field(&self.map.name()).finish()
    }
}

impl<'a, K: Plain, V: Plain> Table<'a, K, V> {
    /// Over one map of a store.
    #[must_use]
    pub fn new(store: &'a mut dyn MapStore, map: MapId) -> Self {
        Self { store, map, types: PhantomData }
    }

    /// The value under a key.
    ///
    /// # Errors
    /// As [`TableView::get`].
    pub fn get(&self, key: &K) -> Result<Option<V>, MapError> {
        get(self.store, self.map, key)
    }

    /// Every CPU's value under a key of a per-CPU map.
    ///
    /// # Errors
    /// As [`TableView::get`].
    pub fn get_per_cpu(&self, key: &K) -> Result<Option<Vec<V>>, MapError> {
        per_cpu(self.store, self.map, key)
    }

    /// All entries, sorted by key bytes.
    ///
    /// # Errors
    /// As [`TableView::get`].
    pub fn entries(&self) -> Result<Vec<(K, V)>, MapError> {
        entries(self.store, self.map)
    }

    /// Creates or replaces.
    ///
    /// # Errors
    /// As [`MapStore::update`].
    pub fn set(&mut self, key: &K, value: &V) -> Result<(), MapError> {
        self.update(key, value, UpdateMode::Any)
    }

    /// Writes as `mode` says.
    ///
    /// # Errors
    /// As [`MapStore::update`].
    pub fn update(&mut self, key: &K, value: &V, mode: UpdateMode) -> Result<(), MapError> {
        self.store.update(self.map, key.as_bytes(), value.as_bytes(), mode)
    }

    /// Deletes; false: it was not there.
    ///
    /// # Errors
    /// As [`MapStore::delete`].
    pub fn remove(&mut self, key: &K) -> Result<bool, MapError> {
        self.store.delete(self.map, key.as_bytes())
    }
}
