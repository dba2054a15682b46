use super::*;
use crate::engines;
use crate::scenario::{self, EngineSet};

#[test]
fn engines_agree_on_random_packets() {
    let options = Options {
        packets: 20_000,
        seed: 42,
        engines: Kind::UNPRIVILEGED.to_vec(),
        out: std::env::temp_dir().join("weir-fuzz-test.toml"),
    };
    println!("seed {}", options.seed);
    let outcome = run(&options, &mut |_| {}).unwrap();
    if let Some(difference) = &outcome.difference {
        panic!("{}\n{}", difference.what, difference.text);
    }
    assert_eq!(outcome.packets, 20_000);
    // The generator reaches most of what can happen, and does not only make rubbish.
    assert!(outcome.forwarded > 5_000, "{outcome:?}");
    assert!(outcome.reasons.len() > 15, "{outcome:?}");
}

/// One engine has other settings than the others: a difference that is there on purpose.
#[test]
fn a_planted_difference_is_found_and_shrunk_to_a_scenario() {
    let settings = scenario::settings();
    let other = Config { flags: settings.flags & !config::TUNNEL, ..settings };
    let opened = vec![
        (Kind::Native, engines::open(Kind::Native, &settings, Limits::SMALL).unwrap()),
        (Kind::Checked, engines::open(Kind::Checked, &other, Limits::SMALL).unwrap()),
    ];
    let mut random = Random::new(1, 0);
    let mut world = World::new(&settings, false, &mut random);
    let mut start = world.scenario(1, 0, &mut random);
    let mut all = Lockstep::of(opened, &settings);
    all.begin(&start).unwrap();
    let mut now_ns = start.now_ns;
    let found = (0..5000).any(|_| {
        let step = world.step(&mut random);
        now_ns += step.advance_ns;
        start.steps.push(step.clone());
        all.step(&step, now_ns, &mut Outcome::default()).is_some()
    });
    assert!(found);
    let small = shrink::shrink(start, &mut all).unwrap();
    assert_eq!(small.steps.len(), 1, "{}", scenario::to_toml(&small));
    assert!(small.writes.len() <= 3, "{}", scenario::to_toml(&small));
    assert!(all.differ(&small).unwrap());
    // The file says the same, and shows no difference where the settings are the same.
    let text = scenario::to_toml(&small);
    let read = scenario::parse(&text, "fuzz.toml").unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(read.steps[0].skb, small.steps[0].skb, "{text}");
    assert!(all.differ(&read).unwrap(), "{text}");
    assert!(scenario::run(&read, &mut EngineSet::new(&[Kind::Native, Kind::Checked])).unwrap().passed(), "{text}");
}

#[test]
fn one_engine_is_not_enough() {
    let options = Options { packets: 1, seed: 1, engines: vec![Kind::Native], out: PathBuf::new() };
    assert!(matches!(run(&options, &mut |_| {}), Err(FuzzError::TooFew)));
}

#[test]
fn what_is_written_reads_back_as_the_same() {
    for number in 0..40 {
        let mut random = Random::new(9, number);
        let mut world = World::new(&settings(number), false, &mut random);
        let mut scenario = world.scenario(9, number, &mut random);
        scenario.steps = (0..60).map(|_| world.step(&mut random)).collect();
        let text = scenario::to_toml(&scenario);
        let read = scenario::parse(&text, "fuzz.toml").unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(read.config, scenario.config);
        assert_eq!(read.missing_calls, scenario.missing_calls);
        for (read, step) in read.steps.iter().zip(&scenario.steps) {
            assert_eq!(read.skb, step.skb, "world {number}\n{text}");
            assert_eq!((read.faults, read.advance_ns), (step.faults, step.advance_ns));
        }
        assert_eq!(
            scenario::to_toml(&read).lines().skip(2).collect::<Vec<_>>(),
            text.lines().skip(2).collect::<Vec<_>>()
        );
    }
}
