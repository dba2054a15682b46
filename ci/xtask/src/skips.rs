//! Compares what tests skipped with what `ci/skips.toml` allows.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use toml::{Table, Value};

/// Reads the logs of a run and fails on an undeclared skip. Prints each kind of skip once, with its number.
pub fn run(root: &Path, logs: &[PathBuf]) -> Result<()> {
    let declared = fs::read_to_string(root.join("ci/skips.toml")).context("reading ci/skips.toml")?;
    let mut text = String::new();
    for log in logs {
        let bytes = fs::read(log).with_context(|| format!("reading {}", log.display()))?;
        text.push_str(&String::from_utf8_lossy(&bytes));
    }
    let seen = collect(&text);
    let undeclared = compare(&declared.parse().context("ci/skips.toml")?, &seen);
    for (skip, count) in &seen {
        let mark = if undeclared.contains(skip) { "UNDECLARED" } else { "declared" };
        println!("skip: {skip} ({count} times, {mark})");
    }
    ensure!(undeclared.is_empty(), "{} undeclared skips (ci/skips.toml)", undeclared.len());
    Ok(())
}

/// `ID: reason` of every skip line, with its number.
fn collect(log: &str) -> BTreeMap<String, usize> {
    let mut seen = BTreeMap::new();
    // With threads and without capture a line may stand behind a test's name: `test x ... skip: …`.
    for skip in log.lines().filter_map(|line| line.split_once("skip: ")).map(|(_, skip)| skip) {
        if skip.contains(": ") {
            *seen.entry(skip.trim().to_owned()).or_insert(0) += 1;
        }
    }
    seen
}

fn compare(declared: &Table, seen: &BTreeMap<String, usize>) -> Vec<String> {
    let allows = |skip: &str| {
        let Some((id, reason)) = skip.split_once(": ") else { return false };
        match declared.get(id) {
            Some(Value::String(one)) => one == reason,
            Some(Value::Array(many)) => many.iter().any(|one| one.as_str() == Some(reason)),
            _ => false,
        }
    };
    seen.keys().filter(|skip| !allows(skip)).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn undeclared(log: &str) -> Vec<String> {
        let declared = "kernel-bpf = \"not root\"\nlab = [\"no vxlan\", \"not root\"]".parse().unwrap();
        compare(&declared, &collect(log))
    }

    #[test]
    fn a_declared_skip_passes() {
        assert_eq!(
            undeclared("test a ... ok\nskip: kernel-bpf: not root\nskip: lab: no vxlan\n"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_skip_for_another_reason_is_undeclared() {
        assert_eq!(undeclared("skip: kernel-bpf: no CAP_BPF"), ["kernel-bpf: no CAP_BPF"]);
    }

    #[test]
    fn a_skip_behind_a_test_name_counts() {
        assert_eq!(undeclared("test a::b ... skip: other: bored"), ["other: bored"]);
    }
}
