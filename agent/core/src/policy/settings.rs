//! How policies are read: settings of the cluster, the same on every node, and what was learnt from DNS.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// When endpoints are closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Enforcement {
    /// When a policy isolates them.
    #[default]
    Default,
    /// Always, in both directions.
    Always,
    /// Never; policies have no effect.
    Never,
}

impl Enforcement {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Default, Self::Always, Self::Never];

    /// From its name in settings: `default`, `always`, `never`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }

    /// Its name in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

/// Settings of the policy compiler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicySettings {
    /// When endpoints are closed.
    pub enforcement: Enforcement,
    /// Name of the cluster, `io.cilium.k8s.policy.cluster`.
    pub cluster: String,
    /// Labels that count for identities.
    pub identity_labels: LabelFilter,
    /// CIDR rules of Cilium's policies select pods by address too.
    pub cidrs_match_pods: bool,
    /// CIDR rules of Cilium's policies select nodes by address too.
    pub cidrs_match_nodes: bool,
    /// Policies about nodes are enforced: the node has entries of its own in the policy map.
    pub host_firewall: bool,
    /// Most policy entries of one endpoint.
    pub endpoint_entries: usize,
    /// Most policy entries of one node (the map holds no more than its own capacity in any case).
    pub node_entries: usize,
    /// Addresses that DNS names had in answers and that are still valid.
    pub names: BTreeMap<String, BTreeSet<IpAddr>>,
}

impl Default for PolicySettings {
    fn default() -> Self {
        Self {
            enforcement: Enforcement::Default,
            cluster: "default".to_owned(),
            identity_labels: LabelFilter::default(),
            cidrs_match_pods: false,
            cidrs_match_nodes: false,
            host_firewall: false,
            endpoint_entries: 16_384,
            node_entries: usize::MAX,
            names: BTreeMap::new(),
        }
    }
}

/// Which labels of pods count for identities. Pods that differ in others only share an identity, unless a policy asks for
/// such a label: then those that the question tells apart are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelFilter {
    /// Patterns: the beginning of a key, with `*` for anything; with `!` before it, such keys do not count. If one
    /// pattern has no `!`, only keys that such a pattern takes count.
    pub patterns: Vec<String>,
}

impl Default for LabelFilter {
    /// Everything but what controllers write to tell their pods apart (Cilium's default).
    fn default() -> Self {
        let patterns = [
            "!io.kubernetes",
            "!kubernetes.io",
            "!statefulset.kubernetes.io/pod-name",
            "!apps.kubernetes.io/pod-index",
            "!batch.kubernetes.io/job-completion-index",
            "!batch.kubernetes.io/controller-uid",
            "!*beta.kubernetes.io",
            "!k8s.io",
            "!pod-template-generation",
            "!pod-template-hash",
            "!controller-revision-hash",
            "!annotation",
            "!controller-uid",
            "!etcd_node",
        ];
        Self { patterns: patterns.map(str::to_owned).to_vec() }
    }
}

impl LabelFilter {
    /// Whether a label of a pod counts.
    pub fn counts(&self, key: &str) -> bool {
        let (mut wanted, mut taken) = (false, false);
        for pattern in &self.patterns {
            match pattern.strip_prefix('!') {
                Some(pattern) if begins(pattern, key) => return false,
                Some(_) => {}
                None => {
                    wanted = true;
                    taken |= begins(pattern, key);
                }
            }
        }
        taken || !wanted
    }
}

/// Whether a key begins as a pattern says.
fn begins(pattern: &str, key: &str) -> bool {
    match pattern.split_once('*') {
        None => key.starts_with(pattern),
        Some((head, tail)) => key
            .strip_prefix(head)
            .is_some_and(|rest| (0..=rest.len()).filter_map(|from| rest.get(from..)).any(|rest| begins(tail, rest))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_controllers_write_does_not_count() {
        let filter = LabelFilter::default();
        for key in ["app", "app.kubernetes.io/name", "team", "job-name", "batch.kubernetes.io/job-name"] {
            assert!(filter.counts(key), "{key}");
        }
        for key in [
            "pod-template-hash",
            "controller-revision-hash",
            "statefulset.kubernetes.io/pod-name",
            "apps.kubernetes.io/pod-index",
            "kubernetes.io/hostname",
            "failure-domain.beta.kubernetes.io/zone",
        ] {
            assert!(!filter.counts(key), "{key}");
        }
    }

    #[test]
    fn a_pattern_without_an_exclamation_mark_leaves_out_the_rest() {
        let filter = LabelFilter { patterns: vec!["app".to_owned(), "!app.internal".to_owned()] };
        assert!(filter.counts("app") && filter.counts("app.kubernetes.io/name"));
        assert!(!filter.counts("team") && !filter.counts("app.internal/x"));
    }
}
