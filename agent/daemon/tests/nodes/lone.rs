//! One node with two pods.

use crate::support::{DENY, Lab, echo, lab, run, skipped};
use serde_json::json;

#[test]
fn pods_reach_each_other_and_the_node_as_policy_says() {
    if skipped() {
        return;
    }
    let Lab { mut node, a, b } = lab("weir-ta", "");
    let (server4, server6) = (b.listen("10.244.1.6:80"), b.listen("[fd00:10:244:1::6]:80"));
    let on_node = node.namespace.listen("192.0.2.1:81");
    echo(&mut a.reach(&server4));
    echo(&mut a.reach(&server6));
    echo(&mut a.reach(&on_node));
    echo(&mut node.namespace.reach(&server4));

    let mut monitor = node.client();
    monitor.send(r#"{"request":"monitor","kinds":["drop"],"pod":"x/b"}"#);
    assert_eq!(monitor.line(), json!({ "ok": null }));
    node.write("deny.yaml", DENY);
    println!("deny: {}", node.wait_for("maps are as the objects say").trim());
    a.fails_to_reach(&server4);
    a.fails_to_reach(&server6);
    echo(&mut node.namespace.reach(&server4));
    let event = monitor.line()["event"].clone();
    assert_eq!((&event["outcome"], &event["source"]["name"]), (&json!("PolicyNoMatch"), &json!("x/a")), "{event}");
    let rule = event["rule"]["text"].as_str().unwrap();
    assert!(rule.contains("x/deny") && rule.contains("deny.yaml:"), "{rule}");

    // What is wrong is said, and changes nothing.
    node.write("wrong.yaml", "kind: Nonsense");
    node.wait_for("objects are wrong");
    let status = node.ask(r#"{"request":"status"}"#);
    assert_eq!(status["ok"]["healthy"], json!(false));
    let error = status["ok"]["source"]["error"].as_str().unwrap();
    assert!(error.contains("wrong.yaml"), "{error}");
    a.fails_to_reach(&server4);
    node.delete("wrong.yaml");
    node.wait_for("objects are good again");
    node.delete("deny.yaml");
    println!("allow: {}", node.wait_for("maps are as the objects say").trim());
    echo(&mut a.reach(&server4));
    let status = node.ask(r#"{"request":"status"}"#);
    assert_eq!(status["ok"]["healthy"], json!(true), "{status}");
    assert_eq!(status["ok"]["events_lost"], json!(0));
}

#[test]
fn connections_and_policy_outlive_an_agent_that_is_killed() {
    if skipped() {
        return;
    }
    let Lab { mut node, a, b } = lab("weir-tb", "");
    let (open, closed) = (b.listen("10.244.1.6:80"), b.listen("10.244.1.6:82"));
    let allow_80 = DENY.replace("[Ingress]}", "[Ingress], ingress: [{ports: [{port: 80}]}]}");
    node.write("allow.yaml", &allow_80);
    node.wait_for("maps are as the objects say");
    let mut connection = a.reach(&open);
    echo(&mut connection);
    let before = node.ask(r#"{"request":"endpoint-list"}"#);
    let identities = node.ask(r#"{"request":"identity-list"}"#);

    node.kill();
    echo(&mut connection);
    echo(&mut a.reach(&open));
    a.fails_to_reach(&closed);

    node.start();
    echo(&mut connection);
    a.fails_to_reach(&closed);
    let status = node.ask(r#"{"request":"status"}"#);
    assert_eq!(status["ok"]["last_pass"]["changes"], json!(0), "{status}");
    assert_eq!(node.ask(r#"{"request":"endpoint-list"}"#), before);
    assert_eq!(node.ask(r#"{"request":"identity-list"}"#), identities);
    // The same call again gives the same endpoint.
    assert_eq!(node.add("x/a", &a), before["ok"][0]);

    node.stop();
    echo(&mut connection);
    node.start();
    echo(&mut connection);
}

#[test]
fn what_was_not_finished_is_removed_by_the_next_start() {
    if skipped() {
        return;
    }
    let Lab { mut node, a, b } = lab("weir-tc", "");
    node.kill();
    // The pod's namespace goes while the agent is away, and a device of an endpoint that is not remembered is there.
    b.inside(|| run("ip", &["link", "delete", "eth0"]));
    node.namespace.inside(|| run("ip", &["link", "add", "weir_99", "type", "veth", "peer", "name", "x99"]));
    node.start();
    let endpoints = node.ask(r#"{"request":"endpoint-list"}"#);
    assert_eq!(endpoints["ok"].as_array().unwrap().len(), 1, "{endpoints}");
    let links = node.shows("ip", &["-br", "link"]);
    assert!(links.contains("weir_1") && !links.contains("weir_2") && !links.contains("weir_99"), "{links}");
    node.add("x/b", &b);
    echo(&mut a.reach(&b.listen("10.244.1.6:80")));
}

#[test]
fn a_pair_that_is_given_is_used_and_stays() {
    if skipped() {
        return;
    }
    let Lab { mut node, a, b } = lab("weir-tf", "");
    node.ask(r#"{"request":"endpoint-delete","endpoint":"x/b"}"#);
    let target = b.name.clone();
    node.namespace
        .inside(|| run("ip", &["link", "add", "theirs", "type", "veth", "peer", "name", "eth0", "netns", &target]));
    let add = |device: &str| {
        let path = b.path.display();
        format!(r#"{{"request":"endpoint-add","pod":"x/b","netns":"{path}","device":"{device}"}}"#)
    };
    for (wrong, why) in [("absent", "there is no device"), ("lo", "is no end of a veth"), ("weir_1", "are weir's")] {
        let refused = node.ask(&add(wrong));
        let message = refused["error"]["message"].as_str().unwrap();
        assert!(message.contains(why) && refused["error"]["input"] == json!(true), "{refused}");
    }
    let made = node.ask(&add("theirs"));
    assert_eq!(made["ok"]["device"], json!("theirs"), "{made}");
    echo(&mut a.reach(&b.listen("10.244.1.6:80")));
    node.kill();
    node.start();
    assert_eq!(node.ask(&add("theirs")), made);
    echo(&mut a.reach(&b.listen("10.244.1.6:80")));
    node.ask(r#"{"request":"endpoint-delete","endpoint":"x/b"}"#);
    let status = node.ask(r#"{"request":"status"}"#);
    assert!(!status["ok"]["attached"].to_string().contains("theirs"), "{status}");
    node.namespace.inside(|| run("ip", &["link", "show", "theirs"]));
}

#[test]
fn cleanup_leaves_nothing() {
    if skipped() {
        return;
    }
    let Lab { mut node, a, .. } = lab("weir-td", "");
    let running = node.command().arg("--cleanup").output().unwrap();
    assert_eq!(running.status.code(), Some(2), "{}", String::from_utf8_lossy(&running.stderr));
    let gone = node.ask(r#"{"request":"endpoint-delete","endpoint":"x/b"}"#);
    assert_eq!(gone["ok"]["pod"], json!("x/b"), "{gone}");
    node.stop();
    node.cleanup();
    let links = node.shows("ip", &["-br", "link"]);
    assert!(!links.contains("weir_") && links.contains("wire"), "{links}");
    let routes = node.shows("ip", &["route"]);
    assert!(!routes.contains("10.244"), "{routes}");
    assert!(!a.shows("ip", &["-br", "link"]).contains("eth0"));
    assert!(!node.bpffs.exists());
    assert!(!node.folder.path().join("state").exists());
    assert!(!node.folder.path().join("socket").exists());
}
