//! The kernel's maps as a [`MapStore`].

use std::collections::BTreeMap;
use std::path::Path;

use datapath_abi::maps::MapId;
use datapath_maps::{Entry, Errno, MapError, MapKind, MapSpec, MapStore, UpdateMode};

use crate::error::KernelError;
use crate::map::KernelMap;

/// A set of kernel maps by name; those of the catalogue are reachable as a [`MapStore`].
#[derive(Debug, Default)]
pub struct KernelMaps {
    maps: BTreeMap<String, KernelMap>,
}

impl KernelMaps {
    /// Creates all of them. `cap` limits `max_entries` of hashes and tries, for tests: arrays and ring buffers keep
    /// theirs, because their size has a meaning.
    ///
    /// # Errors
    /// As [`KernelMap::create`], and [`MapError::Spec`] for a name given twice.
    pub fn create(specs: impl IntoIterator<Item = MapSpec>, cap: Option<u32>) -> Result<Self, KernelError> {
        let mut all = Self::default();
        for mut spec in specs {
            if let (Some(cap), false) = (cap, has_fixed_size(spec.kind)) {
                spec.max_entries = spec.max_entries.min(cap);
            }
            all.add(KernelMap::create(spec)?)?;
        }
        Ok(all)
    }

    /// Adds a map, for example a pinned one.
    ///
    /// # Errors
    /// [`MapError::Spec`] when its name is taken.
    pub fn add(&mut self, map: KernelMap) -> Result<(), KernelError> {
        let name = map.spec().name.clone();
        if self.maps.contains_key(&name) {
            return Err(KernelError::Spec(MapError::Spec { map: name, rule: "a map's name must be unique" }));
        }
        self.maps.insert(name, map);
        Ok(())
    }

    /// By name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&KernelMap> {
        self.maps.get(name)
    }

    /// In order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &KernelMap> {
        self.maps.values()
    }

    /// Pins every map under its name in a folder of a bpf file system.
    ///
    /// # Errors
    /// As [`KernelMap::pin`].
    pub fn pin(&self, folder: &Path) -> Result<(), KernelError> {
        self.maps.iter().try_for_each(|(name, map)| map.pin(&folder.join(name)))
    }

    fn wanted(&self, map: MapId) -> Result<&KernelMap, MapError> {
        self.get(map.name()).ok_or(MapError::Missing { map })
    }
}

fn has_fixed_size(kind: MapKind) -> bool {
    match kind {
        MapKind::Array | MapKind::PerCpuArray | MapKind::ProgArray | MapKind::RingBuf => true,
        MapKind::Hash | MapKind::LruHash | MapKind::LpmTrie | MapKind::PerCpuHash => false,
    }
}

/// The store's error for a kernel error.
fn refused(map: MapId, step: &'static str, error: &KernelError) -> MapError {
    if let KernelError::Size { part, given, wanted, .. } = error {
        return MapError::Layout { map, part, found: *wanted, given: *given };
    }
    MapError::Refused { map, step, errno: error.errno().unwrap_or(crate::sys::EINVAL) }
}

fn refused_update(map: MapId, max_entries: u32, error: &KernelError) -> MapError {
    match error.errno().and_then(Errno::from_number) {
        Some(errno) => MapError::of_update(map, max_entries, errno),
        None => refused(map, "update", error),
    }
}

impl MapStore for KernelMaps {
    fn lookup(&self, map: MapId, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        self.wanted(map)?.get(key).map_err(|error| refused(map, "lookup", &error))
    }

    fn update(&mut self, map: MapId, key: &[u8], value: &[u8], mode: UpdateMode) -> Result<(), MapError> {
        let kernel = self.wanted(map)?;
        kernel.set(key, value, mode).map_err(|error| refused_update(map, kernel.spec().max_entries, &error))
    }

    fn delete(&mut self, map: MapId, key: &[u8]) -> Result<bool, MapError> {
        match self.wanted(map)?.remove(key) {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(crate::sys::ENOENT) => Ok(false),
            Err(error) => Err(refused(map, "delete", &error)),
        }
    }

    fn entries(&self, map: MapId) -> Result<Vec<Entry>, MapError> {
        self.wanted(map)?.entries().map_err(|error| refused(map, "entries", &error))
    }

    fn update_many(&mut self, map: MapId, entries: &[Entry]) -> Result<(), MapError> {
        let kernel = self.wanted(map)?;
        kernel.set_many(entries).map_err(|error| refused_update(map, kernel.spec().max_entries, &error))
    }
}
