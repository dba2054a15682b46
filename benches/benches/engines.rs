//! One hook on an established flow, per engine: `cargo bench -p benches --bench engines`.
#![expect(clippy::expect_used, reason = "a benchmark that cannot run ends")]

use benches::paths::{self, PATHS, Segment};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use simulator::engines::{self, Kind, Limits};
use simulator_vm::{Env, Skb};

fn one_hook(criterion: &mut Criterion) {
    for path in PATHS.iter().filter(|path| ["remote", "to_container", "remote6"].contains(&path.name)) {
        let mut group = criterion.benchmark_group(path.name);
        group.throughput(Throughput::Elements(1));
        for kind in Kind::UNPRIVILEGED {
            let env = Env { now_ns: 1_000_000_000_000, ..Env::default() };
            let settings = paths::settings(env.ticks_per_second, true);
            let mut engine = engines::open(*kind, &settings, Limits::SMALL).expect("the engine opens");
            paths::fill(engine.maps_mut(), 0).expect("the maps take the state");
            for segment in [Segment::Syn, Segment::Ack] {
                engine
                    .run_named(path.program, &mut Skb::new(path.frame(0, segment), path.ifindex), &env)
                    .expect("runs");
            }
            engine.events();
            let program = engine.program(path.program).expect("the object has the program");
            let mut skb = Skb::new(path.frame(0, Segment::Ack), path.ifindex);
            group.bench_function(kind.name(), |bencher| {
                bencher.iter(|| engine.run(program, &mut skb, &env).expect("runs"));
            });
        }
        group.finish();
    }
}

criterion_group! {
    name = engines;
    config = Criterion::default().sample_size(30).measurement_time(std::time::Duration::from_secs(2)).warm_up_time(std::time::Duration::from_millis(500));
    targets = one_hook
}
criterion_main!(engines);
