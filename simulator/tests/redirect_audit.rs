//! What needs a proxy is a redirect, and what a policy only audits passes and is told: in every command.
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

/// Three pods: `c` is closed by a policy that only audits, `b` has a rule for a proxy.
const CLUSTER: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: x, labels: {app: a}}
spec: {containers: [{name: m, image: i}]}
---
apiVersion: v1
kind: Pod
metadata: {name: b, namespace: x, labels: {app: b}}
spec: {containers: [{name: m, image: i, ports: [{containerPort: 80}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: c, namespace: x, labels: {app: c}}
spec: {containers: [{name: m, image: i}]}
";
const POLICIES: &str = "\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: http, namespace: x}
spec:
  endpointSelector: {matchLabels: {app: b}}
  ingress:
    - fromEndpoints: [{matchLabels: {app: a}}]
      toPorts: [{ports: [{port: \"80\", protocol: TCP}], rules: {http: [{method: GET}]}}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: later, namespace: x, annotations: {policy.weir.dev/audit: \"true\"}}
spec: {podSelector: {matchLabels: {app: c}}, policyTypes: [Ingress]}
";

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("cluster.yaml"), CLUSTER).unwrap();
    std::fs::write(folder.join("policies.yaml"), POLICIES).unwrap();
    folder
}

#[test]
fn the_matrix_has_a_letter_and_a_sign_for_each() {
    let folder = folder("redirect-matrix");
    let output = weir_sim(&folder, &["matrix", "cluster.yaml", "policies.yaml", "--json", "--html", "page.html"]);
    let with: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(with["tables"], json!([{"port": "80/TCP", "rows": [".ra1", "1.a1", "10.1", "10a."]}]));
    for engine in ["rbpf", "checked", "native"] {
        let output = weir_sim(&folder, &["matrix", "cluster.yaml", "policies.yaml", "--json", "--engine", engine]);
        let without: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(with, without, "{engine}: also where nobody asks for reasons");
    }
    let people = text(&weir_sim(&folder, &["matrix", "cluster.yaml", "policies.yaml"]).stdout);
    assert!(people.contains("3 pods on 2 nodes, 2 network policies."), "{people}");
    assert!(people.contains("! allowed, and an audited policy would deny it  » for a proxy, and there is none here"));
    let row = people.lines().find(|line| line.trim_start().starts_with("a ")).unwrap();
    assert!(row.ends_with("· » ! ✓"), "{row}");
    assert!(people.contains("80/TCP: 9 of 12 allowed"), "{people}");
    let totals = "12 probes: 6 allowed, 3 allowed that an audited policy would deny, 1 for a proxy, 2 denied; ";
    assert!(people.contains(totals), "{people}");
    let page = std::fs::read_to_string(folder.join("page.html")).unwrap();
    assert!(page.contains("ingress redirected to the HTTP proxy (there is none here) by CiliumNetworkPolicy x/http, ingress[0] (policies.yaml:7)"));
    assert!(page.contains("ingress allowed, but only audited: denied by default"), "{page}");
}

#[test]
fn explain_names_the_proxy_and_its_rule() {
    let folder = folder("redirect-explain");
    let ask = |to: &str, more: &[&str]| {
        let own = ["explain", "cluster.yaml", "policies.yaml", "--from", "x/a", "--to", to, "--port", "80/TCP"];
        weir_sim(&folder, &[&own[..], more].concat())
    };
    let people = text(&ask("x/b", &[]).stdout);
    for says in [
        "redirect: the request is for the HTTP proxy, which decides; there is none here, so it was dropped on ",
        "redirected to the HTTP proxy (there is none here) by CiliumNetworkPolicy x/http, ingress[0] (policies.yaml:7)",
    ] {
        assert!(people.contains(says), "{says}\n{people}");
    }
    assert!(!people.contains("denied"), "{people}");
    let json: Value = serde_json::from_slice(&ask("x/b", &["--json"]).stdout).unwrap();
    assert_eq!(
        (&json["verdict"], &json["allowed"], &json["proxies"]),
        (&json!("redirect"), &json!(false), &json!(["http"]))
    );
    let last = json["decisions"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["verdict"], &last["proxies"]), (&json!("redirect"), &json!(["http"])));
    let audited = text(&ask("x/c", &[]).stdout);
    assert!(audited.contains("allowed, and a policy that only audits would have denied it"), "{audited}");
    assert!(audited.contains("isolated by x/later (policies.yaml:10)"), "{audited}");
    let json: Value = serde_json::from_slice(&ask("x/c", &["--json"]).stdout).unwrap();
    assert_eq!((&json["verdict"], &json["allowed"]), (&json!("audit"), &json!(true)));
}

#[test]
fn diff_tells_what_becomes_a_redirect_or_is_audited() {
    let folder = folder("redirect-diff");
    let own = ["diff", "--before", "cluster.yaml", "--after", "cluster.yaml", "policies.yaml"];
    let output = weir_sim(&folder, &own);
    let people = text(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        people.starts_with(
            "6 of 12 verdicts change: 2 allow → deny, 0 deny → allow, 3 allow → audit, 1 allow → redirect ("
        ),
        "{people}"
    );
    for says in [
        "allow → redirect: 1 verdict\n  from  x/a\n  to    x/b\n  on    80/TCP\n",
        "is  ingress redirected to the HTTP proxy (there is none here) by CiliumNetworkPolicy x/http, ingress[0] (policies.yaml:7)",
        "is  ingress allowed, but only audited: denied by default, isolated by policy x/later (policies.yaml:10)",
    ] {
        assert!(people.contains(says), "{says}\n{people}");
    }
    std::fs::write(folder.join("list"), "redirect x/a x/b 80/TCP\naudit * x/c *\ndeny * x/b *\n").unwrap();
    let output = weir_sim(&folder, &[&own[..], &["--allow", "list", "--json"]].concat());
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &json["unexpected"]), (Some(0), &json!(0)), "{json:#}");
    assert_eq!((&json["changes"][0]["before"], &json["changes"][0]["after"]), (&json!("allow"), &json!("redirect")));
    // From an audited policy to an enforced one: both sides say which.
    std::fs::write(folder.join("enforced.yaml"), POLICIES.replace("policy.weir.dev/audit: \"true\"", "a: b")).unwrap();
    let after = ["diff", "--with", "cluster.yaml", "--before", "policies.yaml", "--after", "enforced.yaml"];
    let people = text(&weir_sim(&folder, &after).stdout);
    assert!(people.contains("audit → deny: 3 verdicts"), "{people}");
    assert!(people.contains("was ingress allowed, but only audited: denied by default, isolated by policy x/later"));
    let comment = text(&weir_sim(&folder, &[&after[..], &["--markdown"]].concat()).stdout);
    assert!(comment.contains("| audit → **deny** |"), "{comment}");
}

const HEAD: &str = "apiVersion: weir.dev/v1alpha1\nkind: Scenario\nmetadata: {name: s}\nspec:\n  manifests: [cluster.yaml, policies.yaml]\n  steps:\n";

fn run(folder: &Path, to: &str, expect: &str) -> (Option<i32>, Value) {
    let step = format!("{HEAD}    - probe: {{from: x/a, to: {to}, port: 80, expect: {expect}}}\n");
    std::fs::write(folder.join("s.yaml"), step).unwrap();
    let plain = weir_sim(folder, &["run", "s.yaml", "--json"]);
    // Hops that are written down change nothing.
    let traced = weir_sim(folder, &["run", "s.yaml", "--json", "--trace", "--engine", "checked"]);
    assert_eq!(text(&plain.stdout), text(&traced.stdout));
    (plain.status.code(), serde_json::from_slice(&plain.stdout).unwrap())
}

#[test]
fn scenarios_expect_both() {
    let folder = folder("redirect-run");
    for (to, expect) in [
        ("x/b", "redirect"),
        ("x/b", "{redirect: http}"),
        ("x/b", "{redirect: http, at: ingress}"),
        ("x/b", "{redirect: http, at: from_container}"),
        ("x/c", "audit"),
        ("x/c", "{audit: PolicyNoMatch}"),
        ("x/c", "{audit: PolicyNoMatch, at: ingress}"),
        ("x/c", "allow"),
    ] {
        let (code, json) = run(&folder, to, expect);
        // Where the hook is depends on where the pods are.
        let elsewhere = expect.contains("from_container");
        assert!(code == Some(0) || (elsewhere && code == Some(1)), "{to} {expect}: {json}");
    }
    for (to, expect, said, got, reason, at) in [
        ("x/b", "deny", "deny", "redirect", "http", "ingress"),
        ("x/b", "allow", "allow", "redirect", "http", "ingress"),
        ("x/b", "{redirect: dns}", "redirect dns", "redirect", "http", "ingress"),
        ("x/b", "{redirect: http, at: egress}", "redirect http at egress", "redirect", "http", "ingress"),
        ("x/c", "redirect", "redirect", "audit", "PolicyNoMatch", "ingress"),
        ("x/c", "deny", "deny", "audit", "PolicyNoMatch", "ingress"),
        ("x/c", "{audit: PolicyDeny}", "audit PolicyDeny", "audit", "PolicyNoMatch", "ingress"),
        (
            "x/c",
            "{audit: PolicyNoMatch, at: egress}",
            "audit PolicyNoMatch at egress",
            "audit",
            "PolicyNoMatch",
            "ingress",
        ),
    ] {
        let (code, json) = run(&folder, to, expect);
        let failure = &json["failures"][0];
        assert_eq!(code, Some(1), "{to} {expect}: {json}");
        assert_eq!(
            [&failure["expected"], &failure["got"], &failure["reason"], &failure["at"]],
            [said, got, reason, at],
            "{json}"
        );
    }
    let (_, json) = run(&folder, "world", "audit");
    assert_eq!((&json["failures"][0]["got"], &json["failures"][0]["reason"]), (&json!("allow"), &Value::Null));
}

#[test]
fn wrong_expectations_say_what_would_be_right() {
    let folder = folder("redirect-wrong");
    for (expect, says) in [
        ("redirected", "must be allow, deny, redirect, audit, {drop: REASON, at: ingress}"),
        ("{redirect: ftp}", "expect.redirect: `ftp`: must be a proxy: http, dns, tls"),
        ("{redirect: http, at: noon}", "expect.at: `noon`: must be ingress, egress or the name of a hook"),
        ("{audit: Never}", "expect.audit: `Never`: must be a drop reason: "),
        ("{audit: PolicyDeny, at: to_netdev}", "expect.at: `to_netdev`: must be ingress or egress"),
        ("{drop: PolicyDeny, audit: PolicyDeny}", "must have exactly one of drop, redirect and audit"),
        ("{at: ingress}", "must have exactly one of drop, redirect and audit"),
    ] {
        let (code, json) = run(&folder, "x/b", expect);
        let error = json["error"].as_str().unwrap();
        assert_eq!(code, Some(2), "{expect}");
        assert!(error.starts_with("s.yaml:7: spec.steps[0].probe.expect") && error.contains(says), "{expect}: {error}");
    }
}
