//! The instruction format, as RFC 9669 and linux/bpf.h number it. Every other module works on [`Raw`].

/// One 8-byte instruction slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raw {
    /// Opcode byte: class in the low three bits.
    pub opcode: u8,
    /// Destination register.
    pub dst: u8,
    /// Source register, or a pseudo form of `ld_imm64` and `call`.
    pub src: u8,
    /// Signed offset: of memory, of a jump, or a variant of an operation.
    pub off: i16,
    /// Immediate.
    pub imm: i32,
}

impl Raw {
    /// Bytes of a slot.
    pub const SIZE: usize = 8;

    /// From the little-endian encoding.
    #[must_use]
    pub const fn from_bytes(b: [u8; 8]) -> Self {
        Self {
            opcode: b[0],
            dst: b[1] & 0xf,
            src: b[1] >> 4,
            off: i16::from_le_bytes([b[2], b[3]]),
            imm: i32::from_le_bytes([b[4], b[5], b[6], b[7]]),
        }
    }

    /// To the little-endian encoding.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 8] {
        let off = self.off.to_le_bytes();
        let imm = self.imm.to_le_bytes();
        [self.opcode, (self.src << 4) | (self.dst & 0xf), off[0], off[1], imm[0], imm[1], imm[2], imm[3]]
    }

    /// Splits a program into slots; `None` if its length is no multiple of eight.
    #[must_use]
    pub fn parse(code: &[u8]) -> Option<Vec<Self>> {
        let (slots, rest) = code.as_chunks::<8>();
        rest.is_empty().then(|| slots.iter().copied().map(Self::from_bytes).collect())
    }

    /// Class: the low three bits of the opcode.
    #[must_use]
    pub const fn class(self) -> u8 {
        self.opcode & 7
    }
}

/// Classes.
pub mod class {
    pub const LD: u8 = 0;
    pub const LDX: u8 = 1;
    pub const ST: u8 = 2;
    pub const STX: u8 = 3;
    pub const ALU: u8 = 4;
    pub const JMP: u8 = 5;
    pub const JMP32: u8 = 6;
    pub const ALU64: u8 = 7;
}

/// Operations of the two ALU classes: the high four bits of the opcode.
pub mod alu {
    pub const ADD: u8 = 0x00;
    pub const SUB: u8 = 0x10;
    pub const MUL: u8 = 0x20;
    pub const DIV: u8 = 0x30;
    pub const OR: u8 = 0x40;
    pub const AND: u8 = 0x50;
    pub const LSH: u8 = 0x60;
    pub const RSH: u8 = 0x70;
    pub const NEG: u8 = 0x80;
    pub const MOD: u8 = 0x90;
    pub const XOR: u8 = 0xa0;
    pub const MOV: u8 = 0xb0;
    pub const ARSH: u8 = 0xc0;
    pub const END: u8 = 0xd0;
}

/// Operations of the two jump classes.
pub mod jmp {
    pub const JA: u8 = 0x00;
    pub const JEQ: u8 = 0x10;
    pub const JGT: u8 = 0x20;
    pub const JGE: u8 = 0x30;
    pub const JSET: u8 = 0x40;
    pub const JNE: u8 = 0x50;
    pub const JSGT: u8 = 0x60;
    pub const JSGE: u8 = 0x70;
    pub const CALL: u8 = 0x80;
    pub const EXIT: u8 = 0x90;
    pub const JLT: u8 = 0xa0;
    pub const JLE: u8 = 0xb0;
    pub const JSLT: u8 = 0xc0;
    pub const JSLE: u8 = 0xd0;
}

/// Sizes of memory operations: bits 3 and 4 of the opcode.
pub mod size {
    pub const W: u8 = 0x00;
    pub const H: u8 = 0x08;
    pub const B: u8 = 0x10;
    pub const DW: u8 = 0x18;

    /// Bytes of a size.
    #[must_use]
    pub const fn bytes(size: u8) -> usize {
        match size & 0x18 {
            W => 4,
            H => 2,
            B => 1,
            _ => 8,
        }
    }
}

/// Modes of memory operations: the high three bits of the opcode.
pub mod mode {
    pub const IMM: u8 = 0x00;
    pub const MEM: u8 = 0x60;
    pub const MEMSX: u8 = 0x80;
    pub const ATOMIC: u8 = 0xc0;
}

/// Operations of atomics: the immediate.
pub mod atomic {
    pub const ADD: i32 = 0x00;
    pub const OR: i32 = 0x40;
    pub const AND: i32 = 0x50;
    pub const XOR: i32 = 0xa0;
    /// Or-ed to the four above: the old value goes to the source register.
    pub const FETCH: i32 = 0x01;
    pub const XCHG: i32 = 0xe1;
    pub const CMPXCHG: i32 = 0xf1;
}

/// Pseudo source registers of `ld_imm64` and `call`.
pub mod pseudo {
    /// `ld_imm64`: a map's handle.
    pub const MAP_FD: u8 = 1;
    /// `ld_imm64`: the address of a map's value, at the offset in the second slot.
    pub const MAP_VALUE: u8 = 2;
    /// `call`: of a function in the program.
    pub const CALL: u8 = 1;
}

/// Source operand is a register.
pub const X: u8 = 0x08;
/// `ld_imm64`.
pub const LD_IMM64: u8 = 0x18;
/// `exit`.
pub const EXIT: u8 = 0x95;
/// `call`.
pub const CALL: u8 = 0x85;
/// Frames a program may have at once.
pub const MAX_FRAMES: usize = 8;
/// Bytes of a frame.
pub const FRAME: usize = 512;
/// Tail calls of one run.
pub const MAX_TAIL_CALLS: u32 = 33;
