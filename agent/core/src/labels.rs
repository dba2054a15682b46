//! Labels and label selectors as the Kubernetes API defines them (apimachinery's labels and validation rules).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::input::{Field, Problem, Report};
use crate::yaml::Position;

/// Labels of an object: key to value.
pub type Labels = BTreeMap<String, String>;

/// A label selector: all parts must match; without parts it matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector {
    /// Labels that must have these values.
    pub match_labels: Labels,
    /// Further conditions.
    pub expressions: Vec<Expression>,
}

/// One condition of a selector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Expression {
    /// Key of the label.
    pub key: String,
    /// What to ask.
    pub operator: Operator,
    /// Values for `In` and `NotIn`; else empty.
    pub values: BTreeSet<String>,
}

/// What an expression asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operator {
    /// The label has one of the values.
    In,
    /// The label has none of the values, or is not there.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
}

impl Operator {
    /// Whether it holds for a label's value, `None` when the label is not there.
    pub fn holds(self, values: &BTreeSet<String>, value: Option<&str>) -> bool {
        match self {
            Self::In => value.is_some_and(|value| values.contains(value)),
            Self::NotIn => value.is_none_or(|value| !values.contains(value)),
            Self::Exists => value.is_some(),
            Self::DoesNotExist => value.is_none(),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts: Vec<String> = self.match_labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        parts.extend(self.expressions.iter().map(Expression::to_string));
        if parts.is_empty() { f.write_str("everything") } else { f.write_str(&parts.join(",")) }
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values = self.values.iter().map(String::as_str).collect::<Vec<_>>().join("|");
        match self.operator {
            Operator::In => write!(f, "{} in ({values})", self.key),
            Operator::NotIn => write!(f, "{} not in ({values})", self.key),
            Operator::Exists => f.write_str(&self.key),
            Operator::DoesNotExist => write!(f, "!{}", self.key),
        }
    }
}

impl Selector {
    /// Whether it matches every object.
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.expressions.is_empty()
    }

    /// Whether it matches an object with these labels.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.match_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.expressions.iter().all(|e| e.matches(labels))
    }

    /// Reads a `LabelSelector`.
    pub fn read(field: &Field<'_>, report: &mut Report) -> Self {
        let Some(mut fields) = field.object(report) else {
            return Self::default();
        };
        let match_labels = fields.get("matchLabels").map(|field| read_labels(&field, report)).unwrap_or_default();
        let expressions = fields.get("matchExpressions").map(|field| field.list(report)).unwrap_or_default();
        let expressions = expressions.iter().filter_map(|item| Expression::read(item, "", report)).collect();
        fields.finish(report);
        Self { match_labels, expressions }
    }

    /// Reads a selector whose keys may have a source before them, `k8s:app`: every requirement with its place. The
    /// source stays in the key.
    pub fn read_sourced(field: &Field<'_>, report: &mut Report) -> Vec<(Position, Expression)> {
        let Some(mut fields) = field.object(report) else {
            return Vec::new();
        };
        let mut all = Vec::new();
        if let Some(field) = fields.get("matchLabels") {
            for (key, position, value) in field.entries(report) {
                check_sourced_key(key, position, &value.path, report);
                let text = if value.node.is_null() { Some("") } else { value.string(report) };
                if let Some(text) = text {
                    check_value(text, &value, report);
                    let (operator, values) = (Operator::In, BTreeSet::from([text.to_owned()]));
                    all.push((position.clone(), Expression { key: key.to_owned(), operator, values }));
                }
            }
        }
        for item in fields.get("matchExpressions").map(|field| field.list(report)).unwrap_or_default() {
            all.extend(Expression::read(&item, ":", report).map(|found| (item.position().clone(), found)));
        }
        fields.finish(report);
        all
    }
}

impl Expression {
    /// Whether it holds for an object with these labels.
    pub fn matches(&self, labels: &Labels) -> bool {
        self.operator.holds(&self.values, labels.get(&self.key).map(String::as_str))
    }

    /// `separator`: what may stand between a source and the key; empty: keys have no source.
    fn read(field: &Field<'_>, separator: &str, report: &mut Report) -> Option<Self> {
        let mut fields = field.object(report)?;
        let key_field = fields.require("key", report);
        let operator_field = fields.require("operator", report);
        let values_field = fields.get("values");
        let key = key_field.as_ref().and_then(|field| {
            let key = field.string(report)?;
            if separator.is_empty() {
                check_key(key, field.position(), &field.path, report);
            } else {
                check_sourced_key(key, field.position(), &field.path, report);
            }
            Some(key.to_owned())
        });
        let operator = operator_field.as_ref().and_then(|field| match field.string(report)? {
            "In" => Some(Operator::In),
            "NotIn" => Some(Operator::NotIn),
            "Exists" => Some(Operator::Exists),
            "DoesNotExist" => Some(Operator::DoesNotExist),
            _ => {
                field.invalid(report, "must be In, NotIn, Exists or DoesNotExist");
                None
            }
        });
        let mut values = BTreeSet::new();
        for item in values_field.as_ref().map(|field| field.list(report)).unwrap_or_default() {
            if let Some(value) = item.string(report) {
                check_value(value, &item, report);
                values.insert(value.to_owned());
            }
        }
        match operator {
            Some(Operator::In | Operator::NotIn) if values.is_empty() => {
                if values_field.is_none_or(|field| field.list(report).is_empty()) {
                    let rule = "must have at least one value for In and NotIn";
                    fields.wrong("values", report, Problem::Conflict(rule.to_owned()));
                }
            }
            Some(Operator::Exists | Operator::DoesNotExist) if !values.is_empty() => {
                let rule = "must be empty for Exists and DoesNotExist";
                fields.wrong("values", report, Problem::Conflict(rule.to_owned()));
            }
            Some(Operator::In | Operator::NotIn | Operator::Exists | Operator::DoesNotExist) | None => {}
        }
        fields.finish(report);
        Some(Self { key: key?, operator: operator?, values })
    }
}

/// Reads labels and checks their syntax.
pub fn read_labels(field: &Field<'_>, report: &mut Report) -> Labels {
    let mut labels = Labels::new();
    for (key, position, value) in field.entries(report) {
        check_key(key, position, &value.path, report);
        if value.node.is_null() {
            // The API reads null as the empty string.
            labels.insert(key.to_owned(), String::new());
        } else if let Some(text) = value.string(report) {
            check_value(text, &value, report);
            labels.insert(key.to_owned(), text.to_owned());
        }
    }
    labels
}

/// A key with a source before it, or without.
fn check_sourced_key(key: &str, position: &Position, path: &str, report: &mut Report) {
    let bare = key.split_once(':').map_or(key, |(_, bare)| bare);
    // Labels of namespaces are written as one key behind a fixed name, so that a `/` may follow it.
    let bare = bare.strip_prefix(NAMESPACE_LABELS).unwrap_or(bare);
    check_key(bare, position, path, report);
}

/// What Cilium writes before the key of a namespace's label.
pub const NAMESPACE_LABELS: &str = "io.cilium.k8s.namespace.labels.";

fn check_key(key: &str, position: &Position, path: &str, report: &mut Report) {
    if !is_qualified_name(key) {
        report.add(crate::input::InputError::new(
            position.clone(),
            path,
            Problem::Value {
                value: key.to_owned(),
                rule: "a label's key is a name of at most 63 letters, digits, `-`, `_` and `.`, with a DNS name and `/` before it if wanted".to_owned(),
            },
        ));
    }
}

fn check_value(value: &str, field: &Field<'_>, report: &mut Report) {
    if !value.is_empty() && !is_name_part(value) {
        field.invalid(report, "a label's value has at most 63 letters, digits, `-`, `_` and `.`, and begins and ends with a letter or digit");
    }
}

/// A label key: `name` or `dns.name/name`.
pub fn is_qualified_name(text: &str) -> bool {
    match text.split_once('/') {
        None => is_name_part(text),
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_name_part(name),
    }
}

fn is_name_part(text: &str) -> bool {
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// RFC 1123 subdomain: the name of most objects.
pub fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(|part| is_dns_part(part, usize::MAX))
}

/// RFC 1123 label: the name of a namespace.
pub fn is_dns_label(text: &str) -> bool {
    is_dns_part(text, 63)
}

fn is_dns_part(text: &str, most: usize) -> bool {
    let ends = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = text.as_bytes();
    bytes.len() <= most
        && ends(bytes.first())
        && ends(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-')
}

/// IANA service name: the name of a port (at most 15 characters, at least one letter).
pub fn is_port_name(text: &str) -> bool {
    is_dns_part(text, 15) && text.bytes().any(|byte| byte.is_ascii_lowercase()) && !text.contains("--")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    fn selector(text: &str) -> Result<Selector, String> {
        let documents = yaml::parse("f", text).unwrap();
        let mut report = Report::default();
        let selector = Selector::read(&Field::root(&documents[0]), &mut report);
        report.finish(selector).map_err(|errors| errors.to_string())
    }

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn operators_mean_what_the_api_says() {
        let ask = |operator: &str, values: &str, have: &[(&str, &str)]| {
            selector(&format!("matchExpressions: [{{key: a, operator: {operator}, values: {values}}}]"))
                .unwrap()
                .matches(&labels(have))
        };
        assert!(ask("In", "[x, y]", &[("a", "y")]));
        assert!(!ask("In", "[x, y]", &[("b", "y")]));
        assert!(ask("NotIn", "[x]", &[("a", "y")]));
        assert!(ask("NotIn", "[x]", &[]), "NotIn matches without the key");
        assert!(!ask("NotIn", "[x]", &[("a", "x")]));
        assert!(ask("Exists", "[]", &[("a", "")]));
        assert!(!ask("Exists", "[]", &[]));
        assert!(ask("DoesNotExist", "[]", &[("b", "")]));
        assert!(!ask("DoesNotExist", "[]", &[("a", "")]));
    }

    #[test]
    fn all_parts_must_match_and_none_matches_all() {
        let both = selector("matchLabels: {a: x}\nmatchExpressions: [{key: b, operator: Exists}]").unwrap();
        assert!(!both.matches(&labels(&[("a", "x")])));
        assert!(both.matches(&labels(&[("a", "x"), ("b", "")])));
        assert!(selector("{}").unwrap().matches(&Labels::new()));
    }

    #[test]
    fn wrong_selectors_say_what_would_be_right() {
        let cases = [
            ("matchLabel: {a: b}", "did you mean `matchLabels`?"),
            ("matchExpressions: [{key: a, operator: in, values: [x]}]", "must be In, NotIn"),
            ("matchExpressions: [{key: a, operator: In}]", "at least one value"),
            ("matchExpressions: [{key: a, operator: Exists, values: [x]}]", "must be empty"),
            ("matchExpressions: [{operator: Exists}]", "key: is required"),
            ("matchLabels: {a: 1}", "a string (in quotes)"),
            ("matchLabels: {\"a b\": x}", "a label's key"),
            ("matchLabels: {a: \"x y\"}", "a label's value"),
        ];
        for (text, expected) in cases {
            let error = selector(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn port_names_follow_iana() {
        assert!(is_port_name("http") && is_port_name("serve-80-tcp"));
        for name in ["80", "Http", "-a", "a--b", "sixteen-letters-", "averyveryverylongname"] {
            assert!(!is_port_name(name), "{name}");
        }
    }
}
