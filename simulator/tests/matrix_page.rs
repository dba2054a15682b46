//! `weir-sim matrix --html` and `--expect`.
#![expect(clippy::unwrap_used, reason = "a failing helper of a test is a failing test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn weir_sim(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir-sim")).current_dir(folder).args(arguments).output().unwrap()
}

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The data of a page.
fn data(page: &str) -> Value {
    let start = "<script type=\"application/json\" id=\"data\">";
    let from = page.find(start).unwrap() + start.len();
    let to = from + page[from..].find("</script>").unwrap();
    serde_json::from_str(&page[from..to]).unwrap()
}

/// A row's cells: numbers of reasons; `None`: not asked.
fn cells(row: &str) -> Vec<Option<usize>> {
    let mut cells = Vec::new();
    for run in row.split(' ') {
        let (reason, count) = run.split_once('*').unwrap_or((run, "1"));
        let count = usize::from_str_radix(count, 36).unwrap();
        let reason = (reason != ".").then(|| usize::from_str_radix(reason, 36).unwrap());
        cells.extend(std::iter::repeat_n(reason, count));
    }
    cells
}

#[test]
fn the_page_holds_the_same_verdicts_as_json_and_the_rules_that_explain_names() {
    let page = folder("page-bookshop").join("page.html");
    let output = weir_sim(&root(), &["matrix", "examples/bookshop", "--json", "--html", page.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let without: Value =
        serde_json::from_slice(&weir_sim(&root(), &["matrix", "examples/bookshop", "--json"]).stdout).unwrap();
    assert_eq!(json, without, "asking why changes no verdict");
    let data = data(&std::fs::read_to_string(&page).unwrap());
    let names: Vec<&Value> = data["endpoints"].as_array().unwrap().iter().map(|endpoint| &endpoint[1]).collect();
    assert_eq!(names, json["endpoints"].as_array().unwrap().iter().collect::<Vec<_>>());
    let mut denied_by_default = 0;
    for (table, expected) in data["tables"].as_array().unwrap().iter().zip(json["tables"].as_array().unwrap()) {
        assert_eq!(table["port"], expected["port"]);
        let mut allowed = 0;
        for (row, expected) in table["rows"].as_array().unwrap().iter().zip(expected["rows"].as_array().unwrap()) {
            let cells = cells(row.as_str().unwrap());
            let letters: String = cells
                .iter()
                .map(|cell| match cell {
                    None => '.',
                    Some(reason) if data["reasons"][*reason][0] == 1 => '1',
                    Some(_) => '0',
                })
                .collect();
            assert_eq!(letters, expected.as_str().unwrap());
            allowed += letters.matches('1').count();
            for (receiver, reason) in cells.iter().enumerate() {
                let Some(reason) = reason else { continue };
                let Some(line) = data["reasons"][*reason][3].as_u64() else { continue };
                if data["lines"][usize::try_from(line).unwrap()] == serde_json::json!(["ingress denied by default", 1])
                {
                    denied_by_default += 1;
                    let set = usize::try_from(data["endpoints"][receiver][2].as_u64().unwrap()).unwrap();
                    assert!(!data["sets"][set].as_array().unwrap().is_empty(), "somebody isolates {}", names[receiver]);
                }
            }
        }
        assert_eq!(table["allowed"], allowed);
    }
    assert!(denied_by_default > 100, "{denied_by_default}");
    let lines = data["lines"].to_string();
    assert!(
        lines.contains("ingress allowed by policy data/books, ingress[0] (examples/bookshop/policies.yaml:93)"),
        "{lines}"
    );
}

#[test]
fn a_hostile_name_is_only_data() {
    let folder = folder("page-hostile");
    let hostile = "<script>alert(1)<";
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: x}\nspec: {containers: [{name: c, image: i, ports: [{containerPort: 80}]}]}\n\
                ---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, namespace: x}\nspec: {podSelector: {}}\n";
    std::fs::create_dir_all(folder.join(hostile)).unwrap();
    std::fs::write(folder.join(hostile).join("script>'\"&.yaml"), text).unwrap();
    let output = weir_sim(&folder, &["matrix", hostile, "--html", "page.html"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let page = std::fs::read_to_string(folder.join("page.html")).unwrap();
    assert!(!page.contains("<script>alert"));
    assert_eq!(page.matches("</script").count(), 2, "the page's own");
    let policies = data(&page)["policies"].to_string();
    assert!(policies.contains("<script>alert(1)</script>'"), "it is there, as data: {policies}");
}

#[test]
fn an_expected_matrix_that_differs_is_exit_code_1() {
    let folder = folder("matrix-expect");
    let json = weir_sim(&root(), &["matrix", "examples/bookshop", "--json"]).stdout;
    let mut matrix: Value = serde_json::from_slice(&json).unwrap();
    let file = folder.join("matrix.json");
    std::fs::write(&file, &json).unwrap();
    let arguments = ["matrix", "examples/bookshop", "--expect", file.to_str().unwrap()];
    let output = weir_sim(&root(), &arguments);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 0));
    let row = matrix["tables"][0]["rows"][0].as_str().unwrap().to_owned();
    let other: String =
        row.chars().enumerate().map(|(at, c)| if at == 1 { if c == '1' { '0' } else { '1' } } else { c }).collect();
    matrix["tables"][0]["rows"][0] = Value::from(other);
    matrix["endpoints"][10] = Value::from("moon");
    std::fs::write(&file, matrix.to_string()).unwrap();
    let output = weir_sim(&root(), &arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    for line in
        ["endpoint moon: missing", "endpoint world: not expected", "data/books-0 → data/books-1 5432/TCP: expected "]
    {
        assert!(text.contains(line), "{text}");
    }
    let junit = folder.join("junit.xml");
    let output = weir_sim(&root(), &[&arguments[..], &["--junit", junit.to_str().unwrap()]].concat());
    assert_eq!(output.status.code(), Some(1));
    let report = std::fs::read_to_string(&junit).unwrap();
    assert!(report.contains("<testsuite name=\"weir-sim matrix\"") && report.contains("failures=\"2\""), "{report}");
    assert!(
        report
            .contains("<testcase classname=\"matrix\" name=\"5432/TCP\"><failure message=\"1 differ\">data/books-0 → "),
        "{report}"
    );
    assert!(report.contains("name=\"endpoints\"><failure message=\"2 differ\">endpoint moon: missing"), "{report}");
    std::fs::write(&file, &json).unwrap();
    let output = weir_sim(&root(), &[&arguments[..], &["--junit", junit.to_str().unwrap()]].concat());
    assert_eq!(output.status.code(), Some(0));
    assert!(std::fs::read_to_string(&junit).unwrap().contains("failures=\"0\""));
    std::fs::write(&file, "{}").unwrap();
    assert_eq!(weir_sim(&root(), &arguments).status.code(), Some(2));
}
