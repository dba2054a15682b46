//! `netns-lab kernel`: what this kernel has of what weir can use, tried and not asked for, and what its verifier says about
//! every program of the object. Nothing outlives the call: programs are attached to, and devices made in, a network
//! namespace that goes with it.
//!
//! What is missing is one of two things: needed, and then an agent does not start and says so in one line; or something
//! that has a fallback, which is named.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use datapath_abi::{Config, config};
use datapath_bytecode::OBJECT;
use datapath_kernel::{KernelError, LoadOptions, Loaded, TestNet, probe_clsact, probe_tcx};
use serde::{Deserialize, Serialize};
use zerocopy::IntoBytes as _;

/// One thing that a kernel may lack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// What it is.
    pub name: &'static str,
    /// Why it is not there; none if it is.
    pub missing: Option<String>,
    /// What weir does without it.
    pub without: &'static str,
    /// Whether weir runs without it.
    pub needed: bool,
}

/// What the verifier says about a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The program.
    pub name: String,
    /// Instructions that it followed over all branches.
    pub instructions: u32,
    /// Bytes of stack of the program and its subprograms.
    pub stack: u32,
    /// The end of its log, if it refuses the program.
    pub refused: Option<String>,
}

/// What was found.
#[derive(Clone, Debug, Serialize)]
pub struct Kernel {
    /// `uname -r`
    pub release: String,
    /// In a fixed order.
    pub features: Vec<Feature>,
    /// By name.
    pub programs: Vec<Verified>,
}

/// What a kernel may lack, and what its verifier may follow: a section of `ci/kernels/limits.toml`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Names of features: these are missing, and no others.
    pub lacks: BTreeSet<String>,
    /// Instructions that the verifier may follow, by program.
    pub programs: BTreeMap<String, u32>,
}

impl Limits {
    /// The section of a kernel: the first two numbers of its release.
    ///
    /// # Errors
    /// No such file or section.
    pub fn read(file: &Path, release: &str) -> Result<Self> {
        let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        let mut all: BTreeMap<String, Self> = toml::from_str(&text).with_context(|| file.display().to_string())?;
        let name = release.split('.').take(2).collect::<Vec<_>>().join(".");
        all.remove(&name).with_context(|| format!("{} has no section \"{name}\"", file.display()))
    }
}

/// A device or queueing discipline, by the command that makes it.
struct Made {
    name: &'static str,
    command: &'static [&'static str],
    without: &'static str,
    needed: bool,
}

const MADE: [Made; 5] = [
    Made {
        name: "veth",
        command: &["ip", "link", "add", "one", "type", "veth", "peer", "name", "two"],
        without: "no pods, and no agent",
        needed: true,
    },
    Made {
        name: "vxlan device with metadata",
        command: &["ip", "link", "add", "tunnel", "type", "vxlan", "external", "dstport", "4789"],
        without: "no VXLAN: Geneve, or native routing",
        needed: false,
    },
    Made {
        name: "geneve device with metadata",
        command: &["ip", "link", "add", "geneve", "type", "geneve", "external"],
        without: "no Geneve: VXLAN, or native routing",
        needed: false,
    },
    Made {
        name: "dummy device",
        command: &["ip", "link", "add", "dummy0", "type", "dummy"],
        without: "tests take bridges",
        needed: false,
    },
    Made {
        name: "netem",
        command: &["tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms"],
        without: "labs without loss and delay",
        needed: false,
    },
];

/// Looks; at these programs, or at all if none is named.
///
/// # Errors
/// Without root; when no network namespace or map can be made.
pub fn look(only: &[String]) -> Result<Kernel> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut features = vec![
        feature("attach by TCX", probe_tcx(), "clsact", false),
        feature("attach by clsact", probe_clsact(), "TCX", false),
    ];
    let net = TestNet::new()?;
    {
        let _inside = net.enter()?;
        for made in &MADE {
            let Made { name, without, needed, .. } = *made;
            features.push(Feature { name, missing: make(made.command)?, without, needed });
        }
    }
    Ok(Kernel { release, features, programs: verify(only)? })
}

fn feature(name: &'static str, found: Result<(), KernelError>, without: &'static str, needed: bool) -> Feature {
    Feature { name, missing: found.err().map(|error| error.to_string()), without, needed }
}

/// Why it cannot be made, if it cannot.
fn make(command: &[&str]) -> Result<Option<String>> {
    let (program, words) = command.split_first().context("no command")?;
    let output = Command::new(program).args(words).output().with_context(|| format!("starting {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr).lines().collect::<Vec<_>>().join("; ");
    Ok((!output.status.success()).then_some(said))
}

fn verify(only: &[String]) -> Result<Vec<Verified>> {
    let mut settings = Config::with_defaults(1000);
    // What settings switch off the verifier does not follow.
    settings.flags |= config::DUAL_STACK | config::HOST_POLICY | config::GENEVE;
    let globals: [(&str, &[u8]); 1] = [(config::SYMBOL, settings.as_bytes())];
    let only: Vec<&str> = only.iter().map(String::as_str).collect();
    let only = (!only.is_empty()).then_some(only.as_slice());
    let options = LoadOptions { max_entries: Some(1024), globals: &globals, only, ..LoadOptions::default() };
    let judged = Loaded::verify(OBJECT, &options).context("loading the object")?;
    let programs = judged.into_iter().map(|(name, said)| match said {
        Ok(stats) => {
            let stack = stats.stack_depth.iter().sum();
            Verified { name, instructions: stats.processed, stack, refused: None }
        }
        Err(error) => Verified { name, instructions: 0, stack: 0, refused: Some(error.to_string()) },
    });
    Ok(programs.collect())
}

impl Kernel {
    /// Whether weir runs here: programs load, can be attached in some way, and nothing that is needed is missing.
    #[must_use]
    pub fn runs_weir(&self) -> bool {
        let has = |name: &str| self.features.iter().any(|one| one.name == name && one.missing.is_none());
        let attaches = has("attach by TCX") || has("attach by clsact");
        let complete = self.features.iter().all(|one| !one.needed || one.missing.is_none());
        attaches && complete && self.programs.iter().all(|program| program.refused.is_none())
    }

    /// What is not as the limits say, one line each. Programs that were not looked at are not missed.
    #[must_use]
    pub fn beyond(&self, limits: &Limits) -> Vec<String> {
        let mut wrong = Vec::new();
        for Feature { name, missing, .. } in &self.features {
            match (missing, limits.lacks.contains(*name)) {
                (Some(why), false) => wrong.push(format!("{name} is missing: {why}")),
                (None, true) => wrong.push(format!("{name} is said to be missing, and is there")),
                (Some(_), true) | (None, false) => {}
            }
        }
        for Verified { name, instructions, refused, .. } in &self.programs {
            match (refused, limits.programs.get(name)) {
                (Some(_), _) => wrong.push(format!("{name} is refused")),
                (None, None) => wrong.push(format!("{name} has no limit")),
                (None, Some(limit)) if instructions > limit => {
                    wrong.push(format!("{name}: {instructions} instructions verified of {limit}"));
                }
                (None, Some(_)) => {}
            }
        }
        wrong
    }

    /// A table of what it has, and one of programs.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = format!("kernel {}\n\n", self.release);
        for Feature { name, missing, without, needed } in &self.features {
            let _ = match missing {
                None => writeln!(text, "{name:<28} yes"),
                Some(why) if *needed => writeln!(text, "{name:<28} NO, and needed: {why}"),
                Some(why) => writeln!(text, "{name:<28} no ({without}): {why}"),
            };
        }
        let _ = writeln!(text, "\n{:<16} {:>12} {:>6}", "program", "instructions", "stack");
        for Verified { name, instructions, stack, refused } in &self.programs {
            let _ = match refused {
                None => writeln!(text, "{name:<16} {instructions:>12} {stack:>6}"),
                Some(why) => writeln!(text, "{name:<16} REFUSED\n{why}"),
            };
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(tcx: bool, clsact: bool, veth: bool, refused: bool) -> Kernel {
        let missing = |there: bool| (!there).then(|| "Invalid argument".to_owned());
        let one = |name, there, needed| Feature { name, missing: missing(there), without: "less", needed };
        let refused = refused.then(|| "R1 type=inv".to_owned());
        Kernel {
            release: "5.10".to_owned(),
            features: vec![
                one("attach by TCX", tcx, false),
                one("attach by clsact", clsact, false),
                one("veth", veth, true),
            ],
            programs: vec![Verified { name: "arp".to_owned(), instructions: 200, stack: 64, refused }],
        }
    }

    #[test]
    fn weir_runs_with_either_way_to_attach() {
        assert!(kernel(true, false, true, false).runs_weir());
        assert!(kernel(false, true, true, false).runs_weir());
        assert!(!kernel(false, false, true, false).runs_weir());
    }

    #[test]
    fn what_differs_from_the_limits_is_told() {
        let limits = |lacks: &[&str], most: u32| Limits {
            lacks: lacks.iter().map(|name| (*name).to_owned()).collect(),
            programs: [("arp".to_owned(), most)].into(),
        };
        let old = kernel(false, true, true, false);
        assert_eq!(old.beyond(&limits(&["attach by TCX"], 200)), Vec::<String>::new());
        assert_eq!(old.beyond(&limits(&[], 200)), ["attach by TCX is missing: Invalid argument"]);
        assert_eq!(old.beyond(&limits(&["attach by TCX", "veth"], 200)), ["veth is said to be missing, and is there"]);
        assert_eq!(old.beyond(&limits(&["attach by TCX"], 199)), ["arp: 200 instructions verified of 199"]);
        let refused = kernel(false, true, true, true);
        assert_eq!(refused.beyond(&limits(&["attach by TCX"], 200)), ["arp is refused"]);
    }

    #[test]
    fn every_kernel_has_limits() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ci/kernels/limits.toml");
        for release in ["5.10.0-46-cloud-amd64", "6.1.0-56-cloud-amd64", "6.12.117+deb13", "6.18.15", "7.3.4"] {
            assert!(Limits::read(&file, release).is_ok(), "{release}");
        }
        assert!(Limits::read(&file, "4.19.0").is_err());
    }

    #[test]
    fn weir_does_not_run_without_what_is_needed_or_with_a_refused_program() {
        assert!(!kernel(true, true, false, false).runs_weir());
        let refused = kernel(true, true, true, true);
        assert!(!refused.runs_weir());
        assert!(refused.text().contains("arp              REFUSED\nR1 type=inv\n"));
    }
}
