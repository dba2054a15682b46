//! The simulator's engines: the datapath's object file, run in user space over plain-memory maps.
//!
//! * [`Object`] links the bytes of an ELF file once; many nodes share it.
//! * [`Checked`] interprets it with exact memory checks, a budget, traces and coverage.
//! * [`Rbpf`] runs the same code, lowered at load, in the published `rbpf` crate: as an interpreter or as machine code.
//!
//! Both stand on one map, packet and helper layer. Invariant: what an engine does depends on the object, the maps,
//! the [`Skb`] and the [`Env`] and on nothing else: no clock, no random source, no host address reaches a program's result.

#[cfg(target_endian = "big")]
compile_error!("programs are little endian, and memory is read in place");

mod address;
mod api;
mod checked;
mod decode;
mod helper;
mod helpers;
mod interpreter;
pub mod isa;
mod jit;
mod loader;
mod lower;
mod rbpf_engine;
mod space;
mod tagged;
mod trace;
mod world;

pub use api::{Engine, Env, Fault, FaultKind, Faults, ProgramId, Redirect, Run, RunError, Skb, TunnelKey, action};
pub use checked::{Checked, DEFAULT_BUDGET};
pub use helper::Helper;
pub use interpreter::ProgramStats;
pub use loader::{LineTable, LoadError, MapRef, Object, Program, ProgramKind, Rodata};
pub use lower::LowerError;
pub use rbpf_engine::{Lane, Rbpf};
pub use trace::{Coverage, TraceEvent, Tracer, Untraced};
