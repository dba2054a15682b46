//! `weir-sim` as people and scripts call it: output, exit codes, and what it says about wrong input.
#![expect(clippy::unwrap_used, reason = "a failing helper of a test is a failing test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Runs in the workspace's root, so that paths in output are the same everywhere.
fn weir_sim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir-sim")).current_dir(root()).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn the_bookshops_matrix_is_the_expected_one_on_every_engine() {
    // Checked against a separate evaluation of the policies' text when it was written; `conformance/clusters/bookshop.yaml`
    // gives the reasons, probe by probe.
    let expected: Value = serde_json::from_str(include_str!("expected/bookshop.json")).unwrap();
    for engine in ["rbpf", "checked", "native"] {
        for family in ["IPv4", "IPv6"] {
            let output = weir_sim(&["matrix", "examples/bookshop", "--json", "--engine", engine, "--family", family]);
            assert!(output.status.success(), "{}", stderr(&output));
            let got: Value = serde_json::from_str(&stdout(&output)).unwrap();
            assert_eq!(got, expected, "{engine} {family}");
        }
    }
}

#[test]
fn the_matrix_for_people_names_senders_ports_and_totals() {
    let output = weir_sim(&["matrix", "examples/bookshop", "--port", "5432/TCP"]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0));
    assert!(text.contains("10 pods on 3 nodes, 10 network policies"), "{text}");
    assert!(text.contains("5432/TCP: "), "{text}");
    assert!(!text.contains("8080/TCP"), "only what was asked for: {text}");
    let row = text.lines().find(|line| line.contains("shop/catalog-0")).unwrap();
    assert!(row.contains("✓  ✓  ✗"), "{row}");
}

#[test]
fn one_seed_gives_the_same_captures_twice_and_another_seed_others() {
    let captures = |name: &str, seed: &str| {
        let folder = folder(name);
        let output = weir_sim(&[
            "matrix",
            "examples/bookshop",
            "--port",
            "5432/TCP",
            "--seed",
            seed,
            "--pcap",
            folder.to_str().unwrap(),
        ]);
        assert!(output.status.success(), "{}", stderr(&output));
        let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
            .into_iter()
            .map(|path| (path.file_name().unwrap().to_owned(), std::fs::read(&path).unwrap()))
            .collect::<Vec<_>>()
    };
    let first = captures("pcap-a", "7");
    assert_eq!(first.len(), 11, "ten pods and the underlay");
    assert!(first == captures("pcap-b", "7"));
    assert!(first != captures("pcap-c", "8"));
}

#[test]
fn captures_are_pcapng_with_nanoseconds() {
    let folder = folder("pcap-format");
    weir_sim(&[
        "explain",
        "examples/bookshop",
        "--from",
        "shop/catalog-0",
        "--to",
        "data/books-0",
        "--port",
        "5432/TCP",
        "--pcap",
        folder.to_str().unwrap(),
    ]);
    let bytes = std::fs::read(folder.join("underlay.pcapng")).unwrap();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let mut blocks = Vec::new();
    let (mut at, mut times) = (0, Vec::new());
    while at < bytes.len() {
        let (kind, length) = (word(at), word(at + 4) as usize);
        assert_eq!(word(at + length - 4) as usize, length, "both lengths of a block agree");
        blocks.push(kind);
        if kind == 6 {
            times.push(u64::from(word(at + 12)) << 32 | u64::from(word(at + 16)));
            // An IPv4 packet in an Ethernet frame.
            assert_eq!(bytes[at + 28 + 12..at + 28 + 14], [8, 0]);
        }
        at += length;
    }
    assert_eq!(blocks, [0x0a0d_0d0a, 1, 6, 6, 6]);
    assert!(times.is_sorted() && times[0] > 3_600_000_000_000);
}

#[test]
fn explain_names_the_rule_that_allowed_with_file_and_line() {
    let output = weir_sim(&[
        "explain",
        "examples/bookshop",
        "--from",
        "shop/catalog-0",
        "--to",
        "data/books-0",
        "--port",
        "5432/TCP",
    ]);
    let text = stdout(&output);
    assert_eq!(output.status.code(), Some(0));
    let policies = std::fs::read_to_string(root().join("examples/bookshop/policies.yaml")).unwrap();
    let at = |name: &str, what: &str| {
        let start = policies.find(&format!("{{name: {name}, namespace")).unwrap();
        let line = policies[..start + policies[start..].find(what).unwrap()].matches('\n').count() + 1;
        format!("examples/bookshop/policies.yaml:{line}")
    };
    assert!(text.contains(&format!("policy shop/readers, egress[0] ({})", at("readers", "- to:"))), "{text}");
    assert!(text.contains(&format!("policy data/books, ingress[0] ({})", at("books", "- from:"))), "{text}");
    for hop in ["from_container: tunnel with identity", "encapsulated", "to_netdev", "from_overlay: deliver", "answer"]
    {
        assert!(text.contains(hop), "{hop}: {text}");
    }
}

#[test]
fn explain_names_the_policies_behind_a_default_deny() {
    let output = weir_sim(&[
        "explain",
        "examples/bookshop",
        "--from",
        "office/reports-0",
        "--to",
        "shop/orders-0",
        "--port",
        "9100/TCP",
        "--json",
    ]);
    assert_eq!(output.status.code(), Some(0), "an answer is no failure");
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(json["allowed"], false);
    assert_eq!((&json["reason"], &json["at"]), (&Value::from("PolicyNoMatch"), &Value::from("ingress")));
    let last = json["decisions"].as_array().unwrap().last().unwrap();
    let policies: Vec<&str> =
        last["by"]["isolatedBy"].as_array().unwrap().iter().map(|policy| policy["policy"].as_str().unwrap()).collect();
    assert_eq!(policies, ["shop/nothing", "shop/orders"]);
    assert!(json["hops"][1]["lookups"].as_array().unwrap().len() > 2, "{}", json["hops"][1]);
}

/// File, arguments, and what the message must say.
const WRONG: &[(&str, &str, &[&str])] = &[
    ("broken", "apiVersion: v1\nkind: Pod\nmetadata: {name: a\nspec: [\n", &["wrong.yaml:", "not YAML"]),
    (
        "kind",
        "apiVersion: v1\nkind: Pood\nmetadata: {name: a}\n",
        &["wrong.yaml:2: kind", "`Pood`", "did you mean `Pod"],
    ),
    (
        "field",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  nodeNam: x\n  containers: [{name: c, image: i}]\n",
        &["wrong.yaml:5: spec.nodeNam: unknown field, did you mean `nodeName`?"],
    ),
    (
        "address",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, image: i}]}\nstatus: {podIPs: [{ip: 10.9.0.1}]}\n\
         ---\napiVersion: v1\nkind: Pod\nmetadata: {name: b}\nspec: {containers: [{name: c, image: i}]}\nstatus:\n  podIPs: [{ip: 10.9.0.1}]\n",
        &["wrong.yaml:12: ", "10.9.0.1", "already taken at", "wrong.yaml:5"],
    ),
    (
        "node",
        "apiVersion: v1\nkind: Node\nmetadata: {name: real}\n---\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  nodeName: ghost\n  containers: [{name: c, image: i}]\n",
        &["wrong.yaml:9: spec.nodeName: no node `ghost`; there is `real`"],
    ),
    (
        "policy",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p}\nspec:\n  podSelector: {}\n  ingress:\n    - ports: [{port: 90, endPort: 80}]\n    - fron: []\n",
        &["wrong.yaml:7: ", "endPort", "wrong.yaml:8: spec.ingress[1].fron: unknown field, did you mean `from`?"],
    ),
    ("twice", "apiVersion: v1\nkind: Pod\nkind: Pod\n", &["wrong.yaml:3: kind: key occurs twice (first in line 2)"]),
];

#[test]
fn wrong_manifests_end_in_exit_code_2_with_file_line_and_field() {
    for (name, text, says) in WRONG {
        let folder = folder(&format!("wrong-{name}"));
        std::fs::write(folder.join("wrong.yaml"), text).unwrap();
        for command in [
            vec!["matrix", folder.to_str().unwrap(), "--port", "80/TCP"],
            vec!["explain", folder.to_str().unwrap(), "--from", "default/a", "--to", "world", "--port", "80/TCP"],
        ] {
            let output = weir_sim(&command);
            let message = stderr(&output);
            assert_eq!(output.status.code(), Some(2), "{name}: {message}");
            assert!(stdout(&output).is_empty());
            for part in *says {
                assert!(message.contains(part), "{name}: expected `{part}` in:\n{message}");
            }
        }
    }
}

const POD: &str =
    "---\napiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: x}\nspec: {containers: [{name: c, image: i}]}\n";

/// Lines of `spec`, and what the message must say.
const WRONG_SCENARIOS: &[(&str, &str, &[&str])] = &[
    (
        "service",
        "  steps:\n    - probe: {from: x/a, to: svc/x/web, port: 80, expect: allow}\n",
        &["s.yaml:6: spec.steps[0].probe.to", "services are not simulated yet"],
    ),
    (
        "backend",
        "  steps:\n    - probe: {from: x/a, to: world, port: 80, expect: allow, backend: [x/b]}\n",
        &["s.yaml:6: spec.steps[0].probe.backend", "services are not simulated yet"],
    ),
    (
        "unknown",
        "  steps:\n    - probe: {from: x/a, to: world, sourceProt: 80, port: 1, expect: allow}\n",
        &["s.yaml:6: spec.steps[0].probe.sourceProt: unknown field, did you mean `sourcePort`?"],
    ),
    (
        "expect",
        "  steps:\n    - probe: {from: x/a, to: world, port: 80, expect: alow}\n",
        &["s.yaml:6: ", "must be allow, deny"],
    ),
    (
        "reason",
        "  steps:\n    - probe: {from: x/a, to: world, port: 80, expect: {drop: NoReason}}\n",
        &["s.yaml:6: ", "`NoReason`: must be a drop reason: InvalidSourceIp"],
    ),
    ("step", "  steps:\n    - wait: 5s\n", &["s.yaml:6: spec.steps[0].wait: unknown field"]),
    ("time", "  steps:\n    - advance: 5 minutes\n", &["s.yaml:6: spec.steps[0].advance", "must be a duration"]),
    (
        "pod",
        "  steps:\n    - probe: {from: x/b, to: world, port: 80, expect: allow}\n",
        &["s.yaml:6: probe: no pod `x/b`"],
    ),
    (
        "named",
        "  steps:\n    - probe: {from: world, to: x/a, port: web, expect: allow}\n",
        &["s.yaml:6: probe.port: `x/a` has no TCP port `web`"],
    ),
    ("file", "  manifests: [gone.yaml]\n  steps: []\n", &["s.yaml:5: spec.manifests[0]", "gone.yaml"]),
    (
        "config",
        "  config: {routingMode: teleport}\n  steps: []\n",
        &["s.yaml:5: spec.config.routingMode: `teleport`: must be tunnel or native"],
    ),
    (
        "delete",
        "  steps:\n    - delete: [{apiVersion: v1, kind: Pod, metadata: {name: zed, namespace: x}}]\n",
        &["s.yaml:6: delete: no Pod `x/zed` to delete"],
    ),
];

#[test]
fn wrong_scenarios_end_in_exit_code_2_with_file_and_line() {
    for (name, spec, says) in WRONG_SCENARIOS {
        let folder = folder(&format!("scenario-{name}"));
        let file = folder.join("s.yaml");
        let head = "apiVersion: weir.dev/v1alpha1\nkind: Scenario\nmetadata: {name: wrong}\nspec:\n";
        std::fs::write(&file, format!("{head}{spec}{POD}")).unwrap();
        let output = weir_sim(&["run", file.to_str().unwrap(), "--json"]);
        assert_eq!(output.status.code(), Some(2), "{name}: {}", stdout(&output));
        let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
        let error = json["error"].as_str().unwrap();
        for part in *says {
            assert!(error.contains(part), "{name}: expected `{part}` in:\n{error}");
        }
    }
}

#[test]
fn a_failed_expectation_is_exit_code_1_and_one_json_line_in_the_contracts_shape() {
    let folder = folder("failing");
    let file = folder.join("s.yaml");
    let text = format!(
        "apiVersion: weir.dev/v1alpha1\nkind: Scenario\nmetadata: {{name: fails}}\nspec:\n  steps:\n    \
         - probe: {{from: x/a, to: world, port: 80, expect: allow}}\n    \
         - probe: {{from: world, to: x/a, port: 80, protocol: UDP, expect: allow, repeat: 3}}\n{POD}---\n\
         apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: x}}\nspec: {{podSelector: {{}}}}\n"
    );
    std::fs::write(&file, text).unwrap();
    let junit = folder.join("junit.xml");
    let path = file.to_str().unwrap();
    let output = weir_sim(&["run", path, "--json", "--junit", junit.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let expected = format!(
        "{{\"file\":\"{path}\",\"name\":\"fails\",\"probes\":4,\"failed\":3,\"failures\":[{{\"step\":2,\"from\":\"world\",\
         \"to\":\"x/a\",\"protocol\":\"UDP\",\"port\":80,\"expected\":\"allow\",\"got\":\"drop\",\"reason\":\"PolicyNoMatch\",\
         \"at\":\"ingress\"}}],\"error\":null}}\n"
    );
    assert_eq!(stdout(&output), expected);
    let junit = std::fs::read_to_string(junit).unwrap();
    assert!(
        junit.contains("tests=\"1\" failures=\"1\" errors=\"0\"") && junit.contains("step 2: world → x/a"),
        "{junit}"
    );
    let text = stdout(&weir_sim(&["run", path, "--engine", "checked", "--trace"]));
    assert!(text.contains("from_netdev") && text.contains("drop PolicyNoMatch"), "{text}");
}

#[test]
fn wrong_calls_are_exit_code_2() {
    for arguments in [
        &["matrix"][..],
        &["matrix", "nowhere"],
        &["matrix", "examples/bookshop", "--port", "80/IP"],
        &["matrix", "examples/bookshop", "--port", "0/TCP"],
        &["explain", "examples/bookshop", "--from", "svc/shop/orders", "--to", "world", "--port", "1"],
        &["explain", "examples/bookshop", "--from", "shop/nobody", "--to", "world", "--port", "1"],
        &["run", "simulator/src"],
        &["dance"],
    ] {
        let output = weir_sim(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(!stderr(&output).is_empty(), "{arguments:?}");
    }
}

#[test]
fn fuzzing_tells_seed_and_engines_and_finds_nothing() {
    let output = weir_sim(&["fuzz", "--packets", "3000", "--seed", "11", "--engines", "native,checked", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}{}", stdout(&output), stderr(&output));
    let json: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!((&json["packets"], &json["seed"]), (&Value::from(3000), &Value::from(11)));
    assert_eq!(json["engines"], serde_json::json!(["native", "checked"]));
    assert_eq!(json["difference"], Value::Null);
    assert_eq!(weir_sim(&["fuzz", "--engines", "native"]).status.code(), Some(2), "nothing to compare with");
}

#[test]
fn packet_scenarios_and_cluster_scenarios_run_side_by_side() {
    let output = weir_sim(&["run", "conformance", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stdout(&output));
    let files: Vec<String> = stdout(&output)
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["file"].as_str().unwrap().to_owned())
        .collect();
    assert!(files.iter().any(|file| file.ends_with(".toml")) && files.iter().any(|file| file.ends_with(".yaml")));
}
