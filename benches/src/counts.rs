//! What each path executes, exactly: instructions, map look-ups and helper calls, counted by the checked engine.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use datapath_abi::{CallSlot, MapId, config};
use datapath_maps::UpdateMode;
use simulator_vm::{Checked, Engine, Env, Object, Skb, TraceEvent, action};
use zerocopy::IntoBytes;

use crate::paths::{self, PATHS, Path, Segment};

/// What one packet cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Instructions executed.
    pub instructions: u64,
    /// Map look-ups.
    pub lookups: u32,
    /// Helper calls, look-ups included.
    pub helpers: u32,
}

/// A checked engine with the measured node's maps.
///
/// # Errors
/// The object cannot be loaded, or a map refuses.
pub fn engine(path: &Path, more_policy: u32) -> Result<Checked> {
    let settings = paths::settings(Env::default().ticks_per_second, path.program != "from_netdev");
    let object = Object::load(datapath_bytecode::OBJECT, &[(config::SYMBOL, settings.as_bytes())])?;
    let mut engine = Checked::new(Arc::new(object), 1)?;
    for (slot, name) in CallSlot::ALL {
        let program = engine.program(name).with_context(|| format!("no program `{name}`"))?;
        engine.maps_mut().update(MapId::Calls, (*slot as u32).as_bytes(), program.0.as_bytes(), UpdateMode::Any)?;
    }
    paths::fill(engine.maps_mut(), more_policy)?;
    Ok(engine)
}

/// Counts the first packet of a flow and one of the established flow.
///
/// # Errors
/// A run faults, or the path drops the packet.
pub fn count(path: &Path) -> Result<(Count, Count)> {
    let mut engine = engine(path, 0)?;
    let env = Env { now_ns: 1_000_000_000_000, ..Env::default() };
    let mut one = |segment| -> Result<Count> {
        let mut skb = Skb::new(path.frame(0, segment), path.ifindex);
        let run = engine.run_named(path.program, &mut skb, &env)?;
        if run.code == action::SHOT {
            bail!("{} dropped the packet", path.name);
        }
        Ok(Count { instructions: run.instructions, lookups: run.lookups, helpers: run.helper_calls })
    };
    let new = one(Segment::Syn)?;
    one(Segment::Ack)?;
    Ok((new, one(Segment::Ack)?))
}

/// Executed instructions of one packet of an established flow by source line, most first.
///
/// # Errors
/// As [`count`].
pub fn profile(path: &Path) -> Result<Vec<(u32, String)>> {
    let mut engine = engine(path, 0)?;
    let env = Env { now_ns: 1_000_000_000_000, ..Env::default() };
    for segment in [Segment::Syn, Segment::Ack] {
        engine.run_named(path.program, &mut Skb::new(path.frame(0, segment), path.ifindex), &env)?;
    }
    let program = engine.program(path.program).with_context(|| format!("no program `{}`", path.program))?;
    let (result, events) = engine.trace(program, &mut Skb::new(path.frame(0, Segment::Ack), path.ifindex), &env);
    result?;
    let mut lines: BTreeMap<String, u32> = BTreeMap::new();
    for event in events {
        if let TraceEvent::Step { program, pc } = event {
            let programs = engine.object().programs();
            let line = programs.get(usize::try_from(program.0)?).and_then(|program| program.lines.at(pc));
            let (file, line) = line.unwrap_or(("?", 0));
            *lines.entry(format!("{file}:{line}")).or_default() += 1;
        }
    }
    let mut lines: Vec<(u32, String)> = lines.into_iter().map(|(line, count)| (count, line)).collect();
    lines.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    Ok(lines)
}

/// The table that is committed as `benches/counts.txt`.
///
/// # Errors
/// As [`count`].
pub fn table() -> Result<String> {
    let mut table = String::from(
        "# Executed per packet, counted by the checked engine on the committed object (TCP, exact policy entry).\n\
         # path            new: insns look-ups helpers   established: insns look-ups helpers\n",
    );
    for path in PATHS {
        let (new, established) = count(path)?;
        writeln!(
            table,
            "{:<18} {:>10} {:>8} {:>7} {:>19} {:>8} {:>7}",
            path.name,
            new.instructions,
            new.lookups,
            new.helpers,
            established.instructions,
            established.lookups,
            established.helpers
        )?;
    }
    Ok(table)
}
