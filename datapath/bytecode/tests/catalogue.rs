//! The object holds what the contract says: exactly these programs, exactly these maps, settings of this size.
#![expect(clippy::unwrap_used, reason = "test code: helpers outside #[test] functions")]

use std::collections::BTreeSet;

use datapath_abi::{CallSlot, Config, Hook, MapId, config};
use datapath_bytecode::OBJECT;
use datapath_kernel::ObjectFile;
use simulator_vm::Object;
use simulator_vm::isa::Raw;
use zerocopy::IntoBytes;

fn object() -> Object {
    Object::load(OBJECT, &[]).unwrap()
}

#[test]
fn programs_are_the_hooks_and_their_continuations() {
    let wanted: BTreeSet<&str> =
        Hook::ALL.iter().map(|hook| hook.name()).chain(CallSlot::ALL.iter().map(|(_, name)| *name)).collect();
    let object = object();
    let found: BTreeSet<&str> = object.programs().iter().map(|program| program.name.as_str()).collect();
    assert_eq!(found, wanted);
}

#[test]
fn maps_are_those_of_the_catalogue() {
    let object = object();
    let names: Vec<&str> = object.maps().iter().map(|map| map.name.as_str()).collect();
    assert_eq!(names.len(), MapId::ALL.len(), "{names:?}");
    for id in MapId::ALL {
        let found = object.maps().iter().find(|map| map.name == id.name()).unwrap();
        let sizes = (u32::try_from(id.key_size()).unwrap(), u32::try_from(id.value_size()).unwrap());
        assert_eq!(found.kind.bpf(), id.kind() as u32, "{}", id.name());
        assert_eq!((found.key_size, found.value_size), sizes, "{}", id.name());
        assert_eq!((found.max_entries, found.flags), (id.max_entries(), id.flags()), "{}", id.name());
    }
}

/// Settings of another size do not fit the symbol, and there is one symbol to set.
#[test]
fn settings_are_one_constant_of_the_contract_size() {
    let settings = Config::with_defaults(1000);
    let bytes = settings.as_bytes();
    assert!(Object::load(OBJECT, &[(config::SYMBOL, bytes)]).is_ok());
    assert!(Object::load(OBJECT, &[(config::SYMBOL, &bytes[1..])]).is_err());
    assert_eq!(object().rodata().iter().map(|section| section.len()).collect::<Vec<_>>(), [bytes.len()]);
}

/// Without the loader's settings the magic number is missing, and every packet is dropped for that reason.
#[test]
fn the_object_comes_without_settings() {
    let unset = Config { magic: 0, flags: 0, ..Config::with_defaults(0) };
    let definitions = ObjectFile::parse(OBJECT, &[]).unwrap().maps().unwrap();
    let sections: Vec<&[u8]> = definitions.iter().filter_map(|map| map.data.as_deref()).collect();
    assert_eq!(sections, [unset.as_bytes()]);
}

#[test]
fn the_licence_lets_it_call_gpl_helpers() {
    assert_eq!(object().license(), "Dual MIT/GPL");
}

/// A panicking path would have linked the panic machinery, and the verifier would follow it.
#[test]
fn nothing_in_it_can_panic() {
    for name in ["panic", "begin_unwind"] {
        assert!(!OBJECT.windows(name.len()).any(|window| window == name.as_bytes()), "a symbol names `{name}`");
    }
}

/// LLVM compiles a relaxed fetch-add whose result is used into the form that returns nothing (llvm-project 210280):
/// after an atomic operation without the fetch bit, its source register is not read before it is written again.
#[test]
fn no_atomic_result_is_read_that_was_never_fetched() {
    for program in object().programs() {
        for (at, insn) in program.code.iter().enumerate() {
            if is_atomic(insn) && insn.imm & FETCH == 0 {
                let read = program.code[at + 1..].iter().take_while(|next| !ends(next)).find_map(|next| {
                    if reads(next, insn.src) {
                        Some(true)
                    } else if writes(next, insn.src) {
                        Some(false)
                    } else {
                        None
                    }
                });
                assert_ne!(read, Some(true), "{}: slot {at}: {insn:?}", program.name);
            }
        }
    }
}

#[test]
fn the_atomic_lint_sees_what_it_is_for() {
    let add = Raw { opcode: 0xdb, dst: 1, src: 2, off: 0, imm: 0 };
    let use_of_it = Raw { opcode: 0xbf, dst: 3, src: 2, off: 0, imm: 0 };
    let new_value = Raw { opcode: 0xb7, dst: 2, src: 0, off: 0, imm: 1 };
    assert!(is_atomic(&add) && reads(&use_of_it, 2) && writes(&new_value, 2) && !reads(&new_value, 2));
}

/// `BPF_FETCH`.
const FETCH: i32 = 1;

/// `BPF_STX | BPF_ATOMIC`, of 4 or 8 bytes.
fn is_atomic(insn: &Raw) -> bool {
    matches!(insn.opcode, 0xc3 | 0xdb)
}

/// A jump, call or exit: what follows may be elsewhere.
fn ends(insn: &Raw) -> bool {
    matches!(insn.class(), 5 | 6)
}

fn reads(insn: &Raw, register: u8) -> bool {
    match insn.class() {
        1 => insn.src == register,
        2 => insn.dst == register,
        3 => insn.src == register || insn.dst == register,
        // Arithmetic reads its destination, but for a move; a register operand has bit 3.
        4 | 7 => (insn.opcode & 8 != 0 && insn.src == register) || (insn.opcode & 0xf0 != 0xb0 && insn.dst == register),
        _ => false,
    }
}

fn writes(insn: &Raw, register: u8) -> bool {
    matches!(insn.class(), 0 | 1 | 4 | 7) && insn.dst == register
}
