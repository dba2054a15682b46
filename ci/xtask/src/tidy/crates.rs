//! Manifests: members, inherited settings and lints, allowed edges.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde::Deserialize;
use toml::{Table, Value};

use super::Findings;
use super::files::File;

/// Crates that may contain `unsafe`: they talk to the kernel, to packet memory, or to machine code.
pub const UNSAFE: [&str; 4] = ["datapath-ebpf", "datapath-kernel", "simulator-vm", "netns-lab"];

/// Built for another machine, hence beside the workspace.
const OUTSIDE_WORKSPACE: &str = "datapath/ebpf";

/// Keys that a member takes from the workspace.
const INHERITED: [&str; 5] = ["version", "edition", "rust-version", "license", "publish"];

/// One crate of `ci/deps.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Allowed {
    level: u8,
    #[serde(default)]
    knows: BTreeSet<String>,
    #[serde(default)]
    tests_know: BTreeSet<String>,
    outside: Option<BTreeSet<String>>,
}

/// One crate as its manifest has it.
struct Crate {
    folder: String,
    name: String,
    manifest: Table,
}

impl Crate {
    fn edges(&self, section: &str) -> BTreeSet<String> {
        self.manifest
            .get(section)
            .and_then(Value::as_table)
            .map(|table| table.keys().cloned().collect())
            .unwrap_or_default()
    }
}

pub fn check(files: &[File], findings: &mut Findings) -> Result<()> {
    let root: Table = find(files, "Cargo.toml")?.parse().context("Cargo.toml")?;
    let crates = read(files)?;
    members(&root, &crates, findings);
    for one in crates.iter().filter(|one| one.folder != OUTSIDE_WORKSPACE) {
        inheritance(one, findings);
    }
    for one in crates.iter().filter(|one| !UNSAFE.contains(&one.name.as_str())) {
        forbids_unsafe(one, files, findings);
    }
    let allowed: BTreeMap<String, Allowed> = toml::from_str(find(files, "ci/deps.toml")?).context("ci/deps.toml")?;
    edges(&crates, &allowed, findings);
    Ok(())
}

fn find<'a>(files: &'a [File], name: &str) -> Result<&'a str> {
    files.iter().find(|file| file.name == name).and_then(File::text).with_context(|| format!("{name} is missing"))
}

fn read(files: &[File]) -> Result<Vec<Crate>> {
    let mut crates = Vec::new();
    for file in files {
        let Some(folder) = file.name.strip_suffix("/Cargo.toml") else { continue };
        let text = file.text().with_context(|| format!("{} is not text", file.name))?;
        let manifest: Table = text.parse().with_context(|| file.name.clone())?;
        let name = manifest
            .get("package")
            .and_then(|package| package.get("name"))
            .and_then(Value::as_str)
            .with_context(|| format!("{}: no package.name", file.name))?
            .to_owned();
        crates.push(Crate { folder: folder.to_owned(), name, manifest });
    }
    Ok(crates)
}

/// Every crate is a member, or the one that cannot be.
fn members(root: &Table, crates: &[Crate], findings: &mut Findings) {
    let listed: BTreeSet<&str> = root
        .get("workspace")
        .and_then(|workspace| workspace.get("members"))
        .and_then(Value::as_array)
        .map(|members| members.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    for one in crates {
        if !listed.contains(one.folder.as_str()) && one.folder != OUTSIDE_WORKSPACE {
            findings.wrong(format!("{}: not a member of the workspace", one.folder));
        }
    }
}

fn inheritance(one: &Crate, findings: &mut Findings) {
    let inherits =
        |value: Option<&Value>| value.and_then(|value| value.get("workspace")) == Some(&Value::Boolean(true));
    if !inherits(one.manifest.get("lints")) {
        findings.wrong(format!("{}/Cargo.toml: does not inherit the workspace's lints", one.folder));
    }
    let package = one.manifest.get("package");
    for key in INHERITED {
        if !inherits(package.and_then(|package| package.get(key))) {
            findings.wrong(format!("{}/Cargo.toml: package.{key} is not the workspace's", one.folder));
        }
    }
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let Some(table) = one.manifest.get(section).and_then(Value::as_table) else { continue };
        for (name, value) in table {
            if !inherits(Some(value)) {
                findings.wrong(format!("{}/Cargo.toml: {section}.{name} is not the workspace's", one.folder));
            }
        }
    }
}

fn forbids_unsafe(one: &Crate, files: &[File], findings: &mut Findings) {
    let source = format!("{}/src/", one.folder);
    for file in files {
        let Some(rest) = file.name.strip_prefix(&source) else { continue };
        let is_root = rest == "lib.rs" || rest == "main.rs" || (rest.starts_with("bin/") && file.is_rust());
        if is_root && !file.code().any(|(_, line)| line.trim() == "#![forbid(unsafe_code)]") {
            findings.wrong(format!("{}: no #![forbid(unsafe_code)]", file.name));
        }
    }
}

fn edges(crates: &[Crate], allowed: &BTreeMap<String, Allowed>, findings: &mut Findings) {
    let ours: BTreeSet<&str> = crates.iter().map(|one| one.name.as_str()).collect();
    for name in allowed.keys().filter(|name| !ours.contains(name.as_str())) {
        findings.wrong(format!("ci/deps.toml: no crate is named `{name}`"));
    }
    for one in crates {
        let name = &one.name;
        let Some(rule) = allowed.get(name) else {
            findings.wrong(format!("ci/deps.toml: says nothing about `{name}`"));
            continue;
        };
        let normal: BTreeSet<String> =
            one.edges("dependencies").union(&one.edges("build-dependencies")).cloned().collect();
        let is_ours = |other: &&String| ours.contains(other.as_str());
        for other in normal.iter().filter(is_ours).filter(|other| !rule.knows.contains(*other)) {
            findings.wrong(format!("`{name}` may not depend on `{other}` (ci/deps.toml)"));
        }
        for other in rule.knows.difference(&normal) {
            findings.notes.push(format!("ci/deps.toml: `{name}` does not depend on `{other}`"));
        }
        for other in one.edges("dev-dependencies").iter().filter(is_ours) {
            if !rule.knows.contains(other) && !rule.tests_know.contains(other) {
                findings.wrong(format!("tests of `{name}` may not depend on `{other}` (ci/deps.toml)"));
            }
        }
        for other in rule.knows.iter().filter_map(|other| Some((other, allowed.get(other)?))) {
            if other.1.level >= rule.level {
                findings.wrong(format!("ci/deps.toml: `{name}` (level {}) may not know `{}`", rule.level, other.0));
            }
        }
        if let Some(outside) = &rule.outside {
            for other in normal.iter().filter(|other| !is_ours(other)).filter(|other| !outside.contains(*other)) {
                findings.wrong(format!("`{name}` may not depend on `{other}`: it is pure (ci/deps.toml)"));
            }
        }
    }
}
