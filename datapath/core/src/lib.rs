//! Every decision about a packet, as plain Rust: the eBPF object calls these functions, and so do native tests.
//!
//! Invariant: no unsafe, no statics, no allocation, no clock, no helper. What a decision needs from outside comes
//! through [`Packet`] and the table traits of [`tables`]; time is an argument. Functions are inlined into one program
//! per hook, because the verifier follows packet pointers best there. Loads have fixed sizes: the verifier refuses
//! slices over packet memory.
#![no_std]
#![forbid(unsafe_code)]

pub mod conntrack;
pub mod edit;
pub mod facts;
pub mod family;
pub mod ipcache;
pub mod packet;
pub mod parse;
pub mod pipeline;
pub mod policy;
pub mod reply;
pub mod tables;
pub mod verdict;
pub mod wire;

pub use facts::Facts;
pub use family::{Family, V4, V6};
pub use packet::{Packet, TunnelKey};
pub use verdict::{Action, Verdict};
