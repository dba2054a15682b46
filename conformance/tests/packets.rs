//! Every packet scenario on every engine; and the scenarios cover what they must.

use std::collections::BTreeSet;
use std::path::Path;

use datapath_abi::{DropReason, Hook};
use simulator::engines::Kind;
use simulator::fuzz;
use simulator::scenario::{self, EngineSet, Report};

/// Engines of this machine. A skip that is not declared fails here.
fn engines() -> Vec<Kind> {
    let (kinds, skips) = conformance::engines();
    let declared = include_str!("../../ci/skips.toml");
    for line in skips {
        println!("{line}");
        assert_eq!(conformance::undeclared(&line, declared), None);
    }
    kinds
}

fn reports() -> Result<Vec<Report>, Box<dyn std::error::Error>> {
    let mut engines = EngineSet::new(&engines());
    let mut reports = Vec::new();
    for file in scenario::files(&conformance::scenarios())? {
        reports.push(scenario::run(&scenario::load(&file)?, &mut engines)?);
    }
    Ok(reports)
}

#[test]
fn every_scenario_holds_on_every_engine_and_they_cover_every_reason_and_hook() {
    let reports = reports().unwrap_or_else(|error| panic!("{error}"));
    let failed: Vec<String> = reports.iter().filter(|report| !report.passed()).map(ToString::to_string).collect();
    assert!(failed.is_empty(), "{} of {} failed\n{}", failed.len(), reports.len(), failed.join("\n"));

    let reasons: BTreeSet<DropReason> = reports.iter().flat_map(|report| report.reasons.iter().copied()).collect();
    let missing: Vec<&str> =
        DropReason::ALL.iter().filter(|reason| !reasons.contains(reason)).map(|reason| reason.name()).collect();
    assert!(missing.is_empty(), "no scenario sees the drop reasons {missing:?}");

    let hooks: BTreeSet<(Hook, bool)> = reports.iter().flat_map(|report| report.hooks.iter().copied()).collect();
    for hook in Hook::ALL {
        for v6 in [false, true] {
            assert!(hooks.contains(&(*hook, v6)), "no scenario for {} (IPv6: {v6})", hook.name());
        }
    }

    let packets: usize = reports.iter().map(|report| report.steps).sum();
    let only: usize = reports.iter().map(|report| report.simulator_only).sum();
    println!("{} scenarios, {packets} packets, {only} of them in the simulator only", reports.len());
    assert!(reports.len() >= 110);
}

#[test]
fn titles_tell_scenarios_apart() {
    let mut seen = BTreeSet::new();
    for file in scenario::files(&conformance::scenarios()).unwrap() {
        let scenario = scenario::load(&file).unwrap_or_else(|error| panic!("{error}"));
        assert!(!scenario.source.is_empty(), "{}: no source", file.display());
        assert!(seen.insert(scenario.title.clone()), "{}: title `{}` twice", file.display(), scenario.title);
    }
}

/// A test that cannot fail is none: each of these changes to a scenario must be noticed.
#[test]
fn a_scenario_with_a_wrong_expectation_fails() {
    let file = conformance::scenarios().join("conntrack/handshake-of-two-local-pods.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let mut engines = EngineSet::new(&[Kind::Native]);
    let mut passes = |text: &str| {
        let scenario = scenario::parse(text, "changed.toml").unwrap_or_else(|error| panic!("{error}"));
        scenario::run(&scenario, &mut engines).unwrap().passed()
    };
    assert!(passes(&text));
    for (from, to) in [
        ("verdict = \"deliver 11\"", "verdict = \"deliver 12\""),
        ("ttl 63", "ttl 64"),
        ("\"egress forwarded\" = 1", "\"egress forwarded\" = 2"),
        ("expires 60s", "expires 61s"),
        ("state reply", "state established"),
        ("non-syn ", ""),
    ] {
        assert!(text.contains(from), "{from}");
        assert!(!passes(&text.replacen(from, to, 1)), "`{to}` for `{from}` goes unnoticed");
    }
}

#[test]
fn engines_agree_on_random_packets() {
    let kinds = engines();
    let seed = 20_240_501;
    println!("seed {seed}");
    let out = std::env::temp_dir().join("weir-conformance-difference.toml");
    let options = fuzz::Options { packets: 12_000, seed, engines: kinds, out };
    let outcome = fuzz::run(&options, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"));
    if let Some(difference) = outcome.difference {
        panic!("after {} packets: {}\n{}", difference.after, difference.what, difference.text);
    }
    assert_eq!(outcome.packets, 12_000);
}

#[test]
fn files_that_are_no_scenarios_are_named() {
    let error = scenario::load(Path::new("no/such/file.toml")).unwrap_err().to_string();
    assert!(error.starts_with("no/such/file.toml: "), "{error}");
}
