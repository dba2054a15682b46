//! Two nodes, each with its agent, on one wire: through the tunnel and without one.

use std::net::SocketAddr;

use crate::support::{Namespace, Node, echo, run, skipped};
use serde_json::json;

/// Only `x/a` may reach `x/b`.
pub const POLICY: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: from-a, namespace: x}
spec: {podSelector: {matchLabels: {app: b}}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {matchLabels: {app: a}}}]}]}
";

/// Nodes `n1` and `n2` with pods `x/a` and `x/c`, and `x/b`.
pub fn objects() -> String {
    let mut text = String::new();
    for n in [1, 2] {
        text += &format!(
            "---
apiVersion: v1
kind: Node
metadata: {{name: n{n}}}
spec: {{podCIDRs: [10.244.{n}.0/24, 'fd00:10:244:{n}::/64']}}
status: {{addresses: [{{type: InternalIP, address: 192.0.2.{n}}}, {{type: InternalIP, address: '2001:db8::{n}'}}]}}
"
        );
    }
    for (pod, n, last) in [("a", 1, 5), ("c", 1, 7), ("b", 2, 6)] {
        text += &format!(
            "---
apiVersion: v1
kind: Pod
metadata: {{name: {pod}, namespace: x, labels: {{app: {pod}}}}}
spec: {{nodeName: n{n}, containers: [{{name: c, image: i}}]}}
status: {{podIPs: [{{ip: 10.244.{n}.{last}}}, {{ip: 'fd00:10:244:{n}::{last}'}}]}}
"
        );
    }
    text
}

/// Two nodes with three pods.
pub struct Lab {
    pub nodes: [Node; 2],
    pub a: Namespace,
    pub b: Namespace,
    pub c: Namespace,
}

/// `None`, and the skip line, without root.
pub fn lab(name: &str, settings: &str) -> Option<Lab> {
    if skipped() {
        return None;
    }
    let prefix = format!("weir-{name}-{}", std::process::id());
    let [a, b, c] = ["a", "b", "c"].map(|pod| Namespace::new(format!("{prefix}-{pod}")));
    let mut nodes = Node::pair(&prefix, settings);
    for node in &mut nodes {
        node.write("cluster.yaml", &objects());
        node.start();
    }
    nodes[0].add("x/a", &a);
    nodes[0].add("x/c", &c);
    nodes[1].add("x/b", &b);
    Some(Lab { nodes, a, b, c })
}

/// Pods of two nodes, and pods and nodes, reach each other; policy holds.
fn connected(lab: &mut Lab) {
    for [a, b, n1, n2] in [
        ["10.244.1.5:80", "10.244.2.6:80", "192.0.2.1:80", "192.0.2.2:80"],
        ["[fd00:10:244:1::5]:80", "[fd00:10:244:2::6]:80", "[2001:db8::1]:80", "[2001:db8::2]:80"],
    ] {
        let (on_a, on_b) = (lab.a.listen(a), lab.b.listen(b));
        let [on_n1, on_n2] = [(0, n1), (1, n2)].map(|(node, address)| lab.nodes[node].namespace.listen(address));
        let mut pair = lab.a.reach(&on_b);
        echo(&mut pair);
        let source: SocketAddr = a.parse().unwrap();
        assert_eq!(pair.1.peer_addr().unwrap().ip(), source.ip());
        echo(&mut lab.b.reach(&on_a));
        echo(&mut lab.a.reach(&on_n1));
        echo(&mut lab.a.reach(&on_n2));
        echo(&mut lab.nodes[0].namespace.reach(&on_b));
        echo(&mut lab.c.reach(&on_b));
    }
    for node in &mut lab.nodes {
        node.write("policy.yaml", POLICY);
        node.wait_for("maps are as the objects say");
    }
    for b in ["10.244.2.6:80", "[fd00:10:244:2::6]:80"] {
        let server = lab.b.listen(b);
        echo(&mut lab.a.reach(&server));
        lab.c.fails_to_reach(&server);
    }
    for node in &mut lab.nodes {
        node.delete("policy.yaml");
        node.wait_for("maps are as the objects say");
    }
}

#[test]
fn pods_of_two_nodes_reach_each_other_through_the_tunnel() {
    let Some(mut lab) = lab("ra", "") else { return };
    connected(&mut lab);
    assert_eq!(lab.a.mtu("eth0"), 1450);
    let status = lab.nodes[0].ask(r#"{"request":"status"}"#);
    let way = ["routing", "tunnel_protocol", "mtu"].map(|field| &status["ok"][field]);
    assert_eq!(way, [&json!("tunnel"), &json!("vxlan"), &json!(1450)], "{status}");
}

#[test]
fn pods_of_two_nodes_reach_each_other_without_a_tunnel() {
    let Some(mut lab) = lab("rb", "routing-mode = 'native'") else { return };
    connected(&mut lab);
    assert_eq!(lab.a.mtu("eth0"), 1500);
    let links = lab.nodes[0].shows("ip", &["-br", "link"]);
    assert!(!links.contains("weir_vxlan") && links.contains("weir_host"), "{links}");
    let routes = lab.nodes[0].shows("ip", &["route"]) + &lab.nodes[0].shows("ip", &["-6", "route"]);
    for route in ["10.244.2.0/24 via 192.0.2.2 dev wire", "fd00:10:244:2::/64 via 2001:db8::2 dev wire"] {
        assert!(routes.contains(route), "{routes}");
    }
    let status = lab.nodes[0].ask(r#"{"request":"status"}"#);
    assert_eq!((&status["ok"]["routing"], &status["ok"]["healthy"]), (&json!("native"), &json!(true)), "{status}");
    lab.nodes[0].stop();
    lab.nodes[0].cleanup();
    let routes = lab.nodes[0].shows("ip", &["route"]) + &lab.nodes[0].shows("ip", &["-6", "route"]);
    assert!(!routes.contains("10.244.") && !routes.contains("fd00:10:244"), "{routes}");
}

#[test]
fn the_network_may_know_the_way_to_pods_itself() {
    let Some(mut lab) = lab("rc", "routing-mode = 'native'\ndirect-routes = false") else { return };
    let [one, two] = &lab.nodes;
    assert!(!one.shows("ip", &["route"]).contains("10.244.2"));
    for (node, other) in [(one, 2), (two, 1)] {
        node.namespace.inside(|| {
            run("ip", &["route", "add", "default", "via", &format!("192.0.2.{other}")]);
            run("ip", &["-6", "route", "add", "default", "via", &format!("2001:db8::{other}")]);
        });
    }
    connected(&mut lab);
}

#[test]
fn the_way_of_routing_can_be_changed_at_a_restart() {
    let Some(mut lab) = lab("rd", "") else { return };
    for settings in ["routing-mode = 'native'", ""] {
        for node in &mut lab.nodes {
            node.kill();
            node.configure(settings);
            node.start();
        }
        connected(&mut lab);
        let links = lab.nodes[0].shows("ip", &["-br", "link"]);
        assert_eq!(links.contains("weir_vxlan"), settings.is_empty(), "{links}");
        let status = lab.nodes[0].ask(r#"{"request":"status"}"#);
        assert_eq!(status["ok"]["healthy"], json!(true), "{status}");
    }
}

/// On a kernel with Geneve devices pods reach each other over them; on any other the agent says so in one line, is not
/// healthy, and takes no pod.
#[test]
fn geneve_is_another_tunnel_or_a_clear_refusal() {
    let Some(mut lab) = lab("rg", "") else { return };
    let probe = |action: &str| {
        let words = ["link", action, "probe", "type", "geneve", "external"];
        std::process::Command::new("ip").args(words).stderr(std::process::Stdio::null()).status().unwrap().success()
    };
    let has_geneve = lab.c.inside(|| probe("add") && probe("del"));
    for node in &mut lab.nodes {
        node.kill();
        node.configure("tunnel-protocol = 'geneve'");
        match has_geneve {
            true => node.start(),
            false => node.spawn(),
        }
    }
    let links = |lab: &Lab| lab.nodes[0].shows("ip", &["-br", "link"]);
    if has_geneve {
        connected(&mut lab);
        let found = links(&lab);
        assert!(found.contains("weir_geneve") && !found.contains("weir_vxlan"), "{found}");
        let status = lab.nodes[0].ask(r#"{"request":"status"}"#);
        assert_eq!(status["ok"]["tunnel_protocol"], json!("geneve"), "{status}");
    } else {
        lab.nodes[0].wait_for("this kernel has no geneve devices: load its module `geneve`, or set tunnel-protocol");
        let status = lab.nodes[0].ask(r#"{"request":"status"}"#);
        assert_eq!(status["ok"]["healthy"], json!(false), "{status}");
    }
    for node in &mut lab.nodes {
        node.kill();
        node.configure("");
        node.start();
    }
    connected(&mut lab);
    let found = links(&lab);
    assert!(found.contains("weir_vxlan") && !found.contains("weir_geneve"), "{found}");
}

#[test]
fn a_route_that_cannot_be_made_is_said_and_others_are_made() {
    let Some(mut lab) = lab("re", "routing-mode = 'native'") else { return };
    let node = &mut lab.nodes[0];
    node.namespace.inside(|| run("ip", &["route", "add", "10.244.4.0/24", "via", "192.0.2.2"]));
    let more = |n: u8, address: &str| {
        format!(
            "---
apiVersion: v1
kind: Node
metadata: {{name: n{n}}}
spec: {{podCIDRs: [10.244.{n}.0/24]}}
status: {{addresses: [{{type: InternalIP, address: '{address}'}}]}}
"
        )
    };
    let others = [more(3, "198.51.100.3"), more(4, "192.0.2.4"), more(5, "2001:db8::5"), more(6, "192.0.2.6")].concat();
    node.write("more.yaml", &others);
    node.wait_for("maps are as the objects say");
    let status = node.ask(r#"{"request":"status"}"#);
    assert_eq!(status["ok"]["healthy"], json!(false), "{status}");
    let lines: Vec<&str> = status["ok"]["problems"].as_array().unwrap().iter().map(|l| l.as_str().unwrap()).collect();
    let expected = [
        "route to 10.244.5.0/24: node `n5` has no IPv4 address",
        "route to 10.244.3.0/24: 198.51.100.3 is on no network of this node",
        "route to 10.244.4.0/24: there is one that is not weir's",
    ];
    assert_eq!(lines.len(), 3, "{lines:?}");
    assert!(lines.iter().zip(expected).all(|(line, expected)| line.starts_with(expected)), "{lines:?}");
    let routes = node.shows("ip", &["route"]);
    assert!(
        routes.contains("10.244.6.0/24 via 192.0.2.6") && routes.contains("10.244.4.0/24 via 192.0.2.2"),
        "{routes}"
    );
    node.delete("more.yaml");
    node.wait_for("maps are as the objects say");
    let routes = node.shows("ip", &["route"]);
    assert!(!routes.contains("10.244.6.0") && routes.contains("10.244.4.0/24 via 192.0.2.2"), "{routes}");
    let status = node.ask(r#"{"request":"status"}"#);
    assert_eq!(status["ok"]["healthy"], json!(true), "{status}");
}
