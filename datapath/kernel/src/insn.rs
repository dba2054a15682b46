//! eBPF instructions and just enough of an assembler for generated subprograms and tests.
//!
//! Source: RFC 9669 and `include/uapi/linux/bpf.h`. Jump offsets count instruction slots from the next instruction.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// One 64-bit instruction slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Insn {
    /// Opcode.
    pub code: u8,
    /// Source register << 4 | destination register (little-endian machines).
    pub regs: u8,
    /// Offset.
    pub off: i16,
    /// Immediate.
    pub imm: i32,
}

/// Width of a memory access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// 8 bits.
    Byte,
    /// 16 bits.
    Half,
    /// 32 bits.
    Word,
    /// 64 bits.
    Double,
}

impl Size {
    const fn bits(self) -> u8 {
        match self {
            Self::Word => 0x00,
            Self::Half => 0x08,
            Self::Byte => 0x10,
            Self::Double => 0x18,
        }
    }
}

/// `BPF_PSEUDO_MAP_FD`
pub const PSEUDO_MAP_FD: u8 = 1;
/// `BPF_PSEUDO_MAP_VALUE`
pub const PSEUDO_MAP_VALUE: u8 = 2;
/// `BPF_PSEUDO_CALL`
pub const PSEUDO_CALL: u8 = 1;
/// `BPF_JMP | BPF_CALL`
pub const CALL: u8 = 0x85;
/// `BPF_LD | BPF_DW | BPF_IMM`: takes two slots.
pub const LD_IMM64: u8 = 0x18;
/// `BPF_JMP | BPF_JEQ | BPF_K`
pub const JEQ_IMM: u8 = 0x15;
/// `BPF_JMP | BPF_JNE | BPF_K`
pub const JNE_IMM: u8 = 0x55;
/// `BPF_JMP | BPF_JLT | BPF_K`: unsigned.
pub const JLT_IMM: u8 = 0xa5;
/// `BPF_JMP | BPF_JGT | BPF_X`: unsigned.
pub const JGT_REG: u8 = 0x2d;
/// `BPF_JMP | BPF_JNE | BPF_X`
pub const JNE_REG: u8 = 0x5d;
/// `BPF_ALU64 | BPF_ADD | BPF_K`
pub const ADD_IMM: u8 = 0x07;
/// `BPF_ALU64 | BPF_ADD | BPF_X`
pub const ADD_REG: u8 = 0x0f;
/// `BPF_ALU64 | BPF_AND | BPF_K`
pub const AND_IMM: u8 = 0x57;
/// `BPF_ALU64 | BPF_LSH | BPF_K`
pub const LSH_IMM: u8 = 0x67;
/// `BPF_ALU64 | BPF_MOV | BPF_K`
pub const MOV_IMM: u8 = 0xb7;
/// `BPF_ALU64 | BPF_MOV | BPF_X`
pub const MOV_REG: u8 = 0xbf;

impl Insn {
    /// Any instruction.
    #[must_use]
    pub const fn new(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Self {
        Self { code, regs: src << 4 | (dst & 0xf), off, imm }
    }

    /// Destination register.
    #[must_use]
    pub const fn dst(self) -> u8 {
        self.regs & 0xf
    }

    /// Source register.
    #[must_use]
    pub const fn src(self) -> u8 {
        self.regs >> 4
    }

    /// `dst = imm`, sign-extended.
    #[must_use]
    pub const fn mov(dst: u8, imm: i32) -> Self {
        Self::new(MOV_IMM, dst, 0, 0, imm)
    }

    /// `dst = src`
    #[must_use]
    pub const fn mov_reg(dst: u8, src: u8) -> Self {
        Self::new(MOV_REG, dst, src, 0, 0)
    }

    /// 64-bit `dst op= imm`.
    #[must_use]
    pub const fn alu(code: u8, dst: u8, imm: i32) -> Self {
        Self::new(code, dst, 0, 0, imm)
    }

    /// `dst = *(src + off)`, zero-extended.
    #[must_use]
    pub const fn load(size: Size, dst: u8, src: u8, off: i16) -> Self {
        Self::new(0x61 | size.bits(), dst, src, off, 0)
    }

    /// `*(dst + off) = src`
    #[must_use]
    pub const fn store(size: Size, dst: u8, off: i16, src: u8) -> Self {
        Self::new(0x63 | size.bits(), dst, src, off, 0)
    }

    /// `*(dst + off) = imm`
    #[must_use]
    pub const fn store_imm(size: Size, dst: u8, off: i16, imm: i32) -> Self {
        Self::new(0x62 | size.bits(), dst, 0, off, imm)
    }

    /// Jump if `dst op imm`.
    #[must_use]
    pub const fn jump_imm(code: u8, dst: u8, imm: i32, off: i16) -> Self {
        Self::new(code, dst, 0, off, imm)
    }

    /// Jump if `dst op src`.
    #[must_use]
    pub const fn jump_reg(code: u8, dst: u8, src: u8, off: i16) -> Self {
        Self::new(code, dst, src, off, 0)
    }

    /// Jump.
    #[must_use]
    pub const fn jump(off: i16) -> Self {
        Self::new(0x05, 0, 0, off, 0)
    }

    /// Call a helper by number.
    #[must_use]
    pub const fn call(helper: i32) -> Self {
        Self::new(CALL, 0, 0, 0, helper)
    }

    /// Call the subprogram that begins `offset` slots after the next instruction.
    #[must_use]
    pub const fn call_local(offset: i32) -> Self {
        Self::new(CALL, 0, PSEUDO_CALL, 0, offset)
    }

    /// Return r0.
    #[must_use]
    pub const fn exit() -> Self {
        Self::new(0x95, 0, 0, 0, 0)
    }

    /// `dst = map`; two slots.
    #[must_use]
    pub const fn load_map(dst: u8, fd: i32) -> [Self; 2] {
        [Self::new(LD_IMM64, dst, PSEUDO_MAP_FD, 0, fd), Self::new(0, 0, 0, 0, 0)]
    }

    /// `dst = address of byte `offset` of the value of a one-entry array`; two slots.
    #[must_use]
    pub const fn load_map_value(dst: u8, fd: i32, offset: i32) -> [Self; 2] {
        [Self::new(LD_IMM64, dst, PSEUDO_MAP_VALUE, 0, fd), Self::new(0, 0, 0, 0, offset)]
    }

    /// The helper's number, if this calls one.
    #[must_use]
    pub const fn helper(self) -> Option<i32> {
        if self.code == CALL && self.src() == 0 { Some(self.imm) } else { None }
    }
}
