//! Everything that calls bpf(2): the kernel's maps behind [`datapath_maps::MapStore`], loading an object with the
//! verifier's numbers, and running programs on packets with `BPF_PROG_TEST_RUN`.
//!
//! - [`KernelMaps`], [`KernelMap`], [`RingReader`]: maps.
//! - [`Loaded`]: an object's maps and programs in the kernel, as they are or as an instrumented copy whose clock,
//!   random numbers, tunnel metadata and faults come from a [`Probe`] and whose redirects are recorded there.
//! - [`TcxLink`]: programs on devices, replaced atomically and pinned, so that they outlive the process.
//! - [`Clsact`]: the same through filters, where the kernel has no TCX.
//! - [`TestNet`]: a private network namespace with devices of chosen index, because a test run takes its device from
//!   the namespace of the calling thread.
//!
//! Invariant: only `sys`, `map`, `mapping`, `program` and `attach` contain unsafe code, each block one operation;
//! every length the kernel writes to is checked before the call.
//!
//! Linux only. On other systems the crate compiles and every entry point answers [`KernelError::Unsupported`].

mod attach;
mod attr;
mod clock;
mod clsact;
mod error;
pub mod insn;
mod instrument;
mod link;
mod load;
mod map;
mod mapping;
mod net;
mod netlink;
mod privilege;
mod probe;
mod program;
mod ring;
mod store;
#[cfg(target_os = "linux")]
mod sys;
#[cfg(not(target_os = "linux"))]
#[path = "sys_unsupported.rs"]
mod sys;

pub use attach::{LinkState, TcxLink, TcxPoint, probe_tcx};
pub use clock::Jiffies;
pub use clsact::{Clsact, Filter, probe_clsact};
pub use error::KernelError;
pub use link::{LinkedProgram, MapDefinition, ObjectFile};
pub use load::{LoadOptions, Loaded, Pins, Verified};
pub use map::{KernelMap, possible_cpus};
pub use net::{Inside, Pinned, TestNet, pin_to_cpu};
pub use privilege::{missing_privilege, skip_line};
pub use probe::{Probe, ProbeInput, ProbeOutput, RedirectCall, RedirectKind, TunnelKeyIn, TunnelKeyOut};
pub use program::{BtfInfo, Program, ProgramKind, ProgramSource, SkbContext, VerifierStats};
pub use ring::RingReader;
pub use store::KernelMaps;
