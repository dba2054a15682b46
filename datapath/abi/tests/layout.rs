//! The layout of everything that crosses the kernel boundary is `layout.golden`: a change of it is a change that people
//! review, and a map whose layout changes gets a new name. `WEIR_BLESS=1 cargo test -p datapath-abi` rewrites the file.
#![expect(clippy::unwrap_used, reason = "test code: helpers outside #[test] functions")]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use datapath_abi::{
    CidrKey4, CidrKey6, Config, CtEntry, CtKey4, CtKey6, CtSide, Event, FragEntry, FragKey4, FragKey6, IpEntry, MapId,
    MetricsEntry, PolicyEntry, PolicyKey,
};

/// A type's name, its size, and its fields: name, offset, size.
type Layout = (&'static str, usize, &'static [(&'static str, usize, usize)]);

macro_rules! layouts {
    ($($type:ident),* $(,)?) => { &[$((stringify!($type), size_of::<$type>(), $type::FIELDS)),*] };
}

const ALL: &[Layout] = layouts![
    CidrKey4,
    CidrKey6,
    Config,
    CtEntry,
    CtKey4,
    CtKey6,
    CtSide,
    Event,
    FragEntry,
    FragKey4,
    FragKey6,
    IpEntry,
    MetricsEntry,
    PolicyEntry,
    PolicyKey,
];

fn here(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn layout() -> String {
    let mut text = String::from("# Bytes: offset, size, name. Written by `WEIR_BLESS=1 cargo test -p datapath-abi`.\n");
    for (name, size, fields) in ALL {
        writeln!(text, "\n{name} {size}").unwrap();
        for (field, offset, size) in *fields {
            writeln!(text, "  {offset:>3} {size:>3} {field}").unwrap();
        }
    }
    text.push_str("\n# Maps: name, kind, key, value, entries, flags.\n");
    for map in MapId::ALL {
        let (key, value) = (map.key_size(), map.value_size());
        writeln!(text, "{} {:?} {key} {value} {} {}", map.name(), map.kind(), map.max_entries(), map.flags()).unwrap();
    }
    text
}

#[test]
fn the_layout_is_the_committed_one() {
    let golden = here("layout.golden");
    let layout = layout();
    if std::env::var_os("WEIR_BLESS").is_some() {
        fs::write(&golden, &layout).unwrap();
    }
    let committed = fs::read_to_string(&golden).unwrap();
    assert!(layout == committed, "the layout changed; if that is meant, run with WEIR_BLESS=1. It is now:\n{layout}");
}

/// Padding that nobody declared holds whatever the stack held, and maps compare every byte of a key.
#[test]
fn no_type_has_hidden_padding() {
    for (name, size, fields) in ALL {
        let mut end = 0;
        for (field, offset, size) in *fields {
            assert_eq!(*offset, end, "{name}.{field} starts behind a gap");
            end = offset + size;
        }
        assert_eq!(end, *size, "{name} ends with a gap");
    }
}

/// Every type that is declared as shared is recorded.
#[test]
fn every_shared_type_is_in_the_layout() {
    let mut declared = BTreeSet::new();
    for entry in fs::read_dir(here("src")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        for block in text.split("shared! {").skip(1) {
            let (_, rest) = block.split_once("pub struct ").unwrap();
            let name = rest.split_whitespace().next().unwrap();
            if !name.starts_with('$') {
                declared.insert(name.to_owned());
            }
        }
    }
    let recorded: BTreeSet<String> = ALL.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(declared, recorded);
}
