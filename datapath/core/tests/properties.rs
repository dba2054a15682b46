//! Laws of the decisions, on random input. A failing case is printed with its seed and kept out of the way of others:
//! `PROPTEST_CASES=100000 cargo test -p datapath-core` looks longer.

mod world;

use datapath_abi::metrics::FORWARDED;
use datapath_abi::{Addr4, Addr6, Be16, CtKey4, CtKey6, Direction, EventKind, Hook, metrics_index};
use datapath_core::family::Ends;
use datapath_core::{Action, Facts, Family, Packet as _, V4, V6};
use proptest::prelude::*;
use world::{Frame, NEIGHBOUR, NEIGHBOUR4, NODE4, OTHER_NODE4, POD, POD4, REMOTE4, World, wide};

/// Sum of 16-bit words with carries added: 0xffff over data with a right checksum (RFC 1071).
fn sum(bytes: &[u8]) -> u16 {
    let total: u64 =
        bytes.chunks(2).map(|pair| u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]))).sum();
    u16::try_from((1..4).fold(total, |sum, _| (sum & 0xffff) + (sum >> 16))).unwrap_or(0)
}

/// Somebody whom the tables know, or anybody.
fn address() -> impl Strategy<Value = [u8; 4]> {
    prop_oneof![
        4 => prop::sample::select(vec![POD4, NEIGHBOUR4, REMOTE4, NODE4, OTHER_NODE4]),
        1 => any::<[u8; 4]>(),
    ]
}

fn protocol() -> impl Strategy<Value = u8> {
    prop_oneof![9 => prop::sample::select(vec![1u8, 6, 17, 58, 132, 0, 43, 44, 51, 60]), 1 => any::<u8>()]
}

/// An IPv4 frame; total length and header length are right or anything, and so is what follows.
fn frame4() -> impl Strategy<Value = Vec<u8>> {
    let numbers = (any::<u8>(), prop::sample::select(vec![0u16, 0, 0, 0x2000, 0x0001, 0x4000]), any::<bool>());
    (address(), address(), protocol(), numbers, prop::collection::vec(any::<u8>(), 0..90), any::<u16>()).prop_map(
        |(source, destination, protocol, (ttl, fragment, honest), payload, lie)| {
            let len = if honest { u16::try_from(20 + payload.len()).unwrap_or(0) } else { lie % 128 };
            let mut header = vec![if honest || lie % 3 == 0 { 0x45 } else { lie.to_be_bytes()[0] }, 0];
            header.extend(len.to_be_bytes());
            header.extend([0, 7]);
            header.extend(fragment.to_be_bytes());
            header.extend([ttl, protocol, 0, 0]);
            header.extend(source);
            header.extend(destination);
            let checksum = !sum(&header);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
            [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 1, 7, 8, 0], header.as_slice(), &payload].concat()
        },
    )
}

/// An IPv6 frame, with chains of extension headers by chance.
fn frame6() -> impl Strategy<Value = Vec<u8>> {
    (address(), address(), protocol(), any::<(u8, bool, u16)>(), prop::collection::vec(any::<u8>(), 0..120)).prop_map(
        |(source, destination, next, (hops, honest, lie), mut payload)| {
            let len = if honest { u16::try_from(payload.len()).unwrap_or(0) } else { lie % 128 };
            // Short extension headers that lead somewhere.
            for at in (0..payload.len().saturating_sub(1)).step_by(8).take(usize::from(hops % 4)) {
                payload[at] = [6, 17, 58, 60, 43, 44][usize::from(payload[at]) % 6];
                payload[at + 1] %= 3;
            }
            let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 1, 7, 0x86, 0xdd, 0x60, 0, 0, 0];
            frame.extend(len.to_be_bytes());
            frame.extend([next, hops]);
            frame.extend(wide(source));
            frame.extend(wide(destination));
            frame.extend(payload);
            frame
        },
    )
}

fn frame() -> impl Strategy<Value = Vec<u8>> {
    let garbage = (prop::sample::select(vec![[8u8, 0], [8, 6], [0x86, 0xdd], [0x88, 0xcc]]), any::<Vec<u8>>());
    prop_oneof![
        4 => frame4(),
        4 => frame6(),
        1 => garbage.prop_map(|(kind, rest)| [&[0; 12], kind.as_slice(), &rest].concat()),
        1 => any::<Vec<u8>>(),
    ]
}

fn hook() -> impl Strategy<Value = Hook> {
    prop::sample::select(Hook::ALL.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(2_000), ..ProptestConfig::default() })]

    /// Hostile bytes end in a verdict: no panic, no endless loop, one counter, and for a drop one event with its reason.
    #[test]
    fn any_frame_at_any_hook_ends_in_one_counted_verdict(
        frames in prop::collection::vec((hook(), frame(), 0usize..200, prop::sample::select(vec![POD, NEIGHBOUR])), 1..6),
        open in any::<bool>(),
    ) {
        let world = World::new(open);
        for (hook, bytes, readable, ifindex) in frames {
            world.counters.borrow_mut().clear();
            world.events.borrow_mut().clear();
            let len = bytes.len();
            let mut frame = Frame::new(bytes, readable, ifindex);
            let outcome = world.run(hook, &mut frame);
            prop_assert_eq!(frame.bytes.len(), len);
            let counters = world.counters.borrow();
            let forwarded = [Direction::Ingress, Direction::Egress].map(|way| metrics_index(way, FORWARDED));
            let drops: Vec<u8> = world.events.borrow().iter().filter(|event| event.kind == EventKind::Drop as u8).map(|event| event.code).collect();
            match outcome {
                Ok(verdict) => {
                    prop_assert_ne!(verdict.action, Action::Call);
                    // A packet that goes from one pod of the node into another is counted for both.
                    let both = hook == Hook::FromContainer && verdict.action == Action::Deliver;
                    prop_assert_eq!(counters.values().sum::<u64>(), if both { 2 } else { 1 });
                    prop_assert!(counters.keys().all(|counter| forwarded.contains(counter)));
                    prop_assert_eq!(drops, Vec::<u8>::new());
                }
                Err(reason) => {
                    prop_assert_eq!(counters.values().sum::<u64>(), 1);
                    prop_assert!(counters.keys().all(|counter| counter & 0xff == reason as u32));
                    prop_assert_eq!(drops, [reason as u8]);
                }
            }
        }
    }

    /// Behind the length that a datagram states lies padding of the link: it decides nothing. (A header that begins inside
    /// and ends in the padding may be refused under another reason than one that ends with the frame.)
    #[test]
    fn what_lies_behind_the_stated_length_decides_nothing(
        mut bytes in prop_oneof![frame4(), frame6()],
        padding in prop::collection::vec(any::<u8>(), 1..60),
        hook in hook(),
        open in any::<bool>(),
    ) {
        // Stated lengths that are right, so that padding is padding.
        let v6 = bytes[12] == 0x86;
        let (at, stated) = if v6 { (18, bytes.len() - 54) } else { (16, bytes.len() - 14) };
        bytes[at..at + 2].copy_from_slice(&u16::try_from(stated).unwrap().to_be_bytes());
        let run = |bytes: Vec<u8>| {
            let world = World::new(open);
            let mut frame = Frame::new(bytes, 14, POD);
            let outcome = world.run(hook, &mut frame);
            frame.bytes.truncate(14 + stated);
            (outcome.ok(), frame.bytes, frame.sent)
        };
        let plain = run(bytes.clone());
        let padded = run([bytes, padding].concat());
        prop_assert_eq!(plain, padded);
    }

    /// The checksum after one hop is the one that a full computation gives.
    #[test]
    fn a_hop_keeps_the_checksum_right(bytes in frame4()) {
        let mut frame = Frame::new(bytes.clone(), bytes.len(), POD);
        let outcome = V4::decrement_hops(&mut frame);
        prop_assert_eq!(outcome.is_ok(), bytes[22] > 1);
        prop_assert_eq!(sum(&frame.bytes[14..34]), 0xffff);
        if outcome.is_ok() {
            prop_assert_eq!(frame.bytes[22], bytes[22] - 1);
        }
        // Nothing but the TTL and the checksum.
        for at in (0..bytes.len()).filter(|at| ![22, 24, 25].contains(at)) {
            prop_assert_eq!(frame.bytes[at], bytes[at]);
        }
    }

    /// One entry is found from either direction, and it tells the directions apart.
    #[test]
    fn a_flow_has_one_key(source: [u8; 16], destination: [u8; 16], ports: (u16, u16), protocol: u8, near in any::<bool>()) {
        // Ends that differ in one byte only, too.
        let destination = if near { let mut other = source; other[protocol as usize % 16] ^= 1; other } else { destination };
        let (a, b) = (Addr6::from_octets(source), Addr6::from_octets(destination));
        let (sport, dport) = (Be16::new(ports.0), Be16::new(ports.1));
        let (mut there, mut back) = (CtKey6::default(), CtKey6::default());
        let first = V6::ct_key(&mut there, &Ends { source: &a, destination: &b, sport, dport, protocol });
        let second = V6::ct_key(&mut back, &Ends { source: &b, destination: &a, sport: dport, dport: sport, protocol });
        prop_assert_eq!(there, back);
        prop_assert!(first != second || (a == b && sport == dport));

        let (a, b) = (a.first4(), b.first4());
        let (mut there, mut back) = (CtKey4::default(), CtKey4::default());
        let first = V4::ct_key(&mut there, &Ends { source: &a, destination: &b, sport, dport, protocol });
        let second = V4::ct_key(&mut back, &Ends { source: &b, destination: &a, sport: dport, dport: sport, protocol });
        prop_assert_eq!(there, back);
        prop_assert!(first != second || (a == b && sport == dport));
    }

    /// Different flows have different keys.
    #[test]
    fn different_flows_have_different_keys(source: [u8; 4], destination: [u8; 4], ports: (u16, u16), protocol: u8, other: (u16, u16)) {
        let (a, b) = (Addr4::from_octets(source), Addr4::from_octets(destination));
        let key = |(sport, dport)| {
            let mut key = CtKey4::default();
            V4::ct_key(&mut key, &Ends { source: &a, destination: &b, sport: Be16::new(sport), dport: Be16::new(dport), protocol });
            key
        };
        prop_assert_eq!(key(ports) == key(other), ports == other || (a == b && ports == (other.1, other.0)));
    }

    /// An answer to a neighbour solicitation is one that the asker's stack takes: from the target, with a right checksum.
    #[test]
    fn advertisements_have_right_checksums(target: [u8; 16], asker: [u8; 6], link_local in any::<bool>(), option in any::<bool>()) {
        let mut target = target;
        // Not multicast, and not the pod's own address.
        target[0] = 0xfd;
        target[1] |= 1;
        let source = if link_local { [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9] } else { wide(POD4) };
        let mut body = [&[135u8, 0, 0, 0, 0, 0, 0, 0], target.as_slice()].concat();
        if option {
            body.extend([1, 1, 2, 0, 0, 0, 1, 7]);
        }
        let mut bytes = [&[0x33, 0x33, 0xff, 0, 0, 1], asker.as_slice(), &[0x86, 0xdd, 0x60, 0, 0, 0]].concat();
        bytes.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
        bytes.extend([58, 255]);
        bytes.extend(source);
        bytes.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, target[13], target[14], target[15]]);
        bytes.extend(&body);
        let mut frame = Frame::new(bytes, 14, POD);
        let verdict = World::new(true).run(Hook::FromContainer, &mut frame).unwrap();
        prop_assert_eq!(verdict.action, Action::Reflect);
        let answer = &frame.bytes[54..];
        prop_assert_eq!(&frame.bytes[..6], asker.as_slice());
        prop_assert_eq!(&frame.bytes[22..38], target.as_slice());
        prop_assert_eq!(&frame.bytes[38..54], source.as_slice());
        prop_assert_eq!(answer[0], 136);
        let pseudo = [&frame.bytes[22..54], &[0, 0, 0, u8::try_from(answer.len()).unwrap(), 0, 0, 0, 58], answer].concat();
        prop_assert_eq!(sum(&pseudo), 0xffff);
    }
}

/// The random frames reach what they are for: without this, the laws above would hold for nothing.
#[test]
fn random_frames_reach_verdicts_of_every_kind() {
    use proptest::strategy::ValueTree as _;
    use std::collections::BTreeSet;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (mut actions, mut drops) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..20_000 {
        let (hook, bytes) = (hook(), frame()).new_tree(&mut runner).unwrap().current();
        match World::new(true).run(hook, &mut Frame::new(bytes, 14, POD)) {
            Ok(verdict) => actions.insert(format!("{:?}", verdict.action)),
            Err(reason) => drops.insert(reason.name()),
        };
    }
    for action in ["Pass", "Deliver", "Overlay"] {
        assert!(actions.contains(action), "{actions:?}");
    }
    assert!(drops.len() >= 10, "{drops:?}");
}

#[test]
fn nothing_is_read_behind_what_is_readable() {
    let frame = Frame::new(vec![1; 20], 10, POD);
    assert_eq!(frame.load::<[u8; 10]>(0), Some([1; 10]));
    assert_eq!(frame.load::<[u8; 2]>(9), None);
    assert_eq!(Facts::<V4>::new(Hook::FromContainer, Direction::Egress, POD, frame.len()).len, 20);
}
