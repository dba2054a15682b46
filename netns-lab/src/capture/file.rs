//! Captures as a file: one section, one interface for each device, time stamps in nanoseconds, the frames of all in the
//! order of time (draft-ietf-opsawg-pcapng, sections 4.1 to 4.3 and 4.6).

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::time::Duration;

use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::pcapng::blocks::interface_statistics::{InterfaceStatisticsBlock, InterfaceStatisticsOption};
use pcap_file::{DataLink, Endianness};

use super::{Checksum, Frame, Recording, Way};

/// `if_tsresol`: time stamps are in units of 10^-9 seconds.
const NANOSECONDS: u8 = 9;
/// The two lowest bits of `epb_flags`.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// Writes them into one file.
///
/// # Errors
/// The file's.
pub fn save(path: &Path, recordings: &[Recording]) -> io::Result<()> {
    let file = BufWriter::new(File::create(path)?);
    let mut writer = PcapNgWriter::with_endianness(file, Endianness::Little).map_err(io::Error::other)?;
    for recording in recordings {
        writer.write_pcapng_block(interface(recording)).map_err(io::Error::other)?;
    }
    let mut frames: Vec<(u32, &Frame)> =
        (0..).zip(recordings).flat_map(|(id, one)| one.frames.iter().map(move |frame| (id, frame))).collect();
    // Stable: frames of one device keep their order.
    frames.sort_by_key(|(_, frame)| frame.at_ns);
    let last = frames.last().map_or(0, |(_, frame)| frame.at_ns);
    for (id, frame) in frames {
        writer.write_pcapng_block(packet(id, frame)).map_err(io::Error::other)?;
    }
    for (interface_id, recording) in (0..).zip(recordings) {
        let counts = InterfaceStatisticsBlock {
            interface_id,
            // Two halves, the higher first, in a little-endian file.
            timestamp: last.rotate_left(32),
            options: vec![InterfaceStatisticsOption::IsbOsDrop(recording.lost)],
        };
        writer.write_pcapng_block(counts).map_err(io::Error::other)?;
    }
    writer.into_inner().flush()
}

fn interface(recording: &Recording) -> InterfaceDescriptionBlock<'_> {
    InterfaceDescriptionBlock {
        linktype: DataLink::ETHERNET,
        snaplen: 0,
        options: vec![
            InterfaceDescriptionOption::IfName(Cow::Borrowed(&recording.name)),
            InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
        ],
    }
}

fn packet(interface_id: u32, frame: &Frame) -> EnhancedPacketBlock<'_> {
    let way = match frame.way {
        Way::In => INBOUND,
        Way::Out => OUTBOUND,
    };
    let mut options = vec![EnhancedPacketOption::Flags(way)];
    let mut said = Vec::new();
    if let Checksum::Open { start, offset } = frame.checksum {
        said.push(format!("checksum from {start} is still to be written at {}", start + offset));
    }
    if let Some(segments) = frame.segments {
        said.push(format!("to be cut into segments of {}", segments.size));
    }
    if !said.is_empty() {
        options.push(EnhancedPacketOption::Comment(Cow::Owned(said.join("; "))));
    }
    EnhancedPacketBlock {
        interface_id,
        timestamp: Duration::from_nanos(frame.at_ns),
        original_len: u32::try_from(frame.bytes.len()).unwrap_or(u32::MAX),
        data: Cow::Borrowed(&frame.bytes),
        options,
    }
}
