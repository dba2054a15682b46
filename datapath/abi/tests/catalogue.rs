//! Names and numbers that the kernel, operators and other tools see.

use std::collections::BTreeSet;

use datapath_abi::calls::CallSlot;
use datapath_abi::metrics::{self, Direction, metrics_index};
use datapath_abi::policy::{FIXED_BITS, FULL_BITS, PROTOCOL_BITS};
use datapath_abi::{DropReason, Hook, MapId, PolicyKey};

/// `BPF_OBJ_NAME_LEN` is 16 with the zero at the end: a longer name is cut, and two names may become one.
const KERNEL_NAME: usize = 15;

fn all_different<T: Ord + std::fmt::Debug>(values: impl IntoIterator<Item = T>) {
    let mut seen = BTreeSet::new();
    for value in values {
        let text = format!("{value:?}");
        assert!(seen.insert(value), "twice: {text}");
    }
}

#[test]
fn names_fit_the_kernel_and_are_unique() {
    let programs = Hook::ALL.iter().map(|hook| hook.name()).chain(CallSlot::ALL.iter().map(|(_, name)| *name));
    let maps = MapId::ALL.iter().map(|map| map.name());
    for name in programs.clone().chain(maps.clone()) {
        assert!(!name.is_empty() && name.len() <= KERNEL_NAME, "{name}");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{name}");
    }
    all_different(programs);
    all_different(maps);
}

#[test]
fn names_and_numbers_lead_back() {
    for hook in Hook::ALL {
        assert_eq!(Hook::from_name(hook.name()), Some(*hook));
        assert_eq!(Hook::from_number(*hook as u8), Some(*hook));
    }
    for map in MapId::ALL {
        assert_eq!(MapId::from_name(map.name()), Some(*map));
    }
    for reason in DropReason::ALL {
        assert_eq!(DropReason::from_number(*reason as u8), Some(*reason));
    }
}

#[test]
fn drop_reasons_are_unique_and_in_order() {
    all_different(DropReason::ALL.iter().map(|reason| *reason as u8));
    all_different(DropReason::ALL.iter().map(|reason| reason.name()));
    all_different(DropReason::ALL.iter().map(|reason| reason.text()));
    assert!(DropReason::ALL.windows(2).all(|pair| pair[0] as u8 <= pair[1] as u8), "not in the order of the numbers");
}

/// Drop reasons start at 130, so that a counter's reason is one or the other.
#[test]
fn every_counter_has_its_own_place() {
    let reasons = DropReason::ALL.iter().map(|reason| *reason as u8).chain([metrics::FORWARDED, metrics::EVENT_LOST]);
    let places = [Direction::Ingress, Direction::Egress]
        .into_iter()
        .flat_map(|direction| reasons.clone().map(move |reason| metrics_index(direction, reason)));
    assert!(places.clone().all(|place| place < metrics::COUNT));
    all_different(places);
    assert!(DropReason::ALL.iter().all(|reason| *reason as u8 >= 130));
}

#[test]
fn call_slots_fit_the_call_table() {
    all_different(CallSlot::ALL.iter().map(|(slot, _)| *slot as u32));
    assert!(CallSlot::ALL.iter().all(|(slot, _)| (*slot as u32) < CallSlot::COUNT));
}

/// The trie compares bits from the first behind `prefix_len` on: the fields lie in the order of the prefix.
#[test]
fn policy_prefixes_end_where_fields_end() {
    let end = |name: &str| {
        let field = PolicyKey::FIELDS.iter().find(|(field, ..)| *field == name);
        field.map(|(_, offset, size)| (offset + size - 4) * 8)
    };
    assert_eq!(end("identity"), usize::try_from(FIXED_BITS).ok());
    assert_eq!(end("protocol"), usize::try_from(PROTOCOL_BITS).ok());
    assert_eq!(end("port"), usize::try_from(FULL_BITS).ok());
}
