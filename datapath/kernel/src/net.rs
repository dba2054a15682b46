//! A private network namespace with devices of chosen index, and a thread's stay in it.
//!
//! A test run takes its device, `skb->dev`, by index from the network namespace of the calling thread; an index that is
//! not there is refused. The devices never carry traffic: they are bridges without ports, or dummies, whichever the
//! kernel has.
//!
//! Source: `include/uapi/linux/{netlink,rtnetlink,if_link}.h`.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::error::KernelError;
use crate::sys;

const RTM_NEWLINK: u16 = 16;
const NLMSG_ERROR: u16 = 2;
/// `NLM_F_REQUEST | NLM_F_ACK | NLM_F_EXCL | NLM_F_CREATE`
const CREATE_FLAGS: u16 = 0x1 | 0x4 | 0x200 | 0x400;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;

/// Kinds of device to try.
const KINDS: [&str; 2] = ["dummy", "bridge"];

/// A network namespace of its own. It exists as long as this value, or a thread inside.
#[derive(Debug)]
pub struct TestNet {
    namespace: OwnedFd,
    netlink: OwnedFd,
}

/// The thread is inside a namespace until this is dropped. Stays on its thread.
#[derive(Debug)]
pub struct Inside {
    before: OwnedFd,
    /// Not `Send`: the namespace is the thread's.
    thread: std::marker::PhantomData<*const ()>,
}

fn own_namespace() -> Result<OwnedFd, KernelError> {
    File::open("/proc/thread-self/ns/net").map(OwnedFd::from).map_err(|error| KernelError::System {
        step: "open /proc/thread-self/ns/net",
        errno: error.raw_os_error().unwrap_or(sys::EINVAL),
    })
}

fn system(step: &'static str) -> impl Fn(i32) -> KernelError {
    move |errno| KernelError::System { step, errno }
}

impl TestNet {
    /// A namespace with nothing but the loopback device (index 1, down).
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN.
    pub fn new() -> Result<Self, KernelError> {
        if !sys::SUPPORTED {
            return Err(KernelError::Unsupported { what: "a network namespace" });
        }
        // A thread of its own, so that the caller's never leaves its namespace.
        std::thread::spawn(|| {
            sys::unshare_net().map_err(system("new network namespace"))?;
            Ok(Self { namespace: own_namespace()?, netlink: sys::netlink_socket().map_err(system("netlink socket"))? })
        })
        .join()
        .unwrap_or(Err(KernelError::System { step: "thread of a new network namespace", errno: sys::EINVAL }))
    }

    /// A namespace with devices of these indices; 1 is the loopback device, which is there anyway.
    ///
    /// # Errors
    /// As [`Self::new`] and [`Self::add_device`].
    pub fn with_devices(indices: &[u32]) -> Result<Self, KernelError> {
        let net = Self::new()?;
        for index in indices.iter().filter(|index| **index > 1) {
            let [_, _, high, low] = index.to_be_bytes();
            net.add_device(*index, [0x02, 0, 0, 0, high, low])?;
        }
        Ok(net)
    }

    /// Adds a device `dev<index>` with this index and Ethernet address.
    ///
    /// # Errors
    /// EEXIST for an index in use, EOPNOTSUPP when the kernel has none of the kinds of device.
    pub fn add_device(&self, index: u32, address: [u8; 6]) -> Result<(), KernelError> {
        let mut answer = Err(sys::EOPNOTSUPP);
        for kind in KINDS {
            answer = self.request(&new_link(index, address, kind));
            if answer != Err(sys::EOPNOTSUPP) {
                break;
            }
        }
        answer.map_err(system("add device"))
    }

    fn request(&self, message: &[u8]) -> Result<(), i32> {
        sys::send(self.netlink.as_fd(), message)?;
        let mut buffer = [0; 4096];
        let len = sys::receive(self.netlink.as_fd(), &mut buffer)?;
        acknowledged(&buffer[..len])
    }

    /// Moves this thread in, until the guard is dropped. Takes about 20 µs: stay inside for many runs.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN.
    pub fn enter(&self) -> Result<Inside, KernelError> {
        let before = own_namespace()?;
        sys::enter_net(self.namespace.as_fd()).map_err(system("enter network namespace"))?;
        Ok(Inside { before, thread: std::marker::PhantomData })
    }
}

/// The namespace itself: `/proc/PID/fd/NUMBER` names it to other programs.
impl AsFd for TestNet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // The namespace the thread came from is still open: going back can only fail for lack of memory.
        let _ = sys::enter_net(self.before.as_fd());
    }
}

/// The thread runs on one CPU until this is dropped. Stays on its thread.
pub struct Pinned {
    before: sys::CpuSet,
    /// Not `Send`: the affinity is the thread's.
    thread: std::marker::PhantomData<*const ()>,
}

impl std::fmt::Debug for Pinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pinned").finish_non_exhaustive()
    }
}

/// Keeps this thread on one CPU: per-CPU values are then always the same CPU's, and times are comparable.
///
/// # Errors
/// EINVAL for a CPU that is not there or not allowed.
pub fn pin_to_cpu(cpu: u32) -> Result<Pinned, KernelError> {
    let before = sys::affinity().map_err(system("read CPU affinity"))?;
    if cpu >= 1024 {
        return Err(system("set CPU affinity")(sys::EINVAL));
    }
    sys::set_affinity(&sys::one_cpu(cpu as usize)).map_err(system("set CPU affinity"))?;
    Ok(Pinned { before, thread: std::marker::PhantomData })
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // It was allowed before.
        let _ = sys::set_affinity(&self.before);
    }
}

/// An attribute: length, kind, content, padded to 4.
fn attribute(out: &mut Vec<u8>, kind: u16, content: &[u8]) {
    let len = u16::try_from(content.len() + 4).unwrap_or(u16::MAX);
    out.extend_from_slice(&len.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(content);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn new_link(index: u32, address: [u8; 6], kind: &str) -> Vec<u8> {
    // struct ifinfomsg: family, padding, type, index, flags, change.
    let mut body = vec![0; 4];
    body.extend_from_slice(&index.to_ne_bytes());
    body.extend_from_slice(&[0; 8]);
    attribute(&mut body, IFLA_IFNAME, format!("dev{index}\0").as_bytes());
    attribute(&mut body, IFLA_ADDRESS, &address);
    let mut info = Vec::new();
    attribute(&mut info, IFLA_INFO_KIND, kind.as_bytes());
    attribute(&mut body, IFLA_LINKINFO, &info);
    // struct nlmsghdr: length, type, flags, sequence, port.
    let len = u32::try_from(body.len() + 16).unwrap_or(u32::MAX);
    let mut message = len.to_ne_bytes().to_vec();
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&CREATE_FLAGS.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&body);
    message
}

/// What an acknowledgement says.
fn acknowledged(answer: &[u8]) -> Result<(), i32> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.first_chunk());
    let code = answer.get(16..20).and_then(|bytes| bytes.first_chunk());
    match (kind, code) {
        (Some(kind), Some(code)) if u16::from_ne_bytes(*kind) == NLMSG_ERROR => match i32::from_ne_bytes(*code) {
            0 => Ok(()),
            errno => Err(errno.saturating_neg()),
        },
        _ => Err(sys::EINVAL),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_message_is_padded_and_says_its_length() {
        let message = new_link(7, [2, 0, 0, 0, 0, 7], "bridge");
        assert_eq!(message.len() % 4, 0);
        let len = u32::from_ne_bytes(*message.first_chunk().unwrap());
        assert_eq!(len as usize, message.len());
        assert_eq!(message[20..24], 7u32.to_ne_bytes());
    }

    #[test]
    fn acknowledgements_are_read() {
        let mut answer = vec![0; 36];
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        assert_eq!(acknowledged(&answer), Ok(()));
        answer[16..20].copy_from_slice(&(-17i32).to_ne_bytes());
        assert_eq!(acknowledged(&answer), Err(17));
        assert_eq!(acknowledged(&answer[..10]), Err(sys::EINVAL));
    }
}
