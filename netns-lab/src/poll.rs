//! Waiting for file descriptors.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec};

/// Waits until one of these is so, or the time is over. What became so is in the flags that the kernel returns.
///
/// # Errors
/// What the kernel says.
pub fn any(descriptors: &mut [PollFd<'_>], patience: Duration) -> Result<usize> {
    let end = Instant::now() + patience;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left =
            Timespec { tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX), tv_nsec: left.subsec_nanos().into() };
        match rustix::event::poll(descriptors, Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.context("waiting for sockets"),
        }
    }
}

/// Waits until this can be read; whether it can.
///
/// # Errors
/// What the kernel says.
pub fn readable(descriptor: impl AsFd, patience: Duration) -> Result<bool> {
    Ok(any(&mut [PollFd::new(&descriptor, PollFlags::IN)], patience)? > 0)
}
