//! One loaded program: the verifier's numbers, test runs, timing.
//!
//! Sources: `net/bpf/test_run.c` for what a test run takes and gives back, `kernel/bpf/verifier.c` (`print_verification_stats`) for
//! the statistics.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::attr::{self, Command};
use crate::error::KernelError;
use crate::insn::Insn;
use crate::map::{kernel_name, pin};
use crate::sys::{self, SysResult};

/// `BPF_F_SLEEPABLE`
const SLEEPABLE: u32 = 1 << 4;
/// `BPF_LOG_LEVEL1`
const LOG_BRANCHES: u32 = 1;
/// `BPF_LOG_STATS`
const LOG_STATS: u32 = 4;
/// Largest log the kernel writes.
const LOG_MAX: usize = 16 << 20;
/// Characters of a refused program's log that are kept: the end says why.
const LOG_KEPT: usize = 6000;
/// What the verifier says when it gives up.
const TOO_LARGE: &str = "BPF program is too large";
/// Bytes a program may add to a frame in a test run.
const HEADROOM: usize = 512;

/// What the verifier says about a program it accepts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerifierStats {
    /// Instructions the verifier followed, over all branches; the kernel's limit is 1,000,000.
    pub processed: u32,
    /// States remembered at the same time, at most.
    pub peak_states: u32,
    /// States in all.
    pub total_states: u32,
    /// Stack bytes of each function, in their order; the limit along a call chain is 512.
    pub stack_depth: Vec<u32>,
    /// Slots loaded.
    pub instructions: u32,
}

impl VerifierStats {
    /// From a `log_level` 4 log.
    fn parse(log: &str, instructions: usize) -> Self {
        let mut stats = Self { instructions: u32::try_from(instructions).unwrap_or(u32::MAX), ..Self::default() };
        for line in log.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let after = |name: &str| {
                let at = words.iter().position(|word| *word == name)?;
                words.get(at + 1)?.parse().ok()
            };
            if let Some(depths) = line.strip_prefix("stack depth ") {
                stats.stack_depth = depths.split('+').filter_map(|d| d.trim().parse().ok()).collect();
            } else if words.first() == Some(&"subprog") {
                // One line each in newer kernels (seen in 7.3), where the line above has their maximum.
                stats.stack_depth.extend(after("stack"));
            } else if words.first() == Some(&"processed") {
                stats.processed = after("processed").unwrap_or(0);
                stats.peak_states = after("peak_states").unwrap_or(0);
                stats.total_states = after("total_states").unwrap_or(0);
            }
        }
        stats
    }
}

/// What a program is loaded as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProgramKind {
    /// `BPF_PROG_TYPE_SCHED_CLS`: gets a packet.
    #[default]
    Classifier,
    /// `BPF_PROG_TYPE_SYSCALL`: gets a buffer; for comparing instructions.
    Syscall,
}

impl ProgramKind {
    /// The kernel's number and the flags it wants.
    const fn bpf(self) -> (u32, u32) {
        match self {
            Self::Classifier => (3, 0),
            Self::Syscall => (31, SLEEPABLE),
        }
    }
}

/// What to load.
#[derive(Clone, Copy, Debug)]
pub struct ProgramSource<'a> {
    /// Name; the kernel keeps 15 characters.
    pub name: &'a str,
    /// What it is loaded as.
    pub kind: ProgramKind,
    /// Instructions.
    pub insns: &'a [Insn],
    /// Licence: must be GPL-compatible for many helpers.
    pub license: &'a CStr,
    /// BTF, function records with the size of one, line records with the size of one.
    pub btf: Option<BtfInfo<'a>>,
}

/// Debug information of one program.
#[derive(Clone, Copy, Debug)]
pub struct BtfInfo<'a> {
    /// BTF object.
    pub btf: BorrowedFd<'a>,
    /// `struct bpf_func_info` records, and the bytes of one.
    pub func_info: (&'a [u8], usize),
    /// `struct bpf_line_info` records, and the bytes of one.
    pub line_info: (&'a [u8], usize),
}

/// The fields of `struct __sk_buff` that a test run takes and gives back. Host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SkbContext {
    /// `mark`
    pub mark: u32,
    /// `priority`
    pub priority: u32,
    /// `ingress_ifindex`
    pub ingress_ifindex: u32,
    /// `ifindex`: 0 and 1 are the loopback device, others must exist in the thread's network namespace.
    pub ifindex: u32,
    /// `cb`
    pub cb: [u32; 5],
}

/// `struct __sk_buff` as 32-bit words.
type RawSkb = [u32; 48];

/// Word numbers in it.
mod word {
    pub(super) const MARK: usize = 2;
    pub(super) const PRIORITY: usize = 8;
    pub(super) const INGRESS_IFINDEX: usize = 9;
    pub(super) const IFINDEX: usize = 10;
    pub(super) const CB: usize = 12;
}

impl SkbContext {
    fn to_raw(self) -> RawSkb {
        let mut raw = [0; 48];
        raw[word::MARK] = self.mark;
        raw[word::PRIORITY] = self.priority;
        raw[word::INGRESS_IFINDEX] = self.ingress_ifindex;
        raw[word::IFINDEX] = self.ifindex;
        raw[word::CB..word::CB + 5].copy_from_slice(&self.cb);
        raw
    }

    fn from_raw(raw: &RawSkb) -> Self {
        let mut cb = [0; 5];
        cb.copy_from_slice(&raw[word::CB..word::CB + 5]);
        Self {
            mark: raw[word::MARK],
            priority: raw[word::PRIORITY],
            ingress_ifindex: raw[word::INGRESS_IFINDEX],
            ifindex: raw[word::IFINDEX],
            cb,
        }
    }
}

/// A program in the kernel.
#[derive(Debug)]
pub struct Program {
    name: String,
    fd: OwnedFd,
    stats: VerifierStats,
}

fn size(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// One `BPF_PROG_LOAD`; also gives the log.
fn load_once(source: &ProgramSource<'_>, level: u32, log: &mut [u8]) -> SysResult<OwnedFd> {
    let (kind, flags) = source.kind.bpf();
    let mut args = attr::ProgramLoad {
        kind,
        flags,
        insn_count: size(source.insns.len()),
        insns: attr::address(source.insns),
        license: attr::address(source.license.to_bytes_with_nul()),
        log_level: level,
        log_size: size(log.len()),
        log: attr::address_mut(log),
        name: kernel_name(source.name),
        ..Default::default()
    };
    if let Some(info) = &source.btf {
        let (functions, function_size) = info.func_info;
        let (lines, line_size) = info.line_info;
        args.btf_fd = attr::number(info.btf);
        if function_size > 0 && !functions.is_empty() {
            args.func_info = attr::address(functions);
            args.func_info_size = size(function_size);
            args.func_info_count = size(functions.len() / function_size);
        }
        if line_size > 0 && !lines.is_empty() {
            args.line_info = attr::address(lines);
            args.line_info_size = size(line_size);
            args.line_info_count = size(lines.len() / line_size);
        }
    }
    // SAFETY: every address is that of a live slice of the length given beside it; the licence ends with a zero byte;
    // the kernel writes to the log only.
    unsafe { sys::bpf_fd(Command::ProgramLoad, &mut args) }
}

fn text(log: &[u8]) -> String {
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    String::from_utf8_lossy(&log[..end]).into_owned()
}

/// The end of a long log, from the beginning of a line.
fn tail(log: String) -> String {
    let Some(from) = log.len().checked_sub(LOG_KEPT) else {
        return log;
    };
    let kept: String = log.char_indices().filter(|(at, _)| *at >= from).map(|(_, c)| c).collect();
    match kept.split_once('\n') {
        Some((_, lines)) => format!("[...]\n{lines}"),
        None => kept,
    }
}

impl Program {
    /// Loads it.
    ///
    /// # Errors
    /// [`KernelError::Verifier`] with the end of the log.
    pub fn load(source: &ProgramSource<'_>) -> Result<Self, KernelError> {
        if !sys::SUPPORTED {
            return Err(KernelError::Unsupported { what: "loading a program" });
        }
        let mut log = vec![0; 64 << 10];
        match load_once(source, LOG_STATS, &mut log) {
            Ok(fd) => Ok(Self {
                name: source.name.to_owned(),
                fd,
                stats: VerifierStats::parse(&text(&log), source.insns.len()),
            }),
            Err(first) => {
                let short = text(&log);
                let refused = |errno, log| KernelError::Verifier { program: source.name.to_owned(), errno, log };
                // It gave up at a million instructions: that takes long, and their trace explains nothing.
                if first == sys::E2BIG && short.contains(TOO_LARGE) {
                    return Err(refused(first, tail(short)));
                }
                let mut log = vec![0; LOG_MAX];
                match load_once(source, LOG_BRANCHES, &mut log) {
                    // It did load now: then the first failure was a shortage of memory or a signal.
                    Ok(_) => Err(refused(first, tail(text(&log)))),
                    // Kernels before 6.4 write the beginning of a trace that is too long, not its end.
                    Err(sys::ENOSPC) => Err(refused(first, tail(short))),
                    Err(errno) => Err(refused(errno, tail(text(&log)))),
                }
            }
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the verifier said.
    #[must_use]
    pub fn stats(&self) -> &VerifierStats {
        &self.stats
    }

    /// Gives it a name in a bpf file system.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn pin(&self, path: &Path) -> Result<(), KernelError> {
        pin(self.fd.as_fd(), path).map_err(|errno| KernelError::System { step: "pin program", errno })
    }

    fn failed(&self, errno: i32) -> KernelError {
        KernelError::TestRun { program: self.name.clone(), errno }
    }

    /// Runs it once on a frame, in the network namespace of this thread. Frame and context are what the program left.
    /// Returns the program's verdict.
    ///
    /// # Errors
    /// EINVAL for a frame below 14 bytes (34 for IPv4, 54 for IPv6), ENODEV for an interface index that is not there.
    pub fn test_run(&self, frame: &mut Vec<u8>, ctx: &mut SkbContext) -> Result<u32, KernelError> {
        let len = frame.len();
        frame.resize(len + HEADROOM, 0);
        let mut raw = ctx.to_raw();
        let out = attr::address_mut(frame.as_mut_slice());
        let raw_out = attr::address_mut(raw.as_mut_slice());
        let mut args = attr::TestRun {
            program: attr::number(self.fd.as_fd()),
            data_size_in: size(len),
            data_size_out: size(len + HEADROOM),
            data_in: out,
            data_out: out,
            ctx_size_in: size(size_of::<RawSkb>()),
            ctx_size_out: size(size_of::<RawSkb>()),
            ctx_in: raw_out,
            ctx_out: raw_out,
            ..Default::default()
        };
        // SAFETY: the kernel copies the frame and context in before it runs the program and out afterwards, at most as
        // many bytes as the sizes say, which are those of the live buffers.
        let result = unsafe { sys::bpf(Command::ProgramTestRun, &mut args) };
        let kept = if result.is_ok() { args.data_size_out as usize } else { len };
        frame.truncate(kept);
        result.map_err(|errno| self.failed(errno))?;
        *ctx = SkbContext::from_raw(&raw);
        Ok(args.retval)
    }

    /// Runs a [`ProgramKind::Syscall`] program once on a buffer, which it may change. Returns r0.
    ///
    /// # Errors
    /// EINVAL for another kind, or a buffer above 64 KiB.
    pub fn run_buffer(&self, buffer: &mut [u8]) -> Result<u32, KernelError> {
        let mut args = attr::TestRun {
            program: attr::number(self.fd.as_fd()),
            ctx_size_in: size(buffer.len()),
            ctx_in: attr::address_mut(buffer),
            ..Default::default()
        };
        // SAFETY: the kernel copies the buffer in and out again, as many bytes as the size says.
        unsafe { sys::bpf(Command::ProgramTestRun, &mut args) }.map_err(|errno| self.failed(errno))?;
        Ok(args.retval)
    }

    /// Mean nanoseconds of one run over `repeat` runs on the same frame, after a tenth as many to warm up. Every run
    /// gets the frame as the run before left it. Pin the thread first: [`crate::pin_to_cpu`].
    ///
    /// # Errors
    /// As [`Self::test_run`].
    pub fn bench(&self, frame: &[u8], ctx: &SkbContext, repeat: u32) -> Result<u32, KernelError> {
        self.repeat(frame, ctx, (repeat / 10).max(1))?;
        self.repeat(frame, ctx, repeat.max(1))
    }

    fn repeat(&self, frame: &[u8], ctx: &SkbContext, repeat: u32) -> Result<u32, KernelError> {
        let raw = ctx.to_raw();
        let mut args = attr::TestRun {
            program: attr::number(self.fd.as_fd()),
            data_size_in: size(frame.len()),
            data_in: attr::address(frame),
            repeat,
            ctx_size_in: size(size_of::<RawSkb>()),
            ctx_in: attr::address(raw.as_slice()),
            ..Default::default()
        };
        // SAFETY: the kernel reads frame and context, whose sizes are given, and writes nothing back.
        unsafe { sys::bpf(Command::ProgramTestRun, &mut args) }.map_err(|errno| self.failed(errno))?;
        Ok(args.duration)
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Loads BTF.
pub(crate) fn load_btf(bytes: &[u8]) -> SysResult<OwnedFd> {
    let mut args = attr::BtfLoad { btf: attr::address(bytes), size: size(bytes.len()), ..Default::default() };
    // SAFETY: the kernel reads `size` bytes of a live slice; there is no log.
    unsafe { sys::bpf_fd(Command::BtfLoad, &mut args) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_read_from_the_log() {
        let log = "verification time 57 usec\nstack depth 16+0+32\nprocessed 120 insns (limit 1000000) \
                   max_states_per_insn 1 total_states 9 peak_states 8 mark_read 2\n";
        let stats = VerifierStats::parse(log, 40);
        assert_eq!(
            stats,
            VerifierStats {
                processed: 120,
                peak_states: 8,
                total_states: 9,
                stack_depth: vec![16, 0, 32],
                instructions: 40,
            }
        );
    }

    #[test]
    fn statistics_are_read_from_the_log_of_newer_kernels() {
        let log = "verification time 9273 usec\nstack depth max 48\nsubprog 0 (<unknown>) main insns_self 3 insns_total 9 \
                   stack 16\nsubprog 1 (copy) static insns_self 6 insns_total 6 stack 32\nprocessed 9 insns (limit 1000000)";
        let stats = VerifierStats::parse(log, 9);
        assert_eq!((stats.processed, stats.stack_depth), (9, vec![16, 32]));
    }

    #[test]
    fn the_end_of_a_long_log_is_kept() {
        let log = "line\n".repeat(5000) + "the reason";
        let kept = tail(log);
        assert!(kept.len() < LOG_KEPT + 10);
        assert!(kept.starts_with("[...]\nline\n"), "{}", &kept[..20]);
        assert!(kept.ends_with("the reason"));
    }
}
