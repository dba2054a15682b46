//! Prints a cluster to measure with: namespaces of apps, a default deny in each, and who may reach whom.
//!
//! ```text
//! cargo run -p simulator --example generate -- PODS [REPLICAS [SEED [CHANGED]]]
//! ```
//!
//! REPLICAS pods are alike (5; with 1 every pod is one of its own). With CHANGED, so many of the policies differ from those
//! of the same call without it. The same call prints the same bytes.

use std::io::Write as _;
use std::process::ExitCode;

const PORTS: [u16; 5] = [80, 443, 5432, 8080, 9090];
const APPS: usize = 10;

/// A linear congruential generator: nothing here needs more.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or_default() % limit.max(1)
    }
}

fn main() -> ExitCode {
    let numbers: Result<Vec<usize>, _> = std::env::args().skip(1).map(|text| text.parse()).collect();
    let numbers = numbers.unwrap_or_default();
    let (pods, replicas, seed, changed) = match numbers[..] {
        [pods] => (pods, 5, 1, 0),
        [pods, replicas] => (pods, replicas, 1, 0),
        [pods, replicas, seed] => (pods, replicas, seed, 0),
        [pods, replicas, seed, changed] => (pods, replicas, seed, changed),
        _ => {
            let _ = writeln!(std::io::stderr(), "generate PODS [REPLICAS [SEED [CHANGED]]]");
            return ExitCode::from(2);
        }
    };
    let text = cluster(pods, replicas.max(1), seed, changed);
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(2),
    }
}

fn cluster(pods: usize, replicas: usize, seed: usize, changed: usize) -> String {
    let mut random = Random(u64::try_from(seed).unwrap_or_default());
    let apps = pods.div_ceil(replicas);
    let namespaces = apps.div_ceil(APPS);
    let mut out = String::new();
    for node in 1..=10 {
        out += &format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: node-{node:02}}}\nspec: {{podCIDRs: [10.{}.0.0/16]}}\n\
             status: {{addresses: [{{type: InternalIP, address: 192.168.7.{node}}}]}}\n---\n",
            100 + node
        );
    }
    for namespace in 0..namespaces {
        out += &format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: ns-{namespace:03}, labels: {{team: t{}}}}}\n---\n\
             apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: default, namespace: ns-{namespace:03}}}\n\
             spec: {{podSelector: {{}}, policyTypes: [Ingress]}}\n---\n",
            namespace % 7
        );
    }
    let mut left = pods;
    for app in 0..apps {
        let (namespace, port) = (app / APPS, PORTS[random.below(PORTS.len())]);
        let count = replicas.min(left);
        left -= count;
        out += &format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: app-{app:04}, namespace: ns-{namespace:03}}}\n\
             spec:\n  replicas: {count}\n  selector: {{matchLabels: {{app: app-{app:04}}}}}\n  template:\n    \
             metadata: {{labels: {{app: app-{app:04}, tier: tier-{}}}}}\n    \
             spec: {{containers: [{{name: main, image: main, ports: [{{containerPort: {port}}}]}}]}}\n---\n",
            random.below(4)
        );
        let peers: Vec<usize> = (0..3).map(|_| random.below(apps)).collect();
        let team = random.below(7);
        let first = if app < changed { (peers[0] + 1 + app) % apps } else { peers[0] };
        out += &format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: app-{app:04}, namespace: ns-{namespace:03}}}\n\
             spec:\n  podSelector: {{matchLabels: {{app: app-{app:04}}}}}\n  policyTypes: [Ingress{}]\n  ingress:\n    \
             - from:\n        - podSelector: {{matchLabels: {{tier: tier-0}}}}\n",
            if app % 4 == 0 { ", Egress" } else { "" }
        );
        for peer in [first, peers[1], peers[2]] {
            out += &format!(
                "        - {{namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: ns-{:03}}}}}, podSelector: {{matchLabels: {{app: app-{peer:04}}}}}}}\n",
                peer / APPS
            );
        }
        out += &format!("      ports: [{{port: {port}}}]\n");
        if app % 4 == 0 {
            out += &format!("  egress:\n    - to: [{{namespaceSelector: {{matchLabels: {{team: t{team}}}}}}}]\n");
        }
        out += "---\n";
    }
    out
}
