//! Programs on devices where the kernel has no TCX (before Linux 6.6): filters of the `clsact` queueing discipline in
//! direct-action mode.
//!
//! A filter is this crate's when it is of kind `bpf`, at [`PRIORITY`] with [`HANDLE`], and its name begins with [`MARK`].
//! A change of such a filter replaces its program at once: every packet meets the old one or the new one. Filters live
//! with the device, not with this process. Others' filters are never touched; the queueing discipline is removed with its
//! last filter.
//!
//! Sources: `net/sched/{sch_ingress,cls_api,cls_bpf}.c`, `include/uapi/linux/{rtnetlink,pkt_sched,pkt_cls}.h`.

use std::collections::BTreeSet;
use std::os::fd::AsFd as _;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcHeader, TcMessage, TcOption};

use crate::attach::TcxPoint;
use crate::attr;
use crate::error::KernelError;
use crate::insn::Insn;
use crate::net::TestNet;
use crate::netlink::Netlink;
use crate::program::{Program, ProgramKind, ProgramSource};
use crate::sys;

/// The first that packets meet.
const PRIORITY: u16 = 1;
/// Number among the filters of that priority.
const HANDLE: u32 = 0x7765_6972;
/// What names of these filters begin with.
const MARK: &str = "weir:";
/// `ETH_P_ALL`
const ANY_PROTOCOL: u16 = 3;
const KIND: &str = "clsact";
const BPF: &str = "bpf";

/// A program on a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Filter {
    /// Device.
    pub ifindex: u32,
    /// Where on it.
    pub point: TcxPoint,
    /// The name that it was given.
    pub name: String,
    /// Number of the program.
    pub program: u32,
}

/// Filters of the network namespace that the thread was in when this was made.
#[derive(Debug)]
pub struct Clsact(Netlink);

fn failed(step: &'static str) -> impl Fn(i32) -> KernelError {
    move |errno| KernelError::System { step, errno }
}

fn device(ifindex: u32) -> Result<i32, KernelError> {
    i32::try_from(ifindex).map_err(|_| failed("number of a device")(sys::EINVAL))
}

const fn parent(point: TcxPoint) -> TcHandle {
    let minor = match point {
        TcxPoint::Ingress => TcHandle::MIN_INGRESS,
        TcxPoint::Egress => TcHandle::MIN_EGRESS,
    };
    TcHandle { major: u16::MAX, minor }
}

fn qdisc(ifindex: u32) -> Result<TcMessage, KernelError> {
    let handle = TcHandle { major: u16::MAX, minor: 0 };
    let header = TcHeader { index: device(ifindex)?, handle, parent: TcHandle::CLSACT, ..TcHeader::default() };
    Ok(TcMessage::from_parts(header, vec![TcAttribute::Kind(KIND.to_owned())]))
}

fn filter(ifindex: u32, point: TcxPoint) -> Result<TcMessage, KernelError> {
    let header = TcHeader {
        index: device(ifindex)?,
        handle: TcHandle::from(HANDLE),
        parent: parent(point),
        info: u32::from(PRIORITY) << 16 | u32::from(ANY_PROTOCOL.to_be()),
        ..TcHeader::default()
    };
    Ok(TcMessage::from_parts(header, vec![TcAttribute::Kind(BPF.to_owned())]))
}

impl Clsact {
    /// Opens a socket in this thread's network namespace.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open() -> Result<Self, KernelError> {
        if !sys::SUPPORTED {
            return Err(KernelError::Unsupported { what: "attaching a program" });
        }
        Netlink::open().map(Self).map_err(failed("netlink socket"))
    }

    /// Puts a program on a device, in place of the one that is there under this crate's mark.
    ///
    /// # Errors
    /// ENODEV; EEXIST where somebody else's filter has the place; EINVAL where one of another kind has the priority.
    pub fn attach(&self, program: &Program, name: &str, ifindex: u32, point: TcxPoint) -> Result<(), KernelError> {
        match self.0.request(RouteNetlinkMessage::NewQueueDiscipline(qdisc(ifindex)?), NLM_F_CREATE | NLM_F_EXCL) {
            Ok(()) | Err(sys::EEXIST) => {}
            Err(errno) => return Err(failed("add clsact")(errno)),
        }
        if self.all(ifindex, point)?.iter().any(|found| is_place(found) && mark(found).is_none()) {
            return Err(failed("attach program: somebody else's filter has its place")(sys::EEXIST));
        }
        let mut message = filter(ifindex, point)?;
        message.attributes.push(TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(attr::number(program.as_fd()))),
            TcOption::Bpf(TcFilterBpfOption::ProgName(format!("{MARK}{name}"))),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]));
        self.0.request(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE).map_err(failed("attach program"))
    }

    /// Takes this crate's program off a device, and clsact with it if nothing else is there. Nothing there is no error.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn detach(&self, ifindex: u32, point: TcxPoint) -> Result<(), KernelError> {
        if self.on(ifindex, point)?.is_none() {
            return Ok(());
        }
        let message = RouteNetlinkMessage::DelTrafficFilter(filter(ifindex, point)?);
        match self.0.request(message, 0) {
            // It went with its device.
            Ok(()) | Err(sys::ENOENT | sys::ENODEV) => {}
            Err(errno) => return Err(failed("detach program")(errno)),
        }
        for point in [TcxPoint::Ingress, TcxPoint::Egress] {
            if !self.all(ifindex, point)?.is_empty() {
                return Ok(());
            }
        }
        match self.0.request(RouteNetlinkMessage::DelQueueDiscipline(qdisc(ifindex)?), 0) {
            Ok(()) | Err(sys::ENOENT | sys::ENODEV | sys::EINVAL) => Ok(()),
            Err(errno) => Err(failed("remove clsact")(errno)),
        }
    }

    /// This crate's program at a point of a device.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn on(&self, ifindex: u32, point: TcxPoint) -> Result<Option<Filter>, KernelError> {
        let found = self.all(ifindex, point)?;
        Ok(found.iter().filter(|message| is_place(message)).find_map(|message| {
            let (name, program) = mark(message)?;
            Some(Filter { ifindex, point, name, program })
        }))
    }

    /// This crate's programs on all devices.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn filters(&self) -> Result<BTreeSet<Filter>, KernelError> {
        let question = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
        let mut all = BTreeSet::new();
        for answer in self.0.dump(question).map_err(failed("list queueing disciplines"))? {
            let RouteNetlinkMessage::NewQueueDiscipline(message) = answer else { continue };
            let clsact = message.attributes.contains(&TcAttribute::Kind(KIND.to_owned()));
            let (true, Ok(ifindex)) = (clsact, u32::try_from(message.header.index)) else { continue };
            for point in [TcxPoint::Ingress, TcxPoint::Egress] {
                all.extend(self.on(ifindex, point)?);
            }
        }
        Ok(all)
    }

    /// Everybody's filters at a point of a device; none where there is no clsact.
    fn all(&self, ifindex: u32, point: TcxPoint) -> Result<Vec<TcMessage>, KernelError> {
        let header = TcHeader { index: device(ifindex)?, parent: parent(point), ..TcHeader::default() };
        let question = RouteNetlinkMessage::GetTrafficFilter(TcMessage::from_parts(header, Vec::new()));
        let answers = match self.0.dump(question) {
            Ok(answers) => answers,
            Err(sys::ENODEV | sys::EINVAL | sys::ENOENT) => return Ok(Vec::new()),
            Err(errno) => return Err(failed("list filters")(errno)),
        };
        let filters = answers.into_iter().filter_map(|answer| {
            if let RouteNetlinkMessage::NewTrafficFilter(message) = answer { Some(message) } else { None }
        });
        // Each priority has an entry of its own, which is no filter.
        Ok(filters.filter(|message| message.header.handle != TcHandle::UNSPEC).collect())
    }
}

fn is_place(message: &TcMessage) -> bool {
    message.header.info >> 16 == u32::from(PRIORITY) && message.header.handle == TcHandle::from(HANDLE)
}

/// The name behind the mark, and the program's number.
fn mark(message: &TcMessage) -> Option<(String, u32)> {
    let (mut name, mut program) = (None, 0);
    for attribute in &message.attributes {
        let TcAttribute::Options(options) = attribute else { continue };
        for option in options {
            if let TcOption::Bpf(TcFilterBpfOption::ProgName(found)) = option {
                name = found.strip_prefix(MARK).map(str::to_owned);
            } else if let TcOption::Bpf(TcFilterBpfOption::ProgId(found)) = option {
                program = *found;
            }
        }
    }
    Some((name?, program))
}

/// Whether programs can be attached by clsact here, tried on the loopback device of a private network namespace.
///
/// # Errors
/// What the kernel says: ENOENT without `CONFIG_NET_SCH_INGRESS` or `CONFIG_NET_CLS_BPF`.
pub fn probe_clsact() -> Result<(), KernelError> {
    let net = TestNet::new()?;
    let _inside = net.enter()?;
    let insns = [Insn::mov(0, -1), Insn::exit()];
    let source =
        ProgramSource { name: "probe", kind: ProgramKind::Classifier, insns: &insns, license: c"GPL", btf: None };
    let clsact = Clsact::open()?;
    clsact.attach(&Program::load(&source)?, "probe", 1, TcxPoint::Egress)?;
    match clsact.on(1, TcxPoint::Egress)? {
        Some(_) => Ok(()),
        None => Err(failed("attach program to the loopback device")(sys::EINVAL)),
    }
}
