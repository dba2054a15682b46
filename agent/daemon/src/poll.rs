//! Descriptors that the runtime waits for.

use std::io;
use std::os::fd::AsRawFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Waits for a descriptor to become readable. `inner` must own it, as both callers' do.
#[expect(deprecated, reason = "its successor is unsafe: it asks the caller to vouch for what owned descriptors are")]
pub(crate) fn readable<T: AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(inner, Interest::READABLE)
}
