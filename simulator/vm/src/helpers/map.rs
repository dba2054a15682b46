//! `map_lookup_elem`, `map_update_elem`, `map_delete_elem`.

use datapath_maps::{Errno, MapKind, UpdateMode};

use super::{append, errno, fault};
use crate::api::FaultKind;
use crate::helper::Helper;
use crate::world::{MapInfo, Memory, Outcome, World};

/// The map of a handle, if programs may use it like a table.
fn table<M: Memory>(
    world: &World,
    memory: &M,
    helper: Helper,
    handle: u64,
) -> Result<(usize, MapInfo), Box<FaultKind>> {
    let Some(map) = memory.map(handle) else { return fault(helper, "r1 is no map") };
    match world.infos.get(map) {
        Some(info) if !matches!(info.kind, MapKind::ProgArray | MapKind::RingBuf) => Ok((map, *info)),
        _ => fault(helper, "r1 is a map of another kind"),
    }
}

/// Finds a slot; shared with the checked engine's own path.
#[inline]
pub(crate) fn find<M: Memory>(
    world: &mut World,
    memory: &M,
    handle: u64,
    key: u64,
) -> Result<(usize, Option<u32>), Box<FaultKind>> {
    const SHORT: usize = 64;
    let (map, info) = table(world, memory, Helper::MapLookup, handle)?;
    world.run.lookups += 1;
    let from = memory.readable(Helper::MapLookup.name(), key, info.key_size)?;
    let Some(found) = world.maps.get_mut(map) else { return fault(Helper::MapLookup, "no such map") };
    // The key is copied: it may lie in the map itself.
    if info.key_size <= SHORT {
        let mut buffer = [0u8; SHORT];
        // SAFETY: `readable` vouches for key_size bytes, the buffer has at least as many and is ours.
        unsafe { std::ptr::copy_nonoverlapping(from, buffer.as_mut_ptr(), info.key_size) };
        let Some(key) = buffer.get(..info.key_size) else { return Ok((map, None)) };
        Ok((map, found.find(key)))
    } else {
        world.key.clear();
        append(memory, Helper::MapLookup, key, info.key_size, &mut world.key)?;
        Ok((map, found.find(&world.key)))
    }
}

pub(super) fn lookup<M: Memory>(world: &mut World, memory: &M, [handle, key, ..]: [u64; 5]) -> Outcome {
    let (map, slot) = find(world, memory, handle, key)?;
    Ok(slot.map_or(0, |slot| memory.value(map, slot)))
}

pub(super) fn update<M: Memory>(world: &mut World, memory: &M, a: [u64; 5]) -> Outcome {
    let [handle, key, value, flags, _] = a;
    let (map, info) = table(world, memory, Helper::MapUpdate, handle)?;
    world.key.clear();
    append(memory, Helper::MapUpdate, key, info.key_size, &mut world.key)?;
    world.value.clear();
    append(memory, Helper::MapUpdate, value, info.value_size, &mut world.value)?;
    if world.env.faults.map_update {
        return Ok(errno(Errno::Nomem));
    }
    let Some(mode) = UpdateMode::from_bpf(flags) else { return Ok(errno(Errno::Inval)) };
    let Some(found) = world.maps.get_mut(map) else { return fault(Helper::MapUpdate, "no such map") };
    Ok(match found.insert(&world.key, &world.value, mode, world.env.cpu) {
        Ok(_) => 0,
        Err(error) => errno(error),
    })
}

pub(super) fn delete<M: Memory>(world: &mut World, memory: &M, [handle, key, ..]: [u64; 5]) -> Outcome {
    let (map, info) = table(world, memory, Helper::MapDelete, handle)?;
    world.key.clear();
    append(memory, Helper::MapDelete, key, info.key_size, &mut world.key)?;
    let Some(found) = world.maps.get_mut(map) else { return fault(Helper::MapDelete, "no such map") };
    Ok(match found.remove(&world.key) {
        Ok(()) => 0,
        Err(error) => errno(error),
    })
}
