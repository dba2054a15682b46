//! Settings of the kernel that weir needs, and no others.
//!
//! | setting | device | value | why |
//! |---|---|---|---|
//! | `net.ipv4.conf.*.rp_filter` | `weir_*`, and devices to other nodes where it is strict | 2 | a pod's packet comes in by its veth, the route to the pod leads to `weir_host` |
//! | `net.ipv4.conf.*.forwarding` | veths of pods | 1 | from a pod through the node's stack to what is no pod |
//! | `net.ipv6.conf.*.force_forwarding` | veths of pods | 1 | the same (Linux 6.17; before that `net.ipv6.conf.all.forwarding`) |
//! | `net.ipv6.conf.*.accept_ra` | devices to other nodes, before Linux 6.17, where it is 1 | 2 | a node that forwards takes router advertisements only so |
//! | `net.ipv6.conf.*.addr_gen_mode` | `weir_*` | 1 | no link-local addresses, or the node would talk to pods about them |
//!
//! A device without an IPv4 address is checked strictly whatever `rp_filter` says, unless it is 0 for all devices; so every
//! device of weir has the gateway's address.
//!
//! Those of weir's own devices go with them; the others are put back by `--cleanup`.

use std::io;
use std::path::{Path, PathBuf};

/// A setting as `/proc/sys` has it, `net/ipv4/conf/eth0/rp_filter`.
fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

/// A setting's value; `None`: this kernel does not have it.
///
/// # Errors
/// Anything but its absence.
pub fn get(name: &str) -> io::Result<Option<String>> {
    match std::fs::read_to_string(path(name)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(named(name, &error)),
    }
}

/// Writes a setting, unless it is so already.
///
/// # Errors
/// What the kernel says.
pub fn set(name: &str, value: &str) -> io::Result<()> {
    if get(name)?.as_deref() == Some(value) {
        return Ok(());
    }
    std::fs::write(path(name), value).map_err(|error| named(name, &error))
}

fn named(name: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{name}: {error}"))
}

/// Of every device of weir, before it is up.
///
/// # Errors
/// What the kernel says.
pub fn own_device(device: &str) -> io::Result<()> {
    set(&format!("net/ipv4/conf/{device}/rp_filter"), "2")?;
    let mode = format!("net/ipv6/conf/{device}/addr_gen_mode");
    match get(&mode)? {
        Some(_) => set(&mode, "1"),
        None => Ok(()),
    }
}

/// Of the node's side of a pod's veth, before it is up. Returns a setting of the node that must be changed as well.
///
/// # Errors
/// What the kernel says.
pub fn pod_device(device: &str) -> io::Result<Option<(&'static str, &'static str)>> {
    own_device(device)?;
    set(&format!("net/ipv4/conf/{device}/forwarding"), "1")?;
    let force = format!("net/ipv6/conf/{device}/force_forwarding");
    if get(&force)?.is_some() {
        set(&force, "1")?;
        return Ok(None);
    }
    const ALL: &str = "net/ipv6/conf/all/forwarding";
    Ok((get(ALL)?.as_deref() == Some("0")).then_some((ALL, "1")))
}

/// Settings of a device to other nodes that must be changed: a strict check of return paths; router advertisements, which
/// the device would no longer accept once the node forwards IPv6 (before Linux 6.17, see [`pod_device`]).
///
/// # Errors
/// What the kernel says.
pub fn underlay_device(device: &str) -> io::Result<Vec<(String, &'static str)>> {
    let mut all = Vec::new();
    let own = format!("net/ipv4/conf/{device}/rp_filter");
    // The kernel takes the larger of the two.
    let value = get(&own)?.max(get("net/ipv4/conf/all/rp_filter")?);
    if value.as_deref() == Some("1") {
        all.push((own, "2"));
    }
    let accept = format!("net/ipv6/conf/{device}/accept_ra");
    let forced = get(&format!("net/ipv6/conf/{device}/force_forwarding"))?.is_some();
    if !forced && get(&accept)?.as_deref() == Some("1") {
        all.push((accept, "2"));
    }
    Ok(all)
}
