//! The rbpf engine: lowered code in rbpf's interpreter, or as its machine code.
//!
//! A second opinion on every run, and the fast lane. Addresses are the host's: the interpreter checks them against the
//! engine's memory as a whole, machine code not at all, so it is for objects that the kernel's verifier or the checked
//! engine has passed. Helpers check their arguments in both.

use std::cell::Cell;
use std::sync::Arc;

use datapath_maps::{MapStore, MemoryMaps, map_flags};

use crate::api::{Engine, Env, Fault, FaultKind, ProgramId, Run, RunError, Skb};
use crate::checked::{drain, low};
use crate::helper::Helper;
use crate::helpers;
use crate::isa;
use crate::jit::{Jit, Vm, machine};
use crate::loader::{LoadError, Object, Rodata};
use crate::lower::{self, Entry, HANDLE, LOWERED_FRAME, LowerError, Lowered};
use crate::space::{self, CONTEXT_LEN, Packet, Space};
use crate::world::{Memory, World};

/// How rbpf runs the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Its interpreter.
    Interpreter,
    /// Its machine code: x86_64 Linux only.
    Jit,
}

/// See the module.
#[derive(Debug)]
pub struct Rbpf {
    lane: Lane,
    // Before `lowered`: the machines run its code.
    machines: Vec<Vm>,
    lowered: Arc<Lowered>,
    object: Arc<Object>,
    world: World,
    memory: Raw,
    lent: bool,
}

impl Rbpf {
    /// An engine over empty maps for so many CPUs.
    ///
    /// # Errors
    /// [`LoadError::Lower`] if rbpf cannot run the object in this lane here, [`LoadError::Map`].
    pub fn new(object: Arc<Object>, lane: Lane, cpus: u32) -> Result<Self, LoadError> {
        let lowered = object.lowered()?;
        Self::over(object, lowered, lane, cpus)
    }

    /// An engine for [`Self::run_raw`].
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn raw(object: Arc<Object>, lane: Lane) -> Result<Self, LoadError> {
        let lowered = Arc::new(Lowered::new(object.programs(), object.maps().len(), Entry::Memory)?);
        Self::over(object, lowered, lane, 1)
    }

    fn over(object: Arc<Object>, lowered: Arc<Lowered>, lane: Lane, cpus: u32) -> Result<Self, LoadError> {
        let mut maps = object.new_maps(cpus)?;
        if maps.len() + object.rodata().len() > space::MAX_SLABS {
            return Err(LoadError::MapSize { map: format!("#{}", maps.len()), what: "too many maps for rbpf" });
        }
        let mut space = Space::low()
            .map_err(|error| LowerError::Memory { what: "memory below 4 GiB", reason: error.to_string() })?;
        let memory = Raw::new(&space, object.rodata(), &mut maps);
        space.set_slabs(memory.slabs());
        let machines = match lane {
            Lane::Interpreter => interpreters(&lowered, &memory)?,
            Lane::Jit => {
                // SAFETY: the result is stored in `lowered` itself, which drops it before the code.
                let compiled = lowered.jit.get_or_init(|| unsafe { Jit::compile(&lowered, jit_entry) });
                if let Err(error) = compiled {
                    return Err(error.clone().into());
                }
                Vec::new()
            }
        };
        Ok(Self { lane, machines, lowered, object, world: World::new(space, maps), memory, lent: false })
    }

    /// The object it runs.
    #[must_use]
    pub fn object(&self) -> &Arc<Object> {
        &self.object
    }

    /// Instructions of all programs after lowering.
    #[must_use]
    pub fn lowered_slots(&self) -> usize {
        self.lowered.programs.iter().map(|program| program.code.len() / isa::Raw::SIZE).sum()
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

    /// Runs a program of an engine made by [`Self::raw`]: r1 is the address of `memory`, r2 its length. The result is r0.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn run_raw(&mut self, program: ProgramId, memory: &mut [u8], env: &Env) -> Result<u64, RunError> {
        let len = memory.len();
        let mut skb = Skb::new(memory.to_vec(), 0);
        skb.data.resize(len.max(crate::world::MIN_FRAME), 0);
        self.world.begin(&skb, env)?;
        let address = if len == 0 { 0 } else { self.world.space.at(self.world.packet.head).expose_provenance() as u64 };
        let words = self.world.space.at(0).cast::<u64>();
        // SAFETY: the context's place, eight-byte aligned; programs of this engine have no context.
        unsafe { words.write(address) };
        let words = words.wrapping_add(1);
        // SAFETY: as above.
        unsafe { words.write(len as u64) };
        let result = self.execute(crate::world::size(program.0));
        self.world.end(&mut skb);
        if let Some(bytes) = skb.data.get(..len) {
            memory.copy_from_slice(bytes);
        }
        result
    }

    /// Takes the maps' memory again: for another CPU, or after they were lent out and perhaps replaced.
    #[cold]
    fn look_up_maps(&mut self, cpu: u32) -> Result<(), RunError> {
        let before: Vec<(u64, u64)> = self.memory.ranges.iter().map(|range| (range.start, range.end)).collect();
        self.memory.map_all(&mut self.world.maps, cpu);
        self.world.space.set_slabs(self.memory.slabs());
        let same = self.memory.ranges.iter().map(|range| (range.start, range.end)).eq(before);
        if self.lane == Lane::Interpreter && !same {
            self.machines = interpreters(&self.lowered, &self.memory)
                .map_err(|error| RunError::Engine { engine: self.name(), reason: error.to_string() })?;
        }
        self.lent = false;
        Ok(())
    }

    fn execute(&mut self, program: usize) -> Result<u64, RunError> {
        let top = self.world.space.at(space::STACK + space::STACK_LEN);
        let mut current = Current {
            world: &raw mut self.world,
            memory: &raw mut self.memory,
            machines: &raw const self.machines,
            lowered: &raw const *self.lowered,
            lane: self.lane,
            fault: None,
        };
        let guard = Guard(CURRENT.replace(&raw mut current));
        let result = run_at(&raw mut current, program, top as u64);
        drop(guard);
        if let Some((kind, program)) = current.fault {
            return Err(self.fault(*kind, program));
        }
        result.map_err(|reason| RunError::Engine { engine: self.name(), reason })
    }

    #[cold]
    fn fault(&self, kind: FaultKind, program: usize) -> RunError {
        let program = self.object.programs().get(program).map_or_else(String::new, |program| program.name.clone());
        RunError::Fault(Box::new(Fault { program, pc: None, line: None, kind }))
    }
}

/// One machine per program. They must not outlive `lowered`.
fn interpreters(lowered: &Lowered, memory: &Raw) -> Result<Vec<Vm>, LowerError> {
    let mut machines = Vec::with_capacity(lowered.programs.len());
    for program in &lowered.programs {
        // SAFETY: engines keep `lowered`, and drop their machines first.
        let mut vm = unsafe { machine(&program.name, &program.code, &program.helpers, interpreter_entry) }?;
        for range in memory.ranges.iter().filter(|range| range.start != memory.context) {
            vm.0.register_allowed_memory(range.start..range.end);
        }
        machines.push(vm);
    }
    Ok(machines)
}

impl Engine for Rbpf {
    fn name(&self) -> &'static str {
        match self.lane {
            Lane::Interpreter => "rbpf",
            Lane::Jit => "rbpf-jit",
        }
    }

    fn program(&self, name: &str) -> Option<ProgramId> {
        self.object.program(name)
    }

    fn run(&mut self, program: ProgramId, skb: &mut Skb, env: &Env) -> Result<Run, RunError> {
        let start = crate::world::size(program.0);
        if start >= self.lowered.programs.len() {
            return Err(RunError::NoProgram { name: format!("#{}", program.0) });
        }
        self.world.begin(skb, env)?;
        if self.lent || env.cpu != self.memory.cpu {
            self.look_up_maps(env.cpu)?;
        }
        self.memory.packet_moved(&mut self.world.space, self.world.packet);
        let result = self.execute(start);
        let open = self.world.end(skb);
        let r0 = result?;
        if open != 0 {
            return Err(self.fault(FaultKind::OpenRecords(open), start));
        }
        Ok(Run { code: low(r0), ..self.world.run })
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

/// The run that helpers belong to.
struct Current {
    world: *mut World,
    memory: *mut Raw,
    machines: *const Vec<Vm>,
    lowered: *const Lowered,
    lane: Lane,
    /// The first fault and the program it is blamed on; rbpf runs on, its answer is thrown away.
    fault: Option<(Box<FaultKind>, usize)>,
}

thread_local! {
    static CURRENT: Cell<*mut Current> = const { Cell::new(std::ptr::null_mut()) };
}

/// Puts the outer run back.
struct Guard(*mut Current);

impl Drop for Guard {
    fn drop(&mut self) {
        CURRENT.set(self.0);
    }
}

/// Runs a program whose first frame ends at `top`.
fn run_at(current: *mut Current, program: usize, top: u64) -> Result<u64, String> {
    // SAFETY: the run's own variable; no other reference to it is alive here.
    let this = unsafe { &mut *current };
    // SAFETY: lives as long as the engine that runs.
    let lowered: &Lowered = unsafe { &*this.lowered };
    // SAFETY: as above.
    let machines: &Vec<Vm> = unsafe { &*this.machines };
    // SAFETY: only helpers use the world during a run, and none is running.
    let world: &mut World = unsafe { &mut *this.world };
    let lane = this.lane;
    let Some(frames) = lowered.programs.get(program).map(|program| program.frames) else {
        return Err("no such program".to_owned());
    };
    let end = world.space.at(space::STACK + space::STACK_LEN);
    let used = (end as u64).saturating_sub(top);
    if used + (frames * LOWERED_FRAME) as u64 > space::STACK_LEN as u64 {
        return Err("stack of nested tail calls used up".to_owned());
    }
    for frame in 0..frames {
        let below = (frame * LOWERED_FRAME + isa::FRAME) as u64 + used;
        world.poison(end.wrapping_sub(crate::world::size(low(below))));
    }
    world.space.anchor().stack_top = top;
    let context = world.space.at(0);
    let (start, len) = world.space.range();
    // The borrows above end here: helpers make their own.
    let vm = match lane {
        Lane::Interpreter => machines.get(program),
        Lane::Jit => lowered.jit.get().and_then(|jit| jit.as_ref().ok()).and_then(|jit| jit.vm(program)),
    };
    let Some(vm) = vm else { return Err("not compiled".to_owned()) };
    match lane {
        Lane::Interpreter => {
            // SAFETY: the engine's memory. rbpf takes it shared and writes through it like the helpers do, by address.
            let all = unsafe { std::slice::from_raw_parts(start, len) };
            // SAFETY: as above.
            let anchored = unsafe { std::slice::from_raw_parts(context, CONTEXT_LEN + 16) };
            vm.0.execute_program(all, anchored).map_err(|error| format!("{error:?}"))
        }
        Lane::Jit => {
            // SAFETY: only its address and length are used.
            let anchored = unsafe { std::slice::from_raw_parts_mut(context, CONTEXT_LEN) };
            // SAFETY: lowered code of an accepted program, compiled for this machine; its helpers find the run.
            unsafe { vm.0.execute_program_jit(&mut [], anchored) }.map_err(|error| format!("{error:?}"))
        }
    }
}

/// The body of every helper as rbpf calls it.
#[inline(always)]
fn enter<const NUMBER: i32>(a: [u64; 5]) -> u64 {
    match NUMBER {
        lower::SIGNED_DIV64 => return crate::interpreter::signed_div64(a[0], a[1]),
        lower::SIGNED_MOD64 => return crate::interpreter::signed_mod64(a[0], a[1]),
        lower::SIGNED_DIV32 => return u64::from(crate::interpreter::signed_div32(low(a[0]), low(a[1]))),
        lower::SIGNED_MOD32 => return u64::from(crate::interpreter::signed_mod32(low(a[0]), low(a[1]))),
        _ => {}
    }
    let current = CURRENT.get();
    if current.is_null() {
        return 0;
    }
    let Some(helper) = Helper::from_number(NUMBER) else { return 0 };
    if helper == Helper::TailCall {
        return tail_call(current, a);
    }
    // SAFETY: set by the run on this thread, which waits for us; no other reference is alive.
    let this = unsafe { &mut *current };
    // SAFETY: as above.
    let world = unsafe { &mut *this.world };
    // SAFETY: as above.
    let memory = unsafe { &mut *this.memory };
    match helpers::call(world, memory, helper, a) {
        Ok(r0) => r0,
        Err(kind) => {
            this.fault.get_or_insert((kind, usize::MAX));
            0
        }
    }
}

/// Runs the target in the caller's frame, which ends at a[3]. Negative: done, the rest is its answer.
fn tail_call(current: *mut Current, a: [u64; 5]) -> u64 {
    const DONE: u64 = 1 << 63;
    let lowered;
    let target = {
        // SAFETY: as in `enter`.
        let this = unsafe { &mut *current };
        lowered = this.lowered;
        // SAFETY: as in `enter`.
        let world = unsafe { &mut *this.world };
        // SAFETY: as in `enter`.
        let memory = unsafe { &*this.memory };
        world.run.helper_calls += 1;
        if memory.is_context(a[0]) {
            world.tail_target(memory.map(a[1]), a[2])
        } else {
            Err(Box::new(FaultKind::Helper { helper: "tail_call", reason: "r1 is not the context" }))
        }
        .unwrap_or_else(|kind| {
            this.fault.get_or_insert((kind, usize::MAX));
            None
        })
    };
    // SAFETY: as in `enter`.
    let lowered = unsafe { &*lowered };
    let Some(target) = target.map(crate::world::size).filter(|&target| target < lowered.programs.len()) else {
        return 0;
    };
    match run_at(current, target, a[3]) {
        Ok(r0) => DONE | u64::from(low(r0)),
        Err(_) => {
            let kind = FaultKind::Helper { helper: "tail_call", reason: "rbpf could not run the target" };
            // SAFETY: as in `enter`.
            let this = unsafe { &mut *current };
            this.fault.get_or_insert((Box::new(kind), target));
            DONE
        }
    }
}

fn plain<const NUMBER: i32>(a: u64, b: u64, c: u64, d: u64, e: u64) -> u64 {
    enter::<NUMBER>([a, b, c, d, e])
}

/// Picks an instance of a generic function by helper number.
macro_rules! instance {
    ($number:expr, $function:ident, $($known:literal)*) => {
        match $number {
            $($known => Some($function::<$known>()),)*
            lower::SIGNED_DIV64 => Some($function::<{ lower::SIGNED_DIV64 }>()),
            lower::SIGNED_MOD64 => Some($function::<{ lower::SIGNED_MOD64 }>()),
            lower::SIGNED_DIV32 => Some($function::<{ lower::SIGNED_DIV32 }>()),
            lower::SIGNED_MOD32 => Some($function::<{ lower::SIGNED_MOD32 }>()),
            _ => None,
        }
    };
}
macro_rules! instance_of {
    ($number:expr, $function:ident) => {
        instance!($number, $function, 1 2 3 5 7 8 9 10 11 12 20 21 23 26 28 32 34 38 39 41 43 48 50 118 125 130 131 132 133 152 155 160)
    };
}

fn interpreter_entry(number: i32) -> Option<rbpf::ebpf::Helper> {
    fn get<const NUMBER: i32>() -> rbpf::ebpf::Helper {
        plain::<NUMBER>
    }
    instance_of!(number, get)
}

#[cfg(target_arch = "x86_64")]
extern "sysv64" fn body<const NUMBER: i32>(a: u64, b: u64, c: u64, d: u64, e: u64) -> u64 {
    enter::<NUMBER>([a, b, c, d, e])
}

/// rbpf's machine code calls with a stack off by eight: the five arguments are where the C convention has them, and the
/// stack is aligned here.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
extern "sysv64" fn aligned<const NUMBER: i32>(a: u64, b: u64, c: u64, d: u64, e: u64) -> u64 {
    std::arch::naked_asm!(
        "push rbp",
        "mov rbp, rsp",
        "and rsp, -16",
        "call {body}",
        "mov rsp, rbp",
        "pop rbp",
        "ret",
        body = sym body::<NUMBER>,
    )
}

#[cfg(target_arch = "x86_64")]
fn jit_entry(number: i32) -> Option<rbpf::ebpf::Helper> {
    fn get<const NUMBER: i32>() -> rbpf::ebpf::Helper {
        let aligned: extern "sysv64" fn(u64, u64, u64, u64, u64) -> u64 = aligned::<NUMBER>;
        // SAFETY: both are addresses of code. rbpf's machine code calls it by address, with the C convention; the
        // interpreter, which would use the type, gets other entries.
        unsafe { std::mem::transmute(aligned) }
    }
    instance_of!(number, get)
}

#[cfg(not(target_arch = "x86_64"))]
fn jit_entry(_: i32) -> Option<rbpf::ebpf::Helper> {
    None
}

/// A piece of memory programs may use.
#[derive(Debug, Clone, Copy)]
struct Range {
    start: u64,
    end: u64,
    writable: bool,
}

/// Memory by host addresses.
#[derive(Debug)]
struct Raw {
    context: u64,
    /// The engine's own memory first, then slabs and sections by address.
    ranges: Vec<Range>,
    sections: Vec<Rodata>,
    /// Number of maps the programs know.
    maps: usize,
    /// By map: address of the first slot's value on this CPU. Then addresses of read-only sections.
    first: Vec<u64>,
    strides: Vec<u64>,
    cpu: u32,
}

// SAFETY: plain addresses of memory that the engine owns or shares read-only.
unsafe impl Send for Raw {}

impl Raw {
    fn new(space: &Space, sections: &[Rodata], maps: &mut MemoryMaps) -> Self {
        let mut raw = Self {
            context: space.at(0).expose_provenance() as u64,
            ranges: Vec::new(),
            sections: sections.to_vec(),
            strides: Vec::new(),
            first: Vec::new(),
            maps: maps.len(),
            cpu: 0,
        };
        let (start, len) = space.range();
        let start = start.expose_provenance() as u64;
        raw.ranges.push(Range { start, end: start + len as u64, writable: true });
        raw.map_all(maps, 0);
        raw
    }

    fn map_all(&mut self, maps: &mut MemoryMaps, cpu: u32) {
        self.cpu = cpu;
        self.ranges.truncate(1);
        self.strides.clear();
        self.first.clear();
        for index in 0..self.maps {
            let Some(map) = maps.get_mut(index) else {
                self.first.push(0);
                self.strides.push(0);
                continue;
            };
            let cpu = cpu.min(map.cpus().saturating_sub(1));
            let first = map.value_offset(0, cpu) as u64;
            let stride = map.value_stride() as u64;
            let writable = map.spec().flags & map_flags::RDONLY_PROG == 0;
            let bytes = map.values_mut();
            let start = bytes.as_mut_ptr().expose_provenance() as u64;
            self.ranges.push(Range { start, end: start + bytes.len() as u64, writable });
            self.strides.push(stride);
            self.first.push(start + first);
        }
        for section in &self.sections {
            let start = section.as_ptr().expose_provenance() as u64;
            self.ranges.push(Range { start, end: start + section.len() as u64, writable: false });
            self.first.push(start);
        }
        if let Some(rest) = self.ranges.get_mut(1..) {
            rest.sort_by_key(|range| range.start);
        }
    }

    /// What lowered code finds in its table.
    fn slabs(&self) -> &[u64] {
        &self.first
    }

    #[inline]
    fn check(&self, address: u64, len: usize, write: bool) -> bool {
        let end = address.saturating_add(len as u64);
        let within = |range: &Range| range.start <= address && end <= range.end && (range.writable || !write);
        if self.ranges.first().is_some_and(within) {
            return true;
        }
        let rest = self.ranges.get(1..).unwrap_or_default();
        let after = rest.partition_point(|range| range.start <= address);
        after.checked_sub(1).and_then(|at| rest.get(at)).is_some_and(within)
    }

    #[cold]
    fn fault(helper: &'static str, len: usize) -> Box<FaultKind> {
        // Host addresses differ from run to run: they are not told.
        Box::new(FaultKind::Memory {
            access: helper,
            size: len as u64,
            address: 0,
            region: "outside of all memory".to_owned(),
        })
    }
}

impl Memory for Raw {
    #[inline]
    fn readable(&self, helper: &'static str, address: u64, len: usize) -> Result<*const u8, Box<FaultKind>> {
        if !self.check(address, len, false) {
            return Err(Self::fault(helper, len));
        }
        Ok(std::ptr::with_exposed_provenance(crate::world::address(address)))
    }

    fn writable(&self, helper: &'static str, address: u64, len: usize) -> Result<*mut u8, Box<FaultKind>> {
        if !self.check(address, len, true) {
            return Err(Self::fault(helper, len));
        }
        Ok(std::ptr::with_exposed_provenance_mut(crate::world::address(address)))
    }

    #[inline]
    fn map(&self, handle: u64) -> Option<usize> {
        (handle >> 32 == HANDLE >> 32).then(|| crate::world::size(low(handle)))
    }

    #[inline]
    fn value(&self, map: usize, slot: u32) -> u64 {
        match (self.first.get(map), self.strides.get(map)) {
            (Some(first), Some(stride)) => first + stride * u64::from(slot),
            _ => 0,
        }
    }

    fn is_context(&self, address: u64) -> bool {
        address == self.context
    }

    fn packet_moved(&mut self, space: &mut Space, packet: Packet) {
        // The space is below 4 GiB.
        let data = low(space.at(packet.head).expose_provenance() as u64);
        let end = low(space.at(packet.head + packet.linear).expose_provenance() as u64);
        let context = space.context();
        context.data = data;
        context.data_meta = data;
        context.data_end = end;
    }

    fn record(&mut self, start: *mut u8, _: usize) -> Option<u64> {
        Some(start.expose_provenance() as u64)
    }

    fn record_closed(&mut self, _: u64) {}
}
