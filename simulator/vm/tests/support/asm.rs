//! Instructions by name, for programs written in tests.
#![allow(dead_code, clippy::allow_attributes, reason = "every test uses another part")]

use simulator_vm::Helper;
pub use simulator_vm::isa::size::{B, DW, H, W};
use simulator_vm::isa::{Raw, X, alu, class, jmp, mode};

pub const fn insn(opcode: u8, dst: u8, src: u8, off: i16, imm: i32) -> Raw {
    Raw { opcode, dst, src, off, imm }
}

/// dst = imm
pub const fn mov(dst: u8, imm: i32) -> Raw {
    insn(class::ALU64 | alu::MOV, dst, 0, 0, imm)
}

/// dst = src
pub const fn copy(dst: u8, src: u8) -> Raw {
    insn(class::ALU64 | alu::MOV | X, dst, src, 0, 0)
}

/// dst += imm
pub const fn add(dst: u8, imm: i32) -> Raw {
    insn(class::ALU64 | alu::ADD, dst, 0, 0, imm)
}

/// dst = *(size *)(src + off)
pub const fn load(size: u8, dst: u8, src: u8, off: i16) -> Raw {
    insn(class::LDX | mode::MEM | size, dst, src, off, 0)
}

/// *(size *)(dst + off) = src
pub const fn store(size: u8, dst: u8, off: i16, src: u8) -> Raw {
    insn(class::STX | mode::MEM | size, dst, src, off, 0)
}

/// *(size *)(dst + off) = imm
pub const fn set(size: u8, dst: u8, off: i16, imm: i32) -> Raw {
    insn(class::ST | mode::MEM | size, dst, 0, off, imm)
}

/// if dst op imm goto +off
pub const fn jump(op: u8, dst: u8, imm: i32, off: i16) -> Raw {
    insn(class::JMP | op, dst, 0, off, imm)
}

pub fn call(helper: Helper) -> Raw {
    insn(class::JMP | jmp::CALL, 0, 0, 0, i32::try_from(helper.number()).unwrap_or(-1))
}

/// call of a function `off` instructions behind the next
pub const fn call_local(off: i32) -> Raw {
    insn(class::JMP | jmp::CALL, 0, 1, 0, off)
}

pub const fn exit() -> Raw {
    insn(class::JMP | jmp::EXIT, 0, 0, 0, 0)
}

/// dst = 64-bit number
pub fn wide(dst: u8, value: u64) -> [Raw; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [insn(0x18, dst, 0, 0, i32::from_le_bytes([a, b, c, d])), insn(0, 0, 0, 0, i32::from_le_bytes([e, f, g, h]))]
}

/// dst = map by number
pub const fn map(dst: u8, number: i32) -> [Raw; 2] {
    [insn(0x18, dst, 1, 0, number), insn(0, 0, 0, 0, 0)]
}
