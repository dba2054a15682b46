//! rbpf's machine code, one copy per object, shared by all engines of all nodes.
//!
//! Without its `std` feature rbpf writes code into memory it is given: ours is as large as needed (rbpf's own is one
//! page), writable while the code is written, then executable and no longer writable. Nothing in the code belongs to
//! one node: maps are handles, and addresses of slabs come through the context.

use std::fmt;

use crate::lower::{LowerError, Lowered};

/// The calls a lowered program may make into the host, by helper number.
pub(crate) type Entries = fn(i32) -> Option<rbpf::ebpf::Helper>;

/// Accepts what the lowering made; rbpf's own verifier refuses writes to r10.
pub(crate) fn accept(_: &[u8]) -> Result<(), rbpf::lib::Error> {
    Ok(())
}

pub(crate) fn rbpf_error(program: &str, error: &rbpf::lib::Error) -> LowerError {
    LowerError::Rbpf { program: program.to_owned(), reason: format!("{error:?}") }
}

/// A virtual machine over code that its owner keeps alive.
pub(crate) struct Vm(pub rbpf::EbpfVmMbuff<'static>);

// SAFETY: the only part of an EbpfVmMbuff that is not Send and Sync is the data of the stack-usage calculator; here that
// is a `()`, used during `set_program` only. Running takes &self and changes nothing in it.
unsafe impl Send for Vm {}
// SAFETY: as above.
unsafe impl Sync for Vm {}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Vm")
    }
}

/// Makes a machine for one program.
///
/// # Safety
/// The code must live, unmoved, as long as the machine.
pub(crate) unsafe fn machine(
    name: &str,
    code: &[u8],
    helpers: &std::collections::BTreeSet<i32>,
    entries: Entries,
) -> Result<Vm, LowerError> {
    let failed = |error: rbpf::lib::Error| rbpf_error(name, &error);
    let mut vm = rbpf::EbpfVmMbuff::new(None).map_err(failed)?;
    vm.set_verifier(accept).map_err(failed)?;
    // r10 moves by explicit instructions.
    vm.set_stack_usage_calculator(|_, _, _| 0, Box::new(())).map_err(failed)?;
    for &number in helpers {
        let entry = entries(number).ok_or_else(|| LowerError::Rbpf {
            program: name.to_owned(),
            reason: format!("helper {number} has no entry"),
        })?;
        vm.register_helper(number.cast_unsigned(), entry).map_err(failed)?;
    }
    // SAFETY: the caller promises that the code outlives the machine.
    let code: &'static [u8] = unsafe { std::slice::from_raw_parts(code.as_ptr(), code.len()) };
    vm.set_program(code).map_err(failed)?;
    Ok(Vm(vm))
}

/// One program's machine code.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
struct Compiled {
    // Dropped before the memory its code is in.
    vm: Vm,
    _memory: Executable,
}

/// The machine code of an object. Owned by its [`Lowered`], and made from it.
pub(crate) struct Jit {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    programs: Vec<Compiled>,
}

impl fmt::Debug for Jit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jit").finish_non_exhaustive()
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
impl Jit {
    /// There is none here.
    pub(crate) unsafe fn compile(_: &Lowered, _: Entries) -> Result<Self, LowerError> {
        Err(LowerError::NoJit)
    }

    pub(crate) fn vm(&self, _: usize) -> Option<&Vm> {
        None
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
impl Jit {
    /// Compiles every program.
    ///
    /// # Safety
    /// The result must not outlive `lowered`, whose code must not move.
    pub(crate) unsafe fn compile(lowered: &Lowered, entries: Entries) -> Result<Self, LowerError> {
        let mut programs = Vec::with_capacity(lowered.programs.len());
        for program in &lowered.programs {
            // SAFETY: the caller's promise.
            let mut vm = unsafe { machine(&program.name, &program.code, &program.helpers, entries) }?;
            let mut memory = Executable::new(program.code.len())?;
            // SAFETY: `memory` lives as long as the machine, see Compiled.
            let room = unsafe { memory.writable() };
            let failed = |error: rbpf::lib::Error| rbpf_error(&program.name, &error);
            vm.0.set_jit_exec_memory(room).map_err(failed)?;
            vm.0.jit_compile().map_err(failed)?;
            memory.seal()?;
            programs.push(Compiled { vm, _memory: memory });
        }
        Ok(Self { programs })
    }

    /// The machine of a program.
    pub(crate) fn vm(&self, program: usize) -> Option<&Vm> {
        self.programs.get(program).map(|compiled| &compiled.vm)
    }
}

/// Pages for machine code.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
struct Executable {
    start: *mut u8,
    len: usize,
}

// SAFETY: after `seal` the pages are only read and executed.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
unsafe impl Send for Executable {}
// SAFETY: as above.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
unsafe impl Sync for Executable {}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
impl Executable {
    /// rbpf's longest sequence for one instruction (a 64-bit modulo) is below 64 bytes.
    const BYTES_PER_INSTRUCTION: usize = 64;
    const PAGE: usize = 4096;

    /// Room for the machine code of so many bytes of lowered code. Pages that stay unused cost nothing.
    fn new(code: usize) -> Result<Self, LowerError> {
        let len =
            (code / crate::isa::Raw::SIZE * Self::BYTES_PER_INSTRUCTION + Self::PAGE).next_multiple_of(Self::PAGE);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: an anonymous mapping at a place the kernel chooses touches no existing memory.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(Self::error());
        }
        Ok(Self { start: start.cast(), len })
    }

    fn error() -> LowerError {
        LowerError::Memory { what: "memory for machine code", reason: std::io::Error::last_os_error().to_string() }
    }

    /// All of it, to be written once.
    ///
    /// # Safety
    /// Nothing may use the slice after `self` is dropped.
    unsafe fn writable(&mut self) -> &'static mut [u8] {
        // SAFETY: the mapping is `len` bytes and nobody else's; the caller bounds its life.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }

    /// From writable to executable.
    fn seal(&mut self) -> Result<(), LowerError> {
        // SAFETY: exactly this mapping; from here on rbpf only reads the address of its start.
        let result = unsafe { libc::mprotect(self.start.cast(), self.len, libc::PROT_READ | libc::PROT_EXEC) };
        if result == 0 { Ok(()) } else { Err(Self::error()) }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
impl Drop for Executable {
    fn drop(&mut self) {
        // SAFETY: exactly this mapping, and the machine that ran in it is gone.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}
