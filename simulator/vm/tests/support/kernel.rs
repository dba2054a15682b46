//! Just enough of bpf(2) to run a program once.
#![expect(clippy::unwrap_used, reason = "a failing helper of a test is a failing test")]
#![allow(dead_code, clippy::allow_attributes, reason = "every test uses another part")]

use simulator_vm::isa::Raw;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_TYPE_SYSCALL: u32 = 31;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_F_SLEEPABLE: u32 = 16;

#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    rest: [u64; 12],
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the structures above are what the two commands take; their pointers are to live buffers.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

pub fn is_root() -> bool {
    // SAFETY: has no precondition.
    unsafe { libc::geteuid() == 0 }
}

/// Kinds of program.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Its context is plain memory.
    Syscall,
    /// tc.
    Classifier,
}

/// Loads a program. An error carries the verifier's words.
fn load(kind: Kind, code: &[Raw]) -> Result<OwnedFd, String> {
    let bytes: Vec<u8> = code.iter().flat_map(|raw| raw.to_bytes()).collect();
    let load = |log: &mut [u8]| {
        let mut attributes = Load {
            prog_type: match kind {
                Kind::Syscall => BPF_PROG_TYPE_SYSCALL,
                Kind::Classifier => BPF_PROG_TYPE_SCHED_CLS,
            },
            insn_cnt: u32::try_from(code.len()).unwrap(),
            insns: bytes.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log_level: if log.is_empty() { 0 } else { 2 },
            log_size: u32::try_from(log.len()).unwrap(),
            log_buf: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
            prog_flags: match kind {
                Kind::Syscall => BPF_F_SLEEPABLE,
                Kind::Classifier => 0,
            },
            ..Load::default()
        };
        bpf(BPF_PROG_LOAD, &mut attributes)
    };
    let number = load(&mut []).map_err(|error| {
        let mut log = vec![0; 1 << 20];
        let _ = load(&mut log);
        let text = String::from_utf8_lossy(&log);
        let text = text.trim_end_matches('\0');
        format!("{error}: {}", &text[text.len().saturating_sub(600)..])
    })?;
    // SAFETY: a fresh file descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(libc::c_int::try_from(number).unwrap()) })
}

/// Loads and runs once; the context is changed in place.
pub fn run(code: &[Raw], context: &mut [u8]) -> Result<(), String> {
    let program = load(Kind::Syscall, code)?;
    let mut attributes = TestRun {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        ctx_size_in: u32::try_from(context.len()).unwrap(),
        ctx_in: context.as_mut_ptr() as u64,
        ..TestRun::default()
    };
    bpf(BPF_PROG_TEST_RUN, &mut attributes).map_err(|error| error.to_string())?;
    Ok(())
}

/// Loads a classifier and runs it once on a frame; the result is its return value. Frame and context (of 192 bytes) are
/// changed in place.
pub fn run_packet(code: &[Raw], frame: &mut Vec<u8>, context: &mut [u8]) -> Result<u32, String> {
    let program = load(Kind::Classifier, code)?;
    let mut out = vec![0; 1 << 17];
    let mut context_out = vec![0; context.len()];
    let mut attributes = TestRun {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        data_size_in: u32::try_from(frame.len()).unwrap(),
        data_size_out: u32::try_from(out.len()).unwrap(),
        data_in: frame.as_ptr() as u64,
        data_out: out.as_mut_ptr() as u64,
        ctx_size_in: u32::try_from(context.len()).unwrap(),
        ctx_size_out: u32::try_from(context.len()).unwrap(),
        ctx_in: context.as_ptr() as u64,
        ctx_out: context_out.as_mut_ptr() as u64,
        repeat: 1,
        ..TestRun::default()
    };
    bpf(BPF_PROG_TEST_RUN, &mut attributes).map_err(|error| error.to_string())?;
    out.truncate(usize::try_from(attributes.data_size_out).unwrap());
    *frame = out;
    context.copy_from_slice(&context_out);
    Ok(attributes.retval)
}
