//! Labs: the committed object on real devices, and real sockets that talk through it.
//!
//! A lab is a list of Kubernetes objects and of things that must then be so. Nodes and pods are network namespaces
//! without names: they live as long as this process holds them, so whatever ends it, a panic, `^C` or a signal, leaves
//! nothing behind. Maps are filled by `agent-core`, as an agent would.
#![deny(unsafe_code)]

pub mod capture;
pub mod labs;
pub mod place;
pub mod probe;
pub mod report;
pub mod wire;
pub mod world;
