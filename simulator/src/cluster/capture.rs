//! Captures: one pcapng file per link, time stamps of the virtual clock in nanoseconds
//! (draft-ietf-opsawg-pcapng, sections 4.1 to 4.3).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

/// Files that are being written, by link.
#[derive(Debug)]
pub struct Captures {
    folder: PathBuf,
    links: BTreeMap<String, BufWriter<File>>,
    /// The first thing that went wrong; nothing is written after it.
    error: Option<io::Error>,
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
            let mut file = BufWriter::new(File::create(self.folder.join(format!("{name}.pcapng")))?);
            file.write_all(&head(link))?;
            self.links.insert(link.to_owned(), file);
        }
        match self.links.get_mut(link) {
            Some(file) => file.write_all(&packet(now_ns, frame)),
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
        self.links.into_values().try_for_each(|mut file| file.flush())
    }
}

fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 12).unwrap_or(u32::MAX).to_le_bytes();
    let mut block = Vec::with_capacity(body.len() + 12);
    block.extend_from_slice(&kind.to_le_bytes());
    block.extend_from_slice(&length);
    block.extend_from_slice(body);
    block.extend_from_slice(&length);
    block
}

fn padded(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn option(code: u16, value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&code.to_le_bytes());
    out.extend_from_slice(&u16::try_from(value.len()).unwrap_or(0).to_le_bytes());
    padded(value, out);
}

/// Section header and the description of the one interface: Ethernet, nanoseconds, the link's name.
fn head(link: &str) -> Vec<u8> {
    let mut section = Vec::new();
    section.extend_from_slice(&0x1a2b_3c4d_u32.to_le_bytes());
    section.extend_from_slice(&[1, 0, 0, 0]);
    section.extend_from_slice(&u64::MAX.to_le_bytes());
    let mut interface = Vec::new();
    interface.extend_from_slice(&[1, 0, 0, 0]);
    interface.extend_from_slice(&0_u32.to_le_bytes());
    option(2, link.as_bytes(), &mut interface);
    option(9, &[9], &mut interface);
    option(0, &[], &mut interface);
    let mut head = block(0x0a0d_0d0a, &section);
    head.extend_from_slice(&block(1, &interface));
    head
}

fn packet(now_ns: u64, frame: &[u8]) -> Vec<u8> {
    let length = u32::try_from(frame.len()).unwrap_or(u32::MAX).to_le_bytes();
    let [a, b, c, d, e, f, g, h] = now_ns.to_le_bytes();
    let mut body = Vec::with_capacity(frame.len() + 24);
    body.extend_from_slice(&[0, 0, 0, 0, e, f, g, h, a, b, c, d]);
    body.extend_from_slice(&length);
    body.extend_from_slice(&length);
    padded(frame, &mut body);
    block(6, &body)
}
