//! Settings of the agents, as far as a simulated cluster has them: how policies are read, how nodes are connected, which
//! address families are filled in.
//!
//! They come from the file that `weir-agent` is given (TOML), or from a map as in `config` of a scenario (`.yaml`).
//! Invariant: a field that neither the agent nor the simulator knows is an error, never passed over; fields of the agent
//! that have no part in who reaches whom (folders, sockets, sizes) are read and have no effect.

use std::path::Path;

use agent_core::InputErrors;
use agent_core::policy::{Enforcement, LabelFilter, PolicySettings};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::cluster::scenario::{Config, read_config};
use crate::cluster::tunnel;

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read.
    #[error("{file}: {source}")]
    Read {
        /// File.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is not what the agent's settings are.
    #[error("{file}: {source}")]
    Toml {
        /// File.
        file: String,
        /// Line, field, and what is wrong.
        source: Box<toml::de::Error>,
    },
    /// It is not what `config` of a scenario is.
    #[error(transparent)]
    Yaml(#[from] InputErrors),
    /// Nothing would have an address.
    #[error("{file}: ipv4 and ipv6 cannot both be false")]
    NoFamily {
        /// File.
        file: String,
    },
}

/// The agent's file. What has no part here only must be there by its name.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    routing_mode: Option<RoutingMode>,
    tunnel_protocol: Option<TunnelProtocol>,
    policy_enforcement: Option<PolicyEnforcement>,
    host_firewall: Option<bool>,
    cluster_name: Option<String>,
    cidr_match: Option<Vec<CidrMatch>>,
    identity_labels: Option<Vec<String>>,
    ipv4: Option<bool>,
    ipv6: Option<bool>,
    #[serde(rename = "node")]
    _node: Option<IgnoredAny>,
    #[serde(rename = "directory")]
    _directory: Option<IgnoredAny>,
    #[serde(rename = "state")]
    _state: Option<IgnoredAny>,
    #[serde(rename = "bpffs")]
    _bpffs: Option<IgnoredAny>,
    #[serde(rename = "socket")]
    _socket: Option<IgnoredAny>,
    #[serde(rename = "devices")]
    _devices: Option<IgnoredAny>,
    #[serde(rename = "direct-routes")]
    _direct_routes: Option<IgnoredAny>,
    #[serde(rename = "tunnel-port")]
    _tunnel_port: Option<IgnoredAny>,
    #[serde(rename = "mtu")]
    _mtu: Option<IgnoredAny>,
    #[serde(rename = "attach")]
    _attach: Option<IgnoredAny>,
    #[serde(rename = "redirect-peer")]
    _redirect_peer: Option<IgnoredAny>,
    #[serde(rename = "flows")]
    _flows: Option<IgnoredAny>,
    #[serde(rename = "sweep-seconds")]
    _sweep_seconds: Option<IgnoredAny>,
    #[serde(rename = "verdict-events")]
    _verdict_events: Option<IgnoredAny>,
    #[serde(rename = "trace-events")]
    _trace_events: Option<IgnoredAny>,
}

/// How pods of other nodes are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum RoutingMode {
    /// Through a tunnel between nodes.
    Tunnel,
    /// As they are.
    Native,
}

/// What tunnels speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum TunnelProtocol {
    /// RFC 7348.
    Vxlan,
    /// RFC 8926.
    Geneve,
}

impl From<TunnelProtocol> for tunnel::Protocol {
    fn from(protocol: TunnelProtocol) -> Self {
        match protocol {
            TunnelProtocol::Vxlan => Self::Vxlan,
            TunnelProtocol::Geneve => Self::Geneve,
        }
    }
}

/// When pods are isolated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyEnforcement {
    /// When a policy selects them.
    Default,
    /// Always.
    Always,
    /// Never: policies have no effect.
    Never,
}

impl From<PolicyEnforcement> for Enforcement {
    fn from(mode: PolicyEnforcement) -> Self {
        match mode {
            PolicyEnforcement::Default => Self::Default,
            PolicyEnforcement::Always => Self::Always,
            PolicyEnforcement::Never => Self::Never,
        }
    }
}

/// What CIDR rules of Cilium's policies select besides the outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum CidrMatch {
    /// Nodes, by their addresses.
    Nodes,
    /// Pods, by their addresses.
    Pods,
}

impl CidrMatch {
    /// Makes these all that CIDR rules select.
    pub fn set(all: &[Self], policy: &mut PolicySettings) {
        policy.cidrs_match_nodes = all.contains(&Self::Nodes);
        policy.cidrs_match_pods = all.contains(&Self::Pods);
    }
}

/// Reads a file: `.yaml` and `.yml` as `config` of a scenario, any other as the agent's settings.
///
/// # Errors
/// See [`SettingsError`].
pub fn read(path: &Path) -> Result<Config, SettingsError> {
    let file = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Read { file: file.clone(), source })?;
    let yaml = path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
    let config = if yaml { read_config(&file, &text)? } else { parse(&file, &text)? };
    if config.ipv4 || config.ipv6 { Ok(config) } else { Err(SettingsError::NoFamily { file }) }
}

/// Reads the agent's settings.
///
/// # Errors
/// Fields that the agent does not know, and values that are none.
pub fn parse(file: &str, text: &str) -> Result<Config, SettingsError> {
    let found: File = toml::from_str(text)
        .map_err(|source| SettingsError::Toml { file: file.to_owned(), source: Box::new(source) })?;
    let mut config = Config::default();
    let protocol = found.tunnel_protocol.map_or_else(tunnel::Protocol::default, Into::into);
    config.tunnel = (found.routing_mode != Some(RoutingMode::Native)).then_some(protocol);
    config.ipv4 = found.ipv4.unwrap_or(config.ipv4);
    config.ipv6 = found.ipv6.unwrap_or(config.ipv6);
    let policy = &mut config.policy;
    if let Some(mode) = found.policy_enforcement {
        policy.enforcement = mode.into();
    }
    policy.host_firewall = found.host_firewall.unwrap_or(policy.host_firewall);
    if let Some(name) = found.cluster_name {
        policy.cluster = name;
    }
    if let Some(all) = found.cidr_match {
        CidrMatch::set(&all, policy);
    }
    if let Some(patterns) = found.identity_labels {
        policy.identity_labels = LabelFilter { patterns };
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_said_is_the_default() {
        assert_eq!(parse("a.toml", "").unwrap(), Config::default());
    }

    #[test]
    fn what_the_agent_is_told_counts_here_too() {
        let text = "routing-mode = \"native\"\npolicy-enforcement = \"always\"\nhost-firewall = true\ncluster-name = \"blue\"\n\
                    cidr-match = [\"nodes\"]\nidentity-labels = [\"app\"]\nipv6 = false\nmtu = 1400\n";
        let config = parse("a.toml", text).unwrap();
        let policy = &config.policy;
        assert!(config.tunnel.is_none() && config.ipv4 && !config.ipv6);
        assert!(policy.host_firewall && policy.cidrs_match_nodes && !policy.cidrs_match_pods);
        assert_eq!((policy.enforcement, policy.cluster.as_str()), (Enforcement::Always, "blue"));
        assert_eq!(policy.identity_labels.patterns, ["app"]);
    }

    #[test]
    fn a_tunnel_has_a_protocol() {
        let tunnel = |text| parse("a.toml", text).unwrap().tunnel;
        assert_eq!(tunnel("tunnel-protocol = \"geneve\""), Some(tunnel::Protocol::Geneve));
        assert_eq!(tunnel("routing-mode = \"tunnel\""), Some(tunnel::Protocol::Vxlan));
        assert_eq!(tunnel("routing-mode = \"native\"\ntunnel-protocol = \"geneve\""), None);
    }

    #[test]
    fn wrong_fields_and_values_are_named_with_their_line() {
        for (text, says) in [
            ("ipv4 = true\nhost-firewal = true", ["a.toml", "line 2", "unknown field `host-firewal`"]),
            ("policy-enforcement = \"strict\"", ["line 1", "unknown variant `strict`", "`default`, `always`, `never`"]),
            ("cidr-match = [\"node\"]", ["line 1", "unknown variant `node`", "`nodes` or `pods`"]),
        ] {
            let error = parse("a.toml", text).unwrap_err().to_string();
            for part in says {
                assert!(error.contains(part), "expected `{part}` in: {error}");
            }
        }
    }
}
