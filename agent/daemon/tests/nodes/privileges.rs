//! The capabilities that the agent says it needs are those that it needs.

use std::process::{Command, Stdio};

use serde_json::json;

use crate::support::{DENY, NODE, Namespace, Node, echo, pod, skipped};

/// `CAP_NET_ADMIN`, `CAP_SYS_ADMIN`, `CAP_BPF`.
const THREE: u64 = 1 << 12 | 1 << 21 | 1 << 39;

/// The agent's command, as root with no other capabilities than these.
fn with(node: &Node, capabilities: &str) -> Command {
    let plain = node.command();
    let mut command = Command::new(plain.get_program());
    let mut arguments = plain.get_args();
    // Behind `nsenter --net=…`, which needs a capability itself.
    command.arg(arguments.next().unwrap());
    command.args(["setpriv", "--no-new-privs", "--inh-caps=-all"]);
    command.arg(format!("--bounding-set=-all,{capabilities}")).args(arguments);
    for (name, value) in plain.get_envs() {
        command.env(name, value.unwrap());
    }
    command
}

#[test]
fn three_capabilities_are_enough() {
    if skipped() {
        return;
    }
    for way in ["tcx", "clsact"] {
        let prefix = format!("weir-p{way}-{}", std::process::id());
        let [a, b] = ["a", "b"].map(|pod| Namespace::new(format!("{prefix}-{pod}")));
        let mut node = Node::new(&prefix);
        node.configure(&format!("attach = '{way}'"));
        node.write("cluster.yaml", &[NODE, &pod("a", 5), &pod("b", 6)].concat());
        node.run(with(&node, "+cap_12,+cap_21,+cap_39"));
        node.wait_for("maps are as the objects say");
        let status = std::fs::read_to_string(format!("/proc/{}/status", node.id())).unwrap();
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
        assert_eq!(u64::from_str_radix(effective.trim(), 16).unwrap(), THREE, "{status}");
        node.add("x/a", &a);
        node.add("x/b", &b);
        let server = b.listen("10.244.1.6:80");
        echo(&mut a.reach(&server));
        echo(&mut a.reach(&b.listen("[fd00:10:244:1::6]:80")));
        node.write("deny.yaml", DENY);
        node.wait_for("maps are as the objects say");
        a.fails_to_reach(&server);
        node.namespace.inside(|| crate::support::run("ip", &["link", "delete", "weir_vxlan"]));
        node.wait_for("all is as it should be again");
        let listing = ["status", "endpoint-list", "identity-list", "ipcache-list", "ct-list", "metrics"];
        for request in listing {
            let answer = node.ask(&format!(r#"{{"request":"{request}"}}"#));
            assert!(answer.get("ok").is_some(), "{answer}");
        }
        node.ask(r#"{"request":"endpoint-delete","endpoint":"x/b"}"#);
        let status = node.ask(r#"{"request":"status"}"#);
        assert_eq!((&status["ok"]["healthy"], &status["ok"]["endpoints"]), (&json!(true), &json!([1, 1])), "{status}");
        node.stop();
    }
}

#[test]
fn one_capability_less_is_said() {
    if skipped() {
        return;
    }
    let node = Node::new(&format!("weir-pm-{}", std::process::id()));
    for (given, missing) in
        [("+cap_12,+cap_21", "CAP_BPF"), ("+cap_12,+cap_39", "CAP_SYS_ADMIN"), ("+cap_21,+cap_39", "CAP_NET_ADMIN")]
    {
        let output = with(&node, given).stderr(Stdio::piped()).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(&format!("no {missing}")), "{text}");
    }
}
