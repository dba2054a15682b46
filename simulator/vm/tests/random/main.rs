//! Random programs in every lane; as root in the kernel too.
//!
//! `WEIR_RANDOM_SEED` and `WEIR_RANDOM_PROGRAMS` replay or extend a run.
#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::unwrap_used,
    reason = "random numbers are cut to the sizes of fields; a failing helper of a test is a failing test"
)]

mod generator;
#[cfg(target_os = "linux")]
#[path = "../support/kernel.rs"]
mod kernel;

use std::sync::Arc;

use generator::{CONTEXT, Mix, Random};
use simulator_vm::isa::Raw;
use simulator_vm::{Checked, Env, Lane, Object, ProgramId, Rbpf};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn programs(count: u64) -> impl Iterator<Item = (u64, Mix, Vec<Raw>)> {
    let seed = setting("WEIR_RANDOM_SEED", 20_261_122);
    println!("seed: WEIR_RANDOM_SEED={seed}");
    let mut seeds = Random(seed);
    (0..setting("WEIR_RANDOM_PROGRAMS", count)).map(move |index| {
        let mix = if index % 2 == 0 { Mix::V3 } else { Mix::V4 };
        let seed = seeds.next();
        (seed, mix, generator::program(seed, mix))
    })
}

/// Runs in a lane; the context comes back.
fn outcome(object: &Arc<Object>, lane: Option<Lane>) -> Vec<u8> {
    let mut memory = vec![0; CONTEXT];
    let env = Env::default();
    let result = match lane {
        None => Checked::new(Arc::clone(object), 1).unwrap().run_raw(ProgramId(0), &mut memory, &env),
        Some(lane) => Rbpf::raw(Arc::clone(object), lane).unwrap().run_raw(ProgramId(0), &mut memory, &env),
    };
    assert_eq!(result.unwrap(), 0);
    memory
}

fn explain(seed: u64, mix: Mix, code: &[Raw], mine: &[u8], theirs: &[u8]) -> String {
    let words =
        |bytes: &[u8]| -> Vec<u64> { bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect() };
    let mut text = format!("program seed {seed}, {mix:?}\n");
    for (word, (mine, theirs)) in words(mine).iter().zip(words(theirs)).enumerate() {
        if *mine != theirs {
            text += &format!("word {word}: checked {mine:#018x}, other {theirs:#018x}\n");
        }
    }
    for (pc, raw) in code.iter().enumerate() {
        text += &format!("{pc:4}: {raw:x?}\n");
    }
    text
}

#[test]
fn lanes_agree_on_random_programs() {
    let lanes: &[Lane] = if cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        &[Lane::Interpreter, Lane::Jit]
    } else {
        &[Lane::Interpreter]
    };
    for (seed, mix, code) in programs(4000) {
        let object = Arc::new(Object::assemble(vec![("random", code.clone())], vec![]).unwrap());
        let mine = outcome(&object, None);
        for &lane in lanes {
            let theirs = outcome(&object, Some(lane));
            assert!(mine == theirs, "{lane:?}: {}", explain(seed, mix, &code, &mine, &theirs));
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn the_kernel_agrees_on_random_programs() {
    if !kernel::is_root() {
        println!("skip: kernel-bpf: not root");
        return;
    }
    let mut different = Vec::new();
    for (seed, mix, code) in programs(4000) {
        let object = Arc::new(Object::assemble(vec![("random", code.clone())], vec![]).unwrap());
        let mine = outcome(&object, None);
        let mut theirs = vec![0; CONTEXT];
        if let Err(error) = kernel::run(&code, &mut theirs) {
            panic!("program seed {seed}, {mix:?}: {error}");
        }
        if mine != theirs {
            different.push(explain(seed, mix, &code, &mine, &theirs));
        }
    }
    assert!(different.is_empty(), "{} differ; the first:\n{}", different.len(), different[0]);
}
