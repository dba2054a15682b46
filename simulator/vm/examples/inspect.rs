//! What an object holds and whether every engine takes it: `cargo run -p simulator-vm --example inspect -- FILE`.

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use simulator_vm::{Checked, Lane, Object, Rbpf};

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("which object?")?;
    let bytes = std::fs::read(path)?;
    let start = Instant::now();
    let object = Arc::new(Object::load(&bytes, &[])?);
    println!("loaded in {:?}, licence {}", start.elapsed(), object.license());
    for program in object.programs() {
        println!(
            "program {:16} {:6} slots, {} line records",
            program.name,
            program.code.len(),
            program.lines.rows().count()
        );
    }
    for map in object.maps() {
        println!(
            "map {:16} {:12} key {:3} value {:4} entries {} flags {}",
            map.name,
            map.kind.name(),
            map.key_size,
            map.value_size,
            map.max_entries,
            map.flags
        );
    }
    for section in object.rodata() {
        println!("section {:16} {} bytes", section.name, section.len());
    }
    for lane in [Lane::Interpreter, Lane::Jit] {
        for attempt in 1..=2 {
            let start = Instant::now();
            let engine = Rbpf::new(Arc::clone(&object), lane, 2)?;
            println!("engine {attempt} of {lane:?} made in {:?}, {} slots", start.elapsed(), engine.lowered_slots());
        }
    }
    let start = Instant::now();
    let _engine = Checked::new(object, 2)?;
    println!("checked engine made in {:?}", start.elapsed());
    Ok(())
}
