//! Consumer of a kernel ring buffer (kernel/bpf/ringbuf.c): one page with the consumer's position, one with the
//! producer's, then the data pages twice, so that a record that wraps is contiguous.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use datapath_maps::MapKind;

use crate::error::KernelError;
use crate::map::KernelMap;
use crate::mapping::Mapping;
use crate::sys;

/// `BPF_RINGBUF_BUSY_BIT`: reserved, not yet submitted.
const BUSY: u32 = 1 << 31;
/// `BPF_RINGBUF_DISCARD_BIT`
const DISCARDED: u32 = 1 << 30;
/// Bytes of a record's header.
const HEADER: usize = 8;

/// Reads a ring buffer. Only one reader may exist per map.
#[derive(Debug)]
pub struct RingReader {
    /// The map again: readable when records are waiting.
    fd: OwnedFd,
    consumer: Mapping,
    /// The producer's page and the data pages.
    producer: Mapping,
    page: usize,
    mask: u64,
}

impl RingReader {
    /// Of a ring buffer map.
    ///
    /// # Errors
    /// [`KernelError::Map`]: EINVAL for another kind, or what mmap(2) says.
    pub fn new(map: &KernelMap) -> Result<Self, KernelError> {
        let error = |errno| KernelError::Map { map: map.spec().name.clone(), step: "map ring buffer", errno };
        if map.spec().kind != MapKind::RingBuf {
            return Err(error(sys::EINVAL));
        }
        let page = sys::page_size();
        let size = map.spec().max_entries;
        let consumer = Mapping::new(map.as_fd(), page, true, 0).map_err(error)?;
        let len = page + 2 * size as usize;
        let producer = Mapping::new(map.as_fd(), len, false, page).map_err(error)?;
        let fd = map.as_fd().try_clone_to_owned().map_err(|e| error(e.raw_os_error().unwrap_or(sys::EINVAL)))?;
        Ok(Self { fd, consumer, producer, page, mask: u64::from(size) - 1 })
    }

    /// Takes all records that are ready, in order.
    #[must_use]
    pub fn drain(&mut self) -> Vec<Vec<u8>> {
        self.take(usize::MAX)
    }

    /// Takes records that are ready, in order, but not more than `most`: programs may add them faster than they are used.
    #[must_use]
    pub fn take(&mut self, most: usize) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        let Some(mut at) = self.consumer.load_u64(0) else {
            return records;
        };
        while records.len() < most
            && let Some((len, data)) = self.record(at)
        {
            records.extend(data);
            at += (len + HEADER).next_multiple_of(8) as u64;
            self.consumer.store_u64(0, at);
        }
        records
    }

    /// Length and (unless discarded) data of the record at a position; `None` when there is none yet.
    fn record(&self, at: u64) -> Option<(usize, Option<Vec<u8>>)> {
        if at >= self.producer.load_u64(0)? {
            return None;
        }
        let offset = self.page + usize::try_from(at & self.mask).ok()?;
        let header = self.producer.load_u32(offset)?;
        if header & BUSY != 0 {
            return None;
        }
        let len = (header & !DISCARDED) as usize;
        if header & DISCARDED != 0 {
            return Some((len, None));
        }
        let mut data = vec![0; len];
        self.producer.read(offset + HEADER, &mut data).then_some((len, Some(data)))
    }
}

/// For poll(2) and epoll(7): readable when records are waiting. The kernel wakes a reader that has drained everything.
impl AsFd for RingReader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for RingReader {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
