//! What the lowering refuses, in words, and how rbpf's lanes end a run that goes wrong.
#![expect(clippy::unwrap_used, reason = "a failing helper of a test is a failing test")]

#[path = "support/asm.rs"]
#[allow(unused_imports, reason = "every test uses another part")]
mod asm;

use std::sync::Arc;

use asm::{DW, add, call, call_local, copy, exit, insn, jump, load, map, mov, wide};
use datapath_maps::{MapKind, MapSpec};
use simulator_vm::isa::{Raw, jmp};
use simulator_vm::{
    Engine, Env, FaultKind, Helper, Lane, LoadError, LowerError, Object, ProgramId, Rbpf, RunError, Skb,
};

fn lanes() -> Vec<Lane> {
    if cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        vec![Lane::Interpreter, Lane::Jit]
    } else {
        vec![Lane::Interpreter]
    }
}

fn engine(code: Vec<Raw>, maps: Vec<MapSpec>, lane: Lane) -> Result<Rbpf, LoadError> {
    Rbpf::new(Arc::new(Object::assemble(vec![("test", code)], maps).unwrap()), lane, 1)
}

fn refusal(code: Vec<Raw>) -> LowerError {
    match engine(code, vec![], Lane::Interpreter) {
        Err(LoadError::Lower(error)) => error,
        other => unreachable!("{other:?}"),
    }
}

#[test]
fn recursion_is_refused() {
    assert!(matches!(refusal(vec![call_local(-1), exit()]), LowerError::Recursive { .. }));
    assert!(matches!(refusal(vec![call_local(1), exit(), call_local(-1), exit()]), LowerError::Recursive { .. }));
}

#[test]
fn programs_beyond_rbpfs_program_counter_are_refused() {
    // Each of these doubles.
    let mut code = vec![insn(0xbc, 0, 1, 0, 0); 20_000];
    code.push(exit());
    assert!(matches!(refusal(code), LowerError::TooLong { slots: 40_002, .. }));
}

#[test]
fn programs_of_many_pages_of_machine_code_run() {
    let mut code = vec![mov(0, 0)];
    for _ in 0..10_000 {
        code.extend([add(0, 3), insn(0x17, 0, 0, 0, 1)]);
    }
    code.push(exit());
    for lane in lanes() {
        let mut engine = engine(code.clone(), vec![], lane).unwrap();
        let run = engine.run_named("test", &mut Skb::new(vec![0; 60], 1), &Env::default()).unwrap();
        assert_eq!(run.code, 20_000, "{lane:?}");
    }
}

#[test]
fn numbers_at_the_edge_of_the_scratch_space_survive() {
    // The program's whole frame and every register, around an instruction that spills.
    let mut code = Vec::new();
    for slot in 1..=64i16 {
        code.push(asm::set(DW, 10, -8 * slot, i32::from(slot)));
    }
    for register in 0..10 {
        code.extend(wide(register, 1 << register));
    }
    // Signed division of r6 by r7: 64 / 128 = 0.
    code.push(insn(0x3f, 6, 7, 1, 0));
    for register in 1..10 {
        code.push(insn(0x0f, 0, register, 0, 0));
    }
    for slot in 1..=64i16 {
        code.extend([load(DW, 1, 10, -8 * slot), insn(0x0f, 0, 1, 0, 0)]);
    }
    code.push(exit());
    for lane in lanes() {
        let mut engine = engine(code.clone(), vec![], lane).unwrap();
        let run = engine.run_named("test", &mut Skb::new(vec![0; 60], 1), &Env::default()).unwrap();
        assert_eq!(run.code, 1023 - 64 + 64 * 65 / 2, "{lane:?}");
    }
}

#[test]
fn a_helper_that_faults_ends_in_a_fault() {
    for lane in lanes() {
        let code = vec![mov(1, 0), mov(2, 0), call(Helper::PullData), mov(0, 0), exit()];
        let mut engine = engine(code, vec![], lane).unwrap();
        let error = engine.run_named("test", &mut Skb::new(vec![0; 60], 1), &Env::default()).unwrap_err();
        assert!(matches!(error, RunError::Fault(fault) if matches!(fault.kind, FaultKind::Helper { .. })));
    }
}

#[test]
fn the_interpreter_lane_refuses_foreign_memory() {
    let code = vec![mov(2, 64), load(DW, 0, 2, 0), exit()];
    let mut engine = engine(code, vec![], Lane::Interpreter).unwrap();
    let error = engine.run_named("test", &mut Skb::new(vec![0; 60], 1), &Env::default()).unwrap_err();
    assert!(matches!(error, RunError::Engine { engine: "rbpf", .. }), "{error}");
}

#[test]
fn tail_calls_out_of_functions_return_to_the_functions_caller() {
    // test: calls a function that tail-calls `other`, and adds one to what comes back.
    let mut test = vec![copy(6, 1), call_local(2), add(0, 1), exit()];
    test.extend(map(2, 0));
    test.extend([mov(3, 0), call(Helper::TailCall), mov(0, 500), exit()]);
    // The callee takes a frame of its own.
    let other = vec![asm::set(DW, 10, -8, 41), load(DW, 0, 10, -8), exit()];
    let spec = MapSpec {
        name: "calls".into(),
        kind: MapKind::ProgArray,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        flags: 0,
    };
    let object = Object::assemble(vec![("other", other), ("test", test)], vec![spec]).unwrap();
    let object = Arc::new(object);
    for filled in [true, false] {
        let expected = if filled { 42 } else { 501 };
        let mut engines: Vec<Box<dyn Engine>> = Vec::new();
        let fill = |maps: &mut datapath_maps::MemoryMaps| {
            if filled {
                let other = object.program("other").unwrap();
                let calls = maps.by_name_mut("calls").unwrap();
                calls.set_bytes(&[0; 4], &other.0.to_le_bytes(), datapath_maps::UpdateMode::Any).unwrap();
            }
        };
        let mut checked = simulator_vm::Checked::new(Arc::clone(&object), 1).unwrap();
        fill(checked.memory_maps_mut());
        engines.push(Box::new(checked));
        for lane in lanes() {
            let mut engine = Rbpf::new(Arc::clone(&object), lane, 1).unwrap();
            fill(engine.memory_maps_mut());
            engines.push(Box::new(engine));
        }
        for engine in &mut engines {
            let run = engine.run_named("test", &mut Skb::new(vec![0; 60], 1), &Env::default()).unwrap();
            assert_eq!(run.code, expected, "{}", engine.name());
        }
    }
}

#[test]
fn an_unknown_program_is_named() {
    let mut engine = engine(vec![jump(jmp::JA, 0, 0, 0), exit()], vec![], Lane::Interpreter).unwrap();
    let skb = &mut Skb::new(vec![0; 60], 1);
    let error = engine.run_named("nothing", skb, &Env::default()).unwrap_err();
    assert_eq!(error, RunError::NoProgram { name: "nothing".into() });
    let error = engine.run(ProgramId(9), skb, &Env::default()).unwrap_err();
    assert_eq!(error, RunError::NoProgram { name: "#9".into() });
}
