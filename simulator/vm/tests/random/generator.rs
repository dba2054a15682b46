//! Random programs the kernel's verifier accepts: arithmetic, jumps, stack, v4 instructions, atomics, a local call.
//!
//! A program gets the address of [`CONTEXT`] bytes in r1, fills registers and stack with random numbers, does random
//! things to them, and writes all of them to the context. So one wrong bit anywhere shows.

use simulator_vm::isa::{Raw, X, alu, atomic, class, jmp, mode, size};

const SLOTS: i16 = 14;
/// Ten registers and the stack slots.
pub const CONTEXT: usize = 8 * (10 + 14);

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }

    /// Numbers at the edges more often than others.
    fn number(&mut self) -> u64 {
        match self.below(4) {
            0 => self.pick(&[0, 1, 2, u64::MAX, 1 << 31, 1 << 63, 0x7fff_ffff, 0xffff_ffff, 1 << 32, i64::MAX as u64]),
            1 => self.below(256),
            _ => self.next(),
        }
    }

    fn imm(&mut self) -> i32 {
        self.number() as u32 as i32
    }
}

/// Which instructions appear.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mix {
    /// Up to cpu v3, without atomics.
    V3,
    /// Everything.
    V4,
}

const fn insn(opcode: u8, dst: u8, src: u8, off: i16, imm: i32) -> Raw {
    Raw { opcode, dst, src, off, imm }
}

fn constant(out: &mut Vec<Raw>, dst: u8, value: u64) {
    out.push(insn(0x18, dst, 0, 0, value as u32 as i32));
    out.push(insn(0, 0, 0, 0, (value >> 32) as u32 as i32));
}

fn arithmetic(random: &mut Random, mix: Mix, registers: &[u8]) -> Raw {
    let (dst, src) = (random.pick(registers), random.pick(registers));
    let wide = random.below(2) == 0;
    let class = if wide { class::ALU64 } else { class::ALU };
    let bits = if wide { 64 } else { 32 };
    let op = random.pick(&[
        alu::ADD,
        alu::SUB,
        alu::MUL,
        alu::DIV,
        alu::OR,
        alu::AND,
        alu::LSH,
        alu::RSH,
        alu::MOD,
        alu::XOR,
        alu::MOV,
        alu::ARSH,
        alu::NEG,
        alu::END,
    ]);
    let register = random.below(2) == 0;
    let mut imm = random.imm();
    let mut off = 0;
    match op {
        alu::NEG => return insn(class | op, dst, 0, 0, 0),
        alu::END => {
            let imm = random.pick(&[16, 32, 64]);
            return match (mix, random.below(3)) {
                (Mix::V4, 0) => insn(class::ALU64 | op, dst, 0, 0, imm),
                (_, 1) => insn(class::ALU | op | X, dst, 0, 0, imm),
                _ => insn(class::ALU | op, dst, 0, 0, imm),
            };
        }
        alu::LSH | alu::RSH | alu::ARSH => imm = i32::try_from(random.below(bits)).unwrap(),
        alu::DIV | alu::MOD => {
            if imm == 0 {
                imm = 3;
            }
            if mix == Mix::V4 && random.below(2) == 0 {
                off = 1;
            }
        }
        alu::MOV if mix == Mix::V4 && register && random.below(2) == 0 => {
            off = if wide { random.pick(&[8, 16, 32]) } else { random.pick(&[8, 16]) };
        }
        _ => {}
    }
    if register { insn(class | op | X, dst, src, off, 0) } else { insn(class | op, dst, 0, off, imm) }
}

/// A place in the slots, aligned to the size.
fn place(random: &mut Random, size: u8) -> i16 {
    let bytes = size::bytes(size) as u64;
    let at = random.below(u64::from(SLOTS.unsigned_abs()) * 8 / bytes) * bytes;
    -8 * SLOTS + i16::try_from(at).unwrap()
}

fn memory(random: &mut Random, mix: Mix, registers: &[u8]) -> Vec<Raw> {
    let size = random.pick(&[size::B, size::H, size::W, size::DW]);
    let off = place(random, size);
    let register = random.pick(registers);
    match random.below(if mix == Mix::V4 { 5 } else { 3 }) {
        0 => vec![insn(class::LDX | mode::MEM | size, register, 10, off, 0)],
        1 => vec![insn(class::STX | mode::MEM | size, 10, register, off, 0)],
        2 => vec![insn(class::ST | mode::MEM | size, 10, 0, off, random.imm())],
        3 if size != size::DW => vec![insn(class::LDX | mode::MEMSX | size, register, 10, off, 0)],
        _ => {
            let size = random.pick(&[size::W, size::DW]);
            let off = place(random, size);
            let operation = random.pick(&[
                atomic::ADD,
                atomic::OR,
                atomic::AND,
                atomic::XOR,
                atomic::ADD | atomic::FETCH,
                atomic::OR | atomic::FETCH,
                atomic::AND | atomic::FETCH,
                atomic::XOR | atomic::FETCH,
                atomic::XCHG,
                atomic::CMPXCHG,
            ]);
            let mut out = vec![insn(class::STX | mode::ATOMIC | size, 10, register, off, operation)];
            if operation == atomic::CMPXCHG && size == size::W {
                // Linux on x86-64 keeps the upper half of r0 when the comparison succeeds: known, so kept out.
                out.push(insn(class::ALU | alu::MOV | X, 0, 0, 0, 0));
            }
            out
        }
    }
}

fn conditional(random: &mut Random, registers: &[u8]) -> Raw {
    let op = random.pick(&[
        jmp::JEQ,
        jmp::JGT,
        jmp::JGE,
        jmp::JSET,
        jmp::JNE,
        jmp::JSGT,
        jmp::JSGE,
        jmp::JLT,
        jmp::JLE,
        jmp::JSLT,
        jmp::JSLE,
    ]);
    let class = random.pick(&[class::JMP, class::JMP32]);
    let (dst, src) = (random.pick(registers), random.pick(registers));
    if random.below(2) == 0 { insn(class | op | X, dst, src, 0, 0) } else { insn(class | op, dst, 0, 0, random.imm()) }
}

/// `length` groups of instructions over some registers; jumps go forward within them.
fn body(random: &mut Random, mix: Mix, registers: &[u8], length: u64, call: Option<&mut Vec<usize>>) -> Vec<Raw> {
    let mut groups: Vec<Vec<Raw>> = Vec::new();
    let mut jumps = Vec::new();
    let mut call_group = None;
    for index in 0..length {
        let group = match random.below(10) {
            0..=5 => vec![arithmetic(random, mix, registers)],
            6 | 7 => memory(random, mix, registers),
            8 => {
                jumps.push((groups.len(), 1 + random.below(6)));
                vec![conditional(random, registers)]
            }
            _ if mix == Mix::V4 => vec![insn(class::JMP32 | jmp::JA, 0, 0, 0, 0)],
            _ => vec![insn(class::JMP | jmp::JA, 0, 0, 0, 0)],
        };
        groups.push(group);
        if call.is_some() && index == length / 2 {
            // r1 to r5 are gone after a call.
            let mut group = vec![insn(class::JMP | jmp::CALL, 0, 1, 0, 0)];
            for register in 1..=5 {
                constant(&mut group, register, random.number());
            }
            call_group = Some(groups.len());
            groups.push(group);
        }
    }
    let starts: Vec<usize> = groups
        .iter()
        .scan(0, |at, group| {
            let start = *at;
            *at += group.len();
            Some(start)
        })
        .collect();
    let end: usize = groups.iter().map(Vec::len).sum();
    for (group, distance) in jumps {
        let to = group + usize::try_from(distance).unwrap();
        let target = starts.get(to).copied().unwrap_or(end);
        groups[group][0].off = i16::try_from(target - starts[group] - 1).unwrap();
    }
    if let (Some(calls), Some(group)) = (call, call_group) {
        calls.push(starts[group]);
    }
    groups.concat()
}

/// One program.
pub fn program(seed: u64, mix: Mix) -> Vec<Raw> {
    let random = &mut Random(seed);
    let all: Vec<u8> = (0..10).collect();
    let mut out = vec![insn(class::STX | mode::MEM | size::DW, 10, 1, -208, 0)];
    for slot in 1..=SLOTS {
        constant(&mut out, 0, random.number());
        out.push(insn(class::STX | mode::MEM | size::DW, 10, 0, -8 * slot, 0));
    }
    for register in 0..10 {
        constant(&mut out, register, random.number());
    }
    let mut calls = Vec::new();
    let wants_call = random.below(3) == 0;
    let length = 10 + random.below(40);
    let start = out.len();
    out.extend(body(random, mix, &all, length, wants_call.then_some(&mut calls)));
    for register in 0..10u8 {
        out.push(insn(class::STX | mode::MEM | size::DW, 10, register, -200 + 8 * i16::from(register), 0));
    }
    out.push(insn(class::LDX | mode::MEM | size::DW, 1, 10, -208, 0));
    for word in 0..10 + SLOTS {
        let from = if word < 10 { -200 + 8 * word } else { -8 * (word - 9) };
        out.push(insn(class::LDX | mode::MEM | size::DW, 2, 10, from, 0));
        out.push(insn(class::STX | mode::MEM | size::DW, 1, 2, 8 * word, 0));
    }
    out.push(insn(class::ALU64 | alu::MOV, 0, 0, 0, 0));
    out.push(insn(0x95, 0, 0, 0, 0));
    if let Some(&call) = calls.first() {
        let call = start + call;
        out[call].imm = i32::try_from(out.len() - call - 1).unwrap();
        // The function: its own stack, all of r0 to r9.
        for slot in 1..=SLOTS {
            out.push(insn(class::ST | mode::MEM | size::DW, 10, 0, -8 * slot, random.imm()));
        }
        for register in [0, 6, 7, 8, 9] {
            constant(&mut out, register, random.number());
        }
        let length = 5 + random.below(15);
        out.extend(body(random, mix, &all, length, None));
        out.push(insn(0x95, 0, 0, 0, 0));
    }
    out
}
