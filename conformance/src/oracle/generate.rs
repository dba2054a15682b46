//! Random small clusters with policies of every kind, as documents of YAML that can be left out one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use agent_core::policy::{Enforcement, LabelFilter, PolicySettings};

/// A small generator (xorshift64*), so that a seed is all that a failure needs.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed; equal seeds give equal sequences.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// A number below `count`.
    pub fn below(&mut self, count: usize) -> usize {
        let count = u64::try_from(count.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.next() % count).unwrap_or(0)
    }

    /// Whether one in `count`.
    pub fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    /// One of several.
    pub fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from.get(self.below(from.len())).copied().unwrap_or_default()
    }

    /// From `least` on, fewer than `most` of what `make` makes, with commas.
    fn some(&mut self, least: usize, most: usize, make: fn(&mut Self) -> String) -> String {
        let count = least + self.below(most - least);
        (0..count).map(|_| make(self)).collect::<Vec<_>>().join(", ")
    }
}

const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const APPS: [&str; 3] = ["web", "api", "db"];
/// Addresses that are nobody's in the cluster.
pub const OUTSIDE: [&str; 8] = [
    "203.0.113.7",
    "203.0.113.200",
    "198.51.100.1",
    "10.244.1.200",
    "203.0.200.1",
    "2001:db8::7",
    "2001:db8:1::1",
    "fd00:10:244:1::99",
];
/// Ports that flows are tried with: borders of what rules name.
pub const PORTS: [u16; 12] = [0, 1, 53, 79, 80, 81, 83, 84, 443, 8080, 8081, 65_535];
/// Types of ICMP that flows are tried with.
pub const TYPES: [u16; 4] = [0, 8, 128, 3];

const BLOCKS: [(&str, &[&str]); 13] = [
    ("0.0.0.0/0", &["10.0.0.0/8", "10.244.1.0/24", "203.0.113.0/24", "192.168.0.12/32"]),
    ("10.0.0.0/8", &["10.244.1.0/30", "10.244.2.0/24", "10.244.1.3/32"]),
    ("10.244.1.0/24", &["10.244.1.2/31", "10.244.1.4/32"]),
    ("10.244.1.3/32", &[]),
    ("192.168.0.0/16", &["192.168.0.11/32"]),
    ("192.168.0.12/32", &[]),
    ("203.0.0.0/8", &["203.0.113.0/24", "203.0.113.7/32"]),
    ("203.0.113.0/24", &["203.0.113.7/32", "203.0.113.4/30"]),
    ("203.0.113.7/32", &[]),
    ("::/0", &["fd00::/8", "2001:db8::/32"]),
    ("fd00::/8", &["fd00:10:244:1::/64", "fd00:10:244:2::3/128"]),
    ("2001:db8::/32", &["2001:db8::7/128"]),
    ("fd00:10:244:1::/64", &["fd00:10:244:1::2/127"]),
];

fn block(random: &mut Random) -> (String, String) {
    let (block, holes) = BLOCKS[random.below(BLOCKS.len())];
    let holes: Vec<String> = holes.iter().filter(|_| random.one_in(3)).map(|hole| format!("\"{hole}\"")).collect();
    (format!("\"{block}\""), holes.join(", "))
}

/// A plain selector; the keys have `before` in front.
fn selector_of(random: &mut Random, keys: &[(&str, &[&str])], before: &str) -> String {
    let (key, values) = keys[random.below(keys.len())];
    let key = format!("\"{before}{key}\"");
    let value = random.pick(values);
    match random.below(7) {
        0 => "{}".to_owned(),
        1 | 2 => format!("{{matchLabels: {{{key}: {value}}}}}"),
        3 => {
            format!("{{matchExpressions: [{{key: {key}, operator: In, values: [{value}, {}]}}]}}", random.pick(values))
        }
        4 => format!("{{matchExpressions: [{{key: {key}, operator: NotIn, values: [{value}]}}]}}"),
        5 => format!("{{matchExpressions: [{{key: {key}, operator: Exists}}]}}"),
        _ => format!("{{matchExpressions: [{{key: {key}, operator: DoesNotExist}}]}}"),
    }
}

/// `pod-template-hash` does not count for identities.
const POD_KEYS: &[(&str, &[&str])] =
    &[("app", &APPS), ("tier", &["front", "back"]), ("pod-template-hash", &["h1", "h2"])];
const NAMESPACE_KEYS: &[(&str, &[&str])] = &[("team", &["a", "b"]), ("kubernetes.io/metadata.name", &NAMESPACES)];
const NODE_KEYS: &[(&str, &[&str])] = &[("zone", &["one", "two"]), ("kubernetes.io/hostname", &["node-1", "node-2"])];

fn pod_selector(random: &mut Random) -> String {
    selector_of(random, POD_KEYS, "")
}

fn namespace_selector(random: &mut Random) -> String {
    selector_of(random, NAMESPACE_KEYS, "")
}

fn node_selector(random: &mut Random) -> String {
    selector_of(random, NODE_KEYS, "")
}

/// An endpoint selector of Cilium.
fn endpoint_selector(random: &mut Random) -> String {
    match random.below(8) {
        0 => selector_of(random, &[("io.kubernetes.pod.namespace", &NAMESPACES)], "k8s:"),
        1 => selector_of(random, NAMESPACE_KEYS, "k8s:io.cilium.k8s.namespace.labels."),
        2 => selector_of(random, &[("io.cilium.k8s.policy.serviceaccount", &["default", "robot"])], ""),
        3 => selector_of(random, &[("io.cilium.k8s.policy.cluster", &["default", "other"])], "k8s:"),
        4 => format!(
            "{{matchLabels: {{app: {}, \"k8s:io.kubernetes.pod.namespace\": {}}}}}",
            random.pick(&APPS),
            random.pick(&NAMESPACES)
        ),
        5 => format!("{{matchLabels: {{\"reserved:{}\": \"\"}}}}", random.pick(&["host", "world", "remote-node"])),
        6 => selector_of(random, POD_KEYS, "any:"),
        _ => pod_selector(random),
    }
}

fn port_number(random: &mut Random) -> u16 {
    let all: Vec<u16> = PORTS.iter().copied().filter(|port| *port > 0).collect();
    all.get(random.below(all.len())).copied().unwrap_or(80)
}

// NetworkPolicy.

fn kubernetes_peer(random: &mut Random) -> String {
    match random.below(5) {
        0 => format!("{{podSelector: {}}}", pod_selector(random)),
        1 => format!("{{namespaceSelector: {}}}", namespace_selector(random)),
        2 => format!("{{podSelector: {}, namespaceSelector: {}}}", pod_selector(random), namespace_selector(random)),
        _ => {
            let (block, holes) = block(random);
            format!("{{ipBlock: {{cidr: {block}, except: [{holes}]}}}}")
        }
    }
}

fn kubernetes_port(random: &mut Random) -> String {
    let protocol = random.pick(&["TCP", "UDP", "SCTP"]);
    let (a, b) = (port_number(random), port_number(random));
    match random.below(5) {
        0 => format!("{{protocol: {protocol}}}"),
        1 => format!("{{protocol: {protocol}, port: {a}}}"),
        2 => format!("{{protocol: {protocol}, port: {}, endPort: {}}}", a.min(b), a.max(b)),
        _ => format!("{{protocol: {protocol}, port: {}}}", random.pick(&["http", "dns", "none"])),
    }
}

fn kubernetes_rules(random: &mut Random, peers: &str) -> String {
    let rules: Vec<String> = (0..random.below(3))
        .map(|_| {
            let from = random.some(0, 3, kubernetes_peer);
            format!("{{{peers}: [{from}], ports: [{}]}}", random.some(0, 3, kubernetes_port))
        })
        .collect();
    rules.join(", ")
}

fn network_policy(random: &mut Random, index: usize) -> String {
    let mut spec = format!("podSelector: {}", pod_selector(random));
    let types = random.pick(&["", "[]", "[Ingress]", "[Egress]", "[Ingress, Egress]"]);
    if !types.is_empty() {
        spec += &format!(", policyTypes: {types}");
    }
    if !random.one_in(4) {
        spec += &format!(", ingress: [{}]", kubernetes_rules(random, "from"));
    }
    if !random.one_in(4) {
        spec += &format!(", egress: [{}]", kubernetes_rules(random, "to"));
    }
    let meta = meta(random, &format!("np{index}"), true);
    format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{{meta}}}\nspec: {{{spec}}}\n")
}

fn meta(random: &mut Random, name: &str, namespaced: bool) -> String {
    let namespace = if namespaced { format!(", namespace: {}", random.pick(&NAMESPACES)) } else { String::new() };
    let audit = if random.one_in(8) { ", annotations: {policy.weir.dev/audit: \"true\"}" } else { "" };
    format!("name: {name}{namespace}{audit}")
}

// Cilium's.

fn cidr(random: &mut Random) -> String {
    block(random).0
}

fn cidr_set(random: &mut Random) -> String {
    match random.below(5) {
        0 => "{cidrGroupRef: partners}".to_owned(),
        1 => "{cidrGroupSelector: {matchLabels: {kind: vpn}}, except: [203.0.113.7/32]}".to_owned(),
        _ => {
            let (block, holes) = block(random);
            format!("{{cidr: {block}, except: [{holes}]}}")
        }
    }
}

fn entity(random: &mut Random) -> String {
    let all = [
        "all",
        "world",
        "world-ipv4",
        "world-ipv6",
        "cluster",
        "host",
        "remote-node",
        "kube-apiserver",
        "init",
        "none",
        "health",
        "unmanaged",
        "ingress",
    ];
    random.pick(&all).to_owned()
}

fn service(random: &mut Random) -> String {
    let all = [
        "{k8sService: {serviceName: web, namespace: x}}",
        "{k8sService: {serviceName: outer, namespace: y}}",
        "{k8sServiceSelector: {selector: {matchLabels: {part: shop}}, namespace: x}}",
        "{k8sServiceSelector: {selector: {matchLabels: {part: shop}}}}",
    ];
    // Without a namespace the policy's own is meant; that of a cluster's policy is all.
    random.pick(&all).to_owned()
}

fn name(random: &mut Random) -> String {
    let all = [
        "{matchName: api.example.com}",
        "{matchPattern: \"*.example.com\"}",
        "{matchPattern: \"**.example.com\"}",
        "{matchPattern: \"*\"}",
        "{matchName: nobody.example.org}",
    ];
    random.pick(&all).to_owned()
}

fn cilium_peers(random: &mut Random, ingress: bool, deny: bool, host: bool) -> String {
    let direction = if ingress { "from" } else { "to" };
    match random.below(if ingress { 7 } else { 9 }) {
        0 => String::new(),
        1 | 2 => format!("{direction}Endpoints: [{}]", random.some(0, 3, endpoint_selector)),
        3 => format!("{direction}CIDR: [{}]", random.some(0, 3, cidr)),
        4 => format!("{direction}CIDRSet: [{}]", random.some(1, 3, cidr_set)),
        5 => format!("{direction}Entities: [{}]", random.some(0, 3, entity)),
        6 => format!("{direction}Nodes: [{}]", random.some(1, 3, node_selector)),
        7 if !host => format!("toServices: [{}]", random.some(1, 3, service)),
        8 if !deny => format!("toFQDNs: [{}]", random.some(1, 3, name)),
        _ => format!("{direction}Entities: [{}]", random.pick(&["all", "cluster", "world"])),
    }
}

fn cilium_port(random: &mut Random) -> String {
    let protocol = random.pick(&["", ", protocol: ANY", ", protocol: TCP", ", protocol: UDP", ", protocol: SCTP"]);
    let (a, b) = (port_number(random), port_number(random));
    match random.below(6) {
        0 => format!("{{port: \"0\"{protocol}}}"),
        1 => format!("{{port: \"{}\", endPort: {}{protocol}}}", a.min(b), a.max(b)),
        2 => format!("{{port: {}{protocol}}}", random.pick(&["http", "dns", "HTTP", "none"])),
        _ => format!("{{port: \"{a}\"{protocol}}}"),
    }
}

fn port_rule(random: &mut Random) -> String {
    format!("{{ports: [{}]}}", random.some(1, 3, cilium_port))
}

fn inspected_rule(random: &mut Random) -> String {
    let port = random.pick(&["80", "8080", "443"]);
    match random.below(4) {
        0 | 2 => format!("{{ports: [{{port: \"{port}\", protocol: TCP}}], rules: {{http: [{{path: \"/a.*\"}}]}}}}"),
        1 => format!("{{ports: [{{port: \"{port}\", protocol: TCP}}], serverNames: [\"*.example.com\"]}}"),
        _ => port_rule(random),
    }
}

fn dns_rule(random: &mut Random) -> String {
    if random.one_in(3) {
        "{ports: [{port: \"53\", protocol: ANY}], rules: {dns: [{matchPattern: \"*\"}]}}".to_owned()
    } else {
        inspected_rule(random)
    }
}

fn icmp(random: &mut Random) -> String {
    let all = ["{type: 8}", "{family: IPv4, type: EchoReply}", "{family: IPv6, type: 128}", "{type: \"3\"}"];
    random.pick(&all).to_owned()
}

fn cilium_rule(random: &mut Random, ingress: bool, deny: bool, host: bool) -> String {
    let mut parts = vec![cilium_peers(random, ingress, deny, host)];
    let make: fn(&mut Random) -> String = match (deny || host, ingress) {
        (true, _) => port_rule,
        (false, true) => inspected_rule,
        (false, false) => dns_rule,
    };
    match random.below(4) {
        0 => {}
        1 => parts.push(format!("icmps: [{{fields: [{}]}}]", random.some(1, 3, icmp))),
        _ => parts.push(format!("toPorts: [{}]", random.some(1, 3, make))),
    }
    parts.retain(|part| !part.is_empty());
    format!("{{{}}}", parts.join(", "))
}

fn cilium_spec(random: &mut Random, subject: &str, host: bool) -> String {
    let mut parts = vec![subject.to_owned()];
    let lists =
        [("ingress", true, false), ("ingressDeny", true, true), ("egress", false, false), ("egressDeny", false, true)];
    let forced = random.below(lists.len());
    for (index, (name, ingress, deny)) in lists.into_iter().enumerate() {
        if index == forced || random.one_in(3) {
            let rules: Vec<String> =
                (0..1 + random.below(2)).map(|_| cilium_rule(random, ingress, deny, host)).collect();
            parts.push(format!("{name}: [{}]", rules.join(", ")));
        }
    }
    if random.one_in(4) {
        let word = |random: &mut Random| random.pick(&["true", "false"]).to_owned();
        parts.push(format!("enableDefaultDeny: {{ingress: {}, egress: {}}}", word(random), word(random)));
    }
    format!("{{{}}}", parts.join(", "))
}

fn cilium_policy(random: &mut Random, index: usize) -> String {
    let subject = format!("endpointSelector: {}", pod_selector(random));
    let meta = meta(random, &format!("cnp{index}"), true);
    let head = format!("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{{meta}}}\n");
    if random.one_in(4) {
        let (a, b) = (cilium_spec(random, &subject, false), cilium_spec(random, &subject, false));
        return format!("{head}specs: [{a}, {b}]\n");
    }
    format!("{head}spec: {}\n", cilium_spec(random, &subject, false))
}

fn clusterwide_policy(random: &mut Random, index: usize) -> String {
    let host = random.one_in(3);
    let subject = if host {
        format!("nodeSelector: {}", node_selector(random))
    } else {
        let keys = [POD_KEYS, &[("io.kubernetes.pod.namespace", &NAMESPACES)]];
        let keys = keys[random.below(2)];
        format!("endpointSelector: {}", selector_of(random, keys, "k8s:"))
    };
    let meta = meta(random, &format!("ccnp{index}"), false);
    format!(
        "apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {{{meta}}}\nspec: {}\n",
        cilium_spec(random, &subject, host)
    )
}

// ClusterNetworkPolicy.

fn tier_pods(random: &mut Random) -> String {
    if random.one_in(2) {
        return format!("namespaces: {}", namespace_selector(random));
    }
    format!("pods: {{namespaceSelector: {}, podSelector: {}}}", namespace_selector(random), pod_selector(random))
}

fn network(random: &mut Random) -> String {
    block(random).0
}

fn tier_port(random: &mut Random) -> String {
    let protocol = random.pick(&["tcp", "udp", "sctp"]);
    let (a, b) = (port_number(random), port_number(random));
    if a == b || random.one_in(2) {
        format!("{{{protocol}: {{destinationPort: {{number: {a}}}}}}}")
    } else {
        format!("{{{protocol}: {{destinationPort: {{range: {{start: {}, end: {}}}}}}}}}", a.min(b), a.max(b))
    }
}

fn tier_rule(random: &mut Random, ingress: bool) -> String {
    let action = random.pick(&["Accept", "Deny", "Pass"]);
    let mut named = true;
    let mut peers = Vec::new();
    for _ in 0..1 + random.below(2) {
        let kinds = if ingress { 2 } else { 5 };
        let peer = match random.below(kinds) {
            0 | 1 => tier_pods(random),
            kind => {
                named = false;
                match kind {
                    2 => format!("nodes: {}", node_selector(random)),
                    3 if action == "Accept" => "domainNames: [\"*.example.com\"]".to_owned(),
                    _ => format!("networks: [{}]", random.some(1, 3, network)),
                }
            }
        };
        peers.push(format!("{{{peer}}}"));
    }
    let list = if ingress { "from" } else { "to" };
    let mut rule = format!("action: {action}, {list}: [{}]", peers.join(", "));
    if named && random.one_in(5) {
        rule += &format!(", protocols: [{{destinationNamedPort: {}}}]", random.pick(&["http", "dns"]));
    } else if !random.one_in(3) {
        rule += &format!(", protocols: [{}]", random.some(1, 3, tier_port));
    }
    format!("{{{rule}}}")
}

fn cluster_policy(random: &mut Random, index: usize) -> String {
    let mut spec = format!(
        "tier: {}, priority: {}, subject: {{{}}}",
        random.pick(&["Admin", "Baseline"]),
        random.below(4),
        tier_pods(random)
    );
    for (list, ingress) in [("ingress", true), ("egress", false)] {
        let rules: Vec<String> = (0..random.below(4)).map(|_| tier_rule(random, ingress)).collect();
        spec += &format!(", {list}: [{}]", rules.join(", "));
    }
    let meta = meta(random, &format!("tier{index}"), false);
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{{meta}}}\nspec: {{{spec}}}\n"
    )
}

// The rest of the cluster.

fn objects(random: &mut Random) -> Vec<String> {
    let mut documents = Vec::new();
    for (index, zone) in [(1, "one"), (2, "two")] {
        documents.push(format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: node-{index}, labels: {{zone: {zone}, kubernetes.io/hostname: node-{index}}}}}\n"
        ));
    }
    for namespace in NAMESPACES {
        let team = random.pick(&["a", "b"]);
        documents.push(format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{team: {team}}}}}\n"
        ));
    }
    for index in 0..2 + random.below(6) {
        let app = random.pick(&APPS);
        let ports = random.pick(&[
            "[{name: http, containerPort: 80}, {name: dns, protocol: UDP, containerPort: 53}]",
            "[{name: http, containerPort: 8080}, {name: dns, containerPort: 443}]",
            "[{name: http, containerPort: 80}]",
            "[]",
        ]);
        let mut labels = format!("app: {app}");
        if random.one_in(2) {
            labels += &format!(", tier: {}", random.pick(&["front", "back"]));
        }
        if random.one_in(2) {
            labels += &format!(", pod-template-hash: {}", random.pick(&["h1", "h2"]));
        }
        let host = if random.one_in(9) { ", hostNetwork: true" } else { "" };
        let account = if random.one_in(3) { ", serviceAccountName: robot" } else { "" };
        documents.push(format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{index}, namespace: {}, labels: {{{labels}}}}}\n\
             spec: {{nodeName: {}{host}{account}, containers: [{{name: c, ports: {ports}}}]}}\n",
            random.pick(&NAMESPACES),
            random.pick(&["node-1", "node-2"]),
        ));
    }
    documents.push(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: x, labels: {part: shop}}\n\
         spec: {selector: {app: web}, ports: [{port: 80}]}\n"
            .to_owned(),
    );
    documents.push(
        "apiVersion: v1\nkind: Service\nmetadata: {name: outer, namespace: y, labels: {part: shop}}\n\
         spec: {ports: [{port: 80}]}\n"
            .to_owned(),
    );
    documents.push(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {name: outer-1, namespace: y, labels: {kubernetes.io/service-name: outer}}\n\
         endpoints: [{addresses: [203.0.113.200]}, {addresses: [198.51.100.1]}]\nports: [{port: 80}]\n"
            .to_owned(),
    );
    let api = random.pick(&["192.168.0.11", "192.168.0.12", "198.51.100.1"]);
    documents
        .push("apiVersion: v1\nkind: Service\nmetadata: {name: kubernetes}\nspec: {ports: [{port: 443}]}\n".to_owned());
    documents.push(format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {{name: kubernetes, labels: {{kubernetes.io/service-name: kubernetes}}}}\n\
         endpoints: [{{addresses: [{api}]}}]\nports: [{{port: 6443}}]\n"
    ));
    documents.push(
        "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: partners}\n\
         spec: {externalCIDRs: [203.0.113.0/24, \"2001:db8::/32\"]}\n"
            .to_owned(),
    );
    documents.push(
        "apiVersion: cilium.io/v2\nkind: CiliumCIDRGroup\nmetadata: {name: office, labels: {kind: vpn}}\n\
         spec: {externalCIDRs: [203.0.0.0/16, 198.51.100.1/32]}\n"
            .to_owned(),
    );
    documents
}

/// A cluster: its documents, the policies last.
pub fn documents(random: &mut Random) -> Vec<String> {
    let mut documents = objects(random);
    // Some clusters have one kind only, most have a mixture.
    let only = random.below(8);
    for index in 0..1 + random.below(7) {
        let kind = if only < 4 { only } else { random.below(4) };
        documents.push(match kind {
            0 => network_policy(random, index),
            1 => cilium_policy(random, index),
            2 => clusterwide_policy(random, index),
            _ => cluster_policy(random, index),
        });
    }
    documents
}

/// Settings of the compiler.
pub fn settings(random: &mut Random) -> PolicySettings {
    let filter =
        |patterns: &[&str]| LabelFilter { patterns: patterns.iter().map(|pattern| (*pattern).to_owned()).collect() };
    let addresses = |list: &[&str]| list.iter().filter_map(|text| text.parse::<IpAddr>().ok()).collect::<BTreeSet<_>>();
    PolicySettings {
        enforcement: match random.below(12) {
            0 => Enforcement::Always,
            1 if random.one_in(3) => Enforcement::Never,
            _ => Enforcement::Default,
        },
        cidrs_match_pods: random.one_in(6),
        cidrs_match_nodes: random.one_in(6),
        host_firewall: true,
        cluster: random.pick(&["default", "default", "other"]).to_owned(),
        identity_labels: match random.below(8) {
            0 => filter(&["app"]),
            1 => filter(&["!tier"]),
            2 => filter(&["tier", "!app"]),
            3 => filter(&["!*"]),
            4 => filter(&[]),
            _ => LabelFilter::default(),
        },
        names: BTreeMap::from([
            ("api.example.com".to_owned(), addresses(&["203.0.113.7", "2001:db8::7"])),
            ("a.b.example.com".to_owned(), addresses(&["198.51.100.1"])),
        ]),
        ..PolicySettings::default()
    }
}
