//! What this process may do. Tests that need the kernel ask here, so that a skip is a claim that was checked.

use crate::sys;

/// `CAP_NET_ADMIN`, `CAP_SYS_ADMIN`, `CAP_BPF` (include/uapi/linux/capability.h).
const NEEDED: [(u32, &str); 3] = [(12, "no CAP_NET_ADMIN"), (21, "no CAP_SYS_ADMIN"), (39, "no CAP_BPF")];

fn effective_capabilities() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Why this process cannot use bpf(2) and network namespaces; `None` if it can.
#[must_use]
pub fn missing_privilege() -> Option<&'static str> {
    if !sys::SUPPORTED {
        return Some("not Linux");
    }
    let capabilities = effective_capabilities().unwrap_or(0);
    let missing = NEEDED.iter().find(|(bit, _)| capabilities >> bit & 1 == 0).map(|(_, name)| *name)?;
    Some(if sys::effective_user() == 0 { missing } else { "not root" })
}

/// The line a test prints instead of running, if the claim is true: `skip: kernel-bpf: not root`.
/// `None`: the test must run.
#[must_use]
pub fn skip_line() -> Option<String> {
    missing_privilege().map(|reason| format!("skip: kernel-bpf: {reason}"))
}
