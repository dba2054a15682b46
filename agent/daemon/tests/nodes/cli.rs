//! `weir-agent` on the command line: what is right, what is wrong, and the exit codes.

use std::process::{Command, Output};

use crate::support::{Node, run, skipped};

fn agent(arguments: &[&str]) -> (Option<i32>, String, String) {
    said(&Command::new(env!("CARGO_BIN_EXE_weir-agent")).args(arguments).output().unwrap())
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn settings_that_are_wrong_are_2_with_file_line_and_field() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weir.toml");
    let path = file.display().to_string();
    for (settings, expected) in [
        ("node = 'n1'\ntunel-port = 1\n", "line 2, column 1\n"),
        ("routing-mode = 'direct'\n", "unknown variant `direct`, expected `tunnel` or `native`"),
        ("attach = 'xdp'\n", "expected one of `auto`, `tcx`, `clsact`"),
        ("mtu = 60\n", "mtu: must be 0, or 1280 to 65485 bytes"),
        ("mtu = 'large'\n", "invalid type: string \"large\", expected u32"),
        ("state = 'here'\n", "state: must be an absolute path"),
        ("node = \n", "line 1, column 8\n"),
    ] {
        std::fs::write(&file, settings).unwrap();
        for mode in [&["--check"][..], &["--cleanup"], &[]] {
            let (code, _, text) = agent(&[&["--config", &path], mode].concat());
            assert_eq!(code, Some(2), "{settings} {text}");
            assert!(text.contains(&path) && text.contains(expected), "{settings} {text}");
        }
    }
    let absent = folder.path().join("absent").display().to_string();
    let (code, _, text) = agent(&["--check", "--config", &absent]);
    assert!(code == Some(2) && text.contains(&absent) && text.contains("No such file"), "{text}");
}

#[test]
fn calls_that_contradict_themselves_are_2() {
    for wrong in [&["--check", "--cleanup"][..], &["--check", "--print-config"], &["--nonsense"], &["--config"]] {
        assert_eq!(agent(wrong).0, Some(2), "{wrong:?}");
    }
}

#[test]
fn the_settings_that_it_prints_are_good() {
    if skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("weir.toml");
    let (code, text, _) = agent(&["--print-config"]);
    assert_eq!(code, Some(0));
    std::fs::write(&file, &text).unwrap();
    let path = file.display().to_string();
    let (code, text, _) = agent(&["--check", "--config", &path]);
    assert_eq!((code, text.as_str()), (Some(0), "settings and kernel are good; programs are attached by tcx\n"));
    std::fs::write(&file, "attach = 'clsact'\n").unwrap();
    let (code, text, _) = agent(&["--check", "--config", &path]);
    assert_eq!((code, text.as_str()), (Some(0), "settings and kernel are good; programs are attached by clsact\n"));
}

#[test]
fn cleaning_up_where_there_is_nothing_is_no_error() {
    if skipped() {
        return;
    }
    let node = Node::new(&format!("weir-ca-{}", std::process::id()));
    node.namespace.inside(|| run("ip", &["link", "add", "weird", "type", "veth", "peer", "name", "other"]));
    for _ in 0..2 {
        let (code, _, text) = said(&node.command().arg("--cleanup").output().unwrap());
        assert_eq!(code, Some(0), "{text}");
    }
    assert!(node.shows("ip", &["-br", "link"]).contains("weird"));
}
