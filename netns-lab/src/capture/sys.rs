//! The system calls of captures: all unsafe code of this crate, one operation a block.
//!
//! Source: packet(7), `include/uapi/linux/{if_packet,virtio_net,ethtool,sockios}.h`, `net/packet/af_packet.c`.

use std::io;
use std::mem::{self, size_of};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, netdevice, socket_with, sockopt};

/// Bytes that may wait in the kernel until they are read; what does not fit is counted as lost.
const QUEUE: usize = 64 << 20;
/// The longest frame: a packet of 64 KiB, and what is around it.
pub(super) const LONGEST: usize = 1 << 17;
/// Bytes of `struct virtio_net_hdr`, which comes before each frame.
pub(super) const VIRTIO: usize = 10;

/// One frame of the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    /// `struct virtio_net_hdr`.
    pub virtio: [u8; VIRTIO],
    /// Bytes of the frame.
    pub len: usize,
    /// `PACKET_HOST`, `PACKET_OUTGOING`, …
    pub kind: u8,
    /// Nanoseconds since 1970.
    pub at_ns: u64,
}

fn last_error() -> io::Error {
    io::Error::last_os_error()
}

fn socklen<T>() -> libc::socklen_t {
    // Sizes of a few bytes.
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or(libc::socklen_t::MAX)
}

fn set(socket: &OwnedFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the value is an int that lives across the call, and its length is given.
    let done = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), socklen::<libc::c_int>())
    };
    if done == 0 { Ok(()) } else { Err(last_error()) }
}

/// A socket that has been given every frame of a device of this thread's namespace since this returned.
pub(super) fn open(device: &str) -> io::Result<OwnedFd> {
    // Without a protocol: nothing comes in before everything is set.
    let socket = socket_with(
        AddressFamily::PACKET,
        SocketType::RAW,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None::<Protocol>,
    )?;
    let index = netdevice::name_to_index(socket.as_fd(), device)?;
    sockopt::set_socket_recv_buffer_size_force(socket.as_fd(), QUEUE)?;
    set(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
    set(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
    let address = libc::sockaddr_ll {
        sll_family: u16::try_from(libc::AF_PACKET).unwrap_or_default(),
        sll_protocol: u16::try_from(libc::ETH_P_ALL).unwrap_or_default().to_be(),
        sll_ifindex: i32::try_from(index).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address is a sockaddr_ll that lives across the call, and its length is given.
    let done = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), socklen::<libc::sockaddr_ll>()) };
    if done == 0 { Ok(socket) } else { Err(last_error()) }
}

/// Takes one frame out of the queue, into `buffer`. `None`: the queue is empty.
pub(super) fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    let mut virtio = [0u8; VIRTIO];
    // SAFETY: a sockaddr_ll is numbers, for which zero is a value.
    let mut from: libc::sockaddr_ll = unsafe { mem::zeroed() };
    // Room for one control message, aligned as its header must be.
    let mut control = [0u64; 8];
    let mut parts = [
        libc::iovec { iov_base: virtio.as_mut_ptr().cast(), iov_len: virtio.len() },
        libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() },
    ];
    // SAFETY: a msghdr is numbers and pointers, for which zero is a value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = (&raw mut from).cast();
    message.msg_namelen = socklen::<libc::sockaddr_ll>();
    message.msg_iov = parts.as_mut_ptr();
    // The type of these fields is another in another libc.
    message.msg_iovlen = parts.len() as _;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: every pointer in the message is to memory of the length beside it, which lives across the call.
    let got = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let Ok(got) = usize::try_from(got) else {
        let error = last_error();
        return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
    };
    if message.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(io::Error::other("a frame that is longer than any"));
    }
    let len = got.checked_sub(VIRTIO).ok_or_else(|| io::Error::other("a frame without the header before it"))?;
    let at_ns = timestamp(&message).ok_or_else(|| io::Error::other("a frame without a time"))?;
    Ok(Some(Received { virtio, len, kind: from.sll_pkttype, at_ns }))
}

/// The time in the control message, which is of a message that was received.
fn timestamp(message: &libc::msghdr) -> Option<u64> {
    // SAFETY: the kernel has set the control buffer's length to what it wrote.
    let header = unsafe { libc::CMSG_FIRSTHDR(message) };
    if header.is_null() {
        return None;
    }
    // SAFETY: it is not null, so it points to a whole header in the control buffer, aligned for it.
    let kind = unsafe { header.read() };
    if (kind.cmsg_level, kind.cmsg_type) != (libc::SOL_SOCKET, libc::SCM_TIMESTAMPNS) {
        return None;
    }
    // SAFETY: the header is in the control buffer, and its data behind it.
    let data = unsafe { libc::CMSG_DATA(header) };
    // SAFETY: data of this kind is a timespec, wherever it begins.
    let time = unsafe { data.cast::<libc::timespec>().read_unaligned() };
    let (seconds, nanoseconds) = (u64::try_from(time.tv_sec).ok()?, u64::try_from(time.tv_nsec).ok()?);
    seconds.checked_mul(1_000_000_000)?.checked_add(nanoseconds)
}

/// Frames that found no room in the queue since this was asked last.
pub(super) fn lost(socket: &OwnedFd) -> io::Result<u64> {
    let mut counts = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut len = socklen::<libc::tpacket_stats>();
    // SAFETY: the kernel writes at most `len` bytes, which is the size of `counts`; both live across the call.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut counts).cast(),
            &raw mut len,
        )
    };
    if done == 0 { Ok(u64::from(counts.tp_drops)) } else { Err(last_error()) }
}
