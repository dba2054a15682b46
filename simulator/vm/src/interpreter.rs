//! The checked engine's loop.
//!
//! Invariant: every memory access goes through [`Tagged`], except those the decoder has proved to lie in the running
//! frame. Semantics: RFC 9669; what it leaves open is as in Linux (32-bit results clear the upper half, division by
//! zero gives 0, modulo by zero leaves the dividend).
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "registers are read at the widths and signs that each instruction defines"
)]

use crate::address::{self, tag};
use crate::api::{FaultKind, ProgramId};
use crate::decode::{Decoded, DecodedProgram, Op};
use crate::helper::Helper;
use crate::helpers;
use crate::isa::{self, atomic};
use crate::space;
use crate::tagged::Tagged;
use crate::trace::Tracer;
use crate::world::{Memory, World};

/// Work done, per program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProgramStats {
    /// Times it was started, by the engine or by a tail call.
    pub starts: u64,
    /// Instructions executed.
    pub instructions: u64,
    /// Helpers called, look-ups included.
    pub helper_calls: u64,
    /// Map look-ups.
    pub lookups: u64,
}

/// A caller's state.
#[derive(Clone, Copy)]
struct Frame {
    program: usize,
    pc: usize,
    saved: [u64; 4],
}

/// Where a run stopped without an answer.
pub(crate) struct Stop {
    pub kind: Box<FaultKind>,
    pub program: usize,
    pub pc: u32,
}

pub(crate) struct Machine<'a, T> {
    pub decoded: &'a Decoded,
    pub world: &'a mut World,
    pub memory: &'a mut Tagged,
    pub tracer: &'a mut T,
    pub stats: &'a mut [ProgramStats],
    pub budget: u64,
}

/// What the counters were when the running program began.
struct Mark {
    left: u64,
    helper_calls: u32,
    lookups: u32,
}

impl<T: Tracer> Machine<'_, T> {
    fn account(&mut self, program: usize, mark: &Mark, left: u64) {
        if let Some(stats) = self.stats.get_mut(program) {
            stats.starts += 1;
            stats.instructions += mark.left - left;
            stats.helper_calls += u64::from(self.world.run.helper_calls - mark.helper_calls);
            stats.lookups += u64::from(self.world.run.lookups - mark.lookups);
        }
    }

    fn mark(&self, left: u64) -> Mark {
        Mark { left, helper_calls: self.world.run.helper_calls, lookups: self.world.run.lookups }
    }

    fn frame(&self, depth: usize) -> *mut u8 {
        self.world.space.at(space::STACK + depth * isa::FRAME)
    }

    /// Runs a program to its end. The result is r0.
    #[expect(clippy::too_many_lines, reason = "one arm per instruction")]
    pub(crate) fn run(&mut self, start: usize, r1: u64, r2: u64) -> Result<u64, Stop> {
        let decoded = self.decoded;
        let mut program = start;
        let Some(mut running): Option<&DecodedProgram> = decoded.programs.get(program) else {
            return Err(Stop { kind: Box::new(FaultKind::CallDepth), program, pc: 0 });
        };
        let mut code = &*running.code;
        let mut pc = 0usize;
        let mut left = self.budget;
        let mut mark = self.mark(left);
        let mut frames = [Frame { program: 0, pc: 0, saved: [0; 4] }; isa::MAX_FRAMES];
        let mut depth = 0usize;
        let mut frame = self.frame(0);
        let top = |depth: usize| tag(address::STACK, depth as u32, isa::FRAME as u32);
        self.world.poison(frame);
        // Sixteen, so that a register field needs no bounds check.
        let mut r = [0u64; 16];
        r[1] = r1;
        r[2] = r2;
        r[10] = top(0);

        macro_rules! stop {
            ($kind:expr) => {{
                self.account(program, &mark, left);
                self.world.run.instructions = self.budget - left;
                let pc = running.slots.get(pc - 1).copied().unwrap_or(0);
                return Err(Stop { kind: $kind, program, pc });
            }};
        }
        macro_rules! attempt {
            ($result:expr) => {
                match $result {
                    Ok(value) => value,
                    Err(kind) => stop!(kind),
                }
            };
        }

        loop {
            // SAFETY: the decoder guarantees that pc is an instruction: targets are checked, the last one never falls through.
            let insn = unsafe { code.get_unchecked(pc) };
            if T::ON {
                let slot = running.slots.get(pc).copied().unwrap_or(0);
                let mut registers = [0; 11];
                registers.copy_from_slice(&r[..11]);
                self.tracer.step(ProgramId(program as u32), slot, &registers);
            }
            pc += 1;
            if left == 0 {
                stop!(Box::new(FaultKind::Budget(self.budget)));
            }
            left -= 1;
            let d = usize::from(insn.dst & 15);
            let s = usize::from(insn.src & 15);

            macro_rules! alu64 {
                ($operand:expr, |$a:ident, $b:ident| $result:expr) => {{
                    let ($a, $b) = (r[d], $operand);
                    r[d] = $result;
                }};
            }
            macro_rules! alu32 {
                ($operand:expr, |$a:ident, $b:ident| $result:expr) => {{
                    let ($a, $b) = (r[d] as u32, $operand as u32);
                    r[d] = u64::from($result);
                }};
            }
            macro_rules! jump_if {
                ($condition:expr) => {
                    if $condition {
                        pc = insn.off as usize;
                    }
                };
            }
            macro_rules! load {
                ($type:ty, |$value:ident| $extend:expr) => {{
                    let address = r[s].wrapping_add(insn.off as i32 as u64);
                    let len = size_of::<$type>();
                    let $value = match self.memory.load(address, len) {
                        // SAFETY: `load` vouches for the bytes; unaligned is fine.
                        Some(from) => unsafe { from.cast::<$type>().read_unaligned() },
                        None => {
                            let context = self.world.space.context();
                            let wide = attempt!(self.memory.load_context(context, address, len));
                            // data and data_end are wider than the field they stand for.
                            if wide >> 32 != 0 && len < 8 {
                                r[d] = wide;
                                continue;
                            }
                            wide as $type
                        }
                    };
                    r[d] = $extend;
                }};
            }
            macro_rules! store {
                ($type:ty, $value:expr) => {{
                    let address = r[d].wrapping_add(insn.off as i32 as u64);
                    let len = size_of::<$type>();
                    match self.memory.store(address, len) {
                        // SAFETY: `store` vouches for the bytes; unaligned is fine.
                        Some(to) => unsafe { to.cast::<$type>().write_unaligned($value as $type) },
                        None => {
                            let context = self.world.space.context();
                            attempt!(self.memory.store_context(context, address, len, $value));
                        }
                    }
                }};
            }
            macro_rules! frame_load {
                ($type:ty) => {{
                    let from = frame.wrapping_add(insn.off as usize).cast::<$type>();
                    // SAFETY: the decoder checked that the access lies within the frame.
                    r[d] = u64::from(unsafe { from.read_unaligned() });
                }};
            }
            macro_rules! frame_store {
                ($type:ty, $value:expr) => {{
                    let to = frame.wrapping_add(insn.off as usize).cast::<$type>();
                    // SAFETY: the decoder checked that the access lies within the frame.
                    unsafe { to.write_unaligned($value as $type) };
                }};
            }
            macro_rules! atomic {
                ($type:ty) => {{
                    let address = r[d].wrapping_add(insn.off as i32 as u64);
                    let Some(place) = self.memory.store(address, size_of::<$type>()) else {
                        stop!(self.memory.fault("atomic", address, size_of::<$type>() as u64));
                    };
                    let place = place.cast::<$type>();
                    // SAFETY: `store` vouches for the bytes.
                    let old = unsafe { place.read_unaligned() };
                    let operand = r[s] as $type;
                    let operation = insn.imm as i32;
                    let new = match operation & !atomic::FETCH {
                        atomic::ADD => old.wrapping_add(operand),
                        atomic::OR => old | operand,
                        atomic::AND => old & operand,
                        atomic::XOR => old ^ operand,
                        _ if operation == atomic::CMPXCHG && old != r[0] as $type => old,
                        _ => operand,
                    };
                    // SAFETY: as for the read.
                    unsafe { place.write_unaligned(new) };
                    if operation == atomic::CMPXCHG {
                        r[0] = u64::from(old);
                    } else if operation & atomic::FETCH != 0 {
                        r[s] = u64::from(old);
                    }
                }};
            }

            let imm = insn.imm;
            match insn.op {
                Op::Nop => {}
                Op::Add64K => alu64!(imm, |a, b| a.wrapping_add(b)),
                Op::Add64X => alu64!(r[s], |a, b| a.wrapping_add(b)),
                Op::Sub64K => alu64!(imm, |a, b| a.wrapping_sub(b)),
                Op::Sub64X => alu64!(r[s], |a, b| a.wrapping_sub(b)),
                Op::Mul64K => alu64!(imm, |a, b| a.wrapping_mul(b)),
                Op::Mul64X => alu64!(r[s], |a, b| a.wrapping_mul(b)),
                Op::Div64K => alu64!(imm, |a, b| a.checked_div(b).unwrap_or(0)),
                Op::Div64X => alu64!(r[s], |a, b| a.checked_div(b).unwrap_or(0)),
                Op::Mod64K => alu64!(imm, |a, b| a.checked_rem(b).unwrap_or(a)),
                Op::Mod64X => alu64!(r[s], |a, b| a.checked_rem(b).unwrap_or(a)),
                Op::Sdiv64K => alu64!(imm, |a, b| signed_div64(a, b)),
                Op::Sdiv64X => alu64!(r[s], |a, b| signed_div64(a, b)),
                Op::Smod64K => alu64!(imm, |a, b| signed_mod64(a, b)),
                Op::Smod64X => alu64!(r[s], |a, b| signed_mod64(a, b)),
                Op::Or64K => alu64!(imm, |a, b| a | b),
                Op::Or64X => alu64!(r[s], |a, b| a | b),
                Op::And64K => alu64!(imm, |a, b| a & b),
                Op::And64X => alu64!(r[s], |a, b| a & b),
                Op::Xor64K => alu64!(imm, |a, b| a ^ b),
                Op::Xor64X => alu64!(r[s], |a, b| a ^ b),
                Op::Lsh64K => alu64!(imm, |a, b| a.wrapping_shl(b as u32)),
                Op::Lsh64X => alu64!(r[s], |a, b| a.wrapping_shl(b as u32)),
                Op::Rsh64K => alu64!(imm, |a, b| a.wrapping_shr(b as u32)),
                Op::Rsh64X => alu64!(r[s], |a, b| a.wrapping_shr(b as u32)),
                Op::Arsh64K => alu64!(imm, |a, b| (a as i64).wrapping_shr(b as u32) as u64),
                Op::Arsh64X => alu64!(r[s], |a, b| (a as i64).wrapping_shr(b as u32) as u64),
                Op::Mov64K | Op::Const => r[d] = imm,
                Op::Mov64X => r[d] = r[s],
                Op::Add32K => alu32!(imm, |a, b| a.wrapping_add(b)),
                Op::Add32X => alu32!(r[s], |a, b| a.wrapping_add(b)),
                Op::Sub32K => alu32!(imm, |a, b| a.wrapping_sub(b)),
                Op::Sub32X => alu32!(r[s], |a, b| a.wrapping_sub(b)),
                Op::Mul32K => alu32!(imm, |a, b| a.wrapping_mul(b)),
                Op::Mul32X => alu32!(r[s], |a, b| a.wrapping_mul(b)),
                Op::Div32K => alu32!(imm, |a, b| a.checked_div(b).unwrap_or(0)),
                Op::Div32X => alu32!(r[s], |a, b| a.checked_div(b).unwrap_or(0)),
                Op::Mod32K => alu32!(imm, |a, b| a.checked_rem(b).unwrap_or(a)),
                Op::Mod32X => alu32!(r[s], |a, b| a.checked_rem(b).unwrap_or(a)),
                Op::Sdiv32K => alu32!(imm, |a, b| signed_div32(a, b)),
                Op::Sdiv32X => alu32!(r[s], |a, b| signed_div32(a, b)),
                Op::Smod32K => alu32!(imm, |a, b| signed_mod32(a, b)),
                Op::Smod32X => alu32!(r[s], |a, b| signed_mod32(a, b)),
                Op::Or32K => alu32!(imm, |a, b| a | b),
                Op::Or32X => alu32!(r[s], |a, b| a | b),
                Op::And32K => alu32!(imm, |a, b| a & b),
                Op::And32X => alu32!(r[s], |a, b| a & b),
                Op::Xor32K => alu32!(imm, |a, b| a ^ b),
                Op::Xor32X => alu32!(r[s], |a, b| a ^ b),
                Op::Lsh32K => alu32!(imm, |a, b| a.wrapping_shl(b)),
                Op::Lsh32X => alu32!(r[s], |a, b| a.wrapping_shl(b)),
                Op::Rsh32K => alu32!(imm, |a, b| a.wrapping_shr(b)),
                Op::Rsh32X => alu32!(r[s], |a, b| a.wrapping_shr(b)),
                Op::Arsh32K => alu32!(imm, |a, b| (a as i32).wrapping_shr(b) as u32),
                Op::Arsh32X => alu32!(r[s], |a, b| (a as i32).wrapping_shr(b) as u32),
                Op::Mov32K => r[d] = u64::from(imm as u32),
                Op::Mov32X => r[d] = u64::from(r[s] as u32),
                Op::Neg64 => r[d] = r[d].wrapping_neg(),
                Op::Neg32 => r[d] = u64::from((r[d] as u32).wrapping_neg()),
                Op::Sext8 => r[d] = i64::from(r[s] as i8) as u64,
                Op::Sext16 => r[d] = i64::from(r[s] as i16) as u64,
                Op::Sext32 => r[d] = i64::from(r[s] as i32) as u64,
                Op::Sext8W => r[d] = u64::from(i32::from(r[s] as i8) as u32),
                Op::Sext16W => r[d] = u64::from(i32::from(r[s] as i16) as u32),
                Op::Swap16 => r[d] = u64::from((r[d] as u16).swap_bytes()),
                Op::Swap32 => r[d] = u64::from((r[d] as u32).swap_bytes()),
                Op::Swap64 => r[d] = r[d].swap_bytes(),
                Op::Low16 => r[d] &= 0xffff,
                Op::Low32 => r[d] &= 0xffff_ffff,

                Op::Ja => pc = insn.off as usize,
                Op::Jeq64K => jump_if!(r[d] == imm),
                Op::Jeq64X => jump_if!(r[d] == r[s]),
                Op::Jne64K => jump_if!(r[d] != imm),
                Op::Jne64X => jump_if!(r[d] != r[s]),
                Op::Jgt64K => jump_if!(r[d] > imm),
                Op::Jgt64X => jump_if!(r[d] > r[s]),
                Op::Jge64K => jump_if!(r[d] >= imm),
                Op::Jge64X => jump_if!(r[d] >= r[s]),
                Op::Jlt64K => jump_if!(r[d] < imm),
                Op::Jlt64X => jump_if!(r[d] < r[s]),
                Op::Jle64K => jump_if!(r[d] <= imm),
                Op::Jle64X => jump_if!(r[d] <= r[s]),
                Op::Jset64K => jump_if!(r[d] & imm != 0),
                Op::Jset64X => jump_if!(r[d] & r[s] != 0),
                Op::Jsgt64K => jump_if!(r[d] as i64 > imm as i64),
                Op::Jsgt64X => jump_if!(r[d] as i64 > r[s] as i64),
                Op::Jsge64K => jump_if!(r[d] as i64 >= imm as i64),
                Op::Jsge64X => jump_if!(r[d] as i64 >= r[s] as i64),
                Op::Jslt64K => jump_if!((r[d] as i64) < imm as i64),
                Op::Jslt64X => jump_if!((r[d] as i64) < r[s] as i64),
                Op::Jsle64K => jump_if!(r[d] as i64 <= imm as i64),
                Op::Jsle64X => jump_if!(r[d] as i64 <= r[s] as i64),
                Op::Jeq32K => jump_if!(r[d] as u32 == imm as u32),
                Op::Jeq32X => jump_if!(r[d] as u32 == r[s] as u32),
                Op::Jne32K => jump_if!(r[d] as u32 != imm as u32),
                Op::Jne32X => jump_if!(r[d] as u32 != r[s] as u32),
                Op::Jgt32K => jump_if!(r[d] as u32 > imm as u32),
                Op::Jgt32X => jump_if!(r[d] as u32 > r[s] as u32),
                Op::Jge32K => jump_if!(r[d] as u32 >= imm as u32),
                Op::Jge32X => jump_if!(r[d] as u32 >= r[s] as u32),
                Op::Jlt32K => jump_if!((r[d] as u32) < imm as u32),
                Op::Jlt32X => jump_if!((r[d] as u32) < r[s] as u32),
                Op::Jle32K => jump_if!(r[d] as u32 <= imm as u32),
                Op::Jle32X => jump_if!(r[d] as u32 <= r[s] as u32),
                Op::Jset32K => jump_if!(r[d] as u32 & imm as u32 != 0),
                Op::Jset32X => jump_if!(r[d] as u32 & r[s] as u32 != 0),
                Op::Jsgt32K => jump_if!(r[d] as i32 > imm as i32),
                Op::Jsgt32X => jump_if!(r[d] as i32 > r[s] as i32),
                Op::Jsge32K => jump_if!(r[d] as i32 >= imm as i32),
                Op::Jsge32X => jump_if!(r[d] as i32 >= r[s] as i32),
                Op::Jslt32K => jump_if!((r[d] as i32) < imm as i32),
                Op::Jslt32X => jump_if!((r[d] as i32) < r[s] as i32),
                Op::Jsle32K => jump_if!(r[d] as i32 <= imm as i32),
                Op::Jsle32X => jump_if!(r[d] as i32 <= r[s] as i32),

                Op::LoadB => load!(u8, |value| u64::from(value)),
                Op::LoadH => load!(u16, |value| u64::from(value)),
                Op::LoadW => load!(u32, |value| u64::from(value)),
                Op::LoadD => load!(u64, |value| value),
                Op::LoadSb => load!(u8, |value| i64::from(value as i8) as u64),
                Op::LoadSh => load!(u16, |value| i64::from(value as i16) as u64),
                Op::LoadSw => load!(u32, |value| i64::from(value as i32) as u64),
                Op::StoreB => store!(u8, r[s]),
                Op::StoreH => store!(u16, r[s]),
                Op::StoreW => store!(u32, r[s]),
                Op::StoreD => store!(u64, r[s]),
                Op::StoreKB => store!(u8, imm),
                Op::StoreKH => store!(u16, imm),
                Op::StoreKW => store!(u32, imm),
                Op::StoreKD => store!(u64, imm),
                Op::FrameLoadB => frame_load!(u8),
                Op::FrameLoadH => frame_load!(u16),
                Op::FrameLoadW => frame_load!(u32),
                Op::FrameLoadD => frame_load!(u64),
                Op::FrameStoreB => frame_store!(u8, r[s]),
                Op::FrameStoreH => frame_store!(u16, r[s]),
                Op::FrameStoreW => frame_store!(u32, r[s]),
                Op::FrameStoreD => frame_store!(u64, r[s]),
                Op::FrameStoreKB => frame_store!(u8, imm),
                Op::FrameStoreKH => frame_store!(u16, imm),
                Op::FrameStoreKW => frame_store!(u32, imm),
                Op::FrameStoreKD => frame_store!(u64, imm),
                Op::AtomicW => atomic!(u32),
                Op::AtomicD => atomic!(u64),

                Op::CallLookup => {
                    self.world.run.helper_calls += 1;
                    let (map, slot) = attempt!(helpers::find(self.world, self.memory, r[1], r[2]));
                    let result = slot.map_or(0, |slot| self.memory.value(map, slot));
                    if T::ON {
                        self.trace_lookup(map, r[2], result);
                        self.trace_helper(program, running, pc, Helper::MapLookup, &r, result);
                    }
                    r[0] = result;
                }
                Op::CallHelper => {
                    let Some(&helper) = Helper::ALL.get(usize::from(insn.dst)) else {
                        stop!(Box::new(FaultKind::Helper { helper: "unknown", reason: "not a helper" }));
                    };
                    let arguments = [r[1], r[2], r[3], r[4], r[5]];
                    let result = attempt!(helpers::call(self.world, self.memory, helper, arguments));
                    if T::ON {
                        self.trace_helper(program, running, pc, helper, &r, result);
                    }
                    r[0] = result;
                }
                Op::CallTail => {
                    self.world.run.helper_calls += 1;
                    let map = self.memory.map(r[2]);
                    let target = attempt!(self.world.tail_target(map, r[3]));
                    if T::ON {
                        self.trace_helper(program, running, pc, Helper::TailCall, &r, 0);
                    }
                    let found = target.and_then(|to| decoded.programs.get(to as usize).map(|next| (to, next)));
                    let Some((to, next)) = found else { continue };
                    if T::ON {
                        self.tracer.tail_call(ProgramId(program as u32), ProgramId(to));
                    }
                    self.account(program, &mark, left);
                    mark = self.mark(left);
                    program = to as usize;
                    running = next;
                    code = &running.code;
                    pc = 0;
                    self.world.poison(frame);
                }
                Op::CallLocal => {
                    if depth + 1 >= isa::MAX_FRAMES {
                        stop!(Box::new(FaultKind::CallDepth));
                    }
                    frames[depth] = Frame { program, pc, saved: [r[6], r[7], r[8], r[9]] };
                    depth += 1;
                    frame = self.frame(depth);
                    self.world.poison(frame);
                    self.memory.frames(depth as u32 + 1);
                    r[10] = top(depth);
                    pc = insn.off as usize;
                }
                Op::Exit => {
                    if depth == 0 {
                        self.account(program, &mark, left);
                        self.world.run.instructions = self.budget - left;
                        return Ok(r[0]);
                    }
                    depth -= 1;
                    let caller = frames[depth];
                    if caller.program != program {
                        // A tail call from a subprogram ends here: back in the caller's program.
                        self.account(program, &mark, left);
                        mark = self.mark(left);
                        let Some(back) = decoded.programs.get(caller.program) else {
                            stop!(Box::new(FaultKind::CallDepth));
                        };
                        program = caller.program;
                        running = back;
                        code = &running.code;
                    }
                    pc = caller.pc;
                    [r[6], r[7], r[8], r[9]] = caller.saved;
                    frame = self.frame(depth);
                    self.memory.frames(depth as u32 + 1);
                    r[10] = top(depth);
                }
            }
        }
    }

    #[cold]
    fn trace_helper(
        &mut self,
        program: usize,
        running: &DecodedProgram,
        pc: usize,
        helper: Helper,
        r: &[u64; 16],
        result: u64,
    ) {
        let slot = running.slots.get(pc - 1).copied().unwrap_or(0);
        let arguments = [r[1], r[2], r[3], r[4], r[5]];
        self.tracer.helper(ProgramId(program as u32), slot, helper, arguments, result);
    }

    #[cold]
    fn trace_lookup(&mut self, map: usize, key: u64, result: u64) {
        let Some(&info) = self.world.infos.get(map) else { return };
        let bytes = |address: u64, len: usize| -> Option<Vec<u8>> {
            let from = self.memory.load(address, len)?;
            // SAFETY: `load` vouches for the bytes; they are copied at once.
            Some(unsafe { std::slice::from_raw_parts(from, len) }.to_vec())
        };
        let key = bytes(key, info.key_size).unwrap_or_default();
        let value = bytes(result, info.value_size);
        self.tracer.lookup(map, &key, value.as_deref());
    }
}

pub(crate) fn signed_div64(a: u64, b: u64) -> u64 {
    if b == 0 { 0 } else { (a as i64).wrapping_div(b as i64) as u64 }
}

pub(crate) fn signed_mod64(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { (a as i64).wrapping_rem(b as i64) as u64 }
}

pub(crate) fn signed_div32(a: u32, b: u32) -> u32 {
    if b == 0 { 0 } else { (a as i32).wrapping_div(b as i32) as u32 }
}

pub(crate) fn signed_mod32(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { (a as i32).wrapping_rem(b as i32) as u32 }
}
