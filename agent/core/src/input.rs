//! Strict reading of a YAML tree: every field is asked for by name, and what nobody asked for is an error.
//!
//! Errors are collected, so that one run shows all of them. Each prints as `file:line: field: what is wrong`.

use std::fmt;
use std::ops::RangeInclusive;

use crate::yaml::{Entry, Node, Position, Value};

/// One thing that is wrong with the input.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{}", one_line(.position, .field, .problem))]
pub struct InputError {
    /// Where.
    pub position: Position,
    /// Path of the field, as `spec.ingress[0].from[1].ipBlock.cidr`; empty when the document as a whole is wrong.
    pub field: String,
    /// What.
    pub problem: Problem,
}

impl InputError {
    /// An error at a place.
    pub fn new(position: Position, field: &str, problem: Problem) -> Self {
        Self { position, field: field.to_owned(), problem }
    }
}

/// Names and values may hold anything; a message is one line all the same.
fn one_line(position: &Position, field: &str, problem: &Problem) -> String {
    let colon = if field.is_empty() { "" } else { ": " };
    let text = format!("{position}: {field}{colon}{problem}");
    if !text.contains(char::is_control) {
        return text;
    }
    text.chars().fold(String::new(), |mut line, char| {
        if char.is_control() {
            line.extend(char.escape_default());
        } else {
            line.push(char);
        }
        line
    })
}

/// Everything that is wrong with the input, in the order of the files. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct InputErrors(pub Vec<InputError>);

impl fmt::Display for InputErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

/// What is wrong, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    /// The text is not YAML.
    #[error("not YAML: {0}")]
    Syntax(String),
    /// A key twice in one mapping.
    #[error("key occurs twice (first in line {line})")]
    DuplicateKey {
        /// Line of the first one.
        line: u32,
    },
    /// A field that the API does not have.
    #[error("unknown field{}", suggest(.near))]
    UnknownField {
        /// The known field that is spelt most like it.
        near: Option<String>,
    },
    /// A field that the API has and weir does not support.
    #[error("not supported: {why}")]
    Unsupported {
        /// Why, or what to use.
        why: &'static str,
    },
    /// A field that must be there.
    #[error("is required")]
    Missing,
    /// A value of another type.
    #[error("expected {expected}, found {found}")]
    Type {
        /// What the field takes.
        expected: &'static str,
        /// What is there.
        found: String,
    },
    /// A value that breaks a rule of the API.
    #[error("`{value}`: {rule}")]
    Value {
        /// What is there.
        value: String,
        /// What would be right.
        rule: String,
    },
    /// Fields that contradict each other.
    #[error("{0}")]
    Conflict(String),
    /// A kind that weir does not know.
    #[error("unknown kind `{kind}` of `{api_version}`{}", suggest(.near))]
    UnknownKind {
        /// Value of `kind`.
        kind: String,
        /// Value of `apiVersion`.
        api_version: String,
        /// A known kind that is spelt most like it, with its `apiVersion`.
        near: Option<String>,
    },
    /// An object, address or name that something else has already.
    #[error("{what} is already taken at {first}")]
    Taken {
        /// What, by name.
        what: String,
        /// Where it was first.
        first: Position,
    },
    /// A name that does not exist.
    #[error("no {what} `{name}`; there {}", list_known(.known))]
    NotFound {
        /// Kind of the thing.
        what: &'static str,
        /// The name.
        name: String,
        /// What there is.
        known: Vec<String>,
    },
    /// Something is used up.
    #[error("no {what} left")]
    Exhausted {
        /// What.
        what: String,
    },
}

fn suggest(near: &Option<String>) -> String {
    near.as_ref().map_or_else(String::new, |near| format!(", did you mean `{near}`?"))
}

fn list_known(names: &[String]) -> String {
    match names {
        [] => "are none".to_owned(),
        [one] => format!("is `{one}`"),
        [first @ .., last] if first.len() < 8 => {
            format!("are `{}` and `{last}`", first.join("`, `"))
        }
        _ => format!("are {} others", names.len()),
    }
}

/// Collects errors while reading.
#[derive(Debug, Default)]
pub struct Report {
    errors: Vec<InputError>,
}

impl Report {
    /// Remembers an error.
    pub fn add(&mut self, error: InputError) {
        self.errors.push(error);
    }

    /// Remembers errors.
    pub fn extend(&mut self, errors: impl IntoIterator<Item = InputError>) {
        self.errors.extend(errors);
    }

    /// Whether there are none so far.
    pub fn is_empty(&self) -> bool {
        self.errors.is_empty()
    }

    /// `value` if nothing was wrong.
    ///
    /// # Errors
    /// Everything that was, by file and line.
    pub fn finish<T>(self, value: T) -> Result<T, InputErrors> {
        if self.errors.is_empty() {
            return Ok(value);
        }
        let mut errors = self.errors;
        errors.sort();
        errors.dedup();
        Err(InputErrors(errors))
    }
}

/// A value and the path that leads to it.
#[derive(Clone, Debug)]
pub struct Field<'a> {
    /// The value.
    pub node: &'a Node,
    /// Path from the document's root.
    pub path: String,
}

impl<'a> Field<'a> {
    /// A document.
    pub fn root(node: &'a Node) -> Self {
        Self { node, path: String::new() }
    }

    /// Where the value is.
    pub fn position(&self) -> &Position {
        &self.node.position
    }

    /// Remembers that something is wrong here.
    pub fn wrong(&self, report: &mut Report, problem: Problem) {
        report.add(InputError::new(self.node.position.clone(), &self.path, problem));
    }

    /// Remembers that the value breaks a rule.
    pub fn invalid(&self, report: &mut Report, rule: impl Into<String>) {
        let value = self.node.text().unwrap_or("...").to_owned();
        self.wrong(report, Problem::Value { value, rule: rule.into() });
    }

    fn mistyped(&self, report: &mut Report, expected: &'static str) {
        let found = match &self.node.value {
            Value::Scalar { .. } if self.node.is_null() => "nothing".to_owned(),
            Value::Scalar { text, plain: true } => format!("`{text}`"),
            Value::Scalar { text, plain: false } => format!("the string \"{text}\""),
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "an object".to_owned(),
        };
        self.wrong(report, Problem::Type { expected, found });
    }

    /// A string. Numbers and booleans are not: they need quotes.
    pub fn string(&self, report: &mut Report) -> Option<&'a str> {
        match &self.node.value {
            Value::Scalar { text, plain } if !plain || !looks_typed(text) => Some(text),
            Value::Scalar { .. } => {
                self.mistyped(report, "a string (in quotes)");
                None
            }
            Value::List(_) | Value::Map(_) => {
                self.mistyped(report, "a string");
                None
            }
        }
    }

    /// A whole number in a range.
    pub fn integer(&self, report: &mut Report, range: RangeInclusive<i64>) -> Option<i64> {
        let number = match &self.node.value {
            Value::Scalar { text, plain: true } => text.parse::<i64>().ok(),
            Value::Scalar { plain: false, .. } | Value::List(_) | Value::Map(_) => None,
        };
        match number {
            None => {
                self.mistyped(report, "a whole number");
                None
            }
            Some(number) if range.contains(&number) => Some(number),
            Some(_) => {
                let rule = format!("must be between {} and {}", range.start(), range.end());
                self.invalid(report, rule);
                None
            }
        }
    }

    /// Whether it is a scalar without quotes that reads as a whole number.
    pub fn is_plain_number(&self) -> bool {
        match &self.node.value {
            Value::Scalar { text, plain } => *plain && text.parse::<i64>().is_ok(),
            Value::List(_) | Value::Map(_) => false,
        }
    }

    /// A port number.
    pub fn port(&self, report: &mut Report) -> Option<u16> {
        self.integer(report, 1..=65_535).and_then(|number| u16::try_from(number).ok())
    }

    /// `true` or `false`.
    pub fn boolean(&self, report: &mut Report) -> Option<bool> {
        match &self.node.value {
            Value::Scalar { text, plain: true } if text == "true" => Some(true),
            Value::Scalar { text, plain: true } if text == "false" => Some(false),
            Value::Scalar { .. } | Value::List(_) | Value::Map(_) => {
                self.mistyped(report, "true or false");
                None
            }
        }
    }

    /// The items of a list.
    pub fn list(&self, report: &mut Report) -> Vec<Field<'a>> {
        match &self.node.value {
            Value::List(items) => items
                .iter()
                .enumerate()
                .map(|(index, node)| Field { node, path: format!("{}[{index}]", self.path) })
                .collect(),
            Value::Scalar { .. } | Value::Map(_) => {
                self.mistyped(report, "a list");
                Vec::new()
            }
        }
    }

    /// The entries of an object whose keys are not fields, as labels: key, place of the key, value.
    pub fn entries(&self, report: &mut Report) -> Vec<(&'a str, &'a Position, Field<'a>)> {
        match &self.node.value {
            Value::Map(entries) => entries
                .iter()
                .map(|entry| {
                    let field = Field { node: &entry.value, path: join(&self.path, &entry.key) };
                    (entry.key.as_str(), &entry.position, field)
                })
                .collect(),
            Value::Scalar { .. } | Value::List(_) => {
                self.mistyped(report, "an object");
                Vec::new()
            }
        }
    }

    /// The fields of an object.
    pub fn object(&self, report: &mut Report) -> Option<Fields<'a>> {
        match &self.node.value {
            Value::Map(entries) => {
                Some(Fields { position: &self.node.position, path: self.path.clone(), entries, asked: Vec::new() })
            }
            Value::Scalar { .. } | Value::List(_) => {
                self.mistyped(report, "an object");
                None
            }
        }
    }
}

/// The fields of one object. Ends with [`Fields::finish`], which reports those that nobody asked for.
#[derive(Debug)]
pub struct Fields<'a> {
    position: &'a Position,
    path: String,
    entries: &'a [Entry],
    asked: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    /// Where the object starts.
    pub fn position(&self) -> &'a Position {
        self.position
    }

    /// Path of a field of this object.
    pub fn path_of(&self, name: &str) -> String {
        join(&self.path, name)
    }

    /// A field; `None` when it is absent or null.
    pub fn get(&mut self, name: &'static str) -> Option<Field<'a>> {
        self.asked.push(name);
        let entry = self.entries.iter().find(|entry| entry.key == name)?;
        if entry.value.is_null() {
            return None;
        }
        Some(Field { node: &entry.value, path: join(&self.path, name) })
    }

    /// A field that must be there.
    pub fn require(&mut self, name: &'static str, report: &mut Report) -> Option<Field<'a>> {
        let field = self.get(name);
        if field.is_none() {
            self.wrong(name, report, Problem::Missing);
        }
        field
    }

    /// Fields that exist and do not matter here.
    pub fn accept(&mut self, names: &'static [&'static str]) {
        self.asked.extend_from_slice(names);
    }

    /// A field that exists and that weir does not support: an error when it is set.
    pub fn refuse(&mut self, name: &'static str, why: &'static str, report: &mut Report) {
        if let Some(field) = self.get(name) {
            field.wrong(report, Problem::Unsupported { why });
        }
    }

    /// Remembers that something is wrong with the object, naming one of its fields.
    pub fn wrong(&self, name: &str, report: &mut Report, problem: Problem) {
        let position =
            self.entries.iter().find(|entry| entry.key == name).map_or(self.position, |entry| &entry.value.position);
        report.add(InputError::new(position.clone(), &join(&self.path, name), problem));
    }

    /// Reports the fields that nobody asked for.
    pub fn finish(self, report: &mut Report) {
        for entry in self.entries {
            if self.asked.contains(&entry.key.as_str()) {
                continue;
            }
            let near = nearest(&entry.key, self.asked.iter().copied());
            report.add(InputError::new(
                entry.position.clone(),
                &join(&self.path, &entry.key),
                Problem::UnknownField { near },
            ));
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else if name.contains(['.', '/']) {
        format!("{path}[\"{name}\"]")
    } else {
        format!("{path}.{name}")
    }
}

/// Whether a plain scalar is something other than a string to Kubernetes' YAML reader.
fn looks_typed(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    matches!(lower.as_str(), "" | "~" | "null" | "true" | "false" | "yes" | "no" | "on" | "off")
        || text.parse::<f64>().is_ok_and(|_| {
            // "inf" and "nan" are strings in YAML (it writes .inf and .nan).
            text.bytes().any(|byte| byte.is_ascii_digit())
        })
}

/// The candidate that is spelt most like a name, if any is close.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut best: Option<(usize, &str)> = None;
    for candidate in candidates {
        let distance = edit_distance(name, candidate);
        if best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, candidate));
        }
    }
    let (distance, candidate) = best?;
    (distance <= 1 + name.len().max(candidate.len()) / 4).then(|| candidate.to_owned())
}

fn edit_distance(a: &str, b: &str) -> usize {
    let a: Vec<u8> = a.bytes().map(|byte| byte.to_ascii_lowercase()).collect();
    let b: Vec<u8> = b.bytes().map(|byte| byte.to_ascii_lowercase()).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, &left) in a.iter().enumerate() {
        let mut diagonal = i;
        let mut next = vec![i + 1];
        for (j, &right) in b.iter().enumerate() {
            let above = row.get(j + 1).copied().unwrap_or(usize::MAX);
            let before = next.last().copied().unwrap_or(usize::MAX);
            let changed = diagonal + usize::from(left != right);
            next.push(changed.min(above + 1).min(before + 1));
            diagonal = above;
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    fn read(text: &str, read: impl Fn(&mut Fields<'_>, &mut Report)) -> Vec<String> {
        let documents = yaml::parse("f.yaml", text).unwrap();
        let mut report = Report::default();
        let mut fields = Field::root(&documents[0]).object(&mut report).unwrap();
        read(&mut fields, &mut report);
        fields.finish(&mut report);
        match report.finish(()) {
            Ok(()) => Vec::new(),
            Err(errors) => errors.0.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn what_nobody_asked_for_is_an_error_that_names_the_nearest_field() {
        let errors = read("ports: 1\nendport: 3\nzzz: 1\n", |fields, _| {
            fields.get("ports");
            fields.get("endPort");
        });
        assert_eq!(
            errors,
            ["f.yaml:2: endport: unknown field, did you mean `endPort`?", "f.yaml:3: zzz: unknown field"]
        );
    }

    #[test]
    fn all_errors_are_reported_in_the_order_of_lines() {
        let errors = read("a: [1]\nb: 7\nc: yes\n", |fields, report| {
            fields.get("c").unwrap().string(report);
            fields.get("b").unwrap().integer(report, 1..=5);
            fields.get("a").unwrap().boolean(report);
            fields.require("d", report);
        });
        assert_eq!(
            errors,
            [
                "f.yaml:1: d: is required",
                "f.yaml:1: a: expected true or false, found a list",
                "f.yaml:2: b: `7`: must be between 1 and 5",
                "f.yaml:3: c: expected a string (in quotes), found `yes`",
            ]
        );
    }

    #[test]
    fn a_number_without_quotes_is_no_string() {
        assert!(looks_typed("80") && looks_typed("1e3") && looks_typed("-1.5"));
        assert!(!looks_typed("http") && !looks_typed("inf") && !looks_typed("1.2.3"));
    }
}
