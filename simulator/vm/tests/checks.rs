//! What the checked engine refuses: every region, every way out of it.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a failing helper of a test is a failing test")]

#[path = "support/asm.rs"]
mod asm;

use std::sync::Arc;

use asm::{B, DW, H, W, add, call, call_local, copy, exit, jump, load, map, mov, set, store};
use datapath_maps::{MapKind, MapSpec, UpdateMode, map_flags};
use simulator_vm::isa::{Raw, jmp};
use simulator_vm::{Checked, Engine, Env, Fault, FaultKind, Helper, LoadError, Object, Run, RunError, Skb};

fn spec(name: &str, kind: MapKind, key_size: u32, value_size: u32, max_entries: u32, flags: u32) -> MapSpec {
    MapSpec { name: name.into(), kind, key_size, value_size, max_entries, flags }
}

/// 0: array of two 12-byte values; 1: ring; 2: array programs may only read; 3: hash.
fn maps() -> Vec<MapSpec> {
    vec![
        spec("array", MapKind::Array, 4, 12, 2, 0),
        spec("ring", MapKind::RingBuf, 0, 0, 4096, 0),
        spec("fixed", MapKind::Array, 4, 8, 1, map_flags::RDONLY_PROG),
        spec("hash", MapKind::Hash, 4, 8, 4, 0),
    ]
}

fn engine(code: Vec<Raw>) -> Checked {
    Checked::new(Arc::new(Object::assemble(vec![("test", code)], maps()).unwrap()), 1).unwrap()
}

fn run(code: Vec<Raw>) -> Result<Run, RunError> {
    engine(code).run_named("test", &mut Skb::new(vec![0; 60], 1), &Env::default())
}

fn fault(code: Vec<Raw>) -> Fault {
    match run(code) {
        Err(RunError::Fault(fault)) => *fault,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn faults(code: Vec<Raw>, words: &str) {
    let fault = fault(code);
    assert!(fault.to_string().contains(words), "`{fault}` does not say `{words}`");
}

/// r0 = address of entry 0 of a map, or the program ends.
fn lookup(number: i32) -> Vec<Raw> {
    let mut code = vec![set(W, 10, -4, 0)];
    code.extend(map(1, number));
    code.extend([copy(2, 10), add(2, -4), call(Helper::MapLookup), jump(jmp::JNE, 0, 0, 1), exit()]);
    code
}

fn then(mut code: Vec<Raw>, more: &[Raw]) -> Vec<Raw> {
    code.extend_from_slice(more);
    code
}

#[test]
fn the_last_byte_of_a_value_may_be_read_and_the_next_one_not() {
    run(then(lookup(0), &[load(B, 0, 0, 11), exit()])).unwrap();
    faults(then(lookup(0), &[load(B, 0, 0, 12), exit()]), "map `array` slot 0 offset 12 of 12 bytes");
    faults(then(lookup(0), &[load(W, 0, 0, 10), exit()]), "load of 4 bytes");
}

#[test]
fn neighbours_in_the_same_slab_are_out_of_reach() {
    // Entry 1 lies 16 bytes further in the same memory.
    faults(then(lookup(0), &[store(B, 0, 16, 0), exit()]), "map `array` slot 0 offset 16");
    faults(then(lookup(0), &[load(B, 0, 0, -1), exit()]), "map `array` slot 0 offset -1");
}

#[test]
fn a_map_programs_may_only_read_is_not_written() {
    run(then(lookup(2), &[load(DW, 0, 0, 0), exit()])).unwrap();
    faults(then(lookup(2), &[store(DW, 0, 0, 0), exit()]), "read-only");
}

#[test]
fn null_and_numbers_are_no_pointers() {
    faults(vec![mov(2, 0), load(B, 0, 2, 0), exit()], "null or no pointer");
    faults(vec![mov(2, -1), load(B, 0, 2, 0), exit()], "no pointer");
    faults(then(map(2, 0).to_vec(), &[load(B, 0, 2, 0), exit()]), "a map's handle");
}

#[test]
fn a_fault_names_program_and_instruction() {
    let fault = fault(vec![mov(0, 1), mov(2, 0), load(B, 0, 2, 7), exit()]);
    assert_eq!((fault.program.as_str(), fault.pc), ("test", Some(2)));
}

#[test]
fn the_frame_ends_at_512_bytes() {
    run(vec![set(DW, 10, -512, 1), mov(0, 0), exit()]).unwrap();
    faults(vec![copy(2, 10), add(2, -512), set(B, 2, -1, 1), exit()], "stack frame 0 at r10-513");
    faults(vec![set(B, 10, 0, 1), exit()], "stack frame 0 at r10+0");
    faults(vec![set(DW, 10, -516, 1), exit()], "stack frame 0 at r10-516");
}

#[test]
fn a_callee_reaches_its_callers_frame_and_nobody_reaches_an_ended_one() {
    let code = vec![set(DW, 10, -8, 5), copy(1, 10), add(1, -8), call_local(1), exit(), load(DW, 0, 1, 0), exit()];
    assert_eq!(run(code).unwrap().code, 5);
    // The callee returns a pointer into its own frame.
    faults(
        vec![call_local(2), load(DW, 0, 0, 0), exit(), copy(0, 10), add(0, -8), exit()],
        "stack frame 1, which has ended",
    );
}

#[test]
fn callee_saved_registers_and_r10_come_back() {
    let code = vec![
        mov(6, 1),
        mov(9, 2),
        copy(7, 10),
        call_local(5),
        insn_sub(7, 10),
        copy(0, 7),
        insn_add(0, 6),
        insn_add(0, 9),
        exit(),
        mov(6, 50),
        mov(9, 50),
        mov(7, 50),
        mov(0, 50),
        exit(),
    ];
    assert_eq!(run(code).unwrap().code, 3);
}

const fn insn_sub(dst: u8, src: u8) -> Raw {
    asm::insn(0x1f, dst, src, 0, 0)
}

const fn insn_add(dst: u8, src: u8) -> Raw {
    asm::insn(0x0f, dst, src, 0, 0)
}

#[test]
fn nine_frames_are_one_too_many() {
    // Calls itself until the depth is reached.
    let code = vec![call_local(-1), exit()];
    assert!(matches!(fault(code).kind, FaultKind::CallDepth));
}

#[test]
fn context_fields_are_read_and_written_by_the_kernels_rules() {
    for (off, size) in [(0, W), (8, W), (8, B), (48, DW), (48, W), (49, B), (76, W), (80, W), (152, DW), (16, H)] {
        run(vec![load(size, 0, 1, off), exit()]).unwrap_or_else(|error| panic!("{off}: {error}"));
    }
    for (off, size) in [(76, B), (76, H), (80, DW), (88, W), (144, DW), (152, W), (192, W), (-4, W), (9, W), (0, DW)] {
        assert!(matches!(fault(vec![load(size, 0, 1, off), exit()]).kind, FaultKind::Context { .. }), "{off}");
    }
    for (off, size) in [(8, W), (12, W), (32, W), (44, W), (48, W), (52, B), (56, DW), (72, W), (152, DW)] {
        run(vec![mov(0, 0), store(size, 1, off, 0), exit()]).unwrap_or_else(|error| panic!("{off}: {error}"));
    }
    for (off, size) in [(0, W), (8, H), (36, W), (40, W), (68, W), (64, DW), (76, W), (152, W)] {
        let code = vec![mov(0, 0), store(size, 1, off, 0), exit()];
        assert!(matches!(fault(code).kind, FaultKind::Context { .. }), "{off}");
    }
}

#[test]
fn a_ring_record_must_be_given_back_and_not_used_after() {
    let reserve = || {
        let mut code = map(1, 1).to_vec();
        code.extend([mov(2, 16), mov(3, 0), call(Helper::RingReserve), jump(jmp::JNE, 0, 0, 1), exit(), copy(6, 0)]);
        code
    };
    let submit = [copy(1, 6), mov(2, 0), call(Helper::RingSubmit)];
    let mut engine = engine(then(
        reserve(),
        &[set(DW, 6, 0, 1), set(DW, 6, 8, 2), submit[0], submit[1], submit[2], mov(0, 0), exit()],
    ));
    engine.run_named("test", &mut Skb::new(vec![0; 60], 1), &Env::default()).unwrap();
    assert_eq!(engine.events(), [[1u64.to_le_bytes(), 2u64.to_le_bytes()].concat()]);
    faults(then(reserve(), &[set(B, 6, 16, 1), exit()]), "ring-buffer record offset 16 of 16 bytes");
    faults(then(reserve(), &[submit[0], submit[1], submit[2], set(B, 6, 0, 1), exit()]), "given back");
    faults(
        then(reserve(), &[submit[0], submit[1], submit[2], submit[0], submit[1], submit[2], exit()]),
        "no reserved record",
    );
    assert!(matches!(fault(then(reserve(), &[mov(0, 0), exit()])).kind, FaultKind::OpenRecords(1)));
}

#[test]
fn unwritten_stack_shows_itself_by_its_seed() {
    let code = vec![load(DW, 0, 10, -8), exit()];
    let mut engine = engine(code);
    let mut run = |seed| {
        let env = Env { seed, ..Env::default() };
        engine.run_named("test", &mut Skb::new(vec![0; 60], 1), &env).unwrap().code
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

#[test]
fn helper_arguments_are_checked_like_loads() {
    let code = then(map(1, 3).to_vec(), &[copy(2, 10), add(2, -3), call(Helper::MapLookup), exit()]);
    faults(code, "map_lookup_elem of 4 bytes");
    faults(vec![mov(1, 5), copy(2, 10), call(Helper::MapLookup), exit()], "r1 is no map");
    faults(then(map(1, 1).to_vec(), &[copy(2, 10), call(Helper::MapLookup), exit()]), "another kind");
    faults(vec![mov(1, 1), mov(2, 0), call(Helper::PullData), exit()], "r1 is not the context");
}

#[test]
fn a_replaced_entry_is_seen_through_the_old_pointer_until_the_run_ends() {
    // r7 = old value's address; replace; read through r7: the old value, as in the kernel.
    let mut code = lookup(3);
    code.extend([copy(7, 0), set(DW, 10, -16, 9)]);
    code.extend(map(1, 3));
    code.extend([
        copy(2, 10),
        add(2, -4),
        copy(3, 10),
        add(3, -16),
        mov(4, 0),
        call(Helper::MapUpdate),
        load(DW, 0, 7, 0),
        exit(),
    ]);
    let mut engine = engine(code);
    let hash = engine.memory_maps_mut().by_name_mut("hash").unwrap();
    hash.set_bytes(&[0; 4], &7u64.to_le_bytes(), UpdateMode::Any).unwrap();
    let run = engine.run_named("test", &mut Skb::new(vec![0; 60], 1), &Env::default()).unwrap();
    assert_eq!(run.code, 7);
    let hash = engine.memory_maps().by_name("hash").unwrap();
    assert_eq!(hash.get_bytes(&[0; 4]).unwrap(), 9u64.to_le_bytes());
}

#[test]
fn thirty_three_tail_calls_are_taken_and_the_next_falls_through() {
    let mut code = vec![load(W, 6, 1, 48), add(6, 1), store(W, 1, 48, 6)];
    code.extend(map(2, 0));
    code.extend([mov(3, 0), call(Helper::TailCall), mov(0, 77), exit()]);
    let calls = spec("calls", MapKind::ProgArray, 4, 4, 1, 0);
    let object = Arc::new(Object::assemble(vec![("test", code)], vec![calls]).unwrap());
    let mut engine = Checked::new(object, 1).unwrap();
    let calls = engine.memory_maps_mut().by_name_mut("calls").unwrap();
    calls.set_bytes(&[0; 4], &0u32.to_le_bytes(), UpdateMode::Any).unwrap();
    let mut skb = Skb::new(vec![0; 60], 1);
    let run = engine.run_named("test", &mut skb, &Env::default()).unwrap();
    assert_eq!((run.code, skb.cb[0]), (77, 34));
}

#[test]
fn an_endless_program_uses_up_its_budget() {
    let fault = fault(vec![mov(0, 0), asm::insn(0x05, 0, 0, -2, 0)]);
    assert!(matches!(fault.kind, FaultKind::Budget(_)));
}

#[test]
fn what_the_engine_does_not_know_is_refused_at_load() {
    let refused = |code: Vec<Raw>| Object::assemble(vec![("test", code)], maps()).unwrap_err();
    let error = refused(vec![asm::insn(0x85, 0, 0, 0, 9999), exit()]);
    assert!(
        matches!(&error, LoadError::UnknownHelper { program, pc: 0, helper: 9999 } if program == "test"),
        "{error}"
    );
    for code in [
        vec![mov(10, 1), exit()],
        vec![mov(11, 1), exit()],
        vec![mov(0, 1)],
        vec![jump(jmp::JEQ, 0, 0, 5), exit()],
        vec![asm::insn(0x18, 0, 0, 0, 0)],
        vec![asm::insn(0x20, 0, 0, 0, 0), exit()],
        vec![asm::insn(0xdb, 10, 0, -8, 0x77), exit()],
        vec![asm::insn(0x8d, 0, 0, 0, 0), exit()],
        vec![asm::insn(0x85, 0, 2, 0, 1), exit()],
        vec![asm::insn(0x18, 1, 1, 0, 99), asm::insn(0, 0, 0, 0, 0), exit()],
    ] {
        let error = refused(code);
        assert!(matches!(error, LoadError::Instruction { .. }), "{error}");
    }
}

#[test]
fn maps_larger_than_addresses_can_tell_are_refused() {
    let refused = |spec| Object::assemble(vec![("test", vec![exit()])], vec![spec]).unwrap_err().to_string();
    let text = refused(spec("wide", MapKind::Array, 4, 16 << 20, 1, 0));
    assert!(text.contains("`wide`") && text.contains("16 MiB"), "{text}");
    let text = refused(spec("long", MapKind::Hash, 4, 4, (1 << 25) + 1, 0));
    assert!(text.contains("`long`") && text.contains("2^25"), "{text}");
    let mut object = Object::assemble(vec![("test", vec![exit()])], maps()).unwrap();
    object.resize_map("hash", 7).unwrap();
    assert_eq!(object.maps()[3].max_entries, 7);
    assert!(matches!(object.resize_map("hash", u32::MAX), Err(LoadError::MapSize { .. })));
    assert!(matches!(object.resize_map("none", 1), Err(LoadError::NoMap { .. })));
}

#[test]
fn frames_shorter_than_a_header_are_refused() {
    let mut engine = engine(vec![mov(0, 0), exit()]);
    let error = engine.run_named("test", &mut Skb::new(vec![0; 13], 1), &Env::default()).unwrap_err();
    assert!(matches!(error, RunError::FrameSize { len: 13, .. }));
}
