//! Desired state as text, one entry a line, for tests and people.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath_abi::policy::{self, FIXED_BITS};
use datapath_abi::{IpEntry, IpFlags, MapId, PolicyEntry, PolicyFlags, PolicyKey};
use zerocopy::FromBytes;

use super::Desired;
use crate::policy::{Level, RuleTable};

/// Desired state with the rules' names. Prints as text.
#[derive(Clone, Copy, Debug)]
pub struct Dump<'a> {
    desired: &'a Desired,
    rules: &'a RuleTable,
}

impl Desired {
    /// As text, with the names of rules.
    pub fn dump<'a>(&'a self, rules: &'a RuleTable) -> Dump<'a> {
        Dump { desired: self, rules }
    }
}

impl fmt::Display for Dump<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for map in super::OWNED {
            for (key, value) in self.desired.entries(map) {
                write!(f, "{} ", map.name())?;
                if map == MapId::Policy {
                    policy_line(f, key, value, self.rules)?;
                } else {
                    address_line(f, key, value)?;
                }
            }
        }
        Ok(())
    }
}

/// An address of the maps' keys.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::V4(Ipv4Addr::from(bytes)));
    }
    let bytes = <[u8; 16]>::try_from(bytes).ok()?;
    Some(IpAddr::V6(Ipv6Addr::from(bytes)))
}

fn address_line(f: &mut fmt::Formatter<'_>, key: &[u8], value: &[u8]) -> fmt::Result {
    match (address(key), key.split_at_checked(4)) {
        (Some(address), _) => write!(f, "{address}")?,
        (None, Some((length, prefix))) => {
            let length = <[u8; 4]>::try_from(length).map_or(0, u32::from_ne_bytes);
            match address(prefix) {
                Some(address) => write!(f, "{address}/{length}")?,
                None => write!(f, "{key:02x?}")?,
            }
        }
        (None, None) => write!(f, "{key:02x?}")?,
    }
    let Ok(entry) = IpEntry::read_from_bytes(value) else {
        return writeln!(f, " {value:02x?}");
    };
    write!(f, " identity {}", entry.identity)?;
    let node = entry.node.octets();
    let node: &[u8] = match node.split_at_checked(4) {
        Some((first, _)) if !entry.flags.has(IpFlags::UNDERLAY6) => first,
        Some(_) | None => &node,
    };
    if node.iter().any(|byte| *byte != 0)
        && let Some(node) = address(node)
    {
        write!(f, " at {node}")?;
    }
    if entry.endpoint != 0 {
        write!(f, " endpoint {} ifindex {}", entry.endpoint, entry.ifindex)?;
    }
    for (flag, name) in [(IpFlags::LOCAL_HOST, "local-host"), (IpFlags::NODE, "node"), (IpFlags::POD, "pod")] {
        if entry.flags.has(flag) {
            write!(f, " {name}")?;
        }
    }
    writeln!(f)
}

fn policy_line(f: &mut fmt::Formatter<'_>, key: &[u8], value: &[u8], rules: &RuleTable) -> fmt::Result {
    let (Ok(key), Ok(entry)) = (PolicyKey::read_from_bytes(key), PolicyEntry::read_from_bytes(value)) else {
        return writeln!(f, "{key:02x?} {value:02x?}");
    };
    let direction = if key.direction == policy::EGRESS { "egress" } else { "ingress" };
    write!(f, "endpoint {} {direction} identity ", key.endpoint)?;
    match key.identity {
        0 => f.write_str("any")?,
        identity => write!(f, "{identity}")?,
    }
    let bits = key.prefix_len.saturating_sub(FIXED_BITS);
    if bits > 0 {
        write!(f, " protocol {}", key.protocol)?;
    }
    if bits > 8 {
        write!(f, " port {}", u16::from_be_bytes(key.port))?;
    }
    if (9..24).contains(&bits) {
        write!(f, "/{}", bits - 8)?;
    }
    let kinds = [(PolicyFlags::DENY, "deny"), (PolicyFlags::REDIRECT, "redirect"), (PolicyFlags::AUDIT, "audit")];
    let verdict = kinds.into_iter().find(|(flag, _)| entry.flags.has(*flag)).map_or("allow", |(_, name)| name);
    writeln!(f, " {verdict} {}: {}", Level::of(entry.precedence), rules.origin(entry.rule))
}
