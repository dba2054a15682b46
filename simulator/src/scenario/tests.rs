use super::*;
use crate::engines::Kind;

const HEAD: &str = r#"
title = "A pod reaches a pod of its node"
source = "test"
ipcache."10.0.0.7" = "id 1000 endpoint 7 ifindex 10 pod"
ipcache."10.0.0.8" = "id 2000 endpoint 8 ifindex 11 pod"
policy."7 egress any any" = "allow"
policy."8 ingress 1000 tcp 80" = "allow rule 3"

[[step]]
hook = "from_container"
send = "ipv4 10.0.0.7 > 10.0.0.8 / tcp 40000 > 80 syn"
"#;

fn report(tail: &str) -> Report {
    let scenario = parse(&format!("{HEAD}{tail}"), "test.toml").unwrap_or_else(|error| panic!("{error}"));
    run(&scenario, &mut EngineSet::new(Kind::UNPRIVILEGED)).unwrap()
}

#[test]
fn a_right_scenario_passes_on_every_engine() {
    let report = report(
        r#"verdict = "deliver 11"
packet = "ipv4 10.0.0.7 > 10.0.0.8 ttl 63 / tcp 40000 > 80 syn"
counters = { "egress forwarded" = 1, "ingress forwarded" = 1 }
events = ["policy allow match all endpoint 7", "policy allow match l3-l4 rule 3 endpoint 8", "trace to-endpoint"]
ct = ["10.0.0.7:40000 > 10.0.0.8:80 tcp egress ingress rule 3 expires 60s client-tcp syn"]
"#,
    );
    assert!(report.passed(), "{report}");
    assert_eq!(report.engines.len(), 4);
}

#[test]
fn every_wrong_expectation_is_found_and_explained() {
    let ct = "ct = [\"10.0.0.7:40000 > 10.0.0.8:80 tcp egress ingress\"]\n";
    for (tail, expected) in [
        (format!("verdict = \"pass\"\n{ct}"), "expected  pass\n      got       deliver 11"),
        (
            format!("verdict = \"deliver 11\"\npacket = \"ipv4 10.0.0.7 > 10.0.0.8 / tcp 40000 > 80 syn\"\n{ct}"),
            "ttl 63",
        ),
        (format!("verdict = \"deliver 11\"\ncounters = {{ \"egress forwarded\" = 1 }}\n{ct}"), "ingress forwarded = 1"),
        (format!("verdict = \"deliver 11\"\nevents = []\n{ct}"), "trace to-endpoint"),
        ("verdict = \"deliver 11\"\n".to_owned(), "ct4 changed and is not listed: 10.0.0.7:40000"),
        (
            "verdict = \"deliver 11\"\nct = [\"10.0.0.7:40000 > 10.0.0.8:80 tcp egress\"]\n".to_owned(),
            "ct4 is not as listed",
        ),
    ] {
        let report = report(&tail);
        let text = report.to_string();
        assert_eq!(report.failures.len(), 1, "{text}");
        assert_eq!(report.failures[0].engines.len(), 4, "{text}");
        assert!(text.contains(expected), "{expected}: {text}");
        assert!(text.contains("ipcache4 10.0.0.8: id 2000"), "{text}");
        assert!(text.contains("run test.toml --engine all"), "{text}");
    }
}

#[test]
fn errors_name_file_and_line() {
    for (text, expected) in [
        ("title = 1", "test.toml:1: "),
        (&format!("{HEAD}verdit = \"pass\""), "test.toml:12: unknown field `verdit`"),
        (&format!("{HEAD}verdict = \"pas\""), "test.toml:12: `pas`: `pas` is not known here; known: pass, drop REASON"),
        (&HEAD.replace("endpoint 8", "endpont 8"), "test.toml:5: `id 2000 endpont 8 ifindex 11 pod`: `endpont`"),
        (&HEAD.replace("tcp 80\"", "tcp 80-x\""), "test.toml:7: "),
        (&HEAD.replace("40000 > 80 syn", "40000 > 80 sin"), "test.toml:11: packet layer"),
        (&HEAD.replace("from_container", "from_cluster"), "test.toml:10: `from_cluster` is not a hook"),
        (HEAD, "test.toml:9: the step has no `verdict`"),
    ] {
        let error = parse(text, "test.toml").unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}
