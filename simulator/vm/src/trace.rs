//! Watching a run of the checked engine. The interpreter is compiled once per tracer, so an idle one costs nothing.

use std::collections::BTreeMap;

use crate::api::ProgramId;
use crate::helper::Helper;
use crate::loader::Object;

/// Sees what a run does. Instruction numbers are slots of the linked program.
pub trait Tracer {
    /// False: no method is called.
    const ON: bool;
    /// An instruction is about to run.
    fn step(&mut self, program: ProgramId, pc: u32, registers: &[u64; 11]);
    /// A helper has returned.
    fn helper(&mut self, program: ProgramId, pc: u32, helper: Helper, arguments: [u64; 5], result: u64);
    /// A look-up has been made; `value` is `None` if there was no entry.
    fn lookup(&mut self, map: usize, key: &[u8], value: Option<&[u8]>);
    /// A tail call is taken.
    fn tail_call(&mut self, from: ProgramId, to: ProgramId);
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Untraced;

impl Tracer for Untraced {
    const ON: bool = false;
    fn step(&mut self, _: ProgramId, _: u32, _: &[u64; 11]) {}
    fn helper(&mut self, _: ProgramId, _: u32, _: Helper, _: [u64; 5], _: u64) {}
    fn lookup(&mut self, _: usize, _: &[u8], _: Option<&[u8]>) {}
    fn tail_call(&mut self, _: ProgramId, _: ProgramId) {}
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TraceEvent {
    /// An instruction.
    Step {
        /// Program.
        program: ProgramId,
        /// Slot.
        pc: u32,
    },
    /// A helper call that returned. Addresses in arguments are the engine's tagged ones.
    Helper {
        /// Program.
        program: ProgramId,
        /// Slot of the call.
        pc: u32,
        /// Which.
        helper: Helper,
        /// r1 to r5.
        arguments: [u64; 5],
        /// r0.
        result: u64,
    },
    /// A map look-up, before its [`TraceEvent::Helper`].
    Lookup {
        /// Name of the map.
        map: String,
        /// Key.
        key: Vec<u8>,
        /// Value found.
        value: Option<Vec<u8>>,
    },
    /// A tail call that was taken.
    TailCall {
        /// From.
        from: ProgramId,
        /// To.
        to: ProgramId,
    },
}

/// Collects everything.
#[derive(Debug)]
pub(crate) struct Collector<'a> {
    pub object: &'a Object,
    pub events: Vec<TraceEvent>,
}

impl Tracer for Collector<'_> {
    const ON: bool = true;

    fn step(&mut self, program: ProgramId, pc: u32, _: &[u64; 11]) {
        self.events.push(TraceEvent::Step { program, pc });
    }

    fn helper(&mut self, program: ProgramId, pc: u32, helper: Helper, arguments: [u64; 5], result: u64) {
        self.events.push(TraceEvent::Helper { program, pc, helper, arguments, result });
    }

    fn lookup(&mut self, map: usize, key: &[u8], value: Option<&[u8]>) {
        let map = self.object.maps().get(map).map_or_else(String::new, |map| map.name.clone());
        self.events.push(TraceEvent::Lookup { map, key: key.to_vec(), value: value.map(<[u8]>::to_vec) });
    }

    fn tail_call(&mut self, from: ProgramId, to: ProgramId) {
        self.events.push(TraceEvent::TailCall { from, to });
    }
}

/// How often every instruction ran.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Per program, per slot. The second slot of a 16-byte load stays 0.
    pub counts: Vec<Vec<u64>>,
}

impl Coverage {
    pub(crate) fn new(object: &Object) -> Self {
        Self { counts: object.programs().iter().map(|program| vec![0; program.code.len()]).collect() }
    }

    /// Adds another run's counts.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            for (mine, theirs) in mine.iter_mut().zip(theirs) {
                *mine += theirs;
            }
        }
    }

    /// Source lines with the count of their most often executed instruction, from the line table: the innermost line.
    #[must_use]
    pub fn lines(&self, object: &Object) -> BTreeMap<(String, u32), u64> {
        let mut lines = BTreeMap::new();
        for (program, counts) in object.programs().iter().zip(&self.counts) {
            for (slot, &count) in counts.iter().enumerate() {
                let second = slot.checked_sub(1).and_then(|before| program.code.get(before));
                if second.is_some_and(|raw| raw.opcode == crate::isa::LD_IMM64) {
                    continue;
                }
                let Some((file, line)) = u32::try_from(slot).ok().and_then(|slot| program.lines.at(slot)) else {
                    continue;
                };
                let entry = lines.entry((file.to_owned(), line)).or_insert(0);
                *entry = count.max(*entry);
            }
        }
        lines
    }
}

impl Tracer for Coverage {
    const ON: bool = true;

    fn step(&mut self, program: ProgramId, pc: u32, _: &[u64; 11]) {
        let counts = usize::try_from(program.0).ok().and_then(|program| self.counts.get_mut(program));
        let count = counts.and_then(|counts| counts.get_mut(usize::try_from(pc).ok()?));
        if let Some(count) = count {
            *count += 1;
        }
    }

    fn helper(&mut self, _: ProgramId, _: u32, _: Helper, _: [u64; 5], _: u64) {}
    fn lookup(&mut self, _: usize, _: &[u8], _: Option<&[u8]>) {}
    fn tail_call(&mut self, _: ProgramId, _: ProgramId) {}
}
