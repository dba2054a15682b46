//! What `kubectl get … -o yaml` and `-o json` print is read as it is, by every command.
#![expect(clippy::unwrap_used, reason = "a failing helper of a test is a failing test")]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

fn weir_sim(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weir-sim"))
        .current_dir(env!("CARGO_TARGET_TMPDIR"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Metadata as an API server completes it.
fn metadata(name: &str, namespace: &str, labels: Value, owner: Option<(&str, &str)>) -> Value {
    let mut metadata = json!({
        "name": name,
        "uid": "4f6f4a2e-6f0f-4a59-9d2f-0d7f5c8f1a11",
        "resourceVersion": "81734",
        "generation": 3,
        "creationTimestamp": "2026-03-01T10:00:00Z",
        "labels": labels,
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{\"a\":1}\n"},
        "managedFields": [{"manager": "kubectl", "operation": "Update", "apiVersion": "v1", "time": "2026-03-01T10:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:labels": {".": {}}}}}],
    });
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    if let Some((kind, name)) = owner {
        metadata["generateName"] = format!("{name}-").into();
        metadata["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "1", "controller": true, "blockOwnerDeletion": true}]);
    }
    metadata
}

fn pod(name: &str, app: &str, node: &str, address: &str, owner: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": metadata(name, "shop", json!({"app": app, "pod-template-hash": "7d9c"}), Some(("ReplicaSet", owner))),
        "spec": {
            "containers": [{"name": "main", "image": "x:1", "imagePullPolicy": "IfNotPresent", "ports": [{"containerPort": 80, "name": "http", "protocol": "TCP"}],
                "resources": {"limits": {"memory": "1Gi"}}, "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "volumeMounts": [{"mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "name": "token", "readOnly": true}]}],
            "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "nodeName": node, "preemptionPolicy": "PreemptLowerPriority", "priority": 0,
            "restartPolicy": "Always", "schedulerName": "default-scheduler", "securityContext": {}, "serviceAccount": "default", "serviceAccountName": "default",
            "terminationGracePeriodSeconds": 30,
            "tolerations": [{"effect": "NoExecute", "key": "node.kubernetes.io/not-ready", "operator": "Exists", "tolerationSeconds": 300}],
            "volumes": [{"name": "token", "projected": {"defaultMode": 420, "sources": []}}],
        },
        "status": {
            "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-03-01T10:00:09Z"}],
            "containerStatuses": [{"name": "main", "ready": true, "restartCount": 0, "image": "x:1", "imageID": "sha", "state": {"running": {"startedAt": "2026-03-01T10:00:08Z"}}}],
            "hostIP": "192.168.9.1", "hostIPs": [{"ip": "192.168.9.1"}], "phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "qosClass": "Burstable", "startTime": "2026-03-01T10:00:00Z",
        },
    })
}

fn node(name: &str, number: u8) -> Value {
    let address = format!("192.168.9.{number}");
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": metadata(name, "", json!({"kubernetes.io/hostname": name}), None),
        "spec": {"podCIDR": format!("10.7.{number}.0/24"), "podCIDRs": [format!("10.7.{number}.0/24")], "providerID": "kind://x"},
        "status": {"addresses": [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}], "allocatable": {"cpu": "8"}, "capacity": {"cpu": "8"},
            "conditions": [], "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}}, "images": [], "nodeInfo": {"architecture": "amd64"}},
    })
}

/// Everything of a namespace and what surrounds it.
fn dump() -> Value {
    let workload = |kind: &str, name: &str, owner: Option<(&str, &str)>| {
        json!({
            "apiVersion": "apps/v1", "kind": kind, "metadata": metadata(name, "shop", json!({"app": name}), owner),
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"creationTimestamp": null, "labels": {"app": name}},
                "spec": {"containers": [{"name": "main", "image": "x:1", "ports": [{"containerPort": 80}]}]}}},
            "status": {"availableReplicas": 1, "observedGeneration": 3, "readyReplicas": 1, "replicas": 1},
        })
    };
    let other = |version: &str, kind: &str, name: &str| json!({"apiVersion": version, "kind": kind, "metadata": metadata(name, "shop", json!({}), None), "spec": {"any": ["thing", {"at": "all"}]}, "status": {}});
    json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": [
        node("node-1", 1), node("node-2", 2),
        {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata("shop", "", json!({"kubernetes.io/metadata.name": "shop"}), None), "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}},
        workload("Deployment", "web", None), workload("ReplicaSet", "web-7d9c", Some(("Deployment", "web"))),
        pod("web-7d9c-x2x4q", "web", "node-1", "10.7.1.5", "web-7d9c"), pod("db-0", "db", "node-2", "10.7.2.5", "db"),
        other("v1", "Event", "web.17"), other("v1", "Endpoints", "web"), other("cert-manager.io/v1", "Certificate", "web"), other("apiregistration.k8s.io/v1", "APIService", "v1.x"),
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata("db", "shop", json!({}), None),
            "spec": {"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "none"}}}]}]}},
    ]})
}

#[test]
fn a_dump_is_one_cluster_and_what_is_passed_over_is_told() {
    let text = serde_json::to_string_pretty(&dump()).unwrap();
    let output = weir_sim(&["matrix", "-", "--json"], &text);
    let message = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(0), "{message}");
    assert_eq!(
        message,
        "note: 4 objects of kinds that have no part in who reaches whom passed over: 1 APIService of apiregistration.k8s.io/v1, \
         1 Certificate of cert-manager.io/v1, 1 Endpoints of v1, 1 Event of v1\n"
    );
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    // The pods that are there stand for their workload; the policy closes one of them.
    assert_eq!(json["endpoints"], json!(["shop/db-0", "shop/web-7d9c-x2x4q", "world"]));
    assert_eq!(json["tables"], json!([{"port": "80/TCP", "rows": [".11", "0.1", "01."]}]));
}

#[test]
fn every_command_reads_the_same_dump_from_standard_input() {
    let text = dump().to_string();
    let arguments = ["explain", "-", "--from", "shop/web-7d9c-x2x4q", "--to", "shop/db-0", "--port", "80/TCP"];
    let output = weir_sim(&arguments, &text);
    assert!(String::from_utf8(output.stdout).unwrap().contains("isolated by shop/db (stdin:1)"));
    let output = weir_sim(&["lint", "-", "--json"], &text);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let ids: Vec<&str> =
        json["findings"].as_array().unwrap().iter().map(|finding| finding["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["kinds-passed-over", "peer-selects-nothing"]);
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dump-before.json");
    std::fs::write(&file, &text).unwrap();
    let output = weir_sim(&["diff", "--before", "dump-before.json", "--after", "-"], &text);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_policy_of_an_unknown_kind_in_a_dump_is_an_error() {
    let mut all = dump();
    all["items"].as_array_mut().unwrap().push(json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "GlobalNetworkPolicy", "metadata": metadata("deny", "", json!({}), None), "spec": {},
    }));
    let output = weir_sim(&["matrix", "-"], &serde_json::to_string_pretty(&all).unwrap());
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        message.contains("items[12].kind: unknown kind `GlobalNetworkPolicy` of `crd.projectcalico.org/v1`"),
        "{message}"
    );
}

/// A scenario that names `manifests`, with a probe that passes and one that does not.
fn scenario(manifests: &str) -> String {
    format!(
        "apiVersion: weir.dev/v1alpha1\nkind: Scenario\nmetadata: {{name: dump}}\nspec:\n  manifests: [{manifests}]\n  steps:\n    \
         - probe: {{from: shop/db-0, to: shop/web-7d9c-x2x4q, port: http, expect: allow}}\n    \
         - probe: {{from: shop/web-7d9c-x2x4q, to: shop/db-0, port: 80, expect: {{drop: PolicyNoMatch, at: ingress}}}}\n"
    )
}

#[test]
fn scenarios_read_dumps_as_the_other_commands_do() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dump-run");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(folder.join("objects/more")).unwrap();
    let all = dump();
    let items = all["items"].as_array().unwrap();
    let write = |name: &str, text: String| std::fs::write(folder.join(name), text).unwrap();
    write("list.json", all.to_string());
    // The same in a folder: a List inside a multi-document file, and files of single objects.
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items[..5]});
    write("objects/a.yaml", format!("{list}\n---\n{}\n", items[5]));
    let rest: Vec<String> = items[6..].iter().map(Value::to_string).collect();
    write("objects/more/b.yml", rest.join("\n---\n"));
    write("list.yaml", scenario("list.json"));
    write("folder.yaml", scenario("objects/"));
    write("bare.yaml", scenario(""));
    let path = |name: &str| folder.join(name).display().to_string();
    let note = "4 objects of kinds that have no part in who reaches whom passed over: 1 APIService";
    for (arguments, stdin) in [
        (vec!["run".to_owned(), path("list.yaml")], String::new()),
        (vec!["run".to_owned(), path("folder.yaml")], String::new()),
        (vec!["run".to_owned(), path("bare.yaml"), "--with".to_owned(), path("objects")], String::new()),
        (vec!["run".to_owned(), path("bare.yaml"), "--with".to_owned(), "-".to_owned()], all.to_string()),
        (vec!["run".to_owned(), "-".to_owned(), "--with".to_owned(), path("list.json")], scenario("")),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let output = weir_sim(&arguments, &stdin);
        let (out, message) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {out}{message}");
        assert!(out.contains("1 scenarios, 2 probes: 0 failed, 0 not usable"), "{out}");
        assert!(message.contains(note), "{arguments:?}: {message}");
    }
    let twice = weir_sim(&["run", "-", "--with", "-"], "");
    assert_eq!(twice.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&twice.stderr).contains("standard input (`-`) can be read only once"));
    // What a dump must not have is refused here as well, with its item.
    let mut wrong = all.clone();
    wrong["items"][5]["spec"]["nodeNam"] = "x".into();
    write("list.json", serde_json::to_string_pretty(&wrong).unwrap());
    let output = weir_sim(&["run", &path("list.yaml")], "");
    let out = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(2), "{out}");
    assert!(out.contains("items[5].spec.nodeNam: unknown field, did you mean `nodeName`?"), "{out}");
}
