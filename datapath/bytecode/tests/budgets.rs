//! What the object may cost: `ci/budgets.toml`. Sizes are checked everywhere, the verifier's numbers as root.
#![expect(clippy::unwrap_used, reason = "test code: helpers outside #[test] functions")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use datapath_abi::{Config, config};
use datapath_bytecode::OBJECT;
use datapath_kernel::{LoadOptions, Loaded, skip_line};
use serde::Deserialize;
use simulator_vm::Object;
use zerocopy::IntoBytes;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Budgets {
    object_bytes: usize,
    stack: u32,
    programs: BTreeMap<String, Budget>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    slots: usize,
    verified: u32,
}

fn budgets() -> Budgets {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../ci/budgets.toml");
    toml::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn programs_are_no_larger_than_their_budgets() {
    let budgets = budgets();
    let mut over = String::new();
    let object = Object::load(OBJECT, &[]).unwrap();
    for program in object.programs() {
        let Some(budget) = budgets.programs.get(&program.name) else {
            over.push_str(&format!("{}: no budget\n", program.name));
            continue;
        };
        if program.code.len() > budget.slots {
            over.push_str(&format!("{}: {} slots of {}\n", program.name, program.code.len(), budget.slots));
        }
    }
    assert_eq!(over, "");
    assert_eq!(object.programs().len(), budgets.programs.len(), "a budget of a program that is not there");
    assert!(OBJECT.len() <= budgets.object_bytes, "the object: {} bytes of {}", OBJECT.len(), budgets.object_bytes);
}

#[test]
fn the_verifier_follows_no_more_than_the_budgets_allow() {
    if let Some(line) = skip_line() {
        println!("{line}");
        return;
    }
    let budgets = budgets();
    let mut settings = Config::with_defaults(1000);
    // What settings switch off the verifier does not follow.
    settings.flags |= config::DUAL_STACK | config::HOST_POLICY | config::GENEVE;
    let globals: [(&str, &[u8]); 1] = [(config::SYMBOL, settings.as_bytes())];
    let options = LoadOptions { max_entries: Some(1024), globals: &globals, ..LoadOptions::default() };
    let mut over = String::new();
    for (name, result) in Loaded::verify(OBJECT, &options).unwrap() {
        let stats = result.unwrap();
        let verified = budgets.programs[&name].verified;
        let stack: u32 = stats.stack_depth.iter().sum();
        println!("{name}: {} instructions verified, {stack} bytes of stack", stats.processed);
        if stats.processed > verified {
            over.push_str(&format!("{name}: {} instructions verified of {verified}\n", stats.processed));
        }
        if stack > budgets.stack {
            over.push_str(&format!("{name}: {stack} bytes of stack of {}\n", budgets.stack));
        }
    }
    assert_eq!(over, "");
}
