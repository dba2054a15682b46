//! Words of the language: names of numbers.

/// Protocols by name.
const PROTOCOLS: &[(u8, &str)] =
    &[(1, "icmp"), (6, "tcp"), (17, "udp"), (58, "icmp6"), (132, "sctp"), (44, "frag"), (47, "gre"), (59, "none")];

/// Flags of TCP by name.
pub(super) const TCP_FLAGS: [(u8, &str); 8] =
    [(2, "syn"), (16, "ack"), (1, "fin"), (4, "rst"), (8, "psh"), (32, "urg"), (64, "ece"), (128, "cwr")];

/// Codes of ICMP "unreachable".
pub(super) const UNREACHABLE: [(u8, &str); 6] =
    [(0, "net"), (1, "host"), (2, "protocol"), (3, "port"), (4, "frag-needed"), (13, "prohibited")];

/// Codes of ICMPv6 "unreachable".
pub(super) const UNREACHABLE6: [(u8, &str); 4] = [(0, "no-route"), (1, "prohibited"), (3, "address"), (4, "port")];

/// Chunks of SCTP, written as a chunk header and nothing else.
pub(super) const CHUNKS: [(u8, &str); 7] =
    [(0, "data"), (1, "init"), (2, "init-ack"), (6, "abort"), (7, "shutdown"), (10, "cookie-echo"), (11, "cookie-ack")];

/// Name of an IP protocol, where it has one here.
#[must_use]
pub fn protocol_name(number: u8) -> Option<&'static str> {
    name(PROTOCOLS, number)
}

/// Number of an IP protocol: a name or a number.
#[must_use]
pub fn protocol_number(word: &str) -> Option<u8> {
    number(PROTOCOLS, word).or_else(|| word.parse().ok())
}

pub(super) fn name(table: &[(u8, &'static str)], number: u8) -> Option<&'static str> {
    table.iter().find(|(known, _)| *known == number).map(|(_, name)| *name)
}

pub(super) fn number(table: &[(u8, &'static str)], word: &str) -> Option<u8> {
    table.iter().find(|(_, name)| *name == word).map(|(number, _)| *number)
}
