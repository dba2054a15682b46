//! Programs on devices: TCX links (Linux 6.6), which replace a program atomically and, pinned, outlive this process.
//!
//! A link belongs to the device: when the device goes, the link stays behind without one ([`LinkState::ifindex`] is 0) and
//! can only be dropped. Sources: `kernel/bpf/tcx.c`, `include/uapi/linux/bpf.h`.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::attr::{self, Command};
use crate::error::KernelError;
use crate::insn::Insn;
use crate::map::{open_pinned, pin};
use crate::net::TestNet;
use crate::program::{Program, ProgramKind, ProgramSource};
use crate::sys;

/// `BPF_LINK_TYPE_TCX`
const TCX: u32 = 11;

/// Where on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TcxPoint {
    /// `BPF_TCX_INGRESS`: packets that the device has received.
    Ingress = 46,
    /// `BPF_TCX_EGRESS`: packets that the device is to send.
    Egress = 47,
}

/// What the kernel says about a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkState {
    /// Number of the program it runs.
    pub program: u32,
    /// Device; 0 when the device is gone.
    pub ifindex: u32,
    /// `BPF_TCX_INGRESS` or `BPF_TCX_EGRESS`.
    pub point: u32,
}

/// A program on a device. Detached when this is dropped, unless the link is pinned.
#[derive(Debug)]
pub struct TcxLink {
    fd: OwnedFd,
}

fn failed(step: &'static str) -> impl Fn(i32) -> KernelError {
    move |errno| KernelError::System { step, errno }
}

impl TcxLink {
    /// Attaches a program to a device of this thread's network namespace, behind programs that are there.
    ///
    /// # Errors
    /// EINVAL before Linux 6.6, ENODEV, EPERM.
    pub fn attach(program: &Program, ifindex: u32, point: TcxPoint) -> Result<Self, KernelError> {
        if !sys::SUPPORTED {
            return Err(KernelError::Unsupported { what: "attaching a program" });
        }
        let mut args = attr::LinkCreate {
            program: attr::number(program.as_fd()),
            target: ifindex,
            attach_type: point as u32,
            ..Default::default()
        };
        // SAFETY: the attributes hold no addresses.
        let fd = unsafe { sys::bpf_fd(Command::LinkCreate, &mut args) }.map_err(failed("attach program"))?;
        Ok(Self { fd })
    }

    /// Opens a pinned link.
    ///
    /// # Errors
    /// ENOENT when nothing is there; EINVAL for another kind of object.
    pub fn open_pinned(path: &Path) -> Result<Self, KernelError> {
        let link = Self { fd: open_pinned(path).map_err(failed("open pinned link"))? };
        link.state().map(|_| link)
    }

    /// The link at `path`, running `program` on that device: the pinned one with its program replaced, without a moment
    /// between the two, or a new one.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn ensure(program: &Program, ifindex: u32, point: TcxPoint, path: &Path) -> Result<Self, KernelError> {
        if let Ok(link) = Self::open_pinned(path) {
            let state = link.state()?;
            if state.ifindex == ifindex && state.point == point as u32 {
                link.update(program)?;
                return Ok(link);
            }
            // Of a device that is gone, or whose number is another's now.
            let _ = std::fs::remove_file(path);
        }
        let link = Self::attach(program, ifindex, point)?;
        link.pin(path)?;
        Ok(link)
    }

    /// Replaces the program: every packet meets the old one or the new one.
    ///
    /// # Errors
    /// ENOLINK when the device is gone.
    pub fn update(&self, program: &Program) -> Result<(), KernelError> {
        let mut args = attr::LinkUpdate {
            link: attr::number(self.fd.as_fd()),
            program: attr::number(program.as_fd()),
            ..Default::default()
        };
        // SAFETY: the attributes hold no addresses.
        unsafe { sys::bpf(Command::LinkUpdate, &mut args) }.map(|_| ()).map_err(failed("replace program"))
    }

    /// Gives it a name in a bpf file system: the program stays attached until the name is removed.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn pin(&self, path: &Path) -> Result<(), KernelError> {
        pin(self.fd.as_fd(), path).map_err(failed("pin link"))
    }

    /// Which program, on which device.
    ///
    /// # Errors
    /// EINVAL when it is no TCX link.
    pub fn state(&self) -> Result<LinkState, KernelError> {
        let mut info = [attr::LinkInfo::default()];
        let mut args = attr::ObjectInfo {
            fd: attr::number(self.fd.as_fd()),
            len: u32::try_from(size_of::<attr::LinkInfo>()).unwrap_or(0),
            info: attr::address_mut(&mut info),
        };
        // SAFETY: the kernel writes at most `len` bytes, the size of the struct at that address.
        unsafe { sys::bpf(Command::ObjectInfo, &mut args) }.map_err(failed("link info"))?;
        let [info] = info;
        if info.kind != TCX {
            return Err(failed("not a TCX link")(sys::EINVAL));
        }
        Ok(LinkState { program: info.program, ifindex: info.ifindex, point: info.attach_type })
    }
}

impl AsFd for TcxLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Whether programs can be attached here, tried on the loopback device of a private network namespace: kernels load
/// programs that they cannot attach.
///
/// # Errors
/// What the kernel says: EINVAL before Linux 6.6.
pub fn probe_tcx() -> Result<(), KernelError> {
    let net = TestNet::new()?;
    let _inside = net.enter()?;
    // TC_ACT_UNSPEC: the next program.
    let insns = [Insn::mov(0, -1), Insn::exit()];
    let source =
        ProgramSource { name: "probe", kind: ProgramKind::Classifier, insns: &insns, license: c"GPL", btf: None };
    let program = Program::load(&source)?;
    let link = TcxLink::attach(&program, 1, TcxPoint::Ingress)?;
    link.update(&program)?;
    match link.state()?.ifindex {
        1 => Ok(()),
        _ => Err(failed("attach program to the loopback device")(sys::EINVAL)),
    }
}
