//! The public instruction-set corpus in every lane, where it is present.

use simulator_vm::{Checked, Env, Object, ProgramId, isa::Raw};
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

#[test]
fn checked_engine_passes_the_corpus() {
    let Some(cases) = corpus() else { return };
    let mut failed = Vec::new();
    let mut passed = 0;
    for case in cases {
        if NOT_LINUX.contains(&case.name.as_str()) {
            continue;
        }
        let object = match Object::assemble(vec![("case", case.code)], vec![]) {
            Ok(object) => Arc::new(object),
            Err(error) => {
                failed.push(format!("{}: {error}", case.name));
                continue;
            }
        };
        let mut engine = Checked::new(object, 1).unwrap();
        let mut memory = case.memory.clone();
        match engine.run_raw(ProgramId(0), &mut memory, &Env::default()) {
            Ok(r0) if r0 == case.r0 => passed += 1,
            other => failed.push(format!("{}: {other:x?}, not {:#x}", case.name, case.r0)),
        }
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
    assert_eq!(passed, 312);
}
