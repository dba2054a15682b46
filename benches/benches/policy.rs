//! Policies at scale, 1,000 policies and 10,000 pods of 2,500 identities on 100 nodes: from scratch, and from changed
//! objects to the steps that change one node's maps. `cargo bench -p benches --bench policy`.
#![expect(clippy::expect_used, reason = "a benchmark that cannot run ends")]

use std::fmt::Write as _;

use agent_core::model::{Model, Object, Pod, Settings, read_objects};
use agent_core::{Changes, Compiled, Direction, IdentityAllocator, LocalEndpoint, NodeMaps, Plan, Snapshot};
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use datapath_abi::Mac;

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

/// One node's agent, up to its maps.
#[derive(Clone)]
struct Agent {
    model: Model,
    identities: IdentityAllocator,
    compiled: Compiled,
    wanted: NodeMaps,
    held: Snapshot,
}

const NODE: &str = "n7";

/// The node's endpoints; the pod that is added has the last number.
fn locals(model: &Model) -> Vec<LocalEndpoint> {
    let mut own: Vec<&Pod> = model.pods().values().filter(|pod| pod.node == NODE).collect();
    own.sort_by_key(|pod| pod.name.name == "fresh");
    let local = |(id, pod): (u16, &Pod)| LocalEndpoint {
        pod: pod.name.clone(),
        id,
        ifindex: u32::from(id) + 100,
        mac: Mac::from_octets([2; 6]),
    };
    (1..).zip(own).map(local).collect()
}

impl Agent {
    fn new(model: &Model) -> Self {
        let mut identities = IdentityAllocator::default();
        let compiled = Compiled::new(model, &mut identities).expect("compiles");
        let wanted = NodeMaps::new(&compiled, NODE, &locals(model)).expect("fits");
        let held = Snapshot::from(wanted.desired());
        Self { model: model.clone(), identities, compiled, wanted, held }
    }

    /// Objects that change → the model → identities and policies.
    fn compile(&mut self, objects: Vec<Object>) -> Changes {
        self.model.apply(objects).expect("fits");
        self.compiled.update(&self.model, &mut self.identities).expect("compiles")
    }

    /// → what this node's maps should hold → steps.
    fn change(&mut self, objects: Vec<Object>, locals: &[LocalEndpoint]) -> Plan {
        let changes = self.compile(objects);
        self.wanted.update(&self.compiled, &changes, locals).expect("fits");
        Plan::between(&self.held, self.wanted.desired())
    }
}

/// Mebibytes that this process holds.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or_default() / 1024
}

fn policy(criterion: &mut Criterion) {
    let settings = Settings { ipv6: false, ..Settings::default() };
    let model = Model::from_objects(objects(manifests()), settings).expect("fits");
    let mut group = criterion.benchmark_group("policy_1000_policies_10000_pods");
    group.sample_size(10);
    group.bench_function("from_scratch_with_the_entries_of_one_node", |bencher| {
        let own: Vec<_> = model.pods().values().filter(|pod| pod.node == NODE).map(|pod| pod.name.clone()).collect();
        bencher.iter(|| {
            let compiled = Compiled::new(&model, &mut IdentityAllocator::default()).expect("compiles");
            let states =
                own.iter().flat_map(|pod| Direction::ALL.map(|direction| compiled.state(pod, direction).len()));
            states.sum::<usize>()
        });
    });
    let agent = Agent::new(&model);
    println!("{} MiB resident, with the objects and {} identities", resident(), agent.identities.iter().count());
    let policy = |spec: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: in, namespace: ns2}}\nspec: {{{spec}}}\n"
        )
    };
    let from = |block: &str| {
        policy(&format!(
            "podSelector: {{matchLabels: {{app: a6}}}}, ingress: [{{from: [{{ipBlock: {{cidr: {block}}}}}]}}]"
        ))
    };
    let pod = |more: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: fresh, namespace: ns5, labels: {{app: fresh}}}}\n\
             spec: {{nodeName: {NODE}, containers: [{{name: c{more}}}]}}\n"
        )
    };
    let inside = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: inside, namespace: ns2}\n\
                  spec: {endpointSelector: {}, ingress: [{fromEntities: [cluster]}], ingressDeny: [{fromEndpoints: \
                  [{matchLabels: {app: a8}}]}]}\n"
        .to_owned();
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: ns5, labels: {team: t9}}\n".to_owned();
    let everywhere = "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: all}\n\
                      spec: {endpointSelector: {}, egress: [{toEntities: [all]}], egressDeny: [{toCIDR: [198.51.100.0/24]}]}\n";
    for (name, text) in [
        ("a_changed_policy", inside),
        ("an_added_pod_with_an_identity_of_its_own", pod("")),
        ("a_block_that_parts_100_identities", from("10.100.7.0/24")),
        ("a_namespace_with_another_label", namespace),
        ("a_policy_about_all_pods", everywhere.to_owned()),
    ] {
        let (change, mut after) = (objects(text), model.clone());
        after.apply(change.clone()).expect("fits");
        let locals = locals(&after);
        let steps = agent.clone().change(change.clone(), &locals).len();
        println!("{name}: {steps} steps");
        group.bench_function(format!("{name}/compiled"), |bencher| {
            bencher.iter_batched(
                || (agent.clone(), change.clone()),
                |(mut agent, change)| {
                    let changes = agent.compile(change);
                    (agent, changes)
                },
                BatchSize::PerIteration,
            );
        });
        group.bench_function(format!("{name}/planned"), |bencher| {
            bencher.iter_batched(
                || (agent.clone(), change.clone()),
                |(mut agent, change)| {
                    let plan = agent.change(change, &locals);
                    (agent, plan)
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(policies, policy);
criterion_main!(policies);
