//! The policy compiler at scale, 1,000 policies and 10,000 pods of 2,500 identities on 100 nodes:
//! `cargo bench -p benches --bench policy`.
#![expect(clippy::expect_used, reason = "a benchmark that cannot run ends")]

use std::fmt::Write as _;

use agent_core::model::{Model, Object, Settings, read_objects};
use agent_core::{Compiled, Direction, IdentityAllocator};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};

/// 250 namespaces of ten applications with four pods each, and four policies in each.
fn manifests() -> String {
    let mut text = String::new();
    for node in 0..100 {
        write!(
            text,
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: n{node}}}\nspec: {{podCIDRs: [10.100.{node}.0/24]}}\n\
             status: {{addresses: [{{type: InternalIP, address: 192.168.0.{node}}}]}}\n"
        )
        .expect("writes");
    }
    for namespace in 0..250 {
        let (n, team) = (format!("ns{namespace}"), namespace % 20);
        write!(text, "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {n}, labels: {{team: t{team}}}}}\n")
            .expect("writes");
        for (app, replica) in (0..10).flat_map(|app| (0..4).map(move |replica| (app, replica))) {
            write!(
                text,
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: a{app}-{replica}, namespace: {n}, \
                 labels: {{app: a{app}, tier: x{}, pod-template-hash: h{replica}}}}}\n\
                 spec: {{containers: [{{name: c, ports: [{{name: http, containerPort: 80}}]}}]}}\n",
                app % 3
            )
            .expect("writes");
        }
        let kubernetes = |name: &str, spec: &str| {
            format!(
                "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: {n}}}\n\
                 spec: {{{spec}}}\n"
            )
        };
        let cilium = |name: &str, spec: &str| {
            format!(
                "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}, namespace: {n}}}\n\
                 spec: {{{spec}}}\n"
            )
        };
        text += &kubernetes("deny", "podSelector: {}, policyTypes: [Ingress]");
        text += &kubernetes("in", &team_may_in(team, 80));
        text += &cilium(
            "out",
            &format!(
                "endpointSelector: {{matchLabels: {{app: a1}}}}, egress: [{{toEndpoints: [{{matchLabels: {{app: a2}}}}], \
                 toPorts: [{{ports: [{{port: \"80\", protocol: TCP}}]}}]}}, {{toCIDR: [203.0.{namespace}.0/24]}}]"
            ),
        );
        text += &cilium(
            "inside",
            "endpointSelector: {}, ingress: [{fromEntities: [cluster]}], \
             ingressDeny: [{fromEndpoints: [{matchLabels: {app: a9}}]}]",
        );
    }
    text
}

fn team_may_in(team: usize, port: u16) -> String {
    format!(
        "podSelector: {{matchLabels: {{app: a0}}}}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: \
         {{team: t{team}}}}}}}], ports: [{{port: {port}}}]}}]"
    )
}

fn objects(text: String) -> Vec<Object> {
    read_objects(&[("cluster.yaml".to_owned(), text)]).expect("is valid")
}

/// A cluster before and after a change, and what it was compiled to before.
struct Change {
    after: Model,
    identities: IdentityAllocator,
    compiled: Compiled,
}

fn change(before: &Model, text: &str) -> Change {
    let mut identities = IdentityAllocator::default();
    let compiled = Compiled::new(before, &mut identities).expect("compiles");
    let mut after = before.clone();
    after.apply(objects(text.to_owned())).expect("fits");
    Change { after, identities, compiled }
}

fn policy(criterion: &mut Criterion) {
    let settings = Settings { ipv6: false, ..Settings::default() };
    let model = Model::from_objects(objects(manifests()), settings).expect("fits");
    let mut group = criterion.benchmark_group("policy_1000_policies_10000_pods");
    group.sample_size(10);
    group.bench_function("from_scratch_with_the_entries_of_one_node", |bencher| {
        let own: Vec<_> = model.pods().values().filter(|pod| pod.node == "n7").map(|pod| pod.name.clone()).collect();
        bencher.iter(|| {
            let compiled = Compiled::new(&model, &mut IdentityAllocator::default()).expect("compiles");
            let states =
                own.iter().flat_map(|pod| Direction::ALL.map(|direction| compiled.state(pod, direction).len()));
            states.sum::<usize>()
        });
    });
    let policy = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: in, namespace: ns3}}\nspec: {{{}}}\n",
        team_may_in(4, 81)
    );
    let pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: fresh, namespace: ns3, labels: {app: fresh}}\n\
               spec: {nodeName: n7, containers: [{name: c}]}\n";
    for (name, text) in [("a_changed_policy", policy.as_str()), ("an_added_pod", pod)] {
        let ready = change(&model, text);
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || (ready.compiled.clone(), ready.identities.clone()),
                |(mut compiled, mut identities)| {
                    compiled.update(&ready.after, &mut identities).expect("compiles");
                    (compiled, identities)
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(policies, policy);
criterion_main!(policies);
