//! `skb_get_tunnel_key`, `skb_set_tunnel_key` and `struct bpf_tunnel_key` (net/core/filter.c).
//!
//! The struct's IPv4 addresses and label are host order, its IPv6 addresses network order. Shorter, older layouts are
//! taken like in the kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath_maps::Errno;

use super::{append, context, errno, length, negative, write};
use crate::api::TunnelKey;
use crate::helper::Helper;
use crate::world::{Memory, Outcome, World};

/// Bytes of the struct.
const LEN: usize = 44;
/// Lengths of older layouts: up to the second word of the address, the tunnel_ext, the label, the local address.
const COMPAT: [usize; 4] = [8, 22, 24, 28];
const BPF_F_TUNINFO_IPV6: u64 = 1;
const BPF_F_TUNINFO_FLAGS: u64 = 16;
/// ZERO_CSUM_TX, DONT_FRAGMENT, SEQ_NUMBER, NO_TUNNEL_KEY.
const SET_FLAGS: u64 = BPF_F_TUNINFO_IPV6 | 2 | 4 | 8 | 16;
const EPROTO: i64 = 71;
/// Bits of tunnel_flags (`IP_TUNNEL_*_BIT`), as numbers of the network-order field.
const TUNNEL_CSUM: u16 = 1;
const TUNNEL_KEY: u16 = 1 << 2;
const TUNNEL_SEQ: u16 = 1 << 3;
const TUNNEL_DONT_FRAGMENT: u16 = 1 << 8;
const TUNNEL_NOCACHE: u16 = 1 << 13;
const FLOW_LABEL: u32 = 0xf_ffff;

/// The struct's bytes: id 0, remote 4, tos 20, ttl 21, ext 22, label 24, local 28.
fn encode(key: &TunnelKey) -> [u8; LEN] {
    let mut bytes = [0u8; LEN];
    let mut at = |start: usize, field: &[u8]| {
        if let Some(to) = bytes.get_mut(start..start + field.len()) {
            to.copy_from_slice(field);
        }
    };
    at(0, &key.id.to_le_bytes());
    match key.remote {
        IpAddr::V4(address) => at(4, &u32::from(address).to_le_bytes()),
        IpAddr::V6(address) => {
            at(4, &address.octets());
            at(24, &key.label.to_le_bytes());
        }
    }
    at(20, &[key.tos, key.ttl]);
    match key.local {
        Some(IpAddr::V4(address)) => at(28, &u32::from(address).to_le_bytes()),
        Some(IpAddr::V6(address)) => at(28, &address.octets()),
        None => {}
    }
    bytes
}

fn decode(bytes: &[u8; LEN], flags: u64) -> TunnelKey {
    let word = |start: usize| -> u32 {
        bytes.get(start..start + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
    };
    let octets =
        |start: usize| -> [u8; 16] { bytes.get(start..start + 16).and_then(|b| b.try_into().ok()).unwrap_or_default() };
    let v6 = flags & BPF_F_TUNINFO_IPV6 != 0;
    let address = |start: usize| -> IpAddr {
        if v6 { Ipv6Addr::from(octets(start)).into() } else { Ipv4Addr::from(word(start)).into() }
    };
    let local = address(28);
    TunnelKey {
        id: word(0),
        remote: address(4),
        local: (!local.is_unspecified()).then_some(local),
        tos: bytes[20],
        ttl: bytes[21],
        label: word(24) & FLOW_LABEL,
        flags,
    }
}

/// `skb_get_tunnel_key(skb, key, size, flags)`. After a set it shows what was set, as if it had been received: what was
/// the destination is the local address.
pub(super) fn get<M: Memory>(world: &mut World, memory: &M, [skb, to, len, flags, _]: [u64; 5]) -> Outcome {
    let helper = Helper::GetTunnelKey;
    context(memory, helper, skb)?;
    let len = length(helper, len)?;
    let wants_v6 = flags & BPF_F_TUNINFO_IPV6 != 0;
    let key = world.arrived.filter(|_| !world.env.faults.get_tunnel_key);
    let shown = if flags & BPF_F_TUNINFO_FLAGS != 0 { world.tunnel_flags } else { 0 };
    let encode = |key: &TunnelKey| {
        let mut bytes = encode(key);
        [bytes[22], bytes[23]] = shown.to_be_bytes();
        bytes
    };
    let answer = match key {
        None => Err(errno(Errno::Inval)),
        Some(_) if flags & !(BPF_F_TUNINFO_IPV6 | BPF_F_TUNINFO_FLAGS) != 0 => Err(errno(Errno::Inval)),
        Some(key) if key.remote.is_ipv6() != wants_v6 => Err(negative(EPROTO)),
        Some(key) if len == LEN => Ok(encode(&key)),
        Some(key) if len == 8 && key.remote.is_ipv6() => Err(errno(Errno::Inval)),
        Some(key) if COMPAT.contains(&len) => Ok(encode(&key)),
        Some(_) => Err(errno(Errno::Inval)),
    };
    match answer {
        Ok(bytes) => {
            write(memory, helper, to, bytes.get(..len).unwrap_or(&bytes))?;
            Ok(0)
        }
        Err(code) => {
            world.value.clear();
            world.value.resize(len, 0);
            write(memory, helper, to, &world.value)?;
            Ok(code)
        }
    }
}

/// `skb_set_tunnel_key(skb, key, size, flags)`: replaces whatever metadata the packet had.
pub(super) fn set<M: Memory>(world: &mut World, memory: &M, [skb, from, len, flags, _]: [u64; 5]) -> Outcome {
    let helper = Helper::SetTunnelKey;
    context(memory, helper, skb)?;
    let len = length(helper, len)?;
    world.value.clear();
    append(memory, helper, from, len, &mut world.value)?;
    if world.env.faults.set_tunnel_key || flags & !SET_FLAGS != 0 || !(len == LEN || COMPAT.contains(&len)) {
        return Ok(errno(Errno::Inval));
    }
    let mut bytes = [0u8; LEN];
    for (to, from) in bytes.iter_mut().zip(&world.value) {
        *to = *from;
    }
    let label = bytes.get(24..28).is_some_and(|b| b != [0; 4]);
    let extension = bytes.get(22..24).is_some_and(|b| b != [0; 2]);
    if (flags & BPF_F_TUNINFO_IPV6 == 0 && label) || extension {
        return Ok(errno(Errno::Inval));
    }
    let key = decode(&bytes, flags);
    let unspecified: IpAddr =
        if key.remote.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    world.run.tunnel_key = Some(key);
    world.arrived = Some(TunnelKey { remote: key.local.unwrap_or(unspecified), local: Some(key.remote), ..key });
    let bit = |flag: u64, bits: u16| if flags & flag != 0 { bits } else { 0 };
    world.tunnel_flags = TUNNEL_NOCACHE
        | (TUNNEL_CSUM & !bit(2, TUNNEL_CSUM))
        | bit(4, TUNNEL_DONT_FRAGMENT)
        | bit(8, TUNNEL_SEQ)
        | (TUNNEL_KEY & !bit(16, TUNNEL_KEY));
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_struct_comes_back_as_it_was() {
        let key = TunnelKey {
            id: 0x00ab_cdef,
            remote: IpAddr::from([192, 0, 2, 1]),
            local: Some(IpAddr::from([192, 0, 2, 2])),
            tos: 3,
            ttl: 64,
            label: 0,
            flags: 0,
        };
        let bytes = encode(&key);
        // Host order: the last octet comes first on a little-endian machine.
        assert_eq!(bytes[4..8], [1, 2, 0, 192]);
        assert_eq!(decode(&bytes, 0), key);
        let key = TunnelKey { remote: "fd00::1".parse().unwrap(), local: None, label: 5, flags: 1, ..key };
        assert_eq!(decode(&encode(&key), 1), key);
    }
}
