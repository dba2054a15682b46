//! Cluster scenarios: YAML with Kubernetes objects and steps, read strictly and run on the simulated cluster.
//!
//! A file has one document of `kind: Scenario`; every other document in it is an object of the cluster, as are those of
//! the files and folders in `manifests`: `List` objects and whole dumps (`kubectl get … -o yaml`) too. `apply` and
//! `delete` take lists of files, folders and objects; an object to be deleted needs no more than apiVersion, kind and
//! metadata. `config` knows `routingMode` (tunnel, native), `tunnelProtocol` (vxlan, geneve), `ipv4` and `ipv6` (families
//! that are filled in where the input has no addresses), and how policies are read: `policyEnforcement` (default, always,
//! never), `hostFirewall`, `clusterName`, `cidrMatch` (a list of nodes and pods), `identityLabels` (a list of patterns),
//! `dnsNames` (addresses that names had in answers of DNS, by name).
//!
//! A probe by name is over IPv4 where both ends have it, else over IPv6; `family: IPv6` asks for the other. An address
//! decides by itself. `world` is one host outside. `expect` is one of these, where `at` may be left out:
//!
//! | `expect` | means |
//! |---|---|
//! | `allow` | request and answer arrive (a policy that only audits may have had something against it) |
//! | `deny` | they do not, for whatever reason, but for a proxy |
//! | `{drop: REASON, at: WHERE}` | a program drops a packet; WHERE is ingress, egress or the name of a hook |
//! | `redirect`, `{redirect: PROXY, at: WHERE}` | a rule hands it to a proxy (http, dns or tls), which decides |
//! | `audit`, `{audit: REASON, at: ingress}` | they arrive, and a policy that only audits would have dropped it |

mod read;
mod run;

use std::fmt;
use std::path::{Path, PathBuf};

use agent_core::model::{Object, ObjectKey};
use agent_core::policy::{PolicySettings, Proxy};
use agent_core::yaml::Node;
use agent_core::{Direction, Position, Settings};

use super::{Family, Options, Party, proxy, tunnel};
use crate::manifests::PassedOver;

pub use read::{ScenarioError, load, load_with, read_config};
pub use run::{Done, Failed, Got, Probed, Report, Runner, StepDone, Stop, Wrong, meets, run};

/// A scenario, with everything it names read.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// The file.
    pub file: String,
    /// `metadata.name`.
    pub name: String,
    /// `spec.source`: where the expectation comes from.
    pub source: Option<String>,
    /// Objects at the start.
    pub objects: Vec<Object>,
    /// Every document with an object, of the start and of all steps, as it was written; items of a `List` stand for
    /// themselves. An object's position is its document's.
    pub documents: Vec<Node>,
    /// Kinds that have no part in who reaches whom: what a dump of a cluster holds besides.
    pub passed: PassedOver,
    /// Settings.
    pub config: Config,
    /// What happens.
    pub steps: Vec<Step>,
}

/// Agent settings that a scenario may give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `routingMode: tunnel`, with its `tunnelProtocol`; else `native`.
    pub tunnel: Option<tunnel::Protocol>,
    /// `ipv4`: nodes and pods without addresses get IPv4 ones.
    pub ipv4: bool,
    /// `ipv6`: the same.
    pub ipv6: bool,
    /// How policies are read.
    pub policy: PolicySettings,
}

impl Default for Config {
    fn default() -> Self {
        Self { tunnel: Some(tunnel::Protocol::default()), ipv4: true, ipv6: true, policy: PolicySettings::default() }
    }
}

impl Config {
    /// Families that are filled in.
    pub fn families(&self) -> Settings {
        Settings { ipv4: self.ipv4, ipv6: self.ipv6 }
    }

    /// Simulation options with these settings.
    pub fn options(&self, options: Options) -> Options {
        Options { tunnel: self.tunnel, policy: self.policy.clone(), ..options }
    }
}

/// One step and its place.
#[derive(Clone, Debug)]
pub struct Step {
    /// Where it is written.
    pub position: Position,
    /// What it does.
    pub action: Action,
}

/// What a step does.
#[derive(Clone, Debug)]
pub enum Action {
    /// Sends one or more flows.
    Probe(Box<ProbeStep>),
    /// Adds or replaces objects.
    Apply(Vec<Object>),
    /// Removes objects.
    Delete(Vec<ObjectKey>),
    /// Lets nanoseconds pass.
    Advance(u64),
}

/// The probe of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeStep {
    /// Sender.
    pub from: Party,
    /// Receiver.
    pub to: Party,
    /// What is spoken.
    pub talk: Talk,
    /// Address family; `None`: IPv4 where both ends have it.
    pub family: Option<Family>,
    /// Source port of every flow; `None`: fresh ones.
    pub source_port: Option<u16>,
    /// Flows.
    pub repeat: u32,
    /// What must come out.
    pub expect: Expect,
}

/// Protocol and port, as written: a named port is that of the receiver's containers when the probe is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Talk {
    /// To a numbered port, or ICMP.
    Known(super::Protocol),
    /// To a named port.
    Named(agent_core::model::Protocol, String),
}

/// What must come out of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Request and answer arrive.
    Allow,
    /// They do not.
    Deny,
    /// A program drops a packet.
    Drop {
        /// For this reason.
        reason: datapath_abi::DropReason,
        /// Here: `ingress`, `egress`, or the name of a hook; `None`: anywhere.
        at: Option<String>,
    },
    /// A rule hands a packet to a proxy.
    Redirect {
        /// Of this kind; `None`: any.
        proxy: Option<Proxy>,
        /// As above.
        at: Option<String>,
    },
    /// Request and answer arrive, and a policy that only audits would have dropped a packet.
    Audit {
        /// For this reason; `None`: any.
        reason: Option<datapath_abi::DropReason>,
        /// In this direction; `None`: in any.
        at: Option<Direction>,
    },
}

impl fmt::Display for Expect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow => f.write_str("allow"),
            Self::Deny => f.write_str("deny"),
            Self::Drop { reason, .. } => write!(f, "drop {}", reason.name()),
            Self::Redirect { proxy: None, .. } => f.write_str("redirect"),
            Self::Redirect { proxy: Some(proxy), .. } => write!(f, "redirect {}", proxy::name(*proxy)),
            Self::Audit { reason: None, .. } => f.write_str("audit"),
            Self::Audit { reason: Some(reason), .. } => write!(f, "audit {}", reason.name()),
        }?;
        match self {
            Self::Drop { at: Some(at), .. } | Self::Redirect { at: Some(at), .. } => write!(f, " at {at}"),
            Self::Audit { at: Some(at), .. } => write!(f, " at {at}"),
            Self::Allow
            | Self::Deny
            | Self::Drop { at: None, .. }
            | Self::Redirect { at: None, .. }
            | Self::Audit { at: None, .. } => Ok(()),
        }
    }
}

/// A file, or all files with such endings in a folder and below it, sorted.
///
/// # Errors
/// The path that cannot be read, and why.
pub fn manifest_files(path: &Path, endings: &[&str]) -> Result<Vec<PathBuf>, (PathBuf, std::io::Error)> {
    let wrap = |error| (path.to_owned(), error);
    let meta = std::fs::metadata(path).map_err(wrap)?;
    if !meta.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(path).map_err(wrap)? {
        entries.push(entry.map_err(wrap)?.path());
    }
    entries.sort();
    let mut files = Vec::new();
    for entry in entries {
        let hidden = entry.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
        if hidden {
            continue;
        }
        let fits = entry.extension().is_some_and(|ending| endings.iter().any(|known| ending == *known));
        if entry.is_dir() || fits {
            files.extend(manifest_files(&entry, endings)?);
        }
    }
    Ok(files)
}
