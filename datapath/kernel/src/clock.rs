//! The clock of flows: `jiffies64`, which user space cannot read elsewhere, asked through a two-line program.

use std::time::{Duration, Instant};

use crate::error::KernelError;
use crate::insn::{Insn, Size};
use crate::program::{Program, ProgramKind, ProgramSource, SkbContext};
use crate::sys;

/// `BPF_FUNC_jiffies64`
const JIFFIES64: i32 = 118;
/// Offset of `cb` in `struct __sk_buff`.
const CB: i16 = 48;
/// Bytes of a frame, at least.
const ETHERNET: usize = 14;
/// Values of `CONFIG_HZ` that kernels are built with.
const RATES: [u32; 4] = [100, 250, 300, 1000];

/// Reads `jiffies64`.
#[derive(Debug)]
pub struct Jiffies(Program);

impl Jiffies {
    /// Loads the program: a classifier, since programs of the kind that needs no packet came with Linux 5.14.
    ///
    /// # Errors
    /// EPERM.
    pub fn new() -> Result<Self, KernelError> {
        let insns = [
            Insn::mov_reg(6, 1),
            Insn::call(JIFFIES64),
            Insn::store(Size::Double, 6, CB, 0),
            Insn::mov(0, 0),
            Insn::exit(),
        ];
        let source =
            ProgramSource { name: "jiffies", kind: ProgramKind::Classifier, insns: &insns, license: c"GPL", btf: None };
        Program::load(&source).map(Self)
    }

    /// Ticks now.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn now(&self) -> Result<u64, KernelError> {
        let mut context = SkbContext::default();
        self.0.test_run(&mut vec![0; ETHERNET], &mut context)?;
        let [low, high, ..] = context.cb.map(u32::to_ne_bytes);
        let mut ticks = [0; 8];
        ticks[..4].copy_from_slice(&low);
        ticks[4..].copy_from_slice(&high);
        Ok(u64::from_ne_bytes(ticks))
    }

    /// Ticks per second (`CONFIG_HZ`), from the time between the beginnings of two ticks: takes up to 60 ms.
    ///
    /// # Errors
    /// What the kernel says; ETIME when the clock stands still.
    pub fn per_second(&self) -> Result<u32, KernelError> {
        let (first, began) = self.next(self.now()?)?;
        let mut last = (first, began);
        while last.0 < first + 4 {
            last = self.next(last.0)?;
        }
        let ticks = u32::try_from(last.0 - first).unwrap_or(u32::MAX);
        let measured = f64::from(ticks) / (last.1 - began).as_secs_f64();
        let off = |rate: u32| (f64::from(rate).ln() - measured.ln()).abs();
        Ok(RATES.into_iter().min_by(|a, b| off(*a).total_cmp(&off(*b))).unwrap_or(250))
    }

    /// The first tick after this one, and when it began.
    fn next(&self, after: u64) -> Result<(u64, Instant), KernelError> {
        let began = Instant::now();
        loop {
            let (ticks, now) = (self.now()?, Instant::now());
            if ticks > after {
                return Ok((ticks, now));
            }
            if now - began > Duration::from_secs(1) {
                return Err(KernelError::System { step: "wait for the clock", errno: sys::ETIME });
            }
        }
    }
}
