//! Plans and their order, full maps, failing maps, restarts, and maps that end empty.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[expect(dead_code, reason = "other tests use the rest")]
mod support;

use std::collections::BTreeMap;

use agent_core::desired::{OWNED, Op};
use agent_core::model::Name;
use agent_core::{
    Compiled, Desired, DesiredError, IdentityAllocator, Limits, Plan, ReconcileError, Snapshot, reconcile,
};
use datapath_abi::{IpEntry, MapId, PolicyKey, ids};
use datapath_maps::{MapError, MapStore, UpdateMode};
use support::{Cluster, maps};
use zerocopy::FromBytes;

const PODS: &str = "\
---
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: x, labels: {app: a}}, spec: {nodeName: node-1, containers: [{name: c}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: x, labels: {app: b}}, spec: {nodeName: node-1, containers: [{name: c}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: c, namespace: x, labels: {app: c}}, spec: {nodeName: node-2, containers: [{name: c}]}}
";

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: x}}\nspec: {spec}\n"
    )
}

fn only_a() -> String {
    policy(
        "only-a",
        "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {matchLabels: {app: a}}}]}]}",
    )
}

/// `IpEntry` of a pod on a node.
fn entry(cluster: &Cluster, node: &str, pod: &str) -> IpEntry {
    support::owner(&cluster.nodes[node], cluster.address(pod, true)).unwrap()
}

#[test]
fn unchanged_input_gives_an_empty_plan_also_after_a_restart() {
    let mut cluster = Cluster::new(&(PODS.to_owned() + &only_a()));
    assert!(cluster.sync().values().all(Plan::is_empty));
    // A new process: same objects, no memory of numbers.
    let mut identities = IdentityAllocator::default();
    let compiled = Compiled::new(&cluster.model, &mut identities).unwrap();
    for (node, store) in &cluster.nodes {
        let desired = compiled.desired(node, &cluster.locals(node)).unwrap();
        assert!(Plan::between(&Snapshot::read(store).unwrap(), &desired).is_empty());
    }
}

#[test]
fn an_update_ends_where_a_fresh_start_ends() {
    let other = policy(
        "p",
        "{podSelector: {}, policyTypes: [Ingress, Egress], egress: [{ports: [{port: 53, protocol: UDP}]}]}",
    );
    let mut changed = Cluster::new(PODS);
    changed.apply(&other);
    changed.apply(&only_a());
    let fresh = Cluster::new(&(PODS.to_owned() + &only_a() + &other));
    for node in ["node-1", "node-2"] {
        let entries = |cluster: &Cluster| OWNED.map(|map| cluster.nodes[node].entries(map).unwrap());
        assert_eq!(entries(&changed), entries(&fresh));
    }
}

#[test]
fn deleting_everything_leaves_only_nodes() {
    let all = PODS.to_owned() + &only_a() + &policy("q", "{egress: [{to: [{ipBlock: {cidr: 203.0.113.0/24}}]}]}");
    let mut cluster = Cluster::new(&all);
    assert!(!cluster.nodes["node-1"].entries(MapId::Cidr4).unwrap().is_empty());
    cluster.delete(&all);
    for store in cluster.nodes.values() {
        for map in OWNED {
            let nodes = usize::from(matches!(map, MapId::Ipcache4 | MapId::Ipcache6)) * 4;
            assert_eq!(store.entries(map).unwrap().len(), nodes, "{map:?}: an address and a gateway each");
        }
    }
}

#[test]
fn a_revision_changes_exactly_with_the_entries_of_its_endpoint() {
    let mut cluster = Cluster::new(PODS);
    let before = ["a", "b"].map(|pod| entry(&cluster, "node-1", &format!("x/{pod}")).policy_revision);
    assert!(before.iter().all(|revision| *revision != 0));
    assert_eq!(entry(&cluster, "node-1", "x/c").policy_revision, 0, "not on this node");
    cluster.apply(&only_a());
    let after = ["a", "b"].map(|pod| entry(&cluster, "node-1", &format!("x/{pod}")).policy_revision);
    assert_eq!(after[0], before[0], "a's entries are as before");
    assert_ne!(after[1], before[1]);
    cluster.apply(&policy("other", "{podSelector: {matchLabels: {app: none}}}"));
    assert_eq!(
        entry(&cluster, "node-1", "x/b").policy_revision,
        after[1],
        "another policy's coming is none of b's business"
    );
    cluster.delete(&only_a());
    assert_eq!(entry(&cluster, "node-1", "x/b").policy_revision, before[1]);
}

#[test]
fn revisions_are_written_after_every_policy_change_and_new_entries_before_old_ones_go() {
    let mut cluster = Cluster::new(&(PODS.to_owned() + &only_a()));
    let plans = cluster.apply(&policy(
        "only-a",
        "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{podSelector: {matchLabels: {app: c}}}]}]}",
    ));
    let kinds: Vec<(MapId, bool)> =
        plans["node-1"].ops().iter().map(|op| (op.map(), matches!(op, Op::Put { .. }))).collect();
    assert_eq!(
        kinds,
        [(MapId::Policy, true), (MapId::Policy, false), (MapId::Ipcache4, true), (MapId::Ipcache6, true)]
    );
    assert!(plans["node-2"].is_empty(), "b is not there");
}

#[test]
fn an_identity_changes_before_the_old_one_loses_its_entries_and_the_revision_last() {
    let mut cluster = Cluster::new(&(PODS.to_owned() + &only_a()));
    let old = entry(&cluster, "node-1", "x/b");
    // b gets another identity and another policy.
    let plans = cluster.apply(
        "{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: x, labels: {app: d}}, spec: {nodeName: node-1, containers: [{name: c}]}}",
    );
    let key = cluster.address("x/b", true);
    let std::net::IpAddr::V4(key) = key else { panic!("IPv4") };
    let written: Vec<IpEntry> = (plans["node-1"].ops().iter())
        .filter_map(|op| match op {
            Op::Put { map: MapId::Ipcache4, key: k, value } if *k == key.octets() => {
                Some(IpEntry::read_from_bytes(value).unwrap())
            }
            Op::Put { .. } | Op::Delete { .. } => None,
        })
        .collect();
    assert_eq!(written.len(), 2);
    assert_ne!(written[0].identity, old.identity);
    assert_eq!(written[0].policy_revision, old.policy_revision);
    assert_eq!(written[1], IpEntry { policy_revision: written[1].policy_revision, ..written[0] });
    assert_ne!(written[1].policy_revision, old.policy_revision);
}

#[test]
fn a_reused_endpoint_number_never_inherits_entries() {
    let cluster = Cluster::new(PODS);
    let mut locals = cluster.locals("node-1");
    let before = cluster.compiled.desired("node-1", &locals).unwrap();
    let mut store = maps();
    reconcile(&before, &Limits::default(), &mut store).unwrap();
    // b goes, and d, which nobody may reach, gets its number.
    let mut later = Cluster::new(PODS);
    later.delete("{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: x}, spec: {containers: []}}");
    later.apply(
        &("---\n{apiVersion: v1, kind: Pod, metadata: {name: d, namespace: x, labels: {app: d}}, spec: {nodeName: node-1, containers: []}}\n".to_owned()
            + &policy("closed", "{podSelector: {matchLabels: {app: d}}}")),
    );
    for local in &mut locals {
        if local.pod == Name::new("x", "b") {
            local.pod = Name::new("x", "d");
            local.ifindex = 999;
        }
    }
    let number = locals.iter().find(|local| local.pod.name == "d").unwrap().id;
    let after = later.compiled.desired("node-1", &locals).unwrap();
    let plan = Plan::between(&Snapshot::read(&store).unwrap(), &after);
    let d = later.address("x/d", true);
    let a = later.compiled.identity("node-1", later.address("x/a", true));
    for op in plan.ops() {
        match op {
            Op::Put { map, key, value } => store.update(*map, key, value, UpdateMode::Any).unwrap(),
            Op::Delete { map, key } => assert!(store.delete(*map, key).unwrap()),
        }
        // d has b's address, number and even identity; only the interface tells them apart.
        let live = support::owner(&store, d).is_some_and(|entry| entry.ifindex == 999);
        if live {
            assert!(support::decide(&store, number, 0, a, 6, 80).is_err(), "after {op:?}");
        }
    }
    assert_eq!(support::owner(&store, d).unwrap().endpoint, number);
}

#[test]
fn a_full_map_is_an_error_before_anything_is_written() {
    let cluster = Cluster::new(PODS);
    let desired = cluster.desired("node-1");
    let mut store = maps();
    let limits = Limits::default().with(MapId::Ipcache6, 6);
    let error = reconcile(&desired, &limits, &mut store).unwrap_err();
    assert_eq!(error, ReconcileError::Full { map: MapId::Ipcache6, capacity: 6, needed: 7 });
    assert_eq!(error.to_string(), "map `ipcache6` holds 6 entries and the change needs room for 7");
    assert!(Snapshot::read(&store).unwrap().is_empty());
    reconcile(&desired, &limits.with(MapId::Ipcache6, 7), &mut store).unwrap();
}

/// A store that refuses its n-th write.
struct Failing<'a> {
    store: &'a mut dyn MapStore,
    left: usize,
}

impl Failing<'_> {
    fn write(&mut self, map: MapId) -> Result<(), MapError> {
        self.left = self.left.checked_sub(1).unwrap_or(usize::MAX);
        if self.left == 0 { Err(MapError::Full { map, max_entries: 0 }) } else { Ok(()) }
    }
}

impl MapStore for Failing<'_> {
    fn lookup(&self, map: MapId, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        self.store.lookup(map, key)
    }
    fn update(&mut self, map: MapId, key: &[u8], value: &[u8], mode: UpdateMode) -> Result<(), MapError> {
        self.write(map)?;
        self.store.update(map, key, value, mode)
    }
    fn delete(&mut self, map: MapId, key: &[u8]) -> Result<bool, MapError> {
        self.write(map)?;
        self.store.delete(map, key)
    }
    fn entries(&self, map: MapId) -> Result<Vec<(Vec<u8>, Vec<u8>)>, MapError> {
        self.store.entries(map)
    }
}

#[test]
fn a_step_that_fails_is_taken_back_with_all_before_it() {
    let old = Cluster::new(&(PODS.to_owned() + &only_a()));
    let new = Cluster::new(
        &(PODS.to_owned()
            + &policy(
                "p",
                "{ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24}}], ports: [{port: 80, endPort: 90}]}]}",
            )),
    );
    let mut store = maps();
    reconcile(&old.desired("node-1"), &Limits::default(), &mut store).unwrap();
    let before = Snapshot::read(&store).unwrap();
    let want = new.desired("node-1");
    let steps = Plan::between(&before, &want).len();
    assert!(steps > 10);
    for step in 1..=steps {
        let mut failing = Failing { store: &mut store, left: step };
        let error = reconcile(&want, &Limits::default(), &mut failing).unwrap_err();
        assert!(matches!(error, ReconcileError::Step { .. }), "{error}");
        assert_eq!(Snapshot::read(&store).unwrap(), before, "step {step} of {steps}");
    }
    assert_eq!(reconcile(&want, &Limits::default(), &mut store).unwrap().len(), steps);
}

#[test]
fn between_any_two_steps_what_both_states_allow_is_allowed() {
    // The policy and, with the block that holds some pods, the identities change together.
    let old = Cluster::new(&(PODS.to_owned() + &only_a()));
    let new = "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{ipBlock: {cidr: 10.244.1.0/30}}]}]}";
    let mut new_cluster = Cluster::new(&(PODS.to_owned() + &only_a()));
    new_cluster.apply(&policy("only-a", new));
    let mut store = maps();
    reconcile(&old.desired("node-1"), &Limits::default(), &mut store).unwrap();
    let (a, b) = (old.address("x/a", true), old.address("x/b", true));
    let allowed = |store: &datapath_maps::MemoryMaps| {
        let (from, to) = (support::owner(store, a).unwrap(), support::owner(store, b).unwrap());
        support::decide(store, to.endpoint, 0, from.identity, 6, 80).is_ok()
    };
    assert!(allowed(&store));
    let plan = Plan::between(&Snapshot::read(&store).unwrap(), &new_cluster.desired("node-1"));
    for op in plan.ops() {
        match op {
            Op::Put { map, key, value } => store.update(*map, key, value, UpdateMode::Any).unwrap(),
            Op::Delete { map, key } => assert!(store.delete(*map, key).unwrap()),
        }
        assert!(allowed(&store), "after {op:?}");
    }
    assert!(plan.len() > 4);
}

#[test]
fn other_maps_are_never_touched() {
    let cluster = Cluster::new(&(PODS.to_owned() + &only_a()));
    let desired: Desired = cluster.desired("node-1");
    for map in MapId::ALL.iter().filter(|map| !OWNED.contains(map)) {
        assert_eq!(desired.len(*map), 0);
    }
}

#[test]
fn endpoints_that_do_not_fit_are_refused() {
    let cluster = Cluster::new(PODS);
    let desired = |node: &str, change: &dyn Fn(&mut agent_core::LocalEndpoint)| {
        let mut locals = cluster.locals("node-1");
        change(&mut locals[0]);
        cluster.compiled.desired(node, &locals).unwrap_err()
    };
    assert!(matches!(desired("node-3", &|_| ()), DesiredError::UnknownNode { .. }));
    assert!(matches!(desired("node-2", &|_| ()), DesiredError::Elsewhere { .. }));
    assert!(matches!(desired("node-1", &|local| local.pod.name = "z".to_owned()), DesiredError::UnknownPod { .. }));
    assert!(matches!(desired("node-1", &|local| local.id = 0), DesiredError::Number { .. }));
    assert!(matches!(desired("node-1", &|local| local.id = 2), DesiredError::Number { .. }));
}

#[test]
fn policy_entries_belong_to_local_endpoints_only() {
    let cluster = Cluster::new(&(PODS.to_owned() + &only_a()));
    let mut seen: BTreeMap<u16, usize> = BTreeMap::new();
    for (key, _) in cluster.desired("node-1").entries(MapId::Policy) {
        let key = PolicyKey::read_from_bytes(key).unwrap();
        assert_ne!(key.identity, ids::UNMANAGED);
        *seen.entry(key.endpoint).or_default() += 1;
    }
    let locals: Vec<u16> = cluster.locals("node-1").iter().map(|local| local.id).collect();
    assert_eq!(seen.into_keys().collect::<Vec<_>>(), locals);
}
