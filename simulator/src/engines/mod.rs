//! Every engine behind one seam: the same packets, maps and clock, five ways to decide.
//!
//! | kind | what decides |
//! |---|---|
//! | `native` | `datapath-core`, compiled for this machine, over plain-memory maps |
//! | `rbpf`, `rbpf-jit` | the committed object in the published `rbpf` crate, interpreted or as machine code |
//! | `checked` | the committed object in our own interpreter, every access checked |
//! | `kernel` | the committed object in the running kernel's test-run (Linux, root) |
//!
//! Invariant: after [`open`] and after [`reset`] an engine's maps are empty but for `calls`, which is complete.

mod kernel;
mod native;
mod tables;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use datapath_abi::{CallSlot, Config, MapId, config};
use datapath_maps::{MapError, MapKind, MapSpec, UpdateMode};
use simulator_vm::{Checked, Engine, Lane, LoadError, Object, Rbpf};
use zerocopy::IntoBytes;

pub use kernel::Kernel;
pub(crate) use kernel::{shortest, unsupported};
pub use native::Native;

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `datapath-core`, compiled for this machine.
    Native,
    /// rbpf's interpreter.
    Rbpf,
    /// rbpf's machine code.
    RbpfJit,
    /// The checked interpreter.
    Checked,
    /// The kernel's test-run.
    Kernel,
}

impl Kind {
    /// Every kind, the kernel last.
    pub const ALL: &'static [Self] = &[Self::Native, Self::Rbpf, Self::RbpfJit, Self::Checked, Self::Kernel];

    /// Those that need neither privileges nor Linux (the machine-code lane needs x86_64 Linux).
    pub const UNPRIVILEGED: &'static [Self] = &[Self::Native, Self::Rbpf, Self::RbpfJit, Self::Checked];

    /// As in `--engines`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Rbpf => "rbpf",
            Self::RbpfJit => "rbpf-jit",
            Self::Checked => "checked",
            Self::Kernel => "kernel",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Not the name of an engine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not an engine; known: native, rbpf, rbpf-jit, checked, kernel")]
pub struct UnknownEngine(pub String);

impl FromStr for Kind {
    type Err = UnknownEngine;

    fn from_str(name: &str) -> Result<Self, UnknownEngine> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name).ok_or_else(|| UnknownEngine(name.to_owned()))
    }
}

/// How large an engine's tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most entries of hashes and tries; `None`: as shipped.
    pub max_entries: Option<u32>,
    /// CPUs with counters of their own (the kernel has its own number).
    pub cpus: u32,
}

impl Limits {
    /// Small tables, one CPU: what scenarios need.
    pub const SMALL: Self = Self { max_entries: Some(4096), cpus: 1 };
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_entries: None, cpus: 1 }
    }
}

/// Why there is no engine.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The object does not load.
    #[error("engine `{engine}`: {source}")]
    Load {
        /// Which engine.
        engine: Kind,
        /// Why.
        source: LoadError,
    },
    /// Tables cannot be created or filled.
    #[error("engine `{engine}`: {source}")]
    Map {
        /// Which engine.
        engine: Kind,
        /// Why.
        source: MapError,
    },
    /// This process may not use bpf(2), or this is not Linux.
    #[error("engine `kernel` is not available: {reason}")]
    Privilege {
        /// What is missing.
        reason: &'static str,
    },
    /// The kernel says no.
    #[error("engine `kernel`: {0}")]
    Kernel(#[from] datapath_kernel::KernelError),
    /// A program of the call table is not in the object.
    #[error("engine `{engine}`: the object has no program `{program}`")]
    NoProgram {
        /// Which engine.
        engine: Kind,
        /// Which program.
        program: &'static str,
    },
}

/// Table definitions under these limits, in catalogue order.
pub(crate) fn specs(limits: &Limits) -> impl Iterator<Item = MapSpec> {
    let most = limits.max_entries;
    MapId::ALL.iter().map(move |map| {
        let mut spec = MapSpec::of(*map);
        if let (Some(most), true) = (most, is_capped(spec.kind)) {
            spec.max_entries = spec.max_entries.min(most);
        }
        spec
    })
}

fn is_capped(kind: MapKind) -> bool {
    match kind {
        MapKind::Hash | MapKind::LruHash | MapKind::LpmTrie | MapKind::PerCpuHash => true,
        MapKind::Array | MapKind::PerCpuArray | MapKind::ProgArray | MapKind::RingBuf => false,
    }
}

/// The committed object with these settings and limits.
///
/// # Errors
/// As [`Object::load`].
pub fn object(settings: &Config, limits: &Limits) -> Result<Object, LoadError> {
    let mut object = Object::load(datapath_bytecode::OBJECT, &[(config::SYMBOL, settings.as_bytes())])?;
    for spec in specs(limits) {
        if object.maps().iter().any(|map| map.name == spec.name && is_capped(map.kind)) {
            object.resize_map(&spec.name, spec.max_entries)?;
        }
    }
    Ok(object)
}

/// An engine of this kind over empty maps, with the call table filled.
///
/// # Errors
/// [`OpenError`].
pub fn open(kind: Kind, settings: &Config, limits: Limits) -> Result<Box<dyn Engine>, OpenError> {
    let load = |source| OpenError::Load { engine: kind, source };
    let object = || object(settings, &limits).map(Arc::new).map_err(load);
    let mut engine: Box<dyn Engine> = match kind {
        Kind::Native => {
            let maps = datapath_maps::MemoryMaps::new(specs(&limits), limits.cpus);
            Box::new(Native::new(settings, maps.map_err(|source| OpenError::Map { engine: kind, source })?))
        }
        Kind::Rbpf => Box::new(Rbpf::new(object()?, Lane::Interpreter, limits.cpus).map_err(load)?),
        Kind::RbpfJit => Box::new(Rbpf::new(object()?, Lane::Jit, limits.cpus).map_err(load)?),
        Kind::Checked => Box::new(Checked::new(object()?, limits.cpus).map_err(load)?),
        Kind::Kernel => Box::new(Kernel::open(settings, &limits)?),
    };
    fill_calls(kind, engine.as_mut())?;
    Ok(engine)
}

/// Puts every program of the call table into its slot.
///
/// # Errors
/// [`OpenError::NoProgram`], [`OpenError::Map`].
pub fn fill_calls(kind: Kind, engine: &mut dyn Engine) -> Result<(), OpenError> {
    for (slot, program) in CallSlot::ALL {
        let id = engine.program(program).ok_or(OpenError::NoProgram { engine: kind, program })?;
        let slot = (*slot as u32).to_ne_bytes();
        engine
            .maps_mut()
            .update(MapId::Calls, &slot, &id.0.to_ne_bytes(), UpdateMode::Any)
            .map_err(|source| OpenError::Map { engine: kind, source })?;
    }
    Ok(())
}

/// Back to the state after [`open`]: no entries, counters zero, no events, the call table complete.
///
/// # Errors
/// As [`fill_calls`].
pub fn reset(kind: Kind, engine: &mut dyn Engine) -> Result<(), OpenError> {
    empty(kind, engine)?;
    fill_calls(kind, engine)
}

/// No entries, not even of the call table; counters zero, no events.
fn empty(kind: Kind, engine: &mut dyn Engine) -> Result<(), OpenError> {
    let map_error = |source| OpenError::Map { engine: kind, source };
    for map in MapId::ALL {
        match MapSpec::of(*map).kind {
            MapKind::RingBuf => {}
            MapKind::Array | MapKind::PerCpuArray => {
                for (key, value) in engine.maps().entries(*map).map_err(map_error)? {
                    if value.iter().any(|byte| *byte != 0) {
                        let zeros = vec![0; value.len()];
                        engine.maps_mut().update(*map, &key, &zeros, UpdateMode::Any).map_err(map_error)?;
                    }
                }
            }
            MapKind::Hash | MapKind::LruHash | MapKind::LpmTrie | MapKind::PerCpuHash | MapKind::ProgArray => {
                for (key, _) in engine.maps().entries(*map).map_err(map_error)? {
                    engine.maps_mut().delete(*map, &key).map_err(map_error)?;
                }
            }
        }
    }
    engine.events();
    Ok(())
}

/// `jiffies64` at this time: [`simulator_vm::Env::now_ns`] in ticks.
#[must_use]
pub fn ticks(now_ns: u64, ticks_per_second: u32) -> u64 {
    let ticks = u128::from(now_ns) * u128::from(ticks_per_second) / 1_000_000_000;
    u64::try_from(ticks).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
