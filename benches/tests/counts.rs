//! The committed table is what the committed object does. `WEIR_BLESS=1 cargo test -p benches` rewrites it.

use std::fs;
use std::path::Path;

#[test]
fn the_committed_counts_are_those_of_the_committed_object() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("counts.txt");
    let now = benches::counts::table().unwrap();
    if std::env::var_os("WEIR_BLESS").is_some() {
        fs::write(&file, &now).unwrap();
    }
    let committed = fs::read_to_string(&file).unwrap();
    assert!(committed == now, "if the change is meant, run with WEIR_BLESS=1; committed:\n{committed}\nnow:\n{now}");
}
