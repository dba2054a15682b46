//! Every lab, as root; otherwise the skip line.
#![expect(clippy::expect_used, reason = "test code: helpers outside #[test] functions")]

use datapath_kernel::skip_line;
use netns_lab::labs;

fn run(name: &str) {
    if let Some(line) = skip_line() {
        println!("{line}");
        return;
    }
    let lab = labs::ALL.iter().find(|lab| lab.name == name).expect("the lab");
    let report = lab.run();
    print!("{}", report.text());
    let (passed, failed) = report.counts();
    assert!(failed == 0 && passed > 0, "{failed} checks failed");
}

#[test]
fn pods_of_one_node() {
    run("one-node");
}

#[test]
fn pods_of_two_nodes() {
    run("two-nodes");
}
