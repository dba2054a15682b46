//! Rules about the text of sources.

use super::Findings;
use super::files::File;

/// A file above this is reported, one above [`MOST_LINES`] is wrong. Tests aside.
const MANY_LINES: usize = 400;
const MOST_LINES: usize = 800;

/// Sources that must not read a clock, sleep, or ask the environment: what they do follows from what they are given.
const TIMELESS: [&str; 6] = [
    "datapath/abi/src/",
    "datapath/core/src/",
    "datapath/maps/src/",
    "agent/core/",
    "simulator/vm/src/",
    "conformance/src/",
];

/// Tests that measure time: that is what they are for.
const MEASURES: [&str; 1] = ["agent/daemon/tests/numbers.rs"];

pub fn check(files: &[File], findings: &mut Findings) {
    for file in files {
        no_machine_paths(file, findings);
        if file.is_rust() {
            size(file, findings);
            head(file, findings);
            nothing_ignored(file, findings);
            timeless(file, findings);
        }
    }
    core_is_pure(files, findings);
    object_decides_nothing(files, findings);
}

fn size(file: &File, findings: &mut Findings) {
    let lines = file.text().unwrap_or_default().lines().count();
    if file.is_test() {
        return;
    }
    if lines > MOST_LINES {
        findings.wrong(format!("{}: {lines} lines, {MOST_LINES} at most", file.name));
    } else if lines > MANY_LINES {
        findings.notes.push(format!("{}: {lines} lines", file.name));
    }
}

/// A module says first what it is for.
fn head(file: &File, findings: &mut Findings) {
    let exempt = file.name.contains("/fixtures/") || file.name.ends_with("/tests.rs");
    if !exempt && !file.text().unwrap_or_default().starts_with("//!") {
        findings.wrong(format!("{}: does not start with what it is for (`//!`)", file.name));
    }
}

fn nothing_ignored(file: &File, findings: &mut Findings) {
    for (number, line) in file.code() {
        if line.trim_start().starts_with("#[ignore") {
            findings.wrong(format!("{}:{number}: an ignored test: declare a skip that can be false", file.name));
        }
    }
}

/// Invariant 13, and "time is an argument".
fn timeless(file: &File, findings: &mut Findings) {
    let pure = TIMELESS.iter().any(|folder| file.name.starts_with(folder));
    let test = file.name.split('/').any(|part| part == "tests") && !MEASURES.contains(&file.name.as_str());
    if !pure && !test {
        return;
    }
    for (number, line) in file.code() {
        for word in ["Instant::now", "SystemTime::now", "thread::sleep"] {
            if line.contains(word) {
                findings.wrong(format!("{}:{number}: `{word}`: time is an argument here", file.name));
            }
        }
    }
}

/// Invariant 2: `datapath-core` has no unsafe, static, allocation, clock or helper. (`no_std` and
/// `forbid(unsafe_code)` do most of it; statics and `extern crate` are left.)
fn core_is_pure(files: &[File], findings: &mut Findings) {
    for file in files.iter().filter(|file| file.name.starts_with("datapath/core/src/") && file.is_rust()) {
        for (number, line) in file.code() {
            let words: Vec<&str> = line.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '\'').collect();
            for word in ["unsafe", "static", "extern", "std", "alloc", "asm"] {
                if words.contains(&word) {
                    findings.wrong(format!("{}:{number}: `{word}` in the pure crate", file.name));
                }
            }
        }
        if file.name.ends_with("/lib.rs") && !file.code().any(|(_, line)| line.trim() == "#![no_std]") {
            findings.wrong(format!("{}: no #![no_std]", file.name));
        }
    }
}

/// Invariant 1: the object's crate compares no packet content. What never loads packet bytes cannot compare them: it
/// implements the loads, and leaves calling them, and the headers' layout, to `datapath-core`.
fn object_decides_nothing(files: &[File], findings: &mut Findings) {
    for file in files.iter().filter(|file| file.name.starts_with("datapath/ebpf/src/")) {
        for (number, line) in file.code() {
            for word in [".load(", ".load::", ".store(", "wire::", "parse::", "core::wire", "core::parse"] {
                if line.contains(word) {
                    findings.wrong(format!("{}:{number}: `{word}`: decisions belong to datapath-core", file.name));
                }
            }
        }
    }
}

/// What is committed is true on every machine. (Written in two halves, or this file would find itself.)
fn no_machine_paths(file: &File, findings: &mut Findings) {
    let needles =
        [["/wo", "rk/"], ["/ho", "me/"], ["/ro", "ot/"], ["/far", "m/"], ["/Us", "ers/"], ["/tmp/", "target"]];
    for needle in needles.map(|halves| halves.concat()) {
        if let Some(at) = file.bytes.windows(needle.len()).position(|window| window == needle.as_bytes()) {
            let line = file.bytes[..at].iter().filter(|byte| **byte == b'\n').count() + 1;
            findings.wrong(format!("{}:{line}: a path of one machine ({needle}…)", file.name));
        }
    }
}
