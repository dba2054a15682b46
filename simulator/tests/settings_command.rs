//! Settings of the agents count for every command, from a file or the command line; nodes are ends like pods.
#![expect(clippy::unwrap_used, reason = "a failing helper of a test is a failing test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};

fn weir_sim(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir-sim")).current_dir(folder).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

const CLUSTER: &str = "\
apiVersion: v1
kind: Node
metadata: {name: node-1}
spec: {podCIDR: 10.1.0.0/24}
status: {addresses: [{type: InternalIP, address: 192.168.5.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: x, labels: {app: a}}
spec: {containers: [{name: m, image: i, ports: [{containerPort: 80}]}]}
status: {podIPs: [{ip: 10.1.0.5}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: x, labels: {app: b}}
spec: {containers: [{name: m, image: i}]}
status: {podIPs: [{ip: 10.1.0.6}]}
";
/// Only by address and by the cluster's name.
const POLICY: &str = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: to, namespace: x}
spec:
  endpointSelector: {matchLabels: {app: a}}
  egress:
    - toCIDR: [10.1.0.6/32]
    - toEndpoints: [{matchLabels: {io.cilium.k8s.policy.cluster: blue}}]
";
const HOST: &str = "\
apiVersion: cilium.io/v2
kind: CiliumClusterwideNetworkPolicy
metadata: {name: host}
spec:
  nodeSelector: {}
  ingress: [{fromEntities: [world]}]
";

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    for (file, text) in [
        ("cluster.yaml", CLUSTER),
        ("policy.yaml", POLICY),
        ("host.yaml", HOST),
        ("agent.toml", "policy-enforcement = \"never\"\nmtu = 1400\nsocket = \"/run/w.sock\"\n"),
        ("pods.yaml", "cidrMatch: [pods]\n"),
        ("firewall.toml", "host-firewall = true\n"),
        ("wrong.toml", "host-firewal = true\n"),
        ("wrong.yaml", "hostFirewal: true\n"),
        ("none.toml", "ipv4 = false\nipv6 = false\n"),
    ] {
        std::fs::write(folder.join(file), text).unwrap();
    }
    folder
}

fn rows(folder: &Path, more: &[&str]) -> Vec<String> {
    let output = weir_sim(folder, &[&["matrix", "cluster.yaml", "policy.yaml", "--json"], more].concat());
    assert!(output.status.success(), "{more:?}: {}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    json["tables"][0]["rows"].as_array().unwrap().iter().map(|row| row.as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_matrix_is_that_of_the_settings() {
    let folder = folder("settings-matrix");
    for (more, expected) in [
        (&[][..], [".00", "1.1", "11."]),
        (&["--cidr-match", "pods"], [".10", "1.1", "11."]),
        (&["--cidr-match", "nodes,pods"], [".10", "1.1", "11."]),
        (&["--config", "pods.yaml"], [".10", "1.1", "11."]),
        (&["--cluster-name", "blue"], [".10", "1.1", "11."]),
        (&["--policy-enforcement", "never"], [".11", "1.1", "11."]),
        (&["--policy-enforcement", "always"], [".00", "0.0", "00."]),
        (&["--config", "agent.toml"], [".11", "1.1", "11."]),
        // What is said on the command line wins.
        (&["--config", "agent.toml", "--policy-enforcement", "default"], [".00", "1.1", "11."]),
        (&["--routing-mode", "native", "--identity-labels", "app,!team"], [".00", "1.1", "11."]),
    ] {
        assert_eq!(rows(&folder, more), expected, "{more:?}");
    }
}

#[test]
fn explain_diff_lint_and_the_page_have_the_same_settings() {
    let folder = folder("settings-others");
    let explain =
        ["explain", "cluster.yaml", "policy.yaml", "--from", "x/a", "--to", "x/b", "--port", "80/TCP", "--json"];
    let verdict = |more: &[&str]| {
        let output = weir_sim(&folder, &[&explain[..], more].concat());
        serde_json::from_slice::<Value>(&output.stdout).unwrap()["verdict"].clone()
    };
    assert_eq!((verdict(&[]), verdict(&["--cidr-match=pods"])), (json!("deny"), json!("allow")));
    let always = text(
        &weir_sim(
            &folder,
            &[
                "explain",
                "cluster.yaml",
                "--from",
                "x/a",
                "--to",
                "x/b",
                "--port",
                "80/TCP",
                "--policy-enforcement",
                "always",
            ],
        )
        .stdout,
    );
    assert!(always.contains("isolated by the setting policy-enforcement = always"), "{always}");
    // The same files, other settings: what changing a setting does.
    let diff =
        ["diff", "--with", "cluster.yaml", "--before", "policy.yaml", "--after", "policy.yaml", "--port", "80/TCP"];
    assert_eq!(weir_sim(&folder, &diff).status.code(), Some(0));
    let output = weir_sim(&folder, &[&diff[..], &["--after-config", "pods.yaml"]].concat());
    let people = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{people}");
    assert!(people.contains("from  x/a\n  to    x/b\n") && people.contains("egress[0] (policy.yaml:7)"), "{people}");
    let output = weir_sim(&folder, &[&diff[..], &["--config", "pods.yaml"]].concat());
    assert_eq!(output.status.code(), Some(0), "both versions have it");
    let output = weir_sim(&folder, &[&diff[..], &["--before-config", "agent.toml"]].concat());
    assert!(text(&output.stdout).contains("2 of 6 verdicts change: 2 allow → deny"), "{}", text(&output.stdout));
    let ids = |more: &[&str]| {
        let output =
            weir_sim(&folder, &[&["lint", "cluster.yaml", "policy.yaml", "host.yaml", "--json"], more].concat());
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        let findings = json["findings"].as_array().unwrap().iter();
        findings.map(|finding| finding["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert!(ids(&[]).contains(&"cidr-covers-cluster".to_owned()) && ids(&[]).contains(&"host-policy".to_owned()));
    let more = ids(&["--cidr-match", "pods,nodes", "--host-firewall", "--cluster-name", "blue"]);
    assert!(!more.iter().any(|id| id == "cidr-covers-cluster" || id == "host-policy"), "{more:?}");
    let matrix = ["matrix", "cluster.yaml", "policy.yaml", "--cidr-match", "pods", "--html", "page.html", "--json"];
    assert_eq!(weir_sim(&folder, &matrix).status.code(), Some(0));
    let page = std::fs::read_to_string(folder.join("page.html")).unwrap();
    assert!(page.contains("egress allowed by CiliumNetworkPolicy x/to, egress[0] (policy.yaml:7)"));
}

#[test]
fn nodes_are_ends_where_policies_are_about_them() {
    let folder = folder("settings-nodes");
    let run = |more: &[&str]| {
        let output = weir_sim(&folder, &[&["matrix", "cluster.yaml", "--json"], more].concat());
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    assert_eq!(run(&[])["endpoints"], json!(["x/a", "x/b", "world"]));
    let asked = run(&["--nodes"]);
    assert_eq!(asked["endpoints"], json!(["x/a", "x/b", "node/node-1", "world"]));
    assert_eq!(asked["tables"][0]["rows"], json!([".111", "1.11", "11.1", "111."]));
    // Without the firewall the policy is read and has no effect.
    let off = run(&["host.yaml"]);
    assert_eq!(off["tables"][0]["rows"], json!([".111", "1.11", "11.1", "111."]));
    let on = run(&["host.yaml", "--host-firewall"]);
    assert_eq!(on["tables"][0]["rows"], json!([".101", "1.01", "11.1", "111."]));
    let diff = [
        "diff",
        "--with",
        "cluster.yaml",
        "--before",
        "host.yaml",
        "--after",
        "host.yaml",
        "--after-config",
        "firewall.toml",
    ];
    let people = text(&weir_sim(&folder, &diff).stdout);
    for says in [
        "2 of 12 verdicts change: 2 allow → deny",
        "to    node/node-1",
        "is  ingress of node node-1 denied by default, isolated by CiliumClusterwideNetworkPolicy host (host.yaml:1)",
    ] {
        assert!(people.contains(says), "{says}\n{people}");
    }
    let explain = [
        "explain",
        "cluster.yaml",
        "host.yaml",
        "--host-firewall",
        "--from",
        "x/a",
        "--to",
        "node/node-1",
        "--port",
        "80/TCP",
    ];
    let people = text(&weir_sim(&folder, &explain).stdout);
    assert!(people.contains("ingress of node/node-1") && people.contains("isolated by host (host.yaml:1)"), "{people}");
}

#[test]
fn wrong_settings_are_exit_code_2() {
    let folder = folder("settings-wrong");
    for (more, says) in [
        (&["--config", "gone.toml"][..], "gone.toml: No such file"),
        (&["--config", "wrong.toml"], "unknown field `host-firewal`"),
        (&["--config", "wrong.yaml"], "wrong.yaml:1: hostFirewal: unknown field, did you mean `hostFirewall`?"),
        (&["--config", "none.toml"], "none.toml: ipv4 and ipv6 cannot both be false"),
        (&["--policy-enforcement", "strict"], "[possible values: default, always, never]"),
        (&["--cidr-match", "node"], "[possible values: nodes, pods]"),
        (&["--host-firewall=yes"], "[possible values: true, false]"),
        (&["--junit", "x.xml"], "--expect"),
    ] {
        let output = weir_sim(&folder, &[&["matrix", "cluster.yaml"], more].concat());
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{more:?}: {message}");
        assert!(message.contains(says), "{more:?}: expected `{says}` in:\n{message}");
    }
}
