//! Devices and addresses that come, go and change: the kernel says so on a multicast group of route netlink.
//!
//! What has changed is not read from the messages: whoever waits looks at everything again. So no message can be missed
//! for good, and a queue that was too short is no loss.
//!
//! Source: `include/uapi/linux/rtnetlink.h`, netlink(7).

use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use tokio::io::unix::AsyncFd;

use crate::poll;

/// `RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR`
const GROUPS: u32 = 0x1 | 0x10 | 0x100;

/// Notices changes of devices and addresses in one network namespace.
#[derive(Debug)]
pub struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Begins to watch this thread's network namespace. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Protocol 0 is `NETLINK_ROUTE`.
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
        bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
        Ok(Self(poll::readable(socket)?))
    }

    /// Waits for a change. May be dropped and called again at any time without losing one.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            if drain(self.0.get_ref())? {
                return Ok(());
            }
            ready.clear_ready();
        }
    }

    /// Forgets what was said until now.
    ///
    /// # Errors
    /// When the socket cannot be read.
    pub fn forget(&self) -> io::Result<()> {
        drain(self.0.get_ref()).map(|_| ())
    }
}

/// Takes all messages that are waiting; whether there was one.
fn drain(socket: &OwnedFd) -> io::Result<bool> {
    // A message that is cut off is as good as a whole one.
    let mut buffer = [0; 64];
    let mut any = false;
    loop {
        match rustix::io::read(socket, &mut buffer) {
            // Some were lost: there was one.
            Ok(_) | Err(Errno::NOBUFS) => any = true,
            Err(Errno::WOULDBLOCK) => return Ok(any),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
