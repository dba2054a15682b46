//! Scenario suites, run on every engine.
//!
//! `scenarios/` holds packet scenarios (one hook, one behaviour), `clusters/` scenarios of whole clusters. The tests of
//! this crate run them; what a test leaves out it declares, and the declaration is checked against `ci/skips.toml`.
#![forbid(unsafe_code)]

pub mod oracle;

use std::path::{Path, PathBuf};

use simulator::engines::Kind;

/// The folder of packet scenarios.
#[must_use]
pub fn scenarios() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")
}

/// Engines that this machine and this process can run, and a line for each that it cannot.
#[must_use]
pub fn engines() -> (Vec<Kind>, Vec<String>) {
    let mut kinds = Vec::new();
    let mut skips = Vec::new();
    for kind in Kind::ALL {
        let skip = match kind {
            Kind::Native | Kind::Rbpf | Kind::Checked => None,
            Kind::RbpfJit if cfg!(all(target_arch = "x86_64", target_os = "linux")) => None,
            Kind::RbpfJit => Some("skip: rbpf-jit: not x86_64 Linux".to_owned()),
            Kind::Kernel => datapath_kernel::skip_line(),
        };
        match skip {
            None => kinds.push(*kind),
            Some(line) => skips.push(line),
        }
    }
    (kinds, skips)
}

/// Why a skip line is not acceptable; `None`: it is declared, with this reason, in `ci/skips.toml`'s text.
#[must_use]
pub fn undeclared(line: &str, declared: &str) -> Option<String> {
    let table: toml::Table = match declared.parse() {
        Ok(table) => table,
        Err(error) => return Some(format!("ci/skips.toml: {error}")),
    };
    let Some((id, reason)) = line.strip_prefix("skip: ").and_then(|rest| rest.split_once(": ")) else {
        return Some(format!("`{line}` is not `skip: ID: reason`"));
    };
    let reasons: Vec<&str> = match table.get(id) {
        Some(toml::Value::String(one)) => vec![one],
        Some(toml::Value::Array(several)) => several.iter().filter_map(toml::Value::as_str).collect(),
        Some(
            toml::Value::Integer(_)
            | toml::Value::Float(_)
            | toml::Value::Boolean(_)
            | toml::Value::Datetime(_)
            | toml::Value::Table(_),
        )
        | None => Vec::new(),
    };
    (!reasons.contains(&reason)).then(|| format!("`{line}` is not declared in ci/skips.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_must_be_declared_with_its_reason() {
        let declared = "a = \"x\"\nb = [\"y\", \"z\"]\n";
        assert_eq!(undeclared("skip: a: x", declared), None);
        assert_eq!(undeclared("skip: b: z", declared), None);
        for line in ["skip: a: y", "skip: c: x", "skip a x", ""] {
            assert!(undeclared(line, declared).is_some(), "{line}");
        }
        assert!(undeclared("skip: a: x", "a =").is_some());
    }
}
