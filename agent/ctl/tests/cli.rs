//! `weir` against an agent that gives one answer: output and exit codes.
#![expect(clippy::unwrap_used, reason = "test code: helpers outside #[test] functions")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output};

/// Runs `weir` against an agent that answers with these lines. Returns what it was asked, and what came out.
fn weir(arguments: &[&str], answer: &str) -> (String, Output) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::scope(|scope| {
        let agent = scope.spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = String::new();
            BufReader::new(&stream).read_line(&mut asked).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            asked
        });
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        let output = command.arg("--socket").arg(&socket).args(arguments).output().unwrap();
        (agent.join().unwrap(), output)
    })
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn a_table_has_titles_and_columns() {
    let answer = r#"{"ok":[{"id":1,"labels":["reserved:host"]},{"id":256,"labels":["k8s:app=a","k8s:tier=b"]}]}"#;
    let (asked, output) = weir(&["identity", "list"], &format!("{answer}\n"));
    assert_eq!(asked, "{\"request\":\"identity-list\"}\n");
    assert_eq!(text(&output.stdout), "ID   LABELS\n1    reserved:host\n256  k8s:app=a k8s:tier=b\n");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn json_is_what_the_agent_says() {
    let (_, output) = weir(&["--json", "identity", "list"], "{\"ok\":[{\"id\":1,\"labels\":[\"reserved:host\"]}]}\n");
    assert_eq!(text(&output.stdout), "[{\"id\":1,\"labels\":[\"reserved:host\"]}]\n");
}

#[test]
fn a_wrong_call_is_2_and_an_agent_that_fails_is_1() {
    for (input, code) in [(true, 2), (false, 1)] {
        let answer = format!("{{\"error\":{{\"input\":{input},\"message\":\"no endpoint `x/a`\"}}}}\n");
        let (asked, output) = weir(&["endpoint", "get", "x/a"], &answer);
        assert_eq!(asked, "{\"request\":\"endpoint-get\",\"endpoint\":\"x/a\"}\n");
        assert_eq!(output.status.code(), Some(code));
        assert_eq!(text(&output.stderr), "weir: no endpoint `x/a`\n");
    }
}

#[test]
fn an_agent_that_is_not_healthy_is_1() {
    let status = r#"{"ok":{"healthy":false,"version":"0","node":"n1","source":{"directory":"/d","files":1,"objects":2,
        "error":"a.yaml:3: kind: is required"},"reconcile_error":null,"last_pass":null,"endpoints":[2,1],
        "routing":"native","mtu":1500,"problems":["route to 10.244.2.0/24: 192.0.2.2 is on no network of this node"],
        "waiting":["endpoint 2: its device is gone"],"attach":"tcx","attached":[],"bpffs":"/b","events_lost":0,"flows":[0,0]}}"#;
    let (_, output) = weir(&["status"], &(status.replace('\n', "") + "\n"));
    assert_eq!(output.status.code(), Some(1));
    let shown = text(&output.stdout);
    assert!(shown.starts_with("weir-agent 0 on n1: NOT HEALTHY\n"), "{shown}");
    assert!(shown.contains("a.yaml:3: kind: is required") && shown.contains("its device is gone"), "{shown}");
    assert!(shown.contains("native, MTU 1500\n           route to 10.244.2.0/24: "), "{shown}");
}

#[test]
fn no_agent_is_1() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_weir")).args(["--socket", "/nonexistent", "status"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).starts_with("weir: no agent: /nonexistent: "), "{}", text(&output.stderr));
}

#[test]
fn an_agent_that_is_down_is_said_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let weir = || Command::new(env!("CARGO_BIN_EXE_weir")).arg("--socket").arg(&socket).arg("status").output().unwrap();
    let never = weir();
    assert!(text(&never.stderr).contains("is weir-agent running on this node"), "{}", text(&never.stderr));
    drop(UnixListener::bind(&socket).unwrap());
    let killed = weir();
    assert_eq!(killed.status.code(), Some(1));
    assert!(text(&killed.stderr).contains("start it again"), "{}", text(&killed.stderr));
}

#[test]
fn a_monitor_asks_for_what_it_was_told_and_shows_lines_as_they_come() {
    let call = "monitor --type drop,verdict --pod shop/web --reason PolicyNoMatch --protocol tcp --port 80,443 \
                --direction ingress";
    let (asked, output) = weir(&call.split_whitespace().collect::<Vec<_>>(), "{\"ok\":null}\n{\"lost\":3}\n");
    let expected = r#"{"request":"monitor","kinds":["drop","verdict"],"pod":"shop/web","reasons":["PolicyNoMatch"],"#;
    let expected = expected.to_owned() + r#""protocols":["tcp"],"ports":[80,443],"direction":"ingress"}"#;
    assert_eq!(asked.trim_end(), expected);
    assert_eq!(text(&output.stdout), "(3 events were left out: this terminal is too slow)\n");
    // The agent has hung up.
    assert_eq!(output.status.code(), Some(1));
    let (asked, _) = weir(&["monitor"], "{\"ok\":null}\n");
    assert_eq!(asked.trim_end(), r#"{"request":"monitor"}"#);
}

#[test]
fn a_call_that_is_wrong_is_2_without_an_agent() {
    for wrong in [&["monitor", "--port", "70000"][..], &["monitor", "--direction", "up"], &["endpoint"], &["nonsense"]]
    {
        let output = Command::new(env!("CARGO_BIN_EXE_weir")).args(wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn shells_complete_it() {
    for shell in ["bash", "zsh", "fish"] {
        let output = Command::new(env!("CARGO_BIN_EXE_weir")).args(["completions", shell]).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert!(text(&output.stdout).contains("ipcache"), "{shell}");
    }
}
