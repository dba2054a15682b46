//! The public instruction-set corpus in every lane, where it is present.
#![expect(clippy::unwrap_used, reason = "a failing helper of a test is a failing test")]

use simulator_vm::{Checked, Env, Lane, Object, ProgramId, Rbpf, isa::Raw};
use std::path::PathBuf;
use std::sync::Arc;

struct Case {
    name: String,
    code: Vec<Raw>,
    memory: Vec<u8>,
    r0: u64,
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

/// `None` is a declared skip, and the claim is checked: the folder is not there.
fn corpus() -> Option<Vec<Case>> {
    let folder = std::env::var_os("WEIR_ISA_CASES")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus/isa"), PathBuf::from);
    let Ok(text) = std::fs::read_to_string(folder.join("cases.jsonl")) else {
        assert!(!folder.exists(), "{} has no cases.jsonl", folder.display());
        println!("skip: isa-corpus: not present");
        return None;
    };
    let cases = text.lines().map(|line| {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        let field = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
        Case {
            name: field("name"),
            code: Raw::parse(&hex(&field("code"))).unwrap(),
            memory: hex(&field("memory")),
            r0: u64::from_str_radix(field("r0").trim_start_matches("0x"), 16).unwrap(),
        }
    });
    Some(cases.collect())
}

/// Calls through a register: an instruction that Linux does not have.
const NOT_LINUX: &[&str] = &["callx"];

fn run(lane: &str, case: &Case) -> Result<u64, String> {
    let object = Object::assemble(vec![("case", case.code.clone())], vec![]).map_err(|error| error.to_string())?;
    let object = Arc::new(object);
    let mut memory = case.memory.clone();
    let env = Env::default();
    match lane {
        "checked" => Checked::new(object, 1).unwrap().run_raw(ProgramId(0), &mut memory, &env),
        "rbpf" => Rbpf::raw(object, Lane::Interpreter).unwrap().run_raw(ProgramId(0), &mut memory, &env),
        _ => Rbpf::raw(object, Lane::Jit).unwrap().run_raw(ProgramId(0), &mut memory, &env),
    }
    .map_err(|error| error.to_string())
}

fn all_pass(lane: &str) {
    let Some(cases) = corpus() else { return };
    let cases: Vec<Case> = cases.into_iter().filter(|case| !NOT_LINUX.contains(&case.name.as_str())).collect();
    assert_eq!(cases.len(), 312);
    let failed: Vec<String> = cases
        .iter()
        .filter_map(|case| match run(lane, case) {
            Ok(r0) if r0 == case.r0 => None,
            other => Some(format!("{}: {other:x?}, not {:#x}", case.name, case.r0)),
        })
        .collect();
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn the_checked_engine_passes_the_corpus() {
    all_pass("checked");
}

#[test]
fn the_rbpf_interpreter_passes_the_corpus() {
    all_pass("rbpf");
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn the_rbpf_machine_code_passes_the_corpus() {
    all_pass("rbpf-jit");
}
