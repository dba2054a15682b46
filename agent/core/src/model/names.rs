//! Patterns for DNS names: `toFQDNs` and DNS rules of Cilium's policies, `domainNames` of ClusterNetworkPolicy, server
//! names of TLS.
//!
//! In Cilium's patterns `*` stands for any characters of one label, and a leading `**.` for one or more whole labels.

use std::fmt;

use crate::input::{Field, Report};

/// A pattern for names, in lower case, without the last dot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NamePattern {
    /// This name.
    Exact(String),
    /// Names of this form.
    Pattern(String),
}

impl NamePattern {
    /// A pattern from its text. `None`: it could match no name.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let rest = text.strip_prefix("**.").unwrap_or(&text);
        let good = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_*".contains(&byte))
        };
        if text.len() > 255 || rest.contains("**") || !(text == "*" || rest.split('.').all(good)) {
            return None;
        }
        Some(if text.contains('*') { Self::Pattern(text) } else { Self::Exact(text) })
    }

    /// Whether it takes a name (any case, last dot or not).
    pub fn matches(&self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        match self {
            Self::Exact(own) => *own == name,
            Self::Pattern(own) if own == "*" => !name.is_empty(),
            Self::Pattern(own) => match own.strip_prefix("**.") {
                Some(tail) => {
                    let labels = tail.split('.').count();
                    let parts: Vec<&str> = name.split('.').collect();
                    parts.len().checked_sub(labels).filter(|before| *before > 0).is_some_and(|before| {
                        let (head, rest) = parts.split_at(before);
                        head.iter().all(|label| !label.is_empty()) && labels_match(tail, &rest.join("."))
                    })
                }
                None => labels_match(own, &name),
            },
        }
    }
}

fn labels_match(pattern: &str, name: &str) -> bool {
    let (mut patterns, mut labels) = (pattern.split('.'), name.split('.'));
    loop {
        match (patterns.next(), labels.next()) {
            (None, None) => return true,
            (Some(pattern), Some(label)) if label_matches(pattern.as_bytes(), label.as_bytes()) => {}
            (Some(_) | None, Some(_) | None) => return false,
        }
    }
}

/// Whether a label has the form of a pattern in which `*` is any characters, also none.
fn label_matches(pattern: &[u8], label: &[u8]) -> bool {
    let (mut at, mut pos) = (0, 0);
    // Where the last star was, and how far it reaches.
    let mut star: Option<(usize, usize)> = None;
    while pos < label.len() {
        if pattern.get(at) == Some(&b'*') {
            star = Some((at, pos));
            at += 1;
        } else if pattern.get(at) == label.get(pos) {
            (at, pos) = (at + 1, pos + 1);
        } else if let Some((place, reach)) = star {
            star = Some((place, reach + 1));
            (at, pos) = (place + 1, reach + 1);
        } else {
            return false;
        }
    }
    pattern.get(at..).is_some_and(|rest| rest.iter().all(|byte| *byte == b'*'))
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) | Self::Pattern(text) => f.write_str(text),
        }
    }
}

/// Reads `{matchName: …}` or `{matchPattern: …}`.
pub(super) fn name_selector(item: &Field<'_>, report: &mut Report) -> Option<NamePattern> {
    let mut fields = item.object(report)?;
    let name = fields.get("matchName");
    let pattern = fields.get("matchPattern");
    fields.finish(report);
    match (name, pattern) {
        (Some(field), None) => exact(&field, report),
        (None, Some(field)) => {
            let found = NamePattern::parse(field.string(report)?);
            if found.is_none() {
                field.invalid(
                    report,
                    "must be a DNS name in which `*` stands for characters of a label, with `**.` before it if wanted",
                );
            }
            found
        }
        (Some(_), Some(_)) | (None, None) => {
            let text = "needs either matchName or matchPattern".to_owned();
            item.wrong(report, crate::input::Problem::Conflict(text));
            None
        }
    }
}

fn exact(field: &Field<'_>, report: &mut Report) -> Option<NamePattern> {
    let found = NamePattern::parse(field.string(report)?);
    match found {
        Some(NamePattern::Exact(_)) => found,
        Some(NamePattern::Pattern(_)) | None => {
            field.invalid(report, "must be a DNS name; patterns go into matchPattern");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stays_in_its_label_and_two_span_labels() {
        let takes = |pattern: &str, name: &str| NamePattern::parse(pattern).unwrap().matches(name);
        assert!(takes("*.example.com", "a.example.com") && takes("*.example.com", "A.Example.com."));
        assert!(!takes("*.example.com", "a.b.example.com") && !takes("*.example.com", "example.com"));
        assert!(takes("**.example.com", "a.example.com") && takes("**.example.com", "a.b.example.com"));
        assert!(!takes("**.example.com", "example.com") && !takes("**.example.com", ".example.com"));
        assert!(
            takes("api*-v*.example.com", "api-7-v2.example.com") && !takes("api*-v.example.com", "api-v2.example.com")
        );
        assert!(takes("*", "anything.at.all") && takes("example.com", "EXAMPLE.com."));
        assert!(!takes("example.com", "xexample.com"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in ["", "a..b", "a b", "***.x", "x.**.y", &"a".repeat(64)] {
            assert!(NamePattern::parse(text).is_none(), "{text}");
        }
    }
}
