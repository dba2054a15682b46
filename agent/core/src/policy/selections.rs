//! Which identities every peer stands for that a rule names, and which policies have it. Each change of an identity is
//! asked only of the peers that can have to do with it: those of its namespace, those of any, and the blocks that hold it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use datapath_abi::ids::{self, Identity};

use super::form::{InCluster, Select};
use super::groups::{Group, Turned};
use super::lower::PolicyKey;
use super::peers::{FormChange, Peers, selects};
use super::rules::Direction;
use crate::identity::Mark;
use crate::labels::Operator;
use crate::map::Map;
use crate::model::{Entity, LabelOf, PodQuestion, PortSelector};
use crate::prefix::Prefix;

/// Identities of a peer, nodes by address aside: those depend on who looks.
#[derive(Clone, Debug, Default)]
struct Selection {
    pods: BTreeSet<Identity>,
    others: BTreeSet<Identity>,
    /// Policies that name it, and how often.
    users: BTreeMap<PolicyKey, usize>,
}

/// Peers, by what they can have to do with.
#[derive(Clone, Debug, Default)]
pub(super) struct Selections {
    all: Map<Arc<Select>, Arc<Selection>>,
    /// Those about pods of one namespace.
    of_namespace: Map<String, BTreeSet<Arc<Select>>>,
    /// Those about pods of any.
    of_any: Map<Arc<Select>, ()>,
    /// Those that stand for somebody who is no pod.
    outside: Map<Arc<Select>, ()>,
    /// Policies with ports by name in egress rules: what the name means is with the peers.
    named: Map<PolicyKey, usize>,
}

/// What has changed besides pods.
#[derive(Clone, Debug)]
pub(super) struct Outside {
    /// Prefixes that have come (`true`) or gone.
    pub(super) prefixes: Vec<(Prefix, Identity, bool)>,
    /// Anything may have.
    pub(super) all: bool,
}

/// Which peers a change of a group is asked of.
enum Concern<'a> {
    /// Those about pods of these namespaces.
    Namespaces(&'a BTreeSet<String>),
    AnyPod,
    /// Found by the marks of the group, or about no pods.
    Nobody,
}

fn concern(select: &Select) -> Concern<'_> {
    match select {
        Select::Pods(question) => homes(question).map_or(Concern::AnyPod, Concern::Namespaces),
        Select::Entity(Entity::Cluster) => Concern::AnyPod,
        Select::Entity(_) | Select::Block { .. } | Select::Nodes(_) | Select::Names(_) => Concern::Nobody,
    }
}

/// Namespaces that a question is about, if it names them.
fn homes(question: &PodQuestion) -> Option<&BTreeSet<String>> {
    let named = |r: &&crate::model::Requirement| r.of == LabelOf::Namespace && r.operator == Operator::In;
    question.requirements.iter().find(named).map(|requirement| &requirement.values)
}

impl Selections {
    /// Adds the identities that a peer stands for; of those `only`, and of any, if they are given.
    pub(super) fn of(&self, select: &Select, only: Option<&BTreeSet<Identity>>, found: &mut BTreeSet<Identity>) {
        let Some(Selection { pods, others, .. }) = self.all.get(select).map(Arc::as_ref) else { return };
        match only {
            None => {
                found.extend(pods);
                found.extend(others);
            }
            Some(only) => {
                let any = [ids::UNKNOWN];
                let wanted = only.iter().chain(&any);
                found.extend(wanted.filter(|identity| pods.contains(identity) || others.contains(identity)));
            }
        }
    }

    /// Brings everything up to date with `peers`. Returns the policies whose peers stand for others now.
    pub(super) fn update(
        &mut self,
        peers: &Peers,
        forms: &[FormChange<'_>],
        turned: &[Turned],
        outside: &Outside,
    ) -> BTreeSet<PolicyKey> {
        let fresh = self.count(forms);
        let mut differ = self.turn(peers, turned);
        self.turn_outside(peers, outside, &mut differ);
        for select in fresh {
            let candidates = match concern(&select) {
                Concern::Namespaces(homes) => peers.candidates(Some(homes)),
                Concern::AnyPod => peers.candidates(None),
                Concern::Nobody if matches!(&*select, Select::Block { cluster: InCluster { pods: true, .. }, .. }) => {
                    peers.candidates(None)
                }
                Concern::Nobody => Vec::new(),
            };
            let meant = candidates.into_iter().filter(|(_, group)| peers.takes(&select, group));
            if let Some(selection) = self.all.get_mut(&select) {
                let selection = Arc::make_mut(selection);
                selection.pods = meant.map(|(identity, _)| identity).collect();
                selection.others = peers.select_others(&select);
            }
        }
        let users = differ.iter().filter_map(|select| self.all.get(select)).flat_map(|own| own.users.keys().cloned());
        let mut policies: BTreeSet<PolicyKey> = users.collect();
        if !turned.is_empty() {
            policies.extend(self.named.keys().cloned());
        }
        policies
    }

    /// Policies come and go. Returns peers that nobody named before.
    fn count(&mut self, forms: &[FormChange<'_>]) -> BTreeSet<Arc<Select>> {
        let mut fresh = BTreeSet::new();
        let mut perhaps_gone = BTreeSet::new();
        for more in [true, false] {
            for (key, was, is) in forms {
                let forms = if more { is } else { was };
                for rule in forms.iter().flat_map(|form| &form.rules) {
                    for peer in rule.peers.iter().flatten() {
                        self.count_one(key, &peer.selects, more, &mut fresh, &mut perhaps_gone);
                    }
                    let by_name = |selector: &PortSelector| matches!(selector, PortSelector::Named(_));
                    if rule.list.direction() == Direction::Egress && rule.ports.iter().any(|port| by_name(&port.ports))
                    {
                        count(&mut self.named, key, more);
                    }
                }
            }
        }
        for select in perhaps_gone {
            if self.all.get(&select).is_some_and(|selection| selection.users.is_empty()) {
                self.unlist(&select);
                self.all.remove(&select);
            }
        }
        fresh
    }

    fn count_one(
        &mut self,
        key: &PolicyKey,
        select: &Select,
        more: bool,
        fresh: &mut BTreeSet<Arc<Select>>,
        perhaps_gone: &mut BTreeSet<Arc<Select>>,
    ) {
        if more && !self.all.contains_key(select) {
            let select = Arc::new(select.clone());
            self.list(&select);
            self.all.insert(Arc::clone(&select), Arc::default());
            fresh.insert(select);
        }
        let Some(shared) = self.all.get_key_value(select).map(|(shared, _)| Arc::clone(shared)) else { return };
        let Some(selection) = self.all.get_mut(select) else { return };
        let users = &mut Arc::make_mut(selection).users;
        let left = users.entry(key.clone()).or_default();
        *left = if more { *left + 1 } else { left.saturating_sub(1) };
        if *left == 0 {
            users.remove(key);
            perhaps_gone.insert(shared);
        }
    }

    fn list(&mut self, select: &Arc<Select>) {
        match concern(select) {
            Concern::Namespaces(homes) => {
                for home in homes {
                    if let Some(own) = self.of_namespace.get_or_default(home) {
                        own.insert(Arc::clone(select));
                    }
                }
            }
            Concern::AnyPod => {
                self.of_any.insert(Arc::clone(select), ());
            }
            Concern::Nobody => {}
        }
        match **select {
            Select::Block { .. } | Select::Entity(_) | Select::Names(_) => {
                self.outside.insert(Arc::clone(select), ());
            }
            Select::Pods(_) | Select::Nodes(_) => {}
        }
    }

    fn unlist(&mut self, select: &Arc<Select>) {
        if let Concern::Namespaces(homes) = concern(select) {
            for home in homes {
                let left = self.of_namespace.get_mut(home).map(|own| {
                    own.remove(select);
                    own.len()
                });
                if left == Some(0) {
                    self.of_namespace.remove(home);
                }
            }
        }
        self.of_any.remove(select);
        self.outside.remove(select);
    }

    /// Identities that have come, gone or changed. Returns the peers that have to do with them.
    fn turn(&mut self, peers: &Peers, turned: &[Turned]) -> BTreeSet<Arc<Select>> {
        let mut differ = BTreeSet::new();
        let any: Vec<Arc<Select>> = self.of_any.keys().cloned().collect();
        for Turned { identity, old, new } in turned {
            let mut asked: BTreeSet<Arc<Select>> = BTreeSet::new();
            for group in [old, new].into_iter().flatten() {
                asked.extend(self.of_namespace.get(&group.namespace).into_iter().flatten().cloned());
                asked.extend(self.blocks_of(group));
            }
            for select in asked.iter().chain(&any) {
                let is = new.as_ref().is_some_and(|group| peers.takes(select, group));
                let was = self.all.get(select).is_some_and(|selection| selection.pods.contains(identity));
                if is != was
                    && let Some(selection) = self.all.get_mut(select)
                {
                    let pods = &mut Arc::make_mut(selection).pods;
                    if is {
                        pods.insert(*identity)
                    } else {
                        pods.remove(identity)
                    };
                }
                // Somebody whose named ports or the like have changed is somebody else.
                if is || was {
                    differ.insert(Arc::clone(select));
                }
            }
        }
        differ
    }

    /// Peers that are blocks in which a group lies.
    fn blocks_of(&self, group: &Group) -> Vec<Arc<Select>> {
        let mut found = Vec::new();
        for mark in &group.marks {
            let Mark::Block(block) = mark else { continue };
            for nodes in [false, true] {
                let select = Select::Block { block: block.clone(), cluster: InCluster { pods: true, nodes } };
                found.extend(self.all.get_key_value(&select).map(|(select, _)| Arc::clone(select)));
            }
        }
        found
    }

    /// Prefixes, nodes and the world.
    fn turn_outside(&mut self, peers: &Peers, outside: &Outside, differ: &mut BTreeSet<Arc<Select>>) {
        if outside.prefixes.is_empty() && !outside.all {
            return;
        }
        let asked = self.outside.clone();
        for select in asked.keys() {
            let Some(selection) = self.all.get(select) else { continue };
            let others = match &**select {
                Select::Block { block, .. } if !outside.all => {
                    let mut inside =
                        outside.prefixes.iter().filter(|(prefix, _, _)| selects(block, *prefix)).peekable();
                    if inside.peek().is_none() {
                        continue;
                    }
                    let mut others = selection.others.clone();
                    for (_, identity, come) in inside {
                        if *come {
                            others.insert(*identity)
                        } else {
                            others.remove(identity)
                        };
                    }
                    others
                }
                Select::Block { .. } | Select::Entity(_) | Select::Names(_) | Select::Pods(_) | Select::Nodes(_) => {
                    peers.select_others(select)
                }
            };
            if others != selection.others
                && let Some(selection) = self.all.get_mut(select)
            {
                Arc::make_mut(selection).others = others;
                differ.insert(Arc::clone(select));
            }
        }
    }
}

fn count(counts: &mut Map<PolicyKey, usize>, key: &PolicyKey, more: bool) {
    let Some(count) = counts.get_or_default(key) else { return };
    *count = if more { *count + 1 } else { count.saturating_sub(1) };
    if *count == 0 {
        counts.remove(key);
    }
}
