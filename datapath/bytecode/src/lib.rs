//! The committed eBPF object: the bytes that the kernel, the simulator and every test run.
//!
//! `cargo xtask build-ebpf` writes `weir.o` and, beside it, the hash of the sources it came from; a test fails when the
//! sources have changed since. Licence of the object: Dual MIT/GPL.
#![forbid(unsafe_code)]

pub mod sources;

/// An ELF object for the BPF machine, little-endian, with BTF and line information.
pub static OBJECT: &[u8] = include_bytes!("../weir.o");

/// Hash of the sources that [`OBJECT`] was built from, as hexadecimal text with a newline.
pub static SOURCES: &str = include_str!("../weir.o.sources");
