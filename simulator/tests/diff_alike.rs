//! `weir-sim diff` sends only the probes that the versions may answer differently; it must find what asking all finds.
#![expect(clippy::unwrap_used, reason = "a failing helper of a test is a failing test")]

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// A generator of its own, so that a seed is a picture for ever.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

fn pods(random: &mut Random) -> Vec<String> {
    let mut all = vec!["apiVersion: v1\nkind: Namespace\nmetadata: {name: a, labels: {team: x}}\n".to_owned()];
    for number in 0..5 + random.below(3) {
        let namespace = random.pick(&["a", "b"]);
        let app = random.pick(&["p", "q", "r"]);
        let host = if random.below(8) == 0 { "hostNetwork: true, " } else { "" };
        let port = random.pick(&["80", "81"]);
        all.push(format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: n{number}, namespace: {namespace}, labels: {{app: {app}}}}}\nspec: {{{host}containers: [{{name: c, image: i, ports: [{{containerPort: {port}, name: web}}]}}]}}\n"
        ));
    }
    all
}

fn policy(number: u64, random: &mut Random) -> String {
    let namespace = random.pick(&["a", "b"]);
    let subject = random.pick(&["{}", "{matchLabels: {app: p}}", "{matchLabels: {app: q}}"]);
    let peer = random.pick(&[
        "- podSelector: {matchLabels: {app: r}}",
        "- podSelector: {}",
        "- namespaceSelector: {matchLabels: {team: x}}",
        "- namespaceSelector: {}\n          podSelector: {matchLabels: {app: p}}",
        "- ipBlock: {cidr: 10.244.1.0/25}",
        "- ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.0/29]}",
        "- ipBlock: {cidr: 0.0.0.0/0, except: [10.244.1.3/32]}",
    ]);
    let ports = random.pick(&[
        "",
        "      ports: [{port: 80}]\n",
        "      ports: [{port: web}]\n",
        "      ports: [{port: 79, endPort: 80}]\n",
    ]);
    let (types, list, key) =
        if random.below(2) == 0 { ("Ingress", "ingress", "from") } else { ("Egress", "egress", "to") };
    if random.below(4) == 0 {
        let deny = random.pick(&["", "Deny"]);
        let entity = random.pick(&["world", "cluster", "remote-node", "all"]);
        return format!(
            "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: c{number}, namespace: {namespace}}}\nspec:\n  endpointSelector: {subject}\n  {list}{deny}:\n    - {key}Entities: [{entity}]\n"
        );
    }
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: k{number}, namespace: {namespace}}}\nspec:\n  podSelector: {subject}\n  policyTypes: [{types}]\n  {list}:\n    - {key}:\n        {peer}\n{ports}"
    )
}

fn write(file: &Path, documents: &[String]) {
    let mut text = String::new();
    for document in documents {
        let _ = writeln!(text, "{document}---");
    }
    std::fs::write(file, text).unwrap();
}

#[test]
fn sending_only_what_may_differ_finds_what_sending_everything_finds() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("diff-alike");
    std::fs::create_dir_all(&folder).unwrap();
    let mut changed = 0;
    for seed in 1..=40_u64 {
        let mut random = Random(seed);
        let mut before = pods(&mut random);
        let first = before.len();
        before.extend((0..1 + random.below(4)).map(|number| policy(number, &mut random)));
        let mut after = before.clone();
        for _ in 0..1 + random.below(2) {
            match random.below(4) {
                0 => after.push(policy(90, &mut random)),
                1 if after.len() > first => {
                    after.pop();
                }
                2 => after[1] = after[1].replace("app: p", "app: q").replace("app: r", "app: p"),
                _ => {
                    let last = after.len() - 1;
                    after[last] =
                        after[last].replace("80", "81").replace("app: r", "app: q").replace("world", "cluster");
                }
            }
        }
        after.dedup();
        write(&folder.join("before.yaml"), &before);
        write(&folder.join("after.yaml"), &after);
        let run = |more: &[&str]| {
            let arguments = [
                "diff",
                "--before",
                "before.yaml",
                "--after",
                "after.yaml",
                "--port",
                "80/TCP",
                "--port",
                "81/TCP",
                "--json",
            ];
            let output = Command::new(env!("CARGO_BIN_EXE_weir-sim"))
                .current_dir(&folder)
                .args(arguments)
                .args(more)
                .output()
                .unwrap();
            let json: Value = serde_json::from_slice(&output.stdout)
                .unwrap_or_else(|_| panic!("seed {seed}: {}", String::from_utf8_lossy(&output.stderr)));
            json
        };
        let (some, all) = (run(&[]), run(&["--all"]));
        assert_eq!(some, all, "seed {seed}");
        changed += usize::from(!all["changes"].as_array().unwrap().is_empty());
    }
    assert!(changed > 8, "the cases are of use only if verdicts change: {changed} of 40");
}
