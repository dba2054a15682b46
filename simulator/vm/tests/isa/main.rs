//! Our own cases for every family of instructions, in every lane. Expected values are worked out by hand from RFC 9669.
#![expect(clippy::unwrap_used, reason = "a failing helper of a test is a failing test")]

#[path = "../support/asm.rs"]
#[allow(unused_imports, reason = "every test uses another part")]
mod asm;

use std::sync::Arc;

use asm::{B, DW, H, W, call_local, copy, exit, insn, load, mov, set, store, wide};
use simulator_vm::isa::{Raw, X, alu, atomic, class, jmp, mode};
use simulator_vm::{Checked, Env, Lane, Object, ProgramId, Rbpf};

/// r0 after a run in each lane; all lanes must leave the same memory.
#[track_caller]
fn check(what: &str, code: &[Raw], memory: &[u8], expected: u64) {
    let object = Arc::new(Object::assemble(vec![("case", code.to_vec())], vec![]).unwrap());
    let mut left = Vec::new();
    let mut lane = |name: &str, run: &mut dyn FnMut(&mut [u8]) -> u64| {
        let mut memory = memory.to_vec();
        let r0 = run(&mut memory);
        assert_eq!(r0, expected, "{what}, {name}: {r0:#x}, not {expected:#x}");
        left.push(memory);
    };
    let env = Env::default();
    let mut checked = Checked::new(Arc::clone(&object), 1).unwrap();
    lane("checked", &mut |memory| checked.run_raw(ProgramId(0), memory, &env).unwrap());
    let mut rbpf = Rbpf::raw(Arc::clone(&object), Lane::Interpreter).unwrap();
    lane("rbpf", &mut |memory| rbpf.run_raw(ProgramId(0), memory, &env).unwrap());
    if cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        let mut rbpf = Rbpf::raw(object, Lane::Jit).unwrap();
        lane("rbpf-jit", &mut |memory| rbpf.run_raw(ProgramId(0), memory, &env).unwrap());
    }
    assert!(left.windows(2).all(|w| w[0] == w[1]), "{what}: memory differs");
}

const ALL: u64 = u64::MAX;
const MIN: u64 = 1 << 63;
const MIN32: u64 = 1 << 31;
/// A register whose upper half is set.
const HIGH: u64 = 0xdead_beef_0000_0000;

/// Operation, 64 bits, variant, operands, result.
const ARITHMETIC: &[(u8, bool, i16, u64, u64, u64)] = &[
    (alu::ADD, true, 0, ALL, 2, 1),
    (alu::ADD, false, 0, HIGH | 0xffff_ffff, 2, 1),
    (alu::SUB, true, 0, 1, 2, ALL),
    (alu::SUB, false, 0, HIGH | 1, 2, 0xffff_ffff),
    (alu::MUL, true, 0, 0x1_0000_0001, 0x1_0000_0001, 0x2_0000_0001),
    (alu::MUL, false, 0, HIGH | 0x8000_0001, 2, 2),
    (alu::DIV, true, 0, ALL, 2, 0x7fff_ffff_ffff_ffff),
    (alu::DIV, true, 0, 7, 0, 0),
    (alu::DIV, false, 0, HIGH | 9, 4, 2),
    (alu::DIV, false, 0, HIGH | 9, HIGH, 0),
    (alu::DIV, true, 1, (-7i64).cast_unsigned(), 2, (-3i64).cast_unsigned()),
    (alu::DIV, true, 1, 7, (-2i64).cast_unsigned(), (-3i64).cast_unsigned()),
    (alu::DIV, true, 1, MIN, ALL, MIN),
    (alu::DIV, true, 1, 7, 0, 0),
    (alu::DIV, false, 1, HIGH | 0xffff_fff9, 2, 0xffff_fffd),
    (alu::DIV, false, 1, MIN32, 0xffff_ffff, MIN32),
    (alu::MOD, true, 0, 7, 3, 1),
    (alu::MOD, true, 0, HIGH | 7, 0, HIGH | 7),
    (alu::MOD, false, 0, HIGH | 7, 4, 3),
    (alu::MOD, false, 0, HIGH | 7, HIGH, 7),
    (alu::MOD, true, 1, (-7i64).cast_unsigned(), 3, ALL),
    (alu::MOD, true, 1, 7, (-3i64).cast_unsigned(), 1),
    (alu::MOD, true, 1, MIN, ALL, 0),
    (alu::MOD, true, 1, MIN, 0, MIN),
    (alu::MOD, false, 1, HIGH | 0xffff_fff9, 3, 0xffff_ffff),
    (alu::MOD, false, 1, HIGH | 0xffff_fff9, HIGH, 0xffff_fff9),
    (alu::OR, true, 0, HIGH, 5, HIGH | 5),
    (alu::OR, false, 0, HIGH | 2, 5, 7),
    (alu::AND, true, 0, HIGH | 6, HIGH | 3, HIGH | 2),
    (alu::AND, false, 0, HIGH | 6, HIGH | 3, 2),
    (alu::XOR, true, 0, HIGH | 6, HIGH | 3, 5),
    (alu::XOR, false, 0, HIGH | 6, 3, 5),
    (alu::LSH, true, 0, 1, 63, MIN),
    (alu::LSH, true, 0, 3, 64 + 1, 6),
    (alu::LSH, false, 0, HIGH | 3, 31, MIN32),
    (alu::LSH, false, 0, 3, 32 + 1, 6),
    (alu::RSH, true, 0, MIN, 63, 1),
    (alu::RSH, false, 0, HIGH | MIN32, 31, 1),
    (alu::ARSH, true, 0, MIN, 63, ALL),
    (alu::ARSH, true, 0, MIN >> 1, 62, 1),
    (alu::ARSH, false, 0, HIGH | MIN32, 31, 0xffff_ffff),
    (alu::MOV, true, 0, 1, HIGH | 5, HIGH | 5),
    (alu::MOV, false, 0, HIGH, HIGH | 5, 5),
];

#[test]
fn arithmetic_with_registers() {
    for &(op, wide_op, off, a, b, expected) in ARITHMETIC {
        let class = if wide_op { class::ALU64 } else { class::ALU };
        // Every pair of registers that the machine code treats apart.
        for (dst, src) in [(0, 1), (1, 0), (3, 2), (2, 3), (4, 5), (5, 4), (6, 9), (9, 6), (7, 8)] {
            let mut code = Vec::new();
            code.extend(wide(dst, a));
            code.extend(wide(src, b));
            code.extend([insn(class | op | X, dst, src, off, 0), copy(0, dst), exit()]);
            check(&format!("{op:#x} {wide_op} {off} {a:#x} {b:#x} r{dst} r{src}"), &code, &[], expected);
        }
    }
}

#[test]
fn arithmetic_with_immediates() {
    for &(op, wide_op, off, a, b, expected) in ARITHMETIC {
        let class = if wide_op { class::ALU64 } else { class::ALU };
        let shift = matches!(op, alu::LSH | alu::RSH | alu::ARSH);
        // An immediate is sign-extended in 64-bit operations and cut in 32-bit ones.
        let value = if wide_op { b.cast_signed() } else { i64::from(low(b).cast_signed()) };
        let Ok(imm) = i32::try_from(value) else { continue };
        if shift && b > if wide_op { 63 } else { 31 } {
            continue;
        }
        for dst in [0, 3, 8] {
            let mut code = wide(dst, a).to_vec();
            code.extend([insn(class | op, dst, 0, off, imm), copy(0, dst), exit()]);
            check(&format!("{op:#x} {wide_op} {off} {a:#x} {imm} r{dst}"), &code, &[], expected);
        }
    }
}

fn low(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap()
}

#[test]
fn negation_moves_with_sign_and_byte_swaps() {
    let unary: &[(Raw, u64, u64)] = &[
        (insn(class::ALU64 | alu::NEG, 1, 0, 0, 0), 1, ALL),
        (insn(class::ALU64 | alu::NEG, 1, 0, 0, 0), MIN, MIN),
        (insn(class::ALU | alu::NEG, 1, 0, 0, 0), HIGH | 1, 0xffff_ffff),
        (insn(class::ALU | alu::NEG, 1, 0, 0, 0), MIN32, MIN32),
        (insn(class::ALU64 | alu::MOV | X, 1, 1, 8, 0), 0x180, 0xffff_ffff_ffff_ff80),
        (insn(class::ALU64 | alu::MOV | X, 1, 1, 16, 0), 0x1_7fff, 0x7fff),
        (insn(class::ALU64 | alu::MOV | X, 1, 1, 32, 0), MIN32, 0xffff_ffff_8000_0000),
        (insn(class::ALU | alu::MOV | X, 1, 1, 8, 0), HIGH | 0x80, 0xffff_ff80),
        (insn(class::ALU | alu::MOV | X, 1, 1, 16, 0), HIGH | 0x8000, 0xffff_8000),
        (insn(class::ALU | alu::END | X, 1, 0, 0, 16), 0x0102_0304_0506_0708, 0x0807),
        (insn(class::ALU | alu::END | X, 1, 0, 0, 32), 0x0102_0304_0506_0708, 0x0807_0605),
        (insn(class::ALU | alu::END | X, 1, 0, 0, 64), 0x0102_0304_0506_0708, 0x0807_0605_0403_0201),
        (insn(class::ALU | alu::END, 1, 0, 0, 16), 0x0102_0304_0506_0708, 0x0708),
        (insn(class::ALU | alu::END, 1, 0, 0, 32), 0x0102_0304_0506_0708, 0x0506_0708),
        (insn(class::ALU | alu::END, 1, 0, 0, 64), 0x0102_0304_0506_0708, 0x0102_0304_0506_0708),
        (insn(class::ALU64 | alu::END, 1, 0, 0, 16), 0x0102_0304_0506_0708, 0x0807),
        (insn(class::ALU64 | alu::END, 1, 0, 0, 32), 0x0102_0304_0506_0708, 0x0807_0605),
        (insn(class::ALU64 | alu::END, 1, 0, 0, 64), 0x0102_0304_0506_0708, 0x0807_0605_0403_0201),
    ];
    for &(operation, value, expected) in unary {
        for register in [0, 1, 3, 9] {
            let mut code = wide(register, value).to_vec();
            let src = if operation.src == 1 { register } else { 0 };
            code.extend([Raw { dst: register, src, ..operation }, copy(0, register), exit()]);
            check(&format!("{operation:x?} {value:#x}"), &code, &[], expected);
        }
    }
}

/// Operation, 64 bits, operands, taken.
const JUMPS: &[(u8, bool, u64, u64, bool)] = &[
    (jmp::JEQ, true, ALL, ALL, true),
    (jmp::JEQ, true, 0xffff_ffff, ALL, false),
    (jmp::JEQ, false, HIGH | 5, 5, true),
    (jmp::JNE, true, HIGH | 5, 5, true),
    (jmp::JNE, true, ALL, ALL, false),
    (jmp::JNE, false, HIGH | 5, 5, false),
    (jmp::JGT, true, ALL, 5, true),
    (jmp::JGT, true, 0xffff_ffff, ALL, false),
    (jmp::JGT, true, 5, 5, false),
    (jmp::JGT, false, 0xffff_ffff, 5, true),
    (jmp::JGT, false, HIGH, 5, false),
    (jmp::JGE, true, 5, 5, true),
    (jmp::JGE, true, 4, ALL, false),
    (jmp::JGE, false, HIGH | 4, 5, false),
    (jmp::JLT, true, 4, ALL, true),
    (jmp::JLT, true, ALL, ALL, false),
    (jmp::JLT, false, HIGH | 4, 5, true),
    (jmp::JLE, true, ALL, ALL, true),
    (jmp::JLE, true, ALL, 4, false),
    (jmp::JLE, false, HIGH | 5, 5, true),
    (jmp::JSET, true, MIN, ALL, true),
    (jmp::JSET, true, 6, 1, false),
    (jmp::JSET, false, HIGH | 6, 1, false),
    (jmp::JSGT, true, 1, ALL, true),
    (jmp::JSGT, true, ALL, 1, false),
    (jmp::JSGT, false, 1, 0xffff_ffff, true),
    (jmp::JSGE, true, ALL, ALL, true),
    (jmp::JSGE, false, 0x8000_0000, 0, false),
    (jmp::JSLT, true, ALL, 0, true),
    (jmp::JSLT, true, 0, ALL, false),
    (jmp::JSLT, false, 0xffff_ffff, 0, true),
    (jmp::JSLE, true, MIN, ALL, true),
    (jmp::JSLE, false, HIGH | 1, 0xffff_ffff, false),
];

#[test]
fn jumps() {
    for &(op, wide_op, a, b, taken) in JUMPS {
        let class = if wide_op { class::JMP } else { class::JMP32 };
        for (dst, src) in [(0, 1), (1, 0), (5, 9)] {
            let mut code = wide(dst, a).to_vec();
            code.extend(wide(src, b));
            code.extend([insn(class | op | X, dst, src, 2, 0), mov(0, 0), exit(), mov(0, 1), exit()]);
            check(&format!("{op:#x} {wide_op} {a:#x} {b:#x}"), &code, &[], u64::from(taken));
            let value = if wide_op { b.cast_signed() } else { i64::from(low(b).cast_signed()) };
            let Ok(imm) = i32::try_from(value) else { continue };
            let mut code = wide(dst, a).to_vec();
            // Whatever the jump is made of, other registers stay: their sum is the result.
            code.extend([mov(6, 20), mov(7, 30)]);
            code.extend([
                insn(class | op, dst, 0, 2, imm),
                mov(0, 0),
                insn(class::JMP | jmp::JA, 0, 0, 1, 0),
                mov(0, 1),
            ]);
            code.extend([
                insn(class::ALU64 | alu::ADD | X, 0, 6, 0, 0),
                insn(class::ALU64 | alu::ADD | X, 0, 7, 0, 0),
                exit(),
            ]);
            check(&format!("{op:#x} {wide_op} {a:#x} {imm}"), &code, &[], 50 + u64::from(taken));
        }
    }
}

#[test]
fn loops_and_long_jumps() {
    // 1 + 2 + ... + 10
    let code = [
        mov(0, 0),
        mov(1, 10),
        insn(class::ALU64 | alu::ADD | X, 0, 1, 0, 0),
        asm::add(1, -1),
        insn(class::JMP | jmp::JNE, 1, 0, -3, 0),
        insn(class::JMP32 | jmp::JA, 0, 0, 0, 1),
        mov(0, 0),
        exit(),
    ];
    check("loop", &code, &[], 55);
}

#[test]
fn loads_and_stores_of_every_size() {
    let memory = [0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 1, 2, 3, 4, 5, 6, 7, 8];
    for (size, off, expected) in [
        (B, 0, 0x81),
        (H, 1, 0x8382),
        (W, 2, 0x8685_8483),
        (DW, 0, 0x8887_8685_8483_8281),
        (DW, 3, 0x0302_0188_8786_8584),
    ] {
        check("load", &[load(size, 0, 1, off), exit()], &memory, expected);
    }
    for (size, expected) in [(B, 0xffff_ffff_ffff_ff81), (H, 0xffff_ffff_ffff_8281), (W, 0xffff_ffff_8483_8281)] {
        check("load with sign", &[insn(class::LDX | mode::MEMSX | size, 0, 1, 0, 0), exit()], &memory, expected);
        check(
            "load with sign",
            &[insn(class::LDX | mode::MEMSX | size, 0, 1, 8, 0), exit()],
            &memory,
            match size {
                B => 1,
                H => 0x0201,
                _ => 0x0403_0201,
            },
        );
    }
    let value = 0x1122_3344_5566_7788;
    for (size, expected) in [
        (B, 0x8887_8685_8483_8288),
        (H, 0x8887_8685_8483_7788),
        (W, 0x8887_8685_5566_7788),
        (DW, 0x1122_3344_5566_7788),
    ] {
        let mut code = wide(2, value).to_vec();
        code.extend([store(size, 1, 0, 2), load(DW, 0, 1, 0), exit()]);
        check("store", &code, &memory, expected);
    }
    for (size, expected) in [
        (B, 0x8887_8685_8483_82fe),
        (H, 0x8887_8685_8483_fffe),
        (W, 0x8887_8685_ffff_fffe),
        (DW, 0xffff_ffff_ffff_fffe),
    ] {
        check("store of a number", &[set(size, 1, 0, -2), load(DW, 0, 1, 0), exit()], &memory, expected);
    }
}

#[test]
fn atomics_change_memory_and_return_the_old_value() {
    let old: u64 = 0x1111_2222_ffff_fff0;
    let operand: u64 = 0x0101_0101_0000_0021;
    let cases: &[(i32, u64, u64)] = &[
        (atomic::ADD, 0x1212_2324_0000_0011, 0x1111_2222_0000_0011),
        (atomic::OR, 0x1111_2323_ffff_fff1, 0x1111_2222_ffff_fff1),
        (atomic::AND, 0x0101_0000_0000_0020, 0x1111_2222_0000_0020),
        (atomic::XOR, 0x1010_2323_ffff_ffd1, 0x1111_2222_ffff_ffd1),
    ];
    for (size, narrow) in [(DW, false), (W, true)] {
        for &(operation, wide_result, narrow_result) in cases {
            let expected = if narrow { narrow_result } else { wide_result };
            for (register, base) in [(2, 1), (0, 6), (9, 1), (3, 0)] {
                for fetch in [0, atomic::FETCH] {
                    let mut code = vec![copy(7, 1), copy(base, 1)];
                    code.extend(wide(register, operand));
                    code.push(insn(class::STX | mode::ATOMIC | size, base, register, 0, operation | fetch));
                    let mut returned = code.clone();
                    code.extend([load(DW, 0, 7, 0), exit()]);
                    check(&format!("atomic {operation:#x} {fetch}"), &code, &old.to_le_bytes(), expected);
                    returned.extend([copy(0, register), exit()]);
                    let value = match (fetch, narrow) {
                        (0, _) => operand,
                        (_, true) => u64::from(low(old)),
                        (_, false) => old,
                    };
                    check(&format!("result of atomic {operation:#x} {fetch}"), &returned, &old.to_le_bytes(), value);
                }
            }
        }
    }
}

#[test]
fn exchange_and_compare_and_exchange() {
    let old: u64 = 0x1111_2222_3333_4444;
    let new: u64 = 0x5555_6666_7777_8888;
    for (size, expected, returned) in [(DW, new, old), (W, 0x1111_2222_7777_8888, 0x3333_4444)] {
        let mut code = wide(2, new).to_vec();
        code.push(insn(class::STX | mode::ATOMIC | size, 1, 2, 0, atomic::XCHG));
        let mut second = code.clone();
        code.extend([load(DW, 0, 1, 0), exit()]);
        check("xchg", &code, &old.to_le_bytes(), expected);
        second.extend([copy(0, 2), exit()]);
        check("result of xchg", &second, &old.to_le_bytes(), returned);
        for (compare, result) in [(old, expected), (old ^ 1, old), (old ^ MIN, if size == W { expected } else { old })]
        {
            let mut code = wide(2, new).to_vec();
            code.extend(wide(0, compare));
            code.push(insn(class::STX | mode::ATOMIC | size, 1, 2, 0, atomic::CMPXCHG));
            let mut second = code.clone();
            code.extend([load(DW, 0, 1, 0), exit()]);
            check("cmpxchg", &code, &old.to_le_bytes(), result);
            second.push(exit());
            check("result of cmpxchg", &second, &old.to_le_bytes(), returned);
        }
    }
}

#[test]
fn local_calls_have_frames_of_their_own_and_nest() {
    // Three levels; each writes its slot at r10-8 and finds it unchanged after its call.
    let code = [
        set(DW, 10, -8, 1),
        mov(6, 100),
        call_local(4),
        load(DW, 1, 10, -8),
        insn(class::ALU64 | alu::ADD | X, 0, 1, 0, 0),
        insn(class::ALU64 | alu::ADD | X, 0, 6, 0, 0),
        exit(),
        set(DW, 10, -8, 2),
        mov(6, 1000),
        call_local(4),
        load(DW, 1, 10, -8),
        insn(class::ALU64 | alu::ADD | X, 0, 1, 0, 0),
        insn(class::ALU64 | alu::ADD | X, 0, 6, 0, 0),
        exit(),
        set(DW, 10, -8, 4),
        mov(6, 9999),
        load(DW, 0, 10, -8),
        exit(),
    ];
    check("calls", &code, &[], 1 + 2 + 4 + 100 + 1000);
}

#[test]
fn a_function_placed_before_its_caller_is_called_backwards() {
    // main calls second, second calls first, which lies before it.
    let code = [call_local(3), exit(), mov(0, 7), exit(), call_local(-3), asm::add(0, 1), exit()];
    check("backward call", &code, &[], 8);
}

#[test]
fn arguments_are_address_and_length_of_the_memory() {
    check("length", &[copy(0, 2), exit()], &[0; 24], 24);
    check("length", &[copy(0, 2), exit()], &[], 0);
}
