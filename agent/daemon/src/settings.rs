//! The settings file: TOML, every field with its unit, default and effect in [`DEFAULTS`]; unknown fields are errors.

use std::path::{Path, PathBuf};

use agent_core::policy::{Enforcement, LabelFilter, PolicySettings};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::datapath::Attach;

/// The documented default: what `weir-agent --print-config` writes. A test compares it with [`Settings::default`].
pub const DEFAULTS: &str = r#"# Settings of weir-agent. Every field may be left out; these are the defaults.

# Name of this node among the cluster's objects. Empty: the host's name.
node = ""

# Folder with the cluster's objects (.yaml, .yml, .json, folders inside too; names that begin with a dot are passed over).
# It is watched. While its files are wrong, the last good ones stay in force.
directory = "/etc/weir/objects"

# Folder for what must survive a restart: endpoints, numbers of identities, addresses that were given to pods.
state = "/var/lib/weir"

# Folder in a bpf file system for pinned maps and links. /sys/fs/bpf is mounted if it is not.
bpffs = "/sys/fs/bpf/weir"

# Unix socket for `weir`, with permissions 0600.
socket = "/run/weir/agent.sock"

# Devices towards other nodes. Empty: the one that has this node's address.
devices = []

# How pods of other nodes are reached. "tunnel": through VXLAN or Geneve, over any network that carries UDP between nodes.
# "native": as they are; the network, or routes of this node (`direct-routes`), must know the way. The same on all nodes.
routing-mode = "tunnel"

# With "native": make routes to the pods of other nodes by their nodes' addresses. They must be on a network of this node.
direct-routes = true

# What tunnels speak, the same on all nodes: "vxlan" (RFC 7348) or "geneve" (RFC 8926).
tunnel-protocol = "vxlan"

# UDP port of the tunnel, the same on all nodes. 0: 8472 for VXLAN, 6081 for Geneve.
tunnel-port = 0

# Bytes of an IP packet in a pod, at most. 0: what fits into the smallest of the devices, in a tunnel after 50 bytes for
# its headers (70 where nodes have only IPv6 addresses).
mtu = 0

# How programs are attached to devices: "tcx" (Linux 6.6), "clsact" (filters, before that), or "auto": what this kernel has.
attach = "auto"

# Deliver to pods without passing the node's side of the veth again (bpf_redirect_peer).
redirect-peer = true

# Flows that are remembered for each of IPv4 and IPv6. A map that is already pinned must have the same size.
flows = 524288

# Seconds between sweeps that remove expired flows.
sweep-seconds = 60

# Report every new flow that policy allowed. Refused ones are always reported.
verdict-events = true

# Report where packets of new and living flows go, once every few seconds for each flow.
trace-events = true

# When pods are isolated: "default" (when a policy selects them), "always", or "never" (policies have no effect).
policy-enforcement = "default"

# Enforce policies about nodes (nodeSelector): on packets of the node itself. Without it they are read and have no effect.
host-firewall = false

# Name of this cluster: what policies call io.cilium.k8s.policy.cluster.
cluster-name = "default"

# CIDR rules of Cilium's policies select by address, besides everything outside: "nodes", "pods".
# (ipBlock of NetworkPolicy always selects both.)
cidr-match = []

# Labels that make identities: beginnings of keys; with ! such keys do not. Policies may ask for any label all the same.
identity-labels = [
    "!io.kubernetes", "!kubernetes.io", "!statefulset.kubernetes.io/pod-name", "!apps.kubernetes.io/pod-index",
    "!batch.kubernetes.io/job-completion-index", "!batch.kubernetes.io/controller-uid", "!*beta.kubernetes.io", "!k8s.io",
    "!pod-template-generation", "!pod-template-hash", "!controller-revision-hash", "!annotation", "!controller-uid",
    "!etcd_node",
]

# Give addresses of these families to nodes and pods that have none in their objects.
ipv4 = true
ipv6 = true
"#;

/// Settings of the agent; see [`DEFAULTS`] for what each means.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Name of this node.
    pub node: String,
    /// Folder with the cluster's objects.
    pub directory: PathBuf,
    /// Folder for what must survive a restart.
    pub state: PathBuf,
    /// Folder for pinned maps and links.
    pub bpffs: PathBuf,
    /// Path of the socket.
    pub socket: PathBuf,
    /// Devices towards other nodes.
    pub devices: Vec<String>,
    /// How pods of other nodes are reached.
    pub routing_mode: RoutingMode,
    /// Make routes to other nodes, without a tunnel.
    pub direct_routes: bool,
    /// What tunnels speak.
    pub tunnel_protocol: TunnelProtocol,
    /// UDP port of the tunnel; 0: the protocol's.
    pub tunnel_port: u16,
    /// Bytes; 0: from the devices.
    pub mtu: u32,
    /// How programs are attached to devices.
    pub attach: Attach,
    /// Deliver with `bpf_redirect_peer`.
    pub redirect_peer: bool,
    /// Entries of each table of flows.
    pub flows: u32,
    /// Seconds.
    pub sweep_seconds: u64,
    /// Report flows that policy allowed.
    pub verdict_events: bool,
    /// Report where packets go.
    pub trace_events: bool,
    /// When pods are isolated.
    #[serde(deserialize_with = "enforcement")]
    pub policy_enforcement: Enforcement,
    /// Policies about nodes are enforced.
    pub host_firewall: bool,
    /// This cluster's name.
    pub cluster_name: String,
    /// What CIDR rules of Cilium's policies select besides the outside.
    pub cidr_match: Vec<CidrMatch>,
    /// Labels that make identities.
    pub identity_labels: Vec<String>,
    /// Fill in IPv4 addresses.
    pub ipv4: bool,
    /// Fill in IPv6 addresses.
    pub ipv6: bool,
}

/// How pods of other nodes are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RoutingMode {
    /// Through a tunnel.
    Tunnel,
    /// As they are.
    Native,
}

impl RoutingMode {
    /// As settings have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tunnel => "tunnel",
            Self::Native => "native",
        }
    }
}

/// What tunnels speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TunnelProtocol {
    /// RFC 7348.
    Vxlan,
    /// RFC 8926.
    Geneve,
}

impl TunnelProtocol {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Vxlan, Self::Geneve];

    /// Name of the tunnel device.
    pub const fn device(self) -> &'static str {
        match self {
            Self::Vxlan => "weir_vxlan",
            Self::Geneve => "weir_geneve",
        }
    }

    /// As settings have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vxlan => "vxlan",
            Self::Geneve => "geneve",
        }
    }

    const fn port(self) -> u16 {
        match self {
            Self::Vxlan => 8472,
            Self::Geneve => 6081,
        }
    }
}

/// What CIDR rules select besides the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CidrMatch {
    /// Nodes, by their addresses.
    Nodes,
    /// Pods, by their addresses.
    Pods,
}

fn enforcement<'de, D: Deserializer<'de>>(input: D) -> Result<Enforcement, D::Error> {
    let name = String::deserialize(input)?;
    Enforcement::from_name(&name).ok_or_else(|| D::Error::unknown_variant(&name, &["default", "always", "never"]))
}

impl Default for Settings {
    fn default() -> Self {
        let policy = PolicySettings::default();
        Self {
            node: String::new(),
            directory: "/etc/weir/objects".into(),
            state: "/var/lib/weir".into(),
            bpffs: "/sys/fs/bpf/weir".into(),
            socket: agent_api::SOCKET.into(),
            devices: Vec::new(),
            routing_mode: RoutingMode::Tunnel,
            direct_routes: true,
            tunnel_protocol: TunnelProtocol::Vxlan,
            tunnel_port: 0,
            mtu: 0,
            attach: Attach::Auto,
            redirect_peer: true,
            flows: 524_288,
            sweep_seconds: 60,
            verdict_events: true,
            trace_events: true,
            policy_enforcement: Enforcement::Default,
            host_firewall: false,
            cluster_name: policy.cluster,
            cidr_match: Vec::new(),
            identity_labels: policy.identity_labels.patterns,
            ipv4: true,
            ipv6: true,
        }
    }
}

/// Settings that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The text is not what the fields are.
    #[error("{path}: {source}")]
    Syntax {
        /// The file.
        path: String,
        /// Line, field, and what is wrong.
        source: Box<toml::de::Error>,
    },
    /// A value that cannot be.
    #[error("{path}: {field}: {rule}")]
    Value {
        /// The file.
        path: String,
        /// The field.
        field: &'static str,
        /// What would be right.
        rule: &'static str,
    },
}

impl Settings {
    /// How policies are read.
    #[must_use]
    pub fn policy(&self) -> PolicySettings {
        PolicySettings {
            enforcement: self.policy_enforcement,
            cluster: self.cluster_name.clone(),
            identity_labels: LabelFilter { patterns: self.identity_labels.clone() },
            cidrs_match_pods: self.cidr_match.contains(&CidrMatch::Pods),
            cidrs_match_nodes: self.cidr_match.contains(&CidrMatch::Nodes),
            host_firewall: self.host_firewall,
            ..PolicySettings::default()
        }
    }

    /// UDP port of tunnels.
    #[must_use]
    pub const fn port(&self) -> u16 {
        if self.tunnel_port == 0 { self.tunnel_protocol.port() } else { self.tunnel_port }
    }

    /// With the host's name where there is none.
    #[must_use]
    pub fn named(mut self) -> Self {
        if self.node.is_empty() {
            self.node = rustix::system::uname().nodename().to_string_lossy().into_owned();
        }
        self
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// See [`SettingsError`].
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let shown = path.display().to_string();
        let text =
            std::fs::read_to_string(path).map_err(|source| SettingsError::Read { path: shown.clone(), source })?;
        Self::parse(&shown, &text)
    }

    fn parse(path: &str, text: &str) -> Result<Self, SettingsError> {
        let mut settings: Self = toml::from_str(text)
            .map_err(|source| SettingsError::Syntax { path: path.to_owned(), source: Box::new(source) })?;
        settings = settings.named();
        let absolute = |path: &Path| path.is_absolute();
        let rules: [(&'static str, bool, &'static str); 7] = [
            ("directory", absolute(&settings.directory), "must be an absolute path"),
            ("state", absolute(&settings.state), "must be an absolute path"),
            ("bpffs", absolute(&settings.bpffs), "must be an absolute path"),
            ("socket", absolute(&settings.socket), "must be an absolute path"),
            ("mtu", settings.mtu == 0 || (1280..=65_485).contains(&settings.mtu), "must be 0, or 1280 to 65485 bytes"),
            ("flows", (1024..=16_777_216).contains(&settings.flows), "must be between 1024 and 16777216"),
            ("sweep-seconds", (1..=3600).contains(&settings.sweep_seconds), "must be between 1 and 3600"),
        ];
        match rules.into_iter().find(|(_, right, _)| !right) {
            Some((field, _, rule)) => Err(SettingsError::Value { path: path.to_owned(), field, rule }),
            None => Ok(settings),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_default_is_the_default() {
        assert_eq!(toml::from_str::<Settings>(DEFAULTS).unwrap(), Settings::default());
    }

    #[test]
    fn a_field_that_is_spelt_wrong_is_an_error_that_names_it() {
        let error = Settings::parse("a.toml", "tunel-port = 1").unwrap_err().to_string();
        assert!(error.contains("a.toml") && error.contains("tunel-port"), "{error}");
    }

    #[test]
    fn a_value_out_of_range_is_an_error_with_the_rule() {
        let error = Settings::parse("a.toml", "mtu = 60").unwrap_err().to_string();
        assert_eq!(error, "a.toml: mtu: must be 0, or 1280 to 65485 bytes");
    }
}
