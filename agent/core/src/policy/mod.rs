//! Policies → what each endpoint's policy entries are.
//!
//! Every kind of policy becomes one form ([`form`]), with the order of evaluation in it; the rest knows only the form.
//!
//! **Who is a peer.** Every address belongs to an identity, and a rule is about identities:
//! - pods: one identity for the pods of a namespace with the same labels, of the labels that count ([`LabelFilter`]).
//!   Where policies' blocks hold some of their addresses and not others, or a policy asks for a label that does not
//!   count, those are told apart by what makes the difference, so that a rule is about exactly the pods that it means.
//!   This goes by address: in a dual-stack cluster a pod may have an identity per family. Pods in their node's network
//!   are part of the node: no policy is about them and no label selects them.
//! - addresses outside: a node-local identity for each prefix that a policy names (as `cidr` or `except`); the longest
//!   one that holds an address is its owner. A block selects the prefixes inside it that are in none of its exceptions.
//!   The prefix of length 0 is the world.
//! - nodes: `HOST` (own) and `REMOTE_NODE`; where policies tell nodes' addresses apart, each set of what they ask has a
//!   node-local identity. Two approximations: packets of a remote node that come through the tunnel from an address that
//!   is not known as the node's carry `REMOTE_NODE`, so an ingress rule by address is about that identity too when its
//!   blocks hold any remote node's address; and `HOST` is one identity for all addresses of the own node, selected when
//!   the blocks hold any of them.
//!
//! **Named ports.** Ingress: the subject's container ports of that name and protocol. Egress: those of the peer pods, per
//! identity; pods of the same labels that give a name different numbers are told apart, if an egress rule uses the name.
//! Peers that are no pods have no names.

pub mod form;
pub mod rules;
pub mod settings;
pub mod state;

mod asked;
mod audit;
mod compile;
mod explain;
mod groups;
mod lower;
mod peers;
mod selections;
mod tiers;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use datapath_abi::Identity;
use datapath_abi::ids;

pub use explain::{Attempt, Flow, Part};
pub use form::{Level, PolicyKind, RuleAction, Stage};
pub use lower::AUDIT;
pub use rules::{Direction, LOCAL_HOST, List, NO_RULE, RuleId, RuleInfo, RuleOrigin, RuleTable};
pub use settings::{Enforcement, LabelFilter, PolicySettings};
pub(crate) use state::map_key;
pub use state::{Action, L4, PolicyState, Proxy, Verdict};

use crate::identity::{IdentityAllocator, IdentityError};
use crate::map::Map;
use crate::model::question::{Asked, DEFAULT_SERVICE_ACCOUNT};
use crate::model::{Model, Name, Pod, Resolved};
use crate::yaml::Position;
use compile::{CompiledPolicy, Endpoint};
use form::{Form, Subject};
use lower::{Lowered, PolicyKey};
use peers::{FormChange, Peers};
use tiers::{Draft, Said};

/// A policy that isolates a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyRef {
    /// Its name.
    pub name: Name,
    /// Its kind.
    pub kind: PolicyKind,
    /// Where it is written.
    pub position: Position,
    /// It is reported and not enforced.
    pub audit: bool,
}

/// The cluster's policies, ready to be asked for any endpoint; the same on every node. A copy costs nothing.
#[derive(Clone, Debug)]
pub struct Compiled {
    cluster: Arc<Resolved>,
    peers: Peers,
    lowered: Lowered,
    policies: Map<PolicyKey, Vec<CompiledPolicy>>,
    rules: RuleTable,
}

/// What an update has changed: whose entries have to be made anew.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Everybody's.
    all: bool,
    /// Pods that have changed themselves, or their namespaces.
    pods: BTreeSet<Name>,
    /// Nodes have changed.
    nodes: bool,
    /// Policies, old and new, that say something else now.
    forms: Vec<Arc<Form>>,
    /// Policies with peers that stand for others now: of these identities.
    touched: Vec<Arc<Form>>,
    identities: BTreeSet<Identity>,
}

/// What of an endpoint's entries has to be made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anew<'a> {
    Nothing,
    /// Those of these identities.
    Identities(&'a BTreeSet<Identity>),
    Everything,
}

impl Compiled {
    /// Compiles a cluster. Identities that are still in use keep their numbers.
    ///
    /// # Errors
    /// When identities are used up.
    pub fn new(model: &Model, identities: &mut IdentityAllocator) -> Result<Self, IdentityError> {
        Self::with(model, identities, PolicySettings::default())
    }

    /// As [`Self::new`], with settings.
    ///
    /// # Errors
    /// When identities are used up.
    pub fn with(
        model: &Model,
        identities: &mut IdentityAllocator,
        settings: PolicySettings,
    ) -> Result<Self, IdentityError> {
        Self::from_scratch(model.resolved(), identities, settings)
    }

    fn from_scratch(
        cluster: Arc<Resolved>,
        identities: &mut IdentityAllocator,
        settings: PolicySettings,
    ) -> Result<Self, IdentityError> {
        let mut compiled = Self {
            cluster: Arc::default(),
            peers: Peers::with(settings),
            lowered: Lowered::new(),
            policies: Map::new(),
            rules: RuleTable::default(),
        };
        compiled.change(cluster, identities, true)?;
        Ok(compiled)
    }

    /// Brings everything up to date with a changed model; the result is that of [`Self::with`], and the time taken that
    /// of what has changed. `identities` must be those that it was compiled with.
    ///
    /// # Errors
    /// When identities are used up; then nothing has changed.
    pub fn update(&mut self, model: &Model, identities: &mut IdentityAllocator) -> Result<Changes, IdentityError> {
        let before = self.clone();
        let result = self.change(model.resolved(), identities, false);
        if result.is_err() {
            *self = before;
        }
        result
    }

    fn change(
        &mut self,
        cluster: Arc<Resolved>,
        identities: &mut IdentityAllocator,
        from_scratch: bool,
    ) -> Result<Changes, IdentityError> {
        let old = Arc::clone(&self.cluster);
        let lowered = lower::lower((&old, &self.lowered), &cluster, self.settings());
        let before = self.lowered.clone();
        let forms: Vec<FormChange<'_>> = before
            .diff(&lowered)
            .map(|(key, was, is)| {
                (key, was.map(Vec::as_slice).unwrap_or_default(), is.map(Vec::as_slice).unwrap_or_default())
            })
            .collect();
        let mut changes = Changes {
            pods: old.pods.diff(&cluster.pods).map(|(name, _, _)| name.clone()).collect(),
            ..Changes::default()
        };
        let peers = self.peers.update((&old, &cluster), &changes.pods, &forms, identities, from_scratch)?;
        changes.all = peers.nodes;
        changes.nodes = !Arc::ptr_eq(&old.nodes, &cluster.nodes);
        for (namespace, _, _) in old.namespaces.diff(&cluster.namespaces) {
            changes.pods.extend(cluster.pods_in(namespace).map(|pod| pod.name.clone()));
        }
        self.renumber(&forms);
        changes.forms.extend(forms.iter().flat_map(|(_, was, is)| was.iter().chain(*is).cloned()));
        let touched = peers.policies.iter().filter_map(|key| lowered.get(key)).flatten().cloned();
        if peers.api_server {
            changes.forms.extend(touched)
        } else {
            changes.touched.extend(touched)
        }
        changes.identities = peers.identities;
        self.lowered = lowered;
        self.cluster = cluster;
        Ok(changes)
    }

    /// Numbers for the rules of changed policies.
    fn renumber(&mut self, forms: &[FormChange<'_>]) {
        for (key, _, _) in forms {
            for gone in self.policies.remove(*key).into_iter().flatten() {
                gone.forget(&mut self.rules);
            }
        }
        let displaced = self.rules.is_displaced();
        for (key, _, is) in forms.iter().filter(|(_, _, is)| !is.is_empty()) {
            let made = is.iter().map(|form| CompiledPolicy::new(Arc::clone(form), &mut self.rules)).collect();
            self.policies.insert((*key).clone(), made);
        }
        if !forms.is_empty() && (displaced || self.rules.is_displaced()) {
            // Who has which number depends on the order.
            self.rules = RuleTable::default();
            let all = std::mem::take(&mut self.policies);
            for (key, made) in &all {
                let made =
                    made.iter().map(|policy| CompiledPolicy::new(Arc::clone(&policy.form), &mut self.rules)).collect();
                self.policies.insert(key.clone(), made);
            }
        }
    }

    /// Whether a pod's entries may be others after an update.
    pub fn is_changed(&self, changes: &Changes, pod: &Name) -> bool {
        self.anew(changes, pod) != Anew::Nothing
    }

    /// What of a pod's entries may be others after an update.
    pub(crate) fn anew<'a>(&self, changes: &'a Changes, pod: &Name) -> Anew<'a> {
        if changes.all || changes.pods.contains(pod) {
            return Anew::Everything;
        }
        let Some(pod) = self.cluster.pods.get(pod) else { return Anew::Everything };
        if changes.forms.iter().any(|form| self.is_about(form, pod)) {
            return Anew::Everything;
        }
        let touched = changes.touched.iter().any(|form| self.is_about(form, pod));
        if touched { Anew::Identities(&changes.identities) } else { Anew::Nothing }
    }

    /// Whether the entries of nodes themselves may be others after an update.
    pub fn is_node_changed(&self, changes: &Changes) -> bool {
        let mut forms = changes.forms.iter().chain(&changes.touched);
        changes.all || changes.nodes || forms.any(|form| matches!(form.subject, Subject::Nodes(_)))
    }

    /// Rules by number.
    pub fn rules(&self) -> &RuleTable {
        &self.rules
    }

    /// Settings that it was compiled with.
    pub fn settings(&self) -> &PolicySettings {
        self.peers.settings()
    }

    /// Identity that a node gives an address: of a pod, of a node, of a prefix that policies name, or the world.
    pub fn identity(&self, node: &str, address: IpAddr) -> Identity {
        self.peers.identity(node, address)
    }

    /// Every pod's and node's address with its identity as a node sees it, in order.
    pub fn addresses<'a>(&'a self, node: &'a str) -> impl Iterator<Item = (IpAddr, Identity)> + 'a {
        self.peers.addresses(node)
    }

    /// Prefixes outside the cluster that have an identity of their own.
    pub fn prefixes(&self) -> &Map<crate::Prefix, Identity> {
        self.peers.prefixes()
    }

    /// Policies that isolate a pod in a direction, by name; none: what no rule forbids is allowed.
    pub fn isolating(&self, pod: &Name, direction: Direction) -> Vec<PolicyRef> {
        let found = self.about(pod).filter(|policy| policy.form.isolates(direction));
        found.map(|policy| policy_ref(&policy.form)).collect()
    }

    /// Policies that isolate a node itself in a direction, by name.
    pub fn isolating_node(&self, node: &str, direction: Direction) -> Vec<PolicyRef> {
        let own = self.cluster.nodes.iter().find(|own| own.name == node);
        let about = |policy: &&CompiledPolicy| match &policy.form.subject {
            Subject::Nodes(selector) => own.is_some_and(|own| selector.matches(&own.labels)),
            Subject::Pods(_) => false,
        };
        let found = self.policies().filter(about).filter(|policy| policy.form.isolates(direction));
        found.map(|policy| policy_ref(&policy.form)).collect()
    }

    /// Policies that say something about a pod in a direction, by name.
    pub fn applying(&self, pod: &Name, direction: Direction) -> Vec<PolicyRef> {
        let says =
            |policy: &&CompiledPolicy| policy.form.isolates(direction) || policy.form.rules(direction).next().is_some();
        self.about(pod).filter(says).map(|policy| policy_ref(&policy.form)).collect()
    }

    /// Policies about nodes, which are in force only with [`PolicySettings::host_firewall`].
    pub fn about_nodes(&self) -> Vec<PolicyRef> {
        let found = self.policies().filter(|policy| matches!(policy.form.subject, Subject::Nodes(_)));
        found.map(|policy| policy_ref(&policy.form)).collect()
    }

    /// Whether a policy is about a node itself.
    pub fn has_host_policy(&self, node: &str) -> bool {
        self.cluster.node(node).is_some_and(|own| {
            self.policies().any(|policy| match &policy.form.subject {
                Subject::Nodes(selector) => selector.matches(&own.labels),
                Subject::Pods(_) => false,
            })
        })
    }

    /// Policies that select a pod.
    fn about(&self, pod: &Name) -> impl Iterator<Item = &CompiledPolicy> {
        let subject = self.cluster.pods.get(pod).filter(|pod| !pod.host_network);
        let of_namespace = move |kind| {
            let home = subject.map_or("", |pod| pod.name.namespace.as_str());
            let own = self.policies.range_from(&(kind, Name::new(home, "")));
            own.take_while(move |(key, _)| key.0 == kind && key.1.namespace == home)
        };
        let of_cluster =
            |kind| self.policies.range_from(&(kind, Name::new("", ""))).take_while(move |(key, _)| key.0 == kind);
        let kinds = [PolicyKind::NetworkPolicy, PolicyKind::CiliumNetworkPolicy].into_iter().flat_map(of_namespace);
        let of_all = [PolicyKind::CiliumClusterwideNetworkPolicy, PolicyKind::ClusterNetworkPolicy];
        let found = kinds.chain(of_all.into_iter().flat_map(of_cluster)).flat_map(|(_, policies)| policies);
        found.filter(move |policy| subject.is_some_and(|pod| self.is_about(&policy.form, pod)))
    }

    fn policies(&self) -> impl Iterator<Item = &CompiledPolicy> {
        self.policies.values().flatten()
    }

    fn is_about(&self, form: &Form, pod: &Pod) -> bool {
        let Subject::Pods(question) = &form.subject else { return false };
        let namespace = pod.name.namespace.as_str();
        let own = || self.cluster.namespaces.get(namespace);
        // Most policies are about one namespace.
        (form.name.namespace.is_empty() || form.name.namespace == namespace)
            && own().is_some_and(|namespace_labels| {
                question.matches(&Asked {
                    namespace,
                    labels: &pod.labels,
                    namespace_labels,
                    service_account: pod.service_account.as_deref().unwrap_or(DEFAULT_SERVICE_ACCOUNT),
                    cluster: &self.settings().cluster,
                })
            })
    }

    /// What a pod's policy entries are in one direction. A pod that does not exist, or is in its node's network, has none.
    pub fn state(&self, pod: &Name, direction: Direction) -> PolicyState {
        self.state_of(pod, direction, None)
    }

    /// As [`Self::state`]; of those `only` (and perhaps some of others), if they are given.
    pub(crate) fn state_of(&self, pod: &Name, direction: Direction, only: Option<&BTreeSet<Identity>>) -> PolicyState {
        let Some(subject) = self.cluster.pods.get(pod).filter(|pod| !pod.host_network) else {
            return PolicyState::default();
        };
        let policies: Vec<&CompiledPolicy> = self.about(pod).collect();
        let endpoint = Endpoint { node: &subject.node, ports: &subject.ports, only };
        self.compile(&policies, endpoint, direction, direction == Direction::Ingress)
    }

    /// What a node's own policy entries are in one direction: what policies with `nodeSelector` say.
    pub fn host_state(&self, node: &str, direction: Direction) -> PolicyState {
        let Some(own) = self.cluster.node(node) else {
            return PolicyState::default();
        };
        let about = |policy: &&CompiledPolicy| match &policy.form.subject {
            Subject::Nodes(selector) => selector.matches(&own.labels),
            Subject::Pods(_) => false,
        };
        let policies: Vec<&CompiledPolicy> = self.policies().filter(about).collect();
        self.compile(&policies, Endpoint { node, ports: &[], only: None }, direction, false)
    }

    /// `host_may`: the node itself may reach the endpoint unless a rule forbids it.
    fn compile(
        &self,
        policies: &[&CompiledPolicy],
        endpoint: Endpoint<'_>,
        direction: Direction,
        host_may: bool,
    ) -> PolicyState {
        if self.settings().enforcement == Enforcement::Never {
            return Draft::default().finish(false);
        }
        let one = |policies: &[&CompiledPolicy]| {
            let mut draft = Draft::default();
            let always = self.settings().enforcement == Enforcement::Always;
            let isolated = always || policies.iter().any(|policy| policy.form.isolates(direction));
            if isolated && host_may {
                let (said, level) = (Said::Verdict(Action::Allow), Level::NORMAL);
                draft.add(Stage::Normal, level, ids::HOST, L4::ANY, said, LOCAL_HOST);
            }
            for policy in policies {
                policy.entries(direction, endpoint, &self.peers, &mut draft);
            }
            draft.finish(isolated)
        };
        let complete = one(policies);
        let enforced: Vec<&CompiledPolicy> = policies.iter().copied().filter(|policy| !policy.form.audit).collect();
        if enforced.len() == policies.len() {
            return complete;
        }
        audit::merge(&one(&enforced), &complete)
    }

    /// Identities of pods' addresses.
    pub(crate) fn pod_addresses(&self) -> &Map<IpAddr, Identity> {
        self.peers.pod_addresses()
    }

    pub(crate) fn cluster(&self) -> &Resolved {
        &self.cluster
    }
}

impl Changes {
    /// Adds what a later update has changed.
    pub fn merge(&mut self, later: Self) {
        self.all |= later.all;
        self.nodes |= later.nodes;
        self.pods.extend(later.pods);
        self.forms.extend(later.forms);
        self.touched.extend(later.touched);
        self.identities.extend(later.identities);
    }

    /// Whether everybody's entries may be others.
    pub(crate) fn is_everything(&self) -> bool {
        self.all
    }
}

fn policy_ref(form: &Form) -> PolicyRef {
    PolicyRef { name: form.name.clone(), kind: form.kind, position: form.position.clone(), audit: form.audit }
}

/// FNV-1a of 64 bits, folded to 32.
pub(crate) fn fold(bytes: &[u8]) -> u32 {
    halves(hash(bytes))
}

/// FNV-1a of 64 bits.
pub(crate) fn hash(bytes: &[u8]) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for &byte in bytes {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash
}

/// 64 bits folded to 32.
pub(crate) fn halves(hash: u64) -> u32 {
    let [a, b, c, d, e, f, g, h] = hash.to_le_bytes();
    u32::from_le_bytes([a, b, c, d]) ^ u32::from_le_bytes([e, f, g, h])
}
