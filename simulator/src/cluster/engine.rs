//! The engines that a simulated node can run on.

use std::fmt;
use std::sync::Arc;

use datapath_abi::{CallSlot, Config, Hook, MapId, config};
use datapath_maps::{MapError, UpdateMode};
use simulator_vm::{Checked, Engine, Env, Lane, LoadError, Object, ProgramId, Rbpf, Run, RunError, Skb, TraceEvent};
use zerocopy::IntoBytes;

/// Which engine runs the object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum EngineKind {
    /// rbpf: machine code where there is that lane (x86_64 Linux), else its interpreter.
    #[default]
    Rbpf,
    /// weir's own interpreter, with exact memory checks.
    Checked,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rbpf => "rbpf",
            Self::Checked => "checked",
        })
    }
}

/// Why an engine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The object could not be loaded.
    #[error("the datapath object cannot be loaded: {0}")]
    Load(#[from] LoadError),
    /// A program that a hook needs is not in the object.
    #[error("the datapath object has no program `{0}`")]
    Program(&'static str),
    /// The call table could not be written.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// The engine of one node.
#[derive(Debug)]
enum Lanes {
    Checked(Box<Checked>),
    Rbpf(Box<Rbpf>),
}

/// The datapath of one node: the object over the node's own maps.
#[derive(Debug)]
pub struct Datapath {
    lanes: Lanes,
    hooks: [ProgramId; 6],
}

/// A map's room in a simulated node: a cluster of thousands of pods fits, and the memory of hundreds of nodes too.
const ROOM: &[(MapId, u32)] = &[
    (MapId::Ipcache4, 65_536),
    (MapId::Ipcache6, 65_536),
    (MapId::Policy, 262_144),
    (MapId::Ct4, 65_536),
    (MapId::Ct6, 65_536),
];

impl Datapath {
    /// Loads the committed object with a node's settings.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn load(kind: EngineKind, settings: &Config) -> Result<Self, EngineError> {
        let mut object = Object::load(datapath_bytecode::OBJECT, &[(config::SYMBOL, settings.as_bytes())])?;
        for (map, entries) in ROOM {
            object.resize_map(map.name(), *entries)?;
        }
        let object = Arc::new(object);
        let lanes = match kind {
            EngineKind::Checked => Lanes::Checked(Box::new(Checked::new(Arc::clone(&object), 1)?)),
            EngineKind::Rbpf => {
                let jit = Rbpf::new(Arc::clone(&object), Lane::Jit, 1);
                let engine = match jit {
                    Ok(engine) => engine,
                    Err(_) => Rbpf::new(Arc::clone(&object), Lane::Interpreter, 1)?,
                };
                Lanes::Rbpf(Box::new(engine))
            }
        };
        let mut hooks = [ProgramId(0); 6];
        for (place, hook) in hooks.iter_mut().zip(Hook::ALL) {
            *place = object.program(hook.name()).ok_or(EngineError::Program(hook.name()))?;
        }
        let mut datapath = Self { lanes, hooks };
        for (slot, name) in CallSlot::ALL {
            let program = object.program(name).ok_or(EngineError::Program(name))?;
            let (key, value) = (*slot as u32, program.0);
            let engine = datapath.engine();
            engine.maps_mut().update(MapId::Calls, key.as_bytes(), value.as_bytes(), UpdateMode::Any)?;
        }
        Ok(datapath)
    }

    /// The engine.
    pub fn engine(&mut self) -> &mut dyn Engine {
        match &mut self.lanes {
            Lanes::Checked(engine) => engine.as_mut(),
            Lanes::Rbpf(engine) => engine.as_mut(),
        }
    }

    /// Name of the engine in use.
    pub fn name(&self) -> &'static str {
        match &self.lanes {
            Lanes::Checked(engine) => engine.name(),
            Lanes::Rbpf(engine) => engine.name(),
        }
    }

    fn program(&self, hook: Hook) -> ProgramId {
        let [from_container, to_container, from_overlay, from_netdev, to_netdev, from_host] = self.hooks;
        match hook {
            Hook::FromContainer => from_container,
            Hook::ToContainer => to_container,
            Hook::FromOverlay => from_overlay,
            Hook::FromNetdev => from_netdev,
            Hook::ToNetdev => to_netdev,
            Hook::FromHost => from_host,
        }
    }

    /// Runs a hook's program.
    ///
    /// # Errors
    /// A fault of the program.
    #[inline]
    pub fn run(&mut self, hook: Hook, skb: &mut Skb, env: &Env) -> Result<Run, RunError> {
        let program = self.program(hook);
        match &mut self.lanes {
            Lanes::Checked(engine) => engine.run(program, skb, env),
            Lanes::Rbpf(engine) => engine.run(program, skb, env),
        }
    }

    /// Runs a hook's program and writes down what it looked up; only the checked engine can.
    ///
    /// # Errors
    /// A fault of the program.
    pub fn run_traced(&mut self, hook: Hook, skb: &mut Skb, env: &Env) -> (Result<Run, RunError>, Vec<TraceEvent>) {
        let program = self.program(hook);
        match &mut self.lanes {
            Lanes::Checked(engine) => engine.trace(program, skb, env),
            Lanes::Rbpf(engine) => (engine.run(program, skb, env), Vec::new()),
        }
    }
}
