//! What is refused is refused with file, line, field and what would be right: those messages that no other test asks for.
#![expect(clippy::unwrap_used, reason = "a failing helper of a test is a failing test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn weir_sim(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir-sim")).current_dir(folder).args(arguments).output().unwrap()
}

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: x}\n";
const CONTAINERS: &str = "spec: {containers: [{name: c, image: i}]}\n";
const CILIUM: &str = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: x}\nspec:\n  endpointSelector: {}\n";
const TIER: &str = "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {name: p}\nspec:\n  tier: Admin\n  priority: 1\n  subject: {namespaces: {}}\n";

/// Manifest in two parts, line of the error, and what the message says after the line.
const MANIFESTS: &[(&str, &str, u32, &str)] = &[
    ("a: &x [*x]\n", "", 1, "not YAML: an alias inside the value that it names"),
    ("[a, b]: c\n", "", 1, "not YAML: a key that is not a string"),
    (
        "apiVersion: v1\nkind: Pod\nmetadata: {generateName: p-, namespace: x}\n",
        CONTAINERS,
        3,
        "metadata.generateName: not supported: an object from a file needs a `name` of its own",
    ),
    (
        "apiVersion: v1\nkind: Node\nmetadata: {name: n, namespace: x}\n",
        "",
        3,
        "metadata.namespace: not supported: objects of this kind belong to the whole cluster",
    ),
    (
        "apiVersion: v1\nkind: Node\nmetadata: {name: n}\n",
        "spec:\n  podCIDR: 10.2.0.0/24\n  podCIDRs: [10.1.0.0/24]\n",
        5,
        "spec.podCIDR: must be the first of podCIDRs",
    ),
    (
        POD,
        "spec: {containers: [{name: c, image: i}]}\nstatus: {phase: Gone}\n",
        5,
        "status.phase: `Gone`: must be Pending, Running, Succeeded, Failed or Unknown",
    ),
    (
        POD,
        "spec: {containers: [{name: c, image: i}]}\nstatus:\n  podIPs:\n    - ip: 10.1.0.1\n    - ip: 10.1.0.2\n",
        8,
        "status.podIPs[1].ip: `10.1.0.2`: a pod has at most one address of a family",
    ),
    (
        POD,
        "spec: {containers: [{name: c, image: i}]}\nstatus:\n  podIP: 10.1.0.9\n  podIPs: [{ip: 10.1.0.1}]\n",
        6,
        "status.podIP: `10.1.0.9`: must be the first of podIPs",
    ),
    (
        POD,
        "spec: {containers: [{name: c, image: i, ports: [{containerPort: 1, name: Web}]}]}\n",
        4,
        "spec.containers[0].ports[0].name: `Web`: a port's name has at most 15 lower-case letters, digits and single `-`, at least one of them a letter",
    ),
    (
        POD,
        "spec: {containers: [{name: c, image: i, ports: [{containerPort: http}]}]}\n",
        4,
        "spec.containers[0].ports[0].containerPort: expected a whole number",
    ),
    (
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, namespace: x}\naddressType: IPv4\n",
        "endpoints:\n  - addresses: [\"fd00::1\"]\n",
        6,
        "endpoints[0].addresses[0]: `fd00::1`: must be of the slice's addressType",
    ),
    (
        CILIUM,
        "  egress:\n    - toPorts: [{ports: [{port: \"80\", protocol: TCP}], listener: {name: l}}]\n",
        7,
        "spec.egress[0].toPorts[0].listener: not supported: there are no listeners of Envoy",
    ),
    (
        CILIUM,
        "  egress:\n    - toPorts: [{ports: [{port: \"80\", protocol: TCP}], rules: {}}]\n",
        7,
        "spec.egress[0].toPorts[0].rules: needs http or dns",
    ),
    (
        CILIUM,
        "  egress:\n    - toPorts: [{ports: [{port: \"80\", protocol: TCP}], rules: {http: [{headerMatches: []}]}}]\n",
        7,
        "spec.egress[0].toPorts[0].rules.http[0].headerMatches: not supported: headers are matched by `headers` only",
    ),
    (
        TIER,
        "  ingress:\n    - action: Accept\n      name: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n      from: [{namespaces: {}}]\n",
        10,
        "must have at most 100 characters",
    ),
];

#[test]
fn manifests_are_refused_with_line_field_and_rule() {
    let folder = folder("refused-manifests");
    let mut wrong = Vec::new();
    for (number, (head, tail, line, says)) in MANIFESTS.iter().enumerate() {
        let file = format!("m{number}.yaml");
        std::fs::write(folder.join(&file), format!("{head}{tail}")).unwrap();
        let output = weir_sim(&folder, &["lint", &file, "--json"]);
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        let is = |finding: &&Value| {
            finding["id"] == "refused"
                && (&finding["file"], &finding["line"]) == (&Value::from(file.as_str()), &Value::from(*line))
                && finding["message"].as_str().unwrap().contains(says)
        };
        let code = if says.starts_with("not YAML") { 2 } else { 1 };
        if json["findings"].as_array().unwrap().iter().find(is).is_none() || output.status.code() != Some(code) {
            wrong.push(format!("{file}: expected line {line}: {says}\n{json:#}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Lines of a scenario's `spec`, and what the error says.
const SCENARIOS: &[(&str, &str)] = &[
    (
        "  config: {tunnelProtocol: gre}\n  steps: []\n",
        "s.yaml:5: spec.config.tunnelProtocol: `gre`: must be vxlan or geneve",
    ),
    (
        "  config: {policyEnforcement: some}\n  steps: []\n",
        "s.yaml:5: spec.config.policyEnforcement: `some`: must be default, always or never",
    ),
    (
        "  config: {cidrMatch: [world]}\n  steps: []\n",
        "s.yaml:5: spec.config.cidrMatch[0]: `world`: must be nodes or pods",
    ),
    ("  config: {identityLabels: app}\n  steps: []\n", "s.yaml:5: spec.config.identityLabels: expected a list"),
    ("  config: {ipv4: false, ipv6: false}\n  steps: []\n", "s.yaml:1: spec.config: ipv4 and ipv6 cannot both be off"),
    (
        "  steps:\n    - {advance: 1s, apply: []}\n",
        "s.yaml:6: spec.steps[0]: `...`: a step has exactly one of probe, apply, delete and advance",
    ),
    (
        "  steps:\n    - probe: {from: x/a, to: world, port: 80, expect: reset}\n",
        "probe.expect: `reset`: proxies are not simulated yet",
    ),
    (
        "  steps:\n    - probe: {from: x/a, to: world, port: 80, http: {}, expect: allow}\n",
        "probe.http: not supported: proxies are not simulated yet",
    ),
    (
        "  steps:\n    - probe: {from: x/a, to: world, port: 80, protocol: GRE, expect: allow}\n",
        "probe.protocol: `GRE`: must be TCP, UDP, SCTP or ICMP",
    ),
    (
        "  steps:\n    - probe: {from: x/a, to: world, port: 80, protocol: ICMP, expect: allow}\n",
        "probe.port: not supported: ICMP has no ports; use `type`",
    ),
    (
        "  steps:\n    - probe: {from: x/a, to: world, port: 80, type: 8, expect: allow}\n",
        "probe.type: not supported: only ICMP has types",
    ),
    (
        "  steps:\n    - probe: {from: a, to: world, port: 80, expect: allow}\n",
        "probe.from: `a`: must be NAMESPACE/POD, node/NAME, an IP address or `world`",
    ),
    (
        "  steps:\n    - probe: {from: x/a, to: world, port: 80, family: IPv5, expect: allow}\n",
        "probe.family: `IPv5`: must be IPv4 or IPv6",
    ),
];

#[test]
fn scenarios_are_refused_with_line_field_and_rule() {
    let folder = folder("refused-scenarios");
    let pod = "---\napiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: x}\nspec: {containers: [{name: c, image: i}]}\n";
    let mut wrong = Vec::new();
    for (spec, says) in SCENARIOS {
        let head = "apiVersion: weir.dev/v1alpha1\nkind: Scenario\nmetadata: {name: wrong}\nspec:\n";
        std::fs::write(folder.join("s.yaml"), format!("{head}{spec}{pod}")).unwrap();
        let output = weir_sim(&folder, &["run", "s.yaml", "--json"]);
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        let error = json["error"].as_str().unwrap_or_default();
        if !error.contains(says) || output.status.code() != Some(2) {
            wrong.push(format!("expected {says}\nin {json}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    std::fs::write(folder.join("s.yaml"), "apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n").unwrap();
    let output = weir_sim(&folder, &["run", "s.yaml"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("s.yaml: expected one document with `kind: Scenario`, found 0"), "{text}");
    assert_eq!(output.status.code(), Some(2));
}
