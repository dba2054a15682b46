//! YAML text → a tree in which every value knows its place.
//!
//! Follows YAML 1.2 (what the parser implements) with the readings that Kubernetes' own tools have where those are
//! stricter: a key may occur once in a mapping. Anchors and aliases work; merge keys do not exist in YAML 1.2.
//! Invariant: hostile text gives an error, never a deep recursion or an explosion of aliases.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle};

use crate::input::{InputError, Problem};

/// Deepest nesting that is read.
const MAX_DEPTH: usize = 100;
/// Most values in one file, aliases expanded.
const MAX_VALUES: usize = 5_000_000;
const TOO_MANY: &str = "more than 5 million values in one file";

/// A place in an input file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Name of the file as the caller gave it.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl Position {
    fn at(file: &Arc<str>, marker: Marker) -> Self {
        Self {
            file: Arc::clone(file),
            line: u32::try_from(marker.line()).unwrap_or(u32::MAX),
            column: u32::try_from(marker.col().saturating_add(1)).unwrap_or(u32::MAX),
        }
    }

    /// The place of something that no file contains.
    pub fn built_in(what: &str) -> Self {
        Self { file: Arc::from(format!("({what})")), line: 0, column: 0 }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 { write!(f, "{}", self.file) } else { write!(f, "{}:{}", self.file, self.line) }
    }
}

/// A value and its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Where the value starts.
    pub position: Position,
    /// The value.
    pub value: Value,
}

/// A YAML value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A scalar. `plain` is false when it was quoted or a block: then it is a string whatever it looks like.
    Scalar {
        /// The text.
        text: String,
        /// Whether the text was written without quotes.
        plain: bool,
    },
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the file. Keys are strings.
    Map(Vec<Entry>),
}

/// One entry of a mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where the key stands.
    pub position: Position,
    /// The key.
    pub key: String,
    /// The value.
    pub value: Node,
}

impl Node {
    /// Whether the value is null or not there.
    pub fn is_null(&self) -> bool {
        match &self.value {
            Value::Scalar { text, plain } => *plain && matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"),
            Value::List(_) | Value::Map(_) => false,
        }
    }

    /// The value under a key of a mapping.
    pub fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Map(entries) => entries.iter().find(|e| e.key == key).map(|e| &e.value),
            Value::Scalar { .. } | Value::List(_) => None,
        }
    }

    /// The text of a scalar.
    pub fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar { text, .. } => Some(text),
            Value::List(_) | Value::Map(_) => None,
        }
    }

    fn size(&self) -> usize {
        match &self.value {
            Value::Scalar { .. } => 1,
            Value::List(items) => items.iter().map(Self::size).sum::<usize>() + 1,
            Value::Map(entries) => entries.iter().map(|e| e.value.size()).sum::<usize>() + 1,
        }
    }
}

/// Reads every document of a file; empty documents are left out.
///
/// # Errors
/// The first thing that is not YAML, or a key that occurs twice.
pub fn parse(file: &str, text: &str) -> Result<Vec<Node>, InputError> {
    let file: Arc<str> = Arc::from(file);
    let mut builder = Builder { stack: Vec::new(), anchors: BTreeMap::new(), documents: Vec::new(), values: 0 };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|error| {
            InputError::new(Position::at(&file, *error.marker()), "", Problem::Syntax(error.info().to_owned()))
        })?;
        builder.event(event, Position::at(&file, span.start))?;
    }
    Ok(builder.documents)
}

enum Open {
    List(Vec<Node>),
    /// `lines`: where each key stands.
    Map {
        entries: Vec<Entry>,
        key: Option<(String, Position)>,
        lines: BTreeMap<String, u32>,
    },
}

struct Frame {
    position: Position,
    anchor: usize,
    open: Open,
}

struct Builder {
    stack: Vec<Frame>,
    /// Named values, with their sizes.
    anchors: BTreeMap<usize, (Node, usize)>,
    documents: Vec<Node>,
    values: usize,
}

impl Builder {
    fn event(&mut self, event: Event<'_>, position: Position) -> Result<(), InputError> {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {
                Ok(())
            }
            Event::Alias(anchor) => {
                let Some((node, size)) = self.anchors.get(&anchor) else {
                    return Err(syntax(position, "an alias inside the value that it names"));
                };
                if self.values.saturating_add(*size) > MAX_VALUES {
                    return Err(syntax(position, TOO_MANY));
                }
                let (node, size) = (Node { position, value: node.value.clone() }, *size);
                self.add(node, 0, size)
            }
            Event::Scalar(text, style, anchor, tag) => {
                let string = tag.is_some_and(|tag| tag.suffix == "str");
                let value = Value::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain && !string };
                self.add(Node { position, value }, anchor, 1)
            }
            Event::SequenceStart(anchor, _) => self.open(position, anchor, Open::List(Vec::new())),
            Event::MappingStart(anchor, _) => {
                self.open(position, anchor, Open::Map { entries: Vec::new(), key: None, lines: BTreeMap::new() })
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(frame) = self.stack.pop() else {
                    return Err(syntax(position, "an end without a start"));
                };
                let value = match frame.open {
                    Open::List(items) => Value::List(items),
                    Open::Map { entries, .. } => Value::Map(entries),
                };
                let node = Node { position: frame.position, value };
                self.add(node, frame.anchor, 1)
            }
        }
    }

    fn open(&mut self, position: Position, anchor: usize, open: Open) -> Result<(), InputError> {
        if self.stack.len() >= MAX_DEPTH {
            return Err(syntax(position, "nested more than 100 levels deep"));
        }
        self.stack.push(Frame { position, anchor, open });
        Ok(())
    }

    fn add(&mut self, node: Node, anchor: usize, size: usize) -> Result<(), InputError> {
        self.values = self.values.saturating_add(size);
        if self.values > MAX_VALUES {
            return Err(syntax(node.position, TOO_MANY));
        }
        if anchor != 0 {
            let size = node.size();
            self.anchors.insert(anchor, (node.clone(), size));
        }
        match self.stack.last_mut().map(|frame| &mut frame.open) {
            None => {
                if !node.is_null() {
                    self.documents.push(node);
                }
            }
            Some(Open::List(items)) => items.push(node),
            Some(Open::Map { entries, key, lines }) => match key.take() {
                None => match node.value {
                    Value::Scalar { text, .. } => {
                        if let Some(&line) = lines.get(&text) {
                            return Err(InputError::new(node.position, &text, Problem::DuplicateKey { line }));
                        }
                        lines.insert(text.clone(), node.position.line);
                        *key = Some((text, node.position));
                    }
                    Value::List(_) | Value::Map(_) => {
                        return Err(syntax(node.position, "a key that is not a string"));
                    }
                },
                Some((name, position)) => entries.push(Entry { position, key: name, value: node }),
            },
        }
        Ok(())
    }
}

fn syntax(position: Position, what: &str) -> InputError {
    InputError::new(position, "", Problem::Syntax(what.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_know_their_lines() {
        let documents = parse("f.yaml", "---\na: 1\n---\n# nothing\n---\nb:\n  - c\n").unwrap();
        assert_eq!(documents.len(), 2);
        let b = documents[1].get("b").unwrap();
        let Value::List(items) = &b.value else { panic!("a list") };
        assert_eq!(items[0].position.to_string(), "f.yaml:7");
    }

    #[test]
    fn a_key_that_occurs_twice_is_refused_with_both_lines() {
        let error = parse("f.yaml", "a: 1\nb: 2\na: 3\n").unwrap_err();
        assert_eq!(error.to_string(), "f.yaml:3: a: key occurs twice (first in line 1)");
    }

    #[test]
    fn deep_nesting_is_refused() {
        assert!(parse("f", &"[".repeat(5_000)).is_err());
        assert!(parse("f", &"- ".repeat(5_000)).is_err());
    }

    #[test]
    fn aliases_are_expanded_and_bounded() {
        let documents = parse("f", "a: &x {k: v}\nb: *x\n").unwrap();
        assert_eq!(documents[0].get("b").unwrap().get("k").unwrap().text(), Some("v"));
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..12 {
            let of = format!("*a{}", level - 1);
            bomb += &format!("a{level}: &a{level} [{}]\n", vec![of; 10].join(", "));
        }
        assert!(parse("f", &bomb).is_err());
    }

    #[test]
    fn quoted_numbers_are_strings() {
        let documents = parse("f", "a: 80\nb: \"80\"\nc: null\nd: \"null\"\n").unwrap();
        let plain = |key: &str| match &documents[0].get(key).unwrap().value {
            Value::Scalar { plain, .. } => *plain,
            Value::List(_) | Value::Map(_) => panic!("a scalar"),
        };
        assert!(plain("a") && !plain("b"));
        assert!(documents[0].get("c").unwrap().is_null());
        assert!(!documents[0].get("d").unwrap().is_null());
    }
}
