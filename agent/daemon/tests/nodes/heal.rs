//! Devices, addresses and routes that somebody else changes while the agent runs, and settings that change at a restart.

use std::time::Duration;

use serde_json::json;

use crate::routing::{lab as two_nodes, objects};
use crate::support::{Lab, echo, lab, run, skipped};

const HEALED: &str = "all is as it should be again";

#[test]
fn a_node_without_an_ipv6_address_reaches_ipv6_pods() {
    let Some(mut lab) = two_nodes("ha", "") else { return };
    let without: String = objects()
        .replace(", {type: InternalIP, address: '2001:db8::1'}", "")
        .replace(", {type: InternalIP, address: '2001:db8::2'}", "");
    for node in &mut lab.nodes {
        node.namespace.inside(|| run("ip", &["-6", "address", "flush", "dev", "wire"]));
        node.write("cluster.yaml", &without);
        node.wait_for("maps are as the objects say");
    }
    let (on_a, on_b) = (lab.a.listen("[fd00:10:244:1::5]:80"), lab.b.listen("[fd00:10:244:2::6]:80"));
    let [one, two] = &lab.nodes;
    echo(&mut lab.a.reach(&on_b));
    echo(&mut one.namespace.reach(&on_a));
    let mut pair = one.namespace.reach(&on_b);
    echo(&mut pair);
    assert_eq!(pair.1.peer_addr().unwrap().ip().to_string(), "fd00:10:244:1::1");
    echo(&mut two.namespace.reach(&on_a));
    let entries = two.ask(r#"{"request":"ipcache-list"}"#);
    let gateway = entries["ok"].as_array().unwrap().iter().find(|entry| entry["prefix"] == "fd00:10:244:1::1").unwrap();
    assert_eq!((&gateway["identity"], &gateway["node"]), (&json!(6), &json!("192.0.2.1")), "{gateway}");
}

#[test]
fn the_size_of_packets_follows_the_device_and_the_setting() {
    if skipped() {
        return;
    }
    let Lab { mut node, a, b } = lab("weir-hb", "");
    assert_eq!((a.mtu("eth0"), node.namespace.mtu("weir_1")), (1450, 1450));
    node.namespace.inside(|| run("ip", &["link", "set", "wire", "mtu", "1400"]));
    node.wait_for(HEALED);
    for (namespace, device) in [
        (&a, "eth0"),
        (&b, "eth0"),
        (&node.namespace, "weir_1"),
        (&node.namespace, "weir_2"),
        (&node.namespace, "weir_host"),
        (&node.namespace, "weir_net"),
        (&node.namespace, "weir_vxlan"),
    ] {
        assert_eq!(namespace.mtu(device), 1350, "{device}");
    }
    node.kill();
    node.configure("mtu = 1300");
    node.start();
    assert_eq!((a.mtu("eth0"), node.namespace.mtu("weir_1"), node.namespace.mtu("weir_host")), (1300, 1300, 1300));
    let status = node.ask(r#"{"request":"status"}"#);
    assert_eq!((&status["ok"]["mtu"], &status["ok"]["healthy"]), (&json!(1300), &json!(true)), "{status}");
}

#[test]
fn a_pod_whose_packets_cannot_be_made_smaller_is_said() {
    if skipped() {
        return;
    }
    let Lab { mut node, a, b: _b } = lab("weir-hc", "");
    // The namespace lives on, but not under its name.
    let _held = std::fs::File::open(&a.path).unwrap();
    run("ip", &["netns", "delete", &a.name]);
    node.namespace.inside(|| run("ip", &["link", "set", "wire", "mtu", "1400"]));
    node.wait_for("endpoint 1: MTU is 1450, not 1350: ");
    node.wait_for(HEALED);
    let status = node.ask(r#"{"request":"status"}"#);
    assert_eq!(status["ok"]["healthy"], json!(false));
    assert_eq!((node.namespace.mtu("weir_1"), node.namespace.mtu("weir_2")), (1450, 1350), "{status}");
}

#[test]
fn devices_of_weir_that_somebody_removes_are_made_again() {
    let Some(mut lab) = two_nodes("hd", "") else { return };
    let on_b = lab.b.listen("10.244.2.6:80");
    echo(&mut lab.a.reach(&on_b));
    for removed in ["weir_vxlan", "weir_host"] {
        lab.nodes[0].namespace.inside(|| run("ip", &["link", "delete", removed]));
        lab.nodes[0].wait_for(HEALED);
        echo(&mut lab.a.reach(&on_b));
        echo(&mut lab.nodes[0].namespace.reach(&on_b));
    }
    lab.nodes[0].namespace.inside(|| {
        run("ip", &["address", "delete", "10.244.1.1/32", "dev", "weir_host"]);
        run("ip", &["link", "set", "weir_1", "down"]);
    });
    lab.nodes[0].wait_for("looked at devices");
    echo(&mut lab.a.reach(&on_b));
    let status = lab.nodes[0].ask(r#"{"request":"status"}"#);
    assert_eq!(status["ok"]["healthy"], json!(true), "{status}");
    assert_eq!(status["ok"]["attached"].as_array().unwrap().len(), 5, "{status}");
}

#[test]
fn a_pod_whose_namespace_is_gone_is_forgotten_at_once() {
    if skipped() {
        return;
    }
    let Lab { mut node, a, b } = lab("weir-he", "");
    drop(b);
    node.wait_for("forgotten");
    node.wait_for(HEALED);
    let endpoints = node.ask(r#"{"request":"endpoint-list"}"#);
    assert_eq!(endpoints["ok"].as_array().unwrap().len(), 1, "{endpoints}");
    echo(&mut node.namespace.reach(&a.listen("10.244.1.5:80")));
}

#[test]
fn a_device_to_other_nodes_that_is_made_again_is_taken_again() {
    for (name, settings) in [("hf", ""), ("hg", "routing-mode = 'native'")] {
        let Some(mut lab) = two_nodes(name, settings) else { return };
        let [on_b, on_b6] = ["10.244.2.6:80", "[fd00:10:244:2::6]:80"].map(|address| lab.b.listen(address));
        echo(&mut lab.a.reach(&on_b));
        lab.nodes[0].namespace.inside(|| run("ip", &["link", "delete", "wire"]));
        lab.nodes[0].wait_for("no device has this node's address");
        let status = lab.nodes[0].ask(r#"{"request":"status"}"#);
        assert_eq!(status["ok"]["healthy"], json!(false), "{status}");
        crate::support::Node::connect(&lab.nodes);
        // The other node may have seen its device go, or only another one come.
        for node in &lab.nodes {
            node.until("a device that is taken again", |status| {
                status["healthy"] == json!(true)
                    && status["attached"].to_string().contains("wire: from_netdev, to_netdev")
            });
        }
        echo(&mut lab.a.reach(&on_b));
        echo(&mut lab.a.reach(&on_b6));
    }
}

/// What the agent does itself is no reason to look again.
#[test]
fn an_agent_that_has_nothing_to_do_changes_nothing() {
    for settings in ["", "routing-mode = 'native'"] {
        let Some(mut lab) = two_nodes("hh", settings) else { return };
        lab.nodes[0].namespace.inside(|| run("ip", &["link", "set", "lo", "down"]));
        lab.nodes[0].wait_for("looked at devices");
        // The kernel makes link-local addresses, and takes its time to trust them.
        for _ in 0..500 {
            if lab.nodes[0].shows("ip", &["-6", "address", "show", "tentative"]).is_empty() {
                break;
            }
            crate::support::pause(Duration::from_millis(20));
        }
        crate::support::pause(Duration::from_millis(500));
        let seconds = ["1", "ip", "monitor", "link", "address", "route"];
        let shown = lab.nodes[0].shows("timeout", &seconds);
        assert_eq!(shown, "");
    }
}
