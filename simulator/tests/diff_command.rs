//! `weir-sim diff` as people and pipelines call it.
#![expect(clippy::unwrap_used, reason = "a failing helper of a test is a failing test")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn weir_sim(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weir-sim")).current_dir(folder).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A folder with `old/` and `new/`: the bookshop, and the bookshop with `changes` (what, by what) in its policies.
fn versions(name: &str, changes: &[(&str, &str)]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    let shop = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("examples/bookshop");
    for version in ["old", "new"] {
        std::fs::create_dir_all(folder.join(version)).unwrap();
        for entry in std::fs::read_dir(&shop).unwrap() {
            let path = entry.unwrap().path();
            let mut text = std::fs::read_to_string(&path).unwrap();
            if version == "new" && path.ends_with("policies.yaml") {
                for (old, new) in changes {
                    assert!(text.contains(old), "{old}");
                    text = text.replace(old, new);
                }
            }
            std::fs::write(folder.join(version).join(path.file_name().unwrap()), text).unwrap();
        }
    }
    folder
}

/// Readers of books are others now; sessions take plain connections too.
const TWO: &[(&str, &str)] = &[
    (
        "podSelector: {matchExpressions: [{key: reads, operator: Exists}]}",
        "podSelector: {matchLabels: {reads: papers}}",
    ),
    ("      ports: [{port: tls}]", "      ports: [{port: tls}, {port: 6379}]"),
];

fn line_of(folder: &Path, file: &str, what: &str) -> usize {
    let text = std::fs::read_to_string(folder.join(file)).unwrap();
    text[..text.find(what).unwrap()].matches('\n').count() + 1
}

#[test]
fn the_same_version_twice_changes_nothing() {
    let folder = versions("diff-same", &[]);
    let output = weir_sim(&folder, &["diff", "--before", "old", "--after", "new"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "No verdict changes (1100 compared: 11 endpoints, 10 ports).\n");
}

#[test]
fn every_verdict_that_changes_is_named_with_the_rules_of_both_versions() {
    let folder = versions("diff-two", TWO);
    let output = weir_sim(&folder, &["diff", "--before", "old", "--after", "new", "--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let changes: Vec<String> = json["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| {
            let word = |key: &str| change[key].as_str().unwrap().to_owned();
            format!("{} {} {} {}", word("after"), word("from"), word("to"), word("port"))
        })
        .collect();
    assert_eq!(
        changes,
        [
            "deny shop/catalog-0 data/books-0 5432/TCP",
            "deny shop/catalog-0 data/books-1 5432/TCP",
            "deny shop/orders-0 data/books-0 5432/TCP",
            "deny shop/orders-0 data/books-1 5432/TCP",
            "allow shop/orders-0 data/sessions-0 6379/TCP",
        ]
    );
    let rule =
        line_of(&folder, "old/policies.yaml", "    - from:\n        - namespaceSelector: {matchLabels: {team: web}}");
    let closed = &json["groups"][0];
    assert_eq!(
        closed["before"][0]["policies"][0],
        serde_json::json!({"kind": "NetworkPolicy", "policy": "data/books", "rule": "ingress[0]", "at": format!("old/policies.yaml:{rule}")})
    );
    assert_eq!(closed["after"][0]["policies"][0]["policy"], "data/books");
    assert_eq!(closed["after"][0]["verdict"], "deny");
    let people = text(&weir_sim(&folder, &["diff", "--before", "old", "--after", "new"]).stdout);
    for line in [
        "5 of 1100 verdicts change: 4 allow → deny, 1 deny → allow (11 endpoints, 10 ports).",
        "  from  shop/catalog-0, shop/orders-0\n  to    data/books-0, data/books-1\n  on    5432/TCP\n",
        &format!("    was ingress allowed by policy data/books, ingress[0] (old/policies.yaml:{rule})\n"),
        "    is  ingress denied by default, isolated by policy data/books (new/policies.yaml:",
    ] {
        assert!(people.contains(line), "expected `{line}` in:\n{people}");
    }
}

#[test]
fn where_the_senders_own_policy_opens_the_receivers_is_told_too() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("diff-egress");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let pod = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: x, labels: {{app: {name}}}}}\nspec: {{containers: [{{name: c, image: i}}]}}\n---\n"
        )
    };
    let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {namespace: x, name: ";
    let receiver = format!(
        "{}{}{policy}b}}\nspec:\n  podSelector: {{matchLabels: {{app: b}}}}\n  ingress: [{{ports: [{{port: 81}}]}}, {{from: [{{podSelector: {{}}}}]}}]\n",
        pod("a"),
        pod("b")
    );
    let sender =
        format!("---\n{policy}a}}\nspec:\n  podSelector: {{matchLabels: {{app: a}}}}\n  policyTypes: [Egress]\n");
    std::fs::write(folder.join("old.yaml"), format!("{receiver}{sender}")).unwrap();
    std::fs::write(folder.join("new.yaml"), receiver).unwrap();
    let arguments = ["diff", "--before", "old.yaml", "--after", "new.yaml", "--port", "80/TCP"];
    let output = weir_sim(&folder, &arguments);
    let people = text(&output.stdout);
    let expected = "  from  x/a\n  to    x/b\n  on    80/TCP\n    \
                    was egress denied by default, isolated by policy x/a (old.yaml:18)\n    \
                    is  egress allowed: no policy isolates\n    \
                    is  ingress allowed by policy x/b, ingress[1] (new.yaml:16)\n";
    assert_eq!(output.status.code(), Some(1));
    assert!(people.contains(expected), "expected:\n{expected}in:\n{people}");
}

#[test]
fn a_list_makes_changes_expected_and_tells_what_did_not_happen() {
    let folder = versions("diff-allow", TWO);
    let list = "# readers move\ndeny * data/books-* 5432/TCP\nallow shop/orders-* data/sessions-0 6379/TCP\nallow world data/* *\n";
    std::fs::write(folder.join("changes"), list).unwrap();
    let output = weir_sim(&folder, &["diff", "--before", "old", "--after", "new", "--allow", "changes", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stdout));
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["unexpected"], &json["unused"]), (&Value::from(0), &serde_json::json!(["allow world data/* *"])));
    std::fs::write(folder.join("changes"), "deny * data/books-0 5432/TCP\n").unwrap();
    let arguments = ["diff", "--before", "old", "--after", "new", "--allow", "changes", "--junit", "junit.xml"];
    let output = weir_sim(&folder, &arguments);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("allow → deny (expected): 2 verdicts"), "{}", text(&output.stdout));
    let junit = std::fs::read_to_string(folder.join("junit.xml")).unwrap();
    assert!(junit.contains("tests=\"3\" failures=\"2\" errors=\"0\""), "{junit}");
}

#[test]
fn the_comment_is_a_table_with_rules() {
    let folder = versions("diff-markdown", TWO);
    let output = weir_sim(&folder, &["diff", "--before", "old", "--after", "new", "--markdown"]);
    assert_eq!(output.status.code(), Some(1));
    let comment = text(&output.stdout);
    let row = "| allow → **deny** | `shop/catalog-0`, `shop/orders-0` | `data/books-0`, `data/books-1` | `5432/TCP` | ingress allowed by policy data/books,";
    assert!(comment.contains(row), "{comment}");
}

#[test]
fn pods_of_one_version_only_are_listed_apart() {
    let folder = versions("diff-pods", &[]);
    let pod = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{containers: [{{name: c, image: i}}]}}\n"
        )
    };
    std::fs::write(folder.join("old/01.yaml"), pod("leaves")).unwrap();
    std::fs::write(folder.join("new/01.yaml"), pod("comes")).unwrap();
    let output = weir_sim(&folder, &["diff", "--before", "old", "--after", "new", "--json"]);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{json}");
    assert_eq!(json["onlyBefore"], serde_json::json!(["shop/leaves"]));
    assert_eq!(json["onlyAfter"], serde_json::json!(["shop/comes"]));
    assert_eq!(json["endpoints"], 11);
}

#[test]
fn what_both_versions_share_is_given_once() {
    let folder = versions("diff-with", TWO);
    for file in ["00-cluster.yaml", "shop.yaml", "data.yaml", "office.yaml"] {
        std::fs::rename(folder.join("old").join(file), folder.join(file)).unwrap();
        std::fs::remove_file(folder.join("new").join(file)).unwrap();
    }
    let shared = ["00-cluster.yaml", "shop.yaml", "data.yaml", "office.yaml"];
    let arguments: Vec<&str> =
        ["diff", "--before", "old", "--after", "new", "--with"].into_iter().chain(shared).collect();
    let output = weir_sim(&folder, &arguments);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with("5 of 1100 verdicts change"));
}

#[test]
fn wrong_calls_and_lists_are_exit_code_2() {
    let folder = versions("diff-wrong", &[]);
    std::fs::write(folder.join("list"), "deny a b\nclose a b *\ndeny a b 80/IP\n").unwrap();
    std::fs::write(folder.join("broken.yaml"), "kind: [\n").unwrap();
    for (arguments, says) in [
        (&["diff", "--before", "old"][..], "--after"),
        (&["diff", "--before", "old", "--after", "gone"], "gone: No such file"),
        (&["diff", "--before", "-", "--after", "-"], "only once"),
        (&["diff", "--before", "old", "--after", "broken.yaml"], "broken.yaml:"),
        (&["diff", "--before", "old", "--after", "new", "--json", "--markdown"], "cannot be used with"),
        (&["diff", "--before", "old", "--after", "new", "--allow", "nowhere"], "nowhere: "),
        (
            &["diff", "--before", "old", "--after", "new", "--allow", "list"],
            "list:1: expected `allow|deny|redirect|audit FROM TO PORT`",
        ),
        (
            &["diff", "--before", "old", "--after", "new", "--allow", "list"],
            "list:2: `close`: must be allow, deny, redirect or audit",
        ),
        (&["diff", "--before", "old", "--after", "new", "--allow", "list"], "list:3: port `80/IP`: must be"),
    ] {
        let output = weir_sim(&folder, arguments);
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
        assert!(message.contains(says), "{arguments:?}: expected `{says}` in:\n{message}");
    }
}
