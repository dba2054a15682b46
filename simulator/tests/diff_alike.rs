//! `weir-sim diff` sends only the probes that the versions may answer differently; it must find what asking all finds.
#![expect(clippy::unwrap_used, reason = "a failing helper of a test is a failing test")]

mod support;

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::{Random, pods, policy};

fn write(file: &Path, documents: &[String]) {
    let mut text = String::new();
    for document in documents {
        let _ = writeln!(text, "{document}---");
    }
    std::fs::write(file, text).unwrap();
}

#[test]
fn sending_only_what_may_differ_finds_what_sending_everything_finds() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("diff-alike");
    std::fs::create_dir_all(&folder).unwrap();
    let mut changed = 0;
    for seed in 1..=60_u64 {
        let mut random = Random(seed);
        let mut before = pods(&mut random);
        let first = before.len();
        before.extend((0..1 + random.below(4)).map(|number| policy(number, &mut random)));
        let mut after = before.clone();
        for _ in 0..1 + random.below(2) {
            match random.below(4) {
                0 => after.push(policy(90, &mut random)),
                1 if after.len() > first => {
                    after.pop();
                }
                2 => after[1] = after[1].replace("app: p", "app: q").replace("app: r", "app: p"),
                _ => {
                    let last = after.len() - 1;
                    after[last] =
                        after[last].replace("80", "81").replace("app: r", "app: q").replace("world", "cluster");
                }
            }
        }
        after.dedup();
        write(&folder.join("before.yaml"), &before);
        write(&folder.join("after.yaml"), &after);
        let run = |more: &[&str]| {
            let arguments = [
                "diff",
                "--before",
                "before.yaml",
                "--after",
                "after.yaml",
                "--port",
                "80/TCP",
                "--port",
                "81/TCP",
                "--json",
                if seed % 2 == 0 { "--host-firewall" } else { "--host-firewall=false" },
            ];
            let output = Command::new(env!("CARGO_BIN_EXE_weir-sim"))
                .current_dir(&folder)
                .args(arguments)
                .args(more)
                .output()
                .unwrap();
            let json: Value = serde_json::from_slice(&output.stdout)
                .unwrap_or_else(|_| panic!("seed {seed}: {}", String::from_utf8_lossy(&output.stderr)));
            json
        };
        let (some, all) = (run(&[]), run(&["--all"]));
        assert_eq!(some, all, "seed {seed}");
        changed += usize::from(!all["changes"].as_array().unwrap().is_empty());
    }
    assert!(changed > 8, "the cases are of use only if verdicts change: {changed} of 60");
}
