//! Memory shared with the kernel: the value area of an array map, the pages of a ring buffer.
//!
//! Invariant: no Rust reference into the memory ever exists, because programs write to it; bytes are copied in and
//! out, and positions are read and written atomically.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::sys::{self, SysResult};

/// A mapping, unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
}

// SAFETY: the mapping belongs to the process, not to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    pub(crate) fn new(fd: BorrowedFd<'_>, len: usize, writable: bool, offset: usize) -> SysResult<Self> {
        sys::map_shared(fd, len, writable, offset).map(|base| Self { base, len, writable })
    }

    /// The address of `size` bytes at `offset`; `None` beyond the end.
    fn at(&self, offset: usize, size: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(size)?;
        if end > self.len {
            return None;
        }
        // SAFETY: `offset` is inside the mapping, checked above.
        Some(unsafe { self.base.add(offset) })
    }

    /// Copies bytes out. False: beyond the end.
    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) -> bool {
        let Some(from) = self.at(offset, into.len()) else {
            return false;
        };
        // SAFETY: both are valid for `into.len()` bytes and do not overlap: one is ours, the other a kernel mapping.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into.as_mut_ptr(), into.len()) };
        true
    }

    /// Copies bytes in. False: beyond the end, or read-only.
    pub(crate) fn write(&self, offset: usize, from: &[u8]) -> bool {
        let Some(to) = self.at(offset, from.len()).filter(|_| self.writable) else {
            return false;
        };
        // SAFETY: both are valid for `from.len()` bytes and do not overlap: one is ours, the other a kernel mapping.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.as_ptr(), from.len()) };
        true
    }

    /// Reads a position another CPU may be writing (acquire).
    pub(crate) fn load_u64(&self, offset: usize) -> Option<u64> {
        let at = self.at(offset, 8).filter(|_| offset.is_multiple_of(8))?;
        // SAFETY: in bounds, aligned (mappings begin at a page), only accessed atomically or by the kernel.
        let value: &AtomicU64 = unsafe { at.cast().as_ref() };
        Some(value.load(Ordering::Acquire))
    }

    /// Reads a record header another CPU may be writing (acquire).
    pub(crate) fn load_u32(&self, offset: usize) -> Option<u32> {
        let at = self.at(offset, 4).filter(|_| offset.is_multiple_of(4))?;
        // SAFETY: in bounds, aligned (mappings begin at a page), only accessed atomically or by the kernel.
        let value: &AtomicU32 = unsafe { at.cast().as_ref() };
        Some(value.load(Ordering::Acquire))
    }

    /// Publishes a position (release). False: beyond the end, or read-only.
    pub(crate) fn store_u64(&self, offset: usize, new: u64) -> bool {
        let usable = self.writable && offset.is_multiple_of(8);
        let Some(at) = self.at(offset, 8).filter(|_| usable) else {
            return false;
        };
        // SAFETY: in bounds, aligned (mappings begin at a page), writable, only accessed atomically or by the kernel.
        let value: &AtomicU64 = unsafe { at.cast().as_ref() };
        value.store(new, Ordering::Release);
        true
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: this is the whole mapping, and no reference into it outlives a method.
        unsafe { sys::unmap(self.base, self.len) };
    }
}
