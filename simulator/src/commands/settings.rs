//! Settings of the agents on the command line.

use std::path::{Path, PathBuf};

use agent_core::policy::LabelFilter;

use super::Failure;
use crate::cluster::scenario::Config;
use crate::settings::{self, CidrMatch, PolicyEnforcement, RoutingMode, TunnelProtocol};

/// Settings that the cluster's agents have. What is given here wins over the file.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Settings of the cluster's agents")]
#[group(skip)]
pub struct Args {
    /// The settings file of weir-agent (TOML); or, if it ends in .yaml, a map as `config` of a scenario.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// When pods are isolated.
    #[arg(long, value_enum, value_name = "WHEN")]
    policy_enforcement: Option<PolicyEnforcement>,
    /// Enforce policies about nodes.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    host_firewall: Option<bool>,
    /// Name of the cluster: what policies call io.cilium.k8s.policy.cluster.
    #[arg(long, value_name = "NAME")]
    cluster_name: Option<String>,
    /// What CIDR rules of Cilium's policies select besides the outside: nodes, pods.
    #[arg(long, value_enum, value_name = "WHOM", value_delimiter = ',')]
    cidr_match: Vec<CidrMatch>,
    /// Labels that make identities: beginnings of keys; with ! such keys do not.
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    identity_labels: Vec<String>,
    /// How pods of other nodes are reached.
    #[arg(long, value_enum, value_name = "HOW")]
    routing_mode: Option<RoutingMode>,
    /// What tunnels speak.
    #[arg(long, value_enum, value_name = "PROTOCOL")]
    tunnel_protocol: Option<TunnelProtocol>,
}

impl Args {
    /// The settings; those of `file`, where one is given, in place of `--config`.
    ///
    /// # Errors
    /// A file that cannot be used.
    pub fn read(&self, file: Option<&Path>) -> Result<Config, Failure> {
        let file = file.or(self.config.as_deref());
        let config = file.map(settings::read).transpose().map_err(|error| Failure::Input(error.to_string()))?;
        let mut config = config.unwrap_or_default();
        let protocol = self.tunnel_protocol.map_or(config.tunnel.unwrap_or_default(), Into::into);
        let mode = self.routing_mode.map_or(config.tunnel.is_some(), |mode| mode == RoutingMode::Tunnel);
        config.tunnel = mode.then_some(protocol);
        let policy = &mut config.policy;
        if let Some(mode) = self.policy_enforcement {
            policy.enforcement = mode.into();
        }
        policy.host_firewall = self.host_firewall.unwrap_or(policy.host_firewall);
        if let Some(name) = &self.cluster_name {
            policy.cluster.clone_from(name);
        }
        if !self.cidr_match.is_empty() {
            CidrMatch::set(&self.cidr_match, policy);
        }
        if !self.identity_labels.is_empty() {
            policy.identity_labels = LabelFilter { patterns: self.identity_labels.clone() };
        }
        Ok(config)
    }
}
