//! A small object of our own, from its bytes to verdicts.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a failing helper of a test is a failing test")]

use std::net::IpAddr;
use std::sync::Arc;

use datapath_maps::{MemoryMaps, UpdateMode};
use simulator_vm::{
    Checked, Engine, Env, FaultKind, Faults, Lane, LoadError, Object, Rbpf, Redirect, Run, RunError, Skb, TraceEvent,
    action,
};

const BYTES: &[u8] = include_bytes!("fixtures/fixture.o");

fn settings(rounds: u32) -> Vec<u8> {
    [0x5eedu32, 7, 99, rounds].iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn object() -> Arc<Object> {
    Arc::new(Object::load(BYTES, &[("SETTINGS", &settings(2))]).unwrap())
}

fn frame() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 7, 10, 0, 1, 5]);
    frame.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    frame
}

fn filled(object: &Arc<Object>) -> Checked {
    let mut engine = Checked::new(Arc::clone(object), 2).unwrap();
    fill(object, engine.memory_maps_mut());
    engine
}

fn filled_rbpf(object: &Arc<Object>, lane: Lane) -> Rbpf {
    let mut engine = Rbpf::new(Arc::clone(object), lane, 2).unwrap();
    fill(object, engine.memory_maps_mut());
    engine
}

fn fill(object: &Object, maps: &mut MemoryMaps) {
    let owners = maps.by_name_mut("owners").unwrap();
    owners.set_bytes(&[10, 0, 0, 7], &77u32.to_le_bytes(), UpdateMode::Any).unwrap();
    owners.set_bytes(&[10, 0, 1, 5], &12u32.to_le_bytes(), UpdateMode::Any).unwrap();
    let prefixes = maps.by_name_mut("prefixes").unwrap();
    prefixes.set_bytes(&[16, 0, 0, 0, 10, 0, 0, 0], &0xc000_0201u32.to_le_bytes(), UpdateMode::Any).unwrap();
    let calls = maps.by_name_mut("calls").unwrap();
    let second = object.program("second").unwrap();
    calls.set_bytes(&1u32.to_le_bytes(), &second.0.to_le_bytes(), UpdateMode::Any).unwrap();
}

#[test]
fn the_object_shows_its_programs_maps_and_lines() {
    let object = object();
    let names: Vec<&str> = object.programs().iter().map(|program| program.name.as_str()).collect();
    assert_eq!(names, ["entry", "overrun", "second", "stale"]);
    let maps: Vec<&str> = object.maps().iter().map(|map| map.name.as_str()).collect();
    assert_eq!(maps, [".data", "calls", "counters", "events", "flows", "owners", "prefixes", "table"]);
    assert_eq!(object.license(), "Dual MIT/GPL");
    let entry = &object.programs()[0];
    assert!(entry.lines.rows().any(|(_, file, line)| file.ends_with("main.rs") && line > 0));
}

#[test]
fn a_packet_of_a_known_flow_is_counted_marked_and_redirected() {
    let object = object();
    let mut engine = filled(&object);
    let mut skb = Skb::new(frame(), 3);
    let env = Env { now_ns: 8_000_000, ..Env::default() };
    let run = engine.run_named("entry", &mut skb, &env).unwrap();
    assert_eq!(run.code, action::REDIRECT);
    assert_eq!(run.redirect, Some(Redirect::Device { ifindex: 12, flags: 0 }));
    let key = run.tunnel_key.unwrap();
    assert_eq!((key.id, key.remote, key.ttl), (99, IpAddr::from([192, 0, 2, 1]), 63));
    assert_eq!(skb.mark, 77);
    assert_eq!(skb.cb[1], 0xc000_0201);
    assert_eq!(skb.data[22], 63);
    assert_eq!(run.lookups, 6);
    assert!(run.instructions > 100, "{run:?}");
    let [event] = engine.events().try_into().unwrap();
    assert_eq!(event, [10, 0, 0, 7, 10, 0, 1, 5, 77, 0, 0, 0, 1, 2, 0, 192]);
    let flows = engine.memory_maps().by_name("flows").unwrap().entries();
    // 8 ms are 2 ticks at 250 Hz.
    assert_eq!(flows[0].1, [[1u64, 2].map(u64::to_le_bytes)].concat().concat());
    engine.run_named("entry", &mut Skb::new(frame(), 3), &env).unwrap();
    let flows = engine.memory_maps().by_name("flows").unwrap().entries();
    assert_eq!(flows[0].1, [[2u64, 8_000_000].map(u64::to_le_bytes)].concat().concat());
    let data = engine.memory_maps().by_name(".data").unwrap().entries();
    assert_eq!(data[0].1, 7u64.to_le_bytes());
}

#[test]
fn a_tail_call_goes_to_the_program_in_the_slot_and_falls_through_an_empty_one() {
    let object = object();
    let mut engine = filled(&object);
    let mut v6 = frame();
    v6[12..14].copy_from_slice(&[0x86, 0xdd]);
    let run = engine.run_named("entry", &mut Skb::new(v6.clone(), 1), &Env::default()).unwrap();
    assert_eq!(run.code, 42);
    let second = usize::try_from(object.program("second").unwrap().0).unwrap();
    assert_eq!(engine.stats()[second].starts, 1);
    let env = Env { faults: Faults { tail_call: true, ..Faults::default() }, ..Env::default() };
    let run = engine.run_named("entry", &mut Skb::new(v6, 1), &env).unwrap();
    assert_eq!(run.code, action::OK);
}

#[test]
fn unset_settings_drop_every_packet() {
    let object = Arc::new(Object::load(BYTES, &[]).unwrap());
    let mut engine = Checked::new(object, 1).unwrap();
    let run = engine.run_named("entry", &mut Skb::new(frame(), 1), &Env::default()).unwrap();
    assert_eq!(run.code, action::SHOT);
}

#[test]
fn an_unknown_setting_or_one_of_the_wrong_size_is_refused() {
    let error = Object::load(BYTES, &[("SETINGS", &settings(1))]).unwrap_err();
    assert!(error.to_string().contains("`SETINGS`"), "{error}");
    let error = Object::load(BYTES, &[("SETTINGS", &[0; 3])]).unwrap_err();
    assert!(error.to_string().contains("3 bytes"), "{error}");
}

fn fault_of(program: &str) -> simulator_vm::Fault {
    let object = object();
    let mut engine = filled(&object);
    match engine.run_named(program, &mut Skb::new(frame(), 1), &Env::default()) {
        Err(RunError::Fault(fault)) => *fault,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_read_behind_the_packet_names_line_and_offset() {
    let fault = fault_of("overrun");
    let text = fault.to_string();
    assert!(text.contains(".rs:"), "{text}");
    assert!(text.contains("load of 1 bytes") && text.contains("packet offset 55 of 54 bytes"), "{text}");
}

#[test]
fn a_packet_pointer_from_before_pull_data_is_refused() {
    let fault = fault_of("stale");
    assert!(matches!(&fault.kind, FaultKind::Memory { region, .. } if region.contains("before a helper")), "{fault}");
}

#[test]
fn faults_make_helpers_fail() {
    let object = object();
    for faults in [
        Faults { map_update: true, ..Faults::default() },
        Faults { set_tunnel_key: true, ..Faults::default() },
        Faults { packet_write: true, ..Faults::default() },
    ] {
        let mut engine = filled(&object);
        let env = Env { faults, ..Env::default() };
        let run = engine.run_named("entry", &mut Skb::new(frame(), 1), &env).unwrap();
        assert_eq!(run.code, action::SHOT, "{faults:?}");
    }
    let mut engine = filled(&object);
    let env = Env { faults: Faults { ring_full: true, ..Faults::default() }, ..Env::default() };
    assert_eq!(engine.run_named("entry", &mut Skb::new(frame(), 1), &env).unwrap().code, action::REDIRECT);
    assert!(engine.events().is_empty());
}

#[test]
fn a_trace_shows_lookups_with_key_and_value_and_the_same_run() {
    let object = object();
    let mut engine = filled(&object);
    let entry = engine.program("entry").unwrap();
    let plain = filled(&object).run(entry, &mut Skb::new(frame(), 1), &Env::default()).unwrap();
    let (traced, events) = engine.trace(entry, &mut Skb::new(frame(), 1), &Env::default());
    assert_eq!(traced.unwrap(), plain);
    let steps = events.iter().filter(|event| matches!(event, TraceEvent::Step { .. })).count();
    assert_eq!(u64::try_from(steps).unwrap(), plain.instructions);
    assert!(events.contains(&TraceEvent::Lookup {
        map: "owners".into(),
        key: vec![10, 0, 1, 5],
        value: Some(vec![12, 0, 0, 0])
    }));
}

#[test]
fn coverage_counts_instructions_and_lines() {
    let object = object();
    let mut engine = filled(&object);
    engine.start_coverage();
    let run = engine.run_named("entry", &mut Skb::new(frame(), 1), &Env::default()).unwrap();
    let coverage = engine.coverage().unwrap();
    assert_eq!(coverage.counts.iter().flatten().sum::<u64>(), run.instructions);
    let lines = coverage.lines(&object);
    assert!(lines.values().any(|&count| count > 0) && lines.values().any(|&count| count == 0));
}

#[test]
fn a_budget_ends_a_run() {
    let object = object();
    let mut engine = filled(&object);
    engine.set_budget(20);
    let error = engine.run_named("entry", &mut Skb::new(frame(), 1), &Env::default()).unwrap_err();
    assert!(error.to_string().contains("budget of 20"), "{error}");
}

/// Runs the same packets on another engine and compares everything a run leaves behind.
fn agrees(lane: Lane) {
    let object = object();
    let mut checked = filled(&object);
    let mut other = filled_rbpf(&object, lane);
    let mut v6 = frame();
    v6[12..14].copy_from_slice(&[0x86, 0xdd]);
    let mut stranger = frame();
    stranger[33] = 99;
    let mut short = frame();
    short.truncate(33);
    for round in 0..200u32 {
        for (kind, data) in [frame(), v6.clone(), stranger.clone(), short.clone()].into_iter().enumerate() {
            let mut mine = Skb::new(data, 3);
            if kind == 2 {
                mine.data[34..38].copy_from_slice(&round.to_le_bytes());
            }
            let mut theirs = mine.clone();
            let env = Env { now_ns: u64::from(round) * 1_000_000, cpu: round % 2, ..Env::default() };
            let expected = checked.run_named("entry", &mut mine, &env).unwrap();
            let got = other.run_named("entry", &mut theirs, &env).unwrap();
            assert_eq!(Run { instructions: 0, ..expected }, got, "round {round} kind {kind}");
            assert_eq!(mine, theirs, "round {round} kind {kind}");
        }
        assert_eq!(checked.events(), other.events());
    }
    for index in 0..checked.memory_maps().len() {
        let (mine, theirs) = (checked.memory_maps().get(index).unwrap(), other.memory_maps().get(index).unwrap());
        assert_eq!(mine.entries(), theirs.entries(), "map {}", mine.spec().name);
    }
}

#[test]
fn the_rbpf_interpreter_leaves_the_same_behind() {
    agrees(Lane::Interpreter);
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn the_rbpf_machine_code_leaves_the_same_behind() {
    agrees(Lane::Jit);
}

#[test]
fn maps_may_be_replaced_between_runs() {
    let object = object();
    let run = |engine: &mut dyn Engine| engine.run_named("entry", &mut Skb::new(frame(), 3), &Env::default()).unwrap();
    let mut filled_maps = object.new_maps(2).unwrap();
    fill(&object, &mut filled_maps);
    let mut checked = Checked::new(Arc::clone(&object), 2).unwrap();
    let before = run(&mut checked);
    *checked.memory_maps_mut() = filled_maps;
    let after = run(&mut checked);
    assert_ne!(before.redirect, after.redirect);
    let mut lanes = vec![Lane::Interpreter];
    if cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        lanes.push(Lane::Jit);
    }
    for lane in lanes {
        let mut filled_maps = object.new_maps(2).unwrap();
        fill(&object, &mut filled_maps);
        let mut engine = Rbpf::new(Arc::clone(&object), lane, 2).unwrap();
        assert_eq!(run(&mut engine).redirect, before.redirect);
        *engine.memory_maps_mut() = filled_maps;
        assert_eq!(run(&mut engine).redirect, after.redirect);
    }
}

#[test]
fn engines_move_between_threads_and_objects_are_shared() {
    fn moves<T: Send>() {}
    fn shared<T: Send + Sync>() {}
    moves::<Checked>();
    moves::<Rbpf>();
    shared::<Object>();
    let object = object();
    let codes: Vec<u32> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4)
            .map(|number| {
                let object = &object;
                scope.spawn(move || {
                    let lane = if number % 2 == 0 || cfg!(not(target_arch = "x86_64")) {
                        Lane::Interpreter
                    } else {
                        Lane::Jit
                    };
                    let mut engine = filled_rbpf(object, lane);
                    (0..100)
                        .map(|_| engine.run_named("entry", &mut Skb::new(frame(), 3), &Env::default()).unwrap().code)
                        .sum()
                })
            })
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert_eq!(codes, [700; 4]);
}

#[test]
fn objects_with_other_settings_share_code_and_not_settings() {
    let first = object();
    let settings: Vec<u8> = [0x5eedu32, 8, 99, 2].iter().flat_map(|word| word.to_le_bytes()).collect();
    let second = Arc::new(first.with_globals(&[("SETTINGS", &settings)]).unwrap());
    assert!(std::ptr::eq(first.programs(), second.programs()));
    let unset = Arc::new(second.with_globals(&[]).unwrap());
    let redirect = |ifindex| Some(Redirect::Device { ifindex, flags: 1 });
    let mut stranger = frame();
    stranger[33] = 99;
    for (object, expected) in [(&first, redirect(7)), (&second, redirect(8)), (&unset, None)] {
        let mut engines: Vec<Box<dyn Engine>> = vec![Box::new(Checked::new(Arc::clone(object), 1).unwrap())];
        engines.push(Box::new(Rbpf::new(Arc::clone(object), Lane::Interpreter, 1).unwrap()));
        if cfg!(all(target_arch = "x86_64", target_os = "linux")) {
            engines.push(Box::new(Rbpf::new(Arc::clone(object), Lane::Jit, 1).unwrap()));
        }
        for engine in &mut engines {
            let run = engine.run_named("entry", &mut Skb::new(stranger.clone(), 1), &Env::default()).unwrap();
            assert_eq!(run.redirect, expected, "{}", engine.name());
        }
    }
    assert!(matches!(first.with_globals(&[("SETTINGS", &[0])]), Err(LoadError::Global { size: 1, .. })));
}
