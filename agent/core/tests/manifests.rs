//! Reading manifests: what is refused and how, and what is filled in.
#![expect(clippy::panic, reason = "a test")]

use agent_core::model::{Name, Object, read_objects};
use agent_core::{Model, Settings};

fn file(text: &str) -> Vec<(String, String)> {
    vec![("test.yaml".to_owned(), text.to_owned())]
}

fn model(text: &str) -> Model {
    Model::parse(&file(text), Settings::default()).unwrap_or_else(|errors| panic!("{errors}"))
}

fn errors(text: &str) -> Vec<String> {
    match Model::parse(&file(text), Settings::default()) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.0.iter().map(ToString::to_string).collect(),
    }
}

fn pod(name: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: x}}\nspec: {{{rest}containers: [{{name: c}}]}}\n"
    )
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: x}}\nspec: {spec}\n"
    )
}

fn addresses(model: &Model, name: &str) -> Vec<String> {
    let pod = &model.pods()[&Name::new("x", name)];
    pod.addresses.iter().map(ToString::to_string).collect()
}

#[test]
fn a_policy_is_refused_for_everything_that_the_api_refuses() {
    let peer = |peer: &str| format!("{{podSelector: {{}}, ingress: [{{from: [{peer}]}}]}}");
    let port = |port: &str| format!("{{podSelector: {{}}, ingress: [{{ports: [{port}]}}]}}");
    let cases = [
        ("{podSelektor: {}}".to_owned(), "spec.podSelektor: unknown field, did you mean `podSelector`?"),
        ("{policyTypes: [ingress]}".to_owned(), "spec.policyTypes[0]: `ingress`: must be Ingress or Egress"),
        ("{ingress: [{to: []}]}".to_owned(), "spec.ingress[0].to: unknown field"),
        (peer("{}"), "from[0]: a peer needs podSelector, namespaceSelector or ipBlock"),
        (peer("{podSelector: {}, ipBlock: {cidr: 1.2.3.0/24}}"), "ipBlock: a peer has either ipBlock or selectors"),
        (peer("{ipBlock: {}}"), "ipBlock.cidr: is required"),
        (peer("{ipBlock: {cidr: 1.2.3.0}}"), "ipBlock.cidr: `1.2.3.0`: must be a CIDR"),
        (
            peer("{ipBlock: {cidr: 1.2.3.0/24, except: [1.2.4.0/25]}}"),
            "except[0]: `1.2.4.0/25`: must be a smaller block",
        ),
        (peer("{ipBlock: {cidr: 1.2.3.0/24, except: [1.2.3.0/24]}}"), "must be a smaller block inside 1.2.3.0/24"),
        (peer("{ipBlock: {cidr: 1.2.3.0/24, except: [1.2.0.0/16]}}"), "must be a smaller block inside 1.2.3.0/24"),
        (peer("{ipBlock: {cidr: \"::ffff:10.0.0.0/104\"}}"), "an IPv4 address is written as such"),
        (port("{port: 0}"), "ports[0].port: `0`: must be between 1 and 65535"),
        (port("{port: 65536}"), "must be between 1 and 65535"),
        (port("{port: \"80\"}"), "must be a number (without quotes) or a port's name"),
        (port("{port: Http}"), "must be a number (without quotes) or a port's name"),
        (port("{protocol: tcp}"), "ports[0].protocol: `tcp`: must be TCP, UDP or SCTP"),
        (port("{protocol: ICMP}"), "must be TCP, UDP or SCTP"),
        (port("{endPort: 90}"), "ports[0].endPort: needs a numeric `port` beside it"),
        (port("{port: http, endPort: 90}"), "ports[0].endPort: needs a numeric `port`; it has a name"),
        (port("{port: 90, endPort: 80}"), "ports[0].endPort: `80`: must not be below `port` (90)"),
        (port("{port: 90, endport: 91}"), "ports[0].endport: unknown field, did you mean `endPort`?"),
    ];
    for (spec, expected) in cases {
        let found = errors(&policy(&spec));
        assert!(found.iter().any(|error| error.contains(expected)), "{spec}: {found:?}");
        assert!(found.iter().all(|error| error.starts_with("test.yaml:4: spec.")), "{spec}: {found:?}");
    }
}

#[test]
fn what_the_api_accepts_is_accepted() {
    for spec in [
        "{podSelector: {}}",
        "{}",
        "{podSelector: {}, ingress: null, policyTypes: null}",
        "{ingress: [{}], egress: []}",
        "{ingress: [{from: [], ports: []}]}",
        "{ingress: [{from: [{ipBlock: {cidr: 10.1.2.3/8, except: [10.1.2.3/32]}}]}]}",
        "{ingress: [{ports: [{port: 80, endPort: 80}, {protocol: SCTP}, {port: serve-80-tcp}]}]}",
        "{ingress: [{from: [{podSelector: {}}, {namespaceSelector: {matchLabels: {a: \"\"}}}]}]}",
    ] {
        assert_eq!(errors(&policy(spec)), [""; 0], "{spec}");
    }
}

#[test]
fn policy_types_default_as_in_the_api() {
    let isolates = |spec: &str| {
        let model = model(&policy(spec));
        let policy = &model.policies()[&Name::new("x", "p")];
        (policy.isolates_ingress, policy.isolates_egress)
    };
    assert_eq!(isolates("{}"), (true, false));
    assert_eq!(isolates("{egress: []}"), (true, false));
    assert_eq!(isolates("{egress: [{}]}"), (true, true));
    assert_eq!(isolates("{egress: [{}], policyTypes: []}"), (true, true));
    assert_eq!(isolates("{egress: [{}], policyTypes: [Ingress]}"), (true, false));
    assert_eq!(isolates("{ingress: [{}], policyTypes: [Egress]}"), (false, true));
}

#[test]
fn all_errors_of_all_files_come_at_once_with_their_lines() {
    let files = [
        ("a.yaml".to_owned(), format!("{}{}", pod("a", "nodename: n, "), pod("B", ""))),
        (
            "b.yaml".to_owned(),
            "kind: NetworkPolicy\napiVersion: networking.k8s.io/v1beta1\nmetadata: {name: p}\n".to_owned(),
        ),
        ("c.yaml".to_owned(), "a: [".to_owned()),
    ];
    let errors = Model::parse(&files, Settings::default()).unwrap_err();
    let found: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 4, "{found:#?}");
    assert_eq!(found[0], "a.yaml:5: spec.nodename: unknown field, did you mean `nodeName`?");
    assert!(found[1].starts_with("a.yaml:9: metadata.name: `B`: a name has lower-case"), "{}", found[1]);
    assert_eq!(
        found[2],
        "b.yaml:1: kind: unknown kind `NetworkPolicy` of `networking.k8s.io/v1beta1`, did you mean `NetworkPolicy of networking.k8s.io/v1`?"
    );
    assert!(
        found[3].starts_with("c.yaml:1: not YAML: ") || found[3].starts_with("c.yaml:2: not YAML: "),
        "{}",
        found[3]
    );
}

#[test]
fn known_kinds_without_a_part_in_networking_are_accepted_and_others_are_not() {
    assert_eq!(errors("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {anything: goes}\n"), [""; 0]);
    let unknown = "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nmetadata: {name: s}\n";
    assert_eq!(
        errors(unknown),
        ["test.yaml:2: kind: unknown kind `CustomResourceDefinition` of `apiextensions.k8s.io/v1`"]
    );
    assert_eq!(errors("kind: Pod\n"), ["test.yaml:1: apiVersion: is required"]);
    assert_eq!(errors("- a\n- b\n"), ["test.yaml:1: expected an object, found a list"]);
}

#[test]
fn lists_stand_for_their_items() {
    let text = "apiVersion: v1\nkind: List\nmetadata: {resourceVersion: \"\"}\nitems:\n\
                - {apiVersion: v1, kind: Namespace, metadata: {name: x}}\n\
                - {apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Namespace, metadata: {name: y}}]}\n";
    let objects = read_objects(&file(text)).unwrap();
    assert_eq!(objects.len(), 2);
    assert!(matches!(&objects[1], Object::Namespace(meta) if meta.name == "y" && meta.position.line == 6));
}

#[test]
fn the_same_object_twice_is_refused_with_the_place_of_the_first() {
    assert_eq!(
        errors(&(pod("a", "") + &pod("a", ""))),
        ["test.yaml:7: metadata.name: Pod `x/a` is already taken at test.yaml:2"]
    );
}

#[test]
fn addresses_and_nodes_must_fit_together() {
    let status = |name: &str, ip: &str| {
        format!("{}status: {{podIP: {ip}, podIPs: [{{ip: {ip}}}]}}\n", pod(name, "nodeName: node-1, "))
    };
    let found = errors(&(status("a", "10.0.0.1") + &status("b", "10.0.0.1")));
    assert_eq!(found, ["test.yaml:12: status.podIPs: address 10.0.0.1 of pod `x/a` is already taken at test.yaml:6"]);
    let found = errors(&status("a", "192.168.0.12"));
    assert!(found[0].contains("192.168.0.12 of node `node-2` is already taken"), "{found:?}");
    assert!(errors(&status("a", "10.0.0.300"))[0].contains("must be an address"));
    let node = "---\napiVersion: v1\nkind: Node\nmetadata: {name: n1}\n";
    assert_eq!(
        errors(&(node.to_owned() + &pod("a", "nodeName: n2, "))),
        ["test.yaml:9: spec.nodeName: no node `n2`; there is `n1`"]
    );
}

#[test]
fn without_nodes_there_are_two_and_pods_get_their_turn_and_the_next_address() {
    let model = model(&(pod("a", "") + &pod("b", "") + &pod("c", "nodeName: node-2, ") + &pod("d", "")));
    let names: Vec<&str> = model.nodes().iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["node-1", "node-2"]);
    let addresses_of =
        |index: usize| -> Vec<String> { model.nodes()[index].addresses.iter().map(ToString::to_string).collect() };
    assert_eq!(addresses_of(0), ["192.168.0.11", "fd00:c0a8::11"]);
    assert_eq!(addresses_of(1), ["192.168.0.12", "fd00:c0a8::12"]);
    assert_eq!(addresses(&model, "a"), ["10.244.1.2", "fd00:10:244:1::2"]);
    assert_eq!(addresses(&model, "b"), ["10.244.2.2", "fd00:10:244:2::2"]);
    assert_eq!(addresses(&model, "c"), ["10.244.2.3", "fd00:10:244:2::3"]);
    assert_eq!(addresses(&model, "d"), ["10.244.1.3", "fd00:10:244:1::3"]);
    assert!(model.dual_stack());
}

#[test]
fn nodes_that_pods_name_exist_when_no_node_is_given() {
    let found = model(&(pod("a", "nodeName: kind-worker2, ") + &pod("b", "nodeName: kind-worker, ")));
    let names: Vec<&str> = found.nodes().iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["kind-worker2", "kind-worker"]);
    let found = model(&pod("a", "nodeName: only, "));
    let names: Vec<&str> = found.nodes().iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["only", "node-1"]);
}

#[test]
fn given_addresses_are_kept_and_passed_over() {
    let node = "apiVersion: v1\nkind: Node\nmetadata: {name: n}\nspec: {podCIDR: 10.9.0.0/29, podCIDRs: [10.9.0.0/29]}\n\
                status: {addresses: [{type: InternalIP, address: 172.18.0.2}, {type: Hostname, address: n}]}\n";
    let fixed = |name: &str, ip: &str| format!("{}status: {{podIP: {ip}}}\n", pod(name, ""));
    let found = model(
        &(node.to_owned() + &pod("a", "") + &fixed("b", "10.9.0.2") + &pod("c", "") + &pod("h", "hostNetwork: true, ")),
    );
    assert_eq!(addresses(&found, "a"), ["10.9.0.3"]);
    assert_eq!(addresses(&found, "b"), ["10.9.0.2"]);
    assert_eq!(addresses(&found, "c"), ["10.9.0.4"]);
    assert_eq!(addresses(&found, "h"), ["172.18.0.2"]);
    assert!(found.uses_ipv4() && !found.uses_ipv6());
    let many: String = (0..6).map(|index| pod(&format!("p{index}"), "")).collect();
    let found = errors(&(node.to_owned() + &many));
    assert_eq!(found.len(), 1, "five fit: {found:?}");
    assert!(found[0].contains("no pod addresses in 10.9.0.0/29 of node `n` left"), "{found:?}");
}

#[test]
fn workloads_become_pods() {
    let template =
        "selector: {matchLabels: {app: w}}, template: {metadata: {labels: {app: w}}, spec: {containers: [{name: c}]}}";
    let text = format!(
        "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: d, namespace: x}}\nspec: {{replicas: 3, {template}}}\n\
         ---\napiVersion: apps/v1\nkind: StatefulSet\nmetadata: {{name: s, namespace: x}}\nspec: {{ordinals: {{start: 5}}, {template}}}\n\
         ---\napiVersion: apps/v1\nkind: DaemonSet\nmetadata: {{name: e, namespace: x}}\nspec: {{{template}}}\n\
         ---\napiVersion: batch/v1\nkind: Job\nmetadata: {{name: j, namespace: x}}\nspec: {{parallelism: 2, template: {{spec: {{containers: [{{name: c}}]}}}}}}\n\
         ---\napiVersion: apps/v1\nkind: ReplicaSet\nmetadata: {{name: r, namespace: x}}\nspec: {{replicas: 0, {template}}}\n"
    );
    let model = model(&text);
    let pods: Vec<(String, &str)> =
        model.pods().values().map(|pod| (pod.name.to_string(), pod.node.as_str())).collect();
    let expected = [
        ("x/d-0", "node-1"),
        ("x/d-1", "node-2"),
        ("x/d-2", "node-1"),
        ("x/e-0", "node-1"),
        ("x/e-1", "node-2"),
        ("x/j-0", "node-1"),
        ("x/j-1", "node-2"),
        ("x/s-5", "node-2"),
    ];
    assert_eq!(pods, expected.map(|(pod, node)| (pod.to_owned(), node)));
    let labels = &model.pods()[&Name::new("x", "s-5")].labels;
    assert_eq!(labels["statefulset.kubernetes.io/pod-name"], "s-5");
    assert_eq!(labels["apps.kubernetes.io/pod-index"], "5");
    assert_eq!(model.pods()[&Name::new("x", "j-1")].labels["batch.kubernetes.io/job-name"], "j");

    let wrong = text.replace("{app: w}}, spec", "{app: v}}, spec");
    assert_eq!(errors(&wrong).len(), 4);
    assert!(errors(&wrong)[0].contains("spec.selector: must match the labels of the template"));
}

#[test]
fn a_workload_and_a_pod_must_not_have_the_same_name() {
    let text = "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, namespace: x}\n\
                spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: []}}}\n";
    let found = errors(&(text.to_owned() + &pod("d-0", "")));
    assert_eq!(found, ["test.yaml:7: metadata.name: Pod `x/d-0` is already taken at test.yaml:2"]);
}

#[test]
fn pods_that_have_finished_have_no_address() {
    let text = pod("a", "") + "status: {phase: Succeeded, podIP: 10.244.1.2}\n" + &pod("b", "nodeName: node-1, ");
    let model = model(&text);
    assert_eq!(model.pods().len(), 1);
    assert_eq!(addresses(&model, "b")[0], "10.244.1.2");
}

#[test]
fn what_pods_were_given_stays_with_them() {
    let mut model = model(&(pod("a", "") + &pod("b", "") + &pod("c", "")));
    let before = model.pods().clone();
    let all: Vec<_> = read_objects(&file(&pod("a", ""))).unwrap();
    model.delete(&[all[0].key()]).unwrap();
    assert_eq!(model.pods()[&Name::new("x", "c")], before[&Name::new("x", "c")]);
    assert_eq!(model.pods()[&Name::new("x", "b")], before[&Name::new("x", "b")]);
    model.apply(read_objects(&file(&pod("e", "nodeName: node-1, "))).unwrap()).unwrap();
    assert_eq!(addresses(&model, "e")[0], "10.244.1.2", "a's address is free again");
    let labelled = pod("b", "").replace("namespace: x", "namespace: x, labels: {new: label}");
    model.apply(read_objects(&file(&labelled)).unwrap()).unwrap();
    let b = &model.pods()[&Name::new("x", "b")];
    assert_eq!((&b.addresses, b.labels.len()), (&before[&Name::new("x", "b")].addresses, 1));
}

#[test]
fn a_refused_change_changes_nothing() {
    let mut model = model(&pod("a", ""));
    let before = model.pods().clone();
    let wrong = pod("b", "") + "status: {podIP: 192.168.0.11}\n";
    assert!(model.apply(read_objects(&file(&wrong)).unwrap()).is_err());
    assert_eq!(model.pods(), &before);
}

#[test]
fn every_namespace_has_its_name_as_a_label() {
    let text = pod("a", "") + "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: y, labels: {team: a}}\n";
    let model = model(&text);
    assert_eq!(model.namespaces()["x"]["kubernetes.io/metadata.name"], "x");
    assert_eq!(model.namespaces()["y"]["kubernetes.io/metadata.name"], "y");
    assert_eq!(model.namespaces()["y"]["team"], "a");
}

#[test]
fn services_get_addresses_and_slices() {
    let labelled = |name: &str, port: u16| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: x, labels: {{app: w}}}}\n\
             spec: {{containers: [{{name: c, ports: [{{name: http, containerPort: {port}}}]}}]}}\n"
        )
    };
    let text = labelled("a", 80)
        + &labelled("b", 8080)
        + "---\napiVersion: v1\nkind: Service\nmetadata: {name: w, namespace: x}\n\
           spec: {selector: {app: w}, ipFamilyPolicy: PreferDualStack, ports: [{port: 80, targetPort: http}]}\n\
           ---\napiVersion: v1\nkind: Service\nmetadata: {name: h, namespace: x}\n\
           spec: {clusterIP: None, selector: {app: w}}\n";
    let model = model(&text);
    let service = &model.services()[&Name::new("x", "w")];
    let addresses: Vec<String> = service.cluster_addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.96.0.2", "fd00:10:96::2"]);
    assert!(model.services()[&Name::new("x", "h")].cluster_addresses.is_empty());
    let slices: Vec<_> = model.endpoint_slices().values().filter(|s| s.service == Some(Name::new("x", "w"))).collect();
    let found: Vec<String> = (slices.iter())
        .flat_map(|slice| slice.endpoints.iter().map(|e| format!("{} {}", e.address, slice.ports[0].port)))
        .collect();
    assert_eq!(found, ["10.244.1.2 80", "10.244.2.2 8080", "fd00:10:244:1::2 80", "fd00:10:244:2::2 8080"]);
}

#[test]
fn services_are_checked() {
    let service = |spec: &str| {
        let text = format!("apiVersion: v1\nkind: Service\nmetadata: {{name: s, namespace: x}}\nspec: {spec}\n");
        errors(&text).join("\n")
    };
    assert!(service("{ports: [{port: 80}, {port: 81}]}").contains("spec.ports[0].name: is required"));
    assert!(service("{selector: {a: b}}").contains("spec.ports: is required"));
    assert!(service("{type: Cluster, ports: [{port: 80}]}").contains("must be one of ClusterIP, NodePort"));
    assert!(
        service("{ports: [{name: a, port: 80}, {name: b, port: 80}]}").contains("port `b` (80/TCP) is already taken")
    );
    assert!(service("{ports: [{port: 80, targetPort: \"80\"}]}").contains("must be a number (without quotes)"));
    assert!(service("{type: ExternalName}").contains("spec.externalName: is required"));
    assert_eq!(service("{ports: [{name: a, port: 53}, {name: b, port: 53, protocol: UDP}]}"), "");
}

#[test]
fn an_export_of_a_cluster_has_its_pods_once() {
    let owned = |kind: &str, name: &str| {
        format!("ownerReferences: [{{apiVersion: apps/v1, kind: {kind}, name: {name}, uid: u, controller: true}}]")
    };
    let spec =
        "selector: {matchLabels: {app: w}}, template: {metadata: {labels: {app: w}}, spec: {containers: [{name: c}]}}";
    let text = format!(
        "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: d, namespace: x}}\nspec: {{replicas: 2, {spec}}}\n\
         ---\napiVersion: apps/v1\nkind: ReplicaSet\nmetadata: {{name: d-1, namespace: x, {}}}\nspec: {{replicas: 2, {spec}}}\n\
         ---\napiVersion: v1\nkind: Pod\nmetadata: {{name: d-1-abc, namespace: x, labels: {{app: w}}, {}}}\nspec: {{containers: []}}\n",
        owned("Deployment", "d"),
        owned("ReplicaSet", "d-1"),
    );
    let model = model(&text);
    assert_eq!(model.pods().keys().map(ToString::to_string).collect::<Vec<_>>(), ["x/d-1-abc"]);
}

#[test]
fn deletion_takes_along_what_is_inside_and_what_was_made() {
    let namespace = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n".to_owned();
    let mut found = model(&(namespace.clone() + &pod("a", "") + &pod("b", "").replace("namespace: x", "namespace: y")));
    let key = read_objects(&file(&namespace)).unwrap()[0].key();
    assert_eq!(found.delete(&[key]).unwrap(), 2);
    assert_eq!(found.pods().keys().map(ToString::to_string).collect::<Vec<_>>(), ["y/b"]);

    let owned = |kind: &str, name: &str| format!("namespace: x, ownerReferences: [{{kind: {kind}, name: {name}}}]");
    let spec =
        "spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: []}}}\n";
    let deployment = format!("---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: d, namespace: x}}\n{spec}");
    let text = deployment.clone()
        + &format!(
            "---\napiVersion: apps/v1\nkind: ReplicaSet\nmetadata: {{name: r, {}}}\n{spec}",
            owned("Deployment", "d")
        )
        + &pod("a", "").replace("namespace: x", &owned("ReplicaSet", "r"))
        + &pod("b", "");
    let mut found = model(&text);
    let key = read_objects(&file(&deployment)).unwrap()[0].key();
    assert_eq!(found.delete(&[key]).unwrap(), 3);
    assert_eq!(found.pods().keys().map(ToString::to_string).collect::<Vec<_>>(), ["x/b"]);
}
