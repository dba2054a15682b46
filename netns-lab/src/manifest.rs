//! Objects as text again: what a scenario holds is given to the agents as a file.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use agent_core::model::{Node, Object};
use agent_core::yaml::{self, Value};
use agent_core::{InputErrors, Position};

/// Documents by their place, which is their object's too.
#[derive(Debug, Default)]
pub struct Documents(BTreeMap<Position, String>);

impl Documents {
    /// From parsed documents; the items of a `List` stand for themselves.
    #[must_use]
    pub fn new(documents: &[yaml::Node]) -> Self {
        let mut all = Self::default();
        for document in documents {
            all.add(document);
        }
        all
    }

    fn add(&mut self, document: &yaml::Node) {
        if document.get("kind").and_then(yaml::Node::text) == Some("List")
            && let Some(Value::List(items)) = document.get("items").map(|items| &items.value)
        {
            items.iter().for_each(|item| self.add(item));
            return;
        }
        let mut text = String::new();
        write_flow(document, &mut text);
        self.0.insert(document.position.clone(), text);
    }

    /// A file with these objects, in this order. `None`: one of them is of no document.
    #[must_use]
    pub fn file(&self, objects: &[Object]) -> Option<String> {
        let mut text = String::new();
        for object in objects {
            let position = &object.meta().position;
            // Writing to a string cannot fail.
            let _ = writeln!(text, "---\n# {position}\n{}", self.0.get(position)?);
        }
        Some(text)
    }
}

/// Reads documents of a text.
///
/// # Errors
/// Text that is not YAML.
pub fn parse(text: &str) -> Result<Vec<yaml::Node>, InputErrors> {
    yaml::parse("lab.yaml", text).map_err(|error| InputErrors(vec![error]))
}

/// Node objects that say all of these nodes, whatever was filled in.
#[must_use]
pub fn nodes(nodes: &[Node]) -> String {
    let mut text = String::new();
    for node in nodes {
        let list = |items: Vec<String>| items.join(", ");
        let prefixes = list(node.pod_cidrs.iter().map(|prefix| format!("\"{prefix}\"")).collect());
        let address = |address| format!("{{type: InternalIP, address: \"{address}\"}}");
        let addresses = list(node.addresses.iter().map(address).collect());
        let _ = writeln!(
            text,
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: {}}}\nspec: {{podCIDRs: [{prefixes}]}}\nstatus: \
             {{addresses: [{addresses}]}}",
            node.name
        );
    }
    text
}

/// A value on one line.
fn write_flow(node: &yaml::Node, out: &mut String) {
    match &node.value {
        Value::Scalar { text, plain } if *plain && is_typed(text) => {
            out.push_str(if text.is_empty() { "null" } else { text });
        }
        Value::Scalar { text, .. } => quote(text, out),
        Value::List(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                write_flow(item, out);
            }
            out.push(']');
        }
        Value::Map(entries) => {
            out.push('{');
            for (index, entry) in entries.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                quote(&entry.key, out);
                out.push_str(": ");
                write_flow(&entry.value, out);
            }
            out.push('}');
        }
    }
}

/// Text that means something else in quotes: null, booleans, numbers. It has no character that needs quotes in a flow.
fn is_typed(text: &str) -> bool {
    let word = matches!(text, "" | "~" | "null" | "Null" | "NULL")
        || matches!(text, "true" | "True" | "TRUE" | "false" | "False" | "FALSE");
    word || text.parse::<f64>().is_ok()
}

fn quote(text: &str, out: &mut String) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' | '\\' => {
                out.push('\\');
                out.push(char);
            }
            _ if char.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(char));
            }
            _ => out.push(char),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use agent_core::model::read_objects;

    use super::*;

    #[test]
    fn objects_survive_being_written_again() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: x, labels: {\"8\": \"9\", b: c-d}}\nspec:\n  \
                    nodeName: n\n  containers:\n    - {name: c, image: 'r:1', ports: [{containerPort: 80}]}\nstatus: \
                    {podIPs: [{ip: 10.1.2.3}, {ip: \"fd00::1\"}]}\n";
        let documents = parse(text).unwrap();
        let objects = read_objects(&[("lab.yaml".to_owned(), text.to_owned())]).unwrap();
        let written = Documents::new(&documents).file(&objects).unwrap();
        let again = read_objects(&[("lab.yaml".to_owned(), written)]).unwrap();
        let key = |objects: &[Object]| objects.iter().map(Object::key).collect::<Vec<_>>();
        assert_eq!(key(&objects), key(&again));
        let labels = |objects: &[Object]| objects[0].meta().labels.clone();
        assert_eq!(labels(&objects), labels(&again));
    }

    #[test]
    fn a_string_stays_a_string_and_a_number_a_number() {
        let documents = parse("{a: \"80\", b: 80, c: x:y, d: '', e: , f: 'a\"b\\c'}").unwrap();
        let mut text = String::new();
        write_flow(&documents[0], &mut text);
        assert_eq!(text, r#"{"a": "80", "b": 80, "c": "x:y", "d": "", "e": null, "f": "a\"b\\c"}"#);
    }
}
