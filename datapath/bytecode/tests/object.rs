//! The committed object is what its sources say.

use std::path::Path;

#[test]
fn object_was_built_from_these_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
    let now = datapath_bytecode::sources::hash(&root).unwrap();
    assert_eq!(
        datapath_bytecode::SOURCES.trim(),
        now,
        "the datapath's sources changed since weir.o was built: run `cargo xtask build-ebpf` and commit weir.o"
    );
}
