//! The example of a policy repository does what its files say: the steps of its workflow and its hook are run as written.
#![expect(clippy::unwrap_used, reason = "a failing helper of a test is a failing test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use agent_core::yaml::{self, Node, Value};

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("examples/policy-repository")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &target) } else { std::fs::copy(&path, &target).map(|_| ()).unwrap() }
    }
}

fn items(node: &Node) -> &[Node] {
    match &node.value {
        Value::List(items) => items,
        Value::Scalar { .. } | Value::Map(_) => &[],
    }
}

fn read(file: &str) -> Node {
    let text = std::fs::read_to_string(example().join(file)).unwrap();
    yaml::parse(file, &text).unwrap().remove(0)
}

/// The command of a step of the workflow.
fn step(name: &str) -> String {
    let workflow = read(".github/workflows/policies.yaml");
    let steps = workflow.get("jobs").unwrap().get("policies").unwrap().get("steps").unwrap().clone();
    let step = items(&steps).iter().find(|step| step.get("name").and_then(Node::text) == Some(name)).unwrap();
    step.get("run").unwrap().text().unwrap().to_owned()
}

/// Runs a step as GitHub does, in a copy of the example that `change` has been made to.
fn run(name: &str, command: &str, change: Option<(&str, &str)>, expected: &str) -> (Output, PathBuf) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    copy(&example(), &folder);
    copy(&example(), &folder.join(".base"));
    if let Some((old, new)) = change {
        let file = folder.join("policies/web.yaml");
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(text.contains(old), "{old}");
        std::fs::write(file, text.replace(old, new)).unwrap();
    }
    if !expected.is_empty() {
        std::fs::write(folder.join("expected-changes.txt"), expected).unwrap();
    }
    let binaries = Path::new(env!("CARGO_BIN_EXE_weir-sim")).parent().unwrap().display().to_string();
    let path = std::env::var("PATH").unwrap();
    let output = Command::new("bash")
        .args(["--noprofile", "--norc", "-eo", "pipefail", "-c", command])
        .current_dir(&folder)
        .env("PATH", format!("{binaries}:{path}"))
        .env("GITHUB_STEP_SUMMARY", folder.join("summary.md"))
        .env("GITHUB_OUTPUT", folder.join("output"))
        .output()
        .unwrap();
    (output, folder)
}

fn file(folder: &Path, name: &str) -> String {
    std::fs::read_to_string(folder.join(name)).unwrap()
}

#[test]
fn the_example_is_clean_and_the_hook_and_the_lint_step_see_a_mistake() {
    let hooks = read(".pre-commit-config.yaml");
    let repository = items(hooks.get("repos").unwrap())[0].clone();
    let hook = items(repository.get("hooks").unwrap())[0].get("entry").unwrap().text().unwrap().to_owned();
    for (name, command) in [("hook", hook), ("lint", step("Lint"))] {
        let (output, _) = run(&format!("repository-{name}"), &command, None, "");
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
        let typo = Some(("{app: front}}}]", "{app: frond}}}]"));
        let (output, _) = run(&format!("repository-{name}-typo"), &command, typo, "");
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("no pod has app in (frond); there is app=front"), "{text}");
    }
}

#[test]
fn the_diff_step_writes_a_comment_and_a_code_and_stops_only_for_wrong_input() {
    let diff = step("Diff");
    let (output, folder) = run("repository-same", &diff, None, "");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(file(&folder, "output"), "code=0\n");
    assert!(file(&folder, "diff.md").contains("No verdict changes"));

    let open = Some((
        "    - from: [{podSelector: {matchLabels: {app: front}}}]\n      ports: [{port: sql}]",
        "    - ports: [{port: sql}]",
    ));
    let (output, folder) = run("repository-open", &diff, open, "");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(file(&folder, "output"), "code=1\n");
    let comment = file(&folder, "diff.md");
    assert!(
        comment.contains("| deny → **allow** | `kube-system/coredns-0`, `world` | `web/store-0` | `5432/TCP` |"),
        "{comment}"
    );
    assert_eq!(file(&folder, "summary.md"), comment);
    assert!(file(&folder, "diff.xml").contains("failures=\"1\""));

    let (_, folder) = run("repository-listed", &diff, open, "allow * web/store-0 5432/TCP\n");
    assert_eq!(file(&folder, "output"), "code=0\n");

    let (output, folder) = run("repository-wrong", &diff, Some(("kind: NetworkPolicy", "kind: NetworkPolice")), "");
    assert_eq!(output.status.code(), Some(1), "the step itself fails");
    assert_eq!(file(&folder, "output"), "code=2\n");
}
