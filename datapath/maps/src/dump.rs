//! Map contents as text: what `dump` commands and failing tests print. Entries in key order; all-zero entries of
//! arrays are left out.

use std::fmt::{Debug, Write as _};

use datapath_abi::maps::MapId;
use datapath_abi::{
    Addr4, Addr6, CidrKey4, CidrKey6, CtEntry, CtKey4, CtKey6, FragEntry, FragKey4, FragKey6, IpEntry, MetricsEntry,
    PolicyEntry, PolicyKey,
};
use zerocopy::FromBytes;

use crate::spec::{MapKind, MapSpec};
use crate::store::{MapError, MapStore};

type Render = fn(&[u8]) -> Option<String>;

fn text<T: FromBytes + Debug>(bytes: &[u8]) -> Option<String> {
    T::read_from_bytes(bytes).ok().map(|value| format!("{value:?}"))
}

/// How keys and values of each map are written; a map that is not here is written in hex.
const TYPED: &[(MapId, Render, Render)] = &[
    (MapId::Ipcache4, text::<Addr4>, text::<IpEntry>),
    (MapId::Ipcache6, text::<Addr6>, text::<IpEntry>),
    (MapId::Cidr4, text::<CidrKey4>, text::<IpEntry>),
    (MapId::Cidr6, text::<CidrKey6>, text::<IpEntry>),
    (MapId::Policy, text::<PolicyKey>, text::<PolicyEntry>),
    (MapId::Ct4, text::<CtKey4>, text::<CtEntry>),
    (MapId::Ct6, text::<CtKey6>, text::<CtEntry>),
    (MapId::Frag4, text::<FragKey4>, text::<FragEntry>),
    (MapId::Frag6, text::<FragKey6>, text::<FragEntry>),
    (MapId::Metrics, text::<u32>, text::<MetricsEntry>),
    (MapId::Calls, text::<u32>, text::<u32>),
];

fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// One map: a head line, then one line per entry (per-CPU: one line per CPU that has something).
///
/// # Errors
/// As [`MapStore::entries`].
pub fn dump_map(store: &dyn MapStore, map: MapId) -> Result<String, MapError> {
    let spec = MapSpec::of(map);
    let entries = store.entries(map)?;
    let (key_text, value_text) = TYPED
        .iter()
        .find(|(typed, ..)| *typed == map)
        .map_or((None, None), |(_, key, value)| (Some(*key), Some(*value)));
    let render =
        |render: Option<Render>, bytes: &[u8]| render.and_then(|render| render(bytes)).unwrap_or_else(|| hex(bytes));
    let mut lines = String::new();
    let mut shown = 0;
    for (key, value) in &entries {
        let key = render(key_text, key);
        if spec.kind.is_per_cpu() {
            let size = spec.value_size as usize;
            let stride = size.next_multiple_of(8).max(8);
            for (cpu, value) in value.chunks_exact(stride).enumerate() {
                if value.iter().any(|byte| *byte != 0) {
                    shown += 1;
                    let value = render(value_text, &value[..size]);
                    let _ = writeln!(lines, "  {key} cpu {cpu} => {value}");
                }
            }
        } else if spec.kind != MapKind::Array || value.iter().any(|byte| *byte != 0) {
            shown += 1;
            let _ = writeln!(lines, "  {key} => {}", render(value_text, value));
        }
    }
    Ok(format!("{} ({}): {shown}\n{lines}", spec.name, spec.kind.name()))
}

/// All maps the store has, in catalogue order; ring buffers have no entries and are left out.
///
/// # Errors
/// As [`MapStore::entries`]; a map the store does not have is left out.
pub fn dump(store: &dyn MapStore) -> Result<String, MapError> {
    let mut out = String::new();
    for map in MapId::ALL {
        if MapSpec::of(*map).kind == MapKind::RingBuf {
            continue;
        }
        match dump_map(store, *map) {
            Ok(text) => out.push_str(&text),
            Err(MapError::Missing { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MemoryMaps, UpdateMode};

    #[test]
    fn every_map_with_entries_is_written_with_its_types() {
        for map in MapId::ALL {
            let spec = MapSpec::of(*map);
            if spec.kind == MapKind::RingBuf {
                continue;
            }
            let (_, key, value) =
                TYPED.iter().find(|(typed, ..)| typed == map).unwrap_or_else(|| panic!("dump.rs: TYPED lacks {map:?}"));
            assert!(key(&vec![0; spec.key_size as usize]).is_some(), "{map:?} key");
            assert!(value(&vec![0; spec.value_size as usize]).is_some(), "{map:?} value");
        }
    }

    #[test]
    fn dump_names_map_key_and_value_in_key_order() {
        let specs = MapId::ALL
            .iter()
            .map(|map| MapSpec { max_entries: MapSpec::of(*map).max_entries.min(4096), ..MapSpec::of(*map) });
        let mut maps = MemoryMaps::new(specs, 2).unwrap();
        for last in [9, 7] {
            let value = vec![0; size_of::<IpEntry>()];
            maps.update(MapId::Ipcache4, &[10, 0, 0, last], &value, UpdateMode::Any).unwrap();
        }
        let text = dump_map(&maps, MapId::Ipcache4).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[0], "ipcache4 (hash): 2");
        assert!(lines[1] < lines[2], "{text}");
        assert!(dump(&maps).unwrap().contains("metrics (percpu_array): 0\n"));
    }
}
