//! The system calls, on Linux. Elsewhere `sys_unsupported.rs` stands in its place.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Once;

use crate::attr::Command;

/// Whether this system has bpf(2).
pub(crate) const SUPPORTED: bool = true;

pub(crate) const E2BIG: i32 = libc::E2BIG;
pub(crate) const EINVAL: i32 = libc::EINVAL;
pub(crate) const EEXIST: i32 = libc::EEXIST;
pub(crate) const ENODEV: i32 = libc::ENODEV;
pub(crate) const ENOENT: i32 = libc::ENOENT;
pub(crate) const ENOSPC: i32 = libc::ENOSPC;
pub(crate) const ETIME: i32 = libc::ETIME;
pub(crate) const EOPNOTSUPP: i32 = libc::EOPNOTSUPP;

/// An error number.
pub(crate) type SysResult<T> = Result<T, i32>;

fn last_error() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(EINVAL)
}

fn check(result: libc::c_long) -> SysResult<i32> {
    if result < 0 { Err(last_error()) } else { i32::try_from(result).map_err(|_| EINVAL) }
}

/// bpf(2).
///
/// # Safety
/// Every address in `attr` must be valid for what `command` reads and writes there (see bpf(2)).
pub(crate) unsafe fn bpf<T>(command: Command, attr: &mut T) -> SysResult<i32> {
    let attr: *mut T = attr;
    // SAFETY: `attr` is a live struct of the given size; the caller vouches for the addresses inside.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as i32, attr, size_of::<T>()) };
    check(result)
}

/// Before Linux 5.11 maps and programs count as locked memory, of which a process may have 64 KiB: lifts that limit, or
/// raises it as far as this process may. Later kernels do not look at it, so that a failure says nothing yet.
fn lift_locked_memory() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let none = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: the kernel reads one live struct.
        if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &none) } == 0 {
            return;
        }
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the kernel writes one live struct.
        if unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) } == 0 {
            limit.rlim_cur = limit.rlim_max;
            // SAFETY: the kernel reads one live struct.
            let _ = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) };
        }
    });
}

/// As [`bpf`], for commands that return a descriptor: what they make may count as locked memory.
///
/// # Safety
/// As [`bpf`].
pub(crate) unsafe fn bpf_fd<T>(command: Command, attr: &mut T) -> SysResult<OwnedFd> {
    lift_locked_memory();
    // SAFETY: passed on to the caller.
    let fd = unsafe { bpf(command, attr) }?;
    // SAFETY: the kernel has just returned this descriptor, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The effective user id.
pub(crate) fn effective_user() -> u32 {
    // SAFETY: has no arguments and cannot fail.
    unsafe { libc::geteuid() }
}

/// Bytes of a page.
pub(crate) fn page_size() -> usize {
    // SAFETY: has no memory arguments.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

/// mmap(2) of a map, shared.
pub(crate) fn map_shared(fd: BorrowedFd<'_>, len: usize, writable: bool, offset: usize) -> SysResult<NonNull<u8>> {
    let offset = libc::off_t::try_from(offset).map_err(|_| EINVAL)?;
    let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
    // SAFETY: a new mapping at an address the kernel chooses touches no existing memory.
    let address =
        unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, fd.as_raw_fd(), offset) };
    if address == libc::MAP_FAILED {
        return Err(last_error());
    }
    NonNull::new(address.cast()).ok_or(EINVAL)
}

/// munmap(2).
///
/// # Safety
/// The range must be a mapping that nothing refers to any more.
pub(crate) unsafe fn unmap(address: NonNull<u8>, len: usize) {
    // SAFETY: passed on to the caller. A failure would leave the mapping, which is harmless.
    let _ = unsafe { libc::munmap(address.as_ptr().cast(), len) };
}

/// Moves this thread into a new network namespace.
pub(crate) fn unshare_net() -> SysResult<()> {
    // SAFETY: has no memory arguments.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    check(result.into()).map(|_| ())
}

/// Moves this thread into a network namespace.
pub(crate) fn enter_net(namespace: BorrowedFd<'_>) -> SysResult<()> {
    // SAFETY: has no memory arguments.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    check(result.into()).map(|_| ())
}

/// CPUs this thread may run on.
pub(crate) type CpuSet = libc::cpu_set_t;

/// The set with one CPU.
pub(crate) fn one_cpu(cpu: usize) -> CpuSet {
    // SAFETY: the type is an array of integers, for which zeros are valid.
    let mut set: CpuSet = unsafe { std::mem::zeroed() };
    // SAFETY: sets a bit inside the struct; a number beyond its end panics inside libc's bounds check.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    set
}

/// CPUs this thread may run on.
pub(crate) fn affinity() -> SysResult<CpuSet> {
    // SAFETY: the type is an array of integers, for which zeros are valid.
    let mut set: CpuSet = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes at most `size_of::<CpuSet>()` bytes to a live set.
    let result = unsafe { libc::sched_getaffinity(0, size_of::<CpuSet>(), &mut set) };
    check(result.into()).map(|_| set)
}

/// Restricts this thread.
pub(crate) fn set_affinity(set: &CpuSet) -> SysResult<()> {
    // SAFETY: the kernel reads `size_of::<CpuSet>()` bytes from a live set.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<CpuSet>(), set) };
    check(result.into()).map(|_| ())
}

/// A route netlink socket in this thread's network namespace.
pub(crate) fn netlink_socket() -> SysResult<OwnedFd> {
    // SAFETY: has no memory arguments.
    let result = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE) };
    let fd: RawFd = check(result.into())?;
    // SAFETY: the kernel has just returned this descriptor, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a message to the kernel.
pub(crate) fn send(socket: BorrowedFd<'_>, message: &[u8]) -> SysResult<()> {
    // SAFETY: the kernel reads `message.len()` bytes of a live slice. Unbound netlink sockets send to the kernel.
    let sent = unsafe { libc::send(socket.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
    if sent < 0 { Err(last_error()) } else { Ok(()) }
}

/// Receives one message.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> SysResult<usize> {
    // SAFETY: the kernel writes at most `buffer.len()` bytes to a live slice.
    let got = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    usize::try_from(got).map_err(|_| last_error())
}
