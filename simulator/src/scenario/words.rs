//! The words of one line of a scenario's own small languages.

use std::fmt::Display;
use std::net::IpAddr;
use std::str::FromStr;

use crate::packet;

/// What is wrong with a line, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{line}`: {reason}")]
pub struct TextError {
    /// The line.
    pub line: String,
    /// In words.
    pub reason: String,
}

pub(super) type Result<T> = std::result::Result<T, TextError>;

pub(super) struct Words<'a> {
    line: &'a str,
    rest: std::str::SplitWhitespace<'a>,
}

impl<'a> Words<'a> {
    pub(super) fn new(line: &'a str) -> Self {
        Self { line, rest: line.split_whitespace() }
    }

    pub(super) fn error(&self, reason: impl Display) -> TextError {
        TextError { line: self.line.to_owned(), reason: reason.to_string() }
    }

    pub(super) fn next(&mut self) -> Option<&'a str> {
        self.rest.next()
    }

    pub(super) fn word(&mut self, what: &str) -> Result<&'a str> {
        self.rest.next().ok_or_else(|| self.error(format_args!("{what} is missing")))
    }

    pub(super) fn value<T: FromStr>(&mut self, what: &str) -> Result<T> {
        let word = self.word(what)?;
        word.parse().map_err(|_| self.error(format_args!("`{word}` is not {what}")))
    }

    pub(super) fn expect(&mut self, wanted: &str) -> Result<()> {
        match self.next() {
            Some(word) if word == wanted => Ok(()),
            other => Err(self.error(format_args!("`{wanted}` expected, not `{}`", other.unwrap_or("")))),
        }
    }

    pub(super) fn address(&mut self) -> Result<IpAddr> {
        self.value("an address")
    }

    pub(super) fn protocol(&mut self) -> Result<u8> {
        let word = self.word("a protocol")?;
        packet::protocol_number(word).ok_or_else(|| self.error(format_args!("`{word}` is not a protocol")))
    }

    pub(super) fn identity(&mut self) -> Result<u32> {
        let word = self.word("an identity")?;
        identity(word).ok_or_else(|| self.error(format_args!("`{word}` is not an identity")))
    }

    pub(super) fn unknown(&self, word: &str, known: &str) -> TextError {
        self.error(format_args!("`{word}` is not known here; known: {known}"))
    }

    pub(super) fn end(&mut self) -> Result<()> {
        match self.next() {
            None => Ok(()),
            Some(word) => Err(self.error(format_args!("`{word}` is too much"))),
        }
    }
}

/// Reserved identities by name.
const IDENTITIES: &[(u32, &str)] = &[
    (datapath_abi::ids::HOST, "host"),
    (datapath_abi::ids::WORLD, "world"),
    (datapath_abi::ids::HEALTH, "health"),
    (datapath_abi::ids::REMOTE_NODE, "remote-node"),
    (datapath_abi::ids::WORLD_IPV4, "world-ipv4"),
    (datapath_abi::ids::WORLD_IPV6, "world-ipv6"),
];

pub(super) fn identity(word: &str) -> Option<u32> {
    let named = IDENTITIES.iter().find(|(_, name)| *name == word).map(|(number, _)| *number);
    named.or_else(|| word.parse().ok())
}

pub(super) fn identity_text(number: u32) -> String {
    let named = IDENTITIES.iter().find(|(known, _)| *known == number);
    named.map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned())
}

/// A time of `N` followed by `ns`, `ms`, `s`, `m` or `h`, in nanoseconds.
pub(super) fn duration_ns(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let unit: u64 = match unit {
        "ns" => 1,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

/// A signed number of ticks: `30s` or `7t`, `-1s`.
pub(super) fn ticks(text: &str, per_second: u32) -> Option<i64> {
    let (sign, rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    let number = match rest.strip_suffix('s') {
        Some(seconds) => seconds.parse::<i64>().ok()?.checked_mul(i64::from(per_second))?,
        None => rest.strip_suffix('t')?.parse().ok()?,
    };
    number.checked_mul(sign)
}

/// As [`ticks`] reads it.
pub(super) fn ticks_text(ticks: i64, per_second: u32) -> String {
    let per_second = i64::from(per_second.max(1));
    if ticks % per_second == 0 { format!("{}s", ticks / per_second) } else { format!("{ticks}t") }
}

const FLAGS: [(u8, &str); 8] =
    [(2, "syn"), (16, "ack"), (1, "fin"), (4, "rst"), (8, "psh"), (32, "urg"), (64, "ece"), (128, "cwr")];

/// TCP flags as `syn,ack`; `none` for none.
pub(super) fn tcp_flags(text: &str) -> Option<u8> {
    if text == "none" {
        return Some(0);
    }
    text.split(',')
        .try_fold(0, |flags, name| FLAGS.iter().find(|(_, known)| *known == name).map(|(bit, _)| flags | *bit))
}

/// As [`tcp_flags`] reads it.
pub(super) fn tcp_flags_text(flags: u8) -> String {
    let names: Vec<&str> = FLAGS.iter().filter(|(bit, _)| flags & bit != 0).map(|(_, name)| *name).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(",") }
}
