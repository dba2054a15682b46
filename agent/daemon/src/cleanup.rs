//! Removes everything that the agent has made: programs, maps, devices (routes and addresses go with them), changed
//! settings, its files.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::FlockOperation;

use crate::Failure;
use crate::agent::sysctls;
use crate::datapath::Folder;
use crate::net::{self, Net};
use crate::settings::Settings;
use crate::state::StateFile;
use crate::sysctl;

/// Name of the file that a running agent holds locked.
const LOCK: &str = "lock";

/// Takes the lock of the state folder, for as long as the file is kept.
///
/// # Errors
/// [`Failure::Input`] when an agent holds it.
pub fn lock(state: &Path) -> Result<File, Failure> {
    std::fs::create_dir_all(state)?;
    let file = File::options().create(true).truncate(false).write(true).open(state.join(LOCK))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(Failure::input(format!("an agent is running: it holds {}", state.join(LOCK).display())))
        }
        Err(errno) => Err(Failure::Io(errno.into())),
    }
}

/// Removes everything. Safe to repeat.
///
/// # Errors
/// The first thing that cannot be removed.
pub async fn cleanup(settings: &Settings) -> Result<(), Failure> {
    let net = Net::open()?;
    net.remove_routes().await?;
    for name in net.links().await?.keys().filter(|name| name.starts_with(net::OWN)) {
        net.remove(name).await?;
    }
    Folder::at(&settings.bpffs).remove()?;
    // A file that cannot be read is no reason to keep it: settings of the kernel are then as they are.
    match StateFile::open(&settings.state) {
        Ok(state) => {
            for (name, value) in sysctls(state.get()) {
                if sysctl::get(name)?.is_some() {
                    sysctl::set(name, value)?;
                }
            }
        }
        Err(error) => tracing::warn!("changed settings of the kernel are not put back: {error}"),
    }
    for path in [&settings.socket, &settings.state.join("state.json"), &settings.state.join("state.json.new")] {
        gone(std::fs::remove_file(path))?;
    }
    gone(std::fs::remove_file(settings.state.join(LOCK)))?;
    // Only if they are empty: somebody else's files stay.
    let _ = std::fs::remove_dir(&settings.state);
    Ok(())
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
