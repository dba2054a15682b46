//! Linked code → the checked interpreter's form: one 16-byte record per instruction, every variant its own operation,
//! jump targets absolute, map references already addresses.
//!
//! Invariant (the interpreter's fetch relies on it): every target is an instruction of the same program, and the last
//! instruction never falls through. Everything the interpreter does not know is refused here, with program and slot.

use datapath_maps::{MapKind, MapSpec};

use crate::address;
use crate::helper::Helper;
use crate::isa::{self, Raw, X, alu, class, jmp, mode, pseudo, size};
use crate::loader::{LoadError, MapRef, Program};

/// Operations. `K` takes the immediate, `X` the source register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[rustfmt::skip]
pub enum Op {
    Nop,
    Add64K, Sub64K, Mul64K, Div64K, Or64K, And64K, Lsh64K, Rsh64K, Mod64K, Xor64K, Mov64K, Arsh64K, Sdiv64K, Smod64K,
    Add64X, Sub64X, Mul64X, Div64X, Or64X, And64X, Lsh64X, Rsh64X, Mod64X, Xor64X, Mov64X, Arsh64X, Sdiv64X, Smod64X,
    Add32K, Sub32K, Mul32K, Div32K, Or32K, And32K, Lsh32K, Rsh32K, Mod32K, Xor32K, Mov32K, Arsh32K, Sdiv32K, Smod32K,
    Add32X, Sub32X, Mul32X, Div32X, Or32X, And32X, Lsh32X, Rsh32X, Mod32X, Xor32X, Mov32X, Arsh32X, Sdiv32X, Smod32X,
    Neg64, Neg32,
    Sext8, Sext16, Sext32, Sext8W, Sext16W,
    Swap16, Swap32, Swap64, Low16, Low32,
    Ja,
    Jeq64K, Jgt64K, Jge64K, Jset64K, Jne64K, Jsgt64K, Jsge64K, Jlt64K, Jle64K, Jslt64K, Jsle64K,
    Jeq64X, Jgt64X, Jge64X, Jset64X, Jne64X, Jsgt64X, Jsge64X, Jlt64X, Jle64X, Jslt64X, Jsle64X,
    Jeq32K, Jgt32K, Jge32K, Jset32K, Jne32K, Jsgt32K, Jsge32K, Jlt32K, Jle32K, Jslt32K, Jsle32K,
    Jeq32X, Jgt32X, Jge32X, Jset32X, Jne32X, Jsgt32X, Jsge32X, Jlt32X, Jle32X, Jslt32X, Jsle32X,
    LoadB, LoadH, LoadW, LoadD, LoadSb, LoadSh, LoadSw,
    StoreB, StoreH, StoreW, StoreD,
    StoreKB, StoreKH, StoreKW, StoreKD,
    // The same, relative to r10 and within the frame: `off` counts from its lowest byte.
    FrameLoadB, FrameLoadH, FrameLoadW, FrameLoadD,
    FrameStoreB, FrameStoreH, FrameStoreW, FrameStoreD,
    FrameStoreKB, FrameStoreKH, FrameStoreKW, FrameStoreKD,
    // `imm` is the operation.
    AtomicW, AtomicD,
    Const,
    // `off` is the target.
    CallLocal,
    // `dst` is the place in `Helper::ALL`.
    CallHelper,
    CallLookup,
    CallTail,
    Exit,
}

/// One instruction.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Insn {
    /// What to do.
    pub op: Op,
    /// Destination register.
    pub dst: u8,
    /// Source register.
    pub src: u8,
    /// Sign-extended memory offset, offset in the frame, or jump target.
    pub off: u32,
    /// Sign-extended immediate.
    pub imm: u64,
}

/// One program.
#[derive(Debug)]
pub struct DecodedProgram {
    /// Instructions.
    pub code: Box<[Insn]>,
    /// The slot each of them came from.
    pub slots: Box<[u32]>,
}

/// All programs of an object.
#[derive(Debug)]
pub struct Decoded {
    /// By [`crate::ProgramId`].
    pub programs: Vec<DecodedProgram>,
}

/// Refuses what the fields of an address cannot tell apart.
pub(crate) fn check_map(spec: &MapSpec) -> Result<(), LoadError> {
    let refuse = |what| Err(LoadError::MapSize { map: spec.name.clone(), what });
    if spec.value_size >= address::MAX_OFFSET {
        return refuse("values of 16 MiB or more");
    }
    if spec.kind != MapKind::RingBuf && spec.max_entries > address::MAX_ENTRIES {
        return refuse("more than 2^25 entries");
    }
    Ok(())
}

pub(crate) fn decode(programs: &[Program], maps: &[MapSpec], sections: usize) -> Result<Decoded, LoadError> {
    for spec in maps {
        check_map(spec)?;
    }
    if maps.len() + sections > address::MAX_OBJECTS {
        return Err(LoadError::MapSize { map: format!("#{}", maps.len()), what: "more than 2000 maps and sections" });
    }
    let programs = programs
        .iter()
        .map(|program| Decoder { program, rodata: sections, maps: maps.len() }.run())
        .collect::<Result<_, _>>()?;
    Ok(Decoded { programs })
}

struct Decoder<'a> {
    program: &'a Program,
    rodata: usize,
    maps: usize,
}

impl Decoder<'_> {
    fn refuse(&self, pc: usize, what: &'static str) -> LoadError {
        let opcode = self.program.code.get(pc).map_or(0, |raw| raw.opcode);
        LoadError::Instruction { program: self.program.name.clone(), pc, opcode, what }
    }

    fn run(&self) -> Result<DecodedProgram, LoadError> {
        let raws = &self.program.code;
        // Slot → instruction; the second slot of ld_imm64 is no target.
        let mut index = vec![u32::MAX; raws.len()];
        let mut slots = Vec::with_capacity(raws.len());
        let mut pc = 0;
        while let Some(raw) = raws.get(pc) {
            if let Some(entry) = index.get_mut(pc) {
                *entry = u32::try_from(slots.len()).map_err(|_| self.refuse(pc, "program too long"))?;
            }
            slots.push(u32::try_from(pc).map_err(|_| self.refuse(pc, "program too long"))?);
            pc += if raw.opcode == isa::LD_IMM64 { 2 } else { 1 };
        }
        let mut code = Vec::with_capacity(slots.len());
        let mut pc = 0;
        while let Some(&raw) = raws.get(pc) {
            code.push(self.insn(pc, raw, &index)?);
            pc += if raw.opcode == isa::LD_IMM64 { 2 } else { 1 };
        }
        match code.last().map(|insn| insn.op) {
            Some(Op::Exit | Op::Ja) => {}
            _ => return Err(self.refuse(raws.len().saturating_sub(1), "the program runs off its end")),
        }
        Ok(DecodedProgram { code: code.into(), slots: slots.into() })
    }

    fn target(&self, pc: usize, delta: i64, index: &[u32]) -> Result<u32, LoadError> {
        i64::try_from(pc)
            .ok()
            .map(|pc| pc + 1 + delta)
            .and_then(|to| usize::try_from(to).ok())
            .and_then(|to| index.get(to).copied())
            .filter(|&to| to != u32::MAX)
            .ok_or_else(|| self.refuse(pc, "jump to no instruction"))
    }

    fn insn(&self, pc: usize, raw: Raw, index: &[u32]) -> Result<Insn, LoadError> {
        if raw.dst > 10 || (raw.src > 10) {
            return Err(self.refuse(pc, "no such register"));
        }
        let insn = Insn {
            op: Op::Nop,
            dst: raw.dst,
            src: raw.src,
            off: i32::from(raw.off).cast_unsigned(),
            imm: i64::from(raw.imm).cast_unsigned(),
        };
        match raw.class() {
            class::ALU | class::ALU64 => {
                let op = alu_op(raw).ok_or_else(|| self.refuse(pc, "unknown arithmetic"))?;
                self.writes(pc, raw.dst)?;
                Ok(Insn { op, ..insn })
            }
            class::JMP | class::JMP32 => self.jump(pc, raw, insn, index),
            class::LDX => {
                let op = load_op(raw).ok_or_else(|| self.refuse(pc, "unknown load"))?;
                self.writes(pc, raw.dst)?;
                Ok(in_frame(Insn { op, ..insn }, raw.src, raw))
            }
            class::ST => {
                let op = store_op(raw).ok_or_else(|| self.refuse(pc, "unknown store"))?;
                Ok(in_frame(Insn { op, ..insn }, raw.dst, raw))
            }
            class::STX if raw.opcode & 0xe0 == mode::ATOMIC => self.atomic(pc, raw, insn),
            class::STX => {
                let op = store_op(raw).ok_or_else(|| self.refuse(pc, "unknown store"))?;
                Ok(in_frame(Insn { op, ..insn }, raw.dst, raw))
            }
            _ if raw.opcode == isa::LD_IMM64 => self.constant(pc, raw, insn),
            _ => Err(self.refuse(pc, "packet loads of old are not supported")),
        }
    }

    fn writes(&self, pc: usize, register: u8) -> Result<(), LoadError> {
        if register == 10 { Err(self.refuse(pc, "r10 is read-only")) } else { Ok(()) }
    }

    fn atomic(&self, pc: usize, raw: Raw, insn: Insn) -> Result<Insn, LoadError> {
        use isa::atomic::{ADD, AND, CMPXCHG, FETCH, OR, XCHG, XOR};
        let known = matches!(raw.imm & !FETCH, ADD | OR | AND | XOR) || matches!(raw.imm, XCHG | CMPXCHG);
        let op = match raw.opcode & 0x18 {
            size::W => Op::AtomicW,
            size::DW => Op::AtomicD,
            _ => return Err(self.refuse(pc, "atomic of an odd size")),
        };
        if !known {
            return Err(self.refuse(pc, "unknown atomic"));
        }
        if raw.imm & FETCH != 0 && raw.imm != CMPXCHG {
            self.writes(pc, raw.src)?;
        }
        Ok(Insn { op, ..insn })
    }

    fn constant(&self, pc: usize, raw: Raw, insn: Insn) -> Result<Insn, LoadError> {
        self.writes(pc, raw.dst)?;
        let high = match self.program.code.get(pc + 1) {
            Some(second) if second.opcode == 0 => second.imm,
            _ => return Err(self.refuse(pc, "half of an ld_imm64")),
        };
        let low = u64::from(raw.imm.cast_unsigned());
        let offset = high.cast_unsigned();
        let imm = match (raw.src, MapRef::from_imm(raw.imm)) {
            (0, _) => low | u64::from(offset) << 32,
            (pseudo::MAP_FD, Some(MapRef::Map(map))) if map < self.maps => address::handle(map),
            (pseudo::MAP_VALUE, Some(MapRef::Map(map))) if map < self.maps => {
                address::tag(address::map_region(self.rodata, map), 0, offset)
            }
            (pseudo::MAP_VALUE, Some(MapRef::Rodata(section))) if section < self.rodata => {
                address::tag(address::rodata_region(section), 0, offset)
            }
            _ => return Err(self.refuse(pc, "unsupported form of ld_imm64")),
        };
        Ok(Insn { op: Op::Const, imm, ..insn })
    }

    fn jump(&self, pc: usize, raw: Raw, insn: Insn, index: &[u32]) -> Result<Insn, LoadError> {
        let wide = raw.class() == class::JMP;
        match (raw.opcode & 0xf0, wide) {
            (jmp::EXIT, true) => Ok(Insn { op: Op::Exit, ..insn }),
            (jmp::CALL, true) if raw.opcode & X == 0 => self.call(pc, raw, insn, index),
            (jmp::JA, _) if raw.opcode & X == 0 => {
                let delta = if wide { i64::from(raw.off) } else { i64::from(raw.imm) };
                Ok(Insn { op: Op::Ja, off: self.target(pc, delta, index)?, ..insn })
            }
            _ => {
                let op = jump_op(raw).ok_or_else(|| self.refuse(pc, "unknown jump"))?;
                Ok(Insn { op, off: self.target(pc, i64::from(raw.off), index)?, ..insn })
            }
        }
    }

    fn call(&self, pc: usize, raw: Raw, insn: Insn, index: &[u32]) -> Result<Insn, LoadError> {
        match raw.src {
            pseudo::CALL => Ok(Insn { op: Op::CallLocal, off: self.target(pc, i64::from(raw.imm), index)?, ..insn }),
            0 => {
                let helper = Helper::from_number(raw.imm).ok_or_else(|| LoadError::UnknownHelper {
                    program: self.program.name.clone(),
                    pc,
                    helper: raw.imm,
                })?;
                let place = Helper::ALL.iter().position(|&other| other == helper).and_then(|at| u8::try_from(at).ok());
                let op = if helper == Helper::MapLookup {
                    Op::CallLookup
                } else if helper == Helper::TailCall {
                    Op::CallTail
                } else {
                    Op::CallHelper
                };
                Ok(Insn { op, dst: place.unwrap_or(u8::MAX), ..insn })
            }
            _ => Err(self.refuse(pc, "call of a kernel function")),
        }
    }
}

/// Turns an access relative to r10 that lies within the frame into its unchecked form.
fn in_frame(insn: Insn, base: u8, raw: Raw) -> Insn {
    const PAIRS: [(Op, Op); 12] = [
        (Op::LoadB, Op::FrameLoadB),
        (Op::LoadH, Op::FrameLoadH),
        (Op::LoadW, Op::FrameLoadW),
        (Op::LoadD, Op::FrameLoadD),
        (Op::StoreB, Op::FrameStoreB),
        (Op::StoreH, Op::FrameStoreH),
        (Op::StoreW, Op::FrameStoreW),
        (Op::StoreD, Op::FrameStoreD),
        (Op::StoreKB, Op::FrameStoreKB),
        (Op::StoreKH, Op::FrameStoreKH),
        (Op::StoreKW, Op::FrameStoreKW),
        (Op::StoreKD, Op::FrameStoreKD),
    ];
    let frame = i32::try_from(isa::FRAME).unwrap_or(0);
    let bytes = i32::try_from(size::bytes(raw.opcode)).unwrap_or(0);
    let off = i32::from(raw.off) + frame;
    if base != 10 || off < 0 || off + bytes > frame {
        return insn;
    }
    let Some(&(_, op)) = PAIRS.iter().find(|(general, _)| *general == insn.op) else { return insn };
    Insn { op, off: off.cast_unsigned(), ..insn }
}

fn load_op(raw: Raw) -> Option<Op> {
    Some(match (raw.opcode & 0xe0, raw.opcode & 0x18) {
        (mode::MEM, size::B) => Op::LoadB,
        (mode::MEM, size::H) => Op::LoadH,
        (mode::MEM, size::W) => Op::LoadW,
        (mode::MEM, size::DW) => Op::LoadD,
        (mode::MEMSX, size::B) => Op::LoadSb,
        (mode::MEMSX, size::H) => Op::LoadSh,
        (mode::MEMSX, size::W) => Op::LoadSw,
        _ => return None,
    })
}

fn store_op(raw: Raw) -> Option<Op> {
    let immediate = raw.class() == class::ST;
    if raw.opcode & 0xe0 != mode::MEM {
        return None;
    }
    Some(match (immediate, raw.opcode & 0x18) {
        (true, size::B) => Op::StoreKB,
        (true, size::H) => Op::StoreKH,
        (true, size::W) => Op::StoreKW,
        (true, _) => Op::StoreKD,
        (false, size::B) => Op::StoreB,
        (false, size::H) => Op::StoreH,
        (false, size::W) => Op::StoreW,
        (false, _) => Op::StoreD,
    })
}

/// Picks the variant of an operation by width and operand.
macro_rules! pick {
    ($wide:expr, $register:expr, $k64:ident, $x64:ident, $k32:ident, $x32:ident) => {
        match ($wide, $register) {
            (true, false) => Op::$k64,
            (true, true) => Op::$x64,
            (false, false) => Op::$k32,
            (false, true) => Op::$x32,
        }
    };
}

fn alu_op(raw: Raw) -> Option<Op> {
    let wide = raw.class() == class::ALU64;
    let register = raw.opcode & X != 0;
    let op = raw.opcode & 0xf0;
    if raw.off != 0 && !matches!(op, alu::DIV | alu::MOD | alu::MOV) {
        return None;
    }
    Some(match (op, raw.off) {
        (alu::ADD, _) => pick!(wide, register, Add64K, Add64X, Add32K, Add32X),
        (alu::SUB, _) => pick!(wide, register, Sub64K, Sub64X, Sub32K, Sub32X),
        (alu::MUL, _) => pick!(wide, register, Mul64K, Mul64X, Mul32K, Mul32X),
        (alu::DIV, 0) => pick!(wide, register, Div64K, Div64X, Div32K, Div32X),
        (alu::DIV, 1) => pick!(wide, register, Sdiv64K, Sdiv64X, Sdiv32K, Sdiv32X),
        (alu::OR, _) => pick!(wide, register, Or64K, Or64X, Or32K, Or32X),
        (alu::AND, _) => pick!(wide, register, And64K, And64X, And32K, And32X),
        (alu::LSH, _) => pick!(wide, register, Lsh64K, Lsh64X, Lsh32K, Lsh32X),
        (alu::RSH, _) => pick!(wide, register, Rsh64K, Rsh64X, Rsh32K, Rsh32X),
        (alu::MOD, 0) => pick!(wide, register, Mod64K, Mod64X, Mod32K, Mod32X),
        (alu::MOD, 1) => pick!(wide, register, Smod64K, Smod64X, Smod32K, Smod32X),
        (alu::XOR, _) => pick!(wide, register, Xor64K, Xor64X, Xor32K, Xor32X),
        (alu::MOV, 0) => pick!(wide, register, Mov64K, Mov64X, Mov32K, Mov32X),
        (alu::ARSH, _) => pick!(wide, register, Arsh64K, Arsh64X, Arsh32K, Arsh32X),
        (alu::MOV, 8) if register => {
            if wide {
                Op::Sext8
            } else {
                Op::Sext8W
            }
        }
        (alu::MOV, 16) if register => {
            if wide {
                Op::Sext16
            } else {
                Op::Sext16W
            }
        }
        (alu::MOV, 32) if register && wide => Op::Sext32,
        (alu::NEG, _) if !register => {
            if wide {
                Op::Neg64
            } else {
                Op::Neg32
            }
        }
        // 0xd7 swaps always; 0xdc swaps (to big endian), 0xd4 cuts off (to little endian) on this little-endian machine.
        (alu::END, _) => match (wide, register, raw.imm) {
            (true, false, 16) | (false, true, 16) => Op::Swap16,
            (true, false, 32) | (false, true, 32) => Op::Swap32,
            (true, false, 64) | (false, true, 64) => Op::Swap64,
            (false, false, 16) => Op::Low16,
            (false, false, 32) => Op::Low32,
            (false, false, 64) => Op::Nop,
            _ => return None,
        },
        _ => return None,
    })
}

fn jump_op(raw: Raw) -> Option<Op> {
    let wide = raw.class() == class::JMP;
    let register = raw.opcode & X != 0;
    Some(match raw.opcode & 0xf0 {
        jmp::JEQ => pick!(wide, register, Jeq64K, Jeq64X, Jeq32K, Jeq32X),
        jmp::JGT => pick!(wide, register, Jgt64K, Jgt64X, Jgt32K, Jgt32X),
        jmp::JGE => pick!(wide, register, Jge64K, Jge64X, Jge32K, Jge32X),
        jmp::JSET => pick!(wide, register, Jset64K, Jset64X, Jset32K, Jset32X),
        jmp::JNE => pick!(wide, register, Jne64K, Jne64X, Jne32K, Jne32X),
        jmp::JSGT => pick!(wide, register, Jsgt64K, Jsgt64X, Jsgt32K, Jsgt32X),
        jmp::JSGE => pick!(wide, register, Jsge64K, Jsge64X, Jsge32K, Jsge32X),
        jmp::JLT => pick!(wide, register, Jlt64K, Jlt64X, Jlt32K, Jlt32X),
        jmp::JLE => pick!(wide, register, Jle64K, Jle64X, Jle32K, Jle32X),
        jmp::JSLT => pick!(wide, register, Jslt64K, Jslt64X, Jslt32K, Jslt32X),
        jmp::JSLE => pick!(wide, register, Jsle64K, Jsle64X, Jsle32K, Jsle32X),
        _ => return None,
    })
}
