//! Damaged and hostile files end in errors, never in a panic or an endless run.

use agent_core::{Model, Settings};
use proptest::prelude::*;

const GOOD: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: a, namespace: x, labels: {app: a}}
spec:
  containers:
  - name: c
    ports: [{name: http, containerPort: 80}]
status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: \"fd00::1\"}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: &m {name: p, namespace: x}
spec:
  podSelector: {matchExpressions: [{key: app, operator: In, values: [a, b]}]}
  policyTypes: [Ingress, Egress]
  ingress:
  - from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}, {podSelector: {}}]
    ports: [{port: 80, endPort: 90}, {port: http}]
---
apiVersion: v1
kind: Service
metadata: *m
spec: {selector: {app: a}, ports: [{port: 80}]}
";

fn parse(text: &str) -> Result<Model, String> {
    let files = [("f.yaml".to_owned(), text.to_owned())];
    Model::parse(&files, Settings::default()).map_err(|errors| errors.to_string())
}

#[test]
fn the_undamaged_file_is_good() {
    if let Err(errors) = parse(GOOD) {
        panic!("{errors}");
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "[ -~\\n]{0,400}") {
        let _either_way = parse(&text);
    }

    #[test]
    fn a_damaged_file_is_read_or_refused_with_its_name(
        cuts in proptest::collection::vec((0_usize..GOOD.len(), 0_usize..12, "[-\\[\\]{}:,#&*!|>'\"%@` a0\\n]{0,3}"), 1..5)
    ) {
        let mut text = GOOD.to_owned();
        for (at, length, new) in cuts {
            let at = at.min(text.len());
            let end = (at + length).min(text.len());
            text.replace_range(at..end, &new);
        }
        if let Err(errors) = parse(&text) {
            for line in errors.lines() {
                prop_assert!(line.starts_with("f.yaml:"), "{}", line);
            }
        }
    }
}
