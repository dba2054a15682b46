//! `weir-sim lint`: every check finds what it is for, at its line, and nothing in policies that are as they should be.
#![expect(clippy::unwrap_used, reason = "a failing helper of a test is a failing test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn weir_sim(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir-sim")).current_dir(folder).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Two pods in a namespace, one on its node's network, a name server, a service; nodes with IPv4 only.
const CLUSTER: &str = "\
apiVersion: v1
kind: Node
metadata: {name: node-1, labels: {disk: fast}}
spec: {podCIDR: 10.244.1.0/24}
status: {addresses: [{type: InternalIP, address: 192.168.5.1}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web, tier: front}}
spec: {containers: [{name: c, image: i, ports: [{containerPort: 8080, name: http}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: db, namespace: shop, labels: {app: db, tier: back}}
spec: {containers: [{name: c, image: i, ports: [{containerPort: 5432, name: sql}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: exporter, namespace: shop, labels: {app: exporter}}
spec: {hostNetwork: true, containers: [{name: c, image: i}]}
---
apiVersion: v1
kind: Pod
metadata: {name: dns, namespace: kube-system, labels: {k8s-app: kube-dns}}
spec: {containers: [{name: c, image: i, ports: [{containerPort: 53, protocol: UDP}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec: {clusterIP: 10.96.0.77, selector: {app: db}, ports: [{port: 5432}]}
";

const KUBERNETES: &str =
    "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n";
const CILIUM: &str =
    "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n";
const CLUSTERWIDE: &str =
    "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: p}\nspec:\n";
const DB: &str = "  podSelector: {matchLabels: {app: db}}\n";

/// Check, head, `spec`, line of the finding, what its message says.
const CASES: &[(&str, &str, &str, u64, &str)] = &[
    (
        "refused",
        KUBERNETES,
        "  podSelector: {}\n  ingres: []\n",
        6,
        "spec.ingres: unknown field, did you mean `ingress`?",
    ),
    ("refused", CILIUM, "  endpointSelector: {}\n  egress:\n    - toRequires: []\n", 7, "spec.egress[0].toRequires"),
    (
        "subject-selects-nothing",
        KUBERNETES,
        "  podSelector: {matchLabels: {app: dba}}\n",
        1,
        "no pod has app in (dba); there is app=db",
    ),
    (
        "subject-selects-nothing",
        KUBERNETES,
        "  podSelector: {matchLabels: {app: exporter}}\n",
        1,
        "only pods in their node's network match",
    ),
    (
        "peer-selects-nothing",
        KUBERNETES,
        "  podSelector: {}\n  ingress:\n    - from:\n        - podSelector: {matchLabels: {ap: web}}\n",
        8,
        "no pod has ap in (web); there is a label `app`",
    ),
    (
        "peer-selects-nothing",
        KUBERNETES,
        "  podSelector: {}\n  ingress:\n    - from:\n        - podSelector: {matchLabels: {app: web, tier: back}}\n",
        8,
        "no pod has all of",
    ),
    (
        "peer-selects-nothing",
        CILIUM,
        "  endpointSelector: {}\n  egress:\n    - toServices: [{k8sService: {serviceName: nope, namespace: shop}}]\n",
        7,
        "there is no such service",
    ),
    (
        "peer-selects-nothing",
        CLUSTERWIDE,
        "  endpointSelector: {}\n  egress:\n    - toNodes: [{matchLabels: {disk: slow}}]\n",
        7,
        "no node has disk=slow",
    ),
    (
        "peer-selects-nothing",
        CILIUM,
        "  endpointSelector: {}\n  egress:\n    - toCIDRSet: [{cidrGroupRef: partners}]\n",
        7,
        "there is no such CiliumCIDRGroup",
    ),
    (
        "peer-on-host-network",
        KUBERNETES,
        "  podSelector: {}\n  ingress:\n    - from: [{podSelector: {matchLabels: {app: exporter}}}]\n",
        7,
        "to policies they are the node",
    ),
    (
        "selector-contradicts",
        KUBERNETES,
        "  podSelector: {matchExpressions: [{key: app, operator: In, values: [db]}, {key: app, operator: DoesNotExist}]}\n",
        1,
        "there can be none",
    ),
    (
        "namespace-missing",
        KUBERNETES,
        "  podSelector: {}\n  ingress:\n    - from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: shob}}}]\n",
        7,
        "there is no namespace `shob`; there is `shop`",
    ),
    (
        "namespace-missing",
        CILIUM,
        "  endpointSelector: {}\n  ingress:\n    - fromEndpoints: [{matchLabels: {\"k8s:io.kubernetes.pod.namespace\": gone}}]\n",
        7,
        "there is no namespace `gone`",
    ),
    (
        "port-name-missing",
        KUBERNETES,
        "  podSelector: {matchLabels: {app: db}}\n  ingress:\n    - ports: [{port: slq}]\n",
        7,
        "none of the policy's pods has a TCP port named `slq`",
    ),
    (
        "port-name-missing",
        KUBERNETES,
        "  podSelector: {}\n  policyTypes: [Egress]\n  egress:\n    - to: [{podSelector: {matchLabels: {app: db}}}]\n      ports: [{port: http}]\n",
        9,
        "none of the rule's peers has a TCP port named `http`",
    ),
    (
        "port-undeclared",
        KUBERNETES,
        "  podSelector: {matchLabels: {app: db}}\n  ingress:\n    - ports: [{port: 5433}]\n",
        7,
        "none of the policy's pods declares 5433/TCP",
    ),
    ("rule-matches-nothing", CILIUM, "  endpointSelector: {}\n  ingress: [{}]\n", 6, "`fromEntities: [all]`"),
    (
        "rule-shadowed",
        KUBERNETES,
        "  podSelector: {matchLabels: {app: db}}\n  ingress:\n    - from: [{podSelector: {}}]\n    - from: [{podSelector: {matchLabels: {app: web}}}]\n      ports: [{port: sql}]\n",
        8,
        "these do: policy shop/p, ingress[0] (p.yaml:7)",
    ),
    (
        "rule-shadowed",
        CILIUM,
        "  endpointSelector: {matchLabels: {app: db}}\n  ingressDeny:\n    - fromEntities: [cluster]\n  ingress:\n    - fromEndpoints: [{matchLabels: {app: web}}]\n",
        9,
        "these do: CiliumNetworkPolicy shop/p, ingressDeny[0] (p.yaml:7)",
    ),
    (
        "rules-ignored",
        KUBERNETES,
        "  podSelector: {}\n  policyTypes: [Ingress]\n  egress: [{}]\n",
        1,
        "policyTypes does not name egress",
    ),
    (
        "closed-without-rules",
        KUBERNETES,
        "  podSelector: {matchLabels: {app: db}}\n  egress:\n    - {}\n",
        1,
        "has rules for egress only, and closes ingress of shop/db too",
    ),
    (
        "egress-without-dns",
        KUBERNETES,
        "  podSelector: {matchLabels: {app: web}}\n  policyTypes: [Egress]\n  egress:\n    - to: [{podSelector: {matchLabels: {app: db}}}]\n      ports: [{port: sql}]\n",
        1,
        "shop/web may send something, but ask no name server",
    ),
    (
        "cidr-covers-cluster",
        KUBERNETES,
        "  podSelector: {}\n  ingress:\n    - from: [{ipBlock: {cidr: 10.0.0.0/8}}]\n",
        7,
        "3 pods and 0 nodes (pod addresses 10.244.1.0/24)",
    ),
    (
        "cidr-covers-cluster",
        CILIUM,
        "  endpointSelector: {}\n  egress:\n    - toCIDR: [192.168.5.0/24]\n",
        7,
        "which a CIDR of a Cilium policy never selects",
    ),
    (
        "cidr-covers-cluster",
        CILIUM,
        "  endpointSelector: {}\n  egress:\n    - toCIDRSet: [{cidrGroupRef: own}]\n---\napiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: own}\nspec: {externalCIDRs: [192.168.5.0/24]}\n",
        7,
        "group own: 192.168.5.0/24 holds 0 pods and 1 nodes of this cluster",
    ),
    (
        "selector-contradicts",
        KUBERNETES,
        "  podSelector: {}\n  ingress:\n    - from:\n        - podSelector: {matchExpressions: [{key: app, operator: Exists}, {key: app, operator: DoesNotExist}]}\n",
        8,
        "asks for pods with",
    ),
    (
        "rules-ignored",
        KUBERNETES,
        "  podSelector: {}\n  policyTypes: [Egress]\n  ingress: [{}, {}]\n",
        1,
        "has 2 ingress rules, but policyTypes does not name ingress",
    ),
    (
        "cidr-covers-everything",
        KUBERNETES,
        "  podSelector: {}\n  ingress:\n    - from: [{ipBlock: {cidr: 0.0.0.0/0}}]\n",
        7,
        "name them in `except`",
    ),
    (
        "cidr-covers-service",
        KUBERNETES,
        "  podSelector: {}\n  ingress:\n    - from: [{ipBlock: {cidr: 10.96.0.0/12}}]\n",
        7,
        "the addresses of 1 services",
    ),
    (
        "cidr-is-empty",
        KUBERNETES,
        "  podSelector: {}\n  ingress:\n    - from: [{ipBlock: {cidr: 198.51.100.0/24, except: [198.51.100.0/25, 198.51.100.128/25]}}]\n",
        7,
        "leave nothing",
    ),
    (
        "cidr-other-family",
        KUBERNETES,
        "  podSelector: {}\n  ingress:\n    - from: [{ipBlock: {cidr: \"2001:db8::/32\"}}]\n",
        7,
        "no IPv6 addresses",
    ),
    (
        "needs-proxy",
        CILIUM,
        "  endpointSelector: {}\n  ingress:\n    - toPorts:\n        - ports: [{port: \"8080\", protocol: TCP}]\n          rules: {http: [{method: GET}]}\n",
        8,
        "until there is one",
    ),
    ("host-policy", CLUSTERWIDE, "  nodeSelector: {}\n  ingress: [{fromEntities: [cluster]}]\n", 5, "host firewall"),
];

fn lint(name: &str, policies: &str) -> (Output, Value) {
    let folder = folder(name);
    std::fs::write(folder.join("cluster.yaml"), CLUSTER).unwrap();
    std::fs::write(folder.join("p.yaml"), policies).unwrap();
    let output = weir_sim(&folder, &["lint", "cluster.yaml", "p.yaml", "--json"]);
    let json = serde_json::from_slice(&output.stdout).unwrap();
    (output, json)
}

#[test]
fn every_check_finds_what_it_is_for_at_its_line() {
    let (mut seen, mut wrong) = (BTreeSet::new(), Vec::new());
    for (number, (id, head, spec, line, says)) in CASES.iter().enumerate() {
        let (output, json) = lint(&format!("lint-{number}"), &format!("{head}{spec}"));
        let findings = json["findings"].as_array().unwrap();
        let is = |finding: &&Value| {
            finding["id"] == *id
                && finding["message"].as_str().unwrap().contains(says)
                && (&finding["file"], &finding["line"]) == (&Value::from("p.yaml"), &Value::from(*line))
        };
        let code = output.status.code();
        if findings.iter().find(is).is_none() || code != Some(i32::from(*id == "refused")) {
            wrong.push(format!(
                "case {number}: expected p.yaml:{line} {id} with `{says}`; exit code {code:?}, {json:#}"
            ));
        }
        seen.insert(*id);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let help = text(&weir_sim(Path::new("."), &["lint", "--help"]).stdout);
    let documented: BTreeSet<&str> = help
        .split("Checks:\n")
        .nth(1)
        .unwrap()
        .lines()
        .filter_map(|line| {
            let (id, level) = line.split_once(" (")?;
            matches!(level, "error)" | "warning)" | "note)").then_some(id)
        })
        .collect();
    // These have tests of their own.
    let elsewhere = ["map-full", "map-nearly-full", "no-pods", "kinds-passed-over"];
    assert_eq!(documented, seen.into_iter().chain(elsewhere).collect::<BTreeSet<_>>());
}

#[test]
fn policies_as_they_should_be_have_no_findings() {
    let good = format!(
        "{KUBERNETES}{DB}  policyTypes: [Ingress]\n  ingress:\n    - from: [{{podSelector: {{matchLabels: {{app: web}}}}}}]\n      ports: [{{port: sql}}]\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: web, namespace: shop}}\nspec:\n  podSelector: {{matchLabels: {{app: web}}}}\n  \
         policyTypes: [Egress]\n  egress:\n    - to: [{{podSelector: {{matchLabels: {{app: db}}}}}}]\n      ports: [{{port: 5432}}]\n    \
         - to: [{{namespaceSelector: {{}}, podSelector: {{matchLabels: {{k8s-app: kube-dns}}}}}}]\n      ports: [{{port: 53, protocol: UDP}}]\n    \
         - to: [{{ipBlock: {{cidr: 0.0.0.0/0, except: [10.0.0.0/8, 192.168.0.0/16]}}}}]\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: all, namespace: shop}}\nspec: {{podSelector: {{}}, policyTypes: [Ingress, Egress]}}\n"
    );
    let (output, json) = lint("lint-good", &good);
    assert_eq!(json["findings"], serde_json::json!([]), "{json:#}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn all_errors_are_found_and_the_rest_is_checked_all_the_same() {
    let policies = format!(
        "{KUBERNETES}  podSelector: {{}}\n  ingres: []\n  egress: [{{prots: []}}]\n---\n\
         apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: q, namespace: shop}}\nspec: {{podSelector: {{matchLabels: {{app: wep}}}}}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {{name: lost, namespace: shop}}\nspec: {{nodeName: ghost, containers: [{{name: c, image: i}}]}}\n"
    );
    let (output, json) = lint("lint-several", &policies);
    let found: Vec<String> = json["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| format!("{}:{}", finding["line"], finding["id"].as_str().unwrap()))
        .collect();
    assert_eq!(found, ["6:refused", "7:refused", "9:subject-selects-nothing", "17:refused"], "{json:#}");
    assert_eq!(output.status.code(), Some(1));
}

/// A policy with so many entries for `shop/db`: each odd port is one of its own, for everybody.
fn crowded(name: &str, subject: &str, ports: usize) -> String {
    use std::fmt::Write as _;
    let mut text = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  podSelector: {subject}\n  ingress:\n    - ports:\n"
    );
    for port in 0..ports {
        let _ = writeln!(text, "        - {{port: {}}}", 1001 + 2 * port);
    }
    text
}

fn entries(message: &str) -> usize {
    let number = message.split(" needs ").nth(1).and_then(|rest| rest.split(' ').next());
    number.and_then(|number| number.parse().ok()).unwrap()
}

#[test]
fn too_many_entries_are_told_with_the_policy_that_needs_most() {
    for (ports, id, code, says) in [
        (13_000, None, 0, ""),
        (
            13_200,
            Some("map-nearly-full"),
            0,
            " policy entries of 16384; 13200 of them by policy shop/p, ingress[0] (p.yaml:7)",
        ),
        (
            16_500,
            Some("map-full"),
            1,
            " policy entries of 16384; 16500 of them by policy shop/p, ingress[0] (p.yaml:7)",
        ),
    ] {
        let (output, json) = lint(&format!("lint-full-{ports}"), &crowded("p", "{matchLabels: {app: db}}", ports));
        let found = json["findings"].as_array().unwrap();
        let finding = found.iter().find(|finding| finding["id"].as_str().unwrap().starts_with("map-"));
        assert_eq!(finding.map(|finding| finding["id"].as_str().unwrap()), id, "{ports}");
        assert_eq!(output.status.code(), Some(code), "{ports}");
        let Some(finding) = finding else { continue };
        let message = finding["message"].as_str().unwrap();
        assert!(message.starts_with("pod shop/db needs ") && message.ends_with(says), "{message}");
        assert!((ports..ports + 3).contains(&entries(message)), "{message}");
        assert_eq!((&finding["object"], &finding["line"]), (&Value::from("NetworkPolicy shop/p"), &Value::from(7)));
    }
}

#[test]
fn a_node_that_needs_too_many_entries_is_told() {
    use std::fmt::Write as _;
    // No pod needs too many; together they do.
    let mut seen = Vec::new();
    for number in [65, 82] {
        let mut policies = crowded("p", "{matchLabels: {app: p}}", 13_000);
        for number in 0..number {
            let _ = write!(
                policies,
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{number}, namespace: shop, labels: {{app: p}}}}\nspec: {{containers: [{{name: c, image: i}}]}}\n"
            );
        }
        let (output, json) = lint(&format!("lint-node-{number}"), &policies);
        let found = json["findings"].as_array().unwrap();
        let Some(finding) = found.iter().find(|finding| finding["id"].as_str().unwrap().starts_with("map-")) else {
            panic!("{number} pods: {json:#}");
        };
        let message = finding["message"].as_str().unwrap();
        assert!(
            message.starts_with("node node-1 needs ") && message.ends_with(" policy entries of 1048576"),
            "{message}"
        );
        assert_eq!((&finding["file"], &finding["line"]), (&Value::Null, &Value::Null), "nobody in particular");
        seen.push((finding["id"].as_str().unwrap().to_owned(), output.status.code()));
    }
    assert_eq!(seen, [("map-nearly-full".to_owned(), Some(0)), ("map-full".to_owned(), Some(1))]);
}

#[test]
fn exit_codes_and_forms() {
    let folder = folder("lint-codes");
    std::fs::write(folder.join("cluster.yaml"), CLUSTER).unwrap();
    std::fs::write(folder.join("p,1.yaml"), format!("{KUBERNETES}  podSelector: {{matchLabels: {{app: wep}}}}\n"))
        .unwrap();
    std::fs::write(folder.join("only.yaml"), format!("{KUBERNETES}  podSelector: {{}}\n")).unwrap();
    std::fs::write(folder.join("broken.yaml"), "kind: [\n").unwrap();
    let code = |arguments: &[&str]| weir_sim(&folder, arguments).status.code();
    let both = ["lint", "cluster.yaml", "p,1.yaml"];
    assert_eq!(code(&both), Some(0), "warnings are no errors");
    assert_eq!(code(&[&both[..], &["--deny", "warnings"]].concat()), Some(1));
    assert_eq!(code(&[&both[..], &["--deny", "warnings", "--skip", "subject-selects-nothing"]].concat()), Some(0));
    assert_eq!(code(&[&both[..], &["--skip", "refused"]].concat()), Some(2), "errors cannot be left out");
    assert_eq!(code(&["lint", "nowhere"]), Some(2));
    assert_eq!(code(&["lint", "cluster.yaml", "broken.yaml"]), Some(2));
    assert_eq!(code(&["lint", "only.yaml"]), Some(0));
    assert_eq!(code(&["lint", "only.yaml", "--deny", "notes"]), Some(1), "no pods: said, and nothing else");
    assert_eq!(
        text(&weir_sim(&folder, &["lint", "only.yaml"]).stdout),
        "note[no-pods]: the input has no pods: what is about pods is not checked\n0 errors, 0 warnings, 1 note\n"
    );
    let people = text(&weir_sim(&folder, &both).stdout);
    assert!(
        people.starts_with("p,1.yaml:1: warning[subject-selects-nothing]: NetworkPolicy shop/p: is about no pod: ")
            && people.ends_with("0 errors, 1 warning, 0 notes\n"),
        "{people}"
    );
    let github = text(&weir_sim(&folder, &[&both[..], &["--github"]].concat()).stdout);
    assert!(
        github.starts_with("::warning file=p%2C1.yaml,line=1,title=subject-selects-nothing::NetworkPolicy shop/p: "),
        "{github}"
    );
}
