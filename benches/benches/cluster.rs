//! Probes across two nodes, and whole matrices: `cargo bench -p benches --bench cluster`.

use std::fmt::Write as _;

use agent_core::model::{Model, Settings};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use simulator::cluster::matrix::Matrix;
use simulator::cluster::probe::{Party, Protocol};
use simulator::cluster::{Cluster, EngineKind, Options};

/// Pods over namespaces of ten, a default deny in each and one policy that lets two of the pods in.
fn manifests(pods: usize) -> String {
    let mut text = String::new();
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

fn cluster(pods: usize, engine: EngineKind) -> Cluster {
    let model = Model::parse(&[("cluster.yaml".to_owned(), manifests(pods))], Settings::default()).expect("is valid");
    Cluster::new(model, Options { engine, ..Options::default() }).expect("starts")
}

fn probes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("probe_across_two_nodes");
    group.throughput(Throughput::Elements(1));
    for engine in [EngineKind::default(), EngineKind::Checked] {
        let mut cluster = cluster(4, engine);
        // p1 and p0 are on different nodes, and the policy lets p1 in.
        let party = |name: &str| name.parse::<Party>().expect("is a party");
        let probe =
            cluster.probe_between(&party("n0/p1"), &party("n0/p0"), Protocol::Tcp(80), None).expect("both exist");
        assert!(cluster.probe(&probe).expect("runs").allowed());
        group.bench_function(engine.name(), |bencher| bencher.iter(|| cluster.probe(&probe).expect("runs")));
    }
    group.finish();
}

fn matrices(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("matrix");
    group.sample_size(10);
    for pods in [10usize, 100, 1000] {
        group.throughput(Throughput::Elements(u64::try_from(pods * (pods + 1)).expect("fits")));
        group.bench_with_input(BenchmarkId::new("pods", pods), &pods, |bencher, &pods| {
            bencher.iter(|| {
                let mut cluster = cluster(pods, EngineKind::default());
                Matrix::ask(&mut cluster, &[Protocol::Tcp(80)], None, |_| {}).expect("runs")
            });
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
