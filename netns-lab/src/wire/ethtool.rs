//! Offloads of devices, read and set as ethtool(8) does.
//!
//! Source: `include/uapi/linux/{ethtool,sockios}.h`, `net/ethtool/ioctl.c`.

use std::io;
use std::mem;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result};
use rustix::net::{AddressFamily, SocketType, socket};

use crate::place::Place;

/// `SIOCETHTOOL`
const ETHTOOL: u64 = 0x8946;

/// Work that a device does, or a stack for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offload {
    /// Checksums of what comes in are looked at by the device.
    RxChecksum,
    /// Checksums of what goes out are written by the device.
    TxChecksum,
    /// TCP is cut into segments by the device.
    Tso,
    /// Packets are cut into segments as late as possible.
    Gso,
    /// Segments that come in are put together.
    Gro,
}

impl Offload {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::RxChecksum, Self::TxChecksum, Self::Tso, Self::Gso, Self::Gro];

    /// `ETHTOOL_G…`; the command that sets it is the next.
    const fn get(self) -> u32 {
        match self {
            Self::RxChecksum => 0x14,
            Self::TxChecksum => 0x16,
            Self::Tso => 0x1e,
            Self::Gso => 0x23,
            Self::Gro => 0x2b,
        }
    }
}

/// `struct ethtool_value`
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// Whether a device of a place does it.
///
/// # Errors
/// No such device.
pub fn get(place: &Place, device: &str, offload: Offload) -> Result<bool> {
    let value = call(place, device, Value { command: offload.get(), data: 0 });
    Ok(value.with_context(|| format!("{}: asking {device} for {offload:?}", place.name()))? != 0)
}

/// Lets it do so, or not.
///
/// # Errors
/// No such device, or it cannot.
pub fn set(place: &Place, device: &str, offload: Offload, on: bool) -> Result<()> {
    call(place, device, Value { command: offload.get() + 1, data: on.into() })
        .with_context(|| format!("{}: setting {offload:?} of {device}", place.name()))?;
    Ok(())
}

fn call(place: &Place, device: &str, mut value: Value) -> Result<u32> {
    let socket = {
        let _inside = place.enter()?;
        socket(AddressFamily::INET, SocketType::DGRAM, None)?
    };
    // SAFETY: an ifreq is bytes and numbers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    let room = request.ifr_name.len() - 1;
    anyhow::ensure!(device.len() <= room, "a name of more than {room} bytes");
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        // A name's bytes are chars of C, signed or not.
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request names a value of the size that these commands read and write; both live across the call.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), ETHTOOL as _, &raw mut request) };
    if done == 0 { Ok(value.data) } else { Err(io::Error::last_os_error().into()) }
}
