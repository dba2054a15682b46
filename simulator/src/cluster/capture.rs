//! Captures: one pcapng file per link, time stamps of the virtual clock in nanoseconds
//! (draft-ietf-opsawg-pcapng, sections 4.1 to 4.3).

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::{DataLink, Endianness};

type Link = PcapNgWriter<BufWriter<File>>;

/// `if_tsresol`: time stamps are in units of 10^-9 seconds.
const NANOSECONDS: u8 = 9;

/// Files that are being written, by link.
pub struct Captures {
    folder: PathBuf,
    links: BTreeMap<String, Link>,
    /// The first thing that went wrong; nothing is written after it.
    error: Option<io::Error>,
}

impl fmt::Debug for Captures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Captures")
            .field("folder", &self.folder)
            .field("links", &self.links.len())
            .finish_non_exhaustive()
    }
}

impl Captures {
    /// Writes into a folder, which is made if it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        Ok(Self { folder: folder.to_owned(), links: BTreeMap::new(), error: None })
    }

    /// Adds a frame that crossed a link. What goes wrong is told by [`Self::finish`].
    pub fn frame(&mut self, link: &str, now_ns: u64, frame: &[u8]) {
        if self.error.is_none() {
            self.error = self.write(link, now_ns, frame).err();
        }
    }

    fn write(&mut self, link: &str, now_ns: u64, frame: &[u8]) -> io::Result<()> {
        if !self.links.contains_key(link) {
            let name = link.replace(['/', '\\', ':'], "_");
            let writer = open(&self.folder.join(format!("{name}.pcapng")), link)?;
            self.links.insert(link.to_owned(), writer);
        }
        match self.links.get_mut(link) {
            Some(writer) => writer.write_pcapng_block(packet(now_ns, frame)).map(drop).map_err(io::Error::other),
            None => Ok(()),
        }
    }

    /// Ends all files.
    ///
    /// # Errors
    /// The first thing that went wrong since the start.
    pub fn finish(self) -> io::Result<()> {
        if let Some(error) = self.error {
            return Err(error);
        }
        self.links.into_values().try_for_each(|writer| writer.into_inner().flush())
    }
}

/// A file with the description of its one interface: Ethernet, nanoseconds, the link's name.
fn open(path: &Path, link: &str) -> io::Result<Link> {
    let file = BufWriter::new(File::create(path)?);
    let mut writer = PcapNgWriter::with_endianness(file, Endianness::Little).map_err(io::Error::other)?;
    let interface = InterfaceDescriptionBlock {
        linktype: DataLink::ETHERNET,
        snaplen: 0,
        options: vec![
            InterfaceDescriptionOption::IfName(link.into()),
            InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
        ],
    };
    writer.write_pcapng_block(interface).map_err(io::Error::other)?;
    Ok(writer)
}

fn packet(now_ns: u64, frame: &[u8]) -> EnhancedPacketBlock<'_> {
    EnhancedPacketBlock {
        interface_id: 0,
        timestamp: Duration::from_nanos(now_ns),
        original_len: u32::try_from(frame.len()).unwrap_or(u32::MAX),
        data: frame.into(),
        options: Vec::new(),
    }
}
