//! The repository's cluster scenarios, on every engine that runs here.
#![expect(clippy::unwrap_used, reason = "a failing helper of a test is a failing test")]

use std::path::{Path, PathBuf};

use simulator::cluster::scenario::{Action, Expect, load, manifest_files, run};
use simulator::cluster::{EngineKind, Options};
use simulator::engines::{self, Kind, Limits};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("conformance/clusters")
}

fn files() -> Vec<PathBuf> {
    let scenario = |path: &PathBuf| std::fs::read_to_string(path).unwrap().lines().any(|line| line == "kind: Scenario");
    manifest_files(&folder(), &["yaml"]).unwrap().into_iter().filter(scenario).collect()
}

fn all_pass(engine: EngineKind) {
    let files = files();
    assert!(files.len() >= 150, "{} scenarios", files.len());
    let mut wrong = Vec::new();
    for file in &files {
        let scenario = load(file).unwrap();
        for seed in [1, 77] {
            let report = run(&scenario, &Options { engine, seed, ..Options::default() }, false);
            if report.failed != 0 || report.error.is_some() {
                wrong.push(format!("{}: {report:?}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn all_pass_on_rbpf() {
    all_pass(EngineKind::Rbpf);
}

#[test]
fn all_pass_on_the_checked_engine() {
    all_pass(EngineKind::Checked);
}

#[test]
fn all_pass_on_the_native_engine() {
    all_pass(EngineKind::Native);
}

#[test]
fn the_kernel_decides_the_same_on_some_of_them() {
    if let Err(error) = engines::open(Kind::Kernel, &datapath_abi::Config::with_defaults(250), Limits::SMALL) {
        let engines::OpenError::Privilege { reason } = error else { panic!("{error}") };
        println!("skip: kernel-bpf: {reason}");
        return;
    }
    for name in ["default-deny-ingress", "both-sides", "established-flow", "underlay-six"] {
        let scenario = load(&folder().join(format!("{name}.yaml"))).unwrap();
        let report = run(&scenario, &Options { engine: EngineKind::Kernel, ..Options::default() }, false);
        assert!(report.failed == 0 && report.error.is_none(), "{name}: {report:?}");
    }
}

#[test]
fn every_scenario_says_where_its_expectation_comes_from_and_expects_something() {
    for file in files() {
        let scenario = load(&file).unwrap();
        assert!(scenario.source.is_some() && !scenario.name.is_empty(), "{}", file.display());
        let probes = scenario.steps.iter().filter_map(|step| match &step.action {
            Action::Probe(probe) => Some(&probe.expect),
            Action::Apply(_) | Action::Delete(_) | Action::Advance(_) => None,
        });
        let (allow, other): (Vec<&Expect>, Vec<&Expect>) = probes.partition(|expect| **expect == Expect::Allow);
        assert!(!allow.is_empty() || !other.is_empty(), "{}", file.display());
    }
}
