//! The committed object in the kernel, as it is and instrumented. Needs root; otherwise prints the skip line.

use datapath_abi::CallSlot;
use datapath_abi::config::{Config, SYMBOL};
use datapath_kernel::{LoadOptions, Loaded, ObjectFile, ProbeInput, SkbContext, skip_line};
use zerocopy::IntoBytes;

#[test]
fn every_program_is_accepted_as_it_is_and_instrumented() {
    if let Some(line) = skip_line() {
        println!("{line}");
        return;
    }
    let config = Config::with_defaults(250);
    let globals: [(&str, &[u8]); 1] = [(SYMBOL, config.as_bytes())];
    let names = ObjectFile::parse(datapath_bytecode::OBJECT, &globals).unwrap().programs();
    assert!(!names.is_empty());
    let mut verdicts = Vec::new();
    for instrument in [false, true] {
        let options = LoadOptions { max_entries: Some(1024), instrument, globals: &globals };
        let loaded = Loaded::open(datapath_bytecode::OBJECT, &options).unwrap();
        assert_eq!(loaded.has_btf(), !instrument);
        let found: Vec<&str> = loaded.programs().map(|program| program.name()).collect();
        assert_eq!(found, names);
        for program in loaded.programs() {
            let stats = program.stats();
            println!("{} instrumented {instrument}: {stats:?}", program.name());
            assert!(stats.processed > 0 && stats.processed < 1_000_000);
        }
        for (slot, name) in CallSlot::ALL {
            loaded.set_call("calls", *slot as u32, name).unwrap();
        }
        if let Some(probe) = loaded.probe() {
            probe.set(&ProbeInput::default());
        }
        // A frame no program forwards: the verdicts must agree between the two.
        let mut frame = vec![0; 60];
        frame[12..14].copy_from_slice(&[0x88, 0xb5]);
        let run = |name: &String| {
            let program = loaded.program(name).unwrap();
            program.test_run(&mut frame.clone(), &mut SkbContext::default()).unwrap()
        };
        verdicts.push(names.iter().map(run).collect::<Vec<u32>>());
    }
    assert_eq!(verdicts[0], verdicts[1]);
}

#[test]
fn a_global_that_is_not_there_or_has_another_size_is_an_error() {
    for (name, value, part) in [("NO_SUCH", [0u8; 4].as_slice(), "NO_SUCH"), (SYMBOL, &[0; 3], SYMBOL)] {
        let error = ObjectFile::parse(datapath_bytecode::OBJECT, &[(name, value)]).unwrap_err().to_string();
        assert!(error.contains("set globals") && error.contains(part), "{error}");
    }
}
