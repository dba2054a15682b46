//! The checked engine: own interpreter, exact memory checks, budget, counters, traces, coverage.

use std::sync::Arc;

use datapath_maps::{MapKind, MapStore, MemoryMaps};

use crate::address::{self, tag};
use crate::api::{Engine, Env, Fault, FaultKind, ProgramId, Run, RunError, Skb};
use crate::decode::Decoded;
use crate::interpreter::{Machine, ProgramStats, Stop};
use crate::loader::{LoadError, Object};
use crate::space::Space;
use crate::tagged::Tagged;
use crate::trace::{Collector, Coverage, TraceEvent, Tracer, Untraced};
use crate::world::World;

/// Instructions a run may take unless told otherwise: the kernel verifier's own limit.
pub const DEFAULT_BUDGET: u64 = 1_000_000;

/// See the module.
#[derive(Debug)]
pub struct Checked {
    object: Arc<Object>,
    decoded: Arc<Decoded>,
    world: World,
    memory: Tagged,
    /// The maps were lent out: look up their memory again.
    lent: bool,
    budget: u64,
    stats: Box<[ProgramStats]>,
    coverage: Option<Coverage>,
}

impl Checked {
    /// An engine over empty maps for so many CPUs.
    ///
    /// # Errors
    /// [`LoadError::Map`] for a map that cannot exist.
    pub fn new(object: Arc<Object>, cpus: u32) -> Result<Self, LoadError> {
        let maps = object.new_maps(cpus)?;
        Ok(Self::over(object, maps))
    }

    fn over(object: Arc<Object>, mut maps: MemoryMaps) -> Self {
        let space = Space::heap();
        let memory = Tagged::new(&object, &space, &mut maps);
        Self {
            decoded: object.decoded(),
            stats: vec![ProgramStats::default(); object.programs().len()].into(),
            world: World::new(space, maps),
            memory,
            lent: false,
            budget: DEFAULT_BUDGET,
            coverage: None,
            object,
        }
    }

    /// The object it runs.
    #[must_use]
    pub fn object(&self) -> &Arc<Object> {
        &self.object
    }

    /// Limits the instructions of a run (of all programs it calls together).
    pub fn set_budget(&mut self, instructions: u64) {
        self.budget = instructions;
    }

    /// Work done since the engine was made, by [`ProgramId`].
    #[must_use]
    pub fn stats(&self) -> &[ProgramStats] {
        &self.stats
    }

    /// All maps, also those that the catalogue does not know.
    #[must_use]
    pub fn memory_maps(&self) -> &MemoryMaps {
        &self.world.maps
    }

    /// All maps.
    pub fn memory_maps_mut(&mut self) -> &mut MemoryMaps {
        self.lent = true;
        &mut self.world.maps
    }

    /// From here on every run is counted.
    pub fn start_coverage(&mut self) {
        self.coverage.get_or_insert_with(|| Coverage::new(&self.object));
    }

    /// What was counted since [`Self::start_coverage`].
    #[must_use]
    pub fn coverage(&self) -> Option<&Coverage> {
        self.coverage.as_ref()
    }

    /// A run that writes down everything.
    pub fn trace(&mut self, program: ProgramId, skb: &mut Skb, env: &Env) -> (Result<Run, RunError>, Vec<TraceEvent>) {
        let object = Arc::clone(&self.object);
        let mut collector = Collector { object: &object, events: Vec::new() };
        let result = self.run_with(program, skb, env, &mut collector);
        (result, collector.events)
    }

    /// A run under the caller's tracer.
    ///
    /// # Errors
    /// As [`Engine::run`].
    pub fn run_with<T: Tracer>(
        &mut self,
        program: ProgramId,
        skb: &mut Skb,
        env: &Env,
        tracer: &mut T,
    ) -> Result<Run, RunError> {
        let start = crate::world::size(program.0);
        if start >= self.decoded.programs.len() {
            return Err(RunError::NoProgram { name: format!("#{}", program.0) });
        }
        self.world.begin(skb, env)?;
        if self.lent || env.cpu != self.memory.cpu() {
            self.memory.map_all(&mut self.world.maps, env.cpu);
            self.lent = false;
        }
        self.memory.begin(&mut self.world.space, self.world.packet);
        let mut machine = Machine {
            decoded: &self.decoded,
            world: &mut self.world,
            memory: &mut self.memory,
            tracer,
            stats: &mut self.stats,
            budget: self.budget,
        };
        let result = machine.run(start, tag(address::CONTEXT, 0, 0), 0);
        let open = self.world.end(skb);
        match result {
            Ok(_) if open != 0 => {
                Err(self.fault(Stop { kind: Box::new(FaultKind::OpenRecords(open)), program: start, pc: u32::MAX }))
            }
            Ok(r0) => Ok(Run { code: low(r0), ..self.world.run }),
            Err(stop) => Err(self.fault(stop)),
        }
    }

    #[cold]
    fn fault(&self, stop: Stop) -> RunError {
        let program = self.object.programs().get(stop.program);
        let pc = (stop.pc != u32::MAX).then_some(stop.pc);
        let line = pc.and_then(|pc| program?.lines.at(pc)).map(|(file, line)| (file.to_owned(), line));
        RunError::Fault(Box::new(Fault {
            program: program.map_or_else(String::new, |program| program.name.clone()),
            pc,
            line,
            kind: *stop.kind,
        }))
    }

    /// Runs a program that has no context: r1 is the address of `memory`, r2 its length. The result is r0.
    ///
    /// # Errors
    /// [`RunError::Fault`].
    pub fn run_raw(&mut self, program: ProgramId, memory: &mut [u8], env: &Env) -> Result<u64, RunError> {
        let start = crate::world::size(program.0);
        // A frame for the packet that is not there.
        let mut skb = Skb::new(vec![0; crate::world::MIN_FRAME], 0);
        self.world.begin(&skb, env)?;
        self.memory.begin(&mut self.world.space, self.world.packet);
        let r2 = memory.len() as u64;
        let r1 = if memory.is_empty() { 0 } else { self.memory.set_memory(memory) };
        let mut machine = Machine {
            decoded: &self.decoded,
            world: &mut self.world,
            memory: &mut self.memory,
            tracer: &mut Untraced,
            stats: &mut self.stats,
            budget: self.budget,
        };
        let result = machine.run(start, r1, r2);
        self.memory.set_memory(&mut []);
        self.world.end(&mut skb);
        result.map_err(|stop| self.fault(stop))
    }
}

/// A program's return value.
#[expect(clippy::cast_possible_truncation, reason = "programs return an int")]
pub(crate) fn low(r0: u64) -> u32 {
    r0 as u32
}

/// Records of every ring buffer.
pub(crate) fn drain(maps: &mut MemoryMaps) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    for index in 0..maps.len() {
        if let Some(map) = maps.get_mut(index)
            && map.spec().kind == MapKind::RingBuf
        {
            records.append(&mut map.ring_drain());
        }
    }
    records
}

impl Engine for Checked {
    fn name(&self) -> &'static str {
        "checked"
    }

    fn program(&self, name: &str) -> Option<ProgramId> {
        self.object.program(name)
    }

    fn run(&mut self, program: ProgramId, skb: &mut Skb, env: &Env) -> Result<Run, RunError> {
        match self.coverage.take() {
            None => self.run_with(program, skb, env, &mut Untraced),
            Some(mut coverage) => {
                let result = self.run_with(program, skb, env, &mut coverage);
                self.coverage = Some(coverage);
                result
            }
        }
    }

    fn maps(&self) -> &dyn MapStore {
        &self.world.maps
    }

    fn maps_mut(&mut self) -> &mut dyn MapStore {
        self.lent = true;
        &mut self.world.maps
    }

    fn events(&mut self) -> Vec<Vec<u8>> {
        drain(&mut self.world.maps)
    }
}
