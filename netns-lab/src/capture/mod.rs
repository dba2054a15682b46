//! Every frame of a device, both ways, as the kernel hands it to a packet socket.
//!
//! The socket's queue in the kernel is the buffer: nothing has to run beside what is captured, and the capture has begun
//! when [`Capture::start`] returns. Before each frame the kernel says whether its checksum is still to be written by
//! whoever sends it on (`PACKET_VNET_HDR`), without which checksums on virtual devices could not be judged: a packet
//! that never leaves the machine usually never gets one.
//!
//! Invariant: a frame is in the capture, or [`Recording::lost`] says that some are not; a check of one that lost some
//! must fail ([`Recording::complete`]).
//!
//! Where a packet socket stands: on the way in before programs of TCX and of tc, on the way out after them.

mod file;
#[expect(unsafe_code, reason = "packet sockets with what only they tell")]
mod sys;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

pub use file::save;

use crate::place::Place;
use crate::poll;

/// Flags of `struct virtio_net_hdr`.
const NEEDS_CHECKSUM: u8 = 1;
const CHECKSUM_IS_VALID: u8 = 2;
/// Kinds of segments in it; the ECN bit is beside them.
const NOT_SEGMENTED: u8 = 0;
const ECN: u8 = 0x80;

/// Which way a frame went, seen from the namespace with the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Out of the device into the stack.
    In,
    /// Out of the stack into the device.
    Out,
}

/// What the kernel says of the checksum of the innermost transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// It is in the frame.
    Written,
    /// It is in the frame, and has been looked at.
    Verified,
    /// The frame has only the sum of the pseudo header. Who sends it on has to sum up from byte `start` to the end of the
    /// packet and write the complement `offset` bytes behind that.
    Open {
        /// Where the sum begins, from the beginning of the frame.
        start: usize,
        /// Where it is to be written, from `start`.
        offset: usize,
    },
}

/// A frame that stands for many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segments {
    /// `VIRTIO_NET_HDR_GSO_*`: 1 TCP over IPv4, 4 TCP over IPv6, 5 UDP.
    pub kind: u8,
    /// Bytes of payload of each.
    pub size: u16,
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// When: nanoseconds since 1970.
    pub at_ns: u64,
    /// Which way.
    pub way: Way,
    /// What is known of its checksum.
    pub checksum: Checksum,
    /// Whether it is still to be cut into segments.
    pub segments: Option<Segments>,
    /// From the Ethernet header to the end.
    pub bytes: Vec<u8>,
}

/// A capture that runs.
#[derive(Debug)]
pub struct Capture {
    name: String,
    socket: OwnedFd,
    frames: Vec<Frame>,
    lost: u64,
    buffer: Vec<u8>,
}

/// A capture that has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recording {
    /// `PLACE:DEVICE`.
    pub name: String,
    /// In order.
    pub frames: Vec<Frame>,
    /// Frames that are not among them.
    pub lost: u64,
}

impl Capture {
    /// Begins with a device of a place. Every frame that passes it after this has returned is in the capture.
    ///
    /// # Errors
    /// No such device, or no permission.
    pub fn start(place: &Place, device: &str) -> Result<Self> {
        let name = format!("{}:{device}", place.name());
        let _inside = place.enter()?;
        let socket = sys::open(device).with_context(|| format!("capturing at {name}"))?;
        Ok(Self { name, socket, frames: Vec::new(), lost: 0, buffer: vec![0; sys::LONGEST] })
    }

    /// Everything so far.
    ///
    /// # Errors
    /// The socket's: the device is gone.
    pub fn frames(&mut self) -> Result<&[Frame]> {
        self.drain()?;
        Ok(&self.frames)
    }

    /// Takes everything so far out, and goes on.
    ///
    /// # Errors
    /// As [`Self::frames`]; frames were lost.
    pub fn take(&mut self) -> Result<Vec<Frame>> {
        self.drain()?;
        ensure!(self.lost == 0, "{}: {} frames were lost", self.name, self.lost);
        Ok(std::mem::take(&mut self.frames))
    }

    /// Waits for a frame; it stays in the capture.
    ///
    /// # Errors
    /// As [`Self::frames`]; it did not come.
    pub fn wait(&mut self, patience: Duration, what: &str, wanted: impl Fn(&Frame) -> bool) -> Result<Frame> {
        let end = Instant::now() + patience;
        let mut seen = 0;
        loop {
            self.drain()?;
            if let Some(frame) = self.frames.iter().skip(seen).find(|frame| wanted(frame)) {
                return Ok(frame.clone());
            }
            seen = self.frames.len();
            let left = end.saturating_duration_since(Instant::now());
            ensure!(poll::readable(&self.socket, left)?, "{}: {what} did not come", self.name);
        }
    }

    /// Sends a frame out of the device, as it is.
    ///
    /// # Errors
    /// The socket's.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // Nothing is open in it, and it is not to be cut.
        let mut bytes = vec![0; sys::VIRTIO];
        bytes.extend_from_slice(frame);
        let sent = rustix::io::write(&self.socket, &bytes).with_context(|| format!("sending at {}", self.name))?;
        ensure!(sent == bytes.len(), "{}: {sent} of {} bytes were sent", self.name, bytes.len());
        Ok(())
    }

    /// Ends it.
    ///
    /// # Errors
    /// As [`Self::frames`].
    pub fn stop(mut self) -> Result<Recording> {
        self.drain()?;
        Ok(Recording { name: self.name, frames: self.frames, lost: self.lost })
    }

    fn drain(&mut self) -> Result<()> {
        while let Some(frame) =
            sys::receive(&self.socket, &mut self.buffer).with_context(|| format!("capturing at {}", self.name))?
        {
            let bytes = self.buffer.get(..frame.len).unwrap_or_default().to_vec();
            let (checksum, segments) = offloads(frame.virtio);
            let way = if frame.kind == libc::PACKET_OUTGOING { Way::Out } else { Way::In };
            self.frames.push(Frame { at_ns: frame.at_ns, way, checksum, segments, bytes });
        }
        self.lost += sys::lost(&self.socket).with_context(|| format!("capturing at {}", self.name))?;
        Ok(())
    }
}

/// Readable when there are frames that were not asked for yet.
impl AsFd for Capture {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Recording {
    /// The frames, if they are all.
    ///
    /// # Errors
    /// Some were lost.
    pub fn complete(&self) -> Result<&[Frame]> {
        ensure!(self.lost == 0, "{}: {} frames were lost", self.name, self.lost);
        Ok(&self.frames)
    }
}

impl Frame {
    /// The bytes with an open checksum written, as a device that is asked to do so does. A frame of many segments gets the
    /// checksum of the packet as long as it is: right if the one that is written in each segment will be.
    #[must_use]
    pub fn completed(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        if let Checksum::Open { start, offset } = self.checksum {
            complete(&mut bytes, start, offset);
        }
        bytes
    }
}

/// Sums up from `start` to the end and writes the complement at `offset` behind it. Bytes that are not there stay away.
fn complete(bytes: &mut [u8], start: usize, offset: usize) {
    let Some(part) = bytes.get(start..) else { return };
    let mut sum = etherparse::checksum::Sum16BitWords::new();
    sum = sum.add_slice(part);
    // A computed zero is sent as all ones: for TCP they are the same number, for UDP zero means that there is none.
    let value = match sum.ones_complement() {
        0 => u16::MAX,
        value => value,
    };
    if let Some(place) = bytes.get_mut(start + offset..start + offset + 2) {
        // The sum is in memory order.
        place.copy_from_slice(&value.to_ne_bytes());
    }
}

/// Reads `struct virtio_net_hdr`, whose numbers are in the machine's order.
fn offloads(header: [u8; sys::VIRTIO]) -> (Checksum, Option<Segments>) {
    let [flags, kind, _, _, s0, s1, c0, c1, o0, o1] = header;
    let checksum = if flags & NEEDS_CHECKSUM != 0 {
        let (start, offset) = (u16::from_ne_bytes([c0, c1]), u16::from_ne_bytes([o0, o1]));
        Checksum::Open { start: start.into(), offset: offset.into() }
    } else if flags & CHECKSUM_IS_VALID != 0 {
        Checksum::Verified
    } else {
        Checksum::Written
    };
    let kind = kind & !ECN;
    let segments = (kind != NOT_SEGMENTED).then(|| Segments { kind, size: u16::from_ne_bytes([s0, s1]) });
    (checksum, segments)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_before_a_frame_is_read() {
        let [s0, s1] = 1398u16.to_ne_bytes();
        let [c0, c1] = 34u16.to_ne_bytes();
        let [o0, o1] = 16u16.to_ne_bytes();
        let open = Checksum::Open { start: 34, offset: 16 };
        let header = [1, 1 | ECN, 66, 0, s0, s1, c0, c1, o0, o1];
        assert_eq!(offloads(header), (open, Some(Segments { kind: 1, size: 1398 })));
        assert_eq!(offloads([2, 0, 0, 0, 0, 0, 0, 0, 0, 0]), (Checksum::Verified, None));
        assert_eq!(offloads([0; 10]), (Checksum::Written, None));
    }

    #[test]
    fn an_open_checksum_is_written_where_it_belongs() {
        // RFC 1071, section 3: these words sum up to ddf2.
        let bytes = vec![0xee, 0, 0, 0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        let checksum = Checksum::Open { start: 1, offset: 0 };
        let frame = Frame { at_ns: 0, way: Way::Out, checksum, segments: None, bytes };
        let [high, low] = (!0xddf2u16).to_be_bytes();
        assert_eq!(frame.completed(), [0xee, high, low, 0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
    }
}
