//! What policies mean, case by case, asked through the maps.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test")]

mod support;

use agent_core::model::Name;
use agent_core::{Direction, Flow, Part, RuleOrigin, Settings};
use datapath_abi::ids;
use support::{Cluster, TCP};

/// x/a, x/b on node-1, y/a, y/c on node-2; addresses in that order from .2 on.
const PODS: &str = "\
---
{apiVersion: v1, kind: Namespace, metadata: {name: x, labels: {team: red}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: y, labels: {team: blue}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: x, labels: {app: a}}, spec: {nodeName: node-1, containers: [{name: c, ports: [{name: http, containerPort: 80}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: x, labels: {app: b}}, spec: {nodeName: node-1, containers: [{name: c, ports: [{name: http, containerPort: 81}]}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: y, labels: {app: a}}, spec: {nodeName: node-2, containers: [{name: c}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: c, namespace: y, labels: {app: c}}, spec: {nodeName: node-2, containers: [{name: c}]}}
";

fn with(spec: &str) -> Cluster {
    Cluster::new(&(PODS.to_owned() + &policy("p", spec)))
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: x}}\nspec: {spec}\n"
    )
}

/// Who of the others reaches x/a on port 80.
fn who(cluster: &Cluster) -> Vec<&'static str> {
    let all = ["x/b", "y/a", "y/c", "node/node-1", "node/node-2", "203.0.113.7"];
    all.into_iter().filter(|from| cluster.reaches(from, "x/a", 80)).collect()
}

#[test]
fn without_policies_everybody_reaches_everybody() {
    let cluster = Cluster::new(PODS);
    assert_eq!(who(&cluster).len(), 6);
    assert!(cluster.compiled.isolating(&Name::new("x", "a"), Direction::Ingress).is_empty());
}

#[test]
fn default_deny_leaves_the_own_node() {
    assert_eq!(who(&with("{podSelector: {}}")), ["node/node-1"]);
}

#[test]
fn selectors_combine_as_the_api_says() {
    let from = |peers: &str| who(&with(&format!("{{podSelector: {{}}, ingress: [{{from: [{peers}]}}]}}")));
    assert_eq!(from("{podSelector: {}}"), ["x/b", "node/node-1"], "pods of the own namespace");
    assert_eq!(from("{namespaceSelector: {}}"), ["x/b", "y/a", "y/c", "node/node-1"]);
    assert_eq!(from("{namespaceSelector: {matchLabels: {team: blue}}}"), ["y/a", "y/c", "node/node-1"]);
    assert_eq!(
        from("{namespaceSelector: {matchLabels: {team: blue}}, podSelector: {matchLabels: {app: c}}}"),
        ["y/c", "node/node-1"],
        "and"
    );
    assert_eq!(
        from("{namespaceSelector: {matchLabels: {team: blue}}}, {podSelector: {matchLabels: {app: b}}}"),
        ["x/b", "y/a", "y/c", "node/node-1"],
        "or"
    );
    assert_eq!(
        from("{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: y}}}"),
        ["y/a", "y/c", "node/node-1"]
    );
    assert_eq!(from("{podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [b]}]}}"), ["node/node-1"]);
}

#[test]
fn a_block_selects_whoever_has_an_address_in_it() {
    let from = |block: &str| {
        who(&with(&format!(
            "{{podSelector: {{matchLabels: {{app: a}}}}, ingress: [{{from: [{{ipBlock: {block}}}]}}]}}"
        )))
    };
    assert_eq!(from("{cidr: 10.0.0.0/8}"), ["x/b", "y/a", "y/c", "node/node-1"], "pods");
    assert_eq!(from("{cidr: 10.244.2.3/32}"), ["y/c", "node/node-1"], "one pod");
    assert_eq!(from("{cidr: 10.0.0.0/8, except: [10.244.2.0/24]}"), ["x/b", "node/node-1"]);
    assert_eq!(from("{cidr: 192.168.0.12/32}"), ["node/node-1", "node/node-2"], "a node");
    assert_eq!(from("{cidr: 203.0.113.0/24}"), ["node/node-1", "203.0.113.7"]);
    assert_eq!(from("{cidr: 203.0.113.0/24, except: [203.0.113.7/32]}"), ["node/node-1"]);
    assert_eq!(from("{cidr: 0.0.0.0/0, except: [10.0.0.0/8, 192.168.0.0/16]}"), ["node/node-1", "203.0.113.7"]);
    assert_eq!(from("{cidr: 0.0.0.0/0}").len(), 6);
}

#[test]
fn an_address_in_one_block_and_in_anothers_exception_is_allowed() {
    let text = PODS.to_owned()
        + &policy(
            "p",
            "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.244.2.2/32]}}]}]}",
        )
        + &policy("q", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.244.2.2/32}}]}]}");
    assert_eq!(who(&Cluster::new(&text)), ["x/b", "y/a", "y/c", "node/node-1"]);
}

#[test]
fn blocks_are_about_their_own_family() {
    let cluster = with("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}]}");
    assert!(cluster.reaches("x/b", "x/a", 80));
    assert!(!cluster.reaches6("x/b", "x/a", 80), "the same pod by its other address is not in the block");
    assert!(!cluster.reaches6("node/node-2", "x/a", 80));
}

#[test]
fn in_a_cluster_of_one_family_the_other_familys_world_is_nobody() {
    let only4 = Settings { ipv4: true, ipv6: false };
    let text = |cidr: &str| {
        PODS.to_owned()
            + &policy("p", &format!("{{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{cidr: \"{cidr}\"}}}}]}}]}}"))
    };
    assert_eq!(who(&Cluster::with(&text("::/0"), only4)), ["node/node-1"]);
    let open = Cluster::with(&text("0.0.0.0/0"), only4);
    assert_eq!(who(&open).len(), 6);
    assert_eq!(open.identities.iter().filter(|(identity, _)| *identity >= ids::FIRST_LOCAL).count(), 0);
}

#[test]
fn identities_split_only_where_a_block_tells_pods_apart() {
    let only4 = Settings { ipv4: true, ipv6: false };
    let two = |name: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: x, labels: {{app: w}}}}, spec: {{nodeName: node-1, containers: []}}}}\n"
        )
    };
    let pods = two("w1") + &two("w2");
    let block = |cidr: &str| {
        policy("p", &format!("{{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{cidr: {cidr}}}}}]}}]}}"))
    };
    let mut cluster = Cluster::with(&pods, only4);
    let identity = |cluster: &Cluster, pod: &str| cluster.compiled.identity("node-2", cluster.address(pod, true));
    let before = identity(&cluster, "x/w1");
    assert_eq!(before, identity(&cluster, "x/w2"));
    cluster.apply(&block("10.0.0.0/8"));
    assert_eq!((identity(&cluster, "x/w1"), identity(&cluster, "x/w2")), (before, before), "both are inside");
    cluster.apply(&block("10.244.1.2/32"));
    assert_ne!(identity(&cluster, "x/w1"), before);
    assert_eq!(identity(&cluster, "x/w2"), before);
    assert!(cluster.reaches("x/w1", "x/w2", 80) && !cluster.reaches("x/w2", "x/w1", 80));
    cluster.delete(&block("10.244.1.2/32"));
    assert_eq!((identity(&cluster, "x/w1"), identity(&cluster, "x/w2")), (before, before));
}

#[test]
fn rules_of_a_direction_that_is_not_named_are_ignored() {
    let cluster = with("{podSelector: {}, policyTypes: [Egress], ingress: [], egress: [{}]}");
    assert_eq!(who(&cluster).len(), 6);
    let cluster = with(
        "{podSelector: {}, policyTypes: [Ingress], ingress: [{}], egress: [{to: [{ipBlock: {cidr: 10.244.1.2/32}}]}]}",
    );
    assert!(cluster.reaches("x/a", "y/c", 80));
    assert_eq!(cluster.identities.iter().filter(|(_, owner)| owner.to_string().contains("cidr:")).count(), 0);
}

#[test]
fn ports_protocols_and_ranges() {
    let cluster = with(
        "{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 82}, {protocol: UDP, port: 53}, {protocol: SCTP}]}]}",
    );
    let (from, to) = (cluster.address("y/c", true), cluster.address("x/a", true));
    let open = |protocol: u8, port: u16| cluster.flow(from, to, protocol, port);
    assert_eq!([79, 80, 81, 82, 83].map(|port| open(6, port)), [false, true, true, true, false]);
    assert!(open(17, 53) && !open(6, 53) && !open(17, 80));
    assert!(open(132, 1) && open(132, 65_535));
    assert!(!open(1, 8), "a rule with ports is not about ICMP");
    let cluster = with("{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}");
    assert!(cluster.flow(from, to, 1, 8), "a rule without ports is");
}

#[test]
fn named_ports_are_the_subjects_on_ingress_and_the_peers_on_egress() {
    let cluster = with("{podSelector: {}, ingress: [{ports: [{port: http}]}]}");
    assert!(cluster.reaches("y/c", "x/a", 80) && !cluster.reaches("y/c", "x/a", 81));
    assert!(cluster.reaches("y/c", "x/b", 81) && !cluster.reaches("y/c", "x/b", 80));
    let cluster = with("{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}");
    assert!(cluster.reaches("x/b", "x/a", 80) && !cluster.reaches("x/b", "x/a", 81));
    assert!(cluster.reaches("x/a", "x/b", 81) && !cluster.reaches("x/a", "x/b", 80));
    assert!(!cluster.reaches("x/a", "y/a", 80), "no port of that name");
    assert!(!cluster.reaches("x/a", "203.0.113.7", 80));
}

#[test]
fn pods_of_the_same_labels_may_have_different_numbers_for_a_name() {
    let pod = |name: &str, port: u16| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: x, labels: {{app: w}}}}, spec: {{containers: [{{name: c, ports: [{{name: web, containerPort: {port}}}]}}]}}}}\n"
        )
    };
    let text = PODS.to_owned()
        + &pod("w1", 8080)
        + &pod("w2", 9090)
        + &policy(
            "p",
            "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [{ports: [{port: web}]}]}",
        );
    let cluster = Cluster::new(&text);
    let open = |pod: &str| [80, 8080, 9090].map(|port| cluster.reaches("x/a", pod, port));
    assert_eq!(open("x/w1"), [false, true, false]);
    assert_eq!(open("x/w2"), [false, false, true]);
    let without = Cluster::new(&(PODS.to_owned() + &pod("w1", 8080) + &pod("w2", 9090)));
    assert_eq!(without.identities.iter().count(), 5, "nobody asks for the name: one identity for both");
}

#[test]
fn pods_in_their_nodes_network_are_nodes() {
    let host = "---\n{apiVersion: v1, kind: Pod, metadata: {name: h, namespace: x, labels: {app: b}}, spec: {nodeName: node-2, hostNetwork: true, containers: []}}\n";
    let rules = |spec: &str| Cluster::new(&(PODS.to_owned() + host + &policy("p", spec)));
    let cluster = rules("{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: b}}}]}]}");
    assert!(!cluster.reaches("x/h", "x/a", 80), "labels do not select it");
    assert!(cluster.reaches("x/a", "x/h", 80), "policies are not about it");
    let cluster = rules("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.168.0.12/32}}]}]}");
    assert!(cluster.reaches("x/h", "x/a", 80));
}

#[test]
fn in_the_tunnel_a_remote_node_is_any_remote_node() {
    let cluster =
        with("{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{ipBlock: {cidr: 192.168.0.12/32}}]}]}");
    let maps = &cluster.nodes["node-1"];
    let to = support::owner(maps, cluster.address("x/a", true)).unwrap();
    assert!(support::decide(maps, to.endpoint, 0, ids::REMOTE_NODE, TCP, 80).is_ok());
    assert!(support::decide(maps, to.endpoint, 0, ids::WORLD_IPV4, TCP, 80).is_err());
}

#[test]
fn verdicts_name_their_rule() {
    let cluster = with("{podSelector: {}, ingress: [{ports: [{port: 81}]}, {from: [{podSelector: {}}]}]}");
    let rules = cluster.compiled.rules();
    let verdict =
        |from: &str, port: u16| cluster.ingress(cluster.address(from, true), cluster.address("x/a", true), TCP, port);
    let RuleOrigin::Rule(rule) = rules.origin(verdict("x/b", 80).unwrap()) else { panic!("a rule") };
    assert_eq!((rule.index, rule.direction, rule.policy.to_string().as_str()), (1, Direction::Ingress, "x/p"));
    assert_eq!(rule.to_string(), "x/p ingress[1] (test.yaml:17)");
    assert_eq!(rules.origin(verdict("node/node-1", 80).unwrap()), RuleOrigin::LocalHost);
    assert_eq!(verdict("y/c", 80), Err(0));
    let isolating = cluster.compiled.isolating(&Name::new("x", "a"), Direction::Ingress);
    assert_eq!(isolating.len(), 1);
    assert_eq!((isolating[0].name.to_string(), isolating[0].position.line), ("x/p".to_owned(), 14));
    let egress = cluster.egress(cluster.address("x/a", true), cluster.address("x/b", true), TCP, 80);
    assert_eq!(rules.origin(egress.unwrap()), RuleOrigin::NotIsolated);
}

#[test]
fn rules_say_which_part_of_them_takes_a_flow() {
    let cluster = with(
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: c}}}, {ipBlock: {cidr: 10.244.1.3/32}}], \
         ports: [{port: 81}, {port: http}]}, {ports: [{protocol: UDP}]}, {}]}",
    );
    let flow = Flow { peer: cluster.address("x/b", true), protocol: TCP, port: 80 };
    let attempts = cluster.compiled.attempts(&Name::new("x", "a"), Direction::Ingress, flow);
    let parts: Vec<_> = attempts.iter().map(|attempt| (attempt.rule.index, attempt.peer, attempt.port)).collect();
    assert_eq!(parts, [(0, Part::Item(1), Part::Item(1)), (1, Part::All, Part::Nothing), (2, Part::All, Part::All)]);
    assert_eq!(attempts.iter().map(|attempt| attempt.allows()).collect::<Vec<_>>(), [true, false, true]);
    let other = Flow { peer: cluster.address("y/c", true), ..flow };
    let attempts = cluster.compiled.attempts(&Name::new("x", "a"), Direction::Ingress, other);
    assert_eq!(attempts[0].peer, Part::Nothing, "another namespace");
    assert!(cluster.compiled.attempts(&Name::new("x", "a"), Direction::Egress, flow).is_empty());
}

#[test]
fn an_entry_that_another_makes_superfluous_is_left_out() {
    let cluster =
        with("{podSelector: {matchLabels: {app: a}}, ingress: [{}, {from: [{podSelector: {}}], ports: [{port: 80}]}]}");
    let dump = cluster.dump("node-1");
    let lines: Vec<&str> = dump.lines().filter(|line| line.starts_with("policy endpoint 1 ingress")).collect();
    assert_eq!(lines, ["policy endpoint 1 ingress identity any allow normal: x/p ingress[0] (test.yaml:17)"]);
}

#[test]
fn the_dump_shows_everything_a_node_holds() {
    let only4 = Settings { ipv4: true, ipv6: false };
    let spec = "{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.7/32]}}], ports: [{port: 80, endPort: 81}]}]}";
    let cluster = Cluster::with(&(PODS.to_owned() + &policy("p", spec)), only4);
    let expected = "\
ipcache4 10.244.1.1 identity 1 local-host node
ipcache4 10.244.1.2 identity 256 at 192.168.0.11 endpoint 1 ifindex 101 pod
ipcache4 10.244.1.3 identity 257 at 192.168.0.11 endpoint 2 ifindex 102 pod
ipcache4 10.244.2.1 identity 6 at 192.168.0.12 node
ipcache4 10.244.2.2 identity 258 at 192.168.0.12 pod
ipcache4 10.244.2.3 identity 259 at 192.168.0.12 pod
ipcache4 192.168.0.11 identity 1 local-host node
ipcache4 192.168.0.12 identity 6 node
cidr4 203.0.113.0/24 identity 16777216
cidr4 203.0.113.7/32 identity 16777217
policy endpoint 1 ingress identity 1 allow normal: the node may reach its pods
policy endpoint 1 egress identity any allow default: no policy
policy endpoint 2 ingress identity any allow default: no policy
policy endpoint 2 egress identity any allow default: no policy
policy endpoint 1 ingress identity 16777216 protocol 6 port 80/15 allow normal: x/p ingress[0] (test.yaml:17)
";
    assert_eq!(cluster.dump("node-1"), expected);
}
