use datapath_abi::{Config, Hook, MapId};
use simulator_vm::{Env, Skb, action};

use super::*;
use crate::packet;

fn settings() -> Config {
    Config { host_mac: datapath_abi::Mac::from_octets([2, 0, 0, 0, 0, 0xfe]), ..Config::with_defaults(250) }
}

#[test]
fn every_engine_has_every_program_and_drops_what_a_stranger_sends() {
    for kind in Kind::UNPRIVILEGED {
        let mut engine = match open(*kind, &settings(), Limits::SMALL) {
            Ok(engine) => engine,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(engine.name(), kind.name());
        for hook in Hook::ALL {
            assert!(engine.program(hook.name()).is_some(), "{kind}: {}", hook.name());
        }
        for line in ["ipv4 10.0.0.7 > 10.0.0.8 / tcp 1 > 2 syn", "ipv6 fd00::7 > fd00::8 / tcp 1 > 2 syn"] {
            let frame = packet::frame(line, &packet::Defaults::default()).unwrap();
            let mut skb = Skb::new(frame, 10);
            let run = engine.run_named("from_container", &mut skb, &Env::default()).unwrap();
            assert_eq!(run.code, action::SHOT, "{kind}: {line}");
        }
        assert_eq!(engine.events().len(), 2, "{kind}");
        reset(*kind, engine.as_mut()).unwrap();
        let counters = engine.maps().entries(MapId::Metrics).unwrap();
        assert!(counters.iter().all(|(_, value)| value.iter().all(|byte| *byte == 0)), "{kind}");
        assert_eq!(engine.maps().entries(MapId::Calls).unwrap().len(), CallSlot::ALL.len());
    }
}

#[test]
fn without_privileges_the_kernel_engine_says_what_is_missing() {
    match (datapath_kernel::missing_privilege(), open(Kind::Kernel, &settings(), Limits::SMALL)) {
        (Some(reason), Err(error)) => assert!(error.to_string().contains(reason), "{error}"),
        (None, Ok(mut engine)) => {
            let frame = packet::frame("arp request 1.2.3.4 > 1.2.3.5", &packet::Defaults::default()).unwrap();
            let run = engine.run_named("from_container", &mut Skb::new(frame, 10), &Env::default()).unwrap();
            assert_eq!(run.code, action::SHOT);
            assert_eq!(engine.events().len(), 1);
        }
        (missing, opened) => panic!("missing: {missing:?}, opened: {}", opened.is_ok()),
    }
}

#[test]
fn a_kernel_engine_that_comes_after_another_knows_nothing_of_it() {
    if datapath_kernel::missing_privilege().is_some() {
        return println!("{}", datapath_kernel::skip_line().unwrap());
    }
    let frame = packet::frame("arp request 1.2.3.4 > 1.2.3.5", &packet::Defaults::default()).unwrap();
    let entry = |engine: &dyn simulator_vm::Engine, map| engine.maps().entries(map).unwrap();
    for settings in [settings(), Config { vxlan_port: datapath_abi::Be16::new(4789), ..settings() }, settings()] {
        let mut one = open(Kind::Kernel, &settings, Limits::SMALL).unwrap();
        let (key, value) = (&[0; MapId::Ipcache4.key_size()], &[1; MapId::Ipcache4.value_size()]);
        // In use at the same time: maps of their own.
        let other = open(Kind::Kernel, &settings, Limits::SMALL).unwrap();
        one.maps_mut().update(MapId::Ipcache4, key, value, UpdateMode::Any).unwrap();
        one.run_named("from_container", &mut Skb::new(frame.clone(), 10), &Env::default()).unwrap();
        assert_eq!(entry(one.as_ref(), MapId::Ipcache4).len(), 1);
        assert_eq!(entry(other.as_ref(), MapId::Ipcache4).len(), 0);
        drop((one, other));
        let mut next = open(Kind::Kernel, &settings, Limits::SMALL).unwrap();
        for map in MapId::ALL.iter().filter(|map| MapSpec::of(**map).kind != MapKind::RingBuf) {
            let left = entry(next.as_ref(), *map);
            if *map == MapId::Calls {
                assert_eq!(left.len(), CallSlot::ALL.len());
            } else {
                assert!(left.iter().all(|(_, value)| value.iter().all(|byte| *byte == 0)), "{}", map.name());
            }
        }
        assert_eq!(next.events().len(), 0);
    }
}
