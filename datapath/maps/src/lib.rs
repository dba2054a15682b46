//! User space's view of the datapath's maps.
//!
//! - [`MapStore`] is the seam: bytes in, bytes out, object-safe. The kernel's maps and [`MemoryMaps`] implement it.
//! - [`Table`] and [`TableView`] put key and value types over it.
//! - [`MemoryMap`] is one map in plain memory with the kernel's semantics, made so that an engine which runs eBPF
//!   in user space can hand addresses into it to a program.
//! - [`dump`] writes entries as text, for operators and failing tests.
//!
//! Invariant: what a program or bpf(2) would see on a kernel map, it sees here: same results, same error numbers
//! (kernel source: `kernel/bpf/{hashtab,lpm_trie,arraymap,ringbuf}.c`). The one declared difference is the LRU hash,
//! which is exact here and approximate in the kernel.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod dump;
mod errno;
mod memory;
mod spec;
mod store;
mod table;

pub use dump::{dump, dump_map};
pub use errno::Errno;
pub use memory::{MapStats, MemoryMap, MemoryMaps, RingSlot};
pub use spec::{MapKind, MapSpec, UpdateMode, map_flags};
pub use store::{Entry, MapError, MapStore};
pub use table::{Plain, Table, TableView};
