//! Questions to the kernel over route netlink, one at a time: send, and wait for the whole answer.
//!
//! Messages are those of `netlink-packet-route`; what it cannot read belongs to others and is passed over.
//!
//! Source: `include/uapi/linux/netlink.h`, RFC 3549.

use std::os::fd::{AsFd as _, OwnedFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;

use crate::sys::{self, SysResult};

/// Bytes of an answer's part, at most: the kernel fills up to 32 KiB at once.
const ANSWER: usize = 64 << 10;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;

/// A route netlink socket in the network namespace that the thread was in when it was made.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
}

impl Netlink {
    pub(crate) fn open() -> SysResult<Self> {
        Ok(Self { socket: sys::netlink_socket()? })
    }

    /// Asks for a change; `flags` as in `NLM_F_CREATE`.
    pub(crate) fn request(&self, message: RouteNetlinkMessage, flags: u16) -> SysResult<()> {
        self.ask(message, NLM_F_REQUEST | NLM_F_ACK | flags, |_| {})
    }

    /// Asks for everything of a kind.
    pub(crate) fn dump(&self, message: RouteNetlinkMessage) -> SysResult<Vec<RouteNetlinkMessage>> {
        let mut all = Vec::new();
        self.ask(message, NLM_F_REQUEST | NLM_F_DUMP, |answer| all.push(answer))?;
        Ok(all)
    }

    fn ask(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        mut take: impl FnMut(RouteNetlinkMessage),
    ) -> SysResult<()> {
        let mut message = NetlinkMessage::from(message);
        message.header.flags = flags;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        sys::send(self.socket.as_fd(), &bytes)?;
        let mut buffer = vec![0; ANSWER];
        loop {
            let len = sys::receive(self.socket.as_fd(), &mut buffer)?;
            let mut rest = buffer.get(..len).unwrap_or_default();
            while let Some(one) = split(&mut rest) {
                match NetlinkMessage::<RouteNetlinkMessage>::deserialize(one).map(|message| message.payload) {
                    Ok(NetlinkPayload::Error(error)) => {
                        return error.code.map_or(Ok(()), |code| Err(code.get().saturating_neg()));
                    }
                    Ok(NetlinkPayload::Done(done)) => {
                        return if done.code == 0 { Ok(()) } else { Err(done.code.saturating_neg()) };
                    }
                    Ok(NetlinkPayload::InnerMessage(message)) => take(message),
                    // Of a kind that the library cannot read: nothing that was made here.
                    Ok(_) | Err(_) => {}
                }
            }
        }
    }
}

/// Takes one message off the front.
fn split<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = u32::from_ne_bytes(*rest.first_chunk()?);
    let len = usize::try_from(len).ok().filter(|len| (HEADER..=rest.len()).contains(len))?;
    let (one, _) = rest.split_at_checked(len)?;
    *rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    Some(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_split_by_their_lengths_and_padding() {
        let mut bytes = vec![0; 20 + 16];
        bytes[..4].copy_from_slice(&18_u32.to_ne_bytes());
        bytes[20..24].copy_from_slice(&16_u32.to_ne_bytes());
        let mut rest = bytes.as_slice();
        assert_eq!(split(&mut rest).map(<[u8]>::len), Some(18));
        assert_eq!(split(&mut rest).map(<[u8]>::len), Some(16));
        assert_eq!(split(&mut rest), None);
    }

    #[test]
    fn a_length_that_cannot_be_ends_the_answer() {
        for len in [0_u32, 15, 17, u32::MAX] {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&len.to_ne_bytes());
            assert_eq!(split(&mut bytes.as_slice()), None);
        }
    }
}
