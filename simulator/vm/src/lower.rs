//! Lowering: linked code → the instructions that the published rbpf 0.4.1 executes correctly.
//!
//! rbpf refuses atomics and most of v4, and runs some older instructions wrongly in one of its engines; each of those is
//! replaced here by instructions that both of its engines get right. Ideas:
//!
//! * Frames are 640 bytes of the engine's own stack. Below the program's 512 bytes there is scratch space, so any
//!   register can be spilled anywhere without knowing which are live. r10 is moved around local calls.
//! * Jump targets stay symbolic until the end, when the final distances are known.
//! * Functions are put in an order in which every call goes forward.
//! * A successful tail call comes back from its helper as a negative number: the code after it leaves the function.
//!
//! Invariant: for a program the verifier accepts, lowered code under rbpf gives the result of the original in Linux.

use std::collections::BTreeSet;

use crate::helper::Helper;
use crate::isa::{self, Raw, X, alu, atomic, class, jmp, mode, pseudo, size};
use crate::loader::{MapRef, Program};
use crate::space::CONTEXT_LEN;

/// Bytes of a frame, scratch included.
pub(crate) const LOWERED_FRAME: usize = 640;

/// Internal helpers: signed division and modulo.
pub(crate) const SIGNED_DIV64: i32 = 0x7000_0000;
pub(crate) const SIGNED_MOD64: i32 = 0x7000_0001;
pub(crate) const SIGNED_DIV32: i32 = 0x7000_0002;
pub(crate) const SIGNED_MOD32: i32 = 0x7000_0003;

/// The upper half of a map's handle in lowered code: no address a process can have.
pub(crate) const HANDLE: u64 = 0x4d41_5000_0000_0000;

const FRAME: i32 = 640;
/// Spill slots of r0 to r5, relative to r10.
const SPILL: [i16; 6] = [-520, -528, -536, -544, -552, -560];
/// Where every frame keeps the address of the table of slabs and sections.
const SLABS: i16 = -576;
/// rbpf's interpreter computes jumps in 16 bits.
const MAX_SLOTS: usize = 32_000;

/// `ja` and `gotol`.
const JUMP: u8 = class::JMP | jmp::JA;
const LONG_JUMP: u8 = class::JMP32 | jmp::JA;

/// Why a program cannot be lowered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LowerError {
    /// An instruction that no sequence stands for.
    #[error("program `{program}`, instruction {pc}: {what} cannot be lowered for rbpf")]
    Unsupported {
        /// Program.
        program: String,
        /// Slot.
        pc: usize,
        /// What it is.
        what: &'static str,
    },
    /// The lowered program is longer than rbpf's program counter reaches.
    #[error("program `{program}` grows to {slots} instructions, rbpf takes {max}", max = MAX_SLOTS)]
    TooLong {
        /// Program.
        program: String,
        /// Its lowered length.
        slots: usize,
    },
    /// A jump became too far for 16 bits.
    #[error("program `{program}`: a jump of {distance} instructions does not fit 16 bits")]
    TooFar {
        /// Program.
        program: String,
        /// Its distance.
        distance: i64,
    },
    /// A function calls itself.
    #[error("program `{program}` is recursive")]
    Recursive {
        /// Program.
        program: String,
    },
    /// There is no machine-code lane on this architecture or system.
    #[error("rbpf's machine code runs on x86_64 Linux only")]
    NoJit,
    /// rbpf said no.
    #[error("program `{program}`: rbpf: {reason}")]
    Rbpf {
        /// Program.
        program: String,
        /// In its words.
        reason: String,
    },
    /// Memory with special properties is not to be had.
    #[error("{what}: {reason}")]
    Memory {
        /// For what.
        what: &'static str,
        /// The system's answer.
        reason: String,
    },
}

/// What r1 is when a program starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// The context.
    Context,
    /// Two words in the context's place: address and length of a buffer, for r1 and r2.
    Memory,
}

/// One program.
#[derive(Debug)]
pub(crate) struct LoweredProgram {
    pub name: String,
    pub code: Vec<u8>,
    /// Numbers of helpers called, internal ones included.
    pub helpers: BTreeSet<i32>,
    /// Frames it needs at most.
    pub frames: usize,
}

/// All programs of an object.
#[derive(Debug)]
pub(crate) struct Lowered {
    /// Made from `programs` and dropped before them.
    pub jit: std::sync::OnceLock<Result<crate::jit::Jit, LowerError>>,
    pub programs: Vec<LoweredProgram>,
}

impl Lowered {
    /// `maps` is their number: read-only sections come after them in the table of slabs.
    pub(crate) fn new(programs: &[Program], maps: usize, entry: Entry) -> Result<Self, LowerError> {
        let programs =
            programs.iter().map(|program| Lowering::new(program, maps, entry).run()).collect::<Result<_, _>>()?;
        Ok(Self { programs, jit: std::sync::OnceLock::new() })
    }
}

/// Where an emitted instruction jumps to.
#[derive(Debug, Clone, Copy)]
enum Target {
    /// Nowhere, or by the distance it already has.
    None,
    /// To an instruction of the original program.
    Slot(usize),
    /// To the entry of a function of the original program.
    Function(usize),
}

struct Lowering<'a> {
    program: &'a Program,
    maps: usize,
    entry: Entry,
    out: Vec<(Raw, Target)>,
    /// Original slot → place in `out`; functions' entries apart.
    slots: Vec<Option<usize>>,
    functions: Vec<Option<usize>>,
    helpers: BTreeSet<i32>,
    uses_slabs: bool,
}

const fn insn(opcode: u8, dst: u8, src: u8, off: i16, imm: i32) -> Raw {
    Raw { opcode, dst, src, off, imm }
}
const fn load64(dst: u8, base: u8, off: i16) -> Raw {
    insn(class::LDX | size::DW | mode::MEM, dst, base, off, 0)
}
const fn store64(base: u8, off: i16, src: u8) -> Raw {
    insn(class::STX | size::DW | mode::MEM, base, src, off, 0)
}
const fn alu64k(op: u8, dst: u8, imm: i32) -> Raw {
    insn(class::ALU64 | op, dst, 0, 0, imm)
}
const fn alu64x(op: u8, dst: u8, src: u8) -> Raw {
    insn(class::ALU64 | op | X, dst, src, 0, 0)
}
const fn alu32k(op: u8, dst: u8, imm: i32) -> Raw {
    insn(class::ALU | op, dst, 0, 0, imm)
}
/// Clears the upper half: a 32-bit `and`, which both engines get right.
const fn clear_high(dst: u8) -> Raw {
    alu32k(alu::AND, dst, -1)
}

impl<'a> Lowering<'a> {
    fn new(program: &'a Program, maps: usize, entry: Entry) -> Self {
        let uses_slabs =
            Self::walk(&program.code).any(|(_, raw)| raw.opcode == isa::LD_IMM64 && raw.src == pseudo::MAP_VALUE);
        Self {
            program,
            maps,
            entry,
            out: Vec::with_capacity(program.code.len() * 2),
            slots: vec![None; program.code.len()],
            functions: vec![None; program.code.len()],
            helpers: BTreeSet::new(),
            uses_slabs,
        }
    }

    /// Instructions with their slots; the second halves of `ld_imm64` are left out.
    fn walk(code: &[Raw]) -> impl Iterator<Item = (usize, Raw)> {
        let mut second = false;
        code.iter().copied().enumerate().filter(move |(_, raw)| {
            let is_second = second;
            second = !is_second && raw.opcode == isa::LD_IMM64;
            !is_second
        })
    }

    fn refuse(&self, pc: usize, what: &'static str) -> LowerError {
        LowerError::Unsupported { program: self.program.name.clone(), pc, what }
    }

    fn emit(&mut self, raw: Raw) {
        self.out.push((raw, Target::None));
    }

    fn emit_all(&mut self, raws: impl IntoIterator<Item = Raw>) {
        self.out.extend(raws.into_iter().map(|raw| (raw, Target::None)));
    }

    fn run(mut self) -> Result<LoweredProgram, LowerError> {
        let functions = self.order()?;
        let frames = functions.iter().map(|function| function.depth).max().unwrap_or(1);
        for function in &functions {
            self.function_entry(function.start);
            let code: Vec<(usize, Raw)> =
                Self::walk(&self.program.code).filter(|(pc, _)| (function.start..function.end).contains(pc)).collect();
            for (pc, raw) in code {
                let place = self.out.len();
                if let Some(slot) = self.slots.get_mut(pc) {
                    *slot = Some(place);
                }
                self.lower(pc, raw)?;
            }
        }
        let code = self.link()?;
        Ok(LoweredProgram { name: self.program.name.clone(), code, helpers: self.helpers, frames })
    }

    fn function_entry(&mut self, start: usize) {
        let place = self.out.len();
        if let Some(function) = self.functions.get_mut(start) {
            *function = Some(place);
        }
        let anchor = i16::try_from(CONTEXT_LEN).unwrap_or(0);
        if start == 0 {
            self.emit(load64(10, 1, anchor));
            if self.uses_slabs {
                self.emit_all([load64(0, 1, anchor + 8), store64(10, SLABS, 0)]);
            }
            if self.entry == Entry::Memory {
                self.emit_all([load64(2, 1, 8), load64(1, 1, 0)]);
            }
        } else if self.uses_slabs {
            let frame = i16::try_from(FRAME).unwrap_or(0);
            self.emit_all([load64(0, 10, frame + SLABS), store64(10, SLABS, 0)]);
        }
    }

    fn link(&self) -> Result<Vec<u8>, LowerError> {
        if self.out.len() > MAX_SLOTS {
            return Err(LowerError::TooLong { program: self.program.name.clone(), slots: self.out.len() });
        }
        let mut code = Vec::with_capacity(self.out.len() * Raw::SIZE);
        for (place, &(mut raw, target)) in self.out.iter().enumerate() {
            let to = match target {
                Target::None => None,
                Target::Slot(slot) => Some(self.slots.get(slot).copied().flatten()),
                Target::Function(slot) => Some(self.functions.get(slot).copied().flatten()),
            };
            if let Some(to) = to {
                let to = to.ok_or_else(|| self.refuse(place, "a jump to no instruction"))?;
                let distance = signed(to) - signed(place) - 1;
                let too_far = || LowerError::TooFar { program: self.program.name.clone(), distance };
                if raw.opcode == isa::CALL {
                    raw.imm = i32::try_from(distance).map_err(|_| too_far())?;
                } else {
                    raw.off = i16::try_from(distance).map_err(|_| too_far())?;
                }
            }
            code.extend(raw.to_bytes());
        }
        Ok(code)
    }

    fn target(pc: usize, delta: i64) -> Option<usize> {
        usize::try_from(signed(pc) + 1 + delta).ok()
    }

    fn lower(&mut self, pc: usize, raw: Raw) -> Result<(), LowerError> {
        match raw.class() {
            class::ALU | class::ALU64 => self.arithmetic(pc, raw),
            class::JMP | class::JMP32 => self.jump(pc, raw),
            class::LDX => {
                self.load(raw);
                Ok(())
            }
            class::STX if raw.opcode & 0xe0 == mode::ATOMIC => {
                self.atomic(raw);
                Ok(())
            }
            class::ST | class::STX => {
                self.emit(raw);
                Ok(())
            }
            _ => self.constant(pc, raw),
        }
    }

    fn arithmetic(&mut self, pc: usize, raw: Raw) -> Result<(), LowerError> {
        let wide = raw.class() == class::ALU64;
        let register = raw.opcode & X != 0;
        let dst = raw.dst;
        match (raw.opcode & 0xf0, raw.off) {
            (alu::MOV, 0) if register && !wide => {
                self.emit_all([alu64x(alu::MOV, dst, raw.src), clear_high(dst)]);
            }
            (alu::MOV, bits @ (8 | 16 | 32)) if register => {
                let by = |width: i32| width - i32::from(bits);
                self.emit(alu64x(alu::MOV, dst, raw.src));
                if wide {
                    self.emit_all([alu64k(alu::LSH, dst, by(64)), alu64k(alu::ARSH, dst, by(64))]);
                } else {
                    self.emit_all([alu32k(alu::LSH, dst, by(32)), alu32k(alu::ARSH, dst, by(32))]);
                }
            }
            (alu::DIV | alu::MOD, 1) => self.signed_division(raw),
            (alu::MOD, 0) if !wide => {
                // By zero the dividend stays: rbpf would keep its upper half.
                self.emit(clear_high(dst));
                if register || raw.imm != 0 {
                    self.emit(raw);
                }
            }
            (alu::NEG, _) if wide => {
                // rbpf's own panics on the smallest number where overflow is checked.
                self.emit_all([alu64k(alu::XOR, dst, -1), alu64k(alu::ADD, dst, 1)]);
            }
            (alu::END, _) => {
                let swaps = wide || register;
                match (swaps, raw.imm) {
                    // To big endian is a swap on this machine, and rbpf knows that one.
                    (true, 16 | 32 | 64) => self.emit(insn(class::ALU | alu::END | X, dst, 0, 0, raw.imm)),
                    (false, 16) => self.emit(alu64k(alu::AND, dst, 0xffff)),
                    (false, 32) => self.emit(clear_high(dst)),
                    (false, 64) => {}
                    _ => return Err(self.refuse(pc, "this byte swap")),
                }
            }
            (_, 0) => self.emit(raw),
            _ => return Err(self.refuse(pc, "this arithmetic")),
        }
        Ok(())
    }

    /// Through an internal helper; r0 to r5 are saved around it.
    fn signed_division(&mut self, raw: Raw) {
        let wide = raw.class() == class::ALU64;
        let modulo = raw.opcode & 0xf0 == alu::MOD;
        let number = match (modulo, wide) {
            (false, true) => SIGNED_DIV64,
            (true, true) => SIGNED_MOD64,
            (false, false) => SIGNED_DIV32,
            (true, false) => SIGNED_MOD32,
        };
        self.helpers.insert(number);
        let slot = |register: u8| SPILL.get(usize::from(register)).copied();
        let fetch = |to: u8, from: u8| match slot(from) {
            Some(off) => load64(to, 10, off),
            None => alu64x(alu::MOV, to, from),
        };
        for (register, &off) in (0u8..).zip(&SPILL) {
            self.emit(store64(10, off, register));
        }
        self.emit(fetch(1, raw.dst));
        if raw.opcode & X != 0 {
            self.emit(fetch(2, raw.src));
        } else {
            self.emit(alu64k(alu::MOV, 2, raw.imm));
        }
        self.emit(insn(isa::CALL, 0, 0, 0, number));
        match slot(raw.dst) {
            Some(off) => self.emit(store64(10, off, 0)),
            None => self.emit(alu64x(alu::MOV, raw.dst, 0)),
        }
        for (register, &off) in (0u8..).zip(&SPILL) {
            self.emit(load64(register, 10, off));
        }
    }

    fn load(&mut self, raw: Raw) {
        if raw.opcode & 0xe0 != mode::MEMSX {
            self.emit(raw);
            return;
        }
        let by = 64 - 8 * i32::try_from(size::bytes(raw.opcode)).unwrap_or(8);
        self.emit(Raw { opcode: class::LDX | (raw.opcode & 0x18) | mode::MEM, ..raw });
        self.emit_all([alu64k(alu::LSH, raw.dst, by), alu64k(alu::ARSH, raw.dst, by)]);
    }

    /// Load, operate, store: a step of the simulator has one thread.
    fn atomic(&mut self, raw: Raw) {
        let (dst, src, off) = (raw.dst, raw.src, raw.off);
        let width = raw.opcode & 0x18;
        let load = |to: u8| insn(class::LDX | width | mode::MEM, to, dst, off, 0);
        let store = |from: u8| insn(class::STX | width | mode::MEM, dst, from, off, 0);
        let mut free = (0u8..10).filter(|&r| r != 0 && r != dst && r != src);
        let (old, new) = (free.next().unwrap_or(1), free.next().unwrap_or(2));
        let spill = |register: u8, slot: usize| store64(10, SPILL.get(slot).copied().unwrap_or(0), register);
        let restore = |register: u8, slot: usize| load64(register, 10, SPILL.get(slot).copied().unwrap_or(0));
        self.emit_all([spill(old, 0), load(old)]);
        match raw.imm {
            atomic::XCHG => self.emit_all([store(src), alu64x(alu::MOV, src, old)]),
            atomic::CMPXCHG => {
                let compare = if width == size::DW { class::JMP } else { class::JMP32 };
                self.emit_all([insn(compare | jmp::JNE | X, old, 0, 1, 0), store(src), alu64x(alu::MOV, 0, old)]);
            }
            operation => {
                // The operations have the numbers of the ALU's.
                let op = u8::try_from(operation & 0xf0).unwrap_or(alu::ADD);
                if operation & atomic::FETCH == 0 {
                    self.emit_all([alu64x(op, old, src), store(old)]);
                } else {
                    self.emit_all([
                        spill(new, 1),
                        alu64x(alu::MOV, new, old),
                        alu64x(op, new, src),
                        store(new),
                        alu64x(alu::MOV, src, old),
                        restore(new, 1),
                    ]);
                }
            }
        }
        self.emit(restore(old, 0));
    }

    fn constant(&mut self, pc: usize, raw: Raw) -> Result<(), LowerError> {
        let high = self.program.code.get(pc + 1).map_or(0, |second| second.imm);
        let both = |value: u64| {
            let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
            let (low, high) = (i32::from_le_bytes([a, b, c, d]), i32::from_le_bytes([e, f, g, h]));
            [insn(isa::LD_IMM64, raw.dst, 0, 0, low), insn(0, 0, 0, 0, high)]
        };
        if raw.opcode != isa::LD_IMM64 {
            return Err(self.refuse(pc, "a packet load of old"));
        }
        match (raw.src, MapRef::from_imm(raw.imm)) {
            (0, _) => self.emit_all([raw, insn(0, 0, 0, 0, high)]),
            (pseudo::MAP_FD, Some(MapRef::Map(map))) => self.emit_all(both(HANDLE | map as u64)),
            (pseudo::MAP_VALUE, Some(reference)) => {
                let place = match reference {
                    MapRef::Map(map) => map,
                    MapRef::Rodata(section) => self.maps + section,
                };
                let Ok(off) = i16::try_from(place * 8) else {
                    return Err(self.refuse(pc, "so many maps"));
                };
                self.emit_all([
                    load64(raw.dst, 10, SLABS),
                    load64(raw.dst, raw.dst, off),
                    alu64k(alu::ADD, raw.dst, high),
                ]);
            }
            _ => return Err(self.refuse(pc, "this form of ld_imm64")),
        }
        Ok(())
    }

    fn jump(&mut self, pc: usize, raw: Raw) -> Result<(), LowerError> {
        let wide = raw.class() == class::JMP;
        let register = raw.opcode & X != 0;
        let op = raw.opcode & 0xf0;
        let to = |lowering: &Self, delta: i64| {
            Self::target(pc, delta).map(Target::Slot).ok_or_else(|| lowering.refuse(pc, "a jump to no instruction"))
        };
        match (op, wide) {
            (jmp::EXIT, true) => self.emit(raw),
            (jmp::CALL, true) if !register => return self.call(pc, raw),
            (jmp::JA, _) => {
                let delta = if wide { i64::from(raw.off) } else { i64::from(raw.imm) };
                let target = to(self, delta)?;
                self.out.push((insn(JUMP, 0, 0, 0, 0), target));
            }
            (jmp::CALL, _) => return Err(self.refuse(pc, "a call through a register")),
            (jmp::JEQ | jmp::JNE | jmp::JGT | jmp::JGE | jmp::JLT | jmp::JLE, true) if !register && raw.imm < 0 => {
                // rbpf's interpreter does not sign-extend these: compare with a register.
                let target = to(self, i64::from(raw.off))?;
                let spare = u8::from(raw.dst == 0);
                let slot = SPILL[0];
                self.emit_all([
                    store64(10, slot, spare),
                    alu64k(alu::MOV, spare, raw.imm),
                    insn(raw.opcode | X, raw.dst, spare, 2, 0),
                    load64(spare, 10, slot),
                    insn(JUMP, 0, 0, 2, 0),
                    load64(spare, 10, slot),
                ]);
                self.out.push((insn(JUMP, 0, 0, 0, 0), target));
            }
            _ => {
                let target = to(self, i64::from(raw.off))?;
                self.out.push((raw, target));
            }
        }
        Ok(())
    }

    fn call(&mut self, pc: usize, raw: Raw) -> Result<(), LowerError> {
        if raw.src == pseudo::CALL {
            let function = Self::target(pc, i64::from(raw.imm)).ok_or_else(|| self.refuse(pc, "a call of nothing"))?;
            self.emit(alu64k(alu::ADD, 10, -FRAME));
            self.out.push((raw, Target::Function(function)));
            self.emit(alu64k(alu::ADD, 10, FRAME));
            return Ok(());
        }
        if raw.src != 0 {
            return Err(self.refuse(pc, "a call of a kernel function"));
        }
        self.helpers.insert(raw.imm);
        if Helper::from_number(raw.imm) == Some(Helper::TailCall) {
            // The helper runs the target where this function's frame is. Negative: it has, leave with its answer.
            self.emit_all([
                alu64x(alu::MOV, 4, 10),
                raw,
                insn(class::JMP | jmp::JSGE, 0, 0, 3, 0),
                alu64k(alu::LSH, 0, 1),
                alu64k(alu::RSH, 0, 1),
                insn(isa::EXIT, 0, 0, 0, 0),
            ]);
        } else {
            self.emit(raw);
        }
        Ok(())
    }

    /// Functions, callers before callees.
    fn order(&self) -> Result<Vec<Function>, LowerError> {
        let mut starts = BTreeSet::from([0]);
        let mut calls: Vec<(usize, usize)> = Vec::new();
        for (pc, raw) in Self::walk(&self.program.code) {
            if raw.opcode == isa::CALL && raw.src == pseudo::CALL {
                let to = Self::target(pc, i64::from(raw.imm)).filter(|&to| to < self.program.code.len());
                let to = to.ok_or_else(|| self.refuse(pc, "a call of nothing"))?;
                starts.insert(to);
                calls.push((pc, to));
            }
        }
        let starts: Vec<usize> = starts.into_iter().collect();
        let mut functions: Vec<Function> = starts
            .iter()
            .enumerate()
            .map(|(index, &start)| {
                let end = starts.get(index + 1).copied().unwrap_or(self.program.code.len());
                Function { start, end, depth: 1 }
            })
            .collect();
        for function in &functions {
            let last = Self::walk(&self.program.code).filter(|(pc, _)| *pc < function.end).last();
            let ends = last.is_some_and(|(_, raw)| matches!(raw.opcode, isa::EXIT | JUMP | LONG_JUMP));
            if !ends {
                return Err(self.refuse(function.end.saturating_sub(1), "a function that runs into the next"));
            }
        }
        // Depths by relaxation: more rounds than functions means a cycle.
        for round in 0.. {
            let mut changed = false;
            for &(pc, to) in &calls {
                let from = functions.iter().find(|f| (f.start..f.end).contains(&pc)).map_or(1, |f| f.depth);
                if let Some(callee) = functions.iter_mut().find(|f| f.start == to)
                    && callee.depth <= from
                {
                    callee.depth = from + 1;
                    changed = true;
                }
            }
            if !changed {
                break;
            }
            if round > functions.len() {
                return Err(LowerError::Recursive { program: self.program.name.clone() });
            }
        }
        functions.sort_by_key(|function| (function.depth, function.start));
        Ok(functions)
    }
}

struct Function {
    start: usize,
    end: usize,
    /// Frames when it runs, its own included.
    depth: usize,
}

/// Slots are far below 2^63.
fn signed(slot: usize) -> i64 {
    i64::try_from(slot).unwrap_or(i64::MAX)
}
