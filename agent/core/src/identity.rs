//! Identities: numbers for sets of labels (cluster-wide, on the wire) and for prefixes and nodes (this node only).
//!
//! Invariants: numbers depend on what was asked for only (new ones are given in the order of the labels, lowest free
//! number first); what stays keeps its number; a number that was freed by an update is not given away in the same
//! update, so that no entry of the old owner can be taken for the new one's.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use datapath_abi::ids::{self, Identity};

use crate::labels::Labels;
use crate::map::Map;
use crate::model::{IpBlock, Protocol};
use crate::prefix::Prefix;

/// First number of the node-local scope for nodes that policies tell apart.
pub const FIRST_NODE: Identity = 0x0200_0000;

/// What tells addresses of the same labels apart, when policies ask for it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mark {
    /// The address lies in this block of a policy.
    Block(IpBlock),
    /// The pod has this number for a port that a policy names.
    Port {
        /// Name.
        name: String,
        /// Protocol.
        protocol: Protocol,
        /// Number.
        number: u16,
    },
    /// Something else that policies ask for: a label that does not count, a selection of nodes, the API server.
    Asked(String),
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block(block) => write!(f, "cidr:{block}"),
            Self::Port { name, protocol, number } => write!(f, "port:{name}={number}/{protocol}"),
            Self::Asked(text) => f.write_str(text),
        }
    }
}

/// Whom an allocated identity stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Owner {
    /// Pods of a namespace with these labels.
    Pods {
        /// Namespace.
        namespace: String,
        /// Labels of the pods.
        labels: Labels,
        /// Labels of the namespace.
        namespace_labels: Labels,
        /// What tells them from other pods with these labels; empty when nothing needs to.
        marks: BTreeSet<Mark>,
    },
    /// Addresses outside the cluster whose longest prefix, of those that policies name, is this one.
    Prefix(Prefix),
    /// Nodes with these marks, when nodes differ in that.
    Nodes(BTreeSet<Mark>),
}

impl Owner {
    fn scope(&self) -> (Identity, Identity) {
        match self {
            Self::Pods { .. } => (ids::FIRST_ALLOCATED, ids::LAST_ALLOCATED),
            Self::Prefix(_) => (ids::FIRST_LOCAL, ids::FIRST_LOCAL | 0x00ff_ffff),
            Self::Nodes(_) => (FIRST_NODE, FIRST_NODE | 0x00ff_ffff),
        }
    }

    /// The owner as sorted labels, `source:key=value`.
    pub fn labels(&self) -> Vec<String> {
        let mut all = Vec::new();
        let marks = match self {
            Self::Pods { namespace, labels, namespace_labels, marks } => {
                all.extend(labels.iter().map(|(k, v)| format!("k8s:{k}={v}")));
                all.extend(
                    (namespace_labels.iter()).map(|(k, v)| format!("k8s:io.cilium.k8s.namespace.labels.{k}={v}")),
                );
                all.push(format!("k8s:io.kubernetes.pod.namespace={namespace}"));
                Some(marks)
            }
            Self::Prefix(prefix) => {
                all.push(format!("cidr:{prefix}"));
                None
            }
            Self::Nodes(marks) => {
                all.push("reserved:remote-node".to_owned());
                Some(marks)
            }
        };
        for mark in marks.into_iter().flatten() {
            all.push(mark.to_string());
        }
        all.sort();
        all
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.labels().join(" "))
    }
}

/// No number could be given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// More owners than numbers.
    #[error("no identity left between {first} and {last} for {owner}")]
    Exhausted {
        /// First number of the scope.
        first: Identity,
        /// Last number of the scope.
        last: Identity,
        /// Who got none.
        owner: String,
    },
}

/// Gives numbers to owners and remembers them. A copy costs nothing.
#[derive(Clone, Debug, Default)]
pub struct IdentityAllocator {
    numbers: Map<Arc<Owner>, Identity>,
    owners: Map<Identity, Arc<Owner>>,
}

impl IdentityAllocator {
    /// Takes over a number from an earlier run. `false` when owner or number are taken already.
    pub fn restore(&mut self, owner: Owner, identity: Identity) -> bool {
        let (first, last) = owner.scope();
        if !(first..=last).contains(&identity)
            || self.numbers.contains_key(&owner)
            || self.owners.contains_key(&identity)
        {
            return false;
        }
        self.keep([(owner, identity)]);
        true
    }

    /// Gives every wanted owner a number; owners that are no longer wanted lose theirs.
    ///
    /// # Errors
    /// When a scope is used up; then nothing has changed.
    pub fn assign(&mut self, wanted: &BTreeSet<Owner>) -> Result<(), IdentityError> {
        let gone = self.numbers.keys().filter(|owner| !wanted.contains(&***owner));
        let gone = gone.map(|owner| Owner::clone(owner)).collect();
        self.change(wanted, &gone)
    }

    /// As [`Self::assign`], told what is wanted anew and what is no longer.
    ///
    /// # Errors
    /// When a scope is used up; then nothing has changed.
    pub fn change(&mut self, added: &BTreeSet<Owner>, removed: &BTreeSet<Owner>) -> Result<(), IdentityError> {
        let fresh = self.fresh(added.iter())?;
        for owner in removed.difference(added) {
            if let Some(number) = self.numbers.remove(owner) {
                self.owners.remove(&number);
            }
        }
        self.keep(fresh);
        Ok(())
    }

    /// Numbers for those that have none.
    fn fresh<'a>(&self, wanted: impl Iterator<Item = &'a Owner>) -> Result<Vec<(Owner, Identity)>, IdentityError> {
        let mut next: BTreeMap<Identity, Identity> = BTreeMap::new();
        let mut fresh: Vec<(Owner, Identity)> = Vec::new();
        for owner in wanted.filter(|owner| !self.numbers.contains_key(*owner)) {
            let (first, last) = owner.scope();
            let from = next.entry(first).or_insert(first);
            while self.owners.contains_key(from) {
                *from += 1;
            }
            if *from > last {
                return Err(IdentityError::Exhausted { first, last, owner: owner.to_string() });
            }
            fresh.push((owner.clone(), *from));
            *from += 1;
        }
        Ok(fresh)
    }

    fn keep(&mut self, fresh: impl IntoIterator<Item = (Owner, Identity)>) {
        for (owner, identity) in fresh {
            let owner = Arc::new(owner);
            self.numbers.insert(Arc::clone(&owner), identity);
            self.owners.insert(identity, owner);
        }
    }

    /// Number of an owner.
    pub fn number(&self, owner: &Owner) -> Option<Identity> {
        self.numbers.get(owner).copied()
    }

    /// Owner of a number.
    pub fn owner(&self, identity: Identity) -> Option<&Owner> {
        self.owners.get(&identity).map(Arc::as_ref)
    }

    /// All numbers and their owners, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Identity, &Owner)> {
        self.owners.iter().map(|(identity, owner)| (*identity, owner.as_ref()))
    }

    /// Whether one is an unchanged copy of the other. `false` says nothing.
    pub fn is_same(&self, other: &Self) -> bool {
        self.owners.is_same(&other.owners)
    }
}

/// Name of a reserved identity.
pub fn reserved_name(identity: Identity) -> Option<&'static str> {
    Some(match identity {
        ids::UNKNOWN => "unknown",
        ids::HOST => "host",
        ids::WORLD => "world",
        ids::UNMANAGED => "unmanaged",
        ids::HEALTH => "health",
        ids::INIT => "init",
        ids::REMOTE_NODE => "remote-node",
        ids::KUBE_APISERVER => "kube-apiserver",
        ids::INGRESS => "ingress",
        ids::WORLD_IPV4 => "world-ipv4",
        ids::WORLD_IPV6 => "world-ipv6",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(app: &str) -> Owner {
        Owner::Pods {
            namespace: "x".to_owned(),
            labels: Labels::from([("app".to_owned(), app.to_owned())]),
            namespace_labels: Labels::new(),
            marks: BTreeSet::new(),
        }
    }

    fn set(apps: &[&str]) -> BTreeSet<Owner> {
        apps.iter().map(|app| pods(app)).collect()
    }

    #[test]
    fn numbers_begin_at_256_in_the_order_of_labels() {
        let mut allocator = IdentityAllocator::default();
        allocator.assign(&set(&["c", "a", "b"])).unwrap();
        assert_eq!(allocator.number(&pods("a")), Some(256));
        assert_eq!(allocator.number(&pods("c")), Some(258));
    }

    #[test]
    fn what_stays_keeps_its_number_and_freed_numbers_rest_for_one_update() {
        let mut allocator = IdentityAllocator::default();
        allocator.assign(&set(&["a", "b"])).unwrap();
        allocator.assign(&set(&["b", "c"])).unwrap();
        assert_eq!(allocator.number(&pods("b")), Some(257));
        assert_eq!(allocator.number(&pods("c")), Some(258), "not 256 yet");
        allocator.assign(&set(&["b", "c", "d"])).unwrap();
        assert_eq!(allocator.number(&pods("d")), Some(256));
    }

    #[test]
    fn a_used_up_scope_is_an_error_and_changes_nothing() {
        let mut allocator = IdentityAllocator::default();
        let all: BTreeSet<Owner> = (0..65_281).map(|n| pods(&n.to_string())).collect();
        assert!(allocator.assign(&all).is_err());
        assert_eq!(allocator.iter().count(), 0);
    }

    #[test]
    fn restored_numbers_are_kept() {
        let mut allocator = IdentityAllocator::default();
        assert!(allocator.restore(pods("b"), 300));
        assert!(!allocator.restore(pods("c"), 300));
        assert!(!allocator.restore(pods("c"), 7));
        allocator.assign(&set(&["a", "b"])).unwrap();
        assert_eq!(allocator.number(&pods("b")), Some(300));
        assert_eq!(allocator.number(&pods("a")), Some(256));
    }
}
