//! All maps of one node.

use std::collections::BTreeMap;

use datapath_abi::maps::MapId;

use super::MemoryMap;
use crate::errno::Errno;
use crate::spec::{MapSpec, UpdateMode};
use crate::store::{Entry, MapError, MapStore};

/// All maps of one node, by number (their order in the object) and by name.
#[derive(Clone, Debug, Default)]
pub struct MemoryMaps {
    maps: Vec<MemoryMap>,
    numbers: BTreeMap<String, usize>,
    cpus: u32,
}

impl MemoryMaps {
    /// Empty maps, in this order.
    ///
    /// # Errors
    /// [`MapError::Spec`] for a definition the kernel would refuse, or a name given twice.
    pub fn new(specs: impl IntoIterator<Item = MapSpec>, cpus: u32) -> Result<Self, MapError> {
        let mut all = Self { cpus: cpus.max(1), ..Self::default() };
        for spec in specs {
            let name = spec.name.clone();
            if all.numbers.contains_key(&name) {
                return Err(MapError::Spec { map: name, rule: "a map's name must be unique" });
            }
            all.maps.push(MemoryMap::new(spec, cpus)?);
            all.numbers.insert(name, all.maps.len() - 1);
        }
        Ok(all)
    }

    /// CPUs that have values of their own in per-CPU maps.
    #[must_use]
    pub fn cpus(&self) -> u32 {
        self.cpus
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.maps.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.maps.is_empty()
    }

    /// By number.
    #[must_use]
    #[inline]
    pub fn get(&self, index: usize) -> Option<&MemoryMap> {
        self.maps.get(index)
    }

    /// By number.
    #[must_use]
    #[inline]
    pub fn get_mut(&mut self, index: usize) -> Option<&mut MemoryMap> {
        self.maps.get_mut(index)
    }

    /// The number of a name.
    #[must_use]
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.numbers.get(name).copied()
    }

    /// By name.
    #[must_use]
    pub fn by_name(&self, name: &str) -> Option<&MemoryMap> {
        self.get(self.index_of(name)?)
    }

    /// By name.
    #[must_use]
    pub fn by_name_mut(&mut self, name: &str) -> Option<&mut MemoryMap> {
        let index = self.index_of(name)?;
        self.get_mut(index)
    }

    /// In order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = &MemoryMap> {
        self.maps.iter()
    }

    /// In order of their numbers.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut MemoryMap> {
        self.maps.iter_mut()
    }

    /// See [`MemoryMap::end_run`].
    #[inline]
    pub fn end_run(&mut self) {
        for map in &mut self.maps {
            map.end_run();
        }
    }

    fn wanted(&self, map: MapId) -> Result<&MemoryMap, MapError> {
        self.by_name(map.name()).ok_or(MapError::Missing { map })
    }

    fn wanted_mut(&mut self, map: MapId) -> Result<&mut MemoryMap, MapError> {
        self.by_name_mut(map.name()).ok_or(MapError::Missing { map })
    }
}

impl MapStore for MemoryMaps {
    fn lookup(&self, map: MapId, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        let memory = self.wanted(map)?;
        MapError::check_key(map, memory.spec(), key)?;
        Ok(memory.get_bytes(key))
    }

    fn update(&mut self, map: MapId, key: &[u8], value: &[u8], mode: UpdateMode) -> Result<(), MapError> {
        let memory = self.wanted_mut(map)?;
        MapError::check_key(map, memory.spec(), key)?;
        MapError::check_value(map, memory.spec(), memory.cpus(), value)?;
        let max_entries = memory.spec().max_entries;
        memory.set_bytes(key, value, mode).map_err(|errno| MapError::of_update(map, max_entries, errno))
    }

    fn delete(&mut self, map: MapId, key: &[u8]) -> Result<bool, MapError> {
        let memory = self.wanted_mut(map)?;
        MapError::check_key(map, memory.spec(), key)?;
        match memory.remove(key) {
            Ok(()) => Ok(true),
            Err(Errno::Noent) => Ok(false),
            Err(errno) => Err(MapError::Refused { map, step: "delete", errno: errno.number() }),
        }
    }

    fn entries(&self, map: MapId) -> Result<Vec<Entry>, MapError> {
        Ok(self.wanted(map)?.entries())
    }
}
