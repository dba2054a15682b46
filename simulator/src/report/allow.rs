//! The list of changes that are meant to happen (`weir-sim diff --allow FILE`).
//!
//! One change in each line, four words: `allow`, `deny`, `redirect` or `audit` (what the verdict becomes), sender,
//! receiver, port. `*` in a name stands for any characters, `*` as the port for every port. `#` begins a comment. Nothing
//! else is accepted.

use crate::cluster::{Protocol, Verdict};
use crate::commands::parse_port;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Line in the file, from 1.
    pub line: usize,
    /// Its words, as they stand there.
    pub text: String,
    becomes: Verdict,
    from: String,
    to: String,
    port: Option<Protocol>,
}

/// Why the list cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllowError {
    /// Not four words.
    #[error("{file}:{line}: expected `allow|deny|redirect|audit FROM TO PORT`, found {words} words")]
    Words {
        /// File.
        file: String,
        /// Line.
        line: usize,
        /// How many words.
        words: usize,
    },
    /// First word.
    #[error("{file}:{line}: `{found}`: must be allow, deny, redirect or audit (what the verdict becomes)")]
    Verdict {
        /// File.
        file: String,
        /// Line.
        line: usize,
        /// What is there.
        found: String,
    },
    /// Last word.
    #[error("{file}:{line}: port `{found}`: {rule}, or `*`")]
    Port {
        /// File.
        file: String,
        /// Line.
        line: usize,
        /// What is there.
        found: String,
        /// What would be right.
        rule: String,
    },
}

/// Reads a list. All errors, not only the first.
///
/// # Errors
/// See [`AllowError`].
pub fn read(file: &str, text: &str) -> Result<Vec<Expected>, Vec<AllowError>> {
    let (mut lines, mut errors) = (Vec::new(), Vec::new());
    for (line, text) in (1..).zip(text.lines()) {
        let text = text.split_once('#').map_or(text, |(text, _)| text).trim();
        if text.is_empty() {
            continue;
        }
        match read_line(file, line, text) {
            Ok(expected) => lines.push(expected),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(lines) } else { Err(errors) }
}

fn read_line(file: &str, line: usize, text: &str) -> Result<Expected, AllowError> {
    let file = || file.to_owned();
    let words: Vec<&str> = text.split_whitespace().collect();
    let [verdict, from, to, port] = words[..] else {
        return Err(AllowError::Words { file: file(), line, words: words.len() });
    };
    let Some(becomes) = Verdict::from_name(verdict) else {
        return Err(AllowError::Verdict { file: file(), line, found: verdict.to_owned() });
    };
    let wrong = |rule| AllowError::Port { file: file(), line, found: port.to_owned(), rule };
    let port = if port == "*" { None } else { Some(parse_port(port).map_err(wrong)?) };
    Ok(Expected { line, text: words.join(" "), becomes, from: from.to_owned(), to: to.to_owned(), port })
}

impl Expected {
    /// Whether it lists a change.
    pub fn lists(&self, becomes: Verdict, from: &str, to: &str, port: Protocol) -> bool {
        self.becomes == becomes
            && self.port.is_none_or(|own| own == port)
            && matches(&self.from, from)
            && matches(&self.to, to)
    }
}

/// Whether a name is as a pattern says: `*` stands for any characters.
pub fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, tail)) => name.strip_prefix(head).is_some_and(|rest| {
            let mut ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
            ends.any(|at| rest.get(at..).is_some_and(|rest| matches(tail, rest)))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_any_characters() {
        for (pattern, name, expected) in [
            ("a/b", "a/b", true),
            ("a/b", "a/bc", false),
            ("a/*", "a/b-0", true),
            ("*", "world", true),
            ("*/web-*", "shop/web-0", true),
            ("*/web-*", "shop/api-0", false),
            ("a*c", "abcbc", true),
            ("a*c", "abcb", false),
            ("**", "ü", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_line_lists_only_its_own_direction_of_change_and_port() {
        let lines = read("f", "# why\n\ndeny  a/* world 80/tcp # closed\nallow * * *\n").unwrap();
        assert_eq!(lines.len(), 2);
        assert_eq!((lines[0].line, lines[0].text.as_str()), (3, "deny a/* world 80/tcp"));
        assert!(lines[0].lists(Verdict::Deny, "a/b", "world", Protocol::Tcp(80)));
        assert!(!lines[0].lists(Verdict::Allow, "a/b", "world", Protocol::Tcp(80)));
        assert!(!lines[0].lists(Verdict::Deny, "a/b", "world", Protocol::Udp(80)));
        assert!(!lines[0].lists(Verdict::Redirect, "a/b", "world", Protocol::Tcp(80)));
        assert!(lines[1].lists(Verdict::Allow, "a/b", "c/d", Protocol::Icmp(None)));
    }

    #[test]
    fn every_wrong_line_is_reported_with_its_number() {
        let errors = read("f", "deny a b\nopen a b 80\nallow a b 0/TCP\nallow a b 80/TCP\n").unwrap_err();
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(texts[0], "f:1: expected `allow|deny|redirect|audit FROM TO PORT`, found 3 words");
        assert_eq!(texts[1], "f:2: `open`: must be allow, deny, redirect or audit (what the verdict becomes)");
        assert!(texts[2].starts_with("f:3: port `0/TCP`: must be PORT/PROTOCOL"), "{}", texts[2]);
        assert_eq!(texts.len(), 3);
    }
}
