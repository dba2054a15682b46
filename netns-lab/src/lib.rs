//! Labs: the committed object on real devices, and real sockets that talk through it.
//!
//! A lab file says how nodes are connected and which scenarios run on them. Nodes and pods are network namespaces; on each
//! node a real `weir-agent` reads the scenario's objects. Every step is done in the simulator and here, in lockstep: the
//! same probe, two answers, which must be equal.
//!
//! Invariants: whatever a lab makes is written down before it is made, and goes with it however it ends ([`registry`]).
//! No policy is computed here: what should come out is the simulator's and the scenario's.
#![deny(unsafe_code)]

pub mod bench;
pub mod capture;
pub mod checks;
pub mod clients;
pub mod command;
pub mod impaired;
pub mod kernel;
pub mod lab;
mod lockstep;
pub mod manifest;
pub mod node;
pub mod place;
pub mod poll;
pub mod probe;
pub mod prober;
pub mod registry;
pub mod report;
pub mod topology;
pub mod watch;
pub mod wire;
pub mod world;
