//! Objects from files, as people have them: several documents, `List` objects, whole dumps of clusters
//! (`kubectl get … -o yaml`).
//!
//! A dump has kinds that do not matter to a network and that nobody can list. They are passed over and counted, never in
//! silence. What is not passed over: a kind that is spelt almost like a known one, in a file that no API server has
//! accepted; kinds that say who may reach whom (`…NetworkPolicy`), and unknown kinds of the API groups that do. Those are
//! errors, because an answer without them would be wrong.

use std::collections::BTreeMap;
use std::fmt;

use agent_core::input::{InputError, Problem, Report};
use agent_core::model::{Object, ObjectKey, read_documents};
use agent_core::yaml::{self, Node, Position, Value};

/// API groups of policies.
const POLICY_GROUPS: [&str; 3] = ["networking.k8s.io", "cilium.io", "policy.networking.k8s.io"];

/// Everything that was read.
#[derive(Debug, Default)]
pub struct Manifests {
    /// Objects without errors, in order.
    pub objects: Vec<Object>,
    /// What is wrong with the others.
    pub errors: Vec<InputError>,
    /// Whether a file is not YAML at all: then nothing of it was read.
    pub broken: bool,
    /// Kinds that were passed over.
    pub passed: PassedOver,
    /// The documents of the objects, items of a `List` apart; empty unless they were asked for.
    pub documents: Vec<Node>,
    keeps: bool,
}

/// Kinds that were passed over, with their `apiVersion`, and how many objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassedOver(pub BTreeMap<(String, String), usize>);

impl PassedOver {
    /// Counts those of another reading too.
    pub fn add(&mut self, other: Self) {
        for (kind, count) in other.0 {
            *self.0.entry(kind).or_default() += count;
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total: usize = self.0.values().sum();
        let plural = if total == 1 { "" } else { "s" };
        write!(f, "{total} object{plural} of kinds that have no part in who reaches whom passed over: ")?;
        for (index, ((kind, version), count)) in self.0.iter().enumerate() {
            write!(f, "{}{count} {kind} of {version}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// Reads files (name, text).
pub fn read(files: &[(String, String)]) -> Manifests {
    let mut read = Manifests::default();
    for (name, text) in files {
        match yaml::parse(name, text) {
            Ok(documents) => documents.into_iter().for_each(|document| read.document(document, "")),
            Err(error) => {
                read.broken = true;
                read.errors.push(error);
            }
        }
    }
    read.finish()
}

/// Reads documents that are parsed already, and keeps those of objects.
pub fn of_documents(documents: Vec<Node>) -> Manifests {
    let mut read = Manifests { keeps: true, ..Manifests::default() };
    documents.into_iter().for_each(|document| read.document(document, ""));
    read.finish()
}

impl Manifests {
    /// An object that is there twice is an error.
    fn finish(mut self) -> Self {
        let mut seen: BTreeMap<ObjectKey, Position> = BTreeMap::new();
        let mut twice = Vec::new();
        for object in &self.objects {
            let position = object.meta().position.clone();
            if let Some(first) = seen.get(&object.key()) {
                let problem = Problem::Taken { what: object.key().to_string(), first: first.clone() };
                twice.push(InputError::new(position, "metadata.name", problem));
            } else {
                seen.insert(object.key(), position);
            }
        }
        self.errors.extend(twice);
        self.errors.sort();
        self.errors.dedup();
        self
    }

    fn document(&mut self, document: Node, path: &str) {
        if is_list(&document) {
            let Value::Map(entries) = document.value else { return };
            for entry in entries {
                if let ("items", Value::List(items)) = (entry.key.as_str(), entry.value.value) {
                    for (index, item) in items.into_iter().enumerate() {
                        self.document(item, &format!("{path}items[{index}]."));
                    }
                }
            }
            return;
        }
        let mut report = Report::default();
        let objects = read_documents(std::slice::from_ref(&document), &mut report);
        let Err(errors) = report.finish(()) else {
            self.objects.extend(objects);
            if self.keeps {
                self.documents.push(document);
            }
            return;
        };
        for error in errors.0 {
            if let Problem::UnknownKind { kind, api_version, near } = &error.problem
                && may_pass(&document, kind, api_version, near.is_some())
            {
                *self.passed.0.entry((kind.clone(), api_version.clone())).or_default() += 1;
                continue;
            }
            let field = format!("{path}{}", error.field);
            let field = field.strip_suffix('.').unwrap_or(&field).to_owned();
            self.errors.push(InputError { field, ..error });
        }
    }
}

/// A `v1` List with nothing unusual in it; others are left to the reader, which says what is wrong.
fn is_list(document: &Node) -> bool {
    let text = |key: &str| document.get(key).and_then(Node::text);
    let Value::Map(entries) = &document.value else { return false };
    text("apiVersion") == Some("v1")
        && text("kind") == Some("List")
        && entries.iter().all(|entry| matches!(entry.key.as_str(), "apiVersion" | "kind" | "metadata" | "items"))
        && document.get("items").is_none_or(|items| matches!(items.value, Value::List(_)))
}

/// Whether an unknown kind does not matter.
fn may_pass(document: &Node, kind: &str, api_version: &str, near: bool) -> bool {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    // Only an API server gives out a uid: then the kind exists.
    let accepted = document.get("metadata").and_then(|meta| meta.get("uid")).is_some_and(|uid| !uid.is_null());
    let of_policies = POLICY_GROUPS.contains(&group);
    !kind.ends_with("NetworkPolicy") && (accepted || !(near || of_policies))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_one(text: &str) -> Manifests {
        read(&[("f.yaml".to_owned(), text.to_owned())])
    }

    fn object(version: &str, kind: &str, uid: &str) -> String {
        format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a{uid}}}\nspec: {{any: thing}}\n")
    }

    #[test]
    fn kinds_without_a_part_are_counted() {
        let uid = ", uid: 6e1d, resourceVersion: \"7\"";
        let texts = [
            object("cert-manager.io/v1", "Certificate", ""),
            object("cert-manager.io/v1", "Certificate", ""),
            object("apiregistration.k8s.io/v1", "APIService", uid),
            object("cilium.io/v2", "CiliumEndpoint", uid),
        ];
        let read = read_one(&texts.join("---\n"));
        assert!(read.errors.is_empty() && read.objects.is_empty(), "{:?}", read.errors);
        assert_eq!(
            read.passed.to_string(),
            "4 objects of kinds that have no part in who reaches whom passed over: 1 APIService of apiregistration.k8s.io/v1, \
             2 Certificate of cert-manager.io/v1, 1 CiliumEndpoint of cilium.io/v2"
        );
    }

    #[test]
    fn policies_and_misspelt_kinds_are_never_passed_over() {
        let uid = ", uid: 6e1d";
        for text in [
            object("networking.k8s.io/v1", "NetworkPolice", ""),
            object("networking.k8s.io/v1", "Egress", ""),
            object("cilium.io/v2", "CiliumLocalRedirectPolicy", ""),
            object("projectcalico.org/v3", "GlobalNetworkPolicy", uid),
            object("policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy", uid),
            object("extensions/v1beta1", "NetworkPolicy", uid),
            object("v1", "Pood", ""),
        ] {
            let read = read_one(&text);
            assert_eq!((read.errors.len(), read.passed.is_empty()), (1, true), "{text}");
            assert!(read.errors[0].to_string().starts_with("f.yaml:2: kind: unknown kind"), "{}", read.errors[0]);
        }
    }

    #[test]
    fn errors_in_lists_name_the_item() {
        let text = "apiVersion: v1\nkind: List\nmetadata: {resourceVersion: \"\"}\nitems:\n- apiVersion: v1\n  kind: Namespace\n  \
                    metadata: {name: x}\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a}\n  spec: {nodeNam: x, containers: []}\n";
        let read = read_one(text);
        assert_eq!(read.objects.len(), 1, "the other item is whole");
        assert!(
            read.errors[0].to_string().starts_with("f.yaml:11: items[1].spec.nodeNam: unknown field"),
            "{:?}",
            read.errors
        );
    }

    #[test]
    fn an_object_that_occurs_twice_is_an_error_with_both_places() {
        let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n";
        let read = read_one(&format!("{text}---\n{text}"));
        assert_eq!(read.errors[0].to_string(), "f.yaml:5: metadata.name: Namespace `x` is already taken at f.yaml:1");
    }
}
