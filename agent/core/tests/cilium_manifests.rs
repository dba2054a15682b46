//! Reading Cilium's policies and ClusterNetworkPolicy: what is refused, and how.

use agent_core::model::cilium::{CiliumPeerSelector, Inspect};
use agent_core::model::{Model, Name, PortSelector};
use agent_core::{Settings, input};

fn errors(text: &str) -> Vec<String> {
    let found: Result<Model, input::InputErrors> =
        Model::parse(&[("test.yaml".to_owned(), text.to_owned())], Settings::default());
    match found {
        Ok(_) => Vec::new(),
        Err(errors) => errors.0.iter().map(ToString::to_string).collect(),
    }
}

fn cnp(spec: &str) -> String {
    format!("apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {{name: p, namespace: x}}\nspec: {spec}\n")
}

fn ccnp(spec: &str) -> String {
    format!("apiVersion: cilium.io/v2\nkind: CiliumClusterwideNetworkPolicy\nmetadata: {{name: p}}\nspec: {spec}\n")
}

fn tier(spec: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: p}}\nspec: {spec}\n"
    )
}

fn each_is_refused(cases: &[(String, &str)]) {
    for (text, expected) in cases {
        let found = errors(text);
        assert!(found.iter().any(|error| error.contains(expected)), "{text}\n{found:#?}\nexpected: {expected}");
        assert!(found.iter().all(|error| error.starts_with("test.yaml:4: spec")), "{text}\n{found:#?}");
    }
}

#[test]
fn cilium_policies_are_refused_for_what_cilium_refuses_and_for_what_is_not_there() {
    let spec = |rest: &str| cnp(&format!("{{endpointSelector: {{}}, {rest}}}"));
    let ingress = |rule: &str| spec(&format!("ingress: [{{{rule}}}]"));
    let egress = |rule: &str| spec(&format!("egress: [{{{rule}}}]"));
    let port = |port: &str| ingress(&format!("toPorts: [{{ports: [{{{port}}}]}}]"));
    let rules = |rules: &str| egress(&format!("toPorts: [{{ports: [{{port: \"80\", protocol: TCP}}], {rules}}}]"));
    each_is_refused(&[
        (cnp("{ingress: [{}]}"), "spec.endpointSelector: needs endpointSelector"),
        (cnp("{endpointSelector: {}}"), "needs a rule in ingress, ingressDeny, egress or egressDeny"),
        (spec("ingress: []"), "needs a rule in ingress"),
        (cnp("{nodeSelector: {}, ingress: [{}]}"), "policies about nodes are CiliumClusterwideNetworkPolicies"),
        (ccnp("{nodeSelector: {}, endpointSelector: {}, ingress: [{}]}"), "either endpointSelector or nodeSelector"),
        (ingress("fromEndpoint: []"), "spec.ingress[0].fromEndpoint: unknown field, did you mean `fromEndpoints`?"),
        (ingress("toEndpoints: []"), "spec.ingress[0].toEndpoints: unknown field"),
        (ingress("fromRequires: []"), "fromRequires: not supported: Cilium removed it"),
        (egress("toGroups: [{aws: {}}]"), "toGroups: not supported: groups of a cloud"),
        (ingress("fromEndpoints: [{}], fromCIDR: [10.0.0.0/8]"), "fromCIDR: cannot stand beside fromEndpoints"),
        (ingress("fromEntities: [internet]"), "fromEntities[0]: `internet`: must be one of all, world"),
        (ingress("fromCIDR: [10.0.0]"), "fromCIDR[0]: `10.0.0`: must be a CIDR"),
        (ingress("fromCIDRSet: [{cidr: 10.0.0.0/8, except: [11.0.0.0/9]}]"), "must be a block inside 10.0.0.0/8"),
        (ingress("fromCIDRSet: [{}]"), "needs one of cidr, cidrGroupRef and cidrGroupSelector"),
        (ingress("fromCIDRSet: [{cidr: 10.0.0.0/8, cidrGroupRef: a}]"), "needs one of cidr"),
        (ingress("authentication: {mode: required}"), "authentication: not supported"),
        (ingress("fromEndpoints: [{matchLabels: {\"cidr:10.0.0.0/8\": \"\"}}]"), "the source of a label is"),
        (
            ingress("fromEndpoints: [{matchLabels: {\"reserved:host\": \"\", app: a}}]"),
            "one reserved label and nothing",
        ),
        (ingress("fromEndpoints: [{matchLabels: {\"reserved:moon\": \"\"}}]"), "a reserved label is asked for as"),
        (
            ingress("fromEndpoints: [{matchLabels: {\"io.cilium.k8s.policy.name\": a}}]"),
            "pods have no such label; there are",
        ),
        (spec("ingress: [{}], enableDefaultDeny: {ingres: true}"), "enableDefaultDeny.ingres: unknown field"),
        (spec("ingress: [{}], log: {value: \"a line\\nbreak\"}"), "at most 32 printable characters"),
        (
            cnp("{endpointSelector: {matchLabels: {\"k8s:io.kubernetes.pod.namespace\": y}}, ingress: [{}]}"),
            "a policy of namespace `x` is about no other namespace",
        ),
        (cnp("{endpointSelector: {matchLabels: {\"reserved:host\": \"\"}}, ingress: [{}]}"), "policies are about pods"),
        (port("port: 80"), "ports[0].port: expected a string (in quotes), found `80`"),
        (port("port: \"70000\""), "must be a number from 0 to 65535 or a port's name"),
        (port("port: \"90\", endPort: 80"), "endPort: `80`: must not be below `port` (90)"),
        (port("port: http, endPort: 80"), "endPort: needs a numeric `port`"),
        (port("port: \"0\", endPort: 80"), "means every port; it has no endPort"),
        (port("port: \"80\", protocol: tcp"), "protocol: `tcp`: must be TCP, UDP, SCTP or ANY"),
        (port("port: \"80\", protocol: ICMP"), "(ICMP has `icmps`)"),
        (port("protocol: TCP"), "ports[0].port: is required"),
        (ingress("toPorts: [{}]"), "toPorts[0].ports: is required"),
        (ingress("toPorts: [{ports: []}]"), "without ports it matches nothing"),
        (
            ingress(&format!("toPorts: [{{ports: [{}]}}]", vec!["{port: \"1\"}"; 41].join(", "))),
            "has 41 items; at most 40 are allowed",
        ),
        (ingress("toPorts: [{ports: [{port: \"1\"}]}], icmps: [{fields: [{type: 8}]}]"), "icmps: cannot stand beside"),
        (ingress("icmps: [{fields: [{type: 256}]}]"), "must be between 0 and 255"),
        (ingress("icmps: [{fields: [{type: Ping}]}]"), "must be a number from 0 to 255, or one of EchoReply"),
        (ingress("icmps: [{fields: [{family: IPv5, type: 8}]}]"), "must be IPv4 or IPv6"),
        (rules("rules: {http: []}"), "needs at least one rule"),
        (rules("rules: {http: [{path: \"(\"}]}"), "path: `(`: must be a regular expression"),
        (rules("rules: {http: [{headers: [\"a b:c d\", \"\"]}]}"), "must be a header's name"),
        (rules("rules: {http: [{headerMatches: []}]}"), "headerMatches: not supported"),
        (rules("rules: {kafka: [{}]}"), "kafka: not supported: Cilium removed it"),
        (rules("rules: {http: [{}], dns: [{matchName: a.b}]}"), "a port speaks one protocol"),
        (rules("rules: {dns: [{matchName: \"*.b\"}]}"), "patterns go into matchPattern"),
        (rules("rules: {dns: [{}]}"), "needs either matchName or matchPattern"),
        (rules("serverNames: []"), "without names it matches nothing"),
        (rules("serverNames: [a.b], rules: {http: [{}]}"), "TLS is not opened"),
        (rules("terminatingTLS: {}"), "terminatingTLS: not supported"),
        (rules("listener: {}"), "listener: not supported"),
        (
            ingress("toPorts: [{ports: [{port: \"53\"}], rules: {dns: [{matchName: a.b}]}}]"),
            "DNS is looked at where it is asked",
        ),
        (egress("toPorts: [{ports: [{port: \"80\"}], rules: {http: [{}]}}]"), "needs `protocol: TCP`"),
        (egress("toPorts: [{ports: [{port: \"0\", protocol: TCP}], rules: {http: [{}]}}]"), "needs a port"),
        (spec("egressDeny: [{toFQDNs: [{matchName: a.b}]}]"), "a deny rule knows no names"),
        (spec("egressDeny: [{toPorts: [{ports: [{port: \"1\"}], rules: {http: [{}]}}]}]"), "rules: unknown field"),
        (egress("toFQDNs: [{matchName: \"a b\"}]"), "must be a DNS name"),
        (egress("toServices: [{}]"), "needs either k8sService or k8sServiceSelector"),
        (egress("toServices: [{k8sService: {name: a}}]"), "serviceName: is required"),
        (
            ccnp(
                "{nodeSelector: {}, ingress: [{toPorts: [{ports: [{port: \"80\", protocol: TCP}], rules: {http: [{}]}}]}]}",
            ),
            "policies about nodes know addresses and ports only",
        ),
    ]);
    let nothing = "apiVersion: cilium.io/v2\nkind: CiliumNetworkPolicy\nmetadata: {name: p}\n";
    assert_eq!(errors(nothing), ["test.yaml:1: spec: needs `spec` or `specs`: without them it says nothing"]);
}

#[test]
fn tiers_are_refused_for_what_their_definition_refuses() {
    let spec = |rest: &str| tier(&format!("{{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, {rest}}}"));
    let ingress = |rule: &str| spec(&format!("ingress: [{{{rule}}}]"));
    let egress = |rule: &str| spec(&format!("egress: [{{{rule}}}]"));
    each_is_refused(&[
        (
            tier("{tier: Middle, priority: 1, subject: {namespaces: {}}}"),
            "tier: `Middle`: must be one of Admin, Baseline",
        ),
        (
            tier("{tier: Admin, priority: 1001, subject: {namespaces: {}}}"),
            "priority: `1001`: must be between 0 and 1000",
        ),
        (tier("{tier: Admin, priority: 1}"), "spec.subject: is required"),
        (tier("{tier: Admin, priority: 1, subject: {}}"), "needs exactly one of namespaces, pods"),
        (
            tier("{tier: Admin, priority: 1, subject: {namespaces: {}, pods: {podSelector: {}}}}"),
            "needs exactly one of",
        ),
        (tier("{tier: Admin, priority: 1, subject: {pods: {}}}"), "podSelector: is required"),
        (ingress("action: Allow, from: [{namespaces: {}}]"), "action: `Allow`: must be one of Accept, Deny, Pass"),
        (ingress("action: Deny"), "ingress[0].from: is required"),
        (ingress("action: Deny, from: []"), "has 0 items; it takes from 1 to 25"),
        (ingress("action: Deny, from: [{networks: [10.0.0.0/8]}]"), "networks: unknown field"),
        (egress("action: Deny, to: [{networks: []}]"), "has 0 items"),
        (egress("action: Deny, to: [{networks: [10.0.0.0]}]"), "must be a CIDR"),
        (egress("action: Deny, to: [{domainNames: [a.b]}]"), "only Accept rules know names"),
        (egress("action: Accept, to: [{domainNames: [\"a.*.b\"]}]"), "must be a DNS name of two labels or more"),
        (
            egress("action: Accept, to: [{networks: [10.0.0.0/8]}], protocols: [{destinationNamedPort: web}]"),
            "nodes, networks and domain names have no named ports",
        ),
        (ingress("action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {}}]"), "destinationPort: is required"),
        (
            ingress(
                "action: Deny, from: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 5, end: 5}}}}]",
            ),
            "must be above `start` (5)",
        ),
        (
            spec(&format!("ingress: [{}]", vec!["{action: Deny, from: [{namespaces: {}}]}"; 26].join(", "))),
            "has 26 items",
        ),
    ]);
}

#[test]
fn what_users_bring_is_read() {
    let text = cnp(
        "{endpointSelector: {matchLabels: {\"any:app\": a}}, description: d, labels: [{key: a, value: b, source: k8s}], \
         ingress: [{fromEndpoints: [{matchLabels: {\"k8s:io.kubernetes.pod.namespace\": y}}], \
         toPorts: [{ports: [{port: \"80\"}, {port: HTTP, protocol: TCP}, {port: \"8000\", endPort: 8080, protocol: UDP}]}]}], \
         egress: [{toFQDNs: [{matchPattern: \"*.example.com\"}]}, \
         {toPorts: [{ports: [{port: \"443\", protocol: TCP}], serverNames: [\"*.example.com\"]}]}, \
         {toCIDR: [10.1.2.3]}, {icmps: [{fields: [{type: EchoRequest, family: IPv6}]}]}], \
         enableDefaultDeny: {egress: false}, log: {value: hello}}",
    );
    assert_eq!(errors(&text), [""; 0]);
    let model = Model::parse(&[("f".to_owned(), text)], Settings::default()).unwrap();
    let spec = &model.cilium_policies()[&Name::new("x", "p")].specs[0];
    assert!(spec.isolates_ingress && !spec.isolates_egress && spec.log.as_deref() == Some("hello"));
    let ports = &spec.ingress[0].ports;
    assert_eq!(ports[0].protocols, [6, 17, 132], "ANY");
    assert_eq!(ports[1].ports, PortSelector::Named("http".to_owned()));
    assert_eq!(ports[2].ports, PortSelector::Range(8000, 8080));
    assert!(matches!(spec.egress[1].ports[0].inspect, Some(Inspect::Tls(_))));
    let peers = spec.egress[2].peers.as_ref().unwrap();
    let CiliumPeerSelector::Cidr(block) = &peers[0].selects else { panic!("a CIDR") };
    assert_eq!(block.to_string(), "10.1.2.3/32");
    assert_eq!(
        (spec.egress[3].ports[0].protocols[0], &spec.egress[3].ports[0].ports),
        (58, &PortSelector::Range(128, 128))
    );
}
