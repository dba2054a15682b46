//! What Cilium's policies and ClusterNetworkPolicies mean, case by case, asked through the maps.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test")]

#[expect(dead_code, reason = "other tests use the rest")]
mod support;

use agent_core::desired::DesiredError;
use agent_core::model::Name;
use agent_core::policy::{Action, Enforcement, PolicySettings, Proxy};
use agent_core::{Compiled, Direction, IdentityAllocator, RuleOrigin};
use datapath_abi::{MapId, ids};
use support::Cluster;

/// x/a, x/b on node-1, y/a, y/c on node-2; addresses in that order from .2 on.
const PODS: &str = "\
---
{apiVersion: v1, kind: Namespace, metadata: {name: x, labels: {team: red}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: y, labels: {team: blue}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: x, labels: {app: a, pod-template-hash: h1}}, spec: {nodeName: node-1, containers: [{name: c, ports: [{name: http, containerPort: 80}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: x, labels: {app: b, pod-template-hash: h2}}, spec: {nodeName: node-1, serviceAccountName: robot, containers: [{name: c}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: y, labels: {app: a, pod-template-hash: h2}}, spec: {nodeName: node-2, containers: [{name: c}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: c, namespace: y, labels: {app: c}}, spec: {nodeName: node-2, containers: [{name: c}]}}
";

fn cnp(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: {name}, namespace: x}}\nspec: {spec}\n"
    )
}

fn tier(name: &str, tier: &str, priority: u16, rest: &str) -> String {
    format!(
        "---\napiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: {name}}}\n\
         spec: {{tier: {tier}, priority: {priority}, subject: {{namespaces: {{}}}}, {rest}}}\n"
    )
}

fn knp(spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: k, namespace: x}}\nspec: {spec}\n"
    )
}

fn with(policies: &str) -> Cluster {
    Cluster::new(&(PODS.to_owned() + policies))
}

/// Who of the others reaches x/a on port 80.
fn who(cluster: &Cluster) -> Vec<&'static str> {
    let all = ["x/b", "y/a", "y/c", "node/node-1", "node/node-2", "203.0.113.7"];
    all.into_iter().filter(|from| cluster.reaches(from, "x/a", 80)).collect()
}

fn ingress(rules: &str) -> Vec<&'static str> {
    who(&with(&cnp("p", &format!("{{endpointSelector: {{matchLabels: {{app: a}}}}, {rules}}}"))))
}

#[test]
fn an_empty_rule_closes_and_an_empty_list_selects_nobody() {
    assert_eq!(ingress("ingress: [{}]"), ["node/node-1"]);
    assert_eq!(ingress("ingress: [{fromEndpoints: []}]"), ["node/node-1"]);
    assert_eq!(ingress("ingress: [{toPorts: [{ports: [{port: \"80\"}]}]}]").len(), 6, "ports without peers: everybody");
    assert_eq!(ingress("ingress: [{}], enableDefaultDeny: {ingress: false}").len(), 6);
}

#[test]
fn endpoints_are_of_the_own_namespace_unless_another_is_named() {
    assert_eq!(ingress("ingress: [{fromEndpoints: [{}]}]"), ["x/b", "node/node-1"]);
    let of = |key: &str, value: &str| {
        ingress(&format!("ingress: [{{fromEndpoints: [{{matchLabels: {{\"{key}\": {value}}}}}]}}]"))
    };
    assert_eq!(of("k8s:io.kubernetes.pod.namespace", "y"), ["y/a", "y/c", "node/node-1"]);
    assert_eq!(of("io.cilium.k8s.namespace.labels.team", "blue"), ["y/a", "y/c", "node/node-1"]);
    assert_eq!(of("k8s:io.cilium.k8s.policy.serviceaccount", "robot"), ["x/b", "node/node-1"]);
    assert_eq!(of("io.cilium.k8s.policy.cluster", "default"), ["x/b", "node/node-1"]);
    assert_eq!(of("io.cilium.k8s.policy.cluster", "elsewhere"), ["node/node-1"]);
    assert_eq!(of("reserved:remote-node", "\"\""), ["node/node-1", "node/node-2"]);
    assert_eq!(of("any:pod-template-hash", "h2"), ["x/b", "node/node-1"], "a label that does not count, asked for");
}

#[test]
fn entities_are_who_they_say() {
    let from = |entity: &str| ingress(&format!("ingress: [{{fromEntities: [{entity}]}}]"));
    assert_eq!(from("all").len(), 6);
    assert_eq!(from("world"), ["node/node-1", "203.0.113.7"]);
    assert_eq!(from("cluster"), ["x/b", "y/a", "y/c", "node/node-1", "node/node-2"]);
    assert_eq!(from("remote-node"), ["node/node-1", "node/node-2"]);
    for nobody in ["none", "init", "health", "unmanaged", "ingress", "host", "kube-apiserver", "world-ipv6"] {
        assert_eq!(from(nobody), ["node/node-1"], "{nobody}");
    }
}

#[test]
fn a_cidr_selects_nobody_in_the_cluster_unless_the_settings_say_so() {
    let policy = cnp("p", "{endpointSelector: {matchLabels: {app: a}}, ingress: [{fromCIDR: [0.0.0.0/0]}]}");
    let mut cluster = with(&policy);
    assert_eq!(who(&cluster), ["node/node-1", "203.0.113.7"]);
    cluster.settings = PolicySettings { cidrs_match_nodes: true, ..PolicySettings::default() };
    cluster.sync();
    assert_eq!(who(&cluster), ["node/node-1", "node/node-2", "203.0.113.7"]);
    cluster.settings = PolicySettings { cidrs_match_pods: true, ..PolicySettings::default() };
    cluster.sync();
    assert_eq!(who(&cluster), ["x/b", "y/a", "y/c", "node/node-1", "203.0.113.7"]);
}

#[test]
fn deny_beats_allow_whatever_the_prefixes_ports_and_kinds() {
    // As CVE-2024-47825: a broad deny beside a narrow allow with a port.
    let rules = "ingress: [{fromCIDR: [203.0.113.7/32], toPorts: [{ports: [{port: \"80\"}]}]}, {fromEntities: [all]}], \
                 ingressDeny: [{fromCIDR: [203.0.0.0/8]}]";
    assert_eq!(ingress(rules), ["x/b", "y/a", "y/c", "node/node-1", "node/node-2"]);
    let both = with(&format!(
        "{}{}",
        knp("{podSelector: {}, ingress: [{}]}"),
        cnp(
            "p",
            "{endpointSelector: {}, ingressDeny: [{fromEntities: [world], toPorts: [{ports: [{port: \"0\", protocol: TCP}]}]}], enableDefaultDeny: {ingress: false}}"
        )
    ));
    assert_eq!(who(&both), ["x/b", "y/a", "y/c", "node/node-1", "node/node-2"]);
    assert_eq!(ingress("ingressDeny: [{fromEntities: [host]}]"), [""; 0], "and a deny alone isolates");
}

#[test]
fn tiers_are_asked_in_order_and_pass_ends_one() {
    let deny = "action: Deny, from: [{namespaces: {}}]";
    let red = "from: [{namespaces: {matchLabels: {team: red}}}]";
    let tiers = |rules: &str, rest: &str| {
        who(&with(&format!("{}{rest}", tier("t", "Admin", 1, &format!("ingress: [{rules}]")))))
    };
    let outside = ["node/node-1", "node/node-2", "203.0.113.7"];
    assert_eq!(tiers(&format!("{{{deny}}}"), ""), outside, "nodes and the world are no pods");
    let open = tiers(&format!("{{action: Pass, {red}}}, {{{deny}}}"), "");
    assert_eq!(open, ["x/b", "node/node-1", "node/node-2", "203.0.113.7"]);
    // What passes meets the policies below, on the passed ports only.
    let ports = "protocols: [{tcp: {destinationPort: {number: 80}}}]";
    let closed = knp("{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: b}}}]}]}");
    let passed = format!("{{action: Pass, from: [{{namespaces: {{}}}}], {ports}}}, {{{deny}}}");
    let cluster = with(&format!("{}{closed}", tier("t", "Admin", 1, &format!("ingress: [{passed}]"))));
    assert_eq!(who(&cluster), ["x/b", "node/node-1"]);
    assert!(!cluster.reaches("x/b", "x/a", 81), "81 does not pass");
    // An Admin Accept cannot be denied below, and wins over later levels.
    let accept = tier("a", "Admin", 0, &format!("ingress: [{{action: Accept, {red}}}]"));
    let nothing = knp("{podSelector: {}}");
    assert_eq!(
        who(&with(&format!("{}{accept}{nothing}", tier("t", "Admin", 1, &format!("ingress: [{{{deny}}}]"))))),
        ["x/b", "node/node-1"]
    );
    // Baseline: only where no NetworkPolicy isolates.
    let baseline = tier("t", "Baseline", 1, &format!("ingress: [{{{deny}}}]"));
    assert_eq!(who(&with(&baseline)), outside);
    assert_eq!(who(&with(&format!("{baseline}{}", knp("{podSelector: {}, ingress: [{}]}")))).len(), 6);
    // Tiers that are not neighbours (cilium#43916): Pass in Admin, nothing in between, Deny in Baseline.
    let pass = tier(
        "a",
        "Admin",
        0,
        &format!("ingress: [{{action: Pass, {red}}}, {{action: Accept, from: [{{namespaces: {{}}}}]}}]"),
    );
    assert_eq!(who(&with(&format!("{pass}{baseline}"))), ["y/a", "y/c", "node/node-1", "node/node-2", "203.0.113.7"]);
}

#[test]
fn what_a_proxy_must_see_is_a_redirect_until_a_plain_rule_lifts_it() {
    let http =
        "{fromEndpoints: [{}], toPorts: [{ports: [{port: \"80\", protocol: TCP}], rules: {http: [{method: GET}]}}]}";
    let state = |rules: &str| {
        let cluster = with(&cnp("p", &format!("{{endpointSelector: {{}}, ingress: [{rules}]}}")));
        let actions: Vec<Action> = (cluster.compiled.state(&Name::new("x", "a"), Direction::Ingress).iter())
            .filter(|(identity, ..)| *identity != ids::HOST)
            .map(|(_, _, verdict)| verdict.action)
            .collect();
        actions
    };
    assert_eq!(state(http), [Action::Redirect(Proxy::Http); 2]);
    assert_eq!(state(&format!("{http}, {{fromEndpoints: [{{}}]}}")), [Action::Allow; 2]);
}

#[test]
fn an_audited_policy_denies_nothing_and_says_what_it_would() {
    let audited = "---\napiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\n\
                   metadata: {name: p, namespace: x, annotations: {policy.weir.dev/audit: \"true\"}}\n\
                   spec: {endpointSelector: {matchLabels: {app: a}}, ingress: [{fromEndpoints: [{}]}]}\n";
    let cluster = with(audited);
    assert_eq!(who(&cluster).len(), 6);
    let state = cluster.compiled.state(&Name::new("x", "a"), Direction::Ingress);
    let audits = |from: &str| {
        let identity = cluster.compiled.identity("node-1", cluster.address(from, true));
        state.decide(identity, agent_core::policy::L4::protocol(6)).unwrap().audit
    };
    assert!(audits("y/a") && audits("203.0.113.7") && !audits("x/b") && !audits("node/node-1"));
    assert!(cluster.dump("node-1").contains(" audit "));
    // A policy that is enforced stays so beside it.
    let both = with(&format!(
        "{audited}{}",
        cnp("q", "{endpointSelector: {}, ingressDeny: [{fromEntities: [world]}], enableDefaultDeny: {ingress: false}}")
    ));
    assert_eq!(who(&both), ["x/b", "y/a", "y/c", "node/node-1", "node/node-2"]);
}

#[test]
fn enforcement_can_be_always_or_never() {
    let mut cluster = with(&knp("{podSelector: {matchLabels: {app: a}}}"));
    cluster.settings.enforcement = Enforcement::Never;
    cluster.sync();
    assert_eq!(who(&cluster).len(), 6);
    cluster.settings.enforcement = Enforcement::Always;
    cluster.sync();
    assert_eq!(who(&cluster), ["node/node-1"]);
    assert!(!cluster.reaches("x/a", "x/b", 80), "in both directions");
}

#[test]
fn labels_that_do_not_count_make_no_identities_unless_a_policy_asks_for_them() {
    let pods = |hash: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {hash}, namespace: x, labels: {{app: w, pod-template-hash: {hash}}}}}, spec: {{containers: [{{name: c}}]}}}}\n"
        )
    };
    let text = pods("h1") + &pods("h2");
    let count = |text: &str| Cluster::new(text).identities.iter().count();
    assert_eq!(count(&text), 1);
    let asks = cnp("p", "{endpointSelector: {}, ingress: [{fromEndpoints: [{matchLabels: {pod-template-hash: h1}}]}]}");
    assert_eq!(count(&(text + &asks)), 2);
}

#[test]
fn a_policy_that_needs_too_much_room_is_refused_by_name_and_nothing_is_written() {
    let ports: Vec<String> = (1..=30).map(|port| format!("{{port: \"{}\"}}", port * 2)).collect();
    let wide = cnp(
        "wide",
        &format!("{{endpointSelector: {{}}, ingress: [{{toPorts: [{{ports: [{}]}}]}}]}}", ports.join(", ")),
    );
    let cluster = with(&(knp("{podSelector: {}, egress: [{}]}") + &wide));
    let settings = PolicySettings { endpoint_entries: 20, ..PolicySettings::default() };
    let compiled = Compiled::with(&cluster.model, &mut IdentityAllocator::default(), settings).unwrap();
    let error = compiled.desired("node-1", &cluster.locals("node-1")).unwrap_err();
    assert!(matches!(error, DesiredError::Pressure { .. }));
    let text = error.to_string();
    assert!(
        text.starts_with("x/a needs 92 policy entries and has room for 20; CiliumNetworkPolicy x/wide (test.yaml:"),
        "{text}"
    );
    assert!(text.ends_with("makes 90 of them"), "{text}");
    let settings = PolicySettings { node_entries: 100, ..PolicySettings::default() };
    let compiled = Compiled::with(&cluster.model, &mut IdentityAllocator::default(), settings).unwrap();
    let text = compiled.desired("node-1", &cluster.locals("node-1")).unwrap_err().to_string();
    assert!(text.starts_with("node `node-1` needs 184 policy entries and has room for 100; "), "{text}");
}

#[test]
fn policies_about_nodes_are_entries_of_the_node_itself() {
    let policy = "---\napiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {name: h}\n\
                  spec: {nodeSelector: {matchLabels: {role: edge}}, ingress: [{fromEntities: [cluster]}]}\n";
    let nodes = "---\n{apiVersion: v1, kind: Node, metadata: {name: node-1, labels: {role: edge}}}\n---\n{apiVersion: v1, kind: Node, metadata: {name: node-2}}\n";
    let mut cluster = with(&format!("{nodes}{policy}"));
    assert_eq!(cluster.compiled.about_nodes().len(), 1);
    let entries = |cluster: &Cluster, node: &str| {
        let desired = cluster.desired(node);
        desired.entries(MapId::Policy).filter(|(key, _)| key[4..6] == [0xff, 0xff]).count()
    };
    assert_eq!(entries(&cluster, "node-1"), 0, "only with the setting");
    cluster.settings.host_firewall = true;
    cluster.sync();
    assert!(entries(&cluster, "node-1") > 5);
    assert_eq!(entries(&cluster, "node-2"), 0);
    let dump = cluster.dump("node-1");
    for own in ["192.168.0.11", "10.244.1.1", "fd00:10:244:1::1"] {
        assert!(dump.contains(&format!("{own} identity 1 endpoint 65535")), "{dump}");
    }
    assert!(!dump.contains("10.244.2.1 identity 6 at 192.168.0.12 endpoint"), "{dump}");
}

#[test]
fn every_rule_says_where_it_is_written() {
    let text = cnp(
        "p",
        "{endpointSelector: {}, ingress: [{fromEndpoints: [{}]}], ingressDeny: [{}, {fromEntities: [world]}]}",
    );
    let cluster = with(&text);
    let (from, to) = (cluster.address("203.0.113.7", true), cluster.address("x/a", true));
    let rule = cluster.ingress(from, to, 6, 80).unwrap_err();
    let RuleOrigin::Rule(info) = cluster.compiled.rules().origin(rule) else { panic!("a rule") };
    assert_eq!(info.to_string(), "CiliumNetworkPolicy x/p ingressDeny[1] (test.yaml:17)");
}
