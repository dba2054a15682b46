//! The committed object in the kernel, as it is and instrumented. Needs root; otherwise prints the skip line.
#![expect(clippy::unwrap_used, reason = "test code: helpers outside #[test] functions")]

use datapath_abi::config::{Config, DUAL_STACK, GENEVE, HOST_POLICY, SYMBOL};
use datapath_abi::policy::{EGRESS, FIXED_BITS, INGRESS, PRECEDENCE_ALLOW};
use datapath_abi::{Addr4, Addr6, CallSlot, IpEntry, MapId, PolicyEntry, PolicyKey};
use datapath_kernel::{
    KernelError, LoadOptions, Loaded, ObjectFile, ProbeInput, SkbContext, TestNet, VerifierStats, pin_to_cpu, skip_line,
};
use datapath_maps::{MapStore, Table, UpdateMode};
use zerocopy::IntoBytes;

fn skipped() -> bool {
    let line = skip_line();
    if let Some(line) = &line {
        println!("{line}");
    }
    line.is_some()
}

fn config() -> Config {
    let plain = Config::with_defaults(250);
    // Everything that settings can switch on: what they switch off the verifier does not follow.
    let flags = plain.flags | DUAL_STACK | HOST_POLICY | GENEVE;
    Config { tunnel_ifindex: 9, node4: Addr4::from_octets([192, 0, 2, 1]), flags, ..plain }
}

/// Name and numbers of each program as it is.
fn verify(instrument: bool) -> Vec<(String, Result<VerifierStats, KernelError>)> {
    let config = config();
    let globals: [(&str, &[u8]); 1] = [(SYMBOL, config.as_bytes())];
    let options = LoadOptions { max_entries: Some(1024), instrument, globals: &globals, only: None };
    Loaded::verify(datapath_bytecode::OBJECT, &options).unwrap()
}

#[test]
fn every_program_is_accepted() {
    if skipped() {
        return;
    }
    let mut refused = String::new();
    for (name, result) in verify(false) {
        match result {
            Ok(stats) => {
                println!("{name}: {stats:?}");
                assert!(stats.processed > 0 && stats.processed < 1_000_000);
            }
            Err(error) => refused.push_str(&format!("{name}: {error}\n")),
        }
    }
    assert_eq!(refused, "");
}

#[test]
fn what_is_accepted_as_it_is_is_accepted_instrumented() {
    if skipped() {
        return;
    }
    for ((name, plain), (_, copy)) in verify(false).into_iter().zip(verify(true)) {
        if plain.is_ok() {
            assert!(copy.is_ok(), "{name}: {copy:?}");
        }
    }
}

/// Three pods of this node, one of another, and one whose policy says nothing.
fn fill(store: &mut dyn MapStore) {
    for (last, endpoint, ifindex, node) in
        [(1, 101, 7, None), (2, 102, 8, None), (3, 103, 7, None), (4, 0, 0, Some([192, 0, 2, 2]))]
    {
        let entry = IpEntry {
            identity: 3000 + u32::from(last),
            ifindex,
            endpoint,
            node: node.map_or(Addr6::ZERO, |node| Addr6::from_v4(Addr4::from_octets(node))),
            ..IpEntry::default()
        };
        Table::<Addr4, IpEntry>::new(store, MapId::Ipcache4)
            .set(&Addr4::from_octets([10, 0, 0, last]), &entry)
            .unwrap();
    }
    for endpoint in [101, 102] {
        for direction in [INGRESS, EGRESS] {
            let key = PolicyKey { prefix_len: FIXED_BITS, endpoint, direction, ..PolicyKey::default() };
            let entry = PolicyEntry { precedence: PRECEDENCE_ALLOW, rule: 1, ..PolicyEntry::default() };
            Table::<PolicyKey, PolicyEntry>::new(store, MapId::Policy).set(&key, &entry).unwrap();
        }
    }
}

/// A frame of number `n`: IPv4 between few addresses, TCP or UDP, sometimes broken.
fn frame(n: u32) -> Vec<u8> {
    let [a, b, c, d] = n.wrapping_mul(0x9e37_79b1).rotate_left(7).to_le_bytes();
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    let tcp = a & 1 == 0;
    let protocol = if tcp { 6 } else { 17 };
    let mut ip = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, b % 6, 10, 0, 0, c % 6];
    let mut payload = vec![0x9c, d % 4, 0, 80];
    if tcp {
        payload.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, if a & 2 == 0 { 2 } else { 16 }, 1, 0, 0, 0, 0, 0]);
    } else {
        payload.extend([0, 12, 0, 0, 1, 2, 3, 4]);
    }
    if a & 0xf0 == 0 {
        payload.truncate(6);
    }
    ip[3] = u8::try_from(ip.len() + payload.len()).unwrap();
    let sum: u32 = ip.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&(!folded).to_be_bytes());
    frame.extend(ip);
    frame.extend(payload);
    frame.resize(frame.len().max(60), 0);
    frame
}

#[test]
fn an_instrumented_copy_does_to_packets_and_maps_what_the_program_does() {
    if skipped() {
        return;
    }
    let accepted: Vec<String> =
        verify(false).into_iter().filter_map(|(name, result)| result.is_ok().then_some(name)).collect();
    let only: Vec<&str> = accepted.iter().map(String::as_str).collect();
    let config = config();
    let globals: [(&str, &[u8]); 1] = [(SYMBOL, config.as_bytes())];
    let open = |instrument| {
        let options = LoadOptions { max_entries: Some(1024), instrument, globals: &globals, only: Some(&only) };
        let mut loaded = Loaded::open(datapath_bytecode::OBJECT, &options).unwrap();
        for (slot, name) in CallSlot::ALL.iter().filter(|(_, name)| only.contains(name)) {
            loaded.set_call(MapId::Calls.name(), *slot as u32, name).unwrap();
        }
        fill(loaded.maps_mut());
        loaded
    };
    let net = TestNet::with_devices(&[7, 8, 9]).unwrap();
    let _inside = net.enter().unwrap();
    let _pinned = pin_to_cpu(0).unwrap();
    let (plain, copy) = (open(false), open(true));
    assert!(plain.has_btf() && !copy.has_btf());
    let probe = copy.probe().unwrap();
    let mut readers = [&plain, &copy].map(|loaded| loaded.ring(MapId::Events.name()).unwrap());
    for name in only.iter().copied().filter(|name| !name.ends_with('6')) {
        let mut verdicts = std::collections::BTreeMap::<u32, u32>::new();
        for n in 0..400 {
            probe.set(&ProbeInput { jiffies: 4_300_000_000, ..ProbeInput::default() });
            let run = |loaded: &Loaded| {
                let mut frame = frame(n);
                let mut ctx = SkbContext { ifindex: 7 + n % 3, ..SkbContext::default() };
                let verdict = loaded.program(name).unwrap().test_run(&mut frame, &mut ctx).unwrap();
                (verdict, frame, ctx)
            };
            let expected = run(&plain);
            assert_eq!(run(&copy), expected, "{name} frame {n}: {:02x?}", frame(n));
            *verdicts.entry(expected.0).or_default() += 1;
            let redirected = expected.0 == 7;
            assert_eq!(probe.output().redirect.is_some(), redirected, "{name} frame {n}");
        }
        println!("{name}: {verdicts:?}");
        // Entries hold times, which differ; keys and counters must not.
        let keys = |loaded: &Loaded, map| {
            let entries = loaded.maps().entries(map).unwrap();
            entries.into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        for map in [MapId::Ct4, MapId::Frag4] {
            assert_eq!(keys(&plain, map), keys(&copy, map), "{name}");
        }
        let counters = |loaded: &Loaded| loaded.maps().entries(MapId::Metrics).unwrap();
        assert_eq!(counters(&plain), counters(&copy), "{name}");
        let [expected, got] = readers.each_mut().map(|reader| reader.drain().len());
        assert_eq!(got, expected, "{name}: events");
    }
}

#[test]
fn a_map_of_the_object_is_the_one_in_the_catalogue() {
    for found in ObjectFile::parse(datapath_bytecode::OBJECT, &[]).unwrap().maps().unwrap() {
        if let Some(map) = MapId::from_name(&found.spec.name) {
            assert_eq!(found.spec, datapath_maps::MapSpec::of(map));
        } else {
            assert!(found.data.is_some(), "{}", found.spec.name);
        }
    }
}

#[test]
fn a_global_that_is_not_there_or_has_another_size_is_an_error() {
    for (name, value, part) in [("NO_SUCH", [0u8; 4].as_slice(), "NO_SUCH"), (SYMBOL, &[0; 3], SYMBOL)] {
        let error = ObjectFile::parse(datapath_bytecode::OBJECT, &[(name, value)]).unwrap_err().to_string();
        assert!(error.contains("set globals") && error.contains(part), "{error}");
    }
}

#[test]
fn a_full_map_is_reported_with_its_capacity() {
    if skipped() {
        return;
    }
    let spec = datapath_maps::MapSpec::of(MapId::Cidr4);
    let mut maps = datapath_kernel::KernelMaps::create([spec], Some(2)).unwrap();
    let value = IpEntry::default();
    let results: Vec<_> = [8u32, 16, 24]
        .iter()
        .map(|bits| {
            let key = [bits.to_ne_bytes(), [10, 0, 0, 0]].concat();
            maps.update(MapId::Cidr4, &key, value.as_bytes(), UpdateMode::Any).map_err(|error| error.to_string())
        })
        .collect();
    assert_eq!(results, [Ok(()), Ok(()), Err("map `cidr4` is full at 2 entries".to_owned())]);
    assert_eq!(maps.delete(MapId::Cidr4, &[9, 0, 0, 0, 1, 0, 0, 0]), Ok(false));
    assert!(maps.lookup(MapId::Ct4, &[0; 16]).unwrap_err().to_string().contains("no map `ct4`"));
    assert!(maps.lookup(MapId::Cidr4, &[0; 3]).unwrap_err().to_string().contains("key size 8"));
}
