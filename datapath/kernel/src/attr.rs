//! The parts of `union bpf_attr` (include/uapi/linux/bpf.h) in use.
//!
//! Invariant: every struct is `repr(C)` without implicit padding and all zero where unused, because the kernel refuses
//! non-zero bytes behind the last field it knows.

use std::os::fd::{AsRawFd, BorrowedFd};

#[derive(Clone, Copy)]
pub(crate) enum Command {
    MapCreate = 0,
    MapLookup = 1,
    MapUpdate = 2,
    MapDelete = 3,
    MapNextKey = 4,
    ProgramLoad = 5,
    ObjectPin = 6,
    ObjectGet = 7,
    ProgramTestRun = 10,
    ObjectInfo = 15,
    BtfLoad = 18,
    MapFreeze = 22,
    MapLookupBatch = 24,
    MapUpdateBatch = 26,
    LinkCreate = 28,
    LinkUpdate = 29,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct MapCreate {
    pub(crate) kind: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
    pub(crate) inner_map_fd: u32,
    pub(crate) numa_node: u32,
    pub(crate) name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct Element {
    pub(crate) map: u32,
    pub(crate) pad: u32,
    pub(crate) key: u64,
    pub(crate) value_or_next: u64,
    pub(crate) flags: u64,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) in_batch: u64,
    pub(crate) out_batch: u64,
    pub(crate) keys: u64,
    pub(crate) values: u64,
    pub(crate) count: u32,
    pub(crate) map: u32,
    pub(crate) element_flags: u64,
    pub(crate) flags: u64,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct ProgramLoad {
    pub(crate) kind: u32,
    pub(crate) insn_count: u32,
    pub(crate) insns: u64,
    pub(crate) license: u64,
    pub(crate) log_level: u32,
    pub(crate) log_size: u32,
    pub(crate) log: u64,
    pub(crate) kernel_version: u32,
    pub(crate) flags: u32,
    pub(crate) name: [u8; 16],
    pub(crate) ifindex: u32,
    pub(crate) attach_type: u32,
    pub(crate) btf_fd: u32,
    pub(crate) func_info_size: u32,
    pub(crate) func_info: u64,
    pub(crate) func_info_count: u32,
    pub(crate) line_info_size: u32,
    pub(crate) line_info: u64,
    pub(crate) line_info_count: u32,
    pub(crate) pad: u32,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct TestRun {
    pub(crate) program: u32,
    pub(crate) retval: u32,
    pub(crate) data_size_in: u32,
    pub(crate) data_size_out: u32,
    pub(crate) data_in: u64,
    pub(crate) data_out: u64,
    pub(crate) repeat: u32,
    pub(crate) duration: u32,
    pub(crate) ctx_size_in: u32,
    pub(crate) ctx_size_out: u32,
    pub(crate) ctx_in: u64,
    pub(crate) ctx_out: u64,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct PinObject {
    pub(crate) path: u64,
    pub(crate) fd: u32,
    pub(crate) flags: u32,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct BtfLoad {
    pub(crate) btf: u64,
    pub(crate) log: u64,
    pub(crate) size: u32,
    pub(crate) log_size: u32,
    pub(crate) log_level: u32,
    pub(crate) pad: u32,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct ObjectInfo {
    pub(crate) fd: u32,
    pub(crate) len: u32,
    pub(crate) info: u64,
}

/// The beginning of `struct bpf_map_info`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct MapInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
    pub(crate) name: [u8; 16],
}

/// For `BPF_TCX_INGRESS` and `BPF_TCX_EGRESS`.
#[repr(C)]
#[derive(Default)]
pub(crate) struct LinkCreate {
    pub(crate) program: u32,
    pub(crate) target: u32,
    pub(crate) attach_type: u32,
    pub(crate) flags: u32,
    pub(crate) relative: u32,
    pub(crate) pad: u32,
    pub(crate) expected_revision: u64,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct LinkUpdate {
    pub(crate) link: u32,
    pub(crate) program: u32,
    pub(crate) flags: u32,
    pub(crate) old_program: u32,
}

/// `struct bpf_link_info` of a TCX link.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct LinkInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) program: u32,
    pub(crate) pad: u32,
    pub(crate) ifindex: u32,
    pub(crate) attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct FreezeMap {
    pub(crate) map: u32,
}

/// The number the kernel wants for a descriptor.
pub(crate) fn number(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX)
}

/// The kernel takes addresses as 64-bit numbers.
pub(crate) fn address<T>(slice: &[T]) -> u64 {
    slice.as_ptr().expose_provenance() as u64
}

/// As [`address`], of memory the kernel writes to.
pub(crate) fn address_mut<T>(slice: &mut [T]) -> u64 {
    slice.as_mut_ptr().expose_provenance() as u64
}
