//! Pods → identities. Kept from one state of the cluster to the next, so that a change costs what it touches.
//!
//! Pods of a namespace with the same labels (of those that count) are alike; what policies ask for ([`Mark`]s) parts
//! their addresses, and each part is a group with an identity of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use datapath_abi::ids::{self, Identity};

use super::asked::Questions;
use super::settings::PolicySettings;
use crate::identity::{IdentityAllocator, Mark, Owner};
use crate::labels::Labels;
use crate::map::Map;
use crate::model::question::{Asked, DEFAULT_SERVICE_ACCOUNT, SERVICE_ACCOUNT};
use crate::model::{Name, Pod, Protocol, Resolved};

/// What tells addresses apart.
pub(super) type Marks = BTreeSet<Mark>;

/// Namespace and labels.
type Key = (String, Labels);

/// Addresses of pods that share an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) namespace: String,
    /// Labels that count, those that are asked for, and the service account.
    labels: Labels,
    namespace_labels: Labels,
    pub(super) marks: Marks,
    /// Numbers of the pods' named ports.
    named: BTreeMap<(String, Protocol), BTreeSet<u16>>,
}

impl Group {
    pub(super) fn ports(&self, name: &str, protocol: Protocol) -> impl Iterator<Item = u16> + '_ {
        self.named.get(&(name.to_owned(), protocol)).into_iter().flatten().copied()
    }

    pub(super) fn asked<'a>(&'a self, cluster: &'a str) -> Asked<'a> {
        Asked {
            namespace: &self.namespace,
            labels: &self.labels,
            namespace_labels: &self.namespace_labels,
            service_account: self.labels.get(SERVICE_ACCOUNT).map_or(DEFAULT_SERVICE_ACCOUNT, String::as_str),
            cluster,
        }
    }
}

/// Pods that have the same labels.
#[derive(Clone, Debug, Default)]
struct Alike {
    /// Their addresses, by their marks.
    parts: BTreeMap<Marks, BTreeMap<IpAddr, Name>>,
    owners: BTreeMap<Marks, (Owner, Identity)>,
}

/// Owners that come and go.
#[derive(Clone, Debug, Default)]
pub(super) struct Turnover {
    pub(super) added: BTreeSet<Owner>,
    pub(super) removed: BTreeSet<Owner>,
}

/// All groups.
#[derive(Clone, Debug, Default)]
pub(super) struct Groups {
    alike: Map<Arc<Key>, Arc<Alike>>,
    groups: Map<Identity, Arc<Group>>,
    addresses: Map<IpAddr, Identity>,
    /// Keys whose parts have changed since identities were given.
    dirty: BTreeSet<Arc<Key>>,
}

/// An identity whose group has come, gone or changed.
#[derive(Clone, Debug)]
pub(super) struct Turned {
    pub(super) identity: Identity,
    pub(super) old: Option<Arc<Group>>,
    pub(super) new: Option<Arc<Group>>,
}

/// The labels of a pod that make its identity. A label of its own is no service account, whatever it is called.
fn key(pod: &Pod, settings: &PolicySettings) -> Key {
    let counts = |key: &str| key != SERVICE_ACCOUNT && settings.identity_labels.counts(key);
    let own = pod.labels.iter().filter(|(key, _)| counts(key));
    let mut labels: Labels = own.map(|(key, value)| (key.clone(), value.clone())).collect();
    if let Some(account) = &pod.service_account {
        labels.insert(SERVICE_ACCOUNT.to_owned(), account.clone());
    }
    (pod.name.namespace.clone(), labels)
}

/// The marks of a set that are not in all of the sets: what tells its addresses from the others.
pub(super) fn difference<'a>(set: &Marks, sets: impl Iterator<Item = &'a Marks> + Clone) -> Marks {
    set.iter().filter(|mark| !sets.clone().all(|other| other.contains(mark))).cloned().collect()
}

impl Groups {
    pub(super) fn iter(&self) -> impl Iterator<Item = (Identity, &Group)> {
        self.groups.iter().map(|(identity, group)| (*identity, group.as_ref()))
    }

    pub(super) fn get(&self, identity: Identity) -> Option<&Group> {
        self.groups.get(&identity).map(Arc::as_ref)
    }

    /// Groups of a namespace.
    pub(super) fn of_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = (Identity, &'a Group)> {
        let own = self.alike.range_from(&(namespace.to_owned(), Labels::new()));
        let own = own.take_while(move |(key, _)| key.0 == namespace).flat_map(|(_, alike)| alike.owners.values());
        own.filter_map(|(_, identity)| Some((*identity, self.groups.get(identity)?.as_ref())))
    }

    pub(super) fn addresses(&self) -> &Map<IpAddr, Identity> {
        &self.addresses
    }

    /// Brings the parts up to date, told which pods have come, gone or changed. What was asked before, and the cluster
    /// that was, must be what the parts were made of.
    pub(super) fn regroup(
        &mut self,
        old: (&Resolved, &Questions),
        new: (&Resolved, &Questions),
        changed: &BTreeSet<Name>,
        settings: &PolicySettings,
    ) {
        let mut moved = old.1.changes(new.1).concerned(new.0);
        moved.extend(changed);
        for name in &moved {
            if let Some(was) = own_pod(old.0, name) {
                self.remove(was, old.1, settings);
            }
        }
        for name in moved {
            if let Some(is) = own_pod(new.0, name) {
                self.add(is, new.1, settings);
            }
        }
        // Labels of a namespace belong to the identities in it.
        for (name, _, _) in old.0.namespaces.diff(&new.0.namespaces) {
            let own = self.alike.range_from(&(name.clone(), Labels::new()));
            self.dirty.extend(own.map(|(key, _)| key).take_while(|key| key.0 == *name).cloned());
        }
    }

    fn remove(&mut self, pod: &Pod, questions: &Questions, settings: &PolicySettings) {
        let key = Arc::new(key(pod, settings));
        if let Some(alike) = self.alike.get_mut(&key) {
            let parts = &mut Arc::make_mut(alike).parts;
            for address in &pod.addresses {
                let marks = questions.of_pod(*address, pod);
                if let Some(part) = parts.get_mut(&marks) {
                    part.remove(address);
                    if part.is_empty() {
                        parts.remove(&marks);
                    }
                }
                self.addresses.remove(address);
            }
        }
        self.dirty.insert(key);
    }

    fn add(&mut self, pod: &Pod, questions: &Questions, settings: &PolicySettings) {
        let key = Arc::new(key(pod, settings));
        if let Some(alike) = self.alike.get_or_default(&key) {
            let parts = &mut Arc::make_mut(alike).parts;
            for address in &pod.addresses {
                let part = parts.entry(questions.of_pod(*address, pod)).or_default();
                part.insert(*address, pod.name.clone());
            }
        }
        self.dirty.insert(key);
    }

    /// Owners that the changed parts no longer have, and those that they have anew.
    pub(super) fn turnover(&self, cluster: &Resolved, turnover: &mut Turnover) {
        for key in &self.dirty {
            let Some(alike) = self.alike.get(key) else { continue };
            let new: BTreeSet<Owner> = alike.parts.keys().map(|marks| owner(key, alike, marks, cluster)).collect();
            let old: BTreeSet<&Owner> = alike.owners.values().map(|(owner, _)| owner).collect();
            turnover.removed.extend(old.iter().filter(|owner| !new.contains(owner)).map(|owner| (*owner).clone()));
            turnover.added.extend(new.into_iter().filter(|owner| !old.contains(owner)));
        }
    }

    /// Groups of the changed parts anew. Returns identities whose group has come, gone or changed.
    pub(super) fn settle(
        &mut self,
        cluster: &Resolved,
        questions: &Questions,
        identities: &IdentityAllocator,
    ) -> Vec<Turned> {
        let mut before: BTreeMap<Identity, Option<Arc<Group>>> = BTreeMap::new();
        let dirty = std::mem::take(&mut self.dirty);
        let mut to_write = Vec::new();
        for key in &dirty {
            for (_, identity) in self.alike.get(key).into_iter().flat_map(|alike| alike.owners.values()) {
                let gone = self.groups.remove(identity);
                before.entry(*identity).or_insert(gone);
            }
        }
        for key in &dirty {
            let Some(alike) = self.alike.get_mut(key) else { continue };
            if alike.parts.is_empty() {
                self.alike.remove(key);
                continue;
            }
            let alike = Arc::make_mut(alike);
            let mut owners = BTreeMap::new();
            for (marks, members) in &alike.parts {
                let owner = owner(key, alike, marks, cluster);
                let identity = identities.number(&owner).unwrap_or(ids::UNMANAGED);
                owners.insert(marks.clone(), (owner, identity));
                for address in members.keys().filter(|address| self.addresses.get(*address) != Some(&identity)) {
                    to_write.push((*address, identity));
                }
                before.entry(identity).or_insert(None);
                self.groups.insert(identity, Arc::new(group(key, marks, members, cluster, questions)));
            }
            self.addresses.extend(to_write.drain(..));
            alike.owners = owners;
        }
        let turned = before.into_iter().map(|(identity, old)| {
            let new = self.groups.get(&identity).cloned();
            Turned { identity, old, new }
        });
        turned.filter(|turned| turned.old != turned.new).collect()
    }
}

fn own_pod<'a>(cluster: &'a Resolved, name: &Name) -> Option<&'a Pod> {
    cluster.pods.get(name).filter(|pod| !pod.host_network)
}

fn owner(key: &Key, alike: &Alike, marks: &Marks, cluster: &Resolved) -> Owner {
    Owner::Pods {
        namespace: key.0.clone(),
        labels: key.1.clone(),
        namespace_labels: cluster.namespaces.get(&key.0).cloned().unwrap_or_default(),
        marks: difference(marks, alike.parts.keys()),
    }
}

fn group(
    key: &Key,
    marks: &Marks,
    members: &BTreeMap<IpAddr, Name>,
    cluster: &Resolved,
    questions: &Questions,
) -> Group {
    let mut named: BTreeMap<(String, Protocol), BTreeSet<u16>> = BTreeMap::new();
    let mut labels = key.1.clone();
    for (index, pod) in members.values().filter_map(|name| cluster.pods.get(name)).enumerate() {
        for port in &pod.ports {
            if let Some(name) = &port.name {
                named.entry((name.clone(), port.protocol)).or_default().insert(port.port);
            }
        }
        // All members have the same values of what is asked for.
        if index == 0 {
            let asked = questions.keys.keys().filter_map(|key| pod.labels.get_key_value(key));
            labels.extend(asked.map(|(key, value)| (key.clone(), value.clone())));
        }
    }
    let namespace_labels = cluster.namespaces.get(&key.0).cloned().unwrap_or_default();
    Group { namespace: key.0.clone(), labels, namespace_labels, marks: marks.clone(), named }
}
