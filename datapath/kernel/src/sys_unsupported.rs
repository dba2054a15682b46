//! Stands in for `sys` where there is no bpf(2): every call fails with ENOSYS. Entry points ask [`SUPPORTED`] first and
//! answer with a typed error.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use crate::attr::Command;

/// Whether this system has bpf(2).
pub(crate) const SUPPORTED: bool = false;

pub(crate) const E2BIG: i32 = 7;
pub(crate) const EINVAL: i32 = 22;
pub(crate) const EEXIST: i32 = 17;
pub(crate) const ENODEV: i32 = 19;
pub(crate) const ENOENT: i32 = 2;
pub(crate) const ENOSPC: i32 = 28;
pub(crate) const ETIME: i32 = 62;
/// Linux's number, so that it differs from the others.
pub(crate) const EOPNOTSUPP: i32 = 95;
/// Linux's number.
const ENOSYS: i32 = 38;

/// An error number.
pub(crate) type SysResult<T> = Result<T, i32>;

/// Fails.
///
/// # Safety
/// Nothing is required.
pub(crate) unsafe fn bpf<T>(_command: Command, _args: &mut T) -> SysResult<i32> {
    Err(ENOSYS)
}

/// Fails.
///
/// # Safety
/// Nothing is required.
pub(crate) unsafe fn bpf_fd<T>(_command: Command, _args: &mut T) -> SysResult<OwnedFd> {
    Err(ENOSYS)
}

/// Nobody in particular.
pub(crate) fn effective_user() -> u32 {
    u32::MAX
}

/// Bytes of a page, as far as anything here depends on it.
pub(crate) fn page_size() -> usize {
    4096
}

/// Fails.
pub(crate) fn map_shared(_fd: BorrowedFd<'_>, _len: usize, _writable: bool, _offset: usize) -> SysResult<NonNull<u8>> {
    Err(ENOSYS)
}

/// Does nothing: there are no mappings.
///
/// # Safety
/// Nothing is required.
pub(crate) unsafe fn unmap(_address: NonNull<u8>, _len: usize) {}

/// Fails.
pub(crate) fn unshare_net() -> SysResult<()> {
    Err(ENOSYS)
}

/// Fails.
pub(crate) fn enter_net(_namespace: BorrowedFd<'_>) -> SysResult<()> {
    Err(ENOSYS)
}

/// No CPUs are known.
pub(crate) type CpuSet = ();

/// Nothing.
pub(crate) fn one_cpu(_cpu: usize) -> CpuSet {}

/// Fails.
pub(crate) fn affinity() -> SysResult<CpuSet> {
    Err(ENOSYS)
}

/// Fails.
pub(crate) fn set_affinity(_set: &CpuSet) -> SysResult<()> {
    Err(ENOSYS)
}

/// Fails.
pub(crate) fn netlink_socket() -> SysResult<OwnedFd> {
    Err(ENOSYS)
}

/// Fails.
pub(crate) fn send(_socket: BorrowedFd<'_>, _message: &[u8]) -> SysResult<()> {
    Err(ENOSYS)
}

/// Fails.
pub(crate) fn receive(_socket: BorrowedFd<'_>, _buffer: &mut [u8]) -> SysResult<usize> {
    Err(ENOSYS)
}
