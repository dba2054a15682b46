//! Runs per second of every engine over the fixture's main path: `cargo run --release -p simulator-vm --example speed`.

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use datapath_maps::{MemoryMaps, UpdateMode};
use simulator_vm::{Checked, Engine, Env, Lane, Object, Rbpf, Skb};

const BYTES: &[u8] = include_bytes!("../tests/fixtures/fixture.o");

fn fill(maps: &mut MemoryMaps) -> Result<(), Box<dyn Error>> {
    for (map, key, value) in [("owners", [10, 0, 0, 7], 77u32), ("owners", [10, 0, 1, 5], 12)] {
        let map = maps.by_name_mut(map).ok_or("no map")?;
        map.set_bytes(&key, &value.to_le_bytes(), UpdateMode::Any)?;
    }
    let map = maps.by_name_mut("prefixes").ok_or("no map")?;
    map.set_bytes(&[16, 0, 0, 0, 10, 0, 0, 0], &1u32.to_le_bytes(), UpdateMode::Any)?;
    Ok(())
}

fn measure(engine: &mut dyn Engine) -> Result<(), Box<dyn Error>> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend([0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 7, 10, 0, 1, 5]);
    frame.extend([0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0]);
    let mut skb = Skb::new(frame, 3);
    let program = engine.program("entry").ok_or("no program")?;
    let env = Env::default();
    let mut best = f64::MAX;
    let mut last = engine.run(program, &mut skb, &env)?;
    for _ in 0..40 {
        let start = Instant::now();
        for _ in 0..10_000 {
            last = engine.run(program, &mut skb, &env)?;
        }
        best = best.min(start.elapsed().as_secs_f64() / 10_000.0);
    }
    println!(
        "{:10} {:7.1} ns per run, {:6.2} million runs/s, {} instructions, {} helper calls, {} look-ups",
        engine.name(),
        best * 1e9,
        1e-6 / best,
        last.instructions,
        last.helper_calls,
        last.lookups
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let rounds = std::env::args().nth(1).map_or(Ok(2), |text| text.parse::<u32>())?;
    let settings: Vec<u8> = [0x5eedu32, 7, 99, rounds].iter().flat_map(|word| word.to_le_bytes()).collect();
    let object = Arc::new(Object::load(BYTES, &[("SETTINGS", &settings)])?);
    let mut checked = Checked::new(Arc::clone(&object), 1)?;
    fill(checked.memory_maps_mut())?;
    measure(&mut checked)?;
    for lane in [Lane::Interpreter, Lane::Jit] {
        let mut rbpf = Rbpf::new(Arc::clone(&object), lane, 1)?;
        fill(rbpf.memory_maps_mut())?;
        measure(&mut rbpf)?;
    }
    Ok(())
}
