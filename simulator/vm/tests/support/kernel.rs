//! Just enough of bpf(2) to run a program of type `BPF_PROG_TYPE_SYSCALL` on a context.
#![expect(unsafe_code, reason = "raw system calls")]

use simulator_vm::isa::Raw;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_TYPE_SYSCALL: u32 = 31;
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

/// Loads and runs once; the context is changed in place. An error carries the verifier's words.
pub fn run(code: &[Raw], context: &mut [u8]) -> Result<(), String> {
    let bytes: Vec<u8> = code.iter().flat_map(|raw| raw.to_bytes()).collect();
    let load = |log: &mut [u8]| {
        let mut attributes = Load {
            prog_type: BPF_PROG_TYPE_SYSCALL,
            insn_cnt: u32::try_from(code.len()).unwrap(),
            insns: bytes.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log_level: if log.is_empty() { 0 } else { 2 },
            log_size: u32::try_from(log.len()).unwrap(),
            log_buf: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
            prog_flags: BPF_F_SLEEPABLE,
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
    let program = unsafe { OwnedFd::from_raw_fd(libc::c_int::try_from(number).unwrap()) };
    let mut attributes = TestRun {
        prog_fd: program.as_raw_fd().cast_unsigned(),
        ctx_size_in: u32::try_from(context.len()).unwrap(),
        ctx_in: context.as_mut_ptr() as u64,
        ..TestRun::default()
    };
    bpf(BPF_PROG_TEST_RUN, &mut attributes).map_err(|error| error.to_string())?;
    Ok(())
}
