//! The command itself, as root; otherwise the skip line. All labs in full are `ci/run.sh labs`.
#![expect(clippy::unwrap_used, reason = "test code: a failing helper is a failing test")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use datapath_kernel::skip_line;

const LAB: &str = "conformance";
const SMALL: &str = "two-nodes";

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netns-lab"));
    command.args(arguments);
    command
}

/// Exit code and what was printed.
fn output(arguments: &[&str]) -> (Option<i32>, String) {
    let output = command(arguments).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// As root nothing; otherwise the line that says why the test did nothing.
fn skipped() -> bool {
    skip_line().inspect(|line| println!("{line}")).is_some()
}

/// Everything on this machine whose name has this in it: namespaces, pins, folders, agents.
fn left_of(run: &str) -> BTreeSet<String> {
    let mut left = BTreeSet::new();
    for folder in ["/run/netns", "/sys/fs/bpf", "/run/weir-lab"] {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let name = entry.unwrap().file_name().to_string_lossy().into_owned();
            if name == run || name.starts_with(&format!("weir-lab-{run}-")) {
                left.insert(format!("{folder}/{name}"));
            }
        }
    }
    for entry in fs::read_dir("/proc").unwrap() {
        let line = fs::read(entry.unwrap().path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.starts_with("weir-agent ") && line.contains(&format!("/run/weir-lab/{run}/")) {
            left.insert(line);
        }
    }
    left
}

/// A run of many scenarios that has ended the first of them.
fn started() -> (Child, String) {
    let mut child = command(&["run", SMALL]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut first = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut first).unwrap();
    assert!(first.starts_with("ok"), "{first}");
    // Kept open: nobody is to notice that it is not read.
    child.stdout = Some(stdout.into_inner());
    let run = format!("{}-0", child.id());
    assert!(left_of(&run).len() > 8, "{:?}", left_of(&run));
    (child, run)
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
}

#[test]
fn the_kernel_answers_as_the_simulator() {
    if skipped() {
        return;
    }
    let (code, text) = output(&["--json", "run", LAB, "--only", "default-deny"]);
    assert_eq!(code, Some(0), "{text}");
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [lab, scenarios @ ..] = lines.as_slice() else { panic!("{text}") };
    assert!(lab["scenarios"] == 2 && lab["differences"] == 0 && lab["not_run"] == 0, "{text}");
    assert!(lab["agent_bytes"].as_u64().unwrap() > 1 << 20 && lab["up_millis"].as_u64().unwrap() > 0, "{text}");
    assert_eq!(scenarios.len(), 2, "{text}");
    assert!(scenarios.iter().all(|line| line["probes"].as_u64().unwrap() > 5), "{text}");
}

#[test]
fn an_expectation_that_does_not_hold_is_a_difference() {
    if skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
    let head = "apiVersion: weir.dev/v1alpha1\n";
    write(
        "wrong.yaml",
        &format!(
            "{head}kind: Scenario\nmetadata: {{name: wrong}}\nspec:\n  steps:\n    \
             - probe: {{from: a/a, to: a/b, port: 80, expect: deny}}\n---\n\
             {{apiVersion: v1, kind: Pod, metadata: {{name: a, namespace: a}}, spec: {{containers: [{{name: c}}]}}}}\n---\n\
             {{apiVersion: v1, kind: Pod, metadata: {{name: b, namespace: a}}, spec: {{containers: [{{name: c}}]}}}}\n"
        ),
    );
    write(
        "lab.yaml",
        &format!("{head}kind: Lab\nmetadata: {{name: l}}\nspec: {{about: x, scenarios: [wrong.yaml]}}\n"),
    );
    let (code, text) = output(&["run", folder.path().join("lab.yaml").to_str().unwrap()]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("a/a → a/b 80/TCP | simulator: allow | kernel: allow | expected: deny"), "{text}");
    write("lab.yaml", &format!("{head}kind: Lab\nmetadata: {{name: l}}\nspec: {{about: x, mtuu: 3}}\n"));
    let (code, text) = output(&["run", folder.path().join("lab.yaml").to_str().unwrap()]);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("lab.yaml:4: spec.mtuu: unknown field"), "{text}");
}

#[test]
fn whatever_ends_a_lab_nothing_is_left_of_it() {
    if skipped() {
        return;
    }
    for (name, code) in [("-INT", 130), ("-TERM", 143)] {
        let (mut child, run) = started();
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(code));
        assert_eq!(left_of(&run), BTreeSet::new());
    }
    // A kill cannot be noticed: the next start clears away, at whatever moment it came.
    let mut runs = Vec::new();
    for things in [1, 5, 9, 12] {
        let mut child = command(&["run", SMALL]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let run = format!("{}-0", child.id());
        let made = format!("/run/weir-lab/{run}/made");
        while fs::read_to_string(&made).unwrap_or_default().lines().count() < things {
            assert!(child.try_wait().unwrap().is_none(), "it ended before it made {things} things");
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        runs.push(run);
    }
    let (mut child, run) = started();
    child.kill().unwrap();
    child.wait().unwrap();
    runs.push(run);
    let (code, text) = output(&["run", "one-node"]);
    assert_eq!(code, Some(0), "{text}");
    for run in runs {
        assert_eq!(left_of(&run), BTreeSet::new());
    }
}

#[test]
fn a_lab_that_is_left_standing_works_until_it_is_taken_down() {
    if skipped() {
        return;
    }
    let name = format!("t{}", std::process::id());
    let (code, text) = output(&["up", SMALL, "--name", &name]);
    assert_eq!(code, Some(0), "{text}");
    let left = left_of(&name);
    assert_eq!(left.iter().filter(|line| line.starts_with("weir-agent")).count(), 2, "{left:?}");
    // Others do not take it for something that crashed.
    let (code, text) = output(&["run", "one-node"]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(left_of(&name), left);
    let (code, text) = output(&["up", SMALL, "--name", &name]);
    assert!(code == Some(2) && text.contains("stands already"), "{text}");
    let socket = format!("/run/weir-lab/{name}/left/agent.sock");
    assert!(Path::new(&socket).exists());
    let (code, text) = output(&["down", &name]);
    assert_eq!((code, text.trim()), (Some(0), format!("{name} is down").as_str()));
    assert_eq!(left_of(&name), BTreeSet::new());
    assert_eq!(output(&["down", &name]).0, Some(2));
}
