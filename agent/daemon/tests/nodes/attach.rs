//! Programs on devices by clsact, as on kernels without TCX, and the change from one way to the other.

use std::path::Path;

use serde_json::json;

use crate::support::{DENY, Lab, echo, lab, run, skipped};

fn links(bpffs: &Path) -> usize {
    std::fs::read_dir(bpffs.join("links")).unwrap().count()
}

#[test]
fn by_clsact_connections_and_policy_outlive_an_agent_that_is_killed() {
    if skipped() {
        return;
    }
    let Lab { mut node, a, b } = lab("weir-aa", "attach = 'clsact'");
    let (open, closed) = (b.listen("10.244.1.6:80"), b.listen("[fd00:10:244:1::6]:82"));
    let mut connection = a.reach(&open);
    echo(&mut connection);
    echo(&mut a.reach(&closed));
    node.write("allow.yaml", &DENY.replace("[Ingress]}", "[Ingress], ingress: [{ports: [{port: 80}]}]}"));
    node.wait_for("maps are as the objects say");
    let status = node.ask(r#"{"request":"status"}"#);
    assert_eq!((&status["ok"]["attach"], &status["ok"]["healthy"]), (&json!("clsact"), &json!(true)), "{status}");
    let attached = status["ok"]["attached"].clone();
    assert_eq!(attached.as_array().unwrap().len(), 5, "{attached}");
    assert_eq!(links(&node.bpffs), 0);
    let on_node = node.namespace.listen("192.0.2.1:81");
    echo(&mut a.reach(&on_node));
    echo(&mut node.namespace.reach(&open));
    a.fails_to_reach(&closed);

    node.kill();
    echo(&mut connection);
    echo(&mut a.reach(&open));
    a.fails_to_reach(&closed);
    node.start();
    echo(&mut connection);
    a.fails_to_reach(&closed);
    let status = node.ask(r#"{"request":"status"}"#);
    assert_eq!(status["ok"]["last_pass"]["changes"], json!(0), "{status}");
    assert_eq!(status["ok"]["attached"], attached);

    // Somebody else's filter on a device to other nodes stays.
    node.namespace.inside(|| {
        let filter = "filter add dev wire egress protocol all prio 10 u32 match u32 0 0 flowid 1:1";
        run("tc", &filter.split(' ').collect::<Vec<_>>());
    });
    node.stop();
    node.cleanup();
    let shown = ["ingress", "egress"].map(|end| node.shows("tc", &["filter", "show", "dev", "wire", end])).concat();
    assert!(shown.contains("u32") && !shown.contains("weir"), "{shown}");
}

#[test]
fn the_way_of_attaching_can_be_changed_at_a_restart() {
    if skipped() {
        return;
    }
    let Lab { mut node, a, b } = lab("weir-ab", "attach = 'tcx'");
    let (open, closed) = (b.listen("10.244.1.6:80"), b.listen("10.244.1.6:82"));
    node.write("allow.yaml", &DENY.replace("[Ingress]}", "[Ingress], ingress: [{ports: [{port: 80}]}]}"));
    node.wait_for("maps are as the objects say");
    let mut connection = a.reach(&open);
    let attached = node.ask(r#"{"request":"status"}"#)["ok"]["attached"].clone();
    for (way, pins, filters) in [("clsact", 0, 2), ("tcx", 8, 0), ("clsact", 0, 2)] {
        node.kill();
        node.configure(&format!("attach = '{way}'"));
        node.start();
        echo(&mut connection);
        echo(&mut a.reach(&open));
        a.fails_to_reach(&closed);
        let status = node.ask(r#"{"request":"status"}"#);
        assert_eq!((&status["ok"]["attach"], &status["ok"]["attached"]), (&json!(way), &attached), "{status}");
        assert_eq!(links(&node.bpffs), pins);
        let shown =
            ["ingress", "egress"].map(|end| node.shows("tc", &["filter", "show", "dev", "weir_1", end])).concat();
        assert_eq!(shown.matches("weir:").count(), filters, "{shown}");
    }
    node.stop();
    node.cleanup();
    assert!(!node.shows("tc", &["qdisc", "show", "dev", "wire"]).contains("clsact"));
}
