//! The engines that a simulated node can run on.

use std::fmt;
use std::sync::Arc;

use datapath_abi::{Config, Hook};
use simulator_vm::{Checked, Engine, Env, ProgramId, Run, RunError, Skb, TraceEvent};

use crate::engines::{self, Kind, Limits, OpenError};

/// Which engine runs the nodes' programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum EngineKind {
    /// rbpf: machine code where there is that lane (x86_64 Linux), else its interpreter.
    #[default]
    Rbpf,
    /// weir's own interpreter, with exact memory checks.
    Checked,
    /// The datapath's decisions compiled for this machine, without bytecode.
    Native,
    /// The running kernel's test-run (Linux, root).
    Kernel,
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rbpf => "rbpf",
            Self::Checked => "checked",
            Self::Native => "native",
            Self::Kernel => "kernel",
        })
    }
}

/// Why an engine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A program that a hook needs is not in the object.
    #[error("the datapath object has no program `{0}`")]
    Program(&'static str),
}

/// The engine of one node. The checked one is apart because it alone writes traces.
enum Lanes {
    Checked(Box<Checked>),
    Other(Box<dyn Engine>),
}

/// The datapath of one node: the object over the node's own maps.
pub struct Datapath {
    lanes: Lanes,
    hooks: [ProgramId; 6],
}

impl fmt::Debug for Datapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Datapath").field("engine", &self.name()).finish_non_exhaustive()
    }
}

/// Room in a simulated node's maps: thousands of pods fit. (The kernel fills its flow tables in advance: it gets less.)
const LIMITS: Limits = Limits { max_entries: Some(262_144), cpus: 1 };

impl Datapath {
    /// Loads the committed object with a node's settings.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn load(kind: EngineKind, settings: &Config) -> Result<Self, EngineError> {
        let mut lanes = match kind {
            EngineKind::Checked => {
                let load = |source| OpenError::Load { engine: Kind::Checked, source };
                let object = Arc::new(engines::object(settings, &LIMITS).map_err(load)?);
                let mut engine = Box::new(Checked::new(object, LIMITS.cpus).map_err(load)?);
                engines::fill_calls(Kind::Checked, engine.as_mut())?;
                Lanes::Checked(engine)
            }
            EngineKind::Rbpf => match engines::open(Kind::RbpfJit, settings, LIMITS) {
                Ok(engine) => Lanes::Other(engine),
                // Not this machine's.
                Err(_) => Lanes::Other(engines::open(Kind::Rbpf, settings, LIMITS)?),
            },
            EngineKind::Native => Lanes::Other(engines::open(Kind::Native, settings, LIMITS)?),
            EngineKind::Kernel => Lanes::Other(engines::open(Kind::Kernel, settings, Limits::SMALL)?),
        };
        let engine: &mut dyn Engine = match &mut lanes {
            Lanes::Checked(engine) => engine.as_mut(),
            Lanes::Other(engine) => engine.as_mut(),
        };
        let mut hooks = [ProgramId(0); 6];
        for (place, hook) in hooks.iter_mut().zip(Hook::ALL) {
            *place = engine.program(hook.name()).ok_or(EngineError::Program(hook.name()))?;
        }
        Ok(Self { lanes, hooks })
    }

    /// The engine.
    pub fn engine(&mut self) -> &mut dyn Engine {
        match &mut self.lanes {
            Lanes::Checked(engine) => engine.as_mut(),
            Lanes::Other(engine) => engine.as_mut(),
        }
    }

    /// Name of the engine in use.
    pub fn name(&self) -> &'static str {
        match &self.lanes {
            Lanes::Checked(engine) => engine.name(),
            Lanes::Other(engine) => engine.name(),
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
            Lanes::Other(engine) => engine.run(program, skb, env),
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
            Lanes::Other(engine) => (engine.run(program, skb, env), Vec::new()),
        }
    }
}
