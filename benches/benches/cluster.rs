//! Probes across two nodes, and whole matrices: `cargo bench -p benches --bench cluster`.
#![expect(clippy::expect_used, reason = "a benchmark that cannot run ends")]

use std::fmt::Write as _;

use agent_core::model::{Model, Name, Settings};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use simulator::cluster::matrix::{Question, endpoints};
use simulator::cluster::probe::{Party, Protocol};
use simulator::cluster::{Cluster, EngineKind, Options};

/// Pods over namespaces of ten on ten nodes, a default deny in each and one policy that lets two of the pods in.
fn manifests(pods: usize) -> String {
    let mut text = String::new();
    if pods > 100 {
        for node in 0..10 {
            write!(
                text,
                "---\napiVersion: v1\nkind: Node\nmetadata: {{name: w{node}}}\nspec: {{podCIDRs: [10.244.{node}.0/24]}}\n\
                 status: {{addresses: [{{type: InternalIP, address: 192.168.0.{node}}}]}}\n"
            )
            .expect("writes");
        }
    }
    for namespace in 0..pods.div_ceil(10) {
        let n = format!("n{namespace}");
        write!(text, "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {n}}}\n").expect("writes");
        write!(
            text,
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: deny, namespace: {n}}}\n\
             spec: {{podSelector: {{}}, policyTypes: [Ingress]}}\n"
        )
        .expect("writes");
        write!(
            text,
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: let-in, namespace: {n}}}\n\
             spec: {{podSelector: {{matchLabels: {{app: a0}}}}, ingress: [{{from: [{{podSelector: {{matchLabels: {{app: a1}}}}}}], \
             ports: [{{port: 80}}]}}]}}\n"
        )
        .expect("writes");
        for pod in 0..10.min(pods - namespace * 10) {
            write!(
                text,
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{pod}, namespace: {n}, labels: {{app: a{pod}}}}}\n\
                 spec: {{containers: [{{name: c, ports: [{{containerPort: 80}}]}}]}}\n"
            )
            .expect("writes");
        }
    }
    text
}

fn model(pods: usize) -> Model {
    Model::parse(&[("cluster.yaml".to_owned(), manifests(pods))], Settings::default()).expect("is valid")
}

fn probes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("probe_across_two_nodes");
    group.throughput(Throughput::Elements(1));
    for engine in [EngineKind::default(), EngineKind::Checked] {
        let mut cluster = Cluster::new(model(4), Options { engine, ..Options::default() }).expect("starts");
        // p1 and p0 are on different nodes, and the policy lets p1 in.
        let party = |name: &str| Party::Pod(Name::new("n0", name));
        let probe = cluster.probe_between(&party("p1"), &party("p0"), Protocol::Tcp(80), None).expect("both exist");
        assert!(cluster.probe(&probe).expect("runs").allowed());
        group.bench_function(engine.to_string(), |bencher| bencher.iter(|| cluster.probe(&probe).expect("runs")));
    }
    group.finish();
}

fn matrices(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("matrix");
    group.sample_size(10);
    for pods in [10usize, 100, 1000] {
        group.throughput(Throughput::Elements(u64::try_from(pods * (pods + 1)).expect("fits")));
        group.bench_with_input(BenchmarkId::new("pods", pods), &pods, |bencher, &pods| {
            let (model, options) = (model(pods), Options::default());
            let threads = if pods < 1000 { 1 } else { 2 };
            let (model, options, parties, ports) = (&model, &options, &endpoints(&model), &[Protocol::Tcp(80)]);
            let question =
                Question { model, options, parties, ports, wanted: None, class: None, family: None, threads };
            bencher.iter(|| question.ask(&|_| {}).expect("runs"));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).measurement_time(std::time::Duration::from_secs(3)).warm_up_time(std::time::Duration::from_millis(500));
    targets = probes, matrices
}
criterion_main!(benches);
